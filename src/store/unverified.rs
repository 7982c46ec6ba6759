//! `state/unverified`: the targets whose bytes were delivered before they were verified, and not verified since
//! (promises P3 and P8).
//!
//! A client resumes by itself after a cut, even if larder was restarted in between. So the file must record, before
//! larder delivers a byte of a promised body, where the withheld tail (the gap) begins, and whether a body was refused. A
//! promise may also come later, so bodies that no promise binds are recorded as well:
//!
//! ```text
//! a row = key 32 │ length 8 │ gap 8 │ state 1 │ since 8 │ CRC-32 of these 57 bytes 4          (numbers big-endian)
//! ```
//!
//! Rows are appended, and a later row of a key replaces an earlier one. A truncated or damaged row ends the file. An
//! append is not synced, because only a power cut could lose it; a refusal is synced. The file is rewritten when it is
//! opened, and when it has grown to several times its rows. It is in the state directory, because the cache may be
//! deleted at any time.
//!
//! A change takes effect in memory at once ([`Unverified::put`]), and is then written ([`Unverified::write`]). A write takes
//! the row that counts at that time, so the order in which two writes of one key happen does not matter.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::{durable, hold};
use crate::clock::{Clock, Time};
use crate::target::Key;

/// How long a row counts. By then clients have given up resuming.
const UNVERIFIED_FOR: Duration = Duration::from_hours(24);

/// The age at which a row is written anew if bytes of its target are still given.
const RENEWED_AFTER: Duration = Duration::from_mins(1);

/// Maximum number of rows of promised files. To fill the table, an origin needs that many promised files of more than
/// 256 KiB each. Then bodies of further targets are withheld completely until verified, which is safe and slow. If one of these
/// is refused, the same applies to all targets without a row.
const MAX_ROWS: usize = 65_536;

/// Maximum number of rows of files that no promise bound. When there are more, the older half is forgotten. If a promise of a
/// forgotten file comes later, its gap is that of a new target, which may move: a client that has most of a bad body may
/// complete it.
const MAX_UNBOUND: usize = 65_536;

/// How many rows may be appended, beyond twice the number of current rows, before the file is rewritten.
const TIDY_AFTER: usize = 4096;

/// Maximum length of the file in bytes: some fifty million changes between two rounds of maintenance.
const MAX_FILE: u64 = 4 << 30;

const ROW: usize = 61;

/// Stands for every target, in place of a target that was refused when the table was full. While this row counts, promised bodies
/// of all targets are held back whole until they are verified.
const ANY: Key = Key(*b"any target, for want of a row   ");

/// Stands for an unknown length.
const UNKNOWN: u64 = u64::MAX;

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

/// The rows, in memory and on disk.
#[derive(Debug)]
pub struct Unverified {
    path: PathBuf,
    clock: Clock,
    /// Held only briefly, never while the disk is used.
    rows: Mutex<Rows>,
    /// Locked before `rows` if both are needed.
    file: Mutex<Appended>,
}

#[derive(Debug, Default)]
struct Rows {
    of: HashMap<Key, Row>,
    /// The number of rows that are not bound.
    unbound: usize,
    /// The targets whose last change was not written.
    unwritten: HashSet<Key>,
}

#[derive(Debug, Default)]
struct Appended {
    /// `None` after an error: the next change rewrites the file.
    file: Option<File>,
    rows: usize,
}

impl Unverified {
    /// Reads the rows at `path`. Blocking.
    pub fn open(path: PathBuf, clock: Clock) -> io::Result<Self> {
        let mut rows = Rows::default();
        for (key, row) in rows_of(&durable::read(&path, MAX_FILE)?.unwrap_or_default()) {
            match row {
                Some(row) => rows.insert(key, row),
                None => rows.remove(key),
            };
        }
        let unverified = Self { path, clock, rows: Mutex::new(rows), file: Mutex::default() };
        unverified.write_anew(&mut hold(&unverified.file))?;
        Ok(unverified)
    }

    /// The row of `key`, if it still counts. Quick.
    pub fn get(&self, key: Key) -> Option<Row> {
        let now = self.clock.now();
        hold(&self.rows).of.get(&key).copied().filter(|row| counts(row, now))
    }

