//! Recognises what a tunnel carries by its first bytes.
//!
//! No I/O: bytes in, judgement out. [`judge`] is called again with more bytes while it returns [`First::More`].

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::server::Acceptor;

use super::transport::LOOK;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Not enough bytes to decide.
    More,
    /// A `ClientHello`.
    Tls(Hello),
    /// The head of an HTTP request, or HTTP/2's preface.
    Http {
        /// Whether it is HTTP/2.
        h2: bool,
    },
    /// None of these.
    Unknown,
}

/// What a `ClientHello` contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The server name (SNI).
    pub(crate) sni: Option<String>,
    /// Why larder cannot serve this client; `None` if it can.
    pub(crate) foreign: Option<&'static str>,
}

/// HTTP/2's connection preface (RFC 9113 §3.4), the part that looks like a request line.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Judges the bytes that have arrived so far.
pub(crate) fn judge(seen: &[u8]) -> First {
    match seen {
        [] | [0x16] => First::More,
        // A handshake record of SSL 3 or TLS (RFC 8446 §5.1).
        [0x16, 0x03, ..] => judge_hello(seen),
        [first, ..] if first.is_ascii_alphabetic() => judge_line(seen),
        _ => First::Unknown,
    }
}

fn judge_hello(seen: &[u8]) -> First {
    let mut acceptor = Acceptor::default();
    let mut rest = seen;
    while !rest.is_empty() {
        if !matches!(acceptor.read_tls(&mut rest), Ok(1..)) {
            return First::Unknown;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return First::Tls(Hello {
                    sni: hello.server_name().map(Into::into),
                    foreign: foreign(&hello),
                });
            }
            // The hello is damaged, or too old for rustls.
            Err(_) => return First::Unknown,
        }
    }
    if seen.len() >= LOOK { First::Unknown } else { First::More }
}

/// Why larder must not terminate this TLS: its ALPN names no HTTP, or it shares no cipher suite with larder. Both are found
/// before a byte is consumed.
fn foreign(hello: &rustls::server::ClientHello<'_>) -> Option<&'static str> {
    if let Some(mut protocols) = hello.alpn()
        && !protocols.any(|protocol| protocol == b"h2" || protocol == b"http/1.1")
    {
        return Some("its TLS announces another protocol than HTTP");
    }
    let shared = ALL_CIPHER_SUITES
        .iter()
        .map(SupportedCipherSuite::suite)
        .any(|suite| hello.cipher_suites().contains(&suite));
    (!shared).then_some("its TLS has no cipher suite in common with larder's")
}

/// Judges a request line (RFC 9112 §3). The whole line is needed, because SSH and SMTP begin with words too.
fn judge_line(seen: &[u8]) -> First {
    let line = match seen.iter().position(|byte| *byte == b'\n') {
        Some(end) => seen.get(..end).unwrap_or_default(),
        // A method without a line end within the limit is served as HTTP, which answers 414.
        None if seen.len() >= LOOK => {
            return if method(seen).is_some() { First::Http { h2: false } } else { First::Unknown };
        }
        // No method is longer than this.
        None if seen.len() > 32 && method(seen).is_none() => return First::Unknown,
        None => return First::More,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line == PREFACE {
        return First::Http { h2: true };
    }
    let versioned = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    if versioned && method(line).is_some() { First::Http { h2: false } } else { First::Unknown }
}

/// The method: a token before a space (RFC 9110 §5.6.2).
fn method(line: &[u8]) -> Option<&[u8]> {
    let word = line.split(|byte| *byte == b' ').next()?;
    let token = word.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b));
    (token && word.len() < line.len()).then_some(word)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from(name).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_is_told_at_its_last_byte_and_not_before() {
        let bytes = hello("example.org", &[b"h2", b"http/1.1"]);
        for end in 0..bytes.len() {
            assert_eq!(judge(&bytes[..end]), First::More, "{end}");
        }
        assert_eq!(
            judge(&bytes),
            First::Tls(Hello { sni: Some("example.org".into()), foreign: None })
        );
    }

    #[test]
    fn a_hello_without_alpn_or_name_is_ours() {
        assert_eq!(judge(&hello("192.0.2.1", &[])), First::Tls(Hello { sni: None, foreign: None }));
    }

    #[test]
    fn tls_that_announces_another_protocol_is_foreign() {
        let First::Tls(hello) = judge(&hello("example.org", &[b"imap", b"xmpp-client"])) else {
            panic!("a hello");
        };
        assert!(hello.foreign.is_some());
    }

    #[test]
    fn a_damaged_or_endless_hello_is_unknown() {
        let mut bytes = hello("example.org", &[]);
        bytes[5] = 0xff;
        assert_eq!(judge(&bytes), First::Unknown);
        let mut endless = vec![0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff];
        endless.resize(LOOK, 0);
        assert_eq!(judge(&endless), First::Unknown);
    }

    #[test]
    fn request_lines_are_http_and_other_words_are_not() {
        let http = First::Http { h2: false };
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], http.clone()),
            (b"get / HTTP/1.0\n", http.clone()),
            (b"PROPFIND /x HTTP/1.1\r\nHost: a", http.clone()),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", First::Http { h2: true }),
            (b"GET /", First::More),
            (b"G", First::More),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", First::Unknown),
            (b"EHLO example.org\r\n", First::Unknown),
            (b"GET / \r\n", First::Unknown),
            (b"HTTP/1.1\r\n", First::Unknown),
            (b"\x00\x01", First::Unknown),
            (b"\x16\x01", First::Unknown),
            (b" GET / HTTP/1.1\r\n", First::Unknown),
        ] {
            assert_eq!(judge(bytes), expected, "{}", bytes.escape_ascii());
        }
        let word = "a".repeat(40);
        assert_eq!(judge(word.as_bytes()), First::Unknown);
        let long = format!("GET /{}", "a".repeat(LOOK));
        assert_eq!(judge(&long.as_bytes()[..LOOK]), http);
    }
}
