//! npm's registry signatures through the whole proxy, with a throw-away key: a valid signature proves, an invalid one promises
//! nothing, and a changed version raises an alarm.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use larder::digest::Algorithm;
use larder::keyring::contents;
use rcgen::{PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

use crate::signed;
use crate::world::archive::hex;
use crate::world::binary::say;
use crate::world::client::Got;
use crate::world::tools::text;
use crate::world::{Origin, Page, World, noise};

const CI: &str = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
const TARBALL: &str = "/npm/gear/-/gear-1.0.0.tgz";

/// A registry's key.
struct Registry {
    key: rcgen::KeyPair,
    id: String,
}

impl Registry {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let found = contents::read(key.public_key_pem().as_bytes(), "").unwrap();
        let id = found.keys[0].fingerprint().0.into();
        Self { key, id }
    }

    fn sign(&self, message: &str) -> Value {
        let signature = STANDARD.encode(self.key.sign(message.as_bytes()).unwrap());
        json!([{ "keyid": self.id, "sig": signature }])
    }

    /// The answer of its keys endpoint.
    fn keys(&self, expires: Option<&str>) -> String {
        let kind = "ecdsa-sha2-nistp256";
        let spki = STANDARD.encode(self.key.subject_public_key_info());
        json!({ "keys": [{
            "expires": expires, "keyid": self.id, "keytype": kind, "scheme": kind, "key": spki
        }]})
        .to_string()
    }
}

/// An environment whose larder trusts only the keys in `file`.
async fn world_trusting(file: Option<&str>) -> World {
    World::with(|config| {
        config.keys.built_in = false;
        config.keys.system = Vec::new();
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        if let Some(file) = file {
            std::fs::write(keys.join("registry.json"), file).unwrap();
        }
    })
    .await
}

fn integrity(bytes: &[u8]) -> String {
    let digest = hex(Algorithm::Sha512, bytes);
    let pairs = digest.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    let raw: Vec<u8> = pairs.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
    format!("sha512-{}", STANDARD.encode(raw))
}

/// A packument of version 1.0.0.
fn packument(origin: &Origin, tarball: &str, integrity: &str, signatures: &Value) -> Value {
    json!({
        "name": "gear",
        "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": { "name": "gear", "version": "1.0.0", "dist": {
            "tarball": origin.url(tarball), "integrity": integrity, "signatures": signatures,
        }}},
    })
}

fn put(origin: &Origin, document: &Value) {
    let body = document.to_string();
    let tag = format!("\"{}\"", hex(Algorithm::Sha256, body.as_bytes()));
    let page = Page::new(body).header("content-type", "application/json").etag(&tag);
    origin.put("/npm/gear", page);
}

/// Requests the document as `npm install` does, after the stored one has become too old.
async fn read(world: &World) -> Got {
    world.proxy.clock.advance(std::time::Duration::from_secs(400));
    let url = world.origin.url("/npm/gear");
    world.client.get(&url).header("accept", CI).header("cache-control", "no-cache").send().await
}

