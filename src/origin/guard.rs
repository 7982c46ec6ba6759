//! The address guard: which addresses a request may reach (DESIGN §4 "Internal addresses"). Prevents SSRF.
//!
//! larder runs inside a network and requests URLs that untrusted parties chose: a client, a redirect, a document. Every
//! address is judged after resolution and before a byte is sent. The connection goes to the judged address and the name
//! is not resolved again, so a second DNS answer (DNS rebinding) changes nothing. IP literals and every redirect hop
//! are judged in the same way.
//!
//! Not here: who may use larder at all (`clients.allow`), and which hosts and ports policy refuses.
//!
//! Sources: the special-purpose registries of RFC 6890; RFC 4291 §2.5.5 (mapped), RFC 6052 and 8215 (NAT64), RFC 3056
//! (6to4), RFC 4380 (Teredo).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::Reach;
use super::error::Fault;
use crate::config::Live;
use crate::target::Host;

/// The class of an address; its text completes refusals after "is".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A public address.
    Public,
    /// An address of an inner network: open to clients of private networks.
    Private(&'static str),
    /// An address of this machine or link, or reserved: closed to all requests.
    Shut(&'static str),
}

/// Judges addresses by the current configuration.
#[derive(Debug)]
pub(super) struct Guard {
    config: Live,
    /// Where larder listens. An unspecified address stands for every local one.
    own: ArcSwap<Vec<SocketAddr>>,
}

impl Guard {
    pub(super) fn new(config: Live) -> Self {
        let own = ArcSwap::from_pointee(config.get().listen.clone());
        Self { config, own }
    }

    pub(super) fn set_own(&self, own: Vec<SocketAddr>) {
        self.own.store(Arc::new(own));
    }

    /// The addresses of `host` that `reach` may use. Closed ones among them are left out. If all are closed, the error
    /// explains the first.
    pub(super) fn choose(
        &self,
        host: &Host,
        addresses: &[SocketAddr],
        reach: Reach,
    ) -> Result<Vec<SocketAddr>, Fault> {
        let mut refusal = None;
        let mut open = Vec::with_capacity(addresses.len());
        for address in addresses {
            match self.judge(host, *address, reach) {
                Ok(()) => open.push(*address),
                Err(fault) => {
                    refusal.get_or_insert(fault);
                }
            }
        }
        match refusal {
            Some(fault) if open.is_empty() => Err(fault),
            _ => Ok(open),
        }
    }

    fn judge(&self, host: &Host, address: SocketAddr, reach: Reach) -> Result<(), Fault> {
        let (class, detour) = match self.class_of(address) {
            Class::Public => return Ok(()),
            Class::Private(_) if reach.opens_private() => return Ok(()),
            Class::Private(class) if reach.from_public => {
                (class, " because a public origin pointed there")
            }
            Class::Private(class) => (class, " for clients outside private networks"),
            Class::Shut(class) => (class, ""),
        };
        let ip = address.ip();
        let seen = inner_v4(ip).map_or(ip, IpAddr::V4);
        let allowed = &self.config.get().allow_nets;
        if allowed.iter().any(|net| net.contains(&ip) || net.contains(&seen)) {
            return Ok(());
        }
        let what = match host {
            Host::Address(_) => host.to_string(),
            Host::Name(name) => format!("{name} at {ip}"),
        };
        Err(Fault::Shut {
            what: what.into(),
            class,
            detour,
            mend: IpNet::from(seen).to_string().into(),
        })
    }

    /// Judges what is known without resolution, for requests through an upstream proxy that resolves: IP literals, and
    /// the names that every resolver must treat as loopback (RFC 6761 §6.3).
    pub(super) fn judge_unresolved(
        &self,
        host: &Host,
        port: u16,
        reach: Reach,
    ) -> Result<Class, Fault> {
        let address = match host {
            Host::Address(address) => *address,
            Host::Name(name) if &**name == "localhost" || name.ends_with(".localhost") => {
                Ipv4Addr::LOCALHOST.into()
            }
            Host::Name(_) => return Ok(Class::Public),
        };
        let address = SocketAddr::new(address, port);
        self.judge(host, address, reach)?;
        Ok(self.class_of(address))
    }

    /// The class of an address; includes larder's own addresses.
    pub(super) fn class_of(&self, address: SocketAddr) -> Class {
        if self.is_own(address) {
            Class::Shut("larder's own address")
        } else {
            class_of(address.ip())
        }
    }

    /// Whether larder itself listens at the address.
    pub(super) fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.own.load().iter().any(|own| {
            own.port() == address.port()
                && (own.ip().to_canonical() == ip || own.ip().is_unspecified() && is_local(ip))
        })
    }
}

