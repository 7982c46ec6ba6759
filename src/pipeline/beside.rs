//! A far range of a large body that is only beginning to arrive, fetched beside the fill.
//!
//! uv and pip read a wheel's directory at its end before they want the rest. Waiting for the fill would cost them the
//! whole download; so the range is fetched on its own, if the origin's answer provably belongs to the same body (equal
//! length, equal strong validator), and where the gap allows.

use std::sync::Arc;

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode, header};

use super::Pipeline;
use super::record::Record;
use super::task::Task;
use crate::flight::{Answered, Reader};
use crate::outcome::Outcome;
use crate::reply::condition::{self, Selection};
use crate::reply::range::Span;
use crate::reply::{self, Asked, Body, Cut};

/// How far ahead of the fill a range must begin to be worth a request of its own, in bytes.
const FAR: u64 = 8 << 20;

impl Pipeline {
    /// The range beside the fill; `None` if the flight itself should answer.
    pub(super) async fn beside(
        &self,
        asked: &Asked,
        task: &Task,
        reader: &Reader,
        answered: &Arc<Answered>,
        needed: Span,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        let (length, validator) = (answered.length?, answered.head.strong_validator()?);
        let flight = reader.flight();
        if needed.start < flight.have().saturating_add(FAR) {
            return None;
        }
        let Selection::Spans(spans) =
            condition::select(&asked.headers, &answered.head, Some(length))
        else {
            return None;
        };
        let [span] = spans.as_slice() else {
            return None;
        };
        if !flight.grant_beside(reader.client(), answered, span.start, span.end) {
            return None;
        }
        let mut ask = task.ask(None, true);
        ask.range = Some((span.start, Some(span.end - 1)));
        ask.if_range = Some(validator.to_owned());
        let rest = self.origins.fetch(ask).await.ok()?;
        let same = !rest.plain
            && rest.head.status == StatusCode::PARTIAL_CONTENT
            && rest.head.strong_validator() == Some(validator)
            && rest.head.text(&header::CONTENT_RANGE) == Some(&span.content_range(length));
        if !same {
            return None;
        }
        let body = watched(asked, reader, rest.body, *span);
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        *response.headers_mut() = rest.head.headers;
        response.headers_mut().insert(header::CONTENT_LENGTH, span.length().into());
        reply::set_cache_status(response.headers_mut(), Outcome::Miss, None);
        Some(record.end(Outcome::Miss, response))
    }
}

/// The range's bytes, which stop when the fill's body is refused.
fn watched(asked: &Asked, reader: &Reader, body: crate::origin::Bodies, span: Span) -> Body {
    let (flight, line) = (Arc::clone(reader.flight()), asked.line.clone());
    let state = (body, flight, line, span.length());
    let frames = stream::unfold(state, |(mut body, flight, line, left)| async move {
        if left == 0 {
            return None;
        }
        let piece = match body.next().await {
            Some(Ok(_)) if flight.is_refused() => Err("the body was refused".to_owned()),
            Some(Ok(bytes)) if bytes.len() as u64 <= left => Ok(bytes),
            Some(Ok(_)) => Err("the origin sent more than the range".to_owned()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the range ended early".to_owned()),
        };
        let left = piece.as_ref().map_or(0, |bytes| left - bytes.len() as u64);
        if piece.is_err()
            && let Some(line) = &line
        {
            line.cut();
        }
        Some((piece.map(Frame::data).map_err(Cut), (body, flight, line, left)))
    });
    StreamBody::new(frames).boxed_unsync()
}
