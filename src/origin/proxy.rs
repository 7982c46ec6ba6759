//! The upstream proxy: which requests go through it, and how tunnels through it are made.
//!
//! https origins and tunnels use CONNECT; http origins use requests in absolute form. User and password in the proxy's
//! URL become Basic authentication (RFC 7617). `no_proxy` lists the hosts that bypass the proxy, with curl's syntax.
//!
//! The operator chose the proxy, so the guard does not check its address. The proxy resolves the origins' names, so the
//! guard checks only origins that need no resolution (see [`guard`](super::guard)).
//!
//! Not here: SOCKS, and proxies with other authentication. Sources: RFC 9110 §9.3.6, RFC 9112 §3.2.

use std::fmt;

use http::uri::Scheme as UriScheme;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, VIA};
use hyper::http;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;

use super::Duplex;
use super::error::{Fault, chain};
use crate::config::Upstream;
use crate::target::{Host, Origin, Scheme};

/// Which origins use which proxy. Fixed for the life of a pool: a connection made under one rule never serves another,
/// so the proxy's password cannot reach an origin.
pub(super) struct Routes {
    matcher: Matcher,
}

/// The proxy for an origin.
#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) host: Host,
    pub(super) port: u16,
    /// Whether the connection to the proxy itself uses TLS.
    pub(super) secure: bool,
    /// The operator's password, marked sensitive.
    pub(super) authorization: Option<HeaderValue>,
}

impl Routes {
    pub(super) fn new(upstream: &Upstream) -> Result<Self, Fault> {
        let mut builder = Matcher::builder();
        if let Some(url) = &upstream.https_proxy {
            builder = builder.https(url);
        }
        if let Some(url) = &upstream.http_proxy {
            builder = builder.http(url);
        }
        let all = builder.build();
        // The matcher ignores a URL that it cannot parse. Without this check larder would silently bypass the
        // operator's proxy.
        for (key, url, probe) in [
            ("https_proxy", &upstream.https_proxy, "https://example.org"),
            ("http_proxy", &upstream.http_proxy, "http://example.org"),
        ] {
            let read = all.intercept(&Uri::from_static(probe)).and_then(|found| Proxy::of(&found));
            if url.as_ref().is_some_and(|url| !url.is_empty()) && read.is_none() {
                return Err(Fault::SetUp(
                    format!(
                        "upstream.{key} must be `http://[user:password@]host[:port]`, or https"
                    )
                    .into(),
                ));
            }
        }
        let mut builder = Matcher::builder()
            .https(upstream.https_proxy.clone().unwrap_or_default())
            .http(upstream.http_proxy.clone().unwrap_or_default());
        if let Some(no_proxy) = &upstream.no_proxy {
            builder = builder.no(no_proxy);
        }
        Ok(Self { matcher: builder.build() })
    }

    /// The proxy for requests to `origin`. A tunnel uses the https proxy, whatever protocol is inside.
    pub(super) fn of(&self, origin: &Origin, tunnel: bool) -> Option<Proxy> {
        let scheme = match origin.scheme {
            Scheme::Http if !tunnel => UriScheme::HTTP,
            Scheme::Http | Scheme::Https => UriScheme::HTTPS,
        };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(origin.authority())
            .path_and_query("/")
            .build()
            .ok()?;
        Proxy::of(&self.matcher.intercept(&uri)?)
    }
}

impl Proxy {
    fn of(found: &Intercept) -> Option<Self> {
        let uri = found.uri();
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self {
            host: Host::parse(uri.host()?)?,
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            secure,
            authorization: found.basic_auth().cloned(),
        })
    }

    /// Requests a tunnel to `origin` on a connection to this proxy. Returns the tunnel's stream.
    pub(super) async fn tunnel(
        &self,
        io: Box<dyn Duplex>,
        origin: &Origin,
        pseudonym: &str,
    ) -> Result<Box<dyn Duplex>, Fault> {
        let failed = |error: &hyper::Error| {
            Fault::Proxy(format!("{self} broke off: {}", chain(error)).into())
        };
        let (mut sender, connection) = http1::handshake::<_, Empty<&[u8]>>(TokioIo::new(io))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            // The connection ends with the tunnel, or the request reports its error.
            connection.with_upgrades().await.ok();
        });
        let authority = format!("{}:{}", origin.host, origin.port);
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(HOST, &authority)
            .header(VIA, format!("1.1 {pseudonym}"));
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Fault::Unsendable(error.to_string().into()))?;
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response.status()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| failed(&error))?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    /// The fault when the proxy, and not the origin, refuses.
    pub(super) fn refused(&self, status: StatusCode) -> Fault {
        let mend = if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            "; user and password go into upstream.https_proxy and upstream.http_proxy"
        } else {
            ""
        };
        Fault::Proxy(format!("{self} answered {status}{mend}").into())
    }
}

/// Host and port; never user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The matcher's own `Debug` shows hosts only, but do not rely on that.
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}
