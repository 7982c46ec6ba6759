//! Issue 17, "HTTP as the standard says": freshness as RFC 9111, 9213 and 5861 define it, seen from outside. What the public
//! suite tests is in `scripts/conformance`; these tests cover what it cannot see.

use std::time::Duration;

use crate::world::archive::simple;
use crate::world::{Mood, Page, World, eventually};

const MINUTE: Duration = Duration::from_mins(1);

/// RFC 9111 §4.2.4: an answer that its origin forbids to serve stale is an error when the origin is down; other answers are
/// served. A recognised index is served all the same, so that builds succeed.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_forbids_to_serve_stale_is_not_served_but_an_index_is() {
    let world = World::new().await;
    let page = |said: &str| Page::new("old").etag("v1").header("cache-control", said);
    let forbidden: Vec<String> = ["no-cache", "No-CaChE", "must-revalidate", "s-maxage=1"]
        .iter()
        .enumerate()
        .map(|(n, said)| world.origin.put(&format!("/no/{n}"), page(&format!("max-age=1, {said}"))))
        .collect();
    let allowed = world.origin.put("/yes", page("max-age=1"));
    let page = simple(&[]).etag("v1").header("cache-control", "no-cache");
    let index = world.origin.put("/simple/demo/", page);
    let document = world.fetch(&index).await.body;
    for url in forbidden.iter().chain([&allowed]) {
        world.fetch(url).await;
    }
    world.origin.stop();
    world.proxy.clock.advance(MINUTE);
    for url in &forbidden {
        let got = world.get(url).await;
        assert!(got.status.is_server_error(), "{url}: {}", got.cache_status());
    }
    assert!(world.fetch(&allowed).await.cache_status().contains("+stale"));
    let got = world.fetch(&index).await;
    assert!(got.body == document && got.cache_status().contains("+stale"));
}

/// RFC 5861 §3: the stale copy is given at once, and revalidated in the background.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_copy_is_given_while_it_is_asked_about() {
    let world = World::new().await;
    let page = |text: &'static str, tag| {
        Page::new(text).etag(tag).header("cache-control", "max-age=10, stale-while-revalidate=60")
    };
    let url = world.origin.put("/page", page("old", "v1"));
    world.fetch(&url).await;
    world.origin.put("/page", page("new", "v2"));
    world.proxy.clock.advance(Duration::from_secs(20));
    let got = world.fetch(&url).await;
    assert!(got.body == "old" && got.cache_status().contains("+stale"), "{}", got.cache_status());
    eventually("the new one is there", || async { world.fetch(&url).await.body == "new" }).await;
    assert_eq!(world.origin.gets("/page"), 2);
    // Longer than that allows: the client waits for the origin.
    world.origin.put("/page", page("newest", "v3"));
    world.proxy.clock.advance(2 * MINUTE);
    assert_eq!(world.fetch(&url).await.body, "newest");
    // A request for a fresh answer waits as well.
    world.origin.put("/page", page("last", "v4"));
    world.proxy.clock.advance(Duration::from_secs(20));
    let asks = world.client.get(&url).header("cache-control", "max-age=0").send();
    assert_eq!(asks.await.complete().body, "last");
    // A client that asks while the origin hangs is given the copy at once.
    world.proxy.clock.advance(Duration::from_secs(20));
    world.origin.mood(Mood::Hanging);
    let got = tokio::time::timeout(crate::world::PATIENCE, world.fetch(&url)).await;
    assert_eq!(got.expect("it waited").body, "last");
}

/// RFC 9213: `CDN-Cache-Control` has precedence over `Cache-Control`. It does not make an index fresh for longer, and other
/// answers for at most an hour, because larder gets no purge requests.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_to_delivery_networks_counts_within_limits() {
    let world = World::new().await;
    let said = |page: Page, cdn: &str, all: &str| {
        page.header("cdn-cache-control", cdn).header("cache-control", all)
    };
    let long = said(Page::new("x").etag("v1"), "max-age=86400", "max-age=0");
    let long = world.origin.put("/long", long);
    let never = world.origin.put("/never", said(Page::new("x"), "no-store", "max-age=600"));
    let private = world.origin.put("/private", said(Page::new("x"), "max-age=600", "private"));
    let index = said(simple(&[]).etag("v1"), "max-age=86400", "max-age=0");
    let index = world.origin.put("/simple/demo/", index);
    for url in [&long, &never, &private, &index] {
        world.fetch(url).await;
    }
    world.proxy.clock.advance(MINUTE * 50);
    assert!(world.fetch(&long).await.is_hit());
    world.proxy.clock.advance(MINUTE * 20);
    assert_eq!(world.origin.gets("/long"), 1);
    world.fetch(&long).await;
    assert_eq!(world.origin.gets("/long"), 2, "an hour is the most");
    for (url, path) in [(&never, "/never"), (&private, "/private"), (&index, "/simple/demo/")] {
        let asked = world.origin.gets(path);
        world.fetch(url).await;
        assert_eq!(world.origin.gets(path), asked + 1, "{path}");
    }
}

