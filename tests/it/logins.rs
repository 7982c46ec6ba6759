//! Operator logins (`upstream.logins`): used for clients without a login, sent only to their host; and what they give access to
//! stays private.

use std::path::Path;
use std::time::Duration;

use ::larder::config::Config;
use ::larder::config::keys::key;
use hyper::{Method, StatusCode};

use crate::world::archive::{by_hash, simple};
use crate::world::binary::{Daemon, say};
use crate::world::tools::text;
use crate::world::{Ca, Client, Origin, Page, Proxy, holding, larder, noise};

const LOGIN: &str = "Bearer s3cr3t-login";

/// A private registry, another origin, and a larder that has an operator login for the registry.
struct Bench {
    registry: Origin,
    other: Origin,
    ca: Ca,
    proxy: Proxy,
    client: Client,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let registry = Origin::tls(&ca, "127.0.0.1").await;
        let other = Origin::tls(&ca, "127.0.0.1").await;
        let proxy = Proxy::start(with_login(&ca, dir.path(), &registry)).await;
        let client = proxy.client().await;
        Self { registry, other, ca, proxy, client, dir }
    }

    /// Puts a page that the registry gives only to requests with a login.
    fn put_private(&self, path: &str, page: Page) -> String {
        let page = std::sync::Mutex::new(page);
        self.registry.script(path, move |request| {
            let shown =
                request.headers().get("authorization").map(hyper::http::HeaderValue::as_bytes);
            let mut page = match shown {
                Some(login) if login == LOGIN.as_bytes() => page.lock().unwrap().clone(),
                _ => Page::status(401).header("www-authenticate", "Bearer"),
            };
            let answer = page.answer(request.method(), request.headers());
            async move { answer }
        })
    }
}

fn line(registry: &Origin) -> String {
    format!("{} everyone bearer s3cr3t-login", registry.authority())
}

