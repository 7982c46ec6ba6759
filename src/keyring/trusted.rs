//! The keys in force.
//!
//! A change swaps the whole keyring; who holds the old one keeps it. The count of changes says whether something was judged
//! with other keys than today's: what an index says may then have changed without a byte of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Keyring;

/// The keys in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Trusted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    keys: ArcSwap<Keyring>,
    changes: AtomicU64,
}

impl Trusted {
    /// Puts `keys` in force.
    pub fn new(keys: Keyring) -> Self {
        Self(Arc::new(Shared { keys: ArcSwap::from_pointee(keys), changes: AtomicU64::new(0) }))
    }

    /// The keys in force now.
    pub fn get(&self) -> Arc<Keyring> {
        self.0.keys.load_full()
    }

    /// Replaces them.
    pub fn set(&self, keys: Keyring) {
        self.0.keys.store(Arc::new(keys));
        // Afterwards: who reads the count first and then the keys may judge once more than needed, never once too little.
        self.0.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often they were replaced. Read it before [`Trusted::get`].
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }
}
