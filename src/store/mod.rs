//! The store: what is kept and how it is found again. Keeps blobs, records, ledger and claims consistent.
//!
//! ```text
//! DATA/lock                one larder per directory                              lock.rs
//! DATA/state/…             what must survive deletion of the cache               state.rs
//! DATA/state/unverified    targets whose bytes were delivered unverified         unverified.rs
//! DATA/v1/spool/…          bodies that are arriving                              spool.rs
//! DATA/v1/blobs/…          bodies by their SHA-256, and CRCs of large ones       blobs.rs
//! DATA/v1/records/…        one file for each entry: the truth                    record.rs
//! DATA/v1/ledger/…         sled, rebuilt from the records when necessary         ledger.rs
//! DATA/v1/ledger.seal      checksums of the cleanly closed ledger                audit.rs
//! DATA/v1/claims/…         one sorted file for each version of an index          segment.rs, claims.rs
//! DATA/v1/marks            when indexes were confirmed and superseded            claims.rs
//! DATA/v1/access           how bodies were used                                  access.rs
//! DATA/v1/rejections       recent refusals                                       rejections.rs
//! ```
//!
//! A body arrives through [`Store::spool`], is judged elsewhere, and is kept by [`Store::commit`]. The commit's order
//! survives a crash at any point (`commit.rs`): sync the bytes, write the checksums, rename the body, write the record,
//! update the ledger. A body or record whose next step is missing is invisible, and `startup.rs` removes or completes
//! it. `DATA/v1` may be deleted at any time, even while larder runs: that causes misses, not errors (promise P8).
//!
//! What a hit needs is in memory: which bodies exist (`evict.rs`), the recently requested entries (`recent.rs`), and
//! which index makes claims under which topic (`claims.rs`). Everything else blocks, and callers run it on blocking
//! threads.
//!
//! The store decides nothing about trust. It keeps what `verify` made a `Verified`. It enforces only promise P5 itself:
//! a digest finds only bodies that a public entry names.

mod access;
mod audit;
mod batch;
mod blobs;
mod body;
mod buffer;
mod catalogue;
mod claim_files;
mod claiming_roots;
mod claims;
mod commit;
mod conventions;
mod declared;
mod delivered;
mod durable;
mod evict;
pub mod failpoint;
mod fair;
mod handles;
mod in_force;
mod learnt;
mod ledger;
mod lock;
mod notes;
mod promise;
mod recent;
mod record;
mod rejections;
mod sealed;
mod seen;
mod segment;
mod sort;
mod space;
mod spool;
mod startup;
mod state;
mod table;
mod unverified;
mod upkeep;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;
use tokio::time::Instant;

pub use batch::ClaimBatch;
pub use blobs::Blob;
pub use buffer::{Buffer, hash_range};
pub use claims::IndexSet;
pub use conventions::Convention;
pub use delivered::{Delivered, Row};
pub use durable::{may_pass, write as write_durably};
pub use notes::Notes;
pub use recent::IN_USE;
pub use rejections::{Rejection, clipped};
pub use seen::Seen;
pub use spool::Spool;
pub use unverified::Unverified;
pub use upkeep::{Usage, Verification};

use crate::clock::{Clock, Time};
use crate::config::Live;
use crate::digest::{BlobId, Digest};
use crate::entry::Entry;
use crate::proof::Rank;
use crate::target::{Key, Origin, Target};
use blobs::{Blobs, Stored};
use body::BodyRecord;
use claims::Claims;
use evict::Bodies;
use ledger::{Ledger, Opened};
use recent::Recent;
use record::Records;
use rejections::Rejections;
use space::{Purpose, Room, Space};
use state::State;

/// The size of a chunk of a body, the unit in which bodies are read, checked and sent. Smaller chunks cost more system
/// calls, larger ones more memory per transfer.
pub const CHUNK: u64 = 64 << 10;

/// Maximum number of bodies in the store; each takes about 130 bytes of memory.
const MAX_BLOBS: usize = 1 << 19;

