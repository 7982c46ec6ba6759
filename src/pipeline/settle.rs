//! The end of a fill: judge, commit, read claims.
//!
//! The order is that of DESIGN §4. The body is compared with everything that is promised of it by now; what may be kept is
//! committed; an index then leaves its claims, as one set. Only then does the flight end, so that a client that has read the end
//! of an index finds its claims.

use std::fs::File;
use std::io;
use std::sync::Arc;

use hyper::StatusCode;

use super::Pipeline;
use super::answers::{confirms, is_page};
use super::beside::uncompared_besides;
use super::bound::promised_meanwhile;
use super::claims::{ClaimReading, StagedClaims};
use super::content_coding::is_coded;
use super::lead::{Attempt, AttemptResult};
use super::signature::{KeepDecision, SignatureCheck};
use super::snapshot_order;
use super::task::Task;
use super::unproven::{lower_unsigned, trust_one_of};
use crate::clock::Time;
use crate::digest::{Algorithm, Algorithms, Digest, Digests, Hashing, Wanted};
use crate::ecosystem::{Kind, Named, Recognition};
use crate::entry::Entry;
use crate::flight::{Body, Complete, End, Lead};
use crate::origin::Answer;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::metrics::Alarm;
use crate::proof::{Proof, Rank};
use crate::received::{Received, Spooled};
use crate::store::hash_range;
use crate::target::{Root, Target};
use crate::verify::{self, Expectation, Finding, Mismatch, Verdict, Verified};

impl Pipeline {
    /// Judges a complete body, and keeps what may be kept.
    pub(super) async fn settle(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        answer: Answer,
        complete: Complete,
        attempt: Attempt,
    ) -> AttemptResult {
        let resumed = complete.resumed;
        let body = match complete.body {
            Body::Spooled(body) => body,
            Body::Unstored(digests, size) => {
                return self.settle_unstored(lead, task, &digests, size, attempt, resumed).await;
            }
        };
        let (base, unframed) = (answer.answered_by.clone(), answer.until_close);
        let mut received = Received {
            body,
            head: answer.head,
            plain: answer.plain,
            answered_by: (base != *task.bare()).then(|| base.to_string()),
            resumed,
            requested_at: answer.requested_at,
            received_at: complete.received_at,
        };
        self.learn_convention(task, &received).await;
        let _reading = self.reading_of(task);
        match self.look_at(lead, task, &mut received, &base, attempt).await {
            Ok(worth) => {
                let worth = KeepDecision { unframed, ..worth };
                self.judge(lead, task, received, &base, attempt, worth).await
            }
            Err(came) => came,
        }
    }

    /// Checks the signature of a document that may be signed, and the documents that belong to it. `Err`: the document is neither
    /// kept nor given, or not yet.
    async fn look_at(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        received: &mut Received,
        base: &Target,
        attempt: Attempt,
    ) -> Result<KeepDecision, AttemptResult> {
        let looked = self.own_signature(task, received, base).await;
        // A document that does not count is still held to the promises of others.
        let apart = || KeepDecision { apart: true, ..KeepDecision::default() };
        let signed = match looked.own {
            SignatureCheck::Held => return Ok(apart()),
            SignatureCheck::Forged(why) => {
                let pair = !looked.sidecars.is_empty();
                let may_repeat = attempt == Attempt::First && lead.flight.nothing_given();
                return match self.out_of_step(task, &why, pair, may_repeat) {
                    Some(came) => Err(came),
                    None => Ok(apart()),
                };
            }
            SignatureCheck::Signed(proof) => Some(proof),
            SignatureCheck::Nothing => None,
        };
        // A client with a credential is given what its private archive says today. larder does not fetch the members of such an
        // archive by itself.
        let members = looked.members.filter(|_| !task.principal.is_private());
        if let Some(members) = &members {
            self.assemble(task, received, members).await?;
        }
        let edition = looked.edition.unwrap_or_default();
        let newest = self.store.newest_date(&Root::directory_of(task.bare()));
        if signed.is_some() && edition.date.is_some() && edition.date < newest {
            // Fetching the members took a while, and a newer snapshot arrived meanwhile.
            return Ok(apart());
        }
        if let Some(members) = members {
            // Not earlier: while the version before is given, its own signature is.
            self.keep_sidecars(task, looked.sidecars, &members).await;
        }
        if signed.is_some()
            && let Some(date) = edition.date
        {
            snapshot_order::date(&mut received.head, date, received.requested_at);
        }
        let expired_key = edition.expired_key && !received.plain;
        let (claims, signers) = (looked.claims, edition.makers);
        Ok(KeepDecision { signed, signers, expired_key, claims, ..KeepDecision::default() })
    }

