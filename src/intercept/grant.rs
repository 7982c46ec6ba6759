//! Which hosts and ports CONNECT and absolute-form requests may name, and whether a tunnel is opened or copied through.

use std::net::SocketAddr;

use hyper::body::Body as _;
use hyper::{Response, StatusCode};

use crate::clock::Stopwatch;
use crate::config::{Config, is_private};
use crate::origin::{Duplex, Reach};
use crate::outcome::cause::Cause;
use crate::outcome::ended::Ended;
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::outcome::{Outcome, witness};
use crate::reply::{self, Body};
use crate::target::identity::Misdirected;
use crate::target::{Host, Origin, Scheme};

use super::Serve;

/// A request that is refused, with a one-line reason that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// Either larder refuses it by its own decision, or the connection to the origin failed.
    pub(crate) outcome: Outcome,
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn forbidden(cause: Cause, text: String) -> Self {
        Self::refused(StatusCode::FORBIDDEN, cause, text)
    }

    /// larder has no room for the request now.
    pub(crate) fn busy(text: String) -> Self {
        Self::refused(StatusCode::SERVICE_UNAVAILABLE, Cause::Limit, text)
    }

    pub(crate) fn refused(status: StatusCode, cause: Cause, text: String) -> Self {
        Self { outcome: Outcome::Refused(cause), status, text }
    }

    /// The response with this reason.
    pub(crate) fn response(&self) -> Response<Body> {
        reply::text(self.status, &self.text, self.outcome)
    }

    /// Logs and counts the refusal as the pipeline does for its requests, and returns the response.
    pub(crate) fn write_down(&self, refused: &Refused<'_>) -> Response<Body> {
        let response = self.response();
        let Refused { metrics, peer, method, host, whom, since, job } = *refused;
        Ended {
            host,
            why: Some(&self.text),
            status: self.status.as_u16(),
            bytes: response.body().size_hint().lower(),
            took: since.elapsed(),
            job,
            ..Ended::new(self.outcome, peer.ip(), method, whom)
        }
        .write_down(metrics);
        response
    }
}

/// What is known of a request that is refused before its target is known.
#[derive(Clone, Copy)]
pub(crate) struct Refused<'a> {
    pub(crate) metrics: &'a Metrics,
    pub(crate) peer: SocketAddr,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    /// The host and port that it was for.
    pub(crate) whom: &'a str,
    pub(crate) since: Stopwatch,
    pub(crate) job: Option<&'a Job>,
}

impl From<Misdirected> for Refusal {
    fn from(misdirected: Misdirected) -> Self {
        match misdirected {
            Misdirected::Elsewhere(text) => {
                Self::refused(StatusCode::MISDIRECTED_REQUEST, Cause::Identity, text)
            }
            Misdirected::Malformed(text) => {
                Self::refused(StatusCode::BAD_REQUEST, Cause::Malformed, text)
            }
        }
    }
}

/// What is done with a granted tunnel.
pub(crate) enum TunnelPlan {
    /// Look at the first bytes, and serve the tunnel if it carries HTTP.
    Look,
    /// Copy through, without parsing anything.
    Through { upstream: Box<dyn Duplex>, why: String },
}

/// Whether the configuration lets clients reach this host at this port.
pub(crate) fn check(config: &Config, host: &Host, port: u16) -> Result<(), Refusal> {
    let shut = config.hosts.shut(&host.to_string(), port);
    shut.map_or(Ok(()), |why| Err(Refusal::forbidden(Cause::Host, why)))
}

/// Decides on a CONNECT before it is answered, so that a failure can still be reported as a status.
pub(crate) async fn admit<S: Serve>(
    config: &Config,
    service: &S,
    peer: SocketAddr,
    host: &Host,
    port: u16,
) -> Result<TunnelPlan, Refusal> {
    check(config, host, port)?;
    if witness::token(host).is_some() {
        // Only larder answers a probe's host name, so this is never copied through, whatever the patterns say.
        return Ok(TunnelPlan::Look);
    }
    let name = host.to_string();
    let origin = Origin { scheme: Scheme::Https, host: host.clone(), port };
    let configured = config.hosts.tunnel.iter().any(|pattern| pattern.matches(&name));
    let why =
        if configured { Some("hosts.tunnel".to_owned()) } else { service.must_tunnel(&origin) };
    let Some(why) = why else {
        return Ok(TunnelPlan::Look);
    };
    match service.tunnel(&origin, reach(peer)).await {
        Ok(upstream) => Ok(TunnelPlan::Through { upstream, why }),
        Err(error) => Err(Refusal {
            outcome: if error.status().is_client_error() {
                Outcome::Refused(error.fault().cause())
            } else {
                Outcome::Failed(error.fault().cause())
            },
            status: error.status(),
            text: error.to_string(),
        }),
    }
}

/// The addresses that a tunnel of this client may reach.
pub(crate) fn reach(peer: SocketAddr) -> Reach {
    Reach { internal_client: is_private(peer.ip()), from_public: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPattern;

    fn status(config: &Config, host: &str, port: u16) -> u16 {
        let host = Host::parse(host).unwrap();
        check(config, &host, port).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn ports_that_carry_mail_and_shells_are_shut() {
        let config = Config::default();
        for (port, expected) in
            [(80, 200), (443, 200), (1024, 200), (65535, 200), (22, 403), (25, 403), (1023, 403)]
        {
            assert_eq!(status(&config, "example.org", port), expected, "{port}");
        }
    }

    #[test]
    fn a_refused_host_is_refused_in_every_spelling() {
        let mut config = Config::default();
        config.hosts.refuse = vec![
            HostPattern("example.org".into()),
            HostPattern("*.example.net".into()),
            HostPattern("[2001:db8::1]".into()),
        ];
        for (host, expected) in [
            ("example.org", 403),
            ("EXAMPLE.org.", 403),
            ("a.example.net.", 403),
            ("[2001:DB8:0::1]", 403),
            ("example.net", 200),
        ] {
            assert_eq!(status(&config, host, 443), expected, "{host}");
        }
    }

    #[test]
    fn a_refusal_is_one_line_of_text_that_says_what_to_set() {
        let host = Host::parse("example.org").unwrap();
        let refusal = check(&Config::default(), &host, 25).unwrap_err();
        assert!(refusal.text.contains("hosts.ports"));
        assert_eq!(refusal.response().headers()["cache-status"], "larder; detail=\"refused\"");
    }
}
