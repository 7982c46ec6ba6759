//! Issue 17 row 9: which stored answer a request selects (RFC 9111 §4.1). Without `Vary` any answer serves; with it, the fields
//! that it names decide, and no others. Indexes of several forms are kept apart by `Accept`, because their origins forget `Vary`.

use std::time::Duration;

use hyper::{HeaderMap, Response};

use crate::world::binary::say;
use crate::world::page::{OriginBody, whole};
use crate::world::tools::text;
use crate::world::{Page, World, eventually, files, holding, noise};

/// An origin's page with the request's value of `field` as its body, and with this `Vary`.
fn echo(world: &World, path: &str, field: &'static str, vary: Option<&'static str>) -> String {
    world.origin.script(path, move |request| async move { echoed(request.headers(), field, vary) })
}

fn echoed(
    asked: &HeaderMap,
    field: &'static str,
    vary: Option<&'static str>,
) -> Response<OriginBody> {
    let said = asked.get(field).map_or("none", |value| value.to_str().unwrap()).to_owned();
    let mut response = Response::new(whole(said));
    response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
    if let Some(vary) = vary {
        response.headers_mut().insert("vary", vary.parse().unwrap());
    }
    response
}

/// Row 9: the same bytes were fetched and stored for each `Accept`, a HEAD with another one went to the origin, and when that was
/// down a GET got a 502 with the file stored.
#[tokio::test(flavor = "multi_thread")]
async fn without_vary_any_stored_answer_serves_whatever_the_client_accepts() {
    for path in ["/releases/download/v1/tool-linux-amd64", "/files/a.bin"] {
        let world = World::new().await;
        let url = world.origin.put(path, Page::new("bytes").etag("v1").fresh(60));
        world.fetch(&url).await;
        for (accept, language) in [("*/*", "de"), ("application/octet-stream", "en"), ("a/b", "fr")]
        {
            let asks = |ask: crate::world::client::Ask| {
                ask.header("accept", accept).header("accept-language", language).send()
            };
            let got = asks(world.client.get(&url)).await.complete();
            assert!(got.is_hit() && got.body == "bytes", "{accept}: {}", got.cache_status());
            let head = asks(world.client.head(&url)).await;
            assert!(head.is_hit() && head.text("etag") == "\"v1\"", "{accept}");
        }
        assert_eq!(world.origin.total(), 1, "{:?}", world.origin.paths());
        // The copy is stale, and the origin is down.
        world.origin.stop();
        world.proxy.clock.advance(Duration::from_hours(1));
        let got = world.client.get(&url).header("accept", "x/y").send().await.complete();
        assert!(got.body == "bytes" && got.cache_status().contains("+stale"));
        let head = world.client.head(&url).header("accept", "x/z").send().await;
        assert_eq!((head.status.as_u16(), head.text("etag")), (200, "\"v1\""));
    }
}

/// Row 9: with `Vary` the named fields decide and no others; after a restart, too.
#[tokio::test(flavor = "multi_thread")]
async fn with_vary_the_named_fields_decide_and_no_others() {
    let mut world = World::new().await;
    let url = echo(&world, "/page", "accept", Some("Accept"));
    let get = async |world: &World, accept: &str, language: &str| {
        let ask = world.client.get(&url).header("accept", accept);
        let got = ask.header("accept-language", language).send().await.complete();
        assert_eq!(got.body, accept);
        got.is_hit()
    };
    assert!(!get(&world, "text/plain", "de").await);
    assert!(!get(&world, "text/html", "de").await, "it is named");
    for accept in ["text/plain", "text/html"] {
        assert!(get(&world, accept, "fr").await, "{accept}: no language was named");
    }
    world.restart(|_| {}).await;
    world.origin.stop();
    for accept in ["text/plain", "text/html"] {
        assert!(get(&world, accept, "en").await, "{accept}: it is found again");
    }
    let other = world.client.get(&url).header("accept", "image/png").send().await;
    assert!(other.status.is_server_error(), "another's answer is none: {}", other.status);
}

