//! `larder exec --proxy URL`: uses a team's larder on another machine for one command.
//!
//! Its CA is fetched over plain HTTP, like everything that clients request from a larder before they trust it. So the
//! CA is pinned: by `--ca-sha256`, which the operator passes on, or by the CA that was seen the first time, which is
//! stored below the user's configuration directory. A CA that is not pinned is given to no command.
//!
//! The command's clients connect to a relay on loopback, which adds the job's token to the first request of each
//! connection. So the proxy URL needs no login, which several clients do not support, and only this job's requests
//! are counted.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::blocking;
use crate::admin::{Answer, Question};
use crate::authority::fingerprint;
use crate::cli::Invocation;
use crate::cli::remote;
use crate::config::environment::Environment;
use crate::outcome::job::{Tally, login};

/// The longest list of CAs that is read.
const MAX_CA: usize = 1 << 20;

/// The longest request line that the relay reads.
const LONGEST_LINE: u64 = 64 << 10;

/// A larder on another machine.
#[derive(Clone, Debug)]
pub(super) struct Team {
    /// `http://HOST:PORT`.
    pub(super) proxy: String,
    /// The addresses that its name resolves to.
    pub(super) addresses: Vec<SocketAddr>,
    /// Those of its CAs that are pinned.
    pub(super) ca_pem: String,
}

impl Team {
    /// The larder at `proxy`, if its CA is pinned: by `given`, or by the one that was seen the first time.
    pub(super) async fn at(
        proxy: &str,
        given: Option<&str>,
        invocation: &Invocation,
    ) -> anyhow::Result<Self> {
        let file = pin_file(proxy, &invocation.environment);
        let (proxy, given) = (proxy.to_owned(), given.map(bare));
        blocking(move || {
            let pem = remote::get(&proxy, "/ca.crt", MAX_CA).map_err(|why| anyhow::anyhow!(why))?;
            let authority = proxy.trim_start_matches("http://");
            let addresses = authority.to_socket_addrs()?.collect();
            let ca_pem = pinned(&proxy, &pem, given.as_deref(), file)?;
            Ok(Self { proxy, addresses, ca_pem })
        })
        .await
    }

    /// Opens the relay for a job. It runs until this process ends.
    pub(super) async fn relay(&self, token: &str) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (addresses, login) = (self.addresses.clone(), login(token));
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Most likely the process is out of descriptors.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (addresses, login) = (addresses.clone(), login.clone());
                tokio::spawn(async move {
                    if let Err(error) = carry(client, &addresses, &login).await {
                        tracing::debug!(%error, "a connection to the team's larder ended");
                    }
                });
            }
        });
        Ok(address)
    }

    /// The larder's counters of a job.
    pub(super) async fn tally(&self, token: &str) -> anyhow::Result<Tally> {
        let (proxy, token) = (self.proxy.clone(), token.to_owned());
        blocking(move || {
            let tally = remote::ask(&proxy, &Question::Tally { token })?.into_iter().next();
            // The larder knows no job before its first request.
            Ok(if let Some(Answer::Tally(tally)) = tally { *tally } else { Tally::default() })
        })
        .await
    }
}

/// Relays one connection, and adds the job's login after its first request line.
async fn carry(client: TcpStream, addresses: &[SocketAddr], login: &str) -> io::Result<()> {
    let mut larder = TcpStream::connect(addresses).await?;
    larder.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut client = BufReader::new(client);
    let mut line = Vec::new();
    (&mut client).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    larder.write_all(&line).await?;
    if line.ends_with(b"\n") {
        larder.write_all(format!("Proxy-Authorization: {login}\r\n").as_bytes()).await?;
    }
    let copied = tokio::io::copy_bidirectional(&mut client, &mut larder).await;
    if copied.is_err() {
        // A reset on one side resets the other: clients take a quiet close for the end of a body.
        for socket in [client.get_ref(), &larder] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
    }
    copied.map(drop)
}

