//! Tests of cargo's parts together.

use super::*;
use crate::ecosystem::tests::{self, Answer, ForeignClaimAlarms, Known, head, target};
use hyper::StatusCode;

const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const CONFIG: &str =
    r#"{"dl": "https://files.example.org/v1/crates", "api": "https://example.org"}"#;

fn line() -> String {
    format!(
        r#"{{"name":"itoa","vers":"1.0.1","deps":[],"cksum":"{ONE}","features":{{}},"yanked":false}}"#
    )
}

#[test]
fn requests_are_recognised_by_shape_and_class() {
    for (path, accept, expected) in [
        ("/config.json", "text/plain", "likely index / text"),
        ("/t/index/config.json", "*/*", "likely index /t/index/ any"),
        ("/it/oa/itoa", "text/plain", "likely index / text"),
        ("/it/oa/itoa", "", "likely index / any"),
        ("/it/oa/itoa", "text/html,*/*;q=0.8", "no"),
        ("/it/oa/other", "text/plain", "no"),
        ("/v1/crates/Itoa/1.0.1/download", "*/*", "certain artifact /v1/crates/ cargo:itoa"),
        ("/dl/itoa/1.0.1/download", "*/*", "likely artifact /dl/ cargo:itoa"),
        ("/any/itoa-1.0.1.crate", "text/html", "certain artifact /any/ cargo:itoa"),
        ("/api/v1/crates/itoa", "*/*", "no"),
        ("/api/v1/crates?q=itoa", "*/*", "no"),
    ] {
        assert_eq!(tests::said(&Cargo, path, accept), expected, "{path} {accept}");
    }
    assert_eq!(Cargo.accept("text"), "text/plain");
    assert_eq!(Cargo.accept("any"), "*/*");
}

