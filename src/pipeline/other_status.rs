//! Answers other than a 200: redirects, absences, and every other answer with explicit freshness.
//!
//! ```text
//!                      without explicit freshness    with it                   when the origin fails
//! redirect             asked again each time         as long as it says        the last one, as for files
//! 404, 410             five seconds                  as long as it says        the last one, as for files
//! 5xx                  not at all                    at most five seconds      -
//! 429, 511             not at all                    not at all                -
//! any other            not at all                    at most a minute          -
//! ```
//!
//! A failure is remembered only if the origin asks for that (RFC 9111 §3), only for targets that no ecosystem recognises and no
//! promise binds, only in memory, and for less time than clients' retries take: the origin may have recovered the next moment. It
//! is not used where a stored copy may be given. A 429 and a 511 concern one client (RFC 6585 §4, §6).
//!
//! An error other than 404 and 410 is given only to requests with the same `Accept` and `Accept-Language`. Some origins fail at
//! an `Accept` that they do not understand; one client's `Accept` must not cause errors for others (promise P1).
//!
//! An answer to a fill is remembered in memory first. Redirects, 404s and 410s are written to disk after they were sent, under a
//! key of their own, so that they never displace a body. While the origin fails, a usable body takes precedence over them: a
//! registry that is failing may answer 404 for files that it has. A redirect away from a promised target is never given
//! (redirect.rs).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode, header};

use super::Pipeline;
use super::answers::is_failure;
use super::lookup::{IN_MEMORY, NEGATIVE_HOLDS, Small, Stored};
use super::record::Record;
use super::task::Task;
use crate::clock::Time;
use crate::digest::Algorithms;
use crate::entry::{Entry, Head};
use crate::freshness;
use crate::outcome::Outcome;
use crate::proof::Rank;
use crate::received::Received;
use crate::reply::{self, Asked, Body};
use crate::target::{Key, Target};
use crate::verify::{self, Expectation, Verdict};

/// The longest that a failure with explicit freshness is kept. A build retries after one, two and four seconds, and the last
/// retry must get the origin's present state.
const FAILURE_HOLDS: Duration = Duration::from_secs(5);

/// How old a written answer may be before an equal one is written again. A missing file that is requested all day answers 404 all
/// day.
const WRITTEN_FOR: Duration = Duration::from_hours(1);

/// The longest path and query of an answer that is written to disk.
const MOST_URL: usize = 2048;

/// The suffix of the variant in the key of such an answer.
const OTHER: &str = "other than 200";

/// Whether the URL is too long for a record on disk.
fn is_long(target: &Target) -> bool {
    target.path().len() + target.query().map_or(0, str::len) > MOST_URL
}

/// Whether an answer other than a 200 is given to the client, and is no reason to pass the client's own request. A fill sends
/// fewer header fields than the client, so where the fill is refused the client may succeed.
pub(super) fn is_relayed(head: &Head, now: Time) -> bool {
    let status = head.status;
    if status == StatusCode::NOT_MODIFIED {
        return false;
    }
    status.is_redirection()
        || status.is_server_error()
        || is_absence(status)
        || status == StatusCode::TOO_MANY_REQUESTS
        || !is_of_this_request(status)
            && freshness::left(head, now).is_some_and(|left| left > Duration::ZERO)
}

/// Whether a status concerns a part of the body, or how this request was made.
fn is_of_this_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 206 | 401 | 403 | 407 | 408 | 411..=413 | 415..=417 | 421 | 425 | 426 | 428 | 431)
        || status.is_informational()
}

