//! The body of a fill on its way into the spool.
//!
//! Bytes arrive on the async side and go through a short channel to a blocking thread that hashes and writes them, so that
//! network and disk work overlap and nothing blocks the async threads. A transfer that breaks is resumed if the rest provably
//! belongs to the same body (equal length, equal strong validator). Otherwise it has failed, and may be started over while no
//! client was given a byte. Parts that clients caused to be fetched ahead of the fill (`parts.rs`) are skipped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Flight;
use super::writer::{Body, IN_BETWEEN, Piece, broken_off, write};
use crate::clock::{Clock, Time};
use crate::digest::Hashing;
use crate::entry::Head;
use crate::origin::{Answer, Ask, Fault, Gathered, OriginError, Origins, is_unannounced};
use crate::outcome::cause::{Cause, Why};
use crate::store::Spool;

/// How often one fill is resumed. A registry that breaks more often than this is down.
const MAX_RESUMES: u32 = 5;

/// The shortest time that is worth starting a resume for.
const LEAST: Duration = Duration::from_millis(100);

/// How many bytes may be missing for a fill, or a part, to continue without any reader.
pub(super) const MAX_UNREAD: u64 = 256 << 20;

/// How long the fill waits for its own bytes at the place where a part begins, to compare them with the part's.
const SEAM: Duration = Duration::from_secs(1);

/// Whether a promise that binds a body has appeared since the last call.
pub type Binds = Arc<dyn Fn() -> Binding + Send + Sync>;

/// Whether a promise binds a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// None does.
    No,
    /// One may, which cannot be read now. Until it is read, the body is held back as if it did.
    Unread,
    /// One does.
    Yes,
}

/// A body that arrived completely.
#[derive(Debug)]
pub struct Complete {
    /// The body.
    pub body: Body,
    /// Whether the transfer broke and was resumed.
    pub resumed: bool,
    /// When its last byte arrived.
    pub received_at: Time,
}

/// Why a body did not arrive completely.
#[derive(Debug)]
pub enum Trouble {
    /// It may be started over: no client was given a byte.
    Again(StatusCode, Why),
    /// It has failed.
    Failed(StatusCode, Why),
    /// It has failed: the bytes of a part differ from those that the whole body has there.
    Torn(StatusCode, Why),
    /// No client waits for it. This is no fault of the origin.
    Abandoned(Why),
}

/// What taking in a body needs.
pub struct Intake<'a> {
    /// The flight of the body.
    pub flight: &'a Arc<Flight>,
    /// The client for resuming.
    pub origins: &'a Origins,
    /// The request that was answered.
    pub ask: &'a Ask,
    /// The time.
    pub clock: &'a Clock,
    /// `upstream.idle_timeout`: after this time without a byte the body is resumed on another connection, if that is possible.
    /// After twice this time without a byte it is abandoned.
    pub idle: Duration,
    /// Whether its kind is unknown. Such a body may be silent for as long as a client reads it, and is abandoned without readers.
    pub streams: bool,
    /// Called before each piece, of the fill and of parts.
    pub binds: Binds,
}

impl fmt::Debug for Intake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("ask", self.ask).finish_non_exhaustive()
    }
}

