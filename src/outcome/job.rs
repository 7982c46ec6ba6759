//! The counters of a job: `larder exec` counts the requests of its own command only.
//!
//! A job is identified by 128 random bits that its `exec` drew. Connections belong to it if they came through one of
//! its own listeners, or if their first request has the bits as the password of a proxy login
//! (`Proxy-Authorization`). Only a program that knows the bits can read the counters.
//!
//! Memory is bounded: the number of jobs is limited, and each keeps a few URLs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Outcome;
use super::ended::Ended;
use super::metrics::{Direction, Totals};

/// The user name of the proxy login that identifies a job; its password is the job's token.
pub const LOGIN: &str = "larder-job";

/// Hexadecimal digits of a token.
pub const TOKEN: usize = 32;

/// The most jobs at a time.
const MOST: u64 = 4096;

/// A job without requests is forgotten after this time.
const IDLE: Duration = Duration::from_hours(12);

/// How long opening a job waits for a larder that is starting.
const STARTING: Duration = Duration::from_secs(30);

/// The most listeners that wait to be served.
const OPENING: usize = 16;

/// The most URLs that are kept of refused requests, and of failed ones.
const NAMED: usize = 16;

/// The counters of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The totals.
    pub totals: Totals,
    /// The first few URLs that were refused, each once, secrets replaced.
    pub refused: Vec<Named>,
    /// The first few URLs whose requests failed, likewise.
    pub failed: Vec<Named>,
}

/// A URL whose request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The URL, secrets replaced.
    pub url: String,
    /// The cause, as in metrics.
    pub cause: String,
    /// The reason, for people.
    pub why: String,
}

/// One job.
#[derive(Debug, Default)]
pub struct Job(Mutex<Tally>);

impl Job {
    /// A copy of the counters.
    pub fn tally(&self) -> Tally {
        self.lock().clone()
    }

    /// Counts a client that rejected larder's certificate.
    pub fn distrusted(&self) {
        let totals = &mut self.lock().totals;
        totals.distrusted = totals.distrusted.saturating_add(1);
    }

    /// Counts a client that left after its handshake without a request.
    pub fn left(&self) {
        let totals = &mut self.lock().totals;
        totals.left = totals.left.saturating_add(1);
    }

