//! The clients that use larder at this moment, by address, and how much each may take.
//!
//! One address must not take everything: not all connections, not all running requests, and not all memory for bytes that wait to
//! be sent. A client is an IPv4 address or an IPv6 /64 network, because whoever has one address of such a network has all of
//! them. Many clients may share one address (a CI host with hundreds of containers), so the limits are wide. What an address
//! holds without using it makes room for what it wants to use:
//!
//! - a new connection that finds no seat closes connections that have been quiet for a while, the longest quiet first, tunnels
//!   after all others: those of its own address, or of the address that has most;
//! - if connections to origins run out, quiet tunnels of the address that has most are closed, because each holds one;
//! - a request that finds no place resets the connection of its address that has most stalled answers;
//! - what still finds no room waits in order of arrival for [`PATIENCE`], and then gets a 503.
//!
//! A connection without a seat stands in the lobby: it may request larder's own pages, and anything else once it has a seat.
//! Lobby and seats together use no more file descriptors than `limits.rs` gives to clients.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::activity::{Activity, Quiet, now};
use super::buffered::Buffered;
use super::grant::Refusal;
use crate::config::Clients;
use crate::limits::{LOOKS_EVERY, PATIENCE, PLACES, Reading, client};

/// The most connections in the lobby. One address may have a quarter of them. Beyond these limits a new connection closes the one
/// that has been there longest without a request.
const LOBBY: usize = 256;

/// How many quiet connections are closed when one seat is needed, and how soon this may happen again. Finding them costs more
/// than opening a connection, so an attacker who floods must not be able to cause a search each time.
const CLOSED_AT_ONCE: usize = 16;
const CLOSES_EVERY: Duration = Duration::from_millis(50);

/// How long a connection must have been quiet before it may be closed for others: longer than a handshake, or than the pause
/// between two requests of a build.
const QUIET: Duration = Duration::from_secs(2);

/// The same for a tunnel. Only its two ends know whether it is in use, so the time is longer than servers usually stay silent in
/// the middle of an exchange. Unit tests really wait, so theirs is shorter.
const QUIET_TUNNEL: Duration =
    if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };

/// The same for a tunnel whose client sent the last bytes: its server may be working on the answer, and some servers need more
/// than a minute for the first byte.
const QUIET_ASKING: Duration = Duration::from_mins(2);

/// All clients of one listener.
pub(crate) struct Visitors {
    limits: Limits,
    seats: Arc<Semaphore>,
    lobby: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Residents>>,
    next: AtomicU64,
    /// When quiet connections were last closed, and when quiet tunnels alone were.
    closed: AtomicU64,
    closed_tunnels: AtomicU64,
    /// Bytes that wait to be sent, for all addresses.
    buffered: Arc<AtomicU64>,
    refused: Refused,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    seats: usize,
    seats_each: usize,
    requests_each: usize,
    buffered: u64,
    buffered_each: u64,
    lobby: usize,
}

#[derive(Debug, Default)]
struct Refused {
    connections: AtomicU64,
    requests: AtomicU64,
    lobby: AtomicU64,
}

/// An address with connections. It stays in the table until the last of them has ended: were it removed while one arrives, the
/// next one would find limits of its own.
struct Residents {
    connections: usize,
    house: Arc<AddressUsage>,
}

/// What one address uses.
pub(crate) struct AddressUsage {
    seats: Arc<Semaphore>,
    /// The connections in the lobby, in order of arrival.
    lobby: Mutex<Vec<Weak<Door>>>,
    requests: Arc<Semaphore>,
    buffered: Arc<Buffered>,
    limits: Limits,
    doors: Mutex<HashMap<u64, Weak<Door>>>,
}

/// One connection, from its beginning until its socket is closed.
pub(crate) struct Door {
    number: u64,
    address: IpAddr,
    house: Arc<AddressUsage>,
    all: Arc<Visitors>,
    activity: Arc<Activity>,
    /// What it holds: a seat, or a place in the lobby.
    holds: Mutex<Holds>,
    /// Cancelled when the connection must make room.
    leave: CancellationToken,
}

enum Holds {
    Lobby { _place: OwnedSemaphorePermit },
    Seat { _all: OwnedSemaphorePermit, _of_house: OwnedSemaphorePermit },
}

/// A request's place, until its answer was taken or abandoned.
pub(crate) type RequestPlace = OwnedSemaphorePermit;

