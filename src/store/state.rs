//! `DATA/state`: what larder has learnt and must keep even if the cache is deleted.
//!
//! ```text
//! state/secret        32 random bytes, mode 0600: derives partitions from credentials
//! state/conventions   where a naming convention holds, per ecosystem and root (`conventions.rs`)
//! state/roots         the likely roots that an answer confirmed
//! state/signers       the fingerprints of the keys that signed for a root so far
//! state/vouchers      the keys with which larder ever proved something below a root, whether or not they are bound to it
//! state/dates         the newest date of each signed index, by its directory
//! state/successors    the only keys that may sign the next one, likewise
//! state/waiting       the missing keys of indexes whose signatures did not count, by the archive's root
//! state/expiries      until when the newest one is valid, likewise
//! state/in-force      the keys in force (`in_force.rs`)
//! state/census        package count and newest build date of each index without a date, by its directory
//! ```
//!
//! The tables live in memory, and [`State::flush`] writes those that changed. Some news is written at once, where
//! losing it would be worse than the write.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::conventions::Conventions;
use super::sealed::Kind;
use super::table::Table;
use super::{durable, hold};
use crate::claim::PackageCount;
use crate::clock::Time;
use crate::target::{Origin, Root, Target};

const ROOTS: Kind = Kind { magic: *b"LroT", version: 1 };
const SIGNERS: Kind = Kind { magic: *b"LsiG", version: 1 };
const VOUCHERS: Kind = Kind { magic: *b"LvoU", version: 1 };
const DATES: Kind = Kind { magic: *b"LdaT", version: 1 };
const SUCCESSORS: Kind = Kind { magic: *b"LsuC", version: 1 };
const WAITING: Kind = Kind { magic: *b"LwaI", version: 1 };
const EXPIRIES: Kind = Kind { magic: *b"LexP", version: 1 };
const CENSUS: Kind = Kind { magic: *b"LceN", version: 1 };

/// Maximum number of signing keys of one root. Archives change a key every few years.
const MAX_SIGNERS: usize = 64;

/// What larder has learnt.
#[derive(Debug)]
pub(super) struct State {
    secret: [u8; 32],
    pub(super) conventions: Conventions,
    roots: Table<(String, Root), ()>,
    signers: Table<Root, Vec<Box<str>>>,
    vouchers: Table<Root, Vec<Box<str>>>,
    /// Milliseconds since 1970.
    dates: Table<Root, i64>,
    successors: Table<Root, Vec<Box<str>>>,
    waiting: Table<Root, Vec<Box<str>>>,
    /// Milliseconds since 1970; `None` if it does not expire.
    expiries: Table<Root, Option<i64>>,
    census: Table<Root, Option<PackageCount>>,
}

