//! A body that finds no room and is held back whole: it is given as far as it is the same as one that was judged right.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use super::super::writer::{Piece, write};
use super::*;
use crate::digest::{Algorithms, Hashing};

/// The length of a chunk.
const CHUNK: usize = 512 << 10;

/// Not a whole number of chunks.
const LENGTH: usize = 5 * CHUNK + 1000;

fn noise(seed: u8) -> Vec<u8> {
    (0..LENGTH).map(|n| u8::try_from((n * 7 + n / 251) % 251).unwrap() ^ seed).collect()
}

async fn begin(flight: &Flight, length: Option<u64>) {
    flight.begin(Answered { head: head(), length }, None, true).await;
}

/// Writes a body for which there is no room.
async fn take_in(flight: Arc<Flight>, body: Vec<u8>) -> Option<Body> {
    let (sender, receiver) = mpsc::channel(4);
    let hashing = Hashing::new(Algorithms::default());
    let writing = tokio::spawn(write(flight, receiver, Err(hashing)));
    for piece in body.chunks(100_000) {
        if sender.send(Piece::Next(Bytes::copy_from_slice(piece))).await.is_err() {
            break;
        }
    }
    drop(sender);
    writing.await.unwrap().ok()
}

/// Refuses one body of the target, and judges `right` without keeping it.
async fn judge(world: &World, right: &[u8]) {
    world.lead.flight.suspect().await;
    only_judge(world, right).await;
}

/// Judges `right` without keeping it.
async fn only_judge(world: &World, right: &[u8]) {
    let flight = world.flights.alone(&target(), NOW);
    begin(&flight, Some(right.len() as u64)).await;
    let body = take_in(Arc::clone(&flight), right.to_vec()).await.unwrap();
    assert!(flight.is_only_judged());
    flight.vouch();
    let (digests, size) = body.digests();
    flight.remember_judged(digests, size);
    flight.finish(End::Pass);
}

/// What a client is given of `body`, and whether that is all of it.
async fn given_of(
    world: &World,
    body: &[u8],
    announced: bool,
    agreement: Agreement,
    right: bool,
) -> (Vec<u8>, bool) {
    let flight = world.flights.alone(&target(), NOW);
    begin(&flight, announced.then_some(body.len() as u64)).await;
    flight.compare_with_judged(|_, _| Arc::new(move || agreement)).await;
    let mut reader = world.flights.reader(&flight);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            match reader.next(all.len() as u64, u64::MAX).await {
                Ok(Some(bytes)) => all.extend_from_slice(&bytes),
                Ok(None) => return (all, true),
                Err(_) => return (all, false),
            }
        }
    });
    let came = take_in(Arc::clone(&flight), body.to_vec()).await;
    let end = match came {
        Some(_) if right && !flight.is_only_judged() => End::Given,
        Some(_) => End::Refused("bad".into()),
        None => End::broken("cut"),
    };
    if right {
        flight.vouch();
    }
    flight.finish(end);
    reading.await.unwrap()
}

/// P3: of two wrong bodies and a right one between them, in whatever lengths, nothing is given of the second that is not in the
/// right one.
#[tokio::test]
async fn a_body_without_room_is_given_as_far_as_it_is_the_same_as_a_right_one() {
    let right = noise(0);
    for announced in [true, false] {
        for differs in [0, CHUNK - 1, CHUNK, 3 * CHUNK + 7, LENGTH - 1] {
            let world = World::new();
            judge(&world, &right).await;
            assert!(world.flights.gaps().is_suspect(&target()));
            let (got, all) = given_of(&world, &right, announced, Agreement::Vouched, true).await;
            assert!(all && got == right, "the control");
            let mut wrong = right.clone();
            wrong[differs] ^= 1;
            let (got, all) = given_of(&world, &wrong, announced, Agreement::Vouched, false).await;
            let most = (differs / CHUNK * CHUNK).min(LENGTH - usize::try_from(GAP).unwrap());
            assert!(
                !all && got.len() <= most && right.starts_with(&got),
                "{differs}: {}",
                got.len()
            );
            // A chunk that differs makes larder forget the right body, which may be another one by now.
            let (got, _) = given_of(&world, &right, announced, Agreement::Vouched, true).await;
            assert_eq!(got.is_empty(), differs < 5 * CHUNK, "{differs}");
        }
    }
}

#[tokio::test]
async fn a_longer_or_shorter_body_is_given_only_as_far_as_the_right_one_goes() {
    let right = noise(0);
    for (length, most) in [(LENGTH + 2 * CHUNK, 5 * CHUNK), (2 * CHUNK + 9, 2 * CHUNK)] {
        let world = World::new();
        judge(&world, &right).await;
        let other: Vec<u8> = right.iter().copied().cycle().take(length).collect();
        let (got, all) = given_of(&world, &other, false, Agreement::Vouched, false).await;
        let most = most.min(LENGTH - usize::try_from(GAP).unwrap());
        assert!(!all && got.len() <= most && right.starts_with(&got), "{length}: {}", got.len());
    }
}

