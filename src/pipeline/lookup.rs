//! Is there a stored answer, and may it be given without asking?
//!
//! An artifact's proof is judged again at each look-up: it is fresh while its digest is in the newest set of claims that
//! names it. That judgement is remembered together with the generation number of all claims; while the number has not
//! moved, a hit compares two numbers. Everything else follows RFC 9111.

use std::hash::Hash;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName};
use moka::sync::Cache;

use super::others::IN_MEMORY;
use super::task::Task;
use super::{Pipeline, rights};
use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Artifact, Kind, Named, Recognition};
use crate::entry::{Entry, Head};
use crate::freshness::{self, Demand};
use crate::proof::{Proof, Rank};
use crate::store::{IN_USE, Store};
use crate::target::{Key, Origin, Partition, Scheme, Target};
use crate::verify::{Expectation, Finding};

/// How long a first-use pin or a weak digest holds before the origin is asked again.
const PIN_HOLDS: Duration = Duration::from_hours(24);

/// How old a revalidation of an index may be to satisfy a request that demands one: the jobs of one pipeline start
/// together, and a registry is not asked anew by each.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What a look-up finds.
#[derive(Debug)]
pub(super) enum Lookup {
    /// It may be given as it is.
    Fresh(Stored),
    /// It must be revalidated.
    Stale(Stored),
    /// Nothing, or nothing that is still promised.
    Miss,
}

/// A stored answer.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: Arc<Entry>,
    /// What it is worth today.
    pub(super) proof: Proof,
    /// Whether it may be given when the origin fails.
    pub(super) usable: bool,
}

/// A small answer that is not stored, and when it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Small {
    pub(super) answer: Arc<(Head, Bytes)>,
    pub(super) asked: Time,
    /// Until when it stands.
    pub(super) until: Time,
    /// Whether it says so itself. If not, anything that is put on its origin ends it.
    pub(super) by_its_word: bool,
    /// The values of the request's fields by which its origin selected it.
    pub(super) varied: Vec<(String, String)>,
}

/// How long a 404 or 410 is remembered that does not say how long: long enough for the jobs of one pipeline, too short to
/// notice.
pub(super) const NEGATIVE_HOLDS: Duration = Duration::from_secs(5);

/// The memory for those, in bytes: each is at most an error page, and its fields.
const NEGATIVE_BYTES: u64 = 4 << 20;

/// How long clients ask in their own words at once when an answer could not be shared.
const UNSHARED_HOLDS: Duration = Duration::from_mins(5);

/// What look-ups remember, each bounded.
#[derive(Debug)]
pub(super) struct Memory {
    /// By entry and reader: each sees its own indexes' claims.
    judged: Cache<(Key, BlobId, Partition), (u64, Option<Proof>)>,
    /// With which generation it was asked whether an index that may speak for a target names it.
    bound: Cache<Key, (u64, bool)>,
    /// Indexes that could not be read when they came.
    unread: Cache<Key, ()>,
    negatives: Cache<Key, Small>,
    /// Answers that only their client may have: the next request need not find that out again. Until when, and after how
    /// many changes of the keys: with another key the next may be proven.
    unshared: Cache<Key, (Time, u64)>,
    /// What a fill was told no about, by its asker: then the client's own request is sent at once, and no fill before it.
    /// Whether the client's was told no as well.
    refused: Cache<(Key, Partition), bool>,
    /// After how many changes of the keys each reader's view of an index was read.
    read_with: Cache<Key, u64>,
    /// By which request fields answers of a URL are selected, as the last one said.
    pub(super) varies: Cache<Key, Arc<[HeaderName]>>,
    /// When an unsafe method last succeeded on an origin.
    changed: Cache<Origin, Time>,
    /// When an unsafe method last succeeded on a URL (RFC 9111 §4.4).
    invalidated: Cache<Key, Time>,
}

/// A memory of what is in use: the store and the claims say the same, only not as quickly.
fn in_use<K, V>() -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(100_000).time_to_idle(IN_USE).build()
}

