//! Bodies of fuzz tests: any bytes, and what must hold of the answer.

use super::shape::{Place, What};
use super::{accept, manifest};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::target::{Scheme, Target};

/// Any bytes as a manifest: claims that keep the rules, or malformed.
pub fn oci_manifest(bytes: &[u8]) {
    let at = Target::from_url("https://example.org/v2/gears/box/manifests/latest?ns=example.com");
    let Some((at, place)) = at.and_then(|at| Some((at.clone(), Place::at(&at)?))) else {
        return;
    };
    // Malformed or read: both are answers.
    let Ok(Some(read)) = manifest::read(bytes, None) else {
        return;
    };
    for named in read.named() {
        let _claimed = named.claim(&place, &at, &mut Rules);
    }
}

/// Any text as a path, and as an `Accept` header.
///
/// # Panics
///
/// If a place lies outside of what speaks for it, a digest is written otherwise than it was read, or a fill is of another
/// class than its request.
pub fn oci_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(class) = accept::classify(&text) {
        assert_eq!(accept::classify(class.accept), Some(class));
        assert_eq!(accept::by_name(class.name), Some(class));
    }
    let Some(target) = Target::from_url(&format!("https://example.org/v2/{text}")) else {
        return;
    };
    let Some(place) = Place::at(&target) else {
        return;
    };
    assert!(place.root.covers(&target));
    let (verb, digest) = match place.what {
        What::Manifest(digest) => ("manifests", digest),
        What::Blob(digest) if !place.name.is_empty() => ("blobs", digest),
        What::Blob(_) | What::Tag | What::Stored(_) | What::Referrers | What::List => return,
    };
    let again = place.sibling(verb, &digest).and_then(|again| Some(Place::at(&again)?.what));
    assert_eq!(again, Some(place.what), "{target}");
}

/// Takes any claim that keeps the rules, and forgets it.
struct Rules;

impl ClaimSink for Rules {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert_eq!(claim.target.origin().scheme, Scheme::Https);
        assert_eq!(claim.target.variant(), "");
        let named = Place::at(&claim.target).and_then(|place| match place.what {
            What::Manifest(digest) | What::Blob(digest) | What::Stored(digest) => {
                Some((digest, super::topic(&place.name)))
            }
            What::Tag | What::Referrers | What::List => None,
        });
        let said = claim.digests.first().copied().map(|digest| (digest, claim.topic.clone()));
        assert_eq!(named, said, "a request for this file would not find {claim:?}");
        Ok(())
    }
}
