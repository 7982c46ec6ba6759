//! An origin that records every request as raw bytes, and answers with raw bytes: for messages that no HTTP library writes.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::ca::Ca;

type Answers = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// The running origin. Each connection is closed after its answer.
pub(crate) struct Verbatim {
    authority: String,
    scheme: &'static str,
    heads: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Verbatim {
    /// Uses https if `ca` is given; `answers` makes the answer for the target of a request.
    pub(crate) async fn start<F>(ca: Option<&Ca>, answers: F) -> Self
    where
        F: Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let acceptor = ca.map(|ca| TlsAcceptor::from(ca.server("127.0.0.1", &["http/1.1"])));
        let scheme = if ca.is_some() { "https" } else { "http" };
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (kept, answers): (_, Answers) = (Arc::clone(&heads), Arc::new(answers));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &kept, &answers).await;
                            }
                        }
                        None => serve(stream, &kept, &answers).await,
                    }
                });
            }
        });
        Self { authority, scheme, heads, task }
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The URL of `path` here.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.authority)
    }

    /// The targets of the requests, in order.
    pub(crate) fn targets(&self) -> Vec<Vec<u8>> {
        self.heads.lock().unwrap().iter().map(|head| target_of(head).to_vec()).collect()
    }

    /// The heads of the requests, in order.
    pub(crate) fn heads(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().map(|head| String::from_utf8_lossy(head).into_owned()).collect()
    }
}

impl Drop for Verbatim {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn target_of(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

async fn serve<S>(mut stream: S, kept: &Mutex<Vec<Vec<u8>>>, answers: &Answers)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let answer = answers(target_of(&head));
    kept.lock().unwrap().push(head);
    // A client that left early does not matter here.
    let _left = stream.write_all(&answer).await;
    let _left = stream.shutdown().await;
}
