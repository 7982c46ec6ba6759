//! Turns a version's `dist` into claims.
//!
//! A claim needs a tarball of this very package, at a URL that larder recognises as a tarball, with a digest that
//! larder knows. Anything else is no error, but promises nothing. A document has no authority over another package's
//! tarballs, so that a publisher of one package cannot block another.
//!
//! Each tarball is claimed at `dist.tarball`, and at `<root>/<name>/-/<file>` of the registry itself: registries write
//! their main host into their documents, and clients replace it by the host that they are configured for. If
//! `integrity` has several digests of its strongest algorithm, any of them may match (see [`super::sri`]), so each is a
//! claim of its own. [`super::signatures`] checks the registry's signatures.

use serde::Deserialize;

use super::shape::Tarball;
use super::signatures::{Judge, SignatureCheck, Signatures};
use super::sri;
use crate::claim::{Claim, ClaimSink};
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::Malformed;
use crate::target::{Root, Scheme, Target};

/// The members of `dist` that larder reads.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Dist {
    integrity: Option<String>,
    /// SHA-1 in hexadecimal, for versions published before `integrity` existed.
    shasum: Option<String>,
    tarball: Option<String>,
    #[serde(default)]
    signatures: Signatures,
}

impl Dist {
    /// The digests of which the tarball must match one. An unreadable `integrity` promises nothing, and `shasum` is
    /// then ignored, as clients ignore it too.
    fn alternatives(&self) -> Vec<Digest> {
        match (&self.integrity, &self.shasum) {
            (Some(integrity), _) => sri::alternatives(integrity),
            (None, Some(hex)) => Digest::from_hex(Algorithm::Sha1, hex).into_iter().collect(),
            (None, None) => Vec::new(),
        }
    }
}

/// Makes claims from the `dist` of each version of one package.
pub(super) struct Dists<'a> {
    /// The target that answered.
    base: &'a Target,
    /// The root of the registry.
    root: &'a Root,
    judge: Judge<'a>,
    out: &'a mut dyn ClaimSink,
}

impl<'a> Dists<'a> {
    /// For a document of the registry at `root` that `base` answered; `judge` checks the signatures of its package.
    pub(super) fn new(
        base: &'a Target,
        root: &'a Root,
        judge: Judge<'a>,
        out: &'a mut dyn ClaimSink,
    ) -> Self {
        Self { base, root, judge, out }
    }

