//! The script of `GET /setup`: its changes to a system, that it can undo them exactly, and the errors that make it do nothing.
//!
//! Here the systems are directories with the relevant files and a stand-in for the update tool; `scripts/setup-roots` does the
//! same with real Debian and Ubuntu root directories.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::world::root::{FAMILIES, Root};
use crate::world::tools::{run, text};
use crate::world::{World, larder};

/// Shells in which the script must work, if this machine has them.
const SHELLS: [&[&str]; 2] = [&["dash"], &["busybox", "sh"]];

#[expect(clippy::print_stderr, reason = "what is skipped is said")]
pub(crate) fn shells() -> Vec<&'static [&'static str]> {
    let path = std::env::var("PATH").unwrap();
    let has = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    let (there, missing): (Vec<_>, Vec<_>) = SHELLS.into_iter().partition(|shell| has(shell[0]));
    for shell in missing {
        eprintln!("skipped: {} is not on this machine", shell[0]);
    }
    there
}

/// A fault of a root directory.
type Plant = fn(&Root);

/// This larder's script, as a file.
pub(crate) async fn script(world: &World) -> PathBuf {
    let file = world.dir().join("setup");
    std::fs::write(&file, world.proxy.own("/setup").await).unwrap();
    file
}

pub(crate) fn address(world: &World) -> String {
    format!("http://{}", world.proxy.address)
}

#[track_caller]
pub(crate) fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    text(output)
}

/// A line that only this certificate contains.
async fn certificate(world: &World) -> String {
    let pem = world.proxy.own("/ca.crt").await;
    pem.lines().nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_set_up_twice_and_is_as_before_after_removal() {
    let world = World::new().await;
    let (script, address, ca) = (script(&world).await, address(&world), certificate(&world).await);
    for shell in shells() {
        // All of them in one shell; in the others, those whose default shell it is.
        let many = if shell[0] == "dash" { 6 } else { 3 };
        for family in FAMILIES.into_iter().take(many) {
            let root = Root::new(family);
            let before = root.listing();
            let told = done(&root.set_up(shell, &script, &[&address]).await);
            let case = format!("{shell:?} {family:?}: {told}");
            assert!(root.bundle().contains(&ca), "{case}");
            assert!(root.bundle().contains("the system's own roots"), "{case}");
            assert!(
                root.read("etc/environment").contains(&format!("\nHTTPS_PROXY=\"{address}\"\n"))
            );
            assert!(root.read("etc/profile.d/larder.sh").contains(family.bundle), "{case}");
            assert_eq!(
                root.path().join("etc/apt/apt.conf.d/99larder").exists(),
                root.path().join("etc/apt").exists()
            );
            let once = root.listing();
            let told = done(&root.set_up(shell, &script, &[&address]).await);
            assert!(told.contains("nothing was to be done"), "{case}: {told}");
            assert_eq!(root.listing(), once, "{case}");
            // With the copy that the script left, as a user would months later.
            let left = root.path().join("etc/larder/setup");
            done(&root.set_up(shell, &left, &["--remove"]).await);
            assert_eq!(root.listing(), before, "{case}");
            assert!(
                done(&root.set_up(shell, &script, &["--remove"]).await)
                    .contains("nothing to remove")
            );
        }
    }
}

/// Lines are put where each format requires them, and lines that somebody else added meanwhile stay.
#[tokio::test(flavor = "multi_thread")]
async fn lines_of_others_stay() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let [debian, ubuntu, ..] = FAMILIES;
    let root = Root::new(ubuntu);
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let pip = root.read("etc/pip.conf");
    // A second [global] section would be an error to pip.
    assert_eq!(pip.matches("[global]").count(), 1, "{pip}");
    assert!(pip.contains("\nproxy = http") && pip.ends_with("\nretries = 3\n"), "{pip}");
    let environment = root.read("etc/environment");
    assert!(
        environment
            .contains("\nno_proxy=\"one.example.org,localhost,127.0.0.1,::1,169.254.169.254,"),
        "{environment}"
    );
    root.put("etc/pip.conf", &format!("{pip}timeout = 9\n"));
    root.put("etc/gitconfig", &format!("[a]\n\tb = c\n{}", root.read("etc/gitconfig")));
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(
        root.read("etc/pip.conf"),
        "[install]\nuser = no\n\n[global]\nretries = 3\ntimeout = 9\n"
    );
    assert_eq!(root.read("etc/gitconfig"), "[a]\n\tb = c\n");

    let root = Root::new(debian);
    root.put("etc/pip.conf", "[global]\nproxy = http://corporate.example.org:8080\n");
    root.put("etc/apt/apt.conf.d/99larder", "// somebody's\n");
    let before = root.listing();
    let told = done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(
        told.contains("etc/pip.conf: it says itself") && told.contains("99larder: it was there"),
        "{told}"
    );
    assert_eq!(root.read("etc/apt/apt.conf.d/99larder"), "// somebody's\n");
    assert!(
        root.read("usr/local/cargo/config.toml")
            .starts_with("[http]\n# BEGIN larder setup\nproxy = ")
    );
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(root.listing(), before);
}

