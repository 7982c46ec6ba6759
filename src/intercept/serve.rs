//! The boundary between connections and requests.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::origin::{Duplex, OriginError, Reach};
use crate::outcome::job::Job;
use crate::pipeline::{Connection, Pipeline};
use crate::reply::{Body, Line};
use crate::target::Origin;
use crate::target::identity::Tunnel;

/// What answers requests and opens tunnels. The listener depends only on this trait; its tests use a service that reports what it
/// received.
pub trait Serve: Send + Sync + 'static {
    /// What is remembered of one client connection.
    type Connection: Send + Sync + fmt::Debug + 'static;

    /// A client connection begins. `tunnel`: inside a tunnel, what CONNECT and the `ClientHello` named. `job`: the job that the
    /// client belongs to.
    fn connection(
        self: &Arc<Self>,
        peer: SocketAddr,
        tunnel: Option<Tunnel>,
        line: Line,
        job: Option<Arc<Job>>,
    ) -> Self::Connection;

    /// Answers a proxy request. A failure is an answer too.
    fn serve(
        self: &Arc<Self>,
        connection: &Arc<Self::Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Why this origin must be tunnelled, if that is remembered.
    fn must_tunnel(&self, origin: &Origin) -> Option<String>;

    /// Opens a raw connection to an origin.
    fn tunnel(
        &self,
        origin: &Origin,
        reach: Reach,
    ) -> impl Future<Output = Result<Box<dyn Duplex>, OriginError>> + Send;

    /// Waits for work that continues without a client.
    fn drained(&self) -> impl Future<Output = ()> + Send;
}

impl Serve for Pipeline {
    type Connection = Connection;

    fn connection(
        self: &Arc<Self>,
        peer: SocketAddr,
        tunnel: Option<Tunnel>,
        line: Line,
        job: Option<Arc<Job>>,
    ) -> Connection {
        Self::connection(self, peer, tunnel, line, job)
    }

    async fn serve(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        Self::serve(self, connection, request).await
    }

    fn must_tunnel(&self, origin: &Origin) -> Option<String> {
        self.origins.must_tunnel(origin)
    }

    async fn tunnel(&self, origin: &Origin, reach: Reach) -> Result<Box<dyn Duplex>, OriginError> {
        self.origins.tunnel(origin, reach).await
    }

    async fn drained(&self) {
        Self::drained(self).await;
    }
}
