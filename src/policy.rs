//! Decides how larder handles a request: as a pass, or from the cache.
//!
//! The rule (DESIGN §4): a request may become a fill only if each of its header fields is named by its ecosystem, or
//! harmless, or a credential that the fill can send as well; the pipeline then keeps the result of such a fill private.
//! Every other request is a pass: larder streams the client's own request and its response and never shares them, so
//! that it breaks no protocol that it does not know.

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request, Version};

use crate::ecosystem::{Artifact, Kind, Named, Recognition};
use crate::target::{Scheme, Target, is_field, is_shown_once};

/// Why larder does not answer a request from the cache and does not store its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassReason {
    /// Neither GET nor HEAD.
    Method,
    /// It has a body.
    Body,
    /// It asks to switch protocols.
    Upgrade,
    /// It carries a credential that larder cannot send again: a connection's login, or a login or URL made for one
    /// request.
    Credential,
    /// It carries a header field that larder does not know to be harmless.
    Header,
    /// Plain HTTP, with neither a digest in the URL nor a signature.
    Plain,
    /// The client sent `Cache-Control: no-store`, and no proof outweighs that.
    NoStore,
    /// The origin answered the fill with an error that the client should receive unchanged.
    Answer,
    /// The operator configured larder to pass this host through.
    Host,
    /// larder is still reading the store after a crash.
    Starting,
}

impl PassReason {
    /// The name as logs, metrics and headers spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "body",
            Self::Upgrade => "upgrade",
            Self::Credential => "credential",
            Self::Header => "header",
            Self::Plain => "plain",
            Self::NoStore => "no-store",
            Self::Answer => "answer",
            Self::Host => "host",
            Self::Starting => "starting",
        }
    }

    /// The reason as a phrase for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Method => "its method is neither GET nor HEAD",
            Self::Body => "it has a body",
            Self::Upgrade => "it asks to switch protocols",
            Self::Credential => {
                "it carries a credential that is made for one connection or one request"
            }
            Self::Header => "one of its header fields may change the answer",
            Self::Plain => {
                "plain http, and neither a digest in its URL nor a signature vouches for the answer"
            }
            Self::NoStore => "its client asks that nothing is stored (Cache-Control: no-store)",
            Self::Answer => "the origin's answer is not one that others may be given",
            Self::Host => "the operator passes this host on (hosts.tunnel)",
            Self::Starting => "what is stored is still being read, after a crash",
        }
    }
}

/// How larder handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Stream the client's own request and its response.
    Pass(PassReason),
    /// An index, or a target of unknown kind: answer from the store while it is fresh (RFC 9111).
    Revalidate,
    /// An artifact: answer from the store while its proof holds.
    Keep,
}

/// Fields that do not change the response, or are part of the key, or concern one connection only. A trailing `*`
/// matches any suffix.
const HARMLESS: [&str; 43] = [
    // in the key
    "host",
    "accept",
    "accept-language",
    // answered by larder itself, or sent with a fixed value
    "accept-encoding",
    "user-agent",
    "range",
    "if-*",
    "cache-control",
    "pragma",
    // trace context (W3C) and other fields that only correlate log lines
    "traceparent",
    "tracestate",
    "baggage",
    "x-request-id",
    "x-correlation-id",
    "b3",
    "x-b3-*",
    // hop-by-hop (RFC 9110 §7.6.1), or about the path of the request
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "via",
    // requests h2c, as cargo does on plain HTTP; larder strips it
    "http2-settings",
    "upgrade",
    // no body follows
    "content-length",
    "priority",
    // requests a checksum of the response, which is optional to send (RFC 9530 §4, RFC 3230 §4.3.1)
    "want-digest",
    "want-repr-digest",
    "want-content-digest",
    // the context of a browser's request; runtimes that imitate browsers send it too, such as every `fetch()` of Node's
    "sec-fetch-*",
    // client statistics that registries count: zypper, Bundler, Terraform, NuGet, conda, and clients of model hubs. The
    // expected digest in conda's field is neither a claim nor part of the key.
    "x-zypp-*",
    "x-gemfile-source",
    "x-terraform-version",
    "x-terraform-get",
    "x-nuget-session-id",
    "x-nuget-client-version",
    "x-nuget-protocol-version",
    "x-expected-sha256",
    "x-expected-md5",
    "x-hf-download-counter",
    "x-xet-session-id",
    "x-amzn-trace-id",
];

/// Decides. `vouched`: a signature may prove the response, even over plain HTTP. `extra`: the harmless fields that the
/// operator added.
pub fn plan<B>(
    request: &Request<B>,
    has_body: bool,
    target: &Target,
    recognition: Option<&Recognition>,
    vouched: bool,
    extra: &[String],
) -> Plan {
    let method = request.method();
    if method != Method::GET && method != Method::HEAD {
        return Plan::Pass(PassReason::Method);
    }
    if has_body {
        return Plan::Pass(PassReason::Body);
    }
    if asks_upgrade(request) {
        return Plan::Pass(PassReason::Upgrade);
    }
    if is_shown_once(request.headers()) {
        return Plan::Pass(PassReason::Credential);
    }
    if target.has_token_in_query() && recognition.is_none() {
        // Such a URL is usually signed for one download; the next download has another signature and would never hit.
        return Plan::Pass(PassReason::Credential);
    }
    if unknown_header(request.headers(), recognition, extra).is_some() {
        return Plan::Pass(PassReason::Header);
    }
    let artifact = match recognition.map(|recognition| &recognition.resource.kind) {
        Some(Kind::Artifact(artifact)) => Some(artifact),
        Some(Kind::Index) | None => None,
    };
    // Over plain HTTP, an attacker on the path may have written the response. Only a digest in the request itself or a
    // signature outweighs that.
    if target.origin().scheme == Scheme::Http
        && !vouched
        && !artifact.is_some_and(is_named_by_protocol)
    {
        return Plan::Pass(PassReason::Plain);
    }
    if artifact.is_some() { Plan::Keep } else { Plan::Revalidate }
}

