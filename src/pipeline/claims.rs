//! Reads the claims of indexes, off the async threads.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::Pipeline;
use super::lookup::Stored;
use super::shelf::Shelves;
use super::snapshot_order::{self, NotCounted};
use super::task::Task;
use crate::claim::{IndexVersion, Promise, SignedBy, Standing};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::{Document, Ecosystem, Malformed, Recognition};
use crate::entry::Entry;
use crate::outcome::metrics::Alarm;
use crate::proof::{Proof, Rank};
use crate::store::{ClaimBatch, Notes, may_pass};
use crate::target::{Partition, Root, Scheme, Target};
use crate::verify::Expectation;

/// The pauses before an index that could not be read, for lack of file descriptors for example, is read again. The reading task
/// waits that long; after the last attempt the index is read when it is next requested.
const READ_AGAIN: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1500)];

/// A stored index whose claims are to be read.
#[derive(Clone)]
pub(super) struct ClaimReading {
    pub(super) recognition: Recognition,
    pub(super) at: Target,
    pub(super) entry: Arc<Entry>,
    /// The URL that its relative URLs start from.
    pub(super) base: Target,
    /// The same document would make the same claims as before.
    pub(super) known: bool,
    /// For whom the claims hold.
    pub(super) reader: Partition,
}

/// The claims of a document that was read before it is kept, and that says what snapshot it is.
#[derive(Debug)]
pub(super) struct StagedClaims {
    pub(super) batch: ClaimBatch,
    pub(super) standing: Standing,
    /// How often the keyring had been replaced when it was read.
    pub(super) keys: u64,
    /// Its place among the batches that wait.
    pub(super) _place: OwnedSemaphorePermit,
}

impl ClaimReading {
    /// The reading of the task's index, which is stored as `entry`.
    pub(super) fn of(recognition: &Recognition, task: &Task, entry: &Arc<Entry>) -> Self {
        Self {
            recognition: recognition.clone(),
            at: task.bare().clone(),
            entry: Arc::clone(entry),
            base: task.bare().clone(),
            known: false,
            reader: task.principal.reader(),
        }
    }

    /// The same for an index whose answer did not come just now.
    fn again(recognition: &Recognition, task: &Task, entry: &Arc<Entry>) -> Self {
        let answered = entry.answered_by.as_deref().and_then(Target::from_url);
        let base = answered.unwrap_or_else(|| task.bare().clone());
        Self { base, ..Self::of(recognition, task, entry) }
    }
}

