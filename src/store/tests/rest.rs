//! Where a body's file is from its first byte on, and that idle files are closed (issue 17, faults 2 and 7).

#![expect(clippy::disallowed_methods, reason = "what the process has open is seen from outside")]

use std::os::unix::fs::MetadataExt as _;

use super::*;

/// The files of one directory of the cache that this process has open.
fn open_below(world: &World, directory: &str) -> usize {
    let directory = world.cache(directory).canonicalize().unwrap();
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&directory)))
        .count()
}

#[test]
fn files_that_nobody_reads_are_closed_by_the_upkeep() {
    let world = World::new();
    let store = world.open();
    for seed in 0..20 {
        let url = format!("https://example.org/team/files/{seed}.whl");
        keep(&store, &url, &body(seed, 1000));
        assert!(fetch(&store, &url).is_some());
        let index = format!("https://example.org/team/simple/{seed}/");
        claims::publish(&store, &index, "https://example.org/team/", &url, seed);
        claims::promises_of(&store, &url);
    }
    let reading = store.blob(id_of(&body(0, 1000))).unwrap();
    assert!(reading.chunk(0).is_ok());
    // The control: while a build goes on they stay open.
    assert!(open_below(&world, "blobs") >= 20 && open_below(&world, "claims") >= 20);
    store.maintain();
    assert_eq!((open_below(&world, "blobs"), open_below(&world, "claims")), (1, 0));
    assert!(reading.chunk(0).is_ok(), "what is being read stays open");
    // Requested again, it is opened again.
    assert_eq!(fetch(&store, "https://example.org/team/files/3.whl").unwrap(), body(3, 1000));
    let promised = claims::promises_of(&store, "https://example.org/team/files/3.whl");
    assert_eq!(promised.len(), 1);
}

/// The upkeep forgets what readers shared, but for the checksum of a body of one chunk.
#[test]
fn a_body_that_rots_after_the_upkeep_is_never_served() {
    for length in [1000, 100_000] {
        let world = World::new();
        let store = world.open();
        let bytes = body(7, length);
        let kept = keep(&store, URL, &bytes);
        store.maintain();
        assert_eq!(fetch(&store, URL).unwrap(), bytes, "the control");
        store.maintain();
        let file = world.blob_file(kept.blob);
        let mut rotten = bytes.clone();
        rotten[length - 1] ^= 1;
        std::fs::write(&file, rotten).unwrap();
        assert_eq!(fetch(&store, URL), None);
        assert!(store.entries(kept.key).is_empty());
    }
}

/// A body is never copied, nor renamed from one file system to another, which fails where a container has a volume for
/// one of the two (git-pkgs#66).
#[test]
fn a_body_is_received_where_it_is_kept() {
    let world = World::new();
    let store = world.open();
    let bytes = body(7, 100_000);
    let mut spool = store.spool(Some(100_000), Algorithms::NONE).unwrap();
    spool.append(&bytes).unwrap();
    let files = world.files("spool");
    let [arriving] = files.as_slice() else { panic!("{files:?}") };
    let arriving = arriving.metadata().unwrap();
    let at = store.clock.now();
    let kept =
        store.commit(verified(spool.finish(), at), entry(URL, Partition::Public, at)).unwrap();
    let file = world.blob_file(kept.blob).metadata().unwrap();
    assert_eq!((arriving.dev(), arriving.ino()), (file.dev(), file.ino()));
    // The control: the same bytes in another file are another inode.
    std::fs::write(world.cache("copy"), &bytes).unwrap();
    assert_ne!(world.cache("copy").metadata().unwrap().ino(), file.ino());
}
