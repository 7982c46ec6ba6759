//! Documents that carry their own signature are looked at before they are kept: over plain http nothing else could vouch for
//! them, and what is forged or not the edition that counts must not take the place of one that is.
//!
//! A file may carry one, too. Where an index knows the file, its word decides; where none does, the file's own signature by a
//! key of its repository is as good. One that does not hold is as if there were none: whether such a file is given is not
//! for a signature to say that nobody promised.

use std::io::{self, Read};
use std::sync::Arc;

use super::Pipeline;
use super::companions::{Beside, Companion};
use super::editions::{Held, StepBack, admit, note_waiting};
use super::generation::{Members, News};
use super::settle::confirms;
use super::task::Task;
use crate::claim::{Edition, Standing};
use crate::ecosystem::{Document, Malformed};
use crate::outcome::metrics::Alarm;
use crate::proof::{Proof, Rank};
use crate::received::Received;
use crate::target::{Partition, Root, Target};

/// What a document's own signature makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// Nothing: it has none, or none that is known.
    Nothing,
    /// It proves the document: what it is worth by that.
    Signed(Proof),
    /// The document is not to be kept: it is not the edition that counts.
    Held,
    /// Nor is this: it is not what was signed.
    Forged(String),
}

/// What a look at a document makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Worth {
    /// Its own signature proves it.
    pub(super) signed: Option<Proof>,
    /// A known key signed it, and has expired since.
    pub(super) expired_key: bool,
    /// Only the end of the connection ended it, so that there may have been more.
    pub(super) unframed: bool,
    /// It is not the edition that counts: who asked is given it, if no promise speaks against it, and it is not kept.
    pub(super) apart: bool,
}

/// What a look at a document found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) own: Own,
    /// What it says of itself.
    pub(super) edition: Option<Edition>,
    /// What it names, if it heads others.
    pub(super) members: Option<Members>,
    /// What it was read with.
    pub(super) companions: Vec<Companion>,
}

impl Looked {
    fn nothing() -> Self {
        Self { own: Own::Nothing, edition: None, members: None, companions: Vec::new() }
    }
}

impl Pipeline {
    /// Looks at the signature of a document that may carry one, before it is kept.
    pub(super) async fn own_signature(
        self: &Arc<Self>,
        task: &Task,
        received: &Received,
        base: &Target,
    ) -> Looked {
        let Some(known) = task.known() else {
            return Looked::nothing();
        };
        if task.is_unknown() && !confirms(known, task.bare(), received) {
            // Only its path looks like one.
            return Looked::nothing();
        }
        let ecosystem = known.ecosystem;
        let is_file = task.artifact().is_some();
        let unneeded = || is_file && self.expectation_of(task).binding().next().is_some();
        if !ecosystem.may_be_signed(task.bare()) || unneeded() {
            return Looked::nothing();
        }
        // What a file wants is the index that names it, which says nothing of the file's own signature.
        let companions =
            if is_file { Vec::new() } else { self.companions_of(task, ecosystem).await };
        let reader = task.asker.reader();
        let (pipeline, at, base) = (Arc::clone(self), task.bare().clone(), base.clone());
        let (head, path, plain) =
            (received.head.clone(), received.body.path().to_owned(), received.plain);
        let _place = self.reading.place().await;
        let looked = tokio::task::spawn_blocking(move || {
            let open =
                || -> io::Result<Box<dyn Read>> { Ok(Box::new(std::fs::File::open(&path)?)) };
            let document = Document {
                at: &at,
                base: &base,
                head: &head,
                proven: if plain { Rank::None } else { Rank::Origin },
                now: pipeline.clock.now(),
                open: &open,
                companions: &Beside { store: &pipeline.store, companions: &companions },
            };
            let mut news = News::new(&pipeline, ecosystem, &at, &companions, document.now);
            let standing = ecosystem.claims(&document, &pipeline.keys.get(), &mut news);
            let (rank, root) = match &standing {
                Ok(standing) => (standing.rank, standing.root.clone()),
                Err(_) => (Rank::None, Root::directory_of(&at)),
            };
            let own = if is_file {
                pipeline.own_file(&at, standing, news.edition.as_ref())
            } else {
                pipeline.own(&at, standing, news.edition.as_ref(), plain, reader)
            };
            let edition = news.edition.clone();
            let members = news.members(rank, &root);
            Looked { own, edition, members, companions }
        });
        looked.await.unwrap_or_else(|_| Looked::nothing())
    }

