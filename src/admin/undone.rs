//! Revokes what a key proved, once it is no longer trusted.
//!
//! What no trusted key signs any more proves nothing: such claims are deleted, so that files are judged again, and stored
//! entries that only they proved keep the proof of their transport. Entries that came over plain http are not kept without
//! a signature. What another trusted key proves, now or at the next revalidation, is raised again automatically; a file whose URL
//! names its digest needs no signer.
//!
//! A key is lost by `larder keys rm`, but also because its file is deleted or replaced, or because a newer copy revokes
//! it. So at each start and reload today's keys are compared with those that were in force before, which the store
//! remembers. That is cheap: only if a key is missing that signed for a repository, entries are looked at. A key whose file
//! cannot be read is not lost ([`InForce`]).
//!
//! ```text
//! start    the claims go before clients are served; the entries are lowered when they are read, before one is used
//! reload   new keys are remembered ─▶ the keys are in force ─▶ claims, then entries
//! ```
//!
//! After a kill in between, the next start finds the lost keys still remembered, and does it again. It does so once more
//! when nothing was interrupted: a document that was on its way when its key was lost may be stored after the walk, and larder be
//! killed before it looks at that document again. Then the keys that were lost before that start are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::{Admin, Running};
use crate::keyring::{InForce, Keyring};
use crate::pipeline::unproven;
use crate::target::Root;

/// What this larder did for lost keys.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Whether the records are read, so that entries can be lowered.
    entries: bool,
    /// The keys that were lost before the start.
    before: BTreeSet<Box<str>>,
    /// The keys that were lost, and whose proofs are revoked.
    revoked: BTreeSet<Box<str>>,
}

