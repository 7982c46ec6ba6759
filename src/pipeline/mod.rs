//! One request, one way: the only place that knows the order of the stages.
//!
//! ```text
//! identify ─▶ recognise ─▶ plan ─┬─ Pass ──────────────────────────────▶ pass.rs
//!                                └─ Keep, Revalidate ─▶ lookup.rs ─┬─ fresh ─▶ reply
//!                                                                  └─ stale, miss ─▶ flight ─▶ reply
//!                                             lead.rs: origin ─▶ intake ─▶ settle.rs: verify, commit, claims
//! ```
//!
//! No stage calls an earlier one. The one way back is the ledger: a verified index leaves claims there, a later artifact
//! request reads them. Documents that a judgement needs go the same way from the start (documents.rs).

mod anonymous;
mod apart;
mod asker;
mod beside;
mod bound;
mod cached;
mod claims;
mod coded;
mod companions;
mod documents;
mod editions;
mod elsewhere;
mod generation;
mod guarded;
mod heads;
mod held;
mod larders;
mod late;
mod lead;
mod lookup;
mod meanwhile;
mod members;
mod onward;
mod others;
mod pass;
mod patience;
mod pointer;
mod presence;
mod probe;
mod quarantine;
mod reading;
mod record;
mod rights;
mod settle;
mod shared;
mod shelf;
mod signature;
mod successor;
mod task;
mod unknown_header;
mod varied;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
use asker::Asker;
use generation::Generations;
use quarantine::{Quarantines, Whom};
use reading::Reading;
use record::Record;
use task::Task;

pub use lookup::{expectation, may_be_vouched};

/// How long a request waits for the records to be read before it goes to its origin.
const WAIT_FOR_RECORDS: Duration = Duration::from_secs(1);

/// Everything a request meets on its way.
#[derive(Debug)]
pub struct Pipeline {
    /// The configuration in force.
    pub config: Live,
    /// The time.
    pub clock: Clock,
    /// Blobs, ledger and claims.
    pub store: Arc<Store>,
    /// The HTTP client.
    pub origins: Arc<Origins>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    flights: Arc<Flights>,
    quarantines: Quarantines,
    distrusted: beside::Distrusted,
    rights: rights::Rights,
    memory: lookup::Memory,
    keys: Trusted,
    editions: editions::Said,
    heard: elsewhere::Heard,
    reading: Arc<Reading>,
    generations: Generations,
    next_connection: AtomicU64,
    told: unknown_header::Told,
}

/// One client connection; inside a CONNECT, the inner one.
#[derive(Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The client's address, v4-mapped ones normalised.
    pub peer: SocketAddr,
    /// What CONNECT and the `ClientHello` said, inside a tunnel.
    pub tunnel: Option<Tunnel>,
    /// The means to end it with a reset.
    pub line: Line,
    /// Upstream connections for its passes; nothing else ever uses them.
    pub passes: Passes,
    /// Which versions of signed indexes it has read.
    read: members::Read,
    /// The job that its client belongs to.
    job: Option<Arc<Job>>,
}

/// A client's request, and what it came on. It has no `Debug`: its header fields hold the client's credentials.
struct Call {
    connection: Arc<Connection>,
    request: Request<Incoming>,
    reach: Reach,
}

