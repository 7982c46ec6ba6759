//! `larder exec` and clients that no variable reaches: those that read only the system's trust store, and Java. Row 12 of what
//! must not be in the way.

use std::path::Path;
use std::process::{Command, Output};

use crate::world::binary::larder;
use crate::world::tools::{installed, run, skip, text};
use crate::world::{Ca, Origin, Page};

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// As dnf, zypper, pacman and aria2 behave: they read only the system's file.
const OF_THE_SYSTEM: &str = "env -u SSL_CERT_FILE -u SSL_CERT_DIR -u CURL_CA_BUNDLE \
                             curl -fsS --cacert /etc/ssl/certs/ca-certificates.crt";

async fn exec(ca: &Ca, data: &Path, flags: &[&str], script: &str) -> Output {
    let mut command = larder(ca, data);
    command.arg("exec").args(flags).args(["--", "sh", "-c", script]);
    run(command).await
}

/// Whether a test may create a mount namespace on this machine.
fn may_mount() -> bool {
    let may = Command::new("unshare")
        .args(["-m", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
        && Path::new(BUNDLE).exists();
    if !may {
        skip("no mount namespace can be made here");
    }
    may
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_only_the_systems_roots_gets_through_for_root() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let url = origin.put("/x", Page::new("through"));
    let data = dir.path().join("data");
    let before = std::fs::read(BUNDLE).unwrap();
    let script = format!("{OF_THE_SYSTEM} '{url}'");
    let output = exec(&ca, &data, &[], &script).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout) == "through");
    assert!(!text(&output).contains("WARNING"), "{}", text(&output));
    assert!(std::fs::read(BUNDLE).unwrap() == before, "the machine's own file is as it was");
    // The control: in this namespace curl refuses larder's certificate, and the last line says so clearly.
    let output = exec(&ca, &data, &["--no-namespace"], &script).await;
    assert!(!output.status.success(), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = told.lines().last().unwrap();
    assert!(last.contains("NOTHING CAME THROUGH LARDER: 1 connection"), "{told}");
    assert!(last.contains("`larder doctor`") && last.contains("as root"), "{told}");
}

/// The system's tools replace its files with a rename, which fails over a mount point. Files that they make must persist, and
/// larder's CA must not.
#[tokio::test(flavor = "multi_thread")]
async fn the_systems_roots_can_be_renewed_inside() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    // A machine whose trust store may be changed: this one's, with another directory mounted over it.
    let certs = dir.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    std::fs::copy(BUNDLE, certs.join("ca-certificates.crt")).unwrap();
    std::fs::write(certs.join("gone.pem"), "old").unwrap();
    let renew = "set -e; cd /etc/ssl/certs; grep -c BEGIN ca-certificates.crt; echo renewed > ca-certificates.crt.new; \
                 mv -f ca-certificates.crt.new ca-certificates.crt; ln -s ca-certificates.crt 01234567.0; rm gone.pem";
    let inner = larder(&ca, &dir.path().join("data"));
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/ssl/certs && exec \"$@\""])
        .arg(&certs);
    command.arg(inner.get_program()).args(inner.get_args()).args(["exec", "--", "sh", "-c", renew]);
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(std::fs::read_to_string(certs.join("ca-certificates.crt")).unwrap(), "renewed\n");
    assert!(certs.join("01234567.0").is_symlink() && !certs.join("gone.pem").exists());
    let left: Vec<_> =
        std::fs::read_dir(&certs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing of larder's is left: {left:?}");
}

/// A user who believes that larder was used is told that it was not.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_which_nothing_came_through_ends_with_a_loud_line() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let url = origin.put("/x", Page::new("x"));
    let around = format!("curl -fsS --noproxy '*' --cacert '{}' '{url}'", ca.file().display());
    // The system's directory, which curl would also read, contains larder's CA here.
    let refuses =
        format!("curl -fsS --capath /nonexistent --cacert '{}' '{url}' || :", ca.file().display());
    let through = format!("curl -fsS '{url}'");
    for (script, loud) in [
        (around.as_str(), Some("went around")),
        (&refuses, Some("1 connection ended without a request")),
        (&through, None),
    ] {
        let output = exec(&ca, &dir.path().join("data"), &[], script).await;
        assert!(output.status.success(), "{}", text(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = told.lines().last().unwrap();
        match loud {
            Some(loud) => {
                assert!(last.contains(loud) && last.contains("`larder doctor`"), "{told}");
            }
            None => assert!(!told.contains("WARNING"), "{told}"),
        }
        let quiet = exec(&ca, &dir.path().join("data"), &["--quiet"], script).await;
        assert!(!text(&quiet).contains("WARNING"), "{}", text(&quiet));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn java_gets_through_by_its_own_variable() {
    const GET: &str = "public class Get { public static void main(String[] a) throws Exception {
        var to = (java.net.HttpURLConnection) new java.net.URL(a[0]).openConnection();
        System.out.print(\"by java \" + to.getResponseCode()); } }";
    if !installed("java") || !installed("javac") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    // Java never uses a proxy for an address of this machine. Only larder itself answers for this host name.
    let url = format!("https://{}.probe.larder.internal/", "0123456789abcdef".repeat(2));
    let source = dir.path().join("Get.java");
    std::fs::write(&source, GET).unwrap();
    let java = format!("java '{}' '{url}'", source.display());
    let data = dir.path().join("data");
    let output = exec(&ca, &data, &[], &java).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "by java 200");
    // The controls: without the variable, the same Java bypasses larder; with its own trust store it does not trust larder.
    for without in ["unset JAVA_TOOL_OPTIONS", "JAVA_TOOL_OPTIONS=${JAVA_TOOL_OPTIONS%%-Djavax*}"] {
        let output = exec(&ca, &data, &[], &format!("{without}; {java}")).await;
        assert!(!output.status.success(), "{without}: {}", text(&output));
    }
}
