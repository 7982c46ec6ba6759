//! How a flight ended.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;

use crate::entry::{Entry, Head};
use crate::origin::OriginError;
use crate::outcome::cause::{Cause, Why};

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
    /// A small answer that is not stored, for everybody who waits.
    Relayed(Arc<(Head, Bytes)>),
    /// Everybody asks the origin in its own words.
    Pass,
    /// The answer is for the leader alone, who takes it with [`take_handed`](super::Flight::take_handed); the others ask themselves.
    Handed,
}

impl From<&OriginError> for End {
    fn from(error: &OriginError) -> Self {
        Self::Failed(error.status(), error.why())
    }
}

impl End {
    /// It came to no end.
    pub(super) fn broken(text: &str) -> Self {
        Self::Failed(StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, text))
    }

    /// It may be asked for again in a moment: what would decide is not known yet.
    pub fn undecided(text: String) -> Self {
        Self::Failed(StatusCode::SERVICE_UNAVAILABLE, Why::new(Cause::Undecided, text))
    }
}
