//! Name constraints (RFC 5280 §4.2.1.10): which hosts a CA may speak for.
//!
//! They stand in the CA's own certificate, where clients enforce them: whoever steals the key can pose as these hosts and
//! as no others. Here they are read back, so that a host outside is refused in words and not by a failed handshake.

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::outcome::witness::{AWAY, PROBES};
use crate::target::Host;

/// What a CA may sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Names, and all below them; empty for all.
    permitted: Vec<String>,
    excluded: Vec<String>,
}

impl Limits {
    /// Those of a certificate.
    pub(super) fn of(
        certificate: &X509Certificate<'_>,
    ) -> Result<Self, x509_parser::error::X509Error> {
        let Some(constraints) = certificate.name_constraints()? else {
            return Ok(Self::default());
        };
        let names = |trees: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| {
            let names = trees.iter().flatten().filter_map(|tree| {
                let GeneralName::DNSName(name) = tree.base else { return None };
                Some(name.trim_start_matches('.').to_ascii_lowercase())
            });
            names.collect()
        };
        let constraints = constraints.value;
        Ok(Self {
            permitted: names(&constraints.permitted_subtrees),
            excluded: names(&constraints.excluded_subtrees),
        })
    }

    /// Whether it may sign for `host`. A CA for names signs for no address.
    pub(super) fn allow(&self, host: &Host) -> bool {
        let Host::Name(name) = host else {
            return self.permitted.is_empty();
        };
        let below = |tree: &String| {
            let rest = name.strip_suffix(tree.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        (self.permitted.is_empty() || self.permitted.iter().any(below))
            && !self.excluded.iter().any(below)
    }

    /// The names, for people.
    pub(super) fn shown(&self) -> String {
        self.permitted.join(", ")
    }
}

/// Those of a CA that is made for `permitted` names, and what the doctor asks for; none for all names.
pub(super) fn constraints(permitted: &[String]) -> Option<NameConstraints> {
    if permitted.is_empty() {
        return None;
    }
    let names = permitted.iter().map(String::as_str).chain([PROBES, AWAY]);
    let names = names.map(|name| GeneralSubtree::DnsName(name.trim_start_matches("*.").to_owned()));
    Some(NameConstraints {
        permitted_subtrees: names.collect(),
        // A kind of name that no permitted tree is of would be free.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    })
}
