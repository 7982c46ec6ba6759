//! `larder exec`: runs one command through larder.
//!
//! The command uses the larder that `--proxy` names (`team`), or the running one of the data directory. Without
//! either, a larder is started inside this process; it ends with the command, or with the last other `larder exec`
//! that found it and uses it as well. In each case the summary covers this command only (`job`).

mod build;
mod child;
mod job;
mod roots;
mod summary;
mod team;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::warn;

use self::build::{Fitted, Offer};
use self::child::{Ended, Signals};
use self::job::Job;
use self::roots::Roots;
use self::summary::Report;
use self::team::Team;
use super::clients::{self, containers, place};
use super::remote::Elsewhere;
use super::{Invocation, ReachOptions, logging, serve};
use crate::Larder;
use crate::accept;
use crate::admin::ask::{Served, Staying};
use crate::admin::question::Status;
use crate::clock::Stopwatch;
use crate::config::Config;
use crate::config::environment::Environment;
use crate::store::OpenError;

const EXAMPLES: &str = "\
Examples:
  larder exec -- pip install -r requirements.txt
  larder exec -- sudo -E apt-get update
  larder exec -- make image
  larder exec --proxy http://larder.example.org:3142 -- cargo build
  larder exec -- buildah bud --format docker .

Proxy and CA variables of the known build tools are set for the command and
whatever it starts, Java's among them; NO_PROXY is added to. A larder that
serves from the data directory is used as it is configured. The last lines, on
standard error, sum up what this command did, and name what was refused; they
warn if nothing came through larder. In a GitHub action the same is
added to the step's summary.

--proxy (or LARDER_PROXY) uses a larder on another machine. Its CA is fetched
from it and pinned: by --ca-sha256 (or LARDER_CA_SHA256), or by what was seen
the first time.

dnf, zypper, pacman, aria2 and apk read only the system's roots. For a command
that root runs, larder adds its CA to these in a mount namespace of its own:
mounts that the command makes end with it (--no-namespace keeps them). Other
users set up the machine by GET /setup, or put sudo before larder.

docker build, docker compose build, podman build and buildah bud get build
arguments, and the roots as the secret `larder`: their steps see no variables.

Exit code: the command's own; 128 and the signal's number if one ended it; 127
if there is no such command, 126 if it cannot be run, 125 if larder failed.";

/// Runs one command through larder: the running one, or one that lives as long as the command.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Exec {
    #[command(flatten)]
    pub(super) reach: ReachOptions,
    #[command(flatten)]
    elsewhere: Elsewhere,
    /// The SHA-256 of that larder's CA, as `larder ca show` prints it there
    #[arg(long, value_name = "SHA256")]
    ca_sha256: Option<String>,
    /// Writes what this command did to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leaves out the summary
    #[arg(long, short)]
    quiet: bool,
    /// Keeps mounts that the command makes; clients that read only the system's roots do not trust larder then
    #[arg(long)]
    no_namespace: bool,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    pub(super) command: Vec<OsString>,
}

/// How long to wait for another larder that holds the data directory but does not answer yet. One that starts takes
/// the lock before it answers on its socket, and after a crash it reads every record first.
const STARTING: Duration = Duration::from_secs(30);
/// The wait is logged after this time.
const NOTICED: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The larder that the command uses.
enum Used {
    /// The running larder of the data directory, which does not stop while this is held.
    Found { served: Served, status: Box<Status>, _staying: Staying },
    /// A larder in this process.
    Own(LocalLarder),
    /// A larder on another machine.
    Team(Team),
}

