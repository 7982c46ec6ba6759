//! Parses the two JSON documents of a PyPI-like index, one file at a time, in memory that does not depend on the
//! document.
//!
//! A simple page (PEP 691, 700, 714) has `meta` and `files[]`; the legacy document about a project has `urls[]` and
//! `releases{}[]`. The two are told apart by these names. All other members are skipped. A repeated member is ambiguous
//! and makes the whole document malformed, and so does a `meta` of another major version. `meta` may come after the
//! files; the claims made by then are dropped with the rest.

mod file;

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::file::File;
use super::links::Links;
use crate::ecosystem::Malformed;
use crate::ecosystem::json::{self as stream, Refusal, once};

/// Passes every file of `document` to `links`.
pub(super) fn read(
    document: impl Read,
    limit: u64,
    links: &mut Links<'_>,
) -> Result<(), Malformed> {
    let refusal = &Refusal::default();
    let seed = Document(Files { links, refusal });
    stream::read(document, limit, "PEP 691 or legacy JSON index", seed, refusal)
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "kebab-case")]
enum DocumentKey {
    Meta,
    Files,
    Urls,
    Releases,
    #[serde(other)]
    Other,
}

/// The whole document.
struct Document<'d, 'a>(Files<'d, 'a>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut meta, mut files, mut urls, mut releases) = (false, false, false, false);
        while let Some(key) = map.next_key()? {
            let files_of = self.0.again();
            match key {
                DocumentKey::Meta => {
                    once(&mut meta, "meta")?;
                    map.next_value::<Meta>()?;
                }
                DocumentKey::Files => {
                    once(&mut files, "files")?;
                    map.next_value_seed(files_of)?;
                }
                DocumentKey::Urls => {
                    once(&mut urls, "urls")?;
                    map.next_value_seed(files_of)?;
                }
                DocumentKey::Releases => {
                    once(&mut releases, "releases")?;
                    map.next_value_seed(Releases(files_of))?;
                }
                DocumentKey::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        // Without its version, a page may be of a future format that gives these names another meaning.
        if files && !meta {
            return Err(de::Error::missing_field("meta"));
        }
        if !files && !urls && !releases {
            return Err(de::Error::missing_field("files"));
        }
        Ok(())
    }
}

/// `meta`: only major version 1 is known (PEP 629).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Meta {
    #[serde(deserialize_with = "major_one")]
    #[expect(dead_code, reason = "read for its check")]
    api_version: (),
}

fn major_one<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    let version = String::deserialize(from)?;
    match version.split_once('.') {
        Some(("1", _)) => Ok(()),
        _ => Err(de::Error::custom(format!("api-version {version:?}"))),
    }
}

/// `files[]`, `urls[]`, and each of `releases{}`.
struct Files<'d, 'a> {
    links: &'d mut Links<'a>,
    /// Receives the reason if a link is refused.
    refusal: &'d Refusal,
}

impl<'a> Files<'_, 'a> {
    /// A visitor for one more list.
    fn again(&mut self) -> Files<'_, 'a> {
        Files { links: self.links, refusal: self.refusal }
    }
}

impl<'de> DeserializeSeed<'de> for Files<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(File { url, said }) = seq.next_element()? {
            self.links.link(&url, &said).map_err(|reason| self.refusal.error(reason))?;
        }
        Ok(())
    }
}

/// `releases{}`: version to files.
struct Releases<'d, 'a>(Files<'d, 'a>);

