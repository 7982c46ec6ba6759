//! A reader of a growing body.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::gap::{Gap, Hold};
use super::window::{BIT, Unkept};
use super::writer::read_at;
use super::{Answered, End, Flight, Shared};
use crate::outcome::cause::{Cause, Why};
use crate::store::CHUNK;

/// The reason for a reader that returns to bytes which were not kept.
const GONE: &str = "these bytes were not kept, because the store has no room for them; ask again";

/// Why a body ends early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Broken {
    /// The reason, for the client, the log and the metrics.
    pub reason: Why,
}

impl Broken {
    /// Makes one with this cause and reason.
    pub fn new(cause: Cause, reason: impl Into<String>) -> Self {
        Self { reason: Why::new(cause, reason) }
    }
}

/// What a reader finds when a flight opens.
#[derive(Debug)]
pub enum Opened {
    /// The head has arrived, and the first byte may be given (or nothing holds the body back).
    Answered(Arc<Answered>),
    /// The flight ended before that.
    Ended(End),
}

/// A reader of a flight. The fill continues while it lives.
#[derive(Debug)]
pub struct Reader {
    flight: Arc<Flight>,
    id: u64,
    changed: watch::Receiver<u64>,
    /// The offset after the bytes that it was given in order from the start.
    in_order: u64,
}

/// What a reader may do now.
enum Step {
    Wait,
    File(Arc<File>, u64),
    Window(Bytes),
    End,
    Broken(Broken),
}

impl Step {
    /// The end of the bytes from `at` on that it gives.
    fn end(&self, at: u64) -> u64 {
        match self {
            Self::File(_, to) => *to,
            Self::Window(bytes) => at + bytes.len() as u64,
            Self::Wait | Self::End | Self::Broken(_) => at,
        }
    }
}

impl Reader {
    pub(super) fn new(flight: Arc<Flight>, id: u64) -> Self {
        let changed = flight.changed.subscribe();
        flight.lock().readers.stand(id, 0);
        Self { flight, id, changed, in_order: 0 }
    }

    /// Makes the reader one for which no byte is kept in the window.
    pub fn stand_behind(&self) {
        self.flight.lock().readers.stand(self.id, u64::MAX);
    }

    /// The flight.
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Whether the body is held back until it is judged.
    pub fn is_held(&self) -> bool {
        self.flight.is_held()
    }

    /// Waits for the head.
    pub async fn head(&mut self) -> Opened {
        loop {
            {
                let shared = self.flight.lock();
                if let Some(answered) = &shared.answered {
                    return Opened::Answered(Arc::clone(answered));
                }
                if let Some(end) = &shared.end {
                    return Opened::Ended(end.clone());
                }
            }
            self.next_change().await;
        }
    }

    /// Waits until the first of the bytes from `at` to before `end` may be given, or nothing holds the body back, or the flight
    /// has ended. As long as no byte was given, the client of a refused body gets an error response instead of a broken transfer.
    pub async fn open(&mut self, at: u64, end: u64) -> Opened {
        loop {
            let seen = self.flight.make_way(at, end).await;
            self.flight.compare_only_if_promised();
            {
                let mut shared = self.flight.lock();
                // After these two ends the bytes can still be read; any other end is the answer.
                match &shared.end {
                    Some(End::Kept(_) | End::Given) | None => {}
                    Some(end) => return Opened::Ended(end.clone()),
                }
                if let Some(end) = shared.readers.end_of_cut(self.id) {
                    return Opened::Ended(end);
                }
                if shared.is_gone(at) {
                    // This reader joined when the body had just ceased to be joinable.
                    return Opened::Ended(End::Pass);
                }
                if let Some(answered) = shared.answered.clone() {
                    if !seen.is_some_and(|seen| Arc::ptr_eq(&seen, &answered)) {
                        // The head arrived just now. The gap moves before the first byte is given, or never.
                        continue;
                    }
                    let limit = || self.flight.share.with(|gap| shared.limit(gap, at, u64::MAX));
                    let opens = shared.verified || !shared.holding.held || limit() > at;
                    if opens && shared.unkept == Unkept::Wait {
                        shared.told = true;
                        let late_end = self.flight.note_range(&shared, at, end);
                        drop(shared);
                        if let Some(length) = late_end {
                            self.flight.note_late_range(length, at, end);
                        }
                        return Opened::Answered(answered);
                    }
                    self.wait(&mut shared, at);
                }
            }
            self.next_change().await;
        }
    }

