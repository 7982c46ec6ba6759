//! Ranges that are given beside a fill: far ahead of it, by a request of their own.
//!
//! An origin may answer such a request with other bytes than the whole body has in that place. So the bytes that are given of a
//! range are hashed, and the gap of the target opens only when the verified body has the same bytes there (promise P3):
//!
//! ```text
//! granted ─▶ answered ─▶ given, hashed ─▶ … ─▶ closed, when the body is judged ─▶ compared with the body
//!                                     └── what is missing of the range comes from the verified body
//! ```

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Answered, Flight, Hold, Shared};
use crate::digest::{Algorithms, Digest, Hashing};
use crate::store::hash_range;

/// The most ranges beside one fill. Clients that open more connections for one file wait for the fill.
const MAX_BESIDES: usize = 32;

/// A range that is given beside the fill.
#[derive(Debug)]
pub struct Beside {
    start: u64,
    end: u64,
    /// What was given; `None` once it is being compared.
    given: Mutex<Option<(Hashing, u64)>>,
}

/// What was given of a range.
#[derive(Debug)]
pub struct GivenRange {
    /// Its first byte, counted from the start of the body.
    pub start: u64,
    /// How many bytes were given.
    pub length: u64,
    digests: Vec<Digest>,
}

impl Beside {
    fn new(start: u64, end: u64) -> Self {
        let hashing = Hashing::new(Algorithms::default());
        Self { start, end, given: Mutex::new(Some((hashing, 0))) }
    }

    /// Notes that these bytes, which follow those before, are given now. `false`: they must not be given, because the body is
    /// being judged.
    pub fn give(&self, bytes: &[u8]) -> bool {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((hashing, length)) = given.as_mut() else { return false };
        hashing.update(bytes);
        *length += bytes.len() as u64;
        true
    }

    fn has_given(&self) -> bool {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.as_ref().is_none_or(|(_, length)| *length > 0)
    }

    /// Ends the range. Returns what was given; `None` if that is nothing, or if it was closed before.
    fn close(&self) -> Option<GivenRange> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (hashing, length) = given.filter(|(_, length)| *length > 0)?;
        let digests = hashing.finish().iter().copied().collect();
        Some(GivenRange { start: self.start, length, digests })
    }
}

impl GivenRange {
    /// Whether a body has these bytes at this place. Blocking.
    pub fn agrees_with(&self, body: &File) -> io::Result<bool> {
        let mut hashing = Hashing::new(Algorithms::default());
        let end = self.start.saturating_add(self.length);
        match hash_range(&mut hashing, body, self.start, end) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            hashed => hashed?,
        }
        let digests = hashing.finish();
        Ok(digests.iter().all(|digest| self.digests.contains(digest)))
    }
}

impl Flight {
    /// Allows a range to be fetched beside the fill, if it does not overlap the gap; moves the gap if that is possible. Refuses if
    /// the body of `answered` was started over meanwhile, or if the body is not in a file, so that it cannot be compared with the
    /// range afterwards. Nothing of it may be given before [`Self::begin_beside`].
    pub async fn grant_beside(
        &self,
        answered: &Arc<Answered>,
        start: u64,
        end: u64,
    ) -> Option<Arc<Beside>> {
        self.bind_before_reading().await;
        self.make_way(start, end).await;
        let mut shared = self.lock();
        let may = shared.may_have_besides(answered) && self.may_give(&shared, start, end, false);
        let besides = shared.besides.as_mut().filter(|_| may)?;
        // Of the others nothing was given, and their clients have left or read from the fill.
        besides.retain(|one| Arc::strong_count(one) > 1 || one.has_given());
        let overlaps = |other: &Arc<Beside>| start < other.end && other.start < end;
        if besides.len() >= MAX_BESIDES || besides.iter().any(overlaps) {
            return None;
        }
        let beside = Arc::new(Beside::new(start, end));
        besides.push(Arc::clone(&beside));
        Some(beside)
    }

    /// The origin has answered with the range, which is given from now on. `false`: it may not be given any more.
    pub async fn begin_beside(&self, answered: &Arc<Answered>, beside: &Arc<Beside>) -> bool {
        self.bind_before_reading().await;
        let mut shared = self.lock();
        let (start, end) = (beside.start, beside.end);
        let known = |besides: &Vec<Arc<Beside>>| besides.iter().any(|one| Arc::ptr_eq(one, beside));
        let may = shared.may_have_besides(answered)
            && shared.besides.as_ref().is_some_and(known)
            && self.may_give(&shared, start, end, true);
        if may {
            shared.holding.gave = true;
            let _open = self.note_range(&shared, start, end);
        }
        may
    }

    /// Whether all of the bytes from `start` to before `end` may be given now; if `gives`, they count as given.
    fn may_give(&self, shared: &Shared, start: u64, end: u64, gives: bool) -> bool {
        let (back, hold) = (shared.holding.held, shared.holding.hold);
        self.share.with(|gap| {
            let limit = match hold {
                _ if gap.is_suspect() => start,
                _ if !back => end,
                Hold::Gap => gap.limit(start, end, u64::MAX),
                Hold::Whole => start,
            };
            if gives && limit == end {
                gap.note(start, end);
                if !back && hold == Hold::Whole {
                    gap.spend();
                }
            }
            limit == end
        })
    }

    /// The body is being judged: no range may be given beside it any more. Returns what was given of each.
    pub fn close_besides(&self) -> Vec<GivenRange> {
        let besides = self.lock().besides.take().unwrap_or_default();
        besides.iter().filter_map(|beside| beside.close()).collect()
    }
}

impl Shared {
    /// Whether ranges may be given beside the body, which must be that of `answered` and in a file.
    fn may_have_besides(&self, answered: &Arc<Answered>) -> bool {
        let present = self.answered.as_ref();
        self.is_unjudged()
            && self.file.is_some()
            && self.filed == self.have
            && present.is_some_and(|present| Arc::ptr_eq(present, answered))
    }
}
