//! `larder exec`: one command through larder.
//!
//! The running larder of the data directory is used if there is one; otherwise one is started inside this process and
//! ends with the command, or with the last other `larder exec` that found it and uses it as well.

mod build;
mod child;
mod roots;
mod summary;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::warn;

use self::build::{Fitted, Offer};
use self::child::{Ended, Signals};
use self::roots::Roots;
use super::clients::{self, containers, place};
use super::{Invocation, Reach, logging, serve};
use crate::Larder;
use crate::accept;
use crate::admin::ask::{Served, Staying};
use crate::admin::question::Status;
use crate::admin::{Answer, Question};
use crate::config::Config;
use crate::config::environment::Environment;
use crate::outcome::metrics::Totals;
use crate::store::OpenError;

/// How often is looked again before it is believed that nothing came through larder.
const NOTHING_AFTER: u32 = 10;
/// The time between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  larder exec -- pip install -r requirements.txt
  larder exec -- sudo -E apt-get update
  larder exec -- make image
  larder exec -- buildah bud --format docker .

Proxy and CA variables of the known build tools are set for the command and
whatever it starts, Java's among them; NO_PROXY is added to. A larder that
serves from the data directory is used as it is configured. The last line, on
standard error, sums up; it is loud when nothing came through larder.

dnf, zypper, pacman, aria2 and apk read only the system's roots. For a command
of root these hold larder's CA, in a mount namespace of its own: mounts that it
makes are gone with it (--no-namespace keeps them). Others who use such clients
set the machine up by GET /setup, or put sudo before larder.

docker build, docker compose build, podman build and buildah bud get build
arguments, and the roots as the secret `larder`: their steps see no variables.

Exit code: the command's own; 128 and the signal's number if one ended it; 127
if there is no such command, 126 if it cannot be run, 125 if larder failed.";

/// Runs one command through larder: the running one, or one that lives as long as the command.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Exec {
    #[command(flatten)]
    pub(super) reach: Reach,
    /// Leaves out the summary
    #[arg(long, short)]
    quiet: bool,
    /// Lets the command's mounts stay; clients that read only the system's roots do not trust larder then
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

/// A second larder that starts at the same moment holds the directory before it answers on its socket, and one that a kill
/// preceded reads every record first.
const STARTING: Duration = Duration::from_secs(30);
/// Waiting is told of after this.
const NOTICED: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The larder that the command uses.
enum Used {
    /// One that runs elsewhere, and stays while this is held.
    Found { served: Served, status: Box<Status>, _staying: Staying },
    /// One of this process.
    Own(Own),
}

/// A larder of this process.
struct Own {
    larder: Arc<Larder>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Exec {
    pub(super) fn run(self, invocation: &Invocation) -> anyhow::Result<u8> {
        // The terminal is the command's.
        logging::start(&invocation.loaded, Some("warn"));
        serve::arm_failpoint(&invocation.environment);
        let runtime = serve::runtime()?;
        let code = runtime.block_on(self.through(invocation));
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }

    async fn through(self, invocation: &Invocation) -> anyhow::Result<u8> {
        let mut signals = Signals::new().context("cannot listen for signals")?;
        let used = find_or_start(invocation).await?;
        let before = used.totals().await?;
        let proxy = clients::proxy_at(&used.listening())
            .context("the running larder does not listen yet")?;
        let data = invocation.loaded.config.data.clone();
        let environment = invocation.environment.clone();
        let ca = used.ca_pem();
        let (listening, command) = (used.listening(), self.command);
        let may_mount = !self.no_namespace;
        let (directory, variables, fitted, roots) = blocking(move || {
            let directory = place::passing(&data, &environment)?;
            let files = clients::Files::write(directory.path(), &proxy, &ca, &environment)?;
            let variables = clients::variables(&proxy, &files, &environment);
            let roots = may_mount.then(|| roots_for(&command, directory.path(), &files, &ca));
            let fitted = fit(command, &listening, &variables, &environment);
            // Builders make mounts that others of their commands look for.
            let roots = roots.flatten().filter(|_| !fitted.is_build);
            Ok((directory, variables, fitted, roots))
        })
        .await?;
        if let (Some(note), false) = (fitted.note, self.quiet) {
            // As for the summary below.
            let _written = writeln!(io::stderr(), "larder: {note}");
        }
        let variables = if fitted.keeps_environment { vec![] } else { variables };
        let (ended, reached) =
            child::run(&fitted.command, &variables, roots.as_ref(), &mut signals).await?;
        let counted = used.totals_since(&before).await;
        let shared = matches!(used, Used::Found { .. });
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
        if let (Ok(counted), Ended::With(_), false) = (counted, ended, self.quiet) {
            // Whoever closed standard error wants no summary.
            let _written = writeln!(io::stderr(), "larder: {}", summary::line(&counted, shared));
            if let Some(alarm) = summary::alarm(&counted, reached).filter(|_| !fitted.is_build) {
                let _written = writeln!(io::stderr(), "larder: {alarm}");
            }
        }
        if let Used::Own(own) = used {
            own.end(&mut signals).await?;
        }
        match ended {
            Ended::With(code) | Ended::NotRun(code) => Ok(code),
        }
    }
}

/// The command, with what its steps need if it builds an image.
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
    };
    build::fitted(&command, &offer).unwrap_or(Fitted {
        command,
        note: None,
        keeps_environment: false,
        is_build: false,
    })
}

