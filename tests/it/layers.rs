//! The structure of the source: layers, file lengths, and text that must not be in it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module uses only modules before it in this list.
const ORDER: &[&str] = &[
    "digest",
    "clock",
    "config",
    "limits",
    "stream",
    "target",
    "proof",
    "claim",
    "received",
    "entry",
    "keyring",
    "ecosystem",
    "verify",
    "policy",
    "freshness",
    "outcome",
    "store",
    "origin",
    "flight",
    "reply",
    "prerequisite",
    "pipeline",
    "authority",
    "admin",
    "intercept",
    "accept",
    "cli",
];

/// The longest file. A longer one has two responsibilities.
const LONGEST: usize = 600;

/// The median length of a file must not exceed this.
const MEDIAN: usize = 200;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let files = crate::world::files(&here().join("src"));
    let rust = files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs"));
    rust.map(|file| {
        (
            file.strip_prefix(here().join("src")).unwrap().to_owned(),
            std::fs::read_to_string(&file).unwrap(),
        )
    })
    .collect()
}

/// The modules of the crate's root that `text` names; `path` is its file below `src`.
fn named(path: &Path, text: &str) -> Vec<String> {
    // How many `super::` lead from the file's own module to the root.
    let nested = path.components().count() - usize::from(path.ends_with("mod.rs"));
    let mut names = Vec::new();
    let mut depth = nested;
    for line in text.lines() {
        // Unit tests are at the end of a file, one module deeper.
        depth += usize::from(line.starts_with("mod tests {"));
        for prefix in ["crate::".to_owned(), "super::".repeat(depth)] {
            for (at, _) in line.match_indices(&prefix) {
                let before = line[..at].chars().next_back();
                if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '$') {
                    names.extend(heads(&line[at + prefix.len()..]));
                }
            }
        }
    }
    names
}

/// The first names of a path or of each member of a group: `a::b` gives `a`, `{a::{b, c}, d}` gives `a` and `d`.
fn heads(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![word(rest)];
    };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            ',' | '}' => {
                found.push(word(group[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Where `text` uses a module that comes later in the order.
fn upward(path: &Path, text: &str) -> Vec<String> {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    let own = first.trim_end_matches(".rs");
    let Some(rank) = ORDER.iter().position(|name| *name == own) else {
        return Vec::new();
    };
    let above = |name: &String| {
        ORDER.iter().position(|other| other == name).is_some_and(|other| other > rank)
    };
    named(path, text)
        .into_iter()
        .filter(above)
        .map(|name| format!("{} uses {name}", path.display()))
        .collect()
}

#[test]
fn modules_use_only_what_stands_before_them() {
    let up: Vec<String> = sources().iter().flat_map(|(path, text)| upward(path, text)).collect();
    assert!(up.is_empty(), "{up:#?}");
}

#[test]
fn a_look_upward_would_be_seen() {
    let seen = |path: &str, text: &str| !upward(Path::new(path), text).is_empty();
    assert!(seen("store/blobs.rs", "use crate::pipeline::Pipeline;"));
    assert!(seen("store/blobs.rs", "use super::super::reply::Body;"));
    assert!(seen("claim.rs", "use super::verify;"));
    assert!(seen("store/mod.rs", "/// See [`crate::cli`]."));
    assert!(seen("store/mod.rs", "use crate::{claim::{Claim, Topic}, flight};"));
    assert!(seen("claim.rs", "mod tests {\n    use super::super::store::Store;"));
    assert!(!seen("store/blobs.rs", "use crate::{claim::{Claim, store}, digest};"));
    assert!(!seen("store/mod.rs", "use super::claim::Claim;"));
    assert!(!seen("store/blobs.rs", "use super::ledger::Ledger;"));
}

#[test]
fn every_module_has_its_place() {
    let known = |path: &Path| {
        let first = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        first == "lib" || first == "main" || ORDER.contains(&first.as_str())
    };
    let strange: Vec<_> =
        sources().into_iter().map(|(path, _)| path).filter(|path| !known(path)).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn files_are_short() {
    let mut lengths: Vec<(usize, PathBuf)> =
        sources().into_iter().map(|(path, text)| (text.lines().count(), path)).collect();
    lengths.sort();
    let long: Vec<_> = lengths.iter().filter(|(lines, _)| *lines > LONGEST).collect();
    assert!(long.is_empty(), "{long:?}");
    let (median, _) = lengths[lengths.len() / 2];
    assert!(median <= MEDIAN, "the median file has {median} lines");
}

/// Every file that is committed, or would be, except `Cargo.lock`, which must name the registry.
fn committed() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(here())
        .output();
    let files: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| here().join(line))
            .collect(),
        // An unpacked archive has no git history: build output is excluded by its directory.
        Ok(_) | Err(_) => {
            let all = crate::world::files(here()).into_iter();
            all.filter(|file| !file.starts_with(here().join("target"))).collect()
        }
    };
    files.into_iter().filter(|file| !file.ends_with("Cargo.lock") && file.is_file()).collect()
}

/// The files that contain one of `needles`, and which one.
fn offenders(needles: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for file in committed() {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        let here = needles.iter().filter(|needle| text.contains(needle.as_str()));
        found.extend(here.map(|needle| format!("{}: {needle}", file.display())));
    }
    found
}

/// The registries' host names, taken from the clients that are set up here, so that they are written nowhere.
fn registries() -> Vec<String> {
    let mut urls = String::new();
    for file in crate::world::files(Path::new("/etc/apt")) {
        if file.to_string_lossy().contains("sources") {
            urls.push_str(&std::fs::read_to_string(file).unwrap_or_default());
        }
    }
    let pip = "import pip._internal.models.index as i; print('https://' + i.PyPI.netloc, 'https://' + i.PyPI.file_storage_domain)";
    for (program, arguments) in
        [("python3", vec!["-c", pip]), ("npm", vec!["config", "get", "registry"])]
    {
        if let Ok(output) = Command::new(program).args(arguments).output() {
            urls.push_str(&String::from_utf8_lossy(&output.stdout));
        }
    }
    let (crates, yarn, ubuntu, rust) = ("crates", "yarnpkg", "ubuntu", "rust-lang");
    write!(
        urls,
        " https://index.{crates}.io https://static.{crates}.io https://registry.{yarn}.com \
         https://archive.{ubuntu}.com https://static.{rust}.org "
    )
    .unwrap();
    let mut hosts: Vec<String> = urls
        .split("://")
        .skip(1)
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '.' || *c == '-')
                .collect()
        })
        .filter(|host: &String| host.contains('.') && !host.ends_with("example.org"))
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

