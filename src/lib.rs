//! larder: one cache for everything a build downloads.
//!
//! An intercepting proxy that knows what it is looking at, keeps what never changes, and proves every byte it keeps.
//! One request goes one way:
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
//! Only `pipeline` knows the order. The modules below stand in the order of their layers, and each uses only what
//! stands before it; a test holds them to that. [`Larder`] is the wiring: it opens what there is, gives each part what
//! it needs, and runs until it is told to stop.

// The order is the architecture: what a module may use stands above it.
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

pub mod chase;

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

/// One larder on one data directory, opened and not yet serving.
#[derive(Debug)]
pub struct Larder {
    pipeline: Arc<Pipeline>,
    authority: Arc<Authority>,
    admin: Arc<Admin>,
    hurry: CancellationToken,
}

impl Larder {
    /// Opens the store and the CA under `config.data`, and makes what is missing. Blocking. A
    /// [`store::OpenError::Held`] in the error says that another larder holds the directory.
    pub fn open(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let larder = Self::begin(config, clock)?;
        larder.admin.store.read_records();
        Ok(larder)
    }

    /// The same without reading what is stored: [`Larder::run`] does that while clients are served. After a crash it takes
    /// seconds, in which they would be refused. Blocking.
    pub fn begin(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let state = admin::state_dir(&config.data);
        let config = Live::new(config);
        let store = Store::begin(config.clone(), clock.clone(), "")?;
        let authority = Authority::limited(&state, &config.get().ca_permitted(), &clock)?;
        let origins = Origins::new(config.clone(), clock.clone())?;
        let metrics = Arc::new(Metrics::new(clock.clone()));
        let keys = Trusted::new(Keyring::trusted(&config.get().keys, &state));
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
        Ok(Arc::new(Self { pipeline, authority, admin, hurry: CancellationToken::new() }))
    }

    /// Serves on `listeners` until `shutdown` resolves, then lets running transfers end, at most for
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
                // Clients are served all the same; only `larder why` and its like cannot ask.
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
            // It was told to end; how it does is of no interest.
            let _ended = questions.await;
        }
        ended.cancel();
        upkeep.await.context("looking after the store failed")
    }

    /// A larder that ends waits for no transfer any more: its connections are reset, so that no client takes what it has for
    /// the whole.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Reads what is stored, if that is still to do, and says when it is ready. `questions`: there is a socket for them.
    async fn start(&self, questions: bool) -> JoinHandle<()> {
        let starting = tokio::spawn(start(Arc::clone(&self.admin), questions));
        if self.admin.store.is_read() {
            // Who runs a larder that has read everything asks it the next moment.
            self.ready().await;
        } else {
            // Most stores are read in no time. Until then the system takes connections, and nobody is refused.
            let _quick = tokio::time::timeout(QUICK_START, self.ready()).await;
        }
        starting
    }

    /// Waits until it serves, and answers the questions of commands.
    pub async fn ready(&self) {
        if let Some(running) = &self.admin.running {
            running.ready().await;
        }
    }

    /// Tells the local network, if that was asked for. Clients are served all the same when it cannot.
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

    /// The line for a shell that sets a machine up for this larder, which it finds at `name` (`HOST:PORT`).
    pub fn setup_line(&self, name: &str) -> Option<String> {
        let running = self.admin.running.as_ref()?;
        Some(admin::setup::Script::of(running).line(name, "sudo "))
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.pipeline.metrics
    }

    /// Waits until no other command uses this larder, and lets no other begin to.
    pub async fn unused(&self) {
        if let Some(running) = &self.admin.running {
            running.unused().await;
        }
    }

    /// Notes where the values of the configuration came from, without changing any.
    pub fn configured(&self, loaded: &Loaded) {
        if let Some(running) = &self.admin.running {
            running.configured(loaded);
        }
    }

    /// Puts another configuration in force. Gives back the names of the keys that changed and wait for a restart. On an
    /// error (roots that cannot be read, say) nothing changes. The keys are read again as well. Blocking.
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
        self.admin.reload_keys();
        if let Err(error) = self.authority.reload() {
            warn!(%error, "the CA stays as it was");
        }
        self.configured(&loaded);
        Ok(waiting)
    }
}

/// How long clients wait for the first answer of a larder that still reads what is stored.
const QUICK_START: Duration = Duration::from_secs(1);

/// The task of [`Larder::start`].
async fn start(admin: Arc<Admin>, questions: bool) {
    if !admin.store.is_read() {
        let store = Arc::clone(&admin.store);
        let watch = Stopwatch::start();
        if tokio::task::spawn_blocking(move || store.read_records()).await.is_err() {
            error!(
                "what is stored could not be read, and nothing of it is given; requests go to their origins"
            );
            return;
        }
        info!("what is stored was read in {:.1?}", watch.elapsed());
    }
    if questions {
        // Whoever waits for `/-/ready` may ask the next moment.
        admin::answers_questions(&admin.config.get().data).await;
    }
    if let Some(running) = &admin.running {
        running.is_ready();
    }
}

/// How often the store is looked after: what a crash in between loses is when things were last used.
const UPKEEP: Duration = Duration::from_secs(30);

/// Rounds of upkeep in a day: as often it is said that the CA's end is near.
const A_DAY: u32 = 24 * 60 * 2;

/// Looks after the store, and what was remembered of requests, until it is told to stop; what it has begun it ends, so that
/// the directory is free afterwards. `shown` is where this larder listens, for whoever comes second.
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
            // Awaited, so that nothing has the store any more when it is closed.
            let named = tokio::task::spawn_blocking(move || admin.warn_of_ending_keys()).await;
            if named.is_err() {
                warn!("the keys that end soon could not be told");
            }
        }
        rounds = rounds.wrapping_add(1);
        if round.await.is_err() {
            warn!("looking after the store failed; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => break,
        }
        let pipeline = Arc::clone(&pipeline);
        round = tokio::task::spawn_blocking(move || {
            pipeline.store.maintain();
            pipeline.tidy();
        });
    }
    let store = Arc::clone(&pipeline.store);
    drop(pipeline);
    // The drain is over: closed here, and not when the last who holds it lets go, which may be the process's own end.
    let last = tokio::task::spawn_blocking(move || store.close()).await;
    if last.is_err() {
        warn!("the store was not closed in order; it is put in order when it is opened again");
    }
}

/// larder's own pages, as `accept` asks for them.
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
