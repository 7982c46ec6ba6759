//! Which requests share a connection, and which never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt as _;
use hyper::{Request, Version};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::passing::{empty, h2_origin, pass};
use super::world::{
    After, Authority, INSIDE, Raw, Wants, ask, config, get, ok, origins, read_head, reply, target,
};
use crate::origin::{Ask, Duplex, Lane};

#[tokio::test]
async fn fills_share_a_connection_and_passes_share_none_with_them() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let origins = origins(config());
    let url = raw.url("http", "/a");
    get(&origins, ask(&url)).await.unwrap();
    get(&origins, ask(&url)).await.unwrap();
    assert_eq!(raw.connections(), 1, "two fills");
    let (one, two) = (origins.passes(), origins.passes());
    assert_eq!(pass(&one, &url).await, "x");
    assert_eq!(raw.connections(), 2, "a pass beside an idle fill");
    assert_eq!(pass(&two, &url).await, "x");
    assert_eq!(raw.connections(), 3, "another client's pass");
    for _ in 0..5 {
        assert_eq!(pass(&one, &url).await, "x");
    }
    get(&origins, ask(&url)).await.unwrap();
    assert_eq!(raw.connections(), 3, "each goes on where it was");
}

#[tokio::test]
async fn lanes_and_fresh_connections_are_apart() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let origins = origins(config());
    let bulk = ask(&raw.url("http", "/a"));
    get(&origins, bulk.clone()).await.unwrap();
    let metadata = Ask { lane: Lane::Metadata, ..bulk.clone() };
    get(&origins, metadata).await.unwrap();
    assert_eq!(raw.connections(), 2);
    let fresh = Ask { fresh_connection: true, ..bulk.clone() };
    get(&origins, fresh.clone()).await.unwrap();
    get(&origins, fresh).await.unwrap();
    assert_eq!(raw.connections(), 4);
    get(&origins, bulk).await.unwrap();
    assert_eq!(raw.connections(), 4);
}

/// A server that closes each connection without an answer when the second request arrives on it.
async fn forgetful() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut io: Box<dyn Duplex> = Box::new(stream);
                read_head(&mut io).await;
                seen.fetch_add(1, Ordering::SeqCst);
                io.write_all(&ok("x").0).await.unwrap();
                if read_head(&mut io).await.is_some() {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (port, requests)
}

/// Without larder the client's own HTTP library would have retried on a new connection.
#[tokio::test]
async fn a_connection_that_died_of_age_is_replaced_once() {
    let (number, requests) = forgetful().await;
    let url = format!("http://127.0.0.1:{number}/");
    let origins = origins(config());
    get(&origins, ask(&url)).await.unwrap();
    get(&origins, ask(&url)).await.unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 3);
    let passes = origins.passes();
    pass(&passes, &url).await;
    pass(&passes, &url).await;
    assert_eq!(requests.load(Ordering::SeqCst), 6);
    // A request that may have had an effect is not sent twice.
    let post = || Request::post("/").version(Version::HTTP_11).body(empty()).unwrap();
    assert!(passes.send(&target(&url), post(), INSIDE).await.is_err());
    assert!(passes.send(&target(&url), post(), INSIDE).await.is_ok());
}

#[tokio::test]
async fn alpn_decides_between_h2_and_h1() {
    let authority = Authority::new();
    let (trusted, _file) = authority.trusted();
    let origins = origins(trusted);
    for (alpn, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let (at, connections) =
            h2_origin(authority.server(alpn, Wants::Nothing, rustls::ALL_VERSIONS)).await;
        let url = format!("https://127.0.0.1:{}/version", at.port());
        for _ in 0..3 {
            let seen = get(&origins, ask(&url)).await.unwrap();
            assert_eq!(String::from_utf8(seen).unwrap(), version);
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        // A connection outside the pool lasts as long as its body.
        let fresh =
            Ask { fresh_connection: true, ..ask(&format!("https://127.0.0.1:{}/big", at.port())) };
        assert_eq!(get(&origins, fresh).await.unwrap().len(), 20 << 20);
        assert_eq!(connections.load(Ordering::SeqCst), 2);
        // A pass uses its client's HTTP version.
        for (came, went) in [(Version::HTTP_2, version), (Version::HTTP_11, "HTTP/1.1")] {
            let request = Request::get("/").version(came).body(empty()).unwrap();
            let response = origins.passes().send(&target(&url), request, INSIDE).await;
            let body = response.unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes(), went.as_bytes());
        }
    }
}

/// Concurrent streams of one HTTP/2 client share one upstream connection.
#[tokio::test]
async fn streams_that_start_together_share_a_connection() {
    let authority = Authority::new();
    let (trusted, _file) = authority.trusted();
    let origins = origins(trusted);
    let server = authority.server(&["h2"], Wants::Nothing, rustls::ALL_VERSIONS);
    let (at, connections) = h2_origin(server).await;
    let url = format!("https://127.0.0.1:{}/version", at.port());
    let passes = Arc::new(origins.passes());
    let streams: Vec<_> = (0..20)
        .map(|_| {
            let (passes, to) = (Arc::clone(&passes), target(&url));
            tokio::spawn(async move {
                let request = Request::get("/").version(Version::HTTP_2).body(empty());
                let response = passes.send(&to, request.unwrap(), INSIDE).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            })
        })
        .collect();
    for stream in streams {
        assert_eq!(stream.await.unwrap(), "HTTP/2.0");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stalled_connection_is_not_used_again() {
    let raw = Raw::serve(None, |head| {
        if head.starts_with("GET /stall") {
            reply("HTTP/1.1 200 OK\nContent-Length: 5\n\n", After::Hang)
        } else {
            ok("x")
        }
    })
    .await;
    let origins = origins(config());
    assert!(get(&origins, ask(&raw.url("http", "/stall"))).await.is_err());
    assert_eq!(get(&origins, ask(&raw.url("http", "/"))).await.unwrap(), b"x");
    assert_eq!(raw.connections(), 2);
}

/// A plain-http client that requests from many origins does not pile up connections.
#[tokio::test]
async fn a_client_that_asks_many_origins_keeps_few_connections() {
    let authority = Authority::new();
    let (trusted, _file) = authority.trusted();
    let passes = origins(trusted).passes();
    let raw = Raw::serve(None, |_| ok("x")).await;
    for last in 1..=100 {
        let url = format!("http://127.0.1.{last}:{}/", raw.at.port());
        let request = Request::get("/").version(Version::HTTP_11).body(empty());
        // Nothing listens there, but the way is remembered.
        assert!(passes.send(&target(&url), request.unwrap(), INSIDE).await.is_err());
    }
    assert!(passes.ways() <= 32);
    assert_eq!(pass(&passes, &raw.url("http", "/")).await, "x");
}
