//! Targets: the identity of a request.
//!
//! A [`Target`] is the only identity that larder knows: an [`Origin`], the raw path, the query, and the variant that
//! the ecosystem declares. The store's [`Key`] is derived from it. If two equal targets are kept apart, that costs a
//! miss. If two different ones are merged, that is cache poisoning. So nothing is decoded, merged or sorted here (RFC
//! 3986 §6.2.2 equates more URLs than servers do). Only the hexadecimal digits of percent-escapes become upper case,
//! and a raw `/./` becomes `/`. Ambiguous paths are refused.
//!
//! [`identity`] determines the origin of a request (promise P1).

mod credential;
pub mod identity;
mod key;
mod origin;
mod path;
pub mod raw;
mod root;
pub mod secret;
pub mod shown;
mod url;

use std::fmt;
use std::sync::Arc;

pub use self::credential::{Credential, is_field, is_shown_once, join_cookies};
pub use self::key::{Key, MatchKey, Partition};
pub use self::origin::{Host, Origin, Scheme};
pub use self::path::{BadPath, decode_once};
pub use self::root::Root;
use self::url::Url;
use crate::digest::key_hash;

/// Maximum length of path and query in bytes. Registries' signed URLs stay below 4 KiB.
pub const MAX_URL: usize = 16 * 1024;

/// The identity of a request.
///
/// `Display` and `Debug` show the URL without actual or possible secrets; [`Target::url`] is the whole URL.
///
/// A request needs its target's URL and keys a dozen times, so clones share the URL and its cached hashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    url: Arc<Url>,
    /// What else the ecosystem says the answer depends on, for example the class of `Accept`.
    variant: Box<str>,
}

impl Target {
    /// A target from an origin, and the path and query as they were received.
    pub fn new(origin: Origin, path_and_query: &str) -> Result<Self, BadPath> {
        if raw::length(path_and_query) > MAX_URL {
            return Err(BadPath::TooLong);
        }
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        if !path.starts_with('/') {
            return Err(BadPath::NotAbsolute);
        }
        let path = path::without_single_dots(&path::canonical(path)?);
        if path::has_dot_segment(&path) {
            return Err(BadPath::DotSegment);
        }
        let query = query.map(path::canonical_query).transpose()?;
        Ok(Self { url: Arc::new(Url::new(origin, &path, query.as_deref())), variant: "".into() })
    }

    /// A target from an absolute `http` or `https` URL. A fragment is dropped; user information is refused. The path is
    /// taken as it is: resolve relative links first, with [`Target::join`].
    pub fn from_url(url: &str) -> Option<Self> {
        let (scheme, rest) = match url.split_once("://")? {
            (scheme, rest) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end)?;
        let origin = identity::origin_of(scheme, authority)?;
        let tail = if tail.starts_with('/') { tail.to_owned() } else { format!("/{tail}") };
        Self::new(origin, &tail).ok()
    }

    /// Resolves a link from this target's document (RFC 3986 §5, by the rules that browsers use). `None` for schemes
    /// other than http and https, and for invalid targets.
    pub fn join(&self, reference: &str) -> Option<Self> {
        let base = if self.is_odd() {
            // A client that resolves a link against this URL keeps the URL's own odd bytes.
            ::url::Url::parse(&String::from_utf8_lossy(&raw::unmasked(&self.url()))).ok()?
        } else {
            ::url::Url::parse(&self.url()).ok()?
        };
        let mut joined = base.join(reference).ok()?;
        if !joined.username().is_empty() || joined.password().is_some() {
            return None;
        }
        joined.set_fragment(None);
        Self::from_url(joined.as_str())
    }

    /// The target of a redirect in an answer of this target with the `Location` field `location`. User information is
    /// dropped, as clients do, because it does not change the place.
    pub fn redirected(&self, location: &str) -> Option<Self> {
        let base = ::url::Url::parse(&self.url()).ok()?;
        let mut joined = base.join(location).ok()?;
        // Fails only for URLs without a host, which a target never has.
        joined.set_username("").ok()?;
        joined.set_password(None).ok()?;
        joined.set_fragment(None);
        Self::from_url(joined.as_str())
    }

    /// The same target in a variant that the ecosystem declares.
    #[must_use]
    pub fn with_variant(mut self, variant: &str) -> Self {
        self.variant = variant.into();
        self
    }

    /// The origin.
    pub fn origin(&self) -> &Origin {
        &self.url.origin
    }

    /// Whether it has bytes that are not allowed in URLs. They are masked here ([`raw`]), and sent as they were
    /// received.
    pub fn is_odd(&self) -> bool {
        raw::is_masked(self.path_and_query())
    }

    /// The raw path, in which bytes not allowed in URLs are masked ([`raw`]).
    pub fn path(&self) -> &str {
        self.url.path()
    }

