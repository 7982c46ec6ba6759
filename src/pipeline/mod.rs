//! The pipeline of one request. Only this module knows the order of the stages.
//!
//! ```text
//! identify ─▶ recognise ─▶ plan ─┬─ Pass ──────────────────────────────▶ pass.rs
//!                                └─ Keep, Revalidate ─▶ lookup.rs ─┬─ fresh ─▶ reply
//!                                                                  └─ stale, miss ─▶ flight ─▶ reply
//!                                             lead.rs: origin ─▶ intake ─▶ settle.rs: verify, commit, claims
//! ```
//!
//! No stage calls an earlier stage. Information flows back only through the ledger: a verified index leaves claims there, and a
//! later artifact request reads them. A document that larder fetches for a judgement passes through all stages (prerequisites.rs).

mod anonymous;
mod answers;
mod apart;
mod beside;
mod bound;
mod cached;
mod claims;
mod content_coding;
mod existence;
mod foreign_claims;
mod head_tests;
mod held;
mod in_use;
mod late;
mod lead;
mod lookup;
mod members;
mod operator_login;
mod other_status;
mod pass;
mod patience;
mod prerequisites;
mod principal;
mod private;
mod probe;
mod quarantine;
mod reading;
mod record;
mod redirect;
mod rights;
mod selection;
mod settle;
mod shared;
mod shelf;
mod sidecars;
mod signature;
mod signers;
mod snapshot_order;
mod snapshots;
mod starting;
mod successor;
mod tag;
mod task;
mod unknown_header;
pub mod unproven;
mod upgrade;
mod varied;
mod while_revalidating;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::body::{Body as _, Incoming};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version, header};

use crate::clock::{Clock, Stopwatch};
use crate::config::{self, Live};
use crate::ecosystem::{self, Kind, Recognition, Shape};
use crate::flight::{Flights, Gaps};
use crate::freshness::Demand;
use crate::keyring::Trusted;
use crate::origin::{Origins, Passes, Reach};
use crate::outcome::cause::{Cause, Why};
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::outcome::{Outcome, witness};
use crate::policy::{self, PassReason, Plan};
use crate::reply::{Asked, Body, Line};
use crate::store::Store;
use crate::target::identity::{self, Misdirected, Tunnel};
use crate::target::{Credential, Partition, Target, join_cookies};
use principal::Principal;
use quarantine::{QuarantineScope, Quarantines};
use reading::IndexReadings;
use record::Record;
use snapshots::SnapshotMemory;
use task::Task;

pub use lookup::{expectation, may_be_vouched};

/// The shared state that requests use.
#[derive(Debug)]
pub struct Pipeline {
    /// The configuration in force.
    pub config: Live,
    /// The clock that freshness and expiry are computed with.
    pub clock: Clock,
    /// Blobs, ledger and claims.
    pub store: Arc<Store>,
    /// The HTTP client for origins.
    pub origins: Arc<Origins>,
    /// The counters and alarms.
    pub metrics: Arc<Metrics>,
    flights: Arc<Flights>,
    quarantines: Quarantines,
    distrusted: beside::Distrusted,
    rights: rights::Rights,
    memory: lookup::Memory,
    keys: Trusted,
    logged: snapshot_order::LoggedOnce,
    heard: foreign_claims::ForeignClaimAlarms,
    reading: Arc<IndexReadings>,
    snapshots: SnapshotMemory,
    next_connection: AtomicU64,
    told: unknown_header::NamedHeaders,
}

/// One client connection. Inside a CONNECT tunnel it is the inner connection.
#[derive(Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The client's address. An IPv4-mapped IPv6 address is converted to IPv4.
    pub peer: SocketAddr,
    /// What CONNECT and the `ClientHello` named as the destination. `None` outside a tunnel.
    pub tunnel: Option<Tunnel>,
    /// The means to end the connection with a reset.
    pub line: Line,
    /// Upstream connections for this client's passes. No other client uses them.
    pub passes: Passes,
    /// Which snapshots of signed indexes this connection has read.
    read: members::ReadVersions,
    /// The job that its client belongs to.
    job: Option<Arc<Job>>,
}

