//! `larder ca`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::clients::bundle::Bundle;
use super::{FAILED, Invocation, OK};
use crate::admin::question::ca::CaQuestion;
use crate::admin::setup::Script;
use crate::admin::{Answer, Question};
use crate::authority::{Anchor, OVERLAP};
use crate::store::write_durably;

const EXAMPLES: &str = "\
Examples:
  larder ca path                                   where the certificate is
  larder ca show                                   the certificate, and its fingerprint to compare
  larder ca bundle > bundle.pem                    with this machine's roots, for tools that replace their store
  sudo larder ca install                           this machine trusts it; `sudo larder ca uninstall` undoes that
  larder ca rotate --days 30                       the next one: handed out now, used in 30 days
  larder ca rotate --finish                        after that: the old one is no longer trusted
  larder ca import --cert ca.crt --key ca.key      a CA that was made elsewhere

Exit codes: 0 done, 1 failed and nothing changed, 2 wrong flags. `install` and
`uninstall` end with the set-up script's codes, which `ca/README.md` lists.";

/// Prints, installs, rotates or imports the CA. One is made if there is none yet.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Ca {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prints the path of the certificate
    #[command(before_help = EXAMPLES)]
    Path,
    /// Prints the certificate and its fingerprint; during a rotation, those of both CAs
    #[command(before_help = EXAMPLES)]
    Show,
    /// Prints the certificate together with this machine's root certificates
    #[command(before_help = EXAMPLES)]
    Bundle,
    /// Makes this machine trust the CA, by running the set-up script with --ca-only
    #[command(before_help = EXAMPLES)]
    Install(Machine),
    /// Undoes what `install` or the set-up script did
    #[command(before_help = EXAMPLES)]
    Uninstall(Machine),
    /// Makes the next CA; both are trusted until the rotation is finished
    #[command(before_help = EXAMPLES)]
    Rotate(Rotate),
    /// Imports a CA that was made elsewhere, as the next one
    #[command(before_help = EXAMPLES)]
    Import(Import),
}

/// The set-up script's flag that undoes what it did.
const REMOVE: &str = "--remove";

/// The machine to change.
#[derive(Args, Debug)]
struct Machine {
    /// Changes the system whose root directory is DIR instead of this one
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Rotate {
    /// How many days both CAs are trusted before the next one is used [default: 30]
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// Finishes the rotation: the next CA becomes the only one, and the old one is deleted
    #[arg(long, conflicts_with = "days")]
    finish: bool,
}

#[derive(Args, Debug)]
struct Import {
    /// The CA's certificate in PEM; if another CA signed it, followed by that CA's certificate, and so on up to the
    /// root
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The CA's private key in PEM, unencrypted
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How many days the present CA stays in use [default: 0]
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    days: u32,
}

impl Ca {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        match self.what {
            What::Install(machine) => return set_up(invocation, &machine, "--ca-only"),
            What::Uninstall(machine) => return set_up(invocation, &machine, REMOVE),
            What::Rotate(Rotate { finish: true, .. }) => change(invocation, CaQuestion::Finish)?,
            What::Rotate(Rotate { days, .. }) => {
                let overlap = days.map_or(OVERLAP.as_secs(), seconds);
                change(invocation, CaQuestion::Rotate { overlap })?;
            }
            What::Import(Import { cert, key, days }) => {
                let text = |path: &Path| {
                    std::fs::read_to_string(path)
                        .with_context(|| format!("cannot read {}", path.display()))
                };
                let (certificate, key) = (text(&cert)?, text(&key)?);
                change(
                    invocation,
                    CaQuestion::Import { certificate, key, overlap: seconds(days) },
                )?;
            }
            What::Path => {
                let ca = invocation.ca()?;
                writeln!(invocation.out, "{}", ca.file.display())?;
            }
            What::Show => {
                let anchors = ask(invocation, CaQuestion::Show)?;
                show(invocation, &anchors)?;
            }
            What::Bundle => {
                let ca = invocation.ca()?;
                write!(invocation.out, "{}", Bundle::gather(&ca.pem, &invocation.environment).all)?;
            }
        }
        Ok(OK)
    }
}

