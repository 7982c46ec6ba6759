//! Requests that may be answered from the store: look up, join a flight, answer.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Response, StatusCode, header};

use super::held::first_bytes;
use super::late::Passed;
use super::lookup::{Lookup, Stored};
use super::other_status::leads_or_completes;
use super::patience::Waiting;
use super::record::Record;
use super::rights::Right;
use super::task::Task;
use super::{Call, Connection, Pipeline};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::flight::{Answered, End, Flight, Opened, Permit, Reader};
use crate::freshness::Demand;
use crate::limits::PLACES;
use crate::origin::Question;
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::metrics::StoodIn;
use crate::policy::PassReason;
use crate::reply::{self, Asked, Body, Source};
use crate::store::{Blob, CHUNK, Store};
use crate::target::Target;

/// How long an answer is held back if only its path suggests a snapshot's root.
const WAIT_FOR_A_GUESS: Duration = Duration::from_secs(5);

/// How a flight ended that a request waited for.
struct EndedFlight {
    end: End,
    flight: Arc<Flight>,
    /// Whether this request started it.
    leads: bool,
}

/// The result of waiting for a flight.
enum Ride {
    Answered(Response<Body>),
    /// The flight's body is not for this client; its own request is passed.
    Apart,
    Ended(End),
}

impl EndedFlight {
    fn outcome(&self) -> Outcome {
        outcome(self.leads)
    }
}

