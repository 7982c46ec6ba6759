//! RFC 9111 for whatever has no proof of its own: may an answer be stored, and is a stored one still fresh.
//!
//! larder is a shared cache without heuristic freshness: an answer that does not say how long it holds is revalidated
//! each time (RFC 9111 §4.2.2 would allow a guess; a guess at a package index is a broken build). The rules are those of
//! `http-cache-semantics`, which is rebuilt from the stored header fields at each question, so that no format of its
//! own lies on disk.
//!
//! Artifacts with a proof do not come here: their freshness is that of the claims that name them.

use http_cache_semantics::{BeforeRequest, CacheOptions, CachePolicy};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::clock::Time;
use crate::entry::{Entry, Head};

const OPTIONS: CacheOptions = CacheOptions {
    shared: true,
    cache_heuristic: 0.0,
    immutable_min_time_to_live: std::time::Duration::ZERO,
    ignore_cargo_cult: false,
};

/// Request fields that may stand in a `Vary` without making an answer unshareable: each is in the key, or larder always
/// sends the same.
const KEYED: [&str; 3] = ["accept", "accept-encoding", "accept-language"];

/// What a client's request says about stored answers (RFC 9111 §5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// `no-cache`, `max-age=0` or `Pragma: no-cache`: only with a revalidation.
    pub revalidate: bool,
    /// `only-if-cached`: from the store or not at all.
    pub only_if_cached: bool,
    /// `no-store`: nothing that has no proof of its own is kept.
    pub no_store: bool,
}

impl Demand {
    /// Reads a request's header fields.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut demand = Self::default();
        for directive in directives(headers, header::CACHE_CONTROL) {
            match directive.as_str() {
                "no-cache" | "max-age=0" => demand.revalidate = true,
                "only-if-cached" => demand.only_if_cached = true,
                "no-store" => demand.no_store = true,
                _ => {}
            }
        }
        if !headers.contains_key(header::CACHE_CONTROL) {
            demand.revalidate = directives(headers, header::PRAGMA).any(|d| d == "no-cache");
        }
        demand
    }
}

/// Whether an answer to a fill may be given to anybody but the client that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shareable {
    /// It may be stored.
    Yes,
    /// Only who asked may have it.
    No,
    /// It depends on request fields that a fill does not carry: the client must ask itself.
    Varies,
}

/// Decides from the header alone. `proven` says that a digest will vouch for the body: then whoever asks gets these bytes,
/// and nothing that the head says of sharing keeps them from being kept (DESIGN §3).
pub fn shareable(head: &Head, proven: bool) -> Shareable {
    let varies =
        directives(&head.headers, header::VARY).any(|name| !KEYED.contains(&name.as_str()));
    if varies && !proven {
        return Shareable::Varies;
    }
    let refused = directives(&head.headers, header::CACHE_CONTROL)
        .any(|d| d == "no-store" || d == "private" || d.starts_with("private="));
    if proven || head.status != StatusCode::OK {
        return if refused && !proven { Shareable::No } else { Shareable::Yes };
    }
    if refused || is_event_stream(head) {
        return Shareable::No;
    }
    Shareable::Yes
}

/// Whether keeping an answer of unknown kind is of any use: it says how long it holds, or it can be revalidated.
pub fn worth_keeping(head: &Head) -> bool {
    head.headers.contains_key(header::ETAG)
        || head.headers.contains_key(header::LAST_MODIFIED)
        || head.headers.contains_key(header::EXPIRES)
        || directives(&head.headers, header::CACHE_CONTROL)
            .any(|d| d.starts_with("max-age=") || d.starts_with("s-maxage="))
}

/// How far the clock may be behind a stored time for that to be believed. A clock that was ahead and is set back would
/// make everything fresh until it had caught up.
pub const AHEAD: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether `entry` was checked at a time that has not come yet.
pub fn is_of_the_future(entry: &Entry, now: Time) -> bool {
    entry.checked_at > now.plus(AHEAD)
}

/// How far `entry` is from the time at which it was checked; a clock that was set back counts as one that went on.
pub fn distance(entry: &Entry, now: Time) -> std::time::Duration {
    now.since(entry.checked_at).max(entry.checked_at.since(now))
}

