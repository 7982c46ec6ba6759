//! Readers and a writer on one flight.

use std::io::Write as _;
use std::time::Duration;

use hyper::HeaderMap;

use super::window::WINDOW;
use super::*;

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
}

impl World {
    fn new() -> Self {
        let flights = Arc::new(Flights::default());
        let key = target().key(crate::target::Partition::Public);
        let Permit::Lead(lead) = flights.join(key, &target(), None, NOW) else {
            panic!("nobody else is there")
        };
        Self { flights, lead, file: tempfile::tempfile().unwrap() }
    }

    fn join(&self, since: Option<Time>) -> Permit {
        let key = target().key(crate::target::Partition::Public);
        self.flights.join(key, &target(), since, NOW)
    }

    fn begin(&self, binds: bool, length: u64) {
        let file = self.file.try_clone().unwrap();
        let answered = Answered { head: head(), length: Some(length) };
        let gap = Gap::new(binds, Some(length), None);
        self.lead.flight.begin(answered, Some(Arc::new(file)), gap);
    }

    /// Whether the range is granted beside the body that is arriving now.
    fn grants(flight: &Flight, start: u64, end: u64) -> bool {
        let answered = flight.lock().answered.clone().unwrap();
        flight.grant_beside(Client::default(), &answered, start, end)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
        self.lead.flight.grew(bytes.len() as u64);
    }

    fn reader(&self) -> Reader {
        self.flights.reader(&self.lead.flight, Client::default())
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
    world.begin(false, 6);
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
        world.begin(true, body.len() as u64);
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
    world.begin(false, 6);
    assert!(world.lead.flight.restart());
    world.begin(false, 6);
    world.write(b"abc");
    world.reader().next(0, 6).await.unwrap();
    assert!(!world.lead.flight.restart());
}

#[tokio::test]
async fn a_lead_that_is_dropped_ends_its_flight() {
    let world = World::new();
    let reader = world.reader();
    world.begin(false, 6);
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
    world.begin(false, total);
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
    world.begin(false, 10);
    let mut reader = world.reader();
    world.lead.flight.push(Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(reader.next(0, 10).await.unwrap().unwrap(), "ab");
    assert!(matches!(world.join(None), Permit::Lead(_)));
}

#[tokio::test]
async fn nothing_is_pushed_when_nobody_reads() {
    let world = World::new();
    world.begin(false, 10);
    let pushed = world.lead.flight.push(Bytes::from_static(b"ab")).await;
    assert!(pushed.is_err());
}

#[tokio::test]
async fn who_only_waits_for_the_end_holds_nobody_up() {
    for with_reader in [true, false] {
        let world = World::new();
        let total = 3 * WINDOW;
        world.begin(false, total);
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

/// Issue 10 row 10: silent readers do not keep an honest one from the body.
#[tokio::test]
async fn readers_that_take_nothing_are_cut_and_the_others_get_all() {
    let world = World::new();
    let total = 4 * WINDOW;
    world.begin(false, total);
    let (honest, mut silent) = (world.reader(), world.reader());
    let writer = tokio::spawn(send(Arc::clone(&world.lead.flight), total));
    assert_eq!(drain(honest).await.unwrap().len() as u64, total);
    writer.await.unwrap().unwrap();
    assert!(silent.next(0, total).await.unwrap_err().reason.contains("ask again"));
}

/// A body that is held back whole, and finds no room, cannot be given: its readers are told, and nobody waits for that.
#[tokio::test]
async fn what_is_held_back_and_finds_no_room_fails_with_words() {
    let world = World::new();
    world.begin(true, 4 * WINDOW);
    let flight = Arc::clone(&world.lead.flight);
    let mut held = world.reader();
    let judged = tokio::spawn(async move { held.judged().await });
    let failed = send(flight, 4 * WINDOW).await.unwrap_err();
    assert!(failed.reason.contains("store.max_body_share"), "{failed}");
    let Some(End::Failed(StatusCode::BAD_GATEWAY, why)) = judged.await.unwrap() else { panic!() };
    assert_eq!(why, failed.reason);
}

/// Issue 10 row 9: the file of a body that outgrew its share goes when everybody has passed it, and not before.
#[tokio::test]
async fn the_file_of_a_body_that_outgrew_it_goes_when_all_have_passed() {
    let mut world = World::new();
    world.begin(false, 9);
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

#[test]
fn a_range_beside_the_fill_is_granted_outside_the_gap_only() {
    let world = World::new();
    let length = 64 << 20;
    world.begin(true, length);
    let flight = &world.lead.flight;
    assert!(World::grants(flight, length - 100, length), "the gap makes way");
    assert!(!World::grants(flight, length - 100 - GAP, length - 100), "there it is now");
    assert!(World::grants(flight, 0, 100));
}

/// P3: who held the head of a body that broke is given no range beside the next one, whose gap could lie elsewhere.
#[test]
fn a_range_beside_a_fill_that_began_again_is_not_granted_by_its_first_head() {
    let world = World::new();
    let length = 64 << 20;
    let flight = &world.lead.flight;
    world.begin(true, length);
    let first = flight.lock().answered.clone().unwrap();
    assert!(flight.restart(), "nothing was given");
    let grant = |answered| flight.grant_beside(Client::default(), answered, length - 100, length);
    assert!(!grant(&first), "nobody knows where the next gap lies");
    world.begin(true, length);
    assert!(!grant(&first), "this is another body");
    let second = flight.lock().answered.clone().unwrap();
    assert!(grant(&second), "the control");
}

#[tokio::test]
async fn nothing_is_begun_again_once_somebody_was_told_the_head() {
    let world = World::new();
    world.begin(false, 6);
    let mut reader = world.reader();
    assert!(matches!(reader.open(0, 6).await, Opened::Answered(_)));
    assert!(!world.lead.flight.restart(), "another body would come under this head");
}

#[tokio::test]
async fn two_flights_at_once_keep_back_the_same_bytes() {
    let world = World::new();
    let length = 64 << 20;
    world.begin(true, length);
    let _reader = world.reader();
    let full = Bytes::from_static(b"ab");
    world.lead.flight.push(full).await.unwrap();
    let Permit::Lead(second) = world.join(None) else {
        panic!("a body in the window cannot be joined")
    };
    let begin = |flight: &Flight| {
        let head = head();
        let gap = Gap::new(true, Some(length), flight.kept);
        let length = Some(length);
        flight.begin(Answered { head, length }, None, gap);
    };
    begin(&second.flight);
    assert!(second.flight.kept.is_some());
    for flight in [&world.lead.flight, &second.flight] {
        assert!(!World::grants(flight, length - 100, length), "it has moved");
    }
    // The control: alone it makes way.
    let alone = World::new();
    alone.begin(true, length);
    assert!(World::grants(&alone.lead.flight, length - 100, length));
}
