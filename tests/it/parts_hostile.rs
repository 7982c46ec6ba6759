//! Promises P3 and P6 while parts of a body are fetched ahead of its fill: an origin whose parts do not agree with its body,
//! promises that appear meanwhile, a store that fills up, clients that leave (issue 10, the kind of row 1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use hyper::{Response, StatusCode, header};

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple};
use crate::world::page::fed;
use crate::world::{Fault, Gate, Page, World, eventually, noise};

const MIB: usize = 1 << 20;
const LENGTH: usize = 40 * MIB;
const GAP: usize = 64 << 10;

fn span(start: usize, end: usize) -> String {
    format!("{}-{}", start * MIB, end * MIB - 1)
}

/// An origin that answers a request without a range with `whole`, and one with a range with the result of `part`.
fn put(
    world: &World,
    path: &str,
    whole: Page,
    part: impl Fn(&str) -> Page + Send + Sync + 'static,
) -> String {
    world.origin.script(path, move |asked| {
        let range = asked.headers().get(header::RANGE);
        let mut page = match range {
            Some(range) => part(range.to_str().unwrap().trim_start_matches("bytes=")),
            None => whole.clone(),
        };
        let answer = page.answer(asked.method(), asked.headers());
        async move { answer }
    })
}

/// An index that names the file appears now, and is read. larder has looked for it before.
async fn publish(world: &World, name: &str, path: &str, bytes: &[u8]) {
    let index = put_simple(&world.origin, "/", name, &[(path, bytes)]);
    world.proxy.clock.advance(Duration::from_secs(10));
    let got = world.client.get(&index).header("cache-control", "no-cache").send().await.complete();
    assert_eq!(got.status, StatusCode::OK);
}

/// A promise binds a body from the moment it is found, and the bytes of its parts as well: the last 64 KiB are given to no client
/// before the judgement, even if the fill stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_comes_while_parts_are_under_way_binds_them() {
    for promised in [true, false] {
        let world = World::new().await;
        let right = noise(1, LENGTH);
        let wrong = Bytes::from(flipped(&right));
        let (fill, part) = (Gate::closed(), Gate::closed());
        let path = plain_wheel("big");
        let page = Page::new(wrong.clone()).etag("v1");
        let parts = page.clone().fault(Fault::Hold(20 * MIB, part.clone()));
        let whole = page.fault(Fault::Hold(2 * MIB, fill.clone()));
        let url = put(&world, &path, whole, move |_| parts.clone());
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let mut ahead = world.client.get(&url).range(&span(10, 40)).open().await.unwrap();
        assert!(ahead.read(9 * MIB).await);
        if promised {
            publish(&world, "big", &path, &right).await;
        }
        part.open();
        assert!(ahead.read(30 * MIB - GAP).await);
        if !promised {
            // The control: without a promise nothing is withheld.
            assert!(ahead.equals(&wrong[10 * MIB..]).await);
            fill.open();
            assert!(first.equals(&wrong).await);
            continue;
        }
        fill.open();
        let got = ahead.rest().await;
        assert!(!got.is_complete() && got.body.len() <= 30 * MIB - GAP, "{}", got.body.len());
        let got = first.rest().await;
        assert!(!got.is_complete() && got.body.len() <= LENGTH - GAP, "{}", got.body.len());
    }
}

/// The same for a promise that appears after the request and before the answer's head.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_comes_before_the_head_of_the_answer_binds_the_body() {
    for promised in [true, false] {
        let world = World::new().await;
        let right = noise(2, 3 * MIB);
        let wrong = Bytes::from(flipped(&right));
        let (head, rest) = (Gate::closed(), Gate::closed());
        let path = plain_wheel("late");
        let page =
            Page::new(wrong.clone()).etag("v1").fault(Fault::Hold(3 * MIB - 10, rest.clone()));
        let begins = head.clone();
        let url = world.origin.script(&path, move |asked| {
            let answer = page.clone().answer(asked.method(), asked.headers());
            let begins = begins.clone();
            async move {
                begins.passed().await;
                answer
            }
        });
        let asking = tokio::spawn(world.client.get(&url).open());
        eventually("it is asked for", || async { world.origin.gets(&path) == 1 }).await;
        if promised {
            publish(&world, "late", &path, &right).await;
        }
        head.open();
        let mut got = asking.await.unwrap().unwrap();
        // While the end of the body is still missing, nothing of the gap may be given.
        let most = if promised { 3 * MIB - GAP } else { 3 * MIB - 10 };
        assert!(got.read(most).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
        rest.open();
        let got = got.rest().await;
        assert_eq!(got.is_complete(), !promised);
        assert!(!promised || got.body.len() == most, "{}", got.body.len());
    }
}

