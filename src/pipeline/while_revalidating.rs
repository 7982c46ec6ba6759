//! stale-while-revalidate: a stale copy is given while larder revalidates it in the background (`ask_behind`, patience.rs).

use std::sync::Arc;

use hyper::header::HeaderMap;

use super::Pipeline;
use super::lookup::Stored;
use super::task::Task;
use crate::freshness;
use crate::proof::Rank;

impl Pipeline {
    /// The stale copy, if the origin allows that it is given to this request during revalidation (RFC 5861 §3). Excluded are
    /// signed documents, because clients read them together with other documents, and entries of one credential, which need the
    /// origin's answer first.
    pub(super) fn meanwhile(
        &self,
        task: &Task,
        stored: &Stored,
        request: &HeaderMap,
    ) -> Option<Stored> {
        let now = self.clock.now();
        let alone = task.artifact().is_none()
            && !task.is_private_index()
            && !task.is_snapshot_root()
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
