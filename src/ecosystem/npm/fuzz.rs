//! Fuzz targets of npm: any bytes, and the properties that the results must have.

use std::io::{self, Cursor, Read};
use std::sync::LazyLock;

use super::dist::Dists;
use super::shape::{Page, PageKind, Tarball};
use super::signatures::Judge;
use super::{accept, document, sri};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::digest::Digest;
use crate::keyring::Keyring;
use crate::target::{Root, Scheme, Target};

/// A limit on the document: above the size of fuzz inputs, and low enough to keep the fuzzer fast.
const LIMIT: u64 = 1024 * 1024;

/// Built once: parsing the archives' keyrings takes longer than parsing a document.
static KEYS: LazyLock<Keyring> = LazyLock::new(Keyring::built_in);

/// Parses any bytes as either kind of document. Every claim keeps the rules, unless the document is malformed.
pub fn npm_document(bytes: &[u8]) {
    let Some(base) = Target::from_url("https://example.org/t/@gears%2fbox") else {
        return;
    };
    let root = Root::directory_of(&base);
    for about in [PageKind::Package, PageKind::Version] {
        let mut out = Rules;
        let open = || -> io::Result<Box<dyn Read>> { Ok(Box::new(Cursor::new(bytes.to_vec()))) };
        let judge = Judge::new(&KEYS, "@gears/box", Some(&open));
        let mut dists = Dists::new(&base, &root, judge, &mut out);
        // The result does not matter: both malformed and read are allowed.
        let _answer = document::read(bytes, LIMIT, about, &mut dists);
    }
}

/// Parses any text as a path, as `integrity` and as an `Accept` header.
///
/// # Panics
///
/// If a tarball's document is recognised as another package's, if digests of two algorithms are alternatives, or if the
/// fill of a class is in another class.
pub fn npm_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let digests = sri::alternatives(&text);
    assert!(
        digests
            .windows(2)
            .all(|pair| pair.first().map(Digest::algorithm) == pair.last().map(Digest::algorithm))
    );
    if let Some(class) = accept::classify(&text) {
        assert_eq!(accept::classify(class.accept), Some(class));
    }
    let Some(target) = Target::from_url(&format!("https://example.org/{text}")) else {
        return;
    };
    if let Some(Tarball { package, root, .. }) = Tarball::at(&target) {
        assert!(root.covers(&target));
        let document = super::document_of(&root, &package);
        let page = document.as_ref().and_then(Page::at);
        assert!(
            page.is_none_or(|page| page.package == package),
            "{target} is looked for in {document:?}"
        );
    }
}

/// Asserts that every claim keeps the rules, and drops it.
struct Rules;

impl ClaimSink for Rules {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert_eq!(claim.digests.len(), 1, "alternatives are claims of their own");
        assert_eq!(claim.target.origin().scheme, Scheme::Https);
        assert_eq!(claim.target.variant(), "");
        let tarball = Tarball::at(&claim.target);
        assert!(
            tarball.is_some_and(
                |tarball| tarball.topic() == claim.topic && tarball.package == "@gears/box"
            ),
            "a request for this file would not find {claim:?}"
        );
        Ok(())
    }
}
