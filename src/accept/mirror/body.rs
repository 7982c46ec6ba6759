//! A body whose links are rewritten as it passes. Only the tag or string that is being read is buffered.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use super::html::Html;
use super::json::Json;
use super::rewrite::LinkRewriter;
use crate::ecosystem::links::Links;
use crate::reply::{Body, Cut};

/// Finds the links of a document, in pieces of any length, and rewrites them.
#[derive(Debug)]
pub(super) struct Changing {
    scanner: Scanner,
    lead: LinkRewriter,
}

#[derive(Debug)]
enum Scanner {
    Html(Html),
    Json(Json),
}

impl Changing {
    pub(super) fn new(links: Links, mut lead: LinkRewriter) -> Self {
        let scanner = match links {
            Links::Html => Scanner::Html(Html::new()),
            Links::Json { ways, take_login } => {
                lead.takes_login(take_login);
                Scanner::Json(Json::new(ways))
            }
        };
        Self { scanner, lead }
    }

    /// Processes a piece; bytes that are final are appended to `out`.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let Self { scanner, lead } = self;
        match scanner {
            Scanner::Html(html) => html.push(piece, out, lead),
            Scanner::Json(json) => json.push(piece, out, &mut |link| lead.url(link)),
        }
    }

    /// Ends the document.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        match &mut self.scanner {
            Scanner::Html(html) => html.finish(out),
            Scanner::Json(json) => json.finish(out),
        }
    }
}

/// The rewritten body. If the inner body breaks, this one does, and buffered bytes are not sent.
pub(super) struct Changed {
    inner: Body,
    changing: Option<Changing>,
}

impl Changed {
    pub(super) fn new(inner: Body, changing: Changing) -> Self {
        Self { inner, changing: Some(changing) }
    }
}

impl HttpBody for Changed {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            if self.changing.is_none() {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let mut out = Vec::new();
            match frame {
                Some(Ok(frame)) => {
                    // Trailers are dropped: they would describe the original's bytes.
                    if let (Ok(piece), Some(changing)) = (frame.into_data(), &mut self.changing) {
                        out.reserve(piece.len());
                        changing.push(&piece, &mut out);
                    }
                }
                Some(Err(cut)) => {
                    self.changing = None;
                    return Poll::Ready(Some(Err(cut)));
                }
                None => {
                    if let Some(mut changing) = self.changing.take() {
                        changing.finish(&mut out);
                    }
                }
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}
