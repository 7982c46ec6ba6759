//! Sets of claims: which index may claim what about which target (promise P4), for how long, and how many.

use std::time::Duration;

use super::*;
use crate::claim::{Claim, ClaimSink as _, IndexVersion, Promise, Relation, Standing, Topic};
use crate::config::SpeaksFor;
use crate::target::Root;

pub(super) const FILE: &str = "https://example.org/team/files/a-1.0.whl";

fn topic() -> Topic {
    Topic::new("pypi", "a")
}

fn digest(byte: u8) -> Digest {
    Digest::new(Algorithm::Sha256, &[byte; 32]).unwrap()
}

pub(super) fn root(url: &str) -> Root {
    Root::directory_of(&target(url))
}

fn claim(url: &str, byte: u8) -> Claim {
    Claim {
        target: target(url),
        topic: topic(),
        digests: vec![digest(byte)],
        size: Some(u64::from(byte)),
    }
}

fn document(name: &str, byte: u8) -> BlobId {
    id_of(format!("{name} {byte}").as_bytes())
}

/// Publishes an index at `index` with the root `speaks`, which claims that `file` has the digest `byte`.
pub(super) fn publish(
    store: &Arc<Store>,
    index: &str,
    speaks: &str,
    file: &str,
    byte: u8,
) -> Arc<IndexVersion> {
    let mut batch = store.begin_claims(&target(index), document(index, byte)).unwrap();
    batch.claim(claim(file, byte)).unwrap();
    let standing = Standing { rank: Rank::Indexed, root: root(speaks) };
    batch.publish(&standing, store.clock.now()).unwrap()
}

pub(super) fn promises(store: &Arc<Store>) -> Vec<Promise> {
    promises_of(store, FILE)
}

pub(super) fn promises_of(store: &Arc<Store>, file: &str) -> Vec<Promise> {
    store.promises(&target(file), &[topic()], store.clock.now())
}

/// Index and relation of each promise, newest first.
fn relations(store: &Arc<Store>) -> Vec<(String, Relation)> {
    promises(store)
        .iter()
        .map(|promise| (promise.index.path().to_owned(), promise.relation))
        .collect()
}

#[test]
fn claims_come_back_with_all_their_digests_also_after_a_restart() {
    let world = World::new();
    let store = world.open();
    let index = target("https://example.org/team/simple/a/?x=1").with_variant("json");
    let digests = vec![
        Digest::new(Algorithm::Md5, &[1; 16]).unwrap(),
        digest(2),
        Digest::new(Algorithm::Sha512, &[3; 64]).unwrap(),
    ];
    let mut batch = store.begin_claims(&index, document("a", 0)).unwrap();
    for (url, size) in [(FILE, Some(77)), ("https://files.example.org/b", None)] {
        let claim = Claim { target: target(url), topic: topic(), digests: digests.clone(), size };
        batch.claim(claim).unwrap();
    }
    let standing = Standing { rank: Rank::Signed, root: root("https://example.org/team/") };
    let now = store.clock.now();
    let generation = batch.publish(&standing, now).unwrap();
    let check = |store: &Arc<Store>| {
        let found = promises(store);
        assert_eq!(found.len(), 1);
        let promise = &found[0];
        assert_eq!((&promise.digests, promise.size), (&digests, Some(77)));
        assert_eq!(*promise.by, *generation);
        assert_eq!(*promise.index, index);
        assert_eq!(promise.relation, Relation::InRoot);
        let other = target("https://files.example.org/b");
        let other = store.promises(&other, &[topic()], now);
        assert_eq!((other[0].size, other[0].relation), (None, Relation::Elsewhere));
        let elsewhere = Topic::new("pypi", "b");
        assert!(store.promises(&target(FILE), &[elsewhere], now).is_empty());
        assert_eq!(store.indexes()[0].claims, 2);
        assert_eq!(store.usage().indexes, 1);
    };
    check(&store);
    drop(store);
    let store = world.open();
    check(&store);
    let files =
        crate::target::identity::origin_of(crate::target::Scheme::Https, "files.example.org");
    assert_eq!(store.claiming_roots(&files.unwrap()), [standing.root]);
}

