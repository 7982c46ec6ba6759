//! One fill that many requests share.
//!
//! The first request for a target leads: it starts the fill, which belongs to the cache and runs as a task of its own.
//! Everybody, the leader included, is a reader of the growing spool file:
//!
//! ```text
//!            fill task ──append──▶ spool file ──▶ reader, reader, reader …
//!                │                     ▲                │ at most up to the gap (gap.rs)
//!                └── head, have, end ──┴── watch ───────┘
//! ```
//!
//! A reader that comes late starts at the file's beginning. Bytes that the store does not take go through a small window in
//! memory (window.rs), and nobody can join any more.

mod beside;
mod end;
mod gap;
mod intake;
mod late;
mod parts;
mod reader;
mod share;
#[cfg(test)]
mod tests;
mod window;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

pub use beside::{Beside, Given};
pub use end::End;
pub use gap::GAP;
use gap::Hold;
pub use intake::{Binds, Body, Complete, Intake, Trouble, can_resume, continues, intake, take_in};
use late::Asking;
pub use late::Late;
use parts::Parts;
pub use parts::{Ahead, LEAST_PART};
pub use reader::{Broken, Opened, Reader};
pub use share::Gaps;
use share::{Share, Verdict};
use window::Readers;

use crate::clock::Time;
use crate::entry::Head;
use crate::origin::Answer;
use crate::proof::Proof;
use crate::target::{Key, Target};

/// The head of the answer that a flight brings.
#[derive(Debug)]
pub struct Answered {
    /// Status and header fields.
    pub head: Head,
    /// The length, if the origin announced it.
    pub length: Option<u64>,
}

/// One fill that many requests share.
#[derive(Debug)]
pub struct Flight {
    /// What is fetched.
    pub target: Target,
    /// When it began: who needs a younger answer does not join.
    pub began: Time,
    /// Its part in the gap of its target.
    share: Arc<Share>,
    shared: Mutex<Shared>,
    /// Wakes whoever waits, readers and the writer, at each change of `shared`.
    changed: watch::Sender<u64>,
    /// Wakes the writer when a reader of the window moved, began to wait or left.
    moved: Notify,
    /// Whether a promise has come meanwhile: who reads what lies there asks as well.
    asking: Asking,
    handed: Mutex<Option<Answer>>,
}

/// How a body is held back until it is judged.
#[derive(Debug)]
struct Holding {
    /// A promise binds the body.
    binds: bool,
    /// It is held back: a promise binds it, or a body of its target was refused.
    held: bool,
    /// How, if it is.
    hold: Hold,
    /// Bytes of it were given before it was judged.
    gave: bool,
}

/// Whether a promise that may decide vouches for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vouched {
    No,
    Yes,
}

