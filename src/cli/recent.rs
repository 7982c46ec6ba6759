//! `larder recent`.

use clap::Args;

use super::answers::json;
use super::remote::Elsewhere;
use super::{Invocation, OK, human};
use crate::admin::{Answer, Question};
use crate::clock::Time;
use crate::outcome::recent::Event;
use crate::target::shown::one_line;

const EXAMPLES: &str = "\
Examples:
  larder recent                        what was refused, failed or raised an alarm
  larder recent --json | jq .cause     one JSON object a line";

/// Lists the last 200 refusals, failures and alarms of the running larder, the newest first.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Recent {
    /// Prints one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

impl Recent {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let (now, as_json) = (invocation.clock.now(), self.json);
        let mut nothing = true;
        invocation.ask_at(&self.elsewhere, &Question::Recent, |out, answer| {
            let Answer::Event(event) = answer else {
                return Ok(());
            };
            nothing = false;
            if as_json {
                return json(out, &event);
            }
            let method = if event.method.is_empty() { "about" } else { &event.method };
            writeln!(out, "{} {}", one_line(method), one_line(&event.url))?;
            writeln!(out, "  {}", told(&event, now))?;
            Ok(())
        })?;
        if nothing && !as_json {
            writeln!(invocation.out, "nothing was refused, nothing failed, no alarm was raised")?;
        }
        Ok(OK)
    }
}

/// The event as text, without its URL.
pub(super) fn told(event: &Event, now: Time) -> String {
    let times =
        if event.times > 1 { format!(" {} times, last", event.times) } else { String::new() };
    let client =
        if event.client.is_empty() { String::new() } else { format!(" (client {})", event.client) };
    format!(
        "{}({}){times} {}: {}{client}",
        event.kind,
        event.cause,
        human::ago(event.at, now),
        one_line(&event.why),
    )
}
