//! The writer of a body: hashes what arrives and writes it into the spool, or passes it on if the store has no room.
//!
//! When the store becomes full, the file may already hold parts of the body that were fetched ahead of its fill (`parts.rs`). The
//! file stays until these are passed: their bytes are read from it, hashed and given in their turn, as if they arrived then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Flight;
use super::judged::Chunking;
use crate::digest::{Digests, Hashing};
use crate::outcome::cause::{Cause, Why};
use crate::received::Spooled;
use crate::store::{Buffer, CHUNK, Spool, SpoolError, hash_range};

/// The number of pieces between network and disk, and of those being written. A piece is at most what one read of a socket gives:
/// 128 KiB.
pub(super) const IN_BETWEEN: usize = 4;

/// Where the bytes of a body are.
#[derive(Debug)]
pub enum Body {
    /// Complete in the spool.
    Spooled(Spooled),
    /// The store had no room for all of it. Its bytes were given to the readers, and only these digests and the length are left.
    Unstored(Digests, u64),
}

impl Body {
    /// Its digests, and its length in bytes.
    pub fn digests(&self) -> (&Digests, u64) {
        match self {
            Self::Spooled(spooled) => (&spooled.digests, spooled.size),
            Self::Unstored(digests, size) => (digests, *size),
        }
    }
}

/// What the writer receives.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next bytes.
    Next(Bytes),
    /// Bytes of the part that begins at `start`, which belong at `at`.
    Ahead { start: u64, at: u64, bytes: Bytes },
    /// The part that begins at this offset has ended.
    Over(u64),
    /// Up to this offset the bytes are in the file already, from parts.
    Passed(u64),
}

impl Piece {
    /// The offset of the bytes that follow this piece.
    fn end_behind(&self, at: u64) -> u64 {
        match self {
            Self::Next(bytes) => at + bytes.len() as u64,
            Self::Passed(to) => *to,
            Self::Ahead { .. } | Self::Over(_) => at,
        }
    }
}

/// Where the pieces go.
enum Keep {
    /// A file in the spool.
    Spool(Spool),
    /// There was no room from the start, or there is none any more: bytes are hashed and given to readers. The file holds the
    /// parts that arrived while there was room.
    Nothing(Hashing, Option<Arc<File>>),
}

/// Bytes that are not kept, on their way to readers.
enum Unkept {
    Bytes(Bytes),
    /// The bytes of a part, from one offset to another in the file.
    Part(Arc<File>, u64, u64),
}

/// Hashes and writes until the channel closes. Each batch is a short piece of blocking work, so that a slow origin does not
/// occupy a thread. Bytes for which the store has no room go through the flight's window and are not kept.
pub(super) async fn write(
    flight: Arc<Flight>,
    mut from: mpsc::Receiver<Piece>,
    spool: Result<Spool, Hashing>,
) -> Result<Body, Why> {
    let mut keep = match spool {
        Ok(spool) => Keep::Spool(spool),
        Err(hashing) => Keep::Nothing(hashing, None),
    };
    // Only a body that is held back whole is compared with another.
    let mut chunking = flight.is_held_whole().then(Chunking::new);
    let mut size = 0;
    let mut batch = Vec::with_capacity(IN_BETWEEN);
    while from.recv_many(&mut batch, IN_BETWEEN).await > 0 {
        let (pieces, before) = (std::mem::take(&mut batch), size);
        size = pieces.iter().fold(size, |size, piece| piece.end_behind(size));
        let of = Arc::clone(&flight);
        let taken = tokio::task::spawn_blocking(move || {
            let chunking = chunked(chunking, &pieces, &of);
            take(keep, before, pieces, &of).map(|taken| (taken, chunking))
        });
        let Ok(taken) = taken.await else {
            return Err(broken_off("writing"));
        };
        let (kept, overflow);
        ((kept, overflow), chunking) = taken?;
        keep = kept;
        for unkept in overflow {
            match unkept {
                Unkept::Bytes(piece) => push(&flight, piece).await?,
                Unkept::Part(file, from, to) => {
                    push_part(&flight, &file, from, to).await?;
                    flight.part_given(to);
                }
            }
        }
        if let Keep::Nothing(_, file) = &mut keep
            && !flight.has_parts()
        {
            // This frees its room once no reader uses the file.
            *file = None;
        }
    }
    if let Some(chunking) = chunking {
        flight.chunked(chunking);
    }
    let finished = tokio::task::spawn_blocking(move || match keep {
        Keep::Spool(spool) => Body::Spooled(spool.finish()),
        Keep::Nothing(hashing, _) => Body::Unstored(hashing.finish(), size),
    });
    finished.await.map_err(|_| broken_off("hashing"))
}

async fn push(flight: &Flight, piece: Bytes) -> Result<(), Why> {
    flight.push(piece).await.map_err(|broken| broken.reason)
}

