//! What is recorded of targets, and what a late promise makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;

use super::gap::{GAP, Gap, HELD_WHOLE, Hold};
use super::intake::Binding;
use super::late::Place;
use super::share::{Gaps, Share, Verdict};
use super::stored::{Agreement, Decodes};
use crate::clock::Clock;
use crate::store::{Delivered, Unverified};
use crate::target::{Key, Target};

const MIB: u64 = 1 << 20;

fn gaps() -> (tempfile::TempDir, Arc<Gaps>, Target) {
    let data = tempfile::tempdir().unwrap();
    let unverified = Unverified::open(data.path().join("u"), Clock::system()).unwrap();
    let target = Target::from_url("https://example.org/a").unwrap();
    (data, Gaps::new(Arc::new(unverified)), target)
}

/// A body that counts as complete may lie in buffers when its client leaves. Its end stays withheld once it is promised.
#[test]
fn after_a_body_that_was_given_whole_the_gap_does_not_move() {
    for (verdict, moves) in
        [(Verdict::Whole, false), (Verdict::Verified, true), (Verdict::Ungiven, true)]
    {
        let (_data, gaps, target) = gaps();
        let first = gaps.share(&target);
        assert_eq!(first.begin(Some(2 * MIB), false), Hold::Gap);
        first.with(|gap| gap.note(0, 2 * MIB));
        first.end(verdict);
        // Bodies that give nothing change nothing.
        gaps.share(&target).end(Verdict::Ungiven);
        let again = gaps.share(&target);
        assert_eq!(again.begin(Some(2 * MIB), true), Hold::Gap);
        let way = again.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB));
        assert_eq!(way.is_some(), moves, "{verdict:?}");
        let other = if moves { Hold::Gap } else { Hold::Whole };
        assert_eq!(again.begin(Some(MIB), true), other, "{verdict:?}");
        assert!(!gaps.is_suspect(&target));
    }
}

/// Issue 10, row 2: what was given before a promise is known after a restart as well.
#[test]
fn what_was_given_before_a_promise_is_remembered_after_a_restart() {
    for (to, verdict, suspect, moves) in [
        (MIB, Verdict::Unverified, false, false),
        (2 * MIB - 10, Verdict::Unverified, true, false),
        (2 * MIB, Verdict::Whole, false, false),
        (2 * MIB, Verdict::Verified, false, true),
        (0, Verdict::Ungiven, false, true),
    ] {
        let (data, gaps, target) = gaps();
        let first = gaps.share(&target);
        first.begin(Some(2 * MIB), false);
        first.with(|gap| gap.note(0, to));
        first.end(verdict);
        let again = Unverified::open(data.path().join("u"), Clock::system()).unwrap();
        let gaps = Gaps::new(Arc::new(again));
        let next = gaps.share(&target);
        let hold = next.begin(Some(2 * MIB), true);
        let case = format!("{to} {verdict:?}");
        assert_eq!(hold, if suspect { Hold::Whole } else { Hold::Gap }, "{case}");
        assert_eq!(gaps.is_suspect(&target), suspect, "{case}");
        let way = next.with(|gap| gap.way_for(2 * MIB - 10, 2 * MIB));
        assert_eq!(way.is_some(), moves, "{case}");
    }
}

/// A crash while a body that no promise binds is given.
#[test]
fn what_is_being_given_before_a_promise_is_recorded_meanwhile() {
    let (data, gaps, target) = gaps();
    let key = target.file_key();
    let noted = || {
        // What a larder would read that starts now. Opening the file itself would replace it.
        std::fs::copy(data.path().join("u"), data.path().join("copy")).unwrap();
        let again = Unverified::open(data.path().join("copy"), Clock::system()).unwrap();
        again.get(key).map(|row| row.state)
    };
    let share = gaps.share(&target);
    share.begin(Some(2 * MIB), false);
    assert_eq!(noted(), None, "nothing was given");
    share.with(|gap| gap.note(0, MIB));
    assert_eq!(noted(), Some(Delivered::Unbound));
    let gaps =
        Gaps::new(Arc::new(Unverified::open(data.path().join("u"), Clock::system()).unwrap()));
    let share = gaps.share(&target);
    share.begin(Some(2 * MIB), false);
    share.with(|gap| gap.note(MIB, 2 * MIB));
    assert_eq!(noted(), Some(Delivered::Spent));
    // It was given whole after all: its client may lack the end.
    share.end(Verdict::Whole);
    assert_eq!(noted(), Some(Delivered::Unbound));
    let share = gaps.share(&target);
    share.begin(Some(2 * MIB), true);
    share.end(Verdict::Verified);
    assert_eq!(noted(), None);
}

