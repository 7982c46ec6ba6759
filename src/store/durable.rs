//! Writes files so that after a crash they are either complete or absent.
//!
//! A file is written under a temporary name, synced and renamed; then its directory is synced. Without the first sync a
//! power cut may leave an empty file under the name; without the second it may lose the name. Start-up removes
//! temporary files. Missing directories are created, because the operator may delete the cache while larder runs.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the one module that renames files into place"
)]

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// File name extension of temporary files.
pub(super) const TEMPORARY: &str = ".tmp";

/// Gives each writer its own temporary name, even for the same path.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to `path` with permissions `mode`. Afterwards the file holds either `bytes` or its former contents.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{turn}{TEMPORARY}"));
    let written = create(&temporary, mode)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            #[cfg(test)]
            tell(path);
            file.sync_all()
        })
        .and_then(|()| rename(&temporary, path))
        .and_then(|()| sync_directory_of(path));
    if written.is_err() {
        remove(&temporary)?;
    }
    written.map_err(|error| naming(path, &error))
}

#[cfg(test)]
type Listener = Box<dyn Fn(&Path)>;

#[cfg(test)]
thread_local! {
    static LISTENER: std::cell::RefCell<Option<Listener>> = const { std::cell::RefCell::new(None) };
}

/// Calls `listener` while this thread writes a file, so that a test can check which locks are held.
#[cfg(test)]
pub(super) fn while_writing(listener: Option<Listener>) {
    LISTENER.with_borrow_mut(|current| *current = listener);
}

#[cfg(test)]
fn tell(path: &Path) {
    LISTENER.with_borrow(|listener| listener.iter().for_each(|listener| listener(path)));
}

/// Creates a file for reading and writing, and any missing directories above it.
pub(super) fn create(path: &Path, mode: u32) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            directories(path.parent().unwrap_or(path))?;
            open()
        }
        opened => opened,
    }
    .map_err(|error| naming(path, &error))
}

/// Renames a synced file to its final name. The caller syncs the directory.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        // Either the source or the target's directory is missing; if it is the source, the second attempt fails as
        // well.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            directories(to.parent().unwrap_or(to))?;
            fs::rename(from, to)
        }
        renamed => renamed,
    }
    .map_err(|error| naming(to, &error))
}

/// Syncs the directory of `path`, so that its names survive a power cut.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| naming(directory, &error))
}

/// Creates a directory and those above it with mode 0700: other users must not read the cache.
pub(super) fn directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        directories(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(naming(path, &error)),
        _ if parent.is_some() => sync_directory_of(path),
        _ => Ok(()),
    }
}

/// Removes a file; `false` if there was none.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(naming(path, &error)),
    }
}

/// Reads a file of at most `limit` bytes; `None` if it is missing or longer.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    match open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)) {
        Ok(length) => Ok((length as u64 <= limit).then_some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(naming(path, &error)),
    }
}

/// Opens a file for reading.
pub(super) fn open(path: &Path) -> io::Result<File> {
    fail_as_told(path)?;
    File::open(path)
}

/// Lists a directory; empty if it is missing. Returns all entries or an error: a caller that took a partial list for
/// the whole would remove what the missing part names.
pub(super) fn list(directory: &Path) -> io::Result<Vec<DirEntry>> {
    match fail_as_told(directory).and_then(|()| directory.read_dir()?.collect()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| naming(directory, &error)),
    }
}

/// Whether an error means that a file is damaged or gone: its bytes are not those that were written, it ends too early,
/// or it does not exist. Any other error (no free file descriptor, a disk that does not respond, no permission) tells
/// nothing about the stored bytes, so nothing may be removed or forgotten because of it.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

/// Whether an error may be transient, so that the operation should be retried and proves nothing. Decoders use the
/// other kinds to report malformed input.
pub fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    !matches!(
        error.kind(),
        Kind::InvalidData
            | Kind::InvalidInput
            | Kind::UnexpectedEof
            | Kind::NotFound
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::Unsupported
            | Kind::Other
    )
}

/// Lets a test make reads fail; does nothing in other builds.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in a test it fails")]
pub(super) const fn fail_as_told(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) fn fail_as_told(path: &Path) -> io::Result<()> {
    FAILING.with_borrow(|failing| match failing {
        Some(fails) if fails(path) => {
            // EMFILE: the process has no free file descriptor.
            Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
        }
        _ => Ok(()),
    })
}

#[cfg(test)]
type Fails = Box<dyn Fn(&Path) -> bool>;

#[cfg(test)]
thread_local! {
    static FAILING: std::cell::RefCell<Option<Fails>> = const { std::cell::RefCell::new(None) };
}

/// From now on this thread cannot read the files for which `fails` is true, as if it had no free file descriptor.
#[cfg(test)]
pub(super) fn failing(fails: Option<Fails>) {
    FAILING.with_borrow_mut(|current| *current = fails);
}

/// Adds the path to an error: "permission denied" alone does not help the operator.
pub(super) fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_replaces_its_elder_and_leaves_nothing_beside_it() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("a/b/file");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(read(&path, 2).unwrap(), None);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn an_error_names_the_file() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("taken")).unwrap();
        let error = write(&data.path().join("taken"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }
}
