//! Remembers origins that cannot be intercepted: they require a client certificate, or have no TLS version or cipher
//! suite in common with larder.
//!
//! A failing request reveals such an origin. For a day after that it is tunnelled, so that the client's next attempt
//! reaches it as if larder were not there (promise P6). Host and reason are logged once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::error::Fault;
use crate::clock::{Clock, Time};
use crate::target::{Host, Origin, Scheme};

/// How long an origin is tunnelled before interception is tried again.
const REMEMBERED: Duration = Duration::from_hours(24);
/// Maximum number of remembered origins; a real network has a handful. When full, the oldest one is dropped.
const ORIGINS: usize = 1024;

#[derive(Debug)]
pub(super) struct Tunnelled {
    clock: Clock,
    // Keyed without the scheme: when a tunnel is requested, the protocol inside is not yet known.
    known: Mutex<HashMap<(Host, u16), Known>>,
}

/// Since when, and why.
type Known = (Time, Box<str>);

impl Tunnelled {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, known: Mutex::default() }
    }

    /// Remembers `origin` if tunnelling would solve `fault`.
    pub(super) fn note(&self, origin: &Origin, fault: &Fault) {
        if !matches!(fault, Fault::WantsCertificate | Fault::ForeignTls(_))
            || origin.scheme != Scheme::Https
        {
            return;
        }
        let now = self.clock.now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (since, _)| now.since(*since) < REMEMBERED);
        if known.len() >= ORIGINS {
            let oldest =
                known.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone());
            if let Some(key) = oldest {
                known.remove(&key);
            }
        }
        let reason: Box<str> = fault.to_string().into();
        tracing::warn!(%origin, %reason, "tunnelled for a day");
        known.insert((origin.host.clone(), origin.port), (now, reason));
    }

    /// The reason why `origin` must be tunnelled, if it must.
    pub(super) fn reason(&self, origin: &Origin) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(&(origin.host.clone(), origin.port))
            .filter(|(since, _)| self.clock.now().since(*since) < REMEMBERED)
            .map(|(_, reason)| reason.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_tunnelled_for_a_day_and_only_for_what_a_tunnel_mends() {
        let clock = Clock::system();
        let tunnelled = Tunnelled::new(clock.clone());
        let origin =
            Origin { scheme: Scheme::Https, host: Host::parse("example.org").unwrap(), port: 443 };
        tunnelled.note(&origin, &Fault::Unreachable("refused".into()));
        assert_eq!(tunnelled.reason(&origin), None);
        tunnelled.note(&origin, &Fault::WantsCertificate);
        clock.advance(Duration::from_hours(23));
        assert!(tunnelled.reason(&origin).unwrap().contains("certificate"));
        clock.advance(Duration::from_hours(1));
        assert_eq!(tunnelled.reason(&origin), None);
    }
}
