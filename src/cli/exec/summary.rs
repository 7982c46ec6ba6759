//! The summary of `larder exec` when its command has ended: totals, refusals, and a warning if requests bypassed
//! larder. Also as JSON (`--json`) and for the summary page of a CI (`GITHUB_STEP_SUMMARY`).

use std::fmt::Write as _;

use serde::Serialize;

use crate::cli::human;
use crate::outcome::Outcome;
use crate::outcome::cause::Cause;
use crate::outcome::job::{Named, Tally};
use crate::outcome::totals::Totals;
use crate::policy::PassReason;
use crate::target::shown::one_line;

/// The most URLs that are named on the terminal; the others are counted.
const NAMED: usize = 5;

/// The totals of a job. All reasons for passing, refusing or failing are summed under one name.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// The command's exit code.
    pub(super) exit_code: u8,
    /// How long the command ran.
    pub(super) seconds: f64,
    requests: u64,
    hits: u64,
    misses: u64,
    passed: u64,
    failed: u64,
    refused: u64,
    /// Bytes of bodies.
    bytes_to_clients: u64,
    bytes_from_store: u64,
    bytes_from_upstream: u64,
    /// The share of bytes that came from the store, between 0 and 1; none without bytes.
    share_from_store: Option<f64>,
    /// The time that fetching stored bodies again would have cost, by what their origins took when they were fetched;
    /// simultaneous downloads count each.
    seconds_saved: f64,
    /// Connections whose client rejected larder's certificate.
    distrusted: u64,
    /// Answers by the rank of their proof.
    proofs: std::collections::BTreeMap<String, u64>,
    refusals: Vec<Named>,
    failures: Vec<Named>,
}

impl Report {
    pub(super) fn new(tally: &Tally, exit_code: u8, seconds: f64) -> Self {
        let totals = &tally.totals;
        Self {
            exit_code,
            seconds,
            requests: totals.requests(),
            hits: totals.count(&[Outcome::Hit, Outcome::Revalidated, Outcome::Stale]),
            misses: totals.count(&[Outcome::Miss, Outcome::Collapsed]),
            passed: totals.count(&[Outcome::Pass(PassReason::Method), Outcome::Tunnel]),
            failed: totals.count(&[Outcome::Failed(Cause::Dns)]),
            refused: totals
                .count(&[Outcome::Rejected(Cause::Promise), Outcome::Refused(Cause::Host)]),
            bytes_to_clients: totals.to_client,
            bytes_from_store: totals.from_store,
            bytes_from_upstream: totals.from_origin,
            share_from_store: share(totals),
            seconds_saved: seconds_of(totals.saved_ms),
            distrusted: totals.distrusted,
            proofs: totals.proofs.clone(),
            refusals: tally.refused.clone(),
            failures: tally.failed.clone(),
        }
    }

    /// The summary in one line, for people.
    pub(super) fn line(&self) -> String {
        let mut parts = vec![
            human::count(self.hits, "hit", "hits"),
            human::count(self.misses, "miss", "misses"),
        ];
        for (number, what) in
            [(self.passed, "passed on"), (self.failed, "failed"), (self.refused, "refused")]
        {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        }
        let mut line = format!(
            "{}; {} from the store, {} from upstream",
            parts.join(", "),
            human::bytes(self.bytes_from_store),
            human::bytes(self.bytes_from_upstream)
        );
        if let Some(share) = self.share_from_store {
            push(&mut line, format_args!(" ({} saved", percent(share)));
            if self.seconds_saved >= 1.0 {
                push(
                    &mut line,
                    format_args!(", and {} of downloads", human::seconds(self.seconds_saved)),
                );
            }
            line.push(')');
        }
        if !self.proofs.is_empty() {
            let proofs: Vec<String> =
                self.proofs.iter().map(|(rank, number)| format!("{number} {rank}")).collect();
            line.push_str("; proofs: ");
            line.push_str(&proofs.join(", "));
        }
        if self.distrusted > 0 && self.requests > 0 {
            line.push_str("; ");
            line.push_str(&human::count(self.distrusted, "connection", "connections"));
            line.push_str(" refused by clients that do not trust larder (see `larder doctor`)");
        }
        line
    }

