//! Raw tunnels: bytes copied both ways, nothing read, nothing kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};

use super::transport::Transport;
use crate::clock::Stopwatch;
use crate::origin::Duplex;
use crate::outcome::Outcome;
use crate::outcome::metrics::{Direction, Metrics};
use crate::target::Host;

/// For each direction.
const COPY: usize = 64 * 1024;

/// Which tunnel it is, for the log, and where it is counted.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) peer: SocketAddr,
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) metrics: Arc<Metrics>,
}

/// Copies until both sides have ended, one has failed, or nothing has moved for `idle`. `early` is what the origin said before
/// it was known that this is a tunnel.
pub(crate) async fn copy(
    mut client: Transport,
    mut upstream: Box<dyn Duplex>,
    early: &[u8],
    route: &Route,
    why: &str,
    idle: Duration,
) {
    let stopwatch = Stopwatch::start();
    let activity = Arc::clone(client.activity());
    // It has a time limit of its own, and never makes way as a quiet connection does.
    let _running = activity.begin();
    let (up_before, down_before) = activity.moved();
    let up_before = up_before.saturating_sub(client.seen().len() as u64);
    let copied = async {
        client.write_all(early).await?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY, COPY).await
    };
    let (cut, ended) = tokio::select! {
        copied = copied => match copied {
            Ok(_) => (false, "both sides ended".to_owned()),
            Err(error) => (true, error.to_string()),
        },
        () = activity.standstill(idle) => {
            (true, "nothing moved for too long (clients.idle_timeout)".to_owned())
        }
    };
    let (up, down) = activity.moved();
    let (up, down) = (up.saturating_sub(up_before), down.saturating_sub(down_before));
    route.metrics.ended(Outcome::Tunnel, None, "");
    route.metrics.bytes(Direction::ToClient, down);
    route.metrics.bytes(Direction::FromOrigin, down);
    // A tunnel's line has the fields of a request's, and says besides what was sent, why it is one, and how it ended.
    tracing::info!(
        target: "larder::request",
        outcome = %Outcome::Tunnel,
        proof = %"-",
        status = 200_u16,
        bytes = down,
        sent = up,
        ms = u64::try_from(stopwatch.elapsed().as_millis()).unwrap_or(u64::MAX),
        cut,
        client = %route.peer.ip(),
        why,
        ended,
        "CONNECT {}:{}", route.host, route.port,
    );
}
