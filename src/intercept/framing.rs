//! Where the body of a request ends, so that what follows is known for the next head.
//!
//! It follows hyper's reading of the same bytes step by step, and gives nothing on beyond what it has followed: the two can
//! never disagree about where the next request begins. What it cannot follow is an error, and ends the connection.

use std::io;

/// The body of a request, as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunks(Chunks),
}

/// Where in a chunked body the next byte stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Chunks {
    /// At the first digit of a chunk's size.
    #[default]
    Start,
    /// Behind a digit of it.
    Size(u64),
    /// Behind its last digit, before the line's end.
    Extension(u64),
    /// Between CR and LF of that line.
    SizeEnd(u64),
    /// In a chunk's bytes.
    Data(u64),
    /// Behind them: CR, then LF.
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    Line,
    /// In a trailer field.
    Trailer,
    /// Between its CR and LF.
    TrailerEnd,
    /// Between CR and LF of the empty line.
    LastLf,
    /// Behind the end.
    Over,
}

impl Framing {
    pub(super) const CHUNKED: Self = Self::Chunks(Chunks::Start);

    /// How many of `bytes` belong to the body.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> io::Result<usize> {
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
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunks(Chunks::Over))
    }
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            *self = match std::mem::take(self) {
                Self::Over => {
                    *self = Self::Over;
                    return Ok(at);
                }
                Self::Data(left) => {
                    let rest = bytes.len() - at;
                    let taken = rest.min(usize::try_from(left).unwrap_or(usize::MAX));
                    at += taken;
                    let left = left - taken as u64;
                    *self = if left == 0 { Self::DataCr } else { Self::Data(left) };
                    continue;
                }
                Self::Start => Self::Size(digit(byte).ok_or_else(odd)?),
                Self::Size(size) => match (digit(byte), byte) {
                    (Some(digit), _) => Self::Size(
                        size.checked_mul(16)
                            .and_then(|size| size.checked_add(digit))
                            .ok_or_else(odd)?,
                    ),
                    (None, b'\r') => Self::SizeEnd(size),
                    (None, b' ' | b'\t' | b';') => Self::Extension(size),
                    (None, _) => return Err(odd()),
                },
                Self::Extension(size) => match byte {
                    b'\r' => Self::SizeEnd(size),
                    b'\n' => return Err(odd()),
                    _ => Self::Extension(size),
                },
                Self::SizeEnd(size) => match (byte, size) {
                    (b'\n', 0) => Self::Line,
                    (b'\n', _) => Self::Data(size),
                    (_, _) => return Err(odd()),
                },
                Self::DataCr => expected(byte, b'\r', Self::DataLf)?,
                Self::DataLf => expected(byte, b'\n', Self::Start)?,
                Self::Line if byte == b'\r' => Self::LastLf,
                Self::Trailer if byte == b'\r' => Self::TrailerEnd,
                Self::Line | Self::Trailer => Self::Trailer,
                Self::TrailerEnd => expected(byte, b'\n', Self::Line)?,
                Self::LastLf => expected(byte, b'\n', Self::Over)?,
            };
            at += 1;
        }
        Ok(at)
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

fn expected(byte: u8, wanted: u8, then: Chunks) -> io::Result<Chunks> {
    if byte == wanted { Ok(then) } else { Err(odd()) }
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a chunked body that cannot be followed")
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
