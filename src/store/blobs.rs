//! Bodies on disk, by their SHA-256.
//!
//! ```text
//! blobs/<first byte>/<sha256>        the body
//! blobs/<first byte>/<sha256>.crc    its length, and the CRC-32 of each chunk of 64 KiB
//! ```
//!
//! SHA-256 is computed once, when a body comes in; a hit checks the CRC of each chunk before it leaves, which costs a
//! thirtieth. Disks and memory flip bits, they do not forge CRCs. What is damaged is taken out of service and becomes a
//! miss (promise P8).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};

use super::record::remove_quietly;
use super::sealed::{Kind, seal, unseal};
use super::space::{Room, footprint};
use super::{Buffer, CHUNK, Store, durable, failpoint};
use crate::digest::{BlobId, hex};
use crate::received::Spooled;

const SUMS: Kind = Kind { magic: *b"LcrC", version: 1 };

/// The name of a side file ends so.
const SIDE: &str = ".crc";

/// From this size on, the kernel is told to read ahead.
const READ_AHEAD_FROM: u64 = 4 * CHUNK;

/// The files.
#[derive(Debug)]
pub(super) struct Blobs {
    directory: PathBuf,
}

/// A body in service. Whoever holds it besides the store's list pins it.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its length in bytes.
    pub(super) size: u64,
    /// The CRC-32 of each chunk, once they were needed.
    sums: OnceLock<Box<[u32]>>,
    /// The spool file it was, while followers of its fill still read that.
    growing: Weak<File>,
    _room: Room,
}

impl Stored {
    /// A body of `size` bytes, which takes `room`.
    pub(super) fn new(size: u64, room: Room) -> Self {
        Self { size, sums: OnceLock::new(), growing: Weak::new(), _room: room }
    }

    /// A body that was a spool file a moment ago.
    pub(super) fn of(spooled: &Spooled, room: Room) -> Self {
        Self {
            size: spooled.size,
            sums: OnceLock::from(Box::from(spooled.chunks.as_slice())),
            growing: Arc::downgrade(&spooled.file),
            _room: room,
        }
    }

    /// Whether somebody reads it.
    pub(super) fn is_pinned(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || self.growing.strong_count() > 0
    }
}

/// What a body of `size` bytes takes with its side file.
pub(super) fn footprint_of(size: u64) -> u64 {
    // At most five bytes for each sum, and a header.
    footprint(size).saturating_add(footprint(32 + 5 * size.div_ceil(CHUNK)))
}

impl Blobs {
    /// Those under `directory`, which need not exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Puts a spooled body in its place: first its bytes are made durable, then its sums, then its name.
    pub(super) fn place(&self, spooled: &Spooled) -> io::Result<()> {
        let id = spooled.digests.blob();
        failpoint::hit("store.before-fsync");
        spooled.file.sync_all()?;
        failpoint::hit("store.before-crc");
        let sums = seal(SUMS, &(spooled.size, &spooled.chunks))?;
        durable::write(&self.side(id), &sums, 0o600)?;
        failpoint::hit("store.before-rename");
        let placed = durable::rename(&spooled.path, &self.path(id)).and_then(|()| {
            failpoint::hit("store.after-rename");
            durable::sync_directory_of(&self.path(id))
        });
        if placed.is_err() {
            self.discard(id);
        }
        placed
    }

    /// Whether the files of a body are there, and of the right length.
    pub(super) fn holds(&self, id: BlobId, size: u64) -> bool {
        self.path(id).metadata().is_ok_and(|body| body.len() == size) && self.side(id).exists()
    }

    /// Removes the files of a body, as well as that goes: what stays is found by the next start.
    pub(super) fn discard(&self, id: BlobId) {
        for path in [self.path(id), self.side(id)] {
            if let Err(error) = durable::remove(&path) {
                tracing::warn!(%error, "a stored body could not be removed");
            }
        }
    }

    /// Names and lengths of all bodies. Whatever else is there a crash has left, and it is removed.
    pub(super) fn sweep(&self) -> Vec<(BlobId, u64)> {
        let mut bodies = Vec::new();
        for shard in 0..=u8::MAX {
            let Ok(files) = self.directory.join(hex(&[shard])).read_dir() else {
                continue;
            };
            for file in files.flatten() {
                let length = file.metadata().map(|metadata| metadata.len());
                let kept = match (parse(&file.file_name()), length) {
                    (Some((id, true)), Ok(_)) => self.path(id).exists(),
                    (Some((id, false)), Ok(length)) if self.side(id).exists() => {
                        bodies.push((id, length));
                        true
                    }
                    _ => false,
                };
                if !kept {
                    remove_quietly(&file.path());
                }
            }
        }
        bodies
    }

