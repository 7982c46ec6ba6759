//! The environment of a test: scripted origins with a CA of their own, a larder, and clients. Everything is on loopback; nothing
//! is shared between tests or left behind.

pub(crate) mod apk;
pub(crate) mod apt;
pub(crate) mod archive;
pub(crate) mod bench;
pub(crate) mod binary;
pub(crate) mod blind;
pub(crate) mod ca;
pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod gpg;
pub(crate) mod larder;
pub(crate) mod names;
pub(crate) mod origin;
pub(crate) mod page;
pub(crate) mod registry;
pub(crate) mod repository;
pub(crate) mod root;
pub(crate) mod tools;
pub(crate) mod verbatim;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::larder::config::Config;
use tempfile::TempDir;

pub(crate) use self::bench::Bench;
pub(crate) use self::ca::Ca;
pub(crate) use self::client::{Client, End, Got};
pub(crate) use self::larder::{EndlessRecord, Proxy};
pub(crate) use self::origin::{Mood, Origin};
pub(crate) use self::page::{Fault, Gate, Page, noise};

/// How long a test waits for something that must happen. It bounds a failing test, and no assertion depends on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// An origin, a larder and a client.
pub(crate) struct World {
    pub(crate) ca: Ca,
    pub(crate) origin: Origin,
    pub(crate) proxy: Proxy,
    pub(crate) client: Client,
    config: Config,
    // Last, so that it is removed after everything that uses it.
    dir: TempDir,
}

impl World {
    /// One with the default configuration.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// One whose larder is configured by `change`.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_origin(|config, _| change(config)).await
    }

    /// One whose larder is configured by `change` for its origin.
    pub(crate) async fn with_origin(change: impl FnOnce(&mut Config, &Origin)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let origin = Origin::tls(&ca, "127.0.0.1").await;
        let mut config = larder::config(&ca, dir.path().join("data"));
        change(&mut config, &origin);
        let proxy = Proxy::start(config.clone()).await;
        let client = proxy.client().await;
        Self { ca, origin, proxy, client, config, dir }
    }

    /// Another origin, at another address of this machine.
    pub(crate) async fn another(&self, host: &str) -> Origin {
        Origin::tls(&self.ca, host).await
    }

    /// The test's directory, which is removed when the test ends.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of larder's cache, which may be deleted at any time.
    pub(crate) fn cache(&self) -> PathBuf {
        self.proxy.data.join("v1")
    }

    /// How larder is configured.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Stops larder, calls `between`, and starts a larder on the same directory.
    pub(crate) async fn restart(&mut self, between: impl FnOnce(&Path)) {
        self.proxy.stop().await;
        between(&self.proxy.data);
        self.proxy = Proxy::start(self.config.clone()).await;
        self.client = self.proxy.client().await;
    }

    /// Stops larder, and starts a larder on the same directory that serves while it reads its records. It reads them until
    /// the result is dropped.
    pub(crate) async fn restart_reading(&mut self) -> EndlessRecord {
        self.proxy.stop().await;
        let record = EndlessRecord::put(&self.proxy.data).await;
        self.proxy = Proxy::begin(self.config.clone()).await;
        self.client = self.proxy.client().await;
        record
    }

    /// Waits until larder has read its records.
    pub(crate) async fn has_read(&self, record: EndlessRecord) {
        drop(record);
        let ready = async || self.proxy.own("/-/ready").await.starts_with("ready");
        eventually("its records are read", ready).await;
    }

    /// Waits until the output of `larder ARGUMENTS` contains `part`, and returns the output.
    pub(crate) async fn told(&self, arguments: &[&str], part: &str) -> String {
        binary::told(&self.ca, &self.proxy.data, arguments, part).await
    }

    /// A GET with its whole answer.
    pub(crate) async fn get(&self, url: &str) -> Got {
        self.client.get(url).send().await
    }

    /// A GET whose answer must be complete.
    #[track_caller]
    pub(crate) fn fetch(&self, url: &str) -> impl Future<Output = Got> {
        let ask = self.client.get(url);
        async move { ask.send().await.complete() }
    }
}

/// Waits until `check` returns true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came true: {what}");
}

/// Every file under `dir`.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The files under `dir` that contain `needle`. A file that disappeared meanwhile contains nothing.
pub(crate) fn holding(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        std::fs::read(path)
            .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    };
    files(dir).into_iter().filter(holds).collect()
}
