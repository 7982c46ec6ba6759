//! Parses manifests and indexes of manifests: the files that they name, with digest and length.
//!
//! Both are small documents that clients read as a whole, up to a limit, and so does larder. A document that can be
//! read both as an index and as an image, or that is of another type than its header states, can present two images
//! under one digest (CVE-2021-41190). Such a document is malformed.

use std::io::Read;

use serde::Deserialize;

use super::shape::{self, RegistryPath};
use super::topic;
use crate::claim::{Claim, ClaimSink};
use crate::digest::Digest;
use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::{Bounded, Nesting, malformed};
use crate::target::{Scheme, Target};

/// The maximum length of a manifest, in bytes: what registries must accept and clients do accept (OCI distribution,
/// "Pushing manifests").
const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

/// The maximum number of `urls` of one layer that are read. Real layers have one.
const MAX_URLS: usize = 8;

/// An index of manifests, one for each platform.
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The manifest of one image, or of anything else that is packed like one.
const IMAGES: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
];

/// Whether a `Content-Type` is that of a manifest whose digest is that of its bytes.
pub(super) fn is_manifest(kind: &str) -> bool {
    let kind = essence(kind);
    INDEXES.contains(&kind) || IMAGES.contains(&kind)
}

fn essence(kind: &str) -> &str {
    kind.split(';').next().unwrap_or(kind).trim()
}

/// The members of a manifest or an index that larder reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

/// A content descriptor (OCI image, "Content Descriptors").
#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

/// A file that a manifest names.
#[derive(Debug)]
pub(super) struct Names<'a> {
    verb: &'static str,
    descriptor: &'a Descriptor,
}

/// Parses a document with the `Content-Type` `kind`. `None` for a document that names nothing by digest: schema 1, or
/// one that is no manifest at all.
pub(super) fn read(document: impl Read, kind: Option<&str>) -> Result<Option<Manifest>, Malformed> {
    let kind = kind.map(essence);
    if kind.is_some_and(|kind| !is_manifest(kind)) {
        return Ok(None);
    }
    let mut text = Vec::new();
    let mut bounded = Bounded::new(document, MAX_MANIFEST, Nesting::default());
    bounded.read_to_end(&mut text).map_err(malformed)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| not_one(error.to_string()))?;
    if manifest.schema_version == Some(1) {
        return Ok(None);
    }
    manifest.check(kind)?;
    Ok(Some(manifest))
}

fn not_one(found: String) -> Malformed {
    Malformed::Shape { expected: "manifest", found }
}

impl Manifest {
    /// Refuses a document that is both an index and an image (CVE-2021-41190).
    fn check(&self, kind: Option<&str>) -> Result<(), Malformed> {
        let said = self.media_type.as_deref();
        if let (Some(said), Some(kind)) = (said, kind)
            && said != kind
        {
            return Err(not_one(format!("{said}, sent as {kind}")));
        }
        let lists = self.manifests.is_some();
        let holds = self.config.is_some() || self.layers.is_some() || self.blobs.is_some();
        let called = |kinds: &[&str]| said.or(kind).is_some_and(|kind| kinds.contains(&kind));
        let two = lists && (holds || called(&IMAGES)) || holds && called(&INDEXES);
        if two {
            return Err(not_one("an index and an image in one document".to_owned()));
        }
        if !lists && !holds {
            return Err(not_one("a document that names nothing".to_owned()));
        }
        Ok(())
    }

    /// Everything that it names, in order.
    pub(super) fn named(&self) -> impl Iterator<Item = Names<'_>> {
        let children = self.manifests.iter().flatten().chain(&self.subject);
        let files = self.config.iter().chain(self.layers.iter().flatten());
        let files = files.chain(self.blobs.iter().flatten());
        let name = |verb| move |descriptor| Names { verb, descriptor };
        children.map(name("manifests")).chain(files.map(name("blobs")))
    }
}