impl Pipeline {
    /// Reads the claims of an index, or finds that they have been read. An index that cannot be parsed makes no claims; the
    /// client is given it all the same and does its own check. `staged`: its claims, if they were read before it was stored.
    pub(super) async fn read_claims(
        self: &Arc<Self>,
        reading: ClaimReading,
        mut staged: Option<StagedClaims>,
    ) {
        let (at, reader) = (reading.at.clone(), reading.reader);
        let _place = self.reading.place().await;
        let mut pauses = READ_AGAIN.into_iter();
        loop {
            let (pipeline, reading, staged) = (Arc::clone(self), reading.clone(), staged.take());
            let reading = tokio::task::spawn_blocking(move || pipeline.read(&reading, staged));
            let error = match reading.await {
                Ok(Ok(())) => {
                    self.memory.note_unread(&at, reader, false);
                    return;
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    tracing::error!(url = %at, "reading an index was broken off");
                    return;
                }
            };
            // The index makes claims, but they cannot be read now; until then the version before it is in force.
            self.memory.note_unread(&at, reader, true);
            tracing::warn!(url = %at, %error, "an index cannot be read now; it is tried again");
            match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return,
            }
        }
    }

    /// Reads the claims of a stored index if that is needed when it is given. A body stored under its digest may have come for
    /// another archive, or before the index that names it. An index under its own name is read again when its proof has risen.
    pub(super) async fn read_stored(self: &Arc<Self>, task: &Task, stored: &Stored) {
        let (entry, reader) = (&stored.entry, task.principal.reader());
        let Some(known) = &task.recognition else {
            return;
        };
        if self.memory.is_unread(task.bare(), reader) {
            let _reading = self.reading_of(task);
            self.read_claims(ClaimReading::of(known, task, entry), None).await;
            return;
        }
        let is_version = !known.ecosystem.indexes_of(task.bare()).is_empty();
        if task.artifact().is_some() && !is_version {
            return;
        }
        if self.read_if_unclaimed(task, stored).await {
            return;
        }
        // The index's signature became verifiable since it was kept, or another index names it today.
        let risen = task.artifact().is_none() && stored.proof.rank > entry.proof.rank;
        if !risen && !self.is_member(known, task.bare(), reader) {
            return;
        }
        let proven =
            if risen { stored.proof } else { self.proven(known, task.bare(), entry, reader) };
        let seen = self.store.seen_by(reader);
        let read = indexes(known, task.bare()).into_iter().any(|index| {
            let current = seen.current_claims(&index);
            current.is_some_and(|by| {
                by.document == entry.blob
                    && by.rank >= proven.rank
                    && by.expired_key == proven.expired_key
            })
        });
        if proven.rank == Rank::None || read {
            return;
        }
        let _reading = self.reading_of(task);
        self.read_claims(ClaimReading::of(known, task, entry), None).await;
    }

    /// Reads an index that may be stored without its claims: larder was stopped after it had stored the index, and before it had
    /// published the claims (promise P8). Returns whether it was read. An index that was read since the start has its claims, or
    /// makes none.
    pub(super) async fn read_if_unclaimed(self: &Arc<Self>, task: &Task, stored: &Stored) -> bool {
        let (entry, reader, keys) = (&stored.entry, task.principal.reader(), self.keys.changes());
        // Versions of an index are members of a snapshot, whose root decides what is read.
        let is_own = |known: &&Recognition| {
            task.is_index() && known.ecosystem.indexes_of(task.bare()).is_empty()
        };
        let Some(known) = task.recognition.as_ref().filter(is_own) else {
            return false;
        };
        let seen = self.store.seen_by(reader);
        // The claims of a newer document stay: this entry is then the one before.
        let is_behind =
            |by: Arc<IndexVersion>| by.document != entry.blob && by.confirmed <= entry.requested_at;
        let lacks = indexes(known, task.bare()).iter().all(|index| {
            !self.memory.was_read_with(index, reader, keys)
                && seen.current_claims(index).is_none_or(is_behind)
        });
        if lacks {
            let _reading = self.reading_of(task);
            self.read_claims(ClaimReading::again(known, task, entry), None).await;
        }
        lacks
    }

    /// Reads a document again that its origin confirmed, if the keyring changed since it was read: its claims may differ with
    /// other keys. Returns the entry as it is afterwards.
    pub(super) async fn read_with_new_keys(
        self: &Arc<Self>,
        task: &Task,
        entry: Arc<Entry>,
    ) -> Arc<Entry> {
        let Some(known) = task.recognition.as_ref().filter(|_| task.is_index()) else {
            return entry;
        };
        let depends = known.ecosystem.depends_on_keys(task.bare());
        let reader = task.principal.reader();
        if !depends || self.memory.was_read_with(&task.target, reader, self.keys.changes()) {
            return entry;
        }
        self.read_claims(ClaimReading::again(known, task, &entry), None).await;
        self.as_stored(&entry).unwrap_or(entry)
    }

    fn read(&self, reading: &ClaimReading, staged: Option<StagedClaims>) -> io::Result<()> {
        let ClaimReading { recognition, at, known, reader, .. } = reading;
        let reader = *reader;
        if at.has_token() {
            // A set of claims names the URL of its index on disk, so that the index can be fetched again. A token must not get
            // there.
            return Ok(());
        }
        let changes = self.keys.changes();
        // Its proof may have been lowered since.
        let Some(entry) = &self.as_stored(&reading.entry) else {
            return Ok(());
        };
        let reading = &ClaimReading { entry: Arc::clone(entry), ..reading.clone() };
        let (ecosystem, indexes) = (recognition.ecosystem, indexes(recognition, at));
        let proven = self.proven(recognition, at, entry, reader);
        if proven.rank == Rank::None && self.is_member(recognition, at, reader) {
            // Not the version that the current Release names; skip it.
            return Ok(());
        }
        let read = *known && self.confirm_reading(recognition, at, &indexes, entry, proven, reader);
        for index in &indexes {
            self.memory.note_reading(index, reader, changes);
        }
        if read {
            return Ok(());
        }
        // What vouches for it now may be worth more than its own signature, and other keys may be in force.
        let staged = staged.filter(|staged| {
            staged.keys == changes && staged.standing.rank >= proven.rank && *known
        });
        if let Some(StagedClaims { batch, standing, .. }) = staged {
            return self.publish(ecosystem, at, batch, &standing, entry);
        }
        self.read_document(reading, indexes, proven)
    }

    /// Reads a stored document, which is a version of one of `indexes`.
    fn read_document(
        &self,
        reading: &ClaimReading,
        indexes: Vec<Target>,
        proven: Proof,
    ) -> io::Result<()> {
        let ClaimReading { recognition, at, entry, base, reader, .. } = reading;
        let (store, ecosystem) = (&self.store, recognition.ecosystem);
        let Some(blob) = store.open_blob(entry.blob)? else {
            return Ok(());
        };
        tracing::debug!(url = %at, "reading a stored index");
        let seen = store.seen_by(*reader);
        let open = || blob.open().map(|reader| -> Box<dyn Read> { reader });
        let now = self.clock.now();
        let document = Document {
            at,
            base,
            head: &entry.head,
            proven: proven.rank,
            now,
            open: &open,
            shelf: &Shelves { store, since: Time::from_millis(i64::MIN) },
        };
        let read = ecosystem.which(&document, indexes).and_then(|index| {
            let Some(index) = index else {
                return Ok(());
            };
            let batch = self.batch(ecosystem, &index, entry.blob, *reader);
            let read = batch.map_err(Malformed::from).and_then(|mut batch| {
                batch.by_expired_key(proven.expired_key);
                self.take_claims(ecosystem, &document, batch, entry)
            });
            let stands = |error: &Malformed| match error {
                Malformed::Forged(_) => true,
                Malformed::Unreadable(error) => may_pass(error),
                Malformed::Shape { .. } | Malformed::Limit { .. } => false,
            };
            if read.as_ref().is_err_and(|error| !stands(error)) {
                // The former claims still excuse late bytes, but no longer decide.
                if let Err(error) = seen.retract_claims(&index, now) {
                    tracing::error!(
                        url = %index, %error,
                        "the former claims of this index no longer count, but that is not on disk yet; larder writes it as soon as it \
                         can, and if it is killed before, they count again until the index is read again: see that the data \
                         directory can be written"
                    );
                }
            }
            read
        });
        read.or_else(|error| self.makes_no_claims(at, error, now))
    }

    /// Begins to collect the claims of the document `blob` of `index`.
    pub(super) fn batch(
        &self,
        ecosystem: &dyn Ecosystem,
        index: &Target,
        blob: BlobId,
        reader: Partition,
    ) -> io::Result<ClaimBatch> {
        let mut batch = self.store.seen_by(reader).begin_claims(index, blob)?;
        // Two private views of an index may well name different files, so only public views are compared.
        if ecosystem.profile().files_are_immutable && reader == Partition::Public {
            batch.compare();
        }
        Ok(batch)
    }

    /// Reports that an index could not be understood. `Err`: it could not be read now, which may pass.
    fn makes_no_claims(&self, at: &Target, error: Malformed, now: Time) -> io::Result<()> {
        let error = match error {
            Malformed::Unreadable(error) if may_pass(&error) => return Err(error),
            error @ (Malformed::Unreadable(_)
            | Malformed::Forged(_)
            | Malformed::Shape { .. }
            | Malformed::Limit { .. }) => error,
        };
        tracing::warn!(url = %at, %error, "this index makes no claims");
        let why = format!("makes no claims: {error}");
        self.metrics.alarm(Alarm::Malformed, at.to_string(), why, false);
        self.store.note_rejection(at, &format!("makes no claims: {error}"), now);
        Ok(())
    }

    /// Whether a document's claims are current and would be the same if it were read today. If so, they are confirmed.
    fn confirm_reading(
        &self,
        recognition: &Recognition,
        at: &Target,
        indexes: &[Target],
        entry: &Entry,
        proven: Proof,
        reader: Partition,
    ) -> bool {
        let (changes, seen) = (self.keys.changes(), self.store.seen_by(reader));
        let by_keys = recognition.ecosystem.depends_on_keys(at);
        // Claims that were read while the document had a lower proof are read again.
        let as_good = |by: &IndexVersion| {
            (proven.rank != Rank::Signed || by.rank == Rank::Signed)
                && (by_keys || by.expired_key == proven.expired_key)
        };
        indexes
            .iter()
            .filter(|index| !by_keys || self.memory.was_read_with(index, reader, changes))
            .any(|index| {
                let current = seen.current_claims(index);
                current.is_some_and(|by| by.document == entry.blob && as_good(&by))
                    && seen.confirm_claims(index, entry.blob, entry.requested_at)
            })
    }

    /// Takes the claims of a document, and makes them current if its snapshot counts.
    fn take_claims(
        &self,
        ecosystem: &dyn Ecosystem,
        document: &Document<'_>,
        mut batch: ClaimBatch,
        entry: &Arc<Entry>,
    ) -> Result<(), Malformed> {
        let standing = ecosystem.claims(document, &self.keys.get(), &mut batch)?;
        Ok(self.publish(ecosystem, document.at, batch, &standing, entry)?)
    }

    /// Makes the claims of a document current, if its snapshot counts by now: a newer one, or another signer, may have come since
    /// the document was read.
    pub(super) fn publish(
        &self,
        ecosystem: &dyn Ecosystem,
        at: &Target,
        mut batch: ClaimBatch,
        standing: &Standing,
        entry: &Arc<Entry>,
    ) -> io::Result<()> {
        let is_public = batch.reader() == Partition::Public;
        // Between the question and the answer no other snapshot of the same repository comes in between.
        let _alone = self.reading.alone();
        if let Some(edition) = batch.said().cloned() {
            batch.by_expired_key(edition.expired_key);
            let (keys, now) = (self.keys.get(), self.clock.now());
            if let Err(held) =
                snapshot_order::admit(&self.store, at, standing, &edition, &keys, now)
            {
                if is_public {
                    snapshot_order::note_waiting(&self.store, standing, &edition, &held);
                }
                self.say(at, &held.to_string());
                self.mark_expired(at, entry, &held);
                return Ok(());
            }
            // What one credential sees of an archive does not bind other clients.
            if is_public
                && let Some(back) = snapshot_order::remember(&self.store, at, standing, &edition)
            {
                self.say_step_back(at, &back);
            }
        }
        // A variant without claims does not retract another variant's claims; unauthenticated documents retract nothing.
        let is_version = !ecosystem.indexes_of(at).is_empty();
        let plain = at.origin().scheme == Scheme::Http;
        if standing.rank == Rank::None && (is_version || plain) {
            return Ok(());
        }
        let mut notes = batch.notes().clone();
        if !is_public {
            notes.signers.clear();
        }
        // Before the claims count.
        let SignedBy { index, claims } = batch.signed_by(standing.rank);
        for signers in [index, claims] {
            self.store.note_vouchers(&standing.root, &signers);
        }
        let (index, reader) = (batch.index().clone(), batch.reader());
        let published = batch.publish(standing, entry.requested_at)?;
        self.noticed(at, standing, &notes);
        self.mark_signed(entry, standing);
        self.check_signers(&published, (&index, reader), entry)
    }

    /// The entry as it is stored now; its proof may have been lowered since it was looked up.
    pub(super) fn as_stored(&self, entry: &Entry) -> Option<Arc<Entry>> {
        let stored = self.store.entries(entry.key).into_iter();
        stored.into_iter().find(|stored| stored.blob == entry.blob)
    }

    /// Reports what was noticed while the claims of an index were taken, and remembers who signed them.
    fn noticed(&self, at: &Target, standing: &Standing, notes: &Notes) {
        if !notes.signers.is_empty() {
            self.store.bind_signers(&standing.root, &notes.signers);
        }
        for forged in &notes.forged {
            self.say(at, &format!("a signature of a known key does not hold: {forged}"));
        }
        for (changed, kept) in &notes.changed {
            if *kept {
                let why = "it was signed, and the new one is not: the earlier promise stays";
                self.say(at, &format!("{changed}; {why}"));
            } else if self.logged.is_news(&format!("{at} {changed}")) {
                tracing::warn!(url = %at, changed, "this index names other bytes for a file that should never change");
                let text = format!("names other bytes: {changed}");
                self.metrics.alarm(Alarm::Changed, at.to_string(), text.clone(), false);
                self.store.note_rejection(at, &text, self.clock.now());
            }
        }
        for key in &notes.unknown {
            if self.logged.is_news(&format!("{} {key}", standing.root)) {
                tracing::info!(
                    url = %at, key,
                    "this registry signs with a key that larder does not know, so only TLS vouches for what it signed; \
                     `larder keys add FILE` makes it known, with the registry's keys as its operator publishes them"
                );
            }
        }
    }

    /// Raises the stored proof of an index whose signature became verifiable after it was kept.
    fn mark_signed(&self, entry: &Arc<Entry>, standing: &Standing) {
        if standing.rank == Rank::Signed && entry.proof.rank < Rank::Signed {
            self.write_down(entry, |proof| {
                proof.rank = Rank::Signed;
                proof.expired_key = false;
            });
        }
    }

    fn write_down(&self, entry: &Entry, change: impl FnOnce(&mut Proof)) {
        if let Err(error) = self.store.update(entry, |entry| change(&mut entry.proof)) {
            tracing::warn!(%error, "a proof could not be stored");
        }
    }

    /// What proves the bytes of an index. If another index with authority names it, that index's present claim decides; otherwise
    /// the proof from when the bytes were kept. A digest in the index's URL does not show who chose it.
    fn proven(
        &self,
        recognition: &Recognition,
        at: &Target,
        entry: &Entry,
        reader: Partition,
    ) -> Proof {
        let promises = self.promises_of_index(at, Some(recognition), reader);
        let expected = Expectation { promises, ..Expectation::nothing(Rank::None) };
        let vouched = expected.vouched(&entry.digests, entry.size);
        if entry.proof.rank == Rank::SelfCertified || self.is_member(recognition, at, reader) {
            return vouched;
        }
        if vouched.rank >= entry.proof.rank { vouched } else { entry.proof }
    }

    /// Whether an index with authority over `at` names it today. If so, its claim decides what is read.
    fn is_member(&self, recognition: &Recognition, at: &Target, reader: Partition) -> bool {
        let decides = |promise: &Promise| {
            promise.is_current() && (promise.is_strong() || promise.is_unread())
        };
        self.promises_of_index(at, Some(recognition), reader).iter().any(decides)
    }

    /// Marks an index past its `Valid-Until` as stale.
    fn mark_expired(&self, at: &Target, entry: &Arc<Entry>, held: &NotCounted) {
        let NotCounted::Expired(until) = held else {
            return;
        };
        if entry.partition == Partition::Public {
            self.store.note_valid_until(&Root::directory_of(at), Some(*until));
        }
        self.write_down(entry, |proof| proof.stale = true);
    }
}

