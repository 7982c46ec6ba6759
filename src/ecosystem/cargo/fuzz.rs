//! Bodies of fuzz tests: any bytes, and what must hold of the answer.

use super::config::Template;
use super::lines;
use super::shape::{About, Crate, Page};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::target::{Root, Scheme, Target};

/// More than any input that a fuzzer makes, less than what would slow it down.
const LIMIT: u64 = 1024 * 1024;

/// Any bytes as an index file, or as a configuration and the index file behind its first line end: claims that keep the
/// rules, or malformed.
pub fn cargo_index(bytes: &[u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
    let (config, file) = bytes.split_at(end);
    for (config, file) in [(config, file), (br#"{"dl":"https://files.example.org/crates"}"#, bytes)]
    {
        if let Ok(template) = Template::read(config) {
            // Malformed or read: both are answers.
            let _answer = lines::read(file, LIMIT, "gear-box", &template, &mut Rules);
        }
    }
}

/// Any text as a path.
///
/// # Panics
///
/// If a crate's index file would not be about it.
pub fn cargo_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some(target) = Target::from_url(&format!("https://example.org/{text}")) else {
        return;
    };
    if let Some(found) = Crate::at(&target) {
        assert!(found.root.covers(&target));
        let index = super::index_file_of(&Root::at(&target, 0), &found.name);
        let page = index.as_ref().and_then(Page::at).map(|page| page.about);
        assert_eq!(page, Some(About::Crate(found.name.to_ascii_lowercase())));
    }
}

/// Takes any claim that keeps the rules, and forgets it.
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
