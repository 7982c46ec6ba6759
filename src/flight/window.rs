//! The window: bytes of a body for which the store has no room, kept in memory for readers.
//!
//! A body may exceed the limit for one body, or the store may be full. Then at most [`WINDOW`] bytes wait, and the writer waits
//! with them, so that the slowest reader sets the pace. A client that reads nothing must not delay the others, and many such
//! clients no longer than one:
//!
//! - A reader that takes nothing for [`BRIEF`] while others wait is cut, and with it every other reader that took nothing for as
//!   long.
//! - A reader that takes something now and then is tolerated until all such readers of the flight together have delayed others
//!   for [`PATIENCE`].
//! - A reader for which no other waits delays only its own download, and has [`PATIENCE`] from each piece to the next.
//! - Bytes that are held back until the judgement, and have no room, can never be given: their readers get an error.
//! - If a body is held back whole, no byte of it needs to wait. It is only hashed, and its judgement says whether the next body
//!   of its target may be given as it arrives.

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

/// How long a reader may take nothing while others wait. A lost packet delays a connection for about a second.
const BRIEF: Duration = Duration::from_secs(2);

/// How long a reader may take nothing while no other waits, and how long slow readers may delay others in total.
const PATIENCE: Duration = Duration::from_secs(30);

/// Replaces [`BRIEF`] when the total is used up: long enough for a task to be scheduled.
const TURN: Duration = Duration::from_millis(100);

/// The most that a reader takes at once while it is behind, so that a slow reader makes visible progress.
pub(super) const BIT: u64 = 16 << 10;

/// What becomes of bytes for which the store has no room, once they are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// They wait for readers.
    Wait,
    /// They are dropped, and no byte of the body can be given.
    Dropped,
}

/// The state of a reader.
#[derive(Debug)]
pub(super) struct ReaderState {
    /// The reader will read nothing before this offset.
    at: u64,
    /// Since when there were bytes to take.
    since: Instant,
    /// The reader looked, and no byte may be given to it now.
    waits: bool,
}

/// Why a reader is given nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    TooSlow,
    HeldBack,
}

impl Cut {
    /// The reason, for the client, the log and the metrics.
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
    standing: HashMap<u64, ReaderState>,
    /// The readers that were cut and have not noticed yet.
    cut: HashMap<u64, Cut>,
    /// Why the last reader was cut.
    last: Option<Cut>,
    /// How long slow readers have delayed others in total.
    held_up: Duration,
}

impl Readers {
    /// Adds a reader, or notes that it has taken bytes; its position is now `at`.
    pub(super) fn stand(&mut self, id: u64, at: u64) {
        self.stand_since(id, at, Instant::now());
    }

    fn stand_since(&mut self, id: u64, at: u64, since: Instant) {
        if !self.cut.contains_key(&id) {
            self.standing.insert(id, ReaderState { at, since, waits: false });
        }
    }