impl Names<'_> {
    /// Claims the file in the repository of `place`, which was read at `at`, and at the URLs in its descriptor. A
    /// digest whose algorithm larder does not know makes no claim.
    pub(super) fn claim(
        &self,
        place: &RegistryPath,
        at: &Target,
        out: &mut dyn ClaimSink,
    ) -> Result<(), Malformed> {
        let Some(digest) = shape::digest(&self.descriptor.digest) else {
            return Ok(());
        };
        let sibling = place.sibling(self.verb, &digest);
        let elsewhere = self.descriptor.urls.iter().take(MAX_URLS);
        let elsewhere = elsewhere.filter_map(|url| foreign(at, url, &digest));
        for target in sibling.into_iter().chain(elsewhere) {
            let name = RegistryPath::at(&target).map_or_else(String::new, |place| place.name);
            let (digests, size) = (vec![digest], Some(self.descriptor.size));
            out.claim(Claim { target, topic: topic(&name), digests, size })?;
        }
        Ok(())
    }
}

/// A layer outside of the registry, if its URL is one that larder recognises as that blob.
fn foreign(at: &Target, url: &str, digest: &Digest) -> Option<Target> {
    use shape::What::{Blob, Stored};
    let target = at.join(url).filter(|target| target.origin().scheme == Scheme::Https)?;
    let (Blob(named) | Stored(named)) = RegistryPath::at(&target)?.what else {
        return None;
    };
    (named == *digest).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn outcome(text: &str, kind: Option<&str>) -> Result<usize, String> {
        let text = text.replace('D', &format!(r#"{{"digest":"{DIGEST}","size":2}}"#));
        match read(text.as_bytes(), kind) {
            Ok(read) => Ok(read.map_or(0, |read| read.named().count())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_a_manifest_names_is_read() {
        let [index, list] = INDEXES;
        let [image, docker, artifact] = IMAGES;
        for (text, kind, expected) in [
            (r#"{"config":D,"layers":[D,D]}"#, Some(image), 3),
            (r#"{"config":D,"layers":[D],"subject":D,"annotations":{"a":"b"}}"#, None, 3),
            (r#"{"schemaVersion":2,"config":D,"layers":[]}"#, Some(docker), 1),
            (r#"{"blobs":[D]}"#, Some(artifact), 1),
            (r#"{"manifests":[D,D]}"#, Some(index), 2),
            (r#"{"manifests":[]}"#, Some(list), 0),
            // A registry's error, a sign-in page, and a manifest without a digest of its bytes.
            (r#"{"errors":[]}"#, Some("application/json"), 0),
            ("<html>", Some("text/html; charset=utf-8"), 0),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None, 0),
        ] {
            assert_eq!(outcome(text, kind), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_names_nothing() {
        let ([index, _], [image, docker, _]) = (INDEXES, IMAGES);
        let typed = |kind: &str, rest: &str| format!(r#"{{"mediaType":"{kind}",{rest}}}"#);
        for (text, kind) in [
            (r#"{"manifests":[D],"layers":[D]}"#.to_owned(), None),
            (r#"{"manifests":[D],"config":D}"#.to_owned(), Some(index)),
            (r#"{"manifests":[D]}"#.to_owned(), Some(image)),
            (r#"{"layers":[D]}"#.to_owned(), Some(index)),
            (typed(image, r#""layers":[D]"#), Some(docker)),
            (typed(image, r#""manifests":[D]"#), None),
            (r#"{"layers":[D],"layers":[D]}"#.to_owned(), None),
            (r#"{"layers":[{"digest":"sha256:0"}]}"#.to_owned(), None),
            (r#"{"layers":[{"digest":"sha256:0","size":-1}]}"#.to_owned(), None),
            ("{}".to_owned(), None),
            ("[]".to_owned(), None),
        ] {
            assert!(outcome(&text, kind).is_err(), "{text}");
        }
    }

    #[test]
    fn a_manifest_longer_than_any_is_not_read() {
        let long = format!(r#"{{"layers":[],"x":{}0}}"#, " ".repeat(5 << 20));
        assert!(matches!(read(long.as_bytes(), None), Err(Malformed::Limit { .. })));
    }
}
