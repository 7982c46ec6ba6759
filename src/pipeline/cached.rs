//! Requests that may be answered from the store: look up, join a flight, answer.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Response, StatusCode, Version, header};

use super::late::Passed;
use super::lookup::{Lookup, Stored};
use super::others::leads_or_completes;
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
use crate::reply::range::Span;
use crate::reply::{self, Asked, Body, Source};
use crate::store::{Blob, CHUNK, Store};
use crate::target::Target;

/// How long the answer is held back of what may be an index that heads others, by its path alone.
const WAIT_FOR_A_GUESS: Duration = Duration::from_secs(5);

/// How a flight ended that a request waited for.
struct Ended {
    end: End,
    flight: Arc<Flight>,
    /// Whether this request began it.
    leads: bool,
}

/// What came of waiting for a flight.
enum Ride {
    Answered(Response<Body>),
    /// It is not for this client, who asks for itself.
    Apart,
    Ended(End),
}

impl Ended {
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
        if task.is_guarded() {
            return Box::pin(self.from_guarded(call, asked, task, record)).await;
        }
        let demand = Demand::of(&asked.headers);
        let unshared = self.is_unshared(&task);
        if unshared && !demand.only_if_cached {
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        if task.asks_for_presence(call.request.method()) && !demand.only_if_cached {
            return self.ask_presence(call, asked, &task, record).await;
        }
        self.wait_for_readers(&task).await;
        self.follow(&call.connection, &mut task);
        if self.is_member_apart(&task) && !demand.only_if_cached {
            return self.pass_for(call, &task, PassReason::Answer, record).await;
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
        if stored.is_none() && asked.head_only && !task.is_pointer() {
            return self.pass_head(call, &task, record).await;
        }
        if demand.no_store && task.artifact().is_none() {
            return self.pass_for(call, &task, PassReason::NoStore, record).await;
        }
        self.fly(call, asked, task, stored, record).await
    }

    /// Answers with what needs no word of the origin's before, besides a fresh body: an answer other than a 200, or a stale
    /// body that may be given while it is asked about.
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

    /// Looks up what is stored, if need be once more after asking for what should be read before. The error says that a
    /// promise which may bind the target cannot be read now.
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
        if let Some(why) = self.unread(task) {
            return Err(why);
        }
        let may_ask = matches!(found, Lookup::Miss) && !demand.only_if_cached;
        if may_ask && self.chase_for(task).await > 0 {
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
            None => self.open_pointer(&task).or_else(|| self.usable_other(&task)),
            usable => usable.cloned(),
        };
        if usable.is_none() && self.memory.is_refused(&task) {
            // A fill would be told no once more, before the client hears it.
            return self.pass_for(call, &task, PassReason::Answer, record).await;
        }
        let question = usable.is_some().then(|| self.question_about(&task)).flatten();
        let since = match &question {
            // What was asked before a probe has had its turn, and is given up.
            Some(question) if question.is_probe => Some(self.clock.now()),
            Some(_) | None => self.memory.since(&task, Demand::of(&asked.headers)),
        };
        if question.is_none()
            && !self.flights.is_under_way(task.flight(), since)
            && let Some(copy) = usable.clone()
        {
            // It is down, and somebody asks something else.
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
        let ended = Ended { end, flight, leads };
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
            // Fetched once more meanwhile: the right was to what came first.
            ControlFlow::Continue(Opened::Answered(again))
                if task.is_guarded() && !leads && !Arc::ptr_eq(&answered, &again) =>
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

    /// The public pointer that stands in for who has none of its own while the origin fails: a new token comes with each pull.
    fn open_pointer(&self, task: &Task) -> Option<Stored> {
        if !task.is_of_one() || !task.is_pointer() {
            return None;
        }
        let (public, now) = (task.in_public(), self.clock.now());
        let entry = self.store.entries(public.key).into_iter().next()?;
        let usable = self.is_usable(&public, &entry, now);
        usable.then(|| Stored { proof: self.proof_of(&public, &entry, now), entry, usable })
    }

    /// A place in the flight; the first request starts it.
    fn board(
        self: &Arc<Self>,
        task: &Task,
        stored: Option<&Stored>,
        since: Option<Time>,
        question: Option<Question>,
    ) -> (Arc<Flight>, Reader, bool) {
        // Whatever it sends of the fields by which answers are selected: this one was selected by none.
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
                // The reader stands before the fill begins, so that the fill knows that somebody waits.
                let reader = self.flights.reader(&flight);
                let entry = stored.map(|stored| Arc::clone(&stored.entry));
                self.launch(lead, task.clone(), entry, question);
                (flight, reader, true)
            }
        }
    }

