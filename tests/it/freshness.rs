//! How long a stored copy is fresh: as RFC 9111 says for a shared cache, never by a heuristic, and longer only when the origin
//! fails. Time is moved instead of waited for.

use std::time::Duration;

use crate::world::archive::{by_hash, put_simple, simple};
use crate::world::{Mood, Page, World, noise};
use futures_util::future::join_all;
use hyper::Method;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_fresh_as_long_as_its_origin_said() {
    let world = World::new().await;
    let url = world.origin.put("/doc", Page::new("text").etag("v1").fresh(60));
    world.fetch(&url).await;
    world.proxy.clock.advance(Duration::from_secs(50));
    let got = world.fetch(&url).await;
    assert!(got.is_hit(), "{}", got.cache_status());
    assert!(got.text("age").parse::<u64>().unwrap() >= 50);
    assert_eq!(world.origin.gets("/doc"), 1);
    world.proxy.clock.advance(Duration::from_secs(20));
    assert_eq!(world.fetch(&url).await.body, "text");
    let asked = world.origin.asked("/doc");
    assert_eq!((asked.len(), asked[1].text("if-none-match")), (2, Some("\"v1\"")));
    // The 304 made it fresh again.
    assert!(world.fetch(&url).await.is_hit());
}

/// http-cache-semantics by default takes a tenth of the age as freshness: a heuristic gives a wrong index sooner or later.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fresh_by_guessing() {
    let world = World::new().await;
    let page = |text: &'static str| {
        Page::new(text).header("last-modified", "Wed, 01 Jan 2025 00:00:00 GMT")
    };
    let url = world.origin.put("/old", page("one"));
    world.fetch(&url).await;
    world.origin.put("/old", page("two").header("etag", "\"2\""));
    assert_eq!(world.fetch(&url).await.body, "one", "the origin said so: 304");
    assert_eq!(world.origin.gets("/old"), 2, "it was asked");
    let bare = world.origin.put("/bare", Page::new("one"));
    world.fetch(&bare).await;
    world.origin.put("/bare", Page::new("two"));
    assert_eq!(world.fetch(&bare).await.body, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_stored_is_not() {
    let world = World::new().await;
    for directive in [
        "no-store",
        "No-Store",
        "NO-CACHE, max-age=600",
        "Private, max-age=600",
        "private, max-age=600",
        "no-cache",
        "max-age=0, must-revalidate",
        "s-maxage=0, max-age=600",
    ] {
        let url = world.origin.put("/x", Page::new("x").header("cache-control", directive));
        world.fetch(&url).await;
        let asked = world.origin.gets("/x");
        world.fetch(&url).await;
        assert_eq!(world.origin.gets("/x"), asked + 1, "{directive}");
    }
    let body = noise(1, 100_000);
    let url = world.origin.put("/y", Page::new(body.clone()).header("cache-control", "no-store"));
    world.fetch(&url).await;
    assert!(crate::world::holding(&world.proxy.data, &body[500..532]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_vary_are_kept_apart() {
    let world = World::new().await;
    let url = world.origin.script("/vary", |request| async move {
        let language = request
            .headers()
            .get("accept-language")
            .map_or("none", |value| value.to_str().unwrap())
            .to_owned();
        let mut response = hyper::Response::new(crate::world::page::whole(language));
        response.headers_mut().insert("vary", "Accept-Language".parse().unwrap());
        response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
        response
    });
    for _ in 0..2 {
        for language in ["de", "fr"] {
            let got =
                world.client.get(&url).header("accept-language", language).send().await.complete();
            assert_eq!(got.body, language);
        }
    }
    assert_eq!(world.origin.gets("/vary"), 2);
    for other in ["*", "User-Agent", "Cookie"] {
        let url = world.origin.put("/varies", Page::new("x").fresh(600).header("vary", other));
        world.fetch(&url).await;
        let asked = world.origin.gets("/varies");
        world.fetch(&url).await;
        assert_eq!(world.origin.gets("/varies"), asked + 1, "Vary: {other}");
    }
}

/// Observed: a body that varies by `Accept` without a `Vary`.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_in_two_forms_is_two_answers() {
    let world = World::new().await;
    let url = world.origin.script("/simple/demo/", |request| async move {
        let json = request
            .headers()
            .get("accept")
            .is_some_and(|value| value.to_str().unwrap().contains("json"));
        let (kind, text) = if json {
            (
                "application/vnd.pypi.simple.v1+json",
                "{\"meta\":{\"api-version\":\"1.0\"},\"name\":\"demo\",\"files\":[]}",
            )
        } else {
            ("text/html", "<!DOCTYPE html><html><body></body></html>")
        };
        let mut response = hyper::Response::new(crate::world::page::whole(text));
        response.headers_mut().insert("content-type", kind.parse().unwrap());
        response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
        response
    });
    for _ in 0..2 {
        let json = world
            .client
            .get(&url)
            .header("accept", "application/vnd.pypi.simple.v1+json")
            .send()
            .await;
        assert!(json.complete().body.starts_with(b"{"));
        let html = world.client.get(&url).header("accept", "text/html").send().await;
        assert!(html.complete().body.starts_with(b"<"));
    }
    assert_eq!(world.origin.gets("/simple/demo/"), 2);
}

/// A client's `no-cache` is satisfied by a revalidation that began after the request, or at most five seconds before.
#[tokio::test(flavor = "multi_thread")]
async fn no_cache_is_met_by_a_fresh_revalidation() {
    let world = World::new().await;
    let index = world.origin.put("/simple/demo/", simple(&[]).etag("v1").fresh(600));
    let path = "/simple/demo/";
    let reload = || world.client.get(&index).header("cache-control", "no-cache").send();
    world.fetch(&index).await;
    reload().await.complete();
    let asked = world.origin.gets(path);
    reload().await.complete();
    assert_eq!(world.origin.gets(path), asked, "within the grace nobody is asked");
    world.proxy.clock.advance(Duration::from_secs(6));
    reload().await.complete();
    assert_eq!(world.origin.gets(path), asked + 1, "after it the origin is");
    assert!(world.fetch(&index).await.is_hit(), "and who did not insist is served");
}

/// A client that has just published must see the result.
#[tokio::test(flavor = "multi_thread")]
async fn publishing_ends_the_grace() {
    let world = World::new().await;
    let index = world.origin.put("/simple/demo/", simple(&[]).fresh(600));
    world.fetch(&index).await;
    let upload = world
        .origin
        .script("/upload", |_| async { hyper::Response::new(crate::world::page::empty()) });
    world.client.ask(Method::POST, &upload).body("wheel").send().await.complete();
    let new = simple(&[("../../files/demo-1.0.tar.gz", b"new")]);
    world.origin.put("/simple/demo/", new.clone().fresh(600));
    let got = world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
    assert_eq!(got.body, new.body);
}

/// verdaccio#645, pacoloco#108: a remembered error needed a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_remembered_for_seconds_and_an_error_not_at_all() {
    let world = World::new().await;
    let url = world.origin.url("/soon");
    for _ in 0..2 {
        assert_eq!(world.get(&url).await.status.as_u16(), 404);
    }
    world.origin.put("/soon", Page::new("here"));
    world.proxy.clock.advance(MINUTE);
    assert_eq!(world.fetch(&url).await.body, "here");
    let fresh = |status| Page::status(status).fresh(600);
    let errors = [500, 502, 503, 429, 403].map(|status| ("/error", Page::status(status)));
    // Whatever freshness they state: answers for one client (RFC 6585), and errors for an index.
    let says = [429, 511, 403].map(|status| ("/error", fresh(status)));
    let of_indexes = ["/simple/demo/", "/dists/stable/InRelease"].map(|path| (path, fresh(503)));
    for (path, error) in errors.into_iter().chain(says).chain(of_indexes) {
        let status = error.status;
        let url = world.origin.put(path, error);
        assert_eq!(world.get(&url).await.status, status);
        world.origin.put(path, Page::new("well"));
        assert_eq!(world.fetch(&url).await.body, "well", "{path} after {status}");
        world.proxy.clock.advance(MINUTE);
    }
}

/// harbor#19899, pacoloco#108: a copy was stored, and the build failed.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_origin_fails_the_last_copy_is_served_and_says_so() {
    // In parallel, each in an environment of its own: most of the time is larder's waiting for the origin.
    let moods = [Mood::Failing(500), Mood::Failing(503), Mood::Failing(429), Mood::Hanging];
    join_all(moods.map(async |mood| {
        let world =
            World::with(|config| config.upstream.header_timeout = Duration::from_secs(2)).await;
        let index = put_simple(&world.origin, "/", "demo", &[]);
        let body = world.fetch(&index).await.body;
        world.proxy.clock.advance(DAY);
        world.origin.mood(mood);
        for control in ["max-age=0", "max-age=600"] {
            let got =
                world.client.get(&index).header("cache-control", control).send().await.complete();
            assert_eq!(got.body, body, "{mood:?}");
            assert!(got.cache_status().contains("+stale"), "{mood:?}: {}", got.cache_status());
        }
        world.origin.mood(Mood::Well);
        world.proxy.clock.advance(2 * MINUTE);
        let got =
            world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
        assert!(!got.cache_status().contains("+stale"), "{mood:?}: {}", got.cache_status());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_origin_is_outlived_for_a_week_by_indexes_and_for_ever_by_proven_files() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    let body = noise(2, 100_000);
    let file = world.origin.put(&by_hash(&body), Page::new(body.clone()));
    world.fetch(&index).await;
    world.fetch(&file).await;
    world.origin.stop();
    world.proxy.clock.advance(6 * DAY);
    assert!(world.fetch(&index).await.cache_status().contains("+stale"));
    world.proxy.clock.advance(2 * DAY);
    let late = world.get(&index).await;
    assert!(late.status.is_server_error(), "{}", late.status);
    world.proxy.clock.advance(365 * DAY);
    let got = world.fetch(&file).await;
    assert!(got.is_hit() && got.body == body);
}

/// gradient#625: an upstream that did not answer stalled every miss. larder remembers failures per origin and for a short time,
/// and never delays a miss because of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_origin_never_blocks_a_miss() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&index).await;
    world.origin.mood(Mood::Failing(503));
    for _ in 0..5 {
        world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
    }
    world.origin.mood(Mood::Well);
    let url = world.origin.put("/never/seen", Page::new("new"));
    assert_eq!(world.fetch(&url).await.body, "new");
}

/// A job sends bad requests until the registry answers 429 with a day's `Retry-After`: other clients do not suffer from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_days_retry_after_is_believed_for_a_minute() {
    let world = World::new().await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&index).await;
    world.proxy.clock.advance(DAY);
    let page = Page::status(429).header("retry-after", "86400");
    world.origin.put("/simple/demo/", page.clone());
    let reload = || world.client.get(&index).header("cache-control", "max-age=0").send();
    assert!(reload().await.complete().cache_status().contains("+stale"));
    let miss = world.origin.put("/other", Page::new("new"));
    assert_eq!(world.fetch(&miss).await.body, "new", "a miss is always tried");
    let new = simple(&[("../../files/demo-1.0.tar.gz", b"new")]);
    world.origin.put("/simple/demo/", new.clone());
    world.proxy.clock.advance(MINUTE + Duration::from_secs(1));
    assert_eq!(reload().await.complete().body, new.body);
}

/// A stored copy is served while its origin hangs: waiting for a dead origin is what users call "the proxy is slow".
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_copy_is_served_while_its_origin_hangs() {
    // The header timeout is far beyond this test's own limit, so only the short wait can explain an answer.
    let world =
        World::with(|config| config.upstream.header_timeout = Duration::from_mins(10)).await;
    let index = put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&index).await;
    world.proxy.clock.advance(DAY);
    world.origin.mood(Mood::Failing(503));
    world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
    world.origin.mood(Mood::Hanging);
    let got = world.client.get(&index).header("cache-control", "max-age=0").send();
    let got = tokio::time::timeout(crate::world::PATIENCE, got)
        .await
        .expect("it waited for the origin")
        .complete();
    assert!(got.cache_status().contains("+stale"));
}

