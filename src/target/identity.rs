//! Determines the one origin of a request (promise P1).
//!
//! A request may name its host up to five times: in CONNECT, in the `ClientHello`, in `Host`, in an absolute URI, and
//! in HTTP/2's `:authority`. Servers, proxies and caches have been poisoned where two components read two different
//! ones (shared front ends route on `Host`, certificates follow the `ClientHello`). So they are compared here and
//! nowhere else, and the result is one [`Origin`]:
//!
//! - inside a tunnel the CONNECT authority is the identity. Everything else must agree with it, or the answer is 421
//!   (RFC 9110 §15.5.20);
//! - outside, the absolute URI is the identity (RFC 9112 §3.2.2). `Host` must agree with it, or the answer is 400.
//!
//! Authorities are compared as [`Host`]s and port numbers: letter case, one trailing dot and an explicit default port
//! make no difference; a missing port means the scheme's default. Which ports and hosts are allowed is not decided
//! here.
//!
//! An `https://` URI outside a tunnel is taken as https. The client chose to trust the network to larder. From larder
//! on it is verified TLS as usual, so nothing is kept with a weaker proof than its URL promises. Some clients without
//! CONNECT, and scripts that warm a cache, have no other way.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Uri, Version};

use super::shown::{CLIPPED, clipped};
use super::{Host, Origin, Scheme, Target, raw};

/// The names that CONNECT and the `ClientHello` gave for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The CONNECT authority as an origin: https if TLS was spoken inside, http otherwise. The only identity.
    pub origin: Origin,
    /// The server name (SNI) in the `ClientHello`, as it was sent.
    pub sni: Option<String>,
}

/// Why a request has no unambiguous identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    /// 421: connection and request disagree.
    #[error("{0}")]
    Elsewhere(String),
    /// 400: malformed.
    #[error("{0}")]
    Malformed(String),
}

/// Determines the target of a request, or why it is refused.
pub fn identify<B>(tunnel: Option<&Tunnel>, request: &Request<B>) -> Result<Target, Misdirected> {
    if request.method() == Method::CONNECT {
        return Err(Misdirected::Malformed(
            "CONNECT names no resource, and larder opens no tunnel inside a tunnel".into(),
        ));
    }
    let host = host_field(request)?;
    let origin = match tunnel {
        Some(tunnel) => within(tunnel, request.uri(), host)?,
        None => outside(request.uri(), host)?,
    };
    let tail = request.uri().path_and_query().map_or("/", |tail| tail.as_str());
    // In HTTP/1.1 the target arrives masked (`raw`). In HTTP/2 characters that look masked are the client's own.
    let own = (request.version() == Version::HTTP_2 && !tail.is_ascii())
        .then(|| raw::masked(tail.as_bytes()));
    let tail = own.as_deref().unwrap_or(tail);
    let target = if tail.starts_with('?') {
        Target::new(origin, &format!("/{tail}"))
    } else {
        Target::new(origin, tail)
    };
    target.map_err(|bad| Misdirected::Malformed(bad.to_string()))
}

/// Moves the user information of an absolute URI to an `Authorization` field, as clients do when they contact an origin
/// directly. apt and others leave it in the URL that they send to a proxy. If the request has an `Authorization` field,
/// that stays. From here on the login is a credential like any other, and appears in no key, URL or text.
///
/// Only outside tunnels: inside, no client has a reason to send an absolute URL, and in HTTP/2 user information is
/// forbidden (RFC 9113 §8.3.1).
pub fn take_login<B>(request: &mut Request<B>) {
    let Some(authority) = request.uri().authority() else { return };
    let Some((login, host)) = authority.as_str().rsplit_once('@') else { return };
    let value = (!login.is_empty()).then(|| basic(login)).flatten();
    let mut parts = request.uri().clone().into_parts();
    parts.authority = host.parse().ok();
    // A URI that cannot be rebuilt keeps its user information and is refused by [`identify`].
    let Ok(uri) = Uri::from_parts(parts) else { return };
    *request.uri_mut() = uri;
    if let Some(value) = value {
        request.headers_mut().entry(AUTHORIZATION).or_insert(value);
    }
}

