//! Sorts rows in bounded memory (external merge sort).
//!
//! Rows gather in a buffer. A full buffer is sorted and written as a run to an unlinked file, and the runs are merged
//! while they are read. The largest known index needs a few dozen runs; a hostile one at the limit of claims needs
//! about a hundred.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::durable;
use super::segment::{ROW, Row};

/// Rows held in memory before they are spilled: 8 MiB, so that a distribution's index takes a few runs.
pub(super) const BUFFERED_ROWS: usize = (8 << 20) / ROW;

/// Rows read from a run at a time. Multiplied by the number of runs this bounds the memory of a merge.
const RUN_BUFFER: usize = 256;

/// Collects the rows to sort.
#[derive(Debug)]
pub(super) struct Sorter {
    buffer: Vec<Row>,
    limit: usize,
    spill: Option<File>,
    /// Start and end of each run in the spill file, in rows.
    runs: Vec<(u64, u64)>,
    /// Where the spill file is created.
    path: PathBuf,
}

impl Sorter {
    /// A sorter that holds at most `limit` rows in memory and spills to `path`.
    pub(super) fn new(path: &Path, limit: usize) -> Self {
        Self { buffer: Vec::new(), limit, spill: None, runs: Vec::new(), path: path.to_owned() }
    }

    /// Adds a row. Returns how many bytes were spilled.
    pub(super) fn push(&mut self, row: Row) -> io::Result<u64> {
        self.buffer.push(row);
        if self.buffer.len() < self.limit {
            return Ok(0);
        }
        self.spill()
    }

    /// Returns every row, in order.
    pub(super) fn sorted(mut self) -> io::Result<Sorted> {
        self.buffer.sort_unstable();
        let mut sorted = Sorted {
            memory: std::mem::take(&mut self.buffer).into_iter(),
            spill: self.spill.take(),
            runs: Vec::with_capacity(self.runs.len()),
            heap: BinaryHeap::with_capacity(self.runs.len() + 1),
        };
        for (next, end) in std::mem::take(&mut self.runs) {
            sorted.runs.push(Run { next, end, read: Vec::new().into_iter() });
        }
        for source in 0..=sorted.runs.len() {
            sorted.advance(source)?;
        }
        Ok(sorted)
    }

    fn spill(&mut self) -> io::Result<u64> {
        self.buffer.sort_unstable();
        let file = if let Some(file) = &self.spill {
            file
        } else {
            // The file is unlinked at once, so that nothing is left when the process ends.
            let file = durable::create(&self.path, 0o600)?;
            durable::remove(&self.path)?;
            self.spill.insert(file)
        };
        let start = self.runs.last().map_or(0, |(_, end)| *end);
        let mut to = io::BufWriter::with_capacity(1 << 16, file);
        for row in &self.buffer {
            to.write_all(&row.0)?;
        }
        to.flush()?;
        let rows = self.buffer.len() as u64;
        self.runs.push((start, start + rows));
        self.buffer.clear();
        Ok(rows * ROW as u64)
    }
}

/// An iterator that merges the runs.
#[derive(Debug)]
pub(super) struct Sorted {
    memory: std::vec::IntoIter<Row>,
    spill: Option<File>,
    runs: Vec<Run>,
    /// The next row of each source. The index of the in-memory buffer follows those of the runs.
    heap: BinaryHeap<Reverse<(Row, usize)>>,
}

#[derive(Debug)]
struct Run {
    next: u64,
    end: u64,
    read: std::vec::IntoIter<Row>,
}

impl Sorted {
    fn advance(&mut self, source: usize) -> io::Result<()> {
        let row = match (self.runs.get_mut(source), &self.spill) {
            (Some(run), Some(file)) => run.next_row(file)?,
            _ => self.memory.next(),
        };
        if let Some(row) = row {
            self.heap.push(Reverse((row, source)));
        }
        Ok(())
    }
}

impl Run {
    fn next_row(&mut self, file: &File) -> io::Result<Option<Row>> {
        if self.read.len() == 0 && self.next < self.end {
            let rows = usize::try_from(self.end - self.next)
                .map_or(RUN_BUFFER, |left| left.min(RUN_BUFFER));
            let mut bytes = vec![0; rows * ROW];
            file.read_exact_at(&mut bytes, self.next * ROW as u64)?;
            self.next += rows as u64;
            self.read =
                bytes.as_chunks().0.iter().map(|row| Row(*row)).collect::<Vec<Row>>().into_iter();
        }
        Ok(self.read.next())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((row, source)) = self.heap.pop()?;
        Some(self.advance(source).map(|()| row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(number: u64) -> Row {
        let mut bytes = [0; ROW];
        for (to, from) in bytes.iter_mut().zip(number.to_be_bytes()) {
            *to = from;
        }
        Row(bytes)
    }

    proptest! {
        #[test]
        fn spilled_or_not_rows_come_back_sorted(
            numbers in prop::collection::vec(any::<u64>(), 0..700),
            limit in 1_usize..800,
        ) {
            let data = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(&data.path().join("sort"), limit);
            for number in &numbers {
                sorter.push(row(*number)).unwrap();
            }
            let sorted: Vec<Row> = sorter.sorted().unwrap().map(Result::unwrap).collect();
            let mut expected: Vec<Row> = numbers.iter().map(|number| row(*number)).collect();
            expected.sort_unstable();
            prop_assert!(sorted == expected);
            prop_assert_eq!(data.path().read_dir().unwrap().count(), 0);
        }
    }
}
