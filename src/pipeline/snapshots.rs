//! Snapshots: an index that is a snapshot's root counts once the members that it names can be fetched.
//!
//! While an archive is being published, it has for some time the new Release beside the old Packages, or the other way round. A
//! client that reads it then reports "hash sum mismatch". larder serves such an archive as it was before or as it is after, and
//! never a mixture:
//!
//! ```text
//! new Release ─▶ its members that builds use: fetched, each held to the new Release
//!                  │ all there                    │ one is missing, or of another version
//!                  ▼                              ▼
//!                it is kept, and current        the previous Release is given, as stale; the next request tries again
//! ```
//!
//! The client waits for that, at most five seconds. If an archive keeps its indexes under their digests, larder fetches them by
//! digest. A slow member then does not hold the Release back, because a client that reads the Release can fetch the members. An
//! archive that larder sees for the first time has no previous snapshot; a small one is read again until it is consistent.
//!
//! Nothing is kept of a Release that is held back, its claims included. The members that a client gets are those of the Release
//! that it has read (`members.rs`).
//!
//! Source: the Debian repository format (wiki), `Acquire-By-Hash`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use hyper::StatusCode;
use moka::sync::Cache;

use super::Pipeline;
use super::in_use::latest;
use super::lead::AttemptResult;
use super::shelf::Sidecar;
use super::task::Task;
use crate::claim::{
    Claim, ClaimSink, IndexVersion, Promise, Relation, SignedBy, Snapshot, Standing, TooMany,
};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Artifact, Ecosystem, Kind, Recognised, Shape};
use crate::flight::End;
use crate::origin::Reach;
use crate::proof::Rank;
use crate::received::Received;
use crate::store::ClaimBatch;
use crate::target::{Key, Origin, Partition, Root, Target};

/// How long a client waits for the members of a new version.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest that a new version is held back. Publishing a mirror takes some minutes; an archive that is inconsistent for
/// longer is broken, and its clients should see that.
const HELD_BACK: Duration = Duration::from_mins(30);

/// How long a member counts as in use after a client requested it.
const IN_USE: Duration = Duration::from_hours(24);

/// The most members that a new version waits for. A build uses about ten.
const MOST_MEMBERS: usize = 64;

/// The most members, and bytes of them, that are fetched of an archive that larder sees for the first time, when no client has
/// shown yet which members are used. This is enough for a small archive, the kind that has no indexes under digests.
const MOST_AT_FIRST: usize = 16;
const MOST_BYTES_AT_FIRST: u64 = 4 << 20;

/// How many members are fetched at a time.
const AT_ONCE: usize = 4;

/// The most snapshots' roots of which it is remembered that they are held back, or do not count.
const MOST_ROOTS: u64 = 10_000;

/// Stands for the number of a snapshot that is not in the store yet.
pub(super) const NOT_YET: u64 = u64::MAX;

/// What is remembered of snapshots. Each map is bounded.
#[derive(Debug)]
pub(super) struct SnapshotMemory {
    /// When this process began. Requests before that are not remembered.
    began: Time,
    /// The indexes that clients requested during the last day.
    asked: Cache<Key, ()>,
    /// Since when newer versions of an index are held back.
    held_back: Cache<Key, Time>,
    /// The snapshots whose newest root at the origin does not count (`apart.rs`).
    pub(super) apart: Cache<Key, ()>,
}

impl SnapshotMemory {
    pub(super) fn new(now: Time) -> Self {
        Self {
            began: now,
            asked: Cache::builder().max_capacity(100_000).time_to_idle(IN_USE).build(),
            held_back: latest(MOST_ROOTS).build(),
            apart: latest(MOST_ROOTS).build(),
        }
    }

    /// Notes that a client requested an index, or a target that may be an index under its digest.
    pub(super) fn note_asked(&self, at: &Target) {
        self.asked.insert(at.key(Partition::Public), ());
    }

    /// Whether a client requested it during the last day. Always true during the first day of this process.
    fn is_asked(&self, at: &Target, now: Time) -> bool {
        now.since(self.began) < IN_USE || self.asked.contains_key(&at.key(Partition::Public))
    }
}

/// Takes what a new version of an index says: its claims, itself and, if it is a snapshot's root, its members in use.
pub(super) struct NewVersion<'a> {
    pipeline: &'a Pipeline,
    ecosystem: &'static dyn Ecosystem,
    now: Time,
    heads: bool,
    /// The version that is current.
    before: Option<Arc<IndexVersion>>,
    /// The documents that it is read with.
    sidecars: &'a [Sidecar],
    named: Vec<Claim>,
    members: Vec<Claim>,
    by_digest: bool,
    pub(super) edition: Option<Snapshot>,
    /// Its claims, which are published once it is stored; `None` if it makes none, or they are too many.
    batch: Option<ClaimBatch>,
}

