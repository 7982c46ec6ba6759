//! `state/unverified`: the targets whose bytes were delivered before they were verified, and not verified since
//! (promises P3 and P8).
//!
//! A client resumes by itself after a cut, even if larder was restarted in between. So the file must record, before
//! larder delivers a byte of a body, where the withheld tail (the gap) begins, and whether a body was refused:
//!
//! ```text
//! a row = key 32 │ length 8 │ gap 8 │ state 1 │ since 8 │ CRC-32 of these 57 bytes 4          (numbers big-endian)
//! ```
//!
//! Rows are appended, and a later row of a key replaces an earlier one. A truncated or damaged row ends the file. An
//! append is not synced, because only a power cut could lose it; a refusal is synced. The file is rewritten when it is
//! opened, and when it has grown to several times its rows. It is in the state directory, because the cache may be
//! deleted at any time.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::{durable, hold};
use crate::clock::{Clock, Time};
use crate::target::Key;

/// How long a row counts. By then clients have given up resuming.
pub const UNVERIFIED_FOR: Duration = Duration::from_hours(24);

/// Maximum number of rows. To fill the table, an origin needs that many promised files of more than 256 KiB each. Then
/// bodies of further targets are withheld completely until verified, which is safe and slow.
const MAX_ROWS: usize = 65_536;

/// How many rows may be appended, beyond twice the number of current rows, before the file is rewritten.
const TIDY_AFTER: usize = 4096;

/// Maximum length of the file in bytes: some fifty million changes between two rounds of maintenance.
const MAX_FILE: u64 = 4 << 30;

const ROW: usize = 61;

/// Stands for an unknown length.
const UNKNOWN: u64 = u64::MAX;

/// What is known about a target whose bytes were delivered and not verified since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The length in bytes of the body that was delivered, if the origin announced it.
    pub length: Option<u64>,
    /// Where the gap begins, in bytes from the start of the body. Meaningless if the length is unknown.
    pub gap: u64,
    /// Whether nothing may be delivered before a body is verified: a body was refused, or its gap had been delivered when
    /// a promise came.
    pub suspect: bool,
    /// When the row was written.
    pub since: Time,
}

/// The rows, in memory and on disk.
#[derive(Debug)]
pub struct Unverified {
    path: PathBuf,
    clock: Clock,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    of: HashMap<Key, Row>,
    /// `None` after an error: the next change rewrites the file.
    file: Option<File>,
    appended: usize,
}

impl Unverified {
    /// Reads the rows at `path`. Blocking.
    pub fn open(path: PathBuf, clock: Clock) -> io::Result<Self> {
        let mut of = HashMap::new();
        for (key, row) in rows_of(&durable::read(&path, MAX_FILE)?.unwrap_or_default()) {
            match row {
                Some(row) => of.insert(key, row),
                None => of.remove(&key),
            };
        }
        let unverified = Self { path, clock, rows: Mutex::new(Rows { of, ..Rows::default() }) };
        unverified.write_anew(&mut hold(&unverified.rows))?;
        Ok(unverified)
    }

    /// The row of `key`, if it still counts. Quick.
    pub fn get(&self, key: Key) -> Option<Row> {
        let now = self.clock.now();
        hold(&self.rows).of.get(&key).copied().filter(|row| counts(row, now))
    }

    /// Notes that the bytes of a body of `length` before the position `gap` are delivered. A suspect target stays
    /// suspect. After an error (the table is full, or the write failed) nothing may be delivered. Blocking.
    pub fn given(&self, key: Key, length: Option<u64>, gap: u64) -> io::Result<()> {
        self.put(key, false, |suspect| Row { length, gap, suspect, since: self.clock.now() })
    }

    /// Notes that a body of `key` was refused. Blocking until it is on disk.
    pub fn refused(&self, key: Key) -> io::Result<()> {
        let known = self.get(key);
        let (length, gap) = known.map_or((None, UNKNOWN), |row| (row.length, row.gap));
        self.put(key, true, |_| Row { length, gap, suspect: true, since: self.clock.now() })
    }

