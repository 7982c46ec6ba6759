//! The leader's work: ask the origin, decide by the head of its answer, take in the body.
//!
//! The task belongs to the cache: the client that caused it may leave. However it ends, the flight gets an end, because
//! the lead gives it one when it is dropped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::{StatusCode, header};

use super::quarantine::Whom;
use super::shared::{self, Whose};
use super::task::Task;
use super::{Pipeline, larders, others, rights};
use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Hashing, Wanted};
use crate::entry::{Entry, Head};
use crate::flight::{
    Answered, Binds, Complete, End, Flight, Intake, Lead, Trouble, can_resume, intake,
};
use crate::freshness;
use crate::origin::{Answer, Ask, OriginError};
use crate::outcome::metrics::Direction;
use crate::store::Spool;
use crate::verify::{Expectation, Mismatch};

/// The longest answer that is relayed out of memory, in bytes: error pages and redirects.
pub(super) const RELAYED: usize = 256 * 1024;

/// How long an archive that is being published is left alone before it is read again: writing a file takes less. Twice as
/// long each time.
const UNSETTLED: Duration = Duration::from_millis(100);

/// How a body is begun again: on a connection that nothing used before, in case the first one was out of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Second,
}

/// What came of one attempt.
pub(super) enum Came {
    /// The flight has its end.
    Ended(End),
    /// It may be tried once more.
    Again(End),
    /// It may be of one piece in a moment.
    Unsettled(End),
}

