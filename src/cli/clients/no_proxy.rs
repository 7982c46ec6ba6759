//! The hosts that go around the proxy: what the user said, and this machine itself.

use crate::config::environment::Environment;

/// larder keeps loopback shut, and a build that talks to its own test server is to find it as before.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The user's list, in either case, in its order and without repetition, and [`OWN`].
pub(super) fn merged(environment: &Environment) -> String {
    let mut hosts: Vec<&str> = Vec::new();
    let given = ["no_proxy", "NO_PROXY"].into_iter().filter_map(|name| environment.get(name));
    // Some programs read blanks between hosts as well as commas.
    for host in given.flat_map(|list| list.split([',', ' '])).chain(OWN) {
        if !host.is_empty() && !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts.join(",")
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
    fn a_star_is_everything() {
        let everything = |list| is_everything(&[("NO_PROXY", list)].into_iter().collect());
        assert!(everything("a,*") && !everything("*.example.org"));
    }
}
