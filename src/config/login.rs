//! larder's own logins at upstreams: which clients they are used for, and how they are written.
//!
//! ```text
//! "registry.example.org everyone basic ci file:/run/secrets/registry"
//!  host[:port]      for everyone  how   …  the secret, or the file that contains it
//! ```
//!
//! larder uses its login for clients that send none. So every client of this larder can read what the login may read,
//! and an entry must confirm that: `everyone` is not a default. Logins work with https only. The port is part of the
//! host: another port of the same host may belong to another operator.
//!
//! Reading the file, and adding the login to a request, is done in `origin`.

use std::fmt;
use std::path::PathBuf;

use hyper::header::{self, HeaderName};

use super::HostPattern;
use super::value::{Form, HOST};

/// The port of https.
const HTTPS: u16 = 443;

/// Replaces a secret in output. The parser refuses it, so that it is never used as a secret.
const HIDDEN: &str = "…";

/// Fields that control the request or the connection and cannot carry a login.
const NO_LOGINS: [HeaderName; 8] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::RANGE,
    header::PROXY_AUTHORIZATION,
];

/// A login of larder's own. `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The hosts at which it is used.
    pub hosts: HostPattern,
    /// The port of these hosts.
    pub port: u16,
    /// How it is sent to them.
    pub shows: Shows,
    /// The password, token or value.
    pub secret: Secret,
}

/// How a login is sent to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shows {
    /// `Authorization: Basic`, with this user (RFC 7617).
    Basic(String),
    /// `Authorization: Bearer` (RFC 6750).
    Bearer,
    /// A field of this name.
    Field(HeaderName),
}

/// Where a secret is stored.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In the configuration.
    Here(String),
    /// In a file, read at start and when the configuration is reloaded.
    File(PathBuf),
}

/// The form of one login.
pub(super) const LOGIN: Form<Login> = Form {
    expected: "a login such as \"registry.example.org everyone basic USER PASSWORD\", \
               \"*.example.org everyone bearer file:/run/secrets/token\" or \
               \"registry.example.org:8443 everyone header PRIVATE-TOKEN file:/run/secrets/token\", for https only",
    parse,
    show: |login| written(login, true),
    bare: false,
};

/// A login with its secret replaced, for output.
pub(super) fn without_secret(login: &str) -> String {
    // Accepted logins parse again; any other text is hidden as a whole.
    parse(login).map_or_else(|| HIDDEN.to_owned(), |login| written(&login, false))
}

fn parse(text: &str) -> Option<Login> {
    let (at, rest) = text.trim().split_once(' ')?;
    let (hosts, port) = match at.rsplit_once(':') {
        // An IPv6 address contains colons, so it must be in brackets, as in URLs.
        Some((hosts, _)) if hosts.contains(':') && !hosts.starts_with('[') => return None,
        Some((hosts, port)) if !port.ends_with(']') => (hosts, port.parse().ok()?),
        Some(_) | None => (at, HTTPS),
    };
    let rest = rest.trim_start().strip_prefix("everyone ")?.trim_start();
    let (kind, rest) = rest.split_once(' ')?;
    let (shows, secret) = match kind {
        "basic" => {
            let (user, secret) = rest.trim_start().split_once(' ')?;
            (Shows::Basic(user.to_owned()).fits()?, secret)
        }
        "bearer" => (Shows::Bearer, rest),
        "header" => {
            let (name, secret) = rest.trim_start().split_once(' ')?;
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            (Shows::Field(name).fits()?, secret)
        }
        _ => return None,
    };
    let secret = match secret.trim().strip_prefix("file:") {
        Some(path) if path.starts_with('/') => Secret::File(PathBuf::from(path)),
        Some(_) => return None,
        None => Secret::Here(secret.trim().to_owned()),
    };
    let fits = match &secret {
        Secret::Here(text) => {
            !text.is_empty() && text != HIDDEN && !text.chars().any(char::is_control)
        }
        Secret::File(_) => true,
    };
    fits.then_some(Login { hosts: (HOST.parse)(hosts)?, port, shows, secret })
}

impl Shows {
    fn fits(self) -> Option<Self> {
        let fits = match &self {
            // A colon would end the user (RFC 7617 §2).
            Self::Basic(user) => !user.contains(':') && !user.chars().any(char::is_control),
            Self::Bearer => true,
            Self::Field(name) => !NO_LOGINS.contains(name),
        };
        fits.then_some(self)
    }
}

fn written(login: &Login, whole: bool) -> String {
    let port = if login.port == HTTPS { String::new() } else { format!(":{}", login.port) };
    let shows = match &login.shows {
        Shows::Basic(user) => format!("basic {user}"),
        Shows::Bearer => "bearer".to_owned(),
        Shows::Field(name) => format!("header {name}"),
    };
    let secret = match &login.secret {
        Secret::Here(text) if whole => text.clone(),
        Secret::Here(_) => HIDDEN.to_owned(),
        Secret::File(path) => format!("file:{}", path.display()),
    };
    format!("{}{port} everyone {shows} {secret}", login.hosts.0)
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(self, false))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(_) => f.write_str(HIDDEN),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_and_shown_without_its_secret() {
        for (text, shown) in [
            (
                "registry.example.org everyone basic ci s3 cret",
                "registry.example.org everyone basic ci …",
            ),
            ("*.Example.org:8443 everyone bearer s3cret", "*.example.org:8443 everyone bearer …"),
            ("example.org:443 everyone bearer s3cret", "example.org everyone bearer …"),
            (
                "[2001:db8::1]:8443 everyone header Private-Token s3cret",
                "[2001:db8::1]:8443 everyone header private-token …",
            ),
            ("[2001:db8::1] everyone bearer s3cret", "[2001:db8::1] everyone bearer …"),
            (
                "example.org everyone basic ci file:/run/secrets/token",
                "example.org everyone basic ci file:/run/secrets/token",
            ),
        ] {
            let login = parse(text).unwrap();
            assert_eq!(parse(&written(&login, true)), Some(login.clone()), "{text}");
            assert_eq!(without_secret(&written(&login, true)), shown);
            assert!(!format!("{login:?} {:?}", login.secret).contains("s3"), "{login:?}");
        }
    }

    #[test]
    fn what_is_not_said_in_full_is_no_login() {
        for wrong in [
            "",
            "example.org",
            "example.org bearer s3cret",
            "example.org everyone s3cret",
            "example.org everyone bearer ",
            "example.org everyone bearer …",
            "example.org everyone basic s3cret",
            "example.org everyone basic a:b s3cret",
            "example.org everyone bearer file:relative",
            "example.org everyone header host s3cret",
            "example.org everyone header a/b s3cret",
            "example.org everyone bearer a\nb",
            "example.org:port everyone bearer s3cret",
            "* everyone bearer s3cret",
            "2001:db8::1 everyone bearer s3cret",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
            assert_eq!(without_secret(wrong), "…");
        }
    }
}
