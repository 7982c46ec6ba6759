//! The work of a fill's leader: ask the origin, decide by the head of its answer, take in the body.
//!
//! The work runs in a task of its own, because the client that caused it may leave. The flight always gets an end, because
//! dropping the `Lead` ends it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::{StatusCode, header};

use super::answers::{self, is_failure, retry_after};
use super::quarantine::QuarantineScope;
use super::shared::{self, Audience};
use super::task::Task;
use super::{Pipeline, operator_login, other_status};
use crate::claim::Promise;
use crate::digest::{Hashing, Wanted};
use crate::entry::{Entry, Head};
use crate::flight::{
    Answered, Binding, Binds, Complete, End, Flight, Intake, Lead, Trouble, can_resume, intake,
};
use crate::freshness;
use crate::origin::{Answer, Ask, OriginError};
use crate::outcome::totals::Direction;
use crate::store::Spool;
use crate::verify::{Expectation, Mismatch};

/// The longest answer that is relayed out of memory, in bytes: error pages and redirects.
pub(super) const RELAYED: usize = 256 * 1024;

/// The first pause before an archive that is being published is read again: writing a file takes less. Each further pause is
/// twice as long.
const UNSETTLED: Duration = Duration::from_millis(100);

/// Which attempt at a body this is. The second one uses a new connection, in case the first connection was out of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Second,
}

/// The result of one attempt.
pub(super) enum AttemptResult {
    /// The flight ends so.
    Ended(End),
    /// A second attempt may be made; otherwise the flight ends so.
    Again(End),
    /// The archive may be consistent in a moment; if the attempt cannot be repeated, the flight ends so.
    Unsettled(End),
}

