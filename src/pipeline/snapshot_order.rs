//! Which snapshot of a signed index counts (DESIGN §3).
//!
//! A signature proves that a key signed. It proves neither that the key belongs to this archive nor that the document is current.
//! larder decides by what it saw before:
//! - a root is bound to the keys that signed for it first, and the set of keys changes only with an overlap;
//! - an older date never replaces a newer date;
//! - a date in the future never counts;
//! - a document past its `Valid-Until` makes no new claims.
//!
//! A snapshot that does not count is still given to the client that requested it, which does its own check.
//!
//! A snapshot without a date can be told from an older one only by the packages that it lists. That is a guess, because archives
//! also withdraw packages; so it raises an alarm and refuses nothing.

use std::fmt;
use std::time::Duration;

use hyper::header::{self, HeaderValue};
use moka::sync::Cache;

use super::Pipeline;
use super::task::Task;
use crate::claim::{PackageCount, Snapshot, Standing};
use crate::clock::Time;
use crate::digest::key_hash;
use crate::entry::{Entry, Head};
use crate::keyring::{self, Keyring};
use crate::proof::{Proof, Rank};
use crate::store::Store;
use crate::target::{Origin, Root, Scheme, Target};

/// How far an archive's clock may be ahead of larder's. apt allows the same.
const AHEAD: Duration = Duration::from_secs(10);

/// Why a snapshot does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotCounted {
    Future(Time),
    Older { date: Time, newest: Time },
    Expired(Time),
    Unsigned(String),
    Strangers(Vec<Box<str>>),
    NoSuccessor(Vec<Box<str>>),
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Future(date) => write!(f, "its date, {date}, is in the future"),
            Self::Older { date, newest } => write!(
                f,
                "its date, {date}, is older than {newest}, which was seen before: a mirror that is behind, or a replay"
            ),
            Self::Expired(until) => write!(f, "it was valid until {until}"),
            Self::Unsigned(why) => write!(
                f,
                "this archive was signed before, and now {why}; if its key changed or was prolonged, `larder keys add FILE` with \
                 the file that its operator publishes is enough"
            ),
            Self::NoSuccessor(signers) => write!(
                f,
                "it is signed by {}, none of whom the edition before names in Signed-By; if the archive changed its keys, \
                 `larder keys add FILE` with the new one lets it sign here, and `larder keys rebind` with this URL forgets the \
                 earlier ones",
                signers.join(", ")
            ),
            Self::Strangers(signers) => write!(
                f,
                "it is signed by {}, none of whom signed for this archive before; if the archive changed its keys, \
                 `larder keys add FILE` with the new one lets it sign here, and `larder keys rebind` with this URL forgets the \
                 earlier ones",
                signers.join(", ")
            ),
        }
    }
}

/// Whether a snapshot of the index at `at` counts. It must be signed by a key that signed before, or by one that an earlier
/// snapshot named in `Signed-By`.
pub(super) fn admit(
    store: &Store,
    at: &Target,
    standing: &Standing,
    edition: &Snapshot,
    keys: &Keyring,
    now: Time,
) -> Result<(), NotCounted> {
    let bound = bound(store, &standing.root);
    // `Signed-By` names are matched with the keyring each time: a key that is named may have been added since.
    let successors = store.successors(&Root::directory_of(at));
    let is_successor = edition.signers.iter().any(|signer| {
        let mut named = successors.iter();
        named.any(|named| keys.names(named, signer, now))
    });
    let is_known = edition.signers.iter().any(|signer| bound.contains(signer));
    if edition.signers.is_empty() {
        if !bound.is_empty() {
            let why = edition.unsigned.clone().unwrap_or_default();
            return Err(NotCounted::Unsigned(why));
        }
    } else if !bound.is_empty() && !is_known && !is_successor {
        return Err(NotCounted::Strangers(edition.signers.clone()));
    } else if !successors.is_empty() && !is_successor {
        return Err(NotCounted::NoSuccessor(edition.signers.clone()));
    }
    if let Some(date) = edition.date {
        if date > now.plus(AHEAD) {
            return Err(NotCounted::Future(date));
        }
        if let Some(newest) = store.newest_date(&Root::directory_of(at))
            && date < newest
        {
            return Err(NotCounted::Older { date, newest });
        }
    }
    match edition.valid_until {
        Some(until) if until < now => Err(NotCounted::Expired(until)),
        Some(_) | None => Ok(()),
    }
}

/// Notes which keys would have to be known for this snapshot to count, so that `larder keys add` of such a key is enough.
pub(super) fn note_waiting(
    store: &Store,
    standing: &Standing,
    edition: &Snapshot,
    held: &NotCounted,
) {
    match held {
        NotCounted::Unsigned(_) | NotCounted::Strangers(_) | NotCounted::NoSuccessor(_) => {
            let makers: Vec<Box<str>> =
                edition.signers.iter().chain(&edition.unknown).cloned().collect();
            store.note_waiting(&standing.root, &makers);
        }
        NotCounted::Future(_) | NotCounted::Older { .. } | NotCounted::Expired(_) => {}
    }
}

