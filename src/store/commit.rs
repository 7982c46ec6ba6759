//! How entries are added, changed and removed.
//!
//! The order of a commit: sync the body's bytes, write its checksums if it has several, give it its name (`blobs.rs`); then write its
//! record, then update the ledger. A crash in between leaves either a body that no record names, which the next start
//! removes, or a record that the ledger does not know, which the next start finds. A removal deletes the record first,
//! because a ledger row without a record does not count.
//!
//! Every change of a body's entries happens under that body's lock. The ledger may go out of service at any step. It
//! reports that itself, and nothing is lost: the record counts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::full;
use super::blobs::{Stored, footprint_of};
use super::body::BodyRecord;
use super::ledger::OutOfService;
use super::record::Records;
use super::space::{Kept, OfFile, Purpose, Room};
use super::{Store, durable, failpoint, hold};
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::entry::Entry;
use crate::freshness::AHEAD;
use crate::proof::Rank;
use crate::received::Spooled;
use crate::target::{Key, Partition};
use crate::verify::Verified;

/// Maximum number of entries kept per key; the newest stay. A URL whose bytes change every minute must not fill the
/// store.
pub(super) const MAX_PER_KEY: usize = 3;

/// Maximum number of entries that name one body. Each costs a record, which is removed with the body when space is
/// short. Without a limit an origin that answers every URL with the same small body would create millions. The empty
/// file legitimately has many URLs as well; the oldest of those are fetched again. Lower in tests, where each record is
/// written durably.
pub(super) const MAX_PER_BODY: usize = if cfg!(test) { 40 } else { 1024 };

/// How many entries are left after the limit was exceeded. Finding the oldest means reading them all, which must not
/// happen for each new one.
const LEFT_PER_BODY: usize = MAX_PER_BODY / 8 * 7;

impl Store {
    /// Keeps a verified body: blob (fsync, CRC, rename), record, ledger. Sets `entry.blob`, its size, its digests and
    /// the rank of its proof from `verified`. Blocking.
    pub fn commit(&self, verified: Verified, entry: Entry) -> io::Result<Arc<Entry>> {
        self.commit_beside(verified, entry, &[])
    }

    /// As [`Store::commit`], but keeps entries of the same key that have one of the digests in `spared`, even beyond
    /// the limit per key, because an index still promises those bytes to clients. Blocking.
    pub fn commit_beside(
        &self,
        verified: Verified,
        mut entry: Entry,
        spared: &[Digest],
    ) -> io::Result<Arc<Entry>> {
        entry.proof.rank = verified.proof().rank;
        let mut body = verified.into_received().body;
        entry.blob = body.digests.blob();
        entry.size = body.size;
        entry.digests = body.digests.iter().copied().collect();
        let _reserved = self.room_for(&entry)?;
        let _era = self.in_era();
        let kept = {
            let _alone = self.lock_of(entry.blob);
            // Pinned until the record is written, so that eviction cannot remove the body in between.
            let _pinned = self.place(&mut body)?;
            self.keep(entry)
        }?;
        self.trim(&kept, spared);
        Ok(kept)
    }

    /// Adds an entry for a blob that is already in the store (selection by digest). Refused unless a public entry names
    /// the blob: knowing a digest gives no access to private bytes (promise P5). Blocking.
    pub fn link(&self, mut entry: Entry) -> io::Result<Arc<Entry>> {
        let _reserved = self.room_for(&entry)?;
        let _era = self.in_era();
        let kept = {
            let _alone = self.lock_of(entry.blob);
            let mut bodies = hold(&self.bodies);
            let stored = match bodies.get_mut(entry.blob) {
                Some(holding) if holding.public > 0 => holding.stored(),
                Some(_) => {
                    return Err(refused(
                        &entry,
                        "was never public",
                        io::ErrorKind::PermissionDenied,
                    ));
                }
                None => return Err(refused(&entry, "is not stored", io::ErrorKind::NotFound)),
            };
            drop(bodies);
            entry.size = stored.size;
            self.keep(entry)
        }?;
        self.trim(&kept, &[]);
        Ok(kept)
    }

    /// Adds an entry for the body of the entry under `from`, even if that entry is private: the caller vouches that the
    /// private body turned out to be public, or that a tag points to a body that its client may read. An error of kind
    /// `NotFound` if the entry is gone. Blocking.
    pub fn link_from(&self, from: Key, mut entry: Entry) -> io::Result<Arc<Entry>> {
        let _reserved = self.room_for(&entry)?;
        let _era = self.in_era();
        let kept = {
            let _alone = self.lock_of(entry.blob);
            let Some(stored) = self.stored(entry.blob) else {
                return Err(refused(&entry, "is not stored any more", io::ErrorKind::NotFound));
            };
            if !self.records.contains(from, entry.blob)? {
                return Err(refused(&entry, "has no entry any more", io::ErrorKind::NotFound));
            }
            entry.size = stored.size;
            self.keep(entry)
        }?;
        self.trim(&kept, &[]);
        Ok(kept)
    }

