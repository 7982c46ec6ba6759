//! P3: a body that breaks a binding promise is completed for nobody, over any number of connections and ranges, and is
//! stored nowhere. Each attack stands beside its control: without a promise the same bytes go through.

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple, wheel_path};
use crate::world::{End, Got, Page, World, eventually, holding, noise};
use std::time::Duration;

/// The silence after a rejection, and a little.
const SILENCE: Duration = Duration::from_secs(61);

/// The bytes that stand in the middle of every tampered body, to be looked for on disk.
fn marker(body: &[u8]) -> &[u8] {
    let middle = body.len() / 2;
    &body[middle..middle + 32]
}

/// Nobody has it, nothing is stored, it is counted.
async fn assert_refused(world: &World, got: &Got, tampered: &[u8]) {
    assert!(!got.is_complete(), "{} {:?} {}", got.status, got.end, got.cache_status());
    assert!(got.body.len() < tampered.len());
    if got.status.is_success() {
        assert_eq!(got.end, End::Reset, "a quiet close is taken for the end by many");
    }
    eventually("nothing is kept", || async {
        holding(&world.proxy.data, marker(tampered)).is_empty()
    })
    .await;
    assert!(world.proxy.metric("larder_rejected_total", "").await >= 1.0);
}

/// pulpcore#5012: bytes went out before they were checked, and the end with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_body_under_a_digest_is_completed_for_nobody() {
    for len in [1000, 100_000, 300_000, 3_000_000] {
        for (h2, chunked) in [(false, false), (true, false), (false, true), (true, true)] {
            let world = World::new().await;
            let right = noise(1, len);
            let wrong = flipped(&right);
            let page = Page::new(wrong.clone());
            let url =
                world.origin.put(&by_hash(&right), if chunked { page.chunked() } else { page });
            let ask = world.client.get(&url);
            let got = if h2 { ask.h2().send().await } else { ask.send().await };
            assert_refused(&world, &got, &wrong).await;
        }
    }
}

