//! Answers other than a 200: given again for as long as they are fresh, and, issue 17 row 14, redirects and 404s when the origin
//! fails.

use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};

use crate::world::{Mood, Page, World, eventually};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until this many answers are stored: redirects are written to disk after they were sent.
async fn stored(world: &World, count: usize) {
    let records = || async {
        let dir = world.proxy.data.join("v1/records");
        crate::world::files(&dir).len() >= count
    };
    eventually("the answers are written down", records).await;
}

/// Row 14: release downloads failed because a redirect was not replayed when the origin was down, though its target was stored.
/// Also after a restart, and with a client's own copy of the target.
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
        // The control: a redirect that was never requested is not there.
        assert!(world.get(&world.origin.url("/moved/elsewhere")).await.status.is_server_error());
        world.proxy.clock.advance(Duration::from_hours(24 * 8));
        assert!(world.get(&moved[0]).await.status.is_server_error(), "for a week, as other copies");
    }
}

/// Row 14: clients expect 404s (an extra index, a file that an archive need not have), and fail at any other error.
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
    // While the origin answers it is asked, and a file that exists by now is given.
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

/// A stored body has precedence over an earlier 404 while the origin fails.
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

/// RFC 9111 §3: an answer with explicit freshness is given again for that time, and no longer. The five seconds of a 404 without
/// explicit freshness do not apply to it.
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

/// RFC 9111 §3: a failure whose origin asks to keep it is given again, for less time than clients' retries take. A request with
/// `no-cache`, and a later request, get the origin's present state. (Failures without explicit freshness, and indexes:
/// `freshness::a_no_is_remembered_for_seconds_and_an_error_not_at_all`.)
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_says_how_long_it_holds_is_given_for_seconds() {
    for status in [500, 501, 502, 503, 504, 599] {
        let world = World::new().await;
        let url = world.origin.put("/x", Page::status(status).fresh(600));
        for method in [Method::GET, Method::HEAD] {
            let again = async || {
                world.get(&url).await;
                world.proxy.clock.advance(Duration::from_secs(2));
                let got = world.client.ask(method.clone(), &url).send().await;
                assert_eq!(got.status.as_u16(), status);
                got.is_hit() && got.text("age").parse::<u64>().unwrap() >= 2
            };
            eventually("two come within its seconds, and one is asked for", again).await;
        }
        for says in ["no-cache", "max-age=0"] {
            let asked = world.origin.gets("/x");
            world.client.get(&url).header("cache-control", says).send().await;
            assert_eq!(world.origin.gets("/x"), asked + 1, "{status} {says}");
        }
        world.proxy.clock.advance(Duration::from_secs(6));
        world.origin.put("/x", Page::new("well"));
        assert_eq!(world.fetch(&url).await.body, "well", "five seconds are the most");
        for says in ["max-age=0", "max-age=600, private", "max-age=600, no-store", "no-cache"] {
            let page = Page::status(status).header("cache-control", says);
            let url = world.origin.put("/never", page);
            for _ in 0..2 {
                assert!(!world.get(&url).await.is_hit(), "{status} {says}");
            }
        }
    }
}

/// Issue 17, faults, row 1: a stored copy that may be given has precedence over a failure, whatever freshness that states. If the
/// origin forbids to serve the copy stale, the failure is given.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_copy_stands_before_a_failure_that_says_how_long_it_holds() {
    let world = World::new().await;
    let page = |says: &str| Page::new("old").etag("v1").header("cache-control", says);
    let copy = world.origin.put("/copy", page("max-age=10"));
    let moved = world.origin.put("/moved", Page::redirect(302, "/copy"));
    let strict = world.origin.put("/strict", page("max-age=10, must-revalidate"));
    for url in [&copy, &moved, &strict] {
        world.get(url).await;
    }
    stored(&world, 3).await;
    world.proxy.clock.advance(MINUTE);
    for path in ["/copy", "/moved", "/strict", "/other"] {
        world.origin.put(path, Page::status(503).fresh(600));
    }
    for _ in 0..3 {
        let got = world.fetch(&copy).await;
        assert!(got.body == "old" && got.cache_status().contains("+stale"));
        assert_eq!(world.get(&moved).await.status, StatusCode::FOUND);
        assert_eq!(world.get(&strict).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let other = world.origin.url("/other");
    let again = || async {
        world.get(&other).await;
        world.get(&other).await.is_hit()
    };
    eventually("the control: without a copy it is given again", again).await;
}

/// Promise P1: if an origin fails at one client's `Accept` without a `Vary`, other clients do not get that failure.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_for_those_who_ask_in_the_same_words() {
    for status in [400, 406, 499, 500, 503] {
        let world = World::new().await;
        let url = world.origin.script("/x", move |asked| {
            let odd = [("accept", "odd/odd"), ("accept-language", "xx")];
            let said = |name: &str| asked.headers().get(name).map(HeaderValue::as_bytes);
            let fails = odd.iter().any(|(name, value)| said(name) == Some(value.as_bytes()));
            let mut answer = hyper::Response::new(crate::world::page::whole("x"));
            answer.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            if fails {
                *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            }
            async move { answer }
        });
        for (name, value) in [("accept", "odd/odd"), ("accept-language", "xx")] {
            let again = async || {
                world.client.get(&url).header(name, value).send().await;
                let got = world.client.get(&url).header(name, value).send().await;
                assert_eq!(got.status.as_u16(), status);
                got.is_hit()
            };
            eventually("the control: who asks so again hears it again", again).await;
        }
        assert_eq!(world.fetch(&url).await.body, "x", "{status}");
        let other = world.client.get(&url).header("accept", "text/plain").send().await.complete();
        assert_eq!(other.body, "x", "{status}");
    }
}

/// RFC 9111 §5.2.1: a request's directives about age and freshness apply to a remembered answer too.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_want_a_remembered_answer_fresher() {
    let world = World::new().await;
    let url = world.origin.put("/x", Page::status(400).fresh(3600).header("age", "1000"));
    let hit = async |says: &str| {
        let got = world.client.get(&url).header("cache-control", says).send().await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        got.is_hit()
    };
    assert!(!hit("max-age=1050").await, "nothing is stored");
    world.proxy.clock.advance(Duration::from_secs(10));
    for (says, expected) in [
        ("max-age=1050", true),
        ("min-fresh=20", true),
        ("max-age=1005", false),
        ("min-fresh=3000", false),
        ("no-cache", false),
        ("max-stale", true),
    ] {
        assert_eq!(hit(says).await, expected, "{says}");
        if !expected {
            world.proxy.clock.advance(Duration::from_secs(10));
        }
    }
}

/// RFC 9111 §3: a redirect that is fresh for a day is a hit after a restart.
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
    // A request with `no-cache` is sent to the origin.
    world.client.get(&url).header("cache-control", "no-cache").send().await;
    assert_eq!(world.origin.gets("/moved"), 2);
}

/// Promise P5: a redirect for one client, or to a URL that only one client may use, is not written to disk.
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

/// RFC 9111 §4.4: a successful unsafe request invalidates what is stored of its URL, and of the URLs of its origin that the
/// answer names.
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
