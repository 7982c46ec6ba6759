//! P8 with the real program: it is killed at every named failpoint, and at random times. Afterwards nothing is wrong on disk, no
//! wrong byte is served, and larder works as before.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use hyper::Method;

use crate::generations::{PACKAGES, SUITE, State};
use crate::signed::Key;
use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple, simple};
use crate::world::binary::{Daemon, told};
use crate::world::tools::text;
use crate::world::{Bench, Fault, Gate, Page, eventually, holding, noise};

/// `larder verify` finds nothing wrong.
async fn assert_sound(bench: &Bench) {
    let output = bench.say(&["verify"]).await;
    assert!(output.status.success(), "{}", text(&output));
}

/// The failpoints, as the source names them.
fn failpoints() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in crate::world::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        if file.extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(file).unwrap();
        for call in text.split("failpoint::hit(\"").skip(1) {
            let name = call.split('"').next().unwrap();
            if name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_fill_and_commit_leaves_nothing_wrong() {
    let names = failpoints();
    assert!(names.len() >= 8, "{names:?}");
    let mut struck = BTreeSet::new();
    for name in &names {
        let bench = Bench::new().await;
        let body = noise(1, 1_000_000);
        let path = by_hash(&body);
        let url = bench.origin.put(&path, Page::new(body.clone()));
        let index = put_simple(&bench.origin, "/", "demo", &[("../../files/a-1.0.tar.gz", b"a")]);
        {
            let mut daemon = bench.start(&[("LARDER_FAILPOINT", name)]).await;
            let client = daemon.client().await;
            for url in [&url, &index, &url] {
                // Whatever is given contains no wrong byte.
                let got = client.get(url).send().await;
                assert!(
                    *url == index
                        || got.body == body[..got.body.len()]
                        || got.status.is_server_error(),
                    "{name}"
                );
            }
            // Some failpoints are only reached when something is removed.
            for file in holding(&bench.data(), &body[1000..1032]) {
                std::fs::remove_file(file).unwrap();
            }
            client.get(&url).send().await;
            let _said = bench.say(&["rm", &url]).await;
            if !daemon.is_running() {
                struck.insert(name.clone());
            }
            daemon.kill();
        }
        assert_sound(&bench).await;
        let daemon = bench.start(&[]).await;
        let client = daemon.client().await;
        for _ in 0..2 {
            assert_eq!(client.get(&url).send().await.complete().body, body, "{name}");
        }
        client.get(&index).send().await.complete();
        let asked = bench.origin.gets(&path);
        assert!(client.get(&url).send().await.is_hit(), "{name}: not kept");
        assert_eq!(bench.origin.gets(&path), asked);
    }
    // A failpoint that is never reached would make its round pass without a kill.
    let missed: Vec<_> = names.difference(&struck).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// Promises P3 and P8: an index is stored before its claims are. Killed in between, larder gives the index after the next start,
/// and holds the files that it names to it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_stored_without_its_claims_binds_its_files() {
    let (right, wheels) = (noise(7, 300_000), ["demo", "demo-two"].map(plain_wheel));
    let links = wheels.each_ref().map(|wheel| format!("../..{wheel}"));
    let named = links.each_ref().map(|link| (link.as_str(), right.as_ref()));
    let page = || simple(&named).etag("v1").fresh(3600);
    for (kill, down) in [(false, false), (true, false), (true, true)] {
        let bench = Bench::new().await;
        // That the root is one of Python files is known from before.
        let other = put_simple(&bench.origin, "/", "other", &[("../../files/o-1.0.tar.gz", b"o")]);
        let mut daemon = bench.start(&[]).await;
        daemon.client().await.get(&other).send().await.complete();
        assert_eq!(daemon.terminate().await, Some(0));
        let index = bench.origin.put("/simple/demo/", page());
        let failpoint = [("LARDER_FAILPOINT", "store.before-claims")];
        let mut daemon = bench.start(if kill { &failpoint } else { &[] }).await;
        let got = daemon.client().await.get(&index).send().await;
        assert_eq!(got.is_complete(), !kill);
        daemon.kill();
        let daemon = bench.start(&[]).await;
        let client = daemon.client().await;
        if down {
            bench.origin.put("/simple/demo/", Page::status(503));
        }
        let got = client.get(&index).send().await.complete();
        assert!(got.is_hit() && got.body == page().body, "{}", got.cache_status());
        let [evil, good] = &wheels;
        let evil = bench.origin.put(evil, Page::new(flipped(&right)));
        let got = client.get(&evil).send().await;
        assert!(!got.is_complete(), "kill: {kill}, down: {down}: {}", got.cache_status());
        let good = bench.origin.put(good, Page::new(right.clone()));
        assert_eq!(client.get(&good).send().await.complete().body, right, "the control");
    }
}

/// Promise P8: the same for an archive. A client that is given the new Release is given its members, and no mixture.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_stored_without_its_claims_has_its_own_members() {
    let bench = Bench::new().await;
    let key = Key::new(bench.dir.path(), "archive");
    let keys = bench.data().join("state/keys");
    std::fs::create_dir_all(&keys).unwrap();
    std::fs::copy(&key.public, keys.join("test.gpg")).unwrap();
    let (one, two) =
        (State::new(&key, 1, false, &[PACKAGES]), State::new(&key, 2, false, &[PACKAGES]));
    let (release, packages) = (format!("{SUITE}/InRelease"), format!("{SUITE}/{PACKAGES}"));
    let (release, packages) = (bench.origin.url(&release), bench.origin.url(&packages));
    one.put(&bench.origin);
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    assert_eq!(client.get(&release).send().await.complete().body, one.release);
    assert_eq!(client.get(&packages).send().await.complete().body, one.bytes(PACKAGES));
    assert_eq!(daemon.terminate().await, Some(0));
    two.put(&bench.origin);
    let mut daemon = bench.start(&[("LARDER_FAILPOINT", "store.before-claims")]).await;
    let client = daemon.client().await;
    // So that the stored Release is not given for the seconds in which it would be.
    let upload = bench.origin.put("/upload", Page::new("kept"));
    client.ask(Method::POST, &upload).send().await.complete();
    let got = client.get(&release).header("cache-control", "max-age=0").send().await;
    assert!(!got.is_complete(), "{}", got.cache_status());
    daemon.kill();
    bench.origin.stop();
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    let got = client.get(&release).header("cache-control", "max-age=0").send().await.complete();
    let given = if got.body == two.release { &two } else { &one };
    assert_eq!(got.body, given.release);
    let got = client.get(&packages).header("cache-control", "max-age=0").send().await.complete();
    assert_eq!(got.body, given.bytes(PACKAGES), "{}", got.cache_status());
}

