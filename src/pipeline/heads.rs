//! Where a HEAD may stand for a GET when a right is asked for (DESIGN §4 "Credentials").
//!
//! A registry counts each GET of a manifest as a pull, and no HEAD. But there are servers that guard GET and forget HEAD. So
//! both are asked once, by who shows nothing, for something that is guarded: a root where both are refused guards HEAD as it
//! guards GET. What is refused is not counted. Anything else, a yes to both included, tells nothing, and the byte is asked
//! for.

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

/// How many roots are remembered: repositories of images. Which is forgotten is asked again, by two small requests.
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

    /// Whether who shows nothing is refused HEAD and GET; `None` if the origin could not be asked.
    async fn refuses_both(&self, task: &Task) -> Option<bool> {
        let ask = Ask { credential: None, patient: false, ..task.ask(None, false) };
        let head = Ask { head_only: true, ..ask.clone() };
        let byte = Ask { range: Some((0, Some(0))), ..ask };
        let (head, byte) =
            tokio::join!(Box::pin(self.origins.fetch(head)), Box::pin(self.origins.fetch(byte)));
        let (head, byte) = (head.ok()?.head.status, byte.ok()?.head.status);
        let refused = |status| matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        (!is_failure(head) && !is_failure(byte)).then_some(refused(head) && refused(byte))
    }
}