/// A small body is held back whole once it is bound; that another body is small as well is the word of its origin.
#[test]
fn a_small_body_that_was_broken_off_is_recorded() {
    for given in [0, HELD_WHOLE - 10] {
        let (_data, gaps, target) = gaps();
        let small = gaps.share(&target);
        small.begin(Some(HELD_WHOLE), false);
        small.with(|gap| gap.note(0, given));
        drop(small);
        let hold = gaps.share(&target).begin(Some(2 * MIB), true);
        assert_eq!(hold, if given > 0 { Hold::Whole } else { Hold::Gap }, "{given}");
    }
}

/// A client that lacks the end of a body may not be given it from another body whose gap lies elsewhere.
#[test]
fn the_length_of_the_body_that_was_given_whole_is_remembered() {
    let (_data, gaps, target) = gaps();
    let (first, other) = (gaps.share(&target), gaps.share(&target));
    first.begin(Some(2 * MIB), false);
    other.begin(Some(MIB), false);
    other.with(|gap| gap.note(0, MIB));
    other.end(Verdict::Whole);
    first.end(Verdict::Ungiven);
    assert_eq!(gaps.unverified.get(target.file_key()).unwrap().length, Some(MIB));
    assert_eq!(gaps.share(&target).begin(Some(MIB), true), Hold::Gap);
}

/// When a promise comes after the gap was given, the target is suspect at once, for all requests.
#[test]
fn a_promise_that_comes_too_late_makes_the_target_suspect_for_everybody() {
    for verdict in [Verdict::Whole, Verdict::Ungiven, Verdict::Verified] {
        let (_data, gaps, target) = gaps();
        let (pass, fill) = (gaps.share(&target), gaps.share(&target));
        let hold = fill.begin(Some(2 * MIB), false);
        pass.begin(Some(2 * MIB), false);
        pass.with(|gap| gap.note(0, 2 * MIB));
        assert_eq!(fill.bind(Some(2 * MIB), hold), Hold::Whole);
        assert!(gaps.is_suspect(&target));
        pass.end(Verdict::Whole);
        fill.end(verdict);
        assert_eq!(gaps.is_suspect(&target), verdict != Verdict::Verified, "{verdict:?}");
    }
}

/// Two bodies of different lengths are no reason to withhold all of them until one is verified: the bytes of the first are
/// recorded, and the second gives none.
#[test]
fn a_bound_body_of_another_length_makes_no_target_suspect() {
    for spent in [false, true] {
        let (_data, gaps, target) = gaps();
        let first = gaps.share(&target);
        assert_eq!(first.begin(Some(2 * MIB), true), Hold::Gap);
        first.with(|gap| gap.note(0, MIB));
        if spent {
            first.with(|gap| gap.note(2 * MIB - 10, 2 * MIB));
        }
        let second = gaps.share(&target);
        let hold = second.begin(Some(MIB), false);
        assert_eq!(second.bind(Some(MIB), hold), Hold::Whole);
        drop((first, second));
        assert_eq!(gaps.is_suspect(&target), spent);
    }
}

