//! What a test needs that starts the program itself: an origin, its CA, and a directory for the program's data.

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use super::binary::{Daemon, larder, say};
use super::{Ca, Origin};

/// Origin, CA and directory.
pub(crate) struct Bench {
    pub(crate) origin: Origin,
    pub(crate) ca: Ca,
    // Last, so that it is removed after everything that uses it.
    pub(crate) dir: TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        Self { origin: Origin::tls(&ca, "127.0.0.1").await, ca, dir }
    }

    /// The program's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes a file beside the data directory; returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// `larder serve`, once it listens.
    pub(crate) async fn start(&self, environment: &[(&str, &str)]) -> Daemon {
        Daemon::start(&self.ca, &self.data(), environment).await
    }

    /// A `larder` command, to which arguments can be added.
    pub(crate) fn larder(&self) -> Command {
        larder(&self.ca, &self.data())
    }

    /// Runs `larder ARGUMENTS`; returns its output.
    pub(crate) async fn say(&self, arguments: &[&str]) -> Output {
        say(&self.ca, &self.data(), arguments).await
    }
}
