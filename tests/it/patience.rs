//! Issue 17, first list, rows 3 and 4, and faults, rows 4, 6 and 14: answers that are slow, silent or end without framing reach
//! clients as they do without larder, and are never kept as more than they are.

use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::archive::{plain_wheel, put_simple, wheel_path};
use crate::world::{Fault, Gate, Page, World, noise};

/// A larder for which every time limit for origins is as short as possible.
async fn impatient() -> World {
    World::with(|config| {
        config.upstream.connect_timeout = Duration::from_millis(300);
        config.upstream.header_timeout = Duration::from_millis(50);
        config.upstream.idle_timeout = Duration::from_millis(50);
    })
    .await
}

/// More than twice as long as any of those.
const LONGER: Duration = Duration::from_millis(700);

fn blob(bytes: &[u8]) -> String {
    use larder::digest::Algorithm;
    format!("/v2/a/b/blobs/sha256:{}", crate::world::archive::hex(Algorithm::Sha256, bytes))
}

/// Row 3: repository managers send nothing until they have the whole file themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_byte_is_waited_for_as_long_as_a_client_waits() {
    let world = impatient().await;
    let bytes = noise(1, 1000);
    for path in [
        plain_wheel("gear"),
        wheel_path("gear", &bytes),
        "/gear/-/gear-1.0.0.tgz".to_owned(),
        "/pool/g/gear_1.0_all.deb".to_owned(),
        blob(&bytes),
        "/simple/gear/".to_owned(),
        "/debian/dists/gears/InRelease".to_owned(),
        "/plain/file.bin".to_owned(),
    ] {
        for late_body in [false, true] {
            let path = if late_body { format!("/late{path}") } else { path.clone() };
            let (sent, is_late) = (bytes.clone(), late_body);
            world.origin.script(&path, move |request| {
                let sent = sent.clone();
                async move {
                    let mut page = Page::new(sent);
                    if is_late {
                        page = page.fault(Fault::Slow(usize::MAX, LONGER));
                    } else {
                        tokio::time::sleep(LONGER).await;
                    }
                    page.answer(request.method(), request.headers())
                }
            });
            let got = world.get(&world.origin.url(&path)).await;
            assert!(got.is_complete() && got.status == StatusCode::OK, "{path}: {got:?}");
            assert_eq!(got.body, bytes, "{path}");
        }
    }
}

/// The control of the test before: if a copy can be given, the wait is limited.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_copy_is_given_after_the_limit() {
    let world = impatient().await;
    put_simple(&world.origin, "/", "gear", &[]);
    let page = "/simple/gear/";
    let first = world.fetch(&world.origin.url(page)).await;
    world.proxy.clock.advance(Duration::from_mins(1));
    world.origin.mood(crate::world::Mood::Hanging);
    let stale = world.get(&world.origin.url(page)).await;
    assert!(stale.body == first.body && stale.cache_status().contains("stale"), "{stale:?}");
}

/// Row 4: a path whose last segment could be a package's file name proves nothing. An answer of uncertain kind is streamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_is_never_cut_whatever_its_path_looks_like() {
    let world = impatient().await;
    for (path, validator) in [
        ("/api/v4/jobs/1/trace", false),
        ("/releases/download/v1/tool-linux-amd64", false),
        ("/job/build/45/consoleText", false),
        ("/log", false),
        ("/logs/follow", true),
        ("/flat/Release", false),
        ("/flat/InRelease", true),
        ("/flat/Packages", false),
        ("/ge/ar/gear", true),
        ("/config.json", false),
        ("/channel-rust-stable.toml", true),
    ] {
        let gate = Gate::closed();
        let mut page = Page::new("one\ntwo\n").header("content-type", "text/plain").chunked();
        if validator {
            page = page.etag("log");
        }
        world.origin.put(path, page.fault(Fault::Hold(4, gate.clone())));
        let mut opened = world.client.get(&world.origin.url(path)).open().await.unwrap();
        assert!(
            opened.read(4).await && opened.so_far() == b"one\n",
            "{path}: the first line waits"
        );
        let release = tokio::spawn(async move {
            tokio::time::sleep(LONGER).await;
            gate.open();
        });
        let got = opened.rest().await;
        assert!(got.is_complete() && got.body == "one\ntwo\n", "{path}: {got:?}");
        release.await.unwrap();
    }
}