    /// Compares the body with what is promised of it by now, and keeps, gives or refuses it.
    async fn judge(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        mut received: Received,
        base: &Target,
        attempt: Attempt,
        worth: KeepDecision,
    ) -> AttemptResult {
        let resumed = received.resumed;
        for last in [false, true] {
            let mut expected = self.expectation_of(task);
            expected.otherwise = worth.signed.unwrap_or(expected.otherwise);
            let wanted = task.wanted(expected.algorithms());
            received.body = fully_hashed(received.body, wanted).await;
            match verify::judge(received, &expected, task.asked) {
                Verdict::Keep(verified, disagreement) => {
                    let body = &verified.received().body;
                    if let Err(mismatch) = self.compare_besides(task, &lead.flight, body).await {
                        return self.refuse(lead, task, &mismatch, attempt, false);
                    }
                    self.alarm(task, disagreement);
                    if vouches(&expected, body) {
                        lead.flight.vouch();
                    } else {
                        self.compare_later(task, &lead.flight, &body.digests, body.size);
                    }
                    if worth.apart {
                        return AttemptResult::Ended(End::Given);
                    }
                    lead.flight.release(verified.proof());
                    let pinned = is_pinned(&expected, &verified);
                    let end = self.keep(task, verified, base, worth, pinned).await;
                    return AttemptResult::Ended(end);
                }
                Verdict::Give(given, disagreement) => {
                    let vouched = vouches(&expected, &given.body);
                    let came = self.given(lead, task, &given.body, vouched, attempt).await;
                    if matches!(came, AttemptResult::Ended(End::Given)) {
                        self.alarm(task, disagreement);
                        if given.plain && !worth.apart {
                            // An attacker on the path could have chosen these bytes, so the next client's request is passed.
                            self.note_unshared(task);
                        }
                    }
                    return came;
                }
                Verdict::Doubt(body, _) | Verdict::Refuse(body, _)
                    if is_coded(&body.head)
                        && self
                            .is_right_decoded(task, (&body.head, &body.body), &expected, task.asked)
                            .await =>
                {
                    return self.given(lead, task, &body.body, true, attempt).await;
                }
                Verdict::Doubt(_, mismatch) if last => {
                    return refused(lead, attempt, undecided(task, &expected, &mismatch), resumed);
                }
                Verdict::Doubt(doubted, _) => {
                    self.ask_again_for(task, &expected, task.asked).await;
                    received = doubted;
                }
                Verdict::Refuse(_, mismatch) => {
                    return self.refuse(lead, task, &mismatch, attempt, resumed);
                }
            }
        }
        AttemptResult::Ended(End::Given)
    }

    /// Ends a body that is given and not kept, if the ranges that were given beside it agree with it. `vouched`: a promise
    /// vouches for it.
    async fn given(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        body: &Spooled,
        vouched: bool,
        attempt: Attempt,
    ) -> AttemptResult {
        if let Err(mismatch) = self.compare_besides(task, &lead.flight, body).await {
            return self.refuse(lead, task, &mismatch, attempt, false);
        }
        if vouched {
            lead.flight.vouch();
        } else {
            self.compare_later(task, &lead.flight, &body.digests, body.size);
        }
        AttemptResult::Ended(End::Given)
    }

    /// Judges a body for which the store had no room. Nothing is kept, and promises are enforced all the same.
    async fn settle_unstored(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        digests: &Digests,
        size: u64,
        attempt: Attempt,
        resumed: bool,
    ) -> AttemptResult {
        let why = "not kept: the store has no room for it".to_owned();
        self.metrics.alarm(Alarm::Full, task.target.to_string(), why, task.is_public());
        let all: Vec<Digest> = digests.iter().copied().collect();
        for last in [false, true] {
            let promised = self.expectation_of(task);
            let expected = promised.clone().comparable(digests);
            if promised.binds_more_than(&expected) {
                let line = promised_meanwhile(&task.target);
                return AttemptResult::Ended(End::undecided(line));
            }
            match expected.find(&all, size, task.asked).because(digests.fault()) {
                Finding::Proven { .. } | Finding::Excused(_) => {
                    let vouched = expected.vouches_for(&all, size);
                    return match uncompared_besides(&lead.flight) {
                        None => {
                            let flight = &lead.flight;
                            let end = self.given_whole(task, flight, (digests, size), vouched);
                            AttemptResult::Ended(end.unwrap_or_else(|| only_judged(task, vouched)))
                        }
                        // The body is as promised, so the origin has done nothing wrong; larder cannot compare the ranges.
                        Some(mismatch) => {
                            let line = format!("{}: {mismatch}", task.target);
                            AttemptResult::Ended(End::Failed(
                                StatusCode::SERVICE_UNAVAILABLE,
                                Why::new(Cause::Larder, line),
                            ))
                        }
                    };
                }
                Finding::Doubted(_) if !last => {
                    self.ask_again_for(task, &expected, task.asked).await;
                }
                Finding::Doubted(mismatch) if expected.unread().is_some() => {
                    return refused(lead, attempt, undecided(task, &expected, &mismatch), resumed);
                }
                Finding::Doubted(mismatch) | Finding::Refused(mismatch) => {
                    return self.refuse(lead, task, &mismatch, attempt, resumed);
                }
            }
        }
        AttemptResult::Ended(End::Given)
    }

