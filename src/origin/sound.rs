//! Inspects HTTP/1 answers as they arrive, for what hyper's parser is configured to ignore or accepts without limit.
//!
//! Invalid header lines and values folded over several lines are accepted, because clients accept such answers. But a
//! line that determines where the body ends must be clean. If it is ambiguous (`Content-Length : 5` is a length to some
//! parsers and nothing to others), two readers see different bodies. Such an answer is refused before any byte of it is
//! used.
//!
//! Interim answers (1xx) may precede an answer, and the size line of a chunk may be padded. hyper discards both without
//! limit, so an origin that sends nothing else could keep a processor busy. Therefore they are counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::Duplex;
use super::error::Fault;
use crate::limits::INTERIM;
use crate::stream::framing::{Framing, Lost};
use crate::stream::{Watch, Watched, end_of_head};

/// Maximum length of a response's header in bytes, for HTTP/1.1 and HTTP/2.
pub(super) const MAX_HEADER: u32 = 128 * 1024;

/// The header fields that frame a body.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// Inspects an HTTP/1 connection to an origin, on which requests are sent one after the other.
#[derive(Debug)]
pub(super) struct Sound {
    state: State,
    /// Maximum number of interim answers before an answer.
    most: u32,
}

/// What the next bytes belong to.
#[derive(Debug)]
enum State {
    /// A response header.
    Head(Head),
    /// A chunked body.
    Body(Framing),
    /// Bytes before any request, or a body that needs no inspection.
    Through,
    /// Another protocol, after an upgrade.
    Switched,
}

/// What has arrived of the expected response header.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    /// Number of interim answers before it, and the bytes of those and of empty lines.
    interim: u32,
    earlier: usize,
    /// The body that was incomplete when a request was written: the next bytes may belong to it.
    body: Option<Framing>,
}

