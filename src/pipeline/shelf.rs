//! Access for an ecosystem to the stored documents that it asks about.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;

use super::lead::RELAYED;
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::Shelf;
use crate::entry::Head;
use crate::store::Store;
use crate::target::{Origin, Partition, Root, Target};

/// The stored documents that an ecosystem may read while it decides which documents it needs.
pub(super) struct Shelves<'a> {
    pub(super) store: &'a Arc<Store>,
    /// Copies that were requested before this do not count: such documents are worth fetching again.
    pub(super) since: Time,
}

impl Shelf for Shelves<'_> {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        let entry = self
            .store
            .entries(at.key(Partition::Public))
            .into_iter()
            .find(|entry| entry.requested_at >= self.since)?;
        self.store.has_blob(entry.blob)?;
        Some(Box::new(Later { store: self.store, id: entry.blob, open: None }))
    }

    fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
        self.store.claiming_roots(origin)
    }

    fn snapshot_directories(&self, origin: &Origin) -> Vec<Root> {
        self.store.snapshot_directories(origin)
    }
}

/// A document that is opened at the first read. Mostly an ecosystem only checks that it exists, on a thread that must not wait
/// for files.
struct Later<'a> {
    store: &'a Arc<Store>,
    id: BlobId,
    open: Option<Box<dyn Read>>,
}

impl Read for Later<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let blob = self.store.blob(self.id).ok_or(io::ErrorKind::NotFound)?;
                none.insert(blob.open()?)
            }
        };
        open.read(buffer)
    }
}

/// A sidecar that was just fetched.
#[derive(Debug)]
pub(super) struct Sidecar {
    pub(super) at: Target,
    pub(super) head: Head,
    pub(super) bytes: Bytes,
    pub(super) plain: bool,
    pub(super) requested_at: Time,
    pub(super) received_at: Time,
}

/// Finds sidecars that were just fetched, and then those that are stored.
pub(super) struct SidecarShelf<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) fetched: &'a [Sidecar],
}

impl Shelf for SidecarShelf<'_> {
    fn open(&self, at: &Target) -> Option<Box<dyn Read + '_>> {
        if let Some(sidecar) = self.fetched.iter().find(|sidecar| sidecar.at == *at) {
            return Some(Box::new(&*sidecar.bytes));
        }
        let stored = Shelves { store: self.store, since: Time::from_millis(i64::MIN) };
        stored.open(at).map(|mut reader| -> Box<dyn Read> {
            let mut bytes = Vec::new();
            // Read at once, because the result must not borrow from `stored`. A signature is small.
            match reader.by_ref().take(RELAYED as u64).read_to_end(&mut bytes) {
                Ok(_) => Box::new(io::Cursor::new(bytes)),
                Err(_) => Box::new(io::empty()),
            }
        })
    }

    fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
        self.store.claiming_roots(origin)
    }
}
