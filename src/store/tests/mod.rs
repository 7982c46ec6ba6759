//! Tests of the store as a whole: durability, limits, and who may read what.

mod claims;
mod limits;
mod locks;
mod recovery;
mod rest;
mod retraction;
mod room;
mod share;
mod unreadable;

use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use hyper::http;
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::digest::{Algorithm, Algorithms, Hashing};
use crate::entry::Head;
use crate::proof::Proof;
use crate::received::{Received, Spooled};
use crate::target::{Partition, Target};
use crate::verify::{Expectation, Verdict, Verified, judge};

/// A data directory, and the configuration with which a store is opened.
struct World {
    data: TempDir,
    config: Live,
    clock: Clock,
    cap: u64,
}

impl World {
    fn new() -> Self {
        Self::with_cap(1 << 30)
    }

    fn with_cap(cap: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config { data: data.path().to_owned(), ..Config::default() };
        config.store.max_size = cap;
        config.store.min_free = 0;
        // For tests of the cap alone; tests of the share set it.
        config.store.max_body_share = 100;
        Self { data, config: Live::new(config), clock: Clock::system(), cap }
    }

    /// A world in which one body may take a quarter.
    fn shared(cap: u64) -> Self {
        let world = Self::with_cap(cap);
        let mut config = (*world.config.get()).clone();
        config.store.max_body_share = 25;
        world.config.set(config);
        world
    }

    fn open(&self) -> Arc<Store> {
        let store = Store::open(self.config.clone(), self.clock.clone()).unwrap();
        self.fit(&store);
        store
    }

    /// Raises the cap by the overhead: a test's cap is for bodies, and the directories of a few bodies take more than
    /// the bodies.
    fn fit(&self, store: &Store) {
        store.space.measure(&self.cache(""));
        let mut config = (*self.config.get()).clone();
        config.store.max_size = self.cap.saturating_add(store.space.overhead());
        self.config.set(config);
    }

    /// A world with the files as they are now, which another process would find after a kill.
    fn copied(&self) -> Self {
        let world = Self::with_cap(self.cap);
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            std::fs::create_dir_all(world.data.path().join(&directory)).unwrap();
            for file in self.data.path().join(&directory).read_dir().unwrap() {
                let path = directory.join(file.unwrap().file_name());
                let from = self.data.path().join(&path);
                if from.is_dir() {
                    directories.push(path);
                } else {
                    std::fs::copy(from, world.data.path().join(path)).unwrap();
                }
            }
        }
        Self { clock: self.clock.clone(), ..world }
    }

    fn cache(&self, path: &str) -> PathBuf {
        self.data.path().join("v1").join(path)
    }

    /// Every file below a directory of the cache.
    fn files(&self, path: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.cache(path)];
        while let Some(directory) = directories.pop() {
            for file in directory.read_dir().into_iter().flatten().flatten() {
                let path = file.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn blob_file(&self, id: BlobId) -> PathBuf {
        let shard = crate::digest::hex(&id.as_bytes()[..1]);
        self.cache("blobs").join(shard).join(id.to_hex())
    }
}

fn target(url: &str) -> Target {
    Target::from_url(url).unwrap()
}

fn body(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|n| seed.wrapping_add(u8::try_from(n % 251).unwrap())).collect()
}

fn id_of(bytes: &[u8]) -> BlobId {
    let mut hashing = Hashing::new(Algorithms::NONE);
    hashing.update(bytes);
    hashing.finish().blob()
}

fn spool(store: &Arc<Store>, bytes: &[u8]) -> Spooled {
    let wanted = Algorithms::NONE.with(Algorithm::Blake2b256).with(Algorithm::Md5);
    let mut spool = store.spool(Some(bytes.len() as u64), wanted).unwrap();
    for piece in bytes.chunks(100_000) {
        spool.append(piece).unwrap();
    }
    spool.finish()
}

fn verified(body: Spooled, at: Time) -> Verified {
    let received = Received {
        body,
        head: head(),
        plain: false,
        answered_by: None,
        resumed: false,
        requested_at: at,
        received_at: at,
    };
    let verdict = judge(received, &Expectation::nothing(Rank::Pinned), at);
    let Verdict::Keep(verified, None) = verdict else {
        panic!("{verdict:?}");
    };
    verified
}

fn head() -> Head {
    Head { status: StatusCode::OK, headers: HeaderMap::new() }
}

fn entry(url: &str, partition: Partition, at: Time) -> Entry {
    let target = target(url);
    Entry {
        key: target.key(partition),
        shown: target.to_string(),
        variant: String::new(),
        partition,
        ecosystem: "pypi".into(),
        index: false,
        blob: BlobId::new([0; 32]),
        size: 0,
        digests: Vec::new(),
        head: head(),
        varied: Vec::new(),
        proof: Proof::of(Rank::Pinned),
        generation: 0,
        answered_by: None,
        requested_at: at,
        received_at: at,
        checked_at: at,
    }
}

fn keep_in(store: &Arc<Store>, url: &str, partition: Partition, bytes: &[u8]) -> Arc<Entry> {
    let at = store.clock.now();
    let verified = verified(spool(store, bytes), at);
    store.commit(verified, entry(url, partition, at)).unwrap()
}

