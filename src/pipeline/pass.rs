//! Passes: the client's own request, streamed both ways and never shared.
//!
//! A request that larder does not know must work as it does without larder: every method, bodies of any length, upgrades,
//! trailers, and answers that arrive byte by byte. The only thing that a pass adds is promise P3 (held.rs).

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode, Version, header};

use super::bound::Bound;
use super::held::PassHold;
use super::late::Passed;
use super::record::Record;
use super::task::Task;
use super::{Call, Pipeline, upgrade};
use crate::digest::Wanted;
use crate::origin::{Answer, Gathered, ends_with_connection, is_unannounced};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::{self, Asked, Body, Cut, Line};
use crate::target::Target;

impl Pipeline {
    /// Sends the client's own request. If a promise binds the target of `task`, the answer is held to it.
    pub(super) async fn pass(
        self: &Arc<Self>,
        call: Call,
        target: &Target,
        task: Option<&Task>,
        reason: PassReason,
        record: &mut Record,
    ) -> Response<Body> {
        let Call { connection, mut request, reach } = call;
        let outcome = Outcome::Pass(reason);
        let method = request.method().clone();
        // With HTTP/2, a broken answer resets its stream and not the connection.
        let version = request.version();
        let line = (version < Version::HTTP_2).then(|| connection.line.clone());
        let read = task.filter(|_| method == Method::GET);
        if let Some(why) = read.and_then(|task| self.unread(task)) {
            return record.undecided(why);
        }
        let bound = read.and_then(|task| self.bound(task, connection.peer.ip(), reason));
        if bound.is_some() {
            hold_to_the_whole(request.headers_mut());
        }
        let range = request.headers().get(header::RANGE).cloned();
        let upgrading = hyper::upgrade::on(&mut request);
        let request = request.map(BodyExt::boxed_unsync);
        let onward = self.may_go_on(task, bound.is_some(), &request);
        let sending = self.send_on(&connection.passes, target, onward, request, reach, record);
        let mut response = match sending.await {
            Ok(response) => response,
            Err(text) => return text,
        };
        if !method.is_safe()
            && (response.status().is_success() || response.status().is_redirection())
        {
            let named = named_by(target, response.headers());
            self.memory.note_change(target, &named, self.clock.now());
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let theirs = hyper::upgrade::on(&mut response);
            tokio::spawn(upgrade::switch(upgrading, theirs, connection.line.clone()));
            return record.end(outcome, response.map(|_| reply::empty()));
        }
        if bound.is_some() && response.status() == StatusCode::PARTIAL_CONTENT {
            // larder did not ask for a part (RFC 9110 §15.3.7), and a client that resumes would complete a body with it.
            let line = format!(
                "{target} was answered with a part of it, though larder asked for the whole, which alone can be held to what \
                 is promised of it; ask without credentials and unknown header fields"
            );
            return record.fail(StatusCode::BAD_GATEWAY, &Why::new(Cause::Undecided, line));
        }
        // Clients complete a file with a 203 as with a 200.
        if let Some((bound, wanted)) = bound.filter(|_| response.status().is_success()) {
            let gathered = response.map(|body| connection.passes.gathered(target, body));
            let holding = PassHold { bound, wanted, version, line, reason };
            return Box::pin(self.hold(holding, gathered, record)).await;
        }
        let until_close = ends_with_connection(&response);
        let mut response = response.map(|body| {
            let (body, line) = (connection.passes.gathered(target, body), line.clone());
            Passing { body, line, until_close }.boxed_unsync()
        });
        if let Some(task) = read {
            let client = connection.peer.ip();
            let passed = Passed { task, client, reason, range, line };
            response = self.hold_when_promised(passed, response);
        }
        reply::set_cache_status(response.headers_mut(), outcome, None);
        record.end(outcome, response)
    }