/// The Basic field (RFC 7617) for `user:password`, which is percent-encoded as in a URL.
fn basic(login: &str) -> Option<HeaderValue> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let plain = [&*decoded(user), b":", &*decoded(password)].concat();
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Percent-decodes once. A percent sign that begins no escape stays.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digit = |at: usize| char::from(*behind.get(at)?).to_digit(16);
        let escaped = digit(0).zip(digit(1)).filter(|_| *first == b'%');
        let byte = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = behind.get(if byte.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    bytes
}

/// The host and port that CONNECT names (RFC 9110 §9.3.6: the port is mandatory).
///
/// Ignores a `Host` field beside CONNECT: clients put various things there (no port, or nothing at all), and larder
/// does not use it.
pub fn connect_authority<B>(request: &Request<B>) -> Result<(Host, u16), Misdirected> {
    let uri = request.uri();
    let authority =
        uri.authority().filter(|_| uri.scheme().is_none() && uri.path_and_query().is_none());
    match authority.and_then(|authority| split(authority.as_str())) {
        Some((host, Some(port))) => Ok((host, port)),
        Some((host, None)) => {
            Err(Misdirected::Malformed(format!("CONNECT {host} names no port; it takes host:port")))
        }
        None => Err(Misdirected::Malformed("CONNECT takes host:port and nothing else".into())),
    }
}

/// The origin for an authority; `None` for anything but `host` or `host:port`.
pub fn origin_of(scheme: Scheme, authority: &str) -> Option<Origin> {
    let (host, port) = split(authority)?;
    Some(Origin { scheme, host, port: port.unwrap_or_else(|| scheme.default_port()) })
}

fn split(authority: &str) -> Option<(Host, Option<u16>)> {
    match authority.rsplit_once(':') {
        // In `[2001:db8::1]` the last colon belongs to the address.
        Some((host, port)) if !port.contains(']') => {
            if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let port = port.parse().ok().filter(|port| *port != 0)?;
            Some((Host::parse(host)?, Some(port)))
        }
        _ => Some((Host::parse(authority)?, None)),
    }
}

/// The only `Host` field, if there is one (RFC 9112 §3.2: none in HTTP/1.1, or several, is 400).
fn host_field<B>(request: &Request<B>) -> Result<Option<&str>, Misdirected> {
    let mut fields = request.headers().get_all(HOST).iter();
    let first = fields.next();
    if fields.next().is_some() {
        return Err(Misdirected::Malformed("the request has more than one Host field".into()));
    }
    match first {
        None if request.version() == Version::HTTP_11 => Err(Misdirected::Malformed(
            "the request has no Host field, which HTTP/1.1 demands".into(),
        )),
        None => Ok(None),
        Some(value) => value
            .to_str()
            .map(Some)
            .map_err(|_| Misdirected::Malformed("the Host field is not ASCII".into())),
    }
}

/// Inside a tunnel everything must name what CONNECT named.
fn within(tunnel: &Tunnel, uri: &Uri, host: Option<&str>) -> Result<Origin, Misdirected> {
    let Tunnel { origin, sni } = tunnel;
    if let Some(sni) = sni
        && Host::parse(sni).as_ref() != Some(&origin.host)
    {
        return Err(Misdirected::Elsewhere(format!(
            "the TLS handshake asks for {}, but CONNECT named {}",
            shown(sni),
            origin.host
        )));
    }
    let absolute = uri.authority().map(Authority::as_str);
    if absolute.is_some() && uri.scheme_str() != Some(origin.scheme.as_str()) {
        return Err(Misdirected::Elsewhere(format!(
            "the request's URI says {}, but the tunnel carries {}",
            shown(uri.scheme_str().unwrap_or("no scheme")),
            origin.scheme.as_str()
        )));
    }
    for (place, name) in [("URI (:authority)", absolute), ("Host", host)] {
        if let Some(name) = name
            && parsed(place, origin.scheme, name)? != *origin
        {
            return Err(Misdirected::Elsewhere(format!(
                "the request's {place} names {}, but CONNECT named {}:{}",
                shown(name),
                origin.host,
                origin.port
            )));
        }
    }
    Ok(origin.clone())
}

