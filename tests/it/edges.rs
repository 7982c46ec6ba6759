//! Edge cases of requests: logins in URLs, fields that cause a pass, answers without a body, text from others in larder's output,
//! readiness.

use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::world::binary::{Daemon, say};
use crate::world::client::End;
use crate::world::verbatim::Verbatim;
use crate::world::{Ca, Got, Mood, Page, World, holding};

/// `s3cret-pa:ss` as a URL contains it, and the header field that is sent for it.
const IN_URL: &str = "user:s3cret-pa%3Ass";
const FIELD: &str = "Basic dXNlcjpzM2NyZXQtcGE6c3M=";

/// An origin that answers every request.
async fn guarded() -> Verbatim {
    Verbatim::start(None, |_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()).await
}

async fn absolute(world: &World, target: &str, host: &str, more: &str) -> String {
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
    world.client.raw_plain(&request).await.0
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Issue 17 row 5: apt leaves the login of a sources.list line in the URL that it sends to a proxy.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_a_url_is_sent_as_clients_send_it() {
    let world = World::new().await;
    let origin = guarded().await;
    let host = origin.authority().to_owned();
    let with_login = format!("http://{IN_URL}@{host}/a?b");
    let answer = absolute(&world, &with_login, &host, "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    // The client's own field has precedence. The control: without either there is none.
    absolute(&world, &with_login, &host, "Authorization: Bearer own\r\n").await;
    absolute(&world, &format!("http://{host}/a?b"), &host, "").await;
    absolute(&world, &format!("http://@{host}/a?b"), &host, "").await;
    absolute(&world, &format!("http://token@{host}/a?b"), &host, "").await;
    let heads = origin.heads();
    let shown: Vec<Option<&str>> = heads.iter().map(|head| field(head, "authorization")).collect();
    let token = Some("Basic dG9rZW46");
    assert_eq!(shown, [Some(FIELD), Some("Bearer own"), None, None, token]);
    for head in &heads {
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\n") && !head.contains('@'), "{head}");
        assert_eq!(field(head, "host"), Some(&*host));
    }
}

/// It is a credential: what is fetched with it is private, and it appears in no log and no listing.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_a_url_is_a_credential_and_in_no_text() {
    let world = World::new().await;
    let digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    let path = format!("/v2/tool/blobs/sha256:{digest}");
    let origin = crate::world::Origin::plain("127.0.0.1").await;
    origin.script(&path, |request| async move {
        let login = request.headers().get("authorization").map(|value| value.as_bytes().to_vec());
        let mut page = match login.as_deref() {
            Some(login) if login == FIELD.as_bytes() => Page::new("foo").etag("\"f\""),
            _ => Page::status(401),
        };
        page.answer(request.method(), request.headers())
    });
    let host = origin.authority();
    let with_login = format!("http://{IN_URL}@{host}{path}");
    for _ in 0..2 {
        let answer = absolute(&world, &with_login, &host, "").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("foo"), "{answer}");
    }
    // Other clients have no right to the file, though it is stored by now.
    for other in [format!("http://{host}{path}"), format!("http://user:wrong@{host}{path}")] {
        let answer = absolute(&world, &other, &host, "").await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{other}: {answer}");
    }
    let data = world.proxy.data.clone();
    let listed = say(&world.ca, &data, &["ls", "--json"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains(digest) && !listed.contains('@'), "{listed}");
    for secret in ["s3cret-pa", "dXNlcjpzM2NyZXQ"] {
        assert_eq!(holding(&data, secret.as_bytes()), Vec::<std::path::PathBuf>::new());
    }
    // The refusal of an invalid URL does not repeat the URL.
    let answer =
        absolute(&world, &format!("http://{IN_URL}@exam%70le.org/"), "example.org", "").await;
    assert!(answer.starts_with("HTTP/1.1 400") && !answer.contains("s3cret"), "{answer}");
}

/// Issue 17 row 8, issue 10 row 10 and the faults' row 11: fields that change nothing in an answer. The control is a field that
/// larder does not know.
#[tokio::test(flavor = "multi_thread")]
async fn fields_that_clients_add_for_themselves_make_no_pass() {
    let world = World::new().await;
    let url = world.origin.put("/tool", Page::new("x").fresh(600));
    world.fetch(&url).await;
    for (name, value) in [
        ("want-digest", "SHA-512;q=1, SHA-256;q=1"),
        ("want-repr-digest", "sha-256=1"),
        ("want-content-digest", "sha-256=1"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-site", "cross-site"),
        ("x-zypp-anonymousid", "b8e9"),
        ("x-zypp-distributionflavor", "leap"),
        ("x-gemfile-source", "https://example.org/"),
        ("x-terraform-version", "1.11.4"),
        ("x-nuget-session-id", "b8e9"),
        ("x-expected-sha256", "00"),
    ] {
        let got = world.client.get(&url).header(name, value).send().await.complete();
        assert!(got.is_hit(), "{name}: {}", got.cache_status());
    }
    assert_eq!(world.origin.gets("/tool"), 1);
    let got = world.client.get(&url).header("x-unknown", "1").send().await.complete();
    assert_eq!(got.cache_status(), "larder; fwd=bypass; detail=\"header x-unknown\"");
    assert_eq!(world.origin.gets("/tool"), 2);
}

/// Issue 17 row 8: a request that is passed because of one header field is answered from the store while its origin is down.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_origin_is_stood_in_for_towards_an_unknown_field() {
    let world = World::with(|config| {
        config.upstream.header_timeout = Duration::from_millis(300);
    })
    .await;
    let url = world.origin.put("/tool", Page::new("x").fresh(1));
    let wheel = world.origin.put("/any/widget-1.0-py3-none-any.whl", Page::new("wheel"));
    let other = world.origin.put("/other", Page::new("x"));
    for stored in [&url, &wheel] {
        world.fetch(stored).await;
    }
    world.proxy.clock.advance(Duration::from_mins(1));
    let ask = |url: &str| world.client.get(url).header("x-unknown", "1");
    let dead = |got: Got, body: &str| {
        assert!(
            got.cache_status().contains("; hit") && got.cache_status().contains("stale"),
            "{:?}",
            got.headers
        );
        assert_eq!(got.complete().body, body);
    };
    // The control: while the origin answers, its answer is given.
    assert!(!ask(&url).send().await.complete().is_hit());
    for mood in [Mood::Failing(503), Mood::Failing(429), Mood::Hanging] {
        world.origin.mood(mood);
        dead(ask(&url).send().await, "x");
        dead(ask(&wheel).send().await, "wheel");
        let head = world.client.head(&url).header("x-unknown", "1").h2().send().await;
        assert!(head.status == StatusCode::OK && head.end == End::Complete && head.is_hit());
    }
    world.origin.stop();
    world.origin.cut();
    dead(ask(&url).send().await, "x");
    // Nothing stands in for what is not stored, for a request with a credential, or for an unsafe request.
    for refused in [
        ask(&other),
        ask(&url).header("authorization", "Bearer x"),
        world.client.ask(Method::POST, &url).header("x-unknown", "1"),
    ] {
        let got = refused.send().await;
        assert!(got.status.is_server_error() && !got.is_hit(), "{} {:?}", got.status, got.headers);
    }
}

/// A deliberate answer of the origin is no failure.
#[tokio::test(flavor = "multi_thread")]
async fn an_origins_own_no_is_heard_by_who_sends_an_unknown_field() {
    let world = World::new().await;
    let url = world.origin.put("/tool", Page::new("x").fresh(600));
    world.fetch(&url).await;
    for status in [401, 403, 404, 410] {
        world.origin.mood(Mood::Failing(status));
        let got = world.client.get(&url).header("x-unknown", "1").send().await;
        assert_eq!(got.status.as_u16(), status);
    }
}

/// Issue 17 row 10: with HTTP/2 a body in the answer to a HEAD is a protocol error, and the client shows nothing of the answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_larders_own_has_no_body_for_a_head() {
    let world = World::new().await;
    world.origin.put("/gone", Page::status(204));
    let (refused, dead) = (world.origin.url("/a%00b"), world.another("127.0.0.2").await);
    let dead_url = dead.url("/x");
    dead.stop();
    dead.cut();
    let ask = |method: Method, url: &str, h2: bool| {
        let ask = world.client.ask(method, url).header("x-unknown", "1");
        if h2 { ask.h2() } else { ask }
    };
    for (url, status) in [(&refused, 400), (&dead_url, 502)] {
        for h2 in [true, false] {
            let get = ask(Method::GET, url, h2).send().await;
            let head = ask(Method::HEAD, url, h2).send().await;
            assert!(get.body.starts_with(b"larder: "), "the control: {:?}", get.body);
            assert_eq!((head.status.as_u16(), &head.end), (status, &End::Complete), "h2: {h2}");
            assert!(head.body.is_empty());
            assert_eq!(head.text("content-length"), get.body.len().to_string());
            assert_eq!(head.text("cache-status"), get.text("cache-status"));
        }
    }
    let gone = world.client.get(&world.origin.url("/gone")).h2().send().await;
    assert_eq!((gone.status.as_u16(), gone.body.len()), (204, 0));
    let asked =
        world.client.head(&world.origin.url("/gone")).header("cache-control", "only-if-cached");
    let asked = asked.h2().send().await;
    assert_eq!((asked.status.as_u16(), &asked.end), (504, &End::Complete));
}