/// Issue 13 row 8: an origin that ignores `Accept` and yet names it in `Vary` fills the disk once, whatever clients accept. `ls` has
/// a line for each answer, which says whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_lie_on_the_disk_once_whatever_was_accepted() {
    let world = World::new().await;
    let (body, other) = (noise(13, 300_000), noise(14, 300_000));
    let varies =
        |bytes: &[u8]| Page::new(bytes.to_vec()).etag("v1").fresh(600).header("vary", "Accept");
    let url = world.origin.put("/files/a.bin", varies(&body));
    let control = world.origin.put("/files/b.bin", varies(&other));
    let accepts = ["*/*", "application/octet-stream", "text/html, */*;q=0.8"];
    for _ in 0..2 {
        for accept in accepts {
            let got = world.client.get(&url).header("accept", accept).send().await.complete();
            assert_eq!(got.body, body, "{accept}");
        }
    }
    assert_eq!(
        world.origin.gets("/files/a.bin"),
        accepts.len(),
        "the field is named: each asks once"
    );
    assert_eq!(world.fetch(&control).await.body, other);
    let blobs = world.cache().join("blobs");
    eventually("the other file is stored too", || async {
        holding(&blobs, &other[..1000]).len() == 1
    })
    .await;
    assert_eq!(holding(&blobs, &body[..1000]).len(), 1, "{:?}", files(&blobs));
    let listed = say(&world.ca, &world.proxy.data, &["ls", "/files/a.bin"]).await;
    let listed = text(&listed);
    assert_eq!(listed.lines().count(), accepts.len(), "{listed}");
    for accept in ["*/*", "application/octet-stream", "text/html,*/*;q=0.8"] {
        assert!(listed.contains(&format!("{url} (accept: {accept})\n")), "{listed}");
    }
}

/// Row 9: a stored answer is found again after a restart, whichever fields its `Vary` names of those that a fill sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_found_again_whichever_fields_select_it() {
    let mut world = World::with(|config| config.http.harmless_headers = vec!["x-odd".into()]).await;
    let fields = [
        ("accept", "a/b"),
        ("accept-language", "de"),
        ("user-agent", "curl/8"),
        ("x-zypp-anonymousid", "1"),
        ("x-zypp-distributionflavor", "dvd"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-site", "same-origin"),
        ("x-odd", "1"),
    ];
    let cases: [(&'static str, &[&str]); 6] = [
        ("User-Agent, Accept-Language", &["user-agent", "accept-language"]),
        ("Accept, Accept-Language, User-Agent", &["accept", "accept-language", "user-agent"]),
        ("X-Zypp-AnonymousId", &["user-agent", "x-zypp-anonymousid", "x-zypp-distributionflavor"]),
        (
            "User-Agent, X-Zypp-AnonymousId, X-Zypp-DistributionFlavor",
            &["accept", "user-agent", "x-zypp-anonymousid", "x-zypp-distributionflavor"],
        ),
        (
            "Sec-Fetch-Mode, Accept-Language, User-Agent",
            &["accept", "accept-language", "user-agent", "sec-fetch-mode", "sec-fetch-site"],
        ),
        ("X-Odd", &["accept", "x-odd"]),
    ];
    let get = async |world: &World, url: &str, sent: &[&str], agent: Option<&str>| {
        let mut ask = world.client.get(url);
        for (name, value) in fields.iter().filter(|(name, _)| sent.contains(name)) {
            let value = agent.filter(|_| *name == "user-agent").unwrap_or(value);
            ask = ask.header(name, value);
        }
        ask.send().await
    };
    let mut urls = Vec::new();
    for (number, (vary, sent)) in cases.into_iter().enumerate() {
        let url = echo(&world, &format!("/page{number}"), "user-agent", Some(vary));
        for _ in 0..3 {
            get(&world, &url, sent, None).await.complete();
        }
        assert!(get(&world, &url, sent, None).await.is_hit(), "the control: {vary}");
        urls.push(url);
    }
    world.restart(|_| {}).await;
    world.origin.stop();
    for ((vary, sent), url) in cases.into_iter().zip(&urls) {
        let got = get(&world, url, sent, None).await;
        assert!(got.is_complete() && got.is_hit(), "{vary}: {} {}", got.status, got.cache_status());
        if vary.contains("User-Agent") {
            let other = get(&world, url, sent, Some("pip/25")).await;
            assert!(other.status.is_server_error(), "another's answer is none: {vary}");
        }
    }
}

/// Row 9, RFC 9111 §4.1: equivalent values select the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_mean_the_same_select_the_same() {
    let world = World::new().await;
    let url = echo(&world, "/page", "accept-language", Some("Accept-Language"));
    let get = async |language: &str| {
        let got = world.client.get(&url).header("accept-language", language).send().await;
        got.complete().is_hit()
    };
    assert!(!get("en, de").await);
    for same in ["de, en", "eN ,  De", "en,de"] {
        assert!(get(same).await, "{same}");
    }
    for other in ["en", "en;q=0.5, de"] {
        assert!(!get(other).await, "{other}");
    }
}

/// Row 9: another field that describes the client is sent if an answer varies by it, and keeps the answers apart.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_varies_by_the_user_agent_is_kept_for_each() {
    let world = World::new().await;
    let url = echo(&world, "/page", "user-agent", Some("User-Agent, Accept-Encoding, Origin"));
    let get = async |agent: &str| {
        let got = world.client.get(&url).header("user-agent", agent).send().await.complete();
        assert_eq!(got.body, agent, "larder's own name selects nobody's answer");
        got.is_hit()
    };
    assert!(!get("curl/8").await, "nobody knows yet that it varies");
    assert!(!get("curl/8").await);
    assert!(!get("pip/25").await);
    assert!(get("curl/8").await && get("pip/25").await);
}