/// Errors come in many forms: without a length, uncacheable, with a cookie. The copy is served all the same.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_error_looks_like_the_copy_is_served() {
    for error in [
        Page::status(503).chunked(),
        Page::status(503).header("cache-control", "no-store"),
        Page::status(500).header("set-cookie", "a=b"),
        Page::status(502).header("vary", "*"),
        Page::status(503).chunked().header("content-type", "text/html"),
    ] {
        let world = World::new().await;
        let index = put_simple(&world.origin, "/", "demo", &[]);
        let body = world.fetch(&index).await.body;
        world.proxy.clock.advance(DAY);
        world.origin.put("/simple/demo/", error.clone());
        let got = world.get(&index).await;
        assert_eq!(got.body, body, "{error:?}");
        assert!(got.cache_status().contains("+stale"), "{error:?}");
        // The control: without a copy the origin's own error is given.
        let other = world.origin.put("/other", error.clone());
        assert_eq!(world.get(&other).await.status, error.status);
    }
}

/// A 304 applies to the copy that was asked about, or to nothing (RFC 9111 §4.3.4).
#[tokio::test(flavor = "multi_thread")]
async fn a_304_with_another_validator_renews_nothing() {
    let world = World::new().await;
    for answer in ["\"v2\"", ""] {
        let first = if answer.is_empty() {
            Page::new("old").header("expires", "Thu, 01 Jan 1970 00:00:00 GMT")
        } else {
            Page::new("old").etag("v1")
        };
        let url = world.origin.put("/x", first);
        assert_eq!(world.fetch(&url).await.body, "old");
        let asked = std::sync::atomic::AtomicUsize::new(0);
        world.origin.script("/x", move |_| {
            let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            async move {
                let mut response = hyper::Response::new(crate::world::page::empty());
                if number == 0 {
                    *response.status_mut() = hyper::StatusCode::NOT_MODIFIED;
                } else {
                    *response.body_mut() = crate::world::page::whole("new");
                }
                if !answer.is_empty() {
                    response.headers_mut().insert("etag", answer.parse().unwrap());
                }
                response
            }
        });
        let got = world.fetch(&url).await;
        assert_eq!(got.body, "new", "{answer:?}");
        world.origin.unscript("/x");
        world.proxy.clock.advance(DAY);
    }
}

