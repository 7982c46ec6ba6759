//! `larder bypass`: lets this machine's downloads go around the larder that the set-up script set it up for.
//!
//! The copy of the script that the set-up left behind does it, so it also works without this program:
//! `sh /etc/larder/setup --bypass on`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::{FAILED, Invocation};

const EXAMPLES: &str = "\
Examples:
  sudo larder bypass on      downloads go around larder, which stays trusted
  sudo larder bypass off     they go through it again, if it answers
  sudo larder bypass auto    on while larder does not answer, else off; for a timer

Exit codes: those of the set-up script, which `ca/README.md` lists; 0 done or nothing to do,
3 (off) no larder answers, 4 not root.";

/// Where the set-up script leaves its copy, from the root directory.
const SCRIPT: &str = "etc/larder/setup";

/// Lets the downloads of this machine go around larder, or through it again. Needs what the set-up script left in /etc/larder
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Bypass {
    /// Whether larder is bypassed
    #[arg(value_enum)]
    state: State,
    /// The root directory of the system to change
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Downloads go around larder
    On,
    /// Downloads go through larder
    Off,
    /// On while larder does not answer, else off
    Auto,
}

impl Bypass {
    pub(super) fn run(self, _invocation: &mut Invocation) -> anyhow::Result<u8> {
        let root = self.prefix.as_deref().unwrap_or_else(|| Path::new("/"));
        let script = root.join(SCRIPT);
        if !script.is_file() {
            bail!(
                "{} is missing: this machine was not set up for a larder, or by a script that could not leave a copy; \
                 run the set-up line again that http://HOST:3142/ shows",
                script.display()
            );
        }
        let word = match self.state {
            State::On => "on",
            State::Off => "off",
            State::Auto => "auto",
        };
        let mut command = Command::new("sh");
        command.arg(&script).args(["--bypass", word]).stdin(Stdio::null());
        if let Some(prefix) = &self.prefix {
            command.arg("--prefix").arg(prefix);
        }
        let Some(code) = command.status().context("cannot run sh")?.code() else {
            bail!("the set-up script was ended by a signal");
        };
        Ok(u8::try_from(code).unwrap_or(FAILED))
    }
}
