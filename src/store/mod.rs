//! What is kept, and how it is found again: blobs, records, ledger and claims, in step.
//!
//! ```text
//! DATA/lock                one larder for one directory                          lock.rs
//! DATA/state/…             what must not be forgotten                            state.rs
//! DATA/state/unverified    of which targets bytes were given unverified           unverified.rs
//! DATA/v1/spool/…          bodies on their way                                   spool.rs
//! DATA/v1/blobs/…          bodies by their SHA-256, with a CRC for each chunk    blobs.rs
//! DATA/v1/records/…        one file for each entry: the truth                    record.rs
//! DATA/v1/ledger/…         sled, rebuilt from the records at need                ledger.rs
//! DATA/v1/ledger.seal      how the ledger was closed                             audit.rs
//! DATA/v1/claims/…         one sorted file for each version of an index          segment.rs, claims.rs
//! DATA/v1/marks            when indexes were confirmed and superseded            claims.rs
//! DATA/v1/access           how bodies were used                                  access.rs
//! DATA/v1/rejections       what was refused lately                               rejections.rs
//! ```
//!
//! A body comes in through [`Store::spool`], is judged elsewhere, and is kept by [`Store::commit`], in an order in which a
//! crash leaves nothing wrong (`commit.rs`): its bytes are synced, then its sums, then its name, then its record, then the
//! ledger. What a step left without the next one is invisible, and `startup.rs` removes it. `DATA/v1` may be deleted at any
//! time, also while larder runs: then there are misses, not errors (promise P8).
//!
//! What a hit needs is in memory: which bodies there are (`evict.rs`), the entries asked for lately (`recent.rs`), which
//! index speaks under which topic (`claims.rs`). The rest is blocking, and callers use threads for that.
//!
//! The store decides nothing about trust. It keeps what `verify` made a `Verified`, and what it enforces itself is promise
//! P5: a digest finds only bodies that some public entry names.

mod access;
mod audit;
mod batch;
mod blobs;
mod buffer;
mod catalogue;
mod claims;
mod commit;
mod conventions;
mod declared;
mod durable;
mod evict;
pub mod failpoint;
mod fair;
mod handles;
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
mod speakers;
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
pub use buffer::Buffer;
pub use claims::IndexSet;
pub use conventions::Convention;
pub use durable::{may_pass, write as write_durably};
pub use notes::Notes;
pub use recent::IN_USE;
pub use rejections::{Rejection, clipped};
pub use seen::Seen;
pub use spool::Spool;
pub use unverified::{Row, UNVERIFIED_FOR, Unverified};
pub use upkeep::{Usage, Verification};

use crate::clock::{Clock, Time};
use crate::config::Live;
use crate::digest::{BlobId, Digest};
use crate::entry::Entry;
use crate::proof::Rank;
use crate::target::{Key, Origin, Target};
use blobs::{Blobs, Stored};
use claims::Claims;
use evict::Bodies;
use ledger::{Ledger, Opened};
use recent::Recent;
use record::Records;
use rejections::Rejections;
use space::{Purpose, Room, Space};
use state::State;

/// A chunk of a body: what is read, checked and sent at once. Smaller ones cost system calls, larger ones memory for
/// every transfer.
pub const CHUNK: u64 = 64 << 10;

/// The most bodies in the store: each takes some 400 bytes of memory.
const MAX_BLOBS: usize = 1 << 19;

/// Locks by which commits, removals and evictions of one body follow each other, shared by the bodies.
const LOCKS: usize = 64;

/// The store: blobs, ledger and claims, kept in step.
#[derive(Debug)]
pub struct Store {
    clock: Clock,
    paths: Paths,
    space: Arc<Space>,
    /// Held while room is made, so that the cap is hard.
    making_room: Mutex<()>,
    bodies: Mutex<Bodies<Holding>>,
    locks: [Mutex<()>; LOCKS],
    /// Written to while everything is read anew, read by who changes something.
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
    /// The last to go: until then the directory is ours.
    lock: lock::Held,
}

#[derive(Debug)]
struct Paths {
    cache: PathBuf,
    spool: PathBuf,
    claims: PathBuf,
    marks: PathBuf,
    access: PathBuf,
}

/// What the store knows of a body in service.
#[derive(Debug)]
struct Holding {
    stored: Arc<Stored>,
    /// How many entries name it.
    refs: u32,
    /// How many of them are public.
    public: u32,
    /// What their records take: it comes back when the body goes, and they with it.
    records: Room,
    /// When it was last used.
    used: Time,
}

