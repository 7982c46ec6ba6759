//! Byte ranges (RFC 9110 §14): what a `Range` field asks of a body of known length.

/// The most ranges of one request that are answered separately; zchunk clients request dozens. For more ranges the whole body is
/// sent, which RFC 9110 §14.2 allows.
const MAX_RANGES: usize = 256;

/// One satisfiable range: from its first byte to just after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// The offset after the last byte; above `start`.
    pub end: u64,
}

impl Span {
    /// Its number of bytes.
    pub const fn length(self) -> u64 {
        self.end - self.start
    }

    /// The value of `Content-Range` for a body of `total` bytes.
    pub fn content_range(self, total: u64) -> String {
        format!("bytes {}-{}/{total}", self.start, self.end - 1)
    }
}

/// What a `Range` field asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// The field is ignored: malformed, another unit, or too many ranges.
    Whole,
    /// No range lies within the body.
    Unsatisfiable,
    /// These spans, in the requested order; not empty.
    Some(Vec<Span>),
}

/// Parses a `Range` field for a body of `total` bytes.
pub fn parse(field: &str, total: u64) -> Ranges {
    let Some(set) = field.trim().strip_prefix("bytes=") else {
        return Ranges::Whole;
    };
    let mut spans = Vec::new();
    for (count, spec) in set.split(',').map(str::trim).enumerate() {
        if count >= MAX_RANGES {
            return Ranges::Whole;
        }
        let Some((first, last)) = spec.split_once('-') else {
            return Ranges::Whole;
        };
        let span = match (number(first), number(last)) {
            (None, Some(suffix)) if first.is_empty() => (suffix > 0 && total > 0)
                .then(|| Span { start: total.saturating_sub(suffix), end: total }),
            (Some(start), None) if last.is_empty() => {
                (start < total).then_some(Span { start, end: total })
            }
            (Some(start), Some(end)) if start <= end => {
                (start < total).then(|| Span { start, end: end.saturating_add(1).min(total) })
            }
            _ => return Ranges::Whole,
        };
        spans.extend(span);
    }
    // Overlapping ranges would let a small request get a multiple of the body (RFC 9110 §14.2).
    let asked = spans.iter().map(|span| span.length()).fold(0, u64::saturating_add);
    if spans.len() > 1 && asked > total {
        return Ranges::Whole;
    }
    if spans.is_empty() { Ranges::Unsatisfiable } else { Ranges::Some(spans) }
}

/// The first byte that a single `bytes=N-…` range requests, if the length is not known.
pub fn single_start(field: &str) -> Option<u64> {
    let (first, last) = field.trim().strip_prefix("bytes=")?.split_once('-')?;
    (!last.contains(',')).then(|| number(first)).flatten()
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(start: u64, end: u64) -> Ranges {
        Ranges::Some(vec![Span { start, end }])
    }

    #[test]
    fn ranges_that_clients_send() {
        for (field, expected) in [
            ("bytes=0-9", one(0, 10)),
            ("bytes=5-", one(5, 100)),
            ("bytes=-10", one(90, 100)),
            ("bytes=-1000", one(0, 100)),
            ("bytes=90-1000", one(90, 100)),
            ("bytes=100-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            (
                "bytes=0-0, 99-99",
                Ranges::Some(vec![Span { start: 0, end: 1 }, Span { start: 99, end: 100 }]),
            ),
            ("bytes=0-0,200-", one(0, 1)),
        ] {
            assert_eq!(parse(field, 100), expected, "{field}");
        }
    }

    #[test]
    fn nonsense_is_ignored_and_attacks_get_the_whole() {
        for field in
            ["bytes=", "bytes=a-b", "bytes=9-1", "lines=0-1", "bytes=0", "bytes=-", "bytes=+1-2"]
        {
            assert_eq!(parse(field, 100), Ranges::Whole, "{field}");
        }
        assert_eq!(parse("bytes=0-,0-", 100), Ranges::Whole);
        let many = format!("bytes={}", vec!["0-0"; 300].join(","));
        assert_eq!(parse(&many, 100_000), Ranges::Whole);
        assert_eq!(
            parse("bytes=18446744073709551615-18446744073709551615", 100),
            Ranges::Unsatisfiable
        );
        assert_eq!(parse("bytes=0-18446744073709551615", 100), one(0, 100));
    }

    #[test]
    fn an_empty_body_has_no_ranges() {
        assert_eq!(parse("bytes=0-", 0), Ranges::Unsatisfiable);
        assert_eq!(parse("bytes=-5", 0), Ranges::Unsatisfiable);
    }
}
