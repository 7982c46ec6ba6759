//! What vouches for a body.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The rank of what vouches for a body, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rank {
    /// Nothing: plain HTTP without a verified signature. Never shared.
    None,
    /// The server's certificate; RFC 9111 decides freshness.
    Origin,
    /// First use of an immutable-shaped URL over TLS.
    Pinned,
    /// Only MD5 or SHA-1, or a sidecar from the same origin.
    IndexedWeak,
    /// A strong digest from an index fetched from its origin over verified TLS.
    Indexed,
    /// An unbroken chain of strong digests from a signature by a key bound to the repository.
    Signed,
    /// The request itself names a strong digest.
    SelfCertified,
}

impl Rank {
    /// Every rank, weakest first.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Origin,
        Self::Pinned,
        Self::IndexedWeak,
        Self::Indexed,
        Self::Signed,
        Self::SelfCertified,
    ];

    /// The name as logs, metrics and headers spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Origin => "origin",
            Self::Pinned => "pinned",
            Self::IndexedWeak => "indexed-weak",
            Self::Indexed => "indexed",
            Self::Signed => "signed",
            Self::SelfCertified => "self-certified",
        }
    }

    /// Whether the rank rests on a digest that nobody can forge.
    pub const fn is_strong(self) -> bool {
        matches!(self, Self::Indexed | Self::Signed | Self::SelfCertified)
    }
}

/// A rank with its qualifiers.
#[expect(clippy::struct_excessive_bools, reason = "each is one qualifier of the design")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Proof {
    /// The rank.
    pub rank: Rank,
    /// The promise covers the content, not the file's bytes (Go h1, Nix `NarHash`, apk v2 control).
    pub content: bool,
    /// A signed index past its `Valid-Until`, or a copy that could not be revalidated.
    pub stale: bool,
    /// The signing key has expired since, or the index that names the body is signed by such a key.
    pub expired_key: bool,
    /// Fetched with a credential.
    pub private: bool,
    /// A link of the signed chain is SHA-1, as in apk: whoever makes the package could prepare a collision that passes.
    pub weak_hash: bool,
    /// The body has a valid signature of its own: it is signed even when no index names it.
    pub own: bool,
}

impl Proof {
    /// A proof of `rank` without qualifiers.
    pub const fn of(rank: Rank) -> Self {
        Self {
            rank,
            content: false,
            stale: false,
            expired_key: false,
            private: false,
            weak_hash: false,
            own: false,
        }
    }

    /// The proof after the same body is judged again: rank, content and key qualifiers come from `today`; how the body
    /// was fetched (`stale`, `private`, `own`) is kept.
    #[must_use]
    pub const fn judged(mut self, today: Self) -> Self {
        self.rank = today.rank;
        self.content = today.content;
        self.expired_key = today.expired_key;
        self.weak_hash = today.weak_hash;
        self
    }

    /// This proof, marked stale.
    #[must_use]
    pub const fn stale(mut self) -> Self {
        self.stale = true;
        self
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rank.as_str())?;
        for (holds, name) in [
            (self.content, "+content"),
            (self.stale, "+stale"),
            (self.expired_key, "+expired-key"),
            (self.private, "+private"),
            (self.weak_hash, "+weak-hash"),
        ] {
            if holds {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}