/// Number of locks that serialise commits, removals and evictions of one body. Bodies share them.
const LOCKS: usize = 64;

/// The store: keeps blobs, ledger and claims consistent.
#[derive(Debug)]
pub struct Store {
    clock: Clock,
    paths: Paths,
    space: Arc<Space>,
    /// Held while room is made, so that the cap is never exceeded.
    making_room: Mutex<()>,
    bodies: Mutex<Bodies<BodyRecord>>,
    locks: [Mutex<()>; LOCKS],
    /// Write-locked during a reload, read-locked by mutations.
    era: RwLock<()>,
    blobs: Blobs,
    records: Records,
    ledger: Ledger,
    recent: Recent,
    claims: Claims,
    state: State,
    rejections: Rejections,
    unverified: Arc<Unverified>,
    counts: Counts,
    reading: Reading,
    /// Declared last so that it is dropped last: the directory stays locked until everything else is closed.
    lock: lock::HeldLock,
}

#[derive(Debug)]
struct Paths {
    cache: PathBuf,
    spool: PathBuf,
    claims: PathBuf,
    marks: PathBuf,
    access: PathBuf,
    in_force: PathBuf,
}

/// What eviction must leave alone.
#[derive(Clone, Copy, Debug, Default)]
struct Spared {
    /// Bytes of hit bodies (in the main queue) that stay.
    in_main: u64,
    /// Disk space of those with their records.
    on_disk: u64,
}

/// Progress of reading the records.
#[derive(Debug)]
struct Reading {
    begun: Instant,
    /// How the ledger was opened; taken when reading begins.
    opened: Mutex<Option<Opened>>,
    done: watch::Sender<bool>,
    /// Reading was cancelled because the store is closing.
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    /// Entries by the rank of their proof.
    entries: Mutex<[u64; Rank::ALL.len()]>,
    evicted: AtomicU64,
    /// Bodies that were larger than one body may be.
    oversize: AtomicU64,
    lost: AtomicU64,
    /// Whether there may be records whose body is gone.
    bodiless: AtomicBool,
    /// When the access file was last written.
    access_written: Mutex<Option<Time>>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another larder holds the directory.
    #[error("{data} is in use by {holder}; stop it, or give this one another --data")]
    Held {
        /// The data directory.
        data: String,
        /// Its process, and the address it listens on.
        holder: String,
    },
    /// A file or directory could not be created or read.
    #[error("the data directory cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Why a body could not be spooled. The fill continues for its client without storing the body.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The size cap or the free-space floor is reached, and nothing more can be evicted.
    #[error("the store is full: {0}")]
    Full(String),
    /// The body is larger than one body may be. Nothing is evicted for it.
    #[error(
        "a body that takes {takes} bytes on disk or more is not kept: one may take {share} (see store.max_body_share, \
         store.max_size and store.min_free)"
    )]
    Oversize {
        /// Disk space that the body takes so far, or would take with its announced length.
        takes: u64,
        /// Maximum disk space of one body at present.
        share: u64,
    },
    /// The spool file cannot be written.
    #[error("the spool cannot be written: {0}")]
    Io(#[source] io::Error),
}

impl Store {
    /// Opens the store under `config.data`, or creates it. Blocking.
    pub fn open(config: Live, clock: Clock) -> Result<Arc<Self>, OpenError> {
        Self::open_with_holder(config, clock, "")
    }

    /// As [`Store::open`], and writes `holder` to the lock file, so that a second larder can report who uses the
    /// directory.
    pub fn open_with_holder(
        config: Live,
        clock: Clock,
        holder: &str,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Self::begin(config, clock, holder)?;
        store.read_records();
        Ok(store)
    }

