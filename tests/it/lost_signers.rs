//! Promises P2 and P8: of a repository with several signers, a lost one takes away what it alone signed, and nothing that another
//! signed as well or alone.

use std::io::Write as _;
use std::process::{Command, Stdio};

use larder::digest::Algorithm;

use crate::keys::{command, proofs};
use crate::world::apk::gzip;
use crate::world::archive::hex;
use crate::world::gpg::Key;
use crate::world::{Origin, Page, World};

/// A suite with one file, in the archive that has all of them.
struct Suite {
    name: &'static str,
    list: &'static str,
    packages: Vec<u8>,
    deb: Vec<u8>,
}

impl Suite {
    fn new(name: &'static str, content: &str) -> Self {
        let deb = format!("{name} {content} ").repeat(1000).into_bytes();
        let packages = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: all\nFilename: pool/{name}-{content}_1.0_all.deb\nSize: {}\nSHA256: {}\n\n",
            deb.len(),
            hex(Algorithm::Sha256, &deb)
        );
        Self { name, list: "main/binary-all/Packages", packages: packages.into_bytes(), deb }
    }

    /// The same with a compressed list.
    fn packed(self) -> Self {
        Self { list: "main/binary-all/Packages.gz", packages: gzip(&self.packages), ..self }
    }

    fn paths(&self, content: &str) -> [String; 3] {
        let dists = format!("/debian/dists/{}", self.name);
        [
            format!("{dists}/InRelease"),
            format!("{dists}/{}", self.list),
            format!("/debian/pool/{}-{content}_1.0_all.deb", self.name),
        ]
    }

    /// Publishes an edition, signed by each of `by` from the home of `home`, and requests it twice.
    async fn publish(
        &self,
        world: &World,
        origin: &Origin,
        (home, by): (&Key, &[&str]),
        (content, hour): (&str, u32),
    ) -> String {
        let (name, list) = (self.name, self.list);
        let release = format!(
            "Suite: {name}\nCodename: {name}\nDate: Fri, 20 Nov 2020 {hour:02}:00:00 UTC\nSHA256:\n {} {} {list}\n",
            hex(Algorithm::Sha256, &self.packages),
            self.packages.len()
        );
        let signed = sign(home, by, &release);
        let tag = format!("\"{}\"", hex(Algorithm::Sha256, &signed));
        let [release, packages, deb] = self.paths(content);
        origin.put(&release, Page::new(signed).etag(&tag));
        origin.put(&packages, Page::new(self.packages.clone()));
        origin.put(&deb, Page::new(self.deb.clone()));
        self.update(world, origin, content).await
    }

    /// The requests of `apt update` and a download; returns larder's `Cache-Status` for a second request.
    async fn update(&self, world: &World, origin: &Origin, content: &str) -> String {
        world.proxy.clock.advance(std::time::Duration::from_secs(30));
        let [release, packages, deb] = self.paths(content).map(|path| origin.url(&path));
        for url in [release, packages] {
            let ask = world.client.get(&url).header("cache-control", "max-age=0");
            ask.send().await.complete();
        }
        world.get(&deb).await.complete();
        let got = world.get(&deb).await;
        assert_eq!(got.body, self.deb);
        got.cache_status().to_owned()
    }

    /// The proofs of what is kept of it.
    async fn kept(&self, world: &World, origin: &Origin) -> Vec<String> {
        let (dists, pool) =
            (format!("/debian/dists/{}/", self.name), format!("/pool/{}-", self.name));
        let kept = proofs(world, origin).await.into_iter();
        let of_it = kept.filter(|(path, _)| path.starts_with(&dists) || path.contains(&pool));
        of_it.map(|(_, proof)| proof).collect()
    }

    async fn is_signed(&self, world: &World, origin: &Origin) -> bool {
        let kept = self.kept(world, origin).await;
        kept.len() == 3 && kept.iter().all(|proof| proof == "signed")
    }
}

fn sign(home: &Key, by: &[&str], document: &str) -> Vec<u8> {
    let file = home.home.join("document");
    std::fs::write(&file, document).unwrap();
    let mut arguments = vec!["--digest-algo", "SHA512"];
    for signer in by {
        arguments.extend(["--local-user", signer]);
    }
    arguments.extend(["--output", "-", "--clear-sign", file.to_str().unwrap()]);
    home.gpg(&arguments).stdout
}

