//! Readers and a writer on one flight.

use std::io::Write as _;
use std::time::Duration;

use hyper::{HeaderMap, StatusCode};

use super::window::WINDOW;
use super::*;
use crate::clock::Clock;
use crate::digest::BlobId;
use crate::entry::Entry;
use crate::proof::Rank;
use crate::store::Unverified;
use crate::target::Partition;

mod alike;
mod besides;

const NOW: Time = Time::from_millis(1_000);

fn target() -> Target {
    Target::from_url("https://example.org/a.whl").unwrap()
}

fn head() -> Head {
    Head { status: StatusCode::OK, headers: HeaderMap::new() }
}

/// A flight, the duty to end it, and the file that its bytes are written to.
struct World {
    flights: Arc<Flights>,
    lead: Lead,
    file: File,
    data: tempfile::TempDir,
}

/// Flights, with the gaps of their targets as recorded under `data`.
fn flights(data: &tempfile::TempDir) -> Arc<Flights> {
    let noted = Unverified::open(data.path().join("unverified"), Clock::system()).unwrap();
    Flights::new(Gaps::new(Arc::new(noted)))
}

impl World {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(data: tempfile::TempDir) -> Self {
        let flights = flights(&data);
        let key = target().key(Partition::Public);
        let Permit::Lead(lead) = flights.join(key, &target(), None, NOW) else {
            panic!("nobody else is there")
        };
        Self { flights, lead, file: tempfile::tempfile().unwrap(), data }
    }

    fn join(&self, since: Option<Time>) -> Permit {
        let key = target().key(Partition::Public);
        self.flights.join(key, &target(), since, NOW)
    }

    async fn begin(&self, binds: bool, length: u64) {
        let file = self.file.try_clone().unwrap();
        let answered = Answered { head: head(), length: Some(length) };
        self.lead.flight.begin(answered, Some(Arc::new(file)), binds).await;
    }

