//! Real apt against repositories that the real tools made (`apt-ftparchive`, `reprepro`), in every layout of archives. apt gets
//! the archive's own bytes; everything that larder keeps is proven; and what was kept is neither fetched again nor needed from an
//! origin that is down. The tampered copies are in `apt_tampered.rs`.
//!
//! Tested elsewhere and not here: two mirrors of one archive, and archives with an unknown signer (`signed.rs`); indexes while
//! they are published (`generations.rs`, `race.rs`); validators, a `Valid-Until` that passes, a `Signed-By` that changes
//! (`editions.rs`); packages that are requested without their indexes (`fresh_lists.rs`); keys that are added, and rebound
//! (`keys.rs`).

use std::path::Path;
use std::time::Duration;

use larder::digest::Algorithm;
use serde_json::Value;

use crate::signed::Key;
use crate::world::apt::{Apt, Came};
use crate::world::archive::hex;
use crate::world::binary::say;
use crate::world::repository::{
    Files, Layout, Repository, Signatures, another_wheel, compressed, escaped, put, read, tool,
};
use crate::world::tools::text;
use crate::world::{Origin, World};

/// A layout, and the sources.list entry for it. `ROOT` is the origin's URL.
struct Variant {
    name: &'static str,
    layout: Layout,
    /// The archive's directory on its origin.
    root: &'static str,
    line: &'static str,
    /// Fields of its Release in addition to the usual ones.
    fields: &'static [(&'static str, &'static str)],
}

const USUAL: Variant = Variant {
    name: "usual",
    layout: Layout::USUAL,
    root: "/debian",
    line: "ROOT/debian gears main contrib",
    fields: &[],
};

const PACKAGES: [&str; 3] = ["gear++", "wheel", "axle"];
const CONTRIBUTED: &str = "spoke";

/// How many files the one source package has.
const SOURCES: usize = 2;

/// A larder that trusts `keys`, and an origin over https or http.
pub(crate) async fn world_and_origin(keys: &[&Key], https: bool) -> (World, Origin) {
    let world = World::with(|config| {
        let to = config.data.join("state/keys");
        std::fs::create_dir_all(&to).unwrap();
        for key in keys {
            std::fs::copy(&key.public, to.join(key.public.file_name().unwrap())).unwrap();
        }
    })
    .await;
    let origin =
        if https { world.another("127.0.0.1").await } else { Origin::plain("127.0.0.1").await };
    (world, origin)
}