/// artifact-keeper#3488: a check that refuses everything is no check. No promise, no refusal.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_promise_the_same_bytes_go_through() {
    let world = World::new().await;
    let wrong = flipped(&noise(1, 3_000_000));
    let url = world.origin.put("/some/file.bin", Page::new(wrong.clone()));
    assert_eq!(world.fetch(&url).await.body, wrong);
    let right = noise(2, 3_000_000);
    let url = world.origin.put(&by_hash(&right), Page::new(right.clone()));
    assert_eq!(world.fetch(&url).await.body, right);
    // The search that finds nothing after a rejection finds what is kept.
    assert!(!holding(&world.proxy.data, marker(&right)).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_wrong_body_is_fetched_once_more_and_then_told() {
    let world = World::new().await;
    let right = noise(3, 10_000);
    let path = by_hash(&right);
    let url = world.origin.put(&path, Page::new(flipped(&right)));
    let got = world.get(&url).await;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert_eq!(got.status.as_u16(), 502, "{text}");
    assert!(text.contains(&path[path.len() - 64..]), "which digest was promised: {text}");
    let asked = world.origin.asked(&path);
    assert_eq!(asked.len(), 2);
    assert_ne!(asked[0].connection, asked[1].connection, "the retry is on a fresh connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_wrong_only_once_is_mended_unnoticed() {
    let world = World::new().await;
    let right = noise(4, 10_000);
    let path = by_hash(&right);
    let (first, then) = (flipped(&right), right.clone());
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let url = world.origin.script(&path, move |_| {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let body = if number == 0 { first.clone().into() } else { then.clone() };
        async move { hyper::Response::new(crate::world::page::whole(body)) }
    });
    assert_eq!(world.fetch(&url).await.body, right);
    assert!(world.fetch(&url).await.is_hit());
}

/// `wget` and `apt-helper` resume by themselves after a cut and end with a complete file and exit code 0.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_rejection_no_byte_leaves_for_a_minute() {
    let world = World::new().await;
    let right = noise(5, 1_000_000);
    let wrong = flipped(&right);
    let path = by_hash(&right);
    let url = world.origin.put(&path, Page::new(wrong.clone()).etag("v1"));
    let first = world.get(&url).await;
    assert_refused(&world, &first, &wrong).await;
    let (asked, have) = (world.origin.total(), first.body.len());
    for range in [
        None,
        Some(format!("{have}-")),
        Some("-65536".to_owned()),
        Some("999999-999999".to_owned()),
    ] {
        let ask = world.client.get(&url);
        let got =
            if let Some(range) = &range { ask.range(range).send().await } else { ask.send().await };
        assert!(!got.status.is_success(), "{range:?}: {}", got.status);
    }
    assert_eq!(world.origin.total(), asked, "the origin is left alone meanwhile");
    // Healed, and asked after the silence: all is well.
    world.origin.put(&path, Page::new(right.clone()).etag("v2"));
    world.proxy.clock.advance(SILENCE);
    assert_eq!(world.fetch(&url).await.body, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_ranges_side_by_side_never_make_the_whole() {
    const PARTS: usize = 16;
    for shuffled in [false, true] {
        let world = World::new().await;
        let right = noise(6, 4 << 20);
        let wrong = flipped(&right);
        let url = world.origin.put(&by_hash(&right), Page::new(wrong.clone()).etag("v1"));
        let step = wrong.len() / PARTS;
        let mut parts = tokio::task::JoinSet::new();
        for number in 0..PARTS {
            // From the end in the second round: the range that needs the end comes first.
            let number = if shuffled { PARTS - 1 - number } else { number };
            let (from, to) = (number * step, (number + 1) * step);
            let ask = world.client.get(&url).range(&format!("{from}-{}", to - 1));
            parts.spawn(async move { (from, ask.send().await) });
        }
        let mut have = vec![false; wrong.len()];
        while let Some(part) = parts.join_next().await {
            let (from, got) = part.unwrap();
            if got.status.is_success() {
                have[from..from + got.body.len()].fill(true);
            }
        }
        let missing = have.iter().filter(|given| !**given).count();
        assert!(missing >= 64 * 1024, "only {missing} bytes were held back over all connections");
        assert!(holding(&world.proxy.data, marker(&wrong)).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_range_after_another_never_makes_the_whole() {
    let world = World::new().await;
    let right = noise(7, 1 << 20);
    let wrong = flipped(&right);
    let url = world.origin.put(&by_hash(&right), Page::new(wrong.clone()).etag("v1"));
    let mut have = vec![false; wrong.len()];
    // The end, the beginning, then every gap that is left: what a patient client would do.
    for (from, to) in
        [(wrong.len() - 1000, wrong.len()), (0, wrong.len() / 2), (wrong.len() / 2, wrong.len())]
    {
        let got = world.client.get(&url).range(&format!("{from}-{}", to - 1)).send().await;
        if got.status.is_success() {
            have[from..from + got.body.len()].fill(true);
        }
    }
    assert!(have.iter().any(|given| !given), "every byte of a refused body was given");
}

/// What an index promises inside its root, wrong bytes cannot pass; a URL's name alone says nothing here.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_the_root_refuses() {
    for json in [false, true] {
        let world = World::new().await;
        let right = noise(8, 1_000_000);
        let wrong = flipped(&right);
        let index = put_simple(
            &world.origin,
            "/",
            "demo",
            &[("../../files/demo-1.0-py3-none-any.whl", &right)],
        );
        let ask = world.client.get(&index);
        let ask =
            if json { ask.header("accept", "application/vnd.pypi.simple.v1+json") } else { ask };
        ask.send().await.complete();
        let url = world.origin.put(&plain_wheel("demo"), Page::new(wrong.clone()));
        let got = world.get(&url).await;
        assert_refused(&world, &got, &wrong).await;
        // The control: another file of the same origin of which nobody said anything.
        let url = world.origin.put("/other/demo-1.0.bin", Page::new(wrong.clone()));
        assert_eq!(world.fetch(&url).await.body, wrong);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_convention_refuses_after_it_matched_three_times() {
    let world = World::new().await;
    // Before: the name merely confirms, and wrong bytes are the origin's own affair.
    let right = noise(8, 500_000);
    let wrong = flipped(&right);
    let url = world.origin.put(&wheel_path("early", &right), Page::new(wrong.clone()));
    assert_eq!(world.fetch(&url).await.body, wrong);

    let other = world.another("127.0.0.2").await;
    for number in 0..3 {
        let body = noise(10 + number, 10_000);
        let url = other.put(&wheel_path("good", &body), Page::new(body.clone()));
        assert_eq!(world.fetch(&url).await.body, body);
    }
    let right = noise(9, 500_000);
    let wrong = flipped(&right);
    let url = other.put(&wheel_path("late", &right), Page::new(wrong.clone()));
    let got = world.get(&url).await;
    assert_refused(&world, &got, &wrong).await;
}

/// HTTP/1.0 and bodies without framing end with the connection: nothing of them can be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_end_is_the_connections_is_held_whole() {
    let world = World::new().await;
    let right = noise(11, 1_000_000);
    for (body, good) in [(flipped(&right), false), (right.to_vec(), true)] {
        let other = world.another("127.0.0.1").await;
        let path = by_hash(&right);
        other.put(&path, Page::new(body));
        let text = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", other.authority());
        let mut stream = world.client.inside(&other.authority()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        let mut bytes = Vec::new();
        let _ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await;
        let sent = bytes.windows(1000).any(|window| *window == right[..1000]);
        assert_eq!(sent, good, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
    }
}

/// A wrong body's end is the one thing held back; its beginning is not, and right bodies lose nothing by it.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_before_the_end_is_known() {
    let world = World::new().await;
    let right = noise(12, 1_000_000);
    let gate = crate::world::Gate::closed();
    let page = Page::new(right.clone()).fault(crate::world::Fault::Hold(900_000, gate.clone()));
    let url = world.origin.put(&by_hash(&right), page);
    let mut opened = world.client.get(&url).open().await.unwrap();
    assert!(opened.read(800_000).await);
    assert_eq!(opened.so_far()[..800_000], right[..800_000]);
    gate.open();
    assert!(opened.equals(&right).await);
}

/// ntopng#1489, athens#2145: the same name, other bytes. The index that says so wins, and both are right in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_published_anew_is_fetched_anew() {
    let world = World::new().await;
    let (old, new) = (noise(13, 400_000), noise(14, 400_000));
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &old)]);
    world.fetch(&index).await;
    let url = world.origin.put(&plain_wheel("demo"), Page::new(old.clone()));
    assert_eq!(world.fetch(&url).await.body, old);
    assert!(world.fetch(&url).await.is_hit());
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    world.origin.put(&plain_wheel("demo"), Page::new(new.clone()));
    world.proxy.clock.advance(Duration::from_hours(1));
    world.client.get(&index).header("cache-control", "max-age=0").send().await.complete();
    assert_eq!(world.fetch(&url).await.body, new);
    assert!(world.fetch(&url).await.is_hit());
}

/// An index that has gone stale accuses nobody: it is asked again before larder refuses on its word.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_asked_again_before_its_word_refuses() {
    let world = World::new().await;
    let (old, new) = (noise(15, 400_000), noise(16, 400_000));
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &old)]);
    world.fetch(&index).await;
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    let url = world.origin.put(&plain_wheel("demo"), Page::new(new.clone()));
    assert_eq!(world.fetch(&url).await.body, new);
    assert!(world.origin.gets("/simple/demo/") >= 2);
}

