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

mod gap;
mod intake;
mod reader;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::StatusCode;
use tokio::sync::{Notify, watch};

pub use gap::{AT_THE_END, GAP, Gap, HELD_WHOLE, own_start};
pub use intake::{Body, Complete, Intake, Trouble, continues, intake};
pub use reader::{Broken, Opened, Reader};
use window::Readers;

use crate::clock::Time;
use crate::entry::{Entry, Head};
use crate::origin::Answer;
use crate::proof::Proof;
use crate::target::{Key, Target};

/// How many clients of one flight are remembered together with its gap. Whoever has more than these addresses at its command
/// gains a second gap.
const MOST_CLIENTS: usize = 4096;

/// For whom bytes are read. larder itself is nobody in particular.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client {
    /// Where it comes from.
    pub address: Option<IpAddr>,
    /// Where the gap lay when it was given bytes of an earlier body of the target, which was not completed.
    pub gap: Option<u64>,
}

/// The head of the answer that a flight brings.
#[derive(Debug)]
pub struct Answered {
    /// Status and header fields.
    pub head: Head,
    /// The length, if the origin announced it.
    pub length: Option<u64>,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Verified and stored.
    Kept(Arc<Entry>),
    /// Complete, and not stored.
    Given,
    /// The origin said that the stored copy is current.
    Current(Arc<Entry>),
    /// Not what was promised: nothing more is given.
    Refused(String),
    /// The origin gave no complete answer.
    Failed(StatusCode, String),
    /// A small answer that is not stored, for everybody who waits.
    Relayed(Arc<(Head, Bytes)>),
    /// Everybody asks the origin in its own words.
    Pass,
    /// The answer is for the leader alone, who takes it with [`Flight::take_handed`]; the others ask themselves.
    Handed,
}

/// One fill that many requests share.
#[derive(Debug)]
pub struct Flight {
    /// What is fetched.
    pub target: Target,
    /// When it began: who needs a younger answer does not join.
    pub began: Time,
    /// Where the gap must lie, because of what an older flight is giving of this target.
    pub kept: Option<u64>,
    shared: Mutex<Shared>,
    /// Wakes whoever waits, readers and the writer, at each change of `shared`.
    changed: watch::Sender<u64>,
    /// Wakes the writer when a reader of the window moved, began to wait or left.
    moved: Notify,
    handed: Mutex<Option<Answer>>,
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
    gap: Gap,
    /// The judgement is in favour: everything may be given, with this proof.
    verified: bool,
    /// Somebody was told the head, and will take the body for what the head says.
    told: bool,
    /// The origin's answer was that it fails.
    failed: bool,
    proof: Option<Proof>,
    end: Option<End>,
    /// Where each reader stands; who only waits for the end stands behind it.
    readers: Readers,
    /// The clients that were given bytes, also those that left.
    given_to: HashSet<IpAddr>,
}

impl Flight {
    fn new(target: Target, began: Time, kept: Option<u64>) -> Self {
        Self {
            target,
            began,
            kept,
            shared: Mutex::new(Shared {
                answered: None,
                file: None,
                have: 0,
                filed: 0,
                window: VecDeque::new(),
                window_start: 0,
                // Until the head says how long the body is, the gap only carries where it must lie.
                gap: Gap::new(false, None, kept),
                verified: false,
                told: false,
                failed: false,
                proof: None,
                end: None,
                readers: Readers::default(),
                given_to: HashSet::new(),
            }),
            changed: watch::Sender::new(0),
            moved: Notify::new(),
            handed: Mutex::new(None),
        }
    }