/// A small body of which bytes were given before a promise came leaves a row, so that it is not forgotten.
#[test]
fn a_small_body_that_is_bound_late_is_recorded() {
    for given in [false, true] {
        let (_data, gaps, target) = gaps();
        let share = gaps.share(&target);
        let hold = share.begin(Some(HELD_WHOLE), false);
        if given {
            share.with(|gap| gap.note(HELD_WHOLE - 10, HELD_WHOLE));
        }
        assert_eq!(share.bind(Some(HELD_WHOLE), hold), Hold::Gap);
        drop(share);
        assert_eq!(gaps.unverified.get(target.file_key()).is_some(), given);
    }
}

/// After a crash, the record describes the body whose bytes were given, not one that was begun before it (issue 10, row 2).
#[test]
fn a_body_that_is_begun_again_is_noted_anew() {
    let data = tempfile::tempdir().unwrap();
    let open = || Arc::new(Unverified::open(data.path().join("u"), Clock::system()).unwrap());
    let target = Target::from_url("https://example.org/a").unwrap();
    let key = target.file_key();
    let gaps = Gaps::new(open());
    let share = gaps.share(&target);
    assert_eq!(share.begin(Some(2 * MIB), true), Hold::Gap);
    assert_eq!(share.begin(Some(MIB), true), Hold::Gap);
    let row = open().get(key).unwrap();
    assert_eq!((row.length, row.gap), (Some(MIB), MIB - GAP));
    // The control: once a byte was given the length stays, and another body is held back whole.
    share.with(|gap| gap.note(0, 1));
    assert_eq!(share.begin(Some(2 * MIB), true), Hold::Whole);
    assert_eq!(open().get(key).unwrap().length, Some(MIB));
}

/// A disk that hangs stops no thread that gives bytes of other requests, and nothing is given before its record is written.
#[test]
fn nobody_waits_for_the_disk_while_a_record_is_written() {
    type Work = fn(&Share);
    let end = || (2 * MIB - 10, 2 * MIB);
    let cases: [(&str, Work); 4] = [
        ("begin", |share| assert_eq!(share.begin(Some(2 * MIB), true), Hold::Gap)),
        ("bind", |share| assert_eq!(share.bind(Some(2 * MIB), Hold::Gap), Hold::Gap)),
        ("refuse", Share::refuse),
        ("make_way", |share| assert!(share.make_way(Some(2 * MIB), 2 * MIB - 10, 2 * MIB))),
    ];
    for (name, work) in cases {
        let (_data, gaps, target) = gaps();
        let (share, other) = (gaps.share(&target), gaps.share(&target));
        other.begin(Some(2 * MIB), name == "make_way");
        let before = gaps.unverified.get(target.file_key());
        let disk = gaps.unverified.hang();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| work(&share));
            // The record has changed in memory, so the thread is about to write it.
            while gaps.unverified.get(target.file_key()) == before {
                std::thread::yield_now();
            }
            let (say, heard) = std::sync::mpsc::channel();
            let (gaps, target, other) = (&gaps, &target, &other);
            scope.spawn(move || {
                let (start, end) = end();
                let limit = |gap: &mut Gap| (gap.limit(start, end, end), gap.limit(0, end, end));
                say.send((gaps.is_suspect(target), other.with(limit))).unwrap();
            });
            let patience = Duration::from_mins(1);
            let answer = heard.recv_timeout(patience);
            assert!(!writing.is_finished(), "{name}");
            drop(disk);
            let (suspect, (from_end, from_start)) = answer.expect(name);
            assert_eq!(suspect, name == "refuse", "{name}");
            // While the gap moves, both places are withheld.
            assert_eq!(from_end, 2 * MIB - 10, "{name}");
            let to = if name == "make_way" { 2 * MIB - 10 - GAP } else { 2 * MIB - GAP };
            assert_eq!(from_start, if suspect { 0 } else { to }, "{name}");
            writing.join().unwrap();
        });
        let moved = other.with(|gap| gap.limit(2 * MIB - 10, 2 * MIB, 2 * MIB)) == 2 * MIB;
        assert_eq!(moved, name == "make_way");
    }
}

