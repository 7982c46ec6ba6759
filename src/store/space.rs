//! Enforces the size cap and the free-space floor (promise P7).
//!
//! For all data under `DATA/v1` that larder decides to write, [`Room`] is reserved before writing: blobs with their
//! checksum files and the records that name them, spool files, claim segments. Dropping the room frees it. The ledger,
//! directories and lists are measured when the store opens and at each maintenance; their growth in between is not
//! counted yet.
//!
//! A spool file that is not kept is unlinked at once, but takes disk space while a slow client still reads it. Its room
//! stays taken until then.
//!
//! The cap counts disk space in whole blocks, because a hundred thousand tiny files take more than their lengths.

use std::fs::{DirEntry, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::hold;
use crate::config::Live;

/// The block size of the file systems in use.
const BLOCK: u64 = 4096;

/// What room is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A stored body, its side file and its records.
    Blob,
    /// An arriving body, or claims being sorted.
    Spool,
    /// A segment of claims.
    Claims,
}

/// The accounts of disk space.
#[derive(Debug)]
pub(super) struct Space {
    config: Live,
    /// A directory on the file system to check for free space.
    at: PathBuf,
    blobs: AtomicU64,
    spool: AtomicU64,
    claims: AtomicU64,
    /// Disk space of the ledger, directories and lists, measured from time to time.
    overhead: AtomicU64,
    /// Reserved but not written yet, so the file system still counts it as free.
    unwritten: AtomicU64,
    /// Unlinked spool files that a client may still read, with their disk space. At most one per flight.
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

    /// The disk space last measured for everything without reserved room.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead.load(Ordering::Relaxed)
    }

    /// Measures the overhead: the ledger, and all directories and lists below `cache`.
    pub(super) fn measure(&self, cache: &Path) {
        self.overhead.store(overhead_of(cache), Ordering::Relaxed);
    }

    /// The size cap, as configured now.
    pub(super) fn cap(&self) -> u64 {
        self.config.get().store.max_size
    }

    /// What bodies, claims and spool files may take together: the cap, or less if the file system has less.
    pub(super) fn capacity(&self) -> u64 {
        let Some(free) = self.free() else { return self.cap() };
        let written = self.used().saturating_sub(self.unwritten.load(Ordering::Relaxed));
        let there = written.saturating_add(free);
        self.cap().min(there.saturating_sub(self.config.get().store.min_free))
    }

    /// Maximum disk space of one body.
    pub(super) fn share(&self) -> u64 {
        let (whole, hundredths) = (self.capacity(), self.config.get().store.max_body_share);
        let hundredths = u64::from(hundredths.min(100));
        whole / 100 * hundredths + whole % 100 * hundredths / 100
    }

    /// All disk space taken.
    fn used(&self) -> u64 {
        [Purpose::Blob, Purpose::Spool, Purpose::Claims]
            .map(|purpose| self.taken(purpose))
            .iter()
            .fold(self.overhead(), |sum, taken| sum.saturating_add(*taken))
    }

    /// By how much `more` bytes would exceed the cap or undercut the floor; zero if they fit.
    pub(super) fn excess(&self, more: u64) -> u64 {
        let over_cap = self.used().saturating_add(more).saturating_sub(self.cap());
        let wanted = self
            .config
            .get()
            .store
            .min_free
            .saturating_add(more)
            .saturating_add(self.unwritten.load(Ordering::Relaxed));
        // If the free space cannot be determined, a write fails with ENOSPC instead.
        let under_floor = self.free().map_or(0, |free| wanted.saturating_sub(free));
        over_cap.max(under_floor)
    }

    /// Whether a write of `bytes` fits on the file system, although it may undercut the floor.
    pub(super) fn has_free(&self, bytes: u64) -> bool {
        self.free().is_none_or(|free| free >= bytes)
    }

    /// The free space that the file system has for this user.
    fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.at).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Takes room for something about to be written. The caller has checked with [`Space::excess`], under the store's
    /// lock for making room.
    pub(super) fn take(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Room {
        let mut room = Room { space: Arc::clone(self), purpose, bytes: 0, unwritten: 0 };
        room.grow(bytes);
        room
    }

    /// Frees the room of unlinked files that no client reads any more.
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

/// Reserved disk space, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    space: Arc<Space>,
    purpose: Purpose,
    bytes: u64,
    unwritten: u64,
}

