//! The client's TCP connection, with three things that a `TcpStream` cannot do.
//!
//! - Bytes that were looked at are read again, so deciding what a tunnel carries consumes nothing.
//! - It can end with an error. When a reply cuts its [`Line`], no further byte of an answer is written, and no `close_notify`,
//!   because after an orderly close several clients keep the truncated file as if it were complete. Without TLS the connection is
//!   reset. Under TLS a reset is not enough: Python up to 3.11.8 takes it for the end of the stream (python/cpython#115627). So
//!   the stream ends with a fatal alert (`sealed`). Where that is impossible, the stream is corrupted: bytes that are no TLS
//!   record follow. Every TLS library reports that as an error; then comes the reset.
//! - It holds the connection's seat (the permit under the connection limit, the token that a drain waits for, the place in the
//!   counter), so that the seat is freed with the socket, wherever an upgrade moved the socket.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::activity::Activity;
use super::visitors::Door;
use crate::outcome::metrics::OpenConnection;
use crate::reply::Line;

/// The most bytes that are looked at before it is decided what a tunnel carries. A `ClientHello` with post-quantum keys has 2
/// KiB; one record has up to 16 KiB and a header of 5 bytes (RFC 8446 §5.1).
pub(crate) const LOOK: usize = 16 * 1024 + 5;

/// Why a connection is open.
pub(crate) enum Entry {
    /// It belongs to a client that may use larder.
    Visitor(Arc<Door>),
    /// To tell the client that it may not use larder.
    Stranger { _permit: OwnedSemaphorePermit },
}

/// A place under the connection limit.
pub(crate) struct Seat {
    /// Frees the place.
    place: Entry,
    /// Lets a drain end.
    _open: TaskTrackerToken,
    /// Counts the connection.
    _counted: OpenConnection,
}

impl Seat {
    pub(crate) fn new(place: Entry, open: TaskTrackerToken, counted: OpenConnection) -> Self {
        Self { place, _open: open, _counted: counted }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seat")
    }
}

/// A client's TCP connection.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: TcpStream,
    /// Bytes that were looked at, and not yet read.
    unread: BytesMut,
    line: Line,
    activity: Arc<Activity>,
    /// Whether TLS is spoken over it.
    sealed: bool,
    /// What a cut TLS stream ends with; `None`: it is corrupted.
    last: Option<Vec<u8>>,
    seat: Option<Seat>,
}

impl Transport {
    pub(crate) fn new(socket: TcpStream, line: Line, seat: Seat) -> Self {
        let activity = match &seat.place {
            Entry::Visitor(door) => Arc::clone(door.activity()),
            Entry::Stranger { .. } => Arc::default(),
        };
        Self {
            socket,
            unread: BytesMut::new(),
            line,
            activity,
            sealed: false,
            last: None,
            seat: Some(seat),
        }
    }

    /// Notes that TLS is spoken over it from now on.
    pub(crate) fn seal(&mut self) {
        self.sealed = true;
    }

    /// Whether it must end with an error. A panic that unwinds through here in the middle of an answer counts as well, because
    /// the body is then truncated.
    pub(crate) fn is_cut(&self) -> bool {
        self.line.is_cut() || std::thread::panicking()
    }

    /// Sets the bytes with which it ends instead of being corrupted.
    pub(crate) fn ends_with(&mut self, last: Option<Vec<u8>>) {
        self.last = last;
    }

    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Puts back bytes that were read: they are read again, before all others.
    pub(crate) fn give_back(&mut self, bytes: &Bytes) {
        let rest = std::mem::take(&mut self.unread);
        self.unread.extend_from_slice(bytes);
        self.unread.extend_from_slice(&rest);
    }

    /// The bytes that have arrived and were not read.
    pub(crate) fn seen(&self) -> &[u8] {
        &self.unread
    }

    /// Waits for more bytes to look at; 0 when the client has ended or [`LOOK`] bytes are here. Cancelling it loses no bytes.
    pub(crate) async fn look(&mut self) -> io::Result<usize> {
        let room = LOOK.saturating_sub(self.unread.len());
        let count = self.socket.read_buf(&mut (&mut self.unread).limit(room)).await?;
        self.activity.note_read(count);
        Ok(count)
    }

    fn refuse_if_cut(&self) -> io::Result<()> {
        if self.line.is_cut() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a reply was cut"));
        }
        Ok(())
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buf.remaining());
            let mut part = self.unread.split_to(count);
            part.copy_to_slice(buf.initialize_unfilled_to(count));
            buf.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        self.activity.note_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.refuse_if_cut()?;
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.refuse_if_cut()?;
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, pieces);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.refuse_if_cut()?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.refuse_if_cut()?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Transport {
    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(count)) => self.activity.note_written(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.note_blocked(),
        }
        written
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if !self.is_cut() {
            return;
        }
        if self.sealed
            && let Ok(runtime) = Handle::try_current()
            && let Ok(socket) = self.socket.as_fd().try_clone_to_owned()
        {
            runtime.spawn(spoil(socket.into(), self.last.take(), self.seat.take()));
        } else {
            reset(&self.socket);
        }
    }
}

/// Resets the connection: with a linger time of zero, `close` discards unsent bytes and sends RST (tcp(7), `SO_LINGER`).
pub(crate) fn reset(socket: &TcpStream) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::warn!(%error, "a cut connection could not be reset");
    }
}

/// The bytes that follow the last byte of a cut TLS stream that cannot end with an alert. They are longer than one record (RFC
/// 8446 §5.2: 5 + 2^14 + 256 bytes), so that the next record is complete and invalid, whether the stream stops between records or
/// within one.
static SPOIL: [u8; 17 * 1024] = [0; 17 * 1024];

/// How long a client may take to read up to the corrupted place. Everything before that was already sent.
const SPOILING: Duration = Duration::from_secs(30);

/// Ends a cut TLS stream so that its client reports an error.
async fn spoil(socket: std::net::TcpStream, last: Option<Vec<u8>>, seat: Option<Seat>) {
    let Ok(mut socket) = TcpStream::from_std(socket) else {
        return;
    };
    let spoiling = async {
        socket.write_all(last.as_deref().unwrap_or(&SPOIL)).await?;
        socket.shutdown().await?;
        // The client closes when it has seen the error.
        let mut heard = [0; 1024];
        while socket.read(&mut heard).await? > 0 {}
        io::Result::Ok(())
    };
    if !matches!(tokio::time::timeout(SPOILING, spoiling).await, Ok(Ok(()))) {
        reset(&socket);
    }
    drop(seat);
}