/// Whether the address belongs to this machine: only then can a socket be bound to it. Called only when the port is
/// larder's.
fn is_local(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Classifies an address by the registries. An IPv4 address embedded in an IPv6 one is classified as IPv4.
pub(super) fn class_of(ip: IpAddr) -> Class {
    match ip {
        IpAddr::V4(v4) => class_of_v4(v4),
        // A Teredo address embeds two addresses, the server's and the client's. The stricter class counts.
        IpAddr::V6(v6) if v6.segments().starts_with(&[0x2001, 0]) => {
            let [_, _, _, _, a, b, c, d, ..] = v6.octets();
            class_of_v4(Ipv4Addr::new(a, b, c, d))
                .max(inner_v4(ip).map_or(Class::Public, class_of_v4))
        }
        IpAddr::V6(v6) => inner_v4(ip).map_or_else(|| class_of_v6(v6), class_of_v4),
    }
}

fn class_of_v4(ip: Ipv4Addr) -> Class {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, ..) => Class::Shut("an unspecified address"),
        (127, ..) => Class::Shut("a loopback address"),
        (169, 254, 169) if ip.octets() == [169, 254, 169, 254] => {
            Class::Shut("a cloud's metadata address")
        }
        (169, 254, _) => Class::Shut("a link-local address"),
        // Two clouds have their metadata service outside link-local: one in the shared address space, one in public
        // space.
        (100, 100, 100) if ip.octets() == [100, 100, 100, 200] => {
            Class::Shut("a cloud's metadata address")
        }
        (168, 63, 129) if ip.octets() == [168, 63, 129, 16] => {
            Class::Shut("a cloud's metadata address")
        }
        (224..=239, ..) => Class::Shut("a multicast address"),
        (240..=255, ..) if ip.is_broadcast() => Class::Shut("the broadcast address"),
        (240..=255, ..) => Class::Shut("a reserved address"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Class::Private("a private address"),
        (100, 64..=127, _) => Class::Private("a shared (carrier's) address"),
        (198, 18..=19, _) => Class::Private("a benchmarking address"),
        (192, 0, 0) => Class::Private("a protocol-assignment address"),
        // Documentation ranges are ordinary: DESIGN §4.
        _ => Class::Public,
    }
}

fn class_of_v6(ip: Ipv6Addr) -> Class {
    let [first, second, ..] = ip.segments();
    match first {
        _ if ip.is_unspecified() => Class::Shut("an unspecified address"),
        _ if ip.is_loopback() => Class::Shut("a loopback address"),
        _ if ip == METADATA_V6 => Class::Shut("a cloud's metadata address"),
        // The rest of ::/96 was for IPv4-compatible addresses, deprecated long ago (RFC 4291 §2.5.5.1).
        0 if second == 0 && ip.segments().get(..6) == Some(&[0; 6]) => {
            Class::Shut("a reserved address")
        }
        0xfe80..=0xfebf => Class::Shut("a link-local address"),
        0xff00..=0xffff => Class::Shut("a multicast address"),
        0xfec0..=0xfeff => Class::Private("a site-local address"),
        0xfc00..=0xfdff => Class::Private("a unique local address"),
        _ => Class::Public,
    }
}

