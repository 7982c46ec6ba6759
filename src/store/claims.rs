//! The sets of claims, one for each version of an index document.
//!
//! The catalogue in memory leads from a topic to the sets that may name a target. The claims themselves stay on disk
//! (`segment.rs`). A new version of an index replaces the older one as a whole. The older one stays for a day as
//! superseded, because bytes that were right a moment ago are late, not wrong.
//!
//! All counts and sizes are bounded. What exceeds a bound is dropped in an order in which one index cannot push out
//! another's claims (promise P4): the branch of roots that holds most loses first (`fair.rs`), and of that branch the
//! set whose last confirmation is the oldest. Builds confirm the indexes that they use all the time.
//!
//! ```text
//! claims/<number, 16 hex>-<sha256 of the document>
//! ```

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwap;

use super::batch::CLAIMS_SHARE;
use super::catalogue::{Catalogue, MAX_SETS, Set, generation_is_over, weakest};
use super::claim_files::{Marks, files, read_missing};
use super::declared::Declared;
use super::handles::Handles;
use super::record::remove_quietly;
use super::segment::{Found, Manifest, Segment};
use super::space::{Room, footprint};
use super::{Store, durable, hold};
use crate::claim::{IndexVersion, SignedBy, Standing, Topic};
use crate::clock::Time;
use crate::config::Live;
use crate::digest::BlobId;
use crate::proof::Rank;
use crate::target::{MatchKey, Origin, Partition, Root, Target};

/// Every set of claims.
#[derive(Debug)]
pub(super) struct Claims {
    config: Live,
    catalogue: RwLock<Catalogue>,
    /// Keeps segments open; each set refers weakly to its own.
    handles: Handles,
    /// Held while a set becomes current, so that numbers follow the order of publication.
    publishing: Mutex<()>,
    generation: AtomicU64,
    declared: ArcSwap<Declared>,
    /// The generation number with which the marks were last written.
    written: Mutex<Option<u64>>,
    /// Whether some segment files could not be read, so that it is unknown which index's claims they hold.
    unread: AtomicBool,
    /// Whether claims or declarations changed between the last run and this one.
    anew: AtomicBool,
    /// Deleted sets whose files could not be removed. They are not read again, and maintenance tries to remove them.
    undeleted: Mutex<HashSet<u64>>,
}

/// A set of claims, for listings.
#[derive(Clone, Debug)]
pub struct IndexSet {
    /// The version of the index.
    pub generation: Arc<IndexVersion>,
    /// The index.
    pub index: Arc<Target>,
    /// The topics under which its claims are found.
    pub topics: Vec<Topic>,
    /// How many claims it makes.
    pub claims: u64,
    /// What they take on disk, in bytes.
    pub bytes: u64,
    /// The partition for which they hold.
    pub reader: Partition,
    /// Whether the index or a claim is signed.
    pub is_signed: bool,
}

impl IndexSet {
    fn of(set: &Set) -> Self {
        let generation = set.generation();
        Self {
            index: Arc::clone(&set.index),
            topics: set.topics.clone(),
            claims: set.claims,
            bytes: set.bytes,
            reader: set.reader,
            // Claims with a signature of their own may stand in an index without one.
            is_signed: generation.rank == Rank::Signed || set.signed != 0,
            generation,
        }
    }
}

impl Claims {
    /// No claims.
    pub(super) fn new(config: Live) -> Self {
        let declared = Declared::of(config.get());
        Self {
            config,
            catalogue: RwLock::new(Catalogue::default()),
            handles: Handles::default(),
            publishing: Mutex::new(()),
            generation: AtomicU64::new(0),
            declared: ArcSwap::from_pointee(declared),
            written: Mutex::new(None),
            unread: AtomicBool::new(false),
            anew: AtomicBool::new(false),
            undeleted: Mutex::default(),
        }
    }

    /// Reads the catalogue from disk. The generation number under which the entries were judged becomes known later
    /// ([`Claims::judged_under`]).
    pub(super) fn load(&self, store: &Store) {
        self.handles.close_all();
        let mut catalogue = Catalogue::default();
        let (marks, read) = read_missing(store, &mut catalogue, &hold(&self.undeleted));
        if let Some(error) = &read.unread {
            tracing::error!(%error, "claims cannot be read now: they stay, and files that they may cover are not served until they can be read");
        }
        self.unread.store(read.unread.is_some(), Ordering::Release);
        let mut moved = read.dropped;
        catalogue.supersede_elders();
        let highest = read.highest;
        // Entries must be judged anew if sets were deleted by hand, or if the declarations changed or their former
        // state is unknown.
        moved |= marks.sets.iter().any(|(number, ..)| !catalogue.sets.contains_key(number));
        moved |= marks.declared != self.declared.load().mark();
        let generation = highest.max(marks.generation).max(self.generation.load(Ordering::Acquire))
            + u64::from(moved);
        *self.write() = catalogue;
        self.generation.store(generation, Ordering::Release);
        self.anew.store(moved, Ordering::Release);
    }

