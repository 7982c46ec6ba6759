//! Requests under the operator login, for clients without a login of their own (`upstream.logins`).
//!
//! All such clients are one principal. Their fills carry the operator login, and the results are kept like those of any other
//! principal: apart from what is public. Such an entry becomes public only by larder's anonymous question (anonymous.rs). A
//! client that brings its own login does not use the operator login, whatever the origin answers it.
//!
//! Where the request of another principal would be passed, larder sends a canonical request here, so that the operator login is
//! never on a request that a client wrote. Its answer is not stored. If the origin refuses the operator login, the client's own
//! request is sent without it, so that a wrong operator login does not take access from any client.

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
    /// Answers a request that would be passed by a canonical request under the operator login. `None`: the client's own request
    /// must be sent.
    pub(super) async fn in_own_name(
        self: &Arc<Self>,
        call: &Call,
        task: &Task,
        reason: PassReason,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        // A request that policy passes has more than its target: a body, or a header field that larder does not know.
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
        if !task.principal.has_operator_login() || !is_canonical {
            return None;
        }
        let asked = call.asked();
        let binds = self.binds_today(task);
        if !asked.head_only && (binds || self.is_held_today(task)) {
            // The bytes would reach the client before they were judged (promise P3).
            return None;
        }
        let ask = Ask { head_only: asked.head_only, patient: true, ..task.ask(None, binds) };
        let answer = self.origins.fetch(ask).await.ok()?;
        if answer.head.status.is_redirection() && self.binds_today(task) {
            // The promise arrived while the request was under way.
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
        let passed = Passed { task, client, reason, range: None, line };
        Some(self.hold_when_promised(passed, response))
    }
}

/// The answer without its cookies, if it was requested under the operator login: clients must not share a session that this login
/// opened.
pub(super) fn without_session(task: &Task, mut answer: Answer) -> Answer {
    if task.principal.has_operator_login() {
        answer.cookies.clear();
    }
    answer
}
