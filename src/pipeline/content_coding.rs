//! A body with a content coding, judged as its clients judge it.
//!
//! Fills ask for no coding (`Accept-Encoding: identity`), and some servers apply one all the same. Clients that decode compare a
//! digest with the decoded bytes, so a body whose own bytes do not match the promise may still be right if its decoded bytes do.
//! Such a body is given to the clients that wait for it and not kept, because in the store a digest names the bytes of a file,
//! and the coded bytes are others.
//!
//! Clients that do not decode keep the coded bytes as their file. So the coded bytes must hold only the coded file. Data that a
//! decoder skips (bytes after the end, a comment, an extra field, a skippable frame, a metadata block) could make another file of
//! them, such as an archive that is read from its end. A body with such data is refused.

use std::io::{self, Read};
use std::sync::Arc;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use futures_util::FutureExt as _;
use hyper::header;

use super::Pipeline;
use super::task::Task;
use crate::clock::Time;
use crate::digest::{Digest, Hashing, Wanted};
use crate::entry::Head;
use crate::flight::Decodes;
use crate::received::Spooled;
use crate::store::Blob;
use crate::verify::{Expectation, Finding};

/// The most bytes that any body may decode to; a larger body may decode to `STEEPEST` bytes for each of its own. A decompression
/// bomb exceeds both.
const FREE: u64 = 64 << 20;
const STEEPEST: u64 = 200;

/// The window of a zstd decoder, as a power of two (RFC 9659 allows 8 MiB in HTTP).
const ZSTD_WINDOW: u32 = 23;

/// A content coding that clients decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
    Brotli,
}

impl Pipeline {
    /// Whether a body with a declared coding is what was promised once it is decoded.
    pub(super) async fn is_right_decoded(
        &self,
        task: &Task,
        (head, body): (&Head, &Spooled),
        expected: &Expectation,
        asked: Time,
    ) -> bool {
        let Some(coding) = coding_of(head) else {
            return false;
        };
        let path = body.path().to_owned();
        let open = move || std::fs::File::open(path);
        let right = self.is_promised_decoded(task, coding, open, body.size, expected, asked).await;
        if right {
            tracing::info!(
                url = %task.target, ?coding,
                "the origin applied a content coding that was not requested; the decoded body is as promised, and is given but \
                 not kept"
            );
        }
        right
    }

    /// Whether what a coded body of `size` bytes decodes to is what is promised.
    async fn is_promised_decoded<R: Read>(
        &self,
        task: &Task,
        coding: Coding,
        open: impl FnOnce() -> io::Result<R> + Send + 'static,
        size: u64,
        expected: &Expectation,
        asked: Time,
    ) -> bool {
        let wanted = task.wanted(expected.algorithms());
        let _place = self.reading.place().await;
        let decoding = tokio::task::spawn_blocking(move || {
            let most = size.saturating_mul(STEEPEST).max(FREE);
            digests_of(coding, io::BufReader::new(open()?), most, wanted)
        });
        let (digests, length) = match decoding.await {
            Ok(Ok(decoded)) => decoded,
            Ok(Err(error)) => {
                tracing::debug!(url = %task.target, %error, "this body does not decode");
                return false;
            }
            Err(_) => return false,
        };
        let found = expected.find(&digests, length, asked);
        matches!(found, Finding::Proven { .. } | Finding::Excused(_))
    }

    /// Whether a stored body with a declared coding, which is being given, is what is promised by then once it is decoded. `None` if
    /// it has no coding that clients decode.
    pub(super) fn later_decoding(
        self: &Arc<Self>,
        task: &Task,
        head: &Head,
        blob: &Arc<Blob>,
    ) -> Option<Decodes> {
        let coding = coding_of(head)?;
        // As with a fill: the body may be given longer than larder runs.
        let (pipeline, task, blob) = (Arc::downgrade(self), task.clone(), Arc::clone(blob));
        Some(Box::new(move || {
            async move {
                let Some(pipeline) = pipeline.upgrade() else { return false };
                let (expected, size) = (pipeline.expectation_of(&task), blob.size());
                let (open, asked) = (move || blob.open(), Time::from_millis(i64::MIN));
                pipeline.is_promised_decoded(&task, coding, open, size, &expected, asked).await
            }
            .boxed()
        }))
    }
}

/// The one coding that an answer declares, if clients decode it.
fn coding_of(head: &Head) -> Option<Coding> {
    let codings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    let texts: Vec<&str> = codings.filter_map(|value| value.to_str().ok()).collect();
    let all = texts.join(",").to_ascii_lowercase();
    let mut named =
        all.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "identity");
    let coding = match named.next()? {
        "gzip" | "x-gzip" => Coding::Gzip,
        "deflate" => Coding::Deflate,
        "zstd" => Coding::Zstd,
        "br" => Coding::Brotli,
        _ => return None,
    };
    named.next().is_none().then_some(coding)
}