impl Default for Memory {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self {
            judged: in_use(),
            // What holds for a while ends also by a clock that nobody sets back.
            negatives: Cache::builder()
                .max_capacity(NEGATIVE_BYTES)
                .weigher(|_, small: &Small| {
                    let (head, body) = &*small.answer;
                    let varied = small.varied.iter().map(|(name, value)| name.len() + value.len());
                    let weight = head.weight() + body.len() + varied.sum::<usize>() + 1024;
                    u32::try_from(weight).unwrap_or(u32::MAX)
                })
                .time_to_live(IN_MEMORY)
                .build(),
            unshared: Cache::builder().max_capacity(100_000).time_to_live(UNSHARED_HOLDS).build(),
            refused: Cache::builder().max_capacity(100_000).time_to_live(UNSHARED_HOLDS).build(),
            read_with: Cache::new(100_000),
            bound: in_use(),
            varies: in_use(),
            unread: Cache::new(10_000),
            changed: Cache::builder().max_capacity(10_000).time_to_live(day).build(),
            invalidated: Cache::builder().max_capacity(100_000).time_to_live(day).build(),
        }
    }
}

impl Memory {
    /// Gives back the memory of what is over: a cache does that by itself only while it is used.
    pub(super) fn tidy(&self) {
        self.judged.run_pending_tasks();
        self.bound.run_pending_tasks();
        self.varies.run_pending_tasks();
        self.negatives.run_pending_tasks();
        self.unshared.run_pending_tasks();
        self.refused.run_pending_tasks();
        self.changed.run_pending_tasks();
        self.invalidated.run_pending_tasks();
    }

    /// The origin said no to a fill, in words that its client is to hear for itself.
    pub(super) fn note_refused(&self, task: &Task) {
        self.refused.insert((task.key, task.asker.reader()), false);
    }

    /// What the origin said to the client's own request. Who was refused as the fill was, and is given it later, may be given it
    /// by a fill as well; whoever is given what a fill is not (there are origins that know larder by its name) asks for itself.
    pub(super) fn note_own(&self, task: &Task, given: bool) {
        let key = (task.key, task.asker.reader());
        match (self.refused.get(&key), given) {
            (Some(true), true) => self.refused.invalidate(&key),
            (Some(false), false) => self.refused.insert(key, true),
            (Some(_) | None, _) => {}
        }
    }

    /// Whether a fill was told no lately.
    pub(super) fn is_refused(&self, task: &Task) -> bool {
        self.refused.contains_key(&(task.key, task.asker.reader()))
    }

    /// A small answer that came a moment ago, if nothing that happened since ends it.
    pub(super) fn negative(&self, task: &Task, now: Time) -> Option<Small> {
        let keys = iter::once(task.key).chain(iter::once_with(|| task.key_as_asked()));
        keys.filter_map(|key| self.negatives.get(&key)).find(|small| {
            let changed = self.changed.get(task.target.origin()).filter(|_| !small.by_its_word);
            let stands = changed.is_none_or(|at| small.asked > at);
            let is_current = now < small.until && stands && !self.is_overtaken(task, small.asked);
            is_current && task.says(&small.varied)
        })
    }

    /// Remembers a small answer under the task's key, or under [`Task::key_as_asked`].
    pub(super) fn note_negative(&self, key: Key, small: Small) {
        self.negatives.insert(key, small);
    }

    /// An answer may not be shared: for some minutes clients ask in their own words at once. `keys`: how often the keys
    /// have changed.
    pub(super) fn note_unshared(&self, key: Key, now: Time, keys: u64) {
        self.unshared.insert(key, (now.plus(UNSHARED_HOLDS), keys));
    }

    /// Whether the last answer could not be shared.
    pub(super) fn is_unshared(&self, key: &Key, now: Time, keys: u64) -> bool {
        self.unshared.get(key).is_some_and(|(until, with)| now < until && with == keys)
    }

    /// Notes with which keys an index is being read, as `reader` sees it.
    pub(super) fn note_reading(&self, index: &Target, reader: Partition, keys: u64) {
        self.read_with.insert(index.key(reader), keys);
    }

    /// Notes whether an index waits to be read, because it could not be.
    pub(super) fn note_unread(&self, index: &Target, reader: Partition, waits: bool) {
        let key = index.key(reader);
        if waits {
            self.unread.insert(key, ());
        } else if self.unread.entry_count() > 0 || self.unread.contains_key(&key) {
            self.unread.invalidate(&key);
        }
    }

    /// Whether an index waits to be read.
    pub(super) fn is_unread(&self, index: &Target, reader: Partition) -> bool {
        self.unread.contains_key(&index.key(reader))
    }

    /// Whether an index was read with today's keys, as `reader` sees it.
    pub(super) fn was_read_with(&self, index: &Target, reader: Partition, keys: u64) -> bool {
        self.read_with.get(&index.key(reader)) == Some(keys)
    }

