//! Parses Subresource Integrity, as in `dist.integrity`: `sha512-<base64> …`.
//!
//! The value is a list, separated by white space, of `<algorithm>-<base64>[?<options>]`. Only the strongest known
//! algorithm counts, and a body that matches any digest of that algorithm is valid (W3C Subresource Integrity §3.3.4).
//! Clients compare digests as text, so only the canonical spelling can match.

use crate::digest::{Algorithm, Digest};
use crate::ecosystem::base64;

/// The algorithms that `integrity` may use, strongest first. SHA-1 is npm's own addition, for versions published before
/// `integrity` existed.
const KNOWN: [(&str, Algorithm); 4] = [
    ("sha512", Algorithm::Sha512),
    ("sha384", Algorithm::Sha384),
    ("sha256", Algorithm::Sha256),
    ("sha1", Algorithm::Sha1),
];

/// The maximum number of alternatives taken from one list. Real lists have one or two.
const MAX_ALTERNATIVES: usize = 8;

/// The digests of which a body must match one; empty if there is none that larder knows.
pub(super) fn alternatives(integrity: &str) -> Vec<Digest> {
    let mut strongest: Vec<Digest> = Vec::new();
    for digest in integrity.split_ascii_whitespace().filter_map(digest) {
        // The position in [`KNOWN`], which contains the algorithm of every digest here.
        let rank = |digest: &Digest| {
            KNOWN.iter().position(|(_, algorithm)| *algorithm == digest.algorithm())
        };
        let best = strongest.first().and_then(rank);
        if best.is_none_or(|best| rank(&digest).is_some_and(|rank| rank < best)) {
            strongest = vec![digest];
        } else if best == rank(&digest)
            && !strongest.contains(&digest)
            && strongest.len() < MAX_ALTERNATIVES
        {
            strongest.push(digest);
        }
    }
    strongest
}

/// Parses one `<algorithm>-<base64>[?<options>]`.
fn digest(token: &str) -> Option<Digest> {
    let (name, rest) = token.split_once('-')?;
    let text = rest.split('?').next().unwrap_or(rest);
    let (_, algorithm) = KNOWN.iter().find(|(known, _)| *known == name)?;
    Digest::new(*algorithm, &base64::decode(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc" (FIPS 180-4) and its SHA-1, in base64.
    const SHA256: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    const SHA1: &str = "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=";

    fn said(integrity: &str) -> Vec<String> {
        alternatives(integrity).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn known_answers() {
        assert_eq!(
            said(&format!("sha256-{SHA256}")),
            ["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
        );
        assert_eq!(
            said(&format!(" sha1-{SHA1}?any=option\n")),
            ["sha1:a9993e364706816aba3e25717850c26c9cd0d89d"]
        );
    }

    #[test]
    fn only_the_strongest_algorithm_counts_and_each_of_its_digests() {
        let other = format!("{}A=", "A".repeat(42));
        let strong = format!("{}A==", "A".repeat(85));
        assert_eq!(
            said(&format!("sha256-{SHA256} sha1-{SHA1} sha256-{other} sha256-{SHA256}")).len(),
            2
        );
        let all = said(&format!("sha1-{SHA1} sha256-{SHA256} sha512-{strong}"));
        assert_eq!(all, [format!("sha512:{}", "0".repeat(128))]);
        let many: Vec<String> = (b'A'..=b'Z')
            .map(|digit| format!("sha256-{}{}A=", "A".repeat(41), char::from(digit)))
            .collect();
        let many = many.join(" ");
        assert_eq!(said(&many).len(), MAX_ALTERNATIVES);
    }

    /// A digest that nothing can match would block the file for every client.
    #[test]
    fn what_no_client_would_match_promises_nothing() {
        for integrity in [
            "",
            "sha256",
            "sha256-",
            &format!("SHA256-{SHA256}"),
            &format!("sha3-{SHA256}"),
            &format!("md5-{SHA256}"),
            &format!("sha512-{SHA256}"),
            &format!("sha256-{}", SHA256.trim_end_matches('=')),
            &format!("sha256-{SHA256}="),
            &format!("sha256-{}", SHA256.replace("Fa0=", "Fa1=")),
            &format!("sha256-{}", SHA256.replace('/', "_")),
            &format!("sha256-{}", SHA256.replace('u', "=")),
            "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha256-é",
        ] {
            assert_eq!(said(integrity), Vec::<String>::new(), "{integrity}");
        }
    }
}
