//! The program accepts the commands in the documentation.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::world::binary::PROGRAM;
use crate::world::tools::{run, text};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let after = README.split(fence.as_str()).skip(1);
    after.map(|rest| rest.split("```").next().unwrap()).collect()
}

#[tokio::test]
async fn the_configuration_in_the_readme_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("larder.toml");
    let toml = blocks("toml").concat();
    for (content, right) in [(toml.clone(), true), (toml.replace("max_size", "max_sise"), false)] {
        std::fs::write(&file, content).unwrap();
        let mut command = Command::new(PROGRAM);
        let keep = ["PATH", "HOME"].map(|name| (name, std::env::var_os(name).unwrap_or_default()));
        command.env_clear().envs(keep).arg("config").arg("--config").arg(&file);
        let output = run(command).await;
        let told = text(&output);
        assert_eq!(output.status.success(), right, "{told}");
        // A misspelt key is reported with its line and the nearest name.
        assert!(right || told.contains("max_size") && told.contains("larder.toml:"), "{told}");
    }
}

#[tokio::test]
async fn the_commands_in_the_readme_exist() {
    let names: std::collections::BTreeSet<&str> = blocks("sh")
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| line.trim_start_matches("target/release/").strip_prefix("larder "))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let mut command = Command::new(PROGRAM);
        command.args([name, "--help"]);
        let output = run(command).await;
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}

/// The pages about deploying larder, and about daemons and CI runners that use it.
fn pages() -> Vec<(String, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut pages: Vec<_> = crate::world::files(&docs)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(|path| {
            let name = path.strip_prefix(&docs).unwrap().display().to_string();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    pages.sort();
    assert!(pages.len() >= 8, "{pages:?}");
    pages
}

/// The targets of links to files of this repository, as paths from its root.
fn links(folder: &str, text: &str) -> Vec<PathBuf> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    targets
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| here.join(target.split('#').next().unwrap()))
        .collect()
}

#[test]
fn every_page_is_found_from_the_first_one() {
    assert!(links("", README).iter().any(|link| link.ends_with("docs/README.md")));
    let pages = pages();
    let (_, index) = pages.iter().find(|(name, _)| name == "README.md").unwrap();
    let linked = links("docs", index);
    for (name, _) in pages.iter().filter(|(name, _)| name != "README.md") {
        assert!(linked.iter().any(|link| link.ends_with(name)), "{name} is not in docs/README.md");
    }
}

#[test]
fn links_lead_somewhere() {
    for (name, text) in pages() {
        for link in links("docs", &text) {
            assert!(link.exists(), "{name}: {}", link.display());
        }
    }
    assert!(!links("docs", "[x](nowhere.md)")[0].exists(), "the control");
}

/// Readers copy commands, so each is marked as tried or not.
#[test]
fn commands_are_marked_as_tried_or_not() {
    let unmarked = |text: &str| {
        let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap());
        let after = blocks.map(|(block, after)| (block.to_owned(), after.trim_start().to_owned()));
        let marks =
            ["Tried", "Not tried", "The first line tried", "The output tried", "The drop-in tried"];
        let unmarked = after.filter(|(_, after)| !marks.iter().any(|mark| after.starts_with(mark)));
        unmarked.map(|(block, _)| block).collect::<Vec<_>>()
    };
    for (name, text) in pages() {
        assert_eq!(unmarked(&text), [] as [&str; 0], "{name}");
    }
    assert_eq!(unmarked("```sh\nx\n```\nand so on"), ["x\n"], "the control");
}

/// The tests that a text names, as `file::name` (in `tests/it`) or `src/path.rs::name`.
fn named_tests(text: &str) -> Vec<&str> {
    let is_word =
        |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b"_/.0123456789".contains(&b));
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|quoted| {
            let parts = quoted.rsplit_once("::");
            parts.is_some_and(|(file, name)| !name.is_empty() && is_word(file) && is_word(name))
        })
        .collect()
}

/// Whether there is a test with this name.
fn exists(named: &str) -> bool {
    let Some((file, name)) = named.rsplit_once("::") else { return false };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = if file.starts_with("src/") {
        vec![root.join(file)]
    } else {
        let tests = root.join("tests/it");
        vec![tests.join(format!("{file}.rs")), tests.join(file).join("mod.rs")]
    };
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.into_iter().any(|text| {
        let above = text.split_once(&format!("fn {name}(")).map(|(above, _)| above);
        // Its attributes stand behind the end of what comes before it.
        let own = above.map(|above| above.rsplit("\n\n").next().unwrap());
        own.is_some_and(|own| {
            own.lines().any(|line| line.trim().starts_with("#[") && line.contains("test"))
        })
    })
}

