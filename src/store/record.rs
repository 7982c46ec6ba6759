//! One record for each entry: the truth about what is stored.
//!
//! ```text
//! records/<first byte of the key>/<key>-<blob>      a sealed file, see `sealed.rs`
//! ```
//!
//! A record holds an [`Entry`] as it stands: its URL with the secrets replaced, never another. Its name repeats what it is
//! about, so that start-up compares records with the ledger by reading directories only. A record that is damaged, or that
//! is not what its name says, is a miss and is removed (promise P8).

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::durable;
use super::sealed::{Kind, seal, unseal};
use super::space::footprint;
use crate::digest::{BlobId, hex};
use crate::entry::Entry;
use crate::target::Key;

/// The version of the format; the directory above, `v1`, names the version of the whole.
const KIND: Kind = Kind { magic: *b"LreC", version: 2 };

/// The longest record that is read. A head is at most some hundred KiB, by the limits of the HTTP library.
const MAX_RECORD: u64 = 4 << 20;

/// The records.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    /// Those under `directory`, which need not exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The bytes of an entry's record.
    pub(super) fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
        seal(KIND, entry)
    }

    /// What the record of an entry takes on disk, in bytes.
    pub(super) fn takes(entry: &Entry) -> u64 {
        // What cannot be encoded is not written.
        footprint(Self::encode(entry).map_or(0, |record| record.len() as u64))
    }

    /// The entry in a record; `None` if it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
        unseal(KIND, bytes)
    }

    /// Writes the record of the entry for `key` and `blob`, durably.
    pub(super) fn write(&self, key: Key, blob: BlobId, record: &[u8]) -> io::Result<()> {
        durable::write(&self.path(key, blob), record, 0o600)
    }

    /// Whether there is one.
    pub(super) fn contains(&self, key: Key, blob: BlobId) -> io::Result<bool> {
        self.path(key, blob).try_exists()
    }

    /// Reads one. What is damaged is removed; what cannot be read now stays, and that is an error.
    pub(super) fn read(&self, key: Key, blob: BlobId) -> io::Result<Option<Entry>> {
        let path = self.path(key, blob);
        let Some(bytes) = durable::read(&path, MAX_RECORD)? else {
            return Ok(None);
        };
        let entry = Self::decode(&bytes).filter(|entry| entry.key == key && entry.blob == blob);
        if entry.is_none() {
            tracing::warn!(path = %path.display(), "this record is damaged, and removed");
            self.discard(key, blob);
        }
        Ok(entry)
    }

    /// Removes one, as well as that goes: one that stays is found by the next start.
    pub(super) fn discard(&self, key: Key, blob: BlobId) {
        if let Err(error) = durable::remove(&self.path(key, blob)) {
            tracing::warn!(%error, "a record could not be removed");
        }
    }

    /// Removes one so that it does not come back after a power cut.
    pub(super) fn remove(&self, key: Key, blob: BlobId) -> io::Result<()> {
        let path = self.path(key, blob);
        if durable::remove(&path)? {
            durable::sync_directory_of(&path)?;
        }
        Ok(())
    }

    /// The blobs of `key`'s records, from the directory: for when the ledger cannot be asked.
    pub(super) fn of_key(&self, key: Key) -> io::Result<Vec<BlobId>> {
        let names = self.names(first(key))?.into_iter();
        Ok(names.filter_map(|(of, blob)| (of == key).then_some(blob)).collect())
    }

    /// Key and blob of every record whose key begins with `shard`.
    pub(super) fn names(&self, shard: u8) -> io::Result<Vec<(Key, BlobId)>> {
        let files = durable::list(&self.directory.join(hex(&[shard])))?.into_iter();
        // Temporary names may belong to a writer at work and are passed over; start-up, which is alone, sweeps them.
        Ok(files
            .filter_map(|file| parse(&file.file_name()))
            .filter(|(key, _)| first(*key) == shard)
            .collect())
    }

    /// Removes what is no record. Only start-up may, when nobody writes.
    pub(super) fn sweep(&self) {
        for shard in 0..=u8::MAX {
            let Ok(files) = self.directory.join(hex(&[shard])).read_dir() else {
                continue;
            };
            for file in files.flatten() {
                if parse(&file.file_name()).is_none_or(|(key, _)| first(key) != shard) {
                    remove_quietly(&file.path());
                }
            }
        }
    }

    fn path(&self, key: Key, blob: BlobId) -> PathBuf {
        self.directory.join(hex(&[first(key)])).join(format!("{}-{blob}", hex(&key.0)))
    }
}

/// Removes what start-up finds in the way.
pub(super) fn remove_quietly(path: &Path) {
    match durable::remove(path) {
        Ok(_) => tracing::debug!(path = %path.display(), "was left over, and removed"),
        Err(error) => tracing::warn!(%error, "a leftover could not be removed"),
    }
}

fn first(key: Key) -> u8 {
    let [first, ..] = key.0;
    first
}

fn parse(name: &OsStr) -> Option<(Key, BlobId)> {
    let (key, blob) = name.to_str()?.split_once('-')?;
    // A key is 32 bytes in hexadecimal, as a blob's name is.
    Some((Key(*BlobId::from_hex(key)?.as_bytes()), BlobId::from_hex(blob)?))
}
