//! Tests of the test environment: it does what the tests believe it does; otherwise a passing test would mean nothing.

use std::time::Duration;

use crate::world::blind::Blind;
use crate::world::{Ca, Client, End, Fault, Gate, Origin, Page, noise};

async fn direct() -> (Origin, Blind, Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("ca.pem"));
    let origin = Origin::tls(&ca, "127.0.0.1").await;
    let blind = Blind::start(None).await;
    let client = Client::new(blind.address, ca.roots());
    (origin, blind, client, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn origins_answer_whole_in_parts_and_not_at_all() {
    let (origin, _blind, client, _dir) = direct().await;
    let body = noise(1, 1_000_000);
    let url = origin.put("/a", Page::new(body.clone()).etag("1"));
    assert_eq!(client.get(&url).send().await.complete().body, body);
    assert_eq!(client.get(&url).h2().send().await.complete().body, body);
    let part = client.get(&url).range("10-19").send().await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &body[10..20]));
    let same = client.get(&url).header("if-none-match", "\"1\"").send().await;
    assert_eq!(same.status.as_u16(), 304);
    assert_eq!(client.get(&origin.url("/none")).send().await.status.as_u16(), 404);
    assert_eq!(origin.gets("/a"), 4);
    assert_eq!(origin.asked("/a")[2].text("range"), Some("bytes=10-19"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_body_is_no_complete_one() {
    let (origin, _blind, client, _dir) = direct().await;
    let page = Page::new(noise(2, 500_000)).fault(Fault::Cut(200_000));
    for page in [page.clone(), page.chunked()] {
        let url = origin.put("/cut", page);
        for ask in [client.get(&url), client.get(&url).h2()] {
            let got = ask.send().await;
            assert!(got.end != End::Complete && got.body.len() <= 200_000);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_byte_comes_when_the_gate_opens() {
    let (origin, _blind, client, _dir) = direct().await;
    let (body, gate) = (noise(3, 300_000), Gate::closed());
    let url =
        origin.put("/held", Page::new(body.clone()).fault(Fault::Hold(299_999, gate.clone())));
    let mut opened = client.get(&url).open().await.unwrap();
    assert!(opened.read(299_999).await);
    let early = tokio::time::timeout(Duration::from_millis(100), opened.read(300_000)).await;
    assert!(early.is_err());
    gate.open();
    assert!(opened.equals(&body).await);
}

#[test]
fn noise_repeats_nowhere() {
    let (one, two) = (noise(1, 300_000), noise(2, 300_000));
    assert_eq!((one.len(), two.len()), (300_000, 300_000));
    assert_ne!(one, two);
    assert_ne!(one[..65536], one[65536..131_072]);
    assert_eq!(one, noise(1, 300_000));
}
