//! PyPI and compatible servers: an index over TLS, and files whose path is their own digest.
//!
//! ```text
//! recognise   shape (path) and accept (class)   an index page, or a distribution file
//! claims      html or json, by content          every link with a digest, through links
//! wants       for a file                        the project pages that may name it
//! ```
//!
//! Three shapes are recognised for certain: a project's page after `/simple/`, a wheel's name, and a path that is a
//! BLAKE2b-256. A page of links may be anywhere; it is likely only if the `Accept` shows a package client: it names a
//! type of the simple API, or is exactly the `text/html` of older pip and of uv. An archive with a project's name and a
//! version (`foo-1.0.tar.gz`) is likely, and becomes an artifact only if an index claims it.
//!
//! Not supported: the list of all projects, attestations (PEP 740), signatures of files.
//!
//! Sources: PEP 503, 592, 629, 658, 691, 700, 714 and the documentation of Warehouse (PyPI's server) on its JSON and
//! file URLs.

mod accept;
pub(super) mod fuzz;
mod html;
mod json;
mod links;
mod names;
mod shape;
#[cfg(test)]
mod tests;

use std::io::Read;

use hyper::header::CONTENT_TYPE;

use self::links::{Links, Promised};
use self::shape::{Dist, Page, PageKind};
use super::facets::Linked;
use super::links::{self as places, Step};
use super::{
    Document, Ecosystem, Kind, Malformed, Profile, Recognised, Resource, Shape, Shelf, Variant,
};
use crate::claim::{ClaimSink, Standing};
use crate::entry::Head;
use crate::keyring::Keyring;
use crate::proof::Rank;
use crate::target::{Root, Scheme, Target, decode_once};

/// The ecosystem's name, also used in topics.
const NAME: &str = "pypi";

/// The maximum length of an index, in bytes. The largest project pages have some 10 MB; only the list of all projects
/// is larger.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// The maximum number of prerequisites of one file: each may be a request to an origin that does not have the page.
const MAX_WANTED: usize = 4;

/// PyPI-like indexes.
#[derive(Debug)]
pub(super) struct Pypi;

/// Where a JSON page has the URLs of its files (PEP 691).
const FILES: &[&[Step]] = &[&[Step::Member("files"), Step::Each, Step::Member("url")]];

/// Where the legacy document has them.
const LEGACY_FILES: &[&[Step]] = &[
    &[Step::Member("urls"), Step::Each, Step::Member("url")],
    &[Step::Member("releases"), Step::Any, Step::Each, Step::Member("url")],
];

const PROFILE: Profile =
    Profile { name: NAME, harmless_headers: &[], login_headers: &[], files_are_immutable: false };

impl Ecosystem for Pypi {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn recognise(&self, request: &Shape<'_>) -> Recognised {
        if let Some(dist) = Dist::at(request.target) {
            let resource = Resource::artifact(dist.artifact(), dist.root);
            return Recognised::ours(resource, dist.certain);
        }
        let index = |root, variant| Resource { kind: Kind::Index, root, variant };
        match Page::at(request.target) {
            // The legacy document has only one type, whatever the `Accept`.
            Some(page) if matches!(page.about, PageKind::Legacy(_)) => {
                Recognised::Certain(index(page.root, Variant::ONLY))
            }
            Some(page) => match accept::classify(request.accept) {
                Some(class) => Recognised::Certain(index(page.root, class)),
                None => Recognised::No,
            },
            None => match accept::classify(request.accept) {
                Some(class) if class != Variant::ANY && may_be_links(request.target.path()) => {
                    Recognised::Likely(index(Root::directory_of(request.target), class))
                }
                _ => Recognised::No,
            },
        }
    }

    fn confirm(&self, _at: &Target, head: &Head, start: &[u8]) -> bool {
        if head.status != hyper::StatusCode::OK {
            return false;
        }
        let says = |text: &str| start.windows(text.len()).any(|at| at == text.as_bytes());
        if start.trim_ascii_start().starts_with(b"{") {
            let typed =
                head.text(&CONTENT_TYPE).is_some_and(|value| value.starts_with(accept::TYPE_JSON));
            return says("\"files\"") && (typed || says("\"api-version\""));
        }
        html::hrefs(start).any(|href| is_claiming_link(&href))
    }

