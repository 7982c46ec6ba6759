//! What is written down of a request: one line in the log, the counters, when its answer has gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::{Method, Request, Response, StatusCode};

use super::Connection;
use crate::clock::Stopwatch;
use crate::flight::Flight;
use crate::outcome::Outcome;
use crate::outcome::metrics::{Direction, Metrics};
use crate::proof::Proof;
use crate::reply::{self, Body, Cut, Line};
use crate::target::Target;
use crate::target::shown::clipped;

/// What is known of a request so far.
#[derive(Debug)]
pub(super) struct Record {
    connection: u64,
    peer: std::net::IpAddr,
    /// The client's, which may be cut while its answer is under way.
    line: Line,
    method: Method,
    /// The URL without secrets.
    shown: String,
    outcome: Outcome,
    proof: Option<Proof>,
    /// Where the proof will be known, if it is not yet.
    flight: Option<Arc<Flight>>,
    ecosystem: &'static str,
    /// Why it was not answered as others are, where its outcome does not say it all.
    cause: Option<String>,
}

/// Longer than any method.
const METHOD: usize = 40;

impl Record {
    pub(super) fn new<B>(connection: &Connection, request: &Request<B>) -> Self {
        Self {
            connection: connection.id,
            peer: connection.peer.ip(),
            line: connection.line.clone(),
            method: request.method().clone(),
            shown: String::new(),
            outcome: Outcome::Failed,
            proof: None,
            flight: None,
            ecosystem: "",
            cause: None,
        }
    }

    pub(super) fn target(&mut self, target: &Target) {
        self.shown = target.to_string();
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

    /// Why it ended as it did, for the log.
    pub(super) fn cause(&mut self, cause: String) {
        self.cause = Some(cause);
    }

    /// The request ended so.
    pub(super) fn end(&mut self, outcome: Outcome, response: Response<Body>) -> Response<Body> {
        self.outcome = outcome;
        response
    }

    /// Whether a body was not what was promised.
    pub(super) fn is_rejected(&self) -> bool {
        self.outcome == Outcome::Rejected
    }

    /// larder refuses the request on purpose.
    pub(super) fn refuse(&mut self, status: StatusCode, line: &str) -> Response<Body> {
        if self.shown.is_empty() {
            // It names no target; why it does not is all there is to say.
            line.clone_into(&mut self.shown);
        }
        self.end(Outcome::Refused, reply::text(status, line, Outcome::Refused))
    }

    /// larder has no room for the request now, or cannot read what it would have to.
    pub(super) fn busy(&mut self, line: &str) -> Response<Body> {
        self.end(
            Outcome::Failed,
            reply::text(StatusCode::SERVICE_UNAVAILABLE, line, Outcome::Failed),
        )
    }

    /// The request wants what is stored, and nothing is.
    pub(super) fn not_stored(&mut self, target: &Target) -> Response<Body> {
        let line = format!("{target} is not stored, and the request says only-if-cached");
        self.refuse(StatusCode::GATEWAY_TIMEOUT, &line)
    }

    /// Writes everything down when the last byte has gone, or the client.
    pub(super) fn into_response(
        self,
        response: Response<Body>,
        watch: Stopwatch,
        metrics: &Arc<Metrics>,
    ) -> Response<Body> {
        let status = response.status();
        reply::without_body(&self.method, response).map(|inner| {
            let metrics = Arc::clone(metrics);
            Counted { inner, bytes: 0, cut: false, status, watch, metrics, record: self }
                .boxed_unsync()
        })
    }
}

/// A body that counts itself.
struct Counted {
    inner: Body,
    bytes: u64,
    cut: bool,
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
            Poll::Ready(Some(Err(_))) => self.cut = true,
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

impl Drop for Counted {
    fn drop(&mut self) {
        let record = &self.record;
        let judged = || record.flight.as_ref().and_then(|flight| flight.proof());
        let proof = record.proof.or_else(judged);
        self.metrics.ended(record.outcome, proof, record.ecosystem);
        self.metrics.bytes(Direction::ToClient, self.bytes);
        match record.outcome {
            Outcome::Hit | Outcome::Revalidated | Outcome::Stale => {
                self.metrics.bytes(Direction::FromStore, self.bytes);
            }
            Outcome::Pass(_) => self.metrics.bytes(Direction::FromOrigin, self.bytes),
            // What fills bring is counted where it arrives.
            Outcome::Miss
            | Outcome::Collapsed
            | Outcome::Tunnel
            | Outcome::Rejected
            | Outcome::Refused
            | Outcome::Failed
            | Outcome::Own => {}
        }
        let proof = proof.map_or_else(|| "-".to_owned(), |proof| proof.to_string());
        tracing::info!(
            target: "larder::request",
            outcome = %record.outcome,
            proof = %proof,
            status = self.status.as_u16(),
            bytes = self.bytes,
            ms = u64::try_from(self.watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            cut = self.cut || record.line.is_cut(),
            client = %record.peer,
            connection = record.connection,
            why = record.cause.as_ref().map(tracing::field::display),
            "{} {}", clipped(record.method.as_str(), METHOD), record.shown,
        );
    }
}
