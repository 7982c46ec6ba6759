//! Rewrites addresses in a JSON document while it passes through; all other bytes are unchanged.
//!
//! The scanner tracks its position in the document and buffers only a string that may be an address. It does not
//! validate the document: invalid JSON passes as it is, and the client reports it.

use crate::ecosystem::links::Step;

/// The longest string that is read: a URL of the maximum length with every byte escaped in the usual way (`\/`), and
/// a fragment. A longer string is not an address, and passes unchanged.
const MAX_STRING: usize = 40 * 1024;

/// The longest member name that is compared; the relevant names have a dozen bytes, also when they are escaped.
const MAX_NAME: usize = 256;

/// The patterns that still match: one bit each.
type Fitting = u32;

/// An object or array that contains the current position.
#[derive(Debug)]
struct Level {
    is_object: bool,
    /// The patterns that match its path.
    fitting: Fitting,
    /// The patterns that match the path of its next value.
    next: Fitting,
}

/// The token that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonState {
    /// None: between strings.
    Nothing,
    /// A string; `escaped`: its last byte was a backslash.
    Text { what: What, escaped: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A member's name. It is passed on at once, and a copy is kept.
    Name,
    /// A value that may be an address: buffered to its end.
    Address,
    /// Any other string.
    Other,
}

/// The scanner.
#[derive(Debug)]
pub(super) struct Json {
    patterns: &'static [&'static [Step]],
    levels: Vec<Level>,
    /// The nesting depth below the deepest pattern.
    deeper: u64,
    reading: JsonState,
    name_comes: bool,
    held: Vec<u8>,
}

