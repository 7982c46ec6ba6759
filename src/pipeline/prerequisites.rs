//! Prerequisite fetches: documents that larder requests itself. They pass through the same stages as clients' requests.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;

use super::Pipeline;
use super::lookup::{self, Lookup};
use super::principal::Principal;
use super::shelf::Shelves;
use super::task::Task;
use crate::claim::Promise;
use crate::clock::Time;
use crate::ecosystem::facets::Renewal;
use crate::ecosystem::{Ecosystem, Kind, Recognised, Recognition, Shape};
use crate::entry::Entry;
use crate::flight::{End, Permit};
use crate::origin::{Lane, Reach};
use crate::prerequisite::{self, Fetch};
use crate::target::{Partition, Scheme, Target};
use crate::verify::Expectation;

/// How long a request waits for indexes that may name its file. An index of any origin that has named a file of the same host may
/// be among them (promise P4), so this is short; registries answer within a second.
const WAIT_TO_KNOW: Duration = Duration::from_secs(5);

/// How long a complete body waits for the indexes whose claims refuse it.
const WAIT_TO_REFUSE: Duration = Duration::from_mins(1);

/// The principal of prerequisite fetches.
static ANYBODY: Principal = Principal::ANYBODY;

/// Fetches the indexes of one ecosystem.
struct Indexes<'a> {
    pipeline: &'a Arc<Pipeline>,
    ecosystem: &'static dyn Ecosystem,
    reach: Reach,
}

impl Fetch for Indexes<'_> {
    async fn fetch(&self, document: Target, at: &Target) {
        // An origin that has just failed is not waited for again by each file that it may name.
        if self.pipeline.origins.is_failing(document.origin(), Partition::Public, Lane::Metadata) {
            return;
        }
        let from_public = self.reach.from_public || document.origin() != at.origin();
        let reach = Reach { from_public, ..self.reach };
        self.pipeline.document(&document, self.ecosystem, (reach, &ANYBODY), None).await;
    }
}

impl Pipeline {
    /// Fetches the documents that should be read before the task's artifact is judged, if no claim decides about it yet. Returns
    /// how many documents that were.
    pub(super) async fn fetch_prerequisites(self: &Arc<Self>, task: &Task) -> usize {
        let Some(recognition) = &task.recognition else {
            return 0;
        };
        if task.bare().has_token() {
            // The URLs of sibling documents contain the token, and prerequisite fetches are public.
            return 0;
        }
        let secure = task.target.origin().scheme == Scheme::Https;
        if task.artifact().is_none() || !secure && !self.may_be_named(task.bare(), recognition) {
            return 0;
        }
        let decided = || {
            let expected = self.expectation_of(task);
            expected.named.is_some_and(|(_, binds)| binds) || expected.binding().next().is_some()
        };
        if decided() {
            return 0;
        }
        self.fetch_wanted(task, recognition.ecosystem, decided).await
    }

    /// Whether signed indexes are known that may name a file. Over plain HTTP only a signed index can vouch for it.
    pub(super) fn may_be_named(&self, at: &Target, known: &Recognition) -> bool {
        let nothing = Shelves { store: &self.store, since: Time::from_millis(i64::MAX) };
        !self.store.snapshot_directories(at.origin()).is_empty()
            && !known.ecosystem.wants(at, &nothing).is_empty()
    }

    /// Fetches the documents that an index needs to be understood, such as one that says where its files are. Returns how many
    /// that were.
    pub(super) async fn fetch_sidecars(
        self: &Arc<Self>,
        task: &Task,
        ecosystem: &'static dyn Ecosystem,
    ) -> usize {
        if task.bare().origin().scheme != Scheme::Https || task.bare().has_token() {
            return 0;
        }
        self.fetch_wanted(task, ecosystem, || false).await
    }

