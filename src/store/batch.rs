//! Collects the claims of an index document and writes them into a segment.
//!
//! An ecosystem's parser delivers claims one by one, in the order of the document. They are sorted in bounded memory,
//! and [`ClaimBatch::publish`] makes them current all at once. A batch that is dropped before that has no effect.

use std::io;
use std::sync::Arc;

use super::catalogue::MAX_ORIGINS;
use super::notes::{Before, Notes};
use super::seen::Seen;
use super::segment::{self, Manifest, Row};
use super::sort::{BUFFERED_ROWS, Sorter};
use super::space::{Purpose, Room, footprint};
use super::{SpoolError, Store, durable, failpoint};
use crate::claim::{Claim, ClaimSink, IndexVersion, SignedBy, Snapshot, Standing, TooMany, Topic};
use crate::clock::Time;
use crate::digest::BlobId;
use crate::ecosystem::MAX_CLAIMS;
use crate::proof::Rank;
use crate::target::{Origin, Partition, Scheme, Target};

/// Maximum number of topics of one document. A project's index has one and an archive's index has one; some indexes
/// also list a project's dependants.
const MAX_TOPICS: usize = 64;

/// The longest topic, in bytes.
const MAX_TOPIC: usize = 1024;

/// All claims together may take at most 1/`CLAIMS_SHARE` of the store's bytes.
pub(super) const CLAIMS_SHARE: u64 = 4;

/// Claims on their way into a segment, sorted in bounded memory. Dropping an unpublished batch changes nothing.
#[derive(Debug)]
pub struct ClaimBatch {
    store: Arc<Store>,
    index: Target,
    reader: Partition,
    document: BlobId,
    sorter: Sorter,
    /// Disk space of the rows that the sorter spilled.
    room: Room,
    claims: u64,
    rows: u64,
    width: u16,
    topics: Vec<Topic>,
    origins: Vec<Origin>,
    edition: Option<Snapshot>,
    /// Sums up which claims have a signature of their own, as [`Manifest::signed`] does.
    signed: u64,
    /// Whether a known key that has expired since signed the index.
    expired_key: bool,
    /// Whether claims are compared with the index's earlier ones, so that a changed file is noted.
    compares: bool,
    notes: Notes,
    /// Why the claims cannot be kept. [`ClaimSink`] cannot report an I/O error, so [`ClaimBatch::publish`] returns it.
    failed: Option<io::Error>,
}

impl Store {
    /// Begins a batch with the claims of a new version of a public index document. Blocking.
    pub fn begin_claims(
        self: &Arc<Self>,
        index: &Target,
        document: BlobId,
    ) -> io::Result<ClaimBatch> {
        self.seen_by(Partition::Public).begin_claims(index, document)
    }
}

impl Seen<'_> {
    /// Begins a batch with the claims of a new version of an index document. They hold for this partition only.
    /// Blocking.
    pub fn begin_claims(&self, index: &Target, document: BlobId) -> io::Result<ClaimBatch> {
        if index.has_token() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{index}: an index with a token in its URL makes no claims, which name its URL"
                ),
            ));
        }
        let store = self.store;
        Ok(ClaimBatch {
            store: Arc::clone(store),
            index: index.clone(),
            reader: self.reader,
            document,
            sorter: Sorter::new(&store.spool_name(), BUFFERED_ROWS),
            room: store.room(Purpose::Spool, 0).map_err(full)?,
            claims: 0,
            rows: 0,
            width: 0,
            topics: Vec::new(),
            origins: Vec::new(),
            edition: None,
            signed: 0,
            expired_key: false,
            compares: false,
            notes: Notes::default(),
            failed: None,
        })
    }
}

impl ClaimSink for ClaimBatch {
    fn claim(&mut self, claim: Claim) -> Result<(), TooMany> {
        if self.is_kept(&claim, false)? { Ok(()) } else { self.take(claim, false) }
    }

