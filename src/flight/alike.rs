//! Bodies that are given because they are alike: the same as one that was judged right (promise P3).
//!
//! Nothing of a body that is held back whole is given before its judgement, and a body for which the store has no room cannot wait
//! for that. So such a body is only hashed. If it is right, larder remembers a digest of each of its chunks, and the next body of
//! the target is compared chunk by chunk before its bytes are given:
//!
//! ```text
//! first body    hashed ────────────────────────────────────────▶ right: the digests of its chunks are remembered
//! next body     ├─ the same: given ─┼─ the same: given ─┼ … ┼── the last 64 KiB: once it is judged ──┤
//!                                   └─ another chunk: no more is given, and the first body is forgotten
//! ```
//!
//! So no byte is given that is not one of a right body, whatever was given before: bodies of other lengths, with gaps in other
//! places. The target is suspect from then on, also if the first body was held back for another reason: nothing else completes what
//! was given. What is remembered here is lost when larder stops; then a body is hashed once more.

use std::fmt;
use std::sync::Arc;

use super::gap::own_start;
use super::judged::{CHUNK, Chunking, JudgedBody};
use super::stored::{Agreement, Agrees};
use super::window::WINDOW;
use super::{Flight, Shared, off_thread};
use crate::digest::{Digest, Digests};

// A chunk waits in the window until it is complete, and leaves room there for the pieces that follow.
const _: () = assert!(2 * CHUNK <= WINDOW, "a chunk is too long for the window");

/// The body that an arriving one is compared with.
pub(super) struct Alike {
    body: Arc<JudgedBody>,
    /// The number of chunks that are the same.
    same: usize,
    /// Whether the chunk after these differs.
    differs: bool,
    /// What the promises say about the judged body now.
    agrees: Agrees,
}

impl fmt::Debug for Alike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alike").field("same", &self.same).finish_non_exhaustive()
    }
}

impl Alike {
    /// Up to where the arriving body may be given before its judgement.
    fn end(&self) -> u64 {
        (self.same as u64).saturating_mul(CHUNK).min(own_start(self.body.size))
    }
}

impl Flight {
    /// If nothing of the body may be given before its judgement, but another body of its target was judged right, it may be given
    /// as far as it is the same. `agreeing` makes the check of what the promises say about that other one, by its digests and
    /// length. Call it before any byte arrives.
    pub async fn compare_with_judged(&self, agreeing: impl FnOnce(Vec<Digest>, u64) -> Agrees) {
        let key = self.target.file_key();
        let known = self.share.gaps().judged.get(key).filter(|_| self.is_held_whole());
        let Some(body) = known else { return };
        let agrees = agreeing(body.digests.clone(), body.size);
        let length = self.lock().answered.as_ref().and_then(|answered| answered.length);
        if length.is_some_and(|length| length != body.size) || agrees() != Agreement::Vouched {
            return;
        }
        let share = Arc::clone(&self.share);
        if off_thread(move || share.begin_alike()).await == Some(true) {
            let alike = Alike { body, same: 0, differs: false, agrees };
            self.update(|shared| shared.alike = Some(alike));
        }
    }

    /// Forgets the judged body if it is not promised any more. Readers call this before they are given bytes.
    pub(super) fn compare_only_if_promised(&self) {
        let agrees = self.lock().alike.as_ref().map(|alike| Arc::clone(&alike.agrees));
        if agrees.is_some_and(|agrees| agrees() != Agreement::Vouched) {
            self.update(|shared| shared.alike = None);
        }
    }

    /// The chunks of the body cannot be known. If nothing was given, it can be judged as if there were none to compare it with.
    pub(super) fn cannot_compare(&self) {
        self.update(|shared| {
            if shared.nothing_given() {
                shared.alike = None;
            }
        });
    }

    /// Compares the chunks that have arrived. After the first that differs, nothing more is given before the judgement.
    pub(super) fn compare(&self, arrived: &Chunking) {
        let mut shared = self.lock();
        let nothing_given = shared.nothing_given();
        let Some(alike) = shared.alike.as_mut().filter(|alike| !alike.differs) else { return };
        let new = arrived.ended.get(alike.same..).unwrap_or_default();
        let same = new.iter().zip(alike.body.chunks.get(alike.same..).unwrap_or_default());
        let same = same.take_while(|(one, other)| one == other).count();
        alike.differs = same < new.len();
        alike.same += same;
        if alike.differs {
            // This body may be the right one from now on.
            self.share.gaps().judged.forget(&alike.body);
            if nothing_given {
                // Then it can be judged.
                shared.alike = None;
            }
        }
        drop(shared);
        self.wake();
    }

    /// The digests of the chunks of the body, which has arrived.
    pub(super) fn chunked(&self, arrived: Chunking) {
        self.lock().chunks = Some(arrived.ended);
    }

    /// The body was only judged, and a promise vouches for it: the next one may be given as far as it is the same.
    pub fn remember_judged(&self, digests: &Digests, size: u64) {
        let Some(chunks) = self.lock().chunks.take() else { return };
        let digests = digests.iter().copied().collect();
        let body = JudgedBody { size, digests, chunks };
        self.share.gaps().judged.put(self.target.file_key(), body);
    }
}

impl Shared {
    /// Up to where the body is known to be the same as one that was judged right; 0 if it is compared with none.
    pub(super) fn alike_to(&self) -> u64 {
        self.alike.as_ref().map_or(0, Alike::end)
    }
}
