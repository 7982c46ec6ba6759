//! Why an origin gave no answer, or larder did not ask it.
//!
//! [`Fault`] tells what happened and where the fault lies. [`OriginError`] adds the URL, in the form without secrets.
//! Only this module decides the status for the client, and whether a stored copy may be served instead.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use hyper::StatusCode;
use rustls::{AlertDescription, CertificateError};

use crate::outcome::cause::{Cause, Why};

/// Why an origin gave no answer. Displays as one line: the URL without its secrets, what happened, and what to do about
/// it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{url}: {fault}")]
pub struct OriginError {
    url: Box<str>,
    fault: Fault,
}

impl OriginError {
    /// `at` is displayed: a `Target` or an `Origin`, whose `Display` hides possible secrets.
    pub(crate) fn new(at: &dyn fmt::Display, fault: Fault) -> Self {
        Self { url: at.to_string().into(), fault }
    }

    /// What happened.
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The status for the client.
    pub const fn status(&self) -> StatusCode {
        match self.fault {
            Fault::Shut { .. } | Fault::Forbidden(_) => StatusCode::FORBIDDEN,
            Fault::Unsendable(_) => StatusCode::BAD_REQUEST,
            Fault::Loop => StatusCode::LOOP_DETECTED,
            Fault::ConnectTimeout(_)
            | Fault::HeaderTimeout(_)
            | Fault::Stalled { .. }
            | Fault::TooSlow { .. } => StatusCode::GATEWAY_TIMEOUT,
            Fault::SetUp(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Fault::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Unresolved(_)
            | Fault::Unreachable(_)
            | Fault::Untrusted { .. }
            | Fault::WantsCertificate
            | Fault::ForeignTls(_)
            | Fault::BrokenTls(_)
            | Fault::Proxy(_)
            | Fault::Redirects(_)
            | Fault::Unanswered(_)
            | Fault::NoToken(_)
            | Fault::Framing(_)
            | Fault::Interim { .. }
            | Fault::Broken { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// The cause, for logs, metrics and clients.
    pub fn why(&self) -> Why {
        Why::new(self.fault.cause(), self.to_string())
    }

    /// Whether the only failure was that nothing arrived in time.
    pub const fn is_silence(&self) -> bool {
        matches!(self.fault, Fault::Stalled { .. })
    }

    /// Whether the failure may be transient: a stored copy may then be served instead, and the circuit breaker should
    /// count it. Requests that larder refused or could not send are no failures of the origin.
    pub const fn is_temporary(&self) -> bool {
        match self.fault {
            Fault::Shut { .. }
            | Fault::Forbidden(_)
            | Fault::Unsendable(_)
            | Fault::Loop
            | Fault::SetUp(_)
            | Fault::Busy(_)
            | Fault::WantsCertificate
            | Fault::NoToken(_)
            | Fault::ForeignTls(_) => false,
            Fault::Unresolved(_)
            | Fault::Unreachable(_)
            | Fault::ConnectTimeout(_)
            | Fault::HeaderTimeout(_)
            | Fault::Untrusted { .. }
            | Fault::BrokenTls(_)
            | Fault::Proxy(_)
            | Fault::Redirects(_)
            | Fault::Unanswered(_)
            | Fault::Framing(_)
            | Fault::Interim { .. }
            | Fault::Broken { .. }
            | Fault::Stalled { .. }
            | Fault::TooSlow { .. } => true,
        }
    }
}

/// What went wrong with a request to an origin, and where the fault lies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    // === larder refused ===
    /// The address guard refused the address.
    #[error(
        "{what} is {class}, which larder does not reach{detour}; if it should, say `allow_nets = [\"{mend}\"]`"
    )]
    Shut {
        /// The host and the address that was checked.
        what: Box<str>,
        /// The kind of address, with its article.
        class: &'static str,
        /// Why an address that other clients may reach is closed to this request. Empty, or a phrase that begins with a
        /// space.
        detour: &'static str,
        /// The network to add to `allow_nets` to permit it.
        mend: Box<str>,
    },
    /// The operator's `hosts.refuse` or `hosts.ports` forbids it.
    #[error("{0}")]
    Forbidden(Box<str>),
    /// The request came back to this larder.
    #[error(
        "the request came back to this larder: take larder's own address out of its upstream proxy"
    )]
    Loop,
    /// The request cannot be written as HTTP.
    #[error("the request cannot be sent: {0}")]
    Unsendable(Box<str>),
    /// larder's own configuration is wrong.
    #[error("{0}")]
    SetUp(Box<str>),

    /// larder has no slot for another connection; the origin is not at fault.
    #[error("larder has no connection to spare for it: {0}; try again in a moment")]
    Busy(Box<str>),

    // === resolving and connecting ===
    /// DNS returned no address.
    #[error("its host cannot be resolved: {0}")]
    Unresolved(Box<str>),
    /// No connection could be established.
    #[error("no connection: {0}")]
    Unreachable(Box<str>),
    /// No connection was established in time.
    #[error("no connection within {} s (upstream.connect_timeout)", .0.as_secs_f32())]
    ConnectTimeout(Duration),
    /// The upstream proxy refused or failed.
    #[error("the upstream proxy {0}")]
    Proxy(Box<str>),

    // === TLS ===
    /// larder cannot verify the certificate.
    #[error("{why}{mend}")]
    Untrusted {
        /// What is wrong with the certificate.
        why: Box<str>,
        /// What the operator can do; empty if no further trust anchor would help.
        mend: &'static str,
    },
    /// The origin requires a client certificate, and only the client has its key.
    #[error(
        "it wants a client certificate, which larder cannot show; the host is tunnelled for a day: try again"
    )]
    WantsCertificate,
    /// Origin and larder have no TLS version or cipher suite in common.
    #[error(
        "it speaks no TLS that larder speaks ({0}); the host is tunnelled for a day: try again"
    )]
    ForeignTls(Box<str>),
    /// The handshake failed for another reason.
    #[error("the TLS handshake failed: {0}")]
    BrokenTls(Box<str>),

    // === the answer ===
    /// No header arrived in time.
    #[error("no answer within {} s (upstream.header_timeout)", .0.as_secs_f32())]
    HeaderTimeout(Duration),
    /// The connection ended, or sent something other than HTTP, before a header arrived.
    #[error("no answer: {0}")]
    Unanswered(Box<str>),
    /// A token service answered without an anonymous token.
    #[error("it gives no token: {0}")]
    NoToken(Box<str>),
    /// The answer's framing is ambiguous.
    #[error("the answer's framing is not sound: {0}")]
    Framing(Box<str>),
    /// The origin sent too many interim answers (1xx).
    #[error(
        "it sent {count} interim answers (1xx) and no answer (upstream.interim_answers; together they may have 128 KiB)"
    )]
    Interim {
        /// How many arrived.
        count: u32,
    },
    /// The redirects cannot be followed.
    #[error("{0}")]
    Redirects(Box<str>),
    /// The body was cut off.
    #[error("the transfer broke after {after} bytes: {why}")]
    Broken {
        /// Bytes of the body received before that.
        after: u64,
        /// How it ended.
        why: Box<str>,
    },
    /// No bytes arrived for too long.
    #[error("nothing came for {} s after {after} bytes (upstream.idle_timeout)", limit.as_secs_f32())]
    Stalled {
        /// Bytes of the body received before that.
        after: u64,
        /// The limit.
        limit: Duration,
    },
    /// Too few bytes arrived over a minute.
    #[error(
        "slower than {min_rate} bytes a second over a minute, after {after} bytes (upstream.min_rate)"
    )]
    TooSlow {
        /// Bytes of the body received before that.
        after: u64,
        /// The limit, in bytes a second.
        min_rate: u64,
    },
}