    /// Waits for the judgement. `None`: the body was judged good.
    pub async fn judged(&mut self) -> Option<End> {
        self.judged_unless(|_| false).await
    }

    /// Like [`Self::judged`], for a client that is given nothing before. `None` also if the body cannot wait, because the store has
    /// no room for it, and its length is announced: the client can tell from that whether it has all.
    pub async fn judged_if_kept(&mut self) -> Option<End> {
        self.judged_unless(|shared| {
            let answered = shared.answered.as_ref();
            answered.is_some_and(|answered| answered.length.is_some()) && shared.has_no_room()
        })
        .await
    }

    async fn judged_unless(&mut self, ends: impl Fn(&Shared) -> bool) -> Option<End> {
        loop {
            {
                let mut shared = self.flight.lock();
                if shared.verified || shared.end.is_none() && ends(&shared) {
                    return None;
                }
                if let Some(end) = &shared.end {
                    return Some(end.clone());
                }
                if let Some(end) = shared.readers.end_of_cut(self.id) {
                    return Some(end);
                }
                self.wait(&mut shared, 0);
            }
            self.next_change().await;
        }
    }

    /// The next bytes from `at` on, before `end`; `None` at the end of the body. Waits for them.
    pub async fn next(&mut self, at: u64, end: u64) -> Result<Option<Bytes>, Broken> {
        if at >= end {
            return Ok(None);
        }
        loop {
            self.flight.bind_before_reading().await;
            self.flight.compare_only_if_promised();
            if let Some(contradicted) = self.flight.contradicted() {
                return Err(contradicted);
            }
            match self.step(at, end) {
                Step::Wait => self.next_change().await,
                Step::End => return Ok(None),
                Step::Window(bytes) => {
                    self.gave(at, at + bytes.len() as u64);
                    return Ok(Some(bytes));
                }
                Step::Broken(broken) => return Err(broken),
                Step::File(file, to) => {
                    self.gave(at, to);
                    return read(file, at, to).await.map(Some);
                }
            }
        }
    }

    fn gave(&mut self, at: u64, to: u64) {
        if at == self.in_order {
            self.in_order = to;
        }
    }

    fn step(&self, at: u64, end: u64) -> Step {
        let mut shared = self.flight.lock();
        match &shared.end {
            Some(End::Kept(_) | End::Given) | None => {}
            Some(End::Refused(reason)) => {
                return Step::Broken(Broken::new(Cause::Promise, reason));
            }
            Some(End::Failed(_, reason)) => {
                return Step::Broken(Broken { reason: reason.clone() });
            }
            Some(End::Current(_) | End::Relayed(_) | End::Pass | End::Handed) => {
                return Step::Broken(Broken::new(Cause::Broken, "the flight ended without a body"));
            }
        }
        if let Some(reason) = shared.readers.why_cut(self.id) {
            return Step::Broken(Broken { reason });
        }
        if shared.end.is_some() && at >= shared.have {
            return Step::End;
        }
        let before_the_last = shared.before_the_last(at);
        // The check and the note are one step: otherwise another flight of the target could be given the rest in between.
        let (step, to, alike) = self.flight.share.with(|gap| {
            let limit = shared.limit(gap, at, end).min(before_the_last);
            if limit <= at {
                return (Step::Wait, at, false);
            }
            let step = take(&shared, at, limit);
            let to = step.end(at);
            let alike = gap.is_suspect() && to <= shared.alike_to();
            if !alike {
                shared.note(gap, at, to);
            }
            (step, to, alike)
        });
        if matches!(step, Step::Wait) {
            self.wait(&mut shared, at);
            return step;
        }
        if alike {
            self.flight.share.gave_alike();
        }
        // Of several ranges, the first may begin at the start.
        let late_end = (to > at && at != self.in_order)
            .then(|| self.flight.note_range(&shared, at, to))
            .flatten();
        shared.holding.gave |= to > at && !shared.verified;
        shared.readers.stand(self.id, to);
        if !shared.window.is_empty() {
            shared.trim();
            self.flight.moved.notify_one();
        }
        drop(shared);
        if let Some(length) = late_end {
            self.flight.note_late_range(length, at, to);
        }
        step
    }

    /// Notes that no byte from `at` on may be given now: no earlier byte need be kept for this reader, and it does not count as
    /// slow.
    fn wait(&self, shared: &mut Shared, at: u64) {
        if shared.readers.wait(self.id, at) && !shared.window.is_empty() {
            shared.trim();
            self.flight.moved.notify_one();
        }
    }

