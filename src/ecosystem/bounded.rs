//! Readers that stop before a hostile document costs more than a real one could.
//!
//! Parsers buffer: an HTML tokenizer keeps the name that it is reading; a JSON parser keeps the string that it is
//! reading and one byte for every open bracket. [`Bounded`] watches the bytes on their way to the parser and stops at
//! the first limit that the document exceeds, so the memory of a parse does not depend on the document. [`malformed`]
//! recovers the limit from the parser's I/O error.

use std::fmt;
use std::io::{self, Read};

use super::Malformed;

/// A limit that a document exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// The maximum.
    pub(super) limit: u64,
    /// What is counted.
    pub(super) unit: &'static str,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over the limit of {} {}", self.limit, self.unit)
    }
}

impl std::error::Error for Over {}

impl From<Over> for Malformed {
    fn from(Over { limit, unit }: Over) -> Self {
        Self::Limit { limit, unit }
    }
}

/// The reason why reading stopped: an exceeded limit, or an I/O error.
pub(super) fn malformed(error: io::Error) -> Malformed {
    match error.downcast::<Over>() {
        Ok(over) => over.into(),
        Err(error) => Malformed::Unreadable(error),
    }
}

/// Checks the bytes of one format.
pub(super) trait Watch {
    /// Checks the next bytes; returns the limit that they exceed.
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Over>;
}

/// A reader with a length limit and a [`Watch`]; `left` bytes are still allowed.
#[derive(Debug)]
pub(super) struct Bounded<R, W> {
    inner: R,
    watch: W,
    limit: u64,
    left: u64,
}

impl<R: Read, W: Watch> Bounded<R, W> {
    /// Reads at most `limit` bytes of `inner`. A longer document is an error, because a truncated index must not be
    /// used.
    pub(super) fn new(inner: R, limit: u64, watch: W) -> Self {
        Self { inner, watch, limit, left: limit }
    }
}

impl<R: Read, W: Watch> Read for Bounded<R, W> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(Over { limit: self.limit, unit: "bytes" }))?;
        let bytes = out.get(..read).unwrap_or_default();
        self.watch.pass(bytes).map_err(io::Error::other)?;
        Ok(read)
    }
}

/// The maximum run of letters and digits in an HTML index. The tokenizer buffers an end tag or a character reference,
/// and both consist of these only. Links contain slashes and dots, which end a run long before this limit.
const MAX_WORD: u64 = 64 * 1024;

/// Watches HTML: limits the length of a word.
#[derive(Debug, Default)]
pub(super) struct Words {
    run: u64,
}

impl Watch for Words {
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Over> {
        for byte in bytes {
            self.run = if byte.is_ascii_alphanumeric() { self.run + 1 } else { 0 };
            if self.run > MAX_WORD {
                return Err(Over { limit: MAX_WORD, unit: "letters and digits in a row" });
            }
        }
        Ok(())
    }
}

/// The maximum nesting of a JSON index. Real ones have five levels.
const MAX_DEPTH: u64 = 64;

/// The maximum length of a string in a JSON index, in bytes. The longest real ones are the descriptions in legacy
/// documents: whole manuals of some hundred KiB.
const MAX_TEXT: u64 = 4 * 1024 * 1024;

/// Watches JSON (RFC 8259): limits nesting and string lengths. It leaves invalid JSON to the parser.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    depth: u64,
    /// The length so far of the string that contains the next byte; `None` outside strings.
    text: Option<u64>,
    escaped: bool,
}

impl Watch for Nesting {
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Over> {
        for byte in bytes {
            match (self.text, byte) {
                (Some(_), _) if self.escaped => self.escaped = false,
                (Some(_), b'\\') => self.escaped = true,
                (Some(_), b'"') => self.text = None,
                (Some(length), _) => self.text = Some(length + 1),
                (None, b'"') => self.text = Some(0),
                (None, b'[' | b'{') => self.depth += 1,
                (None, b']' | b'}') => self.depth = self.depth.saturating_sub(1),
                (None, _) => {}
            }
            if self.depth > MAX_DEPTH {
                return Err(Over { limit: MAX_DEPTH, unit: "levels of nesting" });
            }
            if self.text.is_some_and(|length| length > MAX_TEXT) {
                return Err(Over { limit: MAX_TEXT, unit: "bytes in one string" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(limit: u64, watch: impl Watch, document: impl Read) -> Option<&'static str> {
        let mut reader = Bounded::new(document, limit, watch);
        match io::copy(&mut reader, &mut io::sink()).map_err(malformed) {
            Ok(_) => None,
            Err(Malformed::Limit { unit, .. }) => Some(unit),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_document_of_exactly_the_limit_is_read() {
        assert_eq!(over(4, Words::default(), &b"abcd"[..]), None);
        assert_eq!(over(3, Words::default(), &b"abcd"[..]), Some("bytes"));
    }

    #[test]
    fn an_endless_word_ends_the_document() {
        let words = io::repeat(b'a').take(MAX_WORD).chain(&b" "[..]);
        let twice = words.chain(io::repeat(b'a').take(MAX_WORD));
        assert_eq!(over(u64::MAX, Words::default(), twice), None);
        let endless = io::repeat(b'a').take(MAX_WORD + 1);
        assert!(over(u64::MAX, Words::default(), endless).is_some());
    }

    #[test]
    fn bottomless_nesting_ends_the_document() {
        let deepest = io::repeat(b'[').take(MAX_DEPTH);
        assert_eq!(over(u64::MAX, Nesting::default(), deepest), None);
        let deeper = io::repeat(b'[').take(MAX_DEPTH + 1);
        assert!(over(u64::MAX, Nesting::default(), deeper).is_some());
        // Brackets in strings do not nest, not even after an escaped quote.
        let text = br#""\""#.chain(io::repeat(b'[').take(MAX_DEPTH + 1));
        assert_eq!(over(u64::MAX, Nesting::default(), text), None);
    }

    #[test]
    fn an_endless_string_ends_the_document() {
        let endless = (&b"\""[..]).chain(io::repeat(b'a').take(MAX_TEXT + 1));
        assert!(over(u64::MAX, Nesting::default(), endless).is_some());
        let many = b"\"aaaaaaa\",".repeat(4);
        assert_eq!(over(u64::MAX, Nesting::default(), &many[..]), None);
    }
}
