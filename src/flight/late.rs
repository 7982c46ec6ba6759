//! Promises that come while a body arrives.
//!
//! From then on the body shares the gap of its target. Of a fill it is asked before each piece is taken in, and before it is given:
//! what lies in the file already is bound as well. A body that was passed on as it came, because nothing was promised of it, takes a
//! [`Late`] share.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::gap::Hold;
use super::intake::Binds;
use super::share::{Gaps, Share, Verdict};
use super::{BodyHold, Flight, off_thread};
use crate::target::Target;

/// How it is asked whether a promise has come.
#[derive(Default)]
pub(super) struct Asking(OnceLock<Binds>);

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asking")
    }
}

impl Flight {
    /// A promise came that binds, while the body was arriving.
    pub async fn bind(&self) {
        let (length, hold) = {
            let shared = self.lock();
            let open = !shared.holding.binds && shared.is_unjudged();
            let Some(answered) = shared.answered.as_ref().filter(|_| open) else {
                return;
            };
            (answered.length, shared.holding.hold)
        };
        let share = Arc::clone(&self.share);
        let hold = match hold {
            Hold::Whole => hold,
            Hold::Gap => off_thread(move || share.bind(length)).await.unwrap_or(Hold::Whole),
        };
        self.update(|shared| {
            shared.holding = BodyHold { binds: true, held: true, hold, ..shared.holding };
        });
    }

    /// The same if `binds` says that one has come, which is asked while none is known.
    pub async fn bind_if(&self, binds: &Binds) {
        let bound = self.lock().holding.binds;
        if !bound && binds() {
            self.bind().await;
        }
    }

    /// From now on readers ask as well.
    pub(super) fn asks(&self, binds: &Binds) {
        let _first = self.asking.0.set(Arc::clone(binds));
    }

    /// The same for a reader that is about to be given bytes.
    pub(super) async fn bind_before_reading(&self) {
        if let Some(binds) = self.asking.0.get()
            && self.lock().is_unjudged()
        {
            self.bind_if(binds).await;
        }
    }
}

/// The share that a body takes late in the gap of its target. Dropped before its end, the body counts as not verified.
#[derive(Debug)]
pub struct Late {
    share: Share,
    hold: Hold,
}

impl Gaps {
    /// A share for a body of `target`, of `length` bytes if that is known, of which the first `given` were given. Blocking.
    pub fn join_late(self: &Arc<Self>, target: &Target, length: Option<u64>, given: u64) -> Late {
        let share = self.share(target);
        let hold = match share.begin(length, false) {
            Hold::Whole => Hold::Whole,
            Hold::Gap => {
                share.with(|gap| gap.note(0, given));
                // The gap of a body of unknown length is what comes last, and all other bodies of the target are held whole
                // beside it: what was given of it was not of the gap.
                share.bind_unless(length, |gap| length.is_some() && gap.is_spent())
            }
        };
        Late { share, hold }
    }
}

impl Late {
    /// Up to where bytes may be given from `at` on, before `end`, when `have` have come; they count as given.
    pub fn give(&self, at: u64, end: u64, have: u64) -> u64 {
        if self.hold == Hold::Whole {
            return at;
        }
        self.share.with(|gap| {
            let to = gap.limit(at, end, have);
            gap.note(at, to);
            to
        })
    }

    /// Nothing speaks against the body; `vouched`: a promise speaks for it.
    pub fn is_right(self, vouched: bool) {
        self.share.end(if vouched { Verdict::Verified } else { Verdict::Ungiven });
    }

    /// It was refused: its target is suspect. Blocking.
    pub fn refuse(self) {
        self.share.refuse();
    }
}
