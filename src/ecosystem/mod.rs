//! What larder knows about each ecosystem.
//!
//! An ecosystem is pure and synchronous: it has no access to the HTTP client, the store or the clock. It recognises
//! requests by the shape of their URLs and never by host, so that every mirror and private registry works like the
//! public one. It reads claims out of indexes, and it names the documents that a judgement needs (prerequisites).
//! Adding an ecosystem takes a file, a line in [`ALL`] and a folder of fixtures; the contract test runs over [`ALL`].

mod apk;
mod apt;
mod base64;
mod bounded;
mod cargo;
pub mod facets;
pub mod fuzz;
mod glimpse;
mod json;
pub mod links;
mod npm;
mod oci;
mod pypi;
mod ranges;
mod rustup;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Read};

use crate::claim::{ClaimSink, Standing, TooMany, Topic};
use crate::clock::Time;
use crate::digest::Digest;
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Origin, Root, Scheme, Target};
use facets::{ContentDigests, Linked, NamedIndexes, Service, Signing, Snapshots, Tags};

/// Every ecosystem that larder knows. If two ecosystems find a target likely, the first one wins, so the most general
/// shapes are last: the name of an npm package may be any word.
pub const ALL: &[&dyn Ecosystem] =
    &[&apt::Apt, &apk::Apk, &pypi::Pypi, &cargo::Cargo, &rustup::Rustup, &oci::Oci, &npm::Npm];

/// The part of a request that an ecosystem sees.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The requested target; its variant is still empty.
    pub target: &'a Target,
    /// The `Accept` header; empty if there is none.
    pub accept: &'a str,
}

/// Whether an ecosystem recognises a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// The ecosystem does not recognise it.
    No,
    /// It looks like one of the ecosystem's. It is treated as unknown until [`Ecosystem::confirm`] has accepted a
    /// response under its root once. A response cannot confirm an artifact, but promises are looked up for a likely
    /// artifact too. If an index with authority promises something about it, it is an artifact. Otherwise it is
    /// unknown, because files with such names may be replaced in place.
    Likely(Resource),
    /// It is one of the ecosystem's.
    Certain(Resource),
}

impl Recognised {
    /// Recognised, certainly or likely.
    fn ours(resource: Resource, certain: bool) -> Self {
        if certain { Self::Certain(resource) } else { Self::Likely(resource) }
    }
}

/// The classification of a target by its ecosystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Index or artifact.
    pub kind: Kind,
    /// The part of the origin to which it belongs; [`Ecosystem::confirm`] confirms all of it.
    pub root: Root,
    /// The class of responses, which is part of the key, and the `Accept` header that a fill sends for it.
    pub variant: Variant,
}

impl Resource {
    /// An artifact. It has one variant, whatever the client accepts.
    fn artifact(artifact: Artifact, root: Root) -> Self {
        Self { kind: Kind::Artifact(artifact), root, variant: Variant::ONLY }
    }
}

/// A class of responses under one URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The name of the class in keys; empty if there is only one.
    pub name: &'static str,
    /// The `Accept` header of a fill of this class.
    pub accept: &'static str,
}

impl Variant {
    /// The only class of a URL.
    pub const ONLY: Self = Self { name: "", accept: "*/*" };

    /// With several classes, the class for clients without a preference: a missing `Accept` means `*/*` (RFC 9110
    /// §12.5.1).
    const ANY: Self = Self { name: "any", accept: "*/*" };

    /// The class in `classes` with the name `name`.
    fn among(classes: &[Self], name: &str) -> Self {
        classes.iter().copied().find(|class| class.name == name).unwrap_or(Self::ONLY)
    }
}

/// Index or artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A document that may make claims, or that clients expect to change: revalidated when requested.
    Index,
    /// A file that never changes, or should not.
    Artifact(Artifact),
}

/// A file that never changes, or should not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    /// The digest that the URL itself names.
    pub named: Option<Named>,
    /// The topics under which claims about it may be found.
    pub topics: Vec<Topic>,
}

/// A digest in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The digest; strong.
    pub digest: Digest,
    /// The part of the origin below which such names are a mere convention. There, the digest selects and refuses only
    /// after it matched three times. `None` if the protocol defines that the URL names its content's digest.
    pub convention: Option<Root>,
}

impl Named {
    /// A digest in a URL that, by the protocol, names its content.
    fn by_protocol(digest: Digest) -> Self {
        Self { digest, convention: None }
    }

    /// Whether the protocol defines that such URLs name their content's digest.
    pub fn is_by_protocol(&self) -> bool {
        self.convention.is_none()
    }
}

