//! A container format for small files that detects damage.
//!
//! ```text
//! magic 4 │ format version 2 │ length of the body 4 │ CRC-32 of the body 4 │ body (postcard)
//! ```
//!
//! Numbers are big-endian. A file whose kind, version, length or CRC is not as expected reads as missing: cache
//! contents are then fetched again, and state is created anew. The CRC detects damage, not forgery: whoever can write
//! to the data directory could change anything in larder.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The type of a file and the version of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// The first four bytes.
    pub(super) magic: [u8; 4],
    /// Raised with each change that an older larder could not read.
    pub(super) version: u16,
}

const HEADER: usize = 14;

/// Encodes `value` as the contents of a sealed file.
pub(super) fn seal<T: Serialize>(kind: Kind, value: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&header(kind, length, crc32fast::hash(&body)));
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Decodes what [`seal`] encoded; `None` if anything was changed.
pub(super) fn unseal<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(body(kind, bytes)?).ok()
}

/// Decodes what an earlier larder encoded, whose format lacks the last fields; `rest` is the encoding of those.
pub(super) fn unseal_shorter<T: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    rest: &[u8],
) -> Option<T> {
    postcard::from_bytes(&[body(kind, bytes)?, rest].concat()).ok()
}

fn body(kind: Kind, bytes: &[u8]) -> Option<&[u8]> {
    let (head, body) = bytes.split_at_checked(HEADER)?;
    let length = u32::try_from(body.len()).ok()?;
    (head == header(kind, length, crc32fast::hash(body))).then_some(body)
}

fn header(kind: Kind, length: u32, crc: u32) -> [u8; HEADER] {
    let pieces = kind
        .magic
        .into_iter()
        .chain(kind.version.to_be_bytes())
        .chain(length.to_be_bytes())
        .chain(crc.to_be_bytes());
    let mut header = [0; HEADER];
    for (to, from) in header.iter_mut().zip(pieces) {
        *to = from;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"TEST", version: 1 };

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let bytes = seal(KIND, &("hello", 7_u32)).unwrap();
        assert_eq!(unseal::<(String, u32)>(KIND, &bytes), Some(("hello".into(), 7)));
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert_eq!(unseal::<(String, u32)>(KIND, &damaged), None, "{position}");
            assert_eq!(unseal::<(String, u32)>(KIND, &bytes[..position]), None);
        }
        let next = Kind { version: 2, ..KIND };
        assert_eq!(unseal::<(String, u32)>(next, &bytes), None);
    }
}
