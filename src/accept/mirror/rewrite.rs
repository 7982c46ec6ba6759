//! Rewrites links in a mirrored document, so that they lead through larder again.
//!
//! A link with a host becomes that address in mirror form. A relative link needs no change, because the mirrored path
//! ends like the original one; only a link that begins with a slash, or climbs above the root, would lose host and
//! scheme.
//!
//! To the client everything mirrored has one origin, larder's. So it would send the credential for one host to the
//! next, which it would not do without larder. Links that leave the origin of a document requested with a credential
//! therefore have a form of their own (`https-anonymous`), for which larder drops credentials.

use std::fmt;

use url::{Position, Url};

use crate::target::{Origin, Scheme, Target, identity};

/// The first segment of mirror form for a scheme.
pub(super) const fn word(scheme: Scheme, anonymous: bool) -> &'static str {
    match (scheme, anonymous) {
        (Scheme::Https, false) => "https",
        (Scheme::Http, false) => "http",
        (Scheme::Https, true) => "https-anonymous",
        (Scheme::Http, true) => "http-anonymous",
    }
}

/// Rewrites the links of one document.
#[derive(Clone)]
pub(super) struct LinkRewriter {
    /// larder's address in the client's terms, such as `http://larder:3142`.
    own: String,
    /// The URL against which relative links resolve.
    base: Url,
    /// The document's origin.
    home: Origin,
    /// The document was requested with a credential.
    has_credential: bool,
    /// The document was requested in the form that drops credentials.
    is_anonymous: bool,
}

/// Omits the document's URL, which may contain a secret.
impl fmt::Debug for LinkRewriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead").field("home", &self.home).finish_non_exhaustive()
    }
}

impl LinkRewriter {
    /// For the document at `at`. `None` if its URL is not valid for browsers.
    pub(super) fn from(
        at: &Target,
        own: &str,
        has_credential: bool,
        is_anonymous: bool,
    ) -> Option<Self> {
        Some(Self {
            own: own.to_owned(),
            base: Url::parse(&at.url()).ok()?,
            home: at.origin().clone(),
            has_credential,
            is_anonymous,
        })
    }

    /// If `takes`, the hosts that the document names may receive its credential.
    pub(super) fn takes_login(&mut self, takes: bool) {
        self.has_credential &= !takes;
    }

    /// Everything of the request on which the rewritten bytes depend.
    pub(super) fn stamp(&self) -> [&[u8]; 3] {
        let marks: &[u8] = if self.is_anonymous {
            b"anonymous"
        } else if self.has_credential {
            b"credential"
        } else {
            b""
        };
        [self.own.as_bytes(), self.home.scheme.as_str().as_bytes(), marks]
    }

    /// The link as a path at larder; `None` if it need not change.
    ///
    /// A link without a scheme (`//host/path`) that cannot lead through larder becomes an absolute URL: otherwise it
    /// would get larder's own scheme, which is http, and its content, perhaps a password, would be sent in the clear.
    pub(super) fn path(&self, link: &str) -> Option<String> {
        let link = trimmed(link);
        let led = self.led(link);
        led.or_else(|| {
            let is_bare = link.starts_with("//");
            is_bare.then(|| format!("{}:{link}", self.base.scheme()))
        })
    }

    fn led(&self, link: &str) -> Option<String> {
        let (origin, rest) = if let Some((scheme, rest)) = self.absolute(link) {
            // The rest is copied literally, because it may not be a valid URL, for example a template with braces.
            let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at_checked(end)?;
            match identity::origin_of(scheme, authority) {
                Some(origin) => (origin, rest.to_owned()),
                // The host is an internationalised name, which the URL parser converts to DNS form.
                None if !authority.is_ascii() => self.resolved(link)?,
                None => return None,
            }
        } else if link.starts_with('/') {
            (origin_of(&self.base)?, link.to_owned())
        } else if climbs(link) {
            self.resolved(link)?
        } else {
            return None;
        };
        // Browsers treat `/\host` like `//host`.
        let (origin, rest) = if is_plain(&rest) { (origin, rest) } else { self.resolved(link)? };
        let word =
            word(origin.scheme, self.is_anonymous || (self.has_credential && origin != self.home));
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Some(format!("/{word}/{}{slash}{rest}", origin.authority()))
    }

