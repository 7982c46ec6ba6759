//! Recognises the URLs of apt archives.
//!
//! ```text
//! <root>/dists/<suite…>/InRelease, Release, …       the archive's indexes: revalidated
//! <root>/dists/…/by-hash/SHA256/<64 hex>            an index under its own digest, as the protocol defines
//! <root>/pool/…/<name>_<version>_<arch>.deb         a package
//! <dir>/InRelease, Packages.gz, …                   a flat archive: likely, until its InRelease was read
//! <dir>/<name>_<version>.dsc, …                     a source package there: likely, until an index names it
//! ```
//!
//! The root of an archive is the path before its last `/dists/` or `/pool/`. The root of a flat archive is its
//! directory, so that one tenant of a host has no authority over the rest of the host. `by-hash` with MD5 or SHA-1
//! proves nothing, and is not recognised.
//!
//! Sources: the Debian repository format (wiki), deb-version(7), Debian policy §5.6.12, apt's `acquire-item.cc` for by-hash.

use super::NAME;
use crate::claim::Topic;
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::{Artifact, Kind, Named, Recognised, Resource, Shape, Variant};
use crate::target::{Root, Target};

/// Classifies a request.
pub(super) fn recognise(request: &Shape<'_>) -> Recognised {
    let at = request.target;
    let resource = |kind, root| Resource { kind, root, variant: Variant::ONLY };
    let artifact = |named| Kind::Artifact(Artifact { named, topics: vec![topic(at)] });
    if let Some((directory, digest)) = by_hash(at.path()) {
        let named = Named::by_protocol(digest);
        let root = archive_root(at).unwrap_or_else(|| Root::at(at, directory.len()));
        return Recognised::Certain(resource(artifact(Some(named)), root));
    }
    if is_file(at) {
        let root = archive_root(at).unwrap_or_else(|| Root::directory_of(at));
        return Recognised::Certain(resource(artifact(None), root));
    }
    if is_likely_source(&at.file_name()) {
        return Recognised::Likely(resource(artifact(None), Root::directory_of(at)));
    }
    if !is_index(at.path()) {
        return Recognised::No;
    }
    match dists(at) {
        Some(root) => Recognised::Certain(resource(Kind::Index, root)),
        None => Recognised::Likely(resource(Kind::Index, Root::directory_of(at))),
    }
}

/// Whether this is a package, or a part of a source package.
pub(super) fn is_file(at: &Target) -> bool {
    let file = at.file_name();
    is_binary(&file) || is_source(&file) && pool(at).is_some()
}

/// The topic of an archive's claims. A package's path does not always tell its archive's root, so all archives of an
/// origin share one topic.
pub(super) fn topic(at: &Target) -> Topic {
    Topic::new(NAME, &at.origin().to_string())
}

/// The directory and the digest of `<directory>/by-hash/<algorithm>/<hex>`, if the algorithm is strong.
pub(super) fn by_hash(path: &str) -> Option<(&str, Digest)> {
    let (rest, hex) = path.rsplit_once('/')?;
    let (directory, algorithm) = rest.rsplit_once("/by-hash/")?;
    let algorithm = match algorithm {
        "SHA256" => Algorithm::Sha256,
        "SHA512" => Algorithm::Sha512,
        _ => return None,
    };
    Some((directory, Digest::from_hex(algorithm, hex)?))
}

/// The indexes with claims that a directory may hold under by-hash URLs. The cases are a directory of sources, one of
/// patches (Debian serves its list by-hash too), one of binary packages, and one that may be a flat archive.
pub(super) fn indexes_in(directory: &str) -> &'static [&'static str] {
    match directory.rsplit('/').next().unwrap_or_default() {
        "source" => &["Sources"],
        list if list.ends_with(".diff") => &["Index"],
        packages if packages.starts_with("binary-") => &["Packages"],
        _ => &["Packages", "Sources"],
    }
}

/// The root of the archive in whose `dists` or `pool` the target lies.
pub(super) fn archive_root(at: &Target) -> Option<Root> {
    dists(at).or_else(|| pool(at))
}

/// The root before the last `/dists/` that is followed by a suite.
pub(super) fn dists(at: &Target) -> Option<Root> {
    let (prefix, rest) = at.path().rsplit_once("/dists/")?;
    let (suite, _) = rest.split_once('/')?;
    (!suite.is_empty()).then(|| Root::at(at, prefix.len()))
}

fn pool(at: &Target) -> Option<Root> {
    Some(Root::at(at, at.path().rfind("/pool/")?))
}

