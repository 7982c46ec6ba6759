//! Opens a connection towards an origin, from its name to a stream that can carry HTTP.
//!
//! ```text
//! origin ─ route ┬─ direct: resolve ▶ guard ▶ dial ─────────────────┬▶ TLS, if the origin is https
//!                └─ proxy:  guard literals ▶ dial ▶ TLS? ▶ CONNECT? ─┘
//! ```
//!
//! [`Wire`] holds what all connections share. [`Connector`] opens connections for the fills' client; passes and tunnels
//! call [`Wire`] themselves.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::dial::dial;
use super::error::Fault;
use super::frames::Frames;
use super::gather::CrumbAccounts;
use super::guard::{Class, Guard};
use super::proxy::{Proxy, Routes};
use super::resolve::Resolver;
use super::sound::Sound;
use super::tls::{Offer, Tls};
use super::tunnelled::Tunnelled;
use super::verbatim::Verbatim;
use super::{Duplex, Reach};
use crate::config::{Config, Live};
use crate::limits::{INTERIM, PLACES, Place};
use crate::stream::{Watch, Watched};
use crate::target::{Host, Origin, Scheme};

/// What all connections share. A configuration reload creates a new one for new connections.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) config: Live,
    pub(super) guard: Arc<Guard>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) tunnelled: Arc<Tunnelled>,
    /// This larder's pseudonym in `Via`.
    pub(super) pseudonym: Arc<str>,
    pub(super) routes: Routes,
    pub(super) tls: Tls,
    /// Per origin, how often it sends bodies in tiny HTTP/2 frames.
    pub(super) crumbs: Arc<CrumbAccounts>,
}

/// A connection that can carry HTTP.
pub(super) struct Link {
    io: TokioIo<Box<dyn Duplex>>,
    pub(super) about: ConnectionInfo,
}

/// What is known about a connection; attached to each answer on it.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    /// Whether the peer's address is public, or unknown because a proxy resolved it.
    pub(super) public: bool,
    /// Whether the origin requested a client certificate.
    pub(super) asked: bool,
    pub(super) speaks: Speaks,
    /// Whether it has answered before. If so, a failure now may only mean that the origin closed an idle connection.
    answered: Arc<AtomicBool>,
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/1.1 to the origin.
    H1,
    /// HTTP/1.1 to a proxy, in absolute form.
    H1Proxy,
    /// HTTP/2 to the origin.
    H2,
}