#[derive(Debug)]
struct Shared {
    answered: Option<Arc<Answered>>,
    file: Option<Arc<File>>,
    /// Bytes that have arrived.
    have: u64,
    /// Bytes of those that lie in the file; the rest is in the window.
    filed: u64,
    window: VecDeque<Bytes>,
    /// Where the window's first byte stands in the body.
    window_start: u64,
    /// What is fetched ahead of the fill.
    parts: Parts,
    /// How the body is held back.
    holding: Holding,
    /// The ranges that are given beside the fill; `None` when the body is being judged, and there can be no more.
    besides: Option<Vec<Arc<Beside>>>,
    /// The judgement is in favour: everything may be given, with this proof.
    verified: bool,
    /// Somebody was told the head, and will take the body for what the head says.
    told: bool,
    /// The origin's answer was that it fails.
    failed: bool,
    vouched: Vouched,
    proof: Option<Proof>,
    end: Option<End>,
    /// Where each reader stands; who only waits for the end stands behind it.
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
                holding: Holding { binds: false, held: false, hold: Hold::Gap, gave: false },
                besides: Some(Vec::new()),
                verified: false,
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
            handed: Mutex::new(None),
        }
    }

    /// The head has come; bytes will follow. `file` is where they can be read, unless the store is full from the start; `binds`:
    /// a promise binds the body. What may be given is on disk before a byte is.
    pub async fn begin(&self, answered: Answered, file: Option<Arc<File>>, binds: bool) {
        let (share, length) = (Arc::clone(&self.share), answered.length);
        let begin = move || share.begin(length, binds);
        let hold = if binds { off_thread(begin).await.unwrap_or(Hold::Whole) } else { begin() };
        let back = binds || self.share.is_suspect();
        self.update(|shared| {
            shared.answered = Some(Arc::new(answered));
            shared.file = file;
            shared.holding = Holding { binds, held: back, hold, ..shared.holding };
            shared.besides = Some(Vec::new());
            shared.parts = Parts::default();
        });
    }

    /// `count` more bytes lie in the file.
    pub fn grew(&self, count: u64) {
        self.update(|shared| {
            shared.have += count;
            shared.filed += count;
        });
    }

    /// Everything is fetched again from the start, if nobody was given a byte or told the head yet; says whether. The
    /// question and the start are one step: a reader who came between them would be given halves of two bodies, or one
    /// body under the other's head.
    pub fn restart(&self) -> bool {
        let mut shared = self.lock();
        let unspoilt = shared.nothing_given();
        if unspoilt {
            shared.have = 0;
            shared.filed = 0;
            shared.window.clear();
            shared.window_start = 0;
            shared.answered = None;
            shared.file = None;
            shared.parts = Parts::default();
        }
        drop(shared);
        self.wake();
        unspoilt
    }

    /// Whether nobody was given a byte, or told what is to come.
    pub fn nothing_given(&self) -> bool {
        self.lock().nothing_given()
    }

    /// A body of its target was refused: until one is verified, nothing of the target is given to anybody before its judgement,
    /// also after a restart.
    pub async fn suspect(&self) {
        let share = Arc::clone(&self.share);
        let _done = off_thread(move || share.refuse()).await;
    }

    /// Whether a body of its target was refused, and none verified since.
    pub fn is_suspect(&self) -> bool {
        self.share.is_suspect()
    }

    /// Whether the body is held back until it is judged.
    pub fn is_held(&self) -> bool {
        self.lock().holding.held || self.share.is_suspect()
    }

    /// Moves the gap out of the way of a client that asks for the bytes from `start` to before `end`, where that is possible.
    async fn make_way(&self, start: u64, end: u64) {
        let length = {
            let shared = self.lock();
            let held = shared.holding.held
                && shared.holding.hold == Hold::Gap
                && !shared.verified
                && shared.end.is_none();
            // What finds no room waits in a small window: readers below a gap that lies further back could never be given it.
            let filed = shared.file.is_some();
            let Some(answered) = shared.answered.as_ref().filter(|_| held && filed) else { return };
            answered.length
        };
        if self.share.with(|gap| gap.way_for(start, end)).is_some() {
            let share = Arc::clone(&self.share);
            let _done = off_thread(move || share.make_way(length, start, end)).await;
        }
    }

    /// How many bytes have arrived.
    pub fn have(&self) -> u64 {
        self.lock().have
    }

    /// Whether the head of an answer has come, or the end of the flight.
    pub fn has_head(&self) -> bool {
        let shared = self.lock();
        shared.answered.is_some() || shared.end.is_some()
    }

    /// Waits until nobody reads.
    pub async fn deserted(&self) {
        let mut changed = self.changed.subscribe();
        while self.readers() > 0 {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The origin answered that it fails: however that answer reaches its client, a stored copy is better.
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

    /// How many read.
    pub fn readers(&self) -> usize {
        self.lock().readers.len()
    }

    /// The judgement is in favour: everything may be given, though the commit may still be running.
    pub fn release(&self, proof: Proof) {
        self.update(|shared| {
            shared.verified = true;
            shared.proof = Some(proof);
        });
    }

    /// The body was judged, and a promise that may decide vouches for it. Without this word the end of a flight clears no target
    /// that was refused: a body may also be given because nothing is promised of it to who asked.
    pub fn vouch(&self) {
        self.lock().vouched = Vouched::Yes;
    }

    /// What vouches for the body, once it is judged.
    pub fn proof(&self) -> Option<Proof> {
        self.lock().proof
    }

    /// Ends the flight. Only the first end counts.
    pub fn finish(&self, end: End) {
        let verdict = {
            let mut shared = self.lock();
            if shared.end.is_some() {
                return;
            }
            let complete = matches!(end, End::Kept(_) | End::Given);
            shared.verified |= complete;
            shared.end = Some(end);
            match (complete, shared.vouched, shared.holding.gave) {
                (true, Vouched::Yes, _) => Verdict::Verified,
                (false, _, true) => Verdict::Unverified,
                // Nothing was promised of what was given, or nothing was given.
                (true, Vouched::No, _) | (false, _, false) => Verdict::Ungiven,
            }
        };
        self.share.end(verdict);
        self.wake();
    }

    /// Ends the flight with an answer that only the leader may have.
    pub fn hand_over(&self, answer: Answer) {
        *self.handed.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.finish(End::Handed);
    }

    /// The answer that was handed to the leader.
    pub fn take_handed(&self) -> Option<Answer> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How it ended, if it has.
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

    /// Waits for the end; `None` as soon as it is known that no length is announced, so that there may be none.
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

    /// Whether another may read it who needs an answer that was not asked for before `since`.
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
        // A panic while it was held ended that task; the numbers are still whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request is to a flight.
#[derive(Debug)]
pub enum Permit {
    /// The first: it must start the fill. If the lead is dropped without an end, the flight has failed.
    Lead(Lead),
    /// One of many: it reads.
    Follow(Arc<Flight>),
}

/// The duty to bring a flight to its end.
#[derive(Debug)]
pub struct Lead {
    /// The flight.
    pub flight: Arc<Flight>,
    flights: Arc<Flights>,
    key: Key,
    /// Under what else it is joined.
    opened: OnceLock<Key>,
}

impl Lead {
    /// From now on whoever asks under `key` joins as well: the answer turned out to be theirs, too.
    pub fn open_to(&self, key: Key) {
        if self.opened.set(key).is_ok() {
            let mut opened = self.flights.opened();
            opened.entry(key).or_insert_with(|| Arc::clone(&self.flight));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flight.finish(End::broken("the fill was broken off; try again"));
        let mut under_way = self.flights.lock();
        if under_way.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            under_way.remove(&self.key);
        }
        drop(under_way);
        if let Some(key) = self.opened.get() {
            let mut opened = self.flights.opened();
            if opened.get(key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
                opened.remove(key);
            }
        }
        self.flights.landed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The flights under way, by key.
#[derive(Debug)]
pub struct Flights {
    gaps: Arc<Gaps>,
    under_way: Mutex<HashMap<Key, Arc<Flight>>>,
    /// Those that are joined under another key as well.
    opened: Mutex<HashMap<Key, Arc<Flight>>>,
    landed: watch::Sender<u64>,
    next_reader: AtomicU64,
}

impl Flights {
    /// None is under way. `gaps`: those of their targets.
    pub fn new(gaps: Arc<Gaps>) -> Arc<Self> {
        Arc::new(Self {
            gaps,
            under_way: Mutex::default(),
            opened: Mutex::default(),
            landed: watch::Sender::new(0),
            next_reader: AtomicU64::new(0),
        })
    }

    /// The gaps of their targets.
    pub fn gaps(&self) -> &Arc<Gaps> {
        &self.gaps
    }

    /// A flight that nobody joins: that of a pass.
    pub fn alone(&self, target: &Target, now: Time) -> Arc<Flight> {
        Arc::new(Flight::new(target.clone(), now, self.gaps.share(target)))
    }

    /// Joins the flight of `key`, or begins one. A flight that began before `since` is too old; it is left to its
    /// readers and another begins.
    pub fn join(
        self: &Arc<Self>,
        key: Key,
        target: &Target,
        since: Option<Time>,
        now: Time,
    ) -> Permit {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.get(&key).filter(|flight| flight.may_be_joined(since)) {
            return Permit::Follow(Arc::clone(flight));
        }
        let flight = self.alone(target, now);
        under_way.insert(key, Arc::clone(&flight));
        let opened = OnceLock::new();
        Permit::Lead(Lead { flight, flights: Arc::clone(self), key, opened })
    }

    /// Whether there is a flight of `key` to join, that did not begin before `since`.
    pub fn is_under_way(&self, key: Key, since: Option<Time>) -> bool {
        self.lock().get(&key).is_some_and(|flight| flight.may_be_joined(since))
    }

    /// The flight that was opened to whoever asks under `key`, unless it began before `since`.
    pub fn open_to(&self, key: Key, since: Option<Time>) -> Option<Arc<Flight>> {
        let flight = Arc::clone(self.opened().get(&key)?);
        let shared = flight.lock();
        let joinable = shared.end.is_none() && shared.is_joinable();
        drop(shared);
        (joinable && since.is_none_or(|since| flight.began >= since)).then_some(flight)
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader of `flight`.
    pub fn reader(&self, flight: &Arc<Flight>) -> Reader {
        let id = self.next_reader.fetch_add(1, Ordering::Relaxed);
        Reader::new(Arc::clone(flight), id)
    }

    /// Who waits for the end of `flight` and is given no byte. The fill goes on for it, and what finds no room in the store
    /// is not held back for it: it would never take it.
    pub fn waiting(&self, flight: &Arc<Flight>) -> Reader {
        let reader = self.reader(flight);
        reader.stand_behind();
        reader
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until none is under way.
    pub async fn landed(&self) {
        let mut landed = self.landed.subscribe();
        while self.count() > 0 {
            if landed.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what may touch the disk on a thread of its own; `None` if it was broken off.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
