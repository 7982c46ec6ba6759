//! The locations of an archive's documents, relative to one of them.

use super::shape;
use crate::digest::{Algorithm, Digest};
use crate::target::{Root, Scheme, Target};

/// The maximum number of directories to consider, from a directory upwards.
const MAX_ANCESTORS: usize = 8;

/// The directories that names in an index may be relative to: the archive's root. For a flat archive, also each
/// directory above it, where claims can only confirm.
pub(super) fn bases(at: &Target, root: &Root) -> Vec<Root> {
    if shape::dists(at).is_some() {
        return vec![root.clone()];
    }
    let path = root.path.trim_end_matches('/');
    let above = path.rmatch_indices('/').map(|(end, _)| end);
    [path.len()]
        .into_iter()
        .chain(above)
        .take(MAX_ANCESTORS)
        .map(|end| Root {
            origin: root.origin.clone(),
            path: format!("{}/", path.get(..end).unwrap_or_default()).into(),
        })
        .collect()
}

/// Whether this is a Packages or Sources, uncompressed.
pub(super) fn is_stanzas(at: &Target) -> bool {
    matches!(at.file_name().as_str(), "Packages" | "Sources")
}

/// Whether this is the Release of a suite or of a flat archive. A Release next to a Packages file only describes its
/// directory: it names no files and is not signed.
pub(super) fn is_head(at: &Target) -> bool {
    let above = at.path().rsplit('/').nth(1).unwrap_or_default();
    matches!(at.file_name().as_str(), "InRelease" | "Release")
        && above != "source"
        && !above.starts_with("binary-")
}

/// Whether this is a root Release or its detached signature. Only a key proves these two; an index that lists them does
/// not. The `Release` of a directory of packages is listed in the suite's Release like any other member.
pub(super) fn proves_itself(at: &Target) -> bool {
    match at.file_name().as_str() {
        super::SIGNATURE => beside(at, "Release").is_some_and(|release| is_head(&release)),
        _ => is_head(at),
    }
}

/// The file `name` in the same directory.
pub(super) fn beside(at: &Target, name: &str) -> Option<Target> {
    Target::new(at.origin().clone(), &format!("{}{name}", directory(at).path)).ok()
}

pub(super) fn directory(at: &Target) -> Root {
    Root::directory_of(at)
}

/// The by-hash URL of the index in `directory` with this digest; `None` for algorithms without by-hash URLs.
pub(super) fn by_hash_url(directory: &Root, digest: &Digest) -> Option<Target> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => "SHA256",
        Algorithm::Sha512 => "SHA512",
        Algorithm::Md5
        | Algorithm::Sha1
        | Algorithm::Sha384
        | Algorithm::Blake2b256
        | Algorithm::Apk2Sha1
        | Algorithm::Apk2Sha256 => {
            return None;
        }
    };
    let path = format!("{}by-hash/{algorithm}/{}", directory.path, digest.to_hex());
    Target::new(directory.origin.clone(), &path).ok()
}

/// The path between `dists/` and the Release; `None` in a flat archive.
pub(super) fn suite(release: &Target) -> Option<&str> {
    shape::dists(release)?;
    let (_, rest) = release.path().rsplit_once("/dists/")?;
    let (suite, _) = rest.rsplit_once('/')?;
    Some(suite)
}

/// The Releases that may name an index: those in each directory from the index's own up to the suite's.
pub(super) fn parents(index: &Target) -> Vec<Target> {
    let floor = shape::dists(index)
        .map_or_else(|| directory(index).path.len(), |root| root.path.len() + "dists/".len() + 1);
    let path = index.path();
    let slashes = path.rmatch_indices('/').map(|(at, _)| at + 1);
    slashes
        .take_while(|end| *end >= floor)
        .take(MAX_ANCESTORS)
        .flat_map(|end| ["InRelease", "Release"].map(|name| (end, name)))
        .filter_map(|(end, name)| {
            let path = format!("{}{name}", path.get(..end)?);
            Target::new(index.origin().clone(), &path).ok()
        })
        .filter(|release| {
            release.origin().scheme == Scheme::Https || release.file_name() == "InRelease"
        })
        .collect()
}
