//! What larder saw of clients that fail: what arrived under a probe's name, and which clients distrust its
//! certificates.
//!
//! `larder doctor` makes each client request a host name of its own, which only larder answers: below [`PROBES`], or
//! with [`BELOW`] in front of the index that the client really uses. What arrived under that name distinguishes
//! causes that look the same to the client: nothing, a CONNECT without TLS, a TLS alert, or a whole request.
//!
//! A probe's name contains 128 random bits, drawn by the doctor: only the doctor can ask what was seen, and the
//! answer contains only [`Sight`]s. Names below `.internal` are never in the public DNS, so no site is shadowed.
//! larder answers these names to clients only, never to its own requests, so no origin can redirect larder to them.
//!
//! Memory is bounded: a client that floods larder with names displaces older probes, and their doctor reports that
//! nothing was seen.

use std::net::IpAddr;
use std::time::Duration;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::target::Host;

/// The suffix of probes' names; before it are [`TOKEN`] hexadecimal digits and a dot.
pub const PROBES: &str = "probe.larder.internal";

/// The suffix if a client's list makes names below `.internal` bypass larder (RFC 6761 §6.4: `.invalid` is never in
/// the DNS).
pub const AWAY: &str = "probe.larder.invalid";

/// The label between the token and the host of an index.
pub const BELOW: &str = "larder-probe";

/// The length of a probe's token.
pub const TOKEN: usize = 32;

/// The most probes that are kept: a run of the doctor uses a dozen.
const REMEMBERED: u64 = 1024;

/// How long they are kept: the doctor asks as soon as its client has ended.
const MEMORY: Duration = Duration::from_mins(10);

/// The most sights of one probe; clients that retry add nothing new.
const SIGHTS: usize = 8;

/// The most pairs of client and host for which the last log line is remembered.
const TOLD: u64 = 4096;

/// The interval between two log lines about the same client and host: a client that retries every second would fill
/// the log.
const SILENCE: Duration = Duration::from_hours(1);

/// Something that arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// A granted CONNECT.
    Connect,
    /// A finished handshake. Clients that use `GnuTLS` check the certificate only then, and close without an alert.
    Handshake,
    /// The client rejected the certificate, with this alert or by closing the connection.
    Distrust(String),
    /// The client and larder have no TLS version or cipher suite in common.
    Foreign(String),
    /// Another handshake failure.
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
    /// Records what arrived under `host`, if that is a probe's name.
    pub fn saw(&self, host: &Host, sight: Sight) {
        let Some(token) = token(host) else { return };
        let mut sights = self.probes.get(token).unwrap_or_default();
        if sights.len() < SIGHTS && !sights.contains(&sight) {
            sights.push(sight);
            self.probes.insert(token.into(), sights);
        }
    }

    /// What was seen of a probe, in order.
    pub fn seen(&self, token: &str) -> Vec<Sight> {
        self.probes.get(token).unwrap_or_default()
    }

    /// Whether to log that `client` distrusts larder's certificate for `host`: once an hour. A line about a client
    /// that left without an alert, which is a guess, does not suppress a certain one: many containers share one
    /// address.
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

/// The probe's token, if `host` is a probe's name.
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
