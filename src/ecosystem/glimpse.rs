//! Inspects the beginning of a JSON document, which is too short to parse.

/// Whether `start` has a member `name` whose value is exactly the string `text`, at any depth. Both must be written
/// without escapes. This only tells what a document most likely is; a parser reads its content.
pub(super) fn says(start: &[u8], name: &str, text: &str) -> bool {
    strings(start, name).any(|value| value == text.as_bytes())
}

/// As [`says`], ignoring the case of the string.
pub(super) fn says_in_any_case(start: &[u8], name: &str, text: &str) -> bool {
    strings(start, name).any(|value| value.eq_ignore_ascii_case(text.as_bytes()))
}

/// Whether `start` has a member `name`, at any depth.
pub(super) fn has(start: &[u8], name: &str) -> bool {
    values(start, name).next().is_some()
}

/// Whether `start` begins a JSON object.
pub(super) fn is_object(start: &[u8]) -> bool {
    start.trim_ascii_start().starts_with(b"{")
}

/// The string after each `"name":`, up to the next quotation mark.
fn strings<'a>(start: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    values(start, name).filter_map(|value| {
        let text = value.strip_prefix(b"\"")?;
        text.get(..text.iter().position(|byte| *byte == b'"')?)
    })
}

/// The text after each `"name":`.
fn values<'a>(start: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let quoted = format!("\"{name}\"").into_bytes();
    (0..start.len()).filter_map(move |at| {
        let rest = start.get(at..)?.strip_prefix(quoted.as_slice())?;
        let value = rest.trim_ascii_start().strip_prefix(b":")?;
        Some(value.trim_ascii_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_whatever_the_white_space() {
        let start = b"\n{\"_id\" :\"a\", \"name\" : \n\"@s/a\", \"versions\": {\"1.0.0\": {\"x";
        assert!(is_object(start));
        assert!(says(start, "name", "@s/a"));
        assert!(says(start, "_id", "a"));
        assert!(says_in_any_case(start, "name", "@S/A") && !says(start, "name", "@S/A"));
        assert!(has(start, "versions"));
        for (name, text) in [("name", "@s"), ("name", "a"), ("nam", "@s/a"), ("x", "")] {
            assert!(!says(start, name, text), "{name} {text}");
        }
        assert!(!has(start, "a"));
        assert!(!has(b"{\"versions\"", "versions"));
        assert!(!is_object(b"[{}]"));
    }
}
