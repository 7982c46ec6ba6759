//! The container engines themselves against a real registry: docker's daemon, and containerd, by its own program and as
//! Kubernetes uses it. Each is pointed at larder only by the variables that `larder env` prints; each daemon starts with an empty
//! store.

use crate::world::engine::{As, Daemon, Engine, Told, engines, variables};
use crate::world::registry::image::Image;
use crate::world::registry::yard::{Yard, can_run};
use crate::world::registry::{Around, GUEST, MEMBER, NAME, OWNER, PROGRAM};

/// The two architectures of the images: this machine's, which is pulled by default, and another.
fn architectures() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") }
}

/// The engines that can be tried here, if there is a registry.
async fn ways() -> Vec<Engine> {
    if can_run(&[PROGRAM, "skopeo"]) { engines().await } else { Vec::new() }
}

fn named(rest: &str) -> String {
    format!("{NAME}/{rest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_pull_through_larder_and_a_second_pull_moves_no_blob() {
    for engine in ways().await {
        for redirects in [false, true] {
            pulled_twice(engine, redirects).await;
        }
    }
}

async fn pulled_twice(engine: Engine, redirects: bool) {
    let yard = Yard::new(Around { redirects, tokens: false }).await;
    let (many, one) =
        (Image::new(yard.world.dir(), 30, 300_000), Image::new(yard.world.dir(), 31, 300_000));
    yard.push(&many, "gears/many:1.0").await;
    yard.push_platform(&one, "gears/one:1.0", "amd64").await;
    let (own, other) = architectures();
    let mut wanted = vec![
        ("gears/many:1.0", As::default(), own),
        ("gears/one:1.0", As { architecture: Some("amd64"), who: None }, "amd64"),
        ("gears/many:1.0", As { architecture: Some(other), who: None }, other),
    ];
    if engine == Engine::Cri {
        // It pulls for its own machine, for which the second image may not be.
        wanted.retain(|(_, _, got)| *got == own);
        wanted.truncate(2);
        for (_, asked, _) in &mut wanted {
            *asked = As::default();
        }
    }
    let before = yard.registry.sent();
    let mut sent = None;
    for round in ["first", "second", "third"] {
        if round == "third" {
            yard.registry.front.stop();
            yard.registry.front.cut();
        }
        let Some(daemon) = Daemon::start(&yard, engine, round).await else { return };
        for (name, asked, architecture) in &wanted {
            let pulled = daemon.pull(&named(name), *asked).await;
            assert_eq!(pulled, Ok(()), "{engine:?} {redirects} {round} {name}");
            assert!(daemon.unpacked(architecture), "{engine:?} {round} {name} {architecture}");
        }
        let moved = *sent.get_or_insert_with(|| yard.registry.sent());
        assert_eq!(yard.registry.sent(), moved, "{engine:?} {redirects} {round}");
    }
    assert!(sent > Some(before + 300_000), "the control: the first pull moves blobs");
    assert_eq!(yard.registry.files.total() > 0, redirects);
    for layer in &many.layers {
        assert!(yard.registry.gets(layer) <= 1, "{engine:?} {redirects}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_with_tokens_are_given_what_is_theirs() {
    for engine in ways().await {
        with_tokens(engine).await;
    }
}

async fn with_tokens(engine: Engine) {
    let yard = Yard::new(Around { redirects: true, tokens: true }).await;
    let (open, shut) =
        (Image::new(yard.world.dir(), 32, 100_000), Image::new(yard.world.dir(), 33, 100_000));
    yard.push(&open, "public/box:1.0").await;
    yard.push(&shut, "private/box:1.0").await;
    let (registry, (own, _)) = (&yard.registry, architectures());
    let with = |who| As { architecture: None, who };
    for (name, users) in
        [("private/box:1.0", [Some(OWNER), Some(MEMBER)]), ("public/box:1.0", [None, Some(GUEST)])]
    {
        let before = registry.sent();
        let mut sent = None;
        for (round, who) in users.into_iter().enumerate() {
            let into = format!("{round}-{}", &name[..6]);
            let Some(daemon) = Daemon::start(&yard, engine, &into).await else { return };
            assert_eq!(daemon.pull(&named(name), with(who)).await, Ok(()), "{engine:?} {who:?}");
            assert!(daemon.unpacked(own), "{engine:?} {who:?}");
            let moved = *sent.get_or_insert_with(|| registry.sent());
            assert_eq!(registry.sent(), moved, "{engine:?} {name} {who:?}");
        }
        assert!(sent > Some(before + 50_000), "the control: the first pull moves blobs");
    }
    let sent = registry.sent();
    let Some(daemon) = Daemon::start(&yard, engine, "nobodys").await else { return };
    for who in [None, Some(GUEST), Some((OWNER.0, "wrong"))] {
        let error = daemon.pull(&named("private/box:1.0"), with(who)).await.unwrap_err();
        let said = ["nauthorized", "denied", "authorization failed", "incorrect username"];
        assert!(said.iter().any(|word| error.contains(word)), "{engine:?} {who:?} {error}");
        assert!(!daemon.unpacked(own), "{engine:?} {who:?}");
    }
    assert_eq!(registry.sent(), sent);
    // A public image can be pulled when registry and token service are down.
    yard.pull("public/box:1.0", "all").await.unwrap();
    yard.is_open("public/box", &open).await;
    for origin in [&registry.front, &registry.files, &registry.tokens.front] {
        origin.stop();
        origin.cut();
    }
    assert_eq!(daemon.pull(&named("public/box:1.0"), with(None)).await, Ok(()), "{engine:?}");
    assert!(daemon.unpacked(own), "{engine:?}");
}

/// The control for all tests above: an engine uses larder only because of its environment, and must trust larder's CA.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_told_of_larder_or_does_not_trust_it_pulls_nothing() {
    for engine in ways().await {
        let yard = Yard::new(Around::default()).await;
        let image = Image::new(yard.world.dir(), 34, 50_000);
        yard.push(&image, "gears/box:1.0").await;
        let name = named("gears/box:1.0");
        let told = variables(&yard).await;
        let without = |word: &str| {
            let kept = told.iter().filter(|(name, _)| !name.to_lowercase().contains(word));
            Told { variables: kept.cloned().collect(), mirror: None }
        };
        for (word, said) in [("cert", "x509"), ("proxy", "lookup")] {
            let Some(daemon) = Daemon::start_with(&yard, engine, word, without(word)).await else {
                return;
            };
            let error = daemon.pull(&name, As::default()).await.unwrap_err();
            assert!(error.contains(said), "{engine:?} {word} {error}");
        }
        let Some(daemon) = Daemon::start(&yard, engine, "both").await else { return };
        assert_eq!(daemon.pull(&name, As::default()).await, Ok(()), "the control: {engine:?}");
    }
}

/// The mirror form: larder's address in the daemon's settings, without variables and without a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn engines_pull_from_larder_as_a_mirror() {
    for engine in ways().await {
        let yard = Yard::new(Around { redirects: true, tokens: false }).await;
        let image = Image::new(yard.world.dir(), 35, 100_000);
        yard.push(&image, "gears/box:1.0").await;
        // docker supports a mirror only for the default registry.
        let name = if engine == Engine::Docker { "gears/box:1.0" } else { &named("gears/box:1.0") };
        let mirror = Some(format!("http://{}", yard.world.proxy.address));
        let before = yard.registry.sent();
        let mut sent = None;
        for (round, mirror) in [("first", &mirror), ("second", &mirror), ("without", &None)] {
            if engine == Engine::Docker && mirror.is_none() {
                // It would contact the real registry.
                continue;
            }
            let told = Told { variables: Vec::new(), mirror: mirror.clone() };
            let Some(daemon) = Daemon::start_with(&yard, engine, round, told).await else { return };
            let pulled = daemon.pull(name, As::default()).await;
            assert_eq!(pulled.is_ok(), mirror.is_some(), "{engine:?} {round} {pulled:?}");
            assert_eq!(daemon.unpacked(architectures().0), mirror.is_some(), "{engine:?} {round}");
            let moved = *sent.get_or_insert_with(|| yard.registry.sent());
            assert_eq!(yard.registry.sent(), moved, "{engine:?} {round}");
        }
        assert!(sent > Some(before + 100_000), "the control: the first pull moves blobs");
    }
}
