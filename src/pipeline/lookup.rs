//! Whether there is a stored answer, and whether it may be given without asking the origin.
//!
//! An artifact's proof is judged again at each look-up: the entry is fresh while the newest set of claims that names the artifact
//! has its digest. The result is remembered together with the generation number of all claims. While that number has not changed,
//! a hit only compares two numbers. Everything else follows RFC 9111.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use moka::sync::Cache;

use super::answers::lasts;
use super::in_use::{in_use, latest};
use super::task::Task;
use super::varied::VaryingFields;
use super::{Pipeline, rights};
use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Artifact, Kind, Named, Recognition};
use crate::entry::{Entry, Head};
use crate::freshness::{self, Demand};
use crate::proof::{Proof, Rank};
use crate::store::Store;
use crate::target::{Key, Origin, Partition, Scheme, Target};
use crate::verify::{Expectation, Finding};

/// How long a first-use pin or a weak digest is valid before the origin is asked again.
const PIN_HOLDS: Duration = Duration::from_hours(24);

/// How old a revalidation of an index may be to satisfy a request that demands one. The jobs of one CI pipeline start together;
/// the registry is asked once, not once per job.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The result of a look-up.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The stored answer may be given as it is.
    Fresh(Stored),
    /// The stored answer must be revalidated.
    Stale(Stored),
    /// Nothing is stored, or nothing that the claims still name.
    Miss,
}

/// A stored answer.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: Arc<Entry>,
    /// Its proof as of now.
    pub(super) proof: Proof,
    /// Whether it may be given when the origin fails.
    pub(super) usable: bool,
}

/// A small answer that is remembered in memory and not stored, and when it was requested.
#[derive(Clone, Debug)]
pub(super) struct Small {
    pub(super) answer: Arc<(Head, Bytes)>,
    pub(super) asked: Time,
    /// When it expires.
    pub(super) until: Time,
    /// Whether the answer itself states its freshness. If it does not, any unsafe method on its origin ends it.
    pub(super) by_its_word: bool,
    /// The values of the request fields by which the origin selected it.
    pub(super) varied: Vec<(String, String)>,
}

/// The longest that an answer is kept in memory, whatever freshness it states: a client's mistaken request may be right after the
/// next release of its origin.
pub(super) const IN_MEMORY: Duration = Duration::from_mins(1);

/// How long a 404 or 410 without explicit freshness is remembered: long enough for the jobs of one CI pipeline, too short for a
/// user to notice.
pub(super) const NEGATIVE_HOLDS: Duration = Duration::from_secs(5);

/// The memory for such answers, in bytes. Each is at most an error page and its header fields.
const NEGATIVE_BYTES: u64 = 4 << 20;

/// How long requests for a target are passed at once after an answer to it could not be shared.
const UNSHARED_HOLDS: Duration = Duration::from_mins(5);

/// A judgement: the generation of the claims and the number of the body's digests that were known, and the proof. A body that was
/// fetched again may have the digests that a claim names.
type Judgement = ((u64, usize), Option<Proof>);

/// What look-ups remember. Each map is bounded.
#[derive(Debug)]
pub(super) struct Memory {
    /// The judged proof, by entry and reader: each reader sees the claims of its own indexes.
    judged: Cache<(Key, BlobId, Partition), Judgement>,
    /// Whether an index with authority over the target names it, and the generation of the claims at which that was found.
    bound: Cache<Key, (u64, bool)>,
    /// Indexes that could not be read when they arrived.
    unread: Cache<Key, ()>,
    negatives: Cache<Key, Small>,
    /// Targets whose last answer was for its client only: until when the next requests are passed without a fill, and the number
    /// of changes to the keyring at that time. With another key the next answer may be proven.
    unshared: Cache<Key, (Time, u64)>,
    /// Targets for which a fill was refused, by principal: the client's own request is then passed without a fill before it. The
    /// value says whether the client's own request was refused as well.
    refused: Cache<(Key, Partition), bool>,
    /// The number of changes to the keyring when each reader's view of an index was read.
    read_with: Cache<Key, u64>,
    /// The request fields by which answers of each URL are selected.
    pub(super) varies: VaryingFields,
    /// When an unsafe method last succeeded on an origin.
    changed: Cache<Origin, Time>,
    /// When an unsafe method last succeeded on a URL (RFC 9111 §4.4).
    invalidated: Cache<Key, Time>,
}

