//! Taking stock: what a start finds on disk, and what a crash has left there.
//!
//! The records say what is stored, the blobs whether it is there, and the ledger saves reading the records. They are
//! compared by their names, shard by shard: a record that the ledger does not know is read, a row without a record is
//! dropped, a record whose body is missing goes, and a body that no record names goes. The same is done when somebody
//! deleted the cache while larder runs.
//!
//! What cannot be read does not serve, and nothing is removed because of it: a directory that cannot be listed names
//! nothing, and that is no proof that nothing is there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::blobs::{Stored, footprint_of};
use super::commit::is_member;
use super::evict::{Bodies, Standing};
use super::ledger::Opened;
use super::record::{Records, remove_quietly};
use super::space::Purpose;
use super::{Holding, Store, access, durable, hold};
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

/// Removes what a crash left of the files of which `directory` holds one each: a write that comes upon the name of an
/// earlier one fails.
pub(super) fn drop_unfinished(directory: &Path) -> io::Result<()> {
    for file in directory.read_dir()?.flatten() {
        if file.file_name().as_encoded_bytes().ends_with(durable::TEMPORARY.as_bytes()) {
            remove_quietly(&file.path());
        }
    }
    Ok(())
}

/// A body as the records see it, while stock is taken.
#[derive(Debug, Default)]
struct Found {
    size: u64,
    /// When its newest entry came, or when it was last used.
    used: Option<Time>,
    standing: Option<Standing>,
    refs: u32,
    public: u32,
    /// What their records take.
    records: u64,
    member: bool,
    /// A record that may name it could not be read.
    unread: bool,
}

/// What could not be read while stock was taken.
#[derive(Debug, Default)]
struct Unread {
    /// Directories of bodies, by the first byte of those in them.
    bodies: HashSet<u8>,
    /// Whether there is a directory of records.
    records: bool,
}

impl Store {
    /// Reads everything from disk again, into empty memory.
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
        // Every generation that an entry was judged under has been: none may come again.
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
        // Who asked meanwhile found less.
        self.recent.clear();
    }

    /// Brings records and ledger of one shard in step, and notes in `bodies` who names them. Gives the highest generation
    /// under which one of these entries was judged.
    fn compare(&self, shard: u8, bodies: &mut HashMap<BlobId, Found>, unread: &mut Unread) -> u64 {
        let ledger = self.ledger.shard(shard).unwrap_or_default();
        let mut rows: HashMap<(Key, BlobId), Vec<u8>> = HashMap::new();
        let records: HashSet<(Key, BlobId)> = match self.records.names(shard) {
            Ok(names) => names.into_iter().collect(),
            Err(error) => {
                tracing::error!(%error, "these records cannot be read now: they stay, and what the ledger says of them serves");
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
                    tracing::error!(%error, "this record cannot be read now: it stays, and does not serve");
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

    /// How the bodies were used before.
    fn read_access(&self, bodies: &mut HashMap<BlobId, Found>) {
        for access in access::read(&self.paths.access) {
            if let Some(body) = bodies.get_mut(&access.blob) {
                body.used = body.used.max(Some(access.used));
                body.standing = Some(access.standing());
            }
        }
    }

    /// Puts the bodies on the bodies, the longest unused first, and removes what no record names.
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
            let mut room = self.space.take(Purpose::Blob, size);
            room.written();
            let mut records = self.space.take(Purpose::Blob, body.records);
            records.written();
            let holding = Holding {
                stored: Arc::new(Stored::new(body.size, room)),
                refs: body.refs,
                public: body.public,
                records,
                used: body.used.unwrap_or(Time::from_millis(0)),
            };
            // Without a standing it is as if it had just come.
            let standing = body.standing.unwrap_or_default();
            bodies.insert(id, size, holding, Some(standing));
            if body.member {
                bodies.set_member(id);
            }
        }
    }
}
