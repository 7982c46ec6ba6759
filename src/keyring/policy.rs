//! Which keys of a certificate may sign, today, and which signatures count.
//!
//! rPGP does the arithmetic and judges nothing. Its own `verify_bindings` is not used: it insists on checking what third
//! parties certified, and refuses most archive keys for that. The rules here are gpgv's and Sequoia's where they agree,
//! and the stricter one where they do not:
//!
//! - the newest self-certification that verifies says when a certificate ends and what its primary key is for;
//! - a revocation by the primary key ends the certificate, or the subkey, for good;
//! - a subkey signs only if the primary key bound it for signing and it confirmed that itself (RFC 9580 §5.2.1.9): else
//!   anybody could take another's subkey for his own;
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

/// How far a signer's clock may be ahead of ours.
const AHEAD: Duration = Duration::from_hours(24);

/// RSA below this is within reach of a state.
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
    let revoked = subkey.signatures.iter().any(|signature| {
        signature.typ() == Some(SignatureType::SubkeyRevocation)
            && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
    });
    if revoked {
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
        return Err(Fault::Bad("its subkey does not confirm whose it is".into()));
    }
    not_expired(&subkey.key, binding, now)
}

/// When the certificate ends, by its newest self-certification; `None` if it does not, or has none.
pub(super) fn ends(certificate: &SignedPublicKey, now: Time) -> Option<Time> {
    end_of(&certificate.primary_key, self_certification(certificate, now)?)
}

/// Whether a signature over data may count at all, before anything is computed.
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

/// The newest self-certification of a certificate that stands.
fn standing(certificate: &SignedPublicKey, now: Time) -> Result<&Signature, Fault> {
    let primary = &certificate.primary_key;
    let revoked = certificate
        .details
        .revocation_signatures
        .iter()
        .any(|signature| signature.verify_key(primary).is_ok());
    if revoked {
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

/// Whether a certification names the key itself as its issuer; strangers' certifications are no business of ours.
fn is_own(signature: &Signature, primary: &impl KeyDetails) -> bool {
    signature.issuer_key_id().iter().any(|id| **id == primary.legacy_key_id())
        || signature
            .issuer_fingerprint()
            .iter()
            .any(|fingerprint| **fingerprint == primary.fingerprint())
}

/// The newest; of two from one second the later in the certificate.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| seconds(signature.created()))
}

/// Whether a signature is of a form that larder knows whole, strong, begun and not ended.
fn is_sound(signature: &Signature, now: Time) -> bool {
    let Some(config) = signature.config() else {
        return false;
    };
    let version = matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6);
    // What is marked critical and not understood makes a signature void (RFC 9580 §5.2.3.7).
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

/// What the key flags say of signing; `None` if there are none.
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

/// Whether a key is of a kind that counts.
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
    //! The length of an RSA key: the type of the number inside is not ours to name.

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