    /// The package's name.
    pub(super) fn package(&self) -> &'a str {
        self.judge.package()
    }

    /// Takes the `dist` of `version`; `None` if the document does not state the version.
    pub(super) fn take(&mut self, version: Option<&str>, dist: &Dist) -> Result<(), Malformed> {
        let tarball = dist.tarball.as_deref();
        let Some(target) = tarball.and_then(|tarball| self.base.join(tarball)) else {
            return Ok(());
        };
        let Some(tarball) = Tarball::at(&target).filter(|found| found.package == self.package())
        else {
            return Ok(());
        };
        let digests = dist.alternatives();
        if digests.is_empty() {
            return Ok(());
        }
        let word = self.word(version.filter(|version| *version == tarball.version), dist)?;
        let path = format!("{}{}/-/{}", self.root.path, self.package(), tarball.file);
        let own = Target::new(self.root.origin.clone(), &path).ok();
        // A different spelling of the same URL is the same file when promises are looked up.
        let own = own.filter(|own| own.match_key() != target.match_key());
        for digest in digests {
            for target in [Some(&target), own.as_ref()].into_iter().flatten() {
                if target.origin().scheme == Scheme::Https {
                    let claim = Claim {
                        target: target.clone(),
                        topic: tarball.topic(),
                        digests: vec![digest],
                        size: None,
                    };
                    match &word {
                        SignatureCheck::Nothing | SignatureCheck::Unknown(_) => {
                            self.out.claim(claim)?;
                        }
                        SignatureCheck::Signed(by) => self.out.signed_claim(claim, by)?,
                        SignatureCheck::Forged(why) => self.out.forged_claim(claim, why)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks the signatures of `version`, to which the tarball belongs.
    fn word(&mut self, version: Option<&str>, dist: &Dist) -> Result<SignatureCheck, Malformed> {
        let (Some(version), Some(integrity)) = (version, &dist.integrity) else {
            return Ok(SignatureCheck::Nothing);
        };
        let word = self.judge.word(version, integrity, &dist.signatures)?;
        if let SignatureCheck::Unknown(key) = &word {
            self.out.unknown_signer(key);
        }
        Ok(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Keyring;

    const SRI: &str = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    const SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";

    fn said(package: &str, dist: &Dist) -> Vec<String> {
        let base = Target::from_url("https://example.org/t/x").unwrap();
        let root = Root::directory_of(&base);
        let mut out = Vec::new();
        let keys = Keyring::new();
        let judge = Judge::new(&keys, package, None);
        Dists::new(&base, &root, judge, &mut out).take(Some("1.0.0"), dist).unwrap();
        out.iter()
            .map(|claim| {
                let digest = claim.digests[0];
                format!("{} {}", claim.target.url(), digest.algorithm().name())
            })
            .collect()
    }

    fn dist(integrity: Option<&str>, shasum: Option<&str>, tarball: &str) -> Dist {
        Dist {
            integrity: integrity.map(str::to_owned),
            shasum: shasum.map(str::to_owned),
            tarball: Some(tarball.to_owned()),
            signatures: Signatures::default(),
        }
    }

    #[test]
    fn a_tarball_is_claimed_where_the_document_says_and_where_clients_ask() {
        for (package, tarball, expected) in [
            (
                "ms",
                "https://files.example.org/ms/-/ms-1.0.0.tgz",
                &[
                    "https://files.example.org/ms/-/ms-1.0.0.tgz sha256",
                    "https://example.org/t/ms/-/ms-1.0.0.tgz sha256",
                ][..],
            ),
            (
                "@s/ms",
                "https://files.example.org/p/@s%2fms/-/ms-1.0.0.tgz?x",
                &[
                    "https://files.example.org/p/@s%2Fms/-/ms-1.0.0.tgz?x sha256",
                    "https://example.org/t/@s/ms/-/ms-1.0.0.tgz sha256",
                ],
            ),
            (
                "ms",
                "/t/ms/-/ms-1.0.0%2bb.tgz",
                &["https://example.org/t/ms/-/ms-1.0.0%2Bb.tgz sha256"],
            ),
            // The registry's own URL is claimed under TLS, even if an old document says http.
            (
                "ms",
                "http://files.example.org/ms/-/ms-1.0.0.tgz",
                &["https://example.org/t/ms/-/ms-1.0.0.tgz sha256"],
            ),
        ] {
            assert_eq!(said(package, &dist(Some(SRI), None, tarball)), expected);
        }
    }

    #[test]
    fn the_weak_sum_counts_only_where_there_is_no_integrity() {
        let at = "/t/ms/-/ms-1.0.0.tgz";
        let sums = |integrity, shasum| said("ms", &dist(integrity, shasum, at));
        let url = format!("https://example.org{at}");
        assert_eq!(sums(None, Some(SHA1)), [format!("{url} sha1")]);
        assert_eq!(sums(Some(SRI), Some(SHA1)), [format!("{url} sha256")]);
        for (integrity, shasum) in [
            (None, None),
            (None, Some("a9")),
            (Some(""), Some(SHA1)),
            (Some("sha3-AAAA"), Some(SHA1)),
        ] {
            assert_eq!(sums(integrity, shasum), Vec::<String>::new());
        }
    }

    #[test]
    fn either_of_two_digests_of_one_algorithm_may_match() {
        let two = format!("{SRI} sha256-{}A=", "A".repeat(42));
        let both = said("ms", &dist(Some(&two), None, "/t/ms/-/ms-1.0.0.tgz"));
        assert_eq!(both.len(), 2);
    }

    /// Otherwise a publisher of one package could block another, or any file of a host.
    #[test]
    fn a_document_speaks_for_its_own_package_alone() {
        for tarball in [
            "https://example.org/t/other/-/other-1.0.0.tgz",
            "https://example.org/t/@s/ms/-/ms-1.0.0.tgz",
            "https://example.org/t/ms/-/other-1.0.0.tgz",
            "https://example.org/any/file.tgz",
            "https://example.org/simple/ms/",
            "https://user:secret@example.org/t/ms/-/ms-1.0.0.tgz",
            "https://[::1/ms/-/ms-1.0.0.tgz",
            "file:///ms/-/ms-1.0.0.tgz",
            "",
        ] {
            assert_eq!(
                said("ms", &dist(Some(SRI), None, tarball)),
                Vec::<String>::new(),
                "{tarball}"
            );
        }
        assert!(said("ms", &Dist::default()).is_empty());
    }
}
