//! Issue 17, faults: failures of the disk, the clock and certificates, and at the end of a process, and what clients get then.
//! Hung origins are in `hung_origin`, slow ones in `patience`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::digest::Algorithm;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::archive::{by_hash, hex, plain_wheel, put_simple};
use crate::world::larder::own;
use crate::world::tools::{run, signal};
use crate::world::{Bench, End, Fault, Gate, Mood, Page, World, eventually, noise};

const HOUR: Duration = Duration::from_hours(1);

/// The file of a stored body.
fn blob_file(cache: &Path, body: &[u8]) -> PathBuf {
    let name = hex(Algorithm::Sha256, body);
    cache.join("blobs").join(&name[..2]).join(name)
}

/// Flips a bit of a file in place.
fn rot(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Row 12: damage where an answer begins is a miss, not a broken transfer; over HTTP/1 and HTTP/2, whole and in ranges.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_reader_of_a_damaged_body_hears_nothing_of_that() {
    const CHUNK: usize = 64 << 10;
    for (size, at, range) in [
        (1, 0, ""),
        (100, 99, ""),
        (100, 50, "0-9"),
        (5 * CHUNK, 10, ""),
        (5 * CHUNK, 2 * CHUNK + 5, "131072-131081"),
        (5 * CHUNK, 4 * CHUNK + 5, "-100"),
    ] {
        let world = World::new().await;
        let body = noise(12, size);
        let pages = [
            (by_hash(&body), Page::new(body.clone())),
            (plain_wheel("gear"), Page::new(body.clone()).etag("w")),
            ("/plain/file.bin".to_owned(), Page::new(body.clone()).fresh(600).etag("p")),
        ];
        for (number, (path, page)) in pages.into_iter().enumerate() {
            let url = world.origin.put(&path, page);
            world.fetch(&url).await;
            assert!(world.fetch(&url).await.is_hit(), "the control: it is stored");
            let before = world.origin.gets(&path);
            rot(&blob_file(&world.cache(), &body), at);
            let ask = world.client.get(&url);
            let ask = if range.is_empty() { ask } else { ask.range(range) };
            let got = if number == 1 { ask.h2() } else { ask }.send().await;
            assert!(got.is_complete(), "{path} {size} {at}: {} {:?}", got.status, got.end);
            if range.is_empty() {
                assert_eq!(got.body, body, "{path} {size}");
            }
            assert!(!got.is_hit() && world.origin.gets(&path) > before, "{path} {size}");
            world.fetch(&url).await;
            assert!(world.fetch(&url).await.is_hit(), "{path}: it is stored again");
        }
    }
}

/// The same while the origin is down: an error response, and never part of a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_body_of_a_dead_origin_is_an_error_and_no_cut() {
    let world = World::new().await;
    let body = noise(13, 1000);
    for path in [by_hash(&body), "/plain/file.bin".to_owned()] {
        let url = world.origin.put(&path, Page::new(body.clone()).etag("p").fresh(1));
        world.fetch(&url).await;
        world.origin.mood(Mood::Failing(503));
        world.proxy.clock.advance(HOUR);
        assert!(world.fetch(&url).await.is_hit(), "the control: it may be given");
        rot(&blob_file(&world.cache(), &body), 0);
        let got = world.get(&url).await;
        assert!(got.status.is_server_error() && got.end == End::Complete, "{path}: {got:?}");
        world.origin.mood(Mood::Well);
    }
}

