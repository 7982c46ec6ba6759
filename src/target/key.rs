//! Keys for look-ups in the store and among its claims.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The principals to whom an entry may be given.
///
/// Two kinds of private entries have keys with a private partition:
///
/// - A resource that no strong proof ties to its URL (an index, or a resource of unknown kind) has one entry for each
///   credential: the partition in its key is [`Credential::id`](super::Credential::id), and no other credential finds
///   it.
/// - An artifact has one entry for its target, shared by all credentials ([`Partition::guarded`]): each client proves
///   its own access right each time. The partition inside the *entry* is that of the credential with which it was
///   received.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub enum Partition {
    /// Any client: larder got it without a client's credential.
    #[default]
    Public,
    /// Clients that prove access: the keyed hash of the credential with which it was fetched.
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

/// The store's key: a hash of origin, path, query, variant and partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// How many bytes of a key of [`Target::file_key`](super::Target::file_key) name the origin.
    pub(super) const ORIGIN: usize = 8;

    /// The part of a key of [`Target::file_key`](super::Target::file_key) that is that of every file of the same origin.
    pub fn origin(&self) -> [u8; Self::ORIGIN] {
        let mut origin = [0; Self::ORIGIN];
        for (to, from) in origin.iter_mut().zip(self.0) {
            *to = from;
        }
        origin
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digest::hex(&self.0))
    }
}

/// The key under which claims are looked up; see [`Target::match_key`](super::Target::match_key).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MatchKey(pub [u8; 16]);