    /// The head has come; bytes will follow. `file` is where they can be read, unless the store is full from the start.
    pub fn begin(&self, answered: Answered, file: Option<Arc<File>>, gap: Gap) {
        self.update(|shared| {
            let fixed = shared.gap.is_fixed();
            shared.answered = Some(Arc::new(answered));
            shared.file = file;
            shared.gap = gap;
            if fixed {
                shared.gap.fix();
            }
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
        }
        drop(shared);
        self.wake();
        unspoilt
    }

    /// Whether nobody was given a byte, or told what is to come.
    pub fn nothing_given(&self) -> bool {
        self.lock().nothing_given()
    }

    /// A promise came that binds, while the body was arriving.
    pub fn bind(&self) {
        self.lock().gap.bind();
    }

    /// Where the gap begins, if one was kept and bytes around it were given, and to whom: to be remembered when the body
    /// was not completed, because none of those may be given the gap of the next one either.
    pub fn gap_to_remember(&self) -> Option<(u64, Vec<IpAddr>)> {
        let shared = self.lock();
        (shared.gap.binds() && !shared.gap.nothing_given())
            .then(|| (shared.gap.start(), shared.given_to.iter().copied().collect()))
    }

    /// How many bytes have arrived.
    pub fn have(&self) -> u64 {
        self.lock().have
    }

    /// Allows a range to be given that is fetched beside the fill, if it does not meet the gap; moves the gap out of its
    /// way where that is possible. Not if the body whose head `answered` is was begun again meanwhile: the next one has a gap of
    /// its own, which would know nothing of this range.
    pub fn grant_beside(
        &self,
        client: Client,
        answered: &Arc<Answered>,
        start: u64,
        end: u64,
    ) -> bool {
        let mut shared = self.lock();
        let present = shared.answered.as_ref();
        if shared.end.is_some() || !present.is_some_and(|present| Arc::ptr_eq(present, answered)) {
            return false;
        }
        shared.gap.make_way(start, end);
        let granted = shared.gap.limit_for(client.gap, start, end, u64::MAX) == end;
        if granted {
            shared.note(client, start, end);
        }
        granted
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

    /// What vouches for the body, once it is judged.
    pub fn proof(&self) -> Option<Proof> {
        self.lock().proof
    }

    /// Ends the flight. Only the first end counts.
    pub fn finish(&self, end: End) {
        self.update(|shared| {
            if matches!(end, End::Kept(_) | End::Given) {
                shared.verified = true;
            }
            shared.end.get_or_insert(end);
        });
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
                return End::Failed(StatusCode::BAD_GATEWAY, "the fill was dropped".into());
            }
        }
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

impl Shared {
    fn nothing_given(&self) -> bool {
        self.gap.nothing_given() && !self.told
    }

    /// Notes that `client` was given the bytes from `start` to before `end`.
    fn note(&mut self, client: Client, start: u64, end: u64) {
        self.gap.note(start, end);
        if start < end && self.given_to.len() < MOST_CLIENTS {
            self.given_to.extend(client.address);
        }
    }

    /// The last byte is the commit: nobody is given it before the flight has ended. So whoever has the whole of a body
    /// finds it stored, and an index's claims in force, at its next request.
    fn before_the_last(&self) -> u64 {
        let length = self.answered.as_ref().and_then(|answered| answered.length);
        match (&self.end, length) {
            (None, Some(length)) => length.saturating_sub(1),
            (Some(_), _) | (None, None) => u64::MAX,
        }
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
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flight.finish(End::Failed(
            StatusCode::BAD_GATEWAY,
            "the fill was broken off; try again".into(),
        ));
        let mut under_way = self.flights.lock();
        if under_way.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            under_way.remove(&self.key);
        }
        drop(under_way);
        self.flights.landed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The flights under way, by key.
#[derive(Debug)]
pub struct Flights {
    under_way: Mutex<HashMap<Key, Arc<Flight>>>,
    landed: watch::Sender<u64>,
    next_reader: AtomicU64,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            landed: watch::Sender::new(0),
            next_reader: AtomicU64::new(0),
        }
    }
}

impl Flights {
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
        let mut kept = None;
        if let Some(flight) = under_way.get(&key) {
            let mut shared = flight.lock();
            let joinable = shared.end.is_none() && shared.is_joinable();
            if joinable && since.is_none_or(|since| flight.began >= since) {
                drop(shared);
                return Permit::Follow(Arc::clone(flight));
            }
            // Two at once keep back the same bytes, or together they would give them all.
            if shared.end.is_none() && shared.gap.binds() {
                shared.gap.fix();
                kept = Some(shared.gap.start());
            }
        }
        let flight = Arc::new(Flight::new(target.clone(), now, kept));
        under_way.insert(key, Arc::clone(&flight));
        Permit::Lead(Lead { flight, flights: Arc::clone(self), key })
    }

    /// A reader of `flight`.
    pub fn reader(&self, flight: &Arc<Flight>, client: Client) -> Reader {
        let id = self.next_reader.fetch_add(1, Ordering::Relaxed);
        Reader::new(Arc::clone(flight), id, client)
    }

    /// Who waits for the end of `flight` and is given no byte. The fill goes on for it, and what finds no room in the store
    /// is not held back for it: it would never take it.
    pub fn waiting(&self, flight: &Arc<Flight>) -> Reader {
        let reader = self.reader(flight, Client::default());
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
