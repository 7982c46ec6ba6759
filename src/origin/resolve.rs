//! Resolves names with the system's resolver, on the blocking pool, behind a small cache.
//!
//! The cache keeps answers for half a minute and failures for five seconds: a build requests from one host a thousand
//! times, and a failing resolver should not be queried a thousand times. It does not follow TTLs, which the system's
//! resolver knows but `getaddrinfo` does not return.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use moka::Expiry;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::error::Fault;
use crate::target::Host;

/// How long an answer is used. Registries move between addresses within minutes, not seconds.
const KEPT: Duration = Duration::from_secs(30);
/// How long a failure is cached.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// Maximum number of cached names; each takes at most a page of memory.
const NAMES: u64 = 1024;
/// Maximum number of concurrent look-ups. A dead resolver blocks a thread for half a minute, and the store needs those
/// threads too.
const AT_ONCE: usize = 32;

type Answer = Result<Arc<[SocketAddr]>, Box<str>>;

/// The system's resolver, and its recent answers.
#[derive(Debug)]
pub(super) struct Resolver {
    known: Cache<Box<str>, Answer>,
    at_once: Arc<Semaphore>,
}

#[derive(Debug)]
struct Kept;

impl Expiry<Box<str>, Answer> for Kept {
    fn expire_after_create(
        &self,
        _name: &Box<str>,
        answer: &Answer,
        _now: std::time::Instant,
    ) -> Option<Duration> {
        Some(if answer.is_ok() { KEPT } else { FAILURE_KEPT })
    }
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            known: Cache::builder().max_capacity(NAMES).expire_after(Kept).build(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The addresses of `host`, with `port`, in the system's order (RFC 6724). Never empty.
    pub(super) async fn addresses(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, Fault> {
        let name = match host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
            Host::Name(name) => name,
        };
        let answer = match self.known.get(name) {
            Some(answer) => answer,
            None => self.ask(name).await,
        };
        match answer {
            Ok(addresses) => {
                Ok(addresses.iter().map(|address| SocketAddr::new(address.ip(), port)).collect())
            }
            Err(why) => Err(Fault::Unresolved(why)),
        }
    }

    async fn ask(&self, name: &str) -> Answer {
        let Ok(permit) = Arc::clone(&self.at_once).acquire_owned().await else {
            return Err("the resolver is closed".into());
        };
        // While this waited for a permit, another look-up may have cached the answer.
        if let Some(answer) = self.known.get(name) {
            return answer;
        }
        let (known, name): (_, Box<str>) = (self.known.clone(), name.into());
        // The caller may give up long before `getaddrinfo` does. So the thread holds the permit and caches the answer
        // for later callers.
        let asked = tokio::task::spawn_blocking(move || {
            let answer = look_up(&name);
            known.insert(name, answer.clone());
            drop(permit);
            answer
        });
        asked.await.unwrap_or_else(|error| Err(error.to_string().into()))
    }

    /// Caches addresses for a name that no resolver knows, for tests.
    #[cfg(test)]
    pub(super) fn remember(&self, name: &str, addresses: &[SocketAddr]) {
        self.known.insert(name.into(), Ok(addresses.into()));
    }
}

/// Queries the system's resolver. Blocking.
fn look_up(name: &str) -> Answer {
    // Port 0, because the port is not part of the query.
    let addresses = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err("it has no address".into());
    }
    Ok(found.into())
}
