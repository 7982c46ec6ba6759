//! TLS towards origins and upstream proxies.
//!
//! Trust anchors are those compiled in, the system's, and the operator's files, as `upstream.roots` says. Verification
//! cannot be turned off. A server may also present a certificate that is itself a configured trust anchor (`own.rs`).
//! Sessions are resumed. 0-RTT is not used: fills may be replayed, but 0-RTT would gain nothing.
//!
//! This module also notices when an origin requests a client certificate. rustls then asks its certificate resolver.
//! All connections share the resolver, because sessions resume only under the same one. So the resolver reports the
//! request through a task-local flag that the handshake's task has set up.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Duplex;
use super::error::Fault;
use super::own::Verifier;
use crate::config::{Config, Roots};
use crate::target::Host;

/// The protocols offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Offer {
    /// h2, or else http/1.1.
    Both,
    /// http/1.1 alone.
    Http1,
}

/// The client configurations. They share the trust anchors; each has its own session cache.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    both: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

/// A finished handshake.
pub(super) struct Secured {
    pub(super) stream: TlsStream<Box<dyn Duplex>>,
    pub(super) h2: bool,
    /// The peer requested a client certificate, and has continued without one so far.
    pub(super) asked: bool,
}

impl Tls {
    /// Reads the trust anchors. Blocking; at start-up and at a reload.
    pub(super) fn new(config: &Config) -> Result<Self, Fault> {
        let (roots, exact) = roots(config)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier::new(Arc::new(roots), exact, Arc::clone(&provider))?;
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
        let with = |alpn: &[&[u8]]| -> Result<Arc<ClientConfig>, Fault> {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| Fault::SetUp(error.to_string().into()))?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier))
                .with_client_cert_resolver(Arc::new(NoCertificate));
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            Ok(Arc::new(config))
        };
        Ok(Self { both: with(&[b"h2", b"http/1.1"])?, http1: with(&[b"http/1.1"])? })
    }

    /// Performs the TLS handshake with `host` on `io`.
    pub(super) async fn handshake(
        &self,
        host: &Host,
        offer: Offer,
        io: Box<dyn Duplex>,
    ) -> Result<Secured, Fault> {
        let config = match offer {
            Offer::Both => &self.both,
            Offer::Http1 => &self.http1,
        };
        let name = match host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|_| Fault::Unsendable("its host is no name TLS could verify".into()))?,
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let (done, asked) = ASKED
            .scope(Cell::new(false), async move {
                let done = connector.connect(name, io).await;
                (done, ASKED.with(Cell::get))
            })
            .await;
        let stream = done.map_err(|error: io::Error| Fault::of_handshake(&error, asked))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Secured { stream, h2, asked })
    }
}

tokio::task_local! {
    /// Whether the peer of this task's handshake requested a client certificate.
    static ASKED: Cell<bool>;
}

/// Provides no certificate, and notes that one was requested.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Outside one of larder's handshakes the flag does not exist, and none is needed.
        ASKED.try_with(|asked| asked.set(true)).ok();
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// The trust anchors, and those of them that are certificates.
fn roots(config: &Config) -> Result<(RootCertStore, HashSet<CertificateDer<'static>>), Fault> {
    let (mut store, mut exact) = (RootCertStore::empty(), HashSet::new());
    let chosen = config.upstream.roots;
    if matches!(chosen, Roots::Both | Roots::Webpki) {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if matches!(chosen, Roots::Both | Roots::System) {
        // Reads SSL_CERT_FILE and SSL_CERT_DIR, as operators expect.
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's roots cannot be read");
        }
        exact.extend(found.certs.iter().cloned());
        // A system's collection may hold old certificates that do not parse by today's rules.
        let (added, ignored) = store.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "the system's roots");
        if added == 0 && chosen == Roots::System {
            return Err(Fault::SetUp(
                "the system has no root certificates: install its ca-certificates, or set `upstream.roots`".into(),
            ));
        }
    }
    for file in &config.upstream_ca {
        let bad = |why: &dyn std::fmt::Display| {
            Fault::SetUp(format!("upstream_ca: {}: {why}", file.display()).into())
        };
        let before = store.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| bad(&error))? {
            let certificate = certificate.map_err(|error| bad(&error))?;
            exact.insert(certificate.clone());
            store.add(certificate).map_err(|error| bad(&error))?;
        }
        if store.len() == before {
            return Err(bad(&"there is no certificate in it; it must be PEM"));
        }
    }
    if store.is_empty() {
        return Err(Fault::SetUp(
            "no root certificates: `upstream.roots` allows none but `upstream_ca`, which names no file".into(),
        ));
    }
    Ok((store, exact))
}
