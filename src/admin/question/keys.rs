//! Questions about keys, and their answers.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::keyring::{Fingerprint, Kind, Source};

/// How long before its end a key is reported: about then an archive's operator publishes the next key, or a later
/// end.
pub const ENDS_SOON: Duration = Duration::from_hours(24 * 30);

/// Questions about keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyQuestion {
    /// Lists the keys: an [`Answer::Key`](super::Answer::Key) for each.
    List,
    /// Adds the keys in files: an [`Answer::Key`](super::Answer::Key) for each.
    Add {
        /// The files.
        files: Vec<KeyFile>,
    },
    /// Removes a key that was added: an [`Answer::Key`](super::Answer::Key), with the other places from which it is trusted.
    Remove {
        /// Its fingerprint, as the list shows it.
        fingerprint: String,
    },
    /// Forgets the signers of a repository: an [`Answer::Rebound`](super::Answer::Rebound) for each root.
    Rebind {
        /// The URL of its root, as the list shows it.
        url: String,
    },
}

/// A file of keys that is sent to larder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFile {
    /// The file's name for messages. Some kinds of keys are identified by its last part.
    pub name: String,
    /// Its bytes, in base64.
    pub base64: String,
}

impl KeyFile {
    /// The file called `name` that contains `bytes`.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), base64: STANDARD.encode(bytes) }
    }
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The kind of repository that it signs.
    pub kind: Kind,
    /// The identifier of the key.
    pub fingerprint: Fingerprint,
    /// The user id in the key; empty if it has none.
    pub user: String,
    /// When it expires.
    pub ends: Option<Time>,
    /// Where it was found; empty if it is no longer trusted.
    pub sources: Vec<Source>,
    /// The roots of the repositories for which it signed.
    pub used_by: Vec<String>,
    /// The roots for which it signs from now on: their newest index is signed with it, and was not accepted without
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub now_signs: Vec<String>,
    /// The roots in `used_by` for which no trusted key signed any more: what the key proved there no longer counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<String>,
    /// The file that held it, if it was trusted and cannot be read now: it proves nothing new, and what it proved stays. Empty if
    /// that file is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl ListedKey {
    /// Whether it expires within 30 days, or has expired.
    pub fn ends_soon(&self, now: Time) -> bool {
        self.ends.is_some_and(|ends| ends < now.plus(ENDS_SOON))
    }
}

/// A repository whose next trusted signer is accepted as the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebound {
    /// Its root.
    pub root: String,
    /// The signers that are forgotten.
    pub forgotten: Vec<String>,
}
