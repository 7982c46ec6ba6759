//! A pass is the client's own request: everything that works without larder works with it, and nothing of it is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Method, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::world::archive::by_hash;
use crate::world::client::read_head;
use crate::world::page::{empty, fed, whole};
use crate::world::{Gate, Page, World, holding, noise};

/// An origin's answer with the body of the request.
async fn echo(
    request: hyper::Request<hyper::body::Incoming>,
) -> Response<crate::world::page::OriginBody> {
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    body.map_or_else(|_| Response::new(empty()), |body| Response::new(whole(body)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_carries_its_body_there_and_back() {
    let world = World::new().await;
    let url = world.origin.script("/echo", echo);
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "GET"] {
        for h2 in [false, true] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let body = noise(1, 100_000);
            let ask = world.client.ask(method.clone(), &url).body(body.clone());
            let got = if h2 { ask.h2().send().await } else { ask.send().await };
            assert!(got.complete().body == body, "{method} h2={h2}");
        }
    }
    let methods: Vec<Method> =
        world.origin.asked("/echo").into_iter().map(|asked| asked.method).collect();
    assert_eq!(methods.len(), 16);
    assert!(methods.contains(&Method::from_bytes(b"REPORT").unwrap()));
}

/// Gigabytes are uploaded; larder takes no more from the client than the origin takes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_held_back_by_its_origin() {
    const PIECE: usize = 64 * 1024;
    const PIECES: u64 = 4096;
    let world = World::new().await;
    let gate = Gate::closed();
    let opened = gate.clone();
    let url = world.origin.script("/upload", move |request| {
        let gate = opened.clone();
        async move {
            gate.passed().await;
            let mut body = request.into_body();
            let mut len = 0_u64;
            while let Some(Ok(frame)) = body.frame().await {
                len += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Response::new(whole(len.to_string()))
        }
    });
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    let pieces = futures_util::stream::unfold(0_u64, move |number| {
        let count = Arc::clone(&count);
        async move {
            count.store(number, Ordering::SeqCst);
            let piece = Ok(Frame::data(Bytes::from(vec![0; PIECE])));
            (number < PIECES).then_some((piece, number + 1))
        }
    });
    let ask =
        world.client.ask(Method::PUT, &url).stream(BodyExt::boxed_unsync(StreamBody::new(pieces)));
    let sending = tokio::spawn(ask.send());
    // Until nothing moves any more: all buffers between client and origin are full.
    let mut before = u64::MAX;
    while taken.load(Ordering::SeqCst) != before || before == 0 {
        before = taken.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(before < PIECES / 2, "{before} of {PIECES} pieces were taken from the client");
    gate.open();
    let got = sending.await.unwrap().complete();
    assert_eq!(got.body, (PIECES * PIECE as u64).to_string());
    assert!(!holding(&world.proxy.data, b"%never%").iter().any(|_| true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_echoes() {
    let world = World::new().await;
    let url = world.origin.script("/socket", |mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let (mut from, mut to) = tokio::io::split(stream);
            let _ended = tokio::io::copy(&mut from, &mut to).await;
        });
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in
            [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", "x")]
        {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    });
    let ask = world.client.get(&url).header("connection", "Upgrade").header("upgrade", "websocket");
    let opened = ask.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").open().await.unwrap();
    assert_eq!(opened.status.as_u16(), 101);
    assert_eq!(opened.headers["upgrade"], "websocket");
    let mut socket = opened.upgraded().await;
    for word in ["one", "another"] {
        socket.write_all(word.as_bytes()).await.unwrap();
        socket.flush().await.unwrap();
        let mut back = vec![0; word.len()];
        socket.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
}

/// An event reaches the client before the origin sends the next one: the origin waits until the test has read it.
#[tokio::test(flavor = "multi_thread")]
async fn events_flow_before_the_stream_ends() {
    let world = World::new().await;
    for h2 in [false, true] {
        let (send, receive) = mpsc::channel(1);
        let receive = std::sync::Mutex::new(Some(receive));
        let url = world.origin.script("/events", move |_| {
            let mut response = Response::new(fed(receive.lock().unwrap().take().unwrap()));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            async move { response }
        });
        let ask = world.client.get(&url).header("accept", "text/event-stream");
        let mut opened = if h2 { ask.h2().open().await } else { ask.open().await }.unwrap();
        let mut expected = Vec::new();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            send.send(Ok(Frame::data(event.into()))).await.unwrap();
            expected.extend_from_slice(event.as_bytes());
            assert!(opened.read(expected.len()).await);
            assert_eq!(opened.so_far(), expected);
        }
        drop(send);
        assert!(opened.equals(&expected).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_waits_for_its_answer() {
    let world = World::new().await;
    let gate = Gate::closed();
    let opened = gate.clone();
    let url = world.origin.script("/poll?since=7", move |_| {
        let gate = opened.clone();
        async move {
            gate.passed().await;
            Response::new(whole("news"))
        }
    });
    let polls: Vec<_> = (0..3).map(|_| tokio::spawn(world.client.get(&url).send())).collect();
    crate::world::eventually("it is asked", || async { world.origin.total() > 0 }).await;
    gate.open();
    for poll in polls {
        assert_eq!(poll.await.unwrap().complete().body, "news");
    }
}

/// gRPC: HTTP/2 end to end, with the result in the trailers.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_travel_both_ways() {
    let world = World::new().await;
    let url = world.origin.script("/grpc", |request| async move {
        let collected = request.into_body().collect().await.unwrap();
        let sent = collected.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        let (tx, rx) = mpsc::channel(4);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-sum-was", sent.unwrap_or_else(|| "none".parse().unwrap()));
        tx.send(Ok(Frame::data(collected.to_bytes()))).await.unwrap();
        tx.send(Ok(Frame::trailers(trailers))).await.unwrap();
        Response::new(fed(rx))
    });
    let (send, receive) = mpsc::channel(4);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    send.send(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x01x")))).await.unwrap();
    send.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(send);
    let ask = world.client.ask(Method::POST, &url).h2().header("te", "trailers");
    let got =
        ask.header("content-type", "application/grpc").stream(fed(receive)).send().await.complete();
    assert_eq!(got.body, &b"\0\0\0\0\x01x"[..]);
    let trailers = got.trailers.unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-sum-was"]),
        (&"0".parse().unwrap(), &"42".parse().unwrap())
    );
    let asked = &world.origin.asked("/grpc")[0];
    assert_eq!((asked.version, asked.text("te")), (Version::HTTP_2, Some("trailers")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_continue_hears_it_before_it_sends() {
    let world = World::new().await;
    world.origin.script("/echo", echo);
    let authority = world.origin.authority();
    let mut stream = world.client.inside(&authority).await.unwrap();
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {authority}\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"hello").await.unwrap();
    let (answer, _) = crate::world::client::read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

/// A header field that larder does not know may be a credential.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_fetched_with_an_unknown_secret_is_kept() {
    for (name, value) in [
        ("x-vault-token", "s3cr3t-vault"),
        ("authorization", "NTLM s3cr3t-of-a-connection"),
        ("x-unheard-of", "s3cr3t-unheard"),
    ] {
        let world = World::new().await;
        let body = noise(2, 300_000);
        let path = by_hash(&body);
        let url = world.origin.put(&path, Page::new(body.clone()).fresh(600));
        for _ in 0..2 {
            let got = world.client.get(&url).header(name, value).send().await.complete();
            assert!(!got.is_hit() && got.body == body, "{name}: {}", got.cache_status());
        }
        assert_eq!(world.origin.asked(&path)[1].text(name), Some(value), "the origin gets it");
        assert!(
            holding(&world.proxy.data, &body[1000..1032]).is_empty(),
            "{name}: the body is kept"
        );
        let secret = value.split_once("s3cr3t").unwrap().1;
        assert!(
            holding(&world.proxy.data, secret.as_bytes()).is_empty(),
            "{name}: the secret is kept"
        );
        // A client without the secret is not given what was fetched with it.
        let asked = world.origin.gets(&path);
        world.fetch(&url).await;
        assert_eq!(world.origin.gets(&path), asked + 1, "{name}");
        // The control: without a secret the body is kept, and the same search finds it.
        assert!(!holding(&world.proxy.data, &body[1000..1032]).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_change_nothing_make_no_pass() {
    let world = World::with(|config| config.http.harmless_headers = vec!["x-ci-*".into()]).await;
    let body = noise(3, 100_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body));
    world.fetch(&url).await;
    for (name, value) in [
        ("user-agent", "pip/23.2.1 {\"ci\":true}"),
        ("accept", "text/plain"),
        ("accept-language", "de"),
        ("accept-encoding", "gzip, deflate, br"),
        ("cache-control", "max-age=0"),
        ("pragma", "no-cache"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("connection", "keep-alive"),
        ("x-ci-job", "7"),
    ] {
        let got = world.client.get(&url).header(name, value).send().await.complete();
        assert!(got.is_hit(), "{name}: {}", got.cache_status());
    }
}

/// A fill is built from the key only: no header field of the first client affects what others get.
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_is_built_from_the_key_alone() {
    let world = World::new().await;
    let body = noise(4, 100_000);
    let path = by_hash(&body);
    let url = world.origin.put(&path, Page::new(body).etag("v1"));
    let ask =
        world.client.get(&url).header("user-agent", "s3cr3t-agent").header("accept-encoding", "br");
    ask.header("if-none-match", "\"v0\"").range("5-9").send().await.complete();
    let whole: Vec<_> = world
        .origin
        .asked(&path)
        .into_iter()
        .filter(|asked| asked.text("range").is_none())
        .collect();
    assert_eq!(whole.len(), 1);
    for (name, never) in
        [("user-agent", "s3cr3t-agent"), ("accept-encoding", "br"), ("if-none-match", "\"v0\"")]
    {
        assert_ne!(whole[0].text(name), Some(never));
    }
    assert!(whole[0].text("accept-encoding").is_none_or(|value| value == "identity"));
}

/// NTLM and Negotiate authenticate connections: no other client may use a connection on which a pass has logged in.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_shares_its_upstream_connection_with_nobody() {
    let world = World::new().await;
    let secret = world.origin.put("/private", Page::new("private"));
    let public = world.origin.put("/public", Page::new("public"));
    for _ in 0..3 {
        world.client.get(&secret).header("authorization", "NTLM x").send().await.complete();
        world.fetch(&public).await;
    }
    let of = |path| -> Vec<usize> {
        world.origin.asked(path).iter().map(|asked| asked.connection).collect()
    };
    let (passes, fills) = (of("/private"), of("/public"));
    assert!(passes.iter().all(|connection| !fills.contains(connection)), "{passes:?} {fills:?}");
    let mut different = passes.clone();
    different.dedup();
    assert_eq!(different.len(), 3, "three clients, three connections: {passes:?}");
}

/// The client gets the origin's own answer, not larder's.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_origin_is_heard_in_its_own_words() {
    let world = World::new().await;
    let page =
        Page::status(401).header("www-authenticate", "Bearer realm=\"https://example.org/token\"");
    let url = world.origin.put("/v2/", page);
    let got = world.client.get(&url).header("user-agent", "docker/1").send().await;
    assert_eq!(got.status.as_u16(), 401);
    assert!(got.text("www-authenticate").contains("realm="));
    assert_eq!(world.origin.asked("/v2/").last().unwrap().text("user-agent"), Some("docker/1"));
    for _ in 0..2 {
        assert_eq!(world.get(&url).await.status.as_u16(), 401);
    }
    world.origin.put("/v2/", Page::new("{}"));
    assert_eq!(world.fetch(&url).await.body, "{}");
}

/// With HTTP/2 a broken stream ends alone: the others on its connection continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pass_takes_no_other_stream_with_it() {
    let world = World::new().await;
    let (good, gate) = (noise(5, 300_000), Gate::closed());
    let page = Page::new(good.clone());
    world.origin.put("/good", page.fault(crate::world::Fault::Hold(1000, gate.clone())));
    let (feed, fed_by) = mpsc::channel(4);
    let once = std::sync::Mutex::new(Some(fed_by));
    world.origin.script("/bad", move |_| {
        let body = once.lock().unwrap().take().unwrap();
        async move { Response::new(fed(body)) }
    });
    let authority = world.origin.authority();
    let stream = world.client.tunnel(&authority).await.unwrap();
    let stream = world.client.tls(stream, "127.0.0.1", &["h2"]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let mut ask = |path: &str| {
        let request = hyper::Request::get(world.origin.url(path))
            .header("x-unheard-of", "1")
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap();
        sender.send_request(request)
    };
    let (good_answer, bad_answer) = (ask("/good"), ask("/bad"));
    let (good_answer, bad_answer) = (good_answer.await.unwrap(), bad_answer.await.unwrap());
    assert_eq!(bad_answer.status(), StatusCode::OK);
    let cut = std::io::Error::other("the test cuts here");
    feed.send(Err(cut)).await.unwrap();
    assert!(bad_answer.into_body().collect().await.is_err());
    gate.open();
    let collected = good_answer.into_body().collect().await;
    assert_eq!(collected.unwrap().to_bytes(), good);
}

/// A promise is about the file's own bytes: larder asks the origin not to apply a content coding.
#[tokio::test(flavor = "multi_thread")]
async fn a_coded_body_is_not_taken_for_a_wrong_one() {
    let world = World::new().await;
    let body = noise(7, 10_000);
    let served = body.clone();
    let url = world.origin.script(&by_hash(&body), move |request| {
        let coded = request
            .headers()
            .get("accept-encoding")
            .is_some_and(|value| value.to_str().unwrap().contains("gzip"));
        let mut response =
            Response::new(whole(if coded { Bytes::from_static(b"coded") } else { served.clone() }));
        if coded {
            response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        }
        async move { response }
    });
    let ask = world.client.get(&url).header("authorization", "Basic eDp5");
    let got = ask.header("accept-encoding", "gzip").send().await;
    assert_eq!(got.complete().body, body);
}
