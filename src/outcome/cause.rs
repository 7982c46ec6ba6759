//! Why a request was not answered as others are.
//!
//! A [`Cause`] is one of few, so that it may be a label of metrics; a [`Why`] adds the words for people, which name the URL,
//! what happened, and what to do next. Both go together from where something fails to the log, to `larder why` and to the
//! client.

use std::fmt;

/// Why a request was refused, or failed: the bounded form. How a pass became one says [`PassReason`](crate::policy::PassReason).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    // === the way to the origin ===
    /// DNS gave no address.
    Dns,
    /// No connection.
    Connect,
    /// Something took longer than its limit.
    Timeout,
    /// The upstream proxy refused or failed.
    UpstreamProxy,
    /// The origin's certificate proves nothing.
    Certificate,
    /// The origin wants a certificate that only the client has.
    ClientCertificate,
    /// No TLS in common, or a handshake that failed otherwise.
    Tls,
    /// The address guard keeps the address shut.
    Guard,
    /// A redirect that leads nowhere, or where larder must not go.
    Redirect,
    /// The connection ended before an answer came.
    NoAnswer,
    /// The answer's framing can be read in two ways.
    Framing,
    /// The body ended before its end.
    Broken,
    /// A token service gave no token.
    Token,
    /// The origin answered with an error.
    Status,

    // === what is promised ===
    /// The body is not what was promised.
    Promise,
    /// The target was refused a moment ago.
    Quarantine,
    /// What would decide could not be asked, or is being published.
    Undecided,

    // === the request ===
    /// The request names two things at once.
    Identity,
    /// The request cannot be understood.
    Malformed,
    /// It came back to this larder.
    Loop,
    /// It wants what is stored, and nothing is.
    NotStored,
    /// The operator keeps this host or port shut.
    Host,
    /// The CA may not sign for this host.
    Ca,
    /// A tunnel that carries neither TLS nor HTTP.
    Protocol,

    // === the client ===
    /// The operator does not let this client in.
    Client,
    /// One of the clients' limits was reached.
    Limit,
    /// The client took nothing for too long.
    Stalled,
    /// Nobody waited for it any more.
    Abandoned,

    // === larder ===
    /// larder has no room for it now.
    Busy,
    /// larder's own configuration or disk.
    Larder,
}

impl Cause {
    /// The name as logs and metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::UpstreamProxy => "upstream-proxy",
            Self::Certificate => "certificate",
            Self::ClientCertificate => "client-certificate",
            Self::Tls => "tls",
            Self::Guard => "guard",
            Self::Redirect => "redirect",
            Self::NoAnswer => "no-answer",
            Self::Framing => "framing",
            Self::Broken => "broken",
            Self::Token => "token",
            Self::Status => "status",
            Self::Promise => "promise",
            Self::Quarantine => "quarantine",
            Self::Undecided => "undecided",
            Self::Identity => "identity",
            Self::Malformed => "malformed",
            Self::Loop => "loop",
            Self::NotStored => "not-stored",
            Self::Host => "host",
            Self::Ca => "ca",
            Self::Protocol => "protocol",
            Self::Client => "client",
            Self::Limit => "limit",
            Self::Stalled => "stalled",
            Self::Abandoned => "abandoned",
            Self::Busy => "busy",
            Self::Larder => "larder",
        }
    }
}

/// A cause, and the words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The bounded form.
    pub cause: Cause,
    /// What happened, to which URL, and what to do next.
    pub text: String,
}

impl Why {
    /// With these words.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
