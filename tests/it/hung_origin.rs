//! Issue 17, faults, row 1: a hung origin does not delay a client for which there is a stored copy. Each test waits for an event
//! and asserts no duration: where an answer must come soon, every longer wait is configured far beyond a test's limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::StatusCode;

use crate::generations::{SUITE, State};
use crate::signed::Key;
use crate::world::archive::{plain_wheel, put_simple, simple};
use crate::world::origin::Asked;
use crate::world::{Gate, Got, Mood, Page, World, eventually};

const DAY: Duration = Duration::from_hours(24);

/// Far beyond a test's limit.
const FOR_EVER: Duration = Duration::from_mins(10);

/// A larder that waits for `patience` if there is a copy, and practically for ever if there is none.
async fn patient_for(patience: Duration) -> World {
    World::with(|config| {
        config.upstream.patience = patience;
        config.upstream.header_timeout = FOR_EVER;
        config.upstream.connect_timeout = FOR_EVER;
    })
    .await
}

async fn impatient() -> World {
    patient_for(Duration::from_millis(100)).await
}

fn reload(world: &World, url: &str) -> impl Future<Output = Got> + use<> {
    world.client.get(url).header("cache-control", "max-age=0").send()
}

fn is_stale(got: &Got) -> bool {
    got.is_complete() && got.cache_status().contains("stale")
}

/// How many copies were given because a client had waited, and because the origin was known to be down.
pub(crate) async fn stood_in(world: &World) -> (u32, u32) {
    let text = world.proxy.own("/-/metrics").await;
    let count = |why: &str| {
        let name = format!("larder_stood_in_total{{why=\"{why}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |n| n.parse().unwrap())
    };
    (count("patience"), count("down"))
}

/// Whether the one origin of a test is known to be down.
async fn down(world: &World) -> bool {
    world.proxy.metric("larder_origins_down", "").await > 0.5
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_once_for_a_hung_origin_and_nobody_does_again() {
    let world = impatient().await;
    let index = put_simple(&world.origin, "/", "gear", &[]);
    let body = world.fetch(&index).await.body;
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Hanging);
    let got = reload(&world, &index).await;
    assert!(is_stale(&got) && got.body == body, "{got:?}");
    assert_eq!(stood_in(&world).await, (1, 0));
    assert!(down(&world).await);
    // An origin stays down for as long as it does not answer, however long that is.
    for (number, later) in [0, 30, 70, 3600, 86_400].into_iter().enumerate() {
        world.proxy.clock.advance(Duration::from_secs(later));
        assert!(is_stale(&reload(&world, &index).await), "{later} s later");
        let down = u32::try_from(number).unwrap() + 1;
        assert_eq!(stood_in(&world).await, (1, down), "{later} s later");
    }
    // The control: an answer ends it, and the next client waits again.
    world.origin.mood(Mood::Well);
    world.proxy.clock.advance(DAY);
    let well = reload(&world, &index).await;
    assert!(well.is_complete() && !is_stale(&well), "{}", well.cache_status());
    assert!(!down(&world).await);
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Hanging);
    assert!(is_stale(&reload(&world, &index).await));
    assert_eq!(stood_in(&world).await, (2, 5));
}

/// The same if the origin first answers that it fails, and then does not answer at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_a_second_for_an_origin_that_is_known_to_fail() {
    let world = patient_for(FOR_EVER).await;
    let index = put_simple(&world.origin, "/", "gear", &[]);
    world.fetch(&index).await;
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Failing(503));
    assert!(is_stale(&reload(&world, &index).await));
    world.origin.mood(Mood::Hanging);
    for _ in 0..3 {
        world.proxy.clock.advance(Duration::from_mins(2));
        assert!(is_stale(&reload(&world, &index).await));
    }
}

