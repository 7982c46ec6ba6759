//! Issue 17, first list, row 1: an archive whose newest Release does not count for larder works for its clients as it does
//! without larder, and one command makes it count again.

use std::fmt::Write as _;
use std::time::Duration;

use larder::digest::Algorithm;

use crate::apt::world_and_origin;
use crate::world::apt::Apt;
use crate::world::archive::hex;
use crate::world::binary::say;
use crate::world::gpg::Key;
use crate::world::repository::{Layout, Repository, Signatures};
use crate::world::tools::text;
use crate::world::{Origin, World};

const LINE: &str = "ROOT/debian gears main";
const BY_NAME: Layout = Layout { by_hash: false, endings: &["", ".gz"], ..Layout::USUAL };
const SECOND: &str = "Edition: two";

/// The next snapshot: its lists differ, and have the same paths as before.
fn second(first: &Repository) -> Repository {
    let mut next = first.clone();
    let path = next.layout.at("main/binary-amd64/Packages");
    let list = String::from_utf8(next.files[&path].clone()).unwrap();
    let list = list.replace("\nVersion:", &format!("\n{SECOND}\nVersion:"));
    next.index("main/binary-amd64/Packages", list.as_bytes());
    next.describe();
    next.set("Date", "Fri, 20 Nov 2020 13:00:00 UTC");
    next
}

fn first(layout: Layout, key: &Key) -> Repository {
    let mut archive = Repository::new(layout);
    archive.set("Date", "Fri, 20 Nov 2020 12:00:00 UTC");
    archive.sign(key);
    archive
}

