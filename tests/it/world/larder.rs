//! Starts larder. Only this module depends on larder's public interface, so that renames there end here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use larder::Larder;
use larder::clock::Clock;
use larder::config::Config;
use rustls::RootCertStore;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::ca::{Ca, roots};
use super::client::{Client, read_all};
use super::eventually;
use super::tools::run;

/// A larder inside this process.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) clock: Clock,
    pub(crate) data: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

/// How a larder is opened.
type Opens = fn(Config, Clock) -> anyhow::Result<Arc<Larder>>;

/// A record that does not end, a FIFO: larder reads its records until this is dropped.
pub(crate) struct EndlessRecord(PathBuf);

impl EndlessRecord {
    /// One in the cache of a larder that does not run.
    pub(crate) async fn put(data: &Path) -> Self {
        let shard = data.join("v1/records/ff");
        std::fs::create_dir_all(&shard).unwrap();
        let pipe = shard.join(format!("{}-{}", "ff".repeat(32), "0".repeat(64)));
        let mut make = Command::new("mkfifo");
        make.arg(&pipe);
        assert!(run(make).await.status.success());
        Self(pipe)
    }
}

impl Drop for EndlessRecord {
    fn drop(&mut self) {
        // Opening a FIFO for both does not wait for another process. A larder that waits for a writer goes on, and finds
        // the end when this one closes.
        let both = std::fs::OpenOptions::new().read(true).write(true).open(&self.0);
        let _removed = std::fs::remove_file(&self.0);
        drop(both);
    }
}

/// The configuration that every test starts from: loopback is allowed, the origins' CA is trusted, nothing else is set.
pub(crate) fn config(ca: &Ca, data: PathBuf) -> Config {
    let mut config = Config {
        data,
        allow_nets: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        upstream_ca: vec![ca.file().to_owned()],
        ..Config::default()
    };
    config.store.min_free = 0;
    config.clients.drain_timeout = Duration::from_secs(1);
    config
}

impl Proxy {
    /// Starts one on a free port.
    ///
    /// A larder that stopped in this process may have a background task left that ends in a moment, and with it the lock of
    /// the directory; between processes there is no such thing.
    pub(crate) async fn start(config: Config) -> Self {
        Box::pin(Self::start_by(config, Larder::open)).await
    }

    /// The same, for a larder that reads its records while it serves clients.
    pub(crate) async fn begin(config: Config) -> Self {
        Box::pin(Self::start_by(config, Larder::begin)).await
    }

    async fn start_by(config: Config, opens: Opens) -> Self {
        let own = format!("in use by another larder (process {}", std::process::id());
        for _ in 0..100 {
            match Self::try_start_by(config.clone(), opens).await {
                Err(error) if error.contains(&own) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => return started.unwrap(),
            }
        }
        Self::try_start_by(config, opens).await.unwrap()
    }

    /// Starts one on a free port; the error is why it did not start.
    pub(crate) async fn try_start(config: Config) -> Result<Self, String> {
        Self::try_start_by(config, Larder::open).await
    }

    async fn try_start_by(config: Config, opens: Opens) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let data = config.data.clone();
        let clock = Clock::system();
        let opened = {
            let clock = clock.clone();
            tokio::task::spawn_blocking(move || opens(config, clock)).await.unwrap()
        };
        let larder: Arc<Larder> = opened.map_err(|error| format!("{error:#}"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async move {
                let _asked = stopped.await;
            };
            // The result of `run` is tested with the binary's exit code.
            let _ended = larder.run(vec![listener], shutdown).await;
        });
        Ok(Self { address, clock, data, stop: Some(stop), task: Some(task) })
    }

    /// Stops it, and waits until it has released its directory.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }

    /// larder's answer at one of its own paths.
    pub(crate) async fn own(&self, path: &str) -> String {
        own(self.address, path).await
    }

    /// The sum of all samples of a metric whose line holds `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.own("/-/metrics").await;
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Waits until [`Self::metric`] has reached `least`. larder counts an answer when its last byte was sent: a client may have
    /// that byte before.
    pub(crate) async fn counted(&self, name: &str, label: &str, least: f64) {
        let what = format!("{name}{{{label}}} is {least}");
        eventually(&what, || async { self.metric(name, label).await >= least }).await;
    }

    /// A client that trusts this larder.
    pub(crate) async fn client(&self) -> Client {
        Client::new(self.address, trust(self.address).await).at(&self.clock)
    }
}

/// The answer of the larder at `address` at one of its own paths.
pub(crate) async fn own(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let (answer, _) = read_all(&mut stream).await;
    answer.split_once("\r\n\r\n").map_or_else(|| answer.clone(), |(_, body)| body.to_owned())
}

/// The trust anchors of a client that trusts the larder at `address`.
pub(crate) async fn trust(address: SocketAddr) -> Arc<RootCertStore> {
    roots(&own(address, "/ca.crt").await)
}
