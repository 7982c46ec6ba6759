//! Finds the signer of a document and verifies the signature.
//!
//! A signature names its issuer by fingerprint, or in older ones only by key id. Only the keys so named are tried, so
//! that a document with many signatures is cheap to check. One valid signature is enough, as for apt. All valid signers
//! are reported: during a key change, archives sign with the old and the new key, and the binding of a root needs that
//! overlap.
//!
//! If the key of one signature is known and the signature is invalid, the whole document is refused, as gpgv and apt
//! do. Otherwise an attacker on the path who adds a signature of another document could make larder store a document
//! that no client accepts.

use pgp::composed::{Deserializable as _, DetachedSignature};
use pgp::packet::{Signature, SignatureType};
use pgp::types::VerifyingKey;

use super::cleartext::Cleartext;
use super::{Certificate, Fault, Fingerprint, KeyPosition, Keyring, NotSigned, Signed, policy};
use crate::clock::Time;

/// The maximum number of signatures that are checked per document. Debian's have three.
const MAX_SIGNATURES: usize = 32;

/// The maximum length of a detached signature file, in bytes.
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
        let (mut signers, mut makers) = (Vec::new(), Vec::new());
        let mut created = Time::from_millis(0);
        let mut faults = Vec::new();
        for signature in signatures {
            match self.signer(signature, kind, data, now) {
                Ok((signer, maker)) => {
                    let at = signature.created().map_or(0, pgp::types::Timestamp::as_secs);
                    created = created.max(policy::moment(at));
                    signers.push(signer);
                    makers.push(maker);
                }
                Err(fault) => faults.push(fault),
            }
        }
        for known in [&mut signers, &mut makers] {
            known.sort_unstable();
            known.dedup();
        }
        if signers.is_empty() || faults.contains(&Fault::Mismatch) {
            return Err(NotSigned { faults });
        }
        Ok(Signed { signers, makers, created })
    }

    /// The signer of a signature, and the key that made it, if the signature counts.
    fn signer(
        &self,
        signature: &Signature,
        kind: SignatureType,
        data: &[u8],
        now: Time,
    ) -> Result<(Fingerprint, Fingerprint), Fault> {
        let candidates = self.candidates(signature);
        let mut fault = None;
        let mut found = None;
        for (number, place) in candidates {
            let Some(certificate) = self.openpgp.all.get(number) else {
                continue;
            };
            match certificate.made((number, place), signature, kind, data, now) {
                Ok(()) if self.openpgp.is_revoked(certificate) => return Err(Fault::Revoked),
                Ok(()) => found = Some((certificate.fingerprint(), certificate.maker(place))),
                // A newer copy of the certificate may contain a revocation that an older copy lacks.
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

    /// The keys that a signature names as its issuer.
    fn candidates(&self, signature: &Signature) -> Vec<KeyPosition> {
        let fingerprints = signature.issuer_fingerprint();
        let places = if fingerprints.is_empty() {
            let ids = signature.issuer_key_id().into_iter();
            ids.filter_map(|id| self.openpgp.by_id.get(id)).flatten().collect()
        } else {
            let named = fingerprints.into_iter();
            let known =
                named.filter_map(|fingerprint| self.openpgp.by_fingerprint.get(fingerprint));
            known.flatten().collect::<Vec<&KeyPosition>>()
        };
        let mut places: Vec<KeyPosition> = places.into_iter().copied().collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

impl Certificate {
    /// Whether the certificate's key at `place` made this signature and the signature counts.
    fn made(
        &self,
        (_, place): KeyPosition,
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
    // An unsupported key type or length makes verification fail too; that is reported as weak and not as a mismatch.
    signature.verify(key, data).map_err(|_| policy::check_key(key).err().unwrap_or(Fault::Mismatch))
}

/// The signatures in an armoured or binary file. Parsing stops at the first unreadable one.
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

/// The issuer that a signature names, for messages.
fn issuer(signature: &Signature) -> String {
    let by_fingerprint = signature.issuer_fingerprint().into_iter();
    let by_id = signature.issuer_key_id().into_iter();
    by_fingerprint
        .map(ToString::to_string)
        .chain(by_id.map(ToString::to_string))
        .next()
        .map_or_else(|| "(none named)".to_owned(), |name| name.to_ascii_uppercase())
}
