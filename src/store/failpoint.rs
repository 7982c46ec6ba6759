//! Named points at which a test may kill the process (promise P8).
//!
//! Each point lies between two steps of a fill or a commit. [`arm`] chooses one, and the next [`hit`] of it aborts the
//! process: no destructor runs and nothing is flushed, as after `kill -9`. Only `main` arms a point, and only in debug
//! builds; in a release build [`hit`] does nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Every point, in the order in which a body passes them.
pub const NAMES: [&str; 14] = [
    "store.spool-created",
    "store.half-written",
    "store.hashed",
    "store.before-fsync",
    "store.before-crc",
    "store.before-rename",
    "store.after-rename",
    "store.before-record",
    "store.after-record",
    "store.before-ledger",
    "store.after-ledger",
    "store.before-remove",
    "store.before-claims",
    "store.after-claims",
];

/// The armed point: its position in [`NAMES`] plus one; zero for none.
static ARMED: AtomicUsize = AtomicUsize::new(0);

/// Arms `name`; `false` if there is no such point.
pub fn arm(name: &str) -> bool {
    match place(name) {
        Some(position) => {
            ARMED.store(position, Ordering::Relaxed);
            true
        }
        None => false,
    }
}

/// Aborts the process if `name` is armed.
pub fn hit(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let armed = ARMED.load(Ordering::Relaxed);
    if armed != 0 && place(name) == Some(armed) {
        std::process::abort();
    }
}

fn place(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name).map(|position| position + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_place_is_not_armed() {
        assert!(!arm("store.nowhere"));
        hit("store.spool-created");
    }

    /// A point that is never hit would let its crash test pass without a crash.
    #[test]
    fn every_name_is_hit_somewhere() {
        let sources = [
            include_str!("spool.rs"),
            include_str!("commit.rs"),
            include_str!("blobs.rs"),
            include_str!("batch.rs"),
        ]
        .concat();
        for name in NAMES {
            let call = format!("failpoint::hit(\"{name}\")");
            assert_eq!(sources.matches(&call).count(), 1, "{name}");
        }
    }
}