#[test]
fn no_registry_is_named() {
    let hosts = registries();
    assert!(hosts.len() >= 5, "{hosts:?}");
    let found = offenders(&hosts);
    assert!(found.is_empty(), "{found:#?}");
    // The control: the same search finds a text that is there.
    assert!(!offenders(&["files.example.org".to_owned()]).is_empty());
}

/// Whether `text` contains a key in PEM form (RFC 7468), not only the words, which tests search for.
fn holds_key(text: &str) -> bool {
    let base64 = |line: &str| {
        line.len() >= 40 && line.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
    };
    text.split("PRIVATE KEY-----")
        .skip(1)
        .any(|rest| rest.lines().nth(1).is_some_and(|line| base64(line.trim())))
}

#[test]
fn no_private_key_is_committed() {
    let texts = committed().into_iter().map(|file| {
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        (file, text)
    });
    let found: Vec<PathBuf> =
        texts.filter(|(_, text)| holds_key(text)).map(|(file, _)| file).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(holds_key(&rcgen::KeyPair::generate().unwrap().serialize_pem()));
}

/// Where a target's URL may be used whole: where it is made, where it is written into a request, and where an index is named so
/// that it can be fetched again (an index with a token in its URL is not).
const WHOLE_URLS: &[(&str, &str)] = &[
    // The base of relative links; the request for the pipeline.
    ("accept/mirror/rewrite.rs", ".url()"),
    ("accept/mirror/mod.rs", ".path_and_query()"),
    ("origin/ask.rs", ".url()"),
    ("origin/translate.rs", ".path_and_query()"),
    ("store/batch.rs", ".path_and_query()"),
];

/// Where `text` takes a target's URL with its secrets. Unit tests may do so.
fn whole_urls(path: &Path, text: &str) -> Vec<String> {
    let shown = path.to_str().unwrap();
    if shown.starts_with("target/") || shown.ends_with("tests.rs") || shown.contains("/tests/") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    [".url()", ".path_and_query()"]
        .into_iter()
        .filter(|call| code.contains(call) && !WHOLE_URLS.contains(&(shown, *call)))
        .map(|call| format!("{shown} takes {call}"))
        .collect()
}

#[test]
fn a_whole_url_is_taken_only_to_ask_for_it() {
    let taken: Vec<String> =
        sources().iter().flat_map(|(path, text)| whole_urls(path, text)).collect();
    assert!(taken.is_empty(), "{taken:#?}: a target shows itself by {{}}");
    let seen = |path: &str, text: &str| !whole_urls(Path::new(path), text).is_empty();
    assert!(seen("pipeline/pass.rs", "format!(\"{}\", target.url())"));
    assert!(seen("origin/ask.rs", "task.target.path_and_query()"));
    assert!(!seen("origin/ask.rs", "Uri::try_from(target.url())"));
    assert!(!seen("pipeline/pass.rs", "#[cfg(test)]\nmod tests {\n target.url()"));
}
