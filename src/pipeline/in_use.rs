//! Memory for what is in use.

use std::hash::Hash;

use moka::sync::Cache;

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