/// The stored documents, and what larder knows of the indexes that name files on an origin.
pub trait Shelf {
    /// Opens a stored document; `None` if it is not stored or may not be read.
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>>;
    /// The roots of the indexes that have named files on `origin`, most recent first, at most eight.
    fn claiming_roots(&self, origin: &Origin) -> Vec<Root>;
    /// The directories on `origin` in which dated, signed indexes were seen, most recent first.
    fn snapshot_directories(&self, _origin: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

/// An index to read.
#[derive(Clone, Copy)]
pub struct Document<'a> {
    /// The requested target.
    pub at: &'a Target,
    /// The target that answered, after redirects. Relative links resolve against it.
    pub base: &'a Target,
    /// The response's status and header fields.
    pub head: &'a Head,
    /// The rank that is proven of the document's own bytes. With [`Rank::Signed`], its claims are signed as well. With
    /// [`Rank::None`], it may make claims only under a signature of its own.
    pub proven: Rank,
    /// The time of reading, because keys and signatures expire.
    pub now: Time,
    /// Opens the document; may be called twice.
    pub open: &'a dyn Fn() -> io::Result<Box<dyn Read>>,
    /// The other stored documents, of any age, for documents that need a sibling index or a sidecar to be understood.
    pub shelf: &'a dyn Shelf,
}

impl Document<'_> {
    /// Whether the document may make claims at all: it must be a complete response, fetched over TLS on every hop.
    /// Otherwise an attacker on a plain HTTP path could block every file of a real origin.
    fn may_claim(&self) -> bool {
        self.is_secure() && self.proven != Rank::None && self.head.status == hyper::StatusCode::OK
    }

    fn is_secure(&self) -> bool {
        let secure = |target: &Target| target.origin().scheme == Scheme::Https;
        secure(self.at) && secure(self.base)
    }

    /// Refuses a content coding. Fills request none, and a parser cannot read encoded bytes.
    fn expect_identity(&self) -> Result<(), Malformed> {
        let coding = self.head.text(&hyper::header::CONTENT_ENCODING);
        match coding {
            Some(coding) if !coding.eq_ignore_ascii_case("identity") => Err(Malformed::Shape {
                expected: "index without a content coding",
                found: format!("content-encoding: {coding}"),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("at", &self.at.to_string())
            .field("proven", &self.proven)
            .finish_non_exhaustive()
    }
}

/// Why an index makes no claims. The document still reaches the client, which does its own checks.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is not what its URL or type says.
    #[error("not a {expected}: {found}")]
    Shape {
        /// The expected format, such as "PEP 691 index".
        expected: &'static str,
        /// What was found instead, or where parsing failed.
        found: String,
    },
    /// It exceeds a limit: a decompression bomb, or an index larger than any known.
    #[error("over the limit of {limit} {unit}")]
    Limit {
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A signature is invalid: the document may have been tampered with.
    #[error("its signature is refused: {0}")]
    Forged(String),
    /// It could not be read at all.
    #[error("could not be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl From<TooMany> for Malformed {
    fn from(_: TooMany) -> Self {
        Self::Limit { limit: MAX_CLAIMS, unit: "claims" }
    }
}

/// The maximum number of claims of one document: four times the largest known index (conda-forge, about a million).
pub const MAX_CLAIMS: u64 = 4_000_000;

/// What is the same for every request to an ecosystem.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// The name, as configuration, logs and metrics spell it.
    pub name: &'static str,
    /// Request headers that clients of this ecosystem send and that do not change the response, in lower case. A trailing
    /// `*` matches any suffix.
    pub harmless_headers: &'static [&'static str],
    /// Request headers with credentials that clients of this ecosystem send, in lower case, besides the well-known ones. A
    /// response to a request with one is private.
    pub login_headers: &'static [&'static str],
    /// Whether the files that its indexes name never change: other bytes for one of them raise an alarm.
    pub files_are_immutable: bool,
}

/// One ecosystem: what each of them has. What only some have are the [`facets`] at the end.
pub trait Ecosystem: Sync {
    /// What is the same for every request.
    fn profile(&self) -> &'static Profile;

    /// Classifies a request by path shape and variant headers, never by host.
    fn recognise(&self, request: &Shape<'_>) -> Recognised;

    /// Whether a response confirms a [`Recognised::Likely`]. `start` is the first KiB of the body, or all of it.
    fn confirm(&self, _at: &Target, _head: &Head, _start: &[u8]) -> bool {
        false
    }

    /// The `Accept` header of a fill of class `variant`, as [`Ecosystem::recognise`] names it. Used for targets that
    /// larder itself requests, so that their entries are the same as the clients'.
    fn accept(&self, _variant: &str) -> &'static str {
        Variant::ONLY.accept
    }

    /// The documents (prerequisites) to read before the artifact or index `at` is judged, the most useful first. It is
    /// called again after each document that arrives, until it names no new one. It only names documents and never
    /// fetches them. A copy that is too old to help must not be on the shelf. A document on the shelf may be named
    /// again, because its claims may not have been read.
    fn wants(&self, _at: &Target, _have: &dyn Shelf) -> Vec<Target> {
        Vec::new()
    }

