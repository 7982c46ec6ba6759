//! The HTTP client towards origins.
//!
//! ```text
//! Ask ──▶ fetch ──▶ fills' pool ─┐                         ┌▶ Answer (head, body under limits)
//!           ▲  redirect, guarded │  route ▶ guard ▶ dial   │
//! request ─▶ Passes::send ───────┼▶ ▶ TLS ▶ h1 or h2 ──────┼▶ Response, as it came
//! CONNECT ─▶ tunnel ─────────────┘                         └▶ raw bytes
//! ```
//!
//! A *fill* is built from the key alone ([`Ask`]) and travels on connections that carry only fills. A *pass* is the
//! client's own request ([`Passes`]), on connections that belong to that client's connection. A tunnel carries raw
//! bytes. larder fetches anonymous tokens itself ([`Challenge`], [`Token`]). All three use the same address guard, the
//! same upstream proxy and the same trust anchors. A fill has time limits; a pass waits as long as its client does.
//!
//! Not here: what may be a fill, what to do with an answer, resuming, and when to retry. The circuit breaker only
//! remembers what callers report.
//!
//! Sources: RFC 9110, 9111, 9112, 9113; RFC 8305 (happy eyeballs); DESIGN §4.

mod answer;
mod ask;
mod challenge;
mod connect;
mod dial;
mod error;
mod expect;
mod fills;
mod frames;
mod gather;
mod guard;
mod health;
mod hop;
mod logins;
mod onward;
mod own;
mod pass;
mod proxy;
mod redirect;
mod resolve;
mod sound;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod translate;
mod tunnelled;
mod verbatim;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::{HeaderMap, StatusCode};

pub use self::answer::{Answer, Bodies, ends_with_connection, is_unannounced};
pub use self::ask::Ask;
pub use self::challenge::Challenge;
pub use self::error::{Fault, OriginError};
pub use self::expect::UpBody;
pub use self::gather::Gathered;
pub use self::health::Question;
pub use self::onward::RepeatableRequest;
pub use self::pass::Passes;
pub use self::token::Token;

use self::answer::Parts;
use self::connect::Wire;
use self::fills::Fills;
use self::gather::CrumbAccounts;
use self::guard::Guard;
use self::health::Health;
use self::logins::Logins;
use self::proxy::Routes;
use self::redirect::{Trail, permitted};
use self::resolve::Resolver;
use self::tls::Tls;
use self::token::Tokens;
use self::tunnelled::Tunnelled;
use crate::clock::Clock;
use crate::config::Live;
use crate::target::{Credential, Key, Origin, Partition, Scheme, Target};

/// The HTTP client towards origins. One for the process.
#[derive(Debug)]
pub struct Origins {
    config: Live,
    clock: Clock,
    pseudonym: Arc<str>,
    health: Health,
    crumbs: Arc<CrumbAccounts>,
    tokens: Tokens,
    /// Pool, routes and trust anchors for new requests. A reload replaces them; running requests finish with the old
    /// ones.
    fills: ArcSwap<Fills>,
    logins: ArcSwap<Logins>,
}

/// Where a request comes from, which decides the addresses that it may reach (DESIGN §4 "Internal addresses").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The client's address is private or loopback.
    pub internal_client: bool,
    /// A public origin's answer caused the request (redirect, prerequisite fetch, token realm).
    pub from_public: bool,
}

impl Reach {
    const fn opens_private(self) -> bool {
        self.internal_client && !self.from_public
    }
}

/// Selects the connections that a request may use, and with which requests it shares failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small documents that clients wait for: indexes, signatures, manifests.
    Metadata,
    /// Large: artifacts.
    Bulk,
}

/// A raw connection.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Duplex for T {}

