//! apk repositories: files that a signature names are kept for their content, over https and over plain HTTP; a body that is not
//! what its record says never completes; and larder reports the reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::Method;

use crate::world::apk::{Key, Package, cut_tar, gzip, index, member, signed_index, tar};
use crate::world::binary::{Daemon, say, told};
use crate::world::larder::own;
use crate::world::tools::{forget_proxies, run, text};
use crate::world::{Ca, Client, Got, Origin, Page, noise};

/// Making keys takes time, so they are shared. Each test has larders of its own that trust some of them.
static KEYS: LazyLock<[Key; 3]> = LazyLock::new(|| ["builder", "other", "stranger"].map(Key::new));

const MODIFIED: &str = "Fri, 20 Nov 2026 12:00:00 GMT";

/// Its larder trusts the first two keys.
struct Bench {
    ca: Ca,
    data: PathBuf,
    larder: Daemon,
    client: Client,
    tls: Origin,
    plain: Origin,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let keys = data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        for key in KEYS.iter().take(2) {
            std::fs::write(keys.join(&key.name), key.pem()).unwrap();
        }
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let larder = Daemon::start(&ca, &data, &[]).await;
        let client = larder.client().await;
        let tls = Origin::tls(&ca, "127.0.0.1").await;
        let plain = Origin::plain("127.0.0.1").await;
        Self { ca, data, larder, client, tls, plain, dir }
    }

    fn origins(&self) -> [&Origin; 2] {
        [&self.tls, &self.plain]
    }

    /// A request as libfetch sends it.
    async fn get(&self, url: &str) -> Got {
        self.client
            .get(url)
            .header("user-agent", "libfetch/2.0")
            .header("accept", "*/*")
            .send()
            .await
    }

    /// The same, without a stored answer: a publication through larder makes it revalidate.
    async fn refresh(&self, url: &str) -> Got {
        self.client.ask(Method::PUT, url).body("published").send().await.complete();
        let ask = self.client.get(url).header("user-agent", "libfetch/2.0");
        ask.header("cache-control", "no-cache").send().await
    }

    /// Checks what `larder why` says of a URL; the log must contain it too.
    async fn why(&self, url: &str, reason: &str) {
        told(&self.ca, &self.data, &["why", url], reason).await;
        self.larder.logged(reason).await;
    }
}

/// The number of indexes that were put anywhere.
static PUT: AtomicU32 = AtomicU32::new(0);

/// Puts an index and packages under `directory`.
fn put(origin: &Origin, directory: &str, index: &[u8], packages: &[(&Package, Vec<u8>)]) -> String {
    for (package, file) in packages {
        let path = format!("{directory}/{}", package.file_name());
        origin.put(&path, Page::new(file.clone()).header("last-modified", MODIFIED));
    }
    // Each index is a second newer than the one before.
    let second = PUT.fetch_add(1, Ordering::Relaxed);
    let modified = format!("Fri, 20 Nov 2026 12:{:02}:{:02} GMT", second / 60, second % 60);
    let page = Page::new(index.to_vec()).header("last-modified", &modified);
    origin.put(&format!("{directory}/APKINDEX.tar.gz"), page)
}

fn gear() -> Package {
    Package::new("gear", &noise(7, 3000), &KEYS[0])
}

fn detail(got: &Got) -> String {
    format!("{} {}", got.status, got.cache_status())
}