    fn signed_claim(&mut self, claim: Claim, signer: &str) -> Result<(), TooMany> {
        if !self.notes.signer(signer) {
            // What is not known to rest on a key could not be withdrawn with it.
            return self.claim(claim);
        }
        if self.is_kept(&claim, true)? { Ok(()) } else { self.take(claim, true) }
    }

    fn forged_claim(&mut self, claim: Claim, why: &str) -> Result<(), TooMany> {
        self.notes.forged(&claim, why);
        let before = self.before(&claim);
        self.keep(before)
    }

    fn unknown_signer(&mut self, key: &str) {
        self.notes.unknown(key);
    }

    fn speaks(&mut self, origin: &Origin) {
        if self.origins.len() < MAX_ORIGINS && !self.origins.contains(origin) {
            self.origins.push(origin.clone());
        }
    }

    fn edition(&mut self, edition: Snapshot) {
        self.edition = Some(edition);
    }
}

impl ClaimBatch {
    /// The index.
    pub fn index(&self) -> &Target {
        &self.index
    }

    /// The partition for which these claims will hold.
    pub fn reader(&self) -> Partition {
        self.reader
    }

    /// What the document states of itself (name, date, validity), if it is one that may be signed.
    pub fn said(&self) -> Option<&Snapshot> {
        self.edition.as_ref()
    }

    /// From now on compares every claim with the index's earlier claims. Call it for an index whose files never change.
    pub fn compare(&mut self) {
        self.compares = true;
    }

    /// Sets whether a known key that has expired since signed this index or an index that names it. Everything that
    /// these claims prove is then marked `expired-key`.
    pub fn by_expired_key(&mut self, expired: bool) {
        self.expired_key = expired;
    }

    /// What was noticed about signatures and changed files while claims were added.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Whose signatures these claims rest on in an index of this rank.
    pub fn signed_by(&self, rank: Rank) -> SignedBy {
        let index = self.edition.as_ref().filter(|_| rank == Rank::Signed);
        let mut by = SignedBy {
            index: index.map(|edition| edition.makers.clone()).unwrap_or_default(),
            claims: if self.signed == 0 { Vec::new() } else { self.notes.signers.clone() },
        };
        by.index.sort_unstable();
        by.claims.sort_unstable();
        by
    }

    fn take(&mut self, claim: Claim, signed: bool) -> Result<(), TooMany> {
        if self.failed.is_some() || claim.digests.is_empty() {
            return Ok(());
        }
        let rows = self.rows + claim.digests.len() as u64;
        if self.claims >= MAX_CLAIMS || rows > segment::MAX_ROWS {
            return Err(TooMany);
        }
        if !self.topics.contains(&claim.topic) {
            if self.topics.len() >= MAX_TOPICS || claim.topic.0.len() > MAX_TOPIC {
                return Err(TooMany);
            }
            self.topics.push(claim.topic);
        }
        self.speaks(claim.target.origin());
        // At most `MAX_CLAIMS`, which fits.
        let group = u32::try_from(self.claims).map_err(|_| TooMany)?;
        let key = claim.target.match_key();
        for digest in &claim.digests {
            let width = u16::try_from(digest.as_bytes().len()).map_err(|_| TooMany)?;
            self.width = self.width.max(width);
            let row = Row::new(key, group, digest, claim.size, signed);
            if signed {
                self.signed = self.signed.wrapping_add(row.fence() | 1);
            }
            if let Err(error) = self.push(row) {
                self.failed = Some(error);
                return Ok(());
            }
        }
        self.claims += 1;
        self.rows = rows;
        Ok(())
    }

    /// Whether earlier claims are kept instead of `claim`: the index used to name other bytes for this file, and a
    /// signature vouched for those.
    fn is_kept(&mut self, claim: &Claim, signed: bool) -> Result<bool, TooMany> {
        if !self.compares || self.failed.is_some() {
            return Ok(false);
        }
        let before = match self.store.claimed_before(&self.index, claim) {
            Ok(before) => before,
            Err(error) => {
                // An unsigned claim must not replace a signed one that cannot be read at the moment.
                self.failed = Some(error);
                return Ok(false);
            }
        };
        let Some(change) = Notes::change(claim, &before.claims) else {
            return Ok(false);
        };
        let keeps = !signed && before.claims.iter().any(|(_, signed)| *signed);
        self.notes.changed(change, keeps);
        if keeps {
            self.keep(before)?;
        }
        Ok(keeps)
    }

