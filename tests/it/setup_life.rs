//! The set-up script and other events on a machine: kills, the user's own settings, programs that keep copies of the system's
//! trust store, another server at the address, and a run without a file of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::setup::{address, done, script};
use crate::world::World;
use crate::world::root::{FAMILIES, Root};
use crate::world::tools::{executable, run, text};

/// The programs with which the script changes a system.
const CHANGING: [&str; 6] = ["mv", "cp", "rm", "mkdir", "rmdir", "chroot"];

/// Stand-ins for these programs that count down, and at zero kill the script instead of doing their work.
struct Killer {
    dir: PathBuf,
}

impl Killer {
    fn new(dir: &Path) -> Self {
        let dir = dir.join("wrappers");
        std::fs::create_dir(&dir).unwrap();
        for name in CHANGING {
            let wrapper = dir.join(name);
            let body = "#!/bin/sh\nread -r left <\"$KILLER/left\"\necho $((left - 1)) >\"$KILLER/left\"\n\
                        if [ \"$left\" = 0 ]; then read -r id <\"$KILLER/id\"; kill -9 \"$id\"; exit 1; fi\n\
                        PATH=$AFTER_KILLER exec NAME \"$@\"\n";
            executable(&wrapper, &body.replace("NAME", name));
        }
        Self { dir }
    }

    /// Runs `script`, and kills it before change number `left`; returns whether that was reached.
    async fn run(&self, root: &Root, script: &Path, arguments: &[&str], left: usize) -> bool {
        std::fs::write(self.dir.join("left"), format!("{left}\n")).unwrap();
        let mut command = Command::new("sh");
        // The shell replaces itself with the script, so that the process id that was written is the script's.
        command.args(["-c", "echo $$ >\"$KILLER/id\"; exec sh \"$@\"", "sh"]);
        command.arg(script).args(arguments).arg("--prefix").arg(root.path());
        root.dress(&mut command);
        let path = command
            .get_envs()
            .find_map(|(name, value)| (name == "PATH").then_some(value?.to_owned()))
            .unwrap();
        let path = path.to_str().unwrap();
        command
            .env("KILLER", &self.dir)
            .env("AFTER_KILLER", path)
            .env("PATH", format!("{}:{path}", self.dir.display()));
        let output = run(command).await;
        let ended = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
        assert!(ended || output.status.success(), "{}", text(&output));
        ended
    }
}

/// Everything except the temporary directory of a run that was killed while it only planned.
fn listing(root: &Root) -> BTreeMap<PathBuf, String> {
    let mut all = root.listing();
    all.retain(|path, _| !path.to_string_lossy().contains("/tmp/larder-setup."));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_is_made_good_by_the_next_run() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let wrappers = Killer::new(world.dir());
    let mut ended = 0;
    for removing in [false, true] {
        for left in (0..400).step_by(7) {
            let root = Root::new(FAMILIES[0]);
            let before = listing(&root);
            let arguments: &[&str] = if removing { &["--remove"] } else { &[&address] };
            if removing {
                done(&root.set_up(&["sh"], &script, &[&address]).await);
            }
            if !wrappers.run(&root, &script, arguments, left).await {
                break;
            }
            ended += 1;
            // The change that was begun is either completed or undone.
            if left % 2 == 0 {
                done(&root.set_up(&["sh"], &script, &[&address]).await);
                let told = done(&root.set_up(&["sh"], &script, &[&address]).await);
                assert!(told.contains("nothing was to be done"), "{removing} {left}: {told}");
            }
            done(&root.set_up(&["sh"], &script, &["--remove"]).await);
            assert_eq!(listing(&root), before, "{removing} {left}");
        }
    }
    assert!(ended > 10, "the control: {ended}");
}

/// Java's copy of the trust store is changed only by what Debian's tool passes to its hooks. This stand-in does the relevant part
/// of that tool: a link for each certificate, `+` for a new one, `-` only for one that the configuration excludes, and nothing
/// for one whose file is gone.
const TOOL: &str = r#"conf=$ROOT/etc/ca-certificates.conf
fresh=no
while [ $# -gt 0 ]; do
  case $1 in
  --fresh) fresh=yes ;;
  --certsconf) conf=$ROOT$2 && shift ;;
  esac
  shift
