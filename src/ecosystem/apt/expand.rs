//! Expands compressed indexes, in bounded memory and to a bounded size.
//!
//! The format is recognised by the first bytes and not by the name, because an index under a by-hash URL has no suffix.
//! An index that expands far more than any real one is treated as a decompression bomb.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use crate::ecosystem::bounded::Over;

/// How far any index may expand, in bytes.
const FREE: u64 = 64 << 20;

/// Beyond [`FREE`], the maximum ratio of expanded to compressed bytes. The highest ratio of a real index (a
/// translation) is 48.
const STEEPEST: u64 = 200;

/// The maximum length of an expanded index, in bytes. The longest real one that larder reads has some 100 MiB.
const LONGEST: u64 = 4 << 30;

/// The memory limit of an xz decoder, in bytes. The file chooses the dictionary size; `xz -9` needs 64 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// The maximum window of a zstd decoder, as a power of two; `zstd` without `--ultra --long` stays below it.
const ZSTD_WINDOW: u32 = 27;

/// How many bytes are needed to recognise the format.
const MAGIC: usize = 6;

/// Opens a file in any of the known compressions, or uncompressed.
pub(super) fn expand<'a>(file: impl Read + 'a) -> io::Result<Expanded<'a>> {
    let taken = Rc::new(Cell::new(0));
    let mut file = Counted { inner: file, taken: Rc::clone(&taken) };
    let mut magic = Vec::with_capacity(MAGIC);
    file.by_ref().take(MAGIC as u64).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(file);
    let plain: Box<dyn Read + 'a> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::read::XzDecoder::new_stream(whole, stream))
        }
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::read::MultiBzDecoder::new(whole)),
        // The header of .lzma: the usual properties, and a dictionary of at least 64 KiB. Text never contains these
        // bytes.
        [0x5d, 0, 0, ..] => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)?;
            Box::new(liblzma::read::XzDecoder::new_stream(whole, stream))
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(whole))?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        _ => Box::new(whole),
    };
    Ok(Expanded { plain, taken, given: 0 })
}

/// An expanded index.
pub(super) struct Expanded<'a> {
    plain: Box<dyn Read + 'a>,
    /// Compressed bytes so far.
    taken: Rc<Cell<u64>>,
    /// Expanded bytes so far.
    given: u64,
}

impl Read for Expanded<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.plain.read(out)?;
        self.given += read as u64;
        let limit = self.taken.get().saturating_mul(STEEPEST).clamp(FREE, LONGEST);
        if self.given > limit {
            return Err(io::Error::other(Over { limit, unit: "expanded bytes" }));
        }
        Ok(read)
    }
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.taken.set(self.taken.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn expanded(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        expand(file)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    }

    #[test]
    fn every_compression_is_told_by_its_first_bytes() {
        let text = b"Package: a\n";
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(text).unwrap();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bz.write_all(text).unwrap();
        let alone = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let alone = liblzma::stream::Stream::new_lzma_encoder(&alone).unwrap();
        let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), alone);
        lzma.write_all(text).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(text).unwrap();
        let twice = [gzip(text), gzip(text)].concat();
        for file in [
            text.to_vec(),
            gzip(text),
            xz.finish().unwrap(),
            bz.finish().unwrap(),
            zstd::encode_all(&text[..], 3).unwrap(),
            lzma.finish().unwrap(),
            lz4.finish().unwrap(),
        ] {
            assert_eq!(expanded(&file).unwrap(), text);
        }
        assert_eq!(expanded(&twice).unwrap(), [text, &text[..]].concat());
        assert_eq!(expanded(b"").unwrap(), b"");
    }

    #[test]
    fn a_bomb_and_a_broken_file_end_in_an_error() {
        let bomb = gzip(&vec![b'a'; usize::try_from(FREE + 1).unwrap()]);
        assert!(expanded(&bomb).unwrap_err().to_string().contains("limit"));
        let whole = gzip(b"Package: a\n");
        assert!(expanded(&whole[..whole.len() - 4]).is_err());
    }
}