/// What stays, whatever is wanted.
#[derive(Clone, Copy, Debug, Default)]
struct Spared {
    /// So many bytes of hit bodies.
    in_main: u64,
    /// What those take with their records.
    on_disk: u64,
}

/// How far the records are read.
#[derive(Debug)]
struct Reading {
    begun: Instant,
    /// How the ledger was found, until somebody reads.
    opened: Mutex<Option<Opened>>,
    done: watch::Sender<bool>,
    /// Nobody needs the rest.
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    /// Entries by the rank of their proof.
    entries: Mutex<[u64; Rank::ALL.len()]>,
    evicted: AtomicU64,
    /// Bodies that were larger than one may be.
    oversize: AtomicU64,
    lost: AtomicU64,
    /// Whether there may be records whose body has gone.
    bodiless: AtomicBool,
    /// When it was last written how bodies were used.
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
        /// Who holds it.
        holder: String,
    },
    /// A file or directory could not be made or read.
    #[error("the data directory cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Why a body could not be spooled: the fill goes on for its client, unstored.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The cap or the floor is reached and nothing can be evicted.
    #[error("the store is full: {0}")]
    Full(String),
    /// It is larger than one body may be; nothing is evicted for it.
    #[error(
        "a body that takes {takes} bytes on disk or more is not kept: one may take {share} (see store.max_body_share, \
         store.max_size and store.min_free)"
    )]
    Oversize {
        /// What it would take so far, or with the length that was announced.
        takes: u64,
        /// The most that one may take now.
        share: u64,
    },
    /// The spool file cannot be written.
    #[error("the spool cannot be written: {0}")]
    Io(#[source] io::Error),
}

impl Store {
    /// Opens or makes the store under `config.data`. Blocking.
    pub fn open(config: Live, clock: Clock) -> Result<Arc<Self>, OpenError> {
        Self::open_with_holder(config, clock, "")
    }

    /// The same, saying to whom the directory belongs: who comes second is told.
    pub fn open_with_holder(
        config: Live,
        clock: Clock,
        holder: &str,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Self::begin(config, clock, holder)?;
        store.read_records();
        Ok(store)
    }

