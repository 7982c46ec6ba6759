//! Many clients, one fill: no client waits for the end to get the beginning, and no client suffers when another one leaves.

use crate::world::archive::by_hash;
use crate::world::{End, Fault, Gate, Mood, Page, World, eventually, noise};

/// With nginx's lock and squid's collapsed forwarding, waiting clients can starve; here they read the growing file.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_share_one_fill_as_it_grows() {
    const CLIENTS: usize = 50;
    let world = World::new().await;
    let (body, gate) = (noise(1, 40 << 20), Gate::closed());
    let path = by_hash(&body);
    let page = Page::new(body.clone()).fault(Fault::Hold(body.len() - 1, gate.clone()));
    let url = world.origin.put(&path, page);
    let (began, mut beginnings) = tokio::sync::mpsc::channel(CLIENTS);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (client, url, body, began) =
            (world.client.clone(), url.clone(), body.clone(), began.clone());
        clients.spawn(async move {
            let ask = if number % 2 == 0 { client.get(&url) } else { client.get(&url).h2() };
            let mut opened = ask.open().await.unwrap();
            assert!(opened.read(1).await);
            began.send(()).await.unwrap();
            opened.equals(&body).await
        });
    }
    // The origin withholds its last byte until all clients have some bytes: a client that waited for the end would wait for ever.
    for _ in 0..CLIENTS {
        beginnings.recv().await.unwrap();
    }
    gate.open();
    while let Some(right) = clients.join_next().await {
        assert!(right.unwrap());
    }
    assert_eq!(world.origin.gets(&path), 1);
}

/// P2: if the rest of a broken body is shorter or longer than its `Content-Range` says, the body does not complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_rest_that_is_not_as_long_as_it_says_completes_nothing() {
    let body = noise(9, 3 << 20);
    for (more, well) in [(-1000_isize, false), (1000, false), (0, true)] {
        let world = World::new().await;
        let path = "/files/unknown.bin";
        let whole = Page::new(body.clone()).etag("v1").fault(Fault::Cut(1 << 20));
        let sent = body.clone();
        let url = world.origin.script(path, move |asked| {
            let from = asked.headers().get("range").map(|range| {
                let text = range.to_str().unwrap().trim_start_matches("bytes=");
                text.trim_end_matches('-').parse::<usize>().unwrap()
            });
            let answer = match from {
                None => whole.clone().answer(asked.method(), asked.headers()),
                Some(from) => {
                    let (end, total) = (sent.len() - 1, sent.len());
                    let mut rest = sent.get(from..).unwrap_or_default().to_vec();
                    rest.resize(rest.len().saturating_add_signed(more), 0);
                    let mut page = Page::new(rest).etag("v1");
                    page.status = hyper::StatusCode::PARTIAL_CONTENT;
                    let range = format!("bytes {from}-{end}/{total}");
                    let mut page = page.header("content-range", &range).without_ranges();
                    page.answer(asked.method(), &hyper::HeaderMap::new())
                }
            };
            async move { answer }
        });
        let got = world.get(&url).await;
        assert_eq!(got.is_complete(), well, "{more}: {}", got.body.len());
        world.origin.unscript(path);
        world.origin.put(path, Page::new(body.clone()).etag("v1"));
        let again = world.fetch(&url).await;
        assert_eq!(again.body.len(), body.len(), "{more}: a part was kept as the whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_fill_is_resumed_under_its_readers() {
    let world = World::new().await;
    let body = noise(2, 20 << 20);
    let path = by_hash(&body);
    let page = Page::new(body.clone()).etag("v1").fault(Fault::CutOnce(10 << 20));
    let url = world.origin.put(&path, page);
    let clients: Vec<_> = (0..10).map(|_| tokio::spawn(world.client.get(&url).send())).collect();
    for client in clients {
        assert_eq!(client.await.unwrap().complete().body, body);
    }
    let asked = world.origin.asked(&path);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(
        asked[1]
            .text("range")
            .is_some_and(|range| range.starts_with("bytes=") && range.ends_with('-'))
    );
    assert_eq!(world.fetch(&url).await.body, body);
    assert_eq!(world.origin.gets(&path), 2);
}

/// artifact-keeper#2929, proxpi#68: a truncated body is not a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_cannot_be_resumed_fails_for_all_and_the_next_works() {
    let world = World::new().await;
    let body = noise(3, 8 << 20);
    for (name, page) in [
        ("length", Page::new(body.clone()).without_ranges()),
        ("chunked", Page::new(body.clone()).without_ranges().chunked()),
    ] {
        let path = format!("/{name}.bin");
        let whole = page.clone().fresh(600);
        let url = world.origin.put(&path, whole.clone().fault(Fault::Cut(4 << 20)));
        let clients: Vec<_> =
            (0..10).map(|_| tokio::spawn(world.client.get(&url).send())).collect();
        for client in clients {
            let got = client.await.unwrap();
            assert!(
                !got.is_complete() && got.body.len() <= 4 << 20,
                "{name}: {} {:?}",
                got.status,
                got.end
            );
            // Many clients take an orderly close for the end (urllib, and curl with a chunked body, among them).
            assert!(got.end == End::Reset || got.status.is_server_error(), "{name}: {:?}", got.end);
        }
        world.origin.put(&path, whole);
        assert_eq!(world.fetch(&url).await.body, body, "{name}");
        assert!(world.fetch(&url).await.is_hit(), "{name}");
    }
}

