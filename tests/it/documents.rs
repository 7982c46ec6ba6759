//! What the documents tell people to type is what the program understands.

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
        // A misspelt key is told with its line and the nearest name.
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

/// The pages on how larder is run, and how daemons and runners use it.
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

/// The targets of links that lead to files of this repository, as paths from its root.
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

/// People copy commands: whoever wrote them says whether they were tried.
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
