//! The hard cap and the floor (promise P7).
//!
//! Every byte under `DATA/v1` that larder decides upon is held as [`Room`] before it is written: blobs with their side
//! files and the records that name them, spool files, claim segments. Room comes back when it is dropped. The ledger, directories
//! and lists are measured when the store opens and with each maintenance: what they grow by in between is not counted yet.
//!
//! A spool file that nobody keeps loses its name at once, and goes on taking the disk while a slow client reads it: its room
//! stays taken until then.
//!
//! What the cap counts is the space a file takes, in blocks: a hundred thousand tiny files take more than their lengths.

use std::fs::{DirEntry, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::hold;
use crate::config::Live;

/// The block of the file systems in use; a file takes whole blocks.
const BLOCK: u64 = 4096;

/// What room is taken for, for the accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A stored body, its side file and its records.
    Blob,
    /// A body on its way, or claims being sorted.
    Spool,
    /// A segment of claims.
    Claims,
}

/// The accounts.
#[derive(Debug)]
pub(super) struct Space {
    config: Live,
    /// A directory on the file system that is watched.
    at: PathBuf,
    blobs: AtomicU64,
    spool: AtomicU64,
    claims: AtomicU64,
    /// What the ledger, directories and lists take; measured from time to time.
    overhead: AtomicU64,
    /// Taken, but not written yet: the file system does not know of it.
    unwritten: AtomicU64,
    /// Spool files without a name that somebody may still read, and what they take. At most one for each flight.
    nameless: Mutex<Vec<(Weak<File>, u64)>>,
}

impl Space {
    /// Empty accounts for the file system of `at`.
    pub(super) fn new(config: Live, at: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            config,
            at,
            blobs: AtomicU64::new(0),
            spool: AtomicU64::new(0),
            claims: AtomicU64::new(0),
            overhead: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            nameless: Mutex::new(Vec::new()),
        })
    }

    /// The bytes taken for `purpose`.
    pub(super) fn taken(&self, purpose: Purpose) -> u64 {
        if purpose == Purpose::Spool {
            self.give_back();
        }
        self.account(purpose).load(Ordering::Relaxed)
    }

    /// What was measured last of all that no room is taken for.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead.load(Ordering::Relaxed)
    }

    /// Measures that: the ledger, and all directories below `cache` with what lies in it beside them.
    pub(super) fn measure(&self, cache: &Path) {
        self.overhead.store(overhead_of(cache), Ordering::Relaxed);
    }

    /// The hard cap, as it is configured now.
    pub(super) fn cap(&self) -> u64 {
        self.config.get().store.max_size
    }

    /// What bodies, claims and spool files may take together: the cap, or what the file system leaves of it.
    pub(super) fn capacity(&self) -> u64 {
        let Some(free) = self.free() else { return self.cap() };
        let written = self.used().saturating_sub(self.unwritten.load(Ordering::Relaxed));
        let there = written.saturating_add(free);
        self.cap().min(there.saturating_sub(self.config.get().store.min_free))
    }

    /// The most that one body may take.
    pub(super) fn share(&self) -> u64 {
        let (whole, hundredths) = (self.capacity(), self.config.get().store.max_body_share);
        let hundredths = u64::from(hundredths.min(100));
        whole / 100 * hundredths + whole % 100 * hundredths / 100
    }

    /// Everything that is taken.
    fn used(&self) -> u64 {
        [Purpose::Blob, Purpose::Spool, Purpose::Claims]
            .map(|purpose| self.taken(purpose))
            .iter()
            .fold(self.overhead(), |sum, taken| sum.saturating_add(*taken))
    }

    /// By how much the cap is passed, or the floor undercut, if `more` bytes are wanted; zero if they fit.
    pub(super) fn excess(&self, more: u64) -> u64 {
        let over_cap = self.used().saturating_add(more).saturating_sub(self.cap());
        let wanted = self
            .config
            .get()
            .store
            .min_free
            .saturating_add(more)
            .saturating_add(self.unwritten.load(Ordering::Relaxed));
        // A file system that cannot be asked says ENOSPC when it comes to that.
        let under_floor = self.free().map_or(0, |free| wanted.saturating_sub(free));
        over_cap.max(under_floor)
    }

    /// What the file system has left for this user.
    fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.at).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Takes room for something that is about to be written. The caller has made sure of it with [`Space::excess`], under
    /// the store's lock for making room.
    pub(super) fn take(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Room {
        let mut room = Room { space: Arc::clone(self), purpose, bytes: 0, unwritten: 0 };
        room.grow(bytes);
        room
    }

    /// Gives back the room of nameless files that nobody reads any more.
    fn give_back(&self) {
        hold(&self.nameless).retain(|(file, bytes)| {
            let is_read = file.strong_count() > 0;
            if !is_read {
                self.spool.fetch_sub(*bytes, Ordering::Relaxed);
            }
            is_read
        });
    }

    fn account(&self, purpose: Purpose) -> &AtomicU64 {
        match purpose {
            Purpose::Blob => &self.blobs,
            Purpose::Spool => &self.spool,
            Purpose::Claims => &self.claims,
        }
    }
}

