//! Members of a snapshot: a client gets the members of the Release that it has read.
//!
//! ```text
//! connection ─ read ─▶ Release g ─ promises ─▶ digests of Packages.xz ─▶ stored: given
//!                                                                     └▶ fetched, and held to g; else by its digest
//! ```
//!
//! larder remembers for each connection which version its client has read; client addresses would not do, because clients share
//! them behind NAT. A connection that has read no version gets members of the newest one. If a signature names the bytes, they
//! may also be stored under another URL of the archive, or have come from another mirror of it (DESIGN §3). A 404 does not count
//! if the archive has the file under its digest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};

use super::answers::lasts;
use super::lookup::{Lookup, Stored};
use super::rights::{REMEMBERED, YES_HOLDS};
use super::task::Task;
use super::unproven::lower_unsigned;
use super::{Connection, Pipeline, snapshots};
use crate::claim::{IndexVersion, Promise, Relation};
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::entry::{Entry, Head};
use crate::flight::End;
use crate::proof::{Proof, Rank};
use crate::target::{Key, Partition, Root, Target};
use crate::verify::Expectation;

/// How many versions of indexes a connection remembers. A client reads about a dozen in a row.
const MOST_READ: usize = 64;

/// Which versions of snapshots' roots a connection has read, the latest last.
#[derive(Debug, Default)]
pub(super) struct ReadVersions(Mutex<Vec<(Key, BlobId)>>);

impl ReadVersions {
    fn note(&self, index: Key, document: BlobId) {
        let mut read = self.lock();
        read.retain(|(known, _)| *known != index);
        if read.len() >= MOST_READ {
            read.remove(0);
        }
        read.push((index, document));
    }

    fn forget(&self, index: Key) {
        self.lock().retain(|(known, _)| *known != index);
    }

    /// The position of the version that made this promise among those that the connection has read; `None` if it has not read it.
    /// A higher position is more recent.
    fn position(&self, promise: &Promise) -> Option<usize> {
        let version = (promise.index.key(Partition::Public), promise.by.document);
        self.lock().iter().position(|read| *read == version)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Key, BlobId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Notes that the client was given a stored version of an index, if it is a snapshot's root.
    pub(super) fn read(&self, task: &Task, entry: &Entry) {
        if task.is_snapshot_root() {
            self.read.note(task.bare().key(Partition::Public), entry.blob);
        }
    }

    /// Notes that the client was given a version of which nothing is kept.
    pub(super) fn read_unknown(&self, task: &Task) {
        if task.is_snapshot_root() {
            self.read.forget(task.bare().key(Partition::Public));
        }
    }
}

impl Pipeline {
    /// Binds the task to the snapshot that its client has read.
    pub(super) fn follow(&self, connection: &Connection, task: &mut Task) {
        let Some(known) = &task.recognition else {
            return;
        };
        let is_version = !known.ecosystem.indexes_of(task.bare()).is_empty();
        if task.is_index() || is_version {
            self.snapshots.note_asked(task.bare());
        }
        if !task.is_index() || task.is_snapshot_root() {
            return;
        }
        let promises = self.promises_of_index(task.bare(), Some(known), task.principal.reader());
        let read = promises
            .into_iter()
            .filter(|promise| promise.relation.binds() && promise.is_strong())
            .filter_map(|promise| Some((connection.read.position(&promise)?, promise)))
            .max_by_key(|(position, _)| *position);
        task.promised = read.map(|(_, promise)| {
            // To this client that snapshot is the newest, and confirmed: it cannot use the bytes of any other version.
            let by = IndexVersion {
                superseded: None,
                confirmed: promise.by.confirmed.max(task.asked),
                ..IndexVersion::clone(&promise.by)
            };
            Promise { by: Arc::new(by), relation: Relation::InRoot, ..promise }
        });
    }

    /// Looks up an index that another index names; `None` if no index with authority over it names it.
    pub(super) async fn look_up_member(&self, task: &Task) -> Option<Lookup> {
        if !task.is_index() {
            return None;
        }
        let expected = self.expectation_of(task);
        expected.refusing().next()?;
        for entry in self.store.entries(task.key) {
            let today = expected.vouched(&entry.digests, entry.size);
            if today.rank.is_strong() {
                let proof = entry.proof.judged(today);
                let now = self.clock.now();
                // A right is valid for minutes, whatever proves the bytes.
                let right = !task.is_private_index() || lasts(entry.checked_at, YES_HOLDS, now);
                let usable = !task.is_private_index() || self.is_usable(task, &entry, now);
                let stored = Stored { entry, proof, usable };
                return Some(if right { Lookup::Fresh(stored) } else { Lookup::Stale(stored) });
            }
        }
        // Other stored copies belong to other versions, and are of no use to a client that has read this one.
        Some(match self.select_by_signature(task, &expected).await {
            Some(entry) => Lookup::Fresh(Stored { proof: entry.proof, entry, usable: true }),
            None => Lookup::Miss,
        })
    }

