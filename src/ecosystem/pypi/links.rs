//! Turns a link in an index into a claim.
//!
//! A claim needs a link to a distribution file over HTTPS with at least one digest that larder knows. Any other link is
//! no error: the client downloads such files as before, and a missing promise is never a mismatch. A link with
//! contradictory digests promises nothing either, because no bytes could match it.
//!
//! Links resolve against the target that answered, or the page's `<base>`. They may lead anywhere: the index's standing
//! limits its authority, and promises about other origins only confirm (promise P4).

use super::names::{self, METADATA};
use crate::claim::{Claim, ClaimSink, Topic};
use crate::digest::{Algorithm, Digest};
use crate::ecosystem::Malformed;
use crate::target::{Scheme, Target};

/// The maximum number of links of one page. The project pages of twenty years of nightly builds have some ten thousand.
const MAX_LINKS: u64 = 250_000;

/// What an index states about a file besides its URL.
#[derive(Debug, Default)]
pub(super) struct FileClaims {
    /// Digests of the file.
    pub(super) digests: Promised,
    /// Its length in bytes.
    pub(super) size: Option<u64>,
    /// Digests of the metadata file next to it (PEP 658).
    pub(super) metadata: Promised,
}

/// Digests that are promised together.
#[derive(Debug, Default)]
pub(super) struct Promised {
    digests: Vec<Digest>,
    contradictory: bool,
}

impl Promised {
    /// Takes a pair as indexes spell it. Unknown algorithms and invalid digests are ignored.
    pub(super) fn add(&mut self, algorithm: &str, hex: &str) {
        let digest =
            Algorithm::from_name(algorithm).and_then(|algorithm| Digest::from_hex(algorithm, hex));
        let Some(digest) = digest else { return };
        match self.digests.iter().find(|known| known.algorithm() == digest.algorithm()) {
            Some(known) => self.contradictory |= *known != digest,
            None => self.digests.push(digest),
        }
    }

    /// Whether it promises nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.contradictory || self.digests.is_empty()
    }

    /// Parses `sha256=<hex>`, several joined by `&` (PEP 503; `egg=` and `subdirectory=` may be among them).
    pub(super) fn from_pairs(pairs: &str) -> Self {
        let mut promised = Self::default();
        for (name, value) in pairs.split('&').filter_map(|pair| pair.split_once('=')) {
            promised.add(name, value);
        }
        promised
    }
}

/// Turns the links of one index into claims.
pub(super) struct Links<'a> {
    /// The base of relative links; `None` if the page's `<base>` is no valid target.
    base: Option<Target>,
    has_base: bool,
    /// The normalised project that the index is about; `None` for a page of links.
    project: Option<&'a str>,
    out: &'a mut dyn ClaimSink,
    seen: u64,
}

impl<'a> Links<'a> {
    /// For an index about `project` that `base` answered.
    pub(super) fn new(base: Target, project: Option<&'a str>, out: &'a mut dyn ClaimSink) -> Self {
        Self { base: Some(base), has_base: false, project, out, seen: 0 }
    }

    /// Takes `<base href>`; only the first one counts. A `<base>` after a link is refused: HTML says that it does not
    /// affect earlier links, but pip applies it to every link of the page.
    pub(super) fn rebase(&mut self, href: &str) -> Result<(), Malformed> {
        if self.has_base {
            return Ok(());
        }
        if self.seen > 0 {
            return Err(Malformed::Shape {
                expected: "PEP 503 page",
                found: "a <base> after a link, which clients interpret differently".into(),
            });
        }
        self.has_base = true;
        self.base = self.base.as_ref().and_then(|base| base.join(href));
        Ok(())
    }

    /// Takes a link of an HTML page.
    pub(super) fn page_link(
        &mut self,
        href: &str,
        metadata: Option<&str>,
    ) -> Result<(), Malformed> {
        let (href, fragment) = href.split_once('#').unwrap_or((href, ""));
        let said = FileClaims {
            digests: Promised::from_pairs(fragment),
            size: None,
            metadata: Promised::from_pairs(metadata.unwrap_or_default()),
        };
        self.link(href, &said)
    }

