//! The files with which larder is deployed, and those for daemons and CI runners: what can be checked without a cluster, a booted
//! systemd or a runner.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::world::Ca;
use crate::world::binary::{Daemon, PROGRAM, larder};
use crate::world::tools::{run, skip, text};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ca").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The output of `systemd-analyze` for these units; `None` if it is not installed.
async fn judged(arguments: &[&str], unit: &str, socket: &str) -> Option<Output> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        skip("systemd-analyze is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    // It checks that the program which a unit starts exists.
    std::fs::write(dir.path().join("larder.service"), unit.replace("/usr/bin/larder", PROGRAM))
        .unwrap();
    std::fs::write(dir.path().join("larder-port.socket"), socket).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("./larder.service").current_dir(dir.path());
    if arguments[0] == "verify" {
        command.arg("./larder-port.socket");
    }
    Some(run(command).await)
}

const UNIT: &str = "service/systemd/larder.service";
const SOCKET: &str = "service/systemd/larder-port.socket";

#[tokio::test]
async fn systemd_finds_nothing_to_say_of_the_units() {
    let (unit, socket) = (read(UNIT), read(SOCKET));
    let Some(said) = judged(&["verify", "--man=no"], &unit, &socket).await else { return };
    assert!(said.status.success() && text(&said).is_empty(), "{}", text(&said));
    let misspelt = unit.replace("NoNewPrivileges", "NoNewPrivilege");
    let said = judged(&["verify", "--man=no"], &misspelt, &socket).await.unwrap();
    assert!(text(&said).contains("NoNewPrivilege"), "the control: {}", text(&said));
}

#[tokio::test]
async fn the_service_is_exposed_to_little() {
    // In tenths: an exposure of more than 2.0 of 10 fails.
    let arguments = ["security", "--no-pager", "--offline=true", "--threshold=20"];
    let (unit, socket) = (read(UNIT), read(SOCKET));
    let Some(said) = judged(&arguments, &unit, &socket).await else { return };
    assert!(said.status.success(), "{}", text(&said));
    let open = unit.replace("ProtectSystem=strict\n", "").replace("SystemCallFilter", "#");
    let said = judged(&arguments, &open, &socket).await.unwrap();
    assert!(!said.status.success(), "the control: {}", text(&said));
}

/// Installing the package must not open larder to a network.
#[tokio::test]
async fn what_the_package_configures_is_on_loopback() {
    let mut command = Command::new(PROGRAM);
    command.args(["config", "--json", "--config"]).arg(file("service/debian/larder.toml"));
    let output = run(bare(command)).await;
    assert!(output.status.success(), "{}", text(&output));
    let shown = text(&output);
    let lines = shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let listen = lines.into_iter().find(|setting| setting["key"] == "listen").unwrap();
    assert_eq!(listen["value"], "[\"127.0.0.1:3142\"]");
}

/// Without a configuration too: other machines get in only where somebody says so. What is deployed for others says so.
#[tokio::test]
async fn without_a_configuration_larder_is_on_loopback() {
    let listen = |value: Option<&'static str>| async move {
        let mut command = Command::new(PROGRAM);
        command.args(["config", "--json", "--config", "/dev/null"]);
        let mut command = bare(command);
        if let Some(value) = value {
            command.env("LARDER_LISTEN", value);
        }
        let shown = text(&run(command).await);
        let lines = shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let found = lines.into_iter().find(|setting| setting["key"] == "listen").unwrap();
        found["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(listen(None).await, "[\"127.0.0.1:3142\"]");
    assert_eq!(listen(Some("[::]:3142")).await, "[\"[::]:3142\"]");
    let image = std::fs::read_to_string(file("../Containerfile")).unwrap();
    assert!(image.contains("LARDER_LISTEN=[::]:3142"), "a container's loopback is its own");
    assert!(read("service/kubernetes.yaml").contains("[::]:3142"));
}

fn bare(mut command: Command) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", "/nonexistent");
    command
}

