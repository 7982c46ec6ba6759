//! Issue 13 row 2: if no byte of a refused body was sent, the client gets an error with a reason, in its body and in its reason
//! phrase, and never a broken transfer. This holds for every body that fits within the gap.

use crate::world::archive::{by_hash, flipped};
use crate::world::{End, Page, World, noise};

#[tokio::test(flavor = "multi_thread")]
async fn a_small_refused_body_is_an_error_with_words_on_every_way() {
    for len in [1, 1_000, 65_536, 262_144] {
        for (h2, pass, chunked) in [
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (true, true, false),
            (false, false, true),
            (true, true, true),
        ] {
            // Without a length only the last 64 KiB so far are withheld.
            if chunked && len > 65_536 {
                continue;
            }
            let world = World::new().await;
            let right = noise(1, len);
            let page = Page::new(flipped(&right));
            let url =
                world.origin.put(&by_hash(&right), if chunked { page.chunked() } else { page });
            let ask = |range: Option<&str>| {
                let ask = world.client.get(&url);
                let ask = if pass { ask.header("x-unknown", "1") } else { ask };
                let ask = if let Some(range) = range { ask.range(range) } else { ask };
                if h2 { ask.h2() } else { ask }
            };
            for range in [None, Some("bytes=0-0"), None] {
                let got = ask(range).send().await;
                let said = String::from_utf8_lossy(&got.body).into_owned();
                let way = format!("{len} {h2} {pass} {chunked} {range:?}: {said}");
                assert_eq!((got.status.as_u16(), got.end), (502, End::Complete), "{way}");
                assert!(said.starts_with("larder: ") && said.contains("was refused"), "{way}");
            }
        }
    }
}

/// apt, wget and npm show the reason phrase, and nothing of the body.
#[tokio::test(flavor = "multi_thread")]
async fn the_reason_phrase_says_that_it_was_larder() {
    let world = World::new().await;
    let right = noise(2, 1_000);
    let path = by_hash(&right);
    world.origin.put(&path, Page::new(flipped(&right)));
    let head = async |path: &str| {
        let host = world.origin.authority();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (answer, _) = world.client.raw(&host, &request).await;
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let refused = "HTTP/1.1 502 Bad Gateway (refused by larder: not the promised bytes)";
    assert_eq!(head(&path).await, refused);
    assert_eq!(head(&path).await, refused, "a moment later");
    world.origin.put("/theirs", Page::status(502));
    assert_eq!(head("/theirs").await, "HTTP/1.1 502 Bad Gateway", "the origin's own");
}

/// An answer that has begun is cut: a fatal alert ends the TLS stream, which no library takes for the end of the body, and which
/// says that access was denied. The control is a body without a promise.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_refused_body_ends_with_an_alert_that_says_denied() {
    let world = World::new().await;
    let right = noise(3, 3_000_000);
    let path = by_hash(&right);
    world.origin.put(&path, Page::new(flipped(&right)));
    world.origin.put("/free", Page::new(flipped(&right)));
    for (path, refused) in [(path.as_str(), true), ("/free", false)] {
        let host = world.origin.authority();
        let mut stream = world.client.inside(&host).await.unwrap_or_else(|_| panic!("no tunnel"));
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut heard).await;
        if !refused {
            assert!(ended.is_ok() && heard.len() > right.len());
            continue;
        }
        assert!(heard.len() > 1_000_000 && heard.len() < right.len(), "{}", heard.len());
        let error = ended.unwrap_err();
        let said = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let denied = rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied);
        assert_eq!(said, Some(&denied), "{error}");
    }
}
