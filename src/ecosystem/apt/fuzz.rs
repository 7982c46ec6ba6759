//! Bodies of fuzz tests: any bytes, and what must hold of the answer.

use std::io::Read as _;

use super::stanzas::Places;
use super::{date, expand, release, stanzas};
use crate::claim::{Claim, ClaimSink, TooMany, Topic};
use crate::keyring::{Cleartext, contents};
use crate::target::{Root, Target};

/// More than any input that a fuzzer makes unfolds to, less than what would slow it down.
const LIMIT: u64 = 1024 * 1024;

/// Any bytes as an index, and as each of the compressions: claims under the archive's root, or malformed.
///
/// # Panics
///
/// If a claim leaves the root.
pub fn apt_index(bytes: &[u8]) {
    let Some(at) = Target::from_url("https://example.org/debian/dists/stable/main/Packages") else {
        return;
    };
    let root = Root::at(&at, "/debian".len());
    let _answer = stanzas::name(bytes);
    let places = Places { bases: vec![root.clone()], topic: Topic::new("apt", "debian") };
    for known in [true, false] {
        let mut out = Within(&root);
        // Malformed or read: both are answers.
        let _answer = stanzas::read(bytes, &places, known, &mut out);
        if let Ok(plain) = expand::expand(bytes) {
            let _answer = stanzas::read(plain.take(LIMIT), &places, known, &mut out);
        }
    }
}

/// Any bytes as a clear-signed document, as what was signed in it, as a date and as keys.
pub fn apt_release(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _read = release::Release::read(&text);
    let _date = date::parse(&text);
    if let Ok(cleartext) = Cleartext::parse(bytes) {
        let _read = release::Release::read(cleartext.text());
    }
    let _keys = contents::read(bytes, "fuzz.rsa.pub");
}

/// Holds that nothing outside the root is spoken of.
struct Within<'a>(&'a Root);

impl ClaimSink for Within<'_> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert!(self.0.covers(&claim.target), "{} is outside {}", claim.target, self.0);
        assert!(!claim.digests.is_empty(), "{} is promised nothing", claim.target);
        Ok(())
    }
}
