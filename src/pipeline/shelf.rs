//! What is at hand of the documents that an ecosystem asks about.

use std::io::{self, Read};
use std::sync::Arc;

use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::Shelf;
use crate::store::Store;
use crate::target::{Origin, Partition, Root, Target};

/// What an ecosystem may look at while it says which documents it wants.
pub(super) struct Shelves<'a> {
    pub(super) store: &'a Arc<Store>,
    /// Copies that are older do not count as being at hand: they are worth asking for again.
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

    fn speakers(&self, origin: &Origin) -> Vec<Root> {
        self.store.speakers(origin)
    }

    fn editions(&self, origin: &Origin) -> Vec<Root> {
        self.store.editions(origin)
    }
}

/// A document that is opened when it is read: mostly it is only asked whether it is there, on a thread that must not wait
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
