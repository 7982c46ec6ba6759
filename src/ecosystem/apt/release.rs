//! Parses Release files: the indexes of an archive, and their digests.
//!
//! The text is the signed text of `InRelease`, or a `Release` file with a detached signature. Each field is one line; a
//! line that begins with a blank continues the field above. A repeated field is ambiguous, and makes the whole document
//! malformed.
//!
//! Sources: the Debian repository format (wiki), `apt-secure`(8). MD5 and SHA-1 are ignored, as in apt.

use std::collections::{BTreeMap, BTreeSet};

use super::date;
use crate::clock::Time;
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::Malformed;

/// The maximum number of indexes of one suite: four times as many as the largest known suite has.
const MAX_MEMBERS: usize = 65_536;

/// The maximum number of keys in `Signed-By`.
const MAX_SIGNERS: usize = 32;

/// The parsed fields of a Release.
#[derive(Debug, Default)]
pub(super) struct Release {
    pub(super) date: Option<Time>,
    pub(super) valid_until: Option<Time>,
    pub(super) suite: Option<String>,
    pub(super) codename: Option<String>,
    /// The fingerprints of the keys that may sign the next Release, unchanged.
    pub(super) signed_by: Vec<String>,
    /// Whether the archive serves its indexes under by-hash URLs.
    pub(super) by_hash: bool,
    /// The indexes, by their paths below the Release's directory.
    pub(super) members: BTreeMap<String, Member>,
}

/// An index, as its Release describes it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) digests: Vec<Digest>,
    pub(super) size: u64,
}

impl Release {
    /// Reads the text of a Release.
    pub(super) fn read(text: &str) -> Result<Self, Malformed> {
        let mut release = Self::default();
        let mut seen = BTreeSet::new();
        let mut list = None;
        for line in text.trim_end().lines() {
            if line.starts_with([' ', '\t']) {
                if let Some(algorithm) = list {
                    release.member(algorithm, line)?;
                }
                continue;
            }
            // A Release is one paragraph. Some parsers would read text after an empty line, and some would not.
            if line.trim().is_empty() {
                return Err(shape("it contains an empty line".to_owned()));
            }
            let Some((field, value)) = line.split_once(':') else {
                return Err(shape(format!("a line without a colon: {}", start(line))));
            };
            let field = field.to_ascii_lowercase();
            let value = value.trim();
            list = match field.as_str() {
                "sha256" => Some(Algorithm::Sha256),
                "sha512" => Some(Algorithm::Sha512),
                _ => None,
            };
            match field.as_str() {
                "date" => release.date = Some(moment(value)?),
                "valid-until" => release.valid_until = Some(moment(value)?),
                "suite" => release.suite = Some(value.to_owned()),
                "codename" => release.codename = Some(value.to_owned()),
                "signed-by" => release.signed_by = fingerprints(value),
                "acquire-by-hash" => release.by_hash = value.eq_ignore_ascii_case("yes"),
                _ => {}
            }
            if !seen.insert(field) {
                return Err(shape(format!("a field stands twice: {}", start(line))));
            }
        }
        if seen.is_empty() {
            return Err(shape("it is empty".to_owned()));
        }
        Ok(release)
    }

    /// Parses ` <hex> <size> <path>`.
    fn member(&mut self, algorithm: Algorithm, line: &str) -> Result<(), Malformed> {
        let mut words = line.split_whitespace();
        let (Some(hex), Some(size), Some(path), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(shape(format!("not a digest, a size and a path: {}", start(line))));
        };
        let digest = Digest::from_hex(algorithm, hex)
            .ok_or_else(|| shape(format!("not a digest: {}", start(line))))?;
        let size = size.parse().map_err(|_| shape(format!("not a size: {}", start(line))))?;
        if self.members.len() >= MAX_MEMBERS {
            return Err(Malformed::Limit { limit: MAX_MEMBERS as u64, unit: "indexes" });
        }
        let member =
            self.members.entry(path.to_owned()).or_insert(Member { digests: Vec::new(), size });
        let twice =
            member.digests.iter().any(|known| known.algorithm() == algorithm && *known != digest);
        if twice || member.size != size {
            return Err(shape(format!("two descriptions of {}", start(path))));
        }
        if !member.digests.contains(&digest) {
            member.digests.push(digest);
        }
        Ok(())
    }

    /// Whether this is the Release of `suite`, the path after `dists/`. A Release without Suite and Codename matches
    /// every suite of its archive: `apt-ftparchive` makes such files if not configured otherwise, and apt warns but
    /// accepts them. A Release of another archive is detected by its signer.
    pub(super) fn is_of(&self, suite: &str) -> bool {
        let names: Vec<&str> =
            [&self.suite, &self.codename].into_iter().flatten().map(String::as_str).collect();
        // Some archives append a part to the suite: Debian had `buster/updates`.
        let first = suite.split('/').next().unwrap_or(suite);
        names.is_empty() || names.contains(&suite) || names.contains(&first)
    }
}

/// Parses `Signed-By`: separated by commas or blanks. A trailing `!` (exactly this key) is dropped.
fn fingerprints(value: &str) -> Vec<String> {
    value
        .split([',', ' ', '\t'])
        .map(|word| word.trim_end_matches('!').to_ascii_uppercase())
        .filter(|word| word.len() >= 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .take(MAX_SIGNERS)
        .collect()
}

fn moment(text: &str) -> Result<Time, Malformed> {
    date::parse(text).ok_or_else(|| shape(format!("not a date: {}", start(text))))
}

fn shape(found: String) -> Malformed {
    Malformed::Shape { expected: "Release file", found }
}

/// An untrusted line, shortened and without control characters, for messages.
fn start(line: &str) -> String {
    line.chars().take(80).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Origin: x\nSuite: stable\nCodename: gears\nDate: Sat, 21 Nov 2026  0:50:08 UTC\nAcquire-By-Hash: yes\nMD5Sum:\n 00 1 main/Packages\nSHA256:\n 0000000000000000000000000000000000000000000000000000000000000000   12 main/Packages\n";

    #[test]
    fn a_release_names_its_indexes() {
        let release = Release::read(TEXT).unwrap();
        assert!(release.by_hash && release.date.is_some());
        assert_eq!(release.members["main/Packages"].size, 12);
        assert_eq!(release.members["main/Packages"].digests.len(), 1);
        for (suite, is) in
            [("stable", true), ("gears", true), ("gears/updates", true), ("other", false)]
        {
            assert_eq!(release.is_of(suite), is, "{suite}");
        }
        assert!(Release::read(&format!("{TEXT}\n\n")).is_ok());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        for hostile in [
            format!("{TEXT}Suite: other\n"),
            format!("{TEXT}SHA256:\n"),
            format!("{TEXT}\nSuite: other\n"),
            format!(
                "{TEXT} 1111111111111111111111111111111111111111111111111111111111111111 12 main/Packages\n"
            ),
            format!("{TEXT} 00 12 main/Other\n"),
            format!("{TEXT}no colon\n"),
            TEXT.replace("  0:50:08", "soon"),
            String::new(),
        ] {
            assert!(Release::read(&hostile).is_err(), "{hostile}");
        }
    }
}