impl Pipeline {
    /// Brings a flight to its end. `stored`: what may be revalidated.
    pub(super) async fn lead(self: Arc<Self>, lead: Lead, task: Task, stored: Option<Arc<Entry>>) {
        if let Some(end) = Box::pin(self.follow_pointer(&lead, &task, stored.as_ref())).await {
            lead.flight.finish(end);
            return;
        }
        let (mut attempt, mut pause) = (Attempt::First, UNSETTLED);
        let end = loop {
            let came = Box::pin(self.attempt(&lead, &task, stored.as_ref(), attempt)).await;
            match came {
                Came::Again(_) if attempt == Attempt::First && lead.flight.restart() => {
                    attempt = Attempt::Second;
                }
                Came::Unsettled(_) if lead.flight.restart() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt = Attempt::Second;
                }
                Came::Ended(end) | Came::Again(end) | Came::Unsettled(end) => break end,
            }
        };
        match &end {
            // Nobody resumes what nobody was given a byte of; and an index may be right again in a moment.
            End::Refused(_) if task.is_index() && lead.flight.nothing_given() => {}
            End::Refused(reason) => {
                lead.flight.suspect().await;
                let (whom, now) = (Whom::Principal(task.asker.reader()), self.clock.now());
                self.quarantines.begin(&task.target, whom, reason, now);
            }
            End::Failed(..)
            | End::Kept(_)
            | End::Given
            | End::Current(_)
            | End::Relayed(_)
            | End::Pass
            | End::Handed => {}
        }
        self.note_head(&task, &end);
        // A handed answer has ended the flight already.
        lead.flight.finish(end);
    }

    async fn attempt(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        stored: Option<&Arc<Entry>>,
        attempt: Attempt,
    ) -> Came {
        let expected = self.expectation_of(task);
        // Followed inside only where a name or a claim will prove what comes; all other redirects reach the client. What an
        // index elsewhere says makes no difference to how a client is answered.
        let follow = expected.named.is_some() || expected.binding().next().is_some();
        // A pinned file is revalidated; what failed a promise is fetched whole.
        let stored = stored.filter(|_| attempt == Attempt::First);
        let mut ask = task.ask(stored.map(AsRef::as_ref), follow);
        ask.fresh_connection = attempt == Attempt::Second;
        // There is nothing to give in its place, and repository managers send nothing until they have a file themselves: it is
        // waited for as long as somebody does.
        ask.patient |= stored.is_none();
        let Some(fetched) = self.fetch_for(&lead.flight, &ask).await else {
            return Came::Ended(End::Pass);
        };
        let answer = match fetched {
            Ok(answer) => larders::without_session(task, answer),
            // A redirect that leads nowhere, or where larder must not go. Where no promise binds, the client hears it as it
            // came; where one does, its own request is followed, or refused (onward.rs).
            Err(error) if error.fault().is_of_the_way() => {
                return Came::Ended(if task.asker.is_larders() && self.binds_today(task) {
                    // The client's own request would show no login, and hear of nothing else.
                    End::Failed(StatusCode::BAD_GATEWAY, error.why())
                } else {
                    End::Pass
                });
            }
            Err(error) => {
                if error.is_temporary() {
                    self.note_failed(task, None);
                }
                return Came::Ended(End::from(&error));
            }
        };
        // A long poll says nothing of how long others take.
        let usual = !(task.is_unknown() && ask.patient);
        self.note_health(task, &answer, usual);
        let status = answer.head.status;
        match (status, stored) {
            (StatusCode::NOT_MODIFIED, Some(entry)) => {
                if !freshness::speaks_of(&answer.head, &entry.head) {
                    tracing::warn!(url = %task.target, "a 304 speaks of another copy than was asked about");
                    return Came::Again(End::Pass);
                }
                if self.takes_back(task, entry, &answer, &expected).await {
                    return Came::Ended(End::Pass);
                }
                self.current(task, entry, &answer).await
            }
            (StatusCode::OK, _) => {
                Box::pin(self.arrive(lead, task, &ask, answer, expected, attempt)).await
            }
            _ => Came::Ended(self.other_answer(lead, task, answer).await),
        }
    }

    /// Sends the request. A patient one may be a long poll, and waits as long as somebody does; `None` when nobody does
    /// any more, because whoever came later would wait for a connection that may long be dead.
    async fn fetch_for(&self, flight: &Flight, ask: &Ask) -> Option<Result<Answer, OriginError>> {
        let fetching = self.origins.fetch(ask.clone());
        if !ask.patient {
            return Some(fetching.await);
        }
        let limit = self.config.get().upstream.header_timeout;
        let deserted = async {
            tokio::time::sleep(limit).await;
            flight.deserted().await;
        };
        tokio::select! {
            fetched = fetching => Some(fetched),
            () = deserted => None,
        }
    }

    /// The stored copy is current: its header fields are renewed, its claims confirmed.
    pub(super) async fn current(
        self: &Arc<Self>,
        task: &Task,
        entry: &Arc<Entry>,
        answer: &Answer,
    ) -> Came {
        let (requested_at, checked_at) = (answer.requested_at, self.clock.now());
        let stale = task.heads() && self.is_expired(task.bare(), checked_at);
        let (guarded, head) = (task.is_guarded(), answer.head.clone());
        let unknown = task.is_unknown();
        let renew = move |entry: &mut Entry| {
            freshness::refresh(&mut entry.head, &head, unknown);
            if guarded {
                entry.head.keep_the_representations();
            }
            entry.requested_at = requested_at;
            entry.checked_at = checked_at;
            entry.proof.stale = stale;
        };
        let (store, found) = (Arc::clone(&self.store), Arc::clone(entry));
        let (index, reader) = (task.is_index().then(|| task.target.clone()), task.asker.reader());
        let updated = tokio::task::spawn_blocking(move || {
            if let Some(index) = index {
                store.seen_by(reader).confirm_claims(&index, found.blob, requested_at);
            }
            store.update(&found, renew)
        });
        match updated.await {
            Ok(Ok(entry)) => {
                self.note_received(task, &entry);
                Came::Ended(End::Current(self.read_with_new_keys(task, entry).await))
            }
            // The ledger could not take it; what the origin said holds all the same.
            Ok(Err(_)) | Err(_) => Came::Ended(End::Current(Arc::clone(entry))),
        }
    }

    /// Whether a 304 says that the answer is one client's, or differs by what a fill does not send: that holds for the stored
    /// copy as for a 200, and the copy goes.
    async fn takes_back(
        &self,
        task: &Task,
        entry: &Arc<Entry>,
        answer: &Answer,
        expected: &Expectation,
    ) -> bool {
        let mut merged = entry.head.clone();
        freshness::refresh(&mut merged, &answer.head, task.is_unknown());
        match shared::whose(task, &merged, is_proven(expected)) {
            Whose::Anybodys => return false,
            Whose::Askers => self.note_unshared(task),
            Whose::Unselected(by) => self.note_unselected(task, by),
        }
        let (store, entry) = (Arc::clone(&self.store), Arc::clone(entry));
        match tokio::task::spawn_blocking(move || store.remove(&entry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a copy that may not be shared stays stored"),
            Err(_) => tracing::error!("a copy that may not be shared stays stored"),
        }
        true
    }

    /// A 200: into the spool, if it may be shared.
    async fn arrive(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        ask: &Ask,
        mut answer: Answer,
        expected: Expectation,
        attempt: Attempt,
    ) -> Came {
        let flight = &lead.flight;
        match shared::of(task, &answer, is_proven(&expected)) {
            Whose::Unselected(by) => {
                self.note_unselected(task, by);
                return Came::Ended(End::Pass);
            }
            Whose::Askers => {
                self.note_unshared(task);
                return Came::Ended(hand_over(lead, answer));
            }
            Whose::Anybodys => {}
        }
        if task.is_unknown() && is_for_one(task, &answer) {
            self.note_unshared(task);
            return Came::Ended(hand_over(lead, answer));
        }
        let promised = is_proven(&expected) || expected.refusing().next().is_some();
        if answer.until_close && !promised {
            // A cut would look like the end, and would be kept as the whole. It is nobody's but its asker's; the next one asks
            // in its own words.
            self.note_unshared(task);
            return Came::Ended(hand_over(lead, answer));
        }
        if answer.until_close {
            // The digest says whether that was all.
            answer.body.take_any_end();
        }
        let streams = task.is_unknown() && !can_resume(&answer);
        if streams {
            // It may be a log that is followed, whatever its name or its validators look like.
            answer.body.be_patient();
        }
        if task.is_guarded() {
            // Whoever proves a right is given this head, too, those included who follow this flight.
            answer.head.keep_the_representations();
        }
        let spool = self.spool(answer.length, task.wanted(expected.algorithms())).await;
        let file = spool.as_ref().ok().map(Spool::reader);
        let answered = Answered { head: answer.head.clone(), length: answer.length };
        flight.begin(answered, file, expected.binds()).await;
        open_unvaried(lead, task, &answer.head);
        let with = Intake {
            flight,
            origins: &self.origins,
            ask,
            clock: &self.clock,
            idle: self.config.get().upstream.idle_timeout,
            streams,
            binds: self.later_promises(task),
        };
        let complete = match intake(with, &mut answer, spool).await {
            Ok(complete) => complete,
            Err(trouble) => return self.broke(lead, task, trouble, attempt),
        };
        self.metrics.bytes(Direction::FromOrigin, size_of(&complete));
        self.settle(lead, task, answer, complete, attempt).await
    }

    /// Whether a promise binds by now. It is looked up only when what is promised may have changed; and once at first, because the
    /// answer's head may have been waited for.
    pub(super) fn later_promises(self: &Arc<Self>, task: &Task) -> Binds {
        // A flight may outlive larder's own end, and must not hold its store.
        let (pipeline, task) = (Arc::downgrade(self), task.clone());
        let judged = Mutex::new(None);
        Arc::new(move || {
            let Some(pipeline) = pipeline.upgrade() else { return false };
            // Held meanwhile: whoever comes second must not go on before it is known.
            let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
            let generation = pipeline.store.generation();
            if *judged == Some(generation) {
                return false;
            }
            let binds = pipeline.expectation_of(&task).binds();
            *judged = Some(generation).filter(|_| !binds);
            binds
        })
    }

    /// Room in the spool; when there is none at all, the digests are computed all the same.
    pub(super) async fn spool(
        &self,
        length: Option<u64>,
        wanted: Wanted,
    ) -> Result<Spool, Hashing> {
        let store = Arc::clone(&self.store);
        let spool = tokio::task::spawn_blocking(move || store.spool(length, wanted)).await;
        match spool {
            Ok(Ok(spool)) => Ok(spool),
            Ok(Err(error)) => {
                tracing::warn!(%error, "this body is not kept");
                Err(Hashing::new(wanted))
            }
            Err(_) => Err(Hashing::new(wanted)),
        }
    }

    fn broke(&self, lead: &Lead, task: &Task, trouble: Trouble, attempt: Attempt) -> Came {
        match &trouble {
            // It answers, and not the truth.
            Trouble::Torn(..) => self.distrust_parts(task, &lead.flight),
            Trouble::Again(..) | Trouble::Failed(..) => self.note_failed(task, None),
            Trouble::Abandoned(_) => {}
        }
        if let Trouble::Failed(_, reason) = &trouble {
            tracing::warn!(url = %task.target, %reason, "a transfer is given up, and whoever reads it is cut off");
        }
        match trouble {
            // Clients may hold the bytes that are not the body's: a lie is a refusal, and not a transfer that broke.
            Trouble::Torn(_, came) if lead.flight.is_held() => {
                let promised = "one body under one validator".to_owned();
                self.refuse(
                    lead,
                    task,
                    &Mismatch { promised, came: came.text, elsewhere: None },
                    attempt,
                    false,
                )
            }
            Trouble::Torn(status, reason) | Trouble::Again(status, reason)
                if lead.flight.nothing_given() =>
            {
                Came::Again(End::Failed(status, reason))
            }
            Trouble::Torn(status, reason) | Trouble::Again(status, reason) => {
                Came::Ended(End::Failed(status, reason))
            }
            Trouble::Failed(status, reason) => Came::Ended(End::Failed(status, reason)),
            Trouble::Abandoned(reason) => Came::Ended(End::Failed(StatusCode::BAD_GATEWAY, reason)),
        }
    }

    /// Anything but a 200 or an expected 304.
    async fn other_answer(self: &Arc<Self>, lead: &Lead, task: &Task, answer: Answer) -> End {
        let status = answer.head.status;
        if is_failure(status) {
            lead.flight.note_failure();
        }
        if rights::is_no(status) {
            self.forget_right(task).await;
        }
        let completes =
            status.is_success() && (task.artifact().is_some() || self.binds_today(task));
        if status.is_success() && status != StatusCode::PARTIAL_CONTENT && !completes {
            // It is no refusal: its asker would hear the same again.
            if !others::is_relayed(&answer.head, self.clock.now()) {
                return hand_over(lead, answer);
            }
        } else if completes || !others::is_relayed(&answer.head, self.clock.now()) {
            // The client hears what it would have heard.
            self.memory.note_refused(task);
            return End::Pass;
        }
        match shared::of(task, &answer, false) {
            Whose::Unselected(_) => return End::Pass,
            Whose::Askers => return hand_over(lead, answer),
            Whose::Anybodys => {}
        }
        if answer.length.is_some_and(|length| length > RELAYED as u64) {
            return hand_over(lead, answer);
        }
        let (requested_at, plain) = (answer.requested_at, answer.plain);
        let head = answer.head.clone();
        match small_body(answer).await {
            Ok(bytes) => {
                let relayed = Arc::new((head, bytes));
                // What one credential is not given, another may be.
                if !task.is_guarded() {
                    self.remember_other(task, &relayed, requested_at, plain);
                }
                End::Relayed(relayed)
            }
            Err(end) => end,
        }
    }

    /// Notes whether the origin answered or failed; `usual`: the time that it took is one that others may expect.
    pub(super) fn note_health(&self, task: &Task, answer: &Answer, usual: bool) {
        if is_failure(answer.head.status) {
            let after = answer
                .head
                .text(&header::RETRY_AFTER)
                .and_then(|text| retry_after(text, self.clock.now()));
            self.note_failed(task, after);
        } else {
            self.note_answered(task, answer, usual);
        }
    }
}

