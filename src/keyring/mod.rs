//! Trusted keys, and what they signed.
//!
//! ```text
//! compiled in        archive keys and a registry's, as data/*, unless `keys.built_in` says no    \
//! keys.system        the system's: /usr/share/keyrings, /etc/apt/keyrings, …                      ├─▶ Keyring ─▶ Trusted
//! DATA/state/keys    the operator's, as `larder keys add` leaves them                             /
//!
//! file ─▶ contents.rs: which keys are in it ─▶ `OpenPGP` │ registry.rs (npm) │ rsa.rs (apk), by the file's name
//!
//! document ─▶ cleartext.rs: the text that was signed ─▶ signatures.rs: whose, and does it hold ─▶ policy.rs: may it count
//! ```
//!
//! A key here says only that somebody trusts it for something. That any trusted key could speak for any repository is what
//! the binding of roots to signers prevents, and that is not done here: [`Signed`] names who signed, by the fingerprints of
//! primary keys, and `pipeline` compares them with those it saw before.
//!
//! Nothing here asks for the time, nor for a file, except [`load`].
//!
//! Sources: RFC 9580; the distributions' archive keys are those of their own keyring packages, npm's those of its registry.

mod cleartext;
pub mod contents;
mod fault;
pub mod load;
mod policy;
pub mod registry;
mod rsa;
mod signatures;
mod trusted;

use std::collections::HashMap;
use std::fmt;

use pgp::composed::SignedPublicKey;
use pgp::types::{Fingerprint as PgpFingerprint, KeyDetails as _, KeyId};
use serde::{Deserialize, Serialize};

pub use self::cleartext::{Cleartext, NotCleartext};
pub use self::contents::{Key, Kind, NotKeys};
pub use self::fault::{Fault, NotSigned};
pub use self::registry::RegistryKey;
pub use self::rsa::RsaHash;
pub use self::trusted::Trusted;
use crate::clock::Time;
use crate::digest::hex;

/// The longest file of keys, in bytes. Debian's developers' keyring, which is no archive's, has 30 MB.
pub const MAX_FILE: u64 = 4 << 20;

/// By what a key is known: for `OpenPGP` the primary key's fingerprint, in hexadecimal digits; for a registry's key its id;
/// for one of Alpine's the name of its file.
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
    registry: Vec<(RegistryKey, Source)>,
    /// Alpine's, by name.
    rsa: rsa::RsaKeys,
}

/// Where a key stands: its certificate, and which of its subkeys it is.
type Place = (usize, Option<usize>);

/// A trusted certificate: a primary key with its subkeys.
#[derive(Debug)]
struct Certificate {
    key: SignedPublicKey,
    source: Source,
}

/// Whose word it is that a key is trusted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "at")]
pub enum Source {
    /// Compiled in; whose keys they are.
    BuiltIn(String),
    /// The system's; the file.
    System(String),
    /// The operator's; the file.
    Operator(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(whose) => write!(f, "built-in: {whose}"),
            Self::System(file) | Self::Operator(file) => f.write_str(file),
        }
    }
}

/// What people are told of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub kind: Kind,
    /// By what it is known.
    pub fingerprint: Fingerprint,
    /// By what the binding of a repository names it: the same, but for one of Alpine's, whose name somebody else's key may
    /// have, the SHA-256 of its `SubjectPublicKeyInfo`.
    pub signer: Fingerprint,
    /// Whose it says it is; empty if it says nothing.
    pub user: String,
    /// When it ends.
    pub ends: Option<Time>,
    /// Where it was found.
    pub source: Source,
}

impl Keyring {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.certificates.len() + self.registry.len() + self.rsa.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What people are told, as of `now`.
    pub fn about(&self, now: Time) -> impl Iterator<Item = About> {
        let certificates = self.certificates.iter().map(move |certificate| About {
            kind: Kind::OpenPgp,
            fingerprint: certificate.fingerprint(),
            signer: certificate.fingerprint(),
            user: certificate.user(),
            ends: policy::ends(&certificate.key, now),
            source: certificate.source.clone(),
        });
        let registry = self.registry.iter().map(|(key, source)| About {
            kind: Kind::Npm,
            fingerprint: Fingerprint(key.id().into()),
            signer: Fingerprint(key.id().into()),
            user: String::new(),
            ends: key.ends(),
            source: source.clone(),
        });
        certificates.chain(registry).chain(self.rsa.about())
    }

    /// The registry's key of that id, and when it ends: where two files disagree, the earlier end counts, so that an old
    /// copy cannot give back what was taken away.
    pub fn registry_key(&self, id: &str) -> Option<(&RegistryKey, Option<Time>)> {
        let mut named = self.registry.iter().map(|(key, _)| key).filter(|key| key.id() == id);
        let first = named.next()?;
        let ends = named.chain([first]).filter_map(RegistryKey::ends).min();
        Some((first, ends))
    }

    /// Adds a key.
    pub fn add(&mut self, key: Key, source: &Source) {
        match key {
            Key::OpenPgp(key) => self.add_certificate(*key, source),
            Key::Npm(key) => self.registry.push((key, source.clone())),
            Key::Apk { name, pem } => self.add_rsa(&pem, &name, source),
        }
    }

    /// Whether a fingerprint names the primary key `signer`, or a subkey by which it may sign at `now`: a subkey counts for
    /// its certificate. One that stands in a certificate and never agreed to that is somebody else's.
    pub fn names(&self, fingerprint: &str, signer: &str, now: Time) -> bool {
        if fingerprint.eq_ignore_ascii_case(signer) {
            return true;
        }
        let named =
            |known: &&PgpFingerprint| hex(known.as_bytes()).eq_ignore_ascii_case(fingerprint);
        let known = self.by_fingerprint.keys().find(named);
        let places = known.and_then(|known| self.by_fingerprint.get(known));
        places.into_iter().flatten().any(|(number, place)| {
            let certificate = self.certificates.get(*number);
            certificate.is_some_and(|certificate| {
                *certificate.fingerprint().0 == *signer && certificate.signs_by(*place, now)
            })
        })
    }

    /// Adds a certificate. The same one twice is harmless: one of them may be newer, and the candidates are tried in turn;
    /// but a revocation in any copy counts, so that an old copy cannot bring a withdrawn key back.
    fn add_certificate(&mut self, key: SignedPublicKey, source: &Source) {
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
        self.certificates.push(Certificate { key, source: source.clone() });
    }
}

impl Certificate {
    /// Whether the key at `place` may sign for it.
    fn signs_by(&self, place: Option<usize>, now: Time) -> bool {
        let Some(place) = place else {
            return policy::primary_signs(&self.key, now).is_ok();
        };
        let subkey = self.key.public_subkeys.get(place);
        subkey.is_some_and(|subkey| policy::subkey_signs(&self.key, subkey, now).is_ok())
    }

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