    /// Changes the metadata of an entry (after revalidation: new headers, `checked_at`, proof, generation) without
    /// touching the blob. `change` gets the entry as it is now, not as the caller looked it up, so that concurrent
    /// changes are kept, above all the end of an access right. If the record grows, its size is counted and the next
    /// maintenance makes room: a revalidation must not fail because the store is full. An error of kind `NotFound` if
    /// the entry is gone. Blocking.
    pub fn update(&self, found: &Entry, change: impl FnOnce(&mut Entry)) -> io::Result<Arc<Entry>> {
        let (key, blob) = (found.key, found.blob);
        let _era = self.in_era();
        let _alone = self.lock_of(blob);
        let Some(stored) = self.stored(blob) else {
            return Err(refused(found, "is not stored any more", io::ErrorKind::NotFound));
        };
        let known = match self.known(key, blob)? {
            Some(known) if self.records.contains(key, blob)? => Some(known),
            _ => None,
        };
        let Some(known) = known else {
            return Err(refused(found, "has no entry any more", io::ErrorKind::NotFound));
        };
        let mut entry = Entry::clone(&known);
        change(&mut entry);
        (entry.key, entry.blob, entry.size) = (key, blob, stored.size);
        self.keep(entry)
    }

    /// Removes an entry, and its blob if that was the last entry. Blocking.
    pub fn remove(&self, entry: &Entry) -> io::Result<()> {
        let _era = self.in_era();
        self.drop_entry(entry.key, entry.blob)
    }

