//! The ONBUILD base images: what their script does in the steps of a build, with a larder, without one, and with another one.
//!
//! Here the images are directories with the relevant files; `scripts/e2e-images` builds real ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use crate::setup::shells;
use crate::world::binary::{Daemon, larder as program};
use crate::world::root::{FAMILIES, Root};
use crate::world::tools::{executable, run, text};
use crate::world::{Ca, World};

const CONTAINERFILE: &str = include_str!("../../ca/images/Containerfile");

/// A root directory that was made into a base image, and its listing before that.
pub(crate) fn image(family: usize) -> (Root, BTreeMap<std::path::PathBuf, String>) {
    let root = Root::new(FAMILIES[family]);
    let before = root.listing();
    root.make_image();
    (root, before)
}

/// The instruction `ONBUILD RUN`, with these build arguments.
pub(crate) async fn begin(root: &Root, shell: &[&str], arguments: &[(&str, &str)]) -> Output {
    let mut command = root.step(shell, &["--begin"]);
    command.envs(arguments.iter().copied());
    run(command).await
}

/// The variables that a build step sees.
pub(crate) async fn seen(
    root: &Root,
    shell: &[&str],
    set: &[(&str, &str)],
) -> BTreeMap<String, String> {
    let mut command = root.step(shell, &["env"]);
    command.envs(set.iter().copied());
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output));
    variables(&output)
}

fn variables(output: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| line.split_once('='))
        // Shells change these by themselves.
        .filter(|(name, _)| !["_", "SHLVL", "PWD", "OLDPWD"].contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn address(world: &World) -> String {
    format!("http://{}", world.proxy.address)
}

/// An address where nothing answers.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_use_the_larder_that_the_build_names_and_nothing_stays() {
    let world = World::new().await;
    let address = address(&world);
    for (shell, family) in shells().into_iter().flat_map(|shell| (0..4).map(move |at| (shell, at)))
    {
        let (root, before) = image(family);
        let told = begin(&root, shell, &[("LARDER", &address)]).await;
        assert_eq!(told.status.code(), Some(0), "{shell:?} {family}: {}", text(&told));
        let set = [("NO_PROXY", "inner.example.org"), ("LARDER", &*address)];
        let set = seen(&root, shell, &set).await;
        assert_eq!(set["https_proxy"], address, "{set:?}");
        assert_eq!(set["npm_config_noproxy"], "inner.example.org,localhost,127.0.0.1,::1");
        let roots = std::fs::read_to_string(&set["SSL_CERT_FILE"]).unwrap();
        assert!(roots.contains("the system's own roots") && roots.contains("BEGIN"), "{roots}");
        assert!(Path::new(&set["NODE_EXTRA_CA_CERTS"]).is_file(), "{set:?}");
        // A larder inside the step would read it as its own configuration.
        assert!(!set.contains_key("LARDER"), "{set:?}");
        let removed = run(root.step(shell, &["--remove"])).await;
        assert_eq!(removed.status.code(), Some(0), "{}", text(&removed));
        assert_eq!(root.listing(), before, "{shell:?} {family}");
    }
}

