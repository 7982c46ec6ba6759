//! From a granted CONNECT to requests.
//!
//! ```text
//! CONNECT ── grant ── 200 ──▶ look at the first bytes, consuming none
//!                              │
//!            ClientHello ◀─────┼─────▶ a request line ──▶ HTTP, scheme http
//!                 │            │
//!     leaf for its name        └──▶ neither, or silence until the origin speaks ──▶ tunnel, or closed
//!                 │
//!            TLS, then HTTP/1.1 or HTTP/2, scheme https
//! ```
//!
//! The CONNECT authority is the identity of everything inside the tunnel; `target::identity` compares each request with it. A
//! `ClientHello` that names another host still gets a certificate for that name, because only then can the client read the 421
//! that explains the mismatch.
//!
//! A silent client may be waiting for the server to speak first (SSH, SMTP, databases). After a second larder connects to the
//! origin, and the side that sends first decides. If the origin does, the connection is a tunnel. If the client does, its bytes
//! are judged as usual, however late they arrive.
//!
//! Not done here: the listener and its limits (`accept`), answering requests (`pipeline`).

mod activity;
mod buffered;
mod first;
mod grant;
mod head;
mod heads;
mod http;
mod sealed;
mod serve;
mod tls;
mod transport;
mod tunnel;
mod visitors;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::UpgradeableConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) use self::activity::{Counted, Patience, Running};
pub(crate) use self::grant::{Refusal, Refused, TunnelPlan, admit, check};
pub(crate) use self::heads::Heads;
pub(crate) use self::http::{Watch, outer};
pub use self::serve::Serve;
pub(crate) use self::transport::{Entry, Seat, Transport, reset};
pub(crate) use self::visitors::{Door, Visitors};

use self::first::{First, Hello};
use self::sealed::Sealed;
use self::tunnel::Route;
use crate::authority::Authority;
use crate::clock::Stopwatch;
use crate::config::Config;
use crate::origin::Duplex;
use crate::outcome::Outcome;
use crate::outcome::cause::Cause;
use crate::outcome::ended::Ended;
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::outcome::witness::{self, Sight};
use crate::target::identity::Tunnel;
use crate::target::{Host, Origin, Scheme};

/// How long a client may be silent before larder assumes that it may be waiting for the server to speak.
const SILENCE: Duration = Duration::from_secs(1);

/// The most that is read of what a server sends first.
const GREETING: usize = 4096;

/// The most that is encrypted ahead of a client that does not read, in bytes: two records. rustls's default of 64 KiB costs much
/// memory with a hundred clients, and does not make one client faster.
const SEALED: usize = 32 * 1024;

/// A tunnel for which the 200 was sent.
pub(crate) struct Granted<S> {
    pub(crate) config: Arc<Config>,
    pub(crate) service: Arc<S>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: CancellationToken,
    pub(crate) door: Arc<Door>,
    pub(crate) peer: SocketAddr,
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) job: Option<Arc<Job>>,
}

/// What a tunnel was found to carry.
enum Found {
    Tls(Hello),
    Http { h2: bool },
    Through(Through),
    Nothing,
}

/// A tunnel that is to be copied through.
struct Through {
    upstream: Box<dyn Duplex>,
    early: BytesMut,
    why: &'static str,
}

impl<S: Serve> Granted<S> {
    /// Serves the tunnel until its end.
    pub(crate) async fn run(self, mut client: Transport, course: TunnelPlan) {
        self.metrics.witness.saw(&self.host, Sight::Connect);
        let idle = self.config.clients.idle_timeout;
        if let TunnelPlan::Through { upstream, why } = course {
            return tunnel::copy(client, upstream, &[], &self.route(), &why, idle).await;
        }
        let deadline = Instant::now() + self.config.clients.handshake_timeout;
        let Ok(found) = timeout_at(deadline, self.find(&mut client)).await else {
            tracing::debug!(client = %self.peer, host = %self.host, "a tunnel in which nothing began is closed");
            return;
        };
        match found {
            Found::Nothing => {}
            Found::Through(through) => {
                let Through { upstream, early, why } = through;
                tunnel::copy(client, upstream, &early, &self.route(), why, idle).await;
            }
            Found::Http { h2 } => {
                let watch = self.watch(&client, h2);
                let tunnel = self.tunnel(Scheme::Http, None);
                self.requests(client, tunnel, watch).await;
            }
            Found::Tls(hello) => self.handshake(client, hello, deadline).await,
        }
    }

    /// Finds out what the tunnel carries.
    async fn find(&self, client: &mut Transport) -> Found {
        let mut may_tunnel =
            self.config.hosts.tunnel_unknown_protocols && witness::token(&self.host).is_none();
        let mut upstream = None;
        loop {
            let why = match first::judge(client.seen()) {
                First::More => None,
                First::Http { h2 } => return Found::Http { h2 },
                First::Unknown => Some("neither TLS nor HTTP"),
                First::Tls(hello) => match hello.foreign {
                    Some(why) if may_tunnel => Some(why),
                    // The handshake will fail with an alert, so that the client learns the reason.
                    _ => return Found::Tls(hello),
                },
            };
            if let Some(why) = why {
                return self.give_up(why, may_tunnel, upstream).await;
            }
            let looked = if let Some(origin) = &mut upstream {
                let mut early = BytesMut::with_capacity(GREETING);
                tokio::select! {
                    looked = client.look() => looked,
                    spoken = origin.read_buf(&mut early) => {
                        let why = "the server speaks first";
                        return match (spoken, upstream) {
                            (Ok(1..), Some(upstream)) => Found::Through(Through { upstream, early, why }),
                            _ => Found::Nothing,
                        };
                    }
                }
            } else if may_tunnel && client.seen().is_empty() {
                let Ok(looked) = timeout(SILENCE, client.look()).await else {
                    upstream = self.connect().await;
                    may_tunnel = upstream.is_some();
                    continue;
                };
                looked
            } else {
                client.look().await
            };
            if !matches!(looked, Ok(1..)) {
                return Found::Nothing;
            }
        }
    }

