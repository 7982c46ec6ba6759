//! Claims: what indexes promise about the bytes at a target.
//!
//! A [`Claim`] is what an ecosystem reads out of an index. A [`Promise`] is the same seen from the target: who made it,
//! how it relates to the target's origin (promise P4) and whether it is among the newest.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::digest::{Algorithm, BlobId, Digest};
use crate::proof::{Proof, Rank};
use crate::target::{Origin, Root, Target};

/// Under which a look-up finds the few indexes that may name a target: a project's name, an archive's root. Index and
/// artifact must give the same topic; the ecosystem computes both. It narrows the search and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topic(pub Box<str>);

impl Topic {
    /// The topic `name` of `ecosystem`.
    pub fn new(ecosystem: &str, name: &str) -> Self {
        Self(format!("{ecosystem}:{name}").into())
    }
}

/// A promise by an index about the bytes at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The file that is spoken of; its variant is empty.
    pub target: Target,
    /// Under which it is looked up.
    pub topic: Topic,
    /// Every digest promised that larder knows; all must match. Not empty.
    pub digests: Vec<Digest>,
    /// The length in bytes, if promised.
    pub size: Option<u64>,
}

/// Takes claims as an ecosystem reads them, in any order, in bounded memory.
pub trait ClaimSink {
    /// Takes one; [`TooMany`] when the index has more than its limit, and then the whole index is malformed.
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany>;

    /// Takes one that bears a signature of its own, by the key `signer`, which holds: it is worth [`Rank::Signed`],
    /// whatever its index is.
    fn signed_claim(&mut self, claim: Claim, _signer: &str) -> Result<(), TooMany> {
        self.claim(claim)
    }

    /// Takes note of one that bears a signature of its own, by a known key, which does not hold: it is not made.
    fn forged_claim(&mut self, _claim: Claim, _why: &str) -> Result<(), TooMany> {
        Ok(())
    }

    /// Takes note of a key that signed claims of this index and is not among larder's.
    fn unknown_signer(&mut self, _key: &str) {}

    /// Takes note that the index, or one beside it, names files on `origin`, without promising anything of them: a hint
    /// by which the index of a file is found later.
    fn speaks(&mut self, _origin: &Origin) {}

    /// Takes note of what a signed index says of itself: whether its claims count is decided by what was seen before.
    fn edition(&mut self, _edition: Edition) {}
}

/// What an index that may be signed says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edition {
    /// The fingerprints of the primary keys that signed it; empty when no signature counts.
    pub signers: Vec<Box<str>>,
    /// Why no signature counts.
    pub unsigned: Option<String>,
    /// What its signatures call their makers where no key is known of that name.
    pub unknown: Vec<Box<str>>,
    /// When it was made.
    pub date: Option<Time>,
    /// Until when it may be believed.
    pub valid_until: Option<Time>,
    /// Whether no signature counts because its key has expired.
    pub expired_key: bool,
    /// Who alone may sign the next edition, by fingerprints of primary keys or of subkeys; empty for no such limit.
    pub successors: Vec<Box<str>>,
    /// What it lists, where nothing else tells an older edition from a newer one.
    pub census: Option<Census>,
    /// Whether its signature is over SHA-1.
    pub weak_hash: bool,
}

/// How much an index lists, and the newest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// How many packages it lists.
    pub packages: u64,
    /// When the newest of them was built.
    pub newest: Time,
}

impl ClaimSink for Vec<Claim> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        self.push(claim);
        Ok(())
    }
}

/// An index that makes more claims than larder takes from one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index makes more claims than larder takes from one document")]
pub struct TooMany;

/// What an ecosystem says of an index that it has read: how far its word carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// [`Rank::Signed`] or [`Rank::Indexed`], never above what is proven of the document itself; [`Rank::None`] when it
    /// makes no claims.
    pub rank: Rank,
    /// The part of the origin for which it may select and refuse.
    pub root: Root,
}

