//! A stale copy that is given while its origin is asked about it behind the answer (`ask_behind`, patience.rs).

use std::sync::Arc;

use hyper::header::HeaderMap;

use super::Pipeline;
use super::lookup::Stored;
use super::task::Task;
use crate::freshness;
use crate::proof::Rank;

impl Pipeline {
    /// The stale copy, if its origin allows to give it to this request while it is asked about it (RFC 5861 §3). What is
    /// signed is read together with other documents, and what only one may see needs its origin's word.
    pub(super) fn meanwhile(
        &self,
        task: &Task,
        stored: &Stored,
        request: &HeaderMap,
    ) -> Option<Stored> {
        let now = self.clock.now();
        let alone = task.artifact().is_none()
            && !task.is_of_one()
            && !task.heads()
            && stored.proof.rank != Rank::Signed;
        let may = alone
            && stored.usable
            && freshness::may_be_given_meanwhile(&stored.entry, request, now)
            && !self.memory.is_overtaken(task, stored.entry.requested_at);
        may.then(|| Stored {
            entry: Arc::clone(&stored.entry),
            proof: stored.proof.stale(),
            usable: true,
        })
    }
}
