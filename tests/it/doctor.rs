//! `larder doctor`, with the real clients of this machine and a user of its own: each planted fault is found, and the command
//! that the doctor prints repairs it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::world::binary::{Daemon, larder, say};
use crate::world::tools::{run, run_within, skip, text};
use crate::world::{Ca, PATIENCE};

/// A user with a new home directory, and a larder.
pub(crate) struct Patient {
    ca: Ca,
    pub(crate) daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Patient {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // apt reads its settings as another user.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        std::fs::create_dir(directory.path().join("home")).unwrap();
        let ca = Ca::new(&directory.path().join("origins.pem"));
        let daemon = Daemon::start(&ca, &directory.path().join("data"), &[]).await;
        let patient = Self { ca, daemon, directory };
        // Version managers keep their programs below the real home directory.
        let home = std::env::var("HOME").unwrap_or_default();
        let whose = |name: &str, below: &str| {
            let path = std::env::var(name).unwrap_or_else(|_| format!("{home}/{below}"));
            format!("export {name}='{path}'\n")
        };
        let profile = whose("RUSTUP_HOME", ".rustup") + &whose("PYENV_ROOT", ".pyenv");
        std::fs::write(patient.home().join(".profile"), profile).unwrap();
        patient
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    pub(crate) fn dressed(&self, mut command: Command) -> Command {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.home()).current_dir(self.home());
        command
    }

    /// Runs a command line as the user would type it.
    pub(crate) async fn shell(&self, line: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = run(self.dressed(command)).await;
        assert!(output.status.success(), "{line}: {}", text(&output));
        output
    }

    pub(crate) async fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = self.dressed(Command::new(crate::world::binary::PROGRAM));
        command.env("LARDER_DATA", self.directory.path().join("data"));
        command.arg("doctor").args(arguments);
        // The doctor itself allows each client a minute.
        run_within(command, PATIENCE * 4).await
    }

    /// The verdicts on these clients, except those that read only the system's trust store (aria2, dnf, if installed): their
    /// repair changes the machine.
    pub(crate) async fn examine(&self, clients: &[&str]) -> Vec<Value> {
        let mut arguments = vec!["--json"];
        arguments.extend(clients);
        let output = self.doctor(&arguments).await;
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        let verdicts = report["clients"].as_array().unwrap().clone();
        let fails = verdicts.iter().any(|verdict| verdict["status"] == "fails");
        assert_eq!(output.status.code(), Some(i32::from(fails)), "{report}");
        let is_of_the_machine = |verdict: &Value| {
            verdict["mend"].as_str().is_some_and(|mend| mend.contains("--ca-only"))
        };
        verdicts.into_iter().filter(|verdict| !is_of_the_machine(verdict)).collect()
    }

    /// Runs the commands that the doctor prints.
    pub(crate) async fn mend(&self, verdicts: &[Value]) {
        for line in verdicts.iter().filter_map(|verdict| verdict["mend"].as_str()) {
            assert!(
                !line.contains(" /etc/larder") && line.contains(self.home().to_str().unwrap())
                    || line.contains("$HOME")
                    || line.contains("git config"),
                "{line}"
            );
            self.shell(line).await;
        }
    }

    /// All clients, repaired until no check fails.
    async fn healthy(&self) -> Vec<String> {
        self.well(&[]).await
    }

    /// These clients, or all, repaired until no check fails; returns those that are installed and work.
    pub(crate) async fn well(&self, clients: &[&str]) -> Vec<String> {
        for _ in 0..4 {
            let verdicts = self.examine(clients).await;
            let found = |status: &str| verdicts.iter().any(|verdict| verdict["status"] == status);
            if !found("fails") {
                let well = verdicts.iter().filter(|verdict| verdict["status"] == "well");
                return well
                    .map(|verdict| verdict["client"].as_str().unwrap().to_owned())
                    .collect();
            }
            self.mend(&verdicts).await;
        }
        panic!("still ill: {:#?}", self.examine(clients).await);
    }
}

