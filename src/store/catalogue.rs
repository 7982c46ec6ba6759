//! The in-memory catalogue of claim sets: how they are found by topic and by index, and which are dropped when there
//! are too many.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::claiming_roots::ClaimingRoots;
use super::fair::{Lineage, Share, first_to_go, lineage};
use super::hold;
use super::segment::{Manifest, Segment};
use super::space::Room;
use crate::claim::{IndexVersion, Topic};
use crate::clock::Time;
use crate::target::{Key, Origin, Partition, Target};

/// Maximum number of sets; each takes a file and a KiB of memory.
pub(super) const MAX_SETS: usize = 1 << 14;

/// How long a superseded set still explains why a file has its old bytes: a mirror may lag behind its index.
pub(super) const SUPERSEDED_FOR: Duration = Duration::from_hours(24);

/// Maximum number of superseded sets of one index, so that a document that changes every minute does not keep a day of
/// versions.
const MAX_SUPERSEDED: usize = 8;

/// Maximum number of file origins that are remembered for one document. A document that reaches it may name files on
/// further origins, so it is searched for files of any origin.
pub(super) const MAX_ORIGINS: usize = 16;

/// Maximum number of current sets under one topic. An archive with every suite, component and architecture has about
/// sixty.
const MAX_PER_TOPIC: usize = 128;

/// Maximum number of those that come from one origin.
const MAX_PER_ORIGIN: usize = 64;

/// Every set, with its lookup tables.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) sets: BTreeMap<u64, Arc<Set>>,
    pub(super) by_topic: HashMap<Topic, BTreeSet<u64>>,
    pub(super) claiming_roots: ClaimingRoots,
    by_index: HashMap<Key, BTreeSet<u64>>,
}

/// The claims of one version of one index.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) index: Arc<Target>,
    /// The partition for which these claims hold.
    pub(super) reader: Partition,
    pub(super) topics: Vec<Topic>,
    pub(super) origins: Vec<Origin>,
    pub(super) claims: u64,
    /// Sums up which claims have a signature of their own, as [`Manifest::signed`] does.
    pub(super) signed: u64,
    pub(super) bytes: u64,
    /// The segment, while it is open.
    pub(super) open: Mutex<Weak<Segment>>,
    /// The path of its root, for fair sharing of limits (`fair.rs`).
    lineage: Lineage,
    key: Key,
    state: Mutex<State>,
    _room: Room,
}

#[derive(Debug)]
struct State {
    generation: Arc<IndexVersion>,
    /// Whether it changed since the marks file was last written.
    dirty: bool,
}

impl Set {
    /// Whether a claim of this set may be about a file on `origin`. If the list of origins is complete, this is known
    /// without opening the segment.
    pub(super) fn may_name(&self, origin: &Origin) -> bool {
        self.origins.len() >= MAX_ORIGINS || self.origins.contains(origin)
    }

    /// The set that the segment at `path` holds.
    pub(super) fn new(
        number: u64,
        path: PathBuf,
        manifest: Manifest,
        bytes: u64,
        room: Room,
    ) -> io::Result<Self> {
        let index = manifest.index().ok_or(io::ErrorKind::InvalidData)?;
        let generation = IndexVersion {
            number,
            shown: manifest.shown,
            document: manifest.document,
            confirmed: manifest.published,
            superseded: None,
            rank: manifest.rank,
            root: manifest.root,
            expired_key: manifest.expired_key,
            signed_by: manifest.signed_by,
        };
        Ok(Self {
            number,
            path,
            key: index.key(manifest.reader),
            lineage: lineage(&generation.root.origin, &generation.root.path),
            index: Arc::new(index),
            reader: manifest.reader,
            topics: manifest.topics,
            origins: manifest.origins,
            claims: manifest.claims,
            signed: manifest.signed,
            bytes,
            open: Mutex::new(Weak::new()),
            state: Mutex::new(State { generation: Arc::new(generation), dirty: false }),
            _room: room,
        })
    }

    pub(super) fn generation(&self) -> Arc<IndexVersion> {
        Arc::clone(&hold(&self.state).generation)
    }

    pub(super) fn is_superseded(&self) -> bool {
        hold(&self.state).generation.superseded.is_some()
    }

    /// Changes the snapshot's metadata. References to the old value keep the old value.
    pub(super) fn change(&self, change: impl FnOnce(&mut IndexVersion)) -> Arc<IndexVersion> {
        let mut state = hold(&self.state);
        change(Arc::make_mut(&mut state.generation));
        state.dirty = true;
        Arc::clone(&state.generation)
    }

    pub(super) fn is_dirty(&self) -> bool {
        hold(&self.state).dirty
    }

    /// The snapshot's metadata, about to be written: clears the dirty flag.
    pub(super) fn written(&self) -> Arc<IndexVersion> {
        let mut state = hold(&self.state);
        state.dirty = false;
        Arc::clone(&state.generation)
    }
}

