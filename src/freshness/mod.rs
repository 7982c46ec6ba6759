//! RFC 9111 for answers without a proof of their own: may an answer be stored, and is a stored one still fresh.
//!
//! larder is a shared cache without heuristic freshness: an answer without an explicit lifetime is revalidated each
//! time. (RFC 9111 §4.2.2 would allow a guess, but a wrong guess about a package index breaks a build.) Every decision
//! is made from the stored header fields, so nothing else needs a format on disk.
//!
//! Artifacts with a proof are not handled here: they are as fresh as the claims that name them.
//!
//! ```text
//! directives   Cache-Control        lifetime   how long fresh, how old
//! targeted     CDN-Cache-Control    vary       which of several answers
//! ```
//!
//! `docs/conformance.md` lists, test by test, where this deviates from what the public suite expects, and why.

mod directives;
mod lifetime;
mod targeted;
pub mod vary;

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderMap};

pub use self::directives::Directives;
pub use self::lifetime::date;

use self::lifetime::Control;
use crate::clock::Time;
use crate::entry::{Entry, Head};

/// What a client's request demands of stored answers (RFC 9111 §5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// `no-cache`, `max-age=0` or `Pragma: no-cache`: only after revalidation.
    pub revalidate: bool,
    /// `only-if-cached`: from the store, or not at all.
    pub only_if_cached: bool,
    /// `no-store`: an answer without a proof of its own must not be kept.
    pub no_store: bool,
}

impl Demand {
    /// Reads a request's header fields.
    pub fn of(headers: &HeaderMap) -> Self {
        let said = Directives::of(headers, &header::CACHE_CONTROL);
        let pragma = !headers.contains_key(header::CACHE_CONTROL)
            && Directives::of(headers, &header::PRAGMA).has("no-cache");
        Self {
            revalidate: said.has("no-cache") || said.seconds("max-age") == Some(0) || pragma,
            only_if_cached: said.has("only-if-cached"),
            no_store: said.has("no-store"),
        }
    }
}

/// Whether an answer to a fill may be shared with other clients, by all its header fields except `Vary`. `proven` says
/// that a digest will vouch for the body: then every client gets these bytes, and the header cannot forbid keeping them
/// (DESIGN §3).
pub fn is_shareable(head: &Head, proven: bool) -> bool {
    let refused = Control::of(head).forbids_storing();
    proven || !(refused || head.status == StatusCode::OK && is_event_stream(head))
}

/// Whether keeping an answer of unknown kind is useful: it has an explicit lifetime, or it can be revalidated.
pub fn worth_keeping(head: &Head) -> bool {
    head.headers.contains_key(header::ETAG)
        || head.headers.contains_key(header::LAST_MODIFIED)
        || lifetime(head, Time::from_millis(0)).is_some()
}

/// The explicit freshness lifetime of an answer received at `received`; `None` if it has none.
pub fn lifetime(head: &Head, received: Time) -> Option<Duration> {
    Control::of(head).lifetime(head, received, false)
}

/// The remaining lifetime of an answer received now; zero if it must always be revalidated.
pub fn left(head: &Head, now: Time) -> Option<Duration> {
    let control = Control::of(head);
    let lifetime = control.lifetime(head, now, false)?;
    let aged = lifetime::said_age(&head.headers);
    let left = lifetime.saturating_sub(aged);
    Some(if control.wants_validation() { Duration::ZERO } else { left })
}

/// The age of an answer when it was received.
pub fn said_age(head: &Head) -> Duration {
    lifetime::said_age(&head.headers)
}

/// How far a stored time may be ahead of the clock and still be believed. Otherwise, after a clock that was ahead is
/// set back, everything would be fresh until the clock had caught up.
pub const AHEAD: Duration = Duration::from_secs(5);

/// Whether `entry` was checked at a time in the future.
pub fn is_of_the_future(entry: &Entry, now: Time) -> bool {
    entry.checked_at > now.plus(AHEAD)
}

/// The time between `now` and when `entry` was checked. If the clock was set back, its difference counts.
pub fn distance(entry: &Entry, now: Time) -> Duration {
    now.since(entry.checked_at).max(entry.checked_at.since(now))
}

