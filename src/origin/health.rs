//! The health of origins: their usual response time, whether they fail, and whether a probe is under way.
//!
//! Two questions are answered from the same data, with different memories:
//!
//! - *Does it fail right now?* ([`Health::is_failing`]) If so, larder skips requests that are not needed. This is
//!   forgotten within a minute, whatever an origin's `Retry-After` says. Otherwise one job that sends bad requests
//!   until the registry answers 429 with a wait of a day would take the registry away from all clients (pitfall 42).
//! - *Is it down?* ([`Health::is_down`]) If so, a request with a stored copy waits one second, not ten. This ends only
//!   with an answer. A memory with a time limit would make one client after the other pay the full wait for an origin
//!   that is still dead. To notice a recovery, one probe at a time is sent ([`Health::question`]). A probe that is not
//!   answered within its turn is superseded by the next, and turns double, because the origin may have recovered
//!   meanwhile.
//!
//! A miss is always tried. Each credential has a memory of its own, and so have requests without one, because a quota
//! belongs to one account and tells nothing about another. State is kept per target as well, because an origin may
//! answer everything except one target. Time is [`Clock`]'s, so that tests can move it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Lane;
use crate::clock::{Clock, Time};
use crate::target::{Key, Origin, Partition};

/// How long the first failure without a `Retry-After` counts. Each further one doubles it.
const FIRST: Duration = Duration::from_secs(10);
/// The longest memory of a failure (DESIGN §4 "Freshness"), and the longest turn of a probe.
const LONGEST: Duration = Duration::from_mins(1);
/// Maximum number of remembered states. When full, healthy ones are dropped, then those whose failure ends first. An
/// attacker who fills it with invented credentials only makes other clients wait for an answer that they would have
/// waited for anyway.
const MOST: usize = 1024;
/// An answer counts as 1/`WEIGHT` in the usual response time (a moving average), so one slow search changes little.
const WEIGHT: u32 = 8;
/// A longer response time counts as this, because a clock set forward tells nothing about an origin.
const SLOWEST: Duration = Duration::from_mins(5);

/// What fails together: one origin, for one credential, on one lane.
pub(super) type FailureDomain = (Origin, Partition, Lane);

/// The health of all origins.
#[derive(Debug)]
pub(super) struct Health {
    clock: Clock,
    books: Mutex<HealthBooks>,
}

#[derive(Debug, Default)]
struct HealthBooks {
    ways: HashMap<FailureDomain, State>,
    targets: HashMap<Key, State>,
}

/// What is known about one origin or target.
#[derive(Debug, Default)]
struct State {
    /// The usual time from the request to the response header.
    usual: Option<Duration>,
    /// Set by a failure, cleared by an answer.
    failing: Option<Failing>,
    /// The running requests that were sent since it last answered.
    asked: Weak<Turn>,
    /// When the last of them was sent.
    asked_at: Option<Time>,
    /// When the state was last changed.
    used: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Time,
    until: Time,
    in_a_row: u32,
}

/// Running requests that are given up together when the next probe supersedes them.
#[derive(Debug, Default)]
struct Turn {
    over: CancellationToken,
}

/// A running request for which there is a stored copy. While an origin is down there is one at a time.
#[derive(Debug)]
pub struct Question {
    turns: [Arc<Turn>; 2],
    /// Whether the origin or target is down. Then this request is the only probe.
    pub is_probe: bool,
}

impl Question {
    /// Waits until a newer probe supersedes this one.
    pub async fn superseded(&self) {
        let [one, other] = &self.turns;
        tokio::select! {
            () = one.over.cancelled() => {}
            () = other.over.cancelled() => {}
        }
    }
}

