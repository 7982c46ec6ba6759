//! Rewrites the links of an HTML page while it passes through; all other bytes are unchanged.
//!
//! The scanner follows the HTML standard (§13.2.5) as far as it determines where a tag ends: quotes count only in
//! values, and nothing counts in comments and scripts. It buffers at most one tag. Clients use the `href`s of `<a>`
//! as links; `<base>` determines what they are relative to.

use html5gum::{Token, Tokenizer};

use super::rewrite::LinkRewriter;

/// The longest tag that is read: a URL of the maximum length, with every digest and the signature that pages add to
/// it. A longer tag passes unchanged.
const MAX_TAG: usize = 64 * 1024;

/// The longest element name that is compared.
const MAX_NAME: usize = 10;

/// Elements whose content contains no tags (HTML §13.2.6.4.4, §13.2.6.4.7).
const RAW: [&[u8]; 4] = [b"script", b"style", b"textarea", b"title"];

/// The state of the scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After `<`.
    Open,
    /// In a tag.
    Tag(Within),
    /// After `<!`, `<?`, or `</` without a letter. It ends at the next `>`, unless it turns out to be `<!--`;
    /// `dashes` counts the dashes so far.
    Markup {
        dashes: Option<u8>,
    },
    /// In a comment; the last characters were `dashes` dashes, and perhaps a `!`.
    Comment {
        dashes: u8,
        bang: bool,
    },
    /// In an element of [`RAW`]; the last `matched` bytes are the begin of its end tag.
    Raw {
        element: &'static [u8],
        matched: usize,
    },
}

/// The position in a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Name,
    BeforeAttribute,
    Attribute,
    AfterAttribute,
    BeforeValue,
    Quoted(u8),
    Bare,
}

/// The first `href` of the tag that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Href {
    start: usize,
    end: usize,
    quote: Option<u8>,
}

/// The scanner.
#[derive(Debug)]
pub(super) struct Html {
    state: State,
    /// The bytes of the tag so far; empty if it is too long or of no interest.
    held: Vec<u8>,
    /// The bytes of the tag are no longer buffered but passed on.
    gone: bool,
    is_end: bool,
    name: Vec<u8>,
    attribute: Vec<u8>,
    href: Option<Href>,
    based: bool,
}

impl Html {
    pub(super) fn new() -> Self {
        Self {
            state: State::Text,
            held: Vec::new(),
            gone: false,
            is_end: false,
            name: Vec::new(),
            attribute: Vec::new(),
            href: None,
            based: false,
        }
    }

