//! How many file descriptors this process has, and how they are shared out.
//!
//! A process without a free descriptor cannot read its own store: no body, no record, no promise. So larder counts the
//! descriptors that clients and origins make it open before it opens them, with a share for each kind. The shares
//! together leave a reserve for the ledger, records, claim segments, temporary files, the resolver and larder's
//! listening socket. When a share is used up, new work of that kind waits for a moment or fails with 503; the other
//! kinds continue.
//!
//! Descriptors belong to the process, not to one [`crate::Larder`], and so do these limits. A [`Tally`] is for things
//! that larder only counts and refuses beyond a maximum, without waiting.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The `Retry-After` value, in seconds, of a request refused for lack of capacity. A shortage mostly ends within
/// seconds, and a build tool that had to wait longer would give up.
pub const RETRY_AFTER: u64 = 5;

/// How long work waits for a place before it is refused. It is shorter than clients' time-outs for the first byte of a
/// response. Unit tests really wait, so theirs is shorter.
pub const PATIENCE: Duration =
    if cfg!(test) { Duration::from_millis(400) } else { Duration::from_secs(5) };

/// How often work that waits for a place checks whether something can make room by now.
pub const LOOKS_EVERY: Duration = Duration::from_millis(500);

/// The descriptor limit to assume where the system sets none.
const UNLIMITED: u64 = 1 << 20;

/// The maximum reserve, which is otherwise a quarter of the descriptors. It suffices because the store's own open files
/// are bounded.
const MOST_RESERVE: usize = 512;

/// The places of this process.
pub static PLACES: LazyLock<Places> = LazyLock::new(|| {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED);
    Places::of(usize::try_from(limit).unwrap_or(usize::MAX))
});

/// The shares of the file descriptors.
#[derive(Debug)]
pub struct Places {
    /// The descriptors that no share may use.
    pub reserve: usize,
    /// The maximum number of client connections; `clients.max_connections` may set a lower one. The listener counts
    /// them.
    pub clients: usize,
    /// Connections to origins and to proxies on the way to them.
    pub upstream: Limit,
    /// Bodies: open stored ones, and those being received.
    pub files: Limit,
}

impl Places {
    /// Divides `limit` descriptors. Half of what is not reserved is for clients, because each client connection may
    /// lead to one origin connection or one open file.
    #[must_use]
    pub fn of(limit: usize) -> Self {
        let reserve = (limit / 4).min(MOST_RESERVE);
        let shared = limit - reserve;
        let (clients, upstream) = (shared / 2, shared / 4);
        Self {
            reserve,
            clients,
            upstream: Limit::new("upstream_connections", upstream),
            files: Limit::new("open_bodies", shared - clients - upstream),
        }
    }
}

/// A limited number of places, each held by a [`Place`].
#[derive(Debug)]
pub struct Limit {
    name: &'static str,
    most: usize,
    free: Arc<Semaphore>,
    refused: AtomicU64,
    /// Places of files that their creator has dropped while other holders still read them.
    lingering: Mutex<Vec<(Weak<File>, Place)>>,
    makers: Makers,
}

/// A callback that closes what is idle, called when a place is wanted and none is free.
pub type MakesRoom = dyn Fn() + Send + Sync;

/// The callbacks that can make room.
#[derive(Default)]
struct Makers(Mutex<Vec<Weak<MakesRoom>>>);

impl fmt::Debug for Makers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Makers")
    }
}

/// A place under a [`Limit`], freed on drop.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The current state of a limit, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The name of the limit.
    pub name: &'static str,
    /// How much of it is in use. For a limit per client address: by the address that uses most.
    pub in_use: u64,
    /// The maximum.
    pub most: u64,
    /// The number of refusals since the start.
    pub refused: u64,
}

