//! A distant range of a large body that has only begun to arrive, fetched ahead of the fill or beside it.
//!
//! Clients that download over many connections (aria2, axel, browsers) request ranges of megabytes. Each such range is fetched
//! once: it becomes a part of the body, which the fill skips (`flight/parts.rs`).
//!
//! uv and pip read a wheel's directory at its end before they want the rest. To wait for the fill would cost them the whole
//! download. So larder fetches the range on its own, if the gap allows it and if the origin's answer claims to belong to the same
//! body (equal length, equal strong validator). The bytes that were given are compared with the verified body before the gap
//! opens (`flight/beside.rs`). An origin whose ranges do not agree with its bodies gets no such request for a day.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode, header};
use moka::sync::Cache;

use super::Pipeline;
use super::in_use::latest;
use super::record::Record;
use super::task::Task;
use crate::entry::Head;
use crate::flight::{Ahead, Answered, Beside, Flight, GivenRange, LEAST_PART, Reader};
use crate::origin::{Answer, Ask, Origins};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::received::Spooled;
use crate::reply::condition::{self, Selection};
use crate::reply::range::Span;
use crate::reply::{self, Asked, Body, Cut};
use crate::target::Origin;
use crate::verify::Mismatch;

/// How far ahead of the fill a range must begin to be worth a request of its own, in bytes.
const FAR: u64 = 8 << 20;

/// How long an origin gets no such request after one of its ranges did not agree with its body.
const DISTRUSTED_FOR: Duration = Duration::from_hours(24);

/// How many such origins are remembered. An origin that was evicted is compared again.
const MOST_DISTRUSTED: u64 = 4096;

/// The origins whose ranges did not agree with their bodies.
#[derive(Debug)]
pub(super) struct Distrusted(Cache<Origin, ()>);

impl Default for Distrusted {
    fn default() -> Self {
        Self(latest(MOST_DISTRUSTED).time_to_live(DISTRUSTED_FOR).build())
    }
}

impl Pipeline {
    /// Answers with the range, fetched beside the fill. `Err`: the flight itself should answer, and the reader is returned.
    pub(super) async fn beside(
        &self,
        asked: &Asked,
        task: &Task,
        reader: Reader,
        answered: &Arc<Answered>,
        record: &mut Record,
    ) -> Result<Response<Body>, Reader> {
        let Some((span, validator)) = self.one_span(asked, task, answered) else {
            return Err(reader);
        };
        if span.length() >= LEAST_PART {
            // The fill knows this as soon as it begins to take bytes in; a flight that takes none in ends at once.
            let known = reader.flight().knows_of_parts();
            let _known = tokio::time::timeout(Duration::from_secs(1), known).await;
            if let Some(part) = reader.flight().open_part(answered, span.start, span.end) {
                let span = Span { start: part.start(), end: part.end() };
                let (origins, ask) =
                    (Arc::clone(&self.origins), self.range(task, span, &validator));
                tokio::spawn(fetch_part(origins, ask, part, span, Arc::clone(answered)));
            }
            // The client reads the bytes of the part through the flight.
            return Err(reader);
        }
        let flight = reader.flight();
        if span.start < flight.have().saturating_add(FAR) || flight.is_in_part(span.start) {
            return Err(reader);
        }
        let granted = flight.grant_beside(answered, span.start, span.end).await;
        let Some(beside) = granted else { return Err(reader) };
        let rest = self.origins.fetch(self.range(task, span, &validator)).await;
        let rest = rest.ok().filter(|rest| is_of_the_body(rest, span, answered));
        let Some(rest) = rest else { return Err(reader) };
        if !flight.begin_beside(answered, &beside).await {
            return Err(reader);
        }
        reader.stand_behind();
        let mut response = Response::new(watched(asked, reader, beside, rest.body, span));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        *response.headers_mut() = rest.head.headers;
        response.headers_mut().insert(header::CONTENT_LENGTH, span.length().into());
        reply::set_cache_status(response.headers_mut(), Outcome::Miss, None);
        Ok(record.end(Outcome::Miss, response))
    }