    /// Answers when the flight ended before it had anything to give.
    async fn after(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: &Task,
        usable: Option<Stored>,
        ended: Ended,
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
            || task.is_guarded() && !ended.leads && !self.may_be_given(task, &ended.end).await
        {
            return self.pass_for(call, task, PassReason::Answer, record).await;
        }
        if ended.leads && matches!(ended.end, End::Refused(_) | End::Failed(..)) {
            // What it fetched counts as this request's, whatever became of it.
            record.flight(&ended.flight);
        }
        let kept = match ended.end {
            End::Kept(entry) => Some((entry, outcome)),
            End::Current(entry) => Some((entry, Outcome::Revalidated)),
            End::Refused(reason) => {
                return record.reject(Cause::Promise, &reason);
            }
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

    /// Whether the end is a redirect, or a body that is not judged, and was asked for before its target was promised: the client's
    /// own request is followed, held, or refused (onward.rs, held.rs).
    fn leads_past_a_promise(&self, task: &Task, end: &End) -> bool {
        matches!(end, End::Relayed(relayed) if leads_or_completes(relayed.0.status))
            && self.is_held_today(task)
    }

    /// What the flight's leader alone may have, if it does not lead past a promise.
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
        let passed = Passed { task, client, reason: PassReason::Answer, line };
        Some(self.hold_when_promised(passed, response))
    }

    /// Whether who followed a flight of others may have how it ended: a body to which it proves its right, and no word
    /// that was for its leader.
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

    /// Answers from the store; `None` if the blob is not there after all.
    pub(super) async fn reply_stored(
        &self,
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
                    opened.map(|(blob, chunk)| Some(Source::Blob(Arc::new(blob), chunk)))?
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    let why = Why::new(Cause::Busy, format!("{}: {error}", task.target));
                    return Some(record.fail(StatusCode::SERVICE_UNAVAILABLE, &why));
                }
                // It is fetched again: the origin may have what the disk does not give now.
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
    /// Opens a stored body, and reads the chunk in which the byte `first` lies, which the answer begins with: what is damaged
    /// there is a miss, not an answer that is cut. `None` if it is not there, or damaged. Where every place for an open file
    /// is taken one is waited for.
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

/// What is open and in memory already, as the small bodies of a build are: a hand-off to another thread would cost more than
/// all the rest of the hit.
fn sound_now(store: &Arc<Store>, id: BlobId, first: Option<u64>) -> Option<Sound> {
    let blob = store.open_blob_now(id)?;
    let Some(number) = first.map(|first| first / CHUNK) else {
        return Some((blob, None));
    };
    let chunk = blob.chunk_now(number)?;
    Some((blob, Some((number, chunk))))
}

/// Blocking.
fn sound(store: &Arc<Store>, id: BlobId, first: Option<u64>) -> io::Result<Option<Sound>> {
    let Some(blob) = store.open_blob(id)? else {
        return Ok(None);
    };
    let Some(number) = first.map(|first| first / CHUNK) else {
        return Ok(Some((blob, None)));
    };
    // What is damaged is out of service now.
    let chunk = blob.chunk(number)?;
    Ok(Some((blob, Some((number, chunk)))))
}

impl Ended {
    /// The origin failed: a stored copy is better than its word.
    fn failed(&self) -> bool {
        matches!(self.end, End::Failed(..)) || self.flight.has_failed()
    }
}

/// Waits for the head; of an index that heads others, until it is known whether it counts.
async fn opened(reader: &mut Reader, task: &Task) -> Opened {
    if task.heads() {
        let flight = Arc::clone(reader.flight());
        let end = if task.is_unknown() {
            // Its path alone looks like one: nothing that streams waits for that.
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

/// What sends clients on to a document that is stored.
fn not_there(at: &Target, other: &Target) -> Response<Body> {
    let line = format!("{at} does not answer; {other} is stored, which clients read in its place");
    reply::text(StatusCode::NOT_FOUND, &line, Outcome::Stale)
}

/// Waits until the request may be answered: until its first byte may be given, or the whole was judged of which the answer
/// speaks.
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

/// Waits until something may be given. A client that cannot tell a short body from a whole one (HTTP/1.0, whose bodies
/// may end with the connection) waits for the judgement, where there will be one.
pub(super) async fn first_bytes(reader: &mut Reader, version: Version, needed: Span) -> Opened {
    if version == Version::HTTP_10
        && reader.is_held()
        && let Some(end) = reader.judged().await
    {
        return Opened::Ended(end);
    }
    reader.open(needed.start, needed.end).await
}

fn outcome(leads: bool) -> Outcome {
    if leads { Outcome::Miss } else { Outcome::Collapsed }
}

/// Whether the client asked for less than the whole: then its own request serves it better than a whole body.
fn is_partial(asked: &Asked) -> bool {
    asked.headers.contains_key(header::RANGE)
        || asked.headers.keys().any(|name| name.as_str().starts_with("if-"))
}
