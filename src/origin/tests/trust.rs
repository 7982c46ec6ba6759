//! Trust anchors, and origins that cannot be intercepted.

use std::io::Write as _;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};

use super::world::{
    After, Authority, INSIDE, NAME, Raw, Wants, ask, config, get, ok, origins, reply,
};
use crate::clock::Clock;
use crate::config::{Live, Roots};
use crate::origin::{Fault, Origins};

#[tokio::test]
async fn an_unknown_signer_is_refused_and_the_text_says_what_to_do() {
    let authority = Authority::new();
    let raw = Raw::serve(Some(authority.plain_server()), |_| ok("x")).await;
    let url = raw.url("https", "/a?token=s3cret");
    let error = get(&origins(config()), ask(&url)).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&raw.url("https", "/a")) && text.contains("--upstream-ca FILE"),
        "{text}"
    );
    assert!(!text.contains("s3cret") && !text.contains('\n'), "{text}");
    assert_eq!(error.status(), 502);
    // The control.
    let (trusted, _file) = authority.trusted();
    assert_eq!(get(&origins(trusted), ask(&url)).await.unwrap(), b"x");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_though_its_signer_is_trusted() {
    let authority = Authority::new();
    let raw = Raw::serve(Some(authority.plain_server()), |_| ok("x")).await;
    let (trusted, _file) = authority.trusted();
    let origins = origins(trusted);
    origins.wire().resolver.remember("other.example.org", &["127.0.0.1:0".parse().unwrap()]);
    let url = format!("https://other.example.org:{}/", raw.at.port());
    let error = get(&origins, ask(&url)).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::Untrusted { mend: "", .. }), "{error}");
    let literal = format!("https://127.0.0.1:{}/", raw.at.port());
    assert_eq!(get(&origins, ask(&literal)).await.unwrap(), b"x");
}

#[test]
fn a_bad_root_file_is_named() {
    let authority = Authority::new();
    for (content, missing) in [
        ("", false),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", false),
        ("-----BEGIN CERTIFICATE-----\n???", false),
        ("", true),
    ] {
        let mut file = authority.file();
        file.as_file_mut().set_len(0).unwrap();
        std::io::Seek::rewind(file.as_file_mut()).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let path = file.path().to_owned();
        if missing {
            file.close().unwrap();
        }
        let mut config = config();
        config.upstream.roots = Roots::Only;
        config.upstream_ca = vec![path.clone()];
        let error = Origins::new(Live::new(config), Clock::system()).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn an_origin_that_wants_a_client_certificate_is_remembered() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let server = authority.server(&["http/1.1"], Wants::ACertificate, &[version]);
        let raw = Raw::serve(Some(server), |_| ok("x")).await;
        let (trusted, _file) = authority.trusted();
        let clock = Clock::system();
        let origins = Origins::new(Live::new(trusted), clock.clone()).unwrap();
        let url = format!("https://127.0.0.1:{}/", raw.at.port());
        let origin = ask(&url).target.origin().clone();
        assert_eq!(origins.must_tunnel(&origin), None);
        let error = get(&origins, ask(&url)).await.unwrap_err();
        assert_eq!(*error.fault(), Fault::WantsCertificate, "{version:?}: {error}");
        assert!(origins.must_tunnel(&origin).is_some());
        clock.advance(Duration::from_hours(24));
        assert_eq!(origins.must_tunnel(&origin), None);
    }
}

/// Some servers request a certificate, complete the handshake, and answer 400. The control is a server that did not
/// request one.
#[tokio::test]
async fn a_refusal_after_a_handshake_that_asked_is_remembered_too() {
    let authority = Authority::new();
    for wants in [Wants::PerhapsACertificate, Wants::Nothing] {
        let server = authority.server(&["http/1.1"], wants, rustls::ALL_VERSIONS);
        let raw = Raw::serve(Some(server), |_| {
            reply("HTTP/1.1 400 Bad Request\nContent-Length: 0\n\n", After::Keep)
        })
        .await;
        let (trusted, _file) = authority.trusted();
        let origins = origins(trusted);
        let asked = ask(&raw.url("https", "/"));
        let origin = asked.target.origin().clone();
        assert_eq!(origins.fetch(asked).await.unwrap().head.status, 400);
        assert_eq!(origins.must_tunnel(&origin).is_some(), wants != Wants::Nothing);
    }
}

#[tokio::test]
async fn an_origin_that_is_no_tls_server_is_not_remembered_but_said() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let origins = origins(config());
    let asked = ask(&raw.url("https", "/"));
    let origin = asked.target.origin().clone();
    // The server waits for a line break that a ClientHello may lack: either the timeout ends it, or a malformed answer.
    let mut quick = config();
    quick.upstream.connect_timeout = Duration::from_millis(300);
    origins.config.set(quick);
    let error = get(&origins, asked).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::BrokenTls(_) | Fault::ConnectTimeout(_)), "{error}");
    assert_eq!(origins.must_tunnel(&origin), None);
}

/// A handshake without a common version: the alert that a TLS 1.0 server sends in response to larder's ClientHello.
#[tokio::test]
async fn an_origin_without_a_common_version_is_remembered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 64];
            stream.read_exact(&mut hello).await.unwrap();
            // Alert, TLS 1.0, two bytes: fatal, protocol_version.
            stream.write_all(&[21, 3, 1, 0, 2, 2, 70]).await.ok();
        }
    });
    let origins = origins(config());
    let asked = ask(&format!("https://{NAME}:{port}/"));
    let origin = asked.target.origin().clone();
    let error = get(&origins, asked).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::ForeignTls(_)), "{error}");
    assert!(origins.must_tunnel(&origin).unwrap().contains("TLS"));
    assert!(origins.tunnel(&origin, INSIDE).await.is_ok());
}