    /// The same without the records, which take long to read after a crash: what they say is not known, and what would be
    /// written waits, until [`Store::read_records`] has read them. What indexes promise is known. Blocking.
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
        let state = State::open(&state)?;
        let paths = Paths {
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

    /// Reads the records, once. Blocking, for as long as that takes.
    pub fn read_records(&self) {
        let Some(opened) = hold(&self.reading.opened).take() else {
            return;
        };
        self.take_stock(opened);
        if self.reading.stopped.load(Ordering::Relaxed) {
            return;
        }
        self.space.measure(&self.paths.cache);
        self.reading.done.send_replace(true);
    }

    /// Whether the records are read.
    pub fn is_read(&self) -> bool {
        *self.reading.done.borrow()
    }

    /// Whether the records are read, or will be before so much time has passed since the start.
    pub async fn is_read_within(&self, limit: std::time::Duration) -> bool {
        let soon = self.reading.begun + limit;
        self.is_read() || tokio::time::timeout_at(soon, self.read()).await.is_ok()
    }

    /// Waits until the records are read.
    pub async fn read(&self) {
        let mut done = self.reading.done.subscribe();
        // The sender is here, so that the wait ends with a yes.
        let _yes = done.wait_for(|done| *done).await.is_ok();
    }

    /// Says who holds the directory, once that is known: the address it listens on, for example.
    pub fn set_holder(&self, holder: &str) {
        if let Err(error) = self.lock.name(holder) {
            tracing::warn!(%error, "the lock file could not be written");
        }
    }

    /// All entries of `key`, newest `received_at` first (several when a URL changed its bytes). Quick.
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

    /// Whether a blob is stored, and its size. Quick. Says nothing of who may have it: see
    /// [`Store::public_blob_by_digest`].
    pub fn has_blob(&self, id: BlobId) -> Option<u64> {
        hold(&self.bodies).get(id).map(|holding| holding.stored.size)
    }

    /// Blob by any strong digest that was computed at ingest, SHA-256 among them; only bodies that a public entry names
    /// (promise P5). Quick.
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

    /// Notes a hit for eviction (in memory, flushed in batches). Quick.
    pub fn touch(&self, entry: &Entry) {
        let now = self.clock.now();
        let mut bodies = hold(&self.bodies);
        bodies.touch(entry.blob);
        if let Some(holding) = bodies.get_mut(entry.blob) {
            holding.used = now;
        }
    }

    /// Notes a refusal, for whoever asks why. Quick.
    pub fn note_rejection(&self, of: &Target, text: &str, at: Time) {
        self.rejections.note(of, of.origin(), text, at);
    }

    /// The same for what an index of `by` says of a URL that is not its own. Quick.
    pub fn note_alarm(&self, of: &Target, by: &Origin, text: &str, at: Time) {
        self.rejections.note(of, by, text, at);
    }

    /// The refusals of a URL, newest first. Quick.
    pub fn rejections(&self, of: &Target) -> Vec<Rejection> {
        self.rejections.of(of)
    }

    /// The targets of which bytes were given that no judgement has confirmed.
    pub fn unverified(&self) -> Arc<Unverified> {
        Arc::clone(&self.unverified)
    }

    /// The entries of `key` from the ledger, or from the records where the ledger cannot say.
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

    /// A body in service, pinned.
    fn stored(&self, id: BlobId) -> Option<Arc<Stored>> {
        hold(&self.bodies).get(id).map(|holding| Arc::clone(&holding.stored))
    }

    /// Held by who changes what is known of a body. Never while room is made: that may take it.
    #[expect(
        clippy::indexing_slicing,
        reason = "there are as many locks as the remainder has values"
    )]
    fn lock_of(&self, id: BlobId) -> MutexGuard<'_, ()> {
        let [first, ..] = id.as_bytes();
        hold(&self.locks[usize::from(*first) % LOCKS])
    }

    /// Held by who changes what is stored.
    fn in_era(&self) -> RwLockReadGuard<'_, ()> {
        self.era.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one body may take so much.
    fn within_share(&self, takes: u64) -> Result<(), SpoolError> {
        let share = self.space.share();
        if takes <= share {
            return Ok(());
        }
        self.counts.oversize.fetch_add(1, Ordering::Relaxed);
        Err(SpoolError::Oversize { takes, share })
    }

    /// What stays whatever room is wanted for `purpose`. What arrives may never be kept, and many bodies arrive at once: all
    /// together displace hit bodies only as far as one body's share goes.
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
        // The queues do not count records.
        let taken = space.taken(Purpose::Blob);
        let main_on_disk = scaled(main, taken, all);
        Spared { in_main: scaled(on_disk, all, taken), on_disk: on_disk.min(main_on_disk) }
    }

    /// Whether so much could be had if all else went that is not spared.
    fn could_hold(&self, bytes: u64, spared: Spared) -> Result<(), SpoolError> {
        let excess = self.space.excess(bytes);
        if excess <= self.space.taken(Purpose::Blob).saturating_sub(spared.on_disk) {
            return Ok(());
        }
        Err(SpoolError::Full(format!(
            "{bytes} bytes are wanted, and {excess} of them are not there even if every stored body went that may go for \
             one that is arriving (see store.max_size, store.min_free and store.max_body_share)"
        )))
    }

    /// Takes room, evicting at need.
    fn room(&self, purpose: Purpose, bytes: u64) -> Result<Room, SpoolError> {
        let _alone = hold(&self.making_room);
        self.make_room(purpose, bytes)?;
        Ok(self.space.take(purpose, bytes))
    }

    /// Takes more room, evicting at need.
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
                let why = "everything stored is being read, or was asked for again";
                return Err(SpoolError::Full(why.into()));
            }
        }
    }

    /// Evicts one body; `false` if every one is pinned or spared.
    fn evict_one(&self, spared: Spared) -> bool {
        let victim =
            hold(&self.bodies).victim(spared.in_main, |holding| holding.stored.is_pinned());
        let Some(id) = victim else {
            return false;
        };
        let _era = self.in_era();
        let _alone = self.lock_of(id);
        let mut bodies = hold(&self.bodies);
        // Somebody may have opened or removed it since; then the caller looks again.
        if bodies.get(id).is_none_or(|holding| holding.stored.is_pinned()) {
            return true;
        }
        let gone = bodies.evict(id);
        drop(bodies);
        self.forget(id);
        self.counts.evicted.fetch_add(1, Ordering::Relaxed);
        // Its room is free when its files are gone.
        drop(gone);
        true
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// `part` of `of`, as the same part of `whole`; all of `whole` if there is nothing to compare with.
fn scaled(part: u64, whole: u64, of: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(whole) / u128::from(of.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Locks. What a panic left behind a lock is used all the same: every change under it is complete by itself.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
