//! The claims visible to one partition: the public ones, and those of indexes that were read with its own credential.
//!
//! The claims of a private index hold only for the credential with which it was read (DESIGN §4 "Credentials"). A set
//! of claims stores its partition, and other partitions do not find it. A private view neither selects, refuses nor
//! confirms anything for another credential.

use std::io;
use std::sync::Arc;

use super::Store;
use super::catalogue::Set;
use super::segment::Found;
use crate::claim::{IndexVersion, Promise, Relation, Topic};
use crate::clock::Time;
use crate::digest::{BlobId, Digest};
use crate::freshness::AHEAD;
use crate::proof::Rank;
use crate::target::{Partition, Root, Target};
use crate::verify::Expectation;

/// Maximum total size of the indexes searched for a target that they can only confirm; the largest are skipped first.
/// Topics of pypi, npm and cargo name no host, so indexes of unrelated origins share them. The open-segment cache holds
/// the tables of this many bytes, so each segment is opened once and not for every judgement. An attacker who publishes
/// very many small indexes may cause one of a few thousand files to be skipped, which then confirms nothing. Indexes
/// that may refuse are always searched.
const MOST_ELSEWHERE: u64 = 256 << 20;

/// A view of the claims for one partition.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) reader: Partition,
}

impl Store {
    /// The claims visible to `reader`; [`Partition::Public`] sees only the public ones.
    pub fn seen_by(self: &Arc<Self>, reader: Partition) -> Seen<'_> {
        Seen { store: self, reader }
    }

    /// See [`Seen::promises`].
    pub(super) fn promises_seen_by(
        &self,
        reader: Partition,
        target: &Target,
        topics: &[Topic],
        now: Time,
    ) -> Vec<Promise> {
        let claims = &self.claims;
        let key = target.match_key();
        let mut promises = Vec::new();
        let mut scratch = Vec::new();
        if let Err(error) = claims.complete(self) {
            tracing::warn!(%error, "claims cannot be read now; files that they may cover are not served");
            promises.push(unread(target, &error, now));
        }
        let declared = claims.declared();
        let decides = |set: &Set, by: &IndexVersion| {
            depth(by, target).is_some() || declared.lets(&set.index, target.origin())
        };
        let mut sets = claims.under(topics, reader, now);
        sets.retain(|(set, _)| set.may_name(target.origin()));
        let elsewhere = sets.iter().filter(|(set, by)| !decides(set, by));
        let largest = largest_to_ask(elsewhere.map(|(set, _)| set.bytes).collect());
        for (set, by) in sets {
            if set.bytes > largest && !decides(&set, &by) {
                continue;
            }
            let by = not_ahead(by, now);
            let promise = |found: Found| Promise {
                by: Arc::clone(&by),
                index: Arc::clone(&set.index),
                relation: Relation::Elsewhere,
                digests: found.digests,
                size: found.size,
                signed: found.signed,
            };
            match claims.find(&set, key, &mut scratch) {
                Ok(found) => promises.extend(found.into_iter().map(promise)),
                Err(error) => {
                    tracing::warn!(index = %set.index, %error, "these claims cannot be read now; files that they may cover are not served");
                    promises.push(promise(Found::default()));
                }
            }
        }
        let deepest = promises
            .iter()
            .filter(|promise| promise.is_current())
            .filter_map(|promise| depth(&promise.by, target))
            .max();
        for promise in &mut promises {
            promise.relation = match depth(&promise.by, target) {
                Some(depth) if Some(depth) >= deepest => Relation::InRoot,
                None if declared.lets(&promise.index, target.origin()) => Relation::Declared,
                Some(_) | None => Relation::Elsewhere,
            };
        }
        promises
    }

    /// Whether a promise found under `topics`, also one of an older snapshot, proves bytes of `target` to `reader` by a signature.
    /// Quick.
    pub fn signs(
        &self,
        reader: Partition,
        target: &Target,
        topics: &[Topic],
        digests: &[Digest],
    ) -> bool {
        let promises = self.promises_seen_by(reader, target, topics, self.clock.now());
        Expectation { promises, ..Expectation::nothing(Rank::None) }.is_signed(digests)
    }
}

