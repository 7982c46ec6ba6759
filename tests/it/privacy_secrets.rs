//! P5 for the secrets themselves: what a client sends its origin is found nowhere else.

use std::path::Path;

use hyper::Method;

use crate::world::archive::{by_hash, plain_wheel, put_simple};
use crate::world::binary::{Daemon, say};
use crate::world::larder::own;
use crate::world::tools::text;
use crate::world::{Ca, Client, Mood, Origin, Page, eventually, holding, noise};

const SECRET: &str = "s3cr3t";
const PLANTED: &str = "planted-on-purpose";

/// A method, a prefix of the path, and header fields.
type Place = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Every place where a client may put a secret.
const PLACES: [Place; 8] = [
    ("GET", "", &[("authorization", "Bearer s3cr3t-bearer")]),
    ("GET", "", &[("authorization", "Basic czNjcjN0s3cr3t")]),
    ("GET", "", &[("authorization", "NTLM s3cr3t-ntlm")]),
    ("GET", "", &[("cookie", "session=s3cr3t-cookie"), ("private-token", "s3cr3t-private")]),
    ("GET", "", &[("x-jfrog-art-api", "s3cr3t-jfrog"), ("x-nuget-apikey", "s3cr3t-nuget")]),
    ("GET", "", &[("x-vault-token", "s3cr3t-vault")]),
    ("GET", "/t/s3cr3t-0123456789-abcdef", &[]),
    ("POST", "", &[("authorization", "Bearer s3cr3t-post")]),
];

/// Requests everything at `paths`, with every secret.
async fn show_all(client: &Client, origin: &Origin, paths: &[String]) {
    for (method, before, fields) in PLACES {
        for path in paths {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let url = origin.url(&format!("{before}{path}"));
            let mut ask = client.ask(method.clone(), &url);
            for (name, value) in fields {
                ask = ask.header(name, value);
            }
            if method == Method::POST {
                ask = ask.body("password=s3cr3t-in-a-body");
            }
            ask.send().await;
        }
    }
    let signed = origin.url(&format!("{}?X-Amz-Signature=s3cr3t-signature&n=1", paths[0]));
    client.get(&signed).send().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_stands_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let (origin, data) = (Origin::tls(&ca, "127.0.0.1").await, dir.path().join("data"));
    let mut daemon = Daemon::start(&ca, &data, &[("LARDER_LOG_FILTER", "trace")]).await;
    let client = daemon.client().await;
    let (named, wheel) = (noise(1, 100_000), noise(2, 100_000));
    let paths = [
        by_hash(&named),
        plain_wheel("demo"),
        "/simple/demo/".to_owned(),
        format!("/{PLANTED}/unknown"),
        format!("/{PLANTED}/kept"),
        "/nothing".to_owned(),
    ];
    for before in ["", "/t/s3cr3t-0123456789-abcdef"] {
        origin.put(&format!("{before}{}", paths[0]), Page::new(named.clone()).etag("a"));
        origin.put(&format!("{before}{}", paths[1]), Page::new(wheel.clone()).etag("b"));
        let root = format!("{before}/");
        put_simple(&origin, &root, "demo", &[("../../files/demo-1.0-py3-none-any.whl", &wheel)]);
        // An answer that sets a cookie is not kept; the other one is.
        let mut page = Page::new("unknown").etag("c");
        if !before.is_empty() {
            page = page.header("set-cookie", "s=s3cr3t-set");
        }
        origin.put(&format!("{before}{}", paths[3]), page.fresh(60));
        origin.put(&format!("{before}{}", paths[4]), Page::new("kept").etag("d").fresh(60));
    }
    // The origin works, then fails, then works again.
    for mood in [Mood::Well, Mood::Failing(401), Mood::Failing(503), Mood::Well] {
        origin.mood(mood);
        show_all(&client, &origin, &paths).await;
    }
    let mut told = vec![own(daemon.address, "/-/metrics").await];
    for path in &paths {
        for before in ["", "/t/s3cr3t-0123456789-abcdef"] {
            let url = origin.url(&format!("{before}{path}"));
            told.push(text(&say(&ca, &data, &["why", &url]).await));
        }
    }
    for command in [&["ls"][..], &["stats"]] {
        told.push(text(&say(&ca, &data, command).await));
    }
    let told = told.join("\n");
    eventually("the requests are logged", || async {
        daemon.log().contains("/nothing") && daemon.log().contains(PLANTED)
    })
    .await;
    assert_eq!(daemon.terminate().await, Some(0));
    for (place, text) in [("the log", daemon.log()), ("what larder tells", told)] {
        let leaks: Vec<&str> = text.lines().filter(|line| line.contains(SECRET)).collect();
        assert!(leaks.is_empty(), "{place}: {leaks:#?}");
        assert!(text.contains(PLANTED), "the control: {place} would show it\n{text}");
    }
    nothing_kept(&data, &named[1000..1032]);
}

/// Byte by byte: no secret is in the data directory, apart from what is meant to be kept.
fn nothing_kept(data: &Path, body: &[u8]) {
    assert_eq!(holding(data, SECRET.as_bytes()), Vec::<std::path::PathBuf>::new());
    assert!(!holding(data, PLANTED.as_bytes()).is_empty(), "the control: the search finds URLs");
    assert!(!holding(data, body).is_empty(), "the control: private bodies are kept");
    std::fs::write(data.join("planted"), "x s3cr3t x").unwrap();
    assert_eq!(holding(data, SECRET.as_bytes()).len(), 1, "the control: it would be found");
}
