//! Bodies on disk, named by their SHA-256.
//!
//! ```text
//! blobs/<first byte>/<sha256>        the body
//! blobs/<first byte>/<sha256>.crc    its length, and the CRC-32 of each chunk of 64 KiB, if it has several
//! ```
//!
//! SHA-256 is computed once, when a body arrives. A hit checks the CRC of each chunk before it is sent, which costs
//! about a thirtieth of hashing it. A body of one chunk has no checksum file, which would cost more to sync than the body
//! itself: after a restart its SHA-256 is compared at its first opening, and its CRC is kept in memory. A CRC suffices here: it is to catch bit flips of disk and memory, not forgeries. A
//! damaged body is taken out of service and becomes a miss (promise P8). A body that merely cannot be read at the
//! moment stays (DESIGN §6).
//!
//! All readers of a body share one open file, so that sixty thousand streams of one body use one descriptor. The most
//! recently opened files stay open when no stream reads them. Each open file takes one of the process's file slots
//! (`limits.rs`).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::record::remove_quietly;
use super::sealed::{Kind, seal, unseal};
use super::space::{Kept, footprint};
use super::{Buffer, CHUNK, Store, durable, failpoint, hold};
use crate::digest::{Algorithms, BlobId, Hashing, hex};
use crate::limits::{PLACES, Place};
use crate::received::Spooled;

const SUMS: Kind = Kind { magic: *b"LcrC", version: 1 };

/// File name extension of a body's checksum file.
const SIDE: &str = ".crc";

/// Bodies of at least this size are opened with `POSIX_FADV_SEQUENTIAL`, so that the kernel reads ahead.
const READ_AHEAD_FROM: u64 = 4 * CHUNK;

/// Maximum number of idle body files kept open, for a build's frequently used bodies. Never more than a quarter of the
/// file slots.
const MOST_KEPT_OPEN: usize = 256;

/// The body and checksum files below one directory.
#[derive(Debug)]
pub(super) struct Blobs {
    directory: PathBuf,
    /// The most recently opened files, oldest first.
    kept: Mutex<Vec<(BlobId, Arc<OpenFile>)>>,
}

/// An open body file and its file slot.
#[derive(Debug)]
struct OpenFile {
    file: File,
    _place: Place,
}

/// What [`Blobs::sweep`] found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// IDs and lengths of the bodies.
    pub(super) bodies: Vec<(BlobId, u64)>,
    /// Directories that could not be read completely, by the first byte of the IDs in them. Their contents are unknown
    /// and stay on disk.
    pub(super) unread: HashSet<u8>,
}

/// A body that is used. Every reference besides the one in the store's list pins it against eviction.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its length in bytes.
    pub(super) size: u64,
    /// The CRC-32 of each chunk, read at first use.
    sums: OnceLock<Box<[u32]>>,
    /// The body's file, while a reader has it open.
    file: Mutex<Weak<OpenFile>>,
    /// The spool file that became this body, while followers of its fill still read from that.
    growing: Weak<File>,
    /// Its disk space, once it is out of service and only its readers hold it.
    leaving: OnceLock<Kept>,
}

impl Stored {
    /// A body of `size` bytes. `sum` is the CRC of its only chunk, if known.
    pub(super) fn new(size: u64, sum: Option<u32>) -> Self {
        let sums = sum.map_or_else(OnceLock::new, |sum| OnceLock::from(Box::from([sum])));
        let (file, growing, leaving) = (Mutex::default(), Weak::new(), OnceLock::new());
        Self { size, sums, file, growing, leaving }
    }

    /// A body that was just moved here from the spool, with its checksums at hand.
    pub(super) fn of(spooled: &Spooled) -> Self {
        let sums = OnceLock::from(Box::from(spooled.chunks.as_slice()));
        Self { sums, growing: Arc::downgrade(&spooled.file), ..Self::new(spooled.size, None) }
    }

    /// The CRC of its only chunk, if it has one chunk and the CRC is known.
    pub(super) fn only_sum(&self) -> Option<u32> {
        match self.sums.get()?.as_ref() {
            [sum] => Some(*sum),
            _ => None,
        }
    }

    /// Takes over its disk space, which is free when the last reader ends.
    pub(super) fn leave(&self, room: Kept) {
        // It goes out of service once.
        drop(self.leaving.set(room));
    }

