//! `config.json`: where a cargo registry serves its crates.
//!
//! `dl` is a URL template with markers for parts of a crate's name and for its checksum. A template without markers
//! means `/{crate}/{version}/download` below it. It may name any origin: claims about files on another origin only
//! confirm.

use std::io::Read;

use serde::Deserialize;

use super::shape::prefix;
use crate::digest::Digest;
use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::{Bounded, Nesting, malformed};
use crate::target::{Origin, Target};

/// The maximum length of the configuration, in bytes. Real ones have two lines.
const MAX_CONFIG: u64 = 64 * 1024;

/// The markers that a template may contain (the cargo book, "Registry index").
const MARKERS: [&str; 5] =
    ["{crate}", "{version}", "{prefix}", "{lowerprefix}", "{sha256-checksum}"];

/// The maximum length of a template in bytes, and the maximum number of markers in it. Both bound the expansion, which
/// happens for every version of every crate. Real templates have a hundred bytes and no repeated marker.
const MAX_TEMPLATE: usize = 2048;
const MAX_MARKERS: usize = 16;

/// Appended to a template without markers.
const DEFAULT: &str = "/{crate}/{version}/download";

/// The `dl` template of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(String);

#[derive(Deserialize)]
struct Config {
    dl: String,
}

impl Template {
    /// Parses a `config.json`.
    pub(super) fn read(config: impl Read) -> Result<Self, Malformed> {
        let bounded = Bounded::new(config, MAX_CONFIG, Nesting::default());
        match serde_json::from_reader(bounded) {
            Ok(Config { dl }) => Self::new(dl),
            Err(error) if error.is_io() => Err(malformed(error.into())),
            Err(error) => Err(Malformed::Shape {
                expected: "config.json of a cargo registry",
                found: error.to_string(),
            }),
        }
    }

    fn new(mut dl: String) -> Result<Self, Malformed> {
        if dl.len() > MAX_TEMPLATE {
            return Err(Malformed::Limit { limit: MAX_TEMPLATE as u64, unit: "bytes of dl" });
        }
        match MARKERS.iter().map(|marker| dl.matches(marker).count()).sum() {
            0 => dl.push_str(DEFAULT),
            1..=MAX_MARKERS => {}
            _ => return Err(Malformed::Limit { limit: MAX_MARKERS as u64, unit: "markers in dl" }),
        }
        Ok(Self(dl))
    }

    /// The URL of the crate with this name, version and checksum; `None` if the result is not a valid target.
    pub(super) fn target(&self, name: &str, version: &str, checksum: &Digest) -> Option<Target> {
        // Names, versions and digests contain no braces, so a replacement cannot create a marker.
        let [crate_, version_, prefix_, lower, sum] = MARKERS;
        let url = self
            .0
            .replace(crate_, name)
            .replace(version_, version)
            .replace(prefix_, &prefix(name))
            .replace(lower, &prefix(&name.to_ascii_lowercase()))
            .replace(sum, &checksum.to_hex());
        Target::from_url(&url)
    }

