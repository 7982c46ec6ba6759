//! P3: a body that breaks a binding promise is completed for no client, over any number of connections and ranges, and is stored
//! nowhere. Each attack has its control: without a promise the same bytes are given.

use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple, wheel_path};
use crate::world::{End, Got, Page, World, eventually, holding, noise};
use std::time::Duration;

/// A little more than the quarantine after a refusal.
const SILENCE: Duration = Duration::from_secs(61);

/// The bytes in the middle of every tampered body, for searching the disk.
fn marker(body: &[u8]) -> &[u8] {
    let middle = body.len() / 2;
    &body[middle..middle + 32]
}

/// No client has the whole body, nothing is stored, and the refusal is counted.
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
    world.proxy.counted("larder_rejected_total", "", 1.0).await;
}

/// pulpcore#5012: bytes were sent before they were checked, including the last ones.
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

/// artifact-keeper#3488: a check that refuses everything is no check. Without a promise nothing is refused.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_promise_the_same_bytes_go_through() {
    let world = World::new().await;
    let wrong = flipped(&noise(1, 3_000_000));
    let url = world.origin.put("/some/file.bin", Page::new(wrong.clone()));
    assert_eq!(world.fetch(&url).await.body, wrong);
    let right = noise(2, 3_000_000);
    let url = world.origin.put(&by_hash(&right), Page::new(right.clone()));
    assert_eq!(world.fetch(&url).await.body, right);
    // The search that finds nothing after a refusal finds a body that is kept.
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

/// `wget` and `apt-helper` resume by themselves after a broken transfer, and end with a complete file and exit code 0.
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
    // The origin is repaired, and asked after the quarantine: the right body is given.
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
            // In reverse in the second round, so that the range that needs the end comes first.
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
    // The end, the beginning, then the rest: what a patient client would request.
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

/// Wrong bytes cannot pass an index's promise inside its root; the URL alone contains no digest here.
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
        // The control: a file of the same origin that no index names.
        let url = world.origin.put("/other/demo-1.0.bin", Page::new(wrong.clone()));
        assert_eq!(world.fetch(&url).await.body, wrong);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_convention_refuses_after_it_matched_three_times() {
    let world = World::new().await;
    // Before the convention is believed, the name only confirms, and wrong bytes are given as the origin sends them.
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

/// HTTP/1.0 answers and bodies without framing end with the connection, so that a client cannot see that they are truncated.
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

/// Only the end of a wrong body is withheld; its beginning is given, and right bodies are given whole.
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

/// ntopng#1489, athens#2145: the same name with other bytes. The newest index decides, and each body is right in its time.
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

/// An outdated index refuses nothing: it is asked again before its claim refuses a body.
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

/// Signed CDN URLs: larder follows the redirect itself, stores its token nowhere, and the next request is a hit.
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

/// Hub clients read header fields of a 302, and relative links in an index are resolved against the redirected URL.
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

/// urllib sends `Connection: close`, so the connection ends with the answer in any case.
#[tokio::test(flavor = "multi_thread")]
async fn the_cut_of_a_connections_last_answer_is_a_reset_too() {
    for version in ["1.1", "1.0"] {
        let world = World::new().await;
        let right = noise(18, 3_000_000);
        let path = by_hash(&right);
        // The rest is sent once the client has some bytes: a body that is refused before that is an error response.
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

/// wget resumes by itself after a broken transfer: the bytes of one fill and those of the next never make the whole body
/// together.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_after_a_broken_fill_never_makes_the_whole() {
    let world = World::new().await;
    let right = noise(19, 20 << 20);
    let wrong = flipped(&right);
    // larder resumes the transfer, so that a mismatch is no refusal yet. The client also resumes by itself, far enough ahead for
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

/// A range that does not need the end does not affect clients that want the beginning.
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

/// A pass is held to the promise too, and what it gave is recorded: no range of a later fill completes the body.
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

/// Two passes of one client in parallel: a right body in one of them does not erase the record of what the other gave.
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

/// An index's claims apply to passes: the index is asked again, and then its claim refuses.
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
    // The control: the present claim of the index is right, though larder has not seen it yet.
    let new = noise(23, 1_000_000);
    world.proxy.clock.advance(SILENCE);
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    world.origin.put(&path, Page::new(new.clone()));
    assert_eq!(with().await.complete().body, new);
}

/// An empty body ends with its head.
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

/// A digest that was not computed is no mismatch (artifact-keeper#3488): the index changes its algorithm while the file arrives.
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

/// If a client requests the end of a large file and leaves, other clients must not wait for the last byte before they get the
/// second one: the gap moves only for ranges of the second half.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_a_client_moved_and_left_behind_leaves_the_beginning_to_others() {
    for (range, given) in [("131072-", 900_000), ("900000-", 800_000)] {
        let world = World::new().await;
        let right = noise(26, 1 << 20);
        let gate = crate::world::Gate::closed();
        let path = by_hash(&right);
        // The end is given, and then the fill breaks, as if no client read any more and much was still missing.
        let hold = |gate: &crate::world::Gate| crate::world::Fault::Hold(950_000, gate.clone());
        let broken = Page::new(right.clone()).etag("v1").fault(hold(&crate::world::Gate::closed()));
        let url = world.origin.put(&path, broken.without_ranges());
        let mut end = world.client.get(&url).range(range).open().await.unwrap();
        assert!(end.read(10_000).await, "{range}");
        world.origin.put(&path, Page::status(503));
        world.origin.cut();
        let end = end.rest().await;
        assert!(end.status == 206 && !end.is_complete(), "{} {:?}", end.status, end.end);
        world.origin.put(&path, Page::new(right.clone()).etag("v1").fault(hold(&gate)));
        for address in ["127.0.0.1", "127.0.0.9"] {
            let mut other = world.client.get(&url).from(address).open().await.unwrap();
            assert!(other.read(given).await, "{range} {address}");
            // The control: the gap is where it was, for every client.
            let most = if range == "131072-" { right.len() - 65_536 } else { 900_000 - 65_536 };
            assert!(other.so_far().len() <= most, "{range} {address}");
            drop(other);
        }
        gate.open();
        assert_eq!(world.fetch(&url).await.body, right);
    }
}

/// Ctrl-C twice: another body of the same length has its gap where the first one had it.
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
        // A fill does not wait either.
        assert_eq!(world.fetch(&url).await.body, right, "{chunked}");
    }
}

/// Clients complete a file with any 2xx, so the status of an answer does not weaken a promise.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_success_brings_what_a_promise_refuses() {
    let world = World::new().await;
    let page = |status: u16, body: &[u8]| {
        let mut page = Page::new(body.to_vec());
        page.status = hyper::StatusCode::from_u16(status).unwrap();
        if status == 206 { page.header("content-range", "bytes 0-399999/400000") } else { page }
    };
    for (seed, status) in [(30, 203), (40, 206)] {
        // Such an answer to a fill cannot be kept, so that a pass asks again; the second request is a pass from the start.
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