    /// Processes a piece of the page; bytes that are final are appended to `out`.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>, lead: &mut LinkRewriter) {
        for byte in piece {
            self.byte(*byte, out, lead);
        }
    }

    /// Ends the page: buffered bytes pass unchanged.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.state = State::Text;
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>, lead: &mut LinkRewriter) {
        match self.state {
            State::Text => {
                if byte == b'<' {
                    self.held.push(byte);
                    self.state = State::Open;
                } else {
                    out.push(byte);
                }
            }
            State::Open => self.open(byte, out),
            State::Tag(within) => self.tag(within, byte, out, lead),
            State::Markup { dashes } => {
                out.push(byte);
                self.state = match (byte, dashes) {
                    (b'>', _) => State::Text,
                    (b'-', Some(0)) => State::Markup { dashes: Some(1) },
                    (b'-', Some(_)) => State::Comment { dashes: 2, bang: false },
                    _ => State::Markup { dashes: None },
                };
            }
            State::Comment { dashes, bang } => {
                out.push(byte);
                self.state = match byte {
                    b'>' if dashes >= 2 || bang => State::Text,
                    b'-' => State::Comment { dashes: (dashes + 1).min(2), bang: false },
                    b'!' if dashes >= 2 => State::Comment { dashes: 0, bang: true },
                    _ => State::Comment { dashes: 0, bang: false },
                };
            }
            State::Raw { element, matched } => {
                out.push(byte);
                self.state = raw(element, matched, byte);
                if self.state == State::Tag(Within::BeforeAttribute) {
                    // The begin of the end tag has been passed on.
                    self.begin_tag(true);
                    self.gone = true;
                }
            }
        }
    }

    /// Processes the byte after `<` or `</`.
    fn open(&mut self, byte: u8, out: &mut Vec<u8>) {
        let closes = self.held.len() == 2;
        match byte {
            b'/' if !closes => self.held.push(byte),
            b'a'..=b'z' | b'A'..=b'Z' => {
                self.held.push(byte);
                self.begin_tag(closes);
                self.name.push(byte.to_ascii_lowercase());
                self.state = State::Tag(Within::Name);
            }
            b'<' if !closes => {
                // The first `<` was text.
                out.push(byte);
            }
            _ => {
                out.append(&mut self.held);
                out.push(byte);
                self.state = match byte {
                    b'>' => State::Text,
                    b'!' if !closes => State::Markup { dashes: Some(0) },
                    b'?' => State::Markup { dashes: None },
                    _ if closes => State::Markup { dashes: None },
                    _ => State::Text,
                };
            }
        }
    }

    fn begin_tag(&mut self, is_end: bool) {
        self.gone = false;
        self.is_end = is_end;
        self.name.clear();
        self.attribute.clear();
        self.href = None;
    }

    /// Processes a byte of a tag.
    fn tag(&mut self, within: Within, byte: u8, out: &mut Vec<u8>, lead: &mut LinkRewriter) {
        if self.gone {
            out.push(byte);
        } else {
            self.held.push(byte);
        }
        let next = match (within, byte) {
            (Within::Quoted(quote), _) if byte != quote => within,
            (Within::Quoted(_), _) => {
                self.value_ended(1);
                Within::BeforeAttribute
            }
            (_, b'>') => {
                if within == Within::Bare {
                    self.value_ended(1);
                }
                self.tag_ended(out, lead);
                return;
            }
            (Within::Bare, _) if byte.is_ascii_whitespace() => {
                self.value_ended(1);
                Within::BeforeAttribute
            }
            (Within::Bare, _) => Within::Bare,
            (Within::BeforeValue, b'"' | b'\'') => {
                self.value_begins(Some(byte));
                Within::Quoted(byte)
            }
            (Within::BeforeValue, _) if !byte.is_ascii_whitespace() => {
                self.value_begins(None);
                Within::Bare
            }
            (Within::BeforeValue, _) => within,
            _ => self.name(within, byte),
        };
        self.state = State::Tag(next);
        if self.held.len() > MAX_TAG {
            out.append(&mut self.held);
            self.gone = true;
        }
    }

    /// Processes a byte of the tag's name, of an attribute's name, or between them.
    fn name(&mut self, within: Within, byte: u8) -> Within {
        match (within, byte) {
            (Within::Attribute | Within::AfterAttribute, b'=') => Within::BeforeValue,
            (_, b'/') => Within::BeforeAttribute,
            (Within::Name, _) if byte.is_ascii_whitespace() => Within::BeforeAttribute,
            (Within::Attribute, _) if byte.is_ascii_whitespace() => Within::AfterAttribute,
            (_, _) if byte.is_ascii_whitespace() => within,
            (Within::Name, _) => {
                keep(&mut self.name, byte);
                Within::Name
            }
            (Within::Attribute, _) => {
                keep(&mut self.attribute, byte);
                Within::Attribute
            }
            _ => {
                self.attribute.clear();
                keep(&mut self.attribute, byte);
                Within::Attribute
            }
        }
    }

    fn value_begins(&mut self, quote: Option<u8>) {
        // Of several attributes with the same name the first counts (HTML §13.2.5.33).
        if self.href.is_none() && self.attribute == b"href" {
            let start = self.held.len() - usize::from(quote.is_none() && !self.held.is_empty());
            self.href = Some(Href { start, end: 0, quote });
            self.attribute.clear();
            // Marks the value as this attribute's, so that the end of another value is not taken for its end.
            self.attribute.extend_from_slice(b"href=");
        }
    }

    /// Ends a value, `back` bytes before the end of the buffer.
    fn value_ended(&mut self, back: usize) {
        if self.attribute == b"href="
            && let Some(href) = &mut self.href
        {
            href.end = self.held.len().saturating_sub(back);
        }
        self.attribute.clear();
    }

    fn tag_ended(&mut self, out: &mut Vec<u8>, lead: &mut LinkRewriter) {
        self.state = State::Text;
        if !self.is_end {
            if let Some(element) = RAW.iter().find(|element| **element == self.name) {
                self.state = State::Raw { element, matched: 0 };
            }
            if !self.gone {
                self.change(lead);
            }
        }
        out.append(&mut self.held);
    }

    /// Rewrites the link in the buffered tag, if there is one that must change.
    fn change(&mut self, lead: &mut LinkRewriter) {
        let is_base = self.name == b"base";
        let (true, Some(href)) = (is_base || self.name == b"a", self.href) else { return };
        let Some(raw) = self.held.get(href.start..href.end) else { return };
        let Some(text) = std::str::from_utf8(raw).ok() else { return };
        let Some(link) = decoded(text) else { return };
        let changed = if is_base {
            // Only the first one counts (HTML §4.2.3).
            if std::mem::replace(&mut self.based, true) { None } else { lead.base(&link) }
        } else {
            lead.path(&link)
        };
        let Some(changed) = changed else { return };
        let value = encoded(&changed);
        let value = if href.quote.is_none() { format!("\"{value}\"") } else { value };
        self.held.splice(href.start..href.end, value.into_bytes());
    }
}

