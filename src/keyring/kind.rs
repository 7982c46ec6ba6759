//! Kinds of keys. A kind is one file (or folder) beside this one, and one line in `KINDS`.
//!
//! ```text
//! file ─▶ KeyKind::read ─▶ PublicKey ─▶ add_to ─▶ the kind's Ring in the Keyring ─▶ the kind's own check of signatures
//! ```
//!
//! What is the same for all kinds (listing, adding, removing, binding to repositories) asks the kind; how a signature names its
//! key, and what it covers, is known to the kind and to the ecosystem alone.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Fingerprint, KINDS, KeyDescription, Keyring, NotKeys, Source};
use crate::clock::Time;

/// What larder knows of a kind of keys.
pub trait KeyKind: Sync {
    /// Its name in lists and answers.
    fn name(&self) -> &'static str;

    /// The formats of its files, for the message about a file that has none of them.
    fn formats(&self) -> &'static str;

    /// How the names of its files end.
    fn suffixes(&self) -> &'static [&'static str];

    /// The keys of this kind in a file; `None` if it holds none.
    fn read(&self, file: &KeyFile<'_>) -> Option<Result<Contents, NotKeys>>;

    /// Adds the keys that ship with larder.
    fn add_built_in(&self, keyring: &mut Keyring);

    /// Whether `named`, as an operator writes it, identifies the key with this fingerprint.
    fn is_named(&self, fingerprint: &Fingerprint, named: &str) -> bool {
        *fingerprint.0 == *named
    }

    /// When a key with two copies ends. The later end counts: an operator extends a key with a newer copy.
    fn ends(&self, one: Option<Time>, other: Option<Time>) -> Option<Time> {
        one.zip(other).map(|(one, other)| one.max(other))
    }

    /// Whether a key may have several files with different content, all of which count.
    fn has_copies(&self) -> bool {
        true
    }

    /// Whether `signer` has the form of an identifier of this kind, as bindings name it.
    fn is_signer(&self, signer: &str) -> bool;

    /// Whether `signer` identifies a key of this kind, and keys of this kind sign packages and not a repository's index.
    fn signs_packages(&self, _signer: &str) -> bool {
        false
    }
}

/// The kind of a key.
#[derive(Clone, Copy)]
pub struct Kind(pub(super) &'static dyn KeyKind);

impl Kind {
    /// The kind of the key that bindings name `signer`.
    pub fn of_signer(signer: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.is_signer(signer)).map(Self)
    }
}

impl Deref for Kind {
    type Target = dyn KeyKind;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Kind {}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let place = |kind: &Self| KINDS.iter().position(|known| known.name() == kind.name());
        place(self).cmp(&place(other))
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let known = KINDS.into_iter().find(|kind| kind.name() == name).map(Self);
        known.ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no kind of keys")))
    }
}

/// A file that may hold keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyFile<'a> {
    /// Its name without directories: some kinds of keys carry no name of their own.
    pub name: &'a str,
    /// Its content.
    pub bytes: &'a [u8],
    /// The content without a byte order mark, and without white space around it.
    pub text: &'a [u8],
}

impl KeyFile<'_> {
    /// The `SubjectPublicKeyInfo` (RFC 5280 §4.1) in the file's first block of PEM (RFC 7468 §13); `None` if it has no such block.
    pub(super) fn spki(&self) -> Option<Result<Vec<u8>, NotKeys>> {
        if self.text.starts_with(b"{") {
            return None;
        }
        let text = String::from_utf8_lossy(self.text);
        text.contains("-----BEGIN PUBLIC KEY-----").then(|| {
            let block = pem::parse(text.as_bytes()).map_err(|_| NotKeys::Damaged)?;
            Ok(block.into_contents())
        })
    }
}

/// A key from a file.
pub trait PublicKey: fmt::Debug + Send {
    /// Its kind.
    fn kind(&self) -> Kind;

    /// Its identifier.
    fn fingerprint(&self) -> Fingerprint;

    /// A file that holds this key alone: its name and its content; `None` if the key cannot be serialised.
    fn to_file(&self) -> Option<(String, Vec<u8>)>;

    /// Adds it to the trusted keys.
    fn add_to(self: Box<Self>, keyring: &mut Keyring, source: &Source);
}

/// A key from a file, of any kind.
pub type Key = Box<dyn PublicKey>;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The keys.
    pub keys: Vec<Key>,
    /// Whether the file also has parts that could not be read.
    pub damaged: bool,
}

/// The trusted keys of one kind.
pub(super) trait Ring {
    /// The number of keys.
    fn len(&self) -> usize;

    /// The identifiers of the keys, as bindings name them, and of their parts. A revoked one is left
    /// out. Each with where a copy of it was found.
    fn signers(&self) -> Vec<(Fingerprint, &Source)>;

    /// Those that a copy revokes.
    fn revoked(&self) -> Vec<Fingerprint> {
        Vec::new()
    }

    /// The descriptions, as of `now`, of the keys whose signer's fingerprint `of` accepts.
    fn about(&self, now: Time, of: &dyn Fn(&Fingerprint) -> bool) -> Vec<KeyDescription>;

    /// Whether `named` is the fingerprint of a part of the key `signer` that may sign for it at `now`.
    fn names(&self, _named: &str, _signer: &str, _now: Time) -> bool {
        false
    }
}
