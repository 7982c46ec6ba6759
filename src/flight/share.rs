//! The gaps of targets, shared by the bodies that are arriving (promise P3).
//!
//! A flight and a pass have a [`Share`] in the gap of their target. If they end without a verified body, what was recorded while
//! they gave bytes stays: the next body of the target shares the same gap, also after a restart (`store/unverified.rs`). Bytes
//! are recorded on disk as "may be given" before they are given, so that a crash loses no record.
//!
//! A body that no promise binds takes a share as well, and what is given of it is noted. A promise may come while it arrives, or
//! after its client left, and that client resumes where it was cut: then the bytes that it still lacks must be withheld. Such
//! notes are written while the bytes are given, not before: a crash may lose what happened a moment ago, if a promise comes after it.
//!
//! Async threads lock a gap, so it is never locked while the disk is used: a record changes in memory first, is then written, and
//! what it allows is looked at again.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocking;
use super::gap::{Gap, HELD_WHOLE, Hold, Length, own_start};
use super::intake::Binding;
use super::judged::JudgedBodies;
use crate::clock::Time;
use crate::store::{Delivered, Unverified};
use crate::target::{Key, Target};

/// Stands for an unknown length.
const UNKNOWN: u64 = u64::MAX;

/// The gaps of all targets of which bodies are arriving.
#[derive(Debug)]
pub struct Gaps {
    pub(super) unverified: Arc<Unverified>,
    pub(super) judged: JudgedBodies,
    /// Locked after a gap, if both are needed, and never while the disk is used.
    of: Mutex<HashMap<Key, Users>>,
}

#[derive(Debug)]
struct Users {
    count: usize,
    gap: Arc<Mutex<TargetGap>>,
}

/// The gap of one target, and what must be remembered of it.
#[derive(Debug)]
struct TargetGap {
    gap: Gap,
    /// Whether bytes were given of a body that was not verified, and no body was verified since.
    unverified: bool,
    /// The announced length of the bodies that were given whole and that no promise vouched for, if none was verified since.
    whole: Length,
    /// What is recorded of it.
    noted: Option<Noted>,
    /// When that was recorded.
    noted_at: Time,
    /// The number of changes of the record, and how many of them are on disk.
    changes: u64,
    written: u64,
}

impl TargetGap {
    /// Replaces what is recorded. It is not on disk yet.
    fn replace(&mut self, noted: Noted, now: Time) {
        (self.noted, self.noted_at) = (Some(noted), now);
        self.changes += 1;
    }
}

/// How a body is held back that a promise binds.
enum Bound {
    So(Hold),
    /// As soon as this change of the record is on disk.
    Recorded(u64),
    /// Whole, as soon as it is on disk that its target is suspect. `Key`: whose row says so.
    Suspect(Key),
}

/// What is recorded of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Noted {
    /// The length of the body, if it is known.
    length: Option<u64>,
    /// Where the gap begins.
    gap: u64,
    state: Delivered,
}

/// How a body ended, for the gap of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it is what was promised, and it is stored: the next body of the target need not be held back for what others gave
    /// before.
    Verified,
    /// All of it is what was promised, and it is not stored: the origin may give the next client another body, which completes
    /// what others were given.
    Right,
    /// It was not judged, or judged bad, and bytes of it were given.
    Unverified,
    /// It is complete and given whole, and no promise vouches for it. A client may have left before it received the end.
    Whole,
    /// No byte of it was given.
    Ungiven,
}

/// The share of one arriving body in the gap of its target. If it is dropped without a verdict, the body counts as not verified.
#[derive(Debug)]
pub(super) struct Share {
    gaps: Arc<Gaps>,
    key: Key,
    gap: Arc<Mutex<TargetGap>>,
    /// The announced length of the body.
    length: AtomicU64,
    /// Changes only while the gap is locked.
    ended: AtomicBool,
    /// Whether a client was given bytes of the end without those before, while no promise bound the body.
    gave_end: AtomicBool,
}

