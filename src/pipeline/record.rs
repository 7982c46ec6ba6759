//! What is recorded of a request: one log line and the counters, when its answer has been sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::{Method, Request, Response, StatusCode};

use super::Connection;
use crate::clock::Stopwatch;
use crate::flight::Flight;
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::ended::Ended;
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::proof::Proof;
use crate::reply::{self, Body, Cut, Line};
use crate::target::Target;
use crate::target::shown::clipped;

/// What is known of a request so far.
#[derive(Debug)]
pub(super) struct Record {
    connection: u64,
    peer: std::net::IpAddr,
    /// The client's connection, which may be reset while the answer is being sent.
    line: Line,
    method: Method,
    /// The URL without secrets.
    shown: String,
    outcome: Outcome,
    proof: Option<Proof>,
    /// The flight that will know the proof, if it is not known yet.
    flight: Option<Arc<Flight>>,
    ecosystem: &'static str,
    /// The host of the URL.
    host: String,
    /// Why the request was not answered in the ordinary way, in words.
    why: Option<String>,
    /// Whether anybody may request this.
    public: bool,
    /// How long it took to fetch the stored body.
    fetched_in: Duration,
    /// The job that its client belongs to.
    job: Option<Arc<Job>>,
}

/// The longest method in the log, in bytes. No method is longer.
const METHOD: usize = 40;

impl Record {
    pub(super) fn new<B>(connection: &Connection, request: &Request<B>) -> Self {
        Self {
            connection: connection.id,
            peer: connection.peer.ip(),
            line: connection.line.clone(),
            method: request.method().clone(),
            shown: String::new(),
            // A request that is dropped before it is answered is not recorded; every answer replaces this value.
            outcome: Outcome::Failed(Cause::Abandoned),
            proof: None,
            flight: None,
            ecosystem: "",
            host: String::new(),
            why: None,
            public: false,
            fetched_in: Duration::ZERO,
            job: connection.job.clone(),
        }
    }

    pub(super) fn target(&mut self, target: &Target) {
        self.shown = target.to_string();
        self.host = target.origin().host.to_string();
    }

    /// Anybody may request this, and its URL may be shown to anybody.
    pub(super) fn is_public(&mut self) {
        self.public = true;
    }

    /// The body comes from the store, and fetching it took `time`.
    pub(super) fn fetched_in(&mut self, time: Duration) {
        self.fetched_in = time;
    }

    pub(super) fn ecosystem(&mut self, name: &'static str) {
        self.ecosystem = name;
    }

    pub(super) fn proof(&mut self, proof: Proof) {
        self.proof = Some(proof);
    }

    /// The proof will be that of the flight's body.
    pub(super) fn flight(&mut self, flight: &Arc<Flight>) {
        self.flight = Some(Arc::clone(flight));
    }

    /// Sets the reason for how the request will end, in words.
    pub(super) fn why(&mut self, why: String) {
        self.why = Some(why);
    }

    /// Sets how the request ended.
    pub(super) fn end(&mut self, outcome: Outcome, response: Response<Body>) -> Response<Body> {
        self.outcome = outcome;
        response
    }

    /// Whether a body was refused because it is not what was promised.
    pub(super) fn is_rejected(&self) -> bool {
        matches!(self.outcome, Outcome::Rejected(_))
    }

    /// larder refuses the request by its own decision.
    pub(super) fn refuse(
        &mut self,
        status: StatusCode,
        cause: Cause,
        line: &str,
    ) -> Response<Body> {
        if self.shown.is_empty() {
            // There is no target to show, so the log shows the reason in its place.
            line.clone_into(&mut self.shown);
        }
        self.say(status, Outcome::Refused(cause), line)
    }

    /// A body was not what was promised, and the client was given none of it.
    pub(super) fn reject(&mut self, cause: Cause, line: &str) -> Response<Body> {
        self.say(StatusCode::BAD_GATEWAY, Outcome::Rejected(cause), line)
    }

    /// The origin gave no answer, or larder cannot give the answer now.
    pub(super) fn fail(&mut self, status: StatusCode, why: &Why) -> Response<Body> {
        self.say(status, Outcome::Failed(why.cause), &why.text)
    }

