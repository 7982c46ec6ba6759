//! The CA on disk: `ca.key` and `ca.crt` in the state directory.
//!
//! The key is written and made durable before the certificate: a certificate that a client may already trust always
//! has its key. A key without a certificate is left by a crash between the two writes, and gets a new certificate.
//! Any other deviation from what larder wrote is an error; nothing is ever overwritten.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::limits::{self, Limits};
use super::{AuthorityError, dates};
use crate::clock::Time;
use crate::store::write_durably;

/// Ten years: the CA must be trusted once by every client, image and runner, and its renewal is the operator's
/// decision.
const LIFETIME: Duration = Duration::from_hours(3650 * 24);

/// Clients' clocks may be behind larder's; containers restored from a snapshot have been seen a day behind.
pub(super) const BACKDATE: Duration = Duration::from_hours(48);

/// The longest common name (RFC 5280, `ub-common-name`).
pub(super) const MAX_COMMON_NAME: usize = 64;

/// The most certificates in a CA's file: chains of companies have two or three.
const MAX_CHAIN: usize = 6;

/// A loaded CA.
pub(super) struct Ca {
    /// Signs leaves.
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(super) der: CertificateDer<'static>,
    /// The certificate of its issuer, that one's issuer, and so on up to a root; empty for a self-signed CA.
    pub(super) above: Vec<CertificateDer<'static>>,
    /// The root's certificate in PEM, ending with a line break: what clients must trust.
    pub(super) pem: String,
    /// When it expires.
    pub(super) not_after: Time,
    /// The names for which it may sign.
    pub(super) limits: Limits,
}

impl Ca {
    /// Loads the CA, or makes what is missing of it. A caller for which it may have to be made must hold the store's
    /// lock: if two processes made one at the same time, one CA would be lost. `expired`: whether an expired CA is
    /// acceptable.
    pub(super) fn open(
        state_dir: &Path,
        permitted: &[String],
        now: Time,
        expired: bool,
    ) -> Result<Self, AuthorityError> {
        let (key_path, crt_path) = (state_dir.join("ca.key"), state_dir.join("ca.crt"));
        let key = read(&key_path)?;
        let certificate = read(&crt_path)?;
        match (key, certificate) {
            (Some(key), Some(certificate)) => {
                warn_if_readable(&key_path);
                Self::load(parse_key(&key_path, &key)?, &crt_path, &certificate, now, expired)
            }
            (Some(key), None) => Self::make(parse_key(&key_path, &key)?, &crt_path, permitted, now),
            (None, None) => {
                dates::check_clock(now)?;
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(|e| AuthorityError::crypto("making the CA's key", e))?;
                write_durably(&key_path, key.serialize_pem().as_bytes(), 0o600)
                    .map_err(file("write", &key_path))?;
                Self::make(key, &crt_path, permitted, now)
            }
            (None, Some(_)) => Err(AuthorityError::Damaged {
                path: key_path,
                why: "is missing, but its certificate ca.crt is there".into(),
            }),
        }
    }

    /// Loads a key and its certificate, which must both exist.
    pub(super) fn pair(
        key_path: &Path,
        crt_path: &Path,
        now: Time,
        expired: bool,
    ) -> Result<Self, AuthorityError> {
        let missing = |path: &Path| AuthorityError::Damaged {
            path: path.to_owned(),
            why: "is missing".to_owned(),
        };
        let key = read(key_path)?.ok_or_else(|| missing(key_path))?;
        let certificate = read(crt_path)?.ok_or_else(|| missing(crt_path))?;
        warn_if_readable(key_path);
        Self::load(parse_key(key_path, &key)?, crt_path, &certificate, now, expired)
    }

    fn make(
        key: KeyPair,
        path: &Path,
        permitted: &[String],
        now: Time,
    ) -> Result<Self, AuthorityError> {
        let pem = certificate(&key, permitted, now)?;
        write_durably(path, pem.as_bytes(), 0o644).map_err(file("write", path))?;
        Self::load(key, path, &pem, now, false)
    }

    /// Checks everything that is needed for signing.
    pub(super) fn load(
        key: KeyPair,
        path: &Path,
        text: &str,
        now: Time,
        expired: bool,
    ) -> Result<Self, AuthorityError> {
        let damaged = |why: String| AuthorityError::Damaged { path: path.to_owned(), why };
        let (der, above) = chain(text).map_err(damaged)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| damaged(format!("is no certificate ({e})")))?;
        if !certificate.is_ca() {
            return Err(damaged("is not the certificate of a CA".into()));
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(damaged("does not belong to its key, ca.key".into()));
        }
        let not_after: Time =
            SystemTime::from(certificate.validity().not_after.to_datetime()).into();
        if not_after <= now && !expired {
            return Err(AuthorityError::Expired { path: path.to_owned(), not_after, now });
        }
        let all: Vec<_> = std::iter::once(&der).chain(&above).cloned().collect();
        let limits = Limits::of(&all)
            .map_err(|e| damaged(format!("has name constraints that cannot be read ({e})")))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| damaged(format!("cannot be used to sign ({e})")))?;
        let pem = super::encode_pem("CERTIFICATE", above.last().unwrap_or(&der));
        Ok(Self { issuer, der, above, pem, not_after, limits })
    }

    /// The certificate that clients must trust: the root of the chain, which is the CA's own if it is self-signed.
    pub(super) fn anchor(&self) -> &CertificateDer<'static> {
        self.above.last().unwrap_or(&self.der)
    }

    /// All its certificates in PEM, as in its file.
    pub(super) fn text(&self) -> String {
        let all = std::iter::once(&self.der).chain(&self.above);
        all.map(|der| super::encode_pem("CERTIFICATE", der)).collect()
    }
}

