//! P3 if several bodies of one target arrive at the same time, or one after the other for principals with different promises.
//! Rows 2 and 3 of issue 10.

use std::time::Duration;

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple, simple};
use crate::world::{Fault, Gate, Page, World, eventually, noise};

const MIB: usize = 1 << 20;

/// A little more than the quarantine after a refusal.
const QUARANTINE: Duration = Duration::from_secs(61);

const ODD: &str = "x-unheard-of";

/// A body of the target is refused while another one is still arriving: that one gives nothing more either.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_stops_the_bodies_that_arrive_beside_it() {
    for right_beside in [false, true] {
        for h2 in [false, true] {
            let world = World::new().await;
            let right = noise(1, 4 * MIB);
            let wrong = flipped(&right);
            let (first, second) = (Gate::closed(), Gate::closed());
            let fill = Page::new(wrong.clone()).etag("v1").fault(Fault::Hold(MIB, first.clone()));
            let beside = if right_beside { right.to_vec() } else { wrong };
            let pass = Page::new(beside).etag("v1").fault(Fault::Hold(MIB, second.clone()));
            let url = world.origin.script(&by_hash(&right), move |asked| {
                let odd = asked.headers().contains_key(ODD);
                let mut page = if odd { pass.clone() } else { fill.clone() };
                let answer = page.answer(asked.method(), asked.headers());
                async move { answer }
            });
            let ask = |odd: bool| {
                let ask = world.client.get(&url);
                let ask = if odd { ask.header(ODD, "1") } else { ask };
                if h2 { ask.h2() } else { ask }
            };
            let mut pass = ask(true).open().await.unwrap();
            assert!(pass.read(MIB / 2).await);
            let mut fill = ask(false).open().await.unwrap();
            assert!(fill.read(MIB / 2).await);
            first.open();
            assert!(!fill.rest().await.is_complete());
            world.proxy.counted("larder_rejected_total", "", 1.0).await;
            let given = pass.so_far().len();
            second.open();
            let pass = pass.rest().await;
            if right_beside {
                assert_eq!(
                    pass.complete().body,
                    right,
                    "the control: it is right, and given when it is judged"
                );
            } else {
                assert!(!pass.is_complete());
                assert!(pass.body.len() <= given.max(MIB), "{} after the refusal", pass.body.len());
            }
        }
    }
}

/// A target that was refused by a private index's promise is not cleared by a principal without a promise about it.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_promise_that_holds_clears_a_suspect_target() {
    for cleared in [false, true] {
        let world = World::new().await;
        let right = noise(2, MIB);
        let link = format!("../..{}", plain_wheel("demo"));
        let page = simple(&[(&link, &right)]);
        let index = world.origin.script("/simple/demo/", move |asked| {
            let is_alice = asked.headers().contains_key("authorization");
            let mut page = if is_alice { page.clone() } else { Page::status(401) };
            let answer = page.answer(asked.method(), asked.headers());
            async move { answer }
        });
        let alice = |url: &str| world.client.get(url).header("authorization", "Bearer alice");
        alice(&index).send().await.complete();
        let wrong = flipped(&right);
        let path = plain_wheel("demo");
        let url = world.origin.put(&path, Page::new(wrong.clone()).etag("v1"));
        let first = alice(&url).send().await;
        assert!(!first.is_complete(), "{}", first.cache_status());
        world.proxy.clock.advance(QUARANTINE);
        if cleared {
            // The control: the right bytes are verified and stored, and the next body is given as it arrives.
            world.origin.put(&path, Page::new(right.clone()).etag("v2"));
            assert_eq!(alice(&url).send().await.complete().body, right);
        } else {
            for fields in [&[(ODD, "1")][..], &[]] {
                let ask = world.client.get(&url).from("127.0.0.9");
                let ask = fields.iter().fold(ask, |ask, (name, value)| ask.header(name, value));
                assert_eq!(ask.send().await.complete().body, wrong, "nothing is promised to them");
            }
        }
        let gate = Gate::closed();
        let hold = Fault::Hold(wrong.len() - 1, gate.clone());
        let page = Page::new(wrong.clone()).etag("v3").fault(hold);
        world.origin.put(&path, page);
        let asked = world.origin.asked(&path).len();
        let tail = alice(&url).header(ODD, "1");
        let mut tail = tokio::spawn(tail.open());
        eventually("it was asked", || async { world.origin.asked(&path).len() > asked }).await;
        let patience = if cleared { crate::world::PATIENCE } else { Duration::from_millis(300) };
        let begun = tokio::time::timeout(patience, &mut tail).await;
        assert_eq!(begun.is_ok(), cleared, "whether its bytes are given before they are judged");
        gate.open();
        let end = match begun {
            Ok(opened) => opened.unwrap(),
            Err(_) => tail.await.unwrap(),
        };
        match end {
            Ok(opened) => assert!(!opened.rest().await.is_complete()),
            Err(got) => assert!(!got.is_complete() || got.status == 502, "{got:?}"),
        }
    }
}

/// Two spellings of one URL are two requests to a server, and one file to a client that joins the answers.
#[tokio::test(flavor = "multi_thread")]
async fn two_spellings_of_a_url_share_one_gap() {
    let world = World::new().await;
    let right = noise(3, 3 * MIB);
    let wrong = flipped(&right);
    let link = format!("../..{}", plain_wheel("demo"));
    world.fetch(&put_simple(&world.origin, "/", "demo", &[(&link, &right)])).await;
    let page = Page::new(wrong.clone()).etag("v1");
    let path = plain_wheel("demo");
    let urls = [path.clone(), path.replace("-py3", "%2Dpy3")]
        .map(|path| world.origin.put(&path, page.clone()));
    let first = world.get(&urls[0]).await;
    assert!(!first.is_complete() && first.body.len() > MIB, "{}", first.cache_status());
    let second = world.client.get(&urls[1]).range(&format!("{}-", first.body.len())).send().await;
    assert_eq!(second.status, 502, "{}", second.cache_status());
    world.proxy.clock.advance(QUARANTINE);
    let second = world.client.get(&urls[1]).range(&format!("{}-", first.body.len())).send().await;
    assert_eq!(second.status, 502, "{}", second.cache_status());
    // The control: with either spelling the right file is given.
    for url in &urls {
        world.origin.put(&url[url.find("/files").unwrap()..], Page::new(right.clone()).etag("v2"));
        world.proxy.clock.advance(QUARANTINE);
        assert_eq!(world.fetch(url).await.body, right);
    }
}
