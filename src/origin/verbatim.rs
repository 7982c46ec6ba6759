//! Sends a request's URL byte for byte as the client sent it, where the HTTP library's URIs cannot represent it
//! ([`crate::target::raw`]).
//!
//! Such a request uses HTTP/1.1 on a connection of its own, and this wrapper unmasks the first line that is written.
//! Such URLs are rare, so the wrapper need not know where requests begin on a shared connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Duplex;
use crate::target::raw;

/// A connection whose first outgoing line is unmasked.
#[derive(Debug)]
pub(super) struct Verbatim<I> {
    io: I,
    /// The part of the first line that was written so far; `None` after it.
    line: Option<Vec<u8>>,
    /// The part of the unmasked line that is still to be sent.
    left: Vec<u8>,
}

impl<I: Duplex> Verbatim<I> {
    pub(super) const fn over(io: I) -> Self {
        Self { io, line: Some(Vec::new()), left: Vec::new() }
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.left.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.left.drain(..count)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Duplex> AsyncRead for Verbatim<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: Duplex> AsyncWrite for Verbatim<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(mut line) = this.line.take() else {
            ready!(this.poll_left(cx))?;
            return Pin::new(&mut this.io).poll_write(cx, bytes);
        };
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let count = end.unwrap_or(bytes.len());
        line.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if end.is_some() {
            this.left = raw::unmasked(&String::from_utf8_lossy(&line));
        } else {
            this.line = Some(line);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_left(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_left(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn the_first_line_is_unmasked_however_it_is_written_and_nothing_else() {
        let odd = raw::masked(b"/\xc3\xa9<\xff");
        let sent = format!("GET {odd} HTTP/1.1\r\nA: {odd}\r\n\r\n");
        let expected =
            [b"GET /\xc3\xa9<\xff HTTP/1.1\r\nA: ", odd.as_bytes(), b"\r\n\r\n"].concat();
        for step in [1, 3, 7, 1000] {
            let (near, mut far) = tokio::io::duplex(5);
            let mut near = Verbatim::over(near);
            let writing = async {
                for piece in sent.as_bytes().chunks(step) {
                    near.write_all(piece).await.unwrap();
                }
                near.shutdown().await.unwrap();
            };
            let mut came = Vec::new();
            let (_, ()) = tokio::join!(far.read_to_end(&mut came), writing);
            assert_eq!(came, expected);
        }
    }
}
