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
use crate::digest::{Digest, NewContent};
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Origin, Root, Scheme, Target};

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

/// One ecosystem.
pub trait Ecosystem: Sync {
    /// The name, as configuration, logs and metrics spell it.
    fn name(&self) -> &'static str;

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

    /// Where the addresses stand in an answer of type `kind` (lower case, without parameters) at `at`, if it may be an index
    /// that names files by URL. Never for a document whose own bytes anything promises or signs.
    fn links(&self, _at: &Target, _kind: &str) -> Option<links::Links> {
        None
    }

    /// Request headers that clients of this ecosystem send and that change nothing in the answer, in lower case; a
    /// trailing `*` stands for anything.
    fn harmless_headers(&self) -> &'static [&'static str] {
        &[]
    }

    /// Request headers by which clients of this ecosystem log in, in lower case, besides those that everybody knows: what
    /// is fetched with one is private.
    fn login_headers(&self) -> &'static [&'static str] {
        &[]
    }

    /// The documents that should be read before `at`, an artifact or an index, is judged, the most useful first. Asked
    /// again with what arrived, until it asks for nothing that was not tried. Names documents, never fetches; a copy that
    /// is too old to help should not be on the shelf. What is on it may be named again: it may not have been read.
    fn wants(&self, _at: &Target, _have: &dyn Shelf) -> Vec<Target> {
        Vec::new()
    }

    /// Reads an index, without trust and in bounded memory. On an error nothing that `out` took counts. A document that
    /// makes no claims, or of which nothing is proven, has a standing of [`Rank::None`]. There is no way to signed claims
    /// but through a signature that `keys` bear out.
    fn claims(
        &self,
        doc: &Document<'_>,
        keys: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed>;

    /// Whether a document at `at` may carry its own signature: then it is worth fetching over plain http, and what it says is
    /// looked at before it is kept. An artifact that may is read, where no index knows it, like an index that makes no
    /// claims: its standing is [`Rank::Signed`] if its signature holds.
    fn may_be_signed(&self, _at: &Target) -> bool {
        false
    }

    /// What reads the content of the artifact at `at`, where claims are about that and not about the file's bytes: it gives
    /// the digests that those claims promise.
    fn content(&self, _at: &Target) -> Option<NewContent> {
        None
    }

    /// Whether what the index at `at` says depends on which keys are known: it is read again when they changed.
    fn depends_on_keys(&self, at: &Target) -> bool {
        self.may_be_signed(at)
    }

    /// Whether the files that its indexes name keep their bytes for ever: other bytes for one of them are worth an alarm.
    fn names_files_for_good(&self) -> bool {
        false
    }

    /// Under which topics claims about an index itself may be found: a signed index names the others.
    fn topics(&self, _index: &Target) -> Vec<Topic> {
        Vec::new()
    }

    /// The index of which the document at `at` is one form or one version, if it is another URL: all forms share one set of
    /// claims. Several where the URL does not tell which of them it is. An artifact that has one is read as that index.
    fn indexes_of(&self, _at: &Target) -> Vec<Target> {
        Vec::new()
    }

    /// Which of the indexes `among` the document is a form or a version of, by what is in it: the same bytes are of the
    /// same index whenever they are read. `None` if it is none of them.
    fn which(&self, _doc: &Document<'_>, among: Vec<Target>) -> Result<Option<Target>, Malformed> {
        Ok(among.into_iter().next())
    }

    /// Whether the documents that the index at `at` names are right only together with it: whoever has read one version of
    /// it takes of the others only what that version names. A new version counts when its documents can be had.
    fn heads(&self, _at: &Target) -> bool {
        false
    }

    /// What clients read in the place of the index at `at` when that one is not there.
    fn stand_in(&self, _at: &Target) -> Option<Target> {
        None
    }

    /// Where a repository that keeps indexes under their digests has the version of `index` that `digest` names.
    fn named_by(&self, _index: &Target, _digest: &Digest) -> Option<Target> {
        None
    }

    /// Whether an index only points at a document that stands for good under its digest, and may be asked by HEAD where:
    /// registries count a GET as a pull.
    fn is_pointer(&self, _index: &Target) -> bool {
        false
    }

    /// Where the answer `head` says that the pointer at `index` points, and the digest that the target names.
    fn points_at(&self, _index: &Target, _head: &Head) -> Option<(Target, Digest)> {
        None
    }

    /// Whether bytes that were received for another URL need a header that only this one's origin can give: a type by
    /// which clients tell what they are.
    fn needs_own_header(&self, _at: &Target) -> bool {
        false
    }

    /// The service that `at` belongs to, if clients greet it before they ask for anything.
    fn service(&self, _at: &Target) -> Option<Root> {
        None
    }

    /// What the service that `at` greets answers to who needs no login.
    fn greeting(&self, _at: &Target) -> Option<Greeting> {
        None
    }

    /// Whether a request asks if the origin has the file at `at`: while the origin answers, no stored copy can say so.
    fn asks_for_presence(&self, _method: &hyper::Method, _at: &Target) -> bool {
        false
    }

    /// How an index that another one names is brought up to date. `document` is the version whose claims are current.
    fn renewal(&self, _index: &Target, _document: &Digest) -> Option<Renewal> {
        None
    }
}

/// How an index that another one names is brought up to date.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// The indexes that may name it; those that are stored are asked again.
    pub parents: Vec<Target>,
    /// What a parent names as long as it names this version.
    pub named: Target,
    /// Where the new version is, in the order in which to try, if no parent names this one any more.
    pub again: Vec<Target>,
}

/// The first words of a service, by which clients learn whether to log in.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The service.
    pub service: Root,
    /// The head of the answer.
    pub head: Head,
    /// Its body.
    pub body: &'static str,
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
