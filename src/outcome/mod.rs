//! How a request ended: one enum, with one name in the log, the metric and the `Cache-Status` header (RFC 9211).
//!
//! [`cause`] gives the reason if a request was refused or failed. [`metrics`] counts requests, [`recent`] keeps the
//! last failures. [`ended`] records the end of a request, also for its [`job`]. [`witness`] records what was seen of
//! clients that failed before they sent a request.

pub mod cause;
pub mod ended;
pub mod job;
pub mod metrics;
pub mod recent;
pub mod totals;
pub mod witness;

use std::fmt;

use self::cause::Cause;
use crate::policy::PassReason;
use crate::proof::Proof;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered from the store without contacting the origin.
    Hit,
    /// Answered from the store after the origin confirmed that the copy is current.
    Revalidated,
    /// Answered from the store because the origin failed.
    Stale,
    /// Fetched for this request.
    Miss,
    /// Answered from a fill that another request began.
    Collapsed,
    /// The client's own request, streamed both ways.
    Pass(PassReason),
    /// A CONNECT tunnel that was passed through.
    Tunnel,
    /// The body differs from what its index claimed.
    Rejected(Cause),
    /// larder refused the request deliberately.
    Refused(Cause),
    /// The origin did not answer, or larder could not serve the answer.
    Failed(Cause),
    /// A request for one of larder's own pages.
    Own,
}

impl Outcome {
    /// The name in logs, metrics and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Pass(_) => "pass",
            Self::Tunnel => "tunnel",
            Self::Rejected(_) => "rejected",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Own => "own",
        }
    }

    /// The reason, as in logs and metrics; empty if the outcome needs none.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Pass(reason) => reason.as_str(),
            Self::Rejected(cause) | Self::Refused(cause) | Self::Failed(cause) => cause.as_str(),
            Self::Hit
            | Self::Revalidated
            | Self::Stale
            | Self::Miss
            | Self::Collapsed
            | Self::Tunnel
            | Self::Own => "",
        }
    }

    /// Whether no body came from the origin for this request.
    pub const fn is_hit(self) -> bool {
        matches!(self, Self::Hit | Self::Revalidated | Self::Stale)
    }

    /// The `Cache-Status` member (RFC 9211 §2), with the proof as its detail.
    pub fn cache_status(self, proof: Option<Proof>) -> String {
        let mut text = String::from(match self {
            Self::Hit | Self::Stale => "larder; hit",
            Self::Revalidated => "larder; fwd=stale; fwd-status=304",
            Self::Miss => "larder; fwd=miss",
            Self::Collapsed => "larder; fwd=miss; collapsed",
            Self::Pass(PassReason::Method) => "larder; fwd=method",
            Self::Pass(_) => "larder; fwd=bypass",
            Self::Tunnel | Self::Rejected(_) | Self::Refused(_) | Self::Failed(_) | Self::Own => {
                "larder"
            }
        });
        let detail = match (self, proof) {
            (Self::Pass(reason), _) => Some(reason.as_str().to_owned()),
            (_, Some(proof)) => Some(proof.to_string()),
            (Self::Hit | Self::Revalidated | Self::Miss | Self::Collapsed, None) => None,
            (_, None) => Some(self.as_str().to_owned()),
        };
        if let Some(detail) = detail {
            // A string, because a token (RFC 8941 §3.3.4) can contain no spaces and cannot begin with `+`.
            text.push_str("; detail=\"");
            text.push_str(&detail);
            text.push('"');
        }
        text
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        let reason = self.reason();
        if !reason.is_empty() {
            write!(f, "({reason})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Rank;

    #[test]
    fn cache_status_says_what_happened_and_what_vouches() {
        let proof = Proof::of(Rank::SelfCertified);
        assert_eq!(
            Outcome::Hit.cache_status(Some(proof)),
            "larder; hit; detail=\"self-certified\""
        );
        assert_eq!(
            Outcome::Stale.cache_status(Some(Proof::of(Rank::Origin).stale())),
            "larder; hit; detail=\"origin+stale\""
        );
        assert_eq!(
            Outcome::Pass(PassReason::Credential).cache_status(None),
            "larder; fwd=bypass; detail=\"credential\""
        );
        assert_eq!(Outcome::Miss.cache_status(None), "larder; fwd=miss");
    }
}
