//! An I/O error is not damage (DESIGN §6; issue 10, row 5): if the process has no free file descriptor, or a disk does
//! not respond, larder loses nothing that is stored and takes no claim for absent.

#![expect(clippy::disallowed_methods, reason = "what somebody does to the files from outside")]

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::claim::{Claim, ClaimSink as _, Promise, Standing, Topic};
use crate::store::durable::failing;
use crate::target::Root;

const FILE: &str = "https://example.org/team/files/a-1.0.whl";
const INDEX: &str = "https://example.org/team/simple/a/";

/// While this lives, reads fail for the files below a directory of the cache.
struct Failing;

impl Failing {
    fn below(directory: &'static str) -> Self {
        Self::where_(move |path| path.components().any(|part| part.as_os_str() == directory))
    }

    fn where_(fails: impl Fn(&Path) -> bool + 'static) -> Self {
        failing(Some(Box::new(fails)));
        Self
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        failing(None);
    }
}

fn topic() -> Topic {
    Topic::new("pypi", "a")
}

fn publish(store: &Arc<Store>, byte: u8) {
    let mut batch = store.begin_claims(&target(INDEX), id_of(&[byte])).unwrap();
    let digests = vec![Digest::new(Algorithm::Sha256, &[byte; 32]).unwrap()];
    batch.claim(Claim { target: target(FILE), topic: topic(), digests, size: None }).unwrap();
    let root = Root::directory_of(&target("https://example.org/team/"));
    let standing = Standing { rank: Rank::Indexed, root };
    batch.publish(&standing, store.clock.now()).unwrap();
}

fn promises(store: &Arc<Store>) -> Vec<Promise> {
    store.promises(&target(FILE), &[topic()], store.clock.now())
}

fn expected(store: &Arc<Store>) -> Expectation {
    Expectation { promises: promises(store), ..Expectation::nothing(Rank::Pinned) }
}

#[test]
fn a_body_that_cannot_be_opened_stays() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 200_000));
    store.blobs.close_idle();
    {
        let _out_of_descriptors = Failing::below("blobs");
        assert!(store.blob(kept.blob).is_none());
        assert!(store.open_blob(kept.blob).is_err());
        assert!(store.has_blob(kept.blob).is_some());
    }
    assert_eq!(fetch(&store, URL).unwrap(), body(1, 200_000));
    assert_eq!(store.usage().damaged, 0);
    // The control: an entry whose body is missing is removed.
    store.blobs.close_idle();
    std::fs::remove_file(world.blob_file(kept.blob)).unwrap();
    assert!(store.open_blob(kept.blob).unwrap().is_none());
    assert!(store.has_blob(kept.blob).is_none());
}

#[test]
fn a_chunk_that_cannot_be_read_breaks_one_answer_and_nothing_else() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 200_000));
    let blob = store.blob(kept.blob).unwrap();
    {
        let _the_disk_does_not_answer = Failing::below("blobs");
        assert!(blob.chunk(0).is_err());
        let found = store.verify_all(&mut |_, _| {});
        assert_eq!((found.sound, found.damaged.len(), found.unread), (0, 0, 1));
    }
    assert!(blob.chunk(0).is_ok());
    // The control: a chunk with wrong bytes takes the body out of service.
    let mut bytes = body(1, 200_000);
    bytes[7] ^= 1;
    std::fs::write(world.blob_file(kept.blob), bytes).unwrap();
    assert!(blob.chunk(0).is_err());
    assert!(store.has_blob(kept.blob).is_none());
}

#[test]
fn all_readers_of_a_body_share_one_open_file() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 200_000));
    let file = world.blob_file(kept.blob).canonicalize().unwrap();
    let open = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file)).count()
    };
    let readers: Vec<Blob> = (0..500).map(|_| store.blob(kept.blob).unwrap()).collect();
    assert_eq!(open(), 1);
    drop(readers);
    // It stays open for the next reader, until another body needs the slot or this one is removed.
    assert_eq!(open(), 1);
    store.remove(&kept).unwrap();
    let gone = PathBuf::from(format!("{} (deleted)", file.display()));
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let still = all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == gone));
    assert_eq!((open(), still.count()), (0, 0));
}

#[test]
fn a_file_that_somebody_replaced_is_opened_anew() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, &body(1, 200_000));
    let reading = store.blob(kept.blob).unwrap();
    let file = world.blob_file(kept.blob);
    let copy = file.with_extension("copy");
    std::fs::copy(&file, &copy).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&copy, &file).unwrap();
    assert_eq!(fetch(&store, URL).unwrap(), body(1, 200_000));
    assert!(reading.chunk(0).is_ok());
}

/// Without the ledger every record is read. Where that fails, entry and body stay for the next start.
#[test]
fn what_a_start_cannot_read_is_there_at_the_next() {
    for directory in ["records", "blobs", "claims", "marks"] {
        let world = World::new();
        let store = world.open();
        keep(&store, URL, &body(1, 200_000));
        publish(&store, 1);
        drop(store);
        std::fs::remove_dir_all(world.cache("ledger")).unwrap();
        let before = (world.files("blobs"), world.files("records"), world.files("claims"));
        {
            let _out_of_descriptors = Failing::below(directory);
            let store = world.open();
            store.maintain();
            if matches!(directory, "records" | "blobs") {
                assert_eq!(fetch(&store, URL), None, "the control: {directory} could not be read");
            }
            store.close();
        }
        let after = (world.files("blobs"), world.files("records"), world.files("claims"));
        assert_eq!(after, before, "{directory}");
        let store = world.open();
        assert_eq!(fetch(&store, URL).unwrap(), body(1, 200_000), "{directory}");
        assert_eq!(promises(&store).len(), 1, "{directory}");
    }
}

