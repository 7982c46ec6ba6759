//! What a signed index says of itself: its date, its `Valid-Until`, the signer of the next one. And members other than Packages
//! that its signature covers.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder::digest::Algorithm;

use crate::generations::{PACKAGES, SUITE, archive, later};
use crate::signed::{Key, world_trusting};
use crate::world::archive::{flipped, hex};
use crate::world::binary::say;
use crate::world::tools::text;
use crate::world::{Got, Origin, Page, World};

const DATE: &str = "Fri, 20 Nov 2020 12:00:00 GMT";

/// A Release with these fields and members.
fn release(date: &str, fields: &str, members: &[(&str, &[u8])]) -> String {
    let mut text = format!("Suite: stable\nCodename: gears\nDate: {date}\n{fields}SHA256:\n");
    for (name, bytes) in members {
        writeln!(text, " {} {} {name}", hex(Algorithm::Sha256, bytes), bytes.len()).unwrap();
    }
    text
}

/// The date in this many seconds, in the format of a Release.
fn in_seconds(seconds: i64) -> String {
    let date = Command::new("date")
        .args(["-u", "-d", &format!("{seconds} seconds"), "+%a, %d %b %Y %H:%M:%S GMT"])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

/// An update as apt sends it, some seconds after the one before.
async fn update(world: &World, origin: &Origin, path: &str) -> Got {
    later(world);
    world.client.get(&origin.url(path)).header("cache-control", "max-age=0").send().await
}

const RELEASE: &str = "/debian/dists/gears/InRelease";

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_index_without_validators_is_known_by_its_date() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        origin.put(RELEASE, Page::new(key.clear_sign(&release(DATE, "", &[]))));
        assert_eq!(update(&world, &origin, RELEASE).await.text("last-modified"), DATE);
        later(&world);
        let ask = world.client.get(&origin.url(RELEASE)).header("cache-control", "max-age=0");
        let again = ask.header("if-modified-since", DATE).send().await;
        assert_eq!(again.status, 304, "{}", again.cache_status());
        // A date of a moment ago may belong to two versions.
        let now = in_seconds(-20);
        origin.put(RELEASE, Page::new(key.clear_sign(&release(&now, "", &[]))));
        let young = update(&world, &origin, RELEASE).await;
        assert!(young.is_complete() && young.text("last-modified").is_empty(), "{young:?}");
        // The origin's own validator is not changed.
        let modified = "Sat, 21 Nov 2020 00:00:00 GMT";
        let page = Page::new(key.clear_sign(&release(&in_seconds(-19), "", &[])));
        origin.put(RELEASE, page.header("last-modified", modified));
        assert_eq!(update(&world, &origin, RELEASE).await.text("last-modified"), modified);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_valid_until_stays_stale_whatever_the_origin_says() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let until = format!("Valid-Until: {}\n", in_seconds(3600));
        let page = Page::new(key.clear_sign(&release(DATE, &until, &[])));
        origin.put(RELEASE, page.etag("one"));
        // The control: while it is valid, a 304 renews it.
        for _ in 0..2 {
            let said = update(&world, &origin, RELEASE).await;
            assert!(said.cache_status().contains("\"signed\""), "{}", said.cache_status());
        }
        world.proxy.clock.advance(Duration::from_secs(3700));
        for _ in 0..2 {
            let said = update(&world, &origin, RELEASE).await;
            assert!(said.cache_status().contains("\"signed+stale\""), "{}", said.cache_status());
        }
        assert!(
            origin.asked(RELEASE).iter().filter(|one| one.text("if-none-match").is_some()).count()
                > 2
        );
    }
}