/// The certificates of a CA's file: its own, then its issuers', each after the one that it signed. The last must be
/// self-signed: many clients (OpenSSL's, unless told otherwise) accept only such a certificate as a root, and some
/// clients get nothing but what larder hands out.
fn chain(text: &str) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>), String> {
    let blocks = pem::parse_many(text).map_err(|e| format!("is not PEM ({e})"))?;
    let blocks = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    let mut all: Vec<_> = blocks
        .take(MAX_CHAIN + 1)
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    if all.is_empty() {
        return Err("is not PEM (it holds no certificate)".to_owned());
    }
    if all.len() > MAX_CHAIN {
        return Err(format!(
            "holds more than {MAX_CHAIN} certificates; it takes one CA's, and its issuers'"
        ));
    }
    // The issuer that the previous certificate names.
    let mut wanted: Option<(Vec<u8>, String)> = None;
    for (index, der) in all.iter().enumerate() {
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|e| format!("is no certificate ({e})"))?;
        let (subject, issuer) = (certificate.subject(), certificate.issuer());
        match &wanted {
            Some((name, _)) if name == subject.as_raw() => {}
            Some((_, shown)) => {
                return Err(format!(
                    "has {subject} where {shown}, the issuer of the certificate before, must follow"
                ));
            }
            None if index > 0 => {
                return Err(format!(
                    "has {subject} below a root; the CA's own certificate comes first, the root last"
                ));
            }
            None => {}
        }
        wanted = (subject.as_raw() != issuer.as_raw())
            .then(|| (issuer.as_raw().to_owned(), issuer.to_string()));
    }
    if let Some((_, issuer)) = wanted {
        return Err(format!(
            "is signed by {issuer}, whose certificate is not there: put it below, up to a root that signed itself, \
             because clients need that one"
        ));
    }
    let above = all.split_off(1);
    let der = all.pop().ok_or("is not PEM (it holds no certificate)")?;
    Ok((der, above))
}

/// A self-signed certificate for `key`, in PEM.
pub(super) fn certificate(
    key: &KeyPair,
    permitted: &[String],
    now: Time,
) -> Result<String, AuthorityError> {
    dates::check_clock(now)?;
    let mut params = params(now)?;
    params.name_constraints = limits::constraints(permitted);
    let certificate = params
        .self_signed(key)
        .map_err(|e| AuthorityError::crypto("signing the CA's certificate", e))?;
    Ok(super::encode_pem("CERTIFICATE", certificate.der()))
}

/// The fields of the CA's certificate.
fn params(now: Time) -> Result<CertificateParams, AuthorityError> {
    let today = date(now)?;
    let mut params = CertificateParams::default();
    // The name shows in a trust store which machine the CA belongs to, and since when.
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let room = MAX_COMMON_NAME - "larder CA  2026-01-01 0123".len();
    let machine: String = machine.chars().take(room).collect();
    // Two CAs made on one day need different names: some clients identify an issuer by its name only.
    let serial = serial()?;
    let mark = crate::digest::hex(serial.as_ref().get(1..3).unwrap_or_default());
    params
        .distinguished_name
        .push(DnType::CommonName, format!("larder CA {machine} {} {mark}", today.date()));
    params.distinguished_name.push(DnType::OrganizationName, "larder");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(now)? - BACKDATE;
    params.not_after = today + LIFETIME;
    params.serial_number = Some(serial);
    Ok(params)
}

/// `time` in the certificate library's type.
pub(super) fn date(time: Time) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(time.as_millis().div_euclid(1000))
        .map_err(|e| AuthorityError::crypto("reading the clock", e))
}

/// A serial number of sixteen random bytes. By default the library derives it from the public key, which all leaves
/// share: some clients refuse two certificates with the same issuer and serial number (RFC 5280 §4.1.2.2).
pub(super) fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|e| AuthorityError::crypto("drawing a serial number", e))?;
    // Positive, and of full length: the first byte is between 0x40 and 0x7f.
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(pem).map_err(|e| AuthorityError::Damaged {
        path: path.to_owned(),
        why: format!("holds no private key that can be used ({e})"),
    })
}

/// `None` if the file does not exist.
pub(super) fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| AuthorityError::Damaged {
            path: path.to_owned(),
            why: "is not text".into(),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file("read", path)(e)),
    }
}

fn warn_if_readable(key_path: &Path) {
    let mode = fs::metadata(key_path).map(|data| data.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        tracing::warn!(
            path = %key_path.display(),
            "the CA's key can be read by others than its owner; whoever reads it can pose as any site to every client \
             that trusts this CA: chmod 600 it"
        );
    }
}

pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    move |source| AuthorityError::File { doing, path: path.to_owned(), source }
}