impl Health {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, books: Mutex::default() }
    }

    /// Whether it failed recently (within a minute at most).
    pub(super) fn is_failing(&self, way: &FailureDomain) -> bool {
        let books = self.lock();
        let failing = books.ways.get(way).and_then(|state| state.failing);
        failing.is_some_and(|failing| self.clock.now() < failing.until)
    }

    /// Whether it failed, for that target or for any, and has not answered since.
    pub(super) fn is_down(&self, way: &FailureDomain, target: Option<Key>) -> bool {
        let books = self.lock();
        let is_down = |state: &State| state.failing.is_some();
        books.ways.get(way).is_some_and(is_down)
            || target.and_then(|key| books.targets.get(&key)).is_some_and(is_down)
    }

    /// Since when it has been down.
    #[cfg(test)]
    fn failing_since(&self, way: &FailureDomain) -> Option<Time> {
        Some(self.lock().ways.get(way)?.failing?.since)
    }

    /// The number of ways that are down.
    pub(super) fn down(&self) -> usize {
        self.lock().ways.values().filter(|state| state.failing.is_some()).count()
    }

    /// The usual time from a request to its response header.
    pub(super) fn usual(&self, way: &FailureDomain) -> Option<Duration> {
        self.lock().ways.get(way)?.usual
    }

    pub(super) fn note_failure(
        &self,
        way: FailureDomain,
        target: Option<Key>,
        retry_after: Option<Duration>,
    ) {
        let now = self.clock.now();
        let mut books = self.lock();
        state_of(&mut books.ways, way, now).fail(now, retry_after);
        if let Some(key) = target {
            state_of(&mut books.targets, key, now).fail(now, retry_after);
        }
    }

    /// A client waited for `target` in vain. Its request no longer counts as a probe of the origin, which may answer
    /// everything else, so a request for another target may be sent.
    pub(super) fn note_silence(&self, way: FailureDomain, target: Key) {
        let now = self.clock.now();
        let mut books = self.lock();
        let of_way = state_of(&mut books.ways, way, now);
        of_way.fail(now, None);
        of_way.asked = Weak::new();
        state_of(&mut books.targets, target, now).fail(now, None);
    }

    /// An answer for `target` began in time but did not continue, or a request on which many clients waited brought
    /// nothing. This tells nothing about other targets.
    pub(super) fn note_unfinished(&self, target: Key) {
        let now = self.clock.now();
        let mut books = self.lock();
        let state = state_of(&mut books.targets, target, now);
        if state.failing.is_none() {
            state.fail(now, None);
        }
    }

    /// It answered, after `took` if that is representative.
    pub(super) fn note_success(
        &self,
        way: &FailureDomain,
        target: Option<Key>,
        took: Option<Duration>,
    ) {
        let mut books = self.lock();
        if let Some(took) = took {
            state_of(&mut books.ways, way.clone(), self.clock.now()).take(took.min(SLOWEST));
        }
        if let Some(state) = books.ways.get_mut(way) {
            state.answer();
        }
        if let Some(key) = target {
            books.targets.remove(&key);
        }
    }

    /// Permission to send a request for which there is a stored copy. `None` while the origin or target is down and a
    /// probe is running.
    pub(super) fn question(&self, way: FailureDomain, target: Key) -> Option<Question> {
        let now = self.clock.now();
        let mut books = self.lock();
        let is_down = |state: Option<&State>| state.is_some_and(|state| state.failing.is_some());
        let known = [books.ways.get(&way), books.targets.get(&target)];
        if known.iter().flatten().any(|state| state.failing.is_some() && state.is_asked(now)) {
            return None;
        }
        let is_probe = known.into_iter().any(is_down);
        let of_way = state_of(&mut books.ways, way, now).ask(now);
        let of_target = state_of(&mut books.targets, target, now).ask(now);
        Some(Question { turns: [of_way, of_target], is_probe })
    }

    fn lock(&self) -> MutexGuard<'_, HealthBooks> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, now: Time, retry_after: Option<Duration>) {
        let before = self.failing.unwrap_or(Failing { since: now, until: now, in_a_row: 0 });
        let memory = retry_after.unwrap_or_else(|| doubled(before.in_a_row));
        self.failing = Some(Failing {
            since: before.since,
            until: now.plus(memory.min(LONGEST)),
            in_a_row: before.in_a_row.saturating_add(1),
        });
    }

    fn take(&mut self, took: Duration) {
        self.usual = Some(match self.usual {
            Some(usual) => (usual * (WEIGHT - 1) + took) / WEIGHT,
            None => took,
        });
    }

    /// Earlier requests are no longer probes, and continue by themselves.
    fn answer(&mut self) {
        (self.failing, self.asked) = (None, Weak::new());
    }

    /// Whether a probe is running within its turn. A clock that was set back ends a turn.
    fn is_asked(&self, now: Time) -> bool {
        let turn = doubled(self.failing.map_or(0, |failing| failing.in_a_row));
        self.asked.strong_count() > 0
            && self.asked_at.is_some_and(|at| at <= now && now.since(at) < turn)
    }

    /// Joins the running requests, or supersedes a probe whose turn is over.
    fn ask(&mut self, now: Time) -> Arc<Turn> {
        let before = self.asked.upgrade();
        let turn = match before {
            Some(turn) if self.failing.is_none() => turn,
            before => {
                if let Some(before) = before {
                    before.over.cancel();
                }
                Arc::default()
            }
        };
        (self.asked, self.asked_at) = (Arc::downgrade(&turn), Some(now));
        turn
    }
}

