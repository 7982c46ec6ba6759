//! Which documents may name a file of an archive, when nothing is known of the file yet.
//!
//! A client whose lists are fresh asks for packages alone. The suites of an archive cannot be guessed from its pool; those
//! that were seen before are known. Of each, first the Release is wanted, then the indexes in it that the file's name and
//! place point to: the component stands in the path, the architecture in the name. These are guesses at what to read;
//! what is read proves itself.

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

/// How archives compress their indexes, what is read soonest first; few have them without compression.
pub(super) const ENDS: [&str; 7] = [".xz", ".gz", ".zst", ".bz2", ".lzma", ".lz4", ""];

/// The most suites that are looked into for one file: each is worth a request.
const MAX_SUITES: usize = 8;

/// The documents that should be read to learn what is said of the file at `at`.
pub(super) fn of_file(at: &Target, have: &dyn Shelf) -> Vec<Target> {
    let mut members = Vec::new();
    let mut releases = Vec::new();
    let mut older = Vec::new();
    // Those of other archives of the same host are passed over before they are counted: a tenant may have any number.
    let suites = have.editions(at.origin()).into_iter().filter_map(|suite| {
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
    // Members are named though they are at hand: the shelf does not say whether they were read.
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
        .filter(|directory| component.is_none_or(|component| directory.starts_with(component)))
        .collect();
    for place in places {
        for directory in directories.iter().filter(|directory| is_at(directory, &place)) {
            found.extend(best(suite, release, directory, stem));
        }
    }
    // A flat archive has its index beside its Release.
    found.extend(best(suite, release, "", stem));
    found
}

/// What the index is called, and in which directories, the most likely first: one for each architecture, and packages for
/// all of them may stand in any.
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

fn is_at(directory: &str, place: &str) -> bool {
    let last = directory.rsplit('/').next().unwrap_or_default();
    if place.ends_with('-') {
        last.starts_with(place) && last != "binary-all"
    } else {
        last == place
    }
}

/// `pool/<component>/…`, if the suite has such a component.
fn component<'a>(at: &'a Target, root: &Root, release: &Release) -> Option<&'a str> {
    let (component, _) =
        at.path().strip_prefix(&*root.path)?.strip_prefix("pool/")?.split_once('/')?;
    let mut members = release.members.keys();
    let known = members.any(|path| path.split('/').next() == Some(component));
    known.then_some(component)
}

/// The index in a directory of the suite, in the form that is read soonest; under its digest where the archive says so.
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

    /// One suite was seen, of which this Release is at hand, or nothing.
    struct Seen(&'static str, Option<String>);

    impl Shelf for Seen {
        fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
            let text = self.1.as_ref().filter(|_| at.file_name() == "Release")?;
            Some(Box::new(text.as_bytes()))
        }

        fn speakers(&self, _: &Origin) -> Vec<Root> {
            Vec::new()
        }

        fn editions(&self, origin: &Origin) -> Vec<Root> {
            vec![Root { origin: origin.clone(), path: self.0.into() }]
        }
    }

    /// Some hundred suites of other archives of the same host, and then the one.
    struct Crowded(Seen);

    impl Shelf for Crowded {
        fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
            self.0.open(at)
        }

        fn speakers(&self, origin: &Origin) -> Vec<Root> {
            self.0.speakers(origin)
        }

        fn editions(&self, origin: &Origin) -> Vec<Root> {
            let path = |number| format!("/tenant-{number}/dists/stable/").into();
            let others = (0..100).map(|number| Root { origin: origin.clone(), path: path(number) });
            others.chain(self.0.editions(origin)).collect()
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
