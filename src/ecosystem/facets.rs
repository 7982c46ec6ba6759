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
    /// Whether a document at `at` may carry its own signature. If so, it is worth fetching over plain HTTP, and it is
    /// read before it is stored. An artifact with a signature of its own that no index names is read like an index that
    /// makes no claims; its rank is [`Rank::Signed`](crate::proof::Rank::Signed) if its signature is valid.
    fn may_be_signed(&self, _at: &Target) -> bool {
        false
    }

    /// Whether the claims of the index at `at` depend on the trusted keys: if so, it is read again when the keys
    /// change.
    fn depends_on_keys(&self, at: &Target) -> bool {
        self.may_be_signed(at)
    }
}

/// Indexes are named by other indexes, with a digest, as artifacts are.
pub trait NamedIndexes {
    /// The topics under which claims about an index itself may be found: a signed index names other indexes.
    fn topics(&self, index: &Target) -> Vec<Topic>;

    /// The indexes of which the document at `at` may be one form or one version, if they have another URL. All forms of
    /// an index share one set of claims. There are several if the URL does not tell which. An artifact that has one is
    /// read as that index.
    fn indexes_of(&self, _at: &Target) -> Vec<Target> {
        Vec::new()
    }

    /// Which of the indexes `among` the document is a form or a version of, judged by its content: the same bytes
    /// always belong to the same index. `None` if it is none of them.
    fn which(&self, _doc: &Document<'_>, among: Vec<Target>) -> Result<Option<Target>, Malformed> {
        Ok(among.into_iter().next())
    }
}

/// A signed index names the other indexes, and these are right only together with it.
pub trait Snapshots {
    /// Whether the index at `at` is a snapshot's root: the documents that it names are valid only together with it. A
    /// client that has read one snapshot accepts only the members that this snapshot names. A new snapshot counts once
    /// its members can be fetched.
    fn is_snapshot_root(&self, at: &Target) -> bool;

    /// The index that clients request instead if the index at `at` does not exist.
    fn stand_in(&self, at: &Target) -> Option<Target>;

    /// The URL of the version of `index` with this digest, in a repository that serves indexes by their digests.
    fn named_by(&self, index: &Target, digest: &Digest) -> Option<Target>;

    /// How to bring an index that another index names up to date. `document` is the digest of the version whose claims
    /// are current.
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
    /// Whether an index is a tag: a mutable reference to a document that is immutable under its digest. A HEAD is
    /// enough to resolve it, and is preferred because registries count a GET as a pull.
    fn is_tag(&self, at: &Target) -> bool;

    /// The document to which the response `head` resolves the tag at `index`, and the digest that its URL names.
    fn points_at(&self, at: &Target, head: &Head) -> Option<(Target, Digest)>;

    /// Whether bytes that were received for another URL also need a header field that only this URL's origin can give,
    /// such as the type by which clients tell what the document is.
    fn needs_own_header(&self, at: &Target) -> bool;
}

/// A service with an API of its own stands in front of the files.
pub trait Service {
    /// The service that `at` belongs to, if clients make an API version check before other requests.
    fn service(&self, at: &Target) -> Option<Root>;

    /// The response to the API version check at `at` by a service that requires no login.
    fn version_check(&self, at: &Target) -> Option<VersionCheck>;

    /// Whether a request is an existence check for the file at `at`. While the origin answers, a stored copy does not
    /// prove that the origin has the file.
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
    /// Creates the reader of the content of the artifact at `at`, if claims are about its content and not about its
    /// bytes. The reader computes the digests that such claims promise.
    fn content(&self, at: &Target) -> Option<NewContent>;
}

/// Indexes name their files by URL.
pub trait Linked {
    /// Where to find the URLs in a response of type `kind` (lower case, without parameters) at `at`, if it may be an
    /// index that names files by URL. Never for a document whose own bytes are promised or signed.
    fn links(&self, at: &Target, kind: &str) -> Option<links::Links>;
}
