//! A client's connection as hyper sees it: larder judges and repairs each head first (`head`), and follows each body to its end
//! (`framing`).
//!
//! ```text
//! socket ─▶ Heads ─▶ hyper ─▶ service
//!             │ one head at a time         │ takes a refusal in the place of a request that was none
//!             └────────── Verdicts ────────┘ says whether the connection was switched to another protocol
//! ```
//!
//! A head that is refused is replaced by an empty request, the last one of its connection, and the service answers that request
//! with the reason. The service recognises it by its number, so that no client can forge it. At most one head is in memory.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::{Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::grant::Refusal;
use super::head::{self, Bad, Judged};
use crate::outcome::cause::Cause;
use crate::stream::framing::Framing;
use crate::stream::{Watch, Watched, end_of_head};

/// The longest head, in bytes. Servers accept from 8 KiB to a few hundred; cookies and tokens have reached about 100 KiB.
pub(crate) const MAX_HEAD: usize = 128 * 1024;

/// While a head longer than this arrives, its connection holds one of the places in [`LONG`].
const SHORT: usize = 16 * 1024;

/// The most long heads at a time, in the whole process. This bounds the memory that connections which never end their heads can
/// hold.
static LONG: Semaphore = Semaphore::const_new(128);

/// How much of a head that is too long is read and dropped: a client that is still sending does not read the answer.
const PATIENCE: usize = 1024 * 1024;

/// HTTP/2's connection preface, up to its first empty line (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// The state that [`Heads`] and the service behind hyper share.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// The number of requests that the service has begun to answer.
    begun: u64,
    /// The number of the request that stands for a refused head, and the reason.
    refused: Option<(u64, Refusal)>,
    /// The last request that was answered, and whether the connection has carried another protocol since.
    answered: (u64, bool),
    waiting: Option<Waker>,
}

impl Verdicts {
    /// The service begins with the next request. Returns its number, or why it is refused.
    pub(crate) fn begin(&self) -> Result<u64, Refusal> {
        let mut said = self.said();
        said.begun += 1;
        match said.refused.take() {
            Some((number, refusal)) if number == said.begun => Err(refusal),
            refused => {
                said.refused = refused;
                Ok(said.begun)
            }
        }
    }

    /// The request with this number was answered with `response`.
    pub(crate) fn end<B>(&self, number: u64, method: &Method, response: &Response<B>) {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || *method == Method::CONNECT && response.status().is_success();
        let mut said = self.said();
        // HTTP/2 answers many requests at a time, but never switches protocols.
        said.answered = (number, switches);
        if let Some(waiting) = said.waiting.take() {
            waiting.wake();
        }
    }

