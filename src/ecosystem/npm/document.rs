//! Parses a package's document, one version at a time, in memory that does not depend on the document.
//!
//! A packument has `name` and `versions{}`; the document of one version has `name` and `dist` itself. All other
//! members, such as descriptions and the dependencies of every version, are skipped: the largest documents have 40 MB
//! and more. A repeated member is ambiguous and makes the whole document malformed, and so does the name of another
//! package.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::dist::{Dist, Dists};
use super::shape::PageKind;
use super::signatures::{MAX_VERSION, MAX_VERSIONS};
use crate::ecosystem::Malformed;
use crate::ecosystem::json::{self, Refusal, once};

/// Passes every `dist` of `document` to `dists`. `about`: whether the document is about the package or one version.
pub(super) fn read(
    document: impl Read,
    limit: u64,
    about: PageKind,
    dists: &mut Dists<'_>,
) -> Result<(), Malformed> {
    let expected = match about {
        PageKind::Package => "packument",
        PageKind::Version => "document of one version",
    };
    let refusal = &Refusal::default();
    json::read(document, limit, expected, Document { about, dists, refusal }, refusal)
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Name,
    Version,
    Versions,
    Dist,
    #[serde(other)]
    Other,
}

/// The whole document.
struct Document<'d, 'a> {
    about: PageKind,
    dists: &'d mut Dists<'a>,
    /// Receives the reason if a claim is refused.
    refusal: &'d Refusal,
}

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a package's document")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut name, mut read) = (None, false);
        // In the document of one version, `version` may come after `dist`.
        let (mut version, mut own): (Option<String>, Option<Dist>) = (None, None);
        while let Some(key) = map.next_key()? {
            match (key, self.about) {
                (Key::Name, _) => {
                    if name.replace(map.next_value::<String>()?).is_some() {
                        return Err(de::Error::duplicate_field("name"));
                    }
                }
                (Key::Versions, PageKind::Package) => {
                    once(&mut read, "versions")?;
                    map.next_value_seed(Versions(&mut self))?;
                }
                (Key::Dist, PageKind::Version) => {
                    once(&mut read, "dist")?;
                    own = Some(map.next_value()?);
                }
                (Key::Version, PageKind::Version) => {
                    if version.replace(map.next_value::<String>()?).is_some() {
                        return Err(de::Error::duplicate_field("version"));
                    }
                }
                (Key::Version | Key::Versions | Key::Dist | Key::Other, _) => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let name = name.ok_or_else(|| de::Error::missing_field("name"))?;
        if name != self.dists.package() {
            return Err(de::Error::custom(format!(
                "it is about {name:?}, and its URL about {:?}",
                self.dists.package()
            )));
        }
        if let Some(dist) = own {
            self.take(version.as_deref(), &dist)?;
        }
        if !read {
            return Err(de::Error::missing_field(match self.about {
                PageKind::Package => "versions",
                PageKind::Version => "dist",
            }));
        }
        Ok(())
    }
}

impl Document<'_, '_> {
    fn take<E: de::Error>(&mut self, version: Option<&str>, dist: &Dist) -> Result<(), E> {
        self.dists.take(version, dist).map_err(|reason| self.refusal.error(reason))
    }
}

/// `versions{}`.
struct Versions<'v, 'd, 'a>(&'v mut Document<'d, 'a>);

/// The members of one version that larder reads.
#[derive(Deserialize)]
struct Version {
    dist: Option<Dist>,
}

impl<'de> DeserializeSeed<'de> for Versions<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Versions<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("documents by version")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(version) = map.next_key::<String>()? {
            if version.len() > MAX_VERSION {
                return Err(de::Error::custom("a version of more than 256 bytes"));
            }
            if seen.len() == MAX_VERSIONS {
                let limit = Malformed::Limit { limit: MAX_VERSIONS as u64, unit: "versions" };
                return Err(self.0.refusal.error(limit));
            }
            if seen.contains(&version) {
                return Err(de::Error::custom("a version stands twice"));
            }
            if let Some(dist) = map.next_value::<Version>()?.dist {
                self.0.take(Some(&version), &dist)?;
            }
            seen.insert(version);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::signatures::Judge;
    use super::*;
    use crate::claim::{Claim, ClaimSink, TooMany};
    use crate::keyring::Keyring;
    use crate::target::{Root, Target};
    use std::io;

    const SRI: &str = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

    fn read_as(
        about: PageKind,
        document: impl Read,
        out: &mut dyn ClaimSink,
    ) -> Result<(), Malformed> {
        let base = Target::from_url("https://example.org/ms").unwrap();
        let root = Root::directory_of(&base);
        let keys = Keyring::new();
        let judge = Judge::new(&keys, "ms", None);
        read(document, 1 << 20, about, &mut Dists::new(&base, &root, judge, out))
    }

    fn claims(about: PageKind, document: &str) -> Result<Vec<Claim>, Malformed> {
        let mut out = Vec::new();
        read_as(about, document.as_bytes(), &mut out)?;
        Ok(out)
    }

