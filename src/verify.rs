//! Promise P3: what may be kept, what may be given, what is refused.
//!
//! [`judge`] compares what was received with everything that was promised. It alone makes a [`Verified`], and the store
//! keeps nothing else. It has no effects: who asked it refetches, alarms and cuts.

use std::fmt;

use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Algorithms, Digest, Digests};
use crate::proof::{Proof, Rank};
use crate::received::Received;

/// Bytes with the proof for which they may be kept. Only [`judge`] makes one.
#[derive(Debug)]
pub struct Verified {
    received: Received,
    proof: Proof,
}

impl Verified {
    /// What was received.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// For what it may be kept.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Taken apart, by the store that keeps it.
    pub fn into_received(self) -> Received {
        self.received
    }
}

/// Everything that is promised of a target, and what it is worth without a promise.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The digest that the URL names, and whether a mismatch refuses.
    pub named: Option<(Digest, bool)>,
    /// The promises of indexes, newest first.
    pub promises: Vec<Promise>,
    /// What a body is worth of which nothing is promised.
    pub otherwise: Proof,
}

impl Expectation {
    /// Nothing is promised.
    pub fn nothing(otherwise: Rank) -> Self {
        Self { named: None, promises: Vec::new(), otherwise: Proof::of(otherwise) }
    }

    /// Whether a mismatch would refuse the body: then a gap is kept.
    pub fn binds(&self) -> bool {
        self.named.is_some_and(|(_, binds)| binds) || self.refusing().next().is_some()
    }

    /// The promises by which a mismatch refuses. Older sets only excuse.
    pub fn refusing(&self) -> impl Iterator<Item = &Promise> {
        self.binding()
            .filter(|promise| promise.is_current() && (promise.is_strong() || promise.is_unread()))
    }

    /// Without the promises that cannot be compared, because their algorithm was not computed while the body came and the
    /// body is not there any more: what was not computed is no mismatch.
    #[must_use]
    pub fn comparable(mut self, digests: &Digests) -> Self {
        let computed: Algorithms = digests.iter().map(Digest::algorithm).collect();
        // A content that could not be read was looked at all the same.
        let looked = digests.fault().is_some();
        self.promises.retain(|promise| {
            let mut algorithms = promise.digests.iter().map(Digest::algorithm);
            algorithms.all(|algorithm| {
                computed.contains(algorithm) || looked && algorithm.is_of_content()
            })
        });
        self
    }

    /// The digests that are needed to judge.
    pub fn algorithms(&self) -> Algorithms {
        self.named
            .iter()
            .map(|(digest, _)| digest)
            .chain(self.promises.iter().flat_map(|promise| &promise.digests))
            .map(Digest::algorithm)
            .collect()
    }

