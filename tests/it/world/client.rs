//! A client that shows what went over the wire: it chooses every name itself, and tells a reset from an orderly close.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::HOST;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::clock::Clock;
use larder::digest::{Algorithms, Digest, Hashing};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::PATIENCE;

/// The receive buffer of every connection, in bytes. If the kernel chose it, it would take in tens of megabytes, and a client that
/// reads slowly would already have what larder should still hold back.
const RECEIVE: u32 = 512 << 10;

/// A request body.
pub(crate) type UpBody = UnsyncBoxBody<Bytes, io::Error>;

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing says.
    Complete,
    /// With a reset of the connection or of the stream, or a TLS error.
    Reset,
    /// With an orderly close, which a careless client takes for the end.
    Quiet(String),
}

/// An answer, as far as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) end: End,
}

impl Got {
    /// The text of a header field; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// larder's `Cache-Status` (RFC 9211).
    pub(crate) fn cache_status(&self) -> &str {
        self.text("cache-status")
    }

    /// Whether it came from the store.
    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status().contains("; hit")
    }

    /// Whether the client has a complete body that is not an error's.
    pub(crate) fn is_complete(&self) -> bool {
        self.end == End::Complete && self.status.is_success()
    }

    /// The answer, if it is a complete 200 or 206.
    #[track_caller]
    pub(crate) fn complete(self) -> Self {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]).into_owned();
        assert!(self.is_complete(), "{} {:?} {text:?} {:?}", self.status, self.end, self.headers);
        self
    }
}

/// A client of one larder.
#[derive(Clone)]
pub(crate) struct Client {
    proxy: SocketAddr,
    roots: Arc<RootCertStore>,
    clock: Clock,
    /// The address it connects from, if that matters.
    from: Option<IpAddr>,
}

/// A clock that was moved, as TLS asks for the time: certificates must be checked with the clock with which they were issued.
#[derive(Debug)]
struct Moved(Clock);

