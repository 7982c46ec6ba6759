//! Finds the documents that may name a file of an archive, when larder has no claim about the file yet.
//!
//! A client with fresh package lists requests only packages. The suites of an archive cannot be derived from its pool,
//! but larder knows the suites that it has seen. For each of them it needs first the Release, then the members of that
//! Release to which the file's path (component) and name (architecture) point. These guesses only select what to read;
//! every document that is read must be proven itself.

use std::collections::BTreeSet;
use std::io::Read as _;

use super::MAX_RELEASE;
use super::places::{by_hash_url, directory};
use super::release::Release;
use super::shape;
use super::stanzas::under;
use crate::ecosystem::Shelf;
use crate::keyring::Cleartext;
use crate::target::{Root, Target};

/// The suffixes of an archive's indexes, the preferred form first; few archives have uncompressed ones.
pub(super) const ENDS: [&str; 7] = [".xz", ".gz", ".zst", ".bz2", ".lzma", ".lz4", ""];

/// The maximum number of suites to search for one file: each costs a request.
const MAX_SUITES: usize = 8;

/// The documents to read in order to learn the claims about the file at `at`.
pub(super) fn of_file(at: &Target, have: &dyn Shelf) -> Vec<Target> {
    let mut members = Vec::new();
    let mut releases = Vec::new();
    let mut older = Vec::new();
    // Suites of other archives on the same host are skipped before counting: a tenant may have any number of them.
    let suites = have.snapshot_directories(at.origin()).into_iter().filter_map(|suite| {
        let in_release = under(&suite, "InRelease")?;
        let root = shape::dists(&in_release).unwrap_or_else(|| suite.clone());
        root.covers(at).then_some((suite, root, in_release))
    });
    for (suite, root, in_release) in suites.take(MAX_SUITES) {
        let Some(release) = under(&suite, "Release") else {
            continue;
        };
        let text = read(have, &in_release)
            .and_then(|bytes| Some(Cleartext::parse(&bytes).ok()?.text().to_owned()));
        let text = text.or_else(|| String::from_utf8(read(have, &release)?).ok());
        if let Some(text) = text.and_then(|text| Release::read(&text).ok()) {
            members.extend(indexes(at, &root, &suite, &text));
        } else {
            releases.push(in_release);
            older.push(release);
        }
    }
    // A member is returned even if it is stored, because the shelf does not tell whether its claims were read.
    members.into_iter().chain(releases).chain(older).collect()
}

/// The indexes of a suite that may name the file at `at`.
fn indexes(at: &Target, root: &Root, suite: &Root, release: &Release) -> Vec<Target> {
    let file = at.file_name();
    let (stem, places) = places(&file);
    let component = component(at, root, release);
    let mut found = Vec::new();
    let directories: BTreeSet<&str> = release
        .members
        .keys()
        .map(|path| path.rsplit_once('/').map_or("", |(directory, _)| directory))
        .filter(|directory| component.is_none_or(|component| is_within(directory, component)))
        .collect();
    for place in places {
        for directory in directories.iter().filter(|directory| is_at(directory, &place)) {
            found.extend(best(suite, release, directory, stem));
        }
    }
    // A flat archive has its index in the directory of its Release.
    found.extend(best(suite, release, "", stem));
    found
}

/// The name of the index for `file`, and the last parts of the directories where it may be, most likely first. Each
/// architecture has a directory; a package for all architectures may be listed in any of them.
fn places(file: &str) -> (&'static str, Vec<String>) {
    let binary = [".deb", ".udeb", ".ddeb"].iter().find_map(|end| file.strip_suffix(end));
    let Some(stem) = binary else {
        return ("Sources", vec!["source".to_owned()]);
    };
    let architecture = stem.rsplit_once('_').map_or("all", |(_, architecture)| architecture);
    let mut places = vec![format!("binary-{architecture}")];
    if architecture == "all" {
        places.push("binary-".to_owned());
    }
    ("Packages", places)
}

/// `main-debug/source` is not within `main`.
fn is_within(directory: &str, component: &str) -> bool {
    directory.strip_prefix(component).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_at(directory: &str, place: &str) -> bool {
    let last = directory.rsplit('/').next().unwrap_or_default();
    if place.ends_with('-') {
        last.starts_with(place) && last != "binary-all"
    } else {
        last == place
    }
}

/// The component in `pool/<component>/…`, if the suite has one of that name.
fn component<'a>(at: &'a Target, root: &Root, release: &Release) -> Option<&'a str> {
    let (component, _) =
        at.path().strip_prefix(&*root.path)?.strip_prefix("pool/")?.split_once('/')?;
    let mut members = release.members.keys();
    let known = members.any(|path| path.split('/').next() == Some(component));
    known.then_some(component)
}

