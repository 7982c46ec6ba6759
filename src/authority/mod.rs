//! The certificate authority: provides the certificates with which larder terminates TLS for the hosts that clients
//! request.
//!
//! At the first start a CA is made in the state directory (`ca`). Each host gets a leaf certificate of its own
//! (`leaf`), signed on first use and kept in memory for half its life. All leaves share one key that is made at start
//! and never written to disk: an attacker who reads a connection's memory learns nothing about the CA's key, and a
//! leaf costs one signature (70 µs) instead of a key and a signature.
//!
//! One base [`ServerConfig`] holds what resumption needs (ticket keys, session store); each connection uses a clone
//! of it with its CONNECT host. Without a certificate there is no handshake: a failure here never turns into a
//! tunnel.
//!
//! During a rotation the old and the next CA are both trusted for a while (`rotate`). A CA can be limited to some
//! names (`limits`).
//!
//! Which hosts are intercepted is decided in `intercept`.
//!
//! See RFC 5280 §4.2.1, RFC 6066 §3, RFC 8446 §4.6.1.

mod ca;
mod dates;
mod leaf;
mod limits;
mod rotate;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use self::ca::Ca;
use self::leaf::{Leaf, LeafKey};
use self::rotate::CaPair;
pub use self::rotate::OVERLAP;
use crate::clock::{Clock, Time};
use crate::target::Host;

/// The most hosts whose certificates are kept in memory, about 2 KiB each: a client that requests ever new names
/// costs signatures, not memory.
const LEAVES: u64 = 4096;

/// When to warn that the CA expires: renewing trust in every image and runner may take a month.
const NEAR_END: Duration = Duration::from_hours(30 * 24);

/// A CA that clients must trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its certificate.
    pub pem: String,
    /// The certificate's SHA-256, as `openssl x509 -fingerprint` prints it.
    pub sha256: String,
    /// When it expires.
    pub not_after: Time,
    /// Whether it signs new leaves now.
    pub mints: bool,
    /// When it starts to sign, if it is the next CA.
    pub from: Option<Time>,
}

/// Why there is no CA or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}; larder keeps its CA there", .path.display())]
    File {
        /// `read`, `write` …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file differs from what larder wrote. It is never replaced automatically, because every client trusts it.
    #[error(
        "{} {why}; put it back from a copy, or remove ca.key and ca.crt (of a next CA: ca.next.crt) so that larder makes \
         a new CA, which every client must then be made to trust",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The CA's certificate has expired.
    #[error(
        "{} expired on {not_after}, and no client trusts it any more (it is {now} by this machine's clock). If the clock is \
         right, move ca.key and ca.crt away: larder then makes a new CA, which every client must be made to trust (`larder ca \
         install`, or the set-up script). If the clock is wrong, set it and start larder again",
        .path.display()
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// When it expired.
        not_after: Time,
        /// The current time.
        now: Time,
    },
    /// The clock is implausible.
    #[error(
        "larder makes no CA while the clock says {now}: this program was made after that ({made}), and a CA with a wrong date \
         may have expired by the time the clock is right. Set the clock (`timedatectl set-ntp true`, or `date`), and start \
         larder again"
    )]
    Clock {
        /// The current time.
        now: Time,
        /// A time at or before the build of this program.
        made: Time,
    },
    /// A CA cannot be imported or rotated; nothing was changed.
    #[error("the CA stays as it is: {0}")]
    Import(String),
    /// The CA may not sign for this host.
    #[error(
        "larder's CA may not sign for {host}: it is limited to {permitted}, and all names below (ca.permitted); \
         hosts.tunnel lets clients through to other hosts"
    )]
    Outside {
        /// The requested host.
        host: Host,
        /// The permitted names.
        permitted: String,
    },
    /// The TLS library returned an error.
    #[error("the TLS library failed while {doing}: {why}")]
    Crypto {
        /// The operation.
        doing: &'static str,
        /// The library's error.
        why: String,
    },
}

impl AuthorityError {
    fn crypto(doing: &'static str, why: impl fmt::Display) -> Self {
        Self::Crypto { doing, why: why.to_string() }
    }

    fn outside(ca: &Ca, host: &Host) -> Self {
        Self::Outside { host: host.clone(), permitted: ca.limits.shown() }
    }

