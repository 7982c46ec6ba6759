//! An origin's answer to a fill: its header without the connection's fields, and its body under limits.
//!
//! A body has no total time limit, because a large file over a slow line is no fault. It has an idle limit (nothing
//! arrived) and a minimum rate (too little arrived over a minute). Both count only while larder waits for bytes. A body
//! ends cleanly only where HTTP defines it: after `Content-Length` bytes, after the last chunk, or at `END_STREAM`. If
//! only the end of the connection ends it, TLS must have announced that end (`close_notify`; rustls reports its
//! absence). Over plain http a cut looks like the end, so such a body is kept only if a digest vouches for it
//! ([`Answer::until_close`]). For an answer that is not kept, the client gets the end of the connection as the end of
//! the body, announced or not, as it would without larder.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::header::{Entry, HeaderValue, SET_COOKIE, TRAILER, TRANSFER_ENCODING};
use hyper::{Response, Version};
use hyper_util::client::legacy::connect::CaptureConnection;
use tokio::time::Instant;

use super::error::{Fault, OriginError, chain, root};
use super::gather::Gathered;
use super::hop;
use crate::clock::Time;
use crate::config::Upstream;
use crate::entry::Head;
use crate::target::Target;

/// An answer whose body has yet to be read.
#[derive(Debug)]
pub struct Answer {
    /// Without connection-specific fields, `Set-Cookie` and `Alt-Svc`, which must not be stored or shared.
    pub head: Head,
    /// The body.
    pub body: Bodies,
    /// `Content-Length`, if the answer is framed by it.
    pub length: Option<u64>,
    /// The cookies that the origin set, for a client that alone receives the answer. Never part of a stored header.
    pub cookies: Vec<HeaderValue>,
    /// Whether only the end of the connection ends the body, so that a cut looks like the end.
    pub until_close: bool,
    /// The target that answered, after redirects.
    pub answered_by: Target,
    /// Whether any hop was plain http.
    pub plain: bool,
    /// Whether any hop's address was public (or unknown, behind a proxy). Requests that the answer causes are then
    /// [`Reach::from_public`](super::Reach).
    pub public: bool,
    /// When the first hop's request was sent.
    pub requested_at: Time,
}

/// The bytes of an answer, under the idle and minimum-rate limits. Gives `None` only at a clean end of the message.
#[derive(Debug)]
pub struct Bodies {
    /// `None` after the end, clean or not: bytes after the end do not belong to the body.
    incoming: Option<Gathered>,
    /// `Content-Length`, if there is a body.
    announced: Option<u64>,
    pace: Pace,
    /// Whether only the end of the connection ends the body, and whether to accept such an end although TLS did not
    /// announce it.
    until_close: bool,
    takes_any_end: bool,
    /// To poison a connection that went silent: otherwise HTTP/2 would send the next fill over it.
    connection: CaptureConnection,
    shown: Target,
}

impl Bodies {
    /// From now on bytes may arrive as slowly as the client accepts, for event streams and log tails.
    pub fn be_patient(&mut self) {
        self.pace.idle = Duration::MAX;
        self.pace.min_rate = 0;
    }

    /// The first byte may take as long as the client accepts: repository managers send the header at once, and the body
    /// only after they have received all of it.
    pub fn may_begin_late(&mut self) {
        self.pace.begins_late = true;
    }

    /// Sets the idle limit for the bytes from now on.
    pub fn wait_at_most(&mut self, idle: Duration) {
        self.pace.idle = idle;
    }

    /// From now on accepts the end of the connection as the end of a body that nothing else delimits, although TLS did
    /// not announce it. Many servers close without `close_notify`, and clients accept that. Only for bodies that are
    /// not kept, or for which a digest vouches.
    pub fn take_any_end(&mut self) {
        self.takes_any_end = true;
    }

    /// Drops the connection: its remaining bytes are not wanted.
    pub fn hang_up(&mut self) {
        self.incoming = None;
    }

    /// The next bytes. After `None` or an error it stays `None`. Safe to cancel and call again.
    pub async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        loop {
            let incoming = self.incoming.as_mut()?;
            let deadline = self.pace.wait(Instant::now());
            let fault = match tokio::time::timeout_at(deadline, incoming.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => match self.pace.take(data.len(), Instant::now()) {
                        Ok(()) => return Some(Ok(data)),
                        Err(fault) => fault,
                    },
                    // Trailers are ignored: nothing in them may be stored (RFC 9110 §6.5.1).
                    Err(_) => continue,
                },
                Ok(Some(Err(error)))
                    if self.until_close && self.takes_any_end && is_unannounced(&error) =>
                {
                    self.incoming = None;
                    return None;
                }
                Ok(Some(Err(error))) => self.broken(chain(&error)),
                Ok(None) => match self.announced {
                    Some(length) if length != self.pace.taken => {
                        self.broken(format!("{length} were announced"))
                    }
                    _ => {
                        self.incoming = None;
                        return None;
                    }
                },
                Err(_) => Fault::Stalled { after: self.pace.taken, limit: self.pace.idle },
            };
            self.incoming = None;
            if let Some(connection) = &*self.connection.connection_metadata() {
                connection.poison();
            }
            return Some(Err(OriginError::new(&self.shown, fault)));
        }
    }

    fn broken(&self, why: String) -> Fault {
        Fault::Broken { after: self.pace.taken, why: why.into() }
    }
}

/// The parts of a response, before it becomes an [`Answer`].
pub(super) struct Parts {
    pub(super) head: Head,
    pub(super) body: Bodies,
    pub(super) length: Option<u64>,
    pub(super) cookies: Vec<HeaderValue>,
    pub(super) until_close: bool,
}

