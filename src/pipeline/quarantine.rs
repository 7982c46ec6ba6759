//! Quarantine: a target whose body was just refused.
//!
//! wget, apt and many other clients resume by themselves after a broken transfer. If they were then given the rest, they would
//! end with exit code 0 and a complete but wrong file. So for a minute no byte of the target is sent, on any connection, and the
//! origin is not asked. Afterwards, and for every other client, the target is suspect: nothing of it is given before the whole
//! body was verified, also after a restart (`flight/share.rs`).
//!
//! A quarantine applies to the principal whose promises refused the body: the claims of a private index do not affect other
//! credentials. A body that a pass brought was an answer to the client's own request, which the client may have written so that
//! the body is refused. That quarantine therefore applies to this client only (promise P4).

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::Time;
use crate::store::clipped;
use crate::target::{Key, Partition, Target};

/// How long no byte of a refused target is sent.
const QUARANTINE: Duration = Duration::from_mins(1);

/// How many quarantines are remembered. A target that is evicted early is still suspect.
const MOST: u64 = 65_536;

/// The longest reason in bytes. It contains a URL and digests that origins and indexes chose.
const MAX_REASON: usize = 1024;

/// To whom a quarantine applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum QuarantineScope {
    /// All clients with one credential, or all without one.
    Principal(Partition),
    /// One client, by its address.
    Client(IpAddr),
}

/// The targets in quarantine.
#[derive(Debug)]
pub(super) struct Quarantines {
    /// Until when, and why.
    targets: Cache<(Key, QuarantineScope), (Time, String)>,
    /// When the last of them ends, in milliseconds. Every request asks, and there is hardly ever a quarantine.
    last: AtomicI64,
}

impl Default for Quarantines {
    fn default() -> Self {
        // moka's clock is monotonic: entries expire also if the system clock is set back.
        let targets = Cache::builder().max_capacity(MOST).time_to_live(QUARANTINE).build();
        Self { targets, last: AtomicI64::new(i64::MIN) }
    }
}

impl Quarantines {
    /// Puts `target` into quarantine because a body of it was refused.
    pub(super) fn begin(&self, target: &Target, whom: QuarantineScope, reason: &str, now: Time) {
        let until = now.plus(QUARANTINE);
        self.targets.insert((target.file_key(), whom), (until, clipped(reason, MAX_REASON)));
        self.last.fetch_max(until.as_millis(), Ordering::Release);
    }

    /// Why nothing of `target` may be sent now; `None` if it may.
    pub(super) fn reason(
        &self,
        target: &Target,
        whom: QuarantineScope,
        now: Time,
    ) -> Option<String> {
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
    const ANYBODY: QuarantineScope = QuarantineScope::Principal(Partition::Public);

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
        let private = QuarantineScope::Principal(Partition::Private([1; 16]));
        for whom in [QuarantineScope::Client(one), private] {
            quarantines.begin(&target(), whom, "bad", NOW);
            assert!(quarantines.reason(&target(), whom, NOW).is_some());
        }
        for whom in [QuarantineScope::Client(other), ANYBODY] {
            assert_eq!(quarantines.reason(&target(), whom, NOW), None);
        }
    }
}
