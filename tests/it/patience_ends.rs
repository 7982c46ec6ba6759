//! A copy that would stand in for an origin that takes too long, and may no longer be given when its turn comes (promises P3 and
//! P5).

use std::time::Duration;

use hyper::StatusCode;

use crate::world::archive::{plain_wheel, put_simple};
use crate::world::{Gate, Page, World, eventually, noise};

async fn impatient() -> World {
    World::with(|config| config.upstream.patience = Duration::from_millis(700)).await
}

/// If a credential was refused meanwhile, on another connection, its private copy is not given.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_ends_during_the_wait_ends_the_copy() {
    for (path, said) in [
        ("/simple/secret/", 403),
        ("/simple/secret/", 401),
        ("/simple/secret/", 404),
        ("/simple/secret/", 200),
        ("/some/page", 403),
        ("/some/page", 200),
    ] {
        let world = impatient().await;
        let gate = Gate::closed();
        let page = Page::new("secret").etag("v1");
        world.origin.put(path, page.clone());
        let url = world.origin.url(path);
        let ask = || world.client.get(&url).header("authorization", "Basic YTpi");
        assert_eq!(ask().send().await.complete().body, "secret");
        let (held, last) = (gate.clone(), page.clone());
        world.origin.script(path, move |asked| {
            let (mut answer, at_once) = match asked.headers().contains_key("x-other") {
                true if said != 200 => (Page::status(said), true),
                other => (last.clone(), other),
            };
            if !at_once && said != 200 {
                answer = Page::status(said);
            }
            let (answer, held) = (answer.answer(asked.method(), asked.headers()), held.clone());
            async move {
                if !at_once {
                    held.passed().await;
                }
                answer
            }
        });
        world.proxy.clock.advance(Duration::from_mins(2));
        let before = world.origin.asked(path).len();
        let waiting = tokio::spawn(ask().send());
        eventually("it is asked about", || async { world.origin.asked(path).len() > before }).await;
        // A field that larder does not know makes this a pass.
        let other = ask().header("x-other", "1").send().await;
        assert_eq!(other.status.as_u16(), said);
        if said == 200 {
            // The control.
            let got = waiting.await.unwrap().complete();
            assert!(got.body == "secret" && got.cache_status().contains("+stale"), "{path}");
            gate.open();
            continue;
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        gate.open();
        let got = waiting.await.unwrap();
        assert_eq!(got.status.as_u16(), said, "{path}: {}", got.cache_status());
    }
}

/// If an index names the file with other bytes during the wait, the copy of the old bytes is not given.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_comes_during_the_wait_ends_the_copy() {
    for promised in [true, false] {
        let world = impatient().await;
        let (old, new) = (noise(1, 5000), noise(2, 5000));
        let known = put_simple(&world.origin, "/", "other", &[(&plain_wheel("other"), b"x")]);
        world.fetch(&known).await;
        let path = plain_wheel("changes");
        let url = world.origin.put(&path, Page::new(old.clone()).etag("v1"));
        world.fetch(&url).await;
        let gate = Gate::closed();
        let (held, page) = (gate.clone(), Page::new(new.clone()).etag("v2"));
        world.origin.script(&path, move |asked| {
            let (answer, held) =
                (page.clone().answer(asked.method(), asked.headers()), held.clone());
            async move {
                held.passed().await;
                answer
            }
        });
        // A pin is valid for a day.
        world.proxy.clock.advance(Duration::from_hours(25));
        let waiting = tokio::spawn(world.client.get(&url).send());
        eventually("it is asked about", || async { world.origin.gets(&path) >= 2 }).await;
        if promised {
            world.fetch(&put_simple(&world.origin, "/", "changes", &[(&path, &new)])).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            gate.open();
            assert_eq!(waiting.await.unwrap().complete().body, new);
        } else {
            let got = waiting.await.unwrap().complete();
            assert!(got.status == StatusCode::OK && got.body == old, "the control");
            gate.open();
        }
    }
}

/// One URL that its origin does not answer does not cause stale copies for all others: the next client's request is sent, and
/// shows that the origin works.
#[tokio::test(flavor = "multi_thread")]
async fn one_silent_url_gives_nobody_else_a_stale_copy() {
    for all in [false, true] {
        let world = impatient().await;
        let silent = put_simple(&world.origin, "/", "silent", &[]);
        let other = put_simple(&world.origin, "/", "other", &[]);
        for url in [&silent, &other] {
            world.fetch(url).await;
        }
        world.proxy.clock.advance(Duration::from_hours(20));
        let page = crate::world::archive::simple(&[("../../files/other-2.0.tar.gz", b"new")]);
        world.origin.script("/simple/silent/", |_| std::future::pending());
        if all {
            world.origin.script("/simple/other/", |_| std::future::pending());
        } else {
            world.origin.put("/simple/other/", page.clone());
        }
        let ask = |url: &str| world.client.get(url).header("cache-control", "max-age=0").send();
        assert!(ask(&silent).await.cache_status().contains("+stale"));
        let got = ask(&other).await.complete();
        assert_eq!(got.cache_status().contains("+stale"), all, "{}", got.cache_status());
        assert_eq!(got.body == page.body, !all, "the control: a hung origin is stood in for");
    }
}