    fn own(
        &self,
        at: &Target,
        standing: Result<Standing, Malformed>,
        edition: Option<&Edition>,
        plain: bool,
        reader: Partition,
    ) -> Own {
        let (standing, edition) = match (standing, edition) {
            (Ok(standing), Some(edition)) => (standing, edition),
            (Err(forged @ Malformed::Forged(_)), _) => return Own::Forged(forged.to_string()),
            // A version before it could be read: that one and its claims stay, and this one goes to its asker.
            (Err(malformed), _) if self.store.seen_by(reader).current_claims(at).is_some() => {
                self.say(at, &malformed.to_string());
                return Own::Held;
            }
            // Over plain http it is not kept, and its claims are never read.
            (Err(malformed), _) if plain => {
                self.say(at, &malformed.to_string());
                return Own::Nothing;
            }
            // A page in the place of an index, say; what it is said to be is found when its claims are read.
            (Ok(_) | Err(_), _) => return Own::Nothing,
        };
        match admit(&self.store, at, &standing, edition, &self.keys.get(), self.clock.now()) {
            // What has expired is what its signers said, and clients may be told to take it all the same.
            Ok(()) | Err(Held::Expired(_)) if standing.rank == Rank::Signed => {
                let proof = Proof::of(Rank::Signed);
                Own::Signed(Proof { weak_hash: edition.weak_hash, ..proof })
            }
            Ok(()) => {
                self.name_missing_key(at, &standing, edition);
                Own::Nothing
            }
            Err(Held::Expired(_)) => Own::Nothing,
            Err(held) => {
                // What one credential sees of an archive binds nobody else to it.
                if reader == Partition::Public {
                    note_waiting(&self.store, &standing, edition, &held);
                }
                self.say(at, &held.to_string());
                Own::Held
            }
        }
    }

    /// What a file's own signature makes of it.
    fn own_file(
        &self,
        at: &Target,
        standing: Result<Standing, Malformed>,
        edition: Option<&Edition>,
    ) -> Own {
        let why = match (standing, edition) {
            (Ok(standing), Some(edition)) if standing.rank == Rank::Signed => {
                match admit(&self.store, at, &standing, edition, &self.keys.get(), self.clock.now())
                {
                    Ok(()) => {
                        let proof = Proof { own: true, ..Proof::of(Rank::Signed) };
                        return Own::Signed(Proof { weak_hash: edition.weak_hash, ..proof });
                    }
                    Err(held) => held.to_string(),
                }
            }
            (Ok(_), Some(edition)) => edition.unsigned.clone().unwrap_or_default(),
            (Ok(_), None) => return Own::Nothing,
            (Err(malformed), _) => malformed.to_string(),
        };
        if self.editions.is_news(&format!("{at} {why}")) {
            tracing::warn!(url = %at, why, "no index knows this file, and its own signature does not prove it");
            let text = format!("not proved by its own signature: {why}");
            self.store.note_rejection(at, &text, self.clock.now());
        }
        Own::Nothing
    }

    /// An edition does not count: in the log, in the metrics, and where `larder why` finds it; once a day for each.
    pub(super) fn say(&self, at: &Target, why: &str) {
        if self.editions.is_news(&format!("{at} {why}")) {
            tracing::warn!(url = %at, why, "this index makes no claims");
            let text = format!("makes no claims: {why}");
            self.metrics.alarm(Alarm::Signature, at.to_string(), text.clone(), false);
            self.store.note_rejection(at, &text, self.clock.now());
        }
    }

    /// An edition looks older than the one before, and nothing in it says so: it counts, and somebody should look.
    pub(super) fn say_step_back(&self, at: &Target, back: &StepBack) {
        if self.editions.is_news(&format!("{at} {back}")) {
            tracing::warn!(url = %at, why = %back, "this index looks like an older edition");
            let text = format!("looks like an older edition: {back}");
            self.metrics.alarm(Alarm::Signature, at.to_string(), text.clone(), false);
            self.store.note_rejection(at, &text, self.clock.now());
        }
    }

    /// Nobody whom larder knows signed for an archive; its operator may know better.
    fn name_missing_key(&self, at: &Target, standing: &Standing, edition: &Edition) {
        let Some(why) = &edition.unsigned else { return };
        if self.editions.is_news(&format!("{} {why}", standing.root)) {
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
