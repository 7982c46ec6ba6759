//! Issue 17 row 7: larder accepts what servers accept. URLs and header lines outside every standard reach the origin as they
//! would without larder, no two of them share an entry, and a refusal has a reason.

use hyper::{Method, StatusCode};
use proptest::prelude::{Strategy, any};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncWriteExt as _;

use crate::world::client::read_all;
use crate::world::verbatim::Verbatim;
use crate::world::{Page, World, noise};

/// Targets that browsers would escape, and that programs send as they are.
const ODD: [&[u8]; 12] = [
    b"/caf\xc3\xa9.tar",
    b"/latin\xe9",
    b"/a<b>c",
    b"/a`b",
    b"/a\"b",
    b"/a\\b",
    b"/a%",
    b"/a%2",
    b"/a%zzb",
    b"/a{b}|c^d[e]",
    b"/a?caf\xc3\xa9=<\">`\\%",
    b"/a?\xff\xfe",
];

/// A cacheable answer whose body is its target.
fn echo(target: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        target.len()
    );
    [head.as_bytes(), target].concat()
}

fn request(method: &str, target: &[u8], authority: &str, more: &str) -> Vec<u8> {
    let head = format!(" HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{more}\r\n");
    [method.as_bytes(), b" ", target, head.as_bytes()].concat()
}

/// The answer to these bytes inside a tunnel to `authority`.
async fn inside(world: &World, authority: &str, bytes: &[u8]) -> (String, String) {
    let mut stream = world.client.inside(authority).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    parted(read_all(&mut stream).await.0)
}

/// The answer to these bytes on a plain connection to larder.
async fn plain(world: &World, bytes: &[u8]) -> (String, String) {
    let mut stream = world.client.dial().await;
    stream.write_all(bytes).await.unwrap();
    parted(read_all(&mut stream).await.0)
}

fn parted(answer: String) -> (String, String) {
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) => (head.to_lowercase(), body.to_owned()),
        None => (answer, String::new()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_urls_reach_the_origin_as_they_were_sent_and_are_kept() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    for target in ODD {
        let asked = request("GET", target, origin.authority(), "");
        let (head, body) = inside(&world, origin.authority(), &asked).await;
        assert!(head.starts_with("http/1.1 200"), "{}: {head}\n{body}", target.escape_ascii());
        assert_eq!(body, text(target));
        let (again, body) = inside(&world, origin.authority(), &asked).await;
        assert!(again.contains("cache-status: larder; hit"), "{}: {again}", target.escape_ascii());
        assert_eq!(body, text(target));
    }
    assert_eq!(origin.targets(), ODD);
}

/// A pass is the client's own request, with or without a body, also over plain HTTP; in mirror form it is a path.
#[tokio::test(flavor = "multi_thread")]
async fn odd_urls_are_passed_as_they_were_sent() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    let bare = Verbatim::start(None, echo).await;
    let (mut expected, mut expected_bare) = (Vec::new(), Vec::new());
    for target in ODD {
        for (method, more) in [("GET", "X-Unknown: 1\r\n"), ("POST", "Content-Length: 0\r\n")] {
            let asked = request(method, target, origin.authority(), more);
            let (head, body) = inside(&world, origin.authority(), &asked).await;
            assert!(head.starts_with("http/1.1 200"), "{}: {head}\n{body}", target.escape_ascii());
            assert_eq!(body, text(target));
            expected.push(target.to_vec());
        }
        let absolute = [bare.url("").as_bytes(), target].concat();
        let mirrored = [format!("/http/{}", bare.authority()).as_bytes(), target].concat();
        let larder = world.proxy.address.to_string();
        for (target_sent, host) in [(&absolute, bare.authority()), (&mirrored, &*larder)] {
            let (head, body) = plain(&world, &request("GET", target_sent, host, "")).await;
            assert!(head.starts_with("http/1.1 200"), "{}: {head}\n{body}", target.escape_ascii());
            assert_eq!(body, text(target));
            expected_bare.push(target.to_vec());
        }
    }
    assert_eq!(origin.targets(), expected);
    assert_eq!(bare.targets(), expected_bare);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_urls_work_over_h2_as_far_as_it_carries_them() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    for path in ["/caf\u{e9}", "/a\"b", "/a\\b", "/a%", "/a?\u{e9}=%zz", "/\u{10ff3c}"] {
        let got = world.client.get(&origin.url(path)).h2().send().await.complete();
        assert_eq!(got.body, path.as_bytes());
    }
    let targets: Vec<String> = origin.targets().iter().map(|target| text(target)).collect();
    assert_eq!(targets, ["/caf\u{e9}", "/a\"b", "/a\\b", "/a%", "/a?\u{e9}=%zz", "/\u{10ff3c}"]);
    // Its target is the same as over HTTP/1.1, and no other.
    let asked = request("GET", "/caf\u{e9}".as_bytes(), origin.authority(), "");
    assert!(inside(&world, origin.authority(), &asked).await.0.contains("larder; hit"));
    let asked = request("GET", b"/<", origin.authority(), "");
    assert_eq!(inside(&world, origin.authority(), &asked).await.1, "/<");
}

