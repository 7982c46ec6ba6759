//! Connects TCP to the first address that answers: Happy Eyeballs (RFC 8305).
//!
//! Addresses alternate between the families, beginning with the resolver's first. Each gets a quarter of a second
//! before the next one is tried in parallel, and a failure starts the next at once. So a host without an IPv6 route, or
//! one dead address among four, causes no noticeable delay. The caller sets the time limit.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::error::Fault;

/// The delay between attempts that RFC 8305 §5 recommends.
const STAGGER: Duration = Duration::from_millis(250);
/// Keepalive interval. A peer that vanished is noticed some minutes later, after this and the system's number of
/// probes. Needed where nothing else limits a wait: a long poll may be silent for hours.
const KEEPALIVE: Duration = Duration::from_mins(1);
/// Maximum number of addresses tried. A name with more is a misconfiguration, or an attempt to use larder as a port
/// scanner.
const ATTEMPTS: usize = 8;

/// Connects to one of `addresses`, which the guard has allowed.
pub(super) async fn dial(addresses: Vec<SocketAddr>) -> Result<(TcpStream, SocketAddr), Fault> {
    let mut waiting = alternate(addresses).into_iter().take(ATTEMPTS);
    let mut trying = FuturesUnordered::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.next() {
            trying.push(attempt(address));
        } else if trying.is_empty() {
            return Err(last.unwrap_or_else(|| Fault::Unreachable("it has no address".into())));
        }
        let stagger = async {
            if waiting.len() == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(STAGGER).await;
        };
        tokio::select! {
            Some(done) = trying.next() => match done {
                Ok(connected) => return Ok(connected),
                Err(fault) => last = Some(fault),
            },
            () = stagger => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> Result<(TcpStream, SocketAddr), Fault> {
    let stream =
        TcpStream::connect(address).await.map_err(|error| match Errno::from_io_error(&error) {
            // Out of file descriptors or memory: larder's own limit, not a fault of the origin.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                Fault::Busy(error.to_string().into())
            }
            _ => Fault::Unreachable(format!("{address}: {error}").into()),
        })?;
    // Both options are optional: a socket that accepts neither still works.
    stream.set_nodelay(true).ok();
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).ok();
    // Keepalive probes only idle connections. This detects one on which a sent request is never acknowledged.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(&stream).set_tcp_user_timeout(Some(KEEPALIVE * 2)).ok();
    Ok((stream, address))
}

/// The resolver's order, with the address families taking turns.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, two): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut one, mut two) = (one.into_iter(), two.into_iter());
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(one.next());
        all.extend(two.next());
        if all.len() == before {
            return all;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    #[test]
    fn families_take_turns_from_the_resolvers_first() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|a| a.parse().unwrap()).collect()
        };
        assert_eq!(
            alternate(parse(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"])),
            parse(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1"])
        );
        assert_eq!(
            alternate(parse(&["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"])),
            parse(&["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"])
        );
    }

    #[tokio::test]
    async fn a_dead_v6_address_does_not_keep_from_v4() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dead = SocketAddr::new("::1".parse().unwrap(), port);
        let (_, reached) = dial(vec![dead, listener.local_addr().unwrap()]).await.unwrap();
        assert!(reached.is_ipv4());
        // The control: alone, the dead address fails and is named in the error.
        let fault = dial(vec![dead]).await.unwrap_err();
        assert!(fault.to_string().contains("[::1]"), "{fault}");
    }

    /// A full accept queue drops SYNs, as a firewall does: the first address neither accepts nor refuses.
    #[tokio::test]
    async fn a_black_hole_does_not_keep_from_the_next_address() {
        let hole = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        hole.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        hole.listen(1).unwrap();
        let dark = hole.local_addr().unwrap().as_socket().unwrap();
        let fillers: Vec<_> = (0..4)
            .map(|_| {
                let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                filler.connect(&dark.into()).ok();
                filler
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alone = tokio::time::timeout(Duration::from_secs(1), dial(vec![dark])).await;
        assert!(alone.is_err(), "the black hole answered: the test shows nothing");
        // The kernel gives up the hole after two minutes, so an answer within 30 seconds did not wait for it.
        let both = dial(vec![dark, listener.local_addr().unwrap()]);
        let (_, reached) =
            tokio::time::timeout(Duration::from_secs(30), both).await.unwrap().unwrap();
        assert_eq!(reached, listener.local_addr().unwrap());
        drop(fillers);
    }

    #[tokio::test]
    async fn no_address_is_an_error() {
        assert!(dial(Vec::new()).await.is_err());
    }
}