#[test]
fn a_registry_is_confirmed_by_its_configuration_or_by_a_crates_first_line() {
    let confirm = |path: &str, status, start: &str| {
        let at = target(&format!("https://example.org{path}"));
        Cargo.confirm(&at, &head(status, &[]), start.as_bytes())
    };
    let ok = StatusCode::OK;
    assert!(confirm("/config.json", ok, CONFIG));
    assert!(confirm("/it/oa/itoa", ok, &format!("{}\n{{", line())));
    assert!(confirm("/it/oa/itoa", ok, &line().replace("itoa", "Itoa")));
    // The line may be longer than `start`.
    assert!(confirm("/it/oa/itoa", ok, r#"{"name": "itoa", "vers": "0.1.0", "deps": [{"na"#));
    for (path, status, start) in [
        ("/config.json", StatusCode::NOT_FOUND, CONFIG),
        ("/config.json", ok, r#"{"theme": "dark"}"#),
        ("/config.json", ok, r#"{"dl": "dark"}"#),
        ("/config.json", ok, r#"{"dl": "https://example.org"#),
        ("/it/oa/itoa", ok, CONFIG),
        ("/it/oa/itoa", ok, &line().replace("itoa", "other")),
        ("/it/oa/itoa", ok, r#"{"name": "itoa"}"#),
        ("/it/oa/itoa", ok, "{\"a\": 1}\n{\"name\": \"itoa\", \"vers\": \"1.0.0\"}"),
        ("/it/oa/itoa", ok, "<html>"),
        ("/it/oa/itoa", ok, ""),
        ("/any/itoa-1.0.1.crate", ok, CONFIG),
    ] {
        assert!(!confirm(path, status, start), "{path} {start}");
    }
}

fn text(url: &str) -> Target {
    target(url).with_variant("text")
}

fn claims(
    at: &str,
    body: &str,
    known: &Known,
) -> Result<(ForeignClaimAlarms, Standing), Malformed> {
    let (head, proven, body) = (&head(StatusCode::OK, &[]), Rank::Origin, body.as_bytes());
    tests::read(&Cargo, &Answer { at, base: at, proven, head, body }, known)
}

#[test]
fn an_index_file_claims_through_the_configuration_of_its_own_registry() {
    let at = "https://example.org/t/it/oa/itoa";
    for class in ["text", "any"] {
        let config = target("https://example.org/t/config.json").with_variant(class);
        let known = Known::holding(vec![(config, CONFIG)]);
        let (heard, standing) = claims(at, &line(), &known).unwrap();
        assert_eq!((standing.rank, &*standing.root.path), (Rank::Indexed, "/t/"));
        let urls: Vec<String> = heard.claims.iter().map(|claim| claim.target.url()).collect();
        assert_eq!(urls, ["https://files.example.org/v1/crates/itoa/1.0.1/download"]);
    }
    // The configuration of another registry, even of one around this one, does not count.
    for elsewhere in ["https://example.org/config.json", "https://other.example.org/t/config.json"]
    {
        let known = Known::holding(vec![(text(elsewhere), CONFIG)]);
        let (heard, standing) = claims(at, &line(), &known).unwrap();
        assert_eq!((heard.claims.len(), standing.rank), (0, Rank::None), "{elsewhere}");
    }
    let broken = Known::holding(vec![(text("https://example.org/t/config.json"), "<html>")]);
    assert!(claims(at, &line(), &broken).is_err());
}

#[test]
fn a_configuration_promises_nothing_and_says_where_its_crates_are() {
    let at = "https://example.org/t/config.json";
    let (heard, standing) = claims(at, CONFIG, &Known::default()).unwrap();
    assert_eq!((standing.rank, &*standing.root.path), (Rank::None, "/t/"));
    assert_eq!((heard.claims.len(), heard.spoken_of), (0, vec!["files.example.org".into()]));
    assert!(claims(at, "{}", &Known::default()).is_err());
}

/// An attacker on a plain HTTP path could otherwise block every file of a real origin.
#[test]
fn what_came_over_plain_http_makes_no_claims() {
    let known = Known::holding(vec![
        (text("https://example.org/config.json"), CONFIG),
        (text("http://example.org/config.json"), CONFIG),
    ]);
    let count = |at: &str, body: &str| {
        let (heard, standing) = claims(at, body, &known).unwrap();
        (heard.claims.len(), heard.spoken_of.len(), standing.rank)
    };
    let tls = count("https://example.org/it/oa/itoa", &line());
    assert_eq!(tls, (1, 0, Rank::Indexed));
    let plain = count("http://example.org/it/oa/itoa", &line());
    assert_eq!(plain, (0, 0, Rank::None));
    let config = count("http://example.org/config.json", CONFIG);
    assert_eq!(config, (0, 0, Rank::None));
}

#[test]
fn an_index_file_wants_its_configuration() {
    let config = text("https://example.org/t/config.json");
    let at = target("https://example.org/t/it/oa/itoa");
    let mut known = Known::default();
    assert_eq!(Cargo.wants(&at, &known), std::slice::from_ref(&config));
    known.stored.push((config.clone(), CONFIG));
    assert_eq!(Cargo.wants(&at, &known), []);
    assert_eq!(Cargo.wants(&config, &Known::default()), []);
    let plain = target("http://example.org/t/it/oa/itoa");
    assert_eq!(Cargo.wants(&plain, &Known::default()), []);
}

/// A cargo with a fresh index requests only `config.json` before its crates.
#[test]
fn a_crate_wants_the_index_files_of_who_named_its_origin() {
    let at = target("https://files.example.org/v1/crates/Itoa/1.0.1/download");
    let mut known = Known::eight_claiming_roots("files.example.org");
    let expected = [
        "https://example.org/0/config.json",
        "https://example.org/0/it/oa/itoa",
        "https://example.org/1/config.json",
        "https://example.org/1/it/oa/itoa",
    ]
    .map(text);
    assert_eq!(Cargo.wants(&at, &known), expected);
    known.stored.push((expected[0].clone(), CONFIG));
    assert_eq!(Cargo.wants(&at, &known), expected[1..]);
}

#[test]
fn an_origin_that_nobody_named_is_asked_whether_it_is_a_registry() {
    let at = target("https://example.org/api/v1/crates/itoa/1.0.1/download");
    let mut known = Known::default();
    let config = text("https://example.org/config.json");
    assert_eq!(Cargo.wants(&at, &known), std::slice::from_ref(&config));
    known.stored = vec![(config.clone(), CONFIG)];
    let index = text("https://example.org/it/oa/itoa");
    assert_eq!(Cargo.wants(&at, &known), [index]);
    known.stored = vec![(config, r#"{"theme": "dark"}"#)];
    assert_eq!(Cargo.wants(&at, &known), []);
}
