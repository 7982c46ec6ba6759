//! The whole front on a loopback port, with a service behind it that reports what it received.

mod clients;
mod drain;
mod limits;
mod tunnels;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::StatusCode;
use hyper::body::{Body as _, Frame};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::origin::{Duplex, Fault, OriginError, Reach};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::job::Job;
use crate::outcome::metrics::Metrics;
use crate::reply::Cut;
use crate::target::Origin;
use crate::target::identity::{Misdirected, Tunnel, identify};

/// Reports in its body what it received; some paths do other things.
#[derive(Default)]
struct Echo {
    /// Where tunnels lead, if anywhere.
    upstream: Mutex<Option<SocketAddr>>,
    /// Lets `/slow` end.
    go_on: Arc<Notify>,
}

#[derive(Debug)]
struct Seen {
    peer: SocketAddr,
    tunnel: Option<Tunnel>,
    line: Line,
}

impl Serve for Echo {
    type Connection = Seen;

    fn connection(
        self: &Arc<Self>,
        peer: SocketAddr,
        tunnel: Option<Tunnel>,
        line: Line,
        _: Option<Arc<Job>>,
    ) -> Seen {
        Seen { peer, tunnel, line }
    }

    async fn serve(
        self: &Arc<Self>,
        seen: &Arc<Seen>,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let target = match identify(seen.tunnel.as_ref(), &request) {
            Ok(target) => target,
            Err(Misdirected::Elsewhere(text)) => {
                return answer(StatusCode::MISDIRECTED_REQUEST, text);
            }
            Err(Misdirected::Malformed(text)) => return answer(StatusCode::BAD_REQUEST, text),
        };
        match target.path() {
            "/slow" => pieces([
                Piece::Data("beginning "),
                Piece::Wait(Arc::clone(&self.go_on)),
                Piece::Data("end"),
            ]),
            "/cut" => {
                pieces([Piece::Data("beginning "), Piece::Pause, Piece::Cut(seen.line.clone())])
            }
            // More than the socket buffers on both sides hold.
            "/large" => answer(StatusCode::OK, "a".repeat(64 << 20)),
            // What hyper does by itself when a body fails.
            "/quiet" => pieces([Piece::Data("beginning "), Piece::Pause, Piece::Fail]),
            "/panic" => panic!("on purpose"),
            path @ ("/upgrade" | "/upgrade-kept") => {
                let kept = path == "/upgrade-kept";
                let (upgrade, line) = (hyper::upgrade::on(&mut request), seen.line.clone());
                tokio::spawn(async move {
                    let mut io = TokioIo::new(upgrade.await.unwrap());
                    io.write_all(b"upgraded").await.unwrap();
                    if kept {
                        line.is_cut_off().await;
                    }
                });
                let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, String::new());
                response.headers_mut().insert("upgrade", "x".parse().unwrap());
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                response
            }
            _ => {
                let (version, client) = (request.version(), seen.peer.ip());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let text = format!("{} {version:?} {client} {}", target.url(), body.len());
                answer(StatusCode::OK, text)
            }
        }
    }

    fn must_tunnel(&self, _: &Origin) -> Option<String> {
        None
    }

    async fn tunnel(&self, _: &Origin, _: Reach) -> Result<Box<dyn Duplex>, OriginError> {
        let address = *self.upstream.lock().unwrap();
        let nowhere = || OriginError::new(&"the test", Fault::Unsendable("nowhere to go".into()));
        let address = address.ok_or_else(nowhere)?;
        Ok(Box::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn drained(&self) {}
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

enum Piece {
    Data(&'static str),
    Wait(Arc<Notify>),
    /// Long enough for the previous pieces to be sent.
    Pause,
    Cut(Line),
    Fail,
}

/// A body made of pieces, without an announced length.
struct Pieces(VecDeque<Piece>, Option<BoxFuture<'static, ()>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            if let Some(waiting) = &mut self.1 {
                std::task::ready!(waiting.poll_unpin(cx));
                self.1 = None;
            }
            match self.0.pop_front() {
                None => return Poll::Ready(None),
                Some(Piece::Data(text)) => {
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
                }
                Some(Piece::Wait(notify)) => {
                    self.1 = Some(async move { notify.notified().await }.boxed());
                }
                Some(Piece::Pause) => self.1 = Some(sleep(Duration::from_millis(50)).boxed()),
                Some(Piece::Cut(line)) => {
                    line.cut();
                    return Poll::Ready(Some(Err(Cut(Why::new(Cause::Broken, "cut")))));
                }
                Some(Piece::Fail) => {
                    return Poll::Ready(Some(Err(Cut(Why::new(Cause::Broken, "failed")))));
                }
            }
        }
    }
}

