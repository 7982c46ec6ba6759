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
use super::{FAILED, Invocation, OK, Reach, Reload, logging};
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
  larder serve                                       on port 3142, cache in ~/.cache/larder
  larder serve --listen 127.0.0.1:8080 --data /srv/larder
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
    /// Where clients connect; may be given several times; by default port 3142 of all addresses
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Vec<String>,
    #[command(flatten)]
    pub(super) reach: Reach,
}

/// What is still being read or written when everything is done gets this long: it is nobody's any more.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// How long transfers may take to be broken off: clients are told, and the store is put away if that is quick.
const BREAKING_OFF: Duration = Duration::from_secs(3);

/// Closing the store, which records when everything was last used.
const PUTTING_AWAY: Duration = Duration::from_secs(15);

/// What the service manager shows of a larder that is ready.
const SERVING: &str = "serving clients";

/// Runs it: what its flags said is in the configuration.
pub(super) fn run(invocation: &Invocation) -> anyhow::Result<u8> {
    logging::start(&invocation.loaded, None);
    arm_failpoint(&invocation.environment);
    // Before the runtime, which brings threads.
    let passed = service::listeners(&invocation.environment)
        .context("the service manager passed a socket that is no TCP listener")?;
    // Not in `exec`: its command would inherit it, and some old programs close every descriptor there could be.
    let _limit = limits::raise();
    let runtime = runtime()?;
    let code = runtime.block_on(serve(invocation, passed));
    runtime.shutdown_timeout(LEFTOVERS);
    code
}

/// Threads for files, hashing and parsing. Each piece of such work is short; more threads would only hold more memory. What
/// takes long is the reading of indexes, which has few of them at a time.
const BLOCKING: usize = 64;

/// The runtime of the commands that serve.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .build()
        .context("cannot start the runtime")
}

/// A debug build kills itself at the named place (promise P8's tests).
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
        info!(
            "the service manager passed {} listening sockets; `listen` is not used",
            passed.len()
        );
        passed.into_iter().map(accept::adopt).collect::<io::Result<Vec<_>>>()?
    };
    if let Some(line) = name_of(&listeners).and_then(|name| larder.setup_line(&name)) {
        info!("sets a machine up for this larder: {line}");
    }
    // Handlers before the first client: a signal that comes early is not to end the process the hard way.
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
        info!("{name}: running transfers may end, new ones are not begun; a second signal breaks them off");
    });
    let (ready, told) = (Arc::clone(&larder), Arc::clone(&supervisor));
    // Whoever is started after this service may use it, and ask it (`larder keys add`), at once.
    let telling = tokio::spawn(async move {
        ready.ready().await;
        told.ready(SERVING).await;
    });
    let mut running = pin!(running);
    let code = tokio::select! {
        ended = running.as_mut() => ended.map(|()| OK),
        never = supervisor.watch() => match never {},
        _second = async { twice.next().await; twice.next().await } => {
            warn!("second signal: transfers are broken off");
            larder.hurry();
            drop(tokio::time::timeout(BREAKING_OFF, running).await);
            Ok(FAILED)
        }
    };
    reloads.abort();
    telling.abort();
    code
}

/// By what name other machines find the first of `listeners`, as far as this one can tell: its address, or, if it takes
/// clients on all addresses, the host's name.
fn name_of(listeners: &[TcpListener]) -> Option<String> {
    let address = listeners.first()?.local_addr().ok()?;
    if !address.ip().is_unspecified() {
        return Some(address.to_string());
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // It is put into a line for a shell.
    let is_name = !host.is_empty()
        && !host.starts_with(['-', '.'])
        && host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c));
    let host = if is_name { &host } else { "localhost" };
    Some(format!("{host}:{}", address.port()))
}

/// Opens a larder, away from the async threads.
pub(super) async fn open(config: Config, clock: Clock) -> anyhow::Result<Arc<Larder>> {
    tokio::task::spawn_blocking(move || Larder::open(config, clock)).await?
}

/// The signals that ask for an end.
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

/// Reads the configuration again at each SIGHUP. A wrong one changes nothing.
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
        // Also after a mistake: the old configuration serves on.
        supervisor.ready(SERVING).await;
    }
}

/// Blocking.
fn put_in_force(larder: &Larder, loaded: &Loaded) -> anyhow::Result<()> {
    match larder.reconfigure(loaded)?.as_slice() {
        [] => info!("the configuration was read again and is in force"),
        waiting => info!(
            "the configuration was read again and is in force, but for {}: restart larder for that",
            waiting.join(", ")
        ),
    }
    Ok(())
}
