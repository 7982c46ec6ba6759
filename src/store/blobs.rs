//! Bodies on disk, by their SHA-256.
//!
//! ```text
//! blobs/<first byte>/<sha256>        the body
//! blobs/<first byte>/<sha256>.crc    its length, and the CRC-32 of each chunk of 64 KiB
//! ```
//!
//! SHA-256 is computed once, when a body comes in; a hit checks the CRC of each chunk before it leaves, which costs a
//! thirtieth. Disks and memory flip bits, they do not forge CRCs. What is damaged is taken out of service and becomes a
//! miss (promise P8). What merely cannot be read now stays (DESIGN §6).
//!
//! All readers of a body share one open file, so that sixty thousand streams of one body cost one descriptor; the files
//! opened last stay open when nobody reads them. Each takes one of the places for files (`limits.rs`).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::record::remove_quietly;
use super::sealed::{Kind, seal, unseal};
use super::space::{Room, footprint};
use super::{Buffer, CHUNK, Store, durable, failpoint, hold};
use crate::digest::{BlobId, hex};
use crate::limits::{PLACES, Place};
use crate::received::Spooled;

const SUMS: Kind = Kind { magic: *b"LcrC", version: 1 };

/// The name of a side file ends so.
const SIDE: &str = ".crc";

/// From this size on, the kernel is told to read ahead.
const READ_AHEAD_FROM: u64 = 4 * CHUNK;

/// Files of bodies that stay open although nobody reads them: the hot ones of a build. At most a quarter of the places.
const MOST_KEPT_OPEN: usize = 256;

/// The files.
#[derive(Debug)]
pub(super) struct Blobs {
    directory: PathBuf,
    /// Those that were opened last, the oldest first.
    kept: Mutex<Vec<(BlobId, Arc<OpenFile>)>>,
}

/// An open file of a body, and its place among the process's descriptors.
#[derive(Debug)]
struct OpenFile {
    file: File,
    _place: Place,
}

/// What [`Blobs::sweep`] found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Names and lengths of bodies.
    pub(super) bodies: Vec<(BlobId, u64)>,
    /// The directories, by the first byte of the bodies in them, that could not be read whole: what is there is not known,
    /// and stays.
    pub(super) unread: HashSet<u8>,
}

/// A body in service. Whoever holds it besides the store's list pins it.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its length in bytes.
    pub(super) size: u64,
    /// The CRC-32 of each chunk, once they were needed.
    sums: OnceLock<Box<[u32]>>,
    /// Its file, while somebody has it open.
    file: Mutex<Weak<OpenFile>>,
    /// The spool file it was, while followers of its fill still read that.
    growing: Weak<File>,
    _room: Room,
}

impl Stored {
    /// A body of `size` bytes, which takes `room`.
    pub(super) fn new(size: u64, room: Room) -> Self {
        Self {
            size,
            sums: OnceLock::new(),
            file: Mutex::default(),
            growing: Weak::new(),
            _room: room,
        }
    }

    /// A body that was a spool file a moment ago.
    pub(super) fn of(spooled: &Spooled, room: Room) -> Self {
        Self {
            size: spooled.size,
            sums: OnceLock::from(Box::from(spooled.chunks.as_slice())),
            file: Mutex::default(),
            growing: Arc::downgrade(&spooled.file),
            _room: room,
        }
    }

