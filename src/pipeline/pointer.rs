//! Indexes that only point at a document which stands for good under its digest: the tags of a registry.
//!
//! ```text
//! HEAD ─┬─ names the stored copy's digest ──────────────▶ current
//!       ├─ names a digest ─▶ the document under it, from the store or by a fill of its own ─▶ kept under the pointer
//!       └─ says nothing of use ─────────────────────────▶ an ordinary fill
//! ```
//!
//! A registry counts a GET of a manifest as a pull, and a HEAD not. So a tag costs no quota while it stands still, and
//! one pull when it moves, by whatever name its clients ask next: what came is kept under its digest, where they will look
//! for it. Bytes come under the pointer because its own origin named their digest; the header is the pointer's own.
//!
//! A pointer is asked with its reader's credential, and kept for that alone. What it points at is an artifact: the public
//! one, or the guarded one after a right was proved, or a fill with the same credential. Whether anybody is pointed there is
//! larder's own question (anonymous.rs); the public pointer then answers everybody while the registry fails.

use std::sync::Arc;

use hyper::StatusCode;

use super::lead::{Came, is_failure};
use super::lookup::Lookup;
use super::rights::Right;
use super::task::Task;
use super::{Pipeline, rights};
use crate::digest::Digest;
use crate::ecosystem::{Recognised, Recognition, Shape};
use crate::entry::{Entry, Head};
use crate::flight::{End, Lead};
use crate::freshness::Demand;
use crate::origin::Answer;
use crate::outcome::cause::{Cause, Why};
use crate::proof::{Proof, Rank};
use crate::target::Target;

/// What is to be done after the pointer was asked.
enum Pointed {
    /// To that document.
    At(Target, Digest, Box<Answer>),
    /// The flight has its end.
    Ended(End),
    /// Nowhere: it is fetched like any index.
    Nowhere,
}

impl Pipeline {
    /// Brings a pointer's flight to its end; `None` if it is to be filled like any index. `stored`: the copy that may be
    /// revalidated.
    pub(super) async fn follow_pointer(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        stored: Option<&Arc<Entry>>,
    ) -> Option<End> {
        let known = task.recognition.as_ref().filter(|_| task.is_pointer())?;
        let (fixed, digest, answer) = match self.ask_pointer(lead, task, stored).await {
            Pointed::At(fixed, digest, answer) => (fixed, digest, answer),
            Pointed::Ended(end) => return Some(end),
            Pointed::Nowhere => return None,
        };
        if let Some(entry) = stored.filter(|entry| entry.digests.contains(&digest)) {
            if task.asker.is_private() && !self.guards_head(task).await {
                // Its right may have ended, and a HEAD does not say so.
                return None;
            }
            return match self.current(task, entry, &answer).await {
                Came::Ended(end) => {
                    if task.asker.is_private() {
                        self.ask_in_public(task, entry);
                    }
                    Some(end)
                }
                Came::Again(_) | Came::Unsettled(_) => None,
            };
        }
        let found = match self.fixed(task, known, &fixed).await {
            Ok(found) => found?,
            Err(end) => return Some(end),
        };
        let entry = self.entry_of_pointer(task, &found, &answer);
        let store = Arc::clone(&self.store);
        let from = found.key;
        let linked = tokio::task::spawn_blocking(move || store.link_from(from, entry)).await;
        // Without room in the ledger the pointer is given like anything that is not stored.
        let entry = linked.ok()?.ok()?;
        if task.asker.is_private() {
            self.ask_in_public(task, &entry);
        } else {
            self.note_service(task);
        }
        self.read_claims(known, task.bare(), &entry, task.bare(), true, task.asker.reader()).await;
        lead.flight.release(entry.proof);
        Some(End::Kept(entry))
    }

    async fn ask_pointer(&self, lead: &Lead, task: &Task, stored: Option<&Arc<Entry>>) -> Pointed {
        let mut ask = task.ask(None, false);
        ask.head_only = true;
        // Who shows a credential is asked for with it, and nobody for another. What everybody was given may be asked about as
        // anybody, who needs no token for that: a HEAD costs no quota.
        let fetched = match stored {
            Some(_) if !task.asker.is_private() => {
                Box::pin(self.origins.fetch_as_anybody(ask)).await.map(|(answer, _)| answer)
            }
            Some(_) | None => self.origins.fetch(ask).await,
        };
        let answer = match fetched {
            Ok(answer) => answer,
            Err(error) if error.is_temporary() => {
                self.note_failed(task, None);
                return Pointed::Ended(End::from(&error));
            }
            // Some servers break a HEAD and nothing else.
            Err(_) => return Pointed::Nowhere,
        };
        let status = answer.head.status;
        if rights::is_no(status) {
            self.forget_right(task).await;
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            // The client hears what it would have heard.
            return Pointed::Ended(End::Pass);
        }
        if is_failure(status) && stored.is_some() {
            self.note_health(task, &answer, true);
            lead.flight.note_failure();
            let line = format!("{} answers {status}", task.target);
            return Pointed::Ended(End::Failed(status, Why::new(Cause::Status, line)));
        }
        // What there is to hear of a failure stands in the body, which a HEAD has none of.
        if status != StatusCode::OK || answer.plain {
            return Pointed::Nowhere;
        }
        self.note_health(task, &answer, true);
        match task.tags().and_then(|tags| tags.points_at(task.bare(), &answer.head)) {
            Some((fixed, digest)) => Pointed::At(fixed, digest, Box::new(answer)),
            None => Pointed::Nowhere,
        }
    }

    /// The document that a pointer points at; `None` if it cannot be kept, and an end if it cannot be had.
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
            .of(task.asker.clone(), &self.store.secret());
        if let Some(entry) = self.at_hand(&task).await {
            return Ok(Some(entry));
        }
        match self.land(task.clone(), None, None).await {
            // Another's fill may have brought it, to which this asker has no right.
            End::Kept(entry) | End::Current(entry) => {
                let may_have = self.may_have(&task, &entry).await;
                Ok(may_have.then_some(entry))
            }
            end @ (End::Refused(_) | End::Failed(..)) => Err(end),
            // The store is full, or the registry knows the document by its tag alone.
            End::Given | End::Relayed(_) | End::Pass | End::Handed => Ok(None),
        }
    }

    /// The stored artifact, if who asks may have it.
    async fn at_hand(self: &Arc<Self>, task: &Task) -> Option<Arc<Entry>> {
        let demand = Demand::default();
        if task.is_guarded()
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
        !task.is_guarded() || self.right_to(task, entry).await == Right::Yes
    }

    fn entry_of_pointer(&self, task: &Task, found: &Entry, answer: &Answer) -> Entry {
        let now = self.clock.now();
        Entry {
            key: task.key,
            shown: task.bare().to_string(),
            variant: task.target.variant().to_owned(),
            partition: task.asker.reader(),
            ecosystem: task.ecosystem().to_owned(),
            index: true,
            blob: found.blob,
            size: found.size,
            digests: found.digests.clone(),
            head: Head { status: StatusCode::OK, headers: answer.head.headers.clone() },
            varied: Vec::new(),
            proof: Proof { private: task.asker.is_private(), ..Proof::of(Rank::Origin) },
            generation: self.store.generation(),
            answered_by: None,
            requested_at: answer.requested_at,
            received_at: now,
            checked_at: now,
        }
    }
}
