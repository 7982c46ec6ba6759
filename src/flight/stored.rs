//! Complete bodies that no promise vouches for, on their way to a client.
//!
//! A promise may name other bytes while such a body is given, or after its client left. So a body that a new promise contradicts
//! is cut, whether it is stored or its fill has ended and its readers have not. What is given of a stored body is noted as with a
//! body from the origin (promise P3).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;

use super::gap::{HELD_WHOLE, own_start};
use super::intake::Binding;
use super::late::{Late, Place};
use super::reader::Broken;
use super::share::Gaps;
use super::{Flight, Vouched, blocking, off_thread};
use crate::outcome::cause::Cause;
use crate::target::Target;

/// What the promises say about a complete body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// One vouches for it.
    Vouched,
    /// None contradicts it.
    Undecided,
    /// One names other bytes.
    Contradicted,
    /// One that may name other bytes cannot be read now.
    Unread,
}

/// Says what the promises say about a body now. It is called before each piece is given, so it must be quick while no promise has
/// changed.
pub type Agrees = Arc<dyn Fn() -> Agreement + Send + Sync>;

/// Says whether a stored body is what is promised by now, once its content coding is decoded. That takes a while.
pub type Decodes = Box<dyn FnOnce() -> BoxFuture<'static, bool> + Send + Sync>;

/// Says what the promises say about the body of a flight once that is complete; empty until then.
#[derive(Default)]
pub(super) struct Agreeing(Mutex<Option<Agrees>>);

impl fmt::Debug for Agreeing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agreeing")
    }
}

/// A stored body that no promise vouched for when its client asked.
pub struct Unvouched {
    /// `None` once a promise vouches for the body, and if it is so small that it is held back whole once it is bound: what was
    /// given of it before completes nothing then.
    late: Option<Late>,
    /// Whether a promise may still come.
    watches: bool,
    length: u64,
    /// The offset after the bytes that were given in order from the start.
    given: u64,
    /// Whether any byte was given.
    gave: bool,
    agrees: Agrees,
    decodes: Option<Decodes>,
    /// Whether a promise that seems to contradict it may be about what it decodes to.
    may_decode: bool,
    target: Target,
}

impl Gaps {
    /// Watches a stored body of `target` with `length` bytes. `decodes`: for a body with a content coding.
    pub fn watch_stored(
        self: &Arc<Self>,
        target: &Target,
        length: u64,
        agrees: Agrees,
        decodes: Option<Decodes>,
    ) -> Unvouched {
        let place = Place { start: Some(0), length: Some(length) };
        let late = (length > HELD_WHOLE).then(|| self.join_unbound(target, place));
        let (target, may_decode) = (target.clone(), decodes.is_some());
        let (given, gave) = (0, false);
        Unvouched { late, watches: true, length, given, gave, agrees, decodes, may_decode, target }
    }
}

impl Unvouched {
    /// Notes that the bytes from `at` to before `end` are given now. `Err`: they must not be given, because a promise that came
    /// meanwhile names other bytes.
    pub async fn give(&mut self, at: u64, end: u64) -> Result<(), Broken> {
        let mut agreement = if self.watches { (self.agrees)() } else { Agreement::Undecided };
        if agreement == Agreement::Contradicted
            && let Some(decodes) = self.decodes.take()
        {
            // Its client may leave meanwhile.
            self.may_decode = decodes().await;
            if self.may_decode {
                agreement = Agreement::Vouched;
            }
        }
        if agreement != Agreement::Undecided {
            self.watches = false;
            let late = self.leave();
            if agreement == Agreement::Vouched {
                if let Some(late) = late {
                    late.is_right(true);
                }
            } else {
                match late {
                    Some(late) if !self.gave => late.gave_nothing(),
                    Some(late) if agreement == Agreement::Contradicted => {
                        let _done = off_thread(move || bound(late)).await;
                    }
                    // What was given is recorded, and counts if a promise binds the target.
                    late => drop(late),
                }
                return Err(contradicted(&self.target));
            }
        }
        if let Some(late) = &self.late {
            // A client that is given all in order lacks the end if it lacks any. What it has of the end is noted if it leaves.
            let end = if at == self.given { end.min(own_start(self.length)).max(at) } else { end };
            late.give(at, end, end);
        }
        self.gave = true;
        if at == self.given {
            self.given = end;
        }
        Ok(())
    }
}

impl Unvouched {
    /// Takes the share, after noting what was not noted yet.
    fn leave(&mut self) -> Option<Late> {
        let late = self.late.take()?;
        late.give(self.given.min(own_start(self.length)), self.given, self.given);
        Some(late)
    }
}

fn contradicted(target: &Target) -> Broken {
    let reason = format!(
        "{target}: an index that came meanwhile promises it, and does not vouch for the bytes that larder was giving; ask again"
    );
    Broken::new(Cause::Promise, reason)
}

/// A promise contradicts the body, and bytes of it were given.
fn bound(mut late: Late) {
    late.bind(Binding::Yes);
}

impl Drop for Unvouched {
    fn drop(&mut self) {
        if self.given >= self.length
            && let Some(late) = self.late.take()
        {
            late.is_right(false);
            return;
        }
        let Some(late) = self.leave() else { return };
        if !self.gave {
            return late.gave_nothing();
        }
        // Its client may ask for the rest.
        let (agrees, coded) = (Arc::clone(&self.agrees), self.may_decode);
        blocking(move || match agrees() {
            Agreement::Vouched => late.is_right(true),
            // It may be right once it is decoded. What was given is recorded, as with a promise that is not read yet.
            Agreement::Contradicted if coded => drop(late),
            Agreement::Contradicted => bound(late),
            Agreement::Undecided | Agreement::Unread => drop(late),
        });
    }
}

impl fmt::Debug for Unvouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unvouched({}, {} of {} bytes)", self.target, self.given, self.length)
    }
}

impl Flight {
    /// The body is complete and was judged: from now on `agrees` says what the promises say about it. Its readers may need longer
    /// than its fill. What they were given is recorded in the gap of its target when the flight ends.
    pub fn compare_later(&self, agrees: Agrees) {
        *self.agreeing.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(agrees);
    }

    /// Why nothing more of the complete body may be given: a promise that came meanwhile names other bytes.
    pub(super) fn contradicted(&self) -> Option<Broken> {
        let unvouched = {
            let shared = self.lock();
            shared.verified && shared.vouched == Vouched::No
        };
        if !unvouched {
            return None;
        }
        let agrees = self.agreeing.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        match agrees() {
            Agreement::Vouched => {
                self.vouch();
                None
            }
            Agreement::Undecided => None,
            Agreement::Contradicted | Agreement::Unread => Some(contradicted(&self.target)),
        }
    }
}
