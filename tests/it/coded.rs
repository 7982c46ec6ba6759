//! Issue 17, first list, row 6: a file to which its origin applies a content coding unasked is judged as its clients judge it.

use std::io::Write as _;

use larder::digest::Algorithm;

use crate::late::publish;
use crate::world::archive::{flipped, hex, plain_wheel, put_simple};
use crate::world::{Page, World, noise};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut coded = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    coded.write_all(bytes).unwrap();
    coded.finish().unwrap()
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut coded = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    coded.write_all(bytes).unwrap();
    coded.finish().unwrap()
}

/// A brotli stream (RFC 7932) of uncompressed blocks.
fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    for (number, block) in bytes.chunks(1 << 16).enumerate() {
        let length = u32::try_from(block.len() - 1).unwrap();
        // Before the first block comes the window size, which is one bit here.
        let head = (length << 3 | 1 << 19) << u32::from(number == 0);
        coded.extend_from_slice(&head.to_le_bytes()[..3]);
        coded.extend_from_slice(block);
    }
    coded.push(0b11);
    coded
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coded_file_is_judged_decoded_and_given_as_it_came() {
    for size in [3_000, 1_000_000] {
        let bytes = noise(7, size);
        for (what, sent, coding, right) in [
            ("coded", gzip(&bytes), Some("gzip"), true),
            ("already so, and declared", bytes.to_vec(), Some("gzip"), true),
            ("in a coding that nobody knows", bytes.to_vec(), Some("x-other"), true),
            ("coded and not declared", gzip(&bytes), None, false),
            ("another, coded", gzip(&flipped(&bytes)), Some("gzip"), false),
            ("coded and cut", gzip(&bytes)[..size / 2].to_vec(), Some("gzip"), false),
            ("coded twice", gzip(&gzip(&bytes)), Some("gzip"), false),
            ("coded otherwise", deflated(&bytes), Some("deflate"), true),
            ("in brotli", brotli(&bytes), Some("br"), true),
            ("another, in brotli", brotli(&flipped(&bytes)), Some("br"), false),
            (
                "with another file behind it",
                [deflated(&bytes), b"PK".to_vec()].concat(),
                Some("deflate"),
                false,
            ),
        ] {
            let world = World::new().await;
            let path = plain_wheel("gear");
            let index = put_simple(&world.origin, "/", "gear", &[(&path, &bytes)]);
            drop(index);
            world.fetch(&world.origin.url("/simple/gear/")).await;
            let mut page = Page::new(sent.clone());
            if let Some(coding) = coding {
                page = page.header("content-encoding", coding);
            }
            world.origin.put(&path, page);
            // As fills, and as passes of a client with a credential in a header field that larder does not know.
            for round in 0..4 {
                let ask = world.client.get(&world.origin.url(&path));
                let ask = if round < 2 { ask } else { ask.header("x-unheard-of", "1") };
                let got = ask.send().await;
                let whole = got.is_complete() && got.body == sent;
                assert_eq!(
                    whole,
                    right,
                    "{size} {what}, {round}: {} {}",
                    got.status,
                    got.cache_status()
                );
                if right {
                    assert_eq!(got.text("content-encoding"), coding.unwrap_or_default(), "{what}");
                }
            }
            // A request by digest never gets bytes other than the file's own.
            let sha256 = hex(Algorithm::Sha256, &bytes);
            let elsewhere = world.origin.url(&format!("/v2/a/b/blobs/sha256:{sha256}"));
            let found = world.get(&elsewhere).await;
            assert!(found.status == 404 || found.body == bytes, "{what}: {}", found.cache_status());
        }
    }
}

/// A stored body with a content coding is not cut while it is given if an index comes that promises what it decodes to.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_coded_file_is_given_to_its_end_when_an_index_promises_it_decoded() {
    let right = noise(8, 24 << 20);
    for (sent, whole) in [(right.to_vec(), true), (flipped(&right), false)] {
        for h2 in [false, true] {
            let world = World::new().await;
            let (path, sent) = (plain_wheel("demo"), gzip(&sent));
            let page = Page::new(sent.clone()).etag("v1").header("content-encoding", "gzip");
            let url = world.origin.put(&path, page);
            world.fetch(&url).await;
            let ask = world.client.get(&url);
            let mut got = if h2 { ask.h2() } else { ask }.open().await.unwrap();
            assert!(got.read(1 << 20).await);
            assert_eq!(world.origin.asked(&path).len(), 1, "it is stored");
            publish(&world, "demo", &path, &right).await;
            let got = got.rest().await;
            assert_eq!(got.is_complete(), whole, "h2: {h2}, {} bytes", got.body.len());
            assert!(!whole || got.body == sent);
        }
    }
}
