//! Passes: the client's own requests, on upstream connections that belong to the client's connection.
//!
//! Some logins authenticate a connection, not a request (NTLM, Negotiate), and a request that was smuggled behind
//! another desynchronises its connection. So a pass's connection serves no fill and no other client, and ends with
//! its client's (pitfall 38); and a client that sends its requests one after the other gets one connection, the same
//! each time.
//!
//! What the client speaks is spoken upwards: h1 to h1, so that upgrades work; h2 to h2 where the origin can. There is
//! no limit on time: an upload or a long poll lasts as long as the client wants. Header fields end to end are the
//! client's; those that belong to a connection end here, both ways.
//!
//! Not here: extended CONNECT (RFC 8441), 1xx answers other than 100.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;

use super::connect::{About, Link, Speaks, Wire};
use super::dress::{Outbound, undress};
use super::error::{Fault, OriginError};
use super::expect::{self, Uphill};
use super::fills::{MAX_FIELDS, MAX_HEADER};
use super::tls::Offer;
use super::{Gathered, Origins, Reach};
use crate::config::Config;
use crate::target::{Origin, Target};

/// The client's own body on its way up.
pub type UpBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Unread bytes of one answer on an h2 connection. One window's worth each round trip: 2 MiB carry 40 MB/s over 50
/// ms.
const STREAM_WINDOW: u32 = 2 << 20;
/// Of all answers together: a client that leaves a few unread must not stop the others.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Idle h1 connections kept to one origin; an h2 client may have opened many at once.
const IDLE: usize = 8;
/// Origins that one client connection keeps lines to. Inside a tunnel there is one; a plain-http client may ask a
/// thousand one after the other.
const WAYS: usize = 32;
/// A client that sends one request after the other waits so long for its connection to be free again: its state may
/// lie a few polls behind the last byte.
const SETTLING: Duration = Duration::from_secs(1);

/// Upstream connections that belong to one client connection. Dropped with it.
#[derive(Debug)]
pub struct Passes {
    origins: Arc<Origins>,
    wire: Arc<Wire>,
    lines: Mutex<HashMap<Way, Lines>>,
}

/// What connections may be shared by: the guard's verdict holds for one reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Way {
    origin: Origin,
    opens_private: bool,
    offer: Offer,
}

#[derive(Debug)]
struct Lines {
    h1: Vec<Line>,
    h2: Option<Line>,
    /// The origin was seen to speak h1 only: no use in waiting for somebody else's h2 connection.
    speaks_h1: bool,
    /// One dials, the others wait whether it will be h2.
    dialling: Arc<Semaphore>,
}

#[derive(Debug)]
struct Line {
    sender: Sender,
    about: About,
}

#[derive(Debug)]
enum Sender {
    H1(http1::SendRequest<Uphill>),
    H2(http2::SendRequest<Uphill>),
}

/// From where an answer came; stands in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whence {
    /// From a public address, or an unknown one behind a proxy.
    pub(super) public: bool,
}

impl Passes {
    pub(super) fn new(origins: Arc<Origins>) -> Self {
        Self { wire: origins.wire(), origins, lines: Mutex::default() }
    }

    /// Sends the client's own request to `target`'s origin. The request's end-to-end headers are already in place;
    /// this removes what belonged to the client's connection, sets the URI, Host and Via, chooses h1/h2 as
    /// `request.version()` says, and gives back upgrades through `hyper::upgrade`. Take the client's side of an
    /// upgrade before.
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

    /// The configuration in force.
    pub(super) fn config(&self) -> Arc<Config> {
        self.wire.config.get()
    }