    /// Asks the indexes again whose claims would refuse a body that was requested at `asked`.
    pub(super) async fn ask_again_for(
        self: &Arc<Self>,
        task: &Task,
        expected: &Expectation,
        asked: Time,
    ) {
        if let Some(recognition) = self.known_now(task) {
            self.ask_again(recognition, (task.reach, &task.principal), expected, asked).await;
        }
    }

    /// Handles a body that is not what was promised. If no byte of it was given yet, it is fetched once more on a new connection.
    /// After a resume a mismatch is no refusal of the target: the body may consist of two halves of two good bodies.
    pub(super) fn refuse(
        &self,
        lead: &Lead,
        task: &Task,
        mismatch: &Mismatch,
        attempt: Attempt,
        resumed: bool,
    ) -> AttemptResult {
        let line = format!("{} was refused: {mismatch}", task.target);
        self.distrust_parts(task, &lead.flight);
        if resumed {
            let line = format!("{line} (after the transfer broke and was resumed; try again)");
            let end = End::Failed(StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, line));
            return refused(lead, attempt, end, true);
        }
        if attempt == Attempt::First && lead.flight.nothing_given() {
            return AttemptResult::Again(End::Refused(line));
        }
        if Self::is_ahead(task) {
            return AttemptResult::Ended(End::Refused(line));
        }
        tracing::error!(target: "larder::refused", url = %task.target, %mismatch, "refused: not what was promised");
        let shown = task.target.to_string();
        self.metrics.rejected(shown, mismatch.to_string(), task.is_public());
        self.store.note_rejection(task.bare(), &mismatch.to_string(), self.clock.now());
        AttemptResult::Ended(End::Refused(line))
    }

    /// Reports that the bytes of a pinned file changed.
    fn say_changed(&self, task: &Task, entry: &Entry) {
        tracing::warn!(url = %task.target, now = %entry.blob, "a pinned file changed; both are kept");
        let why =
            format!("a pinned file changed, and both are kept; it is sha256:{} now", entry.blob);
        self.metrics.alarm(Alarm::Changed, task.target.to_string(), why, task.is_public());
    }

    /// Commits the body, and reads the claims of an index. `pinned`: it is kept only by trust on first use.
    async fn keep(
        self: &Arc<Self>,
        task: &Task,
        verified: Verified,
        base: &Target,
        worth: KeepDecision,
        pinned: bool,
    ) -> End {
        let received = verified.received();
        // Excludes bodies that may be incomplete (no length, no digest) and, for pinned files, HTML pages: a sign-in page or a
        // block page may have come in place of a package.
        let cut = worth.unframed && !verified.proof().rank.is_strong();
        // The key that signed it may have been removed since.
        let unsigned = worth.signed.is_some() && !trust_one_of(&self.keys, &worth.signers);
        if cut || unsigned || pinned && is_page(&received.head) {
            return End::Given;
        }
        let confirmed =
            task.likely.clone().filter(|likely| confirms(likely, task.bare(), received));
        if task.is_unknown()
            && confirmed.is_none()
            && !crate::freshness::worth_keeping(&received.head)
        {
            return End::Given;
        }
        let index = task
            .recognition
            .as_ref()
            .filter(|known| task.is_index() || !known.ecosystem.indexes_of(task.bare()).is_empty())
            .cloned();
        if let Some(known) = index.as_ref().filter(|_| !verified.proof().rank.is_strong())
            && let Some(why) = self.why_no_successor(task, known, received, base).await
        {
            self.say_no_successor(task, &why);
            return End::Given;
        }
        let mut entry = self.entry_of(task, confirmed.as_ref(), &verified);
        entry.proof.expired_key |= worth.expired_key;
        let changed = pinned && self.changes_a_pin(task, &entry);
        let own = worth.signed.is_some().then_some(worth.signers);
        let signers = own.or_else(|| task.member_signers());
        let Some(entry) = self.commit(task, verified, entry, signers).await else {
            return End::Given;
        };
        self.note_received(task, &entry);
        if changed {
            self.say_changed(task, &entry);
        }
        if !task.is_private_artifact() && !task.is_private_index() {
            self.note_service(task);
        } else if task.is_of_a_service() {
            // Clients of such a service bring another token each time.
            self.ask_in_public(task, &entry);
        }
        if let Some(recognition) = confirmed.as_ref().filter(|_| !task.bare().has_token()) {
            self.store.confirm_root(recognition.ecosystem.name(), &recognition.resource.root);
        }
        if let Some(recognition) = confirmed.as_ref().or(index.as_ref()) {
            let reading =
                ClaimReading { base: base.clone(), ..ClaimReading::of(recognition, task, &entry) };
            self.read_kept(task, reading, worth.claims).await;
        }
        End::Kept(entry)
    }

    /// Stores a verified body, unless the keys that signed it were removed meanwhile. `signers`: those of its own signature, or of
    /// the snapshot whose member it is. `None`: it could not be stored, or is not worth what it was stored for.
    async fn commit(
        &self,
        task: &Task,
        verified: Verified,
        entry: Entry,
        signers: Option<Vec<Box<str>>>,
    ) -> Option<Arc<Entry>> {
        let (store, keys) = (Arc::clone(&self.store), self.keys.clone());
        let spared = self.still_promised(task);
        let commit = move || {
            let entry = store.commit_beside(verified, entry, &spared)?;
            let is_lowered = lower_unsigned(&store, &keys, &entry, signers.as_deref());
            io::Result::Ok((!is_lowered).then_some(entry))
        };
        match tokio::task::spawn_blocking(commit).await.ok()? {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!(url = %task.target, %error, "the store could not keep this body");
                None
            }
        }
    }

    /// Reads the claims of an index that was just stored.
    async fn read_kept(
        self: &Arc<Self>,
        task: &Task,
        reading: ClaimReading,
        staged: Option<StagedClaims>,
    ) {
        let fetched = self.fetch_sidecars(task, reading.recognition.ecosystem).await;
        // The same document makes the same claims as before, unless sibling indexes that it depends on were fetched.
        self.read_claims(ClaimReading { known: fetched == 0, ..reading }, staged).await;
    }

    /// The ledger entry for a verified body. A resource whose recognition is `confirmed` only now will be requested as that
    /// resource from now on, so the entry is stored under its key.
    pub(super) fn entry_of(
        &self,
        task: &Task,
        confirmed: Option<&Recognition>,
        verified: &Verified,
    ) -> Entry {
        let received = verified.received();
        let known = confirmed.or(task.recognition.as_ref());
        let (target, varied) = match confirmed {
            Some(confirmed) => {
                (task.bare().clone().with_variant(confirmed.resource.variant.name), Vec::new())
            }
            None => task.place(received),
        };
        Entry {
            key: task.key_of(&target),
            shown: task.bare().to_string(),
            variant: target.variant().to_owned(),
            partition: task.principal.reader(),
            ecosystem: known.map_or("", |known| known.ecosystem.name()).to_owned(),
            index: known.is_some_and(|known| known.resource.kind == Kind::Index),
            blob: received.body.digests.blob(),
            size: received.body.size,
            digests: received.body.digests.iter().copied().collect(),
            head: received.head.clone(),
            varied,
            proof: Proof { private: task.principal.is_private(), ..verified.proof() },
            generation: self.store.generation(),
            answered_by: received.answered_by.clone(),
            requested_at: received.requested_at,
            received_at: received.received_at,
            checked_at: received.received_at,
        }
    }

    /// Whether other bytes were kept for this key before.
    fn changes_a_pin(&self, task: &Task, entry: &Entry) -> bool {
        self.store.entries(task.key).first().is_some_and(|known| known.blob != entry.blob)
    }

    /// Learns whether names below a root contain their digests. The convention is believed after it has held there; each body
    /// that arrives is an observation. Once it is believed, it refuses other bodies, and a refused body does not count against
    /// it. Otherwise one wrong body would let in the next.
    async fn learn_convention(&self, task: &Task, received: &Received) {
        let named = task.artifact().and_then(|artifact| artifact.named.clone());
        // With a content coding on the way, the digest of the bytes does not show whether the name is right.
        let tells = !received.plain && !is_coded(&received.head);
        let Some(Named { digest, convention: Some(root) }) = named.filter(|_| tells) else {
            return;
        };
        let matched = received.body.digests.get(digest.algorithm()) == Some(&digest);
        // These do not show how files are named there: an HTML page in place of a file, a body resumed after a broken transfer,
        // and an answer that depends on a credential.
        if !matched && (is_page(&received.head) || received.resumed || task.principal.is_private())
        {
            return;
        }
        let (store, ecosystem, file) =
            (Arc::clone(&self.store), task.ecosystem(), task.bare().clone());
        // Written to the ledger before it counts.
        let record = move || {
            if matched {
                store.note_convention(ecosystem, &root, &file, &digest);
            } else {
                store.note_unconventional(ecosystem, &root, &file);
            }
        };
        if tokio::task::spawn_blocking(record).await.is_err() {
            tracing::error!(url = %task.target, "an observation of a naming convention was not stored");
        }
    }

    fn alarm(&self, task: &Task, disagreement: Option<Mismatch>) {
        if let Some(mismatch) = disagreement {
            self.disagrees(task.bare(), &mismatch);
        }
    }
}