impl fmt::Debug for Visitors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitors").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for AddressUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressUsage").field("buffered", &self.buffered).finish_non_exhaustive()
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Visitors {
    /// Starts without clients.
    pub(crate) fn new(clients: &Clients) -> Arc<Self> {
        let lobby = LOBBY.min(PLACES.clients / 4).max(4);
        let most = PLACES.clients.saturating_sub(lobby + slack(lobby)).max(1);
        let seats = clients.max_connections.min(most);
        let limits = Limits {
            seats,
            seats_each: clients.connections_per_address.min(each(seats)),
            requests_each: clients.requests_per_address.min(Semaphore::MAX_PERMITS),
            buffered: clients.max_buffered,
            buffered_each: clients.buffered_per_address,
            lobby,
        };
        if seats < clients.max_connections {
            tracing::warn!(
                clients.max_connections,
                seats,
                "the limit of open files (ulimit -n) leaves room for fewer connections than clients.max_connections"
            );
        }
        Arc::new(Self {
            limits,
            seats: Arc::new(Semaphore::new(seats)),
            lobby: Arc::new(Semaphore::new(lobby + slack(lobby))),
            addresses: Mutex::default(),
            next: AtomicU64::new(1),
            closed: AtomicU64::new(0),
            closed_tunnels: AtomicU64::new(0),
            buffered: Arc::default(),
            refused: Refused::default(),
        })
    }

    /// A new connection from `address`; `None` if there is no room even in the lobby.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Door>> {
        let address = client(address);
        let house = self.arrive(address);
        let holds = house.try_seat(&self.seats).or_else(|| {
            self.press(&house);
            self.wait_in(&house)
        });
        let Some(holds) = holds else {
            self.refused.lobby.fetch_add(1, Relaxed);
            self.depart(address);
            return None;
        };
        let door = Arc::new(Door {
            number: self.next.fetch_add(1, Relaxed),
            address,
            activity: Arc::new(Activity::of(Arc::clone(&house.buffered))),
            house: Arc::clone(&house),
            all: Arc::clone(self),
            holds: Mutex::new(holds),
            leave: CancellationToken::new(),
        });
        lock(&house.doors).insert(door.number, Arc::downgrade(&door));
        if !door.has_seat() {
            lock(&house.lobby).push(Arc::downgrade(&door));
        }
        Some(door)
    }

    /// All addresses. The table is copied, so that no connection waits for its lock during a search.
    fn houses(&self) -> Vec<Arc<AddressUsage>> {
        lock(&self.addresses).values().map(|residents| Arc::clone(&residents.house)).collect()
    }

    /// Counts a connection of `address`, until [`Self::depart`].
    fn arrive(&self, address: IpAddr) -> Arc<AddressUsage> {
        let mut addresses = lock(&self.addresses);
        let new = || Residents { connections: 0, house: self.house() };
        let residents = addresses.entry(address).or_insert_with(new);
        residents.connections += 1;
        Arc::clone(&residents.house)
    }

    /// Removes an address that has no connection any more.
    fn depart(&self, address: IpAddr) {
        let mut addresses = lock(&self.addresses);
        let Some(residents) = addresses.get_mut(&address) else { return };
        residents.connections = residents.connections.saturating_sub(1);
        if residents.connections == 0 {
            addresses.remove(&address);
        }
    }

    fn house(&self) -> Arc<AddressUsage> {
        Arc::new(AddressUsage {
            seats: Arc::new(Semaphore::new(self.limits.seats_each)),
            lobby: Mutex::default(),
            requests: Arc::new(Semaphore::new(self.limits.requests_each)),
            buffered: Arc::new(Buffered::new(
                Arc::clone(&self.buffered),
                self.limits.buffered_each,
                self.limits.buffered,
            )),
            limits: self.limits,
            doors: Mutex::default(),
        })
    }

    /// Room in the lobby. A connection there without a request makes room.
    fn wait_in(&self, house: &Arc<AddressUsage>) -> Option<Holds> {
        if house.stands_in_lobby() >= (self.limits.lobby / 4).max(1) && !house.clear_lobby() {
            return None;
        }
        if self.lobby.available_permits() <= slack(self.limits.lobby) {
            let houses = self.houses();
            let most = houses.into_iter().max_by_key(|house| lock(&house.lobby).len());
            most.filter(|house| house.clear_lobby())?;
        }
        let place = Arc::clone(&self.lobby).try_acquire_owned().ok()?;
        Some(Holds::Lobby { _place: place })
    }

    /// Closes quiet connections: of `house` if its own seats are taken, otherwise of the address that has most.
    fn press(&self, house: &Arc<AddressUsage>) {
        let now = now();
        if !is_due(&self.closed, now) {
            return;
        }
        let crowded = if house.seats.available_permits() == 0 {
            Arc::clone(house)
        } else {
            let houses = self.houses();
            let most = houses.into_iter().max_by_key(|house| house.seats_taken());
            most.unwrap_or_else(|| Arc::clone(house))
        };
        crowded.close_quiet(|quiet| Some(now.saturating_sub(millis(must_be_quiet(quiet)))));
    }

    /// Closes quiet tunnels of the address that has most, because connections to origins have run out and each tunnel holds one.
    pub(crate) fn press_tunnels(&self) {
        let now = now();
        if is_due(&self.closed_tunnels, now) {
            self.close_tunnels(|quiet| Some(now.saturating_sub(millis(must_be_quiet(quiet)))));
        }
    }

    fn close_tunnels(&self, latest: impl Fn(Quiet) -> Option<u64>) {
        let latest = |quiet| if quiet == Quiet::Kept { None } else { latest(quiet) };
        let most = self.houses().into_iter().max_by_key(|house| house.quiet(latest).len());
        if let Some(house) = most {
            house.close_quiet(latest);
        }
    }

    /// The state of the limits.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let houses = self.houses();
        let most =
            |of: fn(&AddressUsage) -> u64| houses.iter().map(|house| of(house)).max().unwrap_or(0);
        let limits = self.limits;
        let reading = |name, in_use, most: u64, refused: Option<&AtomicU64>| Reading {
            name,
            in_use,
            most,
            refused: refused.map_or(0, |count| count.load(Relaxed)),
        };
        let taken =
            |free: &Semaphore, of: usize| of.saturating_sub(free.available_permits()) as u64;
        vec![
            reading(
                "connections",
                taken(&self.seats, limits.seats),
                limits.seats as u64,
                Some(&self.refused.connections),
            ),
            reading(
                "connections_per_address",
                most(|house| house.seats_taken() as u64),
                limits.seats_each as u64,
                None,
            ),
            reading(
                "waiting_connections",
                taken(&self.lobby, limits.lobby + slack(limits.lobby)),
                limits.lobby as u64,
                Some(&self.refused.lobby),
            ),
            reading(
                "requests_per_address",
                most(AddressUsage::requests_taken),
                limits.requests_each as u64,
                Some(&self.refused.requests),
            ),
            reading("buffered_bytes", self.buffered.load(Relaxed), limits.buffered, None),
            reading(
                "buffered_bytes_per_address",
                most(|house| house.buffered.bytes()),
                limits.buffered_each,
                None,
            ),
        ]
    }
}

