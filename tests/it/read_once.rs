//! A signed index is read once (issue 11, part 1): its claims wait while it is judged and stored, and are then published.

use std::fs;

use crate::signed::{Archive, DATE, Key};
use crate::world::Bench;

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
    assert_eq!((readings(before, "/InRelease"), readings(stored, "/InRelease")), (1, 0));
    // What it claims proves its member, which carries no signature. The member is the control: it is read when it is stored.
    let said = get("main/binary-all/Packages").await;
    assert!(said.contains("signed"), "{said}");
    assert_eq!((readings(before, "/Packages"), readings(stored, "/Packages")), (0, 1));
}
