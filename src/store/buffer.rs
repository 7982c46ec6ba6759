//! A pool of buffers for chunks of bodies.
//!
//! A blocking thread fills a chunk, and another thread frees it after sending. An allocator with one arena per thread
//! keeps some memory in each arena, so a hundred readers would cost many times what they hold at once. Therefore
//! buffers are few, of one size, and shared through one pool.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::CHUNK;

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

#[cfg(test)]
mod tests {
    use super::*;

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
