//! Whose signature it is, and whether it holds.
//!
//! A signature names its maker by fingerprint, or in older ones by key id alone. Only keys so named are tried: a document
//! with many signatures costs little. One good signature is enough, as for apt; all that hold are named, because archives
//! sign with the old key and the new one while they change them, and the binding of a root needs the overlap.
//!
//! One that does not hold though its key is known spoils the document, whatever else it bears: gpgv and apt refuse it then,
//! and whoever can add another document's signature on the way must not make larder keep what no client takes.

use pgp::composed::{Deserializable as _, DetachedSignature};
use pgp::packet::{Signature, SignatureType};
use pgp::types::VerifyingKey;

use super::cleartext::Cleartext;
use super::{Certificate, Fault, Fingerprint, Keyring, NotSigned, Place, Signed, policy};
use crate::clock::Time;

/// The most signatures of one document that are looked at. Debian's have three.
const MAX_SIGNATURES: usize = 32;

/// The longest file of detached signatures, in bytes.
const MAX_DETACHED: usize = 256 << 10;

impl Keyring {
    /// Verifies a clear-signed document at `now`.
    pub fn verify_cleartext(&self, document: &Cleartext, now: Time) -> Result<Signed, NotSigned> {
        let armours = document.signatures.iter().map(String::as_bytes);
        let signatures: Vec<_> = armours.flat_map(read).take(MAX_SIGNATURES).collect();
        self.verify(&signatures, SignatureType::Text, &document.canonical, now)
    }

    /// Verifies a detached signature over `document`, armoured or binary, at `now`.
    pub fn verify_detached(
        &self,
        document: &[u8],
        signature: &[u8],
        now: Time,
    ) -> Result<Signed, NotSigned> {
        let signatures = if signature.len() <= MAX_DETACHED {
            let mut signatures = read(signature);
            signatures.truncate(MAX_SIGNATURES);
            signatures
        } else {
            Vec::new()
        };
        self.verify(&signatures, SignatureType::Binary, document, now)
    }

    fn verify(
        &self,
        signatures: &[Signature],
        kind: SignatureType,
        data: &[u8],
        now: Time,
    ) -> Result<Signed, NotSigned> {
        let mut signers = Vec::new();
        let mut created = Time::from_millis(0);
        let mut faults = Vec::new();
        for signature in signatures {
            match self.signer(signature, kind, data, now) {
                Ok(signer) => {
                    let at = signature.created().map_or(0, pgp::types::Timestamp::as_secs);
                    created = created.max(policy::moment(at));
                    signers.push(signer);
                }
                Err(fault) => faults.push(fault),
            }
        }
        signers.sort_unstable();
        signers.dedup();
        if signers.is_empty() || faults.contains(&Fault::Mismatch) {
            return Err(NotSigned { faults });
        }
        Ok(Signed { signers, created })
    }

    /// Who made a signature that counts.
    fn signer(
        &self,
        signature: &Signature,
        kind: SignatureType,
        data: &[u8],
        now: Time,
    ) -> Result<Fingerprint, Fault> {
        let candidates = self.candidates(signature);
        let mut fault = None;
        let mut found = None;
        for (number, place) in candidates {
            let Some(certificate) = self.certificates.get(number) else {
                continue;
            };
            match certificate.made((number, place), signature, kind, data, now) {
                Ok(()) => found = Some(certificate.fingerprint()),
                // A newer copy of the certificate may know what an older one does not.
                Err(Fault::Revoked) => return Err(Fault::Revoked),
                Err(other) => fault = Some(other),
            }
        }
        match (found, fault) {
            (Some(signer), _) => Ok(signer),
            (None, Some(fault)) => Err(fault),
            (None, None) => Err(Fault::Unknown(issuer(signature).into())),
        }
    }

    /// The keys that a signature names as its maker.
    fn candidates(&self, signature: &Signature) -> Vec<Place> {
        let fingerprints = signature.issuer_fingerprint();
        let places = if fingerprints.is_empty() {
            let ids = signature.issuer_key_id().into_iter();
            ids.filter_map(|id| self.by_id.get(id)).flatten().collect()
        } else {
            let named = fingerprints.into_iter();
            let known = named.filter_map(|fingerprint| self.by_fingerprint.get(fingerprint));
            known.flatten().collect::<Vec<&Place>>()
        };
        let mut places: Vec<Place> = places.into_iter().copied().collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

impl Certificate {
    /// Whether its key at `place` made a signature that counts.
    fn made(
        &self,
        (_, place): Place,
        signature: &Signature,
        kind: SignatureType,
        data: &[u8],
        now: Time,
    ) -> Result<(), Fault> {
        match place {
            None => {
                let key = &self.key.primary_key;
                policy::check_signature(signature, kind, key, now)?;
                holds(signature, key, data)?;
                policy::primary_signs(&self.key, now)
            }
            Some(place) => {
                let Some(subkey) = self.key.public_subkeys.get(place) else {
                    return Err(Fault::Bad("its subkey is gone".into()));
                };
                policy::check_signature(signature, kind, &subkey.key, now)?;
                holds(signature, &subkey.key, data)?;
                policy::subkey_signs(&self.key, subkey, now)
            }
        }
    }
}

fn holds(signature: &Signature, key: &impl VerifyingKey, data: &[u8]) -> Result<(), Fault> {
    // Of a kind that is not computed here nobody knows whether it holds.
    signature.verify(key, data).map_err(|_| policy::check_key(key).err().unwrap_or(Fault::Mismatch))
}

/// The signatures in an armoured or binary file; what cannot be read is none.
fn read(file: &[u8]) -> Vec<Signature> {
    let Ok((signatures, _)) = DetachedSignature::from_reader_many_buf(file) else {
        return Vec::new();
    };
    signatures
        .take(MAX_SIGNATURES)
        .map_while(Result::ok)
        .map(|detached| detached.signature)
        .collect()
}

/// Whom a signature names as its maker, for people.
fn issuer(signature: &Signature) -> String {
    let by_fingerprint = signature.issuer_fingerprint().into_iter();
    let by_id = signature.issuer_key_id().into_iter();
    by_fingerprint
        .map(ToString::to_string)
        .chain(by_id.map(ToString::to_string))
        .next()
        .map_or_else(|| "of nobody".to_owned(), |name| name.to_ascii_uppercase())
}
