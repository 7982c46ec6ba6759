//! A body ends cleanly only where HTTP defines it.

use hyper::header::HeaderName;

use super::world::{After, Authority, Raw, ask, config, drain, get, ok, origins, reply};
use crate::origin::Fault;

/// What a client receives of `text` over plain http.
async fn received(text: &'static str, after: After) -> Result<Vec<u8>, Fault> {
    let raw = Raw::serve(None, move |_| reply(text, after)).await;
    get(&origins(config()), ask(&raw.url("http", "/a")))
        .await
        .map_err(|error| error.fault().clone())
}

#[tokio::test]
async fn a_length_must_be_met() {
    let cut = received("HTTP/1.1 200 OK\nContent-Length: 10\n\n12345", After::Close).await;
    assert!(matches!(cut, Err(Fault::Broken { after: 5, .. })), "{cut:?}");
    let whole = received("HTTP/1.1 200 OK\nContent-Length: 5\n\n12345", After::Close).await;
    assert_eq!(whole, Ok(b"12345".to_vec()));
}

#[tokio::test]
async fn chunks_must_end_with_the_last_chunk() {
    let head = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n";
    let cut =
        received("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\n12345\n", After::Close).await;
    assert!(matches!(cut, Err(Fault::Broken { after: 5, .. })), "{cut:?}");
    let whole =
        received("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\n12345\n0\n\n", After::Close)
            .await;
    assert_eq!(whole, Ok(b"12345".to_vec()), "{head}");
}

/// Over TLS an attacker who cuts the connection cannot forge the end. Over plain http nothing tells the difference, and
/// the answer is marked accordingly.
#[tokio::test]
async fn an_unframed_body_over_tls_needs_close_notify() {
    let authority = Authority::new();
    let (config, _file) = authority.trusted();
    let origins = origins(config);
    for (after, whole) in [(After::Close, true), (After::Drop, false)] {
        let raw = Raw::serve(Some(authority.plain_server()), move |_| {
            reply("HTTP/1.1 200 OK\n\n12345", after)
        })
        .await;
        let mut answer = origins.fetch(ask(&raw.url("https", "/a"))).await.unwrap();
        assert!(answer.length.is_none());
        let drained = drain(&mut answer).await;
        assert_eq!(drained.is_ok(), whole, "{after:?}: {drained:?}");
    }
}

#[tokio::test]
async fn a_silent_origin_is_given_up_and_never_ends_cleanly() {
    let stalled = received("HTTP/1.1 200 OK\nContent-Length: 10\n\n12345", After::Hang).await;
    assert!(matches!(stalled, Err(Fault::Stalled { after: 5, .. })), "{stalled:?}");
}

#[tokio::test]
async fn after_an_error_nothing_comes() {
    let raw =
        Raw::serve(None, |_| reply("HTTP/1.1 200 OK\nContent-Length: 10\n\n12345", After::Close))
            .await;
    let mut answer = origins(config()).fetch(ask(&raw.url("http", "/a"))).await.unwrap();
    assert!(drain(&mut answer).await.is_err());
    assert!(answer.body.next().await.is_none());
}

#[tokio::test]
async fn framings_that_can_be_read_in_two_ways_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6\n\n123456",
        "HTTP/1.1 200 OK\nContent-Length: 5, 6\n\n123456",
        "HTTP/1.1 200 OK\nTransfer-Encoding: gzip\n\n12345",
        "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n5\n12345\n0\n\n",
        "HTTP/1.1 200 OK\nContent-Length:\n 5\n\n12345",
        "HTTP/1.1 200 OK\nContent-Length : 5\n\n12345",
        "HTTP/1.1 200 OK\nContent-Length: 5\x01\n\n12345",
        "HTTP/1.1 200 OK\nTransfer-Encoding : chunked\n\n5\n12345\n0\n\n",
    ] {
        let got = received(head, After::Close).await;
        assert!(matches!(got, Err(Fault::Framing(_))), "{head}: {got:?}");
    }
    // Header lines that do not frame the body may be as malformed as clients accept.
    let folded = "HTTP/1.1 200 OK\nX: a\n b\nBad Name: x\nContent-Length: 5\n\n12345";
    assert_eq!(received(folded, After::Close).await, Ok(b"12345".to_vec()));
    let both = "HTTP/1.1 200 OK\nContent-Length: 3\nTransfer-Encoding: chunked\n\n5\n12345\n0\n\n";
    assert_eq!(received(both, After::Close).await, Ok(b"12345".to_vec()));
}

