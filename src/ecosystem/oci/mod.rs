//! Container images and other artifacts in a registry: OCI distribution, Docker registry v2.
//!
//! ```text
//! recognise   shape (path) and accept (class)   a tag, a list, or what is named by its digest
//! points_at   the response to a HEAD of a tag   the URL of the manifest under its digest
//! claims      manifest                          children, configuration and layers, with digest and length
//! ```
//!
//! Everything below a tag is named by the digest of its bytes, including manifests; only the tag itself moves. So
//! larder resolves a tag by HEAD, which registries do not count as a pull, and fetches and stores the manifest under
//! its digest. Helm charts, signatures and other artifacts differ only in their media types, and so do layers
//! compressed with zstd.
//!
//! Not here: tokens and `/v2/` (the pipeline handles them), pushes (they pass), signatures of images (cosign,
//! notation). Schema 1, whose digests are not those of its bytes, makes no claims and is not requested by digest.
//!
//! Sources: OCI distribution specification 1.1, OCI image specification 1.1 (descriptor, manifest, index), the manifest
//! formats of Docker's registry, observed requests of docker, containerd, podman, buildah, skopeo, helm and oras.

mod accept;
pub(super) mod fuzz;
mod manifest;
mod shape;
#[cfg(test)]
mod tests;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use self::shape::{RegistryPath, What};
use super::facets::{NamedIndexes, Service, Tags, VersionCheck};
use super::{Artifact, Document, Ecosystem, Kind, Malformed, Named, Profile, Recognised, Resource};
use super::{Shape, Variant, glimpse};
use crate::claim::{ClaimSink, Standing, Topic};
use crate::digest::Digest;
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Target};

/// The ecosystem's name, also used in topics.
const NAME: &str = "oci";

/// The header in which a response with a manifest states its digest (OCI distribution, "Pulling manifests").
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The header in which a registry states its API version.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The field that containers/image sends with each request.
const HARMLESS: [&str; 1] = ["docker-distribution-api-version"];

/// Container registries.
#[derive(Debug)]
pub(super) struct Oci;

const PROFILE: Profile = Profile {
    name: NAME,
    harmless_headers: &HARMLESS,
    login_headers: &[],
    files_are_immutable: false,
};

impl Ecosystem for Oci {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        let Some(place) = RegistryPath::at(request.target) else {
            return Recognised::No;
        };
        let artifact =
            |named| Kind::Artifact(Artifact { named: Some(named), topics: topics(&place) });
        let class = accept::classify(request.accept);
        let (kind, variant) = match (place.what, class) {
            // Whatever a client accepts, the digest names one body.
            (What::Manifest(digest), _) => {
                (artifact(Named::by_protocol(digest)), accept::every_manifest())
            }
            (What::Blob(digest), _) => (artifact(Named::by_protocol(digest)), Variant::ONLY),
            (What::Stored(digest), _) => {
                let convention = Some(shape::storage(request.target));
                (artifact(Named { digest, convention }), Variant::ONLY)
            }
            (What::Tag, Some(class)) => (Kind::Index, class),
            (What::Referrers | What::List, Some(_)) => (Kind::Index, Variant::ONLY),
            (What::Tag | What::Referrers | What::List, None) => return Recognised::No,
        };
        let resource = Resource { kind, root: place.root, variant };
        if place.certain { Recognised::Certain(resource) } else { Recognised::Likely(resource) }
    }

    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        let said = head.headers.contains_key(CONTENT_DIGEST)
            || head.text(&header::CONTENT_TYPE).is_some_and(manifest::is_manifest);
        let reads = || glimpse::is_object(start) && glimpse::has(start, "schemaVersion");
        head.status == StatusCode::OK && (said || reads()) && RegistryPath::at(at).is_some()
    }

    fn accept(&self, variant: &str) -> &'static str {
        accept::by_name(variant).unwrap_or(Variant::ONLY).accept
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        _: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let Some(place) = RegistryPath::at(doc.at) else {
            return Ok(Standing { rank: Rank::None, root: Root::directory_of(doc.at) });
        };
        let speaks = match place.what {
            What::Tag | What::Manifest(_) | What::Referrers => doc.may_claim(),
            What::Blob(_) | What::Stored(_) | What::List => false,
        };
        let none = Standing { rank: Rank::None, root: place.root.clone() };
        if !speaks {
            return Ok(none);
        }
        doc.expect_identity()?;
        let kind = doc.head.text(&header::CONTENT_TYPE);
        let Some(read) = manifest::read((doc.open)()?, kind)? else {
            return Ok(none);
        };
        for named in read.named() {
            named.claim(&place, doc.at, out)?;
        }
        Ok(Standing { rank: Rank::Indexed, root: place.root })
    }

    fn named_indexes(&self) -> Option<&dyn NamedIndexes> {
        Some(self)
    }

    fn tags(&self) -> Option<&dyn Tags> {
        Some(self)
    }

    fn api(&self) -> Option<&dyn Service> {
        Some(self)
    }
}

