//! Real apt as a client of one archive: in a new home directory each time, through larder or without it.

use std::process::Command;

use super::gpg::Key;
use super::repository::{Files, SOURCE, read};
use super::tools::{client, forget_proxies, run, text, trusted_file};
use super::{Origin, World};
use crate::signed::apt_home;

/// The result of one `apt-get` run for lists and packages.
#[derive(Debug)]
pub(crate) struct Came {
    /// Whether every command succeeded without a complaint.
    pub(crate) well: bool,
    /// The commands' output.
    pub(crate) said: String,
    /// What was downloaded, by file name.
    pub(crate) files: Files,
}

/// `apt-get`, without this machine's configuration.
pub(crate) struct Apt {
    home: tempfile::TempDir,
    ca: String,
    through: bool,
}

impl Apt {
    /// One that trusts `key` for the archive at `line`: the part after the type in a sources.list line, with `ROOT` for the
    /// origin's URL.
    pub(crate) async fn through(world: &World, origin: &Origin, key: &Key, line: &str) -> Self {
        let ca = trusted_file(world).await;
        Self::new(world, origin, key, line, ca, true)
    }

    /// The same, without larder in between.
    pub(crate) fn without(world: &World, origin: &Origin, key: &Key, line: &str) -> Self {
        let ca = world.ca.file().to_str().unwrap().to_owned();
        Self::new(world, origin, key, line, ca, false)
    }

    fn new(
        world: &World,
        origin: &Origin,
        key: &Key,
        line: &str,
        ca: String,
        through: bool,
    ) -> Self {
        let home = apt_home(world, origin, key, &ca);
        let line = line.replace("ROOT", &origin.url(""));
        let options = format!("[signed-by={} arch=amd64]", key.public.display());
        let lines = format!("deb {options} {line}\ndeb-src {options} {line}\n");
        std::fs::write(home.path().join("sources.list"), lines).unwrap();
        Self { home, ca, through }
    }

    /// With more configuration.
    pub(crate) fn configured(self, more: &str) -> Self {
        let file = self.home.path().join("apt.conf");
        let conf = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, format!("{conf}{more}\n")).unwrap();
        self
    }

    /// Whether its downloaded lists contain `needle`.
    pub(crate) fn lists_hold(&self, needle: &str) -> bool {
        !super::holding(&self.home.path().join("lists"), needle.as_bytes()).is_empty()
    }

    /// `apt-get update`, then the binary packages and, if `source`, the source package.
    pub(crate) async fn fetch(&self, world: &World, packages: &[&str], source: bool) -> Came {
        let mut all = self.get(world, &["update"]).await;
        let mut steps = vec![[&["download"][..], packages].concat()];
        if source {
            steps.push(vec!["source", "--download-only", "--only-source", SOURCE]);
        }
        for step in steps {
            let came = self.get(world, &step).await;
            all.well &= came.well;
            all.said.push_str(&came.said);
        }
        all.files = read(&self.home.path().join("down"));
        all
    }

    /// `apt-get ARGUMENTS`.
    pub(crate) async fn get(&self, world: &World, arguments: &[&str]) -> Came {
        let mut command = if self.through {
            client(world, "apt-get", &self.ca)
        } else {
            let mut command = Command::new("apt-get");
            forget_proxies(&mut command);
            command
        };
        let down = self.home.path().join("down");
        std::fs::create_dir_all(&down).unwrap();
        command
            .env("APT_CONFIG", self.home.path().join("apt.conf"))
            .env("LC_ALL", "C")
            .arg("-q")
            .args(arguments)
            .current_dir(&down);
        let output = run(command).await;
        let well = crate::signed::complaint(&output).is_ok();
        Came { well, said: text(&output), files: read(&down) }
    }
}
