//! P4: an index has authority only over URLs inside its scope. No index can poison, or block, another's URLs.

use crate::world::archive::{hex, plain_wheel, put_simple, simple};
use crate::world::{Mood, Page, World, noise};
use larder::digest::Algorithm;

/// A hostile index claims for a real URL a digest that is stored already.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_promise_selects_no_bytes_for_anothers_url() {
    for first in ["index", "file"] {
        let world = World::new().await;
        let evil = world.another("127.0.0.2").await;
        let (real, bait) = (noise(1, 400_000), noise(2, 400_000));
        let url = world.origin.put(&plain_wheel("demo"), Page::new(real.clone()));
        let bait_url = evil.put(&plain_wheel("demo"), Page::new(bait.clone()));
        let index = put_simple(&evil, "/", "demo", &[(&url, &bait), (&bait_url, &bait)]);
        for step in if first == "index" { [&index, &bait_url] } else { [&bait_url, &index] } {
            world.fetch(step).await;
        }
        let got = world.fetch(&url).await;
        assert_eq!(got.body, real, "the index's bytes came for another's URL");
        assert_eq!(world.fetch(&url).await.body, real);
        assert!(!world.origin.asked(&plain_wheel("demo")).is_empty());
    }
}

/// The control of all this: inside its root the same false claim is believed, and the file refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_promise_inside_its_root_refuses() {
    let world = World::new().await;
    let (real, bait) = (noise(1, 400_000), noise(2, 400_000));
    let url = world.origin.put(&plain_wheel("demo"), Page::new(real));
    let index = put_simple(&world.origin, "/", "demo", &[(&url, &bait)]);
    world.fetch(&index).await;
    assert!(!world.get(&url).await.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evil_url_that_redirects_to_a_real_one_blocks_nothing() {
    let world = World::new().await;
    let evil = world.another("127.0.0.2").await;
    let (real, promised) = (noise(3, 400_000), noise(4, 400_000));
    let url = world.origin.put(&plain_wheel("real"), Page::new(real.clone()));
    let trap = evil.put(&plain_wheel("trap"), Page::redirect(302, &url));
    let index = put_simple(&evil, "/", "trap", &[(&trap, &promised)]);
    world.fetch(&index).await;
    // Under the attacker's name the real bytes are not what was promised, and are not given.
    assert!(!world.get(&trap).await.is_complete());
    // Under their own name they are given.
    assert_eq!(world.fetch(&url).await.body, real);
    assert!(world.fetch(&url).await.is_hit());
}

/// When V redirects to U, the answer of U may answer V; a claim about V does not apply to U.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_promise_for_a_redirect_makes_no_entry_for_where_it_leads() {
    let world = World::new().await;
    let evil = world.another("127.0.0.2").await;
    let bytes = noise(5, 400_000);
    let path = plain_wheel("real");
    let url = world.origin.put(&path, Page::new(bytes.clone()).header("cache-control", "no-store"));
    let alias = evil.put(&plain_wheel("alias"), Page::redirect(302, &url));
    let index = put_simple(&evil, "/", "alias", &[(&alias, &bytes)]);
    world.fetch(&index).await;
    assert_eq!(world.fetch(&alias).await.body, bytes);
    let asked = world.origin.gets(&path);
    assert_eq!(world.fetch(&url).await.body, bytes);
    assert_eq!(world.origin.gets(&path), asked + 1, "the real URL is asked for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_index_says_nothing_of_its_neighbour() {
    let world = World::new().await;
    let (real, lie) = (noise(6, 400_000), noise(7, 400_000));
    let path = "/bob/files/demo-1.0-py3-none-any.whl";
    let url = world.origin.put(path, Page::new(real.clone()));
    let index = put_simple(&world.origin, "/mallory/", "demo", &[(&url, &lie)]);
    world.fetch(&index).await;
    assert_eq!(world.fetch(&url).await.body, real, "denied by a neighbour");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_roots_the_deeper_speaks() {
    let world = World::new().await;
    let (real, lie) = (noise(8, 400_000), noise(9, 400_000));
    let url = world.origin.put("/bob/files/demo-1.0-py3-none-any.whl", Page::new(real.clone()));
    let own = put_simple(&world.origin, "/bob/", "demo", &[(&url, &real)]);
    let outer = put_simple(&world.origin, "/", "demo", &[(&url, &lie)]);
    for index in [&own, &outer] {
        world.fetch(index).await;
    }
    assert_eq!(world.fetch(&url).await.body, real);
}

/// Across origins a promise only confirms: a file of a separate file host is `indexed` only after that host gave it.
#[tokio::test(flavor = "multi_thread")]
async fn across_origins_a_promise_confirms_what_the_files_host_gave() {
    let world = World::new().await;
    let files = world.another("127.0.0.2").await;
    let bytes = noise(10, 400_000);
    let url = files.put(&plain_wheel("demo"), Page::new(bytes.clone()));
    world.fetch(&put_simple(&world.origin, "/", "demo", &[(&url, &bytes)])).await;
    assert_eq!(world.fetch(&url).await.body, bytes);
    let again = world.fetch(&url).await;
    assert!(again.is_hit() && again.cache_status().contains("indexed"), "{}", again.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_word_lets_an_index_refuse_for_a_files_host() {
    for declared in [false, true] {
        // Both addresses must be known before larder starts, so the origins are started first.
        let dir = tempfile::tempdir().unwrap();
        let ca = crate::world::Ca::new(&dir.path().join("ca.pem"));
        let index_host = crate::world::Origin::tls(&ca, "127.0.0.1").await;
        let files = crate::world::Origin::tls(&ca, "127.0.0.2").await;
        let mut config = crate::world::larder::config(&ca, dir.path().join("data"));
        if declared {
            config.speaks_for.push(larder::config::SpeaksFor {
                index: index_host.url("/"),
                files: files.url(""),
            });
        }
        let proxy = crate::world::Proxy::start(config).await;
        let client = proxy.client().await;
        let (right, wrong) = (noise(11, 400_000), noise(12, 400_000));
        let url = files.put(&plain_wheel("demo"), Page::new(wrong));
        let index = put_simple(&index_host, "/", "demo", &[(&url, &right)]);
        client.get(&index).send().await.complete();
        let got = client.get(&url).send().await;
        assert_eq!(got.is_complete(), !declared);
    }
}

/// A wheel that is requested without its index: the index that should name it is fetched to judge it.
#[tokio::test(flavor = "multi_thread")]
async fn a_wheel_without_a_known_index_is_chased() {
    let world = World::new().await;
    let files = world.another("127.0.0.2").await;
    let (one, two) = (noise(13, 400_000), noise(14, 400_000));
    let one_url = files.put(&plain_wheel("one"), Page::new(one.clone()));
    let two_url = files.put(&plain_wheel("two"), Page::new(two.clone()));
    world.fetch(&put_simple(&world.origin, "/", "one", &[(&one_url, &one)])).await;
    put_simple(&world.origin, "/", "two", &[(&two_url, &two)]);
    world.fetch(&one_url).await;
    assert_eq!(world.fetch(&two_url).await.body, two);
    assert_eq!(world.origin.gets("/simple/two/"), 1, "nobody but larder asked for it");
    assert!(world.fetch(&two_url).await.cache_status().contains("indexed"));
}

/// A broken or hostile index makes no claims, and reaches its readers unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_index_still_reaches_the_client() {
    let world = World::new().await;
    let sha256 = hex(Algorithm::Sha256, b"x");
    let deep = format!("{{\"files\":{}", "[".repeat(100_000));
    let many = simple(&vec![("../../files/a-1.0.tar.gz", b"a".as_slice()); 5000]);
    for (name, page) in [
        ("half", Page::new("<!DOCTYPE html><a href=\"").header("content-type", "text/html")),
        ("deep", Page::new(deep).header("content-type", "application/vnd.pypi.simple.v1+json")),
        ("nul", Page::new(vec![0_u8; 10_000]).header("content-type", "text/html")),
        (
            "odd",
            Page::new(format!("<a href=\"http://[::1/#sha256={sha256}\">"))
                .header("content-type", "text/html"),
        ),
        ("many", many),
        ("empty", Page::new("").header("content-type", "application/vnd.pypi.simple.v1+json")),
    ] {
        let body = page.body.clone();
        let url = world.origin.put(&format!("/simple/{name}/"), page);
        assert_eq!(world.fetch(&url).await.body, body, "{name}");
    }
}

/// A client's own header field makes the origin answer otherwise: that affects only this client, and puts the URL into quarantine
/// for no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_words_silence_a_url_for_nobody_else() {
    let world = World::new().await;
    let real = noise(15, 400_000);
    let served = real.clone();
    let url = world.origin.script(&crate::world::archive::by_hash(&real), move |request| {
        let body = if request.headers().contains_key("x-error") {
            "sign in".into()
        } else {
            served.clone()
        };
        async move { hyper::Response::new(crate::world::page::whole(body)) }
    });
    let hostile = world.client.get(&url).header("x-error", "1").send().await;
    assert!(!hostile.is_complete());
    let other = world.client.get(&url).from("127.0.0.3").send().await;
    assert_eq!(other.complete().body, real, "silenced by a neighbour");
}

/// Files of this kind are rebuilt in place. An index elsewhere that promises today's bytes must not block tomorrow's.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_promise_freezes_nothing() {
    let world = World::new().await;
    let evil = world.another("127.0.0.2").await;
    let (old, new) = (noise(16, 400_000), noise(17, 400_000));
    let path = "/nightly/demo-1.0.tar.gz";
    let url = world.origin.put(path, Page::new(old.clone()).etag("old"));
    world.fetch(&put_simple(&evil, "/", "demo", &[(&url, &old)])).await;
    assert_eq!(world.fetch(&url).await.body, old);
    world.origin.put(path, Page::new(new.clone()).etag("new"));
    assert_eq!(world.fetch(&url).await.body, new, "frozen by a stranger");
}

/// An index that has named a file of a host may be asked about its other files; if it never answers, no client waits long.
#[tokio::test(flavor = "multi_thread")]
async fn a_speaker_that_never_answers_blocks_no_file() {
    let world =
        World::with(|config| config.upstream.header_timeout = std::time::Duration::from_mins(10))
            .await;
    let evil = world.another("127.0.0.2").await;
    let (one, two) = (noise(18, 1000), noise(19, 1000));
    let url = world.origin.put(&plain_wheel("one"), Page::new(one.clone()));
    world.fetch(&put_simple(&evil, "/", "one", &[(&url, &one)])).await;
    evil.mood(Mood::Hanging);
    let url = world.origin.put(&plain_wheel("two"), Page::new(two.clone()));
    assert_eq!(world.fetch(&url).await.body, two);
}

/// Issue 17, faults, row 5: an answer that is no index does not replace the index before, whose claims stay in force. Otherwise a
/// maintenance page would let any changed file pass.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_read_keeps_the_word_of_the_one_before() {
    let world = World::new().await;
    let (old, new) = (noise(20, 400_000), noise(21, 400_000));
    let link = "../../files/demo-1.0-py3-none-any.whl";
    let index = put_simple(&world.origin, "/", "demo", &[(link, &old)]);
    world.fetch(&index).await;
    let broken =
        Page::new(vec![0_u8; 1000]).header("content-type", "application/vnd.pypi.simple.v1+json");
    world.origin.put("/simple/demo/", broken);
    let url = world.origin.put(&plain_wheel("demo"), Page::new(new.clone()));
    let got = world.get(&url).await;
    assert!(!got.is_complete() && got.body != new, "{}", got.cache_status());
    // The control: an index that can be read makes other claims.
    put_simple(&world.origin, "/", "demo", &[(link, &new)]);
    world.proxy.clock.advance(std::time::Duration::from_mins(2));
    world.fetch(&index).await;
    assert_eq!(world.fetch(&url).await.body, new);
}