    /// Whether `bytes` are its chunk number `n`.
    fn is_sound(&self, n: u64, bytes: &[u8]) -> bool {
        let sum = self.sums.get().and_then(|sums| {
            let n = usize::try_from(n).ok()?;
            sums.get(n).copied()
        });
        bytes.is_empty() || sum == Some(crc32fast::hash(bytes))
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
        Self { directory, kept: Mutex::default() }
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
    pub(super) fn holds(&self, id: BlobId, size: u64) -> io::Result<bool> {
        match self.path(id).metadata() {
            Ok(body) if body.len() == size => self.side(id).try_exists(),
            Ok(_) => Ok(false),
            Err(error) if durable::is_damage(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the files of a body, as well as that goes: what stays is found by the next start.
    pub(super) fn discard(&self, id: BlobId) {
        // An open file takes its space until it is closed.
        let closed: Vec<_> = hold(&self.kept).extract_if(.., |(kept, _)| *kept == id).collect();
        drop(closed);
        for path in [self.path(id), self.side(id)] {
            if let Err(error) = durable::remove(&path) {
                tracing::warn!(%error, "a stored body could not be removed");
            }
        }
    }

    /// Names and lengths of all bodies. Whatever else is there a crash has left, and it is removed.
    pub(super) fn sweep(&self) -> Swept {
        hold(&self.kept).clear();
        let mut swept = Swept::default();
        for shard in 0..=u8::MAX {
            if let Err(error) = self.sweep_shard(shard, &mut swept.bodies) {
                tracing::error!(%error, "these bodies cannot be read now: they stay, and do not serve");
                swept.bodies.retain(|(id, _)| first(*id) != shard);
                swept.unread.insert(shard);
            }
        }
        swept
    }

    fn sweep_shard(&self, shard: u8, bodies: &mut Vec<(BlobId, u64)>) -> io::Result<()> {
        for file in durable::list(&self.directory.join(hex(&[shard])))? {
            let kept = match parse(&file.file_name()) {
                Some((id, true)) => self.path(id).try_exists()?,
                Some((id, false)) if self.side(id).try_exists()? => match file.metadata() {
                    Ok(metadata) => {
                        bodies.push((id, metadata.len()));
                        true
                    }
                    Err(error) if durable::is_damage(&error) => false,
                    Err(error) => return Err(error),
                },
                Some(_) | None => false,
            };
            if !kept {
                remove_quietly(&file.path());
            }
        }
        Ok(())
    }

    /// The file of a body: the one that others have open, or a new one.
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

    /// A place for one more file; those that nobody reads make way.
    pub(super) fn place_for_file(&self) -> Option<Place> {
        PLACES.files.try_take().or_else(|| {
            self.close_idle();
            PLACES.files.try_take()
        })
    }

    /// Closes the files that nobody reads.
    pub(super) fn close_idle(&self) {
        let idle: Vec<_> =
            hold(&self.kept).extract_if(.., |(_, open)| Arc::strong_count(open) == 1).collect();
        drop(idle);
    }

    fn keep_open(&self, id: BlobId, open: &Arc<OpenFile>) {
        let most = MOST_KEPT_OPEN.min(PLACES.files.most() / 4);
        let mut kept = hold(&self.kept);
        // Two who opened it one after the other, because it was replaced in between.
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

/// The open file, unless it was deleted or another was put in its place: whoever does that means it.
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
    /// Opens a blob for reading; pins it against eviction until dropped. `None`: not there, or it cannot be read now.
    /// Blocking.
    pub fn blob(self: &Arc<Self>, id: BlobId) -> Option<Blob> {
        self.open_blob(id).ok().flatten()
    }

    /// The same for whoever tells what is not there (a miss) from what cannot be read now: that stays, and is an error, of
    /// kind `ResourceBusy` if there is no place for another open file. Blocking.
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
    /// Opens a blob whose file is open already, as the hot ones of a build are. `None`: it takes [`Store::open_blob`] to say.
    /// Does not block: a file that is open has its length and its links in memory.
    pub fn open_blob_now(self: &Arc<Self>, id: BlobId) -> Option<Blob> {
        let stored = self.stored(id)?;
        let file = {
            // It is held while the file is opened, which may take a disk's time.
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

    /// Reads the chunk number `n` of [`CHUNK`] bytes, the last one shorter, checked against its CRC; empty past the end.
    /// Blocking. An error of kind `InvalidData` means that the blob is damaged: it is out of service, and its entries are
    /// misses from now on. After any other it stays.
    pub fn chunk(&self, n: u64) -> io::Result<Bytes> {
        let chunk = self.read(n);
        if let Err(error) = &chunk {
            self.open.store.lose(self.id(), error);
        }
        chunk
    }

    /// The chunk number `n`, if all of it is in memory and sound; does not block (`RWF_NOWAIT`, preadv2(2)). `None`: it takes
    /// [`Blob::chunk`] to say.
    pub fn chunk_now(&self, n: u64) -> Option<Bytes> {
        let Open { stored, file, .. } = &*self.open;
        let start = n.saturating_mul(CHUNK);
        let length = usize::try_from(stored.size.saturating_sub(start).min(CHUNK)).ok()?;
        let mut buffer = Buffer::take();
        let bytes = buffer.room();
        bytes.resize(length, 0);
        let mut room = [IoSliceMut::new(bytes)];
        // The kernel gives what it has: less than the whole is read again by a thread that may wait.
        let read = preadv2(&file.file, &mut room, start, ReadWriteFlags::NOWAIT).ok()?;
        (read == length && stored.is_sound(n, bytes)).then(|| buffer.into_bytes())
    }

    /// A blocking reader over the whole blob, for parsers. Every chunk is checked before any of it is given.
    pub fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        Ok(Box::new(Reader { blob: self.clone(), next: 0, chunk: io::Cursor::default() }))
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
