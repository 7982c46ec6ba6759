//! What was counted since the start, or of one job.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::proof::Proof;

/// The direction in which bytes of bodies went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To clients, from the store or from an origin.
    ToClient,
    /// From origins, for fills and passes.
    FromOrigin,
    /// To clients, from the store: bytes that were not fetched again.
    FromStore,
}

impl Direction {
    /// The label value in the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ToClient => "to_client",
            Self::FromOrigin => "from_origin",
            Self::FromStore => "from_store",
        }
    }
}

/// Totals since the start of one larder process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests, by the name of their outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Answers, by the rank of their proof.
    pub proofs: BTreeMap<String, u64>,
    /// Bytes sent to clients.
    pub to_client: u64,
    /// Bytes received from origins.
    pub from_origin: u64,
    /// Bytes sent to clients from the store.
    pub from_store: u64,
    /// Connections whose client rejected larder's certificate.
    #[serde(default)]
    pub distrusted: u64,
    /// Connections whose client left after the handshake without a request: some clients reject a certificate only
    /// then.
    #[serde(default)]
    pub left: u64,
    /// Milliseconds that fetching the stored bodies again would have cost, by what their origins took when they were
    /// fetched.
    #[serde(default)]
    pub saved_ms: u64,
}

impl Totals {
    /// Counts a request that ended.
    pub(super) fn ended(&mut self, outcome: Outcome, proof: Option<Proof>) {
        count(&mut self.outcomes, outcome.as_str());
        if let Some(proof) = proof {
            count(&mut self.proofs, proof.rank.as_str());
        }
    }

    /// Counts bytes of a body.
    pub(super) const fn bytes(&mut self, direction: Direction, bytes: u64) {
        let total = match direction {
            Direction::ToClient => &mut self.to_client,
            Direction::FromOrigin => &mut self.from_origin,
            Direction::FromStore => &mut self.from_store,
        };
        *total = total.saturating_add(bytes);
    }

    /// Counts the time that fetching a stored body again would have cost.
    pub(super) fn saved(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.saved_ms = self.saved_ms.saturating_add(ms);
    }

    /// What was counted since `earlier`, a reading of the same process.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            now.iter()
                .map(|(name, count)| {
                    (name.clone(), count.saturating_sub(then.get(name).copied().unwrap_or(0)))
                })
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Self {
            outcomes: since(&self.outcomes, &earlier.outcomes),
            proofs: since(&self.proofs, &earlier.proofs),
            to_client: self.to_client.saturating_sub(earlier.to_client),
            from_origin: self.from_origin.saturating_sub(earlier.from_origin),
            from_store: self.from_store.saturating_sub(earlier.from_store),
            distrusted: self.distrusted.saturating_sub(earlier.distrusted),
            left: self.left.saturating_sub(earlier.left),
            saved_ms: self.saved_ms.saturating_sub(earlier.saved_ms),
        }
    }

    /// The number of requests, without those for larder's own pages.
    pub fn requests(&self) -> u64 {
        sum(self.outcomes.values().copied()).saturating_sub(self.count(&[Outcome::Own]))
    }

    /// The number of requests that ended in one of `outcomes`.
    pub fn count(&self, outcomes: &[Outcome]) -> u64 {
        let named = |outcome: &Outcome| self.outcomes.get(outcome.as_str()).copied().unwrap_or(0);
        sum(outcomes.iter().map(named))
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count = count.saturating_add(1),
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

/// The numbers may be those that a larder elsewhere told.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