/// An answer that is not a part of the body under way according to its header fields is not used, whatever is wrong with it; and
/// of a right one no more than was requested.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_such_part_is_not_taken() {
    let (body, other) = (noise(3, LENGTH), noise(4, LENGTH));
    let of = |page: Page| page.etag("v1").header("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT");
    let part = |bytes: &Bytes, says: String| {
        let mut page = Page::new(bytes.slice(20 * MIB..30 * MIB)).header("content-range", &says);
        page.status = StatusCode::PARTIAL_CONTENT;
        page
    };
    let says = |start: usize, end: usize, total: usize| {
        format!("bytes {}-{}/{total}", start * MIB, end * MIB - 1)
    };
    let right = says(20, 30, LENGTH);
    let lies = [
        ("another tag", part(&other, right.clone()).etag("v2")),
        ("a weak tag", part(&other, right.clone()).header("etag", "W/\"v1\"")),
        ("no tag", part(&other, right.clone())),
        ("another length", of(part(&other, says(20, 30, LENGTH + 1)))),
        ("no length", of(part(&other, format!("bytes {}-{}/*", 20 * MIB, 30 * MIB - 1)))),
        ("another place", of(part(&other, says(21, 31, LENGTH)))),
        ("the whole", of(Page::new(other.clone()).without_ranges())),
        (
            "several parts",
            of(part(&other, right.clone())
                .header("content-type", "multipart/byteranges; boundary=x")),
        ),
        (
            "another date",
            part(&other, right.clone())
                .etag("v1")
                .header("last-modified", "Sat, 01 Jan 2000 00:00:01 GMT"),
        ),
        ("another coding", of(part(&other, right.clone()).header("content-encoding", "gzip"))),
        ("unframed and too short", {
            let mut page = of(part(&body, right.clone())).chunked();
            page.body = body.slice(20 * MIB..23 * MIB);
            page
        }),
        ("unframed and too long", {
            let mut page = of(part(&body, right.clone())).chunked();
            page.body = body.slice(20 * MIB..33 * MIB);
            page
        }),
    ];
    for (name, lie) in lies {
        let world = World::new().await;
        let gate = Gate::closed();
        let page = of(Page::new(body.clone()));
        let whole = page.clone().fault(Fault::Hold(2 * MIB, gate.clone()));
        let url = put(&world, "/files/big.bin", whole, move |range| {
            // The fill itself continues correctly.
            if range == span(20, 30) { lie.clone() } else { page.clone() }
        });
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let middle = tokio::spawn(world.client.get(&url).range(&span(20, 30)).send());
        eventually("the part is asked for", || async {
            world.origin.asked("/files/big.bin").len() >= 2
        })
        .await;
        gate.open();
        assert!(first.equals(&body).await, "{name}");
        let middle = middle.await.unwrap().complete();
        assert!(middle.body == body[20 * MIB..30 * MIB], "{name}");
        assert!(world.fetch(&url).await.body == body, "{name}");
    }
}

/// Two servers behind one name give the same strong entity tag to two bodies of the same length. No mixture of them is given as
/// the whole, or kept; the next download is in one piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_with_other_bytes_than_the_whole_has_there_makes_no_mixture() {
    for honest in [false, true] {
        let world = World::new().await;
        let body = noise(5, LENGTH);
        let other = if honest { body.clone() } else { noise(6, LENGTH) };
        let gate = Gate::closed();
        let whole = Page::new(body.clone()).etag("v1").fresh(3600);
        let whole = whole.fault(Fault::Hold(2 * MIB, gate.clone()));
        let parts = Page::new(other.clone()).etag("v1").fresh(3600);
        let url = put(&world, "/files/big.bin", whole, move |_| parts.clone());
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let middle = world.client.get(&url).range(&span(20, 30)).send().await.complete();
        assert!(middle.body == other[20 * MIB..30 * MIB]);
        gate.open();
        let got = first.rest().await;
        if honest {
            assert!(got.complete().body == body, "the control");
            assert!(world.fetch(&url).await.is_hit());
            continue;
        }
        assert!(!got.is_complete(), "{:?}", got.end);
        assert!(world.fetch(&url).await.body == body);
        let again = world.client.get(&url).range(&span(20, 30)).send().await.complete();
        assert!(again.is_hit() && again.body == body[20 * MIB..30 * MIB]);
    }
}

