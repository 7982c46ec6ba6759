//! The pool of the fills: connections that carry canonical requests and nothing else.
//!
//! hyper-util's client pools by scheme and authority and knows nothing else of a connection. So there is one for each
//! lane, that an index does not wait behind layers on one h2 connection; and one for each reach, that a connection
//! made for a client of the inner network serves no request that the guard would have kept from it; and others for
//! requests that show a credential, that an origin which remembers it for the whole connection gives nothing private to
//! everybody. Passes never come here (pitfall 38).

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
use super::connect::{About, Connector, Speaks, Wire};
use super::error::Fault;
use super::{Lane, Reach};
use crate::target::{Scheme, Target};

/// An idle connection is kept so long: shorter than what servers commonly allow, so that few are found closed.
const IDLE: Duration = Duration::from_mins(1);
/// A response's header fields; some servers send a hundred cookies.
pub(super) const MAX_FIELDS: usize = 1024;
/// A response's header in bytes, h1 and h2 alike.
pub(super) const MAX_HEADER: u32 = 128 * 1024;

/// Unread bytes of one answer on an h2 connection: 4 MiB carry 80 MB/s over 50 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Of all answers together, so that one whose reader waits for the disk does not stop the others. hyper's adaptive
/// windows are one size for both, and would let it.
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

    /// Sends `ask` for `target` from `reach`, and again, once, if an old connection turns out to be dead.
    pub(super) async fn send(
        &self,
        ask: &Ask,
        target: &Target,
        reach: Reach,
    ) -> Result<(Response<Incoming>, About, CaptureConnection), Fault> {
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

    /// One try. The flag beside a fault: it may be the connection's age alone.
    async fn send_once(
        &self,
        ask: &Ask,
        target: &Target,
        reach: Reach,
        fresh: bool,
    ) -> Result<(Response<Incoming>, About, CaptureConnection), (Fault, bool)> {
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
        // The connector has its own limit; together they bound the wait for a header on whatever connection.
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
            return Err((Fault::Unanswered("by no known connection".into()), false));
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
            // A pool of none: its one connection is nobody's before, and nobody's after.
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

/// The most bytes of one read of an h1 connection, and of a head there; hyper's 400 KiB would be held several times over by
/// each fill.
const READ: usize = MAX_HEADER as usize;

/// How often an h2 connection with an open request is asked whether it lives, and how long that may take. What waits without a
/// limit must not wait for a connection that died: a fresh one would have answered.
const PING: Duration = Duration::from_mins(1);
const PONG: Duration = Duration::from_secs(30);

/// How long a patient request waits for a header. Its client gives up long before; the bound is for what leaks.
const PATIENT: Duration = Duration::from_hours(24);

/// Opens private ranges.
const WIDE: Reach = Reach { internal_client: true, from_public: false };
/// Opens public addresses only.
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
        // What curl and others take: white space before a colon, a value in several lines, lines that are no fields.
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http2_max_header_list_size(MAX_HEADER)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(Connector { wire: Arc::clone(wire), reach, verbatim })
}

fn about(captured: &CaptureConnection) -> Option<About> {
    let mut extensions = Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extensions);
    extensions.remove()
}
