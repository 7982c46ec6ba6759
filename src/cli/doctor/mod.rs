//! `larder doctor`: shows which clients get through larder, why the others do not, and a command line that repairs
//! each.
//!
//! ```text
//! fresh shell ─▶ client ─▶ its own proxy, its own roots ─▶ larder, which answers the probe's name itself
//!      │                                                     │
//!      └──▶ facts: settings, files of roots ──▶ cause ◀── sights: nothing, CONNECT, alert, request
//!                                                 └──▶ mend
//! ```
//!
//! Each client makes a real request, to a host name with 128 random bits that larder answers itself (`names`): no
//! registry and no network is needed. What larder saw decides, never what the client prints. Clients that are not run
//! are judged by their settings only, and the report says so.
//!
//! The doctor changes nothing: it prints the lines for the user to run.

mod attempt;
mod bypass;
mod cause;
mod client;
mod detector;
mod facts;
mod inside;
mod larder;
mod mend;
mod names;
mod report;
mod shell;

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use self::attempt::attempt;
use self::cause::Cause;
use self::client::{BUSYBOX_WGET, By, CLIENTS, Client, JAVA, QUIET};
use self::facts::Facts;
use self::larder::Larder;
use self::mend::Place;
use self::names::Probe;
use self::report::{Report, Verdict};
use self::shell::Shell;
use super::{FAILED, Invocation, OK, answers, clients, env, logging, serve};
use crate::outcome::witness;
use crate::store::write_durably;

const EXAMPLES: &str = "\
Examples:
  larder doctor                                    every client of this user, as in a fresh shell
  larder doctor pip npm                            only these
  larder doctor --proxy http://larder.example.org:3142
  larder doctor --here                             with the variables of this very shell, as in a CI's job
  sudo larder doctor --container /srv/roots/debian the clients in another root directory
  larder doctor --json | jq '.clients[] | select(.status == \"fails\")'

Exit codes: 0 every client that was found gets through, 1 at least one does
not, or larder is not there, 2 wrong flags.";

/// Shows which clients fail behind larder, why, and a command that repairs each.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Doctor {
    /// Only these clients; without any, all that are found
    #[arg(value_name = "CLIENT", value_parser = known)]
    clients: Vec<&'static str>,
    /// The larder; by default the one that runs here, or for which this machine was set up
    #[arg(long, value_name = "http://HOST:PORT", value_parser = env::proxy)]
    proxy: Option<String>,
    /// The root directory of an image; run as root, the doctor runs the clients in it, otherwise it only reads its
    /// files
    #[arg(long, value_name = "DIR")]
    container: Option<PathBuf>,
    /// Examines this shell's environment instead of that of a fresh login shell
    #[arg(long, conflicts_with = "container")]
    here: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// The limit for a client's request. Java and npm take seconds to start on a busy machine; each client has a shorter
/// timeout of its own.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long to wait for a TLS alert of a client that has ended to be recorded by larder.
const LAST_WORDS: Duration = Duration::from_millis(300);

impl Doctor {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        logging::start(&invocation.loaded, Some("error"));
        let root = match &self.container {
            Some(root) => Some(
                root.canonicalize().with_context(|| format!("--container {}", root.display()))?,
            ),
            None => None,
        };
        let has_etc = |root: &&PathBuf| {
            inside::within(root, Path::new("/etc")).is_some_and(|etc| etc.is_dir())
        };
        if let Some(root) = root.as_ref().filter(|root| !has_etc(root)) {
            bail!("{} is no root directory: it has no /etc", root.display());
        }
        let report = serve::runtime()?.block_on(async {
            tokio::select! {
                report = self.examine(invocation, root) => report,
                // The clients are in process groups of their own, which get no signal from the terminal.
                _ = tokio::signal::ctrl_c() => bail!("interrupted; nothing was changed"),
            }
        })?;
        if self.json {
            answers::json(&mut invocation.out, &report)?;
        } else {
            report.write(&mut invocation.out)?;
        }
        let fails = report.clients.iter().any(|verdict| verdict.status == "fails");
        Ok(if fails { FAILED } else { OK })
    }

    async fn examine(
        &self,
        invocation: &Invocation,
        root: Option<PathBuf>,
    ) -> anyhow::Result<Report> {
        let shell = if self.here {
            Shell::here(&invocation.environment)
        } else {
            Shell::fresh(&invocation.environment, root).await
        };
        let proxy = match &self.proxy {
            Some(proxy) => proxy.clone(),
            None => found(invocation, &shell)?,
        };
        let now = invocation.clock.now();
        let larder =
            tokio::task::spawn_blocking(move || Larder::at(&proxy, now)).await?.map_err(|why| {
                anyhow::anyhow!(
                    "{why}; start it with `larder serve`, or name it with --proxy http://HOST:PORT"
                )
            })?;
        let scratch = Scratch::make(&shell, invocation)?;
        let place = Place {
            shell: &shell,
            larder: &larder,
            directory: directory(&shell),
            curl: shell.find("curl").is_some(),
        };
        let wanted =
            |client: &&Client| self.clients.is_empty() || self.clients.contains(&client.name);
        let here = CLIENTS.iter().filter(wanted).filter_map(|client| {
            let program = client.programs.iter().find_map(|program| shell.find(program))?;
            let is_busybox = client.name == "wget" && shell.real_name(&program) == "busybox";
            Some((if is_busybox { &BUSYBOX_WGET } else { client }, program))
        });
        let verdicts =
            here.map(|(client, program)| verdict(client, program, &place, &scratch.inside));
        let clients = futures_util::future::join_all(verdicts).await;
        Ok(Report {
            larder: larder.proxy.clone(),
            ca_sha256: larder.fingerprint(),
            place: shell_name(&shell),
            clients,
        })
    }
}

