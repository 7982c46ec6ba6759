//! Tests of `PyPI`'s parts together.

use super::*;
use crate::claim::{Claim, Topic};
use crate::ecosystem::tests::{self, Answer, Known, target};
use hyper::StatusCode;

const PIP: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01";
const HEX: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const WHEEL: &str = "widget-1.0-py3-none-any.whl";

fn head(headers: &[(&'static str, &str)]) -> Head {
    tests::head(StatusCode::OK, headers)
}

#[test]
fn requests_are_recognised_by_shape_and_class() {
    let digest = format!("/packages/11/11/{}", "1".repeat(60));
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for (path, accept, expected) in [
        ("/simple/widget/", PIP, "certain index / json"),
        ("/t/simple/widget/", "*/*", "certain index /t/ any"),
        ("/simple/widget/", "text/html", "certain index / legacy"),
        ("/simple/widget/", browser, "no"),
        ("/simple/", PIP, "certain index / json"),
        ("/pypi/widget/json", browser, "certain index / "),
        (&format!("{digest}/{WHEEL}"), "*/*", "certain artifact named / pypi:widget"),
        (&format!("{digest}/{WHEEL}.metadata"), "*/*", "certain artifact / pypi:widget"),
        (&format!("{digest}/{WHEEL}.asc"), "*/*", "no"),
        (&format!("/simple/widget/{WHEEL}"), PIP, "certain artifact /simple/widget/ pypi:widget"),
        ("/any/a-1-2.tar.gz", "*/*", "likely artifact /any/ pypi:a-1 pypi:a"),
        ("/any/a.tar.gz", "*/*", "no"),
        ("/whl/cpu/torch/", PIP, "likely index /whl/cpu/torch/ json"),
        ("/whl/torch_stable.html", PIP, "likely index /whl/ json"),
        ("/links/", "text/html", "likely index /links/ legacy"),
        ("/links/", "*/*", "no"),
        ("/links/", browser, "no"),
        ("/links/page", PIP, "no"),
    ] {
        assert_eq!(tests::said(&Pypi, path, accept), expected, "{path} {accept}");
    }
}

#[test]
fn a_page_of_links_is_confirmed_by_its_content() {
    let at = target("https://example.org/links/");
    let simple = format!("<!DOCTYPE html><h1>Links</h1><a href=\"p/widget-1.0.zip#sha256={HEX}\">");
    let typed = head(&[("content-type", accept::TYPE_JSON)]);
    let plain = head(&[]);
    let said = |head: &Head, start: &str| Pypi.confirm(&at, head, start.as_bytes());
    assert!(said(&plain, &simple));
    assert!(said(&plain, r#"{"meta": {"api-version": "1.0"}, "files": ["#));
    assert!(said(&typed, r#"{"alternate-locations": [], "files": [{"#));
    for start in [
        "",
        "<a href=\"widget-1.0.zip\">",
        "<a href=\"widget-1.0.zip#top\">",
        "<a href=\"page.html#sha256=00\">",
        r#"{"alternate-locations": [], "files": [{"#,
        r#"["files", "api-version"]"#,
    ] {
        assert!(!said(&plain, start), "{start}");
    }
    let missing = Head { status: StatusCode::NOT_FOUND, ..plain };
    assert!(!said(&missing, &simple));
}

fn claims(at: &str, base: &str, proven: Rank, head: &Head, body: &str) -> (Vec<Claim>, Rank) {
    let answer = Answer { at, base, proven, head, body: body.as_bytes() };
    let (out, standing) = tests::read(&Pypi, &answer, &Known::default()).unwrap();
    (out.claims, standing.rank)
}

#[test]
fn json_and_html_are_told_apart_by_content_alone() {
    let page = "https://example.org/simple/widget/";
    let html = format!("\n<a href=\"{WHEEL}#sha256={HEX}\">");
    let json = format!(
        r#" {{"files": [{{"url": "{WHEEL}", "hashes": {{"sha256": "{HEX}"}}}}], "meta": {{"api-version": "1.3"}}}}"#
    );
    for wrong in ["text/html", accept::TYPE_JSON, "text/plain"] {
        let head = head(&[("content-type", wrong)]);
        for body in [&html, &json] {
            let (found, rank) = claims(page, page, Rank::Origin, &head, body);
            assert_eq!(rank, Rank::Indexed);
            assert_eq!(found[0].target.url(), format!("{page}{WHEEL}"), "{body}");
            assert_eq!(found[0].topic, Topic::new("pypi", "widget"));
        }
    }
}

/// An attacker on a plain HTTP path could otherwise block every file of a real origin.
#[test]
fn what_came_over_plain_http_makes_no_claims() {
    let (tls, plain) = ("https://example.org/simple/widget/", "http://example.org/simple/widget/");
    let body = format!("<a href=\"https://example.org/{WHEEL}#sha256={HEX}\">");
    let said = |at, base, proven| claims(at, base, proven, &head(&[]), &body);
    assert_eq!(said(tls, tls, Rank::Origin).0.len(), 1);
    for (at, base, proven) in [
        (tls, tls, Rank::None),
        (plain, plain, Rank::None),
        (plain, tls, Rank::Origin),
        (tls, plain, Rank::Origin),
    ] {
        assert_eq!(said(at, base, proven), (Vec::new(), Rank::None));
    }
}

#[test]
fn the_list_of_all_projects_is_not_read() {
    let at = target("https://example.org/simple/");
    let document = Document {
        at: &at,
        base: &at,
        head: &head(&[]),
        proven: Rank::Origin,
        now: crate::clock::Time::from_millis(0),
        open: &|| panic!("it was opened"),
        shelf: &Known::default(),
    };
    let standing = Pypi.claims(&document, &Keyring::new(), &mut Vec::new()).unwrap();
    assert_eq!(standing.rank, Rank::None);
}

#[test]
fn what_is_no_page_is_malformed() {
    let at = "https://example.org/simple/widget/";
    let read = |coding, body: &[u8]| {
        let head = &head(&[("content-encoding", coding)]);
        let answer = Answer { at, base: at, proven: Rank::Origin, head, body };
        tests::read(&Pypi, &answer, &Known::default())
    };
    for (coding, body) in [
        ("gzip", &b"<html>"[..]),
        ("identity", b""),
        ("identity", b" \n"),
        ("identity", b"Service unavailable"),
        ("identity", b"\x1f\x8b\x08"),
        ("identity", b"\xEF\xBB\xBF"),
    ] {
        assert!(read(coding, body).is_err(), "{coding} {body:?}");
    }
    for body in [&b"<html>"[..], b"\xEF\xBB\xBF\n<html>"] {
        assert!(read("identity", body).is_ok(), "{body:?}");
    }
}

#[test]
fn a_file_wants_the_pages_that_may_name_it() {
    let roots = ["https://example.org/t/", "https://other.example.org/"];
    let mut known = Known::claiming_roots("files.example.org", &roots);
    let file =
        target(&format!("https://files.example.org/packages/11/11/{}/{WHEEL}", "1".repeat(60)));
    let expected = [
        "https://files.example.org/simple/widget/",
        "https://example.org/t/simple/widget/",
        "https://other.example.org/simple/widget/",
    ]
    .map(|url| target(url).with_variant("json"));
    assert_eq!(Pypi.wants(&file, &known), expected);

    // A stored page is not requested again, and its entry is the same as the one that pip fills.
    let accept = Pypi.accept(expected[0].variant());
    for page in &expected {
        let bare = target(&page.url());
        let Recognised::Certain(resource) = Pypi.recognise(&Shape { target: &bare, accept: PIP })
        else {
            panic!("{page}");
        };
        assert_eq!((resource.variant.name, resource.variant.accept), (page.variant(), accept));
    }
    known.store(&expected[..1]);
    assert_eq!(Pypi.wants(&file, &known), expected[1..]);
    known.store(&expected);
    assert_eq!(Pypi.wants(&file, &known), []);
}

#[test]
fn few_pages_are_wanted_whatever_a_file_is_called() {
    let known = Known::eight_claiming_roots("files.example.org");
    let wants = |path: &str| {
        let url = format!("https://files.example.org{path}");
        Pypi.wants(&target(&url), &known).len()
    };
    assert_eq!(wants("/packages/a-1-2-3-4-5-6-7-8.tar.gz"), MAX_WANTED);
    assert_eq!(wants("/simple/widget/"), 0);
    assert_eq!(wants("/page"), 0);
    let plain = target("http://files.example.org/packages/a-1.0.zip");
    assert_eq!(Pypi.wants(&plain, &Known::default()), []);
}
