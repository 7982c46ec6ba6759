//! The explicit freshness lifetime of an answer, and its age (RFC 9111 §4.2).
//!
//! Two things of that section are left out. There is no heuristic freshness (§4.2.2). And the difference between the
//! origin's `Date` and larder's clock does not count as age (§4.2.3, `apparent_age`): it serves caches older than
//! `Age`, and an answer of an origin whose clock runs behind would never be fresh.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{self, HeaderMap};

use super::directives::{Directives, MOST_SECONDS, members, seconds};
use super::targeted;
use crate::clock::Time;
use crate::entry::{Entry, Head};

/// The maximum by which `CDN-Cache-Control` may extend the lifetime from `Cache-Control`. An origin that sets it relies
/// on purging the copies in its own delivery network, and larder receives no purges.
const TARGETED: Duration = Duration::from_hours(1);

/// The fields of an answer that control caching.
#[derive(Debug)]
pub(super) struct Control {
    status: StatusCode,
    own: Directives,
    /// `CDN-Cache-Control`, which replaces `own`, except that `own` can still forbid storing.
    targeted: Option<Directives>,
    /// `Pragma: no-cache` without `Cache-Control`. No standard defines it for answers, but origins that send it mean
    /// it.
    pragma: bool,
}

impl Control {
    pub(super) fn of(head: &Head) -> Self {
        let own = Directives::of(&head.headers, &header::CACHE_CONTROL);
        let pragma = own.is_empty()
            && Directives::of(&head.headers, &header::PRAGMA).has("no-cache")
            && !head.headers.contains_key(header::CACHE_CONTROL);
        Self { status: head.status, own, targeted: targeted::directives(&head.headers), pragma }
    }

    fn effective(&self) -> &Directives {
        self.targeted.as_ref().unwrap_or(&self.own)
    }

    /// Whether a shared cache must not store the answer. `CDN-Cache-Control` replaces `Cache-Control` here, too (RFC 9213 §2.2):
    /// an origin that lets a delivery network store an answer lets it give that answer to every client, so that sharing it
    /// among larder's clients tells them nothing new, and [`TARGETED`] bounds for how long. `private` in either field forbids
    /// it, because the answer is for one client (promise P5).
    pub(super) fn forbids_storing(&self) -> bool {
        let says = self.effective();
        // If the status is understood, `must-understand` overrides `no-store` (§5.2.2.3).
        let refused = match (says.has("must-understand"), self.is_understood()) {
            (true, understood) => !understood,
            (false, _) => says.has("no-store"),
        };
        refused || says.has("private") || self.own.has("private")
    }

    /// Whether larder knows what the status requires of caches. It never stores those that require more than freshness
    /// (206, 304).
    fn is_understood(&self) -> bool {
        self.status.canonical_reason().is_some()
    }

    /// Whether it must always be revalidated. `no-cache` with field names counts as `no-cache` for all (§5.2.2.4).
    pub(super) fn wants_validation(&self) -> bool {
        self.effective().has("no-cache") || self.pragma
    }

    /// Whether a stale copy must not be served even if the origin fails (§4.2.4).
    pub(super) fn forbids_stale(&self) -> bool {
        let forbids = ["no-cache", "must-revalidate", "proxy-revalidate", "s-maxage"];
        forbids.iter().any(|name| self.effective().has(name)) || self.pragma
    }

    /// How long it may be served stale while it is revalidated (RFC 5861 §3).
    pub(super) fn while_revalidated(&self) -> Duration {
        Duration::from_secs(self.effective().seconds("stale-while-revalidate").unwrap_or(0))
    }

    /// Its explicit freshness lifetime, `None` if it has none. `index`: clients expect an index to change, so
    /// `CDN-Cache-Control` never makes it fresh for longer than `Cache-Control` does.
    pub(super) fn lifetime(&self, head: &Head, received: Time, index: bool) -> Option<Duration> {
        let own = || said(&self.own).or_else(|| expires(&head.headers, received));
        let Some(targeted) = &self.targeted else {
            return own();
        };
        let own = own().unwrap_or(Duration::ZERO);
        let targeted = said(targeted).unwrap_or(Duration::ZERO);
        let most = if index { own } else { own.max(TARGETED) };
        Some(targeted.min(most))
    }
}