    /// The single range that the request asks for, and the body's validator.
    fn one_span(&self, asked: &Asked, task: &Task, answered: &Answered) -> Option<(Span, String)> {
        let (length, validator) = (answered.length?, answered.head.strong_validator()?);
        if self.distrusted.0.get(task.target.origin()).is_some() {
            return None;
        }
        let selected = condition::select(&asked.headers, &answered.head, Some(length));
        let Selection::Spans(spans) = selected else { return None };
        let [span] = spans.as_slice() else { return None };
        Some((*span, validator.to_owned()))
    }

    /// The request for a range of the body. It follows a redirect if the request for the whole body does.
    fn range(&self, task: &Task, span: Span, validator: &str) -> Ask {
        let expected = self.expectation_of(task);
        let follow = expected.named.is_some() || expected.binding().next().is_some();
        let mut ask = task.ask(None, follow);
        ask.range = Some((span.start, Some(span.end - 1)));
        ask.if_range = Some(validator.to_owned());
        ask
    }

    /// Compares a body that is what was promised with the ranges that were given beside it. `Err`: a range does not agree with
    /// the body, so a client holds bytes that were never part of it.
    pub(super) async fn compare_besides(
        &self,
        task: &Task,
        flight: &Flight,
        body: &Spooled,
    ) -> Result<(), Mismatch> {
        let given = flight.close_besides();
        if given.is_empty() {
            return Ok(());
        }
        let file = Arc::clone(&body.file);
        let lie = tokio::task::spawn_blocking(move || {
            // A range that cannot be compared counts as one that does not agree.
            given.into_iter().find(|given| !given.agrees_with(&file).unwrap_or(false))
        });
        match lie.await {
            Ok(None) => return Ok(()),
            Ok(Some(lie)) => self.distrust(task, &lie),
            Err(_) => {
                tracing::error!(url = %task.target, "comparing ranges with their body was broken off");
            }
        }
        Err(Mismatch {
            promised: "a range that the origin gave beside the whole has other bytes".to_owned(),
            came: format!("a whole of {} bytes", body.size),
            elsewhere: None,
        })
    }

    /// A body that was fetched in parts is not what was promised, so its origin is asked for no part for a day.
    pub(super) fn distrust_parts(&self, task: &Task, flight: &Flight) {
        if flight.had_parts() {
            let origin = task.target.origin();
            self.distrusted.0.insert(origin.clone(), ());
            tracing::warn!(
                url = %task.target,
                "a body that was fetched in parts is not what was promised; {origin} is asked for whole bodies for a day"
            );
        }
    }

    fn distrust(&self, task: &Task, lie: &GivenRange) {
        let origin = task.target.origin();
        self.distrusted.0.insert(origin.clone(), ());
        let (start, length) = (lie.start, lie.length);
        tracing::error!(
            target: "larder::refused",
            url = %task.target,
            "the {length} bytes from {start} on that {origin} gave as a range are not those of the whole; no range is fetched \
             beside a fill there for a day"
        );
    }
}

/// Whether an answer is this range of this body, as far as its header fields say. Servers behind one name that give the same
/// entity tag to two different bodies often give them different dates.
fn is_of_the_body(answer: &Answer, span: Span, whole: &Answered) -> bool {
    let (Some(length), Some(validator)) = (whole.length, whole.head.strong_validator()) else {
        return false;
    };
    let date = |head: &Head| head.text(&header::LAST_MODIFIED).map(str::to_owned);
    let same_date = match (date(&whole.head), date(&answer.head)) {
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => true,
    };
    let coding = |head: &Head| head.headers.get(header::CONTENT_ENCODING).cloned();
    !answer.plain
        && answer.head.status == StatusCode::PARTIAL_CONTENT
        && answer.head.strong_validator() == Some(validator)
        && answer.head.text(&header::CONTENT_RANGE) == Some(&span.content_range(length))
        && same_date
        && coding(&answer.head) == coding(&whole.head)
        && !is_multipart(&answer.head)
}