impl Pipeline {
    /// Brings a flight to its end. `stored`: the entry that may be revalidated.
    pub(super) async fn lead(self: Arc<Self>, lead: Lead, task: Task, stored: Option<Arc<Entry>>) {
        if let Some(end) = Box::pin(self.follow_tag(&lead, &task, stored.as_ref())).await {
            lead.flight.finish(end);
            return;
        }
        let (mut attempt, mut pause) = (Attempt::First, UNSETTLED);
        let end = loop {
            let came = Box::pin(self.attempt(&lead, &task, stored.as_ref(), attempt)).await;
            match came {
                AttemptResult::Again(_) if attempt == Attempt::First && lead.flight.restart() => {
                    attempt = Attempt::Second;
                }
                AttemptResult::Unsettled(_) if lead.flight.restart() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt = Attempt::Second;
                }
                AttemptResult::Ended(end)
                | AttemptResult::Again(end)
                | AttemptResult::Unsettled(end) => break end,
            }
        };
        match &end {
            // No client was given a byte, so none can resume; and an index may be right again in a moment.
            End::Refused(_) if task.is_index() && lead.flight.nothing_given() => {}
            End::Refused(reason) => {
                lead.flight.suspect().await;
                let (whom, now) =
                    (QuarantineScope::Principal(task.principal.reader()), self.clock.now());
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
        // This does nothing if the answer was handed over, which has ended the flight already.
        lead.flight.finish(end);
    }

    async fn attempt(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        stored: Option<&Arc<Entry>>,
        attempt: Attempt,
    ) -> AttemptResult {
        let expected = self.expectation_of(task);
        // larder follows a redirect itself only if a digest in the name or a binding claim will prove the result. All other
        // redirects are given to the client. A claim without authority does not change how a client is answered.
        let follow = expected.named.is_some() || expected.binding().next().is_some();
        // Only the first attempt revalidates; a body that failed a promise is fetched whole.
        let stored = stored.filter(|_| attempt == Attempt::First);
        let mut ask = task.ask(stored.map(AsRef::as_ref), follow);
        ask.fresh_connection = attempt == Attempt::Second;
        // No stored copy can be given instead, and repository managers send nothing until they have the whole file themselves. So
        // larder waits as long as any client does.
        ask.patient |= stored.is_none();
        let Some(fetched) = self.fetch_for(&lead.flight, &ask).await else {
            return AttemptResult::Ended(End::Pass);
        };
        let answer = match fetched {
            Ok(answer) => operator_login::without_session(task, answer),
            // A redirect that leads nowhere, or to where larder must not go. If no promise binds, the client gets it unchanged by
            // its own request; otherwise its own request is followed, or refused (redirect.rs).
            Err(error) if error.fault().is_of_the_way() => {
                return AttemptResult::Ended(
                    if task.principal.has_operator_login() && self.binds_today(task) {
                        // The client's own request would not carry the operator login, and would get another answer.
                        End::Failed(StatusCode::BAD_GATEWAY, error.why())
                    } else {
                        End::Pass
                    },
                );
            }
            Err(error) => {
                if error.is_temporary() {
                    self.note_failed(task, None);
                }
                return AttemptResult::Ended(End::from(&error));
            }
        };
        // The duration of a possible long poll does not show how long other requests take.
        let usual = !(task.is_unknown() && ask.patient);
        self.note_health(task, &answer, usual);
        let status = answer.head.status;
        match (status, stored) {
            (StatusCode::NOT_MODIFIED, Some(entry)) => {
                if !freshness::speaks_of(&answer.head, &entry.head) {
                    tracing::warn!(url = %task.target, "a 304 has another validator than the stored copy");
                    return AttemptResult::Again(End::Pass);
                }
                if self.takes_back(task, entry, &answer, &expected).await {
                    return AttemptResult::Ended(End::Pass);
                }
                self.current(task, entry, &answer).await
            }
            (StatusCode::OK, _) => {
                Box::pin(self.arrive(lead, task, &ask, answer, expected, attempt)).await
            }
            _ => AttemptResult::Ended(self.other_answer(lead, task, answer).await),
        }
    }

    /// Sends the request. A patient request may be a long poll, so it waits as long as any client does. `None` when no client
    /// waits any more: a client that came later would otherwise wait on a connection that may be dead.
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

    /// The stored copy is current: renews its header fields, and confirms its claims.
    pub(super) async fn current(
        self: &Arc<Self>,
        task: &Task,
        entry: &Arc<Entry>,
        answer: &Answer,
    ) -> AttemptResult {
        let (requested_at, checked_at) = (answer.requested_at, self.clock.now());
        let stale = task.is_snapshot_root() && self.is_expired(task.bare(), checked_at);
        let (guarded, head) = (task.is_private_artifact(), answer.head.clone());
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
        let (index, reader) =
            (task.is_index().then(|| task.target.clone()), task.principal.reader());
        let updated = tokio::task::spawn_blocking(move || {
            if let Some(index) = index {
                store.seen_by(reader).confirm_claims(&index, found.blob, requested_at);
            }
            store.update(&found, renew)
        });
        match updated.await {
            Ok(Ok(entry)) => {
                self.note_received(task, &entry);
                AttemptResult::Ended(End::Current(self.read_with_new_keys(task, entry).await))
            }
            // The ledger could not store the renewal; the origin's answer is used all the same.
            Ok(Err(_)) | Err(_) => AttemptResult::Ended(End::Current(Arc::clone(entry))),
        }
    }

    /// Whether a 304 says that the answer is for one client, or varies by a field that a fill does not send. That applies to the
    /// stored copy as it would to a 200, so the copy is removed.
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
            Audience::Anybodys => return false,
            Audience::Askers => self.note_unshared(task),
            Audience::Unselected(by) => self.note_unselected(task, by),
        }
        let (store, entry) = (Arc::clone(&self.store), Arc::clone(entry));
        match tokio::task::spawn_blocking(move || store.remove(&entry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "an unshareable copy could not be removed"),
            Err(_) => tracing::error!("an unshareable copy could not be removed"),
        }
        true
    }

    /// Handles a 200: the body goes into the spool if it may be shared.
    async fn arrive(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        ask: &Ask,
        mut answer: Answer,
        expected: Expectation,
        attempt: Attempt,
    ) -> AttemptResult {
        let flight = &lead.flight;
        match shared::of(task, &answer, is_proven(&expected)) {
            Audience::Unselected(by) => {
                self.note_unselected(task, by);
                return AttemptResult::Ended(End::Pass);
            }
            Audience::Askers => {
                self.note_unshared(task);
                return AttemptResult::Ended(hand_over(lead, answer));
            }
            Audience::Anybodys => {}
        }
        if task.is_unknown() && is_for_one(task, &answer) {
            self.note_unshared(task);
            return AttemptResult::Ended(hand_over(lead, answer));
        }
        let promised = is_proven(&expected) || expected.refusing().next().is_some();
        if answer.until_close && !promised {
            // A truncated body would look complete and be kept. So it is given only to its client, and the next requests are
            // passed.
            self.note_unshared(task);
            return AttemptResult::Ended(hand_over(lead, answer));
        }
        if answer.until_close {
            // The digest shows whether the body is complete.
            answer.body.take_any_end();
        }
        let streams = task.is_unknown() && !can_resume(&answer);
        if streams {
            // It may be a live log or another stream, whatever its name or its validators look like.
            answer.body.be_patient();
        }
        if task.is_private_artifact() {
            // Every client that proves a right is given this head too, including those that follow this flight.
            answer.head.keep_the_representations();
        }
        let spool = self.spool(answer.length, task.wanted(expected.algorithms())).await;
        let file = spool.as_ref().ok().map(Spool::reader);
        let answered = Answered { head: answer.head.clone(), length: answer.length };
        flight.begin(answered, file, expected.binds()).await;
        self.compare_with_judged(task, flight).await;
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
            let Some(pipeline) = pipeline.upgrade() else { return Binding::No };
            // The lock is held during the look-up, so that a second caller cannot continue before the result is known.
            let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
            // The claims of indexes, and the names whose digests are believed.
            let state = (pipeline.store.generation(), pipeline.store.convention_changes());
            if *judged == Some(state) {
                return Binding::No;
            }
            let expected = pipeline.expectation_of(&task);
            let binding = match (expected.binds(), expected.may_bind()) {
                (false, _) => Binding::No,
                (true, true) => Binding::Unread,
                (true, false) => Binding::Yes,
            };
            *judged = Some(state).filter(|_| binding == Binding::No);
            binding
        })
    }

    /// Room in the spool. If there is none, the digests are still computed.
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

    fn broke(&self, lead: &Lead, task: &Task, trouble: Trouble, attempt: Attempt) -> AttemptResult {
        match &trouble {
            // The origin is up and answers wrongly, so it does not count as failing.
            Trouble::Torn(..) => self.distrust_parts(task, &lead.flight),
            Trouble::Again(..) | Trouble::Failed(..) => self.note_failed(task, None),
            Trouble::Abandoned(_) => {}
        }
        if let Trouble::Failed(_, reason) = &trouble {
            tracing::warn!(url = %task.target, %reason, "a transfer is abandoned, and its readers are cut off");
        }
        match trouble {
            // Clients may hold bytes that do not belong to the body, so this is a refusal and not a broken transfer.
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
                AttemptResult::Again(End::Failed(status, reason))
            }
            Trouble::Torn(status, reason) | Trouble::Again(status, reason) => {
                AttemptResult::Ended(End::Failed(status, reason))
            }
            Trouble::Failed(status, reason) => AttemptResult::Ended(End::Failed(status, reason)),
            Trouble::Abandoned(reason) => {
                AttemptResult::Ended(End::Failed(StatusCode::BAD_GATEWAY, reason))
            }
        }
    }

    /// Handles any answer other than a 200 or an expected 304.
    async fn other_answer(self: &Arc<Self>, lead: &Lead, task: &Task, answer: Answer) -> End {
        let status = answer.head.status;
        if is_failure(status) {
            lead.flight.note_failure();
        }
        if answers::is_no(status) {
            self.forget_right(task).await;
        }
        let completes =
            status.is_success() && (task.artifact().is_some() || self.binds_today(task));
        if status.is_success() && status != StatusCode::PARTIAL_CONTENT && !completes {
            // The answer is no refusal, and the client's own request would get the same again.
            if !other_status::is_relayed(&answer.head, self.clock.now()) {
                return hand_over(lead, answer);
            }
        } else if completes || !other_status::is_relayed(&answer.head, self.clock.now()) {
            // The client's own request gets the origin's answer.
            self.memory.note_refused(task);
            return End::Pass;
        }
        match shared::of(task, &answer, false) {
            Audience::Unselected(_) => return End::Pass,
            Audience::Askers => return hand_over(lead, answer),
            Audience::Anybodys => {}
        }
        if answer.length.is_some_and(|length| length > RELAYED as u64) {
            return hand_over(lead, answer);
        }
        let (requested_at, plain) = (answer.requested_at, answer.plain);
        let head = answer.head.clone();
        match small_body(answer).await {
            Ok(bytes) => {
                let relayed = Arc::new((head, bytes));
                // The answer to one credential is not remembered for others, which may be given the file.
                if !task.is_private_artifact() {
                    self.remember_other(task, &relayed, requested_at, plain);
                }
                End::Relayed(relayed)
            }
            Err(end) => end,
        }
    }

    /// Notes whether the origin answered or failed. `usual`: the time that it took is one that other requests may expect.
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

/// Opens the flight to all requests for the key, whatever their header fields: an answer without `Vary` was selected by none.
fn open_unvaried(lead: &Lead, task: &Task, head: &Head) {
    if task.promised.is_none() && !head.headers.contains_key(header::VARY) {
        lead.open_to(task.key);
    }
}

/// Whether a digest vouches for the body, whichever client it is sent to: the digest is in the URL, or in an index with
/// authority.
fn is_proven(expected: &Expectation) -> bool {
    expected.named.is_some() || expected.binding().any(Promise::is_strong)
}

/// Whether an answer of unknown kind is given to its client only: keeping it would be of no use, and it does not look like what
/// its path suggests. A guess by the path alone must not hold back a stream.
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
        // A suspect target gives no byte before the whole body was judged, and a pass waits for that.
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
