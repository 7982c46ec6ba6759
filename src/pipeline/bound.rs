//! The judgement of a pass that a promise binds: as with fills, an index is asked again before its word refuses.
//!
//! What is refused silences nobody but its client, whose own words the origin answered (silence.rs).

use std::net::IpAddr;
use std::sync::Arc;

use super::Pipeline;
use super::task::Task;
use crate::clock::Time;
use crate::digest::{Digest, Digests};
use crate::verify::Finding;

/// Who is held to which promises.
pub(super) struct Bound {
    pub(super) pipeline: Arc<Pipeline>,
    /// What it asks for, and in whose name: the client's own indexes hold for what it passes, too.
    pub(super) task: Task,
    pub(super) client: IpAddr,
    /// When the pass began.
    pub(super) asked: Time,
}

impl Bound {
    /// Judges a body of `size` bytes; the error says why it is refused.
    pub(super) async fn judge(self: Arc<Self>, digests: Digests, size: u64) -> Result<(), String> {
        let mut last = false;
        let all: Vec<Digest> = digests.iter().copied().collect();
        loop {
            let expected = self.pipeline.expectation_of(&self.task).comparable(&digests);
            match expected.find(&all, size, self.asked).because(digests.fault()) {
                // A pass is stored nowhere.
                Finding::Proven { .. } | Finding::Excused(_) => return Ok(()),
                Finding::Refused(mismatch) => {
                    return Err(self.pipeline.pass_refused(&self, &mismatch));
                }
                Finding::Doubted(mismatch) if last => {
                    let target = self.task.bare();
                    return Err(format!(
                        "{target}: {mismatch}; the index could not be asked again"
                    ));
                }
                Finding::Doubted(_) => {
                    last = true;
                    self.pipeline.ask_again_for(&self.task, &expected, self.asked).await;
                }
            }
        }
    }
}