done
cd "$ROOT/etc/ssl/certs"
if [ $fresh = yes ]; then rm -f larder-*.pem; fi
sed -n 's/^!\(.*\)\.crt$/\1.pem/p' "$conf" | while read -r link; do
  if [ -L "$link" ]; then rm "$link"; echo "-$link" >>removed; fi
done
for crt in "$ROOT"/usr/local/share/ca-certificates/*.crt; do
  [ -f "$crt" ] || continue
  link=$(basename "$crt" .crt).pem
  if [ ! -L "$link" ]; then ln -s "${crt#"$ROOT"}" "$link"; echo "+$link" >>added; fi
done
cat added removed 2>/dev/null | while read -r said; do
  case $said in
  +*) touch "$ROOT/java/${said#+}" ;;
  -*) rm -f "$ROOT/java/${said#-}" ;;
  esac
done
rm -f added removed
{ cat "$ROOT/roots"; cat "$ROOT"/usr/local/share/ca-certificates/*.crt 2>/dev/null || :; } >ca-certificates.crt
"#;

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_a_copy_of_the_roots_hears_that_larder_is_gone() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = Root::new(FAMILIES[0]);
    root.tool(TOOL);
    root.put("etc/ca-certificates.conf", "mozilla/a.crt\n");
    root.put("java/README", "");
    let before = root.listing();
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(root.path().join("java/larder-ca.pem").exists(), "the control");
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(root.listing(), before);
    // Also if a failure undoes everything.
    root.tool(&format!("{TOOL}\n[ ! -e \"$ROOT/java/larder-ca.pem\" ]"));
    let before = root.listing();
    let output = root.set_up(&["sh"], &script, &[&address]).await;
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    assert_eq!(root.listing(), before);
}

/// Forms of cargo's `config.toml` other than a plain header, and whether the script can add its `[http]` table there.
const TABLES: [(&str, bool); 6] = [
    ("  [ http ]\ndebug = false\n", true),
    ("[\"http\"]\ndebug = false", true),
    ("[net]\nretry = 3\n", true),
    ("http.debug = false\n", false),
    ("http = { debug = false }\n", false),
    ("\"http\".debug = false\n", false),
];

/// In TOML a second table of the same name is an error, which makes cargo stop working.
#[tokio::test(flavor = "multi_thread")]
async fn cargos_settings_are_still_toml() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    for (text, set) in TABLES {
        let root = Root::new(FAMILIES[0]);
        root.put("usr/local/cargo/config.toml", text);
        let before = root.listing();
        done(&root.set_up(&["sh"], &script, &[&address]).await);
        let after = root.read("usr/local/cargo/config.toml");
        let parsed: toml::Table = after.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let proxy = parsed.get("http").and_then(|http| http.get("proxy"));
        assert_eq!(proxy.is_some(), set, "{after}");
        done(&root.set_up(&["sh"], &script, &["--remove"]).await);
        assert_eq!(root.listing(), before, "{text}");
    }
    // If a file with the older name exists, cargo reads that one.
    let root = Root::new(FAMILIES[1]);
    root.put("usr/local/cargo/config", "[net]\nretry = 3\n");
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(root.read("usr/local/cargo/config").contains("\n[http]\nproxy = "));
    assert_eq!(root.read("usr/local/cargo/config.toml"), "");
}

/// In files where the last of two equal settings counts, the script's line must contain the hosts of the user's line.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_went_around_a_proxy_still_do() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let [debian, _, alpine, _, _, suse] = FAMILIES;
    let root = Root::new(alpine);
    root.put("usr/local/etc/npmrc", "noproxy = inner.example.org, localhost\nfund=false\n");
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let npm = root.read("usr/local/etc/npmrc");
    assert!(npm.contains("\nnoproxy=inner.example.org,localhost,127.0.0.1,"), "{npm}");
    let root = Root::new(suse);
    root.put(
        "etc/sysconfig/proxy",
        "PROXY_ENABLED=\"no\"\nNO_PROXY=\"localhost, inner.example.org\"\n",
    );
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let zypper = root.read("etc/sysconfig/proxy");
    assert!(zypper.contains("\nNO_PROXY=\"localhost,inner.example.org,127.0.0.1,"), "{zypper}");
    // A value that is no host name must not become apt configuration.
    let root = Root::new(debian);
    root.put("etc/environment", "NO_PROXY=\"a{};b,inner.example.org,*.example.net\"\n");
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let apt = root.read("etc/apt/apt.conf.d/99larder");
    assert!(apt.contains("::inner.example.org \"DIRECT\"") && !apt.contains("a{}"), "{apt}");
}

/// In a UTF-8 locale grep treats such a file as binary, and prints that instead of a line number.
#[tokio::test(flavor = "multi_thread")]
async fn settings_in_any_encoding_are_left_as_they_are() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = Root::new(FAMILIES[0]);
    let latin = root.path().join("etc/pip.conf");
    let text = b"# f\xfcr alle\n[global]\nretries = 3";
    std::fs::write(&latin, text).unwrap();
    let mut command = Command::new("sh");
    command.arg(&script).arg(&address).arg("--prefix").arg(root.path());
    root.dress(&mut command);
    done(
        &run({
            command.env("LC_ALL", "C.UTF-8");
            command
        })
        .await,
    );
    let set = String::from_utf8_lossy(&std::fs::read(&latin).unwrap()).into_owned();
    assert!(set.contains("[global]\n# BEGIN larder setup") && set.contains("\nproxy = "), "{set}");
    // A user appends to a file that had no final newline.
    let environment = root.path().join("etc/wgetrc");
    let with = std::fs::read_to_string(&environment).unwrap();
    std::fs::write(&environment, format!("{with}waitretry = 5\n")).unwrap();
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(std::fs::read(&latin).unwrap(), text);
    assert_eq!(root.read("etc/wgetrc"), "tries = 3\nwaitretry = 5\n");
}

/// Runs the script as `curl URL | sh -s -- ARGUMENTS` does.
async fn piped(root: &Root, script: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "file=$1; shift; cat \"$file\" | sh -s -- \"$@\"", "sh"]).arg(script);
    command.args(arguments).arg("--prefix").arg(root.path());
    root.dress(&mut command);
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn piped_into_a_shell_it_promises_no_copy_and_keeps_one() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = Root::new(FAMILIES[0]);
    let before = root.listing();
    let told = done(&piped(&root, &script, &[&address]).await);
    assert!(!told.contains("sh /etc/larder/setup --remove"), "there is none: {told}");
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let told = done(&piped(&root, &script, &[&address]).await);
    assert!(told.contains("nothing was to be done"), "{told}");
    assert!(root.path().join("etc/larder/setup").exists(), "{told}");
    done(&piped(&root, &script, &["--remove"]).await);
    assert_eq!(root.listing(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_at_the_address_is_called_no_larder() {
    let world = World::new().await;
    let script = script(&world).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _asked = tokio::io::AsyncReadExt::read(&mut client, &mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            let _told = tokio::io::AsyncWriteExt::write_all(&mut client, answer).await;
        }
    });
    let root = Root::new(FAMILIES[0]);
    let before = root.listing();
    let output = root.set_up(&["sh"], &script, &[&other]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("is no larder"), "{}", text(&output));
    assert_eq!(root.listing(), before);
    serving.abort();
}

/// Debian's busybox has a wget without a timeout option, which fails if one is given.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_busybox_is_enough_to_ask_with() {
    let path = std::env::var("PATH").unwrap();
    let found = |name: &str| {
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists())
    };
    let Some(busybox) = found("busybox") else {
        return crate::world::tools::skip("busybox is not on this machine");
    };
    let (world, other) = (World::new().await, World::new().await);
    let script = script(&world).await;
    let only = world.dir().join("only");
    std::fs::create_dir(&only).unwrap();
    for name in "awk base64 basename cat chmod cksum cp cut dirname env expr grep head id mkdir mktemp mv rm rmdir sed \
                 sh sha256sum sort tail timeout tr wc wget"
        .split_whitespace()
    {
        std::os::unix::fs::symlink(&busybox, only.join(name)).unwrap();
    }
    for (larder, code) in [(&world, 0), (&other, 3)] {
        let root = Root::new(FAMILIES[2]);
        let mut command = Command::new(only.join("sh"));
        command.arg(&script).arg(address(larder)).arg("--prefix").arg(root.path());
        root.dress(&mut command);
        let stubs = root.path().parent().unwrap().join("stubs");
        let stubs = stubs.to_str().unwrap();
        // A proxy that does not answer: larder is contacted directly.
        command
            .env("PATH", format!("{stubs}:{}", only.display()))
            .env("http_proxy", "http://127.0.0.1:1");
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(!text(&output).contains("unasked"), "{}", text(&output));
    }
    // The build steps of an image contact larder in the same way.
    let (root, _) = crate::images::image(2);
    let mut command = root.step(&["sh"], &["--begin"]);
    command.env(
        "PATH",
        format!("{}:{}", root.path().parent().unwrap().join("stubs").display(), only.display()),
    );
    command.env("LARDER", address(&world));
    let told = text(&run(command).await);
    assert!(root.path().join("larder/address").exists(), "{told}");
}

/// If the reader of the output leaves after the first lines, the script must not stop half-way.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_leaves_nothing_half_done() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    for shell in crate::setup::shells() {
        let root = Root::new(FAMILIES[0]);
        let before = root.listing();
        let mut command = Command::new("sh");
        let line = format!("{} \"$@\" 2>/dev/null | head -n 1", shell.join(" "));
        command
            .args(["-c", &line, "sh"])
            .arg(&script)
            .args([&address, "--prefix"])
            .arg(root.path());
        root.dress(&mut command);
        done(&run(command).await);
        // The script may have finished before the reader left.
        if root.listing() != before {
            assert!(listing(&root) == root.listing(), "a temporary directory is left");
            done(&root.set_up(&["sh"], &script, &["--remove"]).await);
        }
        assert_eq!(root.listing(), before, "{shell:?}");
    }
}

/// Row 12: a build step of an image has no variables, and uv reads its own file; a version that does not know these settings
/// would refuse to run.
#[tokio::test(flavor = "multi_thread")]
async fn uv_is_told_by_its_own_file_where_it_knows_what_stands_there() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let [debian, ..] = FAMILIES;
    for (knows, own, written) in [
        ("system-certs", "", true),
        ("native-tls", "offline = false\n", true),
        ("nothing", "", false),
        ("system-certs", "[[index]]\nurl = \"x\"\n", false),
        ("system-certs", "https-proxy = \"http://mine.example.org\"\n", false),
    ] {
        let root = Root::new(debian);
        root.put(
            "usr/local/bin/uv",
            &format!("[ \"$1\" = --config-file ] && grep -q {knows} \"$ROOT$2\"\n"),
        );
        let uv = root.path().join("usr/local/bin/uv");
        std::fs::set_permissions(uv, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        if !own.is_empty() {
            root.put("etc/uv/uv.toml", own);
        }
        let before = root.listing();
        done(&root.set_up(&["sh"], &script, &[&address]).await);
        let file = root.read("etc/uv/uv.toml");
        let told = format!("https-proxy = \"{address}\"\nno-proxy = [\"localhost\",\"127.0.0.1\",");
        assert_eq!(file.contains(&told), written, "{knows}, {own}: {file}");
        assert_eq!(file.contains(&format!("{knows} = true\n")), written, "{file}");
        assert!(file.starts_with(own), "{file}");
        done(&root.set_up(&["sh"], &script, &["--remove"]).await);
        assert_eq!(root.listing(), before);
    }
    let root = Root::new(debian);
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(root.read("etc/uv/uv.toml").is_empty(), "no uv, and a later one may be too old");
}
