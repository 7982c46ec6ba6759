//! Sparse cargo registries: a file for each crate, a line for each version, and one document that says where crates are.
//!
//! ```text
//! recognise   shape (path)            config.json, an index file, or a crate
//! claims      lines, through config   every version's checksum, at the URL that the registry's template makes of it
//! wants       for an index file       the config.json of its registry
//!             for a crate             that, and the index file, of the registries that may name it
//! ```
//!
//! A crate's path is certain. No path of an index is: `config.json` lies everywhere, and `ab/cd/abcd` may be anything, so
//! both are likely until one of their registry was seen: a configuration with `dl`, or a file whose first line is about
//! the crate that its path names. Index files speak for what lies under the index; where `dl` leads to another origin
//! they confirm.
//!
//! Not read: the registry's own interface (search, owners, publishing), and indexes in git.
//!
//! Sources: the cargo book, "Registry index"; RFC 2789; cargo's requests as they were seen.

mod config;
pub(super) mod fuzz;
mod lines;
mod shape;
#[cfg(test)]
mod tests;

use self::config::Template;
use self::shape::{About, Crate, Page};
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

/// The ecosystem's name, in topics too.
const NAME: &str = "cargo";

/// The longest index file that is read. The largest have some MB.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The most registries that are asked for one crate, with two documents each.
const MAX_ROOTS: usize = 2;

/// What cargo asks of an index.
const TEXT: Variant = Variant { name: "text", accept: "text/plain" };

/// Every class: what cargo asks, and what everybody else does.
const CLASSES: [Variant; 2] = [TEXT, Variant::ANY];

/// Sparse cargo registries.
#[derive(Debug)]
pub(super) struct Cargo;

/// Where the configuration says where the files are. (`api` is for those who publish.)
const DOWNLOADS: &[&[Step]] = &[&[Step::Member("dl")]];

const PROFILE: Profile = Profile {
    name: NAME,
    // Which version of the protocol cargo speaks: there is one. What its HTTP library adds on plain http (`Upgrade: h2c`,
    // `HTTP2-Settings`) concerns one connection, and is known to be harmless whoever sends it.
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
            // A browser's, say: its answer may be a page.
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
            // Two short lines: all of it is here.
            Some(About::Config) => {
                Template::read(start).is_ok_and(|template| template.origin().is_some())
            }
            Some(About::Crate(name)) => {
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
            let speakers = have.speakers(at.origin());
            for root in speakers.iter().take(MAX_ROOTS) {
                documents.extend(config_of(root));
                documents.extend(index_file_of(root, &found.name));
            }
            // Of an origin that nothing is known of, only one thing may be guessed: that it is a registry as a whole. It
            // must say so before its index is asked for every crate.
            let whole = Root::at(at, 0);
            if speakers.is_empty()
                && let Some(config) = config_of(&whole)
            {
                if have.open(&config).is_some_and(|read| Template::read(read).is_ok()) {
                    documents.extend(index_file_of(&whole, &found.name));
                } else {
                    documents.push(config);
                }
            }
        } else if let Some(Page { about: About::Crate(_), root }) = Page::at(at) {
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
            About::Config => {
                // It promises nothing, but a cargo with an index of its own asks for nothing else before its crates.
                if let Some(origin) = Template::read((doc.open)()?)?.origin() {
                    out.speaks(&origin);
                }
            }
            About::Crate(name) => {
                let config = CLASSES.iter().find_map(|class| {
                    let config = config_of(&page.root)?.with_variant(class.name);
                    doc.companions.open(&config)
                });
                // Without it nobody knows where the crates are.
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
    /// cargo shows its token to the host of the files, if the registry asks for one everywhere (`auth-required`). Servers of
    /// files give the configuration any type.
    fn links(&self, at: &Target, kind: &str) -> Option<Links> {
        let is_config = Page::at(at).is_some_and(|page| page.about == About::Config);
        (is_config && kind != "text/html")
            .then_some(Links::Json { ways: DOWNLOADS, take_login: true })
    }
}

/// The configuration of the registry at `root`, as cargo asks for it. Over plain http it would claim nothing.
fn config_of(root: &Root) -> Option<Target> {
    document(root, "config.json")
}

/// The index file of the crate `name` in the registry at `root`, as cargo asks for it.
fn index_file_of(root: &Root, name: &str) -> Option<Target> {
    let name = name.to_ascii_lowercase();
    document(root, &format!("{}/{name}", shape::prefix(&name)))
}

fn document(root: &Root, path: &str) -> Option<Target> {
    let document = Target::new(root.origin.clone(), &format!("{}{path}", root.path)).ok()?;
    (document.origin().scheme == Scheme::Https).then(|| document.with_variant(TEXT.name))
}
