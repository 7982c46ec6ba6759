//! larder's own pages, and the answers to `larder why`, `ls`, `stats` and other queries.
//!
//! ```text
//! GET /, /setup, /-/… ──▶ page ────┐  (questions: remote)
//! DATA/larder.sock ──▶ socket ─────┼─▶ Admin ──▶ store, metrics, authority
//! larder why, no daemon ───────────┘
//! ```
//!
//! [`Admin::answer`] is the only place that answers a [`Question`]: the daemon calls it for questions over its
//! socket, and the command line calls it directly on a store that it opened because no daemon runs.
//!
//! Nothing here is involved in serving clients, and nothing here changes what is served, except [`Question::Remove`]
//! and the questions about keys ([`keys`]).

mod answer;
pub mod ask;
pub mod ca;
pub mod keys;
mod named;
pub mod page;
mod queries;
pub mod question;
pub mod remote;
pub(crate) mod setup;
pub mod socket;
mod stay;
mod undone;
mod usage;
pub mod why;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::queries::Queries;
use self::question::Setting;
use self::stay::Stays;
use self::undone::Settled;
use crate::authority::Authority;
use crate::clock::{Clock, Time};
use crate::config::Live;
use crate::config::load::Loaded;
use crate::keyring::Trusted;
use crate::outcome::metrics::Metrics;
use crate::store::Store;

pub use self::question::{Answer, Question, Selection};

/// The sources of the answers.
#[derive(Debug)]
pub struct Admin {
    /// The configuration in force.
    pub config: Live,
    /// The clock.
    pub clock: Clock,
    /// The store.
    pub store: Arc<Store>,
    /// The parts that only a larder that serves has.
    pub running: Option<Running>,
}

/// A larder that serves.
#[derive(Debug)]
pub struct Running {
    /// Its CA.
    pub authority: Arc<Authority>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// The keys that it trusts.
    pub keys: Trusted,
    started: Time,
    listening: OnceLock<Vec<SocketAddr>>,
    ready: watch::Sender<bool>,
    draining: AtomicBool,
    settings: ArcSwap<Vec<Setting>>,
    stays: Stays,
    queries: Arc<Queries>,
    /// What was done for lost keys. Held while the keys change.
    settled: Mutex<Settled>,
    /// Whether it could not be revoked yet.
    unrevoked: AtomicBool,
}

impl Running {
    /// A larder that has started and is not ready yet.
    pub fn new(
        authority: Arc<Authority>,
        metrics: Arc<Metrics>,
        keys: Trusted,
        clock: &Clock,
    ) -> Self {
        Self {
            authority,
            metrics,
            keys,
            started: clock.now(),
            listening: OnceLock::new(),
            ready: watch::Sender::new(false),
            draining: AtomicBool::new(false),
            settings: ArcSwap::default(),
            stays: Stays::default(),
            queries: Arc::default(),
            settled: Mutex::default(),
            unrevoked: AtomicBool::new(false),
        }
    }

    /// Records the addresses to which clients connect from now on.
    pub fn listens(&self, listening: Vec<SocketAddr>) {
        // A second call would come from a second run of the same larder; its addresses are those of the first run.
        let _first = self.listening.set(listening);
    }

    /// Reports ready: from now on larder answers from the store, unless it is draining.
    pub fn is_ready(&self) {
        self.ready.send_modify(|ready| *ready = !self.draining.load(Ordering::Acquire));
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives as long as `self`, so the wait cannot fail.
        let _yes = ready.wait_for(|ready| *ready).await.is_ok();
    }

    /// Starts draining: running requests end, no new ones begin. Reports not ready to load balancers, and refuses
    /// commands that ask it to stay.
    pub fn is_draining(&self) {
        self.draining.store(true, Ordering::Release);
        self.ready.send_replace(false);
        self.stays.close();
    }

    /// The addresses to which clients connect; empty until they may.
    pub fn listening(&self) -> &[SocketAddr] {
        self.listening.get().map_or(&[], Vec::as_slice)
    }

    /// Records where the values in force came from, for `larder config --running`.
    pub fn configured(&self, loaded: &Loaded) {
        self.settings.store(Arc::new(question::settings(loaded)));
    }

    /// Waits until no command uses this larder, and then accepts no other.
    pub async fn unused(&self) {
        self.stays.none().await;
    }
}

/// Whether a larder has stored anything in a data directory.
pub fn is_there(data: &Path) -> bool {
    data.join("v1").is_dir()
}

/// The directory of the CA in a data directory.
pub fn state_dir(data: &Path) -> PathBuf {
    data.join("state")
}

/// The CA's certificate file in a data directory.
pub fn ca_file(data: &Path) -> PathBuf {
    state_dir(data).join("ca.crt")
}

/// Waits until the socket of `data` answers, a moment after it was bound; logs a warning if it does not.
pub async fn answers_questions(data: &Path) {
    /// Generous, for a busy machine.
    const PATIENCE: Duration = Duration::from_secs(5);
    let data = data.to_owned();
    let asking =
        tokio::task::spawn_blocking(move || ask::serving(&data)?.map(|it| it.status()).transpose());
    let answered = tokio::time::timeout(PATIENCE, asking).await;
    if !matches!(answered, Ok(Ok(Ok(Some(_))))) {
        tracing::warn!(
            "the socket for questions does not answer yet; `larder keys` and the like may have to be tried again"
        );
    }
}

/// The socket of the larder that serves from a data directory.
pub fn socket_file(data: &Path) -> PathBuf {
    data.join("larder.sock")
}
