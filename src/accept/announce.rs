//! `announce`: tells the local network where larder is, by multicast DNS (RFC 6762) and DNS-SD (RFC 6763).
//!
//! The service is `_apt_proxy._tcp`, which apt-cacher-ng announces, too: squid-deb-proxy-client and auto-apt-proxy look for
//! it, both through Avahi; auto-apt-proxy 18 looks for `_apt-proxy._tcp` first. The responder is larder's own, in a thread of its own, so that a container without Avahi can
//! announce, too; beside an Avahi it shares port 5353.
//!
//! It is told on the interfaces where larder listens, and nowhere else. It is off unless it is asked for: whoever hears
//! of it may ask larder, and `clients.allow` decides who may use it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{Error, IfKind, ServiceDaemon, ServiceInfo};

/// As apt's proxies are looked for. The underscore is not allowed by RFC 6335 §5.1; it is the name all the same, and the
/// other is what it is to become.
const SERVICES: [&str; 2] = ["_apt_proxy._tcp.local.", "_apt-proxy._tcp.local."];

/// How long the farewell may take. Who misses it forgets larder when its records run out.
const FAREWELL: Duration = Duration::from_secs(1);

/// What has been announced, and is taken back by [`Announcement::end`].
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
    /// Announces a larder that listens at `addresses` on the machine called `host`. All of the addresses with the first
    /// one's port are announced: a service has one port. `None` without any.
    pub fn start(addresses: &[SocketAddr], host: &str) -> Result<Option<Self>, Error> {
        let Some(port) = addresses.first().map(SocketAddr::port) else {
            return Ok(None);
        };
        let addresses: Vec<IpAddr> =
            addresses.iter().filter(|address| address.port() == port).map(SocketAddr::ip).collect();
        let everywhere = addresses.iter().any(IpAddr::is_unspecified);
        // One label, of what host names are made of; a name that is larder's own collides with nobody's.
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

    /// Says farewell and ends the responder.
    pub async fn end(self) {
        // Nobody waits for an answer longer than that, and a responder that is gone already has nothing to say.
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