impl TimeProvider for Moved {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = u64::try_from(self.0.now().as_millis()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

impl Client {
    /// A client that uses the proxy at `proxy` and trusts `roots`.
    pub(crate) fn new(proxy: SocketAddr, roots: Arc<RootCertStore>) -> Self {
        let clock = Clock::system();
        Self { proxy, roots, clock, from: None }
    }

    /// The same with `clock`.
    pub(crate) fn at(mut self, clock: &Clock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// A GET.
    pub(crate) fn get(&self, url: &str) -> Ask {
        self.ask(Method::GET, url)
    }

    /// A HEAD.
    pub(crate) fn head(&self, url: &str) -> Ask {
        self.ask(Method::HEAD, url)
    }

    /// Any request.
    pub(crate) fn ask(&self, method: Method, url: &str) -> Ask {
        Ask {
            client: self.clone(),
            request: Request::builder().method(method).uri(url).body(()).unwrap(),
            body: Empty::new().map_err(|never| match never {}).boxed_unsync(),
            h2: false,
        }
    }

    /// A bare connection to the proxy.
    pub(crate) async fn dial(&self) -> TcpStream {
        self.connect().await.unwrap()
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE)?;
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A tunnel to `authority`, or the answer that refused it.
    pub(crate) async fn tunnel(&self, authority: &str) -> Result<TcpStream, Got> {
        let mut stream = self.connect().await.map_err(unreached)?;
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.map_err(unreached)?;
        let head = read_head(&mut stream).await;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|text| text.parse().ok())
            .unwrap_or(StatusCode::BAD_GATEWAY);
        if status == StatusCode::OK {
            return Ok(stream);
        }
        // The proxy may keep the connection open for another attempt.
        let lower = head.to_lowercase();
        let length = lower.split_once("content-length:").map_or("0", |(_, rest)| rest);
        let mut body = vec![0; length.lines().next().unwrap().trim().parse().unwrap()];
        stream.read_exact(&mut body).await.map_err(unreached)?;
        Err(Got {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
            trailers: None,
            end: End::Complete,
        })
    }

    /// TLS in `stream` for `name`, offering `alpn`.
    pub(crate) async fn tls(
        &self,
        stream: TcpStream,
        name: &str,
        alpn: &[&str],
    ) -> io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clock = Arc::new(Moved(self.clock.clone()));
        let mut config = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A tunnel with TLS inside; http/1.1.
    pub(crate) async fn inside(&self, authority: &str) -> Result<TlsStream<TcpStream>, Got> {
        let stream = self.tunnel(authority).await?;
        let host = authority.rsplit_once(':').unwrap().0;
        Ok(self.tls(stream, host, &["http/1.1"]).await.unwrap())
    }

    /// The bytes `request` on a new tunnel to `authority`, and everything that comes back.
    pub(crate) async fn raw(&self, authority: &str, request: &str) -> (String, End) {
        let mut stream = self.inside(authority).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    /// The bytes `request` on a bare connection to the proxy, and everything that comes back.
    pub(crate) async fn raw_plain(&self, request: &str) -> (String, End) {
        let mut stream = self.dial().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }
}

/// Reads until the peer ends the connection. Bytes that were written before may still be in the TLS layer, so they are flushed
/// first.
pub(crate) async fn read_all(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
) -> (String, End) {
    let _gone = stream.flush().await;
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    let end = match ended.unwrap_or_else(|_| panic!("the connection does not end after {}", text()))
    {
        Ok(_) => End::Complete,
        Err(error) if is_loud(&error) => End::Reset,
        Err(error) => End::Quiet(error.to_string()),
    };
    (text(), end)
}

/// Whether the connection ended with a reset, or with bytes after which every TLS library fails. The latter is how larder cuts a
/// connection where a reset would pass for an orderly end.
fn is_loud(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::InvalidData)
}

/// Reads an HTTP/1 head, and not a byte more.
pub(crate) async fn read_head(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> String {
    let _gone = stream.flush().await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A request that is being built.
pub(crate) struct Ask {
    client: Client,
    request: Request<()>,
    body: UpBody,
    h2: bool,
}

impl Ask {
    /// With a header field.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().append(name, value.parse().unwrap());
        self
    }

    /// Only these bytes: `0-99`, `100-`, `-100`, `0-9,20-29`.
    pub(crate) fn range(self, range: &str) -> Self {
        self.header("range", &format!("bytes={range}"))
    }

    /// From another address of this machine.
    pub(crate) fn from(mut self, address: &str) -> Self {
        self.client.from = Some(address.parse().unwrap());
        self
    }

    /// Over h2.
    pub(crate) fn h2(mut self) -> Self {
        self.h2 = true;
        self
    }

    /// With a body.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        self
    }

    /// With a body that arrives in pieces.
    pub(crate) fn stream(mut self, body: UpBody) -> Self {
        self.body = body;
        self
    }

    /// Sends it on a connection of its own and reads the whole answer.
    pub(crate) async fn send(self) -> Got {
        let shown = format!("{} {}", self.request.method(), self.request.uri());
        let answer = async {
            match self.open().await {
                Ok(opened) => opened.rest().await,
                Err(got) => got,
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.unwrap_or_else(|_| panic!("no end of the answer to {shown}"))
    }

    /// Sends it on a connection of its own; returns when the answer's head has arrived.
    pub(crate) async fn open(self) -> Result<Opened, Got> {
        let Self { client, request, body, h2 } = self;
        let uri = request.uri().clone();
        if uri.scheme_str() == Some("http") {
            return exchange(client.dial().await, uri.clone(), request, body, false).await;
        }
        let authority = uri.authority().unwrap();
        let port = authority.port_u16().unwrap_or(443);
        let stream = client.tunnel(&format!("{}:{port}", authority.host())).await?;
        let alpn: &[&str] = if h2 { &["h2"] } else { &["http/1.1"] };
        let stream = client.tls(stream, authority.host(), alpn).await;
        let stream = stream.map_err(unreached)?;
        let target = if h2 { uri } else { uri.path_and_query().unwrap().as_str().parse().unwrap() };
        exchange(stream, target, request, body, h2).await
    }
}

/// One request on one connection.
async fn exchange<S>(
    stream: S,
    target: Uri,
    request: Request<()>,
    body: UpBody,
    h2: bool,
) -> Result<Opened, Got>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let authority = request.uri().authority().unwrap().clone();
    let (mut parts, ()) = request.into_parts();
    parts.uri = target;
    let (answer, line) = if h2 {
        parts.version = Version::HTTP_2;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let line = tokio::spawn(connection);
        let answer = sender.send_request(Request::from_parts(parts, body));
        (answer.await, line)
    } else {
        if !parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, authority.as_str().parse().unwrap());
        }
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        let line = tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(Request::from_parts(parts, body));
        (answer.await, line)
    };
    let response = answer.map_err(|error| failed(&error))?;
    Ok(Opened {
        status: response.status(),
        headers: response.headers().clone(),
        response,
        line,
        body: Vec::new(),
        trailers: None,
        end: None,
    })
}

/// What a client has of an answer whose head never arrived.
fn failed(error: &hyper::Error) -> Got {
    nothing(end_of(error))
}

/// What a client has that could not send its request.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn unreached(error: io::Error) -> Got {
    nothing(End::Quiet(error.to_string()))
}

