//! Bytes of a body that the store does not take: they wait in memory for those who read.
//!
//! A body may be larger than one may be, or the store full. Then at most [`WINDOW`] bytes wait, and the writer with them, so that
//! the slowest reader sets the pace. A client that reads nothing must not hold up the others, and many of them no longer than
//! one:
//!
//! - A reader that takes nothing for [`BRIEF`] while others wait is cut, and with it every other one that took as little.
//! - One that takes something now and then is borne with, until all such readers of the flight together have held up others for
//!   [`PATIENCE`].
//! - One for which nobody waits holds up only its own download, and has [`PATIENCE`] from each piece to the next.
//! - What is held back until it is judged, and finds no room, can never be given: who waits for it is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::time::Instant;

use super::{Broken, End, Flight, Shared};
use crate::outcome::cause::{Cause, Why};

/// The most bytes that wait in memory for readers.
pub(super) const WINDOW: u64 = 1 << 20;

/// How long a reader may take nothing while others wait. A lost packet costs a connection about a second.
const BRIEF: Duration = Duration::from_secs(2);

/// How long a reader may take nothing while nobody waits, and how long slow ones may hold up others in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// What takes the place of [`BRIEF`] when that is used up: long enough for a task to get its turn.
const TURN: Duration = Duration::from_millis(100);

/// What a reader takes at once while it is behind: a slow one is seen to move.
pub(super) const BIT: u64 = 16 << 10;

/// Where a reader stands.
#[derive(Debug)]
pub(super) struct Standing {
    /// Before this it reads nothing any more.
    at: u64,
    /// Since when there was something to take.
    since: Instant,
    /// It looked, and there was nothing that it may be given.
    waits: bool,
}

/// Why a reader is given nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    TooSlow,
    HeldBack,
}

impl Cut {
    /// For people, and for metrics.
    fn reason(self) -> Why {
        let cause = match self {
            Self::TooSlow => Cause::Stalled,
            Self::HeldBack => Cause::Busy,
        };
        Why::new(cause, self.why())
    }

    const fn why(self) -> &'static str {
        match self {
            Self::TooSlow => {
                "this client took nothing for a while, and others waited for the same body, for which the store has no room; \
                 ask again"
            }
            Self::HeldBack => {
                "it is held back until it is judged, and the store has no room for it until then; ask again later, or see \
                 store.max_body_share and store.max_size"
            }
        }
    }
}

/// The readers of a flight, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Readers {
    standing: HashMap<u64, Standing>,
    /// Those that were cut, until they have noticed.
    cut: HashMap<u64, Cut>,
    /// Why the last was cut.
    last: Option<Cut>,
    /// How long slow readers have held up others.
    held_up: Duration,
}

impl Readers {
    /// A reader that has taken nothing, or one that stands at `at` from now on.
    pub(super) fn stand(&mut self, id: u64, at: u64) {
        self.stand_since(id, at, Instant::now());
    }

    fn stand_since(&mut self, id: u64, at: u64, since: Instant) {
        if !self.cut.contains_key(&id) {
            self.standing.insert(id, Standing { at, since, waits: false });
        }
    }

    /// It looked for what comes from `at` on, and may be given nothing now. Says whether that is news.
    pub(super) fn wait(&mut self, id: u64, at: u64) -> bool {
        let Some(standing) = self.standing.get_mut(&id) else {
            return false;
        };
        // Who stands behind the end stays there.
        standing.at = standing.at.max(at);
        !std::mem::replace(&mut standing.waits, true)
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.standing.remove(&id);
        self.cut.remove(&id);
    }

    pub(super) fn len(&self) -> usize {
        self.standing.len()
    }

    /// Why nothing more is given to it.
    pub(super) fn why_cut(&self, id: u64) -> Option<Why> {
        self.cut.get(&id).map(|cut| cut.reason())
    }

    /// How the flight ends for it, if it was cut before it was told what is to come.
    pub(super) fn end_of_cut(&self, id: u64) -> Option<End> {
        self.cut.get(&id).map(|cut| match cut {
            // It was busy with something else, and asks by itself.
            Cut::TooSlow => End::Pass,
            Cut::HeldBack => End::Failed(StatusCode::BAD_GATEWAY, cut.reason()),
        })
    }

