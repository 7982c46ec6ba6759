//! How a right is proved (issue 10, row 8): with the first byte, and with HEAD only where HEAD is protected as GET is.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use hyper::{Method, Response, StatusCode};
use larder::digest::Algorithm;

use crate::privacy::{ALICE, BOB, CAROL, Door, LATER, ask, file, gets, proofs, status};
use crate::world::archive::{by_hash, hex, plain_wheel};
use crate::world::origin::Asked;
use crate::world::page::{OriginBody, fed};
use crate::world::{Got, Origin, World, noise};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// An origin's answer to a request that its door does not admit.
type Lapse = fn(&Method, &[u8]) -> Response<OriginBody>;

fn of(mut answer: Response<OriginBody>, code: u16) -> Response<OriginBody> {
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}

fn with(mut answer: Response<OriginBody>, name: &'static str, value: &str) -> Response<OriginBody> {
    answer.headers_mut().insert(name, value.parse().unwrap());
    answer
}

/// Origins that protect GET, and not something else.
const LAPSES: [(&str, Lapse); 7] =
    [
        ("HEAD is forgotten", |method, body| {
            if *method == Method::HEAD { file(body, "\"v1\"") } else { status(401) }
        }),
        ("HEAD is sent on", |method, _| {
            let elsewhere = with(status(302), "location", "/open");
            if *method == Method::HEAD { elsewhere } else { status(403) }
        }),
        ("everything is current", |_, _| with(status(304), "etag", "\"v1\"")),
        ("a page is called a part", |_, body| {
            let page =
                with(file(b"<", ""), "content-range", &format!("bytes 0-0/{}", body.len() + 1));
            of(page, 206)
        }),
        ("a part without its place", |_, _| of(file(b"<", "\"v1\""), 206)),
        ("another part", |_, body| {
            let part =
                with(file(b"<", "\"v1\""), "content-range", &format!("bytes 1-1/{}", body.len()));
            of(part, 206)
        }),
        ("a page to sign in at", |_, _| {
            with(file(b"<html>who are you?", "\"v2\""), "content-type", "text/html")
        }),
    ];

/// The attack: a client without a right asks with an invented token.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_get_gives_proves_a_right() {
    for (number, (what, lapse)) in LAPSES.into_iter().enumerate() {
        for (named, h2) in [(true, false), (false, true)] {
            let world = World::new().await;
            let body = noise(number as u64, 200_000);
            let path = if named { by_hash(&body) } else { plain_wheel("demo") };
            let (door, held) = (Door::open_to(&[ALICE, BOB]), body.clone());
            let url = world.origin.script(&path, move |request| {
                let lets = door.lets(&request);
                let answer =
                    if lets { file(&held, "\"v1\"") } else { lapse(request.method(), &held) };
                async move { answer }
            });
            world.origin.script("/open", {
                let held = body.clone();
                move |_| {
                    let answer = file(&held, "\"v1\"");
                    async move { answer }
                }
            });
            assert_eq!(ask(&world.client, &url, ALICE).await.complete().body, body);
            for who in [CAROL, ""] {
                for _ in 0..2 {
                    let mut asking = world.client.get(&url);
                    if !who.is_empty() {
                        asking = asking.header("authorization", who);
                    }
                    let got = if h2 { asking.h2().send() } else { asking.send() }.await;
                    assert!(
                        got.body != body && !got.is_hit(),
                        "{what} {who} {}",
                        got.cache_status()
                    );
                }
            }
            // The answer to her is not what the name promises, and nothing of it is sent to her address for a minute.
            world.proxy.clock.advance(Duration::from_secs(61));
            // The control: a client with a right proves it with one byte, for five minutes.
            for _ in 0..3 {
                let got = ask(&world.client, &url, BOB).await.complete();
                assert!(got.is_hit() && got.body == body, "{what} {}", got.cache_status());
            }
            assert_eq!(
                (proofs(&world.origin, &path, BOB), gets(&world.origin, &path, BOB)),
                (1, 0)
            );
            world.proxy.clock.advance(LATER);
            assert!(ask(&world.client, &url, BOB).await.complete().is_hit());
            assert_eq!(proofs(&world.origin, &path, BOB), 2);
        }
    }
}