/// Whether a promise with authority vouches for a body.
fn vouches(expected: &Expectation, body: &Spooled) -> bool {
    let digests: Vec<Digest> = body.digests.iter().copied().collect();
    expected.vouches_for(&digests, body.size)
}

/// How a fill ends whose body has a promise and is neither completed nor refused.
fn undecided(task: &Task, expected: &Expectation, mismatch: &Mismatch) -> End {
    let (status, why) = if expected.unread().is_some() {
        (StatusCode::SERVICE_UNAVAILABLE, "try again in a moment")
    } else {
        (StatusCode::BAD_GATEWAY, "the index could not be asked again")
    };
    let line = format!("{}: {mismatch}; {why}", task.target);
    End::Failed(status, Why::new(Cause::Undecided, line))
}

/// How a fill ends whose body is right, of which no byte was kept or given. If a promise vouches for it, it is remembered: the
/// clients' own requests are answered as the body arrives, as far as it is the same.
fn only_judged(task: &Task, vouched: bool) -> End {
    if vouched && !task.principal.has_operator_login() {
        return End::Pass;
    }
    End::not_kept(&task.target, vouched)
}

fn refused(lead: &Lead, attempt: Attempt, end: End, resumed: bool) -> AttemptResult {
    let fetch_again = resumed && attempt == Attempt::First && lead.flight.nothing_given();
    if fetch_again { AttemptResult::Again(end) } else { AttemptResult::Ended(end) }
}

