//! The targets of which bytes were delivered and not verified since, as a table: what a row says, how many there may be, and how
//! each is encoded.
//!
//! ```text
//! a row = key 32 │ length 8 │ gap 8 │ state 1 │ since 8 │ CRC-32 of these 57 bytes 4          (numbers big-endian)
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use crate::clock::Time;
use crate::target::Key;

/// How long a row counts. By then clients have given up resuming.
pub(super) const UNVERIFIED_FOR: Duration = Duration::from_hours(24);

/// Maximum number of rows of promised files. When there are more, bodies of further targets are withheld completely until verified,
/// which is safe and slow. If one of these is refused, the same applies to all targets of its origin without a row.
pub(super) const MAX_ROWS: usize = 65_536;

/// Maximum number of rows of promised files of one origin, beyond which the same happens to this origin only. To reach it, an origin
/// needs that many promised files of more than 256 KiB each in a day that are broken off, or find no room in the store.
pub(super) const MAX_OF_ORIGIN: usize = MAX_ROWS / 4;

/// Maximum number of rows that stand for all targets of an origin, beside the others. A further one stands for every target.
pub(super) const MAX_ANY: usize = 4096;

/// Maximum number of rows of files that no promise bound. When there are more, the older half is forgotten. If a promise of a
/// forgotten file comes later, its gap is that of a new target, which may move: a client that has most of a bad body may
/// complete it.
pub(super) const MAX_UNBOUND: usize = 65_536;

/// The length of a row in the file.
pub(super) const ROW: usize = 61;

/// Stands for every target, in place of a target that was refused when the table was full. While this row counts, promised bodies
/// of all targets are held back whole until they are verified.
pub(super) const ANY: Key = Key(*b"any target, for want of a row   ");

/// Stands for every target of an origin, after the bytes of the origin.
const ANY_OF_ORIGIN: [u8; 24] = *b"any, for want of a row  ";

/// Stands for an unknown length.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// The part of a key that names the origin.
type Origin = [u8; 8];

/// What is known about a target whose bytes were delivered and not verified since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The length in bytes of the body that was delivered, if the origin announced it.
    pub length: Option<u64>,
    /// Where the gap begins, in bytes from the start of the body. Meaningless if the length is unknown.
    pub gap: u64,
    /// What was delivered.
    pub state: Delivered,
    /// When the row was written.
    pub since: Time,
}

/// What was delivered of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Bytes of a promised body, but none of its gap.
    Given = 1,
    /// Nothing may be delivered before a body is verified: one was refused, or its gap had been delivered when a promise
    /// came.
    Suspect = 2,
    /// Bytes of a body that no promise bound. A client of it lacks bytes of the gap, if it lacks any.
    Unbound = 3,
    /// Bytes of a body that no promise bound, those of the gap among them. If a promise comes, the target is suspect.
    Spent = 4,
}

impl Delivered {
    fn is_bound(self) -> bool {
        matches!(self, Self::Given | Self::Suspect)
    }
}

/// The rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) of: HashMap<Key, Row>,
    /// The number of rows that are not bound.
    pub(super) unbound: usize,
    /// The number of bound rows of each origin.
    bound: HashMap<Origin, usize>,
    /// The number of rows that stand for all targets of an origin.
    pub(super) any: usize,
    /// The time of the oldest row, when rows were dropped last because there was no room.
    oldest: Option<Time>,
    /// The targets whose last change was not written.
    pub(super) unwritten: HashSet<Key>,
}

