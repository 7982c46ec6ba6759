//! Promise P3 while bytes are still arriving: the gap, the withheld tail of a body.
//!
//! Clients want bytes as they arrive, and a body can be judged only when it is complete. So of each target that a promise binds,
//! 64 KiB are withheld until the judgement, from every client, on every connection and for every range:
//!
//! ```text
//!  0                                              length-64K      length
//!  ├──────────── given as it arrives ────────────────┤▒▒▒▒ gap ▒▒▒▒┤
//!
//!  a client needs the end first (a zip's directory); nothing below it was given yet, so the gap moves, once:
//!  ├──────────── given ──────────┤▒▒▒▒ gap ▒▒▒▒├── the range ──────┤
//! ```
//!
//! Clients resume by themselves after a broken transfer: with ranges, from another address, with another credential. So the gap
//! belongs to the target, not to a connection or a flight. All flights and passes of a target share it (`share.rs`), also later
//! ones, until a body was verified. A body that cannot share it is held back whole: one whose length differs from that of the
//! body whose bytes were given, and every body of a target that was refused.

use crate::store::{Delivered, Row};

/// How much is withheld until the judgement, in bytes: so much that no archive format can do without it, and so little that a
/// client hardly notices the wait.
pub const GAP: u64 = 64 * 1024;

/// Bodies of up to this many bytes are held back whole: they arrive at once anyway.
pub const HELD_WHOLE: u64 = 256 * 1024;

/// The most separate spans that are recorded as given. A client that needs more requests tiny ranges; then the gap no longer
/// moves.
const MAX_SPANS: usize = 1024;

/// How a body is held back until it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Everything except the gap of its target is given.
    Gap,
    /// Nothing is given.
    Whole,
}

/// The length of the body whose bytes are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Length {
    /// There is no body yet.
    #[default]
    NoBody,
    /// The origin did not announce it.
    Unknown,
    /// So many bytes.
    Known(u64),
}

impl Length {
    pub(super) fn of(announced: Option<u64>) -> Self {
        announced.map_or(Self::Unknown, Self::Known)
    }

    fn known(self) -> Option<u64> {
        match self {
            Self::Known(length) => Some(length),
            Self::NoBody | Self::Unknown => None,
        }
    }
}

/// What all requests together were given of a target's bodies, and what is withheld.
#[derive(Debug, Default)]
pub(super) struct Gap {
    /// The length of the body whose bytes are given.
    body: Length,
    /// Where the gap begins, once it has moved.
    moved_to: Option<u64>,
    /// Where the gap moves once that is recorded. Until then both places are withheld.
    moves_to: Option<u64>,
    /// Whether the gap can no longer move.
    fixed: bool,
    /// Whether a body of the target was refused, and none was verified since.
    suspect: bool,
    /// What was given: sorted, disjoint spans `(first, just after last)`.
    given: Vec<(u64, u64)>,
    /// Whether more was given than is recorded there.
    overflowed: bool,
}

impl Gap {
    /// The gap of a target with this record: everything except the gap counts as given, so the gap stays where it is.
    pub(super) fn noted(row: Row) -> Self {
        let moved_to = row.length.map(|length| row.gap.min(own_start(length)));
        Self {
            body: Length::of(row.length),
            moved_to,
            moves_to: None,
            fixed: true,
            suspect: row.state == Delivered::Suspect,
            given: Vec::new(),
            overflowed: row.state == Delivered::Spent,
        }
    }

    /// The length of the body whose bytes are given; `None` if it is unknown.
    pub(super) fn length(&self) -> Option<u64> {
        self.body.known()
    }

    /// How a body is held back; `length` is its announced length. Two lengths mean two bodies, whose gaps lie in two places. Of
    /// two bodies of unknown length one may be the beginning of the other.
    pub(super) fn hold(&mut self, length: Option<u64>) -> Hold {
        match (self.body, length) {
            _ if self.suspect => Hold::Whole,
            (Length::NoBody, _) => {
                self.body = Length::of(length);
                Hold::Gap
            }
            (Length::Known(known), Some(length)) if known == length => Hold::Gap,
            (Length::Known(_) | Length::Unknown, _) => Hold::Whole,
        }
    }

    /// If the body that began gave no byte, the length of the body that begins in its place counts.
    pub(super) fn begin_anew(&mut self) {
        if self.given.is_empty() && !self.fixed {
            (self.body, self.moved_to, self.moves_to) = (Length::NoBody, None, None);
        }
    }

