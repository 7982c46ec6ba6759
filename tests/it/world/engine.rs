//! Container engines that pull images themselves: the daemons of docker and containerd. Each runs in a directory of the test,
//! with larder in its environment as a systemd drop-in would set it, and with mounts and processes of its own that end with it.
//!
//! A daemon is asked by its own client program; containerd also by gRPC, as Kubernetes asks it (CRI, `ImageService`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::binary::larder;
use super::registry::NAME;
use super::registry::yard::Yard;
use super::tools::{forget_proxies, installed, run, skip, text};
use super::{PATIENCE, files};

/// No other process sees the mounts, and killing the first process kills all.
const APART: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// docker does not keep to one directory. What it writes elsewhere disappears with its mounts, and what it would read there is
/// hidden. Without a resolver it cannot ask a name server for the registry's name, which only the proxy knows.
const HIDDEN: &str = "mkdir -p /etc/docker && mount -t tmpfs none /etc/docker && mount -t tmpfs none /run \
                      && mount --bind /dev/null /etc/resolv.conf && exec \"$@\"";

/// Messages of daemons that a kernel or a container does not allow to start.
const NOT_HERE: [&str; 4] = ["not permitted", "ermission denied", "cgroup", "must be root"];

/// What pulls, and how it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// docker's daemon, asked with `docker`.
    Docker,
    /// `ctr`, which itself pulls into containerd's store.
    Ctr,
    /// containerd's daemon, asked as Kubernetes does.
    Cri,
}

impl Engine {
    pub(crate) const ALL: [Self; 3] = [Self::Docker, Self::Ctr, Self::Cri];

    /// The programs it needs.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["dockerd", "docker", "containerd"],
            Self::Ctr => &["containerd", "ctr"],
            Self::Cri => &["containerd"],
        }
    }
}

/// The engines that can be tried on this machine; prints why the others cannot.
pub(crate) async fn engines() -> Vec<Engine> {
    let mut command = Command::new("unshare");
    command.args(APART).args(["mount", "-t", "tmpfs", "none", "/mnt"]);
    let apart = run(command).await;
    if !apart.status.success() {
        skip(&format!("daemons want mounts of their own: {}", text(&apart).trim()));
        return Vec::new();
    }
    let can = |engine: &Engine| engine.programs().iter().all(|program| installed(program));
    Engine::ALL.into_iter().filter(can).collect()
}

/// Options of a pull, besides the image's name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct As<'a> {
    /// The platform's architecture, if it is not this machine's. Kubernetes cannot choose it.
    pub(crate) architecture: Option<&'a str>,
    pub(crate) who: Option<(&'a str, &'a str)>,
}

/// How a daemon is pointed at larder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Environment variables.
    pub(crate) variables: Vec<(String, String)>,
    /// The URL that is configured as the registry's mirror.
    pub(crate) mirror: Option<String>,
}

/// A running daemon with an empty store. It stops when this is dropped.
pub(crate) struct Daemon {
    engine: Engine,
    dir: PathBuf,
    told: Told,
    // Last, so that it is killed after everything else was dropped.
    _process: Child,
}

impl Daemon {
    /// Starts one in a directory called `name`; `None` if this machine does not allow it to run, which is printed.
    pub(crate) async fn start(yard: &Yard, engine: Engine, name: &str) -> Option<Self> {
        let told = Told { variables: variables(yard).await, mirror: None };
        Self::start_with(yard, engine, name, told).await
    }

