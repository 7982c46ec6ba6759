//! What is in memory about a body in service.

use std::sync::Arc;

use super::blobs::{Stored, footprint_of};
use super::space::Kept;
use crate::clock::Time;

/// What the store knows about a body in service.
#[derive(Debug)]
pub(super) struct BodyRecord {
    /// Its length in bytes.
    pub(super) size: u64,
    /// What its readers share, since it was last opened. [`BodyRecord::rest`] frees that.
    used_as: Option<Arc<Stored>>,
    /// The disk space of the body and of its records, which is freed together with it.
    room: Kept,
    /// When it was last used.
    pub(super) used: Time,
    /// The number of entries that name it.
    pub(super) refs: u32,
    /// The number of those that are public.
    pub(super) public: u32,
    /// The CRC of its only chunk, while nobody uses it. Most bodies have one chunk, and finding its CRC again takes hashing
    /// the body.
    sum: Option<u32>,
}

impl BodyRecord {
    /// A body of `size` bytes that no entry names yet. `room` is its disk space and that of records to come.
    pub(super) fn new(size: u64, room: Kept, used: Time) -> Self {
        Self { size, used_as: None, room, used, refs: 0, public: 0, sum: None }
    }

    /// Puts it into service as a body that was just moved here.
    pub(super) fn is_used_as(&mut self, stored: &Arc<Stored>) {
        self.used_as = Some(Arc::clone(stored));
    }

    /// The body for use. The returned reference pins it.
    pub(super) fn stored(&mut self) -> Arc<Stored> {
        let (size, sum) = (self.size, self.sum);
        Arc::clone(self.used_as.get_or_insert_with(|| Arc::new(Stored::new(size, sum))))
    }

    /// Whether a reader holds it, so that it must not be evicted.
    pub(super) fn is_pinned(&self) -> bool {
        self.used_as.as_ref().is_some_and(Stored::is_pinned)
    }

    /// Frees what only readers need, if there are none and its file is closed.
    pub(super) fn rest(&mut self) {
        if let Some(stored) =
            self.used_as.take_if(|stored| !stored.is_pinned() && !stored.is_open())
        {
            self.sum = stored.only_sum();
        }
    }

    /// Counts the disk space of its records, of which `more` bytes were added and `less` removed.
    pub(super) fn count_records(&mut self, more: u64, less: u64) {
        self.room.change(more, less);
    }
}

impl Drop for BodyRecord {
    /// Readers may still have it open. The disk space of an unlinked file is free when the last of them ends.
    fn drop(&mut self) {
        if let Some(stored) = self.used_as.take() {
            stored.leave(self.room.split(footprint_of(self.size)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::space::{Purpose, Space};
    use super::*;
    use crate::config::{Config, Live};

    /// A body of 1000 bytes with one record, and the accounts.
    fn body() -> (Arc<Space>, BodyRecord) {
        let space = Space::new(Live::new(Config::default()), "/".into());
        let room = space.take(Purpose::Blob, footprint_of(1000) + 4096);
        (space, BodyRecord::new(1000, Kept::of(room), Time::from_millis(0)))
    }

    #[test]
    fn what_readers_share_is_freed_when_nobody_reads() {
        let (_space, mut body) = body();
        let reader = Arc::new(Stored::new(1000, Some(7)));
        body.is_used_as(&reader);
        body.rest();
        assert!(body.is_pinned() && body.used_as.is_some(), "the control: it is being read");
        drop(reader);
        body.rest();
        assert!(!body.is_pinned() && body.used_as.is_none());
        assert_eq!(body.stored().only_sum(), Some(7), "the checksum is still known");
    }

    #[test]
    fn the_room_of_a_removed_body_is_free_when_its_last_reader_ends() {
        let (space, mut body) = body();
        let reader = body.stored();
        drop(body);
        assert_eq!(space.taken(Purpose::Blob), footprint_of(1000), "only that of its record");
        drop(reader);
        assert_eq!(space.taken(Purpose::Blob), 0);
    }
}