/// The members of a new version that builds use.
#[derive(Debug)]
pub(super) struct Members {
    claims: Vec<Claim>,
    /// What it says of the documents that it was read with.
    pub(super) sidecars: Vec<Claim>,
    /// Whether the archive keeps the members under their digests.
    by_digest: bool,
    /// The version that is current.
    before: Option<Arc<IndexVersion>>,
    pub(super) rank: Rank,
    pub(super) root: Root,
    /// Whether it was signed by a known key that has expired since.
    expired_key: bool,
    /// The keys that signed it.
    pub(super) signed_by: SignedBy,
}

/// The result of fetching a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MemberFetch {
    /// It is stored, with the digests that the new version names.
    Held,
    /// The origin answered that it does not exist.
    Absent,
    /// It belongs to another version.
    Other,
    /// It could not be fetched.
    Failed,
}

impl<'a> NewVersion<'a> {
    pub(super) fn new(
        pipeline: &'a Pipeline,
        ecosystem: &'static dyn Ecosystem,
        at: &Target,
        sidecars: &'a [Sidecar],
        batch: Option<ClaimBatch>,
        now: Time,
    ) -> Self {
        let heads = ecosystem.is_snapshot_root(at);
        Self {
            pipeline,
            ecosystem,
            now,
            heads,
            before: pipeline.store.current_claims(at).filter(|_| heads),
            sidecars,
            named: Vec::new(),
            members: Vec::new(),
            by_digest: false,
            edition: None,
            batch,
        }
    }

    /// The claims and the members, once the whole index was read. There are no members if the index is not a snapshot's root or
    /// nothing vouches for it.
    pub(super) fn finish(mut self, standing: &Standing) -> (Option<ClaimBatch>, Option<Members>) {
        let batch = self.batch.take();
        let Standing { rank, root } = standing;
        if !self.heads || *rank == Rank::None {
            return (batch, None);
        }
        let bytes: u64 = self.members.iter().filter_map(|member| member.size).sum();
        let too_many = self.members.len() > MOST_AT_FIRST || bytes > MOST_BYTES_AT_FIRST;
        if self.before.is_none() && too_many {
            self.members.clear();
        }
        let (rank, root) = (*rank, root.clone());
        let edition = self.edition.unwrap_or_default();
        let expired_key = edition.expired_key;
        let signed_by = SignedBy { index: edition.makers, claims: Vec::new() };
        let (claims, by_digest) = (self.members, self.by_digest);
        let (sidecars, before) = (self.named, self.before);
        let members =
            Members { claims, sidecars, by_digest, before, rank, root, expired_key, signed_by };
        (batch, Some(members))
    }

    fn stage(&mut self, give: impl FnOnce(&mut ClaimBatch) -> Result<(), TooMany>) {
        if self.batch.as_mut().is_some_and(|batch| give(batch).is_err()) {
            // When the index is stored, it is read again and then says that it has too many.
            self.batch = None;
        }
    }

    fn member(&mut self, claim: Claim) {
        if self.sidecars.iter().any(|sidecar| sidecar.at == claim.target) {
            self.named.push(claim);
            return;
        }
        if !self.heads || self.members.len() >= MOST_MEMBERS {
            return;
        }
        if is_named(self.ecosystem, &claim.target) {
            self.by_digest = true;
        } else if self.is_in_use(&claim.target) {
            self.members.push(claim);
        }
    }

    /// Whether clients use this member: the current version names it too, and a client requested it lately. A member that is
    /// stored only in an earlier version does not count, because clients could not use it since.
    fn is_in_use(&self, member: &Target) -> bool {
        let Some(before) = &self.before else {
            return true;
        };
        let (pipeline, now) = (self.pipeline, self.now);
        let entries = pipeline.store.entries(member.key(Partition::Public));
        pipeline.store.says(before, member).iter().flatten().any(|digest| {
            let named = self.ecosystem.named_by(member, digest);
            let asked = |at: &Target| pipeline.snapshots.is_asked(at, now);
            let mut digests = entries.iter().flat_map(|entry| &entry.digests);
            (asked(member) || named.as_ref().is_some_and(asked))
                && (digests.any(|stored| stored == digest)
                    || pipeline.store.public_blob_by_digest(digest).is_some())
        })
    }
}

impl ClaimSink for NewVersion<'_> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        self.stage(|batch| batch.claim(claim.clone()));
        self.member(claim);
        Ok(())
    }

    fn signed_claim(&mut self, claim: Claim, signer: &str) -> Result<(), TooMany> {
        self.stage(|batch| batch.signed_claim(claim.clone(), signer));
        self.member(claim);
        Ok(())
    }

    fn forged_claim(&mut self, claim: Claim, why: &str) -> Result<(), TooMany> {
        self.stage(|batch| batch.forged_claim(claim, why));
        Ok(())
    }

    fn unknown_signer(&mut self, key: &str) {
        if let Some(batch) = &mut self.batch {
            batch.unknown_signer(key);
        }
    }

    fn speaks(&mut self, origin: &Origin) {
        if let Some(batch) = &mut self.batch {
            batch.speaks(origin);
        }
    }

    fn edition(&mut self, edition: Snapshot) {
        if let Some(batch) = &mut self.batch {
            batch.edition(edition.clone());
        }
        self.edition = Some(edition);
    }
}