impl<'de> DeserializeSeed<'de> for Releases<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Releases<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("files by version")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(self.0.again())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Claim;
    use crate::target::Target;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const META: &str = r#""meta": {"api-version": "1.1"}"#;

    fn claims(document: &str) -> Result<Vec<Claim>, Malformed> {
        let mut out = Vec::new();
        let base = Target::from_url("https://example.org/pypi/widget/json").unwrap();
        let mut links = Links::new(base, Some("widget"), &mut out);
        read(document.as_bytes(), 1 << 20, &mut links)?;
        Ok(out)
    }

    fn page(files: &str) -> String {
        format!(r#"{{{META}, "name": "widget", "files": [{files}]}}"#)
    }

    #[test]
    fn a_simple_page_is_read() {
        let all = claims(&page(&format!(
            r#"{{"filename": "widget-1.0.tar.gz", "url": "https://files.example.org/widget-1.0.tar.gz",
                 "hashes": {{"sha256": "{ONE}"}}, "size": 7, "yanked": "broken", "requires-python": ">=3",
                 "core-metadata": {{"sha256": "{ONE}"}}, "data-dist-info-metadata": true}},
               {{"url": "no-hash-1.0.tar.gz", "hashes": {{}}, "size": null, "core-metadata": false}}"#
        )))
        .unwrap();
        let said: Vec<(String, Option<u64>)> =
            all.iter().map(|claim| (claim.target.url(), claim.size)).collect();
        assert_eq!(
            said,
            [
                ("https://files.example.org/widget-1.0.tar.gz.metadata".into(), None),
                ("https://files.example.org/widget-1.0.tar.gz".into(), Some(7)),
            ]
        );
    }

    /// With the digests of the legacy document, and links that lead out of its directory.
    #[test]
    fn a_legacy_document_is_read() {
        let file = format!(
            r#"{{"digests": {{"blake2b_256": "{ONE}", "md5": "000102030405060708090a0b0c0d0e0f", "sha256": "{ONE}"}},
                 "filename": "widget-1.0.tar.gz", "size": 7, "yanked": false, "md5_digest": "ignored",
                 "url": "../../packages/packages/58/a2/widget-1.0.tar.gz"}}"#
        );
        let all = claims(&format!(
            r#"{{"info": {{"description": "[[[", "yanked": null}}, "last_serial": 1,
                 "releases": {{"1.0": [{file}], "0.9": []}}, "urls": [{file}], "vulnerabilities": []}}"#
        ))
        .unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].digests.len(), 3);
        assert_eq!(
            all[0].target.url(),
            "https://example.org/packages/packages/58/a2/widget-1.0.tar.gz"
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let good = format!(r#""url": "widget-1.0.zip", "hashes": {{"sha256": "{ONE}"}}"#);
        assert_eq!(claims(&page(&format!("{{{good}}}"))).unwrap().len(), 1);
        for document in [
            page(&format!(r#"{{{good}, "url": "widget-2.0.zip"}}"#)),
            page(&format!(r#"{{{good}, "\u0075rl": "widget-2.0.zip"}}"#)),
            page(&format!(r#"{{{good}, "hashes": {{}}}}"#)),
            page(&format!(r#"{{{good}, "digests": {{}}}}"#)),
            page(&format!(r#"{{{good}, "size": 1, "size": 2}}"#)),
            page(&format!(
                r#"{{"url": "widget-1.0.zip", "hashes": {{"sha256": "{ONE}", "sha256": "{ONE}"}}}}"#
            )),
            page(&format!(r#"{{"hashes": {{"sha256": "{ONE}"}}}}"#)),
            page(&format!(r#"{{{good}}}], "files": [{{{good}}}"#)),
            format!(r#"{{{META}, {META}, "files": [{{{good}}}]}}"#),
            format!(r#"{{"files": [{{{good}}}]}}"#),
            format!(r#"{{"files": [{{{good}}}], "meta": {{"api-version": "2.0"}}}}"#),
            format!(r#"{{"files": [{{{good}}}], "meta": {{"api-version": "10.0"}}}}"#),
            format!(r#"{{"files": [{{{good}}}], "meta": {{}}}}"#),
            format!("{} {{}}", page("")),
            format!(r#"{{{META}, "files": {{}}}}"#),
            page("1"),
            page(r#"{"url": 1}"#),
            page(r#"{"url": "widget-1.0.zip", "size": -1}"#),
            page(r#"{"url": "widget-1.0.zip", "hashes": ["sha256"]}"#),
            r#"{"message": "Not Found"}"#.into(),
            "{".into(),
            "[]".into(),
            String::new(),
        ] {
            assert!(matches!(claims(&document), Err(Malformed::Shape { .. })), "{document}");
        }
    }

    #[test]
    fn bombs_end_at_a_limit() {
        let deep = format!(r#"{{{META}, "x": {}"#, "[".repeat(100_000));
        let wide = page(&"{\"url\": \"x\"},".repeat(100_000));
        let kinds: Vec<String> = (0..100).map(|n| format!(r#""{n}": "","#)).collect();
        let kinds = kinds.concat();
        let kinds = page(&format!(r#"{{"url": "x", "hashes": {{{kinds} "x": ""}}}}"#));
        assert!(matches!(claims(&deep), Err(Malformed::Limit { .. })));
        assert!(matches!(claims(&wide), Err(Malformed::Limit { .. })));
        assert!(matches!(claims(&kinds), Err(Malformed::Shape { .. })));
    }

    #[test]
    fn a_sink_that_is_full_ends_the_reading() {
        struct Full;
        impl crate::claim::ClaimSink for Full {
            fn claim(&mut self, _: Claim) -> Result<(), crate::claim::TooMany> {
                Err(crate::claim::TooMany)
            }
        }
        let base = Target::from_url("https://example.org/simple/widget/").unwrap();
        let mut out = Full;
        let mut links = Links::new(base, None, &mut out);
        let file = format!(r#"{{"url": "widget-1.0.zip", "hashes": {{"sha256": "{ONE}"}}}}"#);
        let read = read(page(&file).as_bytes(), 1 << 20, &mut links);
        assert!(matches!(read, Err(Malformed::Limit { unit: "claims", .. })));
    }
}