/// Signed CDN URLs: the redirect is followed inside, its token is stored nowhere, and the next one hits.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_a_proven_artifact_is_followed_inside() {
    let world = World::new().await;
    let cdn = world.another("127.0.0.2").await;
    let right = noise(17, 400_000);
    let path = by_hash(&right);
    let signed = cdn.put("/blob?X-Amz-Signature=s3cr3t-t0ken", Page::new(right.clone()));
    let url = world.origin.put(&path, Page::redirect(302, &signed));
    let first = world.fetch(&url).await;
    assert_eq!((first.status.as_u16(), &first.body), (200, &right));
    assert!(world.fetch(&url).await.is_hit());
    assert_eq!(world.origin.gets(&path), 1);
    assert!(holding(&world.proxy.data, b"s3cr3t-t0ken").is_empty());
}

/// Hub clients read headers off a 302, and relative links of an index resolve against the redirected URL.
#[tokio::test(flavor = "multi_thread")]
async fn every_other_redirect_reaches_the_client_as_it_came() {
    let world = World::new().await;
    let page = Page::redirect(302, "/elsewhere")
        .header("x-repo-commit", "c0ffee")
        .header("x-linked-etag", "\"x\"");
    let url = world.origin.put("/models/file", page);
    let got = world.get(&url).await;
    assert_eq!((got.status.as_u16(), got.text("location")), (302, "/elsewhere"));
    assert_eq!((got.text("x-repo-commit"), got.text("x-linked-etag")), ("c0ffee", "\"x\""));
    assert!(world.origin.asked("/elsewhere").is_empty());
}