/// Row 13: the clock is set back by an hour, and the origin is down.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_from_an_hour_ahead_is_given_while_its_origin_is_dead() {
    for mood in [Mood::Failing(503), Mood::Failing(429)] {
        let world = World::new().await;
        world.proxy.clock.advance(2 * HOUR);
        let index = put_simple(&world.origin, "/", "gear", &[]);
        let wheel = world.origin.put(&plain_wheel("gear"), Page::new("wheel").etag("w"));
        let plain = world.origin.put("/plain/file.bin", Page::new("plain").etag("p").fresh(60));
        let mut before = Vec::new();
        for url in [&index, &wheel, &plain] {
            before.push(world.fetch(url).await.body);
        }
        world.proxy.clock.set_back(HOUR);
        world.origin.mood(mood);
        for (url, body) in [&index, &wheel, &plain].into_iter().zip(&before) {
            let got = world.get(url).await;
            assert!(got.is_complete() && got.body == *body, "{url}: {got:?}");
            assert!(got.cache_status().contains("stale"), "{url}: {}", got.cache_status());
        }
        // The control: the copy is no fresher than it says, and an origin that works is asked.
        world.origin.mood(Mood::Well);
        world.origin.put("/plain/file.bin", Page::new("new").etag("n"));
        assert_eq!(world.fetch(&plain).await.body, "new");
    }
}

/// Row 15: a target that the origin refuses costs one request each time, and a second one only when the refusal was not known
/// yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_costs_one_request() {
    for status in [401, 403, 451] {
        for path in ["/plain/file.bin".to_owned(), plain_wheel("gear"), "/simple/gear/".to_owned()]
        {
            for login in [None, Some("Bearer x")] {
                let world = World::new().await;
                let url = world.origin.put(&path, Page::status(status));
                let ask = || {
                    let ask = world.client.get(&url);
                    match login {
                        Some(login) => ask.header("authorization", login),
                        None => ask,
                    }
                };
                for _ in 0..6 {
                    let got = ask().send().await;
                    assert_eq!(got.status.as_u16(), status);
                    assert_eq!(got.body, format!("status {status}\n"), "in the origin's words");
                }
                assert_eq!(world.origin.asked(&path).len(), 7, "{status} {path} {login:?}");
                // The control: once the origin gives it, it is stored again.
                world.origin.put(&path, Page::new("x").etag("x").fresh(600));
                for _ in 0..3 {
                    assert_eq!(ask().send().await.complete().body, "x");
                }
                if login.is_none() {
                    assert!(ask().send().await.is_hit(), "{status} {path}");
                }
            }
        }
    }
}

/// An origin that refuses larder's `User-Agent` and serves its clients: that is found out once.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_given_what_a_fill_is_refused_costs_one_request() {
    let world = World::new().await;
    for path in ["/plain/file.bin".to_owned(), plain_wheel("gear")] {
        let url = world.origin.script(&path, |request| {
            let agent = request.headers().get("user-agent");
            let larder = agent.is_some_and(|agent| agent.as_bytes().starts_with(b"larder/"));
            let mut page = if larder { Page::status(403) } else { Page::new("x") };
            async move { page.answer(request.method(), request.headers()) }
        });
        for _ in 0..6 {
            let ask = world.client.get(&url).header("user-agent", "curl/8");
            assert_eq!(ask.send().await.complete().body, "x");
        }
        assert_eq!(world.origin.asked(&path).len(), 7, "{path}");
    }
}

/// Row 15: a client does not take an answer that a second signal cuts for the whole, and the log says what was cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_cuts_loudly() {
    for (h2, framed) in [(false, true), (false, false), (true, true)] {
        let bench = Bench::new().await;
        let page = Page::new(noise(15, 1_000_000)).fault(Fault::Hold(500_000, Gate::closed()));
        let page = if framed { page } else { page.chunked() };
        let url = bench.origin.put("/x", page);
        let mut daemon = bench.start(&[]).await;
        let ask = daemon.client().await.get(&url);
        let mut opened = if h2 { ask.h2() } else { ask }.open().await.unwrap();
        assert!(opened.read(100_000).await);
        signal(daemon.id(), "TERM").await;
        daemon.logged("SIGTERM").await;
        assert!(!daemon.log().contains("cut off"), "the control: the transfer is waited for");
        signal(daemon.id(), "TERM").await;
        let reading = tokio::spawn(opened.rest());
        assert_eq!(daemon.ended().await, Some(1));
        let got = reading.await.unwrap();
        // With HTTP/2 the client's library reports in words which alert ended the stream.
        let loud = match &got.end {
            End::Reset => true,
            End::Quiet(why) => h2 && why.contains("fatal alert: InternalError"),
            End::Complete => false,
        };
        assert!(loud, "h2 {h2}, framed {framed}: {:?}", got.end);
        assert!(daemon.log().contains("an answer is cut off"), "{}", daemon.log());
        assert!(daemon.log().contains("cut=true"), "{}", daemon.log());
    }
}

