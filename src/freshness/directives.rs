//! The directives of `Cache-Control` (RFC 9111 §5.2), of requests and of answers.
//!
//! Names are case-insensitive, and a comma inside quotes belongs to its value. Unreadable values are taken as the
//! strictest: a malformed number is zero, and of two different numbers the smaller counts (RFC 9111 §4.2.1).

use hyper::header::{HeaderMap, HeaderName};

/// The largest number of seconds; larger values count as this (RFC 9111 §1.2.2).
pub(super) const MOST_SECONDS: u64 = 1 << 31;

/// The directives of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives(Vec<(String, Option<String>)>);

impl Directives {
    /// Parses every line of the field `name`.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let lines = headers.get_all(name).iter();
        let texts = lines.map(|value| String::from_utf8_lossy(value.as_bytes()));
        Self(texts.flat_map(|text| members(&text).map(directive).collect::<Vec<_>>()).collect())
    }

    /// Directives that were parsed elsewhere.
    pub(super) fn from_pairs(pairs: Vec<(String, Option<String>)>) -> Self {
        Self(pairs)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a directive is present, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The seconds of a directive: zero if malformed, `None` if the directive is absent.
    pub fn seconds(&self, name: &str) -> Option<u64> {
        let of_name = self.0.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| value.as_deref().and_then(seconds).unwrap_or(0)).min()
    }

    /// The same for `max-stale`, where a missing value means no limit.
    pub fn seconds_or(&self, name: &str, unlimited: u64) -> Option<u64> {
        let of_name = self.0.iter().filter(|(known, _)| known == name);
        of_name
            .map(|(_, value)| value.as_deref().map_or(unlimited, |text| seconds(text).unwrap_or(0)))
            .min()
    }
}

/// The number of seconds, if the text has digits only.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse::<u64>().map_or(MOST_SECONDS, |number| number.min(MOST_SECONDS)))
}

/// The members of a list field, trimmed. A comma in a quoted string does not separate.
pub(super) fn members(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        let ends = c == ',' && !quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        ends
    })
    .map(str::trim)
    .filter(|member| !member.is_empty())
}

fn directive(member: &str) -> (String, Option<String>) {
    match member.split_once('=') {
        None => (member.to_ascii_lowercase(), None),
        Some((name, value)) => {
            // White space before `=` makes the value unreadable but keeps the name, so that a prohibition stays one.
            let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let odd = name.ends_with(char::is_whitespace);
            let value =
                if odd { format!(" {value}") } else { unquoted.unwrap_or(value).to_owned() };
            (name.trim().to_ascii_lowercase(), Some(value))
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{CACHE_CONTROL, HeaderValue};

    use super::*;

    fn read(lines: &[&'static str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_static(line));
        }
        Directives::of(&headers, &CACHE_CONTROL)
    }

    #[test]
    fn names_have_no_case_and_quotes_hide_commas() {
        assert!(read(&["max-age=1, No-CaChE"]).has("no-cache"));
        assert_eq!(read(&["MaX-aGe=3600"]).seconds("max-age"), Some(3600));
        assert_eq!(read(&["extension=\"max-age=3600, a\", max-age=1"]).seconds("max-age"), Some(1));
        assert_eq!(read(&["a=\"\\\", max-age=9\", max-age=\"7\""]).seconds("max-age"), Some(7));
        assert!(read(&["private=\"a, b\""]).has("private"));
        assert!(read(&["", " , "]).is_empty());
    }

    #[test]
    fn what_is_no_number_is_zero_and_of_two_the_smaller_counts() {
        for (line, expected) in [
            ("max-age=003600", 3600),
            ("max-age=99999999999999999999", MOST_SECONDS),
            ("max-age=2147483649", MOST_SECONDS),
            ("max-age=-3600", 0),
            ("max-age='3600'", 0),
            ("max-age=3600.5", 0),
            ("max-age=3600a", 0),
            ("max-age =3600", 0),
            ("max-age= 3600", 0),
            ("max-age", 0),
            ("max-age=1800, max-age=1", 1),
            ("max-age=1, max-age=1800", 1),
        ] {
            assert_eq!(read(&[line]).seconds("max-age"), Some(expected), "{line}");
        }
        assert_eq!(read(&["max-age=1800", "max-age=60"]).seconds("max-age"), Some(60));
        assert_eq!(read(&["s-maxage=1"]).seconds("max-age"), None);
        assert_eq!(read(&["max-stale"]).seconds_or("max-stale", 9), Some(9));
    }
}
