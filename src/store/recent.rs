//! A cache of recently requested entries, so that a hit needs neither sled nor the disk.
//!
//! After a miss here, a reader loads the entries from the ledger and inserts them. A writer may change them in between.
//! Therefore every change raises a counter, and a result is inserted only if the counter is the same as before loading.
//! Neither side holds the lock while it reads or writes files.

use std::io;
use std::sync::{Arc, Mutex};

use moka::sync::Cache;

use super::hold;
use crate::entry::Entry;
use crate::target::Key;

/// Maximum memory for entries, roughly measured.
const MAX_BYTES: u64 = 8 << 20;

/// The entries of one key, newest first.
pub(super) type Entries = Arc<[Arc<Entry>]>;

/// The cache, and the counter of changes.
#[derive(Debug)]
pub(super) struct Recent {
    entries: Cache<Key, Entries>,
    changes: Mutex<u64>,
}

impl Recent {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self {
            entries: Cache::builder()
                .max_capacity(MAX_BYTES)
                .weigher(|_, entries: &Entries| weight(entries))
                .build(),
            changes: Mutex::new(0),
        }
    }

    /// The entries of `key`, loaded if they are not cached. A failed load is not cached as "no entries".
    pub(super) fn get(
        &self,
        key: Key,
        load: impl FnOnce() -> io::Result<Vec<Entry>>,
    ) -> io::Result<Entries> {
        if let Some(entries) = self.entries.get(&key) {
            return Ok(entries);
        }
        let before = *hold(&self.changes);
        let entries: Entries = load()?.into_iter().map(Arc::new).collect();
        let changes = hold(&self.changes);
        if *changes == before {
            self.entries.insert(key, Arc::clone(&entries));
        }
        Ok(entries)
    }

    /// Removes `key` from the cache. Called after its stored entries have changed.
    pub(super) fn changed(&self, key: Key) {
        let mut changes = hold(&self.changes);
        *changes += 1;
        self.entries.invalidate(&key);
    }

    /// Empties the cache.
    pub(super) fn clear(&self) {
        let mut changes = hold(&self.changes);
        *changes += 1;
        self.entries.invalidate_all();
    }
}

/// Roughly the memory that the entries take. A key without entries has a weight too, otherwise misses would fill the
/// memory.
fn weight(entries: &Entries) -> u32 {
    let of = |entry: &Arc<Entry>| size_of::<Entry>() + entry.shown.len() + entry.head.weight();
    let bytes: usize = entries.iter().map(of).sum();
    u32::try_from(bytes + 128).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_take_bounded_memory() {
        let recent = Recent::new();
        for number in 0..70_000_u32 {
            let key = Key(crate::digest::key_hash([&number.to_be_bytes()]));
            recent.get(key, || Ok(Vec::new())).unwrap();
        }
        recent.entries.run_pending_tasks();
        assert!(recent.entries.weighted_size() <= MAX_BYTES);
        assert!(recent.entries.entry_count() <= MAX_BYTES / 128);
    }

    #[test]
    fn what_was_loaded_before_a_change_is_not_kept() {
        let recent = Recent::new();
        let key = Key([1; 32]);
        let mut loads = 0;
        let get = |load: &mut dyn FnMut() -> io::Result<Vec<Entry>>| recent.get(key, load);
        get(&mut || {
            recent.changed(key);
            Ok(Vec::new())
        })
        .unwrap();
        get(&mut || {
            loads += 1;
            Ok(Vec::new())
        })
        .unwrap();
        get(&mut || {
            loads += 1;
            Ok(Vec::new())
        })
        .unwrap();
        assert_eq!(loads, 1, "the first load was old, the second is kept");
    }
}
