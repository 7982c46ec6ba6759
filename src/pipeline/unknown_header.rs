//! Requests that are passed because of one header field, and would be answered from the store without it.
//!
//! Such a field may select the answer, so the answer is not shared. larder names the field once in the log, and in the
//! `Cache-Status` of each answer; the operator can add it to `http.harmless_headers`. While the origin is down, the stored public
//! answer stands in, so that such a client is not worse off than others.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::answers::is_failure;
use super::lookup::{Lookup, Stored};
use super::record::Record;
use super::task::Task;
use super::{Call, Pipeline};
use crate::ecosystem::Recognition;
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::metrics::StoodIn;
use crate::policy::{self, PassReason};
use crate::reply::Body;
use crate::target::shown::clipped;

/// The most fields that are named in the log, each once: clients can invent names.
const MOST_TOLD: usize = 256;

/// The longest field name in the log.
const NAME: usize = 64;

/// The fields that were named in the log, each with the ecosystem of its requests.
#[derive(Debug, Default)]
pub(super) struct NamedHeaders(Mutex<HashSet<(String, &'static str)>>);

impl NamedHeaders {
    /// Whether this field is to be named now: it was not named yet, and the limit is not reached.
    fn is_news(&self, name: &str, ecosystem: &'static str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MOST_TOLD && told.insert((name.to_owned(), ecosystem))
    }
}

impl Pipeline {
    /// The field that makes a request a pass, clipped for display.
    pub(super) fn unknown_header(
        &self,
        headers: &HeaderMap,
        known: Option<&Recognition>,
    ) -> String {
        let name = policy::unknown_header(headers, known, &self.config.get().http.harmless_headers);
        name.map_or_else(String::new, |name| clipped(name.as_str(), NAME).into_owned())
    }

    /// Passes a request because of the field `name`.
    pub(super) async fn pass_with_header(
        self: &Arc<Self>,
        call: Call,
        task: &Task,
        name: &str,
        record: &mut Record,
    ) -> Response<Body> {
        record.why(format!("its header field {name} may change the answer"));
        self.tell_of_header(task, name);
        let (connection, asked) = (Arc::clone(&call.connection), call.asked());
        let reason = PassReason::Header;
        if !self.knows_its_store().await {
            let passed = self.pass_or_copy(call, &asked, task, reason, record).await;
            return named(passed, name);
        }
        let Some(mut stored) = self.public_copy(task, &asked.headers).await else {
            return named(self.pass_for(call, task, reason, record).await, name);
        };
        let down = self.is_down_for(task);
        let patience = self.patience_for(task).min(self.config.get().upstream.header_timeout);
        if down {
            // The pass ends when its client stops waiting; the fill finds out when the origin is back, and renews the copy.
            self.ask_behind(task, &stored.entry);
        }
        let passing = self.pass_for(call, task, reason, record);
        let passed = match tokio::time::timeout(patience, passing).await {
            Ok(passed) if record.is_rejected() || !is_failure(passed.status()) => {
                return named(passed, name);
            }
            Ok(passed) => Some(passed),
            Err(_) => {
                if !down {
                    self.note_silence(task);
                    self.ask_behind(task, &stored.entry);
                }
                self.metrics.stood_in(if down { StoodIn::Down } else { StoodIn::Patience });
                None
            }
        };
        stored.proof = stored.proof.stale();
        let stale = Outcome::Stale;
        let reply = self.reply_stored(&connection, &asked, task, &stored, stale, record);
        match (reply.await, passed) {
            (Some(response), _) | (None, Some(response)) => response,
            (None, None) => {
                let line = format!("{} does not answer; try again", task.target.origin());
                record.fail(StatusCode::GATEWAY_TIMEOUT, &Why::new(Cause::Timeout, line))
            }
        }
    }

    /// Names the field in the log, once.
    fn tell_of_header(&self, task: &Task, name: &str) {
        let ecosystem = task.known().map_or("", |known| known.ecosystem.name());
        if self.told.is_news(name, ecosystem) {
            let of = if ecosystem.is_empty() { String::new() } else { format!(" of {ecosystem}") };
            tracing::info!(
                "requests{of} with the header field {name} are passed on and not kept, because it may change the answer; if it \
                 does not, add it to http.harmless_headers"
            );
        }
    }

    /// The public stored answer that may be given if the origin does not answer.
    pub(super) async fn public_copy(
        self: &Arc<Self>,
        task: &Task,
        headers: &HeaderMap,
    ) -> Option<Stored> {
        if !may_have_public_copy(task) {
            return None;
        }
        let found = match self.look_up(task, headers).await {
            Lookup::Fresh(stored) | Lookup::Stale(stored) => Some(stored),
            Lookup::Miss => None,
        };
        let stored = found.filter(|stored| stored.usable)?;
        self.read_if_unclaimed(task, &stored).await;
        Some(stored)
    }
}

/// Whether the client may be given the copy that everybody may have. If it has a credential, larder does not know whether the
/// origin would give it the same.
pub(super) fn may_have_public_copy(task: &Task) -> bool {
    !task.principal.is_private() && !task.bare().has_token()
}

/// Names the field in larder's own `Cache-Status`.
fn named(mut response: Response<Body>, name: &str) -> Response<Body> {
    let field = HeaderName::from_static("cache-status");
    if let hyper::header::Entry::Occupied(mut found) = response.headers_mut().entry(field)
        && let Some(last) = found.iter_mut().last()
        && let Some(front) =
            last.to_str().ok().and_then(|text| text.strip_suffix("detail=\"header\""))
        && let Ok(value) = HeaderValue::try_from(format!("{front}detail=\"header {name}\""))
    {
        *last = value;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_told_once_and_not_too_many() {
        let told = NamedHeaders::default();
        assert!(told.is_news("x-a", "") && !told.is_news("x-a", ""));
        assert!(told.is_news("x-a", "npm"));
        let news = (0..10_000).filter(|number| told.is_news(&format!("x-{number}"), "")).count();
        assert_eq!(news, MOST_TOLD - 2);
    }
}
