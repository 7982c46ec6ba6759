//! HTTP towards clients: how connections are served, with their limits.
//!
//! The same for the outer connection (HTTP/1.1, proxy requests) and for what is found inside a tunnel (HTTP/1.1 or
//! HTTP/2). Header case, upgrades and every method are kept; what hyper's strict
//! parser of HTTP/1 would refuse without a word does not reach it ([`Heads`](super::heads::Heads)).

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Lapse, Patience};
use super::head::MAX_FIELDS;
use super::heads::MAX_HEAD;
use super::transport::Transport;
use crate::reply::Line;
use crate::target::MAX_URL;

/// The most that hyper buffers of one HTTP/1 connection: the longest head with every byte of its URL masked, or what of a
/// body is on its way.
const BUFFER: usize = MAX_HEAD + 3 * MAX_URL;

/// The most that hyper buffers of what goes out on one HTTP/2 stream; its own 400 KiB would be 100 MiB a connection.
const SEND_BUFFER: usize = 64 * 1024;

/// Requests at once on one HTTP/2 connection. Resolvers open a hundred; a flood stops here.
const STREAMS: u32 = 256;

/// What a client may send on one stream, and on all of them, before larder has passed it on: uploads need more than the
/// 64 KiB of RFC 9113 §6.9.2 to be quick, and memory bounds it from above.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A ping on a quiet HTTP/2 connection, and how long its answer may take.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// How long an idle connection may take to close in peace.
const FAREWELL: Duration = Duration::from_secs(1);

/// HTTP/1 for the listener itself. Timeouts are [`Watch`]'s.
pub(crate) fn outer() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).max_headers(MAX_FIELDS);
    builder.preserve_header_case(true).header_read_timeout(None);
    // busybox's wget asks a proxy for an https URL without CONNECT, and closes its half of the connection behind the
    // request, as it would its helper's: it still waits for the answer. Who has left altogether is noticed when the answer
    // is written.
    builder.half_close(true);
    builder
}

/// HTTP/1 and HTTP/2 for the inside of a tunnel.
pub(crate) fn inner() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(BUFFER).max_headers(MAX_FIELDS);
    builder.http1().preserve_header_case(true).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Whatever ends a connection besides the client.
pub(crate) struct Watch {
    pub(crate) activity: Arc<Activity>,
    pub(crate) line: Line,
    pub(crate) patience: Patience,
    pub(crate) drain: CancellationToken,
}

impl Watch {
    /// Over `client`, before the transport is given away.
    pub(crate) fn over(client: &Transport, patience: Patience, drain: &CancellationToken) -> Self {
        Self {
            activity: Arc::clone(client.activity()),
            line: client.line().clone(),
            patience,
            drain: drain.clone(),
        }
    }

    /// Serves a connection to its end: the client's, a lapse, or the drain's, for which `farewell` is the connection's
    /// `graceful_shutdown`.
    pub(crate) async fn drive<C, E>(self, connection: C, farewell: fn(Pin<&mut C>))
    where
        C: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut connection = pin!(connection);
        let mut lapse = pin!(self.activity.lapse(self.patience));
        let mut draining = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        let error: Box<dyn Error + Send + Sync> = error.into();
                        tracing::debug!(%error, "a client connection ended early");
                    }
                    return;
                }
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    farewell(connection.as_mut());
                }
                lapse = &mut lapse => {
                    tracing::debug!(?lapse, "a client connection is closed");
                    match lapse {
                        Lapse::Idle => {
                            farewell(connection.as_mut());
                            // Whether it ended in peace or not, it is dropped now.
                            drop(timeout(FAREWELL, connection).await);
                        }
                        Lapse::Header => {}
                        // What the client has is not whole.
                        Lapse::Stalled => self.line.cut(),
                    }
                    return;
                }
            }
        }
    }
}
