//! What a URL is to a registry, by its path alone.
//!
//! ```text
//! <prefix>/v2/<name>/manifests/<tag>               what a tag points at today
//! <prefix>/v2/<name>/manifests/<algorithm>:<hex>   a manifest under its digest
//! <prefix>/v2/<name>/blobs/<algorithm>:<hex>       a layer, a configuration, any file
//! <prefix>/v2/<name>/referrers/<algorithm>:<hex>   what refers to a manifest: the digest names another object
//! <prefix>/v2/<name>/tags/list, <prefix>/v2/_catalog    lists
//! …/blobs/<algorithm>:<hex>                        a blob where a registry keeps its files, often behind a signed query
//! …/docker/registry/v2/blobs/<algorithm>/<2 hex>/<hex>/data    the same, as Docker's registry lays them out
//! ```
//!
//! `<name>` has as many segments as it likes, so that paths are read from their end; the part of the origin under it is
//! what a manifest may speak for. A registry's mirror is told which registry is meant by `?ns=`, which stays in the key.

use crate::digest::{Algorithm, Digest};
use crate::target::{Root, Target};

/// Where a registry of Docker's keeps its blobs, below a prefix of its operator's.
const STORAGE: &str = "/docker/registry/v2/blobs/";

/// The longest name of a repository, by the common rule of clients.
const MAX_NAME: usize = 255;

/// The longest tag (OCI distribution, "Pulling manifests").
const MAX_TAG: usize = 128;

/// What a URL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A manifest by a name that may move.
    Tag,
    /// A manifest by its digest.
    Manifest(Digest),
    /// A blob by its digest.
    Blob(Digest),
    /// A blob in the layout of a registry's own storage: a convention.
    Stored(Digest),
    /// The index of what refers to a manifest.
    Referrers,
    /// A list of tags or of repositories.
    List,
}

/// A URL of a registry, as its path tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The repository; empty where there is none.
    pub(super) name: String,
    /// What a manifest there may speak for.
    pub(super) root: Root,
    /// What it is.
    pub(super) what: What,
    /// Whether the shape alone tells: a tag may be called like another ecosystem's file.
    pub(super) certain: bool,
    /// `?ns=…` with its question mark; empty without.
    mirrored: String,
}

impl Place {
    /// The place at `at`; `None` if the path is not one of a registry.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let (parent, last) = at.path().rsplit_once('/')?;
        let (front, verb) = parent.rsplit_once('/').unwrap_or(("", parent));
        let named = digest(last);
        let what = match (verb, named) {
            ("blobs", Some(digest)) => What::Blob(digest),
            ("manifests", Some(digest)) => What::Manifest(digest),
            ("referrers", Some(_)) => What::Referrers,
            ("manifests", None) if is_tag(last) && has_no_query(at) => What::Tag,
            ("tags", None) if last == "list" => What::List,
            ("v2", None) if last == "_catalog" => return Some(Self::nameless(at, What::List)),
            (_, None) => return Some(Self::nameless(at, What::Stored(stored(at.path())?))),
            (_, Some(_)) => return None,
        };
        match repository(front) {
            Some(name) => Some(Self {
                certain: what != What::Tag || !is_foreign(name, last),
                name: name.to_owned(),
                root: Root::at(at, front.len()),
                what,
                mirrored: mirrored(at).map_or_else(String::new, |query| format!("?{query}")),
            }),
            // Where a registry keeps its files.
            None if matches!(what, What::Blob(_)) => Some(Self::nameless(at, what)),
            None => None,
        }
    }

    fn nameless(at: &Target, what: What) -> Self {
        let (name, mirrored) = (String::new(), String::new());
        Self { name, root: Root::directory_of(at), what, certain: true, mirrored }
    }

    /// What `digest` names in the same repository: among its `manifests` or its `blobs`.
    pub(super) fn sibling(&self, verb: &str, digest: &Digest) -> Option<Target> {
        let path = format!("{}{verb}/{}{}", self.root.path, spelled(digest), self.mirrored);
        Target::new(self.root.origin.clone(), &path).ok()
    }
}