/// A client's request and the connection that it came on. `Call` has no `Debug`, because its header fields hold the client's
/// credentials.
struct Call {
    connection: Arc<Connection>,
    request: Request<Incoming>,
    reach: Reach,
}

impl Pipeline {
    /// Builds a pipeline from its parts.
    pub fn new(
        config: Live,
        clock: Clock,
        store: Arc<Store>,
        origins: Arc<Origins>,
        metrics: Arc<Metrics>,
        keys: Trusted,
    ) -> Self {
        let (snapshots, unverified) = (SnapshotMemory::new(clock.now()), store.unverified());
        Self {
            config,
            clock,
            store,
            origins,
            metrics,
            flights: Flights::new(Gaps::new(unverified)),
            quarantines: Quarantines::default(),
            distrusted: beside::Distrusted::default(),
            rights: rights::Rights::default(),
            memory: lookup::Memory::default(),
            keys,
            logged: snapshot_order::LoggedOnce::default(),
            heard: foreign_claims::ForeignClaimAlarms::default(),
            reading: Arc::default(),
            snapshots,
            next_connection: AtomicU64::new(1),
            told: unknown_header::NamedHeaders::default(),
        }
    }

    /// Makes the state of a new client connection.
    pub fn connection(
        &self,
        peer: SocketAddr,
        tunnel: Option<Tunnel>,
        line: Line,
        job: Option<Arc<Job>>,
    ) -> Connection {
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let (passes, read) = (self.origins.passes(), members::ReadVersions::default());
        Connection { id, peer, tunnel, line, passes, read, job }
    }

    /// Answers a proxy request: one in absolute form, or any request inside a tunnel. A failure is an answer too.
    pub async fn serve(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let watch = Stopwatch::start();
        join_cookies(request.headers_mut());
        let mut record = Record::new(connection, &request);
        let response = match self.target_of(connection, &request) {
            Ok(target) => {
                record.target(&target);
                if witness::token(&target.origin().host).is_some() {
                    let answer = probe::answer(&request, &target, &self.metrics.witness);
                    let answer = record.end(Outcome::Own, answer);
                    return record.into_response(answer, watch, &self.metrics);
                }
                // Boxed: the futures below hold whole requests, and one connection may run many requests at a time.
                Box::pin(self.answer(connection, request, target, &mut record)).await
            }
            Err((status, why)) => record.refuse(status, why.cause, &why.text),
        };
        record.into_response(response, watch, &self.metrics)
    }

    /// Frees the memory of what was remembered of requests and has expired.
    pub fn tidy(&self) {
        self.memory.tidy();
    }

    /// Waits, at the end of a drain, for the fills that are under way.
    pub async fn drained(&self) {
        self.flights.landed().await;
    }

    /// The target of the request, or the status and the reason of its refusal.
    fn target_of(
        &self,
        connection: &Connection,
        request: &Request<Incoming>,
    ) -> Result<Target, (StatusCode, Why)> {
        let target =
            identity::identify(connection.tunnel.as_ref(), request).map_err(
                |error| match error {
                    Misdirected::Elsewhere(line) => {
                        (StatusCode::MISDIRECTED_REQUEST, Why::new(Cause::Identity, line))
                    }
                    Misdirected::Malformed(line) => {
                        (StatusCode::BAD_REQUEST, Why::new(Cause::Malformed, line))
                    }
                },
            )?;
        if self.origins.is_loop(request.headers()) {
            let line = format!(
                "{target} came back to this larder: a proxy in front of it, or its own upstream proxy, points here"
            );
            return Err((StatusCode::LOOP_DETECTED, Why::new(Cause::Loop, line)));
        }
        if *request.method() == Method::TRACE {
            let why = Why::new(Cause::Malformed, "TRACE is not passed on");
            return Err((StatusCode::METHOD_NOT_ALLOWED, why));
        }
        let origin = target.origin();
        let host = origin.host.text();
        if let Some(reason) = self.config.get().hosts.shut(&host, origin.port) {
            return Err((StatusCode::FORBIDDEN, Why::new(Cause::Host, reason)));
        }
        Ok(target)
    }

