//! Promise P3 for bodies that stream to one client because no promise bound them when they began. An index that promises such a
//! body may be read while the body arrives.
//!
//! So larder checks for a promise before each piece, and before the end of a body without an announced length. Once a promise
//! binds the body, it is held back by the gap of its target (`flight/late.rs`) and judged like a pass that was bound from its start
//! (`bound.rs`). A body whose URL looks like that of an artifact or an index may be promised later, so it is hashed from its first
//! byte, and what is given of it is noted in the gap. A body that is only a part, or has a content coding, cannot be judged. It is
//! cut off; when the client requests it again, it is held back from the start. As long as no promise binds a body, nothing of it is
//! withheld.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, header};

use super::Pipeline;
use super::bound::{Bound, Fault, promised_meanwhile};
use super::content_coding::is_coded;
use super::lookup::Stored;
use super::task::Task;
use crate::clock::Time;
use crate::digest::{Algorithm, Digest, Digests, Hashing};
use crate::entry::Head;
use crate::flight::{self, Agreement, Agrees, Binding, Binds, Flight, Late, Place};
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::{Body, Cut, Line, Source};
use crate::store::{Blob, CHUNK};
use crate::verify::Finding;

/// How many bytes are hashed at a time. Fewer are not worth handing to another thread.
const BATCH: usize = 128 << 10;

/// The most bytes of one body that wait in memory for its judgement. If the gap lies at the end, fewer bytes wait. If the gap has
/// moved further up, more would have to wait, and the body is cut off.
const MOST_WAITING: u64 = 256 << 10;

/// The request whose answer is passed on to one client.
pub(super) struct Passed<'a> {
    pub(super) task: &'a Task,
    pub(super) client: IpAddr,
    pub(super) reason: PassReason,
    /// The client's `Range`, if it was sent on.
    pub(super) range: Option<HeaderValue>,
    /// The means to end the client's connection with a reset.
    pub(super) line: Option<Line>,
}

