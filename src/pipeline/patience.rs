//! How long a client waits for an origin when there is a stored copy to give in the place of its answer.
//!
//! ```text
//!  copy may be given stale? ─ no ──▶ the answer is waited for as long as a client does
//!        │ yes
//!  origin down? ─ no ──▶ `upstream.patience` for the head, then as long for each sign of progress ─▶ the copy
//!        │ yes                                            the question goes on by itself, and its answer is kept
//!  somebody asks already? ─ no ──▶ this request asks, and its client waits a second for the head ──▶ the copy
//!        │ yes
//!        └──▶ joins that question for a second, if it is about the same; else the copy at once
//! ```
//!
//! What is known of an origin is in `origin::health`. Its answer, to whomever, ends its being down.

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;

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

/// How long a client waits for an origin that is down, where something stored may be given in the place of its answer.
pub(super) const WAIT_FOR_FAILING: Duration = Duration::from_secs(1);

/// What a client waits for.
pub(super) struct Waiting<'a> {
    pub(super) task: &'a Task,
    /// Which brings it.
    pub(super) flight: &'a Arc<Flight>,
    /// What may be given in its place.
    pub(super) copy: Option<&'a Stored>,
}

impl Pipeline {
    /// Waits for `answer`; if that takes too long, the answer is a copy, where there is one that can be read.
    pub(super) async fn or_copy<T>(
        &self,
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

    /// Whether the task's origin is down towards who asks. Who stands in with a public pointer, and a token that was never seen,
    /// knows only how it is towards everybody.
    pub(super) fn is_down_for(&self, task: &Task) -> bool {
        let origin = task.target.origin();
        let is_down = |class| self.origins.is_down(origin, class, task.lane(), Some(task.key));
        is_down(task.class()) || task.is_pointer() && is_down(Partition::Public)
    }

    /// How long a client with a copy waits for the task's origin.
    pub(super) fn patience_for(&self, task: &Task) -> Duration {
        if self.is_down_for(task) {
            return WAIT_FOR_FAILING;
        }
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.patience(origin, class, lane)
    }

    /// Permission to ask about a stored copy; `None` while the origin is down and somebody asks.
    pub(super) fn question_about(&self, task: &Task) -> Option<Question> {
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.question(origin, class, lane, task.key)
    }

    /// Waits for `answer`, which `flight` brings, as long as a client does that can be given a copy. `None`: long enough.
    async fn within_patience<T>(
        &self,
        task: &Task,
        flight: &Flight,
        mut answer: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Option<T> {
        let was_down = self.is_down_for(task);
        let patience = self.patience_for(task);
        // Who comes late to a question waits for what is left.
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
                    // What it takes to complete a snapshot, say, or what another has noted of the origin meanwhile: the next
                    // one need not find out again.
                    self.origins.note_unfinished(task.key);
                } else if !was_down {
                    self.note_silence(task);
                }
                self.metrics.stood_in(if was_down { StoodIn::Down } else { StoodIn::Patience });
                return None;
            }
            // It moves.
            limit = patience;
        }
    }

    /// Whether a copy that was found before a wait is still stored, promised, and open to who asks: what came meanwhile may have ended
    /// that.
    pub(super) fn still_stands(&self, task: &Task, stored: &Stored) -> bool {
        let mut entries = self.store.entries(stored.entry.key).into_iter();
        let Some(entry) = entries.find(|entry| entry.blob == stored.entry.blob) else {
            return false;
        };
        let promised = task.artifact().is_none() || self.judged(task, &entry, &mut None).is_some();
        promised && self.still_has_right_to(task, &entry)
    }

    /// Gives a stored copy because its origin is down, or takes too long; `None` if it cannot be read, or may not be given any more.
    pub(super) async fn stand_in(
        &self,
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

    /// Starts a fill as a task of its own. It is given up when another question is asked in its place.
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

    /// Asks about a stored copy in the background, unless somebody does. Nobody waits for it, and its answer is kept.
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

    /// Asks in the background whether an origin that is down answers, unless somebody does; with a HEAD, whose answer is only
    /// looked at for that.
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
                answered = asking => answered.is_ok_and(|answer| !super::lead::is_failure(answer.head.status)),
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

    /// The task's origin let a client wait in vain.
    pub(super) fn note_silence(&self, task: &Task) {
        tracing::warn!(url = %task.target, "the origin does not answer; the stored copy is given, and the origin is asked in the background");
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.note_silence(origin, class, lane, task.key);
        self.count_down();
    }

    /// The task's origin failed, and asked to be left alone for so long.
    pub(super) fn note_failed(&self, task: &Task, retry_after: Option<Duration>) {
        let (origin, class, lane) = (task.target.origin(), task.class(), task.lane());
        self.origins.note_failure_of(origin, class, lane, task.key, retry_after);
        self.count_down();
    }

    /// The task's origin answered. `usual`: the time that it took is one that others may expect.
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
