//! Parts of a body that are fetched ahead of the fill, for clients that download over several connections.
//!
//! Each part is one request for one range. Its bytes are written to the fill's file at their offset, are read there by any client
//! that wants them, and are never fetched a second time: when the fill reaches a part, it waits for the part's end and continues
//! after it.
//!
//! ```text
//!  0         have       start  part.have      end               length
//!  ├── fill ──▶┄┄┄┄┄┄┄┄┄├── part ──▶┄┄┄┄┄┄┄┄┄┄┤┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┤
//!                        a client that asks in the middle of what is still to come begins another part, and cuts this one
//! ```
//!
//! A part belongs to the same body by the same rule as a resume: equal length and equal strong validator. The body is judged
//! whole, from the file, so wrong bytes in a part make it a body that was not promised (promise P3). The gap withholds bytes of
//! parts like all others.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::gap::Hold;
use super::intake::{Binds, MAX_UNREAD};
use super::writer::{Piece, read_at};
use super::{Answered, Flight, Shared, off_thread};
use crate::store::CHUNK;

/// The shortest part, and the least distance ahead of other fetches at which one begins, in bytes. Closer bytes arrive soon
/// enough without another request.
pub const LEAST_PART: u64 = 1 << 20;

/// The most parts of one body at a time. Clients that open more connections for one file wait for the fill.
const MAX_PARTS: usize = 32;

/// The parts of the body that is arriving.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The parts that the fill has not passed.
    list: Vec<Part>,
    /// The end of the bytes that the fill itself received, or that are on their way to its writer.
    claimed: u64,
    way: PartDelivery,
    /// Whether the body ever had parts.
    any: bool,
}

/// How bytes of parts reach the writer of the body.
#[derive(Clone, Default)]
enum PartDelivery {
    /// Not known yet.
    #[default]
    Unknown,
    /// No part may be begun.
    Closed,
    /// The channel to the writer.
    Open(mpsc::WeakSender<Piece>, Binds),
}

impl Parts {
    /// Whether the fill has still to pass any part.
    pub(super) fn lie_there(&self) -> bool {
        !self.list.is_empty()
    }
}

impl fmt::Debug for PartDelivery {
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
    /// The end of its bytes in the file.
    have: u64,
    /// The end of its bytes that were received from the origin.
    taken: u64,
    end: u64,
    /// No more bytes will arrive.
    over: bool,
}

/// The fetcher of a part. Dropping it ends the part.
pub struct Ahead {
    flight: Arc<Flight>,
    answered: Arc<Answered>,
    start: u64,
    end: u64,
    to: mpsc::WeakSender<Piece>,
    /// As for the fill: whether a promise that binds the body has appeared.
    binds: Binds,
    /// Whether the writer was told its end.
    told: bool,
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Ahead {
    /// Its first byte, counted from the start of the body.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The offset after its last byte, as planned when it began.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Takes the bytes that follow those before. `false`: no more are wanted, or no client waits for them and much is missing.
    pub async fn take(&self, mut bytes: Bytes) -> bool {
        self.flight.bind_if(&self.binds).await;
        let (at, more) = {
            let mut shared = self.flight.lock();
            if !shared.answered.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.answered)) {
                return false;
            }
            // The same limit as for the fill itself, which would be abandoned when it continues.
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

    /// Ends the part once the bytes taken so far are written.
    pub async fn close(mut self) {
        if let Some(to) = self.to.upgrade() {
            self.told = to.send(Piece::Over(self.start)).await.is_ok();
        }
    }
}

impl Flight {
    /// Begins a part for a client that requests the bytes from `start` to before `end`, if they are far ahead of everything that
    /// is being fetched and may be given before the body is judged.
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
        let PartDelivery::Open(to, binds) = shared.parts.way.clone() else { return None };
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

    /// Whether parts of the body were fetched by requests of their own.
    pub fn had_parts(&self) -> bool {
        self.lock().parts.any
    }

