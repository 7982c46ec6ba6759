//! Real clients as processes, each with a deadline and without this machine's proxy settings.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::{PATIENCE, World};

/// Variables that would lead a client around the test's larder, or to other trust anchors.
const FORGOTTEN: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
];

/// Removes the variables that a client must not inherit.
pub(crate) fn forget_proxies(command: &mut Command) {
    for name in FORGOTTEN {
        command.env_remove(name);
    }
}

/// `program` as a client of `world`'s larder, configured with the usual environment variables.
pub(crate) fn client(world: &World, program: &str, ca: &str) -> Command {
    let mut command = Command::new(program);
    forget_proxies(&mut command);
    let proxy = format!("http://{}", world.proxy.address);
    command
        .env("http_proxy", &proxy)
        .env("https_proxy", &proxy)
        .env("HTTPS_PROXY", &proxy)
        .env("SSL_CERT_FILE", ca)
        .env("CURL_CA_BUNDLE", ca)
        .env("REQUESTS_CA_BUNDLE", ca)
        .current_dir(world.dir());
    command
}

/// Runs `command` until it ends.
pub(crate) async fn run(command: Command) -> Output {
    run_within(command, PATIENCE).await
}

/// The same with another limit, for what waits for others by itself.
pub(crate) async fn run_within(mut command: Command, limit: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let shown = format!("{command:?}");
    let output = tokio::time::timeout(limit, command.output()).await;
    output.unwrap_or_else(|_| panic!("did not end: {shown}")).unwrap()
}

/// The output of a process, both streams.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Sends `process` the signal called `name`.
pub(crate) async fn signal(process: u32, name: &str) {
    let mut command = Command::new("kill");
    command.args(["-s", name, &process.to_string()]);
    assert!(run(command).await.status.success());
}

/// Writes the certificate that clients must trust into the test's directory; returns the path.
pub(crate) async fn trusted_file(world: &World) -> String {
    let file = world.dir().join("larder.pem");
    std::fs::write(&file, world.proxy.own("/ca.crt").await).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Whether `program` is installed here. If not, prints that the test skips it.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// Writes a program. Another process writes it: while this one has a file open for writing, a fork of another thread would have it
/// open as well, and the system refuses to run such a file ("text file busy").
pub(crate) fn executable(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut writing = install.spawn().unwrap();
    writing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writing.wait().unwrap().success(), "{}", path.display());
}

/// Prints why a test checked nothing, for example a client that is not installed here.
pub(crate) fn skip(reason: &str) {
    say(&format!("skipped: {reason}"));
}

/// Prints a line for the person who runs the tests.
pub(crate) fn say(line: &str) {
    // If standard error is closed, nobody would read it.
    let _written = writeln!(std::io::stderr(), "{line}");
}
