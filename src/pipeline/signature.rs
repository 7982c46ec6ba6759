//! Documents that carry their own signature are looked at before they are kept: over plain http nothing else could vouch for
//! them, and what is forged or not the edition that counts must not take the place of one that is.

use std::io::{self, Read};
use std::sync::Arc;

use super::Pipeline;
use super::editions::{Held, admit};
use super::shelf::Shelves;
use super::task::Task;
use crate::claim::{Claim, ClaimSink, Edition, Standing, TooMany};
use crate::clock::Time;
use crate::ecosystem::{Document, Malformed};
use crate::outcome::metrics::Alarm;
use crate::proof::Rank;
use crate::received::Received;
use crate::target::Target;

/// What a document's own signature makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// Nothing: it has none, or none that is known.
    Nothing,
    /// It proves the document.
    Signed,
    /// The document is not to be kept: forged, or not the edition that counts.
    Held,
}

/// Takes nothing but what an index says of itself.
#[derive(Debug, Default)]
struct OnlyEdition(Option<Edition>);

impl ClaimSink for OnlyEdition {
    fn claim(&mut self, _: Claim) -> Result<(), TooMany> {
        Ok(())
    }

    fn edition(&mut self, edition: Edition) {
        self.0 = Some(edition);
    }
}

impl Pipeline {
    /// Looks at the signature of a document that may carry one, before it is kept.
    pub(super) async fn own_signature(
        self: &Arc<Self>,
        task: &Task,
        received: &Received,
        base: &Target,
    ) -> Own {
        let Some(known) = task.recognition.as_ref().or(task.likely.as_ref()) else {
            return Own::Nothing;
        };
        let ecosystem = known.ecosystem;
        if task.artifact().is_some() || !ecosystem.may_be_signed(task.bare()) {
            return Own::Nothing;
        }
        let (pipeline, at, base) = (Arc::clone(self), task.bare().clone(), base.clone());
        let (head, path, plain) =
            (received.head.clone(), received.body.path().to_owned(), received.plain);
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
                companions: &Shelves { store: &pipeline.store, since: Time::from_millis(i64::MIN) },
            };
            let mut said = OnlyEdition::default();
            let standing = ecosystem.claims(&document, &pipeline.keys.get(), &mut said);
            pipeline.own(&at, standing, said.0.as_ref())
        });
        looked.await.unwrap_or(Own::Nothing)
    }

    fn own(
        &self,
        at: &Target,
        standing: Result<Standing, Malformed>,
        edition: Option<&Edition>,
    ) -> Own {
        let (standing, edition) = match (standing, edition) {
            (Ok(standing), Some(edition)) => (standing, edition),
            (Err(forged @ Malformed::Forged(_)), _) => {
                self.say(at, &forged.to_string());
                return Own::Held;
            }
            // A page in the place of an index, say; what it is said to be is found when its claims are read.
            (Ok(_) | Err(_), _) => return Own::Nothing,
        };
        match admit(&self.store, at, &standing, edition, self.clock.now()) {
            // What has expired is what its signers said, and clients may be told to take it all the same.
            Ok(()) | Err(Held::Expired(_)) if standing.rank == Rank::Signed => Own::Signed,
            Ok(()) => {
                self.name_missing_key(at, &standing, edition);
                Own::Nothing
            }
            Err(Held::Expired(_)) => Own::Nothing,
            Err(held) => {
                self.say(at, &held.to_string());
                Own::Held
            }
        }
    }

    /// An edition does not count: in the log, in the metrics, and where `larder why` finds it; once a day for each.
    pub(super) fn say(&self, at: &Target, why: &str) {
        if self.editions.is_news(format!("{at} {why}")) {
            tracing::warn!(url = %at, why, "this index makes no claims");
            self.metrics.alarm(Alarm::Signature);
            self.store.note_rejection(at, &format!("makes no claims: {why}"), self.clock.now());
        }
    }

    /// Nobody whom larder knows signed for an archive; its operator may know better.
    fn name_missing_key(&self, at: &Target, standing: &Standing, edition: &Edition) {
        let Some(why) = &edition.unsigned else { return };
        if self.editions.is_news(format!("{} {why}", standing.root)) {
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