    /// The tunnel carries neither TLS nor HTTP that larder can serve: it is copied through if the configuration allows that.
    async fn give_up(
        &self,
        why: &'static str,
        may_tunnel: bool,
        upstream: Option<Box<dyn Duplex>>,
    ) -> Found {
        if !may_tunnel {
            self.metrics.witness.saw(&self.host, Sight::Foreign(why.to_owned()));
            let line = format!(
                "a tunnel is closed, because it carries {why}; hosts.tunnel_unknown_protocols or hosts.tunnel would let it through"
            );
            self.ended(Outcome::Refused(Cause::Protocol), &line);
            return Found::Nothing;
        }
        let upstream = match upstream {
            Some(upstream) => Some(upstream),
            None => self.connect().await,
        };
        upstream.map_or(Found::Nothing, |upstream| {
            Found::Through(Through { upstream, early: BytesMut::new(), why })
        })
    }

    async fn connect(&self) -> Option<Box<dyn Duplex>> {
        let origin = self.origin(Scheme::Https);
        self.service
            .tunnel(&origin, grant::reach(self.peer))
            .await
            .inspect_err(|error| {
                self.ended(Outcome::Failed(error.fault().cause()), &error.to_string());
            })
            .ok()
    }

    /// Logs a tunnel that ended before anything was copied.
    fn ended(&self, outcome: Outcome, why: &str) {
        let (host, whom) = (self.host.to_string(), format!("{}:{}", self.host, self.port));
        Ended {
            host: &host,
            why: Some(why),
            job: self.job.as_deref(),
            ..Ended::new(outcome, self.peer.ip(), "CONNECT", &whom)
        }
        .write_down(&self.metrics);
    }

    /// Terminates TLS with a certificate for the host.
    async fn handshake(self, mut client: Transport, hello: Hello, deadline: Instant) {
        client.seal();
        let mut watch = self.watch(&client, false);
        let acceptor = TlsAcceptor::from(self.authority.server_config(&self.host));
        match timeout_at(deadline, acceptor.accept(client)).await {
            Err(_) => {
                tracing::info!(client = %self.peer, host = %self.host, "a TLS handshake took too long (clients.handshake_timeout)");
            }
            Ok(Err(error)) => tls::explain(&error, &self.route()),
            Ok(Ok(mut stream)) => {
                self.metrics.witness.saw(&self.host, Sight::Handshake);
                watch.activity.all_heard();
                let (_, session) = stream.get_mut();
                session.set_buffer_limit(Some(SEALED));
                if session.alpn_protocol() == Some(b"h2") {
                    watch.patience.header = None;
                }
                let tunnel = self.tunnel(Scheme::Https, hello.sni);
                let (route, activity) = (self.route(), Arc::clone(&watch.activity));
                self.requests(Sealed::new(stream), tunnel, watch).await;
                if activity.is_unused() {
                    tls::unused(&route);
                }
            }
        }
    }

    /// Serves HTTP until the end of the connection.
    async fn requests<I>(self, io: I, tunnel: Tunnel, watch: Watch)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Arc::clone(&self.service);
        let (line, job) = (watch.line.clone(), self.job.clone());
        let connection = Arc::new(service.connection(self.peer, Some(tunnel), line, job));
        let (counting, door) = (Arc::clone(&watch.activity), Arc::clone(&self.door));
        let io = Heads::over(io, true);
        let verdicts = Arc::clone(io.watch.verdicts());
        let refusing = Arc::new(self.route());
        let answer = service_fn(move |request: Request<Incoming>| {
            let mut running = counting.begin();
            let (service, connection) = (Arc::clone(&service), Arc::clone(&connection));
            let (door, refusing) = (Arc::clone(&door), Arc::clone(&refusing));
            let verdicts = Arc::clone(&verdicts);
            async move {
                let since = Stopwatch::start();
                let response = match verdicts.begin() {
                    Ok(number) => {
                        let method = request.method().clone();
                        let response = match door.request().await {
                            Ok(place) => {
                                running.takes(place);
                                service.serve(&connection, request).await
                            }
                            Err(refusal) => refusing.refuse(&refusal, method.as_str(), since),
                        };
                        verdicts.end(number, &method, &response);
                        response
                    }
                    Err(refusal) => refusing.refuse(&refusal, "-", since),
                };
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    running.switches();
                }
                Ok::<_, Infallible>(response.map(|body| Counted::new(body, running)))
            }
        });
        let builder = http::inner();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), answer);
        watch.drive(connection, UpgradeableConnection::graceful_shutdown).await;
    }

    fn watch(&self, client: &Transport, h2: bool) -> Watch {
        Watch::over(client, Patience::of(&self.config.clients, h2), &self.drain)
    }

    fn origin(&self, scheme: Scheme) -> Origin {
        Origin { scheme, host: self.host.clone(), port: self.port }
    }

    fn tunnel(&self, scheme: Scheme, sni: Option<String>) -> Tunnel {
        Tunnel { origin: self.origin(scheme), sni }
    }

    fn route(&self) -> Route {
        Route {
            peer: self.peer,
            host: self.host.clone(),
            port: self.port,
            metrics: Arc::clone(&self.metrics),
            job: self.job.clone(),
            door: Arc::clone(&self.door),
        }
    }
}
