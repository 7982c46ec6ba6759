//! Where a naming convention holds that no protocol obliges anybody to keep: by roots, not by origins.
//!
//! Below a root where three files had the digests in their names the convention is believed: it selects and refuses there.
//! A file that came otherwise before that is no argument against its neighbours, because whoever serves one file of a
//! directory would then decide for all; it is remembered as one whose name says nothing.
//!
//! ```text
//! root ─▶ the digests of up to three different files that matched, and the files that did not
//! ```

use std::cmp::Reverse;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fair::{Lineage, Share, first_to_go, lineage};
use super::sealed::Kind;
use super::table::{Rows, Table};
use crate::digest::Digest;
use crate::target::{MatchKey, Root, Target};

/// Version 1 counted by origin, which one tenant of it could decide: it is dropped, and learnt anew by roots.
const CONVENTIONS: Kind = Kind { magic: *b"LcnV", version: 2 };

/// How many different files must have matched below a root.
const BELIEVED_AFTER: usize = 3;

/// Files of one root whose names say nothing. A root that keeps the convention has none of them; one that does not is
/// believed only if somebody makes it look so.
const MAX_MISSED: usize = 32;

/// The longest path of a root of which anything is learnt, in bytes: it bounds the file.
const MAX_PATH: usize = 1024;

/// What was observed below one root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Observed {
    /// The beginnings of the digests that matched: one file fetched three times is one observation.
    matched: Vec<[u8; 8]>,
    /// The files that did not.
    missed: Vec<MatchKey>,
}

/// What is known of a name below a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Convention {
    /// How many different files matched there; no more than are needed.
    pub matched: usize,
    /// Whether this very file once did not.
    pub missed: bool,
}

impl Convention {
    /// Whether the name selects and refuses.
    pub fn is_believed(self) -> bool {
        self.matched >= BELIEVED_AFTER && !self.missed
    }
}

/// The conventions of every ecosystem.
#[derive(Debug)]
pub(super) struct Conventions(Table<(String, Root), Observed>);

impl Conventions {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self(Table::open(path, CONVENTIONS)?))
    }

    /// Writes what changed.
    pub(super) fn flush(&self) {
        self.0.flush();
    }

    /// What is known of the name of `file`, whose convention `ecosystem` counts below `root`.
    pub(super) fn of(&self, ecosystem: &str, root: &Root, file: &Target) -> Convention {
        let observed = self.0.get(&(ecosystem.to_owned(), root.clone())).unwrap_or_default();
        let missed = observed.missed.contains(&file.match_key());
        Convention { matched: observed.matched.len(), missed }
    }

    /// Notes that `file` has the digest in its name. What was held against it before was of other bytes.
    pub(super) fn matched(&self, ecosystem: &str, root: &Root, file: &Target, named: &Digest) {
        let mut start = [0; 8];
        for (to, from) in start.iter_mut().zip(named.as_bytes()) {
            *to = *from;
        }
        let key = file.match_key();
        let cleared = self.of(ecosystem, root, file).missed;
        self.change(ecosystem, root, |observed| {
            observed.missed.retain(|missed| *missed != key);
            if observed.matched.len() < BELIEVED_AFTER && !observed.matched.contains(&start) {
                observed.matched.push(start);
            }
        });
        if cleared {
            self.0.flush();
        }
    }

    /// Notes that `file` has not the digest in its name, if nothing says so yet and names are not believed there: what a
    /// believed name refuses is no argument against it. Written at once when it is news: it must not be refused by its name
    /// after a crash.
    pub(super) fn missed(&self, ecosystem: &str, root: &Root, file: &Target) {
        let known = self.of(ecosystem, root, file);
        if known.missed || known.matched >= BELIEVED_AFTER {
            return;
        }
        self.change(ecosystem, root, |observed| {
            if observed.missed.len() >= MAX_MISSED {
                observed.missed.remove(0);
            }
            observed.missed.push(file.match_key());
        });
        self.0.flush();
    }

    fn change(&self, ecosystem: &str, root: &Root, change: impl FnOnce(&mut Observed)) {
        if root.path.len() > MAX_PATH {
            return;
        }
        self.0.change_or((ecosystem.to_owned(), root.clone()), change, gives_way);
    }
}

/// Roots that are believed stay, and of the others the newest of whoever has most makes way.
fn gives_way(rows: &Rows<(String, Root), Observed>) -> Option<usize> {
    let known = |key| rows.known.get(key);
    let is_open = |key| known(key).is_some_and(|of| of.matched.len() < BELIEVED_AFTER);
    let any_open = rows.order.iter().any(is_open);
    let open = rows.order.iter().enumerate().filter(|(_, key)| !any_open || is_open(key));
    let (positions, lineages): (Vec<usize>, Vec<Lineage>) =
        open.map(|(at, (_, root))| (at, lineage(&root.origin, &root.path))).unzip();
    let places = lineages.iter().zip(&positions);
    let shares: Vec<Share<'_, Reverse<usize>>> =
        places.map(|(lineage, at)| Share { lineage, weight: 1, age: Reverse(*at) }).collect();
    first_to_go(&shares).and_then(|first| positions.get(first).copied())
}

