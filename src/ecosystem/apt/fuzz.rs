//! Fuzz targets of apt: any bytes, and the properties that the results must have.

use std::io::Read as _;

use super::stanzas::Places;
use super::{date, expand, release, stanzas};
use crate::claim::{Claim, ClaimSink, TooMany, Topic};
use crate::keyring::{Cleartext, contents};
use crate::target::{Root, Target};

/// A limit on expansion: above what fuzz inputs expand to, and low enough to keep the fuzzer fast.
const LIMIT: u64 = 1024 * 1024;

/// Parses any bytes as an index, plain and compressed. Every claim is under the archive's root, unless the index is
/// malformed.
///
/// # Panics
///
/// If a claim is outside the root.
pub fn apt_index(bytes: &[u8]) {
    let Some(at) = Target::from_url("https://example.org/debian/dists/stable/main/Packages") else {
        return;
    };
    let root = Root::at(&at, "/debian".len());
    let _answer = stanzas::name(bytes);
    let places = Places { bases: vec![root.clone()], topic: Topic::new("apt", "debian") };
    for known in [true, false] {
        let mut out = Within(&root);
        // The result does not matter: both malformed and read are allowed.
        let _answer = stanzas::read(bytes, &places, known, &mut out);
        if let Ok(plain) = expand::expand(bytes) {
            let _answer = stanzas::read(plain.take(LIMIT), &places, known, &mut out);
        }
    }
}

/// Parses any bytes as a clear-signed document, as its signed text, as a date and as keys.
pub fn apt_release(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _read = release::Release::read(&text);
    let _date = date::parse(&text);
    if let Ok(cleartext) = Cleartext::parse(bytes) {
        let _read = release::Release::read(cleartext.text());
    }
    let _keys = contents::read(bytes, "fuzz.rsa.pub");
}

/// Asserts that every claim is within the root and has a digest.
struct Within<'a>(&'a Root);

impl ClaimSink for Within<'_> {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert!(self.0.covers(&claim.target), "{} is outside {}", claim.target, self.0);
        assert!(!claim.digests.is_empty(), "{} is promised nothing", claim.target);
        Ok(())
    }
}
