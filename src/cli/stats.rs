//! `larder stats`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::Args;

use super::answers::json;
use super::remote::Elsewhere;
use super::{Invocation, OK, human};
use crate::admin::question::{Share, Stats as Numbers};
use crate::admin::{Answer, Question};

const EXAMPLES: &str = "\
Examples:
  larder stats
  larder stats --json | jq .all.bytes";

/// Shows totals of the store and, while a larder runs, of what it served and saved.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Stats {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

impl Stats {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        invocation.ask_at(&self.elsewhere, &Question::Stats, |out, answer| {
            if let Answer::Stats(numbers) = answer {
                if self.json {
                    json(out, &numbers)?;
                } else {
                    sum_up(out, &numbers)?;
                }
            }
            Ok(())
        })?;
        Ok(OK)
    }
}

fn sum_up(out: &mut dyn Write, numbers: &Numbers) -> io::Result<()> {
    let on_disk =
        numbers.blob_bytes.saturating_add(numbers.spool_bytes).saturating_add(numbers.claims_bytes);
    let entries = human::count(numbers.all.entries, "entry", "entries");
    writeln!(
        out,
        "{entries}, {} on disk of at most {} (store.max_size)",
        human::bytes(on_disk),
        // In the unit that the operator used.
        crate::config::size(numbers.max_size),
    )?;
    writeln!(out, "{} with current claims", human::count(numbers.indexes, "index", "indexes"))?;
    shares(out, "by proof", &numbers.proofs)?;
    shares(out, "by ecosystem", &numbers.ecosystems)?;
    let Some(totals) = &numbers.totals else {
        return writeln!(out, "no larder runs; what it served is counted only while one does");
    };
    writeln!(out, "since the start")?;
    for (outcome, requests) in &totals.outcomes {
        writeln!(out, "  {outcome:<16} {requests:>9}")?;
    }
    writeln!(
        out,
        "  {} from the store, {} fetched",
        human::bytes(totals.from_store),
        human::bytes(totals.from_origin)
    )
}

fn shares(out: &mut dyn Write, title: &str, shares: &BTreeMap<String, Share>) -> io::Result<()> {
    if shares.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}")?;
    for (name, share) in shares {
        let name = if name.is_empty() { "unknown" } else { name };
        writeln!(out, "  {name:<16} {:>9} {:>10}", share.entries, human::bytes(share.bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_shown_as_it_was_given() {
        for (max_size, shown) in [(50 << 30, "50GiB"), (50_000_000_000, "50GB"), (1 << 20, "1MiB")]
        {
            let mut out = Vec::new();
            sum_up(&mut out, &Numbers { max_size, ..Numbers::default() }).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(&format!("of at most {shown} (store.max_size)\n")), "{text}");
        }
    }
}