/// A raw TLS origin that answers with these bytes and then closes, with or without `close_notify`.
async fn raw(
    world: &World,
    answer: Vec<u8>,
    announced: bool,
) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::from(world.ca.server("127.0.0.1", &["http/1.1"]));
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") {
                if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                    break;
                }
                asked.push(byte[0]);
            }
            if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                continue;
            }
            if announced {
                drop(stream.shutdown().await);
            } else {
                let (mut tcp, _) = stream.into_inner();
                drop(tcp.shutdown().await);
            }
        }
    });
    (url, serving)
}

/// Faults 4 and 14: a truncation looks like the end, and the end may look like a truncation.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_end_of_the_connection_ends_is_given_and_not_kept() {
    let world = World::new().await;
    let body = noise(3, 300_000);
    for announced in [true, false] {
        for fields in ["", "etag: \"x\"\r\ncache-control: max-age=3600\r\n"] {
            for path in [
                plain_wheel("gear"),
                "/gear/-/gear-1.0.0.tgz".to_owned(),
                "/simple/gear/".to_owned(),
                "/some/file.bin".to_owned(),
                "/api/v4/jobs/1/trace".to_owned(),
            ] {
                let mut answer =
                    format!("HTTP/1.1 200 OK\r\n{fields}connection: close\r\n\r\n").into_bytes();
                answer.extend_from_slice(&body);
                let (url, serving) = raw(&world, answer, announced).await;
                let url = format!("{url}{path}");
                for _ in 0..2 {
                    let got = world.get(&url).await;
                    assert!(
                        got.is_complete(),
                        "{announced} {path}: {:?} {}",
                        got.end,
                        got.cache_status()
                    );
                    assert_eq!(got.body, body, "{announced} {path}");
                    assert!(!got.is_hit(), "{announced} {path}: {}", got.cache_status());
                }
                serving.abort();
            }
        }
    }
}

/// The control: a digest shows whether the body is complete.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_digest_vouches_for_is_kept_however_it_ended() {
    let world = World::new().await;
    for announced in [true, false] {
        for whole in [true, false] {
            // A different body each time, because bytes that are stored anywhere answer for their digest.
            let body = noise(4 + u64::from(announced) * 2 + u64::from(whole), 300_000);
            let sent = if whole { &body[..] } else { &body[..200_000] };
            let mut answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
            answer.extend_from_slice(sent);
            let (url, serving) = raw(&world, answer, announced).await;
            let url = format!("{url}{}", blob(&body));
            let got = world.get(&url).await;
            assert_eq!(got.is_complete() && got.body == body, whole, "{announced}: {:?}", got.end);
            if whole {
                assert!(world.fetch(&url).await.is_hit(), "{announced}");
            }
            serving.abort();
        }
    }
}

/// Fault 6: a stalled body is resumed, and abandoned if that brings nothing; its client gets the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_given_up_after_twice_the_idle_timeout() {
    for ranges in [true, false] {
        let world = impatient().await;
        let bytes = noise(5, 2_000_000);
        let path = plain_wheel("gear");
        let page = Page::new(bytes.clone()).etag("x").fault(Fault::Hold(1_000_000, Gate::closed()));
        world.origin.put(&path, if ranges { page } else { page.without_ranges() });
        let got = world.get(&world.origin.url(&path)).await;
        assert!(!got.is_complete() && bytes.starts_with(&got.body), "{:?}", got.end);
        // It was requested once more, or not at all: never six times.
        let asked = world.origin.gets(&path);
        assert!(if ranges { (2..=3).contains(&asked) } else { asked == 1 }, "{ranges}: {asked}");
    }
}
