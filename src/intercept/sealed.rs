//! The client's TLS stream. When a reply cuts the connection, its last record is a fatal alert.
//!
//! Every TLS library reports a fatal alert as an error, never as the end of the stream, and names the alert: `access_denied` (RFC
//! 8446 §6.2) if a body was refused, `internal_error` if an answer was broken off for another reason. The alternative, bytes that
//! are no TLS record, is also always an error, but looks like a broken network (`WRONG_VERSION_NUMBER`).
//!
//! rustls sends only alerts for errors that it found itself. So larder takes the session's keys when the stream is over, and
//! encrypts this one record itself (RFC 8446 §5.2). Where that is impossible, for example with TLS 1.2, the stream is corrupted
//! instead (`transport`).

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::transport::Transport;

/// The numbers of the alerts.
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;

/// The level of an alert that ends the session.
const FATAL: u8 = 2;

/// The content type of the inner record: alert.
const KIND: u8 = 21;

/// The length of the authentication tag, for every AEAD of TLS 1.3.
const TAG: usize = 16;

/// The client's TLS stream.
#[derive(Debug)]
pub(crate) struct Sealed(Option<TlsStream<Transport>>);

impl Sealed {
    pub(crate) fn new(stream: TlsStream<Transport>) -> Self {
        Self(Some(stream))
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TlsStream<Transport>>> {
        // The stream is there until this value is dropped.
        self.0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let Some(stream) = self.0.take() else { return };
        let (mut transport, session) = stream.into_inner();
        if transport.is_cut() {
            let alert = if transport.line().is_denied() { ACCESS_DENIED } else { INTERNAL_ERROR };
            transport.ends_with(last_words(session, alert));
        }
    }
}

/// The bytes of the session that are still to be sent, followed by the alert. `None`: the keys are not available.
fn last_words(mut session: ServerConnection, number: u8) -> Option<Vec<u8>> {
    if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) || session.is_handshaking() {
        return None;
    }
    let mut words = Vec::new();
    // rustls puts off its answer to a client's key update until the next write. Without that answer the client would not have the
    // key of the alert, and would see a damaged record.
    let _nothing = session.writer().write(&[]).ok()?;
    // A record of which the client has a part must be completed, or the alert would be taken for its rest.
    while session.wants_write() {
        session.write_tls(&mut words).ok()?;
    }
    let (sequence, secrets) = session.dangerous_extract_secrets().ok()?.tx;
    words.extend(alert(number, sequence, &secrets)?);
    Some(words)
}

/// The alert, encrypted as the record with number `sequence`.
fn alert(number: u8, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Vec<u8>> {
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (&aead::CHACHA20_POLY1305, key, iv)
        }
        _ => return None,
    };
    let mut nonce: [u8; aead::NONCE_LEN] = iv.as_ref().try_into().ok()?;
    for (byte, count) in nonce.iter_mut().rev().zip(sequence.to_be_bytes().into_iter().rev()) {
        *byte ^= count;
    }
    let mut sealed = vec![FATAL, number, KIND];
    let length = u8::try_from(sealed.len() + TAG).ok()?;
    // The outer header is that of TLS 1.2 application data.
    let header = [23, 3, 3, 0, length];
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).ok()?;
    Some([&header[..], &sealed].concat())
}

impl AsyncRead for Sealed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Sealed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig};

    use super::*;

    /// A client and a server whose handshake is complete.
    fn connected() -> (ClientConnection, ServerConnection) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["example.org".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        server.enable_secret_extraction = true;
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("example.org").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
            to_server(&mut client, &mut server);
            let mut words = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut words).unwrap();
            }
            hear(&mut client, &words).unwrap();
        }
        (client, server)
    }

    fn to_server(client: &mut ClientConnection, server: &mut ServerConnection) {
        let mut words = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut words).unwrap();
        }
        let mut rest = &*words;
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
    }

    fn hear(client: &mut ClientConnection, mut words: &[u8]) -> Result<(), rustls::Error> {
        while !words.is_empty() {
            client.read_tls(&mut words).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    /// The client updates its keys, and the server has written nothing since.
    #[test]
    fn the_alert_is_heard_behind_a_key_update_that_was_not_answered_yet() {
        for updates in 0..3 {
            let (mut client, mut server) = connected();
            for _ in 0..updates {
                client.refresh_traffic_keys().unwrap();
                to_server(&mut client, &mut server);
            }
            let words = last_words(server, ACCESS_DENIED).unwrap();
            let heard = hear(&mut client, &words).unwrap_err();
            let denied = rustls::Error::AlertReceived(AlertDescription::AccessDenied);
            assert_eq!(heard, denied, "{updates} updates");
        }
    }
}
