//! How a flight ended.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;

use super::window::NOT_KEPT;
use crate::entry::{Entry, Head};
use crate::origin::OriginError;
use crate::outcome::cause::{Cause, Why};
use crate::target::Target;

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Verified and stored.
    Kept(Arc<Entry>),
    /// Complete, and not stored.
    Given,
    /// The origin said that the stored copy is current.
    Current(Arc<Entry>),
    /// Not what was promised: nothing more is given.
    Refused(String),
    /// The origin gave no complete answer.
    Failed(StatusCode, Why),
    /// A small answer that is not stored, for every client that waits.
    Relayed(Arc<(Head, Bytes)>),
    /// Each client's own request is passed.
    Pass,
    /// The answer is for the leader only, which takes it with [`take_handed`](super::Flight::take_handed); the other clients'
    /// requests are passed.
    Handed,
}

impl From<&OriginError> for End {
    fn from(error: &OriginError) -> Self {
        Self::Failed(error.status(), error.why())
    }
}

impl End {
    /// The transfer broke off.
    pub(super) fn broken(text: &str) -> Self {
        Self::Failed(StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, text))
    }

    /// The body is right, and nothing of it was kept, because it was held back whole and the store has no room for it. `vouched`:
    /// a promise vouches for it, so that the next one need not be held back whole.
    pub fn not_kept(target: &Target, vouched: bool) -> Self {
        let line = if vouched {
            format!(
                "{target} was verified, and the store has no room for it; ask again, and it is given as it arrives"
            )
        } else {
            format!("{target}: {NOT_KEPT}")
        };
        Self::Failed(StatusCode::SERVICE_UNAVAILABLE, Why::new(Cause::Busy, line))
    }

    /// A judgement is not possible yet; the client may try again in a moment.
    pub fn undecided(text: String) -> Self {
        Self::Failed(StatusCode::SERVICE_UNAVAILABLE, Why::new(Cause::Undecided, text))
    }
}
