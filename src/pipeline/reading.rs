//! Indexes whose claims are being read. A request for a file that such an index may name waits a moment for its claims.
//!
//! A client has the last byte of an index before larder has read the claims, and at once requests the files that the index names.
//! Such a request waits for the reader, but for a bounded time: without the claims the answer only has a lower proof.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Pipeline;
use super::task::Task;
use crate::target::Origin;

/// The longest that a request waits for an index to be read. A distribution's index takes two seconds on one core.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many documents are read at a time: one for each processor, within these bounds.
const PLACES: RangeInclusive<usize> = 2..=8;

/// The origins whose indexes are being read, and when each reading began.
#[derive(Debug)]
pub(super) struct IndexReadings {
    origins: Mutex<HashMap<Origin, Vec<Instant>>>,
    done: Notify,
    places: Semaphore,
}

impl Default for IndexReadings {
    fn default() -> Self {
        let places = std::thread::available_parallelism().map_or(*PLACES.start(), usize::from);
        let places = Semaphore::new(places.clamp(*PLACES.start(), *PLACES.end()));
        Self { origins: Mutex::default(), done: Notify::default(), places }
    }
}

/// Marks an index as being read while this value lives.
#[derive(Debug)]
pub(super) struct Reader {
    reading: Arc<IndexReadings>,
    origin: Origin,
    began: Instant,
}

impl IndexReadings {
    /// Takes a place for reading a document, which may need seconds of processor time and hundreds of megabytes. An attacker who
    /// publishes hostile documents can occupy all places. The limit keeps such documents from occupying the threads that serve
    /// hits, and bounds the memory to that of as many readers as there are places.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so this does not fail.
        self.places.acquire().await.ok()
    }

    /// Waits until no index of `origin` is being read, at most until the youngest reading is `PATIENCE` old. A reading that is
    /// older is not waited for, because it may hang on something that it needs from its origin.
    pub(super) async fn wait(&self, origin: &Origin) {
        let youngest = self.lock().get(origin).and_then(|began| began.iter().max().copied());
        let Some(left) = youngest.map(|began| PATIENCE.saturating_sub(began.elapsed())) else {
            return;
        };
        let over = async {
            loop {
                let done = self.done.notified();
                tokio::pin!(done);
                // Enabled before the check, so that an end between the check and the wait is not missed.
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
    /// Waits for the indexes of the task's origin that are being read. A target that no ecosystem recognises does not wait.
    pub(super) async fn wait_for_readers(&self, task: &Task) {
        if task.known().is_some() {
            self.reading.wait(task.target.origin()).await;
        }
    }

    /// Marks the task's index as being read, if other indexes or files depend on its claims.
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
