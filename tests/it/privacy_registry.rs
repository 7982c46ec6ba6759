//! P5 for registries: layers and tags that are requested with a login.

use hyper::{Method, Request, Response};

use crate::privacy::{ALICE, BOB, CAROL, Door, ask, file, gets, proofs, status};
use crate::world::archive::hex;
use crate::world::page::OriginBody;
use crate::world::{Got, Mood, World, noise};
use larder::digest::Algorithm;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest with one layer.
fn manifest(layer: &[u8]) -> Vec<u8> {
    let digest = hex(Algorithm::Sha256, layer);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{digest}","size":{0}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{digest}","size":{0}}}]}}"#,
        layer.len()
    )
    .into_bytes()
}

fn answer(body: &[u8], kind: &str) -> Response<OriginBody> {
    let mut answer = file(body, "");
    let digest = format!("sha256:{}", hex(Algorithm::Sha256, body));
    for (name, value) in [("docker-content-digest", digest.as_str()), ("content-type", kind)] {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    answer
}

async fn head(world: &World, url: &str, who: &str) -> Got {
    world.client.head(url).header("authorization", who).send().await
}

/// A registry that fails gives nothing to a client that only knows a digest, not even the information whether it exists.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_there_for_who_has_a_right_to_it() {
    let world = World::new().await;
    let layer = noise(1, 200_000);
    let path = format!("/v2/gears/box/blobs/sha256:{}", hex(Algorithm::Sha256, &layer));
    let (door, body) = (Door::open_to(&[ALICE, BOB]), layer.clone());
    let url = world.origin.script(&path, move |request: Request<_>| {
        let kind = "application/octet-stream";
        let answer = if door.lets(&request) { answer(&body, kind) } else { status(401) };
        async move { answer }
    });
    for hit in [false, true] {
        let got = ask(&world.client, &url, ALICE).await.complete();
        assert!(got.body == layer && got.is_hit() == hit, "{}", got.cache_status());
    }
    let got = ask(&world.client, &url, BOB).await.complete();
    assert!(got.body == layer && got.is_hit(), "{}", got.cache_status());
    let gets = |who| gets(&world.origin, &path, who);
    assert_eq!((gets(ALICE), gets(BOB)), (1, 0));
    assert_eq!(proofs(&world.origin, &path, BOB), 1, "the control: he proved his right");
    assert_eq!(head(&world, &url, CAROL).await.status, 401);
    world.origin.mood(Mood::Failing(503));
    assert_eq!(head(&world, &url, ALICE).await.status, 200, "the control");
    assert_eq!(head(&world, &url, BOB).await.status, 200, "the control");
    for who in [CAROL, "Bearer nobody"] {
        assert!(head(&world, &url, who).await.status.is_server_error(), "{who}");
        let got = ask(&world.client, &url, who).await;
        assert!(got.status.is_server_error() && got.body != layer, "{who} {}", got.status);
    }
}

/// One tag, two views of it; each moves independently.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_points_for_its_reader() {
    let world = World::new().await;
    let path = "/v2/gears/box/manifests/latest";
    let (hers, his) = (manifest(&noise(2, 100)), manifest(&noise(3, 100)));
    let views = [(ALICE, hers.clone()), (BOB, his.clone())];
    let url = world.origin.script(path, move |request: Request<_>| {
        let own = views.iter().find(|(who, _)| Door::open_to(&[who]).lets(&request));
        let answer = own.map_or_else(|| status(401), |(_, body)| answer(body, MANIFEST));
        async move { answer }
    });
    let get = |who: &'static str| {
        world.client.get(&url).header("authorization", who).header("accept", MANIFEST).send()
    };
    for _ in 0..2 {
        assert_eq!(get(ALICE).await.complete().body, hers);
        assert_eq!(get(BOB).await.complete().body, his);
        assert_eq!(get(CAROL).await.status, 401);
        world.proxy.clock.advance(std::time::Duration::from_mins(1));
    }
    // While its registry fails, each client has its own view, and a client without one has none.
    world.origin.mood(Mood::Failing(503));
    assert_eq!(get(ALICE).await.complete().body, hers);
    assert_eq!(get(BOB).await.complete().body, his);
    assert!(get(CAROL).await.status.is_server_error());
    // A tag that did not move cost each client one pull.
    let asked = world.origin.asked(path);
    let pulls = |who: &str| {
        let by = |one: &&crate::world::origin::Asked| {
            one.method == Method::GET && one.text("authorization") == Some(who)
        };
        asked.iter().filter(by).count()
    };
    assert_eq!((pulls(ALICE), pulls(BOB)), (1, 1));
}