/// `curl` with the requests of apk: no further header field, and for plain HTTP the absolute form.
async fn curl(bench: &Bench, arguments: &[&str]) -> String {
    let trusted = bench.dir.path().join("larder.pem");
    std::fs::write(&trusted, own(bench.larder.address, "/ca.crt").await).unwrap();
    let mut command = Command::new("curl");
    forget_proxies(&mut command);
    command
        .args(["--silent", "--show-error", "--include", "--http1.1", "--suppress-connect-headers"])
        .args(["--user-agent", "libfetch/2.0", "--proxy"])
        .arg(format!("http://{}", bench.larder.address))
        .arg("--cacert")
        .arg(&trusted)
        .args(arguments);
    text(&run(command).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_repository_is_proven_to_its_content_over_http_and_https() {
    let bench = Bench::new().await;
    let directory = "/v3.20/main/x86_64";
    let (old, new) = (gear(), Package::new("gear+box", &noise(9, 90_000), &KEYS[0]));
    let records = old.record("Q1", 1) + &new.record("Q2", 2);
    for (origin, kind) in bench.origins().into_iter().zip(["RSA", "RSA256"]) {
        let files = [(&old, old.file()), (&new, new.file())];
        let index = put(origin, directory, &signed_index(&records, kind, &KEYS[0]), &files);
        let url = |package: &Package| origin.url(&format!("{directory}/{}", package.file_name()));
        let got = curl(&bench, &[&index]).await;
        assert!(got.contains("200") && got.contains("fwd=miss"), "{got}");
        let modified = bench.get(&index).await.text("last-modified").to_owned();
        let not_since = format!("If-Modified-Since: {modified}");
        let got = curl(&bench, &["--header", &not_since, &index]).await;
        assert!(got.starts_with("HTTP/1.1 304") && got.contains("signed"), "{got}");
        let weak = if kind == "RSA" { "signed+weak-hash" } else { "detail=\"signed\"" };
        assert!(got.contains(weak), "{got}");
        for (package, proof) in [(&old, "signed+content+weak-hash"), (&new, "\"signed+content\"")] {
            let url = url(package);
            assert!(curl(&bench, &[&url]).await.contains("200"));
            let file = bench.dir.path().join("got");
            let to = file.to_str().unwrap();
            // A resume from where a transfer broke off.
            let got = curl(&bench, &["--range", "1000-", "--output", to, &url]).await;
            assert!(got.is_empty(), "{got}");
            let got = std::fs::read(&file).unwrap();
            assert!(got.starts_with(b"HTTP/1.1 206") && got.ends_with(&package.file()[1000..]));
            let hit = bench.get(&url).await.complete();
            assert!(hit.is_hit() && hit.cache_status().contains(proof), "{}", detail(&hit));
            assert_eq!(hit.body, package.file());
            let path = format!("{directory}/{}", package.file_name());
            assert_eq!(origin.gets(&path), 1);
        }
        // The origin fails.
        origin.mood(crate::world::Mood::Failing(503));
        for url in [url(&old), url(&new), index] {
            assert!(bench.get(&url).await.complete().is_hit(), "{url}");
        }
    }
}

/// A package that is not what its record says, and the reason that larder must give.
struct Twin {
    name: &'static str,
    record: String,
    file: Vec<u8>,
    reason: &'static str,
}

fn bent(part: &[u8]) -> Vec<u8> {
    let mut part = part.to_vec();
    let last = part.len() - 6;
    part[last] ^= 1;
    part
}

fn twins() -> Vec<Twin> {
    let good = gear();
    let other = Package::new("gear", b"other", &KEYS[0]);
    let large = Package::new("gear", &noise(3, 600_000), &KEYS[0]);
    let size = format!("S:{}", good.file().len());
    let record = good.record("Q1", 1);
    let others = other.record("Q1", 1).replace(&format!("S:{}", other.file().len()), &size);
    let sized = record.replace(&size, &format!("{size}0"));
    let with = |name, package: Package, reason| {
        let (record, file) = (record.clone(), package.file());
        Twin { name, record, file, reason }
    };
    let front = Package { signature: bent(&good.signature), ..good.clone() };
    let control = Package { control: bent(&good.control), ..good.clone() };
    let data = Package { data: bent(&good.data), ..good.clone() };
    let exchanged = Package { data: other.data.clone(), ..good.clone() };
    let last = Package { data: bent(&large.data), ..large.clone() };
    let longer = [good.file(), gzip(b"more")].concat();
    let shorter = good.file()[..good.file().len() - 1].to_vec();
    vec![
        with("m0", front, "its own checksum"),
        with("m1", control, "its own checksum"),
        with("m2", data, "its own checksum"),
        with("datahash", exchanged, "its datahash"),
        with("control", other, "promises apk2-sha1:"),
        Twin { name: "large", record: large.record("Q2", 1), ..with("", last, "its own checksum") },
        Twin { file: longer, ..with("fourth", good.clone(), "behind its data") },
        Twin { file: shorter, ..with("cut", good.clone(), "within a gzip member") },
        Twin { record: others, ..with("c", good.clone(), "promises apk2-sha1:") },
        Twin { record: sized, ..with("s", good, "bytes; what came is") },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_is_not_as_its_index_says_completes_nowhere() {
    let bench = Bench::new().await;
    let good = gear();
    for Twin { name, record, file, reason } in twins() {
        let directory = format!("/{name}/x86_64");
        for origin in bench.origins() {
            let index = signed_index(&record, "RSA256", &KEYS[0]);
            let index = put(origin, &directory, &index, &[(&good, file.clone())]);
            bench.get(&index).await.complete();
            let url = origin.url(&format!("{directory}/{}", good.file_name()));
            let got = bench.get(&url).await;
            assert!(!got.is_complete() && got.body.len() < file.len(), "{name}: {}", detail(&got));
            // The client resumes by itself, as apk does.
            let rest = format!("{}-", got.body.len());
            for range in [&rest, "0-99"] {
                let got = bench.client.get(&url).range(range).send().await;
                assert!(!got.is_complete(), "{name}: {}", detail(&got));
            }
            bench.why(&url, reason).await;
        }
        // The control: without an index the same bytes are given.
        let path = format!("/{name}/free/{}", good.file_name());
        let url = bench.tls.put(&path, Page::new(file.clone()));
        assert_eq!(bench.get(&url).await.complete().body, file, "{name}");
    }
}

/// A request that is passed is not stored, and the content of its body is checked all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_is_held_to_the_content_too() {
    let bench = Bench::new().await;
    let good = Package::new("gear", &noise(3, 600_000), &KEYS[0]);
    let other = Package::new("gear", &noise(4, 600_000), &KEYS[0]);
    let exchanged = Package { data: other.data, ..good.clone() };
    for (name, file, right) in [("good", good.file(), true), ("evil", exchanged.file(), false)] {
        let directory = format!("/{name}/x86_64");
        for origin in bench.origins() {
            let index = signed_index(&good.record("Q1", 1), "RSA256", &KEYS[0]);
            let index = put(origin, &directory, &index, &[(&good, file.clone())]);
            bench.get(&index).await.complete();
            let url = origin.url(&format!("{directory}/{}", good.file_name()));
            let got = bench.client.get(&url).header("x-build", "7").send().await;
            assert!(got.cache_status().contains("bypass"), "{}", detail(&got));
            assert_eq!(got.is_complete(), right, "{name}: {}", detail(&got));
            assert_eq!(got.body.len() == file.len(), right, "{name}");
            if !right {
                bench.why(&url, "its datahash").await;
            }
        }
    }
}

/// The signature at the start of a package is not covered by the promise: the same content with another builder's signature is
/// what was promised.
#[tokio::test(flavor = "multi_thread")]
async fn the_signature_in_front_of_a_package_is_no_part_of_the_promise() {
    let bench = Bench::new().await;
    let good = gear();
    let resigned = Package { signature: KEYS[1].member("RSA", &good.control), ..good };
    for origin in bench.origins() {
        let index = signed_index(&resigned.record("Q1", 1), "RSA256", &KEYS[0]);
        let index = put(origin, "/x86_64", &index, &[(&resigned, resigned.file())]);
        bench.get(&index).await.complete();
        let url = origin.url(&format!("/x86_64/{}", resigned.file_name()));
        bench.get(&url).await.complete();
        let got = bench.get(&url).await.complete();
        assert!(got.is_hit() && got.cache_status().contains("signed+content"), "{}", detail(&got));
        assert_eq!(got.body, resigned.file());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_not_sound_reaches_its_client_and_claims_nothing() {
    let bench = Bench::new().await;
    // Its signer is unknown to larder, so that only indexes vouch for it.
    let good = Package { signature: KEYS[2].member("RSA", b"x"), ..gear() };
    let record = good.record("Q2", 1);
    let rest = index(&record);
    let whole = signed_index(&record, "RSA256", &KEYS[0]);
    let signature = KEYS[0].sign("RSA256", &rest);
    let named = |name: &str| [member(name, &signature), rest.clone()].concat();
    let last = whole.len() - 6;
    let mut bent = whole.clone();
    bent[last] ^= 1;
    let other = Package::new("gear", b"other", &KEYS[0]).record("Q2", 1);
    let twice = signed_index(&(record.clone() + &other), "RSA256", &KEYS[0]);
    let bomb = signed_index(&format!("{record}p:{}\n\n", "x".repeat(65 << 20)), "RSA256", &KEYS[0]);
    let page = gzip(&tar(&[("index.html", b"<html>")]));
    for (name, file, reason, tls) in [
        ("key", signed_index(&record, "RSA256", &KEYS[2]), "stranger.rsa.pub", "indexed"),
        ("none", rest.clone(), "there is no signature", "indexed"),
        ("dsa", named(&format!(".SIGN.DSA.{}", KEYS[0].name)), "DSA", "indexed"),
        ("bent", bent, "builder.rsa.pub did not sign this", "pinned"),
        ("path", named(".SIGN.RSA256.../../keys/builder.rsa.pub"), "by a path", "pinned"),
        ("cut", whole[..last].to_vec(), "did not sign this", "pinned"),
        ("twice", twice, "two different records of gear-1.0-r0.apk", "pinned"),
        ("bomb", bomb, "expanded bytes", "pinned"),
        ("page", page, "no APKINDEX", "pinned"),
    ] {
        let directory = format!("/{name}/x86_64");
        for (origin, proof) in [(&bench.tls, tls), (&bench.plain, "")] {
            // Over plain HTTP an HTML page in place of an index is just a page: nothing in it claims a signature.
            let index = put(origin, &directory, &file, &[(&good, good.file())]);
            assert!(bench.get(&index).await.complete().body == file, "{name}");
            let url = origin.url(&format!("{directory}/{}", good.file_name()));
            bench.get(&url).await;
            let got = bench.get(&url).await;
            let said = detail(&got);
            assert_eq!(got.is_hit(), !proof.is_empty(), "{name}: {said}");
            assert!(said.contains(proof) && !said.contains("signed"), "{name}: {said}");
            if !(name == "page" && proof.is_empty()) {
                bench.why(&index, reason).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_replays_do_not_replace_what_a_repository_said() {
    let bench = Bench::new().await;
    let (good, evil) = (gear(), Package::new("gear", b"evil", &KEYS[1]));
    let directory = "/main/x86_64";
    for origin in bench.origins() {
        let index = signed_index(&good.record("Q1", 5), "RSA256", &KEYS[0]);
        let index = put(origin, directory, &index, &[(&good, good.file())]);
        bench.get(&index).await.complete();
        let url = origin.url(&format!("{directory}/{}", good.file_name()));
        bench.get(&url).await.complete();
        for (hostile, reason) in [
            // The signer of another repository, whose key larder trusts for that one.
            (
                signed_index(&evil.record("Q1", 6), "RSA256", &KEYS[1]),
                "none of whom signed for this archive before",
            ),
            (
                signed_index(&evil.record("Q1", 6), "RSA256", &KEYS[2]),
                "this archive was signed before, and now",
            ),
            (crate::world::apk::index(&evil.record("Q1", 6)), "there is no signature"),
        ] {
            put(origin, directory, &hostile, &[(&good, evil.file())]);
            assert!(bench.refresh(&index).await.complete().body == hostile);
            let got = bench.get(&url).await.complete();
            assert!(got.is_hit() && got.body == good.file(), "{}", detail(&got));
            assert!(got.cache_status().contains("signed+content"));
            bench.why(&index, reason).await;
        }
        // The control: signed by both keys, as when a key is changed; from then on by the new key.
        let next = Package::new("gear", b"next", &KEYS[1]);
        let rest = crate::world::apk::index(&next.record("Q1", 7));
        let names = [0, 1].map(|key| format!(".SIGN.RSA256.{}", KEYS[key].name));
        let signatures = [0, 1].map(|key| KEYS[key].sign("RSA256", &rest));
        let both = gzip(&cut_tar(&[(&names[0], &signatures[0]), (&names[1], &signatures[1])]));
        put(origin, directory, &[both, rest].concat(), &[(&good, next.file())]);
        bench.refresh(&index).await.complete();
        assert_eq!(bench.get(&url).await.complete().body, next.file());
        let last = Package::new("gear", b"last", &KEYS[1]);
        let newest = signed_index(&last.record("Q1", 8), "RSA256", &KEYS[1]);
        put(origin, directory, &newest, &[(&good, last.file())]);
        bench.refresh(&index).await.complete();
        let got = bench.get(&url).await.complete();
        assert!(got.body == last.file() && !got.is_hit());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_or_smaller_index_is_served_and_said_aloud() {
    let bench = Bench::new().await;
    let packages: Vec<Package> =
        (0..3).map(|number| Package::new(&format!("gear{number}"), b"x", &KEYS[0])).collect();
    let records = |many: usize, built: u64| -> String {
        packages.iter().take(many).map(|package| package.record("Q1", built)).collect()
    };
    for (number, origin) in bench.origins().into_iter().enumerate() {
        for (name, then, reason) in [
            ("older", (3, 50), "its newest package is of"),
            ("smaller", (1, 100), "it lists 1 packages"),
            ("newer", (3, 200), ""),
        ] {
            let directory = format!("/{number}-{name}/x86_64");
            let index = signed_index(&records(3, 100), "RSA256", &KEYS[0]);
            let files: Vec<(&Package, Vec<u8>)> =
                packages.iter().map(|package| (package, package.file())).collect();
            let url = put(origin, &directory, &index, &files);
            bench.get(&url).await.complete();
            let later = signed_index(&records(then.0, then.1), "RSA256", &KEYS[0]);
            put(origin, &directory, &later, &files);
            assert!(bench.refresh(&url).await.complete().body == later);
            let older = "looks like an older edition";
            if reason.is_empty() {
                let told = text(&say(&bench.ca, &bench.data, &["why", &url]).await);
                assert!(!told.contains(older), "{told}");
            } else {
                bench.why(&url, older).await;
                bench.why(&url, reason).await;
            }
            // It counts all the same, because nothing in it says that it is older.
            let file = origin.url(&format!("{directory}/{}", packages[0].file_name()));
            bench.get(&file).await.complete();
            let got = bench.get(&file).await.complete();
            assert!(got.is_hit() && got.cache_status().contains("signed+content"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_no_index_knows_is_proven_by_its_own_signature() {
    let mut bench = Bench::new().await;
    let good = gear();
    let strange = Package { signature: KEYS[2].member("RSA", &good.control), ..good.clone() };
    let forged = Package { signature: KEYS[0].member("RSA", b"another"), ..good.clone() };
    let moved = Package { name: "gear2".to_owned(), ..good.clone() };
    for (name, package, proof, reason) in [
        ("good", &good, "\"signed+weak-hash\"", ""),
        ("strange", &strange, "pinned", "stranger.rsa.pub"),
        ("forged", &forged, "pinned", "did not sign this"),
        ("moved", &moved, "pinned", "gear-1.0-r0.apk of x86_64"),
    ] {
        for origin in bench.origins() {
            let path = format!("/{name}/x86_64/{}", package.file_name());
            let url = origin.put(&path, Page::new(package.file()));
            for _ in 0..2 {
                assert!(bench.get(&url).await.complete().body == package.file(), "{name}");
            }
            let got = bench.get(&url).await;
            let kept = origin.url("").starts_with("https") || proof.contains("signed");
            assert_eq!(got.is_hit(), kept, "{name}: {}", detail(&got));
            assert!(!kept || got.cache_status().contains(proof), "{name}: {}", detail(&got));
            if !reason.is_empty() {
                bench.why(&url, reason).await;
            }
        }
    }
    // An index that is read later judges what is stored. Without the index, only the file's own signature is left.
    let url = bench.tls.url("/good/x86_64/gear-1.0-r0.apk");
    let index = signed_index(&good.record("Q2", 1), "RSA256", &KEYS[0]);
    let index = bench.tls.put("/good/x86_64/APKINDEX.tar.gz", Page::new(index));
    bench.refresh(&index).await.complete();
    let got = bench.get(&url).await.complete();
    assert!(got.is_hit() && got.cache_status().contains("\"signed+content\""), "{}", detail(&got));
    // What larder learnt survives a restart.
    bench.larder.terminate().await;
    bench.larder = Daemon::start(&bench.ca, &bench.data, &[]).await;
    bench.client = bench.larder.client().await;
    let url = bench.plain.url("/good/x86_64/gear-1.0-r0.apk");
    let got = bench.get(&url).await.complete();
    assert!(got.is_hit() && got.cache_status().contains("signed"), "{}", detail(&got));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_content_under_two_signatures_is_two_bodies() {
    let bench = Bench::new().await;
    let good = gear();
    let resigned = Package { signature: KEYS[1].member("RSA", &good.control), ..good.clone() };
    let (one, two) = ("/one/x86_64", "/two/x86_64");
    for (directory, package) in [(one, &good), (two, &resigned)] {
        let index = signed_index(&package.record("Q2", 1), "RSA256", &KEYS[0]);
        let index = put(&bench.tls, directory, &index, &[(package, package.file())]);
        bench.get(&index).await.complete();
        for hit in [false, true] {
            let url = bench.tls.url(&format!("{directory}/{}", package.file_name()));
            let got = bench.get(&url).await.complete();
            assert!(got.is_hit() == hit && got.body == package.file(), "{directory}");
        }
    }
    assert_ne!(good.file(), resigned.file());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_format_of_apk_tools_3_is_revalidated_and_pinned() {
    let bench = Bench::new().await;
    let directory = "/releases/x86_64";
    let index = Page::new("ADBd an index").header("last-modified", MODIFIED);
    let path = format!("{directory}/gear-1.0-r0.apk");
    let index = bench.tls.put(&format!("{directory}/Packages.adb"), index);
    let package = bench.tls.put(&path, Page::new("ADB. a package"));
    for (url, proof) in [(&index, "origin"), (&package, "pinned")] {
        bench.get(url).await.complete();
        let got = bench.get(url).await.complete();
        assert!(got.is_hit() && got.cache_status().contains(proof), "{}", detail(&got));
    }
    assert!(detail(&bench.refresh(&index).await.complete()).contains("304"));
    // Over plain HTTP nothing vouches for either.
    for path in [&path, &format!("{directory}/Packages.adb")] {
        let url = bench.plain.put(path, Page::new("ADBc anything"));
        for _ in 0..2 {
            assert!(!bench.get(&url).await.complete().is_hit());
        }
    }
}

/// Keys are files in a directory; a file that is no key is skipped with a warning.
#[tokio::test]
async fn files_that_are_no_keys_are_named_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let keys = data.join("state/keys");
    std::fs::create_dir_all(&keys).unwrap();
    let edwards = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().public_key_pem();
    let write = |name: &str, text: &str| std::fs::write(Path::new(&keys).join(name), text).unwrap();
    write("edwards.rsa.pub", &edwards);
    write("page.rsa.pub", "<html>");
    write("good.rsa.pub", &KEYS[0].pem());
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let larder = Daemon::start(&ca, &data, &[]).await;
    let log = larder.logged("page.rsa.pub").await;
    let said =
        |name: &str| log.lines().any(|line| line.contains(name) && line.contains("is left out"));
    assert!(said("edwards.rsa.pub") && said("page.rsa.pub") && !said("good.rsa.pub"), "{log}");
}