fn keep(store: &Arc<Store>, url: &str, bytes: &[u8]) -> Arc<Entry> {
    keep_in(store, url, Partition::Public, bytes)
}

/// What a client would get: the newest entry's body; `None` is a miss.
fn fetch(store: &Arc<Store>, url: &str) -> Option<Vec<u8>> {
    let entries = store.entries(target(url).key(Partition::Public));
    let blob = store.blob(entries.first()?.blob)?;
    let mut bytes = Vec::new();
    blob.open().unwrap().read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

const URL: &str = "https://files.example.org/packages/a-1.0.whl";

#[test]
fn what_is_kept_is_found_with_everything_that_was_said_of_it() {
    let world = World::new();
    let store = world.open();
    let chunk = usize::try_from(CHUNK).unwrap();
    let bytes = body(1, 3 * chunk + 5);
    let kept = keep(&store, URL, &bytes);
    assert_eq!((kept.blob, kept.size), (id_of(&bytes), bytes.len() as u64));
    assert_eq!(kept.digests.len(), 3);
    assert_eq!(store.has_blob(kept.blob), Some(kept.size));
    let blob = store.blob(kept.blob).unwrap();
    assert_eq!(blob.chunk(3).unwrap(), &bytes[3 * chunk..]);
    assert_eq!(blob.chunk(4).unwrap(), &b""[..]);
    assert_eq!(fetch(&store, URL).unwrap(), bytes);
    drop((store, blob));

    let store = world.open();
    assert_eq!(store.entries(kept.key), [Arc::clone(&kept)]);
    assert_eq!(fetch(&store, URL).unwrap(), bytes);
    assert_eq!(store.usage().by_rank[Rank::Pinned as usize], (Rank::Pinned, 1));
}

#[test]
fn an_empty_body_is_a_body() {
    let store = World::new().open();
    keep(&store, URL, b"");
    assert_eq!(fetch(&store, URL).unwrap(), b"");
}

#[test]
fn two_urls_with_the_same_bytes_share_them_until_the_last_goes() {
    let world = World::new();
    let store = world.open();
    let other = "https://mirror.example.org/a";
    let one = keep(&store, URL, b"same");
    let two = keep(&store, other, b"same");
    assert_eq!(world.files("blobs").len(), 1);
    store.remove(&one).unwrap();
    assert_eq!(fetch(&store, URL), None);
    assert_eq!(fetch(&store, other).unwrap(), b"same");
    store.remove(&two).unwrap();
    assert_eq!(world.files("blobs").len() + world.files("records").len(), 0);
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn a_url_that_changes_its_bytes_keeps_the_newest_three() {
    let world = World::new();
    let store = world.open();
    for seed in 0..5 {
        world.clock.advance(std::time::Duration::from_secs(1));
        keep(&store, URL, &[seed]);
    }
    let entries = store.entries(target(URL).key(Partition::Public));
    let bodies: Vec<BlobId> = entries.iter().map(|entry| entry.blob).collect();
    assert_eq!(bodies, [id_of(&[4]), id_of(&[3]), id_of(&[2])]);
    assert_eq!(world.files("records").len(), 3);
    assert_eq!(store.usage().entries, 3);
}

#[test]
fn a_spool_that_is_dropped_leaves_nothing() {
    let world = World::new();
    let store = world.open();
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    spool.append(b"half an answer").unwrap();
    assert_eq!(world.files("spool").len(), 1);
    drop(spool);
    assert_eq!(world.files("spool").len(), 0);
    let mut spool = store.spool(None, Algorithms::NONE).unwrap();
    spool.append(b"an answer").unwrap();
    let spooled = spool.finish();
    assert_eq!(spooled.digests.blob(), id_of(b"an answer"));
    assert_eq!(world.files("spool").len(), 1);
    drop(spooled);
    assert_eq!(world.files("spool").len(), 0);
    assert_eq!(store.usage().spool_bytes, 0);
}

#[test]
fn an_update_keeps_the_body_and_changes_the_rest() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"bytes");
    let newer = |entry: &mut Entry| {
        entry.proof = Proof::of(Rank::Indexed);
        entry.generation = 9;
        entry.size = 1;
    };
    let newer = store.update(&kept, newer).unwrap();
    assert_eq!(newer.size, 5, "the size is the body's");
    assert_eq!(store.entries(kept.key), [Arc::clone(&newer)]);
    let usage = store.usage();
    assert_eq!((usage.by_rank[2].1, usage.by_rank[4].1), (0, 1));
    store.remove(&newer).unwrap();
    let error = store.update(&newer, |_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

/// Promise P5: an update that is based on an older look-up must not restore an access right that has ended since.
#[test]
fn an_update_takes_nothing_back_that_was_written_since_its_entry_was_found() {
    let world = World::new();
    let store = world.open();
    let found = keep(&store, URL, b"bytes");
    let checked = found.checked_at.plus(std::time::Duration::from_secs(9));
    store.update(&found, |entry| entry.partition = Partition::Private([0; 16])).unwrap();
    store.update(&found, |entry| entry.checked_at = checked).unwrap();
    let now = store.update(&found, |entry| entry.generation = 9).unwrap();
    assert_eq!(now.partition, Partition::Private([0; 16]));
    assert_eq!((now.checked_at, now.generation), (checked, 9));
    assert_eq!(store.entries(found.key), [now]);
}

/// A clock that was ahead is set back: an entry kept earlier with a future date does not sort before one kept now.
#[test]
fn what_was_kept_in_the_future_makes_way_for_what_is_kept_now() {
    let world = World::new();
    let store = world.open();
    let near = keep(&store, URL, b"a moment ago");
    world.clock.advance(std::time::Duration::from_hours(24));
    let ahead = keep(&store, URL, b"ahead");
    assert_eq!(store.entries(near.key), [Arc::clone(&ahead), Arc::clone(&near)]);
    world.clock.set_back(std::time::Duration::from_hours(24));
    let now = keep(&store, URL, b"now");
    assert_eq!(store.entries(now.key).first(), Some(&now));
    assert!(!store.entries(now.key).contains(&ahead));
    assert!(store.entries(now.key).contains(&near), "an elder stays");
}

/// Promise P5: knowing a digest gives no access to private bytes.
#[test]
fn a_digest_finds_public_bodies_only() {
    let world = World::new();
    let store = world.open();
    let private = Partition::Private([7; 16]);
    let kept = keep_in(&store, URL, private, b"secret");
    let strong: Vec<Digest> =
        kept.digests.iter().filter(|digest| digest.algorithm().is_strong()).copied().collect();
    assert_eq!(strong.len(), 2);
    for digest in &kept.digests {
        assert_eq!(store.public_blob_by_digest(digest), None, "{digest}");
    }
    let mut linked = entry("https://evil.example.org/a", Partition::Public, kept.received_at);
    linked.blob = kept.blob;
    let error = store.link(linked.clone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);

    // The control: the same bytes, public.
    let public = keep(&store, URL, b"secret");
    for digest in &strong {
        assert_eq!(store.public_blob_by_digest(digest), Some(kept.blob));
    }
    let weak = kept.digests.iter().find(|d| d.algorithm() == Algorithm::Md5);
    assert_eq!(store.public_blob_by_digest(weak.unwrap()), None);
    let linked = store.link(linked).unwrap();
    assert_eq!(linked.size, 6);

    // After the last public entry is removed, only the private entry remains.
    store.remove(&public).unwrap();
    store.remove(&linked).unwrap();
    drop(store);
    let store = world.open();
    assert_eq!(store.public_blob_by_digest(&strong[1]), None);
    assert_eq!(store.entries(kept.key).len(), 1);
}

#[test]
fn an_entry_that_becomes_private_opens_no_door_any_more() {
    let store = World::new().open();
    let kept = keep(&store, URL, b"public");
    let sha256 = kept.digests.iter().find(|digest| digest.algorithm().is_strong()).unwrap();
    assert_eq!(store.public_blob_by_digest(sha256), Some(kept.blob));
    store.update(&kept, |entry| entry.partition = Partition::Private([7; 16])).unwrap();
    assert_eq!(store.public_blob_by_digest(sha256), None);
}

#[test]
fn a_second_larder_is_told_who_holds_the_directory() {
    let world = World::new();
    let store = world.open();
    store.set_holder("listening on [::]:3142");
    let Err(OpenError::Held { data, holder }) =
        Store::open(world.config.clone(), world.clock.clone())
    else {
        panic!("two stores on one directory");
    };
    assert_eq!(data, world.data.path().display().to_string());
    assert!(holder.contains("listening on [::]:3142"), "{holder}");
    drop(store);
    world.open();
}

#[test]
fn every_entry_is_listed_until_the_listener_has_enough() {
    let store = World::new().open();
    for seed in 0..20 {
        keep(&store, &format!("https://example.org/{seed}"), &[seed]);
    }
    let mut seen = 0;
    store.for_each_entry(&mut |_| {
        seen += 1;
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(seen, 20);
    store.for_each_entry(&mut |_| {
        seen += 1;
        std::ops::ControlFlow::Break(())
    });
    assert_eq!(seen, 21);
}

#[test]
fn many_threads_keep_and_remove_the_same_bodies() {
    let world = World::with_cap(1 << 20);
    let store = world.open();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let store = &store;
            scope.spawn(move || {
                for turn in 0..25_u32 {
                    let number = (thread + turn) % 5;
                    let url = format!("https://example.org/{number}");
                    let bytes = body(u8::try_from(number).unwrap(), 100_000);
                    let kept = keep(store, &url, &bytes);
                    if let Some(found) = fetch(store, &url) {
                        assert_eq!(found, bytes);
                    }
                    if turn % 7 == 0 {
                        store.remove(&kept).unwrap();
                    }
                }
            });
        }
    });
    store.maintain();
    let usage = store.usage();
    drop(store);
    let again = world.open().usage();
    assert_eq!((again.entries, again.blobs), (usage.entries, usage.blobs));
    assert_eq!(world.files("spool").len(), 0);
}
