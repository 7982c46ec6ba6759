//! What a client connection is doing, and when it has done nothing for too long.
//!
//! hyper's own header timeout begins with the wait for a request, so that a limit short enough against a client that
//! dribbles a header would also close every idle connection; and nothing in hyper ends a connection whose client
//! stopped reading. Here the three are told apart from outside: the transport counts bytes, the service counts requests.
//!
//! A request that is being answered is never timed: long polls and event streams may be silent for hours. A dead
//! peer is found by TCP keep-alive and HTTP/2 pings.

use std::mem::replace;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, sleep};

use crate::config::Clients;
use crate::reply::{Body, Cut};

/// Counters of one TCP connection. They guide timeouts only, so no ordering between them is needed.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Bytes from the client.
    read: AtomicU64,
    /// Bytes to the client.
    written: AtomicU64,
    /// The client's window is full.
    blocked: AtomicBool,
    /// Requests so far.
    requests: AtomicU64,
    /// Requests being answered.
    running: AtomicUsize,
    /// `read` when the last answer ended: more than that is the beginning of a next request.
    heard: AtomicU64,
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lapse {
    /// No request for too long: closed in peace.
    Idle,
    /// A request began and its header did not end.
    Header,
    /// The client reads nothing while there is something for it.
    Stalled,
}

/// How long is too long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the header of a request, once it has begun. `None`: bytes alone do not begin one (HTTP/2 pings).
    pub(crate) header: Option<Duration>,
    /// Without a request, or without progress.
    pub(crate) idle: Duration,
}

impl Patience {
    pub(crate) fn of(clients: &Clients, multiplexed: bool) -> Self {
        Self {
            header: (!multiplexed).then_some(clients.header_timeout),
            idle: clients.idle_timeout,
        }
    }
}

impl Activity {
    /// Whether no request has come.
    pub(crate) fn is_unused(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    pub(crate) fn note_read(&self, count: usize) {
        self.read.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn note_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Relaxed);
        self.blocked.store(false, Relaxed);
    }

    pub(crate) fn note_blocked(&self) {
        self.blocked.store(true, Relaxed);
    }

    /// Bytes from and to the client.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.read.load(Relaxed), self.written.load(Relaxed))
    }

    /// Whether a request is being answered.
    pub(crate) fn is_answering(&self) -> bool {
        self.running.load(Relaxed) > 0
    }

    /// What has come so far begins no request: it was a handshake.
    pub(crate) fn all_heard(&self) {
        self.heard.store(self.read.load(Relaxed), Relaxed);
    }

    /// A request has come; it is being answered until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.requests.fetch_add(1, Relaxed);
        self.running.fetch_add(1, Relaxed);
        Running(Arc::clone(self))
    }

    /// Returns when the connection has done nothing for too long. It looks four times within the shortest limit, so a
    /// limit may be exceeded by a quarter; in return, moving bytes costs no timer.
    pub(crate) async fn lapse(&self, patience: Patience) -> Lapse {
        let shortest = patience.header.map_or(patience.idle, |header| header.min(patience.idle));
        let tick = (shortest / 4).max(Duration::from_millis(5));
        let (mut idle_since, mut begun_at, mut stalled_since) = (Instant::now(), None, None);
        let (mut requests, mut written) = (0, 0);
        loop {
            sleep(tick).await;
            let now = Instant::now();

            let blocked = self.blocked.load(Relaxed);
            let progress = replace(&mut written, self.written.load(Relaxed)) != written;
            if !blocked || progress {
                stalled_since = None;
            } else if *stalled_since.get_or_insert(now) + patience.idle <= now {
                return Lapse::Stalled;
            }

            let asked = replace(&mut requests, self.requests.load(Relaxed)) != requests;
            if asked || blocked || self.is_answering() {
                (idle_since, begun_at) = (now, None);
                continue;
            }
            let begun = self.read.load(Relaxed) > self.heard.load(Relaxed);
            if let Some(header) = patience.header.filter(|_| begun) {
                if *begun_at.get_or_insert(now) + header <= now {
                    return Lapse::Header;
                }
            } else if idle_since + patience.idle <= now {
                return Lapse::Idle;
            }
        }
    }

    /// Returns when no byte has moved in either direction for `idle` (at most twice as long).
    pub(crate) async fn standstill(&self, idle: Duration) {
        let mut before = self.moved();
        loop {
            sleep(idle).await;
            let now = self.moved();
            if now == before {
                return;
            }
            before = now;
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        let Self(activity) = self;
        activity.all_heard();
        activity.running.fetch_sub(1, Relaxed);
    }
}

/// A body that keeps its request running until it has been sent or given up.
#[derive(Debug)]
pub(crate) struct Counted {
    body: Body,
    _running: Running,
}

impl Counted {
    pub(crate) fn new(body: Body, running: Running) -> Self {
        Self { body, _running: running }
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
