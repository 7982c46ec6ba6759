//! Promise P7, issue 10 row 9: one body does not empty the store.

use super::*;

/// The disk space of a body of `length`.
fn takes(length: u64) -> u64 {
    blobs::footprint_of(length)
}

/// A store with room for a hundred bodies of 1000 bytes and their records, of which forty are stored and were hit.
fn with_hits() -> (World, Arc<Store>, Vec<Arc<Entry>>) {
    let world = World::shared(100 * (takes(1000) + 4096));
    let store = world.open();
    let hit: Vec<Arc<Entry>> = (0..40)
        .map(|seed| keep(&store, &format!("https://example.org/hit/{seed}"), &body(seed, 1000)))
        .collect();
    for entry in &hit {
        store.touch(entry);
    }
    (world, store, hit)
}

fn left(store: &Store, of: &[Arc<Entry>]) -> usize {
    of.iter().filter(|entry| !store.entries(entry.key).is_empty()).count()
}

/// Appends until there is no room; returns the spool, how much it took, and the error.
fn fill(store: &Arc<Store>) -> (Spool, u64, SpoolError) {
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    let mut written = 0;
    loop {
        match spool.append(&[7; 4096]) {
            Ok(()) => written += 4096,
            Err(error) => return (spool, written, error),
        }
    }
}

#[test]
fn a_body_of_unknown_length_takes_one_share_and_no_hit_body_goes_for_it() {
    let (world, store, hit) = with_hits();
    let share = store.space.share();
    let (spool, written, error) = fill(&store);
    let SpoolError::Oversize { takes: wanted, share: said } = error else { panic!("{error}") };
    assert!(wanted > share && said == share);
    assert!(takes(written) <= share && takes(written + 4096) > share, "{written} of {share}");
    assert!(error.to_string().contains("store.max_body_share"), "{error}");
    assert_eq!((left(&store, &hit), store.usage().oversize), (40, 1));
    drop(spool.give_up());
    assert_eq!((store.usage().spool_bytes, world.files("spool").len()), (0, 0));
    // The control: a body that fits is kept.
    keep(&store, URL, &body(3, 50_000));
    assert_eq!(fetch(&store, URL).unwrap(), body(3, 50_000));
}

#[test]
fn an_announced_length_above_the_share_is_told_at_once() {
    let (_world, store, hit) = with_hits();
    let share = store.space.share();
    let announced = |length| store.spool(Some(length), Algorithms::NONE);
    assert!(matches!(announced(share), Err(SpoolError::Oversize { .. })));
    let before = store.usage();
    // Twenty fills that announce much and send nothing take a block each, which is freed again.
    let silent: Vec<Spool> = (0..20).map(|_| announced(share - 8192).unwrap()).collect();
    assert_eq!(store.usage().spool_bytes, 20 * takes(0));
    assert_eq!((left(&store, &hit), store.usage().evicted), (40, 0));
    drop(silent);
    assert_eq!(store.usage(), before);
}

#[test]
fn many_bodies_at_once_leave_what_was_hit() {
    let (_world, store, hit) = with_hits();
    // These were never hit, so they make room.
    for number in 0..40_u16 {
        let bytes = number.to_be_bytes().repeat(500);
        keep(&store, &format!("https://example.org/once/{number}"), &bytes);
    }
    let mut arriving: Vec<Spool> =
        (0..8).filter_map(|_| store.spool(None, Algorithms::NONE).ok()).collect();
    assert_eq!(arriving.len(), 8);
    for _ in 0..store.space.share() / 4096 {
        for spool in &mut arriving {
            let _full = spool.append(&[7; 4096]);
        }
    }
    let usage = store.usage();
    assert!(usage.bytes + usage.spool_bytes + usage.claims_bytes <= usage.cap, "{usage:?}");
    assert_eq!(left(&store, &hit), 40);
    assert_eq!(usage.evicted, 40, "the others went");
    drop(arriving);
    assert_eq!(store.usage().spool_bytes, 0);
}

/// The converse: a store full of hit bodies still takes new ones.
#[test]
fn a_store_full_of_hit_bodies_gives_one_share_to_what_arrives() {
    let world = World::shared(100 * (takes(1000) + 4096));
    let store = world.open();
    for seed in 0..95_u8 {
        let entry = keep(&store, &format!("https://example.org/{seed}"), &body(seed, 1000));
        store.touch(&entry);
        store.touch(&entry);
    }
    let share = store.space.share();
    let whole = body(200, usize::try_from(share).unwrap() - 4 * 8192);
    keep(&store, URL, &whole);
    assert_eq!(fetch(&store, URL).unwrap(), whole);
    let usage = store.usage();
    assert!(usage.blobs > 60, "{usage:?}");
    // The next body takes its place, because it was never hit.
    let next = body(201, whole.len());
    keep(&store, "https://example.org/next", &next);
    assert_eq!(fetch(&store, "https://example.org/next").unwrap(), next);
    assert_eq!((fetch(&store, URL), store.usage().blobs), (None, usage.blobs));
}

#[test]
fn a_body_that_is_refused_gives_its_room_back() {
    let (_world, store, _hit) = with_hits();
    let before = store.usage();
    for _ in 0..50 {
        drop(spool(&store, &body(9, 50_000)));
    }
    assert_eq!(store.usage(), before);
}
