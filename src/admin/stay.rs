//! Counts commands that use a larder which another command started: it keeps running until they have ended.

use tokio::sync::watch;

/// The number of commands that use this larder, without the one that started it; `None` once no other may begin.
#[derive(Debug)]
pub(super) struct Stays(watch::Sender<Option<usize>>);

impl Default for Stays {
    fn default() -> Self {
        Self(watch::Sender::new(Some(0)))
    }
}

impl Stays {
    /// Counts one more, until the guard is dropped. `None`: this larder is stopping.
    pub(super) fn begin(&self) -> Option<Stay> {
        let begun = self.0.send_if_modified(|count| {
            *count = count.map(|count| count + 1);
            count.is_some()
        });
        begun.then(|| Stay(self.0.clone()))
    }

    /// Accepts no other command.
    pub(super) fn close(&self) {
        self.0.send_replace(None);
    }

    /// Waits until there is none, and then accepts no other.
    pub(super) async fn none(&self) {
        let mut count = self.0.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        while count.wait_for(|count| matches!(count, None | Some(0))).await.is_ok() {
            // Another may have begun since: the count is checked and closed in one step.
            let closed = self.0.send_if_modified(|count| {
                let nobody = *count == Some(0);
                if nobody {
                    *count = None;
                }
                nobody
            });
            if closed || self.0.borrow().is_none() {
                return;
            }
        }
    }
}

/// A command that uses this larder.
#[derive(Debug)]
pub(super) struct Stay(watch::Sender<Option<usize>>);

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.map(|count| count.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_starter_waits_for_the_last_guest_and_takes_no_more() {
        let stays = Stays::default();
        let (one, two) = (stays.begin(), stays.begin());
        assert!(one.is_some());
        drop(one);
        assert!(stays.none().now_or_never().is_none());
        drop(two);
        assert!(stays.none().now_or_never().is_some());
        assert!(stays.begin().is_none());
        assert!(stays.none().now_or_never().is_some(), "waiting again is no mistake");
    }

    #[tokio::test]
    async fn a_larder_that_was_told_to_end_takes_no_guest_and_waits_for_none() {
        let stays = Stays::default();
        let guest = stays.begin();
        stays.close();
        assert!(stays.begin().is_none());
        assert!(stays.none().now_or_never().is_some());
        drop(guest);
        assert!(stays.begin().is_none());
    }
}