/// A larder in this process.
struct LocalLarder {
    larder: Arc<Larder>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Exec {
    pub(super) fn run(self, invocation: &Invocation) -> anyhow::Result<u8> {
        // The terminal belongs to the command.
        logging::start(&invocation.loaded, Some("warn"));
        serve::arm_failpoint(&invocation.environment);
        let runtime = serve::runtime()?;
        let code = runtime.block_on(self.through(invocation));
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }

    /// The larder that is named, or else that of the data directory.
    async fn used(&self, invocation: &Invocation) -> anyhow::Result<Used> {
        let Some(proxy) = self.elsewhere.named(invocation)? else {
            return find_or_start(invocation).await;
        };
        let set = invocation.environment.get("LARDER_CA_SHA256").filter(|text| !text.is_empty());
        let pin = self.ca_sha256.as_deref().or(set);
        Ok(Used::Team(Team::at(&proxy, pin, invocation).await?))
    }

    async fn through(self, invocation: &Invocation) -> anyhow::Result<u8> {
        let mut signals = Signals::new().context("cannot listen for signals")?;
        let used = self.used(invocation).await?;
        let job = Job::begin(&used).await?;
        let proxy =
            clients::proxy_at(&job.listening).context("the running larder does not listen yet")?;
        let data = invocation.loaded.config.data.clone();
        let environment = invocation.environment.clone();
        let ca = used.ca_pem();
        let shown: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
        let told = Telling { command: shown.join(" "), json: self.json, quiet: self.quiet };
        // The steps of an image build cannot reach the relay on loopback, so they use the larder's own addresses.
        let listening =
            if let Used::Team(team) = &used { &team.addresses } else { &job.listening }.clone();
        let command = self.command;
        let may_mount = !self.no_namespace;
        let (directory, variables, fitted, roots) = blocking(move || {
            let directory = place::passing(&data, &environment)?;
            let files = clients::Files::write(directory.path(), &proxy, &ca, &environment)?;
            let variables = clients::variables(&proxy, &files, &environment);
            let roots = may_mount.then(|| roots_for(&command, directory.path(), &files, &ca));
            let fitted = fit(command, &listening, &variables, &environment);
            // Image builders make mounts that other commands of theirs expect to find.
            let roots = roots.flatten().filter(|_| !fitted.is_build);
            Ok((directory, variables, fitted, roots))
        })
        .await?;
        told.say(&Vec::from_iter(fitted.note));
        let variables = if fitted.keeps_environment { vec![] } else { variables };
        let begun = Stopwatch::start();
        let (ended, reached) =
            child::run(&fitted.command, &variables, roots.as_ref(), &mut signals).await?;
        let took = begun.elapsed();
        let tally = job.tally().await;
        blocking(move || {
            if let Some(roots) = roots.filter(|_| reached)
                && let Err(error) = roots.put_back()
            {
                warn!("what the command changed among the system's roots is lost: {error}");
            }
            drop(directory);
            Ok(())
        })
        .await?;
        if let Ended::With(code) = ended {
            let report = tally.map(|tally| {
                let alarm = summary::alarm(&tally.totals, reached).filter(|_| !fitted.is_build);
                (Report::new(&tally, code, took.as_secs_f64()), alarm)
            });
            told.tell(report, &used, &invocation.environment);
        }
        drop(job);
        if let Used::Own(own) = used {
            own.end(&mut signals).await?;
        }
        match ended {
            Ended::With(code) | Ended::NotRun(code) => Ok(code),
        }
    }
}

/// Where the summary goes.
struct Telling {
    command: String,
    json: Option<PathBuf>,
    quiet: bool,
}

impl Telling {
    fn say(&self, lines: &[impl std::fmt::Display]) {
        for line in lines.iter().filter(|_| !self.quiet) {
            // If standard error is closed, nobody wants a summary.
            let _written = writeln!(io::stderr(), "larder: {line}");
        }
    }