    fn dist(version: &str) -> String {
        format!(
            r#""dist": {{"integrity": "{SRI}", "shasum": "ignored", "tarball": "https://example.org/ms/-/ms-{version}.tgz",
                 "fileCount": 3, "unpackedSize": 9, "signatures": [{{"keyid": "a", "sig": "b"}}]}}"#
        )
    }

    fn packument(versions: &str) -> String {
        format!(
            r#"{{"_id": "ms", "name": "ms", "dist-tags": {{"latest": "1.0.0"}}, "versions": {{{versions}}},
                 "time": {{"created": "x"}}, "readme": "[[["}}"#
        )
    }

    #[test]
    fn packuments_and_single_versions_are_read() {
        let versions = format!(
            r#""1.0.0": {{"name": "ms", "version": "1.0.0", {}, "deprecated": true}}, "0.9.0": {{"dist": null}}, "0.8.0": {{}}"#,
            dist("1.0.0")
        );
        let all = claims(PageKind::Package, &packument(&versions)).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].target.path(), "/ms/-/ms-1.0.0.tgz");
        let one =
            format!(r#"{{"name": "ms", "version": "1.0.0", {}, "versions": 1}}"#, dist("1.0.0"));
        assert_eq!(claims(PageKind::Version, &one).unwrap(), all);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let good = format!(r#""1.0.0": {{{}}}"#, dist("1.0.0"));
        assert_eq!(claims(PageKind::Package, &packument(&good)).unwrap().len(), 1);
        let whole = packument(&good);
        for document in [
            packument(&format!("{good}, {good}")),
            packument(&format!(r#"{good}, "\u0031.0.0": {{}}"#)),
            packument(&format!(r#""1.0.0": {{{0}, {0}}}"#, dist("1.0.0"))),
            packument(r#""1.0.0": {"dist": {"tarball": "a", "tarball": "b"}}"#),
            packument(r#""1.0.0": {"dist": {"integrity": "a", "\u0069ntegrity": "b"}}"#),
            packument(r#""1.0.0": {"dist": {"shasum": "a", "shasum": "b"}}"#),
            packument(r#""1.0.0": {"dist": {"shasum": 1}}"#),
            packument(r#""1.0.0": {"dist": []}"#),
            packument(r#""1.0.0": 1"#),
            packument(&format!(r#""{}": {{}}"#, "1".repeat(257))),
            whole.replacen("\"readme\"", "\"versions\"", 1),
            whole.replacen("\"readme\": \"[[[\"", "\"versions\": {}", 1),
            whole.replacen("\"readme\": \"[[[\"", "\"name\": \"ms\"", 1),
            whole.replacen("\"name\": \"ms\"", "\"name\": \"other\"", 1),
            whole.replacen("\"name\": \"ms\", ", "", 1),
            whole.replacen("\"versions\"", "\"version\"", 1),
            format!("{whole} {{}}"),
            whole.strip_suffix('}').unwrap().to_owned(),
            r#"{"error": "Not found"}"#.into(),
            "[]".into(),
            "<html>".into(),
            String::new(),
        ] {
            assert!(
                matches!(claims(PageKind::Package, &document), Err(Malformed::Shape { .. })),
                "{document}"
            );
        }
        // A packument is not accepted as the document of one version, nor the other way round.
        assert!(claims(PageKind::Version, &whole).is_err());
        let one = format!(r#"{{"name": "ms", {}}}"#, dist("1.0.0"));
        assert!(claims(PageKind::Package, &one).is_err());
        assert!(
            claims(PageKind::Version, &format!(r#"{{"name": "ms", {0}, {0}}}"#, dist("1.0.0")))
                .is_err()
        );
    }

    #[test]
    fn bombs_end_at_a_limit() {
        let deep = packument(&format!("\"1.0.0\": {}", "[".repeat(100_000)));
        let long = packument(&format!("\"1.0.0\": {{\"x\": \"{}\"}}", "a".repeat(1 << 20)));
        for document in [deep, long] {
            assert!(matches!(claims(PageKind::Package, &document), Err(Malformed::Limit { .. })));
        }
    }

    /// Versions without end, made while they are read: memory could not hold them.
    struct Endless(u64, Vec<u8>);

    impl Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.1.is_empty() {
                self.1 = match self.0 {
                    0 => br#"{"name": "ms", "versions": {"#.to_vec(),
                    n => format!(r#""{n}.0.0": {{}},"#).into_bytes(),
                };
                self.0 += 1;
            }
            let read = out.len().min(self.1.len());
            out[..read].copy_from_slice(&self.1[..read]);
            self.1.drain(..read);
            Ok(read)
        }
    }

    #[test]
    fn versions_without_end_are_too_many() {
        let base = Target::from_url("https://example.org/ms").unwrap();
        let root = Root::directory_of(&base);
        let mut out = Vec::new();
        let keys = Keyring::new();
        let mut dists = Dists::new(&base, &root, Judge::new(&keys, "ms", None), &mut out);
        let ended = read(Endless(0, Vec::new()), u64::MAX, PageKind::Package, &mut dists);
        assert!(matches!(ended, Err(Malformed::Limit { unit: "versions", .. })));
    }

    #[test]
    fn a_sink_that_is_full_ends_the_reading() {
        struct Full;
        impl ClaimSink for Full {
            fn claim(&mut self, _: Claim) -> Result<(), TooMany> {
                Err(TooMany)
            }
        }
        let document = packument(&format!(r#""1.0.0": {{{}}}"#, dist("1.0.0")));
        let read = read_as(PageKind::Package, document.as_bytes(), &mut Full);
        assert!(matches!(read, Err(Malformed::Limit { unit: "claims", .. })));
    }
}