    /// Takes a link and what the index states about the file.
    pub(super) fn link(&mut self, href: &str, said: &FileClaims) -> Result<(), Malformed> {
        self.seen += 1;
        if self.seen > MAX_LINKS {
            return Err(Malformed::Limit { limit: MAX_LINKS, unit: "links" });
        }
        if said.digests.is_empty() && said.metadata.is_empty() {
            return Ok(());
        }
        let target = self.base.as_ref().and_then(|base| base.join(href));
        let Some(target) = target.filter(|target| target.origin().scheme == Scheme::Https) else {
            return Ok(());
        };
        let Some(project) = names::project_of(&target.file_name(), self.project) else {
            return Ok(());
        };
        let topic = Topic::new(super::NAME, &project);
        if let Some(beside) = metadata_of(&target) {
            self.claim(beside, topic.clone(), &said.metadata, None)?;
        }
        self.claim(target, topic, &said.digests, said.size)
    }

    fn claim(
        &mut self,
        target: Target,
        topic: Topic,
        promised: &Promised,
        size: Option<u64>,
    ) -> Result<(), Malformed> {
        if promised.is_empty() {
            return Ok(());
        }
        self.out.claim(Claim { target, topic, digests: promised.digests.clone(), size })?;
        Ok(())
    }
}

