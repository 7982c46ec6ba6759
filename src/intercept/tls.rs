//! What a failed handshake means.
//!
//! A client that does not trust larder's CA says so in an alert, or just leaves. That is the commonest trouble with
//! any intercepting proxy, so it gets one line that names the client, the host and the remedy.

use std::io;

use rustls::AlertDescription;

use super::tunnel::Route;

/// Logs a handshake that failed.
pub(crate) fn explain(error: &io::Error, route: &Route) {
    let Route { peer, host, port, .. } = route;
    if distrusts(error) {
        tracing::warn!(
            client = %peer, %host, port, %error,
            "the client does not trust larder's certificate: `larder ca show` says how to make it, and hosts.tunnel lets \
             clients that cannot be told through"
        );
    } else {
        tracing::info!(client = %peer, %host, port, %error, "a TLS handshake failed");
    }
}

/// Whether the client refused the certificate. Some close without an alert once they have seen it.
fn distrusts(error: &io::Error) -> bool {
    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        return true;
    }
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        alert,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::AccessDenied
        ))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(alert: AlertDescription) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert))
    }

    #[test]
    fn distrust_is_told_from_other_failures() {
        assert!(distrusts(&alert(AlertDescription::UnknownCA)));
        assert!(distrusts(&alert(AlertDescription::CertificateUnknown)));
        assert!(distrusts(&io::ErrorKind::UnexpectedEof.into()));
        assert!(!distrusts(&alert(AlertDescription::ProtocolVersion)));
        assert!(!distrusts(&io::ErrorKind::TimedOut.into()));
    }
}