/// The roots that lie over the system's for the command: for root's, who may mount.
fn roots_for(
    command: &[OsString],
    directory: &Path,
    files: &clients::Files,
    ca_pem: &str,
) -> Option<Arc<Roots>> {
    let program = Path::new(command.first()?);
    // What is mounted, and what is put back, must be nobody else's to change.
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

/// Uses the larder that serves from the data directory, or becomes it.
async fn find_or_start(invocation: &Invocation) -> anyhow::Result<Used> {
    let begun = tokio::time::Instant::now();
    // One that ends holds the directory for as long as its drain takes.
    let patience = STARTING + invocation.loaded.config.clients.drain_timeout;
    let mut told = false;
    loop {
        if let Some(served) = invocation.served()? {
            let found = blocking(move || Ok((served.stay()?, served.status(), served))).await?;
            // One that is on its way out, or not there yet, does not promise to stay.
            if let (Some(staying), Ok(status), served) = found
                && !status.listening.is_empty()
            {
                return Ok(Used::Found { served, status: Box::new(status), _staying: staying });
            }
        }
        // A larder for one command is nobody else's business.
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

fn start(larder: Arc<Larder>, invocation: &Invocation) -> anyhow::Result<Own> {
    larder.configured(&invocation.loaded);
    let listener = accept::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
        .context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(Arc::clone(&larder).run(vec![listener], async move {
        // Asked to stop, or forgotten: both are the end.
        let _asked = stopped.await;
    }));
    Ok(Own { larder, address, stop, running })
}

impl Used {
    fn listening(&self) -> Vec<SocketAddr> {
        match self {
            Self::Found { status, .. } => status.listening.clone(),
            Self::Own(own) => vec![own.address],
        }
    }

    fn ca_pem(&self) -> String {
        match self {
            Self::Found { status, .. } => status.ca_pem.clone(),
            Self::Own(own) => own.larder.ca_pem(),
        }
    }

    /// What was counted since `before`. A request is counted when its body has ended, which may be a moment after the client
    /// had the last byte and ended: nothing is believed only after a while.
    async fn totals_since(&self, before: &Totals) -> anyhow::Result<Totals> {
        let mut tries = 0;
        loop {
            let counted = self.totals().await?.since(before);
            tries += 1;
            if counted.requests() > 0 || tries > NOTHING_AFTER {
                return Ok(counted);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    async fn totals(&self) -> anyhow::Result<Totals> {
        match self {
            Self::Own(own) => Ok(own.larder.metrics().totals()),
            Self::Found { served, .. } => {
                let served = served.clone();
                blocking(move || {
                    let pick = |answer| {
                        if let Answer::Totals(totals) = answer { Some(totals) } else { None }
                    };
                    Ok(served.only(&Question::Totals, pick)?)
                })
                .await
            }
        }
    }
}

impl Own {
    /// Ends it once no other command uses it; a signal ends it at once.
    async fn end(self, signals: &mut Signals) -> anyhow::Result<()> {
        let unused = self.larder.unused();
        tokio::pin!(unused);
        if tokio::time::timeout(PAUSE, &mut unused).await.is_err() {
            // The command has ended and the prompt does not come back: whoever waits is told why.
            let _written = writeln!(
                io::stderr(),
                "larder: another command still uses this larder, which ends with it; Ctrl-C ends it now"
            );
            tokio::select! {
                () = unused => {}
                _ = signals.next() => {}
            }
        }
        // It may have ended by itself.
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
