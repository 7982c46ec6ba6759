//! A registry behind a larder in this process, and real clients that are configured only with a proxy and a certificate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::image::Image;
use super::{Around, NAME, OWNER, Registry};
use crate::world::names::Names;
use crate::world::tools::{client, installed, run, text, trusted_file};
use crate::world::{World, files};

/// The arguments that keep podman and buildah to a directory of the test.
const STORAGE: [&str; 6] = ["--root", "$ROOT", "--runroot", "$RUN", "--storage-driver", "vfs"];

/// The passwords of the owner and of the member, hashed with bcrypt at its lowest cost.
const PASSWORDS: &str = "owner:$2b$04$/VqjQfOEsNsHu.PSz736yOejJ8K0JpjvCRXwL6F/PkFHIJrJ/cdEy\n\
                         member:$2b$04$anyP6NZQW/XPZGfj9LNWJO1UFqL0aVY4ZDvZm0L4AsPcc1PWmpDJy\n";

/// A registry behind larder, and what clients need to use larder.
pub(crate) struct Yard {
    pub(crate) registry: Registry,
    pub(crate) world: World,
    ca: String,
    pub(crate) names: Names,
    /// Whether a push needs a login.
    logins: bool,
}

impl Yard {
    pub(crate) async fn new(around: Around) -> Self {
        Self::with(around, |_| String::new()).await
    }

    /// A registry that requires user and password with every request (HTTP Basic), and knows the owner and a member.
    pub(crate) async fn with_passwords() -> Self {
        Self::with(Around::default(), |dir| {
            let file = dir.join("htpasswd");
            std::fs::write(&file, PASSWORDS).unwrap();
            format!("auth:\n  htpasswd:\n    realm: gears\n    path: {}\n", file.display())
        })
        .await
    }

    async fn with(around: Around, auth: impl FnOnce(&Path) -> String) -> Self {
        let names = Names::new().await;
        let url = names.url();
        let world = World::with(|config| {
            config.upstream.https_proxy = Some(url);
            // Clients that use larder as a mirror without naming a registry get this one.
            let mirrored = larder::config::Registry { name: None, url: format!("https://{NAME}") };
            config.mirror.registries = vec![mirrored];
        })
        .await;
        let auth = auth(world.dir());
        let registry = Registry::start_with(&world.ca, world.dir(), around, &auth).await;
        for origin in [&registry.front, &registry.files, &registry.tokens.front] {
            names.know(origin);
        }
        let ca = trusted_file(&world).await;
        Self { registry, world, ca, names, logins: around.tokens || !auth.is_empty() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.dir().join(name)
    }

    /// A client with a home of its own, so that this machine's files are neither used nor changed.
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
        self.push_with(image, name, &["copy", "--all"]).await;
    }

    /// Pushes one platform, without an index.
    pub(crate) async fn push_platform(&self, image: &Image, name: &str, architecture: &str) {
        self.push_with(image, name, &["--override-arch", architecture, "copy"]).await;
    }

    async fn push_with(&self, image: &Image, name: &str, how: &[&str]) {
        let (from, to) =
            (format!("oci:{}", image.layout.display()), format!("docker://{NAME}/{name}"));
        let mut arguments = [how, &[&from, &to]].concat();
        let owner = format!("{}:{}", OWNER.0, OWNER.1);
        if self.logins {
            arguments.extend(["--dest-creds", &owner]);
        }
        let output = self.skopeo(&arguments).await;
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Pulls every platform into a directory of its own; returns its content if that succeeds.
    pub(crate) async fn pull(
        &self,
        name: &str,
        into: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.pull_as(None, name, into).await
    }

    /// The same, with user and password.
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

/// Every file of a directory and its content, by name.
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
