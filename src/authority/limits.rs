//! Name constraints (RFC 5280 §4.2.1.10): the hosts for which a CA may sign.
//!
//! They are in the CA's own certificate, where clients enforce them: an attacker with the stolen key can pose only as
//! these hosts. larder reads them back, so that a request for another host gets an explanation instead of a failed
//! handshake.

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::outcome::witness::{AWAY, PROBES};
use crate::target::Host;

/// The names for which a CA may sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// These names and all below them; empty for all.
    permitted: Vec<String>,
    excluded: Vec<String>,
}

impl Limits {
    /// The limits in a certificate.
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

    /// Whether the CA may sign for `host`. A CA that is limited to names signs for no address.
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

    /// The permitted names as text.
    pub(super) fn shown(&self) -> String {
        self.permitted.join(", ")
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
