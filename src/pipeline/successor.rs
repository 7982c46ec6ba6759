//! An answer replaces a stored index only if it is an index.
//!
//! A captive portal, a maintenance page or an error with status 200 is not an index, whatever its URL. It is given to the client
//! that requested it, which would have got it without larder. But it replaces neither the stored index nor its claims. Otherwise
//! a page that was there for a minute would be served as the last good copy for days, and a changed file would pass because no
//! promise covered it any more.
//!
//! A document that a binding digest or a signature vouches for is not checked here.

use std::io::Read;
use std::sync::Arc;

use super::Pipeline;
use super::answers::is_page;
use super::claims::indexes;
use super::shelf::Shelves;
use super::task::Task;
use crate::claim::{Claim, ClaimSink, TooMany};
use crate::clock::Time;
use crate::ecosystem::{Document, Malformed, Recognition};
use crate::outcome::metrics::Alarm;
use crate::proof::Rank;
use crate::received::Received;
use crate::target::Target;

/// The longest index that is parsed completely before it is kept, in bytes: that takes some hundred milliseconds. Of a longer
/// document the first file that it names is enough, because a document that is no index does not parse that far. It is parsed
/// completely when it is kept.
const READ_WHOLE: u64 = 8 << 20;

/// Counts the files that a document names, up to `enough`.
struct Count {
    claims: u64,
    enough: u64,
}

impl ClaimSink for Count {
    fn claim(&mut self, _: Claim) -> Result<(), TooMany> {
        self.claims += 1;
        if self.claims < self.enough { Ok(()) } else { Err(TooMany) }
    }

    fn forged_claim(&mut self, claim: Claim, _: &str) -> Result<(), TooMany> {
        self.claim(claim)
    }
}

impl Pipeline {
    /// Why an answer may not replace the stored index and its claims; `None` if it may.
    pub(super) async fn why_no_successor(
        self: &Arc<Self>,
        task: &Task,
        known: &Recognition,
        received: &Received,
        base: &Target,
    ) -> Option<String> {
        let newest = self.store.entries(task.key).into_iter().next();
        if newest.is_some_and(|newest| is_page(&received.head) && !is_page(&newest.head)) {
            return Some("it is a page of HTML, and the one before was none".to_owned());
        }
        let seen = self.store.seen_by(task.principal.reader());
        let blob = received.body.digests.blob();
        let mut before =
            indexes(known, task.bare()).into_iter().filter_map(|index| seen.names(&index));
        // A stored index that names no file may be replaced by any document.
        before.find(|(document, claims)| *claims > 0 && *document != blob)?;
        let mut last = false;
        loop {
            let why = self.reads_as_index(task, known, received, base).await?;
            // The document may need a sibling index to be understood, of which no recent copy is stored. Fetch it and try once
            // more.
            if last || self.fetch_sidecars(task, known.ecosystem).await == 0 {
                return Some(why);
            }
            last = true;
        }
    }

    /// Why a document is no index that names files; `None` if it is one.
    async fn reads_as_index(
        self: &Arc<Self>,
        task: &Task,
        known: &Recognition,
        received: &Received,
        base: &Target,
    ) -> Option<String> {
        let (pipeline, known) = (Arc::clone(self), known.clone());
        let (at, base) = (task.bare().clone(), base.clone());
        let (head, path) = (received.head.clone(), received.body.path().to_owned());
        let enough = if received.body.size > READ_WHOLE { 1 } else { u64::MAX };
        let _place = self.reading.place().await;
        let reading = tokio::task::spawn_blocking(move || {
            let open =
                || -> std::io::Result<Box<dyn Read>> { Ok(Box::new(std::fs::File::open(&path)?)) };
            let document = Document {
                at: &at,
                base: &base,
                head: &head,
                proven: Rank::Origin,
                now: pipeline.clock.now(),
                open: &open,
                shelf: &Shelves { store: &pipeline.store, since: Time::from_millis(i64::MIN) },
            };
            let mut count = Count { claims: 0, enough };
            let keys = pipeline.keys.get();
            let read = known.ecosystem.which(&document, indexes(&known, &at));
            let read = read.and_then(|_| known.ecosystem.claims(&document, &keys, &mut count));
            match read {
                _ if count.claims >= enough => None,
                // A forged signature is reported where the signature is checked (signature.rs).
                Err(Malformed::Forged(_)) => None,
                Err(malformed) => Some(malformed.to_string()),
                Ok(_) if count.claims == 0 => {
                    Some("it names no files, and the one before named some".to_owned())
                }
                Ok(_) => None,
            }
        });
        reading.await.unwrap_or(None)
    }

    /// Reports that an answer is not kept because it is no index: in the log, in the metrics, and for `larder why`.
    pub(super) fn say_no_successor(&self, task: &Task, why: &str) {
        tracing::warn!(
            url = %task.target, why,
            "this answer is not kept: it is not the index that its URL is for. Its asker has it; the index from before and what \
             it promises stay"
        );
        let shown = task.target.to_string();
        self.metrics.alarm(Alarm::Malformed, shown, why.to_owned(), task.is_public());
        let text = format!("not kept, the index from before stays: {why}");
        self.store.note_rejection(task.bare(), &text, self.clock.now());
    }
}
