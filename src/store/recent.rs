//! Entries that were asked for lately, so that a hit asks neither sled nor the disk.
//!
//! A reader that misses here loads from the ledger and puts the result in. In between a writer may have changed it; so
//! every change counts up, and a result is only put in if nothing changed since before it was loaded. Neither side holds
//! the lock while it reads or writes files.

use std::io;
use std::sync::{Arc, Mutex};

use moka::sync::Cache;

use super::hold;
use crate::entry::Entry;
use crate::target::Key;

/// The memory for entries, by a rough measure of each.
const MAX_BYTES: u64 = 8 << 20;

/// The entries of one key, newest first.
pub(super) type Entries = Arc<[Arc<Entry>]>;

/// The cache.
#[derive(Debug)]
pub(super) struct Recent {
    entries: Cache<Key, Entries>,
    changes: Mutex<u64>,
}

impl Recent {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            entries: Cache::builder()
                .max_capacity(MAX_BYTES)
                .weigher(|_, entries: &Entries| weight(entries))
                .build(),
            changes: Mutex::new(0),
        }
    }

    /// The entries of `key`, loaded if they are not here. What could not be loaded is not remembered as nothing.
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

    /// Forgets `key`. Called after what is stored has changed.
    pub(super) fn changed(&self, key: Key) {
        let mut changes = hold(&self.changes);
        *changes += 1;
        self.entries.invalidate(&key);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let mut changes = hold(&self.changes);
        *changes += 1;
        self.entries.invalidate_all();
    }
}

/// Roughly the memory that they take. A key without entries has its weight too, or misses would fill the memory.
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
