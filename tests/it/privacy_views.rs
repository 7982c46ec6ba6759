//! P5 for indexes: two users' views of one index are two indexes, and the claims of a view bind only its reader.

use std::time::Duration;

use hyper::{Method, Response};

use crate::privacy::{ALICE, BOB, CAROL, Door, LATER, ask, file, status};
use crate::world::archive::{flipped, hex, plain_wheel, put_simple};
use crate::world::page::OriginBody;
use crate::world::{Mood, Page, World, noise};
use larder::digest::Algorithm;

const INDEX: &str = "/simple/demo/";

/// A simple index that promises `bytes` for the demo wheel.
fn index(bytes: &[u8]) -> Response<OriginBody> {
    let link = format!("{}#sha256={}", plain_wheel("demo"), hex(Algorithm::Sha256, bytes));
    let html = format!("<!DOCTYPE html><html><body><a href=\"{link}\">demo</a></body></html>");
    let mut answer = file(html.as_bytes(), &tag(html.as_bytes()));
    for (name, value) in [("content-type", "text/html"), ("cache-control", "max-age=3600")] {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    answer
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", &hex(Algorithm::Sha256, bytes)[..16])
}

/// Puts an index that promises each of `views` to its reader; other clients are refused.
fn views(world: &World, views: &[(&'static str, &[u8])]) -> String {
    let views: Vec<(Door, Vec<u8>)> =
        views.iter().map(|(who, bytes)| (Door::open_to(&[who]), bytes.to_vec())).collect();
    world.origin.script(INDEX, move |request| {
        let own = views.iter().find(|(door, _)| door.lets(&request));
        let answer = own.map_or_else(|| status(401), |(_, bytes)| index(bytes));
        async move { answer }
    })
}

fn gets(world: &World, path: &str, who: &str) -> usize {
    let asked = world.origin.asked(path);
    let by = |one: &&crate::world::origin::Asked| {
        one.method == Method::GET && one.text("authorization").unwrap_or_default() == who
    };
    asked.iter().filter(by).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_views_of_one_index_are_kept_apart() {
    let world = World::new().await;
    let (hers, his) = (noise(1, 300_000), noise(2, 300_000));
    let url = views(&world, &[(ALICE, &hers), (BOB, &his)]);
    let (alice, hers_too) = (Door::open_to(&[ALICE]), hers.clone());
    let (bob, his_too) = (Door::open_to(&[BOB]), his.clone());
    let wheel = world.origin.script(&plain_wheel("demo"), move |request| {
        let answer = if alice.lets(&request) {
            file(&hers_too, &tag(&hers_too))
        } else if bob.lets(&request) {
            file(&his_too, &tag(&his_too))
        } else {
            status(401)
        };
        async move { answer }
    });
    for hit in [false, true, true] {
        for (who, body) in [(ALICE, &hers), (BOB, &his)] {
            let got = ask(&world.client, &url, who).await.complete();
            let text = String::from_utf8_lossy(&got.body).into_owned();
            assert!(text.contains(&hex(Algorithm::Sha256, body)), "{who} {text}");
            assert!(got.is_hit() == hit, "{who} {}", got.cache_status());
            // Each is given what its own index promised, with that proof.
            let got = ask(&world.client, &wheel, who).await.complete();
            assert!(got.body == *body && got.is_hit() == hit, "{who} {}", got.cache_status());
            assert!(
                !hit || got.cache_status().contains("indexed+private"),
                "{}",
                got.cache_status()
            );
        }
    }
    for who in [ALICE, BOB] {
        assert_eq!((gets(&world, INDEX, who), gets(&world, &plain_wheel("demo"), who)), (1, 1));
    }
    for who in [CAROL, ""] {
        assert_eq!(ask(&world.client, &url, who).await.status, 401);
        assert_eq!(ask(&world.client, &wheel, who).await.status, 401);
    }
}

/// The claims of a private index refuse its reader's bytes, and no other client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_index_binds_its_reader_alone() {
    for liar in [ALICE, ""] {
        let world = World::new().await;
        let body = noise(3, 300_000);
        let url = views(&world, &[(liar, &flipped(&body))]);
        let wheel = world.origin.put(&plain_wheel("demo"), Page::new(body.clone()).etag("v1"));
        ask(&world.client, &url, liar).await.complete();
        let got = ask(&world.client, &wheel, liar).await;
        assert!(!got.is_complete(), "{}", got.cache_status());
        for who in [BOB, "", CAROL] {
            let got = ask(&world.client, &wheel, who).await;
            // The control: the claims of a public index refuse all clients.
            assert_eq!(got.is_complete() && got.body == body, liar == ALICE, "{liar} {who}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_index_is_asked_again_with_its_readers_credential() {
    let world = World::new().await;
    let (old, new) = (noise(4, 300_000), noise(5, 300_000));
    let url = views(&world, &[(ALICE, &old)]);
    let path = plain_wheel("demo");
    let wheel = world.origin.put(&path, Page::new(old.clone()).etag("v1"));
    ask(&world.client, &url, ALICE).await.complete();
    // Both change. larder has not seen that, and the index is fresh for an hour.
    views(&world, &[(ALICE, &new)]);
    world.origin.put(&path, Page::new(new.clone()).etag("v2"));
    world.proxy.clock.advance(Duration::from_secs(10));
    let got = ask(&world.client, &wheel, ALICE).await.complete();
    assert_eq!(got.body, new);
    assert_eq!(gets(&world, INDEX, ALICE), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_ends_with_the_right_to_it() {
    let world = World::new().await;
    let (door, body) = (Door::open_to(&[ALICE, BOB]), noise(6, 1000));
    let (lets, promised) = (door.clone(), body.clone());
    let url = world.origin.script(INDEX, move |request| {
        let answer = if lets.lets(&request) { index(&promised) } else { status(401) };
        async move { answer }
    });
    for who in [ALICE, BOB] {
        ask(&world.client, &url, who).await.complete();
        assert!(ask(&world.client, &url, who).await.complete().is_hit());
    }
    door.shut(ALICE);
    // The answer is fresh for an hour; a right is valid for five minutes.
    world.proxy.clock.advance(LATER);
    assert_eq!(ask(&world.client, &url, ALICE).await.status, 401);
    world.origin.mood(Mood::Failing(503));
    assert_eq!(ask(&world.client, &url, ALICE).await.status, 503, "a no is not forgotten");
    let got = ask(&world.client, &url, BOB).await.complete();
    assert!(got.cache_status().contains("stale"), "{}", got.cache_status());
    assert_eq!(ask(&world.client, &url, CAROL).await.status, 503);
    world.proxy.clock.advance(Duration::from_hours(25));
    assert_eq!(ask(&world.client, &url, BOB).await.status, 503, "nor is a yes remembered for ever");
}

/// A public index answers anonymous requests; a client with a login may get another index.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_index_answers_no_credential() {
    let world = World::new().await;
    let (public, private) = (noise(7, 1000), noise(8, 1000));
    let url = views(&world, &[("", &public), (ALICE, &private)]);
    world.fetch(&url).await;
    assert!(world.fetch(&url).await.is_hit());
    let got = ask(&world.client, &url, ALICE).await.complete();
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert!(!got.is_hit() && text.contains(&hex(Algorithm::Sha256, &private)), "{text}");
    assert!(world.fetch(&url).await.is_hit(), "and what she was shown took nobody's place");
}

/// `npm ci` with a login: the index is fetched anonymously as a prerequisite, and what it proves is proven for the logged-in
/// client.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_promise_proves_private_bytes() {
    let world = World::new().await;
    let body = noise(9, 300_000);
    let path = plain_wheel("demo");
    let index = put_simple(&world.origin, "/", "demo", &[(&world.origin.url(&path), &body)]);
    world.fetch(&index).await;
    let url = world.origin.put(&path, Page::new(body.clone()).etag("v1"));
    ask(&world.client, &url, ALICE).await.complete();
    let got = ask(&world.client, &url, ALICE).await.complete();
    assert!(got.cache_status().contains("indexed+private"), "{}", got.cache_status());
    // The control: a file without a promise is only pinned.
    let other = world.origin.put(&plain_wheel("other"), Page::new(noise(10, 1000)).etag("v1"));
    ask(&world.client, &other, ALICE).await.complete();
    let got = ask(&world.client, &other, ALICE).await.complete();
    assert!(got.cache_status().contains("pinned+private"), "{}", got.cache_status());
}

/// The promises of her own index apply to her passes too, and bind no other client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_index_refuses_what_a_pass_brings_its_reader() {
    let world = World::new().await;
    let right = noise(11, 400_000);
    let wrong = flipped(&right);
    let url = views(&world, &[(ALICE, &right)]);
    ask(&world.client, &url, ALICE).await.complete();
    let wheel = world.origin.put(&plain_wheel("demo"), Page::new(wrong.clone()));
    let pass = |who: &str| {
        world.client.get(&wheel).header("authorization", who).header("x-unheard-of", "1").send()
    };
    let got = pass(ALICE).await;
    assert!(!got.is_complete() && got.body.len() < wrong.len(), "{}", got.cache_status());
    world.proxy.clock.advance(Duration::from_secs(61));
    world.origin.put(&plain_wheel("demo"), Page::new(right.clone()));
    assert_eq!(pass(ALICE).await.complete().body, right, "what was promised passes");
    world.origin.put(&plain_wheel("demo"), Page::new(wrong.clone()));
    assert_eq!(pass(BOB).await.complete().body, wrong, "the control: nothing was promised to him");
}
