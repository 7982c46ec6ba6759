//! `larder exec`: a prefix to a command, which otherwise runs unchanged.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::world::archive::by_hash;
use crate::world::binary::{Daemon, larder};
use crate::world::blind::Blind;
use crate::world::tools::{run, signal, text};
use crate::world::{Ca, Fault, Gate, Origin, PATIENCE, Page, noise};

/// Runs `script` with `larder exec` and `environment`.
async fn exec(ca: &Ca, data: &Path, script: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = larder(ca, data);
    command.envs(environment.iter().copied());
    command.args(["exec", "--", "sh", "-c", script]);
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_downloads_through_larder_and_the_next_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    // `exec` excludes this machine's own names and addresses from the proxy; this address is not among them.
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let body = noise(1, 300_000);
    let path = by_hash(&body);
    let url = origin.put(&path, Page::new(body.clone()));
    let data = dir.path().join("data");
    let script = format!("curl -fsS '{url}' | cksum; exit 7");
    let direct =
        format!("curl -fsS --noproxy '*' --cacert '{}' '{url}' | cksum", ca.file().display());
    let expected = run({
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &direct]);
        command
    })
    .await;
    let asked = origin.gets(&path);
    // First with a larder of its own that ends with the command, then with one that runs already.
    for round in 0..2 {
        let output = exec(&ca, &data, &script, &[]).await;
        assert_eq!(
            output.status.code(),
            Some(7),
            "{round}: the exit code is the command's: {}",
            text(&output)
        );
        assert_eq!(output.stdout, expected.stdout, "{round}: {}", text(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = told.lines().last().unwrap_or_default();
        assert!(last.contains("hit") && last.contains("miss"), "{round}: the summary: {told}");
    }
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let output = exec(&ca, &data, &script, &[]).await;
    assert_eq!(
        (output.status.code(), &output.stdout),
        (Some(7), &expected.stdout),
        "{}",
        text(&output)
    );
    assert_eq!(origin.gets(&path), asked + 1, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_had_set_is_kept_where_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let script = "printf '%s|%s|%s|%s\\n' \"$NO_PROXY\" \"$https_proxy\" \"$HTTPS_PROXY\" \"$PIP_CERT\"; \
                  test -s \"$SSL_CERT_FILE\" && test -s \"$APT_CONFIG\" && grep -c BEGIN \"$SSL_CERT_FILE\"";
    let output = exec(&ca, &data, script, &[("NO_PROXY", "inner.example.org,10.0.0.0/8")]).await;
    assert!(output.status.success(), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = told.lines();
    let fields: Vec<&str> = lines.next().unwrap().split('|').collect();
    assert!(fields[0].contains("inner.example.org") && fields[0].contains("10.0.0.0/8"), "{told}");
    assert!(fields[1].starts_with("http://") && fields[1] == fields[2], "{told}");
    assert!(!fields[3].is_empty(), "{told}");
    // A bundle that replaces the trust store contains the system's roots as well.
    assert!(lines.next().unwrap().parse::<u32>().unwrap() > 1, "{told}");
}

/// If the user's way to the internet is a proxy, larder must use it, and the command must not: it would bypass larder.
#[tokio::test(flavor = "multi_thread")]
async fn the_users_proxy_becomes_larders_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let url = origin.put("/x", Page::new("x"));
    let blind = Blind::start(Some("Basic dXNlcjpwYXNz")).await;
    let proxy = format!("http://user:pass@{}", blind.address);
    let script =
        format!("echo \"$https_proxy $HTTPS_PROXY $npm_config_https_proxy\"; curl -fsS '{url}'");
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let before = blind.heads().len();
        let output = exec(&ca, &dir.path().join(name), &script, &[(name, &proxy)]).await;
        let told = text(&output);
        assert!(output.status.success(), "{told}");
        assert!(!told.contains("pass@") && !told.contains(&blind.address.to_string()), "{told}");
        assert_eq!(blind.heads().len(), before + 1, "{told}");
    }
}

/// One command starts a larder; the others find it, or wait for it to start or to end.
#[tokio::test(flavor = "multi_thread")]
async fn commands_at_the_same_time_share_one_larder() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let body = noise(2, 100_000);
    let path = by_hash(&body);
    let url = origin.put(&path, Page::new(body));
    let script = format!("curl -fsS '{url}' | wc -c");
    let data = dir.path().join("data");
    let all = (0..6).map(|_| exec(&ca, &data, &script, &[]));
    for output in futures_util::future::join_all(all).await {
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000");
    }
    assert_eq!(origin.gets(&path), 1);
}

/// If another larder holds the directory and is ending, the command waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_larder_that_is_on_its_way_out_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let origin = Origin::tls(&ca, "127.0.0.2").await;
    let gate = Gate::closed();
    let page = Page::new(noise(3, 1_000_000)).fault(Fault::Hold(500_000, gate.clone()));
    let url = origin.put("/x", page);
    let data = dir.path().join("data");
    let mut daemon = Daemon::start(&ca, &data, &[]).await;
    let mut opened = daemon.client().await.get(&url).open().await.unwrap();
    assert!(opened.read(100_000).await);
    signal(daemon.id(), "TERM").await;
    daemon.logged("SIGTERM").await;
    let mut command = larder(&ca, &data);
    command.args(["exec", "--", "sh", "-c", "exit 5"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut waiting = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let said = BufReader::new(waiting.stderr.take().unwrap());
    let ended = tokio::time::timeout(PATIENCE, async {
        // The other larder ends only after this command has said that it waits.
        let mut said = said.lines();
        while let Some(line) = said.next_line().await.unwrap() {
            if line.contains("waiting for another larder") {
                gate.open();
            }
        }
        waiting.wait().await.unwrap().code()
    });
    assert_eq!(ended.await.expect("it still waits"), Some(5));
    assert_eq!(daemon.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_is_told_as_the_shells_do() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let mut command = larder(&ca, &dir.path().join("data"));
    command.args(["exec", "--", "no-such-command-anywhere"]);
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(127), "{}", text(&output));
}
