//! After a refused body: silence.
//!
//! wget, apt and many others resume by themselves after a cut, and end with exit code 0 and a complete file if the
//! rest is given to them. So for a minute no byte of the target leaves larder, on any connection. What a pass brought
//! was an answer to its client's own words, which might be chosen to be refused: that silence is for its client alone
//! (promise P4).
//!
//! And whoever was given bytes of a body that was not completed, refused or not, keeps to its gap for a day, besides whatever
//! gap the next body has: a gap elsewhere would complete what it has. That, too, is for that client alone. Otherwise one that
//! asks for the end of a file and leaves could make all others wait for the last byte before they are given the second one. A
//! client is an address: those behind one address wait for each other, and who comes back from another is a new one.

use std::net::IpAddr;
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::Time;
use crate::store::clipped;
use crate::target::{Key, Partition, Target};

/// How long no byte of a refused target leaves.
const SILENCE: Duration = Duration::from_mins(1);

/// How long a gap is remembered.
const GAP_HOLDS: Duration = Duration::from_hours(24);

/// How many targets, each with a client, are remembered. Who provokes more refusals than this within a day gains a second gap.
const MOST: u64 = 65_536;

/// The longest reason in bytes: it names a URL and what was promised, which others chose.
const MAX_REASON: usize = 1024;

/// Until when, and why.
type Silence = (Time, String);

/// The targets whose body was refused, or not completed.
#[derive(Debug)]
pub(super) struct Silences {
    /// With the client for whom it is, or none for everybody's.
    silent: Cache<(Key, Option<IpAddr>), Silence>,
    gaps: Cache<(Key, IpAddr), u64>,
}

impl Default for Silences {
    fn default() -> Self {
        Self {
            // Also by a clock that nobody sets back.
            silent: Cache::builder().max_capacity(MOST).time_to_live(SILENCE).build(),
            gaps: Cache::builder().max_capacity(MOST).time_to_live(GAP_HOLDS).build(),
        }
    }
}

impl Silences {
    /// A body of `target` was refused: no byte of it leaves, to `client` or to anybody.
    pub(super) fn begin(&self, target: &Target, client: Option<IpAddr>, reason: &str, now: Time) {
        self.silent.insert((key(target), client), silence(reason, now));
    }

    /// The same for whoever shows one credential: its own indexes may have refused the body, which say nothing to others.
    pub(super) fn begin_for(&self, target: &Target, reader: Partition, reason: &str, now: Time) {
        let key = target.clone().with_variant("").key(reader);
        self.silent.insert((key, None), silence(reason, now));
    }

    /// Why nothing of `target` may leave to `reader` now, if so.
    pub(super) fn reason_for(
        &self,
        target: &Target,
        reader: Partition,
        now: Time,
    ) -> Option<String> {
        let silence = self.silent.get(&(target.clone().with_variant("").key(reader), None))?;
        said(silence, now)
    }

    /// `client` was given bytes around a gap that begins at `gap`. Whether that is its first one of the target: that one
    /// counts, because it kept to it ever since.
    pub(super) fn remember(&self, target: &Target, client: IpAddr, gap: u64) -> bool {
        self.gaps.entry((key(target), client)).or_insert(gap).is_fresh()
    }

    /// The body around whose gap `client` was given bytes was the right one.
    pub(super) fn forget(&self, target: &Target, client: IpAddr) {
        self.gaps.invalidate(&(key(target), client));
    }

    /// Why nothing of `target` may leave to `client` now, if so.
    pub(super) fn reason(&self, target: &Target, client: IpAddr, now: Time) -> Option<String> {
        let key = key(target);
        [None, Some(client)]
            .into_iter()
            .filter_map(|client| self.silent.get(&(key, client)))
            .find_map(|silence| said(silence, now))
    }

    /// Where the gap lay when `client` was given bytes of a body of `target` that was not completed.
    pub(super) fn gap(&self, target: &Target, client: IpAddr) -> Option<u64> {
        self.gaps.get(&(key(target), client))
    }
}

fn silence(reason: &str, now: Time) -> Silence {
    (now.plus(SILENCE), clipped(reason, MAX_REASON))
}

fn said((until, reason): Silence, now: Time) -> Option<String> {
    let seconds = (now < until).then(|| until.since(now).as_secs() + 1)?;
    Some(format!("{reason}; asked again in {seconds} s at the earliest"))
}

/// Whatever the variant, it is one URL to a client that resumes.
fn key(target: &Target) -> Key {
    target.clone().with_variant("").key(Partition::Public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_silence_and_a_day_of_the_same_gap() {
        let silences = Silences::default();
        let target = Target::from_url("https://example.org/a.whl").unwrap();
        let (now, client) = (Time::from_millis(1_000_000), IpAddr::from([127, 0, 0, 1]));
        let reason = |target: &Target, now| silences.reason(target, client, now);
        assert_eq!(reason(&target, now), None);
        silences.begin(&target, None, "bad", now);
        assert!(silences.remember(&target, client, 7));
        assert!(reason(&target.clone().with_variant("x"), now).is_some());
        assert_eq!(reason(&target, now.plus(SILENCE)), None);
        assert!(!silences.remember(&target, client, 9));
        assert_eq!(silences.gap(&target, client), Some(7));
    }

    #[test]
    fn a_reason_takes_no_more_memory_than_others() {
        let silences = Silences::default();
        let target = Target::from_url("https://example.org/a.whl").unwrap();
        let (now, client) = (Time::from_millis(1_000_000), IpAddr::from([127, 0, 0, 1]));
        silences.begin(&target, None, &"é".repeat(64 << 10), now);
        silences.begin_for(&target, Partition::Private([1; 16]), &"é".repeat(64 << 10), now);
        let kept = silences.silent.iter().map(|(_, (_, reason))| reason.len());
        assert_eq!(kept.collect::<Vec<_>>(), [MAX_REASON, MAX_REASON]);
        assert!(silences.reason(&target, client, now).unwrap().starts_with('é'));
    }

    #[test]
    fn what_one_client_provoked_silences_nobody_else() {
        let silences = Silences::default();
        let target = Target::from_url("https://example.org/a.whl").unwrap();
        let now = Time::from_millis(1_000_000);
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        silences.begin(&target, Some(one), "bad", now);
        silences.remember(&target, one, 7);
        assert_eq!(silences.gap(&target, other), None);
        assert!(silences.reason(&target, one, now).is_some());
        assert_eq!(silences.reason(&target, other, now), None);
    }
}