/// How long a failure counts after `in_a_row` previous ones.
fn doubled(in_a_row: u32) -> Duration {
    FIRST.saturating_mul(1 << in_a_row.min(6)).min(LONGEST)
}

/// The state for `key` in a book of limited size.
fn state_of<K: Clone + Eq + Hash>(book: &mut HashMap<K, State>, key: K, now: Time) -> &mut State {
    if book.len() >= MOST && !book.contains_key(&key) {
        let first = book
            .iter()
            .min_by_key(|(_, state)| (state.failing.map(|failing| failing.until), state.used))
            .map(|(key, _)| key.clone());
        if let Some(first) = first {
            book.remove(&first);
        }
    }
    let state = book.entry(key).or_default();
    state.used = Some(now);
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Host, Scheme};

    fn way(number: usize, lane: Lane) -> FailureDomain {
        let origin = Origin {
            scheme: Scheme::Https,
            host: Host::parse(&format!("h{number}.example.org")).unwrap(),
            port: 443,
        };
        (origin, Partition::Public, lane)
    }

    const TARGET: Key = Key([1; 32]);

    #[test]
    fn a_failure_is_forgotten_within_a_minute_whatever_the_origin_says() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        let day = Duration::from_hours(24);
        health.note_failure(way(1, Lane::Metadata), None, Some(day));
        assert!(health.is_failing(&way(1, Lane::Metadata)));
        clock.advance(Duration::from_secs(50));
        assert!(health.is_failing(&way(1, Lane::Metadata)));
        clock.advance(Duration::from_secs(10));
        assert!(!health.is_failing(&way(1, Lane::Metadata)));
    }

    #[test]
    fn lanes_and_origins_fail_apart_and_a_success_ends_it() {
        let health = Health::new(Clock::system());
        health.note_failure(way(1, Lane::Bulk), None, None);
        assert!(!health.is_failing(&way(1, Lane::Metadata)));
        assert!(!health.is_failing(&way(2, Lane::Bulk)));
        assert!(health.is_failing(&way(1, Lane::Bulk)));
        health.note_success(&way(1, Lane::Bulk), None, None);
        assert!(!health.is_failing(&way(1, Lane::Bulk)));
    }

    #[test]
    fn one_credentials_failures_are_nobody_elses() {
        let health = Health::new(Clock::system());
        let (origin, anybody, lane) = way(1, Lane::Bulk);
        let hostile = (origin.clone(), Partition::Private([1; 16]), lane);
        let other = (origin.clone(), Partition::Private([2; 16]), lane);
        health.note_failure(hostile.clone(), None, Some(Duration::from_hours(24)));
        assert!(health.is_failing(&hostile) && !health.is_failing(&other));
        assert!(!health.is_failing(&(origin.clone(), anybody, lane)));
        assert!(!health.is_down(&(origin.clone(), anybody, lane), None));
        // Another credential's success does not end it either.
        health.note_success(&(origin, anybody, lane), None, None);
        assert!(health.is_failing(&hostile));
    }

    #[test]
    fn failures_in_a_row_count_longer() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        health.note_failure(way(1, Lane::Bulk), None, None);
        clock.advance(Duration::from_secs(11));
        assert!(!health.is_failing(&way(1, Lane::Bulk)));
        health.note_failure(way(1, Lane::Bulk), None, None);
        clock.advance(Duration::from_secs(11));
        assert!(health.is_failing(&way(1, Lane::Bulk)));
    }

    #[test]
    fn the_memory_is_bounded_and_what_fails_outlives_what_is_well() {
        let health = Health::new(Clock::system());
        let one = way(MOST + 50, Lane::Bulk);
        health.note_failure(one.clone(), Some(TARGET), None);
        for number in 0..MOST + 50 {
            let took = Some(Duration::from_secs(1));
            health.note_success(&way(number, Lane::Bulk), Some(TARGET), took);
        }
        assert_eq!(health.lock().ways.len(), MOST);
        assert!(health.is_failing(&one), "those that are well went first");
        for number in 0..MOST + 50 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            health.note_failure(way(number, Lane::Bulk), Some(Key(key)), None);
        }
        assert_eq!(health.lock().ways.len(), MOST);
        assert!(health.lock().targets.len() <= MOST);
        assert!(health.is_failing(&way(MOST + 49, Lane::Bulk)));
    }

    /// Fault 1: a memory with a time limit made one client after the other pay the full wait.
    #[test]
    fn an_origin_is_down_until_it_answers_however_long_that_takes() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        let one = way(1, Lane::Metadata);
        let began = clock.now();
        health.note_failure(one.clone(), Some(TARGET), None);
        clock.advance(Duration::from_hours(24));
        health.note_failure(one.clone(), None, None);
        assert!(health.is_down(&one, None));
        assert!(health.failing_since(&one).unwrap().since(began) < Duration::from_hours(1));
        assert_eq!(health.down(), 1);
        assert!(!health.is_down(&way(1, Lane::Bulk), None), "lanes are apart");
        // Another target's answer ends it for the origin, but not for this target.
        health.note_success(&one, Some(Key([2; 32])), None);
        assert!(!health.is_down(&one, None) && health.is_down(&one, Some(TARGET)));
        health.note_success(&one, Some(TARGET), None);
        assert!(!health.is_down(&one, Some(TARGET)));
        assert_eq!(health.down(), 0);
    }

    #[test]
    fn what_an_origin_usually_takes_follows_its_answers_and_no_outlier() {
        let health = Health::new(Clock::system());
        let one = way(1, Lane::Bulk);
        assert_eq!(health.usual(&one), None);
        for _ in 0..100 {
            health.note_success(&one, None, Some(Duration::from_secs(8)));
        }
        assert_eq!(health.usual(&one), Some(Duration::from_secs(8)));
        health.note_success(&one, None, Some(Duration::from_hours(1)));
        assert!(health.usual(&one).unwrap() < Duration::from_mins(1), "{:?}", health.usual(&one));
        for _ in 0..100 {
            health.note_success(&one, None, Some(Duration::from_secs(1)));
        }
        assert!(health.usual(&one).unwrap() < Duration::from_secs(2));
        assert_eq!(health.usual(&way(1, Lane::Metadata)), None, "lanes are apart");
    }

    #[tokio::test]
    async fn one_question_at_a_time_is_asked_of_what_is_down_and_each_has_its_turn() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        let one = way(1, Lane::Metadata);
        let ask = |target: u8| health.question(one.clone(), Key([target; 32]));
        let over = |question: &Question| question.turns.iter().any(|turn| turn.over.is_cancelled());
        // The control: while the origin is healthy, every request is allowed.
        let (first, second) = (ask(1).unwrap(), ask(2).unwrap());
        assert!(!first.is_probe && !second.is_probe);
        health.note_failure(one.clone(), Some(Key([1; 32])), None);
        assert!(ask(1).is_none() && ask(3).is_none(), "those under way are the probe");
        drop(first);
        assert!(ask(3).is_none());
        clock.advance(Duration::from_secs(21));
        let third = ask(3).unwrap();
        assert!(third.is_probe && over(&second) && !over(&third));
        second.superseded().await;
        // Turns double, up to a minute; a turn ends with its request.
        health.note_failure(one.clone(), None, None);
        clock.advance(Duration::from_secs(21));
        assert!(ask(1).is_none());
        drop(third);
        let fourth = ask(1).unwrap();
        // An answer ends it for all, and running requests are no longer given up.
        health.note_success(&one, Some(Key([1; 32])), None);
        clock.advance(Duration::from_hours(1));
        let fifth = ask(1).unwrap();
        assert!(!over(&fourth) && !fifth.is_probe);
        assert!(ask(2).is_some_and(|also| !also.is_probe && !over(&fifth)));
    }

    #[test]
    fn a_question_that_was_waited_for_in_vain_stands_for_its_target_alone() {
        let health = Health::new(Clock::system());
        let one = way(1, Lane::Metadata);
        let ask = |target: u8| health.question(one.clone(), Key([target; 32]));
        let _silent = ask(1).unwrap();
        health.note_silence(one.clone(), Key([1; 32]));
        assert!(health.is_down(&one, None) && ask(1).is_none());
        let other = ask(2).unwrap();
        assert!(other.is_probe && ask(3).is_none(), "the control: one at a time");
    }

    #[test]
    fn a_clock_that_is_set_back_ends_a_turn() {
        let clock = Clock::system();
        let health = Health::new(clock.clone());
        let one = way(1, Lane::Metadata);
        health.note_failure(one.clone(), None, None);
        let _first = health.question(one.clone(), TARGET).unwrap();
        assert!(health.question(one.clone(), TARGET).is_none());
        clock.set_back(Duration::from_hours(1));
        assert!(health.question(one, TARGET).is_some());
    }
}
