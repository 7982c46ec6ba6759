//! Parts of a body that are fetched ahead of the fill, because clients want them: those of a download by many connections.
//!
//! Each part is one request for one range. Its bytes go into the file of the fill at their own place, are read there by whoever wants
//! them, and are never fetched a second time: when the fill comes to a part, it waits for the part's end and goes on behind it.
//!
//! ```text
//!  0         have       start  part.have      end               length
//!  ├── fill ──▶┄┄┄┄┄┄┄┄┄├── part ──▶┄┄┄┄┄┄┄┄┄┄┤┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┤
//!                        a client that asks in the middle of what is still to come begins another part, and cuts this one
//! ```
//!
//! A part is of the same body by the same rule as a resume: equal length and equal strong validator. The body is judged whole, from
//! the file, so that a part whose bytes are not the body's makes it another body than was promised (promise P3); the gap holds for
//! bytes of parts as for all others.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::gap::Hold;
use super::intake::{Binds, MAX_UNREAD};
use super::writer::{Piece, read_at};
use super::{Answered, Flight, Shared, off_thread};
use crate::store::CHUNK;

/// The shortest part, and the least way ahead at which one begins, in bytes: less comes soon enough by itself, and another request
/// costs more.
pub const LEAST_PART: u64 = 1 << 20;

/// The most parts of one body at a time. Clients that open more connections to one file wait for the fill.
const MAX_PARTS: usize = 32;

/// The parts of the body that is arriving.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Those that the fill has not passed.
    list: Vec<Part>,
    /// Bytes up to here came by the fill itself, or are on their way to its writer.
    claimed: u64,
    way: Way,
    /// Whether there were any.
    any: bool,
}

/// The way of parts to the writer of the body.
#[derive(Clone, Default)]
enum Way {
    /// Not known yet.
    #[default]
    Unknown,
    /// No part may be begun.
    Closed,
    /// There is one.
    Open(mpsc::WeakSender<Piece>, Binds),
}

impl Parts {
    /// Whether any are still to be passed.
    pub(super) fn lie_there(&self) -> bool {
        !self.list.is_empty()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "Unknown",
            Self::Closed => "Closed",
            Self::Open(..) => "Open",
        })
    }
}

/// A part.
#[derive(Debug)]
struct Part {
    start: u64,
    /// Up to where its bytes lie in the file.
    have: u64,
    /// Up to where its bytes were taken from the origin.
    taken: u64,
    end: u64,
    /// Nothing more comes.
    over: bool,
}

/// Who fetches a part. Dropped, the part is over.
pub struct Ahead {
    flight: Arc<Flight>,
    answered: Arc<Answered>,
    start: u64,
    end: u64,
    to: mpsc::WeakSender<Piece>,
    /// As for the fill: a promise may have come that binds.
    binds: Binds,
    /// Its end has been told.
    told: bool,
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Ahead {
    /// Where it starts, in bytes from the start of the body.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Just behind its last byte, as it was begun.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Takes bytes that follow those before. `false`: no more are wanted, or nobody waits for them and much is missing.
    pub async fn take(&self, mut bytes: Bytes) -> bool {
        self.flight.bind_if(&self.binds).await;
        let (at, more) = {
            let mut shared = self.flight.lock();
            if !shared.answered.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.answered)) {
                return false;
            }
            // As for the fill itself, which would be given up when it goes on.
            let missing = self.answered.length.unwrap_or(u64::MAX).saturating_sub(shared.have);
            if shared.readers.len() == 0 && missing > MAX_UNREAD {
                return false;
            }
            let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == self.start)
            else {
                return false;
            };
            let at = part.taken;
            let room = usize::try_from(part.end.saturating_sub(at)).unwrap_or(usize::MAX);
            bytes.truncate(room);
            part.taken += bytes.len() as u64;
            (at, part.taken < part.end)
        };
        let Some(to) = self.to.upgrade() else { return false };
        let sent = to.send(Piece::Ahead { start: self.start, at, bytes }).await.is_ok();
        sent && more
    }

    /// Nothing more comes, once what was taken is written.
    pub async fn close(mut self) {
        if let Some(to) = self.to.upgrade() {
            self.told = to.send(Piece::Over(self.start)).await.is_ok();
        }
    }
}

