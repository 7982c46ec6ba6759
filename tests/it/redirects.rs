//! Redirects away from a promise (issue 10, row 4): if a promise binds the target, larder follows the redirect itself as far as
//! clients follow, or refuses it with a reason. No client is sent to a URL that no promise covers.

use bytes::Bytes;
use hyper::Method;

use crate::privacy::{ALICE, status};
use crate::world::archive::{by_hash, flipped, plain_wheel, put_simple};
use crate::world::{Fault, Gate, Got, Origin, Page, World, eventually, noise};

/// The kind of a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// A fill.
    Plain,
    /// A fill with a credential.
    Private,
    /// A pass, because of a header field that larder does not know.
    Odd,
    /// A pass, because of a login for one request.
    Once,
    Part,
    Head,
}

const ALL: [How; 6] = [How::Plain, How::Private, How::Odd, How::Once, How::Part, How::Head];

async fn ask(world: &World, url: &str, how: How, h2: bool) -> Got {
    let client = &world.client;
    let ask = match how {
        How::Plain => client.get(url),
        How::Private => client.get(url).header("authorization", ALICE),
        How::Odd => client.get(url).header("x-unheard-of", "s3cr3t"),
        How::Once => client.get(url).header("authorization", "Digest s3cr3t"),
        How::Part => client.get(url).range("100-"),
        How::Head => client.head(url),
    };
    if h2 { ask.h2().send().await } else { ask.send().await }
}

/// Makes `/hop/N` redirect to `/hop/N-1`, and `/hop/0` to `end`; returns the URL where `count` redirects begin.
fn chain(origin: &Origin, count: usize, end: &str) -> String {
    for hop in 0..count {
        let to = if hop == 0 { end.to_owned() } else { format!("/hop/{}", hop - 1) };
        origin.put(&format!("/hop/{hop}"), Page::redirect(302, &to));
    }
    if count == 0 { end.to_owned() } else { format!("/hop/{}", count - 1) }
}

fn text(got: &Got) -> String {
    String::from_utf8_lossy(&got.body).into_owned()
}

/// Checks that the refusal gives the reason, and is not cacheable.
#[track_caller]
fn is_refusal(got: &Got, what: &str) {
    assert_eq!(got.status, 502, "{what} {}", text(got));
    assert!(got.cache_status().contains("refused"), "{what} {}", got.cache_status());
    assert_eq!((got.text("location"), got.text("cache-control")), ("", "no-store"), "{what}");
}

/// The attack: a URL that contains a digest redirects the client to other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_bound_redirect_is_followed_as_far_as_clients_do_and_what_comes_is_judged() {
    for h2 in [false, true] {
        for how in ALL {
            for (number, hops) in [0, 1, 3, 5, 6, 19].into_iter().enumerate() {
                let world = World::new().await;
                let other = world.another("127.0.0.2").await;
                let body = noise(100 + number as u64, 400_000);
                for (bad, kept) in [(true, Bytes::from(flipped(&body))), (false, body.clone())] {
                    // Each with user information, which clients drop.
                    let end = other.put("/f", Page::new(kept)).replace("//", "//user:pw@");
                    let first = chain(&world.origin, hops, &end);
                    let path = by_hash(&body);
                    let url = world.origin.put(&path, Page::redirect(302, &first));
                    let got = ask(&world, &url, how, h2).await;
                    let what =
                        format!("h2 {h2} {how:?} {hops} {bad}: {} {:?}", got.status, got.end);
                    assert!(!got.status.is_redirection(), "{what}");
                    if bad && how != How::Head {
                        assert!(!got.is_complete(), "{what}");
                    } else if !bad {
                        // Nothing is sent for a minute after a refusal.
                        let got = again(&world, &url, how, h2, got).await;
                        assert!(got.is_complete(), "{what} {}", text(&got));
                        let start = if how == How::Part && got.status == 206 { 100 } else { 0 };
                        assert!(how == How::Head || got.body == body[start..], "{what}");
                    }
                }
            }
        }
    }
}

/// The answer after the quarantine that follows a refusal.
async fn again(world: &World, url: &str, how: How, h2: bool, got: Got) -> Got {
    if got.is_complete() {
        return got;
    }
    world.proxy.clock.advance(std::time::Duration::from_secs(61));
    ask(world, url, how, h2).await
}

