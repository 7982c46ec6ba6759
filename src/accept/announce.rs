//! `announce`: announces larder on the local network, by multicast DNS (RFC 6762) and DNS-SD (RFC 6763).
//!
//! The service type is `_apt_proxy._tcp`, which apt-cacher-ng announces as well: squid-deb-proxy-client and
//! auto-apt-proxy look for it, both through Avahi; auto-apt-proxy 18 looks for `_apt-proxy._tcp` first. The responder
//! is part of larder, in a thread of its own, so that it works in a container without Avahi; next to an Avahi it
//! shares port 5353.
//!
//! It announces only on the interfaces on which larder listens. It is off by default: every machine that receives the
//! announcement may connect, and `clients.allow` decides which may use larder.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{Error, IfKind, ServiceDaemon, ServiceInfo};

/// The service types for which clients of apt proxies look. RFC 6335 §5.1 does not allow the underscore inside the
/// first name, but programs use it; the second name is to replace it.
const SERVICES: [&str; 2] = ["_apt_proxy._tcp.local.", "_apt-proxy._tcp.local."];

/// How long withdrawing the announcement may take. Clients that miss it forget larder when its records expire.
const FAREWELL: Duration = Duration::from_secs(1);

/// A running announcement, which [`Announcement::end`] withdraws.
pub struct Announcement {
    responder: ServiceDaemon,
    names: Vec<String>,
}

impl std::fmt::Debug for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcement").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Announcement {
    /// Announces a larder that listens at `addresses` on the machine called `host`. The addresses with the first
    /// one's port are announced, because a service has one port. `None` if `addresses` is empty.
    pub fn start(addresses: &[SocketAddr], host: &str) -> Result<Option<Self>, Error> {
        let Some(port) = addresses.first().map(SocketAddr::port) else {
            return Ok(None);
        };
        let addresses: Vec<IpAddr> =
            addresses.iter().filter(|address| address.port() == port).map(SocketAddr::ip).collect();
        let everywhere = addresses.iter().any(IpAddr::is_unspecified);
        // One label of characters allowed in host names. The prefix avoids collisions with the names of other
        // machines.
        let label: String = host
            .split('.')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(40)
            .collect();
        let label = format!("larder-{label}");
        let target = format!("{label}.local.");
        let none: &[(&str, &str)] = &[];
        let info = |service| {
            if everywhere {
                let info = ServiceInfo::new(service, &label, &target, "", port, none)?;
                Ok(info.enable_addr_auto())
            } else {
                ServiceInfo::new(service, &label, &target, addresses.as_slice(), port, none)
            }
        };
        let infos = SERVICES.into_iter().map(info).collect::<Result<Vec<_>, Error>>()?;
        let responder = ServiceDaemon::new()?;
        responder.disable_interface(IfKind::All)?;
        if everywhere {
            responder.enable_interface(IfKind::All)?;
            responder.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        } else {
            let interfaces: Vec<IfKind> = addresses.iter().copied().map(IfKind::Addr).collect();
            responder.enable_interface(interfaces)?;
        }
        let mut names = Vec::new();
        for info in infos {
            names.push(info.get_fullname().to_owned());
            responder.register(info)?;
        }
        Ok(Some(Self { responder, names }))
    }

    /// The full names of the service.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Withdraws the announcement and ends the responder.
    pub async fn end(self) {
        // Errors are ignored: a responder that has ended already announces nothing.
        let farewell = async {
            for name in &self.names {
                if let Ok(said) = self.responder.unregister(name) {
                    let _gone = said.recv_async().await;
                }
            }
            if let Ok(ended) = self.responder.shutdown() {
                let _gone = ended.recv_async().await;
            }
        };
        let _late = tokio::time::timeout(FAREWELL, farewell).await;
    }
}