    /// Whether the range is granted beside the body that is arriving now.
    async fn grants(flight: &Flight, start: u64, end: u64) -> bool {
        let answered = flight.lock().answered.clone().unwrap();
        match flight.grant_beside(&answered, start, end).await {
            Some(beside) => flight.begin_beside(&answered, &beside).await && beside.give(b"x"),
            None => false,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
        self.lead.flight.grew(bytes.len() as u64);
    }

    fn reader(&self) -> Reader {
        self.flights.reader(&self.lead.flight)
    }

    /// Another larder on the same directory, after this one stopped. Its `readers` left before that.
    fn restarted(self, readers: impl IntoIterator<Item = Reader>) -> Self {
        self.flights.gaps().flush();
        let Self { data, lead, flights, .. } = self;
        readers.into_iter().for_each(drop);
        drop((lead, flights));
        Self::on(data)
    }
}

/// Everything until the end, or the error.
async fn drain(mut reader: Reader) -> Result<Vec<u8>, Broken> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.next(all.len() as u64, u64::MAX).await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

#[tokio::test]
async fn followers_get_bytes_as_they_arrive() {
    let mut world = World::new();
    world.begin(false, 6).await;
    let (mut one, two) = (world.reader(), world.reader());
    world.write(b"abc");
    assert_eq!(one.next(0, 6).await.unwrap().unwrap(), "abc");
    let late = world.reader();
    world.write(b"def");
    world.lead.flight.finish(End::Given);
    assert_eq!(drain(two).await.unwrap(), b"abcdef");
    assert_eq!(drain(late).await.unwrap(), b"abcdef");
}

#[tokio::test]
async fn a_bound_body_is_complete_for_nobody_before_the_judgement() {
    let body = vec![7; 300 * 1024];
    for (judgement, expected) in [(None, true), (Some("bad"), false)] {
        let mut world = World::new();
        world.begin(true, body.len() as u64).await;
        let mut reader = world.reader();
        world.write(&body);
        let mut at = 0;
        while at < body.len() as u64 - GAP {
            at += reader.next(at, u64::MAX).await.unwrap().unwrap().len() as u64;
        }
        assert_eq!(at, body.len() as u64 - GAP);
        match judgement {
            None => world.lead.flight.finish(End::Given),
            Some(why) => world.lead.flight.finish(End::Refused(why.into())),
        }
        assert_eq!(reader.next(at, u64::MAX).await.is_ok(), expected);
        assert_eq!(drain(world.reader()).await.is_ok(), expected);
    }
}

#[tokio::test]
async fn nothing_is_begun_again_once_a_byte_was_given() {
    let mut world = World::new();
    world.begin(false, 6).await;
    assert!(world.lead.flight.restart());
    world.begin(false, 6).await;
    world.write(b"abc");
    world.reader().next(0, 6).await.unwrap();
    assert!(!world.lead.flight.restart());
}

#[tokio::test]
async fn a_lead_that_is_dropped_ends_its_flight() {
    let world = World::new();
    let reader = world.reader();
    world.begin(false, 6).await;
    drop(world.lead);
    assert!(drain(reader).await.is_err());
    assert_eq!(world.flights.count(), 0);
}

#[test]
fn who_needs_a_younger_answer_does_not_join() {
    let world = World::new();
    assert!(matches!(world.join(Some(NOW)), Permit::Follow(_)));
    let younger = NOW.plus(Duration::from_millis(1));
    assert!(matches!(world.join(Some(younger)), Permit::Lead(_)));
}

#[tokio::test]
async fn without_room_the_bytes_go_through_a_window_at_the_pace_of_the_slowest() {
    let mut world = World::new();
    let total = 3 * WINDOW + 3;
    world.begin(false, total).await;
    world.write(b"abc");
    let (one, two) = (world.reader(), world.reader());
    let flight = Arc::clone(&world.lead.flight);
    let writer = tokio::spawn(async move {
        let piece = Bytes::from(vec![9; usize::try_from(WINDOW / 4).unwrap()]);
        for _ in 0..12 {
            flight.push(piece.clone()).await.unwrap();
            let held = flight.lock().window.iter().map(Bytes::len).sum::<usize>();
            assert!(held as u64 <= WINDOW + WINDOW / 4, "{held}");
        }
        flight.finish(End::Given);
    });
    let (one, two) = tokio::join!(drain(one), drain(two));
    writer.await.unwrap();
    assert_eq!(one.unwrap().len() as u64, total);
    assert_eq!(two.unwrap().len() as u64, total);
}

#[tokio::test]
async fn nobody_joins_a_body_whose_start_is_gone() {
    let world = World::new();
    world.begin(false, 10).await;
    let mut reader = world.reader();
    world.lead.flight.push(Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(reader.next(0, 10).await.unwrap().unwrap(), "ab");
    assert!(matches!(world.join(None), Permit::Lead(_)));
}

#[tokio::test]
async fn nothing_is_pushed_when_nobody_reads() {
    let world = World::new();
    world.begin(false, 10).await;
    let pushed = world.lead.flight.push(Bytes::from_static(b"ab")).await;
    assert!(pushed.is_err());
}

#[tokio::test]
async fn who_only_waits_for_the_end_holds_nobody_up() {
    for with_reader in [true, false] {
        let world = World::new();
        let total = 3 * WINDOW;
        world.begin(false, total).await;
        let flight = &world.lead.flight;
        let waiting = world.flights.waiting(flight);
        let reader = with_reader.then(|| tokio::spawn(drain(world.reader())));
        let piece = Bytes::from(vec![9; usize::try_from(WINDOW / 4).unwrap()]);
        for _ in 0..12 {
            flight.push(piece.clone()).await.unwrap();
        }
        assert_eq!(flight.readers(), 1 + usize::from(with_reader), "nobody was cut");
        flight.finish(End::Given);
        if let Some(reader) = reader {
            assert_eq!(reader.await.unwrap().unwrap().len() as u64, total);
        }
        drop(waiting);
    }
}

/// Pushes `total` bytes in pieces, and ends the flight.
async fn send(flight: Arc<Flight>, total: u64) -> Result<(), Broken> {
    let piece = Bytes::from(vec![9; usize::try_from(WINDOW / 16).unwrap()]);
    for _ in 0..total / (WINDOW / 16) {
        flight.push(piece.clone()).await?;
    }
    flight.finish(End::Given);
    Ok(())
}

/// Silent readers do not keep an honest one from the body (issue 10, row 10).
#[tokio::test]
async fn readers_that_take_nothing_are_cut_and_the_others_get_all() {
    let world = World::new();
    let total = 4 * WINDOW;
    world.begin(false, total).await;
    let (honest, mut silent) = (world.reader(), world.reader());
    let writer = tokio::spawn(send(Arc::clone(&world.lead.flight), total));
    assert_eq!(drain(honest).await.unwrap().len() as u64, total);
    writer.await.unwrap().unwrap();
    assert!(silent.next(0, total).await.unwrap_err().reason.text.contains("ask again"));
}

/// A body that is held back whole and finds no room cannot be given: its readers get an error, and no reader waits for it.
#[tokio::test]
async fn what_is_held_back_and_finds_no_room_fails_with_words() {
    let world = World::new();
    world.begin(true, 4 * WINDOW).await;
    let flight = Arc::clone(&world.lead.flight);
    let mut held = world.reader();
    let judged = tokio::spawn(async move { held.judged().await });
    let failed = send(flight, 4 * WINDOW).await.unwrap_err();
    assert!(failed.reason.text.contains("store.max_body_share"), "{failed}");
    let Some(End::Failed(StatusCode::BAD_GATEWAY, why)) = judged.await.unwrap() else { panic!() };
    assert_eq!(why, failed.reason);
}

/// The file of a body that outgrew its share is removed when every reader has passed it, and not before (issue 10, row 9).
#[tokio::test]
async fn the_file_of_a_body_that_outgrew_it_goes_when_all_have_passed() {
    let mut world = World::new();
    world.begin(false, 9).await;
    world.write(b"abc");
    let (mut one, mut two) = (world.reader(), world.reader());
    let flight = &world.lead.flight;
    let has_file = || flight.lock().file.is_some();
    flight.push(Bytes::from_static(b"def")).await.unwrap();
    assert_eq!(one.next(0, 9).await.unwrap().unwrap(), "abc");
    flight.push(Bytes::from_static(b"g")).await.unwrap();
    assert!(has_file(), "the other needs it");
    assert_eq!(two.next(0, 9).await.unwrap().unwrap(), "abc");
    flight.push(Bytes::from_static(b"h")).await.unwrap();
    assert!(!has_file());
    assert_eq!(two.next(3, 9).await.unwrap().unwrap(), "def");
    assert!(two.next(0, 9).await.is_err(), "these bytes are gone");
    let mut late = world.reader();
    assert!(matches!(late.open(0, 9).await, Opened::Ended(End::Pass)));
    assert!(matches!(world.join(None), Permit::Lead(_)));
}

#[tokio::test]
async fn nothing_is_begun_again_once_somebody_was_told_the_head() {
    let world = World::new();
    world.begin(false, 6).await;
    let mut reader = world.reader();
    assert!(matches!(reader.open(0, 6).await, Opened::Answered(_)));
    assert!(!world.lead.flight.restart(), "another body would come under this head");
}

/// P3: one gap for each target, whichever flights and passes carry its bytes.
#[tokio::test]
async fn two_flights_at_once_keep_back_the_same_bytes() {
    let world = World::new();
    let length = 64 << 20;
    world.begin(true, length).await;
    let second = world.flights.alone(&target(), NOW);
    let file = Arc::new(world.file.try_clone().unwrap());
    let begin = async |flight: &Flight, length| {
        let answered = Answered { head: head(), length };
        flight.begin(answered, Some(Arc::clone(&file)), true).await;
    };
    begin(&second, Some(length)).await;
    assert!(World::grants(&second, length - 100, length).await, "nothing was given yet");
    for flight in [&world.lead.flight, &second] {
        assert!(!World::grants(flight, length - 100 - GAP, length - 100).await);
    }
    // Another length is another body.
    for other in [Some(length + 1), None] {
        let third = world.flights.alone(&target(), NOW);
        begin(&third, other).await;
        assert_eq!(third.lock().holding.hold, Hold::Whole, "{other:?}");
    }
    // The control: if there is only one flight, the gap moves for this range.
    let alone = World::new();
    alone.begin(true, length).await;
    assert!(World::grants(&alone.lead.flight, length - 100 - GAP, length - 100).await);
}

/// P3 and P8: the place of the gap, and that a body was refused, are known to the next body, also after a restart, until a body
/// is verified.
#[tokio::test]
async fn what_was_not_verified_is_held_back_after_a_restart() {
    let body = vec![7; 600_000];
    let length = body.len() as u64;
    let broken = || End::broken("broken");
    let refused = || End::Refused("bad".into());
    for (first, given, hold) in [
        (broken(), true, Some(Hold::Gap)),
        (refused(), true, Some(Hold::Whole)),
        (refused(), false, Some(Hold::Whole)),
        // The controls: vouched for, or no byte given.
        (End::Given, true, None),
        (broken(), false, None),
    ] {
        let mut world = World::new();
        world.begin(true, length).await;
        world.write(&body);
        if given {
            let mut reader = world.reader();
            assert!(matches!(reader.open(length - 100, length).await, Opened::Answered(_)));
            reader.next(length - 100, length).await.unwrap();
        }
        if matches!(first, End::Refused(_)) {
            world.lead.flight.suspect().await;
        }
        if matches!(first, End::Given) {
            world.lead.flight.vouch();
        }
        world.lead.flight.finish(first.clone());
        let mut again = world.restarted([]);
        again.begin(true, length).await;
        again.write(&body);
        let shared = again.lead.flight.lock();
        let limit = again.lead.flight.share.with(|gap| shared.limit(gap, 0, length));
        let expected = match hold {
            None => length - GAP,
            Some(Hold::Gap) => length - 100 - GAP,
            Some(Hold::Whole) => 0,
        };
        assert_eq!(limit, expected, "{first:?} {given}");
    }
}

/// The end of a flight whose body is stored.
fn kept() -> End {
    End::Kept(Arc::new(Entry {
        key: target().key(Partition::Public),
        shown: target().to_string(),
        variant: String::new(),
        partition: Partition::Public,
        ecosystem: String::new(),
        index: false,
        blob: BlobId::new([9; 32]),
        size: 600_000,
        digests: Vec::new(),
        head: head(),
        varied: Vec::new(),
        proof: Proof::of(Rank::Indexed),
        generation: 0,
        answered_by: None,
        requested_at: NOW,
        received_at: NOW,
        checked_at: NOW,
    }))
}

/// A verified body makes the target trusted again once it is stored. A body about which another principal has no promise does not.
/// After one that was only given, that found no room, or whose commit was broken off, the next may be another one.
#[tokio::test]
async fn only_a_verified_body_ends_the_suspicion() {
    // A promise may bind a body when it begins, and no longer exist when the body is judged.
    for (binds, vouched, dropped, end, suspect) in [
        (true, true, false, kept(), false),
        (false, true, false, kept(), false),
        (true, true, true, End::Pass, true),
        (true, true, false, End::Given, true),
        (true, true, false, End::broken("the fill was dropped"), true),
        (true, false, false, kept(), true),
        (false, false, false, kept(), true),
        (true, false, true, End::Pass, true),
    ] {
        let world = World::new();
        world.lead.flight.suspect().await;
        world.begin(binds, 600_000).await;
        assert_eq!(world.lead.flight.lock().holding.hold, Hold::Whole);
        assert!(world.lead.flight.lock().holding.held, "whatever is promised of it");
        if dropped {
            // The store has no room for it.
            world.lead.flight.push(Bytes::from_static(b"ab")).await.unwrap();
        }
        if vouched {
            world.lead.flight.vouch();
        }
        world.lead.flight.finish(end.clone());
        world.flights.gaps().flush();
        let again = flights(&world.data);
        assert_eq!(again.gaps().is_suspect(&target()), suspect, "{binds} {vouched} {end:?}");
    }
}

/// A client that was given the end alone, of a body that no promise bound, must not be given the rest of a promised one before
/// that is judged.
#[tokio::test]
async fn the_end_that_was_given_alone_is_remembered_when_the_body_ends_whole() {
    let length = 600_000;
    for (at, after_the_end, hold) in [
        (0, false, Hold::Gap),
        (0, true, Hold::Gap),
        (length - 100, false, Hold::Whole),
        (length - 100, true, Hold::Whole),
    ] {
        let mut world = World::new();
        world.begin(false, length).await;
        world.write(&vec![1; usize::try_from(length).unwrap()]);
        let (mut first, mut reader) = (world.reader(), world.reader());
        assert!(matches!(first.open(0, length).await, Opened::Answered(_)));
        first.next(0, length).await.unwrap();
        if after_the_end {
            world.lead.flight.finish(End::Given);
        }
        assert!(matches!(reader.open(at, length).await, Opened::Answered(_)));
        reader.next(at, length).await.unwrap();
        world.lead.flight.finish(End::Given);
        let again = world.restarted([first, reader]);
        again.begin(true, length).await;
        assert_eq!(again.lead.flight.lock().holding.hold, hold, "{at} {after_the_end}");
    }
}

/// The same for a request for several ranges, of which the first begins at the start.
#[tokio::test]
async fn the_end_that_was_given_after_another_range_is_remembered() {
    let length = 600_000;
    for (first, hold) in [(length - 100, Hold::Gap), (10, Hold::Whole)] {
        let mut world = World::new();
        world.begin(false, length).await;
        world.write(&vec![1; usize::try_from(length).unwrap()]);
        let mut reader = world.reader();
        assert!(matches!(reader.open(0, length).await, Opened::Answered(_)));
        let mut at = 0;
        while at < first {
            at += reader.next(at, first).await.unwrap().unwrap().len() as u64;
        }
        reader.next(length - 100, length - 1).await.unwrap();
        world.lead.flight.finish(End::Given);
        let again = world.restarted([reader]);
        again.begin(true, length).await;
        assert_eq!(again.lead.flight.lock().holding.hold, hold, "{first}");
    }
}

/// A client may be given all of a body after that was judged, and lack its end.
#[tokio::test]
async fn what_is_given_only_after_the_judgement_is_remembered() {
    let length = 600_000;
    for read in [false, true] {
        let mut world = World::new();
        world.begin(false, length).await;
        world.write(&vec![1; usize::try_from(length).unwrap()]);
        let reader = read.then(|| world.reader());
        world.lead.flight.finish(End::Given);
        let again = world.restarted(reader);
        again.begin(true, length).await;
        let way = again.lead.flight.share.with(|gap| gap.way_for(length - 10, length));
        assert_eq!(way.is_none(), read);
    }
}

/// Bytes that were given before a promise was found may have been those of the gap.
#[tokio::test]
async fn a_promise_that_comes_late_finds_what_was_given_before() {
    for from in [0, 599_900] {
        let mut world = World::new();
        world.begin(false, 600_000).await;
        world.write(&vec![7; 600_000]);
        world.reader().next(from, from + 50).await.unwrap();
        world.lead.flight.bind(Binding::Yes).await;
        let expected = if from == 0 { Hold::Gap } else { Hold::Whole };
        assert_eq!(world.lead.flight.lock().holding.hold, expected, "{from}");
    }
}

/// What was found out about a body does not count for the body that began in its place meanwhile.
#[tokio::test]
async fn a_body_that_begins_while_another_is_bound_keeps_its_own_hold() {
    let world = World::new();
    let flight = &world.lead.flight;
    world.begin(false, 600_000).await;
    let first = flight.lock().answered.clone().unwrap();
    assert!(flight.restart());
    // Another flight gives bytes of a body with another length.
    let other = world.flights.alone(&target(), NOW);
    other.share.begin(Some(600_000), true);
    other.share.with(|gap| gap.note(0, 1));
    world.begin(true, 700_000).await;
    let whole = |flight: &Flight| flight.lock().holding.hold == Hold::Whole;
    let is_whole = whole(flight);
    assert!(!flight.hold_bound(&first, Hold::Gap), "that body is gone");
    assert_eq!(whole(flight), is_whole);
    // Nor does it count for a body that was bound meanwhile.
    let second = flight.lock().answered.clone().unwrap();
    assert!(flight.hold_bound(&second, Hold::Gap));
    assert_eq!(whole(flight), is_whole);
    assert!(is_whole);
}
