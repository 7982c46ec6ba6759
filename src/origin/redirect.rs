//! Redirects that larder follows itself: a URL that names its bytes by digest often redirects to a signed URL
//! elsewhere.
//!
//! Followed only if the caller asks for it, because a digest will prove the bytes wherever they come from; as far as
//! clients follow, and never twice to one URL. Every hop is checked against the operator's rules on hosts and ports,
//! and by the guard. After a public hop no internal address is reachable. A hop to another origin carries no credential
//! (`ask.rs`, `onward.rs`).
//!
//! Every status on which some client follows is treated as a redirect or as a fault: curl follows any 3xx with a
//! `Location`. If larder took for final an answer that a client follows, the client would get bytes that no claim was
//! checked against.
//!
//! Sources: RFC 9110 §15.4 and §10.2.2. The fragment matters only to the client and is dropped, and so is user
//! information.

use std::str;

use hyper::StatusCode;
use hyper::header::{HeaderMap, LOCATION};

use super::error::Fault;
use crate::config::Hosts;
use crate::target::Target;

/// Maximum number of redirects: as many as wget follows; curl and others follow more. Registries use one or two.
const MAX_HOPS: usize = 20;

/// The targets visited so far.
#[derive(Debug)]
pub(super) struct Trail {
    seen: Vec<Target>,
}

impl Trail {
    pub(super) fn new(first: &Target) -> Self {
        Self { seen: vec![first.clone()] }
    }

    /// The target to which an answer of the last target redirects; `None` if the answer is final.
    pub(super) fn next(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Target>, Fault> {
        if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let follows = matches!(
            status,
            StatusCode::MULTIPLE_CHOICES
                | StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        if !follows {
            return Err(Fault::Redirects(
                format!("it answers {}, which larder does not follow", status.as_u16()).into(),
            ));
        }
        let next = location(headers)
            .zip(self.seen.last())
            .and_then(|(location, from)| from.redirected(location))
            .ok_or_else(|| Fault::Redirects("its Location is missing or unusable".into()))?;
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

/// The answer's `Location`. `None` if there are several different ones, of which clients choose differently. Many
/// servers send a path in raw UTF-8.
fn location(headers: &HeaderMap) -> Option<&str> {
    let mut locations = headers.get_all(LOCATION).iter();
    let first = locations.next()?;
    let agreed = locations.all(|other| other == first);
    str::from_utf8(first.as_bytes()).ok().filter(|_| agreed)
}

/// Checks the operator's rules on hosts and ports for a redirect that larder follows.
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

    fn next(trail: &mut Trail, status: u16, locations: &[&str]) -> Result<Option<Target>, Fault> {
        let mut headers = HeaderMap::new();
        for location in locations {
            headers.append(LOCATION, location.parse().unwrap());
        }
        trail.next(StatusCode::from_u16(status).unwrap(), &headers)
    }

    fn target(url: &str) -> Target {
        Target::from_url(url).unwrap()
    }

    #[test]
    fn only_redirects_are_followed_and_the_fragment_is_dropped() {
        let mut trail = Trail::new(&target("https://example.org/a"));
        for status in [200, 206, 304, 404, 500] {
            assert_eq!(next(&mut trail, status, &["/b"]), Ok(None), "{status}");
        }
        for (status, location, to) in [
            (302, "b?x=1#part", "https://example.org/b?x=1"),
            // Relative to the previous hop, not to the first.
            (307, "https://files.example.org/c/d", "https://files.example.org/c/d"),
            (308, "e", "https://files.example.org/c/e"),
            (300, "f", "https://files.example.org/c/f"),
            (301, "https://u:p@files.example.org/g", "https://files.example.org/g"),
            (303, "http://files.example.org/g", "http://files.example.org/g"),
        ] {
            assert_eq!(next(&mut trail, status, &[location]), Ok(Some(target(to))), "{location}");
        }
    }

    /// A status that some client would follow is not final, and what larder cannot follow is a fault.
    #[test]
    fn circles_long_ways_and_nonsense_end() {
        let mut trail = Trail::new(&target("https://example.org/0"));
        assert!(next(&mut trail, 302, &["#again"]).is_err());
        for bad in ["ftp://example.org/", "https://", "data:,x", "/a%00"] {
            assert!(next(&mut trail, 302, &[bad]).is_err(), "{bad}");
        }
        for status in [305, 306, 399] {
            assert!(next(&mut trail, status, &["/b"]).is_err(), "{status}");
        }
        for locations in [&[][..], &["/b", "/c"]] {
            assert!(next(&mut trail, 302, locations).is_err(), "{locations:?}");
        }
        assert!(next(&mut trail, 302, &["1", "1"]).is_ok(), "twice the same is one");
        for hop in 2..=MAX_HOPS {
            assert!(next(&mut trail, 302, &[&hop.to_string()]).is_ok());
        }
        assert!(next(&mut trail, 302, &["21"]).is_err());
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
