//! The larder that clients are examined against, asked as any client can ask it: over HTTP, without a proxy between.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::outcome::witness::Sight;

/// For each step of a question; larder answers them from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read: whoever listens at the address may be anybody.
const MAX_ANSWER: u64 = 1024 * 1024;

/// A larder that answered.
#[derive(Clone, Debug)]
pub(super) struct Larder {
    /// `http://HOST:PORT`.
    pub(super) proxy: String,
    /// The CAs that clients are to trust.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Larder {
    /// Asks the larder at `proxy` for its CA.
    pub(super) fn at(proxy: &str) -> Result<Self, String> {
        let pem = get(proxy, "/ca.crt")?;
        let blocks = pem::parse_many(&pem).map_err(|error| format!("{proxy}/ca.crt: {error}"))?;
        let roots: Vec<_> =
            blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
        if roots.is_empty() {
            return Err(format!("{proxy} answers, and is no larder: it has no CA at /ca.crt"));
        }
        Ok(Self { proxy: proxy.to_owned(), roots })
    }

    /// The SHA-256 of the CA, as `larder ca show` prints it.
    pub(super) fn fingerprint(&self) -> String {
        self.roots.first().map(|root| crate::authority::fingerprint(root)).unwrap_or_default()
    }

    /// What larder saw of a probe.
    pub(super) fn saw(&self, token: &str) -> Result<Vec<Sight>, String> {
        let body = get(&self.proxy, &format!("/-/probe/{token}"))?;
        serde_json::from_slice(&body).map_err(|error| {
            format!(
                "{} is a larder of another version, which knows no probes ({error})",
                self.proxy
            )
        })
    }
}

/// Gets one of larder's own pages.
fn get(proxy: &str, path: &str) -> Result<Vec<u8>, String> {
    let authority = proxy.trim_start_matches("http://");
    let failed = |error: std::io::Error| format!("no larder answers at {proxy}: {error}");
    let addresses = authority.to_socket_addrs().map_err(failed)?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                return converse(stream, authority, path)
                    .map_err(failed)
                    .and_then(|answer| body(&answer));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn converse(mut stream: TcpStream, authority: &str, path: &str) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the body ends with the connection, and is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The body of a 200.
fn body(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let parts = end.and_then(|end| answer.split_at_checked(end.saturating_add(4)));
    let line =
        String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default());
    match parts {
        Some((_, body)) if line.split(' ').nth(1) == Some("200") => Ok(body.to_vec()),
        _ => Err(format!("what answers there is no larder of this kind: {line:.80}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_body_of_a_200_is_taken() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nx\r\n\r\ny").unwrap(), b"x\r\n\r\ny");
        assert!(body(b"HTTP/1.1 404 Not Found\r\n\r\nx").unwrap_err().contains("404"));
        assert!(body(b"SSH-2.0-x\r\n").unwrap_err().contains("SSH"));
        assert!(body(b"").is_err());
    }
}
