//! Bytes that are not allowed in URLs, but that clients send in request targets all the same: raw UTF-8 or Latin-1,
//! quotes, angle brackets, a backtick.
//!
//! Origins accept them, each in its own way. So the origin must receive exactly what the client sent, and the key must
//! keep `/é` and `/%C3%A9` apart (promise P1: merging them would be cache poisoning). The HTTP library's URIs can
//! represent only some of them. Therefore each such byte is *masked*: it becomes a character of a private-use block
//! whose lowest byte is that byte. Every byte that could be part of such a character is masked itself, so no two
//! targets have the same masked form. A target is masked before the library reads it (`intercept::heads`), and unmasked
//! where the request to the origin is written (`origin::verbatim`).

use std::fmt::{self, Write as _};

use super::shown::OneLine;

/// The first character of the block, which masks byte zero.
const BLOCK: u32 = 0x10_ff00;

/// Whether a byte of a target needs no mask.
pub const fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'`')
}

/// The character that masks `byte`.
pub fn mask(byte: u8) -> char {
    // Every value of the block is a valid character.
    char::from_u32(BLOCK + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `c` masks, if any.
pub fn byte_of(c: char) -> Option<u8> {
    u32::from(c).checked_sub(BLOCK).and_then(|byte| u8::try_from(byte).ok())
}

/// Whether `text` contains a masked byte.
pub fn is_masked(text: &str) -> bool {
    !text.is_ascii() && text.chars().any(|c| byte_of(c).is_some())
}

/// Masks the target of a request as it was sent.
pub fn masked(sent: &[u8]) -> String {
    let mut text = String::with_capacity(sent.len() + 16);
    text.extend(sent.iter().map(|b| if is_plain(*b) { char::from(*b) } else { mask(*b) }));
    text
}

/// The bytes of a masked `text`.
pub fn unmasked(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The length in bytes of the request target that `text` represents.
pub(super) fn length(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.chars().map(|c| if byte_of(c).is_some() { 1 } else { c.len_utf8() }).sum()
}

/// Writes `text` for display: valid UTF-8 as it is, other bytes as `\xff`, all on one line.
pub(super) fn show(text: &str, to: &mut fmt::Formatter<'_>) -> fmt::Result {
    if text.is_ascii() {
        return OneLine(to).write_str(text);
    }
    for chunk in unmasked(text).utf8_chunks() {
        OneLine(&mut *to).write_str(chunk.valid())?;
        for byte in chunk.invalid() {
            write!(to, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No two targets have the same mask, and unmasking restores each.
        #[test]
        fn a_mask_hides_nothing(sent in proptest::collection::vec(1_u8.., 0..64)) {
            let text = masked(&sent);
            prop_assert_eq!(unmasked(&text), &sent[..]);
            prop_assert_eq!(length(&text), sent.len());
            prop_assert_eq!(is_masked(&text), sent.iter().any(|b| !is_plain(*b)));
        }
    }

    #[test]
    fn whoever_sends_a_character_of_the_block_has_its_bytes_masked() {
        let forged = masked(mask(b'<').to_string().as_bytes());
        assert_ne!(forged, masked(b"<"));
        assert_eq!(forged.chars().count(), 4);
    }
}
