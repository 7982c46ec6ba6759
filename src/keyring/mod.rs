//! The trusted keys, and the checks of signatures by them.
//!
//! ```text
//! compiled in        archive keys and a registry's, as data/*, unless `keys.built_in` is false    \
//! keys.system        the system's: /usr/share/keyrings, /etc/apt/keyrings, …                      ├─▶ Keyring ─▶ Trusted
//! DATA/state/keys    the operator's, as `larder keys add` leaves them                             /
//!
//! file ─▶ contents.rs ─▶ a kind of keys (kind.rs): openpgp/ │ rsa.rs (apk), named by its file │ registry.rs (npm)
//!
//! document ─▶ openpgp/: cleartext.rs: the signed text ─▶ signatures.rs: signer and validity ─▶ policy.rs: does it count
//! ```
//!
//! A trusted key is not bound to a repository here. Without such a binding, any trusted key could sign for any
//! repository. `pipeline` enforces the binding: [`Signed`] names the signers by the fingerprints of their primary keys,
//! and `pipeline` compares them with the signers that it saw for that root before.
//!
//! Apart from [`load`], this module reads neither the clock nor files.
//!
//! Sources: RFC 9580. The archive keys are from the distributions' own keyring packages, npm's from its registry.

pub mod contents;
mod fault;
mod in_force;
pub mod kind;
pub mod load;
pub mod openpgp;
pub mod registry;
mod rsa;
mod trusted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::fault::{Fault, NotKeys, NotSigned};
pub use self::in_force::InForce;
use self::in_force::Looked;
use self::kind::Ring;
pub use self::kind::{Key, KeyKind, Kind};
pub use self::openpgp::{Cleartext, NotCleartext};
pub use self::registry::RegistryKey;
pub use self::rsa::RsaHash;
pub use self::trusted::Trusted;
use crate::clock::Time;

/// The maximum length of a key file, in bytes. Debian's developers' keyring, which signs no archive, has 30 MB.
pub const MAX_FILE: u64 = 4 << 20;

/// The identifier of a key: for `OpenPGP` the primary key's fingerprint, in hexadecimal digits; for a registry's key
/// its id; for an Alpine key the name of its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub Box<str>);

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
    /// The keys that made the signatures, as [`Keyring::signers`] names them, in order, each once. Not empty.
    pub makers: Vec<Fingerprint>,
    /// The creation time of the newest signature that counts, as the signer states it.
    pub created: Time,
}

/// The kinds of keys.
pub(crate) static KINDS: [&dyn KeyKind; 3] =
    [&openpgp::OpenPgp, &rsa::NamedRsa, &registry::Registry];

/// Trusted keys, by kind.
#[derive(Debug, Default)]
pub struct Keyring {
    openpgp: openpgp::Certificates,
    registry: registry::RegistryKeys,
    rsa: rsa::RsaKeys,
    looked: Looked,
    /// The keys that were in force and cannot be read now, and where they were found.
    missing: BTreeMap<Box<str>, String>,
}

/// Whether `signer` identifies a key that signs packages and not a repository's index.
pub fn signs_packages(signer: &str) -> bool {
    KINDS.iter().any(|kind| kind.signs_packages(signer))
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

    fn rings(&self) -> [&dyn Ring; 3] {
        [&self.openpgp, &self.registry, &self.rsa]
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.rings().iter().map(|ring| ring.len()).sum()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is known which keys are trusted or [missing](Keyring::missing). Otherwise a file of keys could not be read, and it
    /// was not noted which keys it held.
    pub fn is_whole(&self) -> bool {
        !self.looked.unread
    }

    /// The identifiers of the keys, as bindings name them ([`KeyDescription::signer`]), and of their parts that may make signatures:
    /// an `OpenPGP` subkey is `PRIMARY.SUBKEY`. A revoked key is left out; one that has expired is not. Cheap: no signature is
    /// verified, except those of revocations.
    pub fn signers(&self) -> BTreeSet<Box<str>> {
        self.rings().iter().flat_map(|ring| ring.signers()).map(|(signer, _)| signer.0).collect()
    }

    /// The identifiers of keys that a copy revokes.
    fn revoked(&self) -> BTreeSet<Box<str>> {
        self.rings().iter().flat_map(|ring| ring.revoked()).map(|signer| signer.0).collect()
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
        self.rings().into_iter().flat_map(move |ring| ring.about(now, of))
    }

    /// Whether `fingerprint` is the key `signer`, or a part of it (an `OpenPGP` subkey) that may sign for it at `now`.
    pub fn names(&self, fingerprint: &str, signer: &str, now: Time) -> bool {
        fingerprint.eq_ignore_ascii_case(signer)
            || self.rings().iter().any(|ring| ring.names(fingerprint, signer, now))
    }
}
