//! Checks a document's own signature before the document is kept. Over plain HTTP nothing else can vouch for it, and a forged
//! document, or a snapshot that does not count, must not replace a snapshot that does.
//!
//! A file may also carry a signature. If an index names the file, the index decides. If none does, the file's own signature by a
//! key of its repository is as good. An invalid embedded signature is ignored; no index required one.

use std::io::{self, Read};
use std::sync::Arc;

use super::Pipeline;
use super::answers::confirms;
use super::claims::{StagedClaims, indexes};
use super::shelf::{Sidecar, SidecarShelf};
use super::snapshot_order::{NotCounted, StepBack, admit, note_waiting};
use super::snapshots::{Members, NewVersion};
use super::task::Task;
use crate::claim::{Snapshot, Standing};
use crate::ecosystem::{Document, Malformed};
use crate::outcome::metrics::Alarm;
use crate::proof::{Proof, Rank};
use crate::received::Received;
use crate::target::{Partition, Root, Target};

/// The result of checking a document's own signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SignatureCheck {
    /// No result: the document has no signature, or none by a known key.
    Nothing,
    /// The signature is valid; this is the proof that follows.
    Signed(Proof),
    /// The document must not be kept: it is not the snapshot that counts.
    Held,
    /// The document must not be kept: it is not what was signed.
    Forged(String),
}

/// What the checks of a document decide about keeping it.
#[derive(Debug, Default)]
pub(super) struct KeepDecision {
    /// The proof, if the document's own signature is valid.
    pub(super) signed: Option<Proof>,
    /// The keys that signed it, as [`Snapshot::makers`].
    pub(super) signers: Vec<Box<str>>,
    /// The document was signed by a known key that has expired since.
    pub(super) expired_key: bool,
    /// Only the end of the connection ended the body, so it may be truncated.
    pub(super) unframed: bool,
    /// The document is not the snapshot that counts: it is given to the client if no promise contradicts it, and not kept.
    pub(super) apart: bool,
    /// The document's claims, which are published once it is stored.
    pub(super) claims: Option<StagedClaims>,
}

/// The result of reading a document before it is kept.
#[derive(Debug)]
pub(super) struct ReadDocument {
    pub(super) own: SignatureCheck,
    /// What the document says of itself.
    pub(super) edition: Option<Snapshot>,
    /// What the document names, if it is a snapshot's root.
    pub(super) members: Option<Members>,
    /// The sidecars that it was read with.
    pub(super) sidecars: Vec<Sidecar>,
    /// Its claims, if it was understood.
    pub(super) claims: Option<StagedClaims>,
}

impl ReadDocument {
    fn nothing() -> Self {
        Self {
            own: SignatureCheck::Nothing,
            edition: None,
            members: None,
            sidecars: Vec::new(),
            claims: None,
        }
    }
}

impl Pipeline {
    /// Checks the signature of a document that may carry one, before it is kept.
    pub(super) async fn own_signature(
        self: &Arc<Self>,
        task: &Task,
        received: &Received,
        base: &Target,
    ) -> ReadDocument {
        let Some(known) = task.known() else {
            return ReadDocument::nothing();
        };
        if task.is_unknown() && !confirms(known, task.bare(), received) {
            // Only the path looks like an index of this ecosystem.
            return ReadDocument::nothing();
        }
        let ecosystem = known.ecosystem;
        let is_file = task.artifact().is_some();
        let unneeded = || is_file && self.expectation_of(task).binding().next().is_some();
        if !ecosystem.may_be_signed(task.bare()) || unneeded() {
            return ReadDocument::nothing();
        }
        // The prerequisite of a file is the index that names it, which says nothing of the file's own signature.
        let sidecars = if is_file { Vec::new() } else { self.sidecars_of(task, ecosystem).await };
        let (reader, recognition) = (task.principal.reader(), known.clone());
        let (pipeline, at, base) = (Arc::clone(self), task.bare().clone(), base.clone());
        let blob = received.body.digests.blob();
        let (head, path, plain) =
            (received.head.clone(), received.body.path().to_owned(), received.plain);
        let _place = self.reading.place().await;
        let looked = tokio::task::spawn_blocking(move || {
            tracing::debug!(url = %at, "reading an index before it is kept");
            let open =
                || -> io::Result<Box<dyn Read>> { Ok(Box::new(std::fs::File::open(&path)?)) };
            let document = Document {
                at: &at,
                base: &base,
                head: &head,
                proven: if plain { Rank::None } else { Rank::Origin },
                now: pipeline.clock.now(),
                open: &open,
                shelf: &SidecarShelf { store: &pipeline.store, fetched: &sidecars },
            };
            let keys = pipeline.keys.changes();
            // Without a batch, for lack of room for example, the document is read again when it is stored.
            let place = pipeline.reading.staging().filter(|_| !is_file);
            let batch = match &*indexes(&recognition, &at) {
                [index] if place.is_some() => pipeline.batch(ecosystem, index, blob, reader).ok(),
                _ => None,
            };
            let mut news =
                NewVersion::new(&pipeline, ecosystem, &at, &sidecars, batch, document.now);
            let read = ecosystem.claims(&document, &pipeline.keys.get(), &mut news);
            let edition = news.edition.clone();
            let nothing = || Standing { rank: Rank::None, root: Root::directory_of(&at) };
            let standing = read.as_ref().map_or_else(|_| nothing(), Clone::clone);
            let (batch, members) = news.finish(&standing);
            if is_file {
                let own = pipeline.own_file(&at, read, edition.as_ref());
                return ReadDocument { own, edition, members, sidecars, claims: None };
            }
            let understood = read.is_ok() && edition.is_some();
            let own = pipeline.own(&at, read, edition.as_ref(), plain, reader);
            let claims = batch.filter(|_| understood).zip(place);
            let claims =
                claims.map(|(batch, place)| StagedClaims { batch, standing, keys, _place: place });
            ReadDocument { own, edition, members, sidecars, claims }
        });
        looked.await.unwrap_or_else(|_| ReadDocument::nothing())
    }