/// Whether a body is kept only by trust on first use. Confirmation by indexes without authority does not count.
fn is_pinned(expected: &Expectation, verified: &Verified) -> bool {
    let body = &verified.received().body;
    let digests: Vec<Digest> = body.digests.iter().copied().collect();
    let decided = expected.decided().proof_of(&digests, body.size);
    decided.is_some_and(|proof| proof.rank == Rank::Pinned)
}

/// The body with every digest that is expected of it: a claim that arrived during the transfer may name an algorithm that was not
/// computed.
async fn fully_hashed(mut body: Spooled, wanted: Wanted) -> Spooled {
    let digests = missing_digests(&body.file, body.size, &body.digests, wanted).await;
    if let Some(digests) = digests {
        body.digests = digests;
    }
    body
}

/// All digests of the body, if one is wanted that was not computed during the transfer.
async fn missing_digests(
    file: &Arc<File>,
    size: u64,
    known: &Digests,
    wanted: Wanted,
) -> Option<Digests> {
    // The digest of the content was computed during the transfer, or cannot be computed.
    let missing = |algorithm: Algorithm| {
        wanted.algorithms.contains(algorithm)
            && !algorithm.is_of_content()
            && known.get(algorithm).is_none()
    };
    if !Algorithm::ALL.into_iter().any(missing) {
        return None;
    }
    let algorithms: Algorithms = Algorithm::ALL
        .into_iter()
        .filter(|of| wanted.algorithms.contains(*of) || known.get(*of).is_some())
        .collect();
    let all = Wanted { algorithms, ..wanted };
    let file = Arc::clone(file);
    let hashed = tokio::task::spawn_blocking(move || -> io::Result<Digests> {
        let mut hashing = Hashing::new(all);
        hash_range(&mut hashing, &file, 0, size)?;
        Ok(hashing.finish())
    });
    hashed.await.ok()?.ok()
}
