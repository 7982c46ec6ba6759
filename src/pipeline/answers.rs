//! What the head of an answer, or the start of its body, says by itself.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use hyper::{StatusCode, header};

use crate::clock::Time;
use crate::ecosystem::Recognition;
use crate::entry::Head;
use crate::freshness;
use crate::received::Received;
use crate::target::Target;

/// How many bytes of a body an ecosystem sees to confirm a likely recognition.
const START: usize = 1024;

/// Whether the status says that the origin could not answer now, so that a stored copy is better.
pub(super) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Whether an answer to a request with a credential says that the credential has no right: refused, gone, or redirected.
pub(super) fn is_no(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::GONE
            | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS
    ) || status.is_redirection() && status != StatusCode::NOT_MODIFIED
}

/// Whether an answer is an HTML page, such as a sign-in or an error page.
pub(super) fn is_page(head: &Head) -> bool {
    let kind = head.text(&header::CONTENT_TYPE).unwrap_or_default();
    kind.get(..9).is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"))
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
pub(super) fn retry_after(text: &str, now: Time) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(Time::from(freshness::date(text)?).since(now))
}

/// Whether what was known at `since` still holds. If the clock was set back to before `since`, it does not.
pub(super) fn lasts(since: Time, holds: Duration, now: Time) -> bool {
    since <= now && now.since(since) < holds
}

/// Whether the answer confirms a likely recognition.
pub(super) fn confirms(likely: &Recognition, at: &Target, received: &Received) -> bool {
    let mut start = vec![0; START.min(usize::try_from(received.body.size).unwrap_or(START))];
    // At most 1 KiB of a file that was written a moment ago: the page cache has it.
    received.body.file.read_exact_at(&mut start, 0).is_ok()
        && likely.ecosystem.confirm(at, &received.head, &start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Time::from_millis(946_684_800_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after("Sat, 01 Jan 2000 00:01:00 GMT", now), Some(Duration::from_mins(1)));
        assert_eq!(retry_after("Fri, 31 Dec 1999 00:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn a_no_is_a_no_and_a_failure_is_none() {
        for status in [301, 302, 307, 401, 403, 404, 410, 451] {
            assert!(is_no(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [200, 206, 304, 412, 416, 429, 500, 503] {
            assert!(!is_no(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
