//! The connection pools of fills. Their connections carry only canonical requests.
//!
//! hyper-util's client distinguishes connections only by scheme and authority. So there is one client per lane, so that
//! an index does not wait behind layers on one HTTP/2 connection. There is one per reach, so that a connection made for
//! an internal client serves no request that the guard would have kept from that address. And there are separate ones
//! for requests with a credential, because an origin that authenticates a whole connection could otherwise put private
//! content into public answers. Passes never use these pools (pitfall 38).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::http::Extensions;
use hyper::{Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::ask::Ask;
use super::connect::{ConnectionInfo, Connector, Speaks, Wire};
use super::error::Fault;
use super::sound::MAX_HEADER;
use super::{Lane, Reach};
use crate::target::{Scheme, Target};

/// How long an idle connection is kept. Shorter than common server limits, so that few are found closed.
const IDLE: Duration = Duration::from_mins(1);
/// Maximum number of header fields in a response; some servers send a hundred cookies.
pub(super) const MAX_FIELDS: usize = 1024;

/// Maximum number of unread bytes of one answer on an HTTP/2 connection: 4 MiB allow 80 MB/s at 50 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Maximum number of unread bytes of all answers together on an HTTP/2 connection. Larger than the limit for one
/// answer, so that one whose reader waits for the disk does not block the others. hyper's adaptive windows use one size
/// for both, and would let it block them.
const CONNECTION_WINDOW: u32 = 16 << 20;

type Pool = Client<Connector, Empty<Bytes>>;

/// The clients of the fills.
#[derive(Debug)]
pub(super) struct Fills {
    pub(super) wire: Arc<Wire>,
    public: ByLane,
    private: ByLane,
}

#[derive(Debug)]
struct ByLane {
    metadata: ByReach,
    bulk: ByReach,
}

#[derive(Debug)]
struct ByReach {
    wide: Pool,
    narrow: Pool,
}

impl Fills {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        let idle = wire.config.get().upstream.connections_per_origin;
        let by_reach = || ByReach {
            wide: pool(&wire, WIDE, idle, false),
            narrow: pool(&wire, NARROW, idle, false),
        };
        let by_lane = || ByLane { metadata: by_reach(), bulk: by_reach() };
        let (public, private) = (by_lane(), by_lane());
        Self { wire, public, private }
    }

    /// Sends `ask` for `target` from `reach`. Retries once on a new connection if a reused one turns out to be dead.
    pub(super) async fn send(
        &self,
        ask: &Ask,
        target: &Target,
        reach: Reach,
    ) -> Result<(Response<Incoming>, ConnectionInfo, CaptureConnection), Fault> {
        let mut fresh = ask.fresh_connection;
        loop {
            match self.send_once(ask, target, reach, fresh).await {
                Err((_, true)) if !fresh => fresh = true,
                Err((fault, _)) => {
                    self.wire.tunnelled.note(target.origin(), &fault);
                    return Err(fault);
                }
                Ok(sent) => return Ok(sent),
            }
        }
    }

    /// One attempt. The flag beside a fault tells that the cause may be that the connection was old.
    async fn send_once(
        &self,
        ask: &Ask,
        target: &Target,
        reach: Reach,
        fresh: bool,
    ) -> Result<(Response<Incoming>, ConnectionInfo, CaptureConnection), (Fault, bool)> {
        let proxy = self.wire.routes.of(target.origin(), false);
        let authorization = proxy
            .as_ref()
            .filter(|_| target.origin().scheme == Scheme::Http)
            .and_then(|proxy| proxy.authorization.clone());
        let mut request = ask
            .request(target, &self.wire.pseudonym, authorization)
            .map_err(|fault| (fault, false))?;
        let captured = capture_connection(&mut request);
        let limits = &self.wire.config.get().upstream;
        // The connector has its own limit. This one bounds connecting and waiting for the header together, on any
        // connection.
        let limit = if ask.patient {
            PATIENT
        } else {
            limits.connect_timeout.saturating_add(limits.header_timeout)
        };
        let sending = self.client(ask, reach, fresh, target.is_odd()).request(request);
        let sent = tokio::time::timeout(limit, sending).await;
        let about = about(&captured);
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let asked = about.as_ref().is_some_and(|about| about.asked);
                let aged = about.is_some_and(|about| about.has_answered());
                return Err((Fault::of_exchange(&error, asked), aged));
            }
            Err(_) => {
                if let Some(connection) = &*captured.connection_metadata() {
                    connection.poison();
                }
                let limit = if ask.patient { PATIENT } else { limits.header_timeout };
                return Err((Fault::HeaderTimeout(limit), false));
            }
        };
        let Some(about) = about else {
            return Err((Fault::Unanswered("its connection is unknown".into()), false));
        };
        about.note_answer();
        if let Some(proxy) = proxy.filter(|_| about.speaks == Speaks::H1Proxy)
            && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED
        {
            return Err((proxy.refused(response.status()), false));
        }
        Ok((response, about, captured))
    }

    fn client(&self, ask: &Ask, reach: Reach, fresh: bool, odd: bool) -> Pool {
        let wide = reach.opens_private();
        if fresh || odd {
            // A pool that keeps no idle connection, so that its connection serves only this request.
            return pool(&self.wire, if wide { WIDE } else { NARROW }, 0, odd);
        }
        let by_lane = if ask.credential.is_some() { &self.private } else { &self.public };
        let by_reach = match ask.lane {
            Lane::Metadata => &by_lane.metadata,
            Lane::Bulk => &by_lane.bulk,
        };
        if wide { &by_reach.wide } else { &by_reach.narrow }.clone()
    }
}

/// Maximum number of bytes in one read of an HTTP/1.1 connection, and of a header there. hyper's default of 400 KiB
/// would be held several times over by each fill.
const READ: usize = MAX_HEADER as usize;

/// How often an HTTP/2 connection with an open request is pinged, and how long the answer may take. A wait without a
/// limit must not hang on a dead connection when a new one would get an answer.
const PING: Duration = Duration::from_mins(1);
const PONG: Duration = Duration::from_secs(30);

/// How long a patient request waits for a header. Its client gives up long before; this bounds leaked requests.
const PATIENT: Duration = Duration::from_hours(24);

/// Also reaches private ranges.
const WIDE: Reach = Reach { internal_client: true, from_public: false };
/// Reaches public addresses only.
const NARROW: Reach = Reach { internal_client: false, from_public: true };

fn pool(wire: &Arc<Wire>, reach: Reach, idle: usize, verbatim: bool) -> Pool {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(idle)
        .http1_max_headers(MAX_FIELDS)
        .http1_max_buf_size(READ)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        // As lenient as curl and other clients: white space before a colon, values folded over several lines, invalid
        // lines.
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http2_max_header_list_size(MAX_HEADER)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(Connector { wire: Arc::clone(wire), reach, verbatim })
}

fn about(captured: &CaptureConnection) -> Option<ConnectionInfo> {
    let mut extensions = Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extensions);
    extensions.remove()
}
