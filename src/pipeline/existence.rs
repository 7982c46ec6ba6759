//! Two questions about the origin itself, which a copy must not answer while the origin can.
//!
//! A HEAD of a target that is named by its digest is an existence check: clients skip uploading blobs that the registry reports
//! as present, so that a copy's answer would cause a push without its layers. The API version check of a service tells its
//! clients whether to log in. Both are sent to the origin. While it fails, what is stored answers in its place, so that clients
//! of public content need neither a token nor the registry.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;
use hyper::{Method, Response};

use super::answers::{is_failure, retry_after};
use super::lookup::Stored;
use super::patience::WAIT_FOR_FAILING;
use super::record::Record;
use super::task::Task;
use super::{Call, Pipeline};
use crate::ecosystem::ALL;
use crate::ecosystem::facets::VersionCheck;
use crate::entry::{Entry, Head};
use crate::origin::{Ask, Challenge, Lane, Reach};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::{self, Asked, Body};
use crate::target::{Partition, Target};

/// How long an origin that is not known to be down is waited for. Clients abandon an API version check after fifteen seconds.
const WAIT: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Asks the origin whether it has the file; while the origin fails, a stored copy answers.
    pub(super) async fn check_existence(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: &Task,
        record: &mut Record,
    ) -> Response<Body> {
        let keys = [task.key, task.in_public().key];
        if keys.into_iter().all(|key| self.store.entries(key).is_empty()) {
            return self.pass_head(call, task, record).await;
        }
        let connection = Arc::clone(&call.connection);
        let answered = {
            let passed = self.pass_head(call, task, record);
            let ask = Ask { credential: None, ..task.ask(None, false) };
            self.unless_failing(ask, task.class(), passed).await
        };
        if let Some(response) = answered {
            return response;
        }
        let Some(entry) = self.stands_in(task).await else {
            return failing(task.bare(), record);
        };
        let proof = entry.proof.stale();
        let stored = Stored { entry, proof, usable: true };
        let reply = self.reply_stored(&connection, asked, task, &stored, Outcome::Stale, record);
        match reply.await {
            Some(response) => response,
            None => failing(task.bare(), record),
        }
    }

    /// The entry that answers in the place of an origin that has just failed: a public one, or one to which the principal had a
    /// right when the origin was last asked.
    async fn stands_in(self: &Arc<Self>, task: &Task) -> Option<Arc<Entry>> {
        let first = |key| self.store.entries(key).into_iter().next();
        if let Some(open) = first(task.in_public().key) {
            return Some(open);
        }
        let entry = first(task.key)?;
        // The answer to an existence check includes the header fields, so it needs the same right as the body.
        let asking = self.had_right_to(task, &entry);
        let right = tokio::time::timeout(WAIT_FOR_FAILING, asking).await.ok()?;
        right.then_some(entry)
    }

    /// Notes that the task's service now has something public in the store, if the task is anonymous.
    pub(super) fn note_service(&self, task: &Task) {
        if task.principal.is_private() {
            return;
        }
        let service = task.recognition.as_ref().and_then(|known| {
            Some((known.ecosystem.name(), known.ecosystem.api()?.service(task.bare())?))
        });
        if let Some((ecosystem, service)) = service {
            self.store.confirm_root(ecosystem, &service);
        }
    }

    /// The API version check of a service, if the request is one and something public of the service is stored.
    pub(super) fn version_check(&self, method: &Method, target: &Target) -> Option<VersionCheck> {
        if *method != Method::GET {
            return None;
        }
        ALL.iter().find_map(|ecosystem| {
            let version_check = ecosystem.api()?.version_check(target)?;
            self.store
                .is_confirmed(ecosystem.name(), &version_check.service)
                .then_some(version_check)
        })
    }

    /// Passes an API version check; while the origin fails, answers it. `class`: the principal whose origin health applies.
    pub(super) async fn answer_version_check(
        self: &Arc<Self>,
        call: Call,
        target: &Target,
        version_check: &VersionCheck,
        class: Partition,
        record: &mut Record,
    ) -> Response<Body> {
        let (asked, reach) = (call.asked(), call.reach);
        let answered = {
            let passed = self.pass(call, target, None, PassReason::Answer, record);
            self.unless_failing(Ask::plain(target.clone(), reach), class, passed).await
        };
        let challenge = answered.as_ref().and_then(challenge_of);
        let answered = match challenge {
            Some(challenge) if self.gives_no_token(&challenge, target, reach).await => None,
            Some(_) | None => answered,
        };
        answered.unwrap_or_else(|| {
            let body = bytes::Bytes::from_static(version_check.body.as_bytes());
            let response = reply::relayed(&asked, &version_check.head, body, Outcome::Stale);
            record.end(Outcome::Stale, response)
        })
    }

    /// Whether the token service fails to which the answer refers its client. The client would get no further without a token,
    /// and public content needs none here.
    async fn gives_no_token(&self, challenge: &Challenge, greeted: &Target, reach: Reach) -> bool {
        let realm = challenge.realm().origin();
        if self.origins.is_failing(realm, Partition::Public, Lane::Metadata) {
            return true;
        }
        let from_public = reach.from_public || realm != greeted.origin();
        let reach = Reach { from_public, ..reach };
        match tokio::time::timeout(WAIT, self.origins.anonymous_token(challenge, reach)).await {
            Ok(Ok(_)) => false,
            Ok(Err(error)) => error.is_temporary(),
            Err(_) => {
                self.origins.note_failure(realm, Partition::Public, Lane::Metadata, None);
                true
            }
        }
    }

    /// The origin's answer; `None` if the origin fails, or does not answer in time. `ask` is the request with which larder tests
    /// whether the origin is back. Failures count only for principals of this `class`, because a quota belongs to one account.
    async fn unless_failing(
        self: &Arc<Self>,
        ask: Ask,
        class: Partition,
        answer: impl Future<Output = Response<Body>>,
    ) -> Option<Response<Body>> {
        let (origin, lane) = (ask.target.origin().clone(), ask.lane);
        let down = self.origins.is_down(&origin, class, lane, None);
        if down {
            // The pass ends when its client stops waiting. This test may take longer to find that the origin is back.
            self.knock(ask, &origin, class, lane);
        }
        let limit = if down { WAIT_FOR_FAILING } else { WAIT };
        let answered = tokio::time::timeout(limit, Box::pin(answer)).await;
        let (failed, after) = match &answered {
            Ok(response) => (is_failure(response.status()), self.asked_to_wait(response.headers())),
            Err(_) => (true, None),
        };
        if failed {
            self.origins.note_failure(&origin, class, lane, after);
            return None;
        }
        self.origins.note_success(&origin, class, lane);
        answered.ok()
    }

    fn asked_to_wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(hyper::header::RETRY_AFTER)?.to_str().ok()?;
        retry_after(text, self.clock.now())
    }
}

fn challenge_of(response: &Response<Body>) -> Option<Challenge> {
    Challenge::of(&Head { status: response.status(), headers: response.headers().clone() })
}

fn failing(target: &Target, record: &mut Record) -> Response<Body> {
    let line = format!("{} does not answer; try again", target.origin());
    let status = hyper::StatusCode::GATEWAY_TIMEOUT;
    record.fail(status, &Why::new(Cause::Timeout, line))
}