impl Json {
    pub(super) fn new(patterns: &'static [&'static [Step]]) -> Self {
        Self {
            patterns,
            levels: Vec::new(),
            deeper: 0,
            reading: JsonState::Nothing,
            name_comes: false,
            held: Vec::new(),
        }
    }

    /// Processes a piece of the document; bytes that are final are appended to `out`. `lead` returns the new address,
    /// if an address must change.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        out: &mut Vec<u8>,
        lead: &mut dyn FnMut(&str) -> Option<String>,
    ) {
        for byte in piece {
            match self.reading {
                JsonState::Nothing => {
                    self.structure(*byte);
                    let is_held =
                        matches!(self.reading, JsonState::Text { what: What::Address, .. });
                    if is_held {
                        self.held.push(*byte);
                    } else {
                        out.push(*byte);
                    }
                }
                JsonState::Text { what, escaped } => self.text(*byte, what, escaped, out, lead),
            }
        }
    }

    /// Ends the document: buffered bytes pass unchanged.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if matches!(self.reading, JsonState::Text { what: What::Address, .. }) {
            out.append(&mut self.held);
        }
        self.reading = JsonState::Nothing;
    }

    /// Processes a byte between strings.
    fn structure(&mut self, byte: u8) {
        match byte {
            b'"' => {
                let what = self.what_comes();
                self.held.clear();
                self.reading = JsonState::Text { what, escaped: false };
            }
            b'{' | b'[' => self.enter(byte == b'{'),
            b'}' | b']' => {
                if self.deeper > 0 {
                    self.deeper -= 1;
                } else {
                    self.levels.pop();
                }
                self.name_comes = false;
            }
            b',' => {
                self.name_comes =
                    self.deeper == 0 && self.levels.last().is_some_and(|level| level.is_object);
            }
            b':' => self.name_comes = false,
            _ => {}
        }
    }

    fn what_comes(&self) -> What {
        if self.deeper > 0 {
            What::Other
        } else if self.name_comes {
            What::Name
        } else if self.complete(self.coming()) {
            What::Address
        } else {
            What::Other
        }
    }

    /// The patterns that match the path of the next value.
    fn coming(&self) -> Fitting {
        match self.levels.last() {
            // The document itself: every pattern begins here.
            None => Fitting::MAX,
            Some(level) => level.next,
        }
    }

    /// Whether one of `fitting` ends at the next value.
    fn complete(&self, fitting: Fitting) -> bool {
        let depth = self.levels.len();
        self.fits(fitting, |pattern| pattern.len() == depth) != 0
    }

    /// Those patterns of `fitting` for which `holds` is true.
    fn fits(&self, fitting: Fitting, holds: impl Fn(&[Step]) -> bool) -> Fitting {
        let bits = self.patterns.iter().take(Fitting::BITS as usize).enumerate();
        bits.filter(|(bit, pattern)| fitting >> bit & 1 == 1 && holds(pattern))
            .fold(0, |all, (bit, _)| all | 1 << bit)
    }

    fn enter(&mut self, is_object: bool) {
        let depth = self.levels.len();
        let fitting = self.coming();
        // Below the longest pattern only the depth is counted, so that a document full of brackets takes no memory.
        if self.deeper > 0 || self.patterns.iter().all(|pattern| pattern.len() <= depth) {
            self.deeper += 1;
            return;
        }
        let next = if is_object {
            0
        } else {
            self.fits(fitting, |pattern| pattern.get(depth) == Some(&Step::Each))
        };
        self.levels.push(Level { is_object, fitting, next });
        self.name_comes = is_object;
    }

    /// Processes a byte of a string.
    fn text(
        &mut self,
        byte: u8,
        what: What,
        escaped: bool,
        out: &mut Vec<u8>,
        lead: &mut dyn FnMut(&str) -> Option<String>,
    ) {
        let ends = byte == b'"' && !escaped;
        match what {
            What::Name if !ends && self.held.len() <= MAX_NAME => self.held.push(byte),
            What::Address => {
                self.held.push(byte);
                if ends {
                    self.address(out, lead);
                } else if self.held.len() > MAX_STRING {
                    out.append(&mut self.held);
                    self.reading =
                        JsonState::Text { what: What::Other, escaped: byte == b'\\' && !escaped };
                    return;
                }
            }
            What::Name | What::Other => {}
        }
        if what != What::Address {
            out.push(byte);
        }
        if ends {
            if what == What::Name {
                self.named();
            }
            self.reading = JsonState::Nothing;
        } else {
            self.reading = JsonState::Text { what, escaped: byte == b'\\' && !escaped };
        }
    }

    /// Ends a member's name, which determines the patterns that match its value.
    fn named(&mut self) {
        let depth = self.levels.len();
        let name = (self.held.len() <= MAX_NAME).then(|| unescaped(&self.held)).flatten();
        let Some(level) = self.levels.last() else { return };
        let next = self.fits(level.fitting, |pattern| match pattern.get(depth - 1) {
            Some(Step::Any) => true,
            Some(Step::Member(wanted)) => name.as_deref() == Some(*wanted),
            Some(Step::Each) | None => false,
        });
        if let Some(level) = self.levels.last_mut() {
            level.next = next;
        }
        self.name_comes = false;
    }

    /// Ends a string that may be an address; the buffer includes its quotes.
    fn address(&mut self, out: &mut Vec<u8>, lead: &mut dyn FnMut(&str) -> Option<String>) {
        let changed = serde_json::from_slice::<String>(&self.held)
            .ok()
            .and_then(|address| lead(&address))
            .and_then(|address| serde_json::to_vec(&address).ok());
        match changed {
            Some(changed) => out.extend_from_slice(&changed),
            None => out.extend_from_slice(&self.held),
        }
        self.held.clear();
    }
}

