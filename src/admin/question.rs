//! What can be asked of a larder, and what it answers: one JSON line each way over `DATA/larder.sock`.
//!
//! A question is one line; the answers are as many as there are, then the end of the stream. With `socat`:
//!
//! ```text
//! echo '{"why":{"url":"https://files.example.org/a.whl"}}' | socat - UNIX:DATA/larder.sock
//! ```
//!
//! Both ends are one program, so the form may change between versions; `larder … --json` is what scripts should use.
//! Times are milliseconds since 1970-01-01 UTC, sizes bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ca::CaQuestion;
use super::keys::{KeyQuestion, ListedKey, Rebound};
use super::why::Explanation;
use crate::authority::Anchor;
use crate::clock::Time;
use crate::config::Config;
use crate::config::keys::KEYS;
use crate::config::load::Loaded;
use crate::entry::Entry;
use crate::outcome::job::Tally;
use crate::outcome::metrics::Totals;
use crate::outcome::recent::Event;
use crate::target::Partition;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Who is there: one [`Answer::Status`].
    Status,
    /// The values in force and where they came from: an [`Answer::Setting`] for each key.
    Config,
    /// What was counted since the start: one [`Answer::Totals`].
    Totals,
    /// What the store holds: one [`Answer::Stats`].
    Stats,
    /// Everything known of a URL: one [`Answer::Why`].
    Why {
        /// The URL.
        url: String,
    },
    /// The last refusals, failures and alarms: an [`Answer::Event`] for each, the newest first.
    Recent,
    /// Opens listeners for a job whose clients are counted apart, while the connection is open: [`Answer::Doorway`].
    Job {
        /// The job's token.
        token: String,
    },
    /// What was counted of a job: one [`Answer::Tally`].
    Tally {
        /// The job's token.
        token: String,
    },
    /// What is stored: an [`Answer::Entry`] for each.
    Entries {
        /// A part of the URL; empty for all.
        matching: String,
    },
    /// Removes entries: one [`Answer::Removed`].
    Remove(Selection),
    /// Hashes every blob again: [`Answer::Progress`] while it goes on, then one [`Answer::Checked`].
    Verify,
    /// About the CA: [`Answer::Anchor`]s.
    Ca(CaQuestion),
    /// About keys: [`Answer::Key`]s and [`Answer::Rebound`]s.
    Keys(KeyQuestion),
    /// Asks a larder that was started for another command to stay while the connection is open: [`Answer::Staying`].
    Stay,
}

impl Question {
    /// Whether what is stored is part of the answer: then it is answered when that is known.
    pub(super) const fn is_about_the_store(&self) -> bool {
        match self {
            Self::Stats
            | Self::Why { .. }
            | Self::Entries { .. }
            | Self::Remove(_)
            | Self::Verify
            | Self::Keys(_) => true,
            Self::Status
            | Self::Config
            | Self::Totals
            | Self::Recent
            | Self::Job { .. }
            | Self::Tally { .. }
            | Self::Ca(_)
            | Self::Stay => false,
        }
    }
}

/// Which entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// All of them.
    All,
    /// Those of one URL, in every variant.
    Url(String),
    /// Those that came longer ago.
    Older {
        /// Than this.
        seconds: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Who is there.
    Status(Status),
    /// A key and its value.
    Setting(Setting),
    /// What was counted.
    Totals(Totals),
    /// What the store holds.
    Stats(Box<Stats>),
    /// What is known of a URL.
    Why(Box<Explanation>),
    /// Something that did not end well.
    Event(Box<Event>),
    /// Where a job's clients connect.
    Doorway(Vec<SocketAddr>),
    /// What was counted of a job.
    Tally(Box<Tally>),
    /// A stored entry.
    Entry(Box<Listed>),
    /// What was removed.
    Removed(Removed),
    /// How far a check is.
    Progress {
        /// Bytes hashed.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// What a check found.
    Checked(Checked),
    /// A CA that clients are to trust.
    Anchor(Anchor),
    /// A key.
    Key(Box<ListedKey>),
    /// A repository that may be signed by somebody else now.
    Rebound(Rebound),
    /// The larder stays.
    Staying,
    /// The question could not be answered, for this reason.
    Failed(String),
}

/// A larder that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
    /// Where clients connect.
    pub listening: Vec<SocketAddr>,
    /// The file of its CA's certificate.
    pub ca_file: PathBuf,
    /// The certificate itself: the file may be another user's.
    pub ca_pem: String,
    /// The certificate's SHA-256, as `openssl x509 -fingerprint` prints it.
    pub ca_sha256: String,
    /// When it started.
    pub started: Time,
}