fn seconds(days: u32) -> u64 {
    Duration::from_hours(24).as_secs().saturating_mul(u64::from(days))
}

fn ask(invocation: &mut Invocation, question: CaQuestion) -> anyhow::Result<Vec<Anchor>> {
    let mut anchors = Vec::new();
    // The lock on the directory is needed only to change or create something; an existing CA is only read.
    let data = &invocation.loaded.config.data;
    if question == CaQuestion::Show
        && invocation.served()?.is_none()
        && crate::admin::ca_file(data).exists()
    {
        let state = crate::admin::state_dir(data);
        return Ok(crate::authority::Authority::open(&state, &invocation.clock)?.all());
    }
    invocation.ask(&Question::Ca(question), |_, answer| {
        if let Answer::Anchor(anchor) = answer {
            anchors.push(anchor);
        }
        Ok(())
    })?;
    Ok(anchors)
}

fn show(invocation: &mut Invocation, anchors: &[Anchor]) -> anyhow::Result<()> {
    // Text between certificates is a comment for every PEM parser (RFC 7468 §2).
    for anchor in anchors {
        let about = match (anchor.from, anchor.mints) {
            (Some(from), false) => format!("\nThe next one, used from {from} on"),
            (Some(_), true) => {
                "\nThe next one, in use; `larder ca rotate --finish` drops the other".to_owned()
            }
            (None, _) => String::new(),
        };
        write!(
            invocation.out,
            "SHA-256 fingerprint: {}\nExpires: {}{about}\n{}",
            anchor.sha256, anchor.not_after, anchor.pem
        )?;
    }
    Ok(())
}

/// Changes the CA, and prints what has to be done on clients.
fn change(invocation: &mut Invocation, question: CaQuestion) -> anyhow::Result<()> {
    let finished = question == CaQuestion::Finish;
    let anchors = ask(invocation, question)?;
    show(invocation, &anchors)?;
    let in_use = anchors.iter().any(|anchor| anchor.from.is_some() && anchor.mints);
    let what = if finished {
        "Clients that only trust the old one fail from now on: `larder doctor` finds them."
    } else if in_use {
        "It is in use already, and both are handed out (/setup, /ca.crt, `larder env`): clients that do not trust it fail \
         until they are set up again; `larder doctor` finds them."
    } else {
        "Both are handed out from now on (/setup, /ca.crt, `larder env`): set every client up again before the next one is used."
    };
    writeln!(invocation.out, "{what}")?;
    Ok(())
}

/// Runs the set-up script for this machine. It is the script that other machines fetch.
fn set_up(invocation: &mut Invocation, machine: &Machine, what: &str) -> anyhow::Result<u8> {
    // The script recorded on the machine what to undo, so `uninstall` needs no CA and must not create one.
    let data = &invocation.loaded.config.data;
    let is_needed =
        what != REMOVE || invocation.served()?.is_some() || crate::admin::ca_file(data).exists();
    let anchors = if is_needed { ask(invocation, CaQuestion::Show)? } else { Vec::new() };
    let pem: String = anchors.iter().map(|anchor| anchor.pem.as_str()).collect();
    let sha256 = anchors.first().map(|anchor| anchor.sha256.clone()).unwrap_or_default();
    let script = Script::new(&pem, &sha256);
    let temporary = invocation.environment.temporary();
    let directory = temporary.join(format!("larder-ca-{}", std::process::id()));
    std::fs::create_dir(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let file = directory.join("setup");
    let ran = write_durably(&file, script.text().as_bytes(), 0o644)
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            let mut command = Command::new("sh");
            command.arg(&file).arg(what).stdin(Stdio::null());
            if let Some(prefix) = &machine.prefix {
                command.arg("--prefix").arg(prefix);
            }
            command.status().context("cannot run sh")
        });
    // Best effort: the directory holds nothing secret and lies among temporary files.
    let _gone = std::fs::remove_dir_all(&directory);
    let Some(code) = ran?.code() else {
        bail!("the set-up script was ended by a signal");
    };
    Ok(u8::try_from(code).unwrap_or(FAILED))
}
