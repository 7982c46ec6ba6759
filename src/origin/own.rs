//! Accepts servers whose certificate is itself configured as a trust anchor.
//!
//! `openssl req -x509` makes certificates with CA:TRUE, and home-made registries present them unchanged as their server
//! certificate. Path validation rejects a CA certificate as an end-entity certificate. But there is no path here: the
//! operator trusts exactly this certificate. curl and Python accept it. larder does so if it is identical to the byte,
//! was issued for this host, is within its validity period, and is not restricted to other purposes. The handshake
//! proves as usual that the server holds its key.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::error::Fault;

/// Verifies server certificates.
pub(super) struct Verifier {
    paths: Arc<WebPkiServerVerifier>,
    /// The configured trust anchors, as certificates.
    exact: HashSet<CertificateDer<'static>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("exact", &self.exact.len()).finish_non_exhaustive()
    }
}

impl Verifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        exact: HashSet<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Fault> {
        let paths = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Fault::SetUp(error.to_string().into()))?;
        Ok(Self { paths, exact })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_path = self.paths.verify_server_cert(certificate, intermediates, name, ocsp, now);
        if by_path.is_ok() || !self.exact.contains(certificate) {
            return by_path;
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        is_usable(certificate, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.paths.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.paths.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.paths.supported_verify_schemes()
    }
}

/// Whether the certificate is within its validity period and not restricted to other purposes (RFC 5280 §4.1.2.5,
/// §4.2.1.12).
fn is_usable(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let purposes = certificate.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    if purposes.is_some_and(|purposes| !purposes.value.server_auth && !purposes.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    Ok(())
}
