//! Promise P3 for a body that no promise bound when it began: an index that promises it is read while it arrives. From then on no
//! client gets the complete body unless it is what was promised (issue 10, the kind of row 3).

use std::time::Duration;

use bytes::Bytes;
use hyper::header;

use crate::world::archive::{flipped, plain_wheel, put_simple};
use crate::world::{Fault, Gate, Page, World, eventually, noise};

pub(crate) const MIB: usize = 1 << 20;
const LENGTH: usize = 3 * MIB;
pub(crate) const GAP: usize = 64 << 10;
pub(crate) const ODD: &str = "x-unheard-of";

/// Publishes an index that names the file, and reads it. larder itself has looked for that index before.
pub(crate) async fn publish(world: &World, name: &str, path: &str, bytes: &[u8]) {
    let index = put_simple(&world.origin, "/", name, &[(path, bytes)]);
    world.proxy.clock.advance(Duration::from_secs(10));
    world.client.get(&index).header("cache-control", "no-cache").send().await.complete();
}

/// Why a body goes to one client only.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It is the answer to the client's own request, with an announced length.
    Pass,
    /// The same without an announced length.
    Chunked,
    /// It is the answer to a fill, and its origin says that it is for one client (`private`).
    Handed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Promised {
    Nothing,
    Other,
    This,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_comes_while_a_body_is_passed_on_binds_it() {
    for way in [Way::Pass, Way::Chunked, Way::Handed] {
        for h2 in [false, true] {
            for promised in [Promised::Nothing, Promised::Other, Promised::This] {
                let world = World::new().await;
                let right = noise(1, LENGTH);
                let wrong = Bytes::from(flipped(&right));
                let body = if promised == Promised::This { right.clone() } else { wrong };
                let gate = Gate::closed();
                let page = Page::new(body.clone()).etag("v1").fault(Fault::Hold(MIB, gate.clone()));
                let page = match way {
                    Way::Pass => page,
                    Way::Chunked => page.chunked(),
                    Way::Handed => page.header("cache-control", "private"),
                };
                let path = plain_wheel("demo");
                let url = world.origin.put(&path, page);
                let ask = world.client.get(&url);
                let ask = if way == Way::Handed { ask } else { ask.header(ODD, "1") };
                let mut got = if h2 { ask.h2() } else { ask }.open().await.unwrap();
                assert!(got.read(MIB).await, "nothing is held back of what nobody promised");
                if promised != Promised::Nothing {
                    publish(&world, "demo", &path, &right).await;
                }
                gate.open();
                let got = got.rest().await;
                let case = format!("{way:?}, h2: {h2}, {promised:?}: {} bytes", got.body.len());
                if promised == Promised::Other {
                    assert!(!got.is_complete() && got.body.len() <= LENGTH - GAP, "{case}");
                    world.proxy.counted("larder_rejected_total", "", 1.0).await;
                    // A client that resumes does not get the rest either.
                    let rest = format!("{}-", got.body.len());
                    let rest = world.client.get(&url).header(ODD, "1").range(&rest).send().await;
                    assert!(!rest.is_complete() || rest.status == 502, "{case}");
                } else {
                    // The controls: no promise, or a promise of this body.
                    assert!(got.is_complete(), "{case}");
                    assert_eq!(got.body, body, "{case}");
                    assert!(world.proxy.metric("larder_rejected_total", "").await < 1.0, "{case}");
                }
            }
        }
    }
}

/// A part of a body cannot be judged, so it is cut off. A client that requests the file again is given a judged body.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_passed_on_ends_when_its_body_is_promised() {
    for promised in [true, false] {
        let world = World::new().await;
        let right = noise(2, LENGTH);
        let gate = Gate::closed();
        let path = plain_wheel("demo");
        let held = Fault::Hold(2 * MIB, gate.clone());
        let url = world.origin.put(&path, Page::new(right.clone()).etag("v1").fault(held));
        let ask = || world.client.get(&url).header(ODD, "1").range(&format!("{MIB}-"));
        let mut got = ask().open().await.unwrap();
        assert!(got.read(MIB / 2).await);
        if promised {
            publish(&world, "demo", &path, &right).await;
        }
        gate.open();
        let got = got.rest().await;
        assert_eq!(got.is_complete(), !promised, "{} bytes", got.body.len());
        assert_eq!(world.fetch(&url).await.body, right, "it is the right one");
    }
}

/// After a promise has appeared, the bytes that are in the file already are given to no client before the judgement.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_came_before_a_promise_are_bound_by_it_when_they_are_read() {
    const LARGE: usize = 30 * MIB;
    for promised in [true, false] {
        let world = World::new().await;
        let right = noise(3, LARGE);
        let wrong = Bytes::from(flipped(&right));
        let fill = Gate::closed();
        let path = plain_wheel("demo");
        let page = Page::new(wrong.clone()).etag("v1");
        let whole = page.clone().fault(Fault::Hold(MIB, fill.clone()));
        let url = world.origin.script(&path, move |asked| {
            let is_part = asked.headers().contains_key(header::RANGE);
            let mut page = if is_part { page.clone() } else { whole.clone() };
            let answer = page.answer(asked.method(), asked.headers());
            async move { answer }
        });
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB / 2).await);
        let part = format!("{}-{}", 10 * MIB, LARGE - 1);
        let mut slow = world.client.get(&url).range(&part).open().await.unwrap();
        assert!(slow.read(MIB).await);
        // A byte just below the gap shows when the bytes of the part have arrived. A longer range would begin a part of its own.
        let end = format!("{0}-{0}", LARGE - GAP - 1);
        world.client.get(&url).range(&end).send().await.complete();
        eventually("the part has come", || async { world.origin.asked(&path).len() >= 2 }).await;
        if promised {
            publish(&world, "demo", &path, &right).await;
        }
        if promised {
            // No more is given before the judgement, which waits for the fill. What was sent before that still arrives, so this
            // reads for as long as more comes.
            const PAUSE: Duration = Duration::from_millis(500);
            let mut came = 0;
            while let Ok(true) = tokio::time::timeout(PAUSE, slow.read(came + 1)).await {
                came = slow.so_far().len();
            }
            assert!(came <= 20 * MIB - GAP, "{came} bytes were given before they were judged");
            fill.open();
            let got = slow.rest().await;
            assert!(!got.is_complete() && got.body.len() <= 20 * MIB - GAP, "{}", got.body.len());
            assert!(!first.rest().await.is_complete());
        } else {
            // The control: without a promise nothing is held back.
            let got = slow.rest().await.complete();
            assert!(got.body == wrong[10 * MIB..]);
            fill.open();
            assert!(first.equals(&wrong).await);
        }
    }
}
