//! Promise P3: what may be kept, what may be given, what is refused.
//!
//! [`judge`] compares what was received with everything that was promised. It alone makes a [`Verified`], and the store
//! keeps nothing else. It has no effects: who asked it refetches, alarms and cuts.

use std::fmt;
use std::sync::Arc;

use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Algorithms, Digest, Digests};
use crate::proof::{Proof, Rank};
use crate::received::Received;
use crate::target::Target;

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

    /// The promises of indexes that may speak for the target: they alone select, refuse and decide what is kept.
    pub fn binding(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| promise.relation.binds())
    }

    /// The promises of indexes that may not speak for the target, as they stand today: they confirm or alarm.
    fn elsewhere(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| {
            !promise.relation.binds() && promise.is_current() && !promise.is_unread()
        })
    }

    /// A promise that may decide and could not be read: until it can, nothing is proven and nothing is refused. A digest
    /// that the URL names, and that its protocol checks, needs no other promise.
    pub fn unread(&self) -> Option<&Promise> {
        if self.named.is_some_and(|(_, binds)| binds) {
            return None;
        }
        self.binding().find(|promise| promise.is_unread())
    }

    /// The same without what indexes elsewhere promise: what they say must not decide what is kept.
    #[must_use]
    pub fn decided(&self) -> Self {
        let promises = self.binding().cloned().collect();
        Self { promises, ..*self }
    }

    /// What these digests of `size` bytes, received earlier from the target's own origin, are worth today; `None` if a
    /// promise speaks against them, or a newer set names other bytes.
    pub fn proof_of(&self, digests: &[Digest], size: u64) -> Option<Proof> {
        match self.find(digests, size, Time::from_millis(i64::MIN)) {
            Finding::Proven { proof, .. } => Some(proof),
            Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
        }
    }

    /// Whether a promise that may decide vouches for a body with these digests today.
    pub fn vouches_for(&self, digests: &[Digest], size: u64) -> bool {
        let proof = self.decided().proof_of(digests, size);
        proof.is_some_and(|proof| proof.rank.is_strong())
    }

    /// Whether a promise by which a mismatch refuses is lost in what is left of it to be compared.
    pub fn binds_more_than(&self, comparable: &Self) -> bool {
        self.refusing().count() > comparable.refusing().count()
    }

    /// What the newest promises that decide make of a body, whatever its URL names.
    pub fn vouched(&self, digests: &[Digest], size: u64) -> Proof {
        self.weigh(digests, size).best.unwrap_or(Proof::of(Rank::None))
    }

    /// Compares a body's digests and length with everything that was promised. `asked` is when the request for it came:
    /// an index that was not confirmed since then may be out of date, and does not refuse.
    ///
    /// Without a promise that binds, the body is worth what it is worth unpromised, and more if an index elsewhere confirms
    /// it. That one elsewhere says otherwise is worth an alarm and changes nothing: anybody can publish an index.
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
        let missed = missed.map(|promise| self.mismatch(promise.to_string(), digests, size));
        let proven = |proof, missed: Option<Mismatch>| Finding::Proven {
            proof,
            disagreement: missed.or_else(|| self.denied_elsewhere(digests, size)),
        };
        if matches!(named, Some((true, _))) {
            return proven(Proof::of(Rank::SelfCertified), missed);
        }
        match (best, missed) {
            (Some(proof), missed) => proven(proof, missed),
            (None, None) => proven(self.risen(digests, size), None),
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

    /// Holds the promises that bind against a body.
    fn weigh(&self, digests: &[Digest], size: u64) -> Weighed<'_> {
        let read = || self.binding().filter(|promise| !promise.is_unread());
        let current = read().filter(|promise| promise.is_current());
        let newest = current.map(|promise| promise.by.number).max();
        let decides = |promise: &Promise| Some(promise.by.number) == newest;
        let held = || read().filter(|promise| holds(promise, digests, size));
        let best = held()
            .filter(|promise| decides(promise))
            .map(Promise::proof)
            .max_by_key(|proof| strength(*proof));
        // One index may offer alternatives (npm's integrity); that one of them holds is no disagreement.
        let alternative =
            |missed: &Promise| held().any(|other| other.by.number == missed.by.number);
        let mut missed = read().filter(|promise| !holds(promise, digests, size));
        Weighed {
            best,
            older: held().any(|promise| !decides(promise)),
            missed: missed.find(|promise| !alternative(promise)),
        }
    }

    /// What a body is worth of which nothing that binds is promised: an index elsewhere may confirm it.
    fn risen(&self, digests: &[Digest], size: u64) -> Proof {
        if self.binding().next().is_some() {
            return self.otherwise;
        }
        let confirmed = self.elsewhere().filter(|promise| holds(promise, digests, size));
        let proofs = confirmed.map(Promise::confirmation).chain([self.otherwise]);
        proofs.max_by_key(|proof| strength(*proof)).unwrap_or(self.otherwise)
    }

    /// The first promise of an index elsewhere that the body breaks, if that index offers no alternative. A digest that was
    /// not computed of the body is none.
    fn denied_elsewhere(&self, digests: &[Digest], size: u64) -> Option<Mismatch> {
        let breaks = |promise: &Promise| {
            promise.size.is_some_and(|promised| promised != size)
                || promise.digests.iter().any(|promised| {
                    let computed = |digest: &Digest| digest.algorithm() == promised.algorithm();
                    digests.iter().any(computed) && !digests.contains(promised)
                })
        };
        let alternative = |broken: &Promise| {
            let mut of_same = self.elsewhere().filter(|other| other.by.number == broken.by.number);
            of_same.any(|other| holds(other, digests, size))
        };
        let mut broken = self.elsewhere().filter(|promise| breaks(promise));
        let promise = broken.find(|promise| !alternative(promise))?;
        let mismatch = self.mismatch(promise.to_string(), digests, size);
        Some(Mismatch { elsewhere: Some(Arc::clone(&promise.index)), ..mismatch })
    }

    fn mismatch(&self, promised: String, digests: &[Digest], size: u64) -> Mismatch {
        let wanted = self.algorithms();
        let mut came: Vec<String> = digests
            .iter()
            .filter(|digest| wanted.contains(digest.algorithm()))
            .map(ToString::to_string)
            .collect();
        came.push(format!("{size} bytes"));
        Mismatch { promised, came: came.join(", "), elsewhere: None }
    }
}

/// Whether a body is what `promise` says.
fn holds(promise: &Promise, digests: &[Digest], size: u64) -> bool {
    promise.size.is_none_or(|promised| promised == size)
        && promise.digests.iter().all(|digest| digests.contains(digest))
}

/// By what one proof is better than another; of equal ranks the one that says more of the bytes.
fn strength(proof: Proof) -> (Rank, bool, bool) {
    (proof.rank, !proof.content, !proof.weak_hash)
}

/// What the promises that bind say of a body.
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
    /// It is not what the newest promises say, but nothing speaks against it that refuses: an older set of claims names
    /// it, or only weak digests disagree.
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
    /// The index that promised it, where that may only alarm: whoever has one could have any number of them.
    pub elsewhere: Option<Arc<Target>>,
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
mod tests;