impl Pipeline {
    /// A pipeline over these parts.
    pub fn new(
        config: Live,
        clock: Clock,
        store: Arc<Store>,
        origins: Arc<Origins>,
        metrics: Arc<Metrics>,
        keys: Trusted,
    ) -> Self {
        let (generations, unverified) = (Generations::new(clock.now()), store.unverified());
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
            editions: editions::Said::default(),
            heard: elsewhere::Heard::default(),
            reading: Arc::default(),
            generations,
            next_connection: AtomicU64::new(1),
            told: unknown_header::Told::default(),
        }
    }

    /// What belongs to a client's new connection.
    pub fn connection(
        &self,
        peer: SocketAddr,
        tunnel: Option<Tunnel>,
        line: Line,
        job: Option<Arc<Job>>,
    ) -> Connection {
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let (passes, read) = (self.origins.passes(), members::Read::default());
        Connection { id, peer, tunnel, line, passes, read, job }
    }

    /// Answers a proxy request: in absolute form, or any inside a tunnel. What goes wrong is an answer, too.
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
                // Boxed: the futures below hold whole requests, and a connection may run many at a time.
                Box::pin(self.answer(connection, request, target, &mut record)).await
            }
            Err((status, why)) => record.refuse(status, why.cause, &why.text),
        };
        record.into_response(response, watch, &self.metrics)
    }

    /// Waits for the fills that are under way, at the end of a drain.
    pub async fn drained(&self) {
        self.flights.landed().await;
    }

    /// Who the request is for, or why it is refused.
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
        let client = Whom::Client(connection.peer.ip());
        if is_read && let Some(reason) = self.quarantines.reason(&target, client, self.clock.now())
        {
            return record.reject(Cause::Quarantine, &reason);
        }
        let recognition = ecosystem::recognise(&Shape {
            target: &target,
            accept: &task::joined(request.headers(), &header::ACCEPT),
        });
        let who = self.asker(request.headers(), &target, recognition.as_ref());
        let (recognition, likely) = self.confirmed(&target, recognition, who.reader());
        record
            .ecosystem(recognition.as_ref().map_or("", |recognition| recognition.ecosystem.name()));
        let known = planned_as(recognition.as_ref(), likely.as_ref());
        let plan = self.plan(&request, &target, known);
        // What an unknown header field holds may be a credential of another kind.
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
        if let Some(greeting) = self.greeting(call.request.method(), &target) {
            return self.greet(call, &target, &greeting, who.reader(), record).await;
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
                self.pass_for(call, &task, PassReason::Starting, record).await
            }
            Plan::Keep | Plan::Revalidate => {
                let asked = call.asked_with(task.selection.request());
                self.from_cache(call, &asked, task, record).await
            }
        }
    }

    /// Whether what is stored is known. After a crash it is read while clients are served: a small store in no time, which is
    /// waited for.
    async fn knows_its_store(&self) -> bool {
        self.store.is_read()
            || tokio::time::timeout(WAIT_FOR_RECORDS, self.store.read()).await.is_ok()
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
            // Inside a tunnel this was decided before anything was read; a request in absolute form comes here.
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

    /// Who asks: whoever shows the credential that the request carries; without one, larder in its own name where it has a
    /// login.
    fn asker(
        &self,
        headers: &HeaderMap,
        target: &Target,
        recognition: Option<&Recognition>,
    ) -> Asker {
        let named = recognition.map_or(&[][..], |found| found.ecosystem.login_headers());
        let (shown, secret) = (Credential::of(headers, target, named), self.store.secret());
        match (shown, self.origins.login(target.origin())) {
            (None, Some(login)) => Asker::larders(login, &secret),
            (shown, _) => Asker::new(shown, &secret),
        }
    }

    /// A likely recognition counts once its root was confirmed, or once an index that may speak for the target names it.
    fn confirmed(
        &self,
        target: &Target,
        recognition: Option<Recognition>,
        reader: Partition,
    ) -> (Option<Recognition>, Option<Recognition>) {
        let Some(found) = recognition else {
            return (None, None);
        };
        let name = found.ecosystem.name();
        let promised = || match &found.resource.kind {
            Kind::Artifact(artifact) => self.is_claimed(target, artifact, reader),
            Kind::Index => false,
        };
        if found.certain || self.store.is_confirmed(name, &found.resource.root) || promised() {
            (Some(found), None)
        } else {
            (None, Some(found))
        }
    }
}

impl Call {
    /// What a reply needs to know of it.
    fn asked(&self) -> Asked {
        self.asked_with(Arc::new(self.request.headers().clone()))
    }

    /// The same of a call whose header fields were copied already.
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

/// What a request is planned as. A likely index is planned for like the unknown, but for the headers that its ecosystem
/// names: if they made a pass of the request, no answer to its clients would ever confirm its root.
fn planned_as<'a>(
    recognition: Option<&'a Recognition>,
    likely: Option<&'a Recognition>,
) -> Option<&'a Recognition> {
    recognition.or_else(|| likely.filter(|likely| likely.resource.kind == Kind::Index))
}
