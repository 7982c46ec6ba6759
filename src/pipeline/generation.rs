//! Generations: an index that heads others counts when what it names can be had.
//!
//! An archive that is published while it is read has, for a while, the new Release beside the old Packages, or the other way
//! round. Whoever reads then is told "hash sum mismatch". larder shows such an archive as it was, or as it is, and never as
//! anything between:
//!
//! ```text
//! new Release ─▶ its members that builds use: fetched, each held to the new Release
//!                  │ all there                    │ one is missing, or of another version
//!                  ▼                              ▼
//!                it is kept, and current        the previous Release is given, as stale; the next request tries again
//! ```
//!
//! The asker waits for that, at most five seconds. An archive that keeps its indexes under their digests is fetched by them,
//! and what is merely slow does not hold its Release back: whoever reads it can have the members. An archive that is met for
//! the first time has no previous generation; if it is small it is read until it is of one piece.
//!
//! Nothing is kept of a Release that is held back: not even its claims. What a client has read, its members follow from
//! (`members.rs`).
//!
//! Source: the Debian repository format (wiki), `Acquire-By-Hash`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use hyper::StatusCode;
use moka::sync::Cache;

use super::Pipeline;
use super::companions::Companion;
use super::lead::Came;
use super::task::Task;
use crate::claim::{Claim, ClaimSink, Edition, Generation, Promise, Relation, TooMany};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Artifact, Ecosystem, Kind, Recognised, Shape};
use crate::flight::End;
use crate::origin::Reach;
use crate::proof::Rank;
use crate::received::Received;
use crate::target::{Key, Partition, Root, Target};

/// How long an asker waits for the members of a new version.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a new version is held back at most: a mirror takes some minutes to be published, and what takes longer is not
/// being published but broken, which its clients had better see for themselves.
const HELD_BACK: Duration = Duration::from_mins(30);

/// For how long a member counts as in use after a client asked for it.
const IN_USE: Duration = Duration::from_hours(24);

/// The most members that a new version waits for. A build uses some ten.
const MOST_MEMBERS: usize = 64;

/// The most members, and bytes of them, that are fetched of an archive met for the first time, of which nobody has said yet
/// what is used: enough for a small archive, which is the kind that has no indexes under digests.
const MOST_AT_FIRST: usize = 16;
const MOST_BYTES_AT_FIRST: u64 = 4 << 20;

/// How many members are fetched at a time.
const AT_ONCE: usize = 4;

/// The number of a generation that is not in the store yet.
pub(super) const NOT_YET: u64 = u64::MAX;

/// What is remembered of generations, each bounded.
#[derive(Debug)]
pub(super) struct Generations {
    /// When this process began: what was asked for before that, nobody remembers.
    began: Time,
    /// What clients asked for lately.
    asked: Cache<Key, ()>,
    /// Since when newer versions of an index are held back.
    held_back: Cache<Key, Time>,
    /// The snapshots whose newest head at the origin does not count (`apart.rs`).
    pub(super) apart: Cache<Key, ()>,
}

impl Generations {
    pub(super) fn new(now: Time) -> Self {
        Self {
            began: now,
            asked: Cache::builder().max_capacity(100_000).time_to_idle(IN_USE).build(),
            held_back: Cache::new(10_000),
            apart: Cache::new(10_000),
        }
    }

    /// A client asked for an index, or for what may be one under its digest.
    pub(super) fn note_asked(&self, at: &Target) {
        self.asked.insert(at.key(Partition::Public), ());
    }

    /// Whether a client asked for it lately; while nobody can know, yes.
    fn is_asked(&self, at: &Target, now: Time) -> bool {
        now.since(self.began) < IN_USE || self.asked.contains_key(&at.key(Partition::Public))
    }
}

/// What a new version of an index says of itself and, if it heads others, of its members in use.
pub(super) struct News<'a> {
    pipeline: &'a Pipeline,
    ecosystem: &'static dyn Ecosystem,
    now: Time,
    heads: bool,
    /// The version that is current.
    before: Option<Arc<Generation>>,
    /// What it is read with.
    companions: &'a [Companion],
    named: Vec<Claim>,
    members: Vec<Claim>,
    by_digest: bool,
    pub(super) edition: Option<Edition>,
}

/// The members of a new version that builds use.
#[derive(Debug)]
pub(super) struct Members {
    claims: Vec<Claim>,
    /// What it says of those that it was read with.
    pub(super) companions: Vec<Claim>,
    /// Whether they can be had under their digests.
    by_digest: bool,
    /// The version that is current.
    before: Option<Arc<Generation>>,
    pub(super) rank: Rank,
    pub(super) root: Root,
    /// Whether a known key signed it that has expired since.
    expired_key: bool,
}

