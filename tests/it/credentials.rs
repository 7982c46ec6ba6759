//! Credentials work as they do without larder, in every form that clients send.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use hyper::Method;

use crate::privacy::{file, status};
use crate::world::archive::plain_wheel;
use crate::world::{Origin, Page, World};

/// A login with a nonce, or with a nonce count, is valid for one request only.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_made_for_one_request_is_shown_in_one() {
    let world = World::new().await;
    let seen: Arc<Mutex<HashSet<String>>> = Arc::default();
    for path in ["/unknown".to_owned(), plain_wheel("demo")] {
        let seen = Arc::clone(&seen);
        let url = world.origin.script(&path, move |request| {
            let shown = request.headers()["authorization"].to_str().unwrap().to_owned();
            let mut answer =
                if seen.lock().unwrap().insert(shown) { file(b"x", "") } else { status(401) };
            answer.headers_mut().insert("vary", "authorization".parse().unwrap());
            async move { answer }
        });
        for scheme in ["Digest", "digest", "OAuth", "Hawk", "Signature", "AWS4-HMAC-SHA256"] {
            for number in 0..2 {
                let login = format!("{scheme} nonce=\"{path}{number}\", response=\"00\"");
                let got = world.client.get(&url).header("authorization", &login).send().await;
                assert_eq!(got.status, 200, "{login} {}", got.cache_status());
            }
        }
        assert_eq!(world.origin.asked(&path).len(), 12);
    }
}

/// RFC 9113 §8.2.3: with HTTP/2 a client may split its cookies; an HTTP/1.1 origin must get them in one field.
#[tokio::test(flavor = "multi_thread")]
async fn split_cookies_reach_an_older_origin_as_one() {
    let world = World::new().await;
    let origin = Origin::tls_http1(&world.ca, "127.0.0.1").await;
    let url = origin.put("/page", Page::new("x").etag("a").fresh(60));
    let other = origin.put("/other", Page::new("x"));
    for (method, url) in [(Method::GET, &url), (Method::POST, &other)] {
        let ask = world.client.ask(method.clone(), url).h2();
        let got = ask.header("cookie", "a=1").header("cookie", "b=2").send().await;
        assert_eq!(got.status, 200);
        let asked = origin.log().pop().unwrap();
        let cookies: Vec<_> = asked.headers.get_all("cookie").iter().collect();
        assert!(asked.method == method && cookies == ["a=1; b=2"], "{cookies:?}");
    }
    // Split or not, it is the same session.
    let got = world.client.get(&url).header("cookie", "a=1; b=2").send().await;
    assert!(got.is_hit(), "{}", got.cache_status());
    let got = world.client.get(&url).header("cookie", "a=1; b=3").send().await;
    assert!(!got.is_hit(), "the control: another has its own");
}