    /// The message without advice about files in the state directory, for a CA that is imported.
    fn said(self) -> String {
        if let Self::Damaged { path, why } = &self {
            return format!("{} {why}", path.display());
        }
        if let Self::Expired { path, not_after, .. } = &self {
            return format!("{} expired on {not_after}", path.display());
        }
        self.to_string()
    }
}

/// The CA, the leaf key, and the certificates signed so far.
pub struct Authority {
    state: PathBuf,
    /// The names to which a CA that is made from now on is limited.
    permitted: Vec<String>,
    held: ArcSwap<CaPair>,
    key: LeafKey,
    clock: Clock,
    leaves: Cache<Host, Arc<Leaf>>,
    base: ServerConfig,
}

impl Authority {
    /// Loads the CA from `state_dir`, or makes one for all hosts. Blocking.
    pub fn open(state_dir: &Path, clock: &Clock) -> Result<Arc<Self>, AuthorityError> {
        Self::limited(state_dir, &[], clock)
    }

    /// Loads the CA from `state_dir`, or makes one for the `permitted` names and those below them; an empty list
    /// permits all. Blocking.
    pub fn limited(
        state_dir: &Path,
        permitted: &[String],
        clock: &Clock,
    ) -> Result<Arc<Self>, AuthorityError> {
        Ok(Arc::new(Self {
            state: state_dir.to_owned(),
            permitted: permitted.to_vec(),
            held: ArcSwap::from_pointee(CaPair::open(state_dir, permitted, clock.now())?),
            key: LeafKey::generate()?,
            clock: clock.clone(),
            leaves: Cache::new(LEAVES),
            base: base_config()?,
        }))
    }

    /// Reads the CA again. On an error nothing changes. Blocking.
    pub fn reload(&self) -> Result<(), AuthorityError> {
        let held = CaPair::open(&self.state, &self.permitted, self.clock.now())?;
        self.held.store(Arc::new(held));
        self.leaves.invalidate_all();
        Ok(())
    }

    /// Makes the next CA, which starts to sign after `overlap`; both are handed out from now on. Blocking.
    pub fn rotate(&self, overlap: Duration) -> Result<(), AuthorityError> {
        let now = self.clock.now();
        rotate::begin(&self.state, &self.permitted, self.change_after(overlap, now), now)?;
        self.reload()
    }

    /// Imports a CA that was made elsewhere, certificate and key in PEM; it starts to sign after `overlap`. Blocking.
    pub fn import(
        &self,
        certificate: &str,
        key: &str,
        overlap: Duration,
    ) -> Result<(), AuthorityError> {
        let now = self.clock.now();
        let from = self.change_after(overlap, now);
        rotate::import(&self.state, certificate, key, from, now)?;
        self.reload()
    }

    /// When the next CA starts to sign: at the latest when the present one expires, because no client accepts what
    /// that signs afterwards.
    fn change_after(&self, overlap: Duration, now: Time) -> Time {
        now.plus(overlap).min(self.not_after())
    }

    /// Drops the old CA, once the next one signs. Blocking.
    pub fn finish(&self) -> Result<(), AuthorityError> {
        rotate::finish(&self.state, self.clock.now())?;
        self.reload()
    }

    /// Checks that the CA may sign for `host`.
    pub fn check(&self, host: &Host) -> Result<(), AuthorityError> {
        let held = self.held.load();
        let ca = held.signer(self.clock.now());
        if ca.limits.allow(host) { Ok(()) } else { Err(AuthorityError::outside(ca, host)) }
    }

    /// Every CA that clients must trust: the present one, then the next one.
    pub fn all(&self) -> Vec<Anchor> {
        let (held, now) = (self.held.load(), self.clock.now());
        let from =
            |ca: &Ca| held.next.as_ref().filter(|next| next.ca.der == ca.der).map(|next| next.from);
        let signer = held.signer(now);
        let anchors = held.all().map(|ca| Anchor {
            pem: ca.pem.clone(),
            sha256: fingerprint(ca.anchor()),
            not_after: ca.not_after,
            mints: ca.anchor() == signer.anchor(),
            from: from(ca),
        });
        anchors.collect()
    }