/// Outside a tunnel the absolute URI decides.
fn outside(uri: &Uri, host: Option<&str>) -> Result<Origin, Misdirected> {
    let Some(authority) = uri.authority() else {
        return Err(Misdirected::Malformed(
            "larder is a proxy and this request names no origin: set HTTPS_PROXY and HTTP_PROXY to larder instead of \
             opening it as a site"
                .into(),
        ));
    };
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        other => {
            return Err(Misdirected::Malformed(format!(
                "larder fetches http and https URLs, not {}",
                shown(other.unwrap_or("those without a scheme"))
            )));
        }
    };
    let origin = parsed("URI", scheme, authority.as_str())?;
    if let Some(host) = host
        && parsed("Host", scheme, host)? != origin
    {
        return Err(Misdirected::Malformed(format!(
            "the request's URI names {}, but its Host field names {}",
            origin.authority(),
            shown(host)
        )));
    }
    Ok(origin)
}

fn parsed(place: &str, scheme: Scheme, authority: &str) -> Result<Origin, Misdirected> {
    origin_of(scheme, authority).ok_or_else(|| {
        Misdirected::Malformed(if authority.contains('@') {
            // Not displayed, because it may contain a password.
            format!(
                "the request's {place} holds a user name; credentials belong in the Authorization field"
            )
        } else {
            format!(
                "the request's {place} is no host and port: {}",
                shown(authority)
            )
        })
    })
}