impl Pipeline {
    /// Answers from the store, or by a fill.
    pub(super) async fn from_cache(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        mut task: Task,
        record: &mut Record,
    ) -> Response<Body> {
        if let Some(refusal) = self.in_quarantine(&task, record) {
            return refusal;
        }
        if task.is_private_artifact() {
            return Box::pin(self.from_private(call, asked, task, record)).await;
        }
        let demand = Demand::of(&asked.headers);
        let unshared = self.is_unshared(&task);
        if unshared && !demand.only_if_cached {
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        if task.is_existence_check(call.request.method()) && !demand.only_if_cached {
            return self.check_existence(call, asked, &task, record).await;
        }
        self.wait_for_readers(&task).await;
        self.follow(&call.connection, &mut task);
        if self.is_member_apart(&task) && !demand.only_if_cached {
            // If the origin fails, the stored snapshot is whole, and its members stand in.
            let reason = PassReason::Answer;
            return self.pass_or_copy(call, asked, &task, reason, record).await;
        }
        let found = match self.find(&task, asked, demand).await {
            Ok(found) => found,
            Err(why) => return record.undecided(why),
        };
        let stored = match found {
            Lookup::Fresh(stored) => {
                self.read_stored(&task, &stored).await;
                let reply = self.reply_stored(
                    &call.connection,
                    asked,
                    &task,
                    &stored,
                    Outcome::Hit,
                    record,
                );
                if let Some(response) = reply.await {
                    return response;
                }
                None
            }
            Lookup::Stale(stored) => Some(stored),
            Lookup::Miss => None,
        };
        let answer = self.without_waiting(&call.connection, asked, &task, stored.as_ref(), record);
        if let Some(response) = answer.await {
            return response;
        }
        if demand.only_if_cached {
            return record.not_stored(&task.target);
        }
        if stored.is_none() && asked.head_only && !task.is_tag() {
            return self.pass_head(call, &task, record).await;
        }
        if demand.no_store && task.artifact().is_none() {
            return self.pass_for(call, &task, PassReason::NoStore, record).await;
        }
        self.fly(call, asked, task, stored, record).await
    }

    /// Answers, besides with a fresh body, with what can be given without waiting for the origin: an answer other than a 200, or
    /// a stale body that may be given during revalidation.
    async fn without_waiting(
        self: &Arc<Self>,
        connection: &Connection,
        asked: &Asked,
        task: &Task,
        stored: Option<&Stored>,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        let demand = Demand::of(&asked.headers);
        if let Some(response) = self.remembered(task, asked, stored, record) {
            return Some(response);
        }
        if let Some(other) = self.fresh_other(task, stored, &asked.headers) {
            let hit = Outcome::Hit;
            let reply = self.reply_stored(connection, asked, task, &other, hit, record);
            if let Some(response) = reply.await {
                return Some(response);
            }
        }
        let stored = stored.filter(|_| !demand.only_if_cached)?;
        let meanwhile = self.meanwhile(task, stored, &asked.headers)?;
        if !self.flights.is_under_way(task.flight(), None) {
            self.ask_behind(task, &stored.entry);
        }
        self.reply_stored(connection, asked, task, &meanwhile, Outcome::Stale, record).await
    }

    /// Looks up the stored answer; on a miss, once more after fetching the documents that should be read first. `Err`: a promise
    /// that may bind the target cannot be read now.
    async fn find(
        self: &Arc<Self>,
        task: &Task,
        asked: &Asked,
        demand: Demand,
    ) -> Result<Lookup, String> {
        let found = self.look_up(task, &asked.headers).await;
        if matches!(found, Lookup::Fresh(_)) {
            return Ok(found);
        }
        if let Lookup::Stale(stored) = &found {
            // It may be given although it is stale.
            self.read_if_unclaimed(task, stored).await;
        }
        if let Some(why) = self.unread(task) {
            return Err(why);
        }
        let may_ask = matches!(found, Lookup::Miss) && !demand.only_if_cached;
        if may_ask && self.fetch_prerequisites(task).await > 0 {
            return Ok(self.look_up(task, &asked.headers).await);
        }
        Ok(found)
    }

    /// Joins or begins the flight, and answers from it.
    pub(super) async fn fly(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: Task,
        stored: Option<Stored>,
        record: &mut Record,
    ) -> Response<Body> {
        let mut usable = match stored.as_ref().filter(|stored| stored.usable) {
            None => self.public_tag(&task).or_else(|| self.usable_other(&task)),
            usable => usable.cloned(),
        };
        if usable.is_none() && self.memory.is_refused(&task) {
            // A fill would be refused again before the client's own request is sent.
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        let question = usable.is_some().then(|| self.question_about(&task)).flatten();
        let since = match &question {
            // A probe replaces the questions that were asked before it, and these are abandoned.
            Some(question) if question.is_probe => Some(self.clock.now()),
            Some(_) | None => self.memory.since(&task, Demand::of(&asked.headers)),
        };
        if question.is_none()
            && !self.flights.is_under_way(task.flight(), since)
            && let Some(copy) = usable.clone()
        {
            // The origin is down, and another request asks it about something else.
            self.metrics.stood_in(StoodIn::Down);
            let stand_in = self.stand_in(&call.connection, asked, &task, copy, record);
            match stand_in.await {
                Some(response) => return response,
                None => usable = None,
            }
        }
        let (flight, reader, leads) = self.board(&task, stored.as_ref(), since, question);
        let waiting = Waiting { task: &task, flight: &flight, copy: usable.as_ref() };
        let end = match self.ride((&call, asked), &waiting, reader, leads, record).await {
            Ride::Answered(response) => return response,
            Ride::Apart => return self.pass_for(call, &task, PassReason::Answer, record).await,
            Ride::Ended(end) => end,
        };
        let ended = EndedFlight { end, flight, leads };
        self.after(call, asked, &task, usable, ended, record).await
    }

    /// Answers from a flight, or says how it ended.
    async fn ride(
        self: &Arc<Self>,
        (call, asked): (&Call, &Asked),
        waiting: &Waiting<'_>,
        mut reader: Reader,
        leads: bool,
        record: &mut Record,
    ) -> Ride {
        let (task, flight) = (waiting.task, waiting.flight);
        let opening = opened(&mut reader, task);
        let answered = match self.or_copy(opening, waiting, (call, asked), record).await {
            ControlFlow::Continue(Opened::Answered(answered)) => answered,
            ControlFlow::Continue(Opened::Ended(end)) => return Ride::Ended(end),
            ControlFlow::Break(copy) => return Ride::Answered(copy),
        };
        if !leads && !self.may_share(task, &answered).await {
            return Ride::Apart;
        }
        reader = match self.beside(asked, task, reader, &answered, record).await {
            Ok(response) => return Ride::Answered(response),
            Err(reader) => reader,
        };
        let opening = opening_for(&mut reader, asked, call, &answered);
        match self.or_copy(opening, waiting, (call, asked), record).await {
            // The body was fetched once more meanwhile; the right was proved for the first one.
            ControlFlow::Continue(Opened::Answered(again))
                if task.is_private_artifact() && !leads && !Arc::ptr_eq(&answered, &again) =>
            {
                Ride::Ended(End::Pass)
            }
            ControlFlow::Continue(Opened::Answered(answered)) => {
                call.connection.read_unknown(task);
                record.flight(flight);
                let (outcome, source) = (outcome(leads), Source::Flight(reader));
                let response =
                    reply::arriving(asked, &answered.head, answered.length, source, outcome);
                Ride::Answered(record.end(outcome, response))
            }
            ControlFlow::Continue(Opened::Ended(end)) => Ride::Ended(end),
            ControlFlow::Break(copy) => Ride::Answered(copy),
        }
    }

    /// The public tag that stands in for a private one while the origin fails: clients bring a new token with each pull, so that
    /// nothing is stored for it.
    fn public_tag(&self, task: &Task) -> Option<Stored> {
        if !task.is_private_index() || !task.is_tag() {
            return None;
        }
        let (public, now) = (task.in_public(), self.clock.now());
        let entry = self.store.entries(public.key).into_iter().next()?;
        let usable = self.is_usable(&public, &entry, now);
        usable.then(|| Stored { proof: self.proof_of(&public, &entry, now), entry, usable })
    }

    /// Joins the flight, or starts it.
    fn board(
        self: &Arc<Self>,
        task: &Task,
        stored: Option<&Stored>,
        since: Option<Time>,
        question: Option<Question>,
    ) -> (Arc<Flight>, Reader, bool) {
        // This flight may be joined whatever selecting fields the request has: its answer has no `Vary`.
        if task.promised.is_none()
            && let Some(flight) = self.flights.open_to(task.key, since)
        {
            let reader = self.flights.reader(&flight);
            return (flight, reader, false);
        }
        match self.flights.join(task.flight(), &task.target, since, self.clock.now()) {
            Permit::Follow(flight) => {
                let reader = self.flights.reader(&flight);
                (flight, reader, false)
            }
            Permit::Lead(lead) => {
                let flight = Arc::clone(&lead.flight);
                // The reader registers before the fill begins, so that the fill knows that a client waits.
                let reader = self.flights.reader(&flight);
                let entry = stored.map(|stored| Arc::clone(&stored.entry));
                self.launch(lead, task.clone(), entry, question);
                (flight, reader, true)
            }
        }
    }

    /// Answers when the flight ended before it had a byte to give.
    async fn after(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: &Task,
        usable: Option<Stored>,
        ended: EndedFlight,
        record: &mut Record,
    ) -> Response<Body> {
        let outcome = ended.outcome();
        if ended.failed()
            && let Some(mut stored) = usable.filter(|stored| self.still_stands(task, stored))
        {
            stored.proof = stored.proof.stale();
            let reply =
                self.reply_stored(&call.connection, asked, task, &stored, Outcome::Stale, record);
            if let Some(response) = reply.await {
                return response;
            }
        }
        if let Some(stored) = self.by_other_name(task, &ended.end).await {
            let reply = self.reply_stored(&call.connection, asked, task, &stored, outcome, record);
            if let Some(response) = reply.await {
                return response;
            }
        }
        if ended.failed()
            && let Some(other) = self.stands_in_for(task)
        {
            return record.end(Outcome::Stale, not_there(&task.target, &other));
        }
        if self.leads_past_a_promise(task, &ended.end)
            || task.is_private_artifact()
                && !ended.leads
                && !self.may_be_given(task, &ended.end).await
        {
            return self.pass_for(call, task, PassReason::Answer, record).await;
        }
        if ended.leads && matches!(ended.end, End::Refused(_) | End::Failed(..)) {
            // The bytes that it fetched count for this request, however the flight ended.
            record.flight(&ended.flight);
        }
        let kept = match ended.end {
            End::Kept(entry) => Some((entry, outcome)),
            End::Current(entry) => Some((entry, Outcome::Revalidated)),
            End::Refused(reason) => return record.reject(Cause::Promise, &reason),
            End::Failed(status, why) => return record.fail(status, &why),
            End::Relayed(relayed) => {
                let response = reply::relayed(asked, &relayed.0, relayed.1.clone(), outcome);
                return record.end(outcome, response);
            }
            End::Handed if ended.leads && !is_partial(asked) => {
                match self.handed_to(&call, asked, task, &ended.flight, record) {
                    Some(response) => return response,
                    None => None,
                }
            }
            End::Given | End::Pass | End::Handed => None,
        };
        if let Some((entry, outcome)) = kept {
            let proof = self.proof_of(task, &entry, self.clock.now());
            let stored = Stored { proof, entry, usable: true };
            let reply = self.reply_stored(&call.connection, asked, task, &stored, outcome, record);
            if let Some(response) = reply.await {
                return response;
            }
        }
        self.pass_for(call, task, PassReason::Answer, record).await
    }

    /// Whether the flight ended with a redirect or an unjudged body, which was requested before its target was promised. The
    /// client's own request is then followed, held, or refused (redirect.rs, held.rs).
    fn leads_past_a_promise(&self, task: &Task, end: &End) -> bool {
        matches!(end, End::Relayed(relayed) if leads_or_completes(relayed.0.status))
            && self.is_held_today(task)
    }

    /// The response with the answer that only the flight's leader may have. `None` if that is a redirect or a body that a promise
    /// binds by now.
    fn handed_to(
        self: &Arc<Self>,
        call: &Call,
        asked: &Asked,
        task: &Task,
        flight: &Flight,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        let handed = flight.take_handed()?;
        let leads_past = leads_or_completes(handed.head.status) && self.is_held_today(task);
        if leads_past {
            return None;
        }
        self.note_handed(task, &call.connection, &handed);
        let response = super::pass::handed(asked, handed, record);
        let (client, line) = (call.connection.peer.ip(), asked.line.clone());
        let passed = Passed { task, client, reason: PassReason::Answer, range: None, line };
        Some(self.hold_when_promised(passed, response))
    }

    /// Whether a client that followed another client's flight may have its result: a body to which the client proves its right,
    /// but no other answer that was for the leader.
    async fn may_be_given(self: &Arc<Self>, task: &Task, end: &End) -> bool {
        match end {
            End::Kept(entry) | End::Current(entry) => {
                self.right_to(task, entry).await == Right::Yes
            }
            End::Given
            | End::Refused(_)
            | End::Failed(..)
            | End::Relayed(_)
            | End::Pass
            | End::Handed => false,
        }
    }

    /// Answers from the store; `None` if the blob is missing after all.
    pub(super) async fn reply_stored(
        self: &Arc<Self>,
        connection: &Connection,
        asked: &Asked,
        task: &Task,
        stored: &Stored,
        outcome: Outcome,
        record: &mut Record,
    ) -> Option<Response<Body>> {
        let source = if asked.head_only {
            None
        } else {
            let first = reply::first_given(asked, &stored.entry.head, stored.entry.size);
            match self.open_blob(stored.entry.blob, first).await {
                Ok(opened) => {
                    let (blob, chunk) = opened?;
                    Some(self.source_of(task, stored, Arc::new(blob), chunk))
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    let why = Why::new(Cause::Busy, format!("{}: {error}", task.target));
                    return Some(record.fail(StatusCode::SERVICE_UNAVAILABLE, &why));
                }
                // The body is fetched again: the origin may have what the disk cannot give now.
                Err(_) => None?,
            }
        };
        self.store.touch(&stored.entry);
        connection.read(task, &stored.entry);
        record.proof(stored.proof);
        record.fetched_in(stored.entry.received_at.since(stored.entry.requested_at));
        let now = self.clock.now();
        let response = reply::stored(asked, &stored.entry, source, outcome, stored.proof, now);
        Some(record.end(outcome, response))
    }
}

impl Pipeline {
    /// Opens a stored body, and reads the chunk with the byte `first`, with which the answer begins. If that chunk is damaged,
    /// the request is a miss instead of an answer that is cut. `None` if the body is missing or damaged. If every place for an
    /// open file is taken, this waits for one.
    async fn open_blob(&self, id: BlobId, first: Option<u64>) -> io::Result<Option<Sound>> {
        if let Some(sound) = sound_now(&self.store, id, first) {
            return Ok(Some(sound));
        }
        let open = || {
            let store = Arc::clone(&self.store);
            tokio::task::spawn_blocking(move || sound(&store, id, first))
        };
        match open().await? {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let Some(place) = PLACES.files.take().await else {
                    return Err(error);
                };
                drop(place);
                open().await?
            }
            opened => opened,
        }
    }
}

/// A stored body, and the chunk of it that was read, with its number.
type Sound = (Blob, Option<(u64, Bytes)>);

/// Opens a body that is open and in memory already, as small bodies of a build are. Handing it to another thread would cost more
/// than the rest of the hit.
fn sound_now(store: &Arc<Store>, id: BlobId, first: Option<u64>) -> Option<Sound> {
    let blob = store.open_blob_now(id)?;
    let Some(number) = first.map(|first| first / CHUNK) else {
        return Some((blob, None));
    };
    let chunk = blob.chunk_now(number)?;
    Some((blob, Some((number, chunk))))
}

/// Like [`sound_now`], from disk. Blocks.
fn sound(store: &Arc<Store>, id: BlobId, first: Option<u64>) -> io::Result<Option<Sound>> {
    let Some(blob) = store.open_blob(id)? else {
        return Ok(None);
    };
    let Some(number) = first.map(|first| first / CHUNK) else {
        return Ok(Some((blob, None)));
    };
    // Reading a damaged chunk takes the blob out of service.
    let chunk = blob.chunk(number)?;
    Ok(Some((blob, Some((number, chunk)))))
}

impl EndedFlight {
    /// Whether the origin failed, so that a stored copy is better than the answer.
    fn failed(&self) -> bool {
        matches!(self.end, End::Failed(..)) || self.flight.has_failed()
    }
}

/// Waits for the head; for a snapshot's root, until it is known whether the root counts.
async fn opened(reader: &mut Reader, task: &Task) -> Opened {
    if task.is_snapshot_root() {
        let flight = Arc::clone(reader.flight());
        let end = if task.is_unknown() {
            // Only its path looks like a snapshot's root, so a stream must not wait for its end.
            let over = tokio::time::timeout(WAIT_FOR_A_GUESS, flight.over_or_unframed()).await;
            over.ok().flatten()
        } else {
            Some(flight.over().await)
        };
        if let Some(end) = end.filter(|end| !matches!(end, End::Given)) {
            return Opened::Ended(end);
        }
    }
    reader.head().await
}

/// The 404 that sends clients on to a document that is stored.
fn not_there(at: &Target, other: &Target) -> Response<Body> {
    let line = format!("{at} does not answer; {other} is stored, which clients read in its place");
    reply::text(StatusCode::NOT_FOUND, &line, Outcome::Stale)
}

/// Waits until the request may be answered: until its first byte may be given, or until the whole body was judged if the answer
/// depends on the whole.
async fn opening_for(
    reader: &mut Reader,
    asked: &Asked,
    call: &Call,
    answered: &Answered,
) -> Opened {
    let (head, length) = (&answered.head, answered.length);
    if reader.is_held()
        && reply::speaks_of_the_whole(asked, head, length)
        && let Some(end) = reader.judged().await
    {
        return Opened::Ended(end);
    }
    first_bytes(reader, call.request.version(), reply::needed(asked, head, length)).await
}

fn outcome(leads: bool) -> Outcome {
    if leads { Outcome::Miss } else { Outcome::Collapsed }
}

/// Whether the client asked for less than the whole body: then its own request serves it better.
fn is_partial(asked: &Asked) -> bool {
    asked.headers.contains_key(header::RANGE)
        || asked.headers.keys().any(|name| name.as_str().starts_with("if-"))
}
