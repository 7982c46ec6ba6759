//! A flight: one fill that several requests share.
//!
//! The first request for a target leads: it starts the fill, which runs as a task of its own, so that the fill continues if this
//! client leaves. All clients, the leader's included, read the growing spool file:
//!
//! ```text
//!            fill task ──append──▶ spool file ──▶ reader, reader, reader …
//!                │                     ▲                │ at most up to the gap (gap.rs)
//!                └── head, have, end ──┴── watch ───────┘
//! ```
//!
//! A reader that joins late starts at the beginning of the file. Bytes for which the store has no room go through a small window
//! in memory (window.rs); from then on no reader can join.

mod alike;
mod beside;
mod end;
mod flights;
mod gap;
mod intake;
mod judged;
mod late;
mod parts;
mod reader;
mod share;
#[cfg(test)]
mod share_tests;
mod stored;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod union;
mod window;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use alike::Alike;
pub use beside::{Beside, GivenRange};
pub use end::End;
pub use flights::{Flights, Lead, Permit};
use gap::Hold;
pub use gap::{GAP, HELD_WHOLE};
pub use intake::{
    Binding, Binds, Complete, Intake, Trouble, can_resume, continues, intake, take_in,
};
use late::Asking;
pub use late::{Late, Place};
use parts::Parts;
pub use parts::{Ahead, LEAST_PART};
pub use reader::{Broken, Opened, Reader};
pub use share::Gaps;
use share::{Share, Verdict};
use stored::Agreeing;
pub use stored::{Agreement, Agrees, Decodes, Unvouched};
use window::{Readers, Unkept};
pub use writer::Body;

use crate::clock::Time;
use crate::digest::BlobId;
use crate::entry::Head;
use crate::origin::Answer;
use crate::proof::Proof;
use crate::target::Target;

/// The head of the answer that a flight brings.
#[derive(Debug)]
pub struct Answered {
    /// Status and header fields.
    pub head: Head,
    /// The length, if the origin announced it.
    pub length: Option<u64>,
}

/// One fill that several requests share.
#[derive(Debug)]
pub struct Flight {
    /// The target that is fetched.
    pub target: Target,
    /// When it began. A request that needs a younger answer does not join.
    pub began: Time,
    /// Its share in the gap of its target.
    share: Arc<Share>,
    shared: Mutex<Shared>,
    /// Wakes readers and the writer at each change of `shared`.
    changed: watch::Sender<u64>,
    /// Wakes the writer when a reader of the window moved, began to wait, or left.
    moved: Notify,
    /// Says whether a promise that binds the body has appeared. Readers check it too: it also binds bytes that are in the file.
    asking: Asking,
    agreeing: Agreeing,
    handed: Mutex<Option<Answer>>,
}

/// How a body is held back until it is judged.
#[derive(Debug)]
struct BodyHold {
    /// Whether a promise binds the body.
    binds: bool,
    /// Whether it is held back: a promise binds it, or a body of its target was refused.
    held: bool,
    /// How much is held back, if `held`.
    hold: Hold,
    /// Whether bytes of it were given before it was judged.
    gave: bool,
}

/// Whether a promise with authority vouches for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vouched {
    No,
    Yes,
}

#[derive(Debug)]
struct Shared {
    answered: Option<Arc<Answered>>,
    file: Option<Arc<File>>,
    /// The number of bytes that have arrived.
    have: u64,
    /// The number of these bytes that are in the file. The rest is in the window.
    filed: u64,
    window: VecDeque<Bytes>,
    /// The offset of the window's first byte in the body.
    window_start: u64,
    /// The parts that are fetched ahead of the fill.
    parts: Parts,
    /// How the body is held back.
    holding: BodyHold,
    /// The body that this one is compared with, if it is held back whole.
    alike: Option<Alike>,
    /// The digests of its chunks, once it has arrived and if it was held back whole.
    chunks: Option<Vec<BlobId>>,
    /// The ranges that are given beside the fill. `None` once the body is being judged; then no range can be added.
    besides: Option<Vec<Arc<Beside>>>,
    /// The body was judged good: all of it may be given, with this proof.
    verified: bool,
    unkept: Unkept,
    /// A client was given the head, and will take the body that follows for the one that the head describes.
    told: bool,
    /// The origin answered that it fails (5xx, 429).
    failed: bool,
    vouched: Vouched,
    proof: Option<Proof>,
    end: Option<End>,
    /// The position of each reader. A reader that only waits for the end is positioned after the last byte.
    readers: Readers,
}