    /// The body of an answer that [`Self::send`] gave, its crumbs gathered.
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
        let way = Way {
            origin: target.origin().clone(),
            opens_private: reach.opens_private(),
            offer: if request.version() == Version::HTTP_2 { Offer::Both } else { Offer::Http1 },
        };
        let proxy = self.wire.routes.of(target.origin(), false);
        let authorization = proxy.as_ref().and_then(|proxy| proxy.authorization.clone());
        let outbound = Outbound::new(target, &request, &self.wire.pseudonym, authorization)?;
        let mut request = request.map(Uphill::new);
        outbound.strip(&mut request);
        loop {
            let mut line = if target.is_odd() {
                Line::open(self.wire.link(&way.origin, Offer::Http1, reach).await?.verbatim())
                    .await?
            } else {
                self.line(&way, reach).await?
            };
            let (aged, about) = (line.about.has_answered(), line.about.clone());
            outbound.dress(&mut request, about.speaks);
            if about.speaks != Speaks::H2 {
                expect::hold(&mut request);
            }
            // A keep-alive connection may have been closed just now; the client cannot know, so it is tried again for
            // it: always if nothing was sent, and where sending twice is harmless.
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
                    response.extensions_mut().insert(Whence { public: about.public });
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

    /// A connection that can take a request: one of this client's, or a new one.
    async fn line(&self, way: &Way, reach: Reach) -> Result<Line, Fault> {
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
        let line = Line::open(self.wire.link(&way.origin, way.offer, reach).await?).await?;
        self.with(way, |lines| match &line.sender {
            Sender::H1(_) => lines.speaks_h1 = true,
            Sender::H2(sender) => {
                lines.h2 =
                    Some(Line { sender: Sender::H2(sender.clone()), about: line.about.clone() });
            }
        });
        drop(permit);
        Ok(line)
    }

    async fn parked(&self, way: &Way) -> Option<Line> {
        let mut line = self.with(way, |lines| lines.take(way.offer))?;
        // It was ready, or is about to be; one that is not even then serves a request whose answer nobody reads.
        tokio::time::timeout(SETTLING, line.ready()).await.is_ok_and(|ready| ready).then_some(line)
    }

    fn park(&self, way: &Way, line: Line) {
        self.with(way, |lines| {
            // h2 lines are shared and stay where they are.
            if matches!(line.sender, Sender::H1(_)) && lines.h1.len() < IDLE {
                lines.h1.push(line);
            }
        });
    }

    #[cfg(test)]
    pub(super) fn ways(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    fn with<T>(&self, way: &Way, act: impl FnOnce(&mut Lines) -> T) -> T {
        let mut all = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= WAYS && !all.contains_key(way) {
            all.retain(|_, lines| lines.is_alive());
            if all.len() >= WAYS {
                // What is under way goes on; only idle lines end here.
                all.clear();
            }
        }
        let lines = all.entry(way.clone()).or_insert_with(|| Lines {
            h1: Vec::new(),
            h2: None,
            speaks_h1: false,
            dialling: Arc::new(Semaphore::new(1)),
        });
        act(lines)
    }
}

impl Lines {
    fn is_alive(&self) -> bool {
        self.h1.iter().chain(&self.h2).any(|line| !line.is_closed())
    }

    fn take(&mut self, offer: Offer) -> Option<Line> {
        if let Some(Line { sender: Sender::H2(sender), about }) = &self.h2
            && !sender.is_closed()
        {
            return Some(Line { sender: Sender::H2(sender.clone()), about: about.clone() });
        }
        self.h2 = None;
        self.h1.retain(|line| !line.is_closed());
        match self.h1.iter().rposition(Line::is_ready) {
            Some(position) => Some(self.h1.remove(position)),
            // An h1 client has one request under way: what is not ready yet is about to be.
            None if offer == Offer::Http1 => self.h1.pop(),
            None => None,
        }
    }
}

impl Line {
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
                // What ends it ends its requests, which say so.
                connection.await.ok();
            });
            Sender::H2(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .preserve_header_case(true)
                .max_headers(MAX_FIELDS)
                .max_header_size(MAX_HEADER as usize)
                // As fills take heads.
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
        request: Request<Uphill>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Uphill>>> {
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