/// Matches `<name>_<version>_<architecture>.deb`. A version begins with a digit (Debian policy §5.6.12), so that
/// `tool_current_amd64.deb`, which is replaced in place, does not match.
fn is_binary(file: &str) -> bool {
    let stem = [".deb", ".udeb", ".ddeb"].iter().find_map(|end| file.strip_suffix(end));
    let Some((name, rest)) = stem.and_then(|stem| stem.split_once('_')) else {
        return false;
    };
    let Some((version, architecture)) = rest.split_once('_') else {
        return false;
    };
    is_name(name)
        && is_version(version)
        && !architecture.is_empty()
        && architecture.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether this may be a part of a source package in a flat archive, which has no pool; an index must confirm it. Other
/// ecosystems have archives with similar names, so only suffixes and compressions that are typical of Debian count.
fn is_likely_source(file: &str) -> bool {
    let parts = [".dsc", ".diff.gz", ".tar.xz"];
    is_source(file)
        && (parts.iter().any(|end| file.ends_with(end))
            || [".orig.tar.", ".orig-", ".debian.tar."].iter().any(|part| file.contains(part)))
}

/// Matches `<name>_<version>.dsc` and the files that it lists. Outside a pool, other ecosystems' archives match too.
fn is_source(file: &str) -> bool {
    let file = file.strip_suffix(".asc").unwrap_or(file);
    let stem = [".dsc", ".diff.gz"].iter().find_map(|end| file.strip_suffix(end)).or_else(|| {
        let (stem, compression) = file.rsplit_once(".tar.")?;
        matches!(compression, "gz" | "xz" | "bz2" | "lzma" | "zst").then_some(stem)
    });
    stem.and_then(|stem| stem.split_once('_'))
        .is_some_and(|(name, version)| is_name(name) && is_version(version))
}

/// Third-party packages use capitals, which Debian's own names may not contain.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// deb-version(7): digits, letters, `. + - ~`, and `:` after an epoch, which file names omit but some servers keep.
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'~' | b':'))
}

/// Whether a path ends in the name of one of an archive's indexes.
fn is_index(path: &str) -> bool {
    let Some((directory, file)) = path.rsplit_once('/') else {
        return false;
    };
    let directory = directory.rsplit('/').next().unwrap_or_default();
    // Packages.diff/Index and the patches in the same directory.
    if let Some(stem) = directory.strip_suffix(".diff") {
        return is_index_name(stem) && (file == "Index" || file.ends_with(".gz"));
    }
    let stem = [".gz", ".xz", ".bz2", ".zst", ".lzma", ".lz4"]
        .iter()
        .find_map(|end| file.strip_suffix(end))
        .unwrap_or(file);
    matches!(file, "InRelease" | "Release" | "Release.gpg")
        || is_index_name(stem)
        || directory == "dep11" && stem.starts_with("icons-") && stem.ends_with(".tar")
}

/// Whether `stem` is an index's name without its compression. An architecture, a language or a size follows the dash.
/// Dots are not allowed, so that no other kind of archive matches.
fn is_index_name(stem: &str) -> bool {
    let stem = stem.strip_suffix(".yml").unwrap_or(stem);
    matches!(stem, "Packages" | "Sources")
        || ["Contents-", "Translation-", "Components-", "Commands-"]
            .iter()
            .filter_map(|start| stem.strip_prefix(start))
            .any(|rest| {
                rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@'))
            })
}