/// The only metadata address among the unique local ones.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The IPv4 address that an IPv6 address embeds, to which packets may end up being sent.
fn inner_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let octets = v6.octets();
    let at = |start: usize| {
        let four = octets.get(start..start + 4)?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?))
    };
    let last = at(12)?;
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => {
            Some(last)
        }
        [0x2002, ..] => at(2),
        // The client's address, every bit inverted (RFC 4380 §4).
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!last.to_bits())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const OUTSIDE: Reach = Reach { internal_client: false, from_public: false };
    const INSIDE: Reach = Reach { internal_client: true, from_public: false };
    const CAUSED: Reach = Reach { internal_client: true, from_public: true };

    fn guard(allow: &[&str]) -> Guard {
        Guard::new(Live::new(Config {
            allow_nets: allow.iter().map(|net| net.parse().unwrap()).collect(),
            listen: vec!["192.0.2.9:3142".parse().unwrap(), "[::]:3143".parse().unwrap()],
            ..Config::default()
        }))
    }

    fn at(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 443)
    }

    fn opens(guard: &Guard, ip: &str, reach: Reach) -> bool {
        let host = Host::Address(ip.parse().unwrap());
        guard.choose(&host, &[at(ip)], reach).is_ok()
    }

    /// The last ten are embedded in IPv6: mapped, NAT64 (both prefixes), 6to4, Teredo (client and server).
    const SHUT: &str = "0.0.0.0 0.1.2.3 127.0.0.1 127.255.255.255 169.254.0.1 169.254.169.254 \
        100.100.100.200 168.63.129.16 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: \
        ::1 ::2 ::7f00:1 fe80::1 febf::1 ff02::1 fd00:ec2::254 ::ffff:127.0.0.1 \
        ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::7f00:1 \
        64:ff9b:1:2:3:4:7f00:1 2002:7f00:1:: 2002:a9fe:a9fe::1 \
        2001:0:c633:6401:0:0:80ff:fffe 2001:0:7f00:1:0:0:3fff:fdfe";
    const PRIVATE: &str = "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 198.18.0.1 \
        198.19.255.255 192.0.0.8 fc00::1 fd12::1 fec0::1 ::ffff:10.0.0.1 64:ff9b::a00:1 \
        2002:c0a8:101::";
    /// Documentation ranges count as public.
    const PUBLIC: &str = "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 \
        169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 \
        192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2600::1 2a00::1 ::ffff:1.1.1.1 \
        64:ff9b::101:101 2002:101:101:: 192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1";

    #[test]
    fn every_class_opens_to_whom_it_should() {
        let guard = guard(&[]);
        for ip in SHUT.split(' ') {
            for reach in [OUTSIDE, INSIDE, CAUSED] {
                assert!(!opens(&guard, ip, reach), "{ip} {reach:?}");
            }
        }
        for ip in PRIVATE.split(' ') {
            assert!(opens(&guard, ip, INSIDE), "{ip}");
            assert!(!opens(&guard, ip, OUTSIDE) && !opens(&guard, ip, CAUSED), "{ip}");
        }
        for ip in PUBLIC.split(' ') {
            for reach in [OUTSIDE, INSIDE, CAUSED] {
                assert!(opens(&guard, ip, reach), "{ip} {reach:?}");
            }
        }
    }

    #[test]
    fn allow_nets_opens_what_it_names_in_every_spelling_and_no_more() {
        let guard = guard(&["127.0.0.0/8", "10.1.0.0/16"]);
        for ip in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.1.2.3"] {
            assert!(opens(&guard, ip, OUTSIDE) && opens(&guard, ip, CAUSED), "{ip}");
        }
        for ip in ["::1", "10.2.0.1", "169.254.169.254"] {
            assert!(!opens(&guard, ip, CAUSED), "{ip}");
        }
    }

    #[test]
    fn a_refusal_names_host_class_and_mend() {
        let name = Host::parse("files.example.org").unwrap();
        let fault = guard(&[]).choose(&name, &[at("10.0.0.7")], CAUSED).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "files.example.org at 10.0.0.7 is a private address, which larder does not reach because a public origin \
             pointed there; if it should, say `allow_nets = [\"10.0.0.7/32\"]`"
        );
    }

    /// DNS returns an internal address among public ones: only the public ones are used.
    #[test]
    fn of_several_addresses_the_open_ones_are_used() {
        let guard = guard(&[]);
        let name = Host::parse("files.example.org").unwrap();
        let all = [at("127.0.0.1"), at("1.1.1.1"), at("::1")];
        assert_eq!(guard.choose(&name, &all, OUTSIDE).unwrap(), [at("1.1.1.1")]);
        assert!(guard.choose(&name, &[at("127.0.0.1"), at("::1")], OUTSIDE).is_err());
    }

    #[test]
    fn larders_own_address_is_shut_at_its_own_port() {
        let guard = guard(&[]);
        let shut = |address: &str| {
            guard.class_of(address.parse().unwrap()) == Class::Shut("larder's own address")
        };
        assert!(shut("192.0.2.9:3142") && shut("[::ffff:192.0.2.9]:3142"));
        assert!(!shut("192.0.2.9:443") && !shut("192.0.2.8:3142"));
        // An unspecified address stands for every local one.
        assert!(shut("127.0.0.1:3143") && !shut("192.0.2.8:3143"));
        guard.set_own(vec!["192.0.2.8:1".parse().unwrap()]);
        assert!(shut("192.0.2.8:1") && !shut("192.0.2.9:3142"));
    }

    #[test]
    fn behind_a_proxy_literals_and_localhost_are_still_judged() {
        let guard = guard(&[]);
        let judge =
            |host: &str, reach| guard.judge_unresolved(&Host::parse(host).unwrap(), 443, reach);
        for host in ["localhost", "a.localhost", "127.0.0.1", "[::1]", "169.254.169.254"] {
            assert!(judge(host, INSIDE).is_err(), "{host}");
        }
        assert_eq!(judge("files.example.org", CAUSED), Ok(Class::Public));
        assert!(judge("10.0.0.1", CAUSED).is_err() && judge("10.0.0.1", INSIDE).is_ok());
    }
}
