//! `DATA/state/in-force`: the keys that were in force when what is stored last rested on no other key. So after a start or a
//! reload it is known which keys were lost, however they were lost: by `larder keys rm`, or because a file was deleted or replaced
//! while larder did not run, or because larder was killed before it had revoked what a removed key proved.
//!
//! A key is noted here before it proves anything, and removed from here when what it proved is revoked.

use std::collections::BTreeSet;
use std::io;

use super::sealed::{Kind, seal, unseal};
use super::{Store, durable};

const IN_FORCE: Kind = Kind { magic: *b"LkeY", version: 1 };

/// Two thousand files of keys have far less.
const MAX_FILE: u64 = 16 << 20;

impl Store {
    /// The keys that were in force, by their identifiers in bindings; `None` if that is unknown. Blocking.
    pub fn keys_in_force(&self) -> Option<BTreeSet<Box<str>>> {
        match durable::read(&self.paths.in_force, MAX_FILE) {
            Ok(bytes) => bytes.and_then(|bytes| unseal(IN_FORCE, &bytes)),
            Err(error) => {
                tracing::warn!(%error, "it is unknown which keys were in force; all bindings are compared with today's keys");
                None
            }
        }
    }

    /// Notes the keys in force. If they cannot be written they are unknown from now on, which is safe: then all are compared at the
    /// next start. The error means that neither was possible. Blocking.
    pub fn note_keys_in_force(&self, keys: &BTreeSet<Box<str>>) -> io::Result<()> {
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