    fn poll_answered(&self, number: u64, cx: &Context<'_>) -> Poll<bool> {
        let mut said = self.said();
        if said.answered.0 == number {
            return Poll::Ready(said.answered.1);
        }
        said.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes next on the connection.
#[derive(Debug)]
enum State {
    /// A head. The unread bytes up to this count contain no end of it.
    Head(usize),
    /// The rest of a body, and whether the connection may switch protocols after it.
    Body(Framing, bool),
    /// Nothing, until it is known whether the connection switches protocols.
    Deciding,
    /// Another protocol, which is passed through unread.
    Through,
    /// The rest of a head that is too long, and the number of bytes dropped so far.
    TooLong(usize),
    /// Nothing more.
    Over,
}

/// A client's connection as hyper sees it.
#[derive(Debug)]
pub(crate) struct Heads {
    /// Bytes that have arrived and were not judged.
    unread: BytesMut,
    /// Bytes for hyper.
    ready: Bytes,
    state: State,
    /// The number of heads so far.
    number: u64,
    /// Whether the connection may begin with HTTP/2.
    takes_h2: bool,
    verdicts: Arc<Verdicts>,
    /// The place of a long head, in [`LONG`].
    long: Option<SemaphorePermit<'static>>,
}

impl Heads {
    /// Wraps `io`. `takes_h2`: the connection may turn out to be HTTP/2.
    pub(crate) fn over<I>(io: I, takes_h2: bool) -> Watched<I, Self> {
        let watch = Self {
            unread: BytesMut::new(),
            ready: Bytes::new(),
            state: State::Head(0),
            number: 0,
            takes_h2,
            verdicts: Arc::default(),
            long: None,
        };
        Watched { io, watch }
    }

    /// The state shared with the service.
    pub(crate) fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// The bytes that have arrived and that hyper has not read.
    pub(crate) fn left(self) -> Bytes {
        let mut left = BytesMut::from(&*self.ready);
        left.extend_from_slice(&self.unread);
        left.freeze()
    }

    /// Judges the unread bytes, which contain no end of a head before `seen`. Returns whether there is something for hyper or
    /// another state.
    fn look(&mut self, seen: usize) -> bool {
        let empty_lines = self.unread.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        self.unread.advance(empty_lines);
        let seen = seen.saturating_sub(empty_lines);
        if self.unread.is_empty() {
            self.state = State::Head(0);
            return false;
        }
        let Some(end) = end_of_head(&self.unread, seen) else {
            return self.look_at_part();
        };
        self.long = None;
        if self.takes_h2 && self.number == 0 && self.unread.starts_with(PREFACE) {
            self.state = State::Through;
        } else if end > MAX_HEAD {
            self.refuse(too_long());
        } else {
            let head = self.unread.split_to(end);
            self.take(head);
        }
        true
    }

    /// Like [`Self::look`], for a head that has not ended.
    fn look_at_part(&mut self) -> bool {
        if !head::may_be_one(&self.unread) {
            self.refuse(Bad {
                status: StatusCode::BAD_REQUEST,
                why: "what came is no request of HTTP; larder's port takes HTTP, and https by CONNECT"
                    .to_owned(),
            });
            return true;
        }
        if self.unread.len() > MAX_HEAD {
            self.state = State::TooLong(0);
            return true;
        }
        if self.unread.len() > SHORT && self.long.is_none() {
            self.long = LONG.try_acquire().ok();
            if self.long.is_none() {
                let size = SHORT / 1024;
                let why = format!(
                    "too many requests with heads of more than {size} KiB are arriving; try again"
                );
                self.refuse(Bad { status: StatusCode::SERVICE_UNAVAILABLE, why });
                return true;
            }
        }
        self.state = State::Head(self.unread.len());
        false
    }

    /// Takes a complete head.
    fn take(&mut self, head: BytesMut) {
        match head::judge(&head) {
            Err(bad) => {
                self.unread.clear();
                let method = if head.starts_with(b"HEAD ") { Method::HEAD } else { Method::GET };
                self.refuse_to(&method, bad);
            }
            Ok(mut judged) => {
                self.ready = match judged.line.take() {
                    None => head.freeze(),
                    Some(line) => {
                        let first =
                            head.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                        let rest = head.get(first..).unwrap_or_default();
                        [line.as_bytes(), rest].concat().into()
                    }
                };
                self.follow(judged);
            }
        }
    }

    /// Prepares the state for what follows a head that goes to hyper.
    fn follow(&mut self, judged: Judged) {
        self.number += 1;
        self.state = match judged.body {
            Some(body) => State::Body(body, judged.may_switch),
            None => behind(judged.may_switch),
        };
    }

    fn refuse(&mut self, bad: Bad) {
        self.unread.clear();
        self.refuse_to(&Method::GET, bad);
    }

    fn refuse_to(&mut self, method: &Method, bad: Bad) {
        let Bad { status, why } = bad;
        let busy = status == StatusCode::SERVICE_UNAVAILABLE;
        let cause = if busy { Cause::Limit } else { Cause::Malformed };
        self.number += 1;
        self.verdicts.said().refused = Some((self.number, Refusal::refused(status, cause, why)));
        self.ready =
            format!("{method} / HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n").into();
        self.state = State::Over;
        self.long = None;
    }
}

impl Heads {
    /// Reads more bytes into `unread`; 0 at the end.
    fn poll_more<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.unread.reserve(4096);
        let reading = std::pin::pin!(io.read_buf(&mut self.unread));
        reading.poll(cx)
    }

    /// Reads the start of a head directly into hyper's buffer. Most heads arrive alone and complete, and need no copy. Returns
    /// whether hyper has something, or the connection has ended.
    fn poll_head<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let start = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        let came = buf.filled().get(start..).unwrap_or_default();
        if came.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let is_head = end_of_head(came, 0) == Some(came.len())
            && came.first().is_some_and(u8::is_ascii_graphic)
            && !came.starts_with(PREFACE);
        if is_head
            && let Ok(judged) = head::judge(came)
            && judged.line.is_none()
        {
            self.follow(judged);
            return Poll::Ready(Ok(true));
        }
        self.unread.extend_from_slice(came);
        buf.set_filled(start);
        self.look(0);
        Poll::Ready(Ok(false))
    }