/// If a digest is promised, such a part is a refusal, and not a broken transfer: clients resume by themselves, and some of them
/// hold bytes that do not belong to the body.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_part_of_a_promised_body_is_a_refusal() {
    for at in [20 * MIB, 25 * MIB, usize::MAX] {
        let world = World::new().await;
        let right = noise(12, LENGTH);
        let mut lie = right.to_vec();
        if let Some(byte) = lie.get_mut(at) {
            *byte ^= 1;
        }
        let gate = Gate::closed();
        let whole = Page::new(right.clone()).etag("v1").fault(Fault::Hold(2 * MIB, gate.clone()));
        let parts = Page::new(lie).etag("v1");
        let path = by_hash(&right);
        let url = put(&world, &path, whole, move |_| parts.clone());
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        assert!(world.client.get(&url).range(&span(20, 30)).send().await.is_complete());
        gate.open();
        let got = first.rest().await;
        if at == usize::MAX {
            assert!(got.complete().body == right, "the control");
            continue;
        }
        assert!(!got.is_complete(), "{at}");
        let have = got.body.len();
        let again = world.client.get(&url).range(&format!("{have}-")).send().await;
        assert_eq!(again.status, StatusCode::BAD_GATEWAY, "{at}");
        world.proxy.counted("larder_rejected_total", "", 1.0).await;
        world.proxy.clock.advance(Duration::from_secs(61));
        assert!(
            world.fetch(&url).await.body == right,
            "{at}: of one piece it is what was promised"
        );
    }
}

/// The fill drops its connection when it reaches a part, and requests what follows. If the origin does not serve that at once, or
/// only as the end of the whole, no client must lose the download (promise P6).
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_behind_a_part_whatever_its_origin_says_to_ranges_then() {
    for kind in ["fails once", "gives the whole", "fails, and gives the whole", "another whole"] {
        let world = World::new().await;
        let body = noise(7, LENGTH);
        let gate = Gate::closed();
        let page = Page::new(body.clone()).etag("v1").fresh(3600);
        let other = Page::new(noise(8, LENGTH)).etag("v1").fresh(3600);
        let whole = page.clone().fault(Fault::Hold(2 * MIB, gate.clone()));
        let (asked, wholes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let url = world.origin.script("/files/big.bin", move |request| {
            let range =
                request.headers().get(header::RANGE).map(|r| r.to_str().unwrap().to_owned());
            let mut answer = match range {
                None if wholes.fetch_add(1, Ordering::SeqCst) == 0 => whole.clone(),
                None if kind == "another whole" => other.clone(),
                None => page.clone(),
                Some(range) if !range.ends_with('-') => page.clone(),
                Some(_) => match (kind, asked.fetch_add(1, Ordering::SeqCst)) {
                    ("fails once", 0) | ("fails, and gives the whole", _) => Page::status(503),
                    ("fails once", _) => page.clone(),
                    ("another whole", _) => other.clone().without_ranges(),
                    _ => page.clone().without_ranges(),
                },
            };
            let answer = answer.answer(request.method(), request.headers());
            async move { answer }
        });
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let middle = world.client.get(&url).range(&span(20, 30)).send().await.complete();
        assert!(middle.body == body[20 * MIB..30 * MIB]);
        gate.open();
        let got = first.rest().await;
        if kind == "another whole" {
            // The control: bytes that do not agree with those received are not joined to them.
            assert!(!got.is_complete(), "{:?}", got.end);
            continue;
        }
        assert!(got.complete().body == body, "{kind}");
        assert!(world.fetch(&url).await.is_hit(), "{kind}");
    }
}

/// The store fills up while parts are in the file: all readers continue, promises are enforced, and nothing is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fills_up_under_parts_costs_nobody_the_body() {
    for (cap, kind) in [(70, "free"), (70, "right"), (70, "wrong"), (400, "free")] {
        let world = World::with(|config| {
            config.store.max_size = cap * MIB as u64;
            config.store.max_body_share = 100;
        })
        .await;
        let right = noise(9, LENGTH);
        let body = if kind == "wrong" { Bytes::from(flipped(&right)) } else { right.clone() };
        let path = if kind == "free" { "/files/big.bin".to_owned() } else { by_hash(&right) };
        let (gate, other) = (Gate::closed(), Gate::closed());
        let page = Page::new(body.clone()).etag("v1").fresh(600);
        let whole = page.clone().fault(Fault::Hold(2 * MIB, gate.clone()));
        let url = put(&world, &path, whole, move |_| page.clone());
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let mut parts = Vec::new();
        for (start, end) in [(10, 20), (20, 30)] {
            let mut part = world.client.get(&url).range(&span(start, end)).open().await.unwrap();
            assert!(part.read(10 * MIB - 1).await, "{kind}");
            parts.push((start, end, part));
        }
        // A slow reader of a part has most of it still to take.
        let slow = world.client.get(&url).range(&span(12, 20)).open().await.unwrap();
        // It takes the remaining room, and stays.
        let filler = Page::new(noise(10, 44 * MIB)).fault(Fault::Hold(44 * MIB - 1, other.clone()));
        let filler = world.origin.put("/files/filler.bin", filler);
        let mut filler = world.client.get(&filler).open().await.unwrap();
        assert!(filler.read(43 * MIB).await);
        let wanted = body.clone();
        let first = tokio::spawn(async move { first.equals(&wanted).await });
        gate.open();
        for (start, end, part) in parts {
            assert!(part.equals(&body[start * MIB..end * MIB]).await, "{cap} {kind} {start}");
        }
        assert!(slow.equals(&body[12 * MIB..20 * MIB]).await, "{cap} {kind}");
        assert_eq!(first.await.unwrap(), kind != "wrong", "{cap} {kind}");
        let full = ("larder_alarms_total", "kind=\"full\"");
        if cap == 70 {
            world.proxy.counted(full.0, full.1, 1.0).await;
        } else {
            assert!(world.proxy.metric(full.0, full.1).await < 1.0, "{cap} {kind}: the control");
        }
        other.open();
        assert!(filler.rest().await.is_complete());
        if kind != "wrong" {
            assert_eq!(world.fetch(&url).await.is_hit(), cap == 400, "{kind}: it is not kept");
        }
    }
}