/// One version of one index document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Counts up over the whole store: the newer document has the higher number.
    pub number: u64,
    /// The index's URL, for people; without secrets.
    pub shown: String,
    /// The SHA-256 of the document.
    pub document: BlobId,
    /// When these claims were last confirmed by the index's origin.
    pub confirmed: Time,
    /// When a newer generation of the same index took over.
    pub superseded: Option<Time>,
    /// How far the index's word carries.
    pub rank: Rank,
    /// The part of the origin for which it may select and refuse.
    pub root: Root,
    /// Whether a known key signed for it, at the head of its chain, that has expired since.
    pub expired_key: bool,
}

/// How an index relates to the target that it names (promise P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// Another origin, or outside the index's root, or a deeper root speaks: it confirms or alarms.
    Elsewhere,
    /// The operator declared that this index speaks for the target's origin: it may refuse.
    Declared,
    /// The target lies under the index's root: it may refuse.
    InRoot,
}

impl Relation {
    /// Whether a mismatch refuses the body.
    pub const fn binds(self) -> bool {
        matches!(self, Self::Declared | Self::InRoot)
    }
}

/// A claim seen from its target.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Who made it.
    pub by: Arc<Generation>,
    /// The key of the index document, for revalidating it.
    pub index: Arc<Target>,
    /// How the index relates to the target.
    pub relation: Relation,
    /// All of these must match. Empty only in a promise that could not be read: see [`Promise::is_unread`].
    pub digests: Vec<Digest>,
    /// The length in bytes, if promised.
    pub size: Option<u64>,
    /// Whether this promise bears a signature of its own.
    pub signed: bool,
}

impl Promise {
    /// What it is worth, if its digests are strong.
    pub fn rank(&self) -> Rank {
        if self.signed { Rank::Signed } else { self.by.rank }
    }

    /// Whether the index may promise something here that could not be read: no descriptor was left, or the disk did not
    /// answer. Nothing that it might bind is given or kept until it can be read.
    pub fn is_unread(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether the index still says so today.
    pub fn is_current(&self) -> bool {
        self.by.superseded.is_none()
    }

    /// Whether a digest that nobody can forge is among those promised. SHA-1 of content counts under a signature: there is
    /// no second content for a given digest, and only the signer could have made two at once.
    pub fn is_strong(&self) -> bool {
        let any = |counts: fn(Algorithm) -> bool| {
            self.digests.iter().any(|digest| counts(digest.algorithm()))
        };
        any(Algorithm::is_strong) || self.rank() == Rank::Signed && any(Algorithm::is_of_content)
    }

    /// What a body is worth that is as promised.
    pub fn proof(&self) -> Proof {
        let all = |holds: fn(Algorithm) -> bool| {
            self.digests.iter().all(|digest| holds(digest.algorithm()))
        };
        let rank = if self.is_strong() { self.rank() } else { Rank::IndexedWeak };
        Proof {
            content: all(Algorithm::is_of_content),
            expired_key: self.by.expired_key && !self.signed,
            weak_hash: rank == Rank::Signed && all(|algorithm| !algorithm.is_strong()),
            ..Proof::of(rank)
        }
    }

    /// What a body is worth that is as promised by an index elsewhere: a signature over an index counts for the repository
    /// that its key is bound to, and for no other. One over this very promise counts wherever it is repeated.
    pub fn confirmation(&self) -> Proof {
        if self.signed || self.by.rank != Rank::Signed {
            return self.proof();
        }
        let strong = self.digests.iter().any(|digest| digest.algorithm().is_strong());
        let rank = if strong { Rank::Indexed } else { Rank::IndexedWeak };
        Proof { rank, expired_key: false, weak_hash: false, ..self.proof() }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unread() {
            return write!(f, "what {} promises cannot be read now", self.by.shown);
        }
        write!(f, "{} promises", self.by.shown)?;
        for (position, digest) in self.digests.iter().enumerate() {
            write!(f, "{} {digest}", if position == 0 { "" } else { " and" })?;
        }
        if let Some(size) = self.size {
            write!(f, ", {size} bytes")?;
        }
        Ok(())
    }
}
