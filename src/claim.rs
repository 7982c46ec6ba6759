//! Claims: what indexes promise about the bytes at a target.
//!
//! A [`Claim`] is what an ecosystem reads out of an index. A [`Promise`] is a claim looked up for one target: it adds
//! which index made it, how that index relates to the target's origin (promise P4) and whether it is still current.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::digest::{Algorithm, BlobId, Digest};
use crate::proof::{Proof, Rank};
use crate::target::{Origin, Root, Target};

/// The search key under which a look-up finds the few indexes that may name a target, such as a project's name or an
/// archive's root. The ecosystem computes the topic of both the index and the artifact, and the two must be equal. A
/// topic only narrows the search; it never decides whether a claim applies.
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
    /// The file that the claim is about; its variant is empty.
    pub target: Target,
    /// The topic under which the claim is looked up.
    pub topic: Topic,
    /// All promised digests whose algorithm larder knows; all must match. Not empty.
    pub digests: Vec<Digest>,
    /// The length in bytes, if promised.
    pub size: Option<u64>,
}

/// Takes claims as an ecosystem reads them, in any order, in bounded memory.
pub trait ClaimSink {
    /// Takes one claim. Returns [`TooMany`] when the index exceeds the limit; the caller then treats the whole index as
    /// malformed.
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany>;

    /// Takes a claim with a valid signature of its own by the key `signer`. Such a claim has rank [`Rank::Signed`],
    /// whatever the rank of its index.
    fn signed_claim(&mut self, claim: Claim, _signer: &str) -> Result<(), TooMany> {
        self.claim(claim)
    }

    /// Records a claim whose own signature, by a known key, is invalid. The claim is not made.
    fn forged_claim(&mut self, _claim: Claim, _why: &str) -> Result<(), TooMany> {
        Ok(())
    }

    /// Records a key that signed claims of this index and that larder does not know.
    fn unknown_signer(&mut self, _key: &str) {}

    /// Records that the index, or a sibling index, names files on `origin`. This promises nothing about those files; it
    /// is a hint with which a later look-up finds the index of a file.
    fn speaks(&mut self, _origin: &Origin) {}

    /// Records what a signed index states about itself (its snapshot). Whether its claims count depends on earlier
    /// snapshots.
    fn edition(&mut self, _edition: Snapshot) {}
}

/// What an index that may be signed states about itself: one snapshot of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The fingerprints of the primary keys that signed it; empty when no signature counts.
    pub signers: Vec<Box<str>>,
    /// The keys that made the signatures that count: those primary keys, or subkeys of theirs.
    pub makers: Vec<Box<str>>,
    /// Why no signature counts.
    pub unsigned: Option<String>,
    /// The key names that the signatures give and for which larder knows no key.
    pub unknown: Vec<Box<str>>,
    /// When the index was made.
    pub date: Option<Time>,
    /// When the index expires (`Valid-Until`).
    pub valid_until: Option<Time>,
    /// Whether no signature counts because its key has expired.
    pub expired_key: bool,
    /// The only keys that may sign the next snapshot, as fingerprints of primary keys or of subkeys. Empty: no such
    /// limit.
    pub successors: Vec<Box<str>>,
    /// The package count, where nothing else tells an older snapshot from a newer one.
    pub census: Option<PackageCount>,
    /// Whether its signature is over SHA-1.
    pub weak_hash: bool,
}

/// How many packages an index lists, and when the newest of them was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageCount {
    /// The number of packages.
    pub packages: u64,
    /// The build time of the newest package.
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

/// The authority that an ecosystem assigns to an index that it has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// [`Rank::Signed`] if the document carries a valid signature or a signed index names its bytes; [`Rank::Indexed`]
    /// if it only came over TLS; [`Rank::None`] when an index makes no claims.
    pub rank: Rank,
    /// The part of the origin for which the index may select claims and refuse bodies.
    pub root: Root,
}

/// One snapshot of one index document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexVersion {
    /// A counter over the whole store: the newer document has the higher number.
    pub number: u64,
    /// The index's URL for display, without secrets.
    pub shown: String,
    /// The SHA-256 of the document.
    pub document: BlobId,
    /// When the index's origin last confirmed these claims.
    pub confirmed: Time,
    /// When a newer snapshot of the same index replaced this one.
    pub superseded: Option<Time>,
    /// The rank of the index's claims.
    pub rank: Rank,
    /// The part of the origin for which the index may select claims and refuse bodies.
    pub root: Root,
    /// Whether the root of the snapshot was signed by a known key that has expired since.
    pub expired_key: bool,
    /// Whose signatures the claims rest on; `None` if that was not noted: an earlier larder published them.
    pub signed_by: Option<SignedBy>,
}

/// Whose signatures the claims of one version of an index rest on. When a key is lost, exactly those go that no trusted key signs
/// any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBy {
    /// The keys that signed the index itself; one that is trusted is enough. Empty if it has no signature of its own that counts:
    /// then it is signed as long as a signed index names it.
    pub index: Vec<Box<str>>,
    /// The keys that signed single claims; all of them must be trusted.
    pub claims: Vec<Box<str>>,
}

impl SignedBy {
    /// Whether these signatures count, if those by the keys in `standing` do.
    pub fn stands(&self, standing: &BTreeSet<Box<str>>) -> bool {
        let is_signed =
            self.index.is_empty() || self.index.iter().any(|key| standing.contains(key));
        is_signed && self.claims.iter().all(|key| standing.contains(key))
    }
}

/// How an index relates to the target that it names (promise P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// The index is on another origin, the target is outside the index's root, or a deeper root claims the target: the
    /// index may only confirm or raise an alarm.
    Elsewhere,
    /// The operator declared that this index has authority over the target's origin: it may refuse.
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

/// A claim as looked up for its target.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The snapshot that makes the promise.
    pub by: Arc<IndexVersion>,
    /// The target of the index document, used to revalidate it.
    pub index: Arc<Target>,
    /// How the index relates to the target.
    pub relation: Relation,
    /// All of these must match. Empty only when the promise could not be read: see [`Promise::is_unread`].
    pub digests: Vec<Digest>,
    /// The length in bytes, if promised.
    pub size: Option<u64>,
    /// Whether this promise bears a signature of its own.
    pub signed: bool,
}

impl Promise {
    /// The rank of the promise, provided that its digests are strong.
    pub fn rank(&self) -> Rank {
        if self.signed { Rank::Signed } else { self.by.rank }
    }

    /// Whether the index may promise something here that larder could not read, because no file descriptor was left or
    /// the disk failed. Until it can be read, larder neither serves nor stores anything that the promise might bind.
    pub fn is_unread(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether the index's current snapshot still makes this promise.
    pub fn is_current(&self) -> bool {
        self.by.superseded.is_none()
    }

    /// Whether one of the promised digests cannot be forged. A SHA-1 of content counts if it is signed: forging it
    /// needs a second preimage, which nobody can compute for SHA-1, and only the signer could have prepared a colliding
    /// pair.
    pub fn is_strong(&self) -> bool {
        let any = |counts: fn(Algorithm) -> bool| {
            self.digests.iter().any(|digest| counts(digest.algorithm()))
        };
        any(Algorithm::is_strong) || self.rank() == Rank::Signed && any(Algorithm::is_of_content)
    }

    /// The proof that a body gets by matching this promise.
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

    /// The proof that a body gets by matching this promise when the index is [`Relation::Elsewhere`]. A signature over
    /// an index counts only for the repository to which its key is bound. A signature over this very promise counts in
    /// every index that repeats it.
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
