//! Artifacts that are requested with a credential.
//!
//! ```text
//!  public, and proven? ─ yes ─▶ reply
//!        │ no
//!  the target's private entry ── a right to it? ─ yes ─▶ reply, or revalidate
//!        │ none stored                          └─ no ──▶ the client's own request
//!        ▼
//!  one flight: its leader's credential fills, followers prove their right before they are given a byte (cached.rs)
//! ```

use std::sync::Arc;

use hyper::{Method, Response};

use super::answers::is_no;
use super::lookup::{Lookup, Stored};
use super::quarantine::QuarantineScope;
use super::record::Record;
use super::redirect::SentOn;
use super::rights::Right;
use super::task::Task;
use super::{Call, Pipeline};
use crate::freshness::Demand;
use crate::outcome::Outcome;
use crate::outcome::cause::Cause;
use crate::policy::PassReason;
use crate::reply::{Asked, Body};

/// The stored answer for a principal.
enum Found {
    /// Everybody may have it.
    Open(Stored),
    /// The private entry, and whether it may be given without revalidation.
    Guarded(Stored, bool),
    /// Nothing.
    Nothing,
}

impl Pipeline {
    /// Answers from the store if the principal has a right, or by a fill with its credential.
    pub(super) async fn from_private(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: Task,
        record: &mut Record,
    ) -> Response<Body> {
        let demand = Demand::of(&asked.headers);
        if self.is_unshared(&task) && !demand.only_if_cached {
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        if task.is_existence_check(call.request.method()) && !demand.only_if_cached {
            return self.check_existence(call, asked, &task, record).await;
        }
        self.wait_for_readers(&task).await;
        let mut found = self.find_private(&task, demand).await;
        let may_ask = matches!(found, Found::Nothing) && !demand.only_if_cached;
        if may_ask && self.fetch_prerequisites(&task).await > 0 {
            found = self.find_private(&task, demand).await;
        }
        let (stored, right) = match found {
            Found::Open(stored) => (Some(stored), Right::Yes),
            Found::Guarded(stored, fresh) => {
                let right = self.right_to(&task, &stored.entry).await;
                let ask = right == Right::Yes && !fresh;
                (Some(stored), if ask { Right::Revalidate } else { right })
            }
            Found::Nothing => (None, Right::Own),
        };
        let revalidated = match (stored, right) {
            (Some(mut stored), Right::Yes | Right::Remembered) => {
                let outcome = if right == Right::Yes { Outcome::Hit } else { Outcome::Stale };
                if outcome == Outcome::Stale {
                    stored.proof = stored.proof.stale();
                }
                self.read_stored(&task, &stored).await;
                let reply =
                    self.reply_stored(&call.connection, asked, &task, &stored, outcome, record);
                if let Some(response) = reply.await {
                    return response;
                }
                None
            }
            (stored, right) => stored.filter(|_| right == Right::Revalidate),
        };
        if demand.only_if_cached {
            return record.not_stored(&task.target);
        }
        if right == Right::No {
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        if revalidated.is_none() && asked.head_only {
            return self.pass_head(call, &task, record).await;
        }
        self.fly(call, asked, task, revalidated, record).await
    }

    async fn find_private(&self, task: &Task, demand: Demand) -> Found {
        if let Some(stored) = self.open_to_all(task, demand).await {
            return Found::Open(stored);
        }
        match self.look_up_artifact(task, demand).await {
            Lookup::Fresh(stored) => Found::Guarded(stored, true),
            Lookup::Stale(stored) => Found::Guarded(stored, false),
            Lookup::Miss => Found::Nothing,
        }
    }

    /// Passes the client's own request, and remembers what the origin says of the credential: a refusal ends the credential's
    /// right.
    pub(super) async fn pass_for(
        self: &Arc<Self>,
        call: Call,
        task: &Task,
        reason: PassReason,
        record: &mut Record,
    ) -> Response<Body> {
        let reads = matches!(*call.request.method(), Method::GET | Method::HEAD);
        let gets = call.request.method() == Method::GET;
        let connection = Arc::clone(&call.connection);
        if let Some(response) = self.in_own_name(&call, task, reason, record).await {
            if gets {
                self.note_root_passed(task, &connection, reason, response.status());
            }
            return response;
        }
        let response = self.pass(call, task.bare(), Some(task), reason, record).await;
        if gets {
            self.note_root_passed(task, &connection, reason, response.status());
        }
        if reads {
            self.memory.note_own(task, response.status().is_success());
        }
        // The origin's answer to the client's own request says nothing about the operator login.
        let shown = task.principal.is_private() && !task.principal.has_operator_login();
        // The redirect may lead to the blob's storage, or to a sign-in page. The next check of the right finds out which.
        let sent_on = response.extensions().get::<SentOn>().is_some();
        let elsewhere = sent_on || response.status().is_redirection();
        let is_no = sent_on || is_no(response.status());
        let may_lie_there = elsewhere && task.named_by_protocol().is_some();
        if reads && shown && is_no && !may_lie_there {
            self.forget_right(task).await;
        }
        response
    }

    /// The refusal while the target is in quarantine for this principal.
    pub(super) fn in_quarantine(&self, task: &Task, record: &mut Record) -> Option<Response<Body>> {
        let (whom, now) = (QuarantineScope::Principal(task.principal.reader()), self.clock.now());
        let reason = self.quarantines.reason(&task.target, whom, now)?;
        Some(record.reject(Cause::Quarantine, &reason))
    }
}
