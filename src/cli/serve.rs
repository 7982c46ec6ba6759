//! `larder serve`.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::supervisor::Supervisor;
use super::{FAILED, Invocation, OK, ReachOptions, Reload, logging};
use crate::Larder;
use crate::accept;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::environment::Environment;
use crate::config::load::Loaded;
use crate::config::service::{self, Reports};
use crate::limits;

const EXAMPLES: &str = "\
Examples:
  larder serve                                       for this machine, on port 3142; cache in ~/.cache/larder
  larder serve --listen '[::]:3142' --data /srv/larder    for other machines as well
  larder serve --upstream-ca corporate-ca.pem --set store.max_size=100GiB

Clients set HTTPS_PROXY and HTTP_PROXY to it and trust its CA; `larder exec`,
`larder env` and `larder ca` help with that. SIGHUP reads the configuration
and the keys again; SIGTERM and SIGINT let running transfers end, a second one
does not. Under systemd it takes the sockets of a .socket unit instead of
`listen`, and says when it is ready (Type=notify).";

/// Serves clients until it is told to stop.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Serve {
    /// The address to listen on; may be given several times [default: 127.0.0.1:3142, for this machine alone]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Vec<String>,
    #[command(flatten)]
    pub(super) reach: ReachOptions,
}

/// How long the runtime waits at exit for reads and writes that no request needs any more.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// How long aborting all transfers may take: clients get an error, and the store is closed if there is time.
const BREAKING_OFF: Duration = Duration::from_secs(3);

/// How long closing the store may take; it records when each entry was last used.
const PUTTING_AWAY: Duration = Duration::from_secs(15);

/// Whether all these listeners are on loopback.
fn is_for_this_machine_alone(listeners: &[TcpListener]) -> bool {
    listeners
        .iter()
        .all(|one| one.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback()))
}

/// The status that the service manager shows while larder serves.
const SERVING: &str = "serving clients";

/// Runs larder. Its flags are already in the configuration.
pub(super) fn run(invocation: &Invocation) -> anyhow::Result<u8> {
    logging::start(&invocation.loaded, None);
    arm_failpoint(&invocation.environment);
    // Before the runtime starts threads.
    let passed = service::listeners(&invocation.environment)
        .context("the service manager passed a socket that is no TCP listener")?;
    // Not in `exec`: its command would inherit the limit, and some old programs close every descriptor up to it.
    let _limit = limits::raise();
    let runtime = runtime()?;
    let code = runtime.block_on(serve(invocation, passed));
    runtime.shutdown_timeout(LEFTOVERS);
    code
}

/// Threads for files, hashing and parsing. Each such task is short; more threads would only use more memory. Parsing
/// indexes takes longer, and is limited to fewer threads.
const BLOCKING: usize = 64;

/// The runtime of the commands that serve.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .build()
        .context("cannot start the runtime")
}

/// In a debug build, makes the process kill itself at the named place (tests of promise P8).
pub(super) fn arm_failpoint(environment: &Environment) {
    if cfg!(debug_assertions)
        && let Some(name) = environment.get("LARDER_FAILPOINT")
        && !crate::store::failpoint::arm(name)
    {
        warn!(name, "there is no such failpoint");
    }
}

