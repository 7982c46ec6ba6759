//! A URL in canonical form, as one string, with its cached hashes.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use super::key::{Key, MatchKey};
use super::{Origin, decode_once, path};
use crate::digest::key_hash;

/// A URL: its text, and the positions of its parts.
pub(super) struct Url {
    pub(super) origin: Origin,
    pub(super) text: Box<str>,
    /// Start of the path.
    path: usize,
    /// End of the path: at the question mark, if there is one.
    path_end: usize,
    /// Computed at first use, like `plain_key`.
    pub(super) match_key: OnceLock<MatchKey>,
    /// The store's key of the public entry without a variant.
    pub(super) plain_key: OnceLock<Key>,
}

impl Url {
    pub(super) fn new(origin: Origin, path: &str, query: Option<&str>) -> Self {
        let head = origin.to_string();
        let tail = query.map_or(0, |query| query.len() + 1);
        let mut text = String::with_capacity(head.len() + path.len() + tail);
        text.push_str(&head);
        text.push_str(path);
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        let (path, path_end) = (head.len(), head.len() + path.len());
        Self {
            origin,
            text: text.into(),
            path,
            path_end,
            match_key: OnceLock::new(),
            plain_key: OnceLock::new(),
        }
    }

    /// Scheme and authority.
    pub(super) fn head(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }

    /// Path and query.
    pub(super) fn tail(&self) -> &str {
        self.text.get(self.path..).unwrap_or_default()
    }

    pub(super) fn path(&self) -> &str {
        self.text.get(self.path..self.path_end).unwrap_or_default()
    }

    pub(super) fn query(&self) -> Option<&str> {
        self.text.get(self.path_end..)?.strip_prefix('?')
    }

    pub(super) fn to_match_key(&self) -> MatchKey {
        let parted = path::with_parted_scope(self.path());
        // A path without escapes and masks decodes to itself.
        let is_coded = parted.contains('%') || !parted.is_ascii();
        let decoded = is_coded.then(|| decode_once(&parted)).flatten().filter(|text| {
            !text.contains('%') && text.matches('/').count() == parted.matches('/').count()
        });
        let path = decoded.as_deref().unwrap_or(&parted);
        let hash = key_hash([
            self.head().as_bytes(),
            path.as_bytes(),
            self.query().unwrap_or_default().as_bytes(),
        ]);
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(hash) {
            *to = from;
        }
        MatchKey(short)
    }

    fn parts(&self) -> (&Origin, &str, Option<&str>) {
        (&self.origin, self.path(), self.query())
    }
}

impl PartialEq for Url {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Url {}

impl Hash for Url {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for Url {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By origin first, so that URLs of one origin are adjacent.
impl Ord for Url {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}
