//! Parses a path in mirror form, and checks under which name a request to larder itself was sent.
//!
//! ```text
//! /https/host[:port]/path  /http/host[:port]/path      the address with its scheme as the first segment
//! /https-anonymous/…       /http-anonymous/…           the same without the client's credentials
//! /host.name[:port]/path   /HTTPS///host[:port]/path   apt-cacher-ng's forms; the first is plain http
//! /v2/…[?ns=host]                                      a container registry's mirror, by `mirror.registries`
//! ```
//!
//! The first segment decides, and each form has one meaning: a host with the name of one of these segments, or of one
//! of larder's own pages, is reached by its scheme (`/http/setup/…`), and so is a host without a dot or a port.

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, StatusCode, Uri, Version};
use url::Position;

use crate::config::{Config, Mirror};
use crate::intercept::Refusal;
use crate::outcome::cause::Cause;
use crate::target::shown::{CLIPPED, clipped};
use crate::target::{Host, Origin, Scheme, Target, decode_once, identity};

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MirrorPath {
    pub(super) target: Target,
    /// Whether the client's credentials are dropped.
    pub(super) is_anonymous: bool,
}

/// What the path names; `None` for larder's own pages, and for a path that is neither.
pub(super) fn read(mirror: &Mirror, uri: &Uri) -> Result<Option<MirrorPath>, Refusal> {
    let path = uri.path();
    let Some((first, rest)) =
        path.strip_prefix('/').map(|path| path.split_once('/').unwrap_or((path, "")))
    else {
        return Ok(None);
    };
    let query = uri.query();
    let has_rest = path.len() > first.len() + 1;
    match first {
        "https" | "http" | "https-anonymous" | "http-anonymous" if has_rest => {
            let scheme = if first.starts_with("https") { Scheme::Https } else { Scheme::Http };
            let target = below(scheme, rest, query)?;
            Ok(Some(MirrorPath { target, is_anonymous: first.ends_with("-anonymous") }))
        }
        "HTTPS" => match rest.strip_prefix("//") {
            Some(rest) => Ok(Some(MirrorPath {
                target: below(Scheme::Https, rest, query)?,
                is_anonymous: false,
            })),
            None => Err(malformed(
                "apt-cacher-ng's form for https is /HTTPS///host/path; larder's own is /https/host/path",
            )),
        },
        "v2" if has_rest => registry(mirror, path, query).map(Some),
        // A single segment is not an address: it names no file, and browsers request /favicon.ico.
        _ if has_rest && is_address(first) => {
            let target = below(Scheme::Http, path.strip_prefix('/').unwrap_or_default(), query)?;
            Ok(Some(MirrorPath { target, is_anonymous: false }))
        }
        _ => Ok(None),
    }
}

/// Whether a first segment without a scheme is an address.
fn is_address(segment: &str) -> bool {
    segment != "ca.crt" && unescaped(segment).contains(['.', ':', '@'])
}

/// `host[:port]/path` as a target.
fn below(scheme: Scheme, text: &str, query: Option<&str>) -> Result<Target, Refusal> {
    let end = text.find('/').unwrap_or(text.len());
    let (authority, path) = text.split_at_checked(end).unwrap_or((text, ""));
    let authority = unescaped(authority);
    let origin = identity::origin_of(scheme, &authority).ok_or_else(|| no_authority(&authority))?;
    target(origin, path, query)
}

/// Resolves the escaped delimiters of an authority, which some clients escape in a path (pip writes `%3A` for a
/// port's colon). No other byte of a host needs escaping.
fn unescaped(authority: &str) -> String {
    ["%3A:", "%5B[", "%5D]"].iter().fold(authority.to_owned(), |text, pair| {
        let (escape, byte) = pair.split_at_checked(3).unwrap_or((pair, ""));
        text.replace(escape, byte).replace(&escape.to_ascii_lowercase(), byte)
    })
}

