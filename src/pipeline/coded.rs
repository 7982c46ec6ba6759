//! A body that came in a content coding, judged as its clients judge it.
//!
//! Fills ask for none (`Accept-Encoding: identity`), and some servers code all the same. Clients that decode compare a digest
//! with what they decoded, so a body whose own bytes are not what was promised may still be right: its decoded bytes are what
//! counts. Such a body is given to those who wait for it and not kept, because in the store a digest names the bytes of a file,
//! and these are others.

use std::io::{self, Read};

use hyper::header;

use super::Pipeline;
use super::task::Task;
use crate::clock::Time;
use crate::digest::{Digest, Hashing, Wanted};
use crate::entry::Head;
use crate::received::Received;
use crate::verify::{Expectation, Finding};

/// What any body may decode to, in bytes; beyond that, bytes out for each byte in. A bomb is more.
const FREE: u64 = 64 << 20;
const STEEPEST: u64 = 200;

/// The window of a zstd decoder, as a power of two (RFC 9659 allows 8 MiB in HTTP).
const ZSTD_WINDOW: u32 = 23;

/// A coding that clients decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

impl Pipeline {
    /// Whether a body that came in a declared coding is what was promised once it is decoded.
    pub(super) async fn is_right_decoded(
        &self,
        task: &Task,
        received: &Received,
        expected: &Expectation,
        asked: Time,
    ) -> bool {
        let Some(coding) = coding_of(&received.head) else {
            return false;
        };
        let (path, size) = (received.body.path().to_owned(), received.body.size);
        let wanted = task.wanted(expected.algorithms());
        let _place = self.reading.place().await;
        let decoding = tokio::task::spawn_blocking(move || {
            let coded = io::BufReader::new(std::fs::File::open(path)?);
            digests_of(coding, coded, size.saturating_mul(STEEPEST).max(FREE), wanted)
        });
        let (digests, length) = match decoding.await {
            Ok(Ok(decoded)) => decoded,
            Ok(Err(error)) => {
                tracing::debug!(url = %task.target, %error, "this body does not decode");
                return false;
            }
            Err(_) => return false,
        };
        match expected.find(&digests, length, asked) {
            Finding::Proven { .. } | Finding::Excused(_) => {
                tracing::info!(
                    url = %task.target, ?coding,
                    "its origin codes this file though nobody asked for that: it is as promised once decoded, and is given but \
                     not kept"
                );
                true
            }
            Finding::Doubted(_) | Finding::Refused(_) => false,
        }
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
        _ => return None,
    };
    named.next().is_none().then_some(coding)
}

/// Whether an answer declares a coding at all.
pub(super) fn is_coded(head: &Head) -> bool {
    let mut codings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The digests and the length of what `coded` decodes to. Blocking.
fn digests_of(
    coding: Coding,
    coded: impl io::BufRead,
    most: u64,
    wanted: Wanted,
) -> io::Result<(Vec<Digest>, u64)> {
    let mut decoded: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(coded)),
        Coding::Deflate => Box::new(flate2::bufread::ZlibDecoder::new(coded)),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(coded)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    };
    let mut hashing = Hashing::new(wanted);
    let (mut buffer, mut length) = (vec![0; 64 * 1024], 0_u64);
    loop {
        let read = decoded.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        length += read as u64;
        if length > most {
            return Err(io::Error::other("it decodes to far more than any file does"));
        }
        hashing.update(buffer.get(..read).unwrap_or_default());
    }
    Ok((hashing.finish().iter().copied().collect(), length))
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
            ("br", None),
            ("gzip, gzip", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, value.parse().unwrap());
            assert_eq!(coding_of(&Head { status: StatusCode::OK, headers }), coding, "{value}");
        }
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