impl NamedIndexes for Oci {
    fn topics(&self, index: &Target) -> Vec<Topic> {
        RegistryPath::at(index).map_or_else(Vec::new, |place| topics(&place))
    }

    /// A manifest under its digest is an index as well, because it names children and layers.
    fn indexes_of(&self, at: &Target) -> Vec<Target> {
        let manifest = RegistryPath::at(at).filter(|place| matches!(place.what, What::Manifest(_)));
        manifest.map(|_| at.clone().with_variant("")).into_iter().collect()
    }
}

impl Tags for Oci {
    fn is_tag(&self, at: &Target) -> bool {
        RegistryPath::at(at).is_some_and(|place| matches!(place.what, What::Tag))
    }

    fn points_at(&self, at: &Target, head: &Head) -> Option<(Target, Digest)> {
        let place = RegistryPath::at(at).filter(|place| matches!(place.what, What::Tag))?;
        let digest = shape::digest(head.text(&CONTENT_DIGEST)?)?;
        // A stored manifest is served with this header; without a type, no client could tell what it is.
        head.text(&header::CONTENT_TYPE).filter(|kind| manifest::is_manifest(kind))?;
        Some((place.sibling("manifests", &digest)?, digest))
    }

    fn needs_own_header(&self, at: &Target) -> bool {
        RegistryPath::at(at).is_some_and(|place| matches!(place.what, What::Manifest(_)))
    }
}

impl Service for Oci {
    fn service(&self, at: &Target) -> Option<Root> {
        let place = RegistryPath::at(at).filter(|place| !place.name.is_empty())?;
        let prefix = place.root.path.len().checked_sub(place.name.len() + 2)?;
        Some(Root::at(at, prefix))
    }

    /// `GET /v2/`: a client that gets a 200 requests no token (OCI distribution, "Determining Support").
    fn version_check(&self, at: &Target) -> Option<VersionCheck> {
        let service = Root::directory_of(at);
        if at.path() != &*service.path || !at.path().ends_with("/v2/") {
            return None;
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        Some(VersionCheck { service, head: Head { status: StatusCode::OK, headers }, body: "{}" })
    }

    /// Clients skip uploading blobs that the registry reports as present.
    fn is_existence_check(&self, method: &Method, at: &Target) -> bool {
        let named = |place: &RegistryPath| matches!(place.what, What::Manifest(_) | What::Blob(_));
        *method == Method::HEAD && RegistryPath::at(at).is_some_and(|place| named(&place))
    }
}

/// The topics of claims about a repository's contents: the repository's name, so that mirrors share them.
fn topics(place: &RegistryPath) -> Vec<Topic> {
    vec![topic(&place.name)]
}

fn topic(name: &str) -> Topic {
    Topic::new(NAME, name)
}
