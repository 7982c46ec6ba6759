//! The mirror form: clients that cannot use a proxy put the origin's address into the path. The result is the same as through the
//! proxy, except for links in indexes; nothing that is signed or promised is changed.

use larder::digest::Algorithm;

use crate::signed::{Archive, DATE, Key, world_trusting};
use crate::world::archive::{by_hash, flipped, hex, plain_wheel, simple, wheel_path};
use crate::world::{Origin, Page, World, noise};

/// The mirror form of `url`, as an absolute URL at this larder.
pub(crate) fn mirrored(world: &World, url: &str) -> String {
    format!("http://{}/{}", world.proxy.address, url.replacen("://", "/", 1))
}

/// The answer to a GET in origin form, head and body, with further header lines.
async fn raw(world: &World, path: &str, lines: &str) -> (String, String) {
    let host = world.proxy.address;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n");
    let (answer, _) = world.client.raw_plain(&request).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.to_ascii_lowercase(), body.to_owned())
}

fn status(head: &str) -> &str {
    head.get(9..12).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_a_simple_index_lead_back_and_the_entries_are_the_proxys() {
    let world = World::new().await;
    let files = world.another("localhost").await;
    let (near, far) = (noise(1, 100_000), noise(2, 100_000));
    let far_path = wheel_path("near", &far);
    let far_url = files.put(&far_path, Page::new(far.clone()));
    let near_path = plain_wheel("near");
    let near_url = world.origin.put(&near_path, Page::new(near.clone()).etag("n"));
    let page =
        simple(&[(&near_url, &near), (&near_path, &near), (&far_url, &far), ("near.html", b"x")]);
    let original = String::from_utf8(page.body.to_vec()).unwrap();
    let index = world.origin.put("/simple/near/", page.etag("v1").fresh(60));

    let got = world.fetch(&mirrored(&world, &index)).await;
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    let at = |url: &str| format!("\"/{}#sha256=", url.replacen("://", "/", 1));
    assert_eq!(text.matches(&at(&near_url)).count(), 2, "{text}");
    assert_eq!(text.matches(&at(&far_url)).count(), 1, "{text}");
    assert!(text.contains("\"near.html#sha256=") && !text.contains("https://"), "{text}");
    assert!(got.cache_status().ends_with("; links=changed"), "{}", got.cache_status());
    // The control: through the proxy it is the origin's own document, and not fetched again.
    let direct = world.fetch(&index).await;
    assert_eq!(direct.body, original);
    assert!(
        direct.is_hit() && !direct.cache_status().contains("links"),
        "{}",
        direct.cache_status()
    );

    // A file through the proxy, then in mirror form, and the other way round: one entry, with the proof by the original index.
    for (first, then) in [
        (near_url.clone(), mirrored(&world, &near_url)),
        (mirrored(&world, &far_url), far_url.clone()),
    ] {
        world.fetch(&first).await;
        let got = world.fetch(&then).await;
        assert!(got.is_hit(), "{then}: {}", got.cache_status());
        assert!(!got.cache_status().contains("links"), "{}", got.cache_status());
    }
    assert!(world.fetch(&mirrored(&world, &near_url)).await.cache_status().contains("indexed"));
    assert_eq!(
        (world.origin.gets(&near_path), files.gets(&far_path), world.origin.gets("/simple/near/")),
        (1, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_index_has_validators_of_its_own() {
    let world = World::new().await;
    let body = noise(1, 1000);
    let page = simple(&[("/files/a-1.0-py3-none-any.whl", &body)])
        .etag("v1")
        .header("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")
        .header("repr-digest", "sha-256=:AA==:")
        .fresh(60);
    let index = world.origin.put("/simple/a/", page);
    let at = mirrored(&world, &index);
    let got = world.fetch(&at).await;
    let tag = got.text("etag").to_owned();
    assert!(tag.starts_with("W/\"larder-") && tag.ends_with("v1\""), "{tag}");
    for name in ["last-modified", "repr-digest", "content-length"] {
        assert_eq!(got.text(name), "", "{name}");
    }
    let asked = |name: &'static str, value: &str| world.client.get(&at).header(name, value).send();
    let again = asked("if-none-match", &tag).await;
    assert_eq!((again.status.as_u16(), again.text("etag")), (304, &*tag));
    // The original's validators belong to another representation.
    for (name, value) in [
        ("if-none-match", "\"v1\""),
        ("if-modified-since", "Sat, 01 Jan 2000 00:00:00 GMT"),
        ("range", "bytes=0-9"),
    ] {
        let other = asked(name, value).await.complete();
        assert_eq!((other.status.as_u16(), &other.body), (200, &got.body), "{name}");
    }
    // The control: through the proxy they apply, and larder's tag does not.
    let direct =
        |name: &'static str, value: &str| world.client.get(&index).header(name, value).send();
    assert_eq!(direct("if-none-match", "\"v1\"").await.status, 304);
    assert_eq!(direct("range", "bytes=0-9").await.status, 206);
    assert_eq!(direct("if-none-match", &tag).await.status, 200);
    let head = world.client.head(&at).send().await;
    assert_eq!((head.text("etag"), head.text("content-length")), (&*tag, ""));
    assert_eq!(world.origin.gets("/simple/a/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn npms_and_cargos_documents_lead_back() {
    let world = World::new().await;
    let json = |body: String| Page::new(body).header("content-type", "application/json").fresh(60);
    let origin = &world.origin;
    let tarball = origin.url("/gear/-/gear-1.0.0.tgz");
    // npm takes only its path, and puts the registry's host before it.
    let attested = origin.url("/-/npm/v1/attestations/gear@1.0.0");
    let document = format!(
        r#"{{"name":"gear","dist-tags":{{"latest":"1.0.0"}},"versions":{{"1.0.0":{{"name":"gear","version":"1.0.0","homepage":"https://example.org/x","dist":{{"tarball":"{tarball}","attestations":{{"url":"{attested}","provenance":{{}}}},"integrity":"sha512-AA=="}}}}}}}}"#
    );
    let packument = origin.put("/gear", json(document.clone()));
    let accept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
    for accept in [accept, "application/json", "*/*"] {
        let got =
            world.client.get(&mirrored(&world, &packument)).header("accept", accept).send().await;
        let expected = document
            .replace(&tarball, &mirrored(&world, &tarball))
            .replace(&attested, &mirrored(&world, &attested));
        assert_eq!(got.body, expected, "{accept}");
    }
    let config = origin.put(
        "/index/config.json",
        json(r#"{"dl":"https://files.example.org/crates/{crate}/{version}/download","api":"https://example.org"}"#.to_owned()),
    );
    let got = world.fetch(&mirrored(&world, &config)).await;
    let dl = mirrored(&world, "https://files.example.org/crates/{crate}/{version}/download");
    assert_eq!(got.body, format!(r#"{{"dl":"{dl}","api":"https://example.org"}}"#));
    // The control: a document that no client takes for an index is not changed.
    let other = origin.put(
        "/data/some.json",
        json(r#"{"dl":"https://files.example.org/x","files":[{"url":"/x"}]}"#.to_owned()),
    );
    assert_eq!(world.fetch(&mirrored(&world, &other)).await.body, world.fetch(&other).await.body);
}

/// A document that a signature or a digest vouches for is given unchanged, whatever it contains.
#[tokio::test(flavor = "multi_thread")]
async fn signed_and_promised_documents_are_the_same_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = world_trusting(Some(&key)).await;
    let archive = Archive::new(dir.path(), "gear", DATE, true).await;
    archive.put(&world.origin, &key);
    let html = |body: &str| Page::new(body.to_owned()).header("content-type", "text/html");
    let links = "<a href=\"https://files.example.org/a\">{\"dl\":\"https://files.example.org/a\"}";
    let manifest = r#"{"schemaVersion":2,"files":[{"url":"https://files.example.org/a"}],"dist":{"tarball":"https://files.example.org/a"},"dl":"https://files.example.org/a"}"#;
    let digest = hex(Algorithm::Sha256, manifest.as_bytes());
    let wheel = wheel_path("odd", links.as_bytes());
    let urls = [
        world.origin.url("/debian/dists/gears/InRelease"),
        world.origin.url("/debian/dists/gears/main/binary-all/Packages"),
        world.origin.put(&by_hash(links.as_bytes()), html(links)),
        world.origin.put(&wheel, html(links)),
        world.origin.put(&format!("{wheel}.metadata"), html(links)),
        world.origin.put(
            "/odd/-/odd-1.0.0.tgz",
            Page::new(manifest).header("content-type", "application/json"),
        ),
        world.origin.put(
            &format!("/v2/odd/manifests/sha256:{digest}"),
            Page::new(manifest)
                .header("content-type", "application/vnd.oci.image.manifest.v1+json"),
        ),
        world.origin.put(
            &format!("/v2/odd/blobs/sha256:{digest}"),
            Page::new(manifest).header("content-type", "application/json"),
        ),
    ];
    for url in urls {
        let (direct, got) = (world.fetch(&url).await, world.fetch(&mirrored(&world, &url)).await);
        assert_eq!(got.body, direct.body, "{url}");
        for name in ["etag", "content-length", "content-type", "docker-content-digest"] {
            assert_eq!(got.text(name), direct.text(name), "{name} of {url}");
        }
        assert!(!got.cache_status().contains("links"), "{url}: {}", got.cache_status());
        assert_eq!(
            world.get(&url).await.cache_status(),
            world.get(&mirrored(&world, &url)).await.cache_status()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_file_completes_for_nobody() {
    let world = World::new().await;
    let right = noise(3, 300_000);
    let path = plain_wheel("bad");
    let url = world.origin.put(&path, Page::new(flipped(&right)));
    let index = world.origin.put("/simple/bad/", simple(&[(&url, &right)]).fresh(60));
    world.fetch(&mirrored(&world, &index)).await;
    let got = world.get(&mirrored(&world, &url)).await;
    assert!(!got.is_complete() || got.status.as_u16() == 502, "{} {}", got.status, got.body.len());
    // The control.
    world.origin.put(&path, Page::new(right.clone()));
    let other = world.origin.put(&plain_wheel("good"), Page::new(right.clone()));
    assert_eq!(world.fetch(&mirrored(&world, &other)).await.body, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_paths_are_refused_and_say_why() {
    let world = World::with(|config| config.allow_nets.clear()).await;
    let own = world.proxy.address;
    let port = world.origin.address().port();
    for (path, expected, word) in [
        (format!("/https/127.0.0.1:{port}/a"), "403", "loopback"),
        (format!("/https/[::ffff:127.0.0.1]:{port}/a"), "403", "loopback"),
        (format!("/https/localhost:{port}/a"), "403", "loopback"),
        ("/http/169.254.169.254/latest/meta-data".to_owned(), "403", "169.254"),
        ("/http/169.254.169.254:25/x".to_owned(), "403", "port 25"),
        (format!("/http/{own}/setup"), "508", "itself"),
        (format!("/{own}/setup"), "508", "itself"),
        ("/https/a@b/".to_owned(), "400", "user name"),
        ("/https/user:secret%40b/".to_owned(), "400", "user name"),
        ("/https/host:99999/".to_owned(), "400", "no host and port"),
        ("/https//host/a".to_owned(), "400", "names no host"),
        ("/https/host%2fa/b".to_owned(), "400", "without escapes"),
        ("/https/2130706433/a".to_owned(), "400", "no host and port"),
        ("/https/example.org/../a".to_owned(), "400", "dot segment"),
        ("/https/example.org/%2e%2e/a".to_owned(), "400", "dot segment"),
        ("/HTTPS/example.org/a".to_owned(), "400", "///host"),
        ("/v2/a/tags/list".to_owned(), "404", "mirror.registries"),
    ] {
        let (head, body) = raw(&world, &path, "").await;
        assert_eq!(status(&head), expected, "{path}: {body}");
        assert!(body.contains(word) && body.lines().count() == 1, "{path}: {body}");
    }
    assert_eq!(world.origin.total(), 0);
    for (host, expected) in
        [("evil.example.org", "421"), ("larder", "403"), ("cache.internal:1", "403")]
    {
        let request = format!(
            "GET /https/127.0.0.1:{port}/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let (answer, _) = world.client.raw_plain(&request).await;
        assert_eq!(status(&answer), expected, "{host}");
    }
    for line in [
        "Origin: http://evil.example.org\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
        "Origin: null\r\n",
        // Issue 10 row 10: over plain HTTP a browser sends no other header that names the requesting site.
        "Referer: https://evil.example.org/\r\n",
        "User-Agent: Mozilla/5.0 (X11)\r\nAccept-Language: en\r\nAccept: image/avif\r\n",
    ] {
        let (head, body) = raw(&world, "/https/example.org/a", line).await;
        assert!(status(&head) == "403" && body.contains("another site"), "{line}: {body}");
    }
    // larder's own pages have precedence over every host.
    for (path, expected) in [
        ("/", "200"),
        ("/setup", "200"),
        ("/ca.crt", "200"),
        ("/-/health", "200"),
        ("/etc/passwd", "404"),
    ] {
        assert_eq!(status(&raw(&world, path, "").await.0), expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_turned_off() {
    for (enabled, expected) in [(true, "200"), (false, "404")] {
        let world = World::with(|config| config.mirror.enabled = enabled).await;
        let url = world.origin.put("/x", Page::new("x"));
        let (head, _) = raw(&world, &format!("/{}", url.replacen("://", "/", 1)), "").await;
        assert_eq!(status(&head), expected);
    }
}

/// Images have larder's name for the proxy and for mirror URLs, and no list of hosts that bypass the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_proxy_may_use_mirror_form_by_any_name_of_larders() {
    let world = World::with(|config| {
        config.mirror.names = vec![larder::config::HostPattern("cache.example.org".into())];
    })
    .await;
    let url = world.origin.put("/x", Page::new("the file"));
    let (port, path) = (world.proxy.address.port(), url.replacen("://", "/", 1));
    for (name, expected) in [
        ("localhost", "200"),
        ("127.0.0.1", "200"),
        ("cache.example.org", "200"),
        // The control: a name that is not configured as larder's is another host.
        ("other.example.org", "502"),
    ] {
        let request = format!(
            "GET http://{name}:{port}/{path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n"
        );
        let (answer, _) = world.client.raw_plain(&request).await;
        assert_eq!(status(&answer), expected, "{name}: {answer}");
    }
    assert_eq!(
        status(&raw(&world, &format!("/http/cache.example.org:{port}/x"), "").await.0),
        "508"
    );
}

/// To a mirror's client all hosts are one, so larder keeps apart what the client cannot.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_from_one_host_to_another() {
    for (field, value) in [("authorization", "Basic dTpw"), ("private-token", "dTpw")] {
        crosses_not(field, value).await;
    }
}

/// A client's login in this field is sent only to the host in the path.
async fn crosses_not(field: &'static str, value: &'static str) {
    let world = World::new().await;
    let files = world.another("localhost").await;
    let body = noise(4, 1000);
    let far = files.put(&plain_wheel("far"), Page::new(body.clone()));
    let page = simple(&[(&far, &body), (&world.origin.url("/near.whl"), &body)]);
    let index = world
        .origin
        .put("/simple/far/", page.header("set-cookie", "a=b").header("alt-svc", "h3=\":443\""));
    let moved = world.origin.put("/moved", Page::redirect(302, &far));
    let path = |url: &str| format!("/{}", url.replacen("://", "/", 1));

    let login = &format!("{field}: {value}\r\nCookie: c=d\r\n");
    let (head, text) = raw(&world, &path(&index), login).await;
    assert!(!head.contains("set-cookie") && !head.contains("alt-svc"), "{head}");
    assert!(head.contains("content-security-policy: sandbox"), "{head}");
    let asked = world.origin.asked("/simple/far/");
    assert!(asked.iter().any(|asked| asked.text(field) == Some(value)));
    assert!(asked.iter().all(|asked| asked.text("cookie").is_none()));
    let led = format!("/https-anonymous/{}", files.url("").trim_start_matches("https://"));
    assert!(text.contains(&format!("\"{led}")), "{text}");
    assert!(text.contains(&format!("\"{}", path(&world.origin.url("/near.whl")))), "{text}");
    let (head, _) = raw(&world, &path(&moved), login).await;
    assert!(head.contains(&format!("location: http://{}{led}", world.proxy.address)), "{head}");
    // As pip does: it sends larder the credential again.
    let (head, _) = raw(&world, &format!("{led}{}", plain_wheel("far")), login).await;
    assert_eq!(status(&head), "200");
    assert!(!files.log().is_empty() && files.log().iter().all(|asked| asked.text(field).is_none()));
    // The control: without a credential there is nothing to drop.
    let (head, _) = raw(&world, &path(&moved), "").await;
    assert!(head.contains(&format!("location: {}", mirrored(&world, &far))), "{head}");
    raw(&world, &path(&far), login).await;
    assert!(files.log().iter().any(|asked| asked.text(field).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_mirror_knows_the_registry_by_configuration_or_by_its_name() {
    let mut world = World::new().await;
    let base = world.origin.url("");
    let manifest =
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let path = format!("/v2/tool/manifests/sha256:{}", hex(Algorithm::Sha256, manifest.as_bytes()));
    let url = world.origin.put(
        &path,
        Page::new(manifest).header("content-type", "application/vnd.oci.image.manifest.v1+json"),
    );
    let authority = world.origin.authority().replace(':', "%3A");
    assert_eq!(status(&raw(&world, &path, "").await.0), "404");
    assert_eq!(status(&raw(&world, &format!("{path}?ns={authority}"), "").await.0), "200");
    world.proxy.stop().await;
    let configured = Mirrored(&world, &base).start().await;
    for query in ["", "?ns=hub.example.org", &format!("?ns={authority}")] {
        let got = configured.get(&format!("http://{}{path}{query}", configured.address)).await;
        assert!(got.0.contains("200 ok") && got.0.contains("larder; hit"), "{query}: {}", got.0);
        assert_eq!(got.1, manifest);
    }
    assert_eq!(world.origin.asked(&path).len(), 1, "{url}");
}

/// A list in several pages links to the next page, which for a mirror's client is not at the mirror's root.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_page_of_a_list_is_found() {
    let world = World::new().await;
    let next = "/v2/tool/tags/list?last=b&n=2";
    let page = |body: &'static str| Page::new(body).header("content-type", "application/json");
    let both = "</v2/tool/tags/list?last=b&n=2>; rel=\"next\", <?n=2>; rel=\"first\"";
    let url =
        world.origin.put("/v2/tool/tags/list", page(r#"{"tags":["a","b"]}"#).header("link", both));
    world.origin.put(next, page(r#"{"tags":["c"]}"#));
    let authority = world.origin.authority().replace(':', "%3A");
    for at in [
        mirrored(&world, &url),
        format!("http://{}/v2/tool/tags/list?ns={authority}", world.proxy.address),
    ] {
        let got = world.fetch(&at).await;
        let led = mirrored(&world, &world.origin.url(next));
        assert_eq!(got.text("link"), format!("<{led}>; rel=\"next\", <?n=2>; rel=\"first\""));
        assert!(world.fetch(&led).await.body.starts_with(br#"{"tags":["c"]"#));
    }
    // The control: through the proxy the link is the origin's own.
    assert_eq!(world.fetch(&url).await.text("link"), both);
}

/// A larder on the test's directory that mirrors the registry at a URL.
struct Mirrored<'a>(&'a World, &'a str);

/// Such a larder, running.
struct Serving {
    _proxy: crate::world::Proxy,
    address: std::net::SocketAddr,
    client: crate::world::client::Client,
}

impl Mirrored<'_> {
    async fn start(self) -> Serving {
        let mut config = self.0.config().clone();
        let registry = |name: Option<&str>| larder::config::Registry {
            name: name.map(str::to_owned),
            url: self.1.to_owned(),
        };
        config.mirror.registries = vec![registry(None), registry(Some("hub.example.org"))];
        let proxy = crate::world::Proxy::start(config).await;
        let client = proxy.client().await;
        Serving { address: proxy.address, client, _proxy: proxy }
    }
}

impl Serving {
    async fn get(&self, url: &str) -> (String, String) {
        let path = url.splitn(4, '/').last().unwrap();
        let request =
            format!("GET /{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        let (answer, _) = self.client.raw_plain(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }
}

/// Includes the forms for plain HTTP, where nothing is shared without a proof.
#[tokio::test(flavor = "multi_thread")]
async fn every_form_leads_to_the_same_entry() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.1").await;
    for (origin, forms) in [(&world.origin, ["/https/", "/HTTPS///"]), (&plain, ["/http/", "/"])] {
        // A different body for each, because a digest names one blob for all URLs.
        let body = noise(u64::from(origin.address().port()), 10_000);
        let path = by_hash(&body);
        origin.put(&path, Page::new(body));
        let authority = origin.authority();
        for form in forms {
            // pip escapes the colon of a port.
            for authority in [&authority, &authority.replace(':', "%3A")] {
                let (head, _) = raw(&world, &format!("{form}{authority}{path}"), "").await;
                assert_eq!(status(&head), "200", "{form}{authority}");
            }
        }
        assert!(world.fetch(&origin.url(&path)).await.is_hit());
        assert_eq!(origin.gets(&path), 1);
    }
}
