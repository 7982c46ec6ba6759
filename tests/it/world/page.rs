//! What a scripted origin serves at one path, and its faults there.

use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use hyper::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::watch;

/// A body as an origin sends it; an error drops the connection.
pub(crate) type OriginBody = UnsyncBoxBody<Bytes, io::Error>;

/// The size of the pieces that an origin sends.
const PIECE: usize = 64 * 1024;

/// Holds something back until a test opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub(crate) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets everything through, now and later.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    /// Waits until it is open.
    pub(crate) async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// A fault of an origin.
#[derive(Clone, Debug, Default)]
pub(crate) enum Fault {
    /// None.
    #[default]
    None,
    /// The connection drops after this many bytes of each body.
    Cut(usize),
    /// The connection drops after this many bytes of the first body only.
    CutOnce(usize),
    /// The bytes from this offset on wait for the gate.
    Hold(usize, Gate),
    /// This many bytes at a time, with a pause before each.
    Slow(usize, Duration),
}

/// What an origin serves at a path.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) fault: Fault,
    /// Whether it supports `Range`.
    pub(crate) ranges: bool,
    /// Whether it announces the length.
    pub(crate) length: bool,
}

impl Page {
    /// A 200 with `body`, without validator and freshness.
    pub(crate) fn new(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: body.into(),
            fault: Fault::None,
            ranges: true,
            length: true,
        }
    }

    /// An answer with a status and a short text.
    pub(crate) fn status(status: u16) -> Self {
        let mut page = Self::new(format!("status {status}\n"));
        page.status = StatusCode::from_u16(status).unwrap();
        page
    }

    /// A redirect.
    pub(crate) fn redirect(status: u16, to: &str) -> Self {
        Self::status(status).header("location", to)
    }

    /// With a header field.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    /// With a strong validator.
    pub(crate) fn etag(self, value: &str) -> Self {
        self.header("etag", &format!("\"{value}\""))
    }

    /// Fresh for this many seconds.
    pub(crate) fn fresh(self, seconds: u64) -> Self {
        self.header("cache-control", &format!("max-age={seconds}"))
    }

    /// With a fault.
    pub(crate) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Without support for `Range`.
    pub(crate) fn without_ranges(mut self) -> Self {
        self.ranges = false;
        self
    }

    /// Without an announced length.
    pub(crate) fn chunked(mut self) -> Self {
        self.length = false;
        self
    }

    /// The answer to one request. Changes the page to what the next request finds.
    pub(crate) fn answer(&mut self, method: &Method, asked: &HeaderMap) -> Response<OriginBody> {
        let text = |name| asked.get(name).and_then(|value| value.to_str().ok());
        let mine = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let mut response = Response::new(empty());
        *response.headers_mut() = self.headers.clone();
        *response.status_mut() = self.status;
        if self.status == StatusCode::OK {
            let same = match (text(IF_NONE_MATCH), text(IF_MODIFIED_SINCE)) {
                (Some(theirs), _) => Some(theirs) == mine(ETAG),
                (None, Some(theirs)) => Some(theirs) == mine(LAST_MODIFIED),
                (None, None) => false,
            };
            if same {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return response;
            }
        }
        let all = 0..self.body.len();
        let unchanged =
            text(IF_RANGE).is_none_or(|v| Some(v) == mine(ETAG) || Some(v) == mine(LAST_MODIFIED));
        let part = match text(RANGE) {
            Some(range) if self.ranges && unchanged && self.status == StatusCode::OK => {
                parse(range, all.end)
            }
            _ => None,
        };
        if self.ranges && self.status == StatusCode::OK {
            response.headers_mut().insert(ACCEPT_RANGES, "bytes".parse().unwrap());
        }
        if let Some(part) = &part {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let value = format!("bytes {}-{}/{}", part.start, part.end - 1, all.end);
            response.headers_mut().insert(CONTENT_RANGE, value.parse().unwrap());
        }
        let part = part.unwrap_or(all);
        if self.length {
            response.headers_mut().insert(CONTENT_LENGTH, part.len().into());
        }
        if *method != Method::HEAD {
            *response.body_mut() =
                sent(self.body.slice(part.clone()), part.start, self.fault.clone());
            if matches!(self.fault, Fault::CutOnce(_)) {
                self.fault = Fault::None;
            }
        }
        response
    }
}

/// A body without bytes.
pub(crate) fn empty() -> OriginBody {
    whole(Bytes::new())
}

/// A body in one piece.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> OriginBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of the frames that a test sends through a channel; an error drops the connection.
pub(crate) fn fed(from: tokio::sync::mpsc::Receiver<io::Result<Frame<Bytes>>>) -> OriginBody {
    let frames =
        stream::unfold(
            from,
            |mut from| async move { from.recv().await.map(|frame| (frame, from)) },
        );
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// Sends `body` with `fault`; its first byte is at offset `start` of the resource.
fn sent(body: Bytes, start: usize, fault: Fault) -> OriginBody {
    if matches!(fault, Fault::None) && body.len() <= PIECE {
        return whole(body);
    }
    let frames = stream::unfold((body, start, fault), |(mut rest, at, fault)| async move {
        if rest.is_empty() {
            return None;
        }
        let mut take = rest.len().min(PIECE);
        match &fault {
            Fault::None => {}
            Fault::Cut(after) | Fault::CutOnce(after) => {
                if at >= *after {
                    let cut = io::Error::other("the test cuts here");
                    return Some((Err(cut), (Bytes::new(), at, fault)));
                }
                take = take.min(after - at);
            }
            Fault::Hold(from, gate) => {
                if at >= *from {
                    gate.passed().await;
                } else {
                    take = take.min(from - at);
                }
            }
            Fault::Slow(piece, pause) => {
                tokio::time::sleep(*pause).await;
                take = take.min(*piece);
            }
        }
        let piece = rest.split_to(take);
        Some((Ok(Frame::data(piece)), (rest, at + take, fault)))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// A single range (RFC 9110 §14.1.2), closed, open or suffix; `None` for anything else.
fn parse(range: &str, len: usize) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => first..(last + 1).min(len),
        (Ok(first), Err(_)) if last.is_empty() => first..len,
        (Err(_), Ok(count)) if first.is_empty() => len.saturating_sub(count)..len,
        _ => return None,
    };
    (range.start < range.end).then_some(range)
}

/// `len` bytes without repeating blocks, different for each `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    const BLOCK: usize = 1 << 16;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK.min(len.next_multiple_of(8)) {
        // xorshift64: any sequence will do that does not compress and in which a wrong offset is noticed.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(len + BLOCK);
    let mut number = seed;
    while bytes.len() < len {
        let at = bytes.len();
        bytes.extend_from_slice(&block);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        number = number.wrapping_add(0x0001_0001);
    }
    bytes.truncate(len);
    bytes.into()
}