    /// What counts for a target without a row: `None`, unless a refusal found no room. Quick.
    pub fn of_any(&self) -> Option<Row> {
        self.get(ANY).map(|row| Row { state: Delivered::Unbound, ..row })
    }

    /// Notes what is delivered of the body of `key`, of `length`, with the gap at `gap`. A suspect target stays suspect. Quick: the
    /// row is not on disk before [`Self::write`]. `Err`: the table is full, and nothing may be delivered.
    pub fn put(&self, key: Key, length: Option<u64>, gap: u64, state: Delivered) -> io::Result<()> {
        let now = self.clock.now();
        let mut rows = hold(&self.rows);
        let known = rows.of.get(&key).copied().filter(|row| counts(row, now));
        let suspect = known.is_some_and(|known| known.state == Delivered::Suspect);
        let state = if suspect { Delivered::Suspect } else { state };
        rows.make_room(known, state, now)?;
        rows.insert(key, Row { length, gap, state, since: now });
        rows.unwritten.insert(key);
        Ok(())
    }

    /// Notes that a body of `key` was verified, or that none of its bytes was delivered after all. Quick, like [`Self::put`].
    /// `false`: there was no row, and nothing need be written.
    pub fn remove(&self, key: Key) -> bool {
        let mut rows = hold(&self.rows);
        let removed = rows.remove(key).is_some();
        if removed {
            rows.unwritten.insert(key);
        }
        removed
    }

    /// Writes the row of `key` as it is now, or that there is none any more. Blocking; until it is on disk if `sync`.
    pub fn write(&self, key: Key, sync: bool) -> io::Result<()> {
        let mut file = hold(&self.file);
        let row = {
            let mut rows = hold(&self.rows);
            // After an error the file lacks rows, whichever are marked.
            let marked = rows.unwritten.remove(&key) || file.file.is_none();
            if !marked && !sync {
                // Another thread has just written it.
                return Ok(());
            }
            rows.of.get(&key).copied()
        };
        let written = self.append(&mut file, &bytes_of(key, row), sync);
        if written.is_err() {
            // The disk may have room again when larder stops.
            hold(&self.rows).unwritten.insert(key);
        }
        written
    }

    /// Whether a row that was written at `since` should be written anew while bytes of its target are still given, so that it counts
    /// for a day from the last of them. Quick.
    pub fn is_old(&self, since: Time) -> bool {
        self.clock.now().since(since) >= RENEWED_AFTER
    }

    /// The time, for [`Self::is_old`].
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Notes that a body of `key` was refused. Quick. Returns the key whose row says so, which must be written.
    pub fn suspect(&self, key: Key) -> Key {
        let known = self.get(key);
        let (length, gap) = known.map_or((None, UNKNOWN), |row| (row.length, row.gap));
        if self.put(key, length, gap, Delivered::Suspect).is_ok() {
            return key;
        }
        let mut rows = hold(&self.rows);
        let since = self.clock.now();
        rows.insert(ANY, Row { length: None, gap: 0, state: Delivered::Given, since });
        rows.unwritten.insert(ANY);
        ANY
    }

    /// Rewrites the file when it has grown to several times its rows. Blocking; part of the store's maintenance.
    pub(super) fn tidy(&self) {
        let mut file = hold(&self.file);
        let current = hold(&self.rows).of.len();
        if file.rows > TIDY_AFTER + 2 * current
            && let Err(error) = self.write_anew(&mut file)
        {
            tracing::warn!(%error, "the list of unverified targets could not be written");
        }
    }

    /// Writes what is not written yet. Blocking; for the end of the process.
    pub fn flush(&self) {
        let mut file = hold(&self.file);
        let unwritten = file.file.is_none() || !hold(&self.rows).unwritten.is_empty();
        if unwritten && let Err(error) = self.write_anew(&mut file) {
            tracing::warn!(%error, "the list of unverified targets could not be written");
        }
    }

