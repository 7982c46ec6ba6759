//! `larder completions` and `larder man`: shell completions and manual pages, generated from the command line's
//! definition.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Arguments, Invocation, OK};
use crate::store::write_durably;

const COMPLETIONS: &str = "\
Examples:
  larder completions bash > ~/.local/share/bash-completion/completions/larder
  larder completions zsh > ~/.zfunc/_larder
  larder completions fish > ~/.config/fish/completions/larder.fish";

const MAN: &str = "\
Examples:
  larder man | man -l -
  larder man --dir /usr/local/share/man/man1";

/// Prints the completions for a shell.
#[derive(Args, Debug)]
#[command(before_help = COMPLETIONS)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Prints larder's manual page, or writes those of all commands to a directory.
#[derive(Args, Debug)]
#[command(before_help = MAN)]
pub(super) struct Man {
    /// Writes larder.1 and a page for each command to DIR
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "larder", &mut text);
        invocation.out.write_all(&text)?;
        Ok(OK)
    }
}

impl Man {
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        let mut larder = Arguments::command();
        larder.build();
        let Some(dir) = self.dir else {
            invocation.out.write_all(&page(larder)?)?;
            return Ok(OK);
        };
        let commands: Vec<Command> = larder.get_subcommands().cloned().collect();
        for command in commands.into_iter().chain([larder]) {
            let name = command.get_display_name().unwrap_or("larder").to_owned();
            let file = dir.join(format!("{name}.1"));
            write_durably(&file, &page(command)?, 0o644)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(OK)
    }
}

fn page(command: Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let mut larder = Arguments::command();
        larder.build();
        for command in larder.get_subcommands().cloned() {
            let name = command.get_name().to_owned();
            let text = String::from_utf8(page(command).unwrap()).unwrap();
            assert!(text.contains(".TH") && text.contains(&name), "{text}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "larder", &mut text);
            assert!(String::from_utf8(text).unwrap().contains("recent"), "{shell}");
        }
    }
}
