//! npm registries: a document for each package, tarballs that its versions name with their integrity.
//!
//! ```text
//! recognise   shape (path) and accept (class)   a package's document, or a tarball
//! claims      document, then dist and sri       every version's tarball, where it is and where clients ask for it
//!             signatures                        what the registry's signature makes of each
//! wants       for a tarball                     the document of its package, as `npm ci` would ask for it
//! ```
//!
//! Three things are certain: a tarball's path, a name that is joined to its scope, and a request whose `Accept` names the
//! type of abbreviated documents. For the rest a package's document is likely at every path that ends in a word, until
//! one of its registry was seen: `/login` may be one.
//!
//! Not read: attestations, and what lies under `/-/` (search, audits, tags, the registry's own word on its keys): it passes
//! as HTTP allows.
//!
//! Sources: the registry's API and package metadata documents, npm's and pacote's requests as they were seen, the W3C's
//! Subresource Integrity.

mod accept;
mod dist;
mod document;
pub(super) mod fuzz;
mod shape;
mod signatures;
mod sri;
#[cfg(test)]
mod tests;

use self::dist::Dists;
use self::shape::{About, Page, Tarball, Tells};
use self::signatures::{Judge, Open};
use super::facets::{Linked, Signing};
use super::links::{Links, Step};
use super::{Artifact, Document, Ecosystem, Kind, Malformed, Profile, Recognised, Resource};
use super::{Shape, Shelf, Variant, glimpse};
use crate::claim::{ClaimSink, Standing};
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Scheme, Target};

/// The ecosystem's name, in topics too.
const NAME: &str = "npm";

/// The longest document that is read. The largest packuments have some 40 MB.
const MAX_DOCUMENT: u64 = 256 * 1024 * 1024;

/// The most documents that are wanted for one tarball: each may be a request to an origin that never heard of it.
const MAX_WANTED: usize = 4;

/// What npm tells a registry of itself: which command runs, which package is meant and with what integrity. Registries
/// count with it, and answer alike; npm-registry-fetch and pacote set them. `npm-otp` is a credential and not among them,
/// nor is `Referer`, in which npm 6 named its command: other servers do answer by it.
const HARMLESS: [&str; 9] = [
    "npm-auth-type",
    "npm-command",
    "npm-in-ci",
    "npm-scope",
    "npm-session",
    "pacote-integrity",
    "pacote-pkg-id",
    "pacote-req-type",
    "pacote-version",
];

/// npm registries.
#[derive(Debug)]
pub(super) struct Npm;

/// Where a package's document and a version's name the files, and who attests to them: npm takes the path of that address,
/// and puts the registry's host before it.
const TARBALLS: &[&[Step]] = &[
    &[Step::Member("versions"), Step::Any, Step::Member("dist"), Step::Member("tarball")],
    &[Step::Member("dist"), Step::Member("tarball")],
    &[
        Step::Member("versions"),
        Step::Any,
        Step::Member("dist"),
        Step::Member("attestations"),
        Step::Member("url"),
    ],
    &[Step::Member("dist"), Step::Member("attestations"), Step::Member("url")],
];

const PROFILE: Profile = Profile {
    name: NAME,
    harmless_headers: &HARMLESS,
    login_headers: &[],
    // Registries take no version back and publish none twice.
    files_are_immutable: true,
};

impl Ecosystem for Npm {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        if let Some(tarball) = Tarball::at(request.target) {
            let artifact = Artifact { named: None, topics: vec![tarball.topic()] };
            return Recognised::Certain(Resource::artifact(artifact, tarball.root));
        }
        let (Some(page), Some(class)) =
            (Page::at(request.target), accept::classify(request.accept))
        else {
            return Recognised::No;
        };
        let certain = match page.tells {
            Tells::All => true,
            Tells::Nothing => [accept::INSTALL, accept::INSTALL_ONLY].contains(&class),
            Tells::Against => false,
        };
        let resource = Resource { kind: Kind::Index, root: page.root, variant: class };
        Recognised::ours(resource, certain)
    }

    /// A document says first of all whose it is.
    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        let Some(page) = Page::at(at) else {
            return false;
        };
        let tells = match page.about {
            About::Package => ["versions", "dist-tags"],
            About::Version => ["version", "dist"],
        };
        head.status == hyper::StatusCode::OK
            && glimpse::is_object(start)
            && glimpse::says(start, "name", &page.package)
            && tells.iter().any(|member| glimpse::has(start, member))
    }

    fn accept(&self, variant: &str) -> &'static str {
        Variant::among(&accept::CLASSES, variant).accept
    }

    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        let Some(tarball) = Tarball::at(at) else {
            return Vec::new();
        };
        let mut documents: Vec<Target> = Vec::new();
        for root in [tarball.root].into_iter().chain(have.speakers(at.origin())) {
            let document = document_of(&root, &tarball.package);
            documents.extend(document.filter(|document| !documents.contains(document)));
        }
        documents.retain(|document| have.open(document).is_none());
        documents.truncate(MAX_WANTED);
        documents
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        keys: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let page = Page::at(doc.at).filter(|_| doc.may_claim());
        let Some(page) = page else {
            let root = Page::at(doc.at).map(|page| page.root);
            return Ok(Standing {
                rank: Rank::None,
                root: root.unwrap_or_else(|| Root::directory_of(doc.at)),
            });
        };
        doc.expect_identity()?;
        let kind = doc.head.text(&hyper::header::CONTENT_TYPE).unwrap_or_default();
        let timeless = page.about == About::Version || kind.starts_with(accept::TYPE_INSTALL);
        let again: &Open<'_> = doc.open;
        let judge = Judge::new(keys, &page.package, (!timeless).then_some(again));
        let mut dists = Dists::new(doc.base, &page.root, judge, out);
        document::read((doc.open)()?, MAX_DOCUMENT, page.about, &mut dists)?;
        Ok(Standing { rank: Rank::Indexed, root: page.root })
    }

    fn signing(&self) -> Option<&dyn Signing> {
        Some(self)
    }

    fn linked(&self) -> Option<&dyn Linked> {
        Some(self)
    }
}

impl Signing for Npm {
    fn depends_on_keys(&self, at: &Target) -> bool {
        Page::at(at).is_some()
    }
}

impl Linked for Npm {
    fn links(&self, at: &Target, kind: &str) -> Option<Links> {
        let is_document = [accept::TYPE_INSTALL, accept::FULL.accept].contains(&kind);
        (is_document && Page::at(at).is_some())
            .then_some(Links::Json { ways: TARBALLS, take_login: false })
    }
}

/// The document about `package` in the registry at `root`, in the class that installing asks for. Over plain http it
/// would claim nothing.
fn document_of(root: &Root, package: &str) -> Option<Target> {
    let path = shape::document_path(&root.path, package);
    let document = Target::new(root.origin.clone(), &path).ok()?;
    let secure = document.origin().scheme == Scheme::Https;
    // The last word on what is a document: a root may be any path.
    let found = Page::at(&document).filter(|page| page.package == package);
    (secure && found.is_some()).then(|| document.with_variant(accept::INSTALL.name))
}
