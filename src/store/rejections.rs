//! Recent refusals and their reasons: the evidence that `larder why` shows.
//!
//! Kept in memory, at most [`MAX_REJECTIONS`]. When full, the site that caused most of them loses its oldest one, so
//! that a flood from one site cannot hide another site's refusals. [`Rejections::flush`] writes them to disk on a
//! best-effort basis: losing them costs explanations only. A refusal is found by a hash of its URL.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::sealed::{Kind, seal, unseal};
use super::{durable, hold};
use crate::clock::Time;
use crate::digest::key_hash;
use crate::target::{MatchKey, Origin, Target};

/// Maximum number kept. Refusals are rare, and a flood of them repeats the same reason.
const MAX_REJECTIONS: usize = 256;

/// Maximum length of one text, in bytes of UTF-8.
const MAX_TEXT: usize = 4096;

const KIND: Kind = Kind { magic: *b"LreJ", version: 3 };

/// A body that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// A hash of the URL, so that the file does not disclose the URL.
    of: MatchKey,
    /// Which index promised what, and what was received.
    pub text: String,
    /// When.
    pub at: Time,
    /// A hash of the site that caused it: the one that sent the bytes, or that published the index.
    by: [u8; 8],
}

/// The most recent refusals.
#[derive(Debug)]
pub(super) struct Rejections {
    path: PathBuf,
    /// The refusals, and whether some are not in the file yet.
    kept: Mutex<(VecDeque<Rejection>, bool)>,
    /// Held while the file is written, so that neither noting nor querying waits for the disk.
    writing: Mutex<()>,
}

impl Rejections {
    /// Reads the file at `path`. A missing or damaged file is an empty list.
    pub(super) fn open(path: PathBuf) -> Self {
        let limit = (MAX_REJECTIONS * (MAX_TEXT + 64)) as u64;
        let kept = durable::read(&path, limit)
            .ok()
            .flatten()
            .and_then(|bytes| unseal(KIND, &bytes))
            .unwrap_or_default();
        Self { path, kept: Mutex::new((kept, false)), writing: Mutex::new(()) }
    }

    /// Notes a refusal.
    pub(super) fn note(&self, of: &Target, by: &Origin, text: &str, at: Time) {
        let mut by_site = [0; 8];
        for (to, from) in by_site.iter_mut().zip(key_hash([by.site().as_bytes()])) {
            *to = from;
        }
        let mut kept = hold(&self.kept);
        let (rejections, changed) = &mut *kept;
        while rejections.len() >= MAX_REJECTIONS {
            let count = |by| rejections.iter().filter(|other| other.by == by).count();
            let most = rejections.iter().map(|rejection| count(rejection.by)).max();
            let first = rejections.iter().position(|rejection| Some(count(rejection.by)) == most);
            rejections.remove(first.unwrap_or(0));
        }
        let (of, text) = (of.match_key(), clipped(text, MAX_TEXT));
        rejections.push_back(Rejection { of, text, at, by: by_site });
        *changed = true;
    }

    /// The refusals of one URL, newest first.
    pub(super) fn of(&self, target: &Target) -> Vec<Rejection> {
        let of = target.match_key();
        hold(&self.kept).0.iter().rev().filter(|rejection| rejection.of == of).cloned().collect()
    }

    /// Writes the file if there are new refusals.
    pub(super) fn flush(&self) {
        let _alone = hold(&self.writing);
        let mut kept = hold(&self.kept);
        if !std::mem::take(&mut kept.1) {
            return;
        }
        let rejections = kept.0.clone();
        drop(kept);
        let written =
            seal(KIND, &rejections).and_then(|bytes| durable::write(&self.path, &bytes, 0o600));
        if let Err(error) = written {
            hold(&self.kept).1 = true;
            tracing::debug!(%error, "the refusals could not be written");
        }
    }
}

/// The first `most` bytes of a text, or slightly fewer so that no character is cut.
pub fn clipped(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_can_be_asked_for_while_they_are_written() {
        let data = tempfile::tempdir().unwrap();
        let rejections = std::sync::Arc::new(Rejections::open(data.path().join("rejections")));
        let at = Target::from_url("https://example.org/a").unwrap();
        rejections.note(&at, at.origin(), "no", Time::from_millis(1));
        let asked = std::sync::Arc::downgrade(&rejections);
        let free = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = std::rc::Rc::clone(&free);
        durable::while_writing(Some(Box::new(move |_| {
            seen.set(asked.upgrade().unwrap().kept.try_lock().is_ok());
        })));
        rejections.flush();
        durable::while_writing(None);
        assert!(free.get());
    }

    #[test]
    fn the_newest_are_kept_and_found_again() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("rejections");
        let target = |url: &str| Target::from_url(url).unwrap();
        let rejections = Rejections::open(path.clone());
        let note = |url: String, text: &str, at: i64| {
            let target = target(&url);
            rejections.note(&target, target.origin(), text, Time::from_millis(at));
        };
        for number in 0..=MAX_REJECTIONS {
            let at = i64::try_from(number).unwrap();
            note(format!("https://example.org/{number}"), "no", at);
        }
        note("https://example.org/7".into(), &"é".repeat(MAX_TEXT), 9);
        rejections.flush();
        let again = Rejections::open(path);
        assert_eq!(again.of(&target("https://example.org/0")), []);
        let seven = again.of(&target("https://example.org/7"));
        assert_eq!(seven.len(), 2);
        assert_eq!(seven[0].at, Time::from_millis(9));
        assert_eq!(hold(&again.kept).0.len(), MAX_REJECTIONS);
    }

    #[test]
    fn a_flood_hides_nothing_that_befell_another() {
        let data = tempfile::tempdir().unwrap();
        let rejections = Rejections::open(data.path().join("rejections"));
        let target = |url: &str| Target::from_url(url).unwrap();
        let real = target("https://example.org/a");
        rejections.note(&real, real.origin(), "refused", Time::from_millis(1));
        for number in 0..2 * MAX_REJECTIONS {
            let evil = target(&format!("https://a{number}.evil.example/"));
            rejections.note(&real, evil.origin(), "promises", Time::from_millis(2));
            rejections.note(&evil, evil.origin(), "malformed", Time::from_millis(2));
        }
        assert_eq!(rejections.of(&real).last().unwrap().text, "refused");
    }
}
