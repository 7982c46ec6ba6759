//! P8 inside one process: files on disk may vanish or become corrupt at any moment; nothing wrong is served, and what is left is
//! found again. P7: the store never exceeds its limit. (Kills are in `kill`.)

use std::path::Path;

use crate::world::archive::{by_hash, put_simple};
use crate::world::{Fault, Gate, Page, Proxy, World, eventually, files, holding, noise};

/// Damage that a test does to a file.
type Damage = fn(&Path);

/// Everything in the cache that is neither a body nor a record: the ledger, whatever its name.
fn ledger(data: &Path) -> Vec<std::path::PathBuf> {
    let all = files(&data.join("v1")).into_iter();
    all.filter(|file| {
        file.components().any(|part| part.as_os_str().to_string_lossy().contains("ledger"))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_found_after_a_restart() {
    let mut world = World::new().await;
    let body = noise(1, 500_000);
    let path = by_hash(&body);
    let url = world.origin.put(&path, Page::new(body.clone()).etag("v1"));
    let index = put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&url).await;
    world.fetch(&index).await;
    world.restart(|_| {}).await;
    let got = world.fetch(&url).await;
    assert!(got.is_hit() && got.body == body && got.text("etag") == "\"v1\"");
    assert_eq!(world.origin.gets(&path), 1);
    world.origin.stop();
    world.fetch(&index).await;
}

/// devpi#542: losing the cache's index lost the cache.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_gone_or_damaged_is_rebuilt() {
    let damages: [(&str, Damage); 3] = [
        ("deleted", |file| std::fs::remove_file(file).unwrap()),
        ("halved", |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("overwritten", |file| {
            let len = std::fs::read(file).unwrap().len();
            std::fs::write(file, noise(7, len)).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let mut world = World::new().await;
        let bodies: Vec<_> = (0..20).map(|number| noise(number, 20_000)).collect();
        let mut urls = Vec::new();
        for body in &bodies {
            urls.push(world.origin.put(&by_hash(body), Page::new(body.clone())));
            world.fetch(urls.last().unwrap()).await;
        }
        world
            .restart(|data| {
                let ledger = ledger(data);
                assert!(!ledger.is_empty());
                for file in &ledger {
                    damage(file);
                }
            })
            .await;
        let asked = world.origin.total();
        for (url, body) in urls.iter().zip(&bodies) {
            eventually("it hits again", || async {
                let got = world.fetch(url).await;
                assert_eq!(got.body, body, "{name}");
                got.is_hit()
            })
            .await;
        }
        assert!(world.origin.total() <= asked + bodies.len(), "{name}");
    }
}

/// git-pkgs, ACU 2026-06-01: a row without its blob was an error 500 for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_gone_is_a_miss() {
    let world = World::new().await;
    let body = noise(2, 500_000);
    let path = by_hash(&body);
    let url = world.origin.put(&path, Page::new(body.clone()));
    world.fetch(&url).await;
    for file in holding(&world.cache(), &body[1000..1032]) {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(world.fetch(&url).await.body, body);
    assert!(world.fetch(&url).await.is_hit());
    assert_eq!(world.origin.gets(&path), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_rotted_on_disk_is_never_served() {
    for at in [10, 1_000_000, 1_999_990] {
        let world = World::new().await;
        let body = noise(3, 2_000_000);
        let url = world.origin.put(&by_hash(&body), Page::new(body.clone()));
        world.fetch(&url).await;
        let found = holding(&world.cache(), &body[1000..1032]);
        assert_eq!(found.len(), 1);
        let mut bytes = std::fs::read(&found[0]).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&found[0], bytes).unwrap();
        // The corrupt chunk is found when it is read: at once, or after right bytes.
        let got = world.get(&url).await;
        assert!(!got.is_complete() || got.body == body);
        assert!(got.body == body[..got.body.len()], "a rotten byte was served");
        eventually("it is fetched anew", || async {
            let got = world.get(&url).await;
            got.is_complete() && got.body == body
        })
        .await;
    }
}

/// pacoloco#108: the directory was cleaned, and the service stopped working.
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_may_be_deleted_while_it_runs() {
    let world = World::new().await;
    let body = noise(4, 500_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()));
    world.fetch(&url).await;
    std::fs::remove_dir_all(world.cache()).unwrap();
    assert_eq!(world.fetch(&url).await.body, body);
    let other = noise(5, 500_000);
    let url = world.origin.put(&by_hash(&other), Page::new(other.clone()));
    for _ in 0..2 {
        assert_eq!(world.fetch(&url).await.body, other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_larder_on_the_directory_is_refused_by_name() {
    let world = World::new().await;
    let error = Proxy::try_start(world.config().clone()).await.err().expect("it started");
    assert!(error.contains(&std::process::id().to_string()), "who holds it: {error}");
    let mut elsewhere = world.config().clone();
    elsewhere.data = world.dir().join("other");
    Proxy::try_start(elsewhere).await.unwrap();
}

/// distribution#1140: no limit, or one that a temporary file could exceed.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_passes_and_is_not_kept() {
    let world = World::with(|config| config.store.max_size = 2 << 20).await;
    let big = noise(6, 8 << 20);
    for (name, page) in
        [("known", Page::new(big.clone())), ("unknown", Page::new(big.clone()).chunked())]
    {
        let path = format!("/{name}/big.bin");
        let url = world.origin.put(&path, page.fresh(600));
        for turn in 1..=2 {
            assert_eq!(world.fetch(&url).await.body, big, "{name}");
            assert_eq!(world.origin.gets(&path), turn, "{name}: nothing was kept");
        }
        let taken: u64 = files(&world.cache())
            .iter()
            .filter_map(|file| file.metadata().ok())
            .map(|m| m.len())
            .sum();
        assert!(taken < 4 << 20, "{name}: {taken} bytes on disk");
    }
    world.proxy.counted("larder_alarms_total", "full", 4.0).await;
    // Smaller ones are still kept.
    let small = noise(7, 100_000);
    let url = world.origin.put(&by_hash(&small), Page::new(small));
    world.fetch(&url).await;
    assert!(world.fetch(&url).await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cap_holds_while_many_bodies_come() {
    const CAP: u64 = 8 << 20;
    let world = World::with(|config| config.store.max_size = CAP).await;
    let bodies: Vec<_> = (0..40).map(|number| noise(100 + number, 1 << 20)).collect();
    for body in &bodies {
        let url = world.origin.put(&by_hash(body), Page::new(body.clone()));
        assert_eq!(world.fetch(&url).await.body, body);
        let blobs = files(&world.cache())
            .into_iter()
            .filter_map(|file| file.metadata().ok())
            .map(|m| m.len());
        let taken: u64 = blobs.filter(|len| *len >= 1 << 20).sum();
        assert!(taken <= CAP, "{taken} bytes of bodies on disk");
    }
    // Evicted files are fetched again; the last ones read are still stored.
    let last = world.origin.url(&by_hash(&bodies[39]));
    assert!(world.fetch(&last).await.is_hit());
    assert_eq!(world.fetch(&world.origin.url(&by_hash(&bodies[0]))).await.body, bodies[0]);
}

/// distribution#2367: a file was deleted while it was being read.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_read_is_not_evicted_under_its_reader() {
    let world = World::with(|config| {
        config.store.max_size = 24 << 20;
        config.store.max_body_share = 100;
    })
    .await;
    let body = noise(8, 16 << 20);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()));
    world.fetch(&url).await;
    let mut reading = world.client.get(&url).open().await.unwrap();
    assert!(reading.read(100).await);
    for number in 0..20 {
        let other = noise(200 + number, 2 << 20);
        let url = world.origin.put(&by_hash(&other), Page::new(other.clone()));
        assert_eq!(world.fetch(&url).await.body, other);
    }
    assert!(reading.equals(&body).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_broke_off_leaves_nothing() {
    let world = World::new().await;
    let (body, gate) = (noise(9, 4 << 20), Gate::closed());
    let path = by_hash(&body);
    let page = Page::new(body.clone()).without_ranges();
    let half = page.clone().fault(Fault::Hold(3 << 20, gate));
    let url = world.origin.put(&path, half);
    let mut opened = world.client.get(&url).open().await.unwrap();
    assert!(opened.read(2 << 20).await);
    // It is on disk while it arrives: the search below would find it.
    assert!(!holding(&world.cache(), &body[1000..1032]).is_empty());
    world.origin.put(&path, page.clone().fault(Fault::Cut(1 << 20)));
    world.origin.cut();
    assert!(!opened.rest().await.is_complete());
    eventually("the spool is empty", || async {
        holding(&world.cache(), &body[1000..1032]).is_empty()
    })
    .await;
    world.origin.put(&path, page);
    assert_eq!(world.fetch(&url).await.body, body);
}