    /// Whether its file is open.
    pub(super) fn is_open(&self) -> bool {
        // A thread that holds this lock opens the file.
        self.file.try_lock().map_or(true, |file| file.strong_count() > 0)
    }

    /// Whether `bytes` match the CRC of chunk number `n`.
    fn is_sound(&self, n: u64, bytes: &[u8]) -> bool {
        let sum = self.sums.get().and_then(|sums| {
            let n = usize::try_from(n).ok()?;
            sums.get(n).copied()
        });
        bytes.is_empty() || sum == Some(crc32fast::hash(bytes))
    }

    /// Whether a reader holds it, so that it must not be evicted.
    pub(super) fn is_pinned(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || self.growing.strong_count() > 0
    }
}

/// Whether a body of `size` bytes has a checksum file.
const fn has_side(size: u64) -> bool {
    size > CHUNK
}

/// The disk space of a body of `size` bytes, with its checksum file if it has one.
pub(super) fn footprint_of(size: u64) -> u64 {
    // A CRC takes at most five bytes in the file; the header takes at most 32.
    let sums = if has_side(size) { footprint(32 + 5 * size.div_ceil(CHUNK)) } else { 0 };
    footprint(size).saturating_add(sums)
}

impl Blobs {
    /// The files under `directory`, which need not exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, kept: Mutex::default() }
    }

    /// Moves a spooled body to its final name, in an order that survives a crash: sync its bytes, write its checksum
    /// file, rename it.
    pub(super) fn place(&self, spooled: &Spooled) -> io::Result<()> {
        let id = spooled.digests.blob();
        failpoint::hit("store.before-fsync");
        spooled.file.sync_all()?;
        failpoint::hit("store.before-crc");
        if has_side(spooled.size) {
            let sums = seal(SUMS, &(spooled.size, &spooled.chunks))?;
            durable::write(&self.side(id), &sums, 0o600)?;
        }
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

    /// Whether the files of a body exist and the body has the right length.
    pub(super) fn holds(&self, id: BlobId, size: u64) -> io::Result<bool> {
        match self.path(id).metadata() {
            Ok(body) if body.len() == size => Ok(!has_side(size) || self.side(id).try_exists()?),
            Ok(_) => Ok(false),
            Err(error) if durable::is_damage(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the files of a body. A failure is logged, and the next start removes what is left.
    pub(super) fn discard(&self, id: BlobId) {
        // An unlinked file keeps its disk space until it is closed.
        let closed: Vec<_> = hold(&self.kept).extract_if(.., |(kept, _)| *kept == id).collect();
        drop(closed);
        for path in [self.path(id), self.side(id)] {
            if let Err(error) = durable::remove(&path) {
                tracing::warn!(%error, "a stored body could not be removed");
            }
        }
    }

    /// Lists IDs and lengths of all bodies, and removes every other file, which a crash left behind.
    pub(super) fn sweep(&self) -> Swept {
        hold(&self.kept).clear();
        let mut swept = Swept::default();
        for shard in 0..=u8::MAX {
            if let Err(error) = self.sweep_shard(shard, &mut swept.bodies) {
                tracing::error!(%error, "stored bodies cannot be read now: they stay, and are not served");
                swept.bodies.retain(|(id, _)| first(*id) != shard);
                swept.unread.insert(shard);
            }
        }
        swept
    }

    fn sweep_shard(&self, shard: u8, bodies: &mut Vec<(BlobId, u64)>) -> io::Result<()> {
        for file in durable::list(&self.directory.join(hex(&[shard])))? {
            let Some((id, is_side)) = parse(&file.file_name()) else {
                remove_quietly(&file.path());
                continue;
            };
            let size = match self.path(id).metadata() {
                Ok(body) => Some(body.len()),
                Err(error) if durable::is_damage(&error) => None,
                Err(error) => return Err(error),
            };
            let kept = match size {
                None => false,
                Some(size) if is_side => has_side(size),
                Some(size) => !has_side(size) || self.side(id).try_exists()?,
            };
            if let Some(size) = size.filter(|_| kept && !is_side) {
                bodies.push((id, size));
            }
            if !kept {
                remove_quietly(&file.path());
            }
        }
        Ok(())
    }

    /// The open file of a body: the shared one if a reader has it open, else a new one.
    fn open(&self, id: BlobId, stored: &Stored) -> io::Result<Arc<OpenFile>> {
        let mut known = hold(&stored.file);
        if let Some(open) = still_there(&known, stored)? {
            return Ok(open);
        }
        let place = self.place_for_file().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "as many bodies are open as this process's limit of open files leaves room for (ulimit -n)",
            )
        })?;
        let file = self.open_anew(id, stored)?;
        let open = Arc::new(OpenFile { file, _place: place });
        *known = Arc::downgrade(&open);
        drop(known);
        self.keep_open(id, &open);
        Ok(open)
    }

    /// Takes a slot for one more open file, after closing idle files if none is free.
    pub(super) fn place_for_file(&self) -> Option<Place> {
        PLACES.files.try_take().or_else(|| {
            self.close_idle();
            PLACES.files.try_take()
        })
    }

    /// Closes the files that no reader uses.
    pub(super) fn close_idle(&self) {
        let idle: Vec<_> =
            hold(&self.kept).extract_if(.., |(_, open)| Arc::strong_count(open) == 1).collect();
        drop(idle);
    }

    fn keep_open(&self, id: BlobId, open: &Arc<OpenFile>) {
        let most = MOST_KEPT_OPEN.min(PLACES.files.most() / 4);
        let mut kept = hold(&self.kept);
        // The same body may be listed with a file that was replaced since; keep the newer only.
        let mut gone: Vec<_> = kept.extract_if(.., |(kept, _)| *kept == id).collect();
        kept.push((id, Arc::clone(open)));
        if kept.len() > most {
            gone.push(kept.remove(0));
        }
        drop(kept);
        drop(gone);
    }

    fn open_anew(&self, id: BlobId, stored: &Stored) -> io::Result<File> {
        let file = durable::open(&self.path(id))?;
        if file.metadata()?.len() != stored.size {
            return Err(damaged("its length has changed"));
        }
        if stored.sums.get().is_none() && !has_side(stored.size) {
            let sum = sum_of_small(&file, id)?;
            stored.sums.get_or_init(|| Box::from([sum]));
        } else if stored.sums.get().is_none() {
            let limit = footprint_of(stored.size);
            let bytes = durable::read(&self.side(id), limit)?;
            let (size, sums): (u64, Vec<u32>) = bytes
                .and_then(|bytes| unseal(SUMS, &bytes))
                .ok_or_else(|| damaged("its checksums are damaged"))?;
            if size != stored.size || sums.len() as u64 != size.div_ceil(CHUNK) {
                return Err(damaged("its checksums are of another body"));
            }
            // Two readers that open the body at once read the same checksums, so either result will do.
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

/// The CRC of a body of at most one chunk, after its SHA-256 was compared. Blocking.
fn sum_of_small(file: &File, id: BlobId) -> io::Result<u32> {
    let mut bytes = Vec::new();
    file.take(CHUNK + 1).read_to_end(&mut bytes)?;
    let mut hashing = Hashing::new(Algorithms::NONE);
    hashing.update(&bytes);
    if hashing.finish().blob() != id {
        return Err(damaged("its bytes are not what was stored"));
    }
    Ok(crc32fast::hash(&bytes))
}

/// The body to which a file name belongs, and whether the file is the checksum file.
fn parse(name: &OsStr) -> Option<(BlobId, bool)> {
    let name = name.to_str()?;
    match name.strip_suffix(SIDE) {
        Some(id) => BlobId::from_hex(id).map(|id| (id, true)),
        None => BlobId::from_hex(name).map(|id| (id, false)),
    }
}

/// The shared open file, unless it was unlinked or replaced: then the operator wants the new state and it is opened
/// anew.
fn still_there(known: &Weak<OpenFile>, stored: &Stored) -> io::Result<Option<Arc<OpenFile>>> {
    let Some(open) = known.upgrade() else {
        return Ok(None);
    };
    let now = open.file.metadata()?;
    if now.nlink() == 0 {
        return Ok(None);
    }
    if now.len() != stored.size {
        return Err(damaged("its length has changed"));
    }
    Ok(Some(open))
}

fn first(id: BlobId) -> u8 {
    let [first, ..] = *id.as_bytes();
    first
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
    file: Arc<OpenFile>,
}

impl Store {
    /// Opens a blob for reading and pins it against eviction until dropped. `None` if it is missing or cannot be read
    /// at the moment. Blocking.
    pub fn blob(self: &Arc<Self>, id: BlobId) -> Option<Blob> {
        self.open_blob(id).ok().flatten()
    }

    /// The same, for callers that must tell a missing body (`None`) from one that cannot be read at the moment (an
    /// error). The latter stays in the store. The error is of kind `ResourceBusy` if there is no slot for another open
    /// file. Blocking.
    pub fn open_blob(self: &Arc<Self>, id: BlobId) -> io::Result<Option<Blob>> {
        let Some(stored) = self.stored(id) else {
            return Ok(None);
        };
        match self.blobs.open(id, &stored) {
            Ok(file) => {
                let open = Open { store: Arc::clone(self), id, stored, file };
                Ok(Some(Blob { open: Arc::new(open) }))
            }
            Err(error) => {
                self.lose(id, &error);
                if durable::is_damage(&error) { Ok(None) } else { Err(error) }
            }
        }
    }
}

impl Store {
    /// Opens a blob whose file is open already, as those that builds use often are. `None` means unknown: call
    /// [`Store::open_blob`]. Does not block, because the length and link count of an open file are in memory.
    pub fn open_blob_now(self: &Arc<Self>, id: BlobId) -> Option<Blob> {
        let stored = self.stored(id)?;
        let file = {
            // `open` holds this lock while it opens the file, which may wait for the disk.
            let known = stored.file.try_lock().ok()?;
            still_there(&known, &stored).ok()??
        };
        let open = Open { store: Arc::clone(self), id, stored, file };
        Some(Blob { open: Arc::new(open) })
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

    /// Reads chunk number `n` of [`CHUNK`] bytes (the last one is shorter) and checks its CRC. Empty past the end.
    /// Blocking. An error of kind `InvalidData` means that the blob is damaged: it has been taken out of service, and
    /// its entries are misses from now on. After any other error it stays.
    pub fn chunk(&self, n: u64) -> io::Result<Bytes> {
        let chunk = self.read(n);
        if let Err(error) = &chunk {
            self.open.store.lose(self.id(), error);
        }
        chunk
    }

    /// Reads chunk number `n` if all of it is in the page cache and its CRC matches (`RWF_NOWAIT`, preadv2(2)). Does
    /// not block. `None` means unknown: call [`Blob::chunk`].
    pub fn chunk_now(&self, n: u64) -> Option<Bytes> {
        let Open { stored, file, .. } = &*self.open;
        let start = n.saturating_mul(CHUNK);
        let length = usize::try_from(stored.size.saturating_sub(start).min(CHUNK)).ok()?;
        let mut buffer = Buffer::take();
        let bytes = buffer.room();
        bytes.resize(length, 0);
        let mut room = [IoSliceMut::new(bytes)];
        // The kernel returns what it has cached. After a partial read the caller reads the chunk again on a blocking
        // thread.
        let read = preadv2(&file.file, &mut room, start, ReadWriteFlags::NOWAIT).ok()?;
        (read == length && stored.is_sound(n, bytes)).then(|| buffer.into_bytes())
    }

    /// A blocking reader over the whole blob, for parsers. It checks each chunk before it returns any byte of it.
    pub fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        Ok(Box::new(BlobReader { blob: self.clone(), next: 0, chunk: io::Cursor::default() }))
    }

    fn read(&self, n: u64) -> io::Result<Bytes> {
        let Open { stored, file, .. } = &*self.open;
        #[cfg(test)]
        durable::fail_as_told(&self.open.store.blobs.path(self.open.id))?;
        let start = n.saturating_mul(CHUNK);
        let length = stored.size.saturating_sub(start).min(CHUNK);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut buffer = Buffer::take();
        let bytes = buffer.room();
        while bytes.len() < length {
            let at = start + bytes.len() as u64;
            if rustix::io::pread(&file.file, spare_capacity(bytes), at)? == 0 {
                return Err(damaged("it ends too early"));
            }
        }
        bytes.truncate(length);
        if !stored.is_sound(n, bytes) {
            return Err(damaged("a chunk is not what was stored"));
        }
        Ok(buffer.into_bytes())
    }
}

struct BlobReader {
    blob: Blob,
    next: u64,
    chunk: io::Cursor<Bytes>,
}

impl io::Read for BlobReader {
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