    /// The TLS configuration for a connection whose CONNECT named `host`. A `ClientHello` that names another host
    /// gets that host's certificate, so that the client can read why its request is refused (promise P1: 421).
    pub fn server_config(self: &Arc<Self>, host: &Host) -> Arc<ServerConfig> {
        let mut config = self.base.clone();
        config.cert_resolver =
            Arc::new(Resolver { authority: Arc::clone(self), host: host.clone() });
        Arc::new(config)
    }

    /// The CA's certificate, which every client needs; during a rotation both.
    pub fn ca_pem(&self) -> String {
        self.held.load().all().map(|ca| ca.pem.as_str()).collect()
    }

    /// The DER certificate of the CA that signs now.
    pub fn ca_der(&self) -> CertificateDer<'static> {
        self.held.load().signer(self.clock.now()).der.clone()
    }

    /// The SHA-256 of the first CA's certificate, as `openssl x509 -fingerprint` prints it, for comparing by eye.
    pub fn fingerprint_sha256(&self) -> String {
        fingerprint(self.held.load().ca.anchor())
    }

    /// When the certificate of the CA that signs now expires.
    pub fn not_after(&self) -> Time {
        self.held.load().signer(self.clock.now()).not_after
    }

    /// Logs a warning if the CA expires soon and there is no next one.
    pub fn warn_if_ending(&self) {
        let (end, now) = (self.not_after(), self.clock.now());
        let has_next = self.held.load().changes_at(now).is_some();
        if end.since(now) < NEAR_END && !has_next {
            tracing::warn!(
                "larder's CA expires on {end}, and no client will trust it after that: `larder ca rotate` makes the next \
                 one, which is handed out together with it"
            );
        }
    }

    /// The CA and `system_roots` in one file, for tools whose setting replaces their roots instead of adding to them.
    pub fn bundle_pem(&self, system_roots: &[CertificateDer<'_>]) -> String {
        let roots = system_roots.iter().map(|root| encode_pem("CERTIFICATE", root));
        std::iter::once(self.ca_pem()).chain(roots).collect()
    }

    /// The certificate for `host`, from memory or newly signed.
    fn leaf(&self, host: &Host) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let now = self.clock.now();
        if let Some(leaf) = self.leaves.get(host)
            && (leaf.valid_from..leaf.renew_at).contains(&now)
        {
            return Ok(Arc::clone(&leaf.certified));
        }
        // Two simultaneous connections may both sign one: both certificates are valid, and the later one is kept.
        let held = self.held.load();
        let mut leaf = leaf::mint(held.signer(now), &self.key, host, now)?;
        leaf.renew_at =
            held.changes_at(now).map_or(leaf.renew_at, |change| leaf.renew_at.min(change));
        let leaf = Arc::new(leaf);
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

/// Whether a certificate names itself as its issuer, as roots do.
pub fn is_root(der: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, certificate)| {
        certificate.subject().as_raw() == certificate.issuer().as_raw()
    })
}

/// Whether a certificate is the CA of a larder, this one or another: by the name of its organisation.
pub fn is_larder_ca(der: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, certificate)| {
        let mut names = certificate.subject().iter_organization();
        certificate.is_ca() && names.any(|name| name.as_str().is_ok_and(|name| name == "larder"))
    })
}

impl fmt::Debug for Authority {
    /// Omits all keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint_sha256", &self.fingerprint_sha256())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

/// The configuration that all connections share.
fn base_config() -> Result<ServerConfig, AuthorityError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| AuthorityError::crypto("choosing TLS versions", e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Build tools open many short connections to the same few hosts; a resumed handshake costs a sixth less. One
    // ticket is enough: clients that open several connections at once reuse it or do a full handshake.
    config.ticketer =
        Ticketer::new().map_err(|e| AuthorityError::crypto("making ticket keys", e))?;
    config.send_tls13_tickets = 1;
    // Early data can be replayed, and no build tool sends it.
    config.max_early_data_size = 0;
    // Needed to end a truncated stream with an alert, which rustls does not send by itself (`intercept`).
    config.enable_secret_extraction = true;
    Ok(config)
}

/// A placeholder in the base configuration; each connection replaces it.
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
    /// The host that CONNECT named.
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
