//! The command line: one file for each subcommand.
//!
//! Flags and environment become one configuration (`config`); then the command runs with an `Invocation`: the
//! configuration, the environment and the output. The commands query a running larder; without one, those that look
//! at the store open it themselves (`answers`).
//!
//! Results go to standard output, everything else to standard error.

mod answers;
mod bypass;
mod ca;
mod clients;
mod config;
mod doctor;
#[cfg(test)]
mod documents;
mod env;
mod exec;
mod human;
mod keys;
mod logging;
mod ls;
mod owner;
mod pages;
mod recent;
mod remote;
mod rm;
mod serve;
mod stats;
mod supervisor;
mod verify;
mod version;
mod why;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::Clock;
use crate::config::environment::{Environment, read_file};
use crate::config::load::{BadConfig, Flag, Loaded, Sources, load, split};
use crate::store::OpenError;

/// Success. For `exec`: the command's own code.
pub const OK: u8 = 0;
/// Failure; the line on standard error gives the reason.
pub const FAILED: u8 = 1;
/// The command line or the configuration is invalid.
pub const USAGE: u8 = 2;
/// Another larder process holds the data directory.
pub const HELD: u8 = 3;
/// `verify` found damaged files.
pub const DAMAGED: u8 = 4;
/// `exec`: larder itself failed before the command could run. This and the next two are the codes of `env` and of
/// shells.
pub const EXEC_FAILED: u8 = 125;
/// `exec`: the command exists and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// `exec`: there is no such command.
pub const NOT_FOUND: u8 = 127;

const EXAMPLES: &str = "\
Examples:
  larder exec -- pip install -r requirements.txt   run one command through larder
  larder exec -- sudo -E apt-get install git       the same for apt
  larder serve                                     serve this machine's clients on port 3142
  larder why https://files.example.org/a.whl       what is known of a URL, and why
  larder recent                                    what was refused or failed, and why
  larder doctor                                    which clients get through, and what mends the others
  larder stats                                     what is stored, what was saved

Exit codes: 0 done, 1 failed, 2 wrong flags or configuration, 3 the data
directory is in use by another larder, 4 damaged files were found. `exec` ends
with its command's code, or 125, 126, 127 if it could not run.";