/// Few kills by default; `LARDER_KILLS` sets the number.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_leave_nothing_wrong() {
    let kills: u32 = std::env::var("LARDER_KILLS").map_or(20, |text| text.parse().unwrap());
    let bench = Bench::new().await;
    let bodies: Vec<_> = (0..30)
        .map(|number| noise(number, 200_000 + 50_000 * usize::try_from(number).unwrap()))
        .collect();
    let urls: Vec<_> = bodies
        .iter()
        .map(|body| bench.origin.put(&by_hash(body), Page::new(body.clone())))
        .collect();
    let total: u64 = bodies.iter().map(|body| body.len() as u64).sum();
    for round in 0..kills {
        let mut daemon = bench.start(&[]).await;
        let client = daemon.client().await;
        // Killed after a random share of all bytes, while eight downloads are under way.
        let mut until = random() % total;
        let mut under_way = tokio::task::JoinSet::new();
        for (url, body) in urls.iter().cloned().zip(bodies.iter().cloned()) {
            let client = client.clone();
            under_way.spawn(async move {
                let got = client.get(&url).send().await;
                assert!(
                    !got.status.is_success() || got.body == body[..got.body.len()],
                    "a wrong byte"
                );
                got.body.len() as u64
            });
            if under_way.len() >= 8 {
                let came = under_way.join_next().await.unwrap().unwrap();
                until = until.saturating_sub(came);
            }
            if until == 0 {
                break;
            }
        }
        daemon.kill();
        while let Some(ended) = under_way.join_next().await {
            ended.unwrap();
        }
        if round % 5 == 4 || round + 1 == kills {
            assert_sound(&bench).await;
        }
    }
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    for (url, body) in urls.iter().zip(&bodies) {
        assert_eq!(client.get(url).send().await.complete().body, body);
    }
}

