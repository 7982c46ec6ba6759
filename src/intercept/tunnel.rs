//! Raw tunnels: bytes are copied both ways, and neither parsed nor stored.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};

use super::grant::{Refusal, Refused};
use super::transport::Transport;
use super::visitors::Door;
use crate::clock::Stopwatch;
use crate::origin::Duplex;
use crate::outcome::Outcome;
use crate::outcome::ended::Ended;
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::reply::Body;
use crate::target::Host;

/// The size of the copy buffer for each direction, in bytes.
const COPY: usize = 64 * 1024;

/// The identity of a tunnel for the log, and where it is counted.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) peer: SocketAddr,
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) job: Option<Arc<Job>>,
    pub(crate) door: Arc<Door>,
}

impl Route {
    /// Refuses a request inside this tunnel before its target is known.
    pub(crate) fn refuse(
        &self,
        refusal: &Refusal,
        method: &str,
        since: Stopwatch,
    ) -> Response<Body> {
        let (host, whom) = (self.host.to_string(), format!("{}:{}", self.host, self.port));
        refusal.write_down(&Refused {
            metrics: &self.metrics,
            peer: self.peer,
            method,
            host: &host,
            whom: &whom,
            since,
            job: self.job.as_deref(),
        })
    }
}

/// Copies until both sides have ended, one has failed, nothing has moved for `idle`, or the tunnel must make room for others.
/// `early`: the bytes that the origin sent before it was known that this is a tunnel.
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
    // A tunnel counts as busy, because it has a time limit of its own. It makes room after all other connections (`Quiet`).
    let _running = activity.begin();
    activity.tunnels(!client.seen().is_empty());
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
        () = route.door.leaves() => {
            client.line().cut();
            (true, "it made way for others (clients.max_connections)".to_owned())
        }
    };
    let (up, down) = activity.moved();
    let (up, down) = (up.saturating_sub(up_before), down.saturating_sub(down_before));
    let (host, whom) = (route.host.to_string(), format!("{}:{}", route.host, route.port));
    // The log line of a tunnel has the fields of a request's line, and also the bytes sent up, why it is a tunnel, and how it
    // ended.
    Ended {
        host: &host,
        why: Some(why),
        status: 200,
        bytes: down,
        fetched: down,
        took: stopwatch.elapsed(),
        cut,
        tunnel: Some((up, &ended)),
        job: route.job.as_deref(),
        ..Ended::new(Outcome::Tunnel, route.peer.ip(), "CONNECT", &whom)
    }
    .write_down(&route.metrics);
}
