//! Decides which keys of a certificate may currently sign, and which signatures count.
//!
//! rPGP does the arithmetic and makes no policy decision. Its own `verify_bindings` is not used: it also checks
//! third-party certifications, and therefore rejects most archive keys. The rules here are those of gpgv and Sequoia;
//! where the two differ, the stricter one:
//!
//! - the newest valid self-certification states when a certificate expires and what its primary key is for;
//! - a revocation by the primary key ends the certificate, or the subkey, for good;
//! - a subkey signs only if the primary key bound it for signing and the subkey confirmed that (RFC 9580 §5.2.1.9):
//!   otherwise anybody could claim another certificate's subkey;
//! - SHA-2 and SHA-3 from 256 bits; RSA from 2048 bits, `EdDSA` on Ed25519, ECDSA on P-256, P-384 and P-521; no DSA.
//!
//! Source: RFC 9580 §5.2, §10.1.

use std::time::Duration;

use pgp::composed::{SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType, SignatureVersion, SubpacketData};
use pgp::types::{EcdsaPublicParams, EddsaLegacyPublicParams, KeyDetails, PublicParams, Tag};

use super::Fault;
use crate::clock::Time;

/// How far a signer's clock may be ahead of larder's.
const AHEAD: Duration = Duration::from_hours(24);

/// A state could factor a shorter RSA key.
const RSA_BITS: usize = 2048;

/// Whether the certificate's primary key may sign at `now`.
pub(super) fn primary_signs(certificate: &SignedPublicKey, now: Time) -> Result<(), Fault> {
    let newest = standing(certificate, now)?;
    check_key(&certificate.primary_key)?;
    if may_sign(newest) == Some(false) {
        return Err(Fault::Bad("its key is not for signing".into()));
    }
    Ok(())
}

/// Whether a subkey of the certificate may sign at `now`.
pub(super) fn subkey_signs(
    certificate: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
    now: Time,
) -> Result<(), Fault> {
    standing(certificate, now)?;
    check_key(&subkey.key)?;
    let primary = &certificate.primary_key;
    if is_subkey_revoked(certificate, subkey) {
        return Err(Fault::Revoked);
    }
    let bindings = subkey.signatures.iter().filter(|signature| {
        signature.typ() == Some(SignatureType::SubkeyBinding)
            && is_sound(signature, now)
            && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
    });
    let binding = newest(bindings).ok_or_else(|| Fault::Bad("nothing binds its subkey".into()))?;
    if may_sign(binding) != Some(true) {
        return Err(Fault::Bad("its subkey is not for signing".into()));
    }
    let confirmed = binding.embedded_signature().is_some_and(|back| {
        is_sound(back, now) && back.verify_primary_key_binding(&subkey.key, primary).is_ok()
    });
    if !confirmed {
        return Err(Fault::Bad("its subkey does not confirm its primary key".into()));
    }
    not_expired(&subkey.key, binding, now)
}

/// When the certificate expires, by its newest self-certification; `None` if it does not expire or has no
/// self-certification.
pub(super) fn ends(certificate: &SignedPublicKey, now: Time) -> Option<Time> {
    end_of(&certificate.primary_key, self_certification(certificate, now)?)
}

/// Whether a signature over data may count at all; checked before any cryptography.
pub(super) fn check_signature(
    signature: &Signature,
    expected: SignatureType,
    made: &impl KeyDetails,
    now: Time,
) -> Result<(), Fault> {
    if signature.typ() != Some(expected) {
        return Err(Fault::Bad("it is of another kind".into()));
    }
    if !signature.hash_alg().is_some_and(is_strong) {
        return Err(Fault::Weak);
    }
    if !is_sound(signature, now) {
        return Err(Fault::Bad("it is of an unknown form, of the future, or has expired".into()));
    }
    let created = seconds(signature.created());
    if created < seconds(Some(made.created_at())) {
        return Err(Fault::Bad("it is older than its key".into()));
    }
    Ok(())
}

/// Whether the primary key revoked its certificate.
pub(super) fn is_revoked(certificate: &SignedPublicKey) -> bool {
    let primary = &certificate.primary_key;
    let mut revocations = certificate.details.revocation_signatures.iter();
    revocations.any(|signature| signature.verify_key(primary).is_ok())
}

/// Whether the primary key revoked the subkey.
pub(super) fn is_subkey_revoked(
    certificate: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
) -> bool {
    subkey.signatures.iter().any(|signature| {
        signature.typ() == Some(SignatureType::SubkeyRevocation)
            && signature.verify_subkey_binding(&certificate.primary_key, &subkey.key).is_ok()
    })
}

/// The newest self-certification of a certificate that is neither revoked nor expired.
fn standing(certificate: &SignedPublicKey, now: Time) -> Result<&Signature, Fault> {
    let primary = &certificate.primary_key;
    if is_revoked(certificate) {
        return Err(Fault::Revoked);
    }
    let newest = self_certification(certificate, now)
        .ok_or_else(|| Fault::Bad("its key does not certify itself".into()))?;
    not_expired(primary, newest, now)?;
    Ok(newest)
}

