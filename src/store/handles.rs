//! Segments of claims that stay open for the next look-up. A cache of `moka` would close a file some time after it was told
//! to, and a descriptor is to be free at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::hold;
use super::segment::Segment;
use crate::limits::PLACES;

/// Memory for the fences of open segments, with [`WEIGHT`] for each: a few hundred files open at most.
const MAX_FENCES: usize = 16 << 20;
const WEIGHT: usize = 64 << 10;

/// The segments that were opened last, with the numbers of their sets, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<VecDeque<(u64, Arc<Segment>)>>);

impl Handles {
    /// Keeps one open; those that were opened before all others make way.
    pub(super) fn keep(&self, number: u64, segment: &Arc<Segment>) {
        // They live from the reserve of descriptors, and not all of it is theirs.
        let limit = MAX_FENCES.min(PLACES.reserve / 2 * WEIGHT);
        let mut gone = Vec::new();
        let mut open = hold(&self.0);
        open.push_back((number, Arc::clone(segment)));
        let mut weight: usize = open.iter().map(|(_, segment)| segment.weight() + WEIGHT).sum();
        while weight > limit
            && let Some((number, segment)) = open.pop_front()
        {
            weight -= segment.weight() + WEIGHT;
            gone.push((number, segment));
        }
        drop(open);
        drop(gone);
    }

    /// Closes the segment of one set.
    pub(super) fn close(&self, number: u64) {
        hold(&self.0).retain(|(kept, _)| *kept != number);
    }

    /// Closes all of them; who reads one keeps it.
    pub(super) fn close_all(&self) {
        hold(&self.0).clear();
    }
}