    /// The promises of indexes that may speak for the target: where there are any, only they decide.
    pub fn binding(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| promise.relation.binds())
    }

    /// A promise that may decide and could not be read: until it can, nothing is proven and nothing is refused. A digest
    /// that the URL names, and that its protocol checks, needs no other promise.
    pub fn unread(&self) -> Option<&Promise> {
        if self.named.is_some_and(|(_, binds)| binds) {
            return None;
        }
        self.binding().find(|promise| promise.is_unread())
    }

    /// What these digests of `size` bytes, received earlier from the target's own origin, are worth today; `None` if a
    /// promise speaks against them, or a newer set names other bytes.
    pub fn proof_of(&self, digests: &[Digest], size: u64) -> Option<Proof> {
        match self.find(digests, size, Time::from_millis(i64::MIN)) {
            Finding::Proven { proof, .. } => Some(proof),
            Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
        }
    }

    /// What the newest promises that decide make of a body, whatever its URL names.
    pub fn vouched(&self, digests: &[Digest], size: u64) -> Proof {
        self.weigh(digests, size).best.unwrap_or(Proof::of(Rank::None))
    }

    /// Compares a body's digests and length with everything that was promised. `asked` is when the request for it came:
    /// an index that was not confirmed since then may be out of date, and does not refuse.
    pub fn find(&self, digests: &[Digest], size: u64, asked: Time) -> Finding {
        let named = self.named.map(|(digest, binds)| (digests.contains(&digest), binds));
        if let (Some((false, true)), Some((digest, _))) = (named, self.named) {
            let promised = format!("the URL names {digest}");
            return Finding::Refused(self.mismatch(promised, digests, size));
        }
        if let Some(unread) = self.unread() {
            return Finding::Doubted(self.mismatch(unread.to_string(), digests, size));
        }
        let Weighed { best, older, missed } = self.weigh(digests, size);
        let disagreement = missed.map(|promise| self.mismatch(promise.to_string(), digests, size));
        if matches!(named, Some((true, _))) {
            return Finding::Proven { proof: Proof::of(Rank::SelfCertified), disagreement };
        }
        match (best, disagreement) {
            (Some(proof), disagreement) => Finding::Proven { proof, disagreement },
            (None, None) => Finding::Proven { proof: self.otherwise, disagreement: None },
            (None, Some(mismatch)) if older || self.refusing().next().is_none() => {
                Finding::Excused(mismatch)
            }
            (None, Some(mismatch))
                if self.refusing().all(|promise| promise.by.confirmed < asked) =>
            {
                Finding::Doubted(mismatch)
            }
            (None, Some(mismatch)) => Finding::Refused(mismatch),
        }
    }

    /// Holds the promises that decide against a body.
    fn weigh(&self, digests: &[Digest], size: u64) -> Weighed<'_> {
        let kept = |promise: &Promise| {
            promise.size.is_none_or(|promised| promised == size)
                && promise.digests.iter().all(|digest| digests.contains(digest))
        };
        // Where any promise binds, only those that bind decide; the others would merely confirm.
        let binds = self.binding().next().is_some();
        let deciding: Vec<&Promise> = self
            .promises
            .iter()
            .filter(|promise| !promise.is_unread() && (!binds || promise.relation.binds()))
            .collect();
        let current = deciding.iter().filter(|promise| promise.is_current());
        let newest = current.map(|promise| promise.by.number).max();
        let decides =
            |promise: &Promise| Some(promise.by.number) == newest || !binds && promise.is_current();
        let held = || deciding.iter().copied().filter(|promise| kept(promise));
        let best = held()
            .filter(|promise| decides(promise))
            .map(Promise::proof)
            // Of equals the one that says more of the bytes.
            .max_by_key(|proof| (proof.rank, !proof.content, !proof.weak_hash));
        // One index may offer alternatives (npm's integrity); that one of them holds is no disagreement.
        let alternative =
            |missed: &Promise| held().any(|other| other.by.number == missed.by.number);
        let missed = deciding.iter().copied().filter(|promise| !kept(promise));
        Weighed {
            best,
            older: held().any(|promise| !decides(promise)),
            missed: missed.into_iter().find(|promise| !alternative(promise)),
        }
    }

    fn mismatch(&self, promised: String, digests: &[Digest], size: u64) -> Mismatch {
        let wanted = self.algorithms();
        let mut came: Vec<String> = digests
            .iter()
            .filter(|digest| wanted.contains(digest.algorithm()))
            .map(ToString::to_string)
            .collect();
        came.push(format!("{size} bytes"));
        Mismatch { promised, came: came.join(", ") }
    }
}

/// What the promises that decide say of a body.
struct Weighed<'a> {
    /// The best that the newest set of claims makes of them.
    best: Option<Proof>,
    /// An older set names these bytes.
    older: bool,
    /// The first promise that names other bytes, and whose index offers no alternative.
    missed: Option<&'a Promise>,
}

/// How a body compares with what was promised of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is what was promised, or nothing was promised.
    Proven {
        /// What it is worth.
        proof: Proof,
        /// A promise that says otherwise and does not decide: worth an alarm.
        disagreement: Option<Mismatch>,
    },
    /// It is not what the newest promises say, but nothing that binds speaks against it today: an older set of claims
    /// names it, or only other origins' indexes or weak digests disagree.
    Excused(Mismatch),
    /// An index speaks against it that was not confirmed since the request came.
    Doubted(Mismatch),
    /// It is not what was promised.
    Refused(Mismatch),
}

