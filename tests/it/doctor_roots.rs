//! `larder doctor --container`: other root directories, with their own links, programs and tools.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::world::Ca;
use crate::world::binary::{Daemon, larder, say};
use crate::world::tools::{installed, run, skip, text};

/// A root directory, and a larder beside it.
struct Container {
    ca: Ca,
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Container {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new(&directory.path().join("origins.pem"));
        let daemon = Daemon::start(&ca, &directory.path().join("data"), &[]).await;
        let container = Self { ca, daemon, directory };
        for below in ["etc/profile.d", "tmp", "root", "usr/bin"] {
            std::fs::create_dir_all(container.root().join(below)).unwrap();
        }
        let set = format!("https_proxy=http://{}\n", container.daemon.address);
        container.put("etc/environment", &set, 0o644);
        container
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn put(&self, path: &str, content: &str, mode: u32) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, path: &str, leads: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(leads, path).unwrap();
    }

    async fn certificate(&self) -> String {
        let shown = say(&self.ca, &self.directory.path().join("data"), &["ca", "show"]).await;
        String::from_utf8(shown.stdout).unwrap()
    }

    async fn doctor(&self) -> Output {
        let mut command = larder(&self.ca, &self.directory.path().join("data"));
        let proxy = format!("http://{}", self.daemon.address);
        command.args(["doctor", "--json", "--proxy", &proxy, "--container"]).arg(self.root());
        run(command).await
    }

    async fn verdict(&self, client: &str) -> Value {
        let output = self.doctor().await;
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        let all = report["clients"].as_array().unwrap();
        let found = all.iter().find(|verdict| verdict["client"] == client);
        found.unwrap_or_else(|| panic!("no {client}: {report:#}")).clone()
    }
}

/// A link in an image leads to a file of the image. This machine's file at that path is irrelevant.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_a_root_lead_to_its_own_files() {
    let container = Container::new().await;
    let certificate = container.certificate().await;
    let trusted = container.directory.path().join("trusted.pem");
    std::fs::write(&trusted, &certificate).unwrap();
    container.put("usr/lib/programs/skopeo", "", 0o755);
    container.link("usr/bin/skopeo", "/usr/lib/programs/skopeo");
    // This machine's file there has larder's CA; the image's file does not.
    container.link("etc/ssl/certs/ca-certificates.crt", trusted.to_str().unwrap());
    let inside = trusted.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
    container.put(&inside, "none\n", 0o644);
    assert_eq!(container.verdict("skopeo").await["cause"], "ca-untrusted");
    container.put(&inside, &certificate, 0o644);
    std::fs::write(&trusted, "none\n").unwrap();
    assert_eq!(container.verdict("skopeo").await["status"], "well", "the control");
    // As on Fedora: two absolute links in a row.
    std::fs::remove_file(container.root().join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    container.put("etc/pki/own/bundle.pem", &certificate, 0o644);
    container.link("etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/own/bundle.pem");
    container.link("etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt");
    assert_eq!(container.verdict("skopeo").await["status"], "well");
    // A FIFO in place of a file, and settings that lead out of the root, do not block the doctor.
    let mut pipe = Command::new("mkfifo");
    pipe.arg(container.root().join("etc/profile.d/pipe.sh"));
    assert!(run(pipe).await.status.success());
    container.put("etc/profile.d/roots.sh", "export SSL_CERT_FILE=/etc/profile.d/pipe.sh\n", 0o644);
    assert_eq!(container.verdict("skopeo").await["cause"], "ca-untrusted");
    // Nothing is written outside the root, whatever its /tmp is.
    let beside = container.directory.path().join("beside");
    std::fs::create_dir(&beside).unwrap();
    let untouched = std::fs::metadata(&beside).unwrap().modified().unwrap();
    std::fs::remove_dir_all(container.root().join("tmp")).unwrap();
    container.link("tmp", beside.to_str().unwrap());
    container.verdict("skopeo").await;
    assert_eq!(std::fs::metadata(&beside).unwrap().modified().unwrap(), untouched);
}

/// A root in which busybox is every program, as in Alpine, with a package manager and an update tool that are stand-ins.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_root_of_busybox_each_line_mends_what_it_says() {
    if !rustix::process::geteuid().is_root() || !installed("busybox") {
        skip("only root may enter another root, and there must be something in it");
        return;
    }
    let container = Container::new().await;
    furnish(&container.root()).await;
    container.put("etc/environment", "", 0o644);
    container.put("etc/os-release", "ID=alpine\n", 0o644);
    container.put("etc/ssl/certs/ca-certificates.crt", "none\n", 0o644);
    container.put("usr/local/share/ca-certificates/README", "", 0o644);
    let tool = "#!/bin/sh\ncat /usr/local/share/ca-certificates/*.crt > /etc/ssl/certs/ca-certificates.crt\n";
    container.put("usr/sbin/update-ca-certificates", tool, 0o755);
    container.put("sbin/apk", "#!/bin/sh\n", 0o755);
    for (client, cause) in
        [("busybox wget", "proxy-unset"), ("apk", "ca-untrusted"), ("apk", "proxy-unset")]
    {
        if client == "apk" && cause == "proxy-unset" {
            // Its trust store is repaired by now.
            std::fs::remove_file(container.root().join("root/.profile")).unwrap();
        }
        let ill = container.verdict(client).await;
        assert_eq!(ill["cause"], cause, "{ill:#}");
        let mut mend = Command::new("sh");
        mend.args(["-c", ill["mend"].as_str().unwrap()]);
        let mended = run(mend).await;
        assert!(mended.status.success(), "{ill:#} {}", text(&mended));
        let after = container.verdict(client).await;
        assert_eq!(after["status"], "well", "{ill:#} {after:#} {}", text(&mended));
    }
    // It sends https URLs to the proxy unencrypted, so that there is no certificate to distrust.
    assert_eq!(container.verdict("busybox wget").await["how"], "probed");
}

/// Puts busybox into a root, with the libraries that it is linked with, under all its names.
async fn furnish(root: &Path) {
    let program = ["/bin/busybox", "/usr/bin/busybox"];
    let program = program.into_iter().find(|path| Path::new(path).exists()).unwrap();
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let linked = String::from_utf8_lossy(&run(ldd).await.stdout).into_owned();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/busybox"]) {
        let to = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(if file == "/bin/busybox" { program } else { file }, to).unwrap();
    }
    for directory in ["dev", "usr/sbin", "sbin"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    // /dev is not mounted in the root: a file will do for discarded output.
    std::fs::write(root.join("dev/null"), "").unwrap();
    let mut install = Command::new("chroot");
    install.arg(root).args(["/bin/busybox", "--install", "-s"]);
    let output = run(install).await;
    assert!(output.status.success(), "{}", text(&output));
}
