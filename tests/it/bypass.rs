//! A machine whose larder does not answer goes around it: apt by itself, everything else by `--bypass`. Row 5 of the issue about the
//! first hour. `scripts/first-hour` does the same with a real apt and pip.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::setup::{address, done, script, shells};
use crate::world::binary::{Daemon, PROGRAM, larder};
use crate::world::root::{FAMILIES, Root};
use crate::world::tools::{run, text};
use crate::world::{Ca, World};

/// A Debian root that is set up for the larder of this script.
async fn set_up(shell: &[&str], script: &std::path::Path, arguments: &[&str]) -> Root {
    let root = Root::new(FAMILIES[0]);
    root.put("etc/apt/apt.conf.d/README", "");
    root.put("etc/systemd/system/README", "");
    root.put("etc/NetworkManager/dispatcher.d/README", "");
    done(&root.set_up(shell, script, arguments).await);
    root
}

/// What the program that apt asks for its proxy prints, after `change` of its text.
async fn detected(root: &Root, path: Option<&str>, change: (&str, &str)) -> String {
    let text = root.read("etc/larder/proxy");
    assert!(text.contains(change.0), "{text}");
    root.put("tmp/proxy", &text.replace(change.0, change.1));
    let mut command = Command::new("/bin/sh");
    command.arg(root.path().join("tmp/proxy"));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = run(command).await;
    assert!(output.status.success());
    text_of(&output)
}

fn text_of(output: &Output) -> String {
    text(output).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn apt_is_told_of_larder_only_while_that_larder_answers() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = set_up(&["sh"], &script, &[&address]).await;
    let settings = root.read("etc/apt/apt.conf.d/99larder");
    for scheme in ["http", "https"] {
        let line = format!("Acquire::{scheme}::Proxy-Auto-Detect \"/etc/larder/proxy\";");
        assert!(settings.contains(&line), "{settings}");
        assert!(!settings.contains(&format!("Acquire::{scheme}::Proxy \"")), "{settings}");
    }
    // Without curl, bash asks.
    let bin = tempfile::tempdir().unwrap();
    for tool in ["bash", "timeout", "cat", "tr"] {
        let found = std::env::split_paths(&std::env::var("PATH").unwrap())
            .map(|dir| dir.join(tool))
            .find(|file| file.exists());
        std::os::unix::fs::symlink(found.unwrap(), bin.path().join(tool)).unwrap();
    }
    for path in [None, bin.path().to_str()] {
        assert_eq!(detected(&root, path, ("# Prints", "# Prints")).await, address);
        // Nothing at the address, and a larder with another CA there.
        let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
        let elsewhere = (port(&address), port(&nowhere.to_string()));
        assert_eq!(detected(&root, path, (&elsewhere.0, &elsewhere.1)).await, "DIRECT");
        assert_eq!(detected(&root, path, ("line='", "line='x")).await, "DIRECT");
    }
    // Where nothing can ask, the proxy stands as it did before.
    assert_eq!(detected(&root, Some("/nonexistent"), ("# Prints", "# Prints")).await, address);
}

#[tokio::test(flavor = "multi_thread")]
async fn bypass_takes_the_settings_away_and_puts_the_same_back() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    for shell in shells() {
        let before = {
            let root = Root::new(FAMILIES[0]);
            root.put("etc/apt/apt.conf.d/README", "");
            root.put("etc/systemd/system/README", "");
            root.put("etc/NetworkManager/dispatcher.d/README", "");
            root.listing().into_values().collect::<Vec<_>>()
        };
        let root =
            set_up(shell, &script, &[&address, "--no-proxy", "a.example.org", "--watch"]).await;
        let set = root.listing();
        let copy = root.path().join("etc/larder/setup");
        let said = done(&root.set_up(shell, &copy, &["--bypass", "on"]).await);
        assert!(
            said.contains("--bypass off") && said.contains(". /etc/profile.d/larder.sh"),
            "{said}"
        );
        assert!(!root.read("etc/environment").contains(&address));
        assert!(!root.path().join("etc/apt/apt.conf.d/99larder").exists());
        assert!(root.bundle().contains("BEGIN CERTIFICATE"), "it is still trusted");
        // A shell that has the variables loses larder's, and keeps its own.
        let mut command = Command::new("sh");
        command
            .args(["-c", ". \"$0\" && echo \"$https_proxy-$HTTP_PROXY\""])
            .arg(root.path().join("etc/profile.d/larder.sh"))
            .env("https_proxy", &address)
            .env("HTTP_PROXY", "http://mine.example.org");
        assert_eq!(text_of(&run(command).await), "-http://mine.example.org");

        done(&root.set_up(shell, &copy, &["--bypass", "off"]).await);
        assert_eq!(root.listing(), set, "{shell:?}");
        done(&root.set_up(shell, &copy, &["--bypass", "on"]).await);
        assert_ne!(root.listing(), set, "the control");
        done(&root.set_up(shell, &copy, &["--remove"]).await);
        assert_eq!(root.listing().into_values().collect::<Vec<_>>(), before, "{shell:?}");
    }
}