#[test]
fn an_index_that_names_no_file_of_a_host_is_not_opened_for_its_files() {
    let world = World::new();
    let store = world.open();
    let index = |name: &str| format!("https://{name}.example.org/simple/a/");
    let publish =
        |name: &str, file: &str| publish(&store, &index(name), &index(name), file, 1).number;
    let here = publish("here", FILE);
    let elsewhere = publish("elsewhere", "https://elsewhere.example.org/a-1.0.whl");
    let is_open = |number: u64| {
        let set = store.claims.set(number).unwrap();
        let open = hold(&set.open).upgrade();
        open.is_some()
    };
    assert_eq!(promises(&store).len(), 1);
    assert_eq!((is_open(here), is_open(elsewhere)), (true, false));
    // An index that names files on more hosts than are remembered may name this one.
    let mut batch = store.begin_claims(&target(&index("many")), document("many", 1)).unwrap();
    for host in 0..20 {
        batch.claim(claim(&format!("https://h{host}.example.org/a-1.0.whl"), 1)).unwrap();
    }
    batch.claim(claim(FILE, 1)).unwrap();
    let standing = Standing { rank: Rank::Indexed, root: root(&index("many")) };
    batch.publish(&standing, store.clock.now()).unwrap();
    assert_eq!(promises(&store).len(), 2);
}

#[test]
fn a_batch_that_is_dropped_has_never_been() {
    let world = World::new();
    let store = world.open();
    let before = store.generation();
    let mut batch = store.begin_claims(&target(FILE), document("a", 0)).unwrap();
    batch.claim(claim(FILE, 1)).unwrap();
    drop(batch);
    assert!(promises(&store).is_empty());
    assert_eq!(store.generation(), before);
    assert_eq!(world.files("claims").len() + world.files("spool").len(), 0);
}

#[test]
fn a_new_version_takes_over_and_the_old_one_stays_a_day() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/simple/a/";
    let old = publish(&store, index, "https://example.org/team/", FILE, 1);
    world.clock.advance(Duration::from_mins(1));
    let new = publish(&store, index, "https://example.org/team/", FILE, 2);
    assert!(new.number > old.number);
    let check = |store: &Arc<Store>| {
        let found = promises(store);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].by.number, found[0].is_current()), (new.number, true));
        assert_eq!((found[1].by.number, found[1].is_current()), (old.number, false));
    };
    check(&store);
    store.maintain();
    drop(store);
    let store = world.open();
    check(&store);
    // Also when the ledger is lost, which holds no claims, and when the marks are lost: then the next version says when.
    drop(store);
    for lost in ["ledger", "marks"] {
        let path = world.cache(lost);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.unwrap();
        let store = world.open();
        check(&store);
        store.maintain();
    }
    let store = world.open();

    world.clock.advance(Duration::from_hours(25));
    assert_eq!(promises(&store).len(), 1, "over, though nothing was dropped yet");
    let before = store.generation();
    store.maintain();
    assert_eq!(world.files("claims").len(), 1);
    assert!(store.generation() > before);
}

#[test]
fn the_same_document_again_is_only_confirmed() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/simple/a/";
    let first = publish(&store, index, "https://example.org/team/", FILE, 1);
    let number = store.generation();
    world.clock.advance(Duration::from_mins(1));
    let again = publish(&store, index, "https://example.org/team/", FILE, 1);
    assert_eq!(again.number, first.number);
    assert!(again.confirmed > first.confirmed);
    world.clock.advance(Duration::from_mins(1));
    let now = world.clock.now();
    store.confirm_claims(&target(index), document("another", 1), now);
    assert_eq!(promises(&store)[0].by.confirmed, again.confirmed);
    store.confirm_claims(&target(index), document(index, 1), now);
    assert_eq!(promises(&store)[0].by.confirmed, now);
    assert_eq!(store.generation(), number, "no judgement has moved");
    // The same document with another standing is another set.
    let other = publish(&store, index, "https://example.org/", FILE, 1);
    assert!(other.number > first.number);
    store.maintain();
    drop(store);
    assert_eq!(world.open().indexes().len(), 2);
}

