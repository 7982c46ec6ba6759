//! Promise P3 for bodies that go to one client as they come, because nothing was promised of them: an index that promises them may
//! be read while they arrive.
//!
//! So it is asked before each piece, and before an end that no length announces. From then on the body has its share in the gap of
//! its target (`flight/late.rs`) and is judged like a pass that was bound from its start (`bound.rs`). What may come to be promised,
//! files and indexes by their shape, is hashed from its first byte for that; what is no whole body in its own coding cannot
//! be judged, and is cut off: asked again, it is held from the start. Nothing is held back of what nobody promises.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderName};
use hyper::{Response, StatusCode, header};

use super::Pipeline;
use super::bound::{Bound, Fault, promised_meanwhile};
use super::content_coding::is_coded;
use super::task::Task;
use crate::digest::{Algorithm, Algorithms, Hashing};
use crate::ecosystem::Kind;
use crate::entry::Head;
use crate::flight::{self, Binds, Late};
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::{Body, Cut, Line};

/// How much is hashed at a time, in bytes: a thread is not worth less.
const BATCH: usize = 128 << 10;

/// The most that waits in memory for the judgement of one body, in bytes. A gap that lies at the end is less; behind one that lies
/// further up, the body is cut off.
const MOST_WAITING: u64 = 256 << 10;

/// For whom a body is, and how it came there.
pub(super) struct Passed<'a> {
    pub(super) task: &'a Task,
    pub(super) client: IpAddr,
    pub(super) reason: PassReason,
    /// The means to end the client's connection with a reset.
    pub(super) line: Option<Line>,
}

impl Pipeline {
    /// Holds a body from when it is promised on. `response`: the answer to a GET as its client is given it, of which nothing was
    /// promised so far.
    pub(super) fn hold_when_promised(
        self: &Arc<Self>,
        passed: Passed<'_>,
        response: Response<Body>,
    ) -> Response<Body> {
        if !response.status().is_success() || response.body().is_end_stream() {
            return response;
        }
        let Passed { task, client, reason, line } = passed;
        let bound = self.bound_by(task, client, reason);
        let head = judged_by(&response);
        let whole = head.status != StatusCode::PARTIAL_CONTENT && !is_coded(&head);
        let known = task.known().is_some_and(|known| match known.resource.kind {
            Kind::Artifact(_) => true,
            Kind::Index => !task.is_snapshot_root(),
        });
        let wanted = || bound.task.wanted(Algorithms::NONE.with(Algorithm::Sha512));
        let hashing = (whole && known).then(|| Hashing::new(wanted()));
        let length = response.body().size_hint().exact().or_else(|| announced(&response));
        let binds = self.later_promises(&bound.task);
        response.map(|body| {
            let watched = Watched {
                body,
                line,
                binds,
                bound,
                head,
                length,
                hashing,
                unhashed: Vec::new(),
                waiting: VecDeque::new(),
                came: 0,
                given: 0,
                late: None,
                trailers: None,
                over: false,
            };
            let frames = stream::unfold(Some(watched), |watched| async move {
                let mut watched = watched?;
                let frame = watched.next().await?;
                let next = frame.is_ok().then_some(watched);
                Some((frame, next))
            });
            LateBody { frames: frames.boxed(), left: length }.boxed_unsync()
        })
    }
}

/// What the judgement needs of an answer.
fn judged_by(response: &Response<Body>) -> Head {
    Head { status: response.status(), headers: response.headers().clone() }
}