    async fn answer(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
        target: Target,
        record: &mut Record,
    ) -> Response<Body> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let client = QuarantineScope::Client(connection.peer.ip());
        if is_read && let Some(reason) = self.quarantines.reason(&target, client, self.clock.now())
        {
            return record.reject(Cause::Quarantine, &reason);
        }
        let recognition = ecosystem::recognise(&Shape {
            target: &target,
            accept: &task::joined(request.headers(), &header::ACCEPT),
        });
        let who = self.principal(request.headers(), &target, recognition.as_ref());
        let (recognition, likely) = self.confirmed(&target, recognition, who.reader());
        record
            .ecosystem(recognition.as_ref().map_or("", |recognition| recognition.ecosystem.name()));
        let known = planned_as(recognition.as_ref(), likely.as_ref());
        let plan = self.plan(&request, &target, known);
        // An unknown header field may hold a credential in a form that larder does not know, so such a request is not public.
        if is_read && !who.is_private() && !matches!(plan, Plan::Pass(PassReason::Header)) {
            record.is_public();
        }
        let unknown = match plan {
            Plan::Pass(PassReason::Header) => self.unknown_header(request.headers(), known),
            Plan::Pass(_) | Plan::Keep | Plan::Revalidate => String::new(),
        };
        let reach =
            Reach { internal_client: config::is_private(connection.peer.ip()), from_public: false };
        let call = Call { connection: Arc::clone(connection), request, reach };
        if let Some(version_check) = self.version_check(call.request.method(), &target) {
            return self
                .answer_version_check(call, &target, &version_check, who.reader(), record)
                .await;
        }
        let now = self.clock.now();
        let http = &self.config.get().http;
        let mut task = Task::of_request(&call.request, &target, recognition, likely, reach, now)
            .forwarding(&http.forwarded_headers, &http.harmless_headers)
            .of(who, &self.store.secret());
        self.choose(&mut task);
        match plan {
            Plan::Pass(PassReason::Header) => {
                self.pass_with_header(call, &task, &unknown, record).await
            }
            Plan::Pass(reason) => {
                record.why(reason.words().to_owned());
                self.pass_for(call, &task, reason, record).await
            }
            Plan::Keep | Plan::Revalidate if !self.knows_its_store().await => {
                if Demand::of(call.request.headers()).only_if_cached {
                    return record.not_stored(&task.target);
                }
                let asked = call.asked_with(task.selection.request());
                let reason = PassReason::Starting;
                self.pass_or_copy(call, &asked, &task, reason, record).await
            }
            Plan::Keep | Plan::Revalidate => {
                let asked = call.asked_with(task.selection.request());
                self.from_cache(call, &asked, task, record).await
            }
        }
    }

    fn plan(
        &self,
        request: &Request<Incoming>,
        target: &Target,
        known: Option<&Recognition>,
    ) -> Plan {
        let config = self.config.get();
        let host = target.origin().host.text();
        let mut tunnelled = config.hosts.tunnel.iter();
        if tunnelled.any(|pattern| pattern.matches(&host)) {
            // Tunnels to these hosts are spliced before any request is read. Only a request in absolute form gets here.
            return Plan::Pass(PassReason::Host);
        }
        let has_body = !request.body().is_end_stream();
        policy::plan(
            request,
            has_body,
            target,
            known,
            self.is_vouched(target, known),
            &config.http.harmless_headers,
        )
    }

    /// The principal of the request: the owner of the credential that the request carries. A request without a credential gets
    /// larder's own operator login, if one is configured for the origin.
    fn principal(
        &self,
        headers: &HeaderMap,
        target: &Target,
        recognition: Option<&Recognition>,
    ) -> Principal {
        let named = recognition.map_or(&[][..], |found| found.ecosystem.profile().login_headers);
        let (shown, secret) = (Credential::of(headers, target, named), self.store.secret());
        match (shown, self.origins.login(target.origin())) {
            (None, Some(login)) => Principal::operator_login(login, &secret),
            (shown, _) => Principal::new(shown, &secret),
        }
    }

    /// Returns the certain and the likely recognition, of which at most one is set. A likely recognition counts as certain once
    /// its root was confirmed, or once an index with authority over the target names the target.
    fn confirmed(
        &self,
        target: &Target,
        recognition: Option<Recognition>,
        reader: Partition,
    ) -> (Option<Recognition>, Option<Recognition>) {
        match recognition {
            Some(found) if self.counts(target, &found, reader) => (Some(found), None),
            likely => (None, likely),
        }
    }

    /// Whether a recognition counts as certain.
    fn counts(&self, target: &Target, found: &Recognition, reader: Partition) -> bool {
        let promised = || match &found.resource.kind {
            Kind::Artifact(artifact) => self.is_claimed(target, artifact, reader),
            Kind::Index => false,
        };
        found.certain
            || self.store.is_confirmed(found.ecosystem.name(), &found.resource.root)
            || promised()
    }

    /// What the task's target is as of now: a likely recognition may have been confirmed since the request came, by the very index
    /// that promises the body on its way.
    fn known_now<'a>(&self, task: &'a Task) -> Option<&'a Recognition> {
        let likely = || {
            let likely = task.likely.as_ref();
            likely.filter(|found| self.counts(task.bare(), found, task.principal.reader()))
        };
        task.recognition.as_ref().or_else(likely)
    }
}

