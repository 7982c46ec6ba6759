//! No secret is shown or written to disk (DESIGN §4 "Credentials", §6): planted secrets are searched for in all of larder's
//! output, at its most verbose level, and in everything that it keeps.

use crate::world::archive::by_hash;
use crate::world::tools::text;
use crate::world::{Bench, Fault, Origin, Page, holding, noise};

/// A part of every planted secret.
const PLANTED: &str = "s3cr3t";

/// The output of a subcommand, which must contain no secret.
async fn told_by(bench: &Bench, arguments: &[&str]) -> String {
    let told = text(&bench.say(arguments).await);
    assert!(!told.contains(PLANTED), "{arguments:?}: {told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn why_ls_and_rm_find_by_the_whole_url_and_show_no_value_of_it() {
    let bench = Bench::new().await;
    let daemon = bench.start(&[("LARDER_LOG_FILTER", "trace")]).await;
    let client = daemon.client().await;
    // A query parameter whose name does not look like a secret's: the answer is kept, and the value is hidden all the same.
    let put = |value: &str, body: &'static str| {
        bench.origin.put(&format!("/page?session={value}"), Page::new(body).fresh(600))
    };
    let (one, two) = (put("s3cr3t-one", "the first"), put("s3cr3t-two", "the second"));
    for url in [&one, &two] {
        client.get(url).send().await.complete();
        assert!(client.get(url).send().await.complete().is_hit());
    }
    let shown = bench.origin.url("/page?session=…");
    assert_eq!(told_by(&bench, &["ls"]).await.matches(&shown).count(), 2);
    let told = told_by(&bench, &["why", &one]).await;
    assert!(
        told.contains(&shown) && told.contains("9 bytes") && !told.contains("10 bytes"),
        "{told}"
    );
    // As in pip.conf: the user information is not part of the target.
    let with_password = one.replace("https://", "https://user:s3cr3t-password@");
    assert!(told_by(&bench, &["why", &with_password]).await.contains("9 bytes"));
    assert!(told_by(&bench, &["why", &shown]).await.contains("values hidden"));
    for wrong in ["ftp://user:s3cr3t@example.org/", "https://user:s3cr3t@/x?y=s3cr3t", "s3cr3t@x"] {
        told_by(&bench, &["why", wrong]).await;
        told_by(&bench, &["rm", wrong]).await;
    }
    assert!(told_by(&bench, &["rm", &one]).await.contains("removed 1 entry"));
    assert!(client.get(&two).send().await.complete().is_hit(), "only what was named is removed");
    // As `ls` shows it: this matches all entries that are shown alike.
    put("s3cr3t-one", "the first");
    client.get(&one).send().await.complete();
    assert!(told_by(&bench, &["rm", &shown]).await.contains("removed 2 entries"));
    assert!(holding(&bench.data(), PLANTED.as_bytes()).is_empty());
    assert!(!daemon.log().contains(PLANTED));
}

/// The URL that a redirect leads to is mostly signed, and its server fails now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_address_behind_a_redirect_is_told_without_its_signature() {
    let bench = Bench::new().await;
    let daemon = bench.start(&[("LARDER_LOG_FILTER", "trace")]).await;
    let client = daemon.client().await;
    let body = noise(1, 300_000);
    let elsewhere = Origin::tls(&bench.ca, "127.0.0.2").await;
    let path = by_hash(&body);
    let signed = "/blob?X-Amz-Signature=s3cr3t-signature&X-Amz-Credential=s3cr3t-user";
    let url = bench.origin.put(&path, Page::redirect(302, &elsewhere.url(signed)));
    // It breaks, then it has another body, then it redirects to itself, then it is gone.
    elsewhere.put(signed, Page::new(body.clone()).fault(Fault::Cut(1000)).without_ranges());
    assert!(!client.get(&url).send().await.is_complete());
    elsewhere.put(signed, Page::new(noise(2, 300_000)));
    let got = client.get(&url).send().await;
    assert!(!got.is_complete() && !String::from_utf8_lossy(&got.body).contains(PLANTED));
    let circle = by_hash(b"a circle");
    let around = bench.origin.put(&circle, Page::redirect(302, &elsewhere.url(signed)));
    elsewhere.put(signed, Page::redirect(302, &elsewhere.url(signed)));
    client.get(&around).send().await;
    elsewhere.stop();
    let gone = by_hash(b"gone");
    let dead = bench.origin.put(&gone, Page::redirect(302, &elsewhere.url(signed)));
    let got = client.get(&dead).send().await;
    let said = String::from_utf8_lossy(&got.body).into_owned();
    assert!(got.status.is_server_error() && !said.contains(PLANTED), "{said}");
    // It names the hop that failed, so that the operator can investigate.
    assert!(said.contains(&elsewhere.url("/blob?X-Amz-Signature=…")), "{said}");
    for url in [&url, &around, &dead] {
        told_by(&bench, &["why", url]).await;
    }
    daemon.logged(&gone).await;
    let log = daemon.log();
    let leaks: Vec<&str> = log.lines().filter(|line| line.contains(PLANTED)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert!(holding(&bench.data(), PLANTED.as_bytes()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_of_the_operators_is_printed() {
    let bench = Bench::new().await;
    let file = bench.dir.path().join("larder.toml");
    std::fs::write(&file, "[upstream]\nhttps_proxy = \"http://user:s3cr3t@proxy.example.org\"\n")
        .unwrap();
    let file = file.to_str().unwrap();
    for arguments in [&["config", "--config", file][..], &["config", "--json", "--config", file]] {
        let told = told_by(&bench, arguments).await;
        // The control: the rest of it is shown.
        assert!(told.contains("user:…@proxy.example.org"), "{told}");
    }
    std::fs::write(file, "[upstream]\nhttps_proxy = \"ftp://user:s3cr3t@proxy.example.org\"\n")
        .unwrap();
    assert!(told_by(&bench, &["config", "--config", file]).await.contains("upstream.https_proxy"));
}
