//! Issue 13 row 6: lists of hosts that bypass the proxy, as companies have them, and programs that do not run at all.

use serde_json::Value;

use crate::doctor::Patient;
use crate::world::tools::{executable, skip, text};

fn of<'a>(verdicts: &'a [Value], client: &str) -> &'a Value {
    verdicts.iter().find(|verdict| verdict["client"] == client).unwrap()
}

/// A company's `.internal` in `NO_PROXY` does not affect larder: every client works with it, and it stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_companys_internal_names_hide_nothing() {
    let patient = Patient::new().await;
    let clients = ["curl", "wget", "git", "apt", "node"];
    let well = patient.well(&clients).await;
    patient
        .shell(
            "echo 'export NO_PROXY=.internal,10.0.0.0/8 no_proxy=.internal,10.0.0.0/8' >> .profile",
        )
        .await;
    let verdicts = patient.examine(&clients).await;
    for client in &well {
        assert_eq!(of(&verdicts, client)["status"], "well", "{verdicts:#?}");
    }
    // The control: a star makes all clients that read the list bypass larder. The other entries are the user's and stay.
    patient.shell("echo 'export NO_PROXY=.internal,* no_proxy=*' >> .profile").await;
    let found = patient.examine(&["curl"]).await;
    assert_eq!(found[0]["cause"], "no-proxy", "{found:#?}");
    patient.mend(&found).await;
    assert_eq!(patient.examine(&["curl"]).await[0]["status"], "well");
    let profile = std::fs::read_to_string(patient.home().join(".profile")).unwrap();
    let last = profile.lines().last().unwrap();
    assert!(last.contains("NO_PROXY=.internal") && !last.contains('*'), "{last}");
}

/// A list that makes a client bypass larder for the index that it really uses is found, and its other entries stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_hides_a_real_index_is_found() {
    let patient = Patient::new().await;
    let well = patient.well(&["npm", "curl"]).await;
    if !well.iter().any(|client| client == "npm") {
        skip("npm is not installed");
        return;
    }
    let around = "export NO_PROXY=.internal,.example.net no_proxy=.internal,.example.net";
    let index = "export npm_config_registry=https://index.example.net/";
    patient.shell(&format!("echo '{around}; {index}' >> .profile")).await;
    let found = patient.examine(&["npm", "curl"]).await;
    assert_eq!(of(&found, "npm")["cause"], "no-proxy", "{found:#?}");
    assert!(of(&found, "npm")["why"].as_str().unwrap().contains("index.example.net"), "{found:#?}");
    assert_eq!(of(&found, "curl")["status"], "well", "the control: it has no index");
    patient.mend(&found).await;
    let mended = patient.examine(&["npm"]).await;
    assert_eq!(mended[0]["status"], "well", "{mended:#?}");
    let profile = std::fs::read_to_string(patient.home().join(".profile")).unwrap();
    let last = profile.lines().last().unwrap();
    assert!(last.contains("NO_PROXY=.internal") && !last.contains("example.net"), "{last}");
}

/// apt asks a program for its proxy, as the set-up script makes it do. What the program says comes before every other setting, and
/// the doctor says what it says.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_that_apt_asks_is_asked() {
    let patient = Patient::new().await;
    if patient.well(&["apt", "curl"]).await.iter().all(|client| client != "apt") {
        skip("apt is not installed");
        return;
    }
    let (home, larder) = (patient.home(), format!("http://{}", patient.daemon.address));
    let (program, file) = (home.join("asked"), home.join("asks.conf"));
    let settings = format!(
        "Acquire::https::Proxy-Auto-Detect \"{}\";\nAcquire::https::CaInfo \"{}\";\n",
        program.display(),
        home.join(".config/larder/bundle.pem").display()
    );
    std::fs::write(&file, &settings).unwrap();
    let parts = home.join("parts");
    std::fs::create_dir(&parts).unwrap();
    std::fs::write(parts.join("99larder"), &settings).unwrap();
    let asks = format!("echo 'export APT_CONFIG={}' >> .profile", file.display());
    let named = program.to_str().unwrap();
    patient.shell(&asks).await;
    // Nothing else leads apt to larder.
    patient.shell("cp .profile kept; echo 'unset https_proxy HTTPS_PROXY' >> .profile").await;
    executable(&program, &format!("#!/bin/sh\necho {larder}\n"));
    let found = patient.examine(&["apt"]).await;
    assert_eq!(found[0]["status"], "well", "{found:#?}");
    let why = found[0]["why"].as_str().unwrap();
    assert!(why.contains(named) && why.ends_with(&larder), "{why}");
    patient.shell("mv kept .profile").await;
    for (says, cause) in [("DIRECT", "detected-direct"), ("http://127.0.0.1:9", "wrong-address")] {
        executable(&program, &format!("#!/bin/sh\necho {says}\n"));
        let found = patient.examine(&["apt"]).await;
        assert_eq!(found[0]["cause"], cause, "{found:#?}");
        let why = found[0]["why"].as_str().unwrap();
        assert!(why.contains(named) && why.contains(&format!(" says {says}")), "{why}");
        patient.mend(&found).await;
        // As the machine's own files, which apt reads later, the same settings change nothing any more.
        let line =
            format!("echo 'Dir::Etc::parts \"{}\";' >> .config/larder/apt.conf", parts.display());
        patient.shell(&line).await;
        let mended = patient.examine(&["apt"]).await;
        assert_eq!(mended[0]["status"], "well", "{found:#?} {mended:#?}");
        patient.shell(&asks).await;
    }
    // The control: without an answer, the variables decide.
    executable(&program, "#!/bin/sh\n");
    let found = patient.examine(&["apt"]).await;
    assert_eq!(
        (&found[0]["status"], &found[0]["why"]),
        (&"well".into(), &Value::Null),
        "{found:#?}"
    );
}

