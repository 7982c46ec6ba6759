//! The hosts that go around the proxy: what the user said, and this machine itself.

use crate::config::environment::Environment;

/// larder keeps loopback shut, and a build that talks to its own test server is to find it as before.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where commands find the engine whose clients they are. Docker's go through `HTTP_PROXY` to one that is reached by TCP,
/// which is a conversation and no download.
const ENGINES: [&str; 3] = ["DOCKER_HOST", "CONTAINER_HOST", "BUILDKIT_HOST"];

/// The user's list, in either case, in its order and without repetition, [`OWN`], and the hosts of [`ENGINES`].
pub(super) fn merged(environment: &Environment) -> String {
    let mut hosts: Vec<&str> = Vec::new();
    let given = ["no_proxy", "NO_PROXY"].into_iter().filter_map(|name| environment.get(name));
    // Some programs read blanks between hosts as well as commas.
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

/// Whether the user's list sends everything around every proxy, larder among them.
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
