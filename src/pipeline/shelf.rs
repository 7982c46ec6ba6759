//! Access for an ecosystem to the stored documents that it asks about.

use std::io::{self, Read};
use std::sync::Arc;

use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::Shelf;
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
