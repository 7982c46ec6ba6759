//! Container registries as scripted origins: tags that cost no quota, manifests and blobs under their digests, and what stands in
//! for a registry that fails.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use larder::digest::Algorithm;

use crate::world::archive::{flipped, hex};
use crate::world::{Got, Mood, Origin, Page, World, noise};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// containerd's `Accept`.
const CONTAINERD: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, */*";

const TAG: &str = "/v2/gears/box/manifests/latest";

/// Longer than the time in which larder does not ask a registry again about an index.
const GRACE: Duration = Duration::from_secs(6);

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(Algorithm::Sha256, bytes))
}

fn manifest(layer: &[u8]) -> String {
    let (named, size) = (digest(layer), layer.len());
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"digest":"{named}","size":{size}}},"layers":[]}}"#
    )
}

fn page(manifest: &str) -> Page {
    let digest = digest(manifest.as_bytes());
    Page::new(manifest.to_owned())
        .header("content-type", IMAGE)
        .header("docker-content-digest", &digest)
        .header("docker-distribution-api-version", "registry/2.0")
        .etag(&digest)
}

fn blob(repository: &str, bytes: &[u8]) -> String {
    format!("/v2/{repository}/blobs/{}", digest(bytes))
}

fn by_digest(manifest: &str) -> String {
    format!("/v2/gears/box/manifests/{}", digest(manifest.as_bytes()))
}

/// Makes `latest` point at `manifest`; returns the URL of the tag.
fn tag(origin: &Origin, manifest: &str) -> String {
    origin.put(&by_digest(manifest), page(manifest));
    origin.put(TAG, page(manifest))
}

async fn pull(world: &World, url: &str) -> Got {
    world.client.get(url).header("accept", CONTAINERD).send().await.complete()
}

fn heads(origin: &Origin, path: &str) -> usize {
    origin.asked(path).iter().filter(|one| one.method == Method::HEAD).count()
}

/// rpardini#54, harbor#13112: a GET of a manifest is a pull, a HEAD is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_stands_still_costs_one_pull() {
    let world = World::new().await;
    let (first, second) = (manifest(b"first"), manifest(b"second"));
    let url = tag(&world.origin, &first);
    let got = pull(&world, &url).await;
    assert_eq!((&*got.body, got.text("content-type")), (first.as_bytes(), IMAGE));
    assert_eq!(got.text("docker-content-digest"), digest(first.as_bytes()));
    for asked in 2..5 {
        world.proxy.clock.advance(GRACE);
        let got = pull(&world, &url).await;
        assert!(got.cache_status().contains("fwd-status=304"), "{}", got.cache_status());
        assert_eq!(heads(&world.origin, TAG), asked, "each revalidation is a HEAD");
    }
    // A request by digest finds it too: containerd requests the digest that the answer to its HEAD named.
    let fixed = pull(&world, &world.origin.url(&by_digest(&first))).await;
    assert!(fixed.is_hit() && fixed.text("content-type") == IMAGE, "{:?}", fixed.headers);
    assert_eq!((world.origin.gets(TAG), world.origin.gets(&by_digest(&first))), (0, 1));
    // The tag moves: one pull more.
    tag(&world.origin, &second);
    assert_eq!(pull(&world, &url).await.body, first, "asked a moment ago");
    world.proxy.clock.advance(GRACE);
    assert_eq!(pull(&world, &url).await.body, second);
    assert_eq!((world.origin.gets(TAG), world.origin.gets(&by_digest(&second))), (0, 1));
    // The control: a registry whose answers to HEAD contain no digest is asked with GET.
    let mute = Page::new(first.clone()).header("content-type", IMAGE);
    world.origin.put(TAG, mute);
    world.proxy.clock.advance(GRACE);
    assert_eq!(pull(&world, &url).await.body, first);
    assert_eq!(world.origin.gets(TAG), 1);
}

/// harbor#22609: a HEAD gets what a GET would get.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_a_tag_is_answered_and_makes_the_pull_that_follows_a_hit() {
    let world = World::new().await;
    let text = manifest(b"x");
    let url = tag(&world.origin, &text);
    let head = world.client.head(&url).header("accept", CONTAINERD).send().await.complete();
    let (length, kind) = (text.len().to_string(), head.text("content-type"));
    assert_eq!((head.text("content-length"), kind), (&*length, IMAGE));
    let named = head.text("docker-content-digest");
    assert!(
        pull(&world, &world.origin.url(&format!("/v2/gears/box/manifests/{named}"))).await.is_hit()
    );
    assert_eq!((world.origin.gets(TAG), world.origin.gets(&by_digest(&text))), (0, 1));
    // Without the registry as well.
    world.proxy.clock.advance(GRACE);
    world.origin.mood(Mood::Failing(503));
    let head = world.client.head(&url).header("accept", CONTAINERD).send().await.complete();
    assert!(head.cache_status().contains("stale"), "{}", head.cache_status());
}

/// A client that does not accept indexes is given one image under the same URL.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_accepts_is_in_the_key_and_its_order_is_not() {
    let world = World::new().await;
    let (image, index) = (manifest(b"x"), r#"{"schemaVersion":2,"manifests":[]}"#);
    let answers = [(image.clone(), IMAGE), (index.to_owned(), INDEX)];
    for (text, kind) in &answers {
        let digest = digest(text.as_bytes());
        let page = Page::new(text.clone())
            .header("content-type", kind)
            .header("docker-content-digest", &digest);
        world.origin.put(&format!("/v2/gears/box/manifests/{digest}"), page);
    }
    let url = world.origin.script(TAG, move |request| {
        let accept = request.headers()["accept"].to_str().unwrap().to_owned();
        let (text, kind) = answers[usize::from(accept.contains(INDEX))].clone();
        async move {
            let mut response = hyper::Response::new(crate::world::page::whole(text.clone()));
            let headers = response.headers_mut();
            headers.insert("content-type", kind.parse().unwrap());
            headers.insert("docker-content-digest", digest(text.as_bytes()).parse().unwrap());
            response
        }
    });
    let ask = |accept: String| {
        let asked = world.client.get(&url).header("accept", &accept).send();
        Box::pin(async move { asked.await.complete() })
    };
    assert_eq!(ask(IMAGE.to_owned()).await.body, image);
    assert_eq!(ask(format!("{IMAGE}, {INDEX}")).await.body, index);
    let before = world.origin.total();
    assert!(ask(format!("{INDEX},{IMAGE}")).await.is_hit());
    assert!(ask(IMAGE.to_owned()).await.is_hit());
    assert_eq!(world.origin.total(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_behind_a_signed_redirect_is_kept_under_the_registrys_url() {
    let world = World::new().await;
    let files = world.another("127.0.0.2").await;
    let body = noise(1, 300_000);
    let path = blob("gears/box", &body);
    let signed = |n: u8| format!("/docker/registry/v2/blobs/data?X-Amz-Signature={n}&Expires=1");
    for n in 0..2 {
        files.put(&signed(n), Page::new(body.clone()).header("x-amz-id-2", "token"));
        world.origin.put(&path, Page::redirect(307, &files.url(&signed(n))));
        let got = world.fetch(&world.origin.url(&path)).await;
        assert_eq!((got.body.len(), got.is_hit()), (body.len(), n > 0));
    }
    assert_eq!((world.origin.gets(&path), files.total()), (1, 1));
    // Another repository's blob with these bytes is the same blob.
    let other = world.origin.url(&blob("other", &body));
    assert!(world.fetch(&other).await.is_hit());
    // The control: a redirect whose result nothing will prove reaches the client.
    world.origin.put("/v2/gears/box/tags/list", Page::redirect(307, &files.url("/list")));
    let got = world.get(&world.origin.url("/v2/gears/box/tags/list")).await;
    assert_eq!(got.status.as_u16(), 307);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_or_blob_that_is_not_what_its_digest_names_is_refused() {
    let world = World::new().await;
    let (good, bad) = (manifest(b"good"), manifest(b"evil"));
    let (layer, wrong) = (noise(1, 300_000), flipped(&noise(1, 300_000)));
    let lying = page(&bad).header("x-tampered", "yes");
    for (path, body) in [(by_digest(&good), lying), (blob("gears/box", &layer), Page::new(wrong))] {
        let url = world.origin.put(&path, body);
        let got = world.get(&url).await;
        assert!(!got.is_complete(), "{path} {} {:?}", got.status, got.end);
    }
    // The same if the tag's header names one manifest and the request by digest gets another.
    let url = world.origin.put(TAG, page(&good));
    assert!(!world.client.get(&url).header("accept", CONTAINERD).send().await.is_complete());
    // The control: what the tag names is given; and the blob, once it is right and the quarantine over.
    assert_eq!(pull(&world, &tag(&world.origin, &bad)).await.body, bad);
    world.proxy.clock.advance(Duration::from_secs(61));
    let url = world.origin.put(&blob("gears/box", &layer), Page::new(layer.clone()));
    assert_eq!(world.fetch(&url).await.body, layer);
}

/// Only the origin can give a manifest its content type: bytes that came for another repository do not answer without one.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_another_repository_has_its_own_type() {
    let world = World::new().await;
    let text = manifest(b"x");
    pull(&world, &tag(&world.origin, &text)).await;
    let path = format!("/v2/other/manifests/{}", digest(text.as_bytes()));
    let url = world.origin.put(&path, page(&text));
    assert_eq!(pull(&world, &url).await.text("content-type"), IMAGE);
    assert_eq!(world.origin.gets(&path), 1);
    assert!(pull(&world, &url).await.is_hit());
}

/// Clients skip uploading blobs that the registry reports as present, so only the registry can answer that.
#[tokio::test(flavor = "multi_thread")]
async fn whether_a_registry_has_a_blob_only_the_registry_can_say() {
    let world = World::new().await;
    let body = noise(1, 300_000);
    let path = blob("gears/box", &body);
    let url = world.origin.put(&path, Page::new(body.clone()));
    world.fetch(&url).await;
    let head = |url: String| world.client.head(&url).send();
    // In another repository: stored by larder, unknown to the registry.
    let other = world.origin.url(&blob("other", &body));
    assert_eq!(head(other.clone()).await.status, 404);
    assert!(world.fetch(&other).await.is_hit(), "its bytes are known all the same");
    assert_eq!(head(url.clone()).await.status, 200);
    // Once removed from the registry, it must be pushed again.
    world.origin.put(&path, Page::status(404));
    assert_eq!(head(url.clone()).await.status, 404);
    // A registry that fails gives no answer, and what is stored can be pulled.
    for mood in [Mood::Failing(429), Mood::Failing(503)] {
        world.origin.mood(mood);
        let got = head(url.clone()).await;
        assert_eq!((got.status.as_u16(), got.text("content-length")), (200, "300000"), "{mood:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_registry_fails_larder_greets_in_its_place() {
    let world = World::new().await;
    let text = manifest(b"x");
    let url = tag(&world.origin, &text);
    let layer = noise(1, 300_000);
    let layer_url = world.origin.put(&blob("gears/box", &layer), Page::new(layer));
    let realm = world.origin.put("/token?service=x", given("t"));
    let realm = realm.split('?').next().unwrap();
    let asks_for_token = Page::status(401)
        .header("www-authenticate", &format!("Bearer realm=\"{realm}\",service=\"x\""));
    let greeting = world.origin.put("/v2/", asks_for_token);
    let status = |url: String| {
        let asked =
            world.client.get(&url).header("docker-distribution-api-version", "registry/2.0");
        async move { asked.send().await.status.as_u16() }
    };
    let fails = |url: String| {
        world.origin.mood(Mood::Failing(429));
        status(url)
    };
    assert_eq!(fails(greeting.clone()).await, 429, "nothing of this registry is stored");
    world.origin.mood(Mood::Well);
    assert_eq!(status(greeting.clone()).await, 401);
    pull(&world, &url).await;
    world.fetch(&layer_url).await;
    assert_eq!(status(greeting.clone()).await, 401, "the control: it answers for itself");
    world.proxy.clock.advance(GRACE);
    let missing = world.origin.put("/v2/gears/box/manifests/missing", Page::status(404));
    for mood in [Mood::Failing(429), Mood::Failing(503), Mood::Hanging] {
        world.origin.mood(mood);
        let got = world.get(&greeting).await.complete();
        assert_eq!(
            (&*got.body, got.text("docker-distribution-api-version")),
            (&b"{}"[..], "registry/2.0")
        );
        let got = pull(&world, &url).await;
        assert!(got.body == text && got.cache_status().contains("stale"), "{}", got.cache_status());
        assert!(world.fetch(&layer_url).await.is_hit());
        // What is not stored fails as it would without larder.
        if let Mood::Failing(as_it_is) = mood {
            assert_eq!(status(missing.clone()).await, as_it_is);
        }
    }
    world.origin.stop();
    world.origin.cut();
    assert_eq!(status(greeting).await, 200);
    assert_eq!(pull(&world, &url).await.body, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_fails_with_the_registrys_own_status_and_wait() {
    let world = World::new().await;
    let stored = tag(&world.origin, &manifest(b"x"));
    pull(&world, &stored).await;
    let limit = Page::new(Bytes::from_static(b"{\"errors\":[{\"code\":\"TOOMANYREQUESTS\"}]}"));
    let mut limit = limit.header("retry-after", "86400").header("content-type", "application/json");
    limit.status = hyper::StatusCode::TOO_MANY_REQUESTS;
    let (tagged, layer) = ("/v2/a/manifests/other", blob("a", b"other"));
    for path in [tagged, &*layer] {
        let url = world.origin.put(path, limit.clone());
        let got = world.client.get(&url).header("accept", CONTAINERD).send().await;
        assert_eq!((got.status.as_u16(), got.text("retry-after")), (429, "86400"), "{path}");
        assert!(String::from_utf8_lossy(&got.body).contains("TOOMANYREQUESTS"));
    }
    // A day's wait affects nothing else: what is not limited is requested and given.
    let moved = manifest(b"moved");
    tag(&world.origin, &moved);
    world.proxy.clock.advance(GRACE);
    assert_eq!(pull(&world, &stored).await.body, moved);
    let other = noise(2, 1000);
    let url = world.origin.put(&blob("a", &other), Page::new(other));
    world.fetch(&url).await;
}

/// The registry works, and requires a token that no service issues any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_needs_no_token_service() {
    let world = World::new().await;
    let service = world.another("127.0.0.2").await;
    let realm = service.put("/token?service=s&scope=repository%3Agears%2Fbox%3Apull", given("t"));
    service.put("/token?service=s", given("t"));
    let realm = realm.split('?').next().unwrap().to_owned();
    let text = manifest(b"x");
    let url = tag(&world.origin, &text);
    pull(&world, &url).await;
    let challenge = move |scope: &str| {
        let field = format!("Bearer realm=\"{realm}\",service=\"s\"{scope}");
        Page::status(401).header("www-authenticate", &field)
    };
    let greeting = world.origin.put("/v2/", challenge(""));
    let (open, shut) = (page(&text), challenge(",scope=\"repository:gears/box:pull\""));
    world.origin.script(TAG, move |request| {
        let said = request.headers().get("authorization");
        let mut page =
            if said.is_some_and(|said| said == "Bearer t") { open.clone() } else { shut.clone() };
        async move { page.answer(request.method(), request.headers()) }
    });
    let greeted = || async { world.get(&greeting).await.status.as_u16() };
    // Anonymous clients need no token: larder asks anonymously, and downloads nothing that counts.
    world.proxy.clock.advance(GRACE);
    let got = pull(&world, &url).await;
    assert!(
        got.body == text && got.cache_status().contains("fwd-status=304"),
        "{}",
        got.cache_status()
    );
    let shown = |asked: &crate::world::origin::Asked| asked.text("authorization").is_some();
    let asked = world.origin.asked(TAG);
    assert!(asked.iter().filter(|one| shown(one)).all(|one| one.method == Method::HEAD));
    assert_eq!((asked.iter().filter(|one| shown(one)).count(), greeted().await), (1, 401));
    // Tokens expire, and there are no new ones.
    for mood in [Mood::Failing(429), Mood::Failing(503)] {
        service.mood(mood);
        world.proxy.clock.advance(Duration::from_secs(400));
        let got = pull(&world, &url).await;
        assert!(got.body == text && got.cache_status().contains("stale"), "{}", got.cache_status());
        assert_eq!(greeted().await, 200, "{mood:?}");
    }
    // The control: private content is not given, whatever fails.
    let other = world.origin.put("/v2/gears/other/manifests/latest", challenge(""));
    assert_eq!(world.client.get(&other).header("accept", CONTAINERD).send().await.status, 401);
}

/// A registry redirects clients with a right to the blob's storage, and may redirect clients without one to a page.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_right_only_if_the_blob_lies_at_its_end() {
    let world = World::new().await;
    let files = world.another("127.0.0.2").await;
    let body = noise(4, 100_000);
    let signed = files.put("/data?X-Amz-Signature=1", Page::new(body.clone()));
    // As long as the blob, and with another content type.
    let page =
        files.put("/login", Page::new(noise(5, 100_000)).header("content-type", "text/html"));
    let path = blob("gears/box", &body);
    let url = world.origin.script(&path, move |request| {
        let said = request.headers().get("authorization");
        let said = said.map_or("", |said| said.to_str().unwrap());
        let to = if ["Bearer a", "Bearer b"].contains(&said) { &signed } else { &page };
        let mut redirect = Page::redirect(307, to);
        async move { redirect.answer(request.method(), request.headers()) }
    });
    let ask = |who: &str| world.client.get(&url).header("authorization", who).send();
    assert_eq!(ask("Bearer a").await.complete().body, body);
    let got = ask("Bearer c").await;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert!(
        got.status == 502 && text.contains("perhaps one to sign in at"),
        "{} {text}",
        got.status
    );
    assert_eq!(got.text("location"), "", "its origin's redirect would lead it past the digest");
    // The control: a client that is redirected to the storage gets the blob from larder, without a byte from there.
    let before = files.gets("/data?X-Amz-Signature=1");
    let got = ask("Bearer b").await.complete();
    assert!(got.is_hit() && got.body == body);
    assert_eq!(files.gets("/data?X-Amz-Signature=1"), before);
}

fn given(token: &str) -> Page {
    Page::new(format!(r#"{{"token":"{token}","expires_in":300}}"#))
}