impl Flight {
    /// Begins a part for who asks for the bytes from `start` to before `end`, if they are far ahead of everything that is being
    /// fetched and may be given before the body is judged.
    pub fn open_part(
        self: &Arc<Self>,
        answered: &Arc<Answered>,
        start: u64,
        end: u64,
    ) -> Option<Ahead> {
        let mut shared = self.lock();
        let held_whole = shared.holding.held && matches!(shared.holding.hold, Hold::Whole);
        let present = shared.answered.as_ref().is_some_and(|now| Arc::ptr_eq(now, answered));
        let open = present && shared.end.is_none() && !shared.verified && !held_whole;
        let stored = shared.file.is_some() && shared.filed == shared.have;
        let length = answered.length.filter(|_| open && stored)?;
        let Way::Open(to, binds) = shared.parts.way.clone() else { return None };
        if start < shared.parts.claimed.saturating_add(LEAST_PART)
            || shared.parts.list.len() >= MAX_PARTS
        {
            return None;
        }
        let mut end = end.min(length);
        let mut cut = None;
        for (number, part) in shared.parts.list.iter().enumerate() {
            if (part.start..part.end).contains(&start) {
                if part.over || start < part.taken.saturating_add(LEAST_PART) {
                    return None;
                }
                end = end.min(part.end);
                cut = Some(number);
            } else if part.start > start {
                end = end.min(part.start);
            }
        }
        if end.saturating_sub(start) < LEAST_PART {
            return None;
        }
        if let Some(part) = cut.and_then(|number| shared.parts.list.get_mut(number)) {
            part.end = start;
        }
        shared.parts.list.push(Part { start, have: start, taken: start, end, over: false });
        shared.parts.any = true;
        drop(shared);
        let (flight, answered) = (Arc::clone(self), Arc::clone(answered));
        Some(Ahead { flight, answered, start, end, to, binds, told: false })
    }

    /// Whether parts of the body that is arriving, or has arrived, were fetched by requests of their own.
    pub fn had_parts(&self) -> bool {
        self.lock().parts.any
    }