/// Promise P1: each answer contains its target. Whatever is stored by then, each client gets the answer to its own request.
#[tokio::test(flavor = "multi_thread")]
async fn different_urls_never_share_an_entry() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    let pieces = proptest::sample::select(vec![
        // No unescaped hexadecimal digit among them: larder treats `%2a` as `%2A`, and refuses `%2e`, however the pieces are
        // joined.
        &b"x"[..],
        b"X",
        b"%58",
        b"%",
        b"%2",
        b"%25",
        b"%zz",
        b"\xc3\xa9",
        b"%C3%A9",
        b"o\xcc\x81",
        b"\xe9",
        b"%E9",
        b"<",
        b"%3C",
        b"\"",
        b"%22",
        b"`",
        b"\\",
        b"%5C",
        b"/",
        b"//",
        b"%2F",
        b"?",
        b"%3F",
        b"&",
        b"+",
        b"%20",
        b"%2B",
        b";",
        b"@",
        b"\xf4\x8f\xbc\xbc",
        b"~",
        b"%7E",
    ]);
    let targets = proptest::collection::vec(pieces, 1..4)
        .prop_map(|pieces| [b"/", &*pieces.concat()].concat());
    let runner = &mut TestRunner::new(Config::default());
    let mut asked = Vec::new();
    for _ in 0..150 {
        let target = targets.new_tree(runner).unwrap().current();
        let bytes = request("GET", &target, origin.authority(), "");
        let (head, body) = inside(&world, origin.authority(), &bytes).await;
        assert!(head.starts_with("http/1.1 200"), "{}: {head}\n{body}", target.escape_ascii());
        assert_eq!(body, text(&target), "{}", target.escape_ascii());
        asked.push(target);
    }
    // The control: a repeated request is answered from the store, so that a shared entry would show.
    asked.sort();
    asked.dedup();
    assert_eq!(origin.targets().len(), asked.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_in_words() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    let own = origin.authority().to_owned();
    let with = |target: &[u8], more: &str| request("GET", target, &own, more);
    let many = "X-Request-Id: 1\r\n".repeat(600);
    let long = format!("X-Request-Id: {}\r\n", "x".repeat(200_000));
    for (bytes, status, word) in [
        (with(b"/a b", ""), 400, "space"),
        (with(b"/a#b", ""), 400, "#"),
        (with(b"/a\x01b", ""), 400, "control"),
        (with(b"/a\\..\\b", ""), 400, "dot segment"),
        (with(&b"/".repeat(20_000), ""), 414, "16 KiB"),
        (with(b"/", "Bad Name: x\r\n"), 400, "Bad Name"),
        (with(b"/", "A: b\r\n c\r\n"), 400, "second line"),
        (with(b"/", "A: \x01\r\n"), 400, "control character"),
        (with(b"/", "Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "Content-Length"),
        (with(b"/", &many), 431, "512"),
        (with(b"/", &long), 431, "128 KiB"),
        (b"GET /\r\n\r\n".to_vec(), 400, "METHOD URL"),
        (b"GET / HTTP/3.0\r\n\r\n".to_vec(), 505, "HTTP/1.1"),
    ] {
        let (head, body) = inside(&world, &own, &bytes).await;
        let start = text(&bytes[..bytes.len().min(60)]);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{start}: {head}\n{body}");
        assert!(body.starts_with("larder: ") && body.contains(word), "{start}: {body}");
        assert!(head.contains("cache-status: larder; detail=\"refused\""), "{start}: {head}");
    }
    // The same on a plain connection; larder does not wait for more after bytes that are no HTTP.
    for bytes in
        [with(b"/", &many), b"\x16\x03\x01\x02\x00\x01".to_vec(), b"SSH-2.0-OpenSSH<\n".to_vec()]
    {
        let (head, body) = plain(&world, &bytes).await;
        assert!(head.starts_with("http/1.1 4") && body.starts_with("larder: "), "{head}\n{body}");
    }
    assert_eq!(origin.targets().len(), 0, "a refused request reached the origin");
    // A HEAD gets only the head.
    let (head, body) = inside(&world, &own, &request("HEAD", b"/a b", &own, "")).await;
    assert!(head.starts_with("http/1.1 400") && body.is_empty(), "{head}\n{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_heads_and_many_fields_are_taken() {
    let world = World::new().await;
    let origin = Verbatim::start(Some(&world.ca), echo).await;
    let long = format!("X-Request-Id: {}\r\n", "x".repeat(100_000));
    for more in [long, "X-Request-Id: 1\r\n".repeat(500)] {
        for method in ["GET", "POST"] {
            let bytes = request(method, b"/x", origin.authority(), &more);
            let (head, body) = inside(&world, origin.authority(), &bytes).await;
            assert!(head.starts_with("http/1.1 200") && body == "/x", "{head}\n{body}");
        }
    }
}

/// Each request of a connection is checked, whatever came before it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_behind_bodies_and_refusals_are_found() {
    let world = World::new().await;
    let origin = &world.origin;
    origin.otherwise(|request| async move {
        let path = request.uri().path().to_owned();
        let _body = http_body_util::BodyExt::collect(request.into_body()).await;
        Page::new(path).answer(&Method::GET, &hyper::HeaderMap::new())
    });
    let own = origin.authority();
    let keep = |method: &str, target: &str, more: &str, body: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: {own}\r\n{more}\r\n{body}")
    };
    let all = [
        "\r\n".to_owned(),
        keep("POST", "/one", "Content-Length: 5\r\n", "GET /"),
        keep("GET", "/two", "Upgrade: h2c\r\n", ""),
        keep(
            "POST",
            "/three",
            "Transfer-Encoding: chunked\r\n",
            "5;x=y\r\nGET /\r\n0\r\nA: b\r\n\r\n",
        ),
        keep("GET", "/four", "Upgrade: websocket\r\nConnection: upgrade\r\n", ""),
        keep("GET", "/five%", "", ""),
        keep("GET", "/six six", "", ""),
        keep("GET", "/seven", "", ""),
    ]
    .concat();
    // In one piece, and byte by byte.
    for step in [all.len(), 1] {
        let mut stream = world.client.inside(&own).await.unwrap();
        for piece in all.as_bytes().chunks(step) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
        }
        let (answers, _) = read_all(&mut stream).await;
        let lower = answers.to_lowercase();
        assert_eq!(lower.matches("http/1.1 200").count(), 5, "{answers}");
        assert_eq!(lower.matches("http/1.1 400").count(), 1, "{answers}");
        for path in ["/one", "/two", "/three", "/four", "/five%"] {
            assert!(answers.contains(&format!("\r\n\r\n{path}")), "{path}: {answers}");
        }
        assert!(answers.ends_with("send a space as %20\n"), "{answers}");
    }
}

