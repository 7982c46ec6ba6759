//! What the documents tell people to type is what the program understands.

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
