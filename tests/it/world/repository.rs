//! Repositories made by the real tools: packages by `dpkg-deb` and `dpkg-source`, indexes by `apt-ftparchive`, signatures by gpg.
//! A repository is a set of files in memory, so that a test can change any of them before it is served.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use larder::digest::Algorithm;

use super::archive::hex;
use super::gpg::Key;
use super::tools::text;
use super::{Origin, Page};

/// Paths and bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The packages' components, names, versions and architectures, with every difficulty that file names have.
const BINARIES: [(&str, &str, &str, &str); 4] = [
    ("main", "gear++", "1:2.0~rc1+dfsg-1", "all"),
    ("main", "wheel", "1.0", "amd64"),
    ("main", "axle", "2:3.1-1~bpo1+b2", "amd64"),
    ("contrib", "spoke", "0.9+git1", "all"),
];

/// A source package, of two files.
pub(crate) const SOURCE: &str = "sprocket";

/// The packages, by component and file name: built once for all tests of a run.
static PACKAGES: LazyLock<Files> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::new();
    for (component, name, version, architecture) in BINARIES {
        let control = control(name, version, architecture);
        let (name, bytes) = build(dir.path(), &control, name);
        files.insert(format!("{component}/{name}"), bytes);
    }
    for (name, bytes) in source(dir.path()) {
        files.insert(format!("main/{name}"), bytes);
    }
    files
});

fn control(name: &str, version: &str, architecture: &str) -> String {
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: x <x@example.org>\n\
         Section: misc\nPriority: optional\nDescription: a {name}\n of which there is more to say\n"
    )
}

/// Runs one of the tools in `dir`; returns its output.
pub(crate) fn tool(dir: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    // So that the same content always makes the same file.
    let day = ("SOURCE_DATE_EPOCH", "1605873600");
    let mut command = Command::new(program);
    let output = command.args(arguments).env(day.0, day.1).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    output.stdout
}

/// A binary package: its file name, as dpkg-deb gives it, and its bytes.
fn build(dir: &Path, control: &str, content: &str) -> (String, Vec<u8>) {
    let tree = tempfile::tempdir_in(dir).unwrap();
    let made = tempfile::tempdir_in(dir).unwrap();
    std::fs::create_dir_all(tree.path().join("DEBIAN")).unwrap();
    std::fs::write(tree.path().join("DEBIAN/control"), control).unwrap();
    std::fs::write(tree.path().join("content"), content).unwrap();
    let (from, to) = (tree.path().to_str().unwrap(), made.path().to_str().unwrap());
    tool(dir, "dpkg-deb", &["--root-owner-group", "--build", from, to]);
    read(made.path()).pop_first().unwrap()
}

/// A package `wheel` with the same name and version, and other bytes.
pub(crate) fn another_wheel() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &control("wheel", "1.0", "amd64"), "made again").1
}

fn source(dir: &Path) -> Files {
    let at = tempfile::tempdir_in(dir).unwrap();
    let put = |path: &str, content: &str| {
        let path = at.path().join(SOURCE).join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    put("debian/source/format", "3.0 (native)\n");
    put(
        "debian/changelog",
        "sprocket (1.0~x+y) unstable; urgency=low\n\n  * x\n\n -- x <x@example.org>  Fri, 20 Nov 2020 12:00:00 +0000\n",
    );
    put(
        "debian/control",
        "Source: sprocket\nMaintainer: x <x@example.org>\nSection: misc\nPriority: optional\nStandards-Version: 4.6.0\n\n\
         Package: sprocket\nArchitecture: all\nDescription: x\n x\n",
    );
    tool(at.path(), "dpkg-source", &["--build", SOURCE]);
    std::fs::remove_dir_all(at.path().join(SOURCE)).unwrap();
    read(at.path())
}

/// Every file below `dir`, by its path relative to it.
pub(crate) fn read(dir: &Path) -> Files {
    let named = |path: &Path| path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
    let found = super::files(dir);
    found.iter().map(|path| (named(path), std::fs::read(path).unwrap())).collect()
}

/// Which signatures an archive has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signatures {
    Inside,
    Beside,
    Both,
}

/// How an archive is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The path of its Release: `dists/gears`, the directory of a flat archive, or empty.
    pub(crate) head: &'static str,
    /// The compressions of its indexes, as file name endings; an empty one is uncompressed.
    pub(crate) endings: &'static [&'static str],
    /// The digests of the indexes, and whether the indexes are available under these.
    pub(crate) digests: &'static str,
    pub(crate) by_hash: bool,
    pub(crate) signatures: Signatures,
}