impl Default for Memory {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self {
            judged: in_use(),
            // moka's clock is monotonic: entries expire also if the system clock is set back.
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
            read_with: latest(100_000).build(),
            bound: in_use(),
            varies: VaryingFields::default(),
            unread: latest(10_000).build(),
            changed: Cache::builder().max_capacity(10_000).time_to_live(day).build(),
            invalidated: Cache::builder().max_capacity(100_000).time_to_live(day).build(),
        }
    }
}

impl Memory {
    /// Frees the memory of expired entries. By itself, moka does that only while a cache is used.
    pub(super) fn tidy(&self) {
        self.judged.run_pending_tasks();
        self.bound.run_pending_tasks();
        self.varies.tidy();
        self.negatives.run_pending_tasks();
        self.unshared.run_pending_tasks();
        self.refused.run_pending_tasks();
        self.changed.run_pending_tasks();
        self.invalidated.run_pending_tasks();
    }

    /// Notes that the origin refused a fill. The client hears the refusal from the origin itself, by its own request.
    pub(super) fn note_refused(&self, task: &Task) {
        self.refused.insert((task.key, task.principal.reader()), false);
    }

    /// Notes the origin's answer to the client's own request. A client that was refused like the fill and later succeeds may be
    /// served by fills again. If the client succeeds where the fill is refused (some origins block larder's `User-Agent`), its
    /// requests continue to be passed.
    pub(super) fn note_own(&self, task: &Task, given: bool) {
        let key = (task.key, task.principal.reader());
        match (self.refused.get(&key), given) {
            (Some(true), true) => self.refused.invalidate(&key),
            (Some(false), false) => self.refused.insert(key, true),
            (Some(_) | None, _) => {}
        }
    }

    /// Whether a fill was refused lately.
    pub(super) fn is_refused(&self, task: &Task) -> bool {
        self.refused.contains_key(&(task.key, task.principal.reader()))
    }

    /// A small answer that is remembered, if nothing that happened since ends it.
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

    /// Notes that an answer may not be shared: for some minutes, requests for this key are passed at once. `keys`: the number of
    /// changes to the keyring.
    pub(super) fn note_unshared(&self, key: Key, now: Time, keys: u64) {
        self.unshared.insert(key, (now.plus(UNSHARED_HOLDS), keys));
    }

    /// Whether the last answer could not be shared.
    pub(super) fn is_unshared(&self, key: &Key, now: Time, keys: u64) -> bool {
        self.unshared.get(key).is_some_and(|(until, with)| now < until && with == keys)
    }

    /// Notes the state of the keyring with which an index is read, as `reader` sees it.
    pub(super) fn note_reading(&self, index: &Target, reader: Partition, keys: u64) {
        self.read_with.insert(index.key(reader), keys);
    }

    /// Notes whether an index could not be read and waits for another attempt.
    pub(super) fn note_unread(&self, index: &Target, reader: Partition, waits: bool) {
        let key = index.key(reader);
        if waits {
            self.unread.insert(key, ());
        } else if self.unread.entry_count() > 0 || self.unread.contains_key(&key) {
            self.unread.invalidate(&key);
        }
    }

    /// Whether an index could not be read and waits for another attempt.
    pub(super) fn is_unread(&self, index: &Target, reader: Partition) -> bool {
        self.unread.get(&index.key(reader)).is_some()
    }

