//! Finds the end of an HTTP/1.1 body, so that the start of the next message is known.
//!
//! Follows hyper's parsing of the same bytes step by step. Bytes of a request are passed on only as far as they were
//! followed here, so the two can never disagree about where the next request begins (request smuggling). A body that
//! cannot be followed is an error, and ends the connection.
//!
//! hyper accepts any number of zeros and blanks before the end of a chunk's size, a byte at a time. An attacker who
//! sends them for ever would keep a processor busy without sending a body, so the size line has a limit here.

use std::io;

/// Maximum length of a chunk's size line in bytes. Servers pad it to eight or ten; signatures in a chunk extension take
/// some hundreds.
const MAX_LINE: u32 = 4096;

/// Why a body cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is not framed as RFC 9112 requires.
    Malformed,
    /// A chunk's size line is too long.
    Endless,
}

impl Lost {
    /// The error text.
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Malformed => "a chunked body that cannot be followed",
            Self::Endless => "the size of a chunk takes more than 4096 bytes",
        }
    }
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        Self::new(io::ErrorKind::InvalidData, lost.why())
    }
}

/// A body, as far as it has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes are still to come.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunks(Chunks),
}

/// A chunked body: the position of the next byte, and the length of the current size line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    at: ChunkPosition,
    line: u32,
}

/// The position of the next byte in a chunked body.
#[derive(Debug, Default, PartialEq, Eq)]
enum ChunkPosition {
    /// At the first digit of a chunk's size.
    #[default]
    Start,
    /// After a digit of the size.
    Size(u64),
    /// After the last digit, before the end of the line.
    Extension(u64),
    /// Between CR and LF of that line.
    SizeEnd(u64),
    /// In a chunk's data; this many bytes are left.
    Data(u64),
    /// After the data: CR, then LF.
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Line,
    /// In a trailer field.
    Trailer,
    /// Between its CR and LF.
    TrailerEnd,
    /// Between CR and LF of the final empty line.
    LastLf,
    /// After the end of the body.
    Over,
}

impl Framing {
    pub(crate) const CHUNKED: Self = Self::Chunks(Chunks { at: ChunkPosition::Start, line: 0 });

    /// How many of `bytes` belong to the body.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Lost> {
        match self {
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunks(chunks) => chunks.advance(bytes),
        }
    }

    /// Whether the body has ended.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunks(Chunks { at: ChunkPosition::Over, .. }))
    }
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, Lost> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            match &mut self.at {
                ChunkPosition::Over => return Ok(at),
                ChunkPosition::Data(left) => {
                    let rest = bytes.len() - at;
                    let taken = rest.min(usize::try_from(*left).unwrap_or(usize::MAX));
                    at += taken;
                    *left -= taken as u64;
                    if *left == 0 {
                        self.at = ChunkPosition::DataCr;
                    }
                    continue;
                }
                ChunkPosition::Size(_) | ChunkPosition::Extension(_) => {
                    self.line += 1;
                    if self.line > MAX_LINE {
                        return Err(Lost::Endless);
                    }
                }
                ChunkPosition::Start
                | ChunkPosition::SizeEnd(_)
                | ChunkPosition::DataCr
                | ChunkPosition::DataLf
                | ChunkPosition::Line
                | ChunkPosition::Trailer
                | ChunkPosition::TrailerEnd
                | ChunkPosition::LastLf => self.line = 0,
            }
            self.at = std::mem::take(&mut self.at).behind(byte)?;
            at += 1;
        }
        Ok(at)
    }
}

impl ChunkPosition {
    /// The next position after `byte`, which is not chunk data.
    fn behind(self, byte: u8) -> Result<Self, Lost> {
        Ok(match self {
            Self::Over | Self::Data(_) => self,
            Self::Start => Self::Size(digit(byte).ok_or(Lost::Malformed)?),
            Self::Size(size) => match (digit(byte), byte) {
                (Some(digit), _) => Self::Size(
                    size.checked_mul(16)
                        .and_then(|size| size.checked_add(digit))
                        .ok_or(Lost::Malformed)?,
                ),
                (None, b'\r') => Self::SizeEnd(size),
                (None, b' ' | b'\t' | b';') => Self::Extension(size),
                (None, _) => return Err(Lost::Malformed),
            },
            Self::Extension(size) => match byte {
                b'\r' => Self::SizeEnd(size),
                b'\n' => return Err(Lost::Malformed),
                _ => Self::Extension(size),
            },
            Self::SizeEnd(size) => match (byte, size) {
                (b'\n', 0) => Self::Line,
                (b'\n', _) => Self::Data(size),
                (_, _) => return Err(Lost::Malformed),
            },
            Self::DataCr => expected(byte, b'\r', Self::DataLf)?,
            Self::DataLf => expected(byte, b'\n', Self::Start)?,
            Self::Line if byte == b'\r' => Self::LastLf,
            Self::Trailer if byte == b'\r' => Self::TrailerEnd,
            Self::Line | Self::Trailer => Self::Trailer,
            Self::TrailerEnd => expected(byte, b'\n', Self::Line)?,
            Self::LastLf => expected(byte, b'\n', Self::Over)?,
        })
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

fn expected(byte: u8, wanted: u8, then: ChunkPosition) -> Result<ChunkPosition, Lost> {
    if byte == wanted { Ok(then) } else { Err(Lost::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chunked_body_ends_behind_its_trailers() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"\r\nhello\r\n00 \r\nA: b\r\nC: d\r\n\r\n",
            b"0005\r\n\r\n\r\n\n\r\n0\r\n\r\n",
        ] {
            for step in 1..=body.len() {
                let mut framing = Framing::CHUNKED;
                let mut with_next = body.to_vec();
                with_next.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
                let taken: usize =
                    with_next.chunks(step).map(|bytes| framing.advance(bytes).unwrap()).sum();
                assert!(framing.is_over());
                assert_eq!(taken, body.len(), "{}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for body in [
            &b"\r\n"[..],
            b"x\r\n",
            b"5\nhello\r\n",
            b"5;\n",
            b"5\r\nhelloo\r\n",
            b"10000000000000000\r\n",
            b"0\r\n\rx",
            b"-1\r\n",
        ] {
            let mut framing = Framing::CHUNKED;
            assert!(framing.advance(body).is_err(), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn the_size_of_a_chunk_ends_within_a_line() {
        let most = MAX_LINE as usize;
        for (start, filler) in
            [("", "0"), ("5", " "), ("5", "\t"), ("5;", "a"), ("5\r\nhello\r\n", "0")]
        {
            let endless = format!("{start}{}", filler.repeat(2 * most));
            for step in [1, 7, endless.len()] {
                let mut framing = Framing::CHUNKED;
                let mut lost = endless.as_bytes().chunks(step).map(|bytes| framing.advance(bytes));
                assert_eq!(lost.find_map(Result::err), Some(Lost::Endless), "{start}{filler}");
            }
            // The control: lines of nearly the limit that end, many of them.
            let padded =
                format!("{}5 ;{}\r\nhello\r\n", "0".repeat(most / 4), "a".repeat(most / 2));
            let body = format!("{}0\r\n\r\n", padded.repeat(9));
            let mut framing = Framing::CHUNKED;
            assert_eq!(framing.advance(body.as_bytes()), Ok(body.len()));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in any::<u64>()) {
            for mut framing in [Framing::CHUNKED, Framing::Length(length)] {
                if let Ok(taken) = framing.advance(&bytes) {
                    prop_assert!(taken <= bytes.len());
                    prop_assert!(taken == bytes.len() || framing.is_over());
                }
            }
        }
    }
}
