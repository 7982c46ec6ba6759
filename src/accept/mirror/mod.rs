//! Mirror form: an address in the path of a request to larder itself, for clients that cannot use a proxy.
//!
//! ```text
//! GET /https/host/path ─▶ place ─▶ the same request in absolute form ─▶ pipeline ─▶ its answer, links rewritten ─▶ client
//! ```
//!
//! The request is converted to what a client of the proxy would have sent, before anything is checked: the identity
//! (promise P1) is what the path says, and entries, proofs and address guard are the same. Only the answer differs:
//! URLs of files in an index, and targets of redirects, are rewritten to mirror form. The rewritten form is never
//! stored. Documents with a signature or a promised digest are not rewritten, because [`ecosystem::links`] finds no
//! links in them. A rewritten document has validators of its own (`validators`).
//!
//! To its clients the mirror is one origin for all hosts. So what browsers and package managers separate by origin is
//! separated here: cookies are dropped in both directions, a host's credential does not follow links to another host
//! (`lead`), requests from other sites' pages are refused (`place`), and a mirrored page cannot run scripts with
//! larder's origin (CSP `sandbox`).

mod body;
pub mod fuzz;
mod html;
mod json;
mod path;
mod rewrite;
mod validators;

use std::net::SocketAddr;

use http_body_util::BodyExt as _;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri};

use self::body::{Changed, Changing};
use self::path::MirrorPath;
use self::rewrite::LinkRewriter;
use self::validators::Stamp;
use crate::config::Config;
use crate::ecosystem::links::{Links, links};
use crate::ecosystem::{self, ALL, Kind, Recognition, Shape};
use crate::intercept::Refusal;
use crate::outcome::cause::Cause;
use crate::reply::Body;
use crate::target::{self, Target};

/// Request fields that would tell a host which other hosts the client requests through larder, or that belong to
/// larder's origin.
const OF_THE_CLIENT: [HeaderName; 3] = [header::COOKIE, header::REFERER, header::ORIGIN];

/// Answer fields that would apply to everything mirrored instead of one host.
const FOR_AN_ORIGIN: [&str; 8] = [
    "set-cookie",
    "strict-transport-security",
    "alt-svc",
    "clear-site-data",
    "service-worker-allowed",
    "public-key-pins",
    "report-to",
    "nel",
];

/// The content types of indexes with links. They tell before the answer whether its links may have to be rewritten.
const KINDS: [&str; 2] = ["text/html", "application/json"];

/// A request in mirror form, with what is needed to rewrite its answer.
#[derive(Debug)]
pub(super) struct MirrorRequest {
    target: Target,
    recognition: Option<Recognition>,
    lead: Option<LinkRewriter>,
    stamp: Option<Stamp>,
    /// The client's condition referred to a rewritten document.
    is_conditional: bool,
}

