//! Sparse cargo registries: one file per crate, one line per version, and `config.json`, which names the crates' URLs.
//!
//! ```text
//! recognise   shape (path)            config.json, an index file, or a crate
//! claims      lines, through config   every version's checksum, at the URL that the registry's template gives
//! wants       for an index file       the config.json of its registry
//!            for a crate             the config.json and the index file, in the registries that may name it
//! ```
//!
//! A crate's path is recognised for certain; an index's path never is: many sites have a `config.json`, and
//! `ab/cd/abcd` may be anything. So index paths are likely until a document of that registry confirms them: a
//! configuration with `dl`, or a file whose first line is about the crate in its path. Index files have authority over
//! URLs below the index; if `dl` names another origin, they confirm.
//!
//! Not supported: the registry's web API (search, owners, publishing), and indexes in git.
//!
//! Sources: the cargo book, "Registry index"; RFC 2789; observed requests of cargo.

mod config;
pub(super) mod fuzz;
mod lines;
mod shape;
#[cfg(test)]
mod tests;

use self::config::Template;
use self::shape::{Crate, Page, PageKind};
use super::facets::Linked;
use super::glimpse;
use super::links::{Links, Step};
use super::{
    Document, Ecosystem, Kind, Malformed, Profile, Recognised, Resource, Shape, Shelf, Variant,
};
use crate::claim::{ClaimSink, Standing};
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Scheme, Target};

/// The ecosystem's name, also used in topics.
const NAME: &str = "cargo";

/// The maximum length of an index file, in bytes. The largest have some MB.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The maximum number of registries to search for one crate, with two documents each.
const MAX_ROOTS: usize = 2;

/// The `Accept` header that cargo sends to an index.
const TEXT: Variant = Variant { name: "text", accept: "text/plain" };

/// Every class: cargo's, and that of other clients.
const CLASSES: [Variant; 2] = [TEXT, Variant::ANY];

/// Sparse cargo registries.
#[derive(Debug)]
pub(super) struct Cargo;

/// The member of the configuration that names the files' URL. (`api` is only for publishing.)
const DOWNLOADS: &[&[Step]] = &[&[Step::Member("dl")]];

const PROFILE: Profile = Profile {
    name: NAME,
    // The protocol version of cargo; there is only one. The fields that its HTTP library adds on plain HTTP (`Upgrade:
    // h2c`, `HTTP2-Settings`) are harmless for every client and not listed here.
    harmless_headers: &["cargo-protocol"],
    login_headers: &[],
    files_are_immutable: false,
};

impl Ecosystem for Cargo {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        if let Some(found) = Crate::at(request.target) {
            let resource = Resource::artifact(found.artifact(), found.root);
            return Recognised::ours(resource, found.certain);
        }
        let class = match request.accept.trim() {
            "text/plain" => TEXT,
            "" | "*/*" => Variant::ANY,
            // Other `Accept` headers, such as a browser's: the response may be a web page.
            _ => return Recognised::No,
        };
        match Page::at(request.target) {
            Some(page) => {
                Recognised::Likely(Resource { kind: Kind::Index, root: page.root, variant: class })
            }
            None => Recognised::No,
        }
    }

    fn confirm(&self, at: &Target, head: &Head, start: &[u8]) -> bool {
        if head.status != hyper::StatusCode::OK || !glimpse::is_object(start) {
            return false;
        }
        match Page::at(at).map(|page| page.about) {
            // It has two short lines, so `start` holds all of it.
            Some(PageKind::Config) => {
                Template::read(start).is_ok_and(|template| template.origin().is_some())
            }
            Some(PageKind::Crate(name)) => {
                let line = start.split(|byte| *byte == b'\n').next().unwrap_or(start);
                glimpse::says_in_any_case(line, "name", &name) && glimpse::has(line, "vers")
            }
            None => false,
        }
    }

    fn accept(&self, variant: &str) -> &'static str {
        Variant::among(&CLASSES, variant).accept
    }

    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        let mut documents = Vec::new();
        if let Some(found) = Crate::at(at) {
            let claiming_roots = have.claiming_roots(at.origin());
            for root in claiming_roots.iter().take(MAX_ROOTS) {
                documents.extend(config_of(root));
                documents.extend(index_file_of(root, &found.name));
            }
            // Without any index that named files on this origin, the only guess is that the origin itself is a
            // registry. A stored `config.json` must confirm that before the index file is requested.
            let whole = Root::at(at, 0);
            if claiming_roots.is_empty()
                && let Some(config) = config_of(&whole)
            {
                if have.open(&config).is_some_and(|read| Template::read(read).is_ok()) {
                    documents.extend(index_file_of(&whole, &found.name));
                } else {
                    documents.push(config);
                }
            }
        } else if let Some(Page { about: PageKind::Crate(_), root }) = Page::at(at) {
            documents.extend(config_of(&root));
        }
        documents.retain(|document| have.open(document).is_none());
        documents
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        _: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let page = Page::at(doc.at);
        let mut standing = Standing {
            rank: Rank::None,
            root: match &page {
                Some(page) => page.root.clone(),
                None => Root::directory_of(doc.at),
            },
        };
        let Some(page) = page.filter(|_| doc.may_claim()) else {
            return Ok(standing);
        };
        doc.expect_identity()?;
        match page.about {
            PageKind::Config => {
                // A configuration makes no claims. But a cargo with a fresh index requests only this before its crates.
                if let Some(origin) = Template::read((doc.open)()?)?.origin() {
                    out.speaks(&origin);
                }
            }
            PageKind::Crate(name) => {
                let config = CLASSES.iter().find_map(|class| {
                    let config = config_of(&page.root)?.with_variant(class.name);
                    doc.shelf.open(&config)
                });
                // Without the configuration, the URLs of the crates are unknown.
                if let Some(config) = config {
                    let template = Template::read(config)?;
                    lines::read((doc.open)()?, MAX_FILE, &name, &template, out)?;
                    standing.rank = Rank::Indexed;
                }
            }
        }
        Ok(standing)
    }

    fn linked(&self) -> Option<&dyn Linked> {
        Some(self)
    }
}

impl Linked for Cargo {
    /// cargo sends its token to the host of the files too, if the registry requires one everywhere (`auth-required`).
    /// Any type but HTML is accepted, because file servers send the configuration with various types.
    fn links(&self, at: &Target, kind: &str) -> Option<Links> {
        let is_config = Page::at(at).is_some_and(|page| page.about == PageKind::Config);
        (is_config && kind != "text/html")
            .then_some(Links::Json { ways: DOWNLOADS, take_login: true })
    }
}

/// The configuration of the registry at `root`, as cargo requests it. `None` over plain HTTP, where it would claim
/// nothing.
fn config_of(root: &Root) -> Option<Target> {
    document(root, "config.json")
}

/// The index file of the crate `name` in the registry at `root`, as cargo requests it.
fn index_file_of(root: &Root, name: &str) -> Option<Target> {
    let name = name.to_ascii_lowercase();
    document(root, &format!("{}/{name}", shape::prefix(&name)))
}

fn document(root: &Root, path: &str) -> Option<Target> {
    let document = Target::new(root.origin.clone(), &format!("{}{path}", root.path)).ok()?;
    (document.origin().scheme == Scheme::Https).then(|| document.with_variant(TEXT.name))
}