/// Row 9: `*` never matches, and the origin gets the client's own request, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_varies_by_everything_is_nobody_elses() {
    let world = World::new().await;
    let url = echo(&world, "/page", "accept", Some("Accept, *"));
    for number in 1..4 {
        let got = world.client.get(&url).header("accept", "a/b").send().await.complete();
        assert!(!got.is_hit() && got.body == "a/b");
        assert_eq!(world.origin.gets("/page"), number, "it is asked once for each");
    }
}

/// Promise P1: a field that is sent because an earlier answer named it, and that the next answer does not name, decides for no
/// other client.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_was_sent_and_is_not_named_any_more_poisons_nobody() {
    let world = World::new().await;
    let url = echo(&world, "/page", "user-agent", Some("User-Agent"));
    for _ in 0..2 {
        world.client.get(&url).header("user-agent", "one").send().await.complete();
    }
    echo(&world, "/page", "user-agent", None);
    let evil = world.client.get(&url).header("user-agent", "evil").send().await.complete();
    assert_eq!(evil.body, "evil");
    for agent in ["two", "three"] {
        let got = world.client.get(&url).header("user-agent", agent).send().await.complete();
        assert_ne!(got.body, "evil", "{agent}");
    }
}

/// Row 9: an index of several forms, requested in a form that no ecosystem knows. Each `Accept` has its own answer although the
/// origin sends no `Vary`, and clients of the ecosystem are given none of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_several_forms_is_kept_apart_by_accept_without_vary() {
    let world = World::new().await;
    let browsers = "text/html,application/xhtml+xml,*/*;q=0.8";
    let odd = "application/vnd.pypi.simple.v2+json";
    for path in ["/simple/demo/", "/@scope%2Fgears"] {
        let url = echo(&world, path, "accept", None);
        for accept in [browsers, odd] {
            let got = world.client.get(&url).header("accept", accept).send().await.complete();
            assert_eq!(got.body, accept, "{path}");
        }
        for accept in [browsers, odd] {
            let got = world.client.get(&url).header("accept", accept).send().await.complete();
            assert!(got.is_hit() && got.body == accept, "{path} {accept}");
        }
        for known in ["application/vnd.pypi.simple.v1+json", "application/json"] {
            let got = world.client.get(&url).header("accept", known).send().await.complete();
            assert!(got.body != browsers && got.body != odd, "{path}: {known}");
        }
    }
}

/// Row 9: a document that turns out to be an index of several forms does not answer requests for other forms, before its root is
/// known.
#[tokio::test(flavor = "multi_thread")]
async fn a_likely_index_in_an_old_dress_is_not_given_to_its_own_clients() {
    let world = World::new().await;
    let json = |text: &'static str| Page::new(text).etag("v1").fresh(600);
    let package = json(r#"{"name":"gears","dist-tags":{},"versions":{}}"#);
    let install = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
    let manifest = json(r#"{"schemaVersion":2}"#).header("docker-content-digest", "sha256:00");
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    for (path, page, own) in
        [("/npm/gears", package, install), ("/v2/gears/box/manifests/latest", manifest, docker)]
    {
        let url = world.origin.put(path, page);
        let odd = "application/json;q=0.9, text/html, */*";
        for _ in 0..2 {
            world.client.get(&url).header("accept", odd).send().await.complete();
        }
        assert_eq!(world.origin.gets(path), 1, "{path}: the same again is a hit");
        world.client.get(&url).header("accept", own).send().await.complete();
        assert_eq!(world.origin.gets(path), 2, "{path}: another form is asked for");
    }
}

/// Promise P5: an answer that varies by the principal is not shared, whether clients send a credential or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_varies_by_a_credential_is_not_shared() {
    let world = World::new().await;
    for (path, vary) in [("/a", "Cookie"), ("/b", "Accept, Authorization")] {
        let url = echo(&world, path, "cookie", Some(vary));
        for _ in 0..2 {
            let got = world.fetch(&url).await;
            assert!(got.body == "none" && !got.is_hit(), "{vary}: {}", got.cache_status());
        }
        for cookie in ["a=b", "a=c"] {
            let got = world.client.get(&url).header("cookie", cookie).send().await.complete();
            assert_eq!(got.body, cookie, "{vary}");
        }
    }
    // The control: a field that is no credential.
    let url = echo(&world, "/c", "cookie", Some("Origin"));
    world.fetch(&url).await;
    assert!(world.fetch(&url).await.is_hit());
}