impl AddressUsage {
    fn try_seat(&self, all: &Arc<Semaphore>) -> Option<Holds> {
        Some(Holds::Seat {
            _of_house: Arc::clone(&self.seats).try_acquire_owned().ok()?,
            _all: Arc::clone(all).try_acquire_owned().ok()?,
        })
    }

    fn seats_taken(&self) -> usize {
        self.limits.seats_each.saturating_sub(self.seats.available_permits())
    }

    fn requests_taken(&self) -> u64 {
        self.limits.requests_each.saturating_sub(self.requests.available_permits()) as u64
    }

    fn doors(&self) -> Vec<Arc<Door>> {
        lock(&self.doors).values().filter_map(Weak::upgrade).collect()
    }

    /// Closes at most `CLOSED_AT_ONCE` connections with a seat, in the order of [`Quiet`], and within one kind the longest quiet
    /// first. `latest`: the time since which a connection of this kind must have been quiet; `None` closes none of the kind.
    fn close_quiet(&self, latest: impl Fn(Quiet) -> Option<u64>) {
        let mut quiet = self.quiet(latest);
        quiet.sort_unstable_by_key(|(quiet, since, _)| (*quiet, *since));
        for (_, _, door) in quiet.into_iter().take(CLOSED_AT_ONCE) {
            door.leave.cancel();
        }
    }

    /// The connections with a seat that have been quiet since `latest`, as [`Self::close_quiet`] has it.
    fn quiet(&self, latest: impl Fn(Quiet) -> Option<u64>) -> Vec<(Quiet, u64, Arc<Door>)> {
        let mut doors: Vec<Arc<Door>> = self.doors();
        doors.retain(|door| door.has_seat() && !door.leave.is_cancelled());
        let quiet = doors.into_iter().filter_map(|door| {
            let (quiet, since) = (door.activity.quiet()?, door.activity.quiet_since());
            (since <= latest(quiet)?).then_some((quiet, since, door))
        });
        quiet.collect()
    }

    fn in_lobby(&self) -> Vec<Arc<Door>> {
        lock(&self.lobby).iter().filter_map(Weak::upgrade).collect()
    }

    fn stands_in_lobby(&self) -> usize {
        let mut lobby = lock(&self.lobby);
        lobby.retain(|door| {
            let door = door.upgrade();
            door.is_some_and(|door| !door.has_seat() && !door.leave.is_cancelled())
        });
        lobby.len()
    }

