//! Reads a crate's index file, one version at a time, in memory that does not depend on the file.
//!
//! Each line is one JSON object and describes one version. Yanked versions count, because a lock file may still name
//! them. A line without a checksum, or about another crate, makes no claim: lines of a newer format may lack one, and
//! cargo skips those. A repeated member or invalid JSON makes the whole file malformed.

use std::io::{self, Read};

use serde::Deserialize;

use super::config::Template;
use super::shape::{self, Crate};
use crate::claim::{Claim, ClaimSink};
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::{Bounded, Nesting, malformed};
use crate::target::Scheme;

/// The maximum number of versions of one crate. The crates with most have some thousand.
const MAX_VERSIONS: u64 = 100_000;

/// The members of a line that larder reads.
#[derive(Deserialize)]
struct IndexLine {
    name: Option<String>,
    vers: Option<String>,
    cksum: Option<String>,
}

/// Reads the claims of `file`, the index file of the crate `name` (in lower case); `template` gives the URLs.
pub(super) fn read(
    file: impl Read,
    limit: u64,
    name: &str,
    template: &Template,
    out: &mut dyn ClaimSink,
) -> Result<(), Malformed> {
    let bounded = Bounded::new(file, limit, Nesting::default());
    let lines = serde_json::Deserializer::from_reader(io::BufReader::new(bounded));
    let (mut seen, mut known) = (0, false);
    for line in lines.into_iter::<IndexLine>() {
        let line = line.map_err(|error| {
            if error.is_io() {
                malformed(error.into())
            } else {
                Malformed::Shape { expected: "index file of a crate", found: error.to_string() }
            }
        })?;
        seen += 1;
        if seen > MAX_VERSIONS {
            return Err(Malformed::Limit { limit: MAX_VERSIONS, unit: "versions" });
        }
        known |= line.is_of(name);
        if let Some(claim) = line.claim(name, template) {
            out.claim(claim)?;
        }
    }
    // An empty response is malformed too: it must not replace the claims of the previous one.
    if known {
        Ok(())
    } else {
        Err(Malformed::Shape {
            expected: "index file of a crate",
            found: format!("no line about {name}"),
        })
    }
}

impl IndexLine {
    fn is_of(&self, name: &str) -> bool {
        self.name.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name))
    }

    /// The claim of the line. A URL that would not be recognised as this crate gets none, because no look-up would find
    /// it.
    fn claim(&self, name: &str, template: &Template) -> Option<Claim> {
        let (Some(own), Some(version)) = (&self.name, &self.vers) else {
            return None;
        };
        if !self.is_of(name) || !shape::is_version(version) {
            return None;
        }
        let digest = Digest::from_hex(Algorithm::Sha256, self.cksum.as_deref()?)?;
        let target = template.target(own, version, &digest)?;
        let topic = shape::topic(name);
        let found = Crate::at(&target)?.topic() == topic;
        (found && target.origin().scheme == Scheme::Https).then(|| Claim {
            target,
            topic,
            digests: vec![digest],
            size: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn claims_at(dl: &str, file: &str) -> Result<Vec<Claim>, Malformed> {
        let config = serde_json::json!({ "dl": dl }).to_string();
        let template = Template::read(config.as_bytes()).unwrap();
        let mut out = Vec::new();
        read(file.as_bytes(), 1 << 20, "itoa", &template, &mut out)?;
        Ok(out)
    }

    fn claims(file: &str) -> Result<Vec<Claim>, Malformed> {
        claims_at("https://example.org/v1/crates", file)
    }

    fn line(name: &str, version: &str, more: &str) -> String {
        format!(
            r#"{{"name":"{name}","vers":"{version}","deps":[{{"name":"x","req":"^1"}}],"cksum":"{ONE}","features":{{"a":["b"]}}{more}}}"#
        )
    }

    #[test]
    fn each_line_is_a_version_and_yanked_ones_count() {
        let file = [
            line("itoa", "0.1.0", r#","yanked":true"#),
            line("itoa", "1.0.0-rc.1+b", r#","yanked":false,"v":2,"features2":{},"pubtime":"x""#),
            String::new(),
            line("Itoa", "2.0.0", ""),
        ]
        .join("\n");
        let said: Vec<String> = claims(&file)
            .unwrap()
            .iter()
            .map(|claim| format!("{} {}", claim.target.path(), claim.topic.0))
            .collect();
        assert_eq!(
            said,
            [
                "/v1/crates/itoa/0.1.0/download cargo:itoa",
                "/v1/crates/itoa/1.0.0-rc.1+b/download cargo:itoa",
                "/v1/crates/Itoa/2.0.0/download cargo:itoa",
            ]
        );
    }

    #[test]
    fn a_line_that_cannot_be_kept_promises_nothing() {
        let good = line("itoa", "1.0.0", "");
        for other in [
            line("evil", "1.0.0", ""),
            line("itoa", "latest", ""),
            line("itoa", "1.0.0/../../x", ""),
            line("itoa", "1.0.0?x", ""),
            good.replace(ONE, "1234"),
            good.replace("cksum", "checksum"),
            r#"{"v":3}"#.into(),
        ] {
            let all = claims(&format!("{good}\n{other}\n")).unwrap();
            assert_eq!(all.len(), 1, "{other}");
        }
        // Claims are made only for TLS, and only for a URL that is recognised as a crate.
        assert_eq!(claims(&good).unwrap().len(), 1);
        for dl in [
            "http://example.org/v1/crates",
            "https://example.org/{prefix}",
            "https://example.org/{crate}/{sha256-checksum}",
            "https://example.org/other/1.0.0/download?{crate}",
            "nowhere",
        ] {
            assert_eq!(claims_at(dl, &good).unwrap(), [], "{dl}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let good = line("itoa", "1.0.0", "");
        for file in [
            line("itoa", "1.0.0", r#","name":"itoa""#),
            line("itoa", "1.0.0", r#","\u0063ksum":"00""#),
            line("itoa", "1.0.0", r#","vers":"2.0.0""#),
            line("itoa", "1.0.0", r#","vers":2"#).replacen(r#""vers":"1.0.0","#, "", 1),
            format!("{good}\n{}", good.replace("}}", "}")),
            format!("{good}\n<html>"),
            format!("{good}\n[]"),
            line("evil", "1.0.0", ""),
            "<html>".into(),
            "\n".into(),
            String::new(),
        ] {
            assert!(matches!(claims(&file), Err(Malformed::Shape { .. })), "{file}");
        }
    }

    #[test]
    fn bombs_end_at_a_limit() {
        let long = line("itoa", "1.0.0", "").repeat(10_000);
        let deep = line("itoa", "1.0.0", &format!(r#","x":{}"#, "[".repeat(100_000)));
        for file in [long, deep] {
            assert!(matches!(claims(&file), Err(Malformed::Limit { .. })));
        }
        let template = Template::read(&br#"{"dl":"https://example.org"}"#[..]).unwrap();
        let many = "{}".repeat(100_001);
        let read = read(many.as_bytes(), 1 << 20, "itoa", &template, &mut Vec::new());
        assert!(matches!(read, Err(Malformed::Limit { unit: "versions", .. })));
    }
}
