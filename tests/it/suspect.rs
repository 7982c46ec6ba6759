//! P3 and P8 over many requests: one gap for each target, whatever kind of request asks for it; and a target that was refused
//! gives nothing before all of it is verified. Rows 1 to 3 of what attackers found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header;

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple};
use crate::world::client::Ask;
use crate::world::{Fault, Gate, Got, Page, World, noise};

const MIB: usize = 1 << 20;

/// A little more than the quarantine after a refusal.
const QUARANTINE: Duration = Duration::from_secs(61);

/// These bytes with other last bytes, for ranges that lie.
fn lying(right: &[u8]) -> Vec<u8> {
    let mut wrong = right.to_vec();
    let end = wrong.len();
    wrong[end - 4 * MIB..].reverse();
    wrong
}

/// An origin that answers a request for the whole with `whole`, as far as `gate` allows, and ranges with `parts`, under one
/// `ETag`.
fn put(world: &World, path: &str, whole: &Bytes, parts: &[u8], gate: &Gate) -> String {
    let hold = Fault::Hold(2 * MIB, gate.clone());
    let whole = Page::new(whole.clone()).etag("v1").fault(hold);
    let parts = Page::new(parts.to_vec()).etag("v1");
    world.origin.script(path, move |asked| {
        let is_part = asked.headers().contains_key(header::RANGE);
        let mut page = if is_part { parts.clone() } else { whole.clone() };
        let answer = page.answer(asked.method(), asked.headers());
        async move { answer }
    })
}

/// Row 1: an origin whose whole body is right and whose ranges lie. Two connections never get a complete file from both.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_beside_a_fill_is_compared_with_the_body() {
    for (h2, lie) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new().await;
        let right = noise(1, 24 * MIB);
        let gate = Gate::closed();
        let parts = if lie { lying(&right) } else { right.to_vec() };
        let url = put(&world, &by_hash(&right), &right, &parts, &gate);
        let ask = |range: &str| {
            let ask = world.client.get(&url).range(range);
            if h2 { ask.h2() } else { ask }
        };
        let far = 16 * MIB;
        let start = tokio::spawn(ask(&format!("0-{}", far - 1)).send());
        let end = ask(&format!("{far}-")).send().await;
        assert!(end.body.len() <= right.len() - far);
        gate.open();
        let start = start.await.unwrap();
        let mut joined = start.body.to_vec();
        joined.extend_from_slice(&end.body);
        if lie {
            assert!(!start.is_complete(), "the gap opened for what is not the body");
            assert!(joined.len() <= right.len() - 64 * 1024);
            world.proxy.counted("larder_rejected_total", "", 1.0).await;
        } else {
            assert!(end.is_complete() && joined == right, "the control: h2={h2}");
        }
        let beside = |url: &str| world.origin.asked(path_of(url)).len();
        assert_eq!(beside(&url), 2, "one whole, and one range beside it");
        if !lie {
            continue;
        }
        // For a minute nothing, to any client; then the right body, and no byte of it before it was verified.
        let again = world.client.get(&url).from("127.0.0.9").send().await;
        assert_eq!(again.status.as_u16(), 502);
        world.proxy.clock.advance(QUARANTINE);
        assert_eq!(world.fetch(&url).await.body, right);
        // No range is fetched beside any fill of that origin.
        let other = noise(2, 24 * MIB);
        let gate = Gate::closed();
        let path = by_hash(&other);
        let url = put(&world, &path, &other, &other, &gate);
        let end = tokio::spawn(world.client.get(&url).range(&format!("{far}-")).send());
        crate::world::eventually("the fill began", || async {
            !world.origin.asked(&path).is_empty()
        })
        .await;
        gate.open();
        assert_eq!(end.await.unwrap().complete().body, other[far..]);
        assert_eq!(world.origin.asked(&path).len(), 1);
    }
}

fn path_of(url: &str) -> &str {
    let authority = url.find("//").unwrap() + 2;
    &url[authority + url[authority..].find('/').unwrap()..]
}

/// Requests a body that is refused after most of it was sent. Returns the part that the client has, and would complete after a
/// restart or from another address.
async fn cut_off(world: &World, url: &str) -> Got {
    let first = world.get(url).await;
    assert!(!first.is_complete());
    first
}

