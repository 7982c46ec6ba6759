//! Issue 13 row 3: the summary of `larder exec` after its command covers this command only.

use std::path::Path;

use larder::digest::Algorithm;
use serde_json::Value;

use crate::world::archive::{by_hash, flipped, hex};
use crate::world::binary::{Daemon, larder, say};
use crate::world::tools::run;
use crate::world::{Ca, Origin, Page, eventually, noise};

struct Place {
    directory: tempfile::TempDir,
    ca: Ca,
    origin: Origin,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new(&directory.path().join("origins.pem"));
        // `exec` excludes this machine's own names and addresses from the proxy; this address is not among them.
        let origin = Origin::tls(&ca, "127.0.0.2").await;
        Self { directory, ca, origin }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The exit code of `larder exec` with these flags, and what it writes to standard error when `script` has ended.
    async fn exec(&self, data: &Path, flags: &[&str], script: &str) -> (Option<i32>, String) {
        let mut command = larder(&self.ca, data);
        command.env("HOME", self.directory.path()).env_remove("XDG_CONFIG_HOME");
        command.arg("exec").args(flags).args(["--", "sh", "-c", script]);
        let output = run(command).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// An idle job does not report its neighbour's hits, whichever job started the larder.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_one_larder_are_counted_apart() {
    let place = Place::new().await;
    let body = noise(1, 300_000);
    let url = place.origin.put(&by_hash(&body), Page::new(body));
    for served in [true, false] {
        let data = place.path(&format!("data-{served}"));
        let _daemon = if served { Some(Daemon::start(&place.ca, &data, &[]).await) } else { None };
        let (begun, ended) = (place.path("begun"), place.path("ended"));
        for file in [&begun, &ended] {
            let _there = std::fs::remove_file(file);
        }
        // The idle job begins before the other one downloads, and ends after it.
        let idle = format!(
            "touch '{}'; until test -e '{}'; do sleep 0.05; done",
            begun.display(),
            ended.display()
        );
        let busy = async {
            eventually("the idle job runs", || async { begun.exists() }).await;
            let told = place.exec(&data, &[], &format!("curl -fsS '{url}' | wc -c")).await;
            std::fs::write(&ended, "").unwrap();
            told
        };
        let ((idle_code, idle), (busy_code, busy)) =
            tokio::join!(place.exec(&data, &[], &idle), busy);
        assert_eq!((idle_code, busy_code), (Some(0), Some(0)), "{idle}\n{busy}");
        assert!(
            busy.contains("0 hits, 1 miss;") && busy.contains("300.0 kB from upstream"),
            "{busy}"
        );
        assert!(idle.contains("0 hits, 0 misses; 0 B from the store, 0 B from upstream"), "{idle}");
        assert!(idle.contains("NOTHING CAME THROUGH LARDER"), "{idle}");
        let (_, again) = place.exec(&data, &[], &format!("curl -fsS '{url}' | wc -c")).await;
        assert!(again.contains("1 hit, 0 misses; 300.0 kB from the store"), "{again}");
        assert!(again.contains("(100 % saved"), "{again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_named_with_what_to_ask_and_told_to_programs_and_pages() {
    let place = Place::new().await;
    let right = noise(2, 2_000_000);
    let url = place.origin.put(&by_hash(&right), Page::new(flipped(&right)));
    let (data, report, page) = (place.path("data"), place.path("report"), place.path("page"));
    std::fs::write(&page, "before\n").unwrap();
    let mut command = larder(&place.ca, &data);
    command.env("GITHUB_STEP_SUMMARY", &page).arg("exec").arg("--json").arg(&report);
    command.args(["--", "sh", "-c", &format!("curl -sS '{url}' | wc -c; exit 3")]);
    let output = run(command).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("0 hits, 0 misses, 1 refused;"), "{told}");
    assert!(told.contains(&format!("larder: 1 refused: {url} (larder why '{url}')\n")), "{told}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["exit_code"], 3);
    assert_eq!((&report["refused"], &report["hits"]), (&1.into(), &0.into()), "{report}");
    assert_eq!(report["refusals"][0]["cause"], "promise", "{report}");
    assert_eq!(report["refusals"][0]["url"], url.as_str());
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("before\n### larder: `sh -c"), "{page}");
    assert!(
        page.contains("| 0 | 0 | 0 | 0 | 1 |") && page.contains(&format!("- Refused: `{url}`"))
    );
}

/// A team's shared larder: its CA is fetched and pinned, and the numbers are those of this job.
#[tokio::test(flavor = "multi_thread")]
async fn a_larder_elsewhere_is_set_up_for_one_command() {
    let place = Place::new().await;
    let body = noise(3, 300_000);
    let url = place.origin.put(&by_hash(&body), Page::new(body));
    let theirs = place.path("theirs");
    let daemon = Daemon::start(&place.ca, &theirs, &[]).await;
    let proxy = format!("http://{}", daemon.address);
    let own = place.path("own");
    let script = format!("curl -fsS '{url}' | wc -c");
    daemon.client().await.get(&url).send().await.complete();
    let (code, told) = place.exec(&own, &["--proxy", &proxy], &script).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("1 hit, 0 misses; 300.0 kB from the store"), "the job's alone: {told}");
    assert!(!own.exists(), "nothing is stored here");
    let (_, told) = place.exec(&own, &["--proxy", &proxy], "true").await;
    assert!(told.contains("NOTHING CAME THROUGH LARDER"), "{told}");
    // The pin on the command line is enforced.
    let shown = say(&place.ca, &theirs, &["ca", "show"]).await;
    let pem = String::from_utf8(shown.stdout).unwrap();
    let pin = hex(Algorithm::Sha256, pem::parse(&pem).unwrap().contents());
    let (code, told) = place.exec(&own, &["--proxy", &proxy, "--ca-sha256", &pin], &script).await;
    assert_eq!(code, Some(0), "{told}");
    let wrong = "00".repeat(32);
    let (code, told) = place.exec(&own, &["--proxy", &proxy, "--ca-sha256", &wrong], &script).await;
    assert_eq!(code, Some(125), "{told}");
    assert!(told.contains("is not the one that is pinned"), "{told}");
    // Another larder at the same address has another CA than the first time.
    let port = daemon.address.port();
    drop(daemon);
    let mut command = larder(&place.ca, &place.path("stranger"));
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]);
    let _stranger = Daemon::try_run(command).await.unwrap();
    let (code, told) = place.exec(&own, &["--proxy", &proxy], &script).await;
    assert_eq!(code, Some(125), "{told}");
    assert!(told.contains("pinned") && told.contains("larder/pins"), "{told}");
    // Without a larder the command is not run, and the error says so.
    let (code, told) = place.exec(&own, &["--proxy", "http://127.0.0.1:9"], "true").await;
    assert_eq!(code, Some(125), "{told}");
}
