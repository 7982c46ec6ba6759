//! The mirror form with real clients of container registries, which are configured with a mirror and without a proxy:
//! `registries.conf` of skopeo (and podman, buildah), containerd's `hosts.toml`, dockerd's `registry-mirrors`.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::world::eventually;
use crate::world::registry::image::Image;
use crate::world::registry::yard::{Yard, can_run};
use crate::world::registry::{Around, NAME, PROGRAM};
use crate::world::tools::{forget_proxies, run, skip, text};

const BOX: &str = "gears/box:1.0";

async fn yard() -> (Yard, Image) {
    let yard = Yard::new(Around { redirects: true, tokens: false }).await;
    let image = Image::new(yard.world.dir(), 41, 300_000);
    yard.push(&image, BOX).await;
    (yard, image)
}

fn bare(yard: &Yard, program: &str) -> Command {
    let mut command = Command::new(program);
    forget_proxies(&mut command);
    command.env("HOME", yard.path("home")).current_dir(yard.world.dir());
    // A fall-back to the registry itself fails at once, without reaching the internet.
    for name in ["HTTPS_PROXY", "https_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_by_a_mirror_in_registries_conf() {
    if !can_run(&[PROGRAM, "skopeo"]) {
        return;
    }
    let (yard, image) = yard().await;
    let conf = yard.path("registries.conf");
    let mirror = format!(
        "[[registry]]\nprefix = \"{NAME}\"\nlocation = \"{NAME}\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         insecure = true\n",
        yard.world.proxy.address
    );
    std::fs::write(&conf, mirror).unwrap();
    let pull = |into: &'static str| {
        let mut command = bare(&yard, "skopeo");
        command.arg("--registries-conf").arg(&conf).args(["--insecure-policy", "copy", "--all"]);
        command.arg(format!("docker://{NAME}/{BOX}"));
        command.arg(format!("dir:{}", yard.path(into).display()));
        run(command)
    };
    for into in ["one", "two"] {
        let output = pull(into).await;
        assert!(output.status.success(), "{}", text(&output));
    }
    for layer in &image.layers {
        assert_eq!(yard.registry.gets(layer), 1);
    }
    // Through the proxy it is the same entry.
    assert!(yard.pull(BOX, "three").await.is_ok());
    assert!(image.layers.iter().all(|layer| yard.registry.gets(layer) == 1));
}

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Daemon {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

async fn containerd(yard: &Yard, dir: &Path) -> Daemon {
    let at = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
        at("root"),
        at("state"),
        at("sock"),
        at("sock.ttrpc")
    );
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.toml"), config).unwrap();
    let mut command = bare(yard, "containerd");
    command.arg("-c").arg(dir.join("config.toml"));
    let daemon = Daemon::start(command);
    listening(&dir.join("sock")).await;
    daemon
}

async fn listening(socket: &Path) {
    eventually("it listens", || async { tokio::net::UnixStream::connect(socket).await.is_ok() })
        .await;
}

/// containerd names the original registry in the query parameter `ns`.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_by_a_host_in_hosts_toml() {
    if !rustix::process::geteuid().is_root() {
        skip("containerd wants root's rights");
        return;
    }
    if !can_run(&[PROGRAM, "skopeo", "containerd", "ctr"]) {
        return;
    }
    let (yard, image) = yard().await;
    let hosts = yard.path("hosts");
    std::fs::create_dir_all(hosts.join(NAME)).unwrap();
    let mirror = format!(
        "server = \"https://{NAME}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        yard.world.proxy.address
    );
    std::fs::write(hosts.join(NAME).join("hosts.toml"), mirror).unwrap();
    let pull = |dir: &Path| {
        let mut command = bare(&yard, "ctr");
        command.arg("--address").arg(dir.join("sock"));
        command.args(["content", "fetch", "--all-platforms", "--hosts-dir"]).arg(&hosts);
        command.arg(format!("{NAME}/{BOX}"));
        run(command)
    };
    // The second daemon has nothing from the first one's store.
    for name in ["one", "two"] {
        let daemon = containerd(&yard, &yard.path(name)).await;
        let output = pull(&yard.path(name)).await;
        assert!(output.status.success(), "{}", text(&output));
        drop(daemon);
    }
    for layer in &image.layers {
        assert_eq!(yard.registry.gets(layer), 1);
    }
}

/// dockerd uses its mirrors only for images of its default registry, and does not name the registry in its requests.
#[tokio::test(flavor = "multi_thread")]
async fn dockerd_pulls_by_a_registry_mirror() {
    if !rustix::process::geteuid().is_root() {
        skip("dockerd wants root's rights");
        return;
    }
    if !can_run(&[PROGRAM, "skopeo", "containerd", "dockerd", "docker"]) {
        return;
    }
    let (yard, image) = yard().await;
    let dir = yard.path("docker");
    let _below = containerd(&yard, &dir).await;
    let socket = format!("unix://{}", dir.join("api").display());
    let mut command = bare(&yard, "dockerd");
    for (flag, name) in [
        ("--data-root", "data"),
        ("--exec-root", "exec"),
        ("--containerd", "sock"),
        ("--pidfile", "pid"),
        ("--config-file", "none.json"),
    ] {
        command.arg(flag).arg(dir.join(name));
    }
    std::fs::write(dir.join("none.json"), "{}").unwrap();
    command.args(["-H", &socket, "--iptables=false", "--ip6tables=false", "--bridge=none"]);
    command.args(["--storage-driver=vfs", "--registry-mirror"]);
    command.arg(format!("http://{}", yard.world.proxy.address));
    let _daemon = Daemon::start(command);
    listening(&dir.join("api")).await;
    let docker = |words: &[&str]| {
        let mut command = bare(&yard, "docker");
        command.args(["-H", &socket]).args(words);
        run(command)
    };
    // A removed image is pulled again, from larder.
    for words in [&["pull", BOX][..], &["rmi", BOX], &["pull", BOX]] {
        let output = docker(words).await;
        assert!(output.status.success(), "{words:?}: {}", text(&output));
    }
    let asked: Vec<_> = image.layers.iter().map(|layer| yard.registry.gets(layer)).collect();
    assert!(asked.iter().all(|gets| *gets <= 1) && asked.contains(&1), "{asked:?}");
}
