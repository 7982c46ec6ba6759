//! What may be between larder and its origins: other proxies, other CAs, other addresses, or no connection.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use http_mitm_proxy::MitmProxy;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::world::archive::by_hash;
use crate::world::blind::Blind;
use crate::world::client::Client;
use crate::world::{Ca, Origin, Page, Proxy, World, noise};

/// Another intercepting proxy, independent of larder's code, as many companies have one at their edge.
#[tokio::test(flavor = "multi_thread")]
async fn larder_works_behind_another_intercepting_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls_http1(&ca, "127.0.0.1").await;
    let edge_ca = dir.path().join("edge.pem");
    let issuer = edge_issuer(&edge_ca);
    let blind = Blind::start(None).await;
    let beyond = Client::new(blind.address, ca.roots());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge_address = listener.local_addr().unwrap();
    drop(listener);
    let log = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let (client, log) = (beyond.clone(), Arc::clone(&log));
        async move {
            log.lock().unwrap().push(request.uri().to_string());
            let got = client.ask(request.method().clone(), &request.uri().to_string()).send().await;
            let body = http_body_util::Full::new(got.body).boxed();
            let mut response = Response::new(body);
            *response.status_mut() = got.status;
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let edge =
        MitmProxy::new(Some(Arc::new(issuer)), None).bind(edge_address, service).await.unwrap();
    let edge = tokio::spawn(edge);

    let body = noise(1, 300_000);
    let path = by_hash(&body);
    let url = origin.put(&path, Page::new(body.clone()));
    for trusted in [false, true] {
        let mut config =
            crate::world::larder::config(&ca, dir.path().join(format!("data-{trusted}")));
        config.upstream.https_proxy = Some(format!("http://{edge_address}"));
        // Without the origins' own CA only the edge proxy's certificates can be trusted.
        config.upstream_ca =
            if trusted { vec![edge_ca.clone()] } else { vec![ca.file().to_owned()] };
        let proxy = Proxy::start(config).await;
        let client = proxy.client().await;
        let got = client.get(&url).send().await;
        assert_eq!(got.is_complete() && got.body == body, trusted, "{} {:?}", got.status, got.end);
        if trusted {
            assert!(client.get(&url).send().await.is_hit());
        }
    }
    assert!(!seen.lock().unwrap().is_empty());
    edge.abort();
}

fn edge_issuer(file: &std::path::Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the edge");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    std::fs::write(file, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_proxy_is_used_with_its_password_and_left_out_where_it_should() {
    let blind = Blind::start(Some("Basic dXNlcjpwYXNz")).await;
    for (credential, no_proxy, works, asked) in [
        ("user:pass@", None, true, true),
        ("", None, false, true),
        ("user:pass@", Some("127.0.0.1"), true, false),
    ] {
        let before = blind.heads().len();
        let world = World::with(|config| {
            config.upstream.https_proxy = Some(format!("http://{credential}{}", blind.address));
            config.upstream.no_proxy = no_proxy.map(str::to_owned);
        })
        .await;
        let url = world.origin.put("/x", Page::new("x"));
        assert_eq!(world.get(&url).await.is_complete(), works, "{credential} {no_proxy:?}");
        assert_eq!(blind.heads().len() > before, asked, "{credential} {no_proxy:?}");
    }
}

/// Without a network, everything that is proven is served, and everything else gets an error with a reason.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_upstream_proxy_dead_what_is_stored_is_served() {
    let blind = Blind::start(None).await;
    let world = World::with(|config| {
        config.upstream.https_proxy = Some(format!("http://{}", blind.address));
    })
    .await;
    let body = noise(2, 300_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()));
    let index = crate::world::archive::put_simple(&world.origin, "/", "demo", &[]);
    world.fetch(&url).await;
    world.fetch(&index).await;
    blind.stop();
    world.proxy.clock.advance(Duration::from_mins(1));
    assert_eq!(world.fetch(&url).await.body, body);
    let got = world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
    assert!(got.cache_status().contains("+stale"), "{}", got.cache_status());
    let miss = world.get(&world.origin.url("/never/seen")).await;
    assert!(miss.status.is_server_error() && !miss.body.is_empty(), "{}", miss.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_nobody_vouches_for_is_not_believed() {
    let world = World::new().await;
    let stranger = Ca::new(&world.dir().join("stranger.pem"));
    let origin = Origin::tls(&stranger, "127.0.0.1").await;
    let url = origin.put("/x", Page::new("x"));
    let got = world.get(&url).await;
    assert!(!got.is_complete(), "{}", got.status);
    assert!(origin.asked("/x").is_empty());
    // The same for an origin with another host's certificate.
    let misnamed = Origin::tls(&world.ca, "127.0.0.2").await;
    misnamed.put("/x", Page::new("x"));
    let url = misnamed.url("/x").replace("127.0.0.2", "127.0.0.3");
    assert!(!world.get(&url).await.is_complete());
}

/// apt-cacher-ng in containers (rpardini#136): an address without a route was tried first, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_two_addresses_is_reached_at_the_one_that_answers() {
    let world = World::new().await;
    let origin = world.another("localhost").await;
    let url = origin.put("/x", Page::new("x"));
    for _ in 0..3 {
        assert_eq!(world.fetch(&url).await.body, "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_spoken_upstream() {
    let world = World::new().await;
    let old = Origin::tls_http1(&world.ca, "127.0.0.1").await;
    for origin in [&world.origin, &old] {
        let url = origin.put("/x", Page::new("x"));
        assert_eq!(world.fetch(&url).await.body, "x");
        let passed = world.client.get(&url).header("authorization", "x").send().await;
        assert_eq!(passed.complete().body, "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_literal_is_an_origin_like_any_other() {
    let world = World::new().await;
    let origin = world.another("::1").await;
    let url = origin.put("/x", Page::new("six").fresh(60));
    assert_eq!(world.fetch(&url).await.body, "six");
    assert!(world.fetch(&url).await.is_hit());
}