/// Whether an answer declares a coding at all.
pub(super) fn is_coded(head: &Head) -> bool {
    let mut codings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The digests and the length of what `coded` decodes to; an error if it holds anything else. Blocking.
fn digests_of(
    coding: Coding,
    mut coded: impl io::BufRead,
    most: u64,
    wanted: Wanted,
) -> io::Result<(Vec<Digest>, u64)> {
    let mut decoded = Decoded { hashing: Hashing::new(wanted), length: 0, most };
    match coding {
        Coding::Gzip => {
            // A file may be coded in several gzip members; only the first may contain a file name.
            let mut may_name = true;
            while !coded.fill_buf()?.is_empty() {
                let mut member = flate2::bufread::GzDecoder::new(&mut coded);
                if !member.header().is_some_and(|header| is_bare(header, may_name)) {
                    return Err(io::Error::other("its gzip header holds more than a name"));
                }
                decoded.take(&mut member)?;
                may_name = false;
            }
        }
        Coding::Deflate => decoded.take(&mut flate2::bufread::ZlibDecoder::new(&mut coded))?,
        Coding::Zstd => {
            let frames = zstd::stream::read::Decoder::with_buffer(&mut coded)?;
            let mut frame = frames.single_frame();
            frame.window_log_max(ZSTD_WINDOW)?;
            decoded.take(&mut frame)?;
        }
        Coding::Brotli => take_brotli(&mut coded, &mut decoded)?,
    }
    if !coded.fill_buf()?.is_empty() {
        return Err(io::Error::other("something follows behind its end"));
    }
    Ok((decoded.hashing.finish().iter().copied().collect(), decoded.length))
}

/// Decodes brotli (RFC 7932). Brotli has metadata blocks, which decoders skip. The decoder shows only in which block it is now,
/// so it gets one byte at a time: then it cannot skip a block unseen. This is slow, but such files are rare.
fn take_brotli(coded: &mut impl io::BufRead, decoded: &mut Decoded) -> io::Result<()> {
    let alloc = StandardAlloc::default;
    // `new_strict` allows a window of at most 16 MiB.
    let mut state = BrotliState::new_strict(alloc(), alloc(), alloc());
    let (mut buffer, mut total) = (vec![0; 64 * 1024], 0);
    loop {
        let byte = coded.fill_buf()?.first().copied();
        let input = byte.as_slice();
        let (mut left, mut read, mut room, mut written) = (input.len(), 0, buffer.len(), 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut read,
            input,
            &mut room,
            &mut written,
            &mut buffer,
            &mut total,
            &mut state,
        );
        coded.consume(read);
        decoded.add(buffer.get(..written).unwrap_or_default())?;
        // Encoders write an empty metadata block to flush their output.
        if state.is_metadata != 0 && state.meta_block_remaining_len > 0 {
            return Err(io::Error::other("it holds metadata, which decoders skip"));
        }
        match result {
            BrotliResult::ResultSuccess => return Ok(()),
            BrotliResult::NeedsMoreInput if byte.is_none() => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultFailure => return Err(io::Error::other("it is no brotli")),
        }
    }
}

/// Whether a gzip header (RFC 1952) holds nothing that a decoder skips, except a plain file name if `may_name`.
fn is_bare(header: &flate2::GzHeader, may_name: bool) -> bool {
    let is_name =
        |name: &[u8]| may_name && name.len() < 256 && !name.iter().any(u8::is_ascii_control);
    header.extra().is_none() && header.comment().is_none() && header.filename().is_none_or(is_name)
}

/// Hashes and counts the decoded bytes.
struct Decoded {
    hashing: Hashing,
    length: u64,
    most: u64,
}

impl Decoded {
    fn take(&mut self, from: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.add(buffer.get(..read).unwrap_or_default())?;
        }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        if self.length > self.most {
            return Err(io::Error::other("it decodes to far more than any file does"));
        }
        self.hashing.update(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hyper::{HeaderMap, StatusCode};

    use super::*;

    #[test]
    fn one_coding_that_clients_decode_is_judged_decoded() {
        for (value, coding) in [
            ("gzip", Some(Coding::Gzip)),
            ("X-GZip", Some(Coding::Gzip)),
            ("identity, deflate", Some(Coding::Deflate)),
            ("zstd", Some(Coding::Zstd)),
            ("identity", None),
            ("br", Some(Coding::Brotli)),
            ("compress", None),
            ("gzip, gzip", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, value.parse().unwrap());
            assert_eq!(coding_of(&Head { status: StatusCode::OK, headers }), coding, "{value}");
        }
    }

    #[test]
    fn nothing_is_hidden_where_a_decoder_does_not_look() {
        use std::io::Write as _;
        let file = b"the file that is promised";
        let gzip = |builder: flate2::GzBuilder| {
            let mut coded = builder.write(Vec::new(), flate2::Compression::fast());
            coded.write_all(file).unwrap();
            coded.finish().unwrap()
        };
        let bare = || flate2::GzBuilder::new();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(file).unwrap();
        let zlib = zlib.finish().unwrap();
        let zstd = zstd::encode_all(&file[..], 1).unwrap();
        let other = b"PK\x05\x06 another file".to_vec();
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"PK\x05\x06"].concat();
        let wanted = || Wanted::from(crate::digest::Algorithms::default());
        let of =
            |coding, coded: &[u8]| digests_of(coding, io::Cursor::new(coded), 1 << 20, wanted());
        for (coding, coded) in [
            (Coding::Gzip, gzip(bare())),
            (Coding::Gzip, gzip(bare().filename("file.tar"))),
            (Coding::Deflate, zlib),
            (Coding::Zstd, zstd.clone()),
        ] {
            assert_eq!(of(coding, &coded).unwrap().1, file.len() as u64, "the control");
            for hidden in [&other, &skipped] {
                assert!(of(coding, &[&coded[..], hidden].concat()).is_err(), "{coding:?}");
            }
        }
        for hidden in [
            gzip(bare().extra(other.clone())),
            gzip(bare().comment(other.clone())),
            gzip(bare().filename(other)),
        ] {
            assert!(of(Coding::Gzip, &hidden).is_err());
        }
        assert!(of(Coding::Zstd, &[&skipped[..], &zstd].concat()).is_err());
        // Several members are one file.
        let named = gzip(bare().filename("file.tar"));
        let twice = [named.clone(), gzip(bare())].concat();
        assert_eq!(of(Coding::Gzip, &twice).unwrap().1, 2 * file.len() as u64);
        assert!(of(Coding::Gzip, &[named.clone(), named].concat()).is_err());
    }

    /// A brotli stream of one uncompressed block, the bytes `then`, and the empty last block.
    fn brotli(bytes: &[u8], then: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap();
        assert!((1..=1 << 16).contains(&length));
        // RFC 7932 §9.1 f.: a window of 64 KiB (0), not the last block (0), four nibbles (00), the length minus one,
        // uncompressed (1).
        let head = ((length - 1) << 4 | 1 << 20).to_le_bytes();
        // The last block (1), empty (1).
        [&head[..3], bytes, then, &[0b11]].concat()
    }

    /// A metadata block: not the last block (0), no nibbles (11), reserved (0), the length in one byte (01) or in none (00).
    fn metadata(bytes: &[u8]) -> Vec<u8> {
        let Some(last) = bytes.len().checked_sub(1) else { return vec![0b00_0110] };
        let head = u16::try_from(last << 6 | 0b01_0110).unwrap().to_le_bytes();
        [&head[..], bytes].concat()
    }

    #[test]
    fn brotli_is_judged_as_its_clients_decode_it() {
        let file = b"the file that is promised".repeat(2000);
        let of = |coded: &[u8], most| {
            let wanted = Wanted::from(crate::digest::Algorithms::default());
            digests_of(Coding::Brotli, io::Cursor::new(coded), most, wanted)
        };
        let right = {
            let mut hashing = Hashing::new(Wanted::from(crate::digest::Algorithms::default()));
            hashing.update(&file);
            hashing.finish().iter().copied().collect::<Vec<_>>()
        };
        let length = file.len() as u64;
        let coded = brotli(&file, b"");
        assert_eq!(of(&coded, length).unwrap(), (right.clone(), length));
        assert_eq!(of(&brotli(&file, &metadata(b"")), length).unwrap(), (right, length));
        let error = of(&brotli(&file, &metadata(b"PK another file")), length).unwrap_err();
        assert!(error.to_string().contains("metadata"), "{error}");
        assert!(of(&coded, length - 1).is_err(), "a bomb");
        assert!(of(&coded[..coded.len() - 1], length).is_err(), "cut");
        assert!(of(&[&coded[..], b"PK"].concat(), length).is_err(), "something behind it");
        assert!(of(&file, length).is_err(), "no brotli");
    }

    #[test]
    fn a_bomb_is_not_decoded_to_its_end() {
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::copy(&mut io::repeat(0).take(1 << 20), &mut bomb).unwrap();
        let bomb = bomb.finish().unwrap();
        let decode = |most| {
            let wanted = crate::digest::Algorithms::NONE.into();
            digests_of(Coding::Gzip, io::Cursor::new(&bomb), most, wanted)
        };
        assert_eq!(decode(1 << 20).unwrap().1, 1 << 20);
        assert!(decode((1 << 20) - 1).is_err());
    }
}
