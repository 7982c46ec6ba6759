//! Validates paths. A path is kept as received or refused, except that the digits of percent-escapes become upper case,
//! a raw `/./` becomes `/`, and odd bytes are masked.

use std::borrow::Cow;

use super::raw;

/// Why a path is refused. Each case is a trick by which two parsers may see two resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `..`, raw or escaped; `.`, escaped or at the end.
    #[error("the path has a dot segment")]
    DotSegment,
    /// A control byte, a space or `#`: some servers end the path there, others do not.
    #[error("the URL has a space, a control byte or a # in it; send it percent-encoded")]
    Byte,
    /// An escaped control byte, for example NUL or a line break.
    #[error("the path has an escaped control byte")]
    Control,
    /// Longer than [`MAX_URL`](super::MAX_URL).
    #[error("the URL is longer than 16 KiB")]
    TooLong,
}

/// Percent-decodes once; `None` if the result has control characters or is not UTF-8. A masked byte decodes to the byte
/// itself.
pub fn decode_once(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let text =
        if text.is_ascii() { Cow::Borrowed(text.as_bytes()) } else { raw::unmasked(text).into() };
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.chars().any(char::is_control))
}

fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.to_ascii_uppercase().replace("%2E", ".").as_str(), "." | "..")
}

/// Replaces `/./` by `/`, which all servers treat as equal (RFC 3986 §6.2.2.3). Most clients do this before they send a
/// request. apt does not, and requests everything in a flat archive whose source line says `./` in this form. Other
/// dots are not removed, because servers differ about `..` and about escaped dots.
pub(super) fn without_single_dots(path: &str) -> String {
    let last = path.matches('/').count();
    let segments = path.split('/').enumerate();
    let kept = segments.filter(|(place, segment)| *segment != "." || *place == last);
    kept.map(|(_, segment)| segment).collect::<Vec<_>>().join("/")
}

/// A path in which `@scope%2Fname` becomes two segments. Registries treat both spellings as one name.
pub(super) fn with_parted_scope(path: &str) -> Cow<'_, str> {
    let parted = |segment: &str| {
        let (scope, name) = segment.split_once("%2F")?;
        let is_scope = scope.starts_with('@') || scope.starts_with("%40");
        (is_scope && !name.is_empty() && !name.contains("%2F")).then(|| format!("{scope}/{name}"))
    };
    if !path.split('/').any(|segment| parted(segment).is_some()) {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| parted(segment).unwrap_or_else(|| segment.into()));
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// Whether a path has a dot segment, also for servers that treat a backslash as a slash.
pub(super) fn has_dot_segment(path: &str) -> bool {
    path.split(['/', '\\']).any(is_dot_segment)
}

/// Puts percent-escapes in upper case, masks odd bytes, and keeps everything else: also a percent sign without two
/// hexadecimal digits, which servers take literally.
pub(super) fn canonical(path: &str) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        match (c, escaped(rest.as_str())) {
            ('%', Some(byte)) => {
                if byte < 0x20 || byte == 0x7f {
                    return Err(BadPath::Control);
                }
                out.push('%');
                out.extend(rest.by_ref().take(2).map(|digit| digit.to_ascii_uppercase()));
            }
            _ => put(c, &mut out)?,
        }
    }
    Ok(out)
}

/// A query with its odd bytes masked. Nothing else in it has a meaning that all servers share.
pub(super) fn canonical_query(query: &str) -> Result<Cow<'_, str>, BadPath> {
    if query.bytes().all(raw::is_plain) {
        return Ok(Cow::Borrowed(query));
    }
    let mut out = String::with_capacity(query.len());
    query.chars().try_for_each(|c| put(c, &mut out))?;
    Ok(Cow::Owned(out))
}

/// The byte that two hexadecimal digits at the start of `text` encode.
fn escaped(text: &str) -> Option<u8> {
    let mut digits = text.chars();
    let high = digits.next()?.to_digit(16)?;
    let low = digits.next()?.to_digit(16)?;
    u8::try_from(high << 4 | low).ok()
}

fn put(c: char, out: &mut String) -> Result<(), BadPath> {
    match c {
        '\0'..=' ' | '\x7f' | '#' => return Err(BadPath::Byte),
        _ if raw::byte_of(c).is_some_and(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') => {
            return Err(BadPath::Byte);
        }
        // Masked already, or in need of no mask.
        _ if raw::byte_of(c).is_some() || u8::try_from(c).is_ok_and(raw::is_plain) => out.push(c),
        _ => out.extend(c.encode_utf8(&mut [0; 4]).bytes().map(raw::mask)),
    }
    Ok(())
}
