//! Indexes that are being read: what they name had better be judged a moment later.
//!
//! A client has the last byte of an index before larder has read its claims, and asks at once for what it names. Such a
//! request waits for the reader, but never long: without the claims it is only worth less.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Pipeline;
use super::task::Task;
use crate::target::Origin;

/// The longest that a request waits for an index to be read: a distribution's takes two seconds on one core.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many documents are read at a time: one for each processor, within these.
const PLACES: RangeInclusive<usize> = 2..=8;

/// Which origins' indexes are being read, and since when each is.
#[derive(Debug)]
pub(super) struct Reading {
    origins: Mutex<HashMap<Origin, Vec<Instant>>>,
    done: Notify,
    places: Semaphore,
}

impl Default for Reading {
    fn default() -> Self {
        let places = std::thread::available_parallelism().map_or(*PLACES.start(), usize::from);
        let places = Semaphore::new(places.clamp(*PLACES.start(), *PLACES.end()));
        Self { origins: Mutex::default(), done: Notify::default(), places }
    }
}

/// While it lives, an index is being read.
#[derive(Debug)]
pub(super) struct Reader {
    reading: Arc<Reading>,
    origin: Origin,
    began: Instant,
}

impl Reading {
    /// A place to read a document at, which may take seconds and hundreds of megabytes. Whoever writes hostile ones has all
    /// places in the end, but not the threads that hits are served by, nor the memory of as many readers as there are threads.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.places.acquire().await.ok()
    }

    /// Waits until no index of `origin` is being read. One that has been for long is waited for by nobody who comes now: what
    /// it needs from its origin may hang.
    pub(super) async fn wait(&self, origin: &Origin) {
        let youngest = self.lock().get(origin).and_then(|began| began.iter().max().copied());
        let Some(left) = youngest.map(|began| PATIENCE.saturating_sub(began.elapsed())) else {
            return;
        };
        let over = async {
            loop {
                let done = self.done.notified();
                tokio::pin!(done);
                // Before the look, so that an end between the two is not missed.
                done.as_mut().enable();
                if !self.lock().contains_key(origin) {
                    return;
                }
                done.await;
            }
        };
        let _late = tokio::time::timeout(left, over).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Vec<Instant>>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut origins = self.reading.lock();
        if let Some(readers) = origins.get_mut(&self.origin) {
            if let Some(at) = readers.iter().position(|began| *began == self.began) {
                readers.swap_remove(at);
            }
            if readers.is_empty() {
                origins.remove(&self.origin);
            }
        }
        drop(origins);
        self.reading.done.notify_waiters();
    }
}

impl Pipeline {
    /// Lets the indexes of the task's origin be read first, if they may have to do with it. What nobody knows waits for nothing.
    pub(super) async fn wait_for_readers(&self, task: &Task) {
        if task.known().is_some() {
            self.reading.wait(task.target.origin()).await;
        }
    }

    /// Marks the task's index as being read, if other indexes or files depend on what it says.
    pub(super) fn reading_of(&self, task: &Task) -> Option<Reader> {
        let known = task.recognition.as_ref().or(task.likely.as_ref())?;
        let reads =
            task.artifact().is_none() || !known.ecosystem.indexes_of(task.bare()).is_empty();
        if !reads || known.ecosystem.topics(task.bare()).is_empty() {
            return None;
        }
        let (origin, began) = (task.bare().origin().clone(), Instant::now());
        self.reading.lock().entry(origin.clone()).or_default().push(began);
        Some(Reader { reading: Arc::clone(&self.reading), origin, began })
    }
}