/// The metadata file of `file`. PEP 658 appends to the URL and does not define this for a URL with a query, so such a
/// URL has none.
fn metadata_of(file: &Target) -> Option<Target> {
    if file.query().is_some() {
        return None;
    }
    Target::new(file.origin().clone(), &format!("{}{METADATA}", file.path())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

    fn claims(links: &[&str]) -> Vec<Claim> {
        let mut out = Vec::new();
        let base = Target::from_url("https://example.org/t/simple/widget/").unwrap();
        let mut taker = Links::new(base, Some("widget"), &mut out);
        for link in links {
            taker.page_link(link, None).unwrap();
        }
        out
    }

    fn one(link: &str) -> Option<String> {
        claims(&[link]).first().map(|claim| claim.target.url())
    }

    #[test]
    fn links_resolve_against_who_answered() {
        let file = "widget-1.0-py3-none-any.whl";
        for (href, expected) in [
            ("", "https://example.org/t/simple/widget/"),
            ("../../packages/packages/58/", "https://example.org/t/packages/packages/58/"),
            ("/p/", "https://example.org/p/"),
            ("//files.example.org/", "https://files.example.org/"),
            ("https://files.example.org:443/a/", "https://files.example.org/a/"),
            ("../../../../../", "https://example.org/"),
        ] {
            assert_eq!(
                one(&format!("{href}{file}#sha256={ONE}")),
                Some(format!("{expected}{file}")),
                "{href}"
            );
        }
    }

    #[test]
    fn hostile_links_make_no_claim() {
        for href in [
            "http://example.org/widget-1.0-py3-none-any.whl",
            "ftp://example.org/widget-1.0-py3-none-any.whl",
            "file:///widget-1.0-py3-none-any.whl",
            "data:application/zip,widget-1.0-py3-none-any.whl",
            "javascript:widget-1.0-py3-none-any.whl",
            "https://user:secret@example.org/widget-1.0-py3-none-any.whl",
            "https://user@example.org/widget-1.0-py3-none-any.whl",
            "https://[::1/widget-1.0-py3-none-any.whl",
            "widget-1.0-py3-none-any.whl%00",
            "widget-1.0-py3-none-any.whl/",
            "evil.exe",
        ] {
            // The control: the same file at an ordinary URL is claimed.
            assert!(one(&format!("/widget-1.0-py3-none-any.whl#sha256={ONE}")).is_some());
            assert_eq!(one(&format!("{href}#sha256={ONE}")), None, "{href}");
        }
    }

    #[test]
    fn a_fragment_promises_every_digest_that_larder_knows() {
        let all = claims(&[&format!(
            "widget-1.0.zip#egg=widget-1.0&sha256={ONE}&md5=000102030405060708090a0b0c0d0e0f&sha224=00&sha256={ONE}"
        )]);
        let digests: Vec<String> = all[0].digests.iter().map(ToString::to_string).collect();
        assert_eq!(
            digests,
            [format!("sha256:{ONE}"), "md5:000102030405060708090a0b0c0d0e0f".into()]
        );
        assert_eq!(all[0].topic, Topic::new("pypi", "widget"));
    }

    /// A digest that nothing can match would block the file for every client.
    #[test]
    fn what_cannot_be_kept_is_not_promised() {
        for fragment in [
            "",
            "#",
            "#sha256",
            "#sha256=",
            "#sha256=1234",
            &format!("#sha256={ONE}00"),
            &format!("#sha512={ONE}"),
            &format!("#sha3_256={ONE}"),
            &format!("#sha256={ONE}&sha256={TWO}"),
            "#sha256=zz11111111111111111111111111111111111111111111111111111111111111",
        ] {
            assert_eq!(one(&format!("widget-1.0.zip{fragment}")), None, "{fragment}");
        }
    }

    /// Verification accepts bytes that match either claim, so such an index blocks neither.
    #[test]
    fn two_links_that_disagree_are_two_claims() {
        let both = claims(&[
            &format!("widget-1.0.zip#sha256={ONE}"),
            &format!("widget-1.0.zip#sha256={TWO}"),
        ]);
        assert_eq!(both.len(), 2);
        assert_ne!(both[0].digests, both[1].digests);
    }

    #[test]
    fn the_metadata_file_has_a_claim_of_its_own() {
        let mut out = Vec::new();
        let base = Target::from_url("https://example.org/simple/widget/").unwrap();
        let mut links = Links::new(base, Some("widget"), &mut out);
        let value = format!("sha256={TWO}");
        links.page_link(&format!("w/widget-1.0.zip#sha256={ONE}"), Some(&value)).unwrap();
        links.page_link("widget-2.0.zip#none=0", Some(&value)).unwrap();
        links.page_link("widget-3.0.zip", Some("true")).unwrap();
        links.page_link("widget-4.0.zip?q", Some(&value)).unwrap();
        let said: Vec<(String, String)> = out
            .iter()
            .map(|claim| (claim.target.path().to_owned(), claim.digests[0].to_hex()))
            .collect();
        let dir = "/simple/widget/";
        assert_eq!(
            said,
            [
                (format!("{dir}w/widget-1.0.zip.metadata"), TWO.to_owned()),
                (format!("{dir}w/widget-1.0.zip"), ONE.to_owned()),
                (format!("{dir}widget-2.0.zip.metadata"), TWO.to_owned()),
            ]
        );
    }

    #[test]
    fn only_the_first_base_counts_and_none_may_follow_a_link() {
        let mut out = Vec::new();
        let base = Target::from_url("https://example.org/simple/widget/").unwrap();
        let mut links = Links::new(base.clone(), None, &mut out);
        let link = format!("widget-1.0.zip#sha256={ONE}");
        links.rebase("https://files.example.org/a/b").unwrap();
        links.rebase("/ignored/").unwrap();
        links.page_link(&link, None).unwrap();
        links.rebase("/ignored/").unwrap();
        assert_eq!(out[0].target.url(), "https://files.example.org/a/widget-1.0.zip");

        let mut links = Links::new(base.clone(), None, &mut out);
        links.page_link(&link, None).unwrap();
        assert!(links.rebase("/b/").is_err());

        // A `<base>` that is no valid target makes all links invalid.
        for href in
            ["data:text/html,", "javascript:0", "http://example.org/", "https://u:p@example.org/"]
        {
            let mut out = Vec::new();
            let mut links = Links::new(base.clone(), None, &mut out);
            links.rebase(href).unwrap();
            links.page_link(&link, None).unwrap();
            assert!(out.is_empty(), "{href}");
        }
    }

    #[test]
    fn a_billion_links_are_too_many() {
        let mut out = Vec::new();
        let base = Target::from_url("https://example.org/simple/widget/").unwrap();
        let mut links = Links::new(base, None, &mut out);
        let ended = (0..1_000_000_000).find_map(|_| links.page_link("x", None).err());
        assert!(matches!(ended, Some(Malformed::Limit { .. })));
    }
}
