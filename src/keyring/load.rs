//! Loads keys from files: the compiled-in ones, the system's and the operator's.
//!
//! A file that is not a keyring is logged and skipped: a package may put any file into these directories, and one bad
//! file must not disable the other keys.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::kind::Contents;
use super::{InForce, KINDS, Keyring, MAX_FILE, NotKeys, Source, contents};
use crate::config::Keys;

/// The maximum number of files read from one directory.
const MAX_FILES: usize = 1024;

/// The suffix of apt's source lists (deb822), which may embed an archive's key. Most do not.
const SOURCES: &str = ".sources";

/// Part of the names of keyrings of revoked or expired keys, which distributions ship for reading old archives.
const REMOVED: &str = "removed-keys";

/// The directory of the operator's keys, below the state directory `state`.
pub fn operators(state: &Path) -> PathBuf {
    state.join("keys")
}

impl Keyring {
    /// Every key that larder trusts: those that `config` names, and the operator's below the state directory `state`. `before`: the
    /// keys that were in force, if that is known; they tell which keys are [missing](Self::missing). Blocking.
    pub fn trusted(config: &Keys, state: &Path, before: Option<&InForce>) -> Self {
        let mut keyring = if config.built_in { Self::built_in() } else { Self::new() };
        for path in &config.system {
            keyring.add_path(path, Source::System);
        }
        keyring.looked.own = Some(operators(state));
        keyring.add_path(&operators(state), Source::Operator);
        keyring.compare(before);
        keyring
    }

    /// The keys compiled in. A container has no keyrings, and without keys larder could store nothing that comes over plain
    /// HTTP.
    pub fn built_in() -> Self {
        let mut keyring = Self::new();
        for kind in KINDS {
            kind.add_built_in(&mut keyring);
        }
        keyring
    }

    /// Adds the keys in the compiled-in file `bytes`.
    pub(super) fn add_built_in(&mut self, whose: &str, bytes: &[u8]) {
        let source = Source::BuiltIn(whose.to_owned());
        if let Err(error) = self.read(bytes, whose, &source) {
            tracing::error!(%source, %error, "these keys are left out");
        }
    }

    /// Adds the keys of a file, or of the files of a directory in the order of their names. A missing path adds no
    /// keys. Blocking.
    pub fn add_path(&mut self, path: &Path, whose: impl Fn(String) -> Source) {
        self.looked.named.insert(path.to_owned());
        // Of a file that the configuration names, the directory tells whether it was deleted.
        if let Some(parent) = path.parent()
            && let Ok(mounts) = mounts(parent)
        {
            self.looked.directories.entry(parent.to_owned()).or_insert((mounts, false));
        }
        let found = self.files_at(path).unwrap_or_else(|error| {
            if is_gone(&error) {
                self.looked.absent.insert(path.to_owned());
            } else {
                self.looked.unread |= may_pass(&error);
                self.looked.unreadable.insert(path.to_owned());
                tracing::warn!(path = %path.display(), %error, "the keys here cannot be read");
            }
            Vec::new()
        });
        for path in found {
            let added = self.add_file(&path, &whose(path.display().to_string()));
            let keyless = path.to_string_lossy().ends_with(SOURCES);
            match added {
                Ok(_) => {}
                Err(NotKeys::Io(error)) if is_gone(&error) => {}
                Err(NotKeys::Other | NotKeys::Empty) if keyless => {}
                Err(error) => {
                    self.looked.unread |= matches!(&error, NotKeys::Io(error) if may_pass(error));
                    // A file without a byte was read, and holds no key.
                    if !matches!(error, NotKeys::Empty) {
                        self.looked.unreadable.insert(path.clone());
                    }
                    tracing::warn!(path = %path.display(), %error, "this file of keys is left out");
                }
            }
        }
    }

    /// The files that may hold keys at `path`: itself, or those in it.
    fn files_at(&mut self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if path.metadata()?.is_dir() {
            let found = files(path)?;
            self.looked.directories.insert(path.to_owned(), (mounts(path)?, !found.is_empty()));
            return Ok(found);
        }
        Ok(vec![path.to_owned()])
    }

