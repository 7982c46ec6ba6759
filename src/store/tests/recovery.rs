//! Promise P8: whatever is truncated, damaged or deleted, no wrong bytes are served, and intact data on disk is found
//! again.

use super::*;

#[test]
fn leftovers_of_a_crash_are_removed_and_the_rest_is_found() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    let unnamed = keep(&store, "https://example.org/unnamed", b"no record names it");
    let bodiless = keep(&store, "https://example.org/bodiless", b"its body is missing");
    drop(store);
    let records = world.files("records");
    let of =
        |id: BlobId| records.iter().find(|path| path.to_string_lossy().ends_with(&id.to_hex()));
    std::fs::remove_file(of(unnamed.blob).unwrap()).unwrap();
    std::fs::remove_file(world.blob_file(bodiless.blob)).unwrap();
    // Half a spool file, checksums whose body was not renamed yet, and temporary files.
    let orphan = id_of(b"orphan");
    let leftovers = [
        world.cache("spool").join("17"),
        world.blob_file(orphan).with_extension("crc"),
        world.blob_file(orphan).with_file_name(".x.0.tmp"),
        world.cache("records/aa/.x.0.tmp"),
        world.cache("claims/.x.0.tmp"),
        // Temporary files of the single files, under the very name that the next process uses first.
        world.cache(".marks.0.tmp"),
        world.cache("../state/.secret.0.tmp"),
    ];
    for leftover in &leftovers {
        durable::write(leftover, b"half", 0o600).unwrap();
    }

    let store = world.open();
    for leftover in &leftovers {
        assert!(!leftover.exists(), "{}", leftover.display());
    }
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    assert_eq!(store.entries(unnamed.key), []);
    assert_eq!(store.entries(bodiless.key), []);
    assert_eq!(store.has_blob(unnamed.blob), None);
    assert_eq!(world.files("blobs").len(), 1);
    assert_eq!(world.files("records").len(), 1);
    assert_eq!(store.usage().entries, 1);
    assert_eq!(store.entries(kept.key).len(), 1);
}

#[test]
fn a_record_that_the_ledger_never_heard_of_is_found() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    // As after a crash between writing the record and updating the ledger.
    store.ledger.remove(kept.key, kept.blob).unwrap();
    drop(store);
    let store = world.open();
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    // From then on the ledger has it.
    assert_eq!(store.ledger.of_key(kept.key).unwrap().len(), 1);
}

/// Calls `damage` on the ledger between two starts.
fn after_damage(damage: impl Fn(&World)) {
    let world = World::new();
    let store = world.open();
    let kept: Vec<Arc<Entry>> = (0..40)
        .map(|seed| keep(&store, &format!("https://example.org/{seed}"), &[seed; 500]))
        .collect();
    drop(store);
    damage(&world);
    for _ in 0..2 {
        let store = world.open();
        for entry in &kept {
            assert_eq!(store.entries(entry.key), [Arc::clone(entry)]);
            let blake = entry.digests.iter().find(|d| d.algorithm() == Algorithm::Blake2b256);
            assert_eq!(store.public_blob_by_digest(blake.unwrap()), Some(entry.blob));
        }
        assert_eq!(store.usage().ledger_failures, 0);
        assert_eq!(store.usage().entries, 40);
    }
}

#[test]
fn a_missing_ledger_is_rebuilt() {
    after_damage(|world| std::fs::remove_dir_all(world.cache("ledger")).unwrap());
}

#[test]
fn a_halved_ledger_is_completed() {
    after_damage(|world| {
        let path = world.cache("ledger/db");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length / 2).unwrap();
    });
}

#[test]
fn an_overwritten_ledger_is_completed() {
    after_damage(|world| {
        let path = world.cache("ledger/db");
        let length = path.metadata().unwrap().len();
        let garbage = body(3, usize::try_from(length).unwrap());
        durable::write(&path, &garbage, 0o600).unwrap();
    });
}

#[test]
fn a_snapshot_that_was_being_written_does_not_stop_the_ledger() {
    after_damage(|world| {
        durable::write(&world.cache("ledger/snap.00000000ABCD.generating"), b"half", 0o600)
            .unwrap();
    });
}