    /// An unsafe method succeeded on `target`, and its answer named `others` (RFC 9111 §4.4).
    pub(super) fn note_change(&self, target: &Target, others: &[Target], now: Time) {
        self.changed.insert(target.origin().clone(), now);
        for of_origin in others.iter().filter(|other| other.origin() == target.origin()) {
            self.invalidated.insert(of_origin.key(Partition::Public), now);
        }
        self.invalidated.insert(target.key(Partition::Public), now);
    }

    /// How old a flight under way may be to be joined.
    pub(super) fn since(&self, task: &Task, demand: Demand) -> Option<Time> {
        if task.artifact().is_some() {
            return None;
        }
        let demanded = if task.is_index() {
            Some(task.asked.minus(GRACE))
        } else {
            demand.revalidate.then_some(task.asked)
        };
        self.changed.get(task.target.origin()).max(demanded)
    }

    /// Whether what was asked for at `requested` has been overtaken by an unsafe method.
    pub(super) fn is_overtaken(&self, task: &Task, requested: Time) -> bool {
        self.invalidated.get(&task.bare().key(Partition::Public)).is_some_and(|at| requested <= at)
    }
}

/// Whether the digest in a name selects and refuses: the protocol obliges, or the convention holds below its root and this
/// file is no exception.
pub(super) fn is_believed(store: &Store, ecosystem: &str, named: &Named, at: &Target) -> bool {
    let convention = named.convention.as_ref();
    convention.is_none_or(|root| store.convention(ecosystem, root, at).is_believed())
}

/// Everything that public indexes promise of an artifact at `target`, and what its bytes are worth without a promise.
pub fn expectation(
    store: &Store,
    ecosystem: &str,
    artifact: &Artifact,
    target: &Target,
    now: Time,
) -> Expectation {
    let promises = store.promises(target, &artifact.topics, now);
    expected(store, ecosystem, artifact, target, promises)
}

fn expected(
    store: &Store,
    ecosystem: &str,
    artifact: &Artifact,
    target: &Target,
    promises: Vec<Promise>,
) -> Expectation {
    let named = artifact.named.as_ref();
    let named = named.map(|named| (named.digest, is_believed(store, ecosystem, named, target)));
    let otherwise = Proof::of(match target.origin().scheme {
        Scheme::Https => Rank::Pinned,
        Scheme::Http => Rank::None,
    });
    Expectation { named, promises, otherwise }
}

/// Whether a signature may prove what comes from a target: its own, or that of an index in whose root it lies.
pub fn may_be_vouched(target: &Target, known: Option<&Recognition>, promises: &[Promise]) -> bool {
    known.is_some_and(|known| known.ecosystem.may_be_signed(target))
        || promises.iter().any(|promise| {
            promise.rank() == Rank::Signed && promise.relation.binds() && promise.is_strong()
        })
}

impl Pipeline {
    /// The answer to a task was for its client alone.
    pub(super) fn note_unshared(&self, task: &Task) {
        self.memory.note_unshared(task.key, self.clock.now(), self.keys.changes());
    }

    /// Whether the last answer was.
    pub(super) fn is_unshared(&self, task: &Task) -> bool {
        self.memory.is_unshared(&task.key, self.clock.now(), self.keys.changes())
    }

    /// Everything that is promised of the task's target today.
    pub(super) fn expectation_of(&self, task: &Task) -> Expectation {
        if let Some(promise) = &task.promised {
            let promises = vec![promise.clone()];
            return Expectation { promises, ..Expectation::nothing(Rank::Origin) };
        }
        match task.artifact() {
            Some(artifact) => {
                let (seen, now) = (self.store.seen_by(task.asker.reader()), self.clock.now());
                let promises = seen.promises(task.bare(), &artifact.topics, now);
                expected(&self.store, task.ecosystem(), artifact, task.bare(), promises)
            }
            None => Expectation {
                named: None,
                promises: self.promises_that_count(
                    task.bare(),
                    task.recognition.as_ref(),
                    task.asker.reader(),
                ),
                otherwise: Proof::of(Rank::Origin),
            },
        }
    }

    /// Why nothing of the task's target may be given now: a promise that may bind it cannot be read. It is asked only
    /// where nothing stored serves.
    pub(super) fn unread(&self, task: &Task) -> Option<String> {
        let expected = self.expectation_of(task);
        let unread = expected.unread()?;
        Some(format!(
            "{}: {unread}, and nothing is given that it may speak against; try again in a moment. If it goes on, larder's log says which file cannot be read and why",
            task.target
        ))
    }

