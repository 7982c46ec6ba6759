//! Passes transfer everything, and withhold nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::world::{
    After, Authority, INSIDE, Raw, Wants, config, ok, origins, read_head, reply, target,
};
use crate::origin::{Duplex, Passes, UpBody};

pub(super) fn empty() -> UpBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: &'static str) -> UpBody {
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Sends a GET over HTTP/1.1; returns the answer's body.
pub(super) async fn pass(passes: &Passes, url: &str) -> Bytes {
    let request = Request::get("/").version(Version::HTTP_11).body(empty());
    let response = passes.send(&target(url), request.unwrap(), INSIDE).await;
    response.unwrap().into_body().collect().await.unwrap().to_bytes()
}

/// An origin that speaks the version that ALPN selects: `/version` returns it, `/big` is larger than any window,
/// `/echo` returns the body with trailers.
pub(super) async fn h2_origin(tls: Arc<ServerConfig>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let tls = TlsAcceptor::from(Arc::clone(&tls));
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(origin))
                    .await
                    .ok();
            });
        }
    });
    (at, connections)
}

async fn origin(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = if request.uri().path() == "/echo" {
        let te = request.headers().get("te").cloned();
        let all = request.into_body().collect().await.unwrap();
        let mut trailers = all.trailers().cloned().unwrap_or_default();
        if let Some(te) = te {
            trailers.insert("x-te", te);
        }
        let frames = [Ok(Frame::data(all.to_bytes())), Ok(Frame::trailers(trailers))];
        BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))
    } else if request.uri().path() == "/big" {
        Full::from(vec![7; 20 << 20]).boxed()
    } else {
        Full::from(format!("{:?}", request.version())).boxed()
    };
    Ok(Response::new(body))
}

#[tokio::test]
async fn trailers_go_both_ways_over_h2_as_grpc_needs() {
    let authority = Authority::new();
    let (trusted, _file) = authority.trusted();
    let server = authority.server(&["h2"], Wants::Nothing, rustls::ALL_VERSIONS);
    let (at, _) = h2_origin(server).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from("call"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::post("/")
        .version(Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let url = format!("https://127.0.0.1:{}/echo", at.port());
    let response = origins(trusted).passes().send(&target(&url), request, INSIDE).await.unwrap();
    let all = response.into_body().collect().await.unwrap();
    let trailers = all.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-te"], "trailers");
    assert_eq!(all.to_bytes(), "call");
}

#[tokio::test]
async fn an_upgrade_becomes_a_stream_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut io: Box<dyn Duplex> = Box::new(stream);
        let head = read_head(&mut io).await.unwrap();
        assert!(
            head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n")
        );
        let answer =
            "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\n\nfirst";
        io.write_all(&reply(answer, After::Keep).0).await.unwrap();
        let mut frame = [0; 4];
        io.read_exact(&mut frame).await.unwrap();
        io.write_all(&frame).await.unwrap();
    });
    let request = Request::get("/")
        .version(Version::HTTP_11)
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "websocket")
        .body(empty())
        .unwrap();
    let passes = origins(config()).passes();
    let response = passes.send(&target(&url), request, INSIDE).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert_eq!(response.headers()["connection"], "upgrade");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"firstping");
}

#[tokio::test]
async fn fields_of_the_connection_end_here_and_the_others_arrive() {
    let raw = Raw::serve(None, |_| {
        reply(
            "HTTP/1.1 200 OK\nContent-Length: 0\nConnection: X-Hop\nX-Hop: 1\nSet-Cookie: a=b\nAlt-Svc: h3=\":443\"\n\n",
            After::Keep,
        )
    })
    .await;
    let request = Request::get("/ignored")
        .version(Version::HTTP_10)
        .header("host", "somewhere-else.example.org")
        .header("connection", "close, X-Secret-Hop, upgrade, HTTP2-Settings")
        .header("x-secret-hop", "1")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
        .header("proxy-authorization", "Basic czNjcmV0")
        .header("authorization", "Bearer the-clients-own")
        .header("via", "1.1 before")
        .body(empty())
        .unwrap();
    let origins = origins(config());
    let response =
        origins.passes().send(&target(&raw.url("http", "/a?b")), request, INSIDE).await.unwrap();
    let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["content-length", "set-cookie"]);
    let head = raw.heads().remove(0);
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
    for gone in ["hop", "upgrade", "http2", "proxy-", "connection", "somewhere"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    assert!(head.contains("authorization: Bearer the-clients-own"), "{head}");
    assert!(head.contains(&format!("via: 1.0 {}", origins.via())), "{head}");
    assert!(head.contains("via: 1.1 before\r\n"), "{head}");
    let mut back = HeaderMap::new();
    back.insert("via", format!("1.1 x, 1.0 {}", origins.via()).parse().unwrap());
    assert!(origins.is_loop(&back) && !super::world::origins(config()).is_loop(&back));
}