    async fn fetch_wanted(
        self: &Arc<Self>,
        task: &Task,
        ecosystem: &'static dyn Ecosystem,
        enough: impl Fn() -> bool,
    ) -> usize {
        let since = task.asked.minus(lookup::GRACE);
        // Finding what is wanted reads documents, so it runs off the async threads.
        let wants = || {
            let (store, at) = (Arc::clone(&self.store), task.bare().clone());
            // If an index without authority names the file already, only an index on the file's own origin can add anything. The
            // other index must not prevent that one from being fetched.
            let known = task.artifact().is_some() && !self.expectation_of(task).promises.is_empty();
            let asking = tokio::task::spawn_blocking(move || {
                let mut wanted = ecosystem.wants(&at, &Shelves { store: &store, since });
                wanted.retain(|document| !known || document.origin() == at.origin());
                wanted
            });
            async { asking.await.unwrap_or_default() }
        };
        let indexes = Indexes { pipeline: self, ecosystem, reach: task.reach };
        let fetching = prerequisite::fetch_all(task.bare(), wants, &indexes, enough);
        // On a timeout the fetches continue in the background and serve the next request. `1`, because a document may have
        // arrived by now.
        tokio::time::timeout(WAIT_TO_KNOW, fetching).await.unwrap_or(1)
    }

    /// Asks the indexes again whose claims would refuse a body that was requested at `asked`.
    pub(super) async fn ask_again(
        self: &Arc<Self>,
        recognition: &Recognition,
        (reach, who): (Reach, &Principal),
        expected: &Expectation,
        asked: Time,
    ) {
        let documents: BTreeSet<&Target> =
            expected.refusing().map(|promise| &*promise.index).collect();
        let asking = async {
            for document in documents {
                self.ask_one_again(recognition, (reach, who), document, asked).await;
            }
        };
        if tokio::time::timeout(WAIT_TO_REFUSE, asking).await.is_err() {
            tracing::warn!("an index that refuses a body was not asked again in time");
        }
    }

    async fn ask_one_again(
        self: &Arc<Self>,
        recognition: &Recognition,
        (reach, who): (Reach, &Principal),
        document: &Target,
        asked: Time,
    ) {
        let ecosystem = recognition.ecosystem;
        let own = self.store.seen_by(who.reader()).current_claims(document);
        if who.is_private() && own.is_some() {
            // The principal's own view of the index can be renewed only with its own credential.
            self.document(document, ecosystem, (reach, who), Some(asked)).await;
        }
        let renewal = self
            .store
            .current_claims(document)
            .and_then(|by| ecosystem.snapshots()?.renewal(document, &by.document.digest()));
        match renewal {
            Some(renewal) => {
                self.renew(ecosystem, reach, document, &renewal, asked).await;
            }
            None => self.document(document, ecosystem, (reach, &ANYBODY), Some(asked)).await,
        }
    }

    /// Renews an index that another index names: while that one still names the same version, nothing has changed; otherwise the
    /// new version is fetched.
    async fn renew(
        self: &Arc<Self>,
        ecosystem: &'static dyn Ecosystem,
        reach: Reach,
        index: &Target,
        renewal: &Renewal,
        asked: Time,
    ) {
        let stored = |at: &&Target| !self.store.entries(at.key(Partition::Public)).is_empty();
        for parent in renewal.parents.iter().filter(stored) {
            self.document(parent, ecosystem, (reach, &ANYBODY), Some(asked)).await;
        }
        let before = self.store.current_claims(index).map(|by| by.document);
        let topics = ecosystem.topics(index);
        let promises = self.store.promises(&renewal.named, &topics, self.clock.now());
        let named = promises
            .iter()
            .filter(|promise| promise.is_current() && promise.relation.binds())
            .map(|promise| promise.by.confirmed)
            .max();
        if let (Some(confirmed), Some(document)) = (named, before) {
            self.store.confirm_claims(index, document, confirmed);
            return;
        }
        for version in &renewal.again {
            self.document(version, ecosystem, (reach, &ANYBODY), Some(asked)).await;
            if self.store.current_claims(index).map(|by| by.document) != before {
                return;
            }
        }
    }

