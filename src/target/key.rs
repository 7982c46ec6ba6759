//! Keys: what the store and its claims are looked up by.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who may be given an entry.
///
/// Two kinds of private entries lie under keys that name a private partition:
///
/// - What a strong proof cannot tie to its URL (indexes, and whatever is unknown) has one entry for each credential: the
///   partition in its key is [`Credential::id`](super::Credential::id), and nobody else ever finds it.
/// - An artifact has one entry for its target, whoever received it ([`Partition::guarded`]): who asks for it proves its
///   own right each time. The partition that the *entry* holds is that of the credential it was received with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub enum Partition {
    /// Anybody: larder itself got it without any client's credential.
    #[default]
    Public,
    /// Whoever proves the right: the keyed hash of the credential it was fetched with.
    Private([u8; 16]),
}

impl Partition {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Public => &[],
            Self::Private(hash) => hash,
        }
    }
}

/// What the store is keyed by: a hash of origin, path, query, variant and partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digest::hex(&self.0))
    }
}

/// Under which claims are looked up; see [`Target::match_key`](super::Target::match_key).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MatchKey(pub [u8; 16]);
