//! Promise P3 while bytes are still arriving: the gap.
//!
//! Clients want bytes as they come, and a body can be judged only when all of it is there. So each flight whose body a
//! promise binds keeps back 64 KiB that nobody is given, on any connection and by any range, until the judgement:
//!
//! ```text
//!  0                                              length-64K      length
//!  ├──────────── given as it arrives ────────────────┤▒▒▒▒ gap ▒▒▒▒┤
//!
//!  a client needs the end first (a zip's directory); nothing below it was given yet, so the gap moves, once:
//!  ├──────────── given ──────────┤▒▒▒▒ gap ▒▒▒▒├── the range ──────┤
//! ```
//!
//! Clients resume by themselves after a cut, with ranges; that is why the gap is a property of the flight and not of a
//! connection, and why it is remembered when a body was refused (a second flight with another gap would complete the
//! first one's body). A reader whose client was given bytes around another gap, by an earlier body of the same target,
//! keeps to that one as well; who was not is held up by nobody else's past.

/// How much nobody is given before the judgement, in bytes. Enough that no archive format can do without it, little
/// enough that a client hardly notices the wait.
pub const GAP: u64 = 64 * 1024;

/// Bodies up to this many bytes are held whole: they come in one go anyhow.
pub const HELD_WHOLE: u64 = 256 * 1024;

/// A remembered gap that lies at the body's end, however long that is.
pub const AT_THE_END: u64 = u64::MAX;

/// The most separate spans that are remembered as given. More means somebody asks for crumbs; then the gap stays.
const MAX_SPANS: usize = 1024;

/// What of a flight's body may be given before it is judged.
#[derive(Debug, Default)]
pub struct Gap {
    binds: bool,
    length: Option<u64>,
    /// Where the gap begins, once it has moved.
    moved_to: Option<u64>,
    /// Whether it may still move.
    fixed: bool,
    /// What was given: sorted, disjoint, `(first, just after last)`.
    given: Vec<(u64, u64)>,
}

impl Gap {
    /// A gap for a body of `length` bytes, if known. `binds`: whether there is one at all. `remembered`: where it lay
    /// when a body of this target was refused; then it does not move.
    pub fn new(binds: bool, length: Option<u64>, remembered: Option<u64>) -> Self {
        let moved_to =
            remembered.filter(|start| length.is_some_and(|length| *start < own_start(length)));
        Self { binds, length, moved_to, fixed: remembered.is_some(), given: Vec::new() }
    }

    /// A promise came that binds, while the body was arriving.
    pub fn bind(&mut self) {
        self.binds = true;
    }

    /// Whether a promise binds.
    pub fn binds(&self) -> bool {
        self.binds
    }

    /// It stays where it is from now on.
    pub fn fix(&mut self) {
        self.fixed = true;
    }

    /// Whether it can move no more.
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Where the gap begins, to be remembered; while the length is unknown, [`AT_THE_END`].
    pub fn start(&self) -> u64 {
        self.moved_to.unwrap_or_else(|| self.length.map_or(AT_THE_END, own_start))
    }

    /// Whether any byte was given.
    pub fn nothing_given(&self) -> bool {
        self.given.is_empty()
    }

    /// Up to where a reader at `at`, who wants the bytes before `end`, may be given bytes when `have` have arrived;
    /// `at` itself if none now.
    pub fn limit(&self, at: u64, end: u64, have: u64) -> u64 {
        let limit = end.min(have).max(at);
        if !self.binds {
            return limit;
        }
        let (start, stop) = match (self.length, self.moved_to) {
            (_, Some(start)) => (start, start.saturating_add(GAP)),
            (Some(length), None) => (own_start(length), u64::MAX),
            // While the length is unknown, the last 64 KiB so far; once they are followed by more they may go.
            (None, None) => (own_start(have), u64::MAX),
        };
        if at < start {
            limit.min(start)
        } else if at >= stop {
            limit
        } else {
            at
        }
    }

    /// The same for a reader who was given bytes around another gap before: it keeps to both.
    pub fn limit_for(&self, own: Option<u64>, at: u64, end: u64, have: u64) -> u64 {
        let limit = self.limit(at, end, have);
        let own = own.map(|start| Self::new(self.binds, self.length, Some(start)));
        own.map_or(limit, |own| limit.min(own.limit(at, end, have)))
    }

    /// Somebody asks for the bytes from `start` to before `end`: if those need bytes of the gap, moves it below them where
    /// that is still possible.
    pub fn make_way(&mut self, start: u64, end: u64) {
        let Some(length) = self.length else { return };
        if !self.binds || self.fixed || self.moved_to.is_some() || length <= HELD_WHOLE {
            return;
        }
        if end <= own_start(length) {
            return;
        }
        let Some(below) = start.checked_sub(GAP) else {
            return;
        };
        if start >= length || self.was_given(below, start) || self.given.len() >= MAX_SPANS {
            return;
        }
        self.moved_to = Some(below);
    }

    /// Notes that the bytes from `start` to before `end` were given.
    pub fn note(&mut self, start: u64, end: u64) {
        if start >= end || self.given.len() >= MAX_SPANS {
            return;
        }
        let from = self.given.partition_point(|span| span.1 < start);
        let to = self.given.partition_point(|span| span.0 <= end);
        let merged = self
            .given
            .get(from..to)
            .unwrap_or_default()
            .iter()
            .fold((start, end), |all, span| (all.0.min(span.0), all.1.max(span.1)));
        self.given.splice(from..to.max(from), [merged]);
    }

