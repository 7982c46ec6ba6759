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
/// comes later withholds only the usual gap.
const MOST_BROKEN: u64 = 4096;

/// The gaps of all targets of which bodies are arriving.
#[derive(Debug)]
pub struct Gaps {
    unverified: Arc<Unverified>,
    of: Mutex<HashMap<Key, Users>>,
    /// The gaps of targets of which no body is arriving, and whose last body was broken off before a promise bound it.
    broken: Cache<Key, Arc<Mutex<TargetGap>>>,
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
        let broken = Cache::builder()
            .max_capacity(MOST_BROKEN)
            .time_to_live(UNVERIFIED_FOR)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Arc::new(Self { unverified, of: Mutex::default(), broken })
    }

    /// A share in the gap of `target`, whatever its variant and spelling, and for every principal.
    pub(super) fn share(self: &Arc<Self>, target: &Target) -> Share {
        let key = target.file_key();
        let mut of = lock(&self.of);
        let users = of.entry(key).or_insert_with(|| {
            if let Some(gap) = self.broken.remove(&key) {
                return Users { count: 0, gap };
            }
            let row = self.unverified.get(key);
            let gap = row.map_or_else(Gap::default, Gap::noted);
            let noted = row.map(|row| Noted::Given(row.length, gap.start()));
            let gap = TargetGap { gap, unverified: row.is_some(), noted };
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
        if binds && hold == Hold::Gap { self.bind(length, hold, Gap::is_spent) } else { hold }
    }

    /// A promise that binds was found, before the body or while it is arriving. `hold` is how the body would be held back
    /// otherwise; `spent` says whether the bytes that were given before have used up the gap. Then nothing is withheld of which a
    /// client that has these bytes could not make a complete file, so the body is held back whole, and so are all later ones until
    /// one is verified. A body whose share has ended is held back whole. Blocking.
    pub(super) fn bind(
        &self,
        length: Option<u64>,
        hold: Hold,
        spent: impl FnOnce(&Gap) -> bool,
    ) -> Hold {
        let ended = lock(&self.ended);
        if *ended {
            return Hold::Whole;
        }
        let mut gap = lock(&self.gap);
        if gap.gap.is_suspect() {
            return Hold::Whole;
        }
        if hold == Hold::Whole || spent(&gap.gap) {
            if gap.gap.has_given() && gap.noted != Some(Noted::Suspect) {
                self.note_suspect(&mut gap);
            }
            return Hold::Whole;
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) {
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
                gap.unverified = false;
                gap.gap.trust();
            }
            Verdict::Unverified => gap.unverified = true,
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
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end(Verdict::Unverified);
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
