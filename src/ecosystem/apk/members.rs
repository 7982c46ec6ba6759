//! Splits a file into its gzip members, on its raw bytes.
//!
//! apk (v2) concatenates several gzip files (RFC 1952 §2.2), and signs or names the *compressed* bytes of some of them.
//! A decoder that yields only the expanded text loses the bytes that were signed. So this module finds the member
//! borders while the bytes arrive, in memory that does not depend on the file's size:
//!
//! ```text
//! header 10 │ extra, name, comment, header CRC │ deflate │ CRC-32 4 │ length 4      then the next member, or the end
//! ```
//!
//! A member counts only if its own checksum is right, because then every decoder of it yields the same text.

use flate2::{Decompress, FlushDecompress, Status};

use super::broken::Broken;
use crate::ecosystem::bounded::Over;

/// Receives the content of the members.
pub(super) trait Sink {
    /// Raw bytes of member `number`, counted from 0.
    fn raw(&mut self, number: usize, bytes: &[u8]);

    /// Expanded bytes of member `number`.
    fn plain(&mut self, number: usize, bytes: &[u8]) -> Result<(), Broken>;

    /// Member `number` is complete and undamaged.
    fn end(&mut self, number: usize) -> Result<(), Broken>;
}

/// The first bytes of a header. The third is the compression method: deflate, the only one defined.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Bits of the header's flags (RFC 1952 §2.3.1).
const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// The maximum length of a header, in bytes. The format bounds neither the file name nor the comment.
const MAX_HEADER: u64 = 64 << 10;

/// The size of the output buffer, in bytes.
const WINDOW: usize = 32 << 10;

/// The part of the file to which the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first ten bytes of a header; the number of bytes read.
    Header(usize),
    ExtraLength(usize),
    Extra(u16),
    Name,
    Comment,
    /// The CRC of the header; the number of bytes still missing.
    HeaderCrc(u8),
    Deflate,
    Trailer(usize),
}

/// Splits a file that arrives in pieces.
pub(super) struct Members {
    state: State,
    number: usize,
    /// The bytes of a fixed-length part, as far as read.
    fixed: [u8; 10],
    flags: u8,
    header: u64,
    inflate: Decompress,
    window: Box<[u8]>,
    crc: crc32fast::Hasher,
}

impl Members {
    pub(super) fn new() -> Self {
        Self {
            state: State::Header(0),
            number: 0,
            fixed: [0; 10],
            flags: 0,
            header: 0,
            inflate: Decompress::new(false),
            window: vec![0; WINDOW].into(),
            crc: crc32fast::Hasher::new(),
        }
    }

    /// The number of complete members.
    pub(super) fn complete(&self) -> usize {
        self.number
    }