/// Row 6 of issue 10: one page of another origin names a stored file with another digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_lie_takes_no_stored_file_away() {
    for known in ["pinned", "indexed"] {
        let mut world = World::new().await;
        let (evil, honest) = (world.another("127.0.0.2").await, world.another("127.0.0.3").await);
        let (real, lie) = (noise(22, 400_000), noise(23, 1000));
        let path = plain_wheel("demo");
        let url = world.origin.put(&path, Page::new(real.clone()));
        if known == "indexed" {
            world.fetch(&put_simple(&honest, "/", "demo", &[(&url, &real)])).await;
        }
        world.fetch(&url).await;
        let before = world.fetch(&url).await;
        assert!(before.is_hit() && before.cache_status().contains(known));
        let (asked, index) =
            (world.origin.total(), put_simple(&evil, "/", "demo", &[(&url, &lie)]));
        world.fetch(&index).await;
        evil.mood(Mood::Hanging);
        for _ in 0..3 {
            let after = world.fetch(&url).await;
            assert_eq!(after.body, real);
            assert_eq!(after.cache_status(), before.cache_status(), "{known}");
        }
        assert_eq!(world.origin.total(), asked, "asked again on a stranger's word");
        // The operator is told once: which index, which file.
        world.proxy.counted("larder_alarms", "mismatch", 1.0).await;
        assert!(world.proxy.metric("larder_alarms", "mismatch").await < 1.1);
        world.told(&["why", &url], &format!("kept all the same: {index} promises")).await;
        // Whichever origin is down, and whatever is lost except the store.
        for origin in [&world.origin, &honest] {
            origin.mood(Mood::Failing(503));
        }
        assert_eq!(world.fetch(&url).await.body, real);
        world.restart(|_| {}).await;
        let again = world.fetch(&url).await;
        assert!(again.is_hit() && again.cache_status().contains(known), "{}", again.cache_status());
    }
}

