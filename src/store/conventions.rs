//! Learns, per root, where files follow a naming convention (a digest in the name) that no protocol enforces.
//!
//! Below a root where three files matched the digests in their names, the convention is believed: there it selects and
//! refuses bytes. A file that did not match before that does not count against its neighbours, because otherwise
//! whoever controls one file of a directory could switch the convention off for all. That file alone is remembered as
//! one whose name proves nothing.
//!
//! ```text
//! root ─▶ the digests of up to three different files that matched, and the files that did not
//! ```

use std::cmp::Reverse;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::fair::{Lineage, Share, first_to_go, lineage};
use super::sealed::Kind;
use super::table::{Rows, Table};
use crate::digest::Digest;
use crate::target::{MatchKey, Root, Target};

/// Version 1 counted by origin, so that one tenant of an origin could decide for all. Its files are dropped, and
/// conventions are learnt again per root.
const CONVENTIONS: Kind = Kind { magic: *b"LcnV", version: 2 };

/// How many different files must match below a root before the convention is believed there.
const BELIEVED_AFTER: usize = 3;

/// Maximum number of mismatching files remembered per root. A root that follows the convention has none. A root that
/// does not follow it becomes believed only if somebody crafts matching files.
const MAX_MISSED: usize = 32;

/// Maximum length of a root's path in bytes. Nothing is learnt below longer ones, which bounds the file.
const MAX_PATH: usize = 1024;

/// What was observed below one root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Observed {
    /// The first bytes of the digests that matched. One file that is fetched three times counts as one observation.
    matched: Vec<[u8; 8]>,
    /// The files that did not match.
    missed: Vec<MatchKey>,
}

/// What is known about the name of a file below a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Convention {
    /// How many different files matched below the root, at most as many as are needed.
    pub matched: usize,
    /// Whether this file itself once did not match.
    pub missed: bool,
}

impl Convention {
    /// Whether the digest in the name selects and refuses bytes.
    pub fn is_believed(self) -> bool {
        self.matched >= BELIEVED_AFTER && !self.missed
    }
}

/// The conventions of every ecosystem.
#[derive(Debug)]
pub(super) struct Conventions {
    table: Table<(String, Root), Observed>,
    /// How many observations there were since the start.
    changes: AtomicU64,
}

impl Conventions {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { table: Table::open(path, CONVENTIONS)?, changes: AtomicU64::new(0) })
    }

    /// Writes what changed.
    pub(super) fn flush(&self) {
        self.table.flush();
    }

    /// What else decides whether names are believed has changed.
    pub(super) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that is higher after each observation that is news.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What is known about the name of `file`, whose convention `ecosystem` counts below `root`.
    pub(super) fn of(&self, ecosystem: &str, root: &Root, file: &Target) -> Convention {
        let observed = self.table.get(&(ecosystem.to_owned(), root.clone())).unwrap_or_default();
        let missed = observed.missed.contains(&file.match_key());
        Convention { matched: observed.matched.len(), missed }
    }

    /// Notes that `file` matches the digest in its name. Clears an earlier mismatch, which was about other bytes.
    pub(super) fn matched(&self, ecosystem: &str, root: &Root, file: &Target, named: &Digest) {
        let mut start = [0; 8];
        for (to, from) in start.iter_mut().zip(named.as_bytes()) {
            *to = *from;
        }
        let key = file.match_key();
        let known = self.of(ecosystem, root, file);
        if known.is_believed() {
            // This is no news. A change would make every body that is arriving look up its promises again.
            return;
        }
        let cleared = known.missed;
        self.change(ecosystem, root, |observed| {
            observed.missed.retain(|missed| *missed != key);
            if observed.matched.len() < BELIEVED_AFTER && !observed.matched.contains(&start) {
                observed.matched.push(start);
            }
        });
        if cleared {
            self.table.flush();
        }
    }

    /// Notes that `file` does not match the digest in its name, unless that is known or the convention is believed
    /// below the root: there a mismatch is refused and is no evidence against the name. News is written at once, so
    /// that the file is not refused by its name after a crash.
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
        self.table.flush();
    }

    fn change(&self, ecosystem: &str, root: &Root, change: impl FnOnce(&mut Observed)) {
        if root.path.len() > MAX_PATH {
            return;
        }
        self.table.change_or((ecosystem.to_owned(), root.clone()), change, gives_way);
        self.note_change();
    }
}

/// Picks the row to drop: believed roots stay. Of the others the newest of the branch with the most rows goes.
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
    fn only_news_counts_as_a_change() {
        let data = tempfile::tempdir().unwrap();
        let conventions = open(data.path());
        let at = root("/f/");
        conventions.missed("pypi", &at, &file("/f/odd"));
        believe(&conventions, &at);
        let before = conventions.changes();
        conventions.matched("pypi", &at, &file("/f/other"), &digest(7));
        assert_eq!(conventions.changes(), before);
        conventions.matched("pypi", &at, &file("/f/odd"), &digest(9));
        assert!(conventions.changes() > before, "the control");
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
        // Once the convention is believed, a mismatch is refused and changes nothing.
        conventions.missed("pypi", &at, &file("/f/other"));
        assert!(is_believed(&conventions, &at, "/f/other"));
        // A file that matches its name after all is held to it from then on.
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
            conventions.table.flush();
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
        // Learnt while the table is full and the flood goes on.
        for byte in 0..3 {
            match_one(&new, byte);
            for number in 0..3 {
                match_one(&root(&format!("/~mallory/{byte}{number}x/")), 1);
            }
        }
        assert!(is_believed(&conventions, &old, "/x") && is_believed(&conventions, &new, "/x"));
        let rows = hold(&conventions.table.rows);
        assert_eq!((rows.known.len(), rows.order.len()), (MAX_ROWS, MAX_ROWS));
    }
}