/// Of nested roots the deepest speaks, among those that name the target now.
#[test]
fn the_deepest_root_that_names_the_target_speaks() {
    let world = World::new();
    let store = world.open();
    publish(&store, "https://example.org/simple/a/", "https://example.org/", FILE, 1);
    let shallow = ("/simple/a/".to_owned(), Relation::InRoot);
    assert_eq!(relations(&store), std::slice::from_ref(&shallow));
    // A deeper root that does not name the target does not displace the shallower one.
    let other = "https://example.org/team/files/other.whl";
    publish(
        &store,
        "https://example.org/team/files/i/",
        "https://example.org/team/files/",
        other,
        5,
    );
    assert_eq!(relations(&store), [shallow]);
    // A deeper root that names it does.
    publish(&store, "https://example.org/team/i/", "https://example.org/team/", FILE, 2);
    assert_eq!(
        relations(&store),
        [("/team/i/".into(), Relation::InRoot), ("/simple/a/".into(), Relation::Elsewhere)]
    );
    // Once it no longer names the target, it displaces nothing, although its old set still explains late bytes.
    publish(&store, "https://example.org/team/i/", "https://example.org/team/", other, 3);
    assert_eq!(
        relations(&store),
        [("/team/i/".into(), Relation::InRoot), ("/simple/a/".into(), Relation::InRoot)]
    );
}

#[test]
fn another_origin_confirms_only_unless_it_is_declared() {
    let world = World::new();
    let store = world.open();
    publish(
        &store,
        "https://index.example.org/simple/a/",
        "https://index.example.org/simple/",
        FILE,
        1,
    );
    publish(
        &store,
        "https://index.example.org/evil/a/",
        "https://index.example.org/evil/",
        FILE,
        2,
    );
    let of = |store: &Arc<Store>| -> Vec<Relation> {
        promises(store).iter().map(|promise| promise.relation).collect()
    };
    assert_eq!(of(&store), [Relation::Elsewhere, Relation::Elsewhere]);
    let before = store.generation();
    let mut config = (*world.config.get()).clone();
    config.speaks_for.push(SpeaksFor {
        index: "https://index.example.org/simple/".into(),
        files: "https://example.org".into(),
    });
    world.config.set(config);
    assert!(store.generation() > before, "every judgement is made again");
    assert_eq!(of(&store), [Relation::Elsewhere, Relation::Declared]);
}

#[test]
fn generation_numbers_never_come_again() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/simple/a/";
    for byte in 0..5 {
        publish(&store, index, "https://example.org/team/", FILE, byte);
    }
    // An entry stores the generation number under which it was judged.
    let at = world.clock.now();
    let mut judged = entry(URL, Partition::Public, at);
    judged.generation = store.generation() + 40;
    store.commit(verified(spool(&store, b"a"), at), judged.clone()).unwrap();
    drop(store);
    std::fs::remove_dir_all(world.cache("claims")).unwrap();
    std::fs::remove_dir_all(world.cache("ledger")).unwrap();
    let store = world.open();
    assert!(store.generation() > judged.generation);
    let number = store.generation();
    let next = publish(&store, index, "https://example.org/team/", FILE, 9);
    assert!(next.number > number);
    drop(store);
    // A restart without changes keeps the generation number.
    let store = world.open();
    let number = store.generation();
    drop(store);
    assert_eq!(world.open().generation(), number);
}

#[test]
fn a_damaged_set_says_nothing_and_moves_every_judgement() {
    let world = World::new();
    let store = world.open();
    publish(&store, "https://example.org/team/simple/a/", "https://example.org/team/", FILE, 1);
    let path = world.files("claims").remove(0);
    let whole = std::fs::read(&path).unwrap();
    let damaged = |position: usize| {
        let mut bytes = whole.clone();
        bytes[position] ^= 1;
        durable::write(&path, &bytes, 0o600).unwrap();
    };
    // Damage in the rows is noticed by a look-up.
    damaged(60);
    let before = store.generation();
    assert!(promises(&store).is_empty());
    assert!(store.generation() > before);
    assert!(!path.exists());
    assert_eq!(store.usage().claims_bytes, 0);
    // Damage in the manifest is noticed at start-up.
    drop(store);
    damaged(whole.len() - 1);
    let store = world.open();
    assert!(store.indexes().is_empty());
    assert!(store.generation() > before);
    assert!(!path.exists());
}

