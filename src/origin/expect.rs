//! The client's request body, held back until the origin accepts it (`Expect: 100-continue`).
//!
//! With `Expect: 100-continue` (RFC 9110 §10.1.1) larder does not read the body from the client before the origin
//! answers 100. hyper sends 100 to the client only when the body is read, so the origin's decision reaches the client,
//! and an upload of gigabytes that ends in 401 never begins. If the origin ignores the expectation, the body is sent
//! after a second, as RFC 9110 requires of clients.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// How long to wait for an origin that ignores `Expect`; the same as curl.
const PATIENCE: Duration = Duration::from_secs(1);

/// The client's own request body.
pub type UpBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// The client's body, possibly behind a gate.
pub(super) struct HeldBody {
    body: UpBody,
    gate: Option<Gate>,
}

struct Gate {
    go_on: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

impl HeldBody {
    pub(super) const fn new(body: UpBody) -> Self {
        Self { body, gate: None }
    }

    /// Whether there is no body, so that the request can be sent twice.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn empty() -> Self {
        Self::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync())
    }
}

/// Holds the body of `request` back if it expects 100. On HTTP/1.1 only, where hyper reports a 100; on HTTP/2 the body
/// flows at once, and the origin refuses it cheaply by resetting the stream.
pub(super) fn hold(request: &mut Request<HeldBody>) {
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

impl Body for HeldBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            // hyper drops the callback when the final answer arrives, which closes the channel. The origin then does
            // not want the body, so it is never read. The connection ends when the origin closes it.
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

impl std::fmt::Debug for HeldBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldBody").field("held", &self.gate.is_some()).finish_non_exhaustive()
    }
}
