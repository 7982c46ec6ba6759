//! Recognises the URLs of an npm registry, by their path alone.
//!
//! ```text
//! <prefix>/<name>                       a package's document, the packument
//! <prefix>/@<scope>%2f<name>            the same with a scope, as clients write it
//! <prefix>/@<scope>/<name>              the same, as people write it: another URL, and another key
//! <prefix>/<name>/<version or tag>      the document of one version
//! <prefix>/<name>/-/<base>-<version>.tgz    a tarball; <base> is the name without its scope, or with it
//! <prefix>/-/…                          the registry's other services: not documents
//! ```
//!
//! `<prefix>` may be anything. A package's document has authority over the part of the origin below it. A name may be
//! any word, so most paths prove nothing: only a name joined to its scope, or a tarball, is unambiguous.

use crate::claim::Topic;
use crate::target::{Root, Target, decode_once};

/// The maximum length of a name, by npm's rule: 214 bytes including its scope.
const MAX_NAME: usize = 214;

/// What a document describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    /// All versions of a package.
    Package,
    /// One version.
    Version,
}

/// How much a path proves about being an npm document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    /// A name is joined to its scope by `%2f`, which no other ecosystem does.
    All,
    /// The path may be anything; only the `Accept` header can tell.
    Nothing,
    /// Another ecosystem uses such paths too: the document is never recognised for certain.
    Against,
}

/// A package's name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// The name, with its scope.
    package: String,
    /// The position in the path where the name's first segment begins, after the registry's prefix.
    end: usize,
    /// Whether the name is written `@scope%2fname`, as only npm does.
    joined: bool,
}

/// A document, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// The package's name, with its scope.
    pub(super) package: String,
    /// Whether it is about the package or one version.
    pub(super) about: PageKind,
    /// The part of the origin over which it has authority.
    pub(super) root: Root,
    /// How much the path alone proves.
    pub(super) tells: Tells,
}

impl Page {
    /// The document at `at`; `None` if the path cannot be that of a document. A query means that the client is about to
    /// change the document; other requests have none.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let path = at.path();
        if at.query().is_some() || path.split('/').any(|segment| segment == "-") {
            return None;
        }
        let (parent, last) = path.rsplit_once('/')?;
        let (named, about) = match version(parent, last) {
            Some(named) => (named, PageKind::Version),
            None => (name(parent, last)?, PageKind::Package),
        };
        let mut segments = path.split('/');
        let tells = match named.joined {
            _ if segments.any(|segment| FOREIGN_SEGMENTS.contains(&segment)) => Tells::Against,
            true => Tells::All,
            false => Tells::Nothing,
        };
        Some(Self { root: Root::at(at, named.end), about, tells, package: named.package })
    }
}

/// Segments of paths that apt and `PyPI` recognise for certain, where the last segment could be a package's name.
const FOREIGN_SEGMENTS: [&str; 3] = ["dists", "by-hash", "pypi"];

/// A tarball, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tarball {
    /// The package's name, with its scope.
    pub(super) package: String,
    /// The root of the registry.
    pub(super) root: Root,
    /// The path after `/-/`, unchanged.
    pub(super) file: String,
    /// The version in the file name.
    pub(super) version: String,
}

impl Tarball {
    /// The tarball at `at`; `None` if the path is not that of a tarball.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let (front, file) = at.path().rsplit_once("/-/")?;
        let (parent, last) = front.rsplit_once('/')?;
        let Named { package, end, .. } = name(parent, last)?;
        let decoded = decode_once(file)?;
        let stem = decoded.strip_suffix(".tgz")?;
        let (scope, base) = package.rsplit_once('/').unwrap_or(("", &package));
        let stem = stem.strip_prefix(scope).and_then(|stem| stem.strip_prefix('/')).unwrap_or(stem);
        let version = stem.strip_prefix(base)?.strip_prefix('-')?;
        is_version(version).then(|| Self {
            root: Root::at(at, end),
            file: file.to_owned(),
            version: version.to_owned(),
            package,
        })
    }

    /// The topic of claims about it.
    pub(super) fn topic(&self) -> Topic {
        Topic::new(super::NAME, &self.package)
    }
}

/// The name whose last segment is `last`; `parent` is the path before that segment.
fn name(parent: &str, last: &str) -> Option<Named> {
    let last = decode_once(last)?;
    let (prefix, before) = parent.rsplit_once('/').unwrap_or(("", parent));
    let before = decode_once(before)?;
    let joined = last.starts_with('@');
    let (end, package) = if joined {
        (parent.len(), last)
    } else if before.starts_with('@') {
        (prefix.len(), format!("{before}/{last}"))
    } else if is_version(&before) {
        // `<version>/download` belongs to a cargo registry, and is not a package called `download`.
        return None;
    } else {
        (parent.len(), last)
    };
    is_name(&package).then_some(Named { package, end, joined })
}