impl Room {
    /// What it is reserved for.
    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Reserves `more` bytes.
    pub(super) fn grow(&mut self, more: u64) {
        self.bytes += more;
        self.unwritten += more;
        self.space.account(self.purpose).fetch_add(more, Ordering::Relaxed);
        self.space.unwritten.fetch_add(more, Ordering::Relaxed);
    }

    /// Marks all of it as written to the file system.
    pub(super) fn written(&mut self) {
        self.space.unwritten.fetch_sub(self.unwritten, Ordering::Relaxed);
        self.unwritten = 0;
    }

    /// Changes its purpose, and its size to the actual one.
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

/// The room of a body in service and of its records: less memory than a [`Room`] of each.
#[derive(Debug)]
pub(super) struct Kept {
    space: Arc<Space>,
    bytes: u64,
}

impl Kept {
    /// Takes over `room`, whose bytes have been written.
    pub(super) fn of(mut room: Room) -> Self {
        room.settle(Purpose::Blob, room.bytes);
        // The account keeps these bytes; this frees them, not the room.
        Self { space: Arc::clone(&room.space), bytes: std::mem::take(&mut room.bytes) }
    }

    /// Changes its size by `more` and `less` bytes.
    pub(super) fn change(&mut self, more: u64, less: u64) {
        let bytes = (self.bytes + more).saturating_sub(less);
        let account = self.space.account(Purpose::Blob);
        account.fetch_add(bytes, Ordering::Relaxed);
        account.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    /// Takes up to `bytes` out of it.
    pub(super) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { space: Arc::clone(&self.space), bytes }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.space.account(Purpose::Blob).fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The room of a spool file. If the file is not kept, the room stays taken as long as a client reads the file.
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

    /// Takes the room out, for a file that is kept.
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
            // The account keeps these bytes; `give_back` frees them, not this room.
            room.bytes = 0;
        }
    }
}

/// The disk space of `cache` without the bodies, records, spool files and claims in it.
fn overhead_of(cache: &Path) -> u64 {
    let each = |path: &Path| path.read_dir().into_iter().flatten().flatten();
    let blocks = |path: &Path| path.symlink_metadata().map_or(0, |at| at.blocks() * 512);
    let mut sum = blocks(cache);
    for entry in each(cache) {
        let path = entry.path();
        sum += blocks(&path);
        // Includes a ledger that was set aside.
        let is_ledger = entry.file_name().to_string_lossy().starts_with("ledger");
        // Elsewhere count only directories: the files in them have room of their own.
        let counts = |entry: &DirEntry| is_ledger || entry.file_type().is_ok_and(|of| of.is_dir());
        sum += each(&path).filter(counts).map(|entry| blocks(&entry.path())).sum::<u64>();
    }
    sum
}

/// The disk space of a file of `length` bytes.
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
    fn the_room_of_a_stored_body_counts_until_its_parts_are_dropped() {
        let space = space(100, 0);
        let mut kept = Kept::of(space.take(Purpose::Spool, 60));
        assert_eq!((space.taken(Purpose::Spool), space.taken(Purpose::Blob)), (0, 60));
        assert_eq!(space.unwritten.load(Ordering::Relaxed), 0);
        kept.change(10, 30);
        assert_eq!(space.taken(Purpose::Blob), 40);
        let body = kept.split(25);
        drop(kept);
        assert_eq!(space.taken(Purpose::Blob), 25);
        drop(body);
        assert_eq!(space.taken(Purpose::Blob), 0);
    }

    #[test]
    fn the_floor_counts_what_is_taken_but_not_written() {
        let probe = space(u64::MAX, 0);
        let free = probe.free().unwrap();
        // Other processes write to this file system during the test, so the floor is far away on either side.
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
        // If the file system has nothing left, the share is zero.
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