    fn slowest(&self) -> Option<u64> {
        self.standing.values().map(|standing| standing.at).min()
    }

    /// Bytes have come: who waited has something to take. `anew`: so has everybody, as far as this module is concerned.
    fn wake(&mut self, anew: bool, now: Instant) {
        for standing in self.standing.values_mut().filter(|standing| anew || standing.waits) {
            (standing.since, standing.waits) = (now, false);
        }
    }

    /// Cuts those that may hold up the writer no longer; otherwise, how long it waits for the readers before `first`, and
    /// whether others wait, too.
    fn cut_or_wait(&mut self, first: u64, have: u64, now: Instant) -> Option<Wait> {
        let others = self.standing.values().any(|one| one.at >= first && one.waits);
        let limit = match (others, self.held_up >= PATIENCE) {
            (true, false) => BRIEF,
            (true, true) => TURN,
            (false, _) => PATIENCE,
        };
        let left = |one: &Standing| limit.saturating_sub(now.saturating_duration_since(one.since));
        let behind = || self.standing.values().filter(|one| one.at < first);
        if behind().any(|one| one.waits) {
            self.cut(Cut::HeldBack, |one| one.at < first && one.waits);
            return None;
        }
        let wait = behind().map(left).min().unwrap_or_default();
        if wait.is_zero() {
            self.cut(Cut::TooSlow, |one| one.at < have && !one.waits && left(one).is_zero());
            return None;
        }
        Some(Wait { limit: wait, others })
    }

    fn cut(&mut self, why: Cut, is_meant: impl Fn(&Standing) -> bool) {
        let cut = &mut self.cut;
        self.standing.retain(|id, standing| {
            let stays = !is_meant(standing);
            if !stays {
                cut.insert(*id, why);
            }
            stays
        });
        self.last = Some(why);
    }
}

/// The writer waits for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    limit: Duration,
    /// Others wait, too.
    others: bool,
}

impl Flight {
    /// Puts bytes into the window, and waits for room first. `Err`: nobody reads any more, or nobody can.
    pub async fn push(&self, bytes: Bytes) -> Result<(), Broken> {
        loop {
            let passed = self.lock().passed_file();
            if let Some(file) = passed {
                // Nobody needs it any more, and to remove a large file takes a while.
                let _removed = tokio::task::spawn_blocking(move || drop(file)).await;
            }
            let Some(Wait { limit, others }) = self.wait_for_room()? else {
                break;
            };
            let began = Instant::now();
            // One that moves between the look and this leaves a permit.
            let _in_time = tokio::time::timeout(limit, self.moved.notified()).await;
            if others {
                self.lock().readers.held_up += began.elapsed();
            }
        }
        self.update(|shared| {
            if shared.window.is_empty() {
                shared.window_start = shared.have;
            }
            let anew = shared.have == shared.filed;
            shared.have += bytes.len() as u64;
            shared.window.push_back(bytes);
            shared.readers.wake(anew, Instant::now());
            // Where all who stay only wait for the end.
            shared.trim();
        });
        Ok(())
    }

    /// `None` if there is room.
    fn wait_for_room(&self) -> Result<Option<Wait>, Broken> {
        let mut shared = self.lock();
        loop {
            if shared.readers.len() == 0 {
                let held_back = shared.readers.last.filter(|cut| *cut == Cut::HeldBack);
                let nobody =
                    || Why::new(Cause::Abandoned, "nobody reads, and the store has no room");
                return Err(Broken { reason: held_back.map_or_else(nobody, Cut::reason) });
            }
            let Some(first) = shared.full_from() else {
                return Ok(None);
            };
            let have = shared.have;
            if let Some(wait) = shared.readers.cut_or_wait(first, have, Instant::now()) {
                return Ok(Some(wait));
            }
            shared.trim();
            self.wake();
        }
    }
}

impl Shared {
    /// Whether a new reader, who starts anywhere, can still be served.
    pub(super) fn is_joinable(&self) -> bool {
        self.have == self.filed
    }

    /// If the window is full, where its first piece ends: who stands before that is behind.
    pub(super) fn full_from(&self) -> Option<u64> {
        let first = self.window.front()?.len() as u64;
        (self.have.saturating_sub(self.window_start) >= WINDOW).then_some(self.window_start + first)
    }

