//! Maintenance beside the requests: writes in batches, enforces limits, verifies all bodies.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::access;
use super::body::BodyRecord;
use super::ledger::OutOfService;
use super::space::Purpose;
use super::{Store, durable, hold};
use crate::digest::{Algorithms, BlobId, Hashing};
use crate::entry::Entry;
use crate::proof::Rank;

/// How often the access file is written, which has up to twenty megabytes.
const ACCESS_EVERY: Duration = Duration::from_mins(5);

/// What the store holds, and the disk space it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Entries.
    pub entries: u64,
    /// Entries by the rank of their proof, weakest first.
    pub by_rank: Vec<(Rank, u64)>,
    /// Bodies.
    pub blobs: u64,
    /// Disk space of the bodies with their records, in bytes.
    pub bytes: u64,
    /// Disk space of the spool files, in bytes.
    pub spool_bytes: u64,
    /// Disk space of the claims, in bytes.
    pub claims_bytes: u64,
    /// Disk space of the ledger, directories and lists, in bytes.
    pub overhead_bytes: u64,
    /// Number of indexes with current claims.
    pub indexes: u64,
    /// The size cap, in bytes.
    pub cap: u64,
    /// Bodies evicted since the start.
    pub evicted: u64,
    /// Bodies not kept because they exceeded the maximum for one body, since the start.
    pub oversize: u64,
    /// Bodies found damaged since the start.
    pub damaged: u64,
    /// How often the ledger failed since the start.
    pub ledger_failures: u64,
}

/// The result of [`Store::verify_all`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Bodies whose SHA-256 matches their name.
    pub sound: u64,
    /// Bodies that were damaged and taken out of service.
    pub damaged: Vec<BlobId>,
    /// Bodies that were evicted or removed during the verification.
    pub gone: u64,
    /// Bodies that could not be read. Their state is unknown, and they stay.
    pub unread: u64,
}

impl Store {
    /// Maintenance, to be called about every half minute. Writes changes from memory to disk; drops claims that were
    /// superseded more than a day ago, bodies that no record names, and records without a body; brings the store under
    /// its size cap and over its free-space floor. Blocking.
    pub fn maintain(&self) {
        if !self.is_read() {
            return;
        }
        if self.ledger.is_deleted() {
            tracing::info!("the cache was deleted; larder starts an empty one");
            let opened = self.ledger.reopen(self.clock.now());
            self.take_stock(opened);
        }
        self.flush();
        self.claims.remove_deleted(self);
        self.claims.prune(self, self.clock.now());
        self.drop_unnamed();
        self.drop_bodiless();
        self.unverified.tidy();
        self.recent.tidy();
        self.ledger.settle(|bytes| self.space.has_free(bytes));
        // After a burst of requests these may never be needed again. Opening one again takes a few microseconds.
        self.blobs.close_idle();
        hold(&self.bodies).iter_mut().for_each(BodyRecord::rest);
        self.claims.close_idle();
        self.space.measure(&self.paths.cache);
        let alone = hold(&self.making_room);
        if let Err(error) = self.make_room(Purpose::Blob, 0) {
            tracing::warn!(%error, "the store is over its limits");
        }
        drop(alone);
    }

    /// Writes to disk what is only in memory. Blocking.
    pub fn flush(&self) {
        let now = self.clock.now();
        let mut written = hold(&self.counts.access_written);
        if written.is_none_or(|written| now.since(written) >= ACCESS_EVERY) {
            *written = Some(now);
            // A separate variable releases the lock; as an argument expression it would hold it until the file is
            // written.
            let accesses = access::of(&hold(&self.bodies));
            access::write(&self.paths.access, &accesses);
        }
        drop(written);
        self.claims.flush(&self.paths.marks);
        self.state.flush();
        self.rejections.flush();
        self.unverified.flush();
    }

    /// Closes the store cleanly, so that the next start is quick. Later queries are answered from the records.
    /// Blocking; dropping the store does the same.
    pub fn close(&self) {
        if !self.is_read() {
            // The records are not fully read, so neither the access data nor the ledger is complete. Both stay as after
            // a crash, for the next start.
            self.reading.stopped.store(true, Ordering::Relaxed);
            self.claims.flush(&self.paths.marks);
            self.state.flush();
            self.unverified.flush();
            return;
        }
        *hold(&self.counts.access_written) = None;
        self.flush();
        self.ledger.close();
    }

