//! `larder env`: its output, read by the programs that it is for.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::world::binary::{Daemon, larder};
use crate::world::tools::{run, skip, text};
use crate::world::{Ca, Origin, Page};

/// A larder, and a user's environment with values that readers parse differently.
struct Bench {
    dir: tempfile::TempDir,
    ca: Ca,
    _daemon: Daemon,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("origins.pem"));
        let daemon = Daemon::start(&ca, &dir.path().join("data"), &[]).await;
        Self { dir, ca, _daemon: daemon }
    }

    /// `larder env` with these arguments and a directory for its files; returns its output, or its error.
    async fn env(&self, arguments: &[&str], no_proxy: &str) -> Result<String, String> {
        let place = self.dir.path().join("clients");
        let place = ["--directory", place.to_str().unwrap()];
        let placed = arguments.contains(&"--directory");
        self.bare(&[if placed { &[] } else { &place[..] }, arguments].concat(), no_proxy).await
    }

    /// The same, without a directory for its files.
    async fn bare(&self, arguments: &[&str], no_proxy: &str) -> Result<String, String> {
        let mut command = larder(&self.ca, &self.dir.path().join("data"));
        command.arg("env").args(arguments).env("NO_PROXY", no_proxy);
        command.env("TMPDIR", self.dir.path()).env("HOME", self.dir.path());
        let output = run(command).await;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(text(&output))
        }
    }

    /// Every variable, according to the one format that can hold every value.
    async fn meant(&self, arguments: &[&str], no_proxy: &str) -> BTreeMap<String, String> {
        let arguments = [&["--format", "json"], arguments].concat();
        let json = self.env(&arguments, no_proxy).await.unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let variables = json["variables"].as_object().unwrap();
        let texts = variables
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
        let meant: BTreeMap<_, _> = texts.collect();
        assert!(meant.len() > 20 && meant["NO_PROXY"].contains(no_proxy), "{meant:?}");
        meant
    }
}

