//! Bytes that wait to be sent, counted for a client address and for all of them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// The bytes of one address that wait to be sent. They count for the total of all addresses as well.
#[derive(Debug)]
pub(crate) struct Buffered {
    bytes: AtomicU64,
    of_all: Arc<AtomicU64>,
    /// `clients.buffered_per_address`.
    most: u64,
    /// `clients.max_buffered`.
    most_of_all: u64,
}

impl Buffered {
    pub(super) const fn new(of_all: Arc<AtomicU64>, most: u64, most_of_all: u64) -> Self {
        Self { bytes: AtomicU64::new(0), of_all, most, most_of_all }
    }

    /// The bytes of this address.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Adds bytes that wait to be sent.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.of_all.fetch_add(bytes, Relaxed);
    }

    /// Removes bytes that were sent or abandoned.
    pub(super) fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.of_all.fetch_sub(bytes, Relaxed);
    }

    /// Whether nothing more may be buffered for this address now.
    pub(super) fn is_full(&self) -> bool {
        self.bytes() >= self.most || self.of_all.load(Relaxed) >= self.most_of_all
    }
}
