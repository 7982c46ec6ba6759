//! Internal addresses are blocked unless the configuration names them, at every redirect too; and who may use larder is decided
//! first.

use crate::world::archive::by_hash;
use crate::world::{Page, World, noise};
use larder::config::HostPattern;

/// A larder that may connect only to the first origin's address.
async fn narrow() -> World {
    World::with(|config| config.allow_nets = vec!["127.0.0.1/32".parse().unwrap()]).await
}

/// An open proxy would give access to the cloud metadata service and to everything that trusts localhost.
#[tokio::test(flavor = "multi_thread")]
async fn internal_addresses_are_shut_and_the_refusal_says_what_opens_them() {
    let world = narrow().await;
    let inner = world.another("127.0.0.2").await;
    inner.put("/x", Page::new("inner"));
    for url in [
        inner.url("/x"),
        inner.url("/x").replace("127.0.0.2", "[::ffff:127.0.0.2]"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "https://[fe80::1]/".to_owned(),
        "https://0.0.0.0/".to_owned(),
    ] {
        for credential in [false, true] {
            let ask = world.client.get(&url);
            let got = if credential {
                ask.header("authorization", "x").send().await
            } else {
                ask.send().await
            };
            assert!(got.status.is_client_error(), "{url}: {}", got.status);
            let text = String::from_utf8_lossy(&got.body).into_owned();
            assert!(text.contains("allow_nets"), "{url}: {text}");
        }
    }
    assert_eq!(inner.connections(), 0);
    // The control: the configured address is reached.
    let url = world.origin.put("/x", Page::new("named"));
    assert_eq!(world.fetch(&url).await.body, "named");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_is_followed_inside_is_vetted_at_every_hop() {
    for open in [false, true] {
        let world = if open { World::new().await } else { narrow().await };
        let inner = world.another("127.0.0.2").await;
        let body = noise(1, 100_000);
        let path = by_hash(&body);
        let to = inner.put("/blob", Page::new(body.clone()));
        let url = world.origin.put(&path, Page::redirect(302, &to));
        let got = world.get(&url).await;
        assert_eq!(got.is_complete() && got.body == body, open, "{} {:?}", got.status, got.end);
        assert_eq!(inner.connections() > 0, open);
    }
    let world = narrow().await;
    let path = by_hash(&noise(2, 100));
    let url =
        world.origin.put(&path, Page::redirect(302, "http://169.254.169.254/latest/meta-data/"));
    assert!(!world.get(&url).await.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_that_go_in_circles_end() {
    let world = World::new().await;
    let path = by_hash(&noise(3, 100));
    let url = world.origin.put(&path, Page::redirect(302, &path));
    let got = world.get(&url).await;
    assert!(!got.is_complete());
    assert!(world.origin.gets(&path) <= 12, "{}", world.origin.gets(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_larder_itself_is_no_loop() {
    let world = World::new().await;
    let got = world.get(&format!("http://{}/x", world.proxy.address)).await;
    assert!(!got.status.is_success(), "{}", got.status);
    let got = world.get(&format!("https://{}/x", world.proxy.address)).await;
    assert!(!got.status.is_success(), "{}", got.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_among_the_clients_is_refused() {
    let world = World::new().await;
    let mut config = world.config().clone();
    config.data = world.dir().join("other");
    config.clients.allow = vec!["192.0.2.0/24".parse().unwrap()];
    let closed = crate::world::Proxy::start(config).await;
    let url = world.origin.put("/x", Page::new("x"));
    let client = crate::world::Client::new(closed.address, world.ca.roots());
    let refused = client.tunnel(&world.origin.authority()).await.err();
    assert!(refused.is_none_or(|got| !got.status.is_success()));
    assert_eq!(world.origin.connections(), 0);
    assert_eq!(world.fetch(&url).await.body, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_refused_or_tunnelled_by_name() {
    let tunnelled = HostPattern("127.0.0.2".into());
    let world = World::with(|config| {
        config.hosts.tunnel = vec![tunnelled];
        config.hosts.refuse = vec![HostPattern("127.0.0.3".into())];
    })
    .await;
    let (pinned, shut) = (world.another("127.0.0.2").await, world.another("127.0.0.3").await);
    pinned.put("/x", Page::new("pinned"));
    // Through a tunnel the client sees the origin's own certificate, so that pinning works.
    let direct = crate::world::Client::new(world.proxy.address, world.ca.roots());
    assert_eq!(direct.get(&pinned.url("/x")).send().await.complete().body, "pinned");
    let refused = world.client.tunnel(&shut.authority()).await.expect_err("it was opened");
    assert_eq!(refused.status.as_u16(), 403);
    assert_eq!(shut.connections(), 0);
    // The control: elsewhere the certificate is larder's, which the origin's own CA does not vouch for.
    let stream = direct.tunnel(&world.origin.authority()).await.unwrap();
    assert!(direct.tls(stream, "127.0.0.1", &["http/1.1"]).await.is_err());
}
