//! P5 for signed archives that require a login: a signature proves what bytes are, and not who may have them.

use std::time::Duration;

use crate::generations::{SUITE, State};
use crate::privacy::{ALICE, BOB, Door, ask, file, status};
use crate::signed::{Key, world_trusting};
use crate::world::archive::{by_hash, hex};
use crate::world::{Mood, Page, World};
use larder::digest::Algorithm;

const PACKAGES: &str = "main/binary-all/Packages";
const PACKAGE: &str = "/debian/pool/main/g/gear_1_all.deb";

/// A larder that trusts the key of an archive which admits only `door`. The package's bytes are the text [`PACKAGES`].
async fn archive(door: &Door) -> (tempfile::TempDir, World) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = world_trusting(Some(&key)).await;
    let state = State::new(&key, 1, false, &[PACKAGES]);
    put(&world, door, &format!("{SUITE}/InRelease"), &state.release);
    put(&world, door, &format!("{SUITE}/{PACKAGES}"), state.bytes(PACKAGES));
    put(&world, door, PACKAGE, PACKAGES.as_bytes());
    (dir, world)
}

fn put(world: &World, door: &Door, path: &str, body: &[u8]) {
    let (door, body) = (door.clone(), body.to_vec());
    let tag = format!("\"{}\"", &hex(Algorithm::Sha256, &body)[..16]);
    world.origin.script(path, move |request| {
        let answer = if door.lets(&request) { file(&body, &tag) } else { status(401) };
        async move { answer }
    });
}

async fn read_indexes(world: &World, who: &str) {
    for path in ["InRelease", PACKAGES] {
        ask(&world.client, &world.origin.url(&format!("{SUITE}/{path}")), who).await.complete();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_private_signature_names_is_selected_for_nobody_else() {
    let (_dir, world) = archive(&Door::open_to(&[ALICE])).await;
    // The same bytes are public elsewhere.
    let public = world.origin.put(&by_hash(PACKAGES.as_bytes()), Page::new(PACKAGES));
    assert!(world.fetch(&public).await.is_complete());
    read_indexes(&world, ALICE).await;
    let url = world.origin.url(PACKAGE);
    let got = ask(&world.client, &url, ALICE).await.complete();
    assert_eq!(got.body, PACKAGES);
    for who in ["", BOB] {
        let got = ask(&world.client, &url, who).await;
        assert!(got.status == 401 && got.body.is_empty(), "{who}: {}", got.cache_status());
    }
    // The control: she can still get it.
    assert_eq!(ask(&world.client, &url, ALICE).await.complete().body, PACKAGES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_gives_no_right_to_a_member() {
    let door = Door::open_to(&[ALICE]);
    let (_dir, world) = archive(&door).await;
    read_indexes(&world, ALICE).await;
    let url = world.origin.url(&format!("{SUITE}/{PACKAGES}"));
    assert!(ask(&world.client, &url, ALICE).await.complete().is_hit(), "the control");
    door.shut(ALICE);
    world.proxy.clock.set_back(Duration::from_hours(1));
    assert_eq!(ask(&world.client, &url, ALICE).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_release_outlives_its_origin_no_longer_than_a_right_is_remembered() {
    let (_dir, world) = archive(&Door::open_to(&[ALICE])).await;
    read_indexes(&world, ALICE).await;
    world.origin.mood(Mood::Failing(503));
    for (later, expected) in [(Duration::from_hours(1), 200), (Duration::from_hours(24), 503)] {
        world.proxy.clock.advance(later);
        for path in ["InRelease", PACKAGES] {
            let url = world.origin.url(&format!("{SUITE}/{path}"));
            let got = ask(&world.client, &url, ALICE).await;
            assert_eq!(got.status, expected, "{path} {}", got.cache_status());
        }
    }
}
