//! Parses the `Bearer` challenge of a 401, by which a registry names its token service.
//!
//! Pure. Sources: RFC 9110 §11.6.1 (the field), RFC 6750 §3 (the scheme), Docker's token authentication specification
//! (`realm`, `service`, `scope`).

use hyper::StatusCode;
use hyper::header::WWW_AUTHENTICATE;

use crate::entry::Head;
use crate::target::{Scheme, Target};

/// Maximum length of realm, service and scope. Real ones have about a hundred bytes.
const MAX_PART: usize = 2048;

/// The token service, and the token to request from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Challenge {
    realm: Target,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The `Bearer` challenge of a 401. `None` if there is none, or if its realm is not an `https` URL: over plain http
    /// an attacker on the path could issue the tokens.
    pub fn of(head: &Head) -> Option<Self> {
        if head.status != StatusCode::UNAUTHORIZED {
            return None;
        }
        let fields = head.headers.get_all(WWW_AUTHENTICATE).iter();
        fields.filter_map(|field| field.to_str().ok()).find_map(Self::parse)
    }

    fn parse(field: &str) -> Option<Self> {
        let mut parameters = parameters(field);
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(known, _)| known == name)?;
            Some(parameters.swap_remove(at).1).filter(|value| value.len() <= MAX_PART)
        };
        let realm = Target::from_url(&take("realm")?)?;
        let (service, scope) = (take("service"), take("scope"));
        (realm.origin().scheme == Scheme::Https).then_some(Self { realm, service, scope })
    }

    /// The URL of the token service.
    pub fn realm(&self) -> &Target {
        &self.realm
    }

    /// The URL of the token request. Each scope is a parameter of its own.
    pub(super) fn request(&self) -> Option<Target> {
        let service = self.service.iter().map(|service| ("service", service.as_str()));
        let scopes = self.scope.iter().flat_map(|scope| scope.split(' '));
        let scopes = scopes.filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope));
        let mut query = self.realm.query().unwrap_or_default().to_owned();
        for (name, value) in service.chain(scopes) {
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(name);
            query.push('=');
            query.extend(url::form_urlencoded::byte_serialize(value.as_bytes()));
        }
        let path = self.realm.path();
        Target::new(self.realm.origin().clone(), &format!("{path}?{query}")).ok()
    }
}

/// The parameters of the first `Bearer` challenge in a field value, with names in lower case.
fn parameters(field: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for member in members(field) {
        let (scheme, parameter) = match member.split_once([' ', '=']) {
            // `Bearer realm="…"` begins a challenge; `service="…"` continues it.
            Some((scheme, rest))
                if member.get(scheme.len()..).is_some_and(|r| r.starts_with(' ')) =>
            {
                (Some(scheme), rest.trim_start())
            }
            Some(_) => (None, member),
            None => (Some(member), ""),
        };
        if let Some(scheme) = scheme {
            if inside {
                break;
            }
            inside = scheme.eq_ignore_ascii_case("bearer");
        }
        if inside && let Some((name, value)) = parameter.split_once('=') {
            found.push((name.trim().to_ascii_lowercase(), unquoted(value.trim())));
        }
    }
    found
}

/// The members of a comma-separated list. A comma inside quotes does not separate.
fn members(field: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    field
        .split(move |c: char| {
            let ends = c == ',' && !quoted;
            quoted ^= c == '"' && !escaped;
            escaped = quoted && c == '\\' && !escaped;
            ends
        })
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    let keeps = |c: &char| {
        escaped = *c == '\\' && !escaped;
        !escaped
    };
    inner.chars().filter(keeps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderMap;

    fn asked(field: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
        let head = Head { status: StatusCode::UNAUTHORIZED, headers };
        Some(Challenge::of(&head)?.request()?.url())
    }

    #[test]
    fn a_challenge_names_what_to_ask() {
        let url = "https://token.example.org/t";
        for (field, expected) in [
            (
                format!(r#"Bearer realm="{url}",service="a b",scope="repository:x/y:pull""#),
                format!("{url}?service=a+b&scope=repository%3Ax%2Fy%3Apull"),
            ),
            (
                format!(
                    r#"bearer Realm="{url}?x=1", scope="repository:x:pull,push repository:y:pull""#
                ),
                format!("{url}?x=1&scope=repository%3Ax%3Apull%2Cpush&scope=repository%3Ay%3Apull"),
            ),
            (
                format!(
                    r#"Basic realm="a, b=\"c", Bearer realm="{url}", Digest realm="x", service="y""#
                ),
                format!("{url}?"),
            ),
            (format!("Bearer service=s, realm={url}"), format!("{url}?service=s")),
        ] {
            assert_eq!(asked(&field), Some(expected), "{field}");
        }
    }

    #[test]
    fn what_names_no_service_is_no_challenge() {
        for field in [
            r#"Basic realm="https://token.example.org/""#,
            r#"Bearer realm="http://token.example.org/""#,
            r#"Bearer realm="/token""#,
            r#"Bearer realm="https://u:p@token.example.org/""#,
            "Bearer",
            "Bearer x",
            ",,=,",
            "",
        ] {
            assert_eq!(asked(field), None, "{field}");
        }
        let long = "x".repeat(MAX_PART + 1);
        assert_eq!(asked(&format!("Bearer realm=\"https://example.org/{long}\"")), None);
    }

    #[test]
    fn only_a_401_challenges() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, r#"Bearer realm="https://example.org/""#.parse().unwrap());
        let head = Head { status: StatusCode::OK, headers };
        assert_eq!(Challenge::of(&head), None);
    }
}