/// A key and its value in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The value as TOML, without secrets.
    pub value: String,
    /// Where it came from: `default`, `FILE:LINE`, a variable or a flag.
    pub source: String,
}

/// The values of `loaded`, as they are shown.
pub fn settings(loaded: &Loaded) -> Vec<Setting> {
    let shown = loaded.sources.iter().map(|(key, source)| Setting {
        key: key.name.to_owned(),
        value: key.shown(&loaded.config),
        source: source.to_string(),
    });
    shown.collect()
}

/// The values of a configuration that came from no source.
pub(super) fn given(config: &Config) -> Vec<Setting> {
    let shown = KEYS.iter().map(|key| Setting {
        key: key.name.to_owned(),
        value: key.shown(config),
        source: "given".to_owned(),
    });
    shown.collect()
}

/// A stored entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The URL, secrets replaced.
    pub url: String,
    /// The variant; empty when there is only one.
    pub variant: String,
    /// The ecosystem that recognised it; empty for the unknown.
    pub ecosystem: String,
    /// Whether it is an index.
    pub index: bool,
    /// Whether it is given only to who shows a credential.
    #[serde(default)]
    pub private: bool,
    /// What vouches for it.
    pub proof: String,
    /// The body's length.
    pub size: u64,
    /// The body's SHA-256.
    pub sha256: String,
    /// The origin's status.
    pub status: u16,
    /// The URL that answered, if redirects were followed.
    pub answered_by: Option<String>,
    /// When its last byte came.
    pub received_at: Time,
    /// When its origin last said that it is current.
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

/// What the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Everything.
    pub all: Share,
    /// By the rank of what vouches for it.
    pub proofs: BTreeMap<String, Share>,
    /// By ecosystem; the unknown under an empty name.
    pub ecosystems: BTreeMap<String, Share>,
    /// Index documents whose claims are current.
    pub indexes: u64,
    /// Bytes of blobs on disk: fewer than the entries' when several share one.
    pub blob_bytes: u64,
    /// Bytes of unfinished bodies.
    pub spool_bytes: u64,
    /// Bytes of claims.
    pub claims_bytes: u64,
    /// The cap, `store.max_size`.
    pub max_size: u64,
    /// What was counted since the start, if a larder runs.
    pub totals: Option<Totals>,
}

/// A part of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Entries.
    pub entries: u64,
    /// Their bodies' lengths together.
    pub bytes: u64,
}

impl Share {
    /// Adds an entry.
    pub fn add(&mut self, size: u64) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// How much.
    pub share: Share,
    /// Entries that could not be removed, and why.
    pub failed: Vec<String>,
}

/// What a check of every blob found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Bodies whose SHA-256 is their name.
    pub sound: u64,
    /// The SHA-256 of each that was damaged; it is out of use and will be fetched again.
    pub damaged: Vec<String>,
    /// Bodies that were evicted or removed meanwhile.
    pub gone: u64,
    /// Bodies that could not be read: nothing is known of them, and they stay. The log says why.
    #[serde(default)]
    pub unread: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_short_json() {
        for (question, text) in [
            (Question::Status, "\"status\""),
            (Question::Why { url: "u".into() }, r#"{"why":{"url":"u"}}"#),
            (Question::Remove(Selection::All), r#"{"remove":"all"}"#),
            (
                Question::Remove(Selection::Older { seconds: 5 }),
                r#"{"remove":{"older":{"seconds":5}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&question).unwrap(), text);
            assert_eq!(serde_json::from_str::<Question>(text).unwrap(), question);
        }
    }
}
