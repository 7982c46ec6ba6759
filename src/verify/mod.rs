//! Promise P3: decides which bodies larder stores, serves or refuses.
//!
//! [`judge`] compares a received body with everything that was promised about it. Only [`judge`] makes a [`Verified`],
//! and the store keeps nothing else. It has no side effects: its caller refetches, raises alarms and aborts transfers.

use std::fmt;
use std::sync::Arc;

use crate::claim::Promise;
use crate::clock::Time;
use crate::digest::{Algorithms, Digest, Digests};
use crate::proof::{Proof, Rank};
use crate::received::Received;
use crate::target::Target;

/// Bytes with the proof for which they may be stored. Only [`judge`] makes one.
#[derive(Debug)]
pub struct Verified {
    received: Received,
    proof: Proof,
}

impl Verified {
    /// The received response.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// The proof for which it may be stored.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// The received response, for the store that keeps it.
    pub fn into_received(self) -> Received {
        self.received
    }
}

/// Everything that is promised about a target, and the proof of a body about which nothing is promised.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The digest that the URL names, and whether a mismatch with it refuses the body.
    pub named: Option<(Digest, bool)>,
    /// The promises of indexes, newest first.
    pub promises: Vec<Promise>,
    /// The proof of a body about which nothing is promised.
    pub otherwise: Proof,
}

impl Expectation {
    /// An expectation without promises.
    pub fn nothing(otherwise: Rank) -> Self {
        Self { named: None, promises: Vec::new(), otherwise: Proof::of(otherwise) }
    }

    /// Whether a mismatch would refuse the body. If so, a gap is kept: the tail of the body is withheld until it is
    /// verified.
    pub fn binds(&self) -> bool {
        self.named.is_some_and(|(_, binds)| binds) || self.refusing().next().is_some()
    }

    /// Whether it is not known yet if it binds: every promise that would bind cannot be read now.
    pub fn may_bind(&self) -> bool {
        let named = self.named.is_some_and(|(_, binds)| binds);
        !named && self.binds() && self.refusing().all(Promise::is_unread)
    }

    /// The promises whose mismatch refuses the body. Superseded snapshots only excuse a body.
    pub fn refusing(&self) -> impl Iterator<Item = &Promise> {
        self.binding()
            .filter(|promise| promise.is_current() && (promise.is_strong() || promise.is_unread()))
    }

    /// This expectation without the promises that can no longer be compared: their algorithm was not computed while the
    /// body arrived, and the body is gone. A digest that was not computed is not a mismatch.
    #[must_use]
    pub fn comparable(mut self, digests: &Digests) -> Self {
        let computed: Algorithms = digests.iter().map(Digest::algorithm).collect();
        // If the content could not be read, its digest is missing, and that is a mismatch.
        let looked = digests.fault().is_some();
        self.promises.retain(|promise| {
            let mut algorithms = promise.digests.iter().map(Digest::algorithm);
            algorithms.all(|algorithm| {
                computed.contains(algorithm) || looked && algorithm.is_of_content()
            })
        });
        self
    }

    /// The algorithms needed to judge a body.
    pub fn algorithms(&self) -> Algorithms {
        self.named
            .iter()
            .map(|(digest, _)| digest)
            .chain(self.promises.iter().flat_map(|promise| &promise.digests))
            .map(Digest::algorithm)
            .collect()
    }