/// Everything that some client would follow, or take for the file.
fn nowhere(other: &str) -> Vec<(&'static str, Page)> {
    vec![
        ("a circle", Page::redirect(302, "/circle")),
        ("another scheme", Page::redirect(302, "ftp://example.org/f")),
        ("bytes in the URL", Page::redirect(302, "data:text/plain,x")),
        ("no host", Page::redirect(302, "https://")),
        ("no Location", Page::status(302)),
        ("two", Page::redirect(302, other).header("location", "/elsewhere")),
        ("a proxy", Page::redirect(305, other)),
        ("an unknown redirect", Page::redirect(399, other)),
        ("no choice", Page::status(300)),
        ("too far", Page::redirect(302, "/hop/20")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_is_refused_in_words_where_a_promise_binds() {
    let world = World::new().await;
    let other = world.another("127.0.0.2").await;
    let (mut number, elsewhere) = (200, other.put("/f", Page::new("bad")));
    world.origin.put("/circle", Page::redirect(302, "/circle/again"));
    world.origin.put("/circle/again", Page::redirect(302, "/circle"));
    chain(&world.origin, 21, &elsewhere);
    for (what, page) in nowhere(&elsewhere) {
        for how in ALL {
            number += 1;
            let body = noise(number, 1000);
            let url = world.origin.put(&by_hash(&body), page.clone());
            let got = ask(&world, &url, how, number % 2 == 0).await;
            is_refusal(&got, &format!("{what} {how:?}"));
            assert!(
                how == How::Head || text(&got).contains("redirects where larder cannot follow")
            );
            // It does not affect the next request: the origin is repaired, and the file is given.
            world.origin.put(&by_hash(&body), Page::new(body.clone()));
            let got = ask(&world, &url, how, false).await;
            assert!(got.is_complete(), "{what} {how:?} {}", text(&got));
        }
        // The control: without a promise, the redirect reaches the client unchanged.
        let url = world.origin.put(&plain_wheel("unbound"), page.clone());
        for how in ALL {
            let got = ask(&world, &url, how, false).await;
            let came = got.headers.get_all("location").iter().collect::<Vec<_>>();
            let sent = page.headers.get_all("location").iter().collect::<Vec<_>>();
            assert_eq!((got.status, came), (page.status, sent), "{what} {how:?}");
        }
    }
    assert_eq!(other.gets("/f"), 0);
}

/// Every redirect that clients follow is followed, with GET, over plain HTTP as well: the digest proves the result.
#[tokio::test(flavor = "multi_thread")]
async fn every_redirect_that_clients_follow_is_followed() {
    let world = World::new().await;
    let plain = Origin::plain("127.0.0.2").await;
    let mut number = 300;
    for code in [300, 301, 302, 303, 307, 308] {
        for how in ALL {
            number += 1;
            let body = noise(number, 1000);
            let to = plain.put(&format!("/é/{number}"), Page::new(body.clone()));
            plain.put(&format!("/%C3%A9/{number}"), Page::new(body.clone()));
            let mut page = Page::redirect(code, "/");
            page.headers
                .insert("location", hyper::header::HeaderValue::from_bytes(to.as_bytes()).unwrap());
            let url = world.origin.put(&by_hash(&body), page);
            let got = ask(&world, &url, how, false).await;
            assert!(got.is_complete(), "{code} {how:?} {} {}", got.status, text(&got));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hop_of_a_pass_takes_a_login_elsewhere_nor_brings_a_strangers_word_back() {
    let world = World::new().await;
    let other = world.another("127.0.0.2").await;
    let body = noise(400, 1000);
    let path = by_hash(&body);
    let last = Page::new(body.clone())
        .header("set-cookie", "a=b")
        .header("refresh", "0;url=https://example.org/")
        .header("strict-transport-security", "max-age=1");
    // To another origin and back: a request that has left its origin carries no credential there either.
    let back = world.origin.put("/back", last);
    let away = other.put("/away", Page::redirect(302, &back));
    world.origin.put("/same", Page::redirect(302, &away));
    let url = world.origin.put(&path, Page::redirect(302, "/same"));
    let send = || {
        let ask = world.client.get(&url).header("authorization", "Digest s3cr3t");
        ask.header("cookie", "s3cr3t")
            .header("x-unheard-of", "s3cr3t")
            .header("accept", "x/y")
            .send()
    };
    assert_eq!(send().await.complete().body, body);
    let shows = |origin: &Origin, path: &str| {
        let asked = origin.asked(path).pop().unwrap();
        assert_eq!(asked.text("accept"), Some("x/y"), "{path}");
        asked.headers.values().filter(|value| value.as_bytes().ends_with(b"s3cr3t")).count()
    };
    assert_eq!((shows(&world.origin, &path), shows(&world.origin, "/same")), (3, 3));
    assert_eq!((shows(&other, "/away"), shows(&world.origin, "/back")), (0, 0));
    // Cookies and challenges of another origin are not given to the client as the requested origin's.
    let end = Page::status(401).header("www-authenticate", "Basic").header("set-cookie", "a=b");
    other.put("/away", end);
    let got = send().await;
    assert_eq!((got.status.as_u16(), got.text("www-authenticate")), (401, ""));
    assert_eq!(got.text("set-cookie"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_is_not_followed_to_an_internal_address() {
    for open in [false, true] {
        let world = World::with(|config| {
            if !open {
                config.allow_nets = vec!["127.0.0.1/32".parse().unwrap()];
            }
        })
        .await;
        let inner = world.another("127.0.0.2").await;
        for (number, how) in ALL.into_iter().enumerate() {
            let body = noise(500 + number as u64, 1000);
            let to = inner.put(&format!("/f{number}"), Page::new(body.clone()));
            let url = world.origin.put(&by_hash(&body), Page::redirect(302, &to));
            let got = ask(&world, &url, how, false).await;
            assert_eq!(got.is_complete(), open, "{how:?} {}", got.status);
            if !open {
                is_refusal(&got, &format!("{how:?}"));
                assert!(how == How::Head || text(&got).contains("allow_nets"));
            }
        }
        assert_eq!(inner.connections() > 0, open);
    }
}

/// A redirect that was requested before a promise appeared is not given to the client afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_comes_after_the_redirect_holds_for_it() {
    for (promised, how) in
        [(true, How::Plain), (true, How::Odd), (false, How::Plain), (false, How::Odd)]
    {
        let world = World::new().await;
        let other = world.another("127.0.0.2").await;
        let (body, gate) = (noise(600, 400_000), Gate::closed());
        let to = other.put("/f", Page::new(flipped(&body)));
        let (waits, leads) = (gate.clone(), to.clone());
        let path = plain_wheel("demo");
        let url = world.origin.script(&path, move |_| {
            let (waits, mut answer) = (waits.clone(), status(302));
            answer.headers_mut().insert("location", leads.parse().unwrap());
            async move {
                waits.passed().await;
                answer
            }
        });
        let asking = {
            let (client, url) = (world.client.clone(), url.clone());
            let ask = client.get(&url);
            let ask = if how == How::Odd { ask.header("x-unheard-of", "1") } else { ask };
            tokio::spawn(ask.send())
        };
        eventually("it was asked", || async { !world.origin.asked(&path).is_empty() }).await;
        let files: &[(&str, &[u8])] = &[("../../files/demo-1.0-py3-none-any.whl", &body)];
        let index = put_simple(&world.origin, "/", "demo", if promised { files } else { &[] });
        world.fetch(&index).await;
        gate.open();
        for got in [asking.await.unwrap(), ask(&world, &url, how, false).await] {
            // The control: no promise.
            assert_eq!(got.status.is_redirection(), !promised, "{how:?} {}", got.status);
            assert!(!got.is_complete(), "{how:?}");
        }
    }
}

/// A promise that only confirms does not cause the refusal of a redirect.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_promise_refuses_no_redirect() {
    let world = World::new().await;
    let stranger = world.another("127.0.0.2").await;
    let (body, to) = (noise(700, 1000), "ftp://example.org/f");
    let url = world.origin.put(&plain_wheel("demo"), Page::redirect(302, to));
    let index = put_simple(&stranger, "/", "demo", &[(&url, &body)]);
    world.fetch(&index).await;
    for how in ALL {
        let got = ask(&world, &url, how, false).await;
        assert_eq!((got.status.as_u16(), got.text("location")), (302, to), "{how:?}");
    }
    // The control: the origin's own index causes the refusal.
    let link = "../../files/demo-1.0-py3-none-any.whl";
    world.fetch(&put_simple(&world.origin, "/", "demo", &[(link, &body)])).await;
    for how in ALL {
        is_refusal(&ask(&world, &url, how, false).await, &format!("{how:?}"));
    }
}

/// A broken transfer is resumed at the original URL, which now redirects to nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_that_is_redirected_nowhere_hands_nothing_on() {
    for mended in [false, true] {
        let world = World::new().await;
        let body = noise(800, 2_000_000);
        let end = Page::new(body.clone()).etag("v1").fault(Fault::CutOnce(1_000_000));
        world.origin.put("/f", end);
        let path = by_hash(&body);
        let url = world.origin.script(&path, move |request| {
            let resumes = request.headers().contains_key("range");
            let to = if resumes && !mended { "/nowhere" } else { "/f" };
            let mut page = Page::redirect(302, to);
            let answer = page.answer(&Method::GET, request.headers());
            async move { answer }
        });
        world.origin.put("/nowhere", Page::redirect(302, "/nowhere"));
        let got = world.get(&url).await;
        assert!(!got.status.is_redirection() && got.is_complete() == mended, "{}", got.status);
        assert!(world.origin.asked(&path).len() > 1, "the control: it was resumed");
    }
}