fn no_authority(text: &str) -> Refusal {
    malformed(&if text.is_empty() {
        "the path names no host; mirror form is /https/host/path, with one slash before the host"
            .to_owned()
    } else if text.contains('@') || text.contains("%40") {
        // Not shown: it may contain a password.
        "the host in the path has a user name; credentials belong in the Authorization field, which clients send for http://USER:PASSWORD@larder/https/HOST/PATH"
            .to_owned()
    } else {
        let shown = clipped(text, CLIPPED);
        format!(
            "{shown} in the path is no host and port; mirror form is /https/host/path, without escapes in the host"
        )
    })
}

fn target(origin: Origin, path: &str, query: Option<&str>) -> Result<Target, Refusal> {
    let path = if path.is_empty() { "/" } else { path };
    let tail = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    Target::new(origin, &tail).map_err(|bad| malformed(&bad.to_string()))
}

/// A request to a registry mirror. The registry is the one that `ns` names (containerd and compatible clients), or
/// else the operator's default.
fn registry(mirror: &Mirror, path: &str, query: Option<&str>) -> Result<MirrorPath, Refusal> {
    let pairs = || query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let named = pairs().find_map(|pair| pair.strip_prefix("ns="));
    let base = match named {
        Some(raw) => {
            let name = decode_once(raw).unwrap_or_default();
            let known =
                mirror.registries.iter().find(|known| known.name.as_deref() == Some(&*name));
            match known {
                Some(known) => Target::from_url(&known.url),
                None => Some(target(
                    identity::origin_of(Scheme::Https, &name).ok_or_else(|| no_authority(&name))?,
                    "/",
                    None,
                )?),
            }
        }
        None => mirror
            .registries
            .iter()
            .find(|known| known.name.is_none())
            .and_then(|known| Target::from_url(&known.url)),
    };
    let base = base.ok_or_else(|| {
        let text = "which registry larder mirrors at /v2/ is not configured; mirror.registries (LARDER_MIRROR_REGISTRIES) names it";
        Refusal::refused(StatusCode::NOT_FOUND, Cause::Malformed, text.to_owned())
    })?;
    // `ns` is meant for larder: the registry's own URL does not contain it.
    let rest = pairs().filter(|pair| !pair.starts_with("ns=")).collect::<Vec<_>>().join("&");
    let path = format!("{}{path}", base.path().trim_end_matches('/'));
    let target =
        target(base.origin().clone(), &path, Some(&*rest).filter(|rest| !rest.is_empty()))?;
    Ok(MirrorPath { target, is_anonymous: false })
}

/// The name under which the client reached larder, as an authority; refused if it is not a name of larder's (P1).
/// Otherwise a hostile page whose name resolves to larder's address could read through larder, and so could clients
/// that came to larder by mistake.
pub(super) fn own_name<B>(
    request: &Request<B>,
    mirror: &Mirror,
    local: Option<&str>,
) -> Result<String, Refusal> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (first, second) = (fields.next(), fields.next());
    if second.is_some() {
        return Err(malformed("the request has more than one Host field"));
    }
    let field = match (request.uri().authority().map(Authority::as_str), first) {
        (Some(authority), _) => authority,
        (None, Some(value)) => {
            value.to_str().map_err(|_| malformed("the Host field is not ASCII"))?
        }
        (None, None) if request.version() == Version::HTTP_11 => {
            return Err(malformed("the request has no Host field, which HTTP/1.1 demands"));
        }
        (None, None) => local.ok_or_else(|| malformed("the request has no Host field"))?,
    };
    let origin = identity::origin_of(Scheme::Http, field)
        .ok_or_else(|| malformed("the request's Host field is no host and port"))?;
    if is_own_name(&origin.host, mirror) {
        Ok(origin.authority())
    } else {
        let text = format!(
            "the request was sent to larder, but for {}; if that is a name of larder's own, add it to mirror.names \
             (LARDER_MIRROR_NAMES)",
            origin.host
        );
        Err(Refusal::refused(StatusCode::MISDIRECTED_REQUEST, Cause::Identity, text))
    }
}

/// Suffixes that exist only in private networks: no outsider can serve a page under such a name.
const INNER: [&str; 9] = [
    "localhost",
    "local",
    "internal",
    "svc",
    "lan",
    "home.arpa",
    "localdomain",
    "test",
    "intranet",
];