/// What came of asking for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// It is stored, and what the new version says.
    Held,
    /// Its origin says that there is none.
    Absent,
    /// It is of another version.
    Other,
    /// There is no telling.
    Failed,
}

impl<'a> News<'a> {
    pub(super) fn new(
        pipeline: &'a Pipeline,
        ecosystem: &'static dyn Ecosystem,
        at: &Target,
        companions: &'a [Companion],
        now: Time,
    ) -> Self {
        let heads = ecosystem.is_snapshot_root(at);
        Self {
            pipeline,
            ecosystem,
            now,
            heads,
            before: pipeline.store.current_claims(at).filter(|_| heads),
            companions,
            named: Vec::new(),
            members: Vec::new(),
            by_digest: false,
            edition: None,
        }
    }

    /// The members, once the whole index is read.
    pub(super) fn members(mut self, rank: Rank, root: &Root) -> Option<Members> {
        if !self.heads || rank == Rank::None {
            return None;
        }
        let bytes: u64 = self.members.iter().filter_map(|member| member.size).sum();
        let too_many = self.members.len() > MOST_AT_FIRST || bytes > MOST_BYTES_AT_FIRST;
        if self.before.is_none() && too_many {
            self.members.clear();
        }
        let root = root.clone();
        let expired_key = self.edition.is_some_and(|edition| edition.expired_key);
        let (claims, by_digest) = (self.members, self.by_digest);
        let (companions, before) = (self.named, self.before);
        Some(Members { claims, companions, by_digest, before, rank, root, expired_key })
    }

    /// Whether the current version names it too, and builds use that. One that they have only as an earlier version had it
    /// is listed and no more: nobody could use it since.
    fn is_in_use(&self, member: &Target) -> bool {
        let Some(before) = &self.before else {
            return true;
        };
        let (pipeline, now) = (self.pipeline, self.now);
        let entries = pipeline.store.entries(member.key(Partition::Public));
        pipeline.store.says(before, member).iter().flatten().any(|digest| {
            let named = self.ecosystem.named_by(member, digest);
            let asked = |at: &Target| pipeline.generations.is_asked(at, now);
            let mut digests = entries.iter().flat_map(|entry| &entry.digests);
            (asked(member) || named.as_ref().is_some_and(asked))
                && (digests.any(|stored| stored == digest)
                    || pipeline.store.public_blob_by_digest(digest).is_some())
        })
    }
}

impl ClaimSink for News<'_> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        if self.companions.iter().any(|companion| companion.at == claim.target) {
            self.named.push(claim);
            return Ok(());
        }
        if !self.heads || self.members.len() >= MOST_MEMBERS {
            return Ok(());
        }
        if is_named(self.ecosystem, &claim.target) {
            self.by_digest = true;
        } else if self.is_in_use(&claim.target) {
            self.members.push(claim);
        }
        Ok(())
    }

    fn edition(&mut self, edition: Edition) {
        self.edition = Some(edition);
    }
}

impl Pipeline {
    /// Fetches the members of a new version that builds use. `Err`: the version is not to be kept yet.
    pub(super) async fn assemble(
        self: &Arc<Self>,
        task: &Task,
        received: &Received,
        members: Members,
    ) -> Result<(), Came> {
        let Some(known) = task.known() else {
            return Ok(());
        };
        let document = received.body.digests.blob();
        if members.before.as_ref().is_some_and(|before| before.document == document) {
            return Ok(());
        }
        let by = Arc::new(Generation {
            number: NOT_YET,
            shown: task.bare().to_string(),
            document,
            // Asking it again would be asking for what is being judged here.
            confirmed: Time::from_millis(i64::MAX),
            superseded: None,
            rank: members.rank,
            root: members.root.clone(),
            expired_key: members.expired_key,
        });
        let index = Arc::new(task.bare().clone());
        let asking = stream::iter(members.claims.iter().cloned())
            .map(|claim| {
                let promise = Promise {
                    by: Arc::clone(&by),
                    index: Arc::clone(&index),
                    relation: Relation::InRoot,
                    digests: claim.digests,
                    size: claim.size,
                    signed: false,
                };
                let (ecosystem, by_digest) = (known.ecosystem, members.by_digest);
                self.ask_member(ecosystem, task.reach, claim.target, promise, by_digest)
            })
            .buffer_unordered(AT_ONCE)
            .collect::<BTreeSet<Asked>>();
        let came = tokio::time::timeout(PATIENCE, asking).await.ok();
        self.decide(task, &members, came.as_ref())
    }

