//! Translates a pass's header fields from one connection to the next.
//!
//! Pure. Defines what a request looks like on HTTP/1.1, on HTTP/2 and through a proxy, and which fields are removed
//! from an answer.

use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::ask;
use super::connect::Speaks;
use super::error::Fault;
use super::expect::HeldBody;
use super::hop;
use crate::target::Target;

/// What a request needs besides its end-to-end fields, on any kind of connection. Has no `Debug`, because it contains
/// the URL with its secrets.
pub(super) struct Outbound {
    absolute: Uri,
    origin_form: Uri,
    authority: HeaderValue,
    /// The client's protocol version and larder's pseudonym, for `Via`.
    via: (&'static str, String),
    /// The protocols that an HTTP/1.1 client asks to upgrade to.
    upgrade: Option<HeaderValue>,
    takes_trailers: bool,
    /// Whether the client speaks HTTP/1.0, which has no 100 (Continue).
    forget_expect: bool,
    /// Sent only to a proxy that takes requests in absolute form.
    proxy_authorization: Option<HeaderValue>,
}

impl Outbound {
    /// Reads the fields of the client's connection, before [`Self::strip`] removes them.
    pub(super) fn new<B>(
        target: &Target,
        request: &Request<B>,
        pseudonym: &str,
        proxy_authorization: Option<HeaderValue>,
    ) -> Result<Self, Fault> {
        let bad = |_| Fault::Unsendable("no URL that HTTP can carry".into());
        let version = request.version();
        Ok(Self {
            absolute: ask::uri(target)?,
            origin_form: Uri::try_from(target.path_and_query()).map_err(bad)?,
            authority: HeaderValue::try_from(target.origin().authority())
                .map_err(|_| Fault::Unsendable("no host that HTTP can carry".into()))?,
            via: (
                match version {
                    Version::HTTP_2 => "2",
                    Version::HTTP_10 => "1.0",
                    _ => "1.1",
                },
                pseudonym.to_owned(),
            ),
            upgrade: hop::upgrade(request.headers()).filter(|_| version == Version::HTTP_11),
            takes_trailers: hop::takes_trailers(request.headers()),
            forget_expect: version == Version::HTTP_10,
            proxy_authorization,
        })
    }

    /// Whether the client asks for a protocol upgrade.
    pub(super) const fn upgrades(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Removes the fields of the client's connection, and adds larder to `Via`.
    pub(super) fn strip(&self, request: &mut Request<HeldBody>) {
        let headers = request.headers_mut();
        hop::strip(headers);
        if self.forget_expect {
            headers.remove(EXPECT);
        }
        hop::add_via(headers, self.via.0, &self.via.1);
    }

    /// Adapts `request` to the connection. Sets or removes everything that depends on the connection, so that the
    /// request can be adapted again for another one.
    pub(super) fn dress(&self, request: &mut Request<HeldBody>, speaks: Speaks) {
        let unsized_body =
            !request.body().is_empty() && !request.headers().contains_key(CONTENT_LENGTH);
        let (version, uri) = match speaks {
            Speaks::H1 => (Version::HTTP_11, &self.origin_form),
            Speaks::H1Proxy => (Version::HTTP_11, &self.absolute),
            Speaks::H2 => (Version::HTTP_2, &self.absolute),
        };
        *request.version_mut() = version;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        for name in [CONNECTION, UPGRADE, TE, TRANSFER_ENCODING, PROXY_AUTHORIZATION] {
            headers.remove(name);
        }
        if self.takes_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if speaks == Speaks::H2 {
            // The URI's authority becomes `:authority`; a `Host` field could differ from it.
            headers.remove(HOST);
            return;
        }
        headers.insert(HOST, self.authority.clone());
        // In one field line, because some servers read only the first.
        match (&self.upgrade, self.takes_trailers) {
            (Some(_), true) => Some("upgrade, te"),
            (Some(_), false) => Some("upgrade"),
            (None, true) => Some("te"),
            (None, false) => None,
        }
        .map(|named| headers.insert(CONNECTION, HeaderValue::from_static(named)));
        if let Some(protocols) = &self.upgrade {
            headers.insert(UPGRADE, protocols.clone());
        }
        if unsized_body {
            // Without this, hyper would send a GET with a body of unknown length as one without a body.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if speaks == Speaks::H1Proxy
            && let Some(authorization) = &self.proxy_authorization
        {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    }

    /// A copy to resend if `request` fails on an old connection. Only for safe methods (RFC 9110 §9.2.1) without a
    /// body.
    pub(super) fn copy_of(&self, request: &Request<HeldBody>) -> Option<Request<HeldBody>> {
        let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if !safe || self.upgrades() || !request.body().is_empty() {
            return None;
        }
        let mut copy = Request::new(HeldBody::empty());
        *copy.method_mut() = request.method().clone();
        *copy.headers_mut() = request.headers().clone();
        Some(copy)
    }
}

/// Removes the fields of the origin's connection from an answer. Keeps a protocol upgrade that the client asked for.
pub(super) fn undress(
    mut response: Response<Incoming>,
    may_upgrade: bool,
) -> Result<Response<Incoming>, Fault> {
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded && !may_upgrade {
        return Err(Fault::Framing(
            "it switches to a protocol that the client did not ask for".into(),
        ));
    }
    let headers = response.headers_mut();
    hop::check_framing(headers)?;
    let protocol = headers.get(UPGRADE).cloned();
    hop::strip_answer(headers);
    if upgraded && let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    Ok(response)
}