/// Converts a request in mirror form. `None`: the request is for larder's own pages.
pub(super) fn enter<B>(
    config: &Config,
    request: &mut Request<B>,
    local: Option<SocketAddr>,
) -> Result<Option<MirrorRequest>, Refusal> {
    if !path::is_open(config) {
        return Ok(None);
    }
    let Some(place) = path::read(&config.mirror, request.uri())? else {
        return Ok(None);
    };
    let local = local.map(|local| local.to_string());
    let own = path::own_name(request, &config.mirror, local.as_deref())?;
    path::refuse_pages(request.headers(), &own)?;
    let MirrorPath { target, is_anonymous } = place;
    if target.origin().to_string() == format!("http://{own}") {
        return Err(path::looping(&target));
    }
    redirect(request, &target)?;
    let has_credential = request.headers().keys().any(is_credential);
    let headers = request.headers_mut();
    for name in OF_THE_CLIENT {
        headers.remove(name);
    }
    if is_anonymous {
        let shown = headers.keys().filter(|name| is_credential(name)).cloned();
        for name in shown.collect::<Vec<_>>() {
            headers.remove(name);
        }
    }
    let recognition =
        ecosystem::recognise(&Shape { target: &target, accept: &joined(headers, &header::ACCEPT) });
    let is_index = recognition.as_ref().is_some_and(|found| found.resource.kind == Kind::Index);
    let may_change =
        is_index && KINDS.iter().any(|kind| links(recognition.as_ref(), &target, kind).is_some());
    let lead = LinkRewriter::from(&target, &format!("http://{own}"), has_credential, is_anonymous);
    let stamp = lead.as_ref().map(Stamp::of);
    if may_change {
        // Links can only be found in an uncompressed document.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let is_conditional = stamp.as_ref().is_some_and(|stamp| stamp.ask(headers, may_change));
    Ok(Some(MirrorRequest { target, recognition, lead, stamp, is_conditional }))
}

pub(super) use self::path::is_called;

/// Refuses to show a browser counters and stored entries under a host name that may not be larder's: a hostile site
/// can make its own name resolve to larder's address, and its page's script could then read them. Other programs are
/// not checked: a monitoring system may use any name for larder. The remaining pages contain nothing secret, and must
/// be readable before the operator has configured larder's names.
pub(super) fn refuse_rebound<B>(
    config: &Config,
    request: &Request<B>,
    local: Option<SocketAddr>,
) -> Result<(), Refusal> {
    let page = request.uri().path();
    let tells = page.starts_with("/-/") && !["/-/health", "/-/ready"].contains(&page);
    if !tells || !path::is_by_browser(request.headers()) {
        return Ok(());
    }
    let local = local.map(|local| local.to_string());
    path::own_name(request, &config.mirror, local.as_deref()).map(drop)
}

/// Answers 508: the request would make larder connect to itself.
pub(super) fn looping(way: &MirrorRequest) -> Refusal {
    path::looping(&way.target)
}

/// Turns the request into the one that a client of the proxy sends.
fn redirect<B>(request: &mut Request<B>, target: &Target) -> Result<(), Refusal> {
    let unfit = || Refusal::forbidden(Cause::Malformed, format!("{target} cannot be requested"));
    let mut parts = request.uri().clone().into_parts();
    let authority = target.origin().authority();
    parts.scheme = target.origin().scheme.as_str().parse().ok();
    parts.authority = authority.parse().ok();
    parts.path_and_query = target.path_and_query().parse::<PathAndQuery>().ok();
    let uri = Uri::from_parts(parts).map_err(|_| unfit())?;
    let host = HeaderValue::from_str(&authority).map_err(|_| unfit())?;
    *request.uri_mut() = uri;
    request.headers_mut().insert(header::HOST, host);
    Ok(())
}

impl MirrorRequest {
    /// The target of the request.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Turns the pipeline's answer into the mirror's.
    pub(super) fn back(self, response: Response<Body>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        for name in FOR_AN_ORIGIN {
            parts.headers.remove(name);
        }
        parts.headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
        parts.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let (Some(lead), Some(stamp)) = (self.lead, self.stamp) else {
            return Response::from_parts(parts, body);
        };
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            lead_on(&mut parts.headers, name, &lead);
        }
        lead_pages_on(&mut parts.headers, &lead);
        let found = links_in(&parts.headers, self.recognition.as_ref(), &self.target);
        match (parts.status, found) {
            (StatusCode::OK, Some(links)) => {
                stamp.answer(&mut parts.headers);
                let body = Changed::new(body, Changing::new(links, lead)).boxed_unsync();
                Response::from_parts(parts, body)
            }
            (StatusCode::NOT_MODIFIED, _) if self.is_conditional => {
                stamp.answer(&mut parts.headers);
                Response::from_parts(parts, body)
            }
            _ => Response::from_parts(parts, body),
        }
    }
}

/// The links in an answer that can be rewritten; none in one with a content coding.
fn links_in(headers: &HeaderMap, recognition: Option<&Recognition>, at: &Target) -> Option<Links> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let coding = text(header::CONTENT_ENCODING).unwrap_or("identity");
    if !coding.trim().eq_ignore_ascii_case("identity") {
        return None;
    }
    let kind = text(header::CONTENT_TYPE)?.split(';').next()?.trim().to_ascii_lowercase();
    links(recognition, at, &kind)
}

fn lead_on(headers: &mut HeaderMap, name: HeaderName, lead: &LinkRewriter) {
    let changed = headers
        .get(&name)
        .and_then(|value| value.to_str().ok())
        .and_then(|link| lead.url(link))
        .and_then(|url| HeaderValue::from_str(&url).ok());
    if let Some(changed) = changed {
        headers.insert(name, changed);
    }
}

/// Rewrites the links to further pages of a list (`Link: </v2/…>; rel="next"`, RFC 8288 §3), which registries use for
/// tags.
fn lead_pages_on(headers: &mut HeaderMap, lead: &LinkRewriter) {
    let header::Entry::Occupied(mut found) = headers.entry(header::LINK) else { return };
    for value in found.iter_mut() {
        let Some(text) = value.to_str().ok().filter(|text| text.contains('<')) else { continue };
        let mut changed = String::with_capacity(text.len());
        for (index, piece) in text.split('<').enumerate() {
            let link = piece.split_once('>').filter(|_| index > 0);
            match link.and_then(|(link, rest)| Some((lead.url(link)?, rest))) {
                Some((url, rest)) => changed.extend(["<", &url, ">", rest]),
                None => changed.extend([if index > 0 { "<" } else { "" }, piece]),
            }
        }
        if let Ok(changed) = HeaderValue::from_str(&changed) {
            *value = changed;
        }
    }
}

/// Whether the field carries a credential in any ecosystem.
fn is_credential(name: &HeaderName) -> bool {
    ALL.iter().any(|ecosystem| target::is_field(name, ecosystem.profile().login_headers))
}

/// The values of a list field, joined.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(", ")
}
