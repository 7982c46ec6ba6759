//! Why a request was refused or failed.
//!
//! A [`Cause`] is one of a few values, so that it can be a label of metrics. A [`Why`] adds an explanation for
//! people: the URL, what happened, and what to do next. Both are passed together from the place of the failure to the
//! log, to `larder why` and to the client.

use std::fmt;

/// Why a request was refused or failed, as one of a few values. The reason for a pass is a
/// [`PassReason`](crate::policy::PassReason).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    // === the way to the origin ===
    /// DNS returned no address.
    Dns,
    /// No connection could be made.
    Connect,
    /// An operation exceeded its time limit.
    Timeout,
    /// The upstream proxy refused or failed.
    UpstreamProxy,
    /// The origin's certificate cannot be trusted.
    Certificate,
    /// The origin requires a client certificate, which only the client has.
    ClientCertificate,
    /// No TLS version or cipher suite in common, or another handshake failure.
    Tls,
    /// The address guard blocks the address.
    Guard,
    /// A redirect without a valid target, or to a target that larder must not fetch.
    Redirect,
    /// The connection ended before an answer came.
    NoAnswer,
    /// The framing of the answer is ambiguous.
    Framing,
    /// The body ended too early.
    Broken,
    /// A token service issued no token.
    Token,
    /// The origin answered with an error.
    Status,

    // === the proof ===
    /// The body differs from what an index claimed.
    Promise,
    /// The target was refused a moment ago and is quarantined.
    Quarantine,
    /// A document that decides could not be fetched, or is just being published.
    Undecided,

    // === the request ===
    /// The request names two different targets.
    Identity,
    /// The request is malformed.
    Malformed,
    /// The request came back to this larder.
    Loop,
    /// The request demands a stored answer (`only-if-cached`), and there is none.
    NotStored,
    /// The operator's configuration forbids this host or port.
    Host,
    /// The CA may not sign for this host.
    Ca,
    /// A tunnel that carries neither TLS nor HTTP.
    Protocol,

    // === the client ===
    /// The operator's configuration does not admit this client.
    Client,
    /// A limit on clients was reached.
    Limit,
    /// The client read nothing for too long.
    Stalled,
    /// No client waited for it any more.
    Abandoned,

    // === larder ===
    /// larder is too busy at the moment.
    Busy,
    /// A fault of larder's own configuration or disk.
    Larder,
}

impl Cause {
    /// The name in logs and metrics.
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

/// A cause and its explanation for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The cause.
    pub cause: Cause,
    /// What happened, to which URL, and what to do next.
    pub text: String,
}

impl Why {
    /// Creates it with this explanation.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
