//! The scripted origin: HTTP/1.1 and HTTP/2, over TLS or plain, with a record of everything that was requested.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::ca::Ca;
use super::page::{OriginBody, Page};

type Answer = Pin<Box<dyn Future<Output = Response<OriginBody>> + Send>>;
type Script = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// One request as it reached the origin.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
    /// The number of the connection that it came on.
    pub(crate) connection: usize,
}

impl Asked {
    /// Whether it is the request by which a right is proved: for the first byte.
    pub(crate) fn is_proof(&self) -> bool {
        self.method == Method::GET && self.text("range") == Some("bytes=0-0")
    }

    /// Whether it is a GET of more than that byte.
    pub(crate) fn is_get(&self) -> bool {
        self.method == Method::GET && !self.is_proof()
    }

    /// The text of a header field.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// The behaviour of the whole origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As scripted.
    Well,
    /// Connections are accepted, requests are never answered.
    Hanging,
    /// Every request gets this status.
    Failing(u16),
}

struct State {
    pages: Mutex<HashMap<String, Page>>,
    scripts: Mutex<HashMap<String, Script>>,
    otherwise: Mutex<Option<Script>>,
    asked: Mutex<Vec<Asked>>,
    mood: Mutex<Mood>,
    connections: AtomicUsize,
    cut: Notify,
}

/// A running origin. It stops when this is dropped.
pub(crate) struct Origin {
    base: String,
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Origin {
    /// https on `host` (an address of this machine, or `localhost`) and a free port, h2 and http/1.1.
    pub(crate) async fn tls(ca: &Ca, host: &str) -> Self {
        Self::start(host, Some(ca), &["h2", "http/1.1"]).await
    }

    /// https as `name`, on port 443 for clients that use a [`Names`](super::names::Names) with this name.
    pub(crate) async fn named(ca: &Ca, name: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let acceptor = TlsAcceptor::from(ca.server(name, &["h2", "http/1.1"]));
        Self::on(listener, Some(acceptor), format!("https://{name}"))
    }

    /// https that speaks only http/1.1.
    pub(crate) async fn tls_http1(ca: &Ca, host: &str) -> Self {
        Self::start(host, Some(ca), &["http/1.1"]).await
    }

    /// Plain http.
    pub(crate) async fn plain(host: &str) -> Self {
        Self::start(host, None, &[]).await
    }

    async fn start(host: &str, ca: Option<&Ca>, alpn: &[&str]) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if ca.is_some() { "https" } else { "http" };
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let acceptor = ca.map(|ca| TlsAcceptor::from(ca.server(host, alpn)));
        Self::on(listener, acceptor, format!("{scheme}://{shown}:{port}"))
    }

    fn on(listener: TcpListener, acceptor: Option<TlsAcceptor>, base: String) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            pages: Mutex::default(),
            scripts: Mutex::default(),
            otherwise: Mutex::default(),
            asked: Mutex::default(),
            mood: Mutex::new(Mood::Well),
            connections: AtomicUsize::new(0),
            cut: Notify::new(),
        });
        Self {
            base,
            address,
            state: Arc::clone(&state),
            task: tokio::spawn(accept(listener, acceptor, state)),
        }
    }

    /// The URL of `path` on this origin.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> String {
        self.base.split_once("://").unwrap().1.to_owned()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts `page` at `path`, in place of what was there; returns its URL.
    pub(crate) fn put(&self, path: &str, page: Page) -> String {
        self.state.pages.lock().unwrap().insert(path.to_owned(), page);
        self.url(path)
    }

    /// Lets `script` answer at `path`; returns its URL.
    pub(crate) fn script<F, A>(&self, path: &str, script: F) -> String
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        A: Future<Output = Response<OriginBody>> + Send + 'static,
    {
        let script: Script = Arc::new(move |request| Box::pin(script(request)));
        self.state.scripts.lock().unwrap().insert(path.to_owned(), script);
        self.url(path)
    }

    /// Lets `script` answer every path without a page or a script.
    pub(crate) fn otherwise<F, A>(&self, script: F)
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        A: Future<Output = Response<OriginBody>> + Send + 'static,
    {
        let script: Script = Arc::new(move |request| Box::pin(script(request)));
        *self.state.otherwise.lock().unwrap() = Some(script);
    }

    /// Removes the script at `path`.
    pub(crate) fn unscript(&self, path: &str) {
        self.state.scripts.lock().unwrap().remove(path);
    }

    /// The requests for `path` (with its query), in order.
    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().filter(|one| one.path == path).cloned().collect()
    }

    /// How often `path` was requested with GET, not counting requests for the one byte that proves a right.
    pub(crate) fn gets(&self, path: &str) -> usize {
        self.asked(path).iter().filter(|one| one.is_get()).count()
    }

    /// All requests, in order.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// The paths of all requests, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().iter().map(|one| one.path.clone()).collect()
    }

    /// The number of all requests.
    pub(crate) fn total(&self) -> usize {
        self.state.asked.lock().unwrap().len()
    }

    /// The number of connections that were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Changes the behaviour of the whole origin.
    pub(crate) fn mood(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// Drops every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    /// Stops it: every connection is dropped, new ones are refused.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    // Dropped with this task, which closes every connection.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let number = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            tokio::select! {
                () = state.cut.notified() => {}
                () = serve(stream, tls, Arc::clone(&state), number) => {}
            }
        });
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>, number: usize) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, number, request).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    // A broken connection does not matter here; some tests break it on purpose.
    let _ended = match tls {
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => {
                server.serve_connection_with_upgrades(TokioIo::new(stream), service).await
            }
            Err(_) => return,
        },
        None => server.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
    };
}

async fn answer(
    state: &State,
    connection: usize,
    request: Request<Incoming>,
) -> Response<OriginBody> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    state.asked.lock().unwrap().push(Asked {
        method: request.method().clone(),
        path: path.clone(),
        headers: request.headers().clone(),
        version: request.version(),
        connection,
    });
    let mood = *state.mood.lock().unwrap();
    match mood {
        Mood::Well => {}
        Mood::Hanging => std::future::pending().await,
        Mood::Failing(status) => {
            return Page::status(status).answer(request.method(), request.headers());
        }
    }
    let script = state.scripts.lock().unwrap().get(&path).cloned();
    if let Some(script) = script {
        return script(request).await;
    }
    if let Some(page) = state.pages.lock().unwrap().get_mut(&path) {
        return page.answer(request.method(), request.headers());
    }
    let otherwise = state.otherwise.lock().unwrap().clone();
    match otherwise {
        Some(script) => script(request).await,
        None => Page::status(404).answer(request.method(), request.headers()),
    }
}