    /// A disk that hangs until the guard is dropped.
    #[cfg(test)]
    pub fn hang(&self) -> impl Drop + '_ {
        hold(&self.file)
    }

    fn append(&self, appended: &mut Appended, bytes: &[u8], sync: bool) -> io::Result<()> {
        let Some(file) = &mut appended.file else {
            return self.write_anew(appended);
        };
        let written = file
            .write_all(bytes)
            .and_then(|()| if sync { file.sync_data() } else { Ok(()) })
            .map_err(|error| durable::naming(&self.path, &error));
        appended.rows += 1;
        if written.is_err() {
            appended.file = None;
        }
        written
    }

    fn write_anew(&self, appended: &mut Appended) -> io::Result<()> {
        let now = self.clock.now();
        let all: Vec<u8> = {
            let mut rows = hold(&self.rows);
            rows.keep(|row| counts(row, now));
            rows.unwritten.clear();
            rows.of.iter().flat_map(|(key, row)| bytes_of(*key, Some(*row))).collect()
        };
        // If the new file cannot be opened, for example because there is no descriptor left, appending to the old one would lose
        // rows.
        appended.file = None;
        durable::write(&self.path, &all, 0o600)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        appended.file = Some(file.map_err(|error| durable::naming(&self.path, &error))?);
        appended.rows = 0;
        Ok(())
    }
}

impl Rows {
    fn insert(&mut self, key: Key, row: Row) -> Option<Row> {
        let before = self.of.insert(key, row);
        self.count(before, false);
        self.count(Some(row), true);
        before
    }

    fn remove(&mut self, key: Key) -> Option<Row> {
        let before = self.of.remove(&key);
        self.count(before, false);
        before
    }

    fn count(&mut self, row: Option<Row>, more: bool) {
        if row.is_some_and(|row| !row.state.is_bound()) {
            self.unbound = if more { self.unbound + 1 } else { self.unbound.saturating_sub(1) };
        }
    }

    fn keep(&mut self, counts: impl Fn(&Row) -> bool) {
        self.of.retain(|_, row| counts(row));
        self.unbound = self.of.values().filter(|row| !row.state.is_bound()).count();
    }

    /// Makes room for a row in this state; `known` is the row that it replaces.
    fn make_room(&mut self, known: Option<Row>, state: Delivered, now: Time) -> io::Result<()> {
        if known.is_some_and(|known| known.state.is_bound() == state.is_bound()) {
            return Ok(());
        }
        if !state.is_bound() {
            if self.unbound >= MAX_UNBOUND {
                self.forget_the_older_half();
            }
            return Ok(());
        }
        if self.of.len() - self.unbound >= MAX_ROWS {
            self.keep(|row| counts(row, now));
            if self.of.len() - self.unbound >= MAX_ROWS {
                return Err(io::Error::other("too many targets wait for their verification"));
            }
        }
        Ok(())
    }

    fn forget_the_older_half(&mut self) {
        let unbound = self.of.values().filter(|row| !row.state.is_bound());
        let mut times: Vec<Time> = unbound.map(|row| row.since).collect();
        times.sort_unstable();
        let Some(middle) = times.get(times.len() / 2).copied() else { return };
        self.keep(|row| row.state.is_bound() || row.since > middle);
    }
}

/// Whether a row still counts. A row dated in the future, from a clock that was ahead, counts for longer.
fn counts(row: &Row, now: Time) -> bool {
    now < row.since.plus(UNVERIFIED_FOR)
}

