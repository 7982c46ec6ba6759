//! Keeps segments of claims open for the next look-up. A `moka` cache would close an evicted file some time later, but
//! the file descriptor must be free at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::hold;
use super::segment::Segment;
use crate::limits::PLACES;

/// Maximum memory for the fences of open segments, where each open segment counts [`WEIGHT`] extra: a few hundred open
/// files at most.
const MAX_FENCES: usize = 16 << 20;
const WEIGHT: usize = 64 << 10;

/// The most recently opened segments with the numbers of their sets, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<VecDeque<(u64, Arc<Segment>)>>);

impl Handles {
    /// Keeps one segment open, and closes those opened longest ago when the limit is exceeded.
    pub(super) fn keep(&self, number: u64, segment: &Arc<Segment>) {
        // These descriptors come from the process's reserve, of which they may use half.
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

    /// Closes all of them. A lookup that reads one keeps it open until it is done.
    pub(super) fn close_all(&self) {
        hold(&self.0).clear();
    }
}
