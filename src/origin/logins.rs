//! The operator logins for upstreams, from `upstream.logins`.
//!
//! A login is looked up by the requested origin, which must match in scheme (https) and port. It becomes a
//! [`Credential`] like a client's: it is sent on fills to that origin and dropped where a redirect leads elsewhere
//! (`ask.rs`), it is identified by its keyed hash, and it has no text form. The pipeline decides when it may be used.
//!
//! Source: RFC 7617 §2 (Basic; UTF-8), RFC 6750 §2.1 (Bearer).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderValue};

use super::error::Fault;
use crate::config::HostPattern;
use crate::config::login::{Login, Secret, Shows};
use crate::target::{Credential, Origin, Scheme};

/// Maximum length of a secret read from a file, in bytes. Tokens of identity providers have up to some KiB.
const LONGEST: u64 = 64 * 1024;

/// The logins with their secrets.
#[derive(Debug)]
pub(super) struct Logins(Vec<(HostPattern, u16, Arc<Credential>)>);

impl Logins {
    /// Reads the secrets. The error names the file or the host, never a secret. Blocking.
    pub(super) fn read(logins: &[Login]) -> Result<Self, Fault> {
        logins
            .iter()
            .map(|login| Ok((login.hosts.clone(), login.port, Arc::new(credential(login)?))))
            .collect::<Result<_, Fault>>()
            .map(Self)
    }

    /// The login for `origin`; the first if several match.
    pub(super) fn of(&self, origin: &Origin) -> Option<Arc<Credential>> {
        if origin.scheme != Scheme::Https {
            return None;
        }
        let host = origin.host.text();
        let (.., credential) =
            self.0.iter().find(|(hosts, port, _)| *port == origin.port && hosts.matches(&host))?;
        Some(Arc::clone(credential))
    }
}

fn credential(login: &Login) -> Result<Credential, Fault> {
    let secret = match &login.secret {
        Secret::Here(secret) => secret.clone(),
        Secret::File(path) => read(path).map_err(|error| {
            Fault::SetUp(format!("upstream.logins: {}: {error}", path.display()).into())
        })?,
    };
    let (name, value) = match &login.shows {
        Shows::Basic(user) => {
            (AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))))
        }
        Shows::Bearer => (AUTHORIZATION, format!("Bearer {secret}")),
        Shows::Field(name) => (name.clone(), secret),
    };
    let unfit = || {
        let hosts = &login.hosts.0;
        Fault::SetUp(
            format!("upstream.logins: the secret for {hosts} cannot stand in a header field")
                .into(),
        )
    };
    let value = HeaderValue::try_from(value).map_err(|_| unfit())?;
    Credential::of_fields([(name, value)]).ok_or_else(unfit)
}

/// The secret in a file, without the trailing line break that editors add.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || text.len() as u64 > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it should hold a secret in one line, at most 64 KiB",
        ));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::keys::key;
    use crate::target::Target;
    use hyper::HeaderMap;

    fn logins(texts: &[&str]) -> Result<Logins, Fault> {
        let mut config = Config::default();
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        key("upstream.logins").unwrap().set(&mut config, &texts).unwrap();
        Logins::read(&config.upstream.logins)
    }

    fn shown(logins: &Logins, url: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(login) = logins.of(Target::from_url(url).unwrap().origin()) {
            login.show_to_origin(&mut headers);
        }
        headers
    }

    #[test]
    fn a_login_goes_to_its_host_by_https_on_its_port() {
        let logins = logins(&[
            "a.example.org everyone basic ci s3 cret",
            "*.example.org:8443 everyone bearer s3cret",
            "b.example.org everyone header private-token s3cret",
        ])
        .unwrap();
        assert_eq!(
            shown(&logins, "https://a.example.org/x")["authorization"],
            "Basic Y2k6czMgY3JldA=="
        );
        assert_eq!(shown(&logins, "https://a.example.org:8443/")["authorization"], "Bearer s3cret");
        assert_eq!(shown(&logins, "https://b.example.org/")["private-token"], "s3cret");
        for other in [
            "http://a.example.org/",
            "http://a.example.org:443/",
            "http://a.example.org:8443/",
            "https://a.example.org:444/",
            "https://c.example.org/",
            "https://example.org:8443/",
            "https://a.example.org.example.net/",
        ] {
            assert!(shown(&logins, other).is_empty(), "{other}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the operator's file, not one of larder's")]
    fn a_secret_is_read_from_its_file_and_stands_in_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let login = format!("example.org everyone bearer file:{}", file.display());
        let missing = logins(&[&login]).unwrap_err().to_string();
        assert!(missing.contains(file.to_str().unwrap()), "{missing}");
        std::fs::write(&file, "s3cret\r\n").unwrap();
        let read = logins(&[&login]).unwrap();
        assert_eq!(shown(&read, "https://example.org/")["authorization"], "Bearer s3cret");
        assert!(!format!("{read:?}").contains("s3cret"));
        for bad in ["", "\n", "s3cret\nmore"] {
            std::fs::write(&file, bad).unwrap();
            let said = logins(&[&login]).unwrap_err().to_string();
            assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