    /// The promises of indexes with authority over the target. Only they select, refuse and decide what is stored.
    pub fn binding(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| promise.relation.binds())
    }

    /// The current promises of indexes without authority over the target. They confirm or raise an alarm.
    fn elsewhere(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| {
            !promise.relation.binds() && promise.is_current() && !promise.is_unread()
        })
    }

    /// A binding promise that could not be read. Until it can be read, nothing is proven and nothing refused. No other
    /// promise is needed if the URL names a digest that its protocol checks.
    pub fn unread(&self) -> Option<&Promise> {
        if self.named.is_some_and(|(_, binds)| binds) {
            return None;
        }
        self.binding().find(|promise| promise.is_unread())
    }

    /// This expectation without the promises of indexes elsewhere, which must not decide what is stored.
    #[must_use]
    pub fn decided(&self) -> Self {
        let promises = self.binding().cloned().collect();
        Self { promises, ..*self }
    }

    /// The current proof of a body with these digests and `size` bytes, received earlier from the target's own origin.
    /// `None` if a promise contradicts the body, or if a newer snapshot names other bytes.
    pub fn proof_of(&self, digests: &[Digest], size: u64) -> Option<Proof> {
        match self.find(digests, size, Time::from_millis(i64::MIN)) {
            Finding::Proven { proof, .. } => Some(proof),
            Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
        }
    }

    /// Whether a binding promise currently vouches, by a strong digest, for a body with these digests.
    pub fn vouches_for(&self, digests: &[Digest], size: u64) -> bool {
        let proof = self.decided().proof_of(digests, size);
        proof.is_some_and(|proof| proof.rank.is_strong())
    }

    /// Whether `comparable` lacks a promise whose mismatch refuses the body.
    pub fn binds_more_than(&self, comparable: &Self) -> bool {
        self.refusing().count() > comparable.refusing().count()
    }

    /// The proof that the newest binding promises give a body, regardless of a digest in its URL.
    pub fn vouched(&self, digests: &[Digest], size: u64) -> Proof {
        self.weigh(digests, size).best.unwrap_or(Proof::of(Rank::None))
    }

    /// Whether a promise, also one of an older snapshot, proves a body by a signature. Of its digests, not all need be known.
    pub fn is_signed(&self, digests: &[Digest]) -> bool {
        let proof = |promise: &Promise| {
            if promise.relation.binds() { promise.proof() } else { promise.confirmation() }
        };
        self.promises.iter().any(|promise| {
            let (mut matches, mut broken) = (false, false);
            for promised in &promise.digests {
                let algorithm = promised.algorithm();
                let known = digests.iter().any(|digest| digest.algorithm() == algorithm);
                broken |= known && !digests.contains(promised);
                matches |= known && (algorithm.is_strong() || algorithm.is_of_content());
            }
            matches && !broken && proof(promise).rank == Rank::Signed
        })
    }

    /// Compares a body's digests and length with everything that was promised. `asked` is the time of the client's
    /// request: an index that was not confirmed since then may be out of date, and does not refuse.
    ///
    /// Without a binding promise, the body has the proof `otherwise`, or a better one if an index elsewhere confirms
    /// it. If an index elsewhere contradicts it, that raises an alarm and changes nothing: anybody can publish an
    /// index.
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

    /// Compares a body with the binding promises.
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
        // One index may offer alternative digests (npm's integrity); if one of them matches, there is no disagreement.
        let alternative =
            |missed: &Promise| held().any(|other| other.by.number == missed.by.number);
        let mut missed = read().filter(|promise| !holds(promise, digests, size));
        Weighed {
            best,
            older: held().any(|promise| !decides(promise)),
            missed: missed.find(|promise| !alternative(promise)),
        }
    }

    /// The proof of a body about which no index with authority promises anything. An index elsewhere may confirm it.
    fn risen(&self, digests: &[Digest], size: u64) -> Proof {
        if self.binding().next().is_some() {
            return self.otherwise;
        }
        let confirmed = self.elsewhere().filter(|promise| holds(promise, digests, size));
        let proofs = confirmed.map(Promise::confirmation).chain([self.otherwise]);
        proofs.max_by_key(|proof| strength(*proof)).unwrap_or(self.otherwise)
    }

    /// The first promise of an index elsewhere that the body breaks, unless the body matches an alternative from that
    /// index. A digest that was not computed is not broken.
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

/// Whether a body matches `promise`.
fn holds(promise: &Promise, digests: &[Digest], size: u64) -> bool {
    promise.size.is_none_or(|promised| promised == size)
        && promise.digests.iter().all(|digest| digests.contains(digest))
}

/// The order of proofs: by rank, then by how much the proof tells about the bytes.
fn strength(proof: Proof) -> (Rank, bool, bool) {
    (proof.rank, !proof.content, !proof.weak_hash)
}

/// The result of comparing a body with the binding promises.
struct Weighed<'a> {
    /// The best proof that the newest snapshot gives these bytes.
    best: Option<Proof>,
    /// Whether an older snapshot names these bytes.
    older: bool,
    /// The first promise that names other bytes and whose index offers no matching alternative.
    missed: Option<&'a Promise>,
}

/// The result of comparing a body with what was promised about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The body is as promised, or nothing was promised.
    Proven {
        /// The body's proof.
        proof: Proof,
        /// A contradicting promise that does not decide; it raises an alarm.
        disagreement: Option<Mismatch>,
    },
    /// The body differs from the newest promises, but none of these refuses it: an older snapshot names it, or only
    /// weak digests disagree.
    Excused(Mismatch),
    /// An index contradicts the body, but was not confirmed since the client's request.
    Doubted(Mismatch),
    /// The body is not what was promised.
    Refused(Mismatch),
}

impl Finding {
    /// This finding, with the reason why there was no content to compare.
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

/// How a body differs from what was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The promise, and the index that made it.
    pub promised: String,
    /// What was received.
    pub came: String,
    /// The index that made the promise, if it may only raise an alarm. Anybody can publish any number of such indexes.
    pub elsewhere: Option<Arc<Target>>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; what came is {}", self.promised, self.came)
    }
}

/// What the caller must do with a complete response.
#[derive(Debug)]
pub enum Verdict {
    /// Store and serve it; a contradicting promise raises an alarm.
    Keep(Verified, Option<Mismatch>),
    /// Serve it to the requesting client only, and do not store it.
    Give(Received, Option<Mismatch>),
    /// Revalidate the index, then judge again.
    Doubt(Received, Mismatch),
    /// Neither store nor serve it.
    Refuse(Received, Mismatch),
}

/// Judges a complete response; see [`Expectation::find`].
pub fn judge(received: Received, expected: &Expectation, asked: Time) -> Verdict {
    let digests: Vec<Digest> = received.body.digests.iter().copied().collect();
    let finding = expected.find(&digests, received.body.size, asked);
    match finding.because(received.body.digests.fault()) {
        // If one hop was plain HTTP, an attacker on the path may have chosen the bytes. Only a digest in the request
        // itself or a signature outweighs that.
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