/// Whether this is the beginning of an unsigned Release: one field per line, with `Date` before the checksums.
pub(super) fn is_release(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(start);
    let mut dated = false;
    for line in text.lines() {
        let Some((field, _)) = line.split_once(':') else {
            return false;
        };
        match field {
            "Date" => dated = true,
            "MD5Sum" | "SHA1" | "SHA256" | "SHA512" => return dated,
            _ if field.is_empty() || field.contains(' ') => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn recognise(path: &str) -> Recognised {
        let target = Target::from_url(&format!("http://example.org{path}")).unwrap();
        super::recognise(&Shape { target: &target, accept: "text/*" })
    }

    /// The recognised kind and root, as text.
    fn said(path: &str) -> String {
        let (sure, resource) = match recognise(path) {
            Recognised::No => return "no".into(),
            Recognised::Likely(resource) => ("likely", resource),
            Recognised::Certain(resource) => ("certain", resource),
        };
        let kind = match &resource.kind {
            Kind::Index => "index",
            Kind::Artifact(Artifact { named: Some(_), .. }) => "named",
            Kind::Artifact(Artifact { named: None, .. }) => "artifact",
        };
        format!("{sure} {kind} {}", resource.root.path)
    }

    fn all_are(expected: &str, paths: &[&str]) {
        for path in paths {
            let path = path.replace("HEX", HEX);
            assert_eq!(said(&path), expected, "{path}");
        }
    }

    #[test]
    fn indexes_are_recognised_under_dists() {
        all_are(
            "certain index /debian/",
            &[
                "/debian/dists/bookworm/InRelease",
                "/debian/dists/bookworm/Release",
                "/debian/dists/bookworm/Release.gpg",
                "/debian/dists/bookworm/updates/main/binary-amd64/Packages",
                "/debian/dists/bookworm/main/binary-amd64/Packages.xz",
                "/debian/dists/bookworm/main/binary-amd64/Packages.diff/Index",
                "/debian/dists/bookworm/main/binary-amd64/Packages.diff/T-1-F-2.gz",
                "/debian/dists/bookworm/main/source/Sources.gz",
                "/debian/dists/bookworm/main/i18n/Translation-pt_BR.bz2",
                "/debian/dists/bookworm/main/Contents-amd64.gz",
                "/debian/dists/bookworm/main/dep11/icons-64x64@2.tar.gz",
                "/debian/dists/bookworm/main/dep11/Components-amd64.yml.xz",
            ],
        );
        // The last `dists` is the archive's.
        all_are("certain index /dists/a/", &["/dists/a/dists/b/InRelease"]);
    }

    #[test]
    fn only_strong_digests_name_an_index() {
        all_are(
            "certain named /debian/",
            &[
                "/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/HEX",
                "/debian/dists/bookworm/main/binary-amd64/by-hash/SHA512/HEXHEX",
            ],
        );
        all_are("certain named /flat/", &["/flat/by-hash/SHA256/HEX"]);
        all_are(
            "no",
            &[
                "/debian/dists/bookworm/by-hash/SHA512/HEX",
                "/debian/dists/bookworm/by-hash/SHA1/0123456789abcdef0123456789abcdef01234567",
                "/debian/dists/bookworm/by-hash/MD5Sum/0123456789abcdef0123456789abcdef",
            ],
        );
    }

    #[test]
    fn packages_are_recognised_by_name_and_sources_only_in_a_pool() {
        all_are(
            "certain artifact /debian/",
            &[
                "/debian/pool/main/a/adduser/adduser_3.134_all.deb",
                "/debian/pool/main/g/gcc/g%2b%2b_12.2.0-3_amd64.deb",
                "/debian/pool/main/a/a/a-udeb_1%3a1.0~rc1_amd64.udeb",
                "/debian/pool/main/a/a/a_1.0-1.dsc",
                "/debian/pool/main/a/a/a_1.0.orig.tar.gz",
                "/debian/pool/main/a/a/a_1.0.orig.tar.gz.asc",
                "/debian/pool/main/a/a/a_1.0-1.debian.tar.xz",
                "/debian/pool/main/a/a/a_1.0-1.diff.gz",
                "/debian/dists/stable/main/binary-amd64/Tool_1.2_amd64.deb",
            ],
        );
        all_are("certain artifact /dl/", &["/dl/tool_1.2.3_amd64.deb"]);
        all_are(
            "no",
            &[
                "/dl/tool_current_amd64.deb",
                "/dl/tool_1.0_.deb",
                "/dl/tool.deb",
                // A Python sdist, an R package, a conda package.
                "/dl/my_2-1.0.tar.gz",
                "/dl/a_1.0.tar.gz",
                "/dl/my_2-1.0-py_0.tar.bz2",
                "/debian/pool/main/a/a/README",
            ],
        );
    }

    #[test]
    fn a_flat_archive_is_likely() {
        all_are(
            "likely artifact /flat/",
            &[
                "/flat/a_1.0-1.dsc",
                "/flat/a_1.0%7ex.tar.xz",
                "/flat/a_1.0.orig.tar.gz",
                "/flat/a_1.0.orig-more.tar.gz.asc",
                "/flat/a_1.0-1.debian.tar.bz2",
                "/flat/a_1.0-1.diff.gz",
            ],
        );
        all_are(
            "likely index /flat/",
            &["/flat/InRelease", "/flat/Release.gpg", "/flat/Packages.gz"],
        );
        all_are("likely index /dists/", &["/dists/InRelease"]);
        all_are(
            "no",
            &[
                "/",
                "/flat/",
                "/debian/dists/bookworm/",
                "/debian/dists/bookworm/main/installer-amd64/netboot/mini.iso",
            ],
        );
    }

    #[test]
    fn a_digest_in_a_by_hash_path_is_the_protocols_word() {
        let Recognised::Certain(Resource {
            kind: Kind::Artifact(Artifact { named: Some(named), .. }),
            ..
        }) = recognise(&format!("/d/dists/s/by-hash/SHA256/{HEX}"))
        else {
            panic!("not recognised");
        };
        assert!(named.is_by_protocol());
        assert_eq!(named.digest.to_hex(), HEX);
    }
}
