//! Issue 10, promises P3 and P8: a key that is lost proves nothing any more, however it was lost. Its file may be deleted or replaced
//! while larder runs or not, a newer copy may revoke it, and larder may be killed before `larder keys rm` has done everything. A key
//! that is still there loses nothing.

use std::path::Path;

use crate::keys::{Archive, DEB, INDEX, RELEASE, command, proofs, update};
use crate::world::binary::Daemon;
use crate::world::gpg::Key;
use crate::world::page::{Fault, Gate};
use crate::world::tools::signal;
use crate::world::{Origin, Page, World, eventually};

/// A larder with three archives: two that the key `lost` signs, one of them over plain http, and one that `kept` signs.
struct Bench {
    world: World,
    archive: Archive,
    secure: Origin,
    plain: Origin,
    other: Origin,
    lost: Key,
    kept: Key,
}

fn file_of(data: &Path, key: &Key) -> std::path::PathBuf {
    let mut files = crate::world::files(&data.join("state/keys")).into_iter();
    files.find(|file| std::fs::read(file).unwrap() == key.exported()).unwrap()
}

async fn add(world: &World, key: &Key) {
    let file = world.dir().join(format!("{}.gpg", key.fingerprint()));
    std::fs::write(&file, key.exported()).unwrap();
    command(world, &["keys", "add", file.to_str().unwrap()]).await;
}

impl Bench {
    async fn new() -> Self {
        let world = World::new().await;
        let plain = Origin::plain("127.0.0.1").await;
        let (secure, other) = (world.another("127.0.0.1").await, world.another("127.0.0.1").await);
        let [lost, kept] = ["lost", "kept"].map(|name| Key::new(world.dir(), name));
        let bench =
            Self { archive: Archive::new("one", 10), world, secure, plain, other, lost, kept };
        for key in [&bench.lost, &bench.kept] {
            add(&bench.world, key).await;
        }
        for (origin, key) in bench.archives() {
            bench.archive.put(origin, key);
            assert!(update(&bench.world, origin).await.1.contains("signed"));
        }
        bench
    }

    fn archives(&self) -> [(&Origin, &Key); 3] {
        [(&self.secure, &self.lost), (&self.plain, &self.lost), (&self.other, &self.kept)]
    }

    async fn is_signed(&self, origin: &Origin) -> bool {
        let kept = proofs(&self.world, origin).await;
        kept.len() == 3 && kept.iter().all(|(_, proof)| proof == "signed")
    }

    async fn all_signed(&self) {
        for (origin, _) in self.archives() {
            assert!(
                self.is_signed(origin).await,
                "the control: {:?}",
                proofs(&self.world, origin).await
            );
        }
    }

    /// What the lost key proved is proven no more, at once and after the next update; what the other key proved stays.
    async fn nothing_is_left(&self, how: &str) {
        let (world, secure, plain) = (&self.world, &self.secure, &self.plain);
        for round in ["at once", "after an update"] {
            let kept = proofs(world, secure).await;
            assert!(
                kept.len() == 3 && kept.iter().all(|(_, proof)| proof != "signed"),
                "{how}, {round}: {kept:?}"
            );
            assert_eq!(proofs(world, plain).await, [], "{how}, {round}");
            for origin in [secure, plain] {
                let got = world.get(&origin.url(DEB)).await;
                let said = got.cache_status().to_owned();
                assert!(
                    got.body == self.archive.deb && !said.contains("signed"),
                    "{how}, {round}: {said}"
                );
                assert!(!update(world, origin).await.1.contains("signed"), "{how}, {round}");
            }
            assert!(self.is_signed(&self.other).await, "{how}, {round}");
        }
        // A key that is trusted again proves again.
        add(world, &self.lost).await;
        for origin in [secure, plain] {
            let (_, said) = update(world, origin).await;
            assert!(said.contains("hit") && said.contains("signed"), "{how}: {said}");
        }
    }
}

/// The file is deleted, as by somebody's hand or by a `larder keys rm` that was killed; or it is replaced by another key's.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_proved_that_is_lost_while_larder_does_not_run_is_proven_no_more() {
    for how in ["deleted", "replaced", "emptied"] {
        let mut bench = Bench::new().await;
        bench.world.restart(|_| {}).await;
        bench.all_signed().await;
        let another = Key::new(bench.world.dir(), "another").exported();
        let file = file_of(&bench.world.proxy.data, &bench.lost);
        let lose = |_: &Path| match how {
            "deleted" => std::fs::remove_file(&file).unwrap(),
            "replaced" => std::fs::write(&file, another).unwrap(),
            _ => std::fs::write(&file, b"").unwrap(),
        };
        bench.world.restart(lose).await;
        if how == "emptied" {
            std::fs::remove_file(&file).unwrap();
        }
        bench.nothing_is_left(how).await;
    }
}

