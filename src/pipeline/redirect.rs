//! Promise P3 where an origin redirects a pass: larder does not send the client to a URL that no promise covers.
//!
//! A client follows a redirect, through larder or around it, and takes what it finds there for the promised file. So if a promise
//! binds the target, larder follows the redirect itself, and holds the result to the promise like every answer to a pass
//! (held.rs). A redirect that cannot be followed is refused. larder also follows for a HEAD: some clients send a HEAD first, and
//! then a GET to where it led them.
//!
//! If no promise binds the target, the redirect is given to the client unchanged.

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};

use super::Pipeline;
use super::answers::is_page;
use super::record::Record;
use super::task::Task;
use crate::entry::Head;
use crate::origin::{OriginError, Passes, Reach, RepeatableRequest, UpBody};
use crate::outcome::cause::{Cause, Why};
use crate::reply::Body;
use crate::target::Target;

/// An extension of the response: a redirect was followed, or was refused because it could not be followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentOn;

/// A request whose answer a promise may bind, remembered in case the answer is a redirect.
pub(super) struct Onward<'a> {
    task: &'a Task,
    /// The request, if a promise bound its target when it was sent.
    again: Option<RepeatableRequest>,
}

impl Pipeline {
    /// Must be called before `request` is sent. `held`: its answer is held to a promise. `None`: redirects are given to the
    /// client unchanged.
    pub(super) fn may_go_on<'a>(
        &self,
        task: Option<&'a Task>,
        held: bool,
        request: &Request<UpBody>,
    ) -> Option<Onward<'a>> {
        let task = task.filter(|_| matches!(*request.method(), Method::GET | Method::HEAD))?;
        let binds = held || *request.method() == Method::HEAD && self.binds_today(task);
        Some(Onward { task, again: binds.then(|| RepeatableRequest::of(request)) })
    }

    /// Sends a pass, and follows the redirect that answers it if a promise binds the target. `Err` is the response to the client
    /// in place of the answer.
    pub(super) async fn send_on(
        &self,
        passes: &Passes,
        target: &Target,
        onward: Option<Onward<'_>>,
        request: Request<UpBody>,
        reach: Reach,
        record: &mut Record,
    ) -> Result<Response<Incoming>, Response<Body>> {
        let answer = match passes.send(target, request, reach).await {
            Ok(answer) => answer,
            Err(error) => return Err(record.fail(error.status(), &error.why())),
        };
        match onward {
            Some(onward) => Box::pin(self.go_on(onward, passes, reach, answer, record)).await,
            None => Ok(answer),
        }
    }

    /// Whether a promise binds the task's target now. The snapshot that its client has read is left out of account.
    pub(super) fn binds_today(&self, task: &Task) -> bool {
        let mut task = task.clone();
        task.promised = None;
        self.expectation_of(&task).binds()
    }

    /// Whether nothing of the task's target may be given before it was judged: a promise binds it, or a body of it was refused.
    pub(super) fn is_held_today(&self, task: &Task) -> bool {
        self.binds_today(task) || self.flights.gaps().is_suspect(task.bare())
    }

    /// Follows a redirect if a promise binds the target; any other answer is returned as it is.
    async fn go_on(
        &self,
        Onward { task, again }: Onward<'_>,
        passes: &Passes,
        reach: Reach,
        mut answer: Response<Incoming>,
        record: &mut Record,
    ) -> Result<Response<Incoming>, Response<Body>> {
        let target = task.bare();
        let redirects =
            answer.status().is_redirection() && answer.status() != StatusCode::NOT_MODIFIED;
        let Some(again) = again else {
            // The promise may have come while larder waited for the answer.
            if redirects && self.binds_today(task) {
                let why = "an index that promises its bytes came meanwhile; try again";
                return Err(refused(target, why, record));
            }
            return Ok(answer);
        };
        if redirects {
            let (at_its_end, by) = match passes.onward(target, answer, again, reach).await {
                Ok(followed) => followed,
                Err(error) => return Err(unfollowed(target, &error, record)),
            };
            answer = at_its_end;
            answer.extensions_mut().insert(SentOn);
            let head = Head { status: answer.status(), headers: answer.headers().clone() };
            if answer.status().is_success() && task.artifact().is_some() && is_page(&head) {
                let why = format!("it leads to a page at {by}, perhaps one to sign in at");
                return Err(refused(target, &why, record));
            }
        }
        // curl follows the `Location` of a 304, and browsers follow `Refresh` in any answer.
        for name in [header::LOCATION, header::REFRESH] {
            answer.headers_mut().remove(name);
        }
        Ok(answer)
    }
}

/// The response when a redirect could not be followed to its end.
fn unfollowed(target: &Target, error: &OriginError, record: &mut Record) -> Response<Body> {
    if error.fault().is_of_the_way() {
        return refused(target, &error.to_string(), record);
    }
    let line = format!("{target} redirects, and there was no answer: {error}");
    sent_on(record.fail(error.status(), &Why::new(error.fault().cause(), line)))
}

/// The response is a 502, because the client has done nothing wrong.
fn refused(target: &Target, why: &str, record: &mut Record) -> Response<Body> {
    let line = format!(
        "{target} redirects where larder cannot follow: {why}. Its bytes are promised, and nothing is promised of where a client \
         would be led, so the redirect is not handed on"
    );
    tracing::warn!(target: "larder::refused", url = %target, why, "refused: a redirect that cannot be followed");
    sent_on(record.refuse(StatusCode::BAD_GATEWAY, Cause::Redirect, &line))
}

fn sent_on(mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(SentOn);
    response
}
