//! `DATA/state/in-force`: the keys that were in force, and where they were found ([`InForce`]). So after a start or a reload it is known
//! which keys were lost, however they were lost: by `larder keys rm`, or because a file was deleted or replaced while larder
//! did not run, or because larder was killed before it had revoked what a removed key proved.
//!
//! A key is noted here before it proves anything. It stays here until a later start has revoked what it proved: what
//! was in flight when it was lost may still be stored as signed by it, and larder be killed before it looks again.

use std::collections::BTreeSet;
use std::io;

use super::sealed::{Kind, seal, unseal};
use super::{Store, durable};
use crate::keyring::InForce;

const IN_FORCE: Kind = Kind { magic: *b"LkeY", version: 2 };

/// The version before it: the keys alone.
const WITHOUT_PLACES: Kind = Kind { version: 1, ..IN_FORCE };

/// Two thousand files of keys have far less.
const MAX_FILE: u64 = 16 << 20;

impl Store {
    /// The keys that were in force; `None` if that is unknown. Blocking.
    pub fn keys_in_force(&self) -> Option<InForce> {
        match durable::read(&self.paths.in_force, MAX_FILE) {
            Ok(bytes) => bytes.and_then(|bytes| read(&bytes)),
            Err(error) => {
                tracing::warn!(%error, "it is unknown which keys were in force; all bindings are compared with today's keys");
                None
            }
        }
    }

    /// Notes the keys in force. If they cannot be written they are unknown from now on, which is safe: then all are compared at the
    /// next start. The error means that neither was possible. Blocking.
    pub fn note_keys_in_force(&self, keys: &InForce) -> io::Result<()> {
        if self.keys_in_force().as_ref() == Some(keys) {
            return Ok(());
        }
        let path = &self.paths.in_force;
        let written = seal(IN_FORCE, keys).and_then(|bytes| durable::write(path, &bytes, 0o600));
        let Err(error) = written else { return Ok(()) };
        tracing::warn!(%error, "the keys in force could not be written; at the next start, all bindings are compared with the keys");
        durable::remove(path)?;
        durable::sync_directory_of(path)
    }
}

fn read(bytes: &[u8]) -> Option<InForce> {
    unseal(IN_FORCE, bytes).or_else(|| {
        let keys: BTreeSet<Box<str>> = unseal(WITHOUT_PLACES, bytes)?;
        let keys = keys.into_iter().map(|key| (key, None)).collect();
        Some(InForce { keys, ..InForce::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_before_tells_the_keys_and_not_where_they_were() {
        let before = BTreeSet::from([Box::<str>::from("A")]);
        let known = read(&seal(WITHOUT_PLACES, &before).unwrap()).unwrap();
        assert_eq!(known.keys.get("A"), Some(&None));
        let keys = [("A".into(), Some(["/keys/a.gpg".to_owned()].into()))].into();
        let now = InForce { keys, directories: [("/keys".to_owned(), 7)].into() };
        assert_eq!(read(&seal(IN_FORCE, &now).unwrap()), Some(now));
        assert_eq!(read(b"garbage"), None);
    }
}
