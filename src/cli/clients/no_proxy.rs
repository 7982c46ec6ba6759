//! The hosts that bypass the proxy: the user's list, and this machine itself.

use crate::config::environment::Environment;

/// larder refuses to connect to loopback, and a build must still reach its own test server there.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Variables with the address of the container engine that commands talk to. Docker's client sends requests for an
/// engine at a TCP address through `HTTP_PROXY`; these are API calls, not downloads.
const ENGINES: [&str; 3] = ["DOCKER_HOST", "CONTAINER_HOST", "BUILDKIT_HOST"];

/// The user's list (from the variable in either case, in its order, without repetition), [`OWN`], and the hosts of
/// [`ENGINES`].
pub(super) fn merged(environment: &Environment) -> String {
    let mut hosts: Vec<&str> = Vec::new();
    let given = ["no_proxy", "NO_PROXY"].into_iter().filter_map(|name| environment.get(name));
    // Some programs accept blanks between hosts as well as commas.
    let engines = ENGINES.into_iter().filter_map(|name| engine(environment.get(name)?));
    for host in given.flat_map(|list| list.split([',', ' '])).chain(OWN).chain(engines) {
        if !host.is_empty() && !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts.join(",")
}

/// The host of an engine that is reached by TCP.
fn engine(address: &str) -> Option<&str> {
    let rest =
        ["tcp://", "http://", "https://"].iter().find_map(|scheme| address.strip_prefix(scheme))?;
    let authority = rest.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    (!host.contains([',', ' ', '@'])).then_some(host)
}

/// Whether the user's list makes everything bypass every proxy, larder included.
pub(super) fn is_everything(environment: &Environment) -> bool {
    merged(environment).split(',').any(|host| host == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> String {
        merged(&pairs.iter().copied().collect())
    }

    #[test]
    fn the_users_hosts_are_added_to_and_not_replaced() {
        assert_eq!(of(&[]), "localhost,127.0.0.1,::1");
        assert_eq!(
            of(&[("NO_PROXY", "a.example.org, .b.example.org")]),
            "a.example.org,.b.example.org,localhost,127.0.0.1,::1"
        );
        assert_eq!(
            of(&[("no_proxy", "a,localhost"), ("NO_PROXY", "a,b")]),
            "a,localhost,b,127.0.0.1,::1"
        );
    }

    #[test]
    fn an_engine_that_is_reached_by_tcp_is_no_download() {
        assert_eq!(of(&[("DOCKER_HOST", "tcp://docker:2375")]), "localhost,127.0.0.1,::1,docker");
        assert_eq!(
            of(&[
                ("CONTAINER_HOST", "tcp://[fd00::7]:2376/x"),
                ("DOCKER_HOST", "tcp://127.0.0.1:1")
            ]),
            "localhost,127.0.0.1,::1,fd00::7"
        );
        for other in ["unix:///run/docker.sock", "ssh://user@host", "tcp://", "tcp://a,b:1"] {
            assert_eq!(of(&[("DOCKER_HOST", other)]), "localhost,127.0.0.1,::1", "{other}");
        }
    }

    #[test]
    fn a_star_is_everything() {
        let everything = |list| is_everything(&[("NO_PROXY", list)].into_iter().collect());
        assert!(everything("a,*") && !everything("*.example.org"));
    }
}
