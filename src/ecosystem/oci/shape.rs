//! Recognises the URLs of a registry, by their path alone.
//!
//! ```text
//! <prefix>/v2/<name>/manifests/<tag>               the manifest that a tag names now
//! <prefix>/v2/<name>/manifests/<algorithm>:<hex>   a manifest under its digest
//! <prefix>/v2/<name>/blobs/<algorithm>:<hex>       a layer, a configuration, any file
//! <prefix>/v2/<name>/referrers/<algorithm>:<hex>   the referrers of a manifest: the digest is not of this document
//! <prefix>/v2/<name>/tags/list, <prefix>/v2/_catalog    lists
//! …/blobs/<algorithm>:<hex>                        a blob in a registry's file storage, often with a signed query
//! …/docker/registry/v2/blobs/<algorithm>/<2 hex>/<hex>/data    the same, in the layout of Docker's registry
//! ```
//!
//! `<name>` may have any number of segments, so paths are parsed from their end. A manifest has authority over the part
//! of the origin below `<name>`. A mirror learns from `?ns=` which registry is meant; the query stays in the key.

use crate::digest::{Algorithm, Digest};
use crate::target::{Root, Target};

/// The path of the blobs in the storage of Docker's registry, below a prefix that the operator chooses.
const STORAGE: &str = "/docker/registry/v2/blobs/";

/// The maximum length of a repository's name, as clients limit it.
const MAX_NAME: usize = 255;

/// The maximum length of a tag (OCI distribution, "Pulling manifests").
const MAX_TAG: usize = 128;

/// What a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A manifest by a tag.
    Tag,
    /// A manifest by its digest.
    Manifest(Digest),
    /// A blob by its digest.
    Blob(Digest),
    /// A blob in the layout of a registry's own storage, which is a convention and not part of the protocol.
    Stored(Digest),
    /// The index of the referrers of a manifest.
    Referrers,
    /// A list of tags or of repositories.
    List,
}

/// A URL of a registry, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegistryPath {
    /// The repository; empty for URLs outside of a repository.
    pub(super) name: String,
    /// The part of the origin over which a manifest there has authority.
    pub(super) root: Root,
    /// What the URL names.
    pub(super) what: What,
    /// Whether the path alone is proof enough: a tag may have the name of another ecosystem's file.
    pub(super) certain: bool,
    /// `?ns=…` with its question mark; empty if there is none.
    mirrored: String,
}

impl RegistryPath {
    /// The place at `at`; `None` if the path is not that of a registry.
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
            // A registry's file storage.
            None if matches!(what, What::Blob(_)) => Some(Self::nameless(at, what)),
            None => None,
        }
    }

    fn nameless(at: &Target, what: What) -> Self {
        let (name, mirrored) = (String::new(), String::new());
        Self { name, root: Root::directory_of(at), what, certain: true, mirrored }
    }

    /// The URL of `digest` in the same repository, under `manifests` or `blobs`.
    pub(super) fn sibling(&self, verb: &str, digest: &Digest) -> Option<Target> {
        let path = format!("{}{verb}/{}{}", self.root.path, spelled(digest), self.mirrored);
        Target::new(self.root.origin.clone(), &path).ok()
    }
}

/// Parses `<algorithm>:<hex>` with one of the two algorithms that registries use, in lower case as the grammar
/// requires.
pub(super) fn digest(text: &str) -> Option<Digest> {
    let (algorithm, hex) = text.split_once(':')?;
    let algorithm = algorithm_of(algorithm)?;
    let lower = hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    Digest::from_hex(algorithm, hex).filter(|_| lower)
}

/// The inverse of [`digest()`].
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

/// The repository: what follows the first `/v2/` that leaves a valid name. A prefix or a repository may contain a
/// segment `v2`, but no registry is below a repository's name.
fn repository(front: &str) -> Option<&str> {
    front
        .match_indices("/v2/")
        .filter_map(|(at, v2)| front.get(at + v2.len()..))
        .find(|n| is_name(n))
}

/// Whether `name` consists of segments of lower-case letters and digits with separators between them (OCI distribution,
/// "Pulling manifests").
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

/// Whether there is no query, or only the one that tells a mirror which registry is meant.
fn has_no_query(at: &Target) -> bool {
    at.query().is_none() || mirrored(at).is_some()
}

/// `ns=<registry>`, if that is the whole query.
fn mirrored(at: &Target) -> Option<&str> {
    at.query().filter(|query| query.starts_with("ns=") && !query.contains('&'))
}

/// The part of an origin with the storage of Docker's registry that contains `at`.
pub(super) fn storage(at: &Target) -> Root {
    Root::at(at, at.path().rfind(STORAGE).unwrap_or(0))
}

/// The digest in the path of a file in the layout of Docker's registry.
fn stored(path: &str) -> Option<Digest> {
    let (_, rest) = path.rsplit_once(STORAGE)?;
    let (algorithm, rest) = rest.split_once('/')?;
    let (start, rest) = rest.split_once('/')?;
    let hex = rest.strip_suffix("/data")?;
    let digest = digest(&format!("{algorithm}:{hex}"))?;
    (start.len() == 2 && hex.starts_with(start)).then_some(digest)
}

/// Whether another ecosystem may recognise this path for certain: a tag may be called `Release` or `a.whl`.
fn is_foreign(name: &str, tag: &str) -> bool {
    let ending = tag.rsplit_once('.').map_or(tag, |(_, ending)| ending);
    FILE_ENDINGS.contains(&ending)
        || name.split('/').any(|segment| FOREIGN_SEGMENTS.contains(&segment))
}

/// File name extensions of packages and archives.
const FILE_ENDINGS: [&str; 18] = [
    "adb", "apk", "asc", "bz2", "crate", "ddeb", "deb", "dsc", "gz", "lzma", "metadata", "tgz",
    "toml", "udeb", "whl", "xz", "zip", "zst",
];

/// Segments by which apt, `PyPI` and rustup recognise their paths.
const FOREIGN_SEGMENTS: [&str; 5] = ["dist", "dists", "pool", "pypi", "simple"];