/// A YAML file as JSON, document by document.
pub(crate) async fn yaml(name: &str) -> Option<Vec<Value>> {
    let mut command = Command::new("python3");
    let script =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    command.args(["-c", script]).arg(file(name));
    let output = run(command).await;
    if !output.status.success() && text(&output).contains("No module named 'yaml'") {
        skip("python has no yaml here");
        return None;
    }
    assert!(output.status.success(), "{}", text(&output));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Whether larder accepts these variables and this file as its configuration.
async fn is_configuration(variables: &Value, toml: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("larder.toml");
    std::fs::write(&path, toml).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["config", "--config"]).arg(&path);
    let mut command = bare(command);
    for (name, value) in variables.as_object().into_iter().flatten() {
        command.env(name, value.as_str().unwrap());
    }
    let output = run(command).await;
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

#[tokio::test]
async fn the_compose_file_runs_a_larder_without_rights() {
    let Some(documents) = yaml("service/compose.yaml").await else { return };
    let (service, volumes) = (&documents[0]["services"]["larder"], &documents[0]["volumes"]);
    assert_eq!(service["user"], "65532:65532");
    assert_eq!(service["read_only"], true);
    assert_eq!(service["cap_drop"][0], "ALL");
    assert_eq!(service["security_opt"][0], "no-new-privileges:true");
    let ports = service["ports"].as_array().unwrap();
    assert!(ports.iter().all(|port| port.as_str().unwrap().starts_with("127.0.0.1:")), "{ports:?}");
    let mount = service["volumes"][0].as_str().unwrap();
    let (volume, place) = mount.split_once(':').unwrap();
    assert!(volumes.get(volume).is_some() && place == "/data", "{mount}");
    let context = service["build"]["context"].as_str().unwrap();
    let recipe =
        file("service").join(context).join(service["build"]["dockerfile"].as_str().unwrap());
    let recipe = std::fs::read_to_string(recipe).unwrap();
    assert!(recipe.contains("LARDER_DATA=/data") && recipe.contains("USER 65532:65532"));
    is_configuration(&service["environment"], "").await.unwrap();
    let wrong = serde_json::json!({"LARDER_STORE_MAXSIZE": "1GiB"});
    assert!(is_configuration(&wrong, "").await.is_err(), "the control");
}

#[tokio::test]
async fn the_manifests_fit_together() {
    let Some(documents) = yaml("service/kubernetes.yaml").await else { return };
    let kind = |kind: &str| {
        let mut found = documents.iter().filter(|document| document["kind"] == kind);
        (found.next().unwrap_or_else(|| panic!("no {kind}")), found.next().is_none())
    };
    let (deployment, claim) = (kind("Deployment").0, kind("PersistentVolumeClaim").0);
    let (service, config) = (kind("Service").0, kind("ConfigMap").0);
    let versions: BTreeSet<_> =
        documents.iter().map(|document| document["apiVersion"].as_str().unwrap()).collect();
    assert_eq!(versions, BTreeSet::from(["apps/v1", "v1"]));
    let spec = &deployment["spec"];
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];

    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    assert_eq!(&service["spec"]["selector"], labels);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    assert_eq!(service["spec"]["ports"][0]["port"], 3142);
    let volumes = pod["volumes"].as_array().unwrap();
    let named = |name: &Value| volumes.iter().find(|volume| volume["name"] == *name).unwrap();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volume = named(&mount["name"]);
        let (holds, held) = match mount["mountPath"].as_str().unwrap() {
            "/data" => (&volume["persistentVolumeClaim"]["claimName"], claim),
            "/etc/larder" => (&volume["configMap"]["name"], config),
            other => panic!("{other}"),
        };
        assert_eq!(holds, &held["metadata"]["name"]);
    }

    // One larder per directory, with no more rights than it needs.
    assert_eq!((&spec["replicas"], &spec["strategy"]["type"]), (&1.into(), &"Recreate".into()));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    let drain = larder::config::Config::default().clients.drain_timeout.as_secs();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > drain);
    is_configuration(&Value::Null, config["data"]["larder.toml"].as_str().unwrap()).await.unwrap();
}