/// Row 2: `wget -c`, a restart, `wget -c` again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_target_is_suspect_after_a_restart_and_for_every_address() {
    for cache_deleted in [false, true] {
        let mut world = World::new().await;
        let right = noise(3, 3 * MIB);
        let wrong = flipped(&right);
        let gate = Gate::closed();
        let path = by_hash(&right);
        let hold = Fault::Hold(2 * MIB, gate.clone());
        let url = world.origin.put(&path, Page::new(wrong.clone()).etag("v1").fault(hold));
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        gate.open();
        let first = first.rest().await;
        assert!(!first.is_complete() && first.body.len() >= MIB);
        world.origin.put(&path, Page::new(wrong.clone()).etag("v1"));
        world
            .restart(|data| {
                if cache_deleted {
                    std::fs::remove_dir_all(data.join("v1")).unwrap();
                }
            })
            .await;
        for (from, range) in [
            ("127.0.0.1", format!("{}-", first.body.len())),
            ("127.0.0.9", "-65536".to_owned()),
            ("127.0.0.9", format!("0-{MIB}")),
            // A range of which no byte was given does not complete the body either.
            ("127.0.0.1", format!("{}-", wrong.len())),
        ] {
            let got = world.client.get(&url).from(from).range(&range).send().await;
            assert_eq!(got.status.as_u16(), 502, "{range} {from}");
            world.proxy.clock.advance(QUARANTINE);
        }
        // The control: when it is right again it is given, by ranges too, and streamed to the next client.
        world.origin.put(&path, Page::new(right.clone()).etag("v2"));
        let got = world.client.get(&url).range("1000-1999").send().await;
        assert_eq!(got.body, right[1000..2000]);
        assert_eq!(world.fetch(&url).await.body, right);
    }
}

/// The same for a process that is killed in the middle: what it gave was recorded before it was given. Without the record (the
/// control) the next process would not know it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_before_a_crash_is_known_after_it() {
    for noted in [true, false] {
        let world = World::new().await;
        let right = noise(4, 4 * MIB);
        let wrong = flipped(&right);
        let path = by_hash(&right);
        let gate = Gate::closed();
        let page = Page::new(wrong.clone()).etag("v1").fault(Fault::Hold(3 * MIB, gate.clone()));
        let url = world.origin.put(&path, page);
        // The gap moves below the end, and what precedes it is given; then larder is killed.
        let mut end = world.client.get(&url).range("3000000-").open().await.unwrap();
        assert!(end.read(100_000).await);
        let note = std::fs::read(world.proxy.data.join("state/unverified")).unwrap();
        // What a killed process leaves: its files, and nothing of its memory.
        let data = world.dir().join("after");
        std::fs::create_dir_all(data.join("state")).unwrap();
        std::fs::write(data.join("state/unverified"), if noted { &note[..] } else { &[] }).unwrap();
        let config = larder::config::Config { data, ..world.config().clone() };
        let next = crate::world::Proxy::start(config).await;
        let after = Gate::closed();
        let hold = Fault::Hold(wrong.len() - 1, after.clone());
        world.origin.put(&path, Page::new(wrong.clone()).etag("v1").fault(hold));
        let mut start = next.client().await.get(&url).open().await.unwrap();
        let most = 3_000_000 - 64 * 1024;
        assert!(start.read(most - 64 * 1024).await);
        let patience = if noted { Duration::from_millis(300) } else { crate::world::PATIENCE };
        let more = tokio::time::timeout(patience, start.read(most + 1)).await;
        assert_eq!(more.is_err(), noted, "where the gap lies now");
        after.open();
        gate.open();
        assert!(!start.rest().await.is_complete());
    }
}