    /// Whether an index was read with the present keyring, as `reader` sees it.
    pub(super) fn was_read_with(&self, index: &Target, reader: Partition, keys: u64) -> bool {
        self.read_with.get(&index.key(reader)) == Some(keys)
    }

    /// Notes that an unsafe method succeeded on `target`, and that its answer named `others` (RFC 9111 §4.4).
    pub(super) fn note_change(&self, target: &Target, others: &[Target], now: Time) {
        self.changed.insert(target.origin().clone(), now);
        for of_origin in others.iter().filter(|other| other.origin() == target.origin()) {
            self.invalidated.insert(of_origin.key(Partition::Public), now);
        }
        self.invalidated.insert(target.key(Partition::Public), now);
    }

    /// The earliest start of a flight that the task may join; `None`: any flight.
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

    /// Whether an unsafe method has invalidated what was requested at `requested`.
    pub(super) fn is_overtaken(&self, task: &Task, requested: Time) -> bool {
        self.invalidated.get(&task.bare().key(Partition::Public)).is_some_and(|at| requested <= at)
    }
}

/// Whether the digest in a name selects stored bytes and refuses others: the protocol requires it, or the naming convention was
/// confirmed below its root and this file is no exception to it.
pub(super) fn is_believed(store: &Store, ecosystem: &str, named: &Named, at: &Target) -> bool {
    let convention = named.convention.as_ref();
    convention.is_none_or(|root| store.convention(ecosystem, root, at).is_believed())
}

/// All promises of public indexes about an artifact at `target`, and the proof of its bytes if there is no promise.
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

/// Whether a signature may prove what comes from a target: the document's own, or that of an index in whose root the target lies.
pub fn may_be_vouched(target: &Target, known: Option<&Recognition>, promises: &[Promise]) -> bool {
    known.is_some_and(|known| known.ecosystem.may_be_signed(target))
        || promises.iter().any(|promise| {
            promise.rank() == Rank::Signed && promise.relation.binds() && promise.is_strong()
        })
}

impl Pipeline {
    /// Notes that the answer to a task was for its client only.
    pub(super) fn note_unshared(&self, task: &Task) {
        self.memory.note_unshared(task.key, self.clock.now(), self.keys.changes());
    }

    /// Whether the last answer to the task was for its client only.
    pub(super) fn is_unshared(&self, task: &Task) -> bool {
        self.memory.is_unshared(&task.key, self.clock.now(), self.keys.changes())
    }

    /// All promises about the task's target as of now.
    pub(super) fn expectation_of(&self, task: &Task) -> Expectation {
        if let Some(promise) = &task.promised {
            let promises = vec![promise.clone()];
            return Expectation { promises, ..Expectation::nothing(Rank::Origin) };
        }
        let known = self.known_now(task);
        let otherwise = Proof::of(Rank::Origin);
        match known.map(|known| (known.ecosystem.name(), &known.resource.kind)) {
            Some((ecosystem, Kind::Artifact(artifact))) => {
                let (seen, now) = (self.store.seen_by(task.principal.reader()), self.clock.now());
                let promises = seen.promises(task.bare(), &artifact.topics, now);
                let mut expected =
                    expected(&self.store, ecosystem, artifact, task.bare(), promises);
                if task.is_unknown() {
                    expected.otherwise = otherwise;
                }
                expected
            }
            Some((_, Kind::Index)) | None => Expectation {
                named: None,
                promises: self.promises_that_count(task.bare(), known, task.principal.reader()),
                otherwise,
            },
        }
    }

    /// Why nothing may be given for the task's target now: a promise that may bind it cannot be read. Called only when no stored
    /// answer serves.
    pub(super) fn unread(&self, task: &Task) -> Option<String> {
        let expected = self.expectation_of(task);
        let unread = expected.unread()?;
        Some(format!(
            "{}: {unread}, and nothing is given that it may speak against; try again in a moment. If it goes on, larder's log says which file cannot be read and why",
            task.target
        ))
    }