/// `s-maxage`, or `max-age` (§4.2.1).
fn said(directives: &Directives) -> Option<Duration> {
    let seconds = directives.seconds("s-maxage").or_else(|| directives.seconds("max-age"));
    seconds.map(Duration::from_secs)
}

/// `Expires` minus `Date`. An invalid date, or two different ones, count as expired (§5.3).
fn expires(headers: &HeaderMap, received: Time) -> Option<Duration> {
    let mut lines = headers.get_all(header::EXPIRES).iter();
    let first = lines.next()?;
    if lines.any(|other| other != first) {
        return Some(Duration::ZERO);
    }
    let Some(expires) = first.to_str().ok().and_then(date) else {
        return Some(Duration::ZERO);
    };
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(date);
    let from = date.unwrap_or_else(|| received.into());
    Some(expires.duration_since(from).unwrap_or(Duration::ZERO))
}

/// The day names as the three date formats write them; short ones are the first three letters.
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Parses an HTTP date in any of its three formats (RFC 9110 §5.6.7), the obsolete ones included, and nothing else.
/// Ignores case (RFC 9111 §4.2), and accepts a wrong day of the week, which adds nothing to the date.
pub fn date(text: &str) -> Option<SystemTime> {
    let text = text.trim_matches([' ', '\t']);
    // Only one format pads the day of the month with a space, and it has no comma.
    if text.len() > LONGEST_DATE || text.contains(',') && text.contains("  ") {
        return None;
    }
    let (day, rest) = text.split_at_checked(text.find([',', ' '])?)?;
    let known = DAYS.iter().any(|full| {
        let short = full.get(..3).unwrap_or_default();
        day.eq_ignore_ascii_case(short) || day.eq_ignore_ascii_case(full)
    });
    if !known {
        return None;
    }
    // Nearly every date is written as it should be.
    if let Ok(date) = httpdate::parse_http_date(text) {
        return Some(date);
    }
    let rest = in_usual_case(rest);
    DAYS.iter().find_map(|full| {
        // Keeps the length of the day name, so that the formats stay distinct.
        let name = if day.len() == 3 { full.get(..3)? } else { full };
        httpdate::parse_http_date(&format!("{name}{rest}")).ok()
    })
}

/// The longest date, in bytes: `Wednesday, 09-Nov-94 08:49:37 GMT`.
const LONGEST_DATE: usize = 33;

/// Converts months to the case of `Nov`, and the zone to `GMT`.
fn in_usual_case(text: &str) -> String {
    let mut usual = String::with_capacity(text.len());
    for piece in text.split_inclusive([' ', '-']) {
        if piece.eq_ignore_ascii_case("gmt") {
            usual.push_str("GMT");
        } else {
            let mut letters = piece.chars();
            usual.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            usual.extend(letters.map(|letter| letter.to_ascii_lowercase()));
        }
    }
    usual
}

/// The age of a stored answer (§4.2.3).
pub(super) fn age(entry: &Entry, now: Time) -> Duration {
    let delay = entry.checked_at.since(entry.requested_at);
    said_age(&entry.head.headers)
        .saturating_add(delay.min(Duration::from_secs(MOST_SECONDS)))
        .saturating_add(now.since(entry.checked_at))
}

