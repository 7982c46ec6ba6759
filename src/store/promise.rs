//! What indexes promise about a target, and how each index relates to it (promise P4).
//!
//! An index may refuse under its root only, and of nested roots the deepest speaks: the index of `/` does not judge
//! files below `/team/` that the index of `/team/` names. Only indexes that name the target at present count. A deeper
//! root that does not name it does not displace a shallower one that does, otherwise an empty index in a directory
//! could void the claims about it. A superseded set displaces nothing.

use std::io;
use std::sync::Arc;

use super::Store;
use super::claims::IndexSet;
use crate::claim::{IndexVersion, Promise, Topic};
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::target::{Origin, Partition, Root, Target};

impl Store {
    /// The promises that public indexes make about `target`; see [`Seen::promises`](super::Seen::promises). Quick.
    pub fn promises(&self, target: &Target, topics: &[Topic], now: Time) -> Vec<Promise> {
        self.promises_seen_by(Partition::Public, target, topics, now)
    }

    /// What one version of an index claims about `target`: the digests of each claim. Quick.
    pub fn says(&self, by: &IndexVersion, target: &Target) -> Vec<Vec<Digest>> {
        let Some(set) = self.claims.set(by.number) else {
            return Vec::new();
        };
        let found = self.claims.find(&set, target.match_key(), &mut Vec::new());
        // A set that cannot be read at the moment gives no claims here; this does not mean that the index stopped
        // naming the file.
        found.unwrap_or_default().into_iter().map(|found| found.digests).collect()
    }

    /// The highest generation number so far. While it stays the same, so do all judgements. A caller that caches a
    /// judgement must read it before [`Store::promises`]; otherwise it could store an old judgement under a newer
    /// number. Quick.
    pub fn generation(&self) -> u64 {
        self.claims.generation()
    }

    /// Marks the current snapshot of an index as confirmed (it was revalidated and is still `document`); returns
    /// whether there is one. Quick.
    pub fn confirm_claims(&self, index: &Target, document: BlobId, at: Time) -> bool {
        self.claims.confirm(index, Partition::Public, document, (at, self.clock.now()))
    }

    /// The current snapshot of an index. Quick.
    pub fn current_claims(&self, index: &Target) -> Option<Arc<IndexVersion>> {
        self.claims.generation_of(index, Partition::Public)
    }

    /// Retracts the claims of an index, because the document that its origin serves now makes none that larder accepts.
    /// For a day they still explain late bytes. The error means that this is not on disk yet: after a crash they would count
    /// again. Blocking.
    pub fn retract_claims(&self, index: &Target, now: Time) -> io::Result<()> {
        let _era = self.in_era();
        self.claims.retract(self, index, Partition::Public, now)
    }

    /// Deletes the sets of claims that `which` selects, because their signing keys are no longer trusted, and the older sets of their
    /// indexes. Unlike other retracted claims they explain no late bytes, and nothing brings them back (promise P8). The error
    /// means that some may still be on disk and count again after a restart. Does not wait for the records at the start. `which` must not
    /// ask the store. Blocking.
    pub fn withdraw_claims(&self, which: &dyn Fn(&IndexSet) -> bool) -> io::Result<()> {
        // Claims are read before the records, and not again while these are read for the first time.
        let _era = self.is_read().then(|| self.in_era());
        // A set that could not be read before may be one of them, too.
        let done = self.claims.complete(self);
        let withdrawn = self.claims.withdraw(which);
        done.and(withdrawn)
    }

    /// Claiming roots: roots of indexes that have named files on `origin`. Its own first, then the most recent; at most
    /// eight. Quick.
    pub fn claiming_roots(&self, origin: &Origin) -> Vec<Root> {
        self.claims.claiming_roots(origin)
    }

    /// Every set of claims, including superseded ones, oldest first.
    pub fn indexes(&self) -> Vec<IndexSet> {
        self.claims.list()
    }
}