/// The first header field that makes a request a pass. `extra`: the harmless fields that the operator added.
pub fn unknown_header<'a>(
    headers: &'a HeaderMap,
    recognition: Option<&Recognition>,
    extra: &[String],
) -> Option<&'a HeaderName> {
    let named =
        recognition.map_or(&[][..], |recognition| recognition.ecosystem.profile().harmless_headers);
    let logins =
        recognition.map_or(&[][..], |recognition| recognition.ecosystem.profile().login_headers);
    let harmless = |name: &&HeaderName| {
        let matches = |pattern: &str| fits(name, pattern);
        // The fill sends the credential unchanged, and its result is private to that credential.
        is_field(name, logins)
            || HARMLESS.iter().copied().any(matches)
            || named.iter().copied().any(matches)
            || extra.iter().map(String::as_str).any(matches)
    };
    headers.keys().find(|name| !harmless(name))
}

/// Whether a field's name matches `pattern`; a trailing `*` matches any suffix.
pub fn fits(name: &HeaderName, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.as_str().starts_with(start),
        None => name.as_str() == pattern,
    }
}

fn is_named_by_protocol(artifact: &Artifact) -> bool {
    artifact.named.as_ref().is_some_and(Named::is_by_protocol)
}

/// Whether the client asks to switch protocols. h2c does not count, because larder never grants it.
pub fn asks_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().get_all(header::UPGRADE).iter().any(|value| {
            value.to_str().map_or(true, |text| {
                text.split(',').any(|token| !token.trim().eq_ignore_ascii_case("h2c"))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(method: &str, url: &str, fields: &[(&str, &str)], has_body: bool) -> Plan {
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let target = Target::from_url(url).unwrap();
        plan(&request.body(()).unwrap(), has_body, &target, None, false, &["x-build-*".to_owned()])
    }

    #[test]
    fn only_what_is_known_to_be_harmless_may_be_shared() {
        let url = "https://example.org/a";
        for (fields, expected) in [
            (&[][..], Plan::Revalidate),
            (&[("accept", "*/*"), ("user-agent", "x"), ("range", "bytes=0-1")], Plan::Revalidate),
            (&[("if-none-match", "\"a\""), ("x-build-id", "7")], Plan::Revalidate),
            (&[("upgrade", "h2c"), ("http2-settings", "AAMAAABk")], Plan::Revalidate),
            (&[("want-digest", "SHA-256"), ("sec-fetch-mode", "cors")], Plan::Revalidate),
            (&[("want-repr-digest", "sha-256=1"), ("x-zypp-anonymousid", "1")], Plan::Revalidate),
            (&[("x-nuget-session-id", "1"), ("x-expected-sha256", "00")], Plan::Revalidate),
            (&[("x-terraform-version", "1.11.4"), ("te", "")], Plan::Revalidate),
            (&[("x-vault-token", "s3cret")], Plan::Pass(PassReason::Header)),
            (&[("x-zyppx", "1")], Plan::Pass(PassReason::Header)),
            (&[("authorization", "Basic x")], Plan::Revalidate),
            (&[("cookie", "a=b"), ("private-token", "x")], Plan::Revalidate),
            (&[("cookie", "a=b"), ("x-vault-token", "x")], Plan::Pass(PassReason::Header)),
            (&[("authorization", "NTLM x")], Plan::Pass(PassReason::Credential)),
            (&[("authorization", "negotiate x")], Plan::Pass(PassReason::Credential)),
            (&[("upgrade", "websocket")], Plan::Pass(PassReason::Upgrade)),
            (&[("origin", "https://example.org")], Plan::Pass(PassReason::Header)),
        ] {
            assert_eq!(plan_of("GET", url, fields, false), expected, "{fields:?}");
        }
        assert_eq!(plan_of("POST", url, &[], false), Plan::Pass(PassReason::Method));
        assert_eq!(plan_of("GET", url, &[], true), Plan::Pass(PassReason::Body));
    }

    #[test]
    fn what_is_signed_for_one_download_is_passed() {
        for url in ["https://example.org/a?X-Amz-Signature=00&b=1", "https://example.org/a?token=x"]
        {
            assert_eq!(
                plan_of("GET", url, &[], false),
                Plan::Pass(PassReason::Credential),
                "{url}"
            );
        }
        for url in [
            "https://example.org/t/ab-0123456789abcdef/c/x.conda",
            "https://example.org/t/x?tokens=1",
        ] {
            assert_eq!(plan_of("GET", url, &[], false), Plan::Revalidate, "{url}");
        }
    }

    #[test]
    fn plain_http_is_passed() {
        assert_eq!(
            plan_of("GET", "http://example.org/a", &[], false),
            Plan::Pass(PassReason::Plain)
        );
    }
}
