//! Name constraints (RFC 5280 §4.2.1.10): the hosts for which a CA may sign.
//!
//! They are in the CA's own certificate, where clients enforce them: an attacker with the stolen key can pose only as
//! these hosts. larder reads them back, so that a request for another host gets an explanation instead of a failed
//! handshake.

use std::net::IpAddr;

use ipnet::IpNet;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use rustls::pki_types::CertificateDer;
use x509_parser::error::X509Error;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::GeneralName;

use crate::outcome::witness::{AWAY, PROBES};
use crate::target::Host;

/// The hosts for which a CA may sign: its own certificate and those of the CAs above it may each limit them (RFC 5280 §6.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits(Vec<Constraints>);

/// The limits in one certificate. A kind of host (names, addresses) of which nothing is permitted is not limited, except by what
/// is excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Constraints {
    permitted: Subtrees,
    excluded: Subtrees,
    /// Whether there are limits for the names of subjects.
    of_subjects: bool,
}

/// One of the two lists of subtrees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subtrees {
    /// These names and all below them; of a name with a leading dot only those below. The empty name stands for all.
    names: Vec<String>,
    networks: Vec<Network>,
}

/// An address and its mask, both of the length of an address of their version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Network {
    address: Vec<u8>,
    mask: Vec<u8>,
}

impl Limits {
    /// The limits in the certificates of a CA and of those above it.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Result<Self, X509Error> {
        let mut limits = Vec::new();
        for der in chain {
            let (_, certificate) = parse_x509_certificate(der)?;
            if let Some(constraints) = certificate.name_constraints()? {
                limits.push(Constraints::of(constraints.value));
            }
        }
        Ok(Self(limits))
    }

    /// Whether the CA may sign for `host`.
    pub(super) fn allow(&self, host: &Host) -> bool {
        self.0.iter().all(|constraints| constraints.allow(host))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a certificate may be refused because of its subject.
    pub(super) fn are_of_subjects(&self) -> bool {
        self.0.iter().any(|constraints| constraints.of_subjects)
    }

    /// The permitted hosts as text.
    pub(super) fn shown(&self) -> String {
        self.0.iter().map(Constraints::shown).collect::<Vec<_>>().join(", within ")
    }
}

impl Constraints {
    fn of(constraints: &x509_parser::extensions::NameConstraints<'_>) -> Self {
        let trees = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
        let [permitted, excluded] = trees.map(|trees| Subtrees::of(trees.as_deref()));
        let mut all = trees.into_iter().flatten().flatten();
        let of_subjects = all.any(|tree| matches!(tree.base, GeneralName::DirectoryName(_)));
        Self { permitted, excluded, of_subjects }
    }

    fn allow(&self, host: &Host) -> bool {
        let limited = match host {
            Host::Name(_) => !self.permitted.names.is_empty(),
            Host::Address(_) => !self.permitted.networks.is_empty(),
        };
        (!limited || self.permitted.contain(host)) && !self.excluded.contain(host)
    }

    fn shown(&self) -> String {
        match (self.permitted.shown(), self.excluded.shown()) {
            (permitted, _) if !permitted.is_empty() => permitted,
            (_, excluded) if !excluded.is_empty() => format!("all hosts except {excluded}"),
            _ => "all hosts".to_owned(),
        }
    }
}

