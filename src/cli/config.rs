//! `larder config`.

use std::io::Write;

use clap::Args;

use super::answers::json;
use super::{Invocation, OK};
use crate::admin::question::{Setting, settings};
use crate::admin::{Answer, Question};
use crate::config::keys::reference;

const EXAMPLES: &str = "\
Examples:
  larder config                    the values in force here, and where each came from
  larder config > larder.toml      the same is a configuration file; passwords are left out
  larder config --running          the values that the running larder uses
  larder config --reference        every key explained, as Markdown";

/// Prints the configuration. Flags override the environment (LARDER_ and the key in capitals), which overrides
/// `larder.toml`.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Config {
    /// Asks the running larder instead
    #[arg(long)]
    running: bool,
    /// Explains every key
    #[arg(long, conflicts_with_all = ["running", "json"])]
    reference: bool,
    /// Prints one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        if self.reference {
            write!(invocation.out, "{}", reference())?;
        } else if self.running {
            invocation.ask(&Question::Config, |out, answer| match answer {
                Answer::Setting(setting) => self.show(out, &setting),
                Answer::Status(_)
                | Answer::Totals(_)
                | Answer::Stats(_)
                | Answer::Why(_)
                | Answer::Event(_)
                | Answer::Doorway(_)
                | Answer::Tally(_)
                | Answer::Entry(_)
                | Answer::Removed(_)
                | Answer::Progress { .. }
                | Answer::Checked(_)
                | Answer::Anchor(_)
                | Answer::Key(_)
                | Answer::Rebound(_)
                | Answer::Staying
                | Answer::Failed(_) => Ok(()),
            })?;
        } else {
            for setting in settings(&invocation.loaded) {
                self.show(&mut invocation.out, &setting)?;
            }
        }
        Ok(OK)
    }

    fn show(&self, out: &mut dyn Write, setting: &Setting) -> anyhow::Result<()> {
        if self.json {
            return json(out, setting);
        }
        let line = format!("{} = {}", setting.key, setting.value);
        Ok(writeln!(out, "{line:<60} # {}", setting.source)?)
    }
}