/// cflee's post, apt-cacher-ng: parts of two versions are never joined.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_never_joins_two_versions() {
    let world = World::new().await;
    let (old, new) = (noise(4, 4 << 20), noise(5, 4 << 20));
    let path = "/changing.bin";
    for strong in [true, false] {
        let validator = |version: &str| {
            if strong { format!("\"{version}\"") } else { format!("W/\"{version}\"") }
        };
        let gate = Gate::closed();
        let page = Page::new(old.clone())
            .header("etag", &validator("old"))
            .fault(Fault::Hold(2 << 20, gate.clone()));
        let url = world.origin.put(path, page);
        let mut opened = world.client.get(&url).open().await.unwrap();
        assert!(opened.read(1 << 20).await);
        // The old version breaks off, and a new one takes its place.
        world.origin.put(path, Page::new(new.clone()).header("etag", &validator("new")));
        world.origin.cut();
        let got = opened.rest().await;
        assert!(
            got.end != End::Complete || got.body == old || got.body == new,
            "parts of two versions"
        );
        assert_eq!(world.fetch(&url).await.body, new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_client_may_leave() {
    let world = World::new().await;
    let (body, gate) = (noise(6, 4 << 20), Gate::closed());
    let path = by_hash(&body);
    let page = Page::new(body.clone()).without_ranges().fault(Fault::Hold(2 << 20, gate.clone()));
    let url = world.origin.put(&path, page);
    let mut leader = world.client.get(&url).open().await.unwrap();
    assert!(leader.read(1 << 20).await);
    let mut follower = world.client.get(&url).open().await.unwrap();
    assert!(follower.read(1).await);
    drop(leader);
    gate.open();
    assert!(follower.equals(&body).await);
    assert_eq!(world.origin.gets(&path), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_nobody_reads_goes_on_to_its_end() {
    let world = World::new().await;
    let (body, gate) = (noise(7, 4 << 20), Gate::closed());
    let path = by_hash(&body);
    let url =
        world.origin.put(&path, Page::new(body.clone()).fault(Fault::Hold(2 << 20, gate.clone())));
    let mut only = world.client.get(&url).open().await.unwrap();
    assert!(only.read(1 << 20).await);
    drop(only);
    gate.open();
    eventually("it is stored", || async { world.fetch(&url).await.is_hit() }).await;
    assert_eq!(world.origin.gets(&path), 1);
}

/// zot#4322: a few slow downloads do not starve small ones.
#[tokio::test(flavor = "multi_thread")]
async fn slow_downloads_do_not_hold_up_small_ones() {
    let world = World::with(|config| config.upstream.connections_per_origin = 2).await;
    let gate = Gate::closed();
    let mut slow = Vec::new();
    for number in 0..20 {
        let page = Page::new(noise(number, 200_000)).fault(Fault::Hold(100, gate.clone()));
        slow.push(tokio::spawn(
            world.client.get(&world.origin.put(&format!("/{number}.bin"), page)).send(),
        ));
    }
    eventually("all were asked for", || async { world.origin.total() == 20 }).await;
    let url = world.origin.put("/small", Page::new("small"));
    assert_eq!(world.fetch(&url).await.body, "small");
    gate.open();
    for one in slow {
        one.await.unwrap().complete();
    }
}

/// artifact-keeper#1300: a total limit of 60 s broke every big file. Only silence ends a transfer.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transfer_is_not_a_failed_one() {
    let limit = std::time::Duration::from_millis(600);
    let world = World::with(|config| {
        config.upstream.header_timeout = limit;
        config.upstream.idle_timeout = limit;
        config.upstream.connect_timeout = limit;
        config.upstream.min_rate = 1;
    })
    .await;
    let body = noise(8, 200_000);
    let page = Page::new(body.clone()).fault(Fault::Slow(10_000, limit / 6));
    let url = world.origin.put(&by_hash(&body), page);
    assert_eq!(world.fetch(&url).await.body, body, "twenty pieces take three times each limit");
    // The control: silence longer than the limit does end a transfer.
    let body = noise(9, 200_000);
    let silent = Page::new(body.clone()).fault(Fault::Hold(1000, Gate::closed()));
    let url = world.origin.put(&by_hash(&body), silent);
    assert!(!world.get(&url).await.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_of_a_fill_that_fails_hear_of_it() {
    let world = World::new().await;
    let url = world.origin.put("/x", Page::new("x"));
    world.origin.mood(Mood::Failing(503));
    let clients: Vec<_> = (0..10).map(|_| tokio::spawn(world.client.get(&url).send())).collect();
    for client in clients {
        assert_eq!(client.await.unwrap().status.as_u16(), 503);
    }
    world.origin.mood(Mood::Well);
    assert_eq!(world.fetch(&url).await.body, "x");
}

/// An origin that accepts a request and never answers: its client gives up and retries, on a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_is_given_up() {
    let limit = std::time::Duration::from_millis(500);
    let world = World::with(|config| config.upstream.header_timeout = limit).await;
    let url = world.origin.put("/status", Page::new("well"));
    world.origin.mood(Mood::Hanging);
    let first = tokio::spawn(world.client.get(&url).send());
    eventually("it is asked", || async { world.origin.total() > 0 }).await;
    first.abort();
    world.origin.mood(Mood::Well);
    eventually("it is asked anew", || async {
        let ask = world.client.get(&url).send();
        tokio::time::timeout(std::time::Duration::from_secs(2), ask)
            .await
            .is_ok_and(|got| got.body == "well")
    })
    .await;
}
