//! The credential of a request: login fields, and tokens in the URL (promise P5).
//!
//! A [`Credential`] never reveals its contents: it has no text form, its `Debug` lists only the field names, and the
//! store identifies it by a keyed hash ([`Credential::id`]), which cannot be checked against a guess without the
//! store's secret. It leaves larder in one place only: on the request to the origin for which it was meant.
//!
//! Some logins cannot be repeated and are not credentials in this sense: those that belong to a connection (NTLM,
//! Negotiate: RFC 4559 §5) or to one request (Digest: RFC 7616 §3.4; OAuth 1: RFC 5849 §3.3); see [`is_shown_once`].
//! Cookies that HTTP/2 split are joined before anything reads them ([`join_cookies`], RFC 9113 §8.2.3). User
//! information in a URL becomes an `Authorization` field where requests are read
//! ([`identity::take_login`](super::identity::take_login)). A token in a body makes the request a pass, as every body
//! does.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};

use super::secret::{self, IN_THE_PATH};
use super::{Key, Partition, Target};

/// Header fields that are credentials in every ecosystem.
const FIELDS: [&str; 11] = [
    "authorization",
    "cookie",
    "private-token",
    "job-token",
    "deploy-token",
    "x-jfrog-art-api",
    "x-nuget-apikey",
    "x-api-key",
    "x-auth-token",
    "x-gitlab-token",
    "x-amz-security-token",
];

/// Authentication schemes that authenticate the connection, not the request.
const OF_A_CONNECTION: [&str; 3] = ["ntlm", "negotiate", "kerberos"];

/// Authentication schemes whose login contains a nonce, a counter or a signature of method and URL, so that an origin
/// accepts it once only.
const OF_A_REQUEST: [&str; 8] =
    ["digest", "oauth", "hawk", "signature", "mutual", "aws", "aws4-hmac-sha256", "sharedkey"];

/// The credential of a request.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Sorted by name; fields of one name keep their order.
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Tokens in the URL. They are sent with the URL anyway, and are here only to distinguish principals.
    in_url: Vec<(String, String)>,
}

impl Credential {
    /// The credential of a request for `target`; `None` if it has none. `named` are the fields with which its ecosystem
    /// logs in, in lower case.
    pub fn of(headers: &HeaderMap, target: &Target, named: &[&str]) -> Option<Self> {
        let fields = headers
            .iter()
            .filter(|(name, _)| is_field(name, named))
            .map(|(name, value)| (name.clone(), value.clone()));
        Self::new(fields, tokens(target))
    }