impl Layout {
    /// The layout of most archives.
    pub(crate) const USUAL: Self = Self {
        head: "dists/gears",
        endings: &["", ".gz", ".xz"],
        digests: "SHA256",
        by_hash: true,
        signatures: Signatures::Inside,
    };

    /// Whether its Release is in the same directory as its indexes.
    pub(crate) fn is_flat(self) -> bool {
        !self.head.starts_with("dists/")
    }

    /// The path of `file` below the Release's directory.
    pub(crate) fn at(self, file: &str) -> String {
        format!("{}/{file}", self.head).trim_start_matches('/').to_owned()
    }

    /// Its components, and the directory of each component's packages.
    fn pools(self) -> Vec<(&'static str, String)> {
        if self.is_flat() {
            return vec![("", if self.head.is_empty() { ".".into() } else { self.head.into() })];
        }
        ["main", "contrib"].map(|component| (component, format!("pool/{component}"))).to_vec()
    }
}

/// An archive: all its files; its Release is not signed yet.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(crate) layout: Layout,
    pub(crate) files: Files,
    /// Indexes that its Release names and that it does not serve: apt looks an index up by its uncompressed name.
    unserved: Files,
    /// The text of its Release.
    pub(crate) release: String,
}

impl Repository {
    /// An archive with all packages.
    pub(crate) fn new(layout: Layout) -> Self {
        Self::of(layout, &PACKAGES)
    }

    /// An archive with `packages`, by component and file name.
    pub(crate) fn of(layout: Layout, packages: &Files) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in packages {
            let (component, name) = name.split_once('/').unwrap();
            let pools = layout.pools();
            let pool = pools.iter().find(|pool| pool.0 == component).unwrap_or(&pools[0]);
            let path = dir.path().join(&pool.1).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        for (_, pool) in layout.pools() {
            std::fs::create_dir_all(dir.path().join(pool)).unwrap();
        }
        let mut made = Self {
            layout,
            files: read(dir.path()),
            unserved: Files::new(),
            release: String::new(),
        };
        for (component, pool) in layout.pools() {
            let below = |file: &str| match component {
                "" => file.rsplit('/').next().unwrap().to_owned(),
                _ => format!("{component}/{file}"),
            };
            let packages = tool(dir.path(), "apt-ftparchive", &["packages", &pool]);
            made.index(&below("binary-amd64/Packages"), &packages);
            let sources = tool(dir.path(), "apt-ftparchive", &["sources", &pool]);
            made.index(&below("source/Sources"), &sources);
            if !component.is_empty() {
                made.index(&below("i18n/Translation-en"), &translation(&packages));
            }
        }
        made.describe();
        made
    }

    /// Puts an index below its Release, with every compression.
    pub(crate) fn index(&mut self, path: &str, text: &[u8]) {
        for ending in self.layout.endings {
            let path = self.layout.at(&format!("{path}{ending}"));
            self.files.insert(path, compressed(ending, text));
        }
        if !self.layout.endings.contains(&"") {
            self.unserved.insert(self.layout.at(path), text.to_vec());
        }
    }

