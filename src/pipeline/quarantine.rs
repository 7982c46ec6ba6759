//! Quarantine: a target whose body was just refused.
//!
//! wget, apt and many others resume by themselves after a cut, and end with exit code 0 and a complete file if the
//! rest is given to them. So for a minute no byte of the target leaves larder, on any connection, and the origin is left alone.
//! Afterwards, and for every other client, the target is suspect: nothing of it is given before all of it is verified, also
//! after a restart (`flight/share.rs`).
//!
//! A quarantine holds for those by whose promises the body was refused: a private index says nothing to other credentials. What a
//! pass brought was an answer to its client's own words, which might be chosen to be refused: that quarantine is for its
//! client alone (promise P4).

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::Time;
use crate::store::clipped;
use crate::target::{Key, Partition, Target};

/// How long no byte of a refused target leaves.
const QUARANTINE: Duration = Duration::from_mins(1);

/// How many quarantines are remembered. A target that is forgotten early is suspect all the same.
const MOST: u64 = 65_536;

/// The longest reason in bytes: it names a URL and what was promised, which others chose.
const MAX_REASON: usize = 1024;

/// For whom a target is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whom {
    /// Whoever shows one credential, or none.
    Principal(Partition),
    /// One client, by its address.
    Client(IpAddr),
}

/// The targets whose body was just refused.
#[derive(Debug)]
pub(super) struct Quarantines {
    /// Until when, and why.
    targets: Cache<(Key, Whom), (Time, String)>,
    /// When the last of them ends, in milliseconds: every request asks, and hardly ever is there one.
    last: AtomicI64,
}

impl Default for Quarantines {
    fn default() -> Self {
        // Also by a clock that nobody sets back.
        let targets = Cache::builder().max_capacity(MOST).time_to_live(QUARANTINE).build();
        Self { targets, last: AtomicI64::new(i64::MIN) }
    }
}

impl Quarantines {
    /// A body of `target` was refused.
    pub(super) fn begin(&self, target: &Target, whom: Whom, reason: &str, now: Time) {
        let until = now.plus(QUARANTINE);
        self.targets.insert((target.file_key(), whom), (until, clipped(reason, MAX_REASON)));
        self.last.fetch_max(until.as_millis(), Ordering::Release);
    }

    /// Why nothing of `target` may leave now, if so.
    pub(super) fn reason(&self, target: &Target, whom: Whom, now: Time) -> Option<String> {
        if self.last.load(Ordering::Acquire) <= now.as_millis() {
            return None;
        }
        let (until, reason) = self.targets.get(&(target.file_key(), whom))?;
        let seconds = (now < until).then(|| until.since(now).as_secs() + 1)?;
        Some(format!("{reason}; asked again in {seconds} s at the earliest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);
    const ANYBODY: Whom = Whom::Principal(Partition::Public);

    fn target() -> Target {
        Target::from_url("https://example.org/a.whl").unwrap()
    }

    #[test]
    fn it_lasts_a_minute_whatever_the_variant_and_the_spelling() {
        let quarantines = Quarantines::default();
        assert_eq!(quarantines.reason(&target(), ANYBODY, NOW), None);
        quarantines.begin(&target(), ANYBODY, "bad", NOW);
        let spelt = Target::from_url("https://example.org/%61%2Ewhl").unwrap();
        for same in [target().with_variant("x"), spelt] {
            assert!(quarantines.reason(&same, ANYBODY, NOW).is_some());
        }
        assert_eq!(quarantines.reason(&target(), ANYBODY, NOW.plus(QUARANTINE)), None);
    }

    #[test]
    fn a_reason_takes_no_more_memory_than_others() {
        let quarantines = Quarantines::default();
        quarantines.begin(&target(), ANYBODY, &"é".repeat(64 << 10), NOW);
        let kept = quarantines.targets.iter().map(|(_, (_, reason))| reason.len());
        assert_eq!(kept.collect::<Vec<_>>(), [MAX_REASON]);
        assert!(quarantines.reason(&target(), ANYBODY, NOW).unwrap().starts_with('é'));
    }

    #[test]
    fn it_is_for_nobody_else() {
        let quarantines = Quarantines::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let private = Whom::Principal(Partition::Private([1; 16]));
        for whom in [Whom::Client(one), private] {
            quarantines.begin(&target(), whom, "bad", NOW);
            assert!(quarantines.reason(&target(), whom, NOW).is_some());
        }
        for whom in [Whom::Client(other), ANYBODY] {
            assert_eq!(quarantines.reason(&target(), whom, NOW), None);
        }
    }
}