impl Pipeline {
    /// Watches the body of `response`, and holds it back as soon as a promise binds it. `response` is the answer to a client's
    /// GET, and no promise binds its body so far.
    pub(super) fn hold_when_promised(
        self: &Arc<Self>,
        passed: Passed<'_>,
        response: Response<Body>,
    ) -> Response<Body> {
        if !response.status().is_success() || response.body().is_end_stream() {
            return response;
        }
        let Passed { task, client, reason, range, line } = passed;
        let bound = self.bound_by(task, client, reason);
        let head = judged_by(&response);
        let whole = head.status != StatusCode::PARTIAL_CONTENT && !is_coded(&head);
        let known = task.may_be_promised();
        // The digest in the name may come to be believed.
        let named = self.expectation_of(&bound.task).algorithms();
        let wanted = || bound.task.wanted(named.with(Algorithm::Sha512));
        let hashing = (whole && known).then(|| Hashing::new(wanted()));
        let length = response.body().size_hint().exact().or_else(|| announced(&response));
        let gaps = self.flights.gaps();
        let late = known
            .then(|| gaps.join_unbound(bound.task.bare(), place(&head, range.as_ref(), length)));
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
                late,
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

impl Pipeline {
    /// Where the bytes of a stored body come from: `blob`, of which `chunk` was read. If no promise vouches for the body, one may
    /// come while it is given, or after its client left.
    pub(super) fn source_of(
        self: &Arc<Self>,
        task: &Task,
        stored: &Stored,
        blob: Arc<Blob>,
        chunk: Option<(u64, Bytes)>,
    ) -> Source {
        let size = stored.entry.size;
        // A body of one chunk is given at once.
        if stored.proof.rank.is_strong() || !task.may_be_promised() || size <= CHUNK {
            return Source::Blob(blob, chunk);
        }
        let agrees = self.later_agreement(task, stored.entry.digests.clone(), size);
        let decodes = self.later_decoding(task, &stored.entry.head, &blob);
        let unvouched = self.flights.gaps().watch_stored(task.bare(), size, agrees, decodes);
        Source::Unvouched(blob, chunk, Box::new(unvouched))
    }

    /// The body of a fill is complete, and no promise vouches for it. One may come while clients still read it.
    pub(super) fn compare_later(
        self: &Arc<Self>,
        task: &Task,
        flight: &Flight,
        digests: &Digests,
        size: u64,
    ) {
        if task.may_be_promised() && size > flight::HELD_WHOLE {
            let digests = digests.iter().copied().collect();
            flight.compare_later(self.later_agreement(task, digests, size));
        }
    }

    /// The body of `flight` begins. If it is held back whole, it is given as far as it is the same as one that was judged right.
    pub(super) async fn compare_with_judged(self: &Arc<Self>, task: &Task, flight: &Flight) {
        let agreeing = |digests, size| self.later_agreement(task, digests, size);
        flight.compare_with_judged(agreeing).await;
    }

    /// What the promises say by now about a complete body. They are looked up only when they may have changed.
    fn later_agreement(self: &Arc<Self>, task: &Task, digests: Vec<Digest>, size: u64) -> Agrees {
        // As with a fill: the body may be given longer than larder runs.
        let (pipeline, task) = (Arc::downgrade(self), task.clone());
        let known = Mutex::new(None);
        Arc::new(move || {
            let Some(pipeline) = pipeline.upgrade() else { return Agreement::Undecided };
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let state = (pipeline.store.generation(), pipeline.store.convention_changes());
            if let Some((at, agreement)) = *known
                && at == state
            {
                return agreement;
            }
            let expected = pipeline.expectation_of(&task);
            let agreement = match expected.find(&digests, size, Time::from_millis(i64::MIN)) {
                _ if !expected.binds() => Agreement::Undecided,
                Finding::Proven { proof, .. } if proof.rank.is_strong() => Agreement::Vouched,
                // The index that an excused body is of was superseded.
                Finding::Proven { .. } | Finding::Excused(_) => Agreement::Undecided,
                Finding::Doubted(_) => Agreement::Unread,
                Finding::Refused(_) => Agreement::Contradicted,
            };
            let lasts = matches!(agreement, Agreement::Undecided | Agreement::Vouched);
            *known = lasts.then_some((state, agreement));
            agreement
        })
    }
}

/// The head of an answer, for the judgement.
fn judged_by(response: &Response<Body>) -> Head {
    Head { status: response.status(), headers: response.headers().clone() }
}

/// The length in `Content-Length`, for a body whose size hint does not give it.
fn announced(response: &Response<Body>) -> Option<u64> {
    let name: HeaderName = header::CONTENT_LENGTH;
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

/// Where in the whole body the bytes of an answer with `length` bytes are. The client puts the bytes where it asked for them, and
/// an origin may say that they are elsewhere: then it is unknown where they are.
fn place(head: &Head, asked: Option<&HeaderValue>, length: Option<u64>) -> Place {
    if head.status != StatusCode::PARTIAL_CONTENT {
        return Place { start: Some(0), length };
    }
    // The answer may have several parts, and then says of none where it is.
    let range = head.text(&header::CONTENT_RANGE).unwrap_or_default();
    let (span, whole) = range.trim_start_matches("bytes ").split_once('/').unwrap_or_default();
    let start = span.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    let start = start.filter(|start| asked.and_then(asked_start) == Some(*start));
    Place { start, length: whole.trim().parse().ok() }
}

/// The offset of the first byte that a `Range` asks for, if it asks for one range and names that offset.
fn asked_start(range: &HeaderValue) -> Option<u64> {
    let (unit, ranges) = range.to_str().ok()?.split_once('=')?;
    let one = unit.trim().eq_ignore_ascii_case("bytes") && !ranges.contains(',');
    let (start, _) = ranges.split_once('-').filter(|_| one)?;
    start.trim().parse().ok()
}

/// A body on its way to its client.
struct Watched {
    body: Body,
    line: Option<Line>,
    /// Says whether a promise that binds the body has appeared.
    binds: Binds,
    bound: Arc<Bound>,
    head: Head,
    length: Option<u64>,
    /// `None`: the body cannot be judged.
    hashing: Option<Hashing>,
    unhashed: Vec<Bytes>,
    /// Bytes that have arrived and were not given yet.
    waiting: VecDeque<Bytes>,
    came: u64,
    given: u64,
    /// The share in the gap of the target; `None` if no promise is expected.
    late: Option<Late>,
    trailers: Option<HeaderMap>,
    /// The body has ended, and all bytes that still wait may be given.
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
                // The source of the body has cut the client's connection already.
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

    /// Takes in bytes that have arrived.
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

    /// Takes a share in the gap of the target, if a promise binds the body by now. `Err`: the body must be cut off.
    async fn bind_if_promised(&mut self) -> Result<(), Why> {
        if self.late.as_ref().is_some_and(Late::binds) {
            return Ok(());
        }
        let target = self.bound.task.bare();
        if self.bound.pipeline.flights.gaps().is_suspect(target) {
            let line = format!(
                "{target}: another body of it was refused meanwhile, or had been given too far when a promise came; ask again"
            );
            return Err(Why::new(Cause::Quarantine, line));
        }
        let binding = (self.binds)();
        if binding == Binding::No {
            return Ok(());
        }
        // A body that is cut off now is recorded as well: its client may resume.
        if let Some(mut late) = self.late.take() {
            let binding = tokio::task::spawn_blocking(move || {
                late.bind(binding);
                late
            });
            self.late = Some(binding.await.map_err(|_| self.undecided())?);
        }
        if self.late.is_none() || self.hashing.is_none() {
            return Err(self.undecided());
        }
        Ok(())
    }

    /// The whole body has arrived: judges it, if a promise binds it.
    async fn end(&mut self) -> Result<(), Why> {
        // If the length was announced and all bytes were given, the client has the whole body already.
        if self.length.is_none_or(|length| self.given < length) {
            self.bind_if_promised().await?;
        }
        let late = match self.late.take() {
            Some(late) if late.binds() => late,
            unbound => {
                self.late = unbound;
                self.leave(true);
                self.over = true;
                return Ok(());
            }
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
                // As with bodies that were bound from their start (held.rs): if no byte of an index was given, no client can
                // resume it.
                if !(self.bound.task.is_index() && self.given == 0) {
                    // If that thread panics, the share is dropped, and the body counts as not verified.
                    let _noted = tokio::task::spawn_blocking(move || late.refuse()).await;
                    self.bound.quarantine(&reason);
                }
                Err(Why::new(Cause::Promise, reason))
            }
            Err(Fault::Doubted(reason)) => Err(Why::new(Cause::Undecided, reason)),
        }
    }

    /// Gives up the share without a judgement. Of a part, or of a body that broke off, the client may ask for the rest. Of a
    /// complete body it may lack the end, which may still lie in buffers when the client leaves.
    fn leave(&mut self, complete: bool) {
        let Some(late) = self.late.take() else { return };
        let is_part = self.head.status == StatusCode::PARTIAL_CONTENT;
        if !late.binds() && self.given == 0 {
            late.gave_nothing();
        } else if !late.binds() && complete && !is_part {
            late.is_right(false);
        } else {
            late.broke_off(Arc::clone(&self.binds));
        }
    }

    fn undecided(&self) -> Why {
        Why::new(Cause::Undecided, promised_meanwhile(self.bound.task.bare()))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The server does not ask for the end of a body whose length it knows.
        let complete = self.length.is_some_and(|length| self.given >= length);
        self.leave(complete);
    }
}

/// The watched body, with the length that the original body had.
struct LateBody {
    frames: BoxStream<'static, Result<Frame<Bytes>, Cut>>,
    /// The number of bytes that are still to come, if known.
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