/// Remembers a snapshot that counts. Returns the reason if the snapshot looks older than an earlier one. Blocks on the ledger if
/// it has to write.
pub(super) fn remember(
    store: &Store,
    at: &Target,
    standing: &Standing,
    edition: &Snapshot,
) -> Option<StepBack> {
    let directory = Root::directory_of(at);
    let back = edition.census.filter(|_| standing.rank != Rank::None).and_then(|census| {
        let known = store.census(&directory);
        store.note_package_count(&directory, census);
        step_back(known?, census)
    });
    if standing.rank != Rank::Signed {
        return back;
    }
    store.bind_signers(&standing.root, &edition.signers);
    store.note_waiting(&standing.root, &[]);
    if let Some(date) = edition.date {
        store.note_date(&directory, date);
    }
    store.note_successors(&directory, &edition.successors);
    store.note_valid_until(&directory, edition.valid_until);
    back
}

impl Pipeline {
    /// The proof of a stored copy as of `now`: a signed index becomes stale when its `Valid-Until` passes.
    pub(super) fn proof_of(&self, task: &Task, entry: &Entry, now: Time) -> Proof {
        let expired = task.is_snapshot_root() && self.is_expired(task.bare(), now);
        Proof { stale: entry.proof.stale || expired, ..entry.proof }
    }

    /// Whether the newest signed index in the directory of `at` is past its `Valid-Until`.
    pub(super) fn is_expired(&self, at: &Target, now: Time) -> bool {
        self.store.valid_until(&Root::directory_of(at)).is_some_and(|until| until < now)
    }
}

/// How a snapshot without a date looks older than the one before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StepBack {
    Older { newest: Time, before: Time },
    Shrunk { packages: u64, before: u64 },
}

impl fmt::Display for StepBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older { newest, before } => write!(
                f,
                "its newest package is of {newest}, and an edition seen before had one of {before}"
            )?,
            Self::Shrunk { packages, before } => {
                write!(f, "it lists {packages} packages, and the edition before had {before}")?;
            }
        }
        f.write_str(
            ": a mirror that is behind, or a replay; it has no date, so it counts all the same",
        )
    }
}

/// The divisor of the largest loss that is normal: repositories withdraw packages one at a time, so losing more than a tenth of
/// them at once looks like an older snapshot.
const MOST_WITHDRAWN: u64 = 10;

fn step_back(known: PackageCount, now: PackageCount) -> Option<StepBack> {
    let lost = known.packages.saturating_sub(now.packages);
    if now.newest < known.newest {
        return Some(StepBack::Older { newest: now.newest, before: known.newest });
    }
    let unrenewed = lost > 0 && now.newest == known.newest;
    (unrenewed || lost > known.packages / MOST_WITHDRAWN)
        .then_some(StepBack::Shrunk { packages: now.packages, before: known.packages })
}

/// The keys that are bound to a root. A binding made over plain HTTP is provisional: an attacker on the path may have served
/// another archive's Release first. If the same archive is known over TLS, the keys bound there decide.
fn bound(store: &Store, root: &Root) -> Vec<Box<str>> {
    // A registry may have the same root as an archive. Its keys sign packages, not snapshots, so they are left out.
    let firsts = |root: &Root| {
        let mut signers = store.signers(root);
        signers.retain(|signer| !keyring::signs_packages(signer));
        signers
    };
    if root.origin.scheme == Scheme::Http && root.origin.port == 80 {
        let twin = Root {
            origin: Origin { scheme: Scheme::Https, port: 443, ..root.origin.clone() },
            path: root.path.clone(),
        };
        let firm = firsts(&twin);
        if !firm.is_empty() {
            return firm;
        }
    }
    firsts(root)
}

/// The age at which a document's date identifies its version. Two versions published in one second share the date; a minute later
/// the origin serves only the second.
const SETTLED: Duration = Duration::from_mins(1);

/// Adds a `Last-Modified` with the document's own date to a signed document that came without validators. This is the only
/// validator that larder makes up; without it clients download the document at each update.
pub(super) fn date(head: &mut Head, date: Time, requested: Time) {
    let has = |name| head.headers.contains_key(name);
    if has(header::ETAG) || has(header::LAST_MODIFIED) || requested.since(date) < SETTLED {
        return;
    }
    if let Ok(text) = HeaderValue::from_str(&httpdate::fmt_http_date(date.into())) {
        head.headers.insert(header::LAST_MODIFIED, text);
    }
}

/// Hashes of the messages that were logged during the last day, so that each message is logged once a day. Hashes bound the
/// memory, because archives choose how long a message is.
#[derive(Debug)]
pub(super) struct LoggedOnce(Cache<[u8; 32], ()>);

impl Default for LoggedOnce {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self(Cache::builder().max_capacity(10_000).time_to_live(day).build())
    }
}

impl LoggedOnce {
    /// Whether this message was not logged during the last day. Remembers it.
    pub(super) fn is_news(&self, text: &str) -> bool {
        self.0.entry(key_hash([text.as_bytes()])).or_insert(()).is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edition_without_a_date_is_judged_by_what_it_lists() {
        let census =
            |packages, newest| PackageCount { packages, newest: Time::from_millis(newest) };
        let known = census(100, 50);
        for (now, back) in [
            (census(100, 50), false),
            (census(101, 50), false),
            (census(99, 51), false),
            (census(90, 51), false),
            (census(99, 50), true),
            (census(89, 51), true),
            (census(200, 49), true),
            (census(0, 50), true),
        ] {
            assert_eq!(step_back(known, now).is_some(), back, "{now:?}");
        }
        assert_eq!(step_back(census(0, 0), known), None);
    }
}
