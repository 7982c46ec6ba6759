//! A registry that answers "too many requests", then fails, then is gone: stored files are still served, others fail with the
//! registry's own answer, and no client suffers from another's quota (pitfall 42).

use std::time::Duration;

use hyper::StatusCode;
use larder::digest::Algorithm;

use crate::world::archive::{by_hash, hex, put_simple, simple};
use crate::world::{Mood, Page, World, noise};

/// A day, in seconds: the `Retry-After` of a registry for a client over its quota.
const DAY: &str = "86400";

/// A 429 with a day's wait, for every request.
fn enough() -> Page {
    let mut page = Page::status(429).header("retry-after", DAY);
    page.body = "you asked too much".into();
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_at_its_limit_stops_no_build_of_what_is_stored() {
    let world = World::new().await;
    let (kept, never) = (noise(1, 300_000), noise(2, 300_000));
    let artifact = world.origin.put(&by_hash(&kept), Page::new(kept.clone()));
    let index = put_simple(&world.origin, "/", "demo", &[("../../files/a.whl", &kept)]);
    let missing = world.origin.url(&by_hash(&never));
    world.fetch(&artifact).await;
    world.fetch(&index).await;
    let (kept_path, index_path, never_path) = (by_hash(&kept), "/simple/demo/", by_hash(&never));
    for round in ["429", "503", "nothing"] {
        match round {
            "429" => {
                for path in [kept_path.as_str(), index_path, &never_path] {
                    world.origin.put(path, enough());
                }
            }
            "503" => world.origin.mood(Mood::Failing(503)),
            _ => {
                world.origin.stop();
                world.origin.cut();
            }
        }
        world.proxy.clock.advance(Duration::from_mins(2));
        let got = world.fetch(&artifact).await;
        assert!(got.is_hit() && got.body == kept, "{round}: {}", got.cache_status());
        let ask = world.client.get(&index).header("cache-control", "max-age=0");
        let got = ask.send().await.complete();
        assert_eq!(got.status, StatusCode::OK, "{round}");
        assert!(got.cache_status().contains("+stale"), "{round}: {}", got.cache_status());
        // What is not stored is tried each time, and fails with the registry's own answer.
        for _ in 0..2 {
            let asked = world.origin.gets(&never_path);
            let got = world.get(&missing).await;
            match round {
                "429" => {
                    assert_eq!(got.status, StatusCode::TOO_MANY_REQUESTS);
                    assert_eq!(
                        (got.text("retry-after"), &got.body[..]),
                        (DAY, &b"you asked too much"[..])
                    );
                }
                "503" => assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE),
                _ => {
                    assert!(got.status.is_server_error() && !got.body.is_empty(), "{}", got.status);
                }
            }
            assert!(round == "nothing" || world.origin.gets(&never_path) > asked, "{round}");
        }
    }
}

/// The control of the test before: as soon as the registry works, larder serves from it; the day's wait is not kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_days_retry_after_is_forgotten_with_the_first_good_answer() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&index).await;
    let current = || world.client.get(&index).header("cache-control", "max-age=0").send();
    world.origin.put("/simple/demo/", enough());
    world.proxy.clock.advance(Duration::from_mins(1));
    assert!(current().await.complete().cache_status().contains("+stale"));
    put_simple(&world.origin, "/", "demo", &[("../../files/new.whl", b"new")]);
    world.proxy.clock.advance(Duration::from_secs(10));
    let got = current().await.complete();
    assert!(!got.cache_status().contains("+stale"), "{}", got.cache_status());
    assert!(String::from_utf8_lossy(&got.body).contains("new.whl"));
}