impl Origins {
    /// Reads trust anchors and proxies from `config`. The error names the file or the key. Blocking; for start-up.
    pub fn new(config: Live, clock: Clock) -> Result<Arc<Self>, OriginError> {
        let now = config.get();
        let set_up = |fault| OriginError::new(&"upstream", fault);
        let pseudonym = pseudonym().map_err(set_up)?;
        let crumbs = Arc::new(CrumbAccounts::default());
        let wire = Wire {
            config: config.clone(),
            guard: Arc::new(Guard::new(config.clone())),
            resolver: Arc::new(Resolver::new()),
            tunnelled: Arc::new(Tunnelled::new(clock.clone())),
            pseudonym: Arc::clone(&pseudonym),
            routes: Routes::new(&now.upstream).map_err(set_up)?,
            tls: Tls::new(&now).map_err(set_up)?,
            crumbs: Arc::clone(&crumbs),
        };
        Ok(Arc::new(Self {
            config,
            pseudonym,
            health: Health::new(clock.clone()),
            crumbs,
            tokens: Tokens::default(),
            clock,
            fills: ArcSwap::from_pointee(Fills::new(Arc::new(wire))),
            logins: ArcSwap::from_pointee(Logins::read(&now.upstream.logins).map_err(set_up)?),
        }))
    }

    /// Rereads trust anchors, proxies and logins, for new connections. Limits and `allow_nets` need no reload. On an
    /// error the old ones stay. Blocking.
    pub fn reload(&self) -> Result<(), OriginError> {
        let config = self.config.get();
        let set_up = |fault| OriginError::new(&"upstream", fault);
        let logins = Logins::read(&config.upstream.logins).map_err(set_up)?;
        let wire = self.wire().renewed(&config).map_err(set_up)?;
        self.logins.store(Arc::new(logins));
        self.fills.store(Arc::new(Fills::new(Arc::new(wire))));
        Ok(())
    }

    /// Sets the addresses where larder listens, once it does: they are closed to requests. Until then those in `listen`
    /// are.
    pub fn set_own(&self, addresses: Vec<SocketAddr>) {
        self.wire().guard.set_own(addresses);
    }

    /// Sends a canonical request on the fill pool.
    pub async fn fetch(&self, ask: Ask) -> Result<Answer, OriginError> {
        let requested_at = self.clock.now();
        let fills = self.fills.load_full();
        let config = self.config.get();
        let mut trail = Trail::new(&ask.target);
        let mut target = ask.target.clone();
        let mut reach = ask.reach;
        let (mut plain, mut public) = (false, false);
        loop {
            // A fault names the hop where it happened, because that is the host to investigate.
            let at_hop = |fault| OriginError::new(&target, fault);
            plain |= target.origin().scheme == Scheme::Http;
            // Boxed because the future of a whole exchange is large, and the caller holds it as one of many states.
            let (response, about, connection) =
                Box::pin(fills.send(&ask, &target, reach)).await.map_err(at_hop)?;
            public |= about.public;
            reach.from_public |= about.public;
            self.note_refusal(&target, &about, response.status());
            let response =
                response.map(|body| Gathered::new(body, self.crumbs.of(target.origin())));
            let parts = Parts::of(response, &target, ask.head_only, &config.upstream, connection)
                .map_err(at_hop)?;
            let next = if ask.follow {
                trail.next(parts.head.status, &parts.head.headers).map_err(at_hop)?
            } else {
                None
            };
            let Some(next) = next else {
                return Ok(Answer {
                    head: parts.head,
                    body: parts.body,
                    length: parts.length,
                    cookies: parts.cookies,
                    until_close: parts.until_close,
                    answered_by: target,
                    plain,
                    public,
                    requested_at,
                });
            };
            permitted(&next, &config.hosts).map_err(at_hop)?;
            target = next;
        }
    }