/// Small images have no update tool, and apt and wget read no variable for the trust store.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_update_tool_has_a_bundle_and_files_for_those_who_need_them() {
    let world = World::new().await;
    let (root, _) = image(0);
    root.without_tool();
    let told = begin(&root, &["sh"], &[("LARDER", &address(&world))]).await;
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    let set = seen(&root, &["sh"], &[]).await;
    assert!(set["PIP_CERT"].ends_with("/etc/larder/bundle.pem"), "{set:?}");
    let apt = std::fs::read_to_string(&set["APT_CONFIG"]).unwrap();
    assert!(apt.contains(&set["PIP_CERT"]), "{apt}");
    // ca-certificates is installed later, and its tool includes larder's CA: then the system's own bundle is better.
    let anchor = root.read("usr/local/share/ca-certificates/larder-ca.crt");
    root.put("etc/ssl/certs/ca-certificates.crt", &format!("all the roots\n{anchor}"));
    let set = seen(&root, &["sh"], &[]).await;
    assert!(set["PIP_CERT"].ends_with("/etc/ssl/certs/ca-certificates.crt"), "{set:?}");
    assert!(!set.contains_key("APT_CONFIG"), "{set:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_larder_every_step_is_as_it_would_be() {
    let world = World::new().await;
    let own =
        [("HTTPS_PROXY", "http://corporate.example.org:8080"), ("PIP_CERT", "/corporate.pem")];
    for shell in shells() {
        let (root, _) = image(0);
        let untouched = root.listing();
        let mut plain = std::process::Command::new("env");
        let step = root.step(shell, &["env"]);
        // The same variables, without the script as a prefix.
        for (name, value) in step.get_envs() {
            match value {
                Some(value) => plain.env(name, value),
                None => plain.env_remove(name),
            };
        }
        let expected = variables(
            &run({
                plain.envs(own);
                plain
            })
            .await,
        );
        for larder in ["", &*nowhere()] {
            let told = begin(&root, shell, &[("LARDER", larder)]).await;
            assert_eq!(told.status.code(), Some(0), "{}", text(&told));
            assert_eq!(text(&told).contains("the build goes on without"), !larder.is_empty());
            assert_eq!(root.listing(), untouched, "{shell:?} {larder}");
            assert_eq!(seen(&root, shell, &own).await, expected, "{shell:?} {larder}");
        }
        begin(&root, shell, &[("LARDER", &address(&world))]).await;
        assert_ne!(seen(&root, shell, &own).await, expected, "the control: {shell:?}");
    }
}