    /// The link as an absolute URL at larder; `None` if it need not change.
    pub(super) fn url(&self, link: &str) -> Option<String> {
        let path = self.path(link)?;
        Some(if path.starts_with('/') { format!("{}{path}", self.own) } else { path })
    }

    /// Sets the base URL that a page declares for its links; returns it as a path at larder if it must change.
    pub(super) fn base(&mut self, link: &str) -> Option<String> {
        let path = self.path(link);
        if let Ok(base) = self.base.join(trimmed(link))
            && origin_of(&base).is_some()
        {
            self.base = base;
        }
        path
    }

    /// The scheme of `https://host/path` or `//host/path`, and the text after the slashes.
    fn absolute<'a>(&self, link: &'a str) -> Option<(Scheme, &'a str)> {
        let after = |prefix: &str| {
            let (start, rest) = link.split_at_checked(prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then_some(rest)
        };
        let https = after("https://").map(|rest| (Scheme::Https, rest));
        let http = || after("http://").map(|rest| (Scheme::Http, rest));
        https.or_else(http).or_else(|| Some((scheme_of(&self.base)?, after("//")?)))
    }

    /// The link as browsers resolve it.
    fn resolved(&self, link: &str) -> Option<(Origin, String)> {
        let url = self.base.join(link).ok()?;
        if !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        Some((origin_of(&url)?, url[Position::BeforePath..].to_owned()))
    }
}

/// Removes what browsers remove at both ends.
fn trimmed(link: &str) -> &str {
    link.trim_matches(|c: char| c <= ' ')
}

/// Whether a relative link goes upwards, perhaps above the root, where it would name another host.
fn climbs(link: &str) -> bool {
    let end = link.find(['?', '#']).unwrap_or(link.len());
    let path = link.get(..end).unwrap_or(link);
    // A first segment with a colon is the scheme of an absolute URL.
    let scheme =
        path.find(':').is_some_and(|colon| path.find('/').is_none_or(|slash| colon < slash));
    !scheme && !is_plain(path)
}

/// Whether the path of `rest` contains nothing that a client resolves before it sends the request: in mirror form,
/// `/../` after a host would name another host.
fn is_plain(rest: &str) -> bool {
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let path = rest.get(..end).unwrap_or(rest);
    let dots = |segment: &str| {
        matches!(segment.to_ascii_uppercase().replace("%2E", ".").as_str(), "." | "..")
    };
    !path.bytes().any(|b| b == b'\\' || b < b' ') && !path.split('/').any(dots)
}

fn scheme_of(url: &Url) -> Option<Scheme> {
    match url.scheme() {
        "https" => Some(Scheme::Https),
        "http" => Some(Scheme::Http),
        _ => None,
    }
}

