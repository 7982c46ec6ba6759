//! How long a client waits for an origin when a stored copy could be given in place of its answer.
//!
//! ```text
//!  copy may be given stale? ─ no ──▶ wait for the answer as long as the client does
//!        │ yes
//!  origin down? ─ no ──▶ `upstream.patience` for the head, then as long for each sign of progress ─▶ the copy
//!        │ yes                                     the question continues in the background, and its answer is kept
//!  another request asking? ─ no ──▶ this request asks, and its client waits a second for the head ──▶ the copy
//!        │ yes
//!        └──▶ wait a second for that question if it is about the same target; otherwise the copy at once
//! ```
//!
//! The state of origins is in `origin::health`. Any answer of an origin, to any client, ends its being down.

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;

use super::answers::is_failure;
use super::lookup::Stored;
use super::record::Record;
use super::task::Task;
use super::{Call, Connection, Pipeline};
use crate::entry::Entry;
use crate::flight::{Flight, Lead, Permit};
use crate::origin::{Answer, Ask, Lane, Question};
use crate::outcome::Outcome;
use crate::outcome::metrics::StoodIn;
use crate::reply::{Asked, Body};
use crate::target::{Origin, Partition};

/// How long a client waits for an origin that is down, if a stored copy may be given in place of its answer.
pub(super) const WAIT_FOR_FAILING: Duration = Duration::from_secs(1);

/// What a client waits for.
pub(super) struct Waiting<'a> {
    pub(super) task: &'a Task,
    /// The flight that brings the answer.
    pub(super) flight: &'a Arc<Flight>,
    /// The stored copy that may be given in its place.
    pub(super) copy: Option<&'a Stored>,
}

impl Pipeline {
    /// Waits for `answer`. If that takes too long, the response is the stored copy, if there is one that can be read.
    pub(super) async fn or_copy<T>(
        self: &Arc<Self>,
        answer: impl Future<Output = T> + Send,
        waiting: &Waiting<'_>,
        (call, asked): (&Call, &Asked),
        record: &mut Record,
    ) -> ControlFlow<Response<Body>, T> {
        let mut answer = pin!(answer);
        let Some(copy) = waiting.copy else {
            return ControlFlow::Continue(answer.await);
        };
        if let Some(answer) =
            self.within_patience(waiting.task, waiting.flight, answer.as_mut()).await
        {
            return ControlFlow::Continue(answer);
        }
        let copy = self.stand_in(&call.connection, asked, waiting.task, copy.clone(), record);
        match copy.await {
            Some(response) => ControlFlow::Break(response),
            None => ControlFlow::Continue(answer.await),
        }
    }

    /// Whether the task's origin is down for the principal. The credential of a pull may be a new token, for which nothing is
    /// known of the origin; a public tag may stand in for such a pull, so there the state for anonymous requests counts as well.
    pub(super) fn is_down_for(&self, task: &Task) -> bool {
        let origin = task.target.origin();
        let is_down = |class| self.origins.is_down(origin, class, task.lane(), Some(task.key));
        is_down(task.class()) || task.is_tag() && is_down(Partition::Public)
    }

    /// How long a client that could be given a copy waits for the task's origin.
    pub(super) fn patience_for(&self, task: &Task) -> Duration {
        if self.is_down_for(task) {
            return WAIT_FOR_FAILING;
        }
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.patience(origin, class, lane)
    }

    /// Permission to ask the origin about a stored copy; `None` while the origin is down and another request asks it.
    pub(super) fn question_about(&self, task: &Task) -> Option<Question> {
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.question(origin, class, lane, task.key)
    }

