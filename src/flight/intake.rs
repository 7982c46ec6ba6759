//! The body of a fill on its way into the spool.
//!
//! Bytes come on the async side and go through a short channel to a blocking thread that hashes and writes them, so
//! that network and disk overlap and nothing blocks the async threads. A transfer that breaks is resumed when the rest
//! provably belongs to what came (equal length, equal strong validator); otherwise it has failed, and may be begun again
//! while nobody was given a byte. What clients had fetched ahead of it (`parts.rs`) it passes over.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Flight;
use crate::clock::{Clock, Time};
use crate::digest::{Digests, Hashing};
use crate::entry::Head;
use crate::origin::{Answer, Ask, Fault, Gathered, OriginError, Origins, is_unannounced};
use crate::outcome::cause::{Cause, Why};
use crate::received::Spooled;
use crate::store::{Spool, SpoolError};

/// How often one fill is resumed. Registries that break more often than this are down.
const MAX_RESUMES: u32 = 5;

/// Pieces between network and disk, and as many on their way into the file. Each is at most what one read of a socket
/// gives: 128 KiB.
const IN_BETWEEN: usize = 4;

/// The least time for a resume that is worth beginning.
const LEAST: Duration = Duration::from_millis(100);

/// How many bytes may be missing for a fill to go on without any reader.
const MAX_UNREAD: u64 = 256 << 20;

/// What the bytes are put into.
#[derive(Debug)]
pub enum Body {
    /// Complete in the spool.
    Spooled(Spooled),
    /// The store took none, or not all: given to the readers, and only these digests and the length are left.
    Unstored(Digests, u64),
}

/// A body that came to its end.
#[derive(Debug)]
pub struct Complete {
    /// The body.
    pub body: Body,
    /// Whether the transfer broke and was resumed.
    pub resumed: bool,
    /// When its last byte came.
    pub received_at: Time,
}

/// Why a body did not come to its end.
#[derive(Debug)]
pub enum Trouble {
    /// It may be begun again: nobody was given a byte.
    Again(StatusCode, Why),
    /// It has failed.
    Failed(StatusCode, Why),
    /// Nobody waits for it; the origin did nothing wrong.
    Abandoned(Why),
}

/// What the writer is given.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next bytes.
    Next(Bytes),
    /// Bytes of the part that begins at `start`, which stand at `at`.
    Ahead { start: u64, at: u64, bytes: Bytes },
    /// The part that begins there has come to its end.
    Over(u64),
    /// Up to there the bytes lie in the file already, from parts.
    Passed(u64),
}

impl Piece {
    /// Where the next bytes stand behind it.
    fn end_behind(&self, at: u64) -> u64 {
        match self {
            Self::Next(bytes) => at + bytes.len() as u64,
            Self::Passed(to) => *to,
            Self::Ahead { .. } | Self::Over(_) => at,
        }
    }
}

/// What takes in a body.
pub struct Intake<'a> {
    /// Whose body it is.
    pub flight: &'a Arc<Flight>,
    /// For resuming.
    pub origins: &'a Origins,
    /// The request that was answered.
    pub ask: &'a Ask,
    /// The time.
    pub clock: &'a Clock,
    /// `upstream.idle_timeout`: after so long without a byte the body is resumed on another connection where that can be done,
    /// and after twice as long without one it is given up.
    pub idle: Duration,
    /// Whether nobody knows what it is: it may be silent for as long as somebody reads it, and is nothing without readers.
    pub streams: bool,
    /// Called before each piece: a promise may have come that binds.
    pub binds: &'a (dyn Fn() -> bool + Sync),
}

impl fmt::Debug for Intake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("ask", self.ask).finish_non_exhaustive()
    }
}

/// Takes in the body of `answer`. `spool` is where, or the digests to compute when the store has no room at all.
pub async fn intake(
    with: Intake<'_>,
    answer: &mut Answer,
    spool: Result<Spool, Hashing>,
) -> Result<Complete, Trouble> {
    let (sender, receiver) = mpsc::channel(IN_BETWEEN);
    let flight = Arc::clone(with.flight);
    let gives_parts = spool.is_ok() && can_resume(answer);
    flight.take_parts(gives_parts.then(|| sender.downgrade()));
    let writer = tokio::spawn(write(flight, receiver, spool));
    let pumped = with.pump(answer, &sender).await;
    with.flight.forget_parts();
    drop(sender);
    let written = writer.await.unwrap_or_else(|_| Err(broken_off("the writer")));
    let resumed = pumped?;
    match written {
        Ok(body) => Ok(Complete { body, resumed, received_at: with.clock.now() }),
        Err(reason) => Err(Trouble::Abandoned(reason)),
    }
}

