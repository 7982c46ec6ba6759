//! Tags: indexes that only name a document which is immutable under its digest.
//!
//! ```text
//! HEAD ─┬─ names the stored copy's digest ──────────────▶ current
//!       ├─ names a digest ─▶ the document under it, from the store or by a fill of its own ─▶ kept under the tag
//!       └─ gives no usable digest ──────────────────────▶ an ordinary fill
//! ```
//!
//! A registry counts a GET of a manifest as a pull, and a HEAD not. So a tag costs no quota while it stays the same, and one pull
//! when it moves, whether clients then request it by tag or by digest: the manifest is kept under its digest, where both look.
//! The bytes are kept under the tag because the tag's own origin named their digest; the header fields are from the tag's own
//! answer.
//!
//! A tag is requested with its client's credential, and kept for that credential only. The document that it names is an artifact:
//! the public entry, or the private entry after a right was proved, or the result of a fill with the same credential. Whether the
//! tag is public is decided by larder's anonymous question (anonymous.rs); the public tag then answers everybody while the
//! registry fails.

use std::sync::Arc;

use hyper::StatusCode;

use super::Pipeline;
use super::answers::{is_failure, is_no};
use super::claims::ClaimReading;
use super::lead::AttemptResult;
use super::lookup::Lookup;
use super::rights::Right;
use super::task::Task;
use crate::digest::Digest;
use crate::ecosystem::{Recognised, Recognition, Shape};
use crate::entry::{Entry, Head};
use crate::flight::{End, Lead};
use crate::freshness::Demand;
use crate::origin::Answer;
use crate::outcome::cause::{Cause, Why};
use crate::proof::{Proof, Rank};
use crate::target::Target;

/// The result of asking about the tag.
enum TagAnswer {
    /// The tag names this document.
    At(Target, Digest, Box<Answer>),
    /// The flight ends so.
    Ended(End),
    /// The answer names no document; the tag is fetched like any index.
    Nowhere,
}

impl Pipeline {
    /// Brings a tag's flight to its end; `None` if the tag must be filled like any index. `stored`: the copy that may be
    /// revalidated.
    pub(super) async fn follow_tag(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        stored: Option<&Arc<Entry>>,
    ) -> Option<End> {
        let known = task.recognition.as_ref().filter(|_| task.is_tag())?;
        let (fixed, digest, answer) = match self.ask_tag(lead, task, stored).await {
            TagAnswer::At(fixed, digest, answer) => (fixed, digest, answer),
            TagAnswer::Ended(end) => return Some(end),
            TagAnswer::Nowhere => return None,
        };
        if let Some(entry) = stored.filter(|entry| entry.digests.contains(&digest)) {
            if task.principal.is_private() && !self.guards_head(task).await {
                // The credential's right may have ended, and this registry's HEAD does not show that.
                return None;
            }
            return match self.current(task, entry, &answer).await {
                AttemptResult::Ended(end) => {
                    if task.principal.is_private() {
                        self.ask_in_public(task, entry);
                    }
                    Some(end)
                }
                AttemptResult::Again(_) | AttemptResult::Unsettled(_) => None,
            };
        }
        let found = match self.fixed(task, known, &fixed).await {
            Ok(found) => found?,
            Err(end) => return Some(end),
        };
        let entry = self.entry_of_tag(task, &found, &answer);
        let store = Arc::clone(&self.store);
        let from = found.key;
        let linked = tokio::task::spawn_blocking(move || store.link_from(from, entry)).await;
        // If the ledger has no room, the tag is given like anything that is not stored.
        let entry = linked.ok()?.ok()?;
        if task.principal.is_private() {
            self.ask_in_public(task, &entry);
        } else {
            self.note_service(task);
        }
        let reading = ClaimReading { known: true, ..ClaimReading::of(known, task, &entry) };
        self.read_claims(reading, None).await;
        lead.flight.release(entry.proof);
        Some(End::Kept(entry))
    }

