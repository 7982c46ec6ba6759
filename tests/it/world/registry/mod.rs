//! A real registry: Debian's `docker-registry` on loopback, behind a TLS front that counts. Optionally it requires tokens, and
//! redirects for blobs to another host with signed URLs.

pub(crate) mod image;
mod tokens;
pub(crate) mod yard;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use larder::digest::{Algorithms, Hashing};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::page::{OriginBody, empty, whole};
use super::{Ca, Origin, Page, eventually};

pub(crate) use self::tokens::{GUEST, MEMBER, OWNER, Tokens, basic};

/// The program, where Debian's package installs it.
pub(crate) const PROGRAM: &str = "/usr/bin/docker-registry";

/// The host name of the front.
pub(crate) const NAME: &str = "registry.example.org";
/// The host name of the blobs' storage.
const FILES: &str = "files.example.org";

/// What surrounds a registry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Around {
    /// Whether it requires tokens.
    pub(crate) tokens: bool,
    /// Whether it redirects its clients to another host for blobs.
    pub(crate) redirects: bool,
}

/// Values of `Authorization` that no longer give access.
type Withdrawn = Arc<Mutex<Vec<String>>>;

/// A running registry. It stops when this is dropped.
pub(crate) struct Registry {
    /// The host that its clients use.
    pub(crate) front: Origin,
    /// The host with its blobs.
    pub(crate) files: Origin,
    /// Its token service.
    pub(crate) tokens: Tokens,
    withdrawn: Withdrawn,
    /// Bytes of blobs that were sent, by front and storage together, without single bytes that prove a right.
    sent: Arc<AtomicU64>,
    storage: PathBuf,
    child: Child,
}

impl Registry {
    /// Starts one that keeps its files under `dir`.
    pub(crate) async fn start(ca: &Ca, dir: &Path, around: Around) -> Self {
        Self::start_with(ca, dir, around, "").await
    }

    /// The same. `auth`: its settings for logins, if it requires no tokens.
    pub(crate) async fn start_with(ca: &Ca, dir: &Path, around: Around, auth: &str) -> Self {
        let storage = dir.join("registry");
        std::fs::create_dir_all(&storage).unwrap();
        let (front, files) = (Origin::named(ca, NAME).await, Origin::named(ca, FILES).await);
        let tokens = Tokens::new(ca, &storage).await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let auth = if around.tokens { tokens.settings() } else { auth.to_owned() };
        let shown = storage.display();
        let settings = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {shown}\n  delete:\n    \
             enabled: true\nhttp:\n  addr: {address}\n  relativeurls: true\n{auth}"
        );
        let file = storage.join("config.yml");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(PROGRAM);
        command
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        eventually(
            "the registry listens",
            || async move { TcpStream::connect(address).await.is_ok() },
        )
        .await;
        let (sent, withdrawn) = (Arc::new(AtomicU64::new(0)), Withdrawn::default());
        let (counter, barred) = (Arc::clone(&sent), Arc::clone(&withdrawn));
        front.otherwise(move |request| {
            let counter = Arc::clone(&counter);
            let said = request.headers().get("authorization");
            let is_barred = barred.lock().unwrap().iter().any(|one| said.is_some_and(|s| s == one));
            async move {
                if is_barred {
                    return Page::status(401).answer(request.method(), request.headers());
                }
                let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
                let is_blob = is_read && request.uri().path().contains("/blobs/sha256:");
                if is_blob
                    && around.redirects
                    && let Some(elsewhere) = redirected(&request, address).await
                {
                    return elsewhere;
                }
                let answer = forward(request, address).await;
                if is_blob { counted(answer, counter) } else { answer }
            }
        });
        let (root, counter) = (storage.clone(), Arc::clone(&sent));
        files.otherwise(move |request| {
            let (root, counter) = (root.clone(), Arc::clone(&counter));
            async move { counted(file_of(&request, &root).await, counter) }
        });
        Self { front, files, tokens, withdrawn, sent, storage, child }
    }

    /// Bytes of blobs that were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// How often the blob with this digest was sent, not counting requests for the one byte that proves a right.
    pub(crate) fn gets(&self, digest: &str) -> usize {
        let wanted = digest.trim_start_matches("sha256:");
        let asked = self.front.log().into_iter();
        asked.filter(|one| one.is_get() && one.path.contains(wanted)).count()
    }

    /// How often a right to the blob with this digest was proved.
    pub(crate) fn proofs(&self, digest: &str) -> usize {
        let asked = self.front.log().into_iter();
        asked.filter(|one| one.is_proof() && one.path.ends_with(digest)).count()
    }

    /// How often the blob with this digest was requested with HEAD.
    pub(crate) fn heads(&self, digest: &str) -> usize {
        let asked = self.front.log().into_iter();
        asked.filter(|one| one.method == Method::HEAD && one.path.ends_with(digest)).count()
    }

    /// Withdraws every right of the requests with `bearer`.
    pub(crate) fn withdraw(&self, bearer: &str) {
        self.withdrawn.lock().unwrap().push(bearer.to_owned());
    }

    /// Puts a blob of `size` bytes, nearly all of them holes in a sparse file, into `repository`; returns its digest.
    pub(crate) fn plant(&self, repository: &str, size: u64) -> String {
        let (mut hashing, zeros) = (Hashing::new(Algorithms::NONE), vec![0; 1 << 20]);
        let start = format!("{repository} {size}");
        hashing.update(start.as_bytes());
        let mut left = size - start.len() as u64;
        while left > 0 {
            let piece = left.min(zeros.len() as u64);
            hashing.update(&zeros[..usize::try_from(piece).unwrap()]);
            left -= piece;
        }
        let hex = hashing.finish().blob().to_hex();
        let digest = format!("sha256:{hex}");
        let data = self.file(&digest);
        let layers = format!("docker/registry/v2/repositories/{repository}/_layers/sha256/{hex}");
        let layers = self.storage.join(layers);
        for directory in [data.parent().unwrap(), &layers] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(&data, start).unwrap();
        std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(size).unwrap();
        std::fs::write(layers.join("link"), &digest).unwrap();
        digest
    }

    /// The file with the bytes of a blob.
    pub(crate) fn file(&self, digest: &str) -> PathBuf {
        self.storage.join(stored(digest.trim_start_matches("sha256:")))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _status = self.child.wait();
    }
}

