//! The ledger: a sled database that answers look-ups without a search through the record directories.
//!
//! No type of sled leaves this file. sled is quick, but the records are the truth. After a crash, sled's files may make
//! it panic or loop for ever. So a ledger is opened again only if it was closed cleanly and its files are unchanged
//! since (`audit.rs`); otherwise it is rebuilt from the records. This is also why it need not sync. When sled fails at
//! run time, the ledger goes out of service until the next start, and every question is answered without it (promise
//! P6).
//!
//! ```text
//! entries      key 32 │ blob 32            → the entry's record; empty if that is longer than sled likes values to be
//! refs         blob 32 │ key 32            → nothing: which entries name a blob
//! digests      algorithm 1 │ digest        → blob 32: other strong digests of public bodies
//! idle         number 4                    → nothing: read only to make sled free memory, see [`Ledger::settle`]
//! ```

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::audit;
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::target::Key;

/// sled's page cache, as far as [`Ledger::settle`] enforces it. Frequently used entries are in `recent.rs`.
const CACHE_BYTES: u64 = 2 << 20;

/// sled spreads its pages over 256 lists, by their numbers. It looks whether a list takes more than its share of
/// [`CACHE_BYTES`] only after so many accesses to pages of that list.
const ACCESSES: usize = 64;

/// Rows of the tree `idle`. A page of sled has eight to sixteen rows, so the tree has some 512 pages. They are allocated
/// one after another, hence every list has two of them. Where other threads allocate pages meanwhile, it has one.
const IDLE_ROWS: u32 = 4096;

/// The tree `idle`, and what it takes on disk at most.
const IDLE: &[u8] = b"idle";
const IDLE_BYTES: u64 = 2 << 20;

/// Distance of two rows of `idle` that are read.
const IDLE_STEP: usize = 8;

/// After fewer questions and rows read, [`Ledger::settle`] does nothing: they bring at most some six megabytes into memory.
/// So a small store need not have the tree `idle`, which takes a megabyte on disk.
const SETTLE_FROM: u64 = 4096;

/// sled writes longer values to files of their own, whose space it reclaims poorly.
const MAX_VALUE: usize = 2 << 10;

/// A ledger that takes more than this per row, and more than [`BLOAT_FROM`] in all, is rebuilt at start-up, because
/// sled reclaims little space.
const BLOAT_PER_ROW: u64 = 16 << 10;
const BLOAT_FROM: u64 = 128 << 20;

/// The ledger is out of service; the caller answers without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfService;

/// Whether the ledger has its rows or must be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// It was opened with its rows.
    Found,
    /// It is new or out of service: the records must be read.
    Empty,
}

/// The ledger.
pub(super) struct Ledger {
    path: PathBuf,
    trees: RwLock<Option<Arc<Trees>>>,
    failures: AtomicU64,
    /// Questions, and rows of shards, since memory was last freed.
    asked: AtomicU64,
}

struct Trees {
    db: sled::Db,
    entries: sled::Tree,
    refs: sled::Tree,
    digests: sled::Tree,
}

enum Failure {
    /// Another process holds the lock, or this one has not yet released it.
    Locked,
    /// Anything else.
    Damaged(String),
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger in the directory `path`. A ledger that cannot be opened is set aside. Never fails: at worst the
    /// ledger is out of service.
    pub(super) fn open(path: PathBuf, now: Time) -> (Self, Opened) {
        let ledger = Self {
            path,
            trees: RwLock::new(None),
            failures: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        };
        let opened = ledger.reopen(now);
        (ledger, opened)
    }

    /// Opens the ledger again, after its directory was deleted.
    pub(super) fn reopen(&self, now: Time) -> Opened {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        *trees = None;
        let (opened, state) = match self.found(now) {
            Some(found) => (Some(found), Opened::Found),
            None => (self.fresh(), Opened::Empty),
        };
        *trees = opened.map(Arc::new);
        state
    }