/// Whether `entry` may answer a request with these header fields without revalidation (RFC 9111 §4).
pub fn is_fresh(entry: &Entry, request: &HeaderMap, now: Time) -> bool {
    let control = Control::of(&entry.head);
    let said = Directives::of(request, &header::CACHE_CONTROL);
    if control.wants_validation() || Demand::of(request).revalidate {
        return false;
    }
    let age = lifetime::age(entry, now);
    let lifetime = control.lifetime(&entry.head, entry.checked_at, entry.index);
    let lifetime = lifetime.unwrap_or(Duration::ZERO);
    if !is_fresh_enough(&said, age, lifetime.saturating_sub(age)) {
        return false;
    }
    let stale = age.saturating_sub(lifetime);
    let takes_stale = said.seconds_or("max-stale", u64::MAX).map(Duration::from_secs);
    age < lifetime || !control.forbids_stale() && takes_stale.is_some_and(|most| stale <= most)
}

/// Whether a request accepts an answer of this age that stays fresh for `left` (RFC 9111 §5.2.1.1, §5.2.1.3).
pub fn takes(request: &HeaderMap, age: Duration, left: Duration) -> bool {
    let said = Directives::of(request, &header::CACHE_CONTROL);
    !Demand::of(request).revalidate && is_fresh_enough(&said, age, left)
}

fn is_fresh_enough(said: &Directives, age: Duration, left: Duration) -> bool {
    let seconds = |name| said.seconds(name).map(Duration::from_secs);
    seconds("max-age").is_none_or(|most| age <= most)
        && seconds("min-fresh").is_none_or(|least| left >= least)
}

/// Whether a stale `entry` may be served to this request while it is revalidated (RFC 5861 §3).
pub fn may_be_given_meanwhile(entry: &Entry, request: &HeaderMap, now: Time) -> bool {
    let said = Directives::of(request, &header::CACHE_CONTROL);
    if Demand::of(request).revalidate || said.has("max-age") || said.has("min-fresh") {
        return false;
    }
    let control = Control::of(&entry.head);
    let lifetime = control.lifetime(&entry.head, entry.checked_at, entry.index);
    let stale = lifetime::age(entry, now).saturating_sub(lifetime.unwrap_or(Duration::ZERO));
    !control.forbids_stale() && stale < control.while_revalidated()
}

/// The age of a stored answer in seconds, for its `Age` field (RFC 9111 §4.2.3).
pub fn age(entry: &Entry, now: Time) -> u64 {
    lifetime::age(entry, now).as_secs()
}

/// Whether the origin forbids serving a copy that could not be revalidated (RFC 9111 §4.2.4).
pub fn forbids_stale(head: &Head) -> bool {
    Control::of(head).forbids_stale()
}

/// Whether a 304 applies to the stored answer: the stored answer has a validator, and the 304 names no other one (RFC
/// 9111 §4.3.4).
pub fn speaks_of(answer: &Head, stored: &Head) -> bool {
    let opaque = |head: &Head| {
        let tag = head.text(&header::ETAG)?;
        Some(tag.strip_prefix("W/").unwrap_or(tag).to_owned())
    };
    match (opaque(stored), opaque(answer)) {
        (Some(asked), Some(named)) => asked == named,
        (Some(_), None) => true,
        (None, _) => stored.headers.contains_key(header::LAST_MODIFIED),
    }
}

/// Updates a stored header with the fields of a 304 (RFC 9111 §3.2), except those that describe the body. `with_type`:
/// include `Content-Type`; not where the type decides how the body is parsed.
pub fn refresh(stored: &mut Head, answer: &Head, with_type: bool) {
    let of_the_body = |name: &header::HeaderName| {
        const OTHERS: [&str; 5] =
            ["content-encoding", "content-length", "content-md5", "content-range", "etag"];
        OTHERS.contains(&name.as_str()) || !with_type && *name == header::CONTENT_TYPE
    };
    // The age of the earlier answer does not apply to this one.
    stored.headers.remove(header::AGE);
    for name in answer.headers.keys() {
        if of_the_body(name) {
            continue;
        }
        stored.headers.remove(name);
        for value in answer.headers.get_all(name) {
            stored.headers.append(name, value.clone());
        }
    }
}