/// A number that differs from run to run; a failure can be understood without it.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_is_wrong() {
    let bench = Bench::new().await;
    let body = noise(3, 500_000);
    let url = bench.origin.put(&by_hash(&body), Page::new(body.clone()));
    let mut daemon = bench.start(&[]).await;
    daemon.client().await.get(&url).send().await.complete();
    daemon.kill();
    assert_sound(&bench).await;
    let found = holding(&bench.data(), &body[1000..1032]);
    std::fs::write(&found[0], flipped(&body)).unwrap();
    let output = bench.say(&["verify"]).await;
    assert!(!output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_running_transfers_end() {
    let bench = Bench::new().await;
    let (body, gate) = (noise(4, 1_000_000), Gate::closed());
    let url =
        bench.origin.put("/x", Page::new(body.clone()).fault(Fault::Hold(500_000, gate.clone())));
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    let mut opened = client.get(&url).open().await.unwrap();
    assert!(opened.read(100_000).await);
    crate::world::tools::signal(daemon.id(), "TERM").await;
    eventually("no new connection is taken", || async {
        tokio::net::TcpStream::connect(daemon.address).await.is_err()
    })
    .await;
    gate.open();
    assert!(opened.equals(&body).await);
    assert_eq!(daemon.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_program_on_the_directory_says_who_holds_it() {
    let bench = Bench::new().await;
    let first = bench.start(&[]).await;
    let error = Daemon::try_start(&bench.ca, &bench.data(), &[]).await.err().expect("it started");
    assert!(error.contains(&first.id().to_string()), "{error}");
}

/// The debug log of docker-registry-proxy printed tokens.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged() {
    let bench = Bench::new().await;
    let mut daemon = bench.start(&[("LARDER_LOG_FILTER", "trace")]).await;
    let client = daemon.client().await;
    let signed = bench.origin.put("/blob?X-Amz-Signature=s3cr3t-signature&n=1", Page::new("x"));
    let token = bench.origin.put("/t/s3cr3t-token/main/x.conda", Page::new("x"));
    let seen = bench.origin.put("/seen-in-the-log", Page::new("x"));
    for url in [&signed, &token, &seen] {
        let ask = client
            .get(url)
            .header("authorization", "Bearer s3cr3t-bearer")
            .header("cookie", "a=s3cr3t-cookie");
        ask.header("x-vault-token", "s3cr3t-vault").send().await.complete();
        client.get(url).send().await.complete();
    }
    daemon.logged("/seen-in-the-log").await;
    assert_eq!(daemon.terminate().await, Some(0));
    let log = daemon.log();
    let leaks: Vec<&str> = log.lines().filter(|line| line.contains("s3cr3t")).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert!(holding(&bench.data(), b"s3cr3t").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_the_story_of_a_rejection() {
    let bench = Bench::new().await;
    let right = noise(5, 1_000_000);
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    let index = put_simple(
        &bench.origin,
        "/",
        "demo",
        &[("../../files/demo-1.0-py3-none-any.whl", &right)],
    );
    client.get(&index).send().await.complete();
    let url = bench.origin.put("/files/demo-1.0-py3-none-any.whl", Page::new(flipped(&right)));
    assert!(!client.get(&url).send().await.is_complete());
    let told = told(&bench.ca, &bench.data(), &["why", &url], "refused   ").await;
    let hex = |bytes: &[u8]| crate::world::archive::hex(larder::digest::Algorithm::Sha256, bytes);
    for part in [&url, &index, &hex(&right), &hex(&flipped(&right))] {
        assert!(told.contains(part.as_str()), "{part} is missing in:\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_is_gone_from_disk_and_fetched_again() {
    let bench = Bench::new().await;
    let body = noise(6, 500_000);
    let path = by_hash(&body);
    let url = bench.origin.put(&path, Page::new(body.clone()));
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    for running in [true, false] {
        client.get(&url).send().await.complete();
        assert!(!holding(&bench.data(), &body[1000..1032]).is_empty());
        if !running {
            daemon.kill();
        }
        let output = bench.say(&["rm", &url]).await;
        assert!(output.status.success(), "{}", text(&output));
        eventually("the body is gone", || async {
            holding(&bench.data(), &body[1000..1032]).is_empty()
        })
        .await;
    }
    assert_eq!(bench.origin.gets(&path), 2);
}