impl Flight {
    fn new(target: Target, began: Time, share: Share) -> Self {
        Self {
            target,
            began,
            share: Arc::new(share),
            shared: Mutex::new(Shared {
                answered: None,
                file: None,
                have: 0,
                filed: 0,
                window: VecDeque::new(),
                window_start: 0,
                parts: Parts::default(),
                holding: BodyHold { binds: false, held: false, hold: Hold::Gap, gave: false },
                alike: None,
                chunks: None,
                besides: Some(Vec::new()),
                verified: false,
                unkept: Unkept::Wait,
                told: false,
                failed: false,
                vouched: Vouched::No,
                proof: None,
                end: None,
                readers: Readers::default(),
            }),
            changed: watch::Sender::new(0),
            moved: Notify::new(),
            asking: Asking::default(),
            agreeing: Agreeing::default(),
            handed: Mutex::new(None),
        }
    }

    /// The head has arrived, and bytes will follow. `file` is where they can be read, unless the store is full from the start.
    /// `binds`: a promise binds the body. The limit of what may be given is written to disk before any byte is given.
    pub async fn begin(&self, answered: Answered, file: Option<Arc<File>>, binds: bool) {
        let (share, length) = (Arc::clone(&self.share), answered.length);
        let begin = move || share.begin(length, binds);
        let mut hold = if binds { off_thread(begin).await.unwrap_or(Hold::Whole) } else { begin() };
        if binds && file.is_none() && self.share.has_moved_gap() {
            // There is no place where the bytes beyond such a gap could wait for the judgement.
            hold = Hold::Whole;
        }
        let back = binds || self.share.is_suspect();
        self.update(|shared| {
            shared.answered = Some(Arc::new(answered));
            shared.file = file;
            shared.holding = BodyHold { binds, held: back, hold, ..shared.holding };
            (shared.alike, shared.chunks) = (None, None);
            shared.besides = Some(Vec::new());
            shared.parts = Parts::default();
        });
    }

    /// `count` more bytes are in the file.
    pub fn grew(&self, count: u64) {
        self.update(|shared| {
            shared.have += count;
            shared.filed += count;
        });
    }

    /// Starts over from the first byte, if no client was given a byte or the head; returns whether it did. The check and the
    /// reset are one step: a reader that came between them would get halves of two bodies, or one body under the other's head.
    pub fn restart(&self) -> bool {
        let mut shared = self.lock();
        let unspoilt = shared.nothing_given();
        if unspoilt {
            shared.have = 0;
            shared.filed = 0;
            shared.window.clear();
            shared.window_start = 0;
            shared.unkept = Unkept::Wait;
            shared.answered = None;
            shared.file = None;
            shared.parts = Parts::default();
        }
        drop(shared);
        self.wake();
        unspoilt
    }

    /// Whether no client was given a byte or the head.
    pub fn nothing_given(&self) -> bool {
        self.lock().nothing_given()
    }

    /// A body of its target was refused. Until a body of the target is verified, none of its bytes are given before their
    /// judgement, also after a restart.
    pub async fn suspect(&self) {
        let share = Arc::clone(&self.share);
        let _done = off_thread(move || share.refuse()).await;
    }

    /// Whether a body of its target was refused, and none was verified since.
    pub fn is_suspect(&self) -> bool {
        self.share.is_suspect()
    }

    /// Whether the body is held back until it is judged.
    pub fn is_held(&self) -> bool {
        self.lock().holding.held || self.share.is_suspect()
    }

    /// Moves the gap for a client that requests the bytes from `start` to before `end`, if that is possible. Returns the head of
    /// the body for which it was tried; `None` if no head has arrived.
    async fn make_way(&self, start: u64, end: u64) -> Option<Arc<Answered>> {
        let (answered, movable) = {
            let shared = self.lock();
            let held = shared.holding.held
                && shared.holding.hold == Hold::Gap
                && !shared.verified
                && shared.end.is_none();
            // A body without room goes through a small window. Readers below a gap that lies further back could never be given
            // the window's bytes.
            (shared.answered.clone()?, held && shared.file.is_some())
        };
        if movable && self.share.with(|gap| gap.way_for(start, end)).is_some() {
            let (share, length) = (Arc::clone(&self.share), answered.length);
            let moved = off_thread(move || share.make_way(length, start, end)).await;
            if moved == Some(true) {
                // Both places were withheld meanwhile.
                self.wake();
            }
        }
        Some(answered)
    }

    /// The number of bytes that have arrived.
    pub fn have(&self) -> u64 {
        self.lock().have
    }