/// `larder serve` at this address.
async fn serve(ca: &Ca, data: &std::path::Path, at: SocketAddr) -> Daemon {
    let mut command = larder(ca, data);
    command.args(["serve", "--listen", &at.to_string()]);
    Daemon::try_run(command).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_follows_what_answers_and_a_timer_asks_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let mut daemon = Daemon::start(&ca, &data, &[]).await;
    let at = daemon.address;
    let script: PathBuf = dir.path().join("setup");
    let mut fetch = Command::new("curl");
    fetch.args(["-fsS", "--noproxy", "*", "-o"]).arg(&script).arg(format!("http://{at}/setup"));
    assert!(run(fetch).await.status.success());
    let root = set_up(&["sh"], &script, &[&format!("http://{at}"), "--watch"]).await;
    let copy = root.path().join("etc/larder/setup");
    let service = root.read("etc/systemd/system/larder-bypass.service");
    assert!(service.contains("ExecStart=/bin/sh /etc/larder/setup --bypass auto"), "{service}");
    assert!(
        root.read("etc/systemd/system/timers.target.d/larder.conf").contains("larder-bypass.timer")
    );
    assert!(root.read("etc/NetworkManager/dispatcher.d/50-larder").contains("--bypass auto"));

    let auto = || root.set_up(&["sh"], &copy, &["--bypass", "auto"]);
    assert_eq!(done(&auto().await), "", "nothing is to be done");
    daemon.kill();
    assert!(done(&auto().await).contains("bypassed"));
    assert!(!root.read("etc/environment").contains("PROXY"));
    assert!(root.path().join("etc/systemd/system/larder-bypass.timer").exists(), "who asks again?");
    assert_eq!(done(&auto().await), "");
    let off = root.set_up(&["sh"], &copy, &["--bypass", "off"]).await;
    assert_eq!(off.status.code(), Some(3), "{}", text(&off));
    let _daemon = serve(&ca, &data, at).await;
    done(&auto().await);
    assert!(root.read("etc/environment").contains(&at.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_runs_the_copy_that_the_set_up_left() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = set_up(&["sh"], &script, &[&address]).await;
    let bypass = |root: &Root, word: &str| {
        let mut command = Command::new(PROGRAM);
        root.dress(&mut command);
        command.args(["bypass", word, "--prefix"]).arg(root.path());
        run(command)
    };
    done(&bypass(&root, "on").await);
    assert!(!root.read("etc/environment").contains("PROXY"));
    done(&bypass(&root, "off").await);
    assert!(root.read("etc/environment").contains("PROXY"));
    let untouched = Root::new(FAMILIES[0]);
    let output = bypass(&untouched, "on").await;
    assert!(
        !output.status.success() && text(&output).contains("was not set up"),
        "{}",
        text(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_that_makes_no_sense_changes_nothing() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = Root::new(FAMILIES[0]);
    let before = root.listing();
    for (arguments, said) in [
        (&["--bypass", "on"][..], "no larder is set up here"),
        (&["--bypass", "maybe"], "on, off or auto"),
        (&["--bypass", "on", "--remove"], "goes with no address"),
        (&["--bypass", "on", &address], "goes with no address"),
    ] {
        let output = root.set_up(&["sh"], &script, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(said), "{}", text(&output));
        assert_eq!(root.listing(), before);
    }
}
