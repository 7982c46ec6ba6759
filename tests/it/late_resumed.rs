//! Promise P3 for bodies of which almost everything was given before a promise came (issue 10, the kind of rows 1 to 3). From then
//! on nothing of the rest is given before a body is verified, however the client asks for it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use hyper::header;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::late::{GAP, MIB, ODD, publish};
use crate::world::archive::{flipped, plain_wheel, wheel_path};
use crate::world::client::Ask;
use crate::world::page::fed;
use crate::world::{Fault, Gate, Page, World, eventually, noise};

const LENGTH: usize = 3 * MIB;

/// What the first client still lacks when the promise comes.
const LEFT: usize = 10;

type Feed = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// Puts `page` at `path`. The test itself feeds the body of the first answer, and of each answer to a range if `ranges`.
fn put(world: &World, path: &str, page: &Page, ranges: bool) -> (String, UnboundedReceiver<Feed>) {
    let (feeds, fed_bodies) = mpsc::unbounded_channel();
    let (page, first) = (page.clone(), std::sync::atomic::AtomicBool::new(true));
    let url = world.origin.script(path, move |asked| {
        let mut answer = page.clone().answer(asked.method(), asked.headers());
        let is_first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        if is_first || ranges && asked.headers().contains_key(header::RANGE) {
            let (feed, body) = mpsc::channel(4);
            feeds.send(feed).unwrap();
            *answer.body_mut() = fed(body);
        }
        async move { answer }
    });
    (url, fed_bodies)
}

async fn feed(to: &Feed, bytes: &[u8]) {
    to.send(Ok(Frame::data(Bytes::copy_from_slice(bytes)))).await.unwrap();
}

/// How many bytes of a body of `length` are in none of `spans`.
fn missing(length: usize, spans: &[(usize, usize)]) -> usize {
    let mut have = vec![false; length];
    for (start, end) in spans {
        have[*start..*end].fill(true);
    }
    have.iter().filter(|have| !**have).count()
}

/// What the first client asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    /// The whole file, by its own request.
    Pass,
    /// A part of it, by its own request.
    Part,
    /// The whole file, by its own request; its origin calls it gzip, as many do that send a `.gz` file.
    Coded,
    /// The whole file, which larder would keep.
    Fill,
}

/// What happens to the first answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Nothing more arrives.
    Idle,
    /// Its client leaves after the promise.
    Left,
    /// Its origin breaks it off after the promise.
    Broken,
    /// The same, and larder is restarted.
    Restarted,
    /// Its origin breaks it off before the promise.
    BrokenBefore,
    /// The same, and larder is restarted before the promise.
    RestartedBefore,
}