/// The same while larder serves. It reads the keys again at SIGHUP and whenever a key is added.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_proved_that_is_lost_before_a_reload_is_proven_no_more() {
    for how in ["deleted", "revoked"] {
        let bench = Bench::new().await;
        let another = Key::new(bench.world.dir(), "another");
        add(&bench.world, &another).await;
        bench.all_signed().await;
        if how == "deleted" {
            std::fs::remove_file(file_of(&bench.world.proxy.data, &bench.lost)).unwrap();
            bench.all_signed().await;
            command(&bench.world, &["keys", "rm", &another.fingerprint()]).await;
            bench.nothing_is_left(how).await;
        } else {
            bench.lost.revoke();
            add(&bench.world, &bench.lost).await;
            assert!(!bench.is_signed(&bench.secure).await && bench.is_signed(&bench.other).await);
            assert_eq!(proofs(&bench.world, &bench.plain).await, []);
        }
    }
}

/// While larder reads its records, clients are served, and it does not know yet what a key proved.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_lost_proves_nothing_when_the_records_are_read_while_clients_are_served() {
    let mut bench = Bench::new().await;
    std::fs::remove_file(file_of(&bench.world.proxy.data, &bench.lost)).unwrap();
    let record = bench.world.restart_reading().await;
    let got = bench.world.get(&bench.secure.url(DEB)).await;
    let said = got.cache_status().to_owned();
    assert!(got.body == bench.archive.deb && !said.contains("signed"), "{said}");
    bench.world.has_read(record).await;
    bench.nothing_is_left("while the records are read").await;
}

/// A file that cannot be read now may still hold the key.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_proved_whose_file_cannot_be_read_stays() {
    let mut bench = Bench::new().await;
    let file = file_of(&bench.world.proxy.data, &bench.lost);
    let aside = bench.world.dir().join("aside");
    let hide = |_: &Path| {
        std::fs::rename(&file, &aside).unwrap();
        // Nobody can open a link to itself.
        std::os::unix::fs::symlink(&file, &file).unwrap();
    };
    bench.world.restart(hide).await;
    bench.all_signed().await;
    std::fs::remove_file(&file).unwrap();
    bench.world.restart(|_| std::fs::rename(&aside, &file).unwrap()).await;
    bench.all_signed().await;
    // The control.
    bench.world.restart(|_| std::fs::remove_file(&file).unwrap()).await;
    bench.nothing_is_left("the control").await;
}

/// A damaged file says nothing of the key that it held: what that proved stays, and it proves nothing new, until the operator says
/// that it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_proved_whose_file_is_damaged_stays_until_the_operator_removes_the_key() {
    for serves in [true, false] {
        let mut bench = Bench::new().await;
        let file = file_of(&bench.world.proxy.data, &bench.lost);
        let damage = |_: &Path| std::fs::write(&file, b"garbage").unwrap();
        if serves {
            damage(&file);
            add(&bench.world, &Key::new(bench.world.dir(), "another")).await;
        } else {
            bench.world.restart(damage).await;
        }
        bench.all_signed().await;
        let new = bench.world.another("127.0.0.1").await;
        bench.archive.put(&new, &bench.lost);
        assert!(!update(&bench.world, &new).await.1.contains("signed"));
        bench.all_signed().await;
        let missing = bench.world.proxy.metric("larder_keys_missing", "").await;
        assert!((missing - 1.0).abs() < 0.5, "{missing}");
        let listed = command(&bench.world, &["keys", "list"]).await;
        assert!(listed.contains("it cannot be read now from"), "{listed}");
        let said = command(&bench.world, &["keys", "rm", &bench.lost.fingerprint()]).await;
        assert!(said.contains("counts no more"), "{said}");
        assert!(bench.world.proxy.metric("larder_keys_missing", "").await == 0.0);
        bench.nothing_is_left("after the removal").await;
    }
}

