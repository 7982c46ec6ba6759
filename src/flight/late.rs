//! Promises that appear while a body arrives.
//!
//! From then on the body shares the gap of its target. A fill checks for such a promise before it takes in each piece, and a
//! reader before it is given bytes: the promise also binds bytes that are already in the file. A body that was passed on as it
//! arrived, because no promise bound it, takes a [`Late`] share.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::gap::Hold;
use super::intake::Binds;
use super::share::{Gaps, Share, Verdict};
use super::{BodyHold, Flight, off_thread};
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
    /// A promise that binds the body was found while the body was arriving.
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

    /// Like [`Self::bind`], if `binds` says that such a promise exists. `binds` is called only while none is known.
    pub async fn bind_if(&self, binds: &Binds) {
        let bound = self.lock().holding.binds;
        if !bound && binds() {
            self.bind().await;
        }
    }

    /// From now on readers call `binds` too, before they are given bytes.
    pub(super) fn asks(&self, binds: &Binds) {
        let _first = self.asking.0.set(Arc::clone(binds));
    }

    /// Like [`Self::bind_if`], for a reader that is about to be given bytes.
    pub(super) async fn bind_before_reading(&self) {
        if let Some(binds) = self.asking.0.get()
            && self.lock().is_unjudged()
        {
            self.bind_if(binds).await;
        }
    }
}

/// The share in the gap of its target that a body takes after it began. If it is dropped without a verdict, the body counts as
/// not verified.
#[derive(Debug)]
pub struct Late {
    share: Share,
    hold: Hold,
}

impl Gaps {
    /// A share for a body of `target` of which the first `given` bytes were given. `length` is its length, if known. Blocking.
    pub fn join_late(self: &Arc<Self>, target: &Target, length: Option<u64>, given: u64) -> Late {
        let share = self.share(target);
        let hold = match share.begin(length, false) {
            Hold::Whole => Hold::Whole,
            Hold::Gap => {
                share.with(|gap| gap.note(0, given));
                // The gap of a body of unknown length is its last 64 KiB, and all other bodies of the target are held back whole
                // beside it. So no byte that was given of it was in the gap.
                share.bind_unless(length, |gap| length.is_some() && gap.is_spent())
            }
        };
        Late { share, hold }
    }
}

impl Late {
    /// Returns up to where the bytes from `at` to before `end` may be given, when `have` bytes have arrived. These bytes count as
    /// given.
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

    /// The body has ended, and no promise contradicts it. `vouched`: a promise vouches for it.
    pub fn is_right(self, vouched: bool) {
        self.share.end(if vouched { Verdict::Verified } else { Verdict::Ungiven });
    }

    /// The body was refused: its target is suspect from now on. Blocking.
    pub fn refuse(self) {
        self.share.refuse();
    }
}
