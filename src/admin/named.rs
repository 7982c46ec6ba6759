//! Which entries a person means by a URL.
//!
//! A URL as a client asks for it means exactly its own entries, which are found by their keys: what is stored shows no
//! secret, but the key was made of the whole URL. A URL as `larder ls` shows it, with values hidden, means whatever is
//! shown so. User information is left out: clients send it as a header, it is no part of a target.

use crate::entry::Entry;
use crate::target::{Partition, Target, secret};

/// What a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// One target, in every variant and for everybody.
    Whole(Target),
    /// A URL with its secrets hidden.
    Shown(String),
}

impl Named {
    /// Reads a URL; `None` if larder could not be asked for it.
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

    /// Whether `entry` is meant. `secret` is the store's.
    pub(super) fn is(&self, entry: &Entry, secret: &[u8; 32]) -> bool {
        match self {
            Self::Whole(target) => is_of(entry, target, secret),
            Self::Shown(shown) => entry.shown == *shown,
        }
    }
}

/// Whether `entry` answers `target`, in any variant and whoever received it. `secret` is the store's.
pub(super) fn is_of(entry: &Entry, target: &Target, secret: &[u8; 32]) -> bool {
    let target = target.clone().with_variant(&entry.variant);
    // The one private entry of an artifact stands where no credential's partition is.
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
        // An at sign after the host is the path's.
        assert!(matches!(Named::of("https://example.org/@scope/a"), Some(Named::Whole(_))));
    }
}
