//! The last refusals, failures, alarms and passes, for `larder recent` and `larder why`.
//!
//! Memory is bounded: the number of events is limited, and their texts are clipped. Repeated events (a client that
//! retries, a job that sends the same request a hundred times) are stored as one event with a count, so that they do
//! not displace the others.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::clock::Time;
use crate::target::shown::clipped;

/// The most refusals, failures and alarms that are kept, and the most passes.
pub const REMEMBERED: usize = 200;

/// The longest URL and the longest reason, in characters.
const LONGEST: usize = 2048;

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its time; of a repeated event, the last.
    pub at: Time,
    /// `rejected`, `refused`, `failed`, `pass` or `alarm`.
    pub kind: String,
    /// The cause, as in metrics.
    pub cause: String,
    /// The method; empty for an alarm.
    pub method: String,
    /// The URL, secrets replaced.
    pub url: String,
    /// The status that the client got; 0 for an alarm.
    pub status: u16,
    /// The client's address; empty for an alarm, and in answers to clients other than the operator.
    pub client: String,
    /// The reason, for people.
    pub why: String,
    /// How often it happened.
    pub times: u64,
    /// Whether the request had no credential and the URL is public.
    pub public: bool,
}

impl Event {
    /// An alarm about `url`.
    pub fn alarm(at: Time, cause: &str, url: String, why: String, public: bool) -> Self {
        Self {
            at,
            kind: "alarm".to_owned(),
            cause: cause.to_owned(),
            method: String::new(),
            url,
            status: 0,
            client: String::new(),
            why,
            times: 1,
            public,
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.cause == other.cause
            && self.kind == other.kind
            && self.public == other.public
            && self.method == other.method
            && self.url == other.url
    }
}

/// The events of one larder.
#[derive(Debug, Default)]
pub struct Recent {
    failures: Mutex<VecDeque<Event>>,
    passes: Mutex<VecDeque<Event>>,
}

impl Recent {
    /// Records an event.
    pub fn note(&self, mut event: Event) {
        event.url = clipped(&event.url, LONGEST).into_owned();
        event.why = clipped(&event.why, LONGEST).into_owned();
        let is_pass = event.kind == "pass";
        let mut events = lock(if is_pass { &self.passes } else { &self.failures });
        if let Some(before) = events.iter().position(|before| before.is_like(&event))
            && let Some(before) = events.remove(before)
        {
            event.times = event.times.saturating_add(before.times);
        }
        while events.len() >= REMEMBERED {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Refusals, failures and alarms, the newest first.
    pub fn failures(&self) -> Vec<Event> {
        lock(&self.failures).iter().rev().cloned().collect()
    }

    /// The events about a URL, passes included, the newest first.
    pub fn of(&self, url: &str) -> Vec<Event> {
        let url = clipped(url, LONGEST);
        let mut found: Vec<Event> = [&self.failures, &self.passes]
            .into_iter()
            .flat_map(|events| {
                lock(events).iter().filter(|event| event.url == url).cloned().collect::<Vec<_>>()
            })
            .collect();
        found.sort_by_key(|event| std::cmp::Reverse(event.at));
        found
    }
}

fn lock(events: &Mutex<VecDeque<Event>>) -> MutexGuard<'_, VecDeque<Event>> {
    // The list stays usable even if a thread panicked while it held the lock.
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether requests with this outcome are recorded.
pub(crate) const fn is_told(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Pass(_) | Outcome::Rejected(_) | Outcome::Refused(_) | Outcome::Failed(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, url: &str, cause: &str) -> Event {
        let at = Time::from_millis(1);
        let event = Event::alarm(at, cause, url.to_owned(), "it\nfailed".to_owned(), true);
        Event { kind: kind.to_owned(), ..event }
    }

    #[test]
    fn what_happens_again_is_counted_and_pushes_nothing_out() {
        let recent = Recent::default();
        recent.note(event("failed", "https://example.org/first", "dns"));
        for _ in 0..1000 {
            recent.note(event("failed", "https://example.org/again", "dns"));
        }
        let times = |events: &[Event]| events.iter().map(|event| event.times).collect::<Vec<_>>();
        assert_eq!(times(&recent.failures()), [1000, 1]);
        recent.note(event("failed", "https://example.org/again", "timeout"));
        assert_eq!(times(&recent.failures()), [1, 1000, 1], "another cause is another event");
        for number in 0..1000 {
            recent.note(event("failed", &format!("https://example.org/{number}"), "dns"));
        }
        assert_eq!(recent.failures().len(), REMEMBERED);
        assert_eq!(recent.failures()[0].url, "https://example.org/999");
        assert_eq!(recent.failures()[0].why, "it\\nfailed", "a stranger's words stay on one line");
    }

    #[test]
    fn passes_are_told_of_one_url_and_push_no_failure_out() {
        let recent = Recent::default();
        recent.note(event("failed", "https://example.org/a", "dns"));
        for number in 0..1000 {
            recent.note(event("pass", &format!("https://example.org/{number}"), "header"));
        }
        recent.note(event("pass", "https://example.org/a", "header"));
        assert_eq!(recent.failures().len(), 1);
        let of = recent.of("https://example.org/a");
        assert_eq!(of.len(), 2);
        assert!(recent.of("https://example.org/none").is_empty());
    }
}
