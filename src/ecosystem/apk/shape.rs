//! Recognises the URLs of apk repositories.
//!
//! ```text
//! <repository>/<architecture>/APKINDEX.tar.gz                    the index (v2): revalidated
//! <repository>/<architecture>/<name>-<version>-r<revision>.apk   a package
//! <directory>/Packages.adb, <name>.adb                           an index of apk-tools 3
//! ```
//!
//! The root is the index's directory, because apk looks for packages nowhere else. Android packages are called `.apk`
//! too, so a file without a revision in its name counts only if an index names it.
//!
//! Sources: apk-repositories(5), apk-package(5), apk-v2(5), apk-v3(5).

use super::NAME;
use crate::claim::Topic;
use crate::ecosystem::{Artifact, Kind, Recognised, Resource, Shape, Variant};
use crate::target::{Root, Target};

/// The file name of every v2 index.
pub(super) const INDEX: &str = "APKINDEX.tar.gz";

/// The usual name of an index of apk-tools 3.
const V3_INDEX: &str = "Packages.adb";

/// Classifies a request.
pub(super) fn recognise(request: &Shape<'_>) -> Recognised {
    let at = request.target;
    let resource = |kind| Resource { kind, root: Root::directory_of(at), variant: Variant::ONLY };
    let file = at.file_name();
    let (certain, kind) = match file.as_str() {
        INDEX | V3_INDEX => (true, Kind::Index),
        _ if is_v3_index(&file) => (false, Kind::Index),
        _ if is_package(at) => {
            let artifact = Artifact { named: None, topics: vec![topic(at)] };
            (is_versioned(&file), Kind::Artifact(artifact))
        }
        _ => return Recognised::No,
    };
    // apk accepts any type. A client that accepts only a certain type may mean another document with the same name.
    // npm's scoped packages have versions of any name.
    let scoped = at.path().contains("/@");
    if certain && !scoped && matches!(request.accept.trim(), "" | "*/*") {
        Recognised::Certain(resource(kind))
    } else {
        Recognised::Likely(resource(kind))
    }
}

/// The topic of the claims of a directory.
pub(super) fn topic(at: &Target) -> Topic {
    Topic::new(NAME, &Root::directory_of(at).to_string())
}

/// The index that should name a file.
pub(super) fn index_of(at: &Target) -> Option<Target> {
    let directory = Root::directory_of(at);
    Target::new(directory.origin, &format!("{}{INDEX}", directory.path)).ok()
}

/// Whether a target may be a package.
pub(super) fn is_package(at: &Target) -> bool {
    at.file_name().strip_suffix(".apk").is_some_and(|stem| !stem.is_empty())
}

/// Whether a file name is that of an apk-tools 3 index, which may have any stem.
fn is_v3_index(file: &str) -> bool {
    file.strip_suffix(".adb").is_some_and(|stem| !stem.is_empty())
}

/// `<name>-<version>-r<revision>.apk`.
fn is_versioned(file: &str) -> bool {
    let parts = || {
        let (stem, revision) = file.strip_suffix(".apk")?.rsplit_once("-r")?;
        let (name, version) = stem.rsplit_once('-')?;
        Some((name, version, revision))
    };
    parts().is_some_and(|(name, version, revision)| {
        is_name(name)
            && version.starts_with(|c: char| c.is_ascii_digit())
            && is_version(version)
            && !revision.is_empty()
            && revision.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Whether `name` may be a package's name in a file name.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'_'))
}

/// Whether `version` may be a package's version in a file name.
pub(super) fn is_version(version: &str) -> bool {
    !version.is_empty()
        && version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~' | b'+'))
}

/// The architectures that Alpine has or had. A directory with such a name holds that architecture only.
const ARCHITECTURES: [&str; 11] = [
    "aarch64",
    "armhf",
    "armv7",
    "loongarch64",
    "mips64",
    "ppc64le",
    "riscv64",
    "s390x",
    "x86",
    "x86_64",
    "armel",
];

/// Whether a package for `architecture` cannot belong in the directory of `at`, because that is another architecture's.
pub(super) fn is_elsewhere(at: &Target, architecture: &str) -> bool {
    let root = Root::directory_of(at);
    let directory = root.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let known = |name: &str| ARCHITECTURES.contains(&name);
    known(directory) && known(architecture) && directory != architecture
}

/// Whether these are the first bytes of an apk-tools 3 file: raw, deflated, or in another compression.
pub(super) fn is_adb(start: &[u8]) -> bool {
    matches!(start, [b'A', b'D', b'B', b'.' | b'd' | b'c', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> String {
        let target = Target::from_url(&format!("http://example.org{path}")).unwrap();
        let (sure, resource) = match recognise(&Shape { target: &target, accept: "*/*" }) {
            Recognised::No => return "no".into(),
            Recognised::Likely(resource) => ("likely", resource),
            Recognised::Certain(resource) => ("certain", resource),
        };
        let kind = if resource.kind == Kind::Index { "index" } else { "artifact" };
        format!("{sure} {kind} {}", resource.root.path)
    }

    #[test]
    fn indexes_and_packages_are_told_by_their_names() {
        for (path, expected) in [
            ("/v3.20/main/x86_64/APKINDEX.tar.gz", "certain index /v3.20/main/x86_64/"),
            ("/v3.20/main/x86_64/gear-1.0.2_rc1-r0.apk", "certain artifact /v3.20/main/x86_64/"),
            ("/x/libstdc++-13.2.1_git20240309-r0.apk", "certain artifact /x/"),
            ("/x/libstdc%2b%2b-13.2.1-r12.apk", "certain artifact /x/"),
            ("/x/gear-box-1.0-r0.apk", "certain artifact /x/"),
            ("/x/gear-box-1.0~0a1b2c.apk", "likely artifact /x/"),
            ("/x/Phone.apk", "likely artifact /x/"),
            ("/x/gear-latest-r0.apk", "likely artifact /x/"),
            ("/x/Packages.adb", "certain index /x/"),
            ("/x/gears.adb", "likely index /x/"),
            ("/x/.apk", "no"),
            ("/x/.adb", "no"),
            ("/x/APKINDEX.tar.gz.sig", "no"),
            ("/x/APKINDEX", "no"),
            ("/x/gear-1.0-r0.apk/", "no"),
        ] {
            assert_eq!(said(path), expected, "{path}");
        }
    }

    #[test]
    fn a_directory_of_one_architecture_is_no_others() {
        let elsewhere = |directory: &str, architecture: &str| {
            let url = format!("http://example.org/main/{directory}/APKINDEX.tar.gz");
            is_elsewhere(&Target::from_url(&url).unwrap(), architecture)
        };
        assert!(elsewhere("x86_64", "aarch64"));
        for (directory, architecture) in
            [("x86_64", "x86_64"), ("x86_64", "noarch"), ("packages", "x86"), ("x86", "mine")]
        {
            assert!(!elsewhere(directory, architecture), "{directory} {architecture}");
        }
    }
}
