//! Bodies of fuzz tests: any bytes, and what must hold of the answer.

use std::io::{self, Cursor, Read};
use std::sync::LazyLock;

use super::dist::Dists;
use super::shape::{About, Page, Tarball};
use super::signatures::Judge;
use super::{accept, document, sri};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::digest::Digest;
use crate::keyring::Keyring;
use crate::target::{Root, Scheme, Target};

/// More than any input that a fuzzer makes, less than what would slow it down.
const LIMIT: u64 = 1024 * 1024;

/// Built once: archives' keyrings take longer to read than a document.
static KEYS: LazyLock<Keyring> = LazyLock::new(Keyring::built_in);

/// Any bytes as either document about a package: claims that keep the rules, or malformed.
pub fn npm_document(bytes: &[u8]) {
    let Some(base) = Target::from_url("https://example.org/t/@gears%2fbox") else {
        return;
    };
    let root = Root::directory_of(&base);
    for about in [About::Package, About::Version] {
        let mut out = Rules;
        let open = || -> io::Result<Box<dyn Read>> { Ok(Box::new(Cursor::new(bytes.to_vec()))) };
        let judge = Judge::new(&KEYS, "@gears/box", Some(&open));
        let mut dists = Dists::new(&base, &root, judge, &mut out);
        // Malformed or read: both are answers.
        let _answer = document::read(bytes, LIMIT, about, &mut dists);
    }
}

/// Any text as a path, as integrity and as an `Accept` header.
///
/// # Panics
///
/// If a tarball's document would be another package's, digests of two algorithms are alternatives, or a fill is of
/// another class than its request.
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

/// Takes any claim that keeps the rules, and forgets it.
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
