//! `larder keys`, with the real program and with files exported by the real gpg: against a running larder, and on its directory
//! when none runs. What was refused because a key was missing works once the key is added.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use larder::digest::Algorithm;
use serde_json::Value;

use crate::world::archive::hex;
use crate::world::binary::{Daemon, larder, say};
use crate::world::gpg::Key;
use crate::world::tools::{signal, text};
use crate::world::{Ca, Origin, Page, World, eventually, files};

/// A directory with a CA for origins, and a larder that may be running.
struct Bench {
    ca: Ca,
    daemon: Option<Daemon>,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new(serving: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let mut bench = Self { ca, daemon: None, dir };
        if serving {
            bench.daemon = Some(Daemon::start(&bench.ca, &bench.data(), &[NO_SYSTEM]).await);
        }
        bench
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file; returns its path.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `larder keys ARGUMENTS`, with the file `input` as standard input.
    async fn keys(&self, arguments: &[&str], input: Option<&Path>) -> Output {
        let mut command = larder(&self.ca, &self.data());
        let input =
            input.map_or_else(Stdio::null, |path| std::fs::File::open(path).unwrap().into());
        command.env(NO_SYSTEM.0, NO_SYSTEM.1).arg("keys").args(arguments).stdin(input);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn done(&self, arguments: &[&str]) -> String {
        let output = self.keys(arguments, None).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    /// The keys that an operator added, from the list.
    async fn listed(&self) -> Vec<Value> {
        let text = self.done(&["list", "--json"]).await;
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|key| key["sources"].to_string().contains("\"operator\"")).collect()
    }

    async fn fingerprints(&self) -> Vec<String> {
        let listed = self.listed().await;
        listed.iter().map(|key| key["fingerprint"].as_str().unwrap().to_owned()).collect()
    }

    fn kept(&self) -> Vec<PathBuf> {
        files(&self.data().join("state/keys"))
    }
}

/// Excludes this machine's keyrings from these tests.
const NO_SYSTEM: (&str, &str) = ("LARDER_KEYS_SYSTEM", "/nonexistent");

fn sorted<const N: usize>(keys: [&Key; N]) -> Vec<String> {
    let mut names = keys.map(Key::fingerprint).to_vec();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_listed_and_removed_with_and_without_a_running_larder() {
    for serving in [false, true] {
        let bench = Bench::new(serving).await;
        let dir = bench.dir.path();
        let [one, two, three, four] = ["one", "two", "three", "four"].map(|n| Key::new(dir, n));
        let both = bench.file("both.gpg", &[one.exported(), two.exported()].concat());
        bench.done(&["add", &both]).await;
        assert_eq!(bench.fingerprints().await, sorted([&one, &two]));
        // Adding a key twice has no further effect.
        bench.done(&["add", &both]).await;
        assert_eq!(bench.kept().len(), 2);

        let armoured = bench.file("three", &three.armoured());
        let added = bench.keys(&["add", "-"], Some(Path::new(&armoured))).await;
        assert!(added.status.success(), "{}", text(&added));
        bench.file("keys/four.asc", &four.armoured());
        bench.file("keys/README", b"not a key");
        let said = bench.done(&["add", bench.path("keys").to_str().unwrap()]).await;
        assert!(said.contains("README is left out") && said.contains("four@example.org"), "{said}");
        assert_eq!(bench.fingerprints().await, sorted([&one, &two, &three, &four]));
        let listed = bench.listed().await;
        let key = listed.iter().find(|key| key["user"] == "three <three@example.org>").unwrap();
        assert_eq!(key["kind"], "openpgp");
        assert!(key["ends"].is_i64() && key["used_by"].as_array().unwrap().is_empty(), "{key}");

        // By key id, by fingerprint, in lower case and with spaces.
        let id = one.fingerprint().split_off(24);
        bench.done(&["rm", &id]).await;
        bench.done(&["rm", &format!("{} ", two.fingerprint().to_lowercase())]).await;
        assert_eq!(bench.fingerprints().await, sorted([&three, &four]));
        let gone = bench.keys(&["rm", &one.fingerprint()], None).await;
        assert!(text(&gone).contains("names no key") && gone.status.code() == Some(1));
        assert_eq!(bench.kept().len(), 2);
    }
}

/// Files that were put there by hand belong to the user: only the given key is removed.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_file_with_several_keys_one_is_removed() {
    let bench = Bench::new(false).await;
    let [one, two] = ["one", "two"].map(|name| Key::new(bench.dir.path(), name));
    bench.file("data/state/keys/mine.asc", &[one.armoured(), two.armoured()].concat());
    assert_eq!(bench.fingerprints().await, sorted([&one, &two]));
    bench.done(&["rm", &one.fingerprint()]).await;
    assert_eq!(bench.fingerprints().await, sorted([&two]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_key_is_refused_in_words_and_nothing_is_half_added() {
    for serving in [false, true] {
        let bench = Bench::new(serving).await;
        let key = Key::new(bench.dir.path(), "good");
        let good = bench.file("good.gpg", &key.exported());
        let public = key.exported();
        let keybox = key.home.join("pubring.kbx").to_str().unwrap().to_owned();
        let secret = |more: &[&str]| {
            let arguments = [more, &["--passphrase", "", "--export-secret-keys"]].concat();
            key.gpg(&arguments).stdout
        };
        let empty = bench.file("empty", b"");
        bench.file("mixed/a.gpg", &public);
        bench.file("mixed/b.gpg", b"junk");
        bench.file("nothing/README", b"junk");
        let at = |name: &str| bench.path(name).to_str().unwrap().to_owned();
        for (file, why) in [
            (keybox, "gpg --export"),
            (bench.file("secret.gpg", &secret(&[])), "private key"),
            (bench.file("secret.asc", &secret(&["--armor"])), "private key"),
            (bench.file("junk.gpg", b"\x99\x01\x02 junk"), "not a file of public keys"),
            (bench.file("junk.asc", b"junk"), "not a file of public keys"),
            (bench.file("cut.gpg", public.split_last().unwrap().1), "cut off"),
            (empty.clone(), "empty"),
            (at("mixed"), "b.gpg: it is not a file of public keys"),
            (at("nothing"), "no file in this directory"),
            (at("none"), "cannot be read"),
        ] {
            let output = bench.keys(&["add", &good, &file], None).await;
            let said = text(&output);
            assert!(said.contains(why) && output.status.code() == Some(1), "{file}: {said}");
            assert!(bench.kept().is_empty() && bench.fingerprints().await.is_empty(), "{file}");
        }
        let output = bench.keys(&["add", "-"], Some(Path::new(&empty))).await;
        let said = text(&output);
        assert!(said.contains("standard input: it is empty") && !output.status.success(), "{said}");
        // The control.
        bench.done(&["add", &good]).await;
        assert_eq!(bench.fingerprints().await, sorted([&key]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_in_goes_by_a_setting_alone() {
    let bench = Bench::new(false).await;
    let all = bench.done(&["list"]).await;
    assert!(all.contains("built-in: Debian") && all.contains("built-in: npm"), "{all}");
    let first = all.lines().next().unwrap().split(' ').nth(1).unwrap();
    let refused = bench.keys(&["rm", first], None).await;
    let said = text(&refused);
    assert!(said.contains("keys.built_in = false") && !refused.status.success(), "{said}");
    assert!(bench.done(&["list"]).await.contains(first));
    assert_eq!(bench.done(&["list", "--set", "keys.built_in=false"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_put_there_counts_after_a_reload() {
    let bench = Bench::new(true).await;
    let key = Key::new(bench.dir.path(), "one");
    bench.file("data/state/keys/one.gpg", &key.exported());
    assert!(bench.fingerprints().await.is_empty(), "the control: not yet");
    signal(bench.daemon.as_ref().unwrap().id(), "HUP").await;
    eventually("the key is known", || async { bench.fingerprints().await == sorted([&key]) }).await;
}

/// An archive with one file, whose Release has a date.
pub(crate) struct Archive {
    pub(crate) deb: Vec<u8>,
    pub(crate) packages: Vec<u8>,
    release: String,
}

pub(crate) const DEB: &str = "/debian/pool/gear_1.0_all.deb";
pub(crate) const RELEASE: &str = "/debian/dists/gears/InRelease";
pub(crate) const INDEX: &str = "/debian/dists/gears/main/binary-all/Packages";

impl Archive {
    pub(crate) fn new(content: &str, hour: u32) -> Self {
        let deb = content.repeat(1000).into_bytes();
        let packages = format!(
            "Package: gear\nVersion: 1.0\nArchitecture: all\nFilename: pool/gear_1.0_all.deb\nSize: {}\nSHA256: {}\n\n",
            deb.len(),
            hex(Algorithm::Sha256, &deb)
        )
        .into_bytes();
        let release = format!(
            "Suite: gears\nCodename: gears\nDate: Fri, 20 Nov 2020 {hour:02}:00:00 UTC\nSHA256:\n {} {} main/binary-all/Packages\n",
            hex(Algorithm::Sha256, &packages),
            packages.len()
        );
        Self { deb, packages, release }
    }

    pub(crate) fn put(&self, origin: &Origin, key: &Key) {
        let signed = key.clear_sign(&self.release);
        let tag = format!("\"{}\"", hex(Algorithm::Sha256, &signed));
        origin.put(RELEASE, Page::new(signed).etag(&tag));
        origin.put(INDEX, Page::new(self.packages.clone()));
        origin.put(DEB, Page::new(self.deb.clone()));
    }
}

/// The requests of `apt update` and a download; returns the file and larder's `Cache-Status` for a second request.
pub(crate) async fn update(world: &World, origin: &Origin) -> (Vec<u8>, String) {
    world.proxy.clock.advance(Duration::from_secs(30));
    for path in [RELEASE, INDEX] {
        let ask = world.client.get(&origin.url(path)).header("cache-control", "max-age=0");
        ask.send().await.complete();
    }
    world.get(&origin.url(DEB)).await;
    let got = world.get(&origin.url(DEB)).await;
    (got.body.to_vec(), got.cache_status().to_owned())
}

pub(crate) async fn command(world: &World, arguments: &[&str]) -> String {
    let output = say(&world.ca, &world.proxy.data, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_becomes_known_counts_at_the_next_update() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    let key = Key::new(world.dir(), "archive");
    let archive = Archive::new("one", 10);
    for (origin, before) in [(&world.origin, "indexed"), (&plain, "")] {
        archive.put(origin, &key);
        let (_, said) = update(&world, origin).await;
        assert!(said.contains(before) && !said.contains("signed"), "{said}");
        assert_eq!(said.contains("hit"), !before.is_empty(), "{said}");
        let id = key.fingerprint().split_off(24);
        let why = world.told(&["why", &origin.url(RELEASE)], "larder keys add FILE").await;
        assert!(why.contains(&id), "{why}");
    }
    let file = world.dir().join("archive.gpg");
    std::fs::write(&file, key.exported()).unwrap();
    command(&world, &["keys", "add", file.to_str().unwrap()]).await;
    for origin in [&world.origin, &plain] {
        let (body, said) = update(&world, origin).await;
        assert!(said.contains("hit") && said.contains("signed"), "{said}");
        assert_eq!(body, archive.deb);
        let release = world.get(&origin.url(RELEASE)).await.cache_status().to_owned();
        assert!(release.contains("signed"), "{release}");
    }
    let listed = command(&world, &["keys", "list"]).await;
    for origin in [&world.origin, &plain] {
        assert!(listed.contains(&format!("used by {}", origin.url("/debian/"))), "{listed}");
    }
}

/// If one reader has read the index again, it is not read again for all readers.
#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_becomes_known_counts_for_each_reader() {
    let world = World::new().await;
    let key = Key::new(world.dir(), "archive");
    Archive::new("one", 10).put(&world.origin, &key);
    let release = world.origin.url(RELEASE);
    let login = || world.client.get(&release).header("authorization", "Bearer x");
    let current = || login().header("cache-control", "max-age=0").send();
    current().await.complete();
    assert!(update(&world, &world.origin).await.1.contains("indexed"), "the control");
    let file = world.dir().join("archive.gpg");
    std::fs::write(&file, key.exported()).unwrap();
    command(&world, &["keys", "add", file.to_str().unwrap()]).await;
    world.proxy.clock.advance(Duration::from_secs(30));
    current().await.complete();
    let said = login().send().await.complete().cache_status().to_owned();
    assert!(said.contains("signed+private"), "{said}");
    let (_, said) = update(&world, &world.origin).await;
    assert!(said.contains("signed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_changes_its_signers_when_its_operator_says_so() {
    let mut keys = Vec::new();
    let world = World::with(|config| {
        let dir = config.data.join("state/keys");
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["old", "new"] {
            let key = Key::new(config.data.parent().unwrap(), name);
            std::fs::write(dir.join(format!("{name}.gpg")), key.exported()).unwrap();
            keys.push(key);
        }
    })
    .await;
    let (old, new) = (&keys[0], &keys[1]);
    let [first, second] = [Archive::new("one", 10), Archive::new("two", 11)];
    first.put(&world.origin, old);
    assert!(update(&world, &world.origin).await.1.contains("signed"));
    second.put(&world.origin, new);
    let (body, said) = update(&world, &world.origin).await;
    assert_eq!(body, first.deb, "a stranger's edition counts: {said}");
    let why = world.told(&["why", &world.origin.url(RELEASE)], "larder keys rebind").await;
    assert!(why.contains(&new.fingerprint()), "{why}");

    let unknown =
        say(&world.ca, &world.proxy.data, &["keys", "rebind", "https://example.org/"]).await;
    assert!(text(&unknown).contains(&world.origin.url("/debian/")), "{}", text(&unknown));
    let root = world.origin.url("/debian");
    let said = command(&world, &["keys", "rebind", &root]).await;
    assert!(said.contains(&old.fingerprint()) && said.contains("/debian/"), "{said}");
    let (body, said) = update(&world, &world.origin).await;
    assert!(body == second.deb && said.contains("signed"), "{said}");
    // Rebound to the new key.
    first.put(&world.origin, old);
    assert_eq!(update(&world, &world.origin).await.0, second.deb);
}

/// The proofs of the listed entries, by path, including those that the archive does not prove.
pub(crate) async fn proofs(world: &World, origin: &Origin) -> Vec<(String, String)> {
    let listed = command(world, &["ls", "--json"]).await;
    let entries = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let named = entries.filter_map(|entry| {
        let path = text(&entry["url"]).strip_prefix(&origin.url(""))?.to_owned();
        Some((path, text(&entry["proof"])))
    });
    named.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_key_alone_proved_is_proven_no_more() {
    let mut world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    let [one, two] = ["one", "two"].map(|name| Key::new(world.dir(), name));
    let secure = world.another("127.0.0.1").await;
    for key in [&one, &two] {
        let file = world.dir().join(format!("{}.gpg", key.fingerprint()));
        std::fs::write(&file, key.exported()).unwrap();
        command(&world, &["keys", "add", file.to_str().unwrap()]).await;
    }
    // The control: an archive that the other key signed.
    let other = world.another("127.0.0.1").await;
    let archive = Archive::new("one", 10);
    for (origin, key) in [(&secure, &one), (&plain, &one), (&other, &two)] {
        archive.put(origin, key);
        let (_, said) = update(&world, origin).await;
        assert!(said.contains("hit") && said.contains("signed"), "{said}");
    }
    let said = command(&world, &["keys", "rm", &one.fingerprint()]).await;
    for origin in [&secure, &plain] {
        let root = origin.url("/debian/");
        assert!(said.contains(&format!("{root} was signed with it: what that proved")), "{said}");
    }
    assert!(!said.contains(&other.url("/")), "{said}");
    // When its list of packages is read again, only the server vouches for it.
    for (round, deb) in [("at once", "pinned"), ("after a restart", "indexed")] {
        let kept = proofs(&world, &secure).await;
        let proven =
            |(path, proof): &(String, String)| proof == if path == DEB { deb } else { "origin" };
        assert!(kept.len() == 3 && kept.iter().all(proven), "{round}: {kept:?}");
        assert_eq!(proofs(&world, &plain).await, [], "{round}");
        let kept = proofs(&world, &other).await;
        assert!(kept.len() == 3 && kept.iter().all(|(_, proof)| proof == "signed"), "{kept:?}");
        for (origin, proof) in [(&secure, "indexed"), (&plain, "")] {
            let (body, said) = update(&world, origin).await;
            assert_eq!(body, archive.deb, "{round}: {said}");
            assert_eq!(said.contains("hit"), !proof.is_empty(), "{round}: {said}");
            assert!(said.contains(proof) && !said.contains("signed"), "{round}: {said}");
        }
        assert!(update(&world, &other).await.1.contains("signed"), "{round}");
        if round == "at once" {
            world.restart(|_| {}).await;
        }
    }
    // A key that is trusted again proves again.
    let file = world.dir().join(format!("{}.gpg", one.fingerprint()));
    command(&world, &["keys", "add", file.to_str().unwrap()]).await;
    for origin in [&secure, &plain] {
        let (_, said) = update(&world, origin).await;
        assert!(said.contains("hit") && said.contains("signed"), "{said}");
    }
}

/// A second signer is still trusted, which suffices.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_key_proved_as_well_stays_proven() {
    let world = World::new().await;
    let [old, new] = ["old", "new"].map(|name| Key::new(world.dir(), name));
    let secret = old.gpg(&["--passphrase", "", "--export-secret-keys"]).stdout;
    let file = world.dir().join("secret");
    std::fs::write(&file, secret).unwrap();
    new.gpg(&["--import", file.to_str().unwrap()]);
    std::fs::write(&file, new.exported()).unwrap();
    command(&world, &["keys", "add", file.to_str().unwrap()]).await;
    let archive = Archive::new("one", 10);
    archive.put(&world.origin, &new);
    std::fs::write(&file, &archive.release).unwrap();
    let by = ["--local-user", &*old.fingerprint(), "--local-user", &*new.fingerprint()];
    let rest = ["--output", "-", "--clear-sign", file.to_str().unwrap()];
    let signed = new.gpg(&[&by[..], &rest].concat()).stdout;
    world.origin.put(RELEASE, Page::new(signed).etag("both"));
    assert!(update(&world, &world.origin).await.1.contains("signed"));
    let said = command(&world, &["keys", "rm", &old.fingerprint()]).await;
    assert!(said.contains("it stays proven"), "{said}");
    let kept = proofs(&world, &world.origin).await;
    assert!(kept.len() == 3 && kept.iter().all(|(_, proof)| proof == "signed"), "{kept:?}");
    assert!(update(&world, &world.origin).await.1.contains("signed"));
    let said = command(&world, &["keys", "rm", &new.fingerprint()]).await;
    assert!(said.contains("counts no more"), "{said}");
    assert!(!update(&world, &world.origin).await.1.contains("signed"));
}
