//! A cache of recently requested entries, so that a hit needs neither sled nor the disk.
//!
//! After a miss here, a reader loads the entries from the ledger and inserts them. A writer may change them in between.
//! Therefore every change raises a counter, and a result is inserted only if the counter is the same as before loading.
//! Neither side holds the lock while it reads or writes files.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moka::sync::Cache;

use super::hold;
use crate::entry::Entry;
use crate::target::Key;

/// Maximum memory for entries, roughly measured.
const MAX_BYTES: u64 = 8 << 20;

/// How long results that can be read again from the store's files are remembered after their last use. So a finished build
/// leaves none of them in memory. Unit tests really wait, so theirs is shorter.
pub const IN_USE: Duration =
    if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(20) };

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
                .time_to_idle(IN_USE)
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

    /// Frees the memory of entries that were not requested for [`IN_USE`].
    pub(super) fn tidy(&self) {
        self.entries.run_pending_tasks();
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

    /// Issue 17, fault 2: the entries that a build of 20,000 files had requested stayed in memory for good.
    #[test]
    fn what_nobody_asks_for_any_more_is_given_back() {
        let recent = Recent::new();
        let key = |number: u8| Key([number; 32]);
        for number in 0..200 {
            recent.get(key(number), || Ok(Vec::new())).unwrap();
        }
        recent.tidy();
        assert_eq!(recent.entries.entry_count(), 200, "the control: it is in use");
        std::thread::sleep(IN_USE);
        recent.get(key(1), || Ok(Vec::new())).unwrap();
        recent.tidy();
        assert_eq!(recent.entries.entry_count(), 1);
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
