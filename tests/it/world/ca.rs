//! A certificate authority that exists for one test only, so that no key is ever committed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};

/// The CA of a test's origins.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    file: PathBuf,
}

impl Ca {
    /// Makes a CA, and writes its certificate to `file` for larder's `upstream_ca`.
    pub(crate) fn new(file: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the test's origins");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(file, &pem).unwrap();
        Self { issuer: Issuer::new(params, key), pem, file: file.to_owned() }
    }

    /// The file with its certificate.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// This CA as the trust anchor of a client that connects to the origins directly.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        roots(&self.pem)
    }

    /// The TLS configuration of a server called `host`, an IP literal or a name.
    pub(crate) fn server(&self, host: &str, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, host);
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![
            host.parse::<IpAddr>()
                .map_or_else(|_| SanType::DnsName(host.try_into().unwrap()), SanType::IpAddress),
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// The trust anchors in a PEM text.
pub(crate) fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    Arc::new(roots)
}
