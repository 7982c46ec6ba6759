//! What all clients together are given of one target's bodies when promises come and go (issue 10, rows 1 to 3, and promise P3).
//!
//! The model has bodies that no promise ever vouches for, in blocks of 16 KiB: passes, parts, stored bodies and fills, of several
//! lengths, for three clients. It holds larder to one rule. Once a promise has come, what a client had before and everything that
//! anybody is given from then on are together no whole body, unless the client had all of it before.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::gap::{Hold, own_start};
use super::intake::Binding;
use super::late::{Late, Place};
use super::share::{Gaps, Share, Verdict};
use super::{GAP, HELD_WHOLE};
use crate::clock::Clock;
use crate::store::{Delivered, Unverified};
use crate::target::Target;

const BLOCK: u64 = 16 << 10;
/// The lengths of the large bodies, in blocks.
const LENGTHS: [u64; 3] = [64, 48, 68];
const CLIENTS: usize = 3;
const MIB: u64 = 1 << 20;

/// Blocks of a body; bit n is block n.
type Blocks = u128;

fn blocks(start: u64, end: u64) -> Blocks {
    (start..end).fold(0, |all, block| all | 1 << block)
}

/// How the bytes go to a client.
enum Way {
    /// An answer that is passed on, or a stored body: with the first block of the answer, and whether larder knows where it is.
    Late(Late, u64),
    Stored(Late),
    Fill {
        share: Share,
        hold: Hold,
        back: bool,
        binds: bool,
        have: u64,
    },
}

struct Transfer {
    way: Way,
    client: usize,
    /// The length of the body, in blocks.
    length: u64,
    /// Whether the origin announces it.
    announced: bool,
    /// What was given before the promise, and after it.
    before: Blocks,
    after: Blocks,
    /// The offset of the next block.
    at: u64,
    end: u64,
}

struct Model {
    data: tempfile::TempDir,
    file: usize,
    clock: Clock,
    gaps: Arc<Gaps>,
    target: Target,
    promised: bool,
    transfers: Vec<Transfer>,
    /// What each client has of the bodies of each length.
    have: [[Blocks; LENGTHS.len()]; CLIENTS],
    /// What it had when the promise came.
    base: [[Blocks; LENGTHS.len()]; CLIENTS],
    /// What anybody was given since.
    after: Blocks,
    gave_at: crate::clock::Time,
}

impl Model {
    fn new() -> Self {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let gaps = gaps(&data, 0, &clock);
        let target = Target::from_url("https://example.org/a").unwrap();
        let (have, gave_at) = (Default::default(), clock.now());
        Self {
            data,
            file: 0,
            clock,
            gaps,
            target,
            promised: false,
            transfers: Vec::new(),
            have,
            base: have,
            after: 0,
            gave_at,
        }
    }

    fn promise(&mut self, promised: bool) {
        if self.promised == promised {
            return;
        }
        self.promised = promised;
        (self.base, self.after) = (self.have, 0);
        for transfer in &mut self.transfers {
            (transfer.before, transfer.after) = (transfer.before | transfer.after, 0);
        }
    }

    fn begin(&mut self, kind: u8, client: u8, length: u8, from: u8) {
        if self.transfers.len() >= 6 {
            return;
        }
        let (length, announced) = match length % 5 {
            3 => (8, true),
            4 => (LENGTHS[0], false),
            large => (LENGTHS[usize::from(large)], true),
        };
        let bytes = announced.then_some(length * BLOCK);
        let from = u64::from(from) % length;
        let (way, at) = match kind % 5 {
            // larder asks for the whole of what is promised, and holds it back as it does with a fill. A contradicted body is no
            // hit.
            0..=2 if self.promised => return,
            0 => (Way::Late(self.late(Some(0), bytes), 0), 0),
            1 => {
                let start = (from % 2 == 0).then_some(from * BLOCK);
                (Way::Late(self.late(start, Some(length * BLOCK)), from), from)
            }
            2 => (Way::Stored(self.late(Some(0), Some(length * BLOCK))), from / 2 * 2),
            _ => {
                let share = self.gaps.share(&self.target);
                let hold = share.begin(bytes, self.promised);
                let back = self.promised || share.is_suspect();
                let binds = self.promised;
                (Way::Fill { share, hold, back, binds, have: 0 }, 0)
            }
        };
        let client = usize::from(client) % CLIENTS;
        let (before, after, end) = (0, 0, length);
        self.transfers.push(Transfer { way, client, length, announced, before, after, at, end });
    }

    fn late(&self, start: Option<u64>, length: Option<u64>) -> Late {
        self.gaps.join_unbound(&self.target, Place { start, length })
    }