/// urllib says `Connection: close`, and so an answer to it ends with the connection in any case.
#[tokio::test(flavor = "multi_thread")]
async fn the_cut_of_a_connections_last_answer_is_a_reset_too() {
    for version in ["1.1", "1.0"] {
        let world = World::new().await;
        let right = noise(18, 3_000_000);
        let path = by_hash(&right);
        // The rest comes when the client has some: a body that is refused before anybody was given a byte is an error in words.
        let gate = crate::world::Gate::closed();
        let page = Page::new(flipped(&right));
        world.origin.put(&path, page.fault(crate::world::Fault::Hold(2_000_000, gate.clone())));
        let authority = world.origin.authority();
        let mut stream = world.client.dial().await;
        let connect = format!("CONNECT {authority} HTTP/{version}\r\nHost: {authority}\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, connect.as_bytes()).await.unwrap();
        crate::world::client::read_head(&mut stream).await;
        let mut stream = world.client.tls(stream, "127.0.0.1", &["http/1.1"]).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut start = [0; 1000];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut start).await.unwrap();
        assert!(start.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&start));
        gate.open();
        let (_, end) = crate::world::client::read_all(&mut stream).await;
        assert_eq!(end, End::Reset, "HTTP/{version}");
    }
}

/// wget resumes by itself after a broken transfer: what one fill gave and the next one gives never make the whole together.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_after_a_broken_fill_never_makes_the_whole() {
    let world = World::new().await;
    let right = noise(19, 20 << 20);
    let wrong = flipped(&right);
    // Larder resumes it, so that its mismatch is no rejection yet; the client resumes by itself, and far enough ahead for
    // a request beside the fill.
    let page = Page::new(wrong.clone()).etag("v1").fault(crate::world::Fault::CutOnce(10 << 20));
    let url = world.origin.put(&by_hash(&right), page);
    let first = world.get(&url).await;
    assert!(first.end != End::Complete && first.body.len() > 10 << 20);
    let second = world.client.get(&url).range(&format!("{}-", first.body.len())).send().await;
    assert!(
        !second.is_complete(),
        "{} + {} bytes of a wrong body",
        first.body.len(),
        second.body.len()
    );
}

/// A range that does not need the end takes nothing from those who want the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_in_the_middle_moves_no_gap() {
    let world = World::new().await;
    let right = noise(20, 4 << 20);
    let gate = crate::world::Gate::closed();
    let page = Page::new(right.clone())
        .without_ranges()
        .fault(crate::world::Fault::Hold(3 << 20, gate.clone()));
    let url = world.origin.put(&by_hash(&right), page);
    let middle = world.client.get(&url).range("1000000-1000099");
    assert_eq!(middle.send().await.body, right[1_000_000..1_000_100]);
    let mut whole = world.client.get(&url).open().await.unwrap();
    assert!(whole.read(2 << 20).await);
    gate.open();
    assert!(whole.equals(&right).await);
}

/// A pass is held to the promise too, and what it gave is remembered: no range of a later fill completes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_and_a_fill_never_make_the_whole() {
    let world = World::new().await;
    let right = noise(21, 20 << 20);
    let wrong = flipped(&right);
    let url = world.origin.put(&by_hash(&right), Page::new(wrong).etag("v1"));
    let ask = world.client.get(&url).header("x-unheard-of", "1");
    let first = ask.send().await;
    assert!(!first.is_complete() && !first.body.is_empty());
    world.proxy.clock.advance(SILENCE);
    let rest = format!("{}-", first.body.len());
    let second = world.client.get(&url).range(&rest).send().await;
    assert!(!second.is_complete(), "{} bytes", second.body.len());
}

