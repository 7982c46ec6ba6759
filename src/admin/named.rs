//! Finds the entries that a URL given by a person refers to.
//!
//! A URL as a client requests it refers to exactly its own entries. They are found by their keys: stored entries show
//! no secret, but their keys are made from the whole URL. A URL as `larder ls` shows it, with values hidden, refers
//! to all entries that are shown so. User information is ignored: clients send it as a header, and it is not part of
//! a target.

use crate::entry::Entry;
use crate::target::{Partition, Target, secret};

/// What a URL refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// One target, in every variant and every partition.
    Whole(Target),
    /// A URL with its secrets hidden.
    Shown(String),
}

impl Named {
    /// Parses a URL; `None` if larder could not serve it.
    pub(super) fn of(url: &str) -> Option<Self> {
        if url.contains(secret::HIDDEN) {
            return Some(Self::Shown(url.to_owned()));
        }
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end)?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        Target::from_url(&format!("{scheme}://{host}{tail}")).map(Self::Whole)
    }

    /// Whether the URL refers to `entry`. `secret` is the store's.
    pub(super) fn is(&self, entry: &Entry, secret: &[u8; 32]) -> bool {
        match self {
            Self::Whole(target) => is_of(entry, target, secret),
            Self::Shown(shown) => entry.shown == *shown,
        }
    }
}

/// Whether `entry` belongs to `target`, in any variant and any partition. `secret` is the store's.
pub(super) fn is_of(entry: &Entry, target: &Target, secret: &[u8; 32]) -> bool {
    let target = target.clone().with_variant(&entry.variant);
    // An artifact has at most one private entry, whose key is in no credential's partition.
    target.key(entry.partition) == entry.key
        || target.key(Partition::guarded(&target, secret)) == entry.key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::digest::BlobId;
    use crate::entry::Head;
    use crate::proof::{Proof, Rank};

    const SECRET: [u8; 32] = [9; 32];

    fn entry(url: &str, variant: &str, partition: Partition) -> Entry {
        let target = Target::from_url(url).unwrap().with_variant(variant);
        Entry {
            key: target.key(partition),
            shown: target.to_string(),
            variant: variant.to_owned(),
            partition,
            ecosystem: String::new(),
            index: false,
            blob: BlobId::new([0; 32]),
            size: 0,
            digests: Vec::new(),
            head: Head { status: hyper::StatusCode::OK, headers: hyper::HeaderMap::new() },
            varied: Vec::new(),
            proof: Proof::of(Rank::Pinned),
            generation: 0,
            answered_by: None,
            requested_at: Time::from_millis(0),
            received_at: Time::from_millis(0),
            checked_at: Time::from_millis(0),
        }
    }

    #[test]
    fn a_whole_url_means_its_own_entries_and_a_shown_one_what_is_shown_so() {
        let url = "https://example.org/a?token=one";
        let target = Target::from_url(url).unwrap();
        let one = entry(url, "", Partition::Public);
        let other = entry("https://example.org/a?token=two", "", Partition::Public);
        assert_eq!(one.shown, other.shown);
        let whole = Named::of(url).unwrap();
        let is = |named: &Named, entry: &Entry| named.is(entry, &SECRET);
        assert!(is(&whole, &one) && !is(&whole, &other));
        assert!(is(&whole, &entry(url, "json", Partition::Private([7; 16]))));
        let mut guarded = entry(url, "", Partition::Private([7; 16]));
        guarded.key = target.key(Partition::guarded(&target, &SECRET));
        assert!(is(&whole, &guarded), "whoever received it");
        let shown = Named::of(&one.shown).unwrap();
        assert!(is(&shown, &one) && is(&shown, &other));
        assert!(!is(&shown, &entry("https://example.org/b?token=one", "", Partition::Public)));
    }

    #[test]
    fn a_password_before_the_host_is_left_out() {
        let plain = Named::of("https://example.org/a");
        assert_eq!(Named::of("https://user:p@ss@example.org/a"), plain);
        assert_eq!(Named::of("https://token@example.org/a#part"), plain);
        for wrong in ["example.org/a", "ftp://example.org/", "https://user@", "https://a/../b"] {
            assert_eq!(Named::of(wrong), None, "{wrong}");
        }
        // An at sign after the host belongs to the path.
        assert!(matches!(Named::of("https://example.org/@scope/a"), Some(Named::Whole(_))));
    }
}