fn with_login(ca: &Ca, dir: &Path, registry: &Origin) -> Config {
    let mut config = larder::config(ca, dir.join("data"));
    key("upstream.logins").unwrap().set(&mut config, &[line(registry)]).unwrap();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_login_is_given_what_larders_opens() {
    let bench = Bench::new().await;
    let body = noise(1, 300_000);
    let path = by_hash(&body);
    let artifact = bench.put_private(&path, Page::new(body.clone()).etag("\"a\""));
    let index = bench.put_private("/simple/demo/", simple(&[("../../files/a.whl", b"a")]));
    for url in [&artifact, &index] {
        let first = bench.client.get(url).send().await.complete();
        assert_eq!(first.status, StatusCode::OK, "{url}");
    }
    assert_eq!(bench.registry.asked(&path)[0].text("authorization"), Some(LOGIN));
    // Another client, later: the file comes from the store, and larder checks whether its login still has a right to it.
    bench.proxy.clock.advance(Duration::from_mins(10));
    let another = bench.proxy.client().await;
    let got = another.get(&artifact).send().await.complete();
    assert!(got.is_hit() && got.body == body, "{}", got.cache_status());
    assert_eq!(bench.registry.gets(&path), 1);
    // A client's own login is used as it is: the operator login is not sent for it, and gives it no access.
    let got = another.get(&artifact).header("authorization", "Bearer wrong").send().await;
    assert_eq!(got.status, StatusCode::UNAUTHORIZED);
    let asked = bench.registry.asked(&path);
    // larder may meanwhile have asked anonymously whether this is public.
    let last = asked.iter().rev().find_map(|one| one.text("authorization"));
    assert_eq!(last, Some("Bearer wrong"));
}

/// Ranges, HEAD, and answers that are for one client or not cacheable at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_asked_in_larders_name_too() {
    let bench = Bench::new().await;
    let page = |policy| {
        Page::new("for one")
            .header("cache-control", policy)
            .header("set-cookie", "session=s3cr3t-session")
    };
    for policy in ["private", "no-store", "private, max-age=60"] {
        let url = bench.put_private("/page", page(policy));
        for _ in 0..3 {
            let got = bench.client.get(&url).send().await.complete();
            assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"for one"[..]), "{policy}");
            // The session belongs to larder.
            assert!(!got.headers.contains_key("set-cookie"), "{policy}");
        }
        let all = futures_util::future::join_all(
            (0..4).map(|_| bench.client.get(&url).range("bytes=0-2").send()),
        );
        for got in all.await {
            assert!(got.status.is_success() && got.body.starts_with(b"for"), "{policy}");
        }
        let got = bench.client.head(&url).send().await;
        assert_eq!(got.status, StatusCode::OK, "{policy}");
    }
    let unseen = bench.put_private(&by_hash(b"unseen"), Page::new("unseen"));
    assert_eq!(bench.client.head(&unseen).send().await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_shown_to_its_host_and_in_larders_own_requests_only() {
    let bench = Bench::new().await;
    let body = noise(2, 300_000);
    let path = by_hash(&body);
    bench.other.put("/signed?x=1", Page::new(body.clone()));
    let to = bench.other.url("/signed?x=1");
    let moved = bench.put_private(&path, Page::redirect(302, &to));
    assert_eq!(bench.client.get(&moved).send().await.complete().body, body);
    let hop = &bench.other.asked("/signed?x=1")[0];
    assert_eq!(hop.text("authorization"), None, "a redirect drops it");
    // The control: the first hop got the login.
    assert_eq!(bench.registry.asked(&path)[0].text("authorization"), Some(LOGIN));
    // The same address with another port is another host.
    let elsewhere = bench.other.put("/x", Page::new("x"));
    bench.client.get(&elsewhere).send().await.complete();
    assert_eq!(bench.other.asked("/x")[0].text("authorization"), None);
    // The client's own request is sent without the operator login.
    let page = bench.put_private("/page", Page::new("page"));
    let posted = bench.client.ask(Method::POST, &page).body("x").send().await;
    let headed = bench.client.get(&page).header("x-unheard-of", "1").send().await;
    let own = bench.client.get(&page).header("cookie", "mine=1").send().await;
    for got in [posted, headed, own] {
        assert_eq!(got.status, StatusCode::UNAUTHORIZED);
    }
    assert!(
        bench.registry.asked("/page").iter().all(|asked| asked.text("authorization").is_none())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_login_opened_is_not_public_when_the_login_is_gone() {
    let mut bench = Bench::new().await;
    let (body, open) = (noise(3, 300_000), noise(4, 300_000));
    let private = bench.put_private(&by_hash(&body), Page::new(body.clone()).etag("\"a\""));
    let public = bench.registry.put(&by_hash(&open), Page::new(open.clone()).etag("\"b\""));
    for url in [&private, &public] {
        for _ in 0..2 {
            bench.client.get(url).send().await.complete();
        }
    }
    assert!(!holding(&bench.proxy.data, &body[1000..1032]).is_empty());
    bench.proxy.stop().await;
    bench.proxy = Proxy::start(larder::config(&bench.ca, bench.dir.path().join("data"))).await;
    let client = bench.proxy.client().await;
    let got = client.get(&private).send().await;
    assert_eq!(got.status, StatusCode::UNAUTHORIZED);
    // The control: public files are still given.
    assert_eq!(client.get(&public).send().await.complete().body, open);
}

/// A wrong operator login does not affect clients that need none.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_does_not_stand_in_the_way() {
    let bench = Bench::new().await;
    let url = bench.registry.script("/open", |request| {
        let mut page = if request.headers().contains_key("authorization") {
            Page::status(401)
        } else {
            Page::new("open")
        };
        let answer = page.answer(request.method(), request.headers());
        async move { answer }
    });
    assert_eq!(bench.client.get(&url).send().await.complete().body, "open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_stands_in_no_text_and_no_file() {
    let bench = Bench::new().await;
    let data = bench.dir.path().join("daemon");
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "s3cr3t-login\n").unwrap();
    let from_file =
        format!("{} everyone bearer file:{}", bench.registry.authority(), secret.display());
    let body = noise(5, 100_000);
    let path = by_hash(&body);
    let url = bench.put_private(&path, Page::new(body.clone()));
    for login in [line(&bench.registry), from_file] {
        let environment =
            [("LARDER_UPSTREAM_LOGINS", login.as_str()), ("LARDER_LOG_FILTER", "trace")];
        let mut daemon = Daemon::start(&bench.ca, &data, &environment).await;
        let client = daemon.client().await;
        assert_eq!(client.get(&url).send().await.complete().body, body);
        let mut told = String::new();
        for arguments in [&["why", &url][..], &["ls"], &["config", "--running"]] {
            told += &text(&say(&bench.ca, &data, arguments).await);
        }
        assert_eq!(daemon.terminate().await, Some(0));
        assert!(told.contains("+private") && told.contains("everyone bearer"), "{told}");
        assert!(!told.contains("s3cr3t"), "{told}");
        assert!(!daemon.log().contains("s3cr3t"));
        assert!(holding(&data, b"s3cr3t").is_empty());
    }
}
