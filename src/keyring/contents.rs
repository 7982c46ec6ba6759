//! Parses key files. The format is recognised by content, by asking each kind of keys in turn.

use super::kind::{Contents, KeyFile};
use super::{KINDS, MAX_FILE, NotKeys};

/// Reads the content `bytes` of a file called `name`. The result has at least one key.
pub fn read(bytes: &[u8], name: &str) -> Result<Contents, NotKeys> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(NotKeys::TooLong);
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
    if text.is_empty() {
        return Err(NotKeys::Empty);
    }
    // JSON and binary packets may quote anything.
    let is_armour = text.first().is_some_and(|first| *first != b'{' && first & 0x80 == 0);
    if is_armour && has(text, b"PRIVATE KEY") && has(text, b"-----BEGIN ") {
        return Err(NotKeys::Private);
    }
    let (file, mut damaged) = (KeyFile { name, bytes, text }, false);
    for kind in KINDS {
        let Some(found) = kind.read(&file) else { continue };
        let found = found?;
        damaged |= found.damaged;
        if !found.keys.is_empty() {
            return Ok(Contents { damaged, ..found });
        }
    }
    Err(NotKeys::Other)
}

fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
