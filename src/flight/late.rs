//! Promises that appear while a body arrives.
//!
//! From then on the body shares the gap of its target. A fill checks for such a promise before it takes in each piece, and a
//! reader before it is given bytes: the promise also binds bytes that are already in the file. A body that is passed on as it
//! arrives, because no promise binds it, takes a [`Late`] share.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::gap::{HELD_WHOLE, Hold, own_start};
use super::intake::{Binding, Binds};
use super::share::{Gaps, Share, Verdict};
use super::{Answered, BodyHold, Flight, Shared, Vouched, blocking, off_thread};
use crate::target::Target;

/// The callback that says whether a promise that binds the body has appeared; empty until the fill begins.
#[derive(Default)]
pub(super) struct Asking(OnceLock<Binds>);

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asking")
    }
}

impl Flight {
    /// A promise that binds the body, or one that may and cannot be read now, was found while the body was arriving.
    pub async fn bind(&self, binding: Binding) {
        loop {
            let (answered, hold) = {
                let shared = self.lock();
                let open = !shared.holding.binds && shared.is_unjudged();
                let Some(answered) = shared.answered.clone().filter(|_| open) else {
                    return;
                };
                (answered, shared.holding.hold)
            };
            let (share, length) = (Arc::clone(&self.share), answered.length);
            let bind = move || share.bind_by(binding, length, hold);
            let hold = off_thread(bind).await.unwrap_or(Hold::Whole);
            if self.hold_bound(&answered, hold) {
                return;
            }
        }
    }

    /// A promise binds the body of `answered`, which is held back by `hold`. `false` if another body has begun in its place
    /// meanwhile: what was found about the first says nothing about it.
    pub(super) fn hold_bound(&self, answered: &Arc<Answered>, hold: Hold) -> bool {
        let mut same = false;
        self.update(|shared| {
            same = shared.answered.as_ref().is_some_and(|now| Arc::ptr_eq(now, answered));
            if same && !shared.holding.binds {
                shared.holding = BodyHold { binds: true, held: true, hold, ..shared.holding };
            }
        });
        same
    }

    /// Like [`Self::bind`], if `binds` says that such a promise exists. `binds` is called only while none is known.
    pub async fn bind_if(&self, binds: &Binds) {
        let bound = self.lock().holding.binds;
        if bound {
            return;
        }
        match binds() {
            Binding::No => {}
            binding @ (Binding::Unread | Binding::Yes) => self.bind(binding).await,
        }
    }

    /// From now on readers call `binds` too, before they are given bytes.
    pub(super) fn asks(&self, binds: &Binds) {
        let _first = self.asking.0.set(Arc::clone(binds));
    }

    /// The body is broken off, bytes of it were given, and no promise bound it. A promise that has come since then is recorded: a
    /// client that resumes must not be given what the gap withholds.
    pub(super) fn end_unbound(&self, length: Option<u64>, hold: Hold) {
        let share = Arc::clone(&self.share);
        match self.asking.0.get().map(Arc::clone) {
            Some(binds) => blocking(move || {
                // If the promise cannot be read now, the record says what was given, for the next body.
                if binds() == Binding::Yes {
                    share.bind(length, hold);
                }
                share.end(Verdict::Unverified);
            }),
            None => share.end(Verdict::Unverified),
        }
    }

    /// Whether nothing more of the body may be given before it is judged.
    pub fn is_held_whole(&self) -> bool {
        let shared = self.lock();
        let whole = shared.holding.held && shared.holding.hold == Hold::Whole;
        !shared.verified && (whole || self.share.is_suspect())
    }

    /// Like [`Self::bind_if`], for a client that is about to be given bytes.
    pub async fn bind_before_reading(&self) {
        if let Some(binds) = self.asking.0.get()
            && self.lock().is_unjudged()
        {
            self.bind_if(binds).await;
        }
    }
}

impl Flight {
    /// Notes that a client is given the bytes from `at` to before `end`, which may be those of the end without those before.
    /// Returns the length of the body if its share has ended, so that this must be noted with another one.
    pub(super) fn note_range(&self, shared: &Shared, at: u64, end: u64) -> Option<u64> {
        let unbound = !shared.holding.binds && shared.vouched == Vouched::No;
        let length = shared.answered.as_ref().and_then(|answered| answered.length);
        let length = length.unwrap_or_else(|| shared.have.max(at));
        if at == 0 || !unbound || length <= HELD_WHOLE || end <= own_start(length) {
            return None;
        }
        self.share.give_end();
        shared.end.is_some().then_some(length)
    }

    /// Notes a range that is given of a body whose share has ended.
    pub(super) fn note_late_range(&self, length: u64, at: u64, end: u64) {
        let place = Place { start: Some(0), length: Some(length) };
        let late = self.share.gaps().join_unbound(&self.target, place);
        late.give(at, end.min(length), length);
    }
}

/// The share in the gap of its target that a body takes although no promise binds it yet. If it is dropped without a verdict, the
/// body counts as not verified.
#[derive(Debug)]
pub struct Late {
    share: Share,
    hold: Hold,
    place: Place,
    binds: bool,
}

/// Where in a whole body the bytes of an answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The offset of the first byte of the answer, if it is known.
    pub start: Option<u64>,
    /// The length of the whole body, if it is known.
    pub length: Option<u64>,
}

impl Gaps {
    /// A share for an answer with bytes of `target` that no promise binds so far.
    pub fn join_unbound(self: &Arc<Self>, target: &Target, place: Place) -> Late {
        let share = self.share(target);
        let hold = share.begin(place.length, false);
        Late { share, hold, place, binds: false }
    }
}

impl Late {
    /// Whether a promise binds the body.
    pub fn binds(&self) -> bool {
        self.binds
    }

    /// A promise that binds the body, or one that may and cannot be read now, was found. Blocking.
    pub fn bind(&mut self, binding: Binding) {
        self.hold = self.share.bind_by(binding, self.place.length, self.hold);
        self.binds = true;
    }

    /// Returns up to where the bytes of the answer from `at` to before `end` may be given, when `have` bytes of it have arrived.
    /// These bytes count as given.
    pub fn give(&self, at: u64, end: u64, have: u64) -> u64 {
        let is_whole = self.place.start == Some(0);
        if self.binds && (self.hold == Hold::Whole || !is_whole) {
            return at;
        }
        self.share.with(|gap| {
            let to = if self.binds { gap.limit(at, end, have) } else { end };
            if !self.binds && to > at {
                if self.hold == Hold::Whole {
                    gap.spend();
                } else if !is_whole {
                    gap.note_part();
                }
            }
            match self.place.start {
                Some(start) => gap.note(start.saturating_add(at), start.saturating_add(to)),
                None if to > at => gap.spend(),
                None => {}
            }
            to
        })
    }

    /// The body has ended, and no promise contradicts it. `vouched`: a promise vouches for it.
    pub fn is_right(self, vouched: bool) {
        self.share.end(if vouched { Verdict::Right } else { Verdict::Whole });
    }

    /// No byte of the body was given.
    pub fn gave_nothing(self) {
        self.share.end(Verdict::Ungiven);
    }

    /// The body was refused: its target is suspect from now on. Blocking.
    pub fn refuse(self) {
        self.share.refuse();
    }

    /// The body is broken off. If `binds` says that a promise binds it by now, that is recorded on disk; its client may resume
    /// after a restart.
    pub fn broke_off(mut self, binds: Binds) {
        if self.binds {
            return;
        }
        blocking(move || {
            if binds() == Binding::Yes {
                self.bind(Binding::Yes);
            }
        });
    }
}
