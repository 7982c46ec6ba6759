//! Which of the keys that were in force before are lost, and which are only missing.
//!
//! A key is *lost* when it is not where it was found, and that place can be read: its file was deleted or replaced, a copy
//! revokes it, or the place is not among the configured ones any more. What it alone proved is then revoked. A key is *missing* when
//! its place cannot be read: an I/O error, a damaged file, a directory that is gone, or an empty directory to which fewer mounts
//! lead than before. Device numbers tell nothing: they change with a restart, and with a new image of a container. A missing key
//! proves nothing new, because larder does not have it. What it proved stays until its place can be read again, or until the
//! operator says that it is gone.
//!
//! Two cases are told apart by what they leave: a file without a byte holds no key, and the operator's own directory, which
//! larder makes, was deleted if it is gone while the directory above it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Keyring, Source};

/// The keys in force, and where they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Each key, by its identifier in [`Keyring::signers`], with the files that held it: none if it is built in, or if the operator
    /// said that it is gone. `None` if an earlier larder noted it, without its files.
    pub keys: BTreeMap<Box<str>, Option<BTreeSet<String>>>,
    /// How many mounts led to each directory in which keys were looked for.
    pub directories: BTreeMap<String, u64>,
}

/// Where keys were looked for, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// The files and directories that the configuration names.
    pub(super) named: BTreeSet<PathBuf>,
    /// The operator's own directory.
    pub(super) own: Option<PathBuf>,
    /// The directories that could be read: how many mounts lead there, and whether files of keys are there.
    pub(super) directories: BTreeMap<PathBuf, (u64, bool)>,
    /// The named files and directories that are not there.
    pub(super) absent: BTreeSet<PathBuf>,
    /// The files that could not be read or understood.
    pub(super) unreadable: BTreeSet<PathBuf>,
    /// Whether something could not be read that may be readable again, while it is unknown which keys it held.
    pub(super) unread: bool,
}

