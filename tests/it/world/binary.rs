//! The real program in a process of its own: for tests of what must survive a kill, and of what users see.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::larder::trust;
use super::{Ca, Client, PATIENCE, tools};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");

/// `larder serve` on a free port.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    child: Child,
    log: Log,
}

impl Daemon {
    /// Starts it on `data`, with `environment` in addition to what every test needs; returns once it listens.
    pub(crate) async fn start(ca: &Ca, data: &Path, environment: &[(&str, &str)]) -> Self {
        Self::try_start(ca, data, environment).await.unwrap()
    }

    /// The same. The error is what it wrote before it ended.
    pub(crate) async fn try_start(
        ca: &Ca,
        data: &Path,
        environment: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut command = larder(ca, data);
        command.args(["serve", "--listen", "127.0.0.1:0"]).envs(environment.iter().copied());
        Self::try_run(command).await
    }

    /// Runs `command`, which is larder or starts it.
    pub(crate) async fn try_run(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::of(child.stderr.take().unwrap());
        let listening = tokio::time::timeout(PATIENCE, async {
            loop {
                // Checked before the lines: nothing is written after the end.
                let ended = log.is_whole();
                let address = log.lines.lock().unwrap().iter().find_map(|line| listening_on(line));
                if ended || address.is_some() {
                    return address;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if let Ok(Some(address)) = listening.await {
            return Ok(Self { address, child, log });
        }
        let _dead = child.kill();
        let _status = child.wait();
        Err(log.text())
    }

    /// A client that trusts it.
    pub(crate) async fn client(&self) -> Client {
        Client::new(self.address, trust(self.address).await)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its peak memory, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What was read of its log so far. A line that belongs to an answer may come after that answer: a test that expects one
    /// waits for it with [`Self::logged`].
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until its log contains `line`, and returns the log; panics with the log if the line does not come.
    pub(crate) async fn logged(&self, line: &str) -> String {
        let logged = tokio::time::timeout(PATIENCE, async {
            loop {
                let log = self.log();
                if log.contains(line) {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        logged.await.unwrap_or_else(|_| panic!("larder did not log {line:?}:\n{}", self.log()))
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _already_dead = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM; returns its exit code once it has ended.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        tools::signal(self.id(), "TERM").await;
        self.ended().await
    }

    /// Waits until it has ended by itself and its whole log was read; returns its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap()
                    && self.log.is_whole()
                {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        ended.await.expect("larder did not end")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What a process writes to its standard error. A thread reads it and may lag behind the process. So the process's end does not
/// show that everything was read; only the end of the pipe does.
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Log {
    fn of(errors: ChildStderr) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in BufReader::new(errors).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            }
        });
        Self { lines, reader }
    }

    /// Whether everything was read.
    fn is_whole(&self) -> bool {
        self.reader.is_finished()
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

/// The program with the configuration that every test needs, without this machine's settings.
pub(crate) fn larder(ca: &Ca, data: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    tools::forget_proxies(&mut command);
    // Variables that control the tests themselves are no configuration of larder, which refuses names that it does not know.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
        .env("LARDER_DATA", data)
        .env("LARDER_ALLOW_NETS", "127.0.0.0/8,::1/128")
        .env("LARDER_UPSTREAM_CA", ca.file())
        .env("LARDER_STORE_MIN_FREE", "0");
    command
}

/// Runs `larder ARGUMENTS`, which asks the running larder or opens the directory; returns its output.
pub(crate) async fn say(ca: &Ca, data: &Path, arguments: &[&str]) -> Output {
    let mut command = larder(ca, data);
    command.args(arguments);
    tools::run(command).await
}

/// The address in a line that says where larder listens.
fn listening_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening")?;
    rest.split(|c: char| c.is_whitespace() || matches!(c, '=' | '"' | ',' | '\u{1b}')).find_map(
        |word| word.trim_start_matches("http://").trim_end_matches(['/', '.']).parse().ok(),
    )
}
