//! Answers to clients: status, header fields, and a body from a blob, a growing flight or a text.
//!
//! The header fields are the origin's, as they arrived; larder adds `Cache-Status`, `Age` and the fields that a range needs.
//! Conditions and ranges are answered here, in the same way for a stored body and for one that is still arriving.

mod body;
pub mod condition;
pub mod range;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Body as _;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Method, Response, StatusCode};
use tokio::sync::Notify;

pub use body::Source;
use condition::Selection;
use range::Span;

use crate::clock::Time;
use crate::entry::{Entry, Head};
use crate::freshness;
use crate::limits;
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::proof::Proof;
use crate::target::shown::clipped;

/// The longest line of text that larder answers with, in characters.
const LINE: usize = 4096;

/// Why a body ended early. The connection is then reset, because many clients take an orderly close for the end of the body.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Cut(pub Why);

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Cut>;

/// The client's connection, as a reply sees it: the means to end it with a reset.
///
/// When a body fails, the reply sets this mark. The connection's transport then ends with a reset, and never with a FIN after a
/// `close_notify`. After an orderly close, Python's urllib and other clients keep the truncated file without an error.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<Mark>);

#[derive(Debug, Default)]
struct Mark {
    state: AtomicU8,
    set: Notify,
}

/// No answer was cut.
const WHOLE: u8 = 0;
/// An answer was broken off.
const CUT: u8 = 1;
/// A body was refused.
const DENIED: u8 = 2;

impl Line {
    /// Makes the transport end with a reset.
    pub fn cut(&self) {
        self.mark(CUT);
    }

    /// Like [`Self::cut`]; if the body was refused, the mark also says so.
    pub fn cut_for(&self, why: &Why) {
        if matches!(why.cause, Cause::Promise | Cause::Quarantine) {
            self.mark(DENIED);
        } else {
            self.cut();
        }
    }

    fn mark(&self, state: u8) {
        self.0.state.fetch_max(state, Ordering::AcqRel);
        self.0.set.notify_waiters();
    }

    /// Returns when the mark is set.
    pub async fn is_cut_off(&self) {
        let mut set = pin!(self.0.set.notified());
        // From here on no notification is missed.
        set.as_mut().enable();
        if !self.is_cut() {
            set.await;
        }
    }

    /// Whether a reply has set the mark.
    pub fn is_cut(&self) -> bool {
        self.0.state.load(Ordering::Acquire) != WHOLE
    }

    /// Whether it was cut because a body was refused.
    pub fn is_denied(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == DENIED
    }
}

/// What a reply needs to know of the request. `Debug` shows no header field, because the client's credentials are among them.
#[derive(Clone)]
pub struct Asked {
    /// The method is HEAD: the answer has no body.
    pub head_only: bool,
    /// The request's header fields.
    pub headers: Arc<HeaderMap>,
    /// The connection to cut; `None` for HTTP/2, which can reset a single stream.
    pub line: Option<Line>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("head_only", &self.head_only).finish_non_exhaustive()
    }
}

