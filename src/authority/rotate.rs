//! Rotates the CA, with both trusted during an overlap; and imports a CA that was made elsewhere.
//!
//! ```text
//! rotate, import:  ca.next.key ─▶ ca.next.from ─▶ ca.next.crt      from now on both are handed out
//! at the date:     the next CA signs, and both are still handed out
//! finish:          ca.key ─▶ ca.crt ─▶ ca.next.crt, .from, .key are removed; the old CA is gone
//! ```
//!
//! The certificate is written last and removed first: without `ca.next.crt` there is no next CA, whatever else a
//! crash left. A crash inside `finish` leaves the next CA's key in `ca.key` beside the old certificate. Opening
//! recognises that key and continues with the next CA, and another `finish` completes the rotation.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};

use super::AuthorityError;
use super::ca::{Ca, file, parse_key, read};
use crate::clock::Time;
use crate::store::write_durably;

/// The default overlap: clients that are set up again once a month get both CAs in time.
pub const OVERLAP: Duration = Duration::from_hours(30 * 24);

const KEY: &str = "ca.next.key";
const FROM: &str = "ca.next.from";
const CERTIFICATE: &str = "ca.next.crt";

/// The present CA and the next one.
pub(super) struct CaPair {
    pub(super) ca: Ca,
    pub(super) next: Option<Next>,
}

/// A CA that starts to sign at a given time.
pub(super) struct Next {
    pub(super) ca: Ca,
    pub(super) from: Time,
}

impl CaPair {
    /// Loads both, or makes the present CA.
    pub(super) fn open(
        dir: &Path,
        permitted: &[String],
        now: Time,
    ) -> Result<Self, AuthorityError> {
        let mut next = Next::load(dir, now)?;
        let half_finished = next.is_some() && is_half_finished(dir)?;
        if let Some(next) = next.take_if(|_| half_finished) {
            let ca = Ca::pair(&dir.join(KEY), &dir.join(CERTIFICATE), now, false)?;
            tracing::warn!(
                "the change of the CA was not finished: `larder ca rotate --finish` ends it"
            );
            return Ok(Self { ca, next: Some(next) });
        }
        // An expired present CA is acceptable if there is a next one.
        Ok(Self { ca: Ca::open(dir, permitted, now, next.is_some())?, next })
    }

    /// The CA that signs at `now`.
    pub(super) fn signer(&self, now: Time) -> &Ca {
        match &self.next {
            Some(next) if next.from <= now || self.ca.not_after <= now => &next.ca,
            _ => &self.ca,
        }
    }

    /// Both CAs, or only one if they have the same root.
    pub(super) fn all(&self) -> impl Iterator<Item = &Ca> {
        let next = self.next.iter().map(|next| &next.ca);
        let next = next.filter(|next| next.anchor() != self.ca.anchor());
        std::iter::once(&self.ca).chain(next)
    }

    /// When the signer changes, if it will.
    pub(super) fn changes_at(&self, now: Time) -> Option<Time> {
        let change = self.next.as_ref().map(|next| next.from.min(self.ca.not_after));
        change.filter(|change| *change > now)
    }
}

/// Whether a crash inside `finish` left the next CA's key beside the old certificate. A CA whose certificate was
/// renewed for the same key is a different case: the key belongs to both certificates.
fn is_half_finished(dir: &Path) -> Result<bool, AuthorityError> {
    let path = dir.join("ca.key");
    let key = read(&path)?;
    let (Some(text), Some(old)) = (&key, read(&dir.join("ca.crt"))?) else { return Ok(false) };
    if key != read(&dir.join(KEY))? {
        return Ok(false);
    }
    let public = parse_key(&path, text)?.subject_public_key_info();
    let block = pem::parse(old).ok();
    let is_its = block.as_ref().is_some_and(|block| {
        x509_parser::parse_x509_certificate(block.contents())
            .is_ok_and(|(_, certificate)| certificate.public_key().raw == public)
    });
    Ok(!is_its)
}

impl Next {
    fn load(dir: &Path, now: Time) -> Result<Option<Self>, AuthorityError> {
        if read(&dir.join(CERTIFICATE))?.is_none() {
            return Ok(None);
        }
        let path = dir.join(FROM);
        let text = read(&path)?.unwrap_or_default();
        let from =
            text.trim().parse().map(Time::from_millis).map_err(|_| AuthorityError::Damaged {
                path,
                why: "does not contain the time from which the next CA signs".to_owned(),
            })?;
        let ca = Ca::pair(&dir.join(KEY), &dir.join(CERTIFICATE), now, true)?;
        if ca.not_after <= now {
            tracing::warn!(
                expired = %ca.not_after,
                "the next CA has expired before the change was finished, and is ignored; `larder ca rotate` makes another"
            );
            return Ok(None);
        }
        Ok(Some(Self { ca, from }))
    }
}