    /// Takes a damaged or missing blob out of service, with all its entries: they are misses from now on. A blob that
    /// merely cannot be read at the moment stays (DESIGN §6, "An I/O error is not damage").
    pub(super) fn lose(&self, id: BlobId, why: &io::Error) {
        if !durable::is_damage(why) {
            tracing::warn!(blob = %id, %why, "a stored body cannot be read now; it stays");
            return;
        }
        let _era = self.in_era();
        let _alone = self.lock_of(id);
        let gone = hold(&self.bodies).remove(id);
        if gone.is_none() {
            return;
        }
        if why.kind() == io::ErrorKind::NotFound {
            tracing::info!(blob = %id, "a stored body is gone; it will be fetched again");
        } else {
            tracing::error!(blob = %id, %why, "a stored body is damaged, and removed; it will be fetched again");
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.forget(id);
    }

    /// Removes the files and entries of a blob that is out of service. The caller holds its lock.
    pub(super) fn forget(&self, id: BlobId) {
        failpoint::hit("store.before-remove");
        match self.ledger.refs(id) {
            Ok(keys) => keys.into_iter().for_each(|key| self.forget_entry(key, id)),
            // The records stay for now. They name a missing body, so they are misses. `drop_bodiless` removes them.
            Err(OutOfService) => self.counts.bodiless.store(true, Ordering::Relaxed),
        }
        self.blobs.discard(id);
    }

    /// Removes the records whose bodies were removed while no ledger could list them. One scan of the directories
    /// handles all of them, from time to time: a scan for each removed body would cost too much.
    pub(super) fn drop_bodiless(&self) {
        if !self.counts.bodiless.swap(false, Ordering::Relaxed) {
            return;
        }
        let _era = self.in_era();
        for shard in 0..=u8::MAX {
            let names = self.records.names(shard).unwrap_or_else(|error| {
                tracing::warn!(%error, "records could not be listed; those without a body are removed later");
                self.counts.bodiless.store(true, Ordering::Relaxed);
                Vec::new()
            });
            for (key, blob) in names {
                if self.has_blob(blob).is_some() {
                    continue;
                }
                let _alone = self.lock_of(blob);
                if hold(&self.bodies).get(blob).is_none() {
                    self.forget_entry(key, blob);
                }
            }
        }
    }

    fn forget_entry(&self, key: Key, id: BlobId) {
        // An entry that cannot be read is not subtracted exactly; the next start recounts.
        let entry = self.known(key, id).ok().flatten();
        self.records.discard(key, id);
        self.gone(key, id, entry.as_deref());
    }

    /// Removes bodies that no entry names, for example because writing the record failed.
    pub(super) fn drop_unnamed(&self) {
        let _era = self.in_era();
        let unnamed: Vec<BlobId> = hold(&self.bodies)
            .iter()
            .filter(|(_, holding)| holding.refs == 0)
            .map(|(id, _)| id)
            .collect();
        for id in unnamed {
            let _alone = self.lock_of(id);
            self.drop_if_unnamed(id);
        }
    }

    /// Moves a body to its final name, unless it is there already.
    fn place(&self, body: &mut Spooled) -> io::Result<Arc<Stored>> {
        let id = body.digests.blob();
        if let Some(stored) = self.stored(id) {
            if self.blobs.holds(id, stored.size)? {
                return Ok(stored);
            }
            // An operator deleted its files while larder was running.
            drop(hold(&self.bodies).remove(id));
            self.forget(id);
        }
        self.blobs.place(body)?;
        let size = footprint_of(body.size);
        let spool = std::mem::replace(&mut body.room, Box::new(()));
        let mut room = match spool.downcast::<OfFile>() {
            Ok(room) => room.take(),
            Err(_) => self.space.take(Purpose::Blob, size),
        };
        room.settle(Purpose::Blob, size);
        let stored = Arc::new(Stored::of(body));
        let mut holding = BodyRecord::new(body.size, Kept::of(room), self.clock.now());
        holding.is_used_as(&stored);
        hold(&self.bodies).insert(id, size, holding, None);
        Ok(stored)
    }

    /// Writes an entry's record and updates the ledger. The caller holds the blob's lock.
    fn keep(&self, entry: Entry) -> io::Result<Arc<Entry>> {
        let (key, blob) = (entry.key, entry.blob);
        let before = self.known(key, blob).inspect_err(|_| self.drop_if_unnamed(blob))?;
        failpoint::hit("store.before-record");
        let written = Records::encode(&entry).and_then(|record| {
            self.records.write(key, blob, &record)?;
            Ok(record)
        });
        let record = match written {
            Ok(record) => record,
            Err(error) => {
                self.drop_if_unnamed(blob);
                return Err(error);
            }
        };
        failpoint::hit("store.after-record");
        failpoint::hit("store.before-ledger");
        // The ledger has logged and counted an error here. The record is what counts.
        let _out_of_service = self.ledger.put(key, blob, &record);
        if entry.partition == Partition::Public {
            self.publish_digests(&entry);
        }
        failpoint::hit("store.after-ledger");
        self.count(before.as_deref(), Some(&entry));
        self.recent.changed(key);
        Ok(Arc::new(entry))
    }

    /// Makes a public body findable by its other strong digests. It is found by SHA-256 without the ledger.
    pub(super) fn publish_digests(&self, entry: &Entry) {
        let others = entry
            .digests
            .iter()
            .filter(|digest| names_bytes(digest) && BlobId::from_digest(digest).is_none());
        for digest in others {
            if self.ledger.by_digest(digest) != Ok(Some(entry.blob)) {
                let _out_of_service = self.ledger.put_digest(digest, entry.blob);
            }
        }
    }

    /// Removes surplus entries, oldest first: those of the entry's key, except those with a digest in `spared`, and
    /// those of its body. Also removes entries of the key whose date is in the future, from a clock that was ahead.
    /// Such an entry would sort before `kept` and be found instead of it until the clock caught up.
    fn trim(&self, kept: &Entry, spared: &[Digest]) {
        let now = self.clock.now().plus(AHEAD);
        let Ok(entries) = self.recent.get(kept.key, || self.load(kept.key)) else {
            return;
        };
        let (ahead, rest): (Vec<_>, Vec<_>) =
            entries.iter().partition(|entry| entry.blob != kept.blob && entry.received_at > now);
        let is_spared =
            |entry: &&&Arc<Entry>| entry.digests.iter().any(|digest| spared.contains(digest));
        let old = rest.into_iter().skip(MAX_PER_KEY).filter(|entry| !is_spared(&entry));
        for entry in ahead.into_iter().chain(old) {
            self.drop_old(entry.key, entry.blob);
        }
        let names = hold(&self.bodies).get(kept.blob).map_or(0, |holding| holding.refs);
        if names as usize > MAX_PER_BODY {
            self.thin_out(kept.blob);
        }
    }

    /// Removes the oldest entries of a body. Without the ledger its entries are unknown and stay; their records count
    /// against the cap all the same.
    fn thin_out(&self, blob: BlobId) {
        let keys = self.ledger.refs(blob).unwrap_or_default();
        // Bypasses `recent`: a thousand entries of one body would push out the frequently used ones.
        let entry = |key| self.load(key).ok()?.into_iter().find(|entry| entry.blob == blob);
        let mut entries: Vec<(Time, Key)> =
            keys.into_iter().filter_map(|key| Some((entry(key)?.received_at, key))).collect();
        entries.sort_unstable();
        let surplus = entries.len().saturating_sub(LEFT_PER_BODY);
        for (_, key) in entries.into_iter().take(surplus) {
            self.drop_old(key, blob);
        }
    }

    fn drop_old(&self, key: Key, blob: BlobId) {
        if let Err(error) = self.drop_entry(key, blob) {
            tracing::warn!(%error, "an old entry could not be removed");
        }
    }

    /// Reserves room for an entry's record until the accounts include it. Never called under a lock, because it may
    /// have to evict bodies.
    fn room_for(&self, entry: &Entry) -> io::Result<Room> {
        self.room(Purpose::Blob, Records::takes(entry)).map_err(full)
    }

    fn drop_entry(&self, key: Key, blob: BlobId) -> io::Result<()> {
        let _alone = self.lock_of(blob);
        let entry = self.known(key, blob)?;
        self.records.remove(key, blob)?;
        self.gone(key, blob, entry.as_deref());
        self.drop_if_unnamed(blob);
        Ok(())
    }

    /// The entry of `key` that names `blob`.
    fn known(&self, key: Key, blob: BlobId) -> io::Result<Option<Arc<Entry>>> {
        let entries = self.recent.get(key, || self.load(key))?;
        Ok(entries.iter().find(|entry| entry.blob == blob).cloned())
    }

    /// Updates ledger, counts and `recent` after an entry's record was removed.
    fn gone(&self, key: Key, blob: BlobId, entry: Option<&Entry>) {
        let _out_of_service = self.ledger.remove(key, blob);
        for digest in entry.iter().flat_map(|entry| &entry.digests) {
            let last = hold(&self.bodies).get(blob).is_none_or(|body| body.refs <= 1);
            if last && names_bytes(digest) {
                let _out_of_service = self.ledger.remove_digest(digest, blob);
            }
        }
        self.count(entry, None);
        self.recent.changed(key);
    }

    fn drop_if_unnamed(&self, id: BlobId) {
        let mut bodies = hold(&self.bodies);
        if bodies.get(id).is_some_and(|holding| holding.refs == 0) {
            let gone = bodies.remove(id);
            drop(bodies);
            self.forget(id);
            drop(gone);
        }
    }

    /// Updates the counts after the entry `before` became `after`.
    fn count(&self, before: Option<&Entry>, after: Option<&Entry>) {
        if let Some(entry) = before {
            self.count_rank(entry, -1);
        }
        if let Some(entry) = after {
            self.count_rank(entry, 1);
        }
        let Some(entry) = after.or(before) else {
            return;
        };
        let takes = |entry: Option<&Entry>| entry.map_or(0, Records::takes);
        let (took, takes) = (takes(before), takes(after));
        let mut bodies = hold(&self.bodies);
        if after.is_some_and(is_member) {
            bodies.set_member(entry.blob);
        }
        let Some(holding) = bodies.get_mut(entry.blob) else {
            return;
        };
        // A record may outlive a body that was removed while there was no ledger. Such a record was not counted for the
        // body.
        let before = before.filter(|_| holding.refs > 0);
        let public = |entry: &Entry| u32::from(entry.partition == Partition::Public);
        holding.refs += u32::from(after.is_some());
        holding.refs -= u32::from(before.is_some());
        holding.public += after.map_or(0, public);
        holding.public = holding.public.saturating_sub(before.map_or(0, public));
        let took = if before.is_some() { took } else { 0 };
        holding.count_records(takes, took);
    }

    /// Adds `by` to the number of entries with this entry's rank of proof.
    pub(super) fn count_rank(&self, entry: &Entry, by: i64) {
        let position = Rank::ALL.iter().position(|rank| *rank == entry.proof.rank);
        let mut ranks = hold(&self.counts.entries);
        if let Some(count) = position.and_then(|position| ranks.get_mut(position)) {
            *count = count.saturating_add_signed(by);
        }
    }
}

/// Whether a body can be found by this digest. A content digest matches many bodies, so it does not count.
fn names_bytes(digest: &Digest) -> bool {
    digest.algorithm().is_strong() && !digest.algorithm().is_of_content()
}

/// Whether eviction should prefer to keep it: it is an index, or an index vouches for it.
pub(super) fn is_member(entry: &Entry) -> bool {
    entry.index || matches!(entry.proof.rank, Rank::Indexed | Rank::Signed)
}

fn refused(entry: &Entry, why: &str, kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, format!("{}: the body {} {why}", entry.shown, entry.blob))
}