    /// Reports that entries were judged under `generation`: no number up to it is given out again. If anything changed
    /// since they were judged, the current number becomes a later one, so that they are judged anew.
    pub(super) fn judged_under(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::AcqRel);
        if self.anew.load(Ordering::Acquire)
            && self.generation.load(Ordering::Acquire) == generation
        {
            self.moved();
        }
    }

    /// Reads the sets that could not be read before. The error tells what still cannot be read.
    pub(super) fn complete(&self, store: &Store) -> io::Result<()> {
        if !self.unread.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = hold(&self.publishing);
        if !self.unread.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut catalogue = self.write();
        let (_, read) = read_missing(store, &mut catalogue, &hold(&self.undeleted));
        catalogue.supersede_elders();
        drop(catalogue);
        self.generation.fetch_max(read.highest, Ordering::AcqRel);
        self.moved();
        if let Some(error) = read.unread {
            return Err(error);
        }
        self.unread.store(false, Ordering::Release);
        Ok(())
    }

    /// The highest generation number so far.
    pub(super) fn generation(&self) -> u64 {
        self.declared();
        self.generation.load(Ordering::Acquire)
    }

    /// Confirms the current set of an index if it makes the same claims with the same standing.
    pub(super) fn confirm_same(
        &self,
        (index, reader): (&Target, Partition),
        document: BlobId,
        standing: &Standing,
        (signed, signed_by, expired_key): (u64, &SignedBy, bool),
        (at, now): (Time, Time),
    ) -> Option<Arc<IndexVersion>> {
        let set = self.current_of(index, reader)?;
        let same = set.generation();
        let same = same.document == document
            && same.rank == standing.rank
            && same.root == standing.root
            && same.expired_key == expired_key
            && set.signed == signed
            // What one key signed must not go with another.
            && same.signed_by.as_ref() == Some(signed_by);
        same.then(|| self.confirmed(&set, at, now))
    }

    /// Confirms the current set of `index` if it was made from `document`; returns whether it was.
    pub(super) fn confirm(
        &self,
        index: &Target,
        reader: Partition,
        document: BlobId,
        (at, now): (Time, Time),
    ) -> bool {
        let current = self.current_of(index, reader);
        let same = current.filter(|set| set.generation().document == document);
        if let Some(set) = &same {
            self.confirmed(set, at, now);
        }
        same.is_some()
    }

    /// The current snapshot of `index`, as `reader` sees it.
    pub(super) fn generation_of(
        &self,
        index: &Target,
        reader: Partition,
    ) -> Option<Arc<IndexVersion>> {
        Some(self.current_of(index, reader)?.generation())
    }

    /// The document of the current set of `index`, as `reader` sees it, and its number of claims.
    pub(super) fn names(&self, index: &Target, reader: Partition) -> Option<(BlobId, u64)> {
        let set = self.current_of(index, reader)?;
        Some((set.generation().document, set.claims))
    }

    /// Marks the current set of `index` as superseded, without a successor. Nothing else on disk says that, so the marks are
    /// written at once. The error means that they could not be: it holds in memory, and on disk when they can be written.
    pub(super) fn retract(
        &self,
        store: &Store,
        index: &Target,
        reader: Partition,
        now: Time,
    ) -> io::Result<()> {
        let Some(set) = self.current_of(index, reader) else {
            return Ok(());
        };
        set.change(|generation| generation.superseded = Some(now));
        self.moved();
        self.write_marks(&store.paths.marks)
    }

    /// Drops the sets that `which` selects, and the older sets of their indexes, with their files: a set that is only marked counts
    /// again when the marks are lost. The error tells what may still be on disk.
    pub(super) fn withdraw(&self, which: &dyn Fn(&IndexSet) -> bool) -> io::Result<()> {
        let _alone = hold(&self.publishing);
        let is_gone = |set: &&Arc<Set>| which(&IndexSet::of(set));
        let gone: Vec<_> = self.catalogue().sets.values().filter(is_gone).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut done = Ok(());
        for newest in &gone {
            let mut versions = self.catalogue().elders_of(newest);
            versions.retain(|set| set.number <= newest.number);
            for set in versions.iter().filter_map(|set| self.take_out(set.number)) {
                let removed = durable::remove(&set.path).map(|_| ());
                if removed.is_err() {
                    hold(&self.undeleted).insert(set.number);
                }
                done = done.and(removed);
            }
            let synced = durable::sync_directory_of(&newest.path);
            done = done.and(synced);
        }
        self.moved();
        done
    }

    /// Gives a finished segment its number and its name, and makes it current.
    pub(super) fn publish(
        &self,
        store: &Store,
        manifest: Manifest,
        written: &Path,
        room: Room,
        now: Time,
    ) -> io::Result<Arc<IndexVersion>> {
        let alone = hold(&self.publishing);
        // The generation number rises before the set can be found and again afterwards, so that a judgement made in
        // between is made again.
        let number = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let name = format!("{number:016x}-{}", manifest.document);
        let path = store.paths.claims.join(name);
        durable::rename(written, &path)?;
        durable::sync_directory_of(&path)?;
        let bytes = path.metadata()?.len();
        let set = Arc::new(Set::new(number, path, manifest, bytes, room)?);
        let generation = set.generation();
        let mut catalogue = self.write();
        for elder in catalogue.elders_of(&set) {
            elder.change(|generation| {
                generation.superseded.get_or_insert(now);
            });
        }
        catalogue.insert(set);
        drop(catalogue);
        self.moved();
        drop(alone);
        self.prune(store, now);
        Ok(generation)
    }

    /// The sets under any of `topics` that count at `now` for `reader`, newest first: the public ones and those of its
    /// own partition.
    pub(super) fn under(
        &self,
        topics: &[Topic],
        reader: Partition,
        now: Time,
    ) -> Vec<(Arc<Set>, Arc<IndexVersion>)> {
        let catalogue = self.catalogue();
        let mut numbers: Vec<u64> = topics
            .iter()
            .filter_map(|topic| catalogue.by_topic.get(topic))
            .flatten()
            .copied()
            .collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.dedup();
        numbers
            .into_iter()
            .filter_map(|number| {
                let set = catalogue.sets.get(&number)?;
                if set.reader != Partition::Public && set.reader != reader {
                    return None;
                }
                let generation = set.generation();
                (!generation_is_over(&generation, now)).then(|| (Arc::clone(set), generation))
            })
            .collect()
    }

    /// The set with this number.
    pub(super) fn set(&self, number: u64) -> Option<Arc<Set>> {
        self.catalogue().sets.get(&number).cloned()
    }

    /// What a set claims about `key`. A damaged set is dropped and claims nothing from now on. A set that cannot be
    /// read at the moment stays, and the error means that its claims are unknown.
    pub(super) fn find(
        &self,
        set: &Set,
        key: MatchKey,
        scratch: &mut Vec<u8>,
    ) -> io::Result<Vec<Found>> {
        let found = self.segment(set).and_then(|segment| segment.find(key, scratch));
        found.or_else(|error| {
            if !durable::is_damage(&error) {
                return Err(error);
            }
            tracing::warn!(index = %set.index, %error, "the claims of this index are damaged, and dropped");
            self.drop_set(set.number);
            self.moved();
            Ok(Vec::new())
        })
    }

    /// The roots whose indexes named files on `origin`.
    pub(super) fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
        self.catalogue().claiming_roots.of(origin)
    }

    /// Every set, by number.
    pub(super) fn list(&self) -> Vec<IndexSet> {
        let catalogue = self.catalogue();
        catalogue.sets.values().map(|set| IndexSet::of(set)).collect()
    }

    /// How many indexes have current claims.
    pub(super) fn current(&self) -> u64 {
        let catalogue = self.catalogue();
        let current = catalogue.sets.values().filter(|set| !set.is_superseded());
        current.count() as u64
    }

    /// Which index the operator lets speak for which origin. When the configuration changes this, every judgement is
    /// made again.
    pub(super) fn declared(&self) -> Arc<Declared> {
        let known = self.declared.load_full();
        let config = self.config.get();
        if Arc::ptr_eq(&known.config, &config) {
            return known;
        }
        let now = Arc::new(Declared::of(config));
        if now.config.speaks_for != known.config.speaks_for {
            self.moved();
        }
        self.declared.store(Arc::clone(&now));
        now
    }

    /// Removes the files of deleted sets that could not be removed before.
    pub(super) fn remove_deleted(&self, store: &Store) {
        let mut undeleted = hold(&self.undeleted);
        if undeleted.is_empty() {
            return;
        }
        let removed = files(&store.paths.claims).and_then(|files| {
            for (_, path) in files.iter().filter(|(number, _)| undeleted.contains(number)) {
                durable::remove(path)?;
            }
            Ok(())
        });
        match removed {
            Ok(()) => undeleted.clear(),
            Err(error) => {
                tracing::warn!(%error, "deleted claims are still on disk, and would count again after a restart");
            }
        }
    }

    /// Drops the sets that are too old and those beyond the limits.
    pub(super) fn prune(&self, store: &Store, now: Time) {
        let share = store.space.cap() / CLAIMS_SHARE;
        let mut dropped = Vec::new();
        {
            let catalogue = self.catalogue();
            dropped.extend(catalogue.over(now));
            dropped.extend(catalogue.too_many_under_a_topic());
        }
        dropped.extend(self.beyond(MAX_SETS as u64, |_| 1));
        dropped.extend(self.beyond(share, |set| footprint(set.bytes)));
        if dropped.is_empty() {
            return;
        }
        for number in &dropped {
            self.drop_set(*number);
        }
        self.moved();
    }

    /// Closes the segments that no lookup uses.
    pub(super) fn close_idle(&self) {
        self.handles.close_all();
    }

    /// Writes the marks if anything changed.
    pub(super) fn flush(&self, path: &Path) {
        if self.unread.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.write_marks(path) {
            tracing::warn!(%error, "the times at which indexes were confirmed could not be written");
        }
    }

    fn write_marks(&self, path: &Path) -> io::Result<()> {
        if self.unread.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the claims of other indexes cannot be read now, and only the file on disk has their marks",
            ));
        }
        let generation = self.generation();
        let sets: Vec<Arc<Set>> = self.catalogue().sets.values().cloned().collect();
        let mut written = hold(&self.written);
        let dirty = sets.iter().filter(|set| set.is_dirty()).count();
        if dirty == 0 && *written == Some(generation) {
            return Ok(());
        }
        let marks = Marks {
            generation,
            declared: self.declared.load().mark(),
            sets: sets
                .iter()
                .map(|set| {
                    let generation = set.written();
                    (set.number, generation.confirmed, generation.superseded)
                })
                .collect(),
        };
        let done = marks.write(path);
        *written = done.is_ok().then_some(generation);
        done
    }

    fn segment(&self, set: &Set) -> io::Result<Arc<Segment>> {
        let mut known = hold(&set.open);
        if let Some(open) = known.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(Segment::open(&set.path)?);
        *known = Arc::downgrade(&open);
        self.handles.keep(set.number, &open);
        Ok(open)
    }

    fn current_of(&self, index: &Target, reader: Partition) -> Option<Arc<Set>> {
        let key = index.key(reader);
        let of_index = self.catalogue().of_index(key);
        let mut current = of_index.into_iter().filter(|set| !set.is_superseded());
        current.next_back()
    }

    /// Notes that a set was confirmed at `at`. An earlier note that is later than `now` comes from a clock that was
    /// ahead, and is discarded.
    fn confirmed(&self, set: &Set, at: Time, now: Time) -> Arc<IndexVersion> {
        let generation = set.change(|generation| {
            let before = Some(generation.confirmed).filter(|before| *before <= now);
            generation.confirmed = before.map_or(at, |before| before.max(at));
        });
        self.write().hear(set, at);
        generation
    }

    fn drop_set(&self, number: u64) {
        if let Some(set) = self.take_out(number) {
            remove_quietly(&set.path);
        }
    }

    /// Takes a set out of the catalogue. Its file stays.
    fn take_out(&self, number: u64) -> Option<Arc<Set>> {
        self.handles.close(number);
        self.write().remove(number)
    }

    /// The sets to drop so that the rest weighs at most `limit`.
    fn beyond(&self, limit: u64, weigh: impl Fn(&Set) -> u64) -> Vec<u64> {
        let mut sets: Vec<Arc<Set>> = self.catalogue().sets.values().cloned().collect();
        let mut total: u64 = sets.iter().map(|set| weigh(set)).sum();
        let mut dropped = Vec::new();
        while total > limit
            && let Some(position) = weakest(&sets, &weigh)
        {
            let set = sets.swap_remove(position);
            total -= weigh(&set);
            dropped.push(set.number);
        }
        dropped
    }

    /// Invalidates every judgement: raises the generation number.
    fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn catalogue(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Catalogue> {
        self.catalogue.write().unwrap_or_else(PoisonError::into_inner)
    }
}
