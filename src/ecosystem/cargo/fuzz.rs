//! Fuzz targets of cargo: any bytes, and the properties that the results must have.

use super::config::Template;
use super::lines;
use super::shape::{Crate, Page, PageKind};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::target::{Root, Scheme, Target};

/// A limit on the file: above the size of fuzz inputs, and low enough to keep the fuzzer fast.
const LIMIT: u64 = 1024 * 1024;

/// Parses any bytes as an index file, or as a configuration and, after the first line feed, an index file. Every claim
/// keeps the rules, unless the input is malformed.
pub fn cargo_index(bytes: &[u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
    let (config, file) = bytes.split_at(end);
    for (config, file) in [(config, file), (br#"{"dl":"https://files.example.org/crates"}"#, bytes)]
    {
        if let Ok(template) = Template::read(config) {
            // The result does not matter: both malformed and read are allowed.
            let _answer = lines::read(file, LIMIT, "gear-box", &template, &mut Rules);
        }
    }
}

/// Parses any text as a path.
///
/// # Panics
///
/// If the index file of a recognised crate is not recognised as the index file of that crate.
pub fn cargo_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some(target) = Target::from_url(&format!("https://example.org/{text}")) else {
        return;
    };
    if let Some(found) = Crate::at(&target) {
        assert!(found.root.covers(&target));
        let index = super::index_file_of(&Root::at(&target, 0), &found.name);
        let page = index.as_ref().and_then(Page::at).map(|page| page.about);
        assert_eq!(page, Some(PageKind::Crate(found.name.to_ascii_lowercase())));
    }
}

/// Asserts that every claim keeps the rules, and drops it.
struct Rules;

impl ClaimSink for Rules {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert_eq!(claim.digests.len(), 1);
        assert_eq!(claim.target.origin().scheme, Scheme::Https);
        assert_eq!(claim.target.variant(), "");
        assert!(
            Crate::at(&claim.target).is_some_and(|found| found.topic() == claim.topic),
            "a request for this file would not find {claim:?}"
        );
        Ok(())
    }
}