/// The indexes of which the document at `at` is a version; `at` itself if it is an index under its own name.
pub(super) fn indexes(recognition: &Recognition, at: &Target) -> Vec<Target> {
    let mut indexes = recognition.ecosystem.indexes_of(at);
    if indexes.is_empty() {
        indexes.push(at.clone());
    }
    let variant = recognition.resource.variant.name;
    indexes.into_iter().map(|index| index.with_variant(variant)).collect()
}

#[cfg(test)]
mod tests {
    use hyper::{HeaderMap, StatusCode};

    use super::*;
    use crate::claim::{ClaimSink as _, Snapshot};
    use crate::ecosystem::{self, Shape};
    use crate::entry::Head;
    use crate::keyring::Keyring;
    use crate::pipeline::for_tests;

    fn entry(index: &Target, blob: BlobId, at: Time) -> Arc<Entry> {
        let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
        Arc::new(Entry {
            key: index.key(Partition::Public),
            shown: index.to_string(),
            variant: String::new(),
            partition: Partition::Public,
            ecosystem: "apt".to_owned(),
            index: true,
            blob,
            size: 1,
            digests: Vec::new(),
            head,
            varied: Vec::new(),
            proof: Proof::of(Rank::Signed),
            generation: 0,
            answered_by: None,
            requested_at: at,
            received_at: at,
            checked_at: at,
        })
    }