    /// Whether the head of an answer has arrived, or the flight has ended.
    pub fn has_head(&self) -> bool {
        let shared = self.lock();
        shared.answered.is_some() || shared.end.is_some()
    }

    /// Waits until there is no reader.
    pub async fn deserted(&self) {
        let mut changed = self.changed.subscribe();
        while self.readers() > 0 {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes that the origin answered that it fails, so that a stored copy is preferred however that answer would reach its
    /// client.
    pub fn note_failure(&self) {
        self.lock().failed = true;
    }

    /// Whether the origin answered that it fails.
    pub fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Whether it ended with a refusal.
    pub fn is_refused(&self) -> bool {
        matches!(self.lock().end, Some(End::Refused(_)))
    }

    /// The number of readers.
    pub fn readers(&self) -> usize {
        self.lock().readers.len()
    }

    /// The body was judged good: all of it may be given, though the commit may still be running.
    pub fn release(&self, proof: Proof) {
        self.update(|shared| {
            shared.verified = true;
            shared.proof = Some(proof);
        });
    }

    /// Notes that the body was judged, and that a promise with authority vouches for it. Without this note the end of a flight
    /// does not clear a suspect target: a body may also be given because the principal has no promise about it.
    pub fn vouch(&self) {
        self.lock().vouched = Vouched::Yes;
    }

    /// The proof of the body, once it is judged.
    pub fn proof(&self) -> Option<Proof> {
        self.lock().proof
    }

    /// Ends the flight. Only the first end counts.
    pub fn finish(&self, end: End) {
        let (verdict, late) = {
            let mut shared = self.lock();
            if shared.end.is_some() {
                return;
            }
            let kept = matches!(end, End::Kept(_));
            let complete = kept || matches!(end, End::Given);
            shared.verified |= complete;
            shared.end = Some(end);
            let verdict = match (complete, shared.vouched, shared.holding.gave) {
                (true, Vouched::Yes, _) if kept => Verdict::Verified,
                // A commit may have failed or been broken off, or there was no room.
                (_, Vouched::Yes, _) => Verdict::Right,
                (false, _, true) => Verdict::Unverified,
                // No promise covered what was given. Its readers may be given the rest after this.
                (true, Vouched::No, _) => Verdict::Whole,
                (false, _, false) => Verdict::Ungiven,
            };
            let length = shared.answered.as_ref().and_then(|answered| answered.length);
            // A client may be given it from now on, when nothing is noted any more.
            let clients = shared.told || shared.readers.len() > 0;
            if verdict == Verdict::Whole && clients && !shared.holding.binds {
                self.share.with(|gap| gap.note(0, shared.have));
            }
            let unbound = verdict == Verdict::Unverified && !shared.holding.binds;
            (verdict, unbound.then_some((length, shared.holding.hold)))
        };
        match late {
            Some((length, hold)) => self.end_unbound(length, hold),
            None => self.share.end(verdict),
        }
        self.wake();
    }

    /// Ends the flight with an answer that only the leader may have.
    pub fn hand_over(&self, answer: Answer) {
        *self.handed.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.finish(End::Handed);
    }

    /// Takes the answer that was handed to the leader.
    pub fn take_handed(&self) -> Option<Answer> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How it ended; `None` if it has not ended.
    pub fn ended(&self) -> Option<End> {
        self.lock().end.clone()
    }

    /// Waits for the end.
    pub async fn over(&self) -> End {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(end) = self.ended() {
                return end;
            }
            if changed.changed().await.is_err() {
                return End::broken("the fill was dropped");
            }
        }
    }

    /// Waits for the end. `None` as soon as it is known that the answer has no length, because it may then be an endless stream.
    pub async fn over_or_unframed(&self) -> Option<End> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(end) = self.ended() {
                return Some(end);
            }
            let unframed = |answered: &Arc<Answered>| answered.length.is_none();
            if self.lock().answered.as_ref().is_some_and(unframed)
                || changed.changed().await.is_err()
            {
                return None;
            }
        }
    }

    /// Whether a request may join that needs an answer requested at `since` or later.
    fn may_be_joined(&self, since: Option<Time>) -> bool {
        let shared = self.lock();
        shared.end.is_none()
            && shared.is_joinable()
            && since.is_none_or(|since| self.began >= since)
    }

    fn update(&self, change: impl FnOnce(&mut Shared)) {
        change(&mut self.lock());
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while the lock was held ended that task; the data is still consistent.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs work that may touch the disk on a blocking thread. `None` if it panicked.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Runs work that may touch the disk on a blocking thread, without waiting for its end.
fn blocking(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}
