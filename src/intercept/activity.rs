//! What a client connection is doing, and when it has done nothing for too long.
//!
//! hyper's own header timeout starts while it waits for a request. A limit short enough against a client that sends a header byte
//! by byte would also close every idle connection. And nothing in hyper ends a connection whose client has stopped reading. So
//! the three cases are told apart here, from outside: the transport counts bytes, the service counts requests.
//!
//! A request that waits for its origin has no time limit: long polls and event streams may be silent for hours. TCP keep-alive
//! and HTTP/2 pings find a dead peer. A request whose client takes no byte of an available answer has one
//! (`clients.stall_timeout`). In HTTP/1 the socket shows that; in HTTP/2 the sign is that hyper does not poll the body although
//! the socket accepts bytes. A stalled stream releases its source, and fails if it is polled again; if nothing else runs on the
//! connection, the connection is reset. Pings and other frames do not count as progress of a stream.
//!
//! Bytes that were handed to hyper and not yet written to the socket are counted for the client's address, and bounded there:
//! with many streams whose windows are nearly closed they would be gigabytes.

use std::future::Future as _;
use std::mem::replace;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

use super::buffered::Buffered;
use crate::config::Clients;
use crate::outcome::cause::{Cause, Why};
use crate::reply::{Body, Cut};

/// How long an answer must stall before its connection may be reset to make room for another request of the same address.
const STANDS_STILL: Duration = Duration::from_secs(10);

/// The longest interval between two checks of a connection; a stall is found this soon.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long an answer waits before it checks again whether its address may buffer more.
const FULL: Duration = Duration::from_millis(20);

/// The zero of [`Activity::quiet_since`].
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counters of one TCP connection. They only drive timeouts, so they need no ordering.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Bytes from the client.
    read: AtomicU64,
    /// Bytes to the client.
    written: AtomicU64,
    /// Whether the last write found the socket's send buffer full.
    blocked: AtomicBool,
    /// The number of requests so far.
    requests: AtomicU64,
    /// The number of requests being answered.
    running: AtomicUsize,
    /// The value of `read` when the last answer ended. If `read` is greater, the next request has begun.
    heard: AtomicU64,
    /// When the connection began, or when its last answer ended, in milliseconds. For a tunnel: when a byte last moved in it.
    quiet_since: AtomicU64,
    /// Whether the connection is a tunnel: its bytes are only copied, so larder cannot tell where an answer ends.
    tunnel: AtomicBool,
    /// In a tunnel: whether the client sent the last bytes. Then the server may still be working on its answer.
    asks: AtomicBool,
    /// Bytes of bodies that were handed to hyper and not written to the socket. Other writes (headers, pings) also reduce this
    /// count, so it is a little too low.
    held: AtomicU64,
    /// The answers that are being sent.
    answers: Mutex<Vec<Weak<Mutex<Answer>>>>,
    /// How many of them were stalled at the last check.
    standing: AtomicUsize,
    /// The client address to which the connection belongs; `None` in some tests.
    buffered: Option<Arc<Buffered>>,
}

/// An answer that is being sent.
#[derive(Debug)]
struct Answer {
    /// `None` once it was abandoned because the client did not take it.
    body: Option<Body>,
    /// How often hyper has polled it.
    asked: u64,
    /// Whether it waits for bytes of its source, or for room: then its client is not the cause.
    waits: bool,
    /// The value of `asked` at the last check, and since when it has had that value.
    seen: (u64, Option<Instant>),
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lapse {
    /// No request for too long: it is closed properly.
    Idle,
    /// A request began, and its header did not end.
    Header,
    /// The client reads nothing although there are bytes for it.
    Stalled,
}

/// The kinds of quiet connections, in the order in which they are closed to make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quiet {
    /// HTTP between two requests. If it is closed, the client opens another.
    Kept,
    /// A tunnel in which the server sent the last bytes, or no byte has moved yet.
    Tunnel,
    /// A tunnel in which the client sent the last bytes: it may be waiting for an answer.
    Asking,
}

/// The time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the header of a request, once it has begun. `None` for HTTP/2, where bytes alone (pings) do not begin a request.
    pub(crate) header: Option<Duration>,
    /// Without a request.
    pub(crate) idle: Duration,
    /// Without progress, while there are bytes to take.
    pub(crate) stall: Duration,
}

impl Patience {
    pub(crate) fn of(clients: &Clients, multiplexed: bool) -> Self {
        Self {
            header: (!multiplexed).then_some(clients.header_timeout),
            idle: clients.idle_timeout,
            stall: clients.stall_timeout,
        }
    }
}