/// An empty body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A line of text for people: what happened, with which URL, and what to do.
pub fn text(status: StatusCode, line: &str, outcome: Outcome) -> Response<Body> {
    // The line may contain text of others: names, URLs, an origin's error message.
    let mut response = Response::new(full(format!("larder: {}\n", clipped(line, LINE))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // No cache between larder and the client may keep larder's errors.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, limits::RETRY_AFTER.into());
    }
    set_cache_status(headers, outcome, None);
    // apt, wget, npm and others show the reason phrase and nothing of the body.
    if let Some(phrase) = phrase(status, outcome) {
        response.extensions_mut().insert(phrase);
    }
    response
}

/// The reason phrase of an error by larder: what the status means, and that the error is larder's.
fn phrase(status: StatusCode, outcome: Outcome) -> Option<ReasonPhrase> {
    let usual = status.canonical_reason().unwrap_or("Error");
    let words = match outcome {
        Outcome::Rejected(Cause::Promise | Cause::Quarantine) => {
            "refused by larder: not the promised bytes".to_owned()
        }
        Outcome::Rejected(cause) | Outcome::Refused(cause) => {
            format!("refused by larder: {}", cause.as_str())
        }
        Outcome::Failed(cause) => format!("larder: {}", cause.as_str()),
        Outcome::Hit
        | Outcome::Revalidated
        | Outcome::Stale
        | Outcome::Miss
        | Outcome::Collapsed
        | Outcome::Pass(_)
        | Outcome::Tunnel
        | Outcome::Own => return None,
    };
    ReasonPhrase::try_from(format!("{usual} ({words})")).ok()
}

/// Removes the body from an answer that has none in HTTP: to a HEAD, or with some statuses. HTTP/2 clients treat such a body as a
/// protocol error, and do not show the answer. The answer to a HEAD keeps the length that the answer to a GET would have.
pub fn without_body(method: &Method, response: Response<Body>) -> Response<Body> {
    let bare = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if *method != Method::HEAD && !bare {
        return response;
    }
    let length = response.body().size_hint().exact().filter(|length| *length > 0);
    let mut response = response.map(|_| empty());
    if let Some(length) = length.filter(|_| !bare)
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

/// The response for a small answer of the origin that is not stored.
pub fn relayed(asked: &Asked, head: &Head, bytes: Bytes, outcome: Outcome) -> Response<Body> {
    let length = bytes.len() as u64;
    let mut response = Response::new(if asked.head_only { empty() } else { full(bytes) });
    *response.status_mut() = head.status;
    *response.headers_mut() = carried(&head.headers);
    if head.status != StatusCode::NO_CONTENT && head.status != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    set_cache_status(response.headers_mut(), outcome, None);
    response
}

/// The response from a stored entry. `source` is its body; a HEAD needs none.
pub fn stored(
    asked: &Asked,
    entry: &Entry,
    source: Option<Source>,
    outcome: Outcome,
    proof: Proof,
    now: Time,
) -> Response<Body> {
    let mut response = assemble(asked, &entry.head, Some(entry.size), source);
    response.headers_mut().insert(header::AGE, freshness::age(entry, now).into());
    set_cache_status(response.headers_mut(), outcome, Some(proof));
    response
}

/// The response from a flight that is still under way.
pub fn arriving(
    asked: &Asked,
    head: &Head,
    length: Option<u64>,
    source: Source,
    outcome: Outcome,
) -> Response<Body> {
    let mut response = assemble(asked, head, length, Some(source));
    set_cache_status(response.headers_mut(), outcome, None);
    response
}

/// The origin's answer to a client's own request, whose body comes from a flight.
pub fn passed(
    parts: Parts,
    source: Source,
    length: Option<u64>,
    line: Option<Line>,
) -> Response<Body> {
    let whole = Span { start: 0, end: length.unwrap_or(u64::MAX) };
    let mut response = Response::from_parts(parts, body::spans(Some(source), vec![whole], line));
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

/// The smallest span of the body that contains all bytes of the answer to this request.
pub fn needed(asked: &Asked, head: &Head, length: Option<u64>) -> Span {
    let whole = Span { start: 0, end: length.unwrap_or(u64::MAX) };
    if head.status != StatusCode::OK {
        return whole;
    }
    match condition::select(&asked.headers, head, length) {
        Selection::Spans(spans) => Span {
            start: spans.iter().map(|span| span.start).min().unwrap_or(0),
            end: spans.iter().map(|span| span.end).max().unwrap_or(whole.end),
        },
        Selection::Whole
        | Selection::NotModified
        | Selection::PreconditionFailed
        | Selection::Unsatisfiable => whole,
    }
}

/// The first byte of a stored body of `size` bytes that the answer gives; `None` if it gives none.
pub fn first_given(asked: &Asked, head: &Head, size: u64) -> Option<u64> {
    if asked.head_only || size == 0 || speaks_of_the_whole(asked, head, Some(size)) {
        return None;
    }
    if head.status != StatusCode::OK {
        return Some(0);
    }
    match condition::select(&asked.headers, head, Some(size)) {
        // The spans are in the order in which they are given.
        Selection::Spans(spans) => spans.first().map(|span| span.start),
        Selection::Whole
        | Selection::NotModified
        | Selection::PreconditionFailed
        | Selection::Unsatisfiable => Some(0),
    }
}

/// Whether the answer makes a statement about the whole body without giving any of it: that the client's copy is current, or that
/// the requested range is outside the body. A client that resumes takes such an answer for the end of the body.
pub fn speaks_of_the_whole(asked: &Asked, head: &Head, length: Option<u64>) -> bool {
    head.status == StatusCode::OK
        && match condition::select(&asked.headers, head, length) {
            Selection::NotModified | Selection::PreconditionFailed | Selection::Unsatisfiable => {
                true
            }
            Selection::Whole | Selection::Spans(_) => false,
        }
}

fn assemble(
    asked: &Asked,
    head: &Head,
    length: Option<u64>,
    source: Option<Source>,
) -> Response<Body> {
    let selection = if head.status == StatusCode::OK {
        condition::select(&asked.headers, head, length)
    } else {
        Selection::Whole
    };
    let mut headers = carried(&head.headers);
    if head.status == StatusCode::OK && length.is_some() {
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    let line = asked.line.clone();
    let source = source.filter(|_| !asked.head_only);
    let (status, body_length, body) = match selection {
        Selection::NotModified => {
            for name in [
                header::CONTENT_LENGTH,
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::CONTENT_RANGE,
            ] {
                headers.remove(name);
            }
            (StatusCode::NOT_MODIFIED, None, empty())
        }
        Selection::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, Some(0), empty()),
        Selection::Unsatisfiable => {
            set(&mut headers, header::CONTENT_RANGE, &format!("bytes */{}", length.unwrap_or(0)));
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(0), empty())
        }
        Selection::Whole => {
            let whole = Span { start: 0, end: length.unwrap_or(u64::MAX) };
            (head.status, length, body::spans(source, vec![whole], line))
        }
        Selection::Spans(spans) => {
            headers.remove(header::CONTENT_RANGE);
            let total = length.unwrap_or(0);
            let (length, body) = partial(&mut headers, spans, total, source, line);
            (StatusCode::PARTIAL_CONTENT, Some(length), body)
        }
    };
    if let Some(length) = body_length.filter(|_| status != StatusCode::NO_CONTENT) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// One span, or several in one body.
fn partial(
    headers: &mut HeaderMap,
    spans: Vec<Span>,
    total: u64,
    source: Option<Source>,
    line: Option<Line>,
) -> (u64, Body) {
    if let [span] = spans.as_slice() {
        set(headers, header::CONTENT_RANGE, &span.content_range(total));
        return (span.length(), body::spans(source, spans, line));
    }
    let inner = headers.remove(header::CONTENT_TYPE);
    let parts = body::Multipart::new(&spans, total, inner.as_ref());
    set(headers, header::CONTENT_TYPE, &parts.content_type());
    (parts.length(), parts.body(source, line))
}

/// The origin's fields, except those that larder sets itself.
fn carried(headers: &HeaderMap) -> HeaderMap {
    let mut carried = headers.clone();
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        carried.remove(name);
    }
    carried
}

/// Appends larder's member to `Cache-Status`, after those of caches nearer to the origin (RFC 9211 §2).
pub fn set_cache_status(headers: &mut HeaderMap, outcome: Outcome, proof: Option<Proof>) {
    if let Ok(value) = HeaderValue::from_str(&outcome.cache_status(proof)) {
        headers.append(HeaderName::from_static("cache-status"), value);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}
