//! The certificate authority: how larder speaks TLS in the name of a host that a client asks for.
//!
//! On first start a CA is made in the state directory (`ca`). Each host then gets a leaf certificate of its own
//! (`leaf`), minted when first asked for and kept in memory for half its life. All leaves share one key that is made
//! at start and never written: whoever reads the memory of a connection learns nothing about the CA's key, and
//! minting costs one signature (70 µs) instead of a key and a signature.
//!
//! One base [`ServerConfig`] holds what makes resumption work (ticket keys, session store); each connection takes a
//! clone of it that knows its CONNECT host. No certificate, no handshake: a failure here never turns into a tunnel.
//!
//! Not done here: deciding which hosts are intercepted (`intercept`), renewing a CA (an expired one is an error that
//! says what to do), name constraints.
//!
//! To read: RFC 5280 §4.2.1, RFC 6066 §3, RFC 8446 §4.6.1.

mod ca;
mod leaf;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::sync::Cache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use self::ca::Ca;
use self::leaf::{Leaf, LeafKey};
use crate::clock::{Clock, Time};
use crate::target::Host;

/// How many hosts' certificates are kept in memory, about 2 KiB each: a client that asks for ever new names costs
/// signatures, not memory.
const LEAVES: u64 = 4096;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}; larder keeps its CA there", .path.display())]
    File {
        /// `read`, `write` …
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what larder wrote. It is never replaced silently: every client trusts it.
    #[error(
        "{} {why}; put it back from a copy, or remove ca.key and ca.crt so that larder makes a new CA, which every \
         client must then be made to trust",
        .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS library refused.
    #[error("the TLS library failed while {doing}: {why}")]
    Crypto {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        why: String,
    },
}

impl AuthorityError {
    fn crypto(doing: &'static str, why: impl fmt::Display) -> Self {
        Self::Crypto { doing, why: why.to_string() }
    }
}

/// The CA, the leaf key, and the certificates minted so far.
pub struct Authority {
    ca: Ca,
    key: LeafKey,
    clock: Clock,
    leaves: Cache<Host, Arc<Leaf>>,
    base: ServerConfig,
}

impl Authority {
    /// Loads the CA from `state_dir`, or makes one. Blocking.
    pub fn open(state_dir: &Path, clock: &Clock) -> Result<Arc<Self>, AuthorityError> {
        Ok(Arc::new(Self {
            ca: Ca::open(state_dir, clock.now())?,
            key: LeafKey::generate()?,
            clock: clock.clone(),
            leaves: Cache::new(LEAVES),
            base: base_config()?,
        }))
    }

    /// The TLS configuration of a connection whose CONNECT named `host`. A `ClientHello` that names another host gets that
    /// host's certificate, so that the client can read why it is refused (promise P1: 421).
    pub fn server_config(self: &Arc<Self>, host: &Host) -> Arc<ServerConfig> {
        let mut config = self.base.clone();
        config.cert_resolver =
            Arc::new(Resolver { authority: Arc::clone(self), host: host.clone() });
        Arc::new(config)
    }

    /// The CA's certificate, as every client needs it.
    pub fn ca_pem(&self) -> &str {
        &self.ca.pem
    }

    /// The CA's certificate, as it goes over the wire.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca.der
    }

    /// The SHA-256 of the CA's certificate, as `openssl x509 -fingerprint` prints it, for comparing by eye.
    pub fn fingerprint_sha256(&self) -> String {
        fingerprint(&self.ca.der)
    }

    /// When the CA's certificate expires.
    pub fn not_after(&self) -> Time {
        self.ca.not_after
    }

    /// The CA and `system_roots` in one file, for tools whose setting replaces their store instead of adding to it.
    pub fn bundle_pem(&self, system_roots: &[CertificateDer<'_>]) -> String {
        let roots = system_roots.iter().map(|root| encode_pem("CERTIFICATE", root));
        std::iter::once(self.ca.pem.clone()).chain(roots).collect()
    }

    /// The certificate for `host`: from memory, or minted.
    fn leaf(&self, host: &Host) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let now = self.clock.now();
        if let Some(leaf) = self.leaves.get(host)
            && (leaf.valid_from..leaf.renew_at).contains(&now)
        {
            return Ok(Arc::clone(&leaf.certified));
        }
        // Two connections that come at once may both mint: both certificates are good, and the later one stays.
        let leaf = Arc::new(leaf::mint(&self.ca, &self.key, host, now)?);
        self.leaves.insert(host.clone(), Arc::clone(&leaf));
        Ok(Arc::clone(&leaf.certified))
    }
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint` prints it.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let pairs: Vec<_> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// Whether a certificate is the CA of some larder, by what such a certificate says of itself.
pub fn is_larders(der: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, certificate)| {
        let mut names = certificate.subject().iter_organization();
        certificate.is_ca() && names.any(|name| name.as_str().is_ok_and(|name| name == "larder"))
    })
}

impl fmt::Debug for Authority {
    /// Without any key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint_sha256", &self.fingerprint_sha256())
            .field("not_after", &self.ca.not_after)
            .finish_non_exhaustive()
    }
}

/// What all connections share.
fn base_config() -> Result<ServerConfig, AuthorityError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| AuthorityError::crypto("choosing TLS versions", e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Build tools open many short connections to the same few hosts; a resumed handshake costs a sixth less. One
    // ticket is enough, because clients that open several connections at once reuse it or do without.
    config.ticketer =
        Ticketer::new().map_err(|e| AuthorityError::crypto("making ticket keys", e))?;
    config.send_tls13_tickets = 1;
    // Early data can be replayed, and no build tool sends it.
    config.max_early_data_size = 0;
    Ok(config)
}

/// Stands in the base configuration, which no connection uses as it is.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Finds the certificate for one connection.
#[derive(Debug)]
struct Resolver {
    authority: Arc<Authority>,
    /// What CONNECT named.
    host: Host,
}

impl ResolvesServerCert for Resolver {
    /// `None` ends the handshake with an alert.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(Host::parse);
        let host = named.as_ref().unwrap_or(&self.host);
        self.authority
            .leaf(host)
            .inspect_err(|error| tracing::error!(%host, %error, "no certificate"))
            .ok()
    }
}

fn encode_pem(label: &str, der: &[u8]) -> String {
    let unix = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), unix)
}

#[cfg(test)]
mod tests;