fn pieces<const N: usize>(pieces: [Piece; N]) -> Response<Body> {
    let body = Pieces(pieces.into(), None);
    assert!(!body.is_end_stream());
    Response::new(UnsyncBoxBody::new(body))
}

struct Pages;

impl OwnPages for Pages {
    fn answer(&self, request: Request<Incoming>, _: SocketAddr) -> BoxFuture<'_, Response<Body>> {
        let text = format!("own {}", request.uri().path());
        async move { answer(StatusCode::OK, text) }.boxed()
    }
}

/// A running front.
struct World {
    address: SocketAddr,
    authority: Arc<Authority>,
    echo: Arc<Echo>,
    metrics: Arc<Metrics>,
    /// The directory of the CA.
    state: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    hurry: CancellationToken,
    running: JoinHandle<()>,
}

impl World {
    fn start(config: Config) -> Self {
        let state = tempfile::tempdir().unwrap();
        let authority = Authority::open(state.path(), &Clock::system()).unwrap();
        let echo = Arc::new(Echo::default());
        let metrics = Arc::new(Metrics::default());
        let hurry = CancellationToken::new();
        let front = Arc::new(Front {
            config: Live::new(config),
            pipeline: Arc::clone(&echo),
            authority: Arc::clone(&authority),
            own: Arc::new(Pages),
            metrics: Arc::clone(&metrics),
            hurry: hurry.clone(),
        });
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = stopped.map(drop);
        let running = tokio::spawn(run(front, vec![listener], shutdown));
        Self { address, authority, echo, metrics, state, stop: Some(stop), hurry, running }
    }

    /// Like [`World::start`], with changes to the default configuration.
    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        Self::start(config)
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A tunnel to `authority`, after its 200.
    async fn tunnel(&self, authority: &str) -> TcpStream {
        let mut stream = self.connect().await;
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // RFC 9110 §9.3.6: neither is allowed in a 2xx to CONNECT.
        let lower = head.to_ascii_lowercase();
        assert!(!lower.contains("content-length") && !lower.contains("transfer-encoding"));
        stream
    }

    /// TLS for `name` over `stream`.
    async fn tls(&self, stream: TcpStream, name: &'static str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.ca_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name).unwrap(), stream)
            .await
            .unwrap()
    }
}

/// Reads up to the empty line.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => panic!("{error} after {}", head.escape_ascii()),
        }
    }
    String::from_utf8(head).unwrap()
}

/// Sends `request` with the fields that every request needs, and reads to the end.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// One request in a tunnel.
fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[test]
fn clients_are_judged_by_their_real_address() {
    let mut clients = Config::default().clients;
    let allowed = |clients: &Clients, text: &str| is_allowed(clients, text.parse().unwrap());
    for (address, expected) in [
        ("127.0.0.1", true),
        ("::ffff:127.0.0.1", true),
        ("::ffff:10.1.2.3", true),
        ("::ffff:8.8.8.8", false),
        ("8.8.8.8", false),
        ("::1", true),
        ("fd00::1", true),
        ("2001:db8::1", false),
    ] {
        assert_eq!(allowed(&clients, address), expected, "{address}");
    }
    // A rule for all of IPv6 does not admit IPv4.
    clients.allow = vec!["::/0".parse().unwrap()];
    assert!(allowed(&clients, "2001:db8::1"));
    assert!(!allowed(&clients, "::ffff:8.8.8.8"));
}