/// The false claim came first: the file is kept as if there was no claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_lie_keeps_no_file_out() {
    let world = World::new().await;
    let evil = world.another("127.0.0.2").await;
    let (real, lie) = (noise(24, 400_000), noise(25, 1000));
    let url = world.origin.put(&plain_wheel("demo"), Page::new(real.clone()));
    world.fetch(&put_simple(&evil, "/", "demo", &[(&url, &lie)])).await;
    assert_eq!(world.fetch(&url).await.body, real);
    let again = world.fetch(&url).await;
    assert!(again.is_hit() && again.cache_status().contains("pinned"), "{}", again.cache_status());
}

/// An index elsewhere that already names the file does not keep the origin's own index from being asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_does_not_silence_the_index_of_the_files_origin() {
    for strange in [false, true] {
        let world = World::new().await;
        let evil = world.another("127.0.0.2").await;
        let (right, wrong) = (noise(26, 400_000), noise(27, 400_000));
        let url = world.origin.put(&plain_wheel("demo"), Page::new(wrong.clone()));
        put_simple(&world.origin, "/", "demo", &[(&url, &right)]);
        if strange {
            world.fetch(&put_simple(&evil, "/", "demo", &[(&url, &wrong)])).await;
        }
        assert!(!world.get(&url).await.is_complete(), "strange: {strange}");
    }
}