/// Bytes that no promise binds may be given where the gap moves, while that is recorded.
#[test]
fn a_gap_does_not_move_to_where_bytes_were_given_meanwhile() {
    for given in [false, true] {
        let (_data, gaps, target) = gaps();
        let (share, other) = (gaps.share(&target), gaps.share(&target));
        share.begin(Some(2 * MIB), true);
        other.begin(Some(2 * MIB), false);
        let disk = gaps.unverified.hang();
        std::thread::scope(|scope| {
            let before = gaps.unverified.get(target.file_key());
            let moving = scope.spawn(|| share.make_way(Some(2 * MIB), 2 * MIB - 10, 2 * MIB));
            while gaps.unverified.get(target.file_key()) == before {
                std::thread::yield_now();
            }
            if given {
                other.with(|gap| gap.note(0, 2 * MIB - GAP));
            }
            drop(disk);
            moving.join().unwrap();
        });
        let place = if given { 2 * MIB - GAP } else { 2 * MIB - 10 - GAP };
        assert_eq!(share.with(|gap| gap.start()), place);
        assert_eq!(gaps.unverified.get(target.file_key()).unwrap().gap, place);
    }
}

/// A body that is bound while the gap moves must not record the place that the gap leaves: after a crash that place would be
/// withheld, and its bytes are given as soon as the gap has moved (issue 10, row 2).
#[test]
fn a_body_that_is_bound_while_the_gap_moves_records_where_it_moves() {
    let (data, clock) = (tempfile::tempdir().unwrap(), Clock::system());
    let path = data.path().join("u");
    let gaps = Gaps::new(Arc::new(Unverified::open(path.clone(), clock.clone()).unwrap()));
    let target = Target::from_url("https://example.org/a").unwrap();
    let row = || gaps.unverified.get(target.file_key()).unwrap();
    let (share, other) = (gaps.share(&target), gaps.share(&target));
    share.begin(Some(2 * MIB), true);
    let hold = other.begin(Some(2 * MIB), false);
    // The record is written anew when the other body is bound.
    clock.advance(Duration::from_mins(2));
    let (before, disk) = (row(), gaps.unverified.hang());
    std::thread::scope(|scope| {
        let binding = scope.spawn(|| other.bind(Some(2 * MIB), hold));
        while row() == before {
            std::thread::yield_now();
        }
        let moving = scope.spawn(|| share.make_way(Some(2 * MIB), 2 * MIB - 10, 2 * MIB));
        while row().gap == before.gap {
            std::thread::yield_now();
        }
        drop(disk);
        assert_eq!(binding.join().unwrap(), Hold::Gap);
        assert!(moving.join().unwrap());
    });
    assert_eq!(share.with(|gap| gap.start()), 2 * MIB - 10 - GAP);
    let again = Unverified::open(path, clock).unwrap().get(target.file_key()).unwrap();
    assert_eq!((row().gap, again.gap), (2 * MIB - 10 - GAP, 2 * MIB - 10 - GAP));
}

/// A range is asked for after a body of its target was refused, or after its own body has ended: then the gap stays, and no record
/// is left of it.
#[test]
fn a_gap_makes_way_for_no_suspect_target_and_no_body_that_has_ended() {
    for (refused, ended) in [(false, false), (true, false), (false, true)] {
        let (_data, gaps, target) = gaps();
        let (share, other) = (gaps.share(&target), gaps.share(&target));
        share.begin(Some(2 * MIB), true);
        if refused {
            other.refuse();
        }
        if ended {
            share.end(Verdict::Verified);
            other.end(Verdict::Ungiven);
        }
        let moved = share.make_way(Some(2 * MIB), 2 * MIB - 10, 2 * MIB);
        assert_eq!(moved, !refused && !ended);
        assert_eq!(gaps.unverified.get(target.file_key()).is_some(), !ended);
        if refused {
            // The right body ends the suspicion, though another one is still arriving.
            other.end(Verdict::Verified);
            let state = gaps.unverified.get(target.file_key()).map(|row| row.state);
            assert_eq!(state, Some(Delivered::Given));
        }
    }
}

