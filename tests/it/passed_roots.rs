//! Snapshots whose root a client was given by a pass, so that larder has not looked at it. What larder has stored is the snapshot
//! before, and its members would not match (promise P6).

use std::time::Duration;

use larder::config::Config;
use larder::config::keys::key as setting;

use crate::generations::{PACKAGES, SUITE, State, archive, later};
use crate::hung_origin::stood_in;
use crate::signed::Key;
use crate::world::{Mood, Origin, World, eventually};

/// A larder with an operator login for its origin, which is an archive whose key it trusts.
async fn archive_with_login() -> (tempfile::TempDir, Key, World) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let configured = |config: &mut Config, origin: &Origin| {
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        std::fs::copy(&key.public, keys.join("test.gpg")).unwrap();
        let line = format!("{} everyone bearer s3cr3t-login", origin.authority());
        setting("upstream.logins").unwrap().set(config, &[line]).unwrap();
    };
    let world = World::with_origin(configured).await;
    (dir, key, world)
}

/// Without indexes under their digests, the Release decides alone which Packages a client can use.
async fn at_the_start(key: &Key, mut world: World, another: Option<Origin>) {
    let url = |world: &World, path: &str| {
        another.as_ref().unwrap_or(&world.origin).url(&format!("{SUITE}/{path}"))
    };
    let (release, packages) = (url(&world, "InRelease"), url(&world, PACKAGES));
    let (one, two) =
        (State::new(key, 1, false, &[PACKAGES]), State::new(key, 2, false, &[PACKAGES]));
    one.put(another.as_ref().unwrap_or(&world.origin));
    assert_eq!(world.fetch(&release).await.body, one.release);
    assert_eq!(world.fetch(&packages).await.body, one.bytes(PACKAGES));
    assert!(world.fetch(&packages).await.is_hit(), "the control");
    let record = world.restart_reading().await;
    two.put(another.as_ref().unwrap_or(&world.origin));
    assert_eq!(world.fetch(&release).await.body, two.release);
    assert_eq!(world.fetch(&packages).await.body, two.bytes(PACKAGES), "while it reads");
    world.has_read(record).await;
    let got = world.fetch(&packages).await;
    assert_eq!(got.body, two.bytes(PACKAGES), "{}", got.cache_status());
    // Once a Release is kept again, its members come from the store.
    later(&world);
    assert_eq!(world.fetch(&release).await.body, two.release);
    world.fetch(&packages).await;
    let got = world.fetch(&packages).await;
    assert!(got.body == two.bytes(PACKAGES) && got.is_hit(), "{}", got.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_passed_while_records_are_read_gets_its_own_members() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        at_the_start(&key, world, Some(origin)).await;
    }
}

/// The same where larder sends a request of its own, with the operator login.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_passed_with_the_operator_login_gets_its_own_members() {
    let (_dir, key, world) = archive_with_login().await;
    at_the_start(&key, world, None).await;
}

/// The same for a client that wants its Release not to be stored, as apt does with `Acquire::http::No-Store`.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_must_not_be_stored_gets_its_own_members() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let url = |path: &str| origin.url(&format!("{SUITE}/{path}"));
        let one = State::new(&key, 1, false, &[PACKAGES]);
        let two = State::new(&key, 2, false, &[PACKAGES]);
        one.put(&origin);
        world.fetch(&url("InRelease")).await;
        world.fetch(&url(PACKAGES)).await;
        two.put(&origin);
        later(&world);
        let asks = |path: &str| world.client.get(&url(path)).header("cache-control", "no-store");
        assert_eq!(asks("InRelease").send().await.complete().body, two.release);
        let got = asks(PACKAGES).send().await.complete();
        assert_eq!(got.body, two.bytes(PACKAGES), "{}", got.cache_status());
    }
}

/// While a Release is given as its origin has it, its members are asked for there. If the origin hangs, one client waits for it,
/// and not each in turn (promise P6).
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_passed_release_wait_once_for_a_hung_origin() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = World::with(|config| {
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        std::fs::copy(&key.public, keys.join("test.gpg")).unwrap();
        config.upstream.patience = Duration::from_millis(100);
        config.upstream.header_timeout = Duration::from_mins(10);
    })
    .await;
    let url = |path: &str| world.origin.url(&format!("{SUITE}/{path}"));
    let state = State::new(&key, 1, false, &[PACKAGES]);
    state.put(&world.origin);
    world.fetch(&url("InRelease")).await;
    world.fetch(&url(PACKAGES)).await;
    assert!(world.fetch(&url(PACKAGES)).await.is_hit(), "the control");
    later(&world);
    world.client.get(&url("InRelease")).header("cache-control", "no-store").send().await.complete();
    // On a slow machine it may have been waited for before.
    let is_well = async || {
        let passed = !world.fetch(&url(PACKAGES)).await.cache_status().contains("detail=\"signed");
        passed && world.proxy.metric("larder_origins_down", "").await < 0.5
    };
    eventually("it is passed: the control", is_well).await;
    world.origin.mood(Mood::Hanging);
    let (waited, down) = stood_in(&world).await;
    for number in 0..3 {
        let got = world.fetch(&url(PACKAGES)).await;
        assert_eq!(got.body, state.bytes(PACKAGES));
        assert!(got.cache_status().contains("+stale"), "{}", got.cache_status());
        assert_eq!(stood_in(&world).await, (waited + 1, down + number));
    }
    // The control: once it answers, it is not down any more.
    world.origin.mood(Mood::Well);
    eventually("it answers again", is_well).await;
}
