//! Parses an HTML page (PEP 503): its `<a>` and `<base>` tags, one at a time, in memory that does not depend on the
//! page.
//!
//! html5gum tokenizes according to the HTML standard (§13.2.5): it decodes character references in attribute values and
//! accepts any bytes. [`Tags`] keeps only what a claim needs, each value up to a limit. No tree is built: a link in a
//! comment or a script does not count, a link anywhere else does, as in the clients.

use std::io::Read;

use html5gum::{Emitter, IoReader, State, Tokenizer};

use super::links::Links;
use crate::ecosystem::Malformed;
use crate::ecosystem::bounded::{Bounded, Words, malformed};
use crate::target::MAX_URL;

/// The maximum length of an attribute value: the longest URL of a target, and a fragment with every digest.
const MAX_VALUE: usize = MAX_URL + 1024;

/// The maximum length of a tag or attribute name: longer than any that is looked for.
const MAX_TAG: usize = 32;

/// Passes every link of `document` to `links`.
pub(super) fn read(
    document: impl Read,
    limit: u64,
    links: &mut Links<'_>,
) -> Result<(), Malformed> {
    let bounded = Bounded::new(document, limit, Words::default());
    for tag in Tokenizer::new_with_emitter(IoReader::new(bounded), Tags::default()) {
        match tag.map_err(malformed)? {
            Tag::Base(href) => links.rebase(&href)?,
            Tag::Link { href, metadata } => links.page_link(&href, metadata.as_deref())?,
        }
    }
    Ok(())
}

/// The URLs of the links in the beginning of a page.
pub(super) fn hrefs(start: &[u8]) -> impl Iterator<Item = String> {
    Tokenizer::new_with_emitter(start, Tags::default()).filter_map(|tag| match tag {
        Ok(Tag::Link { href, .. }) => Some(href),
        Ok(Tag::Base(_)) | Err(_) => None,
    })
}

/// A tag that is used.
#[derive(Debug)]
enum Tag {
    /// `<base href>`.
    Base(String),
    /// `<a href>`, and its attribute about the metadata file (PEP 714's takes precedence over PEP 658's).
    Link { href: String, metadata: Option<String> },
}

/// Text up to a limit; longer text is discarded.
#[derive(Debug, Default)]
struct Text<const LIMIT: usize> {
    bytes: Vec<u8>,
    over: bool,
}

impl<const LIMIT: usize> Text<LIMIT> {
    fn push(&mut self, more: &[u8]) {
        self.over |= more.len() > LIMIT - self.bytes.len();
        if !self.over {
            self.bytes.extend_from_slice(more);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.over = false;
    }

    /// `None` if the text was too long.
    fn bytes(&self) -> Option<&[u8]> {
        (!self.over).then_some(&*self.bytes)
    }

    /// `None` if the text was too long or not UTF-8.
    fn take(&mut self) -> Option<String> {
        let text = std::str::from_utf8(self.bytes()?).ok().map(str::to_owned);
        self.clear();
        text
    }
}

/// An attribute that is used. If it is repeated, the first one counts (HTML §13.2.5.33).
#[derive(Debug, Default)]
struct Attribute {
    value: Text<MAX_VALUE>,
    given: bool,
}

impl Attribute {
    fn clear(&mut self) {
        self.value.clear();
        self.given = false;
    }

    fn take(&mut self) -> Option<String> {
        self.given.then(|| self.value.take()).flatten()
    }
}

/// The attribute whose value is being read.
#[derive(Clone, Copy, Debug, Default)]
enum Reading {
    #[default]
    Nothing,
    Href,
    CoreMetadata,
    DistInfoMetadata,
}

/// The emitter of the tokenizer: keeps what a claim needs and drops the rest.
#[derive(Debug, Default)]
struct Tags {
    is_end: bool,
    name: Text<MAX_TAG>,
    /// The last start tag that changed the tokenizer's state; only its end tag changes the state back.
    raw: Option<&'static [u8]>,
    attribute: Text<MAX_TAG>,
    reading: Reading,
    href: Attribute,
    core_metadata: Attribute,
    dist_info_metadata: Attribute,
    ready: Option<Tag>,
}

impl Tags {
    fn init_tag(&mut self, is_end: bool) {
        self.is_end = is_end;
        self.name.clear();
        self.attribute.clear();
        self.reading = Reading::Nothing;
        self.href.clear();
        self.core_metadata.clear();
        self.dist_info_metadata.clear();
    }

    fn place(&mut self, reading: Reading) -> Option<&mut Attribute> {
        match reading {
            Reading::Nothing => None,
            Reading::Href => Some(&mut self.href),
            Reading::CoreMetadata => Some(&mut self.core_metadata),
            Reading::DistInfoMetadata => Some(&mut self.dist_info_metadata),
        }
    }

    fn finish_tag(&mut self) -> Option<Tag> {
        match self.name.bytes()? {
            b"base" => self.href.take().map(Tag::Base),
            b"a" => self.href.take().map(|href| Tag::Link {
                href,
                metadata: self.core_metadata.take().or_else(|| self.dist_info_metadata.take()),
            }),
            _ => None,
        }
    }

    /// The elements whose content is not markup (HTML §13.2.6.4.4).
    fn raw_state(&self) -> Option<(&'static [u8], State)> {
        Some(match self.name.bytes()? {
            b"script" => (b"script", State::ScriptData),
            b"style" => (b"style", State::RawText),
            b"title" => (b"title", State::RcData),
            b"textarea" => (b"textarea", State::RcData),
            _ => return None,
        })
    }
}

impl Emitter for Tags {
    type Token = Tag;