#[tokio::test]
async fn a_get_with_a_body_of_unknown_length_keeps_it() {
    let raw = Raw::serve(None, |_| ok("x")).await;
    let frames = [Ok(Frame::data(Bytes::from("search")))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::get("/").version(Version::HTTP_11).body(body).unwrap();
    let url = raw.url("http", "/");
    origins(config()).passes().send(&target(&url), request, INSIDE).await.unwrap();
    assert!(raw.heads()[0].contains("transfer-encoding: chunked\r\n"));
}

#[tokio::test]
async fn an_answer_with_no_length_that_is_cut_over_chunks_is_an_error() {
    let raw = Raw::serve(None, |_| {
        reply("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\n12345\n", After::Close)
    })
    .await;
    let request = Request::get("/").version(Version::HTTP_11).body(empty()).unwrap();
    let response = origins(config())
        .passes()
        .send(&target(&raw.url("http", "/")), request, INSIDE)
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

/// The body of an upload; counts the bytes read from it.
struct Upload {
    left: usize,
    taken: Arc<AtomicUsize>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        static PIECE: [u8; 64 * 1024] = [0; 64 * 1024];
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left = self.left.saturating_sub(PIECE.len());
        self.taken.fetch_add(PIECE.len(), Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

/// A server that reads only a request's header: what larder reads from the client stays in buffers.
#[tokio::test]
async fn an_upload_that_nobody_reads_is_not_taken_from_the_client() {
    const ALL: usize = 100 << 20;
    // The kernel's socket buffers, hyper's, and a TLS record or two.
    const BOUND: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut start = [0; 16];
        stream.read_exact(&mut start).await.unwrap();
        wait.await.unwrap();
        let mut all = 0;
        let mut buffer = vec![0; 1 << 20];
        while all < ALL {
            all += stream.read(&mut buffer).await.unwrap();
        }
        stream.write_all(&ok("done").0).await.unwrap();
    });
    let taken = Arc::new(AtomicUsize::new(0));
    let upload = Upload { left: ALL, taken: Arc::clone(&taken) };
    let request = Request::put("/")
        .version(Version::HTTP_11)
        .header("content-length", ALL)
        .body(upload.boxed_unsync())
        .unwrap();
    let passes = origins(config()).passes();
    let sending = tokio::spawn(async move { passes.send(&target(&url), request, INSIDE).await });
    // Until nothing is read any more.
    let mut last = usize::MAX;
    while last != taken.load(Ordering::SeqCst) || last == 0 {
        last = taken.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(last < BOUND, "{last} bytes lie somewhere");
    go_on.send(()).unwrap();
    assert_eq!(sending.await.unwrap().unwrap().status(), 200);
    assert!(taken.load(Ordering::SeqCst) >= ALL);
}

/// The body is not read from the client before the origin accepts it.
#[tokio::test]
async fn an_expectation_is_the_origins_to_meet() {
    for refuses in [true, false] {
        let raw = Raw::serve(None, move |head| {
            if head.starts_with("GET") {
                ok("x")
            } else if refuses {
                reply("HTTP/1.1 401 Unauthorized\nContent-Length: 0\n\n", After::Keep)
            } else {
                reply(
                    "HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n",
                    After::Hang,
                )
            }
        })
        .await;
        let taken = Arc::new(AtomicUsize::new(0));
        let upload = Upload { left: 1, taken: Arc::clone(&taken) };
        let request = Request::put("/")
            .version(Version::HTTP_11)
            .header("expect", "100-continue")
            .body(upload.boxed_unsync())
            .unwrap();
        let url = raw.url("http", "/");
        let passes = origins(config()).passes();
        let response = passes.send(&target(&url), request, INSIDE).await.unwrap();
        assert_eq!(response.status(), if refuses { 401 } else { 200 });
        assert!(raw.heads()[0].contains("expect: 100-continue\r\n"));
        if refuses {
            // It is not read later either, and the connection that waits for the body serves no other request.
            assert_eq!(pass(&passes, &url).await, "x");
            assert_eq!(raw.connections(), 2);
            assert_eq!(taken.load(Ordering::SeqCst), 0);
        } else {
            while taken.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// An origin that ignores the expectation gets the body all the same.
#[tokio::test]
async fn an_expectation_that_is_ignored_does_not_hold_up_the_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut io: Box<dyn Duplex> = Box::new(stream);
        read_head(&mut io).await.unwrap();
        let mut body = [0; 4];
        io.read_exact(&mut body).await.unwrap();
        io.write_all(&ok("got it").0).await.unwrap();
        io.read_u8().await.ok();
    });
    let request = Request::put("/")
        .version(Version::HTTP_11)
        .header("expect", "100-continue")
        .header("content-length", 4)
        .body(full("body"))
        .unwrap();
    let passes = origins(config()).passes();
    let response = passes.send(&target(&url), request, INSIDE).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "got it");
}