fn self_certification(certificate: &SignedPublicKey, now: Time) -> Option<&Signature> {
    let primary = &certificate.primary_key;
    let direct = certificate
        .details
        .direct_signatures
        .iter()
        .filter(|signature| is_sound(signature, now) && signature.verify_key(primary).is_ok());
    let of_users = certificate.details.users.iter().flat_map(|user| {
        let by_itself = move |signature: &&Signature| {
            is_own(signature, primary)
                && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
        };
        let withdrawn = user.signatures.iter().any(|signature| {
            signature.typ() == Some(SignatureType::CertRevocation) && by_itself(&signature)
        });
        user.signatures
            .iter()
            .filter(move |signature| {
                !withdrawn && signature.is_certification() && is_sound(signature, now)
            })
            .filter(by_itself)
    });
    newest(direct.chain(of_users))
}

/// Whether a certification names the key itself as its issuer. Certifications by other keys are ignored.
fn is_own(signature: &Signature, primary: &impl KeyDetails) -> bool {
    signature.issuer_key_id().iter().any(|id| **id == primary.legacy_key_id())
        || signature
            .issuer_fingerprint()
            .iter()
            .any(|fingerprint| **fingerprint == primary.fingerprint())
}

/// The newest signature; of two from the same second, the later one in the certificate.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| seconds(signature.created()))
}

/// Whether a signature is fully understood by larder, strong, not from the future and not expired.
fn is_sound(signature: &Signature, now: Time) -> bool {
    let Some(config) = signature.config() else {
        return false;
    };
    let version = matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6);
    // A critical subpacket that is not understood makes a signature void (RFC 9580 §5.2.3.7).
    let understood = config.hashed_subpackets().all(|subpacket| {
        !subpacket.is_critical
            || !matches!(
                subpacket.data,
                SubpacketData::Other(..)
                    | SubpacketData::Experimental(..)
                    | SubpacketData::Notation(_)
                    | SubpacketData::SignatureTarget(..)
            )
    });
    let Some(created) = signature.created() else {
        return false;
    };
    let begun = moment(created.as_secs()) <= now.plus(AHEAD);
    let ended = signature
        .signature_expiration_time()
        .filter(|span| span.as_secs() > 0)
        .is_some_and(|span| {
            moment(created.as_secs()).plus(Duration::from_secs(span.as_secs().into())) <= now
        });
    version && understood && begun && !ended && is_strong(config.hash_alg)
}

const fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}

/// Whether the key flags allow signing; `None` if there are no flags.
fn may_sign(signature: &Signature) -> Option<bool> {
    let mut hashed = signature.config()?.hashed_subpackets();
    hashed.find_map(|subpacket| {
        if let SubpacketData::KeyFlags(flags) = &subpacket.data { Some(flags.sign()) } else { None }
    })
}

fn not_expired(key: &impl KeyDetails, by: &Signature, now: Time) -> Result<(), Fault> {
    match end_of(key, by) {
        Some(end) if end <= now => Err(Fault::Expired(end)),
        Some(_) | None => Ok(()),
    }
}

/// Key expiration counts from the key's creation (RFC 9580 §5.2.3.13).
fn end_of(key: &impl KeyDetails, by: &Signature) -> Option<Time> {
    let span = by.key_expiration_time().filter(|span| span.as_secs() > 0)?;
    let begun = moment(key.created_at().as_secs());
    Some(begun.plus(Duration::from_secs(span.as_secs().into())))
}

/// Whether a key's algorithm and length count.
pub(super) fn check_key(key: &impl KeyDetails) -> Result<(), Fault> {
    use rsa_size::bits;
    let params = key.public_params();
    let strong = if let PublicParams::RSA(rsa) = params {
        bits(rsa) >= RSA_BITS
    } else {
        matches!(
            params,
            PublicParams::EdDSALegacy(EddsaLegacyPublicParams::Ed25519 { .. })
                | PublicParams::Ed25519(_)
                | PublicParams::ECDSA(
                    EcdsaPublicParams::P256 { .. }
                        | EcdsaPublicParams::P384 { .. }
                        | EcdsaPublicParams::P521 { .. },
                )
        )
    };
    if strong { Ok(()) } else { Err(Fault::Weak) }
}

mod rsa_size {
    //! The length of an RSA key. It is in a module of its own because the type of the modulus cannot be named here.

    use pgp::ser::Serialize as _;
    use pgp::types::RsaPublicParams;

    /// The length of the modulus in bits, from the head of its multiprecision integer (RFC 9580 §3.2).
    pub(super) fn bits(rsa: &RsaPublicParams) -> usize {
        let mut bytes = Vec::new();
        match (rsa.to_writer(&mut bytes), bytes.as_slice()) {
            (Ok(()), [high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        }
    }
}

fn seconds(time: Option<pgp::types::Timestamp>) -> u32 {
    time.map_or(0, pgp::types::Timestamp::as_secs)
}

/// The moment `seconds` after 1970-01-01 UTC.
pub(super) fn moment(seconds: u32) -> Time {
    Time::from_millis(i64::from(seconds) * 1000)
}
