//! `state/unverified`: the targets whose bytes were delivered before they were verified, and not verified since
//! (promises P3 and P8).
//!
//! A client resumes by itself after a cut, even if larder was restarted in between. So the file must record, before
//! larder delivers a byte of a promised body, where the withheld tail (the gap) begins, and whether a body was refused. A
//! promise may also come later, so bodies that no promise binds are recorded as well. `delivered.rs` says what a row is.
//!
//! Rows are appended, and a later row of a key replaces an earlier one. A truncated or damaged row ends the file. An
//! append is not synced, because only a power cut could lose it; a refusal is synced. The file is rewritten when it is
//! opened, and when it has grown to several times its rows. It is in the state directory, because the cache may be
//! deleted at any time.
//!
//! A change takes effect in memory at once ([`Unverified::put`]), and is then written ([`Unverified::write`]). A write takes
//! the row that counts at that time, so the order in which two writes of one key happen does not matter.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::delivered::{
    ANY, Delivered, MAX_ANY, Row, Rows, UNKNOWN, any_of, bytes_of, counts, rows_of,
};
use super::{durable, hold};
use crate::clock::{Clock, Time};
use crate::target::Key;

/// The age at which a row is written anew if bytes of its target are still given.
const RENEWED_AFTER: Duration = Duration::from_mins(1);

/// How many rows may be appended, beyond twice the number of current rows, before the file is rewritten.
const TIDY_AFTER: usize = 4096;

/// Maximum length of the file in bytes: some fifty million changes between two rounds of maintenance.
const MAX_FILE: u64 = 4 << 30;

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

    /// What counts for the target of `key` if it has no row: `None`, unless a refusal of its origin found no room. Quick.
    pub fn of_any(&self, key: Key) -> Option<Row> {
        let row = self.get(any_of(key.origin())).or_else(|| self.get(ANY));
        row.map(|row| Row { state: Delivered::Unbound, ..row })
    }

    /// Notes what is delivered of the body of `key`, of `length`, with the gap at `gap`. A suspect target stays suspect. Quick: the
    /// row is not on disk before [`Self::write`]. `Err`: the table is full, and nothing may be delivered.
    pub fn put(&self, key: Key, length: Option<u64>, gap: u64, state: Delivered) -> io::Result<()> {
        let now = self.clock.now();
        let mut rows = hold(&self.rows);
        let known = rows.of.get(&key).copied().filter(|row| counts(row, now));
        let suspect = known.is_some_and(|known| known.state == Delivered::Suspect);
        let state = if suspect { Delivered::Suspect } else { state };
        rows.make_room(key, known, state, now)?;
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
        let of_origin = any_of(key.origin());
        let has_room = rows.any < MAX_ANY || rows.of.contains_key(&of_origin);
        let any = if has_room { of_origin } else { ANY };
        rows.insert(any, Row { length: None, gap: 0, state: Delivered::Given, since });
        rows.unwritten.insert(any);
        any
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

#[cfg(test)]
mod tests {
    use super::super::delivered::{MAX_OF_ORIGIN, MAX_ROWS, MAX_UNBOUND, ROW, UNVERIFIED_FOR};
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

    /// A key of the origin with this number.
    fn key_of(origin: u64, file: u64) -> Key {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&origin.to_be_bytes());
        key[8..16].copy_from_slice(&file.to_be_bytes());
        Key(key)
    }

    /// A refusal that finds no room in the table is not forgotten (issue 10, row 2).
    #[test]
    fn when_a_refusal_finds_no_room_all_targets_of_its_origin_are_held_back() {
        for full in [true, false] {
            let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
            let rows = open(&data, &clock);
            for origin in u64::from(!full)..MAX_ROWS as u64 {
                rows.put(key_of(origin, 0), Some(1), 1, Delivered::Given).unwrap();
            }
            assert!(rows.of_any(key(255)).is_none(), "the control");
            rows.refused(key(255)).unwrap();
            rows.flush();
            let again = open(&data, &clock);
            for rows in [&rows, &again] {
                let suspect = rows.get(key(255)).map(|row| row.state);
                assert_eq!(suspect, (!full).then_some(Delivered::Suspect));
                assert_eq!(rows.of_any(key(255)).map(|row| row.length), full.then_some(None));
                assert!(rows.of_any(key(254)).is_none(), "another origin");
            }
            clock.advance(UNVERIFIED_FOR);
            assert!(again.of_any(key(255)).is_none());
        }
    }

    /// One origin cannot fill the table: beyond its share only its own bodies are held back.
    #[test]
    fn an_origin_takes_only_its_share_of_the_table() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        let put = |key| rows.put(key, Some(1), 1, Delivered::Given);
        for file in 0..MAX_OF_ORIGIN as u64 {
            put(key_of(1, file)).unwrap();
        }
        let next = key_of(1, u64::MAX);
        assert!(put(next).is_err() && put(key_of(1, 0)).is_ok());
        assert!(put(key_of(2, 0)).is_ok(), "another origin");
        assert_eq!(rows.suspect(next), rows.suspect(key_of(1, u64::MAX - 1)), "one row for all");
        assert!(rows.of_any(next).is_some() && rows.of_any(key_of(2, 1)).is_none());
        // A row that goes makes room.
        assert!(rows.remove(key_of(1, 0)));
        put(next).unwrap();
        assert!(put(key_of(1, 0)).is_err());
        rows.flush();
        let again = open(&data, &clock);
        assert!(again.put(key_of(1, 0), Some(1), 1, Delivered::Given).is_err(), "after a restart");
        assert!(again.of_any(next).is_some());
        clock.advance(UNVERIFIED_FOR);
        put(key_of(1, 0)).unwrap();
    }

    /// Rows that count no more make room at once: a refusal does not hold back all of its origin for want of a row.
    #[test]
    fn a_row_that_has_expired_makes_room_at_once() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        let put = |key| rows.put(key, Some(1), 1, Delivered::Given);
        for file in 0..MAX_OF_ORIGIN as u64 {
            put(key_of(1, file)).unwrap();
        }
        clock.advance(Duration::from_hours(23));
        assert!(put(key_of(1, u64::MAX)).is_err(), "the control");
        clock.advance(Duration::from_hours(1));
        let refused = key_of(1, u64::MAX - 1);
        assert_eq!(rows.suspect(refused), refused);
        assert!(rows.of_any(key_of(1, 0)).is_none());
    }

    /// Origins without number take no memory without bound.
    #[test]
    fn when_too_many_origins_are_held_back_all_are() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let rows = open(&data, &clock);
        for origin in 0..MAX_ROWS as u64 {
            rows.put(key_of(origin, 0), Some(1), 1, Delivered::Given).unwrap();
        }
        for origin in 0..MAX_ANY as u64 {
            assert_ne!(rows.suspect(key_of(origin, 1)), ANY);
        }
        let other = key_of(u64::MAX, 0);
        assert!(rows.of_any(other).is_none(), "the control");
        assert_eq!(rows.suspect(key_of(MAX_ANY as u64, 1)), ANY);
        assert!(rows.of_any(other).is_some());
        assert_ne!(rows.suspect(key_of(0, 2)), ANY, "that one has a row already");
        assert_eq!(hold(&rows.rows).of.len(), MAX_ROWS + MAX_ANY + 1);
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
