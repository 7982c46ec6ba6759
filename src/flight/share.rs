//! The gaps of targets, shared by the bodies that are arriving (promise P3).
//!
//! A flight and a pass have a [`Share`] in the gap of their target. If they end without a verified body, what was recorded while
//! they gave bytes stays: the next body of the target shares the same gap, also after a restart (`store/unverified.rs`). Bytes
//! are recorded on disk as "may be given" before they are given, so that a crash loses no record.
//!
//! A body that no promise binds takes a share as well, and what is given of it is noted. A promise may come while it arrives, or
//! after its client left, and that client resumes where it was cut: then the bytes that it still lacks must be withheld. Such
//! notes are recorded on disk once a promise binds the target, and are kept in memory before that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::gap::{Gap, HELD_WHOLE, Hold};
use crate::store::{UNVERIFIED_FOR, Unverified};
use crate::target::{Key, Target};

/// The most targets that are remembered because a body that no promise bound was broken off. Of an evicted target, a promise that
/// comes later withholds a gap as of a new target, which may move: a client that has most of the evicted body may complete it.
const MOST_BROKEN: u64 = 4096;

/// The most targets that are remembered because a body that no promise bound was given whole. They are many, so they have their
/// own room and push no broken-off body out.
const MOST_WHOLE: u64 = 65_536;

/// The gaps of all targets of which bodies are arriving.
#[derive(Debug)]
pub struct Gaps {
    unverified: Arc<Unverified>,
    of: Mutex<HashMap<Key, Users>>,
    /// The gaps of targets of which no body is arriving, and whose last body was broken off before a promise bound it.
    broken: Cache<Key, Arc<Mutex<TargetGap>>>,
    /// The lengths of the bodies that were given whole before a promise bound them, of targets of which no body is arriving.
    whole: Cache<Key, Option<u64>>,
}

#[derive(Debug)]
struct Users {
    count: usize,
    gap: Arc<Mutex<TargetGap>>,
}

/// The gap of one target, and what must be remembered of it.
#[derive(Debug, Default)]
struct TargetGap {
    gap: Gap,
    /// Whether bytes were given of a body that was not verified, and no body was verified since.
    unverified: bool,
    /// Whether a body was given whole that no promise vouched for, and none was verified since.
    whole: bool,
    /// What is recorded of it on disk.
    noted: Option<Noted>,
}

/// What is recorded on disk of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// Bytes of a body of this length may be given, except the gap that begins at this offset.
    Given(Option<u64>, u64),
    /// Nothing may be given before a body is verified: one was refused, or the gap was given before a promise came.
    Suspect,
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
    ended: Mutex<bool>,
}

impl Gaps {
    /// Starts with what was recorded on disk before.
    pub fn new(unverified: Arc<Unverified>) -> Arc<Self> {
        Arc::new(Self {
            unverified,
            of: Mutex::default(),
            broken: remembered(MOST_BROKEN),
            whole: remembered(MOST_WHOLE),
        })
    }

    /// A share in the gap of `target`, whatever its variant and spelling, and for every principal.
    pub(super) fn share(self: &Arc<Self>, target: &Target) -> Share {
        let key = target.file_key();
        let mut of = lock(&self.of);
        let users = of.entry(key).or_insert_with(|| {
            let whole = self.whole.remove(&key);
            if let Some(gap) = self.broken.remove(&key) {
                lock(&gap).whole |= whole.is_some();
                return Users { count: 0, gap };
            }
            let row = self.unverified.get(key);
            let gap = match (row, whole) {
                (Some(row), _) => Gap::noted(row),
                (None, Some(length)) => Gap::at_the_end(length),
                (None, None) => Gap::default(),
            };
            let noted = row.map(|row| Noted::Given(row.length, gap.start()));
            let (unverified, whole) = (row.is_some(), whole.is_some());
            let gap = TargetGap { gap, unverified, whole, noted };
            let gap = Arc::new(Mutex::new(gap));
            Users { count: 0, gap }
        });
        users.count += 1;
        let gap = Arc::clone(&users.gap);
        drop(of);
        Share { gaps: Arc::clone(self), key, gap, ended: Mutex::new(false) }
    }

    /// Whether nothing of `target` may be given before its body is verified.
    pub fn is_suspect(&self, target: &Target) -> bool {
        let key = target.file_key();
        let present = lock(&self.of).get(&key).map(|users| Arc::clone(&users.gap));
        match present {
            Some(present) => lock(&present).gap.is_suspect(),
            None => self.unverified.get(key).is_some_and(|row| row.suspect),
        }
    }
}

