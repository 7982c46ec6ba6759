//! Recognises the URLs of a PyPI-like index, by their path alone.
//!
//! ```text
//! <prefix>/simple/<project>/                        a project's page (PEP 503); devpi writes +simple
//! <prefix>/simple/                                  the list of all projects: 40 MB, and it names no files
//! <prefix>/pypi/<project>[/<version>]/json          the legacy document about a project
//! <prefix>/packages/<2 hex>/<2 hex>/<60 hex>/<file> a file under its own BLAKE2b-256
//! …/<file>.metadata                                 the metadata file of a file (PEP 658)
//! ```
//!
//! `<prefix>` may be anything. The index has authority over the part of the origin below it.

use super::names::{self, METADATA};
use crate::claim::Topic;
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::{Artifact, Named};
use crate::target::{Root, Target, decode_once};

/// The first segment after the prefix of a simple index.
const SIMPLE: [&str; 2] = ["simple", "+simple"];

/// What a page describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    /// One project, normalised.
    Project(String),
    /// The list of all projects.
    Everything,
    /// The legacy document about one project.
    Legacy(String),
}

/// An index, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// What it describes.
    pub(super) about: PageKind,
    /// The part of the origin over which it has authority.
    pub(super) root: Root,
}

impl Page {
    /// The page at `at`; `None` if the path is not that of an index.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let path = at.path();
        let (path, closed) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let (parent, last) = path.rsplit_once('/')?;
        if closed && SIMPLE.contains(&last) {
            return Some(Self { about: PageKind::Everything, root: Root::at(at, parent.len()) });
        }
        if !closed && last == "json" {
            return Self::legacy(at, parent);
        }
        let (prefix, directory) = parent.rsplit_once('/')?;
        let name = decode_once(last).filter(|name| names::is_project(name))?;
        let project = names::normalise(&name);
        // Clients request a page with the slash. Without it, only the normalised spelling counts: other words after
        // `/simple/` may be anything, such as `/dists/simple/Release` of a Debian archive.
        if !SIMPLE.contains(&directory) || !(closed || project == name) {
            return None;
        }
        Some(Self { about: PageKind::Project(project), root: Root::at(at, prefix.len()) })
    }

    fn legacy(at: &Target, parent: &str) -> Option<Self> {
        let mut segments = parent.rsplit('/');
        let (mut prefix, mut project) = parent.rsplit_once('/')?;
        let (_version, second, third) = (segments.next()?, segments.next()?, segments.next());
        if second != "pypi" && third == Some("pypi") {
            (prefix, project) = prefix.rsplit_once('/')?;
        }
        let prefix = prefix.strip_suffix("/pypi")?;
        let project = decode_once(project).filter(|name| names::is_project(name))?;
        Some(Self {
            about: PageKind::Legacy(names::normalise(&project)),
            root: Root::at(at, prefix.len()),
        })
    }
}

/// A distribution file or its metadata, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dist {
    /// The projects that it may belong to, normalised, the likeliest first; not empty.
    pub(super) projects: Vec<String>,
    /// The digest in its path.
    pub(super) named: Option<Digest>,
    /// The part of the origin to which it belongs.
    pub(super) root: Root,
    /// Whether the path alone proves that the file never changes: a wheel's name, or a path that is a digest. Many
    /// sites have archives with a name and a version and replace them in place; only a claim makes one of them an
    /// artifact.
    pub(super) certain: bool,
}

impl Dist {
    /// The file at `at`; `None` if its name is not that of a distribution file.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let name = at.file_name();
        let (file, is_metadata) = match name.strip_suffix(METADATA) {
            Some(file) => (file, true),
            None => (name.as_str(), false),
        };
        let projects = names::projects(file);
        if projects.is_empty() {
            return None;
        }
        let addressed = addressed(at.path());
        let root = match addressed {
            Some((prefix, _)) => Root::at(at, prefix.len()),
            None => Root::directory_of(at),
        };
        Some(Self {
            certain: names::is_wheel(file) || addressed.is_some(),
            projects,
            // The path is the digest of the distribution file, not of its metadata.
            named: addressed.map(|(_, digest)| digest).filter(|_| !is_metadata),
            root,
        })
    }

    /// The file as an [`Artifact`], for looking up promises.
    pub(super) fn artifact(&self) -> Artifact {
        Artifact {
            // Each prefix is a root of its own, such as a tenant's `packages`.
            named: self.named.map(|digest| Named { digest, convention: Some(self.root.clone()) }),
            topics: self.projects.iter().map(|project| Topic::new(super::NAME, project)).collect(),
        }
    }
}