/// The control for all tests: without a copy there is nothing to give.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_copy_an_answer_is_waited_for() {
    let world = impatient().await;
    let index = put_simple(&world.origin, "/", "gear", &[]);
    world.fetch(&index).await;
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Hanging);
    assert!(is_stale(&reload(&world, &index).await), "it is known to be down");
    world.origin.mood(Mood::Well);
    let gate = Gate::closed();
    let (late, page) = (gate.clone(), simple(&[]));
    let missing = world.origin.script("/simple/missing/", move |request| {
        let (late, page) = (late.clone(), page.clone());
        async move {
            late.passed().await;
            page.clone().answer(request.method(), request.headers())
        }
    });
    let asking = tokio::spawn(world.client.get(&missing).send());
    eventually("it is asked", || async { world.origin.gets("/simple/missing/") == 1 }).await;
    // Long enough: a client with a copy would have been given it after a tenth of a second.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!asking.is_finished());
    gate.open();
    assert_eq!(asking.await.unwrap().status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_question_goes_on_and_its_answer_is_kept() {
    let world = impatient().await;
    let index = put_simple(&world.origin, "/", "gear", &[]);
    let old = world.fetch(&index).await.body;
    world.proxy.clock.advance(DAY);
    let gate = Gate::closed();
    let new = simple(&[("../../files/gear-1.0.tar.gz", b"new")]);
    let (late, page) = (gate.clone(), new.clone());
    world.origin.script("/simple/gear/", move |request| {
        let (late, mut page) = (late.clone(), page.clone());
        async move {
            late.passed().await;
            page.answer(request.method(), request.headers())
        }
    });
    assert_eq!(reload(&world, &index).await.body, old);
    gate.open();
    eventually("the answer is kept", || async {
        let stored = world.client.get(&index).header("cache-control", "only-if-cached");
        stored.send().await.body == new.body
    })
    .await;
    assert_eq!(world.origin.gets("/simple/gear/"), 2);
    assert!(!down(&world).await);
}

/// Many clients, each with a stored copy, cause one question at a time to an origin that is down.
#[tokio::test(flavor = "multi_thread")]
async fn one_question_at_a_time_is_asked_of_an_origin_that_is_down() {
    let world = patient_for(FOR_EVER).await;
    let names: Vec<String> = (0..8).map(|number| format!("gear{number}")).collect();
    let indexes: Vec<String> =
        names.iter().map(|name| put_simple(&world.origin, "/", name, &[])).collect();
    for index in &indexes {
        world.fetch(index).await;
    }
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Failing(503));
    assert!(is_stale(&reload(&world, &indexes[0]).await));
    let before = world.origin.total();
    world.origin.mood(Mood::Hanging);
    let crowd = || async {
        let asking = indexes.iter().chain(&indexes).chain(&indexes);
        for got in join_all(asking.map(|index| reload(&world, index))).await {
            assert!(is_stale(&got), "{got:?}");
        }
    };
    crowd().await;
    assert_eq!(world.origin.total(), before + 1);
    crowd().await;
    assert_eq!(world.origin.total(), before + 1);
    // The first question has timed out, and another replaces it.
    world.proxy.clock.advance(Duration::from_mins(2));
    crowd().await;
    assert_eq!(world.origin.total(), before + 2);
    // The control: every client's request is sent to an origin that works.
    world.origin.mood(Mood::Well);
    world.proxy.clock.advance(Duration::from_mins(2));
    eventually("it is well", || async { !is_stale(&reload(&world, &indexes[1]).await) }).await;
    let before = world.origin.total();
    world.proxy.clock.advance(Duration::from_mins(2));
    for index in &indexes {
        assert!(!is_stale(&reload(&world, index).await));
    }
    assert_eq!(world.origin.total(), before + indexes.len());
}

/// An origin that answers except at one URL: its answers elsewhere do not make clients wait there again.
#[tokio::test(flavor = "multi_thread")]
async fn one_url_that_hangs_is_waited_for_once_although_others_answer() {
    let world = impatient().await;
    let (hung, well) = ("/simple/gear/", put_simple(&world.origin, "/", "well", &[]));
    let index = put_simple(&world.origin, "/", "gear", &[]);
    for url in [&index, &well] {
        world.fetch(url).await;
    }
    world.origin.script(hung, |_| std::future::pending());
    world.proxy.clock.advance(DAY);
    assert!(is_stale(&reload(&world, &index).await));
    assert_eq!(stood_in(&world).await.0, 1, "the control: it was waited for");
    for _ in 0..3 {
        world.proxy.clock.advance(Duration::from_mins(10));
        eventually("the rest is well", || async { !is_stale(&reload(&world, &well).await) }).await;
        // On a slow machine the others may have been waited for as well.
        let before = stood_in(&world).await.0;
        assert!(is_stale(&reload(&world, &index).await));
        assert_eq!(stood_in(&world).await.0, before);
    }
    world.origin.unscript(hung);
    world.proxy.clock.advance(Duration::from_mins(10));
    assert!(!is_stale(&reload(&world, &index).await));
}

