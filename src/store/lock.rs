//! Ensures that only one larder uses a data directory.
//!
//! `DATA/lock` is locked with `flock` while the store is open. The kernel releases the lock when the process ends, even
//! after a crash. The file names its holder, for the error message of a second larder: the process ID, and a line that
//! the holder chooses, such as the address it listens on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::durable;

/// Maximum length in bytes of the text that is read from or written to the file.
const MAX_HOLDER: usize = 512;

/// The lock, until it is dropped.
#[derive(Debug)]
pub(super) struct HeldLock {
    file: Mutex<File>,
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another process holds it; the text names that process.
    By(String),
    /// The lock file could not be opened or locked.
    Io(io::Error),
}

/// Takes the lock at `path`, or returns who holds it.
pub(super) fn take(path: &Path, holder: &str) -> Result<HeldLock, Refused> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Refused::Io(durable::naming(path, &error)))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Refused::By(named_in(&file))),
        Err(error) => return Err(Refused::Io(durable::naming(path, &error.into()))),
    }
    let held = HeldLock { file: Mutex::new(file) };
    held.name(holder).map_err(Refused::Io)?;
    Ok(held)
}

impl HeldLock {
    /// Writes the holder's name to the file.
    pub(super) fn name(&self, holder: &str) -> io::Result<()> {
        let mut text = format!("process {}", std::process::id());
        if !holder.is_empty() {
            text.push_str(", ");
            text.extend(holder.chars().filter(|c| !c.is_control()).take(MAX_HOLDER / 5));
        }
        text.push('\n');
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(0)?;
        file.write_all_at(text.as_bytes(), 0)
    }
}

/// Unlocks. Closing the file is not enough while a program that this process starts is between `fork` and `exec`: it has a
/// copy of every descriptor for that moment, and with it the lock.
impl Drop for HeldLock {
    fn drop(&mut self) {
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without success the lock goes with the last copy of the descriptor.
        let _unlocked = flock(&*file, FlockOperation::Unlock);
    }
}

fn named_in(file: &File) -> String {
    let mut bytes = Vec::new();
    let read = file.take(MAX_HOLDER as u64).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    if read.is_err() || text.is_empty() {
        "another larder".to_owned()
    } else {
        format!("another larder ({text})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_the_first_is() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("lock");
        let first = take(&path, "listening on [::1]:3142").unwrap();
        let Err(Refused::By(holder)) = take(&path, "me") else {
            panic!("the lock was given twice");
        };
        assert!(holder.contains("listening on [::1]:3142"), "{holder}");
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        drop(first);
        take(&path, "me").unwrap();
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("lock");
        let first = take(&path, "first").unwrap();
        let copy = first.file.lock().unwrap().try_clone().unwrap();
        assert!(matches!(take(&path, "second"), Err(Refused::By(_))), "the control");
        drop(first);
        take(&path, "second").unwrap();
        drop(copy);
    }
}
