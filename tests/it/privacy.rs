//! P5: what was fetched with a credential is served only to clients that prove the same right.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Frame;
use hyper::header::HeaderName;
use hyper::{Method, Request, Response, StatusCode};

use crate::world::archive::{by_hash, hex, plain_wheel, put_simple};
use crate::world::origin::Asked;
use crate::world::page::{OriginBody, empty, fed, whole};
use crate::world::{Client, Gate, Got, Mood, Origin, Page, World, eventually, holding, noise};
use larder::digest::Algorithm;

pub(crate) const ALICE: &str = "Bearer s3cr3t-alice";
pub(crate) const BOB: &str = "Bearer s3cr3t-bob";
pub(crate) const CAROL: &str = "Bearer s3cr3t-carol";

/// Longer than a right is valid.
pub(crate) const LATER: Duration = Duration::from_secs(301);

/// The credentials that a door admits; an empty text stands for anonymous requests.
#[derive(Clone)]
pub(crate) struct Door(Arc<Mutex<Vec<String>>>);

impl Door {
    pub(crate) fn open_to(who: &[&str]) -> Self {
        Self(Arc::new(Mutex::new(who.iter().map(|&who| who.to_owned()).collect())))
    }

    pub(crate) fn open(&self, who: &str) {
        self.0.lock().unwrap().push(who.to_owned());
    }

    pub(crate) fn shut(&self, who: &str) {
        self.0.lock().unwrap().retain(|known| known != who);
    }

    pub(crate) fn lets(&self, request: &Request<hyper::body::Incoming>) -> bool {
        let shown = request.headers().get("authorization");
        let shown = shown.map_or("", |value| value.to_str().unwrap());
        self.0.lock().unwrap().iter().any(|known| known == shown)
    }
}

pub(crate) fn status(status: u16) -> Response<OriginBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub(crate) fn file(body: &[u8], tag: &str) -> Response<OriginBody> {
    let mut response = Response::new(whole(body.to_vec()));
    if !tag.is_empty() {
        response.headers_mut().insert("etag", tag.parse().unwrap());
    }
    response.headers_mut().insert("content-type", "application/octet-stream".parse().unwrap());
    response
}

/// Puts `body` at `path`, protected by `door`.
fn guard(origin: &Origin, path: &str, door: &Door, body: &[u8]) -> String {
    let (door, body) = (door.clone(), body.to_vec());
    let tag = format!("\"{}\"", &hex(Algorithm::Sha256, &body)[..16]);
    origin.script(path, move |request| {
        let answer = if door.lets(&request) { file(&body, &tag) } else { status(401) };
        async move { answer }
    })
}

pub(crate) async fn ask(client: &Client, url: &str, who: &str) -> Got {
    let ask = client.get(url);
    if who.is_empty() { ask.send().await } else { ask.header("authorization", who).send().await }
}

/// How often the origin was asked for the file by `who`.
pub(crate) fn gets(origin: &Origin, path: &str, who: &str) -> usize {
    let by = |one: &&Asked| one.is_get() && one.text("authorization").unwrap_or_default() == who;
    origin.asked(path).iter().filter(by).count()
}

