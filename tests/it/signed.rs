//! Signed archives, with real apt and throw-away keys: files that a signature covers are kept with proof `signed`, over https and
//! over plain HTTP; other files are not kept at all.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use larder::digest::Algorithm;

use crate::world::archive::{flipped, hex};
pub(crate) use crate::world::gpg::Key;
use crate::world::tools::{client, run, text, trusted_file};
use crate::world::{Origin, Page, World};

pub(crate) const PACKAGE: &str = "pool/main/g/gear/gear_1.0+dfsg-1_all.deb";
const INDEX: &str = "dists/gears/main/binary-all/Packages";

/// An archive with one package.
#[derive(Clone)]
pub(crate) struct Archive {
    deb: Vec<u8>,
    pub(crate) packages: Vec<u8>,
    release: String,
}

impl Archive {
    pub(crate) async fn new(dir: &Path, content: &str, date: &str, by_hash: bool) -> Self {
        let tree = dir.join("gear");
        std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        std::fs::create_dir_all(tree.join("opt")).unwrap();
        let control = "Package: gear\nVersion: 1.0+dfsg-1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n";
        std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
        std::fs::write(tree.join("opt/gear"), content).unwrap();
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.args(["--root-owner-group", "--build"]).arg(&tree).arg(dir.join("gear.deb"));
        let built = run(dpkg).await;
        assert!(built.status.success(), "{}", text(&built));
        let deb = std::fs::read(dir.join("gear.deb")).unwrap();
        let packages = format!(
            "{control}Filename: {PACKAGE}\nSize: {}\nSHA256: {}\n\n",
            deb.len(),
            hex(Algorithm::Sha256, &deb)
        );
        let packages = packages.into_bytes();
        let mut release = format!(
            "Origin: x\nSuite: stable\nCodename: gears\nDate: {date}\nArchitectures: all amd64\nComponents: main\n"
        );
        if by_hash {
            release.push_str("Acquire-By-Hash: yes\n");
        }
        writeln!(
            release,
            "SHA256:\n {} {} main/binary-all/Packages",
            hex(Algorithm::Sha256, &packages),
            packages.len()
        )
        .unwrap();
        Self { deb, packages, release }
    }

    /// Puts it on `origin`, signed by `key`.
    pub(crate) fn put(&self, origin: &Origin, key: &Key) {
        origin.put("/debian/dists/gears/InRelease", Page::new(key.clear_sign(&self.release)));
        origin.put(&format!("/debian/{INDEX}"), Page::new(self.packages.clone()));
        origin.put(&format!("/debian/{}", self.by_hash()), Page::new(self.packages.clone()));
        origin
            .put(&format!("/debian/{}", PACKAGE.replace('+', "%2B")), Page::new(self.deb.clone()));
    }

    fn by_hash(&self) -> String {
        let digest = hex(Algorithm::Sha256, &self.packages);
        format!("dists/gears/main/binary-all/by-hash/SHA256/{digest}")
    }
}

pub(crate) const DATE: &str = "Fri, 20 Nov 2020 12:00:00 UTC";
const LATER: &str = "Sat, 21 Nov 2020  9:00:00 UTC";

/// An environment whose larder trusts `key`.
pub(crate) async fn world_trusting(key: Option<&Key>) -> World {
    World::with(|config| {
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        if let Some(key) = key {
            std::fs::copy(&key.public, keys.join("test.gpg")).unwrap();
        }
    })
    .await
}

/// Directories and a configuration for `apt-get` without this machine's settings; `ca` is its CA bundle. The configuration is
/// called `apt.conf`.
pub(crate) fn apt_home(world: &World, origin: &Origin, key: &Key, ca: &str) -> tempfile::TempDir {
    apt_home_for(world, &origin.url("/debian"), key, ca)
}

/// The same for the archive at `url` in the sources.
pub(crate) fn apt_home_for(world: &World, url: &str, key: &Key, ca: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir_in(world.dir()).unwrap();
    let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    for dir in ["lists/partial", "archives/partial"] {
        std::fs::create_dir_all(at(dir)).unwrap();
    }
    std::fs::write(at("status"), "").unwrap();
    let line = format!("deb [signed-by={} arch=amd64] {url} gears main\n", key.public.display());
    std::fs::write(at("sources.list"), line).unwrap();
    let conf = format!(
        "Dir::State::lists \"{}\";\nDir::State::status \"{}\";\nDir::Cache::archives \"{}\";\nDir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\nDir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\nAcquire::Languages \"none\";\nAcquire::https::CaInfo \"{ca}\";\n\
         APT::Sandbox::User \"root\";\nDir::Etc::main \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\nAcquire::Retries \"0\";\n",
        at("lists"),
        at("status"),
        at("archives"),
        at("sources.list"),
    );
    std::fs::write(at("apt.conf"), conf).unwrap();
    root
}

