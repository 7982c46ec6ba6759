//! `Packages.diff/Index`: the patches from older versions of an index to the current one.
//!
//! The `SHA256-Download` (or `SHA512-Download`) list names the compressed files that apt downloads; the other lists
//! describe the uncompressed patches and results. A patch never changes under its name, so a claim is enough to store
//! it.
//!
//! Source: the Debian repository format (wiki), "indices acquisition via pdiffs"; apt's `acquire-item.cc`.

use std::collections::{BTreeMap, BTreeSet};

use super::shape;
use crate::claim::{Claim, ClaimSink};
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::Malformed;
use crate::target::{Root, Target};

/// The maximum number of patches for one index. Debian keeps 56.
const MAX_PATCHES: usize = 4096;

/// Whether this is the list of an index's patches.
pub(super) fn is_list(at: &Target) -> bool {
    let directory = at.path().rsplit('/').nth(1).unwrap_or_default();
    at.file_name() == "Index" && directory.ends_with(".diff")
}

/// Reads the claims of a list of patches.
pub(super) fn read(at: &Target, text: &str, out: &mut dyn ClaimSink) -> Result<(), Malformed> {
    let directory = Root::directory_of(at);
    let topic = shape::topic(at);
    for (name, (digests, size)) in listed(text)? {
        if let Some(target) = super::stanzas::under(&directory, name) {
            out.claim(Claim { target, topic: topic.clone(), digests, size: Some(size) })?;
        }
    }
    Ok(())
}

type Patches<'a> = BTreeMap<&'a str, (Vec<Digest>, u64)>;

fn listed(text: &str) -> Result<Patches<'_>, Malformed> {
    let mut patches = Patches::new();
    let mut seen = BTreeSet::new();
    let mut list = None;
    for line in text.trim_end().lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(algorithm) = list {
                patch(&mut patches, algorithm, line)?;
            }
            continue;
        }
        let field = line.split_once(':').map(|(field, _)| field.to_ascii_lowercase());
        let field = field.ok_or_else(|| shape_of("a line without a colon"))?;
        list = match field.as_str() {
            "sha256-download" => Some(Algorithm::Sha256),
            "sha512-download" => Some(Algorithm::Sha512),
            _ => None,
        };
        if !seen.insert(field) {
            return Err(shape_of("a field stands twice"));
        }
    }
    Ok(patches)
}

/// Parses ` <hex> <size> <name>`.
fn patch<'a>(
    patches: &mut Patches<'a>,
    algorithm: Algorithm,
    line: &'a str,
) -> Result<(), Malformed> {
    let mut words = line.split_whitespace();
    let (Some(hex), Some(size), Some(name), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(shape_of("not a digest, a size and a name"));
    };
    let digest = Digest::from_hex(algorithm, hex).ok_or_else(|| shape_of("not a digest"))?;
    let size = size.parse().map_err(|_| shape_of("not a size"))?;
    if name.contains('/') {
        return Err(shape_of("a name that leads elsewhere"));
    }
    if patches.len() >= MAX_PATCHES {
        return Err(Malformed::Limit { limit: MAX_PATCHES as u64, unit: "patches" });
    }
    let (digests, known) = patches.entry(name).or_insert((Vec::new(), size));
    if *known != size || digests.iter().any(|known| known.algorithm() == algorithm) {
        return Err(shape_of("two descriptions of one patch"));
    }
    digests.push(digest);
    Ok(())
}

fn shape_of(found: &str) -> Malformed {
    Malformed::Shape { expected: "list of patches", found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn claims(text: &str) -> Result<Vec<String>, Malformed> {
        let at = "https://example.org/d/dists/s/main/binary-amd64/Packages.diff/Index";
        let at = Target::from_url(at).unwrap();
        assert!(is_list(&at));
        let mut out: Vec<Claim> = Vec::new();
        read(&at, text, &mut out)?;
        Ok(out.iter().map(|claim| format!("{} {:?}", claim.target.path(), claim.size)).collect())
    }

    #[test]
    fn what_is_fetched_is_claimed_and_nothing_else() {
        let text = format!(
            "SHA256-Current: {HEX} 9\nSHA256-History:\n {HEX} 8 T-1-F-0\nSHA256-Patches:\n {HEX} 7 T-1-F-0\n\
             SHA256-Download:\n {HEX} 6 T-1-F-0.gz\nX-Patch-Precedence: merged\n"
        );
        assert_eq!(
            claims(&text).unwrap(),
            ["/d/dists/s/main/binary-amd64/Packages.diff/T-1-F-0.gz Some(6)"]
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let list = |more: &str| format!("SHA256-Download:\n {HEX} 6 a.gz\n{more}");
        assert_eq!(claims(&list("")).unwrap().len(), 1);
        for more in [
            format!(" {HEX} 6 a.gz\n"),
            format!("SHA256-Download:\n {HEX} 6 b.gz\n"),
            format!(" {HEX} 6 ../b.gz\n"),
            " 00 6 b.gz\n".to_owned(),
            "no colon\n".to_owned(),
        ] {
            assert!(claims(&list(&more)).is_err(), "{more}");
        }
    }
}
