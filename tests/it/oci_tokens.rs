//! A registry that requires a token for everything, a new one with each pull: which client is given what, and what is transferred
//! for it (DESIGN §4 "Credentials"). The registry is a real one, and checks its tokens really.

use std::time::Duration;

use hyper::Response;

use crate::world::archive::hex;
use crate::world::binary::{Daemon, say};
use crate::world::larder::own;
use crate::world::names::Names;
use crate::world::page::whole;
use crate::world::registry::image::Image;
use crate::world::registry::yard::{Yard, can_run};
use crate::world::registry::{Around, GUEST, MEMBER, NAME, OWNER, PROGRAM, Registry, basic};
use crate::world::tools::{installed, text};
use crate::world::{Ca, Got, eventually, files, holding};
use larder::digest::Algorithm;

const TOKENS: Around = Around { tokens: true, redirects: true };

/// The first characters of every token: a JSON object in Base64.
const TOKEN: &str = "eyJ";

/// Longer than a right is valid.
const LATER: Duration = Duration::from_secs(301);

/// Longer than the time in which larder does not ask a registry again about a tag.
const GRACE: Duration = Duration::from_secs(6);

/// The `Accept` of skopeo, podman and buildah for a manifest.
const SKOPEO: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.v1+prettyjws, \
    application/vnd.docker.distribution.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.index.v1+json";

/// The `User-Agent` of the engines, and their `Accept` for a manifest.
const ENGINES: [(&str, &str); 2] = [
    (
        "docker/27.3.1 go/go1.22.7 git-commit/41ca978 kernel/6.1.0 os/linux arch/amd64 \
         UpstreamClient(Docker-Client/27.3.1 \\(linux\\))",
        "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json, \
         application/vnd.docker.distribution.manifest.v1+prettyjws, application/json",
    ),
    (
        "containerd/1.7.22",
        "application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.oci.image.index.v1+json, */*",
    ),
];

fn url(repository: &str, rest: &str) -> String {
    format!("https://{NAME}/v2/{repository}/{rest}")
}

impl Yard {
    /// A GET as skopeo sends it; without a token if `bearer` is empty.
    async fn ask(&self, url: &str, bearer: &str) -> Got {
        let ask = self.world.client.get(url).header("accept", SKOPEO);
        let ask = if bearer.is_empty() { ask } else { ask.header("authorization", bearer) };
        ask.send().await
    }

    /// Waits until the whole image is stored as public, while the registry works.
    pub(crate) async fn is_open(&self, repository: &str, image: &Image) {
        let kept = |url: String| async move {
            let ask = self.world.client.get(&url).header("cache-control", "only-if-cached");
            ask.send().await.status == 200
        };
        for name in blobs(image) {
            let kind = if image.manifests.contains(&name) { "manifests" } else { "blobs" };
            let at = url(repository, &format!("{kind}/{name}"));
            eventually("larder knows that it is public", || kept(at.clone())).await;
        }
        let tag = url(repository, "manifests/1.0");
        eventually("the tag is public", || async { self.ask(&tag, "").await.status == 200 }).await;
    }

    fn stores(&self, digest: &str) -> bool {
        let name = digest.trim_start_matches("sha256:");
        files(&self.world.cache()).iter().any(|file| file.ends_with(name))
    }
}

