//! P1: a request names one target. CONNECT, SNI, `Host`, `:authority` and an absolute URI must agree, or the request is refused;
//! and a refused request reaches no origin.

use crate::world::client::read_all;
use crate::world::{Origin, Page, World};

/// Two origins behind one proxy; the second must never get a request that was made in a tunnel to the first.
struct Two {
    world: World,
    other: Origin,
}

impl Two {
    async fn new() -> Self {
        let world = World::new().await;
        let other = world.another("127.0.0.2").await;
        for origin in [&world.origin, &other] {
            origin.put("/x", Page::new("right").fresh(60));
        }
        Self { world, other }
    }

    /// The authorities of the tunnel's origin and of the other origin.
    fn names(&self) -> (String, String) {
        (self.world.origin.authority(), self.other.authority())
    }

    /// The status of the first answer to `request` in a tunnel to the first origin.
    async fn inside(&self, request: &str) -> u16 {
        let (answer, _) = self.world.client.raw(&self.world.origin.authority(), request).await;
        status(&answer)
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn request(target: &str, headers: &[&str]) -> String {
    let mut text = format!("GET {target} HTTP/1.1\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("Connection: close\r\n\r\n");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_tunnel_host_and_uri_name_the_tunnels_origin() {
    let two = Two::new().await;
    let (own, other) = two.names();
    let host = format!("Host: {own}");
    let own_uri = format!("https://{own}/x");
    for agreeing in [request("/x", &[&host]), request(&own_uri, &[&host])] {
        assert_eq!(two.inside(&agreeing).await, 200, "{agreeing}");
    }
    let asked = two.world.origin.total();
    let other_host = format!("Host: {other}");
    let plain_uri = format!("http://{own}/x");
    let other_uri = format!("https://{other}/x");
    let with_user = format!("https://user:word@{own}/x");
    let host_with_user = format!("Host: user@{own}");
    let bare = format!("Host: {}", own.split(':').next().unwrap());
    for disagreeing in [
        request("/x", &[&other_host]),
        request("/x", &[&bare]),
        request("/x", &[]),
        request("/x", &["Host:"]),
        request("/x", &[&host, &other_host]),
        request("/x", &[&host, &host]),
        request("/x", &[&host_with_user]),
        request("/x", &["Host: example.org"]),
        request(&other_uri, &[&host]),
        request(&other_uri, &[&other_host]),
        request(&own_uri, &[&other_host]),
        request(&plain_uri, &[&host]),
        request(&with_user, &[&host]),
    ] {
        let status = two.inside(&disagreeing).await;
        assert!(status == 400 || status == 421, "{status} for {disagreeing}");
    }
    assert_eq!(two.world.origin.total(), asked, "a refused request reached the tunnel's origin");
    assert_eq!(two.other.total(), 0, "a refused request reached the other origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_h2_the_authority_is_the_tunnels() {
    let two = Two::new().await;
    let (own, other) = two.names();
    let client = &two.world.client;
    assert_eq!(client.get(&format!("https://{own}/x")).h2().send().await.status.as_u16(), 200);
    let asked = two.world.origin.total();
    let stream = client.tunnel(&own).await.unwrap();
    let stream = client.tls(stream, "127.0.0.1", &["h2"]).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for (authority, host) in [(&other, None), (&own, Some(&other)), (&other, Some(&own))] {
        let mut asked = hyper::Request::builder().uri(format!("https://{authority}/x"));
        if let Some(host) = host {
            asked = asked.header("host", host);
        }
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let status =
            sender.send_request(asked.body(body).unwrap()).await.unwrap().status().as_u16();
        assert!(status == 400 || status == 421, "{status} for {authority} {host:?}");
    }
    assert_eq!((two.world.origin.total(), two.other.total()), (asked, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_the_hello_that_is_not_the_tunnels_gets_nothing() {
    let two = Two::new().await;
    let (own, _) = two.names();
    let client = &two.world.client;
    let stream = client.tunnel(&own).await.unwrap();
    // Refused in the handshake, or with a 421 after it; in both cases no origin is asked and no 200 is given.
    if let Ok(mut stream) = client.tls(stream, "files.example.org", &["http/1.1"]).await {
        let text = request("/x", &[&format!("Host: {own}")]);
        let _gone = tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await;
        let (answer, _) = read_all(&mut stream).await;
        assert!(status(&answer) == 421 || answer.is_empty(), "{answer}");
    }
    assert_eq!(two.world.origin.total(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_names_its_origin_once() {
    let two = Two::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    plain.put("/x", Page::new("plain"));
    let (own, (_, other)) = (plain.authority(), two.names());
    let client = &two.world.client;
    let uri = format!("http://{own}/x");
    let (answer, _) = client.raw_plain(&request(&uri, &[&format!("Host: {own}")])).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let asked = plain.total();
    for host in [
        vec![format!("Host: {other}")],
        vec![],
        vec![format!("Host: {own}"), format!("Host: {other}")],
    ] {
        let headers: Vec<&str> = host.iter().map(String::as_str).collect();
        let (answer, _) = client.raw_plain(&request(&uri, &headers)).await;
        assert_eq!(status(&answer), 400, "{host:?}: {answer}");
    }
    assert_eq!((plain.total(), two.other.total()), (asked, 0));
}

/// safe-chain#298: trailing dots, unusual spellings of addresses and encoded paths bypassed the rules.
#[tokio::test(flavor = "multi_thread")]
async fn odd_spellings_are_one_spelling_or_refused() {
    let two = Two::new().await;
    let (own, _) = two.names();
    let port = two.world.origin.address().port();
    let client = &two.world.client;
    for authority in [
        format!("127.1:{port}"),
        format!("0x7f.0.0.1:{port}"),
        format!("2130706433:{port}"),
        format!("0177.0.0.1:{port}"),
        format!("user@127.0.0.1:{port}"),
        "127.0.0.1".to_owned(),
        "127.0.0.1:0".to_owned(),
        "127.0.0.1:99999".to_owned(),
        "127.0.0.1:25".to_owned(),
        ":443".to_owned(),
    ] {
        let got = client.tunnel(&authority).await;
        let status = got.map_or_else(|refused| refused.status.as_u16(), |_| 200);
        assert!((400..500).contains(&status), "{status} for CONNECT {authority}");
    }
    let host = format!("Host: {own}");
    for path in [
        "/a/../x",
        "/a/%2e%2e/x",
        "/%2e/x",
        "/%2E/x",
        "/a\\..\\x",
        "/a x",
        "/a#x",
        "/%00",
        "/x%0d%0a",
    ] {
        assert_eq!(two.inside(&request(path, &[&host])).await, 400, "{path}");
    }
    assert_eq!((two.world.origin.total(), two.other.total()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_a_dot_at_its_end_or_in_capitals_is_the_same_name() {
    let world = World::new().await;
    let origin = world.another("localhost").await;
    origin.put("/x", Page::new("named").fresh(60));
    let port = origin.address().port();
    for host in ["localhost", "LOCALHOST", "localhost."] {
        let stream = world.client.tunnel(&format!("{host}:{port}")).await.unwrap();
        let mut stream = world.client.tls(stream, "localhost", &["http/1.1"]).await.unwrap();
        let text = request("/x", &[&format!("Host: LocalHost:{port}")]);
        tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
        let (answer, _) = read_all(&mut stream).await;
        assert_eq!(status(&answer), 200, "{host}: {answer}");
    }
    assert_eq!(origin.gets("/x"), 1, "the spellings are one target");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_may_tell_apart_is_not_merged() {
    let world = World::new().await;
    let paths = ["/a/b", "/a//b", "/a%2Fb", "/a/b?", "/a/b?x=1", "/a/b?x=2", "/a/b;v=1", "/A/b"];
    for path in paths {
        world.origin.put(path, Page::new(path).fresh(60));
    }
    for _ in 0..2 {
        for path in paths {
            let got = world.fetch(&world.origin.url(path)).await;
            assert_eq!(got.body, path.as_bytes());
        }
    }
    // The hexadecimal digits of an escape are case-insensitive (RFC 3986 §6.2.2.1).
    assert_eq!(world.fetch(&world.origin.url("/a%2fb")).await.body, "/a%2Fb".as_bytes());
}

/// apt-cacher-rs#54: https and http are different targets.
#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_is_never_changed() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    let url = plain.put("/x", Page::new("plain"));
    assert_eq!(world.fetch(&url).await.body, "plain");
    let over_tls = world.client.tunnel(&plain.authority()).await.unwrap();
    // TLS to an origin that does not speak it fails; it never falls back to plain HTTP.
    if let Ok(mut stream) = world.client.tls(over_tls, "127.0.0.1", &["http/1.1"]).await {
        let text = request("/x", &[&format!("Host: {}", plain.authority())]);
        tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
        let (answer, _) = read_all(&mut stream).await;
        assert_ne!(status(&answer), 200, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_framings_reach_nobody() {
    let two = Two::new().await;
    let host = format!("Host: {}", two.world.origin.authority());
    for (framing, refused) in [
        // RFC 9112 §6.1 lets a server choose; what larder forwards is framed once, and the connection ends.
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", false),
        ("Content-Length: 5\r\nContent-Length: 6", true),
        ("Transfer-Encoding: chunked, identity", true),
        ("Content-Length: +5", true),
        ("Content-Length : 5", true),
    ] {
        let text = format!(
            "POST /x HTTP/1.1\r\n{host}\r\n{framing}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n{host}\r\n\r\n"
        );
        let (answer, _) = two.world.client.raw(&two.world.origin.authority(), &text).await;
        assert!(!refused || matches!(status(&answer), 0 | 400), "{framing}: {answer}");
    }
    for asked in two.world.origin.asked("/x") {
        let framings =
            ["content-length", "transfer-encoding"].map(|name| asked.text(name).is_some());
        assert!(framings != [true, true], "{asked:?}");
    }
    assert!(two.world.origin.asked("/smuggled").is_empty());
}
