//! The trusted keys in force.
//!
//! A change swaps the whole keyring; a caller that holds the old keyring keeps it. The number of changes tells whether
//! an index was judged with other keys than today's: its claims may then change although its bytes did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Keyring;

/// The trusted keys in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Trusted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    keys: ArcSwap<Keyring>,
    changes: AtomicU64,
}

impl Trusted {
    /// Starts with `keys` in force.
    pub fn new(keys: Keyring) -> Self {
        Self(Arc::new(Shared { keys: ArcSwap::from_pointee(keys), changes: AtomicU64::new(0) }))
    }

    /// The keyring in force now.
    pub fn get(&self) -> Arc<Keyring> {
        self.0.keys.load_full()
    }

    /// Replaces the keyring.
    pub fn set(&self, keys: Keyring) {
        self.0.keys.store(Arc::new(keys));
        // After the swap: a caller that reads the count first and then the keys may judge once too often, but never too
        // rarely.
        self.0.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the keyring was replaced. Read it before [`Trusted::get`].
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }
}
