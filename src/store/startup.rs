//! Taking stock: what a start finds on disk, and what a crash has left there.
//!
//! The records say what is stored, the blobs whether it is there, and the ledger saves reading the records. They are
//! compared by their names, shard by shard: a record that the ledger does not know is read, a row without a record is
//! dropped, a record whose body is missing goes, and a body that no record names goes. The same is done when somebody
//! deleted the cache while larder runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
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
}

impl Store {
    /// Reads everything from disk again, into empty memory.
    pub(super) fn take_stock(&self, opened: Opened) {
        let _alone = self.era.write().unwrap_or_else(PoisonError::into_inner);
        self.recent.clear();
        *hold(&self.bodies) = Bodies::default();
        *hold(&self.counts.entries) = Default::default();
        if opened == Opened::Empty {
            tracing::info!("the ledger is filled from the records");
        }
        let mut bodies: HashMap<BlobId, Found> = HashMap::new();
        for (id, size) in self.blobs.sweep() {
            let found = Found { size, ..Found::default() };
            bodies.insert(id, found);
        }
        // Every generation that an entry was judged under has been: none may come again.
        let mut generation = 0;
        for shard in 0..=u8::MAX {
            generation = generation.max(self.compare(shard, &mut bodies));
        }
        self.read_access(&mut bodies);
        self.take_in(bodies);
        self.claims.load(self, generation);
    }

    /// Brings records and ledger of one shard in step, and notes in `bodies` who names them. Gives the highest generation
    /// under which one of these entries was judged.
    fn compare(&self, shard: u8, bodies: &mut HashMap<BlobId, Found>) -> u64 {
        let records: HashSet<(Key, BlobId)> = self.records.names(shard).into_iter().collect();
        let mut rows: HashMap<(Key, BlobId), Vec<u8>> = HashMap::new();
        for (key, blob, record) in self.ledger.shard(shard).unwrap_or_default() {
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
            let found = bodies.get_mut(&blob).and_then(|body| {
                let entry = self.entry(key, blob, &row.unwrap_or_default())?;
                (entry.size == body.size).then_some((entry, body))
            });
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
    fn take_in(&self, found: HashMap<BlobId, Found>) {
        let mut order: Vec<(BlobId, Found)> = found.into_iter().collect();
        order.sort_unstable_by_key(|(id, body)| (body.used, *id));
        let mut bodies = hold(&self.bodies);
        for (id, body) in order {
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