/// larder's `Cache-Status` for the tarball once it is kept.
async fn proof(world: &World, tarball: &str) -> String {
    let url = world.origin.url(tarball);
    world.get(&url).await;
    world.get(&url).await.cache_status().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_signature_holds_is_signed_and_nothing_near_it_is() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let good = registry.sign(&format!("gear@1.0.0:{sri}"));
    let mut flipped = good.clone();
    let mut raw = STANDARD.decode(good[0]["sig"].as_str().unwrap()).unwrap();
    *raw.last_mut().unwrap() ^= 1;
    flipped[0]["sig"] = json!(STANDARD.encode(raw));
    for (what, signatures, expected) in [
        ("good", good.clone(), "signed"),
        ("none", json!([]), "indexed"),
        ("another shape", json!({"keyid": "x"}), "indexed"),
        ("a stranger's", Registry::new().sign(&format!("gear@1.0.0:{sri}")), "indexed"),
        ("flipped", flipped, "pinned"),
        ("of another version", registry.sign(&format!("gear@1.0.1:{sri}")), "pinned"),
        ("of another package", registry.sign(&format!("gears@1.0.0:{sri}")), "pinned"),
        ("with a line end", registry.sign(&format!("gear@1.0.0:{sri}\n")), "pinned"),
    ] {
        let world = world_trusting(Some(&registry.keys(None))).await;
        world.origin.put(TARBALL, Page::new(tgz.clone()));
        put(&world.origin, &packument(&world.origin, TARBALL, &sri, &signatures));
        assert_eq!(read(&world).await.complete().status, 200);
        let said = proof(&world, TARBALL).await;
        assert!(said.contains("hit") && said.contains(expected), "{what}: {said}");
        if expected == "pinned" {
            world.proxy.counted("larder_alarms", "signature", 1.0).await;
        } else {
            assert!(world.proxy.metric("larder_alarms", "signature").await == 0.0, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_signed_ones_never_complete() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let world = world_trusting(Some(&registry.keys(None))).await;
    let signed = registry.sign(&format!("gear@1.0.0:{sri}"));
    put(&world.origin, &packument(&world.origin, TARBALL, &sri, &signed));
    world.origin.put(TARBALL, Page::new(crate::world::archive::flipped(&tgz)));
    read(&world).await.complete();
    assert!(!world.get(&world.origin.url(TARBALL)).await.is_complete());
}

/// A genuine signature of 1.0.0 beside another version's file does not apply to that file.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_counts_for_the_tarball_of_its_version_alone() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let other = "/npm/gear/-/gear-2.0.0.tgz";
    let world = world_trusting(Some(&registry.keys(None))).await;
    let signed = registry.sign(&format!("gear@1.0.0:{sri}"));
    put(&world.origin, &packument(&world.origin, other, &sri, &signed));
    world.origin.put(other, Page::new(tgz));
    read(&world).await.complete();
    let said = proof(&world, other).await;
    assert!(said.contains("indexed") && !said.contains("signed"), "{said}");
}

/// The endpoint where a registry publishes its keys is only as trustworthy as its TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_seen_on_the_wire_proves_nothing_until_an_operator_adds_it() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let world = world_trusting(None).await;
    let signed = registry.sign(&format!("gear@1.0.0:{sri}"));
    put(&world.origin, &packument(&world.origin, TARBALL, &sri, &signed));
    world.origin.put(TARBALL, Page::new(tgz));
    let keys = registry.keys(None);
    let page = Page::new(keys.clone()).header("content-type", "application/json").fresh(3600);
    let endpoint = world.origin.put("/npm/-/npm/v1/keys", page);
    assert_eq!(world.fetch(&endpoint).await.body, keys.as_bytes());
    read(&world).await.complete();
    assert!(proof(&world, TARBALL).await.contains("indexed"));

    let file = world.dir().join("npm-keys.json");
    std::fs::write(&file, &keys).unwrap();
    let data = world.proxy.data.clone();
    let added = say(&world.ca, &data, &["keys", "add", file.to_str().unwrap()]).await;
    assert!(added.status.success() && text(&added).contains(&registry.id), "{}", text(&added));
    // The registry answers 304, and the version is signed now without any byte of the document.
    let got = read(&world).await.complete();
    assert!(got.cache_status().contains("304") || got.is_hit(), "{}", got.cache_status());
    let said = proof(&world, TARBALL).await;
    assert!(said.contains("signed") && said.contains("hit"), "{said}");
    assert_eq!(world.origin.gets(TARBALL), 1);
    let listed = text(&say(&world.ca, &data, &["keys", "list"]).await);
    assert!(listed.contains(&format!("used by {}", world.origin.url("/npm/"))), "{listed}");

    let removed = say(&world.ca, &data, &["keys", "rm", &registry.id]).await;
    assert!(removed.status.success(), "{}", text(&removed));
    read(&world).await.complete();
    let said = proof(&world, TARBALL).await;
    assert!(said.contains("indexed") && !said.contains("signed"), "{said}");
}

/// A stolen key may have signed a bad version. Once the operator has removed the key, the registry's own word counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_key_signed_gives_way_to_what_the_registry_says() {
    let registry = Registry::new();
    let (bad, right) = (noise(1, 300_000), noise(2, 300_000));
    let world = world_trusting(None).await;
    let file = world.dir().join("npm-keys.json");
    std::fs::write(&file, registry.keys(None)).unwrap();
    let data = world.proxy.data.clone();
    let added = say(&world.ca, &data, &["keys", "add", file.to_str().unwrap()]).await;
    assert!(added.status.success(), "{}", text(&added));
    let publish = |tgz: &Bytes, signatures: &Value| {
        put(&world.origin, &packument(&world.origin, TARBALL, &integrity(tgz), signatures));
        world.origin.put(TARBALL, Page::new(tgz.clone()));
    };
    publish(&bad, &registry.sign(&format!("gear@1.0.0:{}", integrity(&bad))));
    read(&world).await.complete();
    assert!(proof(&world, TARBALL).await.contains("signed"));
    publish(&right, &json!([]));
    read(&world).await.complete();
    let url = world.origin.url(TARBALL);
    assert_eq!(world.fetch(&url).await.body, bad, "the control: a signed promise stays");
    let removed = say(&world.ca, &data, &["keys", "rm", &registry.id]).await;
    assert!(removed.status.success(), "{}", text(&removed));
    // The registry publishes once more, as it does with every version.
    let mut document = packument(&world.origin, TARBALL, &integrity(&right), &json!([]));
    document["description"] = json!("repaired");
    put(&world.origin, &document);
    read(&world).await.complete();
    assert_eq!(world.fetch(&url).await.body, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ended_counts_for_what_was_published_before() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let signed = registry.sign(&format!("gear@1.0.0:{sri}"));
    for (published, expected) in [
        (Some("2024-12-31T23:59:59.999Z"), "signed"),
        (Some("2025-01-01T00:00:00.000Z"), "indexed"),
        (None, "signed"),
    ] {
        let world = world_trusting(Some(&registry.keys(Some("2025-01-01T00:00:00.000Z")))).await;
        let mut document = packument(&world.origin, TARBALL, &sri, &signed);
        if let Some(published) = published {
            document["time"] = json!({ "created": published, "1.0.0": published });
        }
        put(&world.origin, &document);
        world.origin.put(TARBALL, Page::new(tgz.clone()));
        read(&world).await.complete();
        let said = proof(&world, TARBALL).await;
        assert!(said.contains(expected), "{published:?}: {said}");
    }
}

/// Changes a version that a registry published before, and returns the result.
async fn changed(before: &Value, after: &Value, old: &Bytes, new: &Bytes) -> (World, String) {
    let registry_keys = before["keys"].as_str().unwrap().to_owned();
    let world = world_trusting(Some(&registry_keys)).await;
    put(&world.origin, &packument(&world.origin, TARBALL, &integrity(old), &before["signatures"]));
    world.origin.put(TARBALL, Page::new(old.clone()));
    read(&world).await.complete();
    let said = proof(&world, TARBALL).await;
    put(&world.origin, &packument(&world.origin, TARBALL, &integrity(new), &after["signatures"]));
    world.origin.put(TARBALL, Page::new(new.clone()));
    read(&world).await.complete();
    (world, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_changes_is_heard_of_and_what_was_signed_stays() {
    let registry = Registry::new();
    let (old, new) = (noise(1, 300_000), noise(2, 300_000));
    let sign = |bytes: &[u8]| registry.sign(&format!("gear@1.0.0:{}", integrity(bytes)));
    let keys = registry.keys(None);
    let case = |signatures: Value| json!({ "keys": keys, "signatures": signatures });
    let (none, first, second) = (case(json!([])), case(sign(&old)), case(sign(&new)));
    // The signature of the old bytes on the new ones: somebody tampered with them.
    let stale = case(sign(&old));
    let (differs, wrong) = ("where it was", "does not hold");
    for (what, before, after, body, proven, alarm, said_why) in [
        ("never signed", &none, &none, &new, "indexed", "changed", differs),
        ("signed again", &first, &second, &new, "signed", "changed", differs),
        ("signed later", &none, &second, &new, "signed", "changed", differs),
        ("signed no more", &first, &none, &old, "signed", "signature", differs),
        ("signed wrongly", &first, &stale, &old, "signed", "signature", wrong),
    ] {
        let (world, said) = changed(before, after, &old, &new).await;
        assert!(said.contains("hit"), "{what}: {said}");
        let url = world.origin.url(TARBALL);
        world.get(&url).await;
        let got = world.get(&url).await;
        assert_eq!(got.body, *body, "{what}: {}", got.cache_status());
        let said = got.cache_status();
        assert!(said.contains("hit") && said.contains(proven), "{what}: {said}");
        world.proxy.counted("larder_alarms", alarm, 1.0).await;
        world.told(&["why", &world.origin.url("/npm/gear")], said_why).await;
    }
    // The control: a document that did not change raises no alarm.
    let (world, _) = changed(&first, &first, &old, &old).await;
    for alarm in ["changed", "signature"] {
        assert!(world.proxy.metric("larder_alarms", alarm).await == 0.0);
    }
}

/// A registry and an archive below its URL have the same root; the signer of the registry's packages is no signer of that
/// archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_key_is_no_signer_of_an_archive_beside_it() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let world = world_trusting(Some(&registry.keys(None))).await;
    let key = signed::Key::new(world.dir(), "archive");
    say(&world.ca, &world.proxy.data, &["keys", "add", key.public.to_str().unwrap()]).await;
    let archive = signed::Archive::new(world.dir(), "one", signed::DATE, false).await;
    archive.put(&world.origin, &key);
    let tarball = "/debian/gear/-/gear-1.0.0.tgz";
    let good = registry.sign(&format!("gear@1.0.0:{sri}"));
    let document = packument(&world.origin, tarball, &sri, &good).to_string();
    let page = Page::new(document).header("content-type", "application/json");
    let url = world.origin.put("/debian/gear", page);
    world.origin.put(tarball, Page::new(tgz));
    world.client.get(&url).header("accept", CI).send().await.complete();
    let said = proof(&world, tarball).await;
    assert!(said.contains("signed"), "{said}");
    for index in ["InRelease", "main/binary-all/Packages"] {
        world.get(&world.origin.url(&format!("/debian/dists/gears/{index}"))).await.complete();
    }
    let said = proof(&world, &format!("/debian/{}", signed::PACKAGE.replace('+', "%2B"))).await;
    assert!(said.contains("signed"), "{said}");
}

/// A registry's key signs single versions, in a document that only TLS vouches for.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_registrys_key_proved_that_is_lost_is_proven_no_more() {
    let registry = Registry::new();
    let tgz = noise(1, 300_000);
    let sri = integrity(&tgz);
    let mut world = world_trusting(Some(&registry.keys(None))).await;
    world.origin.put(TARBALL, Page::new(tgz));
    let good = registry.sign(&format!("gear@1.0.0:{sri}"));
    put(&world.origin, &packument(&world.origin, TARBALL, &sri, &good));
    read(&world).await.complete();
    assert!(proof(&world, TARBALL).await.contains("signed"));
    world.restart(|_| {}).await;
    assert!(proof(&world, TARBALL).await.contains("signed"), "the control");
    world
        .restart(|data| std::fs::remove_file(data.join("state/keys/registry.json")).unwrap())
        .await;
    let said = proof(&world, TARBALL).await;
    assert!(!said.contains("signed"), "{said}");
    read(&world).await.complete();
    // Without a promise, it was fetched without the digest that the document names.
    let said = proof(&world, TARBALL).await;
    assert!(said.contains("hit") && said.contains("indexed"), "{said}");
}