/// RFC 9111 §5.2.2.3: `no-store` beside `must-understand` is for caches that do not know the status, or the directive.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_understood_is_kept_if_its_status_is() {
    let world = World::new().await;
    let says = "max-age=600, no-store, must-understand";
    for (status, kept) in [(200, true), (301, true), (404, true), (299, false), (599, false)] {
        let page = |says| Page::redirect(status, "/there").header("cache-control", says);
        let at = |path: &str| format!("/{path}/{status}");
        let url = world.origin.put(&at("understood"), page(says));
        let never = world.origin.put(&at("never"), page("max-age=600, no-store"));
        let plain = world.origin.put(&at("plain"), page("max-age=600"));
        for (url, expected) in [(&url, kept), (&never, false), (&plain, true)] {
            world.client.get(url).header("cache-control", "no-cache").send().await;
            assert_eq!(world.get(url).await.is_hit(), expected, "{status} {url}");
        }
    }
}

/// RFC 9111 §5.1: of an `Age` with several members the first counts, and a member that is no number is ignored.
#[tokio::test(flavor = "multi_thread")]
async fn an_age_is_read_as_the_standard_says() {
    let world = World::new().await;
    let ages =
        [("7200", false), ("7200, 0", false), ("0, 7200", true), ("-7200", true), ("x", true)];
    for (number, (age, fresh)) in ages.into_iter().enumerate() {
        let page = Page::new("x").etag("v1").fresh(3600).header("age", age);
        let url = world.origin.put(&format!("/{number}"), page);
        world.fetch(&url).await;
        let got = world.fetch(&url).await;
        assert_eq!(got.is_hit(), fresh, "{age}");
        assert!(!fresh || got.text("age") == "0", "{age}: {}", got.text("age"));
    }
}

/// A field that has no meaning in a 200 is passed on unchanged, and is left out of larder's partial answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_range_on_a_200_is_given_on() {
    let world = World::new().await;
    let page = Page::new("0123456789").etag("v1").fresh(600).header("content-range", "odd");
    let url = world.origin.put("/page", page);
    for _ in 0..2 {
        assert_eq!(world.fetch(&url).await.text("content-range"), "odd");
    }
    let part = world.client.get(&url).range("2-3").send().await.complete();
    assert_eq!((part.text("content-range"), &part.body[..]), ("bytes 2-3/10", &b"23"[..]));
    let parts = world.client.get(&url).range("0-1,4-5").send().await.complete();
    assert_eq!(parts.text("content-range"), "");
    let same = world.client.get(&url).header("if-none-match", "\"v1\"").send().await;
    assert_eq!((same.status.as_u16(), same.text("content-range")), (304, ""));
}

/// `http.forwarded_headers` is for tests: a fill forwards the fields that it names, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_operator_forwards_goes_on_with_a_fill() {
    for forwarded in [&[][..], &["x-count".to_owned()]] {
        let world = World::with(|config| {
            config.http.harmless_headers = vec!["x-*".to_owned()];
            config.http.forwarded_headers = forwarded.to_vec();
        })
        .await;
        let url = world.origin.put("/page", Page::new("x").fresh(600));
        let ask = world.client.get(&url).header("x-count", "1").header("x-other", "2");
        ask.send().await.complete();
        let asked = &world.origin.asked("/page")[0];
        let expected = (!forwarded.is_empty()).then_some("1");
        assert_eq!((asked.text("x-count"), asked.text("x-other")), (expected, None));
        assert!(world.fetch(&url).await.is_hit());
    }
}
