//! A fill's request: canonical, built from the key alone (promise P1).
//!
//! It contains nothing from the client's request except what the key names, so no client header can change an answer
//! that other clients get later. A private fill adds exactly the credential, and only on requests to the origin for
//! which the client sent it: a redirect does not carry it elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, PROXY_AUTHORIZATION, RANGE, USER_AGENT,
};
use hyper::{Method, Request, Uri};

use super::error::Fault;
use super::token::Token;
use super::{Lane, Reach, hop};
use crate::target::{Credential, Target};

/// The `User-Agent` of fills.
const LARDER: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// A canonical request, built from the key alone.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one property of a request, set by name")]
pub struct Ask {
    /// The target to request.
    pub target: Target,
    /// The pool of connections to use, so that an index does not wait behind a large layer.
    pub lane: Lane,
    /// The `Accept` that the key names; empty for none.
    pub accept: String,
    /// For unknown resources, the `Accept-Language` that the key names.
    pub accept_language: Option<String>,
    /// Further client header fields that select the answer, as the key names them (RFC 9111 §4.1).
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// The stored entity tag, when revalidating.
    pub if_none_match: Option<String>,
    /// The stored `Last-Modified`, when revalidating.
    pub if_modified_since: Option<String>,
    /// First and last byte (inclusive): for a resume, or for a distant range requested beside the fill.
    pub range: Option<(u64, Option<u64>)>,
    /// A strong validator for `If-Range`: the origin sends the range if the representation is unchanged, else the
    /// whole.
    pub if_range: Option<String>,
    /// Send HEAD instead of GET.
    pub head_only: bool,
    /// Follow redirects internally, as far as clients do, with the guard checking every hop.
    pub follow: bool,
    /// Use a new connection.
    pub fresh_connection: bool,
    /// Wait for the answer as long as the client does: a resource of unknown kind may be a long poll.
    pub patient: bool,
    /// The addresses that this request may reach.
    pub reach: Reach,
    /// larder's own anonymous token. Sent to the requested origin only, never after a redirect elsewhere.
    pub token: Option<Token>,
    /// The client's credential, for a private fill. Sent to the requested origin only.
    pub credential: Option<Arc<Credential>>,
}

impl Ask {
    /// A request for a small document, with nothing special.
    pub fn plain(target: Target, reach: Reach) -> Self {
        Self {
            target,
            lane: Lane::Metadata,
            accept: "*/*".to_owned(),
            accept_language: None,
            fields: Vec::new(),
            if_none_match: None,
            if_modified_since: None,
            range: None,
            if_range: None,
            head_only: false,
            follow: false,
            fresh_connection: false,
            patient: false,
            reach,
            token: None,
            credential: None,
        }
    }

    /// Builds the HTTP request for `target`: the requested one, or the target of a redirect. The connection adds
    /// `Host`.
    pub(super) fn request(
        &self,
        target: &Target,
        pseudonym: &str,
        proxy_authorization: Option<HeaderValue>,
    ) -> Result<Request<Empty<Bytes>>, Fault> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = if self.head_only { Method::HEAD } else { Method::GET };
        *request.uri_mut() = uri(target)?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(LARDER));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut set = |name: HeaderName, value: Option<&str>| -> Result<(), Fault> {
            if let Some(value) = value {
                let value = HeaderValue::try_from(value)
                    .map_err(|_| Fault::Unsendable(format!("bad {name}").into()))?;
                headers.insert(name, value);
            }
            Ok(())
        };
        set(ACCEPT, Some(&*self.accept).filter(|accept| !accept.is_empty()))?;
        set(ACCEPT_LANGUAGE, self.accept_language.as_deref())?;
        set(IF_NONE_MATCH, self.if_none_match.as_deref())?;
        set(IF_MODIFIED_SINCE, self.if_modified_since.as_deref())?;
        let range = self.range.map(|(first, last)| match last {
            Some(last) => format!("bytes={first}-{last}"),
            None => format!("bytes={first}-"),
        });
        set(RANGE, range.as_deref())?;
        set(IF_RANGE, self.if_range.as_deref())?;
        for (name, _) in &self.fields {
            headers.remove(name);
        }
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
        if let Some(token) = &self.token
            && target.origin() == self.target.origin()
        {
            headers.insert(AUTHORIZATION, token.authorization());
        }
        if let Some(credential) = &self.credential
            && target.origin() == self.target.origin()
        {
            credential.show_to_origin(headers);
        }
        if let Some(value) = proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        hop::add_via(headers, "1.1", pseudonym);
        Ok(request)
    }
}

/// The absolute URI of `target`.
pub(super) fn uri(target: &Target) -> Result<Uri, Fault> {
    Uri::try_from(target.url())
        .map_err(|error| Fault::Unsendable(format!("no URL that HTTP can carry: {error}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(url: &str) -> Ask {
        Ask {
            target: Target::from_url(url).unwrap(),
            lane: Lane::Bulk,
            accept: "text/html".into(),
            accept_language: None,
            fields: Vec::new(),
            if_none_match: Some("\"a\"".into()),
            if_modified_since: None,
            range: Some((5, None)),
            if_range: Some("\"a\"".into()),
            head_only: false,
            follow: false,
            fresh_connection: false,
            patient: false,
            reach: Reach { internal_client: false, from_public: false },
            token: None,
            credential: None,
        }
    }

    #[test]
    fn a_request_holds_what_the_key_names_and_nothing_else() {
        let ask = ask("https://example.org/a?b=c");
        let request = ask.request(&ask.target, "larder-0", None).unwrap();
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "accept-encoding",
                "if-none-match",
                "if-range",
                "range",
                "user-agent",
                "via"
            ]
        );
        assert_eq!(request.headers()["range"], "bytes=5-");
        assert_eq!(request.headers()["accept-encoding"], "identity");
        assert_eq!(request.uri(), "https://example.org/a?b=c");
    }

    #[test]
    fn a_credential_goes_to_its_origin_only() {
        let mut private = ask("https://example.org/a");
        let login = (AUTHORIZATION, HeaderValue::from_static("Bearer s3cret"));
        private.credential = Credential::of_fields([login]).map(Arc::new);
        for (url, shown) in [
            ("https://example.org/a", true),
            ("https://example.org/elsewhere", true),
            ("https://files.example.org/a", false),
            ("http://example.org/a", false),
            ("https://example.org:8443/a", false),
        ] {
            let target = Target::from_url(url).unwrap();
            let request = private.request(&target, "larder-0", None).unwrap();
            assert_eq!(request.headers().contains_key("authorization"), shown, "{url}");
        }
    }

    #[test]
    fn what_http_cannot_carry_is_said_and_not_sent() {
        let mut odd = ask("https://example.org/a");
        odd.accept = "a\r\nx: y".into();
        assert!(odd.request(&odd.target, "larder-0", None).is_err());
    }
}