impl Gaps {
    /// Starts with what was recorded on disk before.
    pub fn new(unverified: Arc<Unverified>) -> Arc<Self> {
        Arc::new(Self { unverified, judged: JudgedBodies::default(), of: Mutex::default() })
    }

    /// A share in the gap of `target`, whatever its variant and spelling, and for every principal.
    pub(super) fn share(self: &Arc<Self>, target: &Target) -> Share {
        let key = target.file_key();
        let mut of = lock(&self.of);
        let users = of.entry(key).or_insert_with(|| {
            let row = self.unverified.get(key);
            let gap =
                row.or_else(|| self.unverified.of_any(key)).map_or_else(Gap::default, Gap::noted);
            let noted =
                row.map(|row| Noted { length: row.length, gap: gap.start(), state: row.state });
            // A client of such a body lacks bytes of the gap, however the body ended.
            let whole = row.filter(|row| row.state == Delivered::Unbound);
            let unverified = row.is_some() && whole.is_none();
            let whole = whole.map(|row| Length::of(row.length)).unwrap_or_default();
            let noted_at = row.map_or_else(|| self.unverified.now(), |row| row.since);
            let (changes, written) = (0, 0);
            let gap = TargetGap { gap, unverified, whole, noted, noted_at, changes, written };
            Users { count: 0, gap: Arc::new(Mutex::new(gap)) }
        });
        users.count += 1;
        let gap = Arc::clone(&users.gap);
        drop(of);
        let (ended, gave_end) = (AtomicBool::new(false), AtomicBool::new(false));
        let (gaps, length) = (Arc::clone(self), AtomicU64::new(UNKNOWN));
        Share { gaps, key, gap, length, ended, gave_end }
    }

    /// Writes what is not written yet, as larder does when it stops.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        self.unverified.flush();
    }

    /// Whether nothing of `target` may be given before its body is verified.
    pub fn is_suspect(&self, target: &Target) -> bool {
        let key = target.file_key();
        let present = lock(&self.of).get(&key).map(|users| Arc::clone(&users.gap));
        match present {
            Some(present) => lock(&present).gap.is_suspect(),
            None => self.unverified.get(key).is_some_and(|row| row.state == Delivered::Suspect),
        }
    }
}

impl Share {
    /// How a body is held back, now that its head has arrived; `length` is its announced length. `binds`: a promise binds it. If
    /// the record finds no room on disk, the body is held back whole. Blocking if a promise binds.
    pub(super) fn begin(&self, length: Option<u64>, binds: bool) -> Hold {
        self.length.store(length.unwrap_or(UNKNOWN), Ordering::Relaxed);
        let mut gap = lock(&self.gap);
        let alone = lock(&self.gaps.of).get(&self.key).is_some_and(|users| users.count == 1);
        if alone {
            gap.gap.begin_anew();
        }
        let hold = gap.gap.hold(length);
        drop(gap);
        if binds && hold == Hold::Gap { self.bind(length, hold) } else { hold }
    }

    /// A promise that binds was found, before the body or while it is arriving. `hold` is how the body would be held back
    /// otherwise. If the bytes that were given before have used up the gap, nothing is withheld of which a client that has these
    /// bytes could not make a complete file: the body is held back whole, and so are all later ones until one is verified. A body
    /// whose share has ended is held back whole. Blocking.
    pub(super) fn bind(&self, length: Option<u64>, hold: Hold) -> Hold {
        self.bind_by(Binding::Yes, length, hold)
    }

    /// Like [`Self::bind`], by a promise that may not be read yet. Then the body is held back as if it were bound; but that the gap
    /// is used up makes the target suspect only with a body that begins, or is bound, when the promise was read.
    pub(super) fn bind_by(&self, binding: Binding, length: Option<u64>, hold: Hold) -> Hold {
        loop {
            let bound = self.look(&mut lock(&self.gap), binding, length, hold);
            match bound {
                Bound::So(hold) => return hold,
                Bound::Suspect(row) => {
                    self.write_suspicion(row);
                    return Hold::Whole;
                }
                // Bytes may have been given meanwhile, or a body refused.
                Bound::Recorded(change) if self.write(change) => {}
                Bound::Recorded(_) => return Hold::Whole,
            }
        }
    }

