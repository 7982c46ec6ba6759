//! Recognises the URLs of a sparse cargo registry, by their path alone.
//!
//! ```text
//! <prefix>/config.json                          the configuration: the URL of the registry's files
//! <prefix>/1/n  2/nn  3/n/nnn  na/me/name       a crate's index file, in lower case
//! …/crates/<crate>/<version>/download           a crate, as most registries serve it
//! …/<crate>-<version>.crate, …/<crate>/<version>.crate    a crate, where a file server serves it
//! ```
//!
//! `<prefix>` may be anything. The index has authority over the part of the origin below it.

use crate::claim::Topic;
use crate::ecosystem::Artifact;
use crate::target::{Root, Target, decode_once};

/// The maximum length of a crate's name, as registries limit it.
const MAX_NAME: usize = 64;

/// What an index document describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    /// The configuration, with the URL of the registry's files.
    Config,
    /// The index file of one crate, by its name in lower case.
    Crate(String),
}

/// An index document, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// What it describes.
    pub(super) about: PageKind,
    /// The part of the origin over which it has authority.
    pub(super) root: Root,
}

impl Page {
    /// The document at `at`; `None` if the path is not that of an index document.
    pub(super) fn at(at: &Target) -> Option<Self> {
        if at.query().is_some() {
            return None;
        }
        let (directory, file) = at.path().rsplit_once('/')?;
        if file == "config.json" {
            return Some(Self { about: PageKind::Config, root: Root::at(at, directory.len()) });
        }
        if !is_name(file) || file.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let prefix = directory.strip_suffix(&prefix(file))?.strip_suffix('/')?;
        Some(Self { about: PageKind::Crate(file.to_owned()), root: Root::at(at, prefix.len()) })
    }
}

/// The directory of the index file of `name`: `1`, `2`, `3/n`, `na/me`. It keeps the case of the name, as templates
/// need it.
pub(super) fn prefix(name: &str) -> String {
    let part = |range| name.get(range).unwrap_or_default();
    match name.len() {
        0..=2 => name.len().to_string(),
        3 => format!("3/{}", part(0..1)),
        _ => format!("{}/{}", part(0..2), part(2..4)),
    }
}

/// A crate, recognised by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crate {
    /// The name, as the URL spells it.
    pub(super) name: String,
    /// The version.
    pub(super) version: String,
    /// The part of the origin to which it belongs.
    pub(super) root: Root,
    /// Whether the path alone is proof enough. Many sites have `<word>/<version>/download`; only a claim makes that a
    /// crate.
    pub(super) certain: bool,
}

impl Crate {
    /// The crate at `at`; `None` if the path is not that of a crate.
    pub(super) fn at(at: &Target) -> Option<Self> {
        let (parent, last) = at.path().rsplit_once('/')?;
        let (before, directory) = parent.rsplit_once('/').unwrap_or(("", parent));
        let directory = decode_once(directory)?;
        let file = decode_once(last)?;
        let (name, version, end, certain) = if file == "download" {
            let (prefix, name) = before.rsplit_once('/')?;
            let certain = prefix.ends_with("/crates");
            (name.to_owned(), directory, prefix.len(), certain)
        } else {
            let stem = file.strip_suffix(".crate")?;
            match name_and_version(stem) {
                Some((name, version)) => (name, version, parent.len(), true),
                None => (directory, stem.to_owned(), before.len(), true),
            }
        };
        (is_name(&name) && is_version(&version)).then(|| Self {
            root: Root::at(at, end),
            name,
            version,
            certain,
        })
    }

    /// The topic of claims about the crate.
    pub(super) fn topic(&self) -> Topic {
        topic(&self.name)
    }

    /// The crate as an [`Artifact`], for looking up promises.
    pub(super) fn artifact(&self) -> Artifact {
        Artifact { named: None, topics: vec![self.topic()] }
    }
}

/// The topic of a crate, whatever the case of its name.
pub(super) fn topic(name: &str) -> Topic {
    Topic::new(super::NAME, &name.to_ascii_lowercase())
}

/// Splits `<name>-<version>`. A name has no dots, so the version begins with the number before the first dot.
fn name_and_version(stem: &str) -> Option<(String, String)> {
    let (front, _) = stem.split_once('.')?;
    let (name, _) = front.rsplit_once('-')?;
    let version = stem.strip_prefix(name)?.strip_prefix('-')?;
    (is_name(name) && is_version(version)).then(|| (name.to_owned(), version.to_owned()))
}