/// Parses the name of a client.
fn known(text: &str) -> Result<&'static str, String> {
    let found = CLIENTS.iter().map(|client| client.name).find(|name| *name == text);
    found.ok_or_else(|| {
        let names: Vec<_> = CLIENTS.iter().map(|client| client.name).collect();
        format!("there is no client of this name; known are {}", names.join(", "))
    })
}

fn shell_name(shell: &Shell) -> String {
    match &shell.root {
        Some(root) if shell.runs => format!("{} (clients are run by chroot)", root.display()),
        Some(root) => {
            format!("{} (not root: its files are looked at, nothing is run)", root.display())
        }
        None if shell.here => "this shell".to_owned(),
        None => "a fresh shell".to_owned(),
    }
}

/// The address of the larder that runs from the data directory, for which this machine was set up, or that variables
/// name.
fn found(invocation: &Invocation, shell: &Shell) -> anyhow::Result<String> {
    if shell.root.is_none()
        && let Ok(Some(served)) = invocation.served()
        && let Some(proxy) = clients::proxy_at(&served.status()?.listening)
    {
        return Ok(proxy);
    }
    let manifest = shell.read(Path::new("/etc/larder/setup.manifest")).unwrap_or_default();
    let manifest = String::from_utf8_lossy(&manifest);
    let address = manifest.lines().find_map(|line| line.strip_prefix("address "));
    let set = ["https_proxy", "HTTPS_PROXY"].iter().find_map(|name| shell.get(name));
    let address =
        address.filter(|address| *address != "none").or(set).and_then(|text| env::proxy(text).ok());
    address.context(
        "which larder? None runs here, and none is set: name it with --proxy http://HOST:PORT",
    )
}

/// The directory for the files that the lines write: the user's, unless apt could not read them there.
fn directory(shell: &Shell) -> PathBuf {
    let home = PathBuf::from(shell.get("HOME").unwrap_or("/"));
    let open = |path: &Path| {
        let found = shell.within(path).and_then(|path| std::fs::metadata(path).ok());
        found.is_some_and(|data| data.permissions().mode() & 0o001 != 0)
    };
    if rustix::process::geteuid().is_root() && !home.ancestors().all(open) {
        return PathBuf::from("/etc/larder/clients");
    }
    home.join(".config/larder")
}

/// A directory for files that clients write, removed when dropped.
struct Scratch {
    outside: PathBuf,
    /// The directory's path inside the root.
    inside: PathBuf,
}

impl Scratch {
    fn make(shell: &Shell, invocation: &Invocation) -> anyhow::Result<Self> {
        let is_there = |directory: &PathBuf| {
            shell.within(directory).is_some_and(|directory| directory.is_dir())
        };
        let temporary = if shell.root.is_some() {
            // Images without a /tmp of their own get one when they are run.
            ["/tmp", "/var/tmp", "/"].map(PathBuf::from).into_iter().find(is_there)
        } else {
            Some(invocation.environment.temporary())
        };
        let inside = temporary.unwrap_or_default().join(format!("larder-doctor-{}", token()?));
        let outside = shell.within(&inside).context("/tmp leads nowhere")?;
        if shell.runs {
            // apt drops its privileges before it writes.
            std::fs::DirBuilder::new()
                .mode(0o777)
                .create(&outside)
                .with_context(|| format!("cannot make {}", outside.display()))?;
            write_durably(&outside.join("Probe.java"), JAVA.as_bytes(), 0o644)?;
        }
        Ok(Self { outside, inside })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: it is small and lies among temporary files.
        let _gone = std::fs::remove_dir_all(&self.outside);
    }
}

/// 128 random bits. Only a program that knows them may ask what larder saw.
fn token() -> anyhow::Result<String> {
    let mut bytes = [0; witness::TOKEN / 2];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(crate::digest::hex(&bytes))
}

/// The Yarn that is installed, by its version. Corepack must not download a Yarn for this query.
async fn yarn_of(program: &Path, shell: &Shell) -> Option<&'static Client> {
    let mut offline = shell.clone();
    offline.variables.insert("COREPACK_ENABLE_NETWORK".to_owned(), "0".to_owned());
    let version = if shell.runs { offline.said(program, &["--version"]).await } else { None };
    client::yarn(version.as_deref())
}

