//! An origin's refusal of one client is no answer for others: a 401 or 403 is not kept, not joined and not shared, whatever its
//! header fields say about caching.

use hyper::StatusCode;

use crate::world::archive::by_hash;
use crate::world::{Gate, Origin, Page, World, eventually, holding, noise};

const RIGHT: &str = "Bearer right";

/// A page for requests with [`RIGHT`]. Every other request is refused, each with a text of its own and with cacheable header
/// fields, after the gate opens.
fn put(origin: &Origin, path: &str, status: u16, page: &Page, gate: &Gate) -> String {
    let (page, gate) = (page.clone(), gate.clone());
    origin.script(path, move |request| {
        let shown = request.headers().get("authorization").map(|value| value.as_bytes().to_vec());
        let (mut page, gate) = (page.clone(), gate.clone());
        async move {
            if shown.as_deref() != Some(RIGHT.as_bytes()) {
                gate.passed().await;
                let who = String::from_utf8(shown.unwrap_or_default()).unwrap();
                page = Page::new(format!("not for {who}"))
                    .header("cache-control", "public, max-age=86400");
                page.status = StatusCode::from_u16(status).unwrap();
            }
            page.answer(request.method(), request.headers())
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_for_whom_it_was_said_to() {
    for status in [401, 403] {
        let world = World::new().await;
        let gate = Gate::closed();
        gate.open();
        let body = noise(1, 300_000);
        for path in [by_hash(&body), "/page".to_owned()] {
            let page = Page::new(body.clone()).fresh(600).etag("\"a\"");
            let url = put(&world.origin, &path, status, &page, &gate);
            let ask = |who: &str| world.client.get(&url).header("authorization", who).send();
            for _ in 0..2 {
                for who in ["Bearer one", "Bearer two"] {
                    let got = ask(who).await;
                    assert_eq!(
                        (got.status.as_u16(), &got.body[..]),
                        (status, format!("not for {who}").as_bytes())
                    );
                }
                let anonymous = world.get(&url).await;
                assert_eq!(
                    (anonymous.status.as_u16(), &anonymous.body[..]),
                    (status, &b"not for "[..])
                );
                // The control: a client with the right gets the page, before and after.
                assert_eq!(ask(RIGHT).await.complete().body, body, "{path}");
            }
        }
        assert!(holding(&world.cache(), b"not for").is_empty());
    }
}

/// Simultaneous requests: a client with the right does not get the refusal of the first client.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_under_way_is_not_joined() {
    for status in [401, 403] {
        let world = World::new().await;
        let gate = Gate::closed();
        let body = noise(2, 300_000);
        let path = by_hash(&body);
        let url = put(&world.origin, &path, status, &Page::new(body.clone()).etag("\"a\""), &gate);
        let wrong = tokio::spawn(world.client.get(&url).header("authorization", "Bearer x").send());
        eventually("the first is on its way", || async { world.origin.gets(&path) > 0 }).await;
        let right = tokio::spawn(world.client.get(&url).header("authorization", RIGHT).send());
        let third = tokio::spawn(world.client.get(&url).header("authorization", "Bearer y").send());
        gate.open();
        assert_eq!(right.await.unwrap().complete().body, body);
        for (refused, who) in [(wrong, "x"), (third, "y")] {
            let got = refused.await.unwrap();
            assert_eq!(got.status.as_u16(), status);
            assert_eq!(got.body, format!("not for Bearer {who}"));
        }
    }
}
