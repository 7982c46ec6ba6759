//! What indexes promise about a target, and how each relates to it (promise P4).
//!
//! An index may refuse under its root only, and of nested roots the deepest speaks: an index of `/` does not judge what
//! the index of `/team/` names below `/team/`. What counts is who names the target now. A deeper root that does not name
//! it takes nothing away from a shallower one that does, or any directory could be silenced by an empty index in it; and a
//! superseded set silences nobody.

use std::sync::Arc;

use super::Store;
use super::claims::IndexSet;
use crate::claim::{Generation, Promise, Topic};
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::target::{Origin, Partition, Root, Target};

impl Store {
    /// The promises that public indexes make about `target`; see [`Seen::promises`](super::Seen::promises). Quick.
    pub fn promises(&self, target: &Target, topics: &[Topic], now: Time) -> Vec<Promise> {
        self.promises_seen_by(Partition::Public, target, topics, now)
    }

    /// What one version of an index says of `target`: the digests of each claim. Quick.
    pub fn says(&self, by: &Generation, target: &Target) -> Vec<Vec<Digest>> {
        let Some(set) = self.claims.set(by.number) else {
            return Vec::new();
        };
        let found = self.claims.find(&set, target.match_key(), &mut Vec::new());
        // What cannot be read now is not a file that the index stopped naming.
        found.unwrap_or_default().into_iter().map(|found| found.digests).collect()
    }

    /// The highest generation number so far: while it has not moved, no judgement has. Who remembers a judgement reads it
    /// before [`Store::promises`], or it would remember it under a number that is higher than the judgement's. Quick.
    pub fn generation(&self) -> u64 {
        self.claims.generation()
    }

    /// Marks the current generation of an index as confirmed (it was revalidated, and is still `document`); says whether
    /// there is one. Quick.
    pub fn confirm_claims(&self, index: &Target, document: BlobId, at: Time) -> bool {
        self.claims.confirm(index, Partition::Public, document, (at, self.clock.now()))
    }

    /// The current generation of an index's claims. Quick.
    pub fn current_claims(&self, index: &Target) -> Option<Arc<Generation>> {
        self.claims.generation_of(index, Partition::Public)
    }

    /// Takes the claims of an index back: what its origin serves now makes none that larder could keep. They still excuse
    /// late bytes for a day. Quick.
    pub fn retract_claims(&self, index: &Target, now: Time) {
        self.claims.retract(index, Partition::Public, now);
    }

    /// Takes back what signed indexes of `root` claim: nobody trusts who signed them any more. Quick.
    pub fn retract_signed_claims(&self, root: &Root, now: Time) {
        self.claims.retract_signed(root, now);
    }

    /// Roots of indexes that have named files on `origin`: its own first, then the most recent; at most eight. Quick.
    pub fn speakers(&self, origin: &Origin) -> Vec<Root> {
        self.claims.speakers(origin)
    }

    /// Every set of claims, superseded ones too, oldest first.
    pub fn indexes(&self) -> Vec<IndexSet> {
        self.claims.list()
    }
}
