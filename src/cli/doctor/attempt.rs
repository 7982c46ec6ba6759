//! Running a client, or asking it something: it has so much time and so many words, and leaves nothing behind.
//!
//! Many clients are scripts that start the real one, which would outlive them, hold their output and go on asking. Each is
//! therefore started in a process group of its own, which is killed when its time is over, when whoever waits is gone, and
//! when its output stays open although it has ended.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// What is kept of each of the two outputs; what follows is read and dropped.
const MAX_SAID: usize = 256 * 1024;

/// How long a program's outputs may stay open once it has ended: somebody else holds them then.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// How an attempt ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// `None`: its time was over.
    pub(super) status: Option<ExitStatus>,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
}

/// Lets a program run to its end, or for so long.
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

/// A process group that ends with its owner.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        let leader = leader.and_then(|id| i32::try_from(id).ok());
        Self(leader.and_then(rustix::process::Pid::from_raw))
    }

    /// It ended, and nobody holds its outputs: there is nobody to end, and its number may soon be another's.
    fn is_gone(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody may be left in it: that is what was wanted.
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

    /// What it started and did not wait for holds its output, and would go on.
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
