//! P5: what was fetched with a credential is served only to who proves the same right.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::{Method, Request, Response, StatusCode};

use crate::world::archive::{by_hash, hex, plain_wheel};
use crate::world::page::{OriginBody, empty, whole};
use crate::world::{Client, Got, Mood, Origin, World, eventually, noise};
use larder::digest::Algorithm;

const ALICE: &str = "Bearer s3cr3t-alice";
const BOB: &str = "Bearer s3cr3t-bob";
const CAROL: &str = "Bearer s3cr3t-carol";

/// Longer than a yes lasts.
const LATER: Duration = Duration::from_secs(301);

/// Who may have what is behind a door; nobody in particular is named by the empty text.
#[derive(Clone)]
struct Door(Arc<Mutex<Vec<String>>>);

impl Door {
    fn open_to(who: &[&str]) -> Self {
        Self(Arc::new(Mutex::new(who.iter().map(|&who| who.to_owned()).collect())))
    }

    fn open(&self, who: &str) {
        self.0.lock().unwrap().push(who.to_owned());
    }

    fn shut(&self, who: &str) {
        self.0.lock().unwrap().retain(|known| known != who);
    }

    fn lets(&self, request: &Request<hyper::body::Incoming>) -> bool {
        let shown = request.headers().get("authorization");
        let shown = shown.map_or("", |value| value.to_str().unwrap());
        self.0.lock().unwrap().iter().any(|known| known == shown)
    }
}

fn status(status: u16) -> Response<OriginBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn file(body: &[u8], tag: &str) -> Response<OriginBody> {
    let mut response = Response::new(whole(body.to_vec()));
    if !tag.is_empty() {
        response.headers_mut().insert("etag", tag.parse().unwrap());
    }
    response.headers_mut().insert("content-type", "application/octet-stream".parse().unwrap());
    response
}

/// Puts `body` at `path` behind `door`.
fn guard(origin: &Origin, path: &str, door: &Door, body: &[u8]) -> String {
    let (door, body) = (door.clone(), body.to_vec());
    let tag = format!("\"{}\"", &hex(Algorithm::Sha256, &body)[..16]);
    origin.script(path, move |request| {
        let answer = if door.lets(&request) { file(&body, &tag) } else { status(401) };
        async move { answer }
    })
}

async fn ask(client: &Client, url: &str, who: &str) -> Got {
    let ask = client.get(url);
    if who.is_empty() { ask.send().await } else { ask.header("authorization", who).send().await }
}

/// What the origin was asked with `method` by `who`.
fn asked(origin: &Origin, path: &str, method: &Method, who: &str) -> usize {
    let asked = origin.asked(path);
    let by = |one: &&crate::world::origin::Asked| {
        one.method == *method && one.text("authorization").unwrap_or_default() == who
    };
    asked.iter().filter(by).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_received_is_given_to_who_proves_the_same_right() {
    let world = World::new().await;
    let body = noise(1, 300_000);
    let path = by_hash(&body);
    let door = Door::open_to(&[ALICE, BOB]);
    let url = guard(&world.origin, &path, &door, &body);
    // Alice's credential brings it, once; she need not prove again what she has just received.
    for hit in [false, true] {
        let got = ask(&world.client, &url, ALICE).await.complete();
        assert!(got.body == body && got.is_hit() == hit, "{}", got.cache_status());
        assert!(!hit || got.cache_status().contains("private"), "{}", got.cache_status());
    }
    assert_eq!(asked(&world.origin, &path, &Method::GET, ALICE), 1);
    assert_eq!(asked(&world.origin, &path, &Method::HEAD, ALICE), 0);
    // Bob's right is proved by one HEAD, and his bytes come from here.
    for _ in 0..2 {
        let got = ask(&world.client, &url, BOB).await.complete();
        assert!(got.is_hit() && got.body == body);
    }
    assert_eq!(asked(&world.origin, &path, &Method::HEAD, BOB), 1);
    // Carol has none, and nobody neither: they hear their origin.
    for who in [CAROL, ""] {
        let got = ask(&world.client, &url, who).await;
        assert!(got.status == 401 && got.body.is_empty(), "{who} {}", got.status);
        assert_eq!(asked(&world.origin, &path, &Method::GET, BOB), 0);
    }
}