    /// The result of checking an index's own signature.
    fn own(
        &self,
        at: &Target,
        standing: Result<Standing, Malformed>,
        edition: Option<&Snapshot>,
        plain: bool,
        reader: Partition,
    ) -> SignatureCheck {
        let (standing, edition) = match (standing, edition) {
            (Ok(standing), Some(edition)) => (standing, edition),
            (Err(forged @ Malformed::Forged(_)), _) => {
                return SignatureCheck::Forged(forged.to_string());
            }
            // The version before this one could be parsed. That version and its claims stay, and this one is given to its client
            // only.
            (Err(malformed), _) if self.store.seen_by(reader).current_claims(at).is_some() => {
                self.say(at, &malformed.to_string());
                return SignatureCheck::Held;
            }
            // A document over plain HTTP without a valid signature is not kept, and its claims are never read.
            (Err(malformed), _) if plain => {
                self.say(at, &malformed.to_string());
                return SignatureCheck::Nothing;
            }
            // An HTML page in place of an index, for example. Reading its claims will report what is wrong.
            (Ok(_) | Err(_), _) => return SignatureCheck::Nothing,
        };
        match admit(&self.store, at, &standing, edition, &self.keys.get(), self.clock.now()) {
            // An expired document is still what its signers signed, and clients can be configured to accept it.
            Ok(()) | Err(NotCounted::Expired(_)) if standing.rank == Rank::Signed => {
                self.store.note_vouchers(&standing.root, &edition.makers);
                let proof = Proof::of(Rank::Signed);
                SignatureCheck::Signed(Proof { weak_hash: edition.weak_hash, ..proof })
            }
            Ok(()) => {
                self.name_missing_key(at, &standing, edition);
                SignatureCheck::Nothing
            }
            Err(NotCounted::Expired(_)) => SignatureCheck::Nothing,
            Err(held) => {
                // What one credential sees of an archive does not bind other clients.
                if reader == Partition::Public {
                    note_waiting(&self.store, &standing, edition, &held);
                }
                self.say(at, &held.to_string());
                SignatureCheck::Held
            }
        }
    }

    /// The result of checking a file's own signature.
    fn own_file(
        &self,
        at: &Target,
        standing: Result<Standing, Malformed>,
        edition: Option<&Snapshot>,
    ) -> SignatureCheck {
        let why = match (standing, edition) {
            (Ok(standing), Some(edition)) if standing.rank == Rank::Signed => {
                match admit(&self.store, at, &standing, edition, &self.keys.get(), self.clock.now())
                {
                    Ok(()) => {
                        self.store.note_vouchers(&standing.root, &edition.makers);
                        let proof = Proof { own: true, ..Proof::of(Rank::Signed) };
                        return SignatureCheck::Signed(Proof {
                            weak_hash: edition.weak_hash,
                            ..proof
                        });
                    }
                    Err(held) => held.to_string(),
                }
            }
            (Ok(_), Some(edition)) => edition.unsigned.clone().unwrap_or_default(),
            (Ok(_), None) => return SignatureCheck::Nothing,
            (Err(malformed), _) => malformed.to_string(),
        };
        if self.logged.is_news(&format!("{at} {why}")) {
            tracing::warn!(url = %at, why, "no index knows this file, and its own signature does not prove it");
            let text = format!("not proved by its own signature: {why}");
            self.store.note_rejection(at, &text, self.clock.now());
        }
        SignatureCheck::Nothing
    }

    /// Reports that a snapshot does not count: in the log, in the metrics, and for `larder why`; each message once a day.
    pub(super) fn say(&self, at: &Target, why: &str) {
        if self.logged.is_news(&format!("{at} {why}")) {
            tracing::warn!(url = %at, why, "this index makes no claims");
            let text = format!("makes no claims: {why}");
            self.metrics.alarm(Alarm::Signature, at.to_string(), text.clone(), false);
            self.store.note_rejection(at, &text, self.clock.now());
        }
    }

    /// Reports that a snapshot without a date looks older than the one before. It counts, and the operator should look.
    pub(super) fn say_step_back(&self, at: &Target, back: &StepBack) {
        if self.logged.is_news(&format!("{at} {back}")) {
            tracing::warn!(url = %at, why = %back, "this index looks like an older edition");
            let text = format!("looks like an older edition: {back}");
            self.metrics.alarm(Alarm::Signature, at.to_string(), text.clone(), false);
            self.store.note_rejection(at, &text, self.clock.now());
        }
    }

    /// Reports that no known key signed an archive; the operator may be able to add its key.
    fn name_missing_key(&self, at: &Target, standing: &Standing, edition: &Snapshot) {
        let Some(why) = &edition.unsigned else { return };
        if self.logged.is_news(&format!("{} {why}", standing.root)) {
            let worth = if standing.rank == Rank::None {
                "it is passed on and not kept"
            } else {
                "only TLS vouches for it"
            };
            tracing::info!(
                url = %at, why,
                "this archive's signature is not known, so {worth}; `larder keys add FILE` makes its key known, with the file \
                 that the archive's operator publishes"
            );
            let text = format!(
                "not proved by its signature: {why}; `larder keys add FILE` makes a key known"
            );
            self.store.note_rejection(at, &text, self.clock.now());
        }
    }
}
