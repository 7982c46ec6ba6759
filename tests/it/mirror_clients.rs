//! The mirror form with real clients: they install, and install again without a file from the origin, with the proofs that they
//! would have through the proxy. None of them knows larder's CA or uses a proxy.

use std::path::Path;
use std::process::{Command, Output};

use larder::digest::Algorithm;

use crate::mirror::mirrored;
use crate::signed::{Archive, DATE, Key, PACKAGE, apt_home_for, complaint, world_trusting};
use crate::world::archive::{flipped, hex, simple};
use crate::world::tools::{forget_proxies, installed, run, text};
use crate::world::{Origin, Page, World};

/// `program` in `dir`, without this machine's settings.
fn bare(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    forget_proxies(&mut command);
    command.env("HOME", dir).current_dir(dir);
    command
}

/// larder's `Cache-Status` for `url` through the proxy.
async fn said(world: &World, url: &str) -> String {
    world.get(url).await.cache_status().to_owned()
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

#[tokio::test(flavor = "multi_thread")]
async fn apt_installs_from_each_form() {
    if !installed("apt-get") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = world_trusting(Some(&key)).await;
    let archive = Archive::new(dir.path(), "gear", DATE, true).await;
    let plain = Origin::plain("127.0.0.1").await;
    let file = format!("/debian/{}", PACKAGE.replace('+', "%2B"));
    for (origin, forms) in [(&world.origin, ["/https/", "/HTTPS///"]), (&plain, ["/http/", "/"])] {
        archive.put(origin, &key);
        for form in forms {
            let url = format!("http://{}{form}{}/debian", world.proxy.address, origin.authority());
            let root = apt_home_for(&world, &url, &key, "");
            for arguments in [&["update"][..], &["download", "gear"]] {
                let mut command = bare("apt-get", root.path());
                command.env("APT_CONFIG", root.path().join("apt.conf")).arg("-q").args(arguments);
                complaint(&run(command).await).unwrap();
            }
        }
        let status = said(&world, &origin.url(&file)).await;
        assert!(status.contains("; hit") && status.contains("\"signed\""), "{status}");
    }
    // The same bytes at both mirrors, as the signature says: fetched once.
    assert_eq!(world.origin.gets(&file) + plain.gets(&file), 1);
    // The tampered copy: apt would notice it, but never gets it.
    let world = world_trusting(Some(&key)).await;
    archive.put(&world.origin, &key);
    let deb = world.get(&plain.url(&file)).await.body;
    world.origin.put(&file, Page::new(flipped(&deb)));
    let root = apt_home_for(&world, &mirrored(&world, &world.origin.url("/debian")), &key, "");
    let mut said = Vec::new();
    for arguments in [&["update"][..], &["download", "gear"]] {
        let mut command = bare("apt-get", root.path());
        command.env("APT_CONFIG", root.path().join("apt.conf")).arg("-q").args(arguments);
        said.push(complaint(&run(command).await).is_ok());
    }
    assert_eq!(said, [true, false]);
    world.proxy.counted("larder_rejected", "", 1.0).await;
}

/// A wheel that pip installs.
const WHEEL: &str = "import sys, zipfile
info = 'gear-1.0.dist-info/'
files = {'gear.py': 'x = 1\\n', info + 'METADATA': 'Metadata-Version: 2.1\\nName: gear\\nVersion: 1.0\\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}
files[info + 'RECORD'] = ''.join(name + ',,\\n' for name in [*files, info + 'RECORD'])
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    for name, text in files.items():
        wheel.writestr(zipfile.ZipInfo(name), text)";

#[tokio::test(flavor = "multi_thread")]
async fn pip_installs_with_an_index_url() {
    let world = World::new().await;
    let files = world.another("localhost").await;
    let mut make = bare("python3", world.dir());
    make.args(["-c", WHEEL, "gear-1.0-py3-none-any.whl"]);
    succeeded(&run(make).await);
    let wheel = std::fs::read(world.dir().join("gear-1.0-py3-none-any.whl")).unwrap();
    let path = "/files/gear-1.0-py3-none-any.whl";
    let far = files.put(path, Page::new(wheel.clone()));
    let near = world.origin.put(path, Page::new(wheel.clone()));
    let json = |url: &str| {
        let page = serde_json::json!({"meta": {"api-version": "1.0"}, "name": "gear", "files": [
            {"filename": "gear-1.0-py3-none-any.whl", "url": url, "hashes": {"sha256": hex(Algorithm::Sha256, &wheel)}}
        ]});
        Page::new(page.to_string()).header("content-type", "application/vnd.pypi.simple.v1+json")
    };
    let indexes = [
        ("/html/", simple(&[(path, &wheel)]), near.clone()),
        ("/absolute/", simple(&[(&near, &wheel)]), near.clone()),
        ("/json/", json(&near), near.clone()),
        ("/elsewhere/", json(&far), far.clone()),
    ];
    for (root, page, file) in indexes {
        let index = world.origin.put(&format!("{root}simple/gear/"), page);
        for run_of in ["one", "two"] {
            let mut command = bare("python3", world.dir());
            command
                .args([
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--no-cache-dir",
                    "--disable-pip-version-check",
                    "--no-deps",
                ])
                .args([
                    "--index-url",
                    &mirrored(&world, index.strip_suffix("gear/").unwrap()),
                    "--target",
                ])
                .arg(world.dir().join(format!("{root}{run_of}").replace('/', "_")))
                .arg("gear")
                .env("PIP_CONFIG_FILE", "/dev/null");
            succeeded(&run(command).await);
        }
        let status = said(&world, &file).await;
        assert!(status.contains("; hit"), "{root}: {status}");
        assert!(file == far || status.contains("indexed"), "{root}: {status}");
    }
    assert_eq!((world.origin.gets(path), files.gets(path)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_installs_with_a_registry() {
    if !installed("npm") {
        return;
    }
    let world = World::new().await;
    let package = world.dir().join("package");
    std::fs::create_dir(&package).unwrap();
    std::fs::write(package.join("package.json"), r#"{"name":"gear","version":"1.0.0"}"#).unwrap();
    let mut pack = bare("npm", &package);
    pack.args(["pack", "--json", "--cache"]).arg(world.dir().join("pack.cache"));
    let packed = run(pack).await;
    succeeded(&packed);
    let said_of: serde_json::Value = serde_json::from_slice(&packed.stdout).unwrap();
    let tarball = std::fs::read(package.join("gear-1.0.0.tgz")).unwrap();
    let path = "/gear/-/gear-1.0.0.tgz";
    let url = world.origin.put(path, Page::new(tarball));
    let document = serde_json::json!({"name": "gear", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
        "name": "gear", "version": "1.0.0", "dist": {"tarball": url, "integrity": said_of[0]["integrity"]}}}});
    world
        .origin
        .put("/gear", Page::new(document.to_string()).header("content-type", "application/json"));
    for run_of in ["one", "two"] {
        let project = world.dir().join(run_of);
        std::fs::create_dir(&project).unwrap();
        std::fs::write(project.join("package.json"), r#"{"name":"x","version":"1.0.0"}"#).unwrap();
        let mut command = bare("npm", &project);
        command
            .args([
                "install",
                "gear",
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
                "--fetch-retries=0",
            ])
            .arg(format!("--registry={}", mirrored(&world, &world.origin.url("/"))))
            .arg("--cache")
            .arg(world.dir().join(format!("{run_of}.cache")));
        succeeded(&run(command).await);
        assert!(project.join("node_modules/gear/package.json").exists());
        let lock = std::fs::read_to_string(project.join("package-lock.json")).unwrap();
        assert!(lock.contains(&mirrored(&world, &url)), "{lock}");
    }
    let status = said(&world, &url).await;
    assert!(status.contains("; hit") && status.contains("indexed"), "{status}");
    assert_eq!(world.origin.gets(path), 1);
}

/// A crate, as cargo unpacks it.
const CRATE: &str = "import io, sys, tarfile
files = {'Cargo.toml': '[package]\\nname = \"gear\"\\nversion = \"1.0.0\"\\nedition = \"2021\"\\n', 'src/lib.rs': ''}
with tarfile.open(sys.argv[1], 'w:gz') as crate:
    for name, text in files.items():
        entry = tarfile.TarInfo('gear-1.0.0/' + name)
        entry.size = len(text)
        crate.addfile(entry, io.BytesIO(text.encode()))";

#[tokio::test(flavor = "multi_thread")]
async fn cargo_fetches_with_a_sparse_registry() {
    let world = World::new().await;
    let mut make = bare("python3", world.dir());
    make.args(["-c", CRATE, "gear.crate"]);
    succeeded(&run(make).await);
    let bytes = std::fs::read(world.dir().join("gear.crate")).unwrap();
    let path = "/crates/gear/1.0.0/download";
    let url = world.origin.put(path, Page::new(bytes.clone()));
    let line = format!(
        r#"{{"name":"gear","vers":"1.0.0","deps":[],"cksum":"{}","features":{{}},"yanked":false}}"#,
        hex(Algorithm::Sha256, &bytes)
    );
    world
        .origin
        .put("/ge/ar/gear", Page::new(format!("{line}\n")).header("content-type", "text/plain"));
    let config = format!(r#"{{"dl":"{}"}}"#, world.origin.url("/crates"));
    let index = world
        .origin
        .put("/config.json", Page::new(config).header("content-type", "application/json"));
    let index = mirrored(&world, index.strip_suffix("config.json").unwrap());
    // The registry's own index at larder; or the original registry with larder as a replacement, which does not change lock
    // files.
    let replaced = format!(
        "[source.gears]\nregistry = \"sparse+{}\"\nreplace-with = \"larder\"\n[source.larder]\nregistry = \"sparse+{index}\"\n",
        world.origin.url("/")
    );
    let whole = format!("sparse+{}", world.origin.url("/"));
    for run_of in ["one", "two", "replaced"] {
        let project = world.dir().join(run_of);
        std::fs::create_dir_all(project.join("src")).unwrap();
        std::fs::write(project.join("src/lib.rs"), "").unwrap();
        let is_replaced = run_of == "replaced";
        if is_replaced {
            std::fs::create_dir(project.join(".cargo")).unwrap();
            std::fs::write(project.join(".cargo/config.toml"), &replaced).unwrap();
        }
        let named = if is_replaced { whole.clone() } else { format!("sparse+{index}") };
        let manifest = "[package]\nname = \"x\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\n\
                        gear = { version = \"1\", registry = \"gears\" }\n";
        std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
        // With this machine's home, which may select a toolchain.
        let mut command = Command::new(env!("CARGO"));
        forget_proxies(&mut command);
        command
            .current_dir(&project)
            .args(["fetch", "-q"])
            .env("CARGO_HOME", project.join("home"))
            .env("CARGO_REGISTRIES_GEARS_INDEX", &named);
        succeeded(&run(command).await);
        let lock = std::fs::read_to_string(project.join("Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("\"{named}\"")), "{lock}");
    }
    let status = said(&world, &url).await;
    assert!(status.contains("; hit") && status.contains("indexed"), "{status}");
    assert_eq!(world.origin.gets(path), 1);
}