impl Sound {
    /// Wraps `io`. `most`: maximum number of interim answers before an answer.
    pub(super) fn over<I: Duplex>(io: I, most: usize) -> Watched<I, Self> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Watched { io, watch: Self { state: State::Through, most } }
    }

    /// Inspects received bytes.
    fn take(&mut self, mut came: &[u8]) -> Result<(), Fault> {
        while !came.is_empty() {
            match &mut self.state {
                State::Through | State::Switched => return Ok(()),
                State::Body(body) => {
                    match body.advance(came) {
                        Ok(_) if !body.is_over() => {}
                        Err(Lost::Endless) => {
                            return Err(Fault::Framing(Lost::Endless.why().into()));
                        }
                        // hyper reports the error.
                        Ok(_) | Err(Lost::Malformed) => self.state = State::Through,
                    }
                    return Ok(());
                }
                State::Head(head) => {
                    let lines = came.iter().take_while(|byte| b"\r\n".contains(byte)).count();
                    if head.bytes.is_empty() && lines > 0 && head.body.is_none() {
                        // hyper skips empty lines before a response header.
                        head.earlier += lines;
                        came = came.get(lines..).unwrap_or_default();
                    } else {
                        came = self.take_head(came)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Inspects more of a header; returns the bytes after it.
    fn take_head<'a>(&mut self, came: &'a [u8]) -> Result<&'a [u8], Fault> {
        let State::Head(head) = &mut self.state else { return Ok(came) };
        let before = head.bytes.len();
        head.bytes.extend_from_slice(came);
        let start = head.bytes.get(..7).unwrap_or(&head.bytes);
        if !b"HTTP/1.".starts_with(start) || before > MAX_HEADER as usize {
            // Not a header, or longer than hyper accepts.
            let Head { bytes, body, .. } = std::mem::take(head);
            self.state = body.map_or(State::Through, State::Body);
            self.take(&bytes)?;
            return Ok(&[]);
        }
        let Some(end) = end_of_head(&head.bytes, before) else {
            return Ok(&[]);
        };
        let is_chunked = check(head.bytes.get(..end).unwrap_or_default())?;
        let rest = came.get(end - before..).unwrap_or_default();
        let switches = head.bytes.get(9..12) == Some(b"101");
        if switches {
            self.state = State::Switched;
        } else if head.bytes.get(9) == Some(&b'1') {
            // After an interim answer comes another one, or the final answer.
            let (interim, earlier) = (head.interim + 1, head.earlier + end);
            INTERIM.note(interim.into());
            if interim > self.most || earlier > MAX_HEADER as usize {
                INTERIM.refused();
                return Err(Fault::Interim { count: interim });
            }
            *head = Head { interim, earlier, ..Head::default() };
        } else {
            self.state = if is_chunked { State::Body(Framing::CHUNKED) } else { State::Through };
        }
        Ok(rest)
    }
}

/// Whether a header announces a chunked body. Fails if a line that frames the body is not clean.
fn check(head: &[u8]) -> Result<bool, Fault> {
    let (mut frames, mut is_chunked) = (false, false);
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
        if frames && letters == FRAMING[1] {
            let last = value.rsplit(|byte| b",:".contains(byte)).next().unwrap_or_default();
            is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        }
    }
    Ok(is_chunked)
}

impl<I: Duplex> Watch<I> for Sound {
    fn poll_read(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        let came = buf.filled().get(start..).unwrap_or_default();
        let taken = self.take(came);
        Poll::Ready(taken.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault)))
    }

    fn writes(&mut self) {
        // A request, or the rest of one, is being written, so its answer is expected.
        match std::mem::replace(&mut self.state, State::Through) {
            State::Through => self.state = State::Head(Head::default()),
            State::Body(body) => {
                self.state = State::Head(Head { body: Some(body), ..Head::default() });
            }
            same @ (State::Head(_) | State::Switched) => self.state = same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 50;

    fn awaiting() -> Sound {
        Sound { state: State::Head(Head::default()), most: MOST }
    }

    fn judge(answer: &str) -> bool {
        let answer = answer.replace('\n', "\r\n");
        // In whatever pieces it arrives.
        let by_step = |step: usize| {
            let mut sound = awaiting();
            answer.as_bytes().chunks(step).all(|piece| sound.take(piece).is_ok())
        };
        let sound = by_step(answer.len());
        assert!(by_step(1) == sound && by_step(7) == sound, "{answer}");
        sound
    }

    /// Issue 10, attack `disk`: an origin that sends interim answers, or a chunk's size line, without end.
    #[test]
    fn what_hyper_drops_without_end_is_counted() {
        let final_one = "HTTP/1.1 200 OK\nTransfer-Encoding: x, chunked\n\n5\nhello\n";
        for interim in
            ["HTTP/1.1 103 E\nLink: <a>\n\n", "HTTP/1.1 100 C\n\n\n\n", "HTTP/1.0 199\n\n"]
        {
            let after = |count: usize| judge(&format!("{}{final_one}", interim.repeat(count)));
            assert!(after(50) && !after(51), "{interim}");
        }
        // A few long ones are too many as well.
        let long = format!("HTTP/1.1 103 E\nLink: <{}>\n\n", "a".repeat(50_000));
        assert!(judge(&format!("{}{final_one}", long.repeat(2))));
        assert!(!judge(&format!("{}{final_one}", long.repeat(3))));
        for endless in
            ["0".repeat(9000), format!("5;{}", "a".repeat(9000)), format!("5{}", " ".repeat(9000))]
        {
            assert!(!judge(&format!("{final_one}{endless}")));
            // The control: a body that is not chunked may contain anything.
            assert!(judge(&format!("HTTP/1.1 200 OK\n\n{endless}")));
        }
    }

    #[test]
    fn a_request_that_is_still_being_written_does_not_end_the_body_of_its_answer() {
        let mut sound = awaiting();
        sound.take(b"HTTP/1.1 413 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe").unwrap();
        Watch::<tokio::io::DuplexStream>::writes(&mut sound);
        sound.take(b"llo\r\n").unwrap();
        assert!(sound.take("0".repeat(9000).as_bytes()).is_err());
        // The control: the next answer is inspected like the first.
        let mut sound = awaiting();
        sound.take(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").unwrap();
        Watch::<tokio::io::DuplexStream>::writes(&mut sound);
        assert!(sound.take(b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n").is_err());
        // After an upgrade nothing is parsed as a header.
        let mut sound = awaiting();
        sound.take(b"HTTP/1.1 101 S\r\n\r\n").unwrap();
        Watch::<tokio::io::DuplexStream>::writes(&mut sound);
        assert!(sound.take(b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n").is_ok());
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
            assert!(!judge(&format!("\n\nHTTP/1.1 200 OK\n{framing}\n\n12345")), "{framing}");
            // A body may contain anything.
            assert!(judge(&format!("HTTP/1.1 200 OK\nA: b\n\nHTTP/1.1 200 OK\n{framing}\n\n")));
        }
    }
}
