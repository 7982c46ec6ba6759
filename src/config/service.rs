//! What a service manager passes to a service: sockets that already listen, and the name of a socket for
//! notifications.
//!
//! Both are in the environment: `LISTEN_FDS` and `LISTEN_PID` (`sd_listen_fds(3)`), `NOTIFY_SOCKET` (`sd_notify(3)`),
//! `WATCHDOG_USEC` and `WATCHDOG_PID` (`sd_watchdog_enabled(3)`). The command sends the notifications.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;

use super::environment::Environment;

/// The notifications that the service manager wants from this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// The socket: a path, or a name in the abstract namespace after an `@`.
    pub socket: Option<String>,
    /// The watchdog timeout: without a message for this long, the manager considers this process stuck.
    pub watchdog: Option<Duration>,
}

impl Reports {
    /// What `environment` asks for. Variables meant for another process, for example a shell in between, are ignored.
    pub fn wanted(environment: &Environment) -> Self {
        let watchdog = environment
            .get("WATCHDOG_USEC")
            .and_then(|text| text.parse().ok())
            .filter(|micros| *micros > 0 && is_ours(environment.get("WATCHDOG_PID").or(Some(""))))
            .map(Duration::from_micros);
        Self { socket: environment.get("NOTIFY_SOCKET").map(str::to_owned), watchdog }
    }
}

/// The sockets that the service manager opened for this process, in its order; none if there is no manager. Must be
/// called before a second thread starts: it removes the variables, so that no child process uses the sockets.
pub fn listeners(environment: &Environment) -> io::Result<Vec<TcpListener>> {
    // listenfd also accepts sockets without a process number, for programs that are started through others. A larder
    // started inside another service would then take that service's sockets.
    if !is_ours(environment.get("LISTEN_PID")) {
        return Ok(Vec::new());
    }
    let mut passed = ListenFd::from_env();
    (0..passed.len()).filter_map(|index| passed.take_tcp_listener(index).transpose()).collect()
}

/// Whether a variable names this process, or is set but empty.
fn is_ours(process: Option<&str>) -> bool {
    process.is_some_and(|id| id.is_empty() || id == std::process::id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Reports {
        Reports::wanted(&pairs.iter().copied().collect())
    }

    #[test]
    fn nothing_is_wanted_without_a_service_manager() {
        assert_eq!(wanted(&[]), Reports::default());
        assert_eq!(wanted(&[("NOTIFY_SOCKET", "")]), Reports::default());
    }

    #[test]
    fn a_watchdog_for_another_process_is_not_fed() {
        let own = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        assert_eq!(wanted(&[("WATCHDOG_USEC", "1000000")]).watchdog, second);
        assert_eq!(
            wanted(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", &own)]).watchdog,
            second
        );
        for pairs in [
            [("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "1")],
            [("WATCHDOG_USEC", "0"), ("WATCHDOG_PID", &own)],
            [("WATCHDOG_USEC", "soon"), ("WATCHDOG_PID", &own)],
        ] {
            assert_eq!(wanted(&pairs).watchdog, None, "{pairs:?}");
        }
    }

    #[test]
    fn sockets_for_another_process_are_not_taken() {
        for pairs in [&[("LISTEN_FDS", "1")][..], &[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]] {
            assert!(listeners(&pairs.iter().copied().collect()).unwrap().is_empty(), "{pairs:?}");
        }
    }
}