    /// Whether a new version becomes current, when its members answered so; `None` if they took too long.
    fn decide(
        &self,
        task: &Task,
        members: &Members,
        came: Option<&BTreeSet<Asked>>,
    ) -> Result<(), Came> {
        let now = self.clock.now();
        let whole = match came {
            Some(came) if members.before.is_some() => came.iter().all(|came| *came == Asked::Held),
            // Of what nobody asked for yet, some may be named that was never there.
            Some(came) => !came.contains(&Asked::Other),
            None => members.by_digest || members.before.is_none(),
        };
        if whole {
            self.generations.held_back.invalidate(&task.key);
            return Ok(());
        }
        let line = format!(
            "{} is being published: some of what it names is still of another version; try again",
            task.target
        );
        if members.before.is_none() {
            // Its next state may be of one piece.
            let patient = now.since(task.asked) < PATIENCE;
            let end = End::undecided(line);
            return if patient { Err(Came::Unsettled(end)) } else { Ok(()) };
        }
        let since = self.generations.held_back.get_with(task.key, || now);
        if now.since(since) >= HELD_BACK || !self.has_previous(task, now) {
            tracing::warn!(url = %task.target, "what this index names does not go with it; it counts all the same");
            self.generations.held_back.invalidate(&task.key);
            return Ok(());
        }
        tracing::info!(
            url = %task.target,
            "this archive is being published, and not of one piece yet: its previous version is given"
        );
        Err(Came::Ended(End::undecided(line)))
    }

    /// Whether there is a previous version that may be given in place of the new one.
    pub(super) fn has_previous(&self, task: &Task, now: Time) -> bool {
        let entries = self.store.entries(task.key);
        entries.first().is_some_and(|entry| self.is_usable(task, entry, now))
            && !self.is_expired(task.bare(), now)
    }

    /// Fetches one member, under its digest if it can be had so.
    async fn ask_member(
        self: &Arc<Self>,
        ecosystem: &'static dyn Ecosystem,
        reach: Reach,
        member: Target,
        promise: Promise,
        by_digest: bool,
    ) -> Asked {
        let held = || self.holds(&member, &promise, by_digest);
        if held() {
            return Asked::Held;
        }
        if by_digest {
            let named = promise.digests.iter().rev();
            for at in named.filter_map(|digest| ecosystem.named_by(&member, digest)) {
                self.bring_in(&at, ecosystem, reach, None).await;
                if held() {
                    return Asked::Held;
                }
            }
        }
        match self.bring_in(&member, ecosystem, reach, Some(promise.clone())).await {
            _ if held() => Asked::Held,
            Some(End::Relayed(answer))
                if matches!(answer.0.status, StatusCode::NOT_FOUND | StatusCode::GONE) =>
            {
                Asked::Absent
            }
            Some(End::Refused(_)) => Asked::Other,
            Some(
                End::Kept(_)
                | End::Given
                | End::Current(_)
                | End::Failed(..)
                | End::Relayed(_)
                | End::Pass
                | End::Handed,
            )
            | None => Asked::Failed,
        }
    }

    /// Whether what a promise says of a member is stored, where a client that is promised it will find it.
    fn holds(&self, member: &Target, promise: &Promise, by_digest: bool) -> bool {
        let entries = self.store.entries(member.key(Partition::Public));
        let is_it = |digests: &[crate::digest::Digest]| {
            promise.digests.iter().all(|digest| digests.contains(digest))
        };
        if entries.iter().any(|entry| is_it(&entry.digests)) {
            return true;
        }
        let anywhere = by_digest || promise.rank() == Rank::Signed;
        let blob = |digest| -> Option<BlobId> { self.store.public_blob_by_digest(digest) };
        anywhere && promise.digests.iter().any(|digest| blob(digest).is_some())
    }
}

/// Whether a target is named by its digest.
pub(super) fn is_named(ecosystem: &dyn Ecosystem, at: &Target) -> bool {
    match ecosystem.recognise(&Shape { target: at, accept: "" }) {
        Recognised::Certain(resource) | Recognised::Likely(resource) => {
            matches!(resource.kind, Kind::Artifact(Artifact { named: Some(_), .. }))
        }
        Recognised::No => false,
    }
}
