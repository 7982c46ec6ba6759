//! Tests that every `larder …` command in the documents is accepted by the command line's definition.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::Arguments;

/// The files that people copy commands from: documents, and files that start larder.
fn documents() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![here.join("README.md")];
    let mut folders = vec![here.join("docs"), here.join("ca")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

/// The invocations of larder in a text: in fenced blocks of Markdown, and in comments and settings of other files.
fn invocations(path: &Path, text: &str) -> Vec<Vec<String>> {
    let markdown = path.extension().is_some_and(|end| end == "md");
    let mut within = !markdown;
    let joined = text.replace("\\\n", " ");
    let mut found = Vec::new();
    for line in joined.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```").filter(|_| markdown) {
            within = matches!(language, "sh" | "yaml" | "dockerfile" | "ini");
        } else if within {
            let line = line.trim_start_matches([' ', '#']);
            found.extend(commands(line.strip_prefix("ExecStart=").unwrap_or(line)));
        }
    }
    found
}

/// The words of each larder command in a line of shell.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" #").next().unwrap_or(line);
    let parts = line.replace("$(", "\n").replace("&&", "\n").replace([')', '|', '>', ';'], "\n");
    let words = |part: &str| {
        let words = part.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned());
        let before = |word: &String| {
            word == "sudo"
                || word == "eval"
                || word == "exec"
                || word.contains('=')
                || word.is_empty()
        };
        words.skip_while(before).collect::<Vec<_>>()
    };
    let all = parts.lines().map(words);
    all.filter(|words| {
        words.first().is_some_and(|word| word == "larder" || word.ends_with("/larder"))
    })
    // A single word is not a command but a sentence about larder.
    .filter(|words| words.len() > 1)
    .collect()
}

#[test]
fn what_the_documents_say_is_understood() {
    let mut seen = 0;
    for path in documents() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for words in invocations(&path, &text) {
            // Sentences in comments may begin with the name, too; in a command a subcommand or an option follows.
            let next = &words[1];
            let is_prose = path.extension().is_none_or(|end| end != "md")
                && !next.starts_with('-')
                && Arguments::try_parse_from(["larder", next, "--help"])
                    .is_err_and(|error| error.kind() == clap::error::ErrorKind::InvalidSubcommand);
            if is_prose {
                continue;
            }
            if let Err(error) = Arguments::try_parse_from(&words) {
                assert!(!error.use_stderr(), "{}: {}: {error}", path.display(), words.join(" "));
            }
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn a_stale_command_would_be_noticed() {
    let text = "larder nonsense\n```sh\nsudo larder env --format sytemd > x # larder old\nA=b eval \"$(larder env)\"\n```\n";
    let found = invocations(Path::new("x.md"), text);
    let lines: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
    assert_eq!(lines, ["larder env --format sytemd", "larder env"]);
    assert!(Arguments::try_parse_from(&found[0]).is_err());
    assert!(Arguments::try_parse_from(&found[1]).is_ok());
    let unit = invocations(Path::new("x.service"), "ExecStart=/usr/bin/larder serve --config x\n");
    assert_eq!(unit, [["/usr/bin/larder", "serve", "--config", "x"]]);
}
