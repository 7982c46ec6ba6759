//! Tampered copies of the archives in `apt.rs`: real apt gets the archive's own bytes or an error, nothing wrong is kept, and
//! `larder why` says what was wrong. The control of each row is apt without larder: its message about the same archive, or its
//! success.
//!
//! The log has the same text as `larder why`, from the same function (`Pipeline::say`). Tested elsewhere and not here: what
//! larder gives after a refusal (`gap.rs`, `pass.rs`), keys that are added later (`keys.rs`), and single bodies that are not what
//! an index says, without apt (`signed.rs`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use larder::digest::Algorithm;

use crate::apt::{listed, row, world_and_origin};
use crate::signed::Key;
use crate::world::apt::Apt;
use crate::world::archive::{flipped, hex};
use crate::world::repository::{Files, Layout, Repository, Signatures, another_wheel};
use crate::world::{Page, World};

const LINE: &str = "ROOT/debian gears main contrib";

/// An archive to be tampered with.
struct Twin {
    repository: Repository,
    /// The key that its clients trust.
    key: Key,
    /// A key that larder knows, and that does not belong to this archive.
    stranger: Key,
    dir: PathBuf,
}

impl Twin {
    fn new(dir: &Path, layout: Layout) -> Self {
        let (key, stranger) = (Key::new(dir, "archive"), Key::new(dir, "stranger"));
        let mut repository = Repository::new(layout);
        repository.set("Date", "Fri, 20 Nov 2020 12:00:00 UTC");
        repository.sign(&key);
        Self { repository, key, stranger, dir: dir.to_owned() }
    }

    /// Changes the files whose paths contain `part`.
    fn change(&mut self, part: &str, change: impl Fn(&[u8]) -> Vec<u8>) {
        let files = self.repository.files.iter_mut();
        let mut any = false;
        for (_, bytes) in files.filter(|(path, _)| path.contains(part)) {
            *bytes = change(bytes);
            any = true;
        }
        assert!(any, "nothing is called {part}");
    }

    /// Sets a field of its Release, and signs it again.
    fn restate(&mut self, field: &str, value: &str) {
        self.repository.set(field, value);
        self.repository.sign(&self.key);
    }

    /// Removes its names from its Release, which is not signed again.
    fn forget_names(&mut self) {
        let names = ["Suite:", "Codename:"];
        let lines = self.repository.release.lines();
        let kept = lines.filter(|line| !names.iter().any(|name| line.starts_with(name)));
        self.repository.release = kept.collect::<Vec<_>>().join("\n") + "\n";
    }

    /// Changes its list of packages, and everything that depends on it.
    fn relist(&mut self, change: impl Fn(String) -> String) {
        let path = self.repository.layout.at("main/binary-amd64/Packages");
        let list = String::from_utf8(self.repository.files[&path].clone()).unwrap();
        self.repository.index("main/binary-amd64/Packages", change(list).as_bytes());
        self.repository.describe();
        self.restate("Date", "Fri, 20 Nov 2020 13:00:00 UTC");
    }

    /// Replaces the archive's key with a new one, made with these gpg options.
    fn rekey(&mut self, kind: &str, options: &[&str]) {
        let key = Key::empty(&self.dir, kind);
        let user = format!("{kind} <{kind}@example.org>");
        let make = ["--passphrase", "", "--quick-gen-key", &user, kind, "sign", "1y"];
        key.gpg(&[options, &make].concat());
        key.publish();
        self.key = key;
    }
}

/// apt's message about an archive.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// None: apt has what it wants.
    Well,
    /// A message with these words.
    Complains(&'static str),
}

/// One way of tampering.
struct Row {
    name: &'static str,
    layout: Layout,
    /// Whether larder has seen the untampered archive before.
    known: bool,
    tamper: fn(&mut Twin),
    /// apt's message without larder, and through it.
    direct: Says,
    through: Says,
    /// What `larder why` says, and of which file: the first whose path contains this.
    why: (&'static str, &'static str),
    /// The proofs with which changed files may be kept.
    kept: &'static [&'static str],
    /// The same for files that came over https.
    kept_tls: &'static [&'static str],
    /// Whether the archive proves anything.
    proves: bool,
}

