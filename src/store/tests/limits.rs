//! Promise P7: the cap is never exceeded, and a body that does not fit passes through unstored.

use super::*;

/// The disk space of a body of `length`.
fn takes(length: u64) -> u64 {
    blobs::footprint_of(length)
}

#[test]
fn the_cap_holds_with_everything_that_is_being_written() {
    let cap = 1 << 20;
    let world = World::with_cap(cap);
    let store = world.open();
    let mut running = store.spool(Some(300_000), Algorithms::NONE).unwrap();
    running.append(&body(0, 300_000)).unwrap();
    for seed in 0..30 {
        keep(&store, &format!("https://example.org/{seed}"), &body(seed, 100_000));
        let usage = store.usage();
        assert!(usage.bytes + usage.spool_bytes <= cap, "{usage:?}");
        let on_disk: u64 = ["blobs", "spool"]
            .iter()
            .flat_map(|path| world.files(path))
            .map(|file| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512)
            .sum();
        assert!(on_disk <= cap, "{on_disk}");
    }
    assert!(store.usage().evicted > 0);
    assert_eq!(fetch(&store, "https://example.org/29").unwrap(), body(29, 100_000));
}

#[test]
fn a_scan_does_not_push_out_what_builds_hit() {
    // Room for 66 bodies with their records, of which 50 are hit.
    let world = World::with_cap(66 * (takes(1000) + 4096));
    let store = world.open();
    let hit: Vec<Arc<Entry>> = (0..50)
        .map(|seed| keep(&store, &format!("https://example.org/hit/{seed}"), &body(seed, 1000)))
        .collect();
    for entry in &hit {
        store.touch(entry);
    }
    // A restart in between keeps the hit counts.
    world.fit(&store);
    store.maintain();
    drop(store);
    let store = world.open();
    for number in 0..300_u16 {
        let bytes = number.to_be_bytes().repeat(500);
        keep(&store, &format!("https://example.org/scan/{number}"), &bytes);
    }
    assert!(store.usage().evicted > 150);
    for entry in &hit {
        assert_eq!(store.entries(entry.key).len(), 1, "{}", entry.shown);
    }
}

#[test]
fn what_is_being_read_is_not_evicted() {
    let world = World::with_cap(2 * takes(100_000));
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 100_000));
    let reading = store.blob(kept.blob).unwrap();
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    spool.append(&body(2, 90_000)).unwrap();
    assert!(matches!(spool.append(&body(3, 90_000)), Err(SpoolError::Full(_))));
    assert_eq!(fetch(&store, URL).unwrap(), body(1, 100_000));
    drop(reading);
    // The control: without a reader it can be evicted.
    spool.append(&body(3, 90_000)).unwrap();
    assert_eq!(fetch(&store, URL), None);
}

#[test]
fn a_follower_of_the_fill_pins_what_it_became() {
    let world = World::with_cap(2 * takes(100_000));
    let store = world.open();
    let at = world.clock.now();
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    spool.append(&body(1, 100_000)).unwrap();
    let follower = spool.reader();
    let kept =
        store.commit(verified(spool.finish(), at), entry(URL, Partition::Public, at)).unwrap();
    let mut next = store.spool(None, Algorithms::NONE).unwrap();
    assert!(next.append(&body(2, 150_000)).is_err());
    assert_eq!(store.entries(kept.key).len(), 1);
    drop(follower);
    next.append(&body(2, 150_000)).unwrap();
    assert_eq!(store.entries(kept.key).len(), 0);
}

#[test]
fn a_body_that_outgrows_the_store_is_hashed_to_its_end() {
    let world = World::with_cap(takes(200_000));
    let store = world.open();
    let whole = body(5, 500_000);
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    let reader = spool.reader();
    let mut rest = whole.chunks(50_000);
    let first = rest.find(|piece| spool.append(piece).is_err()).unwrap();
    let length = reader.metadata().unwrap().len();
    assert!(length < 500_000);
    let mut written = vec![0; usize::try_from(length).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&*reader, &mut written, 0).unwrap();
    assert_eq!(written, &whole[..written.len()]);
    let mut hashing = spool.give_up();
    std::iter::once(first).chain(rest).for_each(|piece| hashing.update(piece));
    assert_eq!(hashing.finish().blob(), id_of(&whole));
    assert_eq!(world.files("spool").len(), 0);
    assert!(store.usage().spool_bytes >= length, "somebody may still read it");
    drop(reader);
    assert_eq!(store.usage().spool_bytes, 0);
}

#[test]
fn an_announced_length_that_cannot_be_is_refused_at_once_and_evicts_nothing() {
    let world = World::with_cap(1 << 20);
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 500_000));
    for announced in [1 << 21, u64::MAX] {
        let spool = store.spool(Some(announced), Algorithms::NONE);
        assert!(matches!(spool, Err(SpoolError::Oversize { .. })));
    }
    // A body that could fit evicts others only when its bytes arrive.
    let mut spool = store.spool(Some(800_000), Algorithms::NONE).unwrap();
    assert_eq!(store.entries(kept.key).len(), 1);
    spool.append(&body(2, 800_000)).unwrap();
    assert_eq!(store.entries(kept.key).len(), 0);
}

#[test]
fn the_floor_is_full_too() {
    let world = World::new();
    let store = world.open();
    let mut config = (*world.config.get()).clone();
    config.store.min_free = u64::MAX;
    world.config.set(config);
    let Err(SpoolError::Full(why)) = store.spool(Some(10), Algorithms::NONE) else {
        panic!("there is no such file system");
    };
    assert!(why.contains("store.min_free"), "{why}");
}

#[test]
fn a_smaller_cap_is_obeyed_at_the_next_maintenance() {
    let world = World::with_cap(1 << 20);
    let store = world.open();
    for seed in 0..8 {
        keep(&store, &format!("https://example.org/{seed}"), &body(seed, 100_000));
    }
    let mut config = (*world.config.get()).clone();
    config.store.max_size = (1 << 19) + store.space.overhead();
    world.config.set(config);
    store.maintain();
    assert!(store.usage().bytes <= 1 << 19);
    assert!(store.usage().blobs > 2);
}
