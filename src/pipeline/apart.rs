//! One snapshot whole: the members of an index whose newest version at its origin does not count.
//!
//! A Release that larder does not keep (signed by a key that larder does not know, or by nobody who signed before; older than
//! the one before; not readable) still reaches its asker, who does its own check and may well take it. Such a client must find
//! the members of *that* Release, and those are at the origin. What larder has is the snapshot before, and of use only to a
//! client that was given its Release:
//!
//! ```text
//! Release at the origin ─▶ counts ───────────▶ kept; its members are held to it
//!                       └▶ does not count ───▶ given, not kept ─▶ its members pass, as without larder
//!                                                                 (a connection that read the kept one gets that one's)
//! ```
//!
//! Nothing of a snapshot that does not count is kept: no entry, no claim, no date. What clients fetch by digest, and the files
//! that the kept snapshot names, are held to their promises as ever.

use std::sync::Arc;

use hyper::StatusCode;

use super::task::Task;
use super::{Connection, Pipeline};
use crate::claim::Promise;
use crate::ecosystem::Recognition;
use crate::flight::End;
use crate::origin::Answer;
use crate::target::{Key, Partition, Root, Target};

impl Pipeline {
    /// Notes whether the version of a head that a flight brought is the one that its members are held to.
    pub(super) fn note_head(&self, task: &Task, end: &End) {
        if !task.heads() {
            return;
        }
        let reader = task.asker.reader();
        let Some(key) = snapshot(task.bare(), reader) else { return };
        let seen = self.store.seen_by(reader);
        let counts = match end {
            // One that is kept may make no claims: it is past its Valid-Until, say. Then an earlier one's would hold.
            End::Kept(entry) | End::Current(entry) => {
                let current = seen.current_claims(task.bare());
                current.is_none_or(|by| by.document == entry.blob)
            }
            End::Given => false,
            // Clients get nothing else than what is kept, or what is none; or their own requests' answers.
            End::Refused(_) | End::Failed(..) | End::Relayed(_) | End::Pass | End::Handed => return,
        };
        if counts {
            self.generations.apart.invalidate(&key);
        } else {
            self.generations.apart.insert(key, ());
        }
    }

    /// A client was given a head that larder did not look at. `anybody`: so is everybody, because its answer is not shared.
    pub(super) fn note_head_passed(&self, task: &Task, connection: &Connection, anybody: bool) {
        if !task.heads() {
            return;
        }
        connection.read_unknown(task);
        if anybody && let Some(key) = snapshot(task.bare(), task.asker.reader()) {
            self.generations.apart.insert(key, ());
        }
    }

    /// The same of an answer that nobody else may have.
    pub(super) fn note_handed(&self, task: &Task, connection: &Connection, answer: &Answer) {
        if answer.head.status == StatusCode::OK {
            self.note_head_passed(task, connection, true);
        }
    }

    /// Whether the head at the task's target is given as its origin has it, and is not what is kept.
    pub(super) fn is_head_apart(&self, task: &Task) -> bool {
        task.heads() && self.is_apart(task.bare(), task.asker.reader())
    }

    /// Whether what the task asks for belongs to such a head: the kept version of it names the task's target.
    pub(super) fn is_member_apart(&self, task: &Task) -> bool {
        if !task.is_index() || task.promised.is_some() || task.heads() {
            return false;
        }
        let (known, reader) = (task.recognition.as_ref(), task.asker.reader());
        let promises = self.promises_of_index(task.bare(), known, reader);
        known.is_some_and(|known| {
            promises.iter().any(|promise| self.is_by_one_apart(promise, known, reader))
        })
    }

    /// What indexes promise of another one to a client that has read none of them: nothing, where it would be of a snapshot
    /// that clients are not given.
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
        snapshot(head, reader).is_some_and(|key| self.generations.apart.contains_key(&key))
    }
}

/// Under which a head is noted: an archive may have two that name the same members, and clients read either.
fn snapshot(head: &Target, reader: Partition) -> Option<Key> {
    let root = Root::directory_of(head);
    Some(Target::new(root.origin, &root.path).ok()?.key(reader))
}