impl Intake<'_> {
    /// Moves the body until its clean end; says whether it was resumed.
    async fn pump(&self, answer: &mut Answer, to: &mpsc::Sender<Piece>) -> Result<bool, Trouble> {
        let mut have = 0;
        let mut resumes = 0;
        // What came and stands where a part begins.
        let mut beyond = Bytes::new();
        let most = self.idle.saturating_mul(2);
        let mut heard = Instant::now();
        if !self.streams && self.ask.patient {
            answer.body.may_begin_late();
        }
        if !self.streams && !can_resume(answer) {
            answer.body.wait_at_most(most);
        }
        loop {
            if self.flight.begun_at(have) {
                beyond.clear();
                let Some(behind) = self.pass_part(answer, have, to).await? else {
                    return Ok(resumes > 0);
                };
                (have, heard) = (behind, Instant::now());
                continue;
            }
            let error = match self.next_of_own(answer, have, &mut beyond).await? {
                None if answer.length.is_none_or(|length| length == have) => {
                    return Ok(resumes > 0);
                }
                // The rest that was asked for says where it lies, and may end elsewhere.
                None => self.ended_elsewhere(have),
                Some(Ok(bytes)) => {
                    have += bytes.len() as u64;
                    heard = Instant::now();
                    if resumes > 0 {
                        answer.body.wait_at_most(self.idle);
                    }
                    if (self.binds)() {
                        self.flight.bind().await;
                    }
                    let endless = self.streams && answer.length.is_none();
                    if self.flight.readers() == 0 && (endless || is_long(answer, have)) {
                        let reason = "nobody waits for it any more, and much is missing";
                        return Err(Trouble::Abandoned(Why::new(Cause::Abandoned, reason)));
                    }
                    if to.send(Piece::Next(bytes)).await.is_err() {
                        // The writer has ended and says why.
                        return Ok(resumes > 0);
                    }
                    continue;
                }
                Some(Err(error)) => error,
            };
            resumes += 1;
            if resumes > MAX_RESUMES || !error.is_temporary() {
                return Err(self.trouble(error.status(), error.why()));
            }
            self.mend(answer, have, &error, resumes, heard).await?;
        }
    }

    /// Asks for the rest after the fill broke for the time number `resumes`; `heard`: when its last byte came.
    async fn mend(
        &self,
        answer: &mut Answer,
        have: u64,
        error: &OriginError,
        resumes: u32,
        heard: Instant,
    ) -> Result<(), Trouble> {
        let most = self.idle.saturating_mul(2);
        // Nothing is left of the time when the last resume brought nothing, however often it was tried.
        let left = most.saturating_sub(heard.elapsed());
        if error.is_silence() && left.is_zero() {
            return Err(self.silent(most, have, resumes - 1));
        }
        tracing::debug!(target = %self.ask.target, have, %error, "resuming");
        tokio::time::sleep((Duration::from_millis(250) * resumes).min(left)).await;
        let resuming = tokio::time::timeout(
            left.max(LEAST),
            self.resume(answer, have, (error.status(), error.why())),
        );
        match resuming.await {
            Ok(rest) => rest?,
            Err(_) => return Err(self.silent(most, have, resumes)),
        }
        answer.body.wait_at_most(most.saturating_sub(heard.elapsed()).max(LEAST));
        Ok(())
    }

    fn ended_elsewhere(&self, have: u64) -> OriginError {
        let why = "the rest that was asked for has another length than it says".into();
        OriginError::new(&self.ask.target, Fault::Broken { after: have, why })
    }

    /// Passes the part that begins at `have`: waits for its end, and asks for what is behind it. Where the fill goes on; `None` when
    /// nothing is left to fetch.
    async fn pass_part(
        &self,
        answer: &mut Answer,
        have: u64,
        to: &mpsc::Sender<Piece>,
    ) -> Result<Option<u64>, Trouble> {
        answer.body.hang_up();
        let behind = self.flight.past_part(have).await;
        let told = behind == have || to.send(Piece::Passed(behind)).await.is_ok();
        if !told || answer.length == Some(behind) {
            // Where the writer has ended, it says why.
            return Ok(None);
        }
        if !self.flight.begun_at(behind) {
            let stopped =
                Why::new(Cause::Broken, "the rest behind a part that clients asked for first");
            self.resume(answer, behind, (StatusCode::BAD_GATEWAY, stopped)).await?;
        }
        Ok(Some(behind))
    }

    /// The next bytes that are the fill's own: those before the next part. What came beyond them waits in `beyond`.
    async fn next_of_own(
        &self,
        answer: &mut Answer,
        have: u64,
        beyond: &mut Bytes,
    ) -> Result<Option<Result<Bytes, OriginError>>, Trouble> {
        let next = if beyond.is_empty() {
            self.next(answer, have).await?
        } else {
            Some(Ok(std::mem::take(beyond)))
        };
        let own = |mut bytes| {
            let own = self.flight.claim(have, &mut bytes);
            *beyond = bytes;
            own
        };
        Ok(next.map(|next| next.map(own)))
    }

    /// Nothing came for the longest time. Begun again it would take as long again.
    fn silent(&self, most: Duration, have: u64, tried: u32) -> Trouble {
        let (target, seconds) = (&self.ask.target, most.as_secs_f32());
        let line = format!(
            "{target}: nothing came for {seconds} s after {have} bytes (twice upstream.idle_timeout), and {tried} attempts to resume \
             it got no further; its origin is down, or so slow that the time must be longer"
        );
        Trouble::Failed(StatusCode::GATEWAY_TIMEOUT, Why::new(Cause::Timeout, line))
    }

    /// The next bytes. What may be silent for long, and nobody reads any more, is given up.
    async fn next(
        &self,
        answer: &mut Answer,
        have: u64,
    ) -> Result<Option<Result<Bytes, OriginError>>, Trouble> {
        if !self.streams && have > 0 {
            return Ok(answer.body.next().await);
        }
        loop {
            let deserted = async {
                self.flight.deserted().await;
                tokio::time::sleep(self.idle).await;
            };
            tokio::select! {
                next = answer.body.next() => return Ok(next),
                () = deserted => {
                    if self.flight.readers() == 0 {
                        let reason = "nobody waits for it any more";
                        return Err(Trouble::Abandoned(Why::new(Cause::Abandoned, reason)));
                    }
                }
            }
        }
    }

    /// Asks for the rest, from the URL itself (a signed URL of a redirect may have expired).
    async fn resume(
        &self,
        answer: &mut Answer,
        have: u64,
        (status, broke): (StatusCode, Why),
    ) -> Result<(), Trouble> {
        let validator = answer.head.strong_validator().map(str::to_owned);
        let (Some(validator), Some(length)) = (validator, answer.length) else {
            return Err(self.trouble(status, broke));
        };
        let mut ask = self.ask.clone();
        ask.range = Some((have, None));
        ask.if_range = Some(validator.clone());
        ask.if_none_match = None;
        ask.if_modified_since = None;
        ask.fresh_connection = true;
        let rest = match self.origins.fetch(ask).await {
            Ok(rest) => rest,
            Err(error) => return Err(self.trouble(error.status(), error.why())),
        };
        if !continues(&rest.head, have, length, &validator) {
            let line = format!("{broke}; the origin does not continue where it broke off");
            return Err(self.trouble(status, Why::new(broke.cause, line)));
        }
        answer.body = rest.body;
        // A chain is worth its weakest hop, wherever in the body that lay.
        answer.plain |= rest.plain;
        Ok(())
    }

    fn trouble(&self, status: StatusCode, reason: Why) -> Trouble {
        if self.flight.nothing_given() {
            Trouble::Again(status, reason)
        } else {
            Trouble::Failed(status, reason)
        }
    }
}