    /// As [`Store::open_with_holder`], but without the records, which take long to read after a crash. Until
    /// [`Store::read_records`] has read them, entries are unknown, and while it reads, changes of the store wait. The
    /// claims of indexes are known at once. Blocking.
    pub fn begin(config: Live, clock: Clock, holder: &str) -> Result<Arc<Self>, OpenError> {
        let data = config.get().data.clone();
        durable::directories(&data)?;
        let lock = lock::take(&data.join("lock"), holder).map_err(|refused| match refused {
            lock::Refused::By(holder) => {
                OpenError::Held { data: data.display().to_string(), holder }
            }
            lock::Refused::Io(error) => OpenError::Io(error),
        })?;
        let (state, cache) = (data.join("state"), data.join("v1"));
        for directory in [&state, &cache] {
            durable::directories(directory)?;
            startup::drop_unfinished(directory)?;
        }
        let unverified = Arc::new(Unverified::open(state.join("unverified"), clock.clone())?);
        let in_force = state.join("in-force");
        let state = State::open(&state)?;
        let paths = Paths {
            in_force,
            spool: cache.join("spool"),
            claims: cache.join("claims"),
            marks: cache.join("marks"),
            access: cache.join("access"),
            cache: cache.clone(),
        };
        startup::empty_spool(&paths.spool)?;
        let space = Space::new(config.clone(), data);
        let (ledger, opened) = Ledger::open(cache.join("ledger"), clock.now());
        let store = Self {
            space,
            making_room: Mutex::new(()),
            bodies: Mutex::new(Bodies::default()),
            locks: std::array::from_fn(|_| Mutex::new(())),
            era: RwLock::new(()),
            blobs: Blobs::new(cache.join("blobs")),
            records: Records::new(cache.join("records")),
            ledger,
            recent: Recent::new(),
            claims: Claims::new(config),
            state,
            rejections: Rejections::open(cache.join("rejections")),
            unverified,
            counts: Counts::default(),
            reading: Reading {
                begun: Instant::now(),
                opened: Mutex::new(Some(opened)),
                done: watch::Sender::new(false),
                stopped: AtomicBool::new(false),
            },
            lock,
            clock,
            paths,
        };
        store.claims.load(&store);
        Ok(Arc::new(store))
    }

    /// Reads the records, once. Blocking until done.
    pub fn read_records(&self) {
        self.read_records_and(|| {});
    }

    /// Reads the records, once, and calls `then` before an entry is used. Blocking until done.
    pub fn read_records_and(&self, then: impl FnOnce()) {
        let Some(opened) = hold(&self.reading.opened).take() else {
            return;
        };
        self.take_stock(opened);
        if self.reading.stopped.load(Ordering::Relaxed) {
            return;
        }
        self.space.measure(&self.paths.cache);
        then();
        self.reading.done.send_replace(true);
    }

    /// Whether the records have been read.
    pub fn is_read(&self) -> bool {
        *self.reading.done.borrow()
    }

    /// Whether the records have been read `limit` after the start. Waits for them until then, and not at all afterwards.
    pub async fn is_read_within(&self, limit: std::time::Duration) -> bool {
        let soon = self.reading.begun + limit;
        self.is_read() || tokio::time::timeout_at(soon, self.read()).await.is_ok()
    }

    /// Waits until the records have been read.
    pub async fn read(&self) {
        let mut done = self.reading.done.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _yes = done.wait_for(|done| *done).await.is_ok();
    }

    /// Writes to the lock file who holds the directory, once that is known (for example the listening address).
    pub fn set_holder(&self, holder: &str) {
        if let Err(error) = self.lock.name(holder) {
            tracing::warn!(%error, "the lock file could not be written");
        }
    }