    /// The promises about an index by other indexes with authority over it. Promises without authority are left out: an index
    /// changes all the time, so such a promise proves nothing, and it would make larder read claims from bytes that the other
    /// origin chose.
    pub(super) fn promises_of_index(
        &self,
        bare: &Target,
        known: Option<&Recognition>,
        reader: Partition,
    ) -> Vec<Promise> {
        let topics = known.map_or_else(Vec::new, |known| known.ecosystem.topics(bare));
        // A snapshot's root is a member of nothing, whatever claims were stored before that was known.
        if topics.is_empty() || known.is_some_and(|known| known.ecosystem.is_snapshot_root(bare)) {
            return Vec::new();
        }
        let mut promises = self.store.seen_by(reader).promises(bare, &topics, self.clock.now());
        promises.retain(|promise| promise.relation.binds());
        promises
    }

    /// Whether a signature may prove what comes from a target over plain HTTP.
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

    /// Whether an index with authority over `target` names it today. Indexes without authority do not change how a file is kept:
    /// they could freeze a file that is rebuilt in place (promise P4).
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
        // A public entry may be created only from public claims; a private index counts only for its reader.
        let anybody = (task.principal.is_private() && !task.is_private_artifact())
            .then(|| task.clone().of_anybody());
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

    /// Whether the task's artifact is stored, and a digest or a signature proves it today.
    pub(super) fn is_proven(&self, task: &Task) -> bool {
        let mut expected = None;
        self.store.entries(task.key).iter().any(|entry| {
            let today = self.judged(task, entry, &mut expected);
            today.is_some_and(|today| today.rank.is_strong())
        })
    }

    /// The proof of a stored artifact as of now; `None` if a newer claim names other bytes.
    pub(super) fn judged(
        &self,
        task: &Task,
        entry: &Arc<Entry>,
        expected: &mut Option<Expectation>,
    ) -> Option<Proof> {
        let generation = self.store.generation();
        let known = (entry.key, entry.blob, task.principal.reader());
        let with = (generation, entry.digests.len());
        let judged = self.memory.judged.get(&known);
        if let Some((_, today)) = judged.filter(|(judged, _)| *judged == with) {
            return today;
        }
        let expected = expected.get_or_insert_with(|| self.expectation_of(task));
        let mut promised = expected.clone();
        if entry.proof.own {
            // The file's own signature proves it, whichever indexes appear or disappear.
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
            // A promise cannot be read now, so there is no result to remember.
            return None;
        }
        self.memory.judged.insert(known, (with, today));
        let public = !task.principal.is_private();
        let changes = |today: &Proof| public && entry.proof.judged(*today) != entry.proof;
        if let Some(today) = today.filter(changes) {
            // The ledger is updated in the background, so that listings are right; the answer need not wait.
            let (store, entry) = (Arc::clone(&self.store), Arc::clone(entry));
            tokio::task::spawn_blocking(move || {
                let risen = |now: &mut Entry| {
                    // A claim may have gone since, and what it proved was lowered: the next look-up judges again.
                    if store.generation() == generation {
                        now.proof = now.proof.judged(today);
                        now.generation = generation;
                    }
                };
                if let Err(error) = store.update(&entry, risen) {
                    tracing::warn!(%error, "a proof could not be stored");
                }
            });
        }
        today
    }

    /// A digest in the request's URL selects public bytes, whichever target they came for.
    async fn select_by_digest(&self, task: &Task, expected: &Expectation) -> Option<Arc<Entry>> {
        let (digest, true) = expected.named? else {
            return None;
        };
        // Public bytes belong to public entries only.
        if task.needs_own_header() || task.is_private_artifact() {
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
        // A right is valid for minutes, whatever freshness the answer states.
        let right = !task.is_private_index() || lasts(entry.checked_at, rights::YES_HOLDS, now);
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

    /// The origin also chooses the header fields of its answer, so they count towards the limit.
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
