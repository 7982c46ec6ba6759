//! A client's body on its way up, held back while the origin is asked whether it wants it.
//!
//! With `Expect: 100-continue` (RFC 9110 §10.1.1) the body is not even read from the client before the origin says
//! 100, and hyper tells the client to go on only when its body is read: so the origin's word travels to the client,
//! and an upload of gigabytes that ends in 401 never begins. Origins that ignore the expectation get the body after a
//! second, as RFC 9110 asks of clients.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::pass::UpBody;

/// How long an origin that ignores `Expect` holds up a body; curl waits as long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The client's body, perhaps behind a gate.
pub(super) struct Uphill {
    body: UpBody,
    gate: Option<Gate>,
}

struct Gate {
    go_on: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

impl Uphill {
    pub(super) const fn new(body: UpBody) -> Self {
        Self { body, gate: None }
    }

    /// Nothing to send, so that sending it twice is harmless.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn empty() -> Self {
        Self::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync())
    }
}

/// Puts a gate before the body of `request`, if it expects 100. Only h1 tells larder of a 100; on h2 the body flows
/// at once, and a refusal is a cheap reset of its stream.
pub(super) fn hold(request: &mut Request<Uphill>) {
    let expects = request
        .headers()
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects || request.body().is_empty() {
        return;
    }
    let (open, go_on) = oneshot::channel();
    let open = std::sync::Mutex::new(Some(open));
    hyper::ext::on_informational(request, move |answer| {
        if answer.status() == StatusCode::CONTINUE
            && let Ok(mut open) = open.lock()
            && let Some(open) = open.take()
        {
            open.send(()).ok();
        }
    });
    request.body_mut().gate =
        Some(Gate { go_on, patience: Box::pin(tokio::time::sleep(PATIENCE)) });
}

impl Body for Uphill {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            // hyper forgets the callback with the final answer: then the channel is closed, nobody wants the body any
            // more, and it stays where it is. The connection ends when the origin ends it.
            match Pin::new(&mut gate.go_on).poll(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => match gate.patience.as_mut().poll(cx) {
                    Poll::Ready(()) => {}
                    Poll::Pending => return Poll::Pending,
                },
            }
            self.gate = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl std::fmt::Debug for Uphill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uphill").field("held", &self.gate.is_some()).finish_non_exhaustive()
    }
}
