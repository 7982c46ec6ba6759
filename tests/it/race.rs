//! The race: an archive is published again and again, file by file, while real `apt-get update` reads it. Through larder no
//! client sees an error; without it, clients do.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::generations::{SUITE, State};
use crate::signed::{Key, apt_home, complaint, world_trusting};
use crate::world::tools::{client, forget_proxies, run, trusted_file};
use crate::world::{Origin, Page, World};

const MEMBERS: [&str; 2] = ["main/binary-all/Packages", "main/binary-amd64/Packages"];

/// The number of clients, each with a state of its own, and how many run at a time.
const CLIENTS: usize = 20;
const AT_ONCE: usize = 8;

/// How long each half-published state lasts.
const PAUSE: Duration = Duration::from_millis(30);

/// Publishes one state after another, a file at a time, and keeps nothing of the one before, not even files that clients may
/// request by digest. The order of the files changes each time.
struct Publisher {
    key: Key,
    by_hash: bool,
    number: u32,
    named: HashMap<&'static str, String>,
}

impl Publisher {
    fn new(dir: &Path, by_hash: bool) -> Self {
        Self { key: Key::new(dir, "archive"), by_hash, number: 0, named: HashMap::new() }
    }

    fn next(&mut self) -> State {
        self.number += 1;
        State::new(&self.key, self.number, self.by_hash, &MEMBERS)
    }

    fn member(&mut self, origin: &Origin, state: &State, name: &'static str) {
        state.put_member(origin, name);
        if let Some(old) = self.named.insert(name, state.by_hash(name)) {
            origin.put(&format!("{SUITE}/{old}"), Page::status(404));
        }
    }

    fn whole(&mut self, origin: &Origin) {
        let state = self.next();
        state.put_release(origin);
        for name in MEMBERS {
            self.member(origin, &state, name);
        }
    }

    async fn one_by_one(&mut self, origin: &Origin) {
        let state = self.next();
        let release_at = self.number % 3;
        for (place, name) in (0..).zip(MEMBERS) {
            if place == release_at {
                state.put_release(origin);
                tokio::time::sleep(PAUSE).await;
            }
            self.member(origin, &state, name);
            tokio::time::sleep(PAUSE).await;
        }
        if release_at == 2 {
            state.put_release(origin);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One client: `apt-get update` with lists of its own.
struct Client {
    home: TempDir,
    ca: String,
    through: bool,
}

impl Client {
    /// `ca`: the CA that larder's clients trust; clients without larder trust the origin's.
    fn new(world: &World, origin: &Origin, key: &Key, ca: Option<&str>) -> Self {
        let trusted = ca.unwrap_or_else(|| world.ca.file().to_str().unwrap());
        let home = apt_home(world, origin, key, trusted);
        Self { home, ca: trusted.to_owned(), through: ca.is_some() }
    }

    async fn update(&self, world: &World) -> Result<(), String> {
        let mut command = if self.through {
            client(world, "apt-get", &self.ca)
        } else {
            let mut command = Command::new("apt-get");
            forget_proxies(&mut command);
            command
        };
        command.env("APT_CONFIG", self.home.path().join("apt.conf")).args(["-q", "update"]);
        complaint(&run(command).await)
    }
}

/// The result of a race.
#[derive(Debug, Default)]
struct Count {
    updates: usize,
    errors: Vec<String>,
}

/// Twenty clients read while the archive is published, until each has done `rounds` updates.
async fn race(
    world: &Arc<World>,
    origin: &Arc<Origin>,
    publisher: &mut Publisher,
    rounds: usize,
    through: bool,
) -> Count {
    let over = Arc::new(AtomicBool::new(false));
    let left = Arc::new(AtomicUsize::new(CLIENTS));
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let ca = trusted_file(world).await;
    let ca = through.then_some(ca.as_str());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let one = Client::new(world, origin, &publisher.key, ca);
        let (world, turns) = (Arc::clone(world), Arc::clone(&turns));
        let (over, left) = (Arc::clone(&over), Arc::clone(&left));
        running.spawn(async move {
            let mut count = Count::default();
            for _ in 0..rounds {
                let _turn = turns.acquire().await.unwrap();
                count.updates += 1;
                count.errors.extend(one.update(&world).await.err());
            }
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                over.store(true, Ordering::SeqCst);
            }
            count
        });
    }
    while !over.load(Ordering::SeqCst) {
        publisher.one_by_one(origin).await;
    }
    let mut all = Count::default();
    while let Some(count) = running.join_next().await {
        let count = count.unwrap();
        all.updates += count.updates;
        all.errors.extend(count.errors);
    }
    all
}

async fn arena(by_hash: bool) -> (TempDir, Publisher, Arc<World>, Arc<Origin>) {
    let dir = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(dir.path(), by_hash);
    let world = Arc::new(world_trusting(Some(&publisher.key)).await);
    let origin = Arc::new(world.another("127.0.0.1").await);
    (dir, publisher, world, origin)
}

/// Half of a state is published, and stays so until all clients have read it.
async fn held_in_between(
    world: &World,
    origin: &Origin,
    publisher: &mut Publisher,
) -> [Result<(), String>; 2] {
    let state = publisher.next();
    state.put_release(origin);
    publisher.member(origin, &state, MEMBERS[0]);
    world.proxy.clock.advance(Duration::from_secs(6));
    let ca = trusted_file(world).await;
    let mut came = [Ok(()), Ok(())];
    for (came, ca) in came.iter_mut().zip([Some(ca.as_str()), None]) {
        let one = Client::new(world, origin, &publisher.key, ca);
        *came = one.update(world).await;
    }
    publisher.member(origin, &state, MEMBERS[1]);
    came
}

async fn race_and_control(by_hash: bool) {
    let (_dir, mut publisher, world, origin) = arena(by_hash).await;
    publisher.whole(&origin);
    let ca = trusted_file(&world).await;
    let first = Client::new(&world, &origin, &publisher.key, Some(&ca));
    first.update(&world).await.unwrap();
    let without = Client::new(&world, &origin, &publisher.key, None);
    without.update(&world).await.expect("what is whole is no error without larder either");
    let [through, without] = held_in_between(&world, &origin, &mut publisher).await;
    through.unwrap();
    without.expect_err("the control: without larder this state is an error");
    let count = race(&world, &origin, &mut publisher, 2, true).await;
    assert_eq!(count.updates, 2 * CLIENTS);
    assert!(
        count.errors.is_empty(),
        "{} errors, the first: {}",
        count.errors.len(),
        count.errors[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_sees_an_archive_that_is_half_published() {
    race_and_control(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_sees_half_of_an_archive_that_keeps_indexes_under_their_digests() {
    race_and_control(true).await;
}

/// The whole race, with its control: `cargo test --test it race:: -- --ignored --nocapture`. It takes a minute or two.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes minutes"]
#[expect(clippy::print_stderr, reason = "the counts are what it is for")]
async fn the_race_of_a_minute() {
    for by_hash in [false, true] {
        let (_dir, mut publisher, world, origin) = arena(by_hash).await;
        publisher.whole(&origin);
        let through = race(&world, &origin, &mut publisher, 12, true).await;
        let without = race(&world, &origin, &mut publisher, 12, false).await;
        eprintln!(
            "by-hash {by_hash}: {} updates through larder, {} with an error; {} without it, {} with an error; {} states",
            through.updates,
            through.errors.len(),
            without.updates,
            without.errors.len(),
            publisher.number,
        );
        assert!(through.errors.is_empty(), "{}", through.errors[0]);
        assert!(!without.errors.is_empty(), "the control saw nothing");
    }
}
