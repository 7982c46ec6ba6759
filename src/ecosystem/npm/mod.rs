//! npm registries: a document for each package, and tarballs that its versions name with their integrity.
//!
//! ```text
//! recognise   shape (path) and accept (class)   a package's document, or a tarball
//! claims      document, then dist and sri       every version's tarball, at its URL and at the one clients request
//!            signatures                        checks the registry's signatures of each version
//! wants       for a tarball                     the document of its package, as `npm ci` would request it
//! ```
//!
//! Three things are recognised for certain: a tarball's path, a name joined to its scope by `%2f`, and a request whose
//! `Accept` names the type of abbreviated documents. Any other path that ends in a word is only likely to be a package's
//! document, until a response confirms the registry: `/login` may be a package or anything else.
//!
//! Not supported: attestations, and everything under `/-/` (search, audits, tags, the registry's own list of its keys).
//! Those responses are cached as HTTP allows.
//!
//! Sources: the registry's API and package metadata documents, observed requests of npm and pacote, the W3C's
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
use self::shape::{Page, PageKind, Tarball, Tells};
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

/// The ecosystem's name, also used in topics.
const NAME: &str = "npm";

/// The maximum length of a document, in bytes. The largest packuments have some 40 MB.
const MAX_DOCUMENT: u64 = 256 * 1024 * 1024;

/// The maximum number of prerequisites of one tarball: each may be a request to an origin that does not have the
/// package.
const MAX_WANTED: usize = 4;

/// Fields that npm-registry-fetch and pacote send: the command, the package and its integrity. Registries use them for
/// statistics and answer alike. `npm-otp` is not in this list, because it is a credential; nor is `Referer`, in which
/// npm 6 named its command, because other servers answer differently by it.
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

/// Where documents have URLs: those of the tarballs, and those of the attestations. For the latter, npm takes the URL's
/// path and puts the registry's host before it.
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
    // Registries never change a published version, and never publish one twice.
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

    /// A document begins with the package's name.
    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        let Some(page) = Page::at(at) else {
            return false;
        };
        let tells = match page.about {
            PageKind::Package => ["versions", "dist-tags"],
            PageKind::Version => ["version", "dist"],
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
        for root in [tarball.root].into_iter().chain(have.claiming_roots(at.origin())) {
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
        let timeless = page.about == PageKind::Version || kind.starts_with(accept::TYPE_INSTALL);
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

/// The document about `package` in the registry at `root`, in the class that installing requests. `None` over plain
/// HTTP, where it would claim nothing.
fn document_of(root: &Root, package: &str) -> Option<Target> {
    let path = shape::document_path(&root.path, package);
    let document = Target::new(root.origin.clone(), &path).ok()?;
    let secure = document.origin().scheme == Scheme::Https;
    // Checked, because a root may be any path, and the result need not be recognised as a document.
    let found = Page::at(&document).filter(|page| page.package == package);
    (secure && found.is_some()).then(|| document.with_variant(accept::INSTALL.name))
}