    /// Waits until it is known whether parts may be begun. A client that asks right after the head is earlier than that.
    pub async fn knows_of_parts(&self) {
        let mut changed = self.changed.subscribe();
        let unknown = || {
            let shared = self.lock();
            matches!(shared.parts.way, PartDelivery::Unknown) && shared.end.is_none()
        };
        while unknown() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the byte at `at` is in a part, arrived or still to come.
    pub fn is_in_part(&self, at: u64) -> bool {
        self.lock().parts.list.iter().any(|part| (part.start..part.end).contains(&at))
    }

    /// From now on parts may be begun, and their bytes go `to` the writer of the body; with `None`, no part may be begun.
    pub(super) fn take_parts(&self, to: Option<mpsc::WeakSender<Piece>>, binds: &Binds) {
        let way = |to| PartDelivery::Open(to, Arc::clone(binds));
        self.update(|shared| shared.parts.way = to.map_or(PartDelivery::Closed, way));
    }

    /// The store has no more room for parts: no more bytes of them are written. Returns whether bytes of any part are in the
    /// file.
    pub(super) fn end_parts(&self) -> bool {
        let mut any = false;
        self.update(|shared| {
            shared.parts.way = PartDelivery::Closed;
            shared.parts.list.retain_mut(|part| {
                part.over = true;
                part.have > part.start
            });
            any = shared.parts.lie_there();
        });
        any
    }

    /// Whether the file holds parts that the fill has still to pass.
    pub(super) fn has_parts(&self) -> bool {
        self.lock().parts.lie_there()
    }

    /// All bytes up to `to` were given from memory: the fill has passed the part.
    pub(super) fn part_given(&self, to: u64) {
        self.update(|shared| shared.parts.list.retain(|part| part.have > to || !part.over));
    }

    /// Whether the file's bytes from `at` to before `end` equal `bytes`, which the fill itself received for that place. Bytes
    /// that are not in the file count as equal.
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

    /// No part may be begun any more, and those that were begun are dropped.
    pub(super) fn forget_parts(&self) {
        self.update(|shared| {
            shared.parts.way = PartDelivery::Closed;
            shared.parts.list.clear();
        });
    }

    /// Splits bytes of the fill that belong at `at`: returns those before the next part, which the fill writes.
    pub(super) fn claim(&self, at: u64, bytes: &mut Bytes) -> Bytes {
        let mut shared = self.lock();
        let next =
            shared.parts.list.iter().map(|part| part.start).filter(|start| *start >= at).min();
        let room = next.map_or(u64::MAX, |next| next - at);
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        shared.parts.claimed = at + count as u64;
        bytes.split_to(count)
    }

    /// Whether the fill has reached a part of which bytes have arrived. A part without any is removed: it may be waiting for the
    /// very connection that the fill uses.
    pub(super) fn begun_at(&self, at: u64) -> bool {
        let mut shared = self.lock();
        let begun =
            shared.parts.list.iter().any(|part| part.start == at && part.taken > part.start);
        if !begun {
            shared.parts.list.retain(|part| part.start != at);
        }
        begun
    }

    /// Waits for the end of the part that begins at `at`, and closes it. Returns where the fill continues.
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

    /// Whether the writer should take bytes of the part that begins at `start`.
    pub(super) fn wants(&self, start: u64) -> bool {
        self.lock().parts.list.iter().any(|part| part.start == start && !part.over)
    }

    /// `count` more bytes of the part are in the file.
    pub(super) fn part_grew(&self, start: u64, count: u64) {
        self.update(|shared| {
            if let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == start) {
                part.have += count;
            }
        });
    }

    /// The part has ended or broken; the fill fetches what is missing.
    pub(super) fn part_over(&self, start: u64) {
        self.update(|shared| {
            if let Some(part) = shared.parts.list.iter_mut().find(|part| part.start == start) {
                part.over = true;
            }
        });
    }

    /// All bytes up to `to` are in the file and hashed: the fill has passed the part.
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
    /// The end of the contiguous bytes that a reader at `at` can find.
    pub(super) fn reach(&self, at: u64) -> u64 {
        if at < self.have {
            return self.have;
        }
        let part = self.parts.list.iter().find(|part| (part.start..part.have).contains(&at));
        part.map_or(self.have, |part| part.have)
    }
}
