//! P4 inside one root: many tenants share it, and each index has authority only over what its ecosystem assigns to it. Row 7 of
//! issue 10.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use larder::digest::{Algorithm, Digest};
use serde_json::json;

use crate::world::archive::{flipped, hex, put_simple};
use crate::world::{Origin, Page, World, noise};

/// Reads what `mallory` publishes, and returns whether `bytes` are given and kept at `path` all the same.
async fn is_kept(world: &World, path: &str, bytes: &Bytes) -> bool {
    let url = world.origin.put(path, Page::new(bytes.clone()));
    let got = world.get(&url).await;
    got.is_complete() && got.body == *bytes && world.get(&url).await.is_hit()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_page_speaks_for_files_of_its_own_project() {
    for (page, file, speaks) in [
        ("mallory", "alice-1.0-py3-none-any.whl", false),
        ("alice", "alice-1.0-py3-none-any.whl", true),
        ("Alice", "ALICE-1.0-py3-none-any.whl", true),
        ("alice-box", "alice_box-1.0-py3-none-any.whl", true),
        ("alice", "alice_box-1.0-py3-none-any.whl", false),
        ("mallory", "alice-1.0-py3-none-any.whl.metadata", false),
        ("alice", "alice-box-0.9.tar.gz", false),
        ("alice-box", "alice-box-0.9.tar.gz", true),
        ("python", "python-3parclient-4.2.tar.gz", false),
        ("python-3parclient", "python-3parclient-4.2.tar.gz", true),
        ("mallory", "alice-1.0-py2.7.egg", false),
        ("alice", "alice-1.0-py2.7.egg", true),
    ] {
        let world = World::new().await;
        let (right, lie) = (noise(1, 300_000), noise(2, 1000));
        // At a path without meaning, for which no index is looked for.
        let path = format!("/f/{file}");
        let link = path.strip_suffix(".metadata").unwrap_or(&path);
        let index = if link == path {
            put_simple(&world.origin, "/", page, &[(link, &lie)])
        } else {
            let sum = hex(Algorithm::Sha256, &lie);
            let html = format!("<a href=\"{link}\" data-core-metadata=\"sha256={sum}\">x</a>");
            let html = Page::new(html).header("content-type", "text/html");
            world.origin.put(&format!("/simple/{page}/"), html)
        };
        world.fetch(&index).await;
        let url = world.origin.put(&path, Page::new(right.clone()));
        let got = world.get(&url).await;
        assert_eq!(got.is_complete(), !speaks, "{page} about {file}");
    }
}

/// A page of links is about no project, and has authority inside its own directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_links_speaks_inside_its_directory() {
    for (page, path, speaks) in [
        ("/~mallory/links.html", "/~mallory/alice-1.0-py3-none-any.whl", true),
        ("/~mallory/links.html", "/~mallory/cpu/alice-1.0-py3-none-any.whl", true),
        ("/~mallory/links.html", "/~alice/alice-1.0-py3-none-any.whl", false),
        ("/~mallory/links.html", "/alice-1.0-py3-none-any.whl", false),
    ] {
        let world = World::new().await;
        let (right, lie) = (noise(3, 300_000), noise(4, 1000));
        let html = format!("<a href=\"{path}#sha256={}\">x</a>", hex(Algorithm::Sha256, &lie));
        let index = world.origin.put(page, Page::new(html).header("content-type", "text/html"));
        world.client.get(&index).header("accept", "text/html").send().await.complete();
        let url = world.origin.put(path, Page::new(right));
        assert_eq!(world.get(&url).await.is_complete(), !speaks, "{page} about {path}");
    }
}