/// Malformed header lines, folded values, white space before the colon, hundreds of fields, a long head.
#[tokio::test(flavor = "multi_thread")]
async fn odd_heads_of_origins_are_taken() {
    let many: Vec<String> = (0..400).map(|number| format!("X-{number}: {number}\r\n")).collect();
    let odd = [
        "Bad Name: x\r\n".to_owned(),
        "No colon at all\r\n".to_owned(),
        "X-Folded: one\r\n two\r\n\tthree\r\n".to_owned(),
        "X-Spaced : x\r\n".to_owned(),
        "X-Utf8: caf\u{e9}\r\n".to_owned(),
        format!("X-Long: {}\r\n", "x".repeat(100_000)),
        many.concat(),
    ];
    let world = World::new().await;
    let body = noise(1, 1000);
    let (kept, odd_lines) = (body.clone(), odd.clone());
    let answer = move |target: &[u8]| {
        let number: usize = text(target).trim_start_matches('/').parse().unwrap();
        let head = format!(
            "HTTP/1.1 200 OK\r\n{}Cache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n",
            odd_lines[number],
            kept.len()
        );
        [head.as_bytes(), &kept].concat()
    };
    let origin = Verbatim::start(Some(&world.ca), answer).await;
    for number in 0..odd.len() {
        let ask = |more: &'static str| {
            let bytes = request("GET", format!("/{number}").as_bytes(), origin.authority(), more);
            let world = &world;
            let authority = origin.authority();
            async move { inside(world, authority, &bytes).await }
        };
        let (fill, hit, pass) = (ask("").await, ask("").await, ask("X-Unknown: 1\r\n").await);
        assert!(hit.0.contains("larder; hit"), "{number}: {}", hit.0);
        for (head, came) in [&fill, &hit, &pass] {
            assert!(head.starts_with("http/1.1 200") && *came == text(&body), "{number}: {head}");
            let field = |name: &str| {
                let lines = head.lines().filter_map(|line| line.split_once(": "));
                lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
            };
            match number {
                2 => {
                    let words: Vec<&str> = field("x-folded").unwrap().split_whitespace().collect();
                    assert_eq!(words, ["one", "two", "three"]);
                }
                3 => assert_eq!(field("x-spaced"), Some("x")),
                4 => assert_eq!(field("x-utf8"), Some("caf\u{e9}")),
                5 => assert_eq!(field("x-long").map(str::len), Some(100_000)),
                6 => assert_eq!(field("x-399"), Some("399")),
                _ => {}
            }
        }
    }
    // The control: a message with ambiguous framing is refused with a reason.
    let broken = Verbatim::start(Some(&world.ca), |_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()
    });
    let got = world.get(&broken.await.url("/x")).await;
    assert_eq!(got.status, StatusCode::BAD_GATEWAY);
    assert!(text(&got.body).starts_with("larder: "), "{}", text(&got.body));
}

/// Whatever a client sends, it gets an answer with a reason, or none; larder continues.
#[tokio::test(flavor = "multi_thread")]
async fn arbitrary_bytes_are_answered_or_dropped() {
    let world = World::new().await;
    let url = world.origin.put("/x", Page::new("x"));
    let runner = &mut TestRunner::new(Config::default());
    let noise = proptest::collection::vec(any::<u8>(), 1..200);
    for round in 0..60 {
        let mut bytes = noise.new_tree(runner).unwrap().current();
        if round % 2 == 0 {
            bytes.splice(..0, *b"GET http://127.0.0.1/");
        }
        let mut stream = world.client.dial().await;
        stream.write_all(&bytes).await.unwrap();
        // No more bytes come: what has not ended by now never does.
        let _gone = stream.shutdown().await;
        let (answer, _) = read_all(&mut stream).await;
        let (head, body) = parted(answer);
        assert!(head.is_empty() || body.starts_with("larder: "), "{head}\n{body}");
    }
    world.client.get(&url).send().await.complete();
}
