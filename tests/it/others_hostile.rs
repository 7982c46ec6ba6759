//! Remembered answers other than a 200 that must not be given to the next request: a redirect away from a promised target (P3),
//! and an answer that its origin selected by another client's header fields (P1).

use std::time::Duration;

use crate::world::archive::{plain_wheel, put_simple};
use crate::world::{Page, World, noise};

/// Issue 10 row 4: a remembered redirect leads no client away from a target that was promised since.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_redirect_does_not_lead_past_a_promise_that_came_since() {
    for status in [301, 302, 303, 307, 308] {
        let world = World::new().await;
        let (right, wrong) = (noise(1, 30_000), noise(2, 30_000));
        // Another project makes the root known.
        let known = put_simple(&world.origin, "/", "other", &[(&plain_wheel("other"), b"x")]);
        world.fetch(&known).await;
        world.origin.put("/elsewhere.bin", Page::new(wrong.clone()));
        let path = plain_wheel("moved");
        let url = world.origin.put(&path, Page::redirect(status, "/elsewhere.bin").fresh(600));
        for hit in [false, true] {
            let got = world.get(&url).await;
            assert!(got.status.is_redirection() && got.is_hit() == hit, "the control: {status}");
        }
        world.fetch(&put_simple(&world.origin, "/", "moved", &[(&path, &right)])).await;
        let got = world.get(&url).await;
        assert!(
            !got.status.is_redirection() && !got.status.is_success(),
            "{status}: {}",
            got.status
        );
        // If it leads to what was promised, that is given.
        world.origin.put("/elsewhere.bin", Page::new(right.clone()));
        world.proxy.clock.advance(Duration::from_secs(61));
        assert_eq!(world.fetch(&url).await.body, right);
    }
}

/// RFC 9111 §4.1: an answer that its origin selected by a request field is given only to requests with the same value.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_answer_is_given_only_to_whom_its_vary_allows() {
    for (field, status) in [
        ("accept", 404),
        ("accept-language", 404),
        ("accept", 302),
        ("accept-language", 308),
        ("accept", 400),
    ] {
        let world = World::new().await;
        let url = world.origin.script("/page", move |asked| {
            let is_one = asked.headers().get(field).is_some_and(|value| value == "one");
            let page = if is_one {
                Page::redirect(status, "/nowhere")
            } else {
                Page::new("for all others")
            };
            let mut page = page.header("vary", field).fresh(50);
            let answer = page.answer(asked.method(), asked.headers());
            async move { answer }
        });
        let ask = |value: &str| world.client.get(&url).header(field, value).send();
        assert_eq!(ask("one").await.status.as_u16(), status);
        assert_eq!(ask("two").await.complete().body, "for all others", "{field} {status}");
        assert_eq!(ask("one").await.status.as_u16(), status, "{field}");
        assert_eq!(ask("three").await.complete().body, "for all others", "{field} {status}");
        // The control: without a `Vary`, or with the same values, it is given again. An error that a client's own header fields
        // may have caused is only for requests with the same ones.
        let plain = world.origin.put("/plain", Page::redirect(status, "/nowhere").fresh(50));
        world.get(&plain).await;
        let again = world.client.get(&plain).header(field, "two").send().await;
        assert_eq!(again.is_hit(), status != 400, "{field} {status}");
        let same =
            world.origin.put("/same", Page::redirect(status, "/x").header("vary", field).fresh(50));
        for hit in [false, true] {
            let got = world.client.get(&same).header(field, "one").send().await;
            assert_eq!(got.is_hit(), hit, "{field} {status}");
        }
    }
}