    /// Waits for `answer`, which `flight` brings, for as long as a client waits that could be given a copy. `None`: it took too
    /// long.
    async fn within_patience<T>(
        &self,
        task: &Task,
        flight: &Flight,
        mut answer: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Option<T> {
        let was_down = self.is_down_for(task);
        let patience = self.patience_for(task);
        // A client that joins a question late waits only for what is left of the patience.
        let waited = self.clock.now().since(flight.began);
        let mut limit = patience.saturating_sub(waited).max(WAIT_FOR_FAILING.min(patience));
        loop {
            let before = (flight.has_head(), flight.have());
            if let Ok(answer) = tokio::time::timeout(limit, answer.as_mut()).await {
                return Some(answer);
            }
            let now = (flight.has_head(), flight.have());
            if now == before {
                let (has_head, _) = now;
                if has_head || !was_down && self.is_down_for(task) {
                    // The wait was for something else, the members of a snapshot for example, or another request has found the
                    // origin down meanwhile. Noted, so that the next client need not find it out again.
                    self.origins.note_unfinished(task.key);
                } else if !was_down {
                    self.note_silence(task);
                }
                self.metrics.stood_in(if was_down { StoodIn::Down } else { StoodIn::Patience });
                return None;
            }
            // The answer makes progress, so the full patience starts again.
            limit = patience;
        }
    }

    /// Whether a copy that was found before a wait is still stored, still promised, and still open to the principal. An answer
    /// that arrived meanwhile may have changed that.
    pub(super) fn still_stands(&self, task: &Task, stored: &Stored) -> bool {
        let mut entries = self.store.entries(stored.entry.key).into_iter();
        let Some(entry) = entries.find(|entry| entry.blob == stored.entry.blob) else {
            return false;
        };
        let promised = task.artifact().is_none() || self.judged(task, &entry, &mut None).is_some();
        promised && self.still_has_right_to(task, &entry)
    }

    /// Gives a stored copy because its origin is down or takes too long; `None` if the copy cannot be read, or may not be given
    /// any more.
    pub(super) async fn stand_in(
        self: &Arc<Self>,
        connection: &Connection,
        asked: &Asked,
        task: &Task,
        mut stored: Stored,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        if !self.still_stands(task, &stored) {
            return None;
        }
        stored.proof = stored.proof.stale();
        self.reply_stored(connection, asked, task, &stored, Outcome::Stale, record).await
    }

    /// Starts a fill as a task of its own. The fill is abandoned when another question takes the place of its `question`.
    pub(super) fn launch(
        self: &Arc<Self>,
        lead: Lead,
        task: Task,
        stored: Option<Arc<Entry>>,
        question: Option<Question>,
    ) {
        let pipeline = Arc::clone(self);
        tokio::spawn(async move {
            let filling = pipeline.lead(lead, task, stored);
            match question {
                None => filling.await,
                Some(question) => tokio::select! {
                    () = filling => {}
                    () = question.superseded() => {}
                },
            }
        });
    }

    /// Revalidates a stored copy in the background, unless another request does. No client waits for it, and its answer is kept.
    pub(super) fn ask_behind(self: &Arc<Self>, task: &Task, stored: &Arc<Entry>) {
        let Some(question) = self.question_about(task) else {
            return;
        };
        let now = self.clock.now();
        match self.flights.join(task.flight(), &task.target, Some(now), now) {
            Permit::Follow(_) => {}
            Permit::Lead(lead) => {
                self.launch(lead, task.clone(), Some(Arc::clone(stored)), Some(question));
            }
        }
    }

    /// Asks in the background whether an origin that is down answers, unless another request does. It sends a HEAD and looks only
    /// at whether the origin answered without failing.
    pub(super) fn knock(self: &Arc<Self>, ask: Ask, origin: &Origin, class: Partition, lane: Lane) {
        let key = ask.target.key(class);
        let Some(question) = self.origins.question(origin, class, lane, key) else {
            return;
        };
        let ask = Ask { head_only: true, range: None, patient: false, ..ask };
        let (pipeline, origin) = (Arc::clone(self), origin.clone());
        tokio::spawn(async move {
            let asking = pipeline.origins.fetch(ask);
            let answered = tokio::select! {
                answered = asking => answered.is_ok_and(|answer| !is_failure(answer.head.status)),
                () = question.superseded() => return,
            };
            if answered {
                pipeline.origins.note_success(&origin, class, lane);
            } else {
                pipeline.origins.note_failure(&origin, class, lane, None);
            }
            pipeline.count_down();
        });
    }

    /// Notes that the task's origin did not answer within a client's patience.
    pub(super) fn note_silence(&self, task: &Task) {
        tracing::warn!(url = %task.target, "the origin does not answer; the stored copy is given, and the origin is asked in the background");
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.note_silence(origin, class, lane, task.key);
        self.count_down();
    }

    /// Notes that the task's origin did not answer a passed request within its client's patience. larder keeps nothing of the
    /// answer, so a HEAD finds out when the origin answers again.
    pub(super) fn note_silent_pass(self: &Arc<Self>, task: &Task) {
        tracing::warn!(url = %task.target, "the origin does not answer; the stored copy is given");
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.note_failure(origin, class, lane, None);
        self.count_down();
        self.knock_for(task);
    }

    /// Asks in the background whether the task's origin answers again.
    pub(super) fn knock_for(self: &Arc<Self>, task: &Task) {
        self.knock(task.ask(None, false), task.target.origin(), task.class(), task.lane());
    }

    /// Notes that the task's origin failed, and the `Retry-After` that it sent.
    pub(super) fn note_failed(&self, task: &Task, retry_after: Option<Duration>) {
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.note_failure_of(origin, class, lane, task.key, retry_after);
        self.count_down();
    }

    /// Notes that the task's origin answered. `usual`: the time that it took is one that other requests may expect.
    pub(super) fn note_answered(&self, task: &Task, answer: &Answer, usual: bool) {
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        let took = usual.then(|| self.clock.now().since(answer.requested_at));
        self.origins.note_success_of(origin, class, lane, task.key, took);
        self.count_down();
    }

    fn count_down(&self) {
        self.metrics.origins_down(self.origins.down());
    }
}
