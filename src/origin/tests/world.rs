//! Servers that do what a test tells them, and an [`Origins`] that may reach them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, SupportedProtocolVersion};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::config::{Config, Live, Roots};
use crate::origin::{Answer, Ask, Duplex, Lane, OriginError, Origins, Reach};
use crate::target::Target;

/// The name under which tests reach a server on loopback.
pub(super) const NAME: &str = "files.example.org";

/// A client of the internal network.
pub(super) const INSIDE: Reach = Reach { internal_client: true, from_public: false };

/// Loopback is allowed; limits are short, so that tests can run into them.
pub(super) fn config() -> Config {
    let mut config = Config {
        listen: Vec::new(),
        allow_nets: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        ..Config::default()
    };
    config.upstream.roots = Roots::Webpki;
    config.upstream.idle_timeout = Duration::from_millis(300);
    config
}

/// An [`Origins`] for which `files.example.org` is 127.0.0.1.
pub(super) fn origins(config: Config) -> Arc<Origins> {
    let origins = Origins::new(Live::new(config), Clock::system()).unwrap();
    origins.wire().resolver.remember(NAME, &["127.0.0.1:0".parse().unwrap()]);
    origins
}

pub(super) fn target(url: &str) -> Target {
    Target::from_url(url).unwrap()
}

pub(super) fn ask(url: &str) -> Ask {
    Ask {
        target: target(url),
        lane: Lane::Bulk,
        accept: "*/*".into(),
        accept_language: None,
        fields: Vec::new(),
        if_none_match: None,
        if_modified_since: None,
        range: None,
        if_range: None,
        head_only: false,
        follow: false,
        fresh_connection: false,
        patient: false,
        reach: INSIDE,
        token: None,
        credential: None,
    }
}

/// All bytes of an answer; or the bytes received and the error.
pub(super) async fn drain(answer: &mut Answer) -> Result<Vec<u8>, (Vec<u8>, OriginError)> {
    let mut all = Vec::new();
    while let Some(next) = answer.body.next().await {
        match next {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return Err((all, error)),
        }
    }
    Ok(all)
}

/// Fetches and drains.
pub(super) async fn get(origins: &Arc<Origins>, ask: Ask) -> Result<Vec<u8>, OriginError> {
    let mut answer = origins.fetch(ask).await?;
    drain(&mut answer).await.map_err(|(_, error)| error)
}

/// What a server does after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    /// FIN, and in TLS `close_notify`.
    Close,
    /// FIN without `close_notify`.
    Drop,
    /// Keeps the connection open and sends nothing.
    Hang,
}

/// A reply, byte for byte.
pub(super) fn reply(text: impl AsRef<str>, after: After) -> (Vec<u8>, After) {
    (text.as_ref().replace('\n', "\r\n").into_bytes(), after)
}

/// An answer with a length, on a connection that stays.
pub(super) fn ok(body: &str) -> (Vec<u8>, After) {
    let head = format!("HTTP/1.1 200 OK\nContent-Length: {}\n\n", body.len());
    let (mut all, after) = reply(head, After::Keep);
    all.extend_from_slice(body.as_bytes());
    (all, after)
}

/// An HTTP/1.1 server that computes each answer from the request's header.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) at: SocketAddr,
    pub(super) heads: Arc<Mutex<Vec<String>>>,
    pub(super) connections: Arc<AtomicUsize>,
}

impl Raw {
    pub(super) async fn serve<F>(tls: Option<Arc<ServerConfig>>, answer: F) -> Self
    where
        F: Fn(&str) -> (Vec<u8>, After) + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raw = Self {
            at: listener.local_addr().unwrap(),
            heads: Arc::default(),
            connections: Arc::default(),
        };
        let (served, answer) = (raw.clone(), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                served.connections.fetch_add(1, Ordering::SeqCst);
                let (served, answer, tls) = (served.clone(), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    let io: Box<dyn Duplex> = match tls {
                        None => Box::new(stream),
                        Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    served.converse(io, &*answer).await;
                });
            }
        });
        raw
    }

    async fn converse(
        &self,
        mut io: Box<dyn Duplex>,
        answer: &(dyn Fn(&str) -> (Vec<u8>, After) + Sync),
    ) {
        while let Some(head) = read_head(&mut io).await {
            self.heads.lock().unwrap().push(head.clone());
            let (bytes, after) = answer(&head);
            if io.write_all(&bytes).await.is_err() || io.flush().await.is_err() {
                return;
            }
            match after {
                After::Keep => {}
                After::Close => {
                    io.shutdown().await.ok();
                    return;
                }
                After::Drop => return,
                After::Hang => std::future::pending().await,
            }
        }
    }

    pub(super) fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://{NAME}:{}{path}", self.at.port())
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// A request's or answer's header, without its body; `None` at the end of the connection.
pub(super) async fn read_head(io: &mut Box<dyn Duplex>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Whether a server requests a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    Nothing,
    PerhapsACertificate,
    ACertificate,
}

/// A certificate authority made for one test.
pub(super) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key), certificate }
    }

    /// A PEM file with the authority's certificate.
    pub(super) fn file(&self) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(self.certificate.pem().as_bytes()).unwrap();
        file
    }

    /// [`config`] that trusts this authority alone. Keep the file as long as the configuration.
    pub(super) fn trusted(&self) -> (Config, NamedTempFile) {
        let file = self.file();
        let mut config = config();
        config.upstream.roots = Roots::Only;
        config.upstream_ca = vec![file.path().to_owned()];
        (config, file)
    }

    /// A server configuration for [`NAME`] and 127.0.0.1.
    pub(super) fn server(
        &self,
        alpn: &[&str],
        wants: Wants,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let names = vec![NAME.to_owned(), "127.0.0.1".to_owned(), "localhost".to_owned()];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf =
            rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match wants {
            Wants::Nothing => builder.with_no_client_auth(),
            Wants::PerhapsACertificate => {
                builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            }
            Wants::ACertificate => builder.with_client_cert_verifier(verifier.build().unwrap()),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![leaf.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// The usual server: TLS 1.2 and 1.3, http/1.1.
    pub(super) fn plain_server(&self) -> Arc<ServerConfig> {
        self.server(&["http/1.1"], Wants::Nothing, rustls::ALL_VERSIONS)
    }
}