impl State {
    /// Reads the state under `directory`. Missing or damaged files start empty.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        durable::directories(directory)?;
        Ok(Self {
            secret: secret(&directory.join("secret"))?,
            conventions: Conventions::open(directory.join("conventions"))?,
            roots: Table::open(directory.join("roots"), ROOTS)?,
            signers: Table::open(directory.join("signers"), SIGNERS)?,
            vouchers: Table::open(directory.join("vouchers"), VOUCHERS)?,
            dates: Table::open(directory.join("dates"), DATES)?,
            successors: Table::open(directory.join("successors"), SUCCESSORS)?,
            waiting: Table::open(directory.join("waiting"), WAITING)?,
            expiries: Table::open(directory.join("expiries"), EXPIRIES)?,
            census: Table::open(directory.join("census"), CENSUS)?,
        })
    }

    /// The secret for credential partitions.
    pub(super) fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// Whether an answer confirmed `root` as one of `ecosystem`.
    pub(super) fn is_confirmed(&self, ecosystem: &str, root: &Root) -> bool {
        self.roots.get(&(ecosystem.to_owned(), root.clone())).is_some()
    }

    /// Notes that an answer confirmed `root`.
    pub(super) fn confirm_root(&self, ecosystem: &str, root: &Root) {
        let news = !self.is_confirmed(ecosystem, root);
        self.roots.change((ecosystem.to_owned(), root.clone()), |()| {});
        if news {
            self.conventions.note_change();
        }
    }

    /// The keys that signed for `root` so far.
    pub(super) fn signers(&self, root: &Root) -> Vec<Box<str>> {
        self.signers.get(root).unwrap_or_default()
    }

    /// Notes that signatures by `signers` prove something below `root`. News is written at once: after a crash it must be known what
    /// to revoke when such a key is lost.
    pub(super) fn note_vouchers(&self, root: &Root, signers: &[Box<str>]) {
        let known = self.vouchers.get(root).unwrap_or_default();
        if signers.iter().all(|signer| known.contains(signer)) {
            return;
        }
        self.vouchers.change(root.clone(), |vouchers| add_signers(vouchers, signers));
        self.vouchers.flush();
    }

    /// Every root below which signatures prove something, with the keys that signed: those that are bound to it, and others.
    pub(super) fn vouchers(&self) -> HashMap<Root, Vec<Box<str>>> {
        let mut all: HashMap<Root, Vec<Box<str>>> = self.signers.all().into_iter().collect();
        for (root, vouchers) in self.vouchers.all() {
            all.entry(root).or_default().extend(vouchers);
        }
        all
    }

    /// The keys of the deepest such root above `target`; empty if there is none.
    pub(super) fn vouchers_above(&self, target: &Target) -> Vec<Box<str>> {
        let deepest = |table: &Table<Root, Vec<Box<str>>>| {
            let rows = hold(&table.rows);
            let above = rows.known.keys().filter(|root| root.covers(target));
            above.max_by_key(|root| root.path.len()).cloned()
        };
        let roots = [deepest(&self.signers), deepest(&self.vouchers)].into_iter().flatten();
        roots
            .max_by_key(|root| root.path.len())
            .map(|root| self.vouchers_of(&root))
            .unwrap_or_default()
    }

    /// The keys with which something below `root` was proven.
    pub(super) fn vouchers_of(&self, root: &Root) -> Vec<Box<str>> {
        let mut signers = self.signers(root);
        signers.extend(self.vouchers.get(root).unwrap_or_default());
        signers
    }

    /// Notes which keys signed for `root`. News is written at once: after a crash, an unknown key must not be taken for
    /// the root's first signer.
    pub(super) fn bind_signers(&self, root: &Root, signers: &[Box<str>]) {
        let known = self.signers(root);
        if signers.iter().all(|signer| known.contains(signer)) {
            return;
        }
        self.signers.change(root.clone(), |bound| add_signers(bound, signers));
        self.signers.flush();
    }

    /// Every root for which a signature was seen, with the keys that signed, sorted.
    pub(super) fn bindings(&self) -> Vec<(Root, Vec<Box<str>>)> {
        let mut bindings = self.signers.all();
        bindings.sort_unstable();
        bindings
    }

    /// Forgets the keys that signed for `root`, and what the indexes below it stated about themselves.
    pub(super) fn unbind(&self, root: &Root) -> Vec<Box<str>> {
        let gone = self.signers.remove(|known| known == root);
        let below =
            |known: &Root| known.origin == root.origin && known.path.starts_with(&*root.path);
        self.dates.remove(below);
        self.successors.remove(below);
        self.waiting.remove(below);
        self.expiries.remove(below);
        self.census.remove(below);
        self.flush();
        gone.into_iter().flat_map(|(_, signers)| signers).collect()
    }

    /// The newest date of the signed index in `directory`.
    pub(super) fn newest_date(&self, directory: &Root) -> Option<Time> {
        self.dates.get(directory).map(Time::from_millis)
    }

    /// The directories on `origin` in which dated, signed indexes were seen, most recent first.
    pub(super) fn snapshot_directories(&self, origin: &Origin) -> Vec<Root> {
        let rows = hold(&self.dates.rows);
        rows.order.iter().rev().filter(|directory| directory.origin == *origin).cloned().collect()
    }

    /// Notes the date of the signed index in `directory`.
    pub(super) fn note_date(&self, directory: &Root, date: Time) {
        if self.newest_date(directory) == Some(date) {
            return;
        }
        self.dates.change(directory.clone(), |newest| {
            *newest = (*newest).max(date.as_millis());
        });
        self.dates.flush();
    }

    /// The only keys that may sign the next index in `directory`; no restriction if empty.
    pub(super) fn successors(&self, directory: &Root) -> Vec<Box<str>> {
        self.successors.get(directory).unwrap_or_default()
    }

    /// Notes the only keys that may sign the next index in `directory`. News is written at once, as for the signers.
    pub(super) fn note_successors(&self, directory: &Root, successors: &[Box<str>]) {
        if self.successors(directory) != successors {
            self.successors.change(directory.clone(), |known| *known = successors.to_vec());
            self.successors.flush();
        }
    }

    /// The roots with an index that did not count because none of its signing keys may sign for the root, and the names
    /// of those keys.
    pub(super) fn waiting(&self) -> Vec<(Root, Vec<Box<str>>)> {
        let mut waiting = self.waiting.all();
        waiting.sort_unstable();
        waiting
    }

    /// Notes the keys that `root` waits for, replacing the earlier ones: the newest index decides. News is written at
    /// once, because the operator may be about to trust one of them.
    pub(super) fn note_waiting(&self, root: &Root, makers: &[Box<str>]) {
        let makers = makers.get(..MAX_SIGNERS).unwrap_or(makers);
        if makers.is_empty() {
            self.waiting.remove(|known| known == root);
        } else if self.waiting.get(root).is_none_or(|known| known != makers) {
            self.waiting.change(root.clone(), |known| *known = makers.to_vec());
            self.waiting.flush();
        }
    }

    /// From now on the key `signer` may sign for `root`, even if other successors were named.
    pub(super) fn let_sign(&self, root: &Root, signer: &str) {
        self.bind_signers(root, &[signer.into()]);
        let below =
            |known: &Root| known.origin == root.origin && known.path.starts_with(&*root.path);
        self.successors.remove(below);
        self.waiting.remove(|known| known == root);
        self.flush();
    }

    /// Until when the newest signed index in `directory` is valid.
    pub(super) fn valid_until(&self, directory: &Root) -> Option<Time> {
        self.expiries.get(directory).flatten().map(Time::from_millis)
    }

    /// Notes until when the newest signed index in `directory` is valid.
    pub(super) fn note_valid_until(&self, directory: &Root, until: Option<Time>) {
        if self.valid_until(directory) != until {
            self.expiries.change(directory.clone(), |known| *known = until.map(Time::as_millis));
        }
    }

    /// The package count of the index in `directory` when it was last read, and the newest build date that it ever
    /// listed.
    pub(super) fn census(&self, directory: &Root) -> Option<PackageCount> {
        self.census.get(directory)?
    }

    /// Notes the package count of the index in `directory`. The newest build date never goes back; only the count may
    /// fall.
    pub(super) fn note_package_count(&self, directory: &Root, census: PackageCount) {
        if self.census(directory) == Some(census) {
            return;
        }
        self.census.change(directory.clone(), |known| {
            let newest = known.map_or(census.newest, |known| known.newest.max(census.newest));
            *known = Some(PackageCount { newest, ..census });
        });
        self.census.flush();
    }

    /// Writes what changed.
    pub(super) fn flush(&self) {
        self.conventions.flush();
        self.roots.flush();
        self.signers.flush();
        self.vouchers.flush();
        self.dates.flush();
        self.successors.flush();
        self.waiting.flush();
        self.expiries.flush();
        self.census.flush();
    }
}

