//! Snapshots whose newest root at the origin does not count: their members are passed, so that a client gets one snapshot whole.
//!
//! larder does not keep a Release that is signed by an unknown key, or by none of the keys bound to its root, or that is older
//! than the one before, or that cannot be parsed. It still gives such a Release to the client, which does its own check and may
//! accept it. That client must then find the members of *that* Release, and only the origin has them. What larder has stored is
//! the snapshot before, which is of use only to a client that was given its Release:
//!
//! ```text
//! Release at the origin ─▶ counts ───────────▶ kept; its members are held to it
//!                       └▶ does not count ───▶ given, not kept ─▶ its members are passed, as without larder
//!                                                                 (a connection that read the kept one gets that one's)
//! ```
//!
//! The same holds for a Release that was passed without being looked at, until the next one is kept.
//!
//! Nothing of a snapshot that does not count is kept: no entry, no claim, no date. What clients fetch by digest, and the files
//! that the kept snapshot names, are still held to their promises.

use std::sync::Arc;

use hyper::StatusCode;

use super::task::Task;
use super::{Connection, Pipeline};
use crate::claim::Promise;
use crate::ecosystem::Recognition;
use crate::flight::End;
use crate::origin::Answer;
use crate::policy::PassReason;
use crate::target::{Key, Partition, Root, Target};

impl Pipeline {
    /// Notes whether the version of a snapshot's root that a flight brought is the one that its members are held to.
    pub(super) fn note_head(&self, task: &Task, end: &End) {
        if !task.is_snapshot_root() {
            return;
        }
        let reader = task.principal.reader();
        let Some(key) = snapshot(task.bare(), reader) else { return };
        let seen = self.store.seen_by(reader);
        let counts = match end {
            // A version that is kept may make no claims, for example because it is past its `Valid-Until`. The claims of an
            // earlier version would then still be in force.
            End::Kept(entry) | End::Current(entry) => {
                let current = seen.current_claims(task.bare());
                current.is_none_or(|by| by.document == entry.blob)
            }
            End::Given => false,
            // These ends bring clients either the kept version or no version at all, or the answers to their own requests.
            End::Refused(_) | End::Failed(..) | End::Relayed(_) | End::Pass | End::Handed => return,
        };
        if counts {
            self.snapshots.apart.invalidate(&key);
        } else {
            self.snapshots.apart.insert(key, ());
        }
    }

    /// Notes that a client was given a snapshot's root that larder did not look at. `anybody`: its requests for the members are
    /// like those of any other client.
    fn note_head_passed(&self, task: &Task, connection: &Connection, anybody: bool) {
        if !task.is_snapshot_root() {
            return;
        }
        connection.read_unknown(task);
        if anybody && let Some(key) = snapshot(task.bare(), task.principal.reader()) {
            self.snapshots.apart.insert(key, ());
        }
    }

    /// The same for the answer to a client's own request. A client that was told that its version is the present one (304) has
    /// the origin's, too.
    pub(super) fn note_root_passed(
        &self,
        task: &Task,
        connection: &Connection,
        reason: PassReason,
        status: StatusCode,
    ) {
        // The other reasons are in each request of such a client, so its requests for the members are passed as well.
        let anybody = match reason {
            PassReason::Answer | PassReason::NoStore | PassReason::Starting => true,
            PassReason::Method
            | PassReason::Body
            | PassReason::Upgrade
            | PassReason::Credential
            | PassReason::Header
            | PassReason::Plain
            | PassReason::Host => false,
        };
        if matches!(status, StatusCode::OK | StatusCode::NOT_MODIFIED) {
            self.note_head_passed(task, connection, anybody);
        }
    }

    /// The same for an answer that is handed to its client only.
    pub(super) fn note_handed(&self, task: &Task, connection: &Connection, answer: &Answer) {
        if answer.head.status == StatusCode::OK {
            self.note_head_passed(task, connection, true);
        }
    }

    /// Whether the snapshot's root at the task's target is given as the origin has it, which differs from the kept version.
    pub(super) fn is_head_apart(&self, task: &Task) -> bool {
        task.is_snapshot_root() && self.is_apart(task.bare(), task.principal.reader())
    }

    /// Whether the task's target is a member of a snapshot whose root is given as the origin has it: the kept version names the
    /// target.
    pub(super) fn is_member_apart(&self, task: &Task) -> bool {
        if !task.is_index() || task.promised.is_some() || task.is_snapshot_root() {
            return false;
        }
        let (known, reader) = (task.recognition.as_ref(), task.principal.reader());
        let promises = self.promises_of_index(task.bare(), known, reader);
        known.is_some_and(|known| {
            promises.iter().any(|promise| self.is_by_one_apart(promise, known, reader))
        })
    }

    /// The promises of indexes about another index, for a client that has read none of them. Promises of a snapshot that clients
    /// are not given are left out.
    pub(super) fn promises_that_count(
        &self,
        bare: &Target,
        known: Option<&Recognition>,
        reader: Partition,
    ) -> Vec<Promise> {
        let mut promises = self.promises_of_index(bare, known, reader);
        if let Some(known) = known {
            promises.retain(|promise| !self.is_by_one_apart(promise, known, reader));
        }
        promises
    }

    fn is_by_one_apart(&self, promise: &Promise, known: &Recognition, reader: Partition) -> bool {
        let index: &Arc<Target> = &promise.index;
        known.ecosystem.is_snapshot_root(index) && self.is_apart(index, reader)
    }

    fn is_apart(&self, head: &Target, reader: Partition) -> bool {
        snapshot(head, reader).is_some_and(|key| self.snapshots.apart.get(&key).is_some())
    }
}

/// The key under which a snapshot's root is noted. It is that of the directory: an archive may have two roots that name the same
/// members (`InRelease` and `Release`), and clients read either.
fn snapshot(head: &Target, reader: Partition) -> Option<Key> {
    let root = Root::directory_of(head);
    Some(Target::new(root.origin, &root.path).ok()?.key(reader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::for_tests;

    /// Whoever has an archive can make up any number of snapshots. Clients that are given the Release of another one must still find
    /// its members (promise P6).
    #[test]
    fn a_root_that_does_not_count_is_remembered_however_many_there_are() {
        let data = tempfile::tempdir().unwrap();
        let pipeline = for_tests(data.path());
        let head = |name: &str| {
            let url = format!("https://example.org/{name}/dists/stable/InRelease");
            Target::from_url(&url).unwrap()
        };
        let note = |head: &Target| {
            let key = snapshot(head, Partition::Public).unwrap();
            pipeline.snapshots.apart.insert(key, ());
            pipeline.snapshots.apart.run_pending_tasks();
        };
        for number in 0..20_000 {
            note(&head(&format!("evil/{number}")));
        }
        let honest = head("debian");
        assert!(!pipeline.is_apart(&honest, Partition::Public), "the control");
        note(&honest);
        assert!(pipeline.is_apart(&honest, Partition::Public));
        assert!(pipeline.snapshots.apart.entry_count() <= 10_000);
    }
}