impl Limit {
    /// A limit of `most` places.
    #[must_use]
    pub fn new(name: &'static str, most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            name,
            most,
            free: Arc::new(Semaphore::new(most)),
            refused: AtomicU64::new(0),
            lingering: Mutex::default(),
            makers: Makers::default(),
        }
    }

    /// From now on, and as long as `maker` lives, it is called while work waits for a place and none is free.
    pub fn asks(&self, maker: &Arc<MakesRoom>) {
        let mut makers = self.makers.0.lock().unwrap_or_else(PoisonError::into_inner);
        makers.retain(|maker| maker.strong_count() > 0);
        makers.push(Arc::downgrade(maker));
    }

    fn make_room(&self) {
        let makers = self.makers.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for maker in makers.iter().filter_map(Weak::upgrade) {
            maker();
        }
    }

    /// A place, if one is free and no task waits for it.
    pub fn try_take(&self) -> Option<Place> {
        let free = || Arc::clone(&self.free).try_acquire_owned().ok();
        let permit = free().or_else(|| {
            self.tidy();
            free()
        })?;
        Some(Place { _permit: permit })
    }

    /// Keeps `place` taken until the last reference to `file` is dropped.
    pub fn lingers(&self, file: Weak<File>, place: Place) {
        if file.strong_count() == 0 {
            return;
        }
        self.lingering().push((file, place));
        self.tidy();
    }

    /// Frees the places of files that have been closed.
    fn tidy(&self) {
        self.lingering().retain(|(file, _)| file.strong_count() > 0);
    }

    fn lingering(&self) -> MutexGuard<'_, Vec<(Weak<File>, Place)>> {
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, granted in the order of the calls; waits at most [`PATIENCE`].
    pub async fn take(&self) -> Option<Place> {
        self.tidy();
        let waiting = tokio::time::timeout(PATIENCE, Arc::clone(&self.free).acquire_owned());
        let mut waiting = pin!(waiting);
        loop {
            if self.free.available_permits() == 0 {
                self.make_room();
            }
            tokio::select! {
                waited = &mut waiting => match waited {
                    Ok(Ok(permit)) => return Some(Place { _permit: permit }),
                    Ok(Err(_)) | Err(_) => break,
                },
                () = tokio::time::sleep(LOOKS_EVERY) => {}
            }
        }
        self.refused();
        None
    }

    /// Counts a refusal.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The current state.
    pub fn reading(&self) -> Reading {
        self.tidy();
        let in_use = self.most.saturating_sub(self.free.available_permits());
        Reading {
            name: self.name,
            in_use: in_use as u64,
            most: self.most as u64,
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// The number of places.
    pub const fn most(&self) -> usize {
        self.most
    }
}

/// Interim responses (1xx) before an origin's final response.
pub static INTERIM: Tally = Tally::new("interim_answers");

/// A limit on how much may come at once. Nothing waits for it; any excess is refused.
#[derive(Debug)]
pub struct Tally {
    name: &'static str,
    allowed: AtomicU64,
    highest: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            allowed: AtomicU64::new(0),
            highest: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Sets the maximum that the operator allows.
    pub fn allow(&self, most: u64) {
        self.allowed.store(most, Ordering::Relaxed);
    }

    /// Records that `count` came at once.
    pub fn note(&self, count: u64) {
        self.highest.fetch_max(count, Ordering::Relaxed);
    }

    /// Counts a refusal.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The current state. Its `in_use` is the highest count since the start.
    pub fn reading(&self) -> Reading {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (in_use, most, refused) = (of(&self.highest), of(&self.allowed), of(&self.refused));
        Reading { name: self.name, in_use: in_use.min(most), most, refused }
    }
}

/// Raises the soft limit of open files to the hard limit: each client costs a socket, and most clients cost a second
/// one towards an origin. Returns the limit in force; `None`: no limit. Call it before the first use of [`PLACES`].
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, limit = ?limit.current, "cannot raise the number of open files");
            limit.current
        }
    }
}

/// The unit that counts as one client: an IPv4 address, or an IPv6 /64 network, because whoever has one address of such a network
/// has all of them.
pub fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_the_reserve_whatever_the_limit_is() {
        for limit in [64, 256, 400, 1024, 4096, 20_000, 1 << 20] {
            let places = Places::of(limit);
            let shared = places.clients + places.upstream.most() + places.files.most();
            assert_eq!(shared + places.reserve, limit);
            assert!(places.reserve >= limit.min(2048) / 4, "{limit}: {}", places.reserve);
        }
    }

    #[tokio::test]
    async fn a_limit_gives_what_it_has_and_counts_what_it_refuses() {
        let limit = Limit::new("test", 1);
        let held = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        assert!(limit.take().await.is_none());
        let reading = limit.reading();
        assert_eq!((reading.in_use, reading.most, reading.refused), (1, 1, 1));
        // The callback is called while no place is free.
        let (asked, lent) = (Arc::new(AtomicU64::new(0)), Mutex::new(Some(held)));
        let count = Arc::clone(&asked);
        let maker: Arc<MakesRoom> = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            drop(lent.lock().unwrap().take());
        });
        limit.asks(&maker);
        let held = limit.take().await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        drop(maker);
        assert!(limit.take().await.is_none(), "the control: nobody makes room any more");
        // The control: a place that is freed goes to the waiting task.
        let (taken, ()) = tokio::join!(limit.take(), async { drop(held) });
        assert!(taken.is_some());
    }
}
