//! Requests while larder reads its records after a crash: for how long they wait for a stored copy, and which do not wait
//! (promises P6 and P7).

use std::time::Duration;

use larder::config::keys::key as setting;

use crate::world::{Mood, Page, World, eventually};

/// A request that can get no copy hears at once what its origin says.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_client_does_not_wait_for_the_records() {
    for operator_login in [false, true] {
        let mut world = World::with_origin(|config, origin| {
            if operator_login {
                let line = format!("{} everyone bearer s3cr3t-login", origin.authority());
                setting("upstream.logins").unwrap().set(config, &[line]).unwrap();
            }
        })
        .await;
        let url = world.origin.put("/plain", Page::new("plain").fresh(600));
        world.fetch(&url).await;
        let record = world.restart_reading().await;
        world.origin.mood(Mood::Failing(503));
        let mut ask = world.client.get(&url);
        if !operator_login {
            ask = ask.header("authorization", "Bearer mine");
        }
        let got = ask.send().await;
        assert_eq!(got.status.as_u16(), 503, "operator login: {operator_login}");
        assert!(world.proxy.own("/-/ready").await.contains("not ready"), "the control");
        if !operator_login {
            // The control: without a credential there may be a copy.
            let (asked, client) = (world.origin.total(), world.client.clone());
            let waiting = tokio::spawn(async move { client.get(&url).send().await });
            eventually("the origin is asked", async || world.origin.total() > asked).await;
            assert!(!waiting.is_finished());
            world.has_read(record).await;
            assert_eq!(waiting.await.unwrap().complete().body, "plain");
        }
    }
}

/// Promise P7: a failure is withheld for a bounded time.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_not_withheld_until_all_records_are_read() {
    for status in [503, 429] {
        let mut world =
            World::with(|config| config.upstream.header_timeout = Duration::from_millis(50)).await;
        let _record = world.restart_reading().await;
        world.origin.mood(Mood::Failing(status));
        let got = world.get(&world.origin.url("/never-stored")).await;
        assert_eq!(got.status.as_u16(), status);
        assert!(world.proxy.own("/-/ready").await.contains("not ready"), "the control");
    }
}

/// The client's patience with a silent origin begins with its request, not when the records are read.
#[tokio::test(flavor = "multi_thread")]
async fn patience_is_counted_from_the_request() {
    let mut world = World::with(|config| config.upstream.patience = Duration::from_mins(10)).await;
    let url = world.origin.put("/plain", Page::new("plain").fresh(600));
    world.fetch(&url).await;
    let record = world.restart_reading().await;
    world.origin.mood(Mood::Hanging);
    let (asked, client) = (world.origin.total(), world.client.clone());
    let waiting = tokio::spawn(async move { client.get(&url).send().await });
    eventually("the origin is asked", async || world.origin.total() > asked).await;
    world.proxy.clock.advance(Duration::from_mins(11));
    assert!(!waiting.is_finished(), "the copy is not known yet");
    world.has_read(record).await;
    let got = waiting.await.unwrap().complete();
    assert!(got.body == "plain" && got.cache_status().contains("+stale"), "{}", got.cache_status());
}

/// A header field that larder does not know does not keep its client from the copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_stands_in_for_requests_with_an_unknown_field_too() {
    for mood in [Mood::Failing(503), Mood::Hanging] {
        let mut world =
            World::with(|config| config.upstream.patience = Duration::from_millis(50)).await;
        let url = world.origin.put("/plain", Page::new("plain").fresh(600));
        world.fetch(&url).await;
        let record = world.restart_reading().await;
        let passed = world.client.get(&url).header("x-odd", "1").send().await.complete();
        assert_eq!(passed.cache_status(), "larder; fwd=bypass; detail=\"header x-odd\"");
        world.origin.mood(mood);
        world.origin.cut();
        let (asked, client) = (world.origin.total(), world.client.clone());
        let waiting =
            tokio::spawn(async move { client.get(&url).header("x-odd", "1").send().await });
        eventually("the origin is asked", async || world.origin.total() > asked).await;
        world.has_read(record).await;
        let got = waiting.await.unwrap().complete();
        assert!(
            got.body == "plain" && got.cache_status().contains("+stale"),
            "{}",
            got.cache_status()
        );
    }
}