/// Whether a client obtains a file by an answer with this status: by its body, or by following it. If a promise binds the target,
/// such an answer is not given.
pub(super) fn leads_or_completes(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

fn is_absence(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// The statuses that are written to disk.
fn is_lasting(status: StatusCode) -> bool {
    is_absence(status) || matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

impl Pipeline {
    /// Remembers an answer other than a 200 for as long as it may be given again, and writes it to disk if it may be given when
    /// its origin fails.
    pub(super) fn remember_other(
        self: &Arc<Self>,
        task: &Task,
        answer: &Arc<(Head, Bytes)>,
        requested_at: Time,
        plain: bool,
    ) {
        let (now, head) = (self.clock.now(), &answer.0);
        let most = if !is_failure(head.status) {
            IN_MEMORY
        } else if self.may_remember_failure(task, head.status) {
            FAILURE_HOLDS
        } else {
            return;
        };
        let left = freshness::left(head, now);
        let absent = is_absence(head.status).then_some(NEGATIVE_HOLDS);
        if let Some(holds) = left.or(absent).filter(|holds| *holds > Duration::ZERO) {
            let (answer, until) = (Arc::clone(answer), now.plus(holds.min(most)));
            let (by_its_word, varied) = (left.is_some(), task.selected_by(head));
            let small = Small { answer, asked: requested_at, until, by_its_word, varied };
            let is_error = head.status.is_client_error() || head.status.is_server_error();
            let by_words = is_error && !is_absence(head.status);
            let key = if by_words { task.key_as_asked() } else { task.key };
            self.memory.note_negative(key, small);
        }
        if !is_lasting(head.status)
            || plain
            || task.is_private_index()
            || task.is_snapshot_root()
            || is_long(task.bare())
            || leads_to_a_token(task, head)
        {
            return;
        }
        let (pipeline, task, answer) = (Arc::clone(self), task.clone(), Arc::clone(answer));
        tokio::spawn(async move {
            if let Err(error) =
                pipeline.write_other(&task, &answer, requested_at, left.is_some()).await
            {
                tracing::warn!(url = %task.target, %error, "this answer is not kept for when its origin fails");
            }
        });
    }

    /// Whether a failure with explicit freshness may be given again.
    fn may_remember_failure(&self, task: &Task, status: StatusCode) -> bool {
        let is_one_clients =
            [StatusCode::TOO_MANY_REQUESTS, StatusCode::NETWORK_AUTHENTICATION_REQUIRED];
        task.is_unknown()
            && !task.is_snapshot_root()
            && !is_one_clients.contains(&status)
            && !self.binds_today(task)
    }

    async fn write_other(
        &self,
        task: &Task,
        answer: &Arc<(Head, Bytes)>,
        requested_at: Time,
        says_how_long: bool,
    ) -> io::Result<()> {
        let now = self.clock.now();
        let (head, bytes) = (&answer.0, answer.1.clone());
        let known = self.store.entries(other_key(task).0).into_iter().next();
        let same = |entry: &Arc<Entry>| {
            entry.head.status == head.status
                && entry.head.text(&header::LOCATION) == head.text(&header::LOCATION)
                && now.since(entry.checked_at) < WRITTEN_FOR
        };
        if !says_how_long && known.as_ref().is_some_and(same) {
            return Ok(());
        }
        let (store, head) = (Arc::clone(&self.store), head.clone());
        let spooled = tokio::task::spawn_blocking(move || -> io::Result<Received> {
            let length = bytes.len() as u64;
            let mut spool =
                store.spool(Some(length), Algorithms::default()).map_err(io::Error::other)?;
            spool.append(&bytes).map_err(io::Error::other)?;
            Ok(Received {
                body: spool.finish(),
                head,
                plain: false,
                answered_by: None,
                resumed: false,
                requested_at,
                received_at: now,
            })
        });
        let received = spooled.await.unwrap_or_else(|gone| Err(gone.into()))?;
        let expected = Expectation::nothing(Rank::Origin);
        let Verdict::Keep(verified, _) = verify::judge(received, &expected, requested_at) else {
            return Ok(());
        };
        let mut entry = self.entry_of(task, None, &verified);
        (entry.key, entry.variant) = other_key(task);
        (entry.ecosystem, entry.index) = (String::new(), false);
        let store = Arc::clone(&self.store);
        let committed =
            tokio::task::spawn_blocking(move || store.commit(verified, entry).map(|_| ()));
        committed.await.unwrap_or_else(|gone| Err(gone.into()))
    }

    /// The newest written answer, if it is newer than the body that is `stored` and no promise binds the target.
    fn other(&self, task: &Task, stored: Option<&Stored>) -> Option<Arc<Entry>> {
        if task.is_private_index() || task.is_private_artifact() || task.is_snapshot_root() {
            return None;
        }
        let mut entries = self.store.entries(other_key(task).0).into_iter();
        let entry = entries.find(|entry| task.selects(entry))?;
        let newer = stored.is_none_or(|stored| stored.entry.checked_at < entry.checked_at);
        let stands = newer
            && !self.memory.is_overtaken(task, entry.requested_at)
            && !freshness::is_of_the_future(&entry, self.clock.now());
        (stands && !self.binds_today(task)).then_some(entry)
    }

    /// The same while it is fresh.
    pub(super) fn fresh_other(
        &self,
        task: &Task,
        stored: Option<&Stored>,
        request: &HeaderMap,
    ) -> Option<Stored> {
        let entry = self.other(task, stored)?;
        let fresh = freshness::is_fresh(&entry, request, self.clock.now());
        fresh.then(|| Stored { proof: entry.proof, entry, usable: true })
    }

    /// The same for when the origin fails.
    pub(super) fn usable_other(&self, task: &Task) -> Option<Stored> {
        let entry = self.other(task, None)?;
        let usable = self.is_usable(task, &entry, self.clock.now());
        usable.then(|| Stored { proof: entry.proof, entry, usable })
    }

    /// A remembered answer. Not a redirect or an answer that completes a file, if the target was promised or its body refused
    /// since. Not a failure, if `stored` or another stored answer may be given.
    pub(super) fn remembered(
        &self,
        task: &Task,
        asked: &Asked,
        stored: Option<&Stored>,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        let now = self.clock.now();
        let Small { answer, asked: requested_at, until, .. } = self.memory.negative(task, now)?;
        if leads_or_completes(answer.0.status) && self.is_held_today(task) {
            return None;
        }
        let is_copy = |stored: &Stored| stored.usable;
        if is_failure(answer.0.status)
            && (stored.is_some_and(is_copy) || self.usable_other(task).is_some())
        {
            return None;
        }
        let age = freshness::said_age(&answer.0).saturating_add(now.since(requested_at));
        if !freshness::takes(&asked.headers, age, until.since(now)) {
            return None;
        }
        let mut response = reply::relayed(asked, &answer.0, answer.1.clone(), Outcome::Hit);
        response.headers_mut().insert(header::AGE, age.as_secs().into());
        Some(record.end(Outcome::Hit, response))
    }
}

/// The key and the variant under which a task's answer other than a 200 is kept.
fn other_key(task: &Task) -> (Key, String) {
    let variant = match task.target.variant() {
        "" => OTHER.to_owned(),
        variant => format!("{variant}, {OTHER}"),
    };
    (task.key_of(&task.bare().clone().with_variant(&variant)), variant)
}

/// Whether a redirect leads to a URL with a token, or comes from one. Such a token is for one client and for a limited time: it
/// must not be written to disk, and would be of no use there.
fn leads_to_a_token(task: &Task, head: &Head) -> bool {
    let location = head.text(&header::LOCATION);
    location.and_then(|location| task.bare().redirected(location)).is_some_and(|to| to.has_token())
        || task.bare().has_token()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn what_says_how_long_it_holds_is_relayed_and_a_refusal_is_not() {
        let now = Time::from_millis(0);
        let relayed = |status, says| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(says));
            is_relayed(&Head { status: StatusCode::from_u16(status).unwrap(), headers }, now)
        };
        for status in [301, 302, 404, 410, 429, 500, 503] {
            assert!(relayed(status, "") && relayed(status, "max-age=9"), "{status}");
        }
        for status in [203, 204, 299, 400, 405, 499, 599] {
            let said = status == 599;
            assert!(relayed(status, "") == said && relayed(status, "max-age=9"), "{status}");
        }
        for status in [206, 304, 401, 403, 407, 416, 431] {
            assert!(!relayed(status, "max-age=9"), "{status}");
        }
    }
}