fn is_name(package: &str) -> bool {
    let well_formed = match package.strip_prefix('@') {
        Some(scoped) => {
            scoped.split_once('/').is_some_and(|(scope, base)| is_word(scope) && is_word(base))
        }
        None => is_word(package),
    };
    well_formed && package.len() <= MAX_NAME && !is_file(package)
}

/// The name before `last`, if `last` is a version or a tag. After a name without a scope, only versions and `latest`
/// count as such: any other word may be a package of a registry whose prefix ends in that name.
fn version(parent: &str, last: &str) -> Option<Named> {
    let (grand, before) = parent.rsplit_once('/')?;
    let tag = decode_once(last)?;
    let named = name(grand, before)?;
    let scoped = named.package.starts_with('@');
    let is_tag = is_version(&tag) || tag == "latest" || scoped && is_word(&tag);
    (is_tag && !is_file(&tag)).then_some(named)
}

/// Whether `text` may be a half of a name, or a tag: characters that need no encoding in a URL (npm's old rule, which
/// allowed capitals), without the four rare ones that encoders treat differently.
fn is_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.is_empty()
        && !text.starts_with(['.', '_'])
        && !matches!(text, "node_modules" | "favicon.ico")
}

/// Whether `text` is `<number>.<number>.<number>` with an optional suffix, as in semantic versioning or its older,
/// looser forms.
pub(super) fn is_version(text: &str) -> bool {
    let mut numbers = text.splitn(3, '.');
    let mut number = || {
        numbers
            .next()
            .is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    number()
        && number()
        && numbers.next().is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit())
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+' | b'_'))
        })
}

/// Whether a name ends like a file that other ecosystems recognise for certain. A package with such a name is not
/// recognised, and is cached as HTTP allows.
fn is_file(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| FILE_ENDINGS.contains(&ending))
}

/// File name extensions of packages and archives.
const FILE_ENDINGS: [&str; 19] = [
    "asc", "bz2", "crate", "ddeb", "deb", "diff", "dsc", "egg", "exe", "gz", "lzma", "metadata",
    "tgz", "toml", "udeb", "whl", "xz", "zip", "zst",
];

