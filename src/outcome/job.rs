//! The counters of a job: `larder exec` counts the requests of its own command only.
//!
//! A job is identified by 128 random bits that its `exec` drew. Connections belong to it if they came through one of
//! its own listeners, or if their first request has the bits as the password of a proxy login
//! (`Proxy-Authorization`). Only a program that knows the bits can read the counters.
//!
//! Memory is bounded: the number of jobs is limited, also for each client address, and each job keeps a few short URLs.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::totals::Totals;
use crate::limits;

/// The user name of the proxy login that identifies a job; its password is the job's token.
pub const LOGIN: &str = "larder-job";

/// Hexadecimal digits of a token.
pub const TOKEN: usize = 32;

/// The most jobs at a time that began with a client's login; and the most that the operator opened listeners for.
const MOST: usize = 4096;

/// The most jobs that began with a login from one client address. A machine that runs jobs one after the other uses a new token
/// for each.
const MOST_OF_ONE: usize = 256;

/// A job without requests is forgotten after this time.
const IDLE: Duration = Duration::from_hours(12);

/// How long opening a job waits for a larder that is starting.
const STARTING: Duration = Duration::from_secs(30);

/// The most listeners that wait to be served.
const OPENING: usize = 16;

/// The most URLs that are kept of refused requests, and of failed ones.
pub(super) const NAMED: usize = 16;

/// The longest of these URLs, and the longest explanation of one, in characters; the rest is clipped.
pub(super) const LONGEST: usize = 1024;

/// The most bytes of all texts of one job. A request whose texts find no room is counted, and not named.
pub(super) const TEXTS: usize = 32 << 10;

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

impl Tally {
    /// The bytes of its texts.
    pub(super) fn texts(&self) -> usize {
        self.refused.iter().chain(&self.failed).map(Named::texts).sum()
    }
}

impl Named {
    pub(super) fn texts(&self) -> usize {
        self.url.len() + self.why.len()
    }
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Tally> {
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
    known: Mutex<HashMap<Box<str>, Known>>,
    doorways: watch::Sender<Option<mpsc::Sender<Doorway>>>,
}

/// A job that is known by its token.
struct Known {
    job: Arc<Job>,
    by: By,
    used: Instant,
}

/// The side that used a token first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum By {
    /// The operator, through larder's socket.
    Operator,
    /// A client at this address ([`limits::client`]).
    Client(IpAddr),
}

