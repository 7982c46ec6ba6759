//! What larder knows of each ecosystem.
//!
//! An ecosystem is pure and synchronous: it sees no HTTP client, no store and no clock. It recognises requests by the
//! shape of their URLs, never by host, so that every mirror and private registry works like the public one; it reads
//! claims out of indexes; it names the documents that a judgement needs. Adding one is a file, a line in [`ALL`] and a
//! folder of fixtures; the contract test walks [`ALL`].

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

/// Every ecosystem larder knows. Of two that find a target likely the first is heard, so the widest shapes stand last: the
/// name of an npm package may be any word.
pub const ALL: &[&dyn Ecosystem] =
    &[&apt::Apt, &apk::Apk, &pypi::Pypi, &cargo::Cargo, &rustup::Rustup, &oci::Oci, &npm::Npm];

/// What an ecosystem sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Who it is for; the variant is still empty.
    pub target: &'a Target,
    /// The `Accept` header; empty if there is none.
    pub accept: &'a str,
}

/// What an ecosystem says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// Not one of ours.
    No,
    /// Looks like one of ours; treated as unknown until [`Ecosystem::confirm`] said yes to an answer of its root once.
    /// Nothing confirms an artifact, but promises are looked up for a likely one all the same: one by an index that may
    /// speak for it, and it is an artifact; none, and it is unknown, because files of that shape are remade in place.
    Likely(Resource),
    /// One of ours.
    Certain(Resource),
}

impl Recognised {
    /// One of ours, for certain or likely.
    fn ours(resource: Resource, certain: bool) -> Self {
        if certain { Self::Certain(resource) } else { Self::Likely(resource) }
    }
}

/// What an ecosystem says a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Index or artifact.
    pub kind: Kind,
    /// The part of the origin that it belongs to; [`Ecosystem::confirm`] speaks for the whole of it.
    pub root: Root,
    /// What joins the key besides the URL, and the `Accept` that a fill sends for it.
    pub variant: Variant,
}

impl Resource {
    /// An artifact, which comes in one form whatever is asked for.
    fn artifact(artifact: Artifact, root: Root) -> Self {
        Self { kind: Kind::Artifact(artifact), root, variant: Variant::ONLY }
    }
}

/// A class of answers under one URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The class's name, as it stands in keys; empty when there is only one.
    pub name: &'static str,
    /// The `Accept` header of a fill of this class.
    pub accept: &'static str,
}

impl Variant {
    /// The only class of a URL.
    pub const ONLY: Self = Self { name: "", accept: "*/*" };

    /// Of several classes the one for who has no preference: no `Accept` says the same as `*/*` (RFC 9110 §12.5.1).
    const ANY: Self = Self { name: "any", accept: "*/*" };

    /// The one of `classes` that is called `name`.
    fn among(classes: &[Self], name: &str) -> Self {
        classes.iter().copied().find(|class| class.name == name).unwrap_or(Self::ONLY)
    }
}

/// Index or artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A document that may make claims, or that clients expect to change: revalidated when asked for.
    Index,
    /// A file that never changes, or should not.
    Artifact(Artifact),
}

/// A file that never changes, or should not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    /// The digest that the URL itself names.
    pub named: Option<Named>,
    /// Under which topics claims about it may be found.
    pub topics: Vec<Topic>,
}

/// A digest in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The digest; strong.
    pub digest: Digest,
    /// The part of the origin below which the name is a mere convention: it selects and refuses there only after it matched
    /// three times. `None` where the protocol obliges the server to name files so.
    pub convention: Option<Root>,
}

impl Named {
    /// The name by which the protocol obliges the server to give these bytes.
    fn by_protocol(digest: Digest) -> Self {
        Self { digest, convention: None }
    }

    /// Whether the protocol obliges the server to name files so.
    pub fn is_by_protocol(&self) -> bool {
        self.convention.is_none()
    }
}

/// Documents at hand, and what is known of who names whose files.
pub trait Shelf {
    /// A document that is stored and may be read; `None` if it is not.
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>>;
    /// The roots of the indexes that have named files on `origin`, most recent first, at most eight.
    fn speakers(&self, origin: &Origin) -> Vec<Root>;
    /// The directories on `origin` in which dated, signed indexes were seen, most recent first.
    fn editions(&self, _origin: &Origin) -> Vec<Root> {
        Vec::new()
    }
}

