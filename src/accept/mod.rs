//! Accepts, serves and drains connections from clients.
//!
//! A listener's loop never ends before the shutdown and never spins: when the process is out of file descriptors it
//! waits a moment. Each connection is one task with one seat (`intercept::visitors`); a panic ends only that
//! connection. The socket's wrapper holds the seat, so a tunnel or an upgraded connection keeps it for as long as it
//! lives.
//!
//! A shutdown lets running answers end for `clients.drain_timeout`; the remaining ones end with a reset, because
//! clients take a quiet close for the end of a body.
//!
//! `outer` handles the requests on a connection, `intercept` those in a tunnel.

pub mod announce;
mod listen;
pub mod mirror;
mod outer;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::body::Incoming;
use hyper::{Request, Response};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::listen::{adopt, bind};
use crate::authority::Authority;
use crate::config::{Clients, Live};
use crate::intercept::{Entry, Seat, Serve, Transport, Visitors, reset};
use crate::limits::{MakesRoom, PLACES};
use crate::outcome::job::{Doorway, Job};
use crate::outcome::metrics::Metrics;
use crate::reply::{Body, Line};

/// How long a listener waits when the process or the system is out of a resource: long enough not to spin, short
/// enough not to be noticed.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The interval between two log lines about failures to accept.
const COMPLAINT: Duration = Duration::from_secs(10);

/// The most connections of clients that may not use larder, which are told so at once: they never take a seat from
/// clients that may.
const STRANGERS: usize = 64;

/// A dead client is noticed after about two minutes of silence, also during a long poll.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_mins(1)).with_interval(Duration::from_secs(10));

/// How long connections that are open after the drain may take to end with a reset.
const RESET: Duration = Duration::from_secs(1);

/// Answers requests for larder itself: in origin form, or to one of its own addresses.
pub trait OwnPages: Send + Sync {
    /// Answers one request.
    fn answer(&self, request: Request<Incoming>, peer: SocketAddr)
    -> BoxFuture<'_, Response<Body>>;
}

/// What the listeners pass connections to.
pub struct Front<S> {
    /// The configuration.
    pub config: Live,
    /// Answers proxy requests.
    pub pipeline: Arc<S>,
    /// Provides certificates.
    pub authority: Arc<Authority>,
    /// Answers requests for larder itself.
    pub own: Arc<dyn OwnPages>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Cancelling it ends the drain at once.
    pub hurry: CancellationToken,
}

impl<S> std::fmt::Debug for Front<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

/// Accepts and serves connections until `shutdown`, then drains: returns when the last one has ended, or
/// `clients.drain_timeout` after the shutdown.
pub async fn run<S: Serve>(
    front: Arc<Front<S>>,
    listeners: Vec<TcpListener>,
    shutdown: impl Future<Output = ()>,
) {
    let gate = Gate::new(&front.config.get().clients);
    let visitors = Arc::downgrade(&gate.visitors);
    front.metrics.watch_limits(Box::new(move || {
        visitors.upgrade().map_or_else(Vec::new, |visitors| visitors.readings())
    }));
    let doorways = front.metrics.jobs.doorways();
    let accepting =
        join_all(listeners.iter().map(|listener| accept_from(&front, listener, &gate, None)));
    tokio::select! {
        _ = accepting => {}
        () = accept_for_jobs(&front, doorways, &gate) => {}
        () = shutdown => {}
    }
    drop(listeners);
    gate.drain(front.config.get().clients.drain_timeout, &front).await;
}

/// The limits and tokens that all listeners share.
struct Gate {
    visitors: Arc<Visitors>,
    strangers: Arc<Semaphore>,
    open: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
    /// Idle tunnels make way for connections to origins as well, for as long as this lives.
    _makes_room: Arc<MakesRoom>,
}

impl Gate {
    fn new(clients: &Clients) -> Self {
        let visitors = Visitors::new(clients);
        let pressed = Arc::downgrade(&visitors);
        let makes_room: Arc<MakesRoom> = Arc::new(move || {
            if let Some(visitors) = pressed.upgrade() {
                visitors.press_tunnels();
            }
        });
        PLACES.upstream.asks(&makes_room);
        Self {
            visitors,
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            open: TaskTracker::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            _makes_room: makes_room,
        }
    }

    async fn drain<S: Serve>(&self, patience: Duration, front: &Front<S>) {
        let deadline = Instant::now() + patience;
        self.drain.cancel();
        self.open.close();
        let out_of_patience = async {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => "clients.drain_timeout is over",
                () = front.hurry.cancelled() => "a second signal ended the drain",
            }
        };
        let why = tokio::select! {
            () = self.open.wait() => None,
            why = out_of_patience => Some(why),
        };
        if let Some(why) = why {
            tracing::warn!(connections = self.open.len(), "{why}: what is still open is reset");
            self.stop.cancel();
            // Upgraded connections belong to the pipeline, and end with the process.
            drop(timeout(RESET, self.open.wait()).await);
        }
        let deadline = deadline.max(Instant::now() + RESET);
        tokio::select! {
            landed = timeout_at(deadline, front.pipeline.drained()) => if landed.is_err() {
                tracing::info!("fills outlived clients.drain_timeout and are dropped");
            },
            () = front.hurry.cancelled() => {}
        }
    }
}