/// The path of a package's document in the registry at `root`, as clients write it.
pub(super) fn document_path(root: &str, package: &str) -> String {
    format!("{root}{}", package.replacen('/', "%2f", 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    fn page(path: &str) -> String {
        let page = Page::at(&target(path)).unwrap_or_else(|| panic!("{path}"));
        let certain = match page.tells {
            Tells::All => "certain ",
            Tells::Nothing => "",
            Tells::Against => "doubtful ",
        };
        format!("{certain}{:?} {} {}", page.about, page.package, page.root.path)
    }

    #[test]
    fn documents_are_recognised_under_any_prefix() {
        for (path, expected) in [
            ("/lodash", "Package lodash /"),
            ("/JSONStream", "Package JSONStream /"),
            ("/socket.io", "Package socket.io /"),
            ("/latest", "Package latest /"),
            ("/repository/npm/lodash", "Package lodash /repository/npm/"),
            ("/@types%2fnode", "certain Package @types/node /"),
            ("/@types%2Fnode", "certain Package @types/node /"),
            ("/%40types%2fnode", "certain Package @types/node /"),
            ("/t/@types%2fnode", "certain Package @types/node /t/"),
            ("/@types/node", "Package @types/node /"),
            ("/%40types/node", "Package @types/node /"),
            ("/t/@types/node", "Package @types/node /t/"),
            ("/lodash/4.17.21", "Version lodash /"),
            ("/lodash/latest", "Version lodash /"),
            ("/lodash/1.0.0-rc.1", "Version lodash /"),
            ("/@types/node/20.0.0", "Version @types/node /"),
            ("/@types/node/ts4.9", "Version @types/node /"),
            ("/@types%2fnode/latest", "certain Version @types/node /"),
            // Of two readings the longer prefix wins: its root is smaller, and the document's name will not match if it
            // is wrong.
            ("/lodash/next", "Package next /lodash/"),
            ("/pypi/idna/json", "doubtful Package json /pypi/idna/"),
            ("/dists/s/@a%2fb", "doubtful Package @a/b /dists/s/"),
        ] {
            assert_eq!(page(path), expected, "{path}");
        }
    }

    #[test]
    fn other_paths_are_no_documents() {
        for path in [
            "/",
            "/lodash/",
            "/lodash?write=true",
            "/-/ping",
            "/-/v1/search",
            "/-/npm/v1/keys",
            "/-/package/lodash/dist-tags",
            "/-/npm/v1/attestations/lodash@4.17.21",
            "/t/-/whoami",
            "/lodash/-/lodash-4.17.21.tgz",
            "/.hidden",
            "/_all_docs",
            "/@types",
            "/@types%2f",
            "/@%2fnode",
            "/@types%2fnode%2fx",
            "/a%2fb",
            "/@/node",
            "/favicon.ico",
            "/node_modules",
            "/pool/main/a/adduser_3.134_all.deb",
            "/any/widget-1.0-py3-none-any.whl",
            "/any/a.tar.gz",
            "/@types%2fnode/widget-1.0-py3-none-any.whl",
            "/crates/itoa/1.0.0/download",
            "/caf%C3%A9",
            "/a+b",
        ] {
            assert_eq!(Page::at(&target(path)), None, "{path}");
        }
        assert_eq!(Page::at(&target(&format!("/{}", "a".repeat(215)))), None);
    }

    #[test]
    fn tarballs_are_recognised_by_name_and_version() {
        for (path, package, root) in [
            ("/ms/-/ms-2.1.3.tgz", "ms", "/"),
            ("/t/npm/ms/-/ms-2.1.3.tgz?x=1", "ms", "/t/npm/"),
            ("/@types/ms/-/ms-2.1.0.tgz", "@types/ms", "/"),
            ("/@types%2fms/-/ms-2.1.0.tgz", "@types/ms", "/"),
            ("/@types/ms/-/@types/ms-2.1.0.tgz", "@types/ms", "/"),
            ("/@types/ms/-/@types%2fms-2.1.0.tgz", "@types/ms", "/"),
            ("/a-1/-/a-1-1.0.0-rc.1%2Bb.tgz", "a-1", "/"),
        ] {
            let tarball = Tarball::at(&target(path)).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((&*tarball.package, &*tarball.root.path), (package, root));
        }
        for path in [
            "/-/ms-2.1.3.tgz",
            "/ms/-/other-2.1.3.tgz",
            "/ms/-/ms-latest.tgz",
            "/ms/-/ms-2.tgz",
            "/ms/-/ms-2.1.3.tar.gz",
            "/ms/-/ms-2.1.3.tgz/",
            "/ms/-/ms-2.1.3%2F.tgz",
            "/ms/-/x/ms-2.1.3.tgz",
            "/@types/ms/-/@other/ms-2.1.0.tgz",
            "/ms-2.1.3.tgz",
        ] {
            assert_eq!(Tarball::at(&target(path)), None, "{path}");
        }
    }

    proptest! {
        /// However a package is written, its document and its tarball have the same name, root and topic.
        #[test]
        fn topics_meet(
            prefix in "(/[a-z]{1,8}){0,2}",
            scope in proptest::option::of("[a-z0-9][a-z0-9._-]{0,8}"),
            base in "[a-zA-Z][a-zA-Z0-9_-]{0,12}",
            version in r"[0-9]{1,3}\.[0-9]{1,2}\.[0-9]{1,4}(-[a-z]{1,4}\.[0-9])?",
        ) {
            let scope = scope.map(|scope| format!("@{scope}")).filter(|scope| !is_file(scope));
            let package = match &scope {
                Some(scope) => format!("{scope}/{base}"),
                None => base.clone(),
            };
            let topic = Topic::new("npm", &package);
            let root = format!("{prefix}/");
            let tarball = |front: &str, file: &str| {
                Tarball::at(&target(&format!("{root}{front}/-/{file}-{version}.tgz")))
            };
            let joined = package.replace('/', "%2F");
            for found in [
                tarball(&package, &base),
                tarball(&joined, &base),
                tarball(&package, &package),
                tarball(&joined.replace('@', "%40"), &joined),
            ] {
                let found = found.unwrap();
                prop_assert_eq!(&*found.root.path, &*root);
                prop_assert_eq!(found.topic(), topic.clone());
            }
            for path in [format!("{root}{package}"), document_path(&root, &package)] {
                let found = Page::at(&target(&path)).unwrap();
                prop_assert_eq!((&found.package, found.about), (&package, PageKind::Package));
                prop_assert_eq!(&*found.root.path, &*root);
                prop_assert_eq!(found.tells == Tells::All, path.contains("%2f"));
            }
        }
    }
}