/// Encodes a row; without a row, a deletion of the earlier one.
fn bytes_of(key: Key, row: Option<Row>) -> [u8; ROW] {
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
fn rows_of(bytes: &[u8]) -> impl Iterator<Item = (Key, Option<Row>)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key([byte; 32])
    }

    impl Unverified {
        /// As for a body that a promise binds: after an error nothing may be delivered.
        fn given(&self, key: Key, length: Option<u64>, gap: u64) -> io::Result<()> {
            self.put(key, length, gap, Delivered::Given)?;
            self.write(key, false)
        }

        fn refused(&self, key: Key) -> io::Result<()> {
            self.write(self.suspect(key), true)
        }
    }

    fn open(data: &tempfile::TempDir, clock: &Clock) -> Unverified {
        Unverified::open(data.path().join("unverified"), clock.clone()).unwrap()
    }

    #[test]
    fn what_was_noted_is_known_after_a_restart_and_for_a_day() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let first = open(&data, &clock);
        first.given(key(1), Some(1 << 20), 7).unwrap();
        first.given(key(2), None, 0).unwrap();
        first.refused(key(2)).unwrap();
        first.refused(key(3)).unwrap();
        first.given(key(4), Some(9), 9).unwrap();
        assert!(first.remove(key(4)));
        first.write(key(4), false).unwrap();
        let again = open(&data, &clock);
        for number in 1..=4 {
            assert_eq!(again.get(key(number)), first.get(key(number)), "{number}");
        }
        assert_eq!(again.get(key(1)).map(|row| (row.length, row.gap)), Some((Some(1 << 20), 7)));
        let suspect = |number| again.get(key(number)).unwrap().state == Delivered::Suspect;
        assert!(suspect(2) && suspect(3));
        assert_eq!(again.get(key(4)), None, "it was verified");
        again.given(key(2), Some(5), 5).unwrap();
        assert!(suspect(2), "only a verified body ends that");
        clock.advance(UNVERIFIED_FOR);
        assert_eq!(again.get(key(1)), None);
    }

    #[test]
    fn a_row_that_a_crash_cut_short_takes_no_other_with_it() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let first = open(&data, &clock);
        first.refused(key(1)).unwrap();
        first.given(key(2), Some(9), 9).unwrap();
        let path = data.path().join("unverified");
        let whole = durable::read(&path, 1 << 20).unwrap().unwrap();
        for length in 0..whole.len() {
            durable::write(&path, &whole[..length], 0o600).unwrap();
            let again = open(&data, &clock);
            assert_eq!(again.get(key(1)).is_some(), length >= ROW, "{length}");
            assert_eq!(again.get(key(2)), None);
        }
    }

    #[test]
    fn the_file_stays_small_and_a_full_table_takes_no_more() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        for number in 0..MAX_ROWS {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&number.to_be_bytes());
            rows.given(Key(name), Some(1), 1).unwrap();
        }
        assert!(rows.given(key(255), Some(1), 1).is_err(), "no room");
        for _ in 0..3 * MAX_ROWS {
            rows.given(Key([0; 32]), Some(1), 1).unwrap();
        }
        let size = || data.path().join("unverified").metadata().unwrap().len();
        assert_eq!(size(), (ROW * 4 * MAX_ROWS) as u64, "the control");
        rows.tidy();
        assert_eq!(size(), (ROW * MAX_ROWS) as u64);
        clock.advance(UNVERIFIED_FOR);
        rows.given(key(255), Some(1), 1).unwrap();
    }

    /// A refusal that finds no room in the table is not forgotten (issue 10, row 2).
    #[test]
    fn when_a_refusal_finds_no_room_all_targets_are_held_back() {
        for full in [true, false] {
            let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
            let rows = open(&data, &clock);
            for number in u64::from(!full)..MAX_ROWS as u64 {
                let mut name = [0; 32];
                name[..8].copy_from_slice(&number.to_be_bytes());
                rows.put(Key(name), Some(1), 1, Delivered::Given).unwrap();
            }
            assert!(rows.of_any().is_none(), "the control");
            rows.refused(key(255)).unwrap();
            rows.flush();
            let again = open(&data, &clock);
            for rows in [&rows, &again] {
                let suspect = rows.get(key(255)).map(|row| row.state);
                assert_eq!(suspect, (!full).then_some(Delivered::Suspect));
                assert_eq!(rows.of_any().map(|row| row.length), full.then_some(None));
            }
            clock.advance(UNVERIFIED_FOR);
            assert!(again.of_any().is_none());
        }
    }

    /// Two threads that write one row write it once.
    #[test]
    fn what_another_thread_has_written_is_not_written_again() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        let size = || data.path().join("unverified").metadata().unwrap().len();
        rows.put(key(1), Some(9), 9, Delivered::Unbound).unwrap();
        rows.put(key(1), Some(9), 9, Delivered::Spent).unwrap();
        rows.write(key(1), false).unwrap();
        assert_eq!(size(), ROW as u64);
        rows.write(key(1), false).unwrap();
        assert_eq!(size(), ROW as u64);
    }

    /// Rewriting the file fails, for example because no descriptor is left.
    #[test]
    fn no_row_is_lost_when_the_file_cannot_be_rewritten() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let directory = data.path().join("state");
        let path = directory.join("unverified");
        std::fs::create_dir(&directory).unwrap();
        let rows = Unverified::open(path.clone(), clock.clone()).unwrap();
        rows.given(key(1), Some(9), 9).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        durable::write(&directory, b"", 0o600).unwrap();
        assert!(rows.write_anew(&mut hold(&rows.file)).is_err());
        assert!(rows.given(key(2), Some(9), 9).is_err(), "it is not on disk");
        std::fs::remove_file(&directory).unwrap();
        rows.flush();
        let again = Unverified::open(path, clock).unwrap();
        assert!(again.get(key(1)).is_some() && again.get(key(2)).is_some());
    }

    /// Rewriting the file fails for one row, while another one waits to be written. Then that one is not on disk either, so a
    /// crash would lose it if its bytes were given.
    #[test]
    fn a_row_is_not_taken_for_written_after_another_one_failed() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let directory = data.path().join("state");
        std::fs::create_dir(&directory).unwrap();
        let rows = Unverified::open(directory.join("unverified"), clock).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        durable::write(&directory, b"", 0o600).unwrap();
        rows.put(key(1), Some(9), 9, Delivered::Given).unwrap();
        rows.put(key(2), Some(9), 9, Delivered::Given).unwrap();
        assert!(rows.write_anew(&mut hold(&rows.file)).is_err(), "maintenance");
        assert!(rows.write(key(1), false).is_err());
        assert!(rows.write(key(2), false).is_err());
        std::fs::remove_file(&directory).unwrap();
        std::fs::create_dir(&directory).unwrap();
        assert!(rows.write(key(1), false).is_ok(), "the control");
    }

    #[test]
    fn files_that_no_promise_bound_take_no_room_from_promised_ones() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        rows.given(key(1), Some(9), 9).unwrap();
        rows.put(key(2), Some(9), 9, Delivered::Unbound).unwrap();
        for number in 0..MAX_UNBOUND {
            clock.advance(Duration::from_millis(1));
            let mut name = [3; 32];
            name[..8].copy_from_slice(&number.to_be_bytes());
            rows.put(Key(name), Some(1), 1, Delivered::Spent).unwrap();
        }
        let unbound = hold(&rows.rows).unbound;
        assert!((MAX_UNBOUND / 2..MAX_UNBOUND).contains(&unbound), "{unbound}");
        assert_eq!(rows.get(key(2)), None, "the older ones are forgotten");
        rows.put(key(2), Some(9), 9, Delivered::Unbound).unwrap();
        rows.given(key(2), Some(9), 9).unwrap();
        assert_eq!(hold(&rows.rows).unbound, unbound, "it is bound now");
        rows.flush();
        let again = open(&data, &clock);
        assert_eq!(hold(&again.rows).unbound, unbound);
        for number in [1, 2] {
            assert_eq!(again.get(key(number)).unwrap().state, Delivered::Given, "{number}");
        }
    }

    #[test]
    fn what_is_written_late_is_what_counts_by_then() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        rows.put(key(1), Some(9), 9, Delivered::Unbound).unwrap();
        rows.put(key(1), Some(9), 9, Delivered::Spent).unwrap();
        assert_eq!(open(&data, &clock).get(key(1)), None, "it is not written yet");
        let rows = open(&data, &clock);
        rows.put(key(1), Some(9), 9, Delivered::Unbound).unwrap();
        rows.put(key(1), Some(9), 9, Delivered::Spent).unwrap();
        rows.write(key(1), false).unwrap();
        rows.write(key(1), false).unwrap();
        assert_eq!(open(&data, &clock).get(key(1)).unwrap().state, Delivered::Spent);
        let rows = open(&data, &clock);
        assert!(rows.remove(key(1)) && !rows.remove(key(1)));
        rows.flush();
        assert_eq!(open(&data, &clock).get(key(1)), None);
    }
}
