//! Revokes what a key proved, once it is no longer trusted.
//!
//! If none of a repository's signers is trusted any more, the repository proves nothing: its claims are deleted, so
//! that its files are judged again, and its stored entries keep only the proof of their transport. Entries that came
//! over plain http are not kept without a signature. What another trusted key proves, now or at the next
//! revalidation, is raised again automatically; a file whose URL names its digest needs no signer.
//!
//! A key is lost by `larder keys rm`, but also because its file is deleted or replaced, or because a newer copy revokes
//! it. So at each start and reload today's keys are compared with those that were in force before, which the store
//! remembers. That is cheap: only if a key is missing that signed for a repository, entries are looked at.
//!
//! ```text
//! start    the claims go before clients are served; the entries are lowered when they are read, before one is used
//! reload   new keys are remembered ─▶ the keys are in force ─▶ claims, then entries ─▶ the lost keys are forgotten
//! ```
//!
//! After a kill in between, the next start finds the lost keys still remembered, and does it again.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Admin;
use crate::keyring::Keyring;
use crate::pipeline::unproven;
use crate::target::Root;

impl Admin {
    /// Reads the stored records, and revokes what lost keys proved before an entry is used. Blocking.
    pub fn read_records(&self) {
        self.store.read_records_and(|| {
            let Some(running) = &self.running else { return };
            let mut settled = running.settled.lock().unwrap_or_else(PoisonError::into_inner);
            *settled = true;
            // An error was logged.
            let _revoked = self.revoke_lost(&running.keys.get(), true);
        });
    }

    /// Deletes the claims that only lost keys prove, at the start and before clients are served. Blocking.
    pub fn begin_with_keys(&self) {
        let Some(running) = &self.running else { return };
        let _alone = running.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = running.keys.get();
        self.remember(&keys);
        // An error was logged.
        let _retracted = self.revoke_lost(&keys, false);
    }

    /// Reads the keys again and puts them in force, if a larder serves. Revokes what lost keys proved, and returns the
    /// repositories; an error was logged. Blocking.
    pub fn reload_keys(&self) -> Result<Vec<Root>, String> {
        let Some(running) = &self.running else { return Ok(Vec::new()) };
        let settled = running.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.read_keys();
        self.remember(&keys);
        running.keys.set(keys);
        // Entries that are not read yet are lowered when they are.
        let revoked = self.revoke_lost(&running.keys.get(), *settled);
        drop(settled);
        self.warn_of_ending_keys();
        revoked
    }

    /// Tries again to revoke what lost keys proved, if that failed. If a file of keys could not be read then, it is read again.
    /// Blocking.
    pub fn maintain_keys(&self) {
        let Some(running) = &self.running else { return };
        if !running.unrevoked.load(Ordering::Acquire) {
            return;
        }
        if !running.keys.get().is_whole() {
            if self.read_keys().is_whole() {
                // An error was logged.
                let _revoked = self.reload_keys();
            }
            return;
        }
        let settled = running.settled.lock().unwrap_or_else(PoisonError::into_inner);
        // It was logged when it failed first.
        if self.try_revoke_lost(&running.keys.get(), *settled).is_ok() {
            running.unrevoked.store(false, Ordering::Release);
            tracing::info!("what lost keys proved is revoked now");
        }
    }

    /// Revokes what was proven in those repositories at `roots` of which no signer is trusted any more, and returns them.
    /// Blocking.
    pub(super) fn revoke_at(&self, roots: &[String]) -> Result<Vec<Root>, String> {
        let keys = self.read_keys();
        let trusted = known_signers(&keys)?;
        let undone: Vec<Root> =
            self.without_signer(&trusted, |root, _| roots.contains(&root.to_string()));
        let retracted = unproven::retract(&self.store, &undone);
        unproven::lower(&self.store, &undone).and(retracted).map(|()| undone)
    }

    /// Revokes what the keys proved that were in force before and are not among `keys`. `entries`: also of stored entries;
    /// otherwise only claims, and the lost keys stay remembered.
    fn revoke_lost(&self, keys: &Keyring, entries: bool) -> Result<Vec<Root>, String> {
        let revoked = self.try_revoke_lost(keys, entries);
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

    fn try_revoke_lost(&self, keys: &Keyring, entries: bool) -> Result<Vec<Root>, String> {
        let (trusted, known) = (keys.signers(), self.store.keys_in_force());
        if known.as_ref() == Some(&trusted) {
            return Ok(Vec::new());
        }
        known_signers(keys)?;
        let is_lost = |signer: &str| {
            known.as_ref().is_none_or(|known| known.contains(signer)) && !trusted.contains(signer)
        };
        let roots = self
            .without_signer(&trusted, |_, signers| signers.iter().any(|signer| is_lost(signer)));
        for root in &roots {
            tracing::warn!(%root, "no key that signed for this repository is trusted any more; what they proved counts no more");
        }
        let retracted = unproven::retract(&self.store, &roots);
        if entries {
            unproven::lower(&self.store, &roots).and(retracted)?;
            self.note_in_force(&trusted);
        } else {
            retracted?;
        }
        Ok(roots)
    }

    /// The repositories without a trusted signer that `which` selects.
    fn without_signer(
        &self,
        trusted: &BTreeSet<Box<str>>,
        which: impl Fn(&Root, &[Box<str>]) -> bool,
    ) -> Vec<Root> {
        let vouchers = self.store.vouchers().into_iter();
        let undone = vouchers.filter(|(root, signers)| {
            !signers.iter().any(|signer| trusted.contains(signer)) && which(root, signers)
        });
        let mut roots: Vec<Root> = undone.map(|(root, _)| root).collect();
        roots.sort_unstable();
        roots
    }

    /// Remembers `keys` before they prove anything.
    fn remember(&self, keys: &Keyring) {
        // If the former keys are unknown, all bindings will be compared.
        if let Some(mut known) = self.store.keys_in_force() {
            known.extend(keys.signers());
            self.note_in_force(&known);
        }
    }

    fn note_in_force(&self, keys: &BTreeSet<Box<str>>) {
        if let Err(error) = self.store.note_keys_in_force(keys) {
            tracing::error!(
                %error,
                "the keys in force could be neither written nor forgotten; before a key's file is deleted while larder does not run, delete \
                 the file state/in-force in the data directory"
            );
        }
    }
}

/// The signers among `keys`. An error if others may be trusted as well.
fn known_signers(keys: &Keyring) -> Result<BTreeSet<Box<str>>, String> {
    if keys.is_whole() {
        return Ok(keys.signers());
    }
    let why = "not every file of keys can be read now, so it is unknown which keys are still trusted: what they proved stays";
    Err(why.to_owned())
}
