//! An arriving body: written to disk, hashed and checksummed as it comes.
//!
//! The file is on the file system of the blobs, so that a rename makes it one. Until then no request finds it. Dropping
//! it removes it, and start-up removes what a crash left behind. When the store is full, or the body is larger than one
//! may be, the body still goes on to the client, and hashing continues, because it is judged against its promises all
//! the same.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::blobs::footprint_of;
use super::space::{OfFile, Purpose};
use super::{CHUNK, Spared, SpoolError, Store, durable, failpoint};
use crate::digest::{Hashing, Wanted, in_chunks};
use crate::limits::{PLACES, Place};
use crate::received::Spooled;

/// The number of the next spool file.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// How often room is made and a write retried when the file system itself is full.
const RETRIES: usize = 8;

/// A body that is being written. Dropping it unfinished removes its file. All methods block.
#[derive(Debug)]
pub struct Spool {
    store: Arc<Store>,
    hashing: Hashing,
    sums: Sums,
    file: Arc<File>,
    name: Name,
    /// Declared after `file`: when dropped, it checks whether the file is still open elsewhere.
    room: OfFile,
    written: u64,
    /// Bytes in the file beyond `written`.
    ahead: u64,
    place: Open,
}

/// The file slot of a spool file. Followers of the fill may read the file after the spool has ended; until then it is
/// open and keeps the slot.
#[derive(Debug)]
struct Open {
    file: Weak<File>,
    place: Option<Place>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            PLACES.files.lingers(Weak::clone(&self.file), place);
        }
    }
}

impl Store {
    /// Creates a spool file. `expected` is the announced length: fails at once with [`SpoolError::Oversize`] if one
    /// body may not be that large, and with [`SpoolError::Full`] if that much room can never be made. Room is made as
    /// bytes arrive, not as they are announced: an origin that announces twenty gigabytes and sends one byte must not
    /// empty the store. Blocking.
    pub fn spool(
        self: &Arc<Self>,
        expected: Option<u64>,
        wanted: impl Into<Wanted>,
    ) -> Result<Spool, SpoolError> {
        let takes = footprint_of(expected.unwrap_or(0));
        self.could_hold(footprint_of(0), Spared::default())?;
        self.within_share(takes)?;
        self.could_hold(takes, self.spared(Purpose::Spool))?;
        let room = self.room(Purpose::Spool, footprint_of(0))?;
        let Some(place) = self.blobs.place_for_file() else {
            return Err(SpoolError::Full(
                "as many bodies are open as this process's limit of open files leaves room for (ulimit -n)".into(),
            ));
        };
        let (name, file) = self.spool_file()?;
        let place = Open { file: Arc::downgrade(&file), place: Some(place) };
        failpoint::hit("store.spool-created");
        Ok(Spool {
            store: Arc::clone(self),
            hashing: Hashing::new(wanted),
            sums: Sums::default(),
            room: OfFile::new(room, &file),
            file,
            name,
            written: 0,
            ahead: 0,
            place,
        })
    }

    /// An unused name in the spool.
    pub(super) fn spool_name(&self) -> PathBuf {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.paths.spool.join(number.to_string())
    }

    fn spool_file(&self) -> Result<(Name, Arc<File>), SpoolError> {
        let path = self.spool_name();
        let file = durable::create(&path, 0o600).map_err(SpoolError::from)?;
        Ok((Name(Some(path)), Arc::new(file)))
    }
}

