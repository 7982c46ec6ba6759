//! Requests in larder's own name: of clients without a login, where the operator gave larder one (`upstream.logins`).
//!
//! All such clients are one asker, who shows larder's login on its fills; what these bring is kept like any other asker's:
//! apart from what is public, which it becomes only by larder's anonymous question (anonymous.rs). A client that brings a
//! login of its own has nothing to do with this one, whatever its origin says to it.
//!
//! Where another asker's own request would be passed, a canonical one goes in larder's name, so that the login stands on
//! no request that a client wrote. Its answer is stored nowhere. What the login is refused is asked again by the client's
//! own request, without it: a wrong login takes nothing from anybody.

use std::sync::Arc;

use hyper::{Method, Response, StatusCode};

use super::late::Passed;
use super::record::Record;
use super::task::Task;
use super::{Call, Pipeline, pass};
use crate::origin::{Answer, Ask};
use crate::policy::PassReason;
use crate::reply::Body;

impl Pipeline {
    /// Answers a request that cannot be answered from here by one of larder's own. `None` if the client's has to do.
    pub(super) async fn in_own_name(
        self: &Arc<Self>,
        call: &Call,
        task: &Task,
        reason: PassReason,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        // What policy passes is more than its target says: a body, a field that larder does not know.
        let is_canonical = match reason {
            PassReason::Answer | PassReason::NoStore | PassReason::Starting => true,
            PassReason::Method => *call.request.method() == Method::HEAD,
            PassReason::Body
            | PassReason::Upgrade
            | PassReason::Credential
            | PassReason::Header
            | PassReason::Plain
            | PassReason::Host => false,
        };
        if !task.asker.is_larders() || !is_canonical {
            return None;
        }
        let asked = call.asked();
        let binds = self.binds_today(task);
        if !asked.head_only && (binds || self.is_held_today(task)) {
            // These bytes would reach the client unjudged (promise P3).
            return None;
        }
        let ask = Ask { head_only: asked.head_only, patient: true, ..task.ask(None, binds) };
        let answer = self.origins.fetch(ask).await.ok()?;
        if answer.head.status.is_redirection() && self.binds_today(task) {
            // The promise came meanwhile.
            return None;
        }
        let refused =
            matches!(answer.head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if refused {
            return None;
        }
        let mut answer = without_session(task, answer);
        answer.body.be_patient();
        answer.body.take_any_end();
        let response = pass::handed(&asked, answer, record);
        let (client, line) = (call.connection.peer.ip(), asked.line);
        Some(self.hold_when_promised(Passed { task, client, reason, line }, response))
    }
}

/// The answer as clients may see it: a session that was opened with larder's login is larder's.
pub(super) fn without_session(task: &Task, mut answer: Answer) -> Answer {
    if task.asker.is_larders() {
        answer.cookies.clear();
    }
    answer
}