    /// Gives up to `count` blocks of a transfer; a reader of a fill begins at `from`.
    fn give(&mut self, which: u8, count: u8, from: u8) {
        if self.transfers.is_empty() {
            return;
        }
        let which = usize::from(which) % self.transfers.len();
        let (promised, suspect) = (self.promised, self.gaps.is_suspect(&self.target));
        let transfer = &mut self.transfers[which];
        let to = (transfer.at + 1 + u64::from(count) % 40).min(transfer.end);
        let (start, end) = match &mut transfer.way {
            Way::Stored(_) if promised => return self.end(which, 0),
            Way::Late(late, _) if promised && !late.binds() => {
                if suspect {
                    return self.end(which, 0);
                }
                late.bind(Binding::Yes);
                return;
            }
            Way::Late(late, first) => {
                let (at, end) = ((transfer.at - *first) * BLOCK, (to - *first) * BLOCK);
                (transfer.at, *first + late.give(at, end, end) / BLOCK)
            }
            Way::Stored(late) => {
                let end = late.give(transfer.at * BLOCK, to * BLOCK, to * BLOCK);
                (transfer.at, end / BLOCK)
            }
            Way::Fill { .. } => read(transfer, promised, count, from),
        };
        let given = blocks(start, end);
        transfer.at = transfer.at.max(end);
        if given == 0 {
            return;
        }
        self.gave_at = self.clock.now();
        if promised {
            transfer.after |= given;
            self.after |= given;
        } else {
            transfer.before |= given;
        }
    }

    /// Ends a transfer. Its client did not receive the last `lost` blocks.
    fn end(&mut self, which: usize, lost: u8) {
        let transfer = self.transfers.remove(which);
        self.receive(&transfer, lost);
        let promised = self.promised;
        let given = transfer.before | transfer.after;
        let complete = transfer.at >= transfer.end;
        match transfer.way {
            Way::Late(late, _) if given == 0 && !late.binds() => late.gave_nothing(),
            Way::Late(late, first) if !late.binds() && complete && first == 0 && !promised => {
                late.is_right(false);
            }
            Way::Late(late, _) if complete && late.binds() && promised => late.refuse(),
            Way::Late(late, _) => {
                late.broke_off(Arc::new(move || if promised { Binding::Yes } else { Binding::No }));
            }
            Way::Stored(late) if given == 0 => late.gave_nothing(),
            Way::Stored(late) if given == blocks(0, transfer.length) => late.is_right(false),
            Way::Stored(mut late) if promised => late.bind(Binding::Yes),
            Way::Stored(late) => drop(late),
            Way::Fill { share, hold, binds, .. } => {
                let announced = transfer.announced.then_some(transfer.length * BLOCK);
                let complete = lost.is_multiple_of(2);
                match (complete, promised) {
                    (true, false) => share.end(Verdict::Whole),
                    (true, true) if binds => {
                        share.refuse();
                        share.end(Verdict::Unverified);
                    }
                    _ if given == 0 => share.end(Verdict::Ungiven),
                    _ => {
                        if promised && !binds {
                            share.bind(announced, hold);
                        }
                        share.end(Verdict::Unverified);
                    }
                }
            }
        }
    }

    fn receive(&mut self, transfer: &Transfer, lost: u8) {
        let Some(length) = LENGTHS.iter().position(|length| *length == transfer.length) else {
            return;
        };
        let mut got = transfer.before | transfer.after;
        for _ in 0..lost % 6 {
            got &= !(1_u128.checked_shl(127 - got.leading_zeros().min(127)).unwrap_or(0));
        }
        self.have[transfer.client][length] |= got;
        self.base[transfer.client][length] |= got & transfer.before;
    }

    fn restart(&mut self, killed: bool, lost: u8) {
        if killed {
            for transfer in std::mem::take(&mut self.transfers) {
                self.receive(&transfer, lost);
                std::mem::forget(transfer.way);
            }
        } else {
            while !self.transfers.is_empty() {
                self.end(0, lost);
            }
        }
        let path = |number| self.data.path().join(format!("u{number}"));
        std::fs::copy(path(self.file), path(self.file + 1)).unwrap();
        self.file += 1;
        self.gaps = gaps(&self.data, self.file, &self.clock);
    }

    /// After a day without a byte, clients no longer resume.
    fn advance(&mut self) {
        self.clock.advance(Duration::from_hours(5));
        if self.clock.now().since(self.gave_at) >= Duration::from_hours(23) {
            while !self.transfers.is_empty() {
                self.end(0, 0);
            }
            (self.have, self.base, self.after) = Default::default();
        }
    }

