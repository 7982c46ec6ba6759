//! The life cycle of larder's CA, by its commands, while a larder serves.

use std::path::Path;
use std::process::{Command, Output};

use crate::world::Ca;
use crate::world::binary::{Daemon, larder, say};
use crate::world::larder::own;
use crate::world::root::{FAMILIES, Root};
use crate::world::tools::{run, text};

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The certificates in a text.
fn certificates(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let begun = text.split("-----BEGIN").skip(1);
    begun.map(|rest| format!("-----BEGIN{}{END}", rest.split(END).next().unwrap())).collect()
}

/// Whether a client that trusts only `ca` gets an answer through larder.
async fn trusts(daemon: &Daemon, dir: &Path, ca: &str) -> bool {
    let file = dir.join("trusted.pem");
    std::fs::write(&file, ca).unwrap();
    let mut command = Command::new("curl");
    let url = format!("https://{}.probe.larder.internal/", "0".repeat(32));
    command
        .args(["-q", "-sS", "-x", &format!("http://{}", daemon.address), &url, "--cacert"])
        .arg(&file);
    run(command).await.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_larder_changes_its_ca_without_losing_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let daemon = Daemon::start(&ca, &data, &[]).await;
    let old = certificates(&done(&say(&ca, &data, &["ca", "show"]).await)).remove(0);
    assert!(trusts(&daemon, dir.path(), &old).await);
    let script = own(daemon.address, "/setup").await;
    // With a future date: both CAs are handed out, and the old one issues the leaves.
    done(&say(&ca, &data, &["ca", "rotate", "--days", "5"]).await);
    let both = certificates(&own(daemon.address, "/ca.crt").await);
    assert_eq!((both.len(), &both[0]), (2, &old));
    assert_ne!(own(daemon.address, "/setup").await, script);
    assert!(
        trusts(&daemon, dir.path(), &old).await && !trusts(&daemon, dir.path(), &both[1]).await
    );
    let early = say(&ca, &data, &["ca", "rotate", "--finish"]).await;
    assert!(
        !early.status.success() && text(&early).contains("signs only from"),
        "{}",
        text(&early)
    );
    // The date passes.
    std::fs::write(data.join("state/ca.next.from"), "0\n").unwrap();
    crate::world::tools::signal(daemon.id(), "HUP").await;
    crate::world::eventually("the next CA mints", || trusts(&daemon, dir.path(), &both[1])).await;
    assert!(!trusts(&daemon, dir.path(), &old).await);
    done(&say(&ca, &data, &["ca", "rotate", "--finish"]).await);
    assert_eq!(certificates(&own(daemon.address, "/ca.crt").await), [both[1].clone()]);
    assert!(trusts(&daemon, dir.path(), &both[1]).await);
    let metrics = own(daemon.address, "/-/metrics").await;
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("larder_ca_expires_in_seconds "))
        .unwrap();
    assert!(left.parse::<u64>().unwrap() > 3000 * 86_400, "{left}");
    let wrong =
        say(&ca, &data, &["ca", "import", "--cert", "/dev/null", "--key", "/dev/null"]).await;
    assert!(!wrong.status.success() && text(&wrong).contains("stays as it is"), "{}", text(&wrong));
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_trusts_both_while_one_follows_the_other_and_none_after_uninstall() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    for family in FAMILIES {
        let root = Root::new(family);
        let before = root.listing();
        let set_up = |what: &str| {
            let mut command = larder(&ca, &data);
            command.args(["ca", what, "--prefix"]).arg(root.path());
            root.dress(&mut command);
            run(command)
        };
        for round in 0..2 {
            done(&set_up("install").await);
            let anchors = certificates(&done(&say(&ca, &data, &["ca", "show"]).await));
            assert_eq!(anchors.len(), 1 + round);
            for anchor in &anchors {
                assert!(
                    root.bundle().contains(anchor.lines().nth(1).unwrap()),
                    "{family:?} {}",
                    root.bundle()
                );
            }
            let once = root.listing();
            assert!(done(&set_up("install").await).contains("nothing was to be done"));
            assert_eq!(root.listing(), once, "{family:?}");
            if round == 0 {
                done(&say(&ca, &data, &["ca", "rotate"]).await);
            }
        }
        done(&set_up("uninstall").await);
        assert_eq!(root.listing(), before, "{family:?}");
        std::fs::remove_dir_all(&data).unwrap();
        // If there is nothing to undo, nothing is created, and in particular no CA.
        done(&set_up("uninstall").await);
        assert_eq!(root.listing(), before, "{family:?}");
        assert!(!data.exists(), "{family:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_ca_refuses_other_hosts_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let daemon = Daemon::start(&ca, &data, &[("LARDER_CA_PERMITTED", "example.org")]).await;
    let asked = |url: &'static str| {
        let mut command = Command::new("curl");
        command.args(["-q", "-sS", "-k", "-v", "-x", &format!("http://{}", daemon.address), url]);
        run(command)
    };
    let refused = text(&asked("https://example.net/").await);
    assert!(refused.contains("403") && !refused.contains("SSL connection"), "{refused}");
    daemon.logged("limited to example.org").await;
    let allowed = text(&asked("https://no.example.org/").await);
    assert!(allowed.contains("SSL connection"), "the control: {allowed}");
}