    /// A credential of these header fields, for example an operator login. `None` if there are none.
    pub fn of_fields(fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Option<Self> {
        Self::new(fields, Vec::new())
    }

    fn new(
        fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        in_url: Vec<(String, String)>,
    ) -> Option<Self> {
        let mut fields: Vec<_> = fields.into_iter().collect();
        for (_, value) in &mut fields {
            // Keeps it out of the HTTP library's debug output and of HTTP/2's header tables.
            value.set_sensitive(true);
        }
        fields.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
        (!fields.is_empty() || !in_url.is_empty()).then_some(Self { fields, in_url })
    }

    /// An invented credential of the same form: the same fields and schemes, with a random login that nobody was ever
    /// given. Used to check that the origin refuses clients without access.
    #[must_use]
    pub fn made_up(&self) -> Self {
        let mut drawn = [0; 16];
        // If the random generator fails, the login is all zeros, which nobody has either.
        let _drawn = aws_lc_rs::rand::fill(&mut drawn);
        let login = STANDARD.encode([b"larder:", &drawn[..]].concat());
        let fields = self.fields.iter().filter_map(|(name, value)| {
            let scheme = value.to_str().ok().filter(|_| *name == AUTHORIZATION);
            let scheme = scheme.and_then(|value| value.split_once(' '));
            let text =
                scheme.map_or_else(|| login.clone(), |(scheme, _)| format!("{scheme} {login}"));
            let mut value = HeaderValue::try_from(text).ok()?;
            value.set_sensitive(true);
            Some((name.clone(), value))
        });
        Self { fields: fields.collect(), in_url: self.in_url.clone() }
    }

    /// The ID of the credential in the store: HMAC-SHA-256 over the names and values, truncated to 128 bits. `secret`
    /// is the store's.
    pub fn id(&self, secret: &[u8; 32]) -> [u8; 16] {
        let fields = self.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let in_url = self.in_url.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let counts = [self.fields.len(), self.in_url.len()].map(usize::to_be_bytes);
        let pieces = fields.chain(in_url).flat_map(|(name, value)| [name.as_bytes(), value]);
        keyed(secret, b"credential", counts.iter().map(|count| &count[..]).chain(pieces))
    }

    /// Whether it is in the URL, at least in part: then the same resource cannot be requested without it.
    pub fn is_in_url(&self) -> bool {
        !self.in_url.is_empty()
    }

    /// Sets the login fields on a request. The caller ensures that the request goes to the origin for which they were
    /// meant.
    pub fn show_to_origin(&self, headers: &mut HeaderMap) {
        for (name, _) in &self.fields {
            headers.remove(name);
        }
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.fields.iter().map(|(name, _)| name.as_str());
        f.debug_list().entries(names.chain(self.in_url.iter().map(|_| "in the URL"))).finish()
    }
}

impl Partition {
    /// The partition of the only private entry of `target`, which all credentials share. Knowing its key gives no
    /// access: each client proves its own access right to the stored bytes. Derived with the store's secret, so that it
    /// equals no credential's partition.
    pub fn guarded(target: &Target, secret: &[u8; 32]) -> Self {
        let Key(key) = target.key(Self::Public);
        Self::Private(keyed(secret, b"guarded", [&key[..]].into_iter()))
    }
}

impl Target {
    /// Whether the URL contains a token: then all answers to it are private.
    pub fn has_token(&self) -> bool {
        !tokens(self).is_empty()
    }

    /// Whether the token is in the query: such URLs are mostly signed for one download.
    pub fn has_token_in_query(&self) -> bool {
        tokens(self).iter().any(|(name, _)| name != IN_THE_PATH)
    }
}

/// Whether a header field is a credential. `named` are the fields that an ecosystem adds.
pub fn is_field(name: &HeaderName, named: &[&str]) -> bool {
    FIELDS.contains(&name.as_str()) || named.contains(&name.as_str())
}

/// Whether the login works only on the client's own request. Either it authenticates the connection, so that the next
/// request on that connection has the same right, and a request elsewhere with the same field has none. Or it was
/// computed for one request, and an origin refuses it the second time.
pub fn is_shown_once(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let mut words = value.as_bytes().split(u8::is_ascii_whitespace);
        let scheme = words.next().unwrap_or_default();
        let mut known = OF_A_CONNECTION.iter().chain(&OF_A_REQUEST);
        known.any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
    })
}

/// Joins several cookie fields into one. HTTP/2 clients may split them, and an origin may read only the first (RFC 9113
/// §8.2.3). Split or joined, they are one credential.
pub fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() < 2 {
        return;
    }
    // Joined field values are a valid field value.
    if let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

fn tokens(target: &Target) -> Vec<(String, String)> {
    secret::tokens(target.path(), target.query())
}