/// Room that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    space: Arc<Space>,
    purpose: Purpose,
    bytes: u64,
    unwritten: u64,
}

impl Room {
    /// What it is taken for.
    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more`.
    pub(super) fn grow(&mut self, more: u64) {
        self.bytes += more;
        self.unwritten += more;
        self.space.account(self.purpose).fetch_add(more, Ordering::Relaxed);
        self.space.unwritten.fetch_add(more, Ordering::Relaxed);
    }

    /// All of it is on the file system now.
    pub(super) fn written(&mut self) {
        self.space.unwritten.fetch_sub(self.unwritten, Ordering::Relaxed);
        self.unwritten = 0;
    }

    /// The same room, for another purpose and of the size it turned out to be.
    pub(super) fn settle(&mut self, purpose: Purpose, bytes: u64) {
        self.written();
        self.space.account(self.purpose).fetch_sub(self.bytes, Ordering::Relaxed);
        self.purpose = purpose;
        self.bytes = bytes;
        self.space.account(purpose).fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.settle(self.purpose, 0);
    }
}

/// The room of a spool file. Unless it is taken out, for the file to be kept, it lasts as long as somebody reads the file.
#[derive(Debug)]
pub(super) struct OfFile {
    /// The room.
    pub(super) room: Room,
    file: Weak<File>,
}

impl OfFile {
    /// The room that `file` takes.
    pub(super) fn new(room: Room, file: &Arc<File>) -> Self {
        Self { room, file: Arc::downgrade(file) }
    }

    /// The room alone.
    pub(super) fn take(mut self) -> Room {
        let none = self.room.space.take(Purpose::Spool, 0);
        std::mem::replace(&mut self.room, none)
    }
}

impl Drop for OfFile {
    fn drop(&mut self) {
        let room = &mut self.room;
        if room.bytes > 0 && self.file.strong_count() > 0 {
            room.settle(Purpose::Spool, room.bytes);
            hold(&room.space.nameless).push((Weak::clone(&self.file), room.bytes));
            // It stays in the account, and is not this room's to give back any more.
            room.bytes = 0;
        }
    }
}

/// What `cache` takes on disk without the bodies, records, spool files and claims in it.
fn overhead_of(cache: &Path) -> u64 {
    let each = |path: &Path| path.read_dir().into_iter().flatten().flatten();
    let blocks = |path: &Path| path.symlink_metadata().map_or(0, |at| at.blocks() * 512);
    let mut sum = blocks(cache);
    for entry in each(cache) {
        let path = entry.path();
        sum += blocks(&path);
        // One that was set aside as well.
        let is_ledger = entry.file_name().to_string_lossy().starts_with("ledger");
        // Of the rest only directories: their files have room of their own.
        let counts = |entry: &DirEntry| is_ledger || entry.file_type().is_ok_and(|of| of.is_dir());
        sum += each(&path).filter(counts).map(|entry| blocks(&entry.path())).sum::<u64>();
    }
    sum
}

/// What a file of `length` bytes takes.
pub(super) const fn footprint(length: u64) -> u64 {
    length.saturating_add(BLOCK - 1) / BLOCK * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn space(max_size: u64, min_free: u64) -> Arc<Space> {
        let mut config = Config::default();
        config.store.max_size = max_size;
        config.store.min_free = min_free;
        Space::new(Live::new(config), PathBuf::from("/"))
    }

    #[test]
    fn room_counts_until_it_is_dropped() {
        let space = space(100, 0);
        let mut room = space.take(Purpose::Spool, 60);
        assert_eq!(space.excess(40), 0);
        assert_eq!(space.excess(41), 1);
        room.settle(Purpose::Blob, 80);
        assert_eq!((space.taken(Purpose::Spool), space.taken(Purpose::Blob)), (0, 80));
        drop(room);
        assert_eq!(space.excess(100), 0);
        assert_eq!(space.unwritten.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_floor_counts_what_is_taken_but_not_written() {
        let probe = space(u64::MAX, 0);
        let free = probe.free().unwrap();
        // Others write to this file system while the test runs: a floor far away on either side.
        let space = space(u64::MAX, free / 2);
        assert_eq!(space.excess(free / 4), 0);
        let room = space.take(Purpose::Spool, free / 2);
        assert!(space.excess(free / 4) > 0);
        drop(room);
    }

    #[test]
    fn one_body_may_take_its_share_of_what_there_is() {
        let cap = space(1001, 0);
        assert_eq!((cap.capacity(), cap.share()), (1001, 250));
        // Where the file system leaves nothing, a share of nothing.
        let none = space(1001, u64::MAX);
        assert_eq!((none.capacity(), none.share()), (0, 0));
        let mut config = Config::default();
        (config.store.max_size, config.store.min_free, config.store.max_body_share) =
            (1001, 0, 100);
        let all = Space::new(Live::new(config), PathBuf::from("/"));
        assert_eq!(all.share(), 1001);
    }

    #[test]
    fn a_byte_takes_a_block() {
        assert_eq!([footprint(0), footprint(1), footprint(4097)], [0, 4096, 8192]);
    }
}