impl Catalogue {
    /// Adds a set.
    pub(super) fn insert(&mut self, set: Arc<Set>) {
        for topic in &set.topics {
            let under = self.by_topic.entry(topic.clone()).or_default();
            under.insert(set.number);
        }
        self.by_index.entry(set.key).or_default().insert(set.number);
        self.hear(&set, set.generation().confirmed);
        self.sets.insert(set.number, set);
    }

    /// Notes on which origins a set names files. This is a hint for larder's own requests, which ask for nothing
    /// private, so private sets are left out.
    pub(super) fn hear(&mut self, set: &Set, at: Time) {
        if set.reader == Partition::Public {
            let generation = set.generation();
            for origin in &set.origins {
                self.claiming_roots.note(origin, &generation.root, at);
            }
        }
    }

    /// Removes a set.
    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<Set>> {
        let set = self.sets.remove(&number)?;
        for topic in &set.topics {
            if let Some(under) = self.by_topic.get_mut(topic) {
                under.remove(&number);
                if under.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
        if let Some(versions) = self.by_index.get_mut(&set.key) {
            versions.remove(&number);
            if versions.is_empty() {
                self.by_index.remove(&set.key);
            }
        }
        Some(set)
    }

    /// The sets of an index, oldest first.
    pub(super) fn of_index(&self, key: Key) -> Vec<Arc<Set>> {
        self.by_index
            .get(&key)
            .into_iter()
            .flatten()
            .filter_map(|number| self.sets.get(number).cloned())
            .collect()
    }

    /// All sets of the index of which `set` is a version.
    pub(super) fn elders_of(&self, set: &Set) -> Vec<Arc<Set>> {
        self.of_index(set.key)
    }

    /// Marks every set except the newest of its index as superseded since the next one was published. Restores this
    /// after the marks file was lost.
    pub(super) fn supersede_elders(&self) {
        for versions in self.by_index.keys().map(|key| self.of_index(*key)) {
            for (elder, next) in versions.iter().zip(versions.iter().skip(1)) {
                let since = next.generation().confirmed;
                if !elder.is_superseded() {
                    elder.change(|generation| generation.superseded = Some(since));
                }
            }
        }
    }

    /// Sets that were superseded too long ago, or that exceed the number of superseded sets per index.
    pub(super) fn over(&self, now: Time) -> Vec<u64> {
        let mut over = Vec::new();
        for versions in self.by_index.keys().map(|key| self.of_index(*key)) {
            let superseded = versions.iter().filter(|set| set.is_superseded());
            let surplus = superseded.clone().count().saturating_sub(MAX_SUPERSEDED);
            for (position, set) in superseded.enumerate() {
                if position < surplus || generation_is_over(&set.generation(), now) {
                    over.push(set.number);
                }
            }
        }
        over
    }

    /// Current sets to drop because there are too many under one topic.
    pub(super) fn too_many_under_a_topic(&self) -> BTreeSet<u64> {
        let mut dropped = BTreeSet::new();
        for under in self.by_topic.values() {
            if under.len() <= MAX_PER_ORIGIN {
                continue;
            }
            let mut sets: Vec<Arc<Set>> = under
                .iter()
                .filter_map(|number| self.sets.get(number).cloned())
                .filter(|set| !set.is_superseded())
                .collect();
            while let Some(position) = weakest(&sets, |_| 1) {
                let of_same = sets.get(position).map_or(0, |weakest| {
                    let origin = weakest.index.origin();
                    let same = sets.iter().filter(|set| set.index.origin() == origin);
                    same.count()
                });
                if sets.len() <= MAX_PER_TOPIC && of_same <= MAX_PER_ORIGIN {
                    break;
                }
                dropped.insert(sets.swap_remove(position).number);
            }
        }
        dropped
    }
}

/// Whether a snapshot was superseded so long ago that it no longer explains late bytes.
pub(super) fn generation_is_over(generation: &IndexVersion, now: Time) -> bool {
    generation.superseded.is_some_and(|since| now.since(since) > SUPERSEDED_FOR)
}

/// The position of the set to drop first. Superseded sets go before current ones. Then private sets go before public
/// ones, because a client that invents credentials creates partitions at will. Among equals it is the set of the branch
/// of roots that holds most (`fair.rs`), and there the one whose last confirmation is the oldest.
pub(super) fn weakest(sets: &[Arc<Set>], weigh: impl Fn(&Set) -> u64) -> Option<usize> {
    let class = |set: &Set| (set.is_superseded(), set.reader != Partition::Public);
    let first = sets.iter().map(|set| class(set)).max()?;
    let (positions, shares): (Vec<usize>, Vec<Share<'_, (Time, u64)>>) = sets
        .iter()
        .enumerate()
        .filter(|(_, set)| class(set) == first)
        .map(|(position, set)| {
            let age = (set.generation().confirmed, set.number);
            (position, Share { lineage: &set.lineage, weight: weigh(set), age })
        })
        .unzip();
    positions.get(first_to_go(&shares)?).copied()
}
