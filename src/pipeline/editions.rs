//! Which edition of a signed index counts (DESIGN §3).
//!
//! A signature proves that a key signed, not that the key is this archive's, nor that the document is today's. What was seen
//! before decides: a root is bound to those who signed for it first, and they change only with an overlap; an older date
//! never replaces a newer; a date in the future never counts; what is past its `Valid-Until` makes no new claims. What does
//! not count still reaches the client that asked, which does its own check.

use std::fmt;
use std::time::Duration;

use moka::sync::Cache;

use crate::claim::{Edition, Standing};
use crate::clock::Time;
use crate::proof::Rank;
use crate::store::Store;
use crate::target::{Origin, Root, Scheme, Target};

/// How far an archive's clock may be ahead of ours; apt allows as much.
const AHEAD: Duration = Duration::from_secs(10);

/// Why an edition does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    Future(Time),
    Older { date: Time, newest: Time },
    Expired(Time),
    Unsigned(String),
    Strangers(Vec<Box<str>>),
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Future(date) => write!(f, "its date, {date}, is in the future"),
            Self::Older { date, newest } => write!(
                f,
                "its date, {date}, is older than {newest}, which was seen before: a mirror that is behind, or a replay"
            ),
            Self::Expired(until) => write!(f, "it was valid until {until}"),
            Self::Unsigned(why) => write!(f, "this archive was signed before, and now {why}"),
            Self::Strangers(signers) => write!(
                f,
                "it is signed by {}, none of whom signed for this archive before; if the archive changed its keys, \
                 `larder keys rebind` with this URL forgets the earlier ones",
                signers.join(", ")
            ),
        }
    }
}

/// Whether an edition of the index at `at` counts.
pub(super) fn admit(
    store: &Store,
    at: &Target,
    standing: &Standing,
    edition: &Edition,
    now: Time,
) -> Result<(), Held> {
    let bound = bound(store, &standing.root);
    if edition.signers.is_empty() {
        if !bound.is_empty() {
            let why = edition.unsigned.clone().unwrap_or_default();
            return Err(Held::Unsigned(why));
        }
    } else if !bound.is_empty() && !edition.signers.iter().any(|signer| bound.contains(signer)) {
        return Err(Held::Strangers(edition.signers.clone()));
    }
    if let Some(date) = edition.date {
        if date > now.plus(AHEAD) {
            return Err(Held::Future(date));
        }
        if let Some(newest) = store.newest_date(&Root::directory_of(at))
            && date < newest
        {
            return Err(Held::Older { date, newest });
        }
    }
    match edition.valid_until {
        Some(until) if until < now => Err(Held::Expired(until)),
        Some(_) | None => Ok(()),
    }
}

/// Remembers an edition that counts. Blocking when it is news.
pub(super) fn remember(store: &Store, at: &Target, standing: &Standing, edition: &Edition) {
    if standing.rank != Rank::Signed {
        return;
    }
    store.bind_signers(&standing.root, &edition.signers);
    if let Some(date) = edition.date {
        store.note_date(&Root::directory_of(at), date);
    }
}

/// Who signed for a root. What was bound over plain http is provisional: anybody on the line may have been first with
/// another archive's Release. Where the same archive is known over TLS, those who sign there decide.
fn bound(store: &Store, root: &Root) -> Vec<Box<str>> {
    if root.origin.scheme == Scheme::Http && root.origin.port == 80 {
        let twin = Root {
            origin: Origin { scheme: Scheme::Https, port: 443, ..root.origin.clone() },
            path: root.path.clone(),
        };
        let firm = store.signers(&twin);
        if !firm.is_empty() {
            return firm;
        }
    }
    store.signers(root)
}

/// What was said already: each thing is said once a day.
#[derive(Debug)]
pub(super) struct Said(Cache<String, ()>);

impl Default for Said {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self(Cache::builder().max_capacity(10_000).time_to_live(day).build())
    }
}

impl Said {
    /// Whether it is the first time.
    pub(super) fn is_news(&self, text: String) -> bool {
        self.0.entry(text).or_insert(()).is_fresh()
    }
}
