//! Fuzz targets of `PyPI`: any bytes, and the properties that the results must have.

use super::links::Links;
use super::{accept, html, json, names, shape};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::ecosystem::Malformed;
use crate::target::{Scheme, Target};

/// A limit on the document: above the size of fuzz inputs, and low enough to keep the fuzzer fast.
const LIMIT: u64 = 1024 * 1024;

/// Parses any bytes as a simple page in HTML. Every claim keeps the rules, unless the page is malformed.
pub fn pypi_html(bytes: &[u8]) {
    with_links(|links| html::read(bytes, LIMIT, links));
}

/// Parses any bytes as one of the JSON documents. Every claim keeps the rules, unless the document is malformed.
pub fn pypi_json(bytes: &[u8]) {
    with_links(|links| json::read(bytes, LIMIT, links));
}

/// Parses any text as a file's name and as an `Accept` header.
///
/// # Panics
///
/// If an index picks a project that the file's name does not allow, or if the fill of a class is in another class.
pub fn pypi_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let projects = names::projects(&text);
    for page in projects.iter().map(String::as_str).chain(["widget"]) {
        assert_eq!(names::normalise(page), page);
        let claimed = names::project_of(&text, Some(page));
        assert!(claimed.is_none_or(|project| projects.contains(&project)));
    }
    if let Some(class) = accept::classify(&text) {
        assert_eq!(accept::classify(class.accept), Some(class));
    }
}

/// Asserts that every claim keeps the rules, and drops it.
struct Rules;

impl ClaimSink for Rules {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert!(!claim.digests.is_empty(), "a claim without a digest");
        assert_eq!(claim.target.origin().scheme, Scheme::Https);
        assert_eq!(claim.target.variant(), "");
        let topics = shape::Dist::at(&claim.target).map(|dist| dist.artifact().topics);
        assert!(
            topics.is_some_and(|topics| topics.contains(&claim.topic)),
            "a request for this file would not find {claim:?}"
        );
        Ok(())
    }
}

fn with_links(read: impl FnOnce(&mut Links<'_>) -> Result<(), Malformed>) {
    let Some(base) = Target::from_url("https://example.org/t/simple/widget/") else {
        return;
    };
    let mut out = Rules;
    // The result does not matter: both malformed and read are allowed.
    let _answer = read(&mut Links::new(base, Some("widget"), &mut out));
}