    /// Drops what every reader has passed.
    pub(super) fn trim(&mut self) {
        let slowest = self.readers.slowest().unwrap_or(self.have);
        while let Some(first) = self.window.front() {
            let end = self.window_start + first.len() as u64;
            if end > slowest {
                break;
            }
            self.window_start = end;
            self.window.pop_front();
        }
    }

    /// The file, if every reader has passed what is in it and nobody can join: its room comes back with it. Parts in it are still to
    /// be passed.
    fn passed_file(&mut self) -> Option<Arc<std::fs::File>> {
        let passed = self.readers.slowest().is_none_or(|slowest| slowest >= self.filed);
        if self.is_joinable() || !passed || self.parts.lie_there() {
            None
        } else {
            self.file.take()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full window: its first piece ends at 10, and 100 bytes have come.
    const FIRST: u64 = 10;
    const HAVE: u64 = 100;

    /// Readers at these places, since `now`; the one numbered 100 has taken all, and waits.
    fn readers(at: &[u64], now: Instant) -> Readers {
        let mut readers = Readers::default();
        for (id, at) in (0..).zip(at) {
            readers.stand_since(id, *at, now);
        }
        readers.stand_since(100, HAVE, now);
        assert!(readers.wait(100, HAVE));
        readers
    }

    fn wait(limit: Duration, others: bool) -> Wait {
        Wait { limit, others }
    }

    /// Issue 10 row 10: silent readers, at one place or at several, cost one short wait in all.
    #[test]
    fn silent_readers_hold_up_others_for_one_short_wait_in_all() {
        let now = Instant::now();
        let mut readers = readers(&[0, 0, 3, 20, 70], now);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now), Some(wait(BRIEF, true)));
        // The third goes on, the others stay where they are.
        readers.stand_since(2, 5, now + BRIEF / 2);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now + BRIEF), None);
        assert_eq!(readers.len(), 2, "who stopped further on is cut with them");
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now + BRIEF), Some(wait(BRIEF / 2, true)));
        assert!(readers.why_cut(0).unwrap().text.contains("ask again"));
        assert_eq!(readers.why_cut(2), None);
        // Who was cut does not come back.
        readers.stand_since(0, HAVE, now);
        assert_eq!(readers.len(), 2);
    }

    #[test]
    fn one_that_had_nothing_to_take_was_not_slow() {
        let now = Instant::now();
        let mut readers = readers(&[0, HAVE], now);
        readers.wait(1, HAVE);
        let later = now + 10 * BRIEF;
        readers.wake(false, later);
        readers.wait(100, HAVE + 10);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE + 10, later), None);
        assert_eq!((readers.why_cut(0).is_some(), readers.why_cut(1)), (true, None));
    }

    #[test]
    fn slow_ones_that_move_are_borne_with_until_they_held_up_others_for_long() {
        let now = Instant::now();
        let mut readers = readers(&[0], now);
        let later = now + BRIEF / 2;
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, later), Some(wait(BRIEF / 2, true)));
        readers.held_up = PATIENCE;
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now), Some(wait(TURN, true)));
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, later), None);
        assert_eq!(readers.len(), 1);
    }

    #[test]
    fn one_for_which_nobody_waits_may_pause() {
        let now = Instant::now();
        let mut readers = readers(&[0, 50], now);
        readers.leave(100);
        let later = now + 10 * BRIEF;
        assert_eq!(
            readers.cut_or_wait(FIRST, HAVE, later),
            Some(wait(PATIENCE.saturating_sub(10 * BRIEF), false))
        );
        // The control: the other one has read on, and waits.
        readers.wait(1, HAVE);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, later), None);
        assert_eq!(readers.len(), 1);
    }

    #[test]
    fn who_only_waits_for_the_end_waits_too_and_holds_up_nobody() {
        let now = Instant::now();
        let mut readers = readers(&[0, u64::MAX], now);
        readers.leave(100);
        assert_eq!(readers.slowest(), Some(0));
        readers.wait(1, 0);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now), Some(wait(BRIEF, true)));
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now + BRIEF), None);
        assert_eq!((readers.len(), readers.slowest()), (1, Some(u64::MAX)));
    }
}
