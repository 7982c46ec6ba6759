//! Where a HEAD may replace a GET when larder checks a right (DESIGN §4 "Credentials").
//!
//! A registry counts each GET of a manifest as a pull, and no HEAD. But some servers protect GET and not HEAD, and some accept
//! any login in a HEAD. So larder tests each root once, with three requests for something private: a HEAD and a GET without a
//! credential, and a HEAD with an invented login. A root that refuses all three protects HEAD as it protects GET. Registries do
//! not count refused requests. Any other result, also success for all three, proves nothing; then larder asks for the first byte
//! with a GET.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use moka::sync::Cache;
use tokio::sync::Mutex;

use super::Pipeline;
use super::answers::{is_failure, lasts};
use super::task::Task;
use crate::clock::Time;
use crate::origin::Ask;
use crate::target::Root;

/// How long the result of the test is valid for a root.
const HOLDS: Duration = Duration::from_hours(24);

/// How many roots (image repositories) are remembered. A root that was evicted is tested again, with three small requests.
const MOST: u64 = 10_000;

/// Whether a root protects HEAD as it protects GET, and when that was tested.
type Seen = Option<(bool, Time)>;

/// The test results by root.
#[derive(Debug)]
pub(super) struct HeadTests {
    /// The request that tests a root holds its lock, so that concurrent requests test the root once.
    roots: Cache<Root, Arc<Mutex<Seen>>>,
}

impl Default for HeadTests {
    fn default() -> Self {
        // moka's clock is monotonic: entries expire also if the system clock is set back.
        Self { roots: Cache::builder().max_capacity(MOST).time_to_live(HOLDS).build() }
    }
}

impl Pipeline {
    /// Whether the task's root protects HEAD as it protects GET. Tests the root if that is not known.
    pub(super) async fn guards_head(&self, task: &Task) -> bool {
        // A URL that contains a token cannot be tested: without the token it is another URL.
        let known = task.recognition.as_ref().filter(|_| !task.bare().has_token());
        let Some(root) = known.map(|known| known.resource.root.clone()) else { return false };
        let root = self.rights.heads.roots.get_with(root, Arc::default);
        let mut seen = root.lock().await;
        let now = self.clock.now();
        if let Some((guards, _)) = seen.filter(|(_, since)| lasts(*since, HOLDS, now)) {
            return guards;
        }
        let guards = self.refuses_both(task).await;
        *seen = guards.map(|guards| (guards, now));
        guards == Some(true)
    }

    /// Whether the origin refuses HEAD and GET without a credential, and HEAD with an invented login. `None`: the origin could
    /// not be asked.
    async fn refuses_both(&self, task: &Task) -> Option<bool> {
        let ask = Ask { credential: None, patient: false, ..task.ask(None, false) };
        let head = Ask { head_only: true, ..ask.clone() };
        let made_up = task.principal.credential().map(|credential| Arc::new(credential.made_up()));
        let by_anybody = Ask { credential: made_up, ..head.clone() };
        let byte = Ask { range: Some((0, Some(0))), ..ask };
        let fetch = |ask| Box::pin(self.origins.fetch(ask));
        let (head, byte, by_anybody) = tokio::join!(fetch(head), fetch(byte), fetch(by_anybody));
        let [head, byte, by_anybody] = [head, byte, by_anybody]
            .map(|answer| answer.ok().map(|answer| answer.head.status))
            .map(|status| status.filter(|status| !is_failure(*status)));
        let refused = |status| matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        // Some servers answer 400 to a malformed login, so any client error counts as a refusal here.
        let refuses_login = by_anybody?.is_client_error();
        Some(refused(head?) && refused(byte?) && refuses_login)
    }
}