    /// The origin of the crates, if the template puts all of them on one origin.
    pub(super) fn origin(&self) -> Option<Origin> {
        let end = self.0.find(['{', '}']).unwrap_or(self.0.len());
        // Everything before the first marker, provided that this includes the whole authority.
        let fixed = self.0.get(..end)?;
        let (_, rest) = fixed.split_once("://")?;
        rest.contains('/')
            .then(|| Target::from_url(fixed))
            .flatten()
            .map(|target| target.origin().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn template(dl: &str) -> Template {
        let config = serde_json::json!({"dl": dl, "api": "https://example.org"}).to_string();
        Template::read(config.as_bytes()).unwrap()
    }

    fn url(dl: &str, name: &str, version: &str) -> Option<String> {
        let checksum = Digest::new(Algorithm::Sha256, &[0x11; 32]).unwrap();
        let target = template(dl).target(name, version, &checksum)?;
        Some(target.url())
    }

    #[test]
    fn a_template_that_swells_is_refused() {
        let read = |dl: &str| {
            let config = serde_json::json!({"dl": dl}).to_string();
            Template::read(config.as_bytes()).map_err(|error| error.to_string())
        };
        let with = |markers: usize| format!("https://example.org/{}", "{crate}".repeat(markers));
        assert!(read(&with(MAX_MARKERS)).is_ok());
        assert!(read(&with(MAX_MARKERS + 1)).unwrap_err().contains("markers"));
        let long = |bytes: usize| format!("https://example.org/{}", "a".repeat(bytes - 20));
        assert!(read(&long(MAX_TEMPLATE)).is_ok());
        assert!(read(&long(MAX_TEMPLATE + 1)).unwrap_err().contains("bytes of dl"));
    }

    #[test]
    fn every_marker_is_filled_in() {
        let sum = "1".repeat(64);
        for (dl, name, version, expected) in [
            (
                "https://example.org/v1/crates",
                "Itoa",
                "1.0.1",
                "https://example.org/v1/crates/Itoa/1.0.1/download",
            ),
            (
                "https://example.org:443/v1/crates",
                "itoa",
                "1.0.1",
                "https://example.org/v1/crates/itoa/1.0.1/download",
            ),
            (
                "https://example.org/crates/",
                "itoa",
                "1.0.1",
                "https://example.org/crates//itoa/1.0.1/download",
            ),
            (
                "https://files.example.org/{crate}/{crate}-{version}.crate",
                "itoa",
                "1.0.1+2",
                "https://files.example.org/itoa/itoa-1.0.1+2.crate",
            ),
            (
                "https://example.org/{prefix}/{lowerprefix}/{crate}",
                "MyCrate",
                "1.0.0",
                "https://example.org/My/Cr/my/cr/MyCrate",
            ),
            (
                "https://example.org/{lowerprefix}/{version}/{sha256-checksum}",
                "ABC",
                "1.0.0",
                &format!("https://example.org/3/a/1.0.0/{sum}"),
            ),
            ("https://example.org/{prefix}", "a", "1.0.0", "https://example.org/1"),
            ("https://example.org/{prefix}", "ab", "1.0.0", "https://example.org/2"),
        ] {
            assert_eq!(url(dl, name, version).as_deref(), Some(expected), "{dl}");
        }
    }

    #[test]
    fn a_template_that_leads_nowhere_makes_no_target() {
        for dl in [
            "",
            "crates",
            "/crates",
            "ftp://example.org/crates",
            "https://",
            "https://user:secret@example.org/crates",
            "https://example.org/../crates",
            "https://example.org/a b",
            "https://127.1/crates",
        ] {
            assert_eq!(url(dl, "itoa", "1.0.1"), None, "{dl}");
        }
    }

    #[test]
    fn the_origin_is_known_where_no_crate_decides_it() {
        let origin = |dl: &str| template(dl).origin().map(|origin| origin.authority());
        let files = Some("files.example.org".to_owned());
        assert_eq!(origin("https://files.example.org:443/crates"), files);
        assert_eq!(origin("https://files.example.org/{crate}-{version}.crate"), files);
        assert_eq!(origin("https://files.example.org"), files);
        assert_eq!(origin("https://{crate}.example.org/{version}"), None);
        assert_eq!(origin("https://files.example.org{prefix}"), None);
        assert_eq!(origin("nowhere"), None);
    }

    #[test]
    fn what_is_no_configuration_is_malformed() {
        for config in [
            r#"{"dl": "https://example.org/a", "dl": "https://example.org/b"}"#,
            r#"{"dl": "https://example.org/a", "\u0064l": "https://example.org/b"}"#,
            r#"{"dl": 1}"#,
            r#"{"api": "https://example.org/a"}"#,
            r#"{"dl": "https://example.org/a"} {}"#,
            r#"{"dl": "https://example.org/a""#,
            "[]",
            "",
        ] {
            let read = Template::read(config.as_bytes());
            assert!(matches!(read, Err(Malformed::Shape { .. })), "{config}");
        }
        let long = format!(r#"{{"dl": "{}"}}"#, "a".repeat(1 << 17));
        let read = Template::read(long.as_bytes());
        assert!(matches!(read, Err(Malformed::Limit { .. })));
    }
}
