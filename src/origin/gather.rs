//! Coalesces small pieces ("crumbs") of an answer's body.
//!
//! A piece of a body costs about the same whatever its length: a hand-over between tasks, a lock, a system call, a
//! wake-up of each reader. An origin that sends one byte at a time could load larder with megabytes of such work a
//! second, while a one-byte chunk costs the origin nearly nothing. So small pieces are coalesced:
//!
//! - Pieces that are ready go on together, and the first piece after a pause goes at once, so that event streams and
//!   log tails flow.
//! - A piece that follows within [`PAUSE`] waits for the rest of that time, unless [`ENOUGH`] bytes have arrived.
//! - An origin may send [`RATE`] crumbs a second over all its answers. Beyond that larder reads more slowly, so that
//!   they wait in the origin's own buffers.
//!
//! Only pieces that are small are copied.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::target::Origin;

/// Pieces of at least this many bytes are passed on as they are.
const ENOUGH: usize = 16 << 10;

/// How long a small piece waits for the next one, counted from the last piece that was passed on.
const PAUSE: Duration = Duration::from_millis(5);

/// A piece shorter than this many bytes is a crumb.
pub(super) const CRUMB: usize = 256;

/// Crumbs that an origin may send per second. Each costs some microseconds: this many take a tenth of a processor.
const RATE: u32 = 20_000;

/// Crumbs that it may send in a burst beyond that: a page of ten megabytes that is written line by line.
const BURST: u32 = 100_000;

/// After how many crumbs they are added to the account.
pub(super) const BATCH: u32 = 512;

/// Maximum length of one pause.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Maximum number of origins in the book. Beyond it those without a running answer are dropped.
const MOST: usize = 1024;

/// The crumb accounts of all origins.
#[derive(Debug, Default)]
pub(super) struct CrumbAccounts {
    accounts: Mutex<HashMap<Origin, Arc<Account>>>,
}

impl CrumbAccounts {
    /// The account of an origin.
    pub(super) fn of(&self, origin: &Origin) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(origin) {
            return Arc::clone(account);
        }
        if accounts.len() >= MOST {
            accounts.retain(|_, account| Arc::strong_count(account) > 1);
        }
        let account = Arc::new(Account::default());
        if accounts.len() < MOST {
            accounts.insert(origin.clone(), Arc::clone(&account));
        }
        account
    }
}

/// The crumb account of one origin, a leaky bucket.
#[derive(Debug, Default)]
pub(super) struct Account(Mutex<Option<Spent>>);

#[derive(Clone, Copy, Debug)]
struct Spent {
    crumbs: f64,
    at: Instant,
}

impl Account {
    /// Adds crumbs to the account. Returns how long to pause reading from the origin.
    pub(super) fn note(&self, crumbs: u32, now: Instant) -> Duration {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = spent.map_or(0.0, |spent| {
            let since = now.saturating_duration_since(spent.at).as_secs_f64();
            (spent.crumbs - since * f64::from(RATE)).max(0.0)
        });
        let all = before + f64::from(crumbs);
        *spent = Some(Spent { crumbs: all, at: now });
        let over = (all - f64::from(BURST)).max(0.0) / f64::from(RATE);
        Duration::from_secs_f64(over).min(LONGEST_REST)
    }
}

/// A body whose crumbs are coalesced.
pub struct Gathered<B: Body = Incoming> {
    body: B,
    account: Arc<Account>,
    /// Bytes to pass on.
    waiting: BytesMut,
    /// Crumbs since they were last added to the account.
    crumbs: u32,
    /// What arrived after `waiting` and cannot be joined to it: a large piece, trailers, an error, or the end.
    next: Option<Next<B>>,
    /// When the last piece was passed on.
    went: Option<Instant>,
    /// The timer of the current wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether reading pauses until the timer ends.
    rests: bool,
}

type Next<B> = Option<Result<Frame<Bytes>, <B as Body>::Error>>;