/// Issue 10 row 10: text from others is shown escaped, on one line.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_forges_a_line_of_what_people_read() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let origin = crate::world::Origin::tls(&ca, "127.0.0.1").await;
    let mut daemon = Daemon::start(&ca, &data, &[]).await;
    let client = daemon.client().await;
    let forged = "signed                  120.0 MB      1 d ago  https://example.org/trusted.deb";
    let odd = "/x\u{202e}\u{2028}\u{85}\u{200b}.bin";
    let url = origin.put(odd, Page::new("x").fresh(600));
    for _ in 0..2 {
        let got = client.get(&url).header("accept", "*/*").header("accept-language", forged);
        got.h2().send().await.complete();
    }
    client
        .get(&url)
        .header("accept", &format!("x/{}", "y".repeat(3000)))
        .h2()
        .send()
        .await
        .complete();
    let long = format!("{}/{}", origin.url(""), "\u{202e}".repeat(2000));
    client.get(&long).h2().send().await;
    client.get(&url).header("x-unknown", "1").h2().send().await;
    let mut texts = vec![daemon.logged("header field x-unknown").await];
    for arguments in [&["ls"][..], &["ls", "--json"], &["why", &url], &["why", "--json", &url]] {
        let said = say(&ca, &data, arguments).await;
        assert!(said.status.success(), "{arguments:?}");
        texts.push(String::from_utf8(said.stdout).unwrap());
    }
    for text in &texts {
        let plain = |c: char| c == '\n' || (' '..='~').contains(&c) || "…äöüé".contains(c);
        assert!(text.chars().all(plain), "{:?}", text.chars().find(|c| !plain(*c)));
        // No line looks like a row of the listing.
        assert!(!text.lines().any(|line| line.trim_start().starts_with("signed")), "{text}");
    }
    // The control: all of them were recorded, and are clipped where they are shown.
    assert!(texts[0].contains("\\u{202e}") && texts[1].contains("\\u{202e}\\u{2028}"), "{texts:?}");
    assert!(texts[1].lines().all(|line| line.len() < 600), "{}", texts[1]);
    assert!(texts[0].contains("header field x-unknown"), "{}", texts[0]);
    assert_eq!(texts[0].matches("add it to http.harmless_headers").count(), 1);
    daemon.terminate().await;
}