    /// Makes the Release again, and the files under digests.
    pub(crate) fn describe(&mut self) {
        let dir = tempfile::tempdir().unwrap();
        let head = self.layout.at("");
        let all = self.files.iter().chain(&self.unserved);
        let members = all.filter(|(path, _)| {
            let file = path.rsplit('/').next().unwrap();
            let index = ["Packages", "Sources", "Translation-", "Index"];
            path.starts_with(&head) && index.iter().any(|start| file.starts_with(start))
        });
        let members: Vec<(String, Vec<u8>)> =
            members.map(|(path, bytes)| (path[head.len()..].to_owned(), bytes.clone())).collect();
        for (path, bytes) in &members {
            let file = dir.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, bytes).unwrap();
            if self.layout.by_hash && !self.unserved.contains_key(&self.layout.at(path)) {
                self.files.insert(self.by_hash(path, bytes), bytes.clone());
            }
        }
        let mut options = Vec::new();
        for algorithm in ["MD5", "SHA1", "SHA256", "SHA512"] {
            let wanted = algorithm == self.layout.digests;
            options.push(format!("APT::FTPArchive::{algorithm}={wanted}"));
        }
        let by_hash = if self.layout.by_hash { "yes" } else { "no" };
        // A flat archive is named by the path that its clients use, and apt complains about any other name.
        let own = self.layout.at("");
        let (suite, codename) =
            if self.layout.is_flat() { (&*own, &*own) } else { ("stable", "gears") };
        for (field, value) in [
            ("Suite", suite),
            ("Codename", codename),
            ("Architectures", "all amd64"),
            ("Components", "main contrib"),
            ("Acquire-By-Hash", by_hash),
        ] {
            options.push(format!("APT::FTPArchive::Release::{field}={value}"));
        }
        // By default it includes only file names that match its own patterns, which lists of patches do not.
        options.push("APT::FTPArchive::Release::Patterns::=Index".into());
        let mut arguments: Vec<&str> = options.iter().flat_map(|one| ["-o", one]).collect();
        arguments.extend(["release", "."]);
        self.release = String::from_utf8(tool(dir.path(), "apt-ftparchive", &arguments)).unwrap();
    }

    /// The path of the index at `path` (below the Release) under its digest.
    pub(crate) fn by_hash(&self, path: &str, bytes: &[u8]) -> String {
        let digests = self.layout.digests;
        let algorithm = if digests == "SHA512" { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let below = format!("{directory}/by-hash/{digests}/{}", hex(algorithm, bytes));
        self.layout.at(below.trim_start_matches('/'))
    }

    /// Sets a field of its Release.
    pub(crate) fn set(&mut self, field: &str, value: &str) {
        let start = format!("{field}:");
        let kept = self.release.lines().filter(|line| !line.starts_with(&start));
        let mut text = format!("{field}: {value}\n");
        for line in kept {
            writeln!(text, "{line}").unwrap();
        }
        self.release = text;
    }

    /// Signs its Release.
    pub(crate) fn sign(&mut self, key: &Key) {
        self.sign_with(key, &["--digest-algo", "SHA512"]);
    }

    /// Signs its Release, with options for gpg.
    pub(crate) fn sign_with(&mut self, key: &Key, options: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Release");
        std::fs::write(&file, &self.release).unwrap();
        let signed = |kind: &[&str]| {
            let rest = ["--output", "-", file.to_str().unwrap()];
            key.gpg(&[options, &rest[..2], kind, &rest[2..]].concat()).stdout
        };
        if self.layout.signatures != Signatures::Beside {
            self.files.insert(self.layout.at("InRelease"), signed(&["--clear-sign"]));
        }
        if self.layout.signatures != Signatures::Inside {
            let release = self.release.clone().into_bytes();
            self.files.insert(self.layout.at("Release"), release);
            let signature = signed(&["--armor", "--detach-sign"]);
            self.files.insert(self.layout.at("Release.gpg"), signature);
        }
    }

    /// Puts it on `origin` below `root`, in place of what was there.
    pub(crate) fn put(&self, origin: &Origin, root: &str) {
        put(&self.files, origin, root);
    }

    /// The path of the one file whose name begins with `start`.
    pub(crate) fn path(&self, start: &str) -> String {
        let named = |path: &&String| path.rsplit('/').next().unwrap().starts_with(start);
        self.files.keys().find(named).unwrap_or_else(|| panic!("no {start}")).clone()
    }
}

/// Puts `files` on `origin` below `root`, under every spelling of their names that clients use.
pub(crate) fn put(files: &Files, origin: &Origin, root: &str) {
    for (path, bytes) in files {
        let page = Page::new(bytes.clone());
        for spelling in [path.clone(), escaped(path), escaped(path).to_lowercase()] {
            origin.put(&format!("{root}/{spelling}"), page.clone());
        }
    }
}

/// A path as apt requests it, with upper-case escapes.
pub(crate) fn escaped(path: &str) -> String {
    path.replace('+', "%2B").replace('~', "%7E")
}

/// The long descriptions of `packages`, as an archive keeps them in a separate file.
fn translation(packages: &[u8]) -> Vec<u8> {
    let packages = String::from_utf8_lossy(packages);
    let mut text = String::new();
    for stanza in packages.split("\n\n").filter(|stanza| stanza.contains("Package: ")) {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap();
        let described = format!("a {name}\n of which there is more to say\n");
        let digest = hex(Algorithm::Md5, described.as_bytes());
        writeln!(text, "Package: {name}\nDescription-md5: {digest}\nDescription-en: {described}")
            .unwrap();
    }
    text.into_bytes()
}

/// `text` as a file with this ending.
pub(crate) fn compressed(ending: &str, text: &[u8]) -> Vec<u8> {
    match ending {
        ".gz" => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        ".xz" => {
            let mut to = liblzma::write::XzEncoder::new(Vec::new(), 0);
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        ".bz2" => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        ".zst" => zstd::encode_all(text, 3).unwrap(),
        ".lzma" => {
            let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
            let mut to = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        ".lz4" => {
            let mut to = lz4_flex::frame::FrameEncoder::new(Vec::new());
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        _ => text.to_vec(),
    }
}