/// Appends a letter to a name. Of a long name, enough is kept to tell it from all names that matter.
fn keep(name: &mut Vec<u8>, byte: u8) {
    if name.len() <= MAX_NAME {
        name.push(byte.to_ascii_lowercase());
    }
}

/// The state after `byte` in an element of [`RAW`], if the previous bytes are the first `matched` of its end tag.
fn raw(element: &'static [u8], matched: usize, byte: u8) -> State {
    let expected = match matched {
        0 => Some(b'<'),
        1 => Some(b'/'),
        _ => element.get(matched - 2).copied(),
    };
    match expected {
        Some(expected) if byte.to_ascii_lowercase() == expected => {
            State::Raw { element, matched: matched + 1 }
        }
        None if byte == b'>' => State::Text,
        None if byte == b'/' || byte.is_ascii_whitespace() => State::Tag(Within::BeforeAttribute),
        Some(_) | None => State::Raw { element, matched: usize::from(byte == b'<') },
    }
}

/// An attribute's value with its character references resolved; `None` if they cannot be.
fn decoded(raw: &str) -> Option<String> {
    if !raw.contains('&') {
        return Some(raw.to_owned());
    }
    let quote = if raw.contains('"') { '\'' } else { '"' };
    if raw.contains(quote) {
        return None;
    }
    let tag = format!("<a href={quote}{raw}{quote}>");
    let Ok(Token::StartTag(tag)) = Tokenizer::new(tag.as_str()).next()? else { return None };
    let value = tag.attributes.get(&b"href"[..])?;
    String::from_utf8(value.to_vec()).ok()
}

