//! The listener: which connections it accepts, how long they may be idle or slow, and what larder's own pages say.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::client::{read_all, read_head};
use crate::world::page::whole;
use crate::world::{Origin, PATIENCE, Page, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_flows_and_is_never_shared() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    let url = plain.put("/x", Page::new("x").fresh(600));
    for _ in 0..2 {
        let got = world.fetch(&url).await;
        assert!(!got.is_hit(), "{}", got.cache_status());
    }
    assert_eq!(plain.gets("/x"), 2);
    // Over plain HTTP only a digest in the request itself protects from an attacker on the path.
    let body = crate::world::noise(1, 100_000);
    let path = crate::world::archive::by_hash(&body);
    let url = plain.put(&path, Page::new(body.clone()));
    world.fetch(&url).await;
    assert!(world.fetch(&url).await.is_hit());
    assert_eq!(plain.gets(&path), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_carries_plain_http_is_served_as_http() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    plain.put("/x", Page::new("plain inside"));
    let authority = plain.authority();
    let mut stream = world.client.tunnel(&authority).await.unwrap();
    let request = format!("GET /x HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (answer, _) = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("plain inside"), "{answer}");
    assert!(answer.to_lowercase().contains("cache-status: larder"), "{answer}");
}

/// A server that speaks first, and a client that does not speak HTTP: both are copied through, or refused by configuration.
#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_are_tunnelled_where_that_is_allowed() {
    for allowed in [true, false] {
        let world = World::with(|config| {
            config.hosts.tunnel_unknown_protocols = allowed;
            if !allowed {
                // larder waits this long for a handshake, which does not come.
                config.clients.handshake_timeout = Duration::from_secs(1);
            }
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
            let mut back = [0; 5];
            let _ended = stream.read_exact(&mut back).await;
            stream.write_all(&back).await.unwrap();
        });
        let Ok(mut stream) = world.client.tunnel(&authority).await else {
            assert!(!allowed);
            continue;
        };
        let mut greeting = [0; 14];
        let greeted = stream.read_exact(&mut greeting).await.is_ok();
        assert_eq!(greeted, allowed);
        if allowed {
            stream.write_all(b"\x00\x01abc").await.unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"\x00\x01abc");
            server.await.unwrap();
        } else {
            server.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn larder_tells_about_itself() {
    let world = World::new().await;
    for (path, part) in [
        ("/-/health", "ok"),
        ("/-/ready", "ready"),
        ("/-/metrics", "# EOF"),
        ("/ca.crt", "-----BEGIN CERTIFICATE-----"),
    ] {
        let said = world.proxy.own(path).await;
        assert!(said.to_lowercase().contains(&part.to_lowercase()), "{path}: {said}");
    }
    assert!(!world.proxy.own("/ca.crt").await.contains("PRIVATE"));
}

/// auto-apt-proxy takes a server that answers `GET /` with 406 on this port for an apt proxy; it asks by apt's own client. To
/// everybody else the page is no error.
#[tokio::test(flavor = "multi_thread")]
async fn programs_that_look_for_a_proxy_for_apt_find_one() {
    let world = World::new().await;
    for (fields, status) in [
        ("User-Agent: Debian APT-HTTP/1.3 (2.6.1)\r\n", "http/1.1 406 usage information"),
        (
            "User-Agent: Ubuntu APT-HTTP/1.3 (2.4.13)\r\nAccept: text/*\r\n",
            "http/1.1 406 usage information",
        ),
        ("User-Agent: Mozilla/5.0 (X11)\r\nAccept: text/html\r\n", "http/1.1 200 ok"),
        ("User-Agent: curl/8.0\r\nAccept: */*\r\n", "http/1.1 200 ok"),
        ("", "http/1.1 200 ok"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}Connection: close\r\n\r\n");
        let (answer, _) = world.client.raw_plain(&request).await;
        assert!(answer.to_lowercase().starts_with(status), "{fields}: {answer}");
        assert!(answer.to_lowercase().contains("vary: accept, user-agent"), "{answer}");
    }
}

/// A website may make its own host name resolve to larder's address (DNS rebinding): a browser is shown the counters only under
/// larder's own names. Monitoring, set-up and health checks may use any name.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_name_does_not_read_what_is_counted() {
    let world = World::with(|config| {
        config.mirror.names = vec![larder::config::HostPattern("cache.example.org".into())];
    })
    .await;
    let status = async |path: &str, host: &str, fields: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
        let (answer, _) = world.client.raw_plain(&request).await;
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let chrome = "User-Agent: Mozilla/5.0 (X11)\r\nAccept-Language: en\r\n";
    let renamed = "User-Agent: other\r\nAccept-Language: en\r\n";
    let (metrics, probe) = ("/-/metrics", "/-/probe/0123456789abcdef");
    let kept = ["/-/ls", "/-/recent", "/-/stats", "/-/why?url=https://example.org/"];
    let told = [(metrics, chrome), (metrics, renamed), (probe, chrome)];
    for (path, fields) in told.into_iter().chain(kept.map(|path| (path, chrome))) {
        for (host, expected) in [
            ("evil.example.com", "421"),
            ("evil.example.com:3142", "421"),
            ("cache.example.org:3142", "200"),
            ("127.0.0.1:3142", "200"),
            ("10.0.0.7", "200"),
            ("[::1]:3142", "200"),
            ("localhost:3142", "200"),
            ("larder", "200"),
        ] {
            assert_eq!(status(path, host, fields).await, expected, "{path} {host} {fields}");
        }
    }
    assert_eq!(
        status(metrics, "prometheus.example.com", "User-Agent: Prometheus/3\r\n").await,
        "200"
    );
    for path in ["/setup", "/ca.crt", "/-/health", "/-/ready"] {
        for fields in ["", chrome] {
            assert_eq!(status(path, "unheard-of.example.com", fields).await, "200", "{path}");
        }
    }
    assert_eq!(status("/", "unheard-of.example.com", chrome).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_refusals_are_counted() {
    let world = World::new().await;
    let body = crate::world::noise(2, 1000);
    let url = world.origin.put(&crate::world::archive::by_hash(&body), Page::new(body));
    for _ in 0..3 {
        world.fetch(&url).await;
    }
    world.proxy.counted("larder_requests", "hit", 2.0).await;
    world.proxy.counted("larder_requests", "miss", 1.0).await;
}

/// Many silent connections keep no client out: each has its time limit, and is then closed.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_let_go() {
    let world = World::with(|config| {
        config.clients.header_timeout = Duration::from_millis(300);
        config.clients.handshake_timeout = Duration::from_millis(300);
        config.clients.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let mut silent = world.client.dial().await;
    silent.write_all(b"GET http://example.org/ HT").await.unwrap();
    let mut half = world.client.tunnel(&world.origin.authority()).await.unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is still open");
    }
    let url = world.origin.put("/x", Page::new("x"));
    assert_eq!(world.fetch(&url).await.body, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_allowed_wait_their_turn() {
    let world = World::with(|config| config.clients.max_connections = 4).await;
    let url = world.origin.put("/x", Page::new("x"));
    let mut open: Vec<TcpStream> = Vec::new();
    for _ in 0..4 {
        open.push(world.client.tunnel(&world.origin.authority()).await.unwrap());
    }
    let (client, asked) = (world.client.clone(), url.clone());
    let waiting = tokio::spawn(async move { client.get(&asked).send().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "a fifth connection was served");
    drop(open);
    assert_eq!(waiting.await.unwrap().complete().body, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_requests() {
    let world = World::new().await;
    for path in ["/a", "/b", "/c"] {
        world.origin.put(path, Page::new(path).fresh(60));
    }
    let authority = world.origin.authority();
    let mut stream = world.client.inside(&authority).await.unwrap();
    // All at once, as apt pipelines them.
    let mut all = String::new();
    for path in ["/a", "/b", "/c", "/a"] {
        write!(all, "GET {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
    }
    stream.write_all(all.as_bytes()).await.unwrap();
    for path in ["/a", "/b", "/c", "/a"] {
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(body, path.as_bytes());
    }
}

/// An oversized header is refused with a status, and causes no crash and no hang.
#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_broken_heads_are_refused() {
    let world = World::new().await;
    let authority = world.origin.authority();
    let long = "a".repeat(200_000);
    let many = "X-A: b\r\n".repeat(5000);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
        format!("GET /x HTTP/1.1\r\nHost: {authority}\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /x HTTP/1.1\r\nHost: {authority}\r\n{many}\r\n"),
        format!("GET /x HTTP/9.9\r\nHost: {authority}\r\n\r\n"),
        format!("G@T /x HTTP/1.1\r\nHost: {authority}\r\nBad Header\r\n\r\n"),
        "\r\n\r\n\r\n".to_owned(),
    ] {
        let mut stream = world.client.inside(&authority).await.unwrap();
        let _gone = stream.write_all(request.as_bytes()).await;
        let _gone = stream.shutdown().await;
        let ended = tokio::time::timeout(PATIENCE, read_all(&mut stream)).await;
        let (answer, _) = ended.expect("it hangs");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{}", &request[..60.min(request.len())]);
    }
    assert_eq!(world.origin.total(), 0);
    let url = world.origin.put("/x", Page::new("x"));
    assert_eq!(world.fetch(&url).await.body, "x");
}

/// mitmproxy#427: clients that pin certificates, and origins that require a client certificate. larder remembers them and
/// tunnels.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_speaks_no_tls_of_ours_is_tunnelled_the_next_time() {
    let world = World::new().await;
    let odd = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = odd.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = odd.accept().await.unwrap();
            let mut hello = [0; 5];
            let _gone = stream.read_exact(&mut hello).await;
            // A fatal handshake_failure alert (RFC 8446 §6.2), as from a server that requires another TLS.
            let _gone = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).await;
        }
    });
    let url = format!("https://{authority}/x");
    assert!(!world.get(&url).await.is_complete());
    eventually("the origin's own TLS reaches the client", || async {
        let stream = world.client.tunnel(&authority).await.unwrap();
        let failed = world.client.tls(stream, "127.0.0.1", &["http/1.1"]).await.err();
        failed.is_some_and(|error| error.to_string().to_lowercase().contains("handshake"))
    })
    .await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_what_larder_did() {
    let world = World::new().await;
    let url = world.origin.put("/x", Page::new("x").fresh(60));
    assert!(world.fetch(&url).await.cache_status().starts_with("larder; fwd=miss"));
    assert!(world.fetch(&url).await.is_hit());
    let passed = world.client.get(&url).header("x-unheard-of", "x").send().await;
    assert!(passed.cache_status().starts_with("larder; fwd=bypass"), "{}", passed.cache_status());
    let echo = world.origin.script("/post", |_| async { hyper::Response::new(whole("x")) });
    let posted = world.client.ask(hyper::Method::POST, &echo).send().await;
    assert!(posted.cache_status().starts_with("larder; fwd=method"), "{}", posted.cache_status());
}