/// Two passes of one client side by side: that one was right forgets nothing of what the other gave.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_is_right_leaves_anothers_gap_alone() {
    let world = World::new().await;
    let right = noise(23, 20 << 20);
    let gates = [crate::world::Gate::closed(), crate::world::Gate::closed()];
    let path = by_hash(&right);
    let held = |body: &[u8], gate: &crate::world::Gate| {
        let fault = crate::world::Fault::Hold(1 << 20, gate.clone());
        world.origin.put(&path, Page::new(body.to_vec()).etag("v1").fault(fault))
    };
    let url = held(&right, &gates[0]);
    let pass = || world.client.get(&url).header("x-unheard-of", "1");
    let mut good = pass().open().await.unwrap();
    assert!(good.read(500_000).await);
    let wrong = flipped(&right);
    held(&wrong, &gates[1]);
    let mut bad = pass().open().await.unwrap();
    assert!(bad.read(500_000).await);
    gates[0].open();
    assert_eq!(good.rest().await.complete().body, right);
    gates[1].open();
    let first = bad.rest().await;
    assert!(!first.is_complete() && first.body.len() >= 500_000);
    world.origin.put(&path, Page::new(wrong).etag("v1"));
    world.proxy.clock.advance(SILENCE);
    let rest = format!("{}-", first.body.len());
    let second = world.client.get(&url).range(&rest).send().await;
    assert!(!second.is_complete(), "{} bytes", second.body.len());
}

/// The words of an index hold for passes: it is asked again, and then its word refuses.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_refuses_what_a_pass_brings() {
    let world = World::new().await;
    let right = noise(22, 1_000_000);
    let wrong = flipped(&right);
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &right)]);
    world.fetch(&index).await;
    let path = plain_wheel("demo");
    let url = world.origin.put(&path, Page::new(wrong.clone()));
    let with = || world.client.get(&url).header("authorization", "Basic eDp5").send();
    let got = with().await;
    assert!(!got.is_complete() && got.body.len() < wrong.len());
    // The control: what the index says by now is right, though larder has not heard of it.
    let new = noise(23, 1_000_000);
    world.proxy.clock.advance(SILENCE);
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    world.origin.put(&path, Page::new(new.clone()));
    assert_eq!(with().await.complete().body, new);
}

/// The end of an empty body is there with its head.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_wrong_body_is_refused_to_a_pass_too() {
    for pass in [false, true] {
        for h2 in [false, true] {
            let world = World::new().await;
            let url = world.origin.put(&by_hash(b"something"), Page::new(""));
            let ask = world.client.get(&url);
            let ask = if pass { ask.header("x-unheard-of", "1") } else { ask };
            let got = if h2 { ask.h2().send().await } else { ask.send().await };
            assert!(!got.is_complete(), "pass={pass} h2={h2}");
        }
    }
}

/// What was not computed is no mismatch (artifact-keeper#3488): the index changes its algorithm while the file arrives.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_changes_its_algorithm_refuses_nothing_right() {
    let world = World::new().await;
    let (old, new) = (noise(24, 400_000), noise(25, 400_000));
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &old)]);
    world.fetch(&index).await;
    let sha512 = crate::world::archive::hex(larder::digest::Algorithm::Sha512, &new);
    let html = format!(
        "<!DOCTYPE html><html><body><a href=\"{link}#sha512={sha512}\">x</a></body></html>"
    );
    let page = Page::new(html).header("content-type", "text/html");
    world.origin.put("/simple/demo/", page);
    let url = world.origin.put(&plain_wheel("demo"), Page::new(new.clone()));
    assert_eq!(world.fetch(&url).await.body, new);
    assert!(world.fetch(&url).await.is_hit());
}