    /// What the indexes that may speak for another index promise of it. No other is heard: indexes change all the time, so
    /// that a stranger's word on one says nothing, and claims would be read from it for what a stranger made of it.
    pub(super) fn promises_of_index(
        &self,
        bare: &Target,
        known: Option<&Recognition>,
        reader: Partition,
    ) -> Vec<Promise> {
        let topics = known.map_or_else(Vec::new, |known| known.ecosystem.topics(bare));
        // A head is the member of none, whatever claims were stored when it could be.
        if topics.is_empty() || known.is_some_and(|known| known.ecosystem.heads(bare)) {
            return Vec::new();
        }
        let mut promises = self.store.seen_by(reader).promises(bare, &topics, self.clock.now());
        promises.retain(|promise| promise.relation.binds());
        promises
    }

    /// Whether a signature may prove what comes from a target over plain http.
    pub(super) fn is_vouched(&self, target: &Target, known: Option<&Recognition>) -> bool {
        if target.origin().scheme == Scheme::Https {
            return false;
        }
        let Some(recognition) = known else {
            return false;
        };
        match &recognition.resource.kind {
            Kind::Artifact(artifact) => {
                let promises = self.store.promises(target, &artifact.topics, self.clock.now());
                may_be_vouched(target, known, &promises)
                    || promises.is_empty() && self.may_be_named(target, recognition)
            }
            Kind::Index => may_be_vouched(
                target,
                known,
                &self.promises_of_index(target, known, Partition::Public),
            ),
        }
    }

    /// Whether an index that may speak for `target` names it today. Others' words change nothing in how it is kept: they
    /// could freeze a file that is remade in place (promise P4).
    pub(super) fn is_claimed(
        &self,
        target: &Target,
        artifact: &Artifact,
        reader: Partition,
    ) -> bool {
        let (key, generation) = (target.key(reader), self.store.generation());
        if let Some((_, claimed)) = self.memory.bound.get(&key).filter(|(g, _)| *g == generation) {
            return claimed;
        }
        let seen = self.store.seen_by(reader);
        let promises = seen.promises(target, &artifact.topics, self.clock.now());
        let claimed =
            promises.iter().any(|promise| promise.is_current() && promise.relation.binds());
        if promises.iter().all(|promise| !promise.is_unread()) {
            self.memory.bound.insert(key, (generation, claimed));
        }
        claimed
    }

    pub(super) async fn look_up(&self, task: &Task, request: &HeaderMap) -> Lookup {
        match task.artifact() {
            Some(_) => self.look_up_artifact(task, Demand::of(request)).await,
            None => self.look_up_mutable(task, request).await,
        }
    }

    pub(super) async fn look_up_artifact(&self, task: &Task, demand: Demand) -> Lookup {
        let now = self.clock.now();
        let mut expected = None;
        for entry in self.store.entries(task.key) {
            let Some(today) = self.judged(task, &entry, &mut expected) else {
                continue;
            };
            let stored = Stored { proof: entry.proof.judged(today), entry, usable: true };
            let holds = today.rank.is_strong()
                || (now.since(stored.entry.checked_at) < PIN_HOLDS
                    && !freshness::is_of_the_future(&stored.entry, now)
                    && !demand.revalidate);
            return if holds { Lookup::Fresh(stored) } else { Lookup::Stale(stored) };
        }
        // What is linked where everybody finds it is selected by what everybody knows: a private index holds for its reader.
        let anybody =
            (task.asker.is_private() && !task.is_guarded()).then(|| task.clone().of_anybody());
        let linked = anybody.as_ref().unwrap_or(task);
        let known = expected.filter(|_| anybody.is_none());
        let known = known.unwrap_or_else(|| self.expectation_of(linked));
        let selected = match self.select_by_digest(linked, &known).await {
            None => self.select_by_signature(linked, &known).await,
            selected => selected,
        };
        let Some(entry) = selected else {
            return Lookup::Miss;
        };
        if anybody.is_some() && self.judged(task, &entry, &mut None).is_none() {
            return Lookup::Miss;
        }
        Lookup::Fresh(Stored { proof: entry.proof, entry, usable: true })
    }