impl Finding {
    /// The same, and why there was no content to compare.
    #[must_use]
    pub fn because(mut self, fault: Option<&str>) -> Self {
        if let (
            Some(fault),
            Self::Proven { disagreement: Some(mismatch), .. }
            | Self::Excused(mismatch)
            | Self::Doubted(mismatch)
            | Self::Refused(mismatch),
        ) = (fault, &mut self)
        {
            mismatch.came = format!("{}: {fault}", mismatch.came);
        }
        self
    }
}

/// Why a body is not what was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Who promised what.
    pub promised: String,
    /// What came.
    pub came: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; what came is {}", self.promised, self.came)
    }
}

/// What is to be done with a complete answer.
#[derive(Debug)]
pub enum Verdict {
    /// It may be kept and given; a disagreeing promise is worth an alarm.
    Keep(Verified, Option<Mismatch>),
    /// It may be given to who asked, and is not kept.
    Give(Received, Option<Mismatch>),
    /// Ask the index again, then judge again.
    Doubt(Received, Mismatch),
    /// Neither kept nor given.
    Refuse(Received, Mismatch),
}

/// Judges a complete answer; see [`Expectation::find`].
pub fn judge(received: Received, expected: &Expectation, asked: Time) -> Verdict {
    let digests: Vec<Digest> = received.body.digests.iter().copied().collect();
    let finding = expected.find(&digests, received.body.size, asked);
    match finding.because(received.body.digests.fault()) {
        // One plain hop, and whoever sat beside it chose the bytes; only a digest in the request itself, or a
        // signature, outweighs that.
        Finding::Proven { proof, disagreement }
            if proof.rank == Rank::None
                || received.plain && !matches!(proof.rank, Rank::SelfCertified | Rank::Signed) =>
        {
            Verdict::Give(received, disagreement)
        }
        Finding::Proven { proof, disagreement } => {
            Verdict::Keep(Verified { received, proof }, disagreement)
        }
        Finding::Excused(mismatch) => Verdict::Give(received, Some(mismatch)),
        Finding::Doubted(mismatch) => Verdict::Doubt(received, mismatch),
        Finding::Refused(mismatch) => Verdict::Refuse(received, mismatch),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::claim::{Generation, Relation};
    use crate::digest::{Algorithm, BlobId, Hashing, Wanted};
    use crate::target::{Root, Target};

    const ASKED: Time = Time::from_millis(1_000);

    fn digest(byte: u8) -> Digest {
        Digest::new(Algorithm::Sha256, &[byte; 32]).unwrap()
    }

    /// Reads no content.
    struct Broken;

    impl crate::digest::Content for Broken {
        fn update(&mut self, _: &[u8]) {}

        fn finish(self: Box<Self>) -> Result<Vec<Digest>, String> {
            Err("torn".to_owned())
        }
    }

    struct Says {
        number: u64,
        relation: Relation,
        digest: Digest,
        current: bool,
        confirmed: i64,
    }

    impl Says {
        fn new(number: u64, relation: Relation, byte: u8) -> Self {
            Self { number, relation, digest: digest(byte), current: true, confirmed: 2_000 }
        }

        fn promise(self) -> Promise {
            let index = Target::from_url("https://example.org/simple/a/").unwrap();
            Promise {
                by: Arc::new(Generation {
                    number: self.number,
                    shown: index.to_string(),
                    document: BlobId::new([0; 32]),
                    confirmed: Time::from_millis(self.confirmed),
                    superseded: (!self.current).then_some(ASKED),
                    rank: Rank::Indexed,
                    root: Root::directory_of(&index),
                    expired_key: false,
                }),
                index: Arc::new(index),
                relation: self.relation,
                digests: vec![self.digest],
                size: None,
                signed: false,
            }
        }
    }

    fn finding(named: Option<(u8, bool)>, says: Vec<Says>, came: u8) -> Finding {
        let expected = Expectation {
            named: named.map(|(byte, binds)| (digest(byte), binds)),
            promises: says.into_iter().map(Says::promise).collect(),
            otherwise: Proof::of(Rank::Pinned),
        };
        expected.find(&[digest(came)], 3, ASKED)
    }

    fn rank(finding: &Finding) -> Option<Rank> {
        match finding {
            Finding::Proven { proof, .. } => Some(proof.rank),
            Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
        }
    }

    #[test]
    fn nothing_promised_is_not_a_mismatch() {
        assert_eq!(rank(&finding(None, vec![], 1)), Some(Rank::Pinned));
    }

    #[test]
    fn a_digest_in_the_url_refuses_only_where_it_binds() {
        assert_eq!(rank(&finding(Some((1, true)), vec![], 1)), Some(Rank::SelfCertified));
        assert!(matches!(finding(Some((1, true)), vec![], 2), Finding::Refused(_)));
        assert_eq!(rank(&finding(Some((1, false)), vec![], 2)), Some(Rank::Pinned));
    }

    #[test]
    fn an_index_refuses_inside_its_root_and_nowhere_else() {
        assert!(matches!(
            finding(None, vec![Says::new(1, Relation::InRoot, 1)], 2),
            Finding::Refused(_)
        ));
        assert!(matches!(
            finding(None, vec![Says::new(1, Relation::Elsewhere, 1)], 2),
            Finding::Excused(_)
        ));
        assert_eq!(
            rank(&finding(None, vec![Says::new(1, Relation::Elsewhere, 1)], 1)),
            Some(Rank::Indexed)
        );
    }

    #[test]
    fn a_stranger_neither_blocks_nor_blesses_what_the_root_decides() {
        let says =
            |own| vec![Says::new(9, Relation::Elsewhere, 6), Says::new(1, Relation::InRoot, own)];
        assert_eq!(rank(&finding(None, says(1), 1)), Some(Rank::Indexed));
        assert!(matches!(finding(None, says(1), 6), Finding::Refused(_)));
    }

    #[test]
    fn an_index_that_was_not_asked_again_does_not_refuse() {
        let old = Says { confirmed: 999, ..Says::new(1, Relation::InRoot, 1) };
        assert!(matches!(finding(None, vec![old], 2), Finding::Doubted(_)));
    }

    #[test]
    fn an_older_set_excuses_late_bytes_but_does_not_prove_them() {
        let says = || {
            vec![
                Says::new(2, Relation::InRoot, 2),
                Says { current: false, ..Says::new(1, Relation::InRoot, 1) },
            ]
        };
        assert!(matches!(finding(None, says(), 1), Finding::Excused(_)));
        assert_eq!(rank(&finding(None, says(), 2)), Some(Rank::Indexed));
    }

    #[test]
    fn an_older_set_alone_refuses_nothing() {
        let older = || Says { current: false, ..Says::new(1, Relation::InRoot, 1) };
        assert!(matches!(finding(None, vec![older()], 2), Finding::Excused(_)));
    }

    #[test]
    fn what_was_not_computed_is_no_mismatch() {
        let digests = |content: Option<crate::digest::NewContent>| {
            let algorithms = Algorithms::default();
            Hashing::new(Wanted { algorithms, content }).finish()
        };
        let mut promise = Says::new(1, Relation::InRoot, 1).promise();
        promise.digests = vec![Digest::new(Algorithm::Sha512, &[1; 64]).unwrap()];
        let expected = Expectation {
            named: None,
            promises: vec![promise],
            otherwise: Proof::of(Rank::Pinned),
        };
        let found = |expected: Expectation| expected.find(&[digest(2)], 3, ASKED);
        assert!(matches!(found(expected.clone()), Finding::Refused(_)));
        let comparable = expected.clone().comparable(&digests(None));
        assert_eq!(rank(&found(comparable)), Some(Rank::Pinned));
        // A content that cannot be read was looked at: that it has no digest is a mismatch.
        let mut of_content = expected;
        for promise in &mut of_content.promises {
            promise.digests = vec![Digest::new(Algorithm::Apk2Sha256, &[1; 32]).unwrap()];
        }
        let unread = of_content.clone().comparable(&digests(None));
        assert_eq!(rank(&found(unread)), Some(Rank::Pinned));
        let broken = digests(Some(|| Box::new(Broken)));
        let refused = found(of_content.comparable(&broken)).because(broken.fault());
        assert!(matches!(&refused, Finding::Refused(why) if why.to_string().ends_with(": torn")));
    }

    #[test]
    fn every_digest_and_the_size_must_match() {
        let mut promise = Says::new(1, Relation::InRoot, 1).promise();
        promise.size = Some(4);
        let expected = Expectation {
            named: None,
            promises: vec![promise],
            otherwise: Proof::of(Rank::Pinned),
        };
        assert!(matches!(expected.find(&[digest(1)], 3, ASKED), Finding::Refused(_)));
        assert_eq!(rank(&expected.find(&[digest(1)], 4, ASKED)), Some(Rank::Indexed));
    }

    #[test]
    fn alternatives_of_one_index_are_no_disagreement() {
        let both = |second| {
            let promises =
                vec![Says::new(1, Relation::InRoot, 1), Says::new(second, Relation::InRoot, 2)];
            finding(None, promises, 2)
        };
        assert!(matches!(both(1), Finding::Proven { disagreement: None, .. }));
        assert!(matches!(both(2), Finding::Proven { disagreement: Some(_), .. }));
    }

    #[test]
    fn a_matching_name_outranks_a_disagreeing_index() {
        let finding = finding(Some((1, true)), vec![Says::new(1, Relation::InRoot, 2)], 1);
        assert!(matches!(
            finding,
            Finding::Proven {
                proof: Proof { rank: Rank::SelfCertified, .. },
                disagreement: Some(_)
            }
        ));
    }

    /// A signature over a broken digest proves nothing more than the digest does.
    #[test]
    fn a_promise_with_a_signature_of_its_own_is_worth_that() {
        for (algorithm, expected) in
            [(Algorithm::Sha512, Rank::Signed), (Algorithm::Sha1, Rank::IndexedWeak)]
        {
            let digest = Digest::new(algorithm, &vec![1; algorithm.length()]).unwrap();
            let mut promise = Says::new(1, Relation::InRoot, 1).promise();
            (promise.digests, promise.signed) = (vec![digest], true);
            let expected_of = Expectation {
                named: None,
                promises: vec![promise],
                otherwise: Proof::of(Rank::Pinned),
            };
            assert_eq!(rank(&expected_of.find(&[digest], 3, ASKED)), Some(expected));
        }
    }

    #[test]
    fn sha_1_of_content_counts_under_a_signature_and_is_flagged() {
        let says = |rank| {
            let mut promise = Says::new(1, Relation::InRoot, 1).promise();
            promise.digests = vec![Digest::new(Algorithm::Apk2Sha1, &[1; 20]).unwrap()];
            promise.by = Arc::new(Generation { rank, ..Generation::clone(&promise.by) });
            Expectation { promises: vec![promise], ..Expectation::nothing(Rank::Pinned) }
        };
        let came = [digest(1), Digest::new(Algorithm::Apk2Sha1, &[1; 20]).unwrap()];
        let proof = |expected: &Expectation| expected.proof_of(&came, 3).unwrap().to_string();
        assert_eq!(proof(&says(Rank::Signed)), "signed+content+weak-hash");
        assert_eq!(proof(&says(Rank::Indexed)), "indexed-weak+content");
        let found = |rank| says(rank).find(&[digest(1)], 3, ASKED);
        assert!(matches!(found(Rank::Signed), Finding::Refused(_)));
        assert!(matches!(found(Rank::Indexed), Finding::Excused(_)));
    }

    #[test]
    fn a_weak_digest_is_a_hint() {
        let mut promise = Says::new(1, Relation::InRoot, 1).promise();
        promise.digests = vec![Digest::new(Algorithm::Md5, &[1; 16]).unwrap()];
        let expected = Expectation {
            named: None,
            promises: vec![promise],
            otherwise: Proof::of(Rank::Pinned),
        };
        assert!(!expected.binds());
        assert!(matches!(expected.find(&[digest(1)], 3, ASKED), Finding::Excused(_)));
    }
}