/// Every kind of target, in every kind of request.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_copy_is_given() {
    let world = impatient().await;
    let wheel = Bytes::from_static(b"wheel");
    put_simple(&world.origin, "/", "gear", &[]);
    world.origin.put("/plain/file.bin", Page::new("plain").etag("a").fresh(1));
    world.origin.put(&plain_wheel("gear"), Page::new(wheel).etag("w"));
    world.origin.put("/gear", Page::new(r#"{"name":"gear","versions":{}}"#).etag("p"));
    let paths = ["/simple/gear/", "/plain/file.bin", "/files/gear-1.0-py3-none-any.whl", "/gear"];
    let mut before = Vec::new();
    for path in paths {
        before.push(world.fetch(&world.origin.url(path)).await.body);
    }
    world.proxy.clock.advance(DAY + DAY);
    world.origin.mood(Mood::Hanging);
    for (path, body) in paths.into_iter().zip(before) {
        let url = world.origin.url(path);
        for ask in [
            world.client.get(&url),
            world.client.get(&url).h2(),
            world.client.get(&url).header("cache-control", "no-cache"),
            world.client.get(&url).header("x-unknown", "1"),
        ] {
            let got = ask.send().await;
            assert!(is_stale(&got) && got.body == body, "{path}: {got:?}");
        }
        let head = world.client.head(&url).send().await;
        assert!(is_stale(&head), "{path}: {head:?}");
        let part = world.client.get(&url).range("0-1").send().await;
        assert!(is_stale(&part) && part.body == body[..2], "{path}: {part:?}");
        let mirrored = format!("/https/{}{path}", world.origin.authority());
        let text = world.proxy.own(&mirrored).await;
        let first = String::from_utf8_lossy(&body[..2]).into_owned();
        assert!(text.contains(&first) && !text.contains("larder:"), "{path}: {text}");
    }
}

/// A copy that must not be given without revalidation is not given because the origin hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_may_not_be_given_stale_is_not() {
    let world = World::with(|config| {
        config.upstream.patience = Duration::from_millis(50);
        config.upstream.header_timeout = Duration::from_secs(2);
    })
    .await;
    let page = Page::new("x").etag("a").header("cache-control", "max-age=1, must-revalidate");
    let url = world.origin.put("/plain/strict.bin", page);
    let old = put_simple(&world.origin, "/", "old", &[]);
    world.fetch(&url).await;
    world.fetch(&old).await;
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Hanging);
    let got = world.get(&url).await;
    assert_eq!(got.status, StatusCode::GATEWAY_TIMEOUT, "{got:?}");
    assert!(is_stale(&reload(&world, &old).await), "the control: this one may");
    world.proxy.clock.advance(8 * DAY);
    let late = reload(&world, &old).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT, "older than `stale.unsigned`: {late:?}");
}

/// The wait is never less than four times what this origin usually takes.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_always_slow_is_waited_for() {
    for usually in [Duration::from_secs(30), Duration::ZERO] {
        let world = impatient().await;
        let page = simple(&[]);
        let (clock, sent) = (world.proxy.clock.clone(), page.clone());
        let index = world.origin.script("/simple/gear/", move |request| {
            clock.advance(usually);
            let answer = sent.clone().answer(request.method(), request.headers());
            async move { answer }
        });
        world.fetch(&index).await;
        world.proxy.clock.advance(DAY);
        let gate = Gate::closed();
        let late = gate.clone();
        world.origin.script("/simple/gear/", move |request| {
            let (late, mut page) = (late.clone(), page.clone());
            async move {
                late.passed().await;
                page.answer(request.method(), request.headers())
            }
        });
        let asking = tokio::spawn(reload(&world, &index));
        if usually.is_zero() {
            assert!(is_stale(&asking.await.unwrap()), "the control: a quick one is not");
            continue;
        }
        eventually("it is asked", || async { world.origin.gets("/simple/gear/") == 2 }).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!asking.is_finished(), "it took 30 s before, and four times that is not over");
        gate.open();
        let got = asking.await.unwrap();
        assert!(got.is_complete() && !is_stale(&got), "{}", got.cache_status());
    }
}

