//! Leaf certificates: one for each host, all with the same key, which lives as long as the process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};

use super::AuthorityError;
use super::ca::{BACKDATE, Ca, MAX_COMMON_NAME, date, serial};
use crate::clock::Time;
use crate::target::Host;

/// Ninety days between the two dates: clients may refuse leaves with longer lifetimes (Apple's: 825 days under a
/// private root, less and less under public ones), and a leaf costs nothing.
const LIFETIME: Duration = Duration::from_hours(90 * 24);

/// A signed leaf certificate.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Leaf, CA and key, ready for a handshake.
    pub(super) certified: Arc<CertifiedKey>,
    /// The start of its validity. If the clock is set back to before that, clients' clocks are probably there as
    /// well.
    pub(super) valid_from: Time,
    /// When another one is signed: after half of its remaining life, so that connections that are opened late have
    /// weeks.
    pub(super) renew_at: Time,
}

/// The key of all leaves: never the CA's key, never on disk.
pub(super) struct LeafKey {
    pair: KeyPair,
    signing: Arc<dyn SigningKey>,
}

impl LeafKey {
    pub(super) fn generate() -> Result<Self, AuthorityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| AuthorityError::crypto("making the leaf key", e))?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signing =
            any_ecdsa_type(&der).map_err(|e| AuthorityError::crypto("loading the leaf key", e))?;
        Ok(Self { pair, signing })
    }
}

impl fmt::Debug for LeafKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafKey")
    }
}

/// Signs a certificate for `host`. It takes one signature, which is fast enough for an async thread.
pub(super) fn mint(ca: &Ca, key: &LeafKey, host: &Host, now: Time) -> Result<Leaf, AuthorityError> {
    let params = params(ca, host, now)?;
    let certificate = params
        .signed_by(&key.pair, &ca.issuer)
        .map_err(|e| AuthorityError::crypto("signing a certificate", e))?;
    // The CA's certificate is sent along, so that clients need not find it; some tools show it when they refuse. Its
    // issuers are sent as well, because clients may know only the root.
    let mut chain = vec![certificate.der().clone(), ca.der.clone()];
    chain.extend(ca.above.iter().filter(|der| *der != ca.anchor()).cloned());
    if !ca.limits.allow(host) {
        return Err(AuthorityError::outside(ca, host));
    }
    let left = not_after(ca, now).since(now);
    Ok(Leaf {
        certified: Arc::new(CertifiedKey::new(chain, Arc::clone(&key.signing))),
        valid_from: now.minus(BACKDATE),
        renew_at: now.plus(left / 2),
    })
}

/// The fields of a leaf. Python 3.13 and newer verify strictly (`VERIFY_X509_STRICT`) and refuse a leaf without an
/// authority key identifier; other clients refuse a leaf that may do more than serve TLS.
pub(super) fn params(ca: &Ca, host: &Host, now: Time) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let name = match host {
        Host::Name(name) => {
            let san = name.to_string().try_into();
            let san = san.map_err(|e| AuthorityError::crypto("naming a certificate", e))?;
            params.subject_alt_names = vec![SanType::DnsName(san)];
            name.to_string()
        }
        Host::Address(address) => {
            params.subject_alt_names = vec![SanType::IpAddress(*address)];
            address.to_string()
        }
    };
    // A longer common name would make the certificate malformed; the subject alternative name is what counts (RFC
    // 9525 §4.1). Without any subject, that is marked critical, as RFC 5280 §4.2.1.6 requires.
    params.distinguished_name = DistinguishedName::new();
    // Where the CA is limited, a common name could make clients refuse the certificate: it may not be a permitted subject, and
    // OpenSSL takes an address there for a host's name.
    let is_held_to_limits =
        ca.limits.are_of_subjects() || matches!(host, Host::Address(_)) && !ca.limits.is_empty();
    if name.len() <= MAX_COMMON_NAME && !is_held_to_limits {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(serial()?);
    params.not_before = date(now.minus(BACKDATE))?;
    params.not_after = date(not_after(ca, now))?;
    Ok(params)
}

/// The end of a leaf's validity: never later than the CA's.
fn not_after(ca: &Ca, now: Time) -> Time {
    now.plus(LIFETIME.saturating_sub(BACKDATE)).min(ca.not_after)
}