/// An index without authority decides neither what may be kept nor whether a redirect is followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_promise_keeps_nothing_and_follows_nowhere() {
    for own in [false, true] {
        let world = World::new().await;
        let strange = world.another("127.0.0.2").await;
        let speaker = if own { &world.origin } else { &strange };
        let (bytes, page) = (noise(28, 400_000), "<html>sign in</html>".repeat(100));
        let private = Page::new(bytes.clone()).header("cache-control", "private, no-store");
        let private = world.origin.put(&plain_wheel("private"), private);
        let sign_in = Page::new(page.clone()).header("content-type", "text/html");
        let sign_in = world.origin.put(&plain_wheel("page"), sign_in);
        let far = world.origin.put("/far", Page::new(bytes.clone()));
        let redirect = world.origin.put(&plain_wheel("redirect"), Page::redirect(302, &far));
        for (name, url, said) in [
            ("private", &private, &bytes[..]),
            ("page", &sign_in, page.as_bytes()),
            ("redirect", &redirect, &bytes[..]),
        ] {
            world.fetch(&put_simple(speaker, "/", name, &[(url, said)])).await;
        }
        // The control: the origin's own index decides all three.
        for url in [&private, &sign_in] {
            world.fetch(url).await;
            assert_eq!(world.fetch(url).await.is_hit(), own, "{url}");
        }
        assert_eq!(world.get(&redirect).await.status.as_u16(), if own { 200 } else { 302 });
    }
}

/// A version of a pinned file that an index elsewhere names is not the one that is given.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_selects_no_older_bytes() {
    let world = World::new().await;
    let evil = world.another("127.0.0.2").await;
    let (old, new) = (noise(29, 400_000), noise(30, 400_000));
    let path = plain_wheel("demo");
    let url = world.origin.put(&path, Page::new(old.clone()).etag("old"));
    world.fetch(&url).await;
    world.origin.put(&path, Page::new(new.clone()).etag("new"));
    let today = world.client.get(&url).header("cache-control", "no-cache").send().await;
    assert_eq!(today.complete().body, new);
    world.fetch(&put_simple(&evil, "/", "demo", &[(&url, &old)])).await;
    assert_eq!(world.fetch(&url).await.body, new);
}
