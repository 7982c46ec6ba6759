//! larder under a service manager: its notifications, and the sockets that it takes over.

use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::binary::{Daemon, larder};
use crate::world::tools::{signal, skip};
use crate::world::{Ca, eventually};

/// A service manager that receives notifications.
struct Manager {
    heard: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    fn listening(socket: UnixDatagram) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let messages = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                messages
                    .lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
        });
        Self { heard }
    }

    /// The first line of every notification except the watchdog's.
    fn states(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let firsts = heard.iter().map(|message| message.lines().next().unwrap().to_owned());
        firsts.filter(|state| state != "WATCHDOG=1").collect()
    }

    fn fed(&self) -> usize {
        self.heard.lock().unwrap().iter().filter(|message| *message == "WATCHDOG=1").count()
    }
}

fn world() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(&dir.path().join("origins.pem"));
    (dir, ca)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_hears_of_start_reload_and_stop() {
    let (dir, ca) = world();
    let path = dir.path().join("notify");
    let name = format!("larder-it-{}", std::process::id());
    let abstract_name = UnixAddress::from_abstract_name(&name).unwrap();
    for (number, socket, at) in [
        (0, UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
        (1, UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
    ] {
        let manager = Manager::listening(socket);
        let data = dir.path().join(format!("data{number}"));
        let mut daemon = Daemon::start(&ca, &data, &[("NOTIFY_SOCKET", &at)]).await;
        eventually("it is ready", || async { manager.states() == ["READY=1"] }).await;
        signal(daemon.id(), "HUP").await;
        let reloaded = ["READY=1", "RELOADING=1", "READY=1"];
        eventually("it was read again", || async { manager.states() == reloaded }).await;
        assert_eq!(daemon.terminate().await, Some(0));
        let ended = ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"];
        eventually("it ends", || async { manager.states() == ended }).await;
        assert_eq!(manager.fed(), 0, "nobody asked for it");
        let heard = manager.heard.lock().unwrap();
        assert!(heard.iter().any(|message| message.contains("\nMONOTONIC_USEC=")), "{heard:?}");
        // A drain may take longer than the unit allows.
        assert!(
            heard.iter().any(|message| message.contains("\nEXTEND_TIMEOUT_USEC=")),
            "{heard:?}"
        );
    }
}

/// systemd would report a service that never started as running.
#[tokio::test(flavor = "multi_thread")]
async fn a_larder_that_cannot_start_never_says_that_it_is_ready() {
    let (dir, ca) = world();
    let path = dir.path().join("notify");
    let manager = Manager::listening(UnixDatagram::bind(&path).unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = larder(&ca, &dir.path().join("data"));
    command.arg("serve").env("NOTIFY_SOCKET", &path);
    command.args(["--listen", &taken.local_addr().unwrap().to_string()]);
    let Err(told) = Daemon::try_run(command).await else { panic!("the port is taken") };
    assert!(told.contains("cannot listen"), "{told}");
    assert_eq!(manager.states(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_is_fed_by_the_process_that_it_watches() {
    let (dir, ca) = world();
    let path = dir.path().join("notify");
    let manager = Manager::listening(UnixDatagram::bind(&path).unwrap());
    let socket = path.display().to_string();
    let often = [("NOTIFY_SOCKET", &*socket), ("WATCHDOG_USEC", "20000")];
    let mut watched = Daemon::start(&ca, &dir.path().join("data1"), &often).await;
    eventually("it is fed", || async { manager.fed() >= 3 }).await;
    assert_eq!(watched.terminate().await, Some(0));
    drop(watched);

    let path = dir.path().join("other");
    let manager = Manager::listening(UnixDatagram::bind(&path).unwrap());
    let socket = path.display().to_string();
    let others = [("NOTIFY_SOCKET", &*socket), ("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "1")];
    let mut daemon = Daemon::start(&ca, &dir.path().join("data2"), &others).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(daemon.terminate().await, Some(0));
    eventually("it ends", || async { manager.states() == ["READY=1", "STOPPING=1"] }).await;
    assert_eq!(manager.fed(), 0);
}

/// Binds a socket, and executes the given program with that socket as descriptor 3.
const ACTIVATE: &str = "
import os, socket, sys
kind, process = sys.argv[1], sys.argv[2]
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == 'datagram' else socket.SOCK_STREAM)
held.bind(('127.0.0.1', 0))
if kind == 'listening':
    held.listen(16)
print('bound', held.getsockname()[1], file=sys.stderr, flush=True)
os.dup2(held.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()) if process == 'own' else process)
os.execvp(sys.argv[3], sys.argv[3:])
";

fn activated(ca: &Ca, dir: &std::path::Path, kind: &str, process: &str) -> Command {
    let plain = larder(ca, &dir.join("data"));
    let mut command = Command::new("python3");
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.args(["-c", ACTIVATE, kind, process]).arg(plain.get_program());
    // Where it would listen without the manager's socket; a test that reaches it here has reached the wrong one.
    command.args(["serve", "--listen", "127.0.0.2:0"]);
    command
}

fn bound(log: &str) -> u16 {
    let line = log.lines().find_map(|line| line.strip_prefix("bound ")).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_the_manager_holds_is_served() {
    let (dir, ca) = world();
    let command = activated(&ca, dir.path(), "listening", "own");
    let mut daemon = Daemon::try_run(command).await.unwrap();
    assert_eq!(daemon.address, SocketAddr::from(([127, 0, 0, 1], bound(&daemon.log()))));
    // It answers there.
    let _client = daemon.client().await;
    assert_eq!(daemon.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_for_another_process_is_left_alone() {
    let (dir, ca) = world();
    let daemon = Daemon::try_run(activated(&ca, dir.path(), "listening", "1")).await.unwrap();
    assert_eq!(daemon.address.ip().to_string(), "127.0.0.2");
    assert_ne!(daemon.address.port(), bound(&daemon.log()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_on_which_nobody_can_connect_is_refused_in_words() {
    let (dir, ca) = world();
    for (kind, said) in [("datagram", "no TCP listener"), ("connected", "Accept=no")] {
        let Err(told) = Daemon::try_run(activated(&ca, dir.path(), kind, "own")).await else {
            panic!("{kind} was taken");
        };
        assert!(told.contains(said), "{kind}: {told}");
    }
}

/// systemd's own program for this, if it is installed.
#[tokio::test(flavor = "multi_thread")]
async fn systemd_starts_it_at_the_first_connection() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        skip("systemd-socket-activate is not installed");
        return;
    }
    let (dir, ca) = world();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plain = larder(&ca, &dir.path().join("data"));
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={free}"));
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
            command.arg(format!("--setenv={}", name.to_string_lossy()));
        }
    }
    command.arg(plain.get_program()).arg("serve");
    // The first connection starts it, and is served like all later ones.
    let waking = tokio::spawn(async move {
        loop {
            if tokio::net::TcpStream::connect(free).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut daemon = Daemon::try_run(command).await.unwrap();
    waking.await.unwrap();
    let _client = daemon.client().await;
    daemon.logged("the service manager passed 1 listening socket").await;
    assert_eq!(daemon.terminate().await, Some(0));
}