/// Metadata and bulk downloads have separate health: files that hang do not affect indexes.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_hang_do_not_make_indexes_stale() {
    let world = impatient().await;
    let index = put_simple(&world.origin, "/", "gear", &[]);
    let file = world.origin.put(&plain_wheel("gear"), Page::new("wheel").etag("w"));
    world.fetch(&index).await;
    world.fetch(&file).await;
    world.proxy.clock.advance(DAY + DAY);
    world.origin.script(&plain_wheel("gear"), |_| std::future::pending());
    assert!(is_stale(&reload(&world, &file).await));
    let got = reload(&world, &index).await;
    assert!(got.is_complete() && !is_stale(&got), "{}", got.cache_status());
    assert_eq!(stood_in(&world).await, (1, 0));
}

/// A new signed index whose members hang: the stored snapshot is given, whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_completed_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "Gears");
    let world = World::with(|config| {
        let keys = config.data.join("state/keys");
        std::fs::create_dir_all(&keys).unwrap();
        std::fs::copy(&key.public, keys.join("test.gpg")).unwrap();
        config.upstream.patience = Duration::from_millis(300);
        config.upstream.header_timeout = FOR_EVER;
    })
    .await;
    let names = ["main/binary-amd64/Packages"];
    let first = State::new(&key, 1, false, &names);
    first.put(&world.origin);
    let (release, member) =
        (world.origin.url(&format!("{SUITE}/InRelease")), format!("{SUITE}/{}", names[0]));
    let read = world.fetch(&release).await.body;
    world.fetch(&world.origin.url(&member)).await;
    world.proxy.clock.advance(Duration::from_mins(10));
    let second = State::new(&key, 2, false, &names);
    second.put(&world.origin);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    world.origin.script(&member, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    for _ in 0..3 {
        world.proxy.clock.advance(Duration::from_mins(1));
        let got = reload(&world, &release).await;
        assert!(got.body == read && is_stale(&got), "{got:?}");
        let old = world.get(&world.origin.url(&member)).await;
        assert_eq!(old.body, first.bytes(names[0]), "{old:?}");
    }
    assert!(asked.load(Ordering::SeqCst) > 0, "it was asked for the new one");
    let (waited, _) = stood_in(&world).await;
    assert_eq!(waited, 1, "nobody waited for the same again");
}

/// A private entry: a client that had a right lately is given the copy and waits no longer than others, and no other client is
/// given it.
#[tokio::test(flavor = "multi_thread")]
async fn who_had_a_right_lately_is_given_its_copy() {
    let world = World::with(|config| {
        config.upstream.patience = Duration::from_millis(100);
        config.upstream.header_timeout = Duration::from_secs(2);
    })
    .await;
    let path = plain_wheel("gear");
    let url = world.origin.script(&path, |request| {
        let shown = request.headers().get("authorization").is_some();
        let mut page = if shown { Page::new("wheel").etag("w") } else { Page::status(401) };
        async move { page.answer(request.method(), request.headers()) }
    });
    let ask = |who: &str| world.client.get(&url).header("authorization", who).send();
    assert_eq!(ask("Bearer one").await.complete().body, "wheel");
    assert!(ask("Bearer one").await.is_hit(), "the control: it is stored");
    // Longer than a right is valid, and less than it is remembered.
    world.proxy.clock.advance(Duration::from_mins(10));
    world.origin.mood(Mood::Hanging);
    for _ in 0..3 {
        let got = ask("Bearer one").await;
        assert!(is_stale(&got) && got.body == "wheel", "{got:?}");
    }
    // A client without a right has no copy: it waits for the origin's answer.
    let stranger = tokio::spawn(ask("Bearer other"));
    eventually("the origin is asked", || async {
        let shown = |asked: &Asked| asked.text("authorization") == Some("Bearer other");
        world.origin.asked(&path).iter().any(shown)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!stranger.is_finished());
    stranger.abort();
}