    async fn ask_tag(&self, lead: &Lead, task: &Task, stored: Option<&Arc<Entry>>) -> TagAnswer {
        let mut ask = task.ask(None, false);
        ask.head_only = true;
        // Requests with credentials are forwarded with them and never shared across credentials. A public tag that is stored may
        // be asked about anonymously, with an anonymous token where the registry requires one: a HEAD costs no quota.
        let fetched = match stored {
            Some(_) if !task.principal.is_private() => {
                Box::pin(self.origins.fetch_as_anybody(ask)).await.map(|(answer, _)| answer)
            }
            Some(_) | None => self.origins.fetch(ask).await,
        };
        let answer = match fetched {
            Ok(answer) => answer,
            Err(error) if error.is_temporary() => {
                self.note_failed(task, None);
                return TagAnswer::Ended(End::from(&error));
            }
            // Some servers fail at HEAD only.
            Err(_) => return TagAnswer::Nowhere,
        };
        let status = answer.head.status;
        if is_no(status) {
            self.forget_right(task).await;
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            // The client's own request gets the origin's answer.
            return TagAnswer::Ended(End::Pass);
        }
        if is_failure(status) && stored.is_some() {
            self.note_health(task, &answer, true);
            lead.flight.note_failure();
            let line = format!("{} answers {status}", task.target);
            return TagAnswer::Ended(End::Failed(status, Why::new(Cause::Status, line)));
        }
        // The explanation of a failure is in the body, which an answer to HEAD does not have.
        if status != StatusCode::OK || answer.plain {
            return TagAnswer::Nowhere;
        }
        self.note_health(task, &answer, true);
        match task.tags().and_then(|tags| tags.points_at(task.bare(), &answer.head)) {
            Some((fixed, digest)) => TagAnswer::At(fixed, digest, Box::new(answer)),
            None => TagAnswer::Nowhere,
        }
    }

    /// The document that a tag names; `None` if it cannot be kept, and `Err` if it cannot be fetched.
    async fn fixed(
        self: &Arc<Self>,
        task: &Task,
        known: &Recognition,
        fixed: &Target,
    ) -> Result<Option<Arc<Entry>>, End> {
        let ecosystem = known.ecosystem;
        let Recognised::Certain(resource) =
            ecosystem.recognise(&Shape { target: fixed, accept: "" })
        else {
            return Ok(None);
        };
        let recognition = Recognition { ecosystem, resource, certain: true };
        let task = Task::of_resource(fixed, recognition, task.reach, task.asked)
            .of(task.principal.clone(), &self.store.secret());
        if let Some(entry) = self.at_hand(&task).await {
            return Ok(Some(entry));
        }
        match self.land(task.clone(), None, None).await {
            // Another principal's fill may have brought it, to which this principal has no right.
            End::Kept(entry) | End::Current(entry) => {
                let may_have = self.may_have(&task, &entry).await;
                Ok(may_have.then_some(entry))
            }
            end @ (End::Refused(_) | End::Failed(..)) => Err(end),
            // The store is full, or the registry has the document under its tag only.
            End::Given | End::Relayed(_) | End::Pass | End::Handed => Ok(None),
        }
    }

    /// The stored artifact, if the principal may have it.
    async fn at_hand(self: &Arc<Self>, task: &Task) -> Option<Arc<Entry>> {
        let demand = Demand::default();
        if task.is_private_artifact()
            && let Some(open) = self.open_to_all(task, demand).await
        {
            return Some(open.entry);
        }
        let Lookup::Fresh(stored) = self.look_up_artifact(task, demand).await else {
            return None;
        };
        self.may_have(task, &stored.entry).await.then_some(stored.entry)
    }

    async fn may_have(self: &Arc<Self>, task: &Task, entry: &Arc<Entry>) -> bool {
        !task.is_private_artifact() || self.right_to(task, entry).await == Right::Yes
    }

    fn entry_of_tag(&self, task: &Task, found: &Entry, answer: &Answer) -> Entry {
        let now = self.clock.now();
        Entry {
            key: task.key,
            shown: task.bare().to_string(),
            variant: task.target.variant().to_owned(),
            partition: task.principal.reader(),
            ecosystem: task.ecosystem().to_owned(),
            index: true,
            blob: found.blob,
            size: found.size,
            digests: found.digests.clone(),
            head: Head { status: StatusCode::OK, headers: answer.head.headers.clone() },
            varied: Vec::new(),
            proof: Proof { private: task.principal.is_private(), ..Proof::of(Rank::Origin) },
            generation: self.store.generation(),
            answered_by: None,
            requested_at: answer.requested_at,
            received_at: now,
            checked_at: now,
        }
    }
}