/// The first step came from the builder's cache, and its larder is gone, or another one answers at its address.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_larder_is_gone_or_another_goes_around_it() {
    let (world, other) = (World::new().await, World::new().await);
    let (root, _) = image(0);
    begin(&root, &["sh"], &[("LARDER", &address(&world))]).await;
    assert!(seen(&root, &["sh"], &[]).await.contains_key("HTTPS_PROXY"), "the control");
    for gone in [nowhere(), address(&other)] {
        root.put("larder/address", &format!("{gone}\n"));
        let output = run(root.step(&["sh"], &["env"])).await;
        assert!(!variables(&output).contains_key("HTTPS_PROXY"), "{}", text(&output));
        assert!(text(&output).contains("this step goes around it"), "{}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larder_with_another_ca_than_was_asked_for_is_refused() {
    let (world, other) = (World::new().await, World::new().await);
    let address = address(&world);
    let (root, _) = image(0);
    let untouched = root.listing();
    let told = begin(&root, &["sh"], &[("LARDER", &address), ("LARDER_CA_SHA256", "00:11")]).await;
    assert_eq!(told.status.code(), Some(3), "{}", text(&told));
    // The message contains the fingerprint that was found.
    let said = text(&told);
    let found = said.split(" is ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(found.len(), 64, "{said}");
    root.put("secret", &other.proxy.own("/ca.crt").await);
    let told = begin(&root, &["sh"], &[("LARDER", &address)]).await;
    assert_eq!(told.status.code(), Some(3), "{}", text(&told));
    std::fs::remove_file(root.path().join("secret")).unwrap();
    assert_eq!(root.listing(), untouched, "nothing of a stranger's is in it");
    // In the form that `larder ca show` prints, and with the secret that `larder exec` passes.
    let colons: Vec<_> = found
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
        .collect();
    let right = [("LARDER", &*address), ("LARDER_CA_SHA256", &*colons.join(":"))];
    assert_eq!(begin(&root, &["sh"], &right).await.status.code(), Some(0));
    root.put(
        "secret",
        &format!("{}{}", other.proxy.own("/ca.crt").await, world.proxy.own("/ca.crt").await),
    );
    assert_eq!(begin(&root, &["sh"], &[("LARDER", &address)]).await.status.code(), Some(0));
}

/// This user may neither write into the image nor read the secret, which belongs to root.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_with_a_user_of_its_own_is_built_without_a_larder() {
    let world = World::new().await;
    let (root, _) = image(0);
    root.put("secret", "");
    let untouched = root.listing();
    let dir = tempfile::tempdir().unwrap();
    let id = fake(dir.path(), "id");
    std::fs::write(&id, "#!/bin/sh\necho 1000\n").unwrap();
    let mut command = root.step(&["sh"], &["--begin"]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", dir.path().display())).env("LARDER", address(&world));
    let told = run(command).await;
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    assert!(text(&told).contains("the build goes on without"), "{}", text(&told));
    assert_eq!(root.listing(), untouched);
    let told = begin(&root, &["sh"], &[("LARDER", &address(&world))]).await;
    assert_eq!(told.status.code(), Some(3), "the control: {}", text(&told));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_stops_the_build_with_one_line() {
    let (root, _) = image(0);
    let untouched = root.listing();
    for wrong in [
        "larder.example.org/path",
        "http://u:p@h:1",
        "https://h:1",
        "-x",
        "http://h:123456",
        "$(id)",
    ] {
        let told = begin(&root, &["sh"], &[("LARDER", wrong)]).await;
        assert_eq!(told.status.code(), Some(2), "{wrong}: {}", text(&told));
        assert!(text(&told).contains("http://HOST:3142"), "{wrong}: {}", text(&told));
    }
    assert_eq!(root.listing(), untouched);
}

/// Debian's smallest image has neither curl nor wget.
#[tokio::test(flavor = "multi_thread")]
async fn bash_asks_where_nothing_else_can() {
    let world = World::new().await;
    let (root, _) = image(0);
    let tools = root.path().join("only");
    std::fs::create_dir(&tools).unwrap();
    let path = std::env::var("PATH").unwrap();
    for name in "bash sh sed tr cut cat base64 sha256sum awk id grep tail mktemp mkdir rm cp mv chmod cksum sort rmdir env timeout chroot head wc expr dirname"
        .split(' ')
    {
        let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
        if let Some(found) = found {
            std::os::unix::fs::symlink(found, tools.join(name)).unwrap();
        }
    }
    root.without_tool();
    let step = |arguments: &[&str]| {
        let mut command = root.step(&["sh"], arguments);
        command.env("PATH", &tools).env("LARDER", address(&world));
        command
    };
    let told = run(step(&["--begin"])).await;
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    let output = run(step(&["env"])).await;
    assert!(variables(&output).contains_key("HTTPS_PROXY"), "{} {}", text(&told), text(&output));
}

/// The OCI format has no field for ONBUILD, and Buildah drops it without an error: the images would do nothing.
#[test]
fn wherever_onbuild_is_used_the_format_is_dockers() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("ca/images");
    let builds = |text: &str| -> Vec<String> {
        let joined = text.replace("\\\n", "");
        let is_build = |line: &&str| {
            ["buildah bud ", "buildah build ", "podman build ", "buildah) set", "podman) set"]
                .iter()
                .any(|call| line.contains(call))
        };
        joined.lines().filter(is_build).map(str::to_owned).collect()
    };
    let mut found = 0;
    for file in ["Containerfile", "build", "README.md"] {
        for line in builds(&std::fs::read_to_string(images.join(file)).unwrap()) {
            assert!(line.contains("--format docker"), "{file}: {line}");
            found += 1;
        }
    }
    assert!(found >= 5, "{found}");
    assert_eq!(builds("buildah bud .").len(), 1, "the control");
}

#[test]
fn the_base_image_leaves_its_child_nothing_but_the_shell() {
    let instructions: Vec<_> = CONTAINERFILE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    let allowed = ["ARG", "FROM", "COPY", "SHELL", "ONBUILD"];
    assert!(instructions.iter().all(|words| allowed.contains(&words[0])), "{instructions:?}");
    let onbuild: Vec<_> = instructions.iter().filter(|words| words[0] == "ONBUILD").collect();
    // No ENV: it would stay in every image, and point to a larder that may be gone.
    assert!(onbuild.iter().all(|words| ["ARG", "RUN"].contains(&words[1])), "{onbuild:?}");
    assert!(
        onbuild.iter().any(|words| words[2] == "LARDER="),
        "empty unless the build says otherwise"
    );
}

#[tokio::test]
async fn the_base_images_are_built_by_whatever_builder_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("ca/images/build");
    for (name, words) in [
        ("buildah", "bud --format docker"),
        ("podman", "build --format docker"),
        ("docker", "build"),
    ] {
        let fake = fake(dir.path(), name);
        let run_it = |arguments: &[&str]| {
            let mut command = std::process::Command::new(&build);
            command.args(arguments).env("BUILDER", &fake).env("BUILDER_ARGS", "--network host");
            command
        };
        let output = run(run_it(&["alpine", "go"])).await;
        let told = text(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert_eq!(
            told.matches(&format!("{words} --network host --build-arg BASE=")).count(),
            2,
            "{told}"
        );
        assert!(told.contains("BASE=alpine:") && told.contains("-t larder/golang:"), "{told}");
        let all = text(&run(run_it(&[])).await);
        assert_eq!(all.matches(" -f - -t larder/").count(), 8, "{all}");
        // For the older builder only the mount is left out.
        let mut without = run_it(&["debian"]);
        without.env("SECRETS", "no");
        let recipes = [text(&run(run_it(&["debian"])).await), text(&run(without).await)];
        assert!(recipes[0].contains("ONBUILD RUN --mount="), "{}", recipes[0]);
        let expected =
            recipes[0].replace(" --mount=type=secret,id=larder,target=/run/larder.pem", "");
        assert_eq!(recipes[1], expected);
        assert_eq!(run(run_it(&["gentoo"])).await.status.code(), Some(2));
        assert_eq!(run(run_it(&["--base", "x"])).await.status.code(), Some(2));
    }
}

/// A program called `name` that prints its arguments, and the recipe that it is given.
fn fake(directory: &Path, name: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    let text = "#!/bin/sh\nprintf '%s ' \"$@\"\necho\ncase \" $* \" in *' -f - '*) cat ;; esac\n";
    executable(&path, text);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_a_builder_what_its_steps_need() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let docker = fake(dir.path(), "docker");
    let data = dir.path().join("data");
    let exec = |arguments: &'static [&'static str]| {
        let mut command = program(&ca, &data);
        command.args(["exec", "--"]).arg(&docker).args(arguments).current_dir(dir.path());
        command
    };
    // A larder that `exec` starts listens on loopback, so that the build gets the machine's network.
    let told = text(&run(exec(&["build", "-t", "x", "."])).await);
    assert!(
        told.contains("build --network host --build-arg HTTP_PROXY=http://127.0.0.1:"),
        "{told}"
    );
    assert!(told.contains("--secret id=larder,src=") && told.contains(" -t x . "), "{told}");
    assert!(told.contains("https downloads of this build's steps go around larder"), "{told}");
    let told = text(&run(exec(&["run", "x", "build"])).await);
    assert!(told.contains("run x build \n"), "nothing is added to what is no build: {told}");
    // A larder that listens on all addresses is reached by a name.
    let mut serve = program(&ca, &data);
    serve.args(["serve", "--listen", "0.0.0.0:0"]);
    let daemon = Daemon::try_run(serve).await.unwrap();
    let told = text(&run(exec(&["buildx", "build", "."])).await);
    // At a port for this job only, where it is counted.
    let proxy = "HTTP_PROXY=http://larder.internal:";
    let (_, port) = told.split_once(proxy).expect(&told);
    let port: u16 = port.split(' ').next().unwrap().parse().expect(&told);
    assert!(told.contains("--add-host larder.internal:host-gateway "), "{told}");
    assert_ne!(port, daemon.address.port(), "{told}");
}

/// Docker's commands download nothing themselves, and pass environment variables on to arguments without a value; Buildah pulls
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_pulls_nothing_keeps_the_callers_environment() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    for (name, arguments, through) in [
        ("docker", &["build", "--build-arg", "HTTPS_PROXY", "."][..], false),
        ("docker", &["compose", "build"], false),
        ("docker", &["run", "x"], true),
        ("buildah", &["bud", "--build-arg", "HTTPS_PROXY", "."], true),
    ] {
        let builder = fake(dir.path(), name);
        std::fs::write(&builder, "#!/bin/sh\necho \"proxy=$HTTPS_PROXY\" \"$@\"\n").unwrap();
        let mut command = program(&ca, &dir.path().join("data"));
        command.env("HTTPS_PROXY", "http://corporate.example.org:1");
        command.args(["exec", "--"]).arg(&builder).args(arguments).current_dir(dir.path());
        let told = text(&run(command).await);
        assert_eq!(told.starts_with("proxy=http://127.0.0.1:"), through, "{name}: {told}");
        let corporate = "http://corporate.example.org:1";
        assert_eq!(told.starts_with(&format!("proxy={corporate}")), !through, "{name}: {told}");
        let given = told.contains(&format!("--build-arg HTTPS_PROXY={corporate}"));
        assert_eq!(given, name == "buildah", "{told}");
    }
}

