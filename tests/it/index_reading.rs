//! How indexes are read (issue 11, part 1): a signed one once, its claims waiting while it is judged and stored; and nobody waits
//! for an index that cannot change the answer.

use std::fs;

use crate::generations::{SUITE, State};
use crate::signed::{Archive, DATE, Key, world_trusting};
use crate::world::{Bench, Fault, Gate, Page, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_index_is_read_once_and_its_claims_are_in_force() {
    let bench = Bench::new().await;
    let key = Key::new(bench.dir.path(), "archive");
    let keys = bench.data().join("state/keys");
    fs::create_dir_all(&keys).unwrap();
    fs::copy(&key.public, keys.join("test.gpg")).unwrap();
    let archive = Archive::new(bench.dir.path(), "one", DATE, false).await;
    archive.put(&bench.origin, &key);
    let daemon = bench.start(&[("LARDER_LOG_FILTER", "debug")]).await;
    let client = daemon.client().await;
    let get = async |path: &str| {
        let got =
            client.get(&bench.origin.url(&format!("/debian/dists/gears/{path}"))).send().await;
        got.complete().cache_status().to_owned()
    };
    let readings = |of: &str, file: &str| {
        let log = daemon.log();
        log.lines().filter(|line| line.contains(of) && line.contains(file)).count()
    };
    let (before, stored) = ("reading an index before it is kept", "reading a stored index");
    get("InRelease").await;
    eventually("it is logged", || async { readings(before, "/InRelease") > 0 }).await;
    assert_eq!((readings(before, "/InRelease"), readings(stored, "/InRelease")), (1, 0));
    // What it claims proves its member, which carries no signature. The member is the control: it is read when it is stored.
    let said = get("main/binary-all/Packages").await;
    assert!(said.contains("signed"), "{said}");
    eventually("it is logged", || async { readings(stored, "/Packages") > 0 }).await;
    assert_eq!((readings(before, "/Packages"), readings(stored, "/Packages")), (0, 1));
}

/// An archive whose new state takes long to publish keeps no client from a file that is stored and proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_proven_file_does_not_wait_for_an_index_that_is_being_read() {
    const INDEX: &str = "main/binary-all/Packages";
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = world_trusting(Some(&key)).await;
    let first = State::new(&key, 1, false, &[INDEX]);
    first.put(&world.origin);
    let release = world.origin.url(&format!("{SUITE}/InRelease"));
    let index = world.origin.url(&format!("{SUITE}/{INDEX}"));
    let package = world.origin.put("/debian/pool/main/g/gear_1_all.deb", Page::new(INDEX));
    for url in [&release, &index, &package] {
        world.fetch(url).await;
    }
    assert!(world.get(&package).await.cache_status().contains("signed"));
    let second = State::new(&key, 2, false, &[INDEX]);
    second.put(&world.origin);
    let gate = Gate::closed();
    let path = format!("{SUITE}/{INDEX}");
    let held = Page::new(second.bytes(INDEX).to_vec()).fault(Fault::Hold(0, gate.clone()));
    world.origin.put(&path, held);
    let before = world.origin.gets(&path);
    world.proxy.clock.advance(std::time::Duration::from_secs(400));
    let waiting = tokio::spawn(world.client.get(&release).send());
    eventually("its member is fetched", async || world.origin.gets(&path) > before).await;
    // The control: a file that is not stored waits, because the new state may name it.
    let unknown = "/debian/pool/main/g/gear_2_all.deb";
    let asked = tokio::spawn(world.client.get(&world.origin.put(unknown, Page::new(INDEX))).send());
    for _ in 0..20 {
        let got = world.get(&package).await;
        assert!(got.is_hit() && got.body == INDEX, "{}", got.cache_status());
    }
    assert_eq!(world.origin.gets(unknown), 0, "the proven file was given first");
    gate.open();
    waiting.await.unwrap().complete();
    asked.await.unwrap().complete();
}
