//! Promise P3 for passes: if a promise binds the target, the body is held to it, whoever the client is.
//!
//! The body goes through the spool as a fill's body does, as a flight that no other request joins and that ends when its client
//! leaves. So it shares the gap of its target with all other requests (`flight/share.rs`), and a body of a suspect target is held
//! back whole, however long it is. The body is judged (`bound.rs`) and never stored.

use std::sync::Arc;

use hyper::body::Body as _;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode, Version};

use super::Pipeline;
use super::bound::{Bound, Fault};
use super::record::Record;
use super::task::Task;
use crate::digest::{Digests, Wanted};
use crate::entry::Head;
use crate::flight::{Answered, End, Flight, Opened, Reader, take_in};
use crate::origin::{Gathered, ends_with_connection};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::range::Span;
use crate::reply::{self, Body, Line, Source};
use crate::store::Spool;

/// How a pass is held back and judged.
pub(super) struct PassHold {
    pub(super) bound: Arc<Bound>,
    /// The digests to compute.
    pub(super) wanted: Wanted,
    /// The version of the client's request.
    pub(super) version: Version,
    /// The means to end the client's connection with a reset.
    pub(super) line: Option<Line>,
    pub(super) reason: PassReason,
}

impl Pipeline {
    /// Gives the client the origin's answer. The gap is withheld until the whole body was judged.
    pub(super) async fn hold(
        self: &Arc<Self>,
        holding: PassHold,
        response: Response<Gathered>,
        record: &mut Record,
    ) -> Response<Body> {
        let PassHold { bound, wanted, version, line, reason } = holding;
        let until_close = ends_with_connection(&response);
        let (parts, body) = response.into_parts();
        let length = body.size_hint().exact();
        let flight = self.flights.alone(bound.task.bare(), self.clock.now());
        let mut reader = self.flights.reader(&flight);
        let spool = self.spool(length, wanted).await;
        let file = spool.as_ref().ok().map(Spool::reader);
        let head = Head { status: parts.status, headers: HeaderMap::new() };
        flight.begin(Answered { head, length }, file, true).await;
        self.compare_with_judged(&bound.task, &flight).await;
        let taking = Arc::clone(&flight);
        let came = Head { status: parts.status, headers: parts.headers.clone() };
        tokio::spawn(async move {
            let end = match take_in(&taking, body, until_close, spool).await {
                Ok(body) => match bound.judge(&came, &body).await {
                    Ok(vouched) => {
                        let (pipeline, task) = (&bound.pipeline, &bound.task);
                        let given = pipeline.given_whole(task, &taking, body.digests(), vouched);
                        given.unwrap_or_else(|| End::not_kept(&taking.target, vouched))
                    }
                    Err(Fault::Refused(reason)) => {
                        // As with fills (lead.rs): a client that was given no byte of an index has nothing to resume, so no
                        // quarantine is needed.
                        if !(bound.task.is_index() && taking.nothing_given()) {
                            taking.suspect().await;
                            bound.quarantine(&reason);
                        }
                        End::Refused(reason)
                    }
                    Err(Fault::Doubted(reason)) => {
                        let why = Why::new(Cause::Undecided, reason);
                        End::Failed(StatusCode::BAD_GATEWAY, why)
                    }
                },
                Err(reason) => End::Failed(StatusCode::BAD_GATEWAY, reason),
            };
            taking.finish(end);
        });
        let whole = Span { start: 0, end: length.unwrap_or(u64::MAX) };
        match first_bytes(&mut reader, version, whole).await {
            Opened::Answered(_) => {
                let outcome = Outcome::Pass(reason);
                let source = Source::Flight(reader);
                let mut response = reply::passed(parts, source, length, line);
                reply::set_cache_status(response.headers_mut(), outcome, None);
                record.end(outcome, response)
            }
            Opened::Ended(End::Refused(reason)) => record.reject(Cause::Promise, &reason),
            Opened::Ended(End::Failed(status, why)) => record.fail(status, &why),
            Opened::Ended(_) => {
                let why = Why::new(Cause::Broken, "the transfer was broken off; try again");
                record.fail(StatusCode::BAD_GATEWAY, &why)
            }
        }
    }

    /// The end of a body that is not kept, and that is what was promised or is contradicted by no promise. `vouched`: a promise
    /// vouches for it. `None` if it was only judged, and nothing of it can be given.
    pub(super) fn given_whole(
        self: &Arc<Self>,
        task: &Task,
        flight: &Flight,
        (digests, size): (&Digests, u64),
        vouched: bool,
    ) -> Option<End> {
        if vouched {
            flight.vouch();
        }
        if flight.is_only_judged() {
            if vouched {
                flight.remember_judged(digests, size);
            }
            return None;
        }
        if !vouched {
            self.compare_later(task, flight, digests, size);
        }
        Some(End::Given)
    }
}

/// Waits until the first byte may be given. A client that cannot tell a truncated body from a complete one (HTTP/1.0, whose
/// bodies may end with the connection) waits for the judgement, if there will be one. A body for which there is no room cannot wait
/// for that: it is given as it arrives if its length is announced, and the connection ends with a reset if it is cut.
pub(super) async fn first_bytes(reader: &mut Reader, version: Version, needed: Span) -> Opened {
    if version == Version::HTTP_10
        && reader.is_held()
        && let Some(end) = reader.judged_if_kept().await
    {
        return Opened::Ended(end);
    }
    reader.open(needed.start, needed.end).await
}