    /// A body that is what was promised, when no other is arriving.
    fn verify(&mut self) {
        while !self.transfers.is_empty() {
            self.end(0, 0);
        }
        let good = self.gaps.share(&self.target);
        good.begin(Some(MIB), true);
        good.end(Verdict::Verified);
        (self.have, self.base, self.after) = Default::default();
        let next = self.gaps.share(&self.target);
        assert_eq!(next.begin(Some(3 * MIB), true), Hold::Gap, "the target is trusted again");
        next.end(Verdict::Ungiven);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        if !self.promised {
            return Ok(());
        }
        for (client, bases) in self.base.iter().enumerate() {
            for (length, base) in LENGTHS.iter().zip(bases) {
                let whole = blocks(0, *length);
                // A client that had nothing of that body gets a body of another length.
                let begun = *base != 0 && base & whole != whole;
                let completed = begun && (base | self.after) & whole == whole;
                prop_assert!(!completed, "client {client} completes a body of {length} blocks");
            }
        }
        Ok(())
    }
}

/// A reader of a fill begins at `from`. Returns the blocks that it is given, from the first to before the last.
fn read(transfer: &mut Transfer, promised: bool, count: u8, from: u8) -> (u64, u64) {
    let Way::Fill { share, hold, back, binds, have } = &mut transfer.way else { return (0, 0) };
    let announced = transfer.announced.then_some(transfer.length * BLOCK);
    if promised && !*binds {
        (*hold, *back, *binds) = (share.bind(announced, *hold), true, true);
    }
    let at = u64::from(from) % transfer.length;
    let end = (at + 1 + u64::from(count) % 40).min(transfer.length);
    // Parts arrive ahead of the fill.
    *have = (*have).max(end);
    if *back && *hold == Hold::Gap {
        share.make_way(announced, at * BLOCK, end * BLOCK);
    }
    if at > 0 && !*binds && end * BLOCK > own_start(transfer.length * BLOCK) {
        share.give_end();
    }
    let (from, to) = (at * BLOCK, end * BLOCK);
    let given = share.with(|gap| {
        let limit = match hold {
            _ if gap.is_suspect() => from,
            _ if !*back => to,
            Hold::Gap => gap.limit(from, to, *have * BLOCK),
            Hold::Whole => from,
        };
        gap.note(from, limit);
        if limit > from && !*back && *hold == Hold::Whole {
            gap.spend();
        }
        limit
    });
    (at, given.div_ceil(BLOCK))
}

fn gaps(data: &tempfile::TempDir, file: usize, clock: &Clock) -> Arc<Gaps> {
    let path = data.path().join(format!("u{file}"));
    Gaps::new(Arc::new(Unverified::open(path, clock.clone()).unwrap()))
}

proptest! {
    /// Issue 10, rows 1 to 3, for each of the ways and with restarts and kills in between.
    #[test]
    fn no_client_completes_a_body_that_was_promised_before_it_had_all(
        steps in prop::collection::vec((0..24_u8, any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()), 1..60),
    ) {
        let mut model = Model::new();
        for (step, a, b, c, d) in steps {
            match step {
                0..=5 => model.begin(a, b, c, d),
                6..=14 => model.give(a, b, c),
                15..=17 if !model.transfers.is_empty() => {
                    let which = usize::from(a) % model.transfers.len();
                    model.end(which, b);
                }
                18 => model.restart(a % 2 == 0, b),
                19 | 20 => model.promise(true),
                21 => model.promise(false),
                22 => model.advance(),
                23 if a % 4 == 0 => model.verify(),
                _ => {}
            }
            model.check()?;
        }
    }
}

/// Bytes that were given a moment ago are remembered for a day, whenever the first of them were given.
#[test]
fn a_record_counts_for_a_day_from_the_last_byte_that_was_given() {
    for binds in [false, true] {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let target = Target::from_url("https://example.org/a").unwrap();
        let first = gaps(&data, 0, &clock);
        let share = first.share(&target);
        share.begin(Some(2 * MIB), binds);
        share.with(|gap| gap.note(0, MIB));
        clock.advance(Duration::from_hours(23));
        share.with(|gap| gap.note(MIB, MIB + 1));
        std::mem::forget(share);
        clock.advance(Duration::from_hours(23));
        let again = gaps(&data, 0, &clock);
        let share = again.share(&target);
        share.begin(Some(2 * MIB), true);
        let way = || share.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB));
        assert_eq!(way(), None, "{binds}");
        share.end(Verdict::Ungiven);
        clock.advance(Duration::from_hours(24));
        let share = gaps(&data, 0, &clock).share(&target);
        share.begin(Some(2 * MIB), true);
        assert!(share.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB)).is_some(), "the control");
    }
}

