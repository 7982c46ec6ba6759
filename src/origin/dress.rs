//! A pass's fields, taken off one connection and put on the next.
//!
//! Pure: what a request looks like on h1, on h2, and through a proxy, and what is taken off an answer.

use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::ask;
use super::connect::Speaks;
use super::error::Fault;
use super::expect::Uphill;
use super::hop;
use crate::target::Target;

/// What a request needs besides its end-to-end fields, whatever connection it goes on. It has no `Debug`: the URL is whole
/// here.
pub(super) struct Outbound {
    absolute: Uri,
    origin_form: Uri,
    authority: HeaderValue,
    /// As what the client came: `Via` names it.
    via: (&'static str, String),
    /// The protocols asked for by an h1 client.
    upgrade: Option<HeaderValue>,
    takes_trailers: bool,
    /// The client's protocol knows no 100.
    forget_expect: bool,
    /// For a proxy that takes requests in absolute form, and for nobody else.
    proxy_authorization: Option<HeaderValue>,
}

impl Outbound {
    /// Reads what belongs to the client's connection, before [`Self::strip`] removes it.
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

    /// Whether the client asks to change the protocol.
    pub(super) const fn upgrades(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Removes what belonged to the client's connection, and adds larder to `Via`.
    pub(super) fn strip(&self, request: &mut Request<Uphill>) {
        let headers = request.headers_mut();
        hop::strip(headers);
        if self.forget_expect {
            headers.remove(EXPECT);
        }
        hop::add_via(headers, self.via.0, &self.via.1);
    }

    /// Makes `request` fit the connection. Everything that depends on the connection is set or removed,
    /// so that a request can be dressed again for another.
    pub(super) fn dress(&self, request: &mut Request<Uphill>, speaks: Speaks) {
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
            // The URI's authority becomes `:authority`; a second name could differ.
            headers.remove(HOST);
            return;
        }
        headers.insert(HOST, self.authority.clone());
        // In one line: some servers read only the first.
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
            // hyper would take a GET of unknown length for one without a body.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if speaks == Speaks::H1Proxy
            && let Some(authorization) = &self.proxy_authorization
        {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    }

    /// A copy to be sent if `request` gets lost with an old connection: only of what does nothing at the origin
    /// (RFC 9110 §9.2.1) and has no body.
    pub(super) fn copy_of(&self, request: &Request<Uphill>) -> Option<Request<Uphill>> {
        let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if !safe || self.upgrades() || !request.body().is_empty() {
            return None;
        }
        let mut copy = Request::new(Uphill::empty());
        *copy.method_mut() = request.method().clone();
        *copy.headers_mut() = request.headers().clone();
        Some(copy)
    }
}

/// Takes off an answer what belonged to the origin's connection; a change of protocol that was asked for stays.
pub(super) fn undress(
    mut response: Response<Incoming>,
    may_upgrade: bool,
) -> Result<Response<Incoming>, Fault> {
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded && !may_upgrade {
        return Err(Fault::Framing("it changes to a protocol nobody asked for".into()));
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