    /// Errors here are only logged: the exit code is the command's.
    fn tell(
        &self,
        report: anyhow::Result<(Report, Option<String>)>,
        used: &Used,
        environment: &Environment,
    ) {
        let (report, alarm) = match report {
            Ok(report) => report,
            Err(error) => {
                warn!("cannot report what this command did: {error:#}");
                return;
            }
        };
        let elsewhere = if let Used::Team(team) = used { Some(&*team.proxy) } else { None };
        let mut lines = vec![report.line()];
        lines.extend(report.troubles(elsewhere));
        lines.extend(alarm);
        self.say(&lines);
        if let Some(file) = &self.json {
            // Serialising numbers and strings cannot fail.
            let json = serde_json::to_vec(&report).unwrap_or_default();
            let mut options = std::fs::OpenOptions::new();
            let opened = options.write(true).create(true).truncate(true).open(file);
            if let Err(error) = opened.and_then(|mut file| file.write_all(&json)) {
                warn!("--json: {}: {error}", file.display());
            }
        }
        if let Some(page) = environment.get("GITHUB_STEP_SUMMARY") {
            add_to_page(Path::new(page), &report.markdown(&self.command));
        }
    }
}

/// Appends to the page that the CI shows. An error does not fail the job.
fn add_to_page(page: &Path, text: &str) {
    let added = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(page)
        .and_then(|mut page| page.write_all(text.as_bytes()));
    if let Err(error) = added {
        warn!("GITHUB_STEP_SUMMARY: {}: {error}", page.display());
    }
}

/// The command, with what its build steps need if it builds an image.
fn fit(
    command: Vec<OsString>,
    listening: &[SocketAddr],
    variables: &[(&'static str, String)],
    environment: &Environment,
) -> Fitted {
    let value = |wanted: &str| {
        variables.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value.as_str())
    };
    let offer = Offer {
        listening,
        machine: containers::own_address(),
        bundle: value("SSL_CERT_FILE"),
        no_proxy: value("NO_PROXY"),
        variables,
        environment,
        said: build::said,
    };
    build::fitted(&command, &offer).unwrap_or(Fitted {
        command,
        note: None,
        keeps_environment: false,
        is_build: false,
    })
}

/// The root certificates to mount over the system's for the command. Only for root, who may mount.
fn roots_for(
    command: &[OsString],
    directory: &Path,
    files: &clients::Files,
    ca_pem: &str,
) -> Option<Arc<Roots>> {
    let program = Path::new(command.first()?);
    // No other user may be able to change what is mounted and what is put back.
    if !rustix::process::geteuid().is_root()
        || roots::is_about_mounts(program)
        || !place::is_own(directory)
    {
        return None;
    }
    let copied =
        std::fs::read(&files.bundle).and_then(|bundle| Roots::copy(directory, &bundle, ca_pem));
    match copied {
        Ok(roots) => (!roots.is_empty()).then(|| Arc::new(roots)),
        Err(error) => {
            warn!(
                "the system's roots cannot be copied: {error}; clients that read no others do not trust larder"
            );
            None
        }
    }
}

/// Uses the larder that serves from the data directory, or starts one in this process.
async fn find_or_start(invocation: &Invocation) -> anyhow::Result<Used> {
    let begun = tokio::time::Instant::now();
    // A larder that is stopping holds the directory for as long as its drain takes.
    let patience = STARTING + invocation.loaded.config.clients.drain_timeout;
    let mut told = false;
    loop {
        if let Some(served) = invocation.served()? {
            let found = blocking(move || Ok((served.stay()?, served.status(), served))).await?;
            // A larder that is stopping, or not ready yet, does not promise to stay.
            if let (Some(staying), Ok(status), served) = found
                && !status.listening.is_empty()
            {
                return Ok(Used::Found { served, status: Box::new(status), _staying: staying });
            }
        }
        // A larder for one command is not announced on the network.
        let config = Config { announce: false, ..invocation.loaded.config.clone() };
        match serve::open(config, invocation.clock.clone()).await {
            Ok(larder) => return start(larder, invocation).map(Used::Own),
            Err(error) => {
                let held = error
                    .chain()
                    .any(|cause| matches!(cause.downcast_ref(), Some(OpenError::Held { .. })));
                if !held || begun.elapsed() >= patience {
                    return Err(error);
                }
                if begun.elapsed() >= NOTICED && !told {
                    told = true;
                    warn!("waiting for another larder that starts or ends: {error:#}");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn start(larder: Arc<Larder>, invocation: &Invocation) -> anyhow::Result<LocalLarder> {
    larder.configured(&invocation.loaded);
    let listener = accept::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
        .context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(Arc::clone(&larder).run(vec![listener], async move {
        // A stop request and a dropped sender both stop it.
        let _asked = stopped.await;
    }));
    Ok(LocalLarder { larder, address, stop, running })
}

impl Used {
    fn ca_pem(&self) -> String {
        match self {
            Self::Found { status, .. } => status.ca_pem.clone(),
            Self::Own(own) => own.larder.ca_pem(),
            Self::Team(team) => team.ca_pem.clone(),
        }
    }
}

impl LocalLarder {
    /// Stops the larder once no other command uses it, or at once on a signal.
    async fn end(self, signals: &mut Signals) -> anyhow::Result<()> {
        let unused = self.larder.unused();
        tokio::pin!(unused);
        if tokio::time::timeout(PAUSE, &mut unused).await.is_err() {
            // The command has ended, but the prompt does not return yet: the user is told why.
            let _written = writeln!(
                io::stderr(),
                "larder: another command still uses this larder, which ends with it; Ctrl-C ends it now"
            );
            tokio::select! {
                () = unused => {}
                _ = signals.next() => {}
            }
        }
        // It may already have stopped by itself.
        let _told = self.stop.send(());
        tokio::select! {
            ended = self.running => ended?,
            _ = signals.next() => Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(run).await?
}