    /// Notes that the reader looked for bytes from `at` on and may be given none now. Returns whether it did not wait before.
    pub(super) fn wait(&mut self, id: u64, at: u64) -> bool {
        let Some(standing) = self.standing.get_mut(&id) else {
            return false;
        };
        // A reader positioned after the end stays there.
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

    /// Why the reader was cut; `None` if it was not.
    pub(super) fn why_cut(&self, id: u64) -> Option<Why> {
        self.cut.get(&id).map(|cut| cut.reason())
    }

    /// How the flight ends for this reader, if it was cut before it was given the head.
    pub(super) fn end_of_cut(&self, id: u64) -> Option<End> {
        self.cut.get(&id).map(|cut| match cut {
            // It was busy elsewhere; its client's own request is passed.
            Cut::TooSlow => End::Pass,
            Cut::HeldBack => End::Failed(StatusCode::BAD_GATEWAY, cut.reason()),
        })
    }

    fn slowest(&self) -> Option<u64> {
        self.standing.values().map(|standing| standing.at).min()
    }

    /// Bytes have arrived, so readers that waited have something to take. `anew`: the window begins, so the time of every reader
    /// starts now.
    fn wake(&mut self, anew: bool, now: Instant) {
        for standing in self.standing.values_mut().filter(|standing| anew || standing.waits) {
            (standing.since, standing.waits) = (now, false);
        }
    }

    /// Cuts the readers that may not delay the writer any longer. Otherwise returns how long the writer waits for the readers
    /// before `first`, and whether other readers wait too.
    fn cut_or_wait(&mut self, first: u64, have: u64, now: Instant) -> Option<Wait> {
        let others = self.standing.values().any(|one| one.at >= first && one.waits);
        let limit = match (others, self.held_up >= PATIENCE) {
            (true, false) => BRIEF,
            (true, true) => TURN,
            (false, _) => PATIENCE,
        };
        let left =
            |one: &ReaderState| limit.saturating_sub(now.saturating_duration_since(one.since));
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

    fn cut(&mut self, why: Cut, is_meant: impl Fn(&ReaderState) -> bool) {
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

/// How the writer waits for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    limit: Duration,
    /// Whether other readers wait too.
    others: bool,
}

/// Why a body that was judged without being kept is not given.
pub(super) const NOT_KEPT: &str = Cut::HeldBack.why();

impl Flight {
    /// Puts bytes into the window, after waiting for room. `Err`: no reader is left, or none may be given the bytes.
    pub async fn push(&self, bytes: Bytes) -> Result<(), Broken> {
        if self.drops_bytes() {
            return Ok(());
        }
        loop {
            let passed = self.lock().passed_file();
            if let Some(file) = passed {
                // No reader needs the file any more. Removing a large file takes a while.
                let _removed = tokio::task::spawn_blocking(move || drop(file)).await;
            }
            let Some(Wait { limit, others }) = self.wait_for_room()? else {
                break;
            };
            let began = Instant::now();
            // If a reader moves before this line, the notification is stored, so that it is not missed.
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
            // Needed if all remaining readers only wait for the end.
            shared.trim();
        });
        Ok(())
    }

    /// Whether the bytes of the body are dropped once they are hashed: nothing of it may be given before its judgement, and there
    /// is no room to keep it until then.
    fn drops_bytes(&self) -> bool {
        let held_whole = self.is_held_whole();
        let mut shared = self.lock();
        let unknown = shared.alike.is_none() && shared.nothing_given();
        if held_whole && unknown && shared.unkept == Unkept::Wait {
            shared.unkept = Unkept::Dropped;
            // No reader was given a byte. Later ones wait for the same judgement.
            (shared.have, shared.filed) = (0, 0);
            shared.window.clear();
            if !shared.parts.lie_there() {
                shared.file = None;
            }
        }
        shared.unkept == Unkept::Dropped
    }

    /// Whether the body is complete in no place, because it was held back whole and there was no room for it. It was only hashed.
    pub fn is_only_judged(&self) -> bool {
        self.lock().unkept == Unkept::Dropped
    }

    /// How to wait; `None` if there is room.
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
    /// Whether a new reader can still be served from the first byte.
    pub(super) fn is_joinable(&self) -> bool {
        self.have == self.filed
    }

    /// If the window is full, the end of its first piece: a reader before that offset is behind.
    pub(super) fn full_from(&self) -> Option<u64> {
        let first = self.window.front()?.len() as u64;
        (self.have.saturating_sub(self.window_start) >= WINDOW).then_some(self.window_start + first)
    }

    /// Drops the bytes that every reader has passed.
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

    /// Takes the file, if every reader has passed its bytes and no reader can join; this frees its room. A file with parts is
    /// kept, because the fill has still to pass them.
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

    /// Readers at these offsets, since `now`. Reader 100 has taken all bytes, and waits.
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

    /// Silent readers, at one offset or at several, cost one short wait in all (issue 10, row 10).
    #[test]
    fn silent_readers_hold_up_others_for_one_short_wait_in_all() {
        let now = Instant::now();
        let mut readers = readers(&[0, 0, 3, 20, 70], now);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now), Some(wait(BRIEF, true)));
        // The third reader continues, the others stay where they are.
        readers.stand_since(2, 5, now + BRIEF / 2);
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now + BRIEF), None);
        assert_eq!(readers.len(), 2, "who stopped further on is cut with them");
        assert_eq!(readers.cut_or_wait(FIRST, HAVE, now + BRIEF), Some(wait(BRIEF / 2, true)));
        assert!(readers.why_cut(0).unwrap().text.contains("ask again"));
        assert_eq!(readers.why_cut(2), None);
        // A reader that was cut cannot come back.
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
        // The control: the other reader has read on, and waits.
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
