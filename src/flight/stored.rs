//! Stored bodies that no promise vouches for, on their way to a client.
//!
//! A promise may name other bytes while such a body is given, or after its client left. What is given of it is noted as with a
//! body from the origin (promise P3), and a body that a new promise contradicts is cut.

use std::fmt;
use std::sync::Arc;

use super::intake::Binds;
use super::late::{Late, Place};
use super::reader::Broken;
use super::share::Gaps;
use super::{blocking, off_thread};
use crate::outcome::cause::Cause;
use crate::target::Target;

/// What the promises say about a stored body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// One vouches for it.
    Vouched,
    /// None contradicts it.
    Undecided,
    /// One names other bytes.
    Contradicted,
}

/// Says what the promises say about the body now.
pub(super) type Agrees = Arc<dyn Fn() -> Agreement + Send + Sync>;

/// A stored body that no promise vouched for when its client asked.
pub struct Unvouched {
    /// `None` once a promise vouches for the body.
    late: Option<Late>,
    length: u64,
    /// The offset after the bytes that were given in order from the start.
    given: u64,
    /// Whether any byte was given.
    gave: bool,
    binds: Binds,
    agrees: Agrees,
    target: Target,
}

impl Gaps {
    /// Watches a stored body of `target` with `length` bytes.
    pub fn watch_stored(
        self: &Arc<Self>,
        target: &Target,
        length: u64,
        (binds, agrees): (Binds, Agrees),
    ) -> Unvouched {
        let place = Place { start: Some(0), length: Some(length) };
        let (late, target) = (Some(self.join_unbound(target, place)), target.clone());
        Unvouched { late, length, given: 0, gave: false, binds, agrees, target }
    }
}

impl Unvouched {
    /// Notes that the bytes from `at` to before `end` are given now. `Err`: they must not be given, because a promise that came
    /// meanwhile names other bytes.
    pub async fn give(&mut self, at: u64, end: u64) -> Result<(), Broken> {
        if self.late.is_some() && (self.binds)() {
            let agreement = (self.agrees)();
            if agreement != Agreement::Undecided
                && let Some(late) = self.late.take()
            {
                if agreement == Agreement::Contradicted {
                    let _done = off_thread(move || bound(late)).await;
                    return Err(self.contradicted());
                }
                late.is_right(true);
            }
        }
        if let Some(late) = &self.late {
            late.give(at, end, end);
        }
        self.gave = true;
        if at == self.given {
            self.given = end;
        }
        Ok(())
    }

    fn contradicted(&self) -> Broken {
        let target = &self.target;
        let reason = format!(
            "{target}: an index that came meanwhile names another file than the stored one; ask again"
        );
        Broken::new(Cause::Promise, reason)
    }
}

/// A promise contradicts the body, and bytes of it were given.
fn bound(mut late: Late) {
    late.bind();
}

impl Drop for Unvouched {
    fn drop(&mut self) {
        let Some(late) = self.late.take() else { return };
        if !self.gave {
            late.gave_nothing();
        } else if self.given >= self.length {
            late.is_right(false);
        } else {
            // Its client may ask for the rest.
            let (binds, agrees) = (Arc::clone(&self.binds), Arc::clone(&self.agrees));
            blocking(move || match if binds() { agrees() } else { Agreement::Undecided } {
                Agreement::Vouched => late.is_right(true),
                Agreement::Contradicted => bound(late),
                Agreement::Undecided => drop(late),
            });
        }
    }
}

impl fmt::Debug for Unvouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unvouched({}, {} of {} bytes)", self.target, self.given, self.length)
    }
}