/// Issue 17 row 12: Yarn 2 and later take the proxy only from their own variables, and bypassed larder without any message.
#[tokio::test(flavor = "multi_thread")]
async fn yarn_is_told_what_its_version_reads() {
    let patient = Patient::new().await;
    patient.well(&["curl"]).await;
    let (home, daemon) = (patient.home(), patient.daemon.address);
    let programs = home.join("bin");
    std::fs::create_dir(&programs).unwrap();
    let examine = async || {
        let mut command = std::process::Command::new(crate::world::binary::PROGRAM);
        command.args(["doctor", "--json", "yarn"]);
        let mut command = patient.dressed(command);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", programs.display()));
        command.env("LARDER_DATA", home.parent().unwrap().join("data"));
        let output = crate::world::tools::run(command).await;
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        report["clients"].as_array().unwrap().clone()
    };
    // This part is not about trust: Node's roots contain the CA.
    patient.shell(&format!("curl -fsS --noproxy '*' http://{daemon}/ca.crt -o $HOME/ca.pem")).await;
    patient.shell("echo 'export NODE_EXTRA_CA_CERTS=$HOME/ca.pem' >> .profile").await;
    let becomes = |says: &str| {
        let file = programs.join("yarn");
        executable(&file, &format!("#!/bin/sh\n{says}\n"));
    };
    let modern = |version: &str| {
        format!(
            "case \"$*\" in --version) echo {version} ;; 'config get httpsProxy') echo \"${{YARN_HTTPS_PROXY:-null}}\" ;; \
             *) echo null ;; esac"
        )
    };
    becomes("echo 1.22.22");
    let verdicts = examine().await;
    assert_eq!(of(&verdicts, "yarn")["status"], "well", "the control: 1 reads them: {verdicts:#?}");
    for says in [modern("4.9.1"), modern("3.8.7"), "exit 1".to_owned()] {
        becomes(&says);
        let verdicts = examine().await;
        let ill = of(&verdicts, "yarn");
        assert_eq!(ill["cause"], "proxy-unset", "{says}: {ill:#}");
        let why = ill["why"].as_str().unwrap();
        assert!(
            why.contains("https_proxy is set") && why.contains("reads YARN_HTTPS_PROXY"),
            "{why}"
        );
        let profile = std::fs::read_to_string(home.join(".profile")).unwrap();
        patient.mend(&verdicts).await;
        let mended = examine().await;
        assert_eq!(of(&mended, "yarn")["status"], "well", "{says}: {mended:#?}");
        let added =
            std::fs::read_to_string(home.join(".profile")).unwrap()[profile.len()..].to_owned();
        assert!(added.contains("YARN_HTTP_PROXY=") && !added.contains("_CA_FILE_PATH"), "{added}");
        std::fs::write(home.join(".profile"), profile).unwrap();
    }
    // Yarn refuses to run if another version's variable for the roots is set. So the line that repairs trust sets no such
    // variable that was not set before.
    patient.shell("echo 'export YARN_HTTPS_PROXY=$HTTPS_PROXY' >> .profile").await;
    patient.shell("echo 'unset NODE_EXTRA_CA_CERTS' >> .profile").await;
    becomes(&modern("3.8.7"));
    let verdicts = examine().await;
    assert_eq!(of(&verdicts, "yarn")["cause"], "ca-untrusted", "{verdicts:#?}");
    let mend = of(&verdicts, "yarn")["mend"].as_str().unwrap();
    assert!(mend.contains("NODE_EXTRA_CA_CERTS") && !mend.contains("YARN_"), "{mend}");
}

/// rustup's `cargo` without a toolchain, or a version manager's stub, is not diagnosed as redirected by a configuration file.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_run_is_not_misled_by_a_file() {
    let patient = Patient::new().await;
    let programs = patient.home().join("bin");
    std::fs::create_dir(&programs).unwrap();
    let file = programs.join("cargo");
    let says = "#!/bin/sh\necho 'error: no default toolchain is configured' >&2\nexit 1\n";
    executable(&file, says);
    let mut command = std::process::Command::new(crate::world::binary::PROGRAM);
    command.args(["doctor", "--json", "cargo"]);
    let mut command = patient.dressed(command);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", programs.display()));
    command.env("LARDER_DATA", patient.home().parent().unwrap().join("data"));
    let output = crate::world::tools::run(command).await;
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let verdict = &report["clients"][0];
    assert_eq!(verdict["status"], "unknown", "{report:#}");
    assert!(verdict["why"].as_str().unwrap().contains("no default toolchain"), "{report:#}");
}