/// A damaged file may hold other keys as well, which can be read or will be again: they are not removed with one that cannot.
#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_a_missing_key_takes_no_other_key_of_its_file() {
    for readable in [true, false] {
        let mut bench = Bench::new().await;
        let [lost, kept] = [&bench.lost, &bench.kept].map(Key::exported);
        let both = bench.world.proxy.data.join("state/keys/both.gpg");
        let files = [&bench.lost, &bench.kept].map(|key| file_of(&bench.world.proxy.data, key));
        let bundle = |_: &Path| {
            for file in &files {
                std::fs::remove_file(file).unwrap();
            }
            std::fs::write(&both, [&*kept, &*lost].concat()).unwrap();
        };
        bench.world.restart(bundle).await;
        bench.all_signed().await;
        let half = &lost[..lost.len() / 2];
        let damaged = if readable { [&*kept, half].concat() } else { b"garbage".to_vec() };
        bench.world.restart(|_| std::fs::write(&both, damaged).unwrap()).await;
        bench.all_signed().await;
        command(&bench.world, &["keys", "rm", &bench.lost.fingerprint()]).await;
        assert!(!bench.is_signed(&bench.secure).await, "readable: {readable}");
        assert!(bench.is_signed(&bench.other).await, "readable: {readable}");
        if readable {
            bench.nothing_is_left("the other is readable").await;
        }
    }
}

/// A damaged copy of a key does not keep it after `larder keys rm`.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_is_gone_although_a_copy_of_it_is_damaged() {
    let mut bench = Bench::new().await;
    let copy = bench.world.proxy.data.join("state/keys/copy.gpg");
    let bytes = bench.lost.exported();
    bench.world.restart(|_| std::fs::write(&copy, bytes).unwrap()).await;
    bench.all_signed().await;
    std::fs::write(&copy, b"garbage").unwrap();
    command(&bench.world, &["keys", "rm", &bench.lost.fingerprint()]).await;
    bench.nothing_is_left("a damaged copy").await;
}

/// Another file that cannot be read does not keep what a lost key proved.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_lost_although_the_file_of_another_is_damaged() {
    let mut bench = Bench::new().await;
    let files = [&bench.lost, &bench.kept].map(|key| file_of(&bench.world.proxy.data, key));
    let change = |_: &Path| {
        std::fs::remove_file(&files[0]).unwrap();
        std::fs::write(&files[1], b"garbage").unwrap();
    };
    bench.world.restart(change).await;
    assert!(!bench.is_signed(&bench.secure).await && bench.is_signed(&bench.other).await);
}

/// A directory of keys that is gone, or whose file system is not mounted.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_proved_whose_directory_is_gone_stays() {
    let mut world = World::with(|config| {
        let directory = config.data.parent().unwrap().join("keyrings");
        std::fs::create_dir_all(&directory).unwrap();
        config.keys.system = vec![directory];
    })
    .await;
    let (directory, aside) = (world.dir().join("keyrings"), world.dir().join("aside"));
    let key = Key::new(world.dir(), "system");
    std::fs::write(directory.join("system.gpg"), key.exported()).unwrap();
    world.restart(|_| {}).await;
    Archive::new("one", 10).put(&world.origin, &key);
    assert!(update(&world, &world.origin).await.1.contains("signed"), "the control");
    let signed = async |world: &World| {
        let kept = proofs(world, &world.origin).await;
        kept.iter().filter(|(_, proof)| proof == "signed").count()
    };
    world.restart(|_| std::fs::rename(&directory, &aside).unwrap()).await;
    assert_eq!(signed(&world).await, 3);
    world.restart(|_| std::fs::rename(&aside, &directory).unwrap()).await;
    assert_eq!(signed(&world).await, 3);
    // The control.
    world.restart(|_| std::fs::remove_file(directory.join("system.gpg")).unwrap()).await;
    assert_eq!(signed(&world).await, 0);
}

/// What was on its way when a key was removed may be stored after the rest was revoked, and larder be killed before it looks at that
/// again: here, the whole cache is as it was before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_after_a_key_was_revoked_is_found_by_the_next_start() {
    let mut bench = Bench::new().await;
    let aside = bench.world.dir().join("aside");
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
        assert!(done.success());
    };
    bench.world.restart(|data| copy(&data.join("v1"), &aside)).await;
    bench.all_signed().await;
    command(&bench.world, &["keys", "rm", &bench.lost.fingerprint()]).await;
    assert!(!bench.is_signed(&bench.secure).await, "the control");
    let put_back = |data: &Path| {
        std::fs::remove_dir_all(data.join("v1")).unwrap();
        std::fs::rename(&aside, data.join("v1")).unwrap();
    };
    bench.world.restart(put_back).await;
    bench.nothing_is_left("stored late").await;
}

