//! larder: one cache for everything a build downloads.
//!
//! An intercepting proxy that recognises what clients download, keeps what never changes, and proves every byte it
//! keeps. A request passes through these stages:
//!
//! ```text
//!  TcpStream
//!     │ accept      limits, a deadline                        ┌─ about larder itself ─▶ admin
//!     ▼                                                       │
//!  CONNECT host ────────── policy says tunnel ──▶ copied through, nothing read
//!     │ intercept   leaf certificate from `authority`; h2, http/1.1
//!     ▼
//!  Request          (plain-http absolute form and mirror form join here)
//!     │ target      one request names one thing, or 421/400
//!     ▼
//!  Target
//!     │ ecosystem   recognise: index, artifact, unknown
//!     ▼
//!  Resource
//!     │ policy      pass, revalidate or keep
//!     ▼
//!  Plan ── pass ──▶ the client's own request, streamed both ways, not stored
//!     │ store       fresh ▶ reply │ stale │ miss
//!     ▼
//!  Lookup
//!     │ flight      leader, or follow the leader's growing file
//!     ▼
//!  Permit
//!     │ origin      canonical fill or revalidation into a spool file, hashing
//!     ▼
//!  Received
//!     │ verify      every claim in scope; enough proof for the demand
//!     ▼
//!  Verified
//!     │ store       commit; an index replaces its claims as a set
//!     ▼
//!  Entry
//!     │ reply       status, headers, body or range; outcome recorded
//!     ▼
//!  Response
//! ```
//!
//! Only `pipeline` knows this order. The modules below are in the order of their layers, and each uses only those
//! before it; a test checks that. [`Larder`] connects the parts: it opens the store and the CA, gives each part what
//! it needs, and runs until it is told to stop.

// The order is the architecture: a module may use those above it.
pub mod digest;

pub mod clock;

pub mod config;

pub mod limits;

mod stream;

pub mod target;

pub mod proof;

pub mod claim;

pub mod received;

pub mod entry;

pub mod keyring;

pub mod ecosystem;

pub mod verify;

pub mod policy;

pub mod freshness;

pub mod outcome;

pub mod store;

pub mod origin;

pub mod flight;

pub mod reply;

pub mod prerequisite;

pub mod pipeline;

pub mod authority;

pub mod admin;

pub mod intercept;

pub mod accept;

pub mod cli;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use accept::announce::Announcement;
use accept::{Front, OwnPages};
use admin::{Admin, Running};
use authority::Authority;
use clock::{Clock, Stopwatch};
use config::keys::{Acts, KEYS};
use config::load::Loaded;
use config::{Config, Live};
use keyring::{Keyring, Trusted};
use origin::{OriginError, Origins};
use outcome::metrics::Metrics;
use pipeline::Pipeline;
use reply::Body;
use store::Store;

/// A larder with its data directory, opened and not yet serving.
#[derive(Debug)]
pub struct Larder {
    pipeline: Arc<Pipeline>,
    authority: Arc<Authority>,
    admin: Arc<Admin>,
    hurry: CancellationToken,
}

impl Larder {
    /// Opens the store and the CA in `config.data`, and creates what is missing. Blocking. A
    /// [`store::OpenError::Held`] in the error means that another larder holds the directory.
    pub fn open(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let larder = Self::begin(config, clock)?;
        larder.admin.read_records();
        Ok(larder)
    }

    /// Like [`Larder::open`], but does not read the stored records: [`Larder::run`] does that while it serves
    /// clients. After a crash it takes seconds, in which clients would be refused. Blocking.
    pub fn begin(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let state = admin::state_dir(&config.data);
        let config = Live::new(config);
        let store = Store::begin(config.clone(), clock.clone(), "")?;
        let authority = Authority::limited(&state, &config.get().ca_permitted(), &clock)?;
        let origins = Origins::new(config.clone(), clock.clone())?;
        let metrics = Arc::new(Metrics::new(clock.clone()));
        let keys = Trusted::new(Keyring::trusted(
            &config.get().keys,
            &state,
            store.keys_in_force().as_ref(),
        ));
        let running =
            Running::new(Arc::clone(&authority), Arc::clone(&metrics), keys.clone(), &clock);
        let pipeline = Pipeline::new(
            config.clone(),
            clock.clone(),
            Arc::clone(&store),
            origins,
            metrics,
            keys,
        );
        let admin = Admin { config, clock, store, running: Some(running) };
        let (pipeline, admin) = (Arc::new(pipeline), Arc::new(admin));
        admin.begin_with_keys();
        Ok(Arc::new(Self { pipeline, authority, admin, hurry: CancellationToken::new() }))
    }

