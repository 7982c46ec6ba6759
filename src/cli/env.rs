//! `larder env`.

use anyhow::Context as _;
use clap::Args;

use super::clients::{self, place};
use super::{Invocation, OK};

const EXAMPLES: &str = "\
Examples:
  eval \"$(larder env)\"      this shell uses the running larder from now on";

/// Prints the variables that `larder exec` sets, as lines for a shell. Needs a running larder.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Env {}

/// Runs it.
pub(super) fn run(invocation: &mut Invocation) -> anyhow::Result<u8> {
    let data = &invocation.loaded.config.data;
    let Some(served) = invocation.served()? else {
        anyhow::bail!(
            "no larder serves from {}; start one with `larder serve`, or run one command with `larder exec`",
            data.display()
        );
    };
    let status = served.status().context("cannot ask the running larder")?;
    let proxy =
        clients::proxy_at(&status.listening).context("the running larder does not listen yet")?;
    let directory = place::lasting(data, &invocation.environment)?;
    let files = clients::Files::write(&directory, &proxy, &status.ca_pem, &invocation.environment)?;
    for (name, value) in clients::variables(&proxy, &files, &invocation.environment) {
        writeln!(invocation.out, "export {name}={}", quoted(&value))?;
    }
    Ok(OK)
}

/// A word for a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_values_as_they_are() {
        assert_eq!(quoted("a'b $(c)"), "'a'\\''b $(c)'");
    }
}