/// Whether `host` may refer to this larder: an address, a name without a dot, this machine's name, a name of a kind
/// that exists only in private networks (RFC 6761, 6762, 8375, and kinds like that of 9476), or one that the operator
/// configured.
fn is_own_name(host: &Host, mirror: &Mirror) -> bool {
    let Some(name) = host.name() else { return true };
    let inner = |suffix: &&str| {
        name.strip_suffix(*suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !name.contains('.') || INNER.iter().any(inner) || is_called(name, mirror)
}

/// Whether `name` is definitely larder's: this machine's name, or one that the operator configured.
pub(in crate::accept) fn is_called(name: &str, mirror: &Mirror) -> bool {
    mirror.names.iter().any(|own| own.matches(name))
        || rustix::system::uname()
            .nodename()
            .to_str()
            .is_ok_and(|own| own.eq_ignore_ascii_case(name))
}

/// Refuses a browser's request on behalf of another site's page; package managers send no such request. Following a
/// link is allowed if the browser says that it is a navigation: the linking page cannot read the result.
///
/// Browsers send `Sec-Fetch-*` only to origins that they consider trustworthy, which larder over plain http under a
/// name is not. There the page's address (`Referer`) decides; and if a page hides it, whether the request is one that
/// browsers send for a page, and not for a link or a typed address.
pub(super) fn refuse_pages(headers: &HeaderMap, own: &str) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_foreign = match (text("origin"), text("sec-fetch-site")) {
        (Some(origin), _) => origin != format!("http://{own}"),
        (None, Some("cross-site" | "same-site")) => text("sec-fetch-mode") != Some("navigate"),
        (None, Some(_)) => false,
        (None, None) => match text("referer") {
            Some(page) => is_foreign_page(page, own),
            None => is_for_a_page(headers),
        },
    };
    if is_foreign || headers.contains_key("service-worker") {
        return Err(Refusal::forbidden(
            Cause::Client,
            "another site's page may not read through this larder: mirror form is for package managers".to_owned(),
        ));
    }
    Ok(())
}

/// Whether `Referer` names another site's page. A value that is not a URL is no page: npm used to send its command
/// there.
fn is_foreign_page(page: &str, own: &str) -> bool {
    let Ok(page) = url::Url::parse(page) else { return false };
    let scheme = match page.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        // A browser's internal pages have no address that sites could use.
        _ => return page.has_host(),
    };
    let origin = identity::origin_of(scheme, &page[Position::BeforeHost..Position::AfterPort]);
    let own = identity::origin_of(Scheme::Http, own);
    origin.is_none() || origin != own
}

/// Whether a browser sends the request. Pages cannot change all of these fields.
pub(super) fn is_by_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    agent.starts_with(b"Mozilla/")
        || [header::ACCEPT_LANGUAGE, header::ORIGIN, header::REFERER]
            .iter()
            .any(|name| headers.contains_key(name))
        || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"))
}

/// Whether a browser fetches something for a page that hides its address. For navigations browsers send
/// `Upgrade-Insecure-Requests`; other programs that call themselves `Mozilla` (`PowerShell`) send no language.
fn is_for_a_page(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    agent.starts_with(b"Mozilla/5.0")
        && headers.contains_key(header::ACCEPT_LANGUAGE)
        && !headers.contains_key(header::UPGRADE_INSECURE_REQUESTS)
}

/// Answers 508: the request would make larder connect to itself.
pub(super) fn looping(target: &Target) -> Refusal {
    let text = format!(
        "{} is this larder itself; the path names the host that has the files",
        target.origin()
    );
    Refusal::refused(StatusCode::LOOP_DETECTED, Cause::Loop, text)
}

/// Whether mirror form is enabled.
pub(super) fn is_open(config: &Config) -> bool {
    config.mirror.enabled
}