/// Whether `entry` answers a request with these header fields without asking its origin.
pub fn is_fresh(entry: &Entry, request: &HeaderMap, now: Time) -> bool {
    let mut asked = HeaderMap::new();
    for (name, value) in &entry.varied {
        let name = header::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            asked.insert(name, value);
        }
    }
    let Some(policy) = policy(entry, &asked) else {
        return false;
    };
    let mut present = asked;
    for name in [header::CACHE_CONTROL, header::PRAGMA] {
        for value in request.get_all(&name) {
            present.append(&name, value.clone());
        }
    }
    let Some(request) = synthetic_request(&present) else {
        return false;
    };
    matches!(policy.before_request(&request, now.into()), BeforeRequest::Fresh(_))
}

/// The age of a stored answer in seconds, for its `Age` field (RFC 9111 §4.2.3).
pub fn age(entry: &Entry, now: Time) -> u64 {
    policy(entry, &HeaderMap::new()).map_or(0, |policy| policy.age(now.into()).as_secs())
}

/// Whether the origin forbids to serve a copy that could not be revalidated (RFC 9111 §5.2.2.2).
pub fn forbids_stale(head: &Head) -> bool {
    directives(&head.headers, header::CACHE_CONTROL).any(|d| {
        matches!(d.as_str(), "must-revalidate" | "proxy-revalidate") || d.starts_with("s-maxage=")
    })
}

/// Whether a 304 speaks of the stored answer: that has a validator to be asked about, and the 304 names no other
/// (RFC 9111 §4.3.4).
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

/// Takes the fields of a 304 into a stored head (RFC 9111 §3.2), but those that describe the body.
pub fn refresh(stored: &mut Head, answer: &Head) {
    const OF_THE_BODY: [header::HeaderName; 5] = [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::ETAG,
    ];
    // The age of the answer that came before says nothing of this one.
    stored.headers.remove(header::AGE);
    for name in answer.headers.keys() {
        if OF_THE_BODY.contains(name) {
            continue;
        }
        stored.headers.remove(name);
        for value in answer.headers.get_all(name) {
            stored.headers.append(name, value.clone());
        }
    }
}

fn policy(entry: &Entry, asked: &HeaderMap) -> Option<CachePolicy> {
    let request = synthetic_request(asked)?;
    let mut response = Response::new(());
    *response.status_mut() = entry.head.status;
    *response.headers_mut() = entry.head.headers.clone();
    bound_age(response.headers_mut());
    Some(CachePolicy::new_options(&request, &response, entry.checked_at.into(), OPTIONS))
}

/// The longest age in seconds: what is longer counts as this (RFC 9111 §1.2.2).
const OLDEST: u64 = 1 << 31;

/// The policy adds the time in the store to `Age`, and that sum has no room for whatever an origin may say.
fn bound_age(headers: &mut HeaderMap) {
    let Some(said) = headers.get(header::AGE) else { return };
    let said = said.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    if said.is_some_and(|said| said > OLDEST) {
        headers.insert(header::AGE, HeaderValue::from(OLDEST));
    }
}

/// The key already says which URL it is; the policy need not compare it again.
fn synthetic_request(headers: &HeaderMap) -> Option<Request<()>> {
    let mut request = Request::builder().method(Method::GET).uri("/").body(()).ok()?;
    *request.headers_mut() = headers.clone();
    Some(request)
}

fn is_event_stream(head: &Head) -> bool {
    head.text(&header::CONTENT_TYPE).is_some_and(|text| text.starts_with("text/event-stream"))
}

/// The members of a list field, lower case, without blanks.
fn directives(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = String> + '_ {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(|member| member.trim().to_ascii_lowercase())
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    /// Also of what is stored already: each look-up would fail as the first one did.
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
                assert!(age(&entry, now) <= OLDEST + 3600, "{fields:?}");
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
            (&[("vary", "Accept, Accept-Encoding")][..], Shareable::Yes),
            (&[("vary", "User-Agent")], Shareable::Varies),
            (&[("vary", "*")], Shareable::Varies),
            (&[("cache-control", "private")], Shareable::No),
            (&[("cache-control", "no-store")], Shareable::No),
            (&[("content-type", "text/event-stream")], Shareable::No),
        ] {
            assert_eq!(shareable(&head(fields), false), expected, "{fields:?}");
            assert_eq!(
                shareable(&head(fields), true),
                Shareable::Yes,
                "{fields:?}: a digest vouches"
            );
        }
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
