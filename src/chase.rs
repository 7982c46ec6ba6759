//! Documents that a judgement needs: an artifact whose index nobody has asked for yet, an index whose signature lies
//! beside it.
//!
//! The ecosystem names them; they are fetched as internal requests through the same way as everything else, public class
//! only. What is fetched may name more, so there is a bound to rounds and documents (promise P7).

use std::collections::HashSet;
use std::future::Future;

use crate::ecosystem::{Ecosystem, Shelf};
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

/// Fetches what `ecosystem` wants to have read before `at` is judged. Says how many documents that were.
pub async fn chase(
    ecosystem: &dyn Ecosystem,
    at: &Target,
    shelf: &(dyn Shelf + Sync),
    fetch: &impl Fetch,
    enough: impl Fn() -> bool,
) -> usize {
    let mut seen = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let mut news = false;
        for document in ecosystem.wants(at, shelf) {
            if seen.len() >= MAX_DOCUMENTS || enough() {
                return seen.len();
            }
            if seen.insert(document.clone()) {
                news = true;
                fetch.fetch(document, at).await;
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
    use crate::keyring::Keyring;
    use std::io::Read;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::claim::{ClaimSink, Standing};
    use crate::ecosystem::{Document, Malformed, Recognised, Shape};
    use crate::target::{Origin, Root};

    /// Wants a new document each time it is asked.
    struct Greedy(AtomicUsize, usize);

    impl Ecosystem for Greedy {
        fn name(&self) -> &'static str {
            "greedy"
        }
        fn recognise(&self, _: &Shape<'_>) -> Recognised {
            Recognised::No
        }
        fn wants(&self, _: &Target, _: &dyn Shelf) -> Vec<Target> {
            (0..self.1)
                .map(|_| self.0.fetch_add(1, Ordering::Relaxed))
                .filter_map(|n| Target::from_url(&format!("https://example.org/{n}")))
                .collect()
        }
        fn claims(
            &self,
            doc: &Document<'_>,
            _: &Keyring,
            _: &mut dyn ClaimSink,
        ) -> Result<Standing, Malformed> {
            Err(Malformed::Shape { expected: "nothing", found: doc.at.to_string() })
        }
    }

    struct Empty;

    impl Shelf for Empty {
        fn open(&self, _: &Target) -> Option<Box<dyn Read + '_>> {
            None
        }
        fn speakers(&self, _: &Origin) -> Vec<Root> {
            Vec::new()
        }
    }

    struct Nothing;

    impl Fetch for Nothing {
        async fn fetch(&self, _: Target, _: &Target) {}
    }

    async fn chased(each: usize) -> usize {
        let at = Target::from_url("https://example.org/a").unwrap();
        chase(&Greedy(AtomicUsize::new(0), each), &at, &Empty, &Nothing, || false).await
    }

    #[tokio::test]
    async fn a_chase_has_an_end() {
        assert_eq!(chased(1).await, MAX_ROUNDS);
        assert_eq!(chased(10).await, MAX_DOCUMENTS);
        assert_eq!(chased(0).await, 0);
    }
}
