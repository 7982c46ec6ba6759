//! Requests that come while what is stored is read after a crash: their origins answer them, and where an origin does not, they
//! wait for the copy.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Response, StatusCode};

use super::lookup::Stored;
use super::record::Record;
use super::task::Task;
use super::unknown_header::is_failure;
use super::{Asked, Call, Pipeline};
use crate::outcome::Outcome;
use crate::outcome::cause::{Cause, Why};
use crate::policy::PassReason;
use crate::reply::Body;

/// How long requests wait for the records, counted from the start: a small store is read in less, and of a large one no build
/// waits for it with each of its requests.
const WAIT_FOR_RECORDS: Duration = Duration::from_secs(1);

impl Pipeline {
    /// Whether what is stored is known.
    pub(super) async fn knows_its_store(&self) -> bool {
        self.store.is_read_within(WAIT_FOR_RECORDS).await
    }

    /// Passes a request that would be answered from the store. When its origin fails, or has said nothing when the records are
    /// read and its patience is over, the copy stands in, if there is one that everybody may have.
    pub(super) async fn pass_while_starting(
        self: &Arc<Self>,
        call: Call,
        asked: &Asked,
        task: &Task,
        record: &mut Record,
    ) -> Response<Body> {
        let connection = Arc::clone(&call.connection);
        let mut passing = Box::pin(self.pass_for(call, task, PassReason::Starting, record));
        let late = async {
            self.store.read().await;
            tokio::time::sleep(self.patience_for(task)).await;
        };
        let passed = tokio::select! {
            passed = &mut passing => Some(passed),
            () = late => None,
        };
        let Some(passed) = passed else {
            let Some((known, stored)) = self.copy_when_read(task, asked).await else {
                return passing.await;
            };
            drop(passing);
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
        let Some((known, stored)) = self.copy_when_read(task, asked).await else { return passed };
        let stale = self.reply_stored(&connection, asked, &known, &stored, Outcome::Stale, record);
        stale.await.unwrap_or(passed)
    }

    /// The copy that everybody may have, labelled as one, once it is known.
    async fn copy_when_read(&self, task: &Task, asked: &Asked) -> Option<(Task, Stored)> {
        self.store.read().await;
        // Under which of its keys it lies was not known before.
        let mut known = task.clone();
        self.choose(&mut known);
        let mut stored = self.public_copy(&known, &asked.headers).await?;
        stored.proof = stored.proof.stale();
        Some((known, stored))
    }
}