impl Call {
    /// What the reply needs to know of this request.
    fn asked(&self) -> Asked {
        self.asked_with(Arc::new(self.request.headers().clone()))
    }

    /// Like [`Self::asked`], for a caller that has already copied the header fields.
    fn asked_with(&self, mut headers: Arc<HeaderMap>) -> Asked {
        let head_only = *self.request.method() == Method::HEAD;
        if head_only && headers.contains_key(header::RANGE) {
            // Ranges are defined for GET alone (RFC 9110 §14.2).
            Arc::make_mut(&mut headers).remove(header::RANGE);
        }
        let line = self.connection.line.clone();
        Asked {
            head_only,
            headers,
            line: (self.request.version() < Version::HTTP_2).then_some(line),
        }
    }
}

/// The recognition that `policy` plans with. An index that is only likely is planned like unknown content, but `policy` needs it
/// for the header fields that its ecosystem names. If such a field turned the request into a pass, no answer to that ecosystem's
/// clients would ever confirm the root.
fn planned_as<'a>(
    recognition: Option<&'a Recognition>,
    likely: Option<&'a Recognition>,
) -> Option<&'a Recognition> {
    recognition.or_else(|| likely.filter(|likely| likely.resource.kind == Kind::Index))
}

/// A pipeline for unit tests: an empty store below `data`, no trusted keys, the system's clock.
#[cfg(test)]
fn for_tests(data: &std::path::Path) -> Pipeline {
    use crate::config::Config;
    use crate::keyring::Keyring;

    let config = Live::new(Config { data: data.to_owned(), ..Config::default() });
    let clock = Clock::system();
    let store = Store::open(config.clone(), clock.clone()).unwrap();
    let origins = Origins::new(config.clone(), clock.clone()).unwrap();
    let keys = Trusted::new(Keyring::new());
    Pipeline::new(config, clock, store, origins, Arc::default(), keys)
}
