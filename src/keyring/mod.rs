//! The trusted keys, and the checks of signatures by them.
//!
//! ```text
//! compiled in        archive keys and a registry's, as data/*, unless `keys.built_in` is false    \
//! keys.system        the system's: /usr/share/keyrings, /etc/apt/keyrings, …                      ├─▶ Keyring ─▶ Trusted
//! DATA/state/keys    the operator's, as `larder keys add` leaves them                             /
//!
//! file ─▶ contents.rs: the keys in it ─▶ `OpenPGP` │ registry.rs (npm) │ rsa.rs (apk), named by its file
//!
//! document ─▶ cleartext.rs: the signed text ─▶ signatures.rs: signer and validity ─▶ policy.rs: does it count
//! ```
//!
//! A trusted key is not bound to a repository here. Without such a binding, any trusted key could sign for any
//! repository. `pipeline` enforces the binding: [`Signed`] names the signers by the fingerprints of their primary keys,
//! and `pipeline` compares them with the signers that it saw for that root before.
//!
//! Apart from [`load`], this module reads neither the clock nor files.
//!
//! Sources: RFC 9580. The archive keys are from the distributions' own keyring packages, npm's from its registry.

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

/// The maximum length of a key file, in bytes. Debian's developers' keyring, which signs no archive, has 30 MB.
pub const MAX_FILE: u64 = 4 << 20;

/// The identifier of a key: for `OpenPGP` the primary key's fingerprint, in hexadecimal digits; for a registry's key
/// its id; for an Alpine key the name of its file.
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

/// The result of a valid signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The primary keys of the signers, in order, each once. Not empty.
    pub signers: Vec<Fingerprint>,
    /// The creation time of the newest signature that counts, as the signer states it.
    pub created: Time,
}

/// Trusted keys.
#[derive(Debug, Default)]
pub struct Keyring {
    certificates: Vec<Certificate>,
    by_fingerprint: HashMap<PgpFingerprint, Vec<KeyPosition>>,
    by_id: HashMap<KeyId, Vec<KeyPosition>>,
    registry: Vec<(RegistryKey, Source)>,
    /// The RSA keys (Alpine's), by name.
    rsa: rsa::RsaKeys,
}

/// The position of a key: its certificate, and its subkey number unless it is the primary key.
type KeyPosition = (usize, Option<usize>);

/// A trusted certificate: a primary key with its subkeys.
#[derive(Debug)]
struct Certificate {
    key: SignedPublicKey,
    source: Source,
}

/// Who declared the key trusted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "at")]
pub enum Source {
    /// Compiled in; the owner of the key.
    BuiltIn(String),
    /// Found on the system; the file.
    System(String),
    /// Added by the operator; the file.
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

/// The description of a key for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyDescription {
    /// The use of the key.
    pub kind: Kind,
    /// The key's identifier.
    pub fingerprint: Fingerprint,
    /// The identifier in the binding of a repository to its signers. It equals `fingerprint`, except for an Alpine key:
    /// another key may have the same name, so this is the SHA-256 of its `SubjectPublicKeyInfo`.
    pub signer: Fingerprint,
    /// The user id that the key states; empty if it states none.
    pub user: String,
    /// When the key expires.
    pub ends: Option<Time>,
    /// Where the key was found.
    pub source: Source,
}

impl Keyring {
    /// An empty keyring.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.certificates.len() + self.registry.len() + self.rsa.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The descriptions of all keys, as of `now`.
    pub fn about(&self, now: Time) -> impl Iterator<Item = KeyDescription> {
        self.about_those(now, &|_| true)
    }

    /// The descriptions, as of `now`, of the keys whose signer's fingerprint `of` accepts. Each `OpenPGP` certificate among
    /// them costs a signature verification or more.
    pub fn about_those(
        &self,
        now: Time,
        of: &dyn Fn(&Fingerprint) -> bool,
    ) -> impl Iterator<Item = KeyDescription> {
        let certificates =
            self.certificates.iter().filter(|certificate| of(&certificate.fingerprint()));
        let certificates = certificates.map(move |certificate| KeyDescription {
            kind: Kind::OpenPgp,
            fingerprint: certificate.fingerprint(),
            signer: certificate.fingerprint(),
            user: certificate.user(),
            ends: policy::ends(&certificate.key, now),
            source: certificate.source.clone(),
        });
        let registry = self.registry.iter().map(|(key, source)| KeyDescription {
            kind: Kind::Npm,
            fingerprint: Fingerprint(key.id().into()),
            signer: Fingerprint(key.id().into()),
            user: String::new(),
            ends: key.ends(),
            source: source.clone(),
        });
        let others = registry.chain(self.rsa.about()).filter(|about| of(&about.signer));
        certificates.chain(others)
    }

    /// The registry key with that id, and when it expires. Where two files disagree, the earlier expiry counts, so that
    /// an old copy cannot extend a key that was ended.
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

    /// Whether `fingerprint` is the primary key `signer`, or a subkey of it that may sign at `now`: a subkey counts as
    /// its certificate. A subkey that a certificate lists without the subkey's own confirmation does not count; it may
    /// belong to someone else.
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

    /// Adds a certificate. Adding one twice is harmless: one copy may be newer, and the candidates are tried in turn. A
    /// revocation in any copy counts, so that an old copy cannot restore a revoked key.
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
    /// Whether the key at `place` may sign for this certificate.
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