    /// Serves on `listeners` until `shutdown` resolves, then waits for running transfers to end, at most for
    /// `clients.drain_timeout`.
    pub async fn run(
        self: Arc<Self>,
        listeners: Vec<TcpListener>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<Vec<_>, _>>()
            .context("cannot tell where larder listens")?;
        let data = &self.admin.config.get().data;
        let questions = match admin::socket::bind(data) {
            Ok(socket) => Some(tokio::spawn(socket.serve(Arc::clone(&self.admin)))),
            Err(error) => {
                // Clients are served without the socket; only `larder why` and the other queries need it.
                warn!(%error, "cannot make the socket for questions; `larder why` and the like cannot reach this larder");
                None
            }
        };
        if let Some(running) = &self.admin.running {
            running.listens(addresses.clone());
        }
        let starting = self.start(questions.is_some()).await;
        let shown: Vec<String> =
            addresses.iter().map(|address| format!("http://{address}")).collect();
        self.pipeline.origins.set_own(addresses.clone());
        let ended = CancellationToken::new();
        let upkeep = tokio::spawn(upkeep(
            Arc::clone(&self.pipeline),
            Arc::clone(&self.authority),
            Arc::clone(&self.admin),
            shown.join(", "),
            ended.clone(),
        ));
        for address in &shown {
            info!("listening on {address}");
        }
        let front = Front {
            config: self.admin.config.clone(),
            pipeline: Arc::clone(&self.pipeline),
            authority: Arc::clone(&self.authority),
            own: Arc::new(Pages(Arc::clone(&self.admin))),
            metrics: Arc::clone(&self.pipeline.metrics),
            hurry: self.hurry.clone(),
        };
        let announcement = self.announce(&addresses);
        let admin = Arc::clone(&self.admin);
        let stop = async move {
            shutdown.await;
            if let Some(running) = &admin.running {
                running.is_draining();
            }
            if let Some(announcement) = announcement {
                announcement.end().await;
            }
        };
        accept::run(Arc::new(front), listeners, stop).await;
        starting.abort();
        if let Some(questions) = questions {
            questions.abort();
            // The task was aborted; its result does not matter.
            let _ended = questions.await;
        }
        ended.cancel();
        upkeep.await.context("maintenance of the store failed")
    }

    /// Stops waiting for transfers during the shutdown: their connections are reset, so that no client takes a
    /// partial body for the whole.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Reads the stored records if that has not been done, and reports when larder is ready. `questions`: whether
    /// there is a socket for queries.
    async fn start(&self, questions: bool) -> JoinHandle<()> {
        let starting = tokio::spawn(start(Arc::clone(&self.admin), questions));
        if self.admin.store.is_read() {
            // A caller that has read everything already may query larder the next moment.
            self.ready().await;
        } else {
            // Most stores are read within this time. Until then the system queues connections, and none is refused.
            let _quick = tokio::time::timeout(QUICK_START, self.ready()).await;
        }
        starting
    }

    /// Waits until larder serves and answers queries.
    pub async fn ready(&self) {
        if let Some(running) = &self.admin.running {
            running.ready().await;
        }
    }