impl Running {
    pub(super) fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admin {
    /// Reads the stored records, and revokes what lost keys proved before an entry is used. Blocking.
    pub fn read_records(&self) {
        self.store.read_records_and(|| {
            let Some(running) = &self.running else { return };
            let mut settled = running.settled();
            settled.entries = true;
            // An error was logged.
            let _revoked = self.revoke_lost(&running.keys.get(), &mut settled);
        });
    }

    /// Deletes the claims that only lost keys prove, at the start and before clients are served. Blocking.
    pub fn begin_with_keys(&self) {
        let Some(running) = &self.running else { return };
        let mut settled = running.settled();
        let keys = running.keys.get();
        let standing = keys.standing();
        let known = self.store.keys_in_force().unwrap_or_default().keys.into_keys();
        settled.before = known.filter(|key| !standing.contains(key)).collect();
        self.remember(&keys);
        self.say_missing(&keys);
        // An error was logged.
        let _retracted = self.revoke_lost(&keys, &mut settled);
    }

    /// Reads the keys again and puts them in force, if a larder serves. Revokes what lost keys proved, and returns the
    /// repositories; an error was logged. Blocking.
    pub fn reload_keys(&self) -> Result<Vec<Root>, String> {
        let Some(running) = &self.running else { return Ok(Vec::new()) };
        let mut settled = running.settled();
        let revoked = self.put_in_force(self.read_keys(), running, &mut settled);
        drop(settled);
        self.warn_of_ending_keys();
        revoked
    }

    fn put_in_force(
        &self,
        keys: Keyring,
        running: &Running,
        settled: &mut Settled,
    ) -> Result<Vec<Root>, String> {
        self.remember(&keys);
        self.say_missing(&keys);
        running.keys.set(keys);
        // Entries that are not read yet are lowered when they are.
        self.revoke_lost(&running.keys.get(), settled)
    }

    /// Tries again to revoke what lost keys proved, if that failed. As long as a file of keys cannot be read, it is tried again.
    /// Blocking.
    pub fn maintain_keys(&self) {
        let Some(running) = &self.running else { return };
        let mut settled = running.settled();
        let keys = running.keys.get();
        if !keys.is_whole() || !keys.missing().is_empty() {
            let again = self.read_keys();
            if again.is_whole() != keys.is_whole() || again.missing() != keys.missing() {
                // An error was logged.
                let _revoked = self.put_in_force(again, running, &mut settled);
                return;
            }
        }
        if running.unrevoked.load(Ordering::Acquire) {
            // It was logged when it failed first.
            if self.try_revoke_lost(&keys, &mut settled).is_ok() {
                running.unrevoked.store(false, Ordering::Release);
                tracing::info!("what lost keys proved is revoked now");
            }
        }
    }

    /// Revokes what was proven in those repositories at `roots` and what no trusted key signs any more, and returns them. Blocking.
    pub(super) fn revoke_at(&self, roots: &[String]) -> Result<Vec<Root>, String> {
        let keys = self.read_keys();
        let standing = known_signers(&keys)?;
        let below = self.roots_where(|root, _| roots.contains(&root.to_string()));
        let mut undone = BTreeSet::new();
        let retracted = unproven::retract(&self.store, &standing, &below, &mut undone);
        unproven::lower(&self.store, &below, &mut undone).and(retracted)?;
        Ok(undone.into_iter().collect())
    }

    /// Revokes what the keys proved that were in force before and are lost. As long as the records are not read, only claims.
    fn revoke_lost(&self, keys: &Keyring, settled: &mut Settled) -> Result<Vec<Root>, String> {
        let revoked = self.try_revoke_lost(keys, settled);
        if let Err(why) = &revoked {
            tracing::error!(
                why,
                "what a key proved that is not trusted any more could not be revoked; it is tried again at each maintenance and start"
            );
        }
        if let Some(running) = &self.running {
            running.unrevoked.store(revoked.is_err(), Ordering::Release);
        }
        revoked
    }

    fn try_revoke_lost(&self, keys: &Keyring, settled: &mut Settled) -> Result<Vec<Root>, String> {
        let (standing, known) = (known_signers(keys)?, self.store.keys_in_force());
        // A key that is trusted again may be lost again.
        settled.revoked.retain(|key| !standing.contains(key));
        let is_lost = |signer: &str| {
            known.as_ref().is_none_or(|known| known.keys.contains_key(signer))
                && !standing.contains(signer)
                && !settled.revoked.contains(signer)
        };
        // Of an earlier larder's claims it is not known which part of a key signed them.
        let lost: BTreeSet<&str> = known
            .iter()
            .flat_map(|known| known.keys.keys())
            .map(|key| &**key)
            .filter(|key| is_lost(key))
            .collect();
        let whole = |key: &str| {
            lost.iter().any(|lost| lost.split_once('.').is_some_and(|(whole, _)| whole == key))
        };
        let roots =
            self.roots_where(|_, signers| signers.iter().any(|key| is_lost(key) || whole(key)));
        let mut undone = BTreeSet::new();
        let mut revoked = unproven::retract(&self.store, &standing, &roots, &mut undone);
        if settled.entries {
            revoked = unproven::lower(&self.store, &roots, &mut undone).and(revoked);
        }
        for root in &undone {
            tracing::warn!(%root, "a key that signed for this repository is not trusted any more; what only it proved counts no more");
        }
        revoked?;
        if settled.entries {
            let lost: Vec<Box<str>> = lost.into_iter().map(Box::from).collect();
            settled.revoked.extend(lost);
            let known = known.unwrap_or_default();
            let before = std::mem::take(&mut settled.before);
            self.note_in_force(&keys.in_force(&known, |key| !before.contains(key)));
        }
        Ok(undone.into_iter().collect())
    }

    /// The repositories that `which` selects by those who ever signed for them.
    fn roots_where(&self, which: impl Fn(&Root, &[Box<str>]) -> bool) -> BTreeSet<Root> {
        let vouchers = self.store.vouchers().into_iter();
        vouchers.filter(|(root, signers)| which(root, signers)).map(|(root, _)| root).collect()
    }

    /// Remembers `keys` before they prove anything.
    fn remember(&self, keys: &Keyring) {
        // If the former keys are unknown, all bindings will be compared.
        if let Some(known) = self.store.keys_in_force() {
            self.note_in_force(&keys.in_force(&known, |_| true));
        }
    }

    fn note_in_force(&self, keys: &InForce) {
        if let Err(error) = self.store.note_keys_in_force(keys) {
            tracing::error!(
                %error,
                "the keys in force could be neither written nor forgotten; before a key's file is deleted while larder does not run, delete \
                 the file state/in-force in the data directory"
            );
        }
    }

    /// Reports the keys that cannot be read now, in the log and in the metrics. Each counts once, with its subkeys.
    fn say_missing(&self, keys: &Keyring) {
        let primary = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
        let missing: BTreeMap<String, &String> =
            keys.missing().iter().map(|(key, at)| (primary(key), at)).collect();
        for (key, at) in &missing {
            tracing::error!(
                key,
                at,
                "this key cannot be read now, so it proves nothing new; what it proved stays. If its file is to count again, make it \
                 readable; if the key is to be trusted no more, say `larder keys rm` with it"
            );
        }
        if let Some(running) = &self.running {
            running.metrics.keys_missing(missing.len());
        }
    }
}

/// The signers whose signatures count. An error if others may be trusted as well.
fn known_signers(keys: &Keyring) -> Result<BTreeSet<Box<str>>, String> {
    if keys.is_whole() {
        return Ok(keys.standing());
    }
    let why = "not every file of keys can be read now, so it is unknown which keys are still trusted: what they proved stays";
    Err(why.to_owned())
}