    /// Sends a HEAD of something that is not stored to the origin. A HEAD does not start a fill, because many origins announce a
    /// different length in its answer.
    pub(super) async fn pass_head(
        self: &Arc<Self>,
        call: Call,
        task: &Task,
        record: &mut Record,
    ) -> Response<Body> {
        let mut response = self.pass_for(call, task, PassReason::Method, record).await;
        if response.status() == StatusCode::OK && task.artifact().is_some() {
            // larder will answer ranges of the file; pip and uv request ranges of a wheel only if they are announced.
            response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        response
    }

    /// What a pass is held to, and the digests to compute; `None` if no mismatch would refuse the body.
    fn bound(
        self: &Arc<Self>,
        task: &Task,
        client: IpAddr,
        reason: PassReason,
    ) -> Option<(Arc<Bound>, Wanted)> {
        let bound = self.bound_by(task, client, reason);
        let expected = self.expectation_of(&bound.task);
        if !expected.binds() && !self.flights.gaps().is_suspect(task.bare()) {
            return None;
        }
        let wanted = bound.task.wanted(expected.algorithms());
        Some((bound, wanted))
    }

    /// What a pass is held to once a promise binds it. The answer is what the origin has now, so today's promises apply, whatever
    /// snapshot the client has read.
    pub(super) fn bound_by(
        self: &Arc<Self>,
        task: &Task,
        client: IpAddr,
        reason: PassReason,
    ) -> Arc<Bound> {
        let mut task = task.clone();
        task.promised = None;
        // An unknown header field may hold a credential in a form that larder does not know.
        let public = task.is_public() && reason != PassReason::Header;
        let asked = self.clock.now();
        Arc::new(Bound { pipeline: Arc::clone(self), task, client, asked, public })
    }
}

/// The other URLs that the answer to an unsafe request names: the request may have changed or made them (RFC 9111 §4.4).
fn named_by(target: &Target, headers: &HeaderMap) -> Vec<Target> {
    let fields = [header::LOCATION, header::CONTENT_LOCATION].into_iter();
    fields.filter_map(|name| target.redirected(headers.get(name)?.to_str().ok()?)).collect()
}

/// Changes the request so that its answer is the whole file, uncoded: only that can be held to a promise. The origin may answer a
/// range request with the whole (RFC 9110 §14.2), and must accept `identity` (§12.5.3).
fn hold_to_the_whole(headers: &mut HeaderMap) {
    headers.remove(header::RANGE);
    headers.remove(header::IF_RANGE);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Gives an answer that no other client may have to the client that led the flight.
pub(super) fn handed(asked: &Asked, answer: Answer, record: &mut Record) -> Response<Body> {
    let outcome = Outcome::Pass(PassReason::Answer);
    let cookies = answer.cookies;
    let (head, length, line) = (answer.head.clone(), answer.length, asked.line.clone());
    let body = stream::unfold((answer.body, line), |(mut body, line)| async move {
        let piece = body.next().await?;
        let piece = piece.map(Frame::data).map_err(|error| {
            cut(line.as_ref());
            Cut(error.why())
        });
        Some((piece, (body, line)))
    });
    let mut response = Response::new(if asked.head_only {
        reply::empty()
    } else {
        StreamBody::new(body).boxed_unsync()
    });
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    reply::set_cache_status(response.headers_mut(), outcome, None);
    record.end(outcome, response)
}

fn cut(line: Option<&Line>) {
    if let Some(line) = line {
        line.cut();
    }
}

/// A body that is passed through. If it breaks, the client's connection is cut.
struct Passing {
    body: Gathered,
    line: Option<Line>,
    /// Whether only the end of the connection ends the body. A connection that ends without a TLS close alert then counts as the
    /// end, as clients treat it.
    until_close: bool,
}

impl HttpBody for Passing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Err(error)) = &frame
            && self.until_close
            && is_unannounced(error)
        {
            return Poll::Ready(None);
        }
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                cut(self.line.as_ref());
                Cut(Why::new(Cause::Broken, error.to_string()))
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