/// The rows of the tables below the headings of a page, without the two lines of each head.
fn rows<'a>(page: &'a str, headings: &[&str]) -> Vec<&'a str> {
    let sections = page.split("\n## ");
    let wanted = sections.filter(|text| headings.iter().any(|heading| text.starts_with(heading)));
    wanted.flat_map(|text| text.lines().filter(|line| line.starts_with("| ")).skip(2)).collect()
}

/// Issue 17: the table of faults names the test of each.
#[test]
fn every_fault_of_the_table_has_a_test() {
    let (_, page) = pages().into_iter().find(|(page, _)| page == "reliability.md").unwrap();
    let headings = ["Faults of origins", "Faults of larder's own machine", "What clients do"];
    let rows = rows(&page, &headings);
    assert!(rows.len() >= 40, "{}", rows.len());
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(!named_tests(last).is_empty(), "{row}");
    }
    assert!(named_tests("(issue 17, row 14)").is_empty(), "the control");
}

/// Issue 17: every row about failures of other caches names a test, and a renamed test must be renamed there too.
#[test]
fn every_test_that_a_page_names_exists() {
    let security = include_str!("../../SECURITY.md").to_owned();
    for (page, text) in pages().into_iter().chain([("SECURITY.md".to_owned(), security)]) {
        // Its walks name functions.
        if page == "architecture.md" {
            continue;
        }
        for named in named_tests(&text) {
            assert!(exists(named), "{page} names {named}, which is no test");
        }
    }
    assert!(exists("documents::every_test_that_a_page_names_exists"), "the control");
    assert!(!exists("documents::every_test_that_a_page_invents"), "the control");
    assert!(!exists("documents::named_tests"), "the control: a function that is no test");
    let (_, pitfalls) = pages().into_iter().find(|(page, _)| page == "pitfalls.md").unwrap();
    let count = pitfalls.lines().filter(|line| line.starts_with("| ")).count() - 2;
    assert_eq!(count, 42, "as many as burnt others");
    for number in 1..=42 {
        let row = pitfalls.lines().find(|line| line.starts_with(&format!("| {number} |"))).unwrap();
        assert!(!named_tests(row).is_empty(), "{row}");
    }
}

/// The walks of the map name files and functions: a renamed one must be renamed there too.
#[test]
fn every_function_that_the_map_names_exists() {
    let (_, page) = pages().into_iter().find(|(page, _)| page == "architecture.md").unwrap();
    let is_there = |named: &str| {
        if !named.starts_with("src/") {
            return exists(named);
        }
        let (file, name) = named.rsplit_once("::").unwrap();
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
        let starts = [format!("fn {name}("), format!("fn {name}<")];
        text.is_ok_and(|text| starts.iter().any(|start| text.contains(start)))
    };
    let named = named_tests(&page);
    assert!(named.len() >= 30, "{named:?}");
    let gone: Vec<_> = named.into_iter().filter(|named| !is_there(named)).collect();
    assert!(gone.is_empty(), "{gone:#?}");
    assert!(!is_there("src/lib.rs::a_function_that_is_not_there"), "the control");
}

/// Settings that make clients check less, as in other caches' instructions (git-pkgs, npm-proxy-cache).
const CHECKS_LESS: &[&str] = &[
    "strict-ssl",
    "strict_ssl",
    "gpgcheck=0",
    "[trusted=yes",
    "verify-peer",
    "verify-host",
    "node_tls_reject_unauthorized",
    "pythonhttpsverify",
    "ssl_no_verify",
    "sslverify",
    "--insecure",
    "no-check-certificate",
    "allowunauthenticated",
    "allow-unauthenticated",
    "hex_unsafe",
    "no-gpg-check",
    "allow-insecure-repositories",
];

#[test]
fn nothing_tells_a_client_to_check_less() {
    let checks_less = |text: &str| {
        let text = text.to_lowercase();
        CHECKS_LESS.iter().find(|word| text.contains(**word)).copied()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md"), root.join("Containerfile")];
    for directory in ["docs", "ca", "src"] {
        files.extend(crate::world::files(&root.join(directory)));
    }
    for file in files {
        // Keys and other binary data are skipped.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        assert_eq!(checks_less(&text), None, "{}", file.display());
    }
    assert_eq!(checks_less("npm config set Strict-SSL false"), Some("strict-ssl"), "the control");
}