/// The index in a directory of the suite, in the preferred compression; under its by-hash URL if the archive supports
/// it.
fn best(suite: &Root, release: &Release, within: &str, stem: &str) -> Option<Target> {
    let start = if within.is_empty() { String::new() } else { format!("{within}/") };
    let (path, member) = ENDS.iter().find_map(|end| {
        let path = format!("{start}{stem}{end}");
        release.members.get_key_value(&path)
    })?;
    let plain = under(suite, path)?;
    let named =
        member.digests.iter().rev().find_map(|digest| by_hash_url(&directory(&plain), digest));
    named.filter(|_| release.by_hash).or(Some(plain))
}

fn read(have: &dyn Shelf, at: &Target) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    have.open(at)?.take(MAX_RELEASE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::target::Origin;

    /// A shelf that knows one suite, and has the given Release of it or nothing.
    struct Seen(&'static str, Option<String>);

    impl Shelf for Seen {
        fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
            let text = self.1.as_ref().filter(|_| at.file_name() == "Release")?;
            Some(Box::new(text.as_bytes()))
        }

        fn claiming_roots(&self, _: &Origin) -> Vec<Root> {
            Vec::new()
        }

        fn snapshot_directories(&self, origin: &Origin) -> Vec<Root> {
            vec![Root { origin: origin.clone(), path: self.0.into() }]
        }
    }

    /// A shelf that knows some hundred suites of other archives on the same host, and then the one of `Seen`.
    struct Crowded(Seen);

    impl Shelf for Crowded {
        fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
            self.0.open(at)
        }

        fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
            self.0.claiming_roots(origin)
        }

        fn snapshot_directories(&self, origin: &Origin) -> Vec<Root> {
            let path = |number| format!("/tenant-{number}/dists/stable/").into();
            let others = (0..100).map(|number| Root { origin: origin.clone(), path: path(number) });
            others.chain(self.0.snapshot_directories(origin)).collect()
        }
    }

    #[test]
    fn other_archives_of_the_same_host_do_not_crowd_one_out() {
        let at = Target::from_url("http://example.org/debian/pool/main/a/a/a_1_amd64.deb").unwrap();
        let seen = || Seen(SUITE, None);
        assert_eq!(of_file(&at, &Crowded(seen())), of_file(&at, &seen()));
        assert_eq!(of_file(&at, &seen()).len(), 2);
    }

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn release(by_hash: &str, members: &[&str]) -> String {
        let lines: Vec<String> =
            members.iter().map(|member| format!(" {HEX} 1 {member}\n")).collect();
        format!("Suite: stable\n{by_hash}SHA256:\n{}", lines.concat())
    }

    fn wanted(file: &str, seen: &Seen) -> Vec<String> {
        let at = Target::from_url(&format!("http://example.org{file}")).unwrap();
        of_file(&at, seen).iter().map(|target| target.path().to_owned()).collect()
    }

    const SUITE: &str = "/debian/dists/stable/";

    #[test]
    fn the_releases_of_known_suites_are_wanted_first() {
        let nothing = Seen(SUITE, None);
        let file = "/debian/pool/main/a/a/a_1_amd64.deb";
        let both = ["/debian/dists/stable/InRelease", "/debian/dists/stable/Release"];
        assert_eq!(wanted(file, &nothing), both);
        assert_eq!(wanted("/other/pool/main/a/a/a_1_amd64.deb", &nothing), Vec::<String>::new());
    }

    #[test]
    fn component_and_architecture_tell_the_index() {
        let members = [
            "main/binary-amd64/Packages.gz",
            "main/binary-amd64/Packages.xz",
            "main/binary-arm64/Packages.xz",
            "main/source/Sources.xz",
            "contrib/binary-amd64/Packages.xz",
            "main-debug/binary-amd64/Packages.xz",
        ];
        let seen = Seen(SUITE, Some(release("", &members)));
        let within = |path: &str| format!("{SUITE}{path}");
        assert_eq!(
            wanted("/debian/pool/main/a/a/a_1_amd64.deb", &seen),
            [within("main/binary-amd64/Packages.xz")]
        );
        assert_eq!(
            wanted("/debian/pool/main/a/a/a_1_all.deb", &seen),
            [within("main/binary-amd64/Packages.xz"), within("main/binary-arm64/Packages.xz")]
        );
        assert_eq!(
            wanted("/debian/pool/main/a/a/a_1-1.dsc", &seen),
            [within("main/source/Sources.xz")]
        );
        let named = Seen(SUITE, Some(release("Acquire-By-Hash: yes\n", &members)));
        assert_eq!(
            wanted("/debian/pool/main/a/a/a_1_amd64.deb", &named),
            [within(&format!("main/binary-amd64/by-hash/SHA256/{HEX}"))]
        );
    }

    #[test]
    fn a_flat_archive_has_its_index_beside_its_release() {
        let seen = Seen("/flat/", Some(release("", &["Packages", "Packages.gz", "Sources.gz"])));
        assert_eq!(wanted("/flat/a_1_amd64.deb", &seen), ["/flat/Packages.gz"]);
        assert_eq!(wanted("/elsewhere/a_1_amd64.deb", &seen), Vec::<String>::new());
    }
}
