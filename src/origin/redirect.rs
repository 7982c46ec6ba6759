//! Redirects that larder follows itself: a URL that names its bytes often answers with a signed one elsewhere.
//!
//! Followed only where the asker says so, because the digest will prove the bytes wherever they come from; at most
//! five hops, never twice to one URL. Every hop passes the operator's word on hosts and ports, and the guard; after a
//! public hop no inner address is open. A hop to another origin carries no credential (`ask.rs`).
//!
//! Source: RFC 9110 §15.4 and §10.2.2. The fragment is the client's business and dropped.

use hyper::StatusCode;
use hyper::header::LOCATION;

use super::error::Fault;
use crate::config::Hosts;
use crate::entry::Head;
use crate::target::Target;

/// Redirects followed; registries use one or two.
const MAX_HOPS: usize = 5;

/// The way so far.
#[derive(Debug)]
pub(super) struct Trail {
    seen: Vec<Target>,
}

impl Trail {
    pub(super) fn new(first: &Target) -> Self {
        Self { seen: vec![first.clone()] }
    }

    /// Where `head`, which answered the trail's last target, leads; `None` if it is an answer.
    pub(super) fn next(&mut self, head: &Head) -> Result<Option<Target>, Fault> {
        if !matches!(
            head.status,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        ) {
            return Ok(None);
        }
        let mut locations = head.headers.get_all(LOCATION).iter();
        let location = match (locations.next(), locations.next()) {
            (Some(location), None) => std::str::from_utf8(location.as_bytes()).ok(),
            _ => None,
        };
        let next = location
            .zip(self.seen.last())
            .and_then(|(location, from)| from.join(location))
            .ok_or_else(|| Fault::Redirects("it redirects to nothing larder can ask for".into()))?;
        if self.seen.contains(&next) {
            return Err(Fault::Redirects(
                format!("it redirects in a circle, by way of {next}").into(),
            ));
        }
        if self.seen.len() > MAX_HOPS {
            return Err(Fault::Redirects(
                format!("it redirects more than {MAX_HOPS} times, last to {next}").into(),
            ));
        }
        self.seen.push(next.clone());
        Ok(Some(next))
    }
}

/// The operator's word on hosts and ports holds for hops that no client asked for.
pub(super) fn permitted(target: &Target, hosts: &Hosts) -> Result<(), Fault> {
    let origin = target.origin();
    let shut = hosts.shut(&origin.host.to_string(), origin.port);
    let fault = |why| Fault::Forbidden(format!("it redirects to {origin}: {why}").into());
    shut.map_or(Ok(()), |why| Err(fault(why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, HostPattern};
    use hyper::http::HeaderMap;

    fn head(status: u16, location: &str) -> Head {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().unwrap());
        Head { status: StatusCode::from_u16(status).unwrap(), headers }
    }

    fn target(url: &str) -> Target {
        Target::from_url(url).unwrap()
    }

    #[test]
    fn only_redirects_are_followed_and_the_fragment_is_dropped() {
        let mut trail = Trail::new(&target("https://example.org/a"));
        for status in [200, 300, 304, 305] {
            assert_eq!(trail.next(&head(status, "/b")), Ok(None), "{status}");
        }
        assert_eq!(
            trail.next(&head(302, "b?x=1#part")).unwrap(),
            Some(target("https://example.org/b?x=1"))
        );
        // Relative to the hop before, not to the first.
        assert_eq!(
            trail.next(&head(307, "https://files.example.org/c/d")).unwrap(),
            Some(target("https://files.example.org/c/d"))
        );
        assert_eq!(
            trail.next(&head(308, "e")).unwrap(),
            Some(target("https://files.example.org/c/e"))
        );
    }

    #[test]
    fn circles_long_ways_and_nonsense_end() {
        let mut trail = Trail::new(&target("https://example.org/0"));
        assert!(trail.next(&head(302, "#again")).is_err());
        for bad in ["ftp://example.org/", "https://u:p@example.org/", "https://"] {
            assert!(trail.next(&head(302, bad)).is_err(), "{bad}");
        }
        for hop in 1..=MAX_HOPS {
            assert!(trail.next(&head(302, &hop.to_string())).is_ok());
        }
        assert!(trail.next(&head(302, "6")).is_err());
    }

    #[test]
    fn the_operators_word_holds_for_hops() {
        let mut hosts = Config::default().hosts;
        hosts.refuse.push(HostPattern("*.example.org".into()));
        assert!(permitted(&target("https://example.org/"), &hosts).is_ok());
        assert!(permitted(&target("https://a.example.org/"), &hosts).is_err());
        assert!(permitted(&target("http://example.org:25/"), &hosts).is_err());
        assert!(permitted(&target("http://example.org:8080/"), &hosts).is_ok());
    }
}