    /// All entries of `key`, newest `received_at` first. There are several when the bytes at a URL changed. Quick.
    pub fn entries(&self, key: Key) -> Vec<Arc<Entry>> {
        let entries = match self.recent.get(key, || self.load(key)) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "an entry cannot be read now; it stays, and this request does without it");
                return Vec::new();
            }
        };
        let bodies = hold(&self.bodies);
        entries.iter().filter(|entry| bodies.get(entry.blob).is_some()).map(Arc::clone).collect()
    }

    /// Whether a blob is stored, and its size. Quick. Does not check who may read it: see
    /// [`Store::public_blob_by_digest`].
    pub fn has_blob(&self, id: BlobId) -> Option<u64> {
        hold(&self.bodies).get(id).map(|holding| holding.size)
    }

    /// Finds a blob by any strong digest that was computed when it arrived (SHA-256 is always among them). Finds only
    /// bodies that a public entry names (promise P5). Quick.
    pub fn public_blob_by_digest(&self, digest: &Digest) -> Option<BlobId> {
        if !digest.algorithm().is_strong() || digest.algorithm().is_of_content() {
            return None;
        }
        let id = match BlobId::from_digest(digest) {
            Some(id) => id,
            None => self.ledger.by_digest(digest).ok()??,
        };
        let bodies = hold(&self.bodies);
        bodies.get(id).is_some_and(|body| body.public > 0).then_some(id)
    }

    /// Counts a hit for eviction (in memory, written to disk in batches). Quick.
    pub fn touch(&self, entry: &Entry) {
        let now = self.clock.now();
        let mut bodies = hold(&self.bodies);
        bodies.touch(entry.blob);
        if let Some(holding) = bodies.get_mut(entry.blob) {
            holding.used = now;
        }
    }

    /// Notes a refusal, for `larder why`. Quick.
    pub fn note_rejection(&self, of: &Target, text: &str, at: Time) {
        self.rejections.note(of, of.origin(), text, at);
    }

    /// Notes an alarm about a URL of another origin, raised by a claim of an index on `by`. Quick.
    pub fn note_alarm(&self, of: &Target, by: &Origin, text: &str, at: Time) {
        self.rejections.note(of, by, text, at);
    }

    /// The refusals of a URL, newest first. Quick.
    pub fn rejections(&self, of: &Target) -> Vec<Rejection> {
        self.rejections.of(of)
    }

    /// The targets whose bytes were delivered unverified and not confirmed since.
    pub fn unverified(&self) -> Arc<Unverified> {
        Arc::clone(&self.unverified)
    }

    /// The entries of `key` from the ledger, or from the records if the ledger is out of service.
    fn load(&self, key: Key) -> io::Result<Vec<Entry>> {
        let rows = if let Ok(rows) = self.ledger.of_key(key) {
            rows
        } else {
            let blobs = self.records.of_key(key)?;
            blobs.into_iter().map(|blob| (blob, Vec::new())).collect()
        };
        let mut entries = Vec::new();
        for (blob, record) in rows {
            entries.extend(self.entry(key, blob, &record)?);
        }
        entries.sort_by_key(|entry: &Entry| std::cmp::Reverse(entry.received_at));
        Ok(entries)
    }

    /// An entry from its row in the ledger, or from its record.
    fn entry(&self, key: Key, blob: BlobId, record: &[u8]) -> io::Result<Option<Entry>> {
        match Records::decode(record).filter(|entry| entry.key == key && entry.blob == blob) {
            Some(entry) => Ok(Some(entry)),
            None => self.records.read(key, blob),
        }
    }

    /// A body in service. The returned reference pins it.
    fn stored(&self, id: BlobId) -> Option<Arc<Stored>> {
        hold(&self.bodies).get_mut(id).map(BodyRecord::stored)
    }

    /// Locks a body against concurrent changes of its entries. Must not be held while room is made, because eviction
    /// takes it.
    #[expect(
        clippy::indexing_slicing,
        reason = "there are as many locks as the remainder has values"
    )]
    fn lock_of(&self, id: BlobId) -> MutexGuard<'_, ()> {
        let [first, ..] = id.as_bytes();
        hold(&self.locks[usize::from(*first) % LOCKS])
    }

    /// Read lock that every mutation of the store holds, against a concurrent reload.
    fn in_era(&self) -> RwLockReadGuard<'_, ()> {
        self.era.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one body may take this much disk space.
    fn within_share(&self, takes: u64) -> Result<(), SpoolError> {
        let share = self.space.share();
        if takes <= share {
            return Ok(());
        }
        self.counts.oversize.fetch_add(1, Ordering::Relaxed);
        Err(SpoolError::Oversize { takes, share })
    }

    /// What must stay when room is made for `purpose`. An arriving body may turn out not to be kept, and many bodies
    /// arrive at once. So all of them together may displace hit bodies only by one body's share.
    fn spared(&self, purpose: Purpose) -> Spared {
        if purpose != Purpose::Spool {
            return Spared::default();
        }
        let (space, (all, main)) = (&self.space, hold(&self.bodies).bytes());
        let for_bodies = space
            .capacity()
            .saturating_sub(space.taken(Purpose::Claims))
            .saturating_sub(space.overhead());
        let on_disk = for_bodies.saturating_sub(space.share());
        // The queues do not count records, so the figures are scaled.
        let taken = space.taken(Purpose::Blob);
        let main_on_disk = scaled(main, taken, all);
        Spared { in_main: scaled(on_disk, all, taken), on_disk: on_disk.min(main_on_disk) }
    }

    /// Whether this much room could be made by evicting everything that is not spared.
    fn could_hold(&self, bytes: u64, spared: Spared) -> Result<(), SpoolError> {
        let excess = self.space.excess(bytes);
        if excess <= self.space.taken(Purpose::Blob).saturating_sub(spared.on_disk) {
            return Ok(());
        }
        Err(SpoolError::Full(format!(
            "{bytes} bytes are needed, and {excess} of them are missing even after evicting every stored body that may be \
             evicted for an arriving one (see store.max_size, store.min_free and store.max_body_share)"
        )))
    }

    /// Takes room, evicting bodies if necessary.
    fn room(&self, purpose: Purpose, bytes: u64) -> Result<Room, SpoolError> {
        let _alone = hold(&self.making_room);
        self.make_room(purpose, bytes)?;
        Ok(self.space.take(purpose, bytes))
    }

    /// Takes more room, evicting bodies if necessary.
    fn grow(&self, room: &mut Room, more: u64) -> Result<(), SpoolError> {
        if more == 0 {
            return Ok(());
        }
        let _alone = hold(&self.making_room);
        self.make_room(room.purpose(), more)?;
        room.grow(more);
        Ok(())
    }

    fn make_room(&self, purpose: Purpose, bytes: u64) -> Result<(), SpoolError> {
        loop {
            let crowded = hold(&self.bodies).len() >= MAX_BLOBS;
            if !crowded && self.space.excess(bytes) == 0 {
                return Ok(());
            }
            let spared = if crowded { Spared::default() } else { self.spared(purpose) };
            self.could_hold(bytes, spared)?;
            if !self.evict_one(spared) {
                let why = "every stored body is being read, or was used again";
                return Err(SpoolError::Full(why.into()));
            }
        }
    }

    /// Evicts one body; `false` if all are pinned or spared.
    fn evict_one(&self, spared: Spared) -> bool {
        let victim = hold(&self.bodies).victim(spared.in_main, BodyRecord::is_pinned);
        let Some(id) = victim else {
            return false;
        };
        let _era = self.in_era();
        let _alone = self.lock_of(id);
        let mut bodies = hold(&self.bodies);
        // Another thread may have opened or removed it since. Then the caller tries again.
        if bodies.get(id).is_none_or(BodyRecord::is_pinned) {
            return true;
        }
        let gone = bodies.evict(id);
        drop(bodies);
        self.forget(id);
        self.counts.evicted.fetch_add(1, Ordering::Relaxed);
        // Its room is freed only after its files are removed.
        drop(gone);
        true
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// Scales `part` of `of` to the same part of `whole`.
fn scaled(part: u64, whole: u64, of: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(whole) / u128::from(of.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Locks a mutex, even after a panic poisoned it: every change under these locks is complete by itself.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