fn malformed(text: &str) -> Refusal {
    Refusal::refused(StatusCode::BAD_REQUEST, Cause::Malformed, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HostPattern, Registry};

    fn mirror() -> Mirror {
        Mirror {
            enabled: true,
            names: vec![HostPattern("cache.example.org".into())],
            registries: vec![
                Registry { name: None, url: "https://registry.example.org".into() },
                Registry {
                    name: Some("hub.example.org".into()),
                    url: "https://registry.example.org/hub/".into(),
                },
            ],
        }
    }

    fn place(path: &str) -> Result<Option<String>, u16> {
        let uri: Uri = path.parse().map_err(|_| 0_u16)?;
        match read(&mirror(), &uri) {
            Ok(place) => Ok(place.map(|place| {
                let mark = if place.is_anonymous { " without" } else { "" };
                format!("{}{mark}", place.target.url())
            })),
            Err(refusal) => Err(refusal.status.as_u16()),
        }
    }

    #[test]
    fn every_form_names_one_target() {
        for (path, url) in [
            ("/https/example.org/simple/", "https://example.org/simple/"),
            ("/https/EXAMPLE.org.:443/a?b=/c", "https://example.org/a?b=/c"),
            ("/http/example.org:8080/a", "http://example.org:8080/a"),
            ("/https/example.org", "https://example.org/"),
            ("/https/example.org?x", "https://example.org/?x"),
            ("/https/example.org//a//b", "https://example.org//a//b"),
            ("/https/[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a"),
            ("/https/example.org/@scope%2fname", "https://example.org/@scope%2Fname"),
            ("/https-anonymous/example.org/a", "https://example.org/a without"),
            ("/https/example.org%3a8443/a", "https://example.org:8443/a"),
            ("/example.org%3A8080/debian", "http://example.org:8080/debian"),
            ("/http/%5B2001:db8::1%5D%3A80/a", "http://[2001:db8::1]/a"),
            ("/example.org/debian/dists", "http://example.org/debian/dists"),
            ("/example.org:8080/debian", "http://example.org:8080/debian"),
            ("/HTTPS///example.org/debian", "https://example.org/debian"),
            // Segments with a meaning of their own are hosts after a scheme.
            ("/http/https/a", "http://https/a"),
            ("/http/http/a", "http://http/a"),
            ("/http/HTTPS/a", "http://https/a"),
            ("/http/setup/a", "http://setup/a"),
            ("/http/v2/a", "http://v2/a"),
            ("/http/ca.crt/a", "http://ca.crt/a"),
            ("/v2/", "https://registry.example.org/v2/"),
            ("/v2/a/b/manifests/1?x=1", "https://registry.example.org/v2/a/b/manifests/1?x=1"),
            (
                "/v2/a/manifests/1?ns=hub.example.org",
                "https://registry.example.org/hub/v2/a/manifests/1",
            ),
            (
                "/v2/a/manifests/1?y=1&ns=quay.example.org%3A5000&x=1",
                "https://quay.example.org:5000/v2/a/manifests/1?y=1&x=1",
            ),
        ] {
            assert_eq!(place(path), Ok(Some(url.to_owned())), "{path}");
        }
    }

    #[test]
    fn larders_own_pages_come_first() {
        for path in [
            "/",
            "/setup",
            "/ca.crt",
            "/-/health",
            "/-/metrics",
            "/favicon.ico",
            "/example.org",
            "/https",
            "/http",
            "/v2",
            "/etc/passwd",
            "/setup/x",
            "/ca.crt/x",
            "/https-anonymous",
            "*",
        ] {
            assert_eq!(place(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn what_names_no_one_thing_is_refused() {
        for path in [
            "/https/",
            "/https//example.org/a",
            "/https///example.org/a",
            "/https/a@b/",
            "/https/user:pw@example.org/a",
            "/https/example.org:99999/",
            "/https/example.org:0/",
            "/https/example.org:/",
            "/https/example.org%2fa/b",
            "/https/exam%70le.org/",
            "/https/2130706433/",
            "/https/127.1/",
            "/https/0x7f.1/",
            "/https/../a",
            "/https/example.org/../other.example.org/",
            "/https/example.org/%2e%2e/a",
            "/https/example.org/a%00",
            "/https/https://example.org/a",
            "/HTTPS/example.org/a",
            "/HTTPS//example.org/a",
            "/HTTPS////example.org/a",
            "/user@example.org/a",
            "/../a/b",
            "/example.org/../a",
            "/v2/../a",
            "/v2/a?ns=a@b",
            "/v2/a?ns=",
            "/v2/a?ns=a%2fb",
        ] {
            assert_eq!(place(path), Err(400), "{path}");
        }
        let none = Mirror { enabled: true, names: vec![], registries: vec![] };
        let refusal = read(&none, &"/v2/a/tags/list".parse().unwrap()).unwrap_err();
        assert!(refusal.status == 404 && refusal.text.contains("mirror.registries"));
    }

    #[test]
    fn a_password_is_not_repeated() {
        let refusal =
            read(&mirror(), &"/https/user:s3cret@example.org/a".parse().unwrap()).unwrap_err();
        assert!(!refusal.text.contains("s3cret") && refusal.text.contains("Authorization"));
    }

    #[test]
    fn a_name_is_larders_own_or_the_request_is_refused() {
        let named = |host: &str| {
            let request = Request::builder()
                .uri("/https/example.org/")
                .header(header::HOST, host)
                .body(())
                .unwrap();
            own_name(&request, &mirror(), None).map_err(|refusal| refusal.status.as_u16())
        };
        for (host, expected) in [
            ("larder:3142", "larder:3142"),
            ("LARDER", "larder"),
            ("127.0.0.1:3142", "127.0.0.1:3142"),
            ("[::1]:3142", "[::1]:3142"),
            ("larder.ci.svc:3142", "larder.ci.svc:3142"),
            ("larder.ci.svc.cluster.local:80", "larder.ci.svc.cluster.local"),
            ("host.docker.internal:3142", "host.docker.internal:3142"),
            ("cache.example.org", "cache.example.org"),
        ] {
            assert_eq!(named(host).as_deref(), Ok(expected), "{host}");
        }
        for (host, status) in [
            ("evil.example.org:3142", 421),
            ("notlocal.example:3142", 421),
            ("xlocal.example", 421),
            ("a@larder", 400),
            ("", 400),
        ] {
            assert_eq!(named(host), Err(status), "{host}");
        }
    }

    const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

    #[test]
    fn another_sites_page_reads_nothing() {
        let judge = |fields: &[(&'static str, &'static str)]| {
            let headers = fields
                .iter()
                .map(|(n, v)| (header::HeaderName::from_static(n), HeaderValue::from_static(v)));
            refuse_pages(&headers.collect(), "larder:3142").is_ok()
        };
        for (fields, welcome) in [
            (&[][..], true),
            (&[("origin", "http://larder:3142")], true),
            (&[("origin", "http://evil.example.org")], false),
            (&[("origin", "null")], false),
            (&[("sec-fetch-mode", "cors")], true),
            (&[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], true),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], true),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], false),
            (&[("service-worker", "script")], false),
            // Without `Sec-Fetch-*`, the page's address decides.
            (&[("referer", "https://evil.example.org/")], false),
            (&[("referer", "http://evil.example.org:3142/")], false),
            (&[("referer", "http://larder/")], false),
            (&[("referer", "https://larder:3142/")], false),
            (&[("referer", "http://larder.evil.example.org:3142/larder:3142")], false),
            (&[("referer", "http://larder:3142@evil.example.org/")], false),
            (&[("referer", "moz-extension://0000/page")], false),
            (&[("referer", "http://larder:3142/https/example.org/simple/")], true),
            (&[("referer", "HTTP://LARDER:3142/")], true),
            (&[("referer", "install lodash")], true),
            (&[("referer", "https://evil.example.org/"), ("sec-fetch-site", "none")], true),
            (&[("referer", "https://evil.example.org/"), ("sec-fetch-site", "same-origin")], true),
            (&[("referer", "https://evil.example.org/"), ("sec-fetch-site", "cross-site")], false),
            // A page that hides its address; and requests that are not for a page.
            (&[("user-agent", BROWSER), ("accept-language", "en")], false),
            (
                &[
                    ("user-agent", BROWSER),
                    ("accept-language", "en"),
                    ("upgrade-insecure-requests", "1"),
                ],
                true,
            ),
            (&[("user-agent", BROWSER)], true),
            (&[("user-agent", "curl/8"), ("accept-language", "en")], true),
        ] {
            assert_eq!(judge(fields), welcome, "{fields:?}");
        }
    }
}