    /// Closes the connection that has been in the lobby longest without a request. Returns whether there was one.
    fn clear_lobby(&self) -> bool {
        let idle = self.in_lobby().into_iter().find(|door| {
            !door.has_seat() && !door.leave.is_cancelled() && !door.activity.is_answering()
        });
        if let Some(door) = &idle {
            door.leave.cancel();
        }
        idle.is_some()
    }

    /// Resets the connection that has most stalled answers.
    fn reset_standing(&self) {
        let mut doors = self.doors();
        doors.retain(|door| !door.leave.is_cancelled());
        let standing = doors.into_iter().max_by_key(|door| door.activity.standing());
        if let Some(door) = standing.filter(|door| door.activity.standing() > 0) {
            door.leave.cancel();
        }
    }
}

impl Door {
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Whether it has a seat and is not in the lobby.
    pub(crate) fn has_seat(&self) -> bool {
        matches!(*lock(&self.holds), Holds::Seat { .. })
    }

    /// Resolves when the connection must make room.
    pub(crate) async fn leaves(&self) {
        self.leave.cancelled().await;
    }

    /// Like [`Self::leaves`], as a future that its holder owns: after an upgrade another task may have the connection. It also
    /// resolves when the connection has ended.
    pub(crate) fn leaving(&self) -> WaitForCancellationFutureOwned {
        self.leave.clone().cancelled_owned()
    }

    /// Takes a seat, if the connection has none yet.
    pub(crate) async fn sit(&self) -> Result<(), Refusal> {
        if self.has_seat() {
            return Ok(());
        }
        let sitting = async {
            let of_house = Arc::clone(&self.house.seats).acquire_owned().await.ok()?;
            let all = Arc::clone(&self.all.seats).acquire_owned().await.ok()?;
            Some(Holds::Seat { _all: all, _of_house: of_house })
        };
        let press = || self.all.press(&self.house);
        if let Some(Some(seat)) = wait_for(sitting, press).await {
            *lock(&self.holds) = seat;
            return Ok(());
        }
        self.all.refused.connections.fetch_add(1, Relaxed);
        let limits = self.all.limits;
        Err(Refusal::busy(format!(
            "all connections are in use: {} in all (clients.max_connections), of {} at most {} \
             (clients.connections_per_address); try again in a moment",
            limits.seats, self.address, limits.seats_each,
        )))
    }

    /// A place for a request, for as long as its answer lasts.
    pub(crate) async fn request(&self) -> Result<RequestPlace, Refusal> {
        if let Ok(place) = Arc::clone(&self.house.requests).try_acquire_owned() {
            return Ok(place);
        }
        let waiting = Arc::clone(&self.house.requests).acquire_owned();
        if let Some(Ok(place)) = wait_for(waiting, || self.house.reset_standing()).await {
            return Ok(place);
        }
        self.all.refused.requests.fetch_add(1, Relaxed);
        Err(Refusal::busy(format!(
            "{} requests of {} are being answered, as many as one address may have at a time \
             (clients.requests_per_address); try again in a moment",
            self.all.limits.requests_each, self.address,
        )))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.leave.cancel();
        lock(&self.house.doors).remove(&self.number);
        self.all.depart(self.address);
    }
}

/// Waits for `what` in order of arrival, at most for [`PATIENCE`], and meanwhile calls `room` repeatedly to make room.
async fn wait_for<T>(what: impl Future<Output = T>, room: impl Fn()) -> Option<T> {
    let mut what = pin!(timeout(PATIENCE, what));
    loop {
        room();
        tokio::select! {
            had = &mut what => return had.ok(),
            () = sleep(LOOKS_EVERY) => {}
        }
    }
}

/// Whether connections may be closed at `now`, in milliseconds; `last` is when some were closed last.
fn is_due(last: &AtomicU64, now: u64) -> bool {
    let before = last.load(Relaxed);
    let due = before == 0 || now.saturating_sub(before) >= millis(CLOSES_EVERY);
    if due {
        last.store(now.max(1), Relaxed);
    }
    due
}

/// How long a connection of this kind must have been quiet before it may be closed for others.
const fn must_be_quiet(quiet: Quiet) -> Duration {
    match quiet {
        Quiet::Kept => QUIET,
        Quiet::Tunnel => QUIET_TUNNEL,
        Quiet::Asking => QUIET_ASKING,
    }
}

/// The most seats of one address: never all of them, whatever is configured.
fn each(seats: usize) -> usize {
    (seats - seats / 8).max(1)
}

/// Extra places in the lobby, because connections that are closed take a moment to go.
fn slack(lobby: usize) -> usize {
    lobby / 4
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