/// What `larder ls --json` lists.
pub(crate) async fn listed(world: &World) -> Vec<Value> {
    let output = say(&world.ca, &world.proxy.data, &["ls", "--json"]).await;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether a path is one of a package, or of a part of one.
fn is_artifact(path: &str) -> bool {
    [".deb", ".dsc", ".tar.xz", ".tar.gz"].iter().any(|end| path.ends_with(end))
}

/// Every file that apt downloaded is from the archive, and there are `count` of them.
fn all_genuine(came: &Came, archive: &Files, count: usize) {
    assert!(came.well, "{}", came.said);
    assert_eq!(came.files.len(), count, "{:?}: {}", came.files.keys(), came.said);
    for (name, bytes) in &came.files {
        assert!(archive.values().any(|known| known == bytes), "{name} is not the archive's");
    }
}

/// The successive states of an archive.
type History = [Files];

/// Everything that is kept below `root` is from `archive`, byte for byte, and proven.
async fn all_proven(world: &World, origin: &Origin, root: &str, archive: &History) {
    let listed = listed(world).await;
    let mut artifacts = 0;
    for entry in &listed {
        let url = entry["url"].as_str().unwrap();
        let path = url.strip_prefix(&origin.url(&format!("{root}/"))).unwrap();
        let proof = entry["proof"].as_str().unwrap();
        if entry["status"] != 200 {
            // A stored 404 proves nothing.
            assert!(entry["status"] == 404 && proof == "origin", "{entry}");
            continue;
        }
        let named = archive.iter().filter_map(|state| {
            state.iter().find(|(known, _)| escaped(known) == path).map(|(_, bytes)| bytes)
        });
        let mut digests = named.map(|bytes| hex(Algorithm::Sha256, bytes));
        assert!(digests.any(|digest| entry["sha256"] == digest), "{entry}");
        let named = path.contains("/by-hash/") || path.starts_with("by-hash/");
        assert!(proof == "signed" || named && proof == "self-certified", "{entry}");
        artifacts += usize::from(is_artifact(path) && proof == "signed");
    }
    assert!(artifacts > 0 && artifacts < listed.len(), "{listed:?}");
}

/// One archive, with all its clients: the first, a later one, and one that comes when the origin is down.
async fn check(variant: &Variant, key: &Key, https: bool) {
    row(variant.name, https, async {
        let mut repository = Repository::new(variant.layout);
        for (field, value) in variant.fields {
            let value = value.replace("FINGERPRINT", &fingerprint(key));
            repository.set(field, &value);
        }
        repository.sign(key);
        let (world, origin) = world_and_origin(&[key], https).await;
        repository.put(&origin, variant.root);
        let packages = [&PACKAGES[..], &[CONTRIBUTED]].concat();
        let count = packages.len() + SOURCES;
        for turn in ["first", "later", "dead"] {
            let asked = origin.paths().len();
            let apt = Apt::through(&world, &origin, key, variant.line).await;
            let apt = apt.configured(ENGLISH);
            let came = apt.fetch(&world, &packages, true).await;
            all_genuine(&came, &repository.files, count);
            let translated = !variant.layout.is_flat();
            assert_eq!(
                apt.lists_hold("Description-en: a wheel"),
                translated,
                "{turn}: {}",
                came.said
            );
            let again = origin.paths().split_off(asked);
            let again: Vec<&String> = again.iter().filter(|path| is_artifact(path)).collect();
            assert_eq!(again.len(), if turn == "first" { count } else { 0 }, "{turn}: {again:?}");
            all_proven(&world, &origin, variant.root, std::slice::from_ref(&repository.files))
                .await;
            if turn == "later" {
                origin.stop();
                origin.cut();
                world.proxy.clock.advance(Duration::from_mins(1));
            }
        }
        let direct = Apt::without(&world, &origin, key, variant.line);
        let dead = direct.fetch(&world, &packages, true).await;
        assert!(!dead.well && dead.files.is_empty(), "the origin is not dead: {}", dead.said);
    })
    .await;
}

/// Also fetches lists of descriptions, which the home's own configuration excludes.
const ENGLISH: &str = "Acquire::Languages \"en\";";

/// Prints the row of a table in which an assertion failed.
pub(crate) async fn row(name: &str, https: bool, body: impl Future<Output = ()>) {
    use futures_util::FutureExt as _;
    let caught = std::panic::AssertUnwindSafe(body).catch_unwind().await;
    if let Err(panic) = caught {
        crate::world::tools::say(&format!("in the row {name:?}, https {https}"));
        std::panic::resume_unwind(panic);
    }
}

/// A key's fingerprint.
fn fingerprint(key: &Key) -> String {
    let listed = key.gpg(&["--with-colons", "--fingerprint"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
    line.split(':').nth(9).unwrap().to_owned()
}

/// Over https and over http. If `alike`, the variants alternate between the two.
async fn check_all(alike: bool, variants: &[Variant]) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    for (place, variant) in variants.iter().enumerate() {
        for https in [true, false] {
            if !alike || (place % 2 == 0) == https {
                check(variant, &key, https).await;
            }
        }
    }
}

/// `USUAL` with these compressions of its indexes, with or without by-hash.
const fn compression(
    name: &'static str,
    endings: &'static [&'static str],
    by_hash: bool,
) -> Variant {
    Variant { name, layout: Layout { endings, by_hash, ..Layout::USUAL }, ..USUAL }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_compression_are_proven_and_outlive_their_origin() {
    check_all(
        true,
        &[
            compression("xz by digest", &["", ".gz", ".xz"], true),
            compression("gz", &[".gz"], false),
            compression("xz", &[".xz"], false),
            compression("bz2", &[".bz2"], false),
            compression("zst", &[".zst"], false),
            compression("zst by digest", &[".zst"], true),
            compression("lzma", &[".lzma"], false),
            compression("lz4", &[".lz4"], false),
            compression("none", &[""], false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_signature_are_proven_and_outlive_their_origin() {
    let signed = |name, signatures, by_hash| Variant {
        name,
        layout: Layout { by_hash, signatures, ..Layout::USUAL },
        ..USUAL
    };
    check_all(
        false,
        &[
            signed("a signature beside", Signatures::Beside, false),
            signed("a signature beside, by digest", Signatures::Beside, true),
            signed("both signatures", Signatures::Both, true),
            Variant {
                name: "SHA-512 alone, by digest",
                layout: Layout { digests: "SHA512", ..Layout::USUAL },
                ..USUAL
            },
            Variant {
                name: "who signs the next",
                fields: &[
                    ("Signed-By", "FINGERPRINT"),
                    ("Valid-Until", "Fri, 20 Nov 2116 12:00:00 UTC"),
                ],
                ..USUAL
            },
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_shape_are_proven_and_outlive_their_origin() {
    let flat = |name, head, by_hash, line, signatures| Variant {
        name,
        layout: Layout { head, by_hash, signatures, ..Layout::USUAL },
        root: "/flat",
        line,
        fields: &[],
    };
    check_all(
        false,
        &[
            flat("flat", "", false, "ROOT/flat ./", Signatures::Inside),
            flat("flat by digest", "", true, "ROOT/flat ./", Signatures::Inside),
            flat("a flat directory", "tools/x", false, "ROOT/flat tools/x/", Signatures::Inside),
            flat("flat, a signature beside", "tools", true, "ROOT/flat tools/", Signatures::Beside),
            Variant {
                name: "a suite of two parts",
                layout: Layout { head: "dists/stable/updates", ..Layout::USUAL },
                line: "ROOT/debian stable/updates main contrib",
                ..USUAL
            },
        ],
    )
    .await;
}

/// Under their digests, the two lists of a flat archive have URLs that do not tell them apart. If one list changes, the other
/// stays what it was, and a client that reads both again must get the right one under each digest.
#[tokio::test(flavor = "multi_thread")]
async fn two_lists_under_their_digests_in_one_directory_stay_two() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let layout = Layout { head: "", endings: &["", ".gz"], ..Layout::USUAL };
    let mut states = vec![Repository::new(layout); 3];
    for (state, list) in states.iter_mut().skip(1).zip(["Sources", "Packages"]) {
        let more = "\nPackage: more\nVersion: 1\nArchitecture: all\nFormat: 1.0\nBinary: more\n";
        let longer = [&state.files[list], more.as_bytes()].concat();
        state.index(list, &longer);
        state.describe();
    }
    for (state, hour) in states.iter_mut().zip(12..) {
        state.set("Date", &format!("Fri, 20 Nov 2020 {hour}:00:00 UTC"));
        state.sign(&key);
    }
    for https in [true, false] {
        let (mut world, origin) = world_and_origin(&[&key], https).await;
        let (mut history, mut minutes) = (Vec::new(), 0);
        for state in &states {
            state.put(&origin, "/flat");
            history.push(state.files.clone());
            // The second time without the claims, and the third without the ledger.
            for forgotten in [None, Some("claims"), Some("ledger")] {
                if let Some(forgotten) = forgotten {
                    let forget = |data: &Path| {
                        std::fs::remove_dir_all(data.join("v1").join(forgotten)).unwrap();
                    };
                    world.restart(forget).await;
                }
                // The clock of the restarted larder is behind the moved clock of the one before.
                minutes += 1;
                world.proxy.clock.advance(Duration::from_mins(minutes));
                let asked = origin.paths().len();
                let apt = Apt::through(&world, &origin, &key, "ROOT/flat ./").await;
                let came = apt.fetch(&world, &PACKAGES, true).await;
                all_genuine(&came, &state.files, PACKAGES.len() + SOURCES);
                all_proven(&world, &origin, "/flat", &history).await;
                let again = origin.paths().split_off(asked);
                // Both forms of each list that is new, and no package twice.
                let (packages, lists) = match (history.len(), forgotten) {
                    (1, None) => (PACKAGES.len() + SOURCES, 4),
                    (_, None) => (0, 2),
                    (_, Some(_)) => (0, 0),
                };
                let fetched = |path: &&String| is_artifact(path);
                assert_eq!(again.iter().filter(fetched).count(), packages, "{again:?}");
                let fetched = |path: &&String| path.contains("/by-hash/");
                assert_eq!(again.iter().filter(fetched).count(), lists, "{again:?}");
            }
        }
    }
}

/// An archive that `reprepro` maintains, in `dir`.
struct Reprepro<'a> {
    dir: tempfile::TempDir,
    key: &'a Key,
}

impl<'a> Reprepro<'a> {
    fn new(key: &'a Key) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("conf")).unwrap();
        let conf = format!(
            "Suite: stable\nCodename: gears\nArchitectures: amd64 source\nComponents: main\nDescription: x\nValidFor: 2d\n\
             SignWith: {}\nDebIndices: Packages Release . .gz\nDscIndices: Sources Release .gz\n",
            fingerprint(key)
        );
        std::fs::write(dir.path().join("conf/distributions"), conf).unwrap();
        Self { dir, key }
    }

    /// Adds a package; returns the files that are now published.
    fn add(&self, kind: &str, files: &Files, start: &str) -> Files {
        let incoming = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            std::fs::write(incoming.path().join(path.rsplit('/').next().unwrap()), bytes).unwrap();
        }
        let name = read(incoming.path()).into_keys().find(|name| {
            name.starts_with(start) && (kind == "includedeb") != name.ends_with(".dsc")
        });
        let path = incoming.path().join(name.unwrap());
        let (home, path) = (self.key.home.to_str().unwrap(), path.to_str().unwrap());
        let arguments = ["--gnupghome", home, "-b", ".", kind, "gears", path];
        tool(self.dir.path(), "reprepro", &arguments);
        let public = |path: &String| path.starts_with("dists/") || path.starts_with("pool/");
        read(self.dir.path()).into_iter().filter(|(path, _)| public(path)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_reprepro_is_proven_as_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let packages = Repository::new(Layout::USUAL).files;
    for https in [true, false] {
        let made = Reprepro::new(&key);
        let mut history = vec![made.add("includedsc", &packages, "sprocket")];
        let (world, origin) = world_and_origin(&[&key], https).await;
        let mut wanted = Vec::new();
        for added in PACKAGES {
            let files = made.add("includedeb", &packages, added);
            put(&files, &origin, "/debian");
            wanted.push(added);
            world.proxy.clock.advance(Duration::from_mins(1));
            let apt = Apt::through(&world, &origin, &key, "ROOT/debian gears main").await;
            all_genuine(&apt.fetch(&world, &wanted, true).await, &files, wanted.len() + 2);
            history.push(files);
            all_proven(&world, &origin, "/debian", &history).await;
        }
    }
}

/// The difference between two lists as an `ed` script, and the list of such differences. (`apt-ftparchive` makes neither, and
/// those of `reprepro` have only SHA-1, which apt does not accept.)
fn patch(repository: &mut Repository, path: &str, old: &[u8], new: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("old"), old).unwrap();
    std::fs::write(dir.path().join("new"), new).unwrap();
    let script = tool(dir.path(), "sh", &["-c", "diff --ed old new || true"]);
    let packed = compressed(".gz", &script);
    let name = "T-1-F-0";
    let line = |bytes: &[u8]| format!("{} {}", hex(Algorithm::Sha256, bytes), bytes.len());
    let index = format!(
        "SHA256-Current: {}\nSHA256-History:\n {} {name}\nSHA256-Patches:\n {} {name}\nSHA256-Download:\n {} {name}.gz\n",
        line(new),
        line(old),
        line(&script),
        line(&packed)
    );
    let directory = repository.layout.at(&format!("{path}.diff"));
    repository.files.insert(format!("{directory}/Index"), index.into_bytes());
    repository.files.insert(format!("{directory}/{name}.gz"), packed);
}

/// A second update fetches only the difference, and the signature covers that too.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_grows_by_patches_that_are_proven() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let path = "main/binary-amd64/Packages";
    let mut old = Repository::new(Layout::USUAL);
    let list = old.files[&old.layout.at(path)].clone();
    let mut new = old.clone();
    let longer = [&list[..], b"Package: more\nVersion: 1\nArchitecture: all\nFilename: pool/main/more_1_all.deb\nSize: 1\n\n"].concat();
    new.index(path, &longer);
    patch(&mut old, path, b"", &list);
    patch(&mut new, path, &list, &longer);
    for (repository, date) in [(&mut old, "12:00:00"), (&mut new, "13:00:00")] {
        repository.describe();
        repository.set("Date", &format!("Fri, 20 Nov 2020 {date} UTC"));
        repository.sign(&key);
    }
    for https in [true, false] {
        let (world, origin) = world_and_origin(&[&key], https).await;
        old.put(&origin, "/debian");
        let mut clients = Vec::new();
        for _ in 0..2 {
            // For so short a list, a patch is longer than the list.
            let apt = Apt::through(&world, &origin, &key, USUAL.line).await;
            let apt = apt.configured("Acquire::PDiffs::SizeLimit \"100000\";");
            all_genuine(&apt.fetch(&world, &["wheel"], false).await, &old.files, 1);
            clients.push(apt);
        }
        new.put(&origin, "/debian");
        world.proxy.clock.advance(Duration::from_mins(1));
        let before = origin.paths().len();
        for apt in &clients {
            let came = apt.fetch(&world, &["wheel"], false).await;
            all_genuine(&came, &new.files, 1);
            assert!(apt.lists_hold("Package: more"), "{}", came.said);
        }
        let asked = origin.paths().split_off(before);
        let patches = asked.iter().filter(|path| path.ends_with("T-1-F-0.gz")).count();
        assert_eq!(patches, 1, "{asked:?}");
        let entries = listed(&world).await;
        let is_it = |one: &&Value| one["url"].as_str().unwrap().ends_with("F-0.gz");
        let kept = entries.iter().find(is_it);
        assert_eq!(kept.unwrap()["proof"], "signed");
    }
}

/// An archive that published other bytes under an old name: the newest index decides, and older claims are no reason to refuse
/// what the archive says now.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_uploaded_again_means_what_the_newest_index_says() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let newer = Layout { endings: &[".zst"], by_hash: false, ..Layout::USUAL };
    for (layout, name) in [(Layout::USUAL, "usual"), (newer, "zst")] {
        for (https, was_fetched) in [(true, true), (true, false), (false, true), (false, false)] {
            let body = Box::pin(uploaded_again(layout, &key, https, was_fetched));
            row(name, https, body).await;
        }
    }
}

async fn uploaded_again(layout: Layout, key: &Key, https: bool, was_fetched: bool) {
    let mut old = Repository::new(layout);
    let wheel = old.path("wheel_");
    let again = another_wheel();
    assert_ne!(old.files[&wheel], again);
    let mut packages = Files::new();
    packages.insert("main/wheel_1.0_amd64.deb".into(), again.clone());
    let mut new = Repository::of(layout, &packages);
    old.set("Date", "Fri, 20 Nov 2020 12:00:00 UTC");
    new.set("Date", "Fri, 20 Nov 2020 13:00:00 UTC");
    old.sign(key);
    new.sign(key);
    let (world, origin) = world_and_origin(&[key], https).await;
    old.put(&origin, "/debian");
    let wanted: &[&str] = if was_fetched { &["wheel"] } else { &["axle"] };
    let apt = Apt::through(&world, &origin, key, USUAL.line).await;
    all_genuine(&apt.fetch(&world, wanted, false).await, &old.files, 1);
    new.put(&origin, "/debian");
    world.proxy.clock.advance(Duration::from_mins(1));
    if !was_fetched {
        // larder has not seen the new index yet: it asks before it refuses.
        let got = world.fetch(&origin.url(&format!("/debian/{wheel}"))).await;
        assert_eq!(got.body, again, "{}", got.cache_status());
    }
    let apt = Apt::through(&world, &origin, key, USUAL.line).await;
    let came = apt.fetch(&world, &["wheel"], false).await;
    all_genuine(&came, &new.files, 1);
    assert!(came.files.values().all(|bytes| *bytes == again));
    let entries = listed(&world).await;
    let url = origin.url(&format!("/debian/{wheel}"));
    let kept = entries.iter().filter(|entry| entry["url"] == url);
    let newest = kept.max_by_key(|entry| entry["received_at"].as_i64()).unwrap();
    assert_eq!(newest["sha256"], hex(Algorithm::Sha256, &again), "{entries:?}");
    assert_eq!(newest["proof"], "signed");
}