impl Spool {
    /// Appends bytes: writes, hashes and checksums them. [`SpoolError::Oversize`] when one body may not be that large,
    /// [`SpoolError::Full`] when there is no room and nothing may be evicted. After an error none of `bytes` was taken,
    /// what was written stays readable, and [`Spool::give_up`] continues the hashing.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.make_room(bytes)?;
        self.write(bytes, self.written)?;
        self.room.room.written();
        self.written += bytes.len() as u64;
        failpoint::hit("store.half-written");
        self.hashing.update(bytes);
        self.sums.update(bytes);
        Ok(())
    }

    /// Writes bytes at position `at`, beyond those appended. The caller writes no position twice. Errors as in
    /// [`Spool::append`].
    pub fn write_ahead(&mut self, at: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        self.make_room(bytes)?;
        self.write(bytes, at)?;
        self.room.room.written();
        self.ahead += bytes.len() as u64;
        Ok(())
    }

    /// Appends what was written ahead, up to position `to`: hashes and checksums it.
    pub fn pass_to(&mut self, to: u64) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(1 << 16)];
        while self.written < to {
            let most = usize::try_from(to - self.written).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..most).unwrap_or_default();
            self.file.read_exact_at(piece, self.written)?;
            self.hashing.update(piece);
            self.sums.update(piece);
            self.written += piece.len() as u64;
            self.ahead = self.ahead.saturating_sub(piece.len() as u64);
        }
        Ok(())
    }

    fn make_room(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let length = self.written + self.ahead;
        let takes = footprint_of(length + bytes.len() as u64);
        let more = takes.saturating_sub(footprint_of(length));
        if more > 0 {
            self.store.within_share(takes)?;
            self.store.grow(&mut self.room.room, more)?;
        }
        Ok(())
    }

    /// A handle that reads what has been appended so far. Stays valid after the spool is committed or dropped. It is
    /// shared, so read by position.
    pub fn reader(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Ends hashing, and returns the finished body.
    pub fn finish(mut self) -> Spooled {
        failpoint::hit("store.hashed");
        drop(self.place);
        Spooled {
            file: self.file,
            path: self.name.0.take().unwrap_or_default(),
            size: self.written,
            digests: self.hashing.finish(),
            chunks: self.sums.finish(),
            room: Box::new(self.room),
        }
    }

    /// Gives up storing the body: unlinks its file, and frees its room once no client reads it any more. Hashing can go
    /// on with the returned state, because the body is judged against its promises all the same. Blocking.
    pub fn give_up(self) -> Hashing {
        self.hashing
    }

    fn make_way(&self) -> bool {
        self.store.evict_one(self.store.spared(Purpose::Spool))
    }

    /// Writes at a position. Evicts bodies and retries if the file system is full.
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), SpoolError> {
        for _ in 0..RETRIES {
            match self.file.write_all_at(bytes, at) {
                Err(error) if is_full(&error) && self.make_way() => {}
                written => return Ok(written?),
            }
        }
        Ok(self.file.write_all_at(bytes, at)?)
    }
}

/// A spool file's name. Dropping this removes the file, unless the name was taken out.
#[derive(Debug)]
struct Name(Option<PathBuf>);

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = durable::remove(path)
        {
            tracing::warn!(%error, "a spool file could not be removed");
        }
    }
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) { Self::Full(error.to_string()) } else { Self::Io(error) }
    }
}

/// Whether the file system or the user's quota is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The CRC-32 of each chunk of a body.
#[derive(Debug, Default)]
struct Sums {
    ended: Vec<u32>,
    running: crc32fast::Hasher,
    filled: u64,
}

impl Sums {
    fn update(&mut self, bytes: &[u8]) {
        in_chunks(&mut self.filled, CHUNK, bytes, |piece, ends| {
            self.running.update(piece);
            if ends {
                self.ended.push(mem::take(&mut self.running).finalize());
            }
        });
    }

    fn finish(mut self) -> Vec<u32> {
        if self.filled > 0 {
            self.ended.push(self.running.finalize());
        }
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_full_and_nothing_else_is() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = full.write_all_at(b"x", 0).unwrap_err();
        assert!(matches!(SpoolError::from(error), SpoolError::Full(_)));
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(matches!(SpoolError::from(other), SpoolError::Io(_)));
    }

    #[test]
    fn sums_do_not_depend_on_how_the_bytes_came() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 17).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let whole: Vec<u32> =
            bytes.chunks(usize::try_from(CHUNK).unwrap()).map(crc32fast::hash).collect();
        for piece in [1000, 65_536, bytes.len()] {
            let mut sums = Sums::default();
            bytes.chunks(piece).for_each(|piece| sums.update(piece));
            assert_eq!(sums.finish(), whole, "{piece}");
        }
        assert_eq!(Sums::default().finish(), Vec::<u32>::new());
    }
}