impl Activity {
    /// For a connection that begins now.
    pub(crate) fn of(buffered: Arc<Buffered>) -> Self {
        let mut activity = Self::default();
        activity.quiet_since = AtomicU64::new(now());
        activity.buffered = Some(buffered);
        activity
    }

    /// Since when no request is being answered, or no byte has moved in a tunnel, for comparing connections.
    pub(crate) fn quiet_since(&self) -> u64 {
        self.quiet_since.load(Relaxed)
    }

    /// From now on, until it ends, the connection is a tunnel. `asks`: bytes of the client wait to be copied.
    pub(crate) fn tunnels(&self, asks: bool) {
        self.quiet_since.store(now(), Relaxed);
        self.asks.store(asks, Relaxed);
        self.tunnel.store(true, Relaxed);
    }

    /// Whether the connection is a tunnel.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.tunnel.load(Relaxed)
    }

    /// The kind of quiet connection that it is; `None` while a request is being answered.
    pub(crate) fn quiet(&self) -> Option<Quiet> {
        match (self.is_tunnel(), self.asks.load(Relaxed)) {
            (true, true) => Some(Quiet::Asking),
            (true, false) => Some(Quiet::Tunnel),
            (false, _) => (!self.is_answering()).then_some(Quiet::Kept),
        }
    }

    /// How many answers are stalled.
    pub(crate) fn standing(&self) -> usize {
        self.standing.load(Relaxed)
    }

    /// Whether no request has arrived.
    pub(crate) fn is_unused(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    pub(crate) fn note_read(&self, count: usize) {
        self.read.fetch_add(count as u64, Relaxed);
        self.note_moved(true);
    }

    /// Notes that bytes moved, if the connection is a tunnel. `asks`: they came from the client.
    fn note_moved(&self, asks: bool) {
        if self.is_tunnel() {
            self.quiet_since.store(now(), Relaxed);
            self.asks.store(asks, Relaxed);
        }
    }

    pub(crate) fn note_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Relaxed);
        self.note_moved(false);
        self.blocked.store(false, Relaxed);
        // Only the connection's own task writes, so no other task reduces this count at the same time.
        let held = self.held.load(Relaxed);
        if held > 0 {
            let taken = held.min(count as u64);
            self.held.fetch_sub(taken, Relaxed);
            if let Some(buffered) = &self.buffered {
                buffered.remove(taken);
            }
        }
    }

    fn hand_over(&self, bytes: usize) {
        let Some(buffered) = &self.buffered else { return };
        self.held.fetch_add(bytes as u64, Relaxed);
        buffered.add(bytes as u64);
    }

    fn is_full(&self) -> bool {
        // A connection without buffered bytes may always have the next piece.
        self.held.load(Relaxed) > 0
            && self.buffered.as_ref().is_some_and(|buffered| buffered.is_full())
    }

    pub(crate) fn note_blocked(&self) {
        self.blocked.store(true, Relaxed);
    }

    /// The number of bytes from the client and to the client.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.read.load(Relaxed), self.written.load(Relaxed))
    }

    /// Whether a request is being answered.
    pub(crate) fn is_answering(&self) -> bool {
        self.running.load(Relaxed) > 0
    }

    /// Notes that the bytes so far begin no request: they were a TLS handshake.
    pub(crate) fn all_heard(&self) {
        self.heard.store(self.read.load(Relaxed), Relaxed);
    }

    /// A request has arrived; it counts as being answered until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.requests.fetch_add(1, Relaxed);
        self.running.fetch_add(1, Relaxed);
        Running { activity: Arc::clone(self), place: None }
    }

    /// Returns when the connection has done nothing for too long. It checks four times within the shortest limit, so a limit may
    /// be exceeded by a quarter. In return, moving bytes costs no timer.
    pub(crate) async fn lapse(&self, patience: Patience) -> Lapse {
        let shortest = patience.idle.min(patience.stall);
        let shortest = patience.header.map_or(shortest, |header| header.min(shortest));
        let tick = (shortest / 4).clamp(Duration::from_millis(5), LOOK_EVERY);
        let (mut idle_since, mut begun_at, mut stalled_since) = (Instant::now(), None, None);
        let (mut requests, mut written) = (0, 0);
        loop {
            sleep(tick).await;
            let now = Instant::now();

            let blocked = self.blocked.load(Relaxed);
            let progress = replace(&mut written, self.written.load(Relaxed)) != written;
            if !blocked || progress {
                stalled_since = None;
            } else if *stalled_since.get_or_insert(now) + patience.stall <= now {
                return Lapse::Stalled;
            }
            if self.look_at_answers(now, blocked && progress, patience.stall) {
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

    /// Abandons the answers that have stalled for `stall`. Returns whether nothing else is being answered, so that the connection
    /// must be reset. If the socket is full and `moves`, every stream is only waiting for its turn.
    fn look_at_answers(&self, now: Instant, moves: bool, stall: Duration) -> bool {
        let answers: Vec<Arc<Mutex<Answer>>> = {
            let mut answers = lock(&self.answers);
            answers.retain(|answer| answer.strong_count() > 0);
            answers.iter().filter_map(Weak::upgrade).collect()
        };
        let (mut standing, mut stalled) = (0, Vec::new());
        for answer in &answers {
            let since = lock(answer).stands_since(now, moves);
            standing += usize::from(since.is_some_and(|since| since + STANDS_STILL <= now));
            if since.is_some_and(|since| since + stall <= now) {
                stalled.push(answer);
            }
        }
        self.standing.store(standing, Relaxed);
        // An answer that has just ended may still be in the send buffer, which a reset would discard.
        let ended = Duration::from_millis(self::now().saturating_sub(self.quiet_since()));
        if !stalled.is_empty() && stalled.len() >= self.running.load(Relaxed) && ended >= stall {
            return true;
        }
        for answer in stalled {
            // Bound to a variable first, because dropping the body may take other locks.
            let given_up = lock(answer).body.take();
            drop(given_up);
        }
        false
    }

    /// Returns when no byte has moved in either direction for `idle` (at most twice that time).
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

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(buffered) = &self.buffered {
            buffered.remove(*self.held.get_mut());
        }
    }
}

impl Answer {
    /// Since when it has waited for its client; `None` if it does not.
    fn stands_since(&mut self, now: Instant, moves: bool) -> Option<Instant> {
        let (asked, since) = self.seen;
        let goes_on = self.waits || moves || asked != self.asked;
        let since = match since {
            Some(since) if !goes_on || self.body.is_none() => since,
            Some(_) | None => now,
        };
        self.seen = (self.asked, Some(since));
        (!goes_on || self.body.is_none()).then_some(since)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Running {
    activity: Arc<Activity>,
    place: Option<OwnedSemaphorePermit>,
}

impl Running {
    /// Holds the request's place among those of its address until the request was answered.
    pub(crate) fn takes(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// The answer switches to another protocol (101): from now on the connection is a tunnel.
    pub(crate) fn switches(&self) {
        self.activity.tunnels(false);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let activity = &self.activity;
        activity.all_heard();
        activity.quiet_since.store(now(), Relaxed);
        activity.running.fetch_sub(1, Relaxed);
    }
}

/// Milliseconds since larder began.
pub(super) fn now() -> u64 {
    let since = Instant::now().saturating_duration_since(*BEGINNING);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body that keeps its request running until the body was sent or abandoned.
#[derive(Debug)]
pub(crate) struct Counted {
    answer: Arc<Mutex<Answer>>,
    running: Running,
    /// The timer until the next check whether more may be buffered.
    full: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    pub(crate) fn new(body: Body, running: Running) -> Self {
        // A body at its end needs no checks; most answers to HEAD, and 304s, are such bodies.
        let is_given = body.is_end_stream();
        let answer = Answer { body: Some(body), asked: 0, waits: false, seen: (0, None) };
        let answer = Arc::new(Mutex::new(answer));
        if !is_given {
            lock(&running.activity.answers).push(Arc::downgrade(&answer));
        }
        Self { answer, running, full: None }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Self { answer, running, full } = &mut *self;
        let mut answer = lock(answer);
        answer.asked += 1;
        answer.waits = true;
        while running.activity.is_full() {
            let wait = full.get_or_insert_with(|| Box::pin(sleep(FULL)));
            if wait.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            *full = None;
        }
        *full = None;
        let Some(body) = &mut answer.body else {
            let why = "its client took nothing of it for too long (clients.stall_timeout)";
            return Poll::Ready(Some(Err(Cut(Why::new(Cause::Stalled, why)))));
        };
        let polled = Pin::new(body).poll_frame(cx);
        answer.waits = polled.is_pending();
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
        {
            running.activity.hand_over(bytes.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.answer).body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.answer).body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