async fn add(world: &World, key: &Key) {
    key.publish();
    command(world, &["keys", "add", key.public.to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_lost_signer_alone_proved_goes_although_another_of_its_root_is_trusted() {
    let mut world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    let secure = world.another("127.0.0.1").await;
    let [old, new] = ["old", "new"].map(|name| Key::new(world.dir(), name));
    for key in [&old, &new] {
        add(&world, key).await;
    }
    let secret = new.gpg(&["--passphrase", "", "--export-secret-keys"]).stdout;
    let file = world.dir().join("secret");
    std::fs::write(&file, secret).unwrap();
    let [a, b] = [old.fingerprint(), new.fingerprint()];
    old.gpg(&["--import", file.to_str().unwrap()]);
    let suites = ["alone", "both", "other"].map(|name| Suite::new(name, "one"));
    let [alone, both, other] = suites;
    let (alone, both, other) = (&alone, &both.packed(), &other);
    for origin in [&secure, &plain] {
        for (suite, by) in [(alone, &[&*a][..]), (both, &[&*a, &*b]), (other, &[&*b])] {
            let said = suite.publish(&world, origin, (&old, by), ("one", 10)).await;
            assert!(said.contains("hit") && said.contains("signed"), "{}: {said}", suite.name);
            assert!(suite.is_signed(&world, origin).await, "the control: {}", suite.name);
        }
    }
    let said = command(&world, &["keys", "rm", &a]).await;
    assert!(said.contains(&secure.url("/debian/")), "{said}");
    for round in ["at once", "after a restart"] {
        for (origin, left) in [(&secure, 3), (&plain, 0)] {
            let kept = alone.kept(&world, origin).await;
            let is_signed = kept.iter().any(|proof| proof == "signed");
            assert!(kept.len() == left && !is_signed, "{round}: {kept:?}");
            for suite in [both, other] {
                let kept = suite.kept(&world, origin).await;
                assert!(suite.is_signed(&world, origin).await, "{round}: {kept:?}");
            }
        }
        world.restart(|_| {}).await;
    }
    // What the other key signs counts as before, in that archive too.
    let next = Suite::new("other", "two");
    for origin in [&secure, &plain] {
        for suite in [both, other] {
            let said = suite.update(&world, origin, "one").await;
            assert!(said.contains("hit") && said.contains("signed"), "{said}");
        }
        assert!(!alone.update(&world, origin, "one").await.contains("signed"));
        let said = next.publish(&world, origin, (&new, &[&*b]), ("two", 11)).await;
        assert!(said.contains("hit") && said.contains("signed"), "{said}");
    }
}

/// A key with a primary key that only certifies, and two subkeys that sign.
fn with_subkeys(world: &World) -> (Key, [String; 2]) {
    let key = Key::empty(world.dir(), "subkeys");
    let user = "subkeys <subkeys@example.org>";
    key.gpg(&["--passphrase", "", "--quick-gen-key", user, "ed25519", "cert", "1y"]);
    let primary = key.fingerprint();
    for _ in 0..2 {
        key.gpg(&["--passphrase", "", "--quick-add-key", &primary, "ed25519", "sign", "1y"]);
    }
    let listed = key.gpg(&["--with-colons", "--with-subkey-fingerprint", "--list-keys"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let named = listed.lines().filter(|line| line.starts_with("fpr:"));
    let named: Vec<String> = named.map(|line| line.split(':').nth(9).unwrap().to_owned()).collect();
    let [_, one, two] = &named[..] else { panic!("{listed}") };
    let subkeys = [format!("{one}!"), format!("{two}!")];
    (key, subkeys)
}

/// Revokes the first subkey.
fn revoke_subkey(key: &Key) {
    let mut gpg = Command::new("gpg")
        .arg("--homedir")
        .arg(&key.home)
        .args(["--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""])
        .args(["--command-fd", "0", "--edit-key", &key.fingerprint()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    gpg.stdin.take().unwrap().write_all(b"key 1\nrevkey\ny\n0\n\ny\nsave\n").unwrap();
    assert!(gpg.wait().unwrap().success());
    let listed = key.gpg(&["--with-colons", "--list-keys"]).stdout;
    assert!(String::from_utf8_lossy(&listed).contains("\nsub:r:"), "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_subkey_signed_goes_although_its_primary_key_is_trusted() {
    let mut world = World::new().await;
    let secure = world.another("127.0.0.1").await;
    let (key, [one, two]) = with_subkeys(&world);
    add(&world, &key).await;
    let suites = ["first", "second"].map(|name| Suite::new(name, "one"));
    for (suite, by) in suites.iter().zip([&one, &two]) {
        suite.publish(&world, &secure, (&key, &[by]), ("one", 10)).await;
        assert!(suite.is_signed(&world, &secure).await, "the control");
    }
    revoke_subkey(&key);
    add(&world, &key).await;
    for round in ["at once", "after a restart"] {
        let kept = suites[0].kept(&world, &secure).await;
        assert!(kept.len() == 3 && kept.iter().all(|proof| proof != "signed"), "{round}: {kept:?}");
        assert!(suites[1].is_signed(&world, &secure).await, "{round}");
        world.restart(|_| {}).await;
    }
}
