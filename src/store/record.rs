//! One record file for each entry: the truth about what is stored.
//!
//! ```text
//! records/<first byte of the key>/<key>-<blob>      a sealed file, see `sealed.rs`
//! ```
//!
//! A record holds an [`Entry`] as it is. Its only URL has the secrets replaced. The file name repeats key and blob, so
//! that start-up can compare records with the ledger by listing directories. A record that is damaged, or that does not
//! match its name, is a miss and is removed (promise P8).

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::durable;
use super::sealed::{Kind, seal, unseal};
use super::space::footprint;
use crate::digest::{BlobId, hex};
use crate::entry::Entry;
use crate::target::Key;

/// The version of this format. The directory `v1` is the version of the whole layout.
const KIND: Kind = Kind { magic: *b"LreC", version: 2 };

/// Maximum length of a record. The stored header fields take at most some hundred KiB, by the limits of the HTTP
/// library.
const MAX_RECORD: u64 = 4 << 20;

/// The record files below one directory.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records under `directory`, which need not exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The bytes of an entry's record.
    pub(super) fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
        seal(KIND, entry)
    }

    /// The disk space of an entry's record, in bytes.
    pub(super) fn takes(entry: &Entry) -> u64 {
        // An entry that cannot be encoded is not written.
        footprint(Self::encode(entry).map_or(0, |record| record.len() as u64))
    }

    /// The entry in a record; `None` if the record is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
        unseal(KIND, bytes)
    }

    /// Writes the record of the entry for `key` and `blob`, durably.
    pub(super) fn write(&self, key: Key, blob: BlobId, record: &[u8]) -> io::Result<()> {
        durable::write(&self.path(key, blob), record, 0o600)
    }

    /// Whether the record exists.
    pub(super) fn contains(&self, key: Key, blob: BlobId) -> io::Result<bool> {
        self.path(key, blob).try_exists()
    }

    /// Reads a record. A damaged one is removed. One that cannot be read at the moment stays, and this is an error.
    pub(super) fn read(&self, key: Key, blob: BlobId) -> io::Result<Option<Entry>> {
        let path = self.path(key, blob);
        let Some(bytes) = durable::read(&path, MAX_RECORD)? else {
            return Ok(None);
        };
        let entry = Self::decode(&bytes).filter(|entry| entry.key == key && entry.blob == blob);
        if entry.is_none() {
            tracing::warn!(path = %path.display(), "a record is damaged, and was removed");
            self.discard(key, blob);
        }
        Ok(entry)
    }

    /// Removes a record. A failure is logged; the next start finds the record again.
    pub(super) fn discard(&self, key: Key, blob: BlobId) {
        if let Err(error) = durable::remove(&self.path(key, blob)) {
            tracing::warn!(%error, "a record could not be removed");
        }
    }

    /// Removes a record durably, so that it does not come back after a power cut.
    pub(super) fn remove(&self, key: Key, blob: BlobId) -> io::Result<()> {
        let path = self.path(key, blob);
        if durable::remove(&path)? {
            durable::sync_directory_of(&path)?;
        }
        Ok(())
    }

    /// The blobs of `key`'s records, by listing the directory. Used when the ledger is out of service.
    pub(super) fn of_key(&self, key: Key) -> io::Result<Vec<BlobId>> {
        let names = self.names(first(key))?.into_iter();
        Ok(names.filter_map(|(of, blob)| (of == key).then_some(blob)).collect())
    }

    /// Key and blob of every record whose key begins with `shard`.
    pub(super) fn names(&self, shard: u8) -> io::Result<Vec<(Key, BlobId)>> {
        let files = durable::list(&self.directory.join(hex(&[shard])))?.into_iter();
        // Skips temporary files, which may belong to a running writer. Start-up sweeps them, when there are no writers.
        Ok(files
            .filter_map(|file| parse(&file.file_name()))
            .filter(|(key, _)| first(*key) == shard)
            .collect())
    }

    /// Removes files that are not records. Only for start-up, when there are no writers.
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

/// Removes a leftover file that start-up found.
pub(super) fn remove_quietly(path: &Path) {
    match durable::remove(path) {
        Ok(_) => tracing::debug!(path = %path.display(), "a leftover file was removed"),
        Err(error) => tracing::warn!(%error, "a leftover could not be removed"),
    }
}

fn first(key: Key) -> u8 {
    let [first, ..] = key.0;
    first
}

fn parse(name: &OsStr) -> Option<(Key, BlobId)> {
    let (key, blob) = name.to_str()?.split_once('-')?;
    // Key and blob ID are both 32 bytes in hexadecimal.
    Some((Key(*BlobId::from_hex(key)?.as_bytes()), BlobId::from_hex(blob)?))
}
