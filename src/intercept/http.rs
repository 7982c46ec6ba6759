//! HTTP towards clients: how connections are served, and their limits.
//!
//! These settings apply to the outer connection (HTTP/1.1, proxy requests) and inside a tunnel (HTTP/1.1 or HTTP/2). Header case,
//! upgrades and every method are preserved. Input that hyper's strict HTTP/1 parser would refuse without an explanation does not
//! reach it ([`Heads`](super::heads::Heads)).

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

/// The most that hyper buffers of one HTTP/1 connection: the longest head with every byte of its URL masked, or the part of a
/// body that is being transferred.
const BUFFER: usize = MAX_HEAD + 3 * MAX_URL;

/// The most that hyper buffers of outgoing data on one HTTP/2 stream. Its default of 400 KiB would be 100 MiB for one connection.
const SEND_BUFFER: usize = 64 * 1024;

/// The most concurrent requests on one HTTP/2 connection. Dependency resolvers open a hundred; this stops a flood.
const STREAMS: u32 = 256;

/// How much a client may send on one stream, and on all streams together, before larder has passed it on. Fast uploads need more
/// than the 64 KiB of RFC 9113 §6.9.2; memory is the upper bound.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The interval of pings on a quiet HTTP/2 connection, and how long the answer may take.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// How long an idle connection may take to close properly.
const FAREWELL: Duration = Duration::from_secs(1);

/// HTTP/1 for the listener itself. [`Watch`] applies the timeouts.
pub(crate) fn outer() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).max_headers(MAX_FIELDS);
    builder.preserve_header_case(true).header_read_timeout(None);
    // busybox's wget sends a proxy an https URL without CONNECT, and shuts down its sending side after the request, as it does
    // with its TLS helper; it still waits for the answer. A client that has left completely is noticed when the answer is
    // written.
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

/// What may end a connection besides the client: a timeout, a cut reply, or a drain.
pub(crate) struct Watch {
    pub(crate) activity: Arc<Activity>,
    pub(crate) line: Line,
    pub(crate) patience: Patience,
    pub(crate) drain: CancellationToken,
}

impl Watch {
    /// Watches `client`. Must be called before the transport is moved away.
    pub(crate) fn over(client: &Transport, patience: Patience, drain: &CancellationToken) -> Self {
        Self {
            activity: Arc::clone(client.activity()),
            line: client.line().clone(),
            patience,
            drain: drain.clone(),
        }
    }

    /// Serves a connection until the client ends it, a timeout passes, or a drain begins. For a drain, `farewell` is the
    /// connection's `graceful_shutdown`.
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
                            // The connection is dropped now, whether it closed properly or not.
                            drop(timeout(FAREWELL, connection).await);
                        }
                        Lapse::Header => {}
                        // The client has a truncated answer, so the connection must end with a reset.
                        Lapse::Stalled => self.line.cut(),
                    }
                    return;
                }
            }
        }
    }
}