fn nothing(end: End) -> Got {
    Got {
        status: StatusCode::BAD_GATEWAY,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        trailers: None,
        end,
    }
}

fn end_of(error: &hyper::Error) -> End {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(one) = cause {
        let reset = one.downcast_ref::<io::Error>().is_some_and(is_loud);
        let text = one.to_string();
        // The error of a body whose connection failed during a write, for example because of a TLS alert. A close is reported as
        // an early end instead.
        let broke = text == "connection error";
        if reset || broke || text.contains("stream error received") {
            return End::Reset;
        }
        cause = one.source();
    }
    End::Quiet(format!("{error:?}"))
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    response: Response<Incoming>,
    /// The connection. How it ended tells more than how the body ended.
    line: JoinHandle<hyper::Result<()>>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    end: Option<End>,
}

impl Opened {
    /// The bytes so far.
    pub(crate) fn so_far(&self) -> &[u8] {
        &self.body
    }

    /// Reads until at least `len` bytes have arrived or the answer has ended; returns whether they have arrived.
    pub(crate) async fn read(&mut self, len: usize) -> bool {
        let enough = async {
            while self.body.len() < len && self.end.is_none() {
                self.step().await;
            }
            self.body.len() >= len
        };
        let enough = tokio::time::timeout(PATIENCE, enough).await;
        enough.expect("the bytes do not come")
    }

    /// Reads to the end.
    pub(crate) async fn rest(mut self) -> Got {
        loop {
            if let Some(end) = self.end {
                return Got {
                    status: self.status,
                    headers: self.headers,
                    body: self.body.into(),
                    trailers: self.trailers,
                    end,
                };
            }
            self.step().await;
        }
    }

    /// Reads to the end without keeping the body; returns whether the answer is complete and equal to `expected`.
    pub(crate) async fn equals(mut self, expected: &[u8]) -> bool {
        let mut at = 0;
        loop {
            if expected.get(at..at + self.body.len()) != Some(&self.body[..]) {
                return false;
            }
            at += self.body.len();
            self.body.clear();
            if let Some(end) = &self.end {
                return *end == End::Complete && at == expected.len();
            }
            self.step().await;
        }
    }

    /// Reads to the end without keeping the body; returns the length of a complete answer and its SHA-256.
    pub(crate) async fn digested(mut self) -> Option<(u64, Digest)> {
        let (mut hashing, mut count) = (Hashing::new(Algorithms::NONE), 0);
        loop {
            hashing.update(&self.body);
            count += self.body.len() as u64;
            self.body.clear();
            if let Some(end) = &self.end {
                let digest = hashing.finish().blob().digest();
                return (*end == End::Complete).then_some((count, digest));
            }
            self.step().await;
        }
    }

    /// The connection after a 101.
    pub(crate) async fn upgraded(self) -> TokioIo<hyper::upgrade::Upgraded> {
        TokioIo::new(hyper::upgrade::on(self.response).await.unwrap())
    }

    async fn step(&mut self) {
        match self.response.body_mut().frame().await {
            None => self.end = Some(End::Complete),
            Some(Err(error)) => {
                let mut end = end_of(&error);
                if let (End::Quiet(_), Ok(Err(error))) = (&end, (&mut self.line).await) {
                    end = end_of(&error);
                }
                self.end = Some(end);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => self.body.extend_from_slice(&bytes),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            },
        }
    }
}
