//! Downloads over several connections (aria2, axel): every byte is fetched from the origin once, and no connection waits for the
//! fill to reach its range. Row 11 of what must not be in the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use hyper::{Response, header};

use crate::world::archive::by_hash;
use crate::world::client::Ask;
use crate::world::page::fed;
use crate::world::{Fault, Gate, Got, Page, World, noise};

const MIB: usize = 1 << 20;
const LENGTH: usize = 40 * MIB;

/// An origin that counts the bytes it sent.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicU64>);

impl Counted {
    fn bytes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Puts `body` at `path`; the whole body is sent as far as `gate` allows. The origin sends slowly enough that few bytes are
    /// in transit when a connection is dropped.
    fn put(&self, world: &World, path: &str, body: &Bytes, gate: &Gate) -> String {
        let page = Page::new(body.clone()).etag("v1").fresh(3600);
        let (count, gate) = (Arc::clone(&self.0), gate.clone());
        world.origin.script(path, move |asked| {
            let is_whole = !asked.headers().contains_key(header::RANGE);
            let answer = page.clone().answer(asked.method(), asked.headers());
            let (count, gate) = (Arc::clone(&count), gate.clone());
            async move {
                let (head, body) = answer.into_parts();
                let mut rest = body.collect().await.unwrap().to_bytes();
                let (give, given) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    let mut at = 0;
                    while !rest.is_empty() {
                        if is_whole && at >= 2 * MIB {
                            gate.passed().await;
                        }
                        tokio::time::sleep(Duration::from_millis(4)).await;
                        let piece = rest.split_to(rest.len().min(128 << 10));
                        at += piece.len();
                        count.fetch_add(piece.len() as u64, Ordering::SeqCst);
                        if give.send(Ok(Frame::data(piece))).await.is_err() {
                            return;
                        }
                    }
                });
                Response::from_parts(head, fed(given))
            }
        })
    }
}

fn ranges(world: &World, path: &str) -> Vec<Option<String>> {
    let asked = world.origin.asked(path);
    asked.iter().map(|asked| asked.text("range").map(str::to_owned)).collect()
}

fn span(start: usize, end: usize) -> String {
    format!("{}-{}", start * MIB, end * MIB - 1)
}

/// Four connections to one body, without a promise and with a promised digest: the three ahead of the fill get everything they
/// request while the fill stands still, and the fill skips what they had.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_by_many_connections_takes_every_byte_from_the_origin_once() {
    for (h2, promised) in [(false, false), (true, false), (false, true)] {
        let world = World::new().await;
        let body = noise(1, LENGTH);
        let gate = Gate::closed();
        let origin = Counted::default();
        let path = if promised { by_hash(&body) } else { "/files/big.bin".to_owned() };
        let url = origin.put(&world, &path, &body, &gate);
        let ask = || {
            let ask = world.client.get(&url);
            if h2 { ask.h2() } else { ask }
        };
        // As aria2 does: only its first request asks for mirrors.
        let metalink = "*/*,application/metalink4+xml";
        let mut first = ask().header("accept", metalink).open().await.unwrap();
        assert!(first.read(MIB).await);
        let wanted = [(10, 20), (20, 30), (30, 40)];
        let mut got = Vec::new();
        for (start, end) in wanted {
            got.push(tokio::spawn(ask().range(&span(start, end)).send()));
        }
        if promised {
            // The gap is within one of them until the body is judged.
            crate::world::eventually("each is asked for", || async {
                world.origin.asked(&path).len() == 4
            })
            .await;
            gate.open();
        }
        let got = join_all(got).await.into_iter().map(Result::unwrap);
        for ((start, end), got) in wanted.into_iter().zip(got) {
            let got = got.complete();
            assert_eq!(got.status.as_u16(), 206);
            assert!(got.body == body[start * MIB..end * MIB], "{start} to {end}");
        }
        gate.open();
        assert!(first.equals(&body).await, "h2={h2} promised={promised}");
        let asked = ranges(&world, &path);
        assert_eq!(asked.len(), 4, "one fill, and each part once: {asked:?}");
        let bytes = origin.bytes();
        assert!(bytes >= LENGTH as u64, "the control: it counts");
        // Bytes that were in socket buffers when the fill skipped a part were sent in vain: megabytes on loopback. Without parts
        // it would be three quarters of the body more.
        assert!(
            bytes <= (LENGTH + LENGTH / 4) as u64,
            "{bytes} bytes, h2={h2} promised={promised}"
        );
        // The whole body is stored.
        assert!(world.fetch(&url).await.body == body);
        assert_eq!(world.origin.asked(&path).len(), 4);
    }
}