    /// Takes the next bytes.
    pub(super) fn update(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<(), Broken> {
        while !bytes.is_empty() {
            bytes = self.update_one(bytes, sink)?;
        }
        Ok(())
    }

    /// Takes the next bytes, up to the end of a member; returns the rest.
    pub(super) fn update_one<'a>(
        &mut self,
        mut bytes: &'a [u8],
        sink: &mut impl Sink,
    ) -> Result<&'a [u8], Broken> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.state == State::Deflate {
                let taken = self.inflate(bytes, sink)?;
                let (raw, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
                sink.raw(self.number, raw);
                bytes = rest;
                continue;
            }
            sink.raw(self.number, std::slice::from_ref(first));
            self.framing(*first)?;
            bytes = rest;
            if self.state == State::Trailer(8) {
                self.end_member(sink)?;
                break;
            }
        }
        Ok(bytes)
    }

    /// The number of members, if the file may end here.
    pub(super) fn finish(&self) -> Result<usize, Broken> {
        match self.state {
            State::Header(0) => Ok(self.number),
            State::Header(_)
            | State::ExtraLength(_)
            | State::Extra(_)
            | State::Name
            | State::Comment
            | State::HeaderCrc(_)
            | State::Deflate
            | State::Trailer(_) => Err(Broken::form("it ends within a gzip member")),
        }
    }

    /// Takes one byte of a header or of a trailer.
    fn framing(&mut self, byte: u8) -> Result<(), Broken> {
        if !matches!(self.state, State::Trailer(_)) {
            self.header += 1;
            if self.header > MAX_HEADER {
                return Err(Over { limit: MAX_HEADER, unit: "bytes in one gzip header" }.into());
            }
        }
        self.state = match self.state {
            State::Header(at) => {
                self.put(at, byte);
                if MAGIC.get(at).is_some_and(|magic| *magic != byte) {
                    let first = self.number == 0;
                    let follows = "what follows a gzip member is not gzip";
                    return Err(Broken::form(if first { "it is not gzip" } else { follows }));
                }
                if at < 9 { State::Header(at + 1) } else { self.begin()? }
            }
            State::ExtraLength(at) => {
                self.put(at, byte);
                let [low, high, ..] = self.fixed;
                match (at, u16::from_le_bytes([low, high])) {
                    (0, _) => State::ExtraLength(1),
                    (_, 0) => self.after(EXTRA),
                    (_, length) => State::Extra(length),
                }
            }
            State::Extra(1) => self.after(EXTRA),
            State::Extra(left) => State::Extra(left.saturating_sub(1)),
            State::Name if byte == 0 => self.after(NAME),
            State::Comment if byte == 0 => self.after(COMMENT),
            State::HeaderCrc(1) => self.after(HEADER_CRC),
            State::HeaderCrc(left) => State::HeaderCrc(left.saturating_sub(1)),
            State::Trailer(at) => {
                self.put(at, byte);
                State::Trailer(at + 1)
            }
            unchanged @ (State::Name | State::Comment | State::Deflate) => unchanged,
        };
        Ok(())
    }

    fn put(&mut self, at: usize, byte: u8) {
        if let Some(place) = self.fixed.get_mut(at) {
            *place = byte;
        }
    }

    /// Reads the flags, once the fixed part of a header is complete.
    fn begin(&mut self) -> Result<State, Broken> {
        let [_, _, _, flags, ..] = self.fixed;
        if flags & RESERVED != 0 {
            return Err(Broken::form("a gzip header has flags that no version defines"));
        }
        self.flags = flags;
        Ok(self.after(0))
    }

    /// The state after the header part with the flag `part`. The parts come in the order of their flags, with the CRC
    /// last.
    fn after(&self, part: u8) -> State {
        let next = [EXTRA, NAME, COMMENT]
            .into_iter()
            .find(|next| part != HEADER_CRC && *next > part && self.flags & next != 0);
        match next {
            Some(EXTRA) => State::ExtraLength(0),
            Some(NAME) => State::Name,
            Some(_) => State::Comment,
            None if part != HEADER_CRC && self.flags & HEADER_CRC != 0 => State::HeaderCrc(2),
            None => State::Deflate,
        }
    }

    /// Expands from `bytes`; returns how many bytes it consumed.
    fn inflate(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, Broken> {
        let before = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(bytes, &mut self.window, FlushDecompress::None)
            .map_err(|_| Broken::form("a gzip member is damaged"))?;
        let taken = usize::try_from(self.inflate.total_in() - before.0).unwrap_or(usize::MAX);
        let made = usize::try_from(self.inflate.total_out() - before.1).unwrap_or(usize::MAX);
        let plain = self.window.get(..made).unwrap_or_default();
        self.crc.update(plain);
        sink.plain(self.number, plain)?;
        if status == Status::StreamEnd {
            self.state = State::Trailer(0);
        } else if taken == 0 && made == 0 {
            return Err(Broken::form("a gzip member is damaged"));
        }
        Ok(taken)
    }

    fn end_member(&mut self, sink: &mut impl Sink) -> Result<(), Broken> {
        let crc = std::mem::take(&mut self.crc).finalize();
        let [c0, c1, c2, c3, l0, l1, l2, l3, ..] = self.fixed;
        // RFC 1952 §2.3.1: the length modulo 2^32.
        let length = self.inflate.total_out() & u64::from(u32::MAX);
        if u32::from_le_bytes([c0, c1, c2, c3]) != crc
            || u64::from(u32::from_le_bytes([l0, l1, l2, l3])) != length
        {
            return Err(Broken::form("a gzip member does not have its own checksum"));
        }
        sink.end(self.number)?;
        self.number += 1;
        self.header = 0;
        self.inflate.reset(false);
        self.state = State::Header(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Taken {
        raw: Vec<Vec<u8>>,
        plain: Vec<Vec<u8>>,
        ended: usize,
    }

    fn at(list: &mut Vec<Vec<u8>>, number: usize) -> &mut Vec<u8> {
        list.resize(list.len().max(number + 1), Vec::new());
        &mut list[number]
    }

    impl Sink for Taken {
        fn raw(&mut self, number: usize, bytes: &[u8]) {
            at(&mut self.raw, number).extend(bytes);
        }

        fn plain(&mut self, number: usize, bytes: &[u8]) -> Result<(), Broken> {
            at(&mut self.plain, number).extend(bytes);
            Ok(())
        }

        fn end(&mut self, number: usize) -> Result<(), Broken> {
            assert_eq!(number, self.ended);
            self.ended += 1;
            Ok(())
        }
    }

    fn split(file: &[u8], piece: usize) -> Result<Taken, Broken> {
        let mut taken = Taken::default();
        let mut members = Members::new();
        for piece in file.chunks(piece) {
            members.update(piece, &mut taken)?;
        }
        assert_eq!(members.finish()?, taken.ended);
        Ok(taken)
    }

    fn gzip(plain: &[u8], builder: flate2::GzBuilder) -> Vec<u8> {
        let mut to = builder.write(Vec::new(), flate2::Compression::default());
        to.write_all(plain).unwrap();
        to.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_raw_bytes_of_each_member_are_found_however_they_come(
            texts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0_u8..8), 1..5),
            repeat in 1_usize..500,
            piece in 1_usize..70_000,
        ) {
            let members: Vec<(Vec<u8>, Vec<u8>)> = texts
                .iter()
                .map(|(text, fields)| {
                    let mut builder = flate2::GzBuilder::new();
                    if fields & 1 != 0 { builder = builder.extra(vec![7; 300]); }
                    if fields & 2 != 0 { builder = builder.filename("a name"); }
                    if fields & 4 != 0 { builder = builder.comment("a comment"); }
                    let text = text.repeat(repeat);
                    (gzip(&text, builder), text)
                })
                .collect();
            let file: Vec<u8> = members.iter().flat_map(|(raw, _)| raw).copied().collect();
            let taken = split(&file, piece).unwrap();
            prop_assert_eq!(taken.ended, members.len());
            for (number, (raw, text)) in members.iter().enumerate() {
                prop_assert_eq!(&taken.raw[number], raw);
                prop_assert_eq!(taken.plain.get(number).map_or(&[][..], Vec::as_slice), text.as_slice());
            }
        }
    }

    #[test]
    fn header_checksums_are_passed_over() {
        let mut file = gzip(b"text", flate2::GzBuilder::new());
        file[3] |= HEADER_CRC;
        file.splice(10..10, [1, 2]);
        assert_eq!(split(&file, 1).unwrap().plain, [b"text"]);
    }

    #[test]
    fn what_is_damaged_cut_or_followed_by_something_else_is_no_file() {
        let whole =
            [gzip(b"one", flate2::GzBuilder::new()), gzip(&[7; 9000], flate2::GzBuilder::new())]
                .concat();
        assert_eq!(split(&whole, 7).unwrap().ended, 2);
        let first = gzip(b"one", flate2::GzBuilder::new()).len();
        for end in (1..whole.len()).filter(|end| *end != first) {
            assert!(split(&whole[..end], 64).is_err(), "{end}");
        }
        assert!(split(&[&whole[..], b"\0"].concat(), 64).is_err());
        assert!(split(&[&whole[..], &[0; 600]].concat(), 64).is_err());
        // The checksum and the length of the second member.
        for at in whole.len() - 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(split(&damaged, 64).is_err(), "{at}");
        }
        assert_eq!(split(b"", 1).unwrap().ended, 0);
    }

    #[test]
    fn an_endless_header_ends_the_file() {
        let mut file = gzip(b"text", flate2::GzBuilder::new().filename("x"));
        file.splice(10..10, vec![b'x'; usize::try_from(MAX_HEADER).unwrap()]);
        assert!(matches!(split(&file, 4096), Err(Broken::Over(_))));
    }
}