impl<B: Body> fmt::Debug for Gathered<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathered").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Gathered<B> {
    pub(super) fn new(body: B, account: Arc<Account>) -> Self {
        Self {
            body,
            account,
            waiting: BytesMut::new(),
            crumbs: 0,
            next: None,
            went: None,
            timer: None,
            rests: false,
        }
    }

    /// Collects the pieces that are ready.
    fn take(&mut self, context: &mut Context<'_>) {
        while self.next.is_none() && self.waiting.len() < ENOUGH && self.crumbs < BATCH {
            let Poll::Ready(came) = Pin::new(&mut self.body).poll_frame(context) else {
                return;
            };
            match came.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if data.len() >= ENOUGH => {
                    self.next = Some(Some(Ok(Frame::data(data))));
                }
                Some(Ok(Ok(data))) => {
                    self.crumbs += u32::from(data.len() < CRUMB);
                    self.waiting.extend_from_slice(&data);
                }
                Some(Ok(Err(trailers))) => self.next = Some(Some(Ok(trailers))),
                Some(Err(error)) => self.next = Some(Some(Err(error))),
                None => self.next = Some(None),
            }
        }
    }

    /// Whether the timer has ended. Starts one of `span` if none is running.
    fn has_passed(&mut self, span: Duration, context: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(span)));
        let passed = timer.as_mut().poll(context).is_ready();
        if passed {
            self.timer = None;
        }
        passed
    }

    fn give(&mut self, now: Instant) -> Frame<Bytes> {
        self.went = Some(now);
        self.timer = None;
        Frame::data(self.waiting.split().freeze())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Gathered<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if this.rests && !this.has_passed(Duration::ZERO, context) {
                return Poll::Pending;
            }
            this.rests = false;
            this.take(context);
            let now = Instant::now();
            if this.crumbs >= BATCH {
                let rest = this.account.note(std::mem::take(&mut this.crumbs), now);
                let given = this.give(now);
                this.rests = !rest.is_zero();
                this.timer = this.rests.then(|| Box::pin(tokio::time::sleep(rest)));
                if given.data_ref().is_some_and(|data| !data.is_empty()) {
                    return Poll::Ready(Some(Ok(given)));
                }
            } else if !this.waiting.is_empty() {
                let due = this.went.map_or(now, |went| went + PAUSE);
                let goes = this.next.is_some() || this.waiting.len() >= ENOUGH || due <= now;
                if goes || this.has_passed(due - now, context) {
                    return Poll::Ready(Some(Ok(this.give(now))));
                }
                return Poll::Pending;
            } else if let Some(next) = this.next.take() {
                this.went = Some(now);
                return Poll::Ready(next);
            } else {
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let ended = match &self.next {
            None => self.body.is_end_stream(),
            Some(next) => next.is_none(),
        };
        ended && self.waiting.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        // Buffered bytes have left the inner body, and the caller has yet to read them.
        let next = match &self.next {
            Some(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        let waiting = (self.waiting.len() + next) as u64;
        let (inner, mut hint) = (self.body.size_hint(), SizeHint::new());
        hint.set_lower(inner.lower().saturating_add(waiting));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(waiting));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    type Sent = Frame<Bytes>;

    /// A body that yields what the test sends.
    fn body()
    -> (mpsc::UnboundedSender<Sent>, Gathered<impl Body<Data = Bytes, Error = Infallible> + Unpin>)
    {
        let (sender, from) = mpsc::unbounded_channel();
        let frames = futures_util::stream::unfold(from, |mut from| async move {
            from.recv().await.map(|frame: Sent| (Ok::<_, Infallible>(frame), from))
        });
        let body = StreamBody::new(Box::pin(frames));
        (sender, Gathered::new(body, Arc::default()))
    }

    fn piece(length: usize) -> Sent {
        Frame::data(Bytes::from(vec![b'x'; length]))
    }

    async fn next<B: Body<Data = Bytes, Error = Infallible> + Unpin>(body: &mut B) -> usize {
        body.frame().await.unwrap().unwrap().into_data().unwrap().len()
    }

    #[tokio::test]
    async fn a_piece_after_a_pause_goes_at_once() {
        let (sender, mut body) = body();
        sender.send(piece(1)).unwrap();
        // The sender is still open, so nothing tells that no more bytes follow.
        assert_eq!(next(&mut body).await, 1);
        sender.send(piece(2)).unwrap();
        assert_eq!(next(&mut body).await, 2);
    }

    #[tokio::test]
    async fn crumbs_that_are_ready_go_together_and_large_pieces_as_they_are() {
        let (sender, mut body) = body();
        let large = Bytes::from(vec![b'y'; ENOUGH]);
        for _ in 0..100 {
            sender.send(piece(1)).unwrap();
        }
        sender.send(Frame::data(large.clone())).unwrap();
        sender.send(piece(3)).unwrap();
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("x-end", "1".parse().unwrap());
        sender.send(Frame::trailers(trailers)).unwrap();
        drop(sender);
        assert_eq!(next(&mut body).await, 100);
        assert!(!body.is_end_stream());
        let as_it_is = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(as_it_is.as_ptr(), large.as_ptr(), "it was copied");
        assert_eq!(next(&mut body).await, 3);
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn many_small_pieces_make_few_large_ones() {
        let (sender, mut body) = body();
        for _ in 0..100_000 {
            sender.send(piece(100)).unwrap();
        }
        drop(sender);
        let (mut frames, mut bytes) = (0, 0);
        while let Some(frame) = body.frame().await {
            frames += 1;
            bytes += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(bytes, 100_000 * 100);
        assert!(frames < 100_000 / 100, "{frames}");
    }

    #[test]
    fn an_origin_may_send_so_many_crumbs_and_then_rests() {
        let (account, now) = (Account::default(), Instant::now());
        assert_eq!(account.note(BURST, now), Duration::ZERO);
        assert_eq!(account.note(RATE / 2, now), Duration::from_millis(500));
        // After the wait it continues at its rate.
        let later = now + Duration::from_secs(1);
        assert_eq!(account.note(RATE / 2, later), Duration::ZERO);
        assert_eq!(account.note(10 * BURST, later), LONGEST_REST);
    }

    #[test]
    fn all_answers_of_one_origin_share_an_account_and_the_memory_is_bounded() {
        let origin = |number: usize| {
            crate::target::Target::from_url(&format!("https://h{number}.example.org/"))
                .unwrap()
                .origin()
                .clone()
        };
        let crumbs = CrumbAccounts::default();
        let one = crumbs.of(&origin(0));
        assert!(Arc::ptr_eq(&one, &crumbs.of(&origin(0))));
        assert!(!Arc::ptr_eq(&one, &crumbs.of(&origin(1))));
        for number in 2..2 * MOST {
            crumbs.of(&origin(number));
        }
        assert!(crumbs.accounts.lock().unwrap().len() <= MOST);
        assert!(Arc::ptr_eq(&one, &crumbs.of(&origin(0))), "what is under way stays");
    }
}
