//! Notes what is unusual about an index's claims: signatures on single claims, and changes of files that should never
//! change.
//!
//! A registry that names other bytes for a version than before was compromised, or breaks its own promise not to change
//! files. Its new claim counts, because it is its own index, but larder raises an alarm. Only if a signature vouched
//! for the earlier bytes do those stay, until another signature vouches for new ones: an attacker who can change the
//! index could simply omit signatures.

use std::io;
use std::sync::Arc;

use super::Store;
use crate::claim::{Claim, IndexVersion, Relation};
use crate::digest::Algorithm;
use crate::keyring::signs_packages;
use crate::target::Target;

/// Maximum number of notes of each kind; they end up in log lines.
const MAX_NOTES: usize = 8;

/// Maximum number of signing keys of one index. Registries have used two keys in ten years.
const MAX_SIGNERS: usize = 16;

/// The notes about one index.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The keys that signed claims of this index.
    pub signers: Vec<Box<str>>,
    /// Keys that signed claims of it and that larder does not know.
    pub unknown: Vec<Box<str>>,
    /// Files for which it names other bytes than before, and whether the earlier claim is kept.
    pub changed: Vec<(String, bool)>,
    /// Claims whose own signature is invalid, and why.
    pub forged: Vec<String>,
}

impl Notes {
    /// Notes that `key` signed a claim; returns whether it is noted.
    pub(super) fn signer(&mut self, key: &str) -> bool {
        note(&mut self.signers, key, MAX_SIGNERS)
    }

    pub(super) fn unknown(&mut self, key: &str) {
        note(&mut self.unknown, key, MAX_NOTES);
    }

    pub(super) fn changed(&mut self, change: String, kept: bool) {
        if self.changed.len() < MAX_NOTES {
            self.changed.push((change, kept));
        }
    }

    pub(super) fn forged(&mut self, claim: &Claim, why: &str) {
        if self.forged.len() < MAX_NOTES {
            self.forged.push(format!("{}: {why}", claim.target));
        }
    }

    /// How `claim` differs from the claims made `before`; `None` if it does not, or cannot be compared. A weak digest
    /// instead of a strong one counts as a change, because it would hide one.
    pub(super) fn change(claim: &Claim, before: &[(Claim, bool)]) -> Option<String> {
        let known = || before.iter().flat_map(|(earlier, _)| &earlier.digests);
        if known().any(|digest| claim.digests.contains(digest)) {
            return None;
        }
        let strong = |algorithm: Algorithm| algorithm.is_strong();
        let weaker = known().any(|digest| strong(digest.algorithm()))
            && !claim.digests.iter().any(|digest| strong(digest.algorithm()));
        let comparable = known().any(|digest| {
            claim.digests.iter().any(|other| other.algorithm() == digest.algorithm())
        });
        let signed = before.iter().any(|(_, signed)| *signed);
        let (now, then) = (claim.digests.first()?, known().next()?);
        (comparable || weaker || signed)
            .then(|| format!("{}: {now}, where it was {then}", claim.target))
    }
}

/// Whether `text` is among the notes afterwards.
fn note(notes: &mut Vec<Box<str>>, text: &str, most: usize) -> bool {
    let known = notes.iter().any(|known| **known == *text);
    if !known && notes.len() < most {
        notes.push(text.into());
        return true;
    }
    known
}

/// What an index said of a file before.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// The claims, each with whether it has a signature of its own.
    pub(super) claims: Vec<(Claim, bool)>,
    /// The keys that signed the signed ones of its claims. Where they were not noted, all that signed packages at its root.
    pub(super) signers: Vec<Box<str>>,
}

impl Store {
    /// The newest claims about the claim's target by an index of the same origin whose root covers the target, and who signed them:
    /// of one version, because another one may come meanwhile.
    pub(super) fn claimed_before(
        self: &Arc<Self>,
        index: &Target,
        claim: &Claim,
    ) -> io::Result<Before> {
        let topic = std::slice::from_ref(&claim.topic);
        let promises = self.promises(&claim.target, topic, self.clock.now());
        if let Some(unread) = promises.iter().find(|promise| promise.is_unread()) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, unread.to_string()));
        }
        let mut own = promises
            .into_iter()
            .filter(|said| {
                said.relation == Relation::InRoot && said.index.origin() == index.origin()
            })
            .peekable();
        let Some(newest) = own.peek().map(|said| Arc::clone(&said.by)) else {
            return Ok(Before::default());
        };
        let claims = own
            .take_while(|said| said.by.number == newest.number)
            .map(|said| {
                let earlier = Claim { digests: said.digests, size: said.size, ..claim.clone() };
                (earlier, said.signed)
            })
            .collect();
        Ok(Before { claims, signers: self.signers_of_claims(&newest) })
    }

    fn signers_of_claims(&self, by: &IndexVersion) -> Vec<Box<str>> {
        by.signed_by.as_ref().map_or_else(
            || {
                let mut signers = self.vouchers_of(&by.root);
                signers.retain(|signer| signs_packages(signer));
                signers
            },
            |by| by.claims.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Topic;
    use crate::digest::Digest;

    fn claim(algorithm: Algorithm, byte: u8) -> Claim {
        Claim {
            target: Target::from_url("https://example.org/gear/-/gear-1.0.0.tgz").unwrap(),
            topic: Topic::new("npm", "gear"),
            digests: vec![Digest::new(algorithm, &vec![byte; algorithm.length()]).unwrap()],
            size: None,
        }
    }

    #[test]
    fn a_change_is_what_could_be_told_and_differs() {
        let (strong, other) = (Algorithm::Sha512, Algorithm::Sha256);
        let weak = Algorithm::Sha1;
        let changed = |now: (Algorithm, u8), before: &[((Algorithm, u8), bool)]| {
            let before: Vec<(Claim, bool)> =
                before.iter().map(|((a, byte), signed)| (claim(*a, *byte), *signed)).collect();
            Notes::change(&claim(now.0, now.1), &before).is_some()
        };
        assert!(changed((strong, 2), &[((strong, 1), false)]));
        for same in [
            &[][..],
            &[((strong, 2), false)],
            // One of several alternatives matches.
            &[((strong, 1), false), ((strong, 2), false)],
            // First published with a weak digest only, now with a strong one.
            &[((weak, 1), false)],
            &[((other, 1), false)],
        ] {
            assert!(!changed((strong, 2), same), "{same:?}");
        }
        // Nothing tells whether these are the same bytes. Where a strong digest or a signature was known before, that
        // counts as a change.
        assert!(changed((weak, 2), &[((strong, 1), false)]));
        assert!(changed((other, 2), &[((strong, 1), true)]));
    }

    #[test]
    fn notes_are_few_however_much_is_noticed() {
        let mut notes = Notes::default();
        for number in 0..100 {
            notes.signer(&number.to_string());
            notes.unknown(&number.to_string());
            notes.changed(number.to_string(), false);
            notes.forged(&claim(Algorithm::Sha1, 1), "x");
        }
        notes.signer("0");
        assert_eq!((notes.signers.len(), notes.unknown.len()), (MAX_SIGNERS, MAX_NOTES));
        assert_eq!((notes.changed.len(), notes.forged.len()), (MAX_NOTES, MAX_NOTES));
    }
}
