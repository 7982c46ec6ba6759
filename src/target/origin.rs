//! Origins: scheme, host and port, each in a canonical form.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// How the bytes are transported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scheme {
    /// Plain http: an attacker on the path can change every byte.
    Http,
    /// http over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host in canonical form: a lower-case name without a trailing dot, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Host {
    /// A DNS name: lower-case ASCII letters, digits, `-`, `_` and `.`.
    Name(Box<str>),
    /// An IP literal.
    Address(IpAddr),
}

impl Host {
    /// Parses a host as in an authority: `example.org`, `192.0.2.1`, `[2001:db8::1]`. Refuses numeric spellings of
    /// addresses that resolvers accept but RFC 3986 §3.2.2 does not (`0x7f.1`, `2130706433`, `127.1`): they would pass
    /// a check of names and reach an address.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inner.parse::<Ipv6Addr>().ok().map(|address| Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let well_formed = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            });
        let last = name.rsplit('.').next().unwrap_or(name);
        let numeric = last.bytes().all(|b| b.is_ascii_digit())
            || last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")).is_some();
        (well_formed && !numeric).then(|| Self::Name(name.to_ascii_lowercase().into()))
    }

    /// Its text as in an authority: IPv6 addresses in brackets.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Name(name) => Cow::Borrowed(name),
            Self::Address(_) => Cow::Owned(self.to_string()),
        }
    }

    /// The name, unless it is an address.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// As in an authority: IPv6 addresses in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// How the bytes are transported.
    pub scheme: Scheme,
    /// The host.
    pub host: Host,
    /// The port. Always explicit here; texts omit the scheme's default.
    pub port: u16,
}

impl Origin {
    /// The last two labels of the host's name, or the address. The owner of a domain can create any number of hosts
    /// below it, so shared limits are divided among sites first (`store/fair.rs`). Used for nothing else, because below
    /// some such names (public suffixes) many owners have one each.
    pub fn site(&self) -> String {
        let host = self.host.to_string();
        let start = self.host.name().and_then(|name| name.rmatch_indices('.').nth(1));
        start.and_then(|(dot, _)| host.get(dot + 1..)).map_or_else(|| host.clone(), str::to_owned)
    }

    /// The authority: host, and port unless it is the scheme's default.
    pub fn authority(&self) -> String {
        let mut text = self.host.text().into_owned();
        if self.port != self.scheme.default_port() {
            // Writing to a String cannot fail.
            let _infallible = write!(text, ":{}", self.port);
        }
        text
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme.as_str())?;
        f.write_str("://")?;
        f.write_str(&self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_the_name_that_somebody_has() {
        for (host, site) in [
            ("a.b.example.org", "example.org"),
            ("example.org", "example.org"),
            ("localhost", "localhost"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:db8::1]", "[2001:db8::1]"),
        ] {
            let host = Host::parse(host).unwrap();
            assert_eq!(Origin { scheme: Scheme::Https, host, port: 443 }.site(), site);
        }
    }

    #[test]
    fn hosts_have_one_spelling() {
        assert_eq!(Host::parse("EXAMPLE.org."), Host::parse("example.org"));
        for bad in [
            "",
            ".",
            "a..b",
            "0x7f.1",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "a b",
            "a/b",
            "a@b",
            "[::1",
            "a%41",
        ] {
            assert_eq!(Host::parse(bad), None, "{bad}");
        }
        assert_eq!(Host::parse("[::1]").unwrap().to_string(), "[::1]");
    }
}