/// Gives the bytes of a part from the file.
async fn push_part(flight: &Flight, file: &Arc<File>, from: u64, to: u64) -> Result<(), Why> {
    let mut at = from;
    while at < to {
        let (file, end) = (Arc::clone(file), to.min(at + CHUNK));
        let reading = tokio::task::spawn_blocking(move || read_at(&file, at, end));
        let Ok(read) = reading.await else {
            return Err(broken_off("reading"));
        };
        push(flight, read.map_err(|error| unreadable(&error))?).await?;
        at = end;
    }
    Ok(())
}

fn unreadable(error: &io::Error) -> Why {
    Why::new(Cause::Larder, format!("the spool could not be read: {error}"))
}

/// Takes pieces in, the first of which belongs at `at`. Returns what found no room. Readers are woken once.
fn take(
    mut keep: Keep,
    mut at: u64,
    pieces: Vec<Piece>,
    flight: &Flight,
) -> Result<(Keep, Vec<Unkept>), Why> {
    let (mut filed, mut overflow) = (0, Vec::new());
    for piece in pieces {
        let from = at;
        at = piece.end_behind(from);
        let piece = match piece {
            Piece::Next(bytes) => bytes,
            Piece::Over(start) => {
                flight.part_over(start);
                continue;
            }
            Piece::Ahead { start, at, bytes } => {
                write_ahead(&mut keep, flight, start, at, &bytes);
                continue;
            }
            Piece::Passed(to) => {
                match &mut keep {
                    Keep::Spool(spool) => {
                        spool.pass_to(to).map_err(|error| unreadable(&error))?;
                        flight.passed(to);
                        filed = 0;
                    }
                    Keep::Nothing(hashing, file) => {
                        let Some(file) = file else {
                            let why = "what was fetched ahead was not kept";
                            return Err(Why::new(Cause::Larder, why));
                        };
                        hash_range(hashing, file, from, to).map_err(|error| unreadable(&error))?;
                        overflow.push(Unkept::Part(Arc::clone(file), from, to));
                    }
                }
                continue;
            }
        };
        keep = match keep {
            Keep::Spool(mut spool) => match spool.append(&piece) {
                Ok(()) => {
                    filed += piece.len() as u64;
                    Keep::Spool(spool)
                }
                Err(error) => {
                    say_unkept(flight, &error);
                    let file = flight.end_parts().then(|| spool.reader());
                    let mut hashing = spool.give_up();
                    hashing.update(&piece);
                    overflow.push(Unkept::Bytes(piece));
                    Keep::Nothing(hashing, file)
                }
            },
            Keep::Nothing(mut hashing, file) => {
                hashing.update(&piece);
                overflow.push(Unkept::Bytes(piece));
                Keep::Nothing(hashing, file)
            }
        };
    }
    if filed > 0 {
        flight.grew(filed);
    }
    Ok((keep, overflow))
}

/// Takes the pieces into the digests of the chunks, and compares these. `None` if they cannot be known: bytes came ahead.
fn chunked(chunking: Option<Chunking>, pieces: &[Piece], flight: &Flight) -> Option<Chunking> {
    let mut chunking = chunking?;
    for piece in pieces {
        match piece {
            Piece::Next(bytes) => chunking.update(bytes),
            Piece::Passed(_) => {
                flight.cannot_compare();
                return None;
            }
            Piece::Ahead { .. } | Piece::Over(_) => {}
        }
    }
    flight.compare(&chunking);
    (!chunking.is_too_long()).then_some(chunking)
}

/// Writes bytes of a part. If they find no room, the fill fetches them.
fn write_ahead(keep: &mut Keep, flight: &Flight, start: u64, at: u64, bytes: &Bytes) {
    let Keep::Spool(spool) = keep else {
        flight.part_over(start);
        return;
    };
    if !flight.wants(start) {
        return;
    }
    match spool.write_ahead(at, bytes) {
        Ok(()) => flight.part_grew(start, bytes.len() as u64),
        Err(error) => {
            tracing::debug!(url = %flight.target, %error, "a part is not written ahead of its fill");
            flight.part_over(start);
        }
    }
}

fn say_unkept(flight: &Flight, error: &SpoolError) {
    match error {
        SpoolError::Oversize { .. } => {
            tracing::info!(url = %flight.target, %error, "this body is passed on, and not kept");
        }
        SpoolError::Full(reason) => {
            tracing::warn!(url = %flight.target, reason, "the store is full: this body is not kept");
        }
        SpoolError::Io(error) => {
            tracing::error!(url = %flight.target, %error, "the spool cannot be written: this body is not kept");
        }
    }
}

/// The bytes of a file from `at` to `to`, at most one chunk. Blocking.
pub(super) fn read_at(file: &File, at: u64, to: u64) -> io::Result<Bytes> {
    let mut buffer = Buffer::take();
    let room = buffer.room();
    room.resize(usize::try_from(to - at).unwrap_or(0), 0);
    file.read_exact_at(room, at).map(|()| buffer.into_bytes())
}

pub(super) fn broken_off(what: &str) -> Why {
    Why::new(Cause::Larder, format!("{what} was broken off"))
}