    /// A body was refused: until one is verified, nothing is given before its judgement.
    pub(super) fn suspect(&mut self) {
        self.suspect = true;
    }

    /// Whether a body was refused, and none was verified since.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// A body was verified. What other bodies gave, and are still giving, stays recorded.
    pub(super) fn trust(&mut self) {
        self.suspect = false;
    }

    /// Where the gap begins.
    pub(super) fn start(&self) -> u64 {
        self.moved_to.unwrap_or_else(|| self.body.known().map_or(0, own_start))
    }

    /// Where the gap begins, or will begin once its move is recorded. A record says this, so that one that is written meanwhile
    /// agrees with the move.
    pub(super) fn next_start(&self) -> u64 {
        self.moves_to.unwrap_or_else(|| self.start())
    }

    /// Up to where a reader at `at`, which wants the bytes before `end`, may be given bytes when `have` have arrived; `at` if it
    /// may be given none now. Once a body of the target was refused, other bodies that are arriving give nothing more.
    pub(super) fn limit(&self, at: u64, end: u64, have: u64) -> u64 {
        if self.suspect {
            return at;
        }
        let place = match (self.body.known(), self.moved_to) {
            (_, Some(start)) => (start, start.saturating_add(GAP)),
            (Some(length), None) => (own_start(length), u64::MAX),
            // While the length is unknown, the last 64 KiB so far are withheld; once more bytes follow, they may be given.
            (None, None) => (own_start(have), u64::MAX),
        };
        let next = self.moves_to.map(|start| (start, start.saturating_add(GAP)));
        let limit = end.min(have).max(at);
        [Some(place), next].into_iter().flatten().fold(limit, |limit, (start, stop)| {
            if at < start {
                limit.min(start)
            } else if at >= stop {
                limit
            } else {
                at
            }
        })
    }

    /// Where the gap would move for a client that requests the bytes from `start` to before `end`; `None` if it stays. It moves
    /// only for a request that needs the end and begins in the second half. A client that resumes near the beginning is given
    /// bytes up to the gap where it is; a gap near the beginning would make all other clients wait for the last byte. Of a suspect
    /// target nothing is given, so no gap makes way.
    pub(super) fn way_for(&self, start: u64, end: u64) -> Option<u64> {
        let length = self.body.known().filter(|length| *length > HELD_WHOLE)?;
        let moves = self.moved_to.or(self.moves_to).is_some();
        let movable = !self.suspect && !self.fixed && !moves && self.given.len() < MAX_SPANS;
        if !movable || end <= own_start(length) || start >= length || start < length / 2 {
            return None;
        }
        let below = start.checked_sub(GAP)?;
        (!self.was_given(below, start)).then_some(below)
    }

    /// Withholds the place where the gap moves, beside the place where it is, until [`Self::settle`].
    pub(super) fn reserve(&mut self, place: u64) {
        self.moves_to = Some(place);
    }

    /// Moves the gap, if its next place is `recorded` and nothing there was given meanwhile; returns whether it moved.
    pub(super) fn settle(&mut self, recorded: bool) -> bool {
        let Some(place) = self.moves_to.take().filter(|_| recorded) else { return false };
        let clear = !self.was_given(place, place.saturating_add(GAP));
        if clear {
            self.moved_to = Some(place);
        }
        clear
    }

    /// Whether bytes of the gap were given, or may have been, to requests that no promise bound: then the gap withholds nothing.
    /// The gap of a body of unknown length is its last 64 KiB, and all other bodies of the target are held back whole beside it;
    /// so no byte that was given of it was in the gap. Only a body that no promise bound may have given its end beside it.
    pub(super) fn is_spent(&self) -> bool {
        let start = self.start();
        let given = self.overflowed || self.was_given(start, start.saturating_add(GAP));
        if self.body.known().is_some() { given } else { self.overflowed }
    }