impl By {
    fn client(address: IpAddr) -> Self {
        Self::Client(limits::client(address))
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self { known: Mutex::default(), doorways: watch::Sender::new(None) }
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Jobs {
    /// The job with this token, which begins when a client at `address` first shows the token; `None` if it is not a valid token.
    pub fn of(&self, token: &str, address: IpAddr) -> Option<Arc<Job>> {
        self.begin(token, By::client(address))
    }

    fn begin(&self, token: &str, by: By) -> Option<Arc<Job>> {
        if !is_token(token) {
            return None;
        }
        let (mut known, now) = (self.lock(), Instant::now());
        if let Some(known) = known.get_mut(token) {
            known.used = now;
            return Some(Arc::clone(&known.job));
        }
        make_room(&mut known, by, now);
        let job = Arc::<Job>::default();
        known.insert(token.into(), Known { job: Arc::clone(&job), by, used: now });
        Some(job)
    }

    /// The job with this token, if it exists.
    pub fn known(&self, token: &str) -> Option<Arc<Job>> {
        self.lock().get(token).map(|known| Arc::clone(&known.job))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Known>> {
        // The map stays usable even if a thread panicked while it held the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        let job = self.begin(token, By::Operator).ok_or(io::ErrorKind::InvalidInput)?;
        let mut accepting = self.doorways.subscribe();
        // A larder that is starting will accept in a moment.
        let waited = tokio::time::timeout(STARTING, accepting.wait_for(Option::is_some));
        let doorways = match waited.await {
            Ok(Ok(doorways)) => doorways.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let doorways = doorways.ok_or(io::ErrorKind::NotConnected)?;
        let until = CancellationToken::new();
        // Made before the listeners: if one cannot be opened, those that were opened already are closed.
        let closing = until.clone().drop_guard();
        let mut listening = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind((*address, 0)).await?;
            listening.push(listener.local_addr()?);
            let doorway = Doorway { listener, job: Arc::clone(&job), until: until.clone() };
            doorways.send(doorway).await.map_err(|_| io::ErrorKind::NotConnected)?;
        }
        Ok(Opened { listening, _until: closing })
    }
}

/// Makes room for one more job of `by`. If that address has [`MOST_OF_ONE`] jobs, one of its own is removed; if all addresses
/// together have [`MOST`], one of the address that has most; and if the operator has [`MOST`], one of the operator's. Of these
/// jobs, the one that was unused for the longest time is removed.
fn make_room(known: &mut HashMap<Box<str>, Known>, by: By, now: Instant) {
    known.retain(|_, known| now.saturating_duration_since(known.used) < IDLE);
    let mut of: HashMap<By, usize> = HashMap::new();
    for known in known.values() {
        *of.entry(known.by).or_default() += 1;
    }
    let operators = of.remove(&By::Operator).unwrap_or(0);
    let clients: usize = of.values().sum();
    let from = match by {
        By::Operator => (operators >= MOST).then_some(by),
        By::Client(_) if of.get(&by).is_some_and(|count| *count >= MOST_OF_ONE) => Some(by),
        By::Client(_) if clients >= MOST => {
            of.into_iter().max_by_key(|(_, count)| *count).map(|(by, _)| by)
        }
        By::Client(_) => None,
    };
    let of_it = known.iter().filter(|(_, known)| Some(known.by) == from);
    let oldest = of_it.min_by_key(|(_, known)| known.used).map(|(token, _)| token.clone());
    if let Some(oldest) = oldest {
        known.remove(&oldest);
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
    use crate::outcome::Outcome;
    use crate::outcome::cause::Cause;
    use crate::outcome::ended::Ended;
    use crate::outcome::metrics::Metrics;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_job_counts_its_own_requests_and_names_what_was_refused_once() {
        let metrics = Metrics::default();
        let one = metrics.jobs.of(&"1".repeat(TOKEN), HERE).unwrap();
        let other = metrics.jobs.of(&"2".repeat(TOKEN), HERE).unwrap();
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
            assert!(jobs.of(other, HERE).is_none(), "{other}");
        }
        let token = "a".repeat(TOKEN);
        assert!(jobs.known(&token).is_none());
        let job = jobs.of(&token, HERE).unwrap();
        assert!(Arc::ptr_eq(&job, &jobs.known(&token).unwrap()));
    }

    fn token(number: usize) -> String {
        format!("{number:0TOKEN$x}")
    }

    /// A client that uses new tokens without end displaces only jobs of its own address.
    #[test]
    fn tokens_of_one_address_push_out_no_job_of_another() {
        let jobs = Jobs::default();
        let mine = jobs.of(&token(0), HERE).unwrap();
        let opened = jobs.begin(&token(1), By::Operator).unwrap();
        for number in 2..3 * MOST {
            let from = format!("2001:db8::{:x}", number % 0x1_0000);
            jobs.of(&token(number), from.parse().unwrap());
        }
        assert!(jobs.known(&token(0)).is_some_and(|job| Arc::ptr_eq(&job, &mine)));
        assert!(jobs.known(&token(1)).is_some_and(|job| Arc::ptr_eq(&job, &opened)));
        assert_eq!(jobs.lock().len(), MOST_OF_ONE + 2, "the control: its own go");
        for number in 3 * MOST..4 * MOST + 64 {
            let from = format!("2001:db8:{:x}::1", number - 3 * MOST);
            jobs.of(&token(number), from.parse().unwrap());
        }
        assert!(jobs.lock().len() <= MOST + 1, "from many addresses as well");
        assert!(jobs.known(&token(1)).is_some(), "what the operator opened stays");
    }

    /// Clients choose how long their URLs are.
    #[test]
    fn what_a_job_names_takes_bounded_memory_and_is_counted_all_the_same() {
        let metrics = Metrics::default();
        let job = metrics.jobs.of(&token(0), HERE).unwrap();
        for number in 0..2 * NAMED {
            for outcome in [Outcome::Refused(Cause::Guard), Outcome::Failed(Cause::Dns)] {
                let url = format!("https://example.org/{number}/{}", "\u{5317}".repeat(16 << 10));
                let ended = Ended::new(outcome, HERE, "GET", &url);
                Ended { why: Some(&url), job: Some(&job), ..ended }.write_down(&metrics);
            }
        }
        let tally = job.tally();
        assert!(tally.texts() <= TEXTS && tally.refused.len() > 1, "{}", tally.texts());
        assert_eq!(tally.totals.count(&[Outcome::Refused(Cause::Guard)]), 2 * NAMED as u64);
    }

    /// One of several addresses is not this machine's. A lack of descriptors has the same effect.
    #[tokio::test]
    async fn a_job_that_cannot_open_all_its_listeners_leaves_none_open() {
        let jobs = Jobs::default();
        let mut doorways = jobs.doorways();
        let (here, away) = (IpAddr::from([127, 0, 0, 1]), HERE);
        assert!(jobs.open(&token(0), &[here, away]).await.is_err());
        assert!(doorways.recv().await.unwrap().until.is_cancelled());
        // The control: a listener that was opened stays open until the returned value is dropped.
        let opened = jobs.open(&token(0), &[here]).await.unwrap();
        let until = doorways.recv().await.unwrap().until;
        assert!(!until.is_cancelled());
        drop(opened);
        assert!(until.is_cancelled());
    }
}
