//! How bodies were used, kept so that eviction after a restart still knows it.
//!
//! ```text
//! DATA/v1/access      sealed: for each body when it was last used, its queue and its hit count
//! ```
//!
//! Hits are counted in memory only. The file is rewritten from time to time and at shutdown. A crash loses the hits
//! since the last write, which costs only a worse choice of what to evict.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::body::BodyRecord;
use super::evict::{Bodies, QueuePosition};
use super::sealed::{Kind, seal, unseal};
use super::{MAX_BLOBS, durable};
use crate::clock::Time;
use crate::digest::BlobId;

const KIND: Kind = Kind { magic: *b"LacC", version: 1 };

/// A row takes at most 45 bytes.
const MAX_FILE: u64 = MAX_BLOBS as u64 * 64;

/// How one body was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    /// Which body.
    pub(super) blob: BlobId,
    /// When it was last used.
    pub(super) used: Time,
    in_main: bool,
    frequency: u8,
}

impl Access {
    /// The body's place in the eviction queues, for [`Bodies::insert`].
    pub(super) fn standing(self) -> QueuePosition {
        QueuePosition { in_main: self.in_main, frequency: self.frequency }
    }
}

/// Collects how every body was used.
pub(super) fn of(bodies: &Bodies<BodyRecord>) -> Vec<Access> {
    bodies
        .placed()
        .map(|(blob, holding, QueuePosition { in_main, frequency })| Access {
            blob,
            used: holding.used,
            in_main,
            frequency,
        })
        .collect()
}

/// Writes the file. A failure is only logged, because the file is a hint.
pub(super) fn write(path: &Path, accesses: &[Access]) {
    let written = seal(KIND, &accesses).and_then(|bytes| durable::write(path, &bytes, 0o600));
    if let Err(error) = written {
        tracing::debug!(%error, "the access times of stored bodies could not be written");
    }
}

/// Reads the file. A missing, unreadable or damaged file gives an empty list.
pub(super) fn read(path: &Path) -> Vec<Access> {
    durable::read(path, MAX_FILE)
        .ok()
        .flatten()
        .and_then(|bytes| unseal(KIND, &bytes))
        .unwrap_or_default()
}
