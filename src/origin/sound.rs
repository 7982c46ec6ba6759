//! Looks at the answers of HTTP/1 as they come, for what hyper's parser is told to overlook, or takes without end.
//!
//! Header lines that are none, and values in several lines, are an origin's own affair: clients take such answers, and so
//! does larder. But a line that decides where the body ends must be clean: if it can be read in two ways
//! (`Content-Length : 5` is a length to some and nothing to others), two readers see two bodies. Then the answer is
//! refused, before a byte of it is believed.
//!
//! Interim answers (1xx) may come before an answer, and the line with the size of a chunk may be padded. hyper drops both as fast
//! as they come, without end, and an origin that sends nothing else would take a processor for itself. So they are counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::Duplex;
use super::error::Fault;
use super::fills::MAX_HEADER;
use crate::limits::INTERIM;
use crate::stream::framing::{Framing, Lost};
use crate::stream::{Watch, Watched, end_of_head};

/// The fields by which a body is framed.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// Looks at an HTTP/1 connection to an origin, on which requests are sent one after the other.
#[derive(Debug)]
pub(super) struct Sound {
    state: State,
    /// Interim answers before an answer.
    most: u32,
}

/// What comes next.
#[derive(Debug)]
enum State {
    /// A head.
    Head(Head),
    /// A chunked body.
    Body(Framing),
    /// What no request asked for yet, or a body that frames itself.
    Through,
    /// Another protocol.
    Switched,
}

/// What has come of the head that is awaited.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    /// Interim answers before it, and how many bytes they and empty lines took.
    interim: u32,
    earlier: usize,
    /// A body that was still coming when something was written: what comes may be more of it.
    body: Option<Framing>,
}

impl Sound {
    /// Over `io`. `most`: how many interim answers may come before an answer.
    pub(super) fn over<I: Duplex>(io: I, most: usize) -> Watched<I, Self> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Watched { io, watch: Self { state: State::Through, most } }
    }

    /// Takes what came.
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
                        // hyper says what is wrong with it.
                        Ok(_) | Err(Lost::Malformed) => self.state = State::Through,
                    }
                    return Ok(());
                }
                State::Head(head) => {
                    let lines = came.iter().take_while(|byte| b"\r\n".contains(byte)).count();
                    if head.bytes.is_empty() && lines > 0 && head.body.is_none() {
                        // hyper skips empty lines before a head.
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

    /// Takes more of a head; gives back what comes behind it.
    fn take_head<'a>(&mut self, came: &'a [u8]) -> Result<&'a [u8], Fault> {
        let State::Head(head) = &mut self.state else { return Ok(came) };
        let before = head.bytes.len();
        head.bytes.extend_from_slice(came);
        let start = head.bytes.get(..7).unwrap_or(&head.bytes);
        if !b"HTTP/1.".starts_with(start) || before > MAX_HEADER as usize {
            // No head, or none that hyper would take.
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
            // Behind an interim answer comes another, or the final one.
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

/// Whether a head says that its body is chunked. The lines that frame the body must be clean.
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
        // What is written is a request, or the rest of one: its answer is awaited.
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
        // However it comes.
        let by_step = |step: usize| {
            let mut sound = awaiting();
            answer.as_bytes().chunks(step).all(|piece| sound.take(piece).is_ok())
        };
        let sound = by_step(answer.len());
        assert!(by_step(1) == sound && by_step(7) == sound, "{answer}");
        sound
    }

    /// Issue 10, attack `disk`: an origin that sends interim answers, or a chunk's size, without end.
    #[test]
    fn what_hyper_drops_without_end_is_counted() {
        let final_one = "HTTP/1.1 200 OK\nTransfer-Encoding: x, chunked\n\n5\nhello\n";
        for interim in
            ["HTTP/1.1 103 E\nLink: <a>\n\n", "HTTP/1.1 100 C\n\n\n\n", "HTTP/1.0 199\n\n"]
        {
            let after = |count: usize| judge(&format!("{}{final_one}", interim.repeat(count)));
            assert!(after(50) && !after(51), "{interim}");
        }
        // Few and long ones are too many as well.
        let long = format!("HTTP/1.1 103 E\nLink: <{}>\n\n", "a".repeat(50_000));
        assert!(judge(&format!("{}{final_one}", long.repeat(2))));
        assert!(!judge(&format!("{}{final_one}", long.repeat(3))));
        for endless in
            ["0".repeat(9000), format!("5;{}", "a".repeat(9000)), format!("5{}", " ".repeat(9000))]
        {
            assert!(!judge(&format!("{final_one}{endless}")));
            // The control: a body that is not chunked says what it likes.
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
        // The control: the next answer is looked at as the first.
        let mut sound = awaiting();
        sound.take(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").unwrap();
        Watch::<tokio::io::DuplexStream>::writes(&mut sound);
        assert!(sound.take(b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n").is_err());
        // What another protocol says is nobody's head.
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
            // A body says what it likes.
            assert!(judge(&format!("HTTP/1.1 200 OK\nA: b\n\nHTTP/1.1 200 OK\n{framing}\n\n")));
        }
    }
}