    /// Notes that the bytes from `start` to before `end` were given.
    pub(super) fn note(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if self.given.len() >= MAX_SPANS {
            // From here on it is unknown what was given, so the gap cannot move any more. Where it lies is known.
            let gap = self.start();
            self.fixed = true;
            self.overflowed |=
                self.body.known().is_none() || (start < gap.saturating_add(GAP) && gap < end);
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

    /// Notes that the gap does not withhold what every client lacks: it is unknown where bytes were given; or they were given, to
    /// a request that no promise bound, of a body with another length, which ends elsewhere; or of the end alone.
    pub(super) fn spend(&mut self) {
        (self.fixed, self.overflowed) = (true, true);
    }

    /// Notes that bytes of a part were given to a request that no promise bound: of unknown length, these may have been in the
    /// gap.
    pub(super) fn note_part(&mut self) {
        self.overflowed |= self.body.known().is_none();
    }

    /// Whether any byte was given.
    pub(super) fn has_given(&self) -> bool {
        self.overflowed || !self.given.is_empty()
    }

    /// Whether what was given must be remembered when no body arrives. A body of up to [`HELD_WHOLE`] bytes is held back whole
    /// as soon as a promise binds it.
    pub(super) fn is_worth_a_note(&self) -> bool {
        // The bytes may be those of a longer body, given beside this one.
        let to = self.given.last().map_or(0, |span| span.1);
        let length = self.body.known().unwrap_or_default().max(to);
        self.has_given() && (self.overflowed || length > HELD_WHOLE)
    }

    fn was_given(&self, start: u64, end: u64) -> bool {
        self.given.iter().any(|span| span.0 < end && start < span.1)
    }
}

/// Where the gap begins in a body of `length` bytes if it has not moved.
pub(super) const fn own_start(length: u64) -> u64 {
    if length <= HELD_WHOLE { 0 } else { length - GAP }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Time;

    const MIB: u64 = 1 << 20;

    fn gap(length: Option<u64>) -> Gap {
        let mut gap = Gap::default();
        assert_eq!(gap.hold(length), Hold::Gap);
        gap
    }

    /// Acts like a reader: asks to move the gap, takes what it may have, and records it.
    fn take(gap: &mut Gap, start: u64, end: u64, have: u64) -> u64 {
        if let Some(place) = gap.way_for(start, end) {
            gap.reserve(place);
            assert!(gap.settle(true));
        }
        let limit = gap.limit(start, end, have);
        gap.note(start, limit);
        limit
    }

    #[test]
    fn the_end_is_kept_back_and_small_bodies_whole() {
        let large = gap(Some(MIB));
        assert_eq!(large.limit(0, MIB, MIB), MIB - GAP);
        assert_eq!(large.limit(MIB - 1, MIB, MIB), MIB - 1);
        assert_eq!(gap(Some(HELD_WHOLE)).limit(0, HELD_WHOLE, HELD_WHOLE), 0);
        assert_eq!(gap(Some(HELD_WHOLE + 1)).limit(0, MIB, MIB), HELD_WHOLE + 1 - GAP);
    }

    #[test]
    fn of_unknown_length_the_last_bytes_so_far_are_kept_back() {
        let gap = gap(None);
        assert_eq!(gap.limit(0, u64::MAX, HELD_WHOLE), 0);
        assert_eq!(gap.limit(0, u64::MAX, MIB), MIB - GAP);
    }

    #[test]
    fn it_moves_once_below_a_range_at_the_end_and_only_where_nothing_was_given() {
        let mut moving = gap(Some(MIB));
        assert_eq!(moving.way_for(MIB / 2, MIB - GAP), None, "the end is not needed");
        assert_eq!(moving.way_for(MIB / 4, MIB), None, "that range has its beginning");
        assert_eq!(take(&mut moving, MIB - 100, MIB, MIB), MIB);
        assert_eq!(moving.limit(0, MIB, MIB), MIB - 100 - GAP);
        assert_eq!(moving.way_for(MIB / 2, MIB), None, "not twice");

        let mut given = gap(Some(MIB));
        given.note(0, MIB - GAP);
        assert_eq!(given.way_for(MIB - 100, MIB), None, "below it was given already");
        assert_eq!(take(&mut given, MIB - 100, MIB, MIB), MIB - 100);
    }

    #[test]
    fn what_was_noted_keeps_its_place_and_another_length_is_held_whole() {
        let row = |length, gap, suspect| {
            let state = if suspect { Delivered::Suspect } else { Delivered::Given };
            Gap::noted(Row { length, gap, state, since: Time::from_millis(0) })
        };
        let mut again = row(Some(MIB), MIB / 2, false);
        assert_eq!(again.hold(Some(MIB)), Hold::Gap);
        assert_eq!(again.limit(0, MIB, MIB), MIB / 2);
        assert_eq!(again.limit(MIB / 2 + GAP, MIB, MIB), MIB);
        assert_eq!(again.way_for(MIB - 100, MIB), None);
        for length in [Some(MIB + 1), None] {
            assert_eq!(again.hold(length), Hold::Whole, "{length:?}");
        }
        assert_eq!(row(None, 0, false).hold(None), Hold::Whole, "one may begin the other");
        assert_eq!(row(Some(MIB), MIB - GAP, true).hold(Some(MIB)), Hold::Whole, "suspect");
    }

    #[test]
    fn what_could_not_be_noted_may_have_spent_the_gap() {
        let crumbs = |count: u64| {
            let mut gap = gap(Some(MIB));
            for number in 0..count {
                gap.note(2 * number, 2 * number + 1);
            }
            gap
        };
        let mut many = crumbs(MAX_SPANS as u64);
        assert!(!many.is_spent(), "the control");
        many.note(MIB / 2, MIB - GAP);
        assert!(!many.is_spent(), "nothing of the gap");
        assert_eq!(many.way_for(MIB - 100, MIB), None, "it is unknown what was given below");
        many.note(MIB - 10, MIB);
        assert!(many.is_spent());
    }

    #[test]
    fn of_unknown_length_nothing_that_was_given_was_in_the_gap() {
        let mut gap = gap(None);
        gap.note(0, MIB);
        assert!(!gap.is_spent());
        assert_eq!(gap.hold(Some(MIB)), Hold::Whole, "all other bodies are held back whole");
        // A range that no promise bound gave the end meanwhile.
        gap.note_part();
        assert!(gap.is_spent());
    }

    #[test]
    fn what_no_promise_bound_is_remembered_with_its_gap() {
        let noted = |state| {
            let since = Time::from_millis(0);
            Gap::noted(Row { length: Some(MIB), gap: MIB - GAP, state, since })
        };
        for spent in [false, true] {
            let mut gap = noted(if spent { Delivered::Spent } else { Delivered::Unbound });
            gap.begin_anew();
            assert_eq!(gap.hold(Some(MIB)), Hold::Gap);
            assert_eq!((gap.is_spent(), gap.is_suspect()), (spent, false));
            assert_eq!(gap.way_for(MIB - 100, MIB), None);
            assert_eq!(gap.limit(MIB - 100, MIB, MIB), MIB - 100);
            for other in [Some(MIB + 1), None] {
                assert_eq!(gap.hold(other), Hold::Whole, "{other:?}");
            }
        }
    }

    #[test]
    fn only_large_bodies_are_worth_a_note() {
        for (length, to, noted) in [
            (Some(HELD_WHOLE), HELD_WHOLE, false),
            (Some(HELD_WHOLE + 1), 1, true),
            (Some(HELD_WHOLE + 1), 0, false),
            (None, HELD_WHOLE, false),
            (None, HELD_WHOLE + 1, true),
        ] {
            let mut gap = gap(length);
            gap.note(0, to);
            assert_eq!(gap.is_worth_a_note(), noted, "{length:?} {to}");
        }
    }

    #[test]
    fn bytes_that_went_before_a_promise_came_spend_the_gap() {
        let mut gap = gap(Some(MIB));
        gap.note(0, MIB / 2);
        assert!(!gap.is_spent(), "the control: there is none of it");
        gap.note(MIB - 1, MIB);
        assert!(gap.is_spent());
    }

    proptest! {
        /// Whatever is requested, in whatever order, by flights and passes of one target, broken off and started again, also
        /// after a restart: at least one gap's worth of the body was given to no client.
        #[test]
        fn nobody_together_gets_the_whole(
            length in 1..(2 * MIB),
            known in any::<bool>(),
            asks in prop::collection::vec((0..2 * MIB, 1..2 * MIB, 0..2 * MIB, 0..12_u8), 1..200),
        ) {
            let mut shared = gap(known.then_some(length));
            let mut have = 0;
            let mut missing = vec![true; usize::try_from(length.div_ceil(1024)).unwrap()];
            for (start, len, arrived, event) in asks {
                match event {
                    // A body that broke, and another of the same target, perhaps with another length.
                    0 => {
                        have = 0;
                        let other = (arrived % 2 == 0).then_some(length + arrived % 3);
                        if shared.hold(other) == Hold::Whole { continue; }
                        prop_assert_eq!(other, Some(length));
                    }
                    // A restart.
                    1 if known => {
                        let gap = shared.start();
                        let since = Time::from_millis(0);
                        let state = Delivered::Given;
                        shared = Gap::noted(Row { length: Some(length), gap, state, since });
                    }
                    _ => {}
                }
                have = have.max(arrived.min(length));
                let end = (start + len).min(length);
                if start >= end { continue; }
                let limit = take(&mut shared, start, end, have);
                prop_assert!(limit >= start && limit <= end.max(start));
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