/// The complaints of `apt-get`, if there are any: `update` exits with 0 although it used old lists, or none.
pub(crate) fn complaint(output: &Output) -> Result<(), String> {
    let said = text(output);
    if !output.status.success() || said.contains("\nW: ") || said.contains("\nE: ") {
        return Err(said);
    }
    Ok(())
}

/// `apt-get update` and then `download gear`, through larder.
async fn apt(world: &World, origin: &Origin, key: &Key) -> Result<(), String> {
    let ca = trusted_file(world).await;
    let root = apt_home(world, origin, key, &ca);
    for arguments in [&["update"][..], &["download", "gear"]] {
        let mut command = client(world, "apt-get", &ca);
        command
            .env("APT_CONFIG", root.path().join("apt.conf"))
            .arg("-q")
            .args(arguments)
            .current_dir(root.path());
        complaint(&run(command).await)?;
    }
    Ok(())
}

fn deb(origin: &Origin) -> String {
    origin.url(&format!("/debian/{}", PACKAGE.replace('+', "%2B")))
}

/// larder's `Cache-Status` for a further request to a URL.
async fn said(world: &World, url: &str) -> String {
    let got = world.get(url).await;
    format!("{} {}", got.is_complete(), got.cache_status())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_archive_is_proven_to_the_byte_over_http_and_https() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    for by_hash in [true, false] {
        let archive = Archive::new(dir.path(), "one", DATE, by_hash).await;
        let world = world_trusting(Some(&key)).await;
        let plain = Origin::plain("127.0.0.1").await;
        for origin in [&world.origin, &plain] {
            archive.put(origin, &key);
            apt(&world, origin, &key).await.unwrap();
            let release = origin.url("/debian/dists/gears/InRelease");
            let index = if by_hash { archive.by_hash() } else { INDEX.to_owned() };
            let index = origin.url(&format!("/debian/{index}"));
            for url in [deb(origin), index, release] {
                let said = said(&world, &url).await;
                let proven = said.contains("signed") || by_hash && said.contains("self-certified");
                assert!(proven && said.contains("hit"), "{url}: {said}");
            }
            let gets = origin.gets(&format!("/debian/{}", PACKAGE.replace('+', "%2B")));
            apt(&world, origin, &key).await.unwrap();
            assert_eq!(origin.gets(&format!("/debian/{}", PACKAGE.replace('+', "%2B"))), gets);
            // The second mirror is not asked for files that a signature names and the first mirror gave.
            assert_eq!(gets, usize::from(origin.address() == world.origin.address()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_package_is_refused_over_http_and_https() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let archive = Archive::new(dir.path(), "one", DATE, true).await;
    let mut tampered = archive.clone();
    tampered.deb = flipped(&archive.deb);
    let world = world_trusting(Some(&key)).await;
    let plain = Origin::plain("127.0.0.1").await;
    for origin in [&world.origin, &plain] {
        tampered.put(origin, &key);
        apt(&world, origin, &key).await.unwrap_err();
        let got = world.get(&deb(origin)).await;
        assert!(!got.is_hit() && got.body != tampered.deb, "{}", got.cache_status());
    }
}

/// Older archives have no InRelease.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_beside_its_signature_proves_as_much() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let archive = Archive::new(dir.path(), "one", DATE, false).await;
    let file = dir.path().join("Release");
    std::fs::write(&file, &archive.release).unwrap();
    let signature = key.gpg(&["--armor", "--output", "-", "--detach-sign", file.to_str().unwrap()]);
    let world = world_trusting(Some(&key)).await;
    let plain = Origin::plain("127.0.0.1").await;
    for origin in [&world.origin, &plain] {
        archive.put(origin, &key);
        let suite = "/debian/dists/gears";
        origin.put(&format!("{suite}/InRelease"), Page::status(404));
        origin.put(&format!("{suite}/Release"), Page::new(archive.release.clone()));
        origin.put(&format!("{suite}/Release.gpg"), Page::new(signature.stdout.clone()));
        apt(&world, origin, &key).await.unwrap();
        for url in [
            deb(origin),
            origin.url(&format!("{suite}/Release")),
            origin.url(&format!("{suite}/Release.gpg")),
        ] {
            let said = said(&world, &url).await;
            assert!(said.contains("hit; detail=\"signed\""), "{url}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_signer_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let archive = Archive::new(dir.path(), "one", DATE, true).await;
    let world = world_trusting(None).await;
    let plain = Origin::plain("127.0.0.1").await;
    archive.put(&world.origin, &key);
    apt(&world, &world.origin, &key).await.unwrap();
    let tls = said(&world, &deb(&world.origin)).await;
    assert!(tls.contains("indexed") && tls.contains("hit"), "{tls}");
    archive.put(&plain, &key);
    apt(&world, &plain, &key).await.unwrap();
    let unproven = said(&world, &deb(&plain)).await;
    assert!(!unproven.contains("hit"), "{unproven}");
}

#[expect(clippy::too_many_lines, reason = "one archive's life, in order")]
#[tokio::test(flavor = "multi_thread")]
async fn strangers_replays_and_tampered_releases_make_no_claims() {
    let dir = tempfile::tempdir().unwrap();
    let (key, stranger) = (Key::new(dir.path(), "archive"), Key::new(dir.path(), "stranger"));
    let unknown = Key::new(dir.path(), "unknown");
    let world = World::with(|config| {
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        for key in [&key, &stranger] {
            std::fs::copy(&key.public, keys.join(key.public.file_name().unwrap())).unwrap();
        }
    })
    .await;
    let plain = Origin::plain("127.0.0.1").await;
    let old = Archive::new(dir.path(), "one", DATE, true).await;
    let new = Archive::new(dir.path(), "two", LATER, true).await;
    let evil = Archive::new(dir.path(), "evil", LATER, true).await;
    let release = "/debian/dists/gears/InRelease";
    for origin in [&world.origin, &plain] {
        new.put(origin, &key);
        apt(&world, origin, &key).await.unwrap();
        assert!(said(&world, &deb(origin)).await.contains("signed"));
        let signed_later = |archive: &Archive| archive.release.replace("9:00:00", "9:30:00");
        let genuine = String::from_utf8(key.clear_sign(&signed_later(&evil))).unwrap();
        let other_suite = signed_later(&evil).replace("gears", "other").replace("stable", "other");
        let expired = signed_later(&evil)
            .replace("Origin: x", "Origin: x\nValid-Until: Sun, 22 Nov 2020 00:00:00 UTC");
        let in_future = evil.release.replace("Nov 2020", "Nov 2120");
        for (archive, hostile) in [
            (&old, key.clear_sign(&old.release)),
            (&evil, stranger.clear_sign(&signed_later(&evil))),
            (&evil, key.clear_sign(&other_suite)),
            (&evil, key.clear_sign(&in_future)),
            (&evil, key.clear_sign(&expired)),
            (&evil, unknown.clear_sign(&signed_later(&evil))),
            (&evil, genuine.replace("Origin: x", "Origin: y").into_bytes()),
        ] {
            archive.put(origin, &key);
            origin.put(release, Page::new(hostile));
            world.proxy.clock.advance(std::time::Duration::from_secs(400));
            for path in
                [release, &format!("/debian/{}", archive.by_hash()), &format!("/debian/{INDEX}")]
            {
                let demand = world.client.get(&origin.url(path));
                demand.header("cache-control", "no-cache").send().await;
            }
            let got = world.get(&deb(origin)).await;
            let said = got.cache_status();
            assert!(
                got.body == new.deb && said.contains("hit") && said.contains("signed"),
                "{said}"
            );
        }
        // The control: the archive's own next snapshot counts.
        let next = Archive::new(dir.path(), "three", "Sat, 21 Nov 2020 10:00:00 UTC", true).await;
        next.put(origin, &key);
        world.proxy.clock.advance(std::time::Duration::from_secs(400));
        apt(&world, origin, &key).await.unwrap();
        let got = world.get(&deb(origin)).await;
        assert!(
            got.body == next.deb && got.cache_status().contains("signed"),
            "{}",
            got.cache_status()
        );
    }
}

/// A signed Release promises its indexes as these promise packages, whatever else a request contains.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_a_release_does_not_name_is_completed_by_no_pass() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let archive = Archive::new(dir.path(), "one", DATE, false).await;
    let mut tampered = archive.clone();
    tampered.packages = flipped(&archive.packages);
    let world = world_trusting(Some(&key)).await;
    let origin = &world.origin;
    archive.put(origin, &key);
    let index = origin.url(&format!("/debian/{INDEX}"));
    let pass = || world.client.get(&index).header("x-unheard-of", "1").send();
    tampered.put(origin, &key);
    assert_eq!(pass().await.complete().body, tampered.packages, "the control: nobody named it yet");
    archive.put(origin, &key);
    world.fetch(&origin.url("/debian/dists/gears/InRelease")).await;
    assert_eq!(pass().await.complete().body, archive.packages, "what it names passes");
    tampered.put(origin, &key);
    let got = pass().await;
    assert!(!got.is_complete() && got.body != tampered.packages, "{}", got.cache_status());
}