fn stored(hex: &str) -> String {
    format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])
}

/// Forwards a request unchanged.
async fn forward(mut request: Request<Incoming>, to: SocketAddr) -> Response<OriginBody> {
    let Ok(stream) = TcpStream::connect(to).await else {
        return Page::status(502).answer(request.method(), request.headers());
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let path = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
    *request.uri_mut() = path;
    request.headers_mut().insert("host", NAME.parse().unwrap());
    match sender.send_request(request).await {
        Ok(answer) => answer.map(|body| body.map_err(io::Error::other).boxed_unsync()),
        Err(_) => Response::builder().status(502).body(empty()).unwrap(),
    }
}

/// A redirect to a signed URL that is valid only this once, for clients that may have the blob; to a HEAD as well, as registries
/// with an object store do. Other clients get the registry's answer.
async fn redirected(
    request: &Request<Incoming>,
    registry: SocketAddr,
) -> Option<Response<OriginBody>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut asking = Request::builder().method(Method::HEAD).uri(request.uri().path());
    for name in ["authorization", "accept"] {
        if let Some(value) = request.headers().get(name) {
            asking = asking.header(name, value);
        }
    }
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(registry).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let asking = asking.header("host", NAME).body(empty()).unwrap();
    let answer = sender.send_request(asking).await.unwrap();
    if !answer.status().is_success() {
        return None;
    }
    let hex = request.uri().path().rsplit_once("sha256:").unwrap().1;
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let to =
        format!("https://{FILES}/{}?X-Amz-Expires=1200&X-Amz-Signature={number:064x}", stored(hex));
    Some(Response::builder().status(307).header("location", to).body(empty()).unwrap())
}

/// The answer at a signed URL: only the URL gives access, and a request with a credential is refused, as object stores do.
async fn file_of(request: &Request<Incoming>, root: &Path) -> Response<OriginBody> {
    let signed = request.uri().query().is_some_and(|query| query.contains("X-Amz-Signature="));
    if !signed || request.headers().contains_key("authorization") {
        return Response::builder().status(400).body(empty()).unwrap();
    }
    let path = root.join(request.uri().path().trim_start_matches('/'));
    let Ok(file) = tokio::fs::File::open(path).await else {
        return Response::builder().status(404).body(empty()).unwrap();
    };
    let length = file.metadata().await.unwrap().len();
    if request.method() == Method::HEAD {
        return Response::builder().header("content-length", length).body(empty()).unwrap();
    }
    if request.headers().get("range").is_some_and(|range| range == "bytes=0-0") {
        let range = format!("bytes 0-0/{length}");
        let part = Response::builder().status(206).header("content-range", range);
        return part.body(whole("?")).unwrap();
    }
    let pieces = stream::unfold(file, |mut file| async move {
        let mut piece = vec![0; 256 * 1024];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Frame::data(piece.into())), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(pieces));
    Response::builder().header("content-length", length).body(body).unwrap()
}

/// Counts the bytes of a whole blob; neither the text of an error nor the one byte that proves a right.
fn counted(answer: Response<OriginBody>, counter: Arc<AtomicU64>) -> Response<OriginBody> {
    if answer.status() != StatusCode::OK {
        return answer;
    }
    answer.map(|body| {
        body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            counter.fetch_add(bytes as u64, Ordering::SeqCst);
            frame
        })
        .boxed_unsync()
    })
}
