//! How much one client may use, and what happens when the process has no resources left (issue 10, rows 5 and 10): nothing stored
//! is lost, no promise is forgotten, and other clients are still served.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple};
use crate::world::binary::Daemon;
use crate::world::client::read_head;
use crate::world::{
    Bench, Client, End, Fault, Gate, Mood, Origin, PATIENCE, Page, World, eventually, files, noise,
};

type Sender = http2::SendRequest<Empty<Bytes>>;

/// An HTTP/2 connection whose streams may be sent `window` bytes before the client reads.
async fn h2(client: &Client, origin: &Origin, window: u32) -> Sender {
    let stream = client.tunnel(&origin.authority()).await.unwrap();
    let stream = client.tls(stream, "127.0.0.1", &["h2"]).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &Sender, url: &str) -> Response<Incoming> {
    let request = Request::get(url).body(Empty::new()).unwrap();
    sender.clone().send_request(request).await.unwrap()
}

/// The length of a body; `None` if it was cut.
async fn end_of(response: Response<Incoming>) -> Option<usize> {
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap();
    Some(body.ok()?.to_bytes().len())
}

/// How many bodies of the store a process has open.
fn open_bodies(id: u32, data: &Path) -> usize {
    let blobs = data.join("v1/blobs").canonicalize().unwrap();
    let all = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().flatten();
    all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&blobs))).count()
}