/// Runs the loops of jobs' own listeners, each until its job ends.
async fn accept_for_jobs<S: Serve>(
    front: &Arc<Front<S>>,
    mut doorways: mpsc::Receiver<Doorway>,
    gate: &Gate,
) {
    let accept = async |Doorway { listener, job, until }: Doorway| {
        tokio::select! {
            () = accept_from(front, &listener, gate, Some(&job)) => {}
            () = until.cancelled() => {}
        }
    };
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            doorway = doorways.recv() => match doorway {
                Some(doorway) => open.push(accept(doorway)),
                // In a second run of the same larder, jobs belong to the first run.
                None => return std::future::pending().await,
            },
            Some(()) = open.next(), if !open.is_empty() => {}
        }
    }
}

/// One listener's loop. `job`: the job to which the listener belongs.
async fn accept_from<S: Serve>(
    front: &Arc<Front<S>>,
    listener: &TcpListener,
    gate: &Gate,
    job: Option<&Arc<Job>>,
) {
    let mut complained: Option<Instant> = None;
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client was gone before it was accepted (accept(2)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() > COMPLAINT) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                }
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let config = front.config.get();
        let welcome = is_allowed(&config.clients, peer.ip());
        let door = if welcome { gate.visitors.enter(peer.ip()) } else { None };
        let entry = match &door {
            Some(door) => Entry::Visitor(Arc::clone(door)),
            None if welcome => {
                reset(&socket);
                continue;
            }
            None => match Arc::clone(&gate.strangers).try_acquire_owned() {
                Ok(permit) => Entry::Stranger { _permit: permit },
                Err(_) => continue,
            },
        };
        let seat = Seat::new(entry, gate.open.token(), front.metrics.connection());
        if let Err(error) = prepare(&socket) {
            tracing::debug!(%error, client = %peer, "a client was gone at once");
            continue;
        }
        let visit = outer::ClientConnection {
            front: Arc::clone(front),
            config,
            peer,
            local: socket.local_addr().ok(),
            drain: gate.drain.clone(),
            door,
            job: job.cloned(),
        };
        spawn(gate, visit, socket, seat);
    }
}

/// Starts one connection's task.
fn spawn<S: Serve>(gate: &Gate, visit: outer::ClientConnection<S>, socket: TcpStream, seat: Seat) {
    let line = Line::default();
    let (peer, door) = (visit.peer, visit.door.clone());
    let transport = Transport::new(socket, line.clone(), seat);
    let activity = Arc::clone(transport.activity());
    let stop = gate.stop.clone();
    tokio::spawn(async move {
        let welcome = door.is_some();
        let answered_while = |cut: bool| {
            if cut {
                line.cut();
            }
            activity.is_answering()
        };
        let makes_way = async {
            match &door {
                Some(door) => door.leaves().await,
                None => std::future::pending().await,
            }
            if activity.is_tunnel() {
                // It ends by itself, and writes down how.
                std::future::pending::<()>().await;
            }
            answered_while(activity.is_answering())
        };
        let stopped = async {
            stop.cancelled().await;
            answered_while(true)
        };
        let served = async {
            if welcome {
                visit.serve(transport).await;
            } else {
                visit.turn_away(transport).await;
            }
        };
        // Dropping the first branch closes the socket; the mark that was set before makes it a reset.
        tokio::select! {
            () = served => {}
            answering = stopped => if answering {
                tracing::warn!(client = %peer, "an answer is cut off, because larder stops; its client can ask again");
            },
            answering = makes_way => {
                tracing::debug!(client = %peer, answering, "a connection makes way for others");
            }
        }
        // An upgrade has taken the connection away from here; the mark reaches it where it went.
        if let Some(leaving) = door.filter(|_| activity.is_tunnel()).map(|door| door.leaving()) {
            leaving.await;
            line.cut();
        }
    });
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    // Answers are written as a whole; waiting to fill a segment would cost 40 ms for each connection.
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_keepalive(&KEEPALIVE)
}

/// Whether a client may use larder. An IPv4 client of a dual-stack listener appears as `::ffff:192.0.2.1`. It is
/// compared as an IPv4 address; otherwise a rule for `::/0` would admit all of IPv4, and one for `10.0.0.0/8` no
/// client.
fn is_allowed(clients: &Clients, address: IpAddr) -> bool {
    let address = address.to_canonical();
    clients.allow.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests;
