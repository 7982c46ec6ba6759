//! Makes untrusted text safe for one line of a terminal, a log, a page or an error text.
//!
//! Clients and origins choose names, URLs and header fields freely. Displayed unchanged, a line break would forge a
//! line of a listing or log, an escape sequence would repaint a terminal, and bidirectional or zero-width characters
//! would show another name than the real one. So every character that is not printable is displayed as its escape,
//! `\u{202e}`. Printable characters stay, and escaping a text twice changes nothing.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Maximum length at which an untrusted text is displayed whole among other text; longer than any host name.
pub const CLIPPED: usize = 260;

/// Characters that count as letters or symbols but are invisible: Hangul fillers, and Braille without dots.
const BLANK: [char; 5] = ['\u{115f}', '\u{1160}', '\u{2800}', '\u{3164}', '\u{ffa0}'];

/// Whether `c` is displayed as itself, in its place on the line.
pub fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // `escape_debug` keeps exactly the characters that are printable by themselves. It escapes control and format
        // characters, other spaces, unassigned and private-use characters, and combining marks.
        _ => c.escape_debug().len() == 1 && !BLANK.contains(&c),
    }
}

/// `text` on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    // Writing to a String cannot fail.
    let _infallible = OneLine(&mut line).write_str(text);
    Cow::Owned(line)
}

/// `text` on one line, and at most its first `most` characters.
pub fn clipped(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => Cow::Owned(format!("{}…", one_line(text.get(..end).unwrap_or_default()))),
        None => one_line(text),
    }
}

/// A short piece of untrusted text between other columns. Clips it, and escapes runs of spaces, which could fill the
/// terminal's line and forge the next one.
pub fn piece(text: &str) -> String {
    const MOST: usize = 100;
    let mut shown = String::new();
    let mut before = ' ';
    for c in clipped(text, MOST).chars() {
        if c == ' ' && before == ' ' {
            shown.push_str("\\u{20}");
        } else {
            shown.push(c);
        }
        before = c;
    }
    shown
}

/// A writer that passes texts on to another writer, on one line.
#[derive(Debug)]
pub struct OneLine<W>(pub W);

impl<W: Write> Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Self(to) = self;
        let mut rest = text;
        while let Some((at, odd)) = rest.char_indices().find(|(_, c)| !is_printable(*c)) {
            let (plain, behind) = rest.split_at_checked(at).unwrap_or((rest, ""));
            to.write_str(plain)?;
            match odd {
                '\n' => to.write_str("\\n")?,
                '\r' => to.write_str("\\r")?,
                '\t' => to.write_str("\\t")?,
                _ => write!(to, "{}", odd.escape_unicode())?,
            }
            rest = behind.get(odd.len_utf8()..).unwrap_or_default();
        }
        to.write_str(rest)
    }
}

/// JSON with every unprintable character in a string escaped as `\u202e`, which every JSON parser decodes.
pub fn json(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_printable(c) {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _infallible = write!(line, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_printable_character_is_shown_as_its_escape() {
        for (text, shown) in [
            ("/caf\u{e9}/\u{5317}", "/caf\u{e9}/\u{5317}"),
            ("a'\"\\b", "a'\"\\b"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31mred\u{7f}", "\\u{1b}[31mred\\u{7f}"),
            ("a\u{85}b\u{2028}c", "a\\u{85}b\\u{2028}c"),
            ("gpj.\u{202e}x\u{2066}", "gpj.\\u{202e}x\\u{2066}"),
            ("a\u{200b}\u{200d}\u{feff}\u{ad}b", "a\\u{200b}\\u{200d}\\u{feff}\\u{ad}b"),
            ("a\u{a0}\u{3000}\u{3164}b", "a\\u{a0}\\u{3000}\\u{3164}b"),
            ("a\u{301}", "a\\u{301}"),
            ("\u{e000}\u{10fffe}", "\\u{e000}\\u{10fffe}"),
        ] {
            assert_eq!(one_line(text), shown);
            // A second time changes nothing.
            assert_eq!(one_line(&one_line(text)), shown);
        }
    }

    #[test]
    fn long_texts_are_clipped_and_runs_of_spaces_fill_no_line() {
        assert_eq!(clipped("abcdef", 3), "abc…");
        assert_eq!(clipped("\u{5317}\u{5317}", 2), "\u{5317}\u{5317}");
        assert_eq!(piece("a  b c"), "a \\u{20}b c");
        assert!(piece(&"x".repeat(100_000)).chars().count() < 110);
    }

    #[test]
    fn json_stays_json() {
        let text = serde_json::to_string("a\u{202e}\n\u{7f}\u{10fffe}\u{1b}").unwrap();
        let shown = json(&text);
        assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)), "{shown}");
        assert_eq!(
            serde_json::from_str::<String>(&shown).unwrap(),
            "a\u{202e}\n\u{7f}\u{10fffe}\u{1b}"
        );
    }
}