/// The value of `Age` (RFC 9111 §5.1): the first member if there are several; zero if it is not a number.
pub(super) fn said_age(headers: &HeaderMap) -> Duration {
    let first = headers.get(header::AGE).and_then(|value| value.to_str().ok());
    let number = first.and_then(|text| seconds(members(text).next()?));
    Duration::from_secs(number.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const NOW: Time = Time::from_millis(1_000_000_000_000);

    fn lifetime_of(fields: &[(&'static str, &'static str)], index: bool) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let head = Head { status: StatusCode::OK, headers };
        Control::of(&head).lifetime(&head, NOW, index).map(|span| span.as_secs())
    }

    #[test]
    fn the_lifetime_is_what_the_answer_says_first() {
        let (date, expires) = ("Sat, 01 Jan 2000 00:00:00 GMT", "Sat, 01 Jan 2000 00:01:00 GMT");
        for (fields, expected) in [
            (&[][..], None),
            (&[("cache-control", "public")], None),
            (&[("cache-control", "max-age=9, s-maxage=3")], Some(3)),
            (&[("expires", expires), ("date", date)], Some(60)),
            (&[("expires", date), ("date", expires)], Some(0)),
            (&[("expires", expires), ("cache-control", "max-age=0")], Some(0)),
            (&[("expires", "0")], Some(0)),
            (&[("expires", "Sat, 01  Jan  2050 00:01:00 GMT"), ("date", date)], Some(0)),
            (&[("expires", "Saturday, 01-Jan-00 00:01:00 GMT"), ("date", date)], Some(60)),
            (&[("expires", "Sat Jan  1 00:01:00 2000"), ("date", date)], Some(60)),
            (&[("expires", expires), ("expires", date), ("date", date)], Some(0)),
            // Without a valid `Date`, the lifetime counts from when the answer was received, here in 2001.
            (&[("expires", "Sun, 09 Sep 2001 01:46:50 GMT"), ("date", "foo")], Some(10)),
        ] {
            assert_eq!(lifetime_of(fields, false), expected, "{fields:?}");
        }
    }

    /// RFC 9213 §2.1; limited, because larder receives no purges.
    #[test]
    fn a_word_to_delivery_networks_stands_before_the_word_to_all_within_limits() {
        let cdn =
            |text, own| lifetime_of(&[("cdn-cache-control", text), ("cache-control", own)], false);
        assert_eq!(cdn("max-age=600", "max-age=1"), Some(600));
        assert_eq!(cdn("max-age=1", "max-age=600"), Some(1));
        assert_eq!(cdn("max-age=99999", "max-age=1"), Some(3600));
        assert_eq!(cdn("max-age=99999", "max-age=7200"), Some(7200));
        assert_eq!(cdn("max-age=600, &", "max-age=1"), Some(1));
        let index = [("cdn-cache-control", "max-age=600"), ("cache-control", "max-age=1")];
        assert_eq!(lifetime_of(&index, true), Some(1));
        assert_eq!(lifetime_of(&[("cdn-cache-control", "max-age=600")], true), Some(0));
    }

    /// RFC 9111 §5.1. A number that is too large counts as the maximum age (§1.2.2).
    #[test]
    fn the_first_age_counts_and_what_is_no_number_says_nothing() {
        let age = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("age", HeaderValue::from_static(line));
            }
            said_age(&headers).as_secs()
        };
        for (lines, expected) in [
            (&[][..], 0),
            (&["30"], 30),
            (&[" 30 "], 30),
            (&["7200, 0"], 7200),
            (&["7200", "0"], 7200),
            (&["0, 7200"], 0),
            (&["0", "7200"], 0),
            (&["old, 7200"], 0),
            (&["-7200"], 0),
            (&["7200.0"], 0),
            (&["7200;a=1"], 0),
            (&[""], 0),
            (&["2147483648"], MOST_SECONDS),
            (&["99999999999999999999, 1"], MOST_SECONDS),
        ] {
            assert_eq!(age(lines), expected, "{lines:?}");
        }
    }

    /// RFC 9111 §4.2: case does not matter; a zone other than GMT or any other format is not a date.
    #[test]
    fn a_date_is_read_in_any_case_and_in_three_forms_alone() {
        let seconds = |text: &str| {
            date(text).map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        for text in [
            "Thu, 18 Aug 2050 02:01:18 GMT",
            "THU, 18 AUG 2050 02:01:18 gMT",
            " thu, 18 aug 2050 02:01:18 gmt ",
            "Thursday, 18-Aug-50 02:01:18 GMT",
            "thursday, 18-AUG-50 02:01:18 Gmt",
            "Thu Aug 18 02:01:18 2050",
            "thu aug 18 02:01:18 2050",
            // It was not a Monday.
            "Mon, 18 Aug 2050 02:01:18 GMT",
            "Monday, 18-Aug-50 02:01:18 GMT",
            "Mon Aug 18 02:01:18 2050",
        ] {
            assert_eq!(seconds(text), Some(2_544_400_878), "{text}");
        }
        assert_eq!(seconds("Mon Aug  8 02:01:18 2050"), Some(2_544_400_878 - 864_000));
        for text in [
            "",
            "0",
            "-1",
            "Thu",
            ",",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Foo, 18 Aug 2050 02:01:18 GMT",
            "Thu, 31 Feb 2050 02:01:18 GMT",
            "Thu, 18 \u{e4}ug 2050 02:01:18 GMT",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
