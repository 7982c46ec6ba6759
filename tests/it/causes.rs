//! Issue 13 row 1: every request that was refused, failed or passed has its reason in the log, in `larder recent` and `why`, and
//! as a label.

use serde_json::Value;

use crate::world::archive::{by_hash, flipped, plain_wheel};
use crate::world::binary::{self, Daemon, say};
use crate::world::tools::text;
use crate::world::{Ca, End, Fault, Gate, Origin, PATIENCE, Page, World, eventually, noise};

/// The JSON lines of one of larder's own pages.
async fn asked(world: &World, path: &str) -> Vec<Value> {
    let text = world.proxy.own(path).await;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn events(world: &World) -> Vec<Value> {
    asked(world, "/-/recent").await.into_iter().map(|answer| answer["event"].clone()).collect()
}

/// Waits for an event with this cause about `url`: it is recorded when the last byte was sent.
async fn told(world: &World, url: &str, kind: &str, cause: &str) -> Value {
    let find = || async {
        let events = events(world).await;
        events
            .into_iter()
            .find(|event| event["url"] == url && event["kind"] == kind && event["cause"] == cause)
    };
    let waited = tokio::time::timeout(PATIENCE, async {
        while find().await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{kind}({cause}) of {url}: {:?}", events(world).await);
    find().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_cause_in_words_and_as_a_label() {
    let world = World::with(|config| {
        config.hosts.refuse = vec![larder::config::HostPattern("refused.example.org".into())];
    })
    .await;
    let strangers = Ca::new(&world.dir().join("strangers.pem"));
    let stranger = Origin::tls(&strangers, "127.0.0.3").await;
    let untrusted = stranger.put("/x", Page::new("x"));
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("https://{}/x", listener.local_addr().unwrap())
    };
    let broken =
        world.origin.put("/broken", Page::new(noise(1, 300_000)).fault(Fault::Cut(100_000)));
    for (url, outcome, cause, word) in [
        (untrusted, "failed", "certificate", "its certificate"),
        (closed, "failed", "connect", "no connection"),
        ("https://169.254.1.1/x".to_owned(), "failed", "guard", "allow_nets"),
        (broken, "failed", "no-answer", "no answer"),
    ] {
        let label = format!("outcome=\"{outcome}\",reason=\"{cause}\"");
        let before = world.proxy.metric("larder_requests_total", &label).await;
        let got = world.get(&url).await;
        let event = told(&world, &url, outcome, cause).await;
        assert!(event["why"].as_str().unwrap().contains(word), "{event}");
        assert!(got.end == End::Reset || event["status"] == got.status.as_u16(), "{event}");
        assert_eq!(event["method"], "GET");
        world.proxy.counted("larder_requests_total", &label, before + 1.0).await;
        // `why` has the same cause.
        let query: String = url::form_urlencoded::byte_serialize(url.as_bytes()).collect();
        let why = asked(&world, &format!("/-/why?url={query}")).await;
        assert_eq!(why[0]["why"]["recent"][0]["cause"], *cause, "{why:?}");
    }
    // The control: a success is no event, and has no cause.
    let well = world.origin.put("/well", Page::new("well"));
    world.fetch(&well).await;
    assert!(events(&world).await.iter().all(|event| event["url"] != well.as_str()));
}

/// The outcome in the header of an answer that is cut is replaced by how the answer ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_off_is_counted_as_what_it_became() {
    for (h2, header) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new().await;
        let right = noise(2, 2_000_000);
        let url = world.origin.put(&by_hash(&right), Page::new(flipped(&right)));
        let ask = world.client.get(&url);
        let ask = if header { ask.header("x-unknown", "1") } else { ask };
        let got = if h2 { ask.h2().send().await } else { ask.send().await };
        assert!(got.status.is_success() && got.end == End::Reset, "{:?}", got.end);
        told_anyhow(&world, header).await;
        let label = "outcome=\"rejected\",reason=\"promise\"";
        world.proxy.counted("larder_requests_total", label, 1.0).await;
        for wrong in ["outcome=\"miss\"", "outcome=\"pass\""] {
            assert!(world.proxy.metric("larder_requests_total", wrong).await < 1.0, "{wrong}");
        }
        let right_one = noise(3, 2_000_000);
        let url = world.origin.put(&by_hash(&right_one), Page::new(right_one.clone()));
        world.fetch(&url).await;
        // The control.
        world.proxy.counted("larder_requests_total", "outcome=\"miss\"", 1.0).await;
    }
}

/// Waits until the refusal is counted. A request with an unknown header field is not shown to everybody.
async fn told_anyhow(world: &World, private: bool) {
    world.proxy.counted("larder_requests_total", "outcome=\"rejected\"", 1.0).await;
    let is_told = || async { events(world).await.iter().any(|event| event["kind"] == "rejected") };
    if private {
        assert!(!is_told().await);
    } else {
        eventually("it is told", is_told).await;
    }
}

/// An unknown header field may hold a credential, and then the file, its URL and its digest are private.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_about_a_request_with_an_unknown_header_field_is_told_to_its_operator_alone() {
    for (h2, late, private) in [
        (false, false, false),
        (false, false, true),
        (true, false, true),
        (false, true, false),
        (false, true, true),
        (true, true, true),
    ] {
        let world = World::new().await;
        let right = noise(6, 2_000_000);
        let gate = Gate::closed();
        let held = Fault::Hold(1_000_000, gate.clone());
        let page = Page::new(flipped(&right)).fault(held);
        let path = if late { plain_wheel("demo") } else { by_hash(&right) };
        let url = world.origin.put(&path, page);
        let ask = world.client.get(&url);
        let ask = if private { ask.header("x-unknown", "1") } else { ask };
        let got = if h2 { ask.h2() } else { ask }.open().await.unwrap();
        if late {
            crate::late::publish(&world, "demo", &path, &right).await;
        }
        gate.open();
        assert!(!got.rest().await.is_complete());
        told_anyhow(&world, private).await;
        let case = format!("h2: {h2}, late: {late}, private: {private}");
        world.proxy.counted("larder_rejected_total", "", 1.0).await;
        if !private {
            told(&world, &url, "rejected", "promise").await;
            eventually("the alarm is told", || async {
                let events = events(&world).await;
                events.iter().any(|event| event["kind"] == "alarm" && event["url"] == *url)
            })
            .await;
        }
        let events = events(&world).await;
        let alarm = events.iter().any(|event| event["kind"] == "alarm" && event["url"] == *url);
        assert_eq!(alarm, !private, "{case}: {events:?}");
        assert_eq!(events.iter().any(|event| event["url"] == *url), !private, "{case}: {events:?}");
        let query: String = url::form_urlencoded::byte_serialize(url.as_bytes()).collect();
        let why = asked(&world, &format!("/-/why?url={query}")).await;
        let known = why[0]["why"]["recent"].as_array().is_some_and(|recent| !recent.is_empty());
        assert_eq!(known, !private, "{case}: {why:?}");
    }
}

