//! `larder why`.

use std::io::{self, Write};

use clap::Args;

use super::answers::json;
use super::remote::Elsewhere;
use super::{Invocation, OK, human};
use crate::admin::question::entry::Listed;
use crate::admin::why::{Described, Explanation, Promised};
use crate::admin::{Answer, Question};
use crate::clock::Time;
use crate::target::shown::one_line;

const EXAMPLES: &str = "\
Examples:
  larder why https://files.example.org/pool/a_1.0.deb
  larder why --json https://files.example.org/a.whl | jq .refusals";

/// Explains what is known of a URL: its kind, which indexes claim what about it, what is stored, what was refused.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Why {
    /// The URL, as a client requests it
    url: String,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

impl Why {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let now = invocation.clock.now();
        invocation.ask_at(&self.elsewhere, &Question::Why { url: self.url }, |out, answer| {
            if let Answer::Why(explanation) = answer {
                if self.json {
                    json(out, &explanation)?;
                } else {
                    tell(out, &explanation, now)?;
                }
            }
            Ok(())
        })?;
        Ok(OK)
    }
}

/// Prints the explanation for people.
fn tell(out: &mut dyn Write, known: &Explanation, now: Time) -> io::Result<()> {
    writeln!(out, "{}", one_line(&known.url))?;
    resource(out, &known.resource)?;
    writeln!(out, "  plan      {}: {}", known.plan, known.meaning)?;
    if known.promises.is_empty() {
        writeln!(out, "  promised  nothing that larder has read")?;
    }
    for promise in &known.promises {
        promised(out, promise, now)?;
    }
    if known.entries.is_empty() {
        writeln!(out, "  stored    nothing")?;
    }
    for entry in &known.entries {
        stored(out, entry, now)?;
    }
    for event in &known.recent {
        writeln!(out, "  recently  {}", super::recent::told(event, now))?;
    }
    for refused in &known.refusals {
        writeln!(out, "  refused   {}: {}", human::ago(refused.at, now), one_line(&refused.why))?;
    }
    Ok(())
}

fn resource(out: &mut dyn Write, resource: &Described) -> io::Result<()> {
    if resource.ecosystem.is_empty() {
        return writeln!(out, "  kind      unknown: the URL fits no ecosystem");
    }
    let sure =
        if resource.certain { "" } else { ", by its URL alone; no answer has confirmed it yet" };
    writeln!(
        out,
        "  kind      {} of {} below {}{sure}",
        resource.kind,
        resource.ecosystem,
        one_line(&resource.root)
    )?;
    let Some(named) = &resource.named else {
        return Ok(());
    };
    let convention = match &resource.convention {
        Some((root, matched, missed)) => {
            let own =
                if *missed { "; this file once did not match, so it is not enforced" } else { "" };
            format!(
                " (a convention; below {root} {matched} of the 3 files matched that make it count{own})"
            )
        }
        None => String::new(),
    };
    writeln!(out, "  names     {named}{convention}")
}

fn promised(out: &mut dyn Write, promise: &Promised, now: Time) -> io::Result<()> {
    let size = promise.size.map_or_else(String::new, |size| format!(", {size} bytes"));
    let current = if promise.current { "current" } else { "superseded" };
    let binds =
        if promise.binds { "other bytes are refused" } else { "other bytes only raise an alarm" };
    writeln!(out, "  promised  {}{size}", promise.digests.join(", "))?;
    writeln!(out, "            by {}", one_line(&promise.index))?;
    writeln!(
        out,
        "            {}, {}, {current}, confirmed {}; {binds}",
        promise.rank,
        promise.relation,
        human::ago(promise.confirmed, now),
    )
}

fn stored(out: &mut dyn Write, entry: &Listed, now: Time) -> io::Result<()> {
    let variant = match human::variant(&entry.variant) {
        variant if variant.is_empty() => variant,
        variant => format!(" as {variant}"),
    };
    writeln!(
        out,
        "  stored    {}{variant}, {} bytes, sha256:{}",
        entry.proof, entry.size, entry.sha256
    )?;
    writeln!(
        out,
        "            received {}, checked {}",
        human::ago(entry.received_at, now),
        human::ago(entry.checked_at, now),
    )?;
    match &entry.answered_by {
        Some(url) => writeln!(out, "            answered by {}", one_line(url)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::why::Refused;
    use crate::outcome::recent::Event;

    #[test]
    fn the_story_names_index_digests_and_refusals() {
        let known = Explanation {
            url: "https://files.example.org/a.whl".into(),
            resource: Described {
                ecosystem: "pypi".into(),
                kind: "artifact".into(),
                certain: true,
                named: Some("blake2b-256:aa".into()),
                convention: Some(("https://files.example.org/".into(), 2, true)),
                root: "https://files.example.org/".into(),
            },
            plan: "keep".into(),
            meaning: "kept".into(),
            promises: vec![Promised {
                index: "https://example.org/simple/a/".into(),
                digests: vec!["sha256:bb".into()],
                size: Some(3),
                rank: "indexed".into(),
                relation: "in-root".into(),
                binds: true,
                current: true,
                confirmed: Time::from_millis(0),
            }],
            entries: Vec::new(),
            recent: vec![Event {
                kind: "pass".into(),
                method: "GET".into(),
                client: "192.0.2.1".into(),
                times: 3,
                ..Event::alarm(
                    Time::from_millis(0),
                    "header",
                    "https://files.example.org/a.whl".into(),
                    "its header field x-a may change the answer".into(),
                    true,
                )
            }],
            refusals: vec![Refused {
                at: Time::from_millis(0),
                why: "it came as sha256:cc".into(),
            }],
        };
        let mut out = Vec::new();
        tell(&mut out, &known, Time::from_millis(60_000)).unwrap();
        let told = String::from_utf8(out).unwrap();
        for part in [
            "artifact of pypi",
            "2 of the 3",
            "not enforced",
            "sha256:bb, 3 bytes",
            "/simple/a/",
            "refused",
            "sha256:cc",
            "1 min ago",
            "stored    nothing",
            "pass(header) 3 times, last 1 min ago: its header field x-a",
        ] {
            assert!(told.contains(part), "{part} is missing in:\n{told}");
        }
    }
}