async fn verdict(client: &Client, program: PathBuf, place: &Place<'_>, scratch: &Path) -> Verdict {
    let (shell, larder) = (place.shell, place.larder);
    let own = if client.name == client::YARN { yarn_of(&program, shell).await } else { None };
    let client = own.unwrap_or(client);
    let mut verdict = Verdict {
        client: client.name,
        program,
        status: "well",
        how: "inspected",
        cause: None,
        why: None,
        mend: None,
        said: None,
    };
    let judged = match client.by {
        By::Daemon(why) => Err(why.to_owned()),
        By::Request(arguments) if shell.runs => {
            verdict.how = "probed";
            let name = Probe::of(client, shell).await;
            match probe(&verdict.program, arguments, &name, place, scratch).await {
                Ok(Probed { sights, said })
                    if sights.is_empty() && !runs(client, &verdict.program, shell).await =>
                {
                    Err(format!(
                        "it does not run: {}",
                        said.as_deref().unwrap_or("it says nothing")
                    ))
                }
                Ok(Probed { sights, said }) => {
                    verdict.said = said;
                    let facts = Facts::of(client, shell, larder, &name).await;
                    Ok((Cause::of_request(&sights, &facts, larder), facts))
                }
                Err(why) => Err(why),
            }
        }
        By::Request(_) | By::Inspection { .. } => {
            let facts = Facts::of(client, shell, larder, &Probe::of(client, shell).await).await;
            Ok((Cause::of_settings(client, &facts, larder), facts))
        }
    };
    match judged {
        Ok((None, facts)) => {
            verdict.said = None;
            verdict.why = facts.detected.map(|set| format!("{} says {}", set.whence, set.value));
        }
        Ok((Some(cause), _)) => {
            verdict.status = "fails";
            verdict.cause = Some(cause.code());
            verdict.mend = place.line(client, &cause);
            verdict.why = Some(cause.to_string());
        }
        Err(why) => {
            verdict.status = "unknown";
            verdict.why = Some(why);
        }
    }
    verdict
}

/// The result of a request that was made.
struct Probed {
    sights: Vec<witness::Sight>,
    said: Option<String>,
}

async fn probe(
    program: &Path,
    arguments: fn(&str, &Path) -> Vec<String>,
    name: &Probe,
    place: &Place<'_>,
    scratch: &Path,
) -> Result<Probed, String> {
    let token = token().map_err(|error| error.to_string())?;
    let host = name.host(&token);
    let mut command = place.shell.command(program);
    command.args(arguments(&format!("https://{host}"), scratch)).envs(QUIET);
    if place.shell.root.is_none() {
        command.current_dir(scratch);
    }
    let ended =
        attempt(command, PATIENCE).await.map_err(|error| format!("it cannot be run: {error}"))?;
    let said = match ended.status {
        Some(_) => said(&String::from_utf8_lossy(&ended.err)),
        None => Some(format!("it was stopped after {} seconds", PATIENCE.as_secs())),
    };
    forget(place.shell, &token);
    let mut sights = seen(place.larder, &token).await?;
    if !sights.contains(&witness::Sight::Request) {
        // The client has ended, but what it sent last may still be on its way.
        tokio::time::sleep(LAST_WORDS).await;
        sights = seen(place.larder, &token).await?;
    }
    Ok(Probed { sights, said })
}

/// Whether the program runs at all. Version managers install placeholders for programs that are missing, for example
/// rustup without a default toolchain.
async fn runs(client: &Client, program: &Path, shell: &Shell) -> bool {
    let argument = match client.name {
        "curl" | "wget" | "git" | "pip" | "npm" | "node" | "cargo" => "--version",
        "java" => "-version",
        // These have no such option.
        _ => return true,
    };
    let mut command = shell.command(program);
    command.arg(argument);
    // A program that is too slow to answer does run.
    let ended = attempt(command, PATIENCE).await;
    ended.is_ok_and(|ended| ended.status.is_none_or(|status| status.success()))
}

async fn seen(larder: &Larder, token: &str) -> Result<Vec<witness::Sight>, String> {
    let (larder, token) = (larder.clone(), token.to_owned());
    let sights = tokio::task::spawn_blocking(move || larder.saw(&token)).await;
    sights.map_err(|error| error.to_string()).flatten()
}

/// The most telling line of a client's output: the first that mentions the problem, or else the last.
fn said(text: &str) -> Option<String> {
    let telling = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["certificate", "resolve", "proxy", "ssl"].iter().any(|word| line.contains(word))
    };
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Picked up"));
    let line = lines.clone().find(telling).or_else(|| lines.next_back());
    line.map(|line| line.chars().take(300).collect())
}

/// Removes what cargo stored in its home for the probe's registry.
fn forget(shell: &Shell, token: &str) {
    let home = shell.get("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(shell.get("HOME")?).join(".cargo")));
    let index = home.and_then(|home| shell.within(&home.join("registry/index")));
    let Some(index) = index else { return };
    for entry in std::fs::read_dir(index).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(token) {
            // Best effort: an empty directory that no other registry uses.
            let _gone = std::fs::remove_dir_all(entry.path());
        }
    }
}