    async fn next_change(&mut self) {
        // The sender is part of the flight, which this reader keeps alive.
        let _still_open = self.changed.changed().await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shared = self.flight.lock();
        shared.readers.leave(self.id);
        shared.trim();
        drop(shared);
        self.flight.moved.notify_one();
        self.flight.wake();
    }
}

fn take(shared: &Shared, at: u64, limit: u64) -> Step {
    let behind = shared.full_from().is_some_and(|first| at < first);
    let limit = if behind { limit.min(at + BIT) } else { limit };
    // Bytes of a part are in the file as well.
    let filed = if at < shared.have { shared.filed } else { shared.reach(at) };
    if at < filed {
        return match &shared.file {
            Some(file) => Step::File(Arc::clone(file), limit.min(filed).min(at + CHUNK)),
            None => Step::Broken(Broken::new(Cause::Busy, GONE)),
        };
    }
    let mut start = shared.window_start;
    for bytes in &shared.window {
        let end = start + bytes.len() as u64;
        if (start..end).contains(&at) {
            let (Ok(from), Ok(to)) =
                (usize::try_from(at - start), usize::try_from(limit.min(end) - start))
            else {
                break;
            };
            return Step::Window(bytes.slice(from..to));
        }
        start = end;
    }
    Step::Broken(Broken::new(Cause::Busy, GONE))
}

impl Shared {
    /// Whether no client was given a byte or the head.
    pub(super) fn nothing_given(&self) -> bool {
        !self.holding.gave && !self.told
    }

    /// Notes that the bytes from `at` to before `to` are given, if they are not judged. Not needed for bytes that are known to be
    /// right: they complete no wrong body, and are completed by none while their target is suspect.
    fn note(&self, gap: &mut Gap, at: u64, to: u64) {
        if self.verified || to <= at {
            return;
        }
        gap.note(at, to);
        if !self.holding.held && self.holding.hold == Hold::Whole {
            gap.spend();
        }
    }

    /// Whether the store has no room for all of the body, which goes through the window.
    fn has_no_room(&self) -> bool {
        self.file.is_none() || self.have > self.filed
    }

    /// Whether the body is neither judged nor ended yet.
    pub(super) fn is_unjudged(&self) -> bool {
        !self.verified && self.end.is_none()
    }

    /// Up to where a reader at `at`, which wants the bytes before `end`, may be given bytes now.
    pub(super) fn limit(&self, gap: &Gap, at: u64, end: u64) -> u64 {
        match self.holding.hold {
            _ if self.verified => end.min(self.reach(at)).max(at),
            _ if self.unkept == Unkept::Dropped => at,
            // Another body of the target was refused meanwhile, so this one gives nothing before its judgement, whatever binds
            // it; except for bytes that are known to be right.
            _ if gap.is_suspect() => end.min(self.have).min(self.alike_to()).max(at),
            _ if !self.holding.held => end.min(self.reach(at)).max(at),
            Hold::Gap => gap.limit(at, end, self.reach(at)),
            Hold::Whole => end.min(self.have).min(self.alike_to()).max(at),
        }
    }

    /// The last byte is given only after the flight has ended. So a client that has the whole body finds it stored, and the
    /// claims of an index in force, with its next request.
    pub(super) fn before_the_last(&self, at: u64) -> u64 {
        if at >= self.have {
            // A client that reads a part, such as the end of a zip file, does not have the whole body yet.
            return u64::MAX;
        }
        let length = self.answered.as_ref().and_then(|answered| answered.length);
        match (&self.end, length) {
            (None, Some(length)) => length.saturating_sub(1),
            (Some(_), _) | (None, None) => u64::MAX,
        }
    }

    /// Whether the bytes from `at` on have arrived and are no longer kept.
    fn is_gone(&self, at: u64) -> bool {
        if at < self.filed { self.file.is_none() } else { at < self.window_start.min(self.have) }
    }
}

async fn read(file: Arc<File>, at: u64, to: u64) -> Result<Bytes, Broken> {
    let read = tokio::task::spawn_blocking(move || read_at(&file, at, to));
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            Err(Broken::new(Cause::Larder, format!("the spool file could not be read: {error}")))
        }
        Err(_) => Err(Broken::new(Cause::Larder, "reading the spool file was broken off")),
    }
}