/// An index to be read.
#[derive(Clone, Copy)]
pub struct Document<'a> {
    /// Who was asked.
    pub at: &'a Target,
    /// Who answered: relative links resolve against it.
    pub base: &'a Target,
    /// The answer's status and header fields.
    pub head: &'a Head,
    /// What is proven of the document's own bytes; claims never exceed it.
    pub proven: Rank,
    /// When it is read: keys and signatures expire.
    pub now: Time,
    /// Opens the document; may be called twice.
    pub open: &'a dyn Fn() -> io::Result<Box<dyn Read>>,
    /// What else is stored, of any age: where the document needs another to be understood.
    pub companions: &'a dyn Shelf,
}

impl Document<'_> {
    /// Whether it may make claims at all: a whole answer, over TLS from end to end. Whoever sits on a plain-http line
    /// could otherwise deny every file of a real origin.
    fn may_claim(&self) -> bool {
        self.is_secure() && self.proven != Rank::None && self.head.status == hyper::StatusCode::OK
    }

    fn is_secure(&self) -> bool {
        let secure = |target: &Target| target.origin().scheme == Scheme::Https;
        secure(self.at) && secure(self.base)
    }

    /// Refuses a content coding: fills ask for none, and a parser that met one would see noise.
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

/// Why an index makes no claims. The document still reaches the client, which does its own check.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is not what its URL or type says.
    #[error("not a {expected}: {found}")]
    Shape {
        /// What was expected: "PEP 691 index", say.
        expected: &'static str,
        /// What was found, or where it went wrong.
        found: String,
    },
    /// More than larder reads: a bomb, or an index larger than any known.
    #[error("over the limit of {limit} {unit}")]
    Limit {
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A signature speaks against it: somebody may have changed it.
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

/// The most claims one document may make: four times the largest known index (conda-forge, about a million).
pub const MAX_CLAIMS: u64 = 4_000_000;

/// What is the same for every request to an ecosystem.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// The name, as configuration, logs and metrics spell it.
    pub name: &'static str,
    /// Request headers that clients of this ecosystem send and that change nothing in the answer, in lower case; a trailing
    /// `*` stands for anything.
    pub harmless_headers: &'static [&'static str],
    /// Request headers, in lower case, by which clients of this ecosystem log in, besides those of HTTP itself: what is
    /// fetched with one is private.
    pub login_headers: &'static [&'static str],
    /// Whether the files that its indexes name keep their bytes for ever: other bytes for one of them raise an alarm.
    pub files_are_immutable: bool,
}

/// One ecosystem: what each of them has. What only some have are the [`facets`] at the end.
pub trait Ecosystem: Sync {
    /// What is the same for every request.
    fn profile(&self) -> &'static Profile;

    /// What a request is, by path shape and variant headers, never by host.
    fn recognise(&self, request: &Shape<'_>) -> Recognised;

    /// Whether an answer bears out a [`Recognised::Likely`]. `start` is the first KiB of the body, or all of it.
    fn confirm(&self, _at: &Target, _head: &Head, _start: &[u8]) -> bool {
        false
    }

    /// The `Accept` header of a fill of class `variant`, as [`Ecosystem::recognise`] names it: for a target that larder
    /// asks for by itself, so that it shares its entry with the clients'.
    fn accept(&self, _variant: &str) -> &'static str {
        Variant::ONLY.accept
    }

    /// The documents that should be read before `at`, an artifact or an index, is judged, the most useful first. It is
    /// called again with what arrived, until it names nothing that was not tried. It names documents and never fetches; a
    /// copy that is too old to help should not be on the shelf. A document on the shelf may be named again, because it may
    /// not have been read.
    fn wants(&self, _at: &Target, _have: &dyn Shelf) -> Vec<Target> {
        Vec::new()
    }

    /// Reads an index, without trust and in bounded memory. On an error nothing that `out` took counts. A document that
    /// makes no claims, or of which nothing is proven, has a standing of [`Rank::None`]. Signed claims come only from a
    /// document whose signature verifies with one of `keys`.
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

/// What larder takes a request for, before anything is confirmed.
#[derive(Clone, Debug)]
pub struct Recognition {
    /// Whose it is.
    pub ecosystem: &'static dyn Ecosystem,
    /// What it is.
    pub resource: Resource,
    /// Whether the shape alone tells.
    pub certain: bool,
}

/// What each ecosystem whose indexes have several forms takes for a client without a preference, or for one with an old one.
const ANY_FORM: [&str; 2] = ["*/*", "text/html"];

/// The index of several forms that `target` is, or may be, whatever `Accept` a request for it has: such indexes are kept apart
/// by `Accept` although many origins send no `Vary` with them.
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

/// Asks every ecosystem; a certain answer stands before a likely one.
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