/// The length that an answer announces, whose body does not say it.
fn announced(response: &Response<Body>) -> Option<u64> {
    let name: HeaderName = header::CONTENT_LENGTH;
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

/// A body on its way to its client.
struct Watched {
    body: Body,
    line: Option<Line>,
    /// Whether a promise has come.
    binds: Binds,
    bound: Arc<Bound>,
    head: Head,
    length: Option<u64>,
    /// `None`: it cannot be judged.
    hashing: Option<Hashing>,
    unhashed: Vec<Bytes>,
    /// What came and was not given yet.
    waiting: VecDeque<Bytes>,
    came: u64,
    given: u64,
    /// From when it is promised on.
    late: Option<Late>,
    trailers: Option<HeaderMap>,
    /// All of it came, and what still waits may be given.
    over: bool,
}

impl Watched {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Cut>> {
        loop {
            if let Some(bytes) = self.give() {
                return Some(Ok(Frame::data(bytes)));
            }
            if self.over {
                return self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)));
            }
            if self.came.saturating_sub(self.given) > MOST_WAITING {
                return Some(Err(self.cut(self.undecided())));
            }
            let taken = match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.take(bytes).await,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        Ok(())
                    }
                },
                // Who made the body has cut the line.
                Some(Err(cut)) => return Some(Err(cut)),
                None => self.end().await,
            };
            if let Err(why) = taken {
                return Some(Err(self.cut(why)));
            }
        }
    }

    fn cut(&self, why: Why) -> Cut {
        if let Some(line) = &self.line {
            line.cut_for(&why);
        }
        Cut(why)
    }

    /// The next bytes that may be given.
    fn give(&mut self) -> Option<Bytes> {
        let first = self.waiting.front_mut()?;
        let may = match &self.late {
            Some(late) => {
                late.give(self.given, self.given.saturating_add(first.len() as u64), self.came)
            }
            None => u64::MAX,
        };
        let count = usize::try_from(may.saturating_sub(self.given)).unwrap_or(usize::MAX);
        let bytes = first.split_to(count.min(first.len()));
        if first.is_empty() {
            self.waiting.pop_front();
        }
        self.given += bytes.len() as u64;
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Takes in bytes that came.
    async fn take(&mut self, bytes: Bytes) -> Result<(), Why> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.hashing.is_some() {
            self.unhashed.push(bytes.clone());
            if self.unhashed.iter().map(Bytes::len).sum::<usize>() >= BATCH {
                self.hash().await;
            }
        }
        self.came += bytes.len() as u64;
        self.waiting.push_back(bytes);
        self.bind_if_promised().await
    }

    async fn hash(&mut self) {
        let Some(mut hashing) = self.hashing.take() else { return };
        let pieces = std::mem::take(&mut self.unhashed);
        let hashed = tokio::task::spawn_blocking(move || {
            for piece in &pieces {
                hashing.update(piece);
            }
            hashing
        });
        self.hashing = hashed.await.ok();
    }

    /// Takes its share in the gap of its target, if it is promised by now.
    async fn bind_if_promised(&mut self) -> Result<(), Why> {
        if self.late.is_some() {
            return Ok(());
        }
        let target = self.bound.task.bare();
        let gaps = self.bound.pipeline.flights.gaps();
        if gaps.is_suspect(target) {
            let line = format!("{target}: another body of it was refused meanwhile; ask again");
            return Err(Why::new(Cause::Quarantine, line));
        }
        if !(self.binds)() {
            return Ok(());
        }
        if self.hashing.is_none() {
            return Err(self.undecided());
        }
        let (gaps, target) = (Arc::clone(gaps), target.clone());
        let (length, given) = (self.length, self.given);
        let joining = tokio::task::spawn_blocking(move || gaps.join_late(&target, length, given));
        self.late = Some(joining.await.map_err(|_| self.undecided())?);
        Ok(())
    }

    /// All of it came: it is judged, if it was promised.
    async fn end(&mut self) -> Result<(), Why> {
        // The end of an announced body was given with its last byte.
        if self.length.is_none_or(|length| self.given < length) {
            self.bind_if_promised().await?;
        }
        let Some(late) = self.late.take() else {
            self.over = true;
            return Ok(());
        };
        self.hash().await;
        let Some(hashing) = self.hashing.take() else { return Err(self.undecided()) };
        let finished = tokio::task::spawn_blocking(move || hashing.finish()).await;
        let digests = finished.map_err(|_| self.undecided())?;
        let body = flight::Body::Unstored(digests, self.came);
        match self.bound.judge(&self.head, &body).await {
            Ok(vouched) => {
                late.is_right(vouched);
                self.over = true;
                Ok(())
            }
            Err(Fault::Refused(reason)) => {
                // As with what was bound from its start (held.rs): of an index of which nothing was given nothing can be resumed.
                if !(self.bound.task.is_index() && self.given == 0) {
                    // If that thread is lost, the body counts as not verified all the same.
                    let _noted = tokio::task::spawn_blocking(move || late.refuse()).await;
                    self.bound.quarantine(&reason);
                }
                Err(Why::new(Cause::Promise, reason))
            }
            Err(Fault::Doubted(reason)) => Err(Why::new(Cause::Undecided, reason)),
        }
    }

    fn undecided(&self) -> Why {
        Why::new(Cause::Undecided, promised_meanwhile(self.bound.task.bare()))
    }
}

/// The same as a body of the length that it had.
struct LateBody {
    frames: BoxStream<'static, Result<Frame<Bytes>, Cut>>,
    /// Bytes that are still to come, if that is known.
    left: Option<u64>,
}

impl HttpBody for LateBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = Pin::new(&mut self.frames).poll_next(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let count = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.left = self.left.map(|left| left.saturating_sub(count));
        }
        polled
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