    /// Some servers complete the handshake and then refuse a request that came without a client certificate.
    fn note_refusal(&self, target: &Target, about: &connect::ConnectionInfo, status: StatusCode) {
        if about.asked && matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) {
            self.wire().tunnelled.note(target.origin(), &Fault::WantsCertificate);
        }
    }

    /// The operator's login at `origin`, if configured. Only for fills of clients that sent no credential.
    pub fn login(&self, origin: &Origin) -> Option<Arc<Credential>> {
        self.logins.load().of(origin)
    }

    /// Connections for the passes of one client connection. Nothing else ever uses them.
    pub fn passes(self: &Arc<Self>) -> Passes {
        Passes::new(Arc::clone(self))
    }

    /// A raw connection for a tunnel, subject to the guard and the upstream proxy.
    pub async fn tunnel(
        &self,
        origin: &Origin,
        reach: Reach,
    ) -> Result<Box<dyn Duplex>, OriginError> {
        Box::pin(self.wire().raw(origin, reach))
            .await
            .map_err(|fault| OriginError::new(origin, fault))
    }

    /// The reason why this origin must be tunnelled, if larder remembers one (it requires a client certificate, or has
    /// no TLS version or cipher suite in common with larder).
    pub fn must_tunnel(&self, origin: &Origin) -> Option<String> {
        self.wire().tunnelled.reason(origin)
    }

    /// The pseudonym in `Via` that marks this larder's requests. Random at each start.
    pub fn via(&self) -> &str {
        &self.pseudonym
    }

    /// Whether a request went through this larder before: then it is a loop, answered with 508.
    pub fn is_loop(&self, headers: &HeaderMap) -> bool {
        hop::went_through(headers, &self.pseudonym)
    }

    /// Circuit breaker and 429 memory, per origin, credential and lane: whether it failed within a minute, so that
    /// requests that are not needed are skipped. `class`: the partition of the credential used.
    pub fn is_failing(&self, origin: &Origin, class: Partition, lane: Lane) -> bool {
        self.health.is_failing(&(origin.clone(), class, lane))
    }

    /// Whether the origin failed, for `target` or for any, and has not answered since. Then a stored copy is served
    /// without a long wait. A miss is always tried.
    pub fn is_down(
        &self,
        origin: &Origin,
        class: Partition,
        lane: Lane,
        target: Option<Key>,
    ) -> bool {
        self.health.is_down(&(origin.clone(), class, lane), target)
    }

    /// How long to wait for the origin when a stored copy could be served instead: `upstream.patience`, but at least
    /// four times its usual time to the response header.
    pub fn patience(&self, origin: &Origin, class: Partition, lane: Lane) -> Duration {
        let usual = self.health.usual(&(origin.clone(), class, lane)).unwrap_or_default();
        self.config.get().upstream.patience.max(usual.saturating_mul(4))
    }

    /// Permission to send a request for which there is a stored copy. `None` while the origin is down and a probe is
    /// running.
    pub fn question(
        &self,
        origin: &Origin,
        class: Partition,
        lane: Lane,
        target: Key,
    ) -> Option<Question> {
        self.health.question((origin.clone(), class, lane), target)
    }

    /// The number of failing combinations of origin, credential and lane.
    pub fn down(&self) -> usize {
        self.health.down()
    }

    /// Reports that the origin failed for `class`. `retry_after` is the origin's wish, which counts for a minute at
    /// most.
    pub fn note_failure(
        &self,
        origin: &Origin,
        class: Partition,
        lane: Lane,
        retry_after: Option<Duration>,
    ) {
        self.health.note_failure((origin.clone(), class, lane), None, retry_after);
    }

    /// Reports that the origin failed for one of its targets.
    pub fn note_failure_of(
        &self,
        origin: &Origin,
        class: Partition,
        lane: Lane,
        target: Key,
        retry_after: Option<Duration>,
    ) {
        self.health.note_failure((origin.clone(), class, lane), Some(target), retry_after);
    }

    /// Reports that a client waited in vain for an answer for one target.
    pub fn note_silence(&self, origin: &Origin, class: Partition, lane: Lane, target: Key) {
        self.health.note_silence((origin.clone(), class, lane), target);
    }

    /// Reports that an answer for `target` began, but did not continue while a client waited.
    pub fn note_unfinished(&self, target: Key) {
        self.health.note_unfinished(target);
    }

    /// Reports that the origin answered `class`.
    pub fn note_success(&self, origin: &Origin, class: Partition, lane: Lane) {
        self.health.note_success(&(origin.clone(), class, lane), None, None);
    }

    /// Reports that the origin answered for one target, after `took` if that is representative.
    pub fn note_success_of(
        &self,
        origin: &Origin,
        class: Partition,
        lane: Lane,
        target: Key,
        took: Option<Duration>,
    ) {
        self.health.note_success(&(origin.clone(), class, lane), Some(target), took);
    }

    fn wire(&self) -> Arc<Wire> {
        Arc::clone(&self.fills.load().wire)
    }
}

/// `larder-` and eight random bytes, so that another larder in the chain is not mistaken for a loop.
fn pseudonym() -> Result<Arc<str>, Fault> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Fault::SetUp("the system gives no random bytes".into()))?;
    Ok(format!("larder-{}", crate::digest::hex(&bytes)).into())
}

impl fmt::Debug for dyn Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}