/// Text as an attribute's value.
fn encoded(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    /// The output of the scanner for a page in two pieces, cut at `at`.
    fn passed(page: &[u8], at: usize) -> String {
        let home = Target::from_url("https://example.org/simple/widget/").unwrap();
        let mut lead = LinkRewriter::from(&home, "http://larder:3142", false, false).unwrap();
        let (mut html, mut out) = (Html::new(), Vec::new());
        let (one, two) = page.split_at(at);
        html.push(one, &mut out, &mut lead);
        html.push(two, &mut out, &mut lead);
        html.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[track_caller]
    fn expect(page: &str, expected: &str) {
        for at in 0..=page.len() {
            assert_eq!(passed(page.as_bytes(), at), expected, "cut at {at}");
        }
    }

    #[test]
    fn links_change_wherever_the_page_is_cut() {
        expect(
            "<!DOCTYPE html>\n<html><body>\n<a href=\"https://files.example.org/a-1.whl#sha256=00\" data-x=\"y\">a-1.whl</a><br/>\n\
             <A class='x' HREF = 'https://files.example.org/b.whl' >b</A>\n<a href=/packages/c.whl>c</a><a href=\"../d.whl\">d</a></body></html>\n",
            "<!DOCTYPE html>\n<html><body>\n<a href=\"/https/files.example.org/a-1.whl#sha256=00\" data-x=\"y\">a-1.whl</a><br/>\n\
             <A class='x' HREF = '/https/files.example.org/b.whl' >b</A>\n<a href=\"/https/example.org/packages/c.whl\">c</a>\
             <a href=\"/https/example.org/simple/d.whl\">d</a></body></html>\n",
        );
    }

    #[test]
    fn character_references_are_read_and_written() {
        expect("<a href=\"&#47;a?x=1&amp;y=2\">", "<a href=\"/https/example.org/a?x=1&amp;y=2\">");
        expect(
            "<a href='https&colon;//files.example.org/a'>",
            "<a href='/https/files.example.org/a'>",
        );
        expect("<a href=\"a?x=1&amp;y=2\">", "<a href=\"a?x=1&amp;y=2\">");
        expect("<a href='/a&#39;b&quot;'>", "<a href='/https/example.org/a&#39;b&quot;'>");
    }

    #[test]
    fn a_base_decides_what_a_slash_means_and_only_the_first_one() {
        expect(
            "<base href=\"https://files.example.org/d/\"><a href=\"/a\"><a href=\"b\"><base href=\"/x/\"><a href=\"/c\">",
            "<base href=\"/https/files.example.org/d/\"><a href=\"/https/files.example.org/a\"><a href=\"b\"><base href=\"/x/\">\
             <a href=\"/https/files.example.org/c\">",
        );
    }

    #[test]
    fn comments_scripts_and_other_elements_stay() {
        for page in [
            "<!-- <a href=\"/a\"> - -- > -- -!> --->",
            "<!--><b href=\"/a\">",
            "<!-- x --!><link href=\"/a\">",
            "<script>\"<a href='/a'>\"</scriptx></script>",
            "<STYLE><a href=\"/a\"></style >",
            "<title><a href=/a></title/>",
            "<? <a href=\"/a\"",
            "</ <a href=\"/a\"",
            "a < b <1 <",
            "<img data-href=\"/a\" alt='<a href=\"/a\">'>",
            "</a href=\"/a\">",
            "<a xhref=\"/a\" href=\"\">",
            "<abbr href=\"/a\">",
        ] {
            expect(page, page);
        }
        // Control: a link after each of them is rewritten.
        for page in [
            "<!-->",
            "<!--->",
            "<!-- x --!>",
            "<!x>",
            "<? x>",
            "</ x>",
            "</>",
            "<script>x</script >",
            "<b x=\"'\">",
            "a<",
            "<b/",
        ] {
            let page = format!("{page}{}", if page == "<b/" { ">" } else { "" });
            expect(
                &format!("{page}<a href=\"/a\">"),
                &format!("{page}<a href=\"/https/example.org/a\">"),
            );
        }
    }

    #[test]
    fn the_first_of_two_attributes_counts() {
        expect("<a href=\"b\" href=\"/a\">", "<a href=\"b\" href=\"/a\">");
        expect(
            "<a href=\"/a\" title=\"/t\" href=\"/b\">",
            "<a href=\"/https/example.org/a\" title=\"/t\" href=\"/b\">",
        );
    }

    #[test]
    fn nothing_grows_with_the_page_and_a_torn_tag_leaves() {
        let home = Target::from_url("https://example.org/").unwrap();
        let mut lead = LinkRewriter::from(&home, "http://larder:3142", false, false).unwrap();
        let (mut html, mut out) = (Html::new(), Vec::new());
        html.push(b"<a href=\"/", &mut out, &mut lead);
        html.push(&vec![b'a'; 1 << 20], &mut out, &mut lead);
        assert!(html.held.len() <= MAX_TAG && out.len() > 1 << 19);
        html.push(b"\"><a href=\"/b\"><a hre", &mut out, &mut lead);
        html.finish(&mut out);
        assert!(out.ends_with(b"aaa\"><a href=\"/https/example.org/b\"><a hre"));
    }

    proptest::proptest! {
        /// Wherever a page is cut, bytes outside links do not change: without the prefixes the output is the page
        /// again.
        #[test]
        fn any_page_passes(parts in proptest::collection::vec("(<a href=[\"']?|[\"'>=&#; /-]|</?script>|<!--|-->|/x|https://f\\.org|é)", 0..40), cut in 0_usize..200) {
            let page = parts.concat();
            let whole = passed(page.as_bytes(), 0);
            proptest::prop_assert_eq!(&passed(page.as_bytes(), cut.min(page.len())), &whole);
            if !page.contains("href") {
                proptest::prop_assert_eq!(whole, page);
            }
        }
    }
}