    /// Waits until it is known whether parts may be begun: who asks right behind the head comes before that.
    pub async fn knows_of_parts(&self) {
        let mut changed = self.changed.subscribe();
        let unknown = || {
            let shared = self.lock();
            matches!(shared.parts.way, Way::Unknown) && shared.end.is_none()
        };
        while unknown() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the byte at `at` is in a part, or comes in one.
    pub fn is_in_part(&self, at: u64) -> bool {
        self.lock().parts.list.iter().any(|part| (part.start..part.end).contains(&at))
    }

    /// From now on parts may be begun, whose bytes go `to` the writer of the body; or none may.
    pub(super) fn take_parts(&self, to: Option<mpsc::WeakSender<Piece>>, binds: &Binds) {
        let way = |to| Way::Open(to, Arc::clone(binds));
        self.update(|shared| shared.parts.way = to.map_or(Way::Closed, way));
    }

    /// There is no room for parts any more: no more bytes of them are written. Whether bytes of any lie in the file.
    pub(super) fn end_parts(&self) -> bool {
        let mut any = false;
        self.update(|shared| {
            shared.parts.way = Way::Closed;
            shared.parts.list.retain_mut(|part| {
                part.over = true;
                part.have > part.start
            });
            any = shared.parts.lie_there();
        });
        any
    }

    /// Whether parts lie in the file that are still to be passed.
    pub(super) fn has_parts(&self) -> bool {
        self.lock().parts.lie_there()
    }

    /// Everything up to `to` was given from memory: the fill has passed the part.
    pub(super) fn part_given(&self, to: u64) {
        self.update(|shared| shared.parts.list.retain(|part| part.have > to || !part.over));
    }

    /// Whether the bytes that lie in the file from `at` on, before `end`, are these, which the fill itself brought of that place. What is
    /// not there agrees.
    pub(super) async fn agrees(&self, at: u64, end: u64, bytes: Bytes) -> bool {
        let (file, there) = {
            let shared = self.lock();
            let part = shared.parts.list.iter().find(|part| (part.start..part.have).contains(&at));
            let there = part.map_or(shared.filed, |part| part.have);
            (shared.file.clone(), there)
        };
        let to = end.min(there).min(at.saturating_add(bytes.len() as u64));
        let Some(file) = file.filter(|_| to > at) else { return true };
        let same = move || {
            let mut at = at;
            let mut bytes = &*bytes;
            while at < to {
                let Ok(there) = read_at(&file, at, to.min(at + CHUNK)) else { return false };
                let (here, rest) = bytes.split_at(there.len());
                if *here != *there {
                    return false;
                }
                (at, bytes) = (at + there.len() as u64, rest);
            }
            true
        };
        off_thread(same).await.unwrap_or(false)
    }

    /// No part may be begun any more, and those that were have no more to say.
    pub(super) fn forget_parts(&self) {
        self.update(|shared| {
            shared.parts.way = Way::Closed;
            shared.parts.list.clear();
        });
    }

    /// Of bytes of the fill that came and stand at `at`, those before the next part: they are the fill's to write.
    pub(super) fn claim(&self, at: u64, bytes: &mut Bytes) -> Bytes {
        let mut shared = self.lock();
        let next =
            shared.parts.list.iter().map(|part| part.start).filter(|start| *start >= at).min();
        let room = next.map_or(u64::MAX, |next| next - at);
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        shared.parts.claimed = at + count as u64;
        bytes.split_to(count)
    }

    /// Whether the fill has come to a part of which bytes have come. One of which none have is taken away: it may be waiting for
    /// the very connection that the fill has.
    pub(super) fn begun_at(&self, at: u64) -> bool {
        let mut shared = self.lock();
        let begun =
            shared.parts.list.iter().any(|part| part.start == at && part.taken > part.start);
        if !begun {
            shared.parts.list.retain(|part| part.start != at);
        }
        begun
    }

    /// Waits for the end of the part that begins at `at`, and takes it away; gives back where the fill goes on.
    pub(super) async fn past_part(&self, at: u64) -> u64 {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let mut shared = self.lock();
                let Some(number) = shared.parts.list.iter().position(|part| part.start == at)
                else {
                    return at;
                };
                let ended =
                    shared.parts.list.get(number).filter(|part| part.over || part.have >= part.end);
                if let Some(to) = ended.map(|part| part.have) {
                    if to == at {
                        shared.parts.list.remove(number);
                    } else if let Some(part) = shared.parts.list.get_mut(number) {
                        // Its bytes stay readable until the writer has passed them.
                        part.over = true;
                        part.end = to;
                    }
                    shared.parts.claimed = to;
                    return to;
                }
            }
            if changed.changed().await.is_err() {
                return at;
            }
        }
    }

    /// Whether the writer is to take bytes of the part that begins at `start`.
    pub(super) fn wants(&self, start: u64) -> bool {
        self.lock().parts.list.iter().any(|part| part.start == start && !part.over)
    }

    /// `count` more bytes of the part lie in the file.
    pub(super) fn part_grew(&self, start: u64, count: u64) {
        self.update(|shared| {
            if let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == start) {
                part.have += count;
            }
        });
    }

    /// The part has come to its end, or broke off: the fill fetches what is missing.
    pub(super) fn part_over(&self, start: u64) {
        self.update(|shared| {
            if let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == start) {
                part.over = true;
            }
        });
    }

    /// Everything up to `to` lies in the file, and is hashed: the fill has passed the part.
    pub(super) fn passed(&self, to: u64) {
        self.update(|shared| {
            shared.have = to;
            shared.filed = to;
            shared.parts.list.retain(|part| part.have > to || !part.over);
        });
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let mut shared = self.flight.lock();
        let same = shared.answered.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.answered));
        if same
            && let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == self.start)
        {
            part.over = true;
        }
        drop(shared);
        self.flight.wake();
    }
}

impl Shared {
    /// Up to where the body's bytes lie in the file, or have come, for a reader at `at`.
    pub(super) fn reach(&self, at: u64) -> u64 {
        if at < self.have {
            return self.have;
        }
        let part = self.parts.list.iter().find(|part| (part.start..part.have).contains(&at));
        part.map_or(self.have, |part| part.have)
    }
}