/// How often `who` asked the origin for the byte that proves a right.
pub(crate) fn proofs(origin: &Origin, path: &str, who: &str) -> usize {
    let by = |one: &&Asked| one.is_proof() && one.text("authorization").unwrap_or_default() == who;
    origin.asked(path).iter().filter(by).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_received_is_given_to_who_proves_the_same_right() {
    let world = World::new().await;
    let body = noise(1, 300_000);
    let path = by_hash(&body);
    let door = Door::open_to(&[ALICE, BOB]);
    let url = guard(&world.origin, &path, &door, &body);
    // Alice's credential fetches it, once; she need not prove a right to what she has just received.
    for hit in [false, true] {
        let got = ask(&world.client, &url, ALICE).await.complete();
        assert!(got.body == body && got.is_hit() == hit, "{}", got.cache_status());
        assert!(!hit || got.cache_status().contains("private"), "{}", got.cache_status());
    }
    assert_eq!(gets(&world.origin, &path, ALICE), 1);
    assert_eq!(proofs(&world.origin, &path, ALICE), 0);
    // Bob's right is proved with one byte, and his bytes come from the store.
    for _ in 0..2 {
        let got = ask(&world.client, &url, BOB).await.complete();
        assert!(got.is_hit() && got.body == body);
    }
    assert_eq!(proofs(&world.origin, &path, BOB), 1);
    assert_eq!(gets(&world.origin, &path, BOB), 0);
    // Carol has no right, and an anonymous request neither: they get the origin's answer.
    for who in [CAROL, ""] {
        let got = ask(&world.client, &url, who).await;
        assert!(got.status == 401 && got.body.is_empty(), "{who} {}", got.status);
        assert!(gets(&world.origin, &path, who) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_has_its_own_and_nothing_of_the_other() {
    let world = World::new().await;
    let files = [(ALICE, BOB, noise(2, 200_000)), (BOB, ALICE, noise(3, 200_000))];
    for (owner, other, body) in &files {
        let path = plain_wheel(if *owner == ALICE { "alice" } else { "bob" });
        let url = guard(&world.origin, &path, &Door::open_to(&[owner]), body);
        for hit in [false, true] {
            let got = ask(&world.client, &url, owner).await.complete();
            assert!(got.body == *body && got.is_hit() == hit);
        }
        for _ in 0..2 {
            let got = ask(&world.client, &url, other).await;
            assert!(got.status == 401 && got.body.is_empty());
        }
        assert_eq!(gets(&world.origin, &path, other), 2, "heard each time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_larder_is_given_without_a_credential_is_everybodys() {
    for public in [true, false] {
        let world = World::new().await;
        let body = noise(4, 200_000);
        let path = by_hash(&body);
        let door = Door::open_to(&[ALICE, BOB]);
        if public {
            door.open("");
        }
        let url = guard(&world.origin, &path, &door, &body);
        ask(&world.client, &url, ALICE).await.complete();
        ask(&world.client, &url, BOB).await.complete();
        eventually("larder asked by itself", || async { proofs(&world.origin, &path, "") == 1 })
            .await;
        if public {
            // An expired token is treated as none.
            eventually("everybody is given it", || async {
                let got = ask(&world.client, &url, CAROL).await;
                got.is_hit() && got.body == body && !got.cache_status().contains("private")
            })
            .await;
            let before = world.origin.total();
            for who in ["", CAROL, ALICE] {
                let got = ask(&world.client, &url, who).await.complete();
                assert!(got.is_hit() && got.body == body);
            }
            assert_eq!(world.origin.total(), before, "and nobody is asked");
        } else {
            for who in ["", CAROL] {
                assert_eq!(ask(&world.client, &url, who).await.status, 401);
            }
        }
    }
}

/// Servers that protect GET, and answer HEAD to anybody: a rule for one method, or a sign-in proxy for browsers.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_anybody_is_given_makes_nothing_public() {
    let world = World::new().await;
    let body = noise(19, 200_000);
    let path = by_hash(&body);
    let door = Door::open_to(&[ALICE, BOB]);
    let (guarded, held) = (door.clone(), body.clone());
    let url = world.origin.script(&path, move |request| {
        let is_let = request.method() == Method::HEAD || guarded.lets(&request);
        let answer = if is_let { file(&held, "\"v1\"") } else { status(401) };
        async move { answer }
    });
    ask(&world.client, &url, ALICE).await.complete();
    assert!(ask(&world.client, &url, BOB).await.complete().is_hit());
    eventually("larder asked by itself for more than the head", || async {
        proofs(&world.origin, &path, "") == 1
    })
    .await;
    for _ in 0..2 {
        let got = ask(&world.client, &url, "").await;
        assert!(got.status == 401 && got.body.is_empty(), "{} {}", got.status, got.cache_status());
    }
    // The control: a client with a right is given it from the store.
    assert!(ask(&world.client, &url, ALICE).await.complete().is_hit());
}

/// Header fields for one client beside the representation are given to other clients as little as its cookies.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_to_one_beside_the_file_is_told_to_no_other() {
    let world = World::new().await;
    let body = noise(20, 1_000_000);
    let path = by_hash(&body);
    let gate = Gate::closed();
    let (held, waits) = (body.clone(), gate.clone());
    let url = world.origin.script(&path, move |request| {
        let who = request.headers().get("authorization").cloned();
        let mut answer = if who.is_some() { file(&held, "\"v1\"") } else { status(401) };
        for name in
            ["x-user", "x-request-id", "authentication-info", "link", "x-ratelimit-remaining"]
        {
            answer
                .headers_mut()
                .extend(who.clone().map(|who| (HeaderName::from_static(name), who)));
        }
        let waits = (request.method() == Method::GET).then(|| waits.clone());
        async move {
            if let Some(waits) = waits {
                waits.passed().await;
            }
            answer
        }
    });
    let alice = tokio::spawn({
        let (client, url) = (world.client.clone(), url.clone());
        async move { ask(&client, &url, ALICE).await.complete() }
    });
    eventually("she has asked", || async { world.origin.gets(&path) == 1 }).await;
    let bob = tokio::spawn({
        let (client, url) = (world.client.clone(), url.clone());
        async move { ask(&client, &url, BOB).await.complete() }
    });
    gate.open();
    // While it arrives, and from the store.
    alice.await.unwrap();
    for got in [bob.await.unwrap(), ask(&world.client, &url, CAROL).await.complete()] {
        assert!(got.body == body);
        assert_eq!(
            (got.text("etag"), got.text("content-type")),
            ("\"v1\"", "application/octet-stream")
        );
        let told = got.headers.values().any(|value| value.as_bytes() == ALICE.as_bytes());
        assert!(!told, "{:?}", got.headers);
    }
    assert_eq!(world.origin.gets(&path), 1, "the control: both were given what she received");
    assert!(holding(&world.cache(), ALICE.as_bytes()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_public_is_asked_for_again_after_a_day() {
    let world = World::new().await;
    let body = noise(5, 200_000);
    let path = by_hash(&body);
    let door = Door::open_to(&["", ALICE]);
    let url = guard(&world.origin, &path, &door, &body);
    world.fetch(&url).await;
    assert!(ask(&world.client, &url, CAROL).await.complete().is_hit());
    world.proxy.clock.advance(Duration::from_hours(25));
    // While the origin cannot answer, the verdict stays valid.
    world.origin.mood(Mood::Failing(503));
    assert!(ask(&world.client, &url, CAROL).await.complete().is_hit());
    world.origin.mood(Mood::Well);
    door.shut("");
    world.proxy.clock.advance(Duration::from_secs(61));
    let got = ask(&world.client, &url, CAROL).await;
    assert!(got.status == 401 && got.body.is_empty(), "{} {}", got.status, got.cache_status());
    assert!(ask(&world.client, &url, ALICE).await.complete().body == body);
}

/// A clock that was ahead is set back: a verdict with a future date is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_public_in_the_future_is_asked_for_again() {
    let world = World::new().await;
    let body = noise(26, 200_000);
    let path = by_hash(&body);
    let door = Door::open_to(&["", ALICE]);
    let url = guard(&world.origin, &path, &door, &body);
    world.proxy.clock.advance(Duration::from_hours(24 * 30));
    world.fetch(&url).await;
    assert!(ask(&world.client, &url, CAROL).await.complete().is_hit(), "the control");
    world.proxy.clock.set_back(Duration::from_hours(24 * 30));
    door.shut("");
    let got = ask(&world.client, &url, CAROL).await;
    assert!(got.status == 401 && got.body.is_empty(), "{} {}", got.status, got.cache_status());
}

/// A right that ended while another client's revalidation was under way does not come back with the answer of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_revalidation_gives_nobody_a_right_back_that_ended_meanwhile() {
    let world = World::new().await;
    let body = noise(27, 200_000);
    let (door, gate) = (Door::open_to(&[ALICE, BOB]), Gate::closed());
    let (lets, held, waits) = (door.clone(), body.clone(), gate.clone());
    let path = plain_wheel("demo");
    let url = world.origin.script(&path, move |request| {
        let revalidates = request.headers().contains_key("if-none-match");
        let answer = match (lets.lets(&request), revalidates) {
            (false, _) => status(403),
            (true, true) => {
                let mut current = file(b"", "\"v1\"");
                *current.status_mut() = StatusCode::NOT_MODIFIED;
                current
            }
            (true, false) => file(&held, "\"v1\""),
        };
        let waits = revalidates.then(|| waits.clone());
        async move {
            if let Some(waits) = waits {
                waits.passed().await;
            }
            answer
        }
    });
    // Once its root is known it is an artifact that no index names, so that `no-cache` revalidates it.
    let index = put_simple(&world.origin, "/", "other", &[("../../files/other.whl", b"other")]);
    world.fetch(&index).await;
    for who in [ALICE, BOB] {
        assert_eq!(ask(&world.client, &url, who).await.complete().body, body);
    }
    let again = world.client.get(&url).header("authorization", BOB);
    let bob = tokio::spawn(again.header("cache-control", "no-cache").send());
    eventually("he asks whether it is current", || async {
        world.origin.asked(&path).iter().any(|one| one.text("if-none-match").is_some())
    })
    .await;
    door.shut(ALICE);
    let own = world.client.get(&url).header("authorization", ALICE).header("x-unheard-of", "1");
    assert_eq!(own.send().await.status, 403);
    gate.open();
    assert_eq!(bob.await.unwrap().complete().body, body);
    world.proxy.clock.advance(LATER);
    world.origin.mood(Mood::Failing(503));
    let got = ask(&world.client, &url, ALICE).await;
    assert!(!got.status.is_success() && got.body != body, "{}", got.cache_status());
    let got = ask(&world.client, &url, BOB).await;
    assert!(got.is_complete() && got.body == body, "the control: {}", got.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_withdrawn_ends() {
    let world = World::new().await;
    let body = noise(6, 200_000);
    let path = by_hash(&body);
    let door = Door::open_to(&[ALICE, BOB]);
    let url = guard(&world.origin, &path, &door, &body);
    for who in [ALICE, BOB] {
        ask(&world.client, &url, who).await.complete();
    }
    door.shut(ALICE);
    assert!(ask(&world.client, &url, ALICE).await.is_hit(), "a yes lasts five minutes");
    world.proxy.clock.advance(LATER);
    for _ in 0..2 {
        let got = ask(&world.client, &url, ALICE).await;
        assert!(got.status == 401 && got.body.is_empty(), "{} {}", got.status, got.cache_status());
    }
    // With a new token she has a right again, and her bytes come from the store.
    door.open("Bearer s3cr3t-alice-2");
    assert!(ask(&world.client, &url, "Bearer s3cr3t-alice-2").await.complete().is_hit());
    assert_eq!(gets(&world.origin, &path, "Bearer s3cr3t-alice-2"), 0);
    // A failure of the origin gives nothing to a client that was refused, and takes nothing from one that was not.
    world.proxy.clock.advance(LATER);
    for mood in [Mood::Failing(503), Mood::Failing(429)] {
        world.origin.mood(mood);
        let got = ask(&world.client, &url, ALICE).await;
        assert!(!got.status.is_success() && got.body != body, "{}", got.cache_status());
        let got = ask(&world.client, &url, CAROL).await;
        assert!(!got.status.is_success() && got.body != body, "{}", got.cache_status());
        let got = ask(&world.client, &url, BOB).await.complete();
        assert!(got.body == body && got.cache_status().contains("stale"), "{}", got.cache_status());
    }
    // The time for which a right is remembered also ends.
    world.proxy.clock.advance(Duration::from_hours(25));
    assert!(!ask(&world.client, &url, BOB).await.status.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_ends_a_right_at_once() {
    let world = World::new().await;
    let body = noise(7, 200_000);
    let path = by_hash(&body);
    let door = Door::open_to(&[ALICE]);
    let url = guard(&world.origin, &path, &door, &body);
    ask(&world.client, &url, ALICE).await.complete();
    door.shut(ALICE);
    assert!(ask(&world.client, &url, ALICE).await.is_hit(), "the control: nobody said no");
    // A pass of hers, because of a header field that larder does not know, is refused.
    let with = world.client.get(&url).header("authorization", ALICE);
    assert_eq!(with.header("x-unheard-of", "1").send().await.status, 401);
    assert_eq!(ask(&world.client, &url, ALICE).await.status, 401);
    world.origin.mood(Mood::Failing(503));
    assert_eq!(ask(&world.client, &url, ALICE).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_received_it_has_it_after_a_restart_while_the_origin_fails() {
    let mut world = World::new().await;
    let body = noise(8, 200_000);
    let url = guard(&world.origin, &by_hash(&body), &Door::open_to(&[ALICE, BOB]), &body);
    ask(&world.client, &url, ALICE).await.complete();
    world.restart(|_| {}).await;
    world.origin.mood(Mood::Failing(503));
    assert_eq!(ask(&world.client, &url, BOB).await.status, 503, "the control: he did not");
    let got = ask(&world.client, &url, ALICE).await.complete();
    assert!(got.body == body && got.cache_status().contains("stale"), "{}", got.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_path_is_a_credential() {
    let world = World::new().await;
    let body = noise(9, 200_000);
    let path = |token: &str| format!("/t/{token}{}", plain_wheel("demo"));
    let (mine, other) = (path("s3cr3t-0123456789-mine"), path("s3cr3t-0123456789-none"));
    let url = guard(&world.origin, &mine, &Door::open_to(&[""]), &body);
    for hit in [false, true] {
        let got = world.fetch(&url).await;
        assert!(got.body == body && got.is_hit() == hit, "{}", got.cache_status());
        assert!(!hit || got.cache_status().contains("private"), "{}", got.cache_status());
    }
    assert_eq!(world.get(&world.origin.url(&other)).await.status, 404);
    assert!(holding(&world.proxy.data, b"s3cr3t").is_empty());
    assert!(!holding(&world.proxy.data, &body[1000..1032]).is_empty(), "the control: it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_body_makes_a_pass() {
    let world = World::new().await;
    let body = noise(10, 200_000);
    let path = by_hash(&body);
    let url = world.origin.put(&path, Page::new(body.clone()));
    for _ in 0..2 {
        let ask = world.client.ask(Method::POST, &url).body("token=s3cr3t-in-a-body");
        assert!(ask.send().await.cache_status().contains("fwd=method"));
    }
    assert_eq!(world.origin.asked(&path).len(), 2);
    assert!(holding(&world.proxy.data, &body[1000..1032]).is_empty());
    assert!(holding(&world.proxy.data, b"s3cr3t").is_empty());
}

/// The attack: a client that knows a digest requests it, to get the bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_digest_opens_no_door() {
    for private in [true, false] {
        let world = World::new().await;
        let evil = world.another("127.0.0.2").await;
        let body = noise(11, 200_000);
        let path = by_hash(&body);
        let url = guard(&world.origin, &path, &Door::open_to(&["", ALICE]), &body);
        let who = if private { ALICE } else { "" };
        ask(&world.client, &url, who).await.complete();
        // In a name, and in an index of its own.
        let index = put_simple(&evil, "/", "demo", &[(&evil.url(&plain_wheel("demo")), &body)]);
        world.fetch(&index).await;
        for (asked, who) in [(path.as_str(), ""), (&path, CAROL), (&plain_wheel("demo"), CAROL)] {
            let got = ask(&world.client, &evil.url(asked), who).await;
            // The control: public bytes are selected by the digest in a name.
            let given = !private && asked == path;
            assert_eq!(got.status.is_success(), given, "{asked} {who}");
            assert_eq!(got.body == body, given);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_page_is_no_yes() {
    for page in ["302", "200"] {
        let world = World::new().await;
        let body = noise(12, 200_000);
        let path = plain_wheel("demo");
        let (door, wheel) = (Door::open_to(&[ALICE]), body.clone());
        let url = world.origin.script(&path, move |request| {
            let answer = if door.lets(&request) {
                file(&wheel, "\"v1\"")
            } else if page == "302" {
                let mut answer = status(302);
                answer.headers_mut().insert("location", "/sign-in".parse().unwrap());
                answer
            } else {
                let mut answer = file(b"<html>who are you?", "");
                answer.headers_mut().insert("content-type", "text/html".parse().unwrap());
                answer
            };
            async move { answer }
        });
        world.origin.put("/sign-in", Page::new("<html>who are you?"));
        ask(&world.client, &url, ALICE).await.complete();
        for who in [CAROL, ""] {
            let got = ask(&world.client, &url, who).await;
            assert_eq!(got.status.as_str(), page, "{who}");
            assert!(got.body != body && !got.is_hit(), "{who} {}", got.cache_status());
        }
        // The page replaced nothing.
        assert!(ask(&world.client, &url, ALICE).await.complete().body == body);
    }
}

/// A body that arrives as the test feeds it, for clients that the door admits.
#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_flight_proves_its_right_first() {
    let world = World::new().await;
    let body = noise(13, 400_000);
    let path = plain_wheel("demo");
    let (door, gate) = (Door::open_to(&[ALICE, BOB]), Gate::closed());
    let (held, wheel) = (gate.clone(), body.clone());
    let url = world.origin.script(&path, move |request| {
        let (let_in, gate, body) = (door.lets(&request), held.clone(), wheel.clone());
        async move {
            if !let_in {
                return status(401);
            }
            let mut answer = file(&body, "\"v1\"");
            if *request.method() == Method::GET {
                let (feed, from) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    let (start, rest) = (body.slice(..300_000), body.slice(300_000..));
                    let _gone = feed.send(Ok(Frame::data(start))).await;
                    gate.passed().await;
                    let _gone = feed.send(Ok(Frame::data(rest))).await;
                });
                *answer.body_mut() = fed(from);
                answer.headers_mut().insert("content-length", "400000".parse().unwrap());
            }
            answer
        }
    });
    let alice = world.client.get(&url).header("authorization", ALICE).open();
    let mut alice = alice.await.unwrap();
    assert!(alice.read(100_000).await, "hers is on its way");
    let bob = world.client.get(&url).header("authorization", BOB).open();
    let mut bob = bob.await.unwrap();
    assert!(bob.read(100_000).await, "he follows");
    for who in [CAROL, ""] {
        let got = ask(&world.client, &url, who).await;
        assert!(got.status == 401 && got.body.is_empty(), "{who} {}", got.status);
    }
    gate.open();
    assert!(alice.rest().await.complete().body == body && bob.rest().await.complete().body == body);
    assert_eq!(gets(&world.origin, &path, ALICE), 1);
    assert_eq!(gets(&world.origin, &path, BOB), 0);
    assert_eq!(proofs(&world.origin, &path, BOB), 1);
    assert_eq!(proofs(&world.origin, &path, CAROL), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_stored_is_not() {
    for (directive, kept) in [("no-store", false), ("private", false), ("max-age=60", true)] {
        let world = World::new().await;
        let body = noise(14, 100_000);
        let page = || Page::new(body.clone()).etag("v1").header("cache-control", directive);
        let weak = world.origin.put(&plain_wheel("demo"), page());
        for hit in [false, kept] {
            let got = ask(&world.client, &weak, ALICE).await.complete();
            assert!(got.is_hit() == hit && got.body == body, "{directive} {}", got.cache_status());
        }
        assert_eq!(!holding(&world.proxy.data, &body[1000..1032]).is_empty(), kept, "{directive}");
        // Bytes that a digest proves are kept whatever `Cache-Control` says.
        let strong = world.origin.put(&by_hash(&body), page());
        for hit in [false, true] {
            let got = ask(&world.client, &strong, ALICE).await.complete();
            assert!(got.is_hit() == hit, "{directive} {}", got.cache_status());
        }
    }
}
