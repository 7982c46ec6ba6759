//! The flights under way, and the role of each request in one: it leads, or it follows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use super::share::Gaps;
use super::{End, Flight, Reader};
use crate::clock::Time;
use crate::target::{Key, Target};

/// The role of a request in a flight.
#[derive(Debug)]
pub enum Permit {
    /// The request is the first, and must start the fill. If the lead is dropped without an end, the flight has failed.
    Lead(Lead),
    /// The request reads a flight that another request leads.
    Follow(Arc<Flight>),
}

/// The duty to bring a flight to its end.
#[derive(Debug)]
pub struct Lead {
    /// The flight.
    pub flight: Arc<Flight>,
    flights: Arc<Flights>,
    key: Key,
    /// A second key under which the flight can be joined.
    opened: OnceLock<Key>,
}

impl Lead {
    /// Lets requests for `key` join as well: the answer turned out to be theirs too.
    pub fn open_to(&self, key: Key) {
        if self.opened.set(key).is_ok() {
            let mut opened = self.flights.opened();
            opened.entry(key).or_insert_with(|| Arc::clone(&self.flight));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flight.finish(End::broken("the fill was broken off; try again"));
        let mut under_way = self.flights.lock();
        if under_way.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            under_way.remove(&self.key);
        }
        drop(under_way);
        if let Some(key) = self.opened.get() {
            let mut opened = self.flights.opened();
            if opened.get(key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
                opened.remove(key);
            }
        }
        self.flights.landed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The flights under way, by key.
#[derive(Debug)]
pub struct Flights {
    gaps: Arc<Gaps>,
    under_way: Mutex<HashMap<Key, Arc<Flight>>>,
    /// The flights that can be joined under a second key.
    opened: Mutex<HashMap<Key, Arc<Flight>>>,
    landed: watch::Sender<u64>,
    next_reader: AtomicU64,
}

impl Flights {
    /// No flight is under way. `gaps`: the gaps of all targets.
    pub fn new(gaps: Arc<Gaps>) -> Arc<Self> {
        Arc::new(Self {
            gaps,
            under_way: Mutex::default(),
            opened: Mutex::default(),
            landed: watch::Sender::new(0),
            next_reader: AtomicU64::new(0),
        })
    }

    /// The gaps of all targets.
    pub fn gaps(&self) -> &Arc<Gaps> {
        &self.gaps
    }

    /// A flight that no request joins: that of a pass.
    pub fn alone(&self, target: &Target, now: Time) -> Arc<Flight> {
        Arc::new(Flight::new(target.clone(), now, self.gaps.share(target)))
    }

    /// Joins the flight of `key`, or starts one. A flight that began before `since` is too old: its readers keep it, and a new
    /// flight starts.
    pub fn join(
        self: &Arc<Self>,
        key: Key,
        target: &Target,
        since: Option<Time>,
        now: Time,
    ) -> Permit {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.get(&key).filter(|flight| flight.may_be_joined(since)) {
            return Permit::Follow(Arc::clone(flight));
        }
        let flight = self.alone(target, now);
        under_way.insert(key, Arc::clone(&flight));
        let opened = OnceLock::new();
        Permit::Lead(Lead { flight, flights: Arc::clone(self), key, opened })
    }

    /// Whether there is a flight of `key` that can be joined and did not begin before `since`.
    pub fn is_under_way(&self, key: Key, since: Option<Time>) -> bool {
        self.lock().get(&key).is_some_and(|flight| flight.may_be_joined(since))
    }

    /// The flight that was opened to requests for `key`, unless it began before `since`.
    pub fn open_to(&self, key: Key, since: Option<Time>) -> Option<Arc<Flight>> {
        let flight = Arc::clone(self.opened().get(&key)?);
        let shared = flight.lock();
        let joinable = shared.end.is_none() && shared.is_joinable();
        drop(shared);
        (joinable && since.is_none_or(|since| flight.began >= since)).then_some(flight)
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader to `flight`.
    pub fn reader(&self, flight: &Arc<Flight>) -> Reader {
        let id = self.next_reader.fetch_add(1, Ordering::Relaxed);
        Reader::new(Arc::clone(flight), id)
    }

    /// Adds a reader that waits for the end of `flight` and takes no byte. It keeps the fill going. The window does not wait for
    /// it.
    pub fn waiting(&self, flight: &Arc<Flight>) -> Reader {
        let reader = self.reader(flight);
        reader.stand_behind();
        reader
    }

    /// The number of flights under way.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until no flight is under way.
    pub async fn landed(&self) {
        let mut landed = self.landed.subscribe();
        while self.count() > 0 {
            if landed.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