    /// Counts a request that ended.
    pub(super) fn ended(&self, ended: &Ended<'_>) {
        let mut tally = self.lock();
        let totals = &mut tally.totals;
        totals.ended(ended.outcome, ended.proof);
        totals.bytes(Direction::ToClient, ended.bytes);
        totals.bytes(Direction::FromOrigin, ended.fetched);
        if ended.outcome.is_hit() {
            totals.bytes(Direction::FromStore, ended.bytes);
        }
        totals.saved(ended.saved);
        let named = match ended.outcome {
            Outcome::Rejected(_) | Outcome::Refused(_) => &mut tally.refused,
            Outcome::Failed(_) => &mut tally.failed,
            Outcome::Hit
            | Outcome::Revalidated
            | Outcome::Stale
            | Outcome::Miss
            | Outcome::Collapsed
            | Outcome::Pass(_)
            | Outcome::Tunnel
            | Outcome::Own => return,
        };
        if named.len() < NAMED && named.iter().all(|named| named.url != ended.url) {
            named.push(Named {
                url: ended.url.to_owned(),
                cause: ended.outcome.reason().to_owned(),
                why: ended.why.unwrap_or_default().to_owned(),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        // Totals stay usable even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's own listener, from which connections are to be accepted.
#[derive(Debug)]
pub struct Doorway {
    /// The listener for its clients.
    pub listener: TcpListener,
    /// The job.
    pub job: Arc<Job>,
    /// Cancelled when the job ends.
    pub until: CancellationToken,
}

/// Keeps a job's listeners open until dropped.
#[derive(Debug)]
pub struct Opened {
    /// The addresses to which its clients connect.
    pub listening: Vec<SocketAddr>,
    _until: DropGuard,
}

/// The jobs of one larder.
pub struct Jobs {
    known: Cache<Box<str>, Arc<Job>>,
    doorways: watch::Sender<Option<mpsc::Sender<Doorway>>>,
}

impl Default for Jobs {
    fn default() -> Self {
        let known = Cache::builder().max_capacity(MOST).time_to_idle(IDLE).build();
        Self { known, doorways: watch::Sender::new(None) }
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Jobs {
    /// The job with this token, which is created on first use; `None` if it is not a valid token.
    pub fn of(&self, token: &str) -> Option<Arc<Job>> {
        is_token(token).then(|| self.known.get_with(token.into(), Arc::default))
    }

    /// The job with this token, if it exists.
    pub fn known(&self, token: &str) -> Option<Arc<Job>> {
        self.known.get(token)
    }

    /// The receiver of the jobs' listeners, for the code that accepts connections.
    pub fn doorways(&self) -> mpsc::Receiver<Doorway> {
        let (doorways, opened) = mpsc::channel(OPENING);
        self.doorways.send_replace(Some(doorways));
        opened
    }

    /// Opens listeners for the job with this token at `addresses`, on free ports. They are closed when the returned
    /// value is dropped.
    pub async fn open(&self, token: &str, addresses: &[IpAddr]) -> io::Result<Opened> {
        let job = self.of(token).ok_or(io::ErrorKind::InvalidInput)?;
        let mut accepting = self.doorways.subscribe();
        // A larder that is starting will accept in a moment.
        let waited = tokio::time::timeout(STARTING, accepting.wait_for(Option::is_some));
        let doorways = match waited.await {
            Ok(Ok(doorways)) => doorways.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let doorways = doorways.ok_or(io::ErrorKind::NotConnected)?;
        let until = CancellationToken::new();
        let mut listening = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind((*address, 0)).await?;
            listening.push(listener.local_addr()?);
            let doorway = Doorway { listener, job: Arc::clone(&job), until: until.clone() };
            doorways.send(doorway).await.map_err(|_| io::ErrorKind::NotConnected)?;
        }
        Ok(Opened { listening, _until: until.drop_guard() })
    }
}

/// The token in a proxy login, if the login is a job's.
pub fn shown(login: &HeaderValue) -> Option<String> {
    let encoded = login.to_str().ok()?.strip_prefix("Basic ")?;
    let plain = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let token = plain.strip_prefix(LOGIN)?.strip_prefix(':')?;
    is_token(token).then(|| token.to_owned())
}

/// The login that carries a token.
pub fn login(token: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{LOGIN}:{token}")))
}

fn is_token(text: &str) -> bool {
    text.len() == TOKEN && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::cause::Cause;
    use crate::outcome::metrics::Metrics;

    #[test]
    fn a_job_counts_its_own_requests_and_names_what_was_refused_once() {
        let metrics = Metrics::default();
        let one = metrics.jobs.of(&"1".repeat(TOKEN)).unwrap();
        let other = metrics.jobs.of(&"2".repeat(TOKEN)).unwrap();
        let client = "192.0.2.1".parse().unwrap();
        let bad = Outcome::Rejected(Cause::Promise);
        for (job, outcome) in
            [(&one, Outcome::Hit), (&other, Outcome::Hit), (&one, bad), (&one, bad)]
        {
            let ended = Ended::new(outcome, client, "GET", "https://example.org/a");
            Ended { bytes: 7, job: Some(job), ..ended }.write_down(&metrics);
        }
        let tally = one.tally();
        assert_eq!((tally.totals.requests(), tally.totals.from_store), (3, 7));
        assert_eq!(tally.refused.len(), 1);
        assert_eq!(tally.refused[0].cause, "promise");
        assert_eq!(other.tally().totals.requests(), 1);
        assert_eq!(metrics.totals().requests(), 4, "larder's own sums hold all");
    }

    #[test]
    fn a_login_shows_a_token_and_no_other_login_does() {
        let token = "0a".repeat(TOKEN / 2);
        let of = |login: &str| shown(&HeaderValue::from_str(login).unwrap());
        assert_eq!(of(&login(&token)), Some(token.clone()));
        for other in [format!("user:{token}"), format!("{LOGIN}:x"), format!("{LOGIN}:{token}0")] {
            assert_eq!(of(&format!("Basic {}", STANDARD.encode(other))), None);
        }
        assert_eq!(of("Basic ?"), None);
        assert_eq!(of("Bearer x"), None);
    }

    #[test]
    fn only_a_whole_token_makes_a_job() {
        let jobs = Jobs::default();
        for other in ["", "1", &"1".repeat(TOKEN - 1), &"g".repeat(TOKEN), &"A".repeat(TOKEN)] {
            assert!(jobs.of(other).is_none(), "{other}");
        }
        let token = "a".repeat(TOKEN);
        assert!(jobs.known(&token).is_none());
        let job = jobs.of(&token).unwrap();
        assert!(Arc::ptr_eq(&job, &jobs.known(&token).unwrap()));
    }
}