/// Row 3: a pass and a fill, and two credentials, share the gap.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_shares_one_gap() {
    let kinds: [&[(&'static str, &str)]; 4] = [
        &[],
        &[("x-unheard-of", "1")],
        &[("authorization", "Bearer one")],
        &[("authorization", "Bearer two")],
    ];
    for first in kinds {
        for second in kinds {
            for right_body in [false, true] {
                let world = World::new().await;
                let right = noise(5, 3 * MIB);
                let body = if right_body { right.clone() } else { flipped(&right).into() };
                let gate = Gate::closed();
                let hold = Fault::Hold(5 * MIB / 2, gate.clone());
                let page = Page::new(body.clone()).etag("v1").fault(hold);
                let url = world.origin.put(&by_hash(&right), page);
                let ask = |fields: &[(&'static str, &str)]| {
                    let ask = world.client.get(&url);
                    fields.iter().fold(ask, |ask, (name, value)| ask.header(name, value))
                };
                let half = 2 * MIB;
                let (start, end) = (ask(first), ask(second).range(&format!("{half}-")));
                let (start, end) = (tokio::spawn(start.send()), tokio::spawn(end.send()));
                tokio::time::sleep(Duration::from_millis(50)).await;
                gate.open();
                let (start, end) = (start.await.unwrap(), end.await.unwrap());
                if right_body {
                    assert_eq!(start.complete().body, right, "the control");
                    continue;
                }
                let mut have = vec![false; right.len()];
                have[..start.body.len()].fill(true);
                let from = if end.status.as_u16() == 206 { half } else { 0 };
                if end.status.is_success() {
                    have[from..from + end.body.len()].fill(true);
                }
                let missing = have.iter().filter(|given| !**given).count();
                assert!(missing >= 64 * 1024, "{first:?} and {second:?}: {missing} are missing");
            }
        }
    }
}

/// A target that was refused because of one client's odd request is not withheld from others for good: it is held back only until
/// it is verified.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pass_got_refused_is_still_given_to_others() {
    let world = World::new().await;
    let right = noise(6, MIB);
    let (good, bad) = (Page::new(right.clone()), Page::new(flipped(&right)));
    let url = world.origin.script(&by_hash(&right), move |asked| {
        let odd = asked.headers().contains_key("x-unheard-of");
        let answer =
            if odd { bad.clone() } else { good.clone() }.answer(asked.method(), asked.headers());
        async move { answer }
    });
    let odd = world.client.get(&url).header("x-unheard-of", "1").send().await;
    assert!(!odd.is_complete());
    let other = world.client.get(&url).from("127.0.0.9").send().await;
    assert_eq!(other.complete().body, right);
}

/// A right body that is not stored says nothing about the body that the next client gets: what others were given stays recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_body_that_is_not_stored_makes_no_target_trusted() {
    for stored in [false, true] {
        let world = World::new().await;
        let right = noise(9, 4 * MIB);
        let wrong = Bytes::from(flipped(&right));
        let (path, gate) = (by_hash(&right), Gate::closed());
        let hold = Fault::Hold(3 * MIB, gate.clone());
        let bad = Page::new(wrong.clone()).etag("v1");
        let url = world.origin.put(&path, bad.clone().fault(hold));
        let from = 3_000_000;
        let mut end = world.client.get(&url).range(&format!("{from}-")).open().await.unwrap();
        assert!(end.read(100_000).await, "the gap moved");
        let start = tokio::spawn(world.client.get(&url).send());
        gate.open();
        let (start, end) = (start.await.unwrap(), end.rest().await);
        let mut have = vec![false; wrong.len()];
        have[..start.body.len()].fill(true);
        have[from..from + end.body.len()].fill(true);
        world.proxy.clock.advance(QUARANTINE);
        world.origin.put(&path, Page::new(right.clone()).etag("v2"));
        let ask = world.client.get(&url);
        let ask = if stored { ask } else { ask.header("x-unheard-of", "1") };
        assert_eq!(ask.send().await.complete().body, right);
        world.origin.put(&path, bad);
        let last = world.get(&url).await;
        if stored {
            assert_eq!(last.complete().body, right, "the control");
            continue;
        }
        have[..last.body.len()].fill(true);
        let missing = have.iter().filter(|given| !**given).count();
        assert!(missing >= 64 * 1024, "only {missing} are missing");
    }
}

