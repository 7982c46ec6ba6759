//! A pool of buffers for chunks of bodies.
//!
//! A blocking thread fills a chunk, and another thread frees it after sending. An allocator with one arena per thread
//! keeps some memory in each arena, so a hundred readers would cost many times what they hold at once. Therefore
//! buffers are few, of one size, and shared through one pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::CHUNK;
use crate::digest::Hashing;

/// Maximum number of idle buffers in the pool, which is 8 MiB.
const IDLE: usize = 128;

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for one chunk. [`Buffer::into_bytes`] turns its contents into [`Bytes`]; when the last
/// reference to those is dropped, the buffer returns to the pool.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Takes a buffer from the pool, or allocates one.
    pub fn take() -> Self {
        let idle = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(idle.unwrap_or_else(|| Vec::with_capacity(usize::try_from(CHUNK).unwrap_or(0))))
    }

    /// The vector to fill. If it grows beyond one chunk, the buffer does not return to the pool.
    pub fn room(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// The contents.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.0);
        room.clear();
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < IDLE && room.capacity() as u64 == CHUNK {
            pool.push(room);
        }
    }
}

/// Hashes the bytes of a file from `from` to before `to`. Fails with [`io::ErrorKind::UnexpectedEof`] if it has fewer. Blocking.
pub fn hash_range(hashing: &mut Hashing, file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = Buffer::take();
    let mut at = from;
    while at < to {
        let length = CHUNK.min(to - at);
        let room = buffer.room();
        room.resize(usize::try_from(length).unwrap_or(0), 0);
        file.read_exact_at(room, at)?;
        hashing.update(room);
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::digest::Algorithms;

    #[test]
    fn a_range_hashes_as_its_bytes_do() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 17).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let end = bytes.len() as u64;
        for (from, to) in [(0, end), (5, CHUNK + 5), (7, 7), (CHUNK, end)] {
            let (mut one, mut other) =
                (Hashing::new(Algorithms::default()), Hashing::new(Algorithms::default()));
            hash_range(&mut one, &file, from, to).unwrap();
            other.update(&bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]);
            assert_eq!(one.finish(), other.finish(), "{from}-{to}");
        }
        let short = hash_range(&mut Hashing::new(Algorithms::default()), &file, 5, end + 1);
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_was_filled_in_outlives_the_buffers_next_use() {
        let mut buffer = Buffer::take();
        buffer.room().extend_from_slice(b"one");
        let bytes = buffer.into_bytes();
        let part = bytes.slice(1..);
        drop(bytes);
        let mut other = Buffer::take();
        other.room().extend_from_slice(b"two");
        assert_eq!(part, "ne");
        assert_eq!(other.as_ref(), b"two");
    }

    #[test]
    fn a_buffer_comes_back_empty() {
        let mut buffer = Buffer::take();
        buffer.room().extend_from_slice(b"old");
        drop(buffer);
        assert!(Buffer::take().as_ref().is_empty());
    }
}