/// A pass because of a header field names the field. A request with a credential is shown to the operator only.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_hears_why_of_everything_and_others_of_what_is_public() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new(&directory.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.1").await;
    let data = directory.path().join("data");
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let client = daemon.client().await;
    let passed = origin.put("/passed", Page::new("x"));
    client.get(&passed).header("x-strange", "1").send().await.complete();
    let right = noise(4, 9_000);
    let refused = origin.put(&by_hash(&right), Page::new(flipped(&right)));
    assert_eq!(client.get(&refused).send().await.status.as_u16(), 502);
    let hidden = format!("{}?hidden", origin.put("/private", Page::status(502)));
    let secret = "Bearer s3cret";
    let right = noise(5, 9_000);
    let guarded = origin.put(&by_hash(&right), Page::new(flipped(&right)));
    client.get(&guarded).header("authorization", secret).send().await;
    client.get(&hidden).header("authorization", secret).send().await;
    let larder = async |arguments: &[&str]| {
        let output = say(&ca, &data, arguments).await;
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for written in [&refused, &guarded] {
        binary::told(&ca, &data, &["recent"], written).await;
    }
    let why = binary::told(&ca, &data, &["why", &passed], "pass(header)").await;
    assert!(why.contains("x-strange"), "{why}");
    daemon.logged("why=its header field x-strange").await;
    let recent = binary::told(&ca, &data, &["recent"], "rejected(promise)").await;
    assert!(recent.contains("client 127.0.0.1"), "{recent}");
    // From another machine the answers are the same, but without requests with credentials and without client addresses.
    let proxy = format!("http://{}", daemon.address);
    let afar = larder(&["recent", "--json", "--proxy", &proxy]).await;
    assert!(afar.contains(&refused) && !afar.contains(&guarded), "{afar}");
    assert!(!afar.contains("127.0.0.1\","), "{afar}");
    binary::told(&ca, &data, &["why", "--proxy", &proxy, &refused], "rejected(promise)").await;
    let afar = larder(&["why", "--proxy", &proxy, &guarded]).await;
    assert!(!afar.contains("rejected"), "{afar}");
}