    /// A claim that would decide cannot be read now.
    pub(super) fn undecided(&mut self, why: String) -> Response<Body> {
        self.fail(StatusCode::SERVICE_UNAVAILABLE, &Why::new(Cause::Undecided, why))
    }

    /// The client's response and the log have the same text.
    fn say(&mut self, status: StatusCode, outcome: Outcome, line: &str) -> Response<Body> {
        self.why = Some(line.to_owned());
        self.end(outcome, reply::text(status, line, outcome))
    }

    /// The request is `only-if-cached`, and nothing is stored.
    pub(super) fn not_stored(&mut self, target: &Target) -> Response<Body> {
        let line = format!("{target} is not stored, and the request says only-if-cached");
        self.refuse(StatusCode::GATEWAY_TIMEOUT, Cause::NotStored, &line)
    }

    /// Records everything when the last byte was sent, or when the client is gone.
    pub(super) fn into_response(
        self,
        response: Response<Body>,
        watch: Stopwatch,
        metrics: &Arc<Metrics>,
    ) -> Response<Body> {
        let status = response.status();
        reply::without_body(&self.method, response).map(|inner| {
            let metrics = Arc::clone(metrics);
            Counted {
                inner,
                bytes: 0,
                cut: false,
                began: None,
                status,
                watch,
                metrics,
                record: self,
            }
            .boxed_unsync()
        })
    }
}

/// A body that counts the bytes sent.
struct Counted {
    inner: Body,
    bytes: u64,
    cut: bool,
    /// The outcome with which it began, if it was cut.
    began: Option<Outcome>,
    status: StatusCode,
    watch: Stopwatch,
    metrics: Arc<Metrics>,
    record: Record,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Poll::Ready(Some(Err(Cut(why)))) => {
                // The outcome that was sent in the header is replaced by how the answer ended.
                let (outcome, why) = (cut_off(why), why.text.clone());
                self.cut = true;
                self.began = self.began.or(Some(self.record.outcome));
                self.record.outcome = outcome;
                self.record.why = Some(why);
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The outcome of an answer that was cut.
const fn cut_off(why: &Why) -> Outcome {
    if matches!(why.cause, Cause::Promise | Cause::Quarantine) {
        Outcome::Rejected(why.cause)
    } else {
        Outcome::Failed(why.cause)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let record = &self.record;
        let judged = || record.flight.as_ref().and_then(|flight| flight.proof());
        let took = self.watch.elapsed();
        let fetched = match self.began.unwrap_or(record.outcome) {
            // The bytes of a fill that this request started. Other requests may have read it as well.
            Outcome::Miss => record.flight.as_ref().map_or(self.bytes, |flight| flight.have()),
            Outcome::Rejected(_) | Outcome::Failed(_) => {
                record.flight.as_ref().map_or(0, |flight| flight.have())
            }
            Outcome::Pass(_) => self.bytes,
            Outcome::Hit
            | Outcome::Revalidated
            | Outcome::Stale
            | Outcome::Collapsed
            | Outcome::Tunnel
            | Outcome::Refused(_)
            | Outcome::Own => 0,
        };
        // A partial answer does not save the time that fetching the whole body took.
        let whole = record.outcome.is_hit() && self.status == StatusCode::OK && !self.cut;
        let saved = if whole { record.fetched_in.saturating_sub(took) } else { Duration::ZERO };
        Ended {
            host: &record.host,
            why: record.why.as_deref(),
            proof: record.proof.or_else(judged),
            ecosystem: record.ecosystem,
            status: self.status.as_u16(),
            bytes: self.bytes,
            fetched,
            took,
            saved,
            cut: self.cut || record.line.is_cut(),
            connection: Some(record.connection),
            public: record.public,
            job: record.job.as_deref(),
            ..Ended::new(
                record.outcome,
                record.peer,
                &clipped(record.method.as_str(), METHOD),
                &record.shown,
            )
        }
        .write_down(&self.metrics);
    }
}