impl Fault {
    /// The cause, one of a bounded set.
    pub const fn cause(&self) -> Cause {
        match self {
            Self::Shut { .. } => Cause::Guard,
            Self::Forbidden(_) => Cause::Host,
            Self::Loop => Cause::Loop,
            Self::Unsendable(_) => Cause::Malformed,
            Self::SetUp(_) => Cause::Larder,
            Self::Busy(_) => Cause::Busy,
            Self::Unresolved(_) => Cause::Dns,
            Self::Unreachable(_) => Cause::Connect,
            Self::ConnectTimeout(_)
            | Self::HeaderTimeout(_)
            | Self::Stalled { .. }
            | Self::TooSlow { .. } => Cause::Timeout,
            Self::Proxy(_) => Cause::UpstreamProxy,
            Self::Untrusted { .. } => Cause::Certificate,
            Self::WantsCertificate => Cause::ClientCertificate,
            Self::ForeignTls(_) | Self::BrokenTls(_) => Cause::Tls,
            Self::Unanswered(_) => Cause::NoAnswer,
            Self::NoToken(_) => Cause::Token,
            Self::Framing(_) | Self::Interim { .. } => Cause::Framing,
            Self::Redirects(_) => Cause::Redirect,
            Self::Broken { .. } => Cause::Broken,
        }
    }