/// Buildah as far as `exec` needs it: an image in its store, which it inspects, and a place for what it pulls. It keeps a copy of
/// what is pulled, and prints the arguments of a build.
const STORE: &str = r#"#!/bin/sh
case $1 in
inspect) [ "$4" = debian:12 ] && cat "$(dirname "$0")/inspected" ;;
pull)
  [ "${3%%:*}" = dir ] || exit 1
  cp -r "${3#dir:}" "$(dirname "$0")/twin"
  printf '%064d\n' 7
  ;;
*) echo "HTTPS: $*" ;;
esac
"#;

/// Row 4 of the issue about the first hour: an unchanged Containerfile. `scripts/e2e-images exec` builds real images.
#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_an_unchanged_containerfile_trust_larder() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    let builder = fake(dir.path(), "buildah");
    std::fs::write(&builder, STORE).unwrap();
    let configuration = r#"{"created":"x","architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","GIT_SSL_CAINFO=/own"]},
        "rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[]}"#;
    let inspected = serde_json::json!({"Config": configuration}).to_string();
    std::fs::write(dir.path().join("inspected"), inspected).unwrap();
    let exec = async |containerfile: &str| {
        std::fs::write(dir.path().join("Containerfile"), containerfile).unwrap();
        let mut command = program(&ca, &dir.path().join("data"));
        command.args(["exec", "--"]).arg(&builder).args(["bud", "."]).current_dir(dir.path());
        text(&run(command).await)
    };
    let told = exec("FROM debian:12\nENV PIP_CERT=/mine\nRUN pip download flask\n").await;
    let id = format!("{:064}", 7);
    assert!(told.contains(&format!("--build-context debian:12=container-image://{id} ")), "{told}");
    assert!(told.contains("--build-arg HTTPS_PROXY=http://127.0.0.1:"), "{told}");
    assert!(!told.contains("go around larder"), "{told}");
    // Its own variables stay, in the steps and in the image.
    let removed = |name: &str| told.contains(&format!("--unsetenv {name} "));
    assert!(removed("SSL_CERT_FILE") && removed("APT_CONFIG"), "{told}");
    assert!(!removed("PIP_CERT") && !removed("GIT_SSL_CAINFO") && !removed("PATH"), "{told}");
    let manifest = std::fs::read_to_string(dir.path().join("twin/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let digest = manifest["config"]["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let twin = std::fs::read_to_string(dir.path().join("twin").join(digest)).unwrap();
    let twin: serde_json::Value = serde_json::from_str(&twin).unwrap();
    let variables = twin["config"]["Env"].as_array().unwrap();
    let file = variables.iter().find_map(|pair| pair.as_str()?.strip_prefix("SSL_CERT_FILE="));
    let file = Path::new(file.unwrap());
    // A step sees the file at the same path, by a mount or because it is the machine's own.
    let directory = file.parent().unwrap().display();
    assert!(told.contains(&format!("--volume {directory}:{directory}:ro ")), "{told}");
    let roots = std::fs::read_to_string(file).unwrap();
    assert!(file.starts_with("/dev/shm") && roots.contains("BEGIN CERTIFICATE"), "{file:?}");
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();

    // What cannot be done leaves the build as it was: an image that is nowhere, a client that trusts nothing else.
    for other in
        ["FROM elsewhere:1\nRUN pip download flask\n", "FROM debian:12\nRUN dnf install -y git\n"]
    {
        let told = exec(other).await;
        assert!(told.contains("HTTPS: bud"), "{told}");
        assert!(!told.contains("HTTPS_PROXY=") && !told.contains("--unsetenv"), "{told}");
        assert!(told.contains("https downloads of this build's steps go around larder"), "{told}");
    }
}