    fn found(&self, now: Time) -> Option<Trees> {
        if !self.path.exists() {
            return None;
        }
        let why = match audit::is_untouched(&self.path, &self.signature()) {
            Ok(true) => match self.attempt() {
                Ok(trees) if trees.is_bloated() => "it has grown out of proportion".to_owned(),
                Ok(trees) => return Some(trees),
                Err(Failure::Damaged(why)) => why,
                // larder holds the lock on the data directory, so a thread of sled's in this process has not ended yet.
                // Renaming the directory now would leave two ledgers open.
                Err(Failure::Locked) => return None,
            },
            Ok(false) => "it was not closed in order, or was changed since".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %self.path.display(), why, "the ledger is rebuilt from the records");
        if let Err(error) = self.set_aside(now) {
            tracing::warn!(%error, "the ledger could not be set aside");
        }
        None
    }

    fn fresh(&self) -> Option<Trees> {
        match self.attempt() {
            Ok(trees) => Some(trees),
            Err(failure) => {
                let why = match failure {
                    Failure::Locked => "it is locked".to_owned(),
                    Failure::Damaged(why) => why,
                };
                tracing::warn!(why, "there is no ledger; the records are read instead");
                self.failures.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Opens sled, waiting up to two seconds for a lock that is about to be released.
    fn attempt(&self) -> Result<Trees, Failure> {
        for _ in 0..40 {
            match open_trees(&self.path) {
                Err(Failure::Locked) => std::thread::sleep(Duration::from_millis(50)),
                done => return done,
            }
        }
        Err(Failure::Locked)
    }

    /// Renames the directory so that an operator can examine it, and removes the one set aside before.
    fn set_aside(&self, now: Time) -> io::Result<()> {
        let parent = self.path.parent().unwrap_or(&self.path);
        for sibling in parent.read_dir()?.flatten() {
            if sibling.file_name().to_string_lossy().starts_with("ledger.bad-") {
                std::fs::remove_dir_all(sibling.path())?;
            }
        }
        let aside = parent.join(format!("ledger.bad-{}", now.as_millis()));
        super::durable::rename(&self.path, &aside)
    }

    /// Whether the ledger's files were deleted while it was in service.
    pub(super) fn is_deleted(&self) -> bool {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        // An error does not mean that they are gone.
        trees.is_some() && matches!(self.path.join("db").try_exists(), Ok(false))
    }

    /// Closes the ledger cleanly for the next start. It is out of service from now on.
    pub(super) fn close(&self) {
        let trees = self.trees.write().unwrap_or_else(PoisonError::into_inner).take();
        // If another thread is still using it, it is not closed cleanly, and the next start rebuilds it.
        let Some(trees) = trees.and_then(Arc::into_inner) else {
            return;
        };
        let flushed = catch_unwind(AssertUnwindSafe(|| {
            let flushed = trees.db.flush();
            drop(trees);
            flushed
        }));
        if !matches!(flushed, Ok(Ok(_))) {
            return;
        }
        if let Err(error) = audit::put_away(&self.path, &self.signature()) {
            tracing::warn!(%error, "the ledger was not closed in order, and will be rebuilt");
        }
    }

    fn signature(&self) -> PathBuf {
        self.path.with_extension("seal")
    }

    /// How often the ledger failed since the start.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Runs a query on sled. A panic or an error takes the ledger out of service, because damaged files may answer
    /// wrongly from then on.
    fn ask<T>(&self, question: impl FnOnce(&Trees) -> sled::Result<T>) -> Result<T, OutOfService> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner).clone();
        let trees = trees.ok_or(OutOfService)?;
        self.asked.fetch_add(1, Ordering::Relaxed);
        let why = match catch_unwind(AssertUnwindSafe(|| question(&trees))) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!(why, "the ledger is out of service until the next start");
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = None;
        Err(OutOfService)
    }

    /// Adds an entry's record, and the reference from its blob.
    pub(super) fn put(&self, key: Key, blob: BlobId, record: &[u8]) -> Result<(), OutOfService> {
        let value = if record.len() <= MAX_VALUE { record } else { &[] };
        self.ask(|trees| {
            trees.refs.insert(joined(blob.as_bytes(), &key.0), &[])?;
            trees.entries.insert(joined(&key.0, blob.as_bytes()), value)?;
            Ok(())
        })
        .inspect_err(|OutOfService| {
            // The ledger may have been closed and sealed already, with an older record of this entry. Without the seal
            // it is rebuilt.
            if let Err(error) = super::durable::remove(&self.signature()) {
                tracing::warn!(%error, "the ledger's seal could not be removed");
            }
        })
    }

    /// Removes an entry.
    pub(super) fn remove(&self, key: Key, blob: BlobId) -> Result<(), OutOfService> {
        self.ask(|trees| {
            trees.entries.remove(joined(&key.0, blob.as_bytes()))?;
            trees.refs.remove(joined(blob.as_bytes(), &key.0))?;
            Ok(())
        })
    }

    /// The blobs of `key`'s entries with their records. An empty record must be read from its file.
    pub(super) fn of_key(&self, key: Key) -> Result<Vec<(BlobId, Vec<u8>)>, OutOfService> {
        self.ask(|trees| {
            trees
                .entries
                .scan_prefix(key.0)
                .filter_map(|row| row.map(|row| parted(&row)).transpose())
                .map(|row| row.map(|(_, blob, record)| (BlobId::new(blob), record)))
                .collect()
        })
    }

    /// Every entry whose key begins with the byte `shard`.
    pub(super) fn shard(&self, shard: u8) -> Result<Vec<(Key, BlobId, Vec<u8>)>, OutOfService> {
        self.ask(|trees| {
            trees
                .entries
                .scan_prefix([shard])
                .filter_map(|row| row.map(|row| parted(&row)).transpose())
                .map(|row| row.map(|(key, blob, record)| (Key(key), BlobId::new(blob), record)))
                .collect()
        })
        .inspect(|rows: &Vec<_>| {
            self.asked.fetch_add(rows.len() as u64, Ordering::Relaxed);
        })
    }

    /// The keys of the entries that name a blob.
    pub(super) fn refs(&self, blob: BlobId) -> Result<Vec<Key>, OutOfService> {
        self.ask(|trees| {
            trees
                .refs
                .scan_prefix(blob.as_bytes())
                .filter_map(|row| row.map(|row| parted(&row)).transpose())
                .map(|row| row.map(|(_, key, _)| Key(key)))
                .collect()
        })
    }

    /// Makes a blob findable by another digest of its bytes.
    pub(super) fn put_digest(&self, digest: &Digest, blob: BlobId) -> Result<(), OutOfService> {
        self.ask(|trees| trees.digests.insert(coded(digest), blob.as_bytes())).map(drop)
    }

    /// Removes a digest if it leads to `blob`.
    pub(super) fn remove_digest(&self, digest: &Digest, blob: BlobId) -> Result<(), OutOfService> {
        self.ask(|trees| {
            let none: Option<&[u8]> = None;
            trees.digests.compare_and_swap(coded(digest), Some(blob.as_bytes()), none)
        })
        .map(drop)
    }

    /// The blob that has `digest`.
    pub(super) fn by_digest(&self, digest: &Digest) -> Result<Option<BlobId>, OutOfService> {
        self.ask(|trees| trees.digests.get(coded(digest)))
            .map(|found| Some(BlobId::new(found?.as_ref().try_into().ok()?)))
    }

    /// Frees the memory of pages that nobody has asked for lately. After many questions sled keeps all pages that were
    /// read or written, whatever its limit is, because it enforces the limit only while a list of pages is accessed. So
    /// this accesses each list often enough, at pages without any data. Takes some ten milliseconds. `room`: whether there is
    /// room on disk for these pages; a write that fails would put the ledger out of service. Blocking.
    pub(super) fn settle(&self, room: impl FnOnce(u64) -> bool) {
        if self.asked.load(Ordering::Relaxed) < SETTLE_FROM {
            return;
        }
        // An error has been logged by `ask`.
        let _settled: Result<(), OutOfService> = self.ask(|trees| {
            let is_new = !trees.db.tree_names().iter().any(|name| name.as_ref() == IDLE);
            if is_new && !room(IDLE_BYTES) {
                return Ok(());
            }
            self.asked.store(0, Ordering::Relaxed);
            let idle = trees.db.open_tree(IDLE)?;
            if !idle.contains_key((IDLE_ROWS - 1).to_be_bytes())? {
                for row in 0..IDLE_ROWS {
                    idle.insert(row.to_be_bytes(), &[])?;
                }
            }
            // The accesses of the second round also destroy the pages that the first has removed from the lists.
            for row in (0..IDLE_ROWS).chain(0..IDLE_ROWS).step_by(IDLE_STEP) {
                for _ in 0..ACCESSES {
                    idle.contains_key(row.to_be_bytes())?;
                }
            }
            Ok(())
        });
    }

    /// Makes the ledger fail, as a damaged page would.
    #[cfg(test)]
    pub(super) fn fail(&self) {
        let failed: Result<(), OutOfService> = self.ask(|_| panic!("as sled would"));
        assert_eq!(failed, Err(OutOfService));
    }
}

impl Trees {
    fn is_bloated(&self) -> bool {
        let rows = self.entries.len() as u64 + 1;
        let size = self.db.size_on_disk().unwrap_or(0);
        size > BLOAT_FROM && size / rows > BLOAT_PER_ROW
    }
}

fn open_trees(path: &Path) -> Result<Trees, Failure> {
    let open = || {
        let db = sled::Config::default()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // A ledger that was not closed cleanly is rebuilt, so periodic syncing gains nothing.
            .flush_every_ms(None)
            .open()?;
        Ok(Trees {
            entries: db.open_tree("entries")?,
            refs: db.open_tree("refs")?,
            digests: db.open_tree("digests")?,
            db,
        })
    };
    // A damaged file can make sled panic in `open`.
    match catch_unwind(open) {
        Ok(Ok(trees)) => Ok(trees),
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(Failure::Damaged("sled panicked while it opened it".into())),
    }
}

fn failure(error: &sled::Error) -> Failure {
    let text = error.to_string();
    // sled has no error variant for this.
    if text.contains("could not acquire lock") { Failure::Locked } else { Failure::Damaged(text) }
}

fn joined(first: &[u8; 32], second: &[u8; 32]) -> [u8; 64] {
    let mut both = [0; 64];
    for (to, from) in both.iter_mut().zip(first.iter().chain(second)) {
        *to = *from;
    }
    both
}

/// Splits a row whose key is two names of 32 bytes; `None` for any other row.
fn parted(row: &(sled::IVec, sled::IVec)) -> Option<([u8; 32], [u8; 32], Vec<u8>)> {
    let (names, value) = row;
    let (first, second) = names.split_first_chunk()?;
    Some((*first, second.try_into().ok()?, value.to_vec()))
}

fn coded(digest: &Digest) -> Vec<u8> {
    let mut key = vec![digest.algorithm() as u8];
    key.extend_from_slice(digest.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: u32 = 2000;

    fn name(number: u32) -> [u8; 32] {
        crate::digest::key_hash([&number.to_be_bytes()])
    }

    fn fill(ledger: &Ledger) {
        for number in 0..ROWS {
            let (key, blob) = (Key(name(number)), BlobId::new(name(number)));
            ledger.put(key, blob, &[7; 300]).unwrap();
        }
    }

    fn holds_all(ledger: &Ledger) {
        for number in 0..ROWS {
            let rows = ledger.of_key(Key(name(number))).unwrap();
            assert_eq!(rows, [(BlobId::new(name(number)), vec![7; 300])]);
        }
    }

    /// Depending on the damage, sled panics in `open`, loops for ever, or opens with rows missing.
    #[test]
    fn damage_is_never_opened() {
        for case in 0..7_usize {
            let data = tempfile::tempdir().unwrap();
            let path = data.path().join("ledger");
            let now = Time::from_millis(1);
            let (ledger, opened) = Ledger::open(path.clone(), now);
            assert_eq!(opened, Opened::Empty);
            fill(&ledger);
            ledger.close();
            let (ledger, opened) = Ledger::open(path.clone(), now);
            assert_eq!(opened, Opened::Found);
            holds_all(&ledger);
            // The last case is a crash.
            if case < 6 {
                ledger.close();
            }
            drop(ledger);
            let db = path.join("db");
            let mut bytes = std::fs::read(&db).unwrap();
            let length = bytes.len();
            match case {
                0 => bytes[length / 2] ^= 1,
                1 | 2 => bytes.truncate(length * case / 3),
                3 => bytes.fill(0xff),
                4 => bytes[length / 3..length / 2].fill(0x5a),
                5 => bytes.clear(),
                _ => {}
            }
            super::super::durable::write(&db, &bytes, 0o600).unwrap();
            let (ledger, opened) = Ledger::open(path.clone(), now);
            assert_eq!(opened, Opened::Empty, "case {case}");
            assert_eq!(ledger.shard(0).unwrap(), []);
            fill(&ledger);
            ledger.close();
            let (ledger, opened) = Ledger::open(path, now);
            assert_eq!(opened, Opened::Found);
            holds_all(&ledger);
        }
    }

    #[test]
    fn a_ledger_that_failed_is_set_aside_at_the_next_start_and_one_is_kept() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("ledger");
        for turn in 1..4 {
            let (ledger, opened) = Ledger::open(path.clone(), Time::from_millis(turn));
            assert_eq!(opened, Opened::Empty);
            fill(&ledger);
            ledger.fail();
            assert_eq!(ledger.refs(BlobId::new(name(1))), Err(OutOfService));
            assert_eq!(ledger.failures(), 1);
        }
        let names: Vec<String> = data
            .path()
            .read_dir()
            .unwrap()
            .map(|name| name.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "ledger")
            .collect();
        assert_eq!(names, ["ledger.bad-3"]);
    }

    /// Issue 17, fault 2: after 20,000 new files sled kept nearly all of its pages in memory for good.
    #[test]
    fn memory_is_freed_after_many_questions_and_no_row_is_lost() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("ledger");
        let (ledger, _) = Ledger::open(path.clone(), Time::from_millis(1));
        let has_idle_tree = |ledger: &Ledger| {
            let trees = ledger.trees.read().unwrap().clone().unwrap();
            trees.db.tree_names().iter().any(|name| name.as_ref() == b"idle")
        };
        ledger.settle(|_| true);
        assert!(!has_idle_tree(&ledger), "the control: nobody asked anything");
        fill(&ledger);
        (0..=u8::MAX).for_each(|shard| drop(ledger.shard(shard).unwrap()));
        ledger.settle(|_| false);
        assert!(!has_idle_tree(&ledger), "the disk is full");
        ledger.settle(|_| true);
        assert!(has_idle_tree(&ledger));
        assert!(ledger.asked.load(Ordering::Relaxed) < SETTLE_FROM, "it is not done again at once");
        holds_all(&ledger);
        ledger.close();
        let (ledger, opened) = Ledger::open(path, Time::from_millis(1));
        assert_eq!(opened, Opened::Found);
        holds_all(&ledger);
    }

    #[test]
    fn a_long_record_is_left_to_its_file() {
        let data = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(data.path().join("ledger"), Time::from_millis(1));
        let (key, blob) = (Key(name(1)), BlobId::new(name(2)));
        ledger.put(key, blob, &vec![1; MAX_VALUE + 1]).unwrap();
        assert_eq!(ledger.of_key(key).unwrap(), [(blob, Vec::new())]);
        assert_eq!(ledger.refs(blob).unwrap(), [key]);
        ledger.remove(key, blob).unwrap();
        assert_eq!(ledger.shard(key.0[0]).unwrap(), []);
        assert_eq!(ledger.refs(blob).unwrap(), []);
    }
}