/// The file in which the pin for the larder at `proxy` is stored.
fn pin_file(proxy: &str, environment: &Environment) -> Option<PathBuf> {
    let home = || Some(PathBuf::from(environment.get("HOME")?).join(".config"));
    let directory = environment.get("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
    let name: String = proxy
        .trim_start_matches("http://")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
        .collect();
    Some(directory.join("larder/pins").join(name))
}

/// The hexadecimal digits of a fingerprint, in whatever form it was written.
fn bare(fingerprint: &str) -> String {
    fingerprint.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase()
}

/// The CAs among `pem` that are pinned. If none was given or stored yet, all are, and are stored in `file`.
fn pinned(
    proxy: &str,
    pem: &[u8],
    given: Option<&str>,
    file: Option<PathBuf>,
) -> anyhow::Result<String> {
    let blocks = pem::parse_many(pem).with_context(|| format!("{proxy}/ca.crt"))?;
    let shown: Vec<(String, String)> = blocks
        .iter()
        .map(|block| {
            let certificate = CertificateDer::from(block.contents());
            (fingerprint(&certificate), pem::encode(block))
        })
        .collect();
    if shown.is_empty() {
        bail!("{proxy} answers, but is no larder: it has no CA at /ca.crt");
    }
    let known = match given {
        Some(given) => Some(vec![given.to_owned()]),
        None => remembered(file.as_ref())?,
    };
    let Some(known) = known else {
        let seen: Vec<&str> = shown.iter().map(|(sha256, _)| &**sha256).collect();
        tracing::warn!(
            "the CA of {proxy} is seen for the first time, and came by plain http: an attacker on the path may have replaced it. \
             Compare it with `larder ca show` there, or give that with --ca-sha256; it shows {}",
            seen.join(" and ")
        );
        if let Some(file) = file {
            remember(&file, &seen);
        }
        return Ok(shown.into_iter().map(|(_, pem)| pem).collect());
    };
    let is_known = |sha256: &str| known.contains(&bare(sha256));
    let trusted: String =
        shown.iter().filter(|(sha256, _)| is_known(sha256)).map(|(_, pem)| &**pem).collect();
    if !trusted.is_empty() {
        return Ok(trusted);
    }
    let seen: Vec<&str> = shown.iter().map(|(sha256, _)| &**sha256).collect();
    let mend = match (given, &file) {
        (None, Some(file)) => format!(
            "if it has a new CA, compare it with `larder ca show` there and remove {}",
            file.display()
        ),
        _ => "compare it with `larder ca show` there, and give that with --ca-sha256".to_owned(),
    };
    bail!(
        "the CA of {proxy} is not the one that is pinned: it shows {}; {mend}",
        seen.join(" and ")
    )
}

/// The stored fingerprints.
fn remembered(file: Option<&PathBuf>) -> anyhow::Result<Option<Vec<String>>> {
    let Some(file) = file else { return Ok(None) };
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.lines().map(bare).collect())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn remember(file: &std::path::Path, seen: &[&str]) {
    let text = format!("{}\n", seen.join("\n"));
    let written = match file.parent() {
        Some(directory) => std::fs::create_dir_all(directory)
            .and_then(|()| crate::store::write_durably(file, text.as_bytes(), 0o644)),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    if let Err(error) = written {
        tracing::warn!("the CA cannot be pinned in {}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        (fingerprint(made.der()), made.pem())
    }

    #[test]
    fn a_ca_that_is_not_the_pinned_one_is_trusted_by_no_command() {
        let home = tempfile::tempdir().unwrap();
        let environment = [("HOME", home.path().to_str().unwrap())].into_iter().collect();
        let proxy = "http://larder.example.org:3142";
        let file = || pin_file(proxy, &environment);
        let ((one, one_pem), (other, other_pem)) = (certificate(), certificate());
        let ask = |pem: &str, given: Option<&str>| {
            pinned(proxy, pem.as_bytes(), given.map(bare).as_deref(), file())
        };
        assert_eq!(bare(&one).len(), 64);
        // Trusted on first use, and from then on.
        assert!(ask(&one_pem, None).unwrap().contains("BEGIN CERTIFICATE"));
        assert!(ask(&one_pem, None).is_ok());
        let refused = ask(&other_pem, None).unwrap_err().to_string();
        assert!(refused.contains(&other) && refused.contains("larder/pins"), "{refused}");
        // A CA beside the pinned one is not trusted.
        let both = format!("{one_pem}{other_pem}");
        assert_eq!(ask(&both, None).unwrap().matches("BEGIN").count(), 1);
        // A given fingerprint counts, not the stored one.
        assert!(ask(&other_pem, Some(&other)).is_ok());
        assert!(ask(&one_pem, Some(&other.to_ascii_lowercase().replace(':', ""))).is_err());
        assert!(pinned(proxy, b"no certificate", None, None).is_err());
    }
}
