//! The last lines of `larder exec`: the sum, and what went past larder.

use crate::cli::human;
use crate::outcome::Outcome;
use crate::outcome::metrics::Totals;
use crate::policy::PassReason;

/// Sums up what was counted while a command ran. `shared`: by a larder that others use as well.
pub(super) fn line(counted: &Totals, shared: bool) -> String {
    let hits = counted.count(&[Outcome::Hit, Outcome::Revalidated, Outcome::Stale]);
    let misses = counted.count(&[Outcome::Miss, Outcome::Collapsed]);
    // Every reason to pass counts under one name.
    let passed = counted.count(&[Outcome::Pass(PassReason::Method), Outcome::Tunnel]);
    let failed = counted.count(&[Outcome::Failed]);
    let refused = counted.count(&[Outcome::Rejected, Outcome::Refused]);
    let mut parts = vec![human::count(hits, "hit", "hits"), human::count(misses, "miss", "misses")];
    for (number, what) in [(passed, "passed on"), (failed, "failed"), (refused, "refused")] {
        if number > 0 {
            parts.push(format!("{number} {what}"));
        }
    }
    let mut line = format!(
        "{}; {} saved, {} fetched",
        parts.join(", "),
        human::bytes(counted.from_store),
        human::bytes(counted.from_origin)
    );
    if !counted.proofs.is_empty() {
        let proofs: Vec<String> =
            counted.proofs.iter().map(|(rank, number)| format!("{number} {rank}")).collect();
        line.push_str("; proofs: ");
        line.push_str(&proofs.join(", "));
    }
    if counted.distrusted > 0 && counted.requests() > 0 {
        line.push_str("; ");
        line.push_str(&human::count(counted.distrusted, "connection", "connections"));
        line.push_str(" refused by clients that do not trust larder (see `larder doctor`)");
    }
    if shared {
        line.push_str(" (all that the running larder served meanwhile)");
    }
    line
}

/// What is to be said loudly, if nothing of the command came through larder. `reached`: clients that read only the system's roots
/// find larder's CA there.
pub(super) fn alarm(counted: &Totals, reached: bool) -> Option<String> {
    if counted.requests() > 0 {
        return None;
    }
    let refused = counted.distrusted + counted.left;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::metrics::{Direction, Metrics};
    use crate::proof::{Proof, Rank};

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
        let expected = "2 hits, 1 miss, 1 passed on; 2.5 MB saved, 10 B fetched; proofs: 1 origin, 2 self-certified";
        assert_eq!(line(&metrics.totals(), false), expected);
        assert!(line(&metrics.totals(), true).contains("running larder"));
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
        assert!(line(&metrics.totals(), false).contains("1 connection refused by clients"));
    }

    #[test]
    fn a_command_that_fetched_nothing_says_so() {
        assert_eq!(line(&Totals::default(), false), "0 hits, 0 misses; 0 B saved, 0 B fetched");
    }
}
