//! The end of a fill: judge, commit, read claims.
//!
//! The order is that of DESIGN §4: what was received is compared with everything that is promised of it by now; what
//! may be kept is committed; an index then leaves its claims, as a set; only then does the flight end, so that who saw the
//! end of an index finds its claims.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use hyper::StatusCode;

use super::Pipeline;
use super::beside::uncompared_besides;
use super::bound::promised_meanwhile;
use super::coded::is_coded;
use super::editions;
use super::lead::{Attempt, Came, is_page};
use super::signature::{Own, Worth};
use super::task::Task;
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
use crate::target::{Root, Target};
use crate::verify::{self, Expectation, Finding, Mismatch, Verdict, Verified};

/// How much of a body an ecosystem looks at to confirm a likely shape, in bytes.
const START: usize = 1024;

impl Pipeline {
    /// Judges a complete body, and keeps what may be kept.
    pub(super) async fn settle(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        answer: Answer,
        complete: Complete,
        attempt: Attempt,
    ) -> Came {
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
                let worth = Worth { unframed, ..worth };
                self.judge(lead, task, received, &base, attempt, worth).await
            }
            Err(came) => came,
        }
    }

    /// Looks at a document that may be signed, and at what belongs to it: what its signature makes of it. `Err`: it is neither
    /// kept nor given, or not yet.
    async fn look_at(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        received: &mut Received,
        base: &Target,
        attempt: Attempt,
    ) -> Result<Worth, Came> {
        let looked = self.own_signature(task, received, base).await;
        // What does not count is still held to what others promise of it.
        let apart = Worth { apart: true, ..Worth::default() };
        let signed = match looked.own {
            Own::Held => return Ok(apart),
            Own::Forged(why) => {
                let pair = !looked.companions.is_empty();
                let may_repeat = attempt == Attempt::First && lead.flight.nothing_given();
                return match self.out_of_step(task, &why, pair, may_repeat) {
                    Some(came) => Err(came),
                    None => Ok(apart),
                };
            }
            Own::Signed(proof) => Some(proof),
            Own::Nothing => None,
        };
        // Who reads a private archive is given what it says today: its members are not larder's to ask for.
        if let Some(members) = looked.members.filter(|_| !task.asker.is_private()) {
            self.keep_companions(task, looked.companions, &members).await;
            self.assemble(task, received, members).await?;
        }
        let edition = looked.edition.unwrap_or_default();
        let newest = self.store.newest_date(&Root::directory_of(task.bare()));
        if signed.is_some() && edition.date.is_some() && edition.date < newest {
            // Its members took a while, and a newer edition came meanwhile.
            return Ok(apart);
        }
        if signed.is_some()
            && let Some(date) = edition.date
        {
            editions::date(&mut received.head, date, received.requested_at);
        }
        let expired_key = edition.expired_key && !received.plain;
        Ok(Worth { signed, expired_key, ..Worth::default() })
    }

    /// Compares what came with what is promised of it by now.
    async fn judge(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        mut received: Received,
        base: &Target,
        attempt: Attempt,
        worth: Worth,
    ) -> Came {
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
                    }
                    if worth.apart {
                        return Came::Ended(End::Given);
                    }
                    lead.flight.release(verified.proof());
                    let pinned = is_pinned(&expected, &verified);
                    return Came::Ended(self.keep(task, verified, base, worth, pinned).await);
                }
                Verdict::Give(given, disagreement) => {
                    let vouched = vouches(&expected, &given.body);
                    let came = self.given(lead, task, &given.body, vouched, attempt).await;
                    if matches!(came, Came::Ended(End::Given)) {
                        self.alarm(task, disagreement);
                        if given.plain && !worth.apart {
                            // Whoever sits on the line chose these bytes: the next client asks for itself.
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
                    let (status, why) = undecided(&expected);
                    let line = format!("{}: {mismatch}; {why}", task.target);
                    let end = End::Failed(status, Why::new(Cause::Undecided, line));
                    return refused(lead, attempt, end, resumed);
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
        Came::Ended(End::Given)
    }

    /// Ends a body that is given and not kept, if the ranges that were given beside it agree; `vouched`: a promise vouches for it.
    async fn given(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        body: &Spooled,
        vouched: bool,
        attempt: Attempt,
    ) -> Came {
        if let Err(mismatch) = self.compare_besides(task, &lead.flight, body).await {
            return self.refuse(lead, task, &mismatch, attempt, false);
        }
        if vouched {
            lead.flight.vouch();
        }
        Came::Ended(End::Given)
    }

    /// The store was full: nothing is kept, and what was promised holds all the same.
    async fn settle_unstored(
        self: &Arc<Self>,
        lead: &Lead,
        task: &Task,
        digests: &Digests,
        size: u64,
        attempt: Attempt,
        resumed: bool,
    ) -> Came {
        let why = "not kept: the store has no room for it".to_owned();
        self.metrics.alarm(Alarm::Full, task.target.to_string(), why, task.is_public());
        let all: Vec<Digest> = digests.iter().copied().collect();
        for last in [false, true] {
            let promised = self.expectation_of(task);
            let expected = promised.clone().comparable(digests);
            if promised.binds_more_than(&expected) {
                let line = promised_meanwhile(&task.target);
                return Came::Ended(End::undecided(line));
            }
            match expected.find(&all, size, task.asked).because(digests.fault()) {
                Finding::Proven { .. } | Finding::Excused(_) => {
                    return match uncompared_besides(&lead.flight) {
                        None => {
                            if expected.vouches_for(&all, size) {
                                lead.flight.vouch();
                            }
                            Came::Ended(End::Given)
                        }
                        // The body is as promised: its origin did nothing wrong.
                        Some(mismatch) => {
                            let line = format!("{}: {mismatch}", task.target);
                            Came::Ended(End::Failed(
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
                    let (status, why) = undecided(&expected);
                    let line = format!("{}: {mismatch}; {why}", task.target);
                    let end = End::Failed(status, Why::new(Cause::Undecided, line));
                    return refused(lead, attempt, end, resumed);
                }
                Finding::Doubted(mismatch) | Finding::Refused(mismatch) => {
                    return self.refuse(lead, task, &mismatch, attempt, resumed);
                }
            }
        }
        Came::Ended(End::Given)
    }

    /// Asks again the indexes whose word would refuse a body that was asked for at `asked`.
    pub(super) async fn ask_again_for(
        self: &Arc<Self>,
        task: &Task,
        expected: &Expectation,
        asked: Time,
    ) {
        if let Some(recognition) = &task.recognition {
            self.ask_again(recognition, (task.reach, &task.asker), expected, asked).await;
        }
    }

    /// A body that is not what was promised. Nothing given yet: fetched once more on a new connection. After a resume it
    /// is not a rejection: two halves of two bodies prove nothing against either.
    pub(super) fn refuse(
        &self,
        lead: &Lead,
        task: &Task,
        mismatch: &Mismatch,
        attempt: Attempt,
        resumed: bool,
    ) -> Came {
        let line = format!("{} was refused: {mismatch}", task.target);
        self.distrust_parts(task, &lead.flight);
        if resumed {
            let line = format!("{line} (after the transfer broke and was resumed; try again)");
            let end = End::Failed(StatusCode::BAD_GATEWAY, Why::new(Cause::Broken, line));
            return refused(lead, attempt, end, true);
        }
        if attempt == Attempt::First && lead.flight.nothing_given() {
            return Came::Again(End::Refused(line));
        }
        if Self::is_ahead(task) {
            return Came::Ended(End::Refused(line));
        }
        tracing::error!(target: "larder::refused", url = %task.target, %mismatch, "refused: not what was promised");
        let shown = task.target.to_string();
        self.metrics.rejected(shown, mismatch.to_string(), task.is_public());
        self.store.note_rejection(task.bare(), &mismatch.to_string(), self.clock.now());
        Came::Ended(End::Refused(line))
    }

    /// A pinned file is another one now.
    fn say_changed(&self, task: &Task, entry: &Entry) {
        tracing::warn!(url = %task.target, now = %entry.blob, "a pinned file changed; both are kept");
        let why =
            format!("a pinned file changed, and both are kept; it is sha256:{} now", entry.blob);
        self.metrics.alarm(Alarm::Changed, task.target.to_string(), why, task.is_public());
    }

    /// Commits, and reads the claims of an index. `pinned`: nothing but first use decides that it is kept.
    async fn keep(
        self: &Arc<Self>,
        task: &Task,
        verified: Verified,
        base: &Target,
        worth: Worth,
        pinned: bool,
    ) -> End {
        let received = verified.received();
        // Nothing says that this was all of it; or it is a sign-in page or a block page in the place of a package.
        let cut = worth.unframed && !verified.proof().rank.is_strong();
        if cut || pinned && is_page(&received.head) {
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
        let (store, spared) = (Arc::clone(&self.store), self.still_promised(task));
        let commit = move || store.commit_beside(verified, entry, &spared);
        let committed = tokio::task::spawn_blocking(commit).await;
        let entry = match committed {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => {
                tracing::error!(url = %task.target, %error, "the store could not keep this body");
                return End::Given;
            }
            Err(_) => return End::Given,
        };
        self.note_received(task, &entry);
        if changed {
            self.say_changed(task, &entry);
        }
        if !task.is_guarded() && !task.is_of_one() {
            self.note_service(task);
        } else if task.is_of_a_service() {
            // Its clients come with another token each time.
            self.ask_in_public(task, &entry);
        }
        if let Some(recognition) = confirmed.as_ref().filter(|_| !task.bare().has_token()) {
            self.store.confirm_root(recognition.ecosystem.name(), &recognition.resource.root);
        }
        if let Some(recognition) = confirmed.as_ref().or(index.as_ref()) {
            let companions = self.chase_beside(task, recognition.ecosystem).await;
            // The same document again says what it said, unless it is read in the light of others.
            let (known, reader) = (companions == 0, task.asker.reader());
            self.read_claims(recognition, task.bare(), &entry, base, known, reader).await;
        }
        End::Kept(entry)
    }

    /// What the ledger will say. A resource that is `confirmed` only now is from now on asked for as what it is, and must
    /// be found as that.
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
            partition: task.asker.reader(),
            ecosystem: known.map_or("", |known| known.ecosystem.name()).to_owned(),
            index: known.is_some_and(|known| known.resource.kind == Kind::Index),
            blob: received.body.digests.blob(),
            size: received.body.size,
            digests: received.body.digests.iter().copied().collect(),
            head: received.head.clone(),
            varied,
            proof: Proof { private: task.asker.is_private(), ..verified.proof() },
            generation: self.store.generation(),
            answered_by: received.answered_by.clone(),
            requested_at: received.requested_at,
            received_at: received.received_at,
            checked_at: received.received_at,
        }
    }

    /// Whether other bytes were pinned under this URL.
    fn changes_a_pin(&self, task: &Task, entry: &Entry) -> bool {
        self.store.entries(task.key).first().is_some_and(|known| known.blob != entry.blob)
    }

    /// A naming convention is believed below a root after it has held there; each body that arrives is an observation. Once it
    /// is believed it refuses, and what it refuses does not speak against it: otherwise one wrong body would open the door to
    /// the next.
    async fn learn_convention(&self, task: &Task, received: &Received) {
        let named = task.artifact().and_then(|artifact| artifact.named.clone());
        // Of what was coded on the way the name says nothing.
        let tells = !received.plain && !is_coded(&received.head);
        let Some(Named { digest, convention: Some(root) }) = named.filter(|_| tells) else {
            return;
        };
        let matched = received.body.digests.get(digest.algorithm()) == Some(&digest);
        // A page in the place of a file, two halves of a broken transfer, and what a credential made of the answer say nothing
        // of how files are named there.
        if !matched && (is_page(&received.head) || received.resumed || task.asker.is_private()) {
            return;
        }
        let (store, ecosystem, file) =
            (Arc::clone(&self.store), task.ecosystem(), task.bare().clone());
        // It is written down before it counts.
        let record = move || {
            if matched {
                store.note_convention(ecosystem, &root, &file, &digest);
            } else {
                store.note_unconventional(ecosystem, &root, &file);
            }
        };
        if tokio::task::spawn_blocking(record).await.is_err() {
            tracing::error!(url = %task.target, "what a name says of its file was not written down");
        }
    }

    fn alarm(&self, task: &Task, disagreement: Option<Mismatch>) {
        if let Some(mismatch) = disagreement {
            self.disagrees(task.bare(), &mismatch);
        }
    }
}

/// Whether a promise that may decide vouches for a body.
fn vouches(expected: &Expectation, body: &Spooled) -> bool {
    let digests: Vec<Digest> = body.digests.iter().copied().collect();
    expected.vouches_for(&digests, body.size)
}

/// Why a body of which something is promised is neither completed nor refused.
fn undecided(expected: &Expectation) -> (StatusCode, &'static str) {
    if expected.unread().is_some() {
        return (StatusCode::SERVICE_UNAVAILABLE, "try again in a moment");
    }
    (StatusCode::BAD_GATEWAY, "the index could not be asked again")
}

fn refused(lead: &Lead, attempt: Attempt, end: End, resumed: bool) -> Came {
    let fetch_again = resumed && attempt == Attempt::First && lead.flight.nothing_given();
    if fetch_again { Came::Again(end) } else { Came::Ended(end) }
}

/// Whether nothing but first use decides that a body is kept: an index elsewhere may confirm whatever it likes.
fn is_pinned(expected: &Expectation, verified: &Verified) -> bool {
    let body = &verified.received().body;
    let digests: Vec<Digest> = body.digests.iter().copied().collect();
    let decided = expected.decided().proof_of(&digests, body.size);
    decided.is_some_and(|proof| proof.rank == Rank::Pinned)
}

pub(super) fn confirms(likely: &Recognition, at: &Target, received: &Received) -> bool {
    let mut start = vec![0; START.min(usize::try_from(received.body.size).unwrap_or(START))];
    // At most 1 KiB of a file that was written a moment ago: it is in memory.
    received.body.file.read_exact_at(&mut start, 0).is_ok()
        && likely.ecosystem.confirm(at, &received.head, &start)
}

/// The body with every digest that is expected of it: a claim that came while it was arriving may name an algorithm that
/// was not computed.
async fn fully_hashed(mut body: Spooled, wanted: Wanted) -> Spooled {
    let digests = missing_digests(&body.file, body.size, &body.digests, wanted).await;
    if let Some(digests) = digests {
        body.digests = digests;
    }
    body
}

/// All digests of the body, if one is wanted that was not computed while it came.
async fn missing_digests(
    file: &Arc<File>,
    size: u64,
    known: &Digests,
    wanted: Wanted,
) -> Option<Digests> {
    // The content was read while it came, or cannot be.
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
        let mut buffer = vec![0; 256 * 1024];
        let mut at = 0;
        while at < size {
            let read = file.read_at(&mut buffer, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hashing.update(buffer.get(..read).unwrap_or_default());
            at += read as u64;
        }
        Ok(hashing.finish())
    });
    hashed.await.ok()?.ok()
}
