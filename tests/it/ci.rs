//! What CI systems run: the action (`action.yml`) under a real node, GitLab's template in the shells that run it, and the workflow
//! that makes a release. None of it was run by the services themselves. Row 7 of the issue about the first hour.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use larder::digest::Algorithm;
use serde_json::Value;

use crate::deployment::yaml;
use crate::setup::shells;
use crate::world::archive::hex;
use crate::world::binary::{PROGRAM, larder};
use crate::world::tools::{executable, installed, run, text};
use crate::world::{Ca, eventually};

/// A job of the action: its files, and the variables that the runner gives both halves.
struct Job {
    dir: tempfile::TempDir,
    ca: Ca,
    inputs: Vec<(&'static str, String)>,
}

impl Job {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        for file in ["ENV", "STATE", "PATH", "STEP_SUMMARY"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let data = dir.path().join("data").display().to_string();
        Self { dir, ca, inputs: vec![("INPUT_DATA", data)] }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.inputs.push((name, value.to_owned()));
        self
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(file)).unwrap()
    }

    /// The lines `NAME=VALUE` that it wrote for the runner.
    fn pairs(&self, file: &str) -> BTreeMap<String, String> {
        let text = self.read(file);
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Runs one half, as the runner does.
    async fn run(&self, half: &str) -> Output {
        // The variables of every test, under another program.
        let prepared = larder(&self.ca, &self.dir.path().join("data"));
        let mut command = Command::new("node");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("ca/ci/github").join(half));
        for (name, value) in prepared.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // The job's own larder takes its directory from the input.
        command.env_remove("LARDER_DATA").env("RUNNER_TEMP", self.dir.path());
        for file in ["ENV", "STATE", "PATH", "STEP_SUMMARY"] {
            command.env(format!("GITHUB_{file}"), self.dir.path().join(file));
        }
        command.envs(self.inputs.iter().cloned());
        for (name, value) in self.pairs("STATE") {
            command.env(format!("STATE_{name}"), value);
        }
        run(command).await
    }
}