/// Row 8: while larder reads its records after a crash, it passes clients' requests to their origins. A record that never ends, a
/// FIFO, keeps larder reading.
#[tokio::test(flavor = "multi_thread")]
async fn clients_are_served_while_records_are_read_after_a_crash() {
    let bench = Bench::new().await;
    let body = noise(8, 10_000);
    let path = by_hash(&body);
    let url = bench.origin.put(&path, Page::new(body.clone()));
    let plain = bench.origin.put("/plain", Page::new("plain").fresh(600));
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    client.get(&url).send().await.complete();
    client.get(&plain).send().await.complete();
    daemon.kill();
    let shard = bench.data().join("v1/records/ff");
    std::fs::create_dir_all(&shard).unwrap();
    let pipe = shard.join(format!("{}-{}", "ff".repeat(32), "0".repeat(64)));
    let mut make = Command::new("mkfifo");
    make.arg(&pipe);
    assert!(run(make).await.status.success());
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    assert!(own(daemon.address, "/-/health").await.contains("ok"));
    for (url, body) in [(&url, body.clone()), (&plain, Bytes::from_static(b"plain"))] {
        let got = client.get(url).send().await.complete();
        assert_eq!(got.body, body);
        assert_eq!(got.cache_status(), "larder; fwd=bypass; detail=\"starting\"");
    }
    let stored = client.get(&plain).header("cache-control", "only-if-cached").send().await;
    assert_eq!(stored.status.as_u16(), 504);
    assert!(own(daemon.address, "/-/ready").await.contains("not ready"));
    // It can be stopped now: it does not wait for the rest, and the next start reads it again.
    assert_eq!(daemon.terminate().await, Some(0));
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    assert!(own(daemon.address, "/-/ready").await.contains("not ready"));
    // The end of the FIFO.
    let writing =
        tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe));
    drop(writing.await.unwrap().unwrap());
    eventually("it is ready", || async {
        own(daemon.address, "/-/ready").await.starts_with("ready")
    })
    .await;
    let before = bench.origin.total();
    assert!(client.get(&url).send().await.complete().is_hit());
    assert!(client.get(&plain).send().await.complete().is_hit());
    assert_eq!(bench.origin.total(), before);
}

