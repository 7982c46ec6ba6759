//! Runs a client or a helper program with limits on time and output, and leaves no process behind.
//!
//! Many clients are scripts that start the real program, which would outlive them, keep their output open and go on
//! sending requests. Each therefore runs in a process group of its own. The group is killed when its time is over,
//! when the future is dropped, and when an output stays open after the program has ended.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// How many bytes of each output are kept; the rest is read and dropped.
const MAX_SAID: usize = 256 * 1024;

/// How long the outputs may stay open after the program has ended: another process of its group holds them then.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// How an attempt ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// `None`: it took too long.
    pub(super) status: Option<ExitStatus>,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
}

/// Runs a program to its end, for at most `patience`.
pub(super) async fn attempt(mut command: Command, patience: Duration) -> io::Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut group = Group::of(child.id());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut reading = Box::pin(async {
        tokio::join!(keep(stdout, &mut out), keep(stderr, &mut err));
    });
    let ending = timeout(patience, async {
        let mut was_read = false;
        loop {
            tokio::select! {
                ended = child.wait() => return ended.map(|status| (status, was_read)),
                () = &mut reading, if !was_read => was_read = true,
            }
        }
    });
    let status = match ending.await {
        Ok(ended) => {
            let (status, was_read) = ended?;
            if was_read || timeout(AFTERWARDS, &mut reading).await.is_ok() {
                group.is_gone();
            }
            Some(status)
        }
        Err(_) => None,
    };
    drop(reading);
    Ok(Ended { status, out, err })
}

/// Reads to the end, and keeps the beginning.
async fn keep(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = [0; 8192];
    while let Ok(count) = from.read(&mut piece).await {
        if count == 0 {
            return;
        }
        let room = MAX_SAID.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(piece.get(..room).unwrap_or_default());
    }
}

/// A process group that is killed when dropped.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        let leader = leader.and_then(|id| i32::try_from(id).ok());
        Self(leader.and_then(rustix::process::Pid::from_raw))
    }

    /// Disarms the guard: the program ended and its outputs are closed, so nothing is left to kill, and its number
    /// may be reused.
    fn is_gone(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails if the group is empty, which is what is wanted.
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn what_a_program_says_is_kept_within_limits() {
        let ended = attempt(sh("echo a; echo b >&2; exit 3"), LONG).await.unwrap();
        assert_eq!(ended.status.unwrap().code(), Some(3));
        assert_eq!((&*ended.out, &*ended.err), (&b"a\n"[..], &b"b\n"[..]));
        let ended = attempt(sh("head -c 9000000 /dev/zero; echo end >&2"), LONG).await.unwrap();
        assert_eq!((ended.out.len(), &*ended.err), (MAX_SAID, &b"end\n"[..]));
    }

    /// A process that the client started and did not wait for keeps its output open, and would run on.
    #[tokio::test]
    async fn nothing_outlives_an_attempt() {
        for (line, patience, ends) in [
            ("sleep 4711 & echo $!; wait", Duration::from_secs(2), false),
            ("sleep 4711 & echo $!", LONG, true),
        ] {
            let ended = attempt(sh(line), patience).await.unwrap();
            assert_eq!(ended.status.is_some(), ends, "{line}");
            let id = String::from_utf8(ended.out).unwrap().trim().to_owned();
            let alive = || {
                let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
                !state.is_empty() && !state.contains(") Z ")
            };
            for _ in 0..500 {
                if !alive() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!alive(), "{line}: {id} is still there");
        }
    }
}