/// Makes another CA, which starts to sign at `from`.
pub(super) fn begin(
    dir: &Path,
    permitted: &[String],
    from: Time,
    now: Time,
) -> Result<(), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|e| AuthorityError::crypto("making the CA's key", e))?;
    let certificate = super::ca::certificate(&key, permitted, now)?;
    put(dir, &key.serialize_pem(), &certificate, from, now)
}

/// Imports a CA that was made elsewhere, which starts to sign at `from`. Everything is checked before anything is
/// written.
pub(super) fn import(
    dir: &Path,
    certificate: &str,
    key: &str,
    from: Time,
    now: Time,
) -> Result<(), AuthorityError> {
    let refused = |why: String| AuthorityError::Import(why);
    let pair = KeyPair::from_pem(key)
        .map_err(|e| refused(format!("the key cannot be used ({e}); larder takes PKCS#8 in PEM, unencrypted: openssl pkcs8 -topk8 -nocrypt")))?;
    let ca = Ca::load(pair, Path::new("the certificate"), certificate, now, false)
        .map_err(|error| refused(error.said()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&ca.der)
        .map_err(|e| refused(format!("the certificate cannot be read ({e})")))?;
    let usage =
        parsed.key_usage().map_err(|e| refused(format!("its key usage cannot be read ({e})")))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(refused(
            "the certificate's key usage does not let it sign certificates (keyCertSign)"
                .to_owned(),
        ));
    }
    let purposes = parsed
        .extended_key_usage()
        .map_err(|e| refused(format!("its extended key usage cannot be read ({e})")))?;
    if purposes.is_some_and(|purposes| !purposes.value.any && !purposes.value.server_auth) {
        return Err(refused(
            "the certificate's extended key usage lacks serverAuth, so that no client would accept what it signs"
                .to_owned(),
        ));
    }
    if ca.not_after <= from {
        return Err(refused(format!(
            "the certificate expires on {}, before it would be used ({from}); --days sets that date",
            ca.not_after
        )));
    }
    let starts: Time =
        std::time::SystemTime::from(parsed.validity().not_before.to_datetime()).into();
    if starts > now {
        return Err(refused(format!("the certificate is not valid before {starts}")));
    }
    let key = parse_key(Path::new("the key"), key)?.serialize_pem();
    put(dir, &key, &ca.text(), from, now)
}

fn put(
    dir: &Path,
    key: &str,
    certificate: &str,
    from: Time,
    now: Time,
) -> Result<(), AuthorityError> {
    if Next::load(dir, now)?.is_some() {
        return Err(AuthorityError::Import(
            "a change of the CA is under way already; `larder ca rotate --finish` ends it"
                .to_owned(),
        ));
    }
    // The existing next CA has expired. It is removed first, so that a crash leaves no certificate beside another
    // CA's key.
    let path = dir.join(CERTIFICATE);
    if read(&path)?.is_some() {
        fs::remove_file(&path).map_err(file("remove", &path))?;
    }
    for (name, text, mode) in [
        (KEY, key, 0o600),
        (FROM, &format!("{}\n", from.as_millis()), 0o644),
        (CERTIFICATE, certificate, 0o644),
    ] {
        let path = dir.join(name);
        write_durably(&path, text.as_bytes(), mode).map_err(file("write", &path))?;
    }
    Ok(())
}

/// Ends the overlap: the old CA is deleted.
pub(super) fn finish(dir: &Path, now: Time) -> Result<(), AuthorityError> {
    let Some(next) = Next::load(dir, now)? else {
        return Err(AuthorityError::Import("no change of the CA is under way".to_owned()));
    };
    if next.from > now {
        return Err(AuthorityError::Import(format!(
            "the next CA signs only from {} on; until then clients need the old one",
            next.from
        )));
    }
    for (from, to, mode) in [(KEY, "ca.key", 0o600), (CERTIFICATE, "ca.crt", 0o644)] {
        let to = dir.join(to);
        let text = read(&dir.join(from))?.unwrap_or_default();
        write_durably(&to, text.as_bytes(), mode).map_err(file("write", &to))?;
    }
    for name in [CERTIFICATE, FROM, KEY] {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(file("remove", &path))?;
    }
    Ok(())
}
