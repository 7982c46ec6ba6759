//! `larder ls`.

use clap::Args;

use super::answers::json;
use super::remote::Elsewhere;
use super::{Invocation, OK, human};
use crate::admin::{Answer, Question};
use crate::target::shown::one_line;

const EXAMPLES: &str = "\
Examples:
  larder ls                        everything that is stored
  larder ls example.org/simple     entries whose URL contains this
  larder ls --json .whl            one JSON object a line";

/// Lists stored entries: proof, size, age, URL.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Ls {
    /// Part of the URL
    #[arg(default_value = "")]
    matching: String,
    /// Prints one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

impl Ls {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let now = invocation.clock.now();
        invocation.ask_at(
            &self.elsewhere,
            &Question::Entries { matching: self.matching },
            |out, answer| {
                let Answer::Entry(entry) = answer else {
                    return Ok(());
                };
                if self.json {
                    return json(out, &entry);
                }
                let (size, age) = (human::bytes(entry.size), human::ago(entry.received_at, now));
                let variant = match human::variant(&entry.variant) {
                    variant if variant.is_empty() => variant,
                    variant => format!(" ({variant})"),
                };
                let url = one_line(&entry.url);
                let private = if entry.private { " (private)" } else { "" };
                writeln!(out, "{:<22} {size:>9} {age:>12}  {url}{variant}{private}", entry.proof)?;
                Ok(())
            },
        )?;
        Ok(OK)
    }
}