/// Issue 17 row 15: once `/-/ready` says ready, larder serves and answers commands.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_saw_it_ready_can_ask_it() {
    for _ in 0..5 {
        let world = World::new().await;
        let ready = world.proxy.own("/-/ready").await;
        assert_eq!(ready, "ready\n");
        let data = world.proxy.data.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let served = larder::admin::ask::serving(&data).unwrap().expect("its socket is there");
            served.status().unwrap()
        });
        let status = asked.await.unwrap();
        assert_eq!(status.listening, [world.proxy.address]);
    }
}

/// Issue 17 row 13: registries write a scoped package's name joined or with an escaped slash, and so do the URLs in their
/// documents.
#[tokio::test(flavor = "multi_thread")]
async fn a_scoped_tarball_is_proven_however_its_name_is_written() {
    use base64::Engine as _;
    let world = World::new().await;
    let body = crate::world::noise(3, 2000);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &body);
    let sri = base64::engine::general_purpose::STANDARD.encode(digest.as_ref());
    for (version, written) in [("1.0.0", "@s/ms"), ("2.0.0", "@s%2fms")] {
        let document = format!(
            r#"{{"name":"@s/ms","dist-tags":{{"latest":"{version}"}},"versions":{{"{version}":{{"name":"@s/ms","version":"{version}","dist":{{"integrity":"sha512-{sri}","tarball":"{}"}}}}}}}}"#,
            world.origin.url(&format!("/{written}/-/ms-{version}.tgz")),
        );
        let index = world.origin.put(
            "/@s%2Fms",
            Page::new(document).header("content-type", "application/vnd.npm.install-v1+json"),
        );
        let install = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
        world.client.get(&index).header("accept", install).send().await.complete();
        for front in ["/@s/ms", "/@s%2Fms"] {
            let path = format!("{front}/-/ms-{version}.tgz");
            let url = world.origin.put(&path, Page::new(body.clone()));
            world.fetch(&url).await;
            let hit = world.fetch(&url).await;
            assert!(hit.cache_status().contains("detail=\"indexed\""), "{path}: {:?}", hit.headers);
        }
        world.proxy.clock.advance(Duration::from_mins(5));
    }
}