/// A client that asks for the end of a large file and leaves makes nobody else wait for the last byte before the second one: a
/// gap moves only for ranges of the second half.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_a_client_moved_and_left_behind_leaves_the_beginning_to_others() {
    for (range, given) in [("131072-", 900_000), ("900000-", 800_000)] {
        let world = World::new().await;
        let right = noise(26, 1 << 20);
        let gate = crate::world::Gate::closed();
        let path = by_hash(&right);
        // The end, and then the fill breaks: as when nobody reads any more and much is still to come.
        let cut = crate::world::Fault::Cut(950_000);
        let broken = Page::new(right.clone()).etag("v1").fault(cut);
        let url = world.origin.put(&path, broken.without_ranges());
        let end = world.client.get(&url).range(range).send().await;
        assert!(!end.body.is_empty() && !end.is_complete(), "{} {:?}", end.status, end.end);
        let hold = crate::world::Fault::Hold(950_000, gate.clone());
        world.origin.put(&path, Page::new(right.clone()).etag("v1").fault(hold));
        for address in ["127.0.0.1", "127.0.0.9"] {
            let mut other = world.client.get(&url).from(address).open().await.unwrap();
            assert!(other.read(given).await, "{range} {address}");
            // The control: the gap is where it was, for whoever asks.
            let most = if range == "131072-" { right.len() - 65_536 } else { 900_000 - 65_536 };
            assert!(other.so_far().len() <= most, "{range} {address}");
            drop(other);
        }
        gate.open();
        assert_eq!(world.fetch(&url).await.body, right);
    }
}

/// Ctrl-C, and once more: another body of the same length has its gap where the first one had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_its_client_left_denies_the_file_to_nobody() {
    let world = World::new().await;
    let right = noise(27, 20 << 20);
    let gate = crate::world::Gate::closed();
    for chunked in [false, true] {
        let path = by_hash(&right[usize::from(chunked)..]);
        let right = right.slice(usize::from(chunked)..);
        let page = |page: Page| if chunked { page.chunked() } else { page };
        let stopped =
            Page::new(right.clone()).fault(crate::world::Fault::Hold(1 << 20, gate.clone()));
        let url = world.origin.put(&path, page(stopped));
        let ask = || world.client.get(&url).header("x-unheard-of", "1");
        let mut left = ask().open().await.unwrap();
        assert!(left.read(500_000).await);
        drop(left);
        world.origin.put(&path, page(Page::new(right.clone())));
        for who in ["127.0.0.1", "127.0.0.9"] {
            assert_eq!(ask().from(who).send().await.complete().body, right, "{chunked} {who}");
        }
        // A fill waits for nothing, either.
        assert_eq!(world.fetch(&url).await.body, right, "{chunked}");
    }
}

/// Clients complete a file with any 2xx: what an origin says of its own answer takes no promise away.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_success_brings_what_a_promise_refuses() {
    let world = World::new().await;
    let page = |status: u16, body: &[u8]| {
        let mut page = Page::new(body.to_vec());
        page.status = hyper::StatusCode::from_u16(status).unwrap();
        if status == 206 { page.header("content-range", "bytes 0-399999/400000") } else { page }
    };
    for (seed, status) in [(30, 203), (40, 206)] {
        // What comes to a fill cannot be kept and is asked for again by a pass; or it is a pass from the start.
        for (seed, field) in [(seed, "accept"), (seed + 1, "x-unheard-of")] {
            let right = noise(seed, 400_000);
            let wrong = flipped(&right);
            let promised = world.origin.put(&by_hash(&right), page(status, &wrong));
            let bare = world.origin.put(&format!("/some/{seed}.bin"), page(status, &wrong));
            let ask = |url: &str| world.client.get(url).header(field, "*/*");
            let got = ask(&promised).send().await;
            assert!(!got.is_complete(), "{status} {field}: {} bytes", got.body.len());
            world.proxy.clock.advance(SILENCE);
            let got = ask(&promised).range("200000-").send().await;
            assert!(!got.is_complete(), "{status} {field}: {} bytes of the rest", got.body.len());
            let got = ask(&bare).send().await;
            assert!(got.is_complete() && got.body == wrong, "the control: {status} {field}");
        }
    }
    let right = noise(50, 400_000);
    let url = world.origin.put(&by_hash(&right), page(203, &right));
    assert_eq!(world.fetch(&url).await.body, right, "what was promised passes");
}