    /// The raw query, without the question mark.
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// The variant; empty when the answer depends on the URL alone.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// The path's last segment, percent-decoded once; the raw segment if decoding gives no valid text.
    pub fn file_name(&self) -> String {
        let raw = self.path().rsplit('/').next().unwrap_or_default();
        decode_once(raw).unwrap_or_else(|| raw.to_owned())
    }

    /// Path and query, as in a request line.
    pub fn path_and_query(&self) -> &str {
        self.url.tail()
    }

    /// The whole URL, including secrets: for requests, never for texts.
    pub fn url(&self) -> String {
        self.url.text.to_string()
    }

    /// The store's key for this target in `partition`.
    pub fn key(&self, partition: Partition) -> Key {
        let hash = || {
            Key(key_hash([
                self.url.head().as_bytes(),
                self.url.tail().as_bytes(),
                self.variant.as_bytes(),
                partition.as_bytes(),
            ]))
        };
        if partition == Partition::Public && self.variant.is_empty() {
            return *self.url.plain_key.get_or_init(hash);
        }
        hash()
    }

    /// The key under which the store remembers that bytes of this file were delivered unverified, or that it was
    /// refused. It ignores the variant and the URL's spelling, because a client that resumes sees one file. It
    /// withholds bytes, and never selects any. All keys of one origin begin with the same bytes ([`Key::origin`]).
    pub fn file_key(&self) -> Key {
        let (origin, file) = (key_hash([self.url.head().as_bytes()]), self.match_key().0);
        let mut key = key_hash([&file[..]]);
        for (to, from) in key.iter_mut().zip(origin).take(Key::ORIGIN) {
            *to = from;
        }
        Key(key)
    }

