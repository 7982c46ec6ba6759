//! Real clients of container registries against a real registry: skopeo, podman and buildah, configured only with a proxy and a
//! certificate.

use std::time::Duration;

use crate::world::archive::flipped;
use crate::world::registry::image::Image;
use crate::world::registry::yard::{Yard, can_run};
use crate::world::registry::{Around, NAME, PROGRAM};
use crate::world::tools::installed;
use crate::world::{Client, Mood};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_and_its_second_pull_moves_no_blob() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for redirects in [false, true] {
        let yard = Yard::new(Around { redirects, tokens: false }).await;
        let image = Image::new(yard.world.dir(), 1, 300_000);
        yard.push(&image, "gears/box:1.0").await;
        let before = yard.registry.sent();
        let first = yard.pull("gears/box:1.0", "first").await.unwrap();
        let sent = yard.registry.sent();
        assert!(sent > before + 600_000, "the control: the first pull moves blobs");
        let second = yard.pull("gears/box:1.0", "second").await.unwrap();
        assert_eq!(yard.registry.sent(), sent);
        assert_eq!(first, second);
        assert_eq!(yard.registry.files.total() > 0, redirects);
        for layer in &image.layers {
            assert_eq!(yard.registry.gets(layer), 1, "{redirects}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_buildah_pull_through_larder() {
    let programs: Vec<&str> =
        ["podman", "buildah"].into_iter().filter(|program| installed(program)).collect();
    if !can_run(&[PROGRAM, "skopeo"]) || programs.is_empty() {
        return;
    }
    let yard = Yard::new(Around { redirects: true, tokens: false }).await;
    let image = Image::new(yard.world.dir(), 2, 300_000);
    yard.push(&image, "gears/box:1.0").await;
    let name = format!("{NAME}/gears/box:1.0");
    for program in &programs {
        yard.unpack(program, program, &[&name]).await;
    }
    for layer in &image.layers {
        assert_eq!(
            yard.registry.gets(layer),
            1,
            "each client has it from larder, or was the first"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_a_flipped_bit_is_refused() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    for redirects in [false, true] {
        let yard = Yard::new(Around { redirects, tokens: false }).await;
        let image = Image::new(yard.world.dir(), 3, 300_000);
        yard.push(&image, "gears/box:1.0").await;
        let file = yard.registry.file(&image.layers[1]);
        let right = std::fs::read(&file).unwrap();
        std::fs::write(&file, flipped(&right)).unwrap();
        let url = format!("https://{NAME}/v2/gears/box/blobs/{}", image.layers[1]);
        let got = yard.world.get(&url).await;
        assert!(!got.is_complete(), "{redirects} {} {:?}", got.status, got.end);
        assert!(got.body != right && got.body.len() < right.len());
        assert!(yard.pull("gears/box:1.0", "bad").await.is_err());
        // The control: the registry itself serves it unchanged.
        let direct = Client::new(yard.names.address(), yard.world.ca.roots());
        let got = direct.get(&url).send().await;
        if redirects {
            assert_eq!(got.status, 307);
        } else {
            assert_eq!(got.complete().body, flipped(&right));
        }
        std::fs::write(&file, &right).unwrap();
        yard.world.proxy.clock.advance(Duration::from_secs(61));
        yard.pull("gears/box:1.0", "good").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_pulled_while_the_registry_fails() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let yard = Yard::new(Around { redirects: true, tokens: false }).await;
    let (image, other) =
        (Image::new(yard.world.dir(), 4, 100_000), Image::new(yard.world.dir(), 5, 100_000));
    yard.push(&image, "gears/box:1.0").await;
    yard.push(&other, "gears/other:1.0").await;
    let first = yard.pull("gears/box:1.0", "first").await.unwrap();
    for (number, mood) in
        [Mood::Failing(429), Mood::Failing(503), Mood::Hanging].into_iter().enumerate()
    {
        yard.registry.front.mood(mood);
        yard.registry.files.mood(mood);
        yard.world.proxy.clock.advance(Duration::from_secs(10));
        let again = yard.pull("gears/box:1.0", &format!("again-{number}")).await;
        assert_eq!(again.unwrap_or_else(|error| panic!("{mood:?} {error}")), first);
        // skopeo retries for minutes after a 429; other tests check that such an answer reaches the client.
        if mood == Mood::Failing(503) {
            let error = yard.pull("gears/other:1.0", "other").await.unwrap_err();
            assert!(error.contains("503"), "{error}");
        }
    }
    yard.registry.front.stop();
    assert_eq!(yard.pull("gears/box:1.0", "last").await.unwrap(), first);
}