/// The prefix and the digest of `<prefix>/packages/<2 hex>/<2 hex>/<60 hex>/<file>`.
fn addressed(path: &str) -> Option<(&str, Digest)> {
    let (rest, _file) = path.rsplit_once('/')?;
    let (rest, third) = rest.rsplit_once('/')?;
    let (rest, second) = rest.rsplit_once('/')?;
    let (rest, first) = rest.rsplit_once('/')?;
    let prefix = rest.strip_suffix("/packages")?;
    let lower = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if first.len() != 2 || second.len() != 2 || ![first, second, third].into_iter().all(lower) {
        return None;
    }
    let digest = Digest::from_hex(Algorithm::Blake2b256, &format!("{first}{second}{third}"))?;
    Some((prefix, digest))
}

/// The directories in which servers that also serve the index keep their files, and the segment of that index.
const FILE_AREAS: [(&str, &str); 3] =
    [("/packages/", "simple"), ("/files/", "simple"), ("/+f/", "+simple")];

/// The paths on a file's own origin where the page about `project` may be: the file's directory, if it is such a page,
/// or the index next to the file area that contains the file.
pub(super) fn own_pages(file: &Target, project: &str) -> Vec<String> {
    let path = file.path();
    let mut pages = Vec::new();
    if let Some((directory, _)) = path.rsplit_once('/') {
        let page = Target::new(file.origin().clone(), &format!("{directory}/"))
            .ok()
            .and_then(|target| Page::at(&target));
        if page.is_some_and(|page| page.about == PageKind::Project(project.to_owned())) {
            pages.push(format!("{directory}/"));
        }
    }
    let area =
        FILE_AREAS.iter().filter_map(|(area, simple)| Some((path.rfind(area)?, *simple))).max();
    if let Some((prefix, simple)) = area.and_then(|(at, simple)| Some((path.get(..at)?, simple))) {
        // Some mirrors double the directory: packages/packages.
        let prefix = prefix.trim_end_matches("/packages");
        pages.push(format!("{prefix}/{simple}/{project}/"));
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "58/a2/0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab";

    fn target(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    #[test]
    fn pages_are_recognised_under_any_prefix() {
        let project = |name: &str| PageKind::Project(name.into());
        let legacy = |name: &str| PageKind::Legacy(name.into());
        for (path, about, root) in [
            ("/simple/idna/", project("idna"), "/"),
            ("/simple/idna", project("idna"), "/"),
            ("/simple/Zope.Interface/", project("zope-interface"), "/"),
            ("/simple/zope%2Einterface/", project("zope-interface"), "/"),
            ("/a/simple/b/simple/idna/", project("idna"), "/a/simple/b/"),
            ("/team/dev/+simple/idna/", project("idna"), "/team/dev/"),
            (
                "/api/v4/projects/1/packages/pypi/simple/idna",
                project("idna"),
                "/api/v4/projects/1/packages/pypi/",
            ),
            ("/simple/simple/", PageKind::Everything, "/simple/"),
            ("/simple/", PageKind::Everything, "/"),
            ("/tenant/simple/", PageKind::Everything, "/tenant/"),
            ("/pypi/idna/json", legacy("idna"), "/"),
            ("/t/pypi/idna/3.9/json", legacy("idna"), "/t/"),
            ("/pypi/pypi/json", legacy("pypi"), "/"),
            // Of two readings the longer prefix wins, because its root is smaller.
            ("/pypi/pypi/1.0/json", legacy("1-0"), "/pypi/"),
        ] {
            let page = Page::at(&target(path)).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((page.about, &*page.root.path), (about, root), "{path}");
        }
    }

    #[test]
    fn other_paths_are_no_pages() {
        for path in [
            "/",
            "/simple",
            "/idna/",
            "/simple/a/b/",
            "/simple/Idna",
            "/simple/zope.interface",
            "/simple//",
            "/simple/-a/",
            "/simple/a%2Fb/",
            "/Simple/idna/",
            "/pypi/json",
            "/pypi/idna/json/",
            "/pypi/a/b/c/json",
            "/idna/json",
            "/json",
        ] {
            assert_eq!(Page::at(&target(path)), None, "{path}");
        }
    }

    #[test]
    fn a_path_digest_is_one_under_any_prefix_and_of_the_file_alone() {
        let wheel = "idna-3.9-py3-none-any.whl";
        for prefix in ["", "/artifactory/api/pypi/x", "/packages"] {
            let dist = Dist::at(&target(&format!("{prefix}/packages/{HEX}/{wheel}"))).unwrap();
            assert_eq!(dist.named.unwrap().to_hex(), HEX.replace('/', ""));
            assert_eq!(&*dist.root.path, format!("{prefix}/"));
            assert!(dist.certain);
        }
        let sdist = Dist::at(&target(&format!("/packages/{HEX}/idna-3.9.tar.gz"))).unwrap();
        assert!(sdist.named.is_some() && sdist.certain);
        let beside =
            Dist::at(&target(&format!("/packages/{HEX}/idna-3.9.tar.gz.metadata"))).unwrap();
        assert!(beside.named.is_none() && beside.certain);
        for path in [
            format!("/packages/{HEX}/{wheel}.asc"),
            format!("/packages/{HEX}/{wheel}.provenance"),
            format!("/packages/{HEX}/index.html"),
        ] {
            assert_eq!(Dist::at(&target(&path)), None, "{path}");
        }
        for path in [
            format!("/packages/{}/{wheel}", HEX.to_uppercase()),
            format!("/packages/0{HEX}/{wheel}"),
            format!("/packages/{HEX}0/{wheel}"),
            format!("/files/{HEX}/{wheel}"),
            format!("/packages/{HEX}/x/{wheel}"),
            format!("/packages/58/a2/{wheel}"),
        ] {
            assert_eq!(Dist::at(&target(&path)).unwrap().named, None, "{path}");
        }
    }

    #[test]
    fn archives_are_artifacts_only_by_a_claim() {
        assert!(Dist::at(&target("/any/foo-1.0-py3-none-any.whl")).unwrap().certain);
        assert!(Dist::at(&target("/any/foo-1.0%2Bcu1-py3-none-any.whl")).unwrap().certain);
        assert!(Dist::at(&target("/any/foo-1.0-py3-none-any.whl.metadata")).unwrap().certain);
        for path in ["/any/foo-1.0.tar.gz", "/any/foo-1.0.zip", "/any/foo-1.0.tar.gz.metadata"] {
            assert!(!Dist::at(&target(path)).unwrap().certain, "{path}");
        }
        for path in
            ["/any/foo.tar.gz", "/any/foo-1.0.exe", "/any/%2Ffoo-1.0.zip", "/any/foo-1.0.zip/"]
        {
            assert_eq!(Dist::at(&target(path)), None, "{path}");
        }
    }

    #[test]
    fn the_index_of_a_file_is_sought_beside_its_file_area() {
        for (path, expected) in [
            (format!("/packages/{HEX}/a-1-py3-none-any.whl"), &["/simple/a/"][..]),
            (format!("/x/packages/packages/{HEX}/a-1-py3-none-any.whl"), &["/x/simple/a/"]),
            (
                "/repository/x/packages/a/1/a-1-py3-none-any.whl".into(),
                &["/repository/x/simple/a/"],
            ),
            (
                "/p/1/packages/pypi/files/00/a-1-py3-none-any.whl".into(),
                &["/p/1/packages/pypi/simple/a/"],
            ),
            ("/team/dev/+f/abc/a-1-py3-none-any.whl".into(), &["/team/dev/+simple/a/"]),
            ("/simple/a/a-1-py3-none-any.whl".into(), &["/simple/a/"]),
            ("/simple/b/a-1-py3-none-any.whl".into(), &[]),
            ("/a-1-py3-none-any.whl".into(), &[]),
        ] {
            assert_eq!(own_pages(&target(&path), "a"), expected, "{path}");
        }
    }
}