/// The answer of the larder at `proxy` to `GET /-/ready`.
fn ready(proxy: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(proxy.trim_start_matches("http://"))?;
    stream.write_all(b"GET /-/ready HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_action_starts_a_larder_for_the_job_and_reports_at_its_end() {
    if !installed("node") {
        return;
    }
    let job = Job::new().with("INPUT_PROGRAM", PROGRAM);
    let began = job.run("main.js").await;
    assert!(began.status.success(), "{}", text(&began));
    let variables = job.pairs("ENV");
    let proxy = &variables["HTTPS_PROXY"];
    assert!(proxy.starts_with("http://127.0.0.1:") && ready(proxy).unwrap().contains(" 200 "));
    assert!(Path::new(&variables["SSL_CERT_FILE"]).is_file(), "{variables:?}");

    let ended = job.run("post.js").await;
    assert!(ended.status.success(), "{}", text(&ended));
    for report in [text(&ended), job.read("STEP_SUMMARY")] {
        assert!(report.contains("entries") && report.contains("nothing was refused"), "{report}");
    }
    assert!(ready(proxy).is_err(), "the job's larder still answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_action_says_why_it_could_not_start() {
    if !installed("node") {
        return;
    }
    let job = Job::new().with("INPUT_PROGRAM", "false");
    let output = job.run("main.js").await;
    assert!(!output.status.success() && text(&output).contains("::error::larder: "));
    assert_eq!(job.read("ENV"), "", "later steps would use a larder that is not there");
    // Its second half runs all the same, and fails nothing.
    assert!(job.run("post.js").await.status.success());
}

/// A server of files, by path, until the test ends.
fn serve(files: BTreeMap<String, Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let found = head.split(' ').nth(1).and_then(|path| files.get(path));
            let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
            let body = found.cloned().unwrap_or_default();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(&[head.into_bytes(), body].concat()).unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_action_installs_only_the_archive_that_its_sum_names() {
    if !installed("node") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = format!("#!/bin/sh\nexec {PROGRAM} \"$@\"\n");
    let machine = std::env::consts::ARCH;
    let name = format!("larder-9.9.9-{machine}-linux-gnu");
    std::fs::create_dir(dir.path().join(&name)).unwrap();
    executable(&dir.path().join(&name).join("larder"), &program);
    let mut tar = Command::new("tar");
    tar.current_dir(dir.path()).args(["-czf", "archive", &name]);
    assert!(run(tar).await.status.success());
    let archive = std::fs::read(dir.path().join("archive")).unwrap();
    let sum = hex(Algorithm::Sha256, &archive);
    let releases = "/larder/larder/releases/download/v9.9.9";
    let files = |sum: &str| {
        BTreeMap::from([
            (format!("{releases}/SHA256SUMS"), format!("{sum}  {name}.tar.gz\n").into_bytes()),
            (format!("{releases}/{name}.tar.gz"), archive.clone()),
        ])
    };
    let wrong = "0".repeat(64);
    for (listed, pinned, right) in [(&sum, "", true), (&wrong, "", false), (&sum, &*wrong, false)] {
        let server = format!("http://{}", serve(files(listed)));
        let job = Job::new()
            .with("INPUT_VERSION", "9.9.9")
            .with("INPUT_SHA256", pinned)
            .with("GITHUB_SERVER_URL", &server)
            .with("GITHUB_ACTION_REPOSITORY", "larder/larder");
        let output = job.run("main.js").await;
        assert_eq!(output.status.success(), right, "{}", text(&output));
        if right {
            assert!(Path::new(job.read("PATH").trim()).join("larder").is_file());
            assert!(job.run("post.js").await.status.success());
        } else {
            assert!(text(&output).contains("was not installed"), "{}", text(&output));
            assert_eq!(job.read("PATH"), "");
        }
    }
}

/// The action has no input that it does not read, and reads none that it does not have.
#[tokio::test]
async fn the_actions_inputs_are_those_that_it_reads() {
    let Some(documents) = yaml("../action.yml").await else { return };
    let action = &documents[0];
    let named: BTreeSet<String> = action["inputs"].as_object().unwrap().keys().cloned().collect();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let main = std::fs::read_to_string(top.join("ca/ci/github/main.js")).unwrap();
    let read: BTreeSet<String> = main
        .split("input(\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert_eq!(named, read);
    for half in ["main", "post"] {
        assert!(top.join(action["runs"][half].as_str().unwrap()).is_file());
    }
    assert_eq!(action["inputs"]["version"]["default"], env!("CARGO_PKG_VERSION"));
}

/// GitLab runs `before_script` and `script` as one text, in a shell behind a pipe, and stops at the first failure.
async fn gitlab(template: &Value, shell: &[&str], dir: &Path, script: &str) -> Output {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    executable(&bin.join("larder"), &format!("#!/bin/sh\nexec {PROGRAM} \"$@\"\n"));
    let before = template["before_script"].as_array().unwrap().iter();
    let before: Vec<&str> = before.map(|lines| lines.as_str().unwrap()).collect();
    let job = dir.join("job");
    std::fs::write(&job, format!("set -e\n{}\n{script}\n", before.join("\n"))).unwrap();
    let ca = Ca::new(&dir.join("origins.pem"));
    let prepared = larder(&ca, &dir.join("data"));
    let mut command = Command::new("sh");
    let shell = shell.join(" ");
    command.arg("-c").arg(format!(": | {shell} -c 'eval \"$(cat \"$0\")\"' {}", job.display()));
    for (name, value) in prepared.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display())).env("TMPDIR", dir);
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_job_has_a_larder_and_ends_with_its_report() {
    let Some(documents) = yaml("ci/gitlab.yml").await else { return };
    let template = &documents[0][".larder"];
    for shell in shells() {
        let dir = tempfile::tempdir().unwrap();
        let output =
            gitlab(template, shell, dir.path(), "echo \"proxy $HTTPS_PROXY\"\nexit 3").await;
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{shell:?}: {said}");
        let proxy = said.lines().find_map(|line| line.strip_prefix("proxy ")).unwrap();
        assert!(said.contains("nothing was refused"), "{shell:?}: {said}");
        eventually("the job's larder ends with it", || async { ready(proxy).is_err() }).await;
    }
    // The control: the report comes from the trap.
    let mut without = template.clone();
    let script =
        without["before_script"][0].as_str().unwrap().replace("trap larder_report EXIT", "");
    without["before_script"][0] = Value::String(script);
    let dir = tempfile::tempdir().unwrap();
    let output = gitlab(&without, &["sh"], dir.path(), "kill $larder_pid\nexit 3").await;
    assert!(!text(&output).contains("nothing was refused"), "{}", text(&output));
}

/// larder refuses variables of its own prefix that it does not know, and would not start in the job.
#[tokio::test]
async fn the_variables_of_the_gitlab_job_are_larders_or_not_named_like_its_own() {
    let Some(documents) = yaml("ci/gitlab.yml").await else { return };
    let template = &documents[0][".larder"];
    let check = |variables: Value| async move {
        let mut command = Command::new(PROGRAM);
        command.arg("config").env_clear().env("HOME", "/nonexistent");
        for (name, value) in variables.as_object().unwrap() {
            command.env(name, value.as_str().unwrap().replace("$CI_PROJECT_DIR", "/tmp"));
        }
        run(command).await.status.success()
    };
    assert!(check(template["variables"].clone()).await);
    assert!(!check(serde_json::json!({"LARDER_ARCHIVE": ""})).await, "the control");
    // The key of the CA stays out of the cache, which other jobs and people may read.
    let kept: Vec<PathBuf> = template["cache"][0]["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| PathBuf::from(path.as_str().unwrap()))
        .collect();
    assert_eq!(kept, [PathBuf::from(".larder/v1")]);
}

#[tokio::test]
async fn a_release_is_made_by_the_script_that_everybody_runs() {
    let Some(documents) = yaml("../.github/workflows/release.yml").await else { return };
    let jobs = documents[0]["jobs"].as_object().unwrap();
    let runs = |job: &str| {
        let steps = jobs[job]["steps"].as_array().unwrap().iter();
        let runs: Vec<&str> = steps.filter_map(|step| step["run"].as_str()).collect();
        runs.join("\n")
    };
    for job in ["arm64", "amd64"] {
        assert!(runs(job).contains("scripts/package --keep dist"), "{}", runs(job));
    }
    assert!(runs("publish").contains("sha256sum"));
    // Its notes are this version's part of the changelog.
    let changelog = include_str!("../../CHANGELOG.md");
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    let notes = changelog.split(&heading).nth(1).and_then(|rest| rest.split("\n## ").next());
    assert!(notes.is_some_and(|notes| notes.contains("### Added")), "no {heading} in CHANGELOG.md");
}