#[cfg(test)]
mod tests {
    use super::super::table::MAX_ROWS;
    use super::super::{durable, hold};
    use super::*;
    use crate::digest::Algorithm;
    use std::path::Path;

    fn open(data: &Path) -> Conventions {
        Conventions::open(data.join("conventions")).unwrap()
    }

    fn root(path: &str) -> Root {
        Root::directory_of(&file(path))
    }

    fn file(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    fn digest(byte: u8) -> Digest {
        Digest::new(Algorithm::Blake2b256, &[byte; 32]).unwrap()
    }

    fn believe(conventions: &Conventions, root: &Root) {
        for byte in 0..3 {
            conventions.matched("pypi", root, &file(&format!("/{byte}")), &digest(byte));
        }
    }

    fn is_believed(conventions: &Conventions, root: &Root, path: &str) -> bool {
        conventions.of("pypi", root, &file(path)).is_believed()
    }

    #[test]
    fn a_root_is_believed_after_three_files_and_no_other_is() {
        let data = tempfile::tempdir().unwrap();
        let conventions = open(data.path());
        let (alice, mallory) = (root("/~alice/"), root("/~mallory/"));
        for _ in 0..9 {
            conventions.matched("pypi", &mallory, &file("/~mallory/x"), &digest(1));
        }
        assert!(!is_believed(&conventions, &mallory, "/~mallory/x"), "one file is one match");
        believe(&conventions, &mallory);
        assert!(is_believed(&conventions, &mallory, "/~mallory/x"));
        assert!(!is_believed(&conventions, &alice, "/~alice/x"));
        assert!(!conventions.of("oci", &mallory, &file("/~mallory/x")).is_believed());
    }

    #[test]
    fn a_miss_is_that_files_and_survives_a_crash() {
        let data = tempfile::tempdir().unwrap();
        let conventions = open(data.path());
        let at = root("/f/");
        conventions.missed("pypi", &at, &file("/f/odd"));
        let conventions = open(data.path());
        believe(&conventions, &at);
        assert!(is_believed(&conventions, &at, "/f/other"));
        assert!(!is_believed(&conventions, &at, "/f/odd"));
        // Once it is believed a mismatch is refused, and changes nothing.
        conventions.missed("pypi", &at, &file("/f/other"));
        assert!(is_believed(&conventions, &at, "/f/other"));
        // A file that keeps its name after all is held to it from then on.
        conventions.matched("pypi", &at, &file("/f/odd"), &digest(9));
        for conventions in [&conventions, &open(data.path())] {
            assert!(is_believed(conventions, &at, "/f/odd"));
        }
    }

    #[test]
    fn misses_are_few() {
        let data = tempfile::tempdir().unwrap();
        let conventions = open(data.path());
        let at = root("/f/");
        for number in 0..MAX_MISSED + 5 {
            conventions.missed("pypi", &at, &file(&format!("/f/{number}")));
        }
        assert!(!conventions.of("pypi", &at, &file("/f/0")).missed);
        assert!(conventions.of("pypi", &at, &file("/f/36")).missed);
        let long = root(&format!("/{}/", "a".repeat(MAX_PATH)));
        believe(&conventions, &long);
        assert_eq!(conventions.of("pypi", &long, &file("/x")), Convention::default());
    }

    #[test]
    fn what_version_1_counted_by_origin_is_dropped() {
        let data = tempfile::tempdir().unwrap();
        let old = Kind { version: 1, ..CONVENTIONS };
        let rows = vec![(("pypi".to_owned(), file("/").origin().clone()), (5_u64, 0_u64))];
        let bytes = super::super::sealed::seal(old, &rows).unwrap();
        let path = data.path().join("conventions");
        for bytes in [bytes, b"LcnV garbage".to_vec()] {
            durable::write(&path, &bytes, 0o600).unwrap();
            let conventions = open(data.path());
            assert_eq!(conventions.of("pypi", &root("/"), &file("/x")), Convention::default());
            believe(&conventions, &root("/"));
            conventions.0.flush();
            assert!(is_believed(&open(data.path()), &root("/"), "/x"));
        }
    }

    #[test]
    fn a_flood_of_roots_takes_bounded_room_and_nothing_from_a_neighbour() {
        let data = tempfile::tempdir().unwrap();
        let conventions = open(data.path());
        let match_one = |root: &Root, byte: u8| {
            conventions.matched("pypi", root, &file("/x"), &digest(byte));
        };
        let (old, new) = (root("/~old/"), root("/~new/"));
        believe(&conventions, &old);
        for number in 0..MAX_ROWS + 10 {
            match_one(&root(&format!("/~mallory/{number}/")), 1);
        }
        // Learnt while the table is full, beside the flood.
        for byte in 0..3 {
            match_one(&new, byte);
            for number in 0..3 {
                match_one(&root(&format!("/~mallory/{byte}{number}x/")), 1);
            }
        }
        assert!(is_believed(&conventions, &old, "/x") && is_believed(&conventions, &new, "/x"));
        let rows = hold(&conventions.0.rows);
        assert_eq!((rows.known.len(), rows.order.len()), (MAX_ROWS, MAX_ROWS));
    }
}
