//! One client connection before any tunnel: HTTP/1.1 proxy requests.
//!
//! CONNECT is checked and answered here; the tunnel runs in this connection's task once hyper has released the
//! socket. An absolute-form request goes to the pipeline; a request for larder itself goes to its own pages or, with
//! an address in its path, through `mirror` to the pipeline.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, PROXY_AUTHORIZATION};
use hyper::server::conn::http1::{Connection, UpgradeableConnection};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::{Front, mirror};
use crate::clock::Stopwatch;
use crate::config::Config;
use crate::intercept::{
    Counted, Door, Granted, Heads, Patience, Refusal, Refused, Running, Serve, Transport,
    TunnelPlan, Watch, admit, check, outer,
};
use crate::outcome::cause::Cause;
use crate::outcome::job::{self, Job};
use crate::reply::{Body, Line};
use crate::stream::Watched;
use crate::target::identity::{connect_authority, identify, take_login};
use crate::target::{Host, Origin};

/// A client connection.
pub(super) struct ClientConnection<S> {
    pub(super) front: Arc<Front<S>>,
    /// The configuration when the client connected: a reload does not affect existing connections.
    pub(super) config: Arc<Config>,
    /// An IPv4-mapped address is converted to IPv4.
    pub(super) peer: SocketAddr,
    /// The local address.
    pub(super) local: Option<SocketAddr>,
    pub(super) drain: CancellationToken,
    /// Its place among the clients; `None` for a client that may not use larder.
    pub(super) door: Option<Arc<Door>>,
    /// The job through whose listener it came.
    pub(super) job: Option<Arc<Job>>,
}

/// The state that the requests of one connection share.
struct ConnectionState<S: Serve> {
    visit: ClientConnection<S>,
    line: Line,
    /// Created for the first absolute-form request: most connections only carry a CONNECT.
    connection: OnceLock<Arc<S::Connection>>,
    /// Set by a CONNECT that was granted.
    granted: Mutex<Option<Tunnelled>>,
}

/// A CONNECT that is answered 200.
struct Tunnelled {
    upgrade: OnUpgrade,
    course: TunnelPlan,
    host: Host,
    port: u16,
    job: Option<Arc<Job>>,
}

/// What the log says of a request that is refused before it has a target.
struct RefusedRequest {
    since: Stopwatch,
    method: Method,
    /// Host and port only: the rest of a URL may be secret.
    whom: String,
    host: String,
    job: Option<Arc<Job>>,
}

impl RefusedRequest {
    fn of(request: &Request<Incoming>, job: Option<Arc<Job>>) -> Self {
        let uri = request.uri();
        let port = uri.port_u16().map(|port| format!(":{port}"));
        Self {
            since: Stopwatch::start(),
            method: request.method().clone(),
            whom: format!("{}{}", uri.host().unwrap_or("-"), port.unwrap_or_default()),
            host: uri.host().unwrap_or_default().to_owned(),
            job,
        }
    }
}