/// Takes in the body of `answer`. `spool` is where it goes, or the digests to compute if the store has no room at all.
pub async fn intake(
    with: Intake<'_>,
    answer: &mut Answer,
    spool: Result<Spool, Hashing>,
) -> Result<Complete, Trouble> {
    let (sender, receiver) = mpsc::channel(IN_BETWEEN);
    let flight = Arc::clone(with.flight);
    flight.asks(&with.binds);
    let gives_parts = spool.is_ok() && can_resume(answer);
    flight.take_parts(gives_parts.then(|| sender.downgrade()), &with.binds);
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
    /// Moves the body until its proper end. Returns whether it was resumed.
    async fn pump(&self, answer: &mut Answer, to: &mpsc::Sender<Piece>) -> Result<bool, Trouble> {
        let mut have = 0;
        let mut resumes = 0;
        // Bytes of the fill that have arrived beyond the start of a part.
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
                let own = std::mem::take(&mut beyond);
                let Some((behind, next)) = self.pass_part(answer, have, own, to).await? else {
                    return Ok(resumes > 0);
                };
                (have, beyond, heard) = (behind, next, Instant::now());
                continue;
            }
            let error = match self.next_of_own(answer, have, &mut beyond).await? {
                None if answer.length.is_none_or(|length| length == have) => {
                    return Ok(resumes > 0);
                }
                // The answer to the resume stated its range, and ended elsewhere.
                None => self.ended_elsewhere(have),
                Some(Ok(bytes)) => {
                    have += bytes.len() as u64;
                    heard = Instant::now();
                    if resumes > 0 {
                        answer.body.wait_at_most(self.idle);
                    }
                    self.flight.bind_if(&self.binds).await;
                    let endless = self.streams && answer.length.is_none();
                    if self.flight.readers() == 0 && (endless || is_long(answer, have)) {
                        let reason = "nobody waits for it any more, and much is missing";
                        return Err(Trouble::Abandoned(Why::new(Cause::Abandoned, reason)));
                    }
                    if to.send(Piece::Next(bytes)).await.is_err() {
                        // The writer has ended, and reports the reason.
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

    /// Asks for the rest after the fill broke for the `resumes`-th time. `heard`: when its last byte arrived.
    async fn mend(
        &self,
        answer: &mut Answer,
        have: u64,
        error: &OriginError,
        resumes: u32,
        heard: Instant,
    ) -> Result<(), Trouble> {
        let most = self.idle.saturating_mul(2);
        // The time counts from the last byte, so that resumes without progress do not extend it.
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

    /// Skips the part that begins at `have`: waits for its end, and asks for what follows it. Returns where the fill continues
    /// and the bytes that have arrived for there; `None` if nothing is left to fetch. `beyond`: what the fill itself received of
    /// the part's range.
    async fn pass_part(
        &self,
        answer: &mut Answer,
        have: u64,
        mut beyond: Bytes,
        to: &mpsc::Sender<Piece>,
    ) -> Result<Option<(u64, Bytes)>, Trouble> {
        if beyond.is_empty()
            && let Ok(Some(Ok(own))) = tokio::time::timeout(SEAM, answer.body.next()).await
        {
            beyond = own;
        }
        answer.body.hang_up();
        let behind = self.flight.past_part(have).await;
        if !self.flight.agrees(have, behind, beyond).await {
            return Err(self.torn(have));
        }
        self.flight.bind_if(&self.binds).await;
        let told = behind == have || to.send(Piece::Passed(behind)).await.is_ok();
        if !told || answer.length == Some(behind) {
            // If the writer has ended, it reports the reason.
            return Ok(None);
        }
        if self.flight.begun_at(behind) {
            return Ok(Some((behind, Bytes::new())));
        }
        let next = self.go_on_behind(answer, behind).await?;
        Ok(Some((behind, next)))
    }

    /// Asks for what follows a part. The fill's own connection worked until the fill dropped it here, so the origin gets several
    /// attempts. Every second attempt asks for the whole body, and drops what has arrived already.
    async fn go_on_behind(&self, answer: &mut Answer, behind: u64) -> Result<Bytes, Trouble> {
        let (mut tried, began, most) = (0, Instant::now(), self.idle.saturating_mul(2));
        loop {
            let stopped = "the rest behind a part that clients asked for first";
            let broke = (StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, stopped));
            let went_on = if tried % 2 == 0 {
                self.resume(answer, behind, broke).await.map(|()| Bytes::new())
            } else {
                self.begin_again(answer, behind, broke).await
            };
            match went_on {
                Err(Trouble::Again(..) | Trouble::Failed(..))
                    if tried + 1 < MAX_RESUMES && began.elapsed() < most =>
                {
                    tried += 1;
                    tokio::time::sleep(Duration::from_millis(100) * tried).await;
                }
                went_on => return went_on,
            }
        }
    }

    /// Requests the whole body again, and drops the bytes up to `have` if they are the same as before. Returns the bytes that
    /// arrived with the last of these.
    async fn begin_again(
        &self,
        answer: &mut Answer,
        have: u64,
        (status, broke): (StatusCode, Why),
    ) -> Result<Bytes, Trouble> {
        let failed =
            |what: &str| self.trouble(status, Why::new(broke.cause, format!("{broke}; {what}")));
        let mut ask = self.ask.clone();
        (ask.if_none_match, ask.if_modified_since) = (None, None);
        ask.fresh_connection = true;
        let mut whole = match self.origins.fetch(ask).await {
            Ok(whole) => whole,
            Err(error) => return Err(self.trouble(error.status(), error.why())),
        };
        let validator = answer.head.strong_validator();
        let same = whole.head.status == StatusCode::OK
            && whole.length == answer.length
            && validator.is_some()
            && whole.head.strong_validator() == validator;
        if !same {
            return Err(failed("the origin has another body now"));
        }
        let (mut at, mut next) = (0, Bytes::new());
        while at < have {
            next = match whole.body.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(self.trouble(error.status(), error.why())),
                None => return Err(failed("it ended early")),
            };
            let most = usize::try_from(have - at).unwrap_or(usize::MAX);
            let own = next.split_to(most.min(next.len()));
            let count = own.len() as u64;
            if !self.flight.agrees(at, have, own).await {
                return Err(self.torn(at));
            }
            at += count;
        }
        answer.body = whole.body;
        answer.plain |= whole.plain;
        Ok(next)
    }

    /// The error when bytes of a part differ from those of the whole body, though the origin states that they belong to one body.
    fn torn(&self, at: u64) -> Trouble {
        let target = &self.ask.target;
        let line = format!(
            "{target}: what its origin gives as a range is not what the whole has there (from byte {at} on), under the same validator; \
             ask again, and it is fetched in one piece"
        );
        Trouble::Torn(StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, line))
    }

    /// The next bytes of the fill itself, up to the next part. Bytes beyond that are put into `beyond`.
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

    /// The error when no byte arrived for the longest time. It is final, because starting over would take as long again.
    fn silent(&self, most: Duration, have: u64, tried: u32) -> Trouble {
        let (target, seconds) = (&self.ask.target, most.as_secs_f32());
        let line = format!(
            "{target}: nothing came for {seconds} s after {have} bytes (twice upstream.idle_timeout), and {tried} attempts to resume \
             it got no further; its origin is down, or so slow that the time must be longer"
        );
        Trouble::Failed(StatusCode::GATEWAY_TIMEOUT, Why::new(Cause::Timeout, line))
    }

    /// The next bytes. A transfer that may be silent for long is abandoned once it has no reader.
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

    /// Asks for the rest at the original URL, because the signed URL of a redirect may have expired.
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
        // If any piece of the body came over plain HTTP, the body counts as plain.
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

/// Whether the rest can be requested on another connection while this one may still work: the origin announces ranges, a length
/// and a strong validator. Otherwise there is only this connection.
pub fn can_resume(answer: &Answer) -> bool {
    answer.length.is_some()
        && answer.head.strong_validator().is_some()
        && answer
            .head
            .text(&header::ACCEPT_RANGES)
            .is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"))
}

/// Whether too much is missing for a fill that no client waits for.
fn is_long(answer: &Answer, have: u64) -> bool {
    answer.length.map_or(have, |length| length.saturating_sub(have)) > MAX_UNREAD
}

/// Whether a 206 is the rest of the same body: it begins where the transfer broke, and its length and strong validator are equal.
pub fn continues(rest: &Head, from: u64, length: u64, validator: &str) -> bool {
    rest.status == StatusCode::PARTIAL_CONTENT
        && rest.strong_validator() == Some(validator)
        && rest.text(&header::CONTENT_RANGE)
            == Some(&format!("bytes {from}-{}/{length}", length.saturating_sub(1)))
}

/// Takes in the body of a pass, which is not resumed and ends when its client leaves. `any_end`: the body ends with the
/// connection, even without a TLS close alert.
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
                    // The writer has ended, and reports the reason.
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