/// Whether the answer is `multipart/byteranges`, whatever its `Content-Range` says.
fn is_multipart(head: &Head) -> bool {
    let kind = head.text(&header::CONTENT_TYPE).unwrap_or_default();
    kind.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"))
}

/// Fetches a part. However that ends, the fill continues where the part stops.
async fn fetch_part(
    origins: Arc<Origins>,
    ask: Ask,
    part: Ahead,
    span: Span,
    whole: Arc<Answered>,
) {
    let target = ask.target.clone();
    let mut answer = match origins.fetch(ask).await {
        Ok(answer) if is_of_the_body(&answer, span, &whole) => answer,
        Ok(_) => return tracing::debug!(%target, "the origin gives no such part"),
        Err(error) => return tracing::debug!(%target, %error, "a part could not be fetched"),
    };
    while let Some(piece) = answer.body.next().await {
        match piece {
            Ok(bytes) => {
                if !part.take(bytes).await {
                    break;
                }
            }
            Err(error) => {
                tracing::debug!(%target, %error, "a part broke off");
                break;
            }
        }
    }
    drop(answer);
    part.close().await;
}

/// Why a body that is not stored cannot be completed: ranges were given beside it, and there is nothing to compare them with. A
/// body that no promise binds is not checked.
pub(super) fn uncompared_besides(flight: &Flight) -> Option<Mismatch> {
    let given = flight.close_besides();
    (flight.is_held() && !given.is_empty()).then(|| Mismatch {
        promised:
            "a range that the origin gave beside the whole can be compared only with a stored body"
                .to_owned(),
        came: "a body that the store has no room for; ask again without ranges".to_owned(),
        elsewhere: None,
    })
}

/// The state of answering a range request.
struct Watched {
    beside: Arc<Beside>,
    reader: Reader,
    /// The origin's answer to the range request, until the body is judged.
    body: Option<crate::origin::Bodies>,
    at: u64,
    end: u64,
}

impl Watched {
    async fn next(&mut self) -> Result<Option<Bytes>, Why> {
        while let Some(body) = &mut self.body {
            if self.at >= self.end {
                return Ok(None);
            }
            let piece = tokio::select! {
                piece = body.next() => piece,
                // The body is complete and judged, or no more of it will come.
                _over = self.reader.judged() => {
                    self.body = None;
                    break;
                }
            };
            let bytes = match piece {
                Some(Ok(bytes)) if bytes.len() as u64 <= self.end - self.at => bytes,
                Some(Ok(_)) => {
                    return Err(Why::new(Cause::Framing, "the origin sent more than the range"));
                }
                Some(Err(error)) => return Err(error.why()),
                None => return Err(Why::new(Cause::Broken, "the range ended early")),
            };
            self.reader.flight().bind_before_reading().await;
            if self.reader.flight().is_held_whole() {
                // Another body of the target was refused meanwhile, or a promise came and the gap is spent: the rest waits for the
                // judgement.
                self.body = None;
                break;
            }
            let (beside, hashed) = (Arc::clone(&self.beside), bytes.clone());
            let given = tokio::task::spawn_blocking(move || beside.give(&hashed)).await;
            if given.is_ok_and(|given| given) {
                self.at += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            self.body = None;
        }
        let rest = self.reader.next(self.at, self.end).await.map_err(|broken| broken.reason)?;
        if let Some(bytes) = &rest {
            self.at += bytes.len() as u64;
        }
        Ok(rest)
    }
}

/// The bytes of the range: from the origin until the body is judged, then from the verified body. They stop if the body is
/// refused.
fn watched(
    asked: &Asked,
    reader: Reader,
    beside: Arc<Beside>,
    body: crate::origin::Bodies,
    span: Span,
) -> Body {
    let watched = Watched { beside, reader, body: Some(body), at: span.start, end: span.end };
    let line = asked.line.clone();
    let frames = stream::unfold(Some((watched, line)), |state| async move {
        let (mut watched, line) = state?;
        match watched.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some((watched, line)))),
            Err(reason) => {
                if let Some(line) = &line {
                    line.cut_for(&reason);
                }
                Some((Err(Cut(reason)), None))
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
