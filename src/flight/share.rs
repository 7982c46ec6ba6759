//! The gaps of targets, shared by the bodies that are arriving (promise P3).
//!
//! A flight and a pass have a [`Share`] in the gap of their target. If they end without a verified body, what was recorded while
//! they gave bytes stays: the next body of the target shares the same gap, also after a restart (`store/unverified.rs`). Bytes
//! are recorded on disk as "may be given" before they are given, so that a crash loses no record.
//!
//! A body that no promise binds takes a share as well, and what is given of it is noted. A promise may come while it arrives, or
//! after its client left, and that client resumes where it was cut: then the bytes that it still lacks must be withheld. Such
//! notes are written while the bytes are given, not before: a crash may lose what happened a moment ago, if a promise comes after it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocking;
use super::gap::{Gap, HELD_WHOLE, Hold, Length, own_start};
use crate::clock::Time;
use crate::store::{Delivered, Unverified};
use crate::target::{Key, Target};

/// Stands for an unknown length.
const UNKNOWN: u64 = u64::MAX;

/// The gaps of all targets of which bodies are arriving.
#[derive(Debug)]
pub struct Gaps {
    unverified: Arc<Unverified>,
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
    /// All of it is what was promised.
    Verified,
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
        Arc::new(Self { unverified, of: Mutex::default() })
    }

    /// A share in the gap of `target`, whatever its variant and spelling, and for every principal.
    pub(super) fn share(self: &Arc<Self>, target: &Target) -> Share {
        let key = target.file_key();
        let mut of = lock(&self.of);
        let users = of.entry(key).or_insert_with(|| {
            let row = self.unverified.get(key);
            let gap = row.map_or_else(Gap::default, Gap::noted);
            let noted =
                row.map(|row| Noted { length: row.length, gap: gap.start(), state: row.state });
            // A client of such a body lacks bytes of the gap, however the body ended.
            let whole = row.filter(|row| row.state == Delivered::Unbound);
            let unverified = row.is_some() && whole.is_none();
            let whole = whole.map(|row| Length::of(row.length)).unwrap_or_default();
            let noted_at = row.map_or_else(|| self.unverified.now(), |row| row.since);
            let gap = TargetGap { gap, unverified, whole, noted, noted_at };
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
        if binds && hold == Hold::Gap { self.bind_to(&mut gap, length, hold) } else { hold }
    }

    /// A promise that binds was found, before the body or while it is arriving. `hold` is how the body would be held back
    /// otherwise. If the bytes that were given before have used up the gap, nothing is withheld of which a client that has these
    /// bytes could not make a complete file: the body is held back whole, and so are all later ones until one is verified. A body
    /// whose share has ended is held back whole. Blocking.
    pub(super) fn bind(&self, length: Option<u64>, hold: Hold) -> Hold {
        self.bind_to(&mut lock(&self.gap), length, hold)
    }

    fn bind_to(&self, gap: &mut TargetGap, length: Option<u64>, hold: Hold) -> Hold {
        if self.has_ended() || gap.gap.is_suspect() {
            return Hold::Whole;
        }
        let spent = gap.gap.is_spent();
        if hold == Hold::Whole || spent {
            // If it is recorded which bytes were given, the gap of that record is withheld, and this body needs none.
            let recorded = gap.noted.is_some() && !spent;
            if gap.gap.has_given() && !recorded {
                self.note_suspect(gap);
            }
            return Hold::Whole;
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) && !gap.gap.has_given() {
            // No byte of it is given before the judgement.
            return Hold::Gap;
        }
        self.note_on_disk(gap, length, None)
    }

    /// Moves the gap for a client that requests the bytes from `start` to before `end`, if that is possible. Blocking.
    pub(super) fn make_way(&self, length: Option<u64>, start: u64, end: u64) {
        let mut gap = lock(&self.gap);
        if let Some(place) = gap.gap.way_for(start, end)
            && self.note_on_disk(&mut gap, length, Some(place)) == Hold::Gap
        {
            gap.gap.move_to(place);
        }
    }

    fn note_on_disk(&self, gap: &mut TargetGap, length: Option<u64>, place: Option<u64>) -> Hold {
        let start = place.unwrap_or_else(|| gap.gap.start());
        let noted = Some(Noted { length, gap: start, state: Delivered::Given });
        // Another body may have begun in the place of the recorded one, before any byte was given.
        if gap.noted == noted && !self.gaps.unverified.is_old(gap.noted_at) {
            return Hold::Gap;
        }
        match self.gaps.unverified.given(self.key, length, start) {
            Ok(()) => {
                (gap.noted, gap.noted_at) = (noted, self.gaps.unverified.now());
                Hold::Gap
            }
            Err(error) => {
                tracing::warn!(%error, "a body is held back whole until it is verified");
                Hold::Whole
            }
        }
    }

    /// Whether nothing of the target may be given before a body is verified.
    pub(super) fn is_suspect(&self) -> bool {
        lock(&self.gap).gap.is_suspect()
    }

    /// Checks and records in one step what may be given. What no promise binds is written to disk meanwhile.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Gap) -> T) -> T {
        let mut gap = lock(&self.gap);
        let answer = ask(&mut gap.gap);
        let noted = !self.has_ended() && self.note_unbound(&mut gap, false);
        drop(gap);
        if noted {
            self.write_soon();
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
                self.record(gap, Noted { length: gap.gap.length(), gap: gap.gap.start(), state })
            }
        }
    }

    /// Records this, if it is news, or if the record would soon be too old; returns whether it must be written.
    fn record(&self, gap: &mut TargetGap, noted: Noted) -> bool {
        let changes = gap.noted != Some(noted) || self.gaps.unverified.is_old(gap.noted_at);
        if changes {
            (gap.noted, gap.noted_at) = (Some(noted), self.gaps.unverified.now());
            // There is always room for a file that no promise binds.
            let Noted { length, gap, state } = noted;
            let _put = self.gaps.unverified.put(self.key, length, gap, state);
        }
        changes
    }

    fn write_soon(&self) {
        let (unverified, key) = (Arc::clone(&self.gaps.unverified), self.key);
        blocking(move || {
            if let Err(error) = unverified.write(key, false) {
                tracing::warn!(%error, "what was given of a target is remembered only until larder stops");
            }
        });
    }

    /// A body was refused: the target is suspect from now on, also after a restart. Blocks until this is on disk.
    pub(super) fn refuse(&self) {
        self.note_suspect(&mut lock(&self.gap));
    }

    fn note_suspect(&self, gap: &mut TargetGap) {
        gap.gap.suspect();
        gap.unverified = true;
        let noted = Noted { length: None, gap: 0, state: Delivered::Suspect };
        (gap.noted, gap.noted_at) = (Some(noted), self.gaps.unverified.now());
        if let Err(error) = self.gaps.unverified.refused(self.key) {
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
            Verdict::Whole | Verdict::Ungiven => {}
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
            self.write_soon();
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
        self.record(gap, Noted { length: gap.gap.length(), gap: gap.gap.start(), state })
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held ended that task; the data is still consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const MIB: u64 = 1 << 20;

    fn gaps() -> (tempfile::TempDir, Arc<Gaps>, Target) {
        let data = tempfile::tempdir().unwrap();
        let unverified = Unverified::open(data.path().join("u"), Clock::system()).unwrap();
        let target = Target::from_url("https://example.org/a").unwrap();
        (data, Gaps::new(Arc::new(unverified)), target)
    }

    /// A body that counts as complete may lie in buffers when its client leaves. Its end stays withheld once it is promised.
    #[test]
    fn after_a_body_that_was_given_whole_the_gap_does_not_move() {
        for (verdict, moves) in
            [(Verdict::Whole, false), (Verdict::Verified, true), (Verdict::Ungiven, true)]
        {
            let (_data, gaps, target) = gaps();
            let first = gaps.share(&target);
            assert_eq!(first.begin(Some(2 * MIB), false), Hold::Gap);
            first.with(|gap| gap.note(0, 2 * MIB));
            first.end(verdict);
            // Bodies that give nothing change nothing.
            gaps.share(&target).end(Verdict::Ungiven);
            let again = gaps.share(&target);
            assert_eq!(again.begin(Some(2 * MIB), true), Hold::Gap);
            let way = again.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB));
            assert_eq!(way.is_some(), moves, "{verdict:?}");
            let other = if moves { Hold::Gap } else { Hold::Whole };
            assert_eq!(again.begin(Some(MIB), true), other, "{verdict:?}");
            assert!(!gaps.is_suspect(&target));
        }
    }

    /// Issue 10, row 2: what was given before a promise is known after a restart as well.
    #[test]
    fn what_was_given_before_a_promise_is_remembered_after_a_restart() {
        for (to, verdict, suspect, moves) in [
            (MIB, Verdict::Unverified, false, false),
            (2 * MIB - 10, Verdict::Unverified, true, false),
            (2 * MIB, Verdict::Whole, false, false),
            (2 * MIB, Verdict::Verified, false, true),
            (0, Verdict::Ungiven, false, true),
        ] {
            let (data, gaps, target) = gaps();
            let first = gaps.share(&target);
            first.begin(Some(2 * MIB), false);
            first.with(|gap| gap.note(0, to));
            first.end(verdict);
            let again = Unverified::open(data.path().join("u"), Clock::system()).unwrap();
            let gaps = Gaps::new(Arc::new(again));
            let next = gaps.share(&target);
            let hold = next.begin(Some(2 * MIB), true);
            let case = format!("{to} {verdict:?}");
            assert_eq!(hold, if suspect { Hold::Whole } else { Hold::Gap }, "{case}");
            assert_eq!(gaps.is_suspect(&target), suspect, "{case}");
            let way = next.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB));
            assert_eq!(way.is_some(), moves, "{case}");
        }
    }

    /// A crash while a body that no promise binds is given.
    #[test]
    fn what_is_being_given_before_a_promise_is_recorded_meanwhile() {
        let (data, gaps, target) = gaps();
        let key = target.file_key();
        let noted = || {
            // What a larder would read that starts now. Opening the file itself would replace it.
            std::fs::copy(data.path().join("u"), data.path().join("copy")).unwrap();
            let again = Unverified::open(data.path().join("copy"), Clock::system()).unwrap();
            again.get(key).map(|row| row.state)
        };
        let share = gaps.share(&target);
        share.begin(Some(2 * MIB), false);
        assert_eq!(noted(), None, "nothing was given");
        share.with(|gap| gap.note(0, MIB));
        assert_eq!(noted(), Some(Delivered::Unbound));
        let gaps =
            Gaps::new(Arc::new(Unverified::open(data.path().join("u"), Clock::system()).unwrap()));
        let share = gaps.share(&target);
        share.begin(Some(2 * MIB), false);
        share.with(|gap| gap.note(MIB, 2 * MIB));
        assert_eq!(noted(), Some(Delivered::Spent));
        // It was given whole after all: its client may lack the end.
        share.end(Verdict::Whole);
        assert_eq!(noted(), Some(Delivered::Unbound));
        let share = gaps.share(&target);
        share.begin(Some(2 * MIB), true);
        share.end(Verdict::Verified);
        assert_eq!(noted(), None);
    }

    /// A small body is held back whole once it is bound; that another body is small as well is the word of its origin.
    #[test]
    fn a_small_body_that_was_broken_off_is_recorded() {
        for given in [0, HELD_WHOLE - 10] {
            let (_data, gaps, target) = gaps();
            let small = gaps.share(&target);
            small.begin(Some(HELD_WHOLE), false);
            small.with(|gap| gap.note(0, given));
            drop(small);
            let hold = gaps.share(&target).begin(Some(2 * MIB), true);
            assert_eq!(hold, if given > 0 { Hold::Whole } else { Hold::Gap }, "{given}");
        }
    }

    /// A client that lacks the end of a body may not be given it from another body whose gap lies elsewhere.
    #[test]
    fn the_length_of_the_body_that_was_given_whole_is_remembered() {
        let (_data, gaps, target) = gaps();
        let (first, other) = (gaps.share(&target), gaps.share(&target));
        first.begin(Some(2 * MIB), false);
        other.begin(Some(MIB), false);
        other.with(|gap| gap.note(0, MIB));
        other.end(Verdict::Whole);
        first.end(Verdict::Ungiven);
        assert_eq!(gaps.unverified.get(target.file_key()).unwrap().length, Some(MIB));
        assert_eq!(gaps.share(&target).begin(Some(MIB), true), Hold::Gap);
    }

    /// When a promise comes after the gap was given, the target is suspect at once, for all requests.
    #[test]
    fn a_promise_that_comes_too_late_makes_the_target_suspect_for_everybody() {
        for verdict in [Verdict::Whole, Verdict::Ungiven, Verdict::Verified] {
            let (_data, gaps, target) = gaps();
            let (pass, fill) = (gaps.share(&target), gaps.share(&target));
            let hold = fill.begin(Some(2 * MIB), false);
            pass.begin(Some(2 * MIB), false);
            pass.with(|gap| gap.note(0, 2 * MIB));
            assert_eq!(fill.bind(Some(2 * MIB), hold), Hold::Whole);
            assert!(gaps.is_suspect(&target));
            pass.end(Verdict::Whole);
            fill.end(verdict);
            assert_eq!(gaps.is_suspect(&target), verdict != Verdict::Verified, "{verdict:?}");
        }
    }

    /// Two bodies of different lengths are no reason to withhold all of them until one is verified: the bytes of the first are
    /// recorded, and the second gives none.
    #[test]
    fn a_bound_body_of_another_length_makes_no_target_suspect() {
        for spent in [false, true] {
            let (_data, gaps, target) = gaps();
            let first = gaps.share(&target);
            assert_eq!(first.begin(Some(2 * MIB), true), Hold::Gap);
            first.with(|gap| gap.note(0, MIB));
            if spent {
                first.with(|gap| gap.note(2 * MIB - 10, 2 * MIB));
            }
            let second = gaps.share(&target);
            let hold = second.begin(Some(MIB), false);
            assert_eq!(second.bind(Some(MIB), hold), Hold::Whole);
            drop((first, second));
            assert_eq!(gaps.is_suspect(&target), spent);
        }
    }

    /// A small body of which bytes were given before a promise came leaves a row, so that it is not forgotten.
    #[test]
    fn a_small_body_that_is_bound_late_is_recorded() {
        for given in [false, true] {
            let (_data, gaps, target) = gaps();
            let share = gaps.share(&target);
            let hold = share.begin(Some(HELD_WHOLE), false);
            if given {
                share.with(|gap| gap.note(HELD_WHOLE - 10, HELD_WHOLE));
            }
            assert_eq!(share.bind(Some(HELD_WHOLE), hold), Hold::Gap);
            drop(share);
            assert_eq!(gaps.unverified.get(target.file_key()).is_some(), given);
        }
    }

    /// After a crash, the record describes the body whose bytes were given, not one that was begun before it (issue 10, row 2).
    #[test]
    fn a_body_that_is_begun_again_is_noted_anew() {
        let data = tempfile::tempdir().unwrap();
        let open = || Arc::new(Unverified::open(data.path().join("u"), Clock::system()).unwrap());
        let target = Target::from_url("https://example.org/a").unwrap();
        let key = target.file_key();
        let gaps = Gaps::new(open());
        let share = gaps.share(&target);
        assert_eq!(share.begin(Some(2 * MIB), true), Hold::Gap);
        assert_eq!(share.begin(Some(MIB), true), Hold::Gap);
        let row = open().get(key).unwrap();
        assert_eq!((row.length, row.gap), (Some(MIB), MIB - super::super::GAP));
        // The control: once a byte was given the length stays, and another body is held back whole.
        share.with(|gap| gap.note(0, 1));
        assert_eq!(share.begin(Some(2 * MIB), true), Hold::Whole);
        assert_eq!(open().get(key).unwrap().length, Some(MIB));
    }
}