/// A job sends bad requests with its own token until the registry answers 429 with a day's wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_job_that_uses_up_its_quota_hurts_nobody_else() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    let fresh = noise(3, 100_000);
    let path = by_hash(&fresh);
    let well = Page::new(fresh.clone());
    let put = |path: String, well: Page| {
        let well = std::sync::Mutex::new(well);
        world.origin.script(&path, move |request| {
            let token =
                request.headers().get("authorization").map(|value| value.as_bytes().to_owned());
            let hostile = token.is_some_and(|token| token == b"Bearer hostile");
            let mut page = if hostile { enough() } else { well.lock().unwrap().clone() };
            let answer = page.answer(request.method(), request.headers());
            async move { answer }
        })
    };
    let artifact = put(path.clone(), well);
    let nonsense = put("/simple/nonsense/".into(), Page::status(404));
    world.fetch(&index).await;
    for _ in 0..20 {
        for url in [&nonsense, &artifact] {
            let ask = world.client.get(url).header("authorization", "Bearer hostile");
            let got = ask.send().await;
            assert_eq!((got.status.as_u16(), got.text("retry-after")), (429, DAY));
        }
    }
    // No client's index is marked stale because of it, though the answer takes longer than larder waits for an origin that is
    // known to fail.
    world.origin.script("/simple/demo/", |request| async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        simple(&[]).answer(request.method(), request.headers())
    });
    world.proxy.clock.advance(Duration::from_secs(10));
    let current = || world.client.get(&index).header("cache-control", "max-age=0").send();
    let got = current().await.complete();
    assert!(!got.cache_status().contains("+stale"), "{}", got.cache_status());
    // The control: once anonymous clients are at a limit of their own, they are given the stale copy without a wait.
    let limited = world.origin.put("/simple/limited/", enough());
    assert_eq!(world.get(&limited).await.status, StatusCode::TOO_MANY_REQUESTS);
    world.proxy.clock.advance(Duration::from_secs(10));
    let got = current().await.complete();
    assert!(got.cache_status().contains("+stale"), "{}", got.cache_status());
    // A miss is tried all the same, and fails for no client.
    assert_eq!(world.fetch(&artifact).await.body, fresh);
    let ask = world.client.get(&artifact).header("authorization", "Bearer honest");
    assert_eq!(ask.send().await.complete().body, fresh);
    // The control: the hostile job itself is at its limit.
    let other = world.origin.put("/other", Page::new("x"));
    assert_eq!(world.fetch(&other).await.body, "x");
    let got = world.client.get(&nonsense).header("authorization", "Bearer hostile").send().await;
    assert_eq!(got.status, StatusCode::TOO_MANY_REQUESTS);
}

/// The same with the two requests that are sent to the registry whatever is stored: the API version check, and the existence
/// check of a layer.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_job_makes_no_registry_fail_by_asking_for_its_greeting() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    let layer = noise(4, 1000);
    let path = format!("/v2/demo/blobs/sha256:{}", hex(Algorithm::Sha256, &layer));
    for path in ["/v2/", &path] {
        let body = layer.clone();
        world.origin.script(path, move |request| {
            let hostile =
                request.headers().get("authorization").is_some_and(|t| t == "Bearer hostile");
            let mut page = if hostile { enough() } else { Page::new(body.clone()) };
            let answer = page.answer(request.method(), request.headers());
            async move { answer }
        });
    }
    world.fetch(&index).await;
    world.fetch(&world.origin.url(&path)).await;
    world.origin.script("/simple/demo/", |request| async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        simple(&[]).answer(request.method(), request.headers())
    });
    for (who, expected) in [("Bearer hostile", false), ("", true)] {
        for (url, head) in [(world.origin.url("/v2/"), false), (world.origin.url(&path), true)] {
            let ask = if head { world.client.head(&url) } else { world.client.get(&url) };
            let ask = if who.is_empty() { ask } else { ask.header("authorization", who) };
            let got = ask.send().await;
            assert_eq!(got.status, 200, "what is public is answered: {}", got.cache_status());
        }
        world.proxy.clock.advance(Duration::from_secs(6));
        let current = world.client.get(&index).header("cache-control", "max-age=0").send();
        let got = current.await.complete();
        assert_eq!(got.cache_status().contains("+stale"), expected, "{who} {}", got.cache_status());
        // The control: once anonymous clients are at a limit of their own, the stale index is given.
        world.origin.unscript("/v2/");
        world.origin.put("/v2/", enough());
    }
}