impl Share {
    /// How a body is held back, now that its head has arrived; `length` is its announced length. `binds`: a promise binds it. If
    /// the record finds no room on disk, the body is held back whole. Blocking if a promise binds.
    pub(super) fn begin(&self, length: Option<u64>, binds: bool) -> Hold {
        let alone = lock(&self.gaps.of).get(&self.key).is_some_and(|users| users.count == 1);
        let hold = {
            let gap = &mut lock(&self.gap).gap;
            if alone {
                gap.begin_anew();
            }
            gap.hold(length)
        };
        if binds && hold == Hold::Gap { self.bind(length, hold) } else { hold }
    }

    /// A promise that binds was found, before the body or while it is arriving. `hold` is how the body would be held back
    /// otherwise. If the bytes that were given before have used up the gap, nothing is withheld of which a client that has these
    /// bytes could not make a complete file: the body is held back whole, and so are all later ones until one is verified. A body
    /// whose share has ended is held back whole. Blocking.
    pub(super) fn bind(&self, length: Option<u64>, hold: Hold) -> Hold {
        let ended = lock(&self.ended);
        if *ended {
            return Hold::Whole;
        }
        let mut gap = lock(&self.gap);
        if gap.gap.is_suspect() {
            return Hold::Whole;
        }
        let spent = gap.gap.is_spent();
        if hold == Hold::Whole || spent {
            // If it is recorded which bytes were given, the gap of that record is withheld, and this body needs none.
            let recorded = matches!(gap.noted, Some(Noted::Given(..))) && !spent;
            if gap.gap.has_given() && !recorded && gap.noted != Some(Noted::Suspect) {
                self.note_suspect(&mut gap);
            }
            return Hold::Whole;
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) && !gap.gap.has_given() {
            // No byte of it is given before the judgement.
            return Hold::Gap;
        }
        self.note_on_disk(&mut gap, length, None)
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
        // Another body may have begun in the place of the recorded one, before any byte was given.
        if gap.noted == Some(Noted::Given(length, start)) {
            return Hold::Gap;
        }
        match self.gaps.unverified.given(self.key, length, start) {
            Ok(()) => {
                gap.noted = Some(Noted::Given(length, start));
                Hold::Gap
            }
            Err(error) => {
                tracing::warn!(%error, "a body is held back whole until it is verified");
                Hold::Whole
            }
        }
    }

    /// Whether a body of the target was refused, and none was verified since.
    pub(super) fn is_suspect(&self) -> bool {
        lock(&self.gap).gap.is_suspect()
    }

    /// Checks and records in one step what may be given.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Gap) -> T) -> T {
        ask(&mut lock(&self.gap).gap)
    }

    /// A body was refused: the target is suspect from now on, also after a restart. Blocks until this is on disk.
    pub(super) fn refuse(&self) {
        let mut gap = lock(&self.gap);
        gap.gap.suspect();
        gap.unverified = true;
        self.note_suspect(&mut gap);
    }

    fn note_suspect(&self, gap: &mut TargetGap) {
        gap.noted = Some(Noted::Suspect);
        if let Err(error) = self.gaps.unverified.refused(self.key) {
            tracing::error!(%error, "that a target is suspect could not be stored, and is remembered only until larder stops");
        }
    }

    /// The body has ended. Only the first verdict counts.
    pub(super) fn end(&self, verdict: Verdict) {
        let mut ended = lock(&self.ended);
        if std::mem::replace(&mut *ended, true) {
            return;
        }
        let mut of = lock(&self.gaps.of);
        let mut gap = lock(&self.gap);
        match verdict {
            Verdict::Verified => {
                (gap.unverified, gap.whole) = (false, false);
                gap.gap.trust();
            }
            Verdict::Unverified => gap.unverified = true,
            Verdict::Whole => gap.whole = true,
            Verdict::Ungiven => {}
        }
        let users = of.get_mut(&self.key);
        let last = users.is_none_or(|users| {
            users.count = users.count.saturating_sub(1);
            users.count == 0
        });
        if last {
            of.remove(&self.key);
            match gap.noted {
                Some(_) if !gap.unverified => self.gaps.unverified.verified(self.key),
                None if gap.unverified && gap.gap.has_given() => {
                    gap.gap.shorten();
                    self.gaps.broken.insert(self.key, Arc::clone(&self.gap));
                }
                Some(_) | None => {}
            }
            // A body that is held back whole needs no gap.
            if gap.whole && gap.gap.length().is_none_or(|length| length > HELD_WHOLE) {
                self.gaps.whole.insert(self.key, gap.gap.length());
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end(Verdict::Unverified);
    }
}

fn remembered<T: Clone + Send + Sync + 'static>(most: u64) -> Cache<Key, T> {
    Cache::builder()
        .max_capacity(most)
        .time_to_live(UNVERIFIED_FOR)
        .eviction_policy(EvictionPolicy::lru())
        .build()
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
