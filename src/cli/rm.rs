//! `larder rm`.

use std::io::{self, Write as _};

use clap::{ArgGroup, Args};

use super::answers::json;
use super::{FAILED, Invocation, OK, human};
use crate::admin::{Answer, Question, Selection};
use crate::config::parse_span;
use crate::target::shown::one_line;

const EXAMPLES: &str = "\
Examples:
  larder rm https://files.example.org/a.whl
  larder rm --older-than 90d
  larder rm --all";

/// Removes stored entries. What is requested again is fetched again; nothing else is lost.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
#[command(group = ArgGroup::new("which").required(true).args(["url", "older_than", "all"]))]
pub(super) struct Rm {
    /// The URL of an entry, in every variant: as a client asks for it, or as `larder ls` shows it, which means all
    /// that are shown so
    url: Option<String>,
    /// Everything that was received longer ago than this, such as 12h or 90d
    #[arg(long, value_name = "SPAN", value_parser = seconds)]
    older_than: Option<u64>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    parse_span(text)
        .map(|span| span.as_secs())
        .ok_or_else(|| "expected a span of time such as 12h or 90d".to_owned())
}

impl Rm {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let selection = match (self.url, self.older_than) {
            (Some(url), _) => Selection::Url(url),
            (None, Some(seconds)) => Selection::Older { seconds },
            (None, None) => Selection::All,
        };
        let mut code = OK;
        invocation.ask(&Question::Remove(selection), |out, answer| {
            let Answer::Removed(removed) = answer else {
                return Ok(());
            };
            for failed in &removed.failed {
                writeln!(io::stderr(), "larder: cannot remove {}", one_line(failed))?;
                code = FAILED;
            }
            if self.json {
                return json(out, &removed);
            }
            let entries = human::count(removed.share.entries, "entry", "entries");
            writeln!(out, "removed {entries}, {}", human::bytes(removed.share.bytes))?;
            Ok(())
        })?;
        Ok(code)
    }
}