#[test]
fn a_hostile_origin_pushes_out_its_own_claims_only() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/simple/a/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    for number in 0..200_u32 {
        world.clock.advance(Duration::from_secs(1));
        let evil = format!("https://evil.example.org/{number}/");
        publish(&store, &evil, &evil, FILE, 66);
    }
    let found = promises(&store);
    assert!(found.iter().any(|promise| promise.index.url() == index));
    let evil = found.iter().filter(|p| p.digests == [digest(66)]).count();
    assert_eq!(evil, 64);
    assert_eq!(found.last().unwrap().relation, Relation::InRoot);
    // A tenant of the same origin with a hundred roots does not displace a set that is in use.
    for number in 0..200_u32 {
        world.clock.advance(Duration::from_secs(1));
        let evil = format!("https://example.org/evil/{number}/");
        publish(&store, &evil, &evil, FILE, 66);
        store.confirm_claims(&target(index), document(index, 1), world.clock.now());
    }
    assert!(promises(&store).iter().any(|promise| promise.index.url() == index));
}

#[test]
fn an_index_that_changes_all_the_time_keeps_few_old_sets() {
    let world = World::new();
    let store = world.open();
    for byte in 0..30 {
        publish(&store, "https://example.org/team/i/", "https://example.org/team/", FILE, byte);
    }
    assert_eq!(promises(&store).len(), 1 + 8);
    assert_eq!(world.files("claims").len(), 9);
}

#[test]
fn one_document_has_a_bounded_number_of_topics() {
    let store = World::new().open();
    let mut batch = store.begin_claims(&target(FILE), document("a", 0)).unwrap();
    let mut taken = 0;
    for number in 0..100 {
        let mut claim = claim(FILE, 1);
        claim.topic = Topic::new("pypi", &number.to_string());
        taken += u32::from(batch.claim(claim).is_ok());
    }
    assert_eq!(taken, 64);
}

#[test]
fn claims_take_a_quarter_of_the_store_and_who_has_most_gives_first() {
    let world = World::with_cap(64 * 4096);
    let store = world.open();
    let index = "https://example.org/team/i/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    for number in 0..40 {
        let evil = format!("https://evil.example.org/{number}/");
        publish(&store, &evil, &evil, "https://evil.example.org/a", 6);
    }
    let usage = store.usage();
    assert!(usage.claims_bytes <= usage.cap / 4, "{usage:?}");
    assert_eq!(promises(&store).len(), 1);
    // A single document whose claims exceed that is not kept at all.
    let mut batch = store.begin_claims(&target(FILE), document("b", 0)).unwrap();
    for number in 0..2000 {
        batch.claim(claim(&format!("https://example.org/{number}"), 1)).unwrap();
    }
    let standing = Standing { rank: Rank::Indexed, root: root(FILE) };
    let error = batch.publish(&standing, world.clock.now()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn an_index_over_plain_http_makes_no_claims_unless_it_is_signed() {
    let store = World::new().open();
    let index = target("http://example.org/i/");
    for (rank, allowed) in [(Rank::Indexed, false), (Rank::Signed, true)] {
        let mut batch = store.begin_claims(&index, document("a", 0)).unwrap();
        batch.claim(claim("http://example.org/a", 1)).unwrap();
        let standing = Standing { rank, root: Root::directory_of(&index) };
        assert_eq!(batch.publish(&standing, store.clock.now()).is_ok(), allowed);
    }
}

/// The index is larger than the sorter's buffer, so that runs are spilled and merged.
#[test]
fn a_large_index_is_sorted_in_bounded_memory_and_every_claim_is_found() {
    let world = World::new();
    let store = world.open();
    let index = target("https://example.org/dists/i");
    let mut batch = store.begin_claims(&index, document("large", 0)).unwrap();
    let url = |number: u32| format!("https://example.org/pool/{number}");
    let count = 100_000_u32;
    for number in 0..count {
        batch.claim(claim(&url(number), number.to_be_bytes()[3])).unwrap();
    }
    assert!(store.usage().spool_bytes > 0, "something was spilled");
    let standing = Standing { rank: Rank::Indexed, root: root("https://example.org/") };
    let now = world.clock.now();
    batch.publish(&standing, now).unwrap();
    assert_eq!(store.usage().spool_bytes, 0);
    for number in (0..count).step_by(997) {
        let found = store.promises(&target(&url(number)), &[topic()], now);
        assert_eq!(found.len(), 1, "{number}");
        assert_eq!(found[0].digests, [digest(number.to_be_bytes()[3])]);
    }
    assert!(store.promises(&target(&url(count)), &[topic()], now).is_empty());
}

#[test]
fn an_index_that_became_unreadable_only_excuses() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/i/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    let before = store.generation();
    store.retract_claims(&target(index), world.clock.now()).unwrap();
    assert!(store.generation() > before);
    assert_eq!(store.usage().indexes, 0);
    drop(store);
    let store = world.open();
    assert!(!promises(&store)[0].is_current());
    // Once the same document is read again, its claims count again.
    publish(&store, index, "https://example.org/team/", FILE, 1);
    assert!(promises(&store)[0].is_current());
}

