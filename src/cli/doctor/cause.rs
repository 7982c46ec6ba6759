//! Determines why a client fails, from what larder saw of it and from the client's settings.

use std::fmt;

use super::bypass::Set;
use super::client::{By, Client};
use super::detector::DIRECT;
use super::facts::{Facts, Trust, is_same};
use super::larder::Larder;
use crate::clock::Time;
use crate::outcome::witness::Sight;

/// The cause of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// No proxy is set.
    Unset,
    /// A proxy is set, in a variable that other clients read and this one does not. With the variable that this client reads.
    Unread(Set, &'static str),
    /// A proxy is set, in a variable whose case the client does not read.
    OneCase(Set),
    /// Another proxy is set.
    Elsewhere(Set),
    /// A program that the client asks for its proxy says that there is none.
    Direct(Set),
    /// The host bypasses the proxy. With the index that the client uses, if one is known.
    Around(Set, Option<String>),
    /// The proxy is set, and no connection arrived.
    Ignored,
    /// The client sent CONNECT, and did not begin TLS.
    Silent,
    /// The client rejected the certificate, and its roots do not contain the CA.
    Untrusted(Option<Set>),
    /// Its roots contain the CA of another larder, or an earlier one of this larder.
    Changed(Option<Set>),
    /// The client rejected the certificate, and the CA has expired: no client accepts it.
    Expired(Time),
    /// The client rejected the certificate, although its roots contain the CA.
    Pinned(String),
    /// The client and larder have no TLS version or cipher suite in common.
    Foreign(String),
    /// The handshake failed in another way.
    Broken(String),
}