async fn serve(invocation: &Invocation, passed: Vec<std::net::TcpListener>) -> anyhow::Result<u8> {
    let supervisor = Arc::new(Supervisor::of(&Reports::wanted(&invocation.environment)));
    let (config, clock) = (invocation.loaded.config.clone(), invocation.clock.clone());
    let larder = tokio::task::spawn_blocking(move || Larder::begin(config, clock)).await??;
    larder.configured(&invocation.loaded);
    let listeners = if passed.is_empty() {
        let addresses = invocation.loaded.config.listen.iter();
        addresses.map(|address| accept::bind(*address)).collect::<io::Result<Vec<_>>>()?
    } else {
        info!("the service manager passed {} listening sockets; `listen` is ignored", passed.len());
        passed.into_iter().map(accept::adopt).collect::<io::Result<Vec<_>>>()?
    };
    if let Some(line) = name_of(&listeners).and_then(|name| larder.setup_line(&name)) {
        info!("to set up a machine for this larder, run: {line}");
    }
    if is_for_this_machine_alone(&listeners) {
        info!(
            "other machines cannot reach this larder; `larder serve --listen '[::]:3142'` lets them in"
        );
    }
    // Handlers are installed before the first client: an early signal must not kill the process.
    let (mut once, mut twice) = (Stops::new()?, Stops::new()?);
    let reloads = tokio::spawn(reload(
        Arc::clone(&larder),
        signal(SignalKind::hangup())?,
        invocation.reload.clone(),
        invocation.environment.clone(),
        Arc::clone(&supervisor),
    ));
    let patience = invocation.loaded.config.clients.drain_timeout + LEFTOVERS + PUTTING_AWAY;
    let told = Arc::clone(&supervisor);
    let running = Arc::clone(&larder).run(listeners, async move {
        let name = once.next().await;
        told.stopping(patience).await;
        info!(
            "{name}: running transfers may finish, no new ones begin; a second signal aborts them"
        );
    });
    let (ready, told) = (Arc::clone(&larder), Arc::clone(&supervisor));
    // Only now may services that depend on this one start: they may connect, and query it (`larder keys add`), at
    // once.
    let telling = tokio::spawn(async move {
        ready.ready().await;
        told.ready(SERVING).await;
    });
    let mut running = pin!(running);
    let code = tokio::select! {
        ended = running.as_mut() => ended.map(|()| OK),
        never = supervisor.watch() => match never {},
        _second = async { twice.next().await; twice.next().await } => {
            warn!("second signal: transfers are aborted");
            larder.hurry();
            drop(tokio::time::timeout(BREAKING_OFF, running).await);
            Ok(FAILED)
        }
    };
    reloads.abort();
    telling.abort();
    code
}

/// The name at which other machines find the first of `listeners`, as far as this machine can tell: its address, or,
/// if it listens on all addresses, the host's name.
fn name_of(listeners: &[TcpListener]) -> Option<String> {
    let address = listeners.first()?.local_addr().ok()?;
    if !address.ip().is_unspecified() {
        return Some(address.to_string());
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // The name becomes part of a shell command line.
    let is_name = !host.is_empty()
        && !host.starts_with(['-', '.'])
        && host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c));
    let host = if is_name { &host } else { "localhost" };
    Some(format!("{host}:{}", address.port()))
}

/// Opens a larder on a blocking thread.
pub(super) async fn open(config: Config, clock: Clock) -> anyhow::Result<Arc<Larder>> {
    tokio::task::spawn_blocking(move || Larder::open(config, clock)).await?
}

/// The signals that ask larder to stop.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Reloads the configuration at each SIGHUP. An invalid configuration changes nothing.
async fn reload(
    larder: Arc<Larder>,
    mut hangups: Signal,
    from: Reload,
    environment: Environment,
    supervisor: Arc<Supervisor>,
) {
    while hangups.recv().await.is_some() {
        supervisor.reloading().await;
        let (from, environment) = (from.clone(), environment.clone());
        let larder = Arc::clone(&larder);
        let put =
            tokio::task::spawn_blocking(move || put_in_force(&larder, &from.read(&environment)?));
        if let Err(error) = put.await.map_err(anyhow::Error::from).flatten() {
            error!("the configuration stays as it was: {error:#}");
        }
        // Also after an error: larder keeps serving with the old configuration.
        supervisor.ready(SERVING).await;
    }
}

/// Applies a configuration that was read again. Blocking.
fn put_in_force(larder: &Larder, loaded: &Loaded) -> anyhow::Result<()> {
    match larder.reconfigure(loaded)?.as_slice() {
        [] => info!("the configuration was reloaded and is in force"),
        waiting => info!(
            "the configuration was reloaded and is in force; restart larder to change {}",
            waiting.join(", ")
        ),
    }
    Ok(())
}