impl Rows {
    pub(super) fn insert(&mut self, key: Key, row: Row) -> Option<Row> {
        let before = self.of.insert(key, row);
        self.count(key, before, false);
        self.count(key, Some(row), true);
        before
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Row> {
        let before = self.of.remove(&key);
        self.count(key, before, false);
        before
    }

    fn count(&mut self, key: Key, row: Option<Row>, more: bool) {
        let Some(row) = row else { return };
        let step = |count: usize| if more { count + 1 } else { count.saturating_sub(1) };
        if is_any(key) {
            self.any = step(self.any);
        } else if !row.state.is_bound() {
            self.unbound = step(self.unbound);
        } else {
            let count = self.bound.entry(key.origin()).or_default();
            *count = step(*count);
            if *count == 0 {
                self.bound.remove(&key.origin());
            }
        }
    }

    pub(super) fn keep(&mut self, counts: impl Fn(&Row) -> bool) {
        self.of.retain(|_, row| counts(row));
        (self.unbound, self.any, self.bound) = Default::default();
        let all: Vec<(Key, Row)> = self.of.iter().map(|(key, row)| (*key, *row)).collect();
        for (key, row) in all {
            self.count(key, Some(row), true);
        }
    }

    /// Makes room for a row of `key` in this state; `known` is the row that it replaces.
    pub(super) fn make_room(
        &mut self,
        key: Key,
        known: Option<Row>,
        state: Delivered,
        now: Time,
    ) -> io::Result<()> {
        if known.is_some_and(|known| known.state.is_bound() == state.is_bound()) {
            return Ok(());
        }
        if !state.is_bound() {
            if self.unbound >= MAX_UNBOUND {
                self.forget_the_older_half();
            }
            return Ok(());
        }
        // Looking at all rows takes a while, and an origin that has no room asks often. None expires before the oldest does.
        let any_expired = self.oldest.is_none_or(|oldest| now >= oldest.plus(UNVERIFIED_FOR));
        if any_expired && self.is_full_for(key) {
            self.keep(|row| counts(row, now));
            self.oldest = self.of.values().map(|row| row.since).min();
        }
        if self.is_full_for(key) {
            return Err(io::Error::other("too many targets wait for their verification"));
        }
        Ok(())
    }

    /// Whether there is no room for a bound row of `key`.
    fn is_full_for(&self, key: Key) -> bool {
        let of_origin = self.bound.get(&key.origin()).copied().unwrap_or_default();
        of_origin >= MAX_OF_ORIGIN || self.of.len() - self.unbound - self.any >= MAX_ROWS
    }

    fn forget_the_older_half(&mut self) {
        let unbound = self.of.values().filter(|row| !row.state.is_bound());
        let mut times: Vec<Time> = unbound.map(|row| row.since).collect();
        times.sort_unstable();
        let Some(middle) = times.get(times.len() / 2).copied() else { return };
        self.keep(|row| row.state.is_bound() || row.since > middle);
    }
}

/// The key of the row that stands for all targets of an origin.
pub(super) fn any_of(origin: Origin) -> Key {
    let mut key = [0; 32];
    for (to, from) in key.iter_mut().zip(origin.into_iter().chain(ANY_OF_ORIGIN)) {
        *to = from;
    }
    Key(key)
}

/// Whether a row of this key stands for several targets.
fn is_any(key: Key) -> bool {
    key == ANY || key == any_of(key.origin())
}

/// Whether a row still counts. A row dated in the future, from a clock that was ahead, counts for longer.
pub(super) fn counts(row: &Row, now: Time) -> bool {
    now < row.since.plus(UNVERIFIED_FOR)
}

/// Encodes a row; without a row, a deletion of the earlier one.
pub(super) fn bytes_of(key: Key, row: Option<Row>) -> [u8; ROW] {
    let since = Time::from_millis(0);
    let none = Row { length: None, gap: 0, state: Delivered::Given, since };
    let state = row.map_or(0, |row| row.state as u8);
    let row = row.unwrap_or(none);
    let fields = key
        .0
        .into_iter()
        .chain(row.length.unwrap_or(UNKNOWN).to_be_bytes())
        .chain(row.gap.to_be_bytes())
        .chain([state])
        .chain(row.since.as_millis().to_be_bytes());
    let mut bytes = [0; ROW];
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = from;
    }
    let (body, sum) = bytes.split_at_mut(ROW - 4);
    sum.copy_from_slice(&crc32fast::hash(body).to_be_bytes());
    bytes
}

/// The rows in `bytes`, up to the first invalid one.
pub(super) fn rows_of(bytes: &[u8]) -> impl Iterator<Item = (Key, Option<Row>)> {
    bytes.chunks(ROW).map_while(|row| {
        let (key, rest) = row.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (gap, rest) = rest.split_first_chunk()?;
        let (state, rest) = rest.split_first()?;
        let (since, sum) = rest.split_first_chunk()?;
        if sum != crc32fast::hash(row.get(..ROW - 4)?).to_be_bytes() {
            return None;
        }
        let length = u64::from_be_bytes(*length);
        let row = Row {
            length: (length != UNKNOWN).then_some(length),
            gap: u64::from_be_bytes(*gap),
            state: match *state {
                0 | 1 => Delivered::Given,
                2 => Delivered::Suspect,
                3 => Delivered::Unbound,
                4 => Delivered::Spent,
                _ => return None,
            },
            since: Time::from_millis(i64::from_be_bytes(*since)),
        };
        Some((Key(*key), (*state != 0).then_some(row)))
    })
}
