//! The counters: the metric families that `/-/metrics` shows, and the totals that `larder exec` summarises.
//!
//! Every stage that counts something holds an `Arc<Metrics>`. The store's gauges are not kept here: the handler of
//! the metrics page reads them from the store on each request.
//!
//! No label holds anything that a client or an origin chose, such as a host name: an attacker could otherwise create
//! a million series.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Outcome;
use super::job::Jobs;
use super::recent::{Event, Recent};
use super::totals::{Direction, Totals};
use super::witness::Witness;
use crate::clock::{Clock, Time};
use crate::limits::{INTERIM, PLACES, Reading};
use crate::proof::Proof;

/// Integrity and configuration problems that an operator should look at, although larder keeps serving. Damage on
/// disk is counted by the store (`larder_store_damaged_total`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// Bytes differ from what an index claimed.
    Mismatch,
    /// A pinned file changed, or an index names other bytes for a file that should never change.
    Changed,
    /// An index in a known format could not be parsed.
    Malformed,
    /// A signed index is worse than the one seen before: unsigned, signed by unknown keys, or older.
    Signature,
    /// A body was not kept, because the store has no room for it.
    Full,
}

impl Alarm {
    /// All kinds. Each is exported as zero from the start, so that the first alarm is visible as a change.
    pub const ALL: [Self; 5] =
        [Self::Mismatch, Self::Changed, Self::Malformed, Self::Signature, Self::Full];

    /// The label value in the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mismatch => "mismatch",
            Self::Changed => "changed",
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Full => "full",
        }
    }
}

/// Why a stored copy was served before its origin answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoodIn {
    /// The client had waited as long as `upstream.patience` allows.
    Patience,
    /// The origin had failed before, so larder waited only briefly.
    Down,
}

impl StoodIn {
    /// The label value in the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Patience => "patience",
            Self::Down => "down",
        }
    }
}

/// Reads the current state of the client limits.
pub type LimitReader = Box<dyn Fn() -> Vec<Reading> + Send + Sync>;