    /// The key under which claims about this target are looked up. Looser than the store's key, because indexes and
    /// clients spell the same file differently (`+` and `%2b`). It finds expectations, and never selects bytes.
    pub fn match_key(&self) -> MatchKey {
        *self.url.match_key.get_or_init(|| self.url.to_match_key())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = secret::Shown { path: self.path(), query: self.query() };
        write!(f, "{}{shown}", self.url.head())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, " ({:?})", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Result<Target, BadPath> {
        Target::new(identity::origin_of(Scheme::Https, "example.org").unwrap(), path)
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (path, expected) in [
            ("/a/../b", BadPath::DotSegment),
            ("/a/%2e%2E/b", BadPath::DotSegment),
            ("/a/.%2e", BadPath::DotSegment),
            ("/a/.", BadPath::DotSegment),
            ("/%2e/a", BadPath::DotSegment),
            ("/./../a", BadPath::DotSegment),
            ("/././..", BadPath::DotSegment),
            ("/a\\..\\b", BadPath::DotSegment),
            ("/a#b", BadPath::Byte),
            ("/a b", BadPath::Byte),
            ("/a?b#c", BadPath::Byte),
            ("/a?b c", BadPath::Byte),
            ("/a\u{10ff0a}b", BadPath::Byte),
            ("/a?\u{10ff20}b", BadPath::Byte),
            ("/a%00", BadPath::Control),
            ("/a%0d%0a", BadPath::Control),
            ("a", BadPath::NotAbsolute),
        ] {
            assert_eq!(target(path), Err(expected), "{path}");
        }
        assert_eq!(target(&format!("/{}", "a".repeat(MAX_URL))), Err(BadPath::TooLong));
    }

    /// Merging two different targets would be cache poisoning.
    #[test]
    fn keys_keep_apart_what_servers_may_keep_apart() {
        let paths = [
            "/a/b",
            "/a//b",
            "/a%2Fb",
            "/A/b",
            "/a/b?",
            "/a/b?x=1&y=2",
            "/a/b?y=2&x=1",
            "/a/b;v=1",
            "/a+b",
            "/a%2Bb",
            // Bytes that are not allowed in URLs are sent as they were received, so this is another request than the
            // escaped one.
            "/a\\b",
            "/a%5Cb",
            "/\u{e9}",
            "/%C3%A9",
            "/e\u{301}",
            "/\u{10ffe9}",
            "/a<b",
            "/a%3Cb",
            "/a%",
            "/a%25",
            "/a%2",
            "/a%zz",
            "/a%ZZ",
            "/a?\"",
            "/a?%22",
            "/a?\u{e9}",
            "/a?%C3%A9",
        ];
        for (i, one) in paths.iter().enumerate() {
            for two in paths.iter().skip(i + 1) {
                let (one, two) = (target(one).unwrap(), target(two).unwrap());
                assert_ne!(one.key(Partition::Public), two.key(Partition::Public), "{one} {two}");
            }
        }
        let one = target("/a").unwrap();
        assert_ne!(one.key(Partition::Public), one.key(Partition::Private([0; 16])));
        assert_ne!(one.key(Partition::Public), one.with_variant("json").key(Partition::Public));
        assert_eq!(target("/a%2fb"), target("/a%2Fb"));
    }

    /// apt requests files of a flat archive in this form (`deb URI ./`).
    #[test]
    fn a_segment_of_one_dot_means_nothing() {
        for (path, same) in [("/a/./b", "/a/b"), ("/././a/./b/", "/a/b/"), ("/a/.//b", "/a//b")] {
            assert_eq!(target(path), target(same), "{path}");
        }
        assert_eq!(target("/a/.b./c.").unwrap().path(), "/a/.b./c.");
    }

    #[test]
    fn claims_find_a_file_in_either_spelling() {
        let key = |path| target(path).unwrap().match_key();
        assert_eq!(key("/pool/a_1%2bdeb12u1.deb"), key("/pool/a_1+deb12u1.deb"));
        assert_ne!(key("/pool%2fa"), key("/pool/a"));
        assert_ne!(key("/a%2525"), key("/a%25"));
        assert_eq!(key("/caf\u{e9}.deb"), key("/caf%C3%A9.deb"));
    }

    /// Issue 17 row 13: clients of npm registries write scope and name in either way.
    #[test]
    fn claims_find_a_scoped_name_joined_or_parted() {
        let key = |path| target(path).unwrap().match_key();
        for joined in ["/r/@s%2fms/-/ms-1.0.0.tgz", "/r/%40s%2Fms/-/ms-1.0.0.tgz"] {
            assert_eq!(key(joined), key("/r/@s/ms/-/ms-1.0.0.tgz"), "{joined}");
        }
        for other in [
            "/r/s%2Fms/-/ms-1.0.0.tgz",
            "/r/@s%2F%2Fms/-/ms-1.0.0.tgz",
            "/r/@s%252Fms/-/ms-1.0.0.tgz",
        ] {
            assert_ne!(key(other), key("/r/@s/ms/-/ms-1.0.0.tgz"), "{other}");
        }
        // Requests stay as they were sent.
        let key = |path| target(path).unwrap().key(Partition::Public);
        assert_ne!(key("/@s%2Fms/-/ms-1.0.0.tgz"), key("/@s/ms/-/ms-1.0.0.tgz"));
    }

    #[test]
    fn odd_bytes_are_shown_on_one_line_and_resolve_links_as_clients_do() {
        let at = target("/caf\u{e9}/\u{10ffff}\u{202e}/<a>?\u{85}=1&x").unwrap();
        assert_eq!(at.to_string(), "https://example.org/caf\u{e9}/\\xff\\u{202e}/<a>?\\u{85}=…&…");
        let index = target("/caf\u{e9}/index").unwrap();
        assert_eq!(index.join("a.whl").unwrap().path(), "/caf%C3%A9/a.whl");
        assert_eq!(raw::unmasked(index.path()), "/caf\u{e9}/index".as_bytes());
    }

    #[test]
    fn texts_show_no_secret() {
        let at = target("/t/s3cret/main/x.conda?X-Amz-Signature=s3cret&flag").unwrap();
        let shown = at.to_string();
        assert_eq!(shown, "https://example.org/t/…/main/x.conda?X-Amz-Signature=…&…");
        let root = Root::directory_of(&at);
        for text in [format!("{at:?}"), root.to_string(), format!("{root:?}")] {
            assert!(text.contains("/t/…/main/") && !text.contains("s3cret"), "{text}");
        }
        // The control: the request itself contains it.
        assert_eq!(at.url().matches("s3cret").count(), 2);
    }

    #[test]
    fn links_resolve_against_the_document() {
        let index = target("/simple/idna/").unwrap();
        assert_eq!(
            index.join("../../packages/a.whl#sha256=00").unwrap().to_string(),
            "https://example.org/packages/a.whl"
        );
        assert_eq!(
            index.join("//files.example.org/a").unwrap().to_string(),
            "https://files.example.org/a"
        );
        assert_eq!(index.join("mailto:x@example.org"), None);
        assert_eq!(index.join("https://user:pw@example.org/a"), None);
    }

    #[test]
    fn a_redirect_leads_where_clients_go() {
        let at = target("/a/b").unwrap();
        for (location, to) in [
            ("https://user:pw@files.example.org/a", Some("https://files.example.org/a")),
            ("//user@files.example.org/a?b#c", Some("https://files.example.org/a?b")),
            ("c", Some("https://example.org/a/c")),
            ("/é", Some("https://example.org/%C3%A9")),
            ("ftp://example.org/a", None),
            ("data:text/plain,a", None),
            ("mailto:x@example.org", None),
            ("https://", None),
        ] {
            assert_eq!(at.redirected(location).map(|to| to.url()).as_deref(), to, "{location}");
        }
    }
}