/// An attacker who was on the path once could have sent an earlier snapshot with the validators of today's; the origin would
/// confirm these until it publishes again.
#[tokio::test(flavor = "multi_thread")]
async fn validators_that_came_over_plain_http_do_not_freeze_an_archive() {
    const NEXT: &str = "Sat, 21 Nov 2020 12:00:00 GMT";
    for https in [false, true] {
        let (_dir, key, world, origin) = archive(https).await;
        let [old, new] = [DATE, NEXT].map(|date| key.clear_sign(&release(date, "", &[])));
        origin.put(RELEASE, Page::new(old.clone()).etag("today"));
        assert_eq!(update(&world, &origin, RELEASE).await.body, old);
        origin.put(RELEASE, Page::new(new.clone()).etag("today"));
        // The control: the validator is used for some hours, and over TLS for good.
        assert_eq!(update(&world, &origin, RELEASE).await.body, old);
        world.proxy.clock.advance(Duration::from_hours(7));
        let later = update(&world, &origin, RELEASE).await;
        assert_eq!(later.body, if https { old } else { new }, "{}", later.cache_status());
    }
}

/// Publishes the keys of a home; returns the fingerprints of their primary keys and subkeys.
fn published(key: &Key) -> Vec<String> {
    key.publish();
    let listed = key.gpg(&["--with-colons", "--list-keys"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let fingerprints = listed.lines().filter_map(|line| line.strip_prefix("fpr:::::::::"));
    fingerprints.map(|rest| rest.trim_end_matches(':').to_owned()).collect()
}

/// Adds a second key pair to a home.
fn another_key(key: &Key) {
    let user = "next <next@example.org>";
    key.gpg(&["--passphrase", "", "--quick-gen-key", user, "ed25519", "sign", "1y"]);
}

/// A snapshot that is published.
struct Edition<'a> {
    key: &'a Key,
    origin: &'a Origin,
}

impl Edition<'_> {
    /// Publishes a snapshot of this hour, whose one member is `text`, signed by these keys.
    fn put(&self, hour: u32, fields: &str, text: &str, by: &[&str]) {
        let date = DATE.replace("12:00", &format!("{hour}:00"));
        let file = self.key.home.join("text");
        std::fs::write(&file, release(&date, fields, &[(PACKAGES, text.as_bytes())])).unwrap();
        let users = by.iter().flat_map(|user| ["--local-user", user]);
        let rest = ["--output", "-", "--clear-sign", file.to_str().unwrap()];
        let signed = self.key.gpg(&users.chain(rest).collect::<Vec<_>>()).stdout;
        self.origin.put(RELEASE, Page::new(signed));
        self.origin.put(&format!("{SUITE}/{PACKAGES}"), Page::new(text.to_owned()));
    }

    /// What a client gets of the member, and whether a signature proves it.
    async fn given(&self, world: &World) -> (String, bool) {
        update(world, self.origin, RELEASE).await;
        let got = update(world, self.origin, &format!("{SUITE}/{PACKAGES}")).await;
        let signed = got.cache_status().contains("signed");
        (String::from_utf8(got.body.to_vec()).unwrap(), signed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edition_says_who_may_sign_the_next() {
    for both in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::new(dir.path(), "archive");
        another_key(&key);
        let [old, new] = &published(&key)[..] else { panic!() };
        let world = world_trusting(Some(&key)).await;
        let edition = Edition { key: &key, origin: &world.origin };
        // A key that is named need not have signed before: the earlier signers vouch for it.
        let signers: &[&str] = if both { &[old, new] } else { &[old] };
        edition.put(12, &format!("Signed-By: {new}!\n"), "one", signers);
        assert_eq!(edition.given(&world).await, ("one".into(), true));
        // The old key alone does not count any more, though it signed before: what it signed is given and proves nothing.
        edition.put(13, "", "two", &[old]);
        assert_eq!(edition.given(&world).await, ("two".into(), false));
        edition.put(13, "", "two", &[new]);
        assert_eq!(edition.given(&world).await, ("two".into(), true));
    }
}

/// The control of the test before: a known key that was not named.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_named_does_not_sign_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    another_key(&key);
    let [old, new] = &published(&key)[..] else { panic!() };
    let unknown = "0123456789ABCDEF0123456789ABCDEF01234567";
    for fields in [String::new(), format!("Signed-By: {unknown}, {old}\n")] {
        let world = world_trusting(Some(&key)).await;
        let edition = Edition { key: &key, origin: &world.origin };
        edition.put(12, &fields, "one", &[old]);
        assert_eq!(edition.given(&world).await, ("one".into(), true));
        edition.put(13, "", "two", &[new]);
        assert_eq!(edition.given(&world).await, ("two".into(), false), "{fields}");
        // If one of the named keys is unknown to larder, the other signers still count.
        edition.put(13, "", "two", &[old]);
        assert_eq!(edition.given(&world).await, ("two".into(), true), "{fields}");
    }
}

/// An archive that names a subkey which larder's copy of the key does not contain yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_counts_when_it_becomes_known() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let [primary] = &published(&key)[..] else { panic!() };
    let world = world_trusting(Some(&key)).await;
    key.gpg(&["--passphrase", "", "--quick-add-key", primary, "ed25519", "sign", "1y"]);
    let [_, subkey] = &published(&key)[..] else { panic!() };
    let edition = Edition { key: &key, origin: &world.origin };
    let exactly = |name: &str| format!("{name}!");
    edition.put(12, &format!("Signed-By: {subkey}!\n"), "one", &[&exactly(primary)]);
    assert_eq!(edition.given(&world).await, ("one".into(), true));
    edition.put(13, "", "two", &[&exactly(subkey)]);
    assert_eq!(edition.given(&world).await, ("two".into(), false), "nobody knows who signed");
    let arguments = ["keys", "add", key.public.to_str().unwrap()];
    let added = say(&world.ca, &world.proxy.data, &arguments).await;
    assert!(added.status.success(), "{}", text(&added));
    assert_eq!(edition.given(&world).await, ("two".into(), true));
}

