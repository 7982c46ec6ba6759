//! Fuzz targets of OCI: any bytes, and the properties that the results must have.

use super::shape::{RegistryPath, What};
use super::{accept, manifest};
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::target::{Scheme, Target};

/// Parses any bytes as a manifest. Every claim keeps the rules, unless the manifest is malformed.
pub fn oci_manifest(bytes: &[u8]) {
    let at = Target::from_url("https://example.org/v2/gears/box/manifests/latest?ns=example.com");
    let Some((at, place)) = at.and_then(|at| Some((at.clone(), RegistryPath::at(&at)?))) else {
        return;
    };
    // The result does not matter: both malformed and read are allowed.
    let Ok(Some(read)) = manifest::read(bytes, None) else {
        return;
    };
    for named in read.named() {
        let _claimed = named.claim(&place, &at, &mut Rules);
    }
}

/// Parses any text as a path, and as an `Accept` header.
///
/// # Panics
///
/// If a place is outside its root, if a digest is written differently from how it was parsed, or if the fill of a class
/// is in another class.
pub fn oci_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(class) = accept::classify(&text) {
        assert_eq!(accept::classify(class.accept), Some(class));
        assert_eq!(accept::by_name(class.name), Some(class));
    }
    let Some(target) = Target::from_url(&format!("https://example.org/v2/{text}")) else {
        return;
    };
    let Some(place) = RegistryPath::at(&target) else {
        return;
    };
    assert!(place.root.covers(&target));
    let (verb, digest) = match place.what {
        What::Manifest(digest) => ("manifests", digest),
        What::Blob(digest) if !place.name.is_empty() => ("blobs", digest),
        What::Blob(_) | What::Tag | What::Stored(_) | What::Referrers | What::List => return,
    };
    let again = place.sibling(verb, &digest).and_then(|again| Some(RegistryPath::at(&again)?.what));
    assert_eq!(again, Some(place.what), "{target}");
}

/// Asserts that every claim keeps the rules, and drops it.
struct Rules;

impl ClaimSink for Rules {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        assert_eq!(claim.target.origin().scheme, Scheme::Https);
        assert_eq!(claim.target.variant(), "");
        let named = RegistryPath::at(&claim.target).and_then(|place| match place.what {
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