/// A body that is verified while another is arriving ends the suspicion on disk as well.
#[test]
fn a_verified_body_ends_the_suspicion_while_another_body_is_arriving() {
    for verdict in [Verdict::Verified, Verdict::Whole] {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let target = Target::from_url("https://example.org/a").unwrap();
        let first = gaps(&data, 0, &clock);
        let (slow, good) = (first.share(&target), first.share(&target));
        slow.begin(Some(2 * MIB), true);
        slow.with(|gap| gap.note(0, MIB));
        slow.refuse();
        good.begin(Some(2 * MIB), true);
        good.end(verdict);
        std::mem::forget(slow);
        let again = gaps(&data, 0, &clock);
        assert_eq!(again.is_suspect(&target), verdict != Verdict::Verified, "{verdict:?}");
        // What the other body gave is still known.
        let next = again.share(&target);
        next.begin(Some(2 * MIB), true);
        assert_eq!(next.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB)), None);
    }
}

/// The states of the record when two bodies of the target arrive at a time, and larder is killed or both end.
#[test]
fn a_body_of_another_length_takes_no_record_away() {
    let (small, large) = (HELD_WHOLE / 2, 2 * MIB);
    // The length of the first body, how much of each is given, and whether both end whole.
    for (first, (to, other_to), whole, expected) in [
        (small, (0, MIB), false, Some(Delivered::Spent)),
        (small, (small, large), true, Some(Delivered::Unbound)),
        (3 * MIB, (MIB, large), false, Some(Delivered::Spent)),
        (3 * MIB, (3 * MIB, large), true, Some(Delivered::Unbound)),
        // The controls.
        (small, (0, 0), false, None),
        // A small body that is broken off is remembered as well.
        (small, (small, 0), false, Some(Delivered::Spent)),
        (large, (MIB, MIB), false, Some(Delivered::Unbound)),
    ] {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let target = Target::from_url("https://example.org/a").unwrap();
        let gaps = gaps(&data, 0, &clock);
        let give = |length, to| {
            let late = gaps.join_unbound(&target, Place { start: Some(0), length: Some(length) });
            late.give(0, to, to);
            late
        };
        let (one, other) = (give(first, to), give(large, other_to));
        if whole {
            other.is_right(false);
            one.is_right(false);
        } else {
            drop((other, one));
        }
        let row = Unverified::open(data.path().join("u0"), clock.clone()).unwrap();
        let row = row.get(target.file_key());
        let case = format!("{first} {to} {other_to}");
        assert_eq!(row.map(|row| row.state), expected, "{case}");
        if whole {
            let length = (first == small).then_some(large);
            assert_eq!(row.unwrap().length, length, "{case}");
        }
    }
}

/// A gap that has moved, of a body that was complete after all: some clients lack what it withheld, and others the end.
#[test]
fn a_body_whose_gap_had_moved_is_not_completed_by_one_whose_gap_is_at_the_end() {
    for moved in [false, true] {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let target = Target::from_url("https://example.org/a").unwrap();
        let gaps = gaps(&data, 0, &clock);
        let share = gaps.share(&target);
        share.begin(Some(2 * MIB), true);
        if moved {
            share.make_way(Some(2 * MIB), 2 * MIB - 10, 2 * MIB);
        }
        share.with(|gap| gap.note(0, MIB));
        // The promise is gone when the body is complete.
        share.end(Verdict::Whole);
        let next = gaps.share(&target);
        let hold = next.begin(Some(2 * MIB), true);
        assert_eq!(hold, if moved { Hold::Whole } else { Hold::Gap });
        assert!(!gaps.is_suspect(&target));
    }
}

/// larder is killed while bytes of a recorded gap are given to a request that no promise binds.
#[test]
fn a_recorded_gap_that_is_given_is_recorded_at_once() {
    for to in [2 * MIB - GAP, 2 * MIB] {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let target = Target::from_url("https://example.org/a").unwrap();
        let first = gaps(&data, 0, &clock);
        let share = first.share(&target);
        share.begin(Some(2 * MIB), true);
        share.with(|gap| gap.note(0, MIB));
        share.end(Verdict::Unverified);
        let place = Place { start: Some(0), length: Some(2 * MIB) };
        let late = first.join_unbound(&target, place);
        late.give(0, to, to);
        std::mem::forget(late);
        let again = gaps(&data, 0, &clock);
        let next = again.share(&target);
        let hold = next.begin(Some(2 * MIB), true);
        assert_eq!(hold, if to == 2 * MIB { Hold::Whole } else { Hold::Gap });
    }
}
