//! Response bodies: one or several spans of a blob or of a growing flight.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::header::HeaderValue;

use super::range::Span;
use super::{Body, Cut, Line, empty};
use crate::digest::hex;
use crate::flight::{Reader, Unvouched};
use crate::outcome::cause::{Cause, Why};
use crate::store::{Blob, CHUNK};

/// Where the bytes come from.
#[derive(Debug)]
pub enum Source {
    /// A stored blob, and the chunk of it that was read to check it, with its number.
    Blob(Arc<Blob>, Option<(u64, Bytes)>),
    /// The same, of a body that no promise vouches for.
    Unvouched(Arc<Blob>, Option<(u64, Bytes)>, Box<Unvouched>),
    /// A flight under way.
    Flight(Reader),
}

impl Source {
    /// Bytes from `at` on, before `end`; `None` at the end of the body.
    async fn next(&mut self, at: u64, end: u64) -> Result<Option<Bytes>, Cut> {
        match self {
            Self::Flight(reader) => reader.next(at, end).await.map_err(|broken| Cut(broken.reason)),
            Self::Blob(blob, first) => of_blob(blob, first, at, end).await,
            Self::Unvouched(blob, first, unvouched) => {
                let bytes = of_blob(blob, first, at, end).await?;
                if let Some(bytes) = &bytes {
                    let given = unvouched.give(at, at + bytes.len() as u64);
                    given.await.map_err(|broken| Cut(broken.reason))?;
                }
                Ok(bytes)
            }
        }
    }
}

/// Bytes of a blob from `at` on, before `end`; `None` at its end. `first`: the chunk that was read already, with its number.
async fn of_blob(
    blob: &Arc<Blob>,
    first: &mut Option<(u64, Bytes)>,
    at: u64,
    end: u64,
) -> Result<Option<Bytes>, Cut> {
    let end = end.min(blob.size());
    if at >= end {
        return Ok(None);
    }
    let number = at / CHUNK;
    let chunk = match first.take().filter(|(first, _)| *first == number) {
        Some((_, chunk)) => chunk,
        None => chunk(Arc::clone(blob), number).await?,
    };
    let start = number * CHUNK;
    let to = end.min(start + chunk.len() as u64);
    let (Ok(from), Ok(to)) = (usize::try_from(at - start), usize::try_from(to - start)) else {
        return Err(damaged("the stored body is too long for this machine"));
    };
    if from >= to {
        return Err(damaged("the stored body is shorter than its entry says"));
    }
    Ok(Some(chunk.slice(from..to)))
}

async fn chunk(blob: Arc<Blob>, number: u64) -> Result<Bytes, Cut> {
    if let Some(chunk) = blob.chunk_now(number) {
        return Ok(chunk);
    }
    let reading = tokio::task::spawn_blocking(move || blob.chunk(number));
    let read = reading.await.map_err(|_| damaged("reading the stored body was broken off"))?;
    read.map_err(|error| {
        damaged(format!("the stored body is damaged and was thrown away: {error}"))
    })
}

fn damaged(text: impl Into<String>) -> Cut {
    Cut(Why::new(Cause::Larder, text))
}

/// What a body is made of, in order.
enum Segment {
    Text(Bytes),
    Span(Span),
}

struct Pieces {
    source: Source,
    segments: VecDeque<Segment>,
    line: Option<Line>,
    broken: bool,
}

impl Pieces {
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        if self.broken {
            return None;
        }
        loop {
            match self.segments.pop_front()? {
                Segment::Text(text) => return Some(Ok(text)),
                Segment::Span(Span { start, end }) => match self.source.next(start, end).await {
                    Ok(Some(bytes)) => {
                        let start = start + bytes.len() as u64;
                        if start < end {
                            self.segments.push_front(Segment::Span(Span { start, end }));
                        }
                        return Some(Ok(bytes));
                    }
                    // Only a body of unknown length may end so; any other body is shorter than announced.
                    Ok(None) if end == u64::MAX => {}
                    Ok(None) => {
                        let why = Why::new(Cause::Broken, "the body is shorter than announced");
                        return Some(Err(self.cut(Cut(why))));
                    }
                    Err(cut) => return Some(Err(self.cut(cut))),
                },
            }
        }
    }

    fn cut(&mut self, cut: Cut) -> Cut {
        self.broken = true;
        if let Some(line) = &self.line {
            line.cut_for(&cut.0);
        }
        cut
    }
}

fn stream(source: Source, segments: VecDeque<Segment>, line: Option<Line>) -> Body {
    let pieces = Pieces { source, segments, line, broken: false };
    let frames = stream::unfold(pieces, |mut pieces| async move {
        let next = pieces.next().await?;
        Some((next.map(Frame::data), pieces))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A body of these spans, one after the other.
pub(super) fn spans(source: Option<Source>, spans: Vec<Span>, line: Option<Line>) -> Body {
    // With HTTP/2, hyper polls also a body that has nothing to give.
    let nothing = spans.iter().all(|span| span.start == span.end);
    match source.filter(|_| !nothing) {
        Some(source) => stream(source, spans.into_iter().map(Segment::Span).collect(), line),
        None => empty(),
    }
}

/// Several ranges in one body (RFC 9110 §14.6).
pub(super) struct Multipart {
    boundary: String,
    parts: Vec<(Bytes, Span)>,
    close: Bytes,
}

impl Multipart {
    pub(super) fn new(spans: &[Span], total: u64, content_type: Option<&HeaderValue>) -> Self {
        // The boundary must not occur in the body, so it has 128 random bits, which the author of the body could not know.
        let mut random = [0; 16];
        let _filled = aws_lc_rs::rand::fill(&mut random);
        let boundary = hex(&random);
        let kind = content_type.and_then(|value| value.to_str().ok());
        let kind = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
        let parts = spans
            .iter()
            .map(|span| {
                let range = span.content_range(total);
                (format!("\r\n--{boundary}\r\n{kind}Content-Range: {range}\r\n\r\n").into(), *span)
            })
            .collect();
        let close = format!("\r\n--{boundary}--\r\n").into();
        Self { boundary, parts, close }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    pub(super) fn length(&self) -> u64 {
        let parts: u64 =
            self.parts.iter().map(|(text, span)| text.len() as u64 + span.length()).sum();
        parts + self.close.len() as u64
    }

    pub(super) fn body(self, source: Option<Source>, line: Option<Line>) -> Body {
        let Some(source) = source else { return empty() };
        let mut segments: VecDeque<Segment> = self
            .parts
            .into_iter()
            .flat_map(|(text, span)| [Segment::Text(text), Segment::Span(span)])
            .collect();
        segments.push_back(Segment::Text(self.close));
        stream(source, segments, line)
    }
}