    /// What a stored artifact is worth today; `None` if a newer claim names other bytes.
    pub(super) fn judged(
        &self,
        task: &Task,
        entry: &Arc<Entry>,
        expected: &mut Option<Expectation>,
    ) -> Option<Proof> {
        let generation = self.store.generation();
        let known = (entry.key, entry.blob, task.asker.reader());
        let judged = self.memory.judged.get(&known);
        if let Some((_, today)) = judged.filter(|(judged, _)| *judged == generation) {
            return today;
        }
        let expected = expected.get_or_insert_with(|| self.expectation_of(task));
        let mut promised = expected.clone();
        if entry.proof.own {
            // Its own signature holds whatever indexes come and go.
            promised.otherwise =
                Proof { weak_hash: entry.proof.weak_hash, ..Proof::of(Rank::Signed) };
        }
        let today = match promised.find(&entry.digests, entry.size, Time::from_millis(i64::MIN)) {
            Finding::Proven { proof, disagreement } => {
                if let Some(mismatch) = disagreement.filter(|it| it.elsewhere.is_some()) {
                    self.disagrees(task.bare(), &mismatch);
                }
                Some(proof)
            }
            Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
        };
        if expected.unread().is_some() {
            // Nothing is known of it for now, which is nothing to remember.
            return None;
        }
        self.memory.judged.insert(known, (generation, today));
        let public = !task.asker.is_private();
        let changes = |today: &Proof| public && entry.proof.judged(*today) != entry.proof;
        if let Some(today) = today.filter(changes) {
            // The ledger learns of it, so that a listing tells the truth; the answer need not wait.
            let (store, entry) = (Arc::clone(&self.store), Arc::clone(entry));
            tokio::task::spawn_blocking(move || {
                let risen = |now: &mut Entry| {
                    now.proof = now.proof.judged(today);
                    now.generation = generation;
                };
                if let Err(error) = store.update(&entry, risen) {
                    tracing::warn!(%error, "a proof could not be written down");
                }
            });
        }
        today
    }

    /// A digest in the request selects public bytes, whoever sent them.
    async fn select_by_digest(&self, task: &Task, expected: &Expectation) -> Option<Arc<Entry>> {
        let (digest, true) = expected.named? else {
            return None;
        };
        // Public bytes have public entries.
        if task.needs_own_header() || task.is_guarded() {
            return None;
        }
        let blob = self.store.public_blob_by_digest(&digest)?;
        let size = self.store.has_blob(blob)?;
        self.link(task, blob, size, &[digest], Rank::SelfCertified).await
    }

    async fn look_up_mutable(&self, task: &Task, request: &HeaderMap) -> Lookup {
        if let Some(member) = self.look_up_member(task).await {
            return member;
        }
        let mut entries = self.store.entries(task.key).into_iter();
        let Some(entry) = entries.find(|entry| task.selects(entry)) else {
            return Lookup::Miss;
        };
        let now = self.clock.now();
        let overtaken = self.memory.is_overtaken(task, entry.requested_at);
        let changed = self.memory.changed.get(task.target.origin());
        let in_grace = task.is_index()
            && now.since(entry.requested_at) <= GRACE
            && changed.is_none_or(|at| entry.requested_at > at);
        // A right holds for minutes, whatever the answer says of itself.
        let right = !task.is_of_one() || rights::lasts(entry.checked_at, rights::YES_HOLDS, now);
        let fresh = right
            && !overtaken
            && !self.is_head_apart(task)
            && !freshness::is_of_the_future(&entry, now)
            && (in_grace || freshness::is_fresh(&entry, request, now));
        let usable = self.is_usable(task, &entry, now);
        let stored = Stored { proof: self.proof_of(task, &entry, now), entry, usable };
        if fresh { Lookup::Fresh(stored) } else { Lookup::Stale(stored) }
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    /// An origin fills the fields of its answer as it likes, too.
    #[test]
    fn answers_that_are_remembered_take_bounded_memory() {
        let memory = Memory::default();
        let mut headers = HeaderMap::new();
        headers.insert("x-long", "x".repeat(60 << 10).parse().unwrap());
        let head = Head { status: StatusCode::NOT_FOUND, headers };
        for number in 0..200 {
            let answer = Arc::new((head.clone(), Bytes::from_static(b"no")));
            let (asked, until) = (Time::from_millis(0), Time::from_millis(1));
            let small = Small { answer, asked, until, by_its_word: false, varied: Vec::new() };
            memory.negatives.insert(Key([number; 32]), small);
        }
        memory.negatives.run_pending_tasks();
        let kept = memory.negatives.entry_count() * (60 << 10);
        assert!(kept > 0 && kept <= NEGATIVE_BYTES, "{kept} bytes");
    }
}