/// One cache for everything a build downloads: an intercepting proxy that proves every byte it keeps.
#[derive(Debug, Parser)]
#[command(name = "larder", version, before_help = EXAMPLES, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
struct Options {
    /// The configuration file, instead of `LARDER_CONFIG`, ~/.config/larder/larder.toml or /etc/larder/larder.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of the CA and the cache [default: ~/.cache/larder]
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<String>,
    /// Sets any configuration key (`larder config` lists them); separate the values of a list with commas
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Options of the commands that reach origins.
#[derive(Args, Debug, Default)]
struct ReachOptions {
    /// A PEM file with additional CA certificates to trust for origins
    #[arg(long, value_name = "FILE")]
    upstream_ca: Vec<String>,
    /// Networks in which origins may be, although larder blocks them by default
    #[arg(long, value_name = "NET", value_delimiter = ',')]
    allow_nets: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Exec(exec::Exec),
    Env(env::Env),
    Ca(ca::Ca),
    Doctor(doctor::Doctor),
    Bypass(bypass::Bypass),
    Why(why::Why),
    Recent(recent::Recent),
    Ls(ls::Ls),
    Stats(stats::Stats),
    Rm(rm::Rm),
    Verify(verify::Verify),
    Keys(keys::Keys),
    Config(config::Config),
    Version(version::Version),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// What a command works with.
struct Invocation {
    loaded: Loaded,
    environment: Environment,
    clock: Clock,
    out: Box<dyn Write>,
    /// How to read the configuration again.
    reload: Reload,
}

/// The file and flags from which the configuration is read.
#[derive(Clone)]
struct Reload {
    file: Option<PathBuf>,
    flags: Vec<Flag>,
}

/// Runs larder. The only place that turns errors into messages and exit codes.
pub fn main(arguments: impl IntoIterator<Item = OsString>, environment: Environment) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // A failure to print help or an error to the terminal changes nothing.
            let _written = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let of_exec = matches!(arguments.command, Command::Exec(_));
    let code = match begin(&arguments, environment) {
        Ok(mut invocation) => match arguments.command.run(&mut invocation) {
            Ok(code) => code,
            Err(error) => explain(&error, of_exec),
        },
        Err(error) => explain(&error, of_exec),
    };
    ExitCode::from(code)
}

fn begin(arguments: &Arguments, environment: Environment) -> anyhow::Result<Invocation> {
    let reload = Reload { file: arguments.options.config.clone(), flags: flags(arguments)? };
    let loaded = reload.read(&environment)?;
    Ok(Invocation {
        loaded,
        environment,
        clock: Clock::system(),
        out: Box::new(io::stdout()),
        reload,
    })
}

impl Reload {
    fn read(&self, environment: &Environment) -> anyhow::Result<Loaded> {
        let file = read_file(self.file.as_deref(), environment)
            .map_err(|error| BadConfig(vec![error.to_string()]))?;
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        let mut loaded = load(&Sources { flags: &self.flags, environment, file })?;
        // Commands that run in another directory are given paths of files in it, so it must be absolute.
        loaded.config.data = std::path::absolute(&loaded.config.data)?;
        Ok(loaded)
    }
}

/// The keys that flags set. `--set` comes first, so that a key's own flag overrides it.
fn flags(arguments: &Arguments) -> Result<Vec<Flag>, BadConfig> {
    let mut flags = Vec::new();
    for set in &arguments.options.set {
        let Some((key, value)) = set.split_once('=') else {
            return Err(BadConfig(vec![format!("--set {set}: expected KEY=VALUE")]));
        };
        let list = crate::config::keys::key(key).is_some_and(|key| key.list);
        let values = if list { split(value) } else { vec![value.to_owned()] };
        flags.push(Flag { flag: "--set".to_owned(), key: key.to_owned(), values });
    }
    let nothing = ReachOptions::default();
    let (listen, reach) = match &arguments.command {
        Command::Serve(serve) => (serve.listen.as_slice(), &serve.reach),
        Command::Exec(exec) => (&[] as &[String], &exec.reach),
        Command::Env(_)
        | Command::Ca(_)
        | Command::Doctor(_)
        | Command::Bypass(_)
        | Command::Why(_)
        | Command::Recent(_)
        | Command::Ls(_)
        | Command::Stats(_)
        | Command::Rm(_)
        | Command::Verify(_)
        | Command::Keys(_)
        | Command::Config(_)
        | Command::Version(_)
        | Command::Completions(_)
        | Command::Man(_) => (&[] as &[String], &nothing),
    };
    let given = [
        ("listen", listen),
        ("data", arguments.options.data.as_slice()),
        ("upstream_ca", &reach.upstream_ca),
        ("allow_nets", &reach.allow_nets),
    ];
    for (key, values) in given.into_iter().filter(|(_, values)| !values.is_empty()) {
        let flag = format!("--{}", key.replace('_', "-"));
        flags.push(Flag { flag, key: key.to_owned(), values: values.to_vec() });
    }
    Ok(flags)
}

impl Command {
    fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        match self {
            Self::Serve(_) => serve::run(invocation),
            Self::Exec(exec) => exec.run(invocation),
            Self::Env(env) => env.run(invocation),
            Self::Ca(ca) => ca.run(invocation),
            Self::Doctor(doctor) => doctor.run(invocation),
            Self::Bypass(bypass) => bypass.run(invocation),
            Self::Why(why) => why.run(invocation),
            Self::Recent(recent) => recent.run(invocation),
            Self::Ls(ls) => ls.run(invocation),
            Self::Stats(stats) => stats.run(invocation),
            Self::Rm(rm) => rm.run(invocation),
            Self::Verify(verify) => verify.run(invocation),
            Self::Keys(keys) => keys.run(invocation),
            Self::Config(config) => config.run(invocation),
            Self::Version(version) => version.run(invocation),
            Self::Completions(completions) => completions.run(invocation),
            Self::Man(man) => man.run(invocation),
        }
    }
}

