//! Bodies that were judged right and not kept, for want of room: the digests of their chunks (`alike.rs`).

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::{Algorithms, BlobId, Digest, Hashing, in_chunks};
use crate::target::Key;

/// The length of a chunk in bytes.
pub(super) const CHUNK: u64 = 512 << 10;

/// Maximum number of chunks of all remembered bodies: 8 MiB of digests, for 128 GiB of bodies. Beyond that the oldest bodies are
/// forgotten, and are only hashed again when they are asked for.
const MAX_CHUNKS: usize = 1 << 18;

/// Maximum number of remembered bodies.
const MAX_BODIES: usize = 1024;

/// Computes the digests of the chunks of a body.
#[derive(Debug)]
pub(super) struct Chunking {
    /// The digests of the chunks that are complete.
    pub(super) ended: Vec<BlobId>,
    running: Hashing,
    filled: u64,
}

impl Chunking {
    pub(super) fn new() -> Self {
        Self { ended: Vec::new(), running: Hashing::new(Algorithms::default()), filled: 0 }
    }

    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        in_chunks(&mut self.filled, CHUNK, bytes, |piece, ends| {
            self.running.update(piece);
            if ends {
                let running = Hashing::new(Algorithms::default());
                let ended = mem::replace(&mut self.running, running);
                self.ended.push(ended.finish().blob());
            }
        });
    }

    /// Whether there are more chunks than are remembered of all bodies.
    pub(super) fn is_too_long(&self) -> bool {
        self.ended.len() > MAX_CHUNKS
    }
}

/// A body that was judged right and not kept.
#[derive(Debug)]
pub(super) struct JudgedBody {
    pub(super) size: u64,
    pub(super) digests: Vec<Digest>,
    /// The digests of its chunks, except for the last one if that is shorter.
    pub(super) chunks: Vec<BlobId>,
}

/// The bodies that were judged right and not kept, from the oldest on: at most one of each target.
#[derive(Debug, Default)]
pub(super) struct JudgedBodies(Mutex<VecDeque<(Key, Arc<JudgedBody>)>>);

impl JudgedBodies {
    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<(Key, Arc<JudgedBody>)>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<JudgedBody>> {
        self.with(|all| all.iter().find(|(of, _)| *of == key).map(|(_, body)| Arc::clone(body)))
    }

    pub(super) fn put(&self, key: Key, body: JudgedBody) {
        self.with(|all| {
            all.retain(|(of, _)| *of != key);
            all.push_back((key, Arc::new(body)));
            let mut chunks: usize = all.iter().map(|(_, body)| body.chunks.len()).sum();
            while all.len() > MAX_BODIES || chunks > MAX_CHUNKS {
                let Some((_, oldest)) = all.pop_front() else { break };
                chunks -= oldest.chunks.len();
            }
        });
    }

    pub(super) fn forget(&self, body: &Arc<JudgedBody>) {
        self.with(|all| all.retain(|(_, one)| !Arc::ptr_eq(one, body)));
    }
}
