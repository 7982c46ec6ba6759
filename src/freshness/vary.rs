//! By which request fields one of several stored answers is selected (RFC 9111 §4.1).

use hyper::header::{self, HeaderMap, HeaderName};

use super::directives::members;
use crate::entry::Head;

/// The most names that are read: more select nothing that could be found again.
const MOST_NAMES: usize = 16;

/// The fields that an answer's `Vary` names, each once, in order; `None` if no stored copy of it ever matches: `*`, or what
/// is no name. `Accept-Encoding` is none of them: larder asks for no coding, whoever it asks for.
pub fn names(head: &Head) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for line in head.headers.get_all(header::VARY) {
        for member in members(line.to_str().ok()?) {
            let name = HeaderName::from_bytes(member.as_bytes()).ok().filter(|_| member != "*")?;
            if name != header::ACCEPT_ENCODING {
                names.push(name);
            }
        }
    }
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    (names.len() <= MOST_NAMES).then_some(names)
}

/// What a request says in the field `name`, so that what means the same is the same text: the lines in one, no blanks
/// around commas; of languages the case and the order mean nothing (RFC 9110 §12.5.4), and no `Accept` is any (§12.5.1).
/// Empty if it says nothing.
pub fn value(request: &HeaderMap, name: &HeaderName) -> String {
    let lines = request.get_all(name).iter();
    let text: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let text = text.join(",");
    let mut all: Vec<String> = members(&text).map(str::to_owned).collect();
    if *name == header::ACCEPT_LANGUAGE {
        for member in &mut all {
            member.make_ascii_lowercase();
            member.retain(|c| !c.is_ascii_whitespace());
        }
        all.sort_unstable();
    }
    if *name == header::ACCEPT && all.is_empty() {
        all.push("*/*".to_owned());
    }
    all.join(",")
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::HeaderValue;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn names_are_read_and_a_star_never_matches() {
        let of = |lines: &[&'static str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            let names = names(&Head { status: StatusCode::OK, headers: map(&fields) })?;
            Some(names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of(&[]).as_deref(), Some(""));
        assert_eq!(of(&["Accept-Encoding, Foo", "bar,foo"]).as_deref(), Some("bar foo"));
        for star in
            [&["*"][..], &["*, *"], &["", "*"], &[", *"], &["Foo, *"], &["*, Foo"], &["a b"]]
        {
            assert_eq!(of(star), None, "{star:?}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("x-{n}")).collect();
        let many: &'static str = many.join(",").leak();
        assert_eq!(of(&[many]), None);
    }

    #[test]
    fn what_means_the_same_is_the_same_text() {
        let of = |name: &'static str, lines: &[&'static str]| {
            let fields: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
            value(&map(&fields), &HeaderName::from_static(name))
        };
        assert_eq!(of("foo", &["1", "2"]), of("foo", &[" 1,  2 "]));
        assert_ne!(of("foo", &["1, 2"]), of("foo", &["2, 1"]));
        assert_ne!(of("foo", &["A"]), of("foo", &["a"]));
        assert_eq!(of("accept-language", &["eN ,  De"]), of("accept-language", &["de, en"]));
        assert_ne!(of("accept-language", &["de;q=0.5"]), of("accept-language", &["de"]));
        assert_eq!((of("accept", &[]), of("foo", &[])), ("*/*".to_owned(), String::new()));
    }
}