    /// Reads an untrusted index in bounded memory. After an error, the caller drops everything that `out` received. A
    /// document that makes no claims, or of which nothing is proven, has the rank [`Rank::None`]. Only a signature that
    /// `keys` verify can lead to signed claims.
    fn claims(
        &self,
        doc: &Document<'_>,
        keys: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed>;

    /// Its documents or artifacts carry signatures.
    fn signing(&self) -> Option<&dyn Signing> {
        None
    }

    /// Its indexes are named by other indexes.
    fn named_indexes(&self) -> Option<&dyn NamedIndexes> {
        None
    }

    /// A signed index names the other indexes, and these are right only together with it.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// It has mutable references.
    fn tags(&self) -> Option<&dyn Tags> {
        None
    }

    /// A service with an API of its own stands in front of its files.
    fn api(&self) -> Option<&dyn Service> {
        None
    }

    /// Its claims are about the content of artifacts.
    fn content_digests(&self) -> Option<&dyn ContentDigests> {
        None
    }

    /// Its indexes name their files by URL.
    fn linked(&self) -> Option<&dyn Linked> {
        None
    }
}

/// The facets' questions, answered for an ecosystem that does not have the facet as well.
impl dyn Ecosystem + '_ {
    /// The name, as configuration, logs and metrics spell it.
    pub fn name(&self) -> &'static str {
        self.profile().name
    }

    /// See [`Signing::may_be_signed`].
    pub fn may_be_signed(&self, at: &Target) -> bool {
        self.signing().is_some_and(|signing| signing.may_be_signed(at))
    }

    /// See [`Signing::depends_on_keys`].
    pub fn depends_on_keys(&self, at: &Target) -> bool {
        self.signing().is_some_and(|signing| signing.depends_on_keys(at))
    }

    /// See [`NamedIndexes::topics`].
    pub fn topics(&self, index: &Target) -> Vec<Topic> {
        self.named_indexes().map_or_else(Vec::new, |named| named.topics(index))
    }

    /// See [`NamedIndexes::indexes_of`].
    pub fn indexes_of(&self, at: &Target) -> Vec<Target> {
        self.named_indexes().map_or_else(Vec::new, |named| named.indexes_of(at))
    }

    /// See [`NamedIndexes::which`].
    pub fn which(
        &self,
        doc: &Document<'_>,
        among: Vec<Target>,
    ) -> Result<Option<Target>, Malformed> {
        match self.named_indexes() {
            Some(named) => named.which(doc, among),
            None => Ok(among.into_iter().next()),
        }
    }

    /// See [`Snapshots::is_snapshot_root`].
    pub fn is_snapshot_root(&self, at: &Target) -> bool {
        self.snapshots().is_some_and(|snapshots| snapshots.is_snapshot_root(at))
    }

    /// See [`Snapshots::named_by`].
    pub fn named_by(&self, index: &Target, digest: &Digest) -> Option<Target> {
        self.snapshots()?.named_by(index, digest)
    }
}

impl fmt::Debug for dyn Ecosystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The classification of a request, before any response confirms it.
#[derive(Clone, Debug)]
pub struct Recognition {
    /// The ecosystem that recognised it.
    pub ecosystem: &'static dyn Ecosystem,
    /// The classification.
    pub resource: Resource,
    /// Whether the shape of the URL alone is proof enough.
    pub certain: bool,
}

/// `Accept` values that every ecosystem with several forms of an index recognises: no preference, and an old client's.
const ANY_FORM: [&str; 2] = ["*/*", "text/html"];

/// The index with several forms that `target` is, or may be, whatever the `Accept` of a request for it. Such indexes
/// are stored separately by `Accept`, although many origins send no `Vary` with them.
pub fn of_several_forms(target: &Target) -> Option<Recognition> {
    let known = ANY_FORM.iter().filter_map(|accept| recognise(&Shape { target, accept }));
    let mut known = known.filter(|known| !known.resource.variant.name.is_empty());
    let first = known.next()?;
    if first.certain {
        Some(first)
    } else {
        Some(known.find(|other| other.certain).unwrap_or(first))
    }
}

/// Asks every ecosystem; a certain result takes precedence over a likely one.
pub fn recognise(request: &Shape<'_>) -> Option<Recognition> {
    let mut likely = None;
    for ecosystem in ALL {
        match ecosystem.recognise(request) {
            Recognised::No => {}
            Recognised::Certain(resource) => {
                return Some(Recognition { ecosystem: *ecosystem, resource, certain: true });
            }
            Recognised::Likely(resource) => {
                likely.get_or_insert(Recognition {
                    ecosystem: *ecosystem,
                    resource,
                    certain: false,
                });
            }
        }
    }
    likely
}
