//! A URL in larder's one spelling, in one piece, and what was hashed of it.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use super::key::{Key, MatchKey};
use super::{Origin, decode_once, path};
use crate::digest::key_hash;

/// A URL: its text, and where its parts lie in it.
pub(super) struct Url {
    pub(super) origin: Origin,
    pub(super) text: Box<str>,
    /// Where the path begins.
    path: usize,
    /// Where the path ends: at the question mark, if there is one.
    path_end: usize,
    /// Hashed when it is first asked for, as the next.
    pub(super) match_key: OnceLock<MatchKey>,
    /// The store's key of the public answer that depends on the URL alone.
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
        // What has neither an escape nor a mask decodes to itself.
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

/// By origin first, so that what is of one origin stands together.
impl Ord for Url {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}