    /// Notes that a body of `key` was verified, or that none of its bytes was delivered after all. Blocking.
    pub fn verified(&self, key: Key) {
        let mut rows = hold(&self.rows);
        if rows.of.remove(&key).is_some()
            && let Err(error) = self.append(&mut rows, &bytes_of(key, None), false)
        {
            // Its tail is withheld for up to a day longer than necessary.
            tracing::warn!(%error, "the verification of a target could not be recorded");
        }
    }

    /// Rewrites the file when it has grown to several times its rows. Blocking; part of the store's maintenance.
    pub(super) fn tidy(&self) {
        let mut rows = hold(&self.rows);
        if rows.appended > TIDY_AFTER + 2 * rows.of.len()
            && let Err(error) = self.write_anew(&mut rows)
        {
            tracing::warn!(%error, "the list of unverified targets could not be written");
        }
    }

    fn put(&self, key: Key, sync: bool, row: impl FnOnce(bool) -> Row) -> io::Result<()> {
        let now = self.clock.now();
        let mut rows = hold(&self.rows);
        let known = rows.of.get(&key).copied().filter(|row| counts(row, now));
        if known.is_none() && rows.of.len() >= MAX_ROWS {
            rows.of.retain(|_, row| counts(row, now));
            if rows.of.len() >= MAX_ROWS {
                return Err(io::Error::other("too many targets wait for their verification"));
            }
        }
        let row = row(known.is_some_and(|known| known.suspect));
        rows.of.insert(key, row);
        self.append(&mut rows, &bytes_of(key, Some(row)), sync)
    }

    fn append(&self, rows: &mut Rows, bytes: &[u8], sync: bool) -> io::Result<()> {
        if rows.file.is_none() {
            return self.write_anew(rows);
        }
        let Some(file) = &mut rows.file else { return Ok(()) };
        let written = file
            .write_all(bytes)
            .and_then(|()| if sync { file.sync_data() } else { Ok(()) })
            .map_err(|error| durable::naming(&self.path, &error));
        rows.appended += 1;
        if written.is_err() {
            rows.file = None;
        }
        written
    }

    fn write_anew(&self, rows: &mut Rows) -> io::Result<()> {
        let now = self.clock.now();
        rows.of.retain(|_, row| counts(row, now));
        let all: Vec<u8> =
            rows.of.iter().flat_map(|(key, row)| bytes_of(*key, Some(*row))).collect();
        durable::write(&self.path, &all, 0o600)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        rows.file = Some(file.map_err(|error| durable::naming(&self.path, &error))?);
        rows.appended = 0;
        Ok(())
    }
}

/// Whether a row still counts. A row dated in the future, from a clock that was ahead, counts for longer.
fn counts(row: &Row, now: Time) -> bool {
    now < row.since.plus(UNVERIFIED_FOR)
}

/// Encodes a row; without a row, a deletion of the earlier one.
fn bytes_of(key: Key, row: Option<Row>) -> [u8; ROW] {
    let none = Row { length: None, gap: 0, suspect: false, since: Time::from_millis(0) };
    let state: u8 = match row {
        None => 0,
        Some(Row { suspect: false, .. }) => 1,
        Some(_) => 2,
    };
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
            suspect: *state == 2,
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
        first.verified(key(4));
        let again = open(&data, &clock);
        for number in 1..=4 {
            assert_eq!(again.get(key(number)), first.get(key(number)), "{number}");
        }
        assert_eq!(again.get(key(1)).map(|row| (row.length, row.gap)), Some((Some(1 << 20), 7)));
        assert!(again.get(key(2)).unwrap().suspect && again.get(key(3)).unwrap().suspect);
        assert_eq!(again.get(key(4)), None, "it was verified");
        again.given(key(2), Some(5), 5).unwrap();
        assert!(again.get(key(2)).unwrap().suspect, "only a verified body ends that");
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
}
