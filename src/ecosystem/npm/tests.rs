//! Tests of npm's parts together.

use super::*;
use crate::claim::{Claim, Topic};
use crate::ecosystem::tests::{self, Answer, Known, head, target};
use hyper::StatusCode;

const CI: &str = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*";
const SRI: &str = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

#[test]
fn requests_are_recognised_by_shape_and_class() {
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for (path, accept, expected) in [
        ("/ms", CI, "certain index / install"),
        ("/ms", accept::TYPE_INSTALL, "certain index / install-only"),
        ("/ms", "application/json", "likely index / full"),
        ("/ms", "", "likely index / any"),
        ("/ms", browser, "no"),
        ("/t/npm/@types%2fms", CI, "certain index /t/npm/ install"),
        ("/@types%2fms", "application/json", "certain index / full"),
        ("/@types%2fms", "*/*", "certain index / any"),
        ("/@types%2fms", browser, "no"),
        ("/@types/ms", "application/json", "likely index / full"),
        ("/@types/ms", CI, "certain index / install"),
        ("/ms/latest", CI, "certain index / install"),
        ("/ms/2.1.3", "*/*", "likely index / any"),
        ("/ms/-/ms-2.1.3.tgz", "*/*", "certain artifact / npm:ms"),
        // yarn 1 and older pnpm send the same `Accept` for tarballs as for documents.
        ("/ms/-/ms-2.1.3.tgz", CI, "certain artifact / npm:ms"),
        ("/ms/-/ms-2.1.3.tgz", browser, "certain artifact / npm:ms"),
        ("/t/@types/ms/-/ms-2.1.0.tgz", "*/*", "certain artifact /t/ npm:@types/ms"),
        ("/-/ping", CI, "no"),
        ("/-/npm/v1/security/advisories/bulk", "*/*", "no"),
        ("/-/v1/search?text=ms", "application/json", "no"),
        ("/", CI, "no"),
        // Whatever the `Accept`, these belong to another ecosystem.
        ("/pypi/idna/json", CI, "likely index /pypi/idna/ install"),
        ("/d/dists/s/InRelease", CI, "likely index /d/dists/s/ install"),
    ] {
        assert_eq!(tests::said(&Npm, path, accept), expected, "{path} {accept}");
    }
}

/// The fields that npm was observed to send, and those that must make a pass.
#[test]
fn what_npm_says_of_itself_changes_nothing_and_its_credentials_do() {
    let harmless = Npm.profile().harmless_headers;
    for field in [
        "pacote-version",
        "pacote-req-type",
        "pacote-pkg-id",
        "pacote-integrity",
        "npm-auth-type",
        "npm-command",
    ] {
        assert!(harmless.contains(&field), "{field}");
    }
    assert!(!harmless.iter().any(|field| field.contains('*')));
    for field in ["npm-otp", "authorization", "referer"] {
        assert!(!harmless.contains(&field), "{field}");
    }
}

#[test]
fn a_registry_is_confirmed_by_a_document_about_the_package_that_was_asked_for() {
    let confirm = |path: &str, status, start: &str| {
        let at = target(&format!("https://example.org{path}"));
        Npm.confirm(&at, &head(status, &[]), start.as_bytes())
    };
    let full =
        r#"{"_id": "ms", "_rev": "1-a", "name": "ms", "dist-tags": {"latest": "2.1.3"}, "vers"#;
    let scoped = r#"{"name":"@types/ms","versions":{"0.1.0":{"na"#;
    let version = r#"{"name":"ms","version":"2.1.3","description":"cut he"#;
    let ok = StatusCode::OK;
    assert!(confirm("/ms", ok, full));
    assert!(confirm("/t/@types/ms", ok, scoped));
    assert!(confirm("/t/@types%2fms", ok, scoped));
    assert!(confirm("/ms/latest", ok, version));
    for (path, status, start) in [
        ("/ms", StatusCode::NOT_FOUND, full),
        ("/other", ok, full),
        ("/ms/latest", ok, &full.replace("version", "x")),
        ("/ms", ok, version),
        ("/ms", ok, r#"[{"name": "ms", "versions": {}}]"#),
        ("/ms", ok, r#"{"name": "ms", "id": 7}"#),
        ("/ms", ok, r#"{"error": "ms", "versions": []}"#),
        ("/ms", ok, "<html>"),
        ("/ms", ok, ""),
        ("/-/ping", ok, full),
    ] {
        assert!(!confirm(path, status, start), "{path} {start}");
    }
}

fn claims(at: &str, base: &str, proven: Rank, head: &Head, body: &str) -> (Vec<Claim>, Standing) {
    let answer = Answer { at, base, proven, head, body: body.as_bytes() };
    let (out, standing) = tests::read(&Npm, &answer, &Known::default()).unwrap();
    (out.claims, standing)
}

fn packument(package: &str) -> String {
    format!(
        r#"{{"name": "{package}", "versions": {{"1.0.0": {{"dist": {{"integrity": "{SRI}",
             "tarball": "https://files.example.org/{package}/-/ms-1.0.0.tgz"}}}}}}}}"#
    )
}

