//! `larder env`: prints the variables that `larder exec` sets, to be set by other means.
//!
//! ```text
//! address ── of the running larder, as the reader reaches it: from this machine, or from a container on it
//! files   ── root bundle, apt.conf, wgetrc: below the data directory, or in --directory
//! format  ── depends on the reader; a value that the reader would misread is refused, never changed
//! ```

mod format;
#[cfg(test)]
mod readers;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use self::format::{Format, Printed};
use super::clients::{self, containers, java, place};
use super::{Invocation, OK, logging};

const EXAMPLES: &str = "\
Examples:
  eval \"$(larder env)\"                              this shell uses the running larder from now on
  larder env --format systemd --directory /etc/larder/clients > /etc/systemd/system/docker.service.d/larder.conf
  docker build $(larder env --format docker-args) .
  docker run $(larder env --format docker-run-args) debian:12 apt-get update
  larder env --format json | jq .variables";

/// Prints the variables that `larder exec` sets, for a shell or another reader. Needs a running larder.
#[derive(Args, Debug)]
#[command(before_help = EXAMPLES)]
pub(super) struct Env {
    /// The format of the output
    #[arg(long, value_enum, default_value_t = Format::Sh, value_name = "FORMAT")]
    format: Format,
    /// Where clients reach larder; by default the running larder's address, as the format's reader reaches it
    #[arg(long, value_name = "http://HOST:PORT", value_parser = proxy)]
    proxy: Option<String>,
    /// The directory for files that variables name, such as the root bundle; all users must be able to read it
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Env {
    /// Runs the command.
    pub(super) fn run(self, invocation: &mut Invocation) -> anyhow::Result<u8> {
        // Programs read the output: only warnings and errors are logged.
        logging::start(&invocation.loaded, Some("warn"));
        let data = &invocation.loaded.config.data;
        let Some(served) = invocation.served()? else {
            bail!(
                "no larder serves from {}; start one with `larder serve`, or run one command with `larder exec`",
                data.display()
            );
        };
        let status = served.status().context("cannot ask the running larder")?;
        let (proxy, machine) = match self.proxy {
            Some(proxy) => (proxy, None),
            None if self.format.is_for_containers() => containers::proxy_from(&status.listening)?,
            None => {
                let proxy = clients::proxy_at(&status.listening);
                (proxy.context("the running larder does not listen yet")?, None)
            }
        };
        let directory = match &self.directory {
            Some(directory) => given(directory)?,
            None => place::lasting(data, &invocation.environment)?,
        };
        // Readers of such a format read it again after a reboot, which empties temporary directories.
        if self.format.outlives_the_machine()
            && self.directory.is_none()
            && !directory.starts_with(data)
        {
            bail!(
                "{} is private to its user, and files for clients cannot stay in {}; name a directory that all \
                 users can read: --directory /etc/larder/clients",
                data.display(),
                directory.display()
            );
        }
        let Some(shown) = directory.to_str() else {
            bail!("{} is no UTF-8: name another --directory", directory.display());
        };
        let files =
            clients::Files::write(&directory, &proxy, &status.ca_pem, &invocation.environment)?;
        let mut variables = clients::variables(&proxy, &files, &invocation.environment);
        // Java's value consists of several words. For a format that cannot hold it, the variable is left out, and
        // Java bypasses larder.
        variables.retain(|(name, value)| *name != java::VARIABLE || self.format.holds(value));
        let printed = Printed { proxy: &proxy, machine, directory: shown, variables: &variables };
        write!(invocation.out, "{}", self.format.render(&printed)?)?;
        Ok(OK)
    }
}

/// The directory that the user chose; it is created.
fn given(directory: &Path) -> anyhow::Result<PathBuf> {
    let directory = std::path::absolute(directory)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// Parses the address of a larder. The scheme is required, because GitHub's runner refuses an address without one,
/// and it must be http, because larder has no TLS on this port.
pub(super) fn proxy(text: &str) -> Result<String, String> {
    let wrong = || format!("{text}: expected http://HOST:PORT");
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let host = url.host().ok_or_else(wrong)?;
    // `Url` omits a port that is the scheme's default.
    let port = url.port_or_known_default().ok_or_else(wrong)?;
    let bare = format!("http://{host}:{port}");
    let said = text.trim_end_matches('/');
    let as_said = url.scheme() == "http"
        && (said.eq_ignore_ascii_case(&bare) || format!("{said}:80").eq_ignore_ascii_case(&bare));
    if as_said { Ok(bare) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_nothing_behind_the_port() {
        assert_eq!(proxy("http://larder:3142/").as_deref(), Ok("http://larder:3142"));
        assert_eq!(proxy("http://[fd00::1]:3142").as_deref(), Ok("http://[fd00::1]:3142"));
        assert_eq!(proxy("http://Larder").as_deref(), Ok("http://larder:80"));
        for wrong in [
            "larder:3142",
            "larder",
            "https://larder:3142",
            "http://user:secret@larder:3142",
            "http://larder:3142/path",
            "http://larder:3142?x",
            "http://larder:port",
            "http://a b:1",
            "",
        ] {
            assert!(proxy(wrong).is_err(), "{wrong}");
        }
    }
}