    fn pop_token(&mut self) -> Option<Tag> {
        self.ready.take()
    }

    fn init_start_tag(&mut self) {
        self.init_tag(false);
    }

    fn init_end_tag(&mut self) {
        self.init_tag(true);
    }

    fn push_tag_name(&mut self, s: &[u8]) {
        self.name.push(s);
    }

    fn init_attribute(&mut self) {
        self.attribute.clear();
        self.reading = Reading::Nothing;
    }

    fn push_attribute_name(&mut self, s: &[u8]) {
        self.attribute.push(s);
        self.reading = match self.attribute.bytes() {
            Some(b"href") => Reading::Href,
            Some(b"data-core-metadata") => Reading::CoreMetadata,
            Some(b"data-dist-info-metadata") => Reading::DistInfoMetadata,
            _ => Reading::Nothing,
        };
    }

    fn init_attribute_value(&mut self) {
        let again = self
            .place(self.reading)
            .is_some_and(|attribute| std::mem::replace(&mut attribute.given, true));
        if again {
            self.reading = Reading::Nothing;
        }
    }

    fn push_attribute_value(&mut self, s: &[u8]) {
        if let Some(attribute) = self.place(self.reading) {
            attribute.value.push(s);
        }
    }

    fn emit_current_tag(&mut self) -> Option<State> {
        if self.is_end {
            self.raw = None;
            return None;
        }
        self.ready = self.finish_tag();
        let (name, state) = self.raw_state()?;
        self.raw = Some(name);
        Some(state)
    }

    fn current_is_appropriate_end_tag_token(&mut self) -> bool {
        self.is_end && self.raw.is_some() && self.raw == self.name.bytes()
    }

    fn set_last_start_tag(&mut self, _: Option<&[u8]>) {}

    fn should_emit_errors(&mut self) -> bool {
        false
    }

    // The following tokens are not used.
    fn emit_eof(&mut self) {}
    fn emit_error(&mut self, _: html5gum::Error) {}
    fn emit_string(&mut self, _: &[u8]) {}
    fn init_comment(&mut self) {}
    fn emit_current_comment(&mut self) {}
    fn push_comment(&mut self, _: &[u8]) {}
    fn init_doctype(&mut self) {}
    fn emit_current_doctype(&mut self) {}
    fn set_self_closing(&mut self) {}
    fn set_force_quirks(&mut self) {}
    fn push_doctype_name(&mut self, _: &[u8]) {}
    fn set_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn set_doctype_system_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_system_identifier(&mut self, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(page: &str) -> Vec<String> {
        Tokenizer::new_with_emitter(page, Tags::default())
            .map(|tag| match tag.unwrap() {
                Tag::Base(href) => format!("base {href}"),
                Tag::Link { href, metadata } => match metadata {
                    Some(metadata) => format!("{href} {metadata}"),
                    None => href,
                },
            })
            .collect()
    }

    #[test]
    fn attributes_are_read_as_html_says() {
        for (page, expected) in [
            (r#"<a href="x.whl#sha256=0">"#, "x.whl#sha256=0"),
            ("<A HREF='x'>", "x"),
            ("<a\nhref = x data-yanked>", "x"),
            ("<a href=x/>", "x/"),
            (r#"<a href="a&amp;b&#x2F;c&gt;d">"#, "a&b/c>d"),
            (r#"<a data-requires-python="&gt;=3.6" href="x">"#, "x"),
            (r#"<a href="first" href="second">"#, "first"),
            (r#"<a href="" href="second">"#, ""),
            (
                r#"<a href="x" data-core-metadata="sha256=1" data-dist-info-metadata="true">"#,
                "x sha256=1",
            ),
            (r#"<a href="x" data-dist-info-metadata="sha256=2">"#, "x sha256=2"),
            (r#"<base href="/b/">"#, "base /b/"),
            ("<title><a href=no></title><a href=x>", "x"),
            ("<script>'<a href=no>'</script><a href=x>", "x"),
            ("<style><a href=no></styl></style ><a href=x>", "x"),
            ("<!-- <a href=no> --><a href=x>", "x"),
            ("<p><a href=x", ""),
            ("</a href=no><a href=x>", "x"),
            ("<a>", ""),
            ("<abbr href=no>", ""),
        ] {
            let expected: Vec<&str> = if expected.is_empty() && !page.contains("\"\"") {
                Vec::new()
            } else {
                vec![expected]
            };
            assert_eq!(tags(page), expected, "{page}");
        }
    }

    #[test]
    fn long_values_are_no_links_and_cost_no_memory() {
        let long = "a.".repeat(MAX_VALUE);
        let page = format!("<a href={long}><a {long}=1 href=x><{long} href=no><a href=y>");
        assert_eq!(tags(&page), ["x", "y"]);
        let mut text = Text::<4>::default();
        for _ in 0..1000 {
            text.push(b"abc");
        }
        assert!(text.bytes.capacity() <= 8);
        assert_eq!(text.bytes(), None);
        // Text of exactly the limit is kept, in pieces or in one.
        let mut text = Text::<4>::default();
        text.push(b"ab");
        text.push(b"cd");
        assert_eq!(text.take().as_deref(), Some("abcd"));
    }
}