/// A kubelet connects to the pod's address, and sends it in `Host`.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered() {
    let Some(documents) = yaml("service/kubernetes.yaml").await else { return };
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let daemon = Daemon::start(&ca, &dir.path().join("data"), &[]).await;
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        for (path, right) in [(path.to_owned(), true), (format!("{path}-not"), false)] {
            let mut command = Command::new("curl");
            command.args(["-sf", "--noproxy", "*", "-H", "Host: 10.0.0.7:3142"]);
            command.arg(format!("http://{}{path}", daemon.address));
            assert_eq!(run(command).await.status.success(), right, "{probe}: {path}");
        }
    }
}

/// The variables that larder itself would set.
async fn known() -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let data = dir.path().join("data");
    let _daemon = Daemon::start(&ca, &data, &[]).await;
    let mut command = larder(&ca, &data);
    command.args(["env", "--format", "json"]).env("TMPDIR", dir.path());
    let output = run(command).await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["variables"].as_object().unwrap().keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_set_what_larder_sets() {
    let known = known().await;
    let strings = |array: &toml::Value| {
        let array = array.as_array().unwrap().iter();
        array.map(|value| value.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let gitlab: toml::Table = read("daemons/gitlab-runner.toml").parse().unwrap();
    let runner = &gitlab["runners"][0];
    let containers: toml::Table = read("daemons/containers.conf").parse().unwrap();
    let github = read("daemons/github-runner.env");
    let unit = read("daemons/daemon.conf");
    let quoted =
        unit.lines().filter_map(|line| line.strip_prefix("Environment=\"")?.strip_suffix('"'));
    let examples = [
        ("gitlab", strings(&runner["environment"])),
        ("containers", strings(&containers["engine"]["env"])),
        ("github", github.lines().map(str::to_owned).collect()),
        ("daemon", quoted.map(str::to_owned).collect()),
    ];
    for (example, pairs) in examples {
        assert!(pairs.len() >= 4, "{example}");
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("{example}: {pair}"));
            assert!(known.contains(name), "{example}: {name}");
            // GitHub's runner accepts no other value, and does not report that.
            let is_proxy = ["http_proxy", "https_proxy"].contains(&&*name.to_lowercase());
            assert!(!is_proxy || value.starts_with("http://"), "{example}: {pair}");
        }
    }
    // The files that jobs in containers refer to must be mounted.
    let docker = &runner["docker"];
    assert!(strings(&docker["extra_hosts"]).contains(&"larder.internal:host-gateway".to_owned()));
    let mounted = strings(&docker["volumes"]);
    for pair in strings(&runner["environment"]).iter().filter(|pair| pair.contains("=/")) {
        let place = pair.split_once('=').unwrap().1.rsplit_once('/').unwrap().0;
        assert!(mounted.contains(&format!("{place}:{place}:ro")), "{pair}");
    }
    let buildkit: toml::Table = read("daemons/buildkitd.toml").parse().unwrap();
    assert_eq!(buildkit["proxyNetwork"].as_bool(), Some(true));
}

/// cargo requires the file of every declared benchmark, also where only the program is built.
#[test]
fn what_builds_without_the_benchmarks_has_a_file_for_each() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(top.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let declared = manifest.split("[[bench]]").skip(1);
    let names: Vec<&str> = declared.map(|rest| rest.split('"').nth(1).unwrap()).collect();
    assert!(names.contains(&"claims") && names.contains(&"load"), "the control: {names:?}");
    for place in ["Containerfile", "scripts/e2e-builds"] {
        let text = read(place);
        for name in &names {
            assert!(text.contains(&format!("benches/{name}.rs")), "{place} makes no {name}.rs");
        }
    }
}
