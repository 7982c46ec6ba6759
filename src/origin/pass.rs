//! Passes: the client's own requests, on upstream connections that belong to the client's connection.
//!
//! Some logins authenticate a connection, not a request (NTLM, Negotiate), and a smuggled request desynchronises the
//! connection that it is on. So a pass's connection serves no fill and no other client, and closes with its client's
//! connection (pitfall 38). A client that sends its requests one after the other gets the same connection each time.
//!
//! Upstream larder uses the client's HTTP version: HTTP/1.1 for HTTP/1.1, so that upgrades work; HTTP/2 for HTTP/2 if
//! the origin supports it. There is no time limit: an upload or a long poll lasts as long as the client wants.
//! End-to-end header fields are passed on unchanged; hop-by-hop fields are removed in both directions.
//!
//! Not here: extended CONNECT (RFC 8441), 1xx answers other than 100.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;

use super::connect::{ConnectionInfo, Link, Speaks, Wire};
use super::error::{Fault, OriginError};
use super::expect::{self, HeldBody, UpBody};
use super::fills::MAX_FIELDS;
use super::sound::MAX_HEADER;
use super::tls::Offer;
use super::translate::{Outbound, undress};
use super::{Gathered, Origins, Reach};
use crate::config::Config;
use crate::target::{Origin, Target};

/// Maximum number of unread bytes of one answer on an HTTP/2 connection. One window per round trip: 2 MiB allow 40 MB/s
/// at 50 ms.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for all answers together. Larger, so that a client that leaves a few answers unread does not block the
/// others.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Maximum number of idle HTTP/1.1 connections kept to one origin. An HTTP/2 client may have opened many at once.
const IDLE: usize = 8;
/// Maximum number of origins to which one client connection keeps connections. Inside a tunnel there is one; a
/// plain-http client may request from a thousand, one after the other.
const WAYS: usize = 32;
/// How long a sequential client's request waits for its connection to become ready again: hyper may need a few polls
/// after the last byte.
const SETTLING: Duration = Duration::from_secs(1);

/// Upstream connections that belong to one client connection. They close with it.
#[derive(Debug)]
pub struct Passes {
    origins: Arc<Origins>,
    wire: Arc<Wire>,
    lines: Mutex<HashMap<SharingKey, PassConnections>>,
}

/// The conditions for sharing a connection. The guard's decision holds for one reach only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SharingKey {
    origin: Origin,
    opens_private: bool,
    offer: Offer,
}

#[derive(Debug)]
struct PassConnections {
    h1: Vec<PassConnection>,
    h2: Option<PassConnection>,
    /// Whether the origin spoke HTTP/1.1 before: then waiting for another request's HTTP/2 connection is useless.
    speaks_h1: bool,
    /// Lets one request dial while the others wait to see whether the connection is HTTP/2.
    dialling: Arc<Semaphore>,
}

#[derive(Debug)]
struct PassConnection {
    sender: Sender,
    about: ConnectionInfo,
}

#[derive(Debug)]
enum Sender {
    H1(http1::SendRequest<HeldBody>),
    H2(http2::SendRequest<HeldBody>),
}

/// Describes where an answer came from; stored in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerSource {
    /// Whether the address is public, or unknown behind a proxy.
    pub(super) public: bool,
}

impl Passes {
    pub(super) fn new(origins: Arc<Origins>) -> Self {
        Self { wire: origins.wire(), origins, lines: Mutex::default() }
    }

    /// Sends the client's own request to `target`'s origin. The request already has its end-to-end header fields. This
    /// removes the hop-by-hop fields, sets the URI, `Host` and `Via`, and chooses HTTP/1.1 or HTTP/2 by
    /// `request.version()`. An upgrade is returned through `hyper::upgrade`; the caller must take the client's side of
    /// it before.
    pub async fn send(
        &self,
        target: &Target,
        request: Request<UpBody>,
        reach: Reach,
    ) -> Result<Response<Incoming>, OriginError> {
        Box::pin(self.exchange(target, request, reach)).await.map_err(|fault| {
            self.wire.tunnelled.note(target.origin(), &fault);
            OriginError::new(target, fault)
        })
    }

    /// The current configuration.
    pub(super) fn config(&self) -> Arc<Config> {
        self.wire.config.get()
    }

    /// The body of an answer of [`Self::send`], with its crumbs coalesced.
    pub fn gathered(&self, target: &Target, body: Incoming) -> Gathered {
        Gathered::new(body, self.origins.crumbs.of(target.origin()))
    }

