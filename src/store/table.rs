//! Small tables that live in memory and are written to a file after changes.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sealed::{Kind, seal, unseal};
use super::{durable, hold};

/// Maximum number of rows. A build uses a few dozen origins; anything beyond that which larder is made to meet is
/// hostile.
pub(super) const MAX_ROWS: usize = 8192;

/// Maximum length of the file. A table of [`MAX_ROWS`] with the longest paths stays far below this.
const MAX_FILE: u64 = 64 << 20;

/// A small table in memory, and its file.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    path: PathBuf,
    kind: Kind,
    pub(super) rows: Mutex<Rows<K, V>>,
    /// Held while the file is written, so that an older table is not renamed over a newer one. Readers use `rows` and
    /// do not wait for the disk.
    writing: Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Rows<K, V> {
    pub(super) known: HashMap<K, V>,
    /// The keys in order of arrival. When the table is full the newest row makes way: an attacker who makes larder meet
    /// many roots must not make it forget those that builds rely on.
    pub(super) order: Vec<K>,
    /// Whether the rows changed since the file was written.
    changed: bool,
}

impl<K, V> Table<K, V>
where
    K: Clone + Eq + Hash + Serialize + DeserializeOwned,
    V: Clone + Default + PartialEq + Serialize + DeserializeOwned,
{
    pub(super) fn open(path: PathBuf, kind: Kind) -> io::Result<Self> {
        let bytes = durable::read(&path, MAX_FILE)?;
        let stored: Vec<(K, V)> = match bytes.map(|bytes| unseal(kind, &bytes)) {
            Some(Some(rows)) => rows,
            Some(None) => {
                tracing::warn!(path = %path.display(), "a state file is damaged or of another version; larder starts a new one");
                Vec::new()
            }
            None => Vec::new(),
        };
        let order = stored.iter().map(|(key, _)| key.clone()).collect();
        Ok(Self {
            path,
            kind,
            rows: Mutex::new(Rows { known: stored.into_iter().collect(), order, changed: false }),
            writing: Mutex::new(()),
        })
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        hold(&self.rows).known.get(key).cloned()
    }

    /// Changes or adds a row. When the table is full the newest row makes way.
    pub(super) fn change(&self, key: K, change: impl FnOnce(&mut V)) {
        self.change_or(key, change, |rows| rows.order.len().checked_sub(1));
    }

    /// As [`Table::change`]; when the table is full, `gives` chooses the row that makes way, by its position in the
    /// order of arrival.
    pub(super) fn change_or(
        &self,
        key: K,
        change: impl FnOnce(&mut V),
        gives: impl FnOnce(&Rows<K, V>) -> Option<usize>,
    ) {
        let mut rows = hold(&self.rows);
        let rows = &mut *rows;
        if let Some(value) = rows.known.get_mut(&key) {
            let before = value.clone();
            change(value);
            rows.changed |= *value != before;
            return;
        }
        rows.changed = true;
        if rows.order.len() >= MAX_ROWS {
            let position = gives(rows).filter(|position| *position < rows.order.len());
            let gone = position.map(|position| rows.order.remove(position));
            let Some(gone) = gone else { return };
            rows.known.remove(&gone);
        } else if rows.order.len() + 1 == MAX_ROWS {
            tracing::warn!(
                path = %self.path.display(),
                "a state file is full: larder soon forgets what it learns from now on; if you trust today's archives, stop \
                 larder and delete the file to start a new one"
            );
        }
        let mut value = V::default();
        change(&mut value);
        rows.order.push(key.clone());
        rows.known.insert(key, value);
    }

    pub(super) fn all(&self) -> Vec<(K, V)> {
        let rows = hold(&self.rows);
        rows.known.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub(super) fn remove(&self, which: impl Fn(&K) -> bool) -> Vec<(K, V)> {
        let mut rows = hold(&self.rows);
        let gone: Vec<(K, V)> = rows.known.extract_if(|key, _| which(key)).collect();
        if !gone.is_empty() {
            rows.order.retain(|key| !which(key));
            rows.changed = true;
        }
        gone
    }

    pub(super) fn flush(&self) {
        let _alone = hold(&self.writing);
        let Some(stored) = self.unwritten() else {
            return;
        };
        let written =
            seal(self.kind, &stored).and_then(|bytes| durable::write(&self.path, &bytes, 0o600));
        if let Err(error) = written {
            hold(&self.rows).changed = true;
            tracing::warn!(%error, "a state file could not be written");
        }
    }

    /// The rows in order, if they changed since the file was written.
    fn unwritten(&self) -> Option<Vec<(K, V)>> {
        let mut rows = hold(&self.rows);
        if !std::mem::take(&mut rows.changed) {
            return None;
        }
        let row = |key: &K| Some((key.clone(), rows.known.get(key)?.clone()));
        Some(rows.order.iter().filter_map(row).collect())
    }
}