/// Two records name a body and one cannot be read: removing the other does not remove the body.
#[test]
fn a_body_whose_record_cannot_be_read_is_not_taken_for_nobodys() {
    let world = World::new();
    let store = world.open();
    keep(&store, URL, b"body");
    drop(store);
    std::fs::remove_dir_all(world.cache("ledger")).unwrap();
    {
        let name = |path: &Path| path.extension().is_none() && path.to_string_lossy().contains('-');
        let _fails = Failing::where_(move |path| {
            name(path) && path.components().any(|part| part.as_os_str() == "records")
        });
        world.open().maintain();
    }
    assert_eq!(fetch(&world.open(), URL).unwrap(), b"body");
}

#[test]
fn an_entry_that_cannot_be_read_is_not_remembered_as_nothing() {
    let world = World::new();
    let store = world.open();
    keep(&store, URL, b"body");
    store.ledger.fail();
    store.recent.clear();
    {
        let _fails = Failing::below("records");
        assert_eq!(fetch(&store, URL), None, "the control");
    }
    assert_eq!(fetch(&store, URL).unwrap(), b"body");
}

#[test]
fn a_promise_that_cannot_be_read_binds_and_proves_nothing() {
    let world = World::new();
    drop({
        let store = world.open();
        publish(&store, 1);
        store
    });
    // After a start its segment is not open.
    let store = world.open();
    {
        let _out_of_descriptors =
            Failing::where_(|path| path.components().any(|part| part.as_os_str() == "claims"));
        let expected = expected(&store);
        assert!(expected.unread().is_some() && expected.binds());
        let digest = Digest::new(Algorithm::Sha256, &[1; 32]).unwrap();
        assert!(expected.proof_of(&[digest], 1).is_none());
    }
    let expected = expected(&store);
    assert!(expected.unread().is_none() && expected.binds());
    assert_eq!(world.files("claims").len(), 1);
    drop(store);
    // The control: a damaged segment makes no claims.
    std::fs::write(&world.files("claims")[0], b"damaged").unwrap();
    let store = world.open();
    assert!(promises(&store).is_empty() && world.files("claims").is_empty());
}

#[test]
fn claims_that_a_start_could_not_read_bind_everything_until_they_are_read() {
    let world = World::new();
    drop({
        let store = world.open();
        publish(&store, 1);
        store
    });
    let store = {
        let _out_of_descriptors = Failing::below("claims");
        let store = world.open();
        assert!(expected(&store).unread().is_some());
        store
    };
    let generation = store.generation();
    let expected = expected(&store);
    assert!(expected.unread().is_none() && expected.binds(), "{:?}", expected.promises);
    assert!(store.generation() > generation, "what was judged meanwhile is judged again");
}

#[test]
fn a_new_version_of_an_index_is_not_taken_while_a_signed_promise_cannot_be_read() {
    let world = World::new();
    drop({
        let store = world.open();
        publish(&store, 1);
        store
    });
    let store = world.open();
    let mut batch = store.begin_claims(&target(INDEX), id_of(&[2])).unwrap();
    batch.compare();
    let digests = vec![Digest::new(Algorithm::Sha256, &[2; 32]).unwrap()];
    {
        let _fails = Failing::below("claims");
        let claim = Claim { target: target(FILE), topic: topic(), digests, size: None };
        batch.claim(claim).unwrap();
    }
    let root = Root::directory_of(&target("https://example.org/team/"));
    let standing = Standing { rank: Rank::Indexed, root };
    let error = batch.publish(&standing, store.clock.now()).unwrap_err();
    assert!(may_pass(&error), "{error}");
    assert!(store.current_claims(&target(INDEX)).unwrap().document == id_of(&[1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever cannot be read during use, start-up and maintenance: bodies, records and claims on disk never shrink,
    /// and everything is served again afterwards.
    #[test]
    fn out_of_descriptors_nothing_on_disk_shrinks(
        steps in proptest::collection::vec((0_u8..5, any::<u64>(), 1_u64..4), 1..12),
    ) {
        let world = World::new();
        let urls: Vec<String> =
            (0..6).map(|n| format!("https://example.org/team/files/{n}.whl")).collect();
        let mut store = world.open();
        for (n, url) in urls.iter().enumerate() {
            keep(&store, url, &body(u8::try_from(n).unwrap(), 70_000));
        }
        publish(&store, 1);
        let on_disk = || (world.files("blobs"), world.files("records"), world.files("claims"));
        let before = on_disk();
        for (step, salt, share) in steps {
            {
                let _fails = Failing::where_(move |path| {
                    let name = path.to_string_lossy();
                    let cached = name.contains("/v1/") && !name.contains("/ledger");
                    cached && u64::from(crc32fast::hash(name.as_bytes())).wrapping_mul(salt | 1) % 4 < share
                });
                match step {
                    0 => for url in &urls {
                        fetch(&store, url);
                    },
                    1 => {
                        let unread = expected(&store).unread().is_some();
                        prop_assert!(unread || expected(&store).binds(), "a promise was lost");
                    }
                    2 => {
                        drop(store);
                        store = world.open();
                    }
                    3 => store.maintain(),
                    _ => {
                        drop(store);
                        std::fs::remove_dir_all(world.cache("ledger")).unwrap();
                        store = world.open();
                        store.verify_all(&mut |_, _| {});
                    }
                }
            }
            prop_assert_eq!(&on_disk(), &before);
        }
        drop(store);
        let store = world.open();
        for (n, url) in urls.iter().enumerate() {
            prop_assert_eq!(fetch(&store, url).unwrap(), body(u8::try_from(n).unwrap(), 70_000));
        }
        prop_assert!(expected(&store).unread().is_none() && expected(&store).binds());
    }
}