    fn was_given(&self, start: u64, end: u64) -> bool {
        self.given.iter().any(|span| span.0 < end && start < span.1)
    }
}

/// Where the gap begins in a body of `length` bytes while it has not moved.
pub const fn own_start(length: u64) -> u64 {
    if length <= HELD_WHOLE { 0 } else { length - GAP }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_end_is_kept_back_and_small_bodies_whole() {
        let gap = Gap::new(true, Some(MIB), None);
        assert_eq!(gap.limit(0, MIB, MIB), MIB - GAP);
        assert_eq!(gap.limit(MIB - 1, MIB, MIB), MIB - 1);
        assert_eq!(Gap::new(true, Some(HELD_WHOLE), None).limit(0, HELD_WHOLE, HELD_WHOLE), 0);
        assert_eq!(
            Gap::new(false, Some(MIB), None).limit(0, MIB, MIB),
            MIB,
            "control: no promise, no gap"
        );
    }

    #[test]
    fn of_unknown_length_the_last_bytes_so_far_are_kept_back() {
        let gap = Gap::new(true, None, None);
        assert_eq!(gap.limit(0, u64::MAX, HELD_WHOLE), 0);
        assert_eq!(gap.limit(0, u64::MAX, MIB), MIB - GAP);
    }

    #[test]
    fn it_moves_once_below_a_range_at_the_end_and_only_where_nothing_was_given() {
        let mut gap = Gap::new(true, Some(MIB), None);
        gap.make_way(MIB / 2, MIB - GAP);
        assert_eq!(gap.limit(0, MIB, MIB), MIB - GAP, "not needed, not moved");
        gap.make_way(MIB - 100, MIB);
        assert_eq!(gap.limit(MIB - 100, MIB, MIB), MIB);
        assert_eq!(gap.limit(0, MIB, MIB), MIB - 100 - GAP);
        gap.make_way(MIB / 2, MIB);
        assert_eq!(gap.limit(0, MIB, MIB), MIB - 100 - GAP, "not twice");

        let mut gap = Gap::new(true, Some(MIB), None);
        gap.note(0, MIB - GAP);
        gap.make_way(MIB - 100, MIB);
        assert_eq!(gap.limit(MIB - 100, MIB, MIB), MIB - 100, "below it was given already");
    }

    #[test]
    fn a_refused_body_leaves_its_gap_to_the_next_flight() {
        let mut first = Gap::new(true, Some(MIB), None);
        first.make_way(MIB - 100, MIB);
        let mut second = Gap::new(true, Some(MIB), Some(first.start()));
        second.make_way(MIB / 2, MIB);
        assert_eq!(second.limit(0, MIB, MIB), MIB - 100 - GAP);
        assert_eq!(second.start(), first.start());
        let unknown = Gap::new(true, None, None).start();
        let mut third = Gap::new(true, Some(MIB), Some(unknown));
        third.make_way(MIB - 100, MIB);
        assert_eq!(third.limit(0, MIB, MIB), MIB - GAP, "the end, and no other place");
    }

    #[test]
    fn who_was_given_bytes_around_another_gap_keeps_to_both() {
        let mut gap = Gap::new(true, Some(MIB), None);
        let own = Some(MIB / 2);
        assert_eq!(gap.limit_for(own, 0, MIB, MIB), MIB / 2);
        assert_eq!(gap.limit_for(own, MIB / 2 + GAP, MIB, MIB), MIB - GAP);
        assert_eq!(gap.limit_for(None, 0, MIB, MIB), MIB - GAP, "the control: anybody else");
        gap.make_way(MIB - 100, MIB);
        assert_eq!(gap.limit_for(Some(AT_THE_END), MIB - 100, MIB, MIB), MIB - 100);
        assert_eq!(gap.limit_for(None, MIB - 100, MIB, MIB), MIB, "the control: anybody else");
    }

    proptest! {
        /// Whatever readers ask, in whatever order, at least one gap's worth of the body has been given to nobody.
        #[test]
        fn nobody_together_gets_the_whole(
            length in 1..(2 * MIB),
            known in any::<bool>(),
            asks in prop::collection::vec((0..2 * MIB, 1..2 * MIB, 0..2 * MIB), 1..200),
        ) {
            let mut gap = Gap::new(true, known.then_some(length), None);
            let mut have = 0;
            let mut missing: Vec<bool> = vec![true; usize::try_from(length.div_ceil(1024)).unwrap()];
            for (start, len, arrived) in asks {
                have = have.max(arrived.min(length));
                let end = (start + len).min(length);
                if start >= end { continue; }
                gap.make_way(start, end);
                let limit = gap.limit(start, end, have);
                prop_assert!(limit >= start && limit <= end.max(start));
                gap.note(start, limit);
                if limit == start { continue; }
                for block in start / 1024..limit.div_ceil(1024) {
                    missing[usize::try_from(block).unwrap()] = false;
                }
            }
            let kept = missing.iter().filter(|m| **m).count() as u64 * 1024;
            prop_assert!(kept + 2 * 1024 >= GAP.min(length), "only {kept} of {length} kept back");
        }
    }
}
