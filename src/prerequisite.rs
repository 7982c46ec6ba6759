//! The prerequisite fetch: fetches documents that a judgement needs, such as the index of an artifact if no client has
//! requested that index yet, or the detached signature of an index.
//!
//! The ecosystem names the documents. larder fetches them through the same pipeline as every other request, as internal
//! requests without credentials. A fetched document may name more documents, so rounds and documents are limited
//! (promise P7).

use std::collections::HashSet;
use std::future::Future;

use crate::target::Target;

/// The maximum number of rounds of one prerequisite fetch.
const MAX_ROUNDS: usize = 4;

/// The maximum number of documents of one prerequisite fetch.
const MAX_DOCUMENTS: usize = 16;

/// Fetches a document and reads its claims, or finds that the stored copy is current. It reports no errors: if a fetch
/// fails, the judgement proceeds with less evidence.
pub trait Fetch: Sync {
    /// Fetches `document`, a prerequisite of the judgement of `at`.
    fn fetch(&self, document: Target, at: &Target) -> impl Future<Output = ()> + Send;
}

/// Fetches the documents that the ecosystem needs before `at` is judged; `wants` returns those still missing. It is
/// called again after each document, because one document may make others of the same round unnecessary. Stops when
/// `enough` holds, when nothing new is missing or at a limit. Returns the number of documents fetched.
pub async fn fetch_all<W: Future<Output = Vec<Target>> + Send>(
    at: &Target,
    wants: impl Fn() -> W,
    fetch: &impl Fetch,
    enough: impl Fn() -> bool,
) -> usize {
    let mut seen = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let mut news = false;
        let mut wanted = wants().await;
        for document in wanted.clone() {
            if seen.len() >= MAX_DOCUMENTS || enough() {
                return seen.len();
            }
            if wanted.contains(&document) && seen.insert(document.clone()) {
                news = true;
                fetch.fetch(document, at).await;
                wanted = wants().await;
            }
        }
        if !news {
            break;
        }
    }
    seen.len()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Nothing;

    impl Fetch for Nothing {
        async fn fetch(&self, _: Target, _: &Target) {}
    }

    fn documents(numbers: std::ops::Range<usize>) -> Vec<Target> {
        let url = |n| Target::from_url(&format!("https://example.org/{n}"));
        numbers.filter_map(url).collect()
    }

    /// The number of documents fetched when call number `n` of `wants` returns `wanted(n)`.
    async fn fetched(wanted: impl Fn(usize) -> Vec<Target>) -> usize {
        let at = Target::from_url("https://example.org/a").unwrap();
        let calls = AtomicUsize::new(0);
        let wants = || {
            let wanted = wanted(calls.fetch_add(1, Ordering::Relaxed));
            async move { wanted }
        };
        fetch_all(&at, wants, &Nothing, || false).await
    }

    #[tokio::test]
    async fn fetching_prerequisites_has_an_end() {
        assert_eq!(fetched(|call| documents(call..call + 1)).await, MAX_ROUNDS);
        assert_eq!(fetched(|call| documents(0..10 * (call + 1))).await, MAX_DOCUMENTS);
        assert_eq!(fetched(|_| Vec::new()).await, 0);
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_not_fetched() {
        assert_eq!(fetched(|call| documents(0..if call == 0 { 9 } else { 1 })).await, 1);
        assert_eq!(fetched(|_| documents(0..9)).await, 9);
    }
}
