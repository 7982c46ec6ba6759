//! What start-up does: finds what is on disk, and removes what a crash left behind.
//!
//! The records tell what is stored, the blobs whether it exists, and the ledger saves reading the records. Start-up
//! compares them by their names, shard by shard. A record that the ledger does not know is read and added. A row
//! without a record is dropped. A record whose body is missing is removed, and so is a body that no record names. The
//! same happens after the cache was deleted while larder runs.
//!
//! Nothing is removed because it could not be read; it is only not served. A directory that cannot be listed is no
//! proof that it is empty.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::blobs::footprint_of;
use super::body::BodyRecord;
use super::commit::is_member;
use super::evict::{Bodies, QueuePosition};
use super::ledger::Opened;
use super::record::{Records, remove_quietly};
use super::space::{Kept, Purpose};
use super::{Store, access, durable, hold};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::entry::Entry;
use crate::target::{Key, Partition};

/// Removes every spool file: no fill outlives the process.
pub(super) fn empty_spool(spool: &Path) -> io::Result<()> {
    durable::directories(spool)?;
    for file in spool.read_dir()?.flatten() {
        remove_quietly(&file.path());
    }
    Ok(())
}

/// Removes temporary files from `directory`, which holds one file of each kind. They would make a later write under the
/// same temporary name fail.
pub(super) fn drop_unfinished(directory: &Path) -> io::Result<()> {
    for file in directory.read_dir()?.flatten() {
        if file.file_name().as_encoded_bytes().ends_with(durable::TEMPORARY.as_bytes()) {
            remove_quietly(&file.path());
        }
    }
    Ok(())
}

/// What the records tell about a body.
#[derive(Debug, Default)]
struct Found {
    size: u64,
    /// When its newest entry was received, or when it was last used, whichever is later.
    used: Option<Time>,
    standing: Option<QueuePosition>,
    refs: u32,
    public: u32,
    /// The disk space of its records.
    records: u64,
    member: bool,
    /// A record that may name it could not be read.
    unread: bool,
}

/// What start-up could not read.
#[derive(Debug, Default)]
struct Unread {
    /// Directories of bodies, by the first byte of the IDs in them.
    bodies: HashSet<u8>,
    /// Whether a directory of records is among it.
    records: bool,
}

impl Store {
    /// Reads everything from disk into emptied memory.
    pub(super) fn take_stock(&self, opened: Opened) {
        let _alone = self.era.write().unwrap_or_else(PoisonError::into_inner);
        let at_start = !self.is_read();
        if at_start {
            self.records.sweep();
        }
        self.recent.clear();
        *hold(&self.bodies) = Bodies::default();
        *hold(&self.counts.entries) = Default::default();
        if opened == Opened::Empty {
            tracing::info!("the ledger is filled from the records");
        }
        let mut bodies: HashMap<BlobId, Found> = HashMap::new();
        let swept = self.blobs.sweep();
        for (id, size) in swept.bodies {
            let found = Found { size, ..Found::default() };
            bodies.insert(id, found);
        }
        let mut unread = Unread { bodies: swept.unread, records: false };
        // No generation number under which an entry was judged may be used again.
        let mut generation = 0;
        for shard in 0..=u8::MAX {
            if self.reading.stopped.load(Ordering::Relaxed) {
                return;
            }
            generation = generation.max(self.compare(shard, &mut bodies, &mut unread));
        }
        self.read_access(&mut bodies);
        self.take_in(bodies, &unread);
        if !at_start {
            self.claims.load(self);
        }
        self.claims.judged_under(generation);
        // Requests in the meantime may have cached incomplete results.
        self.recent.clear();
    }

    /// Reconciles records and ledger of one shard, and counts the references to `bodies`. Returns the highest
    /// generation number under which one of these entries was judged.
    fn compare(&self, shard: u8, bodies: &mut HashMap<BlobId, Found>, unread: &mut Unread) -> u64 {
        let ledger = self.ledger.shard(shard).unwrap_or_default();
        let mut rows: HashMap<(Key, BlobId), Vec<u8>> = HashMap::new();
        let records: HashSet<(Key, BlobId)> = match self.records.names(shard) {
            Ok(names) => names.into_iter().collect(),
            Err(error) => {
                tracing::error!(%error, "records cannot be read now: they stay, and the ledger's copies are used");
                unread.records = true;
                ledger.iter().map(|(key, blob, _)| (*key, *blob)).collect()
            }
        };
        for (key, blob, record) in ledger {
            if records.contains(&(key, blob)) {
                rows.insert((key, blob), record);
            } else {
                let _out_of_service = self.ledger.remove(key, blob);
            }
        }
        let mut generation = 0;
        for (key, blob) in records {
            let row = rows.remove(&(key, blob));
            let known = row.is_some();
            let [first, ..] = *blob.as_bytes();
            if unread.bodies.contains(&first) {
                continue;
            }
            let body = bodies.get_mut(&blob);
            let entry = match self.entry(key, blob, &row.unwrap_or_default()) {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::error!(%error, "a record cannot be read now: it stays, and is not served");
                    if let Some(body) = body {
                        body.unread = true;
                    }
                    continue;
                }
            };
            let found = entry.zip(body).filter(|(entry, body)| entry.size == body.size);
            let Some((entry, body)) = found else {
                self.records.discard(key, blob);
                let _out_of_service = self.ledger.remove(key, blob);
                continue;
            };
            if !known {
                self.tell_ledger(&entry);
            }
            body.refs += 1;
            body.public += u32::from(entry.partition == Partition::Public);
            body.records += Records::takes(&entry);
            body.member |= is_member(&entry);
            body.used = body.used.max(Some(entry.received_at));
            generation = generation.max(entry.generation);
            self.count_rank(&entry, 1);
        }
        generation
    }

    fn tell_ledger(&self, entry: &Entry) {
        let Ok(record) = Records::encode(entry) else {
            return;
        };
        let _out_of_service = self.ledger.put(entry.key, entry.blob, &record);
        if entry.partition == Partition::Public {
            self.publish_digests(entry);
        }
    }

    /// Adds how the bodies were used before the start.
    fn read_access(&self, bodies: &mut HashMap<BlobId, Found>) {
        for access in access::read(&self.paths.access) {
            if let Some(body) = bodies.get_mut(&access.blob) {
                body.used = body.used.max(Some(access.used));
                body.standing = Some(access.standing());
            }
        }
    }

    /// Puts the bodies into service, least recently used first, and removes those that no record names.
    fn take_in(&self, found: HashMap<BlobId, Found>, unread: &Unread) {
        let mut order: Vec<(BlobId, Found)> = found.into_iter().collect();
        order.sort_unstable_by_key(|(id, body)| (body.used, *id));
        let mut bodies = hold(&self.bodies);
        for (id, body) in order {
            if body.refs == 0 && (body.unread || unread.records) {
                continue;
            }
            if body.refs == 0 {
                tracing::debug!(blob = %id, "no entry names this body; it is removed");
                self.blobs.discard(id);
                continue;
            }
            let size = footprint_of(body.size);
            let room = self.space.take(Purpose::Blob, size + body.records);
            let used = body.used.unwrap_or(Time::from_millis(0));
            let mut holding = BodyRecord::new(body.size, Kept::of(room), used);
            (holding.refs, holding.public) = (body.refs, body.public);
            // Without a saved place it is treated as newly arrived.
            let standing = body.standing.unwrap_or_default();
            bodies.insert(id, size, holding, Some(standing));
            if body.member {
                bodies.set_member(id);
            }
        }
    }
}