/// Whether only the end of the connection ends the body of a response (RFC 9112 §6.3).
pub fn ends_with_connection<B: hyper::body::Body>(response: &Response<B>) -> bool {
    response.version() < Version::HTTP_2
        && !response.body().is_end_stream()
        && response.body().size_hint().exact().is_none()
        && !response.headers().contains_key(TRANSFER_ENCODING)
}

/// Whether a connection ended without `close_notify`, and not with another error.
pub fn is_unannounced(error: &hyper::Error) -> bool {
    root::<io::Error>(error).is_some_and(|error| {
        error.kind() == io::ErrorKind::UnexpectedEof && error.to_string().contains("close_notify")
    })
}

impl Parts {
    /// Reads a response to a fill.
    pub(super) fn of(
        response: Response<Gathered>,
        target: &Target,
        head_only: bool,
        limits: &Upstream,
        connection: CaptureConnection,
    ) -> Result<Self, Fault> {
        let until_close = !head_only && ends_with_connection(&response);
        let (parts, incoming) = response.into_parts();
        let mut headers = parts.headers;
        hop::check_framing(&headers)?;
        let length = (!head_only).then(|| incoming.size_hint().exact()).flatten();
        hop::strip_answer(&mut headers);
        headers.remove(TRAILER);
        let cookies = match headers.entry(SET_COOKIE) {
            Entry::Occupied(entry) => entry.remove_entry_mult().1.map(sensitive).collect(),
            Entry::Vacant(_) => Vec::new(),
        };
        Ok(Self {
            head: Head { status: parts.status, headers },
            body: Bodies {
                incoming: Some(incoming),
                announced: length,
                until_close,
                takes_any_end: false,
                pace: Pace::new(limits.idle_timeout, limits.min_rate),
                connection,
                shown: target.clone(),
            },
            length,
            cookies,
            until_close,
        })
    }
}

/// Marks a cookie as sensitive, because it will be a credential: debug output does not show it.
fn sensitive(mut cookie: HeaderValue) -> HeaderValue {
    cookie.set_sensitive(true);
    cookie
}

/// The minimum rate is averaged over this much waiting time, as `upstream.min_rate` documents.
const MEASURED_OVER: Duration = Duration::from_mins(1);

/// Measures the rate of arrival. Counts only the time in which larder waits for bytes, so that a slow local disk does
/// not count against the origin.
#[derive(Debug)]
struct Pace {
    idle: Duration,
    min_rate: u64,
    taken: u64,
    /// Whether the wait for the first byte is exempt.
    begins_late: bool,
    /// When the current wait began.
    since: Option<Instant>,
    /// In the current window: time waited, and bytes received.
    window: (Duration, u64),
}

impl Pace {
    const fn new(idle: Duration, min_rate: u64) -> Self {
        Self {
            idle,
            min_rate,
            taken: 0,
            begins_late: false,
            since: None,
            window: (Duration::ZERO, 0),
        }
    }

    /// Begins a wait, or continues one that was cancelled. Returns its deadline.
    fn wait(&mut self, now: Instant) -> Instant {
        let since = *self.since.get_or_insert(now);
        let idle = if self.taken == 0 && self.begins_late { Duration::MAX } else { self.idle };
        // An idle limit beyond the clock's range becomes thirty years.
        since.checked_add(idle).unwrap_or_else(|| since + Duration::from_hours(24 * 365 * 30))
    }

    /// Ends the wait with `length` received bytes.
    fn take(&mut self, length: usize, now: Instant) -> Result<(), Fault> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        if self.taken == 0 && self.begins_late {
            self.since = None;
        }
        self.taken = self.taken.saturating_add(length);
        let waited =
            self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let (spent, bytes) = &mut self.window;
        *spent = spent.saturating_add(waited);
        *bytes = bytes.saturating_add(length);
        if *spent < MEASURED_OVER {
            return Ok(());
        }
        let enough = self.min_rate.saturating_mul(spent.as_secs());
        if *bytes < enough {
            return Err(Fault::TooSlow { after: self.taken, min_rate: self.min_rate });
        }
        self.window = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives `length` bytes after each second of waiting, `waits` times.
    fn trickle(pace: &mut Pace, waits: u64, length: usize) -> Result<(), Fault> {
        let start = Instant::now();
        for second in 0..waits {
            pace.wait(start + Duration::from_secs(second));
            pace.take(length, start + Duration::from_secs(second + 1))?;
        }
        Ok(())
    }

    #[test]
    fn a_trickle_is_broken_off_after_a_minute() {
        let mut pace = Pace::new(Duration::from_secs(30), 1024);
        assert_eq!(trickle(&mut pace, 59, 1000), Ok(()));
        assert_eq!(
            trickle(&mut pace, 1, 1000),
            Err(Fault::TooSlow { after: 60_000, min_rate: 1024 })
        );
    }

    #[test]
    fn at_the_rate_a_body_may_last_for_ever() {
        let mut pace = Pace::new(Duration::from_secs(30), 1024);
        assert_eq!(trickle(&mut pace, 6000, 1024), Ok(()));
    }

    #[test]
    fn time_in_which_nobody_waits_is_not_the_origins() {
        let mut pace = Pace::new(Duration::from_secs(30), 1024);
        let start = Instant::now();
        for hour in 0..10 {
            let now = start + Duration::from_hours(hour);
            pace.wait(now);
            assert_eq!(pace.take(1, now), Ok(()));
        }
    }

    #[test]
    fn a_wait_that_was_cancelled_goes_on() {
        let mut pace = Pace::new(Duration::from_secs(30), 0);
        let start = Instant::now();
        let deadline = pace.wait(start);
        assert_eq!(pace.wait(start + Duration::from_secs(20)), deadline);
    }
}