    /// What the store holds and takes. Quick.
    pub fn usage(&self) -> Usage {
        let ranks = *hold(&self.counts.entries);
        Usage {
            entries: ranks.iter().sum(),
            by_rank: Rank::ALL.into_iter().zip(ranks).collect(),
            blobs: hold(&self.bodies).len() as u64,
            bytes: self.space.taken(Purpose::Blob),
            spool_bytes: self.space.taken(Purpose::Spool),
            claims_bytes: self.space.taken(Purpose::Claims),
            overhead_bytes: self.space.overhead(),
            indexes: self.claims.current(),
            cap: self.space.cap(),
            evicted: self.counts.evicted.load(Ordering::Relaxed),
            oversize: self.counts.oversize.load(Ordering::Relaxed),
            damaged: self.counts.lost.load(Ordering::Relaxed),
            ledger_failures: self.ledger.failures(),
        }
    }

    /// Calls `each` with every entry, in no particular order, until it breaks. Entries that cannot be read now are left out.
    /// Blocking.
    pub fn for_each_entry(&self, each: &mut dyn FnMut(&Entry) -> ControlFlow<()>) {
        if let Err(error) = self.for_every_entry(each) {
            tracing::warn!(%error, "not every entry can be read now");
        }
    }

    /// As [`Store::for_each_entry`]. The error means that not every entry could be read. Blocking.
    pub fn for_every_entry(
        &self,
        each: &mut dyn FnMut(&Entry) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut done = Ok(());
        for shard in 0..=u8::MAX {
            // Only one shard at a time is in memory.
            let rows = match self.ledger.shard(shard) {
                Ok(rows) => Ok(rows),
                Err(OutOfService) => self.records.names(shard).map(|names| {
                    names.into_iter().map(|(key, blob)| (key, blob, Vec::new())).collect()
                }),
            };
            let rows = rows.unwrap_or_else(|error| {
                done = Err(error);
                Vec::new()
            });
            for (key, blob, record) in rows {
                if self.has_blob(blob).is_none() {
                    continue;
                }
                match self.entry(key, blob, &record) {
                    Ok(Some(entry)) if each(&entry).is_break() => return done,
                    Ok(_) => {}
                    Err(error) => done = Err(error),
                }
            }
        }
        done
    }

    /// Hashes every body again and compares it with its name. Damaged bodies are taken out of service. `progress`
    /// receives the bytes done and the total. Blocking for as long as reading everything takes.
    pub fn verify_all(self: &Arc<Self>, progress: &mut dyn FnMut(u64, u64)) -> Verification {
        let list: Vec<(BlobId, u64)> =
            hold(&self.bodies).iter().map(|(id, holding)| (id, holding.size)).collect();
        let total = list.iter().map(|(_, size)| size).sum();
        let mut verification = Verification::default();
        let mut done = 0;
        for (id, size) in list {
            match self.hash_again(id, |read| progress(done + read, total)) {
                Ok(Some(true)) => verification.sound += 1,
                Ok(Some(false)) => verification.damaged.push(id),
                Ok(None) => verification.gone += 1,
                Err(error) if durable::is_damage(&error) => verification.damaged.push(id),
                Err(_) => verification.unread += 1,
            }
            done += size;
            progress(done, total);
        }
        verification
    }

    /// Whether a body's SHA-256 still matches its name; `None` if the body is gone.
    fn hash_again(
        self: &Arc<Self>,
        id: BlobId,
        mut progress: impl FnMut(u64),
    ) -> io::Result<Option<bool>> {
        let before = self.counts.lost.load(Ordering::Relaxed);
        let Some(blob) = self.open_blob(id)? else {
            // It or its checksum file is damaged, or an operator deleted the body.
            return Ok((self.counts.lost.load(Ordering::Relaxed) > before).then_some(false));
        };
        let mut hashing = Hashing::new(Algorithms::NONE);
        let mut read = 0;
        for n in 0..blob.size().div_ceil(super::CHUNK) {
            let chunk = blob.chunk(n)?;
            hashing.update(&chunk);
            read += chunk.len() as u64;
            progress(read);
        }
        let sound = hashing.finish().blob() == id;
        if !sound {
            let why = io::Error::new(io::ErrorKind::InvalidData, "its SHA-256 is another");
            self.lose(id, &why);
        }
        Ok(Some(sound))
    }
}
