//! The only module that reads the clock, so that tests can move it.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the one module that may read the system's clock"
)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(i64);

impl Time {
    /// The moment `millis` milliseconds after 1970-01-01 UTC.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment minus `span`.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This moment plus `span`.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
            Err(before) => Self(-i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        let span = Duration::from_millis(time.0.unsigned_abs());
        if time.0 < 0 { UNIX_EPOCH - span } else { UNIX_EPOCH + span }
    }
}

/// As an HTTP date (RFC 9110 §5.6.7).
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        httpdate::HttpDate::from(SystemTime::from(Self(self.0.max(0)))).fmt(f)
    }
}

/// The system's clock plus an offset that tests move. Clones share the offset.
///
/// It does not provide waiting (timeouts, idle limits): `tokio::time` does.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_millis: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that shows the system's time.
    pub fn system() -> Self {
        Self::default()
    }

    /// The present moment.
    pub fn now(&self) -> Time {
        let Time(millis) = SystemTime::now().into();
        Time(millis.saturating_add(self.offset_millis.load(Ordering::Relaxed)))
    }

    /// Moves this clock and its clones forward.
    pub fn advance(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.offset_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock {
    /// Sets this clock and its clones back, as an administrator or NTP may do.
    pub fn set_back(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.offset_millis.fetch_sub(millis, Ordering::Relaxed);
    }
}

/// A stopwatch for log lines, and for how long a command waits; no decision about stored bytes depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts one.
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Microseconds of the system's monotonic clock (`CLOCK_MONOTONIC`), for the service manager, which compares them with
/// its own reading.
pub fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64, scale: u64| u64::try_from(value).unwrap_or(0).saturating_mul(scale);
    part(now.tv_sec, 1_000_000).saturating_add(part(now.tv_nsec, 1) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_move_together() {
        let clock = Clock::system();
        let other = clock.clone();
        let before = other.now();
        clock.advance(Duration::from_hours(1));
        assert!(other.now().since(before) >= Duration::from_hours(1));
    }

    #[test]
    fn times_before_1970_survive() {
        let time = Time::from_millis(-5_000);
        assert_eq!(Time::from(SystemTime::from(time)), time);
        assert_eq!(time.to_string(), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