impl Fate {
    fn is_before(self) -> bool {
        matches!(self, Self::BrokenBefore | Self::RestartedBefore)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_lacks_when_a_promise_comes_is_withheld_until_a_body_is_verified() {
    for first in [First::Pass, First::Part, First::Coded, First::Fill] {
        for fate in [
            Fate::Idle,
            Fate::Left,
            Fate::Broken,
            Fate::Restarted,
            Fate::BrokenBefore,
            Fate::RestartedBefore,
        ] {
            // A client of a fill that is idle joins that fill, and its origin is the one that decides.
            if first == First::Fill && matches!(fate, Fate::Idle | Fate::Left) {
                continue;
            }
            for promised in [true, false] {
                let missing = lacked(first, fate, promised).await;
                let case = format!("{first:?} {fate:?}: {missing} are missing");
                if promised {
                    assert!(missing >= LEFT, "{case}");
                } else {
                    assert_eq!(missing, 0, "the control: {case}");
                }
            }
        }
    }
}

/// How many bytes the first client lacks in the end, whatever it asks for after the promise.
async fn lacked(first: First, fate: Fate, promised: bool) -> usize {
    let mut world = World::new().await;
    let right = noise(1, LENGTH);
    let wrong = Bytes::from(flipped(&right));
    let path = plain_wheel("demo");
    let mut page = Page::new(wrong.clone());
    if first == First::Coded {
        page = page.header("content-encoding", "gzip");
    }
    let (url, mut feeds) = put(&world, &path, &page, false);
    let start = if first == First::Part { MIB } else { 0 };
    let opening = tokio::spawn(first.ask(&world, &url, start).open());
    let origin = feeds.recv().await.unwrap();
    feed(&origin, &wrong[start..LENGTH - LEFT]).await;
    let mut got = opening.await.unwrap().unwrap();
    assert!(got.read(LENGTH - LEFT - start).await, "nothing is withheld before a promise comes");
    if promised && !fate.is_before() {
        publish(&world, "demo", &path, &right).await;
    }
    match fate {
        Fate::Idle => std::mem::forget(got),
        Fate::Left => {
            drop(got);
            origin.closed().await;
        }
        Fate::Broken | Fate::Restarted | Fate::BrokenBefore | Fate::RestartedBefore => {
            origin.send(Err(io::Error::other("the test cuts here"))).await.unwrap();
            assert!(!got.rest().await.is_complete());
        }
    }
    if fate == Fate::RestartedBefore {
        world.restart(|_| {}).await;
    }
    if promised && fate.is_before() {
        publish(&world, "demo", &path, &right).await;
    }
    if fate == Fate::Restarted {
        let noted = world.proxy.data.join("state/unverified");
        let is_noted =
            || async { !promised || std::fs::metadata(&noted).is_ok_and(|file| file.len() > 0) };
        eventually("it is noted on disk", is_noted).await;
        world.restart(|_| {}).await;
    }
    let mut spans = vec![(start, LENGTH - LEFT)];
    ask_for_the_rest(&world, &url, &mut spans).await;
    drop(origin);
    missing(LENGTH, &spans)
}

impl First {
    fn ask(self, world: &World, url: &str, start: usize) -> Ask {
        let ask = world.client.get(url);
        match self {
            Self::Pass | Self::Coded => ask.header(ODD, "1"),
            Self::Part => ask.header(ODD, "1").range(&format!("{start}-")),
            Self::Fill => ask,
        }
    }
}

/// Asks for ranges as clients that resume do, and adds what is given to `spans`.
async fn ask_for_the_rest(world: &World, url: &str, spans: &mut Vec<(usize, usize)>) {
    // A gap that could move would be moved below the first range.
    for (start, range) in [
        (LENGTH - 5 * GAP, format!("{}-", LENGTH - 5 * GAP)),
        (0, format!("0-{}", MIB - 1)),
        (LENGTH - LEFT, format!("{}-", LENGTH - LEFT)),
    ] {
        let got = world.client.get(url).range(&range).send().await;
        if got.status.is_success() {
            let start = if got.status == 206 { start } else { 0 };
            spans.push((start, start + got.body.len()));
        }
    }
}

/// A client that downloads in parts has one of them whole when the promise comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_complete_before_a_promise_is_not_completed_to_a_wrong_file() {
    for (chunked, lies) in [(false, false), (true, false), (false, true)] {
        for promised in [true, false] {
            let world = World::new().await;
            let right = noise(5, LENGTH);
            let path = plain_wheel("demo");
            let page = Page::new(flipped(&right));
            let page = if chunked { page.chunked() } else { page };
            let url = world.origin.script(&path, move |asked| {
                let mut answer = page.clone().answer(asked.method(), asked.headers());
                if lies && asked.headers().contains_key(ODD) {
                    // The client puts the bytes where it asked for them all the same.
                    let range = format!("bytes 0-{}/{LENGTH}", LENGTH - MIB - 1);
                    answer.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
                }
                async move { answer }
            });
            let end = world.client.get(&url).header(ODD, "1").range(&format!("{MIB}-"));
            let end = end.send().await.complete();
            if promised {
                publish(&world, "demo", &path, &right).await;
            }
            let start = world.client.get(&url).range(&format!("0-{}", MIB - 1)).send().await;
            let given = if start.status.is_success() { start.body.len() } else { 0 };
            let missing = missing(LENGTH, &[(0, given), (MIB, MIB + end.body.len())]);
            let case = format!("chunked: {chunked}, lies: {lies}, {} {given}", start.status);
            assert_eq!(missing >= GAP, promised, "{missing} are missing, {case}");
        }
    }
}

/// A body of which larder has sent all, and whose end is still in buffers when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    /// The answer to the client's own request.
    Passed,
    /// A fill.
    Filled,
    /// A stored body, long after it was filled.
    Stored,
}

/// An index that promises another body comes before the client asks for the end, and larder may be restarted before that.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_that_a_client_lacks_of_a_complete_body_is_withheld_once_it_is_promised() {
    for sent in [Sent::Passed, Sent::Filled, Sent::Stored] {
        for restarted in [false, true] {
            for promised in [true, false] {
                let got = end_of(sent, restarted, promised).await;
                let case = format!("{sent:?}, restarted: {restarted}");
                assert_eq!(got, if promised { 0 } else { LACKS }, "{case}");
            }
        }
    }
}

const LARGE: usize = 12 * MIB;
const LACKS: usize = 1000;