#[test]
fn both_urls_of_a_scoped_package_make_the_same_claims() {
    let ok = head(StatusCode::OK, &[("content-type", "text/plain")]);
    let body = packument("@types/ms");
    let read = |at: &str| claims(at, at, Rank::Origin, &ok, &body);
    let (joined, standing) = read("https://example.org/t/@types%2fms");
    assert_eq!(read("https://example.org/t/@types/ms"), (joined.clone(), standing.clone()));
    assert_eq!((standing.rank, &*standing.root.path), (Rank::Indexed, "/t/"));
    assert_eq!(joined.len(), 2);
    assert_eq!(joined[0].topic, Topic::new("npm", "@types/ms"));
    // A client with a configured registry requests the tarball there, whatever host the document names.
    let asked = target("https://example.org/t/@types/ms/-/ms-1.0.0.tgz");
    assert_eq!(joined[1].target.match_key(), asked.match_key());
}

/// An attacker on a plain HTTP path could otherwise block every file of a real origin.
#[test]
fn what_came_over_plain_http_or_is_no_answer_makes_no_claims() {
    let (tls, plain) = ("https://example.org/ms", "http://example.org/ms");
    let body = packument("ms");
    let said = |at, base, proven, status| {
        let (found, standing) = claims(at, base, proven, &head(status, &[]), &body);
        (found.len(), standing.rank)
    };
    let ok = StatusCode::OK;
    assert_eq!(said(tls, tls, Rank::Origin, ok), (2, Rank::Indexed));
    for (at, base, proven, status) in [
        (tls, tls, Rank::None, ok),
        (plain, plain, Rank::Origin, ok),
        (plain, tls, Rank::Origin, ok),
        (tls, plain, Rank::Origin, ok),
        (tls, tls, Rank::Origin, StatusCode::NOT_FOUND),
        ("https://example.org/-/ping", tls, Rank::Origin, ok),
    ] {
        assert_eq!(said(at, base, proven, status), (0, Rank::None));
    }
}

#[test]
fn a_content_coding_is_refused() {
    let at = target("https://example.org/ms");
    let document = Document {
        at: &at,
        base: &at,
        head: &head(StatusCode::OK, &[("content-encoding", "gzip")]),
        proven: Rank::Origin,
        now: crate::clock::Time::from_millis(0),
        open: &|| panic!("it was opened"),
        shelf: &Known::default(),
    };
    assert!(Npm.claims(&document, &Keyring::new(), &mut Vec::new()).is_err());
}

#[test]
fn a_tarball_wants_the_document_that_npm_would_ask_for() {
    let roots =
        ["https://example.org/t/", "http://example.org/plain/", "https://files.example.org/npm/"];
    let mut known = Known::claiming_roots("files.example.org", &roots);
    let tarball = target("https://files.example.org/npm/@types/ms/-/ms-2.1.0.tgz");
    let expected =
        ["https://files.example.org/npm/@types%2fms", "https://example.org/t/@types%2fms"]
            .map(|url| target(url).with_variant("install"));
    assert_eq!(Npm.wants(&tarball, &known), expected);
    let bare = target(&expected[0].url());
    let Recognised::Certain(resource) = Npm.recognise(&Shape { target: &bare, accept: CI }) else {
        panic!("{bare}");
    };
    assert_eq!(resource.variant.name, expected[0].variant());
    assert_eq!(resource.variant.accept, Npm.accept(expected[0].variant()));

    known.store(&expected[..1]);
    assert_eq!(Npm.wants(&tarball, &known), expected[1..]);
    known.store(&expected);
    assert_eq!(Npm.wants(&tarball, &known), []);
    assert_eq!(
        Npm.wants(&target("https://example.org/ms/-/ms-2.1.3.tgz"), &Known::default()),
        [target("https://example.org/ms").with_variant("install")]
    );
}

#[test]
fn few_documents_are_wanted_and_none_over_plain_http() {
    let known = Known::eight_claiming_roots("example.org");
    let wants = |url: &str| Npm.wants(&target(url), &known).len();
    assert_eq!(wants("https://example.org/ms/-/ms-2.1.3.tgz"), MAX_WANTED);
    assert_eq!(wants("https://example.org/ms"), 0);
    let plain = target("http://example.org/ms/-/ms-2.1.3.tgz");
    assert_eq!(Npm.wants(&plain, &Known::default()), []);
}
