//! Which origins failed a moment ago: the breaker and the memory of 429.
//!
//! It only decides that a stored copy is served without waiting long; a miss is always tried. It forgets within a
//! minute whatever an origin's `Retry-After` says, because one job that asks nonsense until the registry answers 429
//! with a day's wait must not take the registry from everybody else (pitfall 42). For the same reason each credential has
//! a memory of its own, and so have those who ask without one: a quota is one account's, and says nothing of another's.
//! Time is [`Clock`]'s, so that tests move it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Lane;
use crate::clock::{Clock, Time};
use crate::target::{Origin, Partition};

/// The first failure without a `Retry-After` counts for so long; each further one doubles it.
const FIRST: Duration = Duration::from_secs(10);
/// The longest memory (DESIGN §4 "Freshness").
const LONGEST: Duration = Duration::from_mins(1);
/// How many are remembered. When full, the expired go, then the ones that expire first: whoever fills it with invented
/// credentials only makes others wait for an answer that they would have waited for anyway.
const MOST: usize = 1024;

/// Who failed towards whom: one origin, for one credential, on one lane.
pub(super) type Way = (Origin, Partition, Lane);

#[derive(Debug)]
pub(super) struct Health {
    clock: Clock,
    failing: Mutex<HashMap<Way, Failing>>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    until: Time,
    in_a_row: u32,
}

impl Health {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, failing: Mutex::default() }
    }

    pub(super) fn is_failing(&self, way: &Way) -> bool {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.get(way).is_some_and(|failing| self.clock.now() < failing.until)
    }

    pub(super) fn note_failure(&self, way: Way, retry_after: Option<Duration>) {
        let now = self.clock.now();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut failing, now);
        let entry = failing.entry(way).or_insert(Failing { until: now, in_a_row: 0 });
        let backoff = FIRST.saturating_mul(1 << entry.in_a_row.min(6));
        entry.in_a_row = entry.in_a_row.saturating_add(1);
        entry.until = now.plus(retry_after.unwrap_or(backoff).min(LONGEST));
    }

    pub(super) fn note_success(&self, way: &Way) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.remove(way);
    }
}

fn make_room(failing: &mut HashMap<Way, Failing>, now: Time) {
    if failing.len() < MOST {
        return;
    }
    // A row of failures is remembered as long again as it counts, so that the next one goes on from there.
    failing.retain(|_, failing| now < failing.until.plus(LONGEST));
    while failing.len() >= MOST {
        let first =
            failing.iter().min_by_key(|(_, failing)| failing.until).map(|(key, _)| key.clone());
        match first {
            Some(key) => failing.remove(&key),
            None => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Host, Scheme};

    fn way(number: usize, lane: Lane) -> Way {
        let origin = Origin {
            scheme: Scheme::Https,
            host: Host::parse(&format!("h{number}.example.org")).unwrap(),
            port: 443,
        };
        (origin, Partition::Public, lane)
    }

    #[test]
    fn a_failure_is_forgotten_within_a_minute_whatever_the_origin_says() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        let day = Duration::from_hours(24);
        health.note_failure(way(1, Lane::Metadata), Some(day));
        assert!(health.is_failing(&way(1, Lane::Metadata)));
        clock.advance(Duration::from_secs(50));
        assert!(health.is_failing(&way(1, Lane::Metadata)));
        clock.advance(Duration::from_secs(10));
        assert!(!health.is_failing(&way(1, Lane::Metadata)));
    }

    #[test]
    fn lanes_and_origins_fail_apart_and_a_success_ends_it() {
        let health = Health::new(Clock::system());
        health.note_failure(way(1, Lane::Bulk), None);
        assert!(!health.is_failing(&way(1, Lane::Metadata)));
        assert!(!health.is_failing(&way(2, Lane::Bulk)));
        assert!(health.is_failing(&way(1, Lane::Bulk)));
        health.note_success(&way(1, Lane::Bulk));
        assert!(!health.is_failing(&way(1, Lane::Bulk)));
    }

    #[test]
    fn one_credentials_failures_are_nobody_elses() {
        let health = Health::new(Clock::system());
        let (origin, anybody, lane) = way(1, Lane::Bulk);
        let hostile = (origin.clone(), Partition::Private([1; 16]), lane);
        let other = (origin.clone(), Partition::Private([2; 16]), lane);
        health.note_failure(hostile.clone(), Some(Duration::from_hours(24)));
        assert!(health.is_failing(&hostile) && !health.is_failing(&other));
        assert!(!health.is_failing(&(origin.clone(), anybody, lane)));
        // Nor does another's success end it.
        health.note_success(&(origin, anybody, lane));
        assert!(health.is_failing(&hostile));
    }

    #[test]
    fn failures_in_a_row_count_longer() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        health.note_failure(way(1, Lane::Bulk), None);
        clock.advance(Duration::from_secs(11));
        assert!(!health.is_failing(&way(1, Lane::Bulk)));
        health.note_failure(way(1, Lane::Bulk), None);
        clock.advance(Duration::from_secs(11));
        assert!(health.is_failing(&way(1, Lane::Bulk)));
    }

    #[test]
    fn the_memory_is_bounded() {
        let health = Health::new(Clock::system());
        for number in 0..MOST + 50 {
            health.note_failure(way(number, Lane::Bulk), None);
        }
        assert_eq!(health.failing.lock().unwrap().len(), MOST);
        assert!(health.is_failing(&way(MOST + 49, Lane::Bulk)));
    }
}