/// Without the memory of the keys in force, every archive's signers are compared with the keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_found_when_the_former_keys_are_unknown() {
    for damage in [None, Some(&b"garbage"[..])] {
        let mut bench = Bench::new().await;
        let file = file_of(&bench.world.proxy.data, &bench.lost);
        let forget = |data: &Path| {
            let memory = data.join("state/in-force");
            assert!(memory.exists());
            match damage {
                Some(bytes) => std::fs::write(&memory, bytes).unwrap(),
                None => std::fs::remove_file(&memory).unwrap(),
            }
        };
        bench.world.restart(forget).await;
        bench.all_signed().await;
        let lose = |data: &Path| {
            forget(data);
            std::fs::remove_file(&file).unwrap();
        };
        bench.world.restart(lose).await;
        bench.nothing_is_left("unknown").await;
    }
}

/// With the real program: SIGHUP reads the keys again.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_file_is_deleted_proves_nothing_after_a_hangup() {
    let dir = tempfile::tempdir().unwrap();
    let ca = crate::world::Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let (lost, kept) = (Key::new(dir.path(), "lost"), Key::new(dir.path(), "kept"));
    let keys = data.join("state/keys");
    std::fs::create_dir_all(&keys).unwrap();
    for (name, key) in [("lost.gpg", &lost), ("kept.gpg", &kept)] {
        std::fs::write(keys.join(name), key.exported()).unwrap();
    }
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let client = daemon.client().await;
    let origins = [Origin::tls(&ca, "127.0.0.1").await, Origin::tls(&ca, "127.0.0.1").await];
    for (origin, key) in origins.iter().zip([&lost, &kept]) {
        Archive::new("one", 10).put(origin, key);
        for path in [RELEASE, INDEX, DEB] {
            client.get(&origin.url(path)).send().await.complete();
        }
    }
    let proof =
        async |origin: &Origin| client.get(&origin.url(DEB)).send().await.cache_status().to_owned();
    assert!(proof(&origins[0]).await.contains("signed"), "the control");
    std::fs::remove_file(keys.join("lost.gpg")).unwrap();
    assert!(proof(&origins[0]).await.contains("signed"), "the control: not yet");
    signal(daemon.id(), "HUP").await;
    eventually("it is lowered", || async { !proof(&origins[0]).await.contains("signed") }).await;
    assert!(proof(&origins[1]).await.contains("signed"));
}

/// A key is added or removed while a new Release waits for the lists that it names.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_keys_meanwhile_costs_a_release_only_its_own_signer() {
    for takes in [false, true] {
        let world = World::new().await;
        let [signer, other] = ["signer", "other"].map(|name| Key::new(world.dir(), name));
        add(&world, &signer).await;
        let (archive, gate) = (Archive::new("one", 10), Gate::closed());
        archive.put(&world.origin, &signer);
        let held = Page::new(archive.packages.clone()).fault(Fault::Hold(0, gate.clone()));
        world.origin.put(INDEX, held);
        let url = world.origin.url(RELEASE);
        let reading = world.get(&url);
        let changing = async {
            eventually("the list is asked for", || async { world.origin.gets(INDEX) > 0 }).await;
            add(&world, &other).await;
            if takes {
                command(&world, &["keys", "rm", &signer.fingerprint()]).await;
            }
            gate.open();
        };
        let (got, ()) = tokio::join!(reading, changing);
        got.complete();
        let kept = proofs(&world, &world.origin).await;
        let is_signed = kept.iter().any(|(path, proof)| path == RELEASE && proof == "signed");
        assert_eq!(is_signed, !takes, "{kept:?}");
        let count = kept.iter().filter(|(_, proof)| proof == "signed").count();
        assert_eq!(count, if takes { 0 } else { 2 }, "{kept:?}");
    }
}

/// What one credential sees of an archive binds no other client, so it binds the archive to no signer.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_key_proved_for_one_reader_is_proven_no_more() {
    let mut world = World::new().await;
    let key = Key::new(world.dir(), "lost");
    add(&world, &key).await;
    Archive::new("one", 10).put(&world.origin, &key);
    let url = world.origin.url(RELEASE);
    let read = async |world: &World| {
        let ask = world.client.get(&url).header("authorization", "Bearer x");
        ask.send().await.complete().cache_status().to_owned()
    };
    let signed = async |world: &World| {
        let kept = proofs(world, &world.origin).await;
        kept.iter().filter(|(_, proof)| proof.contains("signed")).count()
    };
    read(&world).await;
    world.restart(|_| {}).await;
    assert!(
        signed(&world).await > 0 && read(&world).await.contains("signed+private"),
        "the control"
    );
    world.restart(|data| std::fs::remove_dir_all(data.join("state/keys")).unwrap()).await;
    assert_eq!(signed(&world).await, 0);
    assert!(!read(&world).await.contains("signed"));
}
