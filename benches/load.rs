//! Load for `scripts/bench`: asks one URL over and over, and reports requests, bytes, latencies and wrong answers as JSON.
//!
//! ```text
//! cargo bench --bench load -- run --target 127.0.0.1:8443 --host localhost:8443 --path /4k --tls ca.pem --requests 10000
//! ```
//!
//! A client as package managers are: TLS over `CONNECT`, or plain text in absolute form, with connections that are kept.
//! One thread does all the work, so that one core is enough and the server's core is its own. Every body is compared with
//! `--length` and `--sha256`, the digest of a sample of the answers and the length of all: a server that is quick because
//! it answers wrong is not quick.
#![expect(clippy::print_stdout, reason = "a benchmark's results are what it prints")]

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::digest::hex;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// One answer in this many is hashed; the length of all is counted.
const HASHED_EVERY: u64 = 64;

#[derive(Debug, Clone, Parser)]
struct Load {
    /// Address to connect to: the server's, or the proxy's.
    #[arg(long)]
    target: SocketAddr,
    /// Host and port of the URL.
    #[arg(long)]
    host: String,
    /// Path of the URL. `{}` in it becomes the number of the request.
    #[arg(long)]
    path: String,
    /// The target is a proxy: `CONNECT` for TLS, absolute form without.
    #[arg(long)]
    proxy: bool,
    /// Speak TLS, and trust the certificates in this file.
    #[arg(long)]
    tls: Option<std::path::PathBuf>,
    /// Resume TLS sessions on new connections.
    #[arg(long)]
    resume: bool,
    /// Speak HTTP/2 with this many streams at once on each connection.
    #[arg(long)]
    streams: Option<usize>,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests in all.
    #[arg(long)]
    requests: u64,
    /// Requests before a connection is closed and another opened.
    #[arg(long, default_value_t = u64::MAX)]
    per_connection: u64,
    /// Bytes that each body must have.
    #[arg(long)]
    length: u64,
    /// SHA-256 that each body must have, in hexadecimal.
    #[arg(long)]
    sha256: Option<String>,
}

/// What is counted while the load runs.
#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    right: AtomicU64,
    wrong: AtomicU64,
    bytes: AtomicU64,
    /// Microseconds from request to head and to the last byte.
    times: Mutex<Vec<(u64, u64)>>,
}

fn main() -> Outcome<()> {
    let mut arguments: VecDeque<String> = std::env::args().collect();
    // `cargo bench` appends a flag of its own, and `cargo test --all-targets` runs this without a word: nothing to test.
    arguments.retain(|word| word != "--bench");
    if arguments.get(1).is_none_or(|word| word != "run") {
        return Ok(());
    }
    drop(arguments.remove(1));
    let load = Arc::new(Load::parse_from(arguments));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(load))
}