/// Sets how many file descriptors a process may have.
fn allow(id: u32, descriptors: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(id).unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: descriptors, maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_of_one_body_hold_one_file() {
    let bench = Bench::new().await;
    let (one, other) = (noise(1, 1_000_000), noise(2, 1_000_000));
    let url = bench.origin.put(&by_hash(&one), Page::new(one));
    let other_url = bench.origin.put(&by_hash(&other), Page::new(other));
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    client.get(&url).send().await.complete();
    client.get(&other_url).send().await.complete();
    let mut held = Vec::new();
    for _ in 0..5 {
        let sender = h2(&client, &bench.origin, 0).await;
        for _ in 0..200 {
            held.push(ask(&sender, &url).await);
        }
    }
    assert!(held.iter().all(|response| response.status() == StatusCode::OK));
    let open = open_bodies(daemon.id(), &bench.data());
    assert!((1..=2).contains(&open), "{open}");
    // The control: another body is another file.
    let sender = h2(&client, &bench.origin, 0).await;
    held.push(ask(&sender, &other_url).await);
    assert_eq!(open_bodies(daemon.id(), &bench.data()), 2);
    // Other requests do not wait for them.
    assert!(client.get(&url).send().await.complete().is_hit());
}

/// Sequential requests on one connection: what a client with an open connection can request while larder has no file descriptor
/// left.
struct Kept(http1::SendRequest<Empty<Bytes>>, String);

impl Kept {
    async fn new(client: &Client, origin: &Origin) -> Self {
        let authority = origin.authority();
        let stream = client.inside(&authority).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender, authority)
    }

    /// Status and body; `None` if the answer was cut.
    async fn get(&mut self, path: &str) -> Option<(StatusCode, Bytes)> {
        let request = Request::get(path).header("host", &self.1).body(Empty::new()).unwrap();
        let asked = async {
            self.0.ready().await.ok()?;
            let response = self.0.send_request(request).await.ok()?;
            let status = response.status();
            Some((status, response.into_body().collect().await.ok()?.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap()
    }
}

/// Six stored files, and an index that refuses the origin's body for a wheel.
struct Shelf {
    bench: Bench,
    stored: Vec<Bytes>,
    paths: Vec<String>,
    right: Bytes,
    wheel: String,
}

impl Shelf {
    /// Stored by a larder that has ended, so that the next one has no segment of claims and no body open.
    async fn new() -> Self {
        let bench = Bench::new().await;
        let stored: Vec<Bytes> = (0..6).map(|n| noise(n, 300_000)).collect();
        let paths: Vec<String> = stored.iter().map(|body| by_hash(body)).collect();
        let (right, wheel) = (noise(7, 300_000), plain_wheel("demo"));
        put_simple(&bench.origin, "/", "demo", &[(&format!("../..{wheel}"), &right)]);
        bench.origin.put(&wheel, Page::new(flipped(&right)));
        let mut daemon = bench.start(&[]).await;
        let client = daemon.client().await;
        client.get(&bench.origin.url("/simple/demo/")).send().await.complete();
        for (path, body) in paths.iter().zip(&stored) {
            let url = bench.origin.put(path, Page::new(body.clone()));
            client.get(&url).send().await.complete();
        }
        assert_eq!(daemon.terminate().await, Some(0));
        Self { bench, stored, paths, right, wheel }
    }

    /// Bodies, records and claims.
    fn on_disk(&self) -> [Vec<PathBuf>; 3] {
        ["blobs", "records", "claims"].map(|name| {
            let mut found = files(&self.bench.data().join("v1").join(name));
            found.sort();
            found
        })
    }
}

/// Row 5 completely, with the process's limit lowered while it runs: whatever is requested while no file can be opened, what is
/// on disk stays, and a wheel that its index refuses never completes, neither then nor afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn out_of_descriptors_nothing_shrinks_and_no_bad_byte_completes() {
    let shelf = Shelf::new().await;
    let daemon = shelf.bench.start(&[]).await;
    let client = daemon.client().await;
    let before = shelf.on_disk();
    assert!(before.iter().all(|found| !found.is_empty()));
    let mut kept = Vec::new();
    for _ in 0..10 {
        kept.push(Kept::new(&client, &shelf.bench.origin).await);
    }
    // Fewer than are open: no file can be opened.
    allow(daemon.id(), Some(8));
    let mut kept = kept.into_iter();
    let mut troubled = 0;
    for (path, body) in shelf.paths.iter().zip(&shelf.stored) {
        match kept.next().unwrap().get(path).await {
            Some((StatusCode::OK, got)) => assert_eq!(got, body),
            Some((status, _)) => {
                assert!(status.is_server_error(), "{status}");
                troubled += 1;
            }
            None => troubled += 1,
        }
    }
    assert!(troubled > 0, "the control: it could not open a file");
    for mut connection in kept {
        if let Some((status, got)) = connection.get(&shelf.wheel).await {
            assert!(!status.is_success(), "{status}, {} bytes", got.len());
        }
    }
    assert_eq!(shelf.on_disk(), before);
    allow(daemon.id(), Some(4096));
    for path in &shelf.paths {
        eventually("it is a hit again", || async {
            let got = client.get(&shelf.bench.origin.url(path)).send().await;
            got.is_complete() && got.is_hit()
        })
        .await;
    }
    shelf.bench.origin.put("/simple/demo/", Page::status(503));
    for _ in 0..3 {
        let got = client.get(&shelf.bench.origin.url(&shelf.wheel)).send().await;
        assert!(!(got.status.is_success() && got.end == End::Complete), "{}", got.status);
    }
    assert_eq!(shelf.on_disk(), before);
    assert!(!daemon.log().contains("damaged"), "{}", daemon.log());
    // The control: the right bytes of the same name are given.
    shelf.bench.origin.put(&plain_wheel("other"), Page::new(shelf.right.clone()));
    let got = client.get(&shelf.bench.origin.url(&plain_wheel("other"))).send().await;
    assert_eq!(got.complete().body, shelf.right);
}

/// The attack of row 5 with the default limits: a larder with few descriptors, and a client that opens as much as it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_all_it_can_leaves_the_reserve() {
    let bench = Bench::new().await;
    let bodies: Vec<Bytes> = (0..80).map(|n| noise(n, 100_000)).collect();
    let urls: Vec<String> =
        bodies.iter().map(|b| bench.origin.put(&by_hash(b), Page::new(b.clone()))).collect();
    let mut command = std::process::Command::new("sh");
    let larder = bench.larder();
    command.args(["-c", "ulimit -n 160; exec \"$0\" serve --listen 127.0.0.1:0"]);
    command.arg(larder.get_program());
    for (name, value) in larder.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let daemon = Daemon::try_run(command).await.unwrap();
    let client = daemon.client().await;
    for url in &urls {
        client.get(url).send().await.complete();
    }
    // Every body is kept open by a stream that takes nothing, on as many connections as possible.
    let mut held = Vec::new();
    let mut refused = 0;
    for pair in urls.chunks(2) {
        let sender = h2(&client, &bench.origin, 0).await;
        for url in pair {
            match tokio::time::timeout(Duration::from_millis(300), ask(&sender, url)).await {
                Ok(response) => held.push(response),
                // It waits for a place.
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0, "the control: there was room for everything");
    let taken = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();
    assert!(taken < 150, "{taken} of 160");
    // larder's own pages, and a body that is open already, are still served.
    assert!(crate::world::larder::own(daemon.address, "/-/health").await.contains("ok"));
    assert!(client.get(&urls[0]).send().await.complete().is_hit());
    drop(held);
    eventually("what is given back is had again", || async {
        client.get(&urls[79]).send().await.is_hit()
    })
    .await;
    assert!(!daemon.log().contains("damaged"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_which_nothing_is_taken_is_broken_off_although_pings_are_answered() {
    let world =
        World::with(|config| config.clients.stall_timeout = Duration::from_millis(200)).await;
    let body = noise(1, 1_000_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body));
    world.fetch(&url).await;
    let sender = h2(&world.client, &world.origin, 0).await;
    let stalled = ask(&sender, &url).await;
    eventually("the connection is gone", || async { sender.is_closed() }).await;
    assert_eq!(end_of(stalled).await, None);
    // The control: a client that reads gets the whole body.
    let sender = h2(&world.client, &world.origin, 70_000).await;
    assert_eq!(end_of(ask(&sender, &url).await).await, Some(1_000_000));
}

/// A stream that waits for its origin is not the client's fault, and is not ended with a stalled one beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stands_still_takes_no_other_with_it() {
    let world =
        World::with(|config| config.clients.stall_timeout = Duration::from_millis(200)).await;
    let (still, slow) = (noise(1, 1_000_000), noise(2, 60_000));
    let gate = Gate::closed();
    let url = world.origin.put(&by_hash(&still), Page::new(still));
    let page = Page::new(slow).fault(Fault::Hold(30_000, gate.clone()));
    let slow_url = world.origin.put("/slow.bin", page);
    world.fetch(&url).await;
    let sender = h2(&world.client, &world.origin, 65_000).await;
    let waiting = ask(&sender, &slow_url).await;
    let stalled = ask(&sender, &url).await;
    let mut reading = waiting.into_body();
    let mut got = reading.frame().await.unwrap().unwrap().into_data().unwrap().len();
    // Long after the limit; only a timer can show that nothing happens.
    tokio::time::sleep(Duration::from_millis(900)).await;
    gate.open();
    while let Some(frame) = reading.frame().await {
        got += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(got, 60_000);
    assert_eq!(end_of(stalled).await, None, "the control: the other was given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_shut_another_out() {
    let world = World::with(|config| {
        config.clients.max_connections = 8;
        config.clients.connections_per_address = 8;
        config.clients.requests_per_address = 2;
    })
    .await;
    let body = noise(1, 1_000_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body));
    world.fetch(&url).await;
    // Each is in the middle of an answer, or waits for a place: none is quiet.
    let mut senders = Vec::new();
    for _ in 0..7 {
        let sender = h2(&world.client, &world.origin, 0).await;
        let (asking, asked) = (sender.clone(), url.clone());
        senders.push((sender, tokio::spawn(async move { ask(&asking, &asked).await })));
    }
    eventually("all seats of one address are taken", || async {
        world.proxy.metric("larder_limit_in_use", "\"connections_per_address\"").await >= 7.0
    })
    .await;
    // The same address requests larder's own pages without a seat.
    assert!(world.proxy.own("/-/health").await.contains("ok"));
    let most = world.proxy.own("/-/metrics").await;
    assert!(most.contains("larder_limit_max{limit=\"requests_per_address\"} 2\n"), "{most}");
    let other = world.client.get(&url).from("127.0.0.2").send().await;
    assert!(other.complete().is_hit());
    // The control: another connection of the same address waits.
    let (same, asked) = (world.client.clone(), url.clone());
    let waits = tokio::spawn(async move { same.get(&asked).send().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waits.is_finished());
    for (sender, asking) in senders {
        asking.abort();
        drop(sender);
    }
    assert!(waits.await.unwrap().complete().is_hit());
}

/// Whether a persistent connection still answers.
async fn answers(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), host: &str) -> bool {
    let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let head = read_head(stream).await;
    let mut body = [0];
    head.starts_with("HTTP/1.1 200") && stream.read_exact(&mut body).await.is_ok()
}

/// Issue 17, fault 9: if all connections that an address may have are idle, a new client is still served: the longest idle
/// connections are closed, and none whose request is being answered. `src/intercept/visitors/tests.rs` has the same for all
/// addresses together.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_way_for_a_new_client_the_longest_idle_first() {
    // Of 32 seats one address may have 28.
    let world = World::with(|config| {
        config.clients.max_connections = 32;
        config.clients.connections_per_address = 32;
    })
    .await;
    let url = world.origin.put("/x", Page::new("x").fresh(60));
    let gate = Gate::closed();
    let slow = Page::new(noise(2, 60_000)).fault(Fault::Hold(30_000, gate.clone()));
    let slow = world.origin.put("/slow.bin", slow);
    let host = world.origin.authority();
    // The oldest connection, in the middle of its answer.
    let busy = ask(&h2(&world.client, &world.origin, 65_000).await, &slow).await;
    let mut idle = Vec::new();
    for _ in 0..27 {
        let mut stream = world.client.inside(&host).await.unwrap();
        assert!(answers(&mut stream, &host).await);
        idle.push(stream);
    }
    let in_use = world.proxy.metric("larder_limit_in_use", "\"connections\"").await;
    assert!(in_use >= 28.0, "the control: one address has all that it may have: {in_use}");
    assert!(world.client.get(&url).send().await.complete().is_hit());
    let mut left = Vec::new();
    for stream in &mut idle {
        left.push(answers(stream, &host).await);
    }
    let gone = left.iter().filter(|left| !**left).count();
    assert!((1..27).contains(&gone), "{left:?}");
    assert!(left.iter().skip(gone).all(|left| *left), "the longest idle go first: {left:?}");
    gate.open();
    assert_eq!(end_of(busy).await, Some(60_000), "what is being answered stays");
}

/// The origin is not blamed if larder has no resources: its circuit breaker stays closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_copy_stands_in_while_no_connection_can_be_opened() {
    let bench = Bench::new().await;
    let url = bench.origin.put("/list", Page::new("stored").etag("\"1\""));
    let daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    client.get(&url).send().await.complete();
    let mut kept = Kept::new(&client, &bench.origin).await;
    bench.origin.mood(Mood::Well);
    bench.origin.cut();
    allow(daemon.id(), Some(8));
    let got = kept.get("/new").await;
    assert!(got.is_none_or(|(status, _)| status == StatusCode::SERVICE_UNAVAILABLE));
    allow(daemon.id(), Some(4096));
    bench.origin.put("/new", Page::new("new"));
    let got = client.get(&bench.origin.url("/new")).send().await.complete();
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"new"[..]));
}
