//! `announce`: larder is advertised by DNS-SD where it listens, and only if that is configured. Everything is on loopback.

use std::collections::BTreeMap;

use mdns_sd::{IfKind, ServiceDaemon, ServiceEvent};

use crate::world::{PATIENCE, Proxy, World, larder};

#[tokio::test(flavor = "multi_thread")]
async fn larder_is_announced_to_who_looks_for_a_proxy_for_apt() {
    let world = World::new().await;
    let mut config = larder::config(&world.ca, world.dir().join("announced"));
    config.announce = true;
    let mut announced = Proxy::start(config).await;
    let (port, silent) = (announced.address.port(), world.proxy.address.port());

    let browser = ServiceDaemon::new().unwrap();
    browser.disable_interface(IfKind::All).unwrap();
    browser.enable_interface(IfKind::LoopbackV4).unwrap();
    // The service name that all programs look for, and the one that the latest programs look for.
    let [events, others] = ["_apt_proxy._tcp.local.", "_apt-proxy._tcp.local."]
        .map(|service| browser.browse(service).unwrap());
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let ServiceEvent::ServiceResolved(service) = others.recv_async().await.unwrap()
                && service.get_port() == port
            {
                break;
            }
        }
    })
    .await
    .expect("larder is not announced by the service's other name");
    // Another run of this test may announce another larder at the same time.
    let mut found = BTreeMap::new();
    tokio::time::timeout(PATIENCE, async {
        while !found.contains_key(&port) {
            if let ServiceEvent::ServiceResolved(service) = events.recv_async().await.unwrap() {
                assert!(service.get_addresses().iter().all(mdns_sd::ScopedIp::is_loopback));
                found.insert(service.get_port(), service.get_fullname().to_owned());
            }
        }
    })
    .await
    .expect("larder is not announced");
    assert!(!found.contains_key(&silent), "announced without being asked");

    announced.stop().await;
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let ServiceEvent::ServiceRemoved(_, name) = events.recv_async().await.unwrap()
                && name == found[&port]
            {
                break;
            }
        }
    })
    .await
    .expect("no farewell");
    browser.shutdown().unwrap();
}