    /// Renews an index. Afterwards its claims are read, or it could not be fetched. `since`: a revalidation must have begun after
    /// that; without it, what is fresh for a client is fresh here.
    ///
    /// Boxed and declared `Send`, because a fill may fetch documents, whose fills may fetch documents.
    fn document<'a>(
        self: &'a Arc<Self>,
        document: &'a Target,
        ecosystem: &'static dyn Ecosystem,
        (reach, who): (Reach, &'a Principal),
        since: Option<Time>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.bring(document, ecosystem, (reach, who), since))
    }

    async fn bring(
        self: &Arc<Self>,
        document: &Target,
        ecosystem: &'static dyn Ecosystem,
        (reach, who): (Reach, &Principal),
        since: Option<Time>,
    ) {
        let Some(task) = self.task_for(document, ecosystem, reach) else {
            return;
        };
        let task = task.of(who.clone(), &self.store.secret());
        let stored = match self.look_up(&task, &HeaderMap::new()).await {
            Lookup::Fresh(stored)
                if since.is_none_or(|since| stored.entry.requested_at >= since) =>
            {
                self.read_stored(&task, &stored).await;
                return;
            }
            Lookup::Fresh(stored) | Lookup::Stale(stored) => Some(stored.entry),
            Lookup::Miss => None,
        };
        self.land(task, stored, since).await;
    }

    /// Fetches an index, as the snapshot's root promises it or under its digest; `None` if the target is no index.
    pub(super) fn bring_in<'a>(
        self: &'a Arc<Self>,
        at: &'a Target,
        ecosystem: &'static dyn Ecosystem,
        reach: Reach,
        promised: Option<Promise>,
    ) -> Pin<Box<dyn Future<Output = Option<End>> + Send + 'a>> {
        Box::pin(async move {
            let mut task = self.task_for(at, ecosystem, reach)?;
            task.promised = promised;
            match self.look_up(&task, &HeaderMap::new()).await {
                Lookup::Fresh(stored) => Some(End::Kept(stored.entry)),
                Lookup::Stale(_) | Lookup::Miss => Some(self.land(task, None, None).await),
            }
        })
    }

    /// The task for an index, or a version of one under its digest, that larder requests itself.
    pub(super) fn task_for(
        &self,
        document: &Target,
        ecosystem: &'static dyn Ecosystem,
        reach: Reach,
    ) -> Option<Task> {
        let accept = ecosystem.accept(document.variant());
        let bare = document.clone().with_variant("");
        let found = ecosystem.recognise(&Shape { target: &bare, accept });
        let (Recognised::Certain(resource) | Recognised::Likely(resource)) = found else {
            return None;
        };
        if resource.kind != Kind::Index && ecosystem.indexes_of(&bare).is_empty() {
            return None;
        }
        let recognition = Recognition { ecosystem, resource, certain: true };
        Some(Task::of_resource(&bare, recognition, reach, self.clock.now()))
    }

    /// Joins or starts the flight of something that larder itself requests, and waits for its end.
    ///
    /// Boxed and declared `Send` for the same reason.
    pub(super) fn land(
        self: &Arc<Self>,
        task: Task,
        stored: Option<Arc<Entry>>,
        since: Option<Time>,
    ) -> Pin<Box<dyn Future<Output = End> + Send>> {
        let pipeline = Arc::clone(self);
        Box::pin(async move {
            let flights = &pipeline.flights;
            let now = pipeline.clock.now();
            let permit = flights.join(task.flight(), &task.target, since, now);
            let flight = match &permit {
                Permit::Follow(flight) => Arc::clone(flight),
                Permit::Lead(lead) => Arc::clone(&lead.flight),
            };
            // Registered before the fill begins, so that the fill knows that somebody waits.
            let _waiting = flights.waiting(&flight);
            if let Permit::Lead(lead) = permit {
                let pipeline = Arc::clone(&pipeline);
                tokio::spawn(async move { pipeline.lead(lead, task, stored).await });
            }
            flight.over().await
        })
    }
}