/// Prints the error to standard error and returns the exit code.
fn explain(error: &anyhow::Error, of_exec: bool) -> u8 {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        // The reader closed the pipe, as in `larder ls | head`: not a failure.
        return OK;
    }
    // If standard error cannot be written, the exit code is the only report.
    let _written = writeln!(io::stderr(), "larder: {error:#}");
    let held =
        error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OpenError::Held { .. })));
    if of_exec {
        EXEC_FAILED
    } else if held {
        HELD
    } else if error.is::<BadConfig>() {
        USAGE
    } else {
        FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parsed(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap()
    }

    fn value(line: &str, environment: &[(&str, &str)], key: &str) -> (String, String) {
        let reload =
            Reload { file: Some("/dev/null".into()), flags: flags(&parsed(line)).unwrap() };
        let loaded = reload.read(&environment.iter().copied().collect()).unwrap();
        let (key, source) = loaded.sources.iter().find(|(found, _)| found.name == key).unwrap();
        (key.shown(&loaded.config), source.to_string())
    }

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_begins_with_examples() {
        let mut command = Arguments::command();
        assert!(command.render_long_help().to_string().starts_with("Examples:\n  larder exec --"));
        for subcommand in command.get_subcommands_mut() {
            let help = subcommand.render_long_help().to_string();
            assert!(help.starts_with("Examples:\n  "), "{help}");
        }
    }

    #[test]
    fn flags_set_keys_and_are_named_as_the_source() {
        let line = "larder serve --listen 127.0.0.1:1 --listen 127.0.0.1:2 --allow-nets 10.0.0.0/8,192.0.2.1";
        let from = [("LARDER_LISTEN", "127.0.0.1:3")];
        assert_eq!(
            value(line, &from, "listen"),
            ("[\"127.0.0.1:1\", \"127.0.0.1:2\"]".into(), "--listen".into())
        );
        assert_eq!(value(line, &from, "allow_nets").0, "[\"10.0.0.0/8\", \"192.0.2.1/32\"]");
        assert_eq!(value("larder ls", &from, "listen").1, "LARDER_LISTEN");
        assert_eq!(
            value("larder ls --set store.max_size=1GiB", &[], "store.max_size"),
            ("\"1GiB\"".into(), "--set".into())
        );
    }

    #[test]
    fn a_relative_data_directory_is_made_absolute() {
        let (shown, _) = value("larder ls --data here", &[], "data");
        assert!(shown.starts_with("\"/") && shown.ends_with("/here\""), "{shown}");
    }

    #[test]
    fn everything_after_the_dashes_is_the_command() {
        for line in ["larder exec -- pip --version --data x", "larder exec pip --version --data x"]
        {
            let Command::Exec(exec) = parsed(line).command else { panic!("{line}") };
            assert_eq!(exec.command, ["pip", "--version", "--data", "x"]);
        }
    }

    #[test]
    fn errors_have_exit_codes() {
        let held = || {
            anyhow::Error::from(OpenError::Held { data: "/d".into(), holder: "process 1".into() })
        };
        let bad = || anyhow::Error::from(BadConfig(vec!["x".into()]));
        let pipe =
            || anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert_eq!(explain(&held().context("opening"), false), HELD);
        assert_eq!(explain(&bad(), false), USAGE);
        assert_eq!(explain(&anyhow::anyhow!("x"), false), FAILED);
        assert_eq!(explain(&pipe(), false), OK);
        assert_eq!(explain(&held(), true), EXEC_FAILED);
    }
}