/// The variables that `program` with `arguments` reads from a file with `text`, as JSON.
async fn read_by(
    program: &str,
    arguments: &[&str],
    file: &Path,
    text: &str,
) -> BTreeMap<String, String> {
    std::fs::write(file, text).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(file).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    let output = run(command).await;
    assert!(output.status.success(), "{}", crate::world::tools::text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

const ENVIRONMENT: &str = "import json, os; print(json.dumps(dict(os.environ)))";

/// The variables of `read` that `meant` contains; the reader's own are left out.
fn of(
    read: &BTreeMap<String, String>,
    meant: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let named = read.iter().filter(|(name, _)| meant.contains_key(*name));
    named.map(|(name, value)| (name.clone(), value.clone())).collect()
}

const HOSTILE: &str = "a'b\"c\\d$e`f%h;i&j|k<l>m(n)o~p{q}r#s!t?u\tv\nw";

#[tokio::test(flavor = "multi_thread")]
async fn shells_read_every_value_as_it_is() {
    let bench = Bench::new().await;
    let file = bench.dir.path().join("file");
    for no_proxy in ["plain.example.org", HOSTILE] {
        let meant = bench.meant(&[], no_proxy).await;
        let text = bench.env(&[], no_proxy).await.unwrap();
        assert_eq!(text, bench.env(&["--format", "sh"], no_proxy).await.unwrap());
        for shell in ["sh", "bash"] {
            let script = format!(". \"$0\"; exec python3 -c '{ENVIRONMENT}'");
            let read = read_by(shell, &["-c", &script], &file, &text).await;
            assert_eq!(of(&read, &meant), meant, "{shell}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_variables_is_read_by_shells_and_by_the_letter() {
    let bench = Bench::new().await;
    let file = bench.dir.path().join("file");
    let no_proxy = "*.example.org,[::1],10.0.0.0/8";
    let mut meant = bench.meant(&[], no_proxy).await;
    // It consists of several words, which such a file cannot hold; Java then bypasses larder.
    assert!(meant.remove("JAVA_TOOL_OPTIONS").is_some());
    let text = bench.env(&["--format", "dotenv"], no_proxy).await.unwrap();
    let script = format!("set -a; . \"$0\"; exec python3 -c '{ENVIRONMENT}'");
    for shell in ["sh", "bash"] {
        let read = read_by(shell, &["-c", &script], &file, &text).await;
        assert_eq!(of(&read, &meant), meant, "{shell}");
    }
    let letters: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(letters, meant);
    // A value that such a file cannot hold is reported with its name, and nothing is printed that could be used by mistake.
    let told = bench.env(&["--format", "dotenv"], HOSTILE).await.unwrap_err();
    assert!(told.contains("larder: NO_PROXY is ") && !told.contains("HTTPS_PROXY="), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_runners_file_is_toml() {
    let bench = Bench::new().await;
    let file = bench.dir.path().join("config.toml");
    let no_proxy = "a'b\"c\\d,%e,\u{e9}";
    let arguments = ["--proxy", "http://larder.example.org:3142"];
    let meant = bench.meant(&arguments, no_proxy).await;
    let text =
        bench.env(&[&["--format", "gitlab"], &arguments[..]].concat(), no_proxy).await.unwrap();
    let python = "import json, sys, tomllib; table = tomllib.load(open(sys.argv[1], 'rb')); \
                  print(json.dumps(dict(pair.split('=', 1) for pair in table['environment'])))";
    if !has_tomllib() {
        skip("this python has no tomllib");
        return;
    }
    assert_eq!(read_by("python3", &["-c", python], &file, &text).await, meant);
    assert!(text.contains("# volumes = [\"/") && text.contains(":ro\"]"), "{text}");
    assert_eq!(meant["HTTPS_PROXY"], "http://larder.example.org:3142");
}

fn has_tomllib() -> bool {
    let output = Command::new("python3").args(["-c", "import tomllib"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// systemd itself reads the drop-in, in the mode in which it shows what it would start.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_in_is_read_by_systemd() {
    let bench = Bench::new().await;
    let no_proxy = "a'b\"c\\d$e`f%h;i%%j#k!";
    let directory = bench.dir.path().join("made here");
    let arguments = ["--directory", directory.to_str().unwrap()];
    let meant = bench.meant(&arguments, no_proxy).await;
    let text =
        bench.env(&[&["--format", "systemd"], &arguments[..]].concat(), no_proxy).await.unwrap();
    let units = tempfile::tempdir().unwrap();
    let dropins = units.path().join("client.service.d");
    std::fs::create_dir(&dropins).unwrap();
    std::fs::write(units.path().join("client.service"), "[Service]\nExecStart=/bin/true\n")
        .unwrap();
    std::fs::write(dropins.join("larder.conf"), &text).unwrap();
    let Some(shown) = shown_by_systemd(units.path()).await else {
        skip("systemd cannot be asked here");
        return;
    };
    for (name, value) in &meant {
        assert!(
            shown.contains(&format!("Environment: {name}={value}\n")),
            "{name}={value}\n{shown}"
        );
    }
}

/// systemd's dump of `client.service` in `units`. systemd refuses this mode for root.
async fn shown_by_systemd(units: &Path) -> Option<String> {
    let everybody = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let runtime = units.join("runtime");
    std::fs::create_dir(&runtime).unwrap();
    everybody(units, 0o755);
    everybody(&runtime, 0o777);
    let path = format!("{}:", units.display());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "env", "-i"]).args([
        format!("SYSTEMD_UNIT_PATH={path}"),
        format!("XDG_RUNTIME_DIR={}", runtime.display()),
        "HOME=/".to_owned(),
    ]);
    command.args(["/lib/systemd/systemd", "--user", "--test", "--log-target=console"]);
    command.arg("--unit=client.service");
    if !Path::new("/lib/systemd/systemd").exists() || Command::new("setpriv").output().is_err() {
        return None;
    }
    let output = run(command).await;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    // The control: it has read the unit at all.
    shown.contains("client.service").then_some(shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runners_lines_hold_everything_but_a_newline() {
    let bench = Bench::new().await;
    let no_proxy = "a'b\"c\\d$e`f%h;#k";
    let meant = bench.meant(&[], no_proxy).await;
    let text = bench.env(&["--format", "github"], no_proxy).await.unwrap();
    // The runner takes everything after the first equals sign, quotes included.
    let read: BTreeMap<String, String> = text
        .lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(read, meant);
    assert!(read["https_proxy"].starts_with("http://"), "the runner refuses one without a scheme");
    let told = bench.env(&["--format", "github"], "a\nb").await.unwrap_err();
    assert!(told.contains("NO_PROXY is \"a\\nb"), "{told}");
}

/// Loopback inside a container is the container itself.
#[tokio::test(flavor = "multi_thread")]
async fn containers_are_not_sent_to_loopback() {
    let bench = Bench::new().await;
    for format in ["docker-args", "docker-run-args", "gitlab"] {
        let told = bench.env(&["--format", format], "").await.unwrap_err();
        assert!(told.contains("loopback only") && told.contains("--proxy"), "{told}");
        let named = ["--format", format, "--proxy", "http://192.0.2.1:3142"];
        let text = bench.env(&named, "").await.unwrap();
        assert!(text.contains("HTTPS_PROXY=http://192.0.2.1:3142"), "{text}");
    }
    let mut command = larder(&bench.ca, &bench.dir.path().join("everywhere"));
    command.args(["serve", "--listen", "0.0.0.0:0"]);
    let everywhere = Daemon::try_run(command).await.unwrap();
    let mut asking = larder(&bench.ca, &bench.dir.path().join("everywhere"));
    asking.args(["env", "--format", "docker-args"]).env("TMPDIR", bench.dir.path());
    let printed = text(&run(asking).await);
    let port = everywhere.address.port();
    assert!(printed.contains("--add-host larder.internal:host-gateway "), "{printed}");
    assert!(printed.contains(&format!(" HTTPS_PROXY=http://larder.internal:{port} ")), "{printed}");
}

/// A drop-in that names a file in /tmp breaks its service after the next reboot.
#[tokio::test(flavor = "multi_thread")]
async fn files_for_what_lasts_are_not_put_where_they_do_not() {
    let bench = Bench::new().await;
    assert!(bench.bare(&[], "").await.is_ok(), "a shell ends before the machine does");
    for format in ["dotenv", "github", "systemd"] {
        let told = bench.bare(&["--format", format], "").await.unwrap_err();
        assert!(told.contains("--directory"), "{told}");
        let directory = bench.dir.path().join(format).join("clients");
        let named = ["--format", format, "--directory", directory.to_str().unwrap()];
        let text = bench.bare(&named, "").await.unwrap();
        assert!(text.contains(&format!("{}/bundle.pem", directory.display())), "{text}");
        assert!(directory.join("bundle.pem").is_file());
    }
}

/// The address and the files together: a client that is configured only with these lines.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_enough_for_a_client() {
    let bench = Bench::new().await;
    // Clients bypass every proxy for 127.0.0.1.
    let origin = Origin::tls(&bench.ca, "127.0.0.2").await;
    let url = origin.put("/x", Page::new("from the origin"));
    let lines = bench.env(&[], "").await.unwrap();
    for (lines, right) in [(&*lines, true), ("", false)] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{lines}\nexec curl -sS \"$0\""), &url]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap());
        let output = run(command).await;
        assert_eq!(output.status.success(), right, "{}", text(&output));
        assert_eq!(output.stdout == b"from the origin", right);
    }
    assert_eq!(origin.gets("/x"), 1);
}
