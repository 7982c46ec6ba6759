//! Reads the sets of claims from disk, and the marks: the facts about sets that change.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalogue::{Catalogue, MAX_SETS, Set};
use super::record::remove_quietly;
use super::sealed::{Kind, seal, unseal};
use super::space::{Purpose, footprint};
use super::{Store, durable, segment};
use crate::clock::Time;
use crate::digest::BlobId;

const MARKS: Kind = Kind { magic: *b"LmaR", version: 1 };

/// A row of the marks takes at most 32 bytes; this allows twice that.
const MAX_MARKS: u64 = 64 * MAX_SETS as u64;

/// The changing facts about sets, which segments do not hold: `DATA/v1/marks`, sealed. Without this file every set
/// counts as last confirmed when it was published, and entries are judged anew.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Marks {
    pub(super) generation: u64,
    pub(super) declared: [u8; 32],
    /// Number, time of confirmation and time of superseding of each set, sorted by number.
    pub(super) sets: Vec<(u64, Time, Option<Time>)>,
}

impl Marks {
    fn read(path: &Path) -> io::Result<Self> {
        let bytes = durable::read(path, MAX_MARKS)?;
        Ok(bytes.and_then(|bytes| unseal(MARKS, &bytes)).unwrap_or_default())
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        seal(MARKS, self).and_then(|bytes| durable::write(path, &bytes, 0o600))
    }
}

/// Reads the set in a file, with its marks.
fn read(store: &Store, marks: &Marks, number: u64, path: PathBuf) -> io::Result<Set> {
    let (manifest, bytes) = segment::manifest(&path)?;
    let mut room = store.space.take(Purpose::Claims, footprint(bytes));
    room.written();
    let set = Set::new(number, path, manifest, bytes, room)?;
    if let Ok(position) = marks.sets.binary_search_by_key(&number, |mark| mark.0)
        && let Some((_, confirmed, superseded)) = marks.sets.get(position).copied()
    {
        set.change(|generation| {
            generation.confirmed = confirmed;
            generation.superseded = superseded;
        });
    }
    Ok(set)
}

/// The result of reading the segment files.
#[derive(Debug, Default)]
pub(super) struct ReadSegments {
    /// The highest number in a file name.
    pub(super) highest: u64,
    /// Whether a damaged set was dropped.
    pub(super) dropped: bool,
    /// Why a file could not be read, if one could not.
    pub(super) unread: Option<io::Error>,
}

/// Adds the sets on disk that are not in the catalogue yet. Those with a number in `deleted` should not be on disk any more.
pub(super) fn read_missing(
    store: &Store,
    catalogue: &mut Catalogue,
    deleted: &HashSet<u64>,
) -> (Marks, ReadSegments) {
    let mut came = ReadSegments::default();
    // Without the marks, a set that was retracted would count again.
    let known =
        Marks::read(&store.paths.marks).and_then(|marks| Ok((marks, files(&store.paths.claims)?)));
    let (marks, files) = match known {
        Ok(known) => known,
        Err(error) => return (Marks::default(), ReadSegments { unread: Some(error), ..came }),
    };
    for (number, path) in files {
        came.highest = came.highest.max(number);
        if catalogue.sets.contains_key(&number) || deleted.contains(&number) {
            continue;
        }
        match read(store, &marks, number, path.clone()) {
            Ok(set) => catalogue.insert(Arc::new(set)),
            Err(error) if durable::is_damage(&error) => {
                tracing::warn!(%error, "the claims of an index are damaged, and dropped");
                remove_quietly(&path);
                came.dropped = true;
            }
            Err(error) => came.unread = Some(durable::naming(&path, &error)),
        }
    }
    (marks, came)
}

/// The files of all sets, sorted by number. Removes files with other names.
pub(super) fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut numbered = Vec::new();
    for file in durable::list(directory)? {
        let name = file.file_name();
        let number = name.to_str().and_then(|name| {
            let (number, document) = name.split_once('-')?;
            BlobId::from_hex(document)?;
            u64::from_str_radix(number, 16).ok()
        });
        match number {
            Some(number) => numbered.push((number, file.path())),
            None => remove_quietly(&file.path()),
        }
    }
    numbered.sort_unstable();
    Ok(numbered)
}
