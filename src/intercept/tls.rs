//! What a failed handshake means.
//!
//! A client that does not trust larder's CA sends an alert, or just closes the connection. This is the most common problem with
//! any intercepting proxy, so it is logged in one line with the client, the host and the remedy. The line is logged once an hour
//! for each client and host, because programs retry.

use std::io;

use rustls::AlertDescription;
use tokio::time::Instant;

use super::tunnel::Route;
use crate::outcome::witness::{self, Sight};

/// Logs a handshake that failed, and records the result if it was a probe's.
pub(crate) fn explain(error: &io::Error, route: &Route) {
    let Route { peer, host, port, metrics, job, .. } = route;
    let sight = judge(error);
    let distrusts = matches!(sight, Sight::Distrust(_));
    metrics.witness.saw(host, sight);
    if distrusts && witness::token(host).is_none() {
        metrics.distrusted();
        if let Some(job) = job {
            job.distrusted();
        }
    }
    if witness::token(host).is_some() {
        // The doctor reports this to the user who runs it.
        tracing::debug!(client = %peer, %host, port, %error, "a probe's TLS handshake failed");
    } else if !distrusts {
        tracing::info!(client = %peer, %host, port, %error, "a TLS handshake failed");
    } else if metrics.witness.is_news(peer.ip(), host, true, Instant::now()) {
        tracing::warn!(
            client = %peer, %host, port, %error,
            "the client does not trust larder's certificate: `larder doctor --proxy http://LARDER:3142`, run there, says \
             what mends it; GET /setup is the script that makes a machine trust larder; hosts.tunnel lets clients that \
             cannot be told through. Said once an hour for each client and host"
        );
    } else {
        tracing::debug!(client = %peer, %host, port, %error, "the client still does not trust larder's certificate");
    }
}

/// Logs a connection that ended after its handshake without a request. `GnuTLS` clients (apt, and often git and wget) check the
/// certificate only then; other clients open connections that they turn out not to need.
pub(crate) fn unused(route: &Route) {
    let Route { peer, host, port, metrics, job, .. } = route;
    if witness::token(host).is_some() {
        return;
    }
    metrics.left();
    if let Some(job) = job {
        job.left();
    }
    if metrics.witness.is_news(peer.ip(), host, false, Instant::now()) {
        tracing::info!(
            client = %peer, %host, port,
            "a client left after the TLS handshake without a request; if it failed, it may not trust larder's certificate: \
             `larder doctor`, run there, says. Said once an hour for each client and host"
        );
    }
}

/// The kind of failure. Some clients close without an alert when they do not trust the certificate.
fn judge(error: &io::Error) -> Sight {
    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        return Sight::Distrust("it left without a word".to_owned());
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied),
        )) => Sight::Distrust(format!("{alert:?}")),
        Some(rustls::Error::PeerIncompatible(why)) => Sight::Foreign(format!("{why:?}")),
        Some(rustls::Error::AlertReceived(
            alert @ (AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure),
        )) => Sight::Foreign(format!("{alert:?}")),
        _ => Sight::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(alert: AlertDescription) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert))
    }

    #[test]
    fn distrust_is_told_from_other_failures() {
        let distrusts = |error: &io::Error| matches!(judge(error), Sight::Distrust(_));
        assert!(distrusts(&alert(AlertDescription::UnknownCA)));
        assert!(distrusts(&alert(AlertDescription::CertificateUnknown)));
        assert!(distrusts(&io::ErrorKind::UnexpectedEof.into()));
        assert!(!distrusts(&alert(AlertDescription::ProtocolVersion)));
        assert!(!distrusts(&io::ErrorKind::TimedOut.into()));
        assert!(matches!(judge(&alert(AlertDescription::ProtocolVersion)), Sight::Foreign(_)));
    }
}
