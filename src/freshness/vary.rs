//! Which request fields select one of several stored answers (RFC 9111 §4.1).

use hyper::header::{self, HeaderMap, HeaderName};

use super::directives::members;
use crate::entry::Head;

/// Maximum number of names. An answer that varies on more would hardly ever be found again.
const MOST_NAMES: usize = 16;

/// Maximum length of the names together, in bytes. They are remembered for each URL, and the origin chooses them.
const MOST_BYTES: usize = 1024;

/// The fields that an answer's `Vary` names: distinct and sorted. `None` if no stored copy ever matches: `*`, an invalid
/// name, or too much of them. Omits `Accept-Encoding`, because larder always requests `identity`.
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
    let bytes: usize = names.iter().map(|name| name.as_str().len()).sum();
    (names.len() <= MOST_NAMES && bytes <= MOST_BYTES).then_some(names)
}

/// The normalised value of a request's field `name`, so that equivalent values are equal: lines joined, no white space
/// around commas. For languages, case and order do not matter (RFC 9110 §12.5.4), and a missing `Accept` means any
/// (§12.5.1). Empty if the field is absent.
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
