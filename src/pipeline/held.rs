//! Promise P3 for passes: a body that is bound by a promise is held to it, for whomever it is.
//!
//! A pass has one reader and no spool, so the gap is simply the last bytes that came; they are given when they complete
//! the right body (bound.rs). While it runs, and for a day if it is not completed, its client keeps to that gap in whatever it
//! asks of the target (silence.rs). Another body of the same length, which is what it finds when it asks again, has its gap
//! there by itself.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::bound::Bound;
use crate::digest::{Hashing, Wanted};
use crate::flight::{AT_THE_END, GAP, HELD_WHOLE, own_start};
use crate::reply::{Cut, Line};

/// The most bytes that wait in memory, where the client was given an earlier body of the target whose gap lies far from the
/// end of this one.
const MOST_WAITING: u64 = 4 << 20;

type Judging = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

enum State {
    Arriving(Hashing),
    Judging(Judging),
    Right,
    Wrong,
}

/// A body whose last bytes wait for the judgement.
pub(super) struct Held {
    body: Incoming,
    state: State,
    came: u64,
    /// No byte from here on is given before the judgement.
    gap: u64,
    /// Whether its client keeps to that gap if this body is not completed.
    leaves_a_gap: bool,
    /// Whether the client had no gap to keep to before.
    first: bool,
    waiting: VecDeque<Bytes>,
    waiting_bytes: u64,
    trailers: Option<Frame<Bytes>>,
    line: Option<Line>,
    bound: Arc<Bound>,
}

impl Held {
    pub(super) fn new(
        body: Incoming,
        bound: Arc<Bound>,
        wanted: Wanted,
        line: Option<Line>,
    ) -> Self {
        let silences = &bound.pipeline.silences;
        // From the start: who asks for the end by another request meanwhile has not come to the gap either. Bodies that are
        // held whole leave none.
        let own = match body.size_hint().exact() {
            Some(length) => (length > HELD_WHOLE).then(|| own_start(length)),
            None => Some(AT_THE_END),
        };
        let first = own.is_some_and(|own| silences.remember(bound.task.bare(), bound.client, own));
        let gap = silences.gap(bound.task.bare(), bound.client);
        Self {
            state: State::Arriving(Hashing::new(wanted)),
            came: 0,
            gap: gap.unwrap_or(AT_THE_END),
            leaves_a_gap: own.is_some(),
            first,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            trailers: None,
            body,
            line,
            bound,
        }
    }

    fn given(&self) -> u64 {
        self.came - self.waiting_bytes
    }

    /// The oldest bytes, if enough stay behind. As with flights, small bodies are held whole.
    fn surplus(&mut self) -> Option<Bytes> {
        let first = self.waiting.front()?.len() as u64;
        if self.came <= HELD_WHOLE
            || self.waiting_bytes.saturating_sub(first) < GAP
            || self.given() + first > self.gap
        {
            return None;
        }
        self.waiting_bytes -= first;
        self.waiting.pop_front()
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), String> {
        match frame.into_data() {
            Ok(bytes) => {
                if let State::Arriving(hashing) = &mut self.state {
                    hashing.update(&bytes);
                }
                self.came += bytes.len() as u64;
                self.waiting_bytes += bytes.len() as u64;
                self.waiting.push_back(bytes);
            }
            Err(trailers) => self.trailers = Some(trailers),
        }
        if self.waiting_bytes > MOST_WAITING {
            return Err(format!(
                "a body of {} was not completed for this client within the last day, and this one is so much longer that it \
                 cannot be held back until it is judged; ask without credentials and unknown header fields",
                self.bound.task.bare()
            ));
        }
        Ok(())
    }

    fn wrong(&mut self, why: String) -> Cut {
        self.not_completed();
        self.state = State::Wrong;
        self.waiting.clear();
        if let Some(line) = &self.line {
            line.cut();
        }
        Cut(why)
    }

    /// The gap is noted again: another pass of the same client's may have been right meanwhile, and have it forgotten.
    fn not_completed(&self) {
        if self.leaves_a_gap {
            let silences = &self.bound.pipeline.silences;
            silences.remember(self.bound.task.bare(), self.bound.client, self.gap);
        }
    }

    fn right(&mut self) {
        self.state = State::Right;
        if self.first {
            self.bound.pipeline.silences.forget(self.bound.task.bare(), self.bound.client);
        }
    }

    /// All has come.
    fn ended(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Wrong);
        self.state = match state {
            State::Arriving(hashing) => {
                let digests = hashing.finish();
                let bound = Arc::clone(&self.bound);
                State::Judging(Box::pin(bound.judge(digests, self.came)))
            }
            other @ (State::Judging(_) | State::Right | State::Wrong) => other,
        };
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            match &mut self.state {
                State::Wrong => return Poll::Ready(None),
                State::Right => {
                    let bytes = self.waiting.pop_front().map(Frame::data);
                    let rest = bytes.or_else(|| self.trailers.take());
                    return Poll::Ready(rest.map(Ok));
                }
                State::Judging(judging) => match ready!(judging.as_mut().poll(context)) {
                    Ok(()) => self.right(),
                    Err(why) => return Poll::Ready(Some(Err(self.wrong(why)))),
                },
                State::Arriving(_) => {
                    if let Some(bytes) = self.surplus() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    let came = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                        Some(Ok(frame)) => self.take(frame),
                        Some(Err(error)) => Err(error.to_string()),
                        None => {
                            self.ended();
                            Ok(())
                        }
                    };
                    if let Err(why) = came {
                        return Poll::Ready(Some(Err(self.wrong(why))));
                    }
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        // Whatever waits here has left the inner body and is still to come.
        let mut hint = SizeHint::new();
        let inner = self.body.size_hint();
        hint.set_lower(inner.lower().saturating_add(self.waiting_bytes));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(self.waiting_bytes));
        }
        hint
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A client that leaves may resume by itself.
        if matches!(self.state, State::Arriving(_) | State::Judging(_)) {
            self.not_completed();
        }
    }
}
