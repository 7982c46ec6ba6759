//! Trusted keys, and what they signed.
//!
//! ```text
//! compiled in            the archive keys of Debian, Ubuntu and Alpine, as data/*         \
//! /usr/share/keyrings    the system's                                                      ├─▶ Keyring
//! /etc/apt/keyrings, /etc/apt/trusted.gpg.d, /etc/apk/keys, DATA/state/keys    the operator's /
//!
//! OpenPGP: document ─▶ cleartext.rs: the text that was signed ─▶ signatures.rs: whose, and does it hold ─▶ policy.rs: may it count
//! RSA by file name, as apk signs: rsa.rs
//! ```
//!
//! A key here says only that somebody trusts it for something. That any trusted key could speak for any repository is what
//! the binding of roots to signers prevents, and that is not done here: [`Signed`] names who signed, by the fingerprints of
//! primary keys, and `pipeline` compares them with those it saw before.
//!
//! Nothing here asks for the time, nor for a file, except [`load`].
//!
//! Sources: RFC 9580; the distributions' keys are those of their own keyring packages.

mod cleartext;
mod fault;
pub mod load;
mod policy;
mod rsa;
mod signatures;

use std::collections::HashMap;
use std::fmt;

use pgp::composed::SignedPublicKey;
use pgp::types::{Fingerprint as PgpFingerprint, KeyDetails as _, KeyId};
use serde::{Deserialize, Serialize};

pub use self::cleartext::{Cleartext, NotCleartext};
pub use self::fault::{Fault, NotSigned};
pub use self::rsa::{AboutRsa, RsaHash};
use crate::clock::Time;
use crate::digest::hex;

/// The fingerprint of a primary key, or of an RSA key, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub Box<str>);

impl Fingerprint {
    fn of(fingerprint: &PgpFingerprint) -> Self {
        Self(hex(fingerprint.as_bytes()).to_ascii_uppercase().into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a signature proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The primary keys by whose word it was signed, in order, each once. Not empty.
    pub signers: Vec<Fingerprint>,
    /// When the newest signature that counts was made, as its maker says.
    pub created: Time,
}

/// Trusted keys.
#[derive(Debug, Default)]
pub struct Keyring {
    certificates: Vec<Certificate>,
    by_fingerprint: HashMap<PgpFingerprint, Vec<Place>>,
    by_id: HashMap<KeyId, Vec<Place>>,
    rsa: rsa::RsaKeys,
}

/// Where a key stands: its certificate, and which of its subkeys it is.
type Place = (usize, Option<usize>);

/// A trusted certificate: a primary key with its subkeys.
#[derive(Debug)]
struct Certificate {
    key: SignedPublicKey,
    source: Box<str>,
}

/// What people are told of a key.
#[derive(Clone, Debug)]
pub struct About {
    /// The primary key's fingerprint.
    pub fingerprint: Fingerprint,
    /// Whose it says it is.
    pub user: String,
    /// When it ends.
    pub ends: Option<Time>,
    /// Where it was found.
    pub source: String,
}

impl Keyring {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many certificates there are.
    pub fn len(&self) -> usize {
        self.certificates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// What people are told, as of `now`.
    pub fn about(&self, now: Time) -> impl Iterator<Item = About> {
        self.certificates.iter().map(move |certificate| About {
            fingerprint: certificate.fingerprint(),
            user: certificate.user(),
            ends: policy::ends(&certificate.key, now),
            source: certificate.source.to_string(),
        })
    }

    /// Adds a certificate. The same one twice is harmless: one of them may be newer, and the candidates are tried in turn;
    /// but a revocation in any copy counts, so that an old copy cannot bring a withdrawn key back.
    fn add(&mut self, key: SignedPublicKey, source: &str) {
        let number = self.certificates.len();
        let primary = (key.primary_key.fingerprint(), key.primary_key.legacy_key_id());
        let subkeys = key.public_subkeys.iter().enumerate().map(|(place, subkey)| {
            let names = (subkey.key.fingerprint(), subkey.key.legacy_key_id());
            (names, Some(place))
        });
        for ((fingerprint, id), place) in std::iter::once((primary, None)).chain(subkeys) {
            let at = (number, place);
            self.by_fingerprint.entry(fingerprint).or_default().push(at);
            self.by_id.entry(id).or_default().push(at);
        }
        self.certificates.push(Certificate { key, source: source.into() });
    }
}

impl Certificate {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.key.primary_key.fingerprint())
    }

    fn user(&self) -> String {
        let user = self.key.details.users.first();
        user.map_or_else(String::new, |user| String::from_utf8_lossy(user.id.id()).into_owned())
    }
}

#[cfg(test)]
mod tests;