/// HMAC-SHA-256 over `pieces`, each prefixed by its length, truncated to 128 bits.
fn keyed<'a>(
    secret: &[u8; 32],
    purpose: &'a [u8],
    pieces: impl Iterator<Item = &'a [u8]>,
) -> [u8; 16] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    for piece in [purpose].into_iter().chain(pieces) {
        context.update(&(piece.len() as u64).to_be_bytes());
        context.update(piece);
    }
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn target(path: &str) -> Target {
        Target::from_url(&format!("https://example.org{path}")).unwrap()
    }

    fn of(fields: &[(&'static str, &str)], path: &str) -> Option<Credential> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        Credential::of(&headers, &target(path), &["x-own-login"])
    }

    #[test]
    fn a_made_up_login_is_nobodys_and_of_the_same_kind() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer s3cret-one".parse().unwrap());
        headers.insert("cookie", "a=s3cret-two; b=s3cret-three".parse().unwrap());
        let target = Target::from_url("https://example.org/a").unwrap();
        let shown = Credential::of(&headers, &target, &[]).unwrap();
        let made_up = [shown.made_up(), shown.made_up()];
        assert!(made_up[0] != made_up[1] && made_up[0] != shown);
        for one in made_up {
            let mut headers = HeaderMap::new();
            one.show_to_origin(&mut headers);
            let text = |name: &str| headers[name].to_str().unwrap();
            assert!(text("authorization").starts_with("Bearer "), "{}", text("authorization"));
            assert!(!format!("{}{}", text("authorization"), text("cookie")).contains("s3cret"));
        }
    }

    #[test]
    fn different_logins_have_different_names_and_the_same_has_one() {
        let logins: [(&[(&str, &str)], &str); 9] = [
            (&[("authorization", "Bearer a")], "/x"),
            (&[("authorization", "Bearer b")], "/x"),
            (&[("cookie", "Bearer a")], "/x"),
            (&[("authorization", "Bearer a"), ("cookie", "c")], "/x"),
            (&[("authorization", "Bearer a"), ("x-own-login", "c")], "/x"),
            (&[("authorization", "Bearer a")], "/t/ab-0123456789abcdef/x"),
            (&[], "/t/ab-0123456789abcdef/x"),
            (&[], "/t/ab-0123456789abcdeg/x"),
            (&[], "/x?token=ab-0123456789abcdef"),
        ];
        let ids: Vec<[u8; 16]> =
            logins.iter().map(|(fields, path)| of(fields, path).unwrap().id(&SECRET)).collect();
        for (i, one) in ids.iter().enumerate() {
            assert!(ids.iter().skip(i + 1).all(|other| one != other), "{:?}", logins[i]);
        }
        // Other fields and URLs do not change the ID; another larder's secret does.
        let again = of(&[("accept", "*/*"), ("authorization", "Bearer a")], "/y").unwrap();
        assert_eq!(again.id(&SECRET), ids[0]);
        assert_ne!(again.id(&[8; 32]), ids[0]);
        let token = of(&[], "/t/ab-0123456789abcdef/other").unwrap();
        assert!(token.id(&SECRET) == ids[6] && token.is_in_url() && !again.is_in_url());
    }

    #[test]
    fn what_shows_no_right_is_no_credential() {
        assert_eq!(of(&[("accept", "*/*"), ("x-vault-token", "s3cret")], "/t/x?tokens=1"), None);
    }

    #[test]
    fn its_text_holds_none_of_it() {
        let fields = [("authorization", "Bearer s3cret"), ("cookie", "a=s3cret")];
        let credential = of(&fields, "/t/s3cret-s3cret-s3cret/x?sig=s3cret").unwrap();
        let text = format!("{credential:?}");
        assert!(!text.contains("s3cret") && text.contains("authorization"), "{text}");
    }

    #[test]
    fn what_cannot_be_shown_again_is_known_by_its_scheme() {
        for (value, expected) in [
            ("NTLM TlRMTVNTUAAB", true),
            ("negotiate YII", true),
            ("Negotiate", true),
            ("NTLM\tTlRMTVNTUAAB", true),
            ("Digest username=\"x\", nonce=\"y\"", true),
            ("OAuth oauth_nonce=\"x\"", true),
            ("Bearer ntlm", false),
            ("Basic eDp5", false),
            ("NTLMx y", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(is_shown_once(&headers), expected, "{value}");
        }
    }

    #[test]
    fn the_guarded_entry_of_a_target_is_its_own() {
        let one = Partition::guarded(&target("/a"), &SECRET);
        assert_eq!(one, Partition::guarded(&target("/a"), &SECRET));
        assert_ne!(one, Partition::guarded(&target("/b"), &SECRET));
        assert_ne!(one, Partition::guarded(&target("/a"), &[8; 32]));
    }

    #[test]
    fn every_field_is_shown_as_it_came() {
        let fields = [("cookie", "a=1"), ("authorization", "Basic x"), ("cookie", "b=2")];
        let mut headers = HeaderMap::new();
        headers.insert("accept", "*/*".parse().unwrap());
        of(&fields, "/x").unwrap().show_to_origin(&mut headers);
        let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
        assert!(cookies == ["a=1", "b=2"] && headers.len() == 4);
        assert!(headers["authorization"].is_sensitive());
    }
}