#[tokio::test]
async fn a_head_keeps_what_is_the_representations_and_nothing_of_the_connections() {
    let raw = Raw::serve(None, |_| {
        reply(
            "HTTP/1.1 200 OK\nContent-Length: 2\nETag: \"x\"\nConnection: X-Hop\nX-Hop: 1\n\
             Keep-Alive: timeout=5\nSet-Cookie: a=b\nAlt-Svc: h3=\":443\"\nX-Kept: 1\n\nok",
            After::Keep,
        )
    })
    .await;
    let answer = origins(config()).fetch(ask(&raw.url("http", "/a"))).await.unwrap();
    let names: Vec<_> = answer.head.headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["content-length", "etag", "x-kept"]);
    assert_eq!(answer.length, Some(2));
    assert!(answer.plain && !answer.public);
}

#[tokio::test]
async fn head_and_304_have_lengths_and_no_body() {
    let raw = Raw::serve(None, |head| {
        if head.starts_with("HEAD") {
            reply("HTTP/1.1 200 OK\nContent-Length: 900\n\n", After::Keep)
        } else {
            reply("HTTP/1.1 304 Not Modified\nContent-Length: 900\n\n", After::Keep)
        }
    })
    .await;
    let origins = origins(config());
    let mut head = ask(&raw.url("http", "/a"));
    head.head_only = true;
    let mut answer = origins.fetch(head).await.unwrap();
    assert_eq!(answer.head.headers["content-length"], "900");
    assert_eq!(drain(&mut answer).await.unwrap(), b"");
    let mut conditional = ask(&raw.url("http", "/a"));
    conditional.if_none_match = Some("\"x\"".into());
    let mut answer = origins.fetch(conditional).await.unwrap();
    assert_eq!(answer.head.status, 304);
    assert_eq!(drain(&mut answer).await.unwrap(), b"");
    assert!(raw.heads()[1].contains("if-none-match: \"x\"\r\n"));
}

#[tokio::test]
async fn a_request_carries_its_range_and_its_host() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let mut resume = ask(&raw.url("http", "/a%2fb?c=d"));
    resume.range = Some((5, None));
    resume.if_range = Some("\"x\"".into());
    get(&origins(config()), resume).await.unwrap();
    let head = raw.heads().remove(0);
    assert!(head.starts_with("GET /a%2Fb?c=d HTTP/1.1\r\n"), "{head}");
    for line in [
        format!("host: {}:{}", super::world::NAME, raw.at.port()),
        "range: bytes=5-".into(),
        "if-range: \"x\"".into(),
        "accept-encoding: identity".into(),
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
}

#[tokio::test]
async fn no_header_in_time_is_said() {
    let raw = Raw::serve(None, |_| (Vec::new(), After::Hang)).await;
    let mut config = config();
    config.upstream.connect_timeout = std::time::Duration::from_millis(200);
    config.upstream.header_timeout = std::time::Duration::from_millis(200);
    let error = get(&origins(config), ask(&raw.url("http", "/a?token=s3cret"))).await.unwrap_err();
    assert!(matches!(error.fault(), Fault::HeaderTimeout(_)), "{error}");
    assert_eq!(error.status(), 504);
    assert!(error.is_temporary() && !error.to_string().contains("s3cret"), "{error}");
}