    /// The stored answer when the origin did not give the member that the snapshot lists: the archive may have it under its
    /// digest.
    pub(super) async fn by_other_name(self: &Arc<Self>, task: &Task, end: &End) -> Option<Stored> {
        if matches!(end, End::Kept(_) | End::Current(_) | End::Given) || !task.is_index() {
            return None;
        }
        let known = task.recognition.as_ref()?;
        let expected = self.expectation_of(task);
        let promise = expected.refusing().max_by_key(|promise| promise.by.number)?;
        let named = promise.digests.iter().rev();
        for at in named.filter_map(|digest| known.ecosystem.named_by(task.bare(), digest)) {
            // Only an archive that declares `Acquire-By-Hash` keeps its indexes under their digests.
            if !self.promises_of_index(&at, Some(known), Partition::Public).is_empty() {
                self.bring_in(&at, known.ecosystem, task.reach, None).await;
            }
        }
        match self.look_up_member(task).await? {
            Lookup::Fresh(stored) => Some(stored),
            Lookup::Stale(_) | Lookup::Miss => None,
        }
    }

    /// A signed document that clients read if there is none at the task's target (`Release` in place of `InRelease`, for
    /// example), provided that none was ever seen at the target. A client goes on to the other document only after a 404, and an
    /// origin that fails sends none.
    pub(super) fn stands_in_for(&self, task: &Task) -> Option<Target> {
        let other = task.known()?.ecosystem.snapshots()?.stand_in(task.bare())?;
        let newest = |at: &Target| self.store.entries(at.key(Partition::Public)).into_iter().next();
        let seen = newest(task.bare()).is_some() || task.principal.is_private();
        let signed = newest(&other).is_some_and(|entry| entry.proof.rank == Rank::Signed);
        (signed && !seen).then_some(other)
    }

    /// A public copy whose digest a signed index names under its root, whichever target the copy came for.
    pub(super) async fn select_by_signature(
        &self,
        task: &Task,
        expected: &Expectation,
    ) -> Option<Arc<Entry>> {
        let newest = expected.refusing().max_by_key(|promise| promise.by.number)?;
        if newest.rank() != Rank::Signed || newest.relation != Relation::InRoot {
            return None;
        }
        let strong = newest.digests.iter().filter(|digest| digest.algorithm().is_strong());
        let mut found = strong.filter_map(|digest| self.store.public_blob_by_digest(digest));
        let blob = found.next()?;
        // A digest that was never computed of the copy is no mismatch. All digests that were computed must name the same copy.
        if found.any(|other| other != blob) {
            return None;
        }
        let size = self.store.has_blob(blob)?;
        if newest.size.is_some_and(|promised| promised != size) {
            return None;
        }
        self.link(task, blob, size, &newest.digests, Rank::Signed).await
    }

    /// Makes an entry for public bytes that came for another target. Only the URL's own origin could say what its header fields
    /// are, so the entry has none but a generic content type.
    pub(super) async fn link(
        &self,
        task: &Task,
        blob: BlobId,
        size: u64,
        digests: &[Digest],
        rank: Rank,
    ) -> Option<Arc<Entry>> {
        let mut headers = HeaderMap::new();
        let bytes = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, bytes);
        let mut digests = digests.to_vec();
        digests.push(blob.digest());
        digests.sort_unstable();
        digests.dedup();
        let now = self.clock.now();
        let entry = Entry {
            key: task.key,
            shown: task.bare().to_string(),
            variant: task.target.variant().to_owned(),
            partition: task.principal.reader(),
            ecosystem: task.ecosystem().to_owned(),
            index: task.is_index(),
            blob,
            size,
            digests,
            head: Head { status: StatusCode::OK, headers },
            varied: Vec::new(),
            proof: Proof::of(rank),
            generation: self.store.generation(),
            answered_by: None,
            requested_at: now,
            received_at: now,
            checked_at: now,
        };
        let (store, keys) = (Arc::clone(&self.store), self.keys.clone());
        let signers = task.member_signers();
        let link = move || {
            let entry = store.link(entry).ok()?;
            (!lower_unsigned(&store, &keys, &entry, signers.as_deref())).then_some(entry)
        };
        tokio::task::spawn_blocking(link).await.ok()?
    }

