//! Runs the command: it uses larder's terminal, larder forwards its signals to it and ends with its exit code.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::roots::Roots;
use crate::cli::{FAILED, NOT_EXECUTABLE, NOT_FOUND};

/// The signals that are forwarded to the command.
pub(super) struct Signals {
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    pub(super) async fn next(&mut self) -> Number {
        tokio::select! {
            _ = self.terminate.recv() => Number::TERM,
            _ = self.hangup.recv() => Number::HUP,
            _ = self.user1.recv() => Number::USR1,
            _ = self.user2.recv() => Number::USR2,
            _ = self.interrupt.recv() => Number::INT,
            _ = self.quit.recv() => Number::QUIT,
        }
    }
}

/// How the command ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The command's own code, or 128 and the number of the signal that ended it.
    With(u8),
    /// The command could not be run.
    NotRun(u8),
}

/// Runs `command` with `variables` set, until it ends; if `roots` is given, with these mounted over the system's.
/// Also returns whether they could be mounted.
pub(super) async fn run(
    command: &[OsString],
    variables: &[(&str, String)],
    roots: Option<&Arc<Roots>>,
    signals: &mut Signals,
) -> io::Result<(Ended, bool)> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok((Ended::NotRun(NOT_FOUND), false));
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    let (spawned, reached) = match roots {
        Some(roots) => spawn_among(Arc::clone(roots), command).await?,
        None => (command.spawn(), false),
    };
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let (code, why) = if error.kind() == io::ErrorKind::NotFound {
                (NOT_FOUND, "there is no such command".to_owned())
            } else {
                (NOT_EXECUTABLE, error.to_string())
            };
            writeln!(io::stderr(), "larder: {}: {why}", program.display())?;
            return Ok((Ended::NotRun(code), reached));
        }
    };
    // A terminal sends signals of its keys to the command directly: forwarded, they would arrive twice.
    let keys_reach_it = io::stdin().is_terminal();
    loop {
        tokio::select! {
            ended = child.wait() => {
                return ended.map(|status| (Ended::With(code(status)), reached));
            }
            number = signals.next() => {
                let from_keys = number == Number::INT || number == Number::QUIT;
                if !(from_keys && keys_reach_it) {
                    pass_on(&child, number);
                }
            }
        }
    }
}

/// Starts `command` with `roots` mounted over the system's; if no mount namespace can be made, in the present one.
async fn spawn_among(
    roots: Arc<Roots>,
    mut command: Command,
) -> io::Result<(io::Result<Child>, bool)> {
    let runtime = Handle::current();
    let spawned = tokio::task::spawn_blocking(move || {
        // A separate thread: only it and the command that it starts are in the new namespace.
        let thread = std::thread::spawn(move || match roots.enter() {
            Ok(()) => {
                let _within = runtime.enter();
                Ok(command.spawn())
            }
            Err(error) => Err(Box::new((error, command))),
        });
        thread.join()
    });
    match spawned.await? {
        Ok(Ok(spawned)) => Ok((spawned, true)),
        Ok(Err(untouched)) => {
            let (error, mut command) = *untouched;
            tracing::debug!(%error, "no mount namespace for the command");
            Ok((command.spawn(), false))
        }
        Err(_) => Err(io::Error::other("the thread that starts the command was broken off")),
    }
}

fn pass_on(child: &Child, number: Number) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        // The command may have ended just now.
        let _sent = kill_process(id, number);
    }
}

/// The command's own code, or 128 and the number of the signal that ended it.
fn code(status: ExitStatus) -> u8 {
    let by_signal = || status.signal().map(|number| number.saturating_add(128));
    let code = status.code().or_else(by_signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn exit(script: &str) -> Ended {
        let command = ["sh", "-c", script].map(OsString::from);
        let variables = [("LARDER_TEST_VALUE", "seen".to_owned())];
        run(&command, &variables, None, &mut Signals::new().unwrap()).await.unwrap().0
    }

    #[tokio::test]
    async fn the_commands_exit_code_is_passed_on() {
        assert_eq!(exit("exit 0").await, Ended::With(0));
        assert_eq!(exit("exit 42").await, Ended::With(42));
        assert_eq!(exit("kill -TERM $$").await, Ended::With(128 + 15));
        assert_eq!(exit("test \"$LARDER_TEST_VALUE\" = seen").await, Ended::With(0));
    }

    #[tokio::test]
    async fn a_command_that_cannot_be_run_has_its_own_code() {
        let mut signals = Signals::new().unwrap();
        let missing = ["larder-test-no-such-command".into()];
        assert_eq!(
            run(&missing, &[], None, &mut signals).await.unwrap().0,
            Ended::NotRun(NOT_FOUND)
        );
        assert_eq!(
            run(&["/etc/passwd".into()], &[], None, &mut signals).await.unwrap().0,
            Ended::NotRun(NOT_EXECUTABLE)
        );
    }
}
