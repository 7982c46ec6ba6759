//! Byte streams that are inspected, or changed, before the HTTP library reads them.
//!
//! [`Watched`] passes all calls through in one place; a [`Watch`] does the inspection.

pub(crate) mod framing;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The end of the HTTP/1.1 header at the start of `bytes`, after its empty line. The caller knows that it does not end
/// within the first `seen` bytes.
pub(crate) fn end_of_head(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    let rest = bytes.get(from..)?;
    let ends = |at: usize| match rest.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    };
    let mut line_ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    line_ends.find_map(|(at, _)| ends(at)).map(|end| from + end)
}

/// Inspects a stream.
pub(crate) trait Watch<I: AsyncRead + Unpin>: Unpin {
    /// Reads from `io` and inspects what arrived.
    fn poll_read(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(io).poll_read(cx, buf)
    }

    /// Called before something is written.
    fn writes(&mut self) {}
}

/// A stream with its inspector.
#[derive(Debug)]
pub(crate) struct Watched<I, W> {
    pub(crate) io: I,
    pub(crate) watch: W,
}

impl<I: AsyncRead + Unpin, W: Watch<I>> AsyncRead for Watched<I, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, watch } = self.get_mut();
        watch.poll_read(io, cx, buf)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, W: Watch<I>> AsyncWrite for Watched<I, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch.writes();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch.writes();
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
