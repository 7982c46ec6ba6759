//! `CDN-Cache-Control` (RFC 9213): a structured dictionary (RFC 9651 §3.2) that replaces `Cache-Control` for shared
//! caches. An invalid or empty one is ignored.

use hyper::header::{HeaderMap, HeaderName};

use super::directives::Directives;

/// The directives whose value must be an integer number of seconds.
const IN_SECONDS: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

/// The directives of a valid field; `None` if it is absent, invalid or empty.
pub(super) fn directives(headers: &HeaderMap) -> Option<Directives> {
    let name = HeaderName::from_static("cdn-cache-control");
    let lines: Option<Vec<&str>> =
        headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    let pairs = dictionary(&lines?.join(","))?;
    (!pairs.is_empty()).then(|| Directives::from_pairs(pairs))
}

fn dictionary(text: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut pairs: Vec<(String, Option<String>)> = Vec::new();
    let mut rest = text.trim_matches(' ');
    while !rest.is_empty() {
        let (key, after) = key(rest)?;
        let (value, after) = match after.strip_prefix('=') {
            Some(after) => {
                let (item, after) = item(after)?;
                (Some(item), parameters(after)?)
            }
            None => (None, parameters(after)?),
        };
        let number = |item: &Item| matches!(item, Item::Integer(_));
        if IN_SECONDS.contains(&key) && !value.as_ref().is_some_and(number) {
            return None;
        }
        let value = value.map(|item| match item {
            Item::Integer(text) | Item::Other(text) => text,
        });
        // Of several members with one name the last counts (RFC 9651 §3.2).
        pairs.retain(|(known, _)| known != key);
        pairs.push((key.to_owned(), value));
        let blank = |c: char| c == ' ' || c == '\t';
        let after = after.trim_start_matches(blank);
        if after.is_empty() {
            break;
        }
        rest = after.strip_prefix(',')?.trim_start_matches(blank);
        if rest.is_empty() {
            return None;
        }
    }
    Some(pairs)
}

enum Item {
    Integer(String),
    Other(String),
}

fn key(text: &str) -> Option<(&str, &str)> {
    let first = |c: char| c.is_ascii_lowercase() || c == '*';
    let more = |c: char| first(c) || c.is_ascii_digit() || "_-.".contains(c);
    text.starts_with(first)
        .then(|| text.split_at(text.find(|c: char| !more(c)).unwrap_or(text.len())))
}

fn item(text: &str) -> Option<(Item, &str)> {
    let (head, _) = text.split_at_checked(1)?;
    let until = |inside: fn(char) -> bool| {
        text.split_at(text.find(|c: char| !inside(c)).unwrap_or(text.len()))
    };
    match head {
        "\"" => {
            let mut escaped = false;
            let end = text.get(1..)?.find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            let (inner, rest) = text.get(1..)?.split_at(end);
            Some((Item::Other(inner.to_owned()), rest.get(1..)?))
        }
        ":" => {
            let end = text.get(1..)?.find(':')?;
            let (inner, rest) = text.get(1..)?.split_at(end);
            Some((Item::Other(inner.to_owned()), rest.get(1..)?))
        }
        "?" => {
            let (flag, rest) = text.get(1..)?.split_at_checked(1)?;
            ["0", "1"].contains(&flag).then(|| (Item::Other(flag.to_owned()), rest))
        }
        _ if head == "-" || head.bytes().all(|byte| byte.is_ascii_digit()) => {
            let (number, rest) = until(|c| c.is_ascii_digit() || "-.".contains(c));
            let whole = number.strip_prefix('-').unwrap_or(number);
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match whole.split_once('.') {
                None if digits(whole) && whole.len() <= 15 => {
                    Some((Item::Integer(number.to_owned()), rest))
                }
                Some((one, two)) if digits(one) && digits(two) => {
                    Some((Item::Other(number.to_owned()), rest))
                }
                _ => None,
            }
        }
        _ if head == "*" || head.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            let (token, rest) =
                until(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c));
            Some((Item::Other(token.to_owned()), rest))
        }
        _ => None,
    }
}

/// The text after an item's parameters, which are ignored.
fn parameters(mut text: &str) -> Option<&str> {
    while let Some(rest) = text.strip_prefix(';') {
        let (_, rest) = key(rest.trim_start_matches(' '))?;
        text = match rest.strip_prefix('=') {
            Some(rest) => item(rest)?.1,
            None => rest,
        };
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn read(text: &'static str) -> Option<Directives> {
        let mut headers = HeaderMap::new();
        headers.append("cdn-cache-control", HeaderValue::from_static(text));
        directives(&headers)
    }

    #[test]
    fn a_dictionary_is_read() {
        let read = |text| read(text).unwrap();
        assert_eq!(read("max-age=3600").seconds("max-age"), Some(3600));
        assert_eq!(read("foobar, max-age=3600;x=\"a,b\"").seconds("max-age"), Some(3600));
        assert_eq!(read("max-age=1, max-age=2").seconds("max-age"), Some(2));
        assert!(read("no-store, a=?1, b=:YQ==:, c=tok/en, d=1.5").has("no-store"));
    }

    #[test]
    fn what_is_no_dictionary_does_not_count() {
        for text in [
            "",
            "max-age=10000, &&&&&",
            "max-age=\"10000\"",
            "max-age",
            "max-age =100",
            "max-age= 100",
            "MaX-aGe=3600",
            "max-age=1,",
            "a=\"b",
            "max-age=1 2",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(directives(&HeaderMap::new()), None);
    }
}
