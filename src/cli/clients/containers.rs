//! How containers on this machine reach a larder: never at loopback, which in a container is the container itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::bail;

/// The host name that containers are given for the machine on which they run. `.internal` is never a public name.
pub(in crate::cli) const MACHINE: &str = "larder.internal";

/// The URL at which containers on this machine reach a larder that listens at `addresses`, and the host name that
/// must be added to the containers for it.
pub(in crate::cli) fn proxy_from(
    addresses: &[SocketAddr],
) -> anyhow::Result<(String, Option<&'static str>)> {
    match outside(addresses) {
        Some(address) if address.ip().is_unspecified() => {
            Ok((format!("http://{MACHINE}:{}", address.port()), Some(MACHINE)))
        }
        Some(address) => Ok((format!("http://{address}"), None)),
        None => {
            let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), crate::config::PORT);
            bail!(
                "the running larder listens on loopback only, which in a container is the container itself; let it \
                 listen on {nowhere} or the bridge's address as well, or name it with --proxy http://HOST:PORT"
            )
        }
    }
}

/// The address among `addresses` that containers can reach: the wildcard address if there is one, otherwise the first
/// that is not loopback, which may be the bridge's.
pub(in crate::cli) fn outside(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    if let Some(everywhere) = addresses.iter().find(|address| address.ip().is_unspecified()) {
        return Some(*everywhere);
    }
    // IPv4 first: bridges seldom route IPv6.
    let outside = addresses.iter().filter(|address| !address.ip().is_loopback());
    outside.min_by_key(|address| address.is_ipv6()).copied()
}

/// This machine's address towards other machines, for builders that cannot be given a host name. Nothing is sent: the
/// kernel only looks up the route to an address that is reserved for documentation (RFC 5737).
pub(in crate::cli) fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers(addresses: &[&str]) -> anyhow::Result<(String, Option<&'static str>)> {
        proxy_from(&addresses.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn containers_find_their_machine_by_a_name_or_at_an_address_of_its() {
        assert_eq!(
            containers(&["127.0.0.1:1", "[::]:3142"]).unwrap(),
            ("http://larder.internal:3142".to_owned(), Some(MACHINE))
        );
        assert_eq!(
            containers(&["[fd00::1]:2", "127.0.0.1:1", "172.17.0.1:3"]).unwrap(),
            ("http://172.17.0.1:3".to_owned(), None)
        );
    }

    #[test]
    fn a_larder_on_loopback_is_not_shown_to_containers() {
        for addresses in [&["127.0.0.1:3142", "[::1]:3142"][..], &[]] {
            let error = containers(addresses).unwrap_err().to_string();
            assert!(error.contains("--proxy") && error.contains("0.0.0.0:3142"), "{error}");
        }
    }
}