/// `<algorithm>:<hex>`, of the two algorithms that registries use; in lower case, as the grammar of digests wants it.
pub(super) fn digest(text: &str) -> Option<Digest> {
    let (algorithm, hex) = text.split_once(':')?;
    let algorithm = algorithm_of(algorithm)?;
    let lower = hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    Digest::from_hex(algorithm, hex).filter(|_| lower)
}

/// The same, written.
fn spelled(digest: &Digest) -> String {
    let algorithm = if digest.algorithm() == Algorithm::Sha512 { "sha512" } else { "sha256" };
    format!("{algorithm}:{}", digest.to_hex())
}

fn algorithm_of(name: &str) -> Option<Algorithm> {
    match name {
        "sha256" => Some(Algorithm::Sha256),
        "sha512" => Some(Algorithm::Sha512),
        _ => None,
    }
}

/// The repository behind the first `/v2/` of a path that leaves a name: a prefix may be called `v2`, and so may a
/// repository, but no registry lies under another's name.
fn repository(front: &str) -> Option<&str> {
    front
        .match_indices("/v2/")
        .filter_map(|(at, v2)| front.get(at + v2.len()..))
        .find(|n| is_name(n))
}

/// Segments of lower-case letters and digits with separators between them (OCI distribution, "Pulling manifests").
fn is_name(name: &str) -> bool {
    let is_segment = |segment: &str| {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = segment.bytes().next().zip(segment.bytes().last());
        ends.is_some_and(|(first, last)| inside(first) && inside(last))
            && segment.bytes().all(|b| inside(b) || matches!(b, b'.' | b'_' | b'-'))
    };
    name.len() <= MAX_NAME && name.split('/').all(is_segment)
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether the query says nothing, or only whose mirror is meant.
fn has_no_query(at: &Target) -> bool {
    at.query().is_none() || mirrored(at).is_some()
}

/// `ns=<registry>`, if that is the whole query.
fn mirrored(at: &Target) -> Option<&str> {
    at.query().filter(|query| query.starts_with("ns=") && !query.contains('&'))
}

/// The part of an origin in which a registry of Docker's keeps its files, of which `at` is one.
pub(super) fn storage(at: &Target) -> Root {
    Root::at(at, at.path().rfind(STORAGE).unwrap_or(0))
}

/// The digest in the path of a file as Docker's registry lays it out.
fn stored(path: &str) -> Option<Digest> {
    let (_, rest) = path.rsplit_once(STORAGE)?;
    let (algorithm, rest) = rest.split_once('/')?;
    let (start, rest) = rest.split_once('/')?;
    let hex = rest.strip_suffix("/data")?;
    let digest = digest(&format!("{algorithm}:{hex}"))?;
    (start.len() == 2 && hex.starts_with(start)).then_some(digest)
}

/// Whether another ecosystem may be certain of this path: a tag may be called `Release` or `a.whl`.
fn is_foreign(name: &str, tag: &str) -> bool {
    let ending = tag.rsplit_once('.').map_or(tag, |(_, ending)| ending);
    FILE_ENDINGS.contains(&ending)
        || name.split('/').any(|segment| FOREIGN_SEGMENTS.contains(&segment))
}

/// Endings of packages and archives.
const FILE_ENDINGS: [&str; 18] = [
    "adb", "apk", "asc", "bz2", "crate", "ddeb", "deb", "dsc", "gz", "lzma", "metadata", "tgz",
    "toml", "udeb", "whl", "xz", "zip", "zst",
];

/// Segments by which apt, `PyPI` and rustup know their paths.
const FOREIGN_SEGMENTS: [&str; 5] = ["dist", "dists", "pool", "pypi", "simple"];
