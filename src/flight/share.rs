//! The gaps of targets, shared by the bodies that are arriving (promise P3).
//!
//! A flight and a pass have a [`Share`] in the gap of their target. What is noted while they give bytes stays when they end
//! without a verified body: the next body of the target shares the same gap, also after a restart (`store/unverified.rs`).
//! Whatever is given is on disk as "may be given" before, so that a crash forgets nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gap::{Gap, HELD_WHOLE, Hold};
use crate::store::Unverified;
use crate::target::{Key, Target};

/// The gaps of all targets of which bodies are arriving.
#[derive(Debug)]
pub struct Gaps {
    unverified: Arc<Unverified>,
    of: Mutex<HashMap<Key, Users>>,
}

#[derive(Debug)]
struct Users {
    count: usize,
    gap: Arc<Mutex<TargetGap>>,
}

/// The gap of one target, and what is to be remembered of it.
#[derive(Debug, Default)]
struct TargetGap {
    gap: Gap,
    /// Bytes were given of a body that was not verified, and of none that was verified since.
    unverified: bool,
    /// What is noted of it on disk.
    noted: Option<Noted>,
}

/// What is noted on disk of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// Bytes of a body of so many bytes may be given, but those from here on.
    Given(Option<u64>, u64),
    /// A body was refused.
    Refused,
}

/// How a body ended, as far as the gap of its target is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it is what was promised.
    Verified,
    /// It was not judged, or not in its favour, and bytes of it were given.
    Unverified,
    /// Nothing of it was given.
    Ungiven,
}

/// The part of one arriving body in the gap of its target. Dropped without a verdict, its body counts as not verified.
#[derive(Debug)]
pub(super) struct Share {
    gaps: Arc<Gaps>,
    key: Key,
    gap: Arc<Mutex<TargetGap>>,
    ended: Mutex<bool>,
}

impl Gaps {
    /// With what was noted before.
    pub fn new(unverified: Arc<Unverified>) -> Arc<Self> {
        Arc::new(Self { unverified, of: Mutex::default() })
    }

    /// A share in the gap of `target`, in whatever variant and spelling, and for whomever.
    pub(super) fn share(self: &Arc<Self>, target: &Target) -> Share {
        let key = target.file_key();
        let mut of = lock(&self.of);
        let users = of.entry(key).or_insert_with(|| {
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
    /// How a body of `length` bytes, if announced, is held, now that its head has come. `binds`: a promise binds it. What has no
    /// room on disk is held whole. Blocking where a promise binds.
    pub(super) fn begin(&self, length: Option<u64>, binds: bool) -> Hold {
        let alone = lock(&self.gaps.of).get(&self.key).is_some_and(|users| users.count == 1);
        let hold = {
            let gap = &mut lock(&self.gap).gap;
            if alone {
                gap.begin_anew();
            }
            gap.hold(length)
        };
        if binds && hold == Hold::Gap { self.bind(length) } else { hold }
    }

    /// A promise came that binds, before the body or while it is arriving. What was given before it came may have spent the
    /// gap. Once the body has ended nothing is noted: who would erase it? Blocking.
    pub(super) fn bind(&self, length: Option<u64>) -> Hold {
        self.bind_unless(length, Gap::is_spent)
    }

    /// The same unless what was given before has spent the gap. Blocking.
    pub(super) fn bind_unless(
        &self,
        length: Option<u64>,
        spent: impl FnOnce(&Gap) -> bool,
    ) -> Hold {
        let ended = lock(&self.ended);
        if *ended {
            return Hold::Whole;
        }
        let mut gap = lock(&self.gap);
        if gap.gap.is_suspect() || spent(&gap.gap) {
            return Hold::Whole;
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) {
            // Nothing of it is given before the judgement.
            return Hold::Gap;
        }
        self.note_on_disk(&mut gap, length, None)
    }

    /// Moves the gap out of the way of a client that asks for the bytes from `start` to before `end`, where that is possible.
    /// Blocking.
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
        // Another body may have begun in the place of the one that was noted, before anything was given.
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

    /// Whether a body of the target was refused, and none verified since.
    pub(super) fn is_suspect(&self) -> bool {
        lock(&self.gap).gap.is_suspect()
    }

    /// Asks and notes in one step what may be given.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Gap) -> T) -> T {
        ask(&mut lock(&self.gap).gap)
    }

    /// A body was refused: the target is suspect from now on, also after a restart. Blocking until it is on disk.
    pub(super) fn refuse(&self) {
        let mut gap = lock(&self.gap);
        gap.gap.suspect();
        gap.unverified = true;
        gap.noted = Some(Noted::Refused);
        if let Err(error) = self.gaps.unverified.refused(self.key) {
            tracing::error!(%error, "that a body was refused is remembered only until larder stops");
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
            if gap.noted.is_some() && !gap.unverified {
                self.gaps.unverified.verified(self.key);
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
    // A panic while it was held ended that task; what was noted is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const MIB: u64 = 1 << 20;

    /// Issue 10, row 2: what a crash leaves speaks of the body whose bytes were given, and not of one that was begun before it.
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
        // The control: once a byte was given the length stays, and another body is held whole.
        share.with(|gap| gap.note(0, 1));
        assert_eq!(share.begin(Some(2 * MIB), true), Hold::Whole);
        assert_eq!(open().get(key).unwrap().length, Some(MIB));
    }
}