/// The errors that make it stop: the exit code, the one line of output, and that nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_changes_nothing_and_is_said_in_one_line() {
    let world = World::new().await;
    let other = World::new().await;
    let (script, right, foreign) = (script(&world).await, address(&world), address(&other));
    let [debian, ..] = FAMILIES;
    let bad: &[(&[&str], i32, &str)] = &[
        (&["http://127.0.0.1:1"], 3, "no larder answers at http://127.0.0.1:1"),
        (&[&foreign], 3, "has another CA"),
        (&[], 2, "which larder?"),
        (&["--unknown"], 2, "there is no option --unknown"),
        (&["a", "b"], 2, "one address"),
        (&[&right, "--no-proxy"], 2, "names no directory"),
        (&[&right, "--no-proxy", "a;b"], 2, "--no-proxy takes"),
        (&[&right, "--no-proxy", "$(x)"], 2, "--no-proxy takes"),
        (&["https://127.0.0.1:1"], 2, "is no address"),
        (&["http://a\";reboot;\":1"], 2, "is no address"),
        (&["http://$(reboot):1"], 2, "is no address"),
        (&["http://[::1$(x)]:1"], 2, "is no address"),
        (&["http://a:1\nb"], 2, "is no address"),
        (&["http://a:0x1"], 2, "is no address"),
        (&["http://a/b:1"], 2, "is no address"),
        (&["-x"], 2, "there is no option"),
    ];
    for (arguments, code, line) in bad {
        for shell in shells() {
            let root = Root::new(debian);
            let before = root.listing();
            // An option at the end takes the prefix for its value.
            let output = root.set_up(shell, &script, arguments).await;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            if arguments.last() != Some(&"--no-proxy") {
                assert_eq!(output.status.code(), Some(*code), "{shell:?} {arguments:?}: {told}");
                assert!(
                    told.starts_with("larder setup: ") && told.contains(line),
                    "{arguments:?}: {told}"
                );
            }
            assert_eq!(root.listing(), before, "{arguments:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_cannot_be_set_up_is_left_as_it_was() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let [debian, ..] = FAMILIES;
    let planted: &[(Plant, i32, &str)] = &[
        (|root| root.put("etc/os-release", "ID=unheard-of\n"), 5, "unknown system (ID=unheard-of)"),
        (|root| root.tool("echo broken; exit 1"), 6, "update-ca-certificates failed (broken)"),
        (|root| root.tool("exit 0"), 6, "does not hold larder's CA"),
        (
            |root| root.put("usr/local/share/ca-certificates/larder-ca.crt", "not ours"),
            5,
            "is in the way",
        ),
        (|root| root.put("etc/larder/setup", "not ours"), 5, "is in the way"),
        (|root| root.put("etc/pip.conf", "# BEGIN larder setup\nx\n"), 5, "one of the two marks"),
        // A file in place of a directory: noticed when everything else is done already.
        (|root| root.put("etc/conda/condarc.d", "a file"), 4, "cannot write"),
        (
            |root| {
                let outside = root.path().parent().unwrap().join("outside");
                std::fs::create_dir(&outside).unwrap();
                std::fs::remove_dir_all(root.path().join("etc/profile.d")).unwrap();
                std::os::unix::fs::symlink(outside, root.path().join("etc/profile.d")).unwrap();
            },
            5,
            "leads out of",
        ),
    ];
    for (plant, code, line) in planted {
        for shell in shells() {
            let root = Root::new(debian);
            plant(&root);
            let before = root.listing();
            let output = root.set_up(shell, &script, &[&address]).await;
            let told = text(&output);
            assert_eq!(output.status.code(), Some(*code), "{shell:?} {line}: {told}");
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(errors.contains(line), "{shell:?} {line}: {errors}");
            assert_eq!(root.listing(), before, "{shell:?} {line}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_takes_the_place_of_the_old_one() {
    let (first, second) = (World::new().await, World::new().await);
    let (old, new) = (certificate(&first).await, certificate(&second).await);
    for family in FAMILIES.into_iter().skip(2).take(2) {
        let root = Root::new(family);
        let before = root.listing();
        done(&root.set_up(&["sh"], &script(&first).await, &[&address(&first)]).await);
        assert!(root.bundle().contains(&old), "the control");
        let told = done(&root.set_up(&["sh"], &script(&second).await, &[&address(&second)]).await);
        assert!(told.contains("new CA     instead of "), "{told}");
        assert!(root.bundle().contains(&new) && !root.bundle().contains(&old));
        let all: String = root.listing().into_values().collect();
        assert!(
            !all.contains(&old) && !all.contains(&address(&first)),
            "something of the old one is left"
        );
        done(&root.set_up(&["sh"], &script(&second).await, &["--remove"]).await);
        assert_eq!(root.listing(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    for family in FAMILIES.into_iter().take(1) {
        let root = Root::new(family);
        let before = root.listing();
        let told = done(&root.set_up(&["sh"], &script, &[&address, "--dry-run"]).await);
        assert!(told.contains("would be made: ") && told.contains("larder-ca.crt"), "{told}");
        assert_eq!(root.listing(), before);
        done(&root.set_up(&["sh"], &script, &[&address]).await);
        let set_up = root.listing();
        assert_ne!(set_up, before, "the control");
        let told = done(&root.set_up(&["sh"], &script, &["--remove", "--dry-run"]).await);
        assert!(told.contains("would be removed: "), "{told}");
        assert_eq!(root.listing(), set_up);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_alone_needs_no_address_and_takes_settings_back() {
    let world = World::new().await;
    let (script, address, ca) = (script(&world).await, address(&world), certificate(&world).await);
    let [debian, ..] = FAMILIES;
    let root = Root::new(debian);
    let before = root.listing();
    done(&root.set_up(&["sh"], &script, &["--ca-only"]).await);
    assert!(root.bundle().contains(&ca));
    let only = root.listing();
    assert!(!root.read("etc/environment").contains("PROXY"));
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(root.read("etc/environment").contains("PROXY"), "the control");
    done(&root.set_up(&["sh"], &script, &["--ca-only"]).await);
    let files = |listing: std::collections::BTreeMap<PathBuf, String>| -> Vec<PathBuf> {
        listing.into_keys().filter(|path| path.is_file()).collect()
    };
    assert_eq!(files(root.listing()), files(only));
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(root.listing(), before);
}

/// An image without the package ca-certificates: it is set up for traffic through larder, and the package, if it is installed
/// later, finds the CA in its directory.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_systems_tool_there_is_a_bundle_of_its_own() {
    let world = World::new().await;
    let (script, address, ca) = (script(&world).await, address(&world), certificate(&world).await);
    let [debian, _, alpine, ..] = FAMILIES;
    for family in [debian, alpine] {
        let root = Root::new(family);
        let tool = root.read(&format!("usr/sbin/{}", family.tool));
        root.without_tool();
        let before = root.listing();
        let told = done(&root.set_up(&["sh"], &script, &[&address]).await);
        assert!(told.contains("the package ca-certificates will take"), "{told}");
        let own = root.read("etc/larder/bundle.pem");
        assert!(own.contains(&ca) && own.contains("the system's own roots"), "{own}");
        assert!(root.read("etc/pip.conf").contains("cert = /etc/larder/bundle.pem\n"));
        let anchor = root.read(&format!("{}/larder-ca.crt", family.anchors));
        assert!(anchor.contains(&ca) && !anchor.contains("the system's own roots"));
        done(&root.set_up(&["sh"], &script, &["--remove"]).await);
        assert_eq!(root.listing(), before);
        // If the tool is there later: the system's bundle again.
        done(&root.set_up(&["sh"], &script, &[&address]).await);
        root.tool(tool.trim_start_matches("#!/bin/sh\n"));
        done(&root.set_up(&["sh"], &script, &[&address]).await);
        assert!(root.read("etc/larder/bundle.pem").is_empty() && root.bundle().contains(&ca));
        assert!(root.read("etc/pip.conf").contains(&format!("cert = /{}\n", family.bundle)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn java_gets_a_trust_store_only_where_it_has_roots_of_its_own() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let [debian, ..] = FAMILIES;
    let cacerts = "opt/java/openjdk/lib/security/cacerts";

    let root = Root::new(debian);
    root.put(cacerts, "Java's own roots\n");
    // The real one writes into -keystore and -destkeystore, and fails without -file and -srckeystore.
    root.put(
        "opt/java/openjdk/bin/keytool",
        "while [ $# -gt 0 ]; do\ncase $1 in\n-keystore | -destkeystore) to=$ROOT$2 ;;\n\
         -srckeystore | -file) from=$ROOT$2 ;;\nesac\nshift\ndone\ncat \"$from\" >>\"$to\"\n",
    );
    let before = root.listing();
    let around = ["--no-proxy", "10.0.0.0/8,172.16.0.0/12,.corp.example.org"];
    done(&root.set_up(&["sh"], &script, &[&address, around[0], around[1]]).await);
    let store = format!("Java's own roots\n{}", world.proxy.own("/ca.crt").await);
    assert_eq!(root.read("etc/larder/truststore.p12").trim_end(), store.trim_end());
    let set = root.read("etc/environment");
    let java = set.lines().find(|line| line.starts_with("JAVA_TOOL_OPTIONS=")).unwrap();
    assert!(
        java.contains("-Dhttps.proxyHost=127.0.0.1 ")
            && java.contains("trustStore=/etc/larder/truststore.p12 "),
        "{java}"
    );
    // A range that is no glob is left out; the variables keep it for clients that understand ranges.
    assert!(java.contains("|10.*|*.corp.example.org ") && !java.contains("172.16"), "{java}");
    assert!(
        set.contains("\nNO_PROXY=\"")
            && set.contains(",10.0.0.0/8,172.16.0.0/12,.corp.example.org\"\n"),
        "{set}"
    );
    let once = root.listing();
    done(&root.set_up(&["sh"], &script, &[&address, around[0], around[1]]).await);
    assert_eq!(root.listing(), once);
    done(&root.set_up(&["sh"], &script, &["--remove"]).await);
    assert_eq!(root.listing(), before);

    let root = Root::new(debian);
    root.put("etc/ssl/certs/java/cacerts", "kept by the system's tool\n");
    std::fs::create_dir_all(root.path().join(cacerts).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/ssl/certs/java/cacerts", root.path().join(cacerts)).unwrap();
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    let set = root.read("etc/environment");
    assert!(set.contains("-Dhttps.proxyHost=") && !set.contains("trustStore"), "{set}");

    let root = Root::new(debian);
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert!(
        !root.read("etc/environment").contains("JAVA_TOOL_OPTIONS"),
        "no Java, and every shell would tell of it"
    );
}

/// The shell that reads the snippet keeps earlier settings, and reading it twice adds nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_snippet_for_shells_merges_and_is_harmless_twice() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let root = Root::new(FAMILIES[0]);
    root.put("opt/java/openjdk/lib/security/cacerts", "x");
    root.put("opt/java/openjdk/bin/keytool", "echo x >\"$ROOT/tmp/x\"; exit 1\n");
    done(&root.set_up(&["sh"], &script, &[&address, "--cluster"]).await);
    let snippet = root.path().join("etc/profile.d/larder.sh");
    for shell in shells() {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg("-c").arg(format!(
            "set -eu; . '{0}'; . '{0}'; printf '%s\\n' \"$NO_PROXY\" \"$no_proxy\" \"$HTTPS_PROXY\"",
            snippet.display()
        ));
        command.env("NO_PROXY", "mine.example.org,localhost").env_remove("no_proxy");
        let output = run(command).await;
        let told = done(&output);
        let hosts = "mine.example.org,localhost,127.0.0.1,::1,169.254.169.254,metadata.google.internal,.svc,.cluster.local,\
                     kubernetes.default.svc,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16";
        assert_eq!(told, format!("{hosts}\n{hosts}\n{address}\n"), "{shell:?}");
    }
}

/// No text from a client gets into the script, and the command on the page runs exactly this script.
#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_the_page_runs_this_script_and_no_other() {
    let world = World::new().await;
    let script = world.proxy.own("/setup").await;
    for hostile in ["$(reboot)", "a';reboot;'", "`reboot`", "a\"b", "<blink>", "evil host"] {
        for path in ["/setup", "/"] {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {hostile}\r\nConnection: close\r\n\r\n");
            let (answer, _) = world.client.raw_plain(&request).await;
            assert!(!answer.contains(hostile) && !answer.contains("reboot"), "{hostile}: {answer}");
            if let Some((head, body)) = answer.split_once("\r\n\r\n")
                && path == "/setup"
                && head.starts_with("HTTP/1.1 200")
            {
                assert_eq!(body, script);
            }
        }
    }
    let page = world.proxy.own("/").await;
    let line = page.lines().find(|line| line.contains("mktemp") && !line.contains("sudo")).unwrap();
    // This machine must not be set up: the last step is checked and not run.
    let (checked, last) = line.trim().rsplit_once(" && ").unwrap();
    assert_eq!(last, format!("sh \"$f\" {}", address(&world)));
    let (_, hash) = checked.split_once("echo \"").unwrap();
    for (hash, runs) in [(&hash[..64], true), (&"0".repeat(64), false)] {
        let line = checked.replace(&checked[checked.find("echo \"").unwrap() + 6..][..64], hash);
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{line} && echo would run; rm -f \"$f\""))
            .current_dir(world.dir());
        let told = text(&run(command).await);
        assert_eq!(told.contains("would run"), runs, "{told}");
    }
}

/// A script that was truncated in transit, at whatever line, does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_script_does_nothing() {
    let world = World::new().await;
    let (script, address) = (script(&world).await, address(&world));
    let whole = std::fs::read_to_string(&script).unwrap();
    let lines = whole.lines().count();
    let root = Root::new(FAMILIES[0]);
    let before = root.listing();
    for cut in [10, lines / 4, lines / 2, lines - 30, lines - 1] {
        let half = world.dir().join("half");
        let text: Vec<&str> = whole.lines().take(cut).collect();
        std::fs::write(&half, text.join("\n")).unwrap();
        root.set_up(&["sh"], &half, &[&address]).await;
        assert_eq!(root.listing(), before, "after {cut} lines");
    }
    done(&root.set_up(&["sh"], &script, &[&address]).await);
    assert_ne!(root.listing(), before, "the control");
}

/// The page is HTML for clients that accept HTML, loads nothing, wraps long lines and copies them at a click.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_a_page() {
    let world = World::new().await;
    let ask = |accept: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: cache.example.org\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        )
    };
    let (html, _) = world.client.raw_plain(&ask("text/html,*/*;q=0.8")).await;
    assert!(html.starts_with("HTTP/1.1 200 OK\r\n"), "{html}");
    assert!(html.to_lowercase().contains("\r\ncontent-type: text/html"), "{html}");
    assert!(
        html.contains("<!doctype html>") && html.contains("http://cache.example.org:80/setup"),
        "{html}"
    );
    assert!(!html.contains("src=") && !html.contains("url(") && !html.contains("href="), "{html}");
    assert!(html.contains(":root{color-scheme:light dark}") && html.contains("pre-wrap"), "{html}");
    // One button for each block of commands, right before it.
    let blocks = html.split("<button>Copy</button>\n<pre>").skip(1);
    let blocks: Vec<&str> = blocks.map(|rest| rest.split("</pre>").next().unwrap()).collect();
    assert_eq!(blocks.len(), html.matches("<h2>").count());
    assert!(blocks.iter().any(|block| block.contains("sha256sum -c -")), "{blocks:?}");
    let (plain, _) = world.client.raw_plain(&ask("*/*")).await;
    assert!(plain.starts_with("HTTP/1.1 200 OK\r\n") && !plain.contains("<h1>"), "{plain}");
}

/// The command that `larder serve` prints at its start is the one on the page.
#[tokio::test(flavor = "multi_thread")]
async fn serve_prints_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let ca = crate::world::Ca::new(&dir.path().join("origins.pem"));
    let daemon = crate::world::binary::Daemon::start(&ca, &dir.path().join("data"), &[]).await;
    let page = larder::own(daemon.address, "/").await;
    let line = page.lines().find(|line| line.contains("sudo sh \"$f\"")).unwrap().trim();
    daemon.logged(line).await;
}