    fn look(
        &self,
        gap: &mut TargetGap,
        binding: Binding,
        length: Option<u64>,
        hold: Hold,
    ) -> Bound {
        if self.has_ended() || gap.gap.is_suspect() {
            return Bound::So(Hold::Whole);
        }
        let spent = gap.gap.is_spent();
        if hold == Hold::Whole || spent {
            // If it is recorded which bytes were given, the gap of that record is withheld, and this body needs none.
            let recorded = gap.noted.is_some() && !spent;
            if gap.gap.has_given() && !recorded && binding == Binding::Yes {
                return Bound::Suspect(self.note_suspect(gap));
            }
            return Bound::So(Hold::Whole);
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) && !gap.gap.has_given() {
            // No byte of it is given before the judgement.
            return Bound::So(Hold::Gap);
        }
        let noted = Noted { length, gap: gap.gap.next_start(), state: Delivered::Given };
        // Another body may have begun in the place of the recorded one, before any byte was given.
        if gap.noted != Some(noted) || self.gaps.unverified.is_old(gap.noted_at) {
            if !self.put(gap, noted) {
                return Bound::So(Hold::Whole);
            }
        } else if gap.written == gap.changes {
            return Bound::So(Hold::Gap);
        }
        Bound::Recorded(gap.changes)
    }

    /// Moves the gap for a client that requests the bytes from `start` to before `end`, if that is possible; returns whether it
    /// did. Blocking.
    pub(super) fn make_way(&self, length: Option<u64>, start: u64, end: u64) -> bool {
        let mut gap = lock(&self.gap);
        let place = gap.gap.way_for(start, end).filter(|_| !self.has_ended());
        let Some(place) = place else { return false };
        if !self.put(&mut gap, Noted { length, gap: place, state: Delivered::Given }) {
            return false;
        }
        gap.gap.reserve(place);
        let change = gap.changes;
        drop(gap);
        let written = self.write(change);
        let mut gap = lock(&self.gap);
        // Another body may have been refused meanwhile.
        let noted = gap.noted.filter(|noted| noted.gap == place && noted.length == length);
        if gap.gap.settle(written && noted.is_some()) {
            return true;
        }
        let Some(noted) = noted.filter(|_| !self.has_ended()) else { return false };
        // The record says again where the gap is.
        let start = gap.gap.start();
        self.put(&mut gap, Noted { gap: start, ..noted });
        let change = gap.changes;
        drop(gap);
        self.write(change);
        false
    }

    /// Records in memory what a body may give. `false`: there is no room for the record.
    fn put(&self, gap: &mut TargetGap, noted: Noted) -> bool {
        let Noted { length, gap: start, state } = noted;
        let put = self.gaps.unverified.put(self.key, length, start, state);
        match &put {
            Ok(()) => gap.replace(noted, self.gaps.unverified.now()),
            Err(error) => held_back_for(error),
        }
        put.is_ok()
    }

    /// Writes the record as it is now, which has at least this many changes. `false`: it could not be written. Blocking.
    fn write(&self, change: u64) -> bool {
        match self.gaps.unverified.write(self.key, false) {
            Ok(()) => {
                let mut gap = lock(&self.gap);
                gap.written = gap.written.max(change);
                true
            }
            Err(error) => {
                held_back_for(&error);
                false
            }
        }
    }

    /// Whether nothing of the target may be given before a body is verified.
    pub(super) fn is_suspect(&self) -> bool {
        lock(&self.gap).gap.is_suspect()
    }

    /// Whether the gap lies before the end of the body.
    pub(super) fn has_moved_gap(&self) -> bool {
        let gap = lock(&self.gap);
        gap.gap.length().is_some_and(|length| gap.gap.start() != own_start(length))
    }

