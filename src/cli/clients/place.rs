//! The directory for the files that clients read: `run/` below the data directory if every user can reach it;
//! otherwise a directory among the temporary files. apt, started by root, reads its root certificates as an
//! unprivileged user, who cannot enter `/root`.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

use crate::config::environment::Environment;

/// A directory for one command, removed when dropped.
#[derive(Debug)]
pub(in crate::cli) struct Passing {
    path: PathBuf,
    /// A lock, held while the directory is in use, so that [`sweep`] does not remove it. A process number would not
    /// do: each container that shares the directory counts its own.
    _lock: File,
}

impl Passing {
    pub(in crate::cli) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Best effort: the next command removes what is left.
        let _gone = std::fs::remove_dir_all(&self.path);
    }
}

/// Creates a directory for the files of one command. Directories that killed commands left behind are removed.
pub(in crate::cli) fn passing(data: &Path, environment: &Environment) -> anyhow::Result<Passing> {
    let base = base(data, environment)?;
    sweep(&base);
    // Another process, perhaps in another container, may use the same number: then the next name is tried.
    for attempt in 0..1000_u32 {
        let path = base.join(format!("exec-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
        }
        // The lock is on the directory itself. Between the two steps another command's sweep may remove the directory
        // as left over.
        match File::open(&path) {
            Ok(lock) if is_locked(&lock, &path) => return Ok(Passing { path, _lock: lock }),
            Ok(_) | Err(_) => {}
        }
    }
    bail!("cannot make a directory for a command's files in {}", base.display())
}

/// The directory for files that stay, because the variables of a shell name them.
pub(in crate::cli) fn lasting(data: &Path, environment: &Environment) -> anyhow::Result<PathBuf> {
    let path = base(data, environment)?.join("env");
    make(&path)?;
    Ok(path)
}

fn base(data: &Path, environment: &Environment) -> anyhow::Result<PathBuf> {
    // Root may use the larder of a service user, who must not be able to choose what root's commands trust.
    if is_open_to_all(data) && is_own(data) {
        let run = data.join("run");
        make(&run)?;
        return Ok(run);
    }
    let temporary = environment.temporary();
    let shared = Path::new("/tmp");
    let temporary = if is_own(&temporary) || !is_own(shared) { temporary } else { shared.into() };
    own(&temporary)
}

/// This user's own directory below `shared`, where every user may add files.
pub(in crate::cli) fn own(shared: &Path) -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let path = shared.join(format!("larder-{user}"));
    make(&path)?;
    // Another user may have made it first, to plant root certificates.
    let found = std::fs::symlink_metadata(&path)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        bail!("{} is not this user's own directory; remove it, or set TMPDIR", path.display());
    }
    Ok(path)
}

/// Whether only this user and root can replace `directory`: it and all directories above it belong to one of them,
/// and others may not write to them, or only add files of their own (sticky bit).
pub(in crate::cli) fn is_own(directory: &Path) -> bool {
    let users = [0, rustix::process::geteuid().as_raw()];
    let is_own = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| {
            let sticky = found.mode() & 0o1000 != 0;
            users.contains(&found.uid()) && (found.mode() & 0o022 == 0 || sticky)
        })
    };
    // For a directory that does not exist yet, the nearest existing one above it decides.
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    std::fs::canonicalize(there).is_ok_and(|path| path.ancestors().all(is_own))
}

/// Whether every user may traverse `directory` and all directories above it.
fn is_open_to_all(directory: &Path) -> bool {
    directory
        .ancestors()
        .all(|path| std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0))
}

pub(in crate::cli) fn make(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Locks `directory`, and checks that `path` still names it.
fn is_locked(directory: &File, path: &Path) -> bool {
    let same = || Some(directory.metadata().ok()?.ino() == std::fs::metadata(path).ok()?.ino());
    flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok() && same() == Some(true)
}

/// Removes the directories of commands that have ended.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for entry in
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-"))
    {
        let Ok(directory) = File::open(entry.path()) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Best effort, as above.
            let _gone = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn environment(directory: &Path) -> Environment {
        [("TMPDIR", &*directory.to_string_lossy())].into_iter().collect()
    }

    #[test]
    fn a_commands_directory_is_gone_with_it() {
        let data = tempfile::tempdir().unwrap();
        let passing = passing(data.path(), &environment(data.path())).unwrap();
        let path = passing.path().to_owned();
        assert!(path.is_dir());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o755, 0o755);
        drop(passing);
        assert!(!path.exists());
    }

    #[test]
    fn files_go_elsewhere_when_others_cannot_enter_the_data_directory() {
        let outer = tempfile::tempdir().unwrap();
        let (data, other) = (outer.path().join("data"), outer.path().join("tmp"));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(lasting(&data, &environment(&other)).unwrap().starts_with(&other));
        // A directory that other users may write to is not used.
        let taken = other.join(format!("larder-{}", rustix::process::geteuid().as_raw()));
        std::fs::set_permissions(&taken, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(lasting(&data, &environment(&other)).is_err());
    }

    /// Issue 10: root's commands trust the root certificates in this directory, and system files that a command
    /// changed are restored from it.
    #[test]
    fn files_go_elsewhere_when_another_may_change_what_leads_to_them() {
        let outer = tempfile::tempdir().unwrap();
        let (data, other) = (outer.path().join("data"), outer.path().join("tmp"));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&other).unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(outer.path(), 0o755);
        assert!(lasting(&data, &environment(&other)).unwrap().starts_with(&data), "the control");
        for open in [0o777, 0o775] {
            mode(&data, open);
            assert!(!is_own(&data) && !is_own(&data.join("not there")), "{open:o}");
            assert!(lasting(&data, &environment(&other)).unwrap().starts_with(&other));
        }
        mode(&data, 0o1777);
        assert!(is_own(&data), "as the system's directory for temporary files");
        mode(&data, 0o755);
        if std::os::unix::fs::chown(&data, Some(54_321), None).is_ok() {
            assert!(!is_own(&data) && !is_own(&data.join("run")));
            assert!(lasting(&data, &environment(&other)).unwrap().starts_with(&other));
        }
    }

    #[test]
    fn what_is_in_use_is_not_swept() {
        let data = tempfile::tempdir().unwrap();
        let first = passing(data.path(), &environment(data.path())).unwrap();
        let second = passing(data.path(), &environment(data.path())).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir() && first.path() != second.path());
        // Control: an unlocked one is removed.
        let left = data.path().join("run/exec-0-0");
        let base = base(data.path(), &environment(data.path())).unwrap();
        std::fs::create_dir(base.join("exec-0-0")).unwrap();
        sweep(&base);
        assert!(!left.exists() && first.path().is_dir());
    }
}