impl Pipeline {
    /// Fetches the members of a new version that builds use. `Err`: the version must not be kept yet.
    pub(super) async fn assemble(
        self: &Arc<Self>,
        task: &Task,
        received: &Received,
        members: &Members,
    ) -> Result<(), AttemptResult> {
        let Some(known) = task.known() else {
            return Ok(());
        };
        let document = received.body.digests.blob();
        if members.before.as_ref().is_some_and(|before| before.document == document) {
            return Ok(());
        }
        let by = Arc::new(IndexVersion {
            number: NOT_YET,
            shown: task.bare().to_string(),
            document,
            // The latest possible time, so that larder does not ask the index again: it is the document under judgement.
            confirmed: Time::from_millis(i64::MAX),
            superseded: None,
            rank: members.rank,
            root: members.root.clone(),
            expired_key: members.expired_key,
            signed_by: Some(members.signed_by.clone()),
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
            .collect::<BTreeSet<MemberFetch>>();
        let came = tokio::time::timeout(PATIENCE, asking).await.ok();
        self.decide(task, members, came.as_ref())
    }

    /// Whether a new version becomes current after its members answered so. `came`: `None` if they took too long.
    fn decide(
        &self,
        task: &Task,
        members: &Members,
        came: Option<&BTreeSet<MemberFetch>>,
    ) -> Result<(), AttemptResult> {
        let now = self.clock.now();
        let whole = match came {
            Some(came) if members.before.is_some() => {
                came.iter().all(|came| *came == MemberFetch::Held)
            }
            // A first Release may list members that were never published, so an absent member does not count against it.
            Some(came) => !came.contains(&MemberFetch::Other),
            None => members.by_digest || members.before.is_none(),
        };
        if whole {
            self.snapshots.held_back.invalidate(&task.key);
            return Ok(());
        }
        let line = format!(
            "{} is being published: some of what it names is still of another version; try again",
            task.target
        );
        if members.before.is_none() {
            // The archive's next state may be consistent.
            let patient = now.since(task.asked) < PATIENCE;
            let end = End::undecided(line);
            return if patient { Err(AttemptResult::Unsettled(end)) } else { Ok(()) };
        }
        let since = self.snapshots.held_back.get_with(task.key, || now);
        if now.since(since) >= HELD_BACK || !self.has_previous(task, now) {
            tracing::warn!(url = %task.target, "the members of this index do not match it; the new version counts all the same");
            self.snapshots.held_back.invalidate(&task.key);
            return Ok(());
        }
        tracing::info!(
            url = %task.target,
            "this archive is being published and is not consistent yet; its previous version is given"
        );
        Err(AttemptResult::Ended(End::undecided(line)))
    }

    /// Whether there is a previous version that may be given in place of the new one.
    pub(super) fn has_previous(&self, task: &Task, now: Time) -> bool {
        let entries = self.store.entries(task.key);
        entries.first().is_some_and(|entry| self.is_usable(task, entry, now))
            && !self.is_expired(task.bare(), now)
    }

    /// Fetches one member, under its digest if `by_digest`.
    async fn ask_member(
        self: &Arc<Self>,
        ecosystem: &'static dyn Ecosystem,
        reach: Reach,
        member: Target,
        promise: Promise,
        by_digest: bool,
    ) -> MemberFetch {
        let held = || self.holds(&member, &promise, by_digest);
        if held() {
            return MemberFetch::Held;
        }
        if by_digest {
            let named = promise.digests.iter().rev();
            for at in named.filter_map(|digest| ecosystem.named_by(&member, digest)) {
                self.bring_in(&at, ecosystem, reach, None).await;
                if held() {
                    return MemberFetch::Held;
                }
            }
        }
        match self.bring_in(&member, ecosystem, reach, Some(promise.clone())).await {
            _ if held() => MemberFetch::Held,
            Some(End::Relayed(answer))
                if matches!(answer.0.status, StatusCode::NOT_FOUND | StatusCode::GONE) =>
            {
                MemberFetch::Absent
            }
            Some(End::Refused(_)) => MemberFetch::Other,
            Some(
                End::Kept(_)
                | End::Given
                | End::Current(_)
                | End::Failed(..)
                | End::Relayed(_)
                | End::Pass
                | End::Handed,
            )
            | None => MemberFetch::Failed,
        }
    }

    /// Whether the bytes that a promise names are stored where a client with that promise will find them.
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

/// Whether a target's name contains its digest.
pub(super) fn is_named(ecosystem: &dyn Ecosystem, at: &Target) -> bool {
    match ecosystem.recognise(&Shape { target: at, accept: "" }) {
        Recognised::Certain(resource) | Recognised::Likely(resource) => {
            matches!(resource.kind, Kind::Artifact(Artifact { named: Some(_), .. }))
        }
        Recognised::No => false,
    }
}