fn is_event_stream(head: &Head) -> bool {
    head.text(&header::CONTENT_TYPE).is_some_and(|text| text.starts_with("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::digest::BlobId;
    use crate::proof::{Proof, Rank};
    use crate::target::{Key, Partition};

    fn head(fields: &[(&'static str, &'static str)]) -> Head {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Head { status: StatusCode::OK, headers }
    }

    fn entry(fields: &[(&'static str, &'static str)]) -> Entry {
        let at = Time::from_millis(1_000_000_000_000);
        Entry {
            key: Key([0; 32]),
            shown: String::new(),
            variant: String::new(),
            partition: Partition::Public,
            ecosystem: String::new(),
            index: false,
            blob: BlobId::new([0; 32]),
            size: 0,
            digests: Vec::new(),
            head: head(fields),
            varied: vec![("accept".into(), "*/*".into())],
            proof: Proof::of(Rank::Origin),
            generation: 0,
            answered_by: None,
            requested_at: at,
            received_at: at,
            checked_at: at,
        }
    }

    fn fresh_after(
        fields: &[(&'static str, &'static str)],
        request: &[(&'static str, &'static str)],
        secs: u64,
    ) -> bool {
        let entry = entry(fields);
        is_fresh(&entry, &head(request).headers, entry.checked_at.plus(Duration::from_secs(secs)))
    }

    #[test]
    fn nothing_is_guessed() {
        assert!(!fresh_after(&[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")], &[], 0));
        assert!(!fresh_after(&[], &[], 0));
        assert!(fresh_after(&[("cache-control", "max-age=60")], &[], 59));
        assert!(!fresh_after(&[("cache-control", "max-age=60")], &[], 61));
    }

    #[test]
    fn a_shared_cache_obeys_s_maxage_age_and_the_client() {
        assert!(!fresh_after(&[("cache-control", "max-age=60, s-maxage=1")], &[], 10));
        assert!(!fresh_after(&[("cache-control", "max-age=60"), ("age", "55")], &[], 10));
        assert!(!fresh_after(
            &[("cache-control", "max-age=60")],
            &[("cache-control", "no-cache")],
            1
        ));
        assert!(!fresh_after(&[("cache-control", "max-age=60")], &[("pragma", "no-cache")], 1));
        assert!(fresh_after(&[("cache-control", "max-age=60"), ("vary", "Accept")], &[], 1));
    }

    /// Also for answers that are stored already: each look-up would fail like the first one.
    #[test]
    fn no_number_an_origin_may_write_is_too_large() {
        for number in ["2147483649", "18446744073709551615", "99999999999999999999", "-1", "soon"] {
            let directive: &'static str = format!("max-age={number}").leak();
            let shared: &'static str = format!("s-maxage={number}").leak();
            for fields in [
                [("age", number), ("cache-control", "max-age=60")],
                [("age", number), ("cache-control", directive)],
                [("age", number), ("cache-control", shared)],
                [("age", "1"), ("cache-control", directive)],
            ] {
                let entry = entry(&fields);
                let now = entry.checked_at.plus(Duration::from_hours(1));
                assert!(age(&entry, now) <= (1 << 31) + 3600, "{fields:?}");
                for demand in ["max-age", "min-fresh", "max-stale"] {
                    let demand: &'static str = format!("{demand}={number}").leak();
                    is_fresh(&entry, &head(&[("cache-control", demand)]).headers, now);
                }
            }
            for date in ["Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", number] {
                let entry = entry(&[("expires", date), ("date", date), ("age", number)]);
                is_fresh(&entry, &HeaderMap::new(), entry.checked_at);
            }
        }
        assert!(!fresh_after(
            &[("age", "18446744073709551615"), ("cache-control", "max-age=60")],
            &[],
            1
        ));
    }

    #[test]
    fn what_depends_on_the_client_is_not_shared() {
        for (fields, expected) in [
            (&[("cache-control", "max-age=9")][..], true),
            (&[("cache-control", "no-StOrE")], false),
            (&[("cache-control", "max-age=1, private=\"set-cookie, a\"")], false),
            (&[("cdn-cache-control", "no-store"), ("cache-control", "max-age=9")], false),
            (&[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")], true),
            (&[("cdn-cache-control", "max-age=9"), ("cache-control", "max-age=1")], true),
            (&[("cdn-cache-control", "max-age=9"), ("cache-control", "private")], false),
            (&[("cache-control", "private")], false),
            (&[("cache-control", "no-store")], false),
            (&[("content-type", "text/event-stream")], false),
            (&[("cache-control", "no-store, Must-Understand, max-age=9")], true),
            (&[("cache-control", "no-store, must-understand, private")], false),
        ] {
            assert_eq!(is_shareable(&head(fields), false), expected, "{fields:?}");
            assert!(is_shareable(&head(fields), true), "{fields:?}: a digest vouches");
        }
    }

    /// RFC 9111 §5.2.2.3: `no-store` beside it is for caches that do not know the directive or the status.
    #[test]
    fn what_must_be_understood_is_stored_if_its_status_is() {
        let of = |status, says: &'static str| {
            let status = StatusCode::from_u16(status).unwrap();
            is_shareable(&Head { status, ..head(&[("cache-control", says)]) }, false)
        };
        for status in [200, 204, 301, 404, 500] {
            assert!(of(status, "max-age=9, must-understand, no-store"), "{status}");
            assert!(!of(status, "max-age=9, no-store"), "{status}");
        }
        for status in [299, 499, 599] {
            assert!(of(status, "max-age=9"), "{status}");
            assert!(!of(status, "max-age=9, must-understand"), "{status}");
            assert!(!of(status, "max-age=9, must-understand, no-store"), "{status}");
        }
    }

    /// RFC 9111 §4.2.4 and RFC 5861 §3.
    #[test]
    fn what_may_be_given_stale_is_what_the_origin_says() {
        for directive in ["no-cache", "must-revalidate", "proxy-revalidate", "s-maxage=2"] {
            let text: &'static str = format!("max-age=2, {directive}").leak();
            assert!(forbids_stale(&head(&[("cache-control", text)])), "{directive}");
        }
        assert!(!forbids_stale(&head(&[("cache-control", "max-age=2, stale-if-error=9")])));
        let meanwhile = |text: &'static str, secs| {
            let entry = entry(&[("cache-control", text)]);
            let now = entry.checked_at.plus(Duration::from_secs(secs));
            let fresher = head(&[("cache-control", "max-age=9")]);
            assert!(!may_be_given_meanwhile(&entry, &fresher.headers, now));
            may_be_given_meanwhile(&entry, &HeaderMap::new(), now)
        };
        assert!(meanwhile("max-age=2, stale-while-revalidate=10", 11));
        assert!(!meanwhile("max-age=2, stale-while-revalidate=10", 13));
        assert!(!meanwhile("max-age=2, stale-while-revalidate=10, must-revalidate", 3));
        assert!(!meanwhile("max-age=2", 3));
    }

    #[test]
    fn a_client_may_want_it_fresher_or_take_it_stale() {
        let fresh = |own, asks: &'static str, secs| {
            fresh_after(&[("cache-control", own)], &[("cache-control", asks)], secs)
        };
        assert!(!fresh("max-age=60", "max-age=5", 6) && fresh("max-age=60", "max-age=5", 5));
        assert!(!fresh("max-age=60", "min-fresh=50", 20) && fresh("max-age=60", "min-fresh=50", 5));
        assert!(
            fresh("max-age=60", "max-stale=50", 100) && !fresh("max-age=60", "max-stale=5", 100)
        );
        assert!(fresh("max-age=60", "max-stale", 1000));
        assert!(!fresh("max-age=60, must-revalidate", "max-stale", 1000));
        assert!(!fresh("max-age=60, No-CaChE", "", 1) && fresh("MaX-aGe=60", "", 1));
    }

    #[test]
    fn a_304_renews_all_but_the_description_of_the_body() {
        let mut stored = head(&[
            ("etag", "\"a\""),
            ("content-length", "3"),
            ("cache-control", "max-age=1"),
            ("age", "55"),
        ]);
        refresh(
            &mut stored,
            &head(&[("content-length", "0"), ("cache-control", "max-age=9"), ("etag", "W/\"b\"")]),
            true,
        );
        assert_eq!(
            stored,
            head(&[("etag", "\"a\""), ("content-length", "3"), ("cache-control", "max-age=9")])
        );
    }

    #[test]
    fn demands_are_read() {
        let demand = |fields| Demand::of(&head(fields).headers);
        assert!(demand(&[("cache-control", "Max-Age=0")]).revalidate);
        assert!(demand(&[("pragma", "no-cache")]).revalidate);
        assert!(!demand(&[("pragma", "no-cache"), ("cache-control", "max-age=9")]).revalidate);
        assert!(demand(&[("cache-control", "only-if-cached")]).only_if_cached);
        assert_eq!(demand(&[]), Demand::default());
    }
}