const HUGE: usize = 2048 * MIB;

/// An origin of a huge body that counts the bytes it sent of a part, and notes when the part is abandoned. The whole body stands
/// still.
fn put_huge(
    world: &World,
    given: &Arc<AtomicU64>,
    given_up: &Arc<AtomicBool>,
    gate: &Gate,
) -> String {
    let (count, left, gate) = (Arc::clone(given), Arc::clone(given_up), gate.clone());
    world.origin.script("/files/huge.bin", move |asked| {
        let is_part = asked.headers().contains_key(header::RANGE);
        let (count, left, gate) = (Arc::clone(&count), Arc::clone(&left), gate.clone());
        async move {
            let (give, from) = tokio::sync::mpsc::channel(1);
            let mut response = Response::new(fed(from));
            let headers = response.headers_mut();
            headers.insert("etag", "\"v1\"".parse().unwrap());
            headers.insert("accept-ranges", "bytes".parse().unwrap());
            let mut length = HUGE;
            if is_part {
                length -= 8 * MIB;
                let range = format!("bytes {}-{}/{HUGE}", 8 * MIB, HUGE - 1);
                headers.insert("content-range", range.parse().unwrap());
            }
            headers.insert("content-length", length.into());
            if is_part {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            }
            tokio::spawn(async move {
                let piece = noise(11, 128 << 10);
                for number in 0..length / piece.len() {
                    if !is_part && number * piece.len() >= 2 * MIB {
                        gate.passed().await;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if give.send(Ok(Frame::data(piece.clone()))).await.is_err() {
                        left.fetch_or(is_part, Ordering::SeqCst);
                        return;
                    }
                    if is_part {
                        count.fetch_add(piece.len() as u64, Ordering::SeqCst);
                    }
                }
            });
            response
        }
    })
}

/// A part of which hundreds of megabytes are missing, and for which no client waits, is abandoned, as a fill is (promise P7).
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_nobody_waits_for_is_given_up() {
    for leaves in [true, false] {
        let world = World::new().await;
        let gate = Gate::closed();
        let (given, given_up) = (Arc::default(), Arc::default());
        let url = put_huge(&world, &given, &given_up, &gate);
        let mut first = world.client.get(&url).open().await.unwrap();
        assert!(first.read(MIB).await);
        let range = format!("{}-", 8 * MIB);
        let mut ahead = world.client.get(&url).range(&range).open().await.unwrap();
        assert!(ahead.read(MIB).await);
        if leaves {
            drop((first, ahead));
            eventually("the part is given up", || async { given_up.load(Ordering::SeqCst) }).await;
        } else {
            // The control: while one client stays, it continues.
            drop(ahead);
            let by_now = given.load(Ordering::SeqCst);
            eventually("it goes on", || async {
                given.load(Ordering::SeqCst) > by_now + 16 * MIB as u64
            })
            .await;
            assert!(!given_up.load(Ordering::SeqCst));
        }
        gate.open();
    }
}