    /// Reads more of a body directly into hyper's buffer.
    fn poll_body<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        let came = buf.filled().get(start..).unwrap_or_default();
        let taken = self.advance(came)?;
        self.unread.extend_from_slice(came.get(taken..).unwrap_or_default());
        buf.set_filled(start + taken);
        Poll::Ready(Ok(()))
    }

    /// How many of `bytes` belong to the body.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Body(body, may_switch) = &mut self.state else { return Ok(0) };
        let taken = body.advance(bytes)?;
        if body.is_over() {
            self.state = behind(*may_switch);
        }
        Ok(taken)
    }

    /// Drops more of a head that is too long, until its end.
    fn poll_too_long<I: AsyncRead + Unpin>(
        &mut self,
        dropped: usize,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let is_over = end_of_head(&self.unread, 0).is_some() || dropped > PATIENCE;
        // The end of the head may be split across two reads, so the last 3 bytes stay.
        let rest = self.unread.len().saturating_sub(3);
        self.unread.advance(rest);
        self.state = State::TooLong(dropped + rest);
        if is_over || ready!(self.poll_more(io, cx))? == 0 {
            self.refuse(too_long());
        }
        Poll::Ready(Ok(()))
    }
}

fn behind(may_switch: bool) -> State {
    if may_switch { State::Deciding } else { State::Head(0) }
}

fn too_long() -> Bad {
    Bad {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        why: format!("the request's head is longer than {} KiB", MAX_HEAD / 1024),
    }
}

impl<I: AsyncRead + Unpin> Watch<I> for Heads {
    fn poll_read(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.ready.is_empty() {
                let count = self.ready.len().min(buf.remaining());
                buf.put_slice(&self.ready.split_to(count));
                return Poll::Ready(Ok(()));
            }
            match self.state {
                State::Over => return Poll::Pending,
                State::Deciding => {
                    let switches = ready!(self.verdicts.poll_answered(self.number, cx));
                    self.state = if switches { State::Through } else { State::Head(0) };
                }
                State::Through if self.unread.is_empty() => {
                    return Pin::new(io).poll_read(cx, buf);
                }
                State::Through => self.ready = std::mem::take(&mut self.unread).freeze(),
                State::Body(..) if self.unread.is_empty() => return self.poll_body(io, cx, buf),
                State::Body(..) => {
                    let unread = std::mem::take(&mut self.unread);
                    let taken = self.advance(&unread)?;
                    self.unread = unread;
                    self.ready = self.unread.split_to(taken).freeze();
                }
                State::TooLong(dropped) => ready!(self.poll_too_long(dropped, io, cx))?,
                State::Head(_) if self.unread.is_empty() => {
                    if ready!(self.poll_head(io, cx, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Head(seen) => {
                    // Bytes that arrived with the previous request are judged before more are read.
                    let is_next = seen < self.unread.len() && self.look(seen);
                    if is_next || self.unread.is_empty() {
                        continue;
                    }
                    if ready!(self.poll_more(io, cx))? == 0 {
                        // The client left within a head, so there is nobody to answer.
                        self.unread.clear();
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}
