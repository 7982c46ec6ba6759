//! Follows redirects of a pass on the client's behalf, because a claim governs the bytes to which the client would be
//! redirected.
//!
//! A hop repeats the client's own request, on a connection that belongs to the client. To another origin it takes only
//! the fields that select the form of the answer: no login, and no field unknown to larder, which might be one. A
//! request that has left its origin stays without them even if a hop leads back: only the origin itself may decide
//! where its clients' logins are sent.
//!
//! Not here: which claims govern, and what is done with the answer.

use std::fmt;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_LENGTH, EXPECT, HOST,
    HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, PRAGMA, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING, UPGRADE, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, Version};

use super::error::{Fault, OriginError};
use super::expect::UpBody;
use super::pass::{AnswerSource, Passes};
use super::redirect::{Trail, permitted};
use super::{Reach, hop};
use crate::target::Target;

/// The fields that a request takes to another origin.
const TAKEN: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    PRAGMA,
    USER_AGENT,
];

/// Fields with which an origin describes itself. They are removed from another origin's answer, because the client
/// would apply them to the origin that it requested. For example, it would answer a challenge with its login for the
/// requested origin.
const OF_AN_ORIGIN: [HeaderName; 5] = [
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    WWW_AUTHENTICATE,
    HeaderName::from_static("authentication-info"),
    HeaderName::from_static("clear-site-data"),
];

/// The parts of a request that are repeated at the target of a redirect. `Debug` shows no field, because they hold the
/// client's credentials.
pub struct RepeatableRequest {
    method: Method,
    version: Version,
    headers: HeaderMap,
    /// Whether the request had a body, which has been sent and is gone.
    had_body: bool,
}

impl fmt::Debug for RepeatableRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("method", &self.method).finish_non_exhaustive()
    }
}

impl RepeatableRequest {
    /// Copies what is needed of `request`, before it is sent.
    pub fn of(request: &Request<UpBody>) -> Self {
        let mut headers = request.headers().clone();
        hop::strip(&mut headers);
        for name in [CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE] {
            headers.remove(name);
        }
        Self {
            method: request.method().clone(),
            version: request.version(),
            headers,
            had_body: !request.body().is_end_stream(),
        }
    }

    fn leave_its_origin(&mut self) {
        let all = std::mem::take(&mut self.headers);
        for name in &TAKEN {
            for value in all.get_all(name) {
                self.headers.append(name, value.clone());
            }
        }
    }

    fn request(&self) -> Request<UpBody> {
        let nothing = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(nothing);
        *request.method_mut() = self.method.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Passes {
    /// Follows the redirect `answer` of `target` as far as clients do. Returns the final answer and its target. An
    /// answer that is no redirect is returned as it is.
    pub async fn onward(
        &self,
        target: &Target,
        mut answer: Response<Incoming>,
        mut again: RepeatableRequest,
        mut reach: Reach,
    ) -> Result<(Response<Incoming>, Target), OriginError> {
        let mut trail = Trail::new(target);
        let mut at = target.clone();
        loop {
            let failed = |fault| OriginError::new(&at, fault);
            let Some(next) = trail.next(answer.status(), answer.headers()).map_err(failed)? else {
                if at.origin() != target.origin() {
                    for name in &OF_AN_ORIGIN {
                        answer.headers_mut().remove(name);
                    }
                }
                return Ok((answer, at));
            };
            if again.had_body {
                let why = "it redirects a request with a body, which has been sent already";
                return Err(failed(Fault::Redirects(why.into())));
            }
            permitted(&next, &self.config().hosts).map_err(failed)?;
            if next.origin() != target.origin() {
                again.leave_its_origin();
            }
            let whence = answer.extensions().get::<AnswerSource>();
            reach.from_public |= whence.is_none_or(|whence| whence.public);
            answer = self.send(&next, again.request(), reach).await?;
            at = next;
        }
    }
}