/// Promise P6: without the ledger everything works from the records.
#[test]
fn a_ledger_that_fails_while_larder_runs_costs_no_answer() {
    let world = World::new();
    let store = world.open();
    let before = keep(&store, URL, b"before");
    store.ledger.fail();
    store.recent.clear();
    assert_eq!(fetch(&store, URL).unwrap(), b"before");
    let after = keep(&store, "https://example.org/after", b"after");
    assert_eq!(fetch(&store, "https://example.org/after").unwrap(), b"after");
    assert_eq!(store.usage().ledger_failures, 1);
    let mut seen = 0;
    store.for_each_entry(&mut |_| {
        seen += 1;
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(seen, 2);
    store.remove(&before).unwrap();
    assert_eq!(fetch(&store, URL), None);
    store.maintain();
    drop(store);
    let store = world.open();
    assert_eq!(store.usage().ledger_failures, 0);
    assert_eq!(store.entries(after.key).len(), 1);
    assert_eq!(store.entries(before.key).len(), 0);
}

#[test]
fn a_body_that_was_evicted_without_a_ledger_is_kept_again() {
    let world = World::new();
    let store = world.open();
    keep(&store, URL, b"kept");
    store.ledger.fail();
    assert!(store.evict_one(Spared::default()));
    assert_eq!(fetch(&store, URL), None);
    let again = keep(&store, URL, b"kept");
    store.maintain();
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    let sha256 = again.digests.first().unwrap();
    assert_eq!(store.public_blob_by_digest(sha256), Some(again.blob));
    assert_eq!(store.usage().entries, 1);
    // It can be removed like any other.
    store.remove(&again).unwrap();
    assert_eq!(world.files("blobs").len() + world.files("records").len(), 0);
}

#[test]
fn the_records_of_what_was_evicted_without_a_ledger_go() {
    let world = World::new();
    let store = world.open();
    for seed in 0..5 {
        world.clock.advance(std::time::Duration::from_secs(1));
        keep(&store, &format!("https://example.org/{seed}"), &[seed]);
    }
    store.ledger.fail();
    assert!(store.evict_one(Spared::default()) && store.evict_one(Spared::default()));
    store.maintain();
    assert_eq!(world.files("records").len(), 3);
    assert_eq!(store.usage().entries, 3);
    assert_eq!(fetch(&store, "https://example.org/4").unwrap(), [4]);
}

#[test]
fn what_changes_after_the_ledger_was_closed_is_known_at_the_next_start() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    let gone = keep(&store, "https://example.org/gone", b"gone");
    store.close();
    let newer = store.update(&kept, |entry| entry.generation = 7).unwrap();
    keep(&store, "https://example.org/late", b"late");
    store.remove(&gone).unwrap();
    drop(store);
    let store = world.open();
    assert_eq!(store.entries(kept.key), [newer]);
    assert_eq!(fetch(&store, "https://example.org/late").unwrap(), b"late");
    assert_eq!(store.entries(gone.key), []);
}

#[test]
fn a_damaged_record_is_a_miss_and_is_removed() {
    let world = World::new();
    let store = world.open();
    keep(&store, URL, b"kept");
    drop(store);
    let path = world.files("records").remove(0);
    let mut record = std::fs::read(&path).unwrap();
    record[40] ^= 1;
    durable::write(&path, &record, 0o600).unwrap();
    // With the ledger's copy it is still an entry; without it, it is a miss.
    std::fs::remove_dir_all(world.cache("ledger")).unwrap();
    let store = world.open();
    assert_eq!(fetch(&store, URL), None);
    assert_eq!(world.files("records").len() + world.files("blobs").len(), 0);
    keep(&store, URL, b"kept");
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
}

#[test]
fn a_damaged_chunk_is_never_given_and_becomes_a_miss() {
    let world = World::new();
    let store = world.open();
    let bytes = body(9, 600_000);
    let kept = keep(&store, URL, &bytes);
    let mut damaged = bytes.clone();
    damaged[300_000] ^= 0x40;
    durable::write(&world.blob_file(kept.blob), &damaged, 0o600).unwrap();
    let blob = store.blob(kept.blob).unwrap();
    let chunk = usize::try_from(CHUNK).unwrap();
    assert!(blob.chunk(0).unwrap() == bytes[..chunk]);
    let error = blob.chunk(300_000 / CHUNK).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(store.entries(kept.key), []);
    assert_eq!(store.has_blob(kept.blob), None);
    assert_eq!(store.usage().damaged, 1);
    assert_eq!(world.files("blobs").len(), 0);
    keep(&store, URL, &bytes);
    assert_eq!(fetch(&store, URL).unwrap(), bytes);
}

#[test]
fn damaged_or_missing_sums_and_a_cut_body_are_misses() {
    let cases: [fn(&World, BlobId); 3] = [
        |world, id| {
            let side = world.blob_file(id).with_extension("crc");
            let mut sums = std::fs::read(&side).unwrap();
            *sums.last_mut().unwrap() ^= 1;
            durable::write(&side, &sums, 0o600).unwrap();
        },
        |world, id| std::fs::remove_file(world.blob_file(id).with_extension("crc")).unwrap(),
        |world, id| durable::write(&world.blob_file(id), b"kep", 0o600).unwrap(),
    ];
    let bytes = body(1, 100_000);
    for damage in cases {
        let world = World::new();
        let kept = keep(&world.open(), URL, &bytes);
        damage(&world, kept.blob);
        let store = world.open();
        assert_eq!(fetch(&store, URL), None);
        assert_eq!(store.entries(kept.key), []);
        keep(&store, URL, &bytes);
        assert_eq!(fetch(&store, URL).unwrap(), bytes);
    }
}

/// A body of one chunk has no checksum file; its name is its checksum.
#[test]
fn a_small_body_is_hashed_at_its_first_opening() {
    for (planted, expected) in [(b"kept", true), (b"evil", false)] {
        let world = World::new();
        let kept = keep(&world.open(), URL, b"kept");
        let file = world.blob_file(kept.blob);
        assert_eq!(world.files("blobs"), std::slice::from_ref(&file));
        durable::write(&file, planted, 0o600).unwrap();
        // An earlier version wrote one. A file that agrees with the planted bytes does not vouch for them.
        let side = file.with_extension("crc");
        let kind = sealed::Kind { magic: *b"LcrC", version: 1 };
        let sums = (4_u64, vec![crc32fast::hash(planted)]);
        durable::write(&side, &sealed::seal(kind, &sums).unwrap(), 0o600).unwrap();
        let store = world.open();
        assert!(!side.exists());
        assert_eq!(fetch(&store, URL).is_some(), expected);
        assert_eq!(store.entries(kept.key).len(), usize::from(expected));
        assert_eq!(store.usage().damaged, u64::from(!expected));
        if expected {
            // Damage that comes later is found as in any other body.
            durable::write(&file, b"evil", 0o600).unwrap();
            assert_eq!(fetch(&store, URL), None);
            assert_eq!(store.usage().damaged, 1);
        }
    }
}

#[test]
fn verify_finds_what_checksums_would_not() {
    let world = World::new();
    let store = world.open();
    let sound = keep(&store, URL, &body(1, 300_000));
    let forged = keep(&store, "https://example.org/forged", &body(2, 70_000));
    let gone = keep(&store, "https://example.org/gone", b"gone");
    drop(store);
    // Bytes and checksums that match each other, but not the name.
    let evil = body(3, 70_000);
    durable::write(&world.blob_file(forged.blob), &evil, 0o600).unwrap();
    let chunks = evil.chunks(usize::try_from(CHUNK).unwrap()).map(crc32fast::hash);
    let sums = (70_000_u64, chunks.collect::<Vec<_>>());
    let kind = sealed::Kind { magic: *b"LcrC", version: 1 };
    let side = world.blob_file(forged.blob).with_extension("crc");
    durable::write(&side, &sealed::seal(kind, &sums).unwrap(), 0o600).unwrap();
    let store = world.open();
    std::fs::remove_file(world.blob_file(gone.blob)).unwrap();
    let mut last = (0, 0);
    let verification = store.verify_all(&mut |done, total| last = (done, total));
    assert_eq!(verification.sound, 1);
    assert_eq!(verification.damaged, [forged.blob]);
    assert_eq!(verification.gone, 1);
    assert_eq!(last, (300_000 + 70_000 + 4, 300_000 + 70_000 + 4));
    assert_eq!(store.entries(forged.key), []);
    assert_eq!(store.entries(sound.key).len(), 1);
}

#[test]
fn the_cache_may_be_deleted_while_larder_runs() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    let reading = store.blob(kept.blob).unwrap();
    let mut running = store.spool(None, Algorithms::NONE).unwrap();
    running.append(b"half").unwrap();
    std::fs::remove_dir_all(world.cache("")).unwrap();

    assert_eq!(fetch(&store, URL), None, "a miss");
    assert_eq!(reading.chunk(0).unwrap(), &b"kept"[..], "who reads goes on");
    assert_eq!(store.entries(kept.key), []);
    // A running fill can no longer be kept; it continues for its client.
    running.append(b" and half").unwrap();
    let at = world.clock.now();
    let late = verified(running.finish(), at);
    assert!(store.commit(late, entry(URL, Partition::Public, at)).is_err());
    // The next one is kept as usual.
    keep(&store, URL, b"kept");
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    store.maintain();
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    assert_eq!(store.usage().entries, 1);
    keep(&store, "https://example.org/b", b"b");
    drop((store, reading));
    let store = world.open();
    assert_eq!(fetch(&store, URL).unwrap(), b"kept");
    assert_eq!(store.usage().entries, 2);
    assert_eq!(store.usage().damaged, 0);
}

#[test]
fn rejections_and_state_survive_a_restart() {
    let world = World::new();
    let store = world.open();
    let secret = store.secret();
    let at = Target::from_url("https://example.org/a").unwrap();
    store.note_rejection(&at, "promised x, came y", world.clock.now());
    drop(store);
    let store = world.open();
    assert_eq!(store.rejections(&at).len(), 1);
    assert_eq!(store.secret(), secret);
}