impl ConnectionInfo {
    pub(super) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Wire {
    /// A copy with the routes and trust anchors of `config`. Blocking: reads files.
    pub(super) fn renewed(&self, config: &Config) -> Result<Self, Fault> {
        Ok(Self {
            config: self.config.clone(),
            guard: Arc::clone(&self.guard),
            resolver: Arc::clone(&self.resolver),
            tunnelled: Arc::clone(&self.tunnelled),
            pseudonym: Arc::clone(&self.pseudonym),
            routes: Routes::new(&config.upstream)?,
            tls: Tls::new(config)?,
            crumbs: Arc::clone(&self.crumbs),
        })
    }

    /// A connection for requests to `origin`, established within `upstream.connect_timeout`, including TLS.
    pub(super) async fn link(
        &self,
        origin: &Origin,
        offer: Offer,
        reach: Reach,
    ) -> Result<Link, Fault> {
        let limit = self.config.get().upstream.connect_timeout;
        let linked = tokio::time::timeout(limit, self.link_unlimited(origin, offer, reach))
            .await
            .unwrap_or(Err(Fault::ConnectTimeout(limit)));
        if let Err(fault) = &linked {
            self.tunnelled.note(origin, fault);
        }
        linked
    }

    /// A raw connection to `origin`'s host and port, established within the same limit.
    pub(super) async fn raw(
        &self,
        origin: &Origin,
        reach: Reach,
    ) -> Result<Box<dyn Duplex>, Fault> {
        let limit = self.config.get().upstream.connect_timeout;
        let connecting = async {
            match self.routes.of(origin, true) {
                Some(proxy) => Ok(self.through(&proxy, origin, true, reach).await?.0),
                None => Ok(self.direct(&origin.host, origin.port, reach).await?.0),
            }
        };
        tokio::time::timeout(limit, connecting).await.unwrap_or(Err(Fault::ConnectTimeout(limit)))
    }

    async fn link_unlimited(
        &self,
        origin: &Origin,
        offer: Offer,
        reach: Reach,
    ) -> Result<Link, Fault> {
        let secure = origin.scheme == Scheme::Https;
        let proxy = self.routes.of(origin, false);
        let (io, public) = match &proxy {
            Some(proxy) => self.through(proxy, origin, secure, reach).await?,
            None => self.direct(&origin.host, origin.port, reach).await?,
        };
        let mut about = ConnectionInfo {
            public,
            asked: false,
            speaks: if proxy.is_some() { Speaks::H1Proxy } else { Speaks::H1 },
            answered: Arc::default(),
        };
        let most = self.config.get().upstream.interim_answers;
        INTERIM.allow(most as u64);
        if !secure {
            return Ok(Link { io: TokioIo::new(Box::new(Sound::over(io, most))), about });
        }
        let secured = self.tls.handshake(&origin.host, offer, io).await?;
        about.asked = secured.asked;
        about.speaks = if secured.h2 { Speaks::H2 } else { Speaks::H1 };
        let io: Box<dyn Duplex> = if secured.h2 {
            Box::new(Frames::over(secured.stream, most, self.crumbs.of(origin)))
        } else {
            Box::new(Sound::over(secured.stream, most))
        };
        Ok(Link { io: TokioIo::new(io), about })
    }

    /// Connects to the host directly. Returns also whether the address is public.
    async fn direct(
        &self,
        host: &Host,
        port: u16,
        reach: Reach,
    ) -> Result<(Box<dyn Duplex>, bool), Fault> {
        let addresses = self.resolver.addresses(host, port).await?;
        let open = self.guard.choose(host, &addresses, reach)?;
        let place = place().await?;
        let (stream, address) = dial(open).await?;
        let public = self.guard.class_of(address) == Class::Public;
        Ok((HeldSlot::over(stream, place), public))
    }

    /// Connects to `proxy`, and if `tunnel` is set, through it to `origin`.
    async fn through(
        &self,
        proxy: &Proxy,
        origin: &Origin,
        tunnel: bool,
        reach: Reach,
    ) -> Result<(Box<dyn Duplex>, bool), Fault> {
        let class = self.guard.judge_unresolved(&origin.host, origin.port, reach)?;
        let at_proxy = |fault: Fault| Fault::Proxy(format!("{proxy}: {fault}").into());
        let addresses = self.resolver.addresses(&proxy.host, proxy.port).await.map_err(at_proxy)?;
        // The operator chose the proxy's address, so the guard does not check it. But larder must not be its own proxy.
        if addresses.iter().any(|address| self.guard.is_own(*address)) {
            return Err(Fault::Loop);
        }
        let place = place().await?;
        let (stream, _) = dial(addresses).await.map_err(at_proxy)?;
        let mut io = HeldSlot::over(stream, place);
        if proxy.secure {
            let secured = self.tls.handshake(&proxy.host, Offer::Http1, io).await;
            io = Box::new(secured.map_err(at_proxy)?.stream);
        }
        if tunnel {
            io = proxy.tunnel(io, origin, &self.pseudonym).await?;
        }
        Ok((io, class == Class::Public))
    }
}

/// Waits for an upstream connection slot, first come, first served.
async fn place() -> Result<Place, Fault> {
    let place = PLACES.upstream.take().await;
    place.ok_or_else(|| {
        let why = format!(
            "{} connections to origins are open, as many as the limit of open files (ulimit -n) leaves room for",
            PLACES.upstream.most()
        );
        Fault::Busy(why.into())
    })
}

/// The slot of a TCP connection, held as long as the connection lives.
#[derive(Debug)]
struct HeldSlot(#[expect(dead_code, reason = "it is held, and nobody looks at it")] Place);

impl HeldSlot {
    fn over(io: TcpStream, place: Place) -> Box<dyn Duplex> {
        Box::new(Watched { io, watch: Self(place) })
    }
}

impl Watch<TcpStream> for HeldSlot {}

impl Link {
    /// The connection for one request whose URL is sent byte for byte ([`Verbatim`]).
    pub(super) fn verbatim(self) -> Self {
        let Self { io, about } = self;
        Self { io: TokioIo::new(Box::new(Verbatim::over(io.into_inner()))), about }
    }
}

/// Opens connections for one of the fills' clients. All have the same reach, because the pool distinguishes connections
/// only by origin.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) wire: Arc<Wire>,
    pub(super) reach: Reach,
    /// Whether each connection is for one request whose URL is sent byte for byte.
    pub(super) verbatim: bool,
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Link, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (wire, reach, verbatim) = (Arc::clone(&self.wire), self.reach, self.verbatim);
        Box::pin(async move {
            let origin = origin_of(&uri)
                .ok_or_else(|| Fault::Unsendable("its URL names no origin".into()))?;
            if verbatim {
                return Ok(wire.link(&origin, Offer::Http1, reach).await?.verbatim());
            }
            wire.link(&origin, Offer::Both, reach).await
        })
    }
}

/// The origin of a URI that the pool passes back; it was made from the request's URL.
fn origin_of(uri: &Uri) -> Option<Origin> {
    let scheme = match uri.scheme_str()? {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return None,
    };
    Some(Origin {
        scheme,
        host: Host::parse(uri.host()?)?,
        port: uri.port_u16().unwrap_or_else(|| scheme.default_port()),
    })
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.about.clone());
        match self.about.speaks {
            Speaks::H1 => connected,
            Speaks::H1Proxy => connected.proxy(true),
            Speaks::H2 => connected.negotiated_h2(),
        }
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("about", &self.about).finish_non_exhaustive()
    }
}