impl Looked {
    /// Whether the key that was found in the file at `path` may still be there.
    fn may_hold(&self, path: &Path, before: &InForce) -> bool {
        let Some(directory) = path.parent() else { return false };
        if !self.named.contains(path) && !self.named.contains(directory) {
            return false;
        }
        if self.unreadable.contains(path) || self.unreadable.contains(directory) {
            return true;
        }
        let Some((mounts, has_files)) = self.directories.get(directory) else {
            let is_own = self.own.as_deref() == Some(directory);
            return !(is_own && self.absent.contains(directory));
        };
        let was = before.directories.get(&shown(directory));
        !has_files && was.is_some_and(|was| was > mounts)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Keyring {
    /// Compares the keys with those in force before, so that [`Keyring::missing`] is known. Without those, no key counts as missing.
    pub(super) fn compare(&mut self, before: Option<&InForce>) {
        let Some(before) = before else { return };
        let (signers, revoked) = (self.signers(), self.revoked());
        // Who revokes a key revokes its parts, also in a copy that lacks them.
        let is_revoked = |key: &str| {
            revoked.contains(key) || key.split('.').next().is_some_and(|key| revoked.contains(key))
        };
        let gone =
            before.keys.iter().filter(|(key, _)| !signers.contains(*key) && !is_revoked(key));
        let mut missing = BTreeMap::new();
        for (key, places) in gone {
            let at = match places {
                Some(places) => {
                    let mut places = places.iter();
                    places.find(|at| self.looked.may_hold(Path::new(at), before)).cloned()
                }
                None => self.looked.unread.then(String::new),
            };
            if let Some(at) = at {
                missing.insert(key.clone(), at);
            }
        }
        self.missing = missing;
        self.looked.unread = false;
    }

    /// The keys that were in force and cannot be read now, each with the file that held it; empty if that was not noted.
    pub fn missing(&self) -> &BTreeMap<Box<str>, String> {
        &self.missing
    }

    /// The keys whose signatures on what is stored count: those that are trusted, and those that are missing.
    pub fn standing(&self) -> BTreeSet<Box<str>> {
        let mut standing = self.signers();
        standing.extend(self.missing.keys().cloned());
        standing
    }

    /// What to note of the keys in force: these, and of those that were in force before the missing ones and those that `keep` selects.
    pub fn in_force(&self, before: &InForce, keep: impl Fn(&str) -> bool) -> InForce {
        let kept = |key: &str| self.missing.contains_key(key) || keep(key);
        let mut keys: BTreeMap<_, _> = before
            .keys
            .iter()
            .filter(|(key, _)| kept(key))
            .map(|(key, places)| (key.clone(), places.clone()))
            .collect();
        let mut found: BTreeMap<Box<str>, BTreeSet<String>> = BTreeMap::new();
        for (key, source) in self.rings().iter().flat_map(|ring| ring.signers()) {
            let place = match source {
                Source::BuiltIn(_) => None,
                Source::System(file) | Source::Operator(file) => Some(file.clone()),
            };
            found.entry(key.0).or_default().extend(place);
        }
        keys.extend(found.into_iter().map(|(key, places)| (key, Some(places))));
        let mut directories = before.directories.clone();
        let awaited: BTreeSet<_> =
            self.missing.values().filter_map(|at| Path::new(at).parent()).collect();
        let read = self.looked.directories.iter().filter(|(path, _)| !awaited.contains(&***path));
        directories.extend(read.map(|(path, (mounts, _))| (shown(path), *mounts)));
        InForce { keys, directories }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a key file is changed as by its owner")]
mod tests {
    use super::*;
    use crate::config::Keys;

    const KEYS: &[u8] = include_bytes!("data/npm.json");

    struct World {
        dir: tempfile::TempDir,
        config: Keys,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Keys { built_in: false, system: vec![dir.path().join("system")] };
            let world = Self { dir, config };
            for directory in ["system", "state/keys"] {
                std::fs::create_dir_all(world.path(directory)).unwrap();
            }
            world
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.path(name), bytes).unwrap();
        }

        fn keyring(&self, before: Option<&InForce>) -> Keyring {
            Keyring::trusted(&self.config, &self.path("state"), before)
        }

        /// The file with the keys is at `at`, and then `lose` happens. Whether all keys are missing; otherwise all are lost.
        fn misses(at: &str, lose: impl FnOnce(&mut Self, &mut InForce)) -> bool {
            let mut world = Self::new();
            world.put(at, KEYS);
            let first = world.keyring(None);
            let mut before = first.in_force(&InForce::default(), |_| false);
            assert!(!first.is_empty() && before.keys.len() == first.signers().len());
            let same = world.keyring(Some(&before));
            assert!(same.missing().is_empty() && same.signers() == first.signers(), "the control");
            lose(&mut world, &mut before);
            let now = world.keyring(Some(&before));
            assert!(now.is_empty() && now.is_whole());
            let missing = now.missing().len();
            assert!(missing == 0 || missing == before.keys.len());
            let next = now.in_force(&before, |_| false);
            assert_eq!(now.missing(), world.keyring(Some(&next)).missing(), "as long as it lasts");
            missing > 0
        }
    }

    const FILE: &str = "system/keys.json";

    fn on_a_mount(before: &mut InForce) {
        before.directories.values_mut().for_each(|mounts| *mounts += 1);
    }

    #[test]
    fn a_key_whose_file_cannot_be_read_is_missing() {
        assert!(World::misses(FILE, |world, _| world.put(FILE, b"garbage")));
        assert!(World::misses(FILE, |world, _| {
            std::fs::remove_file(world.path(FILE)).unwrap();
            // Nobody can open a link to itself.
            std::os::unix::fs::symlink(world.path(FILE), world.path(FILE)).unwrap();
        }));
        assert!(World::misses(FILE, |world, _| {
            std::fs::rename(world.path("system"), world.path("aside")).unwrap();
        }));
        // A mount point whose file system is not mounted; also the operator's own directory.
        for at in [FILE, "state/keys/keys.json"] {
            assert!(World::misses(at, |world, before| {
                std::fs::remove_file(world.path(at)).unwrap();
                on_a_mount(before);
            }));
        }
    }

    #[test]
    fn a_key_that_is_not_where_it_was_is_lost() {
        assert!(!World::misses(FILE, |world, _| std::fs::remove_file(world.path(FILE)).unwrap()));
        assert!(!World::misses(FILE, |world, _| world.put(FILE, b"")));
        assert!(!World::misses(FILE, |world, _| world.config.system.clear()));
        let own = "state/keys/keys.json";
        assert!(!World::misses(own, |world, _| {
            std::fs::remove_dir_all(world.path("state/keys")).unwrap();
        }));
        // Another image of the same system: the directory is there.
        assert!(!World::misses(FILE, |world, before| {
            std::fs::remove_file(world.path(FILE)).unwrap();
            world.put("system/other.gpg", b"");
            on_a_mount(before);
        }));
        // The operator said so.
        assert!(!World::misses(FILE, |world, before| {
            world.put(FILE, b"garbage");
            before.keys.values_mut().for_each(|places| *places = Some(BTreeSet::new()));
        }));
    }

    #[test]
    fn a_file_that_the_configuration_names_was_deleted_if_its_directory_is_there() {
        let named = |world: &mut World| world.config.system = vec![world.path(FILE)];
        for vanishes in [false, true] {
            let mut world = World::new();
            world.put(FILE, KEYS);
            named(&mut world);
            let before = world.keyring(None).in_force(&InForce::default(), |_| false);
            if vanishes {
                std::fs::remove_dir_all(world.path("system")).unwrap();
            } else {
                std::fs::remove_file(world.path(FILE)).unwrap();
            }
            let now = world.keyring(Some(&before));
            assert!(now.is_empty());
            assert_eq!(now.missing().is_empty(), !vanishes);
        }
    }

    /// An earlier larder did not note where it found a key.
    #[test]
    fn a_key_from_an_unknown_place_is_missing_only_while_a_file_cannot_be_read() {
        let world = World::new();
        let keys = BTreeMap::from([("A".into(), None)]);
        let before = InForce { keys, ..InForce::default() };
        assert!(world.keyring(Some(&before)).missing().is_empty());
        std::os::unix::fs::symlink(world.path(FILE), world.path(FILE)).unwrap();
        assert!(world.keyring(Some(&before)).missing().contains_key("A"));
        assert!(!world.keyring(None).is_whole(), "the control");
    }
}
