//! Reports larder's state to the service manager by the `sd_notify(3)` protocol over a datagram socket.
//!
//! ```text
//! listening ─▶ READY=1        SIGHUP ─▶ RELOADING=1 ─▶ READY=1        SIGTERM ─▶ STOPPING=1
//!                  └── WATCHDOG=1, twice in each watchdog timeout of the manager ───┘
//! ```
//!
//! Most machines set no socket for this; then nothing is sent. A message that cannot be sent is logged and dropped:
//! larder keeps serving, and the manager acts by its own timeouts.

use std::convert::Infallible;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as Unconnected};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tracing::{debug, warn};

use crate::clock::monotonic_micros;
use crate::config::service::Reports;

/// The connection to the service manager.
#[derive(Debug)]
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Connects to the manager's socket that `reports` names. Must be called inside a runtime.
    pub(super) fn of(reports: &Reports) -> Self {
        let socket = reports.socket.as_deref().and_then(|name| {
            connect(name)
                .inspect_err(|error| {
                    warn!(%error, socket = name, "cannot reach the service manager; larder reports nothing to it");
                })
                .ok()
        });
        Self { socket, watchdog: reports.watchdog }
    }

    /// Reports that larder serves clients, from now on or again. The manager displays `status`.
    pub(super) async fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}")).await;
    }

    /// Reports a reload; [`Self::ready`] follows. The protocol requires the time, to tell this reload from an earlier
    /// one.
    pub(super) async fn reloading(&self) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros())).await;
    }

    /// Reports that the shutdown has begun and may take `patience`, which can be longer than the manager's own
    /// timeout.
    pub(super) async fn stopping(&self, patience: Duration) {
        let patience = patience.as_micros();
        self.say(&format!(
            "STOPPING=1\nSTATUS=running transfers may end\nEXTEND_TIMEOUT_USEC={patience}"
        ))
        .await;
    }

    /// Sends watchdog messages until dropped, to show that the runtime still runs tasks.
    pub(super) async fn watch(&self) -> Infallible {
        let (Some(_), Some(span)) = (&self.socket, self.watchdog) else {
            return std::future::pending().await;
        };
        // Half the span, as sd_watchdog_enabled(3) advises: one message may be late.
        let mut ticks = tokio::time::interval(span / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.say("WATCHDOG=1").await;
        }
    }

    async fn say(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send(message.as_bytes()).await {
            debug!(%error, "the service manager does not listen");
        }
    }
}

/// Connects to a path, or to a name in Linux's abstract namespace, which is written with an `@`.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
        // For example vsock:CID:PORT, the manager outside of a virtual machine.
        None => return Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix socket")),
    };
    let socket = Unconnected::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn telling(socket: String, watchdog: Option<Duration>) -> Supervisor {
        Supervisor::of(&Reports { socket: Some(socket), watchdog })
    }

    #[tokio::test]
    async fn a_manager_is_told_at_a_path_and_under_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify").display().to_string();
        let name = format!("larder-test-{}", path.replace('/', "-"));
        let abstract_socket =
            Unconnected::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        abstract_socket.set_nonblocking(true).unwrap();
        for (manager, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone()),
            (UnixDatagram::from_std(abstract_socket).unwrap(), format!("@{name}")),
        ] {
            let supervisor = telling(socket, None);
            supervisor.ready("here").await;
            assert_eq!(heard(&manager).await, "READY=1\nSTATUS=here");
            supervisor.reloading().await;
            let text = heard(&manager).await;
            let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(micros.parse::<u64>().unwrap() <= monotonic_micros(), "{text}");
            supervisor.stopping(Duration::from_secs(30)).await;
            let text = heard(&manager).await;
            assert!(text.starts_with("STOPPING=1\n"), "{text}");
            assert!(text.ends_with("\nEXTEND_TIMEOUT_USEC=30000000"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_watchdog_is_fed_and_only_if_it_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let asked = telling(path.display().to_string(), Some(Duration::from_millis(2)));
        for _ in 0..2 {
            tokio::select! {
                never = asked.watch() => match never {},
                text = heard(&manager) => assert_eq!(text, "WATCHDOG=1"),
            }
        }
        drop(asked);
        let manager = UnixDatagram::bind(directory.path().join("other")).unwrap();
        let unasked = telling(directory.path().join("other").display().to_string(), None);
        tokio::select! {
            never = unasked.watch() => match never {},
            text = heard(&manager) => assert_eq!(text, "READY=1\nSTATUS=x"),
            () = async { unasked.ready("x").await; std::future::pending().await } => {}
        }
    }

    #[tokio::test]
    async fn a_manager_that_is_not_there_harms_nothing() {
        for socket in ["/does/not/exist", "@nobody-listens-here", "vsock:2:1", "relative", ""] {
            let supervisor = telling(socket.to_owned(), None);
            supervisor.ready("x").await;
            supervisor.stopping(Duration::ZERO).await;
        }
    }
}
