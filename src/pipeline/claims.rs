//! Reading the claims of indexes, off the async threads.

use std::io::Read;
use std::sync::Arc;

use super::Pipeline;
use super::editions::{self, Held};
use super::shelf::Shelves;
use super::task::Task;
use crate::clock::Time;
use crate::ecosystem::{Document, Malformed, Recognition};
use crate::entry::Entry;
use crate::outcome::metrics::Alarm;
use crate::proof::Rank;
use crate::target::{Scheme, Target};

impl Pipeline {
    /// Reads the claims of an index, or finds that they are read. An index that cannot be read makes none; the client has it
    /// all the same, and does its own check. `known`: the same document again would say what it said.
    pub(super) async fn read_claims(
        self: &Arc<Self>,
        recognition: &Recognition,
        at: &Target,
        entry: &Arc<Entry>,
        base: &Target,
        known: bool,
    ) {
        let pipeline = Arc::clone(self);
        let (recognition, at, base) = (recognition.clone(), at.clone(), base.clone());
        let entry = Arc::clone(entry);
        let name = recognition.ecosystem.name();
        let reading = tokio::task::spawn_blocking(move || {
            pipeline.read(&recognition, &at, &entry, &base, known);
        });
        if reading.await.is_err() {
            tracing::error!(index = name, "reading an index was broken off");
        }
    }

    /// A stored body that is an index under its own digest may have come for another archive, or before the index that
    /// names it: its claims are read when it is first given here.
    pub(super) async fn read_stored(self: &Arc<Self>, task: &Task, entry: &Arc<Entry>) {
        let Some(known) = &task.recognition else {
            return;
        };
        if task.artifact().is_none() {
            return;
        }
        let Some(index) = known.ecosystem.index_of(task.bare()) else {
            return;
        };
        let proven = self.proven(known, task.bare(), entry);
        let current = self.store.current_claims(&index);
        let read = current.is_some_and(|by| by.document == entry.blob && by.rank >= proven);
        if proven == Rank::None || read {
            return;
        }
        let _reading = self.reading_of(task);
        self.read_claims(known, task.bare(), entry, task.bare(), false).await;
    }

    fn read(
        &self,
        recognition: &Recognition,
        at: &Target,
        entry: &Arc<Entry>,
        base: &Target,
        known: bool,
    ) {
        let (store, ecosystem) = (&self.store, recognition.ecosystem);
        let other = ecosystem.index_of(at);
        let is_version = other.is_some();
        let index =
            other.unwrap_or_else(|| at.clone()).with_variant(recognition.resource.variant.name);
        let proven = self.proven(recognition, at, entry);
        // What was read when less was proven of it is read again.
        let as_good = |rank: Rank| proven != Rank::Signed || rank == Rank::Signed;
        let current = store.current_claims(&index);
        let read = known
            && current.is_some_and(|by| by.document == entry.blob && as_good(by.rank))
            && store.confirm_claims(&index, entry.blob, entry.requested_at);
        let Some(blob) = store.blob(entry.blob).filter(|_| !read) else {
            return;
        };
        let open = || blob.open().map(|reader| -> Box<dyn Read> { reader });
        let now = self.clock.now();
        let document = Document {
            at,
            base,
            head: &entry.head,
            proven,
            now,
            open: &open,
            companions: &Shelves { store, since: Time::from_millis(i64::MIN) },
        };
        let read = store.begin_claims(&index, entry.blob).map_err(Malformed::from).and_then(
            |mut batch| {
                let standing = ecosystem.claims(&document, &self.keys, &mut batch)?;
                if let Some(edition) = batch.said() {
                    if let Err(held) = editions::admit(store, at, &standing, edition, now) {
                        self.say(at, &held.to_string());
                        self.mark_expired(entry, &held);
                        return Ok(());
                    }
                    editions::remember(store, at, &standing, edition);
                }
                // One version of many that names nothing leaves what another said; and nobody's word is none.
                let plain = index.origin().scheme == Scheme::Http;
                if standing.rank == Rank::None && (is_version || plain) {
                    return Ok(());
                }
                batch.publish(&standing, entry.requested_at)?;
                Ok(())
            },
        );
        if let Err(error) = read {
            tracing::warn!(url = %at, %error, "this index makes no claims");
            if !matches!(error, Malformed::Forged(_)) {
                // What it said before still excuses late bytes, and decides no more.
                store.retract_claims(&index, now);
            }
            self.metrics.alarm(Alarm::Malformed);
            let text = format!("makes no claims: {error}");
            store.note_rejection(at, &text, now);
        }
    }

    /// What is proven of an index's own bytes. A digest in its URL says nothing of who chose it: that says the index that
    /// names it.
    fn proven(&self, recognition: &Recognition, at: &Target, entry: &Entry) -> Rank {
        if entry.proof.rank != Rank::SelfCertified {
            return entry.proof.rank;
        }
        let topics = recognition.ecosystem.topics(at);
        let promises = self.store.promises(at, &topics, self.clock.now());
        let expected = crate::verify::Expectation { named: None, promises, otherwise: Rank::None };
        expected.vouched(&entry.digests, entry.size)
    }

    /// An index past its `Valid-Until` is served as what it is.
    fn mark_expired(&self, entry: &Arc<Entry>, held: &Held) {
        if !matches!(held, Held::Expired(_)) {
            return;
        }
        let mut expired = Entry::clone(entry);
        expired.proof.stale = true;
        if let Err(error) = self.store.update(expired) {
            tracing::warn!(%error, "a proof could not be written down");
        }
    }
}