/// A key that has expired since, and a document that it signed while it was valid.
fn expired(dir: &Path, text: &str) -> (Key, Vec<u8>) {
    let key = Key::new(dir, "expired");
    let past = ["--faked-system-time", "20190101T000000"];
    let user = "old <old@example.org>";
    let make = ["--passphrase", "", "--quick-gen-key", user, "ed25519", "sign", "1y"];
    key.gpg(&[&past[..], &make].concat());
    std::fs::write(&key.public, key.gpg(&["--export", user]).stdout).unwrap();
    let file = dir.join("old");
    std::fs::write(&file, text).unwrap();
    let sign = ["--local-user", user, "--output", "-", "--clear-sign", file.to_str().unwrap()];
    let signed = key.gpg(&[&past[..], &sign].concat()).stdout;
    (key, signed)
}

/// Everything that such a signature covers is marked: only the server vouches for the archive, and the operator should look.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_key_vouches_for_nothing_and_is_named() {
    const DEB: &str = "/debian/pool/main/g/gear_1_all.deb";
    let dir = tempfile::tempdir().unwrap();
    let date = "Tue, 01 Jan 2019 00:00:00 GMT";
    let packages = format!(
        "Package: gear\nFilename: {}\nSHA256: {}\n\n",
        DEB.trim_start_matches("/debian/"),
        hex(Algorithm::Sha256, b"deb")
    );
    let text = release(date, "", &[(PACKAGES, packages.as_bytes())]);
    let (key, signed) = expired(dir.path(), &text);
    key.publish();
    // The control: a key that has not expired.
    for (signed, expected) in [(signed, "indexed+expired-key"), (key.clear_sign(&text), "signed")] {
        let mut world = world_trusting(Some(&key)).await;
        let plain = Origin::plain("127.0.0.1").await;
        let secure = world.another("127.0.0.1").await;
        for origin in [&secure, &plain] {
            origin.put(RELEASE, Page::new(signed.clone()));
            origin.put(&format!("{SUITE}/{PACKAGES}"), Page::new(packages.clone()));
            origin.put(DEB, Page::new("deb"));
        }
        let detail = format!("; detail=\"{expected}\"");
        for round in ["first", "again", "after a restart"] {
            if round == "after a restart" {
                world.restart(|_| {}).await;
            }
            for origin in [&secure, &plain] {
                let expired = expected != "signed";
                let nothing = expired && origin.address() == plain.address();
                let got = update(&world, origin, RELEASE).await.complete();
                let named = got.cache_status().contains("+expired-key");
                assert_eq!(named, expired && !nothing, "{round}: {}", got.cache_status());
                for path in [&format!("{SUITE}/{PACKAGES}"), DEB] {
                    let got = update(&world, origin, path).await.complete();
                    let said = got.cache_status();
                    // For a body on its way, the mark is known when the body is complete.
                    if round != "first" {
                        assert_eq!(said.contains(&detail), !nothing, "{round} {path}: {said}");
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_hang_on_the_chain() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let patch = b"a patch, compressed";
        let wrong = flipped(patch);
        let line = |bytes: &[u8], name| {
            format!(" {} {} {name}\n", hex(Algorithm::Sha256, bytes), bytes.len())
        };
        let list =
            format!("SHA256-Download:\n{}{}", line(patch, "T-1-F-0.gz"), line(patch, "T-2-F-0.gz"));
        let index = format!("{PACKAGES}.diff/Index");
        let text = release(DATE, "", &[(&index, list.as_bytes())]);
        origin.put(RELEASE, Page::new(key.clear_sign(&text)));
        let at = |name: &str| format!("{SUITE}/{PACKAGES}.diff/{name}");
        origin.put(&at("Index"), Page::new(list));
        origin.put(&at("T-1-F-0.gz"), Page::new(patch.to_vec()));
        origin.put(&at("T-2-F-0.gz"), Page::new(wrong));
        update(&world, &origin, RELEASE).await;
        update(&world, &origin, &at("Index")).await;
        update(&world, &origin, &at("T-1-F-0.gz")).await;
        world.proxy.clock.advance(Duration::from_hours(1));
        let again = world.fetch(&origin.url(&at("T-1-F-0.gz"))).await;
        assert!(
            again.cache_status().contains("hit; detail=\"signed\""),
            "{}",
            again.cache_status()
        );
        assert_eq!(origin.gets(&at("T-1-F-0.gz")), 1);
        // The right bytes are known by now, so that the mirror's are not requested; before, they would have been refused.
        let got = world.get(&origin.url(&at("T-2-F-0.gz"))).await;
        assert_eq!(got.body, patch[..], "{}", got.cache_status());
        assert_eq!(origin.gets(&at("T-2-F-0.gz")), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flat_archive_may_keep_its_index_under_its_digest() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let name = "gear++_1.0+x-1_all.deb";
        let packages = format!(
            "Package: gear++\nFilename: ./{name}\nSHA256: {}\n\n",
            hex(Algorithm::Sha256, b"deb")
        );
        let text = release(DATE, "Acquire-By-Hash: yes\n", &[("Packages", packages.as_bytes())]);
        let named = format!("/flat/by-hash/SHA256/{}", hex(Algorithm::Sha256, packages.as_bytes()));
        let deb = format!("/flat/{}", name.replace('+', "%2b"));
        origin.put("/flat/InRelease", Page::new(key.clear_sign(&text)));
        origin.put(&named, Page::new(packages));
        origin.put(&format!("/flat/{}", name.replace('+', "%2B")), Page::new("deb"));
        for path in ["/flat/InRelease", &named, &deb] {
            update(&world, &origin, path).await.complete();
        }
        let got = world.fetch(&origin.url(&deb)).await;
        assert!(got.cache_status().contains("hit; detail=\"signed\""), "{}", got.cache_status());
    }
}