/// An index's promise makes a target suspect as a digest in its name does; when the promise is withdrawn, the file is given as it
/// is.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_file_is_given_when_its_index_promises_it() {
    let world = World::new().await;
    let (right, new) = (noise(7, MIB), noise(8, MIB));
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &right)]);
    world.fetch(&index).await;
    let url = world.origin.put(&plain_wheel("demo"), Page::new(new.clone()).etag("v1"));
    cut_off(&world, &url).await;
    world.proxy.clock.advance(QUARANTINE);
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    world.client.get(&index).header("cache-control", "no-cache").send().await.complete();
    assert_eq!(world.fetch(&url).await.body, new);
}

/// The property of rows 1 to 3: random ranges, passes, credentials, restarts, broken transfers and lies over one target. 64 KiB
/// of what was given in total are missing, and no answer completes the whole.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_ever_assembles_a_body_that_does_not_verify() {
    let mut seeds = tokio::task::JoinSet::new();
    for seed in 0..4 {
        seeds.spawn(random_requests(seed));
    }
    while let Some(seed) = seeds.join_next().await {
        seed.unwrap();
    }
}

async fn random_requests(seed: u64) {
    let mut world = World::new().await;
    let right = noise(100 + seed, 10 * MIB);
    let wrong = Bytes::from(flipped(&right));
    let length = right.len();
    let path = by_hash(&right);
    let mut dice = Dice(seed);
    let origin_breaks = Arc::new(AtomicBool::new(false));
    let turns = Arc::new(AtomicUsize::new(0));
    let (breaks, turn, body) = (Arc::clone(&origin_breaks), Arc::clone(&turns), wrong.clone());
    let url = world.origin.script(&path, move |asked| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        let mut page = Page::new(body.clone()).etag("v1");
        if breaks.load(Ordering::SeqCst) {
            page = page.fault(Fault::Cut(MIB * (1 + turn % 9)));
        }
        if turn % 7 == 6 {
            page = page.chunked();
        }
        let answer = page.answer(asked.method(), asked.headers());
        async move { answer }
    });
    let mut have = vec![false; length];
    for _ in 0..10 {
        origin_breaks.store(dice.roll(5) == 0, Ordering::SeqCst);
        let mut asks = tokio::task::JoinSet::new();
        for _ in 0..=dice.roll(3) {
            let (from, ask) = random_ask(&world, &url, length, &mut dice);
            asks.spawn(async move { (from, ask.send().await) });
        }
        while let Some(asked) = asks.join_next().await {
            let (from, got) = asked.unwrap();
            if !got.status.is_success() {
                assert!(got.status.as_u16() >= 500, "{} is taken for an end", got.status);
                continue;
            }
            let from = if got.status.as_u16() == 206 { from } else { 0 };
            have[from..from + got.body.len()].fill(true);
        }
        match dice.roll(4) {
            0 => world.restart(|_| {}).await,
            _ => world.proxy.clock.advance(QUARANTINE),
        }
    }
    let missing = have.iter().filter(|given| !**given).count();
    assert!(missing >= 64 * 1024, "seed {seed}: only {missing} bytes are missing");
    // The control: the right body is given, whatever happened before.
    world.origin.unscript(&path);
    world.origin.put(&path, Page::new(right.clone()).etag("v2"));
    world.proxy.clock.advance(QUARANTINE);
    assert_eq!(world.fetch(&url).await.body, right, "seed {seed}");
}

/// A request for the whole or for a range, of a random kind; and the offset of its bytes.
fn random_ask(world: &World, url: &str, length: usize, dice: &mut Dice) -> (usize, Ask) {
    let mut ask = world.client.get(url);
    if dice.roll(2) == 0 {
        ask = ask.from("127.0.0.9");
    }
    ask = match dice.roll(4) {
        0 => ask.header("x-unheard-of", "1"),
        1 => ask.header("authorization", "Bearer one"),
        _ => ask,
    };
    if dice.roll(3) == 0 {
        ask = ask.h2();
    }
    if dice.roll(4) == 0 {
        return (0, ask);
    }
    let from = dice.roll(length);
    let to = from + dice.roll(length - from);
    let range = if dice.roll(2) == 0 { format!("{from}-") } else { format!("{from}-{to}") };
    (from, ask.range(&range))
}

/// A small generator, so that a failure can be reproduced with its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides.max(1) as u64).unwrap()
    }
}
