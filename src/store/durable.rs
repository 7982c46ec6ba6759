//! How files are made so that they survive a crash: whole, or not at all.
//!
//! A file is written under a temporary name, synced, renamed, and its directory is synced: without the first sync a
//! power cut may leave the name with an empty file, without the second the file without its name. Start-up removes
//! temporary names. Directories are made when they are missed, because whoever runs larder may delete the cache while
//! it runs.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the one module that renames files into place"
)]

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How temporary names end.
pub(super) const TEMPORARY: &str = ".tmp";

/// Makes two writers of one path use two temporary names.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Puts `bytes` at `path`, with permissions `mode`: afterwards it holds either these or what it held before.
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

/// Lets a test look at the locks while this thread writes a file.
#[cfg(test)]
pub(super) fn while_writing(listener: Option<Listener>) {
    LISTENER.with_borrow_mut(|current| *current = listener);
}

#[cfg(test)]
fn tell(path: &Path) {
    LISTENER.with_borrow(|listener| listener.iter().for_each(|listener| listener(path)));
}

/// A new file for reading and writing; the directories above it are made if they are missing.
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

/// Gives a synced file its final name. The caller syncs the directory.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        // Either name may be what is missing; a missing source fails again.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            directories(to.parent().unwrap_or(to))?;
            fs::rename(from, to)
        }
        renamed => renamed,
    }
    .map_err(|error| naming(to, &error))
}

/// Makes the names in the directory of `path` survive a power cut.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| naming(directory, &error))
}

/// Makes a directory and those above it, closed to others: the cache of one user's build is nobody else's reading.
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

/// Reads a file of at most `limit` bytes; `None` if there is none, or it is longer.
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

/// What a directory holds; nothing if there is none. All of it or an error: whoever takes a part for the whole would remove
/// what the other part names.
pub(super) fn list(directory: &Path) -> io::Result<Vec<DirEntry>> {
    match fail_as_told(directory).and_then(|()| directory.read_dir()?.collect()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| naming(directory, &error)),
    }
}

/// Whether an error says that a file is damaged or gone: its bytes are not those that were written, they end too early, or
/// there is no such file. Any other error (no descriptor left, a disk that does not answer, no permission) says nothing of
/// what is stored, and nothing may be removed or forgotten because of it.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

/// Whether an error may pass by itself, so that what failed is to be tried again and nothing concluded from it. Decoders
/// report what is wrong with what they read by the other kinds.
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

/// Lets a test make reads fail; nothing in a release.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in a test it fails")]
pub(super) const fn fail_as_told(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) fn fail_as_told(path: &Path) -> io::Result<()> {
    FAILING.with_borrow(|failing| match failing {
        Some(fails) if fails(path) => {
            // EMFILE: what a process without a descriptor hears.
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

/// From now on this thread cannot read the files that `fails` names, as if it were out of descriptors.
#[cfg(test)]
pub(super) fn failing(fails: Option<Fails>) {
    FAILING.with_borrow_mut(|current| *current = fails);
}

/// An error that names its file: "permission denied" alone helps nobody.
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
