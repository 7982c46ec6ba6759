//! Secrets in URLs: where they are, and how a URL is displayed and stored without them.
//!
//! Signatures and tokens are in the query, conda's tokens in the path (`/t/<token>/`), passwords before the host. A
//! [`Target`](super::Target) displays itself through this module, with `{}` and with `{:?}`, so that no log line, error
//! text or record contains a secret by mistake. Only [`Target::url`](super::Target::url) returns the whole URL, and a
//! test of the source code limits its callers.
//!
//! For display every value in a query is hidden, because the parameter names of secrets cannot all be listed. For the
//! disk only what certainly is a secret is removed, because the rest is needed to repeat the request.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use super::path::decode_once;
use super::raw;
use super::shown::one_line;

/// Replaces a secret. No URL can contain this character, so a displayed URL is never mistaken for a real one.
pub const HIDDEN: &str = "…";

/// Query parameters that are credentials.
const PARAMETERS: [&str; 33] = [
    "access-token",
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "auth-token",
    "auth_token",
    "authorization",
    "awsaccesskeyid",
    "client_secret",
    "deploy_token",
    "job_token",
    "jwt",
    "key-pair-id",
    "oauth_token",
    "password",
    "private-token",
    "private_token",
    "q-signature",
    "security-token",
    "sig",
    "signature",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-cos-security-token",
    "x-goog-credential",
    "x-goog-signature",
    "x-oss-credential",
    "x-oss-security-token",
    "x-oss-signature",
];

/// The name for a token in the path. No header field or parameter can have this name.
pub(super) const IN_THE_PATH: &str = "/t/";

/// The certain credentials in a URL: names in lower case, with their values.
pub(super) fn tokens(path: &str, query: Option<&str>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut before = "";
    for segment in path.split('/') {
        if is_marker(before) && is_token(segment) {
            found.push((IN_THE_PATH.to_owned(), segment.to_owned()));
        }
        before = segment;
    }
    for pair in query.into_iter().flat_map(|query| query.split(['&', ';'])) {
        let (raw, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_once(raw).unwrap_or_else(|| raw.to_owned()).to_ascii_lowercase();
        if PARAMETERS.contains(&name.as_str()) {
            found.push((name, value.to_owned()));
        }
    }
    found
}

/// A path, possibly with a query, for the disk: unchanged, or with its secrets replaced if it has any, so that it names
/// nothing any more.
pub(super) fn for_disk(path_and_query: &str) -> Cow<'_, str> {
    let (path, query) = split(path_and_query);
    if tokens(path, query).is_empty() {
        Cow::Borrowed(path_and_query)
    } else {
        Cow::Owned(Shown { path, query }.to_string())
    }
}

/// Any text that was meant as a URL, for display: without user information and values.
pub fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}"),
        None => authority.to_owned(),
    };
    let (path, query) = split(tail.split('#').next().unwrap_or(tail));
    let separator = if scheme.is_empty() { "" } else { "://" };
    let (scheme, host) = (one_line(scheme), one_line(&host));
    format!("{scheme}{separator}{host}{}", Shown { path, query })
}

/// Path and query for display.
pub(super) struct Shown<'a> {
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (position, segment) in self.path.split('/').enumerate() {
            if position > 0 {
                f.write_char('/')?;
            }
            // Whether or not it is long enough for a token, the segment after the marker is hidden.
            let hidden = is_marker(before) && !segment.is_empty();
            if hidden {
                f.write_str(HIDDEN)?;
            } else {
                raw::show(segment, f)?;
            }
            before = segment;
        }
        for (position, pair) in self.query.iter().flat_map(|query| query.split('&')).enumerate() {
            f.write_char(if position == 0 { '?' } else { '&' })?;
            match pair.split_once('=') {
                Some((name, _)) => {
                    raw::show(name, f)?;
                    write!(f, "={HIDDEN}")?;
                }
                None => f.write_str(HIDDEN)?,
            }
        }
        Ok(())
    }
}

/// conda's `t`, in every spelling that a server would read as that.
fn is_marker(segment: &str) -> bool {
    segment == "t" || segment == "%74"
}

/// conda's tokens are long, and consist of letters, digits and hyphens. A false positive only makes a resource private
/// needlessly.
fn is_token(segment: &str) -> bool {
    segment.len() >= 16
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn split(path_and_query: &str) -> (&str, Option<&str>) {
    match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_in_every_spelling() {
        let found = |text| {
            let (path, query) = split(text);
            !tokens(path, query).is_empty()
        };
        for secret in [
            "/a?X-Amz-Signature=00&b=1",
            "/a?b=1&Token=x",
            "/a?b=1;token=x",
            "/a?%74oken=x",
            "/a?job_token=x",
            "/a?Api-Key=x",
            "/a?q-signature=x",
            "/a?x-oss-signature=x",
            "/t/ab-0123456789abcdef/c",
            "/%74/ab-0123456789abcdef/c",
            "/t/x/t/ab-0123456789abcdef/c",
        ] {
            assert!(found(secret), "{secret}");
            assert_ne!(for_disk(secret), secret);
            assert!(for_disk(secret).contains(HIDDEN), "{secret}");
        }
        for harmless in ["/a?tokens=1", "/t/x", "/at/ab-0123456789abcdef", "/a?x=token"] {
            assert!(!found(harmless), "{harmless}");
            assert_eq!(for_disk(harmless), harmless);
        }
    }

    #[test]
    fn what_is_no_url_is_repeated_without_its_secrets() {
        for (url, expected) in [
            ("https://user:s3cret@example.org/a?b=s3cret#c", "https://…@example.org/a?b=…"),
            ("https://s3cret@example.org", "https://…@example.org"),
            ("ftp://u:p@ss@example.org/t/s3cret/x", "ftp://…@example.org/t/…/x"),
            ("example.org/a?s3cret", "example.org/a?…"),
            ("user:s3cret@example.org", "…@example.org"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
