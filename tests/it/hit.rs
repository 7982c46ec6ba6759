//! Stored files are served without asking the origin, in every form in which clients request them.

use crate::world::archive::by_hash;
use crate::world::{Fault, Gate, Page, World, noise};

/// An environment with one stored artifact: its URL, its path, its bytes.
async fn stored() -> (World, String, String, bytes::Bytes) {
    let world = World::new().await;
    let body = noise(1, 1_000_000);
    let path = by_hash(&body);
    let page =
        Page::new(body.clone()).etag("v1").header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
    let url = world.origin.put(&path, page.header("x-repo-commit", "c0ffee"));
    let first = world.fetch(&url).await;
    assert!(!first.is_hit(), "{}", first.cache_status());
    (world, url, path, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_get_asks_nobody() {
    let (world, url, path, body) = stored().await;
    for ask in [world.client.get(&url), world.client.get(&url).h2()] {
        let got = ask.send().await.complete();
        assert_eq!(got.body, body);
        assert!(
            got.cache_status().starts_with("larder; hit")
                && got.cache_status().contains("self-certified")
        );
    }
    assert_eq!(world.origin.total(), 1, "{:?}", world.origin.asked(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_url_with_the_same_digest_in_its_name_asks_nobody() {
    let (world, _, path, body) = stored().await;
    let mirror = world.another("127.0.0.2").await;
    assert_eq!(world.fetch(&mirror.url(&path)).await.body, body);
    assert_eq!(mirror.total(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_said_is_said_again_unchanged() {
    let (world, url, _, body) = stored().await;
    let got = world.fetch(&url).await;
    assert_eq!(got.text("etag"), "\"v1\"");
    assert_eq!(got.text("last-modified"), "Thu, 01 Jan 2026 00:00:00 GMT");
    assert_eq!(got.text("x-repo-commit"), "c0ffee");
    assert_eq!(got.text("content-length"), body.len().to_string());
    assert_eq!(got.text("accept-ranges"), "bytes");
}

/// Old clients take an `ETag` for the MD5 of the body and fail on any other: larder never invents one.
#[tokio::test(flavor = "multi_thread")]
async fn no_validator_is_invented() {
    let world = World::new().await;
    let body = noise(2, 10_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body));
    for _ in 0..2 {
        let got = world.fetch(&url).await;
        assert_eq!((got.text("etag"), got.text("last-modified")), ("", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditionals_are_answered_from_the_store() {
    let (world, url, _, _) = stored().await;
    for (name, value, status) in [
        ("if-none-match", "\"v1\"", 304),
        ("if-none-match", "\"v0\", \"v1\"", 304),
        ("if-none-match", "W/\"v1\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"v2\"", 200),
        ("if-modified-since", "Thu, 01 Jan 2026 00:00:00 GMT", 304),
        ("if-modified-since", "Wed, 31 Dec 2025 00:00:00 GMT", 200),
        ("if-match", "\"v1\"", 200),
        ("if-match", "\"v2\"", 412),
        ("if-unmodified-since", "Wed, 31 Dec 2025 00:00:00 GMT", 412),
    ] {
        let got = world.client.get(&url).header(name, value).send().await;
        assert_eq!(got.status.as_u16(), status, "{name}: {value}");
        if status == 304 {
            assert_eq!((got.text("etag"), got.body.len()), ("\"v1\"", 0));
        }
    }
    assert_eq!(world.origin.total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_says_what_get_says() {
    let (world, url, _, body) = stored().await;
    let (get, head) = (world.get(&url).await, world.client.head(&url).send().await);
    assert!(head.body.is_empty());
    assert_eq!(head.status, get.status);
    for name in ["content-length", "etag", "last-modified", "content-type", "accept-ranges"] {
        assert_eq!(head.text(name), get.text(name), "{name}");
    }
    assert_eq!(head.text("content-length"), body.len().to_string());
    assert_eq!(world.origin.total(), 1);
}

/// harbor#22609: a HEAD of something that is not stored is sent to the origin, and gets what a GET would get.
#[tokio::test(flavor = "multi_thread")]
async fn head_of_what_is_not_stored_asks_the_origin() {
    let world = World::new().await;
    let body = noise(3, 300_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()).etag("v1"));
    let head = world.client.head(&url).send().await;
    assert_eq!((head.status.as_u16(), head.text("content-length")), (200, "300000"));
    assert_eq!(head.text("etag"), "\"v1\"");
    assert_eq!(world.fetch(&url).await.body, body);
    let nothing = world.client.head(&world.origin.url("/none")).send().await;
    assert_eq!(nothing.status.as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_cut_from_the_store() {
    let (world, url, _, body) = stored().await;
    let end = body.len();
    for (range, part) in [
        ("0-0", &body[..1]),
        ("10-19", &body[10..20]),
        ("999990-", &body[999_990..]),
        ("-10000", &body[end - 10_000..]),
        ("-2000000", &body[..]),
        ("500000-9999999", &body[500_000..]),
        // Across the boundaries of the store's chunks.
        ("262143-262144", &body[262_143..262_145]),
        ("1-999998", &body[1..end - 1]),
    ] {
        for ask in [world.client.get(&url), world.client.get(&url).h2()] {
            let got = ask.range(range).send().await.complete();
            assert_eq!(got.status.as_u16(), 206, "{range}");
            assert!(got.body == part, "{range}");
            assert!(
                got.text("content-range").ends_with("/1000000"),
                "{}",
                got.text("content-range")
            );
        }
    }
    let beyond = world.client.get(&url).range("1000000-").send().await;
    assert_eq!((beyond.status.as_u16(), beyond.text("content-range")), (416, "bytes */1000000"));
    for ignored in ["10-5", "x-y", ""] {
        assert_eq!(world.client.get(&url).range(ignored).send().await.body, body, "{ignored}");
    }
    assert_eq!(world.origin.total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_come_as_parts_or_whole() {
    let (world, url, _, body) = stored().await;
    let got = world.client.get(&url).range("0-9,500-519,-5").send().await.complete();
    if got.status.as_u16() == 206 {
        let kind = got.text("content-type").to_owned();
        let boundary =
            kind.strip_prefix("multipart/byteranges; boundary=").unwrap().trim_matches('"');
        let text = &got.body[..];
        for part in [&body[..10], &body[500..520], &body[999_995..]] {
            assert!(text.windows(part.len()).any(|window| window == part));
        }
        let marks = text.windows(boundary.len()).filter(|window| *window == boundary.as_bytes());
        assert_eq!(marks.count(), 4);
    } else {
        assert_eq!(got.body, body);
    }
    assert_eq!(world.origin.total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_range_with_another_validator_gets_the_whole() {
    let (world, url, _, body) = stored().await;
    let resume =
        |validator: &str| world.client.get(&url).range("10-").header("if-range", validator).send();
    assert_eq!(resume("\"v1\"").await.status.as_u16(), 206);
    assert_eq!(resume("Thu, 01 Jan 2026 00:00:00 GMT").await.status.as_u16(), 206);
    for other in ["\"v2\"", "W/\"v1\"", "Fri, 02 Jan 2026 00:00:00 GMT"] {
        let got = resume(other).await;
        assert_eq!((got.status.as_u16(), &got.body), (200, &body), "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_cut_from_a_file_that_still_grows() {
    let world = World::new().await;
    let (body, gate) = (noise(4, 2_000_000), Gate::closed());
    let path = by_hash(&body);
    let page = Page::new(body.clone()).etag("v1").without_ranges();
    let url = world.origin.put(&path, page.fault(Fault::Hold(1_500_000, gate.clone())));
    let mut leader = world.client.get(&url).open().await.unwrap();
    assert!(leader.read(1_000_000).await);
    let early = world.client.get(&url).range("1000-1999").send().await.complete();
    assert_eq!((early.status.as_u16(), &early.body[..]), (206, &body[1000..2000]));
    let late = tokio::spawn(world.client.get(&url).range("-1000").send());
    gate.open();
    assert_eq!(late.await.unwrap().complete().body, body[1_999_000..]);
    assert!(leader.equals(&body).await);
    assert_eq!(world.origin.gets(&path), 1, "{:?}", world.origin.asked(&path));
}

/// A fill always requests the whole body: an earlier range request does not leave a partial entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_asked_first_poisons_nothing() {
    let world = World::new().await;
    let body = noise(5, 3_000_000);
    let url = world.origin.put(&by_hash(&body), Page::new(body.clone()).etag("v1"));
    let part = world.client.get(&url).range("100-199").send().await.complete();
    assert_eq!(part.body, body[100..200]);
    assert_eq!(world.fetch(&url).await.body, body);
    assert_eq!(world.fetch(&url).await.body, body);
}

/// An empty body is complete as well.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_complete() {
    let world = World::new().await;
    let url = world.origin.put(&by_hash(b""), Page::new(""));
    let unknown = world.origin.put("/empty", Page::new("").fresh(600));
    for url in [&url, &unknown] {
        for h2 in [false, true, true, false] {
            let ask = world.client.get(url);
            let got = if h2 { ask.h2().send().await } else { ask.send().await };
            assert_eq!(got.complete().body, "", "{url} h2={h2}");
        }
    }
}

/// RFC 9110 §14.2: ranges are defined for GET only. §8.8.3: an entity tag may contain a comma.
#[tokio::test(flavor = "multi_thread")]
async fn head_knows_no_ranges_and_a_tag_may_hold_a_comma() {
    let (world, url, _, body) = stored().await;
    let head = world.client.head(&url).range("0-0").send().await;
    assert_eq!(
        (head.status.as_u16(), head.text("content-length")),
        (200, &*body.len().to_string())
    );
    let url = world.origin.put("/tag", Page::new("x").etag("a,b").fresh(600));
    world.fetch(&url).await;
    for (name, value, status) in [
        ("if-match", "\"a,b\"", 200),
        ("if-match", "\"a\", \"b\"", 412),
        ("if-none-match", "\"x\", W/\"a,b\"", 304),
    ] {
        let got = world.client.get(&url).header(name, value).send().await;
        assert_eq!(got.status.as_u16(), status, "{name}: {value}");
    }
}
