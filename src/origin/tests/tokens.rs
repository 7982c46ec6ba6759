//! Anonymous tokens: requested once, kept while valid, and never requested from where the guard refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use hyper::StatusCode;
use hyper::header::{HeaderMap, WWW_AUTHENTICATE};

use super::world::{After, Authority, INSIDE, Raw, ask, ok, reply};
use crate::clock::Clock;
use crate::config::{HostPattern, Live};
use crate::entry::Head;
use crate::origin::{Challenge, Fault, OriginError, Origins, Reach};

fn challenge(realm: &str, scope: &str) -> Challenge {
    let field = format!(r#"Bearer realm="{realm}",service="s",scope="repository:{scope}:pull""#);
    let mut headers = HeaderMap::new();
    headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
    Challenge::of(&Head { status: StatusCode::UNAUTHORIZED, headers }).unwrap()
}

/// A token service that sends `answer` for each request, by the request's number. Returns the server and its realm.
async fn service(
    authority: &Authority,
    answer: impl Fn(usize) -> (Vec<u8>, After) + Send + Sync + 'static,
) -> (Raw, String) {
    let count = AtomicUsize::new(0);
    let raw = Raw::serve(Some(authority.plain_server()), move |_| {
        answer(count.fetch_add(1, Ordering::SeqCst))
    })
    .await;
    let realm = format!("https://127.0.0.1:{}/token", raw.at.port());
    (raw, realm)
}

fn tokens(number: usize) -> (Vec<u8>, After) {
    ok(&format!(r#"{{"token":"t{number}","expires_in":300}}"#))
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_kept_until_it_ends() {
    let authority = Authority::new();
    let (config, _file) = authority.trusted();
    let clock = Clock::system();
    let origins = Origins::new(Live::new(config), clock.clone()).unwrap();
    let (raw, realm) = service(&authority, tokens).await;
    let box_ = challenge(&realm, "gears/box");
    let all = join_all((0..20).map(|_| origins.anonymous_token(&box_, INSIDE))).await;
    let first = all[0].as_ref().unwrap().authorization();
    assert!(all.iter().all(|token| token.as_ref().unwrap().authorization() == first));
    assert_eq!((raw.heads().len(), first.as_bytes()), (1, &b"Bearer t0"[..]));
    assert!(first.is_sensitive() && !format!("{all:?}").contains("t0"));
    let head = raw.heads().remove(0);
    assert!(
        head.starts_with("GET /token?service=s&scope=repository%3Agears%2Fbox%3Apull "),
        "{head}"
    );
    assert!(!head.to_lowercase().contains("authorization"), "{head}");
    // Another repository needs another token.
    let other = origins.anonymous_token(&challenge(&realm, "other"), INSIDE).await.unwrap();
    assert_ne!(other.authorization(), first);
    clock.advance(Duration::from_secs(280));
    assert_eq!(origins.anonymous_token(&box_, INSIDE).await.unwrap().authorization(), first);
    clock.advance(Duration::from_secs(20));
    assert_ne!(origins.anonymous_token(&box_, INSIDE).await.unwrap().authorization(), first);
    assert_eq!(raw.heads().len(), 3);
}

#[tokio::test]
async fn what_is_no_token_is_none() {
    let authority = Authority::new();
    let (config, _file) = authority.trusted();
    let origins = Origins::new(Live::new(config), Clock::system()).unwrap();
    let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(100_000));
    for (answer, works) in [
        (ok(r#"{"access_token":"a"}"#), true),
        (ok("{}"), false),
        (ok(r#"{"token":""}"#), false),
        (ok(r#"{"token":"a\nb"}"#), false),
        (ok("<html>secret"), false),
        (ok(&long), false),
        (reply("HTTP/1.1 403 Forbidden\nContent-Length: 0\n\n", After::Keep), false),
        (reply("HTTP/1.1 429 Too Many\nContent-Length: 0\n\n", After::Keep), false),
    ] {
        let shown = String::from_utf8_lossy(&answer.0).chars().take(80).collect::<String>();
        let (_raw, realm) = service(&authority, move |_| answer.clone()).await;
        let token = origins.anonymous_token(&challenge(&realm, "x"), INSIDE).await;
        assert_eq!(token.is_ok(), works, "{shown} {token:?}");
        // A service that refuses is healthy; one that is busy decides nothing.
        let busy = token.as_ref().err().is_some_and(OriginError::is_temporary);
        assert_eq!(busy, shown.contains("429"), "{token:?}");
        assert!(!format!("{token:?}").contains("secret"));
    }
}

/// The attack: an external registry names an internal address as its token service.
#[tokio::test]
async fn no_realm_leads_inside_or_where_the_operator_says_no() {
    let authority = Authority::new();
    let (raw, realm) = service(&authority, tokens).await;
    let asked = challenge(&realm, "x");
    let (mut shut, _file) = authority.trusted();
    let (mut refused, open) = (shut.clone(), shut.clone());
    shut.allow_nets.clear();
    refused.hosts.refuse.push(HostPattern("127.0.0.1".into()));
    let from_public = Reach { from_public: true, ..INSIDE };
    for config in [shut, refused] {
        let origins: Arc<Origins> = Origins::new(Live::new(config), Clock::system()).unwrap();
        let error = origins.anonymous_token(&asked, from_public).await.unwrap_err();
        assert!(matches!(error.fault(), Fault::Shut { .. } | Fault::Forbidden(_)), "{error}");
    }
    assert_eq!(raw.connections(), 0);
    // The control: guard and host rules both permit it.
    let origins = Origins::new(Live::new(open), Clock::system()).unwrap();
    origins.anonymous_token(&asked, from_public).await.unwrap();
}

/// A registry that answers requests with `token` and challenges all others; its blobs are elsewhere.
async fn registry(authority: &Authority, realm: &str, token: &'static str, to: &str) -> Raw {
    let challenge = format!(
        "HTTP/1.1 401 Unauthorized\nWWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\nContent-Length: 0\n\n"
    );
    let elsewhere = format!("HTTP/1.1 307 There\nLocation: {to}\nContent-Length: 0\n\n");
    Raw::serve(Some(authority.plain_server()), move |head| {
        if !head.to_lowercase().contains(&format!("authorization: bearer {token}")) {
            reply(&challenge, After::Keep)
        } else if head.starts_with("GET /blob") {
            reply(&elsewhere, After::Keep)
        } else {
            ok("public")
        }
    })
    .await
}

#[tokio::test]
async fn what_anybody_may_have_is_asked_for_with_a_token_that_goes_nowhere_else() {
    let authority = Authority::new();
    let (config, _file) = authority.trusted();
    let origins = Origins::new(Live::new(config), Clock::system()).unwrap();
    let (_service, realm) = service(&authority, tokens).await;
    let files = Raw::serve(Some(authority.plain_server()), |_| ok("blob")).await;
    let there = format!("https://127.0.0.1:{}/signed", files.at.port());
    for (token, expected) in [("t0", 200), ("nobody", 401)] {
        let registry = registry(&authority, &realm, token, &there).await;
        let at = |path: &str| format!("https://127.0.0.1:{}{path}", registry.at.port());
        let (answer, vouched) = origins.fetch_as_anybody(ask(&at("/manifest"))).await.unwrap();
        assert_eq!((answer.head.status.as_u16(), vouched), (expected, true));
        // The control: a fill sends no token.
        let answer = origins.fetch(ask(&at("/manifest"))).await.unwrap();
        assert_eq!(answer.head.status, 401);
        let blob = crate::origin::Ask { follow: true, ..ask(&at("/blob")) };
        let (answer, _) = origins.fetch_as_anybody(blob).await.unwrap();
        assert_eq!(answer.head.status, expected);
    }
    let seen = files.heads();
    assert!(seen.len() == 1 && !seen[0].to_lowercase().contains("authorization"), "{seen:?}");
}

/// A token service that fails decides nothing; one that refuses does.
#[tokio::test]
async fn whether_a_failing_token_service_says_no_is_not_known() {
    let authority = Authority::new();
    let (config, _file) = authority.trusted();
    let origins = Origins::new(Live::new(config), Clock::system()).unwrap();
    let (raw, realm) =
        service(&authority, |_| reply("HTTP/1.1 503 Busy\nContent-Length: 0\n\n", After::Keep))
            .await;
    let registry = registry(&authority, &realm, "t0", "/").await;
    let url = format!("https://127.0.0.1:{}/manifest", registry.at.port());
    assert!(origins.fetch_as_anybody(ask(&url)).await.unwrap_err().is_temporary());
    assert!(origins.is_failing(
        ask(&realm).target.origin(),
        crate::target::Partition::Public,
        crate::origin::Lane::Metadata
    ));
    assert_eq!(raw.heads().len(), 1);
}