    /// Announces larder to the local network, if configured. A failure does not stop larder from serving.
    fn announce(&self, addresses: &[SocketAddr]) -> Option<Announcement> {
        if !self.admin.config.get().announce {
            return None;
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        match Announcement::start(addresses, &host) {
            Ok(announcement) => {
                if let Some(announcement) = &announcement {
                    info!("announced as {}", announcement.names().join(" and "));
                }
                announcement
            }
            Err(error) => {
                warn!(%error, "cannot announce larder by DNS-SD; it serves all the same");
                None
            }
        }
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> String {
        self.authority.ca_pem()
    }

    /// The shell command line that sets a machine up for this larder, reached at `name` (`HOST:PORT`).
    pub fn setup_line(&self, name: &str) -> Option<String> {
        let running = self.admin.running.as_ref()?;
        Some(admin::setup::Script::of(running).line(name, "sudo "))
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.pipeline.metrics
    }

    /// Waits until no other command uses this larder, and then accepts no other.
    pub async fn unused(&self) {
        if let Some(running) = &self.admin.running {
            running.unused().await;
        }
    }

    /// Records where the values of the configuration came from, without changing any.
    pub fn configured(&self, loaded: &Loaded) {
        if let Some(running) = &self.admin.running {
            running.configured(loaded);
        }
    }

    /// Puts another configuration in force, and reads the keys again. Returns the names of changed keys that need a
    /// restart. On an error (for example unreadable root certificates) the configuration does not change. Blocking.
    pub fn reconfigure(&self, loaded: &Loaded) -> Result<Vec<&'static str>, OriginError> {
        let old = self.admin.config.get();
        let mut loaded = loaded.clone();
        let mut waiting = Vec::new();
        for key in KEYS.iter().filter(|key| key.acts == Acts::AtRestart) {
            if !key.is_same(&old, &loaded.config) {
                waiting.push(key.name);
                key.copy(&old, &mut loaded.config);
            }
        }
        self.admin.config.set(loaded.config.clone());
        if let Err(error) = self.pipeline.origins.reload() {
            self.admin.config.set(Config::clone(&old));
            return Err(error);
        }
        // An error was logged.
        let _revoked = self.admin.reload_keys();
        if let Err(error) = self.authority.reload() {
            warn!(%error, "the CA stays as it was");
        }
        self.configured(&loaded);
        Ok(waiting)
    }
}

/// How long clients wait for the first answer of a larder that is still reading the stored records.
const QUICK_START: Duration = Duration::from_secs(1);

/// The task of [`Larder::start`].
async fn start(admin: Arc<Admin>, questions: bool) {
    if !admin.store.is_read() {
        let reading = Arc::clone(&admin);
        let watch = Stopwatch::start();
        if tokio::task::spawn_blocking(move || reading.read_records()).await.is_err() {
            error!(
                "the stored records could not be read, and none is served; requests go to their origins"
            );
            return;
        }
        info!("the stored records were read in {:.1?}", watch.elapsed());
    }
    if questions {
        // A script that waits for `/-/ready` may query larder the next moment.
        admin::answers_questions(&admin.config.get().data).await;
    }
    if let Some(running) = &admin.running {
        running.is_ready();
    }
}

/// The interval of store maintenance. A crash loses the last-use times recorded since the last round.
const UPKEEP: Duration = Duration::from_secs(30);

/// Rounds of maintenance in a day, which is the interval of warnings about expiring keys and CAs.
const A_DAY: u32 = 24 * 60 * 2;

/// Maintains the store until `stop`. It finishes a round that has begun, so that the data directory is free
/// afterwards. `shown` is the address of this larder, which a second larder on the same directory reports.
async fn upkeep(
    pipeline: Arc<Pipeline>,
    authority: Arc<Authority>,
    admin: Arc<Admin>,
    shown: String,
    stop: CancellationToken,
) {
    let mut rounds: u32 = 0;
    let named = Arc::clone(&pipeline.store);
    let mut round = tokio::task::spawn_blocking(move || named.set_holder(&shown));
    loop {
        if rounds.is_multiple_of(A_DAY) {
            authority.warn_if_ending();
            let admin = Arc::clone(&admin);
            // Awaited, so that no task uses the store any more when it is closed.
            let named = tokio::task::spawn_blocking(move || admin.warn_of_ending_keys()).await;
            if named.is_err() {
                warn!("cannot check which keys end soon");
            }
        }
        rounds = rounds.wrapping_add(1);
        if round.await.is_err() {
            warn!("maintenance of the store failed; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => break,
        }
        let (pipeline, admin) = (Arc::clone(&pipeline), Arc::clone(&admin));
        round = tokio::task::spawn_blocking(move || {
            pipeline.store.maintain();
            admin.maintain_keys();
            pipeline.tidy();
        });
    }
    let store = Arc::clone(&pipeline.store);
    drop(pipeline);
    // The drain is over: closed here, and not when the last who holds it lets go, which may be the process's own end.
    let last = tokio::task::spawn_blocking(move || store.close()).await;
    if last.is_err() {
        warn!("the store was not closed cleanly; it is recovered when it is opened again");
    }
}

/// larder's own pages, for `accept`.
struct Pages(Arc<Admin>);

impl OwnPages for Pages {
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> BoxFuture<'_, Response<Body>> {
        Box::pin(admin::page::page(&self.0, request, peer))
    }
}
