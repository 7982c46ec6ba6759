//! Redirects that larder follows, and where they must not lead.

use super::world::{After, INSIDE, Raw, ask, config, get, ok, origins, reply};
use crate::origin::{Ask, Fault, Reach};

fn following(url: &str) -> Ask {
    Ask { follow: true, ..ask(url) }
}

async fn redirecting(to: String) -> Raw {
    Raw::serve(None, move |head| {
        if head.starts_with("GET /there") {
            ok("there")
        } else {
            reply(format!("HTTP/1.1 302 Found\nLocation: {to}\nContent-Length: 0\n\n"), After::Keep)
        }
    })
    .await
}

#[tokio::test]
async fn a_redirect_is_followed_only_when_asked() {
    let raw = redirecting("/there#part".into()).await;
    let origins = origins(config());
    let url = raw.url("http", "/here");
    let answer = origins.fetch(following(&url)).await.unwrap();
    assert_eq!(answer.head.status, 200);
    assert_eq!(answer.answered_by.path(), "/there");
    let answer = origins.fetch(ask(&url)).await.unwrap();
    assert_eq!(answer.head.status, 302);
    assert_eq!(answer.head.headers["location"], "/there#part");
}

#[tokio::test]
async fn circles_end() {
    let raw = redirecting("/here".into()).await;
    let error = get(&origins(config()), following(&raw.url("http", "/here"))).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::Redirects(_)), "{error}");
    assert_eq!(raw.connections(), 1);
}

/// The attack: a public origin redirects into this machine. The refusal names the setting that would permit it.
#[tokio::test]
async fn no_redirect_leads_to_loopback_or_metadata() {
    let secret = Raw::serve(None, |_| ok("secret")).await;
    for to in [
        format!("http://127.0.0.2:{}/there", secret.at.port()),
        format!("http://[::ffff:127.0.0.2]:{}/there", secret.at.port()),
        "http://169.254.169.254/latest/meta-data/".into(),
    ] {
        let raw = redirecting(to.clone()).await;
        let mut config = config();
        // Only the first server may be reached.
        config.allow_nets = vec!["127.0.0.1/32".parse().unwrap()];
        let error = get(&origins(config), following(&raw.url("http", "/here"))).await.unwrap_err();
        assert!(matches!(error.fault(), Fault::Shut { .. }), "{to}: {error}");
        assert_eq!(error.status(), 403);
        assert!(error.to_string().contains("allow_nets = [\""), "{error}");
    }
    assert_eq!(secret.connections(), 0);
    // The control: the same redirect, to an allowed address.
    let raw = redirecting(format!("http://127.0.0.1:{}/there", secret.at.port())).await;
    let got = get(&origins(config()), following(&raw.url("http", "/here"))).await;
    assert_eq!(got.unwrap(), b"secret");
}

#[tokio::test]
async fn without_allow_nets_not_even_the_first_request_reaches_loopback() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let mut shut = config();
    shut.allow_nets.clear();
    let origins = origins(shut);
    for url in [
        raw.url("http", "/"),
        format!("http://127.0.0.1:{}/", raw.at.port()),
        format!("http://localhost:{}/", raw.at.port()),
        format!("http://[::ffff:7f00:1]:{}/", raw.at.port()),
        format!("http://[64:ff9b::7f00:1]:{}/", raw.at.port()),
    ] {
        let error = get(&origins, ask(&url)).await.unwrap_err();
        assert_eq!(error.status(), 403, "{error}");
        let tunnel = origins.tunnel(ask(&url).target.origin(), INSIDE).await;
        assert_eq!(tunnel.unwrap_err().status(), 403);
    }
    assert_eq!(raw.connections(), 0);
}

/// The pool distinguishes connections only by origin. It must not use one that was made for an internal client for a
/// request that a public origin caused.
#[tokio::test]
async fn a_connection_made_for_a_client_inside_serves_nothing_that_came_from_a_public_origin() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let origins = origins(config());
    let inside = ask(&raw.url("http", "/"));
    get(&origins, inside.clone()).await.unwrap();
    // From now on the guard refuses: a request that still gets through used the old connection.
    let mut shut = config();
    shut.allow_nets.clear();
    origins.config.set(shut);
    let caused = Ask { reach: Reach { from_public: true, ..INSIDE }, ..inside.clone() };
    assert_eq!(get(&origins, caused).await.unwrap_err().status(), 403);
    // The control: the old connection still exists.
    assert_eq!(get(&origins, inside).await.unwrap(), b"x");
    assert_eq!(raw.connections(), 1);
}