    /// What was refused or failed, a line for each URL. `elsewhere`: the larder's address, if `larder why` needs it.
    pub(super) fn troubles(&self, elsewhere: Option<&str>) -> Vec<String> {
        let at = elsewhere.map_or_else(String::new, |proxy| format!(" --proxy {proxy}"));
        let mut lines = Vec::new();
        for (number, named, what) in
            [(self.refused, &self.refusals, "refused"), (self.failed, &self.failures, "failed")]
        {
            let mut left = number;
            for Named { url, why, .. } in named.iter().take(NAMED) {
                let url = one_line(url);
                // Without a complete URL, `larder why` cannot be asked.
                let ask = if url.contains("://") {
                    format!(" (larder why{at} {})", quoted(&url))
                } else {
                    String::new()
                };
                lines.push(format!("1 {what}: {url}{ask}"));
                let why = one_line(besides(why, &url)).into_owned();
                if !why.is_empty() {
                    lines.push(format!("  {why}"));
                }
                left = left.saturating_sub(1);
            }
            let others = named.len().saturating_sub(NAMED);
            if others > 0 {
                lines.push(format!("{left} more {what} (larder recent{at})"));
            }
        }
        lines
    }

    /// The summary as Markdown, for the page of a CI. URLs and reasons, which clients and origins influence, are
    /// shown as code.
    pub(super) fn markdown(&self, command: &str) -> String {
        let code = |text: &str| format!("`{}`", one_line(text).replace(['`', '|', '<'], "'"));
        let mut page = format!("### larder: {}\n\n", code(command));
        page.push_str("| hits | misses | passed on | failed | refused | from the store | from upstream | saved |\n");
        page.push_str("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
        push(
            &mut page,
            format_args!(
                "| {} | {} | {} | {} | {} | {} | {} | {}, {} |\n",
                self.hits,
                self.misses,
                self.passed,
                self.failed,
                self.refused,
                human::bytes(self.bytes_from_store),
                human::bytes(self.bytes_from_upstream),
                self.share_from_store.map_or_else(|| "-".to_owned(), percent),
                human::seconds(self.seconds_saved),
            ),
        );
        for (named, what) in [(&self.refusals, "Refused"), (&self.failures, "Failed")] {
            for Named { url, why, .. } in named {
                push(
                    &mut page,
                    format_args!("\n- {what}: {}: {}", code(url), code(besides(why, url))),
                );
            }
        }
        page.push_str("\n\n");
        page
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown in whole percent")]
fn share(totals: &Totals) -> Option<f64> {
    let all = totals.from_store.saturating_add(totals.from_origin);
    (all > 0).then(|| totals.from_store as f64 / all as f64)
}

#[expect(clippy::cast_precision_loss, reason = "shown in whole seconds")]
fn seconds_of(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn push(to: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _infallible = to.write_fmt(text);
}

fn percent(share: f64) -> String {
    // Rounded down, so that 100 % means all.
    format!("{} %", (share * 100.0).floor())
}

/// The warning if no request of the command came through larder. `reached`: whether larder's CA was added to the
/// system's roots for the command.
pub(super) fn alarm(counted: &Totals, reached: bool) -> Option<String> {
    if counted.requests() > 0 {
        return None;
    }
    let refused = counted.distrusted.saturating_add(counted.left);
    if refused == 0 {
        return Some(
            "WARNING: NOTHING CAME THROUGH LARDER: the command downloaded nothing, or its downloads went around larder. \
             `larder doctor` says for each client why, and what mends it"
                .to_owned(),
        );
    }
    let connections = human::count(refused, "connection", "connections");
    let roots = if reached {
        ""
    } else {
        ". dnf, zypper, pacman, aria2 and apk read only the system's roots: run `larder exec` as root with the right to mount, or set \
         this machine up by the script of GET /setup"
    };
    Some(format!(
        "WARNING: NOTHING CAME THROUGH LARDER: {connections} ended without a request, because the client does not trust larder's \
         certificate. `larder doctor` says for each client why, and what mends it{roots}"
    ))
}

/// Quotes a text as one word for a shell, because users copy the line: a hostile URL may have quotes in its path.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The part of a reason after the URL, which is printed before it.
fn besides<'a>(why: &'a str, url: &str) -> &'a str {
    let known = why.strip_prefix(url).unwrap_or(why);
    let known = known.strip_prefix(" was refused").unwrap_or(known);
    known.strip_prefix(": ").unwrap_or(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::metrics::Metrics;
    use crate::outcome::totals::Direction;
    use crate::proof::{Proof, Rank};

    fn line(totals: &Totals) -> String {
        report(totals, Vec::new()).line()
    }

    fn report(totals: &Totals, refused: Vec<Named>) -> Report {
        let tally = Tally { totals: totals.clone(), refused, failed: Vec::new() };
        Report::new(&tally, 0, 1.5)
    }

    #[test]
    fn the_line_counts_hits_bytes_and_proofs() {
        let metrics = Metrics::default();
        for (outcome, rank) in [
            (Outcome::Hit, Some(Rank::SelfCertified)),
            (Outcome::Revalidated, Some(Rank::Origin)),
            (Outcome::Miss, Some(Rank::SelfCertified)),
            (Outcome::Pass(PassReason::Credential), None),
            (Outcome::Own, None),
        ] {
            metrics.ended(outcome, rank.map(Proof::of), "");
        }
        metrics.bytes(Direction::FromStore, 2_500_000);
        metrics.bytes(Direction::FromOrigin, 10);
        let counted =
            "2 hits, 1 miss, 1 passed on; 2.5 MB from the store, 10 B from upstream (99 % saved";
        let proofs = "; proofs: 1 origin, 2 self-certified";
        assert_eq!(line(&metrics.totals()), format!("{counted}){proofs}"));
        let totals = Totals { saved_ms: 90_000, ..metrics.totals() };
        assert_eq!(line(&totals), format!("{counted}, and 90 s of downloads){proofs}"));
    }

    #[test]
    fn what_was_refused_is_named_with_what_to_ask() {
        let totals = Totals {
            outcomes: [("rejected".to_owned(), 2), ("hit".to_owned(), 1)].into(),
            ..Totals::default()
        };
        let url = "https://files.example.org/a.whl".to_owned();
        let why = format!("{url} was refused: other bytes than promised");
        let named = Named { url, cause: "promise".to_owned(), why };
        let report = report(&totals, vec![named]);
        assert!(report.line().starts_with("1 hit, 0 misses, 2 refused;"), "{}", report.line());
        let lines = report.troubles(None);
        let first = "1 refused: https://files.example.org/a.whl (larder why 'https://files.example.org/a.whl')";
        assert_eq!(lines, [first, "  other bytes than promised"]);
        let lines = report.troubles(Some("http://larder:3142"));
        assert!(lines[0].contains("(larder why --proxy http://larder:3142 'https://"), "{lines:?}");
        assert_eq!(quoted("https://a/';reboot;b"), r"'https://a/'\'';reboot;b'");
        let page = report.markdown("pip install `x`");
        assert!(
            page.contains("### larder: `pip install 'x'`\n") && page.contains("| 1 | 0 |"),
            "{page}"
        );
        assert!(page.contains("- Refused: `https://files.example.org/a.whl`: `other"), "{page}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["refused"], 2);
        assert_eq!(json["refusals"][0]["cause"], "promise");
        assert_eq!(json["share_from_store"], serde_json::Value::Null);
    }

    #[test]
    fn what_went_past_larder_is_said_loudly() {
        let metrics = Metrics::default();
        let nothing = alarm(&metrics.totals(), true).unwrap();
        assert!(
            nothing.contains("`larder doctor`") && nothing.contains("went around"),
            "{nothing}"
        );
        metrics.distrusted();
        metrics.left();
        let refused = alarm(&metrics.totals(), false).unwrap();
        assert!(refused.contains("2 connections") && refused.contains("as root"), "{refused}");
        assert!(!alarm(&metrics.totals(), true).unwrap().contains("as root"));
        metrics.ended(Outcome::Own, None, "");
        assert!(alarm(&metrics.totals(), true).is_some(), "larder's own pages are no download");
        metrics.ended(Outcome::Tunnel, None, "");
        assert_eq!(alarm(&metrics.totals(), true), None, "the control");
        assert!(line(&metrics.totals()).contains("1 connection refused by clients"));
    }

    #[test]
    fn a_command_that_fetched_nothing_says_so() {
        let nothing = "0 hits, 0 misses; 0 B from the store, 0 B from upstream";
        assert_eq!(line(&Totals::default()), nothing);
    }
}
