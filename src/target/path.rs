//! Paths: kept as they were received, or refused; one spelling has another in its place.

/// Why a path is no target. Each is a trick by which two parsers may see two resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// No `/` at the start.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `..`, raw or escaped; `.` escaped, or at the end.
    #[error("the path has a dot segment")]
    DotSegment,
    /// A byte that a URL cannot hold.
    #[error("the path has a byte that a URL cannot hold")]
    Byte,
    /// `%` without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits")]
    Escape,
    /// An escaped control byte, NUL or line end among them.
    #[error("the path has an escaped control byte")]
    Control,
    /// Longer than [`MAX_URL`](super::MAX_URL).
    #[error("the URL is longer than 16 KiB")]
    TooLong,
}

/// Percent-decodes once; `None` if that gives control bytes or no UTF-8.
pub fn decode_once(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
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

pub(super) fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.to_ascii_uppercase().replace("%2E", ".").as_str(), "." | "..")
}

/// Takes `/./` for the `/` that it means to everybody (RFC 3986 §6.2.2.3). Most clients do so before they ask; apt does
/// not, and asks like this for everything in a flat archive whose line says `./`. No other dots are removed: `..`, and what
/// is escaped, are not the same to all.
pub(super) fn without_single_dots(path: &str) -> String {
    let last = path.matches('/').count();
    let segments = path.split('/').enumerate();
    let kept = segments.filter(|(place, segment)| *segment != "." || *place == last);
    kept.map(|(_, segment)| segment).collect::<Vec<_>>().join("/")
}

/// Upper-case escapes, everything else as it stands.
pub(super) fn canonical_escapes(path: &str) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut value = 0;
                out.push('%');
                for _ in 0..2 {
                    let digit = bytes.next().map(char::from).ok_or(BadPath::Escape)?;
                    value = value << 4 | digit.to_digit(16).ok_or(BadPath::Escape)?;
                    out.push(digit.to_ascii_uppercase());
                }
                if value < 0x20 || value == 0x7f {
                    return Err(BadPath::Control);
                }
            }
            0..=b' ' | 0x7f.. | b'\\' | b'#' => return Err(BadPath::Byte),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}