fn add_signers(known: &mut Vec<Box<str>>, signers: &[Box<str>]) {
    known.extend(signers.iter().cloned());
    known.sort_unstable();
    known.dedup();
    known.truncate(MAX_SIGNERS);
}

/// Reads the secret, or creates it. A secret of the wrong length is replaced. Private entries are then fetched again,
/// because their partitions can no longer be derived.
fn secret(path: &Path) -> io::Result<[u8; 32]> {
    let stored = durable::read(path, 32)?.and_then(|bytes| bytes.try_into().ok());
    if let Some(secret) = stored {
        return Ok(secret);
    }
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret)
        .map_err(|_| io::Error::other("the system gives no random bytes"))?;
    durable::write(path, &secret, 0o600)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::super::table::MAX_ROWS;
    use super::*;
    use crate::target::{Host, Scheme};
    use std::os::unix::fs::PermissionsExt as _;

    fn origin(host: &str) -> Origin {
        Origin { scheme: Scheme::Https, host: Host::parse(host).unwrap(), port: 443 }
    }

    #[test]
    fn the_secret_stays_and_is_closed_to_others() {
        let data = tempfile::tempdir().unwrap();
        let secret = State::open(data.path()).unwrap().secret();
        assert_eq!(State::open(data.path()).unwrap().secret(), secret);
        let path = data.path().join("secret");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        durable::write(&path, b"cut", 0o600).unwrap();
        assert_ne!(State::open(data.path()).unwrap().secret(), secret);
    }

    #[test]
    fn only_a_newly_confirmed_root_counts_as_a_change_to_conventions() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = Root { origin: origin("example.org"), path: "/simple/".into() };
        let before = state.conventions.changes();
        state.confirm_root("pypi", &root);
        let after = state.conventions.changes();
        assert!(after > before);
        state.confirm_root("pypi", &root);
        assert_eq!(state.conventions.changes(), after, "that is no news");
    }

    #[test]
    fn a_confirmed_root_is_known_after_a_flush() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = Root { origin: origin("example.org"), path: "/simple/".into() };
        state.confirm_root("pypi", &root);
        assert!(!State::open(data.path()).unwrap().is_confirmed("pypi", &root));
        state.flush();
        let again = State::open(data.path()).unwrap();
        assert!(again.is_confirmed("pypi", &root));
        assert!(!again.is_confirmed("apt", &root));
    }

    #[test]
    fn a_root_that_is_unbound_is_as_if_it_had_never_been_seen() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = |path: &str| Root { origin: origin("example.org"), path: path.into() };
        let made = Time::from_millis(5);
        for path in ["/debian/", "/other/"] {
            state.bind_signers(&root(path), &["A".into(), "B".into()]);
            state.note_date(&root(&format!("{path}dists/stable/")), made);
        }
        assert_eq!(state.unbind(&root("/debian/")), ["A".into(), "B".into()]);
        for state in [&state, &State::open(data.path()).unwrap()] {
            assert_eq!(state.bindings(), [(root("/other/"), vec!["A".into(), "B".into()])]);
            assert_eq!(state.newest_date(&root("/debian/dists/stable/")), None);
            assert_eq!(state.newest_date(&root("/other/dists/stable/")), Some(made));
        }
        assert!(state.unbind(&root("/debian/")).is_empty());
        // Its place in the order is gone as well, and it can be added again.
        state.bind_signers(&root("/debian/"), &["C".into()]);
        assert_eq!(State::open(data.path()).unwrap().bindings().len(), 2);
    }

    #[test]
    fn a_table_can_be_asked_while_it_is_written() {
        let data = tempfile::tempdir().unwrap();
        let state = std::sync::Arc::new(State::open(data.path()).unwrap());
        let root = Root { origin: origin("example.org"), path: "/debian/".into() };
        state.confirm_root("apt", &root);
        let (asked, free) = (std::sync::Arc::downgrade(&state), std::rc::Rc::default());
        let seen: std::rc::Rc<std::cell::RefCell<Vec<bool>>> = std::rc::Rc::clone(&free);
        durable::while_writing(Some(Box::new(move |_| {
            let state = asked.upgrade().unwrap();
            let free = state.roots.rows.try_lock().is_ok() && state.signers.rows.try_lock().is_ok();
            seen.borrow_mut().push(free);
        })));
        state.bind_signers(&root, &["A".into()]);
        state.flush();
        durable::while_writing(None);
        assert_eq!(*free.borrow(), [true, true]);
    }

    #[test]
    fn what_is_confirmed_again_is_not_written_again() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = |path: &str| Root { origin: origin("example.org"), path: path.into() };
        let path = data.path().join("roots");
        state.confirm_root("pypi", &root("/simple/"));
        state.flush();
        std::fs::remove_file(&path).unwrap();
        state.confirm_root("pypi", &root("/simple/"));
        state.flush();
        assert!(!path.exists());
        // The control: news is written.
        state.confirm_root("pypi", &root("/other/"));
        state.flush();
        assert!(State::open(data.path()).unwrap().is_confirmed("pypi", &root("/simple/")));
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(&data.path().join("state")).unwrap();
        let root = Root { origin: origin("example.org"), path: "/simple/".into() };
        state.confirm_root("pypi", &root);
        let (there, away) = (data.path().join("state"), data.path().join("away"));
        durable::rename(&there, &away).unwrap();
        durable::write(&there, b"in the way", 0o600).unwrap();
        state.flush();
        std::fs::remove_file(&there).unwrap();
        durable::rename(&away, &there).unwrap();
        assert!(!State::open(&there).unwrap().is_confirmed("pypi", &root));
        state.flush();
        assert!(State::open(&there).unwrap().is_confirmed("pypi", &root));
    }

    #[test]
    fn a_flood_of_roots_takes_nothing_from_those_that_are_known() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = |host: &str, path: &str| Root { origin: origin(host), path: path.into() };
        let (known, signer) = (root("example.org", "/debian/"), Box::from("A"));
        let suite = root("example.org", "/debian/dists/stable/");
        let learn = |root: &Root, number: usize| {
            // As `bind_signers` and `note_date` do, but without writing a file each time.
            state.signers.change(root.clone(), |bound| bound.push(Box::clone(&signer)));
            state.dates.change(root.clone(), |newest| *newest = i64::try_from(number).unwrap());
        };
        state.bind_signers(&known, std::slice::from_ref(&signer));
        state.note_date(&suite, Time::from_millis(5));
        // An attacker's own Release, under other paths of the same host and on hosts of the attacker's.
        for number in 0..MAX_ROWS + 10 {
            learn(&root("example.org", &format!("/{number}/")), number);
            learn(&root(&format!("a{number}.example.org"), "/"), number);
        }
        assert_eq!(state.signers(&known), std::slice::from_ref(&signer));
        assert_eq!(state.newest_date(&suite), Some(Time::from_millis(5)));
        assert!(state.snapshot_directories(&known.origin).contains(&suite));
        assert_eq!(hold(&state.signers.rows).order.len(), MAX_ROWS);
        // The last one is known, too, until another one comes.
        let last = root("last.example.org", "/");
        state.bind_signers(&last, std::slice::from_ref(&signer));
        assert_eq!(state.signers(&last), [signer]);
    }

    #[test]
    fn what_is_unbound_leaves_nothing_behind() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = Root { origin: origin("example.org"), path: "/main/".into() };
        let census = PackageCount { packages: 9, newest: Time::from_millis(9) };
        let made = Time::from_millis(5);
        state.bind_signers(&root, &["A".into()]);
        state.note_valid_until(&root, Some(made));
        state.note_package_count(&root, census);
        assert_eq!((state.valid_until(&root), state.census(&root)), (Some(made), Some(census)));
        state.unbind(&root);
        for state in [&state, &State::open(data.path()).unwrap()] {
            assert_eq!((state.valid_until(&root), state.census(&root)), (None, None));
        }
    }

    #[test]
    fn a_damaged_table_begins_anew() {
        let data = tempfile::tempdir().unwrap();
        let state = State::open(data.path()).unwrap();
        let root = Root { origin: origin("example.org"), path: "/simple/".into() };
        state.bind_signers(&root, &["A".into()]);
        assert!(!State::open(data.path()).unwrap().signers(&root).is_empty());
        durable::write(&data.path().join("signers"), b"LsiG garbage", 0o600).unwrap();
        assert!(State::open(data.path()).unwrap().signers(&root).is_empty());
    }
}