/// A request with other header fields shares a body under way only if that has no `Vary`.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_under_way_is_shared_by_whoever_its_vary_allows() {
    for (vary, fills) in [(None, 1), (Some("accept"), 2)] {
        let world = World::new().await;
        let gate = Gate::closed();
        let page =
            Page::new(noise(6, 4 * MIB)).etag("v1").fault(Fault::Hold(2 * MIB, gate.clone()));
        let page = match vary {
            Some(vary) => page.header("vary", vary),
            None => page,
        };
        let url = world.origin.put("/files/big.bin", page);
        let mut opened = Vec::new();
        for accept in ["*/*", "text/plain"] {
            let mut one = world.client.get(&url).header("accept", accept).open().await.unwrap();
            assert!(one.read(MIB).await);
            opened.push(one);
        }
        assert_eq!(world.origin.asked("/files/big.bin").len(), fills, "{vary:?}");
        gate.open();
        for one in opened {
            assert!(one.equals(&noise(6, 4 * MIB)).await);
        }
    }
}

/// axel requests from its position to the end, and disconnects when it reaches the next connection's position.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_without_an_end_are_cut_where_another_begins() {
    // Bytes in transit on a connection that is dropped, some megabytes, are lost each time.
    const LENGTH: usize = 96 * MIB;
    let world = World::new().await;
    let body = noise(2, LENGTH);
    let gate = Gate::closed();
    let origin = Counted::default();
    let url = origin.put(&world, "/files/big.bin", &body, &gate);
    let mut first = world.client.get(&url).open().await.unwrap();
    assert!(first.read(MIB).await);
    let from = |start: usize| world.client.get(&url).range(&format!("{}-", start * MIB));
    let mut opened = Vec::new();
    for start in [24, 48, 72] {
        let mut one = from(start).open().await.unwrap();
        assert!(one.read(100_000).await);
        opened.push((start, one));
    }
    for (start, mut one) in opened {
        assert!(one.read(24 * MIB).await);
        assert!(one.so_far()[..24 * MIB] == body[start * MIB..(start + 24) * MIB], "{start}");
    }
    gate.open();
    assert!(first.equals(&body).await);
    let bytes = origin.bytes();
    assert!(bytes <= (LENGTH + LENGTH / 10) as u64, "{bytes} bytes");
    assert!(world.fetch(&url).await.body == body);
}

/// What is missing of a part that broke off is fetched by the fill.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_breaks_off_costs_nobody_the_body() {
    for cut in [0, 2 * MIB] {
        let world = World::new().await;
        let body = noise(3, LENGTH);
        let gate = Gate::closed();
        let whole = Page::new(body.clone()).etag("v1").fault(Fault::Hold(2 * MIB, gate.clone()));
        let parts = Page::new(body.clone()).etag("v1");
        let broken = parts.clone().fault(Fault::Cut(20 * MIB + cut));
        let url = world.origin.script("/files/big.bin", move |asked| {
            let range = asked.headers().get(header::RANGE).cloned();
            let is_broken = range
                .is_some_and(|range| range.to_str().unwrap() == format!("bytes={}", span(20, 30)));
            let mut page = match asked.headers().contains_key(header::RANGE) {
                true if is_broken => broken.clone(),
                true => parts.clone(),
                false => whole.clone(),
            };
            let answer = page.answer(asked.method(), asked.headers());
            async move { answer }
        });
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let middle = tokio::spawn(world.client.get(&url).range(&span(20, 30)).send());
        crate::world::eventually("the part is asked for", || async {
            world.origin.asked("/files/big.bin").len() >= 2
        })
        .await;
        gate.open();
        assert!(first.equals(&body).await, "cut after {cut}");
        assert!(middle.await.unwrap().complete().body == body[20 * MIB..30 * MIB]);
        assert!(world.fetch(&url).await.body == body);
    }
}

/// A part of another version is not used: the fill fetches these bytes itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_another_body_is_not_taken() {
    let world = World::new().await;
    let (body, other) = (noise(4, LENGTH), noise(5, LENGTH));
    let gate = Gate::closed();
    let whole = Page::new(body.clone()).etag("v1").fault(Fault::Hold(2 * MIB, gate.clone()));
    let newer = Page::new(other).etag("v2");
    let url = world.origin.script("/files/big.bin", move |asked| {
        let mut page =
            if asked.headers().contains_key(header::RANGE) { newer.clone() } else { whole.clone() };
        let answer = page.answer(asked.method(), asked.headers());
        async move { answer }
    });
    let mut first = world.client.get(&url).open().await.unwrap();
    assert!(first.read(MIB).await);
    let ask: Ask = world.client.get(&url).range(&span(20, 30));
    let middle = tokio::spawn(ask.send());
    crate::world::eventually("the part is asked for", || async {
        world.origin.asked("/files/big.bin").len() >= 2
    })
    .await;
    gate.open();
    assert!(first.equals(&body).await);
    let middle: Got = middle.await.unwrap().complete();
    assert!(middle.body == body[20 * MIB..30 * MIB]);
}
