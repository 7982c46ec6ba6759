//! Buffers for chunks of bodies, used again and again.
//!
//! A chunk is filled on one of many blocking threads and freed by whichever thread has sent it. An allocator with an
//! arena for each thread keeps some memory in every one of them, and a hundred readers then cost many times what they
//! hold at once. So buffers are few, all alike, and go back to where the next reader takes them.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::CHUNK;

/// How many idle buffers are kept: 8 MiB of them.
const IDLE: usize = 128;

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for a chunk. What is read into it becomes [`Bytes`], and when their last part is dropped the
/// room is used again.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Takes one.
    pub fn take() -> Self {
        let idle = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(idle.unwrap_or_else(|| Vec::with_capacity(usize::try_from(CHUNK).unwrap_or(0))))
    }

    /// The room, to be filled. More than a chunk makes it grow, and then it is not kept.
    pub fn room(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// What was filled in.
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