    /// The claims of an older snapshot may wait for so long that a newer one becomes current meanwhile.
    #[test]
    fn staged_claims_of_an_older_snapshot_do_not_replace_newer_ones() {
        let data = tempfile::tempdir().unwrap();
        let pipeline = for_tests(data.path());
        pipeline.keys.set(Keyring::built_in());
        let (store, now) = (&pipeline.store, pipeline.clock.now());
        let index = Target::from_url("https://example.org/debian/dists/stable/InRelease").unwrap();
        let apt = ecosystem::recognise(&Shape { target: &index, accept: "*/*" }).unwrap().ecosystem;
        let root = Root::directory_of(&index);
        let standing = Standing { rank: Rank::Signed, root: root.clone() };
        let signers: Vec<_> = pipeline.keys.get().signers().into_iter().take(1).collect();
        let staged = |number: u8| {
            let blob = BlobId::new([number; 32]);
            let mut batch = pipeline.batch(apt, &index, blob, Partition::Public).unwrap();
            let hours = Duration::from_hours(u64::from(number));
            batch.edition(Snapshot {
                signers: signers.clone(),
                makers: signers.clone(),
                date: Some(now.minus(Duration::from_hours(100)).plus(hours)),
                valid_until: Some(now.plus(hours)),
                ..Snapshot::default()
            });
            (batch, entry(&index, blob, now))
        };
        let ((old, old_entry), (new, new_entry)) = (staged(1), staged(2));
        pipeline.publish(apt, &index, new, &standing, &new_entry).unwrap();
        let current = || store.current_claims(&index).unwrap().document;
        assert_eq!(current(), new_entry.blob, "the control");
        let until = store.valid_until(&root);
        pipeline.publish(apt, &index, old, &standing, &old_entry).unwrap();
        assert_eq!(current(), new_entry.blob);
        assert_eq!(store.valid_until(&root), until);
    }
}
