//! What larder itself saw of clients that fail: what arrived under a probe's name, and who distrusts its certificates.
//!
//! `larder doctor` lets each client ask for a name of its own, which larder answers and nobody else: below [`PROBES`], or below
//! [`BELOW`] and the index that the client really uses. What
//! arrived under that name tells causes apart that look the same to the client: nothing, a CONNECT and no TLS, a TLS
//! alert, a whole request.
//!
//! A probe's name holds 128 random bits, drawn by the doctor: only who drew them can ask what was seen, and there is
//! nothing in the answer but [`Sight`]s. Names below `.internal` are never given out in the public DNS, so that no site is
//! shadowed; and nothing that larder fetches for itself is ever answered here, so that no origin can redirect larder to it.
//!
//! Memory is bounded: who floods larder with names pushes older probes out, and their doctor says that it saw nothing.

use std::net::IpAddr;
use std::time::Duration;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::target::Host;

/// Names of probes end so; before it stand a dot and [`TOKEN`] hexadecimal digits.
pub const PROBES: &str = "probe.larder.internal";

/// Or so, where a list of the client's leads names below `.internal` around larder (RFC 6761 §6.4: it is never in the DNS).
pub const AWAY: &str = "probe.larder.invalid";

/// Or with this label between the token and any host.
pub const BELOW: &str = "larder-probe";

/// Digits of a probe's own label.
pub const TOKEN: usize = 32;

/// Probes that are remembered: a run of the doctor makes a dozen.
const REMEMBERED: u64 = 1024;

/// How long: the doctor asks as soon as its client has ended.
const MEMORY: Duration = Duration::from_mins(10);

/// Sights of one probe; clients that try again add nothing new.
const SIGHTS: usize = 8;

/// Clients and hosts of whose distrust the log was told.
const TOLD: u64 = 4096;

/// A client that tries again every second would fill the log with one line.
const SILENCE: Duration = Duration::from_hours(1);

/// What arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// A granted CONNECT.
    Connect,
    /// A handshake to its end. Clients of `GnuTLS` look at the certificate only then, and leave without a word.
    Handshake,
    /// The client refused the certificate, with this alert or without a word.
    Distrust(String),
    /// The client speaks no version of TLS or no cipher suite that larder speaks.
    Foreign(String),
    /// The handshake failed otherwise.
    Broken(String),
    /// A request inside TLS.
    Request,
    /// A request without TLS.
    Plain,
}

/// What was seen.
pub struct Witness {
    probes: Cache<Box<str>, Vec<Sight>>,
    told: Cache<(IpAddr, Host, bool), Instant>,
}

impl Default for Witness {
    fn default() -> Self {
        Self {
            probes: Cache::builder().max_capacity(REMEMBERED).time_to_live(MEMORY).build(),
            told: Cache::builder().max_capacity(TOLD).build(),
        }
    }
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

impl Witness {
    /// Notes what arrived under `host`, if that is a probe's name.
    pub fn saw(&self, host: &Host, sight: Sight) {
        let Some(token) = token(host) else { return };
        let mut sights = self.probes.get(token).unwrap_or_default();
        if sights.len() < SIGHTS && !sights.contains(&sight) {
            sights.push(sight);
            self.probes.insert(token.into(), sights);
        }
    }

    /// What was seen of a probe, in the order in which it came.
    pub fn seen(&self, token: &str) -> Vec<Sight> {
        self.probes.get(token).unwrap_or_default()
    }

    /// Whether the log is to be told that `client` distrusts larder's certificate for `host`: once an hour. A guess, of a
    /// client that left and said nothing, does not silence what is certain: many containers share one address.
    pub fn is_news(&self, client: IpAddr, host: &Host, certain: bool, now: Instant) -> bool {
        let key = (client, host.clone(), certain);
        let told = self.told.get(&key);
        if told.is_some_and(|at| now.saturating_duration_since(at) < SILENCE) {
            return false;
        }
        self.told.insert(key, now);
        true
    }
}

/// The probe's own label, if `host` is the name of a probe.
pub fn token(host: &Host) -> Option<&str> {
    let Host::Name(name) = host else { return None };
    let (label, rest) = name.split_once('.')?;
    let is_token = label.len() == TOKEN && label.bytes().all(|c| c.is_ascii_hexdigit());
    let host = rest.strip_prefix(BELOW).and_then(|rest| rest.strip_prefix('.'));
    let is_probes = rest == PROBES || rest == AWAY || host.is_some_and(|host| !host.is_empty());
    (is_token && is_probes).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn only_a_whole_name_is_a_probes() {
        let drawn = "0123456789abcdef".repeat(2);
        for whole in [PROBES, AWAY, "larder-probe.example.org", "larder-probe.a.example.org"] {
            assert_eq!(token(&host(&format!("{drawn}.{whole}"))), Some(drawn.as_str()));
        }
        for other in [
            PROBES.to_owned(),
            format!("x.{PROBES}"),
            format!("{drawn}.larder-probe"),
            format!("{drawn}.larder-probes.example.org"),
            format!("x.{drawn}.larder-probe.example.org"),
            "x.larder-probe.example.org".to_owned(),
            format!("{drawn}.example.org"),
            format!("{drawn}x.{PROBES}"),
            format!("{drawn}{PROBES}"),
            format!("a.{drawn}.{PROBES}"),
            format!("{drawn}.{PROBES}.example.org"),
            format!("{}g.{PROBES}", "0".repeat(TOKEN - 1)),
        ] {
            assert_eq!(token(&host(&other)), None, "{other}");
        }
    }

    #[test]
    fn sights_are_kept_in_order_once_and_only_of_probes() {
        let witness = Witness::default();
        let (one, two) = ("1".repeat(TOKEN), "2".repeat(TOKEN));
        let probe = host(&format!("{one}.{PROBES}"));
        for sight in [Sight::Connect, Sight::Request, Sight::Request] {
            witness.saw(&probe, sight);
        }
        witness.saw(&host("files.example.org"), Sight::Connect);
        assert_eq!(witness.seen(&one), [Sight::Connect, Sight::Request]);
        assert!(witness.seen(&two).is_empty());
        for at in 0..100 {
            witness.saw(&probe, Sight::Broken(at.to_string()));
        }
        assert_eq!(witness.seen(&one).len(), SIGHTS);
    }

    #[tokio::test]
    async fn the_log_is_told_once_an_hour_for_each_client_and_host() {
        let (witness, now) = (Witness::default(), Instant::now());
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let (a, b) = (host("a.example.org"), host("b.example.org"));
        assert!(witness.is_news(one, &a, true, now));
        assert!(!witness.is_news(one, &a, true, now + Duration::from_mins(59)));
        assert!(witness.is_news(one, &b, true, now) && witness.is_news(other, &a, true, now));
        assert!(witness.is_news(one, &a, true, now + SILENCE));
        assert!(witness.is_news(one, &b, false, now), "a guess of whom something certain is known");
        let (guessed, known) = (host("c.example.org"), now + Duration::from_mins(1));
        assert!(witness.is_news(one, &guessed, false, now));
        assert!(witness.is_news(one, &guessed, true, known), "it was only a guess");
    }
}
