//! apt's `Proxy-Auto-Detect`: before apt connects to a host, it asks a program for the proxy. What the program says overrides
//! `Acquire::https::Proxy` and the variables; an empty answer leaves them in force, and `DIRECT` means no proxy at all (apt.conf(5)).
//!
//! The set-up script makes apt ask `/etc/larder/proxy`, which says `DIRECT` while no larder with the right CA answers.

use std::path::Path;

use super::bypass::Set;
use super::client::{APT, Client};
use super::names::Probe;
use super::shell::Shell;

/// What such a program says for no proxy at all.
pub(super) const DIRECT: &str = "DIRECT";

/// What the set-up script writes for apt, and the program that it makes apt ask.
const SET_UP: &str = "/etc/apt/apt.conf.d/99larder";
const DETECTOR: &str = "/etc/larder/proxy";

/// What the program that `client` asks says of the probe's host. `None`: it asks none, or the answer was empty.
pub(super) async fn detected(client: &Client, shell: &Shell, probe: &Probe) -> Option<Set> {
    if client.name != APT {
        return None;
    }
    if !shell.runs {
        return set_up(shell);
    }
    let helper = shell.find(client.programs.first()?)?;
    // Its answer is translated.
    let mut plain = shell.clone();
    plain.variables.insert("LC_ALL".to_owned(), "C".to_owned());
    let url = format!("https://{}/", probe.suffix);
    let said = plain.said(&helper, &["auto-detect-proxy", &url]).await?;
    let value = answer(&said)?.to_owned();
    let words = ["dump", "--format", "%v%n", "Acquire::https::Proxy-Auto-Detect"];
    let name = match shell.find("apt-config") {
        Some(program) => shell.said(&program, &words).await.unwrap_or_default(),
        None => String::new(),
    };
    Some(set(if name.is_empty() { "a program" } else { &name }, &value))
}

/// The proxy in what `apt-helper auto-detect-proxy` prints: `Using proxy 'http://192.0.2.1:3142' for URL '…'`.
fn answer(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("Using proxy '")?;
    let (proxy, _) = rest.split_once('\'')?;
    Some(proxy).filter(|proxy| !proxy.is_empty())
}

/// The address in the program of the set-up script, where nothing can be run.
fn set_up(shell: &Shell) -> Option<Set> {
    let text = |path: &str| {
        let bytes = shell.read(Path::new(path))?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    if !text(SET_UP)?.contains(&format!("::Proxy-Auto-Detect \"{DETECTOR}\"")) {
        return None;
    }
    let program = text(DETECTOR)?;
    program.lines().find_map(|line| line.strip_prefix("address=")).map(|value| set(DETECTOR, value))
}

fn set(program: &str, value: &str) -> Set {
    Set { whence: format!("{program}, which it asks for its proxy,"), value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::client::CLIENTS;
    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let said = |proxy: &str| format!("Using proxy '{proxy}' for URL 'https://example.org/'");
        assert_eq!(answer(&said("http://192.0.2.1:3142")), Some("http://192.0.2.1:3142"));
        assert_eq!(answer(&said(DIRECT)), Some(DIRECT));
        assert_eq!(answer(&said("")), None);
        assert_eq!(answer("E: Invalid operation auto-detect-proxy"), None);
    }

    /// Issue 13 row 6: the file that larder's own script writes is read where apt cannot be run.
    #[tokio::test]
    async fn a_root_that_was_set_up_names_its_larder() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::store::write_durably(&path, text.as_bytes(), 0o644).unwrap();
        };
        let shell = Shell { root: Some(root.path().to_owned()), ..Shell::default() };
        let probe = Probe { suffix: "probe.example.org".to_owned(), index: None };
        let of = async |name: &str| {
            let client = CLIENTS.iter().find(|client| client.name == name).unwrap();
            detected(client, &shell, &probe).await.map(|set| set.value)
        };
        put(DETECTOR, "#!/bin/sh\naddress=http://192.0.2.1:3142\n");
        assert_eq!(of(APT).await, None, "the control: apt is not told to ask it");
        put(SET_UP, "Acquire::https::Proxy-Auto-Detect \"/etc/larder/proxy\";\n");
        assert_eq!(of(APT).await.as_deref(), Some("http://192.0.2.1:3142"));
        assert_eq!(of("curl").await, None);
    }
}
