//! Alarms for claims of an index about a file over which it has no authority.
//!
//! Such a claim changes nothing else (`verify`), but the operator should hear of it, because the index may be right. Anybody can
//! publish any number of indexes, so these alarms are limited: for each file one a day from each site, and a fixed number a day
//! from each site and about each file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use super::Pipeline;
use crate::digest::key_hash;
use crate::outcome::metrics::Alarm;
use crate::target::Target;
use crate::verify::Mismatch;

/// The most alarms about one file in a day.
const MOST_OF_FILE: u32 = 4;

/// The most alarms in a day that indexes of one site cause: as many files as an operator would look into.
const MOST_OF_SITE: u32 = 64;

/// The alarms of the last day.
#[derive(Debug)]
pub(super) struct ForeignClaimAlarms {
    said: Cache<[u8; 32], ()>,
    counts: Cache<[u8; 32], Arc<AtomicU32>>,
}

impl Default for ForeignClaimAlarms {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self {
            said: Cache::builder().max_capacity(10_000).time_to_live(day).build(),
            counts: Cache::builder().max_capacity(10_000).time_to_live(day).build(),
        }
    }
}

impl ForeignClaimAlarms {
    /// Whether the claim of an index at `by` about `of` is worth an alarm.
    fn is_news(&self, by: &Target, of: &Target) -> bool {
        let (site, file) = (by.origin().site(), of.match_key());
        if !self.said.entry(key_hash([site.as_bytes(), &file.0])).or_insert(()).is_fresh() {
            return false;
        }
        let within = |key: [u8; 32], most| {
            let count = self.counts.entry(key).or_default().into_value();
            count.fetch_add(1, Ordering::Relaxed) < most
        };
        within(key_hash([&file.0]), MOST_OF_FILE)
            && within(key_hash([site.as_bytes(), b""]), MOST_OF_SITE)
    }
}

impl Pipeline {
    /// Raises an alarm because an index whose claim does not decide promises other bytes for `of`.
    pub(super) fn disagrees(&self, of: &Target, mismatch: &Mismatch) {
        let by = mismatch.elsewhere.as_deref();
        if by.is_some_and(|by| !self.heard.is_news(by, of)) {
            return;
        }
        tracing::warn!(url = %of, %mismatch, "an index promises other bytes, but its claim does not decide");
        let text = format!("kept all the same: {mismatch}");
        self.metrics.alarm(Alarm::Mismatch, of.to_string(), text.clone(), false);
        self.store.note_alarm(of, by.unwrap_or(of).origin(), &text, self.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::from_url(url).unwrap()
    }

    #[test]
    fn strangers_say_little_however_many_and_however_much() {
        let heard = ForeignClaimAlarms::default();
        let (evil, file) = (target("https://evil.example/i/"), target("https://example.org/a"));
        assert!(heard.is_news(&evil, &file));
        assert!(!heard.is_news(&evil, &file), "said already");
        assert!(!heard.is_news(&target("https://a.evil.example/j/"), &file), "the same site");
        let other = |number: u32| target(&format!("https://evil{number}.example.net/"));
        let of_file = (0..50).filter(|number| {
            heard.is_news(&target(&format!("https://evil{number}.example/")), &file)
                || heard.is_news(&other(*number), &file)
        });
        assert!(of_file.count() < 50);
        let many = (0..1000).filter(|number| {
            heard.is_news(&evil, &target(&format!("https://example.org/{number}")))
        });
        assert!(many.count() <= 64);
        // The control: another site's claim about another file raises an alarm.
        assert!(heard.is_news(&target("https://example.com/"), &target("https://example.org/b")));
    }
}