/// An origin without range support sends the whole body, which nobody waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_that_comes_for_the_byte_is_not_read() {
    let world = World::new().await;
    let body = noise(20, 300_000);
    let path = by_hash(&body);
    let (door, held) = (Door::open_to(&[ALICE, BOB]), body.clone());
    let url = world.origin.script(&path, move |request| {
        let mut answer = if door.lets(&request) { file(&held, "\"v1\"") } else { status(401) };
        if answer.status() == 200 && request.headers().contains_key("range") {
            // It never ends.
            let (feed, from) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                while feed.send(Ok(Frame::data(Bytes::from_static(&[0; 1000])))).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            *answer.body_mut() = fed(from);
            answer.headers_mut().insert("content-length", "300000".parse().unwrap());
        }
        async move { answer }
    });
    ask(&world.client, &url, ALICE).await.complete();
    assert_eq!(ask(&world.client, &url, CAROL).await.status, 401, "the control");
    let got = ask(&world.client, &url, BOB).await.complete();
    assert!(got.is_hit() && got.body == body, "{}", got.cache_status());
    assert_eq!((proofs(&world.origin, &path, BOB), gets(&world.origin, &path, BOB)), (1, 0));
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(Algorithm::Sha256, bytes))
}

/// Which HEAD requests are admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Those of clients that may GET.
    Whole,
    /// Those with any login.
    AnyLogin,
    /// All.
    Nobody,
}

const GUARDS: [Guard; 3] = [Guard::Whole, Guard::AnyLogin, Guard::Nobody];

/// A manifest under its digest, and under a tag.
struct Registry {
    manifest: String,
    paths: [String; 2],
    door: Door,
}

impl Registry {
    fn new(origin: &Origin, name: &str, guard: Guard) -> Self {
        let layer = digest(name.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"digest":"{layer}","size":1}},"layers":[]}}"#
        );
        let named = format!("/v2/{name}/manifests/{}", digest(manifest.as_bytes()));
        let paths = [named, format!("/v2/{name}/manifests/latest")];
        let door = Door::open_to(&[ALICE, BOB]);
        for path in &paths {
            let (door, text) = (door.clone(), manifest.clone());
            origin.script(path, move |request| {
                let shows = request.headers().contains_key("authorization");
                let forgets = *request.method() == Method::HEAD
                    && match guard {
                        Guard::Whole => false,
                        Guard::AnyLogin => shows,
                        Guard::Nobody => true,
                    };
                let lets = forgets || door.lets(&request);
                let mut answer = if lets { file(text.as_bytes(), "") } else { status(401) };
                if lets {
                    answer = with(answer, "docker-content-digest", &digest(text.as_bytes()));
                    answer = with(answer, "content-type", IMAGE);
                    answer = with(answer, "content-length", &text.len().to_string());
                }
                async move { answer }
            });
        }
        Self { manifest, paths, door }
    }
}

async fn pull(world: &World, path: &str, who: &str) -> Got {
    let ask = world.client.get(&world.origin.url(path)).header("accept", IMAGE);
    ask.header("authorization", who).send().await
}

/// A GET of a manifest is a pull, a HEAD is not; and an unprotected HEAD proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_proved_by_head_only_where_head_was_seen_to_be_guarded() {
    for guard in GUARDS {
        let guards_head = guard == Guard::Whole;
        let world = World::new().await;
        let one = Registry::new(&world.origin, "gears/one", guard);
        for path in &one.paths {
            let text = &one.manifest;
            assert_eq!(pull(&world, path, ALICE).await.complete().body, *text);
            for _ in 0..2 {
                let got = pull(&world, path, CAROL).await;
                assert!(got.status == 401 && got.body.is_empty(), "{path} {}", got.status);
                assert_eq!(pull(&world, path, BOB).await.complete().body, *text, "{path}");
            }
        }
        let asked = world.origin.asked(&one.paths[0]);
        let count = |is: &dyn Fn(&Asked) -> bool, who: &str| {
            let by = |a: &&Asked| is(a) && a.text("authorization").unwrap_or_default() == who;
            asked.iter().filter(by).count()
        };
        let bobs = count(&Asked::is_proof, BOB);
        assert_eq!(count(&Asked::is_get, BOB), 0, "{guard:?}");
        assert_eq!(bobs == 0, guards_head, "what counts is asked where nothing else proves it");
        let by_nobody = count(&|a: &Asked| a.is_proof() || a.method == Method::HEAD, "");
        assert!(by_nobody <= 4, "compared once, and asked whether it is public: {by_nobody}");
    }
}

/// A tag is asked about with HEAD, which is still answered after the right has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_a_tag_ends_though_head_goes_on_answering() {
    for guard in GUARDS {
        let world = World::new().await;
        let registry = Registry::new(&world.origin, "gears/box", guard);
        let tag = &registry.paths[1];
        for who in [ALICE, BOB] {
            assert_eq!(pull(&world, tag, who).await.complete().body, registry.manifest);
        }
        registry.door.shut(ALICE);
        world.proxy.clock.advance(LATER);
        let got = pull(&world, tag, ALICE).await;
        assert!(got.status == 401 && got.body.is_empty(), "{guard:?} {}", got.cache_status());
        // The control: he has it as before.
        assert_eq!(pull(&world, tag, BOB).await.complete().body, registry.manifest);
    }
}