/// Untrusted text, safe for one line of a log.
fn shown(text: &str) -> Cow<'_, str> {
    clipped(text, CLIPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request, and all the places where it names its host.
    #[derive(Clone, Copy, Debug)]
    struct Says {
        /// CONNECT's authority, with the scheme found inside the tunnel.
        connect: Option<&'static str>,
        sni: Option<&'static str>,
        version: Version,
        uri: &'static str,
        host: &'static [&'static str],
    }

    const OK: u16 = 200;

    /// The control: an HTTP/1.1 request in a tunnel, in which all names agree.
    const AGREED: Says = Says {
        connect: Some("https://example.org"),
        sni: Some("example.org"),
        version: Version::HTTP_11,
        uri: "/a?b",
        host: &["example.org"],
    };

    const H2: Says =
        Says { version: Version::HTTP_2, uri: "https://example.org/a?b", host: &[], ..AGREED };

    const PLAIN: Says = Says { connect: None, sni: None, uri: "http://example.org/a?b", ..AGREED };

    fn judge(says: Says) -> Result<String, (u16, String)> {
        let mut request = Request::builder().version(says.version).uri(says.uri);
        for host in says.host {
            request = request.header(HOST, *host);
        }
        // hyper's own parser refuses these with 400 before larder sees them.
        let request = request.body(()).map_err(|e| (400, e.to_string()))?;
        let tunnel = says.connect.map(|connect| Tunnel {
            origin: Target::from_url(connect).unwrap().origin().clone(),
            sni: says.sni.map(Into::into),
        });
        match identify(tunnel.as_ref(), &request) {
            Ok(target) => Ok(target.url()),
            Err(Misdirected::Elsewhere(text)) => Err((421, text)),
            Err(Misdirected::Malformed(text)) => Err((400, text)),
        }
    }

    #[track_caller]
    fn expect(rows: &[(u16, Says)]) {
        for (status, says) in rows {
            match judge(*says) {
                Ok(_) => assert_eq!(*status, OK, "{says:?}"),
                Err((got, text)) => {
                    assert_eq!(got, *status, "{says:?}: {text}");
                    assert!(!text.contains('\n') && !text.is_empty(), "{text}");
                }
            }
        }
    }

    #[test]
    fn when_all_agree_the_target_is_what_connect_named() {
        let expected = Ok("https://example.org/a?b".to_owned());
        assert_eq!(judge(AGREED), expected);
        assert_eq!(judge(H2), expected);
        assert_eq!(judge(PLAIN), Ok("http://example.org/a?b".to_owned()));
    }

    #[test]
    fn inside_a_tunnel_every_name_must_be_the_one_of_connect() {
        #[rustfmt::skip]
        let rows = [
            // SNI
            (OK, Says { sni: None, ..AGREED }),
            (OK, Says { sni: Some("EXAMPLE.org"), ..AGREED }),
            (OK, Says { sni: Some("example.org."), ..AGREED }),
            (421, Says { sni: Some("other.example.org"), ..AGREED }),
            (421, Says { sni: Some("example.org.."), ..AGREED }),
            (421, Says { sni: Some("example%2eorg"), ..AGREED }),
            (421, Says { sni: Some(""), ..AGREED }),
            (421, Says { sni: Some("other.example.org"), ..H2 }),
            // Host over HTTP/1.1
            (OK, Says { host: &["Example.ORG"], ..AGREED }),
            (OK, Says { host: &["example.org."], ..AGREED }),
            (OK, Says { host: &["example.org:443"], ..AGREED }),
            (421, Says { host: &["other.example.org"], ..AGREED }),
            (421, Says { host: &["example.org:80"], ..AGREED }),
            (421, Says { host: &["example.org:8443"], ..AGREED }),
            (421, Says { host: &["example.org.example.net"], ..AGREED }),
            (400, Says { host: &[], ..AGREED }),
            (400, Says { host: &[""], ..AGREED }),
            (400, Says { host: &["example.org", "example.org"], ..AGREED }),
            (400, Says { host: &["example.org, other.example.org"], ..AGREED }),
            (400, Says { host: &["example.org/x"], ..AGREED }),
            (400, Says { host: &["example.org:"], ..AGREED }),
            (400, Says { host: &["example.org:0"], ..AGREED }),
            (400, Says { host: &["example.org:+443"], ..AGREED }),
            (400, Says { host: &["example.org:65979"], ..AGREED }),
            (400, Says { host: &["user@example.org"], ..AGREED }),
            (400, Says { host: &["exam%70le.org"], ..AGREED }),
            (400, Says { host: &["example.org "], ..AGREED }),
            // HTTP/1.0 needs no Host: CONNECT is the identity, and it is enough.
            (OK, Says { version: Version::HTTP_10, host: &[], ..AGREED }),
            (421, Says { version: Version::HTTP_10, host: &["other.example.org"], ..AGREED }),
            // absolute URI inside a tunnel
            (OK, Says { uri: "https://example.org/a?b", ..AGREED }),
            (OK, Says { uri: "https://EXAMPLE.org:443/a?b", ..AGREED }),
            (421, Says { uri: "https://other.example.org/a", ..AGREED }),
            (421, Says { uri: "http://example.org/a", ..AGREED }),
            (421, Says { uri: "https://example.org:8443/a", ..AGREED }),
            (421, Says { uri: "https://example.org/a", host: &["other.example.org"], ..AGREED }),
            (421, Says { uri: "https://other.example.org/a", host: &["other.example.org"], ..AGREED }),
            // :authority over HTTP/2
            (OK, Says { uri: "https://EXAMPLE.org.:443/a?b", ..H2 }),
            (OK, Says { host: &["example.org"], ..H2 }),
            (OK, Says { uri: "/a?b", host: &["example.org"], ..H2 }),
            (421, Says { uri: "https://other.example.org/a", ..H2 }),
            (421, Says { uri: "https://example.org:444/a", ..H2 }),
            (421, Says { uri: "http://example.org/a", ..H2 }),
            (421, Says { host: &["other.example.org"], ..H2 }),
            (421, Says { uri: "https://other.example.org/a", host: &["example.org"], ..H2 }),
            (400, Says { uri: "https://user:pw@example.org/a", ..H2 }),
            (400, Says { host: &["example.org", "other.example.org"], ..H2 }),
        ];
        expect(&rows);
    }

    #[test]
    fn a_port_or_scheme_of_its_own_is_part_of_the_name() {
        let odd = Says {
            connect: Some("https://example.org:8443"),
            host: &["example.org:8443"],
            ..AGREED
        };
        let plain = Says { connect: Some("http://example.org"), sni: None, ..AGREED };
        #[rustfmt::skip]
        let rows = [
            (OK, odd),
            (421, Says { host: &["example.org"], ..odd }),
            (421, Says { host: &["example.org:443"], ..odd }),
            (OK, plain),
            (OK, Says { host: &["example.org:80"], ..plain }),
            (421, Says { host: &["example.org:443"], ..plain }),
            (OK, Says { uri: "http://example.org/", ..plain }),
            (421, Says { uri: "https://example.org/", ..plain }),
        ];
        expect(&rows);
    }

    #[test]
    fn ip_literals_are_compared_as_addresses() {
        let v4 =
            Says { connect: Some("https://192.0.2.1"), sni: None, host: &["192.0.2.1"], ..AGREED };
        let v6 = Says { connect: Some("https://[2001:db8::1]"), host: &["[2001:db8::1]"], ..v4 };
        #[rustfmt::skip]
        let rows = [
            (OK, v4),
            (OK, Says { host: &["192.0.2.1:443"], ..v4 }),
            (421, Says { host: &["192.0.2.2"], ..v4 }),
            (421, Says { host: &["example.org"], ..v4 }),
            (421, Says { host: &["[::ffff:192.0.2.1]"], ..v4 }),
            (400, Says { host: &["3221225985"], ..v4 }),
            (400, Says { host: &["0xc0.0.2.1"], ..v4 }),
            (400, Says { host: &["0300.0.2.1"], ..v4 }),
            (400, Says { host: &["192.0.513"], ..v4 }),
            (421, Says { sni: Some("example.org"), ..v4 }),
            (OK, v6),
            (OK, Says { host: &["[2001:DB8:0::1]:443"], ..v6 }),
            (421, Says { host: &["[2001:db8::2]"], ..v6 }),
            (400, Says { host: &["2001:db8::1"], ..v6 }),
            (400, Says { host: &["[2001:db8::1%25eth0]"], ..v6 }),
            (400, Says { host: &["[2001:db8::1"], ..v6 }),
            (400, Says { host: &["[2001:db8::1]x"], ..v6 }),
            (OK, Says { uri: "https://[2001:db8::1]/a", host: &[], version: Version::HTTP_2, ..v6 }),
        ];
        expect(&rows);
    }

    #[test]
    fn outside_a_tunnel_the_uri_decides_and_host_must_agree() {
        #[rustfmt::skip]
        let rows = [
            (OK, Says { uri: "http://example.org", ..PLAIN }),
            (OK, Says { uri: "http://example.org?b", ..PLAIN }),
            (OK, Says { uri: "http://example.org:80/", ..PLAIN }),
            (OK, Says { host: &["example.org:80"], ..PLAIN }),
            (OK, Says { host: &[], version: Version::HTTP_10, ..PLAIN }),
            (OK, Says { uri: "https://example.org/a", ..PLAIN }),
            (OK, Says { uri: "https://example.org/a", host: &["example.org:443"], ..PLAIN }),
            (400, Says { uri: "https://example.org/a", host: &["example.org:80"], ..PLAIN }),
            (400, Says { host: &["other.example.org"], ..PLAIN }),
            (400, Says { host: &["example.org:8080"], ..PLAIN }),
            (400, Says { host: &[], ..PLAIN }),
            (400, Says { host: &["example.org", "example.org"], ..PLAIN }),
            (400, Says { uri: "/a", ..PLAIN }),
            (400, Says { uri: "*", ..PLAIN }),
            (400, Says { uri: "ftp://example.org/a", ..PLAIN }),
            (400, Says { uri: "http://user:pw@example.org/a", ..PLAIN }),
            (400, Says { uri: "http://2130706433/a", ..PLAIN }),
            (400, Says { uri: "http://127.1/a", ..PLAIN }),
            (400, Says { uri: "http://example.org/a/%2e%2e/b", ..PLAIN }),
            (400, Says { uri: "http://example.org/a%00", ..PLAIN }),
        ];
        expect(&rows);
    }

    #[test]
    fn a_password_is_not_repeated() {
        let (_, text) =
            judge(Says { uri: "http://user:s3cret@example.org/a", ..PLAIN }).unwrap_err();
        assert!(!text.contains("s3cret") && text.contains("Authorization"), "{text}");
    }

    /// Issue 17 row 5.
    #[test]
    fn a_login_in_a_url_becomes_a_field() {
        let moved = |uri: &str, field: Option<&str>| {
            let mut request = Request::builder().uri(uri);
            if let Some(field) = field {
                request = request.header(AUTHORIZATION, field);
            }
            let mut request = request.body(()).unwrap();
            take_login(&mut request);
            let field = request.headers().get(AUTHORIZATION);
            let field = field.map(|value| value.to_str().unwrap().to_owned());
            (request.uri().to_string(), field)
        };
        let basic = |login: &str| Some(format!("Basic {}", STANDARD.encode(login)));
        let url = "http://example.org:8080/a?b".to_owned();
        for (login, expected) in [
            ("user:pw", basic("user:pw")),
            ("us%65r:p%40s%3As", basic("user:p@s:s")),
            ("user:p:w", basic("user:p:w")),
            ("token", basic("token:")),
            ("token:", basic("token:")),
            (":pw", basic(":pw")),
            ("user:10%25%zz%", basic("user:10%%zz%")),
            ("a@b:pw", basic("a@b:pw")),
            ("", None),
        ] {
            let uri = format!("http://{login}@example.org:8080/a?b");
            assert_eq!(moved(&uri, None), (url.clone(), expected), "{login}");
        }
        let kept = moved("http://user:pw@example.org:8080/a?b", Some("Bearer x"));
        assert_eq!(kept, (url.clone(), Some("Bearer x".into())));
        assert_eq!(moved(&url, None), (url, None));
        let latin = moved("http://%ff:%0a@example.org/", None).1.unwrap();
        let latin = latin.strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(latin).unwrap(), b"\xff:\n");
    }

    #[test]
    fn connect_names_a_host_and_a_port_and_nothing_else() {
        let ask = |uri: &str| {
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri(uri)
                // Ignored, whatever it contains.
                .header(HOST, "other.example.org")
                .body(())
                .ok()?;
            connect_authority(&request).ok().map(|(host, port)| format!("{host} {port}"))
        };
        for (uri, expected) in [
            ("example.org:443", "example.org 443"),
            ("EXAMPLE.org.:443", "example.org 443"),
            ("192.0.2.1:80", "192.0.2.1 80"),
            ("[2001:DB8::1]:8443", "[2001:db8::1] 8443"),
        ] {
            assert_eq!(ask(uri).as_deref(), Some(expected));
        }
        for uri in [
            "example.org",
            "example.org:",
            "example.org:0",
            "example.org:99999",
            "user@example.org:443",
            "https://example.org:443",
            "https://example.org:443/",
            "/",
            "*",
            "2001:db8::1:443",
            "[fe80::1%25eth0]:443",
            "0x7f.1:443",
            "2130706433:443",
            "exam%70le.org:443",
        ] {
            assert_eq!(ask(uri), None, "{uri}");
        }
    }
}
