//! A client whose lists are fresh requests only packages: larder itself fetches the indexes to judge them, for archives that it
//! has seen before.

use crate::generations::{PACKAGES, SUITE, State, archive};
use crate::world::{Origin, Page, World};

const DEB: &str = "/debian/pool/main/g/gear_1_all.deb";

/// larder's `Cache-Status` for the package, which is requested twice.
async fn asked_twice(world: &World, origin: &Origin) -> String {
    let first = world.fetch(&origin.url(DEB)).await;
    assert_eq!(first.body, PACKAGES);
    world.fetch(&origin.url(DEB)).await.cache_status().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_proven_when_its_indexes_are_gone_from_the_cache() {
    for (https, by_hash) in [(true, true), (true, false), (false, true), (false, false)] {
        let (_dir, key, mut world, origin) = archive(https).await;
        let state = State::new(&key, 1, by_hash, &[PACKAGES]);
        state.put(&origin);
        origin.put(DEB, Page::new(PACKAGES));
        // The control: of an archive that larder has never seen, it knows nothing.
        let unknown = asked_twice(&world, &origin).await;
        assert!(!unknown.contains("signed"), "{unknown}");
        assert_eq!(unknown.contains("pinned"), https, "{unknown}");
        world.fetch(&origin.url(&format!("{SUITE}/InRelease"))).await;
        // larder keeps its state and loses its cache.
        world.restart(|data| std::fs::remove_dir_all(data.join("v1")).unwrap()).await;
        let known = asked_twice(&world, &origin).await;
        assert!(known.contains("hit; detail=\"signed\""), "{known}");
        assert_eq!(origin.gets(DEB), if https { 2 } else { 3 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_package_is_refused_on_the_word_of_an_index_that_nobody_asked_for() {
    for https in [true, false] {
        let (_dir, key, mut world, origin) = archive(https).await;
        State::new(&key, 1, true, &[PACKAGES]).put(&origin);
        world.fetch(&origin.url(&format!("{SUITE}/InRelease"))).await;
        world.restart(|data| std::fs::remove_dir_all(data.join("v1")).unwrap()).await;
        origin.put(DEB, Page::new("something else"));
        let got = world.get(&origin.url(DEB)).await;
        assert!(!got.is_complete(), "{got:?}");
        assert!(got.cache_status().contains("rejected"), "{}", got.cache_status());
    }
}