/// A refusal that found no room in the table counts for the bodies of its origin that come later.
#[test]
fn when_the_table_is_full_what_is_promised_is_held_back_whole() {
    for full in [true, false] {
        let (_data, gaps, target) = gaps();
        let other = Target::from_url("https://example.org/other").unwrap();
        let name = |number: u64| {
            let mut name = [1; 32];
            name[..8].copy_from_slice(&number.to_be_bytes());
            Key(name)
        };
        let put = |number| gaps.unverified.put(name(number), Some(1), 1, Delivered::Given);
        let mut number = 0;
        if full {
            while put(number).is_ok() {
                number += 1;
            }
        }
        let share = gaps.share(&target);
        share.begin(Some(2 * MIB), true);
        share.refuse();
        drop(share);
        assert_eq!(gaps.is_suspect(&target), !full);
        // Later there is room for a record again.
        for number in 0..2 {
            gaps.unverified.remove(name(number));
        }
        let elsewhere = Target::from_url("https://example.net/a").unwrap();
        for (target, held) in [(&target, true), (&other, full), (&elsewhere, false)] {
            let hold = gaps.share(target).begin(Some(2 * MIB), true);
            assert_eq!(hold, if held { Hold::Whole } else { Hold::Gap }, "{target}");
        }
        // What no promise binds is given as it arrives.
        let place = Place { start: Some(0), length: Some(2 * MIB) };
        assert_eq!(gaps.join_unbound(&other, place).give(0, 9, 9), 9);
    }
}

/// A small body is recorded nowhere; once it is bound it is held back whole. So the rest of a stored one is withheld too.
#[test]
fn a_small_stored_body_is_cut_when_a_promise_contradicts_it() {
    for agreement in [Agreement::Undecided, Agreement::Vouched, Agreement::Contradicted] {
        let (_data, gaps, target) = gaps();
        let promised = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&promised);
        let agrees =
            move || if now.load(Ordering::Relaxed) { agreement } else { Agreement::Undecided };
        let mut body = gaps.watch_stored(&target, HELD_WHOLE, Arc::new(agrees), None);
        let half = HELD_WHOLE / 2;
        body.give(0, half).now_or_never().unwrap().unwrap();
        promised.store(true, Ordering::Relaxed);
        let rest = body.give(half, HELD_WHOLE).now_or_never().unwrap();
        assert_eq!(rest.is_err(), agreement == Agreement::Contradicted, "{agreement:?}");
        drop(body);
        assert!(gaps.unverified.get(target.file_key()).is_none());
    }
}

/// A stored body that no promise vouches for, given in order: one row when it begins, and none while the row is young. What a
/// client has that leaves within the gap is recorded.
#[test]
fn a_stored_body_that_is_given_in_order_is_recorded_once() {
    for to in [2 * MIB, 2 * MIB - 10] {
        let (data, gaps, target) = gaps();
        let rows = || std::fs::metadata(data.path().join("u")).unwrap().len() / 61;
        for _ in 0..2 {
            let agrees = Arc::new(|| Agreement::Undecided);
            let mut body = gaps.watch_stored(&target, 2 * MIB, agrees, None);
            for at in (0..to).step_by(1 << 16) {
                let given = body.give(at, (at + (1 << 16)).min(to)).now_or_never();
                given.expect("it does not wait").unwrap();
            }
            drop(body);
            let state = gaps.unverified.get(target.file_key()).map(|row| row.state);
            let whole = to == 2 * MIB;
            let expected = if whole { Delivered::Unbound } else { Delivered::Spent };
            assert_eq!(state, Some(expected));
            if whole {
                assert_eq!(rows(), 1);
            }
        }
    }
}