/// The defaults; each row differs only in what it is about.
const ROW: Row = Row {
    name: "",
    layout: Layout::USUAL,
    known: false,
    tamper: |_| {},
    direct: Well,
    through: Well,
    why: ("InRelease", "makes no claims"),
    kept: &[],
    kept_tls: &[],
    proves: false,
};

impl Row {
    /// An archive whose bytes differ from the signed ones: larder gives an error instead.
    const BYTES: Self = Self { through: REFUSED, proves: true, ..ROW };

    /// With apt's message about it, through larder or not.
    const fn says(self, words: &'static str) -> Self {
        Self { direct: Complains(words), through: Complains(words), ..self }
    }

    /// With larder's reason about its signed document.
    const fn why(self, words: &'static str) -> Self {
        Self { why: ("InRelease", words), ..self }
    }
}

use Says::{Complains, Well};

/// apt's message about a refusal by larder.
const REFUSED: Says = Complains("502  Bad Gateway");

/// Fetches a package and checks apt's message; returns the files that apt has then.
async fn fetch(apt: &Apt, world: &World, expected: Says) -> Files {
    let came = apt.fetch(world, &["wheel"], false).await;
    match expected {
        Well => assert!(came.well && came.files.len() == 1, "{}", came.said),
        Complains(of) => {
            assert!(!came.well && came.said.contains(of), "not {of:?}: {}", came.said);
        }
    }
    came.files
}

/// Checks that everything kept is from the archive, or is what the row allows.
async fn nothing_wrong_is_kept(one: &Row, https: bool, world: &World, good: &Files, now: &Files) {
    for entry in listed(world).await {
        // A stored 404 (`Release.gpg` beside an `InRelease`) is kept for when the origin is down, and is no file of the archive.
        if entry["status"] == 404 {
            continue;
        }
        let is = |bytes: &Vec<u8>| entry["sha256"] == hex(Algorithm::Sha256, bytes);
        let proof = entry["proof"].as_str().unwrap();
        let allowed = one.kept.contains(&proof) || https && one.kept_tls.contains(&proof);
        let genuine = good.values().any(is);
        assert!(genuine || now.values().any(is), "from nowhere: {entry}");
        assert!(genuine || allowed, "{entry}");
        let proven = proof.starts_with("signed");
        assert!(!proven || one.proves || one.known || allowed, "proven by nothing: {entry}");
    }
}

async fn check(one: &Row, https: bool) {
    row(one.name, https, async {
        let dir = tempfile::tempdir().unwrap();
        let mut twin = Twin::new(dir.path(), one.layout);
        let good = twin.repository.clone();
        let genuine = &good.files[&good.path("wheel_")];
        if !one.known {
            (one.tamper)(&mut twin);
        }
        let (world, origin) = world_and_origin(&[&twin.key, &twin.stranger], https).await;
        if one.known {
            good.put(&origin, "/debian");
            let apt = Apt::through(&world, &origin, &twin.key, LINE).await;
            fetch(&apt, &world, Well).await;
            (one.tamper)(&mut twin);
            for path in good.files.keys() {
                origin.put(&format!("/debian/{path}"), Page::status(404));
            }
            world.proxy.clock.advance(Duration::from_mins(1));
        }
        twin.repository.put(&origin, "/debian");
        // Without larder apt's message is the same over both.
        if !https {
            let direct = Apt::without(&world, &origin, &twin.key, LINE);
            fetch(&direct, &world, one.direct).await;
        }
        let through = Apt::through(&world, &origin, &twin.key, LINE).await;
        let files = fetch(&through, &world, one.through).await;
        assert!(files.values().all(|bytes| bytes == genuine), "wrong bytes were completed");
        nothing_wrong_is_kept(one, https, &world, &good.files, &twin.repository.files).await;
        let (part, expected) = one.why;
        let path = twin.repository.files.keys().find(|path| path.contains(part)).unwrap();
        world.told(&["why", &origin.url(&format!("/debian/{path}"))], expected).await;
    })
    .await;
}