/// Whether the rest can be asked for on another connection while this one may still be alive: its origin says that it gives
/// parts, and of what. Else the connection at hand is all there is.
pub fn can_resume(answer: &Answer) -> bool {
    answer.length.is_some()
        && answer.head.strong_validator().is_some()
        && answer
            .head
            .text(&header::ACCEPT_RANGES)
            .is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"))
}

/// Whether too much is missing for a fill that nobody waits for.
fn is_long(answer: &Answer, have: u64) -> bool {
    answer.length.map_or(have, |length| length.saturating_sub(have)) > MAX_UNREAD
}

/// Whether a 206 is the rest of the same body: it begins where the other broke off, and length and strong validator are
/// equal.
pub fn continues(rest: &Head, from: u64, length: u64, validator: &str) -> bool {
    rest.status == StatusCode::PARTIAL_CONTENT
        && rest.strong_validator() == Some(validator)
        && rest.text(&header::CONTENT_RANGE)
            == Some(&format!("bytes {from}-{}/{length}", length.saturating_sub(1)))
}

/// Takes in the body of a pass, which nobody resumes and which ends when its client leaves. `any_end`: only the end of the
/// connection ends it, however that comes.
pub async fn take_in(
    flight: &Arc<Flight>,
    mut from: Gathered,
    any_end: bool,
    spool: Result<Spool, Hashing>,
) -> Result<Body, Why> {
    let (sender, receiver) = mpsc::channel(IN_BETWEEN);
    let writer = tokio::spawn(write(Arc::clone(flight), receiver, spool));
    loop {
        let frame = tokio::select! {
            frame = from.frame() => frame,
            () = flight.deserted() => return Err(Why::new(Cause::Abandoned, "the client left")),
        };
        match frame {
            None => break,
            Some(Ok(frame)) => {
                let Ok(bytes) = frame.into_data() else { continue };
                if sender.send(Piece::Next(bytes)).await.is_err() {
                    // The writer has ended and says why.
                    break;
                }
            }
            Some(Err(error)) if any_end && is_unannounced(&error) => break,
            Some(Err(error)) => {
                return Err(Why::new(Cause::Broken, format!("the transfer broke off: {error}")));
            }
        }
    }
    drop(sender);
    writer.await.unwrap_or_else(|_| Err(broken_off("the writer")))
}