/// The digests of all blobs of an image.
fn blobs(image: &Image) -> Vec<String> {
    let all = files(&image.layout.join("blobs/sha256")).into_iter();
    all.map(|file| format!("sha256:{}", file.file_name().unwrap().to_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tokens_gives_everybody_what_is_theirs() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    let (open, shut) =
        (Image::new(yard.world.dir(), 6, 100_000), Image::new(yard.world.dir(), 7, 100_000));
    yard.push(&open, "public/box:1.0").await;
    yard.push(&shut, "private/box:1.0").await;
    let registry = &yard.registry;
    // Public: after one pull with an anonymous token, the image is stored for everybody.
    let (before, tokens) = (registry.sent(), registry.tokens.given());
    let everybodys = yard.pull("public/box:1.0", "everybodys").await.unwrap();
    assert!(registry.sent() > before + 200_000, "the control: the first pull moves blobs");
    yard.is_open("public/box", &open).await;
    let sent = registry.sent();
    for (who, into) in [(None, "again"), (Some(OWNER), "owner"), (Some(GUEST), "guest")] {
        assert_eq!(yard.pull_as(who, "public/box:1.0", into).await.unwrap(), everybodys);
        assert_eq!(registry.sent(), sent, "{who:?}");
    }
    assert!(registry.tokens.given() >= tokens + 4, "the control: each pull has a token of its own");
    // Private: a client with a right proves it with the first byte; a client without one gets the registry's answer.
    let owners = yard.pull_as(Some(OWNER), "private/box:1.0", "owners").await.unwrap();
    assert!(registry.sent() > sent + 200_000, "the control: the first pull moves blobs");
    let (sent, layer) = (registry.sent(), &shut.layers[1]);
    for (who, into) in [(OWNER, "twice"), (MEMBER, "members")] {
        let asked = registry.proofs(layer);
        assert_eq!(yard.pull_as(Some(who), "private/box:1.0", into).await.unwrap(), owners);
        assert_eq!(registry.sent(), sent, "{who:?}");
        assert!(registry.proofs(layer) > asked, "a new token proves its right: {who:?}");
    }
    for who in [None, Some(GUEST), Some((OWNER.0, "wrong"))] {
        let error = yard.pull_as(who, "private/box:1.0", "nobodys").await.unwrap_err();
        let said = ["unauthorized", "denied", "authentication required", "invalid username"];
        assert!(said.iter().any(|word| error.contains(word)), "{who:?} {error}");
    }
    assert_eq!(registry.sent(), sent);
    assert!(yard.stores(layer), "the control: the bytes are there");
    // No credential is on disk, in any encoding. The storage host refuses requests with one.
    for (user, password) in [OWNER, MEMBER, GUEST] {
        let spelled = basic((user, password));
        for secret in [password.as_bytes(), spelled.as_bytes(), TOKEN.as_bytes()] {
            assert!(holding(&yard.world.proxy.data, secret).is_empty());
        }
    }
    assert!(
        !holding(&yard.world.proxy.data, b"private/box").is_empty(),
        "the control: URLs are found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_withdrawn_ends_within_five_minutes() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    let image = Image::new(yard.world.dir(), 8, 100_000);
    yard.push(&image, "private/box:1.0").await;
    let (registry, layer) = (&yard.registry, &image.layers[1]);
    let token = |who| registry.tokens.bearer("private/box", who);
    let (owner, member, guest) = (token(Some(OWNER)), token(Some(MEMBER)), token(Some(GUEST)));
    let (blob, tag) =
        (url("private/box", &format!("blobs/{layer}")), url("private/box", "manifests/1.0"));
    let body = yard.ask(&blob, &owner).await.complete().body;
    let manifest = yard.ask(&tag, &owner).await.complete().body;
    let sent = registry.sent();
    let hit = |got: Got| got.is_hit() && got.body == body;
    assert!(hit(yard.ask(&blob, &member).await) && hit(yard.ask(&blob, &member).await));
    assert_eq!(yard.ask(&tag, &member).await.complete().body, manifest);
    for bearer in [&guest, &token(None), ""] {
        for at in [&blob, &tag] {
            let got = yard.ask(at, bearer).await;
            let said = String::from_utf8_lossy(&got.body).into_owned();
            assert!(got.status == 401 && !said.contains("schemaVersion"), "{at} {said:?}");
        }
    }
    registry.withdraw(&member);
    yard.world.proxy.clock.advance(LATER);
    for at in [&blob, &tag] {
        assert_eq!(yard.ask(at, &member).await.status, 401, "{at}");
        // The control: the entry that this client is no longer given is still stored.
        assert!(yard.ask(at, &owner).await.is_complete());
        // It does not become accessible again when the registry is gone.
        yard.world.proxy.clock.advance(LATER);
    }
    assert_eq!(registry.sent(), sent, "all of that without a byte from the registry");
    // Only the registry can say whether it has a blob, and a client without a right learns nothing about it.
    let head = |bearer: &str| {
        let ask = yard.world.client.head(&blob).header("authorization", bearer).send();
        Box::pin(async move { ask.await.status.as_u16() })
    };
    let asked = registry.heads(layer);
    assert_eq!((head(&owner).await, head(&member).await), (200, 401));
    assert_eq!(registry.heads(layer), asked + 2);
    registry.front.stop();
    registry.front.cut();
    for bearer in [&member, &guest] {
        for at in [&blob, &tag] {
            assert!(!yard.ask(at, bearer).await.is_complete());
        }
        assert!(head(bearer).await >= 500);
    }
    // The control: a client that had a right lately.
    for at in [&blob, &tag] {
        assert!(yard.ask(at, &owner).await.is_complete(), "{at}");
    }
    assert_eq!(head(&owner).await, 200);
}

/// As docker does it (GET of the tag) and as containerd does it (HEAD of the tag, GET of its digest): twice, with two tokens.
#[tokio::test(flavor = "multi_thread")]
async fn engines_with_new_tokens_move_no_blob_twice() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for repository in ["public/box", "private/box"] {
        let yard = Yard::new(TOKENS).await;
        let image = Image::new(yard.world.dir(), 9, 100_000);
        yard.push(&image, &format!("{repository}:1.0")).await;
        let registry = &yard.registry;
        let before = registry.sent();
        let mut sent = None;
        for round in 0..2 {
            for (agent, accept) in ENGINES {
                let bearer = registry.tokens.bearer(repository, Some(MEMBER));
                let ask = |ask: crate::world::client::Ask| {
                    let ask = ask.header("user-agent", agent).header("authorization", &bearer);
                    async move { ask.send().await.complete() }
                };
                let tag = url(repository, "manifests/1.0");
                let head = ask(yard.world.client.head(&tag).header("accept", accept)).await;
                let named = head.text("docker-content-digest").to_owned();
                let at = if agent.starts_with("docker") {
                    tag
                } else {
                    url(repository, &format!("manifests/{named}"))
                };
                let got = ask(yard.world.client.get(&at).header("accept", accept)).await;
                assert_eq!(format!("sha256:{}", hex(Algorithm::Sha256, &got.body)), named);
                assert!(got.text("content-type").contains("index"), "{agent}");
                for layer in &image.layers {
                    let blob = url(repository, &format!("blobs/{layer}"));
                    let got = ask(yard.world.client.get(&blob)).await;
                    assert_eq!(&format!("sha256:{}", hex(Algorithm::Sha256, &got.body)), layer);
                }
                let moved = *sent.get_or_insert_with(|| registry.sent());
                assert_eq!(registry.sent(), moved, "{round} {repository} {agent}");
            }
        }
        assert!(sent > Some(before + 100_000), "the control: the first pull moves blobs");
        // One pull of the manifest in total.
        assert_eq!(pulls(registry), 1, "{repository}");
    }
}

/// How often a manifest was pulled. A request without a token is no pull: larder sends one to test whether the registry protects
/// HEAD as it protects GET, and gets a challenge.
fn pulls(registry: &Registry) -> usize {
    let log = registry.front.log().into_iter();
    let manifests = log.filter(|one| one.method == "GET" && one.path.contains("/manifests/"));
    manifests.filter(|one| one.text("authorization").is_some()).count()
}

/// A private tag that has moved: whichever clients follow it, the new manifest is fetched once.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_pulled_once_for_all_who_have_a_right() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    for (round, seed) in [14, 15].into_iter().enumerate() {
        let image = Image::new(yard.world.dir(), seed, 50_000);
        yard.push(&image, "private/box:1.0").await;
        yard.world.proxy.clock.advance(GRACE);
        let (before, sent) = (pulls(&yard.registry), yard.registry.sent());
        let mut given = Vec::new();
        for (who, into) in [(OWNER, "owners"), (MEMBER, "members"), (OWNER, "again")] {
            let into = format!("{round}-{into}");
            given.push(yard.pull_as(Some(who), "private/box:1.0", &into).await.unwrap());
        }
        assert!(given[0] == given[1] && given[0] == given[2]);
        assert_eq!(pulls(&yard.registry) - before, image.manifests.len(), "{round}: each once");
        assert!(yard.registry.sent() > sent, "the control: it is another image");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_buildah_log_in_and_pull_cold_and_warm() {
    let programs: Vec<&str> =
        ["podman", "buildah"].into_iter().filter(|program| installed(program)).collect();
    if !can_run(&[PROGRAM, "skopeo"]) || programs.is_empty() {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    let image = Image::new(yard.world.dir(), 10, 100_000);
    yard.push(&image, "private/box:1.0").await;
    let name = format!("{NAME}/private/box:1.0");
    let member = format!("{}:{}", MEMBER.0, MEMBER.1);
    // As `login` writes it.
    let file = yard.path("login.json");
    let login = format!(r#"{{"auths":{{"{NAME}":{{"auth":"{}"}}}}}}"#, basic(OWNER));
    std::fs::write(&file, login).unwrap();
    let file = file.to_str().unwrap();
    let mut sent = None;
    for program in programs {
        for (into, how) in [("cold", ["--creds", &*member]), ("warm", ["--authfile", file])] {
            let into = format!("{program}-{into}");
            yard.unpack(program, &into, &[how[0], how[1], &name]).await;
            let moved = *sent.get_or_insert_with(|| yard.registry.sent());
            assert_eq!(yard.registry.sent(), moved, "{program} {how:?}");
        }
    }
    assert!(sent > Some(100_000), "the control: the first pull moves blobs");
    for layer in &image.layers {
        assert_eq!(yard.registry.gets(layer), 1);
    }
}

/// Registry and token service are at their limit, then fail, then are gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_is_pulled_without_registry_or_token_service() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    let (image, other) =
        (Image::new(yard.world.dir(), 11, 100_000), Image::new(yard.world.dir(), 12, 100_000));
    yard.push(&image, "public/box:1.0").await;
    yard.push(&other, "public/other:1.0").await;
    let registry = &yard.registry;
    let first = yard.pull("public/box:1.0", "first").await.unwrap();
    yard.is_open("public/box", &image).await;
    let (old, never) = (
        registry.tokens.bearer("public/box", None),
        registry.tokens.bearer("public/box", Some(GUEST)),
    );
    let tag = url("public/box", "manifests/1.0");
    let manifest = yard.ask(&tag, &old).await.complete().body;
    let layer = url("public/box", &format!("blobs/{}", image.layers[1]));
    let missing = [
        url("public/other", "manifests/1.0"),
        url("public/other", &format!("blobs/{}", other.layers[1])),
    ];
    yard.world.proxy.clock.advance(GRACE);
    for status in [429, 503, 0] {
        for origin in [&registry.front, &registry.tokens.front, &registry.files] {
            if status == 0 {
                origin.stop();
                origin.cut();
            }
            origin.otherwise(move |_| async move {
                let answer = Response::builder().status(status).header("retry-after", "86400");
                answer.body(whole("at its limit")).unwrap()
            });
        }
        yard.world.proxy.clock.advance(Duration::from_mins(2));
        let again = yard.pull("public/box:1.0", &format!("again-{status}")).await;
        assert_eq!(again.unwrap_or_else(|error| panic!("{status} {error}")), first);
        for bearer in ["", &*old, &*never] {
            let got = yard.ask(&tag, bearer).await.complete();
            assert!(
                got.body == manifest && got.cache_status().contains("stale"),
                "{}",
                got.cache_status()
            );
            assert!(yard.ask(&layer, bearer).await.complete().is_hit());
            // An existence check is answered with yes.
            let head = yard.world.client.head(&layer);
            let head = if bearer.is_empty() { head } else { head.header("authorization", bearer) };
            assert_eq!(head.send().await.status, 200, "{status}");
            for missing in &missing {
                let got = yard.ask(missing, bearer).await;
                if status == 0 {
                    assert!(got.status.is_server_error(), "{}", got.status);
                } else {
                    let said = (got.status.as_u16(), got.text("retry-after"), &got.body[..]);
                    assert_eq!(said, (status, "86400", &b"at its limit"[..]), "{missing}");
                }
            }
        }
    }
}

/// Pitfall 42: one token is at its limit. The registry answers later than larder waits for an origin that is known to fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_at_its_limit_is_nobody_elses_failure() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(TOKENS).await;
    let image = Image::new(yard.world.dir(), 13, 100_000);
    yard.push(&image, "public/box:1.0").await;
    let registry = &yard.registry;
    yard.pull("public/box:1.0", "first").await.unwrap();
    yard.is_open("public/box", &image).await;
    let honest = registry.tokens.bearer("public/box", None);
    let hostile = registry.tokens.bearer("public/box", None);
    let (tag, greeting) = (url("public/box", "manifests/1.0"), format!("https://{NAME}/v2/"));
    let manifest = yard.ask(&tag, &honest).await.complete().body;
    let (limited, answer) = (hostile.clone(), manifest.clone());
    let digest = format!("sha256:{}", hex(Algorithm::Sha256, &manifest));
    registry.front.otherwise(move |request| {
        let said = request.headers().get("authorization");
        let (is_hostile, is_anybody) = (said.is_some_and(|said| *said == limited), said.is_none());
        let (digest, answer) = (digest.clone(), answer.clone());
        async move {
            if is_hostile {
                let answer = Response::builder().status(429).header("retry-after", "86400");
                return answer.body(whole("at its limit")).unwrap();
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            if is_anybody {
                return Response::builder().status(401).body(whole("")).unwrap();
            }
            let kind = "application/vnd.oci.image.index.v1+json";
            let head = Response::builder().header("content-type", kind);
            head.header("docker-content-digest", digest).body(whole(answer)).unwrap()
        }
    });
    yard.world.proxy.clock.advance(GRACE);
    for at in [&greeting, &tag, &url("public/box", "manifests/2.0")] {
        for _ in 0..3 {
            let got = yard.ask(at, &hostile).await;
            assert!(
                got.status == 429 || got.cache_status().contains("stale"),
                "{} {at}",
                got.status
            );
        }
    }
    // The hostile job's failures do not affect other clients.
    assert_eq!(yard.ask(&greeting, "").await.status, 401, "the registry greets for itself");
    let got = yard.ask(&tag, &honest).await.complete();
    assert!(got.cache_status().contains("fwd-status=304"), "{}", got.cache_status());
    // The control: they affect the hostile job itself.
    let got = yard.ask(&tag, &hostile).await;
    assert!(got.body == manifest && got.cache_status().contains("stale"), "{}", got.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_stands_anywhere() {
    if !can_run(&[PROGRAM]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ca, data) = (Ca::new(&dir.path().join("origins.pem")), dir.path().join("data"));
    let names = Names::new().await;
    let registry = Registry::start(&ca, dir.path(), TOKENS).await;
    for origin in [&registry.front, &registry.files, &registry.tokens.front] {
        names.know(origin);
    }
    let through = names.url();
    let variables =
        [("LARDER_UPSTREAM_HTTPS_PROXY", through.as_str()), ("LARDER_LOG_FILTER", "trace")];
    let mut daemon = Daemon::start(&ca, &data, &variables).await;
    let client = daemon.client().await;
    let mut told = Vec::new();
    for repository in ["public/box", "private/box"] {
        let blob = url(repository, &format!("blobs/{}", registry.plant(repository, 100_000)));
        for who in [Some(MEMBER), Some(GUEST), None] {
            let bearer = registry.tokens.bearer(repository, who);
            for at in [&blob, &url(repository, "manifests/1.0"), &url(repository, "tags/list")] {
                client
                    .get(at)
                    .header("authorization", &bearer)
                    .header("accept", SKOPEO)
                    .send()
                    .await;
            }
        }
        told.push(text(&say(&ca, &data, &["why", &blob]).await));
    }
    // This includes larder's own tokens.
    eventually("larder has asked as anybody", || async { registry.tokens.given() > 0 }).await;
    for command in [&["ls"][..], &["stats"]] {
        told.push(text(&say(&ca, &data, command).await));
    }
    told.push(own(daemon.address, "/-/metrics").await);
    daemon.logged("private/box/tags/list").await;
    assert_eq!(daemon.terminate().await, Some(0));
    for (place, text) in [("the log", daemon.log()), ("what larder tells", told.join("\n"))] {
        for secret in [TOKEN, "X-Amz-Signature=0"] {
            let leaks: Vec<&str> = text.lines().filter(|line| line.contains(secret)).collect();
            assert!(leaks.is_empty(), "{place}: {leaks:#?}");
        }
        assert!(text.contains("private/box"), "the control: {place} would show it\n{text}");
    }
    assert!(holding(&data, TOKEN.as_bytes()).is_empty());
    assert!(!holding(&data, b"private/box").is_empty(), "the control: the search finds URLs");
    std::fs::write(data.join("planted"), registry.tokens.bearer("x", None)).unwrap();
    assert_eq!(holding(&data, TOKEN.as_bytes()).len(), 1, "the control: it would be found");
}