    fn accept(&self, variant: &str) -> &'static str {
        Variant::among(&accept::CLASSES, variant).accept
    }

    fn wants(&self, at: &Target, have: &dyn Shelf) -> Vec<Target> {
        let Some(dist) = Dist::at(at) else {
            return Vec::new();
        };
        let mut pages: Vec<Target> = Vec::new();
        let mut want = |page: Result<Target, _>| {
            let page = page.ok().map(|page| page.with_variant(accept::JSON.name));
            // Checked, because the URL was built from strings and need not be that of a page. Over plain HTTP it would
            // claim nothing.
            let page = page.filter(|page| {
                let secure = page.origin().scheme == Scheme::Https;
                secure && Page::at(page).is_some() && !pages.contains(page)
            });
            pages.extend(page);
        };
        for project in &dist.projects {
            for path in shape::own_pages(at, project) {
                want(Target::new(at.origin().clone(), &path));
            }
        }
        for root in have.claiming_roots(at.origin()) {
            for project in &dist.projects {
                let path = format!("{}simple/{project}/", root.path);
                want(Target::new(root.origin.clone(), &path));
            }
        }
        pages.retain(|page| have.open(page).is_none());
        pages.truncate(MAX_WANTED);
        pages
    }

    fn claims(
        &self,
        doc: &Document<'_>,
        _: &Keyring,
        out: &mut dyn ClaimSink,
    ) -> Result<Standing, Malformed> {
        let page = Page::at(doc.at);
        let (about, root) = match page {
            Some(Page { about, root }) => (Some(about), root),
            None => (None, Root::directory_of(doc.at)),
        };
        let project = match &about {
            Some(PageKind::Project(project) | PageKind::Legacy(project)) => Some(project.as_str()),
            Some(PageKind::Everything) | None => None,
        };
        if !doc.may_claim() || about == Some(PageKind::Everything) {
            return Ok(Standing { rank: Rank::None, root });
        }
        doc.expect_identity()?;
        let mut links = Links::new(doc.base.clone(), project, out);
        read(&mut *(doc.open)()?, &mut links)?;
        Ok(Standing { rank: Rank::Indexed, root })
    }

    fn linked(&self) -> Option<&dyn Linked> {
        Some(self)
    }
}

impl Linked for Pypi {
    fn links(&self, at: &Target, kind: &str) -> Option<places::Links> {
        let about = Page::at(at).map(|page| page.about);
        let json = |ways| Some(places::Links::Json { ways, take_login: false });
        match (kind, about) {
            (accept::TYPE_HTML, _) => Some(places::Links::Html),
            ("text/html", about) => {
                (about.is_some() || may_be_links(at.path())).then_some(places::Links::Html)
            }
            // The list of all projects names no files.
            (_, Some(PageKind::Everything)) => None,
            (accept::TYPE_JSON, _) | ("application/json", Some(PageKind::Project(_))) => {
                json(FILES)
            }
            ("application/json", Some(PageKind::Legacy(_))) => json(LEGACY_FILES),
            _ => None,
        }
    }
}

/// Parses a page as JSON or HTML by its first byte, because servers send either with the other's type. Any other
/// document, including an empty response, is malformed and not an index without links: it must not replace the claims
/// of the previous response.
fn read(document: &mut dyn Read, links: &mut Links<'_>) -> Result<(), Malformed> {
    let mut start = Vec::new();
    document.take(LOOK).read_to_end(&mut start)?;
    let text = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start);
    match text.trim_ascii_start().first() {
        Some(b'{') => json::read(text.chain(document), MAX_DOCUMENT, links),
        Some(b'<') => html::read(text.chain(document), MAX_DOCUMENT, links),
        Some(_) | None => Err(Malformed::Shape {
            expected: "index in JSON or HTML",
            found: String::from_utf8_lossy(text).chars().take(40).collect(),
        }),
    }
}

/// The maximum offset of the first byte that is not white space.
const LOOK: u64 = 1024;

/// Some servers send a byte order mark, which no parser accepts.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Whether a path may be that of a page of links: a directory, or an HTML page.
fn may_be_links(path: &str) -> bool {
    ["/", ".html", ".htm"].iter().any(|end| path.ends_with(end))
}

/// Whether a link ends in a distribution file's name and has a fragment with a known digest.
fn is_claiming_link(href: &str) -> bool {
    let Some((path, fragment)) = href.split_once('#') else {
        return false;
    };
    let file = path.rsplit('/').next().unwrap_or(path);
    let file = decode_once(file).unwrap_or_default();
    !Promised::from_pairs(fragment).is_empty() && !names::projects(&file).is_empty()
}