    /// Keeps the signed ones of the claims that an earlier version of the index made.
    fn keep(&mut self, Before { claims, signers }: Before) -> Result<(), TooMany> {
        let kept: Vec<Claim> =
            claims.into_iter().filter(|(_, signed)| *signed).map(|(claim, _)| claim).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let noted = !signers.is_empty() && signers.iter().all(|signer| self.notes.signer(signer));
        kept.into_iter().try_for_each(|earlier| self.take(earlier, noted))
    }

    fn before(&mut self, claim: &Claim) -> Before {
        self.store.claimed_before(&self.index, claim).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            Before::default()
        })
    }

    /// Makes the set current in one step. The index's older sets become superseded and stay for a day. If the same set
    /// is current already, it is only confirmed. Blocking.
    pub fn publish(self, standing: &Standing, now: Time) -> io::Result<Arc<IndexVersion>> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.index.origin().scheme == Scheme::Http && standing.rank != Rank::Signed {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: an index over plain http makes no claims", self.index),
            ));
        }
        let signed_by = self.signed_by(standing.rank);
        let store = self.store;
        let index = (&self.index, self.reader);
        let said = (self.signed, &signed_by, self.expired_key);
        let at = (now, store.clock.now());
        if let Some(current) = store.claims.confirm_same(index, self.document, standing, said, at) {
            return Ok(current);
        }
        let manifest = Manifest {
            origin: self.index.origin().clone(),
            path_and_query: self.index.path_and_query().to_owned(),
            variant: self.index.variant().to_owned(),
            reader: self.reader,
            shown: self.index.to_string(),
            document: self.document,
            published: now,
            rank: standing.rank,
            root: standing.root.clone(),
            topics: self.topics,
            origins: self.origins,
            claims: self.claims,
            signed: self.signed,
            expired_key: self.expired_key,
            signed_by: Some(signed_by),
        };
        let length = footprint(segment::length_of(self.rows, self.width) + manifest.length()?);
        let share = store.space.cap() / CLAIMS_SHARE;
        if length > share {
            return Err(full(SpoolError::Full(format!(
                "{length} bytes of claims from one index; all claims together may take {share}"
            ))));
        }
        let mut room = store.room(Purpose::Claims, length).map_err(full)?;
        let unnamed = Unnamed(store.spool_name());
        let file = durable::create(&unnamed.0, 0o600)?;
        segment::write(&file, self.sorter.sorted()?, self.rows, self.width, &manifest)?;
        file.sync_all()?;
        room.written();
        drop(self.room);
        failpoint::hit("store.before-claims");
        let _era = store.in_era();
        let generation = store.claims.publish(&store, manifest, &unnamed.0, room, now)?;
        failpoint::hit("store.after-claims");
        Ok(generation)
    }

    fn push(&mut self, row: Row) -> io::Result<()> {
        let spilled = self.sorter.push(row)?;
        if spilled > 0 {
            // The space is reserved after the rows were written, so the account lags by one buffer at most.
            self.store.grow(&mut self.room, spilled).map_err(full)?;
            self.room.written();
        }
        Ok(())
    }
}

/// A temporary file in the spool. Removed on drop unless it was renamed to its final name.
struct Unnamed(std::path::PathBuf);

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Err(error) = durable::remove(&self.0) {
            tracing::warn!(%error, "a file in the spool could not be removed");
        }
    }
}

/// Converts a [`SpoolError`] to an I/O error; a full store becomes `StorageFull`.
pub(super) fn full(error: SpoolError) -> io::Error {
    match error {
        SpoolError::Oversize { .. } => io::Error::new(io::ErrorKind::StorageFull, error),
        SpoolError::Full(why) => io::Error::new(io::ErrorKind::StorageFull, why),
        SpoolError::Io(error) => error,
    }
}