/// Whether `name` is a valid crate name: letters, digits, `-` and `_`, as registries allow.
pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Whether `version` looks like a semantic version: three numbers, and an optional pre-release and build part.
pub(super) fn is_version(version: &str) -> bool {
    let end = version.find(['-', '+']).unwrap_or(version.len());
    let (core, rest) = version.split_at_checked(end).unwrap_or((version, ""));
    core.split('.').count() == 3
        && core.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    #[test]
    fn index_files_lie_where_their_names_say() {
        let named = |name: &str| PageKind::Crate(name.into());
        for (path, about, root) in [
            ("/config.json", PageKind::Config, "/"),
            ("/t/index/config.json", PageKind::Config, "/t/index/"),
            ("/1/a", named("a"), "/"),
            ("/2/ab", named("ab"), "/"),
            ("/3/s/syn", named("syn"), "/"),
            ("/ca/rg/cargo", named("cargo"), "/"),
            ("/t/index/se/rd/serde_json", named("serde_json"), "/t/index/"),
            ("/se/rd/se/rd/serde", named("serde"), "/se/rd/"),
            ("/a-/b_/a-b_c", named("a-b_c"), "/"),
        ] {
            let page = Page::at(&target(path)).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((page.about, &*page.root.path), (about, root), "{path}");
        }
        for path in [
            "/",
            "/a",
            "/1/ab",
            "/2/a",
            "/3/x/syn",
            "/x3/s/syn",
            "/xca/rg/cargo",
            "/ca/rgo/cargo",
            "/ca/rg/cargo/",
            "/ca/rg/cargo?x",
            "/Ca/rg/Cargo",
            "/ca/rg/Cargo",
            "/rg/ca/cargo",
            "/a./bc/a.bc",
            "/-a/bc/-abc",
            "/config.json?x",
            "/config.json/",
        ] {
            assert_eq!(Page::at(&target(path)), None, "{path}");
        }
        let long = "a".repeat(65);
        assert_eq!(Page::at(&target(&format!("/aa/aa/{long}"))), None);
    }

    #[test]
    fn crates_are_recognised_by_name_and_version() {
        for (path, expected) in [
            ("/v1/crates/itoa/1.0.1/download", "certain itoa 1.0.1 /v1/crates/"),
            ("/crates/RustyXML/0.3.0/download", "certain RustyXML 0.3.0 /crates/"),
            ("/dl/itoa/1.0.1/download", "likely itoa 1.0.1 /dl/"),
            ("/itoa/1.0.1/download", "likely itoa 1.0.1 /"),
            ("/crates/itoa/itoa-1.0.1.crate", "certain itoa 1.0.1 /crates/itoa/"),
            ("/any/a-1-1.0.1-rc.2.crate", "certain a-1 1.0.1-rc.2 /any/"),
            ("/any/ssl-sys-0.9.0%2B1.1.1-src.crate", "certain ssl-sys 0.9.0+1.1.1-src /any/"),
            ("/any/itoa/1.0.1.crate", "certain itoa 1.0.1 /any/"),
            ("/itoa-1.0.1.crate", "certain itoa 1.0.1 /"),
        ] {
            let found = Crate::at(&target(path)).unwrap_or_else(|| panic!("{path}"));
            let sure = if found.certain { "certain" } else { "likely" };
            let Crate { name, version, root, .. } = found;
            let said = format!("{sure} {name} {version} {}", root.path);
            assert_eq!(said, expected, "{path}");
        }
        for path in [
            "/crates/itoa/latest/download",
            "/crates/itoa/1.0/download",
            "/crates/itoa/1.0.1/downloads",
            "/crates/itoa/1.0.1/download/",
            "/crates/it.oa/1.0.1/download",
            "/1.0.1/download",
            "/download",
            "/itoa.crate",
            "/.crate",
            "/any/itoa-1.crate",
            "/any/%2Fitoa-1.0.1.crate",
        ] {
            assert_eq!(Crate::at(&target(path)), None, "{path}");
        }
    }

    proptest! {
        /// Whatever the case of a crate's name, its index file and its files have the same topic.
        #[test]
        fn topics_meet(
            prefixed in "(/[a-z]{1,8}){0,2}",
            name in "[a-zA-Z][a-zA-Z0-9_-]{0,12}",
            version in r"[0-9]{1,3}\.[0-9]{1,2}\.[0-9]{1,4}(-[a-z]{1,4}\.[0-9])?(\+[0-9]{1,2})?",
        ) {
            let lower = name.to_ascii_lowercase();
            let index = target(&format!("{prefixed}/{}/{lower}", prefix(&lower)));
            let page = Page::at(&index).unwrap();
            prop_assert_eq!(page.about, PageKind::Crate(lower.clone()));
            prop_assert_eq!(&*page.root.path, format!("{prefixed}/"));
            for path in [
                format!("{prefixed}/crates/{name}/{version}/download"),
                format!("{prefixed}/{lower}/{version}/download"),
                format!("{prefixed}/{name}-{version}.crate"),
                format!("{prefixed}/{name}/{}.crate", version.replace('+', "%2b")),
            ] {
                let found = Crate::at(&target(&path)).unwrap();
                prop_assert_eq!(found.topic(), topic(&lower));
                prop_assert_eq!(&found.version, &version);
            }
        }
    }
}
