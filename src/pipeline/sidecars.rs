//! Sidecars: documents that lie beside another and are read with it, such as the detached signature of a Release.
//!
//! ```text
//! Release ─▶ Release.gpg, fetched at once ─▶ the signature verifies the Release ─▶ both are kept: one snapshot
//!                                         └▶ out of step: both once more ─▶ still: the previous pair is given
//! ```
//!
//! A detached signature does not prove itself, and over plain HTTP nothing else vouches for it. What vouches for it is that it
//! verified the Release. The Release then names it with its digest, like every other member of the snapshot.

use std::io::{self, Read};
use std::sync::Arc;

use hyper::StatusCode;

use super::Pipeline;
use super::lead::{AttemptResult, small_body};
use super::shelf::Sidecar;
use super::snapshots::{Members, NOT_YET};
use super::task::Task;
use super::unproven::lower_unsigned;
use crate::claim::{Claim, IndexVersion, Promise, Relation};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Ecosystem, Shelf};
use crate::flight::End;
use crate::origin::Ask;
use crate::proof::Rank;
use crate::received::Received;
use crate::target::{Origin, Root, Target};
use crate::verify::{self, Expectation, Verdict};

/// The most sidecars that are fetched to read one document.
const MOST: usize = 2;

/// A shelf without documents.
struct Nothing;

impl Shelf for Nothing {
    fn open(&self, _: &Target) -> Option<Box<dyn Read + '_>> {
        None
    }

    fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

impl Pipeline {
    /// Fetches the sidecars of the task's document.
    pub(super) async fn sidecars_of(
        &self,
        task: &Task,
        ecosystem: &'static dyn Ecosystem,
    ) -> Vec<Sidecar> {
        let mut found = Vec::new();
        for at in ecosystem.wants(task.bare(), &Nothing).into_iter().take(MOST) {
            if at.origin() != task.bare().origin() {
                continue;
            }
            found.extend(self.sidecar(task, at, ecosystem).await);
        }
        found
    }

    async fn sidecar(
        &self,
        task: &Task,
        at: Target,
        ecosystem: &'static dyn Ecosystem,
    ) -> Option<Sidecar> {
        let own = self.task_for(&at, ecosystem, task.reach)?;
        // A client waits for the end of the document, so this request has a time limit.
        let ask = own.of(task.principal.clone(), &self.store.secret()).ask(None, false);
        let ask = Ask { patient: false, ..ask };
        let answer = self.origins.fetch(ask).await.ok()?;
        if answer.head.status != StatusCode::OK || answer.answered_by != at {
            return None;
        }
        let (head, plain, requested_at) = (answer.head.clone(), answer.plain, answer.requested_at);
        let bytes = small_body(answer).await.ok()?;
        let received_at = self.clock.now();
        Some(Sidecar { at, head, bytes, plain, requested_at, received_at })
    }

    /// The document and its signature do not belong to the same snapshot, or somebody changed one of them. `None`: the document
    /// is given, and not kept.
    pub(super) fn out_of_step(
        &self,
        task: &Task,
        why: &str,
        pair: bool,
        may_repeat: bool,
    ) -> Option<AttemptResult> {
        let line =
            format!("{}: {why}; it and its signature are out of step, try again", task.target);
        if pair && may_repeat {
            return Some(AttemptResult::Again(End::undecided(line)));
        }
        self.say(task.bare(), why);
        if pair && self.has_previous(task, self.clock.now()) {
            return Some(AttemptResult::Ended(End::undecided(line)));
        }
        None
    }

    /// Keeps the sidecars that a document names.
    pub(super) async fn keep_sidecars(
        &self,
        task: &Task,
        sidecars: Vec<Sidecar>,
        members: &Members,
    ) {
        if members.rank != Rank::Signed {
            return;
        }
        for sidecar in sidecars {
            let named = members.sidecars.iter().find(|claim| claim.target == sidecar.at);
            if let Some(claim) = named.cloned() {
                self.keep_sidecar(task, sidecar, claim, members).await;
            }
        }
    }

    async fn keep_sidecar(&self, task: &Task, sidecar: Sidecar, claim: Claim, members: &Members) {
        let Some(known) = task.known() else {
            return;
        };
        let Some(mut own) = self.task_for(&sidecar.at, known.ecosystem, task.reach) else {
            return;
        };
        let by = IndexVersion {
            number: NOT_YET,
            shown: task.bare().to_string(),
            document: BlobId::new([0; 32]),
            confirmed: Time::from_millis(i64::MAX),
            superseded: None,
            rank: Rank::Signed,
            root: members.root.clone(),
            expired_key: false,
            signed_by: Some(members.signed_by.clone()),
        };
        let promise = Promise {
            by: Arc::new(by),
            index: Arc::new(task.bare().clone()),
            relation: Relation::InRoot,
            digests: claim.digests,
            size: claim.size,
            signed: false,
        };
        own.promised = Some(promise.clone());
        let expected = Expectation { promises: vec![promise], ..Expectation::nothing(Rank::None) };
        let kept = match self.spooled(sidecar, &expected).await {
            Ok(received) => match verify::judge(received, &expected, own.asked) {
                Verdict::Keep(verified, _) => {
                    let entry = self.entry_of(&own, None, &verified);
                    // The document may still turn out not to count.
                    let (store, spared) = (Arc::clone(&self.store), self.still_promised(&own));
                    let (keys, signers) = (self.keys.clone(), own.member_signers());
                    let commit = move || {
                        let entry = store.commit_beside(verified, entry, &spared)?;
                        lower_unsigned(&store, &keys, &entry, signers.as_deref());
                        Ok(())
                    };
                    tokio::task::spawn_blocking(commit)
                        .await
                        .unwrap_or_else(|gone| Err(gone.into()))
                }
                // It is not what the document names, so it is not kept.
                Verdict::Give(..) | Verdict::Doubt(..) | Verdict::Refuse(..) => Ok(()),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(url = %own.target, %error, "this signature could not be kept");
        }
    }

    async fn spooled(&self, sidecar: Sidecar, expected: &Expectation) -> io::Result<Received> {
        let (store, algorithms) = (Arc::clone(&self.store), expected.algorithms());
        let spooled = tokio::task::spawn_blocking(move || -> io::Result<Received> {
            let length = sidecar.bytes.len() as u64;
            let mut spool = store.spool(Some(length), algorithms).map_err(io::Error::other)?;
            spool.append(&sidecar.bytes).map_err(io::Error::other)?;
            Ok(Received {
                body: spool.finish(),
                head: sidecar.head,
                plain: sidecar.plain,
                answered_by: None,
                resumed: false,
                requested_at: sidecar.requested_at,
                received_at: sidecar.received_at,
            })
        });
        spooled.await?
    }
}
