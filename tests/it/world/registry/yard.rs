//! A registry beyond a larder in this process, and real clients that know of nothing but a proxy and a certificate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::image::Image;
use super::{Around, NAME, OWNER, Registry};
use crate::world::names::Names;
use crate::world::tools::{client, installed, run, text, trusted_file};
use crate::world::{World, files};

/// What podman and buildah must be told to keep to a directory of the test's.
const STORAGE: [&str; 6] = ["--root", "$ROOT", "--runroot", "$RUN", "--storage-driver", "vfs"];

/// A registry beyond larder, and what clients need to know of larder.
pub(crate) struct Yard {
    pub(crate) registry: Registry,
    pub(crate) world: World,
    ca: String,
    pub(crate) names: Names,
    tokens: bool,
}

impl Yard {
    pub(crate) async fn new(around: Around) -> Self {
        let names = Names::new().await;
        let url = names.url();
        let world = World::with(|config| {
            config.upstream.https_proxy = Some(url);
            let url = format!("https://{NAME}");
            config.mirror.registries = vec![larder::config::Registry { name: None, url }];
        })
        .await;
        let registry = Registry::start(&world.ca, world.dir(), around).await;
        for origin in [&registry.front, &registry.files, &registry.tokens.front] {
            names.know(origin);
        }
        let ca = trusted_file(&world).await;
        Self { registry, world, ca, names, tokens: around.tokens }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.dir().join(name)
    }

    /// A client with a home of its own, so that nothing of this machine's is used or changed.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = client(&self.world, program, &self.ca);
        let home = self.path("home");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("auth.json"), "{}").unwrap();
        command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
        command.env("REGISTRY_AUTH_FILE", home.join("auth.json"));
        command
    }

    pub(crate) async fn skopeo(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("skopeo");
        command.args(["--insecure-policy"]).args(arguments);
        run(command).await
    }

    /// Pushes every platform of `image`, through larder.
    pub(crate) async fn push(&self, image: &Image, name: &str) {
        let (from, to) =
            (format!("oci:{}", image.layout.display()), format!("docker://{NAME}/{name}"));
        let mut arguments = vec!["copy", "--all", &from, &to];
        let owner = format!("{}:{}", OWNER.0, OWNER.1);
        if self.tokens {
            arguments.extend(["--dest-creds", &owner]);
        }
        let output = self.skopeo(&arguments).await;
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Pulls every platform into a directory of its own; what it holds if that succeeds.
    pub(crate) async fn pull(
        &self,
        name: &str,
        into: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.pull_as(None, name, into).await
    }

    /// The same, for somebody with user and password.
    pub(crate) async fn pull_as(
        &self,
        who: Option<(&str, &str)>,
        name: &str,
        into: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, String> {
        let to = self.path(into);
        let (from, shown) = (format!("docker://{NAME}/{name}"), format!("dir:{}", to.display()));
        let mut arguments = vec!["copy", "--all", &from, &shown];
        let who = who.map(|(user, password)| format!("{user}:{password}"));
        arguments.extend(who.iter().flat_map(|who| ["--src-creds", who]));
        let output = self.skopeo(&arguments).await;
        if output.status.success() { Ok(contents(&to)) } else { Err(text(&output)) }
    }

    /// Pulls one platform with podman or buildah into a storage called `into`; `arguments` end with the name.
    pub(crate) async fn unpack(&self, program: &str, into: &str, arguments: &[&str]) {
        let mut command = self.command(program);
        for word in STORAGE {
            match word.strip_prefix('$') {
                Some(variable) => command.arg(self.path(&format!("{into}-{variable}"))),
                None => command.arg(word),
            };
        }
        command.args(["pull", "--arch", "amd64"]).args(arguments);
        let output = run(command).await;
        assert!(output.status.success(), "{program} {}", text(&output));
        let unpacked = files(&self.path(&format!("{into}-ROOT")));
        assert!(unpacked.iter().any(|path| path.ends_with("amd64")), "{program}");
    }
}

/// Every file of a directory and what it holds, by name.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = files(dir)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// Whether all of `programs` are installed here.
pub(crate) fn can_run(programs: &[&str]) -> bool {
    programs.iter().all(|program| installed(program))
}
