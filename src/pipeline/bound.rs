//! Judges the body of a pass that a promise binds. As with fills, an index is asked again before its claim refuses a body.

use std::net::IpAddr;
use std::sync::Arc;

use super::Pipeline;
use super::content_coding::is_coded;
use super::quarantine::QuarantineScope;
use super::task::Task;
use crate::clock::Time;
use crate::digest::Digest;
use crate::entry::Head;
use crate::flight::Body;
use crate::received::Spooled;
use crate::target::Target;
use crate::verify::{Expectation, Finding, Mismatch};

/// What the body of a pass is held to.
pub(super) struct Bound {
    pub(super) pipeline: Arc<Pipeline>,
    /// What is requested, and for which principal: the claims of the client's own indexes bind its passes too.
    pub(super) task: Task,
    pub(super) client: IpAddr,
    /// When the pass began.
    pub(super) asked: Time,
    /// Whether a refusal of the body may be shown to all clients.
    pub(super) public: bool,
}

/// Why the body of a pass is not given completely.
pub(super) enum Fault {
    /// The body is not what was promised.
    Refused(String),
    /// A claim contradicts the body, and its index could not be asked again.
    Doubted(String),
}

impl Bound {
    /// Judges a body that came with `head`. `Ok(true)`: a promise vouches for it. `Ok(false)`: no promise contradicts it.
    pub(super) async fn judge(&self, head: &Head, body: &Body) -> Result<bool, Fault> {
        let (digests, size) = body.digests();
        let spooled = match body {
            Body::Spooled(spooled) => Some(spooled),
            Body::Unstored(..) => None,
        };
        let coded = spooled.filter(|_| is_coded(head));
        let mut last = false;
        let all: Vec<Digest> = digests.iter().copied().collect();
        loop {
            let promised = self.pipeline.expectation_of(&self.task);
            let expected = promised.clone().comparable(digests);
            if promised.binds_more_than(&expected) {
                return Err(Fault::Doubted(promised_meanwhile(self.task.bare())));
            }
            match expected.find(&all, size, self.asked).because(digests.fault()) {
                // A pass is not stored, so an excused body needs no further proof.
                Finding::Proven { .. } | Finding::Excused(_) => {
                    return Ok(expected.vouches_for(&all, size));
                }
                Finding::Doubted(_) | Finding::Refused(_)
                    if let Some(coded) = coded
                        && self.is_right_decoded(head, coded, &promised).await =>
                {
                    return Ok(true);
                }
                Finding::Refused(mismatch) => return Err(Fault::Refused(self.refused(&mismatch))),
                Finding::Doubted(mismatch) if last => {
                    let target = self.task.bare();
                    return Err(Fault::Doubted(format!(
                        "{target}: {mismatch}; the index could not be asked again"
                    )));
                }
                Finding::Doubted(_) => {
                    last = true;
                    self.pipeline.ask_again_for(&self.task, &expected, self.asked).await;
                }
            }
        }
    }

    /// Whether the body is what was promised once its content coding is decoded, as with fills.
    async fn is_right_decoded(&self, head: &Head, coded: &Spooled, promised: &Expectation) -> bool {
        let (pipeline, body) = (&self.pipeline, (head, coded));
        pipeline.is_right_decoded(&self.task, body, promised, self.asked).await
    }

    /// Puts the target of a refused body into quarantine for this client only, because the origin answered this client's own
    /// request.
    pub(super) fn quarantine(&self, reason: &str) {
        let (pipeline, whom) = (&self.pipeline, QuarantineScope::Client(self.client));
        pipeline.quarantines.begin(self.task.bare(), whom, reason, pipeline.clock.now());
    }

    /// Records that the body is not what was promised, and returns the reason.
    fn refused(&self, mismatch: &Mismatch) -> String {
        let (pipeline, target) = (&self.pipeline, self.task.bare());
        let (now, reason) = (pipeline.clock.now(), format!("{target} was refused: {mismatch}"));
        tracing::error!(target: "larder::refused", url = %target, %mismatch, "refused: not what was promised");
        pipeline.metrics.rejected(target.to_string(), mismatch.to_string(), self.public);
        pipeline.store.note_rejection(target, &mismatch.to_string(), now);
        reason
    }
}

/// The reason to withhold the end of a body of which no copy was kept, when a digest is promised that was not computed.
pub(super) fn promised_meanwhile(target: &Target) -> String {
    format!(
        "{target}: an index that promises its bytes came while it arrived, and nothing was kept to compare with it; try again"
    )
}