impl Cause {
    /// Its name in `--json`.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Unset | Self::Unread(..) => "proxy-unset",
            Self::OneCase(_) => "one-case",
            Self::Elsewhere(_) => "wrong-address",
            Self::Direct(_) => "detected-direct",
            Self::Around(..) => "no-proxy",
            Self::Ignored => "proxy-ignored",
            Self::Silent => "no-tls",
            Self::Untrusted(_) => "ca-untrusted",
            Self::Changed(_) => "ca-changed",
            Self::Expired(_) => "ca-expired",
            Self::Pinned(_) => "pinned",
            Self::Foreign(_) => "tls-version",
            Self::Broken(_) => "tls-broken",
        }
    }

    /// The cause that a request and the settings show. `None`: the request succeeded.
    pub(super) fn of_request(sights: &[Sight], facts: &Facts, larder: &Larder) -> Option<Self> {
        if sights.contains(&Sight::Request) {
            return None;
        }
        let mut failed = sights.iter().filter_map(|sight| match sight {
            Sight::Foreign(why) => Some(Self::Foreign(why.clone())),
            Sight::Distrust(why) => {
                Some(Self::distrust(facts).unwrap_or_else(|| Self::Pinned(why.clone())))
            }
            Sight::Broken(why) => {
                Some(Self::distrust(facts).unwrap_or_else(|| Self::Broken(why.clone())))
            }
            // A client that accepts the certificate sends a request.
            Sight::Handshake => {
                let why = || "it left after the handshake".to_owned();
                Some(Self::distrust(facts).unwrap_or_else(|| Self::Pinned(why())))
            }
            Sight::Connect | Sight::Request | Sight::Plain => None,
        });
        let arrived = !sights.is_empty();
        let missing = || Self::distrust(facts).filter(|_| facts.trust == Trust::Missing);
        let failed = failed.next();
        // Adding the CA to the client's roots does not help if the CA has expired.
        let refused = failed.as_ref().is_some_and(|cause| !matches!(cause, Self::Foreign(_)));
        if let (true, Some(end)) = (refused, larder.expired) {
            return Some(Self::Expired(end));
        }
        Some(match failed {
            Some(cause) => cause,
            // Some clients open the file of roots only after CONNECT, and some do not even connect without it.
            None if arrived => missing().unwrap_or(Self::Silent),
            None => Self::of_proxy(facts, larder).or_else(missing).unwrap_or(Self::Ignored),
        })
    }

    /// The cause that the settings alone show, for a client that is not run.
    pub(super) fn of_settings(client: &Client, facts: &Facts, larder: &Larder) -> Option<Self> {
        let own_roots = matches!(client.by, By::Inspection { own_roots: true });
        // Java's trust store is a file that is not read here, except where the system generates it from its roots.
        let is_java = client.proxies == ["JAVA_TOOL_OPTIONS"];
        let untold = own_roots && facts.roots.is_none();
        Self::of_proxy(facts, larder)
            .or_else(|| larder.expired.map(Self::Expired))
            .or_else(|| untold.then_some(Self::Untrusted(None)))
            .or_else(|| Self::distrust(facts).filter(|_| !is_java))
    }

    fn of_proxy(facts: &Facts, larder: &Larder) -> Option<Self> {
        if let Some(around) = &facts.around {
            return Some(Self::Around(around.clone(), facts.index.clone()));
        }
        match (&facts.proxy, &facts.other_case) {
            (Some(set), _) if is_same(&set.value, &larder.proxy) => None,
            (Some(set), _) if set.value == DIRECT => Some(Self::Direct(set.clone())),
            (Some(set), _) => Some(Self::Elsewhere(set.clone())),
            (None, Some(other)) => Some(Self::OneCase(other.clone())),
            (None, None) => Some(match &facts.unread {
                Some((set, reads)) => Self::Unread(set.clone(), reads),
                None => Self::Unset,
            }),
        }
    }

    fn distrust(facts: &Facts) -> Option<Self> {
        match facts.trust {
            Trust::Full => None,
            Trust::Former => Some(Self::Changed(facts.roots.clone())),
            Trust::Missing | Trust::Strange => Some(Self::Untrusted(facts.roots.clone())),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |roots: &Option<Set>| match roots {
            Some(Set { whence, value }) => format!("{value} ({whence})"),
            None => "the roots that it reads by itself".to_owned(),
        };
        match self {
            Self::Unset => f.write_str("it does not see the proxy: none is set where it looks"),
            Self::Unread(set, reads) => write!(
                f,
                "it does not see the proxy: {} is set, which it does not read; it reads {reads}",
                set.whence
            ),
            Self::OneCase(set) => write!(
                f,
                "it does not see the proxy: {} is set, and it reads only the other case of letters",
                set.whence
            ),
            Self::Elsewhere(set) => write!(f, "it goes to another proxy: {} says {}", set.whence, set.value),
            Self::Direct(set) => write!(
                f,
                "it goes around the proxy: {} says {}; larder's own says so while no larder with the CA that it knows answers at its address",
                set.whence, set.value
            ),
            Self::Around(set, None) => {
                write!(f, "it goes around the proxy: {} has {}", set.whence, set.value)
            }
            Self::Around(set, Some(index)) => {
                write!(f, "it goes around the proxy to its index {index}: {} has {}", set.whence, set.value)
            }
            Self::Ignored => f.write_str("the proxy is set, and nothing of it arrived at larder: a file of its own says otherwise"),
            Self::Silent => f.write_str("it asked larder for a tunnel, and left before TLS began"),
            Self::Untrusted(roots) => write!(f, "it sees the proxy, and does not trust larder's CA, which is not in {}", file(roots)),
            Self::Changed(roots) => write!(f, "it sees the proxy, and trusts another larder's CA, or this one's former: {}", file(roots)),
            Self::Expired(end) => write!(f, "larder's CA expired on {end}: `larder ca rotate` on larder's machine makes the next one"),
            Self::Pinned(why) => write!(f, "it refuses the certificate ({why}) although its roots hold larder's CA: it brings its own, or pins"),
            Self::Foreign(why) => write!(f, "its TLS is too old, or has nothing in common with larder's ({why})"),
            Self::Broken(why) => write!(f, "its TLS handshake failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn larder() -> Larder {
        Larder::named("http://192.0.2.1:3142")
    }

    fn facts(proxy: Option<&str>, trust: Trust) -> Facts {
        let proxy = proxy.map(|value| Set { whence: "https_proxy".into(), value: value.into() });
        Facts { proxy, trust, ..Facts::default() }
    }

    fn code(sights: &[Sight], facts: &Facts) -> &'static str {
        Cause::of_request(sights, facts, &larder()).map_or("well", |cause| cause.code())
    }

    #[test]
    fn what_larder_saw_tells_causes_apart() {
        let right = facts(Some("http://192.0.2.1:3142/"), Trust::Strange);
        let alert = || Sight::Distrust("UnknownCA".into());
        assert_eq!(code(&[Sight::Connect, Sight::Request], &right), "well");
        assert_eq!(code(&[], &right), "proxy-ignored");
        assert_eq!(code(&[Sight::Connect], &right), "no-tls");
        assert_eq!(code(&[Sight::Connect, alert()], &right), "ca-untrusted");
        assert_eq!(
            code(&[Sight::Connect, Sight::Foreign("TLS 1.1".into())], &right),
            "tls-version"
        );
        let full = facts(Some("http://192.0.2.1:3142"), Trust::Full);
        assert_eq!(code(&[Sight::Connect, alert()], &full), "pinned");
        assert_eq!(code(&[Sight::Connect, Sight::Handshake], &right), "ca-untrusted");
        let former = facts(Some("http://192.0.2.1:3142"), Trust::Former);
        assert_eq!(code(&[Sight::Connect, alert()], &former), "ca-changed");
        let missing = facts(Some("http://192.0.2.1:3142"), Trust::Missing);
        assert_eq!(code(&[Sight::Connect], &missing), "ca-untrusted");
        assert_eq!(code(&[], &missing), "ca-untrusted");
    }

    #[test]
    fn no_line_helps_against_a_ca_that_has_expired() {
        let late = Larder { expired: Some(Time::from_millis(0)), ..larder() };
        let told = |sights: &[Sight]| {
            let facts = facts(Some("http://192.0.2.1:3142"), Trust::Full);
            Cause::of_request(sights, &facts, &late).map_or("well", |cause| cause.code())
        };
        let refused = Sight::Distrust("CertificateExpired".into());
        assert_eq!(told(&[Sight::Connect, refused]), "ca-expired");
        assert_eq!(told(&[Sight::Connect, Sight::Handshake]), "ca-expired");
        assert_eq!(told(&[Sight::Connect, Sight::Foreign("TLS 1.1".into())]), "tls-version");
        assert_eq!(told(&[Sight::Connect, Sight::Request]), "well", "who checks nothing");
    }

    #[test]
    fn when_nothing_arrived_the_settings_say_why() {
        assert_eq!(code(&[], &facts(None, Trust::Full)), "proxy-unset");
        assert_eq!(code(&[], &facts(Some("http://192.0.2.9:3142"), Trust::Full)), "wrong-address");
        let set = Set { whence: "HTTPS_PROXY".into(), value: "http://192.0.2.1:3142".into() };
        let other = Facts { other_case: Some(set.clone()), ..facts(None, Trust::Full) };
        assert_eq!(code(&[], &other), "one-case");
        let asked = |value: &str| {
            let set = Set { whence: "a program".into(), value: value.into() };
            Facts { proxy: Some(set.clone()), detected: Some(set), ..Facts::default() }
        };
        assert_eq!(code(&[], &asked("DIRECT")), "detected-direct");
        assert_eq!(code(&[], &asked("http://192.0.2.9:3142")), "wrong-address");
        let around =
            Facts { around: Some(set), ..facts(Some("http://192.0.2.1:3142"), Trust::Full) };
        assert_eq!(code(&[], &around), "no-proxy");
    }
}