impl Seen<'_> {
    /// The promises about `target` found under `topics`, newest snapshot first. Their relation accounts for roots,
    /// nested roots and operator declarations. Superseded sets are included for a day. Quick: reads a few KiB of each
    /// index that may name the target.
    pub fn promises(&self, target: &Target, topics: &[Topic], now: Time) -> Vec<Promise> {
        self.store.promises_seen_by(self.reader, target, topics, now)
    }

    /// Marks this partition's current snapshot of an index as confirmed; see [`Store::confirm_claims`]. Quick.
    pub fn confirm_claims(&self, index: &Target, document: BlobId, at: Time) -> bool {
        let store = self.store;
        store.claims.confirm(index, self.reader, document, (at, store.clock.now()))
    }

    /// This partition's current snapshot of an index. Quick.
    pub fn current_claims(&self, index: &Target) -> Option<Arc<IndexVersion>> {
        self.store.claims.generation_of(index, self.reader)
    }

    /// The document from which this partition's current claims of an index were read, and the number of claims. Quick.
    pub fn names(&self, index: &Target) -> Option<(BlobId, u64)> {
        self.store.claims.names(index, self.reader)
    }

    /// Retracts this partition's claims of an index; see [`Store::retract_claims`]. Blocking.
    pub fn retract_claims(&self, index: &Target, now: Time) -> io::Result<()> {
        let _era = self.store.in_era();
        self.store.claims.retract(self.store, index, self.reader, now)
    }
}

/// The maximum size of an index that can only confirm or alarm, so that all up to it can be searched. `bytes` are their
/// sizes.
fn largest_to_ask(mut bytes: Vec<u64>) -> u64 {
    bytes.sort_unstable();
    let mut total: u64 = 0;
    for size in bytes {
        total = total.saturating_add(size);
        if total > MOST_ELSEWHERE {
            // Indexes of the same size are all searched or all skipped, so that the result does not depend on their
            // order.
            return size.saturating_sub(1);
        }
    }
    u64::MAX
}

/// A confirmation in the future comes from a clock that was ahead. It then counts as never confirmed, so that the index
/// is revalidated before larder refuses on it.
fn not_ahead(by: Arc<IndexVersion>, now: Time) -> Arc<IndexVersion> {
    if by.confirmed <= now.plus(AHEAD) {
        return by;
    }
    Arc::new(IndexVersion { confirmed: Time::from_millis(0), ..IndexVersion::clone(&by) })
}

/// A placeholder promise for sets that could not be read, so that even their index is unknown. It stands for an index
/// in the root of `target` itself.
fn unread(target: &Target, error: &io::Error, now: Time) -> Promise {
    let by = IndexVersion {
        number: 0,
        shown: error.to_string(),
        document: BlobId::new([0; 32]),
        confirmed: now,
        superseded: None,
        rank: Rank::Indexed,
        root: Root::directory_of(target),
        expired_key: false,
        signed_by: None,
    };
    Promise {
        by: Arc::new(by),
        index: Arc::new(target.clone()),
        relation: Relation::InRoot,
        digests: Vec::new(),
        size: None,
        signed: false,
    }
}

/// The length of the root's path; `None` if this index's root does not cover `target`.
fn depth(by: &IndexVersion, target: &Target) -> Option<usize> {
    by.root.covers(target).then_some(by.root.path.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_strangers_are_left_out_and_the_small_are_asked() {
        const MIB: u64 = 1 << 20;
        let hostile = vec![31 * MIB; 64];
        assert!(largest_to_ask(hostile) < 31 * MIB);
        let honest = [MIB, 300, 2 * MIB];
        let mixed = [vec![31 * MIB; 64], honest.to_vec()].concat();
        assert!((2 * MIB..31 * MIB).contains(&largest_to_ask(mixed)));
        // As many as one topic may have, all of the same small size.
        assert!(largest_to_ask(vec![2 * MIB; 128]) >= 2 * MIB);
        // The control: sizes within the limit are searched completely.
        assert_eq!(largest_to_ask(vec![31 * MIB; 8]), u64::MAX);
        assert_eq!(largest_to_ask(Vec::new()), u64::MAX);
    }
}