impl<S: Serve> ClientConnection<S> {
    /// Serves requests, then the tunnel if one of them was a CONNECT.
    pub(super) async fn serve(self, transport: Transport) {
        let mut patience = Patience::of(&self.config.clients, false);
        if self.door.as_ref().is_some_and(|door| !door.has_seat()) {
            // Without a seat it may idle only briefly, because other connections wait for its place.
            patience.idle = patience.idle.min(self.config.clients.header_timeout);
        }
        let watch = Watch::over(&transport, patience, &self.drain);
        let desk = Arc::new(ConnectionState {
            visit: self,
            line: watch.line.clone(),
            connection: OnceLock::new(),
            granted: Mutex::new(None),
        });
        let io = Heads::over(transport, false);
        let (counting, answering) = (Arc::clone(&watch.activity), Arc::clone(&desk));
        let verdicts = Arc::clone(io.watch.verdicts());
        let answer = service_fn(move |request| {
            let mut running = counting.begin();
            let (desk, verdicts) = (Arc::clone(&answering), Arc::clone(&verdicts));
            async move {
                let asked = RefusedRequest::of(&request, desk.visit.job_of(&request));
                let (number, answered) = match verdicts.begin() {
                    Ok(number) => (number, desk.answer(request, &mut running).await),
                    Err(refusal) => (0, Err(refusal)),
                };
                let response =
                    answered.unwrap_or_else(|refusal| desk.visit.refuse(&refusal, &asked));
                verdicts.end(number, &asked.method, &response);
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    running.switches();
                }
                Ok::<_, Infallible>(response.map(|body| Counted::new(body, running)))
            }
        });
        let connection = outer().serve_connection(TokioIo::new(io), answer).with_upgrades();
        watch.drive(connection, UpgradeableConnection::graceful_shutdown).await;
        desk.run_tunnel().await;
    }

    /// Refuses a client that may not use larder.
    pub(super) async fn turn_away(self, transport: Transport) {
        let refusal = Refusal::forbidden(
            Cause::Client,
            format!(
                "clients from {} may not use this larder; clients.allow (LARDER_CLIENTS_ALLOW) lists the networks that may",
                self.peer.ip()
            ),
        );
        let answer = service_fn(|request: Request<Incoming>| {
            let mut response = self.refuse(&refusal, &RefusedRequest::of(&request, None));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        // The client gets one answer, not an idle connection.
        let patience = Patience {
            header: None,
            idle: self.config.clients.header_timeout,
            ..Patience::of(&self.config.clients, false)
        };
        let watch = Watch::over(&transport, patience, &self.drain);
        let io = TokioIo::new(Heads::over(transport, false));
        let connection = outer().serve_connection(io, answer);
        watch.drive(connection, Connection::graceful_shutdown).await;
    }

    /// Records a refusal; returns the answer.
    fn refuse(&self, refusal: &Refusal, asked: &RefusedRequest) -> Response<Body> {
        refusal.write_down(&Refused {
            metrics: &self.front.metrics,
            peer: self.peer,
            method: asked.method.as_str(),
            host: &asked.host,
            whom: &asked.whom,
            since: asked.since,
            job: asked.job.as_deref(),
        })
    }

    /// The job of a request: that of the listener through which it came, or whose token it carries.
    fn job_of(&self, request: &Request<Incoming>) -> Option<Arc<Job>> {
        let shown = || {
            let token = job::shown(request.headers().get(PROXY_AUTHORIZATION)?)?;
            self.front.metrics.jobs.of(&token, self.peer.ip())
        };
        self.job.clone().or_else(shown)
    }

    /// Whether `origin` is one of larder's own listeners.
    fn is_own(&self, origin: &Origin) -> bool {
        let ours = |address: &SocketAddr| match &origin.host {
            // A client may use one name of larder's for the proxy, and another in a URL in mirror form.
            Host::Name(name) => {
                address.port() == origin.port
                    && (&**name == "localhost" || mirror::is_called(name, &self.config.mirror))
            }
            Host::Address(ip) => {
                let ip = ip.to_canonical();
                address.port() == origin.port
                    && (ip == address.ip().to_canonical() || ip.is_loopback())
            }
        };
        self.local.iter().chain(&self.config.listen).any(ours)
    }
}

impl<S: Serve> ConnectionState<S> {
    /// Answers a request, or returns the reason for refusing it.
    async fn answer(
        &self,
        mut request: Request<Incoming>,
        running: &mut Running,
    ) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT {
            return self.connect(request).await;
        }
        if request.uri().authority().is_none() {
            return self.own(request, running).await;
        }
        take_login(&mut request);
        let target = identify(None, &request)?;
        let origin = target.origin();
        if self.visit.is_own(origin) {
            return self.own(request, running).await;
        }
        self.through(origin, request, running).await
    }

    /// Answers a request that is sent to larder itself; in mirror form it is for another host.
    async fn own(
        &self,
        mut request: Request<Incoming>,
        running: &mut Running,
    ) -> Result<Response<Body>, Refusal> {
        let ClientConnection { front, config, peer, local, .. } = &self.visit;
        let Some(way) = mirror::enter(config, &mut request, *local)? else {
            mirror::refuse_rebound(config, &request, *local)?;
            return Ok(front.own.answer(request, *peer).await);
        };
        let origin = way.target().origin();
        if self.visit.is_own(origin) {
            return Err(mirror::looping(&way));
        }
        let response = self.through(origin, request, running).await?;
        Ok(way.back(response))
    }

    /// Passes a request in absolute form to the pipeline.
    async fn through(
        &self,
        origin: &Origin,
        request: Request<Incoming>,
        running: &mut Running,
    ) -> Result<Response<Body>, Refusal> {
        let ClientConnection { front, config, peer, door, .. } = &self.visit;
        check(config, &origin.host, origin.port)?;
        if let Some(door) = door {
            door.sit().await?;
            running.takes(door.request().await?);
        }
        let connection = self.connection.get_or_init(|| {
            let (line, job) = (self.line.clone(), self.visit.job_of(&request));
            Arc::new(front.pipeline.connection(*peer, None, line, job))
        });
        Ok(front.pipeline.serve(connection, request).await)
    }

    async fn connect(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let ClientConnection { front, config, peer, door, .. } = &self.visit;
        let (host, port) = connect_authority(&request)?;
        if let Some(door) = door {
            door.sit().await?;
        }
        let course = admit(config, &*front.pipeline, *peer, &host, port).await?;
        if matches!(course, TunnelPlan::Look) {
            // Here the refusal can be explained to the client; in the handshake it would only see an alert.
            let limits = front.authority.check(&host);
            limits.map_err(|error| Refusal::forbidden(Cause::Ca, error.to_string()))?;
        }
        let job = self.visit.job_of(&request);
        let tunnelled = Tunnelled { upgrade: hyper::upgrade::on(request), course, host, port, job };
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnelled);
        Ok(Response::new(Body::default()))
    }

    /// Runs the tunnel of a granted CONNECT, if there is one.
    async fn run_tunnel(&self) {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Tunnelled { upgrade, course, host, port, job }) = granted else {
            return;
        };
        // On an error the client left before it got its 200.
        let Some(transport) = upgrade.await.ok().and_then(recover) else {
            return;
        };
        let visit = &self.visit;
        let Some(door) = visit.door.clone() else { return };
        let granted = Granted {
            config: Arc::clone(&visit.config),
            service: Arc::clone(&visit.front.pipeline),
            authority: Arc::clone(&visit.front.authority),
            metrics: Arc::clone(&visit.front.metrics),
            drain: visit.drain.clone(),
            door,
            peer: visit.peer,
            host,
            port,
            job,
        };
        granted.run(transport, course).await;
    }
}

/// The socket itself, with the bytes that were read beyond the CONNECT.
fn recover(upgraded: Upgraded) -> Option<Transport> {
    let parts = upgraded.downcast::<TokioIo<Watched<Transport, Heads>>>().ok()?;
    let Watched { io: mut transport, watch } = parts.io.into_inner();
    transport.give_back(&watch.left());
    // hyper had read these bytes before the others.
    transport.give_back(&parts.read_buf);
    Some(transport)
}