    async fn exchange(
        &self,
        target: &Target,
        request: Request<UpBody>,
        reach: Reach,
    ) -> Result<Response<Incoming>, Fault> {
        if request.method() == Method::CONNECT {
            return Err(Fault::Unsendable("CONNECT is no request to an origin".into()));
        }
        let way = SharingKey {
            origin: target.origin().clone(),
            opens_private: reach.opens_private(),
            offer: if request.version() == Version::HTTP_2 { Offer::Both } else { Offer::Http1 },
        };
        let proxy = self.wire.routes.of(target.origin(), false);
        let authorization = proxy.as_ref().and_then(|proxy| proxy.authorization.clone());
        let outbound = Outbound::new(target, &request, &self.wire.pseudonym, authorization)?;
        let mut request = request.map(HeldBody::new);
        outbound.strip(&mut request);
        loop {
            let mut line = if target.is_odd() {
                PassConnection::open(
                    self.wire.link(&way.origin, Offer::Http1, reach).await?.verbatim(),
                )
                .await?
            } else {
                self.line(&way, reach).await?
            };
            let (aged, about) = (line.about.has_answered(), line.about.clone());
            outbound.dress(&mut request, about.speaks);
            if about.speaks != Speaks::H2 {
                expect::hold(&mut request);
            }
            // The origin may have closed an idle connection just now. The client cannot know that, so larder retries
            // for it: always if nothing was sent, else only if sending twice is harmless.
            let spare = if aged { outbound.copy_of(&request) } else { None };
            let mut failed = match line.send(request).await {
                Ok(response) => {
                    about.note_answer();
                    if response.status() != StatusCode::SWITCHING_PROTOCOLS && !target.is_odd() {
                        self.park(&way, line);
                    }
                    if let Some(proxy) = proxy.filter(|_| about.speaks == Speaks::H1Proxy)
                        && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED
                    {
                        return Err(proxy.refused(response.status()));
                    }
                    self.origins.note_refusal(target, &about, response.status());
                    let mut response = undress(response, outbound.upgrades())?;
                    response.extensions_mut().insert(AnswerSource { public: about.public });
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            request = match failed.take_message().or(spare) {
                Some(again) if aged => again,
                _ => return Err(Fault::of_exchange(failed.error(), about.asked)),
            };
        }
    }

    /// A connection that can take a request: an idle one of this client's, or a new one.
    async fn line(&self, way: &SharingKey, reach: Reach) -> Result<PassConnection, Fault> {
        if let Some(line) = self.parked(way).await {
            return Ok(line);
        }
        let dialling = self.with(way, |lines| {
            (way.offer == Offer::Both && !lines.speaks_h1).then(|| Arc::clone(&lines.dialling))
        });
        let permit = match dialling {
            Some(dialling) => dialling.acquire_owned().await.ok(),
            None => None,
        };
        if permit.is_some()
            && let Some(line) = self.parked(way).await
        {
            return Ok(line);
        }
        let line =
            PassConnection::open(self.wire.link(&way.origin, way.offer, reach).await?).await?;
        self.with(way, |lines| match &line.sender {
            Sender::H1(_) => lines.speaks_h1 = true,
            Sender::H2(sender) => {
                lines.h2 = Some(PassConnection {
                    sender: Sender::H2(sender.clone()),
                    about: line.about.clone(),
                });
            }
        });
        drop(permit);
        Ok(line)
    }

    async fn parked(&self, way: &SharingKey) -> Option<PassConnection> {
        let mut line = self.with(way, |lines| lines.take(way.offer))?;
        // It is ready, or about to be. If not, it still serves a request whose answer is not being read.
        tokio::time::timeout(SETTLING, line.ready()).await.is_ok_and(|ready| ready).then_some(line)
    }

    fn park(&self, way: &SharingKey, line: PassConnection) {
        self.with(way, |lines| {
            // HTTP/2 connections are shared and stay where they are.
            if matches!(line.sender, Sender::H1(_)) && lines.h1.len() < IDLE {
                lines.h1.push(line);
            }
        });
    }

    #[cfg(test)]
    pub(super) fn ways(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    fn with<T>(&self, way: &SharingKey, act: impl FnOnce(&mut PassConnections) -> T) -> T {
        let mut all = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= WAYS && !all.contains_key(way) {
            all.retain(|_, lines| lines.is_alive());
            if all.len() >= WAYS {
                // Running requests continue; this drops idle connections only.
                all.clear();
            }
        }
        let lines = all.entry(way.clone()).or_insert_with(|| PassConnections {
            h1: Vec::new(),
            h2: None,
            speaks_h1: false,
            dialling: Arc::new(Semaphore::new(1)),
        });
        act(lines)
    }
}

impl PassConnections {
    fn is_alive(&self) -> bool {
        self.h1.iter().chain(&self.h2).any(|line| !line.is_closed())
    }

    fn take(&mut self, offer: Offer) -> Option<PassConnection> {
        if let Some(PassConnection { sender: Sender::H2(sender), about }) = &self.h2
            && !sender.is_closed()
        {
            return Some(PassConnection {
                sender: Sender::H2(sender.clone()),
                about: about.clone(),
            });
        }
        self.h2 = None;
        self.h1.retain(|line| !line.is_closed());
        match self.h1.iter().rposition(PassConnection::is_ready) {
            Some(position) => Some(self.h1.remove(position)),
            // An HTTP/1.1 client has one request at a time, so a connection that is not ready yet is about to be.
            None if offer == Offer::Http1 => self.h1.pop(),
            None => None,
        }
    }
}

impl PassConnection {
    async fn open(link: Link) -> Result<Self, Fault> {
        let about = link.about.clone();
        let failed = |error: hyper::Error| Fault::of_exchange(&error, about.asked);
        let sender = if about.speaks == Speaks::H2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER)
                .handshake(link)
                .await
                .map_err(failed)?;
            tokio::spawn(async move {
                // An error that ends the connection is reported by its requests.
                connection.await.ok();
            });
            Sender::H2(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .preserve_header_case(true)
                .max_headers(MAX_FIELDS)
                .max_header_size(MAX_HEADER as usize)
                // As lenient with headers as fills are.
                .allow_spaces_after_header_name_in_responses(true)
                .allow_obsolete_multiline_headers_in_responses(true)
                .ignore_invalid_headers_in_responses(true)
                .handshake(link)
                .await
                .map_err(failed)?;
            tokio::spawn(async move {
                connection.with_upgrades().await.ok();
            });
            Sender::H1(sender)
        };
        Ok(Self { sender, about })
    }

    async fn send(
        &mut self,
        request: Request<HeldBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<HeldBody>>> {
        match &mut self.sender {
            Sender::H1(sender) => sender.try_send_request(request).await,
            Sender::H2(sender) => sender.try_send_request(request).await,
        }
    }

    async fn ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_ready(),
            Sender::H2(sender) => sender.is_ready(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }
}