/// Adds a second key pair to a home; returns its fingerprint. Clients know both keys from now on, and larder does not.
fn another(key: &Key) -> String {
    let user = "next <next@example.org>";
    key.gpg(&["--passphrase", "", "--quick-gen-key", user, "ed25519", "sign", "1y"]);
    key.publish();
    let listed = key.gpg(&["--with-colons", "--fingerprint", "next@example.org"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
    line.split(':').nth(9).unwrap().to_owned()
}

/// Whether `apt-get update` succeeded without a complaint, whether it then has the second snapshot's lists, and its output.
async fn updated(apt: &Apt, world: &World) -> (bool, bool, String) {
    let came = apt.get(world, &["update"]).await;
    (came.well, apt.lists_hold(SECOND), came.said)
}

/// One reason why the second snapshot does not count.
struct Row {
    name: &'static str,
    layout: Layout,
    sign: fn(&mut Repository, &Key, &str),
}

fn by_itself(next: &mut Repository, key: &Key, _: &str) {
    next.sign_with(key, &["--local-user", "archive@example.org"]);
}

const ROWS: [Row; 7] = [
    Row {
        name: "another key",
        layout: BY_NAME,
        sign: |next, key, other| next.sign_with(key, &["--local-user", other]),
    },
    Row {
        name: "another key beside",
        layout: Layout { signatures: Signatures::Beside, ..BY_NAME },
        sign: |next, key, other| next.sign_with(key, &["--local-user", other]),
    },
    Row {
        name: "a field twice",
        layout: BY_NAME,
        sign: |next, key, other| {
            next.release.insert_str(0, "Suite: stable\n");
            by_itself(next, key, other);
        },
    },
    Row {
        name: "a second paragraph",
        layout: BY_NAME,
        sign: |next, key, other| {
            next.release.push_str("\nNotes: none\n");
            by_itself(next, key, other);
        },
    },
    Row {
        name: "another name",
        layout: BY_NAME,
        sign: |next, key, other| {
            next.set("Suite", "other");
            next.set("Codename", "others");
            by_itself(next, key, other);
        },
    },
    Row {
        name: "past its Valid-Until",
        layout: BY_NAME,
        sign: |next, key, other| {
            next.set("Valid-Until", "Sat, 21 Nov 2020 12:00:00 UTC");
            by_itself(next, key, other);
        },
    },
    Row {
        name: "older than before",
        layout: BY_NAME,
        sign: |next, key, other| {
            next.set("Date", "Thu, 19 Nov 2020 12:00:00 UTC");
            by_itself(next, key, other);
        },
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_count_is_given_with_its_own_lists_as_without_larder() {
    for row in &ROWS {
        for https in [true, false] {
            Box::pin(crate::apt::row(row.name, https, as_without(row, https))).await;
        }
    }
}

async fn as_without(row: &Row, https: bool) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let (world, origin) = world_and_origin(&[&key], https).await;
    let (mut before, other) = (first(row.layout, &key), another(&key));
    let mut next = second(&before);
    (row.sign)(&mut next, &key, &other);
    before.sign_with(&key, &["--local-user", "archive@example.org"]);
    before.put(&origin, "/debian");
    let old = Apt::through(&world, &origin, &key, LINE).await;
    let (well, is_second, said) = updated(&old, &world).await;
    assert!(well && !is_second, "the control: {said}");
    next.put(&origin, "/debian");
    world.proxy.clock.advance(Duration::from_mins(1));
    let fresh = Apt::through(&world, &origin, &key, LINE).await;
    let direct = Apt::without(&world, &origin, &key, LINE);
    let expected = updated(&direct, &world).await;
    // Another client's update changes nothing either.
    for _ in 0..2 {
        let got = updated(&fresh, &world).await;
        assert_eq!((got.0, got.1), (expected.0, expected.1), "{} not {}", got.2, expected.2);
    }
    assert!(!updated(&old, &world).await.2.contains("Hash Sum"), "of two editions");
}

async fn body(world: &World, origin: &Origin, path: &str) -> (Vec<u8>, String) {
    let got = world.client.get(&origin.url(path)).header("cache-control", "max-age=0").send().await;
    (got.body.to_vec(), got.cache_status().to_owned())
}

/// Some tools open a connection for each file. They are given one snapshot all the same; larder's copy of the one before is given
/// to no client until the archive serves it again.
#[tokio::test(flavor = "multi_thread")]
async fn who_opens_a_connection_for_each_file_gets_one_edition() {
    const RELEASE: &str = "dists/gears/InRelease";
    const LIST: &str = "dists/gears/main/binary-amd64/Packages";
    for https in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::new(dir.path(), "archive");
        let (world, origin) = world_and_origin(&[&key], https).await;
        let (before, other) = (first(BY_NAME, &key), another(&key));
        let mut next = second(&before);
        next.sign_with(&key, &["--local-user", &other]);
        for (archive, proven) in [(&before, true), (&next, false), (&before, true)] {
            archive.put(&origin, "/debian");
            for _ in 0..2 {
                world.proxy.clock.advance(Duration::from_mins(1));
                for path in [RELEASE, LIST] {
                    let (came, said) = body(&world, &origin, &format!("/debian/{path}")).await;
                    assert!(came == archive.files[path], "{https} {path}: {said}");
                    assert_eq!(said.contains("signed"), proven, "{https} {path}: {said}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_add_alone_makes_a_new_signer_count_and_says_where() {
    const LIST: &str = "/debian/dists/gears/main/binary-amd64/Packages";
    for https in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::new(dir.path(), "archive");
        let (world, origin) = world_and_origin(&[&key], https).await;
        let (before, other) = (first(BY_NAME, &key), another(&key));
        let elsewhere = Key::new(dir.path(), "elsewhere");
        let mut next = second(&before);
        next.sign_with(&key, &["--local-user", &other]);
        before.put(&origin, "/debian");
        let apt = Apt::through(&world, &origin, &key, LINE).await;
        assert!(updated(&apt, &world).await.0);
        next.put(&origin, "/debian");
        world.proxy.clock.advance(Duration::from_mins(1));
        assert!(updated(&apt, &world).await.1);
        assert!(!body(&world, &origin, LIST).await.1.contains("signed"), "the control");
        let root = format!("signs for {}", origin.url("/debian/"));
        // A key that signs nothing there is not bound to the archive.
        for (file, signs) in [(&elsewhere.public, false), (&key.public, true)] {
            let arguments = ["keys", "add", file.to_str().unwrap()];
            let added = say(&world.ca, &world.proxy.data, &arguments).await;
            assert!(added.status.success(), "{}", text(&added));
            assert_eq!(text(&added).contains(&root), signs, "{}", text(&added));
        }
        world.proxy.clock.advance(Duration::from_mins(1));
        let (well, second, said) = updated(&apt, &world).await;
        assert!(well && second, "{said}");
        let (came, said) = body(&world, &origin, LIST).await;
        assert!(came == next.files[&LIST["/debian/".len()..]] && said.contains("signed"), "{said}");
    }
}

/// The same key with a later expiry date, while larder's copy has expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_prolonged_counts_after_keys_add() {
    const LIST: &str = "/debian/dists/gears/main/binary-amd64/Packages";
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let (world, origin) = world_and_origin(&[&key], false).await;
    let before = first(BY_NAME, &key);
    before.put(&origin, "/debian");
    let apt = Apt::through(&world, &origin, &key, LINE).await;
    assert!(updated(&apt, &world).await.0);
    world.proxy.clock.advance(Duration::from_hours(24 * 400));
    key.gpg(&["--quick-set-expire", &key.fingerprint(), "5y"]);
    key.publish();
    let mut next = second(&before);
    next.sign(&key);
    next.put(&origin, "/debian");
    let fresh = Apt::through(&world, &origin, &key, LINE).await;
    let (well, second, said) = updated(&fresh, &world).await;
    assert!(well && second, "{said}");
    assert!(!body(&world, &origin, LIST).await.1.contains("signed"), "the control");
    let arguments = ["keys", "add", key.public.to_str().unwrap()];
    let added = say(&world.ca, &world.proxy.data, &arguments).await;
    assert!(added.status.success(), "{}", text(&added));
    world.proxy.clock.advance(Duration::from_mins(1));
    let (well, second, said) = updated(&fresh, &world).await;
    assert!(well && second, "{said}");
    assert!(body(&world, &origin, LIST).await.1.contains("signed"));
}

/// Issue 17, first list, row 2: `apt-ftparchive`, run in place, lists the Release that it is writing, and on the next run the
/// signed ones too.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_may_list_itself_and_its_signatures() {
    for signatures in [Signatures::Inside, Signatures::Beside, Signatures::Both] {
        for https in [true, false] {
            let name = format!("{signatures:?}");
            Box::pin(crate::apt::row(&name, https, lists_itself(signatures, https))).await;
        }
    }
}

const HEADS: [&str; 3] = ["Release", "Release.gpg", "InRelease"];

/// With digests that differ from the final files, as these were while the Release was written.
fn listing_itself(mut archive: Repository, key: &Key) -> Repository {
    for name in HEADS {
        let digest = hex(Algorithm::Sha256, name.as_bytes());
        writeln!(archive.release, " {digest} 7 {name}").unwrap();
    }
    archive.sign(key);
    archive
}

async fn lists_itself(signatures: Signatures, https: bool) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let (world, origin) = world_and_origin(&[&key], https).await;
    let before = first(Layout { signatures, ..BY_NAME }, &key);
    let next = listing_itself(second(&before), &key);
    for (archive, is_second) in [(listing_itself(before, &key), false), (next, true)] {
        archive.put(&origin, "/debian");
        world.proxy.clock.advance(Duration::from_mins(1));
        let direct = Apt::without(&world, &origin, &key, LINE);
        assert_eq!(updated(&direct, &world).await.1, is_second, "the control");
        let apt = Apt::through(&world, &origin, &key, LINE).await;
        let (well, got_second, said) = updated(&apt, &world).await;
        assert!(well && got_second == is_second, "{said}");
        for (path, bytes) in &archive.files {
            if HEADS.contains(&path.rsplit('/').next().unwrap()) {
                let (came, said) = body(&world, &origin, &format!("/debian/{path}")).await;
                assert!(came == *bytes && said.contains("signed"), "{path}: {said}");
            }
        }
    }
}

/// A key that expires within a month is reported, if it signs for an archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_use_is_named_a_month_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let unused = Key::new(dir.path(), "unused");
    let (world, origin) = world_and_origin(&[&key, &unused], false).await;
    first(BY_NAME, &key).put(&origin, "/debian");
    let apt = Apt::through(&world, &origin, &key, LINE).await;
    assert!(updated(&apt, &world).await.0);
    // Adding a key makes larder check all keys.
    let add = || async {
        let arguments = ["keys", "add", key.public.to_str().unwrap()];
        let added = say(&world.ca, &world.proxy.data, &arguments).await;
        assert!(added.status.success(), "{}", text(&added));
        world.proxy.metric("larder_keys_ending", "").await
    };
    assert!(add().await < 0.5, "the control");
    world.proxy.clock.advance(Duration::from_hours(24 * 340));
    assert!((0.5..1.5).contains(&add().await));
}

/// In the form of apt's own sources files.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stands_in_signed_by_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let armour = String::from_utf8(key.armoured()).unwrap();
    let folded: Vec<String> = armour
        .lines()
        .map(|line| if line.is_empty() { " .".to_owned() } else { format!(" {line}") })
        .collect();
    let sources = format!(
        "Types: deb\nURIs: https://example.org/debian\nSuites: gears\nComponents: main\nSigned-By:\n{}\n",
        folded.join("\n")
    );
    let parts = dir.path().join("sources.list.d");
    std::fs::create_dir_all(&parts).unwrap();
    std::fs::write(parts.join("archive.sources"), sources).unwrap();
    std::fs::write(parts.join("other.sources"), "Types: deb\nSigned-By: /nowhere.gpg\n").unwrap();
    let world = World::with(|config| config.keys.system = vec![parts.clone()]).await;
    let listed = text(&say(&world.ca, &world.proxy.data, &["keys", "list"]).await);
    let (found, rest) = listed.split_once(&key.fingerprint()).unwrap();
    assert!(!found.contains("other.sources") && rest.contains("archive.sources"), "{listed}");
}
