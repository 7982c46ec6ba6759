//! The judgement of a pass that a promise binds: as with fills, an index is asked again before its word refuses.
//!
//! What is refused silences nobody but its client, whose own words the origin answered (silence.rs).

use std::net::IpAddr;
use std::sync::Arc;

use super::Pipeline;
use super::asker::Asker;
use crate::clock::Time;
use crate::digest::{Digest, Digests};
use crate::ecosystem::Recognition;
use crate::origin::Reach;
use crate::target::Target;
use crate::verify::Finding;

/// Who is held to which promises.
pub(super) struct Bound {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) target: Target,
    pub(super) recognition: Recognition,
    pub(super) reach: Reach,
    pub(super) client: IpAddr,
    /// When the request came.
    pub(super) asked: Time,
}

impl Bound {
    /// Judges a body of `size` bytes; the error says why it is refused.
    pub(super) async fn judge(self: Arc<Self>, digests: Digests, size: u64) -> Result<(), String> {
        let mut last = false;
        let all: Vec<Digest> = digests.iter().copied().collect();
        loop {
            let expected = self.pipeline.promised(&self.recognition, &self.target);
            let Some(expected) = expected.map(|expected| expected.comparable(&digests)) else {
                return Ok(());
            };
            match expected.find(&all, size, self.asked).because(digests.fault()) {
                // A pass is stored nowhere.
                Finding::Proven { .. } | Finding::Excused(_) => return Ok(()),
                Finding::Refused(mismatch) => {
                    return Err(self.pipeline.pass_refused(&self, &mismatch));
                }
                Finding::Doubted(mismatch) if last => {
                    let target = &self.target;
                    return Err(format!(
                        "{target}: {mismatch}; the index could not be asked again"
                    ));
                }
                Finding::Doubted(_) => {
                    last = true;
                    self.pipeline
                        .ask_again(
                            &self.recognition,
                            (self.reach, &Asker::default()),
                            &expected,
                            self.asked,
                        )
                        .await;
                }
            }
        }
    }
}
