//! Conditional requests (RFC 9110 §13), answered with the origin's own validators. larder never invents or rewrites a validator:
//! bundler takes an `ETag` for the MD5 of the body, and `huggingface_hub` names files by it.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::range::{self, Ranges};
use crate::entry::Head;
use crate::freshness;

/// What a request gets of a representation that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it.
    Whole,
    /// Some spans of it.
    Spans(Vec<range::Span>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Evaluates a GET or HEAD in the order of RFC 9110 §13.2.2. `total` is the body's length; while it is unknown, ranges are not
/// answered.
pub fn select(request: &HeaderMap, stored: &Head, total: Option<u64>) -> Selection {
    let text = |name: &HeaderName| request.get(name).and_then(|value| value.to_str().ok());
    // Read only for a condition: most requests have none.
    let etag = || stored.headers.get(header::ETAG).map(characters);
    let modified = || date(stored.text(&header::LAST_MODIFIED));
    if let Some(wanted) = list(request, &header::IF_MATCH) {
        if !matches_any(&wanted, etag().as_deref(), true) {
            return Selection::PreconditionFailed;
        }
    } else if let Some(limit) = date(text(&header::IF_UNMODIFIED_SINCE))
        && modified().is_some_and(|modified| modified > limit)
    {
        return Selection::PreconditionFailed;
    }
    if let Some(known) = list(request, &header::IF_NONE_MATCH) {
        if matches_any(&known, etag().as_deref(), false) {
            return Selection::NotModified;
        }
    } else if let Some(known) = date(text(&header::IF_MODIFIED_SINCE))
        && modified().is_some_and(|modified| modified <= known)
    {
        return Selection::NotModified;
    }
    let (Some(field), Some(total)) = (text(&header::RANGE), total) else {
        return Selection::Whole;
    };
    if text(&header::IF_RANGE).is_some_and(|wanted| !if_range_holds(wanted, stored)) {
        return Selection::Whole;
    }
    match range::parse(field, total) {
        Ranges::Whole => Selection::Whole,
        Ranges::Unsatisfiable => Selection::Unsatisfiable,
        Ranges::Some(spans) => Selection::Spans(spans),
    }
}

/// Evaluates `If-Range` (RFC 9110 §13.1.5). apt resumes with a date: exactly the one it was given.
fn if_range_holds(wanted: &str, stored: &Head) -> bool {
    if wanted.starts_with('"') || wanted.starts_with("W/") {
        stored.strong_validator() == Some(wanted)
    } else {
        stored.text(&header::LAST_MODIFIED) == Some(wanted)
    }
}

/// All lines of a list field as one (RFC 9110 §5.3); `None` if there is none.
fn list(request: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<String> = request.get_all(name).iter().map(characters).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// A value with each byte as one character: an entity tag may hold any above 127 (RFC 9110 §8.8.3).
fn characters(value: &HeaderValue) -> String {
    value.as_bytes().iter().copied().map(char::from).collect()
}

fn matches_any(list: &str, etag: Option<&str>, strong: bool) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    tags(list).any(|tag| {
        if strong { tag == etag && !tag.starts_with("W/") } else { opaque(tag) == opaque(etag) }
    })
}

/// The members of a list of entity tags; a comma inside quotes belongs to its tag (RFC 9110 §8.8.3).
pub fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
}

fn date(text: Option<&str>) -> Option<std::time::SystemTime> {
    freshness::date(text?)
}

#[cfg(test)]
mod tests {
    use super::range::Span;
    use super::*;
    use hyper::StatusCode;

    const DATE: &str = "Sat, 01 Jan 2000 00:00:00 GMT";
    const LATER: &str = "Sat, 01 Jan 2000 00:00:01 GMT";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn chosen(request: &[(&'static str, &'static str)]) -> Selection {
        let stored = Head {
            status: StatusCode::OK,
            headers: headers(&[("etag", "\"a\""), ("last-modified", DATE)]),
        };
        select(&headers(request), &stored, Some(100))
    }

    #[test]
    fn conditions_in_the_order_of_the_rfc() {
        let span = || Selection::Spans(vec![Span { start: 0, end: 2 }]);
        for (request, expected) in [
            (&[][..], Selection::Whole),
            (&[("if-none-match", "\"a\"")], Selection::NotModified),
            (&[("if-none-match", "W/\"a\", \"b\"")], Selection::NotModified),
            (&[("if-none-match", "*")], Selection::NotModified),
            (&[("if-none-match", "\"b\"")], Selection::Whole),
            (&[("if-none-match", "\"b\""), ("if-modified-since", DATE)], Selection::Whole),
            (&[("if-modified-since", DATE)], Selection::NotModified),
            (&[("if-modified-since", "garbage")], Selection::Whole),
            (&[("if-match", "\"b\"")], Selection::PreconditionFailed),
            (&[("if-match", "W/\"a\"")], Selection::PreconditionFailed),
            (&[("if-match", "\"a\"")], Selection::Whole),
            (&[("range", "bytes=0-1")], span()),
            (&[("range", "bytes=0-1"), ("if-range", "\"a\"")], span()),
            (&[("range", "bytes=0-1"), ("if-range", DATE)], span()),
            (&[("range", "bytes=0-1"), ("if-range", "\"b\"")], Selection::Whole),
            (&[("range", "bytes=0-1"), ("if-range", LATER)], Selection::Whole),
            (&[("range", "bytes=200-")], Selection::Unsatisfiable),
        ] {
            assert_eq!(chosen(request), expected, "{request:?}");
        }
    }

    /// RFC 9110 §5.3, §8.8.3.
    #[test]
    fn tags_in_several_lines_and_of_any_bytes_are_compared() {
        let select = |lines: &[&'static [u8]], etag: &'static [u8]| {
            let mut request = HeaderMap::new();
            for line in lines {
                request.append(header::IF_NONE_MATCH, HeaderValue::from_bytes(line).unwrap());
            }
            let mut stored = Head { status: StatusCode::OK, headers: HeaderMap::new() };
            stored.headers.insert(header::ETAG, HeaderValue::from_bytes(etag).unwrap());
            select(&request, &stored, Some(1))
        };
        for (lines, etag, expected) in [
            (&[&b"\"b\""[..], b"\"a\""][..], &b"\"a\""[..], Selection::NotModified),
            (&[b"\"b\", \"c\"", b"\"d\", W/\"a\""], b"\"a\"", Selection::NotModified),
            (&[b"\"b\"", b"\"c\""], b"\"a\"", Selection::Whole),
            (&[b"\"\xfc\""], b"\"\xfc\"", Selection::NotModified),
            (&[b"\"\xfd\""], b"\"\xfc\"", Selection::Whole),
            (&[b"\"\xc3\xbc\""], b"\"\xfc\"", Selection::Whole),
        ] {
            assert_eq!(select(lines, etag), expected, "{lines:?} {etag:?}");
        }
    }

    #[test]
    fn without_validators_nothing_is_taken_for_unmodified() {
        let bare = Head { status: StatusCode::OK, headers: HeaderMap::new() };
        for request in [&[("if-none-match", "\"a\"")][..], &[("if-modified-since", DATE)]] {
            assert_eq!(select(&headers(request), &bare, Some(1)), Selection::Whole);
        }
        assert_eq!(bare.strong_validator(), None);
    }
}
