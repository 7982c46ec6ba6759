//! `larder verify`.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;

use super::answers::json;
use super::{DAMAGED, Invocation, OK, human};
use crate::admin::{Answer, Question};

const EXAMPLES: &str = "\
Examples:
  larder verify            hashes everything that is stored; exit code 4 if something is damaged
  larder verify --json";

/// Hashes every stored file again and takes damaged ones out of use; they are fetched again when requested.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Verify {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let watched = io::stderr().is_terminal();
        let mut code = OK;
        let mut shown = None;
        invocation.ask(&Question::Verify, |out, answer| {
            match answer {
                Answer::Progress { done, total } if watched => {
                    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
                    if shown.replace(percent) != Some(percent) {
                        // Returns to the start of the line and clears it.
                        write!(io::stderr(), "\r\x1b[K{percent} % of {}", human::bytes(total))?;
                    }
                }
                Answer::Checked(checked) => {
                    if watched {
                        write!(io::stderr(), "\r\x1b[K")?;
                    }
                    if !checked.damaged.is_empty() {
                        code = DAMAGED;
                    }
                    if self.json {
                        return json(out, &checked);
                    }
                    for blob in &checked.damaged {
                        writeln!(out, "damaged: {blob}")?;
                    }
                    let sound = human::count(checked.sound, "file is sound", "files are sound");
                    writeln!(out, "{sound}, {} damaged", checked.damaged.len())?;
                    if checked.unread > 0 {
                        let unread = human::count(checked.unread, "file", "files");
                        writeln!(out, "{unread} could not be read; larder's log says why")?;
                    }
                }
                Answer::Progress { .. }
                | Answer::Status(_)
                | Answer::Setting(_)
                | Answer::Totals(_)
                | Answer::Stats(_)
                | Answer::Why(_)
                | Answer::Event(_)
                | Answer::Doorway(_)
                | Answer::Tally(_)
                | Answer::Entry(_)
                | Answer::Removed(_)
                | Answer::Anchor(_)
                | Answer::Key(_)
                | Answer::Rebound(_)
                | Answer::Staying
                | Answer::Failed(_) => {}
            }
            Ok(())
        })?;
        Ok(code)
    }
}