/// A fault: the client, the command that causes it, and the doctor's name for it.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "curl",
        "echo 'export https_proxy=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9' >> .profile",
        "wrong-address",
    ),
    ("wget", "echo 'unset https_proxy' >> .profile", "one-case"),
    ("wget", "echo 'unset https_proxy HTTPS_PROXY' >> .profile", "proxy-unset"),
    ("curl", "echo \"export NO_PROXY='a.example.org,*' no_proxy='*'\" >> .profile", "no-proxy"),
    (
        "pip",
        "echo 'unset REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; export PIP_CERT=/does/not/exist' >> .profile",
        "ca-untrusted",
    ),
    ("pip", "echo 'export PIP_PROXY=http://127.0.0.1:9' >> .profile", "wrong-address"),
    (
        "git",
        "echo 'export GIT_SSL_CAINFO=/etc/ssl/certs/ca-certificates.crt' >> .profile",
        "ca-untrusted",
    ),
    ("git", "git config --global http.proxy http://127.0.0.1:9", "wrong-address"),
    (
        "npm",
        "echo 'export npm_config_cafile=/etc/ssl/certs/ca-certificates.crt' >> .profile",
        "ca-untrusted",
    ),
    ("node", "echo 'unset NODE_EXTRA_CA_CERTS' >> .profile", "ca-untrusted"),
    ("cargo", "echo \"export CARGO_HTTP_CAINFO=$HOME/former.pem\" >> .profile", "ca-changed"),
    ("apt", "echo 'unset APT_CONFIG' >> .profile", "ca-untrusted"),
    ("java", "echo 'unset JAVA_TOOL_OPTIONS' >> .profile", "proxy-unset"),
    ("curl", "echo 'proxy = \"http://127.0.0.1:9\"' >> .curlrc", "proxy-ignored"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_planted_fault_is_found_and_its_line_mends_it() {
    let patient = Patient::new().await;
    // The CA of another larder, for a client that was set up for that one.
    let other = patient.directory.path().join("other");
    let shown = say(&patient.ca, &other, &["ca", "show"]).await;
    std::fs::write(patient.home().join("former.pem"), &shown.stdout).unwrap();
    // Without any setting: that is a fault too, and the printed commands make every client work.
    let first = patient.examine(&["curl"]).await;
    assert_eq!(first[0]["cause"], "proxy-unset", "{first:?}");
    let well = patient.healthy().await;
    assert!(well.iter().any(|client| client == "curl"), "{well:?}");
    for (client, plant, cause) in FAULTS {
        if !well.iter().any(|name| name == client) {
            skip(&format!("{client} is not installed"));
            continue;
        }
        patient.shell(plant).await;
        let ill = patient.examine(&[client]).await;
        assert_eq!(ill[0]["cause"], *cause, "{plant}: {ill:#?}");
        assert_eq!(ill[0]["how"], "probed");
        patient.mend(&ill).await;
        let mut mended = patient.examine(&[client]).await;
        if mended[0]["cause"] == "ca-untrusted" && *cause == "proxy-unset" {
            // Without any setting there were two faults, and the second one shows only when the first is repaired.
            patient.mend(&mended).await;
            mended = patient.examine(&[client]).await;
        }
        assert_eq!(mended[0]["status"], "well", "{plant}: {ill:#?} {mended:#?}");
    }
    // A fault that this user cannot repair is reported without a command.
    patient.shell("printf '%s\\n' 'tls-max 1.1' 'ciphers DEFAULT:@SECLEVEL=0' >> .curlrc").await;
    let old = patient.examine(&["curl"]).await;
    assert_eq!(
        (&old[0]["cause"], &old[0]["mend"]),
        (&"tls-version".into(), &Value::Null),
        "{old:#?}"
    );
    let log = patient.daemon.log();
    assert!(!log.contains("cannot resolve"), "nothing went upstream: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_larder_the_doctor_says_so_in_one_line() {
    let patient = Patient::new().await;
    for (arguments, code, said) in [
        (vec!["--proxy", "http://127.0.0.1:9"], 1, "no larder answers at http://127.0.0.1:9"),
        (vec!["--proxy", "ftp://x"], 2, "expected http://HOST:PORT"),
        (vec!["--container", "/does/not/exist"], 1, "/does/not/exist"),
        (vec!["emacs"], 2, "known are curl"),
    ] {
        let output = patient.doctor(&arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(said), "{arguments:?}: {}", text(&output));
    }
}

/// Only larder answers a probe's host name: nothing goes upstream, whatever the patterns say, and a client that did not choose
/// the name learns nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_probes_name_never_leads_upstream() {
    let patient = Patient::new().await;
    let token = "0123456789abcdef".repeat(2);
    let data = patient.directory.path().join("tunnelling");
    let environment = [
        ("LARDER_HOSTS_TUNNEL", "*.larder.internal"),
        ("LARDER_HOSTS_TUNNEL_UNKNOWN_PROTOCOLS", "true"),
    ];
    let daemon = Daemon::start(&patient.ca, &data, &environment).await;
    let shown = say(&patient.ca, &data, &["ca", "show"]).await;
    let roots = patient.home().join("ca.pem");
    std::fs::write(&roots, &shown.stdout).unwrap();
    let asked = |host: String| {
        let line = format!(
            "curl -q -sS -x http://{} --cacert {} https://{host}/",
            daemon.address,
            roots.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        run(patient.dressed(command))
    };
    let answered = asked(format!("{token}.probe.larder.internal")).await;
    assert!(text(&answered).contains("larder answers this name itself"), "{}", text(&answered));
    // The controls: similar names are ordinary names, and this larder tunnels them, to an address where nothing answers.
    for other in [format!("x{token}.probe.larder.internal"), "probe.larder.internal".to_owned()] {
        assert!(!asked(other).await.status.success());
    }
    let own =
        |path: String| crate::world::larder::own(daemon.address, Box::leak(path.into_boxed_str()));
    assert_eq!(own(format!("/-/probe/{token}")).await, r#"["connect","handshake","request"]"#);
    assert_eq!(own(format!("/-/probe/{}", token.replace('0', "1"))).await, "[]");
}

/// The log names client, host and remedy, once.
#[tokio::test(flavor = "multi_thread")]
async fn who_distrusts_larder_is_named_in_the_log_once() {
    let patient = Patient::new().await;
    let line = format!(
        "for i in 1 2 3; do curl -q -sS -x http://{} https://files.example.org/ || :; done",
        patient.daemon.address
    );
    patient.shell(&line).await;
    let named = |log: &str| log.matches("does not trust larder's certificate").count();
    crate::world::eventually("it is said", || async { named(&patient.daemon.log()) > 0 }).await;
    let log = patient.daemon.log();
    assert_eq!(named(&log), 1, "{log}");
    for word in ["files.example.org", "client=127.0.0.1:", "larder doctor", "/setup"] {
        assert!(log.contains(word), "{word}: {log}");
    }
}

/// Without the right to enter another root directory, the doctor checks files only, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn in_another_root_a_client_is_judged_where_it_lives() {
    let patient = Patient::new().await;
    let root = patient.directory.path().join("root");
    for (path, content) in [
        ("etc/environment", format!("https_proxy=\"http://{}\"\n", patient.daemon.address)),
        ("usr/bin/skopeo", String::new()),
        ("tmp/.keep", String::new()),
        ("usr/bin/podman", String::new()),
        ("etc/ssl/certs/ca-certificates.crt", "none\n".to_owned()),
    ] {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
    }
    let proxy = format!("http://{}", patient.daemon.address);
    let examine = |what: &Path| {
        let mut command = larder(&patient.ca, &patient.directory.path().join("data"));
        command.args(["doctor", "--json", "--proxy", &proxy, "--container"]).arg(what);
        run(command)
    };
    let ill = examine(&root).await;
    assert_eq!(ill.status.code(), Some(1), "{}", text(&ill));
    let report: Value = serde_json::from_slice(&ill.stdout).unwrap();
    assert!(
        report["clients"]
            .as_array()
            .unwrap()
            .iter()
            .all(|verdict| verdict["cause"] == "ca-untrusted"
                && verdict["mend"].as_str().unwrap().starts_with("chroot ")),
        "{report:#}"
    );
    let shown = say(&patient.ca, &patient.directory.path().join("data"), &["ca", "show"]).await;
    std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), &shown.stdout).unwrap();
    let well = examine(&root).await;
    assert_eq!(well.status.code(), Some(0), "{}", text(&well));
}