/// How many of the bytes that the client lacks it is given in the end.
async fn end_of(sent: Sent, restarted: bool, promised: bool) -> usize {
    let mut world = World::new().await;
    let right = noise(6, LARGE);
    let path = plain_wheel("demo");
    let gate = Gate::closed();
    let page = Page::new(flipped(&right)).etag("v1");
    let held = page.clone().fault(Fault::Hold(MIB, gate.clone()));
    let begun = std::sync::atomic::AtomicBool::new(false);
    let url = world.origin.script(&path, move |asked| {
        let is_part = asked.headers().contains_key(header::RANGE);
        let is_first = !is_part && !begun.swap(true, std::sync::atomic::Ordering::SeqCst);
        let mut page = if is_part || is_first { page.clone() } else { held.clone() };
        let answer = page.answer(asked.method(), asked.headers());
        async move { answer }
    });
    if sent == Sent::Stored {
        world.fetch(&url).await;
        world.proxy.clock.advance(Duration::from_hours(25));
    }
    let ask = world.client.get(&url);
    let ask = if sent == Sent::Passed { ask.header(ODD, "1") } else { ask };
    let mut got = ask.open().await.unwrap();
    assert!(got.read(LARGE - LACKS).await);
    let asked = world.origin.asked(&path).len();
    if promised && !restarted {
        publish(&world, "demo", &path, &right).await;
    }
    drop(got);
    if restarted {
        world.restart(|_| {}).await;
        if promised {
            publish(&world, "demo", &path, &right).await;
        }
    }
    let range = format!("{}-", LARGE - LACKS);
    let rest = tokio::spawn(world.client.get(&url).range(&range).send());
    if promised {
        let fill = || async { world.origin.asked(&path).len() > asked };
        eventually("a fill has begun", fill).await;
        // It is answered only after larder has decided about the range before it.
        world.client.get(&url).range("0-0").send().await.complete();
    }
    gate.open();
    let rest = rest.await.unwrap();
    if rest.status == 206 { rest.body.len() } else { 0 }
}

/// A complete body that is given while an index comes that promises another one: a stored body, or one whose fill ended before
/// its client had all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_complete_body_is_cut_when_a_promise_that_comes_contradicts_it() {
    for stored in [true, false] {
        for h2 in [false, true] {
            for range in [None, Some(MIB)] {
                for promised in [Promised::Nothing, Promised::Other, Promised::This] {
                    given_when_promised(stored, h2, range, promised).await;
                }
            }
        }
    }
}

async fn given_when_promised(stored: bool, h2: bool, range: Option<usize>, promised: Promised) {
    let world = World::new().await;
    let right = noise(7, LARGE);
    let body = match promised {
        Promised::This => right.clone(),
        Promised::Nothing | Promised::Other => Bytes::from(flipped(&right)),
    };
    let path = plain_wheel("demo");
    let url = world.origin.put(&path, Page::new(body.clone()).etag("v1"));
    if stored {
        world.fetch(&url).await;
    }
    let start = range.unwrap_or(0);
    let ask = match range {
        Some(start) => world.client.get(&url).range(&format!("{start}-")),
        None => world.client.get(&url),
    };
    let mut got = if h2 { ask.h2() } else { ask }.open().await.unwrap();
    assert!(got.read(MIB).await);
    if !stored {
        // The fill does not wait for a client that is slow.
        world.fetch(&url).await;
    }
    // A range may have been asked as a part of its own.
    let asked = world.origin.asked(&path).len();
    world.fetch(&url).await;
    assert_eq!(world.origin.asked(&path).len(), asked, "it is stored");
    if promised != Promised::Nothing {
        publish(&world, "demo", &path, &right).await;
    }
    let got = got.rest().await;
    let case = format!("{stored}, h2: {h2}, {range:?}, {promised:?}: {}", got.body.len());
    if promised == Promised::Other {
        assert!(!got.is_complete() && got.body.len() < LARGE - start, "{case}");
        let spans = [(start, start + got.body.len())];
        assert!(missing(LARGE, &spans) >= GAP, "{case}");
    } else {
        assert!(got.is_complete() && got.body == body[start..], "{case}");
    }
}

/// What an index says of a stored body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Promised {
    Nothing,
    Other,
    This,
}

