//! Promise P3 where an origin redirects a pass: the client is not led to a URL of which nothing is promised.
//!
//! A client that is handed a redirect follows it, through larder or around it, and whatever it finds there becomes the file
//! that was promised. So where a promise binds the target, larder follows in the client's place, and what comes is held to
//! the promise like every answer to a pass (held.rs). What cannot be followed is refused. A HEAD is followed as well: some
//! clients ask by HEAD first, and GET where it led them.
//!
//! Where no promise binds, every redirect reaches the client as it came.

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};

use super::Pipeline;
use super::lead::is_page;
use super::record::Record;
use super::task::Task;
use crate::entry::Head;
use crate::origin::{Again, OriginError, Passes, Reach, UpBody};
use crate::outcome::cause::{Cause, Why};
use crate::reply::Body;
use crate::target::Target;

/// The answer's extension that says that a redirect was followed, or would have been.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentOn;

/// A request to which a promise may bind the answer, remembered in case it is redirected.
pub(super) struct Onward<'a> {
    task: &'a Task,
    /// The request, where a promise bound when it was sent.
    again: Option<Again>,
}

impl Pipeline {
    /// To be asked for before `request` is sent; `held`: its answer is held to a promise. `None`: its redirects are its
    /// client's business.
    pub(super) fn may_go_on<'a>(
        &self,
        task: Option<&'a Task>,
        held: bool,
        request: &Request<UpBody>,
    ) -> Option<Onward<'a>> {
        let task = task.filter(|_| matches!(*request.method(), Method::GET | Method::HEAD))?;
        let binds = held || *request.method() == Method::HEAD && self.binds_today(task);
        Some(Onward { task, again: binds.then(|| Again::of(request)) })
    }

    /// Sends a pass, and follows the redirect that answers it if a promise binds its target; `Err` is what the client hears in
    /// its place.
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

    /// Whether a promise binds what is at the task's target now, whatever its client has read of an earlier generation.
    pub(super) fn binds_today(&self, task: &Task) -> bool {
        let mut task = task.clone();
        task.promised = None;
        self.expectation_of(&task).binds()
    }

    /// Whether what is at the task's target is given to nobody unjudged: a promise binds it, or a body of it was refused.
    pub(super) fn is_held_today(&self, task: &Task) -> bool {
        self.binds_today(task) || self.flights.gaps().is_suspect(task.bare())
    }

    /// Follows a redirect that a promise binds; any other answer comes back as it is.
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
            // The promise may have come while the origin thought.
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
        // curl follows a `Location` of a 304, and browsers a `Refresh` of anything.
        for name in [header::LOCATION, header::REFRESH] {
            answer.headers_mut().remove(name);
        }
        Ok(answer)
    }
}

/// The redirect could not be followed to its end.
fn unfollowed(target: &Target, error: &OriginError, record: &mut Record) -> Response<Body> {
    if error.fault().is_of_the_way() {
        return refused(target, &error.to_string(), record);
    }
    let line = format!("{target} redirects, and there was no answer: {error}");
    sent_on(record.fail(error.status(), &Why::new(error.fault().cause(), line)))
}

/// No failure of the client's, whatever hindered it.
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
