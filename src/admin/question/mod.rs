//! Questions to a larder and its answers: one line of JSON each over `DATA/larder.sock`.
//!
//! A question is one line; the answers are as many lines as there are, followed by the end of the stream. With
//! `socat`:
//!
//! ```text
//! echo '{"why":{"url":"https://files.example.org/a.whl"}}' | socat - UNIX:DATA/larder.sock
//! ```
//!
//! Both ends are the same program, so the format may change between versions; scripts should use `larder … --json`.
//! Times are milliseconds since 1970-01-01 UTC, sizes are bytes.

pub mod ca;
pub mod entry;
pub mod keys;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::ca::CaQuestion;
use self::entry::Listed;
use self::keys::{KeyQuestion, ListedKey, Rebound};
use super::why::Explanation;
use crate::authority::Anchor;
use crate::clock::Time;
use crate::config::Config;
use crate::config::keys::KEYS;
use crate::config::load::Loaded;
use crate::outcome::job::Tally;
use crate::outcome::recent::Event;
use crate::outcome::totals::Totals;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// The larder's status: one [`Answer::Status`].
    Status,
    /// The values in force and their sources: an [`Answer::Setting`] for each key.
    Config,
    /// The counters since the start: one [`Answer::Totals`].
    Totals,
    /// The contents of the store in numbers: one [`Answer::Stats`].
    Stats,
    /// Everything known of a URL: one [`Answer::Why`].
    Why {
        /// The URL.
        url: String,
    },
    /// The last refusals, failures and alarms: an [`Answer::Event`] for each, the newest first.
    Recent,
    /// Opens listeners for a job, whose requests are counted separately, until the connection ends:
    /// [`Answer::Doorway`].
    Job {
        /// The job's token.
        token: String,
    },
    /// The counters of a job: one [`Answer::Tally`].
    Tally {
        /// The job's token.
        token: String,
    },
    /// The stored entries: an [`Answer::Entry`] for each.
    Entries {
        /// A part of the URL; empty for all entries.
        matching: String,
    },
    /// Removes entries: one [`Answer::Removed`].
    Remove(Selection),
    /// Hashes every blob again: [`Answer::Progress`] during the check, then one [`Answer::Checked`].
    Verify,
    /// About the CA: [`Answer::Anchor`]s.
    Ca(CaQuestion),
    /// About keys: [`Answer::Key`]s and [`Answer::Rebound`]s.
    Keys(KeyQuestion),
    /// Asks a larder that was started for another command to keep running until the connection ends:
    /// [`Answer::Staying`].
    Stay,
}

impl Question {
    /// Whether the answer depends on the store: then it waits until the store has been read.
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

/// A selection of entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// All of them.
    All,
    /// Those of one URL, in every variant.
    Url(String),
    /// Those received longer ago than `seconds`.
    Older {
        /// The age.
        seconds: u64,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The larder's status.
    Status(Status),
    /// A key and its value.
    Setting(Setting),
    /// The counters since the start.
    Totals(Totals),
    /// The contents of the store in numbers.
    Stats(Box<Stats>),
    /// Everything known of a URL.
    Why(Box<Explanation>),
    /// A refusal, a failure or an alarm.
    Event(Box<Event>),
    /// The addresses to which a job's clients connect.
    Doorway(Vec<SocketAddr>),
    /// The counters of a job.
    Tally(Box<Tally>),
    /// A stored entry.
    Entry(Box<Listed>),
    /// What was removed.
    Removed(Removed),
    /// The progress of a check.
    Progress {
        /// Bytes hashed.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The result of a check.
    Checked(Checked),
    /// A CA that clients must trust.
    Anchor(Anchor),
    /// A key.
    Key(Box<ListedKey>),
    /// A repository whose next trusted signer is accepted as the first.
    Rebound(Rebound),
    /// The larder keeps running.
    Staying,
    /// The question could not be answered, for this reason.
    Failed(String),
}

/// The status of a larder that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
    /// The addresses to which clients connect.
    pub listening: Vec<SocketAddr>,
    /// The file of its CA's certificate.
    pub ca_file: PathBuf,
    /// The certificate itself: the file may not be readable for another user.
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
    /// Its source: `default`, `FILE:LINE`, a variable or a flag.
    pub source: String,
}

/// The values of `loaded`, in displayed form.
pub fn settings(loaded: &Loaded) -> Vec<Setting> {
    let shown = loaded.sources.iter().map(|(key, source)| Setting {
        key: key.name.to_owned(),
        value: key.shown(&loaded.config),
        source: source.to_string(),
    });
    shown.collect()
}

/// The values of a configuration without recorded sources.
pub(super) fn given(config: &Config) -> Vec<Setting> {
    let shown = KEYS.iter().map(|key| Setting {
        key: key.name.to_owned(),
        value: key.shown(config),
        source: "given".to_owned(),
    });
    shown.collect()
}

/// The contents of the store in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All entries.
    pub all: Share,
    /// By the rank of their proof.
    pub proofs: BTreeMap<String, Share>,
    /// By ecosystem; unknown ones under an empty name.
    pub ecosystems: BTreeMap<String, Share>,
    /// Index documents whose claims are current.
    pub indexes: u64,
    /// Bytes of blobs on disk: fewer than the entries' bytes if entries share a blob.
    pub blob_bytes: u64,
    /// Bytes of unfinished bodies.
    pub spool_bytes: u64,
    /// Bytes of claims.
    pub claims_bytes: u64,
    /// The limit, `store.max_size`.
    pub max_size: u64,
    /// The counters since the start, if a larder runs.
    pub totals: Option<Totals>,
}

/// A share of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Entries.
    pub entries: u64,
    /// The sum of their bodies' lengths.
    pub bytes: u64,
}

impl Share {
    /// Adds an entry.
    pub fn add(&mut self, size: u64) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// The result of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The entries that were removed.
    pub share: Share,
    /// Entries that could not be removed, and why.
    pub failed: Vec<String>,
}

/// The result of a check of every blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Bodies whose SHA-256 matches their name.
    pub sound: u64,
    /// The SHA-256 of each damaged body; it is out of use and will be fetched again.
    pub damaged: Vec<String>,
    /// Bodies that were evicted or removed during the check.
    pub gone: u64,
    /// Bodies that could not be read: their state is unknown, and they are kept. The log gives the reasons.
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