fn origin_of(url: &Url) -> Option<Origin> {
    identity::origin_of(scheme_of(url)?, &url[Position::BeforeHost..Position::AfterPort])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(has_credential: bool, is_anonymous: bool) -> LinkRewriter {
        let at = Target::from_url("https://example.org/simple/widget/").unwrap();
        LinkRewriter::from(&at, "http://larder:3142", has_credential, is_anonymous).unwrap()
    }

    #[track_caller]
    fn expect(rows: &[(&str, Option<&str>)]) {
        for (link, expected) in rows {
            assert_eq!(lead(false, false).path(link).as_deref(), *expected, "{link}");
        }
    }

    #[test]
    fn addresses_lead_through_larder() {
        expect(&[
            (
                "https://files.example.org/a/b.whl#sha256=00",
                Some("/https/files.example.org/a/b.whl#sha256=00"),
            ),
            ("HTTP://Files.Example.org:80/a", Some("/http/files.example.org/a")),
            ("https://files.example.org:8443/a?x=y", Some("/https/files.example.org:8443/a?x=y")),
            ("https://[2001:db8::1]:8443/a", Some("/https/[2001:db8::1]:8443/a")),
            ("https://example.org", Some("/https/example.org/")),
            ("https://example.org?x", Some("/https/example.org/?x")),
            ("//files.example.org/a", Some("/https/files.example.org/a")),
            ("/packages/a.whl", Some("/https/example.org/packages/a.whl")),
            (" /packages/a.whl\n", Some("/https/example.org/packages/a.whl")),
            (
                "https://files.example.org/{crate}/{version}",
                Some("/https/files.example.org/{crate}/{version}"),
            ),
        ]);
        assert_eq!(
            lead(false, false).url("/a").as_deref(),
            Some("http://larder:3142/https/example.org/a")
        );
    }

    #[test]
    fn what_resolves_by_itself_or_leads_elsewhere_stays() {
        expect(&[
            ("a.whl#sha256=00", None),
            ("", None),
            ("#top", None),
            ("?page=2", None),
            ("mailto:x@example.org", None),
            ("//exam%70le.org/a", Some("https://exam%70le.org/a")),
            ("data:text/plain,../x", None),
            ("javascript:alert('../')", None),
            ("ftp://example.org/a", None),
            ("https://user:s3cret@example.org/a", None),
            ("https://exam%70le.org/a", None),
            ("https://2130706433/a", None),
        ]);
    }

    /// The client reaches larder over http; a link that was meant for TLS must not be sent over that.
    #[test]
    fn a_link_without_a_scheme_keeps_its_own() {
        let link = "//user:s3cret@files.example.org/a";
        expect(&[(link, Some("https://user:s3cret@files.example.org/a"))]);
        assert_eq!(lead(false, false).url(link).unwrap(), format!("https:{link}"));
        let plain = Target::from_url("http://example.org/simple/widget/").unwrap();
        let plain = LinkRewriter::from(&plain, "http://larder:3142", false, false).unwrap();
        assert_eq!(plain.path(link).unwrap(), format!("http:{link}"));
    }

    #[test]
    fn names_in_any_alphabet_lead_through_larder() {
        expect(&[
            ("https://b\u{fc}cher.example/a#x", Some("/https/xn--bcher-kva.example/a#x")),
            ("//B\u{dc}CHER.example:8443/a?b", Some("/https/xn--bcher-kva.example:8443/a?b")),
            ("https://user@b\u{fc}cher.example/a", None),
        ]);
    }

    /// In mirror form the host is a directory of the path, from which `..` could lead to another host.
    #[test]
    fn nothing_climbs_to_another_host() {
        expect(&[
            ("../../packages/a.whl#x", Some("/https/example.org/packages/a.whl#x")),
            ("../../../../../packages/a.whl", Some("/https/example.org/packages/a.whl")),
            ("a/%2e%2E/%2e./b", Some("/https/example.org/simple/b")),
            ("/../../evil.example.org/a", Some("/https/example.org/evil.example.org/a")),
            (
                "https://example.org/../evil.example.org/a",
                Some("/https/example.org/evil.example.org/a"),
            ),
            (
                "https://example.org\\..\\evil.example.org/a",
                Some("/https/example.org/evil.example.org/a"),
            ),
            ("/\\files.example.org/a", Some("/https/files.example.org/a")),
            ("\\\\files.example.org/a", Some("/https/files.example.org/a")),
            ("/a\\..\\..\\..\\b", Some("/https/example.org/b")),
        ]);
    }

    #[test]
    fn a_credential_stays_with_its_host() {
        let shown = lead(true, false);
        assert_eq!(
            shown.path("https://files.example.org/a").unwrap(),
            "/https-anonymous/files.example.org/a"
        );
        assert_eq!(shown.path("http://example.org/a").unwrap(), "/http-anonymous/example.org/a");
        assert_eq!(shown.path("https://example.org/a").unwrap(), "/https/example.org/a");
        let dropped = lead(true, true);
        assert_eq!(dropped.path("/a").unwrap(), "/https-anonymous/example.org/a");
        assert_ne!(shown.stamp(), dropped.stamp());
        assert_ne!(shown.stamp(), lead(false, false).stamp());
    }

    #[test]
    fn a_base_moves_what_is_relative_to_it() {
        let mut lead = lead(false, false);
        assert_eq!(
            lead.base("https://files.example.org/d/").unwrap(),
            "/https/files.example.org/d/"
        );
        assert_eq!(lead.path("/a").unwrap(), "/https/files.example.org/a");
        assert_eq!(lead.path("../../a").unwrap(), "/https/files.example.org/a");
        assert_eq!(lead.path("a"), None);
    }
}