/// The private entries of a larder are listed for its operator, and never for another machine.
#[tokio::test(flavor = "multi_thread")]
async fn from_afar_only_public_entries_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new(&directory.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.1").await;
    let data = directory.path().join("data");
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let client = daemon.client().await;
    let (open, closed) = (noise(6, 5_000), noise(7, 5_000));
    let public = origin.put(&by_hash(&open), Page::new(open.clone()));
    let private = origin.put(&by_hash(&closed), Page::new(closed.clone()));
    client.get(&public).send().await.complete();
    client.get(&private).header("authorization", "Bearer x").send().await.complete();
    let proxy = format!("http://{}", daemon.address);
    let list = async |arguments: &[&str]| {
        let output = say(&ca, &data, arguments).await;
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    eventually("both are stored", || async { list(&["ls"]).await.lines().count() == 2 }).await;
    let here = list(&["ls"]).await;
    assert!(here.contains(&public) && here.contains(&format!("{private} (private)")), "{here}");
    assert!(here.lines().all(|line| !line.contains("\\n")), "a line ends once: {here}");
    let afar = list(&["ls", "--proxy", &proxy]).await;
    assert!(afar.contains(&public) && !afar.contains(&private), "{afar}");
    let stats: Value =
        serde_json::from_str(&list(&["stats", "--json", "--proxy", &proxy]).await).unwrap();
    assert_eq!(stats["all"]["entries"], 1, "{stats}");
    let stats: Value = serde_json::from_str(&list(&["stats", "--json"]).await).unwrap();
    assert_eq!(stats["all"]["entries"], 2, "the control: {stats}");
    // Another machine cannot change anything.
    let output = say(&ca, &data, &["why", "--proxy", "http://127.0.0.1:9", &public]).await;
    assert!(text(&output).contains("no larder answers"), "{}", text(&output));
}

/// A question about a wrong directory is an error, and creates no store there.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_makes_no_store() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new(&directory.path().join("origins.pem"));
    let data = directory.path().join("wrong");
    for arguments in [
        &["why", "https://example.org/a"][..],
        &["ls"],
        &["stats"],
        &["recent"],
        &["verify"],
        &["rm", "--all"],
    ] {
        let output = say(&ca, &data, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains("no larder has stored anything in"), "{}", text(&output));
        assert!(!data.exists(), "{arguments:?}");
    }
    let output = say(&ca, &data, &["version"]).await;
    let version = format!("larder {}", env!("CARGO_PKG_VERSION"));
    assert!(text(&output).contains(&version), "{}", text(&output));
}