    /// Checks and records in one step what may be given. What no promise binds is written to disk meanwhile.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Gap) -> T) -> T {
        let mut gap = lock(&self.gap);
        let answer = ask(&mut gap.gap);
        let noted = !self.has_ended() && self.note_unbound(&mut gap, false);
        drop(gap);
        if noted {
            self.write_soon(self.key);
        }
        answer
    }

    /// Records what was given of bodies that no promise binds; returns whether that must be written. `broken`: one was broken off.
    /// That is recorded of small bodies as well: another of its target may be large.
    fn note_unbound(&self, gap: &mut TargetGap, broken: bool) -> bool {
        let spent = gap.gap.is_spent();
        match gap.noted {
            // Nothing is given.
            Some(Noted { state: Delivered::Suspect, .. }) => false,
            Some(noted) if noted.state == Delivered::Given => {
                // Bytes of the recorded gap may have been given to requests that no promise bound.
                let state = if spent { Delivered::Spent } else { Delivered::Given };
                self.record(gap, Noted { state, ..noted })
            }
            _ if !(gap.gap.is_worth_a_note() || broken && gap.gap.has_given()) => false,
            _ => {
                let state = if spent { Delivered::Spent } else { Delivered::Unbound };
                let (length, start) = (gap.gap.length(), gap.gap.next_start());
                self.record(gap, Noted { length, gap: start, state })
            }
        }
    }

    /// Records this, if it is news, or if the record would soon be too old; returns whether it must be written.
    fn record(&self, gap: &mut TargetGap, noted: Noted) -> bool {
        let changes = gap.noted != Some(noted) || self.gaps.unverified.is_old(gap.noted_at);
        // There is always room for a file that no promise binds.
        changes && self.put(gap, noted)
    }

    fn write_soon(&self, key: Key) {
        let unverified = Arc::clone(&self.gaps.unverified);
        blocking(move || {
            if let Err(error) = unverified.write(key, false) {
                tracing::warn!(%error, "what was given of a target is remembered only until larder stops");
            }
        });
    }

    /// A body was refused: the target is suspect from now on, also after a restart. Blocks until this is on disk.
    pub(super) fn refuse(&self) {
        let row = self.note_suspect(&mut lock(&self.gap));
        self.write_suspicion(row);
    }

    /// Notes in memory that the target is suspect. Returns whose row says so.
    fn note_suspect(&self, gap: &mut TargetGap) -> Key {
        gap.gap.suspect();
        gap.unverified = true;
        let noted = Noted { length: None, gap: 0, state: Delivered::Suspect };
        gap.replace(noted, self.gaps.unverified.now());
        self.gaps.unverified.suspect(self.key)
    }

    /// Bytes of the body will be given that are known to be right, and that no gap withholds. So that no other body completes
    /// them, the target is suspect for a day from now, whatever held the body back. `false`: there is no room to record that, and
    /// they must not be given. Blocking.
    pub(super) fn begin_alike(&self) -> bool {
        let mut gap = lock(&self.gap);
        let suspect = Noted { length: None, gap: 0, state: Delivered::Suspect };
        if !gap.gap.is_suspect() && !self.put(&mut gap, suspect) {
            return false;
        }
        let row = self.note_suspect(&mut gap);
        drop(gap);
        let written = self.gaps.unverified.write(row, false);
        if let Err(error) = &written {
            held_back_for(error);
        }
        written.is_ok()
    }

    /// Such bytes were given: the day counts from now.
    pub(super) fn gave_alike(&self) {
        let mut gap = lock(&self.gap);
        let suspect = gap.noted.is_some_and(|noted| noted.state == Delivered::Suspect);
        if suspect && !self.has_ended() && self.gaps.unverified.is_old(gap.noted_at) {
            let row = self.note_suspect(&mut gap);
            drop(gap);
            self.write_soon(row);
        }
    }

    fn write_suspicion(&self, row: Key) {
        if let Err(error) = self.gaps.unverified.write(row, true) {
            tracing::error!(%error, "that a target is suspect could not be stored, and is remembered only until larder stops");
        }
    }

    /// The gaps of all targets.
    pub(super) fn gaps(&self) -> &Arc<Gaps> {
        &self.gaps
    }

    /// A client is given bytes of the end without those before, and no promise binds the body: its gap does not withhold what that
    /// client lacks.
    pub(super) fn give_end(&self) {
        self.gave_end.store(true, Ordering::Relaxed);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The body has ended. Only the first verdict counts.
    pub(super) fn end(&self, verdict: Verdict) {
        let mut gap = lock(&self.gap);
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        match verdict {
            Verdict::Verified => {
                (gap.unverified, gap.whole) = (false, Length::NoBody);
                gap.gap.trust();
            }
            Verdict::Unverified => gap.unverified = true,
            Verdict::Whole if self.gave_end.load(Ordering::Relaxed) => {
                gap.gap.spend();
                gap.unverified = true;
            }
            Verdict::Whole if gap.gap.has_given() => {
                let length = self.length.load(Ordering::Relaxed);
                let length = Length::of(Some(length).filter(|length| *length != UNKNOWN));
                gap.whole = of_both(gap.whole, length);
            }
            Verdict::Whole | Verdict::Right | Verdict::Ungiven => {}
        }
        // A share that is taken after this finds the record.
        let mut of = lock(&self.gaps.of);
        let last = of.get_mut(&self.key).is_none_or(|users| {
            users.count = users.count.saturating_sub(1);
            users.count == 0
        });
        let changed = if last {
            of.remove(&self.key);
            self.remember(&mut gap)
        } else {
            verdict == Verdict::Verified && self.forget_suspicion(&mut gap)
        };
        drop(of);
        drop(gap);
        if changed {
            self.write_soon(self.key);
        }
    }

    /// Records what must be remembered when no body of the target is arriving; returns whether that must be written.
    fn remember(&self, gap: &mut TargetGap) -> bool {
        if gap.unverified {
            return self.note_unbound(gap, true);
        }
        let (length, start) = match gap.whole {
            // A client may lack the end of such a body, so that is where the gap stays. A small body is held back whole.
            Length::Known(length) if length > HELD_WHOLE => {
                let start = own_start(length);
                // If the gap of that body had moved, other clients lack what it withheld. One gap cannot withhold both places; of
                // a target with a record without a length, all bodies are held back whole.
                let moved = gap.gap.length() == Some(length) && gap.gap.start() != start;
                if moved { (None, 0) } else { (Some(length), start) }
            }
            Length::Unknown if gap.noted.is_some() || gap.gap.is_worth_a_note() => (None, 0),
            Length::NoBody | Length::Known(_) | Length::Unknown => {
                return self.gaps.unverified.remove(self.key);
            }
        };
        self.record(gap, Noted { length, gap: start, state: Delivered::Unbound })
    }

    /// A body was verified while other bodies of the target are arriving: the record says again what these gave and may give.
    /// Returns whether that must be written.
    fn forget_suspicion(&self, gap: &mut TargetGap) -> bool {
        if gap.noted.is_none_or(|noted| noted.state != Delivered::Suspect) {
            return false;
        }
        self.gaps.unverified.remove(self.key);
        let state = if gap.gap.is_spent() { Delivered::Spent } else { Delivered::Given };
        let (length, start) = (gap.gap.length(), gap.gap.next_start());
        self.record(gap, Noted { length, gap: start, state })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end(Verdict::Unverified);
    }
}

/// The length for which two bodies that were given whole are remembered. Clients may lack the ends of both, in two places; then
/// it is unknown, and all bodies of the target are held back whole. A small body is held back whole anyway.
fn of_both(one: Length, other: Length) -> Length {
    let counts = |length| match length {
        Length::NoBody => false,
        Length::Known(length) => length > HELD_WHOLE,
        Length::Unknown => true,
    };
    match (counts(one), counts(other)) {
        (false, _) => other,
        (true, false) => one,
        (true, true) if one == other => one,
        (true, true) => Length::Unknown,
    }
}

fn held_back_for(error: &io::Error) {
    tracing::warn!(%error, "a body is held back whole until it is verified");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held ended that task; the data is still consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