fn broken_off(what: &str) -> Why {
    Why::new(Cause::Larder, format!("{what} was broken off"))
}

/// What the pieces are put into.
enum Keep {
    /// A file in the spool.
    Spool(Spool),
    /// There was no room from the start, or there is no more: hashed, and given to those who read.
    Nothing(Hashing),
}

/// The other half: hashes and writes, until the channel closes. Each batch is one short piece of blocking work, so that a
/// slow origin holds no thread. What the store does not take goes through the flight's window, and nothing is kept.
async fn write(
    flight: Arc<Flight>,
    mut from: mpsc::Receiver<Piece>,
    spool: Result<Spool, Hashing>,
) -> Result<Body, Why> {
    let mut keep = match spool {
        Ok(spool) => Keep::Spool(spool),
        Err(hashing) => Keep::Nothing(hashing),
    };
    let mut size = 0;
    let mut batch = Vec::with_capacity(IN_BETWEEN);
    while from.recv_many(&mut batch, IN_BETWEEN).await > 0 {
        size = batch.iter().fold(size, |size, piece| piece.end_behind(size));
        let pieces = std::mem::take(&mut batch);
        let of = Arc::clone(&flight);
        let taken = tokio::task::spawn_blocking(move || take(keep, pieces, &of));
        let Ok(taken) = taken.await else {
            return Err(broken_off("writing"));
        };
        let (kept, overflow) = taken?;
        keep = kept;
        for piece in overflow {
            flight.push(piece).await.map_err(|broken| broken.reason)?;
        }
    }
    let finished = tokio::task::spawn_blocking(move || match keep {
        Keep::Spool(spool) => Body::Spooled(spool.finish()),
        Keep::Nothing(hashing) => Body::Unstored(hashing.finish(), size),
    });
    finished.await.map_err(|_| broken_off("hashing"))
}

/// Takes pieces in; gives back those that found no room. Readers are woken once.
fn take(mut keep: Keep, pieces: Vec<Piece>, flight: &Flight) -> Result<(Keep, Vec<Bytes>), Why> {
    let (mut filed, mut overflow) = (0, Vec::new());
    for piece in pieces {
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
                let Keep::Spool(spool) = &mut keep else {
                    let why = "the store has no room for what was fetched ahead";
                    return Err(Why::new(Cause::Larder, why));
                };
                spool.pass_to(to).map_err(|error| {
                    Why::new(Cause::Larder, format!("the spool could not be read: {error}"))
                })?;
                flight.passed(to);
                filed = 0;
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
                    let mut hashing = spool.give_up();
                    hashing.update(&piece);
                    overflow.push(piece);
                    Keep::Nothing(hashing)
                }
            },
            Keep::Nothing(mut hashing) => {
                hashing.update(&piece);
                overflow.push(piece);
                Keep::Nothing(hashing)
            }
        };
    }
    if filed > 0 {
        flight.grew(filed);
    }
    Ok((keep, overflow))
}

/// Writes bytes of a part. What finds no room there is the fill's to fetch.
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