#[tokio::test]
async fn nothing_is_given_if_the_judged_body_is_not_promised_any_more() {
    let right = noise(0);
    for agreement in [Agreement::Undecided, Agreement::Contradicted, Agreement::Unread] {
        let world = World::new();
        judge(&world, &right).await;
        let (got, _) = given_of(&world, &right, true, agreement, true).await;
        assert!(got.is_empty(), "{agreement:?}");
    }
    // The promise ends while the body arrives.
    let world = World::new();
    judge(&world, &right).await;
    let (flight, promised) = (world.flights.alone(&target(), NOW), Arc::new(AtomicBool::new(true)));
    begin(&flight, None).await;
    let now = Arc::clone(&promised);
    let agrees = move || {
        let promised = now.load(Ordering::Relaxed);
        if promised { Agreement::Vouched } else { Agreement::Contradicted }
    };
    flight.compare_with_judged(|_, _| Arc::new(agrees)).await;
    let mut reader = world.flights.reader(&flight);
    let writing = tokio::spawn(take_in(Arc::clone(&flight), right[..2 * CHUNK].to_vec()));
    let got = reader.next(0, 100).await.unwrap().unwrap();
    assert_eq!(got, right[..100]);
    promised.store(false, Ordering::Relaxed);
    writing.await.unwrap();
    assert!(reader.next(100, 200).now_or_never().is_none(), "it waits for the judgement");
}

/// Small bodies have no chunk: they wait in memory until they are judged.
#[tokio::test]
async fn a_small_body_waits_in_memory_once_one_was_judged() {
    for length in [1000, usize::try_from(HELD_WHOLE).unwrap(), CHUNK - 1] {
        let (world, right) = (World::new(), noise(0)[..length].to_vec());
        judge(&world, &right).await;
        let (got, all) = given_of(&world, &right, true, Agreement::Vouched, true).await;
        assert!(all && got == right, "{length}");
        let wrong = noise(1)[..length].to_vec();
        let (got, all) = given_of(&world, &wrong, true, Agreement::Vouched, false).await;
        assert!(!all && got.is_empty(), "{length}");
    }
}

/// Whether nothing of a body with this length would be given before its judgement, if the store had room for it.
async fn holds_whole(world: &World, length: usize) -> bool {
    let flight = world.flights.alone(&target(), NOW);
    let file = Some(Arc::new(tempfile::tempfile().unwrap()));
    let answered = Answered { head: head(), length: Some(length as u64) };
    flight.begin(answered, file, true).await;
    flight.is_held_whole()
}

/// P3: a body is held back whole although none of its target was refused, because its length is not the recorded one, or because
/// its gap has moved. What is given of it, as it is the same as a right one, no body completes of which the record tells the gap.
#[tokio::test]
async fn what_was_given_of_a_right_body_is_completed_by_none_of_the_recorded_length() {
    let right = noise(0);
    for (length, moves) in [(LENGTH + 2 * CHUNK, false), (LENGTH, true)] {
        for given in [true, false] {
            let mut world = World::new();
            world.begin(true, length as u64).await;
            let mut reader = world.reader();
            world.write(&right);
            if moves {
                reader.open(LENGTH as u64 - 100, LENGTH as u64).await;
            }
            reader.next(0, 100).await.unwrap();
            world.lead.flight.finish(End::broken("cut"));
            only_judge(&world, &right).await;
            if given {
                let (got, all) = given_of(&world, &right, true, Agreement::Vouched, true).await;
                assert!(all && got == right, "{length}");
            }
            assert_eq!(holds_whole(&world, length).await, given, "{length}");
            let world = world.restarted([reader]);
            assert_eq!(holds_whole(&world, length).await, given, "after a restart: {length}");
        }
    }
}

/// That counts for a day from the last byte that was given, as all records do.
#[tokio::test]
async fn what_was_given_of_a_right_body_is_remembered_for_a_day() {
    let (clock, right) = (Clock::system(), noise(0));
    let mut world = World::new();
    let noted = Unverified::open(world.data.path().join("u"), clock.clone()).unwrap();
    world.flights = Flights::new(Gaps::new(Arc::new(noted)));
    let refused = world.flights.alone(&target(), NOW);
    refused.suspect().await;
    refused.finish(End::Refused("bad".into()));
    only_judge(&world, &right).await;
    let flight = world.flights.alone(&target(), NOW);
    begin(&flight, None).await;
    clock.advance(Duration::from_hours(20));
    flight.compare_with_judged(|_, _| Arc::new(|| Agreement::Vouched)).await;
    let mut reader = world.flights.reader(&flight);
    let writing = tokio::spawn(take_in(Arc::clone(&flight), right[..2 * CHUNK].to_vec()));
    assert!(!reader.next(0, 100).await.unwrap().unwrap().is_empty());
    clock.advance(Duration::from_hours(20));
    assert!(!reader.next(100, 200).await.unwrap().unwrap().is_empty());
    writing.await.unwrap();
    flight.finish(End::broken("cut"));
    drop((reader, flight, refused));
    clock.advance(Duration::from_hours(20));
    assert!(holds_whole(&world, LENGTH + CHUNK).await);
    clock.advance(Duration::from_hours(25));
    assert!(!holds_whole(&world, LENGTH + CHUNK).await, "the control");
}