    fn open(&self, id: BlobId, stored: &Stored) -> io::Result<File> {
        let file = File::open(self.path(id))?;
        if file.metadata()?.len() != stored.size {
            return Err(damaged("its length has changed"));
        }
        if stored.sums.get().is_none() {
            let limit = footprint_of(stored.size);
            let bytes = durable::read(&self.side(id), limit)?;
            let (size, sums): (u64, Vec<u32>) = bytes
                .and_then(|bytes| unseal(SUMS, &bytes))
                .ok_or_else(|| damaged("its checksums are damaged"))?;
            if size != stored.size || sums.len() as u64 != size.div_ceil(CHUNK) {
                return Err(damaged("its checksums are of another body"));
            }
            // Two readers at once read the same sums.
            stored.sums.get_or_init(|| sums.into());
        }
        if stored.size >= READ_AHEAD_FROM
            && let Err(error) = fadvise(&file, 0, None, Advice::Sequential)
        {
            tracing::trace!(%error, "no read-ahead");
        }
        Ok(file)
    }

    fn path(&self, id: BlobId) -> PathBuf {
        let [first, ..] = id.as_bytes();
        self.directory.join(hex(&[*first])).join(id.to_hex())
    }

    fn side(&self, id: BlobId) -> PathBuf {
        let mut path = self.path(id).into_os_string();
        path.push(SIDE);
        path.into()
    }
}

/// The body that a file belongs to, and whether the file is its side file.
fn parse(name: &OsStr) -> Option<(BlobId, bool)> {
    let name = name.to_str()?;
    match name.strip_suffix(SIDE) {
        Some(id) => BlobId::from_hex(id).map(|id| (id, true)),
        None => BlobId::from_hex(name).map(|id| (id, false)),
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A stored body, open and pinned: it is not evicted while this or a clone lives.
#[derive(Clone, Debug)]
pub struct Blob {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    store: Arc<Store>,
    id: BlobId,
    stored: Arc<Stored>,
    file: File,
}

impl Store {
    /// Opens a blob for reading; pins it against eviction until dropped. `None`: not there (a miss, never an error).
    /// Blocking.
    pub fn blob(self: &Arc<Self>, id: BlobId) -> Option<Blob> {
        let stored = self.stored(id)?;
        match self.blobs.open(id, &stored) {
            Ok(file) => {
                Some(Blob { open: Arc::new(Open { store: Arc::clone(self), id, stored, file }) })
            }
            Err(error) => {
                self.lose(id, &error);
                None
            }
        }
    }
}

impl Blob {
    /// The SHA-256 of the body.
    pub fn id(&self) -> BlobId {
        self.open.id
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.open.stored.size
    }

    /// Reads the chunk number `n` of [`CHUNK`] bytes, the last one shorter, checked against its CRC; empty past the end.
    /// Blocking. An error means that the blob is damaged: it is out of service, and its entries are misses from now on.
    pub fn chunk(&self, n: u64) -> io::Result<Bytes> {
        let chunk = self.read(n);
        if let Err(error) = &chunk {
            self.open.store.lose(self.id(), error);
        }
        chunk
    }

    /// A blocking reader over the whole blob, for parsers. Every chunk is checked before any of it is given.
    pub fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        Ok(Box::new(Reader { blob: self.clone(), next: 0, chunk: io::Cursor::default() }))
    }

    fn read(&self, n: u64) -> io::Result<Bytes> {
        let Open { stored, file, .. } = &*self.open;
        let start = n.saturating_mul(CHUNK);
        let length = stored.size.saturating_sub(start).min(CHUNK);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut buffer = Buffer::take();
        let bytes = buffer.room();
        while bytes.len() < length {
            let at = start + bytes.len() as u64;
            if rustix::io::pread(file, spare_capacity(bytes), at)? == 0 {
                return Err(damaged("it ends too early"));
            }
        }
        bytes.truncate(length);
        let sum = stored.sums.get().and_then(|sums| {
            let n = usize::try_from(n).ok()?;
            sums.get(n).copied()
        });
        if length > 0 && sum != Some(crc32fast::hash(bytes)) {
            return Err(damaged("a chunk is not what was stored"));
        }
        Ok(buffer.into_bytes())
    }
}

struct Reader {
    blob: Blob,
    next: u64,
    chunk: io::Cursor<Bytes>,
}

impl io::Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.chunk.read(to)?;
        if read > 0 || to.is_empty() {
            return Ok(read);
        }
        self.chunk = io::Cursor::new(self.blob.chunk(self.next)?);
        self.next += 1;
        self.chunk.read(to)
    }
}