async fn run(load: Arc<Load>) -> Outcome<()> {
    let tls = load.tls.as_deref().map(|roots| trust(roots, &load)).transpose()?.map(Arc::new);
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let clients: Vec<_> = (0..load.connections)
        .map(|_| {
            let (load, tls, counts) = (Arc::clone(&load), tls.clone(), Arc::clone(&counts));
            tokio::spawn(async move {
                while counts.begun.load(Ordering::Relaxed) < load.requests {
                    one_connection(&load, tls.clone(), &counts).await?;
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            })
        })
        .collect();
    for client in clients {
        client.await??;
    }
    report(&counts, began.elapsed()).await;
    Ok(())
}

fn trust(roots: &std::path::Path, load: &Load) -> Outcome<ClientConfig> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)? {
        store.add(certificate?)?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(store).with_no_client_auth();
    config.resumption =
        if load.resume { Resumption::in_memory_sessions(256) } else { Resumption::disabled() };
    config.alpn_protocols =
        vec![if load.streams.is_some() { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// Opens a connection and asks on it until its share, or all, is asked.
async fn one_connection(
    load: &Arc<Load>,
    tls: Option<Arc<ClientConfig>>,
    counts: &Arc<Counts>,
) -> Outcome<()> {
    let mut tcp = TcpStream::connect(load.target).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else { return speak(load, tcp, counts).await };
    if load.proxy {
        tunnel(&mut tcp, &load.host).await?;
    }
    let name = load.host.rsplit_once(':').map_or(load.host.as_str(), |(name, _)| name);
    let stream =
        TlsConnector::from(tls).connect(ServerName::try_from(name.to_owned())?, tcp).await?;
    speak(load, stream, counts).await
}

async fn tunnel(tcp: &mut TcpStream, host: &str) -> Outcome<()> {
    tcp.write_all(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    if head.starts_with(b"HTTP/1.1 200") || head.starts_with(b"HTTP/1.0 200") {
        return Ok(());
    }
    Err(format!("CONNECT was refused: {}", String::from_utf8_lossy(&head)).into())
}

async fn speak<S>(load: &Arc<Load>, stream: S, counts: &Arc<Counts>) -> Outcome<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(streams) = load.streams else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        for _ in 0..load.per_connection {
            let Some(number) = next(load, counts) else { break };
            sender.ready().await?;
            let began = Instant::now();
            let answer = sender.send_request(request(load, number)?).await?;
            take(load, counts, number, began, answer).await?;
        }
        drop(sender);
        driver.await??;
        return Ok(());
    };
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let lanes: Vec<_> = (0..streams)
        .map(|_| {
            let (load, counts, mut sender) = (Arc::clone(load), Arc::clone(counts), sender.clone());
            tokio::spawn(async move {
                while let Some(number) = next(&load, &counts) {
                    sender.ready().await?;
                    let began = Instant::now();
                    let answer = sender.send_request(request(&load, number)?).await?;
                    take(&load, &counts, number, began, answer).await?;
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            })
        })
        .collect();
    for lane in lanes {
        lane.await??;
    }
    drop(sender);
    driver.abort();
    Ok(())
}

/// The number of the next request, or none when all were begun.
fn next(load: &Load, counts: &Counts) -> Option<u64> {
    let number = counts.begun.fetch_add(1, Ordering::Relaxed);
    (number < load.requests).then_some(number)
}

fn request(load: &Load, number: u64) -> Outcome<Request<Empty<Bytes>>> {
    let path = load.path.replace("{}", &number.to_string());
    let scheme = if load.tls.is_some() { "https" } else { "http" };
    let absolute = load.streams.is_some() || (load.proxy && load.tls.is_none());
    let uri = if absolute { format!("{scheme}://{}{path}", load.host) } else { path };
    let mut request = Request::get(uri).header("user-agent", "bench/1").header("accept", "*/*");
    if load.streams.is_none() {
        request = request.header("host", &load.host);
    }
    Ok(request.body(Empty::new())?)
}

async fn take(
    load: &Load,
    counts: &Counts,
    number: u64,
    began: Instant,
    answer: hyper::Response<Incoming>,
) -> Outcome<()> {
    let head = began.elapsed();
    let good = answer.status().is_success();
    let mut body = answer.into_body();
    let mut hash = (load.sha256.is_some() && number.is_multiple_of(HASHED_EVERY)).then(Sha256::new);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len() as u64;
        if let Some(hash) = &mut hash {
            hash.update(&data);
        }
    }
    let digest = hash.map(|hash| hex(&hash.finalize()));
    let right = good && length == load.length && (digest.is_none() || digest == load.sha256);
    if right { &counts.right } else { &counts.wrong }.fetch_add(1, Ordering::Relaxed);
    counts.bytes.fetch_add(length, Ordering::Relaxed);
    counts.times.lock().await.push((micros(head), micros(began.elapsed())));
    Ok(())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn report(counts: &Counts, took: Duration) {
    let times = counts.times.lock().await;
    let mut heads: Vec<u64> = times.iter().map(|(head, _)| *head).collect();
    let mut ends: Vec<u64> = times.iter().map(|(_, end)| *end).collect();
    heads.sort_unstable();
    ends.sort_unstable();
    let at = |times: &[u64], part: usize| {
        times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied()
    };
    println!(
        "{}",
        serde_json::json!({
            "seconds": took.as_secs_f64(),
            "right": counts.right.load(Ordering::Relaxed),
            "wrong": counts.wrong.load(Ordering::Relaxed),
            "bytes": counts.bytes.load(Ordering::Relaxed),
            "head_us": {"p50": at(&heads, 50), "p99": at(&heads, 99), "max": heads.last()},
            "end_us": {"p50": at(&ends, 50), "p99": at(&ends, 99), "max": ends.last()},
        })
    );
}