    /// Adds the keys of a file; returns their number. Blocking.
    pub fn add_file(&mut self, path: &Path, source: &Source) -> Result<usize, NotKeys> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let contents = contents::read(&bytes_of(path)?, &name)?;
        if contents.damaged {
            self.looked.unreadable.insert(path.to_owned());
        }
        Ok(self.add(contents, source))
    }

    /// Adds the keys in the content of a file called `name`; returns their number. Of a damaged file, the readable keys
    /// are added.
    pub fn read(&mut self, bytes: &[u8], name: &str, source: &Source) -> Result<usize, NotKeys> {
        Ok(self.add(contents::read(bytes, name)?, source))
    }

    fn add(&mut self, Contents { keys, .. }: Contents, source: &Source) -> usize {
        let added = keys.len();
        for key in keys {
            key.add_to(self, source);
        }
        added
    }
}

/// The bytes of a file that may hold keys. Blocking.
pub fn bytes_of(path: &Path) -> Result<Vec<u8>, NotKeys> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(NotKeys::TooLong);
    }
    Ok(bytes)
}

/// The files in a directory that may hold keys, sorted by name. Blocking.
pub fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for file in directory.read_dir()? {
        let path = file?.path();
        if paths.len() < MAX_FILES && may_hold_keys(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn may_hold_keys(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        // A file whose name begins with a dot is still being written.
        let mut suffixes = KINDS.iter().flat_map(|kind| kind.suffixes());
        (name.ends_with(SOURCES) || suffixes.any(|suffix| name.ends_with(suffix)))
            && !name.contains(REMOVED)
            && !name.starts_with('.')
    })
}

/// How many mounted file systems, one below the other, lead to a directory.
fn mounts(directory: &Path) -> io::Result<u64> {
    mounts_above(&directory.canonicalize()?, |at| Ok(at.metadata()?.dev()))
}

fn mounts_above(directory: &Path, device: impl Fn(&Path) -> io::Result<u64>) -> io::Result<u64> {
    let devices: Vec<u64> = directory.ancestors().map(device).collect::<io::Result<_>>()?;
    let pairs = devices.iter().zip(devices.iter().skip(1));
    Ok(pairs.map(|(below, above)| u64::from(below != above)).sum())
}

/// Whether an error means that there is no such file; any other error tells nothing about what it holds.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory)
}

/// Whether the keys behind an error may be trusted all the same, because they could be read before and will be again. A file that
/// larder is not allowed to read is none of its keys: it would keep larder from ever taking anything back.
fn may_pass(error: &io::Error) -> bool {
    !is_gone(error) && error.kind() != io::ErrorKind::PermissionDenied
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device numbers change with a restart of the machine, and with a new image of a container.
    #[test]
    fn a_mount_is_told_by_the_devices_above_a_directory_and_not_by_their_numbers() {
        let mounts = |devices: [u64; 3]| {
            let device = |at: &Path| Ok(devices[at.components().count() - 1]);
            mounts_above(Path::new("/a/keys"), device).unwrap()
        };
        assert_eq!(mounts([1, 1, 1]), mounts([9, 9, 9]));
        assert_eq!(mounts([1, 1, 2]), mounts([9, 9, 7]));
        assert!(mounts([1, 1, 2]) > mounts([1, 1, 1]));
        assert!(mounts([1, 2, 3]) > mounts([1, 2, 2]));
    }

    #[test]
    fn a_keyring_is_not_whole_only_if_a_file_may_be_readable_again() {
        for (kind, whole) in [
            (io::ErrorKind::NotFound, true),
            (io::ErrorKind::PermissionDenied, true),
            (io::ErrorKind::StaleNetworkFileHandle, false),
            (io::ErrorKind::TimedOut, false),
        ] {
            assert_eq!(!may_pass(&io::Error::from(kind)), whole, "{kind:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.gpg");
        let whole = || {
            let mut keyring = Keyring::new();
            keyring.add_path(dir.path(), Source::System);
            keyring.is_whole()
        };
        assert!(whole(), "the control");
        // Nobody can open a link to itself.
        std::os::unix::fs::symlink(&file, &file).unwrap();
        assert!(!whole());
    }
}