fn integrity(bytes: &[u8]) -> String {
    let digest = hex(Algorithm::Sha512, bytes);
    let digest = Digest::from_hex(Algorithm::Sha512, &digest).unwrap();
    format!("sha512-{}", STANDARD.encode(digest.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_npm_document_speaks_for_tarballs_of_its_own_package() {
    let tarball = "/n/alice/-/alice-1.0.0.tgz";
    let scoped = "/n/@team/alice/-/alice-1.0.0.tgz";
    for (at, name, tarball, speaks) in [
        ("/n/alice", "alice", tarball, true),
        ("/n/mallory", "mallory", tarball, false),
        // Its name differs from the one in its URL: it makes no claims.
        ("/n/mallory", "alice", tarball, false),
        ("/n/alice/latest", "alice", tarball, true),
        ("/n/mallory/latest", "mallory", tarball, false),
        ("/n/mallory/latest", "alice", tarball, false),
        ("/n/@team%2falice", "@team/alice", scoped, true),
        ("/n/@team/alice", "@team/alice", scoped, true),
        ("/n/@mallory%2falice", "@mallory/alice", scoped, false),
        ("/n/@mallory%2falice", "@team/alice", scoped, false),
        ("/n/@mallory/alice", "@mallory/alice", "/n/alice/-/alice-1.0.0.tgz", false),
        ("/n/alice", "alice", scoped, false),
    ] {
        let world = World::new().await;
        let (right, lie) = (noise(5, 300_000), noise(6, 1000));
        let dist = json!({ "tarball": world.origin.url(tarball), "integrity": integrity(&lie) });
        let version = json!({ "name": name, "version": "1.0.0", "dist": dist });
        let document = if at.ends_with("/latest") {
            version
        } else {
            json!({ "name": name, "dist-tags": {}, "versions": { "1.0.0": version } })
        };
        let kind = "application/vnd.npm.install-v1+json";
        let page = Page::new(document.to_string()).header("content-type", kind);
        // The spelling of larder's own request.
        world.origin.put(&at.replace("%2f", "%2F"), page);
        let url = world.origin.url(at);
        let accept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
        world.client.get(&url).header("accept", accept).send().await.complete();
        let url = world.origin.put(tarball, Page::new(right));
        assert_eq!(world.get(&url).await.is_complete(), !speaks, "{name} at {at} about {tarball}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cargo_index_file_speaks_for_its_own_crate() {
    for (file, speaks) in [("/al/ic/alice", true), ("/ma/ll/mallory", false)] {
        let world = World::new().await;
        let (right, wrong) = (noise(7, 300_000), noise(8, 1000));
        let config = json!({ "dl": world.origin.url("/crates") }).to_string();
        let config = Page::new(config).header("content-type", "application/json");
        world.fetch(&world.origin.put("/config.json", config)).await;
        let line = |name: &str| {
            let sum = hex(Algorithm::Sha256, &wrong);
            json!({ "name": name, "vers": "1.0.0", "deps": [], "cksum": sum, "features": {} })
        };
        let own = file.rsplit('/').next().unwrap();
        let lines = format!("{}\n{}\n", line(own), line("alice"));
        let index = world.origin.put(file, Page::new(lines).header("content-type", "text/plain"));
        world.fetch(&index).await;
        let url = world.origin.put("/crates/alice/1.0.0/download", Page::new(right));
        assert_eq!(world.get(&url).await.is_complete(), !speaks, "{file}");
    }
}

/// An archive's index names files below the archive's root, whatever spelling is used to leave it.
#[tokio::test(flavor = "multi_thread")]
async fn an_archives_index_does_not_climb_out_of_it() {
    let pool = "/debian/pool/main/a/alice_1.0_amd64.deb";
    for (index, filename, speaks) in [
        ("/debian/dists/evil/main/binary-amd64/Packages", "pool/main/a/alice_1.0_amd64.deb", true),
        (
            "/x/dists/evil/main/binary-amd64/Packages",
            "../debian/pool/main/a/alice_1.0_amd64.deb",
            false,
        ),
        (
            "/x/dists/evil/main/binary-amd64/Packages",
            "%2e%2e/debian/pool/main/a/alice_1.0_amd64.deb",
            false,
        ),
        (
            "/x/dists/evil/main/binary-amd64/Packages",
            "..%2fdebian/pool/main/a/alice_1.0_amd64.deb",
            false,
        ),
        ("/x/dists/evil/main/binary-amd64/Packages", pool, false),
        // The paths of a flat archive may begin at any directory above it; outside its own directory they only raise an alarm.
        ("/debian/x/Packages", "pool/main/a/alice_1.0_amd64.deb", false),
        ("/debian/x/Packages", "debian/pool/main/a/alice_1.0_amd64.deb", false),
    ] {
        let world = World::new().await;
        let (right, lie) = (noise(9, 300_000), noise(10, 1000));
        let (sum, size) = (hex(Algorithm::Sha256, &lie), lie.len());
        let stanza = format!(
            "Package: alice\nVersion: 1.0\nArchitecture: amd64\nFilename: {filename}\nSize: {size}\nSHA256: {sum}\n\n"
        );
        let directory = index.rsplit_once('/').unwrap().0;
        let listed = hex(Algorithm::Sha256, stanza.as_bytes());
        let release = format!("Suite: evil\nSHA256:\n {listed} {} Packages\n", stanza.len());
        world.get(&world.origin.put(&format!("{directory}/Release"), Page::new(release))).await;
        world.fetch(&world.origin.put(index, Page::new(stanza))).await;
        let url = world.origin.put(pool, Page::new(right));
        assert_eq!(world.get(&url).await.is_complete(), !speaks, "{index} about {filename}");
    }
}

/// The path at which a tenant whose layout uses `algorithm` keeps `bytes`.
fn stored(tenant: &str, algorithm: Algorithm, bytes: &[u8], file: &str) -> String {
    let digest = hex(algorithm, bytes);
    let (one, rest) = digest.split_at(2);
    let (two, rest) = rest.split_at(2);
    format!("/{tenant}/packages/{one}/{two}/{rest}/{file}-1.0-py3-none-any.whl")
}

/// Three files of `tenant` that have their digests in their names.
async fn believe(world: &World, origin: &Origin, tenant: &str) {
    for seed in 0..3 {
        let bytes = noise(100 + seed, 5000);
        let path = stored(tenant, Algorithm::Blake2b256, &bytes, "m");
        let url = origin.put(&path, Page::new(bytes.clone()));
        assert_eq!(world.fetch(&url).await.body, bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_files_of_one_tenant_refuse_none_of_anothers() {
    let world = World::new().await;
    believe(&world, &world.origin, "~mallory").await;
    let bytes = noise(11, 300_000);
    // SHA-256, split in the same way.
    let path = stored("~alice", Algorithm::Sha256, &bytes, "a");
    assert!(is_kept(&world, &path, &bytes).await, "refused for what a neighbour did");
    // The control: in its own directory the convention applies.
    let url =
        world.origin.put(&stored("~mallory", Algorithm::Sha256, &bytes, "a"), Page::new(bytes));
    assert!(!world.get(&url).await.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbours_miss_takes_no_protection_away() {
    for when in ["before", "after"] {
        let mut world = World::new().await;
        let odd = noise(12, 5000);
        let mut misses = ["~mallory", "~bob"].map(|tenant| {
            let path = stored(tenant, Algorithm::Sha256, &odd, "odd");
            world.origin.put(&path, Page::new(odd.clone()))
        });
        if when == "after" {
            // A mismatch after the convention is believed is refused, and does not count against it.
            believe(&world, &world.origin, "~bob").await;
            misses[1] = misses[0].clone();
        }
        for url in misses {
            assert_eq!(world.fetch(&url).await.body, odd);
        }
        if when == "before" {
            believe(&world, &world.origin, "~bob").await;
        }
        world.restart(|_| {}).await;
        let right = noise(13, 300_000);
        let path = stored("~bob", Algorithm::Blake2b256, &right, "z");
        let url = world.origin.put(&path, Page::new(flipped(&right)));
        for _ in 0..2 {
            assert!(!world.get(&url).await.is_complete(), "{when}: tampered, and given");
        }
    }
}

/// A file that did not match its name, before the convention was believed there, is not refused by the convention afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_that_files() {
    let mut world = World::new().await;
    let odd = noise(14, 300_000);
    let path = stored("~alice", Algorithm::Sha256, &odd, "odd");
    assert!(is_kept(&world, &path, &odd).await);
    believe(&world, &world.origin, "~alice").await;
    let url = world.origin.url(&path);
    let no_cache = || world.client.get(&url).header("cache-control", "no-cache");
    assert_eq!(no_cache().send().await.complete().body, odd);
    world.restart(|_| {}).await;
    assert_eq!(world.fetch(&url).await.body, odd);
    // Also when it is fetched again, because the stored copy is gone.
    world.restart(|data| std::fs::remove_dir_all(data.join("v1")).unwrap()).await;
    assert!(is_kept(&world, &path, &odd).await);
    // The control: another file that does not match is refused.
    let other = noise(15, 300_000);
    let lies =
        world.origin.put(&stored("~alice", Algorithm::Sha256, &other, "b"), Page::new(other));
    assert!(!world.get(&lies).await.is_complete());
}

/// One file that is fetched three times is one match, and an HTML page in place of a file is no mismatch.
#[tokio::test(flavor = "multi_thread")]
async fn what_tells_nothing_of_names_is_not_counted() {
    let world = World::new().await;
    let bytes = noise(16, 5000);
    let path = stored("~carol", Algorithm::Blake2b256, &bytes, "c");
    for query in ["", "?a", "?b", "?c"] {
        world.fetch(&world.origin.put(&format!("{path}{query}"), Page::new(bytes.clone()))).await;
    }
    let odd = noise(17, 5000);
    let odd_path = stored("~carol", Algorithm::Sha256, &odd, "odd");
    assert!(is_kept(&world, &odd_path, &odd).await, "believed after one file");

    let right = noise(18, 300_000);
    let path = stored("~dave", Algorithm::Blake2b256, &right, "d");
    let sign_in = Page::new("<html>sign in</html>").header("content-type", "text/html");
    world.fetch(&world.origin.put(&path, sign_in)).await;
    believe(&world, &world.origin, "~dave").await;
    let url = world.origin.put(&path, Page::new(flipped(&right)));
    assert!(!world.get(&url).await.is_complete(), "a sign-in page took its protection away");
}
