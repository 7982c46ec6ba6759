//! Memory for what is in use, and for what was learnt last.

use std::hash::Hash;

use moka::policy::EvictionPolicy;
use moka::sync::{Cache, CacheBuilder};

use crate::store::IN_USE;

/// A cache of results that the store, the claims or another cache would give again, but more slowly. A result is kept for
/// [`IN_USE`] after its last use.
pub(super) fn in_use<K, V>() -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(100_000).time_to_idle(IN_USE).build()
}

/// A cache of at most `most` entries, in which a new entry displaces the one that was used least recently. moka's usual policy keeps
/// what is used most often, and refuses the new entry: whoever fills such a cache makes larder forget all that it learns from then
/// on.
pub(super) fn latest<K, V>(most: u64) -> CacheBuilder<K, V, Cache<K, V>>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(most).eviction_policy(EvictionPolicy::lru())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_last_is_known_however_often_the_rest_is_used() {
        let is_known = |cache: Cache<u32, ()>| {
            for number in (0..10).chain(0..10) {
                cache.insert(number, ());
                cache.get(&number);
                cache.run_pending_tasks();
            }
            cache.insert(10, ());
            cache.run_pending_tasks();
            assert_eq!(cache.entry_count(), 10);
            cache.contains_key(&10)
        };
        assert!(is_known(latest(10).build()));
        assert!(!is_known(Cache::new(10)), "the control");
    }
}
