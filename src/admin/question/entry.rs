//! A stored entry, as answers show it.

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::entry::Entry;
use crate::target::Partition;

/// A stored entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The URL, secrets replaced.
    pub url: String,
    /// The variant; empty if there is only one.
    pub variant: String,
    /// The ecosystem that recognised it; empty if unknown.
    pub ecosystem: String,
    /// Whether it is an index.
    pub index: bool,
    /// Whether it is served only to requests with a credential.
    #[serde(default)]
    pub private: bool,
    /// Its proof.
    pub proof: String,
    /// The body's length.
    pub size: u64,
    /// The body's SHA-256.
    pub sha256: String,
    /// The origin's status.
    pub status: u16,
    /// The URL that answered, if redirects were followed.
    pub answered_by: Option<String>,
    /// When its last byte was received.
    pub received_at: Time,
    /// When its origin last confirmed that it is current.
    pub checked_at: Time,
}

impl From<&Entry> for Listed {
    fn from(entry: &Entry) -> Self {
        Self {
            url: entry.shown.clone(),
            variant: entry.variant.trim_end().to_owned(),
            ecosystem: entry.ecosystem.clone(),
            index: entry.index,
            private: entry.partition != Partition::Public,
            proof: entry.proof.to_string(),
            size: entry.size,
            sha256: entry.blob.to_hex(),
            status: entry.head.status.as_u16(),
            answered_by: entry.answered_by.clone(),
            received_at: entry.received_at,
            checked_at: entry.checked_at,
        }
    }
}