    /// Whether a redirect is at fault: it cannot be followed, or leads to where larder must not go.
    pub const fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Redirects(_) | Self::Forbidden(_) | Self::Shut { .. })
    }

    /// Derives a TLS fault from an I/O error. `asked`: the peer requested a client certificate in this handshake.
    pub(super) fn of_handshake(error: &io::Error, asked: bool) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(why)) => Self::untrusted(why),
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
                Self::WantsCertificate
            }
            Some(rustls::Error::AlertReceived(_)) if asked => Self::WantsCertificate,
            Some(
                alert @ rustls::Error::AlertReceived(
                    AlertDescription::ProtocolVersion
                    | AlertDescription::HandshakeFailure
                    | AlertDescription::InsufficientSecurity,
                ),
            ) => Self::ForeignTls(alert.to_string().into()),
            Some(incompatible @ rustls::Error::PeerIncompatible(_)) => {
                Self::ForeignTls(incompatible.to_string().into())
            }
            _ => Self::BrokenTls(error.to_string().into()),
        }
    }

    fn untrusted(why: &CertificateError) -> Self {
        // rustls-webpki uses this name; rustls has no variant for it.
        let is_of_a_ca = format!("{why:?}").contains("CaUsedAsEndEntity");
        let (why, mend) = if *why == CertificateError::UnknownIssuer {
            (
                "its certificate is signed by nobody larder trusts".to_owned(),
                "; if the signer is yours, give its certificate with --upstream-ca FILE",
            )
        } else if is_of_a_ca {
            (
                "its certificate is a CA's own (CA:TRUE), and none that larder was told to trust"
                    .to_owned(),
                "; if the server is yours, give exactly this certificate with --upstream-ca FILE, or let the server \
                 show one without CA:TRUE (openssl req -x509 -addext basicConstraints=critical,CA:FALSE)",
            )
        } else {
            (format!("its certificate is not valid: {why}"), "")
        };
        Self::Untrusted { why: why.into(), mend }
    }

    /// Finds the connector's fault, or a TLS alert, at the root of a hyper error. Any other error means that no answer
    /// arrived.
    pub(super) fn of_exchange(error: &(dyn Error + 'static), asked: bool) -> Self {
        if let Some(fault) = root::<Self>(error) {
            return fault.clone();
        }
        if let Some(io) = root::<io::Error>(error) {
            if let Some(fault) = io.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
                return fault.clone();
            }
            // In TLS 1.3 the client's handshake ends before the server judges its (empty) certificate. The refusal
            // arrives as an alert instead of the answer (RFC 8446 §4.4.2.4).
            if let fault @ (Self::WantsCertificate | Self::ForeignTls(_)) =
                Self::of_handshake(io, asked)
            {
                return fault;
            }
        }
        if let Some(parse) = root::<hyper::Error>(error).filter(|error| error.is_parse()) {
            return Self::Framing(chain(parse).into());
        }
        Self::Unanswered(chain(error).into())
    }
}

/// The deepest error of type `T` in the chain.
pub(super) fn root<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        found = error.downcast_ref::<T>().or(found);
        next = error.source();
    }
    found
}

/// The whole error chain in one line, because hyper's own texts only name the stage.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text.push_str(": ");
            text.push_str(&deeper);
        }
        next = error.source();
    }
    text
}
