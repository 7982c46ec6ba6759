//! Clear-signed documents (RFC 9580 §7), parsed as strictly as apt parses them.
//!
//! Only the text between the header and the signatures is signed, and it is signed in a canonical form. A parser of the
//! raw document may read lines that nobody signed, so this module returns only the recovered text. It refuses anything
//! that two parsers could read in two ways: text before the header or after the signatures, a line that begins with an
//! unescaped dash, a lone carriage return.
//!
//! Sources: RFC 9580 §7; apt's `gpgv.cc`, whose rules are stricter.

use std::borrow::Cow;

/// The first line of a clear-signed document.
const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
const END: &str = "-----END PGP SIGNATURE-----";

/// The maximum length of a clear-signed document, in bytes. The largest known InRelease has less than 1 MiB.
const MAX_DOCUMENT: usize = 16 << 20;

/// A parsed clear-signed document. Nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleartext {
    /// The text, lines ended by line feeds.
    text: String,
    /// The text in its signed form: lines without trailing white space, joined by CRLF.
    pub(super) canonical: Vec<u8>,
    /// The armoured signatures.
    pub(super) signatures: Vec<String>,
}

/// Why a document is not clear-signed, or is ambiguous.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a clear-signed document: {0}")]
pub struct NotCleartext(Cow<'static, str>);

impl Cleartext {
    /// Parses a document.
    pub fn parse(document: &[u8]) -> Result<Self, NotCleartext> {
        let refuse = |why: &'static str| NotCleartext(why.into());
        if document.len() > MAX_DOCUMENT {
            return Err(refuse("it is longer than any known"));
        }
        let whole = std::str::from_utf8(document).map_err(|_| refuse("it is not UTF-8"))?;
        let mut lines = whole.split('\n').map(trimmed);
        if lines.next() != Some(BEGIN) {
            return Err(refuse("it does not begin with -----BEGIN PGP SIGNED MESSAGE-----"));
        }
        for line in lines.by_ref() {
            if line.is_empty() {
                break;
            }
            if line.starts_with('-') || !line.starts_with("Hash: ") {
                return Err(refuse("its header has fields other than Hash"));
            }
        }
        let (mut text, mut canonical) = (String::new(), Vec::new());
        loop {
            let line = lines.next().ok_or_else(|| refuse("its signature is missing"))?;
            if line == SIGNATURE {
                break;
            }
            if line.contains('\r') {
                return Err(refuse("it contains a lone carriage return"));
            }
            let line = match line.strip_prefix("- ") {
                Some(escaped) => escaped,
                None if line.starts_with('-') => {
                    return Err(refuse("a line begins with a dash that is not escaped"));
                }
                None => line,
            };
            if !text.is_empty() {
                canonical.extend_from_slice(b"\r\n");
            }
            canonical.extend_from_slice(line.as_bytes());
            text.push_str(line);
            text.push('\n');
        }
        Ok(Self { text, canonical, signatures: signatures(lines)? })
    }

    /// The signed text, provided that a signature is valid.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The armoured signatures. `lines` starts after the first one's opening line and runs to the end of the document;
/// nothing else may stand there.
fn signatures<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<String>, NotCleartext> {
    let mut blocks = Vec::new();
    let mut open = Some(format!("{SIGNATURE}\n"));
    for line in lines {
        match &mut open {
            Some(block) => {
                block.push_str(line);
                block.push('\n');
                if line == END {
                    blocks.extend(open.take());
                } else if line.starts_with('-') {
                    return Err(NotCleartext("its signature is incomplete".into()));
                }
            }
            None if line == SIGNATURE => open = Some(format!("{SIGNATURE}\n")),
            None if line.is_empty() => {}
            None => return Err(NotCleartext("there is text after its signature".into())),
        }
    }
    match open {
        None => Ok(blocks),
        Some(_) => Err(NotCleartext("its signature is incomplete".into())),
    }
}

/// A line without the trailing white space that is not signed (RFC 9580 §7.2).
fn trimmed(line: &str) -> &str {
    line.trim_end_matches([' ', '\t', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: &str) -> Result<Cleartext, NotCleartext> {
        Cleartext::parse(document.as_bytes())
    }

    fn document(text: &str) -> String {
        format!("{BEGIN}\nHash: SHA256\n\n{text}\n{SIGNATURE}\n\nAAAA\n{END}\n")
    }

    #[test]
    fn the_text_is_recovered_and_made_canonical() {
        let parsed = parse(&document("A: b \t\r\n\n- -dash\nlast")).unwrap();
        assert_eq!(parsed.text(), "A: b\n\n-dash\nlast\n");
        assert_eq!(parsed.canonical, b"A: b\r\n\r\n-dash\r\nlast");
        assert_eq!(parsed.signatures.len(), 1);
        let two = document("A: b") + &format!("{SIGNATURE}\n\nBBBB\n{END}\n");
        assert_eq!(parse(&two).unwrap().signatures.len(), 2);
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        for hostile in [
            format!("A: b\n{}", document("A: b")),
            document("A: b") + "A: c\n",
            document("-dash"),
            document("-----BEGIN PGP SIGNED MESSAGE-----"),
            document("A: b\rA: c"),
            document("A: b").replace("Hash: SHA256", "- Hash: SHA256"),
            document("A: b").replace("Hash: SHA256", "A: c"),
            document("A: b").replace(END, ""),
            document("A: b").replace(SIGNATURE, ""),
            format!("{BEGIN}\n\nA: b\n"),
            String::new(),
        ] {
            assert!(parse(&hostile).is_err(), "{hostile}");
        }
        assert!(parse(&document("A: b")).is_ok());
    }
}
