//! The queries over HTTP that are answered at a time.
//!
//! Each may walk the whole store on a thread of its own, and its answer waits in memory until the client has read it. So their
//! number is limited, and no client may take all places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::client;

/// Queries at a time.
pub(super) const AT_ONCE: usize = 4;

/// Queries of one client at a time.
pub(super) const AT_ONCE_EACH: usize = 2;

/// The queries that are being answered, by client.
#[derive(Debug, Default)]
pub(super) struct Queries(Mutex<HashMap<IpAddr, usize>>);

/// The place of one query. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct QueryPlace {
    queries: Arc<Queries>,
    client: IpAddr,
}

impl Queries {
    /// A place for a query from `address`; `None` if all places, or all that one client may take, are taken.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<QueryPlace> {
        let client = client(address);
        let mut taken = self.lock();
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= AT_ONCE_EACH || taken.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        taken.insert(client, own + 1);
        drop(taken);
        Some(QueryPlace { queries: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // The map stays usable even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueryPlace {
    fn drop(&mut self) {
        let mut taken = self.queries.lock();
        if let Some(own) = taken.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_takes_all_places() {
        let queries = Arc::<Queries>::default();
        let take = |address: &str| queries.take(address.parse().unwrap());
        let first: Vec<_> = (0..AT_ONCE_EACH).map(|_| take("2001:db8::1").unwrap()).collect();
        assert!(take("2001:db8::2").is_none(), "the same network");
        let others: Vec<_> =
            (AT_ONCE_EACH..AT_ONCE).map(|number| take(&format!("192.0.2.{number}"))).collect();
        assert!(others.iter().all(Option::is_some), "other clients are answered");
        assert!(take("192.0.2.99").is_none(), "all places are taken");
        drop(first);
        assert!(take("2001:db8::2").is_some());
        drop(others);
        assert!(queries.lock().is_empty());
    }
}