/// A client checks that a file is absent, uploads it, and fetches it: the remembered 404 ends with the upload.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_there_is_there() {
    let world = World::new().await;
    let url = world.origin.url("/repo/x.jar");
    assert_eq!(world.get(&url).await.status.as_u16(), 404);
    world.client.ask(Method::PUT, &url).body("x").send().await;
    world.origin.put("/repo/x.jar", Page::new("x"));
    world.client.ask(Method::PUT, &url).body("x").send().await.complete();
    assert_eq!(world.fetch(&url).await.body, "x");
}

/// If a clock that was ahead is set back, nothing stored is fresh until the clock has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_makes_nothing_fresh() {
    let world = World::new().await;
    world.proxy.clock.advance(DAY);
    let index = world.origin.put("/simple/demo/", simple(&[]).fresh(60));
    let plain = world.origin.put("/doc", Page::new("one").fresh(60));
    world.fetch(&index).await;
    world.fetch(&plain).await;
    world.proxy.clock.set_back(DAY);
    let new = simple(&[("../../files/demo-1.0.tar.gz", b"new")]);
    world.origin.put("/simple/demo/", new.clone());
    world.origin.put("/doc", Page::new("two"));
    assert_eq!(world.fetch(&index).await.body, new.body);
    assert_eq!(world.fetch(&plain).await.body, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_ask_that_nothing_is_stored_or_fetched() {
    let world = World::new().await;
    let body = noise(3, 100_000);
    let url = world.origin.put("/x", Page::new(body.clone()).fresh(600));
    let with = |directive| world.client.get(&url).header("cache-control", directive).send();
    assert_eq!(with("no-store").await.complete().body, body);
    assert!(crate::world::holding(&world.proxy.data, &body[500..532]).is_empty());
    let asked = world.origin.total();
    assert_eq!(with("only-if-cached").await.status.as_u16(), 504);
    world.origin.put("/x", Page::new("x").header("vary", "*"));
    world.fetch(&url).await;
    assert_eq!(with("only-if-cached").await.status.as_u16(), 504);
    assert_eq!(world.origin.total(), asked + 1, "the one fetch, given to its asker");
}

/// A 304 can restrict who may have the answer, as a 200 can.
#[tokio::test(flavor = "multi_thread")]
async fn a_304_may_take_back_that_an_answer_is_everybodys() {
    for (name, value, shared) in [
        ("vary", "Accept-Encoding", true),
        ("vary", "Cookie", false),
        ("cache-control", "private, max-age=60", false),
        ("cache-control", "no-store", false),
    ] {
        let world = World::new().await;
        let body = noise(9, 10_000);
        let page = || Page::new(body.clone()).etag("v1");
        let url = world.origin.put("/doc", page().fresh(60));
        world.fetch(&url).await;
        assert!(world.fetch(&url).await.is_hit());
        world.proxy.clock.advance(MINUTE * 2);
        let fresh = if shared { page().fresh(60) } else { page() };
        world.origin.put("/doc", fresh.header(name, value));
        assert_eq!(world.fetch(&url).await.body, body);
        let got = world.fetch(&url).await;
        assert!(got.body == body && got.is_hit() == shared, "{value}: {}", got.cache_status());
        assert_eq!(crate::world::holding(&world.proxy.data, &body[500..532]).is_empty(), !shared);
    }
}

/// An `Age` to which the time in the store cannot be added.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_age_is_answered() {
    let world = World::new().await;
    let page = Page::new("text").etag("v1").fresh(60).header("age", "18446744073709551615");
    let url = world.origin.put("/doc", page);
    for _ in 0..3 {
        world.proxy.clock.advance(Duration::from_secs(1));
        assert_eq!(world.fetch(&url).await.body, "text");
    }
}

/// A clock that was ahead is set back: a copy with a future date is not given when its origin fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_future_does_not_outlive_its_origin() {
    let world = World::new().await;
    let stored = world.origin.put("/old", Page::new("old").etag("v1").fresh(60));
    world.fetch(&stored).await;
    world.proxy.clock.advance(30 * DAY);
    let ahead = world.origin.put("/ahead", Page::new("ahead").etag("v1").fresh(60));
    world.fetch(&ahead).await;
    world.proxy.clock.set_back(30 * DAY);
    world.origin.mood(Mood::Failing(503));
    world.proxy.clock.advance(MINUTE * 2);
    assert_eq!(world.fetch(&stored).await.body, "old", "the control");
    assert_eq!(world.get(&ahead).await.status, 503);
}
