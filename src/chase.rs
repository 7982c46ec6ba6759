//! Documents that a judgement needs: an artifact whose index nobody has asked for yet, an index whose signature lies
//! beside it.
//!
//! The ecosystem names them; they are fetched as internal requests through the same way as everything else, public class
//! only. What is fetched may name more, so there is a bound to rounds and documents (promise P7).

use std::collections::HashSet;
use std::future::Future;

use crate::target::Target;

/// The most rounds of one chase.
const MAX_ROUNDS: usize = 4;

/// The most documents of one chase.
const MAX_DOCUMENTS: usize = 16;

/// Fetches a document and reads its claims, or finds that it is current. What goes wrong is its own business: a chase
/// that fails leaves the judgement with less to go by, and nothing else.
pub trait Fetch: Sync {
    /// Fetches `document`, which is wanted on account of `at`.
    fn fetch(&self, document: Target, at: &Target) -> impl Future<Output = ()> + Send;
}

/// Fetches what an ecosystem wants to have read before `at` is judged: `wants` asks it. A document that came may make
/// others of its round unnecessary. Says how many documents were fetched.
pub async fn chase<W: Future<Output = Vec<Target>> + Send>(
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

    /// How many are fetched when the call number `n` wants `wanted(n)`.
    async fn chased(wanted: impl Fn(usize) -> Vec<Target>) -> usize {
        let at = Target::from_url("https://example.org/a").unwrap();
        let calls = AtomicUsize::new(0);
        let wants = || {
            let wanted = wanted(calls.fetch_add(1, Ordering::Relaxed));
            async move { wanted }
        };
        chase(&at, wants, &Nothing, || false).await
    }

    #[tokio::test]
    async fn a_chase_has_an_end() {
        assert_eq!(chased(|call| documents(call..call + 1)).await, MAX_ROUNDS);
        assert_eq!(chased(|call| documents(0..10 * (call + 1))).await, MAX_DOCUMENTS);
        assert_eq!(chased(|_| Vec::new()).await, 0);
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_not_fetched() {
        assert_eq!(chased(|call| documents(0..if call == 0 { 9 } else { 1 })).await, 1);
        assert_eq!(chased(|_| documents(0..9)).await, 9);
    }
}