/// A range that is fetched beside a fill is bound by a promise that comes as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_beside_a_fill_is_held_back_when_a_promise_comes() {
    for promised in [true, false] {
        let world = World::new().await;
        let right = noise(2, LARGE);
        let wrong = Bytes::from(flipped(&right));
        let path = plain_wheel("demo");
        let page = Page::new(wrong.clone()).etag("v1");
        let (url, mut feeds) = put(&world, &path, &page, true);
        let (far, half) = (LARGE - MIB / 2, LARGE - MIB / 4);
        let whole = tokio::spawn(world.client.get(&url).open());
        let fill = feeds.recv().await.unwrap();
        feed(&fill, &wrong[..MIB]).await;
        let mut whole = whole.await.unwrap().unwrap();
        assert!(whole.read(MIB).await);
        let range = tokio::spawn(world.client.get(&url).range(&format!("{far}-")).open());
        let beside = feeds.recv().await.unwrap();
        feed(&beside, &wrong[far..half]).await;
        let mut range = range.await.unwrap().unwrap();
        assert!(range.read(half - far).await);
        feed(&fill, &wrong[MIB..half]).await;
        assert!(whole.read(half).await);
        if promised {
            publish(&world, "demo", &path, &right).await;
        }
        feed(&beside, &wrong[half..]).await;
        drop(beside);
        let rest = tokio::spawn(range.rest());
        if promised {
            // The fill ends only after the range would have.
            let after = world.client.get(&url).header(ODD, "1").range("0-0").send().await;
            assert!(!after.is_complete() || after.body.len() == 1);
        } else {
            assert!(rest.await.unwrap().is_complete(), "the control");
            continue;
        }
        feed(&fill, &wrong[half..]).await;
        drop(fill);
        let (whole, range) = (whole.rest().await, rest.await.unwrap());
        assert!(!whole.is_complete() && !range.is_complete());
        let spans = [(0, whole.body.len()), (far, far + range.body.len())];
        assert_eq!(missing(LARGE, &spans), LARGE - half, "nothing more was given");
    }
}

/// A file that is an artifact only because an index names it, and whose bytes are on their way when that index comes.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_binds_a_file_that_it_makes_an_artifact() {
    for (odd, private) in [(false, false), (false, true), (true, false)] {
        for promise_it in [false, true] {
            let world = World::new().await;
            let right = noise(3, LENGTH);
            let wrong = Bytes::from(flipped(&right));
            let body = if promise_it { right.clone() } else { wrong };
            let path = "/files/demo-1.0.tar.gz";
            let mut page = Page::new(body.clone()).etag("v1");
            if private {
                page = page.header("cache-control", "private");
            }
            let (url, mut feeds) = put(&world, path, &page, false);
            let ask = world.client.get(&url);
            let opening = tokio::spawn(if odd { ask.header(ODD, "1") } else { ask }.open());
            let origin = feeds.recv().await.unwrap();
            feed(&origin, &body[..MIB]).await;
            let mut got = opening.await.unwrap().unwrap();
            assert!(got.read(MIB).await);
            publish(&world, "demo", path, &right).await;
            feed(&origin, &body[MIB..]).await;
            drop(origin);
            let got = got.rest().await;
            let case = format!("odd: {odd}, private: {private}: {} bytes", got.body.len());
            if promise_it {
                assert!(got.is_complete() && got.body == body, "the control: {case}");
            } else {
                assert!(!got.is_complete() && got.body.len() <= LENGTH - GAP, "{case}");
                world.proxy.counted("larder_rejected_total", "", 1.0).await;
            }
        }
    }
}

/// The digest in a name binds once three files have matched theirs below the same root, which may happen while a body arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_comes_to_be_believed_binds_a_body_on_its_way() {
    for (odd, private) in [(false, false), (false, true), (true, false)] {
        for (matches, wrong) in [(2, true), (3, true), (3, false)] {
            let world = World::new().await;
            let right = noise(4, LENGTH);
            let body = if wrong { Bytes::from(flipped(&right)) } else { right.clone() };
            let mut page = Page::new(body.clone()).etag("v1");
            if private {
                page = page.header("cache-control", "private");
            }
            let (url, mut feeds) = put(&world, &wheel_path("demo", &right), &page, false);
            let ask = world.client.get(&url);
            let opening = tokio::spawn(if odd { ask.header(ODD, "1") } else { ask }.open());
            let origin = feeds.recv().await.unwrap();
            feed(&origin, &body[..MIB]).await;
            let mut got = opening.await.unwrap().unwrap();
            assert!(got.read(MIB).await);
            for number in 0..matches {
                let other = noise(10 + number, 1000);
                let path = wheel_path("other", &other);
                world.fetch(&world.origin.put(&path, Page::new(other.clone()))).await;
            }
            feed(&origin, &body[MIB..]).await;
            drop(origin);
            let got = got.rest().await;
            let case = format!("odd: {odd}, private: {private}, {matches} matches");
            if matches == 3 && wrong {
                assert!(!got.is_complete() && got.body.len() <= LENGTH - GAP, "{case}");
            } else {
                assert!(got.is_complete() && got.body == body, "the control: {case}");
            }
        }
    }
}
