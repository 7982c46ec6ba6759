//! Indexes whose claims are being read. A request for a file that such an index may name waits a moment for its claims.
//!
//! A client has the last byte of an index before larder has read the claims, and at once requests the files that the index names.
//! Such a request waits for the reader, but for a bounded time: without the claims the answer only has a lower proof.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Pipeline;
use super::task::Task;
use crate::claim::Topic;
use crate::ecosystem::Kind;
use crate::target::Origin;

/// The longest that a request waits for an index to be read. A distribution's index takes two seconds on one core.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many documents are read at a time: one for each processor, within these bounds.
const PLACES: RangeInclusive<usize> = 2..=8;

/// How many batches of claims may wait. Each may take some 12 MB of memory and a descriptor, for as long as its document's members
/// are fetched.
const STAGED: usize = 4;

/// The indexes that are being read, by topic and origin: only files and indexes of such a topic may be named by one.
#[derive(Debug)]
pub(super) struct IndexReadings {
    /// When each reading began.
    began: Mutex<HashMap<(Topic, Origin), Vec<Instant>>>,
    done: Notify,
    places: Semaphore,
    /// Places of batches of claims that wait while their document is judged and stored.
    staged: Arc<Semaphore>,
    publishing: Mutex<()>,
}

impl Default for IndexReadings {
    fn default() -> Self {
        let places = std::thread::available_parallelism().map_or(*PLACES.start(), usize::from);
        let places = Semaphore::new(places.clamp(*PLACES.start(), *PLACES.end()));
        Self {
            began: Mutex::default(),
            done: Notify::default(),
            places,
            staged: Arc::new(Semaphore::new(STAGED)),
            publishing: Mutex::default(),
        }
    }
}

/// Marks an index as being read while this value lives.
#[derive(Debug)]
pub(super) struct Reader {
    reading: Arc<IndexReadings>,
    names: Vec<(Topic, Origin)>,
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

    /// A place for claims that wait while their document is judged and stored; `None` if there is none. Then the document is read
    /// again.
    pub(super) fn staging(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.staged).try_acquire_owned().ok()
    }

    /// While it is held, no other document's snapshot is admitted.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no index of one of `names` is being read, at most until the youngest reading is `PATIENCE` old. A reading
    /// that is older is not waited for, because it may hang on something that it needs from its origin.
    async fn wait(&self, names: &[(Topic, Origin)]) {
        let youngest = {
            let began = self.lock();
            names.iter().filter_map(|name| began.get(name)?.iter().max().copied()).max()
        };
        let Some(left) = youngest.map(|began| PATIENCE.saturating_sub(began.elapsed())) else {
            return;
        };
        let over = async {
            loop {
                let done = self.done.notified();
                tokio::pin!(done);
                // Enabled before the check, so that an end between the check and the wait is not missed.
                done.as_mut().enable();
                let is_over = {
                    let began = self.lock();
                    names.iter().all(|name| !began.contains_key(name))
                };
                if is_over {
                    return;
                }
                done.await;
            }
        };
        let _late = tokio::time::timeout(left, over).await;
    }

    /// Marks an index of these names as being read.
    fn begin(self: &Arc<Self>, names: Vec<(Topic, Origin)>) -> Reader {
        let began = Instant::now();
        let mut all = self.lock();
        for name in &names {
            all.entry(name.clone()).or_default().push(began);
        }
        drop(all);
        Reader { reading: Arc::clone(self), names, began }
    }

    /// Whether nothing is being read, so that no request needs to know its topics.
    fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Topic, Origin), Vec<Instant>>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut began = self.reading.lock();
        for name in &self.names {
            if let Some(readings) = began.get_mut(name) {
                if let Some(at) = readings.iter().position(|began| *began == self.began) {
                    readings.swap_remove(at);
                }
                if readings.is_empty() {
                    began.remove(name);
                }
            }
        }
        drop(began);
        self.reading.done.notify_waiters();
    }
}

impl Pipeline {
    /// Waits for the indexes that are being read and may name the task's target. The protocol says what bytes a name by
    /// digest has, whatever an index says of it, and of a target that no ecosystem recognises no index says anything. A stored
    /// artifact that is proven is given at once: a client that has the whole of the new index finds its claims in force.
    pub(super) async fn wait_for_readers(&self, task: &Task) {
        let Some(known) = task.known().filter(|_| !self.reading.is_idle()) else {
            return;
        };
        let topics = match &known.resource.kind {
            Kind::Artifact(_) if task.named_by_protocol().is_some() || self.is_proven(task) => {
                return;
            }
            Kind::Artifact(artifact) => artifact.topics.clone(),
            Kind::Index => known.ecosystem.topics(task.bare()),
        };
        self.reading.wait(&named(topics, task)).await;
    }

    /// Marks the task's index as being read, if other indexes or files depend on its claims.
    pub(super) fn reading_of(&self, task: &Task) -> Option<Reader> {
        let known = task.recognition.as_ref().or(task.likely.as_ref())?;
        let reads =
            task.artifact().is_none() || !known.ecosystem.indexes_of(task.bare()).is_empty();
        let topics = known.ecosystem.topics(task.bare());
        if !reads || topics.is_empty() {
            return None;
        }
        Some(self.reading.begin(named(topics, task)))
    }
}

fn named(topics: Vec<Topic>, task: &Task) -> Vec<(Topic, Origin)> {
    let origin = task.bare().origin();
    topics.into_iter().map(|topic| (topic, origin.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    #[tokio::test]
    async fn nobody_waits_for_an_index_that_cannot_name_what_is_asked_for() {
        let origin = Target::from_url("https://example.org/").unwrap().origin().clone();
        let name = |topic: &str| (Topic::new("apt", topic), origin.clone());
        let reading: Arc<IndexReadings> = Arc::default();
        let reader = reading.begin(vec![name("a")]);
        let waits = async |topic: &str| {
            let names = [name(topic)];
            tokio::time::timeout(Duration::ZERO, reading.wait(&names)).await.is_err()
        };
        assert!(!waits("b").await);
        assert!(waits("a").await, "the control: a file of its own topic does");
        assert!(!reading.is_idle());
        drop(reader);
        assert!(!waits("a").await);
        assert!(reading.is_idle());
    }
}
