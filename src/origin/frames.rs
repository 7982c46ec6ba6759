//! Inspects an origin's HTTP/2 frames, because the HTTP library accepts them as fast as they arrive.
//!
//! - Interim answers (1xx) of a stream are counted, as with HTTP/1.1 (`sound.rs`), because the library keeps them until
//!   the answer is read.
//! - A frame costs about the same whatever its length, and one that waits to be read takes about a hundred bytes of
//!   memory. So small frames count as crumbs (`gather.rs`): an origin that sends too many per second is read more
//!   slowly.
//!
//! Only the nine-byte frame headers are parsed (RFC 9113 §4.1).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep};

use super::Duplex;
use super::error::Fault;
use super::gather::{Account, BATCH, CRUMB};
use crate::limits::INTERIM;
use crate::stream::{Watch, Watched};

/// Maximum number of streams whose interim answers are counted. larder does not see the end of a stream that it reset
/// itself, so old ones pile up. Many more than an origin answers at a time.
const MOST_STREAMS: usize = 4096;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Inspects one HTTP/2 connection to an origin.
pub(super) struct Frames {
    /// The header of the current frame, and how many bytes of it have arrived.
    start: [u8; 9],
    have: usize,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    /// Per stream, the header blocks that did not end the stream.
    heads: HashMap<u32, u32>,
    /// Maximum number of interim answers before an answer.
    most: u32,
    account: Arc<Account>,
    /// Small frames since they were last added to the account.
    small: u32,
    /// Reading pauses until this timer ends.
    rest: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("streams", &self.heads.len()).finish_non_exhaustive()
    }
}

impl Frames {
    /// Wraps `io`. `most`: maximum number of interim answers before an answer; `account`: the origin's count of crumbs.
    pub(super) fn over<I: Duplex>(io: I, most: usize, account: Arc<Account>) -> Watched<I, Self> {
        Watched { io, watch: Self::new(most, account) }
    }

    fn new(most: usize, account: Arc<Account>) -> Self {
        Self {
            start: [0; 9],
            have: 0,
            left: 0,
            heads: HashMap::new(),
            most: u32::try_from(most).unwrap_or(u32::MAX - 1).min(u32::MAX - 1),
            account,
            small: 0,
            rest: None,
        }
    }

    /// Parses received bytes.
    fn take(&mut self, mut came: &[u8]) -> Result<(), Fault> {
        while !came.is_empty() {
            let skipped = self.left.min(came.len());
            self.left -= skipped;
            came = came.get(skipped..).unwrap_or_default();
            let missing = self.start.get_mut(self.have..).unwrap_or_default();
            let count = missing.len().min(came.len());
            let (piece, rest) = came.split_at_checked(count).unwrap_or((came, &[]));
            for (to, from) in missing.iter_mut().zip(piece) {
                *to = *from;
            }
            (self.have, came) = (self.have + count, rest);
            if self.have == self.start.len() {
                self.have = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    /// Handles a complete frame header.
    fn begin(&mut self) -> Result<(), Fault> {
        let [a, b, c, kind, flags, stream @ ..] = self.start;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        self.small += u32::from(kind != DATA || self.left < CRUMB);
        let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if ends || kind == RST_STREAM {
            self.heads.remove(&stream);
        } else if kind == HEADERS {
            if self.heads.len() >= MOST_STREAMS {
                self.heads.clear();
            }
            let heads = self.heads.entry(stream).or_default();
            *heads += 1;
            // The last header block may be the final answer's.
            let interim = *heads - 1;
            INTERIM.note(interim.into());
            if interim > self.most {
                INTERIM.refused();
                return Err(Fault::Interim { count: interim });
            }
        }
        Ok(())
    }
}

impl<I: Duplex> Watch<I> for Frames {
    fn poll_read(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let start = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        let came = buf.filled().get(start..).unwrap_or_default();
        if let Err(fault) = self.take(came) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
        }
        if self.small >= BATCH {
            let rest = self.account.note(std::mem::take(&mut self.small), Instant::now());
            self.rest = (!rest.is_zero()).then(|| Box::pin(sleep(rest)));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn frame(kind: u8, flags: u8, stream: u8, length: usize) -> Vec<u8> {
        let [.., a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0x80, 0, 0, stream];
        frame.resize(9 + length, HEADERS);
        frame
    }

    fn takes(frames: &[Vec<u8>]) -> bool {
        let all = frames.concat();
        let by_step = |step: usize| {
            let mut looks = Frames::new(50, Arc::default());
            all.chunks(step).all(|piece| looks.take(piece).is_ok())
        };
        let taken = by_step(all.len());
        assert!(by_step(1) == taken && by_step(8) == taken);
        taken
    }

    /// Issue 10, attack `disk`, over HTTP/2.
    #[test]
    fn interim_answers_of_a_stream_are_counted() {
        let (interim, trailers) = (frame(HEADERS, 4, 1, 20), frame(HEADERS, 5, 1, 20));
        let body = frame(DATA, 0, 1, 1000);
        let answer = |heads: usize| {
            [vec![interim.clone(); heads], vec![body.clone(), trailers.clone()]].concat()
        };
        assert!(takes(&answer(51)), "the control: fifty, and the answer's own");
        assert!(!takes(&answer(52)));
        // Streams one after the other, and one whose answer is reset.
        assert!(takes(&[answer(51), answer(51)].concat()));
        let broken = [vec![interim.clone(); 51], vec![frame(RST_STREAM, 0, 1, 4)]].concat();
        assert!(takes(&[broken, answer(51)].concat()));
        let other = frame(HEADERS, 4, 3, 20);
        assert!(takes(&[vec![other; 51], answer(51)].concat()));
    }

    /// One-byte frames and empty ones, which flow control does not limit.
    #[tokio::test]
    async fn small_frames_are_crumbs() {
        let rests = |length: usize| async move {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let mut near = Frames::over(near, 50, Arc::default());
            let writing = tokio::spawn(async move {
                let many = frame(DATA, 0, 1, length).repeat(1000);
                // More than an origin may send at once. While it pauses, larder reads nothing.
                for _ in 0..120 {
                    far.write_all(&many).await.unwrap();
                }
            });
            let mut buffer = vec![0; 1 << 16];
            while near.watch.rest.is_none() && near.read(&mut buffer).await.unwrap() > 0 {}
            writing.abort();
            near.watch.rest.is_some()
        };
        assert!(rests(1).await && rests(0).await);
        assert!(!rests(CRUMB).await, "the control");
    }
}
