//! Promise P7: the accounts include everything that takes disk space.

use std::os::unix::fs::MetadataExt as _;

use super::commit::MAX_PER_BODY;
use super::*;

/// The disk space of the files of bodies, spools and records.
fn on_disk(world: &World) -> u64 {
    ["blobs", "spool", "records"]
        .iter()
        .flat_map(|path| world.files(path))
        .map(|file| file.metadata().unwrap().blocks() * 512)
        .sum()
}

#[test]
fn one_body_under_many_urls_does_not_pass_the_cap() {
    let cap = 20 * 4096;
    let world = World::with_cap(cap);
    let store = world.open();
    for number in 0..40 {
        keep(&store, &format!("https://example.org/x?i={number}"), b"the same small answer");
        assert!(on_disk(&world) <= cap, "{number}: {}", on_disk(&world));
        assert!(on_disk(&world) <= store.usage().bytes);
    }
    assert!(store.usage().evicted > 0);
    assert_eq!(fetch(&store, "https://example.org/x?i=39").unwrap(), b"the same small answer");
}

#[test]
fn the_room_of_a_record_comes_and_goes_with_it() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    let alone = store.usage().bytes;
    assert_eq!(alone, on_disk(&world));
    let value = http::HeaderValue::from_str(&"x".repeat(30_000)).unwrap();
    let change = |entry: &mut Entry| drop(entry.head.headers.insert("x-fat", value));
    let fat = store.update(&kept, change).unwrap();
    assert_eq!(store.usage().bytes, on_disk(&world));
    assert!(store.usage().bytes > alone + 28_000);
    let other = keep(&store, "https://example.org/other", b"kept");
    drop(store);
    // After a restart the count is the same.
    let store = world.open();
    assert_eq!(store.usage().bytes, on_disk(&world));
    store.remove(&fat).unwrap();
    assert_eq!(store.usage().bytes, alone);
    store.remove(&other).unwrap();
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn of_very_many_urls_of_one_body_the_oldest_go() {
    let world = World::new();
    let store = world.open();
    let url = |number: usize| format!("https://example.org/{number}/__init__.py");
    for number in 0..=MAX_PER_BODY {
        world.clock.advance(std::time::Duration::from_secs(1));
        keep(&store, &url(number), b"");
    }
    assert!(world.files("records").len() <= MAX_PER_BODY);
    assert_eq!(fetch(&store, &url(0)), None);
    for number in MAX_PER_BODY / 2..=MAX_PER_BODY {
        assert_eq!(fetch(&store, &url(number)).unwrap(), b"", "{number}");
    }
    assert_eq!(store.usage().entries, world.files("records").len() as u64);
}

#[test]
fn a_file_that_somebody_still_reads_takes_its_room() {
    let world = World::with_cap(1 << 20);
    let store = world.open();
    let mut readers = Vec::new();
    for seed in 0..3 {
        let spooled = spool(&store, &body(seed, 300_000));
        readers.push(Arc::clone(&spooled.file));
        // It was delivered, and is not kept.
        drop(spooled);
    }
    assert_eq!(world.files("spool").len(), 0);
    assert!(store.usage().spool_bytes > 900_000);
    let mut next = store.spool(None, Algorithms::NONE).unwrap();
    assert!(matches!(next.append(&body(9, 300_000)), Err(SpoolError::Full(_))));
    // The same for a body that is still arriving and is given up.
    readers.push(next.reader());
    drop(next);
    // The control: finished readers free the room.
    readers.clear();
    assert_eq!(store.usage().spool_bytes, 0);
    let mut next = store.spool(None, Algorithms::NONE).unwrap();
    next.append(&body(9, 300_000)).unwrap();
}

/// Issue 17: the cap counted neither the ledger nor directories.
#[test]
fn the_cap_holds_with_the_ledger_and_the_directories() {
    let world = World::with_cap(2 << 20);
    let store = world.open();
    for number in 0..300_u16 {
        let bytes = number.to_be_bytes().repeat(500);
        keep(&store, &format!("https://example.org/{number}"), &bytes);
    }
    store.maintain();
    let cache = world.cache("");
    let du = std::process::Command::new("du").arg("-s").arg("-B1").arg(&cache).output().unwrap();
    let text = String::from_utf8(du.stdout).unwrap();
    let on_disk: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
    let usage = store.usage();
    assert!(on_disk <= usage.cap, "{on_disk} {usage:?}");
    assert!(usage.overhead_bytes > 100 * 4096 && usage.blobs > 50, "{usage:?}");
}