/// What no field of the request selected is for all who ask, in whatever words.
fn open_unvaried(lead: &Lead, task: &Task, head: &Head) {
    if task.promised.is_none() && !head.headers.contains_key(header::VARY) {
        lead.open_to(task.key);
    }
}

/// The origin could not, or would not now: a stored copy is better.
pub(super) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Whether an answer is a page for people: to sign in at, or that says why there is nothing else.
pub(super) fn is_page(head: &Head) -> bool {
    let kind = head.text(&header::CONTENT_TYPE).unwrap_or_default();
    kind.get(..9).is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"))
}

/// RFC 9110 §10.2.3: seconds, or a date.
pub(super) fn retry_after(text: &str, now: Time) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(Time::from(freshness::date(text)?).since(now))
}

/// Whether a digest vouches for the body, whoever it was sent to: one in the URL, or in an index that may speak for it.
fn is_proven(expected: &Expectation) -> bool {
    expected.named.is_some() || expected.binding().any(Promise::is_strong)
}

/// Whether an answer of unknown kind is given to its asker alone: keeping it is of no use, and nothing of it looks like what its
/// path might be. A guess by the path alone must not make a stream something else.
fn is_for_one(task: &Task, answer: &Answer) -> bool {
    if freshness::worth_keeping(&answer.head) {
        return false;
    }
    let kind = answer.head.text(&header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let any = ["text/plain", "text/event-stream", "application/octet-stream"];
    let is_any = kind.is_empty() || any.iter().any(|any| kind.starts_with(any));
    task.likely.is_none() || answer.length.is_none() && is_any
}

fn hand_over(lead: &Lead, mut answer: Answer) -> End {
    if lead.flight.is_suspect() {
        // Nothing of it is given before all of it was judged, which a pass waits for.
        return End::Pass;
    }
    answer.body.be_patient();
    answer.body.take_any_end();
    lead.flight.hand_over(answer);
    End::Handed
}

fn size_of(complete: &Complete) -> u64 {
    match &complete.body {
        crate::flight::Body::Spooled(spooled) => spooled.size,
        crate::flight::Body::Unstored(_, size) => *size,
    }
}

pub(super) async fn small_body(mut answer: Answer) -> Result<Bytes, End> {
    let mut all = BytesMut::new();
    while let Some(piece) = answer.body.next().await {
        match piece {
            Ok(bytes) if all.len() + bytes.len() <= RELAYED => all.extend_from_slice(&bytes),
            Ok(_) => return Err(End::Pass),
            Err(error) => return Err(End::from(&error)),
        }
    }
    Ok(all.freeze())
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
}
