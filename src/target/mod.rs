//! Who a request is for.
//!
//! A [`Target`] is the only identity larder knows: an [`Origin`], the raw path, the query, and the variant that the
//! ecosystem declares. Its [`Key`] is what the store is keyed by. A false split of two targets costs a miss; a false
//! merge would be a poisoning, so nothing is decoded, merged or sorted here (RFC 3986 §6.2.2 equates more than servers
//! do): only the hexadecimal digits of percent-escapes are put in upper case and a raw `/./` is taken for `/`, and what could
//! be read in two ways is refused.
//!
//! [`identity`] decides the origin of a request (promise P1).

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

/// The longest path and query that larder takes, in bytes. Registries' signed URLs stay below 4 KiB.
pub const MAX_URL: usize = 16 * 1024;

/// Who a request is for.
///
/// `Display` and `Debug` show the URL without what is or may be a secret; [`Target::url`] is the whole.
///
/// A request asks for its target's spelling and keys a dozen times: clones share the URL, and what was hashed of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    url: Arc<Url>,
    /// What the ecosystem says that the answer depends on besides the URL: the class of `Accept`, say.
    variant: Box<str>,
}

impl Target {
    /// A target from an origin and the path and query as they were received.
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

    /// A target from an absolute `http` or `https` URL, which may have a fragment (dropped) but no user information.
    /// The path is taken as it stands: resolve relative links first, with [`Target::join`].
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

    /// Resolves a link that stands in this target's document (RFC 3986 §5, by the rules browsers use). `None` for
    /// anything but http and https, and for what is no target.
    pub fn join(&self, reference: &str) -> Option<Self> {
        let base = if self.is_odd() {
            // As whoever resolves a link there writes its own odd bytes.
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

    /// Where a `Location` of this target's answer leads. As clients do it: what stands before the host's `@` names no other
    /// place, and is dropped.
    pub fn redirected(&self, location: &str) -> Option<Self> {
        let base = ::url::Url::parse(&self.url()).ok()?;
        let mut joined = base.join(location).ok()?;
        // Refused for URLs that have no host, of which no target is made.
        joined.set_username("").ok()?;
        joined.set_password(None).ok()?;
        joined.set_fragment(None);
        Self::from_url(joined.as_str())
    }

    /// The same target, in the variant that an ecosystem declares.
    #[must_use]
    pub fn with_variant(mut self, variant: &str) -> Self {
        self.variant = variant.into();
        self
    }

    /// The origin.
    pub fn origin(&self) -> &Origin {
        &self.url.origin
    }

    /// Whether it has bytes that belong in no URL: they are masked here ([`raw`]), and sent as they came.
    pub fn is_odd(&self) -> bool {
        raw::is_masked(self.path_and_query())
    }

    /// The raw path; what belongs in no URL is masked ([`raw`]).
    pub fn path(&self) -> &str {
        self.url.path()
    }

    /// The raw query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// The variant; empty when the answer depends on the URL alone.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// The path's last segment, percent-decoded once; the raw one if that gives no text.
    pub fn file_name(&self) -> String {
        let raw = self.path().rsplit('/').next().unwrap_or_default();
        decode_once(raw).unwrap_or_else(|| raw.to_owned())
    }

    /// Path and query, as a request line has them.
    pub fn path_and_query(&self) -> &str {
        self.url.tail()
    }

    /// The whole URL, secrets and all: for requests, never for texts.
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

    /// Under which it is remembered what was given of the file here, and that it was refused: whatever the variant, and however
    /// the URL is spelt, it is one file to a client that resumes. It holds bytes back, and never picks any.
    pub fn file_key(&self) -> Key {
        Key(key_hash([&self.match_key().0[..]]))
    }

    /// Under which claims about this target are looked up: looser than the key, because indexes and clients spell the
    /// same file in different ways (`+` and `%2b`). It finds expectations, it never picks bytes.
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

    /// A false merge would be a poisoning.
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
            // What belongs in no URL is sent as it came, so it is another request than its escape.
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

    /// apt's way with a flat archive (`deb URI ./`).
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

    /// Issue 17 row 13: npm registries' clients write a scope and its name in either way.
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
        // The control: it is there, for the request.
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