/// The same with origins that fail or are silent: the client gets the stored copy once the records are read.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_stands_in_for_a_dead_origin_when_the_records_are_read() {
    for mood in [Mood::Failing(503), Mood::Hanging] {
        let bench = Bench::new().await;
        let url = bench.origin.put("/plain", Page::new("plain").fresh(600));
        let mut daemon = bench.start(&[]).await;
        daemon.client().await.get(&url).send().await.complete();
        daemon.kill();
        let shard = bench.data().join("v1/records/ff");
        std::fs::create_dir_all(&shard).unwrap();
        let pipe = shard.join(format!("{}-{}", "ff".repeat(32), "0".repeat(64)));
        let mut make = Command::new("mkfifo");
        make.arg(&pipe);
        assert!(run(make).await.status.success());
        let daemon = bench.start(&[("LARDER_UPSTREAM_PATIENCE", "100ms")]).await;
        let client = daemon.client().await;
        let got = client.get(&url).send().await.complete();
        assert!(got.cache_status().contains("starting"), "the control: {}", got.cache_status());
        bench.origin.mood(mood);
        bench.origin.cut();
        let asked = bench.origin.total();
        let waiting = tokio::spawn(async move { client.get(&url).send().await.complete() });
        eventually("the origin is asked", || async { bench.origin.total() > asked }).await;
        assert!(!waiting.is_finished(), "the copy is not known yet");
        // The end of the FIFO.
        let open = move || std::fs::OpenOptions::new().write(true).open(pipe);
        drop(tokio::task::spawn_blocking(open).await.unwrap().unwrap());
        let got = waiting.await.unwrap();
        assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"plain"[..]));
        assert!(got.cache_status().contains("+stale"), "{}", got.cache_status());
        let client = daemon.client().await;
        if mood == Mood::Failing(503) {
            let none = client.get(&bench.origin.url("/other")).send().await;
            assert_eq!(none.status.as_u16(), 503, "the control: where there is none");
        }
    }
}

/// A self-signed certificate for `host`, as `openssl req -x509` makes it, with the changes of `change`.
fn self_signed(
    host: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::IpAddress(host.parse().unwrap())];
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (certificate.pem(), Arc::new(config))
}

/// A server that answers every request with `x`; its URL.
async fn serve(config: Arc<ServerConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut asked = [0; 4096];
            let _head = stream.read(&mut asked).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx";
            let _sent = stream.write_all(answer).await;
            let _ended = stream.shutdown().await;
        }
    });
    format!("https://127.0.0.1:{port}/x")
}

type Change = fn(&mut CertificateParams);

/// Row 10: a trusted certificate that belongs to a server and is marked as a CA's. curl is the control of each.
#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_self_signed_certificate_is_accepted_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &str, Change, bool, &str); 6] = [
        ("as openssl makes it", "127.0.0.1", |_| {}, true, ""),
        ("without CA:TRUE", "127.0.0.1", |params| params.is_ca = IsCa::ExplicitNoCa, true, ""),
        ("for another host", "127.0.0.2", |_| {}, false, "name"),
        (
            "expired",
            "127.0.0.1",
            |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
            false,
            "expired",
        ),
        (
            "not yet valid",
            "127.0.0.1",
            |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1),
            false,
            "notvalidyet",
        ),
        (
            "for clients",
            "127.0.0.1",
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            false,
            "purpose",
        ),
    ];
    for (what, host, change, accepted, why) in cases {
        let (pem, config) = self_signed(host, change);
        let file = dir.path().join("roots.pem");
        std::fs::write(&file, pem).unwrap();
        let url = serve(config).await;
        let mut curl = Command::new("curl");
        curl.args(["-q", "-sS", "--noproxy", "*", &url, "--cacert"]).arg(&file);
        assert_eq!(run(curl).await.status.success(), accepted, "curl: {what}");
        let world = World::with(|config| config.upstream_ca = vec![file.clone()]).await;
        let got = world.get(&url).await;
        assert_eq!(got.is_complete(), accepted, "{what}: {got:?}");
        let text = String::from_utf8_lossy(&got.body).to_lowercase();
        assert!(accepted || text.contains(why), "{what}: {text}");
    }
}

/// The control: only exactly that certificate is accepted, not a similar one, and the error message says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_of_the_same_name_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("roots.pem");
    let (trusted, _) = self_signed("127.0.0.1", |_| {});
    std::fs::write(&file, trusted).unwrap();
    let world = World::with(|config| config.upstream_ca = vec![file.clone()]).await;
    let (_, other) = self_signed("127.0.0.1", |_| {});
    let got = world.get(&serve(other).await).await;
    let text = String::from_utf8_lossy(&got.body);
    assert_eq!(got.status.as_u16(), 502);
    assert!(text.contains("CA:TRUE") && text.contains("--upstream-ca"), "{text}");
}
