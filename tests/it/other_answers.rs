//! Answers other than a 200: given again as long as they say, and, issue 17 row 14, redirects and 404s when the origin fails.

use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::world::{Mood, Page, World, eventually};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until so many answers are stored: redirects are written down behind their answer.
async fn stored(world: &World, count: usize) {
    let records = || async {
        let dir = world.proxy.data.join("v1/records");
        crate::world::files(&dir).len() >= count
    };
    eventually("the answers are written down", records).await;
}

/// Row 14: release downloads turned red: a redirect was not replayed when the origin was dead, though its target was in store.
/// After a restart, too, and with a copy of the target in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_replayed_when_its_origin_is_dead() {
    for mood in [None, Some(Mood::Failing(503))] {
        let mut world = World::new().await;
        let file = world.origin.put("/files/tool", Page::new("tool").etag("v1").fresh(60));
        let moved: Vec<String> = [301, 302, 303, 307, 308]
            .iter()
            .map(|code| {
                world.origin.put(&format!("/moved/{code}"), Page::redirect(*code, "/files/tool"))
            })
            .collect();
        world.fetch(&file).await;
        for url in &moved {
            assert!(world.get(url).await.status.is_redirection());
            assert!(!world.get(url).await.is_hit(), "none says how long it holds");
        }
        stored(&world, 6).await;
        world.restart(|_| {}).await;
        world.proxy.clock.advance(MINUTE * 10);
        match mood {
            None => world.origin.stop(),
            Some(mood) => world.origin.mood(mood),
        }
        for url in &moved {
            let got = world.get(url).await;
            assert!(got.status.is_redirection(), "{url}: {}", got.status);
            assert!(got.text("location") == "/files/tool" && got.cache_status().contains("+stale"));
        }
        let got = world.fetch(&file).await;
        assert!(got.body == "tool" && got.cache_status().contains("+stale"));
        // The control: what nobody asked for is not there.
        assert!(world.get(&world.origin.url("/moved/elsewhere")).await.status.is_server_error());
        world.proxy.clock.advance(Duration::from_hours(24 * 8));
        assert!(world.get(&moved[0]).await.status.is_server_error(), "for a week, as other copies");
    }
}

/// Row 14: clients expect 404s (an extra index, a file that an archive need not have), and fail at anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_404_is_replayed_when_its_origin_is_dead() {
    let world = World::new().await;
    let paths = ["/simple/nothing/", "/dists/stable/Release.gpg", "/npm/@scope%2fnothing"];
    for path in paths {
        world.origin.put(path, Page::status(404));
        assert_eq!(world.get(&world.origin.url(path)).await.status, StatusCode::NOT_FOUND);
    }
    stored(&world, 3).await;
    world.proxy.clock.advance(MINUTE);
    // While the origin answers it is asked, and a file that is there now is given.
    let here = world.origin.put("/simple/nothing/", Page::new("here"));
    assert_eq!(world.fetch(&here).await.body, "here");
    world.origin.stop();
    for path in &paths[1..] {
        let got = world.get(&world.origin.url(path)).await;
        assert_eq!(got.status, StatusCode::NOT_FOUND, "{path}");
        assert!(got.cache_status().contains("+stale"), "{}", got.cache_status());
    }
    assert!(world.get(&world.origin.url("/never/asked")).await.status.is_server_error());
}

/// What the origin said last of a file that it has is what is given, not that it was missing once.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_body_stands_before_a_404_while_the_origin_is_dead() {
    let world = World::new().await;
    let url = world.origin.put("/files/a", Page::new("a").etag("v1"));
    world.fetch(&url).await;
    world.origin.put("/files/a", Page::status(404));
    assert_eq!(world.get(&url).await.status, StatusCode::NOT_FOUND);
    stored(&world, 2).await;
    world.origin.stop();
    world.proxy.clock.advance(MINUTE);
    assert_eq!(world.fetch(&url).await.body, "a");
}