impl Subtrees {
    fn of(trees: Option<&[x509_parser::extensions::GeneralSubtree<'_>]>) -> Self {
        let mut subtrees = Self::default();
        for tree in trees.into_iter().flatten() {
            // No alternative name in a leaf is of any other kind.
            if let GeneralName::DNSName(name) = &tree.base {
                subtrees.names.push(name.to_ascii_lowercase());
            } else if let GeneralName::IPAddress(bytes) = &tree.base {
                let (address, mask) = bytes.split_at(bytes.len() / 2);
                subtrees.networks.push(Network { address: address.to_vec(), mask: mask.to_vec() });
            }
        }
        subtrees
    }

    fn shown(&self) -> String {
        let names = self.names.iter().map(|name| match name.as_str() {
            "" => "every name".to_owned(),
            name => name.to_owned(),
        });
        names.chain(self.networks.iter().map(Network::shown)).collect::<Vec<_>>().join(", ")
    }

    fn contain(&self, host: &Host) -> bool {
        match host {
            Host::Name(name) => self.names.iter().any(|tree| {
                let rest = name.strip_suffix(tree.as_str());
                rest.is_some_and(|rest| match tree.chars().next() {
                    None => true,
                    Some('.') => !rest.is_empty(),
                    Some(_) => rest.is_empty() || rest.ends_with('.'),
                })
            }),
            Host::Address(address) => {
                self.networks.iter().any(|network| network.contains(*address))
            }
        }
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let octets = octets(address);
        let parts = octets.iter().zip(&self.address).zip(&self.mask);
        octets.len() == self.address.len()
            && octets.len() == self.mask.len()
            && parts.into_iter().all(|((octet, part), mask)| octet & mask == part & mask)
    }

    fn shown(&self) -> String {
        let of = |bytes: &[u8]| -> Option<IpAddr> {
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
        };
        let network = of(&self.address).zip(of(&self.mask));
        let network = network.and_then(|(address, mask)| IpNet::with_netmask(address, mask).ok());
        network.map_or_else(|| "an unreadable range of addresses".to_owned(), |net| net.to_string())
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The constraints of a CA for the `permitted` names and the doctor's probes; `None` for all names.
pub(super) fn constraints(permitted: &[String]) -> Option<NameConstraints> {
    if permitted.is_empty() {
        return None;
    }
    let names = permitted.iter().map(String::as_str).chain([PROBES, AWAY]);
    let names = names.map(|name| GeneralSubtree::DnsName(name.trim_start_matches("*.").to_owned()));
    Some(NameConstraints {
        permitted_subtrees: names.collect(),
        // Without an exclusion, addresses would be unrestricted, because no permitted subtree is of their kind.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits of a CA with these constraints, read back from its certificate.
    fn limits(permitted: &[GeneralSubtree], excluded: &[GeneralSubtree]) -> Limits {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: permitted.to_vec(),
            excluded_subtrees: excluded.to_vec(),
        });
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Limits::of(&[certificate.der().clone()]).unwrap()
    }

    fn name(name: &str) -> GeneralSubtree {
        GeneralSubtree::DnsName(name.to_owned())
    }

    fn allowed(limits: &Limits) -> Vec<&'static str> {
        let hosts = ["example.org", "a.example.org", "other.example", "192.0.2.1", "[2001:db8::1]"];
        hosts.into_iter().filter(|host| limits.allow(&Host::parse(host).unwrap())).collect()
    }

    /// RFC 5280 §4.2.1.10: each kind of host has limits of its own. An imported CA may have any of them.
    #[test]
    fn each_kind_of_host_has_its_own_limits() {
        let net = GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([192, 0, 2, 0], 24));
        let names = ["example.org", "a.example.org", "other.example"];
        let both = limits(&[name("example.org"), net.clone()], &[]);
        assert_eq!(allowed(&both), ["example.org", "a.example.org", "192.0.2.1"]);
        assert_eq!(both.shown(), "example.org, 192.0.2.0/24");
        assert_eq!(
            allowed(&limits(std::slice::from_ref(&net), &[])),
            [&names[..], &["192.0.2.1"]].concat()
        );
        assert_eq!(allowed(&limits(&[], &[net])), [&names[..], &["[2001:db8::1]"]].concat());
        let below = limits(&[], &[name("a.example.org")]);
        assert_eq!(allowed(&below).len(), 4);
        // The empty name stands for all.
        assert_eq!(allowed(&limits(&[name("")], &[])).len(), 5);
        assert_eq!(allowed(&limits(&[], &[name("")])), ["192.0.2.1", "[2001:db8::1]"]);
        // The control: larder's own limits permit names and no address.
        let own = constraints(&["example.org".to_owned()]).unwrap();
        let own = limits(&own.permitted_subtrees, &own.excluded_subtrees);
        assert_eq!(allowed(&own), ["example.org", "a.example.org"]);
    }
}