/// The text between two quotes.
fn unescaped(raw: &[u8]) -> Option<String> {
    let mut quoted = Vec::with_capacity(raw.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(raw);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERNS: &[&[Step]] = &[
        &[Step::Member("versions"), Step::Any, Step::Member("dist"), Step::Member("tarball")],
        &[Step::Member("dist"), Step::Member("tarball")],
        &[Step::Member("files"), Step::Each, Step::Member("url")],
    ];

    /// The output of the scanner for a document in two pieces, cut at `at`.
    fn passed(text: &str, at: usize) -> String {
        let mut json = Json::new(PATTERNS);
        let mut out = Vec::new();
        let mut lead = |address: &str| Some(format!("<{address}>"));
        let (one, two) = text.as_bytes().split_at(at);
        json.push(one, &mut out, &mut lead);
        json.push(two, &mut out, &mut lead);
        json.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[track_caller]
    fn expect(text: &str, expected: &str) {
        for at in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            assert_eq!(passed(text, at), expected, "cut at {at}");
        }
    }

    #[test]
    fn addresses_change_wherever_the_document_is_cut() {
        expect(
            r#"{"name":"x","dist":{"tarball":"a"},"versions":{"1":{"dist":{"x":"y","tarball":"b\/c"}},"2":{"dist":{"tarball":"é"}}}}"#,
            r#"{"name":"x","dist":{"tarball":"<a>"},"versions":{"1":{"dist":{"x":"y","tarball":"<b/c>"}},"2":{"dist":{"tarball":"<é>"}}}}"#,
        );
        expect(
            r#" { "files" : [ {"url": "a", "hashes": {"url": "no"}}, {"x": ["url"], "url" : "b"} ] , "url": "no" }"#,
            r#" { "files" : [ {"url": "<a>", "hashes": {"url": "no"}}, {"x": ["url"], "url" : "<b>"} ] , "url": "no" }"#,
        );
    }

    #[test]
    fn names_are_compared_unescaped_and_values_are_no_names() {
        expect(r#"{"\u0064ist":{"tarball":"a"}}"#, r#"{"\u0064ist":{"tarball":"<a>"}}"#);
        expect(r#"{"x":"dist","y":{"tarball":"a"}}"#, r#"{"x":"dist","y":{"tarball":"a"}}"#);
        expect(r#"{"dist\"":{"tarball":"a"}}"#, r#"{"dist\"":{"tarball":"a"}}"#);
        expect(r#"{"dist":["tarball","a"]}"#, r#"{"dist":["tarball","a"]}"#);
        expect(r#"{"dist":{"tarball":["a"]}}"#, r#"{"dist":{"tarball":["a"]}}"#);
        expect(
            r#"{"dist":{"tarball":null},"files":[{"url":"a"}]}"#,
            r#"{"dist":{"tarball":null},"files":[{"url":"<a>"}]}"#,
        );
        expect(
            r#"{"a":{"b":{"c":{"d":{"e":[[[{}]]]}}}},"dist":{"tarball":"a"}}"#,
            r#"{"a":{"b":{"c":{"d":{"e":[[[{}]]]}}}},"dist":{"tarball":"<a>"}}"#,
        );
    }

    #[test]
    fn what_is_no_json_leaves_as_it_came() {
        for text in [
            "",
            "\"",
            "{",
            "]]]]",
            "{\"dist\":{\"tarball\":\"unfinished",
            "}{\"x\"",
            "\\\\",
            "{\"dist\":{\"tarball\":\"bad \\q\"}}",
        ] {
            expect(text, text);
        }
    }

    proptest::proptest! {
        /// Any document, in any notation: only addresses change.
        #[test]
        fn any_document_passes(
            names in proptest::collection::vec("[a-z\"\\\\é:,{}\\[\\]]{0,6}", 1..6),
            urls in proptest::collection::vec("[a-z/\"\\\\é]{0,12}", 1..6),
            pretty: bool,
            cut in 0_usize..2000,
        ) {
            let document = |change: &dyn Fn(&str) -> String| {
                let versions: serde_json::Map<String, serde_json::Value> = names.iter().zip(&urls).map(|(name, url)| {
                    (name.clone(), serde_json::json!({"url": url, name: [url, {}], "dist": {"tarball": change(url), "x": url}}))
                }).collect();
                let files: Vec<_> = urls.iter().map(|url| serde_json::json!({"url": change(url), "hashes": {"url": url}})).collect();
                serde_json::json!({"versions": versions, "files": files, "n": 1.5, "x": names})
            };
            let text = |value: &serde_json::Value| {
                if pretty { serde_json::to_string_pretty(value).unwrap() } else { value.to_string() }
            };
            let page = text(&document(&str::to_owned));
            let mut at = cut.min(page.len());
            while !page.is_char_boundary(at) {
                at -= 1;
            }
            proptest::prop_assert_eq!(passed(&page, at), text(&document(&|url| format!("<{url}>"))));
        }
    }

    #[test]
    fn nothing_grows_with_the_document() {
        let mut json = Json::new(PATTERNS);
        let mut out = Vec::new();
        let mut lead = |_: &str| None;
        json.push(&vec![b'['; 1 << 20], &mut out, &mut lead);
        assert!(json.levels.len() <= 4);
        let mut json = Json::new(PATTERNS);
        json.push(b"{\"dist\":{\"tarball\":\"", &mut out, &mut lead);
        json.push(&vec![b'a'; 1 << 20], &mut out, &mut lead);
        assert!(json.held.len() <= MAX_STRING);
        out.clear();
        json.push(b"\",\"tarball\":\"x\"}}", &mut out, &mut |address| Some(format!("<{address}>")));
        assert_eq!(out, b"\",\"tarball\":\"<x>\"}}");
    }
}
