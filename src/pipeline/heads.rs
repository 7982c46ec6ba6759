//! Where a HEAD may stand for a GET when a right is asked for (DESIGN §4 "Credentials").
//!
//! A registry counts each GET of a manifest as a pull, and no HEAD. But there are servers that guard GET and forget HEAD, or that
//! take any login for one in a HEAD. So both are asked once, by who shows nothing, for something that is guarded, and HEAD by
//! who shows a login that nobody has: a root where all are refused guards HEAD as it guards GET. What is refused is not
//! counted. Anything else, a yes to all included, tells nothing, and the byte is asked for.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use moka::sync::Cache;
use tokio::sync::Mutex;

use super::Pipeline;
use super::lead::is_failure;
use super::rights::lasts;
use super::task::Task;
use crate::clock::Time;
use crate::origin::Ask;
use crate::target::Root;

/// How long it stands how a root guards HEAD.
const HOLDS: Duration = Duration::from_hours(24);

/// How many roots are remembered: repositories of images. Which is forgotten is asked again, by three small requests.
const MOST: u64 = 10_000;

/// Whether a root guards HEAD as it guards GET, and when that was seen.
type Seen = Option<(bool, Time)>;

/// What is known of roots.
#[derive(Debug)]
pub(super) struct Heads {
    /// Who asks holds the lock: a crowd asks once.
    roots: Cache<Root, Arc<Mutex<Seen>>>,
}

impl Default for Heads {
    fn default() -> Self {
        // What holds for a while ends also by a clock that nobody sets back.
        Self { roots: Cache::builder().max_capacity(MOST).time_to_live(HOLDS).build() }
    }
}

impl Pipeline {
    /// Whether the task's root was seen to guard HEAD as it guards GET; asks it where that is not known.
    pub(super) async fn guards_head(&self, task: &Task) -> bool {
        // Without the token that stands in it, it is another URL.
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

    /// Whether who shows nothing is refused HEAD and GET, and a made-up login HEAD; `None` if the origin could not be asked.
    async fn refuses_both(&self, task: &Task) -> Option<bool> {
        let ask = Ask { credential: None, patient: false, ..task.ask(None, false) };
        let head = Ask { head_only: true, ..ask.clone() };
        let made_up = task.asker.credential().map(|credential| Arc::new(credential.made_up()));
        let by_anybody = Ask { credential: made_up, ..head.clone() };
        let byte = Ask { range: Some((0, Some(0))), ..ask };
        let fetch = |ask| Box::pin(self.origins.fetch(ask));
        let (head, byte, by_anybody) = tokio::join!(fetch(head), fetch(byte), fetch(by_anybody));
        let [head, byte, by_anybody] = [head, byte, by_anybody]
            .map(|answer| answer.ok().map(|answer| answer.head.status))
            .map(|status| status.filter(|status| !is_failure(*status)));
        let refused = |status| matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        // Some say of a login that it is malformed.
        let refuses_login = by_anybody?.is_client_error();
        Some(refused(head?) && refused(byte?) && refuses_login)
    }
}
