//! What some ecosystems have and others do not: signatures, snapshots, tags, a service in front, promises of content, links.
//!
//! Each is a small trait of its own, which [`Ecosystem`](super::Ecosystem) is asked for. An ecosystem that does not have a
//! facet says nothing about it, and no request of its clients pays for it.

use hyper::Method;

use super::{Document, Malformed, links};
use crate::claim::Topic;
use crate::digest::{Digest, NewContent};
use crate::entry::Head;
use crate::target::{Root, Target};

/// Documents or artifacts of the ecosystem carry signatures.
pub trait Signing {
    /// Whether a document at `at` may carry its own signature. It is then worth fetching over plain http, and its signature
    /// is checked before it is kept. An artifact that may carry one, and that no index names, is read like an index that
    /// makes no claims: its standing is [`Rank::Signed`](crate::proof::Rank::Signed) if its signature holds.
    fn may_be_signed(&self, _at: &Target) -> bool {
        false
    }

    /// Whether the claims of the index at `at` depend on the known keys: it is read again when the keys change.
    fn depends_on_keys(&self, at: &Target) -> bool {
        self.may_be_signed(at)
    }
}

/// Indexes are named by other indexes, with a digest, as artifacts are.
pub trait NamedIndexes {
    /// The topics under which claims about the index at `at` are found.
    fn topics(&self, index: &Target) -> Vec<Topic>;

    /// The index of which the document at `at` is one form or one version, if it is another URL: all forms share one set of
    /// claims. Several where the URL does not tell which of them it is. An artifact that has one is read as that index.
    fn indexes_of(&self, _at: &Target) -> Vec<Target> {
        Vec::new()
    }

    /// Which of the indexes `among` the document is a form or a version of, by its content: the same bytes belong to the
    /// same index whenever they are read. `None` if it belongs to none of them.
    fn which(&self, _doc: &Document<'_>, among: Vec<Target>) -> Result<Option<Target>, Malformed> {
        Ok(among.into_iter().next())
    }
}

/// A signed index names the other indexes, and these are right only together with it.
pub trait Snapshots {
    /// Whether the index at `at` is the root of a snapshot: a client that has read one version of it is given, of the other
    /// indexes, only what that version names. A new version counts once its members can be fetched.
    fn is_snapshot_root(&self, at: &Target) -> bool;

    /// The document that clients read instead of the index at `at` when that one does not exist.
    fn stand_in(&self, at: &Target) -> Option<Target>;

    /// Where a repository that keeps indexes under their digests has the version of `index` that `digest` names.
    fn named_by(&self, index: &Target, digest: &Digest) -> Option<Target>;

    /// How an index that another one names is brought up to date. `document` is the version whose claims are current.
    fn renewal(&self, index: &Target, document: &Digest) -> Option<Renewal>;
}

/// How an index that another one names is brought up to date.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// The indexes that may name it; those that are stored are asked for again.
    pub parents: Vec<Target>,
    /// What a parent names as long as it names this version.
    pub named: Target,
    /// Where the new version is, in the order in which to try, if no parent names this one any more.
    pub again: Vec<Target>,
}

/// Mutable references: an index that only points at a document, which stands for good under its digest.
pub trait Tags {
    /// Whether the index at `at` is a tag. Registries count a GET as a pull, so that a tag is asked for by HEAD.
    fn is_tag(&self, at: &Target) -> bool;

    /// Where the answer `head` says that the tag at `at` points, and the digest that this target names.
    fn points_at(&self, at: &Target, head: &Head) -> Option<(Target, Digest)>;

    /// Whether bytes that were received for another URL need a header that only this one's origin can give: a type by
    /// which clients tell what they are.
    fn needs_own_header(&self, at: &Target) -> bool;
}

/// A service with an API of its own stands in front of the files.
pub trait Service {
    /// The service that `at` belongs to, if clients check its API version before they ask for anything.
    fn service(&self, at: &Target) -> Option<Root>;

    /// What the service answers to a client without a login whose API version check asks for `at`.
    fn version_check(&self, at: &Target) -> Option<VersionCheck>;

    /// Whether a request asks if the origin has the file at `at`: clients act on the answer, so that no stored copy can
    /// give it while the origin answers.
    fn is_existence_check(&self, method: &Method, at: &Target) -> bool;
}

/// A service's answer to the API version check, by which clients learn whether to log in.
#[derive(Clone, Debug)]
pub struct VersionCheck {
    /// The service.
    pub service: Root,
    /// The head of the answer.
    pub head: Head,
    /// Its body.
    pub body: &'static str,
}

/// Claims are about the content of an artifact, and not about the bytes of its file.
pub trait ContentDigests {
    /// What reads the content of the artifact at `at` and gives the digests that those claims promise.
    fn content(&self, at: &Target) -> Option<NewContent>;
}

/// Indexes name their files by URL.
pub trait Linked {
    /// Where the addresses stand in an answer of type `kind` (lower case, without parameters) at `at`, if it may be such an
    /// index. Never for a document whose own bytes are promised or signed.
    fn links(&self, at: &Target, kind: &str) -> Option<links::Links>;
}
