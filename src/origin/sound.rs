//! Looks at the heads of answers as they came, for what hyper's parser is told to overlook.
//!
//! Header lines that are none, and values in several lines, are an origin's own affair: clients take such answers, and so
//! does larder. But a line that decides where the body ends must be clean: if it can be read in two ways
//! (`Content-Length : 5` is a length to some and nothing to others), two readers see two bodies. Then the answer is
//! refused, before a byte of it is believed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Duplex;
use super::error::Fault;
use super::fills::MAX_HEADER;

/// The fields by which a body is framed.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// An HTTP/1 connection to an origin, on which requests are sent one after the other.
#[derive(Debug)]
pub(super) struct Sound<I> {
    io: I,
    /// What has come of the head that is awaited; `None` behind it.
    head: Option<Vec<u8>>,
}

impl<I: Duplex> Sound<I> {
    pub(super) const fn over(io: I) -> Self {
        Self { io, head: None }
    }

    /// Takes what came.
    fn take(&mut self, mut came: &[u8]) -> Result<(), Fault> {
        while !came.is_empty()
            && let Some(mut head) = self.head.take()
        {
            let before = head.len();
            head.extend_from_slice(came);
            let start = head.get(..7).unwrap_or(&head);
            if !b"HTTP/1.".starts_with(start) || before > MAX_HEADER as usize {
                // No head, or none that hyper would take.
                return Ok(());
            }
            let Some(end) = end_of(&head, before) else {
                self.head = Some(head);
                return Ok(());
            };
            check(head.get(..end).unwrap_or_default())?;
            // Behind an interim answer comes the final one; 101 is final.
            let is_interim = head.get(9) == Some(&b'1') && head.get(9..12) != Some(b"101");
            self.head = is_interim.then(Vec::new);
            came = came.get(end - before..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Where the head ends; not within the first `seen` bytes.
fn end_of(head: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    let rest = head.get(from..)?;
    let ends = |at: usize| match rest.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    };
    let found =
        rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| ends(at));
    found.map(|end| from + end)
}

/// Whether the lines of a head that frame its body are clean.
fn check(head: &[u8]) -> Result<(), Fault> {
    let mut frames = false;
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if frames && (line.starts_with(b" ") || line.starts_with(b"\t")) {
            return Err(Fault::Framing(
                "the field that frames its body goes on in a second line".into(),
            ));
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) =
            line.split_at_checked(colon.unwrap_or(line.len())).unwrap_or((line, &[]));
        let letters: Vec<u8> = name
            .iter()
            .filter(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
            .map(u8::to_ascii_lowercase)
            .collect();
        frames = FRAMING.contains(&&*letters);
        let is_clean = letters.len() == name.len()
            && value.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
            && colon.is_some();
        if frames && !is_clean {
            return Err(Fault::Framing(
                "the field that frames its body can be read in two ways".into(),
            ));
        }
    }
    Ok(())
}

impl<I: Duplex> AsyncRead for Sound<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let came = buf.filled().get(start..).unwrap_or_default();
        let taken = this.take(came);
        Poll::Ready(taken.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault)))
    }
}

impl<I: Duplex> AsyncWrite for Sound<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // What is written is a request, or the rest of one: its answer is awaited.
        self.head.get_or_insert_default();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.head.get_or_insert_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(answer: &str) -> bool {
        let answer = answer.replace('\n', "\r\n");
        // However it comes.
        let by_step = |step: usize| {
            let (near, _far) = tokio::io::duplex(1);
            let mut sound = Sound { io: near, head: Some(Vec::new()) };
            answer.as_bytes().chunks(step).all(|piece| sound.take(piece).is_ok())
        };
        let sound = by_step(answer.len());
        assert!(by_step(1) == sound && by_step(7) == sound, "{answer}");
        sound
    }

    #[test]
    fn what_frames_a_body_is_clean_and_nothing_else_matters() {
        for odd in
            ["Bad Name: x", "none", "A: b\n c", "A : b", "A: \x01", "X-Content-Length : 5", ": x"]
        {
            assert!(judge(&format!("HTTP/1.1 200 OK\n{odd}\nContent-Length: 5\n\n12345")), "{odd}");
        }
        for framing in [
            "Content-Length : 5",
            "content-length\t: 5",
            "Content-Length\x0b: 5",
            "Content-Length: 5\x01",
            "Content-Length:\n 5",
            " Content-Length: 5",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding: x\n\tchunked",
            "Transfer-\x01Encoding: chunked",
        ] {
            assert!(!judge(&format!("HTTP/1.1 200 OK\nA: b\n{framing}\n\n12345")), "{framing}");
            let behind = format!("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n{framing}\n\n12345");
            assert!(!judge(&behind), "{framing}");
            // A body says what it likes.
            assert!(judge(&format!("HTTP/1.1 200 OK\nA: b\n\nHTTP/1.1 200 OK\n{framing}\n\n")));
        }
    }
}