/// RFC 9111 §3: an answer that says how long it holds is given again for so long, and not a moment longer: the five seconds
/// of a 404 that says nothing are not for one that does.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_says_how_long_it_holds_is_given_for_so_long() {
    for status in [203, 299, 301, 302, 307, 308, 400, 404, 410, 499] {
        let world = World::new().await;
        let page = Page::redirect(status, "/elsewhere");
        let url = world.origin.put("/fresh", page.clone().fresh(30));
        let stale = world.origin.put("/stale", page.fresh(0));
        for asked in [1, 1] {
            let got = world.get(&url).await;
            assert_eq!((got.status.as_u16(), world.origin.gets("/fresh")), (status, asked));
        }
        world.proxy.clock.advance(Duration::from_secs(10));
        let got = world.get(&url).await;
        assert!(got.is_hit() && got.text("age").parse::<u64>().unwrap() >= 10, "{status}");
        world.proxy.clock.advance(Duration::from_secs(21));
        world.get(&url).await;
        assert_eq!(world.origin.gets("/fresh"), 2, "{status}");
        for _ in 0..2 {
            let got = world.get(&stale).await;
            assert!(got.status.as_u16() == status && !got.is_hit(), "{status}");
        }
    }
}

/// RFC 9111 §3: a redirect that holds for a day is a hit after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_redirect_outlives_a_restart() {
    let mut world = World::new().await;
    let url = world.origin.put("/moved", Page::redirect(308, "/there").fresh(86_400));
    world.get(&url).await;
    stored(&world, 1).await;
    world.restart(|_| {}).await;
    world.proxy.clock.advance(MINUTE * 60);
    let got = world.get(&url).await;
    assert!(got.is_hit() && got.text("location") == "/there", "{}", got.cache_status());
    assert_eq!(world.origin.gets("/moved"), 1);
    // Who insists asks the origin.
    world.client.get(&url).header("cache-control", "no-cache").send().await;
    assert_eq!(world.origin.gets("/moved"), 2);
}

/// Promise P5: what was for one client, or leads where only it may go, is not on disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_is_one_clients_is_not_kept() {
    let world = World::new().await;
    let secret = "s3cr3t0123456789";
    let to = format!("https://files.example.org/f?X-Amz-Signature={secret}");
    let signed = world.origin.put("/signed", Page::redirect(302, &to));
    let private = Page::redirect(302, "/there").header("cache-control", "private");
    let private = world.origin.put("/private", private);
    let cookie = Page::redirect(302, "/there").fresh(60).header("set-cookie", "a=b");
    let cookie = world.origin.put("/cookie", cookie);
    let open = world.origin.put("/open", Page::redirect(302, "/there"));
    for url in [&signed, &private, &cookie, &open] {
        world.get(url).await;
    }
    world.client.get(&open).header("authorization", "Basic eDp5").send().await;
    stored(&world, 1).await;
    assert!(crate::world::holding(&world.proxy.data, secret.as_bytes()).is_empty());
    world.origin.stop();
    world.proxy.clock.advance(MINUTE);
    for url in [&signed, &private, &cookie] {
        assert!(world.get(url).await.status.is_server_error(), "{url}");
    }
    assert_eq!(world.get(&open).await.status, StatusCode::FOUND, "the control");
}

/// RFC 9111 §4.4: an unsafe request that succeeds ends what is stored of its URL, and of those of its origin that the answer
/// names.
#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_request_ends_what_its_answer_names() {
    let world = World::new().await;
    let far = world.another("127.0.0.2").await;
    let there = far.put("/there", Page::new("there").fresh(600));
    for (field, path) in [("location", "/a"), ("content-location", "/b")] {
        let url = world.origin.put(path, Page::new("old").fresh(600));
        let other = world.origin.put("/c", Page::new("old").fresh(600));
        for url in [&url, &other, &there] {
            world.fetch(url).await;
        }
        let post = async |status: u16, to: &str| {
            let to = to.to_owned();
            let form = world.origin.script("/form", move |_| {
                let mut answer = hyper::Response::new(crate::world::page::empty());
                *answer.status_mut() = StatusCode::from_u16(status).unwrap();
                answer.headers_mut().insert(field, to.parse().unwrap());
                async move { answer }
            });
            world.client.ask(Method::POST, &form).body("x").send().await;
        };
        post(500, path).await;
        assert!(world.fetch(&url).await.is_hit(), "{field}: a failure changes nothing");
        post(201, path).await;
        assert!(!world.fetch(&url).await.is_hit(), "{field}");
        assert!(world.fetch(&other).await.is_hit(), "{field}: the control");
        post(201, &there).await;
        assert!(world.fetch(&there).await.is_hit(), "{field}: another origin's are not its own");
    }
}