/// The counters of one larder process.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    bytes: Family<BytesLabels, Counter>,
    rejected: Counter,
    alarms: Family<AlarmLabels, Counter>,
    connections: Gauge,
    keys_ending: Gauge,
    keys_missing: Gauge,
    stood_in: Family<StoodInLabels, Counter>,
    origins_down: Gauge,
    totals: Mutex<Totals>,
    limits: OnceLock<LimitReader>,
    /// Clients that repeatedly fail, for diagnosis.
    pub witness: Witness,
    /// Requests that failed or were refused, and those that were passed on.
    pub recent: Recent,
    /// Counts per job.
    pub jobs: Jobs,
    clock: Clock,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: &'static str,
    /// Why the request was passed, refused or failed; empty otherwise.
    reason: &'static str,
    /// The rank only: qualifiers would multiply the series.
    proof: &'static str,
    ecosystem: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    direction: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlarmLabels {
    kind: Alarm,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoodInLabels {
    why: StoodIn,
}

impl EncodeLabelValue for StoodIn {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for Direction {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for Alarm {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.totals().fmt(f)
    }
}

impl Metrics {
    /// Creates all counters at zero.
    pub fn new(clock: Clock) -> Self {
        let mut registry = Registry::with_prefix("larder");
        let (requests, bytes, rejected) =
            (Family::default(), Family::default(), Counter::default());
        let alarms = silent();
        registry.register(
            "requests",
            "Requests, by outcome and by the proof of the body",
            Clone::clone(&requests),
        );
        registry.register("bytes", "Bytes of bodies, by direction", Clone::clone(&bytes));
        registry.register(
            "rejected",
            "Bodies whose bytes differ from what their index claimed",
            Clone::clone(&rejected),
        );
        registry.register(
            "alarms",
            "Integrity and configuration alarms, by kind",
            Clone::clone(&alarms),
        );
        let mut gauge = |name, about| {
            let gauge = Gauge::default();
            registry.register(name, about, Gauge::clone(&gauge));
            gauge
        };
        let connections = gauge("connections", "Open client connections");
        let keys_ending = gauge(
            "keys_ending",
            "Signing keys in use by a repository that expire within 30 days, or have expired",
        );
        let keys_missing =
            gauge("keys_missing", "Keys that were trusted and whose files cannot be read now");
        let origins_down = gauge(
            "origins_down",
            "Origins, by credential and kind of request, that failed and have not answered since",
        );
        let stood_in = Family::default();
        registry.register(
            "stood_in",
            "Stored copies that were served because their origin did not answer in time",
            Clone::clone(&stood_in),
        );
        Self {
            registry,
            requests,
            bytes,
            rejected,
            alarms,
            connections,
            keys_ending,
            keys_missing,
            stood_in,
            origins_down,
            totals: Mutex::default(),
            limits: OnceLock::new(),
            witness: Witness::default(),
            recent: Recent::default(),
            jobs: Jobs::default(),
            clock,
        }
    }

    /// The current time, for events.
    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Counts a request that ended. `ecosystem` is the name of the ecosystem that recognised the URL, or empty.
    pub fn ended(&self, outcome: Outcome, proof: Option<Proof>, ecosystem: &'static str) {
        let labels = RequestLabels {
            outcome: outcome.as_str(),
            reason: outcome.reason(),
            proof: proof.map_or("", |proof| proof.rank.as_str()),
            ecosystem,
        };
        self.requests.get_or_create(&labels).inc();
        self.lock().ended(outcome, proof);
    }

    /// Counts a client that rejected larder's certificate.
    pub fn distrusted(&self) {
        let mut totals = self.lock();
        totals.distrusted = totals.distrusted.saturating_add(1);
    }

    /// Counts a client that left after its handshake without a request.
    pub fn left(&self) {
        let mut totals = self.lock();
        totals.left = totals.left.saturating_add(1);
    }

    /// Sets how many keys in use expire soon, or have expired.
    pub fn keys_ending(&self, count: usize) {
        self.keys_ending.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many keys cannot be read that were trusted.
    pub fn keys_missing(&self, count: usize) {
        self.keys_missing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a body that differs from what its index claimed, however much of it had been sent.
    pub fn rejected(&self, url: String, why: String, public: bool) {
        self.rejected.inc();
        self.alarm(Alarm::Mismatch, url, why, public);
    }

    /// Counts bytes of a body.
    pub fn bytes(&self, direction: Direction, bytes: u64) {
        self.bytes.get_or_create(&BytesLabels { direction }).inc_by(bytes);
        self.lock().bytes(direction, bytes);
    }

    /// Counts the time that fetching a stored body again would have cost.
    pub(super) fn saved(&self, time: Duration) {
        self.lock().saved(time);
    }

    /// Counts an alarm and records it as an event: `url`, with secrets replaced, and `why`, the reason. `public`:
    /// every client may see the event.
    pub fn alarm(&self, kind: Alarm, url: String, why: String, public: bool) {
        self.alarms.get_or_create(&AlarmLabels { kind }).inc();
        self.recent.note(Event::alarm(self.clock.now(), kind.as_str(), url, why, public));
    }

    /// Counts a stored copy that was served before its origin answered.
    pub fn stood_in(&self, why: StoodIn) {
        self.stood_in.get_or_create(&StoodInLabels { why }).inc();
    }

    /// Sets how many origins are down.
    pub fn origins_down(&self, count: usize) {
        self.origins_down.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a client connection until the returned guard is dropped.
    pub fn connection(self: &Arc<Self>) -> OpenConnection {
        self.connections.inc();
        OpenConnection(Arc::clone(self))
    }

    /// Sets the reader of the client limits; only the first call counts.
    pub fn watch_limits(&self, reader: LimitReader) {
        let _the_first_stays = self.limits.set(reader);
    }

    /// The state of all limits: those on clients and those on the process's descriptors.
    pub fn limits(&self) -> Vec<Reading> {
        let mut readings = self.limits.get().map_or_else(Vec::new, |read| read());
        readings.extend([PLACES.upstream.reading(), PLACES.files.reading(), INTERIM.reading()]);
        readings
    }

    /// The totals since the start.
    pub fn totals(&self) -> Totals {
        self.lock().clone()
    }

    /// Appends every family in the text format of Prometheus and `OpenMetrics`, without the `# EOF` line.
    pub fn render(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.registry)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Totals> {
        // Totals stay usable even if a thread panicked while it held the lock.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All kinds of alarm, at zero.
fn silent() -> Family<AlarmLabels, Counter> {
    let alarms = Family::<AlarmLabels, Counter>::default();
    for kind in Alarm::ALL {
        alarms.get_or_create(&AlarmLabels { kind }).inc_by(0);
    }
    alarms
}

/// An open client connection, counted until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Metrics>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PassReason;
    use crate::proof::Rank;

    #[test]
    fn families_carry_the_names_that_dashboards_use() {
        let metrics = Arc::new(Metrics::default());
        let open = metrics.connection();
        metrics.ended(Outcome::Hit, Some(Proof::of(Rank::Indexed).stale()), "pypi");
        metrics.ended(Outcome::Pass(PassReason::Credential), None, "");
        metrics.rejected("https://example.org/a".into(), "other bytes".into(), true);
        metrics.bytes(Direction::FromStore, 7);
        let mut text = String::new();
        metrics.render(&mut text).unwrap();
        for line in [
            "larder_requests_total{outcome=\"hit\",reason=\"\",proof=\"indexed\",ecosystem=\"pypi\"} 1",
            "larder_requests_total{outcome=\"pass\",reason=\"credential\",proof=\"\",ecosystem=\"\"} 1",
            "larder_bytes_total{direction=\"from_store\"} 7",
            "larder_rejected_total 1",
            "larder_alarms_total{kind=\"mismatch\"} 1",
            "larder_connections 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        drop(open);
        text.clear();
        metrics.render(&mut text).unwrap();
        assert!(text.contains("larder_connections 0"));
    }

    #[test]
    fn a_difference_holds_only_what_came_since() {
        let metrics = Metrics::default();
        metrics.ended(Outcome::Miss, Some(Proof::of(Rank::Pinned)), "");
        metrics.bytes(Direction::FromOrigin, 10);
        let before = metrics.totals();
        metrics.ended(Outcome::Hit, Some(Proof::of(Rank::Indexed)), "");
        metrics.ended(Outcome::Revalidated, None, "");
        metrics.bytes(Direction::FromStore, 5);
        let since = metrics.totals().since(&before);
        assert_eq!(since.count(&[Outcome::Hit, Outcome::Revalidated, Outcome::Stale]), 2);
        assert_eq!(since.count(&[Outcome::Miss]), 0);
        assert_eq!((since.from_store, since.from_origin), (5, 0));
        assert_eq!(since.proofs.keys().collect::<Vec<_>>(), ["indexed"]);
    }
}