    /// The same, pointed at larder in another way.
    pub(crate) async fn start_with(
        yard: &Yard,
        engine: Engine,
        name: &str,
        told: Told,
    ) -> Option<Self> {
        let dir = yard.path(&format!("{name}-{engine:?}"));
        std::fs::create_dir_all(dir.join("home")).unwrap();
        let mut command = Command::new("unshare");
        forget_proxies(&mut command);
        command.args(APART).args(["sh", "-c", HIDDEN, "sh"]);
        match engine {
            Engine::Docker => dockerd(&mut command, &dir, &told),
            Engine::Ctr | Engine::Cri => containerd(&mut command, &dir, &told),
        }
        let log = dir.join("log");
        let file = std::fs::File::create(&log).unwrap();
        command.envs(told.variables.iter().map(|(name, value)| (name, value)));
        command.env("HOME", dir.join("home")).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut process =
            tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        let socket = dir.join("socket");
        let listens = tokio::time::timeout(PATIENCE, async {
            while UnixStream::connect(&socket).await.is_err() {
                if process.try_wait().unwrap().is_some() {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            true
        });
        let listens = listens.await.unwrap_or_default();
        let said = std::fs::read_to_string(&log).unwrap();
        if !listens {
            assert!(NOT_HERE.iter().any(|word| said.contains(word)), "{engine:?} {said}");
            skip(&format!("{engine:?} does not start here: {}", said.lines().last().unwrap()));
            return None;
        }
        Some(Self { engine, dir, told, _process: process })
    }

    /// Pulls the image called `name` and unpacks it. The error is the daemon's output.
    pub(crate) async fn pull(&self, name: &str, asked: As<'_>) -> Result<(), String> {
        match self.engine {
            Engine::Docker => self.docker_pull(name, asked).await,
            Engine::Ctr => self.ctr_pull(name, asked).await,
            Engine::Cri => self.cri_pull(name, asked).await,
        }
    }

    /// Whether a layer that was unpacked here contained a file called `name`.
    pub(crate) fn unpacked(&self, name: &str) -> bool {
        files(&self.dir.join("root")).iter().any(|file| file.ends_with(name))
    }

    /// A `docker` command with these arguments, and a directory of its own for logins. It has no proxy; the daemon has.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        forget_proxies(&mut command);
        command.arg("--config").arg(self.dir.join("home"));
        command.arg("--host").arg(format!("unix://{}", self.dir.join("socket").display()));
        command.args(arguments).env("HOME", self.dir.join("home"));
        command
    }

    async fn docker_pull(&self, name: &str, asked: As<'_>) -> Result<(), String> {
        if let Some((user, password)) = asked.who {
            let host = name.split('/').next().unwrap();
            succeeded(self.docker(&["login", "-u", user, "-p", password, host])).await?;
        }
        let platform = asked.architecture.map(|architecture| format!("linux/{architecture}"));
        let platform = platform.iter().flat_map(|platform| ["--platform", platform]);
        let words: Vec<&str> = ["pull"].into_iter().chain(platform).chain([name]).collect();
        succeeded(self.docker(&words)).await
    }

    async fn ctr_pull(&self, name: &str, asked: As<'_>) -> Result<(), String> {
        let mut command = Command::new("ctr");
        forget_proxies(&mut command);
        command.envs(self.told.variables.iter().map(|(name, value)| (name, value)));
        command.arg("--address").arg(self.dir.join("socket"));
        command.args(["images", "pull", "--snapshotter", "native"]);
        if let Some(architecture) = asked.architecture {
            command.arg("--platform").arg(format!("linux/{architecture}"));
        }
        if self.told.mirror.is_some() {
            command.arg("--hosts-dir").arg(self.dir.join("hosts"));
        }
        if let Some((user, password)) = asked.who {
            command.arg("--user").arg(format!("{user}:{password}"));
        }
        command.arg(name);
        succeeded(command).await
    }

    /// Calls `PullImage` (CRI's `api.proto`): a gRPC frame over HTTP/2, built without a library because it has only four fields.
    async fn cri_pull(&self, name: &str, asked: As<'_>) -> Result<(), String> {
        assert!(asked.architecture.is_none(), "Kubernetes pulls for the machine that it runs on");
        let login = |(user, password): (&str, &str)| {
            [field(1, user.as_bytes()), field(2, password.as_bytes())].concat()
        };
        let mut message = field(1, &field(1, name.as_bytes()));
        message.extend(asked.who.iter().flat_map(|who| field(2, &login(*who))));
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                let end = self.call("runtime.v1.ImageService/PullImage", frame.clone()).await;
                let said = format!("{end:?}");
                // It listens a little before it is ready.
                if !said.contains("not initialized yet") {
                    break if end["grpc-status"] == "0" { Ok(()) } else { Err(said) };
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        answered.await.expect("containerd did not answer")
    }

    /// The trailers of a gRPC call.
    async fn call(&self, what: &str, frame: Vec<u8>) -> HeaderMap {
        let stream = UnixStream::connect(self.dir.join("socket")).await.unwrap();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://containerd/{what}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(frame)))
            .unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let end = body.collect().await.unwrap().trailers().cloned();
        // A call that fails at once is answered with a head only.
        end.unwrap_or(head.headers)
    }
}

/// The variables that `larder env` prints for a unit's drop-in.
pub(crate) async fn variables(yard: &Yard) -> Vec<(String, String)> {
    let mut command = larder(&yard.world.ca, &yard.world.proxy.data);
    let proxy = format!("http://{}", yard.world.proxy.address);
    command.args(["env", "--format", "json", "--proxy", &proxy, "--directory"]);
    command.arg(yard.path("clients"));
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = json["variables"].as_object().unwrap().iter();
    all.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn dockerd(command: &mut Command, dir: &Path, told: &Told) {
    command.arg("dockerd").arg("--data-root").arg(dir.join("root"));
    command.arg("--exec-root").arg(dir.join("state")).arg("--pidfile").arg(dir.join("pid"));
    command.arg("--host").arg(format!("unix://{}", dir.join("socket").display()));
    // No container runs, so that this machine's network is not changed.
    command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    command.args(["--ip-masq=false", "--userland-proxy=false", "--storage-driver=vfs"]);
    command.args(told.mirror.iter().flat_map(|url| ["--registry-mirror", url]));
}

fn containerd(command: &mut Command, dir: &Path, told: &Told) {
    let shown = dir.display();
    if let Some(url) = &told.mirror {
        let hosts = dir.join("hosts").join(NAME);
        std::fs::create_dir_all(&hosts).unwrap();
        let mirror = format!("[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(hosts.join("hosts.toml"), mirror).unwrap();
    }
    let settings = format!(
        "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
         [grpc]\naddress = \"{shown}/socket\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{shown}/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_apparmor = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{shown}/hosts\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{shown}/cni\"\nconf_dir = \"{shown}/cni\"\n"
    );
    let file = dir.join("config.toml");
    std::fs::write(&file, settings).unwrap();
    command.arg("containerd").arg("--config").arg(file);
}

async fn succeeded(command: Command) -> Result<(), String> {
    let output = run(command).await;
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

/// A field of a message with fewer than 128 bytes (Protocol Buffers, "Encoding", `LEN`).
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 0x80).unwrap();
    [&[number << 3 | 2, length], bytes].concat()
}
