//! The program as a process: how it starts, reloads its configuration, and stops.

use std::path::Path;
use std::process::Stdio;

use crate::world::archive::by_hash;
use crate::world::binary::Daemon;
use crate::world::tools::{run, signal, text};
use crate::world::{Bench, Ca, Fault, Gate, Page, eventually, noise};

/// Whether the store was closed properly, which is marked on disk; without the mark the next start reads every record.
fn was_closed(data: &Path) -> bool {
    data.join("v1/ledger.seal").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_puts_the_store_away_for_a_quick_start() {
    let bench = Bench::new().await;
    let body = noise(1, 100_000);
    let url = bench.origin.put(&by_hash(&body), Page::new(body));
    let mut daemon = bench.start(&[]).await;
    let client = daemon.client().await;
    client.get(&url).send().await.complete();
    assert!(!was_closed(&bench.data()), "the control: it is open");
    // A command that stays: a question holds the store open as well.
    let mut asking = bench.larder();
    asking.args(["exec", "--", "sleep", "30"]).stderr(Stdio::null());
    let mut asking = asking.spawn().unwrap();
    eventually("the command has begun", || async {
        bench.data().join("run").exists() || daemon.log().contains("stay") || children(asking.id())
    })
    .await;
    assert_eq!(daemon.terminate().await, Some(0));
    assert!(was_closed(&bench.data()), "{}", daemon.log());
    signal(asking.id(), "TERM").await;
    tokio::task::spawn_blocking(move || asking.wait()).await.unwrap().unwrap();
    let again = bench.start(&[]).await;
    assert!(!again.log().contains("ledger"), "{}", again.log());
    assert!(again.client().await.get(&url).send().await.is_hit());
}

/// Whether a process has started another one.
fn children(id: u32) -> bool {
    let path = format!("/proc/{id}/task/{id}/children");
    std::fs::read_to_string(path).is_ok_and(|text| !text.trim().is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait_for_transfers() {
    let bench = Bench::new().await;
    let gate = Gate::closed();
    let page = Page::new(noise(2, 1_000_000)).fault(Fault::Hold(500_000, gate.clone()));
    let url = bench.origin.put("/x", page);
    let mut daemon = bench.start(&[]).await;
    let mut opened = daemon.client().await.get(&url).open().await.unwrap();
    assert!(opened.read(100_000).await);
    signal(daemon.id(), "TERM").await;
    daemon.logged("SIGTERM").await;
    assert!(daemon.is_running(), "the transfer is waited for");
    signal(daemon.id(), "INT").await;
    assert_eq!(daemon.ended().await, Some(1));
    assert!(was_closed(&bench.data()), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_puts_the_changed_configuration_in_force() {
    let bench = Bench::new().await;
    let url = bench.origin.put("/x", Page::new("x"));
    let file = bench.write("larder.toml", "");
    let other = Ca::new(&bench.dir.path().join("roots.pem"));
    let roots = other.file().to_owned();
    let variables = [("LARDER_CONFIG", &*file), ("LARDER_UPSTREAM_CA", roots.to_str().unwrap())];
    let mut daemon = bench.start(&variables).await;
    let status = || async {
        let got = daemon.client().await.get(&url).send().await;
        got.status.as_u16()
    };
    let reload = |text: &str| {
        bench.write("larder.toml", text);
        signal(daemon.id(), "HUP")
    };
    assert_eq!(status().await, 502, "nobody vouches for the origin");

    std::fs::copy(bench.ca.file(), &roots).unwrap();
    reload("").await;
    eventually("the roots are read", || async { status().await == 200 }).await;
    reload("hosts.refuse = [\"127.0.0.1\"]\nclients.max_connections = 7\n").await;
    eventually("the host is refused", || async { refused(&daemon, &bench).await }).await;
    daemon.logged("restart larder to change clients.max_connections").await;

    // A mistake in the configuration changes nothing, whether it is a name or a file.
    for wrong in ["allow_net = []\n", ""] {
        let told = || daemon.log().matches("stays as it was").count();
        let before = told();
        if wrong.is_empty() {
            std::fs::remove_file(&roots).unwrap();
        }
        reload(wrong).await;
        eventually("the mistake is told", || async { told() > before }).await;
        assert!(refused(&daemon, &bench).await, "{wrong}");
    }
    std::fs::copy(bench.ca.file(), &roots).unwrap();
    reload("").await;
    eventually("the host is open", || async { status().await == 200 }).await;
    assert!(daemon.is_running());
}

async fn refused(daemon: &Daemon, bench: &Bench) -> bool {
    let (client, authority) = (daemon.client().await, bench.origin.authority());
    let opened = client.tunnel(&authority).await;
    opened.is_err_and(|got| got.status.as_u16() == 403)
}

/// Each prints the CA that it made or found: a client that trusts any other CA than the final one trusts nothing.
#[tokio::test(flavor = "multi_thread")]
async fn many_that_ask_for_the_ca_at_once_are_told_of_one() {
    let bench = Bench::new().await;
    let asked = (0..8).map(|_| {
        let mut command = bench.larder();
        command.args(["ca", "show"]);
        run(command)
    });
    let outputs = futures_util::future::join_all(asked).await;
    let mode = |path: &str| {
        let found = std::fs::metadata(bench.data().join(path)).unwrap();
        std::os::unix::fs::MetadataExt::mode(&found) & 0o777
    };
    assert_eq!([mode("state"), mode("state/ca.key")], [0o700, 0o600]);
    let kept = std::fs::read_to_string(bench.data().join("state/ca.crt")).unwrap();
    for output in &outputs {
        let told = text(output);
        // A command that runs while another one makes the CA may report that instead.
        assert!(output.status.code() == Some(3) || told.contains(&kept), "{told}");
    }
    assert!(outputs.iter().any(|output| output.status.success()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_has_a_code() {
    let bench = Bench::new().await;
    let running = bench.start(&[]).await;
    let port = running.address.to_string();
    let other = bench.dir.path().join("other").display().to_string();
    let file = bench.write("file", "");
    let below = format!("{file}/data");
    let wrong = bench.write("wrong.toml", "listne = \":1\"\n");
    let held = running.id().to_string();
    #[rustfmt::skip]
    let rows: [(&[&str], i32, &str); 8] = [
        (&["serve", "--listen", "127.0.0.1:0"], 3, &held),
        (&["serve", "--data", &other, "--listen", &port], 1, "is another larder running"),
        (&["serve", "--data", &other, "--listen", "127.0.0.1:0", "--listen", &port], 1, "--listen chooses a port"),
        (&["serve", "--data", &below, "--listen", "127.0.0.1:0"], 1, &file),
        (&["serve", "--config", "/does/not/exist.toml"], 2, "/does/not/exist.toml"),
        (&["serve", "--config", &wrong], 2, "did you mean listen"),
        (&["ls", "--set", "nonsense"], 2, "KEY=VALUE"),
        (&["exec", "--config", &wrong, "--", "true"], 125, "did you mean listen"),
    ];
    for (arguments, code, part) in rows {
        let mut command = bench.larder();
        command.args(arguments);
        let output = run(command).await;
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
}