    /// The digests by which the snapshot that clients are given names what the task requests. A member that is fetched before its
    /// own Release counts must not displace the member with these digests: that Release may be held back repeatedly while the
    /// archive changes.
    pub(super) fn still_promised(&self, task: &Task) -> Vec<Digest> {
        if !Self::is_ahead(task) {
            return Vec::new();
        }
        let (known, reader) = (task.recognition.as_ref(), task.principal.reader());
        // Promises that only confirm are not among these: an index of another root must not make larder keep entries.
        let promises = self.promises_of_index(task.bare(), known, reader).into_iter();
        promises
            .filter(Promise::is_current)
            .flat_map(|promise| promise.digests)
            .filter(|digest| digest.algorithm().is_strong())
            .collect()
    }

    /// Whether a task requests a member of a version that is not kept yet. A mismatch then raises no alarm.
    pub(super) fn is_ahead(task: &Task) -> bool {
        task.promised.as_ref().is_some_and(|promise| promise.by.number == snapshots::NOT_YET)
    }

    /// Whether a stored copy may be given when its origin fails.
    pub(super) fn is_usable(&self, task: &Task, entry: &Entry, now: Time) -> bool {
        let stale = &self.config.get().stale;
        // An entry of one credential is given only as long as its right is remembered, whoever signed the document.
        if task.is_private_index() && !lasts(entry.checked_at, REMEMBERED, now) {
            return false;
        }
        if task.is_snapshot_root() && entry.proof.rank == Rank::Signed {
            let until = self.store.valid_until(&Root::directory_of(task.bare()));
            return until.is_none_or(|until| now <= until.plus(stale.signed));
        }
        let forbidden = task.is_unknown() && crate::freshness::forbids_stale(&entry.head);
        // The distance in time counts in both directions. A clock that was set back by an hour does not invalidate a copy. After
        // one that was set back by years, nothing is known of the copy's age.
        !forbidden && crate::freshness::distance(entry, now) <= stale.unsigned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::{Claim, ClaimSink as _, Standing};
    use crate::digest::Algorithm;
    use crate::ecosystem::{self, Shape};
    use crate::origin::Reach;
    use crate::pipeline::for_tests;

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    #[test]
    fn a_connection_remembers_the_latest_version_of_each_index_and_not_too_many() {
        let read = ReadVersions::default();
        for number in 0..200 {
            read.note(key(number), BlobId::new([number; 32]));
        }
        assert_eq!(read.lock().len(), MOST_READ);
        read.note(key(199), BlobId::new([0; 32]));
        assert_eq!(read.lock().last(), Some(&(key(199), BlobId::new([0; 32]))));
        assert_eq!(read.lock().iter().filter(|(index, _)| *index == key(199)).count(), 1);
        read.forget(key(199));
        assert!(read.lock().iter().all(|(index, _)| *index != key(199)));
    }

    /// An index anywhere may name a member of an archive. If its digests were spared, anybody could make larder keep any number
    /// of entries of one URL (promise P4).
    #[test]
    fn only_promises_that_bind_spare_a_stored_member() {
        let data = tempfile::tempdir().unwrap();
        let pipeline = for_tests(data.path());
        let (store, now) = (&pipeline.store, pipeline.clock.now());
        let target = |url: &str| Target::from_url(url).unwrap();
        let digest = |byte| Digest::new(Algorithm::Sha256, &[byte; 32]).unwrap();
        let member = target("https://example.org/debian/dists/stable/main/binary-amd64/Packages");
        let known = ecosystem::recognise(&Shape { target: &member, accept: "*/*" }).unwrap();
        let topic = known.ecosystem.topics(&member).remove(0);
        for (index, byte) in [
            ("https://example.org/debian/dists/stable/InRelease", 1),
            ("https://evil.example.org/debian/dists/stable/InRelease", 2),
        ] {
            let index = target(index);
            let mut batch = store.begin_claims(&index, BlobId::new([byte; 32])).unwrap();
            let (target, digests) = (member.clone(), vec![digest(byte)]);
            batch.claim(Claim { target, topic: topic.clone(), digests, size: None }).unwrap();
            let root = Root::at(&index, "/debian".len());
            batch.publish(&Standing { rank: Rank::Indexed, root }, now).unwrap();
        }
        let promises = store.promises(&member, &[topic], now);
        assert_eq!(promises.len(), 2, "the control: both are found");
        let reach = Reach { internal_client: true, from_public: false };
        let mut task = Task::of_resource(&member, known, reach, now);
        let mut ahead = promises.first().unwrap().clone();
        ahead.by = Arc::new(IndexVersion { number: snapshots::NOT_YET, ..(*ahead.by).clone() });
        task.promised = Some(ahead);
        assert_eq!(pipeline.still_promised(&task), [digest(1)]);
    }
}