/// Publishes the version `byte` of an index that a signature for the root `https://example.org/team/` proves, or TLS.
pub(super) fn publish_as(store: &Arc<Store>, index: &str, byte: u8, rank: Rank) {
    let mut batch = store.begin_claims(&target(index), document(index, byte)).unwrap();
    batch.claim(claim(FILE, byte)).unwrap();
    let standing = Standing { rank, root: root("https://example.org/team/") };
    batch.publish(&standing, store.clock.now()).unwrap();
}

fn current(store: &Arc<Store>) -> Vec<(String, Rank)> {
    let promises = promises(store).into_iter().filter(Promise::is_current);
    promises.map(|promise| (promise.index.path().to_owned(), promise.rank())).collect()
}

/// Promise P8: a removed key proves nothing, also after a kill or without the marks.
#[test]
fn the_claims_of_a_removed_key_do_not_come_back() {
    let team = root("https://example.org/team/");
    let (signed, plain) = ("https://example.org/team/i/", "https://example.org/team/other/");
    for loses_marks in [false, true] {
        let world = World::new();
        let store = world.open();
        // The archive had no known key at first.
        publish_as(&store, signed, 1, Rank::Indexed);
        publish_as(&store, signed, 2, Rank::Signed);
        publish_as(&store, plain, 3, Rank::Indexed);
        store.maintain();
        let before = world.copied();
        assert_eq!(current(&before.open()).len(), 2, "the control");
        let generation = store.generation();
        store.withdraw_claims(&|set| set.is_signed && set.generation.root == team).unwrap();
        assert!(store.generation() > generation, "every judgement is made again");
        let rest = [("/team/other/".to_owned(), Rank::Indexed)];
        assert_eq!(current(&store), rest);
        let world = if loses_marks {
            store.maintain();
            drop(store);
            std::fs::remove_file(world.cache("marks")).unwrap();
            world
        } else {
            // As after a kill: nothing of it is written any more.
            world.copied()
        };
        let store = world.open();
        assert_eq!(current(&store), rest, "marks lost: {loses_marks}");
    }
}

/// The same for the claims of a document that its origin replaced by one without any.
#[test]
fn retracted_claims_do_not_come_back_after_a_kill() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/i/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    store.maintain();
    store.retract_claims(&target(index), world.clock.now()).unwrap();
    let world = world.copied();
    let store = world.open();
    let promises = promises(&store);
    assert!(!promises[0].is_current() && promises.len() == 1);
}

#[test]
fn claims_are_gone_when_the_cache_is_deleted_and_come_again() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/i/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    let before = store.generation();
    std::fs::remove_dir_all(world.cache("")).unwrap();
    store.maintain();
    assert!(promises(&store).is_empty());
    assert!(store.generation() > before);
    publish(&store, index, "https://example.org/team/", FILE, 1);
    assert_eq!(promises(&store).len(), 1);
}

/// A clock that was ahead is set back: a confirmation in the future does not count, and a new one now does.
#[test]
fn what_was_confirmed_in_the_future_was_not_confirmed_since() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/simple/a/";
    world.clock.advance(Duration::from_hours(24));
    publish(&store, index, "https://example.org/team/", FILE, 1);
    world.clock.set_back(Duration::from_hours(24));
    let asked = world.clock.now();
    assert!(promises(&store)[0].by.confirmed < asked);
    store.confirm_claims(&target(index), document(index, 1), asked);
    assert_eq!(promises(&store)[0].by.confirmed, asked);
    // The control: an earlier confirmation that arrives late does not replace a later one.
    store.confirm_claims(&target(index), document(index, 1), asked.minus(Duration::from_secs(9)));
    assert_eq!(promises(&store)[0].by.confirmed, asked);
}