/// A body that was judged without being kept leaves the record of what others were given: their gaps may lie elsewhere (issue 10,
/// row 2).
#[test]
fn a_body_that_was_only_judged_leaves_the_record_as_it_is() {
    for (verdict, suspect, other) in
        [(Verdict::Right, true, Hold::Whole), (Verdict::Verified, false, Hold::Gap)]
    {
        for refused in [true, false] {
            let (_data, gaps, target) = gaps();
            let wrong = gaps.share(&target);
            wrong.begin(Some(MIB), true);
            wrong.with(|gap| gap.note(0, MIB - GAP));
            if refused {
                wrong.refuse();
            }
            wrong.end(Verdict::Unverified);
            let judged = gaps.share(&target);
            assert_eq!(judged.begin(Some(2 * MIB), true), Hold::Whole);
            judged.end(verdict);
            assert_eq!(gaps.is_suspect(&target), suspect && refused);
            let next = gaps.share(&target);
            assert_eq!(next.begin(Some(2 * MIB), true), other, "{verdict:?} {refused}");
        }
    }
}

/// A promise that cannot be read now holds a body back, and makes no target suspect. What was given is recorded, and counts once the
/// promise is read.
#[test]
fn a_promise_that_is_not_read_yet_makes_no_target_suspect() {
    for binding in [Binding::Unread, Binding::Yes] {
        let (_data, gaps, target) = gaps();
        let (pass, fill) = (gaps.share(&target), gaps.share(&target));
        let hold = fill.begin(Some(2 * MIB), false);
        pass.begin(Some(2 * MIB), false);
        pass.with(|gap| gap.note(0, 2 * MIB - 10));
        assert_eq!(fill.bind_by(binding, Some(2 * MIB), hold), Hold::Whole);
        assert_eq!(gaps.is_suspect(&target), binding == Binding::Yes);
        drop((pass, fill));
        assert_eq!(gaps.is_suspect(&target), binding == Binding::Yes);
        assert_eq!(gaps.share(&target).begin(Some(2 * MIB), true), Hold::Whole);
        assert!(gaps.is_suspect(&target), "it was read, and binds");
    }
}

/// The same for a body that broke off.
#[test]
fn what_was_given_of_a_broken_body_is_recorded_until_its_promise_is_read() {
    for (binding, state) in [
        (Binding::No, Delivered::Spent),
        (Binding::Unread, Delivered::Spent),
        (Binding::Yes, Delivered::Suspect),
    ] {
        let (_data, gaps, target) = gaps();
        let place = Place { start: Some(0), length: Some(2 * MIB) };
        let late = gaps.join_unbound(&target, place);
        late.give(0, 2 * MIB - 10, 2 * MIB - 10);
        late.broke_off(Arc::new(move || binding));
        let row = gaps.unverified.get(target.file_key());
        assert_eq!(row.map(|row| row.state), Some(state), "{binding:?}");
    }
}

/// A client that leaves while its stored body is decoded, to find out whether a promise contradicts it, makes no target suspect.
#[test]
fn a_client_that_leaves_while_its_body_is_decoded_makes_no_target_suspect() {
    for coded in [true, false] {
        let (_data, gaps, target) = gaps();
        let other = gaps.join_unbound(&target, Place { start: Some(0), length: Some(2 * MIB) });
        other.give(0, 2 * MIB - 10, 2 * MIB - 10);
        let promised = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&promised);
        let agrees = Arc::new(move || {
            if now.load(Ordering::Relaxed) { Agreement::Contradicted } else { Agreement::Undecided }
        });
        let decodes = || -> Decodes { Box::new(|| std::future::pending().boxed()) };
        let mut body = gaps.watch_stored(&target, 2 * MIB, agrees, coded.then(decodes));
        body.give(0, MIB).now_or_never().unwrap().unwrap();
        promised.store(true, Ordering::Relaxed);
        if coded {
            assert!(body.give(MIB, 2 * MIB).now_or_never().is_none(), "it is decoded");
        }
        drop(body);
        assert_eq!(gaps.is_suspect(&target), !coded);
        drop(other);
        assert_eq!(gaps.share(&target).begin(Some(2 * MIB), true), Hold::Whole, "{coded}");
    }
}