async fn check_all(rows: &[Row]) {
    for one in rows {
        for https in [true, false] {
            check(one, https).await;
        }
    }
}

const WITHOUT: Layout = Layout { by_hash: false, ..Layout::USUAL };
const LIST: &str = "main/binary-amd64/Packages.xz";
const BESIDE: Layout = Layout { signatures: Signatures::Beside, ..WITHOUT };

#[tokio::test(flavor = "multi_thread")]
async fn tampered_bytes_are_refused_and_never_kept() {
    check_all(&[
        Row {
            name: "a bit in a package",
            tamper: |twin| twin.change("wheel_", flipped),
            direct: Complains("Hash Sum mismatch"),
            why: ("wheel_", "what came is"),
            ..Row::BYTES
        },
        Row {
            name: "a bit in the lists, by digest",
            tamper: |twin| twin.change("main/binary-amd64/", flipped),
            direct: Complains("Hash Sum mismatch"),
            why: ("main/binary-amd64/by-hash/", "what came is"),
            ..Row::BYTES
        },
        Row {
            name: "a bit in the lists",
            layout: WITHOUT,
            tamper: |twin| twin.change("main/binary-amd64/", flipped),
            direct: Complains("Hash Sum mismatch"),
            why: (LIST, "what came is"),
            ..Row::BYTES
        },
        Row {
            name: "lists cut short",
            layout: WITHOUT,
            tamper: |twin| twin.change("main/binary-amd64/", half),
            direct: Complains("unexpected size"),
            why: (LIST, "what came is"),
            ..Row::BYTES
        },
        Row {
            name: "a name that was uploaded again while the lists have the old",
            known: true,
            tamper: |twin| twin.change("wheel_", |_| another_wheel()),
            direct: Complains("Failed to fetch"),
            through: Well,
            why: ("wheel_", "stored    signed"),
            ..Row::BYTES
        },
        Row {
            name: "the same, of which larder had the lists alone",
            tamper: |twin| twin.change("wheel_", |_| another_wheel()),
            direct: Complains("Failed to fetch"),
            why: ("wheel_", "what came is"),
            ..Row::BYTES
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_texts_make_no_claims() {
    check_all(&[
        Row {
            name: "a bit in the text",
            tamper: |twin| twin.change("InRelease", |text| replaced(text, "contrib", "contriB")),
            ..ROW.says("BADSIG").why("it is not a signature of this text")
        },
        Row {
            name: "a bit in the signature",
            tamper: |twin| twin.change("InRelease", other_signature),
            ..ROW.says("GPG error").why("its signature is refused")
        },
        Row {
            name: "a signed text cut short",
            tamper: |twin| twin.change("InRelease", half),
            kept_tls: &["origin"],
            ..ROW.says("is not signed").why("its signature is missing")
        },
        Row {
            name: "a signature of another text",
            layout: BESIDE,
            tamper: |twin| {
                let signature = twin.repository.files["dists/gears/Release.gpg"].clone();
                twin.restate("Date", "Fri, 20 Nov 2020 13:00:00 UTC");
                twin.repository.files.insert("dists/gears/Release.gpg".into(), signature);
            },
            why: ("gears/Release", "it is not a signature of this text"),
            ..ROW.says("BADSIG")
        },
        Row {
            name: "no signature any more",
            known: true,
            tamper: |twin| {
                let text = twin.repository.release.clone().into_bytes();
                twin.repository.files.remove("dists/gears/InRelease");
                twin.repository.files.insert("dists/gears/Release".into(), text);
            },
            why: ("gears/Release", "was signed before, and now there is no signature"),
            ..ROW.says("is not signed")
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_prove_nothing_make_nothing_signed() {
    check_all(&[
        Row {
            name: "a foreign key",
            tamper: |twin| twin.repository.sign(&Key::new(&twin.dir, "foreign")),
            kept_tls: &["origin"],
            ..ROW.says("NO_PUBKEY").why("larder keys add FILE")
        },
        Row {
            name: "a key that has expired",
            tamper: |twin| {
                let past = ["--faked-system-time", "20190101T000000"];
                twin.rekey("rsa2048", &past);
                twin.repository.sign_with(&twin.key, &past);
            },
            kept_tls: &["origin+expired-key"],
            ..ROW.says("EXPKEYSIG").why("its key expired")
        },
        Row {
            name: "a key that is revoked",
            tamper: |twin| {
                twin.rekey("rsa2048", &[]);
                twin.repository.sign(&twin.key);
                twin.key.revoke();
            },
            ..ROW.says("REVKEYSIG").why("its key was revoked")
        },
        Row {
            name: "SHA-1",
            tamper: |twin| {
                twin.rekey("rsa2048", &[]);
                twin.repository.sign_with(&twin.key, &["--digest-algo", "SHA1"]);
            },
            kept_tls: &["origin"],
            ..ROW.says("signatures were invalid").why("too weak")
        },
        // apt accepts these, so through larder it gets them too; over plain HTTP nothing is kept.
        Row {
            name: "RSA of 1024 bits",
            tamper: |twin| {
                twin.rekey("rsa1024", &[]);
                twin.repository.sign(&twin.key);
            },
            kept_tls: &["origin"],
            ..ROW.why("too weak")
        },
        Row {
            name: "DSA",
            tamper: |twin| {
                twin.rekey("dsa2048", &[]);
                twin.repository.sign(&twin.key);
            },
            kept_tls: &["origin"],
            ..ROW.why("too weak")
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_sign_for_a_known_archive() {
    check_all(&[
        Row {
            name: "a foreign key in a known archive",
            known: true,
            tamper: |twin| twin.repository.sign(&Key::new(&twin.dir, "foreign")),
            ..ROW.says("NO_PUBKEY").why("this archive was signed before")
        },
        Row {
            name: "another archive's key in a known archive",
            known: true,
            tamper: |twin| twin.repository.sign(&twin.stranger),
            ..ROW.says("NO_PUBKEY").why("none of whom signed for this archive before")
        },
        // A Release without a suite name fits every URL; only its signer identifies it.
        Row {
            name: "another archive's Release without a name in a known archive",
            known: true,
            tamper: |twin| {
                twin.forget_names();
                twin.repository.sign(&twin.stranger);
            },
            ..ROW.says("NO_PUBKEY").why("none of whom signed for this archive before")
        },
        // The control: its own Release. apt complains, and accepts it.
        Row {
            name: "a Release without a name",
            tamper: |twin| {
                twin.forget_names();
                twin.repository.sign(&twin.key);
            },
            proves: true,
            kept: &["signed"],
            ..ROW.says("Conflicting distribution").why("stored    signed,")
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn editions_that_do_not_count_make_no_claims() {
    check_all(&[
        // apt has no lists yet, so it cannot notice.
        Row {
            name: "an older date",
            known: true,
            tamper: |twin| twin.restate("Date", "Thu, 19 Nov 2020 12:00:00 UTC"),
            ..ROW.why("which was seen before: a mirror that is behind, or a replay")
        },
        Row {
            name: "a date to come",
            tamper: |twin| twin.restate("Date", "Fri, 20 Nov 2116 12:00:00 UTC"),
            ..ROW.says("is not valid yet").why("is in the future")
        },
        Row {
            name: "valid no longer",
            tamper: |twin| twin.restate("Valid-Until", "Sat, 21 Nov 2020 12:00:00 UTC"),
            kept: &["signed+stale"],
            ..ROW.says("is expired").why("it was valid until")
        },
        Row {
            name: "another suite's",
            tamper: |twin| {
                twin.repository.set("Suite", "other");
                twin.restate("Codename", "others");
            },
            kept_tls: &["origin"],
            ..ROW.says("Conflicting distribution").why("Suite other, Codename others")
        },
        Row {
            name: "a field that stands twice",
            tamper: |twin| {
                twin.repository.release.insert_str(0, "Suite: stable\n");
                twin.repository.sign(&twin.key);
            },
            kept_tls: &["origin"],
            ..ROW.why("a field stands twice")
        },
    ])
    .await;
}

/// The lists are what their archive signed, and are kept as such; their claims do not count.
#[tokio::test(flavor = "multi_thread")]
async fn lists_that_mean_harm_make_no_claims() {
    let harmful = |name, tamper, direct, through, why| Row {
        name,
        layout: WITHOUT,
        tamper,
        direct,
        through,
        why,
        kept: &["signed"],
        proves: true,
        ..ROW
    };
    check_all(&[
        harmful(
            "a field that stands twice",
            |twin| {
                let twice = "Package: wheel\nFilename: pool/main/x_1_all.deb\n";
                twin.relist(|list| list.replace("Package: wheel\n", twice));
            },
            Well,
            Well,
            (LIST, "a field stands twice"),
        ),
        harmful(
            "a name that leads out",
            |twin| twin.relist(|list| list.replace("pool/main/wheel_", "../../pool/main/wheel_")),
            Complains("404  Not Found"),
            Complains("400  Bad Request"),
            ("wheel_", "nothing that larder has read"),
        ),
        harmful(
            "a bomb",
            |twin| twin.relist(|list| format!("{list}X: {}\n", "\0".repeat(66 << 20))),
            Complains("E: "),
            Complains("E: "),
            (LIST, "limit"),
        ),
    ])
    .await;
}

/// A host with several flat archives: the claims of one tenant do not apply to another tenant's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_names_another_tenants_file_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let (key, other) = (Key::new(dir.path(), "archive"), Key::new(dir.path(), "other"));
    let layout = Layout { head: "good", by_hash: false, ..Layout::USUAL };
    let mut good = Repository::new(layout);
    good.sign(&key);
    let path = good.path("wheel_");
    let evil_bytes = another_wheel();
    let evil = |name: &str| {
        let mut evil = Repository::new(Layout { head: "evil", ..layout });
        let list = format!(
            "Package: wheel\nVersion: 1.0\nArchitecture: amd64\nFilename: {name}\nSize: {}\nSHA256: {}\n\n",
            evil_bytes.len(),
            hex(Algorithm::Sha256, &evil_bytes)
        );
        evil.index("Packages", list.as_bytes());
        evil.describe();
        evil.sign(&other);
        evil
    };
    for (https, name) in [(true, path.clone()), (false, path.clone()), (true, format!("../{path}"))]
    {
        let (world, origin) = world_and_origin(&[&key, &other], https).await;
        good.put(&origin, "/flat");
        evil(&name).put(&origin, "/flat");
        // The tenant's own client gets the neighbour's file unchanged, and finds that it is not what this archive says.
        let apt = Apt::through(&world, &origin, &other, "ROOT/flat evil/").await;
        let came = apt.fetch(&world, &["wheel"], false).await;
        assert!(!came.well && came.said.contains("Failed to fetch"), "{}", came.said);
        let wrong = came.files.values().any(|bytes| *bytes == evil_bytes);
        assert!(!wrong, "{}", came.said);
        // The neighbour's archive is unaffected.
        let url = origin.url(&format!("/flat/{path}"));
        for turn in 0..2 {
            let apt = Apt::through(&world, &origin, &key, "ROOT/flat good/").await;
            let files = fetch(&apt, &world, Well).await;
            assert!(files.values().all(|bytes| *bytes == good.files[&path]), "turn {turn}");
        }
        let said = world.fetch(&url).await;
        assert!(said.cache_status().contains("hit; detail=\"signed\""), "{}", said.cache_status());
        let evil = hex(Algorithm::Sha256, &evil_bytes);
        assert!(listed(&world).await.iter().all(|entry| entry["sha256"] != evil));
    }
}

fn replaced(text: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    text.replace(from, to).into_bytes()
}

fn half(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() / 2].to_vec()
}

/// Changes one letter of the signature.
fn other_signature(text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    let place = text.len() - 60;
    text[place] = if text[place] == b'A' { b'B' } else { b'A' };
    text
}
