//! Requests that come while what is stored is read after a crash: their origins answer them, and where an origin does not, they
//! wait for the copy, if there may be one that everybody may have.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Response, StatusCode};

use super::answers::is_failure;
use super::lookup::Stored;
use super::record::Record;
use super::task::Task;
use super::unknown_header::may_have_public_copy;
use super::{Asked, Call, Pipeline};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::outcome::metrics::StoodIn;
use crate::policy::PassReason;
use crate::reply::Body;

/// How long requests wait for the records, counted from the start: a small store is read in less, and of a large one no build
/// waits for it with each of its requests.
const WAIT_FOR_RECORDS: Duration = Duration::from_secs(1);

/// How long the failure of an origin is withheld at most because the records, once they are read, may show a copy. Shorter than
/// the shortest read timeout of common clients, which is pip's with 15 seconds. The connection of the answer stays open meanwhile.
/// `upstream.header_timeout` may make it shorter.
const WAIT_FOR_COPY: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Whether what is stored is known.
    pub(super) async fn knows_its_store(&self) -> bool {
        self.store.is_read_within(WAIT_FOR_RECORDS).await
    }

    /// Passes a request that would be answered from the store, or for which a copy would stand in, for `reason`. When its origin
    /// fails, or has said nothing when the records are read and its patience is over, the copy stands in, if there is one that
    /// everybody may have.
    pub(super) async fn pass_or_copy(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: &Task,
        reason: PassReason,
        record: &mut Record,
    ) -> Response<Body> {
        if !may_have_public_copy(task) {
            return self.pass_for(call, task, reason, record).await;
        }
        let down = self.is_down_for(task);
        if down {
            // The pass ends when its client stops waiting.
            self.knock_for(task);
        }
        let connection = Arc::clone(&call.connection);
        let mut passing = Box::pin(self.pass_for(call, task, reason, record));
        let late = async {
            self.store.read().await;
            let waited = self.clock.now().since(task.asked);
            tokio::time::sleep(self.patience_for(task).saturating_sub(waited)).await;
        };
        let passed = tokio::select! {
            passed = &mut passing => Some(passed),
            () = late => None,
        };
        let Some(passed) = passed else {
            let Some((known, stored)) = self.copy_now_known(task, asked).await else {
                return passing.await;
            };
            drop(passing);
            if !down && !self.is_down_for(task) {
                self.note_silent_pass(task);
            }
            self.metrics.stood_in(if down { StoodIn::Down } else { StoodIn::Patience });
            let stale =
                self.reply_stored(&connection, asked, &known, &stored, Outcome::Stale, record);
            let Some(stale) = stale.await else {
                let line = format!("{} does not answer; try again", task.target.origin());
                return record.fail(StatusCode::GATEWAY_TIMEOUT, &Why::new(Cause::Timeout, line));
            };
            return stale;
        };
        drop(passing);
        if record.is_rejected() || !is_failure(passed.status()) {
            return passed;
        }
        let limit = WAIT_FOR_COPY.min(self.config.get().upstream.header_timeout);
        let limit = limit.saturating_sub(self.clock.now().since(task.asked));
        if tokio::time::timeout(limit, self.store.read()).await.is_err() {
            return passed;
        }
        let Some((known, stored)) = self.copy_now_known(task, asked).await else { return passed };
        let stale = self.reply_stored(&connection, asked, &known, &stored, Outcome::Stale, record);
        stale.await.unwrap_or(passed)
    }

    /// The copy that everybody may have, labelled as one. The records have been read.
    async fn copy_now_known(
        self: &Arc<Self>,
        task: &Task,
        asked: &Asked,
    ) -> Option<(Task, Stored)> {
        // Under which of its keys it lies was not known before.
        let mut known = task.clone();
        self.choose(&mut known);
        let mut stored = self.public_copy(&known, &asked.headers).await?;
        stored.proof = stored.proof.stale();
        Some((known, stored))
    }
}
